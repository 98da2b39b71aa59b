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

import json
import re
from pathlib import Path

import jiwer
import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCTC, AutoProcessor, pipeline

import train_ctc
from audio_data import make_rows
from program_runs import assert_same_end, kill_at, rows_in, run_card, write_rows
from train_ctc import FAINT, DataArguments, cut, make_strings, make_tokenizer, measure_texts


RATE = 4000
PITCHES = {"1": 400, "2": 800, "3": 1500}
RECIPE = {
    "strings": 120,
    "strings_test": 30,
    "max_words": 3,
    "word_separator": "",
    "model_overrides": {
        "num_mel_bins": 12,
        "hidden_size": 24,
        "num_hidden_layers": 1,
        "stride": 4,
        "connection": "residual",
    },
    "per_device_train_batch_size": 8,
    "num_train_epochs": 4,
    "learning_rate": 0.03,
    "lr_scheduler_type": "cosine",
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "logging_steps": 5,
    "load_best_model_at_end": True,
    "metric_for_best_model": "character_error_rate",
    "train_sampling_strategy": "group_by_length",
    "use_cpu": True,
    "disable_tqdm": True,
    "report_to": "none",
}


def make_tones(n_rows: int, seed: int) -> list[dict]:
    """Tones of three pitches, of different lengths."""
    draw, rows = np.random.default_rng(seed), []
    for _ in range(n_rows):
        text, length = str(draw.choice([*PITCHES])), draw.integers(300, 700)
        audio = 3000 * np.sin(2 * np.pi * PITCHES[text] * np.arange(length) / RATE) + draw.normal(size=length) * 200
        rows.append({"audio": audio.astype(int).tolist(), "sampling_rate": RATE, "text": text})
    return rows


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`run(*options, **recipe)`: the program in a folder with data; its scores and its output folder."""
    monkeypatch.chdir(tmp_path)
    for seed, (split, n_rows) in enumerate({"train": 96, "validation": 24, "test": 30}.items()):
        write_rows(f"{split}.jsonl", make_tones(n_rows, seed))
    files = {f"{split}_file": f"{split}.jsonl" for split in ("train", "validation", "test")}

    def run(*options: str, output: str = "output", **recipe):
        settings = {name: value for name, value in {**files, **RECIPE, **recipe}.items() if value is not None}
        Path("recipe.yaml").write_text(yaml.safe_dump(settings))
        train_ctc.main(["recipe.yaml", "--output-dir", output, *options])
        scores = Path(output, "scores.json")
        return json.loads(scores.read_text()) if scores.exists() else None, Path(output)

    return run


# What it writes


def test_it_learns_and_hears_pieces_as_the_whole(run, capsys):
    scores, folder = run()
    test = scores["test"]
    assert test["digit_error_rate"] == test["character_error_rate"] < 0.2
    assert test["equal_streams"] == test["recordings"] == 30
    assert f"test: loss {test['loss']:.4f}" in capsys.readouterr().out
    state = json.loads(max(folder.glob("*/trainer_state.json")).read_text())
    rates = [entry["eval_character_error_rate"] for entry in state["log_history"] if "eval_loss" in entry]
    assert scores["validation"]["character_error_rate"] == pytest.approx(min(rates))


def test_saved_model_gives_the_reported_score(run):
    """Of rows as they are, which may be of several words; the test has a character that the training has not."""
    rows = [{**row, "text": {"1": "a  b", "2": "bc", "3": "ca"}[row["text"]]} for row in make_tones(120, 0)]
    for split, part in {"train": rows[:80], "validation": rows[80:100], "test": rows[100:]}.items():
        if split == "test":
            part[0]["text"] = "ß"
        write_rows(f"texts-{split}.jsonl", part)
    files = {f"{split}_file": f"texts-{split}.jsonl" for split in ("train", "validation", "test")}
    overrides = RECIPE["model_overrides"] | {"stride": 1, "bidirectional": True}
    scores, folder = run(**files, strings=0, num_train_epochs=12, model_overrides=overrides)
    transcribe = pipeline("automatic-speech-recognition", model=str(folder))
    rows = rows_in("texts-test.jsonl")
    written = [transcribe({"raw": np.array(row["audio"]) / 32768, "sampling_rate": RATE})["text"] for row in rows]
    said = [" ".join(row["text"].split()) for row in rows]
    assert scores["test"]["character_error_rate"] == pytest.approx(jiwer.cer(said, written))
    assert scores["test"]["word_error_rate"] == pytest.approx(jiwer.wer(said, written))
    assert 0 < scores["test"]["character_error_rate"] < 0.5
    assert "digit_error_rate" not in scores["test"] and "equal_streams" not in scores["test"]


def test_speeds_are_for_training_alone(run, capsys):
    run(speeds=[0.8, 1.25], strings=0, num_train_epochs=1)
    printed = capsys.readouterr().out
    assert re.search(r"train: 288 recordings .*, validation: 24 recordings .*, test: 30 recordings", printed)


def test_card_and_curves(run):
    scores, folder = run("--num-train-epochs", "1")
    card = ModelCard.load(folder / "README.md")
    figures = {(result.dataset_split, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert figures["test", "cer"] == pytest.approx(scores["test"]["character_error_rate"], abs=1e-4)
    assert card.data.pipeline_tag == "automatic-speech-recognition"
    assert "{{" not in card.text and "{%" not in card.text
    assert 'transcribe({"raw": samples, "sampling_rate": 4000})' in card.text
    assert f"| test | {scores['test']['loss']:.4f} | {scores['test']['character_error_rate']:.4f} |" in card.text
    assert "the same text in 30 of 30 recordings" in card.text and "Label by label" not in card.text
    assert "utterances of 1 to 3 recordings with pauses of 0.1 to 0.5 seconds (120 for train" in card.text
    run_card(folder, samples=np.zeros(4000))
    assert (folder / "loss_curve.png").read_bytes().startswith(b"\x89PNG")


def test_lstm_of_equal_size(run):
    scores, folder = run(architecture="lstm")
    assert scores["test"]["character_error_rate"] < 0.3
    assert scores["test"]["equal_streams"] == 30
    assert not (folder / "modeling_qrnn_speech.py").exists() and not (folder / "README.md").exists()


# Going on


def test_killed_run_ends_like_an_uninterrupted_one(run):
    _, folder = run(output="whole")
    kill_at(15, train_ctc)
    run(output="killed")
    assert_same_end(Path("killed"), folder)
    with pytest.raises(SystemExit, match=r"other settings \(learning_rate\)"):
        run("--learning-rate", "0.5", output="killed")


# Strings


@pytest.fixture
def words():
    """Recordings of which no sample could be a pause's."""
    return make_rows(
        audio=[np.full(length, length / 1000, np.float32) for length in (30, 40, 50)], text=["a", "b", "c"]
    )


def test_strings_are_recordings_and_pauses(words):
    data = DataArguments(max_words=4, min_pause=0.01, max_pause=0.02, word_separator=" ")
    rows = make_strings("train", words, 200, data, rate=1000, seed=0)
    counts = set()
    for row in rows:
        audio, pauses = row["audio"], []
        said = row["text"].split()
        counts.add(len(said))
        edges = np.flatnonzero(np.diff(np.abs(audio) <= FAINT[1], prepend=True, append=True))
        for begin, end, text in zip(edges[::2], edges[1::2], said, strict=True):
            assert set(audio[begin:end]) == {np.float32((end - begin) / 1000)}
            assert text == {30: "a", 40: "b", 50: "c"}[end - begin]
        pauses = edges[2::2] - edges[1:-1:2]
        assert all(10 <= pause <= 20 for pause in pauses)
        assert (edges[0], edges[-1]) == (0, len(audio))
    assert counts == {1, 2, 3, 4}


def test_strings_are_drawn_alike_by_seed_and_differ_by_split(words):
    def texts(split: str, seed: int) -> list[str]:
        return make_strings(split, words, 20, DataArguments(), RATE, seed)["text"][:].tolist()

    assert texts("train", 0) == texts("train", 0)
    assert texts("train", 0) != texts("test", 0) != texts("test", 1)


@settings(max_examples=25)
@given(st.integers(0, 300), st.integers(1, 100))
def test_pieces_are_the_whole(length, longest):
    audio = np.arange(length)
    pieces = list(cut(audio, longest, np.random.default_rng(0)))
    assert np.concatenate([np.empty(0), *pieces]).tolist() == audio.tolist()
    assert all(1 <= len(piece) <= longest for piece in pieces)


# Texts


@settings(max_examples=25)
@given(st.lists(st.text("abä 7", min_size=1).filter(str.strip), min_size=1))
def test_transcripts_are_read_back(tmp_path_factory, texts):
    texts = [" ".join(text.split()) for text in texts]
    tokenizer = make_tokenizer(texts, tmp_path_factory.mktemp("tokenizer"))
    for text in texts:
        assert tokenizer.decode(tokenizer(text).input_ids, group_tokens=False) == text
    assert tokenizer.decode(tokenizer("§").input_ids) == "\ufffd"


def test_digits_are_counted_without_spaces():
    rates = measure_texts(["1 2 3", "44"], ["12 3", "4"])
    assert rates == {"character_error_rate": 2 / 7, "word_error_rate": 3 / 4, "digit_error_rate": 1 / 5}
    assert "digit_error_rate" not in measure_texts(["1 a"], ["1 a"])


# Data


def write_faulty_rows() -> None:
    first, second = make_tones(2, 0)
    write_rows("silent.jsonl", [first, {**second, "text": " "}])
    write_rows("untold.jsonl", [first, {**second, "text": None}])
    write_rows("bar.jsonl", [first, {**second, "text": "a|b"}])
    write_rows("fast.jsonl", [first, {**second, "text": "1" * 90}])
    Path("empty.csv").write_text("audio,text\n")


MISTAKES = {
    "no column": (
        ["--text-column", "word"],
        "train.jsonl: there is no column 'word'; the columns are 'audio', 'sampling",
    ),
    "no words": (["--train-file", "silent.jsonl"], "silent.jsonl: row 2: column 'text' holds ' ', which has no words"),
    "no text": (["--train-file", "untold.jsonl"], "row 2: column 'text' holds None, which is no text"),
    "bar": (["--train-file", "bar.jsonl"], "row 2: column 'text' holds 'a|b', and '|'"),
    "too fast": (["--strings", "0", "--train-file", "fast.jsonl"], "fast.jsonl: row 2: the transcript '1111"),
    "empty split": (["--test-file", "empty.csv"], "empty.csv: there are no rows"),
    "metric": (["--metric-for-best-model", "accuracy"], "the metrics are character_error_rate, loss, word_error_rate"),
    "fixed": (["--model-overrides", "{vocab_size: 3}"], "data or other options decide: vocab_size"),
    "words": (["--max-words", "0"], "--max-words must be at least 1, got 0"),
    "smoothing": (["--label-smoothing-factor", "0.1"], "--label-smoothing-factor must be 0, got 0.1"),
    "strings": (["--strings", "-1"], "--strings must be at least 0, got -1"),
    "endless pauses": (["--max-pause", "inf"], "--min-pause and --max-pause must rise from 0 on, got 0.1 and inf"),
    "separator": (["--word-separator", "|"], "--word-separator must be without '|' and '\ufffd', got '|'"),
    "pauses": (["--min-pause", "1", "--max-pause", "0.5"], "--min-pause and --max-pause must rise from 0 on"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake, run, capsys):
    write_faulty_rows()
    options, message = MISTAKES[mistake]
    with pytest.raises(SystemExit) as stopped:
        run(*options)
    line = stopped.value.code if isinstance(stopped.value.code, str) else capsys.readouterr().err.rstrip("\n")
    assert message in line
    assert "\n" not in line
    assert stopped.value.code != 0
    assert not list(Path().glob("*/checkpoint-*"))


def test_numbers_and_names_are_transcripts(run):
    """Labels with names, as in the Free Spoken Digit Dataset, and bare numbers."""
    write_rows("numbers.jsonl", [{**row, "text": int(row["text"])} for row in make_tones(40, 0)])
    _, folder = run("--max-steps", "1", "--train-file", "numbers.jsonl")
    assert {*"123"} <= {*json.loads((folder / "vocab.json").read_text())}
    assert AutoProcessor.from_pretrained(folder).tokenizer.decode([3, 0, 3, 4]) == "112"
    assert not AutoModelForCTC.from_pretrained(folder).config.bidirectional
