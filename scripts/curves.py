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
"""The curves of a run, as pictures."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure


Points = Sequence[tuple[float, float]]


def points(history: Iterable[dict], name: str) -> Points:
    """What the trainer's log holds of one figure: (step, value)."""
    return [(entry["step"], entry[name]) for entry in history if name in entry]


def plot_loss(
    trained: Points,
    measured: Points,
    unit: str,
    path: Path,
    baselines: dict[str, float] | None = None,
    title: str = "Loss of the QRNN language model",
) -> None:
    """Training and held-out loss over the steps, beside constant baselines."""
    if not trained and not measured:
        return
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    draw_loss(axes, trained, measured)
    for (name, value), linestyle in zip((baselines or {}).items(), ("--", ":"), strict=False):
        axes.axhline(value, color="dimgray", linestyle=linestyle, label=f"held out, {name}: {value:.2f}")
    finish(axes, unit, title)
    figure.savefig(path, dpi=150)


def plot_training(history: Sequence[dict], metric: str, path: Path, choose: Callable = max) -> None:
    """Training and held-out loss over the steps, and the held-out metric if it was measured on the way.

    `choose` tells the best value of the metric.
    """
    trained, losses, values = (points(history, name) for name in ("loss", "eval_loss", f"eval_{metric}"))
    if not trained and not losses:
        return
    figure = Figure(figsize=(10 if values else 6, 4.2), layout="constrained")
    panels = figure.subplots(1, 2 if values else 1, squeeze=False)[0]
    draw_loss(panels[0], trained, losses)
    finish(panels[0], "nats", "Loss")
    if values:
        draw_metric(panels[1], values, choose)
        finish(panels[1], metric.replace("_", " "), f"Held-out {metric.replace('_', ' ')}")
    figure.savefig(path, dpi=150)


def plot_forecaster(history: Sequence[dict], path: Path) -> None:
    """Training and held-out loss of a model of time series over the steps."""
    trained, measured = points(history, "loss"), points(history, "eval_loss")
    unit = "loss, in units of the training rows"
    plot_loss(trained, measured, unit, path, title="Loss of the QRNN that forecasts")


def draw_loss(axes: Axes, trained: Points, measured: Points) -> None:
    """Either may be missing: a run may be shorter than --logging-steps, or not be measured on the way."""
    if trained:
        axes.plot(*zip(*trained, strict=True), color="tab:blue", label="training (with dropout)")
    if measured:
        label = f"held out: {measured[-1][1]:.2f}"
        axes.plot(*zip(*measured, strict=True), color="tab:orange", marker="o", markersize=4, label=label)


def draw_metric(axes: Axes, measured: Points, choose: Callable) -> None:
    best_step, best = choose(measured, key=lambda point: point[1])
    axes.plot(*zip(*measured, strict=True), color="tab:orange", marker="o", markersize=4, label="held out")
    axes.plot(best_step, best, color="tab:red", marker="o", linestyle="", label=f"best: {best:.4f}")


def finish(axes: Axes, unit: str, title: str) -> None:
    axes.set(xlabel="step", ylabel=unit, title=title)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(edgecolor="none", framealpha=0.9)
