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
"""The rows that the programs train on: the splits of a dataset on the Hub, or files."""

import zlib
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import datasets
import pandas as pd

from command_line import one_line_error, stop


SPLITS = ("train", "validation", "test")
FORMATS = {".txt": "text", ".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
ENCODING = "utf-8-sig"  # a byte order mark is no text

CHOOSE_COLUMN = "the options that end in -column choose others"
SHOWN = 100  # characters of either end of a cell that cannot be read

UNREADABLE = OSError, ValueError, RuntimeError, EOFError, zlib.error  # what files raise that are not what they seem


@dataclass
class SourceArguments:
    """Where the rows come from."""

    _argument_group_name = "data"

    dataset: str | None = field(
        default=None, metadata={"help": "A dataset on the Hub, or a folder, in place of files."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "The configuration of --dataset."})
    validation_split: str | None = field(
        default=None,
        metadata={
            "help": "The split of --dataset for validation: by default `validation`, if there is one; or `none`."
        },
    )
    test_split: str | None = field(
        default=None,
        metadata={"help": "The same for the test, by default `test`; give `none` where its labels are kept back."},
    )
    train_file: str | None = field(
        default=None, metadata={"help": "A file: .txt (UTF-8), .csv, .json, .jsonl or .parquet, also with .gz."}
    )
    validation_file: str | None = field(default=None, metadata={"help": "The same, for validation."})
    test_file: str | None = field(default=None, metadata={"help": "The same, for the test."})
    validation_share: float = field(
        default=0.0, metadata={"help": "Hold out so much of the training rows for validation, drawn at random."}
    )


@dataclass
class TextArguments(SourceArguments):
    """Where the texts come from, and how they become tokens."""

    text_column: str = field(default="text", metadata={"help": "The column with the text."})
    tokenizer: str = field(
        default="word",
        metadata={"help": "`word`, `character` or `bpe`, trained here; or the name of one on the Hub, or its folder."},
    )
    vocab_size: int = field(
        default=1_000_000,
        metadata={
            "help": "Most tokens of a tokenizer that is trained here; give `bpe` fewer, or it learns whole words."
        },
    )
    min_frequency: int = field(
        default=1,
        metadata={
            "help": "Words (or characters) that are rarer than this in these texts are unknown. If none is, training "
            "does not show what an unknown one means. Of no effect with a tokenizer that is given."
        },
    )
    vocabulary_from: Literal["train", "all"] = field(
        default="train",
        metadata={"help": "Splits to train the tokenizer on; `all` has it read validation and test, too."},
    )


def check_text_arguments(data: TextArguments) -> None:
    check_source_arguments(data)
    if data.vocab_size < 2:
        stop(f"--vocab-size must be at least 2, got {data.vocab_size}")
    if data.min_frequency < 1:
        stop(f"--min-frequency must be at least 1, got {data.min_frequency}")
    if data.min_frequency > 1 and data.tokenizer not in ("word", "character"):
        stop(f"--min-frequency must be 1 with --tokenizer {data.tokenizer}, got {data.min_frequency}")


def check_source_arguments(data: SourceArguments) -> None:
    if (data.dataset is None) == (data.train_file is None):
        stop("give either --train-file or --dataset")
    if data.dataset is not None and (data.validation_file is not None or data.test_file is not None):
        stop("--validation-file and --test-file go with --train-file: a --dataset has splits of its own")
    of_dataset = {name: getattr(data, name) for name in ("dataset_config", "validation_split", "test_split")}
    for name, value in of_dataset.items():
        if value is not None and data.dataset is None:
            stop(f"--{name.replace('_', '-')} goes with --dataset")
    if not 0 <= data.validation_share < 1:
        stop(f"--validation-share must be in [0, 1), got {data.validation_share}")
    for split in SPLITS:
        path = getattr(data, f"{split}_file")
        if path is not None and not Path(path).is_file():
            stop(f"there is no file {path!r}")


def read_splits(data: SourceArguments, sample_by: str = "line") -> dict[str, tuple[str, Iterable[dict]]]:
    """The name and the rows of each split; a row of a text file is a line, or the whole `document`."""
    if data.dataset is not None:
        with one_line_error(f"--dataset {data.dataset}", *UNREADABLE):
            splits = datasets.load_dataset(data.dataset, data.dataset_config, streaming=True)
        names = choose_splits(data, list(splits))
        return {split: (f"{data.dataset}, {name}", splits[name]) for split, name in names.items()}
    files = {split: getattr(data, f"{split}_file") for split in SPLITS}
    return {split: (path, open_file(path, sample_by)) for split, path in files.items() if path is not None}


def choose_splits(data: SourceArguments, available: Sequence[str]) -> dict[str, str]:
    """Which split of the dataset is for training, which for validation and which for the test."""
    chosen = {"train": "train", "validation": data.validation_split, "test": data.test_split}
    for name in filter(None, chosen.values()):
        if name not in (*available, "none"):
            stop(f"--dataset {data.dataset}: there is no {name} split; the splits are {', '.join(available)}")
    names = {split: split if name is None else name for split, name in chosen.items()}
    return {split: name for split, name in names.items() if name in available and name != "none"}


def held_out_splits(splits: Container[str]) -> list[str]:
    """Those of validation and test that there are, in this order."""
    return [split for split in SPLITS[1:] if split in splits]


def open_file(path: str, sample_by: str) -> Iterable[dict]:
    suffix = Path(path.removesuffix(".gz")).suffix
    if suffix not in FORMATS:
        stop(f"{path}: the name must end in {', '.join(FORMATS)} or one of these and .gz")
    if suffix == ".csv":
        return datasets.IterableDataset.from_generator(read_csv, gen_kwargs={"path": path})
    options = {"encoding": ENCODING, "sample_by": sample_by} if suffix == ".txt" else {}
    with one_line_error(path, *UNREADABLE):
        try:
            return datasets.load_dataset(FORMATS[suffix], data_files=path, split="train", streaming=True, **options)
        except StopIteration as error:  # what `datasets` raises for an empty .json or .jsonl
            raise ValueError("there are no rows") from error


def read_csv(path: str) -> Iterator[dict[str, str | None]]:
    """The rows of a table, each cell a text, or none if it is empty: also a number, and words like "NA" and "null"."""
    check_header(path)
    options = {"dtype": str, "keep_default_na": False, "na_values": [""], "encoding": ENCODING}
    with pd.read_csv(path, chunksize=10_000, **options) as frames:
        for frame in frames:
            refuse_index(frame)
            yield from frame.astype(object).where(frame.notna(), None).to_dict("records")


def check_header(path: str | Path) -> None:
    """Refuse a CSV file two of whose columns have one name: pandas would give the second another.

    Raises:
        ValueError: which tells the names.
    """
    options = {"dtype": str, "keep_default_na": False, "encoding": ENCODING}
    (names,) = pd.read_csv(path, header=None, nrows=1, **options).to_numpy().tolist()
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise ValueError(f"columns that stand twice: {', '.join(map(repr, twice))}")


def refuse_index(frame: pd.DataFrame) -> None:
    """Refuse the frame of a CSV file whose rows have more cells than its header: pandas takes the first for an index.

    Raises:
        ValueError: which tells how many more.
    """
    if not isinstance(frame.index, pd.RangeIndex):
        more = frame.index.nlevels
        raise ValueError(f"row 1 has {more} cell{'s' if more > 1 else ''} more than the header")


def read_columns(name: str, rows: Iterable[dict], readers: dict[str, Callable[[Any], Any]]) -> dict[str, list]:
    """What some columns hold, each cell as its reader gives it back.

    A mistake, which a reader tells by a ValueError, ends the program with the name and the row.
    """
    columns: dict[str, list] = {column: [] for column in readers}
    with one_line_error(name, *UNREADABLE):
        for number, row in enumerate(rows, start=1):
            for column, read in readers.items():
                if column not in row:
                    columns_there = ", ".join(map(repr, row))
                    raise ValueError(
                        f"there is no column {column!r}; the columns are {columns_there} ({CHOOSE_COLUMN})"
                    )
                try:
                    columns[column].append(read(row[column]))
                except ValueError as error:
                    what = shorten(str(error))
                    raise ValueError(f"row {number}: column {column!r} holds {what}") from error
        if not any(columns.values()):
            raise ValueError("there are no rows")
    return columns


def feature_of(rows: Any, column: str) -> Any:
    """The type of a column as the data set declares it, if it does."""
    return (rows.features or {}).get(column)


def shorten(text: str) -> str:
    """Both ends of a long text: a cell may hold a whole book."""
    return text if len(text) <= 2 * SHOWN else f"{text[:SHOWN]} ... {text[-SHOWN:]}"


def read_column(name: str, rows: Iterable[dict], column: str) -> list[str]:
    """The texts of one column."""
    return read_columns(name, rows, {column: read_text})[column]


def read_text(cell: Any) -> str:
    if not isinstance(cell, str):
        raise ValueError(f"{cell!r}, which is no text")
    return cell


def read_text_with_words(cell: Any) -> str:
    if not read_text(cell).strip():
        raise ValueError(f"{cell!r}, which has no words")
    return cell


def describe_source(data: SourceArguments) -> str:
    if data.dataset is not None:
        return f"the dataset `{data.dataset}`"
    files = (getattr(data, f"{split}_file") for split in SPLITS)
    return ", ".join(f"`{Path(path).name}`" for path in files if path is not None)
