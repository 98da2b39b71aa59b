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
import importlib
import itertools
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionCacheLayerMixin

from benchmark_environment import describe_environment, free_bytes
from benchmark_measuring import Contender, differentiated, make_rows, measure, peak_bytes, precision_of, saved_bytes
from benchmark_models import (
    MODELS,
    build_models,
    generate,
    gradients,
    make_tokens,
    models_that_fit,
    prefill,
    training_step,
)
from benchmark_report import Report
from command_line import OneLineParser, positive_int
from modeling_qrnn import QRNNLayer, recurrent_pooling
from modeling_qrnn.pooling_qrnn import GATES


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}  # relative to the largest value
BACKENDS = ("numba", "triton", "torch", "reference")
PASSES = ("forward", "backward", "forward+backward")
# Recurrences of others, by the module and the function to import; all on a GPU.
PEER_RECURRENCES = {
    "fla chunk_hgrn": ("fla.ops.hgrn", "chunk_hgrn"),
    "fla fused_recurrent_hgrn": ("fla.ops.hgrn", "fused_recurrent_hgrn"),
    "accelerated-scan warp": ("accelerated_scan.warp", "scan"),
    "accelerated-scan scalar": ("accelerated_scan.scalar", "scan"),
}

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
    "pooling": {"choices": GATES, "help": "recurrent pooling"},
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


def setting(args: argparse.Namespace, dtype: str, threads: int) -> str:
    if dtype == "float32" and precision_of(args) != "highest":
        dtype = f"float32 ({precision_of(args)} precision of products)"
    if args.device == "cuda":
        return f"{dtype}, {torch.cuda.get_device_name()}"
    return f"{dtype}, {threads} thread{'s' if threads > 1 else ''}"


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
    for pooling, gates in GATES.items():
        gate_logits = torch.randn(batch_size, seq_len, len(gates) * hidden_size, device=device).to(dtype)
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


def available_backends(args: argparse.Namespace, report: Report) -> list[str]:
    """Those of `--backends` that run on the device, each verified in every dtype."""
    backends = []
    for backend in args.backends:
        try:
            recurrent_pooling(torch.zeros(1, 2, len(GATES["fo"]) * 4, device=args.device), backend=backend)
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


def load_peer_recurrences(args: argparse.Namespace, report: Report) -> dict[str, Callable[..., Any]]:
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
    for dtype in (DTYPES[dtype_name] for dtype_name in args.dtype):
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
    report: Report,
) -> Iterator[Contender]:
    n_bytes = pooling_bytes(which, len(GATES[args.pooling]), grad_h)
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
    width = len(GATES[args.pooling]) * hidden_size
    make: dict[str, Any] = {"device": args.device, "dtype": DTYPES[dtype]}
    return torch.randn(batch_size, seq_len, width, **make), torch.randn(batch_size, seq_len, hidden_size, **make)


def benchmark_pooling(args: argparse.Namespace, report: Report) -> None:
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


def runs_at_size(backend: str, size: tuple[int, ...], dtype: str, args: argparse.Namespace, report: Report) -> bool:
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
    report: Report,
) -> list[dict[str, Any]]:
    gate_logits, grad_h = make_pooling_inputs(size, args, dtype)
    contenders = list(pooling_contenders(gate_logits, grad_h, which, backends, peers, args, report))
    results = measure(contenders, f"{shown(size)} in {dtype}", threads, args, report)
    rows = make_rows(shown(size), results, baseline="copy")
    for row in rows:
        if row["contender"].endswith(", bare"):  # which has other bytes to move
            row.pop("ratio", None)
        else:
            row["bandwidth"] = pooling_bytes(which, len(GATES[args.pooling]), grad_h) / row["fastest"]
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


def benchmark_layer(args: argparse.Namespace, report: Report) -> None:
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


def benchmark_training(args: argparse.Namespace, report: Report) -> None:
    """One optimiser step (AdamW) of a whole language model, beside others of as many parameters."""
    verify_default_backend(args)
    for dtype in args.dtype:
        models = {name: model.train() for name, model in build_models(args, DTYPES[dtype], report).items()}
        optimizers = {name: torch.optim.AdamW(model.parameters()) for name, model in models.items()}
        for threads in args.threads:
            rows = []
            for batch_size, seq_len in itertools.product(args.batch_sizes, args.lengths):
                draw = partial(make_tokens, batch_size, seq_len, args)
                contenders = [
                    Contender(name, partial(training_step, model, optimizers[name]), draw, name == "QRNN")
                    for name, model in models_that_fit(models, gradients, batch_size, seq_len, args, report).items()
                ]
                place = f"batch {batch_size}, {seq_len} tokens"
                results = measure(contenders, place, threads, args, report)
                for result in results.values():
                    result["tokens_per_second"] = batch_size * seq_len / result["fastest"]
                rows += make_rows(place, results, baseline="QRNN")
            report.add(f"Training step, {setting(args, dtype, threads)}", rows, "tokens_per_second")


def benchmark_generation(args: argparse.Namespace, report: Report) -> None:
    """generate() as a whole, beside other models of as many parameters, and the time per token far into a text."""
    verify_default_backend(args)
    for dtype in args.dtype:
        models = build_models(args, DTYPES[dtype], report)
        verify_generation(models["QRNN"], args)
        for threads in args.threads:
            for batch_size in args.batch_sizes:
                rows = time_generate(models, batch_size, threads, args, report)
                title = f"generate(), batch {batch_size}, {args.new_tokens} new tokens"
                report.add(f"{title}, {setting(args, dtype, threads)}", rows, "fastest")
            rows = time_depths(models, threads, args, report)
            report.add(f"Each token far into a text, batch 1, {setting(args, dtype, threads)}", rows, "per_token")


def time_generate(
    models: dict[str, PreTrainedModel], batch_size: int, threads: int, args: argparse.Namespace, report: Report
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
            for name, model in models_that_fit(models, prefill, batch_size, context, args, report).items()
        ]
        results = measure(contenders, f"batch {batch_size}, prompt of {context}", threads, args, report)
        for result in results.values():
            result |= {"x": context, "tokens_per_second": batch_size * args.new_tokens / result["fastest"]}
        rows += make_rows(f"prompt of {context}", results, baseline="QRNN")
    return rows


def time_depths(
    models: dict[str, PreTrainedModel], threads: int, args: argparse.Namespace, report: Report
) -> list[dict[str, Any]]:
    """generate() going on from a cache: the depths of one model take turns."""
    rows = []
    fitting = {depth: models_that_fit(models, prefill, 1, depth, args, report) for depth in args.depths}
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


def benchmark_memory(args: argparse.Namespace, report: Report) -> None:
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
        models = build_models(args, DTYPES[dtype], report)
        verify_generation(models["QRNN"], args)
        for batch_size in args.batch_sizes:
            rows = [
                generation_memory(name, model, batch_size, context, args)
                for context in args.contexts
                for name, model in models_that_fit(models, prefill, batch_size, context, args, report).items()
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


# --- program ---------------------------------------------------------------------------------------------------------


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
