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
"""Train a tagger of words (parts of speech, named entities) from a recipe: a YAML file of data, model and training.

    python scripts/train_token_classifier.py configuration/training/ud-ewt.yaml --train-file train.parquet ...
    python scripts/train_token_classifier.py RECIPE --learning-rate 0.001  # an option overrides the recipe

A row holds a list of words and a list of tags: named numbers, bare numbers or names. Tags in IOB2 (O, B-person,
I-person, ...) are scored by whole entities, others word by word. Interrupted at any moment and started again with the
same command, it goes on from its last complete checkpoint, to the same end. The model, its card, the scores and the
curves are in --output-dir.
"""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


# Where other programs share the cores, OpenMP threads that spin while they wait slow each step many times over. The
# variable is read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import seqeval.metrics
import sklearn.metrics
from datasets import Dataset
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForTokenClassification,
    EvalPrediction,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    pipeline,
    set_seed,
)

from classification import METRICS, NOT_SCORED, make_trainer, measure_labels, predict
from command_line import end_process_group, stop
from labels import config_names, names_of, read_label
from modeling_qrnn import QRNNForTokenClassification
from models import make_model
from recipes import ModelArguments, keep_settings, read_recipe
from results import describe_run, publish
from text_data import (
    TextArguments,
    check_text_arguments,
    describe_source,
    feature_of,
    held_out_splits,
    read_columns,
    read_splits,
    read_text_with_words,
)
from tokenization import report_unknown, train_tokenizer
from training import check_training, train_to_the_end, with_validation, write_results


ENTITY_METRICS = ("precision", "recall", "f1", "accuracy")
SCORING = {
    "f1": "Precision, recall and F1 are of whole entities, as seqeval counts them by default (as conlleval does); "
    "accuracy is of words.",
    "accuracy": "Every word counts; macro F1 is the mean of the tags' F1, by scikit-learn.",
}


@dataclass
class DataArguments(TextArguments):
    text_column: str = field(default="tokens", metadata={"help": "The column with the words of a text, a list."})
    tag_column: str = field(default="tags", metadata={"help": "The column with their tags, a list as long."})
    max_length: int | None = field(
        default=None, metadata={"help": "Cut training texts to so many tokens; without this they are read whole."}
    )


ARGUMENTS = (DataArguments, ModelArguments, TrainingArguments)


# --- data ------------------------------------------------------------------------------------------------------------


def read_sentences(data: DataArguments) -> tuple[dict[str, Dataset], list[str]]:
    """The rows of each split, `words` and `tags` as numbers and `origin`; and the names of the tags."""
    splits, names = {}, None
    for split, (name, rows) in read_splits(data).items():
        feature = getattr(feature_of(rows, data.tag_column), "feature", None)
        read_tag = functools.partial(read_label, feature=feature, known=names)
        readers = {data.text_column: list_of(read_text_with_words), data.tag_column: list_of(read_tag)}
        columns = read_columns(name, rows, readers)
        sentences, tags = columns[data.text_column], columns[data.tag_column]
        for number, (words, row_tags) in enumerate(zip(sentences, tags, strict=True), start=1):
            if len(words) != len(row_tags):
                stop(f"{name}: row {number}: there are {len(words)} words, but {len(row_tags)} tags")
        if split == "train":
            names = names_of(
                (tag for row in tags for tag in row), feature, f"{name}: column {data.tag_column!r}", "tag"
            )
        origins = [f"{name}: row {number}" for number in range(1, len(tags) + 1)]
        numbers = [[names.index(tag) for tag in row] for row in tags]
        splits[split] = Dataset.from_dict({"words": sentences, "tags": numbers, "origin": origins})
    return splits, names


def list_of(read: Callable[[Any], Any]) -> Callable[[Any], list]:
    """A reader of cells that hold a list of what `read` reads."""

    def read_list(cell: Any) -> list:
        if not isinstance(cell, list) or not cell:
            raise ValueError(f"{cell!r}, which is no list, or an empty one")
        return [read(part) for part in cell]

    return read_list


def is_iob2(names: Sequence[str]) -> bool:
    """Whether tags mark entities: outside, at the beginning, inside."""
    kinds = {name[:2] for name in names}
    return "O" in names and "B-" in kinds and kinds <= {"O", "B-", "I-"}


def encode(split: str, rows: Dataset, data: DataArguments, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """The tokens of each row, and the tag of each word at the first of its tokens.

    Only training texts are ever cut: of the others every tag counts.
    """
    words = rows["words"][:]
    encoded = tokenizer(words, is_split_into_words=True)
    labels = [align(encoded.word_ids(index), row) for index, row in enumerate(rows)]
    tokens, limit = encoded["input_ids"], data.max_length
    if split == "train" and limit is not None:
        print(f"train: {sum(len(ids) > limit for ids in tokens):,} of {len(tokens):,} texts cut to {limit} tokens")
        tokens, labels = [ids[:limit] for ids in tokens], [row[:limit] for row in labels]
    return Dataset.from_dict({"input_ids": tokens, "labels": labels})


def align(word_ids: Sequence[int | None], row: dict[str, Any]) -> list[int]:
    """The tag of each word at its first token, and at all other tokens what is not scored."""
    labels, missing = [NOT_SCORED] * len(word_ids), set(range(len(row["words"])))
    for position, word in enumerate(word_ids):
        if word in missing:
            labels[position] = row["tags"][word]
            missing.remove(word)
    if missing:
        stop(f"{row['origin']}: the tokenizer has no token for the word {row['words'][min(missing)]!r}")
    return labels


# --- scores ----------------------------------------------------------------------------------------------------------


def tags_of(labels: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> tuple[list, list]:
    """The tags of each row, those that are scored, and the predicted ones."""
    is_scored = labels != NOT_SCORED
    given, said = (
        [[names[number] for number in row[kept]] for row, kept in zip(numbers, is_scored, strict=True)]
        for numbers in (labels, predicted)
    )
    return given, said


def measure(prediction: EvalPrediction, names: Sequence[str]) -> dict[str, float]:
    tags, predicted = tags_of(prediction.label_ids, prediction.predictions, names)
    plain = measure_labels(flatten(tags), flatten(predicted))
    if not is_iob2(names):
        return plain
    entity = {name: getattr(seqeval.metrics, f"{name}_score") for name in ("precision", "recall", "f1")}
    scores = {name: float(score(tags, predicted, zero_division=0)) for name, score in entity.items()}
    return {"accuracy": plain["accuracy"], **scores}


def flatten(rows: Sequence[Sequence[str]]) -> list[str]:
    return [tag for row in rows for tag in row]


def score(trainer: Trainer, split: str, rows: Dataset, names: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The figures of a split, and a table of its tags or entities."""
    labels, predicted, metrics = predict(trainer, split, rows)
    tags, predicted = tags_of(labels, predicted, names)
    result = {name: metrics[name] for name in metrics_for(names)}
    result["words"] = sum(map(len, tags))
    if is_iob2(names):
        return result, seqeval.metrics.classification_report(tags, predicted, digits=4, zero_division=0)
    flat = flatten(tags), flatten(predicted)
    return result, sklearn.metrics.classification_report(*flat, digits=4, zero_division=0)


def metrics_for(names: Sequence[str]) -> tuple[str, ...]:
    return ENTITY_METRICS if is_iob2(names) else METRICS


def write_sample(folder: Path, words: list[str]) -> str:
    """Load the saved model as anyone would, and tag a text."""
    tagger = pipeline(
        "token-classification",
        model=AutoModelForTokenClassification.from_pretrained(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        ignore_labels=[],
    )
    (tokens,) = tagger([words], is_split_into_words=True)
    tags = [next(token["entity"] for token in tokens if token["start"] in place) for place in places(words)]
    return " ".join(map("/".join, zip(words, tags, strict=True)))


def places(words: Sequence[str]) -> Iterator[range]:
    """Where the letters of each word stand, if a space is between the words; its first tokens may come after some."""
    start = 0
    for word in words:
        yield range(start, start + len(word))
        start += len(word) + 1


# --- training --------------------------------------------------------------------------------------------------------


def train(
    splits: dict[str, Dataset],
    names: Sequence[str],
    data: DataArguments,
    model_args: ModelArguments,
    training: TrainingArguments,
    settings: dict[str, Any],
) -> None:
    """Train the model, or go on with it, and score it; its folder holds all that comes of it."""
    folder = Path(training.output_dir)
    keep_settings(settings, folder)
    set_seed(training.seed)
    texts = {split: [" ".join(words) for words in rows["words"]] for split, rows in splits.items()}
    tokenizer = train_tokenizer(data, texts, model_args.init_from, of_words=True)
    if not tokenizer.is_fast:
        stop(f"--tokenizer {data.tokenizer}: it must be a fast tokenizer, which knows what word a token is of")
    encoded = {split: encode(split, rows, data, tokenizer) for split, rows in splits.items()}
    model = make_model(QRNNForTokenClassification, model_args, tokenizer, **config_names(names))
    print(", ".join(f"{split}: {len(rows):,} texts" for split, rows in splits.items()))
    report_unknown({split: rows["input_ids"] for split, rows in encoded.items()}, tokenizer)
    print(f"{len(tokenizer):,} different tokens; {len(names)} tags; {model.num_parameters():,} parameters")

    collator, by_names = DataCollatorForTokenClassification(tokenizer), functools.partial(measure, names=names)
    trainer = make_trainer(model, training, tokenizer, encoded, collator, by_names)
    train_to_the_end(trainer)
    scored = {split: score(trainer, split, encoded[split], names) for split in held_out_splits(encoded)}
    scores, metric = {split: result for split, (result, _) in scored.items()}, "f1" if is_iob2(names) else "accuracy"
    if trainer.is_world_process_zero():
        write_results(trainer, scores, metric)
        if model_args.architecture == "qrnn":
            last = list(scores)[-1]
            run = describe_run(__file__, "token-classification", describe_source(data), trainer, settings, scores)
            run["figures"], run["report"] = [*metrics_for(names), "words"], scored[last][1].rstrip()
            run["scoring"] = SCORING[metric]
            run["init_from"], run["sample"] = model_args.init_from, write_sample(folder, splits[last][0]["words"])
            publish(trainer, run, data.dataset, {metric: metric})


def main(argv: Sequence[str] | None = None) -> None:
    (data, model_args, training), settings = read_recipe(argv, ARGUMENTS, __doc__)
    check_text_arguments(data)
    if data.max_length is not None and data.max_length < 1:
        stop(f"--max-length must be at least 1, got {data.max_length}")
    splits, names = read_sentences(data)
    check_training(training, {*metrics_for(names)})
    splits = with_validation(splits, data.validation_share, training.seed)
    train(splits, names, data, model_args, training, settings)


if __name__ == "__main__":
    main()
    end_process_group()
