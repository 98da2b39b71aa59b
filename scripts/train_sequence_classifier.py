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
"""Train a classifier of texts, or of pairs of texts, from a recipe: a YAML file of data, model and training arguments.

    python scripts/train_sequence_classifier.py configuration/training/sentence-classification.yaml --train-file mr.csv
    python scripts/train_sequence_classifier.py RECIPE --learning-rate 0.001  # an option overrides the recipe
    python scripts/train_sequence_classifier.py RECIPE --folds 10             # cross-validation; --fold 3 is one part

Labels are named numbers, bare numbers or names. Interrupted at any moment and started again with the same command, it
goes on from its last complete checkpoint, to the same end. The model, its card, the scores and the curves are in
--output-dir, or those of each fold in a folder of its own there.
"""

import copy
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


# Where other programs share the cores, OpenMP threads that spin while they wait slow each step many times over. The
# variable is read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
from datasets import Dataset
from sklearn.model_selection import StratifiedKFold
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    pipeline,
    set_seed,
)

from classification import METRICS, average, make_trainer, measure, report_average, score_labels
from command_line import end_process_group, one_line_error, one_line_trainer_error, stop
from labels import config_names, names_of, read_label
from modeling_qrnn import QRNNForSequenceClassification
from modeling_qrnn.transfer_qrnn import GradualUnfreezing, discriminative_parameter_groups, parameter_levels
from models import make_model
from recipes import ModelArguments, check_holds_no_run, keep_settings, read_recipe
from results import describe_run, publish, write_scores
from text_data import (
    TextArguments,
    check_text_arguments,
    describe_source,
    feature_of,
    held_out_splits,
    read_columns,
    read_splits,
    read_text,
)
from tokenization import report_unknown, train_tokenizer
from training import check_training, train_to_the_end, with_validation, write_results


@dataclass
class DataArguments(TextArguments):
    text_pair_column: str | None = field(
        default=None, metadata={"help": "The column with a second text, where two are classified together."}
    )
    label_column: str = field(default="label", metadata={"help": "The column with the label."})
    validation_share: float = field(
        default=0.0,
        metadata={"help": "Hold out so much of the training rows for validation: drawn at random, label by label."},
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Cut texts to so many tokens; without this they are read whole."}
    )
    folds: int = field(
        default=0, metadata={"help": "Test by cross-validation: cut the training rows into so many parts."}
    )
    fold: int | None = field(default=None, metadata={"help": "Run only this one of --folds, counted from 1."})


@dataclass
class TransferArguments:
    """How the body of --init-from is tuned to the task (Howard and Ruder 2018, ULMFiT)."""

    _argument_group_name = "transfer"

    discriminative_factor: float = field(
        default=1.0,
        metadata={"help": "The learning rate of each layer over that of the layer below it; 2.6 in ULMFiT."},
    )
    gradual_unfreezing: float = field(
        default=0.0,
        metadata={"help": "Begin with the head alone; after so many epochs, and again so many, the next layer joins."},
    )


ARGUMENTS = (DataArguments, ModelArguments, TransferArguments, TrainingArguments)


def check_arguments(
    data: DataArguments, model_args: ModelArguments, transfer: TransferArguments, training: TrainingArguments
) -> None:
    check_text_arguments(data)
    check_training(training, {*METRICS})
    if transfer.discriminative_factor < 1:
        stop(f"--discriminative-factor must be at least 1, got {transfer.discriminative_factor}")
    if transfer.gradual_unfreezing < 0:
        stop(f"--gradual-unfreezing must be at least 0, got {transfer.gradual_unfreezing}")
    if (transfer.gradual_unfreezing or transfer.discriminative_factor > 1) and model_args.init_from is None:
        stop("--gradual-unfreezing and --discriminative-factor need --init-from: a new model has nothing to keep")
    if transfer.gradual_unfreezing and training.world_size > 1:
        stop("--gradual-unfreezing needs a single process")
    if data.max_length is not None and data.max_length < 1:
        stop(f"--max-length must be at least 1, got {data.max_length}")
    if data.fold is not None and not data.folds:
        stop(f"--fold {data.fold} goes with --folds")
    if data.fold is not None and not 1 <= data.fold <= data.folds:
        stop(f"--fold must be one of the {data.folds} of --folds, from 1, got {data.fold}")
    if not data.folds:
        return
    if data.folds < 2:
        stop(f"--folds must be at least 2, got {data.folds}")
    if not data.validation_share:
        stop("--folds goes with --validation-share, for instance 0.1, which is taken from the other folds")
    if data.validation_file is not None or data.test_file is not None:
        stop("--folds tests on parts of the training rows: leave out --validation-file and --test-file")
    if training.push_to_hub and data.fold is None:
        stop("--push-to-hub is for one model: add --fold to --folds")


# --- data ------------------------------------------------------------------------------------------------------------


def read_examples(data: DataArguments) -> tuple[dict[str, Dataset], list[str]]:
    """The rows of each split, `text`, perhaps `text_pair`, and `label` as a number; and the names of the labels."""
    columns, names = {}, None
    for split, (name, rows) in read_splits(data).items():
        feature = feature_of(rows, data.label_column)
        readers = dict.fromkeys(text_columns(data), read_text)
        readers[data.label_column] = functools.partial(read_label, feature=feature, known=names)
        columns[split] = read_columns(name, rows, readers)
        if split == "train":
            if not any(map(str.strip, columns[split][data.text_column])):
                stop(f"{name}: column {data.text_column!r} holds no words")
            names = names_of(columns[split][data.label_column], feature, f"{name}: column {data.label_column!r}")
    return {split: as_rows(part, data, names) for split, part in columns.items()}, names


def text_columns(data: DataArguments) -> list[str]:
    return [column for column in (data.text_column, data.text_pair_column) if column is not None]


def as_rows(columns: dict[str, list], data: DataArguments, names: Sequence[str]) -> Dataset:
    texts = dict(zip(("text", "text_pair"), (columns[column] for column in text_columns(data)), strict=False))
    return Dataset.from_dict({**texts, "label": [names.index(name) for name in columns[data.label_column]]})


def cut_into_folds(
    rows: Dataset, names: Sequence[str], data: DataArguments, seed: int
) -> Iterator[dict[str, Dataset]]:
    """The splits of each fold: one part is the test, and of the others a share is the validation."""
    with one_line_error(f"--folds {data.folds}", ValueError):
        folds = StratifiedKFold(data.folds, shuffle=True, random_state=seed)
        for train, test in folds.split(np.arange(len(rows)), rows["label"]):
            parts = {"train": rows.select(train), "test": rows.select(test)}
            yield with_validation(parts, data.validation_share, seed, names)


def encode(split: str, rows: Dataset, data: DataArguments, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """The tokens and the label of each row; without words it is a pad. Texts are cut only if that was asked for."""
    texts = [rows[column][:] for column in ("text", "text_pair") if column in rows.column_names]
    tokens = tokenizer(*texts)["input_ids"]
    if data.max_length is not None:
        n_long = sum(len(ids) > data.max_length for ids in tokens)
        print(f"{split}: {n_long:,} of {len(tokens):,} texts cut to {data.max_length} tokens")
        tokens = tokenizer(*texts, truncation=True, max_length=data.max_length)["input_ids"]
    if not all(tokens):
        print(f"{split}: {sum(not ids for ids in tokens):,} of {len(tokens):,} texts have no words")
    mask = [[1] * len(ids) or [0] for ids in tokens]
    tokens = [ids or [tokenizer.pad_token_id] for ids in tokens]
    return Dataset.from_dict({"input_ids": tokens, "attention_mask": mask, "labels": rows["label"][:]})


# --- scores ----------------------------------------------------------------------------------------------------------


def write_sample(folder: Path, row: dict[str, Any]) -> str:
    """Load the saved model as anyone would, and classify a text."""
    classifier = pipeline(
        "text-classification",
        model=AutoModelForSequenceClassification.from_pretrained(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
    )
    texts = {name: row[name] for name in ("text", "text_pair") if name in row}
    answer = classifier(texts)
    return "\n".join([*texts.values(), f"-> {answer['label']} ({answer['score']:.2f})"])


# --- training --------------------------------------------------------------------------------------------------------


def transfer_options(
    model: QRNNForSequenceClassification, transfer: TransferArguments, training: TrainingArguments
) -> dict[str, Any]:
    """What `Trainer` is given to tune a pretrained body: the optimizer, and who freezes layers."""
    options: dict[str, Any] = {}
    if transfer.discriminative_factor > 1:
        with one_line_trainer_error():
            optimizer_class, settings = Trainer.get_optimizer_cls_and_kwargs(training, model)
            rates = {"learning_rate": settings.pop("lr"), "weight_decay": training.weight_decay}
            groups = discriminative_parameter_groups(model, factor=transfer.discriminative_factor, **rates)
            options["optimizers"] = (optimizer_class(groups, **settings), None)
    if transfer.gradual_unfreezing:
        options["callbacks"] = [GradualUnfreezing(transfer.gradual_unfreezing)]
        last = transfer.gradual_unfreezing * (len(parameter_levels(model)) - 1)
        print(f"the lowest layer joins after {last:g} epochs; until {transfer.gradual_unfreezing:g} the head is alone")
    return options


def train(
    splits: dict[str, Dataset],
    names: Sequence[str],
    source: str,
    data: DataArguments,
    model_args: ModelArguments,
    transfer: TransferArguments,
    training: TrainingArguments,
    settings: dict[str, Any],
) -> dict[str, dict[str, Any]]:
    """Train one model, or go on with it, and score it; its folder holds all that comes of it."""
    folder = Path(training.output_dir)
    keep_settings(settings, folder)
    set_seed(training.seed)
    texts = {split: texts_of(rows) for split, rows in splits.items()}
    tokenizer = train_tokenizer(data, texts, model_args.init_from)
    encoded = {split: encode(split, rows, data, tokenizer) for split, rows in splits.items()}
    model = make_model(QRNNForSequenceClassification, model_args, tokenizer, **config_names(names))
    print(", ".join(f"{split}: {len(rows):,} texts" for split, rows in splits.items()))
    report_unknown({split: rows["input_ids"] for split, rows in encoded.items()}, tokenizer)
    print(f"{len(tokenizer):,} different tokens; {len(names)} labels; {model.num_parameters():,} parameters")

    collator, options = DataCollatorWithPadding(tokenizer), transfer_options(model, transfer, training)
    trainer = make_trainer(model, training, tokenizer, encoded, collator, measure, **options)
    train_to_the_end(trainer)
    held_out = held_out_splits(encoded)
    scored = {split: score_labels(trainer, split, encoded[split], names, "texts") for split in held_out}
    scores = {split: result for split, (result, _) in scored.items()}
    if trainer.is_world_process_zero():
        write_results(trainer, scores, "accuracy")
        if model_args.architecture == "qrnn":
            last = list(scores)[-1]
            run = describe_run(__file__, "text-classification", source, trainer, settings, scores)
            run["figures"], run["report"] = ["loss", *METRICS, "texts"], scored[last][1].rstrip()
            run["scoring"] = (
                "Macro F1 is the mean over the labels that occur, by scikit-learn; the loss is in nats per text."
            )
            example = next(row for split in (last, "train") for row in splits[split] if row["text"].strip())
            run["pairs"] = data.text_pair_column is not None
            run["init_from"], run["sample"] = model_args.init_from, write_sample(folder, example)
            publish(trainer, run, data.dataset, {"accuracy": "accuracy", "f1": "macro_f1"})
    return scores


def texts_of(rows: Dataset) -> Iterable[str]:
    return [text for column in ("text", "text_pair") if column in rows.column_names for text in rows[column]]


def cross_validate(
    rows: Dataset,
    names: Sequence[str],
    data: DataArguments,
    model_args: ModelArguments,
    transfer: TransferArguments,
    training: TrainingArguments,
    settings: dict[str, Any],
) -> None:
    """Train a model for each fold, in a folder of its own. Those that were trained before are only scored."""
    folder, scores = Path(training.output_dir), []
    if data.fold is None:
        check_holds_no_run(folder)
    for number, splits in enumerate(cut_into_folds(rows, names, data, training.seed), start=1):
        if data.fold not in (None, number):
            continue
        training = copy.copy(training)
        training.output_dir = str(folder / f"fold-{number}")
        source = f"{describe_source(data)}, fold {number} of {data.folds}"
        print(f"Fold {number} of {data.folds}")
        own_settings = {**settings, "fold": number}  # the same whether this one was asked for or all
        scores.append(train(splits, names, source, data, model_args, transfer, training, own_settings))
    if data.fold is None and training.process_index == 0:
        summary = average([fold["test"] for fold in scores])
        write_scores({"folds": scores, **summary}, folder)
        report_average(summary)


def main(argv: Sequence[str] | None = None) -> None:
    (data, model_args, transfer, training), settings = read_recipe(argv, ARGUMENTS, __doc__)
    check_arguments(data, model_args, transfer, training)
    splits, names = read_examples(data)
    if data.folds:
        cross_validate(splits["train"], names, data, model_args, transfer, training, settings)
        return
    splits = with_validation(splits, data.validation_share, training.seed, names)
    train(splits, names, describe_source(data), data, model_args, transfer, training, settings)


if __name__ == "__main__":
    main()
    end_process_group()
