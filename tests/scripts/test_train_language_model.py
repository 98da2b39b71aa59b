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
"""scripts/train_language_model.py: what it reads, trains, scores and writes, and how it goes on after a kill."""

import gzip
import json
import math
import re
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from huggingface_hub import ModelCard, get_token
from huggingface_hub.utils import filter_repo_objects
from matplotlib.image import imread
from transformers import AutoModelForCausalLM, AutoTokenizer

import train_language_model
from modeling_qrnn.trainer_qrnn import QRNNTrainer
from program_runs import assert_same_end, kill_at, run_card, weights_in, write_rows
from train_language_model import DataArguments, read_documents


ROOT = Path(__file__).parents[2]
LINES = [f"{first} likes {second} and {third} ." for first in "abcde" for second in "fghij" for third in "klmno"]
RECIPE = {
    "tokenizer": "character",
    "validation_share": 0.2,
    "model_config": "qrnn-tiny",
    "model_overrides": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2},
    "per_device_train_batch_size": 4,
    "bptt": 16,
    "max_steps": 12,
    "learning_rate": 0.01,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "save_steps": 4,
    "logging_steps": 2,
    "use_cpu": True,
    "disable_tqdm": True,
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`run(*options, **recipe)`: the program in a folder with a text; its scores and its output folder."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("\n".join(LINES))

    def run(*options: str, output: str = "output", **recipe):
        Path("recipe.yaml").write_text(yaml.safe_dump({"train_file": "text.txt", **RECIPE, **recipe}))
        train_language_model.main(["recipe.yaml", "--output-dir", output, *options])
        return json.loads(Path(output, "scores.json").read_text()), Path(output)

    return run


# What it writes


def test_saved_model_gives_the_reported_score(run):
    scores, folder = run("--zero-state-window", "10")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    text = Path("text.txt").read_text()
    held_out = text[int(len(text) * 0.8) :]
    ids = tokenizer(held_out, return_tensors="pt").input_ids
    assert tokenizer.decode(ids[0]) == held_out

    def nats(ids: torch.Tensor) -> float:
        with torch.no_grad():
            log_probs = model(ids).logits[:, :-1].double().log_softmax(-1)
        return -log_probs.gather(2, ids[:, 1:, None]).sum().item()

    score = scores["validation"]
    assert score["tokens"] == len(held_out) - 1
    assert score["loss"] == pytest.approx(nats(ids) / score["tokens"], rel=1e-5)
    assert score["perplexity"] == pytest.approx(math.exp(score["loss"]))
    assert score["bits_per_character"] == score["bits_per_byte"] == pytest.approx(score["loss"] / math.log(2))
    windows = [window for window in ids.split(10, dim=1) if window.shape[1] > 1]
    n_tokens = sum(window.shape[1] - 1 for window in windows)
    assert score["loss_of_windows"] == pytest.approx(sum(map(nats, windows)) / n_tokens, rel=1e-5)


@pytest.mark.parametrize("tokenizer", ["character", "bpe"])
@pytest.mark.parametrize("layout", ["documents", "streams", "packed"])
def test_bits_are_of_the_text_that_is_scored(tokenizer, layout, run):
    """Read again by hand: the saved model over each document, or over all as one, of text that is not ASCII."""
    texts = [f"é{line}ü" for line in LINES[::6]] + ["ö"]
    for split, part in {"train": texts, "validation": texts[::2]}.items():
        write_rows(f"{split}.jsonl", ({"text": text} for text in part))
    files = {f"{split}_file": f"{split}.jsonl" for split in ("train", "validation")}
    scores, folder = run(**files, tokenizer=tokenizer, vocab_size=300, layout=layout, validation_share=0.0)
    model, tokens = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    end = "\n" if tokenizer == "character" else tokens.eos_token
    held_out = [text + end for text in texts[::2]]
    if tokenizer == "character":  # whose line break is between documents
        held_out[-1] = held_out[-1].removesuffix(end)
    sequences = [tokens(text)["input_ids"] for text in held_out]
    sequences = sequences if layout == "documents" else [[token for ids in sequences for token in ids]]
    nats, n_characters, n_bytes = 0.0, 0, 0
    for ids in filter(lambda ids: len(ids) > 1, sequences):
        nats += model(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item() * (len(ids) - 1)
        spelled = tokens.decode(ids, skip_special_tokens=True)[len(tokens.decode(ids[:1], skip_special_tokens=True)) :]
        n_characters, n_bytes = n_characters + len(spelled), n_bytes + len(spelled.encode())
    bits = nats / math.log(2)
    assert scores["validation"]["bits_per_character"] == pytest.approx(bits / n_characters, rel=1e-4)
    assert scores["validation"]["bits_per_byte"] == pytest.approx(bits / n_bytes, rel=1e-4)


def test_characters_know_the_end_of_a_line(run):
    """Which is in every document but the last, and so frequent, however small the vocabulary."""
    rows = [{"text": "ab" + "c" * (number % 2)} for number in range(40)]
    for split in ("train", "validation"):
        write_rows(f"{split}.jsonl", rows)
    files = {f"{split}_file": f"{split}.jsonl" for split in ("train", "validation")}
    _, folder = run(**files, validation_share=0.0, vocab_size=5)
    assert set(AutoTokenizer.from_pretrained(folder).get_vocab()) == {"<unk>", "<eos>", "a", "b", "\n"}


def test_unknown_words_are_told(run, capsys):
    run(tokenizer="word", vocab_size=8)
    told = capsys.readouterr().out
    unknown = re.search(r"validation: (\d+\.\d+)% of the tokens are <unk>", told)
    assert 10 < float(unknown[1]) < 70


def test_card_and_curve(run, capsys):
    scores, folder = run()
    card = ModelCard.load(folder / "README.md")
    (result,) = card.data.eval_results
    assert result.metric_value == pytest.approx(scores["validation"]["perplexity"], abs=1e-3)
    assert "{{" not in card.text and "{%" not in card.text
    assert f"| validation | {result.metric_value:.2f} |" in card.text
    assert "max_steps: 12" in card.text and "`text.txt`" in card.text
    run_card(folder)
    pixels = imread(folder / "loss_curve.png")[..., :3]
    assert ((pixels.max(axis=-1) - pixels.min(axis=-1)) > 0.3).sum() > 200
    assert f"perplexity {scores['validation']['perplexity']:.4f}" in capsys.readouterr().out


def test_the_best_model_by_perplexity_is_the_one_of_the_least(run):
    scores, folder = run("--load-best-model-at-end", "--metric-for-best-model", "perplexity")
    log = json.loads((folder / "checkpoint-12/trainer_state.json").read_text())["log_history"]
    values = [entry["eval_perplexity"] for entry in log if "eval_perplexity" in entry]
    assert scores["validation"]["perplexity"] == pytest.approx(min(values))
    assert min(values) < 0.99 * max(values)


CHECKPOINTS = ["checkpoint-2/optimizer.pt", "linear/checkpoint-2/optimizer.pt"]  # the second of a linear model beside


def test_the_card_is_pushed_last(run, monkeypatch):
    """In one upload, without the card that Trainer writes when it pushes; and no file holds the secret."""
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    calls = []

    def upload(repo_id, folder_path, ignore_patterns, revision, **_):
        assert Path(folder_path, "README.md").is_file() and Path(folder_path, "scores.json").is_file()
        assert not [*filter_repo_objects(CHECKPOINTS, ignore_patterns=ignore_patterns)]
        calls.append(f"{repo_id} by {get_token()} to {revision}")

    monkeypatch.setattr(QRNNTrainer, "init_hf_repo", lambda self, **_: setattr(self, "hub_model_id", "me/my-model"))
    monkeypatch.setattr(QRNNTrainer, "_push_from_checkpoint", lambda self, folder: None)
    monkeypatch.setattr(QRNNTrainer, "push_to_hub", lambda self, **_: calls.append("all of Trainer"))
    monkeypatch.setattr("results.upload_folder", upload)
    _, folder = run("--push-to-hub", "--hub-token", "hf_secret", "--hub-revision", "new", "--max-steps", "1")
    assert calls == ["me/my-model by hf_secret to new"]
    assert not [file.name for file in folder.iterdir() if file.is_file() and b"hf_secret" in file.read_bytes()]


def test_a_finished_run_is_reported_elsewhere(run):
    """What changes nothing in the result may change between a run and its continuation; so may the folder's place."""
    _, folder = run("--max-steps", "2")
    scores = (folder / "scores.json").read_text()
    moved = folder.rename(folder.with_name("moved"))
    run("--max-steps", "2", "--logging-steps", "1", "--save-total-limit", "3", output="moved")
    assert (moved / "scores.json").read_text() == scores


def test_checkpoints_of_another_program_are_left_alone(run):
    _, folder = run()
    (folder / "recipe.yaml").unlink()
    with pytest.raises(SystemExit, match=r"output holds checkpoints, but no recipe\.yaml that tells what they are"):
        run(model_overrides={"hidden_size": 8})


def test_options_override_the_recipe(run):
    _, folder = run("--max-steps", "3", "--model-overrides", "{hidden_size: 8, num_hidden_layers: 1}")
    assert json.loads((folder / "checkpoint-3/trainer_state.json").read_text())["global_step"] == 3
    assert json.loads((folder / "config.json").read_text())["hidden_size"] == 8


@pytest.mark.parametrize("layout", ["streams", "packed", "documents"])
def test_layouts_learn(layout, run):
    scores, _ = run(layout=layout, tokenizer="word", max_steps=60, eval_strategy="no", save_strategy="no")
    assert scores["validation"]["perplexity"] < 12  # of 22 words


def test_words_count_as_in_the_penn_treebank(run):
    """Each line ends with a token of its own; the vocabulary may come from all splits."""
    Path("other.txt").write_text(" brand new words \n")
    files = {"tokenizer": "word", "validation_share": 0.0, "validation_file": "other.txt", "max_steps": 1}
    scores, folder = run(**files)
    assert scores["validation"]["tokens"] == 4 - 1
    assert "bits_per_character" not in scores["validation"]
    assert len(AutoTokenizer.from_pretrained(folder)) == 15 + 3 + 2
    _, folder = run(**files, vocabulary_from="all", output="all")
    assert len(AutoTokenizer.from_pretrained(folder)) == 15 + 3 + 2 + 3


def test_pretrained_tokenizer(run):
    _, folder = run(tokenizer="bpe", vocab_size=300, max_steps=1)
    scores, _ = run(tokenizer=str(folder), max_steps=1, output="second")
    assert scores["validation"]["bits_per_byte"] > 0


@pytest.mark.parametrize("option", ["init_from", "tokenizer"])
@pytest.mark.parametrize("kind", ["word", "character", "bpe"])
def test_a_text_is_read_as_its_tokenizer_needs(kind, option, run):
    """Whatever the recipe calls it: the same tokens, and bits where these spell the text."""
    first, folder = run(tokenizer=kind, vocab_size=300, max_steps=1)
    other = {"tokenizer": "bpe" if kind == "word" else "word", option: str(folder)}
    second, _ = run(**other, max_steps=1, output="second")
    assert first["validation"].keys() == second["validation"].keys()
    assert first["validation"]["tokens"] == second["validation"]["tokens"]
    assert ("bits_per_byte" in first["validation"]) == (kind != "word")


# Going on


def test_killed_run_ends_like_an_uninterrupted_one(run):
    settings = {"max_steps": 40, "save_steps": 1, "eval_steps": 10, "save_total_limit": 3}
    _, folder = run(output="whole", **settings)
    kill_at(5, train_language_model)
    # What a kill leaves in the worst case: the newest checkpoint without its last file, or with half of it
    Path("killed/checkpoint-38").mkdir()
    Path("killed/checkpoint-39").mkdir()
    Path("killed/checkpoint-39/trainer_state.json").write_text('{"global_step": 3')
    run(output="killed", **settings)
    assert_same_end(Path("killed"), folder)


def test_finished_run_is_not_trained_further(run):
    scores, folder = run()
    weights = weights_in(folder)
    assert run()[0] == scores
    torch.testing.assert_close(weights_in(folder), weights, rtol=0, atol=0)


def test_lstm_goes_on_after_a_kill(run):
    _, folder = run(architecture="lstm", output="whole")
    expected = weights_in(folder)
    Path("whole/checkpoint-12/trainer_state.json").unlink()
    Path("whole/checkpoint-8/trainer_state.json").unlink()
    run(architecture="lstm", output="whole")
    torch.testing.assert_close(weights_in(folder), expected, rtol=0, atol=0)
    assert not (folder / "modeling_qrnn.py").exists()


def test_other_settings_need_another_folder(run):
    run()
    with pytest.raises(SystemExit, match=r"output holds a run with other settings \(learning_rate\)"):
        run("--learning-rate", "0.5")
    with open("text.txt", "a") as text:
        text.write("x")
    with pytest.raises(SystemExit, match=r"output holds a run with other data \(train_file\)"):
        run()
    Path("model.json").write_text((ROOT / "configuration/models/qrnn-tiny.json").read_text())
    run(model_config="model.json", output="second")
    Path("model.json").write_text((ROOT / "configuration/models/qrnn-small.json").read_text())
    with pytest.raises(SystemExit, match=r"second holds a run with other data \(model_config\)"):
        run(model_config="model.json", output="second")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--push-to-hub"], "offline mode is enabled"),
        (["--report-to", "wandb"], "wandb"),
    ],
)
def test_hub_and_packages_out_of_reach(options, message, run, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SystemExit, match=message) as stopped:
        run(*options)
    assert "\n" not in stopped.value.code
    assert not list(Path("output").glob("checkpoint-*"))


# Files


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
def test_table_files(name, tmp_path):
    frame, path = pd.DataFrame({"line": LINES}), tmp_path / name
    if "csv" in name:
        frame.to_csv(path, index=False)
    elif "jsonl" in name:
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    data = DataArguments(train_file=str(path), validation_share=0.2, text_column="line")
    documents = read_documents(data, "word")
    assert documents["train"] + documents["validation"] == LINES


@pytest.mark.parametrize("tokenizer", ["word", "character", "bpe"])
def test_text_files(tokenizer, tmp_path):
    """Of words a line is a document; for the others the line breaks are text."""
    path = tmp_path / "text.txt.gz"
    path.write_bytes(gzip.compress("\n".join(LINES).encode()))
    data = DataArguments(train_file=str(path), validation_file=str(path))
    assert read_documents(data, tokenizer)["train"] == (LINES if tokenizer == "word" else ["\n".join(LINES)])


MISTAKES = {
    "no recipe": (["none.yaml"], "there is no file 'none.yaml'"),
    "recipe of no settings": (["text.txt"], "not a mapping of `name: value`"),
    "unknown key": (["unknown.yaml"], "unknown.yaml: unknown keys: learning_rte"),
    "no model at a path": (
        ["recipe.yaml", "--model-config", "models/huge.json"],
        "--model-config models/huge.json: neither a file nor one of configuration/models: awd-qrnn-ptb, ",
    ),
    "no value": (["empty.yaml"], "empty.yaml: keys without a value: max_steps (leave them out for their defaults)"),
    "a name twice": (["twice.yaml"], "twice.yaml: names that stand twice: seed"),
    "a number that is none": (["fraction.yaml"], "argument --max_steps/--max-steps: invalid int value: '6.0'"),
    "no such choice": (["choice.yaml"], "argument --layout: invalid choice: 'stream'"),
    "two validation splits": (
        ["recipe.yaml", "--validation-file", "text.txt"],
        "--validation-share must be 0: the data have a validation split of their own",
    ),
    "too small a window": (["recipe.yaml", "--zero-state-window", "1"], "--zero-state-window must be at least 2"),
    "windows of documents": (
        ["recipe.yaml", "--zero-state-window", "9", "--layout", "documents"],
        "--zero-state-window: with --layout documents each is scored from a zero state as it is",
    ),
    "seed": (["recipe.yaml", "--seed", "4294967296"], "--seed must be at least 0 and below 4294967296, got 42949"),
    "nothing to predict": (["recipe.yaml", "--test-file", "empty.txt"], "the test split has no two tokens in a row"),
    "unknown option": (["recipe.yaml", "--learning-rte", "1"], "unrecognized arguments: --learning-rte"),
    "wrong value": (["wrong.yaml"], "argument --max_steps/--max-steps: invalid int value: 'many'"),
    "arguments that do not fit": (["recipe.yaml", "--non-monotone", "3"], "`non_monotone` must be"),
    "accumulation": (["recipe.yaml", "--gradient-accumulation-steps", "2"], "`gradient_accumulation_steps` must be 1"),
    "no data": (["bare.yaml"], "give either --train-file or --dataset"),
    "a file beside a dataset": (
        ["bare.yaml", "--dataset", "someone/texts", "--test-file", "text.txt"],
        "--validation-file and --test-file go with --train-file",
    ),
    "a configuration of no dataset": (
        ["recipe.yaml", "--dataset-config", "en"],
        "--dataset-config goes with --dataset",
    ),
    "no file": (["bare.yaml", "--train-file", "none.txt"], "there is no file 'none.txt'"),
    "unknown kind of file": (["bare.yaml", "--train-file", "text.doc"], "text.doc: the name must end in .txt"),
    "no column": (
        ["bare.yaml", "--train-file", "rows.csv"],
        "rows.csv: there is no column 'text'; the columns are 'a'",
    ),
    "no text": (["bare.yaml", "--train-file", "holes.jsonl"], "holes.jsonl: row 2: column 'text' holds None"),
    "not UTF-8": (["bare.yaml", "--train-file", "binary.txt"], "binary.txt: 'utf-8' codec can't decode"),
    "truncated table": (["bare.yaml", "--train-file", "half.csv.gz"], "half.csv.gz: "),
    "corrupt table": (["bare.yaml", "--train-file", "corrupt.csv.gz"], "corrupt.csv.gz: "),
    "corrupt text": (["bare.yaml", "--train-file", "corrupt.txt.gz"], "corrupt.txt.gz: "),
    "empty split": (["bare.yaml", "--train-file", "empty.txt"], "the train split is empty"),
    "no validation": (["bare.yaml", "--train-file", "text.txt"], "no validation rows: give --validation-file, --"),
    "short text": (["recipe.yaml", "--per-device-train-batch-size", "9999"], "more tokens than there are streams"),
    "no model": (
        ["recipe.yaml", "--model-config", "huge"],
        "--model-config huge: neither a file nor one of configuration/models: awd-qrnn-ptb, ",
    ),
    "wrong model": (["recipe.yaml", "--model-overrides", "{zoneout: 2.0}"], "zoneout"),
    "unknown model field": (["recipe.yaml", "--model-overrides", "{zone: 2.0}"], "unknown fields: zone"),
    "metric": (
        ["recipe.yaml", "--metric-for-best-model", "perplexitty"],
        "--metric-for-best-model perplexitty: the metrics are loss, perplexity",
    ),
    "order and steps": (
        ["recipe.yaml", "--layout", "packed", "--train-sampling-strategy", "group_by_length"],
        "--save-strategy must be epoch",
    ),
    "model field twice": (
        ["recipe.yaml", "--model-overrides", "{zoneout: 0.1, zoneout: 0.2}"],
        "stand twice: zoneout",
    ),
    "field of the data": (["recipe.yaml", "--model-overrides", "{vocab_size: 5}"], "options decide: vocab_size"),
    "checkpoint": (["recipe.yaml", "--resume-from-checkpoint", "output/checkpoint-4"], "a run goes on by itself"),
    "no optimizer": (["recipe.yaml", "--save-only-model"], "--save-only-model leaves out the optimizer"),
    "rows again": (["recipe.yaml", "--ignore-data-skip"], "--ignore-data-skip reads rows again"),
    "optimizer of a package": (["recipe.yaml", "--optim", "adamw_8bit"], "error: training: "),
    "optimizer arguments": (["optim.yaml"], "error: training: "),
    "rate": (["recipe.yaml", "--learning-rate", "nan"], "Invalid learning rate: nan"),
    "schedule": (["recipe.yaml", "--lr-scheduler-type", "cosine_with_min_lr"], "min_lr"),
    "batch": (["recipe.yaml", "--per-device-train-batch-size", "0"], "-train-batch-size must be at least 1, got 0"),
    "epochs": (
        ["recipe.yaml", "--max-steps", "-1", "--num-train-epochs", "-1"],
        "--num-train-epochs must be a number above 0, got -1.0",
    ),
    "another package": (["recipe.yaml", "--deepspeed", "rows.csv"], "recipe.yaml: "),
    "output is a file": (["recipe.yaml", "--output-dir", "text.txt"], "--output-dir text.txt"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for name in ("text.txt", "text.doc"):
        Path(name).write_text("\n".join(LINES))
    Path("empty.txt").touch()
    Path("binary.txt").write_bytes(b"\xff\xfe\x00")
    Path("rows.csv").write_text("a,b\n1,2\n")
    whole = gzip.compress(b"text\n" + b"".join(f"{number} {line}\n".encode() for number, line in enumerate(LINES)))
    Path("half.csv.gz").write_bytes(whole[: len(whole) // 2])
    for ending in ("csv", "txt"):
        Path(f"corrupt.{ending}.gz").write_bytes(whole[:40] + bytes(200) + whole[240:])
    Path("holes.jsonl").write_text('{"text": "a"}\n{"text": null}\n')
    bare = {**RECIPE, "validation_share": 0.0}
    recipes = {
        "recipe": {**RECIPE, "train_file": "text.txt"},
        "bare": bare,
        "unknown": {**RECIPE, "learning_rte": 1},
        "wrong": {**RECIPE, "max_steps": "many"},
        "fraction": {**RECIPE, "max_steps": 6.0},
        "optim": {**RECIPE, "train_file": "text.txt", "optim_args": {"a": 1}},
        "choice": {**RECIPE, "layout": "stream"},
    }
    for name, recipe in recipes.items():
        Path(f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    Path("twice.yaml").write_text("seed: 1\nseed: 2\n")
    Path("empty.yaml").write_text("max_steps:\ninit_from: null\n")
    options, message = MISTAKES[mistake]
    with pytest.raises(SystemExit) as stopped:
        train_language_model.main(options)
    line = stopped.value.code if isinstance(stopped.value.code, str) else capsys.readouterr().err.rstrip("\n")
    assert message in line
    assert "\n" not in line
    assert stopped.value.code != 0
