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
"""Labels as data sets hold them (named numbers, bare numbers or names), and as a model does."""

from collections.abc import Iterable, Sequence
from typing import Any

from datasets import ClassLabel

from command_line import stop


def read_label(cell: Any, feature: Any = None, known: Sequence[str] | None = None) -> str:
    """The name of the label in a cell of a column with this feature.

    Raises:
        ValueError: for what is no label, or not among the known ones.
    """
    if isinstance(cell, float) and cell.is_integer():  # a column of whole numbers with a gap is read as floats
        cell = int(cell)
    is_label = isinstance(cell, (int, str)) and cell != ""
    if isinstance(feature, ClassLabel):
        is_label = isinstance(cell, int) and 0 <= cell < len(feature.names)
    if not is_label:
        raise ValueError(f"{cell!r}, which is no label")
    name = feature.names[cell] if isinstance(feature, ClassLabel) else str(cell)
    if known is not None and name not in known:
        raise ValueError(f"the label {name!r}, which the training split has not: {', '.join(known)}")
    return name


def all_names(names: Iterable[str], feature: Any = None) -> list[str]:
    """The names of all labels, in the order of their numbers: as the data set declares them, or as they are met."""
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    return sorted(set(names), key=lambda name: (0, int(name), name) if is_number(name) else (1, 0, name))


def names_of(labels: Iterable[str], feature: Any, column: str, what: str = "label") -> list[str]:
    """The names of all labels of a column, which must hold two at least; `what` is the word for one of them."""
    names = all_names(labels, feature)
    if len(names) < 2:
        stop(f"{column} holds one {what} only, {names[0]!r}")
    return names


def is_number(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def config_names(names: Sequence[str]) -> dict[str, dict]:
    """The labels as a model's configuration holds them."""
    label2id = {name: number for number, name in enumerate(names)}
    return {"num_labels": len(names), "id2label": dict(enumerate(names)), "label2id": label2id}
