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
"""What the programs that train classifiers share: the trainer, how it goes on, and what it leaves behind."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sklearn.metrics import accuracy_score, classification_report, confusion_matrix, f1_score
from sklearn.model_selection import train_test_split
from transformers import EvalPrediction, PreTrainedModel, Trainer, TrainingArguments

from command_line import one_line_error, one_line_trainer_error, stop
from curves import plot_training
from recipes import last_complete_checkpoint
from results import report, write_scores


Rows = Dataset | Sequence[dict]
Measure = Callable[[EvalPrediction], dict[str, float]]
METRICS = ("accuracy", "macro_f1")  # of one label a row


def check_training(training: TrainingArguments, metrics: set[str]) -> None:
    """Refuse what would end in a traceback, or go on elsewhere than it stopped."""
    metric = training.metric_for_best_model
    if metric is not None and metric.removeprefix("eval_") not in {*metrics, "loss"}:
        stop(f"--metric-for-best-model {metric}: the metrics are {', '.join(sorted({*metrics, 'loss'}))}")
    if training.train_sampling_strategy == "group_by_length" and training.save_strategy not in ("epoch", "no"):
        stop(
            "--train-sampling-strategy group_by_length draws the order of an epoch when it begins, so a run can only "
            "go on from the end of one: --save-strategy must be epoch, or no"
        )
    if training.load_best_model_at_end and training.save_total_limit == 1:
        stop("--save-total-limit must be at least 2 with the best model kept: the best checkpoint, and the last one")


def with_validation(
    splits: Mapping[str, Dataset], share: float, seed: int, stratify: str | None = None
) -> dict[str, Dataset]:
    """The splits, with a share of the training rows for validation: drawn at random, evenly by one column."""
    if share:
        if "validation" in splits:
            stop("--validation-share must be 0: the data have a validation split of their own")
        rows = splits["train"]
        labels = None if stratify is None else rows[stratify]
        with one_line_error(f"--validation-share {share}", ValueError):
            parts = train_test_split(np.arange(len(rows)), test_size=share, random_state=seed, stratify=labels)
        return {**splits, "train": rows.select(parts[0]), "validation": rows.select(parts[1])}
    if "validation" not in splits:
        stop("the validation split is empty: give --validation-file or --validation-share")
    return dict(splits)


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
    with one_line_trainer_error():
        return Trainer(
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


def train_to_the_end(trainer: Trainer) -> None:
    """Train from the last complete checkpoint of the folder, if there is one, and save the model."""
    checkpoint = last_complete_checkpoint(Path(trainer.args.output_dir))
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.save_model()


def predict(trainer: Trainer, split: str, rows: Rows) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """The labels of a split and what the model says in their place, each `(rows, ...)`, and the metrics."""
    output = trainer.predict(rows, metric_key_prefix=split)
    metrics = {name.removeprefix(f"{split}_"): value for name, value in output.metrics.items()}
    return output.label_ids, output.predictions, metrics


def measure_labels(labels: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
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


def write_results(
    trainer: Trainer, scores: dict[str, dict[str, Any]], metric: str, choose: Callable = max, **more: Any
) -> None:
    """The scores, with what more belongs to them, and the curves; `choose` tells the best value of the metric."""
    folder = Path(trainer.args.output_dir)
    write_scores({**scores, **more}, folder)
    plot_training(trainer.state.log_history, metric, folder / "loss_curve.png", choose)
    report(scores)
