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
"""Runs of several processes on a CPU, for test_scale_out.py: `python process_runs.py FOLDER`.

The processes are forks of this one, which has imported everything once.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from accelerate.utils.other import get_free_port
from torch.multiprocessing import start_processes
from transformers.distributed.configuration_utils import DistributedConfig

from modeling_qrnn import (
    QRNNConfig,
    QRNNForCausalLM,
    QRNNForMaskedLM,
    QRNNForTokenClassification,
)
from modeling_qrnn.trainer_qrnn import QRNNTrainer, QRNNTrainingArguments


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


if __name__ == "__main__":
    torch.set_num_threads(1)
    target = Path(sys.argv[1])
    train_in_all_ways(target)
    for kind in ("tp", "pp", "fsdp"):
        start(2, distribute, target, kind)
