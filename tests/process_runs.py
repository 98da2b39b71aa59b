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
"""Runs of several processes on a CPU, for test_scale_out.py: `python process_runs.py models|programs FOLDER`.

The processes are forks of this one, which has imported everything once.
"""

import importlib
import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from accelerate.utils.other import get_free_port
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing import start_processes
from transformers.distributed.configuration_utils import DistributedConfig

from modeling_qrnn import (
    QRNNConfig,
    QRNNForCausalLM,
    QRNNForConditionalGeneration,
    QRNNForMaskedLM,
    QRNNForTimeSeriesPrediction,
    QRNNForTokenClassification,
    QRNNSeq2SeqConfig,
    QRNNTimeSeriesConfig,
)
from modeling_qrnn.trainer_qrnn import QRNNTrainer, QRNNTrainingArguments
from program_runs import write_rows


CONFIGURATIONS = Path(__file__).resolve().parent.parent / "configuration/accelerate"
VOCAB_SIZE = 20
MIDDLE = 8  # a checkpoint within an epoch


def start(n_processes: int, function: Callable, *args, **kwargs) -> None:
    """Call the function in so many processes."""
    start_processes(
        _as_process, (n_processes, get_free_port(), function, args, kwargs), n_processes, start_method="fork"
    )


def _as_process(rank: int, n_processes: int, port: int, function: Callable, args: tuple, kwargs: dict) -> None:
    if n_processes > 1 or "fsdp" in kwargs:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n_processes, "LOCAL_WORLD_SIZE": n_processes}
        os.environ |= {name: str(value) for name, value in names.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    function(*args, **kwargs)
    if dist.is_initialized():
        dist.destroy_process_group()


# Training


def shard(state_dict_type: str) -> None:
    """What `accelerate launch` does with fsdp2.yaml; Accelerate shards on accelerators only, so it is told of one."""
    options = ["--config_file", str(CONFIGURATIONS / "fsdp2.yaml"), "--fsdp_state_dict_type", state_dict_type, "x.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(options))
    args.main_process_port = 0
    os.environ |= {name: value for name, value in prepare_multi_gpu_env(args).items() if name.startswith("FSDP")}
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "ACCELERATE_TORCH_DEVICE": "cpu"}
    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)


def train(folder: Path, n_streams: int, fsdp: str | None = None, resume: Path | None = None, **arguments) -> None:
    """Train a language model on so many streams a process; leave checkpoints, the model and the losses."""
    if fsdp is not None:
        shard(fsdp)
    torch.manual_seed(0)
    config = {"hidden_size": 8, "connection": "residual", "intermediate_size": 12, "tie_word_embeddings": True}
    model = QRNNForCausalLM(QRNNConfig(vocab_size=VOCAB_SIZE, kernel_size=3, forget_bias=2.0, **config))
    defaults = {
        "use_cpu": fsdp is None,
        "disable_tqdm": True,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": MIDDLE // 2,
        "save_steps": MIDDLE,
        "optim": "adamw_torch",
        "learning_rate": 1e-2,
        "per_device_train_batch_size": n_streams,
        "num_train_epochs": 2,
        "bptt": 10,
    }
    args = QRNNTrainingArguments(str(folder), **{**defaults, **arguments})
    text = torch.randint(VOCAB_SIZE, (400,), generator=torch.Generator().manual_seed(0))
    trainer = QRNNTrainer(model, args, train_dataset=text, eval_dataset=text)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    trainer.save_model()
    if trainer.is_world_process_zero():
        (folder / "history.json").write_text(json.dumps(trainer.state.log_history))


def refused(folder: Path, n_streams: int, resume: Path) -> None:
    """Go on with another number of streams; leave what is said of it."""
    try:
        train(folder, n_streams, resume=resume)
    except ValueError as error:
        (folder / "error.txt").write_text(str(error))


AVERAGING = {"non_monotone": 1, "optim": "sgd", "learning_rate": 5.0}


def train_in_all_ways(folder: Path) -> None:
    start(1, train, folder / "one", 4)
    start(2, train, folder / "two", 2)
    start(1, train, folder / "two_then_one", 4, resume=folder / f"two/checkpoint-{MIDDLE}")
    start(2, train, folder / "one_then_two", 2, resume=folder / f"one/checkpoint-{MIDDLE}")
    (folder / "refused").mkdir()
    start(1, refused, folder / "refused", 2, folder / f"two/checkpoint-{MIDDLE}")
    for kind in ("SHARDED_STATE_DICT", "FULL_STATE_DICT"):
        start(2, train, folder / kind, 2, fsdp=kind)
        start(1, train, folder / f"{kind}_then_one", 4, fsdp=kind, resume=folder / f"{kind}/checkpoint-{MIDDLE}")
    start(1, train, folder / "one_averaging", 4, **AVERAGING)
    start(2, train, folder / "two_averaging", 2, fsdp="SHARDED_STATE_DICT", **AVERAGING)


# Transformers' own parallelism


RESIDUAL = {"connection": "residual", "intermediate_size": 24}
MODELS = {
    "plain": (QRNNForCausalLM, {}),
    "ifo": (QRNNForCausalLM, {"pooling": "ifo", "kernel_size": [1, 3, 2], "norm": "layer_norm"}),
    "residual": (QRNNForCausalLM, {**RESIDUAL, "tie_word_embeddings": True, "lm_head_bias": True}),
    "residual-narrow": (QRNNForCausalLM, {**RESIDUAL, "embedding_size": 10, "tie_word_embeddings": True}),
    "dense": (QRNNForCausalLM, {"connection": "dense", "weight_dropout": 0.5}),
    "masked": (QRNNForMaskedLM, {**RESIDUAL, "bidirectional": True, "lm_head_bias": True}),
    "token": (QRNNForTokenClassification, {"bidirectional": True, "num_labels": 4}),
}


def make_model(name: str):
    """The model, drawn wide, and where it is kept."""
    model_class, config = MODELS[name]
    torch.manual_seed(0)
    model = model_class(QRNNConfig(vocab_size=VOCAB_SIZE, hidden_size=16, num_hidden_layers=3, **config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    return model.eval()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def distribute(folder: Path, kind: str) -> None:
    """Spread each model over the processes; leave how far that is from the model in one."""
    results = {}
    dist.init_process_group("gloo")
    for name in MODELS:
        expected = make_model(name)
        if dist.get_rank() == 0:
            expected.save_pretrained(folder / name)
        dist.barrier()
        try:
            results[name] = compare(expected, folder / name, kind)
        except ValueError as error:
            results[name] = str(error)
    if dist.get_rank() == 0:
        (folder / f"{kind}.json").write_text(json.dumps(results))


def compare(expected, saved: Path, kind: str) -> dict[str, float]:
    config = DistributedConfig(**{f"{kind}_size": 2})
    model = type(expected).from_pretrained(saved, distributed_config=config).eval()
    batch = {"input_ids": torch.randint(VOCAB_SIZE, (2, 7)), "attention_mask": torch.ones(2, 7, dtype=torch.int64)}
    batch["attention_mask"][1, :3] = 0
    with torch.no_grad():
        difference = (model(**batch).logits - expected(**batch).logits).abs().max().item()
    result = {"forward": difference}
    if expected.can_generate():
        options = {"max_new_tokens": 6, "do_sample": False}
        result["generate"] = float((model.generate(**batch, **options) != expected.generate(**batch, **options)).sum())
    if kind == "pp":  # there Transformers gives no loss
        return result
    batch["labels"] = batch["input_ids"] % 4
    for each in (model, expected):
        each(**batch).loss.backward()
    gradients = {name: parameter.grad for name, parameter in expected.named_parameters()}
    pairs = [(whole(parameter.grad), gradients[name]) for name, parameter in model.named_parameters()]
    result["backward"] = max((actual - gradient).abs().max().item() for actual, gradient in pairs)
    parts = [getattr(parameter, "_local_tensor", parameter).numel() for parameter in model.parameters()]
    result["share"] = sum(parts) / expected.num_parameters()
    model.train()(**batch).loss.backward()  # with all that is random
    model.save_pretrained(saved / kind)
    dist.barrier()
    again = type(expected).from_pretrained(saved / kind).state_dict()
    result["saved"] = max((again[name] - value).abs().max().item() for name, value in expected.state_dict().items())
    return result


SPECIAL = {"pad_token_id": 0, "decoder_start_token_id": 1, "eos_token_id": 2}
SOURCE, SERIES = torch.arange(3, 15).view(2, 6), torch.arange(24.0).view(2, 12).sin()
GENERATORS = {  # a model, what it generates from, and a batch to train on
    "translator": (
        lambda: QRNNForConditionalGeneration(QRNNSeq2SeqConfig(vocab_size=VOCAB_SIZE, hidden_size=16, **SPECIAL)),
        {"inputs": SOURCE, "max_new_tokens": 5, "num_beams": 2},
        {"input_ids": SOURCE, "labels": SOURCE},
    ),
    "forecaster": (
        lambda: QRNNForTimeSeriesPrediction(QRNNTimeSeriesConfig(hidden_size=16, horizon="autoregressive")),
        {"past_values": SERIES, "prediction_length": 12, "seed": 0},
        {"past_values": SERIES, "future_values": SERIES},
    ),
}


def generate_from_shards(folder: Path) -> None:
    """What models generate that call parts of themselves: whole, sharded, and after a backward pass."""
    dist.init_process_group("gloo")
    results = {}
    for name, (make, inputs, batch) in GENERATORS.items():
        torch.manual_seed(0)
        model = make()
        generated = [model.eval().generate(**inputs)]
        for block in model.modules():
            if type(block).__name__ in model._no_split_modules:
                fully_shard(block)
        fully_shard(model)
        generated.append(model.generate(**inputs))
        model.train()(**batch).loss.backward()
        generated.append(model.eval().generate(**inputs))
        sequences = [getattr(output, "sequences", output) for output in generated]
        results[name] = [(sequence - sequences[0]).abs().max().item() for sequence in sequences]
    if dist.get_rank() == 0:
        (folder / "generated.json").write_text(json.dumps(results))


def distribute_in_all_ways(folder: Path) -> None:
    for kind in ("tp", "pp", "fsdp"):
        start(2, distribute, folder, kind)
    start(2, generate_from_shards, folder)


# The programs


SPLITS = ("train", "validation", "test")
NO_DROPOUT = {f"{place}_dropout": 0.0 for place in ("input", "hidden", "output")}
SMALL = {"hidden_size": 8, "num_hidden_layers": 2, **NO_DROPOUT}
SPOKEN = {"num_mel_bins": 12, "hidden_size": 8, "num_hidden_layers": 1, "stride": 1}
PROGRAMS = {
    "train_language_model": {
        "tokenizer": "character",
        "model_config": "qrnn-tiny",
        "model_overrides": {**SMALL, "intermediate_size": 8},
        "bptt": 8,
        "eval_steps": 2,
        "save_steps": 2,
        "load_best_model_at_end": True,
    },
    "train_audio_classifier": {"model_overrides": {**SPOKEN, "bidirectional": True}},
    "train_ctc": {"model_overrides": SPOKEN},
    "train_sequence_classifier": {"tokenizer": "word", "model_config": "tagger", "model_overrides": SMALL},
    "train_token_classifier": {"tokenizer": "word", "model_config": "tagger", "model_overrides": SMALL},
    "train_seq2seq": {
        "tokenizer": "word",
        "model_config": "translator",
        "num_beams": 2,
        "max_new_tokens": 6,
        "model_overrides": {**SMALL, "attention_dropout": 0.0, "intermediate_size": 8, "num_attention_heads": 2},
    },
    "train_time_series": {
        "data_file": "table.csv",
        "context_length": 12,
        "season_length": 12,
        "prediction_length": 4,
        "validation_share": 0.2,
        "model_overrides": str({"hidden_size": 8, "patch_length": 4, "loss": "mae"}),
    },
}


def write_data() -> None:
    """Rows that all programs of texts and of audio read, and a table; two processes share those of training evenly."""
    draw = random.Random(0)
    for split, n_rows in {"train": 48, "validation": 8, "test": 7}.items():
        rows = [draw.choices("abcde", k=draw.randint(2, 6)) for _ in range(n_rows)]
        write_rows(f"{split}.jsonl", [as_row(row, draw) for row in rows])
    stamps = pd.date_range("2026-01-01", periods=120, freq="h")
    pd.DataFrame({"date": stamps, "x": [draw.random() for _ in stamps]}).to_csv("table.csv", index=False)


def as_row(letters: list[str], draw: random.Random) -> dict[str, Any]:
    text = " ".join(letters)
    noise = [draw.randint(-999, 999) for _ in range(draw.randint(1000, 1500))]
    audio = {"audio": noise, "sampling_rate": 4000}
    return {
        "text": text,
        "label": letters[0],
        "tokens": letters,
        "tags": letters,
        "source": text,
        "target": text,
        **audio,
    }


def recipe_of(name: str) -> dict[str, Any]:
    files = {} if name == "train_time_series" else {f"{split}_file": f"{split}.jsonl" for split in SPLITS}
    steps = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 4, "save_steps": 4, "logging_steps": 1}
    common = {"learning_rate": 0.01, "per_device_eval_batch_size": 4, "disable_tqdm": True, "report_to": "none"}
    return {**files, **steps, **common, **PROGRAMS[name]}


def kind_of_shards(name: str) -> str:
    """`QRNNTrainer` alone takes checkpoints in parts."""
    return "SHARDED_STATE_DICT" if name == "train_language_model" else "FULL_STATE_DICT"


def run_program(name: str, output: str, batch_size: int, fsdp: str | None = None) -> None:
    if fsdp is not None:
        shard(fsdp)
    options = [
        "--output-dir",
        output,
        "--per-device-train-batch-size",
        str(batch_size),
        "--use-cpu",
        str(fsdp is None),
    ]
    importlib.import_module(name).main([f"{name}.yaml", *options])


def run_programs(folder: Path) -> None:
    """Each of them on shards of the weights in two processes, and on the whole in one."""
    os.chdir(folder)
    write_data()
    for name in PROGRAMS:
        Path(f"{name}.yaml").write_text(yaml.safe_dump(recipe_of(name)))
        importlib.import_module(name)
        start(2, run_program, name, f"{name}-shards", 4, fsdp=kind_of_shards(name))
        start(1, run_program, name, f"{name}-whole", 8)


if __name__ == "__main__":
    torch.set_num_threads(1)
    kind, target = sys.argv[1], Path(sys.argv[2])
    if kind == "programs":
        run_programs(target)
    else:
        train_in_all_ways(target)
        distribute_in_all_ways(target)
