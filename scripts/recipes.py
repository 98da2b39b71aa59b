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
"""A run from a recipe: a YAML file of data, model and training arguments. Interrupted, it goes on where it stopped."""

import argparse
import hashlib
import json
import os
import sys
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser, PreTrainedConfig, PreTrainedTokenizerBase, TrainingArguments

from command_line import OneLineParser, check_processes, existing_file, one_line_error, stop
from modeling_qrnn import QRNNConfig


ROOT = Path(__file__).resolve().parent.parent
# Of the many fields of TrainingArguments, those that --help lists
COMMON_ARGUMENTS = {
    *("output_dir", "num_train_epochs", "max_steps", "per_device_train_batch_size", "per_device_eval_batch_size"),
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "optim", "seed"),
    *("bf16", "use_cpu", "train_sampling_strategy", "eval_strategy", "eval_steps", "save_strategy", "save_steps"),
    *("load_best_model_at_end", "metric_for_best_model", "logging_steps", "report_to", "push_to_hub", "hub_model_id"),
}

# What the settings of a model raise
MISTAKES = ValueError, TypeError, StrictDataclassError, yaml.YAMLError
INPUTS = ("dataset", "init_from", "tokenizer")  # and all that ends in _file: settings that may name files or folders
TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")  # of a model, which are those of its tokenizer
BATCH_SIZE = "per_device_train_batch_size"
# What may change between a run and its continuation, for the result hangs on none of it
FREE_SETTINGS = {
    *("output_dir", "push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "report_to", "run_name"),
    *("logging_steps", "logging_strategy", "save_total_limit", "disable_tqdm", "ddp_backend"),
}


@dataclass
class ArchitectureArguments:
    _argument_group_name = "model"

    architecture: Literal["qrnn", "lstm"] = field(
        default="qrnn",
        metadata={"help": "`lstm` puts an LSTM in each layer's place, of such a width that the sizes are equal."},
    )
    float32_matmul_precision: Literal["highest", "high", "medium"] = field(
        default="highest",
        metadata={
            "help": "Of products in float32, as torch.set_float32_matmul_precision has it. On a CPU `medium` leaves "
            "them to oneDNN: twice as fast on an AMD Zen 5, but of factors rounded to bfloat16 on a CPU with AMX."
        },
    )


@dataclass
class ModelArguments(ArchitectureArguments):
    model_config: str = field(
        default="qrnn-small", metadata={"help": "A file of configuration/models, without .json; or a path."}
    )
    model_overrides: str = field(
        default="{}", metadata={"help": "Changes to it, as YAML: `{hidden_size: 512, zoneout: 0.1}`."}
    )
    init_from: str | None = field(
        default=None,
        metadata={
            "help": "The folder of a trained model: begin with its tokenizer and its weights, but for the head. Its "
            "configuration stands in for --model-config."
        },
    )


class RecipeHelp(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """The program's description as it reads, and the default of each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, "", " ") or action.nargs == 0:  # nor has what turns another option off
            return action.help
        return super()._get_help_string(action)


class SettingsParser(OneLineParser, HfArgumentParser):
    """HfArgumentParser with one-line errors."""

    def as_options(self, settings: dict[str, Any]) -> list[str]:
        """Settings as they would read on the command line, so that their values are checked as those are."""
        of_lists = {action.dest for action in self._actions if action.nargs == "*"}
        options = []
        for name, value in settings.items():
            if isinstance(value, list) and name in of_lists:
                options += [f"--{name}", *map(str, value)]
            elif value is not None:
                options.append(f"--{name}={value if isinstance(value, str) else json.dumps(value)}")
        return options


class RecipeParser(SettingsParser):
    """The options of a program, whose --help leaves the rarer TrainingArguments to their own page."""

    def __init__(self, argument_classes: Sequence[type], description: str):
        super().__init__(
            argument_classes,
            usage="%(prog)s RECIPE [--option value ...]",
            description=description,
            epilog="All other fields of transformers.TrainingArguments are options, too.",
            formatter_class=RecipeHelp,
            allow_abbrev=False,
        )
        self.add_argument(
            "recipe", type=existing_file, metavar="RECIPE", help="a file of configuration/training, or your own"
        )
        rare = {argument.name for argument in fields(TrainingArguments)} - COMMON_ARGUMENTS
        for action in self._actions:
            if action.dest in rare:
                action.help = argparse.SUPPRESS
            elif action.option_strings[:1] == [f"--no_{action.dest}"]:  # it has the help of what it turns off
                action.help = f"Without --{action.dest.replace('_', '-')}."


def read_recipe(
    argv: Sequence[str] | None, argument_classes: Sequence[type], description: str
) -> tuple[list[Any], dict[str, Any]]:
    """The recipe with the command line's changes: the argument objects, and the settings that differ from the defaults
    as YAML would hold them.

    The batch size among these is that of all devices together, so that a run may go on on another number of them.
    `model_config`, where there is one, is always among them, for its file may change.
    """
    parser = RecipeParser(argument_classes, description)
    recipe = parser.parse_args(argv).recipe
    defaults = vars(parser.parse_args([str(recipe)]))
    with one_line_error(recipe, OSError, ValueError, TypeError, yaml.YAMLError):
        settings = load_settings(recipe, set(defaults) - {"recipe"})
        empty = sorted(name for name, value in settings.items() if value is None and defaults[name] is not None)
        if empty:
            raise ValueError(f"keys without a value: {', '.join(empty)} (leave them out for their defaults)")
    options = [*parser.as_options(settings), *(sys.argv[1:] if argv is None else argv)]
    chosen = vars(parser.parse_args(options))
    with one_line_error(recipe, ValueError, TypeError, ImportError):
        *arguments, _ = parser.parse_args_into_dataclasses(options, look_for_args_file=False)
    training = next(part for part in arguments if isinstance(part, TrainingArguments))
    check_processes(training.world_size)
    chosen[BATCH_SIZE] = training.train_batch_size * training.world_size
    if training.push_to_hub and chosen["architecture"] == "lstm":
        stop("--push-to-hub: the LSTM is there to compare with, and nobody could load it")
    hide_token(training)
    set_arithmetic(chosen["float32_matmul_precision"], training)
    del chosen["hub_token"]
    kept = {name for name, value in chosen.items() if value != defaults[name] or name == "model_config"}
    return arguments, {name: as_yaml(value) for name, value in chosen.items() if name in kept}


def as_yaml(value: Any) -> Any:
    """A parsed value as YAML holds it: paths and enumerations as text."""
    if isinstance(value, list):
        return [as_yaml(part) for part in value]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Path) else value


def load_settings(file: Path, known: set[str]) -> dict[str, Any]:
    """What a YAML file of settings says.

    Raises:
        OSError, ValueError, TypeError, yaml.YAMLError: for what cannot be read, no mapping, or unknown names.
    """
    settings = yaml.load(file.read_text(encoding="utf-8"), RecipeLoader)
    if not isinstance(settings, dict):
        raise ValueError("this is not a mapping of `name: value`")
    unknown = sorted({str(name) for name in settings} - known)
    if unknown:
        advice = "the first line of each file of configuration/training names its program"
        raise ValueError(f"unknown keys: {', '.join(unknown)} ({advice})")
    return settings


def set_arithmetic(precision: str, training: TrainingArguments) -> None:
    """For the whole process: no subnormal numbers, and the precision of products in float32."""
    # Adam's averages for a rare word fade into the subnormal numbers, and stay there: 0.9 times the smallest rounds to
    # the smallest again. On many CPUs this makes a step of Adam several times as slow. Only threads that start later
    # inherit the setting, so it comes before any work.
    torch.set_flush_denormal(True)
    if precision == "highest":
        return
    if training.tf32 is not None:
        stop(
            f"--float32-matmul-precision {precision} and --tf32 both tell how float32 is multiplied: give one of them"
        )
    torch.set_float32_matmul_precision(precision)


def hide_token(training: TrainingArguments) -> None:
    """Hand the token on where huggingface_hub looks for one: no file of a run may hold it, and Trainer writes one."""
    if training.hub_token is not None:
        os.environ["HF_TOKEN"] = training.hub_token
        training.hub_token = None


class RecipeLoader(yaml.SafeLoader):
    """YAML in which no name may stand twice."""

    def construct_mapping(self, node, deep=False):
        names = [self.construct_object(key) for key, _ in node.value]
        twice = sorted({str(name) for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"names that stand twice: {', '.join(twice)}")
        return super().construct_mapping(node, deep)


def make_config(
    model_args: ModelArguments,
    tokenizer: PreTrainedTokenizerBase,
    config_class: type[PreTrainedConfig] = QRNNConfig,
    **fixed: Any,
) -> PreTrainedConfig:
    """The model configuration with its changes, for the vocabulary of the tokenizer."""
    path = config_path(model_args.model_config)
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in (ROOT / "configuration/models").glob("*.json")))
        stop(f"--model-config {model_args.model_config}: neither a file nor one of configuration/models: {names}")
    with one_line_error(f"{path.name} {model_args.model_overrides}", OSError, *MISTAKES):
        of_tokens = {name: getattr(tokenizer, name) for name in TOKEN_IDS}
        of_data = {"vocab_size": len(tokenizer), **of_tokens, **fixed}
        overrides = overrides_of(model_args, config_class, of_data)
        return config_class.from_dict({**read_model_config(path, config_class), **overrides, **of_data})


def read_model_config(path: str | Path, config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """The model configuration in a file, or in a model's folder, as it reads; it must be one of that class."""
    settings = config_class.get_config_dict(path)[0]
    if settings.get("model_type") != config_class.model_type:
        raise ValueError(f"it holds a {settings.get('model_type')!r}, not a {config_class.model_type!r}")
    return settings


def config_path(name: str) -> Path:
    """A file, or one of configuration/models."""
    path = Path(name)
    return path if path.is_file() else ROOT / f"configuration/models/{name}.json"


def overrides_of(
    model_args: Any, config_class: type[PreTrainedConfig] = QRNNConfig, of_data: Iterable[str] = ()
) -> dict[str, Any]:
    """The changes to the model configuration, the `model_overrides` of the arguments.

    Raises:
        ValueError: for what is no mapping, a field that the class has not, or one `of_data`, which decides it.
    """
    overrides = yaml.load(model_args.model_overrides, RecipeLoader)
    if not isinstance(overrides, dict):
        raise ValueError("the changes must read `{name: value, ...}`")
    unknown = sorted(set(overrides) - {*own_fields(config_class), *config_class.attribute_map})
    if unknown:
        raise ValueError(f"unknown fields: {', '.join(unknown)}")
    taken = sorted({*of_data} & {config_class.attribute_map.get(name, name) for name in overrides})
    if taken:
        raise ValueError(f"fields that the data or other options decide: {', '.join(taken)}")
    return overrides


def own_fields(config_class: type[PreTrainedConfig]) -> list[str]:
    """The fields that make a model what it is, without those of every configuration of Transformers."""
    common = {argument.name for argument in fields(PreTrainedConfig)}
    return [argument.name for argument in fields(config_class) if argument.name not in common]


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; the trainer's state is the last file of each."""
    numbered = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    checkpoints = sorted(numbered, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True)
    return next(filter(is_complete, checkpoints), None)


def is_complete(checkpoint: Path) -> bool:
    try:
        return isinstance(json.loads((checkpoint / "trainer_state.json").read_text()), dict)
    except (OSError, ValueError):
        return False


def keep_settings(settings: dict[str, Any], folder: Path) -> None:
    """A run goes on only with the settings that it began with, but for those that change nothing in its result.

    Of the files and folders that they name the contents must be the same, too.
    """
    if settings.get("init_from") is not None and Path(settings["init_from"]).resolve() == folder.resolve():
        stop(f"--init-from {settings['init_from']}: it is --output-dir, where the new model would take its place")
    digests = {name: digest(path, folder) for name, path in find_inputs(settings).items()}
    with one_line_error(f"--output-dir {folder}", OSError):
        if last_complete_checkpoint(folder) is not None:
            if not (folder / "recipe.yaml").is_file():
                stop(
                    f"{folder} holds checkpoints, but no recipe.yaml that tells what they are of: choose another "
                    "--output-dir"
                )
            check_unchanged(folder / "recipe.yaml", settings, "settings", folder)
            check_unchanged(folder / "digests.yaml", digests, "data", folder)
        check_holds_no_summary(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, values in (("recipe", settings), ("digests", digests)):
            write_changed(folder / f"{name}.yaml", yaml.safe_dump(values, sort_keys=True))


def check_holds_no_run(folder: Path) -> None:
    """Refuse a folder that holds a run of its own, whose scores the summary of several runs would overwrite."""
    if (folder / "recipe.yaml").is_file():
        stop(f"{folder} holds a run of its own, whose scores would be lost: choose another --output-dir")


def check_holds_no_summary(folder: Path) -> None:
    """Refuse a folder that holds the summary of several runs, which a single run would overwrite."""
    if (folder / "scores.json").is_file() and not (folder / "recipe.yaml").is_file():
        stop(f"{folder} holds the scores of several runs, which would be lost: choose another --output-dir")


def write_changed(file: Path, text: str) -> None:
    """Write a file if its text differs, atomically: all processes of a run write it, and others may be reading."""
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        own = file.with_name(f"{file.name}.{uuid.uuid4().hex}")  # numbers of processes may be equal on two machines
        own.write_text(text, encoding="utf-8")
        own.replace(file)


def find_inputs(settings: dict[str, Any]) -> dict[str, Path]:
    """The files and folders that settings name; what is a name on the Hub is none of these."""
    named = {name: Path(value) for name, value in settings.items() if name.endswith("_file") or name in INPUTS}
    if "model_config" in settings:
        named["model_config"] = config_path(settings["model_config"])
    return {name: path for name, path in named.items() if path.exists()}


def digest(path: Path, output: Path) -> str:
    """A SHA-256 over a file, or over all files in a folder and their names.

    Left out are the folder's checkpoints, its TensorBoard logs (`runs/`), and the output folder within it.
    """
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    holds_output = path.resolve() in output.resolve().parents
    whole = hashlib.sha256()
    for file in files:
        if holds_output and output.resolve() in file.resolve().parents:
            continue
        name = file.relative_to(path).as_posix()
        if not name.startswith(("checkpoint-", "runs/")):
            with file.open("rb") as stream:
                whole.update(name.encode() + b"\0" + hashlib.file_digest(stream, "sha256").digest())
    return whole.hexdigest()


def check_unchanged(file: Path, values: dict[str, Any], what: str, folder: Path) -> None:
    if not file.is_file():
        return
    before = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    names = {*before, *values} - FREE_SETTINGS
    changed = sorted(name for name in names if before.get(name) != values.get(name))
    if changed:
        names = ", ".join(f"{name}, times the devices" if name == BATCH_SIZE else name for name in changed)
        stop(f"{folder} holds a run with other {what} ({names}): choose another --output-dir")
