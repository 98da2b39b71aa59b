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
"""The time and the memory of contenders, which take turns."""

import argparse
import gc
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmark_report import Report


SHORTEST_SAMPLE = 1e-3  # seconds; what is faster runs several times within one sample
FLUSH_BYTES = 2**30  # rewritten before each run on a GPU: far more than its L2, and long enough to hide the launch


@dataclass
class Contender:
    """Something to time: `run` gets what `setup`, which is not timed, has made for it."""

    name: str
    run: Callable[[Any], Any]
    setup: Callable[[], Any] = lambda: None
    is_ours: bool = False


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


def make_rows(case: str, results: dict[str, dict[str, Any]], baseline: str) -> list[dict[str, Any]]:
    if baseline in results:
        add_ratios(results, baseline)
    return [{"case": case, "contender": name, "baseline": baseline, **result} for name, result in results.items()]


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
    contenders: Iterable[Contender], timer: Callable[[Contender, int], float], place: str, report: Report
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


def precision_of(args: argparse.Namespace) -> str:
    """How float32 is multiplied; commands without products have no such option."""
    return getattr(args, "float32_matmul_precision", "highest")


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
    contenders: Sequence[Contender], place: str, threads: int, args: argparse.Namespace, report: Report
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
