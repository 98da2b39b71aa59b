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
"""scripts/train_sequence_classifier.py: what it reads, trains, scores and writes, and how it goes on after a kill."""

import json
import math
import random
import statistics
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, Features, Value
from huggingface_hub import ModelCard, get_token
from matplotlib.image import imread
from sklearn.metrics import f1_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoTokenizer, Trainer, pipeline

import train_language_model
import train_sequence_classifier
from program_runs import assert_same_end, kill_at, run_card, weights_in
from train_sequence_classifier import DataArguments, cut_into_folds, read_examples


RECIPE = {
    "tokenizer": "word",
    "model_config": "paper-imdb-dense",
    "model_overrides": {
        "embedding_size": 8,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "bidirectional": True,
        "classifier_pooling": "concat",
    },
    "per_device_train_batch_size": 8,
    "num_train_epochs": 4,
    "learning_rate": 0.02,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "logging_steps": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "accuracy",
    "train_sampling_strategy": "group_by_length",
    "use_cpu": True,
    "disable_tqdm": True,
    "report_to": "none",
}


def make_rows(n_rows: int, seed: int) -> pd.DataFrame:
    """Texts of 2 to 9 words, of which one tells the label."""
    draw = random.Random(seed)
    rows = []
    for index in range(n_rows):
        label = ("bad", "good")[index % 2]
        text = draw.choices("abcdefg", k=draw.randint(1, 8))
        text.insert(draw.randint(0, len(text)), f"{label}{draw.randint(1, 3)}")
        rows.append({"text": " ".join(text), "label": label})
    return pd.DataFrame(rows)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`run(*options, **recipe)`: the program in a folder with data; its scores and its output folder."""
    monkeypatch.chdir(tmp_path)
    for seed, (split, n_rows) in enumerate({"train": 80, "validation": 20, "test": 30}.items()):
        make_rows(n_rows, seed).to_csv(f"{split}.csv", index=False)
    files = {f"{split}_file": f"{split}.csv" for split in ("train", "validation", "test")}

    def run(*options: str, output: str = "output", **recipe):
        settings = {**files, **RECIPE, **recipe}
        settings = {name: value for name, value in settings.items() if value is not None}
        Path("recipe.yaml").write_text(yaml.safe_dump(settings))
        train_sequence_classifier.main(["recipe.yaml", "--output-dir", output, *options])
        return json.loads(Path(output, "scores.json").read_text()) if "--fold" not in options else None, Path(output)

    return run


# What it writes


def test_saved_model_gives_the_reported_score(run, capsys):
    scores, folder = run(num_train_epochs=8)
    assert scores["test"]["accuracy"] > 0.9
    classifier = pipeline("text-classification", model=str(folder))
    rows = pd.read_csv("test.csv")
    answers = [answer["label"] for answer in classifier(rows["text"].tolist(), batch_size=7)]
    assert scores["test"]["accuracy"] == pytest.approx((rows["label"] == answers).mean())
    assert scores["test"]["macro_f1"] == pytest.approx(f1_score(rows["label"], answers, average="macro"))
    assert scores["test"]["confusion"] == pd.crosstab(rows["label"], pd.Series(answers)).to_numpy().tolist()
    assert classifier.model.config.id2label == {0: "bad", 1: "good"}
    assert (
        f"test: loss {scores['test']['loss']:.4f}, accuracy {scores['test']['accuracy']:.4f}"
        in capsys.readouterr().out
    )


def test_card_and_curves(run):
    scores, folder = run(report_to="tensorboard")
    card = ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == "text-classification"
    results = {(result.dataset_split, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert results["test", "accuracy"] == pytest.approx(scores["test"]["accuracy"], abs=1e-4)
    assert results["validation", "f1"] == pytest.approx(scores["validation"]["macro_f1"], abs=1e-4)
    assert "{{" not in card.text and "{%" not in card.text
    assert f"| test | {scores['test']['loss']:.4f} | {scores['test']['accuracy']:.4f} |" in card.text
    assert "num_train_epochs: 4" in card.text and "`train.csv`" in card.text and "macro avg" in card.text
    first = pd.read_csv("test.csv")["text"][0]
    (answer,) = pipeline("text-classification", model=str(folder))(first)
    assert f"{first}\n-> {answer['label']} ({answer['score']:.2f})" in card.text
    run_card(folder)
    pixels = imread(folder / "loss_curve.png")[..., :3]
    assert ((pixels.max(axis=-1) - pixels.min(axis=-1)) > 0.3).sum() > 200
    (log,) = (folder / "runs").glob("*/events*")
    curves = EventAccumulator(str(log)).Reload()
    last = [event.value for event in curves.Scalars("eval/accuracy")][-1]  # a float32
    assert last <= np.float32(scores["validation"]["accuracy"])


def test_the_best_checkpoint_is_kept(run):
    """The score on the validation data is that of the best epoch, not of the last one."""
    scores, folder = run(learning_rate=0.05, num_train_epochs=6, save_total_limit=2)
    state = json.loads((folder / "checkpoint-60/trainer_state.json").read_text())
    values = {entry["step"]: entry["eval_accuracy"] for entry in state["log_history"] if "eval_accuracy" in entry}
    assert scores["validation"]["accuracy"] == pytest.approx(max(values.values()))
    assert state["best_global_step"] < 60
    assert f"that of step {state['best_global_step']}" in (folder / "README.md").read_text()


def test_the_card_is_pushed_last(run, monkeypatch):
    """In one upload, without the card that Trainer writes when it pushes; and no file holds the secret."""
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    calls = []

    def upload(repo_id, folder_path, **_):
        assert Path(folder_path, "README.md").is_file() and Path(folder_path, "scores.json").is_file()
        calls.append(f"{repo_id} by {get_token()}")

    monkeypatch.setattr(Trainer, "init_hf_repo", lambda self, **_: setattr(self, "hub_model_id", "me/my-model"))
    monkeypatch.setattr(Trainer, "_push_from_checkpoint", lambda self, folder: None)
    monkeypatch.setattr(Trainer, "push_to_hub", lambda self, **_: calls.append("all of Trainer"))
    monkeypatch.setattr("results.upload_folder", upload)
    _, folder = run("--push-to-hub", "--hub-token", "hf_secret", "--num-train-epochs", "1")
    assert calls == ["me/my-model by hf_secret"]
    assert not [file.name for file in folder.iterdir() if file.is_file() and b"hf_secret" in file.read_bytes()]


@pytest.mark.parametrize("tokenizer", ["word", "character", "bpe"])
def test_pairs(tokenizer, run, capsys):
    """Whether two texts begin with the same word is seen in neither of them alone."""
    draw, rows = random.Random(0), []
    for index in range(120):
        first, second = draw.choice("abc"), draw.choice("abc")
        second = first if index % 2 else draw.choice(sorted({*"abc"} - {first}))
        rows.append({"one": first, "other": second, "label": index % 2})
    pd.DataFrame(rows).to_csv("pairs.csv", index=False)
    columns = {"text_column": "one", "text_pair_column": "other", "train_file": "pairs.csv"}
    columns |= {"validation_file": "pairs.csv", "test_file": None}
    columns |= {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    scores, folder = run(**columns, tokenizer=tokenizer, num_train_epochs=20)
    assert scores["validation"]["accuracy"] > 0.95
    answer = pipeline("text-classification", model=str(folder))({"text": "a", "text_pair": "a"})
    assert answer["label"] == "1"
    run_card(folder)
    assert '"text_pair": ' in (folder / "README.md").read_text()
    assert len(AutoTokenizer.from_pretrained(folder)("a", "a").input_ids) == (4 if tokenizer == "bpe" else 3)


def test_texts_are_cut_only_if_that_is_asked_for(run, capsys):
    run(num_train_epochs=0.1)
    assert "cut" not in capsys.readouterr().out
    run("--max-length", "3", num_train_epochs=0.1, output="short")
    n_long = (pd.read_csv("test.csv")["text"].str.split().str.len() > 3).sum()
    assert n_long > 3
    assert f"test: {n_long} of 30 texts cut to 3 tokens" in capsys.readouterr().out


def test_texts_without_words_count(run, capsys):
    """Alone in a batch too, where they are read as beside others in a batch of the pipeline."""
    Path("blank.jsonl").write_text('{"text": "", "label": "good"}\n{"text": " ", "label": "bad"}\n')
    scores, folder = run(test_file="blank.jsonl", num_train_epochs=1)
    assert "test: 2 of 2 texts have no words" in capsys.readouterr().out
    assert scores["test"]["accuracy"] == 0.5  # for a model they are one text
    answers = pipeline("text-classification", model=str(folder), top_k=None)(["", "fine film"], batch_size=2)
    good = {answer["label"]: answer["score"] for answer in answers[0]}["good"]
    assert scores["test"]["loss"] == pytest.approx(-(math.log(good) + math.log(1 - good)) / 2, abs=1e-5)


def test_lstm_of_equal_size(run, capsys):
    wide = RECIPE["model_overrides"] | {"hidden_size": 64}  # for the LSTM's goes in steps of 2 for each direction
    scores, folder = run(architecture="lstm", model_overrides=wide)
    assert scores["test"]["accuracy"] > 0.8
    assert not (folder / "modeling_qrnn.py").exists() and not (folder / "README.md").exists()
    out = capsys.readouterr().out
    run(output="qrnn", model_overrides=wide)
    sizes = [int(text.split("; ")[2].split()[0].replace(",", "")) for text in (out, capsys.readouterr().out)]
    assert 0.8 < sizes[0] / sizes[1] <= 1


# Folds


def test_folds(run, capsys):
    """One after another or each by itself, all folds are trained once; the summary is of their test scores."""
    settings = {"validation_file": None, "test_file": None, "validation_share": 0.2, "folds": 3, "num_train_epochs": 2}
    run("--fold", "2", **settings)
    assert [path.name for path in Path("output").iterdir()] == ["fold-2"]
    weights = weights_in(Path("output/fold-2"))
    scores, folder = run(**settings)
    torch.testing.assert_close(weights_in(folder / "fold-2"), weights, rtol=0, atol=0)
    values = [fold["test"]["accuracy"] for fold in scores["folds"]]
    assert len(values) == 3
    assert scores["mean"]["accuracy"] == pytest.approx(statistics.fmean(values))
    assert scores["standard_deviation"]["accuracy"] == pytest.approx(statistics.stdev(values))
    assert scores["standard_error"]["accuracy"] == pytest.approx(statistics.stdev(values) / 3**0.5)
    assert sum(fold["test"]["texts"] for fold in scores["folds"]) == 80
    assert f"mean: accuracy {statistics.fmean(values):.4f}" in capsys.readouterr().out
    card = (folder / "fold-2/README.md").read_text()
    assert "fold 2 of 3" in card and "fold: 2" in card  # so that the recipe of the card trains it again
    with pytest.raises(SystemExit, match=r"other settings \(seed\)"):
        run("--seed", "7", **settings)
    (folder / "fold-1").rename("elsewhere")
    (folder / "fold-2").rename(folder / "fold-1")
    with pytest.raises(SystemExit, match=r"fold-1 holds a run with other settings \(fold\)"):
        run(**settings)


def test_folds_are_stratified_and_disjoint():
    labels = [0] * 60 + [1] * 30
    rows = Dataset.from_dict({"text": [str(index) for index in range(90)], "label": labels})
    data = DataArguments(folds=3, validation_share=0.2)
    folds = list(cut_into_folds(rows, ["bad", "good"], data, seed=1))
    tested = [text for fold in folds for text in fold["test"]["text"]]
    assert sorted(tested) == sorted(rows["text"])
    for fold in folds:
        parts = [set(fold[split]["text"]) for split in ("train", "validation", "test")]
        assert len(set.union(*parts)) == sum(map(len, parts)) == 90
        assert [sum(fold[split]["label"]) for split in ("train", "validation", "test")] == [16, 4, 10]
    other = next(cut_into_folds(rows, ["bad", "good"], data, seed=2))
    assert other["test"]["text"] != folds[0]["test"]["text"]


# Transfer


@pytest.fixture
def language_model(run):
    """The folder of a small language model of the training texts."""
    Path("text.txt").write_text("\n".join(pd.read_csv("train.csv")["text"]))
    overrides = {"embedding_size": 8, "hidden_size": 16, "num_hidden_layers": 2}
    recipe = {"train_file": "text.txt", "validation_share": 0.2, "tokenizer": "word"}
    recipe |= {"model_config": "paper-ptb-medium", "per_device_train_batch_size": 4, "bptt": 8, "max_steps": 3}
    recipe |= {"use_cpu": True, "disable_tqdm": True, "report_to": "none"}

    def train(architecture: str = "qrnn", tied: bool = False, **changes) -> str:
        folder, model = f"{architecture}-lm", {**overrides, "tie_word_embeddings": tied}
        settings = {**recipe, **changes, "architecture": architecture, "model_overrides": model}
        Path("lm.yaml").write_text(yaml.safe_dump(settings))
        train_language_model.main(["lm.yaml", "--output-dir", folder])
        return folder

    return train


CLASSIFIER = {"model_overrides": {"classifier_pooling": "concat", "hidden_dropout": 0.1}}


@pytest.mark.parametrize(("architecture", "tied"), [("qrnn", False), ("qrnn", True), ("lstm", True)])
def test_body_and_tokenizer_of_a_language_model(architecture, tied, run, language_model):
    """At a learning rate of zero the body is that of the language model; the head is new."""
    pretrained = language_model(architecture, tied)
    _, folder = run(init_from=pretrained, architecture=architecture, learning_rate=0.0, **CLASSIFIER)
    before, after = ({**weights_in(Path(name))} for name in (pretrained, folder))
    assert ("lm_head.weight" in before) != tied
    body = {name: weight for name, weight in before.items() if not name.startswith("lm_head.")}
    assert after.keys() == {*body, "score.weight", "score.bias"}
    torch.testing.assert_close({name: after[name] for name in body}, body, rtol=0, atol=0)
    tokenizers = [AutoTokenizer.from_pretrained(name).get_vocab() for name in (pretrained, folder)]
    assert tokenizers[0] == tokenizers[1]
    config = json.loads((folder / "config.json").read_text())
    assert (config["classifier_pooling"], config["hidden_dropout"]) == ("concat", 0.1)
    if architecture == "qrnn":
        card = " ".join((folder / "README.md").read_text().split())
        assert f"trained from the body of `{pretrained}` by" in card
        assert "it knows nothing but the text that both were trained on." in card


@pytest.mark.parametrize(
    ("option", "tolerance"), [({"discriminative_factor": 1e6}, 1e-5), ({"gradual_unfreezing": 10.0}, 0.0)], ids=str
)
def test_lower_layers_change_less(option, tolerance, run, language_model):
    """Slowly, or not at all before they are unfrozen; the head is trained either way."""
    pretrained = language_model()
    _, folder = run(init_from=pretrained, **option, **CLASSIFIER)
    before, after = ({**weights_in(Path(name))} for name in (pretrained, folder))
    assert after["score.weight"].std() > 0.05  # it begins with 0.02
    slow = {name for name in after.keys() & before.keys() if name.startswith(("model.embed_tokens", "model.layers.0"))}
    assert len(slow) > 2
    for name in slow:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=tolerance)


def test_layers_join_and_a_resumed_run_ends_the_same(run, language_model):
    """All of them at last, and those of a run that was cut off as those of one that was not."""
    pretrained = language_model()
    options = {"init_from": pretrained, "gradual_unfreezing": 0.5, "discriminative_factor": 2.0, **CLASSIFIER}
    options["load_best_model_at_end"] = False  # the best may be one of before they joined
    _, folder = run(**options, num_train_epochs=3)
    whole, before = weights_in(folder), weights_in(Path(pretrained))
    for name in ("model.embed_tokens.weight", "model.layers.0.mixer.directions.0.gate_proj.weight"):
        assert (whole[name] - before[name]).abs().max() > 1e-4
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))[1:]:
        (checkpoint / "trainer_state.json").unlink()
    assert len(list(folder.glob("checkpoint-*/trainer_state.json"))) == 1
    run(**options, num_train_epochs=3)
    torch.testing.assert_close(weights_in(folder), whole, rtol=0, atol=0)


def test_language_model_goes_on_from_a_language_model(language_model):
    """Fine-tuning on another text; with other settings that would be another folder."""
    weights = weights_in(Path(language_model()))
    Path("qrnn-lm").rename("first")
    assert weights_in(Path(language_model(init_from="first", learning_rate=0.0))).keys() == weights.keys()
    torch.testing.assert_close(weights_in(Path("qrnn-lm")), weights, rtol=0, atol=0)


def test_bodies_that_do_not_fit(run, language_model):
    pretrained = language_model()
    with pytest.raises(SystemExit, match="--init-from none: "):
        run(init_from="none", **CLASSIFIER)
    with pytest.raises(SystemExit, match=r"missing weights: model\.layers\.2\."):
        run(init_from=pretrained, model_overrides={"num_hidden_layers": 3})
    with pytest.raises(SystemExit, match=r"unexpected weights: model\.layers\.1\."):
        run(init_from=pretrained, model_overrides={"num_hidden_layers": 1}, output="second")
    with pytest.raises(SystemExit, match=rf"--init-from {pretrained}: mismatched weights: model\.layers\.0\."):
        run(init_from=pretrained, model_overrides={"hidden_size": 32}, output="third")
    with pytest.raises(SystemExit, match=r"--model-overrides .*: fields that .* decide: eos_token_id, vocab_size"):
        run(init_from=pretrained, model_overrides={"vocab_size": 5, "eos_token_id": 2}, output="fifth")
    with pytest.raises(SystemExit, match=r"--model-overrides \{hidden_size: "):
        run(init_from=pretrained, model_overrides="{hidden_size: ", output="sixth")
    with pytest.raises(SystemExit, match="it holds a 'qrnn', not a 'qrnn_with_lstm'"):
        run(init_from=pretrained, architecture="lstm", output="fourth", **CLASSIFIER)
    weights = Path(pretrained, "model.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(SystemExit, match=rf"--init-from {pretrained}: .*header"):
        run(init_from=pretrained, output="seventh", **CLASSIFIER)


# Going on


def test_killed_run_ends_like_an_uninterrupted_one(run):
    settings = {"num_train_epochs": 6, "save_total_limit": 2}
    _, folder = run(output="whole", **settings)
    kill_at(20, train_sequence_classifier)
    # What a kill leaves in the worst case: the newest checkpoint without its last file
    Path("killed/checkpoint-59").mkdir()
    run(output="killed", **settings)
    assert_same_end(Path("killed"), folder)


def test_finished_run_is_not_trained_further(run):
    scores, folder = run()
    weights = weights_in(folder)
    assert run()[0] == scores
    torch.testing.assert_close(weights_in(folder), weights, rtol=0, atol=0)


def test_a_run_that_ended_within_an_epoch_is_not_trained_further(run):
    """Alone or fold by fold: the same weights, scores and card."""
    ends = {"max_steps": 4, "load_best_model_at_end": False, "lr_scheduler_type": "constant"}
    folds = {"validation_file": None, "test_file": None, "validation_share": 0.2, "folds": 2}
    for output, settings in (("one", ends), ("two", {**ends, **folds})):
        scores, folder = run(output=output, **settings)
        models = [folder] if output == "one" else [folder / "fold-1", folder / "fold-2"]
        before = [(weights_in(model), (model / "README.md").read_text()) for model in models]
        assert run(output=output, **settings)[0] == scores
        for model, (weights, card) in zip(models, before, strict=True):
            torch.testing.assert_close(weights_in(model), weights, rtol=0, atol=0)
            assert (model / "README.md").read_text() == card


def test_random_order_goes_on_within_an_epoch(run):
    steps = {"train_sampling_strategy": "random", "save_strategy": "steps", "eval_strategy": "steps"}
    steps |= {"save_steps": 7, "eval_steps": 7, "load_best_model_at_end": False, "max_steps": 35}
    _, folder = run(output="whole", **steps)
    expected = weights_in(folder)
    for step in (21, 28, 35):
        (folder / f"checkpoint-{step}/trainer_state.json").unlink()
    run(output="whole", **steps)
    torch.testing.assert_close(weights_in(folder), expected, rtol=0, atol=0)


# Data


@pytest.mark.parametrize(
    ("values", "feature", "names", "numbers"),
    [
        (["b", "a", "b"], Value("string"), ["a", "b"], [1, 0, 1]),
        ([10, 9, 10], Value("int64"), ["9", "10"], [1, 0, 1]),
        ([True, False, True], Value("bool"), ["False", "True"], [1, 0, 1]),
        ([1, 2, 1], ClassLabel(names=["x", "z", "y"]), ["x", "z", "y"], [1, 2, 1]),
    ],
)
def test_kinds_of_labels(values, feature, names, numbers, tmp_path):
    path = str(tmp_path / "rows.parquet")
    features = Features({"text": Value("string"), "label": feature})
    Dataset.from_dict({"text": ["t"] * 3, "label": values}, features=features).to_parquet(path)
    splits, found = read_examples(DataArguments(train_file=path, test_file=path))
    assert found == names
    assert splits["train"]["label"][:] == splits["test"]["label"][:] == numbers


def test_splits_may_number_the_same_names_in_their_own_way(tmp_path):
    for split, names in (("train", ["no", "yes"]), ("test", ["yes", "no"])):
        features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
        rows = Dataset.from_dict({"text": ["t", "t"], "label": [0, 1]}, features=features)
        rows.to_parquet(tmp_path / f"{split}.parquet")
    files = {f"{split}_file": str(tmp_path / f"{split}.parquet") for split in ("train", "test")}
    splits, names = read_examples(DataArguments(**files))
    assert names == ["no", "yes"]
    assert splits["test"]["label"][:] == [1, 0]


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "jsonl", "jsonl.gz", "json", "parquet"])
def test_table_files(ending, tmp_path):
    frame, name = make_rows(10, 0).rename(columns={"text": "line"}), f"rows.{ending}"
    path = tmp_path / name
    if "csv" in name:
        frame.to_csv(path, index=False)
    elif "json" in name:
        frame.to_json(path, orient="records", lines="jsonl" in name)
    else:
        frame.to_parquet(path)
    splits, names = read_examples(DataArguments(train_file=str(path), text_column="line"))
    assert splits["train"]["text"][:] == frame["line"].tolist()
    assert [names[number] for number in splits["train"]["label"]] == frame["label"].tolist()


def test_words_that_look_like_gaps(tmp_path):
    """ "NA" and "null" are words, and the mark that some programs put before a table is none of it."""
    path = tmp_path / "rows.csv"
    path.write_text("\ufefftext,label\nNA,null\nnull,1\nnan,1\n", encoding="utf-8")
    splits, names = read_examples(DataArguments(train_file=str(path)))
    assert splits["train"]["text"][:] == ["NA", "null", "nan"]
    assert names == ["1", "null"]


@pytest.mark.parametrize("ending", ["csv", "csv.gz"])
def test_cells_of_a_table_are_texts(ending, tmp_path):
    """However many rows of numbers come before a word: `00` and `0` are two labels, and a number may be a text."""
    texts, labels = [*map(str, range(12_000)), "a word"], ["00", "0", "01"] * 4000 + ["x"]
    path = tmp_path / f"rows.{ending}"
    pd.DataFrame({"text": texts, "label": labels}).to_csv(path, index=False)
    splits, names = read_examples(DataArguments(train_file=str(path)))
    assert names == ["0", "00", "01", "x"]
    assert splits["train"]["text"][:] == texts
    assert [names[number] for number in splits["train"]["label"]] == labels


def test_folder_without_a_train_split(tmp_path):
    (tmp_path / "validation.csv").write_text("text,label\na,1\n")
    with pytest.raises(SystemExit, match="there is no train split; the splits are validation"):
        read_examples(DataArguments(dataset=str(tmp_path)))


def test_splits_of_a_dataset_by_name(tmp_path):
    """As data sets of the Hub have them: several for validation, and a test whose labels are kept back."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=["x", "y"])})
    labels = {"train": [0, 1], "validation_matched": [1, 0], "validation": [1, 1], "test": [-1, -1]}
    for split, numbers in labels.items():
        rows = Dataset.from_dict({"text": ["a", "b"], "label": numbers}, features=features)
        rows.to_parquet(tmp_path / f"{split}.parquet")
    folder = tmp_path / "README.md"
    entries = [{"split": split, "path": f"{split}.parquet"} for split in labels]
    folder.write_text(f"---\n{yaml.safe_dump({'configs': [{'config_name': 'default', 'data_files': entries}]})}---\n")
    data = DataArguments(dataset=str(tmp_path), validation_split="validation_matched", test_split="none")
    splits, _ = read_examples(data)
    assert {split: rows["label"][:] for split, rows in splits.items()} == {"train": [0, 1], "validation": [1, 0]}
    with pytest.raises(SystemExit, match="test: row 1: column 'label' holds -1, which is no label"):
        read_examples(DataArguments(dataset=str(tmp_path)))
    with pytest.raises(SystemExit, match="there is no dev split; the splits are train, validation_matched, "):
        read_examples(DataArguments(dataset=str(tmp_path), test_split="dev"))


MISTAKES = {
    "factor": (["--discriminative-factor", "0.5"], "--discriminative-factor must be at least 1, got 0.5"),
    "unfreezing": (["--gradual-unfreezing", "-1"], "--gradual-unfreezing must be at least 0, got -1.0"),
    "nothing to unfreeze": (["--gradual-unfreezing", "1"], "need --init-from: a new model has nothing to keep"),
    "nothing to tune": (["--discriminative-factor", "2"], "need --init-from: a new model has nothing to keep"),
    "no column": (["--text-column", "line"], "train.csv: there is no column 'line'; the columns are 'text', 'label'"),
    "no label column": (["--label-column", "class"], "train.csv: there is no column 'class'; the columns are"),
    "unknown label": (["--test-file", "other.csv"], "other.csv: row 2: column 'label' holds the label 'neutral'"),
    "no label": (["--train-file", "holes.jsonl"], "holes.jsonl: row 2: column 'label' holds None, which is no label"),
    "number that names nothing": (["--train-file", "hidden.parquet"], "row 2: column 'label' holds -1, which is no"),
    "gap among numbers": (["--train-file", "gap.csv"], "gap.csv: row 3: column 'label' holds None, which is no label"),
    "fraction": (
        ["--train-file", "fraction.jsonl"],
        "fraction.jsonl: row 1: column 'label' holds 0.5, which is no label",
    ),
    "a comma": (
        ["--train-file", "comma.csv"],
        "comma.csv: Error tokenizing data. C error: Expected 2 fields in line 3",
    ),
    "commas": (["--train-file", "commas.csv"], "commas.csv: row 1 has 1 cell more than the header"),
    "no text": (["--train-file", "untold.jsonl"], "untold.jsonl: row 1: column 'text' holds 5, which is no text"),
    "columns in place of rows": (["--train-file", "columns.json"], "column 'text' holds {'0': 'a a a a a a a a a"),
    "a space": (["--train-file", "space.csv"], "no column 'label'; the columns are 'text', ' label'"),
    "no words": (["--train-file", "blank.jsonl"], "blank.jsonl: column 'text' holds no words"),
    "one label": (["--train-file", "one.csv"], "one.csv: column 'label' holds one label only, 'good'"),
    "empty split": (["--test-file", "empty.csv"], "empty.csv: there are no rows"),
    "empty file": (["--test-file", "empty.jsonl"], "empty.jsonl: there are no rows"),
    "twice": (["--train-file", "twice.csv"], "twice.csv: columns that stand twice: 'label'"),
    "a split of no dataset": (["--test-split", "none"], "--test-split goes with --dataset"),
    "not JSON": (["--train-file", "broken.jsonl"], "broken.jsonl: "),
    "no validation": (["--validation-file", "none.csv"], "there is no file 'none.csv'"),
    "few of a label": (
        ["bare.yaml", "--train-file", "few.csv", "--validation-share", "0.5"],
        "--validation-share 0.5: 1 of 2 labels stand in one row only, and cannot be shared: 'good'",
    ),
    "two validation splits": (["--validation-share", "0.5"], "--validation-share must be 0"),
    "fold without folds": (["--fold", "3"], "--fold 3 goes with --folds"),
    "fold beyond folds": (
        ["--folds", "2", "--validation-share", "0.1", "--fold", "3"],
        "--fold must be one of the 2 of --folds, from 1, got 3",
    ),
    "one fold": (["--folds", "1"], "--folds must be at least 2, got 1"),
    "half precision on a CPU": (["--fp16", "true"], "--fp16 is for GPUs, and would change nothing on a CPU"),
    "another model": (
        ["--model-config", "qrnn-huge"],
        "--model-config qrnn-huge: neither a file nor one of configuration/models: awd-qrnn-ptb, ",
    ),
    "folds with a test": (
        ["--folds", "3", "--validation-share", "0.1"],
        "leave out --validation-file and",
    ),
    "folds without a share": (["--folds", "3"], "--folds goes with --validation-share"),
    "length": (["--max-length", "0"], "--max-length must be at least 1, got 0"),
    "vocabulary": (["--vocab-size", "1"], "--vocab-size must be at least 2, got 1"),
    "frequency": (["--min-frequency", "0"], "--min-frequency must be at least 1, got 0"),
    "frequency of sub-words": (
        ["--tokenizer", "bpe", "--min-frequency", "2"],
        "--min-frequency must be 1 with --tokenizer bpe, got 2",
    ),
    "metric": (
        ["--metric-for-best-model", "f1"],
        "--metric-for-best-model f1: the metrics are accuracy, loss",
    ),
    "order and steps": (
        ["--save-strategy", "steps", "--load-best-model-at-end", "false"],
        "--save-strategy must be epoch",
    ),
    "one checkpoint": (["--save-total-limit", "1"], "--save-total-limit must be at least 2"),
    "accumulation": (
        ["--gradient-accumulation-steps", "0"],
        "--gradient-accumulation-steps must be at least 1, got 0",
    ),
    "strategies": (["--eval-strategy", "no"], "recipe.yaml: "),
    "wrong model": (["--model-overrides", "{zoneout: 2.0}"], "zoneout"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "validation", "test"):
        make_rows(8, 0).to_csv(f"{split}.csv", index=False)
    Path("other.csv").write_text("text,label\na,good\nb,neutral\n")
    Path("holes.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": "b", "label": null}\n')
    Path("gap.csv").write_text("text,label\na,1\nb,0\nc,\n")
    Path("fraction.jsonl").write_text('{"text": "a", "label": 0.5}\n')
    Path("commas.csv").write_text("text,label\nyes, it is,good\nno, it is not,bad\n")
    Path("comma.csv").write_text("text,label\nyes,good\nno, it is not,bad\n")
    Path("untold.jsonl").write_text('{"text": 5, "label": "x"}\n')
    Path("blank.jsonl").write_text('{"text": "", "label": "good"}\n{"text": " ", "label": "bad"}\n')
    pd.DataFrame({"text": ["a " * 999] * 9, "label": ["good"] * 9}).to_json("columns.json")
    Path("space.csv").write_text("text, label\na,good\nb,bad\n")
    Path("one.csv").write_text("text,label\na,good\nb,good\n")
    Path("few.csv").write_text("text,label\na,good\nb,bad\nc,bad\nd,bad\n")
    Path("empty.csv").write_text("text,label\n")
    Path("empty.jsonl").touch()
    Path("twice.csv").write_text("text,label,label\na,good,bad\n")
    Path("broken.jsonl").write_text('{"text": "a", "la')
    features = Features({"text": Value("string"), "label": ClassLabel(names=["x", "y"])})
    Dataset.from_dict({"text": ["a", "b"], "label": [0, -1]}, features=features).to_parquet("hidden.parquet")
    files = {f"{split}_file": f"{split}.csv" for split in ("train", "validation", "test")}
    Path("recipe.yaml").write_text(yaml.safe_dump({**files, **RECIPE}))
    Path("bare.yaml").write_text(yaml.safe_dump(RECIPE))
    options, message = MISTAKES[mistake]
    recipe = [] if options[0].endswith(".yaml") else ["recipe.yaml"]
    with pytest.raises(SystemExit) as stopped:
        train_sequence_classifier.main([*recipe, *options])
    line = stopped.value.code if isinstance(stopped.value.code, str) else capsys.readouterr().err.rstrip("\n")
    assert message in line
    assert "\n" not in line and len(line) < 500
    assert stopped.value.code != 0
    assert not list(Path().glob("*/checkpoint-*"))
