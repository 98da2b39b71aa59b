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
"""Train a small QRNN language model from nothing, measure it, save it, and let it write.

    python scripts/quickstart.py                        # the documentation that comes with Python; no network
    python scripts/quickstart.py --train-file my.txt    # your own text
    python scripts/quickstart.py --dataset Salesforce/wikitext --dataset-config wikitext-2-raw-v1

About two minutes on two CPU cores. One block of text in ten is held out; the score is how many bits the model
needs for a byte of it, beside the same figure for a unigram and a trigram model of the same tokens.
"""

import argparse
import functools
import itertools
import math
import os
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path


# Where other programs share the cores, OpenMP threads that spin while they wait slow each step many times over. The
# variable is read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import datasets
import torch
import torch.nn.functional as F
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import StrictDataclassError
from nltk.lm import AbsoluteDiscountingInterpolated, Vocabulary
from nltk.util import everygrams
from transformers import (
    DataCollatorForLanguageModeling,
    EvalPrediction,
    PreTrainedTokenizerFast,
    TrainingArguments,
    set_seed,
)

from command_line import (
    OneLineParser,
    check_processes,
    check_seed,
    end_process_group,
    existing_file,
    one_line_error,
    one_line_trainer_error,
    positive_int,
    stop,
)
from curves import plot_loss, points
from language_modeling import bits, write_sample
from modeling_qrnn import QRNNConfig, QRNNForCausalLM
from recipes import ROOT, SettingsParser, hide_token, load_settings, read_model_config
from results import MODEL_CARD, describe_device, describe_versions, push
from text_data import UNREADABLE
from tokenization import BEGIN, END, PAD, byte_level_bpe
from training import ResumableTrainer, check_supported, check_weights


MODEL_CONFIG = ROOT / "configuration/models/quickstart.json"
TRAINING_CONFIG = ROOT / "configuration/training/quickstart.yaml"

BLOCK_CHARACTERS = 4_000  # a page or two: context enough to be worth modelling, and many blocks to sample from
HOLD_OUT_EVERY = 10
REPEATED_WORDS = 8  # so many words in a row seldom occur twice by chance


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_data_options(parser)
    add_training_options(parser)
    add_output_options(parser)
    args = parser.parse_args(argv)
    if args.dataset is None and (args.dataset_config is not None or args.text_column is not None):
        parser.error("--dataset-config and --text-column go with --dataset")
    return args


def add_data_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data (the documentation topics that come with Python, unless told otherwise)")
    source = group.add_mutually_exclusive_group()
    source.add_argument("--train-file", type=existing_file, metavar="PATH", help="a text file (UTF-8)")
    source.add_argument("--dataset", metavar="NAME", help="a dataset on the Hub or a folder: what load_dataset reads")
    group.add_argument("--dataset-config", metavar="NAME", help="the configuration of --dataset, if it has several")
    group.add_argument("--text-column", metavar="NAME", help="a column of --dataset (default: text)")
    group.add_argument(
        "--max-characters",
        type=positive_int,
        default=2_000_000,
        metavar="N",
        help="leave out the text beyond this (default: 2000000)",
    )


def add_training_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model and training")
    group.add_argument(
        "--model-config",
        type=existing_file,
        default=MODEL_CONFIG,
        metavar="PATH",
        help="QRNNConfig in JSON; its vocab_size is the size of the tokenizer that is trained "
        "(default: configuration/models/quickstart.json)",
    )
    group.add_argument(
        "--training-config",
        type=existing_file,
        default=TRAINING_CONFIG,
        metavar="PATH",
        help="TrainingArguments in YAML (default: configuration/training/quickstart.yaml)",
    )
    group.add_argument(
        "--block-length",
        type=positive_int,
        default=256,
        metavar="N",
        help="tokens of a training sequence (default: 256)",
    )
    group.add_argument("--max-steps", type=positive_int, metavar="N", help="overrides the training configuration")
    group.add_argument("--seed", type=int, metavar="N", help="overrides the training configuration")


def add_output_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "--output-dir",
        type=Path,
        default=Path("quickstart-output"),
        metavar="PATH",
        help="folder for the model, its card and the loss curve (default: quickstart-output)",
    )
    group.add_argument(
        "--prompt", metavar="TEXT", help="what the sample continues (default: the first words of the held-out text)"
    )


def read_training_arguments(args: argparse.Namespace) -> tuple[TrainingArguments, dict]:
    """The training configuration with the command line's changes, as an object and as it reads."""
    with one_line_error(args.training_config, OSError, ValueError, TypeError, yaml.YAMLError):
        settings = load_settings(args.training_config, {argument.name for argument in fields(TrainingArguments)})
        settings |= {name: getattr(args, name) for name in ("max_steps", "seed") if getattr(args, name) is not None}
        parser = SettingsParser(TrainingArguments, prog=args.training_config.name, allow_abbrev=False)
        options = parser.as_options(settings | {"output_dir": str(args.output_dir)})
        (training_args,) = parser.parse_args_into_dataclasses(options, look_for_args_file=False)
    hide_token(training_args)
    settings.pop("hub_token", None)
    return training_args, settings


def read_text(args: argparse.Namespace) -> tuple[str, str]:
    """The text, and the words in which the model card says where it is from."""
    if args.train_file:
        with one_line_error(args.train_file, OSError, UnicodeDecodeError):
            return args.train_file.read_text(encoding="utf-8-sig"), f"the file `{args.train_file.name}`"
    if args.dataset:
        return read_dataset(args), f"the training split of the dataset `{args.dataset}`"
    from pydoc_data.topics import topics

    version = platform.python_version()
    return "\n\n".join(topics.values()), f"the documentation topics of Python {version} (`pydoc_data.topics`)"


def read_dataset(args: argparse.Namespace) -> str:
    """As many rows as `--max-characters` needs; a large dataset is not downloaded whole."""
    rows, n_characters, column = [], 0, args.text_column or "text"
    with one_line_error(f"--dataset {args.dataset}", *UNREADABLE):
        dataset = datasets.load_dataset(args.dataset, args.dataset_config, split="train", streaming=True)
        for row in dataset:
            if not isinstance(row.get(column), str):
                raise ValueError(f"no text in column {column!r}; the columns are {', '.join(map(repr, row))}")
            rows.append(row[column].strip())
            n_characters += len(rows[-1])
            if n_characters >= args.max_characters:
                break
    return "\n\n".join(rows)


def drop_repeats(paragraphs: Iterable[str]) -> Iterator[str]:
    """Leave out each paragraph that has `REPEATED_WORDS` words in a row from an earlier one.

    What is held out would otherwise be met in training too: documentation repeats itself.
    """
    seen: set[tuple[str, ...]] = set()
    for paragraph in paragraphs:
        words = paragraph.split()
        runs = {tuple(words[i : i + REPEATED_WORDS]) for i in range(len(words) - REPEATED_WORDS + 1)}
        if seen.isdisjoint(runs):
            yield paragraph
        seen |= runs


def cut_into_blocks(text: str) -> Iterator[str]:
    """Pieces of at most `BLOCK_CHARACTERS` characters that end, if possible, with a paragraph, a line or a word."""
    start = 0
    while start < len(text):
        limit = start + BLOCK_CHARACTERS
        ends = (text.rfind(mark, start + BLOCK_CHARACTERS // 2, limit) + len(mark) for mark in ("\n\n", "\n", " "))
        end = next((end for end in ends if end > start + BLOCK_CHARACTERS // 2), limit)
        yield text[start:end]
        start = end


def split_text(text: str) -> tuple[list[str], list[str]]:
    """Training and held-out blocks: of ten blocks in a row the last is held out, whatever the seed."""
    blocks = list(cut_into_blocks("\n\n".join(drop_repeats(text.split("\n\n")))))
    if len(blocks) < HOLD_OUT_EVERY:
        stop(
            f"too little text: {sum(map(len, blocks)):,} characters without repetitions, "
            f"of which at least {HOLD_OUT_EVERY * BLOCK_CHARACTERS:,} are needed"
        )
    held_out = blocks[HOLD_OUT_EVERY - 1 :: HOLD_OUT_EVERY]
    del blocks[HOLD_OUT_EVERY - 1 :: HOLD_OUT_EVERY]
    return blocks, held_out


def prepare_text(args: argparse.Namespace) -> tuple[list[str], list[str], str]:
    """Training and held-out blocks, and the words in which the model card says where they are from."""
    text, source = read_text(args)
    if len(text) > args.max_characters:
        text, source = text[: args.max_characters], f"{source}, the first {args.max_characters:,} characters"
    return *split_text(text), source


@dataclass
class Part:
    """The blocks to train on, or those held out: their texts, and the tokens of each with its begin and end mark."""

    texts: list[str]
    documents: list[list[int]]

    @property
    def n_bytes(self) -> int:
        return count_bytes(self.texts)

    @property
    def n_tokens(self) -> int:
        return sum(map(len, self.documents))


def encode(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """Each block as the begin mark, its tokens and the end mark."""
    return [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts)["input_ids"]]


def pack(documents: list[list[int]], block_length: int) -> list[list[int]]:
    """All tokens end to end, in sequences of one length; the rest that does not fill one is left out."""
    tokens = list(itertools.chain.from_iterable(documents))
    return [tokens[i : i + block_length] for i in range(0, len(tokens) - block_length + 1, block_length)]


def count_bytes(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def ngram_nats(documents: list[list[str]], held_out: list[list[str]], vocabulary: Iterable[str], order: int) -> float:
    """What the held-out documents cost under an n-gram model with absolute discounting, each after its begin mark.

    Every token of the vocabulary counts once more than it occurs, so that none is impossible.
    """
    vocabulary = list(vocabulary)
    model = AbsoluteDiscountingInterpolated(order, vocabulary=Vocabulary(vocabulary))
    model.fit(everygrams(document, max_len=order) for document in documents)
    model.fit([(token,)] for token in vocabulary)
    return -sum(
        math.log(model.score(document[i], document[max(0, i - order + 1) : i]))
        for document in held_out
        for i in range(1, len(document))
    )


def measure_baselines(
    documents: list[list[int]], held_out: list[list[int]], tokenizer: PreTrainedTokenizerFast, n_bytes: int
) -> dict[str, float]:
    documents, held_out = ([tokenizer.convert_ids_to_tokens(ids) for ids in part] for part in (documents, held_out))
    return {
        name: bits(ngram_nats(documents, held_out, tokenizer.get_vocab(), order), n_bytes)
        for name, order in (("trigram", 3), ("unigram", 1))
    }


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss of each token in nats, `(batch, seq_len - 1)`, in place of the far larger logits."""
    return F.cross_entropy(logits[:, :-1].float().transpose(1, 2), labels[:, 1:], reduction="none")


def held_out_metrics(prediction: EvalPrediction, n_bytes: int) -> dict[str, float]:
    """Every token but the begin marks counts: those of the text, and the end marks."""
    is_token = prediction.label_ids[:, 1:] != -100
    return {"bits_per_byte": bits(float(prediction.predictions[is_token].sum(dtype="float64")), n_bytes)}


def make_model(config: QRNNConfig, tokenizer: PreTrainedTokenizerFast, file: Path) -> QRNNForCausalLM:
    """A new model for the vocabulary of the tokenizer; `file` is what the configuration was read from."""
    config.vocab_size = len(tokenizer)
    config.pad_token_id, config.bos_token_id, config.eos_token_id = tokenizer.convert_tokens_to_ids([PAD, BEGIN, END])
    with one_line_error(file, ValueError):
        return QRNNForCausalLM(config)


def make_trainer(
    model: QRNNForCausalLM,
    training_args: TrainingArguments,
    tokenizer: PreTrainedTokenizerFast,
    sequences: list[list[int]],
    held_out: Part,
) -> ResumableTrainer:
    with one_line_trainer_error():
        return ResumableTrainer(
            model=model,
            args=training_args,
            train_dataset=datasets.Dataset.from_dict({"input_ids": sequences}),
            eval_dataset=datasets.Dataset.from_dict({"input_ids": held_out.documents}),
            processing_class=tokenizer,
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
            preprocess_logits_for_metrics=token_losses,
            compute_metrics=functools.partial(held_out_metrics, n_bytes=held_out.n_bytes),
        )


def draw_curve(history: list[dict], train: Part, baselines: dict[str, float], path: Path) -> None:
    """All in bits per byte, also the training loss, which the trainer logs in nats per token."""
    bits_per_nat = bits(train.n_tokens, train.n_bytes)
    trained = [(step, loss * bits_per_nat) for step, loss in points(history, "loss")]
    plot_loss(trained, points(history, "eval_bits_per_byte"), "bits per byte", path, baselines)


def describe_run(
    args: argparse.Namespace, source: str, train: Part, held_out: Part, trainer: ResumableTrainer, settings: dict
) -> dict:
    """What the card says of the run, but for its results, its time and the sample."""
    return {
        "name": args.output_dir.resolve().name,
        "source": source,
        "train_blocks": len(train.texts),
        "train_bytes": train.n_bytes,
        "train_tokens": train.n_tokens,
        "held_out_blocks": len(held_out.texts),
        "held_out_bytes": held_out.n_bytes,
        "held_out_tokens": held_out.n_tokens - len(held_out.documents),  # the begin marks are given
        "vocab_size": len(trainer.processing_class),
        "parameters": trainer.model.num_parameters(),
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "block_length": args.block_length,
        "device": describe_device(trainer.args.device),
        "versions": describe_versions(),
        "model_settings": args.model_config.read_text(encoding="utf-8").strip(),
        "training_settings": yaml.safe_dump(settings, sort_keys=False).strip(),
    }


def write_card(run: dict, dataset: str | None, path: Path) -> None:
    card = ModelCard.from_template(ModelCardData(), template_path=str(MODEL_CARD), run=run)
    card.data.model_name = run["name"]
    card.data.datasets = [dataset] if dataset else None
    card.data.eval_results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset or "text",
            dataset_name=run["source"],
            metric_type="bits_per_byte",
            metric_name="held-out bits per byte",
            metric_value=round(run["results"]["QRNN"], 3),
        )
    ]
    card.save(path)


def report(run: dict, folder: Path, seconds: float) -> None:
    print(f"\nSample, loaded back from {folder}:\n\n{run['sample']}\n")
    print(f"{'held-out text':<16}bits per byte")
    for name, value in run["results"].items():
        print(f"{name:<16}{value:>13.3f}")
    print(f"\nModel, tokenizer and code: {folder}")
    print(f"Model card:                {folder / 'README.md'}")
    print(f"Loss curve:                {folder / 'loss_curve.png'}")
    print(f"Time:                      {seconds:.0f} s")


def main(argv: Sequence[str] | None = None) -> None:
    started = time.perf_counter()
    args = parse_arguments(argv)
    training_args, training_settings = read_training_arguments(args)
    check_processes(training_args.world_size)
    check_supported(training_args)
    check_seed(training_args.seed)
    with one_line_error(args.model_config, OSError, ValueError, TypeError, StrictDataclassError):
        config = QRNNConfig.from_dict(read_model_config(args.model_config, QRNNConfig))
    set_seed(training_args.seed)

    train_texts, held_out_texts, source = prepare_text(args)
    with one_line_error("--output-dir", OSError):
        args.output_dir.mkdir(parents=True, exist_ok=True)
    print(f"Text: {source}")
    n_train, n_held_out = count_bytes(train_texts), count_bytes(held_out_texts)
    print(f"      {n_train:,} bytes to train on, {n_held_out:,} bytes held out (one block in ten)")

    tokenizer = byte_level_bpe(train_texts, config.vocab_size)
    train, held_out = (Part(texts, encode(texts, tokenizer)) for texts in (train_texts, held_out_texts))
    sequences = pack(train.documents, args.block_length)
    if not sequences:
        stop(f"--block-length {args.block_length} is more than all {train.n_tokens:,} tokens")
    print(f"Tokenizer: {len(tokenizer):,} tokens, {train.n_bytes / train.n_tokens:.2f} bytes per token")

    baselines = measure_baselines(train.documents, held_out.documents, tokenizer, held_out.n_bytes)
    print("Baselines:", ", ".join(f"{name} {value:.3f} bits per byte" for name, value in baselines.items()))

    model = make_model(config, tokenizer, args.model_config)
    print(f"Model: {config.num_hidden_layers} layers of {config.hidden_size}, {model.num_parameters():,} parameters")

    trainer = make_trainer(model, training_args, tokenizer, sequences, held_out)
    trained = trainer.train().metrics
    check_weights(trainer)
    results = {"QRNN": trainer.evaluate()["eval_bits_per_byte"], **baselines}
    trainer.save_model()
    if not trainer.is_world_process_zero():
        return

    prompt = args.prompt or " ".join(held_out.texts[0].split()[:8])
    sample = write_sample(args.output_dir, prompt, training_args.seed)
    draw_curve(trainer.state.log_history, train, baselines, args.output_dir / "loss_curve.png")
    run = describe_run(args, source, train, held_out, trainer, training_settings)
    run |= {"results": results, "seconds": trained["train_runtime"], "sample": sample}
    write_card(run, args.dataset, args.output_dir / "README.md")
    push(trainer)
    report(run, args.output_dir, time.perf_counter() - started)


if __name__ == "__main__":
    main()
    end_process_group()
