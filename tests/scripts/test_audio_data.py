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
"""scripts/audio_data.py: the same samples, however they are written down, or one line that says what is wrong."""

import math
import re
import wave
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from datasets import Audio, Dataset, Features, List, Value
from hypothesis import example, given, settings
from hypothesis import strategies as st

from audio_data import (
    LOUDEST,
    AudioArguments,
    AudioReader,
    at_speed,
    at_speeds,
    check_audio_arguments,
    make_rows,
    read_samples,
    read_wav,
)
from program_runs import write_rows
from text_data import read_splits


RATE = 8000
RECORDINGS = [
    np.random.default_rng(seed).integers(-32768, 32768, size, dtype=np.int16) for seed, size in enumerate((700, 1, 43))
]
FLOATS = [(samples / 32768).astype(np.float32) for samples in RECORDINGS]


def write_wav(path: Path, samples: np.ndarray, rate: int = RATE, channels: int = 1, width: int = 2) -> None:
    with wave.open(str(path), "wb") as wav:
        wav.setnchannels(channels)
        wav.setsampwidth(width)
        wav.setframerate(rate)
        wav.writeframes(samples.tobytes())


def write_json(path: Path, rows: list[dict]) -> str:
    write_rows(path, rows)
    return str(path)


def read(path: str | None = None, **options) -> tuple[list[np.ndarray], int]:
    data = AudioArguments(train_file=path, **options)
    check_audio_arguments(data)
    reader = AudioReader(data)
    name, rows = read_splits(data)["train"]
    return reader.read_columns(name, rows, {})[data.audio_column], reader.sampling_rate


def assert_read(found: tuple[list[np.ndarray], int]) -> None:
    audio, rate = found
    assert rate == RATE
    for actual, expected in zip(audio, FLOATS, strict=True):
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, expected, atol=1e-9)  # JSON is written with ten digits


# What can be read


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "json.gz"])
@pytest.mark.parametrize("kind", ["int16", "float32"])
def test_lists_of_samples(kind, ending, tmp_path):
    recordings = RECORDINGS if kind == "int16" else FLOATS
    features = Features({"audio": List(Value(kind)), "sampling_rate": Value("int32")})
    rows = Dataset.from_dict({"audio": recordings, "sampling_rate": [RATE] * 3}, features=features)
    path = tmp_path / f"rows.{ending}"
    if ending == "parquet":
        rows.to_parquet(path)
    else:
        rows.to_json(path, compression="gzip" if ending.endswith("gz") else None)
    assert_read(read(str(path)))


def test_a_rate_that_is_given_once(tmp_path):
    path = write_json(tmp_path / "rows.jsonl", [{"sound": samples.tolist()} for samples in RECORDINGS])
    assert_read(read(path, sampling_rate=RATE, audio_column="sound"))


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_paths_are_those_beside_the_table(ending, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    (tmp_path / "wav").mkdir()
    for number, samples in enumerate(RECORDINGS):
        write_wav(tmp_path / f"wav/{number}.wav", samples)
    rows = [{"audio": name} for name in ("wav/0.wav", "wav/1.wav", str(tmp_path / "wav/2.wav"))]
    path = tmp_path / f"rows.{ending}"
    if ending == "csv":
        path.write_text("audio\n" + "".join(f"{row['audio']}\n" for row in rows))
    else:
        write_json(path, rows)
    assert_read(read(str(path)))


def test_audio_of_datasets(tmp_path):
    """In Parquet, bytes and all; and a folder of files, as `datasets` finds them."""
    (tmp_path / "folder/train").mkdir(parents=True)
    names = [tmp_path / f"folder/train/{number}.wav" for number in range(3)]
    for name, samples in zip(names, RECORDINGS, strict=True):
        write_wav(name, samples)
    cells = [{"bytes": name.read_bytes(), "path": None} for name in names]
    Dataset.from_dict({"audio": cells}).cast_column("audio", Audio()).to_parquet(tmp_path / "rows.parquet")
    assert_read(read(str(tmp_path / "rows.parquet")))
    assert_read(read(dataset=str(tmp_path / "folder")))


@settings(max_examples=50)
@given(st.lists(st.integers(-40_000, 40_000) | st.floats(width=32) | st.none() | st.just([0]), min_size=1))
def test_samples_are_finite_numbers_of_16_bits_or_floats(cell):
    numbers = [sample for sample in cell if isinstance(sample, (int, float))]
    is_right = len(numbers) == len(cell) and all(map(math.isfinite, numbers))
    is_whole = all(isinstance(sample, int) for sample in cell)
    if is_right and (-32768 <= min(cell) <= max(cell) < 32768 if is_whole else max(map(abs, cell)) <= LOUDEST):
        expected = np.array(cell) / 32768 if is_whole else np.array(cell, dtype=np.float32)
        np.testing.assert_allclose(read_samples(cell), expected, rtol=1e-6)
    else:
        with pytest.raises(ValueError):
            read_samples(cell)


# What cannot


def wav_bytes() -> bytes:
    with BytesIO() as file:
        with wave.open(file, "wb") as wav:
            wav.setparams((1, 2, RATE, 0, "NONE", ""))
            wav.writeframes(RECORDINGS[2].tobytes())
        return file.getvalue()


@settings(max_examples=200)
@given(st.integers(0, 60), st.integers(0, 255), st.integers(0, len(wav_bytes())))
@example(24, 0, len(wav_bytes()))
def test_a_damaged_wav_is_read_or_told(position, value, length):
    data = bytearray(wav_bytes())
    data[position] = value
    try:
        samples, rate = read_wav(BytesIO(bytes(data[:length])), "file.wav")
    except ValueError as error:
        assert str(error).startswith(("'file.wav', which", "'file.wav', whose"))
    else:
        assert rate >= 1 and len(samples) <= 43 and np.isfinite(samples).all()


def lists(*rows: dict) -> list[dict]:
    return [{"audio": [1, 2], "sampling_rate": RATE}, *rows]


MISTAKES = {
    "no column": ([{"sound": [1]}], "rows.jsonl: there is no column 'audio'; the columns are 'sound'"),
    "no audio": ([{"audio": None}, {"audio": "0.wav"}], "row 1: column 'audio' holds None, which is neither a list"),
    "no rate": ([{"audio": [1]}], "row 1: column 'audio' holds bare samples: give their rate"),
    "strange rate": (lists({"audio": [1], "sampling_rate": 0.5}), "row 2: column 'audio' holds samples whose rate is"),
    "other rate": (lists({"audio": [1], "sampling_rate": 16000}), "row 2: column 'audio' holds a recording of 16000"),
    "empty": (lists({"audio": [], "sampling_rate": RATE}), "row 2: column 'audio' holds a recording without samples"),
    "hole": (lists({"audio": [1, None], "sampling_rate": RATE}), "row 2: column 'audio' holds None as sample 2"),
    "stereo": ([{"audio": [[1, 2], [3, 4]], "sampling_rate": RATE}], "row 1: column 'audio' holds lists within"),
    "no rate at all": ([{"audio": [1], "sampling_rate": 1e300}], "row 1: column 'audio' holds samples whose rate is"),
    "another scale": (lists({"audio": [0.5, 3000], "sampling_rate": RATE}), "row 2: column 'audio' holds 3000"),
    "24 bits": (lists({"audio": [70000], "sampling_rate": RATE}), "row 2: column 'audio' holds whole numbers beyond"),
    "no file": ([{"audio": "0.wav"}, {"audio": "9.wav"}], "row 2: column 'audio' holds '9.wav', which cannot be read"),
    "cut off": ([{"audio": "cut.wav"}], "holds 'cut.wav', which is cut off: it has 650 of the 700 samples"),
    "header alone": ([{"audio": "header.wav"}], "holds 'header.wav', which is empty, or ends within its header"),
    "stereo file": ([{"audio": "stereo.wav"}], "holds 'stereo.wav', which has 2 channels, and one is needed"),
    "8 bits": ([{"audio": "8.wav"}], "holds '8.wav', which has 8 bits a sample, and 16 are needed"),
    "no samples": ([{"audio": "none.wav"}], "row 1: column 'audio' holds a recording without samples"),
    "no WAV": ([{"audio": "rows.jsonl"}], "holds 'rows.jsonl', which is no WAV of plain samples"),
    "faster file": (
        [{"audio": "0.wav"}, {"audio": "fast.wav"}],
        "row 2: column 'audio' holds a recording of 16000 Hz",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake, tmp_path):
    rows, message = MISTAKES[mistake]
    write_wav(tmp_path / "0.wav", RECORDINGS[0])
    write_wav(tmp_path / "fast.wav", RECORDINGS[0], rate=16000)
    write_wav(tmp_path / "stereo.wav", RECORDINGS[0], channels=2)
    write_wav(tmp_path / "8.wav", RECORDINGS[0], width=1)
    write_wav(tmp_path / "none.wav", RECORDINGS[0][:0])
    whole = (tmp_path / "0.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[:-100])
    (tmp_path / "header.wav").write_bytes(whole[:20])
    with pytest.raises(SystemExit, match=re.escape(message)) as stopped:
        read(write_json(tmp_path / "rows.jsonl", rows))
    assert str(tmp_path / "rows.jsonl") in stopped.value.code and "\n" not in stopped.value.code


def test_samples_that_are_no_numbers(tmp_path):
    rows = {"audio": [[0.1], [0.1, float("nan")]], "sampling_rate": [RATE, RATE]}
    Dataset.from_dict(rows).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(SystemExit, match="row 2: column 'audio' holds nan as sample 2, which is no finite number"):
        read(str(tmp_path / "rows.parquet"))


@pytest.mark.parametrize(
    "sample", [math.inf, -math.inf, math.nan, 10**400, -(10**400), None, "0.1"], ids=lambda sample: repr(sample)[:9]
)
def test_the_first_sample_that_is_no_finite_number_is_told(sample):
    """And a whole number that is greater than any float is refused in the same words, not with a traceback."""
    message = f"{sample!r} as sample 2, which is no finite number"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        read_samples([0.1, sample, 0.2, None])


def test_another_rate_than_asked_for(tmp_path):
    path = write_json(tmp_path / "rows.jsonl", lists())
    with pytest.raises(SystemExit, match="row 1: column 'audio' holds a recording of 8000 Hz, and 16000 Hz are"):
        read(path, sampling_rate=16000)
    with pytest.raises(SystemExit, match="--sampling-rate must be at least 1, got 0"):
        read(path, sampling_rate=0)


# Rows


@settings(max_examples=25)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 3))
def test_rows_give_back_arrays(lengths, width):
    draw = np.random.default_rng(0)
    arrays = [draw.normal(size=(length, width) if width else length).astype(np.float32) for length in lengths]
    rows = make_rows(part=arrays, number=list(range(len(lengths))))
    for number, array in enumerate(arrays):
        np.testing.assert_array_equal(rows[number]["part"], array)
        assert rows[number]["part"].dtype == np.float32
    assert len(rows.select([len(arrays) - 1])[0]["part"]) == lengths[-1]


# Speeds


@pytest.mark.parametrize("speed", [0.5, 0.9, 1.1, 1.25, 2])
def test_a_faster_recording_is_shorter_and_higher(speed):
    tone = np.sin(2 * np.pi * 600 * np.arange(RATE) / RATE).astype(np.float32)
    faster = at_speed(tone, speed)
    assert faster.dtype == np.float32
    assert len(faster) == math.ceil(RATE / speed)
    spectrum = np.abs(np.fft.rfft(faster * np.hanning(len(faster))))
    assert spectrum.argmax() * RATE / len(faster) == pytest.approx(600 * speed, abs=2)
    assert faster[200:-200].std() == pytest.approx(tone.std(), rel=0.01)


def test_speeds_are_beside_the_rows_as_they_are():
    rows = at_speeds(make_rows(audio=FLOATS, number=[7, 8, 9], text=["a", "b", "c"]), [0.5, 2])
    assert rows["number"][:].tolist() == [7, 8, 9] * 3
    assert list(rows["text"][:]) == ["a", "b", "c"] * 3
    assert [len(row["audio"]) for row in rows] == [700, 1, 43, 1400, 2, 86, 350, 1, 22]
    for row, samples in zip(rows, [*FLOATS, *(at_speed(samples, 0.5) for samples in FLOATS)], strict=False):
        np.testing.assert_array_equal(row["audio"], samples)
        assert row["audio"].dtype == np.float32


def test_no_speeds_change_nothing():
    rows = make_rows(audio=FLOATS, number=[7, 8, 9])
    assert at_speeds(rows, []).data.equals(rows.data)
