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
"""scripts/train_seq2seq.py: what it reads, trains, scores and writes, and how it goes on after a kill."""

import json
import random
import re
from pathlib import Path

import pytest
import sacrebleu
import torch
import yaml
from huggingface_hub import ModelCard
from matplotlib.image import imread
from transformers import AutoTokenizer, GenerationConfig, TrainerState, pipeline

import train_seq2seq
from modeling_qrnn import TargetLengthLogitsProcessor
from program_runs import (
    assert_same_end,
    kill_at,
    rows_in,
    run_card,
    run_card_without_package,
    weights_in,
    write_rows,
)
from tokenization import train_tokenizer
from train_seq2seq import DataArguments, compare, encode, read_pairs


DICTIONARY = {"eins": "one", "zwei": "two", "drei": "three", "rot": "red", "blau": "blue", "grün": "green"}
NO_DROPOUT = {f"{place}_dropout": 0.0 for place in ("input", "hidden", "output", "attention")}
RECIPE = {
    "tokenizer": "bpe",
    "vocab_size": 320,
    "model_config": "translator",
    "model_overrides": {
        "hidden_size": 48,
        "intermediate_size": 48,
        "encoder_layers": 1,
        "encoder_kernel_size": 3,
        "decoder_layers": 1,
        **NO_DROPOUT,
    },
    "num_beams": 2,
    "max_new_tokens": 12,
    "per_device_train_batch_size": 16,
    "num_train_epochs": 15,
    "learning_rate": 0.01,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "logging_steps": 5,
    "train_sampling_strategy": "group_by_length",
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
    "predict_with_generate": True,
    "generation_num_beams": 1,
    "use_cpu": True,
    "disable_tqdm": True,
    "report_to": "none",
}


def make_pairs(n_rows: int, seed: int) -> list[dict]:
    """Word for word, and each sentence ends in a stop."""
    draw = random.Random(seed)
    rows = [draw.choices([*DICTIONARY], k=draw.randint(2, 4)) for _ in range(n_rows)]
    return [{"source": f"{' '.join(row)}.", "target": f"{' '.join(map(DICTIONARY.get, row))}."} for row in rows]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`run(*options, **recipe)`: the program in a folder with data; its scores and its output folder."""
    monkeypatch.chdir(tmp_path)
    for seed, (split, n_rows) in enumerate({"train": 160, "validation": 20, "test": 30}.items()):
        write_rows(f"{split}.jsonl", make_pairs(n_rows, seed))
    files = {f"{split}_file": f"{split}.jsonl" for split in ("train", "validation", "test")}

    def run(*options: str, output: str = "output", **recipe):
        settings = {name: value for name, value in {**files, **RECIPE, **recipe}.items() if value is not None}
        Path("recipe.yaml").write_text(yaml.safe_dump(settings))
        train_seq2seq.main(["recipe.yaml", "--output-dir", output, *options])
        return json.loads(Path(output, "scores.json").read_text()), Path(output)

    return run


# --- what it leaves behind -------------------------------------------------------------------------------------------


class CountedProcessor(TargetLengthLogitsProcessor):
    """Equation 9, as the program asks for it."""

    asked: list[list] = []

    def __init__(self, source_lengths, eos_token_id, alpha):
        self.asked.append([source_lengths.tolist(), alpha])
        super().__init__(source_lengths, eos_token_id, alpha)


@pytest.mark.parametrize("options", [{}, {"alpha": 0.6, "num_beams": 3, "tokenizer": "character"}], ids=str)
def test_pipeline_gives_the_reported_score(options, run, capsys, monkeypatch):
    monkeypatch.setattr(train_seq2seq, "TargetLengthLogitsProcessor", CountedProcessor)
    monkeypatch.setattr(CountedProcessor, "asked", [])
    scores, folder = run(**options)
    rows = rows_in("test.jsonl")
    references = [[row["target"] for row in rows]]
    written = (folder / "test.txt").read_text().splitlines()
    assert scores["test"]["bleu"] == pytest.approx(sacrebleu.corpus_bleu(written, references).score)
    assert scores["test"]["chrf"] == pytest.approx(sacrebleu.corpus_chrf(written, references).score)
    assert scores["test"]["bleu"] > 40  # of a dictionary of six words, learned in seconds
    config = GenerationConfig.from_pretrained(folder)
    assert (config.num_beams, config.max_new_tokens) == (options.get("num_beams", 2), 12)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sources = [row["source"] for split in ("validation", "test") for row in rows_in(f"{split}.jsonl")]
    lengths = [len(ids) for ids in tokenizer(sources)["input_ids"]] if options else []
    assert [length for batch, _ in CountedProcessor.asked for length in batch] == lengths
    assert {alpha for _, alpha in CountedProcessor.asked} == ({0.6} if options else set())
    assert re.search(r"seconds per epoch: [\d.]+, the median of 15", capsys.readouterr().out)
    translator = pipeline("translation_de_to_en", model=str(folder))
    for row, expected in zip(rows[:8], written, strict=False):
        ranking = {}
        if options:
            source = translator.tokenizer(row["source"])["input_ids"]
            processor = TargetLengthLogitsProcessor(torch.tensor([len(source)]), translator.model.config.eos_token_id)
            ranking = {"logits_processor": [processor], "length_penalty": 0.0}
        assert translator(row["source"], **ranking)[0]["translation_text"].strip() == expected


def test_summaries(run):
    """Sources in sentences, several references of some, and the first sentence beside."""
    for split in ("train", "test"):
        rows = rows_in(f"{split}.jsonl")
        for row in rows:
            row["source"] = [row["source"], "Das war es."]
            row["target"] = [row["target"], "Nothing."][: 1 + (len(row["target"]) % 2)]
        write_rows(f"{split}.jsonl", rows)
    scores, folder = run(task="summarization", metric_for_best_model="rouge1", num_train_epochs=1)
    rows = rows_in("test.jsonl")
    assert set(scores["test"]) == {"rouge1", "rouge2", "rougeL", "texts"}
    firsts = compare("summarization", [row["source"][0] for row in rows], [row["target"] for row in rows])
    assert scores["baselines"]["first sentence"]["test"] == firsts
    assert "| test, first sentence |" in (folder / "README.md").read_text()
    share = {"validation_file": None, "validation_share": 0.1}
    scores, _ = run(task="summarization", metric_for_best_model="rouge1", max_steps=1, output="share", **share)
    assert scores["baselines"]["first sentence"] == {"test": firsts}
    (answer,) = pipeline("summarization", model=str(folder))(" ".join(rows[0]["source"]))
    assert answer["summary_text"].strip() == (folder / "test.txt").read_text().splitlines()[0]


def test_card_and_curves(run):
    scores, folder = run(output="my-translator")
    card = ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == "translation"
    results = {(result.dataset_split, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert results["test", "bleu"] == pytest.approx(scores["test"]["bleu"], abs=1e-4)
    assert "{{" not in card.text and "{%" not in card.text
    assert f"| test | {scores['test']['bleu']:.2f} |" in card.text
    assert f"{rows_in('test.jsonl')[0]['source']}\n-> " in card.text
    pixels = imread(folder / "loss_curve.png")[..., :3]
    assert ((pixels.max(axis=-1) - pixels.min(axis=-1)) > 0.3).sum() > 200

    run_card(folder)
    (answer,) = pipeline("translation", model=str(folder))("eins rot.")
    assert run_card_without_package(folder, text="eins rot.").strip() == answer["translation_text"].strip()


def test_lstm_of_equal_size(run):
    scores, folder = run(architecture="lstm", output="lstm")
    assert scores["test"]["bleu"] > 30
    assert not (folder / "modeling_qrnn.py").exists() and not (folder / "README.md").exists()


# --- how it goes on --------------------------------------------------------------------------------------------------


def test_killed_run_ends_like_an_uninterrupted_one(run):
    _, folder = run(output="whole")
    kill_at(20, train_seq2seq)
    run(output="killed")
    assert_same_end(Path("killed"), folder)
    with pytest.raises(SystemExit, match=r"other settings \(learning_rate\)"):
        run("--learning-rate", "0.5", output="killed")


def test_a_run_that_ended_within_an_epoch_is_not_trained_further(run):
    ends = {"max_steps": 4, "load_best_model_at_end": False, "lr_scheduler_type": "constant"}
    scores, folder = run(**ends)
    weights = weights_in(folder)
    assert run(**ends)[0] == scores
    torch.testing.assert_close(weights_in(folder), weights, rtol=0, atol=0)


# --- what it reads ---------------------------------------------------------------------------------------------------


def test_references_and_limits(tmp_path, capsys):
    """Training reads each reference, and leaves out what is too long; the rest of the data is never cut."""
    rows = [{"source": "a b. b", "target": ["c", "d e f"]}, {"source": ["a.", "a a a a."], "target": "g"}]
    for split in ("train", "test"):
        write_rows(str(tmp_path / f"{split}.jsonl"), rows)
    files = {f"{split}_file": str(tmp_path / f"{split}.jsonl") for split in ("train", "test")}
    data = DataArguments(**files, max_source_length=3, max_target_length=3, tokenizer="word")
    splits = read_pairs(data)
    assert splits["test"]["source"][:] == ["a b. b", "a. a a a a."]
    assert splits["test"]["lead"][:] == ["a b. b", "a."]
    assert splits["test"]["references"][:] == [["c", "d e f"], ["g"]]
    tokenizer = train_tokenizer(data, {"train": ["a b b. c d e f g a."]})
    encoded = {split: encode(split, part, data, tokenizer) for split, part in splits.items()}
    assert tokenizer.batch_decode(encoded["train"]["labels"][:]) == ["c <eos>"]
    assert tokenizer.batch_decode(encoded["train"]["input_ids"][:]) == ["a b. b"]
    assert tokenizer.batch_decode(encoded["test"]["labels"][:]) == ["c <eos>", "g <eos>"]
    assert "train: 2 of 3 pairs left out" in capsys.readouterr().out


def test_the_source_is_read_as_it_is(tmp_path):
    """Nothing is put between its sentences, or taken from there; only a list of them has a first one."""
    sources = ['"Wer?", fragte er.', "one. \n  two", "Was?)Ja"]
    write_rows(str(tmp_path / "train.jsonl"), [{"source": text, "target": "x"} for text in sources])
    rows = read_pairs(DataArguments(train_file=str(tmp_path / "train.jsonl")))["train"]
    assert rows["source"][:] == rows["lead"][:] == sources
    assert train_seq2seq.score_baseline(DataArguments(task="summarization"), "train", {"train": rows}) == {}


def test_sentences_without_words_are_no_sentences(tmp_path):
    """As one row of SciTLDR has them; a source of nothing else is a mistake."""
    write_rows(str(tmp_path / "train.jsonl"), [{"source": [" ", "one.", "", "two."], "target": "x"}])
    rows = read_pairs(DataArguments(train_file=str(tmp_path / "train.jsonl")))["train"]
    assert (rows["source"][:], rows["lead"][:]) == (["one. two."], ["one."])
    write_rows(str(tmp_path / "blank.jsonl"), [{"source": ["", " "], "target": "x"}])
    with pytest.raises(SystemExit, match=r"row 1: column 'source' holds \['', ' '\], which has no words"):
        read_pairs(DataArguments(train_file=str(tmp_path / "blank.jsonl")))


def test_metrics_know_several_references():
    texts, references = ["a man sits", "two dogs run fast"], [["a man sits"], ["no", "two dogs run fast"]]
    assert compare("translation", texts, references)["bleu"] == pytest.approx(100)
    assert compare("summarization", texts, references)["rougeL"] == pytest.approx(100)
    with pytest.raises(ValueError, match="there are 2 texts, but 1 rows"):
        compare("translation", texts, references[:1])
    shouted = compare("translation", [text.upper() for text in texts], references)
    assert shouted["bleu"] < 1 and shouted["bleu_lowercased"] == pytest.approx(100)


def test_words_of_other_scripts():
    """ROUGE knows the letters a to z alone, and Chinese has no spaces."""
    texts, references = ["привет, мир", "我们 今天 走"], [["привет мир"], ["我们今天走了"]]
    assert compare("summarization", texts, references)["rouge1"] == 0
    assert compare("summarization", texts[:1], references[:1], "intl")["rouge1"] == pytest.approx(80)  # 2 of 3, and 2
    assert compare("summarization", texts[1:], references[1:], "zh")["rougeL"] == pytest.approx(100 * 10 / 11)
    assert compare("translation", texts[1:] * 2, references[1:] * 2, "zh")["bleu"] > 80
    assert compare("summarization", ["The cats sat"], [["the cat sat"]])["rouge1"] == pytest.approx(100)  # it stems


def test_seconds_are_of_whole_epochs():
    """Neither of one that was resumed, nor of one that `max_steps` cut short."""
    timer = train_seq2seq.EpochTimer()
    for begin, end in ((None, 1.0), (1.5, 2.0), (2.0, 2.9), (2.0, 3.0)):
        timer.on_epoch_begin(None, TrainerState(epoch=begin), None)
        timer.on_epoch_end(None, TrainerState(epoch=end), None)
    assert len(timer.seconds) == 2


MISTAKES = {
    "no column": (
        ["--target-column", "en"],
        "train.jsonl: there is no column 'en'; the columns are 'source', 'target'",
    ),
    "no text": (["--train-file", "gap.jsonl"], "gap.jsonl: row 2: column 'target' holds None, which is no text"),
    "no words": (["--train-file", "blank.jsonl"], "blank.jsonl: row 1: column 'source' holds ' ', which has no words"),
    "no reference": (["--test-file", "none.jsonl"], "none.jsonl: row 1: column 'target' holds [], which is no text"),
    "empty split": (["--test-file", "empty.csv"], "empty.csv: there are no rows"),
    "no file": (["--validation-file", "missing.jsonl"], "there is no file 'missing.jsonl'"),
    "length": (["--max-source-length", "0"], "--max-source-length must be at least 1, got 0"),
    "beams": (["--num-beams", "0"], "--num-beams must be at least 1, got 0"),
    "nothing left": (["--max-target-length", "1"], "no training pair is left: --max-target-length 1 is too small"),
    "neither left": (
        ["--max-source-length", "1", "--max-target-length", "2"],
        "--max-source-length 1 or --max-target-length 2 is too small",
    ),
    "nothing to rank": (["--alpha", "0.6", "--num-beams", "1"], "--num-beams 1 leaves nothing to rank"),
    "rankings": (["--alpha", "0.6", "--length-penalty", "2"], "does not go with --length-penalty"),
    "metric": (["--metric-for-best-model", "rouge1"], "the metrics are bleu, bleu_lowercased, chrf, loss"),
    "no texts to score": (
        ["--predict-with-generate", "false", "--metric-for-best-model", "bleu"],
        "bleu needs --predict-with-generate",
    ),
    "other model": (["--model-config", "qrnn-tiny"], "it holds a 'qrnn', not a 'qrnn_seq2seq'"),
    "another script": (
        ["--task", "summarization", "--test-file", "russian.jsonl", "--metric-for-best-model", "rouge1"],
        "russian.jsonl: of the letters of its summaries ROUGE counts 0%, a to z: give --metric-tokenizer",
    ),
    "wrong model": (["--model-overrides", "{num_attention_heads: 5}"], "num_attention_heads"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "validation", "test"):
        write_rows(f"{split}.jsonl", make_pairs(8, 0))
    write_rows("gap.jsonl", [{"source": "a", "target": "b"}, {"source": "a", "target": None}])
    write_rows("blank.jsonl", [{"source": " ", "target": "b"}])
    write_rows("none.jsonl", [{"source": "a", "target": []}])
    write_rows("russian.jsonl", [{"source": "hello world", "target": "привет мир"}])
    Path("empty.csv").write_text("source,target\n")
    files = {f"{split}_file": f"{split}.jsonl" for split in ("train", "validation", "test")}
    Path("recipe.yaml").write_text(yaml.safe_dump({**files, **RECIPE}))
    options, message = MISTAKES[mistake]
    with pytest.raises(SystemExit) as stopped:
        train_seq2seq.main(["recipe.yaml", *options])
    line = stopped.value.code if isinstance(stopped.value.code, str) else capsys.readouterr().err.rstrip("\n")
    assert message in line
    assert "\n" not in line
    assert stopped.value.code != 0
    assert not list(Path().glob("*/checkpoint-*"))
