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
"""scripts/quickstart.py: its arithmetic, its files, its mistakes."""

import gzip
import importlib.util
import json
import math
import random
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard, get_token
from matplotlib.image import imread
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

from program_runs import run_card


ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts/quickstart.py"
TINY = {
    "model_type": "qrnn",
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "connection": "residual",
    "hidden_dropout": 0.1,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def quickstart():
    spec = importlib.util.spec_from_file_location("quickstart", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_text(n_paragraphs: int = 130) -> str:
    """Paragraphs of 80 words drawn from a small vocabulary, some 500 characters each."""
    draw = random.Random(0)
    words = [
        "".join(draw.choice("aeiou") + draw.choice("lmnrst") for _ in range(draw.randint(1, 4))) for _ in range(200)
    ]
    return "\n\n".join(" ".join(draw.choices(words, k=80)) for _ in range(n_paragraphs))


@pytest.fixture(scope="module")
def tiny_options(tmp_path_factory):
    folder = tmp_path_factory.mktemp("options")
    (folder / "text.txt").write_text(make_text(), encoding="utf-8")
    (folder / "tiny.json").write_text(json.dumps(TINY))
    files = ["--train-file", folder / "text.txt", "--model-config", folder / "tiny.json"]
    return [*map(str, files), "--max-steps", "3", "--block-length", "64"]


@pytest.fixture(scope="module")
def finished(quickstart, tiny_options, tmp_path_factory):
    """What a run printed, and its output folder."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("finished") / "my-model"
    with redirect_stdout(StringIO()) as stdout:
        quickstart.main([*tiny_options, "--output-dir", str(folder)])
    return stdout.getvalue(), folder


def test_output_folder(finished):
    stdout, folder = finished
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "loss_curve.png"} <= names
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "qrnn"
    assert config["vocab_size"] == 320
    assert AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([[5, 6]])).cache is not None
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_qrnn.QRNNForCausalLM"
    assert (folder / "modeling_qrnn.py").is_file()
    assert str(folder / "README.md") in stdout


def test_saved_model_gives_the_reported_score(finished, quickstart, tiny_options):
    stdout, folder = finished
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    _, held_out = quickstart.split_text(Path(tiny_options[1]).read_text(encoding="utf-8"))
    nats = 0.0
    for text in held_out:
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            log_probs = model(ids).logits.log_softmax(-1)
        nats -= log_probs[0, :-1].gather(1, ids[0, 1:, None]).sum().item()
    score = nats / math.log(2) / len("".join(held_out).encode())
    assert f"QRNN{score:>25.3f}" in stdout


def test_card(finished):
    _, folder = finished
    card = ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == (
        "apache-2.0",
        "transformers",
        "text-generation",
    )
    (result,) = card.data.eval_results
    assert f"| QRNN | {result.metric_value:.3f} |" in card.text
    assert "# my-model" in card.text
    assert "the file `text.txt`" in card.text
    run_card(folder)
    assert "{{" not in card.text and "{%" not in card.text


def test_the_card_is_pushed_last(quickstart, tiny_options, tmp_path, monkeypatch):
    """In one upload, without the card that Trainer writes when it pushes; and no file holds the secret."""
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    calls = []

    def upload(repo_id, folder_path, **_):
        assert "held-out bits per byte" in Path(folder_path, "README.md").read_text()
        calls.append(f"{repo_id} by {get_token()}")

    monkeypatch.setattr(Trainer, "init_hf_repo", lambda self, **_: setattr(self, "hub_model_id", "me/my-model"))
    monkeypatch.setattr(Trainer, "_push_from_checkpoint", lambda self, folder: None)
    monkeypatch.setattr(Trainer, "push_to_hub", lambda self, **_: calls.append("all of Trainer"))
    monkeypatch.setattr("results.upload_folder", upload)
    settings = {"push_to_hub": True, "hub_token": "hf_secret", "use_cpu": True, "report_to": "none"}
    (tmp_path / "pushed.yaml").write_text(json.dumps(settings))
    folder = tmp_path / "my-model"
    quickstart.main([*tiny_options, "--training-config", str(tmp_path / "pushed.yaml"), "--output-dir", str(folder)])
    assert calls == ["me/my-model by hf_secret"]
    assert not [file.name for file in folder.iterdir() if file.is_file() and b"hf_secret" in file.read_bytes()]


def test_card_of_the_project_is_valid():
    template = ModelCard.load(ROOT / "model_card.md")
    assert template.data.library_name == "transformers"
    card = ModelCard.from_template(template.data, template_path=str(ROOT / "model_card.md"))
    assert "# Quasi-Recurrent Neural Network" in card.text
    assert "{" not in card.text.split("```bibtex")[0]


def test_loss_curve_is_a_picture(finished):
    _, folder = finished
    pixels = imread(folder / "loss_curve.png")[..., :3]
    assert min(pixels.shape[:2]) > 400
    is_coloured = pixels.max(axis=-1) - pixels.min(axis=-1) > 0.3
    assert is_coloured.sum() > 200  # the two curves; axes, text and baselines are grey


def test_seed_decides(finished, quickstart, tiny_options, tmp_path):
    def run(name, seed):
        quickstart.main([*tiny_options, "--seed", seed, "--output-dir", str(tmp_path / name)])
        return tmp_path / name

    _, first = finished
    again, other = run("again", "42"), run("other", "43")
    weights, same, different = (load_file(folder / "model.safetensors") for folder in (first, again, other))
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert not all(torch.equal(weights[name], different[name]) for name in weights)
    # The split does not depend on the seed.
    assert len({(folder / "tokenizer.json").read_text() for folder in (first, again, other)}) == 1


def test_ngram_costs_by_hand(quickstart):
    documents, vocabulary = [["<s>", "a", "b", "a", "b", "</s>"]], ["<s>", "a", "b", "</s>", "c"]
    held_out = [["<s>", "a", "c"]]
    # Counted once more than they occur: <s> 2, a 3, b 3, </s> 2, c 1.
    unigram = quickstart.ngram_nats(documents, held_out, vocabulary, order=1)
    assert unigram == pytest.approx(-math.log(3 / 11) - math.log(1 / 11))
    # a after <s> (seen once, discounted to a quarter); c after a, never seen there, from the unigrams.
    trigram = quickstart.ngram_nats(documents, held_out, vocabulary, order=3)
    assert trigram == pytest.approx(-math.log(0.25 + 0.75 * 3 / 11) - math.log(0.75 * (0.75 / 2) * 1 / 11))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_ngram_probabilities_sum_to_one(quickstart, order):
    documents, vocabulary = [list("abracadabra")], "abcdrxyz"

    def nats(document):
        return quickstart.ngram_nats(documents, [list(document)], vocabulary, order)

    for context in ("ab", "ax", "xx"):
        assert sum(math.exp(nats(context) - nats(context + token)) for token in vocabulary) == pytest.approx(1)


def test_bits_per_byte_by_hand(quickstart):
    labels = torch.tensor([[0, 1, 2, 3], [0, 1, -100, -100]])
    losses = quickstart.token_losses(torch.zeros(2, 4, 8), labels)  # each token costs log2(8) = 3 bits
    losses[1, 1:] = -100.0  # as Trainer pads batches of unequal length
    prediction = SimpleNamespace(predictions=losses.numpy(), label_ids=labels.numpy())
    metrics = quickstart.held_out_metrics(prediction, n_bytes=6)
    assert metrics == {"bits_per_byte": pytest.approx(4 * 3 / 6)}


def test_held_out_text_is_not_trained_on(quickstart):
    from pydoc_data.topics import topics

    train, held_out = quickstart.split_text("\n\n".join(topics.values()))

    def runs(texts):
        paragraphs = [paragraph.split() for text in texts for paragraph in text.split("\n\n")]
        return {tuple(words[i : i + 8]) for words in paragraphs for i in range(len(words) - 7)}

    assert 8 * len(held_out) <= len(train) <= 10 * len(held_out)
    # A paragraph cut in two at the edge of a block may say the same thing twice; nothing else may.
    assert len(runs(train) & runs(held_out)) < 0.001 * len(runs(held_out))


@pytest.mark.parametrize("separator", ["\n\n", "\n", " ", ""])
def test_blocks_hold_the_whole_text(quickstart, separator):
    text = separator.join(f"word{number}" for number in range(3000))
    blocks = list(quickstart.cut_into_blocks(text))
    assert "".join(blocks) == text
    assert max(map(len, blocks)) <= 4000
    assert all(block.endswith(separator) for block in blocks[:-1])


def test_tokenizer_gives_back_any_text(quickstart):
    tokenizer = quickstart.byte_level_bpe([make_text(10)], 300)
    text = "Ünïcode \t 漢字 🙂\r\n  indented"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_dataset_folder_is_read_up_to_the_limit(quickstart, tmp_path):
    rows = [json.dumps({"body": f" row {number} "}) for number in range(10)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    options = ["--dataset", str(tmp_path), "--text-column", "body", "--max-characters", "12"]
    text, source = quickstart.read_text(quickstart.parse_arguments(options))
    assert text == "row 0\n\nrow 1\n\nrow 2"
    assert str(tmp_path) in source


def test_program_stops_with_one_line_on_stderr(tmp_path):
    run = subprocess.run(
        [sys.executable, SCRIPT, "--train-file", tmp_path / "none.txt"], capture_output=True, text=True
    )
    assert run.returncode != 0
    assert run.stdout == ""
    assert len(run.stderr.splitlines()) == 1
    assert "there is no file" in run.stderr and "none.txt" in run.stderr


MISTAKES = {
    "unknown option": (["--max-step", "3"], "unrecognized arguments: --max-step"),
    "no steps": (["--max-steps", "0"], "not a whole number above zero"),
    "seed": (["--seed", "-1"], "--seed must be at least 0 and below 4294967296, got -1"),
    "configuration of no dataset": (
        ["--dataset-config", "en"],
        "--dataset-config and --text-column go with --dataset",
    ),
    "column of no dataset": (
        ["--train-file", "text.txt", "--text-column", "text"],
        "--dataset-config and --text-column go with --dataset",
    ),
    "no such config": (["--model-config", "none.json"], "there is no file 'none.json'"),
    "empty file": (["--train-file", "empty.txt"], "too little text: 0 characters"),
    "short file": (["--train-file", "short.txt"], "too little text: 12 characters"),
    "not text": (["--train-file", "binary.txt"], "binary.txt: 'utf-8' codec can't decode"),
    "two sources": (["--train-file", "short.txt", "--dataset", "x"], "not allowed with argument"),
    "wrong model field": (["--model-config", "wrong.json"], "num_hidden_layers"),
    "model config of no JSON": (["--model-config", "short.txt"], "short.txt"),
    "unknown training field": (["--training-config", "wrong.yaml"], "learning_rte"),
    "a wrong item": (["--training-config", "items.yaml"], "no_such_logger"),
    "wrong training value": (["--training-config", "fast.yaml"], "argument --learning_rate/--learning-rate: invalid"),
    "training setting twice": (["--training-config", "twice.yaml"], "names that stand twice: seed"),
    "training config of no settings": (["--training-config", "short.txt"], "not a mapping of `name: value`"),
    "half precision on a CPU": (["--training-config", "half.yaml"], "--fp16 is for GPUs, and would change nothing"),
    "another model": (["--model-config", "other.json"], "it holds a 'qrnn_speech', not a 'qrnn'"),
    "a package": (
        ["--train-file", "text.txt", "--training-config", "wandb.yaml", "--model-config", "tiny.json"],
        "wandb",
    ),
    "output is a file": (["--output-dir", "short.txt"], "--output-dir"),
    "dataset of nothing": (["--dataset", "empty"], "--dataset empty"),
    "no such column": (["--dataset", "rows"], "no text in column 'text'; the columns are 'body'"),
    "half a file": (["--dataset", "half"], "--dataset half"),
    "long blocks": (["--train-file", "text.txt", "--block-length", "1000000"], "--block-length 1000000"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake, quickstart, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").touch()
    Path("short.txt").write_text("too little.\n")
    Path("binary.txt").write_bytes(b"\xff\xfe\x00")
    Path("text.txt").write_text(make_text(100))
    Path("wrong.json").write_text(json.dumps(TINY | {"num_hidden_layers": "two"}))
    Path("wrong.yaml").write_text("learning_rte: 0.1\n")
    Path("items.yaml").write_text("report_to: [none, no_such_logger]\nuse_cpu: true\n")
    Path("fast.yaml").write_text("learning_rate: fast\n")
    Path("half.yaml").write_text("fp16: true\nuse_cpu: true\n")
    Path("twice.yaml").write_text("seed: 1\nseed: 2\n")
    Path("other.json").write_text(json.dumps(TINY | {"model_type": "qrnn_speech"}))
    Path("tiny.json").write_text(json.dumps(TINY))
    Path("wandb.yaml").write_text("report_to: wandb\nuse_cpu: true\n")
    monkeypatch.setitem(sys.modules, "wandb", None)
    Path("empty").mkdir()
    Path("rows").mkdir()
    Path("rows/train.jsonl").write_text('{"body": "a row"}\n')
    Path("half").mkdir()
    Path("half/train.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a row"}\n' * 1000)[:-20])
    options, message = MISTAKES[mistake]
    with pytest.raises(SystemExit) as stopped:
        quickstart.main(options)
    line = stopped.value.code if isinstance(stopped.value.code, str) else capsys.readouterr().err.rstrip("\n")
    assert message in line
    assert "\n" not in line
    assert stopped.value.code != 0
