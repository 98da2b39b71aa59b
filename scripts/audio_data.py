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
"""The recordings that the programs train on: rows with samples, with paths of WAV files, or with audio of the Hub."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import numpy as np
import pyarrow as pa
import yaml
from datasets import Audio, Dataset, concatenate_datasets
from scipy.signal import resample_poly

from command_line import one_line_error, stop
from text_data import SourceArguments, check_source_arguments, feature_of, read_columns
from wav import open_wav


# Beyond these, what a column holds is something else.
FASTEST = 1_000_000  # samples a second
LOUDEST = 8.0  # floating-point samples lie between -1 and 1, or a little beyond where recordings were mixed

SLOWEST_SPEED, FASTEST_SPEED = 0.5, 2.0  # of what is still a voice like others


@dataclass
class AudioArguments(SourceArguments):
    """Where the recordings come from."""

    audio_column: str = field(
        default="audio",
        metadata={"help": "The column with the audio: lists of samples, audio of the Hub, or paths of WAV files."},
    )
    sampling_rate_column: str = field(
        default="sampling_rate", metadata={"help": "The column with the sampling rate of lists of samples, in Hz."}
    )
    sampling_rate: int | None = field(
        default=None, metadata={"help": "The rate that all recordings must have; by default that of the first."}
    )
    speeds: str = field(
        default="[]",
        metadata={"help": "Train on each recording at these speeds, too, which move its pitch as well: `[0.9, 1.1]`."},
    )


def check_audio_arguments(data: AudioArguments) -> None:
    check_source_arguments(data)
    if data.sampling_rate is not None and data.sampling_rate < 1:
        stop(f"--sampling-rate must be at least 1, got {data.sampling_rate}")
    speeds_of(data)


def speeds_of(data: AudioArguments) -> list[float]:
    """The speeds, which are written as YAML."""
    with one_line_error(f"--speeds {data.speeds}", ValueError, yaml.YAMLError):
        speeds = yaml.safe_load(data.speeds)
        if not isinstance(speeds, list):
            raise ValueError("this is no list")
        for speed in speeds:
            is_number = isinstance(speed, (int, float)) and SLOWEST_SPEED <= speed <= FASTEST_SPEED
            if not is_number or speed == 1 or round(speed, 2) != speed:
                raise ValueError(
                    f"{speed!r} is no number in [{SLOWEST_SPEED}, {FASTEST_SPEED}] of two decimals and other than 1"
                )
    return speeds


class StoredAudio(Audio):
    """An `Audio` column left as stored: `datasets` needs torchcodec for its own, even with `decode=False`."""

    def encode_example(self, value: Any) -> Any:
        return value


class AudioReader:
    """Reads rows of recordings, which must all have one sampling rate, as float32 between -1 and 1."""

    def __init__(self, data: AudioArguments):
        self.column, self.rate_column = data.audio_column, data.sampling_rate_column
        self.root = data.dataset
        self.sampling_rate = data.sampling_rate

    def read_columns(self, name: str, rows: Any, readers: dict[str, Callable[[Any], Any]]) -> dict[str, list]:
        """The audio and what the readers read; mistakes end the program, as `text_data.read_columns` says."""
        if isinstance(feature_of(rows, self.column), Audio):
            rows = rows.cast_column(self.column, StoredAudio(decode=False))
        folder = Path(name).parent if self.root is None else Path(self.root)
        readers = {self.column: lambda cell: self._read(*cell, folder), **readers}
        return read_columns(name, self._with_rates(rows), readers)

    def _with_rates(self, rows: Iterable[dict]) -> Iterator[dict]:
        """Rows whose audio comes with the rate that its row tells, if it tells one."""
        for row in rows:
            if self.column in row:
                row = {**row, self.column: (row[self.column], row.get(self.rate_column))}
            yield row

    def _read(self, cell: Any, rate: Any, folder: Path) -> np.ndarray:
        """One recording.

        Raises:
            ValueError: for what is none, or has another rate than those before.
        """
        if isinstance(cell, str) and cell:
            samples, rate = read_path(folder / cell, cell)
        elif isinstance(cell, dict) and cell.get("bytes") is not None:
            samples, rate = read_wav(BytesIO(cell["bytes"]), cell.get("path") or "audio")
        elif isinstance(cell, dict) and cell.get("path"):
            samples, rate = read_path(cell["path"], cell["path"])
        elif isinstance(cell, list):
            samples, rate = read_samples(cell), self._read_rate(rate)
        else:
            raise ValueError(f"{cell!r}, which is neither a list of samples nor the path of a WAV file")
        if not samples.size:
            raise ValueError("a recording without samples")
        self.sampling_rate = self.sampling_rate or rate
        if rate != self.sampling_rate:
            raise ValueError(f"a recording of {rate} Hz, and {self.sampling_rate} Hz are needed: resample it first")
        return samples

    def _read_rate(self, rate: Any) -> int:
        """The rate of bare samples."""
        rate = self.sampling_rate if rate is None else rate
        if rate is None:
            raise ValueError(f"bare samples: give their rate in a column {self.rate_column!r} or by --sampling-rate")
        if not isinstance(rate, (int, float)) or not 1 <= rate <= FASTEST or rate != int(rate):
            raise ValueError(f"samples whose rate is {rate!r}, which is no number of Hz")
        return int(rate)


def read_samples(cell: list) -> np.ndarray:
    """The samples of a list: whole numbers are those of 16 bits, others lie between -1 and 1."""
    if any(isinstance(sample, list) for sample in cell):
        raise ValueError("lists within a list, and one channel is needed: mix them first")
    if all(type(sample) is int for sample in cell):
        if not all(-32768 <= sample < 32768 for sample in cell):
            raise ValueError("whole numbers beyond 16 bits")
        return np.array(cell, dtype=np.float32) / 32768
    for number, sample in enumerate(cell, start=1):
        if not is_finite_number(sample):
            raise ValueError(f"{sample!r} as sample {number}, which is no finite number")
    loudest = max(cell, key=abs)
    if abs(loudest) > LOUDEST:
        raise ValueError(f"{loudest!r}, and samples that are no whole numbers of 16 bits lie between -1 and 1")
    return np.array(cell, dtype=np.float32)


def is_finite_number(sample: Any) -> bool:
    try:
        return isinstance(sample, (int, float)) and math.isfinite(sample)
    except OverflowError:  # a whole number greater than any float
        return False


def read_path(path: Any, name: str) -> tuple[np.ndarray, int]:
    """The samples and the rate of a WAV file, here or on the Hub."""
    try:
        with fsspec.open(str(path), "rb") as stream:
            return read_wav(stream, name)
    except OSError as error:
        raise ValueError(f"{name!r}, which cannot be read: {error.strerror or error}") from error


def read_wav(stream: BinaryIO, name: str) -> tuple[np.ndarray, int]:
    """The samples and the rate of a WAV."""
    try:
        wav = open_wav(stream)
    except ValueError as error:
        raise ValueError(f"{name!r}, which {error}") from None
    data, promised = wav.readframes(wav.getnframes()), wav.getnframes()
    if not 1 <= wav.getframerate() <= FASTEST:
        raise ValueError(f"{name!r}, whose header names a rate of {wav.getframerate()} Hz")
    if len(data) < 2 * promised:
        raise ValueError(
            f"{name!r}, which is cut off: it has {len(data) // 2:,} of the {promised:,} samples that its header names"
        )
    return np.frombuffer(data, dtype="<i2").astype(np.float32) / 32768, wav.getframerate()


def make_rows(**columns: list) -> Dataset:
    """Rows of arrays, whose first axes differ in length, and of plain values; read as arrays of NumPy."""
    arrays = {name: as_column(cells) if isinstance(cells[0], np.ndarray) else cells for name, cells in columns.items()}
    return Dataset(pa.table(arrays)).with_format("numpy")


def at_speeds(rows: Dataset, speeds: Iterable[float]) -> Dataset:
    """The rows, and the same once more at each of the speeds (speed perturbation, Ko et al. 2015)."""
    others = {name: rows[name][:] for name in rows.column_names if name != "audio"}
    changed = [make_rows(audio=[at_speed(row["audio"], speed) for row in rows], **others) for speed in speeds]
    return concatenate_datasets([rows, *changed])


def at_speed(samples: np.ndarray, speed: float) -> np.ndarray:
    """The samples played at so many times their speed: fewer for a faster one, and of a higher pitch."""
    step = Fraction(speed).limit_denominator(100)
    return resample_poly(samples, step.denominator, step.numerator)


def as_column(arrays: list[np.ndarray]) -> pa.Array:
    """Arrays as Arrow holds them, without a Python object for each number."""
    values, ends = np.concatenate(arrays), np.cumsum([0, *map(len, arrays)])
    if values.ndim == 2:
        values = pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1])
    return pa.LargeListArray.from_arrays(pa.array(ends), pa.array(values))
