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
"""What the programs that train models of speech share: features and models."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset

from command_line import one_line_error
from lstm_baseline import in_architecture
from modeling_qrnn import QRNNFeatureExtractor, QRNNSpeechConfig
from modeling_qrnn.modeling_qrnn_speech import QRNNSpeechPreTrainedModel
from recipes import MISTAKES, ArchitectureArguments, overrides_of


FIXED_BY_DATA = {"hop_length", "vocab_size"}
MOST_TO_FIT = 1000  # recordings whose mean and deviation stand for those of all


@dataclass
class SpeechArguments(ArchitectureArguments):
    model_overrides: str = field(
        default="{}", metadata={"help": "The fields of QRNNSpeechConfig, as YAML: `{hidden_size: 128, stride: 2}`."}
    )


def make_extractor(model_args: SpeechArguments, rows: Dataset, sampling_rate: int) -> QRNNFeatureExtractor:
    """The feature extractor of the model that the arguments describe, with the statistics of these recordings.

    Of many recordings only some count, evenly spread.
    """
    with one_line_error(f"--model-overrides {model_args.model_overrides}", *MISTAKES):
        size = QRNNSpeechConfig(**overrides_of(model_args, QRNNSpeechConfig, FIXED_BY_DATA)).num_mel_bins
        extractor = QRNNFeatureExtractor(size, sampling_rate)
    some = rows.select(range(0, len(rows), -(-len(rows) // MOST_TO_FIT)))
    return extractor.fit((row["audio"] for row in some), sampling_rate)


def make_model(
    model_class: type[QRNNSpeechPreTrainedModel],
    model_args: SpeechArguments,
    extractor: QRNNFeatureExtractor,
    **fixed: Any,
) -> QRNNSpeechPreTrainedModel:
    """The model that the arguments describe, for these features; `fixed` is what the data decide."""
    with one_line_error(f"--model-overrides {model_args.model_overrides}", *MISTAKES):
        overrides = overrides_of(model_args, QRNNSpeechConfig, FIXED_BY_DATA)
        model = model_class(QRNNSpeechConfig(**overrides, hop_length=extractor.hop_length, **fixed))
    return in_architecture(model, model_args.architecture)


def extract(rows: Dataset, extractor: QRNNFeatureExtractor) -> list[np.ndarray]:
    """The frames of each recording, `(frames, features)`."""
    rate = extractor.sampling_rate
    return [extractor(row["audio"], rate)["input_features"][0] for row in rows]


def as_examples(features: list[np.ndarray], labels: list) -> list[dict[str, Any]]:
    """The rows that Trainer is given: a list, for a data set would make each anew from Arrow in every epoch."""
    pairs = zip(features, labels, strict=True)
    return [{"input_features": frames, "labels": label} for frames, label in pairs]


def describe_sizes(rows: Dataset, sampling_rate: int) -> str:
    seconds = sum(map(len, rows["audio"])) / sampling_rate
    return f"{len(rows):,} recordings ({seconds / 60:.1f} minutes)"
