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
"""Time the QRNN beside what a user would take instead, and beside the bound itself.

    python scripts/benchmark.py pooling       # the recurrence, over a copy of the same bytes
    python scripts/benchmark.py layer         # a layer, over its matrix product alone; nn.LSTM, nn.GRU
    python scripts/benchmark.py training      # one optimiser step of a language model; GPT-2, Llama, Mamba, Mamba2
    python scripts/benchmark.py generation    # generate(), and the time per token far into a text
    python scripts/benchmark.py memory        # what backward keeps, and the state and peak of generation

The contenders take turns in one process, and the fastest of many runs counts: what else happens on a machine only
ever adds time. Nothing is timed before its result has been compared with the textbook loop. Each command writes a
JSON file, the Markdown tables that it prints, and a picture.
"""

import argparse
import copy
import gc
import importlib
import importlib.metadata
import itertools
import json
import math
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionCacheLayerMixin

from command_line import OneLineParser, positive_int
from modeling_qrnn import QRNNConfig, QRNNLayer, recurrent_pooling


ROOT = Path(__file__).resolve().parent.parent
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}  # relative to the largest value
BACKENDS = ("numba", "triton", "torch", "reference")
N_GATES = {"f": 2, "fo": 3, "ifo": 4}
PASSES = ("forward", "backward", "forward+backward")
MODELS = ("QRNN", "GPT-2", "Llama", "Mamba", "Mamba2")
# Recurrences of others, by the module and the function to import; all on a GPU.
PEER_RECURRENCES = {
    "fla chunk_hgrn": ("fla.ops.hgrn", "chunk_hgrn"),
    "fla fused_recurrent_hgrn": ("fla.ops.hgrn", "fused_recurrent_hgrn"),
    "accelerated-scan warp": ("accelerated_scan.warp", "scan"),
    "accelerated-scan scalar": ("accelerated_scan.scalar", "scan"),
}
SHORTEST_SAMPLE = 1e-3  # seconds; what is faster runs several times within one sample
FLUSH_BYTES = 2**30  # rewritten before each run on a GPU: far more than its L2, and long enough to hide the launch

# What each command takes, and what it takes if not told otherwise.
TIMED = {"dtype": ["float32"], "threads": ["1", "all"], "rounds": 10, "seconds": 10.0}
PRODUCTS = {"float32_matmul_precision": "highest"}
RECURRENCE = {"pooling": "fo", "backends": list(BACKENDS)}
LANGUAGE_MODEL = {"models": list(MODELS), "hidden_size": 512, "layers": 4, "vocab_size": 16_000}
DEFAULTS: dict[str, dict[str, Any]] = {
    # The tensors of the copy have 200 MB and more: beyond any cache.
    "pooling": {**TIMED, **RECURRENCE, "shapes": [(64, 512, 1024)], "passes": ["forward", "forward+backward"]},
    "layer": {
        **TIMED,
        **PRODUCTS,
        "dtype": ["float32", "bfloat16"],
        "shapes": [(20, 105, 640), (8, 512, 512), (1, 512, 640), (8, 512, 320)],
        "passes": ["forward", "forward+backward"],
        "pooling": "fo",
        "kernel_size": 2,
    },
    "training": {**TIMED, **PRODUCTS, **LANGUAGE_MODEL, "batch_sizes": [8], "lengths": [256]},
    "generation": {
        **TIMED,
        **PRODUCTS,
        **LANGUAGE_MODEL,
        "batch_sizes": [1, 16],
        "contexts": [64, 256, 1024, 4096],
        "depths": [100, 1000, 4000, 16_000],
        "new_tokens": 32,
    },
    "memory": {
        **RECURRENCE,
        **LANGUAGE_MODEL,
        "dtype": ["float32"],
        "shapes": [(8, 512, 512)],
        "batch_sizes": [1],
        "contexts": [64, 256, 1024, 4096],
        "new_tokens": 8,
    },
}
CUDA_DEFAULTS: dict[str, dict[str, Any]] = {
    "pooling": {
        "dtype": ["bfloat16"],
        "passes": list(PASSES),
        # Batch times channels from 4 k to 128 k.
        "shapes": [(rows, seq_len, 1024) for seq_len in (512, 4096, 65_536) for rows in (4, 8, 16, 32, 64, 128)],
    },
    "layer": {"dtype": ["bfloat16"], "shapes": [(8, 512, 320), (256, 512, 320)]},
}
QUICK_TIMED = {"threads": ["1"], "rounds": 2, "seconds": 0.0}
QUICK_MODEL = {"hidden_size": 64, "layers": 1, "vocab_size": 256, "batch_sizes": [2]}
QUICK: dict[str, dict[str, Any]] = {
    "pooling": {**QUICK_TIMED, "shapes": [(4, 64, 64)]},
    "layer": {**QUICK_TIMED, "shapes": [(2, 16, 32)]},
    "training": {**QUICK_TIMED, **QUICK_MODEL, "lengths": [16]},
    "generation": {**QUICK_TIMED, **QUICK_MODEL, "contexts": [8, 16], "depths": [8, 32], "new_tokens": 4},
    "memory": {**QUICK_MODEL, "shapes": [(2, 16, 32)], "contexts": [8, 16], "new_tokens": 2},
}


# --- arguments -------------------------------------------------------------------------------------------------------


def duration(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number of seconds")
    return seconds


def shape(value: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){2}", value):
        raise argparse.ArgumentTypeError(f"{value!r} is not batch x length x channels, like 20x105x640")
    return tuple(map(int, value.split("x")))


def thread_count(value: str) -> str:
    return value if value == "all" else str(positive_int(value))


def shown(value: Any) -> str:
    """A default as one would type it."""
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return " ".join(map(shown, value)) if isinstance(value, list) else str(value)


NUMBER = {"type": positive_int, "metavar": "N"}
NUMBERS = {**NUMBER, "nargs": "+"}
OPTIONS: dict[str, dict[str, Any]] = {
    "dtype": {"nargs": "+", "choices": DTYPES, "help": "number formats"},
    "shapes": {"nargs": "+", "type": shape, "metavar": "BxTxH", "help": "batch x length x channels of the output"},
    "passes": {"nargs": "+", "choices": PASSES, "help": "what to time"},
    "backends": {"nargs": "+", "choices": BACKENDS, "help": "ways to run the recurrence"},
    "pooling": {"choices": N_GATES, "help": "recurrent pooling"},
    "kernel_size": {**NUMBER, "help": "width of the convolution"},
    "models": {"nargs": "+", "choices": MODELS, "help": "language models; the QRNN always runs"},
    "hidden_size": {**NUMBER, "help": "width of the QRNN"},
    "layers": {**NUMBER, "help": "layers of the QRNN"},
    "vocab_size": {**NUMBER, "help": "vocabulary of all models"},
    "batch_sizes": {**NUMBERS, "help": "batch sizes"},
    "lengths": {**NUMBERS, "help": "tokens of a sequence"},
    "contexts": {**NUMBERS, "help": "tokens of the prompt"},
    "new_tokens": {**NUMBER, "help": "tokens to generate"},
    "depths": {**NUMBERS, "help": "tokens into the text, for the time per token"},
    "threads": {"nargs": "+", "type": thread_count, "metavar": "N", "help": "threads of torch, or `all`"},
    "rounds": {**NUMBER, "help": "at least so many turns of each"},
    "seconds": {"type": duration, "metavar": "S", "help": "and turns for at least so long"},
    "float32_matmul_precision": {
        "choices": ("highest", "high", "medium"),
        "help": "of products in float32, as torch.set_float32_matmul_precision has it",
    },
}


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, run in COMMANDS.items():
        text = run.__doc__ or ""
        command = commands.add_parser(name, description=text, help=text.splitlines()[0], allow_abbrev=False)
        command.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run (default: cpu)")
        for option, default in DEFAULTS[name].items():
            settings = {**OPTIONS[option], "help": f"{OPTIONS[option]['help']} (default: {shown(default)})"}
            command.add_argument(f"--{option.replace('_', '-')}", **settings)
        if "models" in DEFAULTS[name]:
            command.add_argument(
                "--weights-by-input",
                action="store_true",
                help="lay the weights of nn.Linear out input by input, for one row at a time; shapes stay",
            )
        command.add_argument("--seed", type=int, default=0, metavar="N", help="of weights and inputs (default: 0)")
        command.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, not how fast")
        command.add_argument(
            "--output-dir",
            type=Path,
            default=Path("benchmark-output"),
            metavar="PATH",
            help="folder for the JSON, Markdown and PNG files (default: benchmark-output)",
        )
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device")
    fill_in_defaults(args)
    return args


def fill_in_defaults(args: argparse.Namespace) -> None:
    """What was not given comes from the quick, the device's or the general settings, in this order."""
    defaults = dict(DEFAULTS[args.command])
    if args.device == "cuda":
        defaults |= CUDA_DEFAULTS.get(args.command, {})
    if args.quick:
        defaults |= QUICK[args.command]
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if "threads" in defaults:
        counts = [torch.get_num_threads() if count == "all" else int(count) for count in args.threads]
        # Threads of the CPU say nothing about work on a GPU.
        args.threads = list(dict.fromkeys(counts)) if args.device == "cpu" else [torch.get_num_threads()]


def precision_of(args: argparse.Namespace) -> str:
    """How float32 is multiplied; commands without products have no such option."""
    return getattr(args, "float32_matmul_precision", "highest")


def setting(args: argparse.Namespace, dtype: str, threads: int) -> str:
    if dtype == "float32" and precision_of(args) != "highest":
        dtype = f"float32 ({precision_of(args)} precision of products)"
    if args.device == "cuda":
        return f"{dtype}, {torch.cuda.get_device_name()}"
    return f"{dtype}, {threads} thread{'s' if threads > 1 else ''}"


# --- measurement -----------------------------------------------------------------------------------------------------


@dataclass
class Contender:
    """Something to time: `run` gets what `setup`, which is not timed, has made for it."""

    name: str
    run: Callable[[Any], Any]
    setup: Callable[[], Any] = lambda: None
    is_ours: bool = False


def summarize(times: Sequence[float]) -> dict[str, float]:
    """The fastest and the median time in seconds, and how far above the fastest nine runs in ten stay."""
    ordered = sorted(times)
    fastest, slow = ordered[0], ordered[math.ceil(0.9 * len(ordered)) - 1]
    return {
        "fastest": fastest,
        "median": statistics.median(ordered),
        "spread": (slow - fastest) / fastest,
        "runs": len(ordered),
    }


def add_ratios(summaries: dict[str, dict[str, float]], baseline: str) -> None:
    """How often the fastest run of the baseline fits into the fastest run of each."""
    for summary in summaries.values():
        summary["ratio"] = summary["fastest"] / summaries[baseline]["fastest"]


def time_on_cpu(contender: Contender, repeats: int) -> float:
    prepared = [contender.setup() for _ in range(repeats)]
    started = time.perf_counter()
    for argument in prepared:
        result = contender.run(argument)
    elapsed = time.perf_counter() - started
    del result  # kept until here: giving memory back to the system is not part of the work
    return elapsed / repeats


def time_on_cuda(contender: Contender, repeats: int) -> float:
    """By events on the device, with a cold cache; the flush also lets the launches run ahead of the device."""
    elapsed = []
    for _ in range(repeats):
        argument = contender.setup()
        torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda").zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        contender.run(argument)
        end.record()
        end.synchronize()
        elapsed.append(start.elapsed_time(end) / 1e3)
    return statistics.mean(elapsed)


def warm_up(
    contenders: Iterable[Contender], timer: Callable[[Contender, int], float], place: str, report: "Report"
) -> dict[str, int]:
    """Run each contender once or twice, and say how often it has to run for a sample of a millisecond.

    What a contender of others raises, it is left out for; ours may only run out of memory.
    """
    repeats = {}
    for contender in contenders:
        try:
            elapsed = timer(contender, 1)
            elapsed = timer(contender, 1) if elapsed < 1 else elapsed  # the first run may have compiled something
        except Exception as error:
            if contender.is_ours and not isinstance(error, torch.OutOfMemoryError):
                raise
            report.leave_out(f"{contender.name}, {place}", error)
        else:
            repeats[contender.name] = math.ceil(SHORTEST_SAMPLE / elapsed)
    return repeats


@contextmanager
def torch_set_to(threads: int, precision: str) -> Iterator[None]:
    """PyTorch with so many threads and float32 multiplied so, only within."""
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def measure(
    contenders: Sequence[Contender], place: str, threads: int, args: argparse.Namespace, report: "Report"
) -> dict[str, dict[str, float]]:
    """The contenders take turns, in both directions alternately, for `--seconds` and at least `--rounds` rounds."""
    timer = time_on_cuda if args.device == "cuda" else time_on_cpu
    with torch_set_to(threads, precision_of(args)):
        repeats = warm_up(contenders, timer, place, report)
        turns = [contender for contender in contenders if contender.name in repeats]
        times: dict[str, list[float]] = {contender.name: [] for contender in turns}
        with no_garbage_collection():
            started, n_rounds = time.perf_counter(), 0
            while turns and (n_rounds < args.rounds or time.perf_counter() - started < args.seconds):
                for contender in turns:
                    times[contender.name].append(timer(contender, repeats[contender.name]))
                turns.reverse()
                n_rounds += 1
    return {name: summarize(samples) for name, samples in times.items()}


def differentiated(
    name: str,
    which: str,
    forward: Callable[[], torch.Tensor],
    inputs: Sequence[torch.Tensor],
    grad: torch.Tensor,
    is_ours: bool = False,
) -> Contender:
    """One of the passes of a function: its value alone, the gradients of `inputs` alone, or both."""

    def backward(output: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(output, inputs, grad)

    if which == "forward":
        return Contender(name, torch.no_grad()(lambda _: forward()), is_ours=is_ours)
    if which == "backward":
        return Contender(name, backward, forward, is_ours)
    return Contender(name, lambda _: backward(forward()), is_ours=is_ours)


def free_bytes(device: str) -> int:
    if device == "cuda":
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + cached
    available = first_match(r"^MemAvailable:\s*(\d+) kB", "/proc/meminfo")
    return int(available) * 1024 if available else sys.maxsize


def peak_bytes(run: Callable[[], Any], device: str) -> int:
    """The most memory that `run` holds at a time, beyond what was there before."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with tempfile.TemporaryDirectory() as folder:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            run()
        trace = Path(folder, "trace.json")
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    steps = [event["args"] for event in events if event["name"] == "[memory]"]
    if not steps:
        return 0
    before = steps[0]["Total Allocated"] - steps[0]["Bytes"]  # what an earlier profile saw, and is alive
    return max(step["Total Allocated"] for step in steps) - before


def saved_bytes(run: Callable[[], Any]) -> int:
    """How much memory autograd keeps for the backward pass of `run`; tensors that share memory count once."""
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for storage in storages.values())


# --- verification ----------------------------------------------------------------------------------------------------


class WrongResult(Exception):
    """A contender computes something else than the reference."""


def compare(
    subject: str, actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float
) -> None:
    """Refuse what differs from the expected tensors by more than `tolerance` times their largest value."""
    for quantity, wanted in expected.items():
        error = ((actual[quantity].double() - wanted.double()).abs().max() / wanted.double().abs().max()).item()
        if not error <= tolerance:  # NaN is refused too
            raise WrongResult(
                f"{subject} is wrong: {quantity} is off by {error:.1e} of its largest value, allowed {tolerance:.0e}"
            )


def pooling_results(
    gate_logits: torch.Tensor,
    initial_state: torch.Tensor,
    grads: tuple[torch.Tensor, torch.Tensor],
    **options: Any,
) -> dict[str, torch.Tensor]:
    inputs = (gate_logits.detach().requires_grad_(), initial_state.detach().requires_grad_())
    outputs = recurrent_pooling(*inputs, **options)
    names = ("h", "c_last", "the gradient of gate_logits", "the gradient of initial_state")
    return dict(
        zip(names, (*(x.detach() for x in outputs), *torch.autograd.grad(outputs, inputs, grads)), strict=True)
    )


def verify_backend(backend: str | None, dtype: torch.dtype, device: str) -> None:
    """A small ragged batch through every pooling: alone, then with pads, segments and zoneout at once."""
    batch_size, seq_len, hidden_size = 3, 37, 21
    for pooling, n_gates in N_GATES.items():
        gate_logits = torch.randn(batch_size, seq_len, n_gates * hidden_size, device=device).to(dtype)
        state = torch.randn(batch_size, hidden_size, device=device)
        grads = (torch.randn(batch_size, seq_len, hidden_size, device=device).to(dtype), torch.randn_like(state))
        ragged = {
            "attention_mask": torch.rand(batch_size, seq_len, device=device) < 0.8,
            "segment_ids": torch.arange(seq_len, device=device).expand(batch_size, -1) // 10,
            "zoneout": 0.2,
            "zoneout_seed": torch.tensor(7, device=device),
            "training": True,
        }
        for options in ({}, ragged):
            actual, expected = (
                pooling_results(gate_logits, state, grads, pooling=pooling, backend=name, **options)
                for name in (backend, "reference")
            )
            subject = "the default backend" if backend is None else f"backend {backend!r}"
            compare(f"{subject} with {pooling}-pooling in {dtype}", actual, expected, TOLERANCES[dtype])


def verify_at_size(backend: str, gate_logits: torch.Tensor, grad_h: torch.Tensor, pooling: str) -> None:
    """A tensor of the size that is timed, on its first and last row and channels: each channel stands alone."""
    batch_size, _, hidden_size = grad_h.shape
    rows = torch.tensor(sorted({0, batch_size - 1}), device=grad_h.device)
    channels = torch.tensor(sorted({*range(hidden_size)[:16], *range(hidden_size)[-16:]}), device=grad_h.device)

    def part(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[rows].unflatten(-1, (-1, hidden_size))[..., channels].flatten(-2)

    def results(tensors: tuple[torch.Tensor, ...], name: str) -> dict[str, torch.Tensor]:
        logits, grad = tensors
        state = logits.new_zeros(grad.shape[0], grad.shape[2], dtype=torch.float32)
        return pooling_results(logits, state, (grad, torch.zeros_like(state)), pooling=pooling, backend=name)

    actual = {name: part(tensor) for name, tensor in results((gate_logits, grad_h), backend).items()}
    expected = results((part(gate_logits), part(grad_h)), "reference")
    size = shown(tuple(grad_h.shape))
    compare(f"backend {backend!r} at {size} in {grad_h.dtype}", actual, expected, TOLERANCES[grad_h.dtype])


def available_backends(args: argparse.Namespace, report: "Report") -> list[str]:
    """Those of `--backends` that run on the device, each verified in every dtype."""
    backends = []
    for backend in args.backends:
        try:
            recurrent_pooling(torch.zeros(1, 2, N_GATES["fo"] * 4, device=args.device), backend=backend)
        except (ImportError, ValueError, RuntimeError) as error:
            report.leave_out(backend, error)
        else:
            backends.append(backend)
    for backend, dtype in itertools.product(backends, args.dtype):
        verify_backend(backend, DTYPES[dtype], args.device)
    return backends


def verify_default_backend(args: argparse.Namespace) -> None:
    """Layers and models run the backend that the package chooses."""
    for dtype in args.dtype:
        verify_backend(None, DTYPES[dtype], args.device)


def layer_window(x: torch.Tensor, kernel_size: int) -> torch.Tensor:
    """`(batch, seq_len, kernel_size * input)`: each token and those before it, oldest first."""
    shifted = F.pad(x, (0, 0, kernel_size - 1, 0))
    return torch.cat([shifted[:, tap : tap + x.shape[1]] for tap in range(kernel_size)], dim=-1)


def verify_layer(layer: QRNNLayer, x: torch.Tensor, grad_h: torch.Tensor) -> None:
    """The layer is the reference pooling of the matrix product of the window."""
    inputs = (x, layer.gate_proj.weight, layer.gate_proj.bias)
    product = F.linear(layer_window(x, layer.kernel_size), *inputs[1:])
    outputs = (layer(x)[0], recurrent_pooling(product, pooling=layer.pooling, backend="reference")[0])
    names = ("h", "the gradient of the input", "the gradient of the weight", "the gradient of the bias")
    actual, expected = (
        dict(zip(names, (h.detach(), *torch.autograd.grad(h, inputs, grad_h)), strict=True)) for h in outputs
    )
    compare(f"QRNNLayer at {shown(tuple(grad_h.shape))} in {x.dtype}", actual, expected, TOLERANCES[x.dtype])


@torch.no_grad()
def verify_generation(model: PreTrainedModel, args: argparse.Namespace) -> None:
    """A step from the cache gives the logits that the whole text gives."""
    tokens = torch.randint(model.config.vocab_size, (2, 20), device=args.device)
    cache = model(tokens[:, :-1], use_cache=True).cache
    step = model(tokens[:, -1:], cache=cache).logits
    whole = model(tokens).logits[:, -1:]
    compare(f"generation of the QRNN in {model.dtype}", {"logits": step}, {"logits": whole}, TOLERANCES[model.dtype])


# --- pooling ---------------------------------------------------------------------------------------------------------


def load_peer_recurrences(args: argparse.Namespace, report: "Report") -> dict[str, Callable[..., Any]]:
    """The recurrences of other packages that are installed, run here, and are not wrong."""
    recurrences = {}
    for name, (module, function) in PEER_RECURRENCES.items():
        try:
            recurrence = getattr(importlib.import_module(module), function)
            verify_peer(name, recurrence, args)
        except Exception as error:  # whatever a package of others raises, at import or in a kernel
            report.leave_out(name, error)
        else:
            recurrences[name] = recurrence
    return recurrences


def activate(name: str, gate_logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What users of a bare recurrence compute in front of it and after it: its two inputs, and the output gate."""
    z, f, o = gate_logits.chunk(3, dim=-1)
    inputs = torch.sigmoid(-f) * torch.tanh(z)
    if name.startswith("fla"):
        return inputs, F.logsigmoid(f), torch.sigmoid(o)
    # accelerated-scan wants time last.
    return torch.sigmoid(f).transpose(1, 2).contiguous(), inputs.transpose(1, 2).contiguous(), torch.sigmoid(o)


def run_recurrence(
    name: str, recurrence: Callable[..., Any], first: torch.Tensor, second: torch.Tensor
) -> torch.Tensor:
    """The states `(batch, seq_len, hidden)` of a recurrence of others from its own inputs."""
    return recurrence(first, second)[0] if name.startswith("fla") else recurrence(first, second).transpose(1, 2)


def peer_pooling(name: str, recurrence: Callable[..., Any], gate_logits: torch.Tensor) -> torch.Tensor:
    first, second, o = activate(name, gate_logits)
    return o * run_recurrence(name, recurrence, first, second)


def verify_peer(name: str, recurrence: Callable[..., Any], args: argparse.Namespace) -> None:
    for dtype in (DTYPES[name] for name in args.dtype):
        gate_logits = torch.randn(2, 64, 3 * 64, device=args.device, dtype=dtype, requires_grad=True)
        outputs = (peer_pooling(name, recurrence, gate_logits), recurrent_pooling(gate_logits, backend="reference")[0])
        actual, expected = (
            {"h": h, "the gradient of gate_logits": torch.autograd.grad(h.sum(), gate_logits)[0]} for h in outputs
        )
        # Ten times what ours are allowed: others keep their state in 16 bits.
        compare(name, actual, expected, 10 * TOLERANCES[dtype])


def pooling_bytes(which: str, n_gates: int, output: torch.Tensor) -> int:
    """What a pass has to move: forward reads the gates and writes h, backward reads both and writes the gates'."""
    per_output = {"forward": n_gates + 1, "backward": 2 * n_gates + 1, "forward+backward": 3 * n_gates + 2}[which]
    return per_output * output.nbytes


def copy_bytes(n_bytes: int, like: torch.Tensor) -> Callable[[Any], torch.Tensor]:
    """Move so many bytes, half of them read and half written, in fresh tensors of at most 4 GB."""
    n_pieces = math.ceil(n_bytes / 2 / 4e9)
    source = torch.zeros(n_bytes // 2 // n_pieces // like.element_size(), dtype=like.dtype, device=like.device)

    def run(_: Any) -> torch.Tensor:
        for _ in range(n_pieces - 1):
            source.clone()
        return source.clone()

    return run


def pooling_contenders(
    gate_logits: torch.Tensor,
    grad_h: torch.Tensor,
    which: str,
    backends: Sequence[str],
    peers: dict[str, Callable[..., Any]],
    args: argparse.Namespace,
    report: "Report",
) -> Iterator[Contender]:
    n_bytes = pooling_bytes(which, N_GATES[args.pooling], grad_h)
    yield Contender("copy", copy_bytes(n_bytes, grad_h), is_ours=True)
    gate_logits = gate_logits.requires_grad_()
    for backend in backends:
        run = partial(pool, gate_logits, pooling=args.pooling, backend=backend)
        yield differentiated(label_of(backend), which, run, [gate_logits], grad_h, is_ours=True)
    for name, recurrence in peers.items():
        whole = partial(peer_pooling, name, recurrence, gate_logits)
        yield differentiated(f"{name}, eager activations", which, whole, [gate_logits], grad_h)
        if free_bytes(args.device) < 4 * gate_logits.nbytes:  # its inputs and their gradients come on top
            report.leave_out(f"{name}, bare, {shown(tuple(grad_h.shape))}", "no memory for inputs of its own")
            continue
        with torch.no_grad():
            inputs = [tensor.requires_grad_() for tensor in activate(name, gate_logits)[:2]]
        bare = partial(run_recurrence, name, recurrence, *inputs)
        yield differentiated(f"{name}, bare", which, bare, inputs, grad_h)


def pool(gate_logits: torch.Tensor, **options: Any) -> torch.Tensor:
    return recurrent_pooling(gate_logits, **options)[0]


def label_of(backend: str) -> str:
    return "plain loop" if backend == "reference" else backend


def make_pooling_inputs(
    size: tuple[int, ...], args: argparse.Namespace, dtype: str
) -> tuple[torch.Tensor, torch.Tensor]:
    batch_size, seq_len, hidden_size = size
    width = N_GATES[args.pooling] * hidden_size
    make: dict[str, Any] = {"device": args.device, "dtype": DTYPES[dtype]}
    return torch.randn(batch_size, seq_len, width, **make), torch.randn(batch_size, seq_len, hidden_size, **make)


def benchmark_pooling(args: argparse.Namespace, report: "Report") -> None:
    """The recurrence from gate logits to h, beside a copy that moves the same bytes.

    The recurrences of fla and accelerated-scan run with the activations, output gate and transposes that their users
    must add, and bare.
    """
    backends = available_backends(args, report)
    peers = load_peer_recurrences(args, report) if args.pooling == "fo" else {}
    runnable = {
        (dtype, size): [backend for backend in backends if runs_at_size(backend, size, dtype, args, report)]
        for dtype, size in itertools.product(args.dtype, args.shapes)
    }
    for which, dtype, threads in itertools.product(args.passes, args.dtype, args.threads):
        rows = []
        for size in args.shapes:
            if runnable[dtype, size]:
                rows += time_pooling(which, dtype, size, threads, runnable[dtype, size], peers, args, report)
        report.add(f"{args.pooling}-pooling, {which}, {setting(args, dtype, threads)}", rows, "ratio")


def runs_at_size(backend: str, size: tuple[int, ...], dtype: str, args: argparse.Namespace, report: "Report") -> bool:
    try:
        verify_at_size(backend, *make_pooling_inputs(size, args, dtype), pooling=args.pooling)
    except torch.OutOfMemoryError as error:
        report.leave_out(f"{label_of(backend)}, {shown(size)} in {dtype}", error)
        return False
    return True


def time_pooling(
    which: str,
    dtype: str,
    size: tuple[int, ...],
    threads: int,
    backends: Sequence[str],
    peers: dict[str, Callable[..., Any]],
    args: argparse.Namespace,
    report: "Report",
) -> list[dict[str, Any]]:
    gate_logits, grad_h = make_pooling_inputs(size, args, dtype)
    contenders = list(pooling_contenders(gate_logits, grad_h, which, backends, peers, args, report))
    results = measure(contenders, f"{shown(size)} in {dtype}", threads, args, report)
    rows = make_rows(shown(size), results, baseline="copy")
    for row in rows:
        if row["contender"].endswith(", bare"):  # which has other bytes to move
            row.pop("ratio", None)
        else:
            row["bandwidth"] = pooling_bytes(which, N_GATES[args.pooling], grad_h) / row["fastest"]
    return rows


# --- layer -----------------------------------------------------------------------------------------------------------


def layer_contenders(layer: QRNNLayer, x: torch.Tensor, grad_h: torch.Tensor, which: str) -> Iterator[Contender]:
    """The product has its window ready: what the layer adds to it is the window and the recurrence."""
    weight, bias = layer.gate_proj.weight, layer.gate_proj.bias
    window = layer_window(x, layer.kernel_size).detach().requires_grad_()
    product = partial(F.linear, window, weight, bias)
    grad_product = torch.randn_like(product())
    yield differentiated("matrix product", which, product, [window, weight, bias], grad_product, is_ours=True)
    yield differentiated("QRNN layer", which, lambda: layer(x)[0], [x, weight, bias], grad_h, is_ours=True)
    for kind in (nn.LSTM, nn.GRU):
        peer = kind(x.shape[-1], x.shape[-1], batch_first=True, device=x.device, dtype=x.dtype)
        run = partial(first_output, peer, x)
        yield differentiated(f"nn.{kind.__name__}", which, run, [x, *peer.parameters()], grad_h)


def first_output(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return module(x)[0]


def make_layer_inputs(
    size: tuple[int, ...], args: argparse.Namespace, dtype: str
) -> tuple[QRNNLayer, torch.Tensor, torch.Tensor]:
    make: dict[str, Any] = {"device": args.device, "dtype": DTYPES[dtype]}
    layer = QRNNLayer(size[-1], size[-1], args.kernel_size, args.pooling, **make).eval()
    return layer, torch.randn(size, **make).requires_grad_(), torch.randn(size, **make)


def benchmark_layer(args: argparse.Namespace, report: "Report") -> None:
    """A layer as wide as its input, beside its matrix product alone and beside nn.LSTM and nn.GRU of that width."""
    verify_default_backend(args)
    for dtype, size in itertools.product(args.dtype, args.shapes):
        verify_layer(*make_layer_inputs(size, args, dtype))
    for which, dtype, threads in itertools.product(args.passes, args.dtype, args.threads):
        rows = []
        for size in args.shapes:
            contenders = list(layer_contenders(*make_layer_inputs(size, args, dtype), which))
            results = measure(contenders, f"{shown(size)} in {dtype}", threads, args, report)
            rows += make_rows(shown(size), results, baseline="matrix product")
        report.add(f"Layer, {which}, {setting(args, dtype, threads)}", rows, "ratio")


# --- language models -------------------------------------------------------------------------------------------------


def model_config(name: str, hidden_size: int, layers: int, args: argparse.Namespace) -> PreTrainedConfig:
    """The usual proportions of each architecture, with tied embeddings, without dropout, and without a last token."""
    shared: dict[str, Any] = {
        "vocab_size": args.vocab_size,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    positions = longest_text(args)
    if name == "GPT-2":
        dropout = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0)
        return GPT2Config(n_embd=hidden_size, n_layer=layers, n_head=8, n_positions=positions, **dropout, **shared)
    if name == "Llama":
        return LlamaConfig(
            hidden_size=hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=8,
            intermediate_size=8 * hidden_size // 3,
            max_position_embeddings=positions,
            **shared,
        )
    if name == "Mamba":
        return MambaConfig(hidden_size=hidden_size, num_hidden_layers=layers, **shared)
    if name == "Mamba2":
        heads = {"num_heads": 16, "head_dim": hidden_size // 8, "n_groups": 1}
        return Mamba2Config(hidden_size=hidden_size, num_hidden_layers=layers, **heads, **shared)
    return QRNNConfig(
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        connection="residual",
        intermediate_size=2 * hidden_size,
        **shared,
    )


def longest_text(args: argparse.Namespace) -> int:
    lengths = [*getattr(args, "lengths", []), *getattr(args, "contexts", []), *getattr(args, "depths", [])]
    return max(lengths) + getattr(args, "new_tokens", 0) + 1


def count_parameters(config: PreTrainedConfig) -> int:
    """All but GPT-2's table of positions, which grows with the text that it must hold and costs no time."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for name, parameter in model.named_parameters() if ".wpe." not in name)


def equal_config(name: str, n_parameters: int, args: argparse.Namespace) -> PreTrainedConfig:
    """The config of about so many parameters whose width is nearest to the QRNN's, with as many layers as it takes."""
    candidates = []
    first = max(16, round(args.hidden_size / 16) * 16)
    for hidden_size in sorted(range(max(16, first // 2), 2 * first, 16), key=lambda width: abs(width - first)):
        one, two = (count_parameters(model_config(name, hidden_size, layers, args)) for layers in (1, 2))
        layers = max(1, round((n_parameters - one) / (two - one)) + 1)
        error = abs(one + (layers - 1) * (two - one) - n_parameters) / n_parameters
        candidates.append((error, hidden_size, layers))
        if error < 0.02:
            break
    _, hidden_size, layers = min(candidates)
    return model_config(name, hidden_size, layers, args)


def build_models(args: argparse.Namespace, dtype: str, report: "Report") -> dict[str, PreTrainedModel]:
    """The QRNN, and the other models with as many parameters, all with random weights."""
    ours = model_config("QRNN", args.hidden_size, args.layers, args)
    n_parameters = count_parameters(ours)
    configs = {"QRNN": ours}
    configs |= {name: equal_config(name, n_parameters, args) for name in args.models if name != "QRNN"}
    models = {}
    for name, config in configs.items():
        models[name] = AutoModelForCausalLM.from_config(config).to(args.device, DTYPES[dtype]).eval()
        if args.weights_by_input:
            lay_weights_out_by_input(models[name])
        count = count_parameters(config)
        size = f"{config.num_hidden_layers} layer{'s' if config.num_hidden_layers > 1 else ''} of {config.hidden_size}"
        report.note(f"{name}: {count:,} parameters ({count / n_parameters - 1:+.1%}), {size}")
        if name.startswith("Mamba") and args.device == "cpu":
            report.note(f"{name}: its kernels are for a GPU, so here Transformers runs its loop over time")
    return models


def lay_weights_out_by_input(model: PreTrainedModel) -> None:
    """The same weights, but what belongs to one input lies side by side in memory, as in GPT-2's Conv1D."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = module.weight.data.t().contiguous().t()


def make_tokens(batch_size: int, seq_len: int, args: argparse.Namespace) -> torch.Tensor:
    return torch.randint(args.vocab_size, (batch_size, seq_len), device=args.device)


def gradients(model: PreTrainedModel, tokens: torch.Tensor) -> None:
    model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()


def training_step(model: PreTrainedModel, optimizer: torch.optim.Optimizer, tokens: torch.Tensor) -> None:
    gradients(model, tokens)
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def prefill(model: PreTrainedModel, tokens: torch.Tensor) -> Cache:
    """The cache after the tokens."""
    return model(input_ids=tokens, use_cache=True, logits_to_keep=1).cache


def generate(model: PreTrainedModel, new_tokens: int, tokens: torch.Tensor, **options: Any) -> Any:
    """Greedy, and exactly so many tokens."""
    return model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        use_cache=True,
        **options,
    )


def that_fit(
    models: dict[str, PreTrainedModel],
    run: Callable[[PreTrainedModel, torch.Tensor], Any],
    batch_size: int,
    seq_len: int,
    args: argparse.Namespace,
    report: "Report",
) -> dict[str, PreTrainedModel]:
    """The models whose memory for `run`, measured on one short text and scaled up, is there."""
    fitting = {}
    short = min(seq_len, 256)  # a chunk of Mamba2, which pads to whole ones
    for name, model in models.items():
        needed = peak_bytes(partial(run, model, make_tokens(1, short, args)), args.device)
        needed *= batch_size * math.ceil(seq_len / short)
        if needed < free_bytes(args.device):
            fitting[name] = model
        else:
            place = f"batch {batch_size} of {seq_len} tokens"
            report.leave_out(f"{name}, {place}", f"needs about {needed / 1e9:.0f} GB of memory")
    return fitting


def benchmark_training(args: argparse.Namespace, report: "Report") -> None:
    """One optimiser step (AdamW) of a whole language model, beside others of as many parameters."""
    verify_default_backend(args)
    for dtype in args.dtype:
        models = {name: model.train() for name, model in build_models(args, dtype, report).items()}
        optimizers = {name: torch.optim.AdamW(model.parameters()) for name, model in models.items()}
        for threads in args.threads:
            rows = []
            for batch_size, seq_len in itertools.product(args.batch_sizes, args.lengths):
                draw = partial(make_tokens, batch_size, seq_len, args)
                contenders = [
                    Contender(name, partial(training_step, model, optimizers[name]), draw, name == "QRNN")
                    for name, model in that_fit(models, gradients, batch_size, seq_len, args, report).items()
                ]
                place = f"batch {batch_size}, {seq_len} tokens"
                results = measure(contenders, place, threads, args, report)
                for result in results.values():
                    result["tokens_per_second"] = batch_size * seq_len / result["fastest"]
                rows += make_rows(place, results, baseline="QRNN")
            report.add(f"Training step, {setting(args, dtype, threads)}", rows, "tokens_per_second")


def benchmark_generation(args: argparse.Namespace, report: "Report") -> None:
    """generate() as a whole, beside other models of as many parameters, and the time per token far into a text."""
    verify_default_backend(args)
    for dtype in args.dtype:
        models = build_models(args, dtype, report)
        verify_generation(models["QRNN"], args)
        for threads in args.threads:
            for batch_size in args.batch_sizes:
                rows = time_generate(models, batch_size, threads, args, report)
                title = f"generate(), batch {batch_size}, {args.new_tokens} new tokens"
                report.add(f"{title}, {setting(args, dtype, threads)}", rows, "fastest")
            rows = time_depths(models, threads, args, report)
            report.add(f"Each token far into a text, batch 1, {setting(args, dtype, threads)}", rows, "per_token")


def time_generate(
    models: dict[str, PreTrainedModel], batch_size: int, threads: int, args: argparse.Namespace, report: "Report"
) -> list[dict[str, Any]]:
    rows = []
    for context in args.contexts:
        contenders = [
            Contender(
                name,
                partial(generate, model, args.new_tokens),
                partial(make_tokens, batch_size, context, args),
                name == "QRNN",
            )
            for name, model in that_fit(models, prefill, batch_size, context, args, report).items()
        ]
        results = measure(contenders, f"batch {batch_size}, prompt of {context}", threads, args, report)
        for result in results.values():
            result |= {"x": context, "tokens_per_second": batch_size * args.new_tokens / result["fastest"]}
        rows += make_rows(f"prompt of {context}", results, baseline="QRNN")
    return rows


def time_depths(
    models: dict[str, PreTrainedModel], threads: int, args: argparse.Namespace, report: "Report"
) -> list[dict[str, Any]]:
    """generate() going on from a cache: the depths of one model take turns."""
    rows = []
    fitting = {depth: that_fit(models, prefill, 1, depth, args, report) for depth in args.depths}
    for name, model in models.items():
        depths = {f"after {depth}": depth for depth in args.depths if name in fitting[depth]}
        contenders = [continuation(place, name, model, depth, args) for place, depth in depths.items()]
        results = measure(contenders, f"{name} far into a text", threads, args, report)
        for place, result in results.items():
            result |= {"x": depths[place], "per_token": result["fastest"] / args.new_tokens}
        of_model = make_rows(name, results, baseline=f"after {args.depths[0]}")
        rows += [row | {"case": row["contender"], "contender": name} for row in of_model]
    return rows


def continuation(place: str, name: str, model: PreTrainedModel, depth: int, args: argparse.Namespace) -> Contender:
    tokens = make_tokens(1, depth + 1, args)
    cache = prefill(model, tokens[:, :-1])
    # generate() cannot tell how much a cache of Mamba has seen, and would read all of it again.
    prompt = tokens[:, -1:] if all(cache.is_linear) else tokens

    def run(options: dict[str, Any]) -> torch.Tensor:
        return generate(model, args.new_tokens, prompt, **options)

    return Contender(place, run, partial(copy.deepcopy, {"cache": cache}), name == "QRNN")  # it grows in a run


# --- memory ----------------------------------------------------------------------------------------------------------


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors of a cache, however deep its layers hold them."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(item)
    elif isinstance(value, Cache | CacheLayerMixin | LinearAttentionCacheLayerMixin):
        yield from tensors_in(vars(value))


def benchmark_memory(args: argparse.Namespace, report: "Report") -> None:
    """What the recurrence keeps for its backward pass, and what generation holds: its state, and at most."""
    backends = available_backends(args, report)
    for dtype in args.dtype:
        rows = []
        for size in args.shapes:
            gate_logits, _ = make_pooling_inputs(size, args, dtype)
            gate_logits.requires_grad_()
            for backend in backends:
                n_bytes = saved_bytes(partial(pool, gate_logits, pooling=args.pooling, backend=backend))
                row = {"case": shown(size), "contender": label_of(backend), "saved_bytes": n_bytes}
                rows.append(row | {"baseline": "gate logits", "ratio": n_bytes / gate_logits.nbytes})
        report.add(f"Kept for backward by {args.pooling}-pooling, {dtype}", rows, "ratio")
        models = build_models(args, dtype, report)
        verify_generation(models["QRNN"], args)
        for batch_size in args.batch_sizes:
            rows = [
                generation_memory(name, model, batch_size, context, args)
                for context in args.contexts
                for name, model in that_fit(models, prefill, batch_size, context, args, report).items()
            ]
            title = f"generate(), batch {batch_size}, {args.new_tokens} new tokens, {dtype}"
            report.add(f"Memory of {title}", rows, "state_bytes", "peak_bytes")


def generation_memory(
    name: str, model: PreTrainedModel, batch_size: int, context: int, args: argparse.Namespace
) -> dict[str, Any]:
    tokens = make_tokens(batch_size, context, args)
    return {
        "case": f"prompt of {context}",
        "contender": name,
        "x": context,
        "state_bytes": sum(tensor.nbytes for tensor in tensors_in(prefill(model, tokens))),
        "peak_bytes": peak_bytes(partial(generate, model, args.new_tokens, tokens), args.device),
    }


# --- report ----------------------------------------------------------------------------------------------------------


def make_rows(case: str, results: dict[str, dict[str, Any]], baseline: str) -> list[dict[str, Any]]:
    if baseline in results:
        add_ratios(results, baseline)
    return [{"case": case, "contender": name, "baseline": baseline, **result} for name, result in results.items()]


def three_digits(value: float) -> str:
    digits = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:,.{max(0, digits)}f}"


# What a table shows of a row, in this order: the heading, the factor to its unit, and the format.
COLUMNS: dict[str, tuple[str, float, Callable[[float], str]]] = {
    "fastest": ("fastest, ms", 1e3, three_digits),
    "median": ("median, ms", 1e3, three_digits),
    "spread": ("spread, %", 1e2, "{:.0f}".format),
    "runs": ("runs", 1, "{:.0f}".format),
    "per_token": ("per token, ms", 1e3, three_digits),
    "tokens_per_second": ("tokens/s", 1, three_digits),
    "bandwidth": ("GB/s", 1e-9, three_digits),
    "saved_bytes": ("kept, MB", 1e-6, three_digits),
    "state_bytes": ("state, MB", 1e-6, three_digits),
    "peak_bytes": ("peak beyond the weights, MB", 1e-6, three_digits),
    "ratio": ("over", 1, "{:.3f}".format),
}


def heading(column: str, rows: Sequence[dict[str, Any]]) -> str:
    name = COLUMNS[column][0]
    return f"{name} {rows[0]['baseline']}" if column == "ratio" else name


def markdown_table(rows: Sequence[dict[str, Any]]) -> str:
    columns = [column for column in COLUMNS if any(column in row for row in rows)]
    lines = [
        ["size", "contender", *(heading(column, rows) for column in columns)],
        ["---", "---", *("---:" for _ in columns)],
    ]
    for row in rows:
        cells = [COLUMNS[name][2](row[name] * COLUMNS[name][1]) if name in row else "" for name in columns]
        lines.append([row["case"], row["contender"], *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


class Report:
    """Prints the tables as they come, and writes them down with where they came from."""

    def __init__(self) -> None:
        self.panels: list[dict[str, Any]] = []
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            print(text, flush=True)

    def leave_out(self, name: str, reason: object) -> None:
        kind = f"{type(reason).__name__}: " if isinstance(reason, Exception) else ""
        self.note(f"Left out: {name} ({kind}{' '.join(str(reason).split())})")

    def add(self, title: str, rows: list[dict[str, Any]], *plotted: str) -> None:
        if rows:
            self.panels.append({"title": title, "plotted": plotted, "rows": rows})
            print(f"\n{title}\n\n{markdown_table(rows)}\n", flush=True)

    def write(self, args: argparse.Namespace, environment: dict[str, Any]) -> None:
        stem = args.output_dir / args.command
        settings = {name: value for name, value in vars(args).items() if name not in ("command", "output_dir")}
        record = {
            "benchmark": args.command,
            "environment": environment,
            "settings": settings,
            "notes": self.notes,
            "panels": self.panels,
        }
        stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        tables = "\n\n".join(f"## {panel['title']}\n\n{markdown_table(panel['rows'])}" for panel in self.panels)
        notes = "\n".join(f"* {note}" for note in self.notes)
        facts = "\n".join(f"* {name}: {value}" for name, value in environment.items())
        sections = [f"# Benchmark: {args.command}", tables, f"## Notes\n\n{notes}", f"## Environment\n\n{facts}"]
        stem.with_suffix(".md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")
        draw(self.panels).savefig(stem.with_suffix(".png"), dpi=130)
        print("Written:", *(str(stem.with_suffix(suffix)) for suffix in (".json", ".md", ".png")))


def draw(panels: Sequence[dict[str, Any]]) -> Figure:
    """One picture of all panels: lines where a row has a place on an axis of tokens, bars otherwise."""
    pictures = [
        (panel, column)
        for panel in panels
        for column in panel["plotted"]
        if any(column in row for row in panel["rows"])  # ratios want their baseline
    ]
    width = min(2, len(pictures))
    height = math.ceil(len(pictures) / width)
    longest = max(len(panel["rows"]) for panel, _ in pictures)
    has_bars = any("x" not in panel["rows"][0] for panel, _ in pictures)
    tall = max(3.6, 1.2 + 0.27 * longest) if has_bars else 3.8
    figure = Figure(figsize=(6.5 * width, tall * height + 0.5), layout="constrained")
    contenders = dict.fromkeys(row["contender"] for panel, _ in pictures for row in panel["rows"])
    colors = {name: f"C{index % 10}" for index, name in enumerate(contenders)}
    handles: dict[str, Any] = {}
    for index, (panel, column) in enumerate(pictures):
        axes = figure.add_subplot(height, width, index + 1)
        draw_panel = draw_lines if "x" in panel["rows"][0] else draw_bars
        draw_panel(axes, panel["rows"], column, colors)
        axes.set_title(panel["title"], fontsize=10)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=min(6, len(handles)), edgecolor="none"
    )
    return figure


def draw_bars(axes: Axes, rows: Sequence[dict[str, Any]], column: str, colors: dict[str, str]) -> None:
    """A bar for each contender, grouped by size. Ratios of times start at 1 on a logarithmic axis."""
    is_ratio = column == "ratio" and "fastest" in rows[0]
    _, factor, written = COLUMNS[column]
    origin = 1.0 if is_ratio else 0.0
    rows = [row for row in rows if column in row and row["contender"] != (row["baseline"] if is_ratio else "")]
    places: list[float] = []
    ticks: dict[str, float] = {}
    for case, group in itertools.groupby(range(len(rows)), key=lambda index: rows[index]["case"]):
        members = [index + 0.7 * len(ticks) for index in group]  # a gap between sizes
        places += members
        ticks[case] = statistics.mean(members)
    for name in dict.fromkeys(row["contender"] for row in rows):
        bars = [
            (place, row[column] * factor) for place, row in zip(places, rows, strict=True) if row["contender"] == name
        ]
        lengths = [value - origin for _, value in bars]
        axes.barh([place for place, _ in bars], lengths, left=origin, height=0.85, color=colors[name], label=name)
        for place, value in bars:
            end = (max(value, origin), place)
            axes.annotate(written(value), end, xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    if is_ratio:
        axes.set_xscale("log")
        axes.axvline(1, color="black", linewidth=1)
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * (high / low) ** 0.15 if is_ratio else high * 1.15)  # room for the figures
    if is_ratio:
        tick_numbers(axes.xaxis)
    axes.set_yticks(list(ticks.values()), list(ticks), fontsize=9)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(f"fastest time {heading(column, rows)}" if is_ratio else heading(column, rows))


def tick_numbers(axis: Axis) -> None:
    """Plain numbers on a logarithmic axis, closer together where it is short."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 3, 5, 7) if high < 10 * low else (1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def draw_lines(axes: Axes, rows: Sequence[dict[str, Any]], column: str, colors: dict[str, str]) -> None:
    """A line for each model, over the tokens in front of what is generated."""
    _, factor, _ = COLUMNS[column]
    for name in dict.fromkeys(row["contender"] for row in rows):
        x, y = zip(*((row["x"], row[column] * factor) for row in rows if row["contender"] == name), strict=True)
        axes.plot(
            x, y, color=colors[name], marker="o", markersize=4, linewidth=3 if name == "QRNN" else 1.5, label=name
        )
    axes.set(xscale="log", yscale="log", xlabel="tokens in front", ylabel=heading(column, rows))
    axes.set_xticks(ticks := sorted({row["x"] for row in rows}), [f"{tick:,}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    tick_numbers(axes.yaxis)
    axes.grid(alpha=0.3)


# --- environment -----------------------------------------------------------------------------------------------------


def first_match(pattern: str, path: str) -> str:
    """What a file of the Linux kernel says; nothing on other systems."""
    try:
        found = re.search(pattern, Path(path).read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return ""
    return found.group(1).strip() if found else ""


def version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def git_commit() -> str:
    """The commit of this tree, marked if the tree differs from it; nothing outside a clone."""
    try:
        run = partial(subprocess.run, cwd=ROOT, capture_output=True, text=True, check=True)
        commit = run(["git", "rev-parse", "HEAD"]).stdout.strip()
        changed = run(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{commit} with changes" if changed else commit


def describe_environment(argv: Sequence[str]) -> dict[str, Any]:
    flags = first_match(r"^flags\s*:(.*)$", "/proc/cpuinfo").split()
    caches = [f"/sys/devices/system/cpu/cpu0/cache/index{index}" for index in range(4)]
    environment: dict[str, Any] = {
        "command": shlex.join(["python", "scripts/benchmark.py", *argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git commit": git_commit(),
        "CPU": first_match(r"^model name\s*:(.*)$", "/proc/cpuinfo") or platform.processor(),
        "cores": os.cpu_count(),
        "caches": ", ".join(
            f"L{first_match('(.*)', cache + '/level')} {first_match('(.*)', cache + '/size')}" for cache in caches
        ),
        "vector instructions": " ".join(flag for flag in flags if flag.startswith(("avx", "amx"))),
        "CPU capability of torch": torch.backends.cpu.get_cpu_capability(),
        "memory": first_match(r"^MemTotal:\s*(.*)$", "/proc/meminfo"),
        "system": platform.platform(),
        "Python": platform.python_version(),
        **{package: version_of(package) for package in ("torch", "transformers", "numba", "triton")},
        "load average at the end": " ".join(f"{load:.1f}" for load in os.getloadavg())
        if hasattr(os, "getloadavg")
        else "",
        **{name: value for name, value in os.environ.items() if name.startswith(("OMP_", "MKL_", "TRITON_"))},
    }
    if torch.cuda.is_available():
        environment |= {"GPU": torch.cuda.get_device_name(), "CUDA": torch.version.cuda}
    return environment


COMMANDS: dict[str, Callable[[argparse.Namespace, Report], None]] = {
    "pooling": benchmark_pooling,
    "layer": benchmark_layer,
    "training": benchmark_training,
    "generation": benchmark_generation,
    "memory": benchmark_memory,
}


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = parse_arguments(argv)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler announces itself on stderr
    transformers.logging.set_verbosity_error()  # Mamba without its kernels warns at each call
    torch.manual_seed(args.seed)
    try:
        args.output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"benchmark.py: error: --output-dir: {error}")
    report = Report()
    try:
        COMMANDS[args.command](args, report)
    except WrongResult as error:
        sys.exit(f"benchmark.py: error: {error}; nothing that follows is timed")
    if not report.panels:
        sys.exit("benchmark.py: error: nothing was left to measure")
    report.write(args, describe_environment(argv))


if __name__ == "__main__":
    main()
