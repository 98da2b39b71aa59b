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
"""configuration/training: the smallest version of each recipe trains, from its file."""

import json
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import program_runs
import train_audio_classifier
import train_ctc
import train_language_model
import train_seq2seq
import train_sequence_classifier
import train_time_series
import train_token_classifier


RECIPES = {path.stem: path for path in (Path(__file__).parents[2] / "configuration/training").glob("*.yaml")}
SMALL = {"embedding_size": 12, "hidden_size": 12, "num_hidden_layers": 2}
LANGUAGE_MODELS = {
    "tiny-shakespeare": {**SMALL, "intermediate_size": 16},
    "ptb-paper": SMALL,
    "ptb-tied": {**SMALL, "tie_word_embeddings": True},
    "ptb-awd": {**SMALL, "kernel_size": [2, 1]},
    "ptb-awd-finetune": {},
    "imdb-language-model": {**SMALL, "intermediate_size": 16},
}
CLASSIFIERS = ["sentence-classification", "sst2", "imdb-paper", "imdb-transfer"]
TAGGERS = {"ud-ewt": ["ADJ", "NOUN", "VERB"], "wnut17": ["B-group", "I-group", "O"]}
SPEECH = {"fsdd-digits": "digit", "fsdd-speakers": "speaker", "fsdd-strings": "digit"}
WRITERS = {"multi30k": "translation", "multi30k-characters": "translation", "scitldr": "summarization"}
WRITTEN = {"model.safetensors", "tokenizer.json", "README.md", "scores.json", "loss_curve.png"}
SMALLER = ["--max-steps", "6", "--logging-steps", "2", "--disable-tqdm", "true"]
SMALLER += ["--model-overrides", json.dumps(SMALL)]


def make_text(seed: int, n_lines: int = 60) -> str:
    draw = random.Random(seed)
    words = [f"{consonant}{vowel}" for consonant in "bcdfg" for vowel in "aeiou"]
    return "\n".join(" ".join(draw.choices(words, k=draw.randint(3, 12))) for _ in range(n_lines))


def write_rows(splits: dict[str, str], make_row) -> list[str]:
    """A file of rows for each split, a row for each line of a text; the options that name them."""
    for seed, split in enumerate(splits):
        rows = (make_row(line, number) for number, line in enumerate(make_text(seed).splitlines()))
        program_runs.write_rows(f"{split}.jsonl", rows)
    return [option for split in splits for option in (f"--{split}-file", f"{split}.jsonl")]


def test_every_recipe_is_tried():
    tried = {*LANGUAGE_MODELS, *CLASSIFIERS, *TAGGERS, *WRITERS, *SPEECH, "etth1", "quickstart"}
    assert RECIPES.keys() == tried


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_language_model(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "ptb-awd-finetune":
        test_language_model("ptb-awd", tmp_path, monkeypatch)  # where the recipe begins
    for seed, split in enumerate(("train", "validation", "test")):
        Path(f"{split}.txt").write_text(make_text(seed))
    holds_out = name in ("tiny-shakespeare", "imdb-language-model")
    splits = ("train",) if holds_out else ("train", "validation", "test")
    files = [option for split in splits for option in (f"--{split}-file", f"{split}.txt")]
    smaller = ["--max-steps", "6", "--eval-strategy", "steps", "--eval-steps", "3", "--logging-steps", "2"]
    smaller += ["--per-device-train-batch-size", "4", "--bptt", "8", "--disable-tqdm", "true"]
    overrides = json.dumps(LANGUAGE_MODELS[name])
    train_language_model.main([str(RECIPES[name]), *files, *smaller, "--model-overrides", overrides])
    folder = Path(f"{name}-output")
    assert {path.name for path in folder.iterdir()} >= WRITTEN
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer)
    prompt = tokenizer("ba be", return_tensors="pt")
    assert model.generate(**prompt, min_new_tokens=3, max_new_tokens=3).shape[1] == prompt.input_ids.shape[1] + 3


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    splits = {
        "sentence-classification": ["train"],
        "imdb-paper": ["train", "test"],
        "imdb-transfer": ["train", "test"],
    }
    column = "sentence" if name == "sst2" else "text"
    files = write_rows(
        splits.get(name, ["train", "validation", "test"]),
        lambda line, number: {column: line, "label": ("neg", "pos")[number % 2]},
    )
    fold = ["--fold", "10"] if name == "sentence-classification" else []
    smaller = SMALLER
    if name == "imdb-transfer":
        test_language_model("imdb-language-model", tmp_path, monkeypatch)  # where the recipe begins
        smaller = SMALLER[:-2]
    train_sequence_classifier.main([str(RECIPES[name]), *files, *smaller, *fold])
    folder = Path(f"{name}-output", *(["fold-10"] if fold else []))
    assert {path.name for path in folder.iterdir()} >= {*WRITTEN, "runs"}
    (answer,) = pipeline("text-classification", model=str(folder))("ba be")
    assert answer["label"] in ("neg", "pos")


@pytest.mark.parametrize("name", TAGGERS)
def test_tagger(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    column, tags = {"ud-ewt": "upos", "wnut17": "ner_tags"}[name], TAGGERS[name]
    draw = random.Random(0)
    files = write_rows(
        ["train", "validation", "test"],
        lambda line, _: {"tokens": line.split(), column: draw.choices(tags, k=len(line.split()))},
    )
    train_token_classifier.main([str(RECIPES[name]), *files, *SMALLER])
    folder = Path(f"{name}-output")
    assert {path.name for path in folder.iterdir()} >= {*WRITTEN, "runs"}
    tokens = pipeline("token-classification", model=str(folder), ignore_labels=[])("ba be")
    assert {token["entity"] for token in tokens} <= {*tags}


@pytest.mark.parametrize("name", SPEECH)
def test_speech(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0)

    def make_row(line: str, number: int) -> dict:
        audio = noise.integers(-1000, 1000, noise.integers(2000, 4000)).tolist()
        return {"audio": audio, "sampling_rate": 8000, "digit": number % 10, "speaker": ("theo", "lucas")[number % 2]}

    files = write_rows(["train", "test"], make_row)
    program = train_ctc if name == "fsdd-strings" else train_audio_classifier
    fewer = ["--strings", "40", "--strings-test", "10"] if name == "fsdd-strings" else []
    share = ["--validation-share", "0.2"]  # one of each digit at least
    program.main([str(RECIPES[name]), *files, *share, *SMALLER[:-2], *fewer])
    folder = Path(f"{name}-output")
    assert {path.name for path in folder.iterdir()} >= {*WRITTEN, "runs"} - {"tokenizer.json"}
    recording = noise.normal(size=3000)
    if name == "fsdd-strings":
        assert pipeline("automatic-speech-recognition", model=str(folder))(recording).keys() == {"text"}
    else:
        labels = {answer["label"] for answer in pipeline("audio-classification", model=str(folder))(recording)}
        assert labels <= {"theo", "lucas", *"0123456789"}


@pytest.mark.parametrize("name", WRITERS)
def test_writer(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    columns = ("source", "target") if name == "scitldr" else ("de", "en")
    files = write_rows(
        ["train", "validation", "test"], lambda line, _: dict(zip(columns, (line, line.upper()), strict=True))
    )
    smaller = {"hidden_size": 12, "encoder_layers": 2, "decoder_layers": 1, "encoder_kernel_size": 2}
    smaller |= {"num_attention_heads": 2, "intermediate_size": 16} if name != "multi30k-characters" else {}
    options = ["--model-overrides", json.dumps(smaller), "--max-new-tokens", "8"]
    train_seq2seq.main([str(RECIPES[name]), *files, *SMALLER[:-2], *options])
    folder = Path(f"{name}-output")
    assert {path.name for path in folder.iterdir()} >= {*WRITTEN, "test.txt"}
    (answer,) = pipeline(WRITERS[name], model=str(folder))("ba be")
    assert [*answer] == [{"translation": "translation_text", "summarization": "summary_text"}[WRITERS[name]]]


def test_forecaster(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hours = pd.date_range("2016-07-01", periods=1000, freq="h")
    draw = random.Random(0)
    columns = {name: [draw.gauss(0, 1) + hour for hour in hours.hour] for name in ("HUFL", "HULL", "OT")}
    pd.DataFrame({"date": hours, **columns}).to_csv("ETTh1.csv", index=False)
    rows = ["--train-rows", "650", "--validation-rows", "120", "--test-rows", "120"]
    train_time_series.main([str(RECIPES["etth1"]), "--data-file", "ETTh1.csv", *rows, *SMALLER[:-2]])
    folder = Path("etth1-output")
    assert {path.name for path in folder.iterdir()} >= {*WRITTEN, "forecast.png", "linear"} - {"tokenizer.json"}
    past = pd.DataFrame(columns, index=hours)[-512:]
    assert pipeline("time-series-forecasting", model=str(folder))(past).shape == (96, 3)
