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
"""Train a classifier of recordings (words, speakers...) from a recipe: a YAML file of data, model and training.

    python scripts/train_audio_classifier.py configuration/training/fsdd-digits.yaml --train-file train.parquet ...
    python scripts/train_audio_classifier.py RECIPE --learning-rate 0.001       # an option overrides the recipe
    python scripts/train_audio_classifier.py RECIPE --held-out-column speaker  # tests on each speaker in turn

A row holds a recording, as a list of samples beside a sampling rate, as the path of a WAV file (mono, 16 bits) or as
audio of the Hub, and a label: a named number, a bare number or a name. Beside the model the recordings are classified
by their mean MFCCs and a logistic regression. Interrupted at any moment and started again with the same command, it
goes on from its last complete checkpoint, to the same end. The model, its card, the scores and the curves are in
--output-dir, or those of each held-out value in a folder of its own there.
"""

import copy
import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote


# Where other programs share the cores, OpenMP threads that spin while they wait slow each step many times over. The
# variable is read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
from datasets import Dataset
from scipy.fft import dct
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import DataCollatorWithPadding, TrainingArguments, pipeline, set_seed

from audio_data import AudioArguments, AudioReader, at_speeds, check_audio_arguments, make_rows, speeds_of
from classification import METRICS, average, make_trainer, measure, measure_labels, report_average, score_labels
from command_line import end_process_group, stop
from labels import config_names, names_of, read_label
from modeling_qrnn import QRNNFeatureExtractor, QRNNForAudioClassification
from recipes import check_holds_no_run, keep_settings, read_recipe
from results import describe_run, publish, report, write_scores
from speech import SpeechArguments, as_examples, describe_sizes, extract, make_extractor, make_model
from text_data import describe_source, feature_of, held_out_splits, read_splits
from training import check_training, train_to_the_end, with_validation, write_results


BASELINE = "mean MFCCs"
NUM_MFCC = 20
SCORING = (
    "Macro F1 is the mean over the labels that occur, by scikit-learn; the loss is in nats per recording. Mean MFCCs "
    f"are the mean and the standard deviation over time of {NUM_MFCC} cepstral coefficients of the same frames, read "
    "by a logistic regression (scikit-learn)."
)


@dataclass
class DataArguments(AudioArguments):
    label_column: str = field(default="label", metadata={"help": "The column with the label."})
    held_out_column: str | None = field(
        default=None,
        metadata={"help": "Test on what was not met in training: hold out each value of this column in turn."},
    )
    held_out_value: str | None = field(default=None, metadata={"help": "Of --held-out-column only this value."})


ARGUMENTS = (DataArguments, SpeechArguments, TrainingArguments)


def check_arguments(data: DataArguments, training: TrainingArguments) -> None:
    check_audio_arguments(data)
    check_training(training, {*METRICS})
    if data.held_out_column is None:
        if data.held_out_value is not None:
            stop("--held-out-value goes with --held-out-column")
        return
    if not data.validation_share:
        stop("--held-out-column goes with --validation-share, which is taken from the other rows")
    if data.validation_file is not None or data.test_file is not None:
        stop("--held-out-column tests on parts of the training rows: leave out --validation-file and --test-file")
    if training.push_to_hub and data.held_out_value is None:
        stop("--push-to-hub is for one model: add --held-out-value to --held-out-column")


# --- data ------------------------------------------------------------------------------------------------------------


def read_examples(data: DataArguments) -> tuple[dict[str, Dataset], list[str], int]:
    """The rows of each split, `audio`, `label` as a number and perhaps `group`; the labels' names; the sampling rate.

    `group` is what may be held out.
    """
    splits, names, reader = {}, None, AudioReader(data)
    for split, (name, rows) in read_splits(data).items():
        feature = feature_of(rows, data.label_column)
        readers = {data.label_column: functools.partial(read_label, feature=feature, known=names)}
        if data.held_out_column is not None:
            group_feature = feature_of(rows, data.held_out_column)
            readers[data.held_out_column] = functools.partial(read_label, feature=group_feature)
        columns = reader.read_columns(name, rows, readers)
        labels = columns[data.label_column]
        if split == "train":
            names = names_of(labels, feature, f"{name}: column {data.label_column!r}")
        more = {} if data.held_out_column is None else {"group": columns[data.held_out_column]}
        numbers = [names.index(label) for label in labels]
        splits[split] = make_rows(audio=columns[data.audio_column], label=numbers, **more)
    return splits, names, reader.sampling_rate


def hold_out(rows: Dataset, names: Sequence[str], data: DataArguments, seed: int) -> dict[str, dict[str, Dataset]]:
    """For each value of the column that is wanted, the splits whose test are its rows."""
    groups = np.array(rows["group"][:])
    values = names_of(groups.tolist(), None, f"column {data.held_out_column!r}", "value")
    if data.held_out_value not in (None, *values):
        stop(f"--held-out-value {data.held_out_value}: column {data.held_out_column!r} holds {', '.join(values)}")
    splits = {}
    for value in values if data.held_out_value is None else [data.held_out_value]:
        is_test = groups == value
        parts = {"train": rows.select(np.flatnonzero(~is_test)), "test": rows.select(np.flatnonzero(is_test))}
        if len({*parts["train"]["label"]}) < 2:
            stop(f"column {data.held_out_column!r}: without {value!r} the training rows have one label only")
        splits[value] = with_validation(parts, data.validation_share, seed, names)
    return splits


def encode(rows: Dataset, extractor: QRNNFeatureExtractor) -> list[dict[str, Any]]:
    return as_examples(extract(rows, extractor), rows["label"][:].tolist())


# --- scores ----------------------------------------------------------------------------------------------------------


def mean_mfccs(row: dict[str, Any], extractor: QRNNFeatureExtractor) -> np.ndarray:
    """Mean and standard deviation over time of the first cepstral coefficients."""
    log_mel = row["input_features"] * np.asarray(extractor.std) + np.asarray(extractor.mean)
    mfccs = dct(log_mel, norm="ortho")[:, :NUM_MFCC]
    return np.concatenate([mfccs.mean(axis=0), mfccs.std(axis=0)])


def score_baseline(encoded: dict[str, list[dict]], extractor: QRNNFeatureExtractor) -> dict[str, dict[str, float]]:
    """What a logistic regression on such means is worth, split by split."""
    vectors = {split: np.stack([mean_mfccs(row, extractor) for row in rows]) for split, rows in encoded.items()}
    labels = {split: [row["labels"] for row in rows] for split, rows in encoded.items()}
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    classifier.fit(vectors["train"], labels["train"])
    return {
        split: measure_labels(labels[split], classifier.predict(vectors[split])) for split in held_out_splits(encoded)
    }


def write_sample(folder: Path, row: dict[str, Any], sampling_rate: int, names: Sequence[str]) -> str:
    """Load the saved model as anyone would, and classify a recording."""
    classifier = pipeline("audio-classification", model=str(folder))
    best = classifier({"raw": row["audio"], "sampling_rate": sampling_rate})[0]
    seconds = len(row["audio"]) / sampling_rate
    return f"{seconds:.2f} seconds, {names[row['label']]}\n-> {best['label']} ({best['score']:.2f})"


# --- training --------------------------------------------------------------------------------------------------------


def train(
    splits: dict[str, Dataset],
    names: Sequence[str],
    sampling_rate: int,
    source: str,
    data: DataArguments,
    model_args: SpeechArguments,
    training: TrainingArguments,
    settings: dict[str, Any],
) -> dict[str, dict[str, Any]]:
    """Train one model, or go on with it, and score it and the baseline; its folder holds all that comes of it."""
    folder = Path(training.output_dir)
    keep_settings(settings, folder)
    set_seed(training.seed)
    splits = {**splits, "train": at_speeds(splits["train"], speeds_of(data))}
    extractor = make_extractor(model_args, splits["train"], sampling_rate)
    model = make_model(QRNNForAudioClassification, model_args, extractor, **config_names(names))
    encoded = {split: encode(rows, extractor) for split, rows in splits.items()}
    print(", ".join(f"{split}: {describe_sizes(rows, sampling_rate)}" for split, rows in splits.items()))
    print(f"{len(names)} labels; {model.num_parameters():,} parameters")

    trainer = make_trainer(model, training, extractor, encoded, DataCollatorWithPadding(extractor), measure)
    train_to_the_end(trainer)
    held_out = held_out_splits(encoded)
    scored = {split: score_labels(trainer, split, encoded[split], names, "recordings") for split in held_out}
    scores = {split: result for split, (result, _) in scored.items()}
    baselines = {BASELINE: score_baseline(encoded, extractor)}
    if trainer.is_world_process_zero():
        write_results(trainer, scores, "accuracy", baselines=baselines)
        report({f"{split}, {BASELINE}": result for split, result in baselines[BASELINE].items()})
        if model_args.architecture == "qrnn":
            run = describe_run(__file__, "audio-classification", source, trainer, settings, scores)
            run["figures"], run["report"] = ["loss", *METRICS, "recordings"], scored[held_out[-1]][1].rstrip()
            run["scoring"], run["baselines"], run["sampling_rate"] = SCORING, baselines, sampling_rate
            run["sample"] = write_sample(folder, splits[held_out[-1]][0], sampling_rate, names)
            publish(trainer, run, data.dataset, {"accuracy": "accuracy", "f1": "macro_f1"})
    return {**scores, "baselines": baselines}


def hold_out_each(
    rows: Dataset,
    names: Sequence[str],
    sampling_rate: int,
    data: DataArguments,
    model_args: SpeechArguments,
    training: TrainingArguments,
    settings: dict[str, Any],
) -> None:
    """Train a model for each held-out value, in a folder of its own. Those trained before are only scored."""
    folder, scores = Path(training.output_dir), {}
    if data.held_out_value is None:
        check_holds_no_run(folder)
    for value, splits in hold_out(rows, names, data, training.seed).items():
        training = copy.copy(training)
        training.output_dir = str(folder / folder_name(value))
        source = f"{describe_source(data)}, {data.held_out_column} {value} held out"
        print(f"Held out: {data.held_out_column} {value}")
        own_settings = {**settings, "held_out_value": value}  # the same whether this one was asked for or all
        scores[value] = train(splits, names, sampling_rate, source, data, model_args, training, own_settings)
    if data.held_out_value is None and training.process_index == 0:
        summary = average([part["test"] for part in scores.values()])
        baseline = average([part["baselines"][BASELINE]["test"] for part in scores.values()])
        write_scores({"held_out": scores, **summary, "baselines": {BASELINE: baseline}}, folder)
        report_average(summary)
        report_average({f"{name}, {BASELINE}": figures for name, figures in baseline.items()})


def folder_name(value: str) -> str:
    """Another one for each value, and never one elsewhere."""
    return f"held-out-{quote(value, safe='')}"


def main(argv: Sequence[str] | None = None) -> None:
    (data, model_args, training), settings = read_recipe(argv, ARGUMENTS, __doc__)
    check_arguments(data, training)
    splits, names, sampling_rate = read_examples(data)
    if data.held_out_column is not None:
        hold_out_each(splits["train"], names, sampling_rate, data, model_args, training, settings)
        return
    splits = with_validation(splits, data.validation_share, training.seed, names)
    train(splits, names, sampling_rate, describe_source(data), data, model_args, training, settings)


if __name__ == "__main__":
    main()
    end_process_group()
