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
"""What a run leaves behind: scores, the model card, and all of it on the Hub if that is wanted."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData, upload_folder
from transformers import PreTrainedConfig, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from command_line import one_line_error
from recipes import ROOT, own_fields


MODEL_CARD = ROOT / "model_card.md"
# What a model of each task reads, other than text, as the Hub names it
KINDS_OF_DATA = {
    "audio-classification": "audio",
    "automatic-speech-recognition": "audio",
    "time-series-forecasting": "time-series",
}
Scores = dict[str, dict[str, Any]]


def write_scores(scores: Any, folder: Path) -> None:
    (folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")


def report(scores: Scores) -> None:
    """The figures of each split, one line each; tables are left to the file."""
    for split, result in scores.items():
        figures = {name: value for name, value in result.items() if isinstance(value, (int, float))}
        texts = (f"{value:,}" if isinstance(value, int) else f"{value:.4f}" for value in figures.values())
        print(f"{split}: " + ", ".join(f"{name} {text}" for name, text in zip(figures, texts, strict=True)))


def describe_run(program: str, task: str, source: str, trainer: Trainer, settings: dict, scores: Scores) -> dict:
    """What the card of any run says."""
    return {
        "program": Path(program).name,
        "task": task,
        "name": Path(trainer.args.output_dir).resolve().name,
        "source": source,
        "scores": scores,
        "decimals": 4,
        "parameters": trainer.model.num_parameters(),
        "vocab_size": getattr(trainer.model.config, "vocab_size", None),
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "best_step": trainer.state.best_global_step if trainer.args.load_best_model_at_end else None,
        "device": describe_device(trainer.args.device),
        "versions": describe_versions(),
        "model_settings": describe_config(trainer.model.config),
        "training_settings": yaml.safe_dump(settings, sort_keys=True).strip(),
    }


def publish(trainer: Trainer, run: dict[str, Any], dataset: str | None, metrics: Mapping[str, str]) -> None:
    """Write the card, and push the folder if that is wanted; `metrics` are the Hub's names of scores, and ours."""
    run["has_curve"] = (Path(trainer.args.output_dir) / "loss_curve.png").exists()
    card = ModelCard.from_template(ModelCardData(), template_path=str(MODEL_CARD), run=run)
    card.data.model_name = run["name"]
    card.data.pipeline_tag = run["task"]
    card.data.datasets = [dataset] if dataset else None
    card.data.eval_results = [
        EvalResult(
            task_type=run["task"],
            dataset_type=dataset or KINDS_OF_DATA.get(run["task"], "text"),
            dataset_name=run["source"],
            dataset_split=split,
            metric_type=metric,
            metric_name=name.replace("_", " "),
            metric_value=round(result[name], 4),
        )
        for split, result in run["scores"].items()
        for metric, name in metrics.items()
    ]
    card.save(Path(trainer.args.output_dir) / "README.md")
    push(trainer)


def push(trainer: Trainer) -> None:
    """The folder as it is, if that is wanted.

    `Trainer.push_to_hub` would write a card of its own, and needs all processes with FSDP.
    """
    if not trainer.args.push_to_hub:
        return
    with one_line_error("--push-to-hub", Exception):  # all is saved, and the same command tries again
        trainer.callback_handler.on_push_begin(trainer.args, trainer.state, trainer.control)
        upload_folder(
            repo_id=trainer.hub_model_id,
            folder_path=trainer.args.output_dir,
            commit_message="End of training",
            ignore_patterns=["_*", f"{PREFIX_CHECKPOINT_DIR}-*", f"*/{PREFIX_CHECKPOINT_DIR}-*"],
            revision=trainer.args.hub_revision,
        )


def describe_config(config: PreTrainedConfig) -> str:
    """The model's own settings, without what Transformers adds when it saves a model."""
    values = config.to_dict()
    return json.dumps({name: values[name] for name in own_fields(type(config))}, indent=2)


def describe_versions() -> str:
    return f"PyTorch {torch.__version__}, Transformers {transformers.__version__}"


def describe_device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    n_threads = torch.get_num_threads()
    return f"CPU, {n_threads} thread{'s' if n_threads > 1 else ''}"
