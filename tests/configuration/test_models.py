# Copyright 2026 The modeling-qrnn authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""configuration/models: each file builds, and the published sizes hold."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, PreTrainedModel

from modeling_qrnn import (
    QRNNForCausalLM,
    QRNNForConditionalGeneration,
    QRNNForSequenceClassification,
    QRNNForTokenClassification,
)


FILES = sorted((Path(__file__).parents[2] / "configuration/models").glob("*.json"))
CONFIGS = {path.stem: AutoConfig.from_pretrained(path) for path in FILES}

# Millions of parameters as published, and what those models have that ours do not: for WikiText-103 the three tail
# vectors of the adaptive softmax with their biases.
PUBLISHED = {
    "paper-ptb-medium": (17.7, 0),
    "awd-qrnn-ptb": (24.0, 0),
    "awd-qrnn-wikitext103": (153.9, 3 * 401),
    "multifit": (26.0, 0),
}


OTHER_MODELS = {
    "paper-characters": QRNNForConditionalGeneration,
    "paper-imdb-dense": QRNNForSequenceClassification,
    "sentence-classifier": QRNNForSequenceClassification,
    "summarizer": QRNNForConditionalGeneration,
    "tagger": QRNNForTokenClassification,
    "translator": QRNNForConditionalGeneration,
}


def build(name: str) -> PreTrainedModel:
    with torch.device("meta"):
        return OTHER_MODELS.get(name, QRNNForCausalLM)(CONFIGS[name])


@pytest.mark.parametrize("name", CONFIGS)
def test_builds(name):
    """Nothing in a file is misspelt either: an unknown key would be kept and ignored."""
    unknown = set(CONFIGS[name].to_diff_dict()) - set(type(CONFIGS[name])().to_dict())
    assert not unknown
    assert build(name).num_parameters() > 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    model, (millions, n_more) = build(name), PUBLISHED[name]
    assert round((model.num_parameters() + n_more) / 1e6, 1) == millions
    assert model.lm_head.bias.shape == (model.config.vocab_size,)


def test_imdb_head_reads_the_last_layer_alone():
    model = build("paper-imdb-dense")
    assert [block.mixer.directions[0].gate_proj.in_features for block in model.model.layers] == [
        2 * (300 + 256 * layer) for layer in range(4)
    ]
    assert model.score.weight.shape == (2, 256)


def test_tiny_is_tiny():
    assert build("qrnn-tiny").num_parameters() < 5e6
