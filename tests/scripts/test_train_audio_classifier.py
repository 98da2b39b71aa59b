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

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from sklearn.metrics import accuracy_score, f1_score
from transformers import Trainer, pipeline

import train_audio_classifier
from program_runs import assert_same_end, kill_at, rows_in, run_card, weights_in, write_rows
from train_audio_classifier import DataArguments, folder_name, hold_out, make_rows


RATE = 4000
PITCHES = {"low": 400, "middle": 800, "high": 1500}
RECIPE = {
    "model_overrides": {"num_mel_bins": 12, "hidden_size": 8, "num_hidden_layers": 1, "bidirectional": True},
    "per_device_train_batch_size": 8,
    "num_train_epochs": 3,
    "learning_rate": 0.03,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "logging_steps": 5,
    "load_best_model_at_end": True,
    "metric_for_best_model": "accuracy",
    "train_sampling_strategy": "group_by_length",
    "use_cpu": True,
    "disable_tqdm": True,
    "report_to": "none",
}


def make_tones(n_rows: int, seed: int) -> list[dict]:
    """Tones of three pitches, of different lengths and loudness, by three players."""
    draw, rows = np.random.default_rng(seed), []
    for _ in range(n_rows):
        label, length = draw.choice([*PITCHES]), draw.integers(200, 700)
        tone = np.sin(2 * np.pi * PITCHES[label] * draw.uniform(0.9, 1.1) * np.arange(length) / RATE)
        audio = 3000 * draw.uniform(0.5, 2) * tone + draw.normal(size=length) * 200
        player = str(draw.choice(["ann", "bob", "c/d"]))
        rows.append(
            {"audio": audio.astype(int).tolist(), "sampling_rate": RATE, "label": str(label), "player": player}
        )
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
        train_audio_classifier.main(["recipe.yaml", "--output-dir", output, *options])
        scores = Path(output, "scores.json")
        return json.loads(scores.read_text()) if scores.exists() else None, Path(output)

    return run


# What it writes


def test_saved_model_gives_the_reported_score(run, capsys):
    scores, folder = run()
    classifier, rows = pipeline("audio-classification", model=str(folder)), rows_in("test.jsonl")
    recordings = [{"raw": np.array(row["audio"]) / 32768, "sampling_rate": RATE} for row in rows]
    said, labels = [answer[0]["label"] for answer in classifier(recordings)], [row["label"] for row in rows]
    assert scores["test"]["accuracy"] == pytest.approx(accuracy_score(labels, said))
    assert scores["test"]["macro_f1"] == pytest.approx(f1_score(labels, said, average="macro"))
    assert scores["test"]["accuracy"] > 0.8
    assert np.sum(scores["test"]["confusion"]) == scores["test"]["recordings"] == 30
    baseline = scores["baselines"]["mean MFCCs"]["test"]
    assert baseline["accuracy"] > 0.8
    printed = capsys.readouterr().out
    assert f"test: loss {scores['test']['loss']:.4f}" in printed
    assert f"test, mean MFCCs: accuracy {baseline['accuracy']:.4f}" in printed


def test_speeds_are_for_training_alone(run, capsys):
    scores, folder = run(speeds=[0.8, 1.25], num_train_epochs=1)
    printed = capsys.readouterr().out
    assert re.search(r"train: 288 recordings .*, validation: 24 recordings .*, test: 30 recordings", printed)
    assert (folder / f"checkpoint-{288 // 8}").is_dir()
    assert scores["test"]["recordings"] == 30


def test_card_and_curves(run):
    scores, folder = run("--num-train-epochs", "1")
    card = ModelCard.load(folder / "README.md")
    figures = {(result.dataset_split, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert figures["test", "f1"] == pytest.approx(scores["test"]["macro_f1"], abs=1e-4)
    assert card.data.pipeline_tag == "audio-classification"
    assert "{{" not in card.text and "{%" not in card.text
    assert 'classifier({"raw": samples, "sampling_rate": 4000})' in card.text
    assert f"| test | {scores['test']['loss']:.4f} | {scores['test']['accuracy']:.4f} |" in card.text
    baseline = scores["baselines"]["mean MFCCs"]["test"]
    assert f"| test, mean MFCCs |  | {baseline['accuracy']:.4f} | {baseline['macro_f1']:.4f} |  |" in card.text
    assert "Label by label, on test:" in card.text and "* **Recordings**: `train.jsonl`" in card.text
    run_card(folder, samples=np.zeros(4000))
    assert (folder / "loss_curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_card_is_pushed_last(run, monkeypatch):
    calls = []
    monkeypatch.setattr(Trainer, "init_hf_repo", lambda self, **_: setattr(self, "hub_model_id", "me/my-model"))
    monkeypatch.setattr(Trainer, "_push_from_checkpoint", lambda self, folder: None)
    monkeypatch.setattr(Trainer, "push_to_hub", lambda self, **_: calls.append("everything"))
    monkeypatch.setattr("results.upload_folder", lambda repo_id, **_: calls.append(repo_id))
    run("--push-to-hub", "--num-train-epochs", "1")
    assert calls == ["me/my-model"]


def test_lstm_of_equal_size(run):
    scores, folder = run(architecture="lstm")
    assert scores["test"]["accuracy"] > 0.8
    assert not (folder / "modeling_qrnn_speech.py").exists() and not (folder / "README.md").exists()


# Held-out values


def test_held_out_values(run, capsys):
    settings = {"validation_file": None, "test_file": None, "validation_share": 0.2, "num_train_epochs": 1}
    settings["held_out_column"] = "player"
    run("--held-out-value", "bob", **settings)
    assert [path.name for path in Path("output").iterdir()] == ["held-out-bob"]
    weights = weights_in(Path("output/held-out-bob"))
    scores, folder = run(**settings)
    torch.testing.assert_close(weights_in(folder / "held-out-bob"), weights, rtol=0, atol=0)
    values = {name: part["test"]["accuracy"] for name, part in scores["held_out"].items()}
    assert [*values] == ["ann", "bob", "c/d"] and (folder / "held-out-c%2Fd").is_dir()
    assert sum(part["test"]["recordings"] for part in scores["held_out"].values()) == 96
    assert scores["mean"]["accuracy"] == pytest.approx(np.mean([*values.values()]))
    baselines = [part["baselines"]["mean MFCCs"]["test"]["accuracy"] for part in scores["held_out"].values()]
    assert scores["baselines"]["mean MFCCs"]["mean"]["accuracy"] == pytest.approx(np.mean(baselines))
    printed = capsys.readouterr().out
    assert f"mean: accuracy {scores['mean']['accuracy']:.4f}" in printed
    assert f"mean, mean MFCCs: accuracy {np.mean(baselines):.4f}" in printed
    assert "player ann held out" in (folder / "held-out-ann/README.md").read_text()


def test_what_is_held_out_is_met_in_the_test_alone():
    groups = ["10", "9", "x"] * 20
    rows = make_rows(audio=[np.zeros(1)] * 60, label=[0, 0, 0, 1, 1, 1] * 10, group=groups, number=list(range(60)))
    parts = hold_out(rows, ["a", "b"], DataArguments(held_out_column="who", validation_share=0.2), seed=0)
    assert [*parts] == ["9", "10", "x"]
    for value, splits in parts.items():
        assert {*splits["test"]["group"]} == {value}
        assert value not in {*splits["train"]["group"], *splits["validation"]["group"]}
        assert sorted(int(number) for rows in splits.values() for number in rows["number"]) == list(range(60))
        assert [len(splits[split]) for split in ("train", "validation", "test")] == [32, 8, 20]


def test_values_have_folders_of_their_own(run):
    """Within the output folder; and in one that is not its own a value is not trained further."""
    assert folder_name("../a b") == "held-out-..%2Fa%20b"
    assert folder_name("A+") != folder_name("A-")
    settings = {"validation_file": None, "test_file": None, "validation_share": 0.2, "num_train_epochs": 1}
    run("--held-out-column", "player", "--held-out-value", "ann", **settings)
    Path("output/held-out-ann").rename("output/held-out-bob")
    with pytest.raises(SystemExit, match=r"held-out-bob holds a run with other settings \(held_out_value\)"):
        run("--held-out-column", "player", **settings)


# Going on


def test_killed_run_ends_like_an_uninterrupted_one(run):
    _, folder = run(output="whole")
    kill_at(12, train_audio_classifier)
    run(output="killed")
    assert_same_end(Path("killed"), folder)
    with pytest.raises(SystemExit, match=r"other settings \(learning_rate\)"):
        run("--learning-rate", "0.5", output="killed")


# Data


def write_faulty_rows() -> None:
    first, second = make_tones(2, 0)
    write_rows("unlabelled.jsonl", [first, {**second, "label": None}])
    write_rows("one.jsonl", [first, {**second, "label": first["label"]}])
    write_rows("other.jsonl", [first, {**second, "label": "noise"}])
    write_rows("fast.jsonl", [{**first, "sampling_rate": 2 * RATE}])
    write_rows("alike.jsonl", [{**row, "player": "ann"} for row in make_tones(40, 0)])
    loners = {"low": "ann", "middle": "ann", "high": "bob"}
    write_rows("loners.jsonl", [{**row, "player": loners[row["label"]]} for row in make_tones(40, 0)])
    Path("empty.csv").write_text("audio,label\n")


HOLD_OUT = ["--held-out-column", "player", "--validation-share", "0.2"]
MISTAKES = {
    "no column": (
        ["--label-column", "word"],
        "train.jsonl: there is no column 'word'; the columns are 'audio', 'sampling",
    ),
    "no label": (["--train-file", "unlabelled.jsonl"], "row 2: column 'label' holds None, which is no label"),
    "one label": (["--train-file", "one.jsonl"], "one.jsonl: column 'label' holds one label only"),
    "unknown label": (["--test-file", "other.jsonl"], "other.jsonl: row 2: column 'label' holds the label 'noise'"),
    "other rate": (["--test-file", "fast.jsonl"], "fast.jsonl: row 1: column 'audio' holds a recording of 8000 Hz"),
    "empty split": (["--test-file", "empty.csv"], "empty.csv: there are no rows"),
    "no file": (["--validation-file", "none.jsonl"], "there is no file 'none.jsonl'"),
    "metric": (["--metric-for-best-model", "f1"], "the metrics are accuracy, loss, macro_f1"),
    "wrong model": (["--model-overrides", "{stride: 0}"], "stride"),
    "fixed": (["--model-overrides", "{hop_length: 3}"], "data or other options decide: hop_length"),
    "speed": (["--speeds", "[0.9, 1]"], "--speeds [0.9, 1]: 1 is no number in [0.5, 2.0] of two decimals and other"),
    "no speed": (["--speeds", "[.nan]"], "nan is no number in [0.5, 2.0]"),
    "nearly one": (["--speeds", "[1.001]"], "1.001 is no number in [0.5, 2.0] of two decimals"),
    "no list": (["--speeds", "0.9"], "--speeds 0.9: this is no list"),
    "value alone": (["--held-out-value", "ann"], "--held-out-value goes with --held-out-column"),
    "no validation": (HOLD_OUT[:2], "--held-out-column goes with --validation-share"),
    "test of its own": (HOLD_OUT, "leave out --validation-file and --test-file"),
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--held-out-value", "eve"], "--held-out-value eve: column 'player' holds ann, bob, c/d"),
        (["--push-to-hub"], "--push-to-hub is for one model: add --held-out-value"),
        (["--train-file", "alike.jsonl"], "column 'player' holds one value only, 'ann'"),
        (["--train-file", "loners.jsonl"], "column 'player': without 'ann' the training rows have one label only"),
    ],
)
def test_values_that_cannot_be_held_out(options, message, run):
    write_faulty_rows()
    with pytest.raises(SystemExit, match=message):
        run(*HOLD_OUT, *options, validation_file=None, test_file=None)
