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
"""What the benchmark shows of its rows: tables as they come, and in the end a record and a picture."""

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator


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
        figure = draw(self.panels)
        if figure is None:
            stem.with_suffix(".png").unlink(missing_ok=True)  # of an earlier run
        else:
            figure.savefig(stem.with_suffix(".png"), dpi=130)
        written = (stem.with_suffix(suffix) for suffix in (".json", ".md", ".png"))
        print("Written:", *(str(path) for path in written if path.exists()))


def rows_to_plot(rows: Sequence[dict[str, Any]], column: str) -> list[dict[str, Any]]:
    """Those with a figure, and not the baseline of a ratio, which is 1. Without its baseline a ratio has none."""
    return [
        row for row in rows if column in row and not (is_ratio(row, column) and row["contender"] == row["baseline"])
    ]


def is_ratio(row: dict[str, Any], column: str) -> bool:
    """Whether the column is a ratio of times."""
    return column == "ratio" and "fastest" in row


def draw(panels: Sequence[dict[str, Any]]) -> Figure | None:
    """One picture of all panels, if any: lines where a row has a place on an axis of tokens, bars otherwise."""
    pictures = [
        (panel, column) for panel in panels for column in panel["plotted"] if rows_to_plot(panel["rows"], column)
    ]
    if not pictures:
        return None
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
    _, factor, written = COLUMNS[column]
    rows = rows_to_plot(rows, column)
    of_times = is_ratio(rows[0], column)
    origin = 1.0 if of_times else 0.0
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
    if of_times:
        axes.set_xscale("log")
        axes.axvline(1, color="black", linewidth=1)
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * (high / low) ** 0.15 if of_times else high * 1.15)  # room for the figures
    if of_times:
        tick_numbers(axes.xaxis)
    axes.set_yticks(list(ticks.values()), list(ticks), fontsize=9)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(f"fastest time {heading(column, rows)}" if of_times else heading(column, rows))


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
