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
"""Pipelines over saved models: what they return is what the model computes, and a batch changes nothing."""

import json
from itertools import groupby

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Wav2Vec2CTCTokenizer, pipeline

from modeling_qrnn import (
    QRNNConfig,
    QRNNFeatureExtractor,
    QRNNForAudioClassification,
    QRNNForCausalLM,
    QRNNForCTC,
    QRNNForMaskedLM,
    QRNNForSequenceClassification,
    QRNNForTokenClassification,
    QRNNModel,
    QRNNProcessor,
    QRNNSpeechConfig,
)


SPECIAL_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
TEXTS = ["the cat sat", "a dog saw the cat on the mat", "mat", "the dog and a cat sat on a mat"]
LABELS = ["contradiction", "neutral", "entailment"]
TAGS = ["O", "B-ANIMAL", "I-ANIMAL"]


@pytest.fixture(params=["left", "right"])
def padding_side(request):
    return request.param


@pytest.fixture
def make_pipeline(tmp_path, redraw):
    """A pipeline over a folder with a wide random model and a tokenizer of whole words, and the model itself."""

    def make(task: str, model_class: type, padding_side: str = "right", **options):
        words = sorted(set(" ".join([*TEXTS, *LABELS, "this is about ."]).split()))
        vocabulary = {word: index for index, word in enumerate([*SPECIAL_TOKENS.values(), *words])}
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, padding_side=padding_side, model_max_length=64, **SPECIAL_TOKENS
        )
        sizes = {"vocab_size": len(vocabulary), "hidden_size": 8, "kernel_size": 3, "pad_token_id": 0}
        model = redraw(model_class(QRNNConfig(**sizes, **options)), std=1.5)
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return pipeline(task, model=str(tmp_path)), model, AutoTokenizer.from_pretrained(tmp_path)

    return make


def names(labels: list[str]) -> dict:
    return {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}


def close(expected):
    return pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_text_generation(make_pipeline):
    pipe, model, tokenizer = make_pipeline("text-generation", QRNNForCausalLM)
    options = {"max_new_tokens": 9, "do_sample": False, "return_full_text": False}
    batched = pipe(TEXTS, batch_size=3, **options)
    for text, (result,) in zip(TEXTS, batched, strict=True):
        tokens = tokenizer(text, return_tensors="pt")
        generated = model.generate(tokens["input_ids"], max_new_tokens=9, do_sample=False)
        expected = tokenizer.decode(generated[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True)
        assert result["generated_text"].strip() == expected.strip()
        assert pipe(text, **options) == [result]


@torch.no_grad()
def test_text_classification(make_pipeline, padding_side):
    pipe, model, tokenizer = make_pipeline(
        "text-classification",
        QRNNForSequenceClassification,
        padding_side,
        classifier_pooling="concat",
        **names(LABELS),
    )
    for text, result in zip(TEXTS, pipe(TEXTS, batch_size=3, top_k=None), strict=True):
        scores = model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1)
        assert {entry["label"]: entry["score"] for entry in result} == close(
            dict(zip(LABELS, scores.tolist(), strict=True))
        )


@torch.no_grad()
def test_token_classification(make_pipeline, padding_side):
    pipe, model, tokenizer = make_pipeline(
        "token-classification", QRNNForTokenClassification, padding_side, bidirectional=True, **names(TAGS)
    )
    for text, result in zip(TEXTS, pipe(TEXTS, batch_size=3, ignore_labels=[]), strict=True):
        scores, best = model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1).max(-1)
        assert [entry["word"] for entry in result] == text.split()
        assert [entry["entity"] for entry in result] == [TAGS[tag] for tag in best]
        assert [entry["score"] for entry in result] == close(scores.tolist())


@torch.no_grad()
def test_token_classification_of_groups(make_pipeline, padding_side):
    tags = ["I-ANIMAL", "I-PLACE"]
    pipe, model, tokenizer = make_pipeline(
        "token-classification", QRNNForTokenClassification, padding_side, **names(tags)
    )
    results = pipe(TEXTS, batch_size=3, aggregation_strategy="simple", ignore_labels=[])
    assert any(1 < len(result) < len(text.split()) for text, result in zip(TEXTS, results, strict=True))
    for text, result in zip(TEXTS, results, strict=True):
        scores, best = model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1).max(-1)
        words = zip(best.tolist(), scores.tolist(), text.split(), strict=True)
        groups = [(tag, list(group)) for tag, group in groupby(words, key=lambda word: word[0])]
        assert [entry["entity_group"] for entry in result] == [tags[tag].removeprefix("I-") for tag, _ in groups]
        assert [entry["word"] for entry in result] == [" ".join(word for *_, word in group) for _, group in groups]
        assert [entry["score"] for entry in result] == close(
            [sum(score for _, score, _ in group) / len(group) for _, group in groups]
        )


@torch.no_grad()
@pytest.mark.parametrize("bidirectional", [False, True])
def test_feature_extraction(make_pipeline, padding_side, bidirectional):
    pipe, model, tokenizer = make_pipeline("feature-extraction", QRNNModel, padding_side, bidirectional=bidirectional)
    for text, (states,) in zip(TEXTS, pipe(TEXTS, batch_size=len(TEXTS)), strict=True):
        expected = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        num_pads = len(states) - len(expected)
        pads = torch.zeros(num_pads, 8)
        parts = [pads, expected] if padding_side == "left" else [expected, pads]
        torch.testing.assert_close(torch.tensor(states), torch.cat(parts), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_fill_mask(make_pipeline, padding_side):
    pipe, model, tokenizer = make_pipeline("fill-mask", QRNNForMaskedLM, padding_side, bidirectional=True)
    texts = ["the [MASK] sat", "a [MASK] saw the cat on the mat", "[MASK]"]
    for text, result in zip(texts, pipe(texts, batch_size=3, top_k=4), strict=True):
        tokens = tokenizer(text, return_tensors="pt")
        at_mask = model(**tokens).logits[tokens["input_ids"] == tokenizer.mask_token_id][0]
        scores, best = at_mask.softmax(-1).topk(4)
        assert [entry["token"] for entry in result] == best.tolist()
        assert [entry["score"] for entry in result] == close(scores.tolist())
        assert pipe(text, top_k=4)[0]["score"] == close(scores[0].item())


@torch.no_grad()
def test_zero_shot_classification(make_pipeline, padding_side):
    pipe, model, tokenizer = make_pipeline(
        "zero-shot-classification", QRNNForSequenceClassification, padding_side, **names(LABELS)
    )
    candidates = ["cat", "dog", "the mat"]
    results = pipe(TEXTS, candidate_labels=candidates, hypothesis_template="this is about {} .", batch_size=3)
    for text, result in zip(TEXTS, results, strict=True):
        hypotheses = [f"this is about {candidate} ." for candidate in candidates]
        entailment = [model(**tokenizer(text, other, return_tensors="pt")).logits[0, 2] for other in hypotheses]
        scores = torch.stack(entailment).softmax(-1).tolist()
        assert dict(zip(result["labels"], result["scores"], strict=True)) == close(
            dict(zip(candidates, scores, strict=True))
        )


# --- speech ---


RATE = 8000
RECORDINGS = [np.random.default_rng(n).normal(scale=0.1, size=n).astype(np.float32) for n in (5000, 1, 900, 7654)]


@pytest.fixture
def make_speech_pipeline(tmp_path, redraw):
    """A pipeline over a folder with a wide random model and a processor, the model itself and the processor."""

    def make(task: str, model_class: type, padding_side: str, **options):
        tokens = ["<pad>", "|", *"abcde"]
        vocabulary = tmp_path / "vocab.json"
        vocabulary.write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
        options_of_tokens = {"bos_token": None, "eos_token": None, "unk_token": None, "padding_side": padding_side}
        tokenizer = Wav2Vec2CTCTokenizer(vocabulary, **options_of_tokens)
        extractor = QRNNFeatureExtractor(feature_size=8, sampling_rate=RATE, padding_side=padding_side)
        processor = QRNNProcessor(extractor.fit(RECORDINGS, RATE), tokenizer)
        sizes = {"num_mel_bins": 8, "hop_length": 80, "hidden_size": 8, "vocab_size": len(tokens), "stride": 3}
        model = redraw(model_class(QRNNSpeechConfig(**sizes, **options)), std=1.5)
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        return pipeline(task, model=str(tmp_path)), model, processor

    return make


@torch.no_grad()
@pytest.mark.parametrize("bidirectional", [False, True])
def test_automatic_speech_recognition(make_speech_pipeline, padding_side, bidirectional):
    pipe, model, processor = make_speech_pipeline(
        "automatic-speech-recognition", QRNNForCTC, padding_side, bidirectional=bidirectional
    )
    results = pipe(list(RECORDINGS), batch_size=len(RECORDINGS))
    texts = []
    for audio in RECORDINGS:
        logits = model(**processor(audio=audio, sampling_rate=RATE, return_tensors="pt")).logits[0]
        texts.append(processor.decode(logits.argmax(dim=-1)))
    assert [result["text"] for result in results] == texts
    assert max(map(len, texts)) > 3
    stereo = {"raw": np.stack([RECORDINGS[0], RECORDINGS[0]]), "sampling_rate": RATE}  # the pipeline mixes it
    assert pipe(stereo)["text"] == texts[0]


@torch.no_grad()
def test_time_stamps(make_speech_pipeline):
    pipe, model, processor = make_speech_pipeline("automatic-speech-recognition", QRNNForCTC, "right")
    chunks = pipe(RECORDINGS[0], return_timestamps="char")["chunks"]
    tokens = model(**processor(audio=RECORDINGS[0], sampling_rate=RATE, return_tensors="pt")).logits[0].argmax(dim=-1)
    step = 3 * 0.01  # seconds
    begins = [index for index, token in enumerate(tokens) if token and (index == 0 or token != tokens[index - 1])]
    assert [chunk["timestamp"][0] for chunk in chunks] == close([step * begin for begin in begins])


def test_recognition_in_overlapping_windows(make_speech_pipeline):
    """The windows' edges fall between steps, so that each step is counted once."""
    pipe, model, _ = make_speech_pipeline("automatic-speech-recognition", QRNNForCTC, "right")
    tokens = []
    pipe.tokenizer.decode = lambda items, **kwargs: tokens.append(len(items)) or ""
    samples = 30 * model.config.inputs_to_logits_ratio
    pipe(np.zeros(samples, dtype=np.float32), chunk_length_s=12 * 240 / RATE, stride_length_s=3 * 240 / RATE)
    assert tokens == [30]


@torch.no_grad()
@pytest.mark.parametrize("classifier_pooling", ["last", "concat"])
def test_audio_classification(make_speech_pipeline, padding_side, classifier_pooling):
    pipe, model, processor = make_speech_pipeline(
        "audio-classification",
        QRNNForAudioClassification,
        padding_side,
        bidirectional=True,
        classifier_pooling=classifier_pooling,
        **names(LABELS),
    )
    for audio, result in zip(RECORDINGS, pipe(list(RECORDINGS), batch_size=3, top_k=None), strict=True):
        inputs = processor(audio=audio, sampling_rate=RATE, return_tensors="pt")
        scores = model(**inputs).logits[0].softmax(dim=-1).tolist()
        assert {entry["label"]: entry["score"] for entry in result} == close(dict(zip(LABELS, scores, strict=True)))
