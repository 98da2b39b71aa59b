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
"""What the programs that train language models share: the unit of the loss, the curve, the sample."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline, set_seed


def bits(nats: float, n_parts: int) -> float:
    """What so many nats are in bits for each part: each byte, character or token."""
    return nats / math.log(2) / n_parts


def plot_loss(
    trained: Sequence[tuple[float, float]],
    measured: Sequence[tuple[float, float]],
    unit: str,
    path: Path,
    baselines: dict[str, float] | None = None,
) -> None:
    """Training and held-out loss over the steps, each a list of (step, loss), beside constant baselines."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*trained, strict=True), color="tab:blue", label="training (with dropout)")
    label = f"held out: {measured[-1][1]:.2f}"
    axes.plot(*zip(*measured, strict=True), color="tab:orange", marker="o", markersize=4, label=label)
    for (name, value), linestyle in zip((baselines or {}).items(), ("--", ":"), strict=False):
        axes.axhline(value, color="dimgray", linestyle=linestyle, label=f"held out, {name}: {value:.2f}")
    axes.set(xlabel="step", ylabel=unit, title="Loss of the QRNN language model")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(edgecolor="none", framealpha=0.9)
    figure.savefig(path, dpi=150)


def write_sample(folder: Path, prompt: str, seed: int, max_new_tokens: int = 120) -> str:
    """Load the saved model as anyone would, and let it continue the prompt."""
    generator = pipeline(
        "text-generation",
        model=AutoModelForCausalLM.from_pretrained(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
    )
    set_seed(seed)
    (output,) = generator(prompt, max_new_tokens=max_new_tokens, do_sample=True, temperature=0.8, top_p=0.95)
    return output["generated_text"]


def describe_device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    n_threads = torch.get_num_threads()
    return f"CPU, {n_threads} thread{'s' if n_threads > 1 else ''}"
