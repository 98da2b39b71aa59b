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
"""Train a language model from a recipe: a YAML file that names data, tokenizer, model and training arguments.

    python scripts/train_language_model.py configuration/training/tiny-shakespeare.yaml --train-file input.txt
    python scripts/train_language_model.py RECIPE --learning-rate 0.001   # an option overrides what the recipe sets
    accelerate launch scripts/train_language_model.py RECIPE              # on several devices

Interrupted at any moment and started again with the same command, it goes on from its last complete checkpoint, to
the same end. The model, its card, the scores and the loss curve are in --output-dir.
"""

import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


# Where other programs share the cores, OpenMP threads that spin while they wait slow each step many times over. The
# variable is read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import datasets
import torch
from transformers import DataCollatorForTokenClassification, PreTrainedTokenizerBase, set_seed

from command_line import end_process_group, one_line_trainer_error, stop
from curves import plot_loss, points
from language_modeling import bits, write_sample
from modeling_qrnn import QRNNForCausalLM
from modeling_qrnn.trainer_qrnn import QRNNTrainer, QRNNTrainingArguments
from models import make_model
from recipes import ModelArguments, keep_settings, read_recipe
from results import describe_run, publish, report, write_scores
from text_data import (
    TextArguments,
    check_text_arguments,
    describe_source,
    held_out_splits,
    read_column,
    read_splits,
)
from tokenization import kind_for, kind_of, report_unknown, train_tokenizer
from training import HAS_VALIDATION, NO_VALIDATION, ResumableTrainer, check_training, train_to_the_end


@dataclass
class DataArguments(TextArguments):
    layout: Literal["streams", "packed", "documents"] = field(
        default="streams",
        metadata={
            "help": "How the text is read: in streams with the state carried on, in shuffled windows that each start "
            "from zero, or document by document."
        },
    )
    validation_share: float = field(
        default=0.0, metadata={"help": "Hold out this last part of the training text for validation."}
    )
    zero_state_window: int | None = field(
        default=None, metadata={"help": "Score windows of so many tokens, each from a zero state, beside the text."}
    )


ARGUMENTS = (DataArguments, ModelArguments, QRNNTrainingArguments)


# --- text ------------------------------------------------------------------------------------------------------------


def read_documents(data: DataArguments, kind: str) -> dict[str, list[str]]:
    """The documents of each split, for a kind of tokenizer. A text file is one, or for words one for each line."""
    splits = read_splits(data, sample_by="line" if kind == "word" else "document")
    documents = {split: read_column(name, rows, data.text_column) for split, (name, rows) in splits.items()}
    if data.validation_share:
        if "validation" in documents:
            stop(HAS_VALIDATION)
        documents["train"], documents["validation"] = split_documents(documents["train"], data.validation_share)
    for split in ("train", "validation"):
        if split not in documents:
            stop(NO_VALIDATION)
        if not any(documents[split]):
            stop(f"the {split} split is empty")
    if kind == "character":  # to a model of characters a line break says that a document ends
        return {split: [part + "\n" for part in parts[:-1]] + parts[-1:] for split, parts in documents.items()}
    return documents


def split_documents(documents: list[str], share: float) -> tuple[list[str], list[str]]:
    """The last part of the documents, or of their one text."""
    whole = documents[0] if len(documents) == 1 else documents
    first = int(len(whole) * (1 - share))
    parts = whole[:first], whole[first:]
    return parts if len(documents) > 1 else ([parts[0]], [parts[1]])


def encode(documents: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The tokens of each document and its end mark, which characters do not need."""
    end = [] if kind_of(tokenizer) == "character" or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    encoded = tokenizer(documents)["input_ids"]  # some tokenizers set an end mark of their own
    return [ids if end and ids[-1:] == end else ids + end for ids in encoded]


def check_window(data: DataArguments) -> None:
    if data.zero_state_window is None:
        return
    if data.zero_state_window < 2:
        stop(f"--zero-state-window must be at least 2, for the first token is given, got {data.zero_state_window}")
    if data.layout == "documents":
        stop("--zero-state-window: with --layout documents each is scored from a zero state as it is")


def check_length(split: str, documents: list[list[int]], data: DataArguments) -> None:
    """The first token of a text is given, so one token alone leaves nothing to predict."""
    longest = max(map(len, documents), default=0) if data.layout == "documents" else sum(map(len, documents))
    if longest < 2:
        stop(f"the {split} split has no two tokens in a row: there is nothing to predict in it")


def join(documents: list[list[int]]) -> torch.Tensor:
    """All tokens in a row, `(n_tokens,)`."""
    return torch.tensor(list(itertools.chain.from_iterable(documents)), dtype=torch.int64)


def as_rows(documents: Iterable[list[int]]) -> datasets.Dataset:
    """What is read each from a zero state; a document of one token predicts nothing."""
    rows = [ids for ids in documents if len(ids) > 1]
    return datasets.Dataset.from_dict({"input_ids": rows, "labels": rows})


def cut(tokens: torch.Tensor, length: int) -> datasets.Dataset:
    """Windows of one length, and the rest."""
    return as_rows(window.tolist() for window in tokens.split(length))


# --- training --------------------------------------------------------------------------------------------------------


class LanguageModelTrainer(ResumableTrainer, QRNNTrainer):
    """`QRNNTrainer` whose mistakes end the program with one line."""


def make_trainer(
    data: DataArguments,
    training: QRNNTrainingArguments,
    model: QRNNForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    documents: dict[str, list[list[int]]],
) -> tuple[QRNNTrainer, dict[str, Any]]:
    """The trainer, and what it is to score: texts with the state carried on, or documents one by one."""
    if data.layout == "documents":
        scored = {split: as_rows(part) for split, part in documents.items()}
        train_dataset = scored["train"]
    else:
        scored = {split: join(part) for split, part in documents.items()}
        train_dataset = scored["train"] if data.layout == "streams" else cut(scored["train"], training.bptt)
    trainer = LanguageModelTrainer(
        model,
        training,
        train_dataset=train_dataset,
        eval_dataset=scored["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorForTokenClassification(tokenizer),
    )
    return trainer, scored


# --- results ---------------------------------------------------------------------------------------------------------


def score(
    trainer: QRNNTrainer,
    split: str,
    scored: Any,
    texts: list[str],
    documents: list[list[int]],
    data: DataArguments,
) -> dict[str, float | int]:
    """What a split costs: per token, and per character and byte where the tokens spell the text."""
    metrics = trainer.evaluate(scored, metric_key_prefix=split)
    result = {name: metrics[f"{split}_{name}"] for name in ("loss", "perplexity", "tokens")}
    if kind_of(trainer.processing_class) != "word":
        nats, text = result["loss"] * result["tokens"], spelled(texts, documents, data, trainer.processing_class)
        result["bits_per_character"], result["bits_per_byte"] = bits(nats, len(text)), bits(nats, len(text.encode()))
    if data.zero_state_window is not None:
        metrics = trainer.evaluate(cut(scored, data.zero_state_window), metric_key_prefix=f"{split}_windows")
        result["loss_of_windows"] = metrics[f"{split}_windows_loss"]
    return result


def spelled(
    texts: list[str], documents: list[list[int]], data: DataArguments, tokenizer: PreTrainedTokenizerBase
) -> str:
    """The text that the scored tokens spell: all of it but what the first token of each sequence does."""
    shortest = 2 if data.layout == "documents" else 1  # a document of one token predicts nothing
    read = [(text, ids) for text, ids in zip(texts, documents, strict=True) if len(ids) >= shortest]
    n_sequences = len(read) if data.layout == "documents" else 1
    given = tokenizer.batch_decode([ids[:1] for _, ids in read[:n_sequences]], skip_special_tokens=True)
    return "".join(text[len(first) :] for (text, _), first in itertools.zip_longest(read, given, fillvalue=""))


def publish_model(
    trainer: QRNNTrainer,
    data: DataArguments,
    model_args: ModelArguments,
    settings: dict[str, Any],
    texts: dict[str, list[str]],
    scores: dict[str, dict[str, float | int]],
) -> None:
    """The card with a sample, and all of it on the Hub if that is wanted."""
    prompt = " ".join(texts["validation"]).strip()[:60]
    prompt = prompt.rsplit(maxsplit=1)[0] if prompt else next(filter(str.strip, texts["train"])).split()[0]
    run = describe_run(__file__, "text-generation", describe_source(data), trainer, settings, scores)
    run["layout"], run["init_from"] = data.layout, model_args.init_from
    run["sample"] = write_sample(Path(trainer.args.output_dir), prompt, trainer.args.seed, max_new_tokens=200)
    publish(trainer, run, data.dataset, {"perplexity": "perplexity"})


def main(argv: Sequence[str] | None = None) -> None:
    (data, model_args, training), settings = read_recipe(argv, ARGUMENTS, __doc__)
    check_text_arguments(data)
    check_training(training, {"perplexity"}, smaller_is_better=True)
    check_window(data)
    folder = Path(training.output_dir)
    keep_settings(settings, folder)
    set_seed(training.seed)

    texts = read_documents(data, kind_for(data, model_args.init_from))
    tokenizer = train_tokenizer(data, texts, model_args.init_from)
    documents = {split: encode(part, tokenizer) if part else [] for split, part in texts.items()}
    for split, part in documents.items():
        check_length(split, part, data)
    model = make_model(QRNNForCausalLM, model_args, tokenizer)
    print(", ".join(f"{split}: {sum(map(len, part)):,} tokens" for split, part in documents.items()))
    report_unknown(documents, tokenizer)
    print(f"{len(tokenizer):,} different tokens; {model.num_parameters():,} parameters")

    with one_line_trainer_error():
        trainer, scored = make_trainer(data, training, model, tokenizer, documents)
    train_to_the_end(trainer)
    scores = {
        split: score(trainer, split, scored[split], texts[split], documents[split], data)
        for split in held_out_splits(scored)
    }
    if trainer.is_world_process_zero():
        write_scores(scores, folder)
        trained, measured = (points(trainer.state.log_history, name) for name in ("loss", "eval_loss"))
        plot_loss(trained, measured, "nats per token", folder / "loss_curve.png")
        report(scores)
        if model_args.architecture == "qrnn":
            publish_model(trainer, data, model_args, settings, texts, scores)


if __name__ == "__main__":
    main()
    end_process_group()
