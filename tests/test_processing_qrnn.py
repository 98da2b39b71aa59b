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
"""The processor: features and labels together, files, and the batches that `Trainer` trains on."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, Trainer, TrainingArguments, Wav2Vec2CTCTokenizer

from modeling_qrnn import QRNNFeatureExtractor, QRNNForCTC, QRNNProcessor, QRNNSpeechConfig


RATE = 8000
TOKENS = ["<pad>", "|", "<unk>", *"abc"]
PITCHES = {"a": 300, "b": 900, "c": 2000}


@pytest.fixture
def processor(tmp_path):
    vocabulary = tmp_path / "vocab.json"
    vocabulary.write_text(json.dumps({token: index for index, token in enumerate(TOKENS)}))
    tokenizer = Wav2Vec2CTCTokenizer(vocabulary, bos_token=None, eos_token=None)
    return QRNNProcessor(QRNNFeatureExtractor(feature_size=8, sampling_rate=RATE), tokenizer)


def speak(text: str) -> np.ndarray:
    """A tenth of a second for each letter: its tone, and then nothing."""
    time = np.arange(500) / RATE
    tones = [np.pad(0.5 * np.sin(2 * np.pi * PITCHES[letter] * time), (0, 300)) for letter in text]
    return np.concatenate(tones)


def test_audio_and_text_become_an_example(processor):
    audio = speak("abc")
    example = processor(audio=audio, sampling_rate=RATE, text="ab c")
    np.testing.assert_array_equal(
        example["input_features"], processor.feature_extractor(audio, RATE)["input_features"]
    )
    assert example["labels"] == [3, 4, 1, 5]
    assert processor.decode([3, 3, 0, 3, 1, 5]) == "aa c"
    assert processor.batch_decode(torch.tensor([[3, 3, 0], [4, 0, 4]])) == ["a", "bb"]


def test_wrong_audio_is_refused(processor):
    with pytest.raises(ValueError, match="`sampling_rate` must be 8000 Hz"):
        processor(audio=speak("a"), sampling_rate=16_000)
    with pytest.raises(ValueError, match="either an `audio` or `text`"):
        processor()


def test_saved_is_loaded(processor, tmp_path):
    processor.feature_extractor.fit([speak("abc")], RATE)
    processor.save_pretrained(tmp_path / "saved")
    for loaded in (
        QRNNProcessor.from_pretrained(tmp_path / "saved"),
        AutoProcessor.from_pretrained(tmp_path / "saved"),
    ):
        assert type(loaded) is QRNNProcessor
        assert loaded.feature_extractor.to_dict() == processor.feature_extractor.to_dict()
        assert loaded.tokenizer.get_vocab() == processor.tokenizer.get_vocab()


def test_collate(processor):
    texts = ["abc", "a", "cb"]
    examples = [
        {
            "input_features": processor.feature_extractor(speak(text), RATE)["input_features"][0],
            "labels": processor.tokenizer(text).input_ids,
        }
        for text in texts
    ]
    batch = processor.collate(examples)
    assert set(batch) == {"input_features", "attention_mask", "labels"}
    assert batch["labels"].tolist() == [[3, 4, 5], [3, -100, -100], [5, 4, -100]]
    expected = processor.feature_extractor([speak(text) for text in texts], RATE, return_tensors="pt")
    assert torch.equal(batch["input_features"], expected["input_features"])
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])

    called = [processor(audio=speak(text), sampling_rate=RATE, text=text) for text in texts]
    assert all(torch.equal(value, batch[name]) for name, value in processor.collate(called).items())
    padded = processor(audio=[speak(text) for text in texts], sampling_rate=RATE, padding="max_length", max_length=99)
    rows = [
        {"input_features": features, "attention_mask": mask, "labels": example["labels"]}
        for features, mask, example in zip(*padded.values(), examples, strict=True)
    ]
    assert all(torch.equal(value, batch[name]) for name, value in processor.collate(rows).items())
    pair = processor(audio=[speak("a"), speak("b")], sampling_rate=RATE, text=["a", "b"])
    with pytest.raises(ValueError, match="`input_features` must be those of one recording in each example, got 2"):
        processor.collate([pair])


def test_trainer_learns_to_transcribe(processor, tmp_path):
    """From nothing to every letter of strings that were not heard in training."""
    generator = np.random.default_rng(0)
    texts = ["".join(generator.choice(list(PITCHES), size=generator.integers(1, 6))) for _ in range(200)]
    processor.feature_extractor.fit([speak(text) for text in texts], RATE)
    examples = [
        {
            "input_features": processor.feature_extractor(speak(text), RATE)["input_features"][0],
            "labels": processor.tokenizer(text).input_ids,
        }
        for text in texts
    ]
    config = QRNNSpeechConfig(
        num_mel_bins=8, hop_length=80, hidden_size=32, vocab_size=len(TOKENS), connection="residual", stride=2
    )
    model = QRNNForCTC(config)
    arguments = TrainingArguments(
        tmp_path,
        max_steps=120,
        per_device_train_batch_size=16,
        learning_rate=1e-2,
        lr_scheduler_type="cosine",
        warmup_steps=10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    Trainer(model, arguments, train_dataset=examples, data_collator=processor.collate).train()
    model.eval()
    unheard = ["abcabc", "ccba", "bbb", "cacaa"]
    batch = processor(audio=[speak(text) for text in unheard], sampling_rate=RATE, return_tensors="pt")
    assert processor.batch_decode(model(**batch).logits.argmax(dim=-1)) == unheard
    transcriber = processor.transcriber(model)
    for text in unheard:
        assert "".join(map(transcriber.push, np.array_split(speak(text), 7))) + transcriber.finish() == text
