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
"""The pipelines of the package: `translation` and `summarization`."""

import json
import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, pipeline
from transformers.pipelines import PIPELINE_REGISTRY, REMOVED_TASKS
from transformers.pipelines.pt_utils import KeyDataset

from modeling_qrnn import (
    QRNNConfig,
    QRNNForCausalLM,
    QRNNForConditionalGeneration,
    QRNNSeq2SeqConfig,
    QRNNSeq2SeqModel,
    SummarizationPipeline,
    TranslationPipeline,
)


TEXTS = ["ein Hund", "eine Katze sah einen Hund auf der Matte", "Katze", "der Hund und die Katze"]
TASKS = {"translation": TranslationPipeline, "summarization": SummarizationPipeline}
KEYS = {"translation": "translation", "translation_de_to_en": "translation", "summarization": "summary"}
tasks = pytest.mark.parametrize("task", KEYS)


@pytest.fixture(params=["left", "right"])
def padding_side(request):
    return request.param


@pytest.fixture
def folder(tmp_path, redraw):
    return save(tmp_path, redraw)


def save(folder, redraw, padding_side: str = "right"):
    """A wide random model and a tokenizer of whole words."""
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    words = [*special.values(), *sorted(set(" ".join(TEXTS).split()))]
    vocabulary = {word: index for index, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, padding_side=padding_side, **special).save_pretrained(folder)
    tokens = {"pad_token_id": 0, "decoder_start_token_id": 1, "eos_token_id": 2}
    config = QRNNSeq2SeqConfig(vocab_size=len(words), hidden_size=8, encoder_layers=2, decoder_layers=2, **tokens)
    redraw(QRNNForConditionalGeneration(config), std=1.5).save_pretrained(folder)
    return folder


def texts_of(folder, texts: list[str], **options) -> list[str]:
    """What the model itself makes of each text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = QRNNForConditionalGeneration.from_pretrained(folder).eval()
    ids = [model.generate(**encode(tokenizer, text), **options)[0] for text in texts]
    return tokenizer.batch_decode(ids, skip_special_tokens=True)


def encode(tokenizer, text: str) -> dict[str, torch.Tensor]:
    return {"input_ids": tokenizer(text, return_tensors="pt")["input_ids"]}


@tasks
@pytest.mark.parametrize("num_beams", [1, 3])
def test_results(task, num_beams, padding_side, tmp_path, redraw):
    """The format that users know, and in a batch what each text gives alone."""
    folder = save(tmp_path, redraw, padding_side)
    pipe, options = (
        pipeline(task, model=str(folder)),
        {"max_new_tokens": 7, "min_new_tokens": 2, "num_beams": num_beams},
    )
    assert isinstance(pipe, TASKS[task.partition("_")[0]])
    expected = [{f"{KEYS[task]}_text": text} for text in texts_of(folder, TEXTS, **options)]
    assert any(result[f"{KEYS[task]}_text"] for result in expected)
    assert pipe(TEXTS, **options) == expected
    assert pipe(TEXTS, batch_size=3, **options) == expected
    assert pipe(TEXTS[1], **options) == expected[1:2]
    assert pipe(TEXTS[:1], **options) == expected[:1]
    assert pipe([], **options) == []


def test_options_of_the_pipeline_and_of_the_call(folder):
    pipe = pipeline("translation", model=str(folder), max_new_tokens=3, batch_size=2)
    assert pipe(TEXTS) == pipe(TEXTS, max_new_tokens=3, num_beams=4)  # four beams unless told otherwise
    assert pipe(TEXTS, max_new_tokens=9) != pipe(TEXTS)
    assert pipe(TEXTS, num_beams=1) == pipe(TEXTS, num_beams=1, do_sample=False)


def test_several_sequences(folder):
    pipe = pipeline("summarization", model=str(folder))
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 5}
    several = pipe(TEXTS, **options, batch_size=4)
    assert [len(results) for results in several] == [3] * len(TEXTS)
    assert pipe(TEXTS[0], **options) == several[0]
    assert several[0][0] == pipe(TEXTS[0], num_beams=3, max_new_tokens=5)[0]


def test_token_ids(folder):
    pipe = pipeline("translation", model=str(folder))
    options = {"max_new_tokens": 5}
    results = pipe(TEXTS, return_tensors=True, **options)
    assert [set(result) for result in results] == [{"translation_token_ids"}] * len(TEXTS)
    texts = [pipe.tokenizer.decode(r["translation_token_ids"], skip_special_tokens=True) for r in results]
    assert texts == [result["translation_text"] for result in pipe(TEXTS, **options)]


def test_streams_of_texts(folder):
    pipe = pipeline("translation", model=str(folder), max_new_tokens=4)
    expected = pipe(TEXTS)
    stream = pipe(text for text in TEXTS)
    assert not isinstance(stream, list)
    assert [result for (result,) in stream] == expected
    dataset = KeyDataset(Dataset.from_dict({"de": TEXTS}), "de")
    assert [result for (result,) in pipe(dataset, batch_size=2)] == expected


def test_prefix(folder):
    pipe = pipeline("summarization", model=str(folder), max_new_tokens=4)
    assert pipe("Katze", prefix="die ") == pipe("die Katze")
    pipe.model.config.prefix = "eine "
    assert pipeline("summarization", model=pipe.model, tokenizer=pipe.tokenizer)("Katze", max_new_tokens=4) == pipe(
        "eine Katze"
    )


def test_truncation(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder, model_max_length=2)
    pipe = pipeline("translation", model=str(folder), tokenizer=tokenizer, max_new_tokens=4)
    assert pipe("eine Katze sah", truncation=True) == pipe("eine Katze")
    assert pipe("eine Katze sah") == pipe("eine Katze sah", truncation=False)


def test_assistant(folder):
    options = {"model": str(folder), "max_new_tokens": 6, "min_new_tokens": 4, "num_beams": 1}
    plain = pipeline("translation", **options)
    draft = QRNNForConditionalGeneration.from_pretrained(folder)
    assisted = pipeline("translation", **options, assistant_model=draft)
    assert assisted(TEXTS) == plain(TEXTS)


class TwoLanguages(PreTrainedTokenizerFast):
    """A tokenizer that, as those of several languages do, has the languages in front."""

    def _build_translation_inputs(self, text, return_tensors, truncation, src_lang, tgt_lang):
        return self(f"{src_lang} {tgt_lang} {text}", return_tensors=return_tensors, truncation=truncation)


def test_languages(folder):
    tokenizer = TwoLanguages.from_pretrained(folder)
    model = QRNNForConditionalGeneration.from_pretrained(folder)
    plain = pipeline("translation", model=model, tokenizer=AutoTokenizer.from_pretrained(folder), max_new_tokens=4)
    by_name = pipeline("translation_der_to_die", model=model, tokenizer=tokenizer, max_new_tokens=4)
    by_option = pipeline("translation", model=model, tokenizer=tokenizer, max_new_tokens=4)
    expected = plain("der die Hund")
    assert by_name("Hund") == by_option("Hund", src_lang="der", tgt_lang="die") == expected
    with pytest.raises(ValueError, match="`src_lang` and `tgt_lang` must be None with a tokenizer that knows no lang"):
        plain("Hund", src_lang="der")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (7, "takes texts, got int: 7"),
        ([["a", "b"]], "takes texts, got list: "),
        ("", "takes texts of at least one token, got ''"),
        (["Hund", " "], "takes texts of at least one token, got ' '"),
    ],
)
@tasks
def test_bad_input_is_refused(task, text, message, folder):
    with pytest.raises(ValueError, match=f"The {task} pipeline {message}"):
        pipeline(task, model=str(folder))(text, max_new_tokens=2)


def test_names_of_tasks():
    assert {"summarization", "translation"} <= set(PIPELINE_REGISTRY.get_supported_tasks())
    assert not {"summarization", "translation"} & set(REMOVED_TASKS)
    for other in ("translation_de", "translation_to_en", "text2text-generation"):
        with pytest.raises(KeyError):
            pipeline(other, model="nowhere", config=QRNNSeq2SeqConfig())
    assert PIPELINE_REGISTRY.check_task("ner")[0] == "token-classification"
    with pytest.raises(KeyError):
        PIPELINE_REGISTRY.task_aliases["nothing"]


def test_other_models_are_refused(folder):
    for model in (QRNNForCausalLM(QRNNConfig(vocab_size=10, hidden_size=8)), QRNNSeq2SeqModel.from_pretrained(folder)):
        with pytest.raises(ValueError, match=f"`model` must be one from text to text .* got {type(model).__name__}"):
            pipeline("translation", model=model, tokenizer=AutoTokenizer.from_pretrained(folder))


# --- without the package ---------------------------------------------------------------------------------------------

WITHOUT_THE_PACKAGE = """
import json, sys
sys.modules["modeling_qrnn"] = None
from transformers import pipeline
folder, task, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
pipe = pipeline(task, model=folder, trust_remote_code=True)
assert type(pipe).__module__.startswith("transformers_modules."), type(pipe)
print(json.dumps(pipe(texts, max_new_tokens=6, batch_size=2)))
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
pipeline_class = get_class_from_dynamic_module("pipelines_qrnn." + type(pipe).__name__, folder)
model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
pipe = pipeline_class(model=model, tokenizer=tokenizer, task=task)
print(json.dumps(pipe(texts, max_new_tokens=6, batch_size=2)))
"""


def test_saved_pipeline_brings_its_code(folder, tmp_path, monkeypatch):
    task = "translation"
    pipe = pipeline(task, model=str(folder))
    expected = pipe(TEXTS, max_new_tokens=6)
    saved = tmp_path / "saved"
    pipe.save_pretrained(saved)
    assert (saved / "pipelines_qrnn.py").exists()
    assert set(json.loads((saved / "config.json").read_text())["custom_pipelines"]) == {task}

    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    command = [sys.executable, "-I", "-c", WITHOUT_THE_PACKAGE, str(saved), task, json.dumps(TEXTS)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert [json.loads(line) for line in run.stdout.splitlines()] == [expected] * 2

    # With the package there is no need to trust the folder's code.
    assert pipeline(task, model=str(saved), pipeline_class=TranslationPipeline)(TEXTS, max_new_tokens=6) == expected
    with pytest.raises(ValueError, match="trust_remote_code"):
        pipeline(task, model=str(saved))
