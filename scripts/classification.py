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
"""What the programs that train classifiers share: the trainer, and how labels are scored."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sklearn.metrics import accuracy_score, classification_report, confusion_matrix, f1_score
from transformers import EvalPrediction, PreTrainedModel, Trainer, TrainingArguments

from command_line import one_line_trainer_error
from training import ResumableTrainer, check_predictions


Rows = Dataset | Sequence[dict]
Measure = Callable[[EvalPrediction], dict[str, float]]
METRICS = ("accuracy", "macro_f1")  # of one label a row
NOT_SCORED = -100  # the label that losses and metrics leave out


def make_trainer(
    model: PreTrainedModel,
    training: TrainingArguments,
    processor: Any,
    splits: Mapping[str, Rows],
    data_collator: Callable,
    measure: Measure,
    **options: Any,
) -> Trainer:
    """`Trainer` that saves the tokenizer or feature extractor too; the options are more of its arguments."""
    check_predictions(training)
    with one_line_trainer_error():
        return ResumableTrainer(
            model,
            training,
            train_dataset=splits["train"],
            eval_dataset=splits["validation"],
            processing_class=processor,
            data_collator=data_collator,
            compute_metrics=measure,
            preprocess_logits_for_metrics=most_likely,
            **options,
        )


def most_likely(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The number of the label, in place of all the logits."""
    return logits.argmax(dim=-1)


def predict(trainer: Trainer, split: str, rows: Rows) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """The labels of a split and what the model says in their place, each `(rows, ...)`, and the metrics."""
    output = trainer.predict(rows, metric_key_prefix=split)
    metrics = {name.removeprefix(f"{split}_"): value for name, value in output.metrics.items()}
    return output.label_ids, output.predictions, metrics


def measure_labels(labels: Sequence | np.ndarray, predicted: Sequence | np.ndarray) -> dict[str, float]:
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0)),
    }


def measure(prediction: EvalPrediction) -> dict[str, float]:
    return measure_labels(prediction.label_ids, prediction.predictions)


def score_labels(
    trainer: Trainer, split: str, rows: Rows, names: Sequence[str], unit: str
) -> tuple[dict[str, Any], str]:
    """The figures of a split with one label a row, `unit` being what a row is; and a table of its labels."""
    labels, predicted, metrics = predict(trainer, split, rows)
    numbers = range(len(names))
    result = {name: metrics[name] for name in ("loss", *METRICS)}
    result[unit] = len(rows)
    result["confusion"] = confusion_matrix(labels, predicted, labels=numbers).tolist()
    table = classification_report(labels, predicted, labels=numbers, target_names=names, digits=4, zero_division=0)
    return result, table


def average(scores: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Mean, standard deviation and standard error of the folds' scores."""
    columns = {name: [fold[name] for fold in scores] for name in METRICS}
    deviations = {name: statistics.stdev(values) for name, values in columns.items()}
    return {
        "mean": {name: statistics.fmean(values) for name, values in columns.items()},
        "standard_deviation": deviations,
        "standard_error": {name: deviation / len(scores) ** 0.5 for name, deviation in deviations.items()},
    }


def report_average(summary: Mapping[str, Mapping[str, float]]) -> None:
    for name, part in summary.items():
        print(f"{name.replace('_', ' ')}: " + ", ".join(f"{metric} {value:.4f}" for metric, value in part.items()))
