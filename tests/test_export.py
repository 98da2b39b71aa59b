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
"""Export to ONNX: what ONNX Runtime computes is what the model computes, for any batch and any length."""

import pytest
import torch
from torch.export import Dim
from transformers.exporters import ExportedModel, OnnxConfig, OnnxExporter

from modeling_qrnn import (
    QRNNConfig,
    QRNNForAudioClassification,
    QRNNForCausalLM,
    QRNNForCTC,
    QRNNForSequenceClassification,
    QRNNForTimeSeriesPrediction,
    QRNNForTokenClassification,
    QRNNSpeechConfig,
    QRNNTimeSeriesConfig,
)


VOCAB_SIZE = 41
TEXT = {"vocab_size": VOCAB_SIZE, "hidden_size": 8, "num_hidden_layers": 2, "pad_token_id": 0, "num_labels": 3}
SPEECH = {"num_mel_bins": 4, "hidden_size": 6, "num_hidden_layers": 2, "vocab_size": 7, "num_labels": 3}
SERIES = {"hidden_size": 8, "num_hidden_layers": 2, "prediction_length": 5, "loss": "mse"}
BOTH_WAYS = {"bidirectional": True, "connection": "residual", "norm": "rms_norm", "intermediate_size": 12}


def draw_mask(batch_size: int, length: int) -> torch.Tensor:
    """A row with pads on either side, one with pads in between, and rows without."""
    mask = torch.ones(batch_size, length, dtype=torch.long)
    mask[0, : length // 3] = mask[0, length - 1 :] = mask[-1, 1 : length // 2] = 0
    return mask


def draw_text(batch_size: int, length: int) -> dict[str, torch.Tensor]:
    tokens = torch.randint(1, VOCAB_SIZE, (batch_size, length))
    return {"input_ids": tokens, "attention_mask": draw_mask(batch_size, length)}


def draw_speech(batch_size: int, length: int) -> dict[str, torch.Tensor]:
    return {"input_features": torch.randn(batch_size, length, 4), "attention_mask": draw_mask(batch_size, length)}


def draw_series(batch_size: int, length: int) -> dict[str, torch.Tensor]:
    return {"past_values": torch.randn(batch_size, length)}


MODELS = {
    "classifier": (QRNNForSequenceClassification, QRNNConfig(**TEXT, classifier_pooling="concat"), draw_text),
    "tagger": (QRNNForTokenClassification, QRNNConfig(**TEXT, **BOTH_WAYS, kernel_size=3), draw_text),
    "transcriber": (QRNNForCTC, QRNNSpeechConfig(**SPEECH, pooling="ifo"), draw_speech),
    "hearer": (
        QRNNForAudioClassification,
        QRNNSpeechConfig(**SPEECH, bidirectional=True, stride=1, temporal_pooling="max"),
        draw_speech,
    ),
    "forecaster": (QRNNForTimeSeriesPrediction, QRNNTimeSeriesConfig(**SERIES, pooling="f"), draw_series),
}


@pytest.mark.parametrize("name", MODELS)
def test_any_batch_and_any_length(name, redraw, tmp_path):
    model_class, config, draw = MODELS[name]
    model, sample = redraw(model_class(config)), draw(2, 12)
    axes = {0: Dim.DYNAMIC, 1: Dim("length", min=9, max=100)}
    onnx = OnnxConfig(dynamic=True, dynamic_shapes=dict.fromkeys(sample, axes))
    OnnxExporter().export(model, sample, onnx).save_pretrained(tmp_path)
    exported = ExportedModel.from_pretrained(tmp_path)
    for batch_size, length in ((2, 12), (3, 9), (4, 100)):
        batch = draw(batch_size, length)
        actual, expected = exported(**batch), model(**batch)
        assert type(actual) is type(expected)
        torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=1e-5)


def test_generation_token_by_token(redraw):
    model = redraw(QRNNForCausalLM(QRNNConfig(**TEXT, connection="residual", kernel_size=3)))
    prompt, positions = {"input_ids": torch.randint(1, VOCAB_SIZE, (2, 7))}, torch.arange(15).expand(2, -1)
    exported = OnnxExporter().export_for_generation(model, prompt, OnnxConfig())
    assert set(exported.runners) == {"prefill", "decode"}
    output = exported.runners["prefill"](**prompt, position_ids=positions[:, :7])
    tokens = [output.logits[:, -1:].argmax(-1)]
    for position in positions[:, 7:14].split(1, dim=1):
        output = exported.runners["decode"](input_ids=tokens[-1], position_ids=position, cache=output.cache)
        tokens.append(output.logits.argmax(-1))
    expected = model.generate(**prompt, max_new_tokens=8, do_sample=False)[:, 7:]
    assert torch.equal(torch.cat(tokens, dim=1), expected)
