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

import argparse
import bisect
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal


# Where other programs share the cores, threads that wait by spinning (read when torch is imported) slow a step many
# times over.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import datasets
import torch
import torch.nn.functional as F
import transformers
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    AutoTokenizer,
    DataCollatorForTokenClassification,
    HfArgumentParser,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)

from command_line import OneLineParser, existing_file, one_line_error, stop
from language_modeling import bits, byte_level_bpe, characters, describe_device, plot_loss, words, write_sample
from modeling_qrnn import QRNNConfig, QRNNForCausalLM
from modeling_qrnn.trainer_qrnn import QRNNTrainer, QRNNTrainingArguments


ROOT = Path(__file__).resolve().parent.parent
MODEL_CARD = ROOT / "model_card.md"
SPLITS = ("train", "validation", "test")
TOKENIZERS = {"word": words, "character": characters, "bpe": byte_level_bpe}
FORMATS = {".txt": "text", ".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
# Of the many fields of TrainingArguments, those that --help lists
COMMON_ARGUMENTS = {
    *("output_dir", "num_train_epochs", "max_steps", "per_device_train_batch_size", "learning_rate", "weight_decay"),
    *("optim", "seed", "bf16", "eval_steps", "save_steps", "report_to", "push_to_hub", "hub_model_id"),
}


@dataclass
class DataArguments:
    _argument_group_name = "data"

    dataset: str | None = field(
        default=None, metadata={"help": "A dataset on the Hub, or a folder: its splits train, validation and test."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "The configuration of --dataset."})
    train_file: str | None = field(
        default=None, metadata={"help": "A file: .txt (UTF-8), .csv, .json, .jsonl or .parquet, also with .gz."}
    )
    validation_file: str | None = field(default=None, metadata={"help": "The same, for validation."})
    test_file: str | None = field(default=None, metadata={"help": "The same, for the test."})
    text_column: str = field(default="text", metadata={"help": "The column with the text."})
    validation_share: float = field(
        default=0.0, metadata={"help": "Hold out this last part of the training text for validation."}
    )
    tokenizer: str = field(
        default="word",
        metadata={"help": "`word`, `character` or `bpe`, trained here; or the name of one on the Hub, or its folder."},
    )
    vocab_size: int = field(default=1_000_000, metadata={"help": "Most tokens of a tokenizer that is trained here."})
    vocabulary_from: Literal["train", "all"] = field(
        default="train", metadata={"help": "Splits to train the tokenizer on."}
    )
    layout: Literal["streams", "packed", "documents"] = field(
        default="streams",
        metadata={
            "help": "How the text is read: in streams with the state carried on, in shuffled windows that each start "
            "from zero, or document by document."
        },
    )
    zero_state_window: int | None = field(
        default=None, metadata={"help": "Score windows of so many tokens, each from a zero state, beside the text."}
    )


@dataclass
class ModelArguments:
    _argument_group_name = "model"

    model_config: str = field(
        default="qrnn-small", metadata={"help": "A file of configuration/models, without .json; or a path."}
    )
    model_overrides: str = field(
        default="{}", metadata={"help": "Changes to it, as YAML: `{hidden_size: 512, zoneout: 0.1}`."}
    )
    architecture: Literal["qrnn", "lstm"] = field(
        default="qrnn",
        metadata={"help": "`lstm` puts an LSTM in each layer's place, of such a width that the sizes are equal."},
    )


class RecipeParser(OneLineParser, HfArgumentParser):
    """HfArgumentParser with one-line errors, whose --help leaves the rarer TrainingArguments to their own page."""

    def __init__(self):
        super().__init__(
            (DataArguments, ModelArguments, QRNNTrainingArguments),
            usage="%(prog)s RECIPE [--option value ...]",
            description=__doc__,
            epilog="All other fields of transformers.TrainingArguments are options, too.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("recipe", type=existing_file, metavar="RECIPE", help="a file of configuration/training")
        rare = {argument.name for argument in fields(TrainingArguments)} - COMMON_ARGUMENTS
        for action in self._actions:
            if action.dest in rare:
                action.help = argparse.SUPPRESS


def read_arguments(
    argv: Sequence[str] | None,
) -> tuple[DataArguments, ModelArguments, QRNNTrainingArguments, dict[str, Any]]:
    """The recipe with the command line's changes: as objects, and what differs from the defaults as it reads."""
    parser = RecipeParser()
    recipe = parser.parse_args(argv).recipe
    defaults = vars(parser.parse_args([str(recipe)]))
    with one_line_error(recipe, OSError, ValueError, TypeError, yaml.YAMLError):
        settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise ValueError("this is not a list of `name: value`")
        unknown = sorted(set(settings) - (set(defaults) - {"recipe"}))
        if unknown:
            raise ValueError(f"unknown keys: {', '.join(map(str, unknown))}")
    parser.set_defaults(**settings)
    chosen = vars(parser.parse_args(argv))
    with one_line_error(recipe, ValueError, TypeError):
        data, model, training, _ = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    check_data_arguments(data)
    return data, model, training, {name: value for name, value in chosen.items() if value != defaults[name]}


def check_data_arguments(data: DataArguments) -> None:
    if (data.dataset is None) == (data.train_file is None):
        stop("give either --train-file or --dataset")
    if not 0 <= data.validation_share < 1:
        stop(f"--validation-share must be in [0, 1), got {data.validation_share}")
    for split in SPLITS:
        path = getattr(data, f"{split}_file")
        if path is not None and not Path(path).is_file():
            stop(f"there is no file {path!r}")


# Text


def read_documents(data: DataArguments) -> dict[str, list[str]]:
    """The documents of each split. A text file is one, or for words one for each line."""
    if data.dataset is not None:
        with one_line_error(f"--dataset {data.dataset}", OSError, ValueError, RuntimeError):
            splits = datasets.load_dataset(data.dataset, data.dataset_config, streaming=True)
        sources = {split: (f"{data.dataset}, {split}", splits[split]) for split in SPLITS if split in splits}
    else:
        files = {split: getattr(data, f"{split}_file") for split in SPLITS}
        sources = {split: (path, open_file(path, data)) for split, path in files.items() if path is not None}
    documents = {split: list(texts_of(rows, name, data.text_column)) for split, (name, rows) in sources.items()}
    if data.validation_share:
        documents["train"], documents["validation"] = split_documents(documents["train"], data.validation_share)
    for split in ("train", "validation"):
        if not any(documents.get(split, [])):
            stop(f"the {split} split is empty")
    return documents


def open_file(path: str, data: DataArguments) -> Iterable[dict]:
    suffix = Path(path.removesuffix(".gz")).suffix
    if suffix not in FORMATS:
        stop(f"{path}: the name must end in {', '.join(FORMATS)} or one of these and .gz")
    whole = {"sample_by": "line" if data.tokenizer == "word" else "document"} if suffix == ".txt" else {}
    with one_line_error(path, OSError, ValueError, RuntimeError):
        return datasets.load_dataset(FORMATS[suffix], data_files=path, split="train", streaming=True, **whole)


def texts_of(rows: Iterable[dict], name: str, column: str) -> Iterator[str]:
    with one_line_error(name, OSError, ValueError, RuntimeError):
        for number, row in enumerate(rows, start=1):
            if column not in row:
                raise ValueError(f"there is no column {column!r}; the columns are {', '.join(row)}")
            if not isinstance(row[column], str):
                raise ValueError(f"row {number}: column {column!r} holds {row[column]!r}, which is no text")
            yield row[column]


def split_documents(documents: list[str], share: float) -> tuple[list[str], list[str]]:
    """The last part of the documents, or of their one text."""
    whole = documents[0] if len(documents) == 1 else documents
    first = int(len(whole) * (1 - share))
    parts = whole[:first], whole[first:]
    return parts if len(documents) > 1 else ([parts[0]], [parts[1]])


def make_tokenizer(data: DataArguments, documents: dict[str, list[str]]) -> PreTrainedTokenizerBase:
    if data.tokenizer in TOKENIZERS:
        splits = documents if data.vocabulary_from == "all" else ("train",)
        texts = itertools.chain.from_iterable(documents[split] for split in splits)
        return TOKENIZERS[data.tokenizer](texts, data.vocab_size)
    with one_line_error(f"--tokenizer {data.tokenizer}", OSError, ValueError):
        return AutoTokenizer.from_pretrained(data.tokenizer)


def encode(documents: list[str], data: DataArguments, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The tokens of each document and its end mark; to a model of characters a line break says the same."""
    if data.tokenizer == "character":
        documents = [document + "\n" for document in documents[:-1]] + documents[-1:]
    end = [] if data.tokenizer == "character" or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return [ids + end for ids in tokenizer(documents)["input_ids"]]


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


# Model


class LSTMConfig(QRNNConfig):
    """A QRNN's configuration, for the cache of an LSTM: its last output is kept where a QRNN keeps its last input."""

    model_type = "qrnn_with_lstm"
    _auto_class = None

    @property
    def state_widths(self) -> list[tuple[int, int, int]]:
        return [(width, 1, width) for _, width in self.layer_sizes]


class LSTMLayer(nn.Module):
    """An LSTM called like a `QRNNLayer`, with dropped recurrent weights (Merity et al. 2018)."""

    kernel_size = 2  # its state has a column for the last output, as that of a convolution has for the last input

    def __init__(self, input_size: int, hidden_size: int, weight_dropout: float):
        super().__init__()
        self.lstm = nn.LSTM(input_size, hidden_size)
        self.weight_dropout = weight_dropout

    def forward(self, x, state=None, **marks):
        """Pads on the right are the only ones that it can be given: what comes after them is not used."""
        if state is None:
            zeros = x.new_zeros(1, x.shape[0], self.lstm.hidden_size)
            state = zeros, zeros
        else:
            state = state[1].permute(2, 0, 1), state[0][None]
        w_ih, w_hh, *biases = self.lstm.all_weights[0]
        weights = [w_ih, F.dropout(w_hh, self.weight_dropout, self.training), *biases]
        state = tuple(part.to(x.dtype).contiguous() for part in state)
        output, h, c = torch.lstm(x, state, weights, True, 1, 0.0, self.training, False, True)
        return output, (c[0], h[0][..., None])


class LSTMForCausalLM(QRNNForCausalLM):
    """The same model with an LSTM in place of each QRNN: embedding, blocks, dropouts, losses and head are shared."""

    config_class = LSTMConfig
    _auto_class = None
    _auto_map = {}

    def __init__(self, config: LSTMConfig):
        super().__init__(config)
        for block, (input_size, output_size) in zip(self.model.layers, config.layer_sizes, strict=True):
            block.mixer.directions = nn.ModuleList([LSTMLayer(input_size, output_size, config.weight_dropout)])
        self.post_init()


def make_model(model_args: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> QRNNForCausalLM:
    path = Path(model_args.model_config)
    if not path.is_file():
        path = ROOT / f"configuration/models/{model_args.model_config}.json"
    if not path.is_file():
        stop(f"--model-config {model_args.model_config}: there is neither such a file nor one in configuration/models")
    mistakes = OSError, ValueError, TypeError, StrictDataclassError, yaml.YAMLError
    with one_line_error(f"{path.name} {model_args.model_overrides}", *mistakes):
        config = QRNNConfig.from_dict({**QRNNConfig.get_config_dict(path)[0], **overrides_of(model_args)})
        config.vocab_size = len(tokenizer)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            setattr(config, name, getattr(tokenizer, name))
        model = QRNNForCausalLM(config)
        return model if model_args.architecture == "qrnn" else equal_lstm(config, model.num_parameters())


def overrides_of(model_args: ModelArguments) -> dict[str, Any]:
    """The changes to the model configuration; a recipe may also hold them as a mapping."""
    overrides = model_args.model_overrides
    overrides = yaml.safe_load(overrides) if isinstance(overrides, str) else overrides
    if not isinstance(overrides, dict):
        raise ValueError("the changes must read `{name: value, ...}`")
    unknown = sorted(set(overrides) - set(QRNNConfig.__annotations__))
    if unknown:
        raise ValueError(f"unknown fields: {', '.join(unknown)}")
    return overrides


def equal_lstm(config: QRNNConfig, n_parameters: int) -> LSTMForCausalLM:
    """The LSTM of the same depth that has about so many parameters."""

    def build(hidden_size: int) -> LSTMForCausalLM:
        changes = {"hidden_size": hidden_size}
        if config.embedding_size == config.hidden_size:
            changes["embedding_size"] = hidden_size
        if config.intermediate_size is not None:
            changes["intermediate_size"] = round(config.intermediate_size * hidden_size / config.hidden_size)
        return LSTMForCausalLM(LSTMConfig(**{**config.to_dict(), **changes}))

    def excess(hidden_size: int) -> int:
        with torch.device("meta"):
            return build(hidden_size).num_parameters() - n_parameters

    widths = range(1, 4 * config.hidden_size)
    return build(max(1, bisect.bisect_right(widths, 0, key=excess)))


# Training


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
    trainer = QRNNTrainer(
        model,
        training,
        train_dataset=train_dataset,
        eval_dataset=scored["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorForTokenClassification(tokenizer),
    )
    return trainer, scored


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; the trainer's state is the last file of each."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True)
    return next(filter(is_complete, checkpoints), None)


def is_complete(checkpoint: Path) -> bool:
    try:
        return isinstance(json.loads((checkpoint / "trainer_state.json").read_text()), dict)
    except (OSError, ValueError):
        return False


def keep_settings(settings: dict[str, Any], folder: Path) -> None:
    """A run goes on only with the settings that it began with."""
    file = folder / "recipe.yaml"
    text = yaml.safe_dump(settings, sort_keys=True)
    if last_complete_checkpoint(folder) is not None and file.is_file() and file.read_text(encoding="utf-8") != text:
        before = yaml.safe_load(file.read_text(encoding="utf-8"))
        changed = sorted(name for name in {*before, *settings} if before.get(name) != settings.get(name))
        stop(f"{folder} holds a run with other settings ({', '.join(changed)}): choose another --output-dir")
    with one_line_error(f"--output-dir {folder}", OSError):
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


# Results


def score(
    trainer: QRNNTrainer, split: str, scored: Any, texts: list[str], data: DataArguments
) -> dict[str, float | int]:
    """What a split costs: per token, and per character and byte where the tokens spell the text."""
    metrics = trainer.evaluate(scored, metric_key_prefix=split)
    result = {name: metrics[f"{split}_{name}"] for name in ("loss", "perplexity", "tokens")}
    if data.tokenizer != "word":
        nats, text = result["loss"] * result["tokens"], spelled(scored, texts, data, trainer.processing_class)
        result["bits_per_character"], result["bits_per_byte"] = bits(nats, len(text)), bits(nats, len(text.encode()))
    if data.zero_state_window and isinstance(scored, torch.Tensor):
        metrics = trainer.evaluate(cut(scored, data.zero_state_window), metric_key_prefix=f"{split}_windows")
        result["loss_of_windows"] = metrics[f"{split}_windows_loss"]
    return result


def spelled(scored: Any, texts: list[str], data: DataArguments, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text that the scored tokens spell: all of it but what the first token of each sequence does."""
    sequences = [scored[:1]] if isinstance(scored, torch.Tensor) else [row[:1] for row in scored["input_ids"]]
    given = tokenizer.batch_decode(sequences, skip_special_tokens=True)
    return ("\n" if data.tokenizer == "character" else "").join(texts)[len("".join(given)) :]


def draw_curve(history: list[dict], path: Path) -> None:
    trained, measured = (
        [(entry["step"], entry[name]) for entry in history if name in entry] for name in ("loss", "eval_loss")
    )
    if trained and measured:
        plot_loss(trained, measured, "nats per token", path)


def write_card(run: dict[str, Any], dataset: str | None, path: Path) -> ModelCard:
    card = ModelCard.from_template(ModelCardData(), template_path=str(MODEL_CARD), run=run)
    card.data.model_name = run["name"]
    card.data.datasets = [dataset] if dataset else None
    card.data.eval_results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset or "text",
            dataset_name=run["source"],
            dataset_split=split,
            metric_type="perplexity",
            metric_value=round(result["perplexity"], 3),
        )
        for split, result in run["scores"].items()
    ]
    card.save(path)
    return card


def report(scores: dict[str, dict[str, float | int]]) -> None:
    for split, result in scores.items():
        figures = (f"{value:,}" if isinstance(value, int) else f"{value:.4f}" for value in result.values())
        print(f"{split}: " + ", ".join(f"{name} {value}" for name, value in zip(result, figures, strict=True)))


def describe_source(data: DataArguments) -> str:
    if data.dataset is not None:
        return f"the dataset `{data.dataset}`"
    files = (getattr(data, f"{split}_file") for split in SPLITS)
    return ", ".join(f"`{Path(path).name}`" for path in files if path is not None)


def describe_config(config: QRNNConfig) -> str:
    """The model's own settings, without what Transformers adds when it saves a model."""
    values = config.to_dict()
    return json.dumps({name: values[name] for name in QRNNConfig.__annotations__ if name in values}, indent=2)


def publish(
    trainer: QRNNTrainer,
    data: DataArguments,
    settings: dict[str, Any],
    texts: dict[str, list[str]],
    scores: dict[str, dict[str, float | int]],
) -> None:
    """The card with a sample, and all of it on the Hub if that is wanted."""
    folder, training = Path(trainer.args.output_dir), trainer.args
    prompt = next(filter(str.strip, texts["validation"])).strip()[:60].rsplit(maxsplit=1)[0]
    run = {
        "program": Path(__file__).name,
        "name": folder.resolve().name,
        "source": describe_source(data),
        "layout": data.layout,
        "scores": scores,
        "parameters": trainer.model.num_parameters(),
        "vocab_size": trainer.model.config.vocab_size,
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "device": describe_device(training.device),
        "versions": f"PyTorch {torch.__version__}, Transformers {transformers.__version__}",
        "model_settings": describe_config(trainer.model.config),
        "training_settings": yaml.safe_dump(settings, sort_keys=True).strip(),
        "sample": write_sample(folder, prompt, training.seed, max_new_tokens=200),
    }
    card = write_card(run, data.dataset, folder / "README.md")
    if training.push_to_hub:
        trainer.push_to_hub()
        card.push_to_hub(trainer.hub_model_id)  # after Trainer's own, which would replace it


def main(argv: Sequence[str] | None = None) -> None:
    data, model_args, training, settings = read_arguments(argv)
    folder = Path(training.output_dir)
    keep_settings(settings, folder)
    set_seed(training.seed)

    texts = read_documents(data)
    tokenizer = make_tokenizer(data, texts)
    documents = {split: encode(part, data, tokenizer) for split, part in texts.items()}
    model = make_model(model_args, tokenizer)
    print(", ".join(f"{split}: {sum(map(len, part)):,} tokens" for split, part in documents.items()))
    print(f"{len(tokenizer):,} different tokens; {model.num_parameters():,} parameters")

    with one_line_error("training", ValueError):
        trainer, scored = make_trainer(data, training, model, tokenizer, documents)
    checkpoint = last_complete_checkpoint(folder)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    scores = {
        split: score(trainer, split, scored[split], texts[split], data) for split in SPLITS[1:] if split in scored
    }
    trainer.save_model()
    if trainer.is_world_process_zero():
        (folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
        draw_curve(trainer.state.log_history, folder / "loss_curve.png")
        report(scores)
        if model_args.architecture == "qrnn":
            publish(trainer, data, settings, texts, scores)


if __name__ == "__main__":
    main()
