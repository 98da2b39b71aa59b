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
"""scripts/train_token_classifier.py: what it reads, trains, scores and writes, and how it goes on after a kill."""

import itertools
import json
import random
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, Features, List, Value
from huggingface_hub import ModelCard
from matplotlib.image import imread
from safetensors.torch import load_file
from seqeval.metrics import f1_score as entity_f1_score
from sklearn.metrics import accuracy_score, f1_score
from transformers import AutoModelForTokenClassification, AutoTokenizer, Trainer, pipeline

import train_token_classifier
from program_runs import assert_same_end, kill_at, rows_in, run_card, write_rows
from train_token_classifier import DataArguments, align, is_iob2, read_sentences


TAGS = ["O", "B-animal", "I-animal", "B-place", "I-place"]
PARTS = {"cat": "NOUN", "horse": "NOUN", "red": "ADJ", "tired": "ADJ", "sees": "VERB", "reached": "VERB", "the": "DET"}
RECIPE = {
    "tokenizer": "bpe",
    "vocab_size": 300,
    "model_config": "paper-imdb-dense",
    "model_overrides": {"embedding_size": 12, "hidden_size": 24, "num_hidden_layers": 2, "bidirectional": True},
    "per_device_train_batch_size": 8,
    "num_train_epochs": 4,
    "learning_rate": 0.05,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "logging_steps": 5,
    "load_best_model_at_end": True,
    "metric_for_best_model": "f1",
    "train_sampling_strategy": "group_by_length",
    "use_cpu": True,
    "disable_tqdm": True,
    "report_to": "none",
}


def make_sentences(n_rows: int, seed: int) -> list[dict]:
    """Entities of one or two words among others."""
    draw = random.Random(seed)
    entities = {"animal": ["cat", "red cat", "horse"], "place": ["london", "new york"]}
    rows = []
    for _ in range(n_rows):
        tokens, tags = [], []
        for _ in range(draw.randint(1, 3)):
            plain = draw.choices(["the", "of", "isn't", "..."], k=draw.randint(1, 3))
            kind = draw.choice([*entities])
            entity = draw.choice(entities[kind]).split()
            tokens += plain + entity
            tags += ["O"] * len(plain) + [f"B-{kind}", f"I-{kind}"][: len(entity)]
        rows.append({"tokens": tokens, "tags": tags})
    return rows


def make_parts_of_speech(n_rows: int, seed: int) -> list[dict]:
    draw = random.Random(seed)
    rows = [draw.choices([*PARTS], k=draw.randint(1, 6)) for _ in range(n_rows)]
    return [{"tokens": words, "tags": [PARTS[word] for word in words]} for words in rows]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`run(*options, **recipe)`: the program in a folder with data; its scores and its output folder."""
    monkeypatch.chdir(tmp_path)
    for seed, (split, n_rows) in enumerate({"train": 80, "validation": 20, "test": 30}.items()):
        write_rows(f"{split}.jsonl", make_sentences(n_rows, seed))
        write_rows(f"parts-{split}.jsonl", make_parts_of_speech(n_rows, seed))
    files = {f"{split}_file": f"{split}.jsonl" for split in ("train", "validation", "test")}

    def run(*options: str, output: str = "output", **recipe):
        settings = {**files, **RECIPE, **recipe}
        settings = {name: value for name, value in settings.items() if value is not None}
        Path("recipe.yaml").write_text(yaml.safe_dump(settings))
        train_token_classifier.main(["recipe.yaml", "--output-dir", output, *options])
        return json.loads(Path(output, "scores.json").read_text()), Path(output)

    return run


PARTS_OF_SPEECH = {f"{split}_file": f"parts-{split}.jsonl" for split in ("train", "validation", "test")}
PARTS_OF_SPEECH["metric_for_best_model"] = "accuracy"


def flat(rows: Iterable[list[str]]) -> list[str]:
    return list(itertools.chain.from_iterable(rows))


def say(folder: Path, rows: list[dict]) -> list[list[str]]:
    """The tags of the saved model, row by row, at the first token of each word."""
    model, tokenizer = AutoModelForTokenClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    said = []
    for row in rows:
        encoded = tokenizer(row["tokens"], is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            predicted = model(encoded.input_ids).logits[0].argmax(-1)
        firsts = [encoded.word_ids().index(word) for word in range(len(row["tokens"]))]
        said.append([model.config.id2label[int(predicted[position])] for position in firsts])
    return said


# What it writes


def test_saved_model_gives_the_reported_score(run, capsys):
    scores, folder = run()
    rows = rows_in("test.jsonl")
    said, tags = say(folder, rows), [row["tags"] for row in rows]
    assert scores["test"]["f1"] == pytest.approx(entity_f1_score(tags, said))
    assert scores["test"]["f1"] > 0.8
    assert scores["test"]["accuracy"] == pytest.approx(accuracy_score(flat(tags), flat(said)))
    assert scores["test"]["words"] == sum(map(len, tags))
    assert f"f1 {scores['test']['f1']:.4f}" in capsys.readouterr().out
    config = json.loads((folder / "config.json").read_text())
    assert sorted(config["label2id"]) == sorted(TAGS)


def test_pipelines_read_words_and_texts(run):
    _, folder = run()
    tagger = pipeline("token-classification", model=str(folder), aggregation_strategy="first")
    words = ["the", "red", "cat", "of", "new", "york"]
    for entities in (tagger([words], is_split_into_words=True)[0], tagger(" ".join(words))):
        found = [(entity["entity_group"], entity["start"], entity["end"]) for entity in entities]
        assert found == [("animal", 4, 11), ("place", 15, 23)]


@pytest.mark.parametrize("tokenizer", ["word", "character", "bpe"])
def test_plain_tags(tokenizer, run):
    scores, folder = run(**PARTS_OF_SPEECH, tokenizer=tokenizer)
    assert scores["test"]["accuracy"] > 0.9
    rows = rows_in("parts-test.jsonl")
    tags, said = flat(row["tags"] for row in rows), flat(say(folder, rows))
    assert scores["test"]["accuracy"] == pytest.approx(accuracy_score(tags, said))
    assert scores["test"]["macro_f1"] == pytest.approx(f1_score(tags, said, average="macro"))
    assert set(scores["test"]) == {"accuracy", "macro_f1", "words"}


def test_card_and_curves(run):
    scores, folder = run()
    card = ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == "token-classification"
    results = {(result.dataset_split, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert results["test", "f1"] == pytest.approx(scores["test"]["f1"], abs=1e-4)
    assert "{{" not in card.text and "{%" not in card.text
    assert f"| {scores['test']['f1']:.4f} |" in card.text and "animal" in card.text
    first = rows_in("test.jsonl")[0]
    (said,) = say(folder, [first])
    assert " ".join(map("/".join, zip(first["tokens"], said, strict=True))) in card.text
    run_card(folder)
    pixels = imread(folder / "loss_curve.png")[..., :3]
    assert ((pixels.max(axis=-1) - pixels.min(axis=-1)) > 0.3).sum() > 200


def test_words_with_space_in_front_are_in_the_sample(run):
    """Which is no part of a token; others may be longer than one."""
    write_rows("spaces.jsonl", [{"tokens": [" the", "\xa0new york", "cat"], "tags": ["O", "B-place", "B-animal"]}] * 8)
    _, folder = run(tokenizer="word", test_file="spaces.jsonl", num_train_epochs=1)
    (said,) = say(folder, rows_in("spaces.jsonl")[:1])
    sample = " ".join(map("/".join, zip([" the", "\xa0new york", "cat"], said, strict=True)))
    assert sample in (folder / "README.md").read_text()


def test_the_card_is_pushed_last(run, monkeypatch):
    """And alone: Trainer would push a card of its own."""
    calls = []
    monkeypatch.setattr(Trainer, "init_hf_repo", lambda self, **_: setattr(self, "hub_model_id", "me/my-model"))
    monkeypatch.setattr(Trainer, "_push_from_checkpoint", lambda self, folder: None)
    monkeypatch.setattr(Trainer, "push_to_hub", lambda self, **_: calls.append("everything"))
    monkeypatch.setattr("results.upload_folder", lambda repo_id, **_: calls.append(repo_id))
    run("--push-to-hub", "--num-train-epochs", "1")
    assert calls == ["me/my-model"]


def test_only_training_texts_are_cut(run, capsys):
    scores, _ = run("--max-length", "4", num_train_epochs=0.1)
    cut = re.search(r"train: (\d+) of 80 texts cut to 4 tokens", capsys.readouterr().out)
    assert 40 < int(cut[1]) < 80
    assert scores["test"]["words"] == sum(len(row["tokens"]) for row in rows_in("test.jsonl"))


def test_lstm_of_equal_size(run):
    scores, folder = run(architecture="lstm", output="lstm")
    assert scores["test"]["f1"] > 0.5
    assert not (folder / "modeling_qrnn.py").exists() and not (folder / "README.md").exists()


# Going on


def test_killed_run_ends_like_an_uninterrupted_one(run):
    _, folder = run(output="whole")
    kill_at(20, train_token_classifier)
    run(output="killed")
    assert_same_end(Path("killed"), folder)
    with pytest.raises(SystemExit, match=r"other settings \(learning_rate\)"):
        run("--learning-rate", "0.5", output="killed")


# Data


@pytest.mark.parametrize("ending", ["jsonl", "json.gz", "parquet"])
def test_files_and_kinds_of_tags(ending, tmp_path):
    """Named numbers in Parquet, names in JSON; a part of the rows may be held out."""
    rows, path = make_sentences(10, 0), tmp_path / f"rows.{ending}"
    dataset = Dataset.from_list(rows)
    if ending == "parquet":
        features = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=TAGS))})
        dataset.cast(features).to_parquet(path)
    else:
        dataset.to_json(path, compression="gzip" if ending.endswith("gz") else None)
    splits, names = read_sentences(DataArguments(train_file=str(path)))
    assert names == (TAGS if ending == "parquet" else sorted({tag for row in rows for tag in row["tags"]}))
    assert splits["train"]["words"][:] == [row["tokens"] for row in rows]
    assert [[names[number] for number in tags] for tags in splits["train"]["tags"]] == [row["tags"] for row in rows]


@pytest.mark.parametrize(
    ("names", "expected"),
    [(TAGS, True), (["O", "B-x"], True), (["O", "X"], False), (["B-x", "I-x"], False), (["ADJ", "NOUN"], False)],
)
def test_tags_of_entities_are_known_by_their_form(names, expected):
    assert is_iob2(names) is expected


def test_the_first_token_of_a_word_has_its_tag():
    row = {"words": ["ab", "c"], "tags": [3, 4], "origin": "file: row 5"}
    assert align([None, 0, 0, 1], row) == [-100, 3, -100, 4]
    with pytest.raises(SystemExit, match="file: row 5: the tokenizer has no token for the word 'c'"):
        align([None, 0, 0], row)


def test_body_of_a_tagger_with_other_tags(run):
    """At a learning rate of zero the body is that of the first tagger; the head is new, of another size."""
    _, first = run(**PARTS_OF_SPEECH, output="first", num_train_epochs=1)
    _, second = run(init_from="first", model_overrides=None, output="second", learning_rate=0.0, num_train_epochs=1)
    before, after = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert (len(before.pop("score.weight")), len(after.pop("score.weight"))) == (4, 5)
    assert (len(before.pop("score.bias")), len(after.pop("score.bias"))) == (4, 5)
    torch.testing.assert_close(after, before, rtol=0, atol=0)


MISTAKES = {
    "no column": (
        ["--tag-column", "upos"],
        "train.jsonl: there is no column 'upos'; the columns are 'tokens', 'tags'",
    ),
    "no list": (
        ["--text-column", "tags", "--train-file", "flat.jsonl"],
        "row 1: column 'tags' holds 'O', which is",
    ),
    "empty list": (["--train-file", "blank.jsonl"], "blank.jsonl: row 1: column 'tokens' holds [], which is no list"),
    "no word": (["--train-file", "gap.jsonl"], "gap.jsonl: row 2: column 'tokens' holds ' ', which has no words"),
    "lengths": (["--train-file", "short.jsonl"], "short.jsonl: row 2: there are 2 words, but 1 tags"),
    "one tag": (["--train-file", "one.jsonl"], "one.jsonl: column 'tags' holds one tag only, 'O'"),
    "no tag": (
        ["--train-file", "untagged.jsonl"],
        "row 1: column 'tags' holds None, which is no label",
    ),
    "unknown tag": (["--test-file", "other.jsonl"], "other.jsonl: row 2: column 'tags' holds the label 'B-tree'"),
    "empty split": (["--test-file", "empty.csv"], "empty.csv: there are no rows"),
    "no validation": (["--validation-file", "none.jsonl"], "there is no file 'none.jsonl'"),
    "length": (["--max-length", "0"], "--max-length must be at least 1, got 0"),
    "metric": (["--metric-for-best-model", "macro_f1"], "the metrics are accuracy, f1, loss, precision, recall"),
    "order and steps": (["--save-strategy", "best"], "--save-strategy must be epoch"),
    "wrong model": (["--model-overrides", "{zoneout: 2.0}"], "zoneout"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "validation", "test"):
        write_rows(f"{split}.jsonl", make_sentences(8, 0))
    write_rows("flat.jsonl", [{"tokens": ["a"], "tags": "O"}])
    write_rows("blank.jsonl", [{"tokens": [], "tags": []}])
    write_rows("gap.jsonl", [{"tokens": ["a"], "tags": ["O"]}, {"tokens": ["a", " "], "tags": ["O", "O"]}])
    write_rows("short.jsonl", [{"tokens": ["a"], "tags": ["O"]}, {"tokens": ["a", "b"], "tags": ["O"]}])
    write_rows("one.jsonl", [{"tokens": ["a", "b"], "tags": ["O", "O"]}])
    write_rows("untagged.jsonl", [{"tokens": ["a", "b"], "tags": ["O", None]}])
    write_rows("other.jsonl", [{"tokens": ["a"], "tags": ["O"]}, {"tokens": ["a"], "tags": ["B-tree"]}])
    Path("empty.csv").write_text("tokens,tags\n")
    files = {f"{split}_file": f"{split}.jsonl" for split in ("train", "validation", "test")}
    Path("recipe.yaml").write_text(yaml.safe_dump({**files, **RECIPE}))
    options, message = MISTAKES[mistake]
    with pytest.raises(SystemExit) as stopped:
        train_token_classifier.main(["recipe.yaml", *options])
    line = stopped.value.code if isinstance(stopped.value.code, str) else capsys.readouterr().err.rstrip("\n")
    assert message in line
    assert "\n" not in line
    assert stopped.value.code != 0
    assert not list(Path().glob("*/checkpoint-*"))
