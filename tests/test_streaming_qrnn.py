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
"""Streams: the logits and the text of audio in pieces are those of the whole, and what is kept does not grow."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import Wav2Vec2CTCTokenizer

from modeling_qrnn import (
    QRNNFeatureExtractor,
    QRNNForCTC,
    QRNNProcessor,
    QRNNSpeechConfig,
    QRNNSpeechStream,
    QRNNStreamingTranscriber,
)


RATE = 8000
EXTRACTOR = QRNNFeatureExtractor(feature_size=8, sampling_rate=RATE)
TOKENS = ["<pad>", "|", "<unk>", *"abc"]
PUNCTUATION = ["<pad>", "|", "<unk>", *"ab'.,t"]
FRONT_ENDS = {
    "every frame": {"stride": 1},
    "stride 3": {"stride": 3},
    "max": {"stride": 2, "temporal_pooling": "max", "connection": "residual"},
    "average": {"stride": 1, "temporal_pooling": "average", "temporal_pooling_size": 5, "connection": "dense"},
}


def make_model(redraw, **options) -> QRNNForCTC:
    sizes = {"num_mel_bins": 8, "hop_length": 80, "hidden_size": 6, "vocab_size": len(TOKENS), "kernel_size": [3, 2]}
    model = redraw(QRNNForCTC(QRNNSpeechConfig(**{**sizes, **options})).double(), std=1.0)
    if not model.config.bidirectional:
        with torch.no_grad():  # no token is likelier than the others, so that there is text to read
            model.ctc_head.bias -= whole_logits(model, draw()).mean(dim=0)
    return model


@pytest.fixture(params=FRONT_ENDS.values(), ids=FRONT_ENDS)
def model(request, redraw):
    return make_model(redraw, **request.param)


@pytest.fixture
def processor(tmp_path):
    vocabulary = tmp_path / "vocab.json"
    vocabulary.write_text(json.dumps({token: index for index, token in enumerate(TOKENS)}))
    return QRNNProcessor(EXTRACTOR, Wav2Vec2CTCTokenizer(vocabulary, bos_token=None, eos_token=None))


def draw(num_samples=5000) -> np.ndarray:
    """Bursts of noise, each of its own loudness."""
    generator = np.random.default_rng(0)
    loudness = np.exp(generator.normal(-4, 3, size=-(-num_samples // 250))).clip(max=0.5).repeat(250)[:num_samples]
    return loudness * generator.normal(size=num_samples)


@torch.no_grad()
def whole_logits(model, audio):
    return model(torch.tensor(EXTRACTOR.padded_frames(audio))[None]).logits[0]


def pieces_of(audio, cuts):
    return np.split(audio, np.cumsum(cuts)[:-1]) if cuts else [audio]


CUTS = {
    "whole": [5000],
    "two": [2113, 2887],
    "frames": [200, *[80] * 60],
    "with nothing in between": [0, 3000, 0, 0, 2000, 0],
    "one by one": [1] * 5000,
}


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
def test_logits_are_those_of_the_whole(model, cuts):
    audio, stream = draw(), QRNNSpeechStream(model, EXTRACTOR)
    logits = [stream.push(piece, RATE) for piece in pieces_of(audio, cuts)]
    torch.testing.assert_close(torch.cat([*logits, stream.finish()]), whole_logits(model, audio), rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_samples", [1, 79, 80, 120, 121, 199, 200, 201, 280, 281, 440, 441, 1000])
def test_ends_are_those_of_the_whole(model, num_samples):
    audio, stream = draw(num_samples), QRNNSpeechStream(model, EXTRACTOR)
    for _ in range(2):  # after the end a new recording begins
        logits = [stream.push(piece) for piece in np.array_split(audio, 3)]
        actual = torch.cat([*logits, stream.finish()])
        torch.testing.assert_close(actual, whole_logits(model, audio), rtol=0, atol=1e-12)


def test_any_cuts(redraw):
    model, audio = make_model(redraw, stride=3), draw(3000)
    stream, expected = QRNNSpeechStream(model, EXTRACTOR), whole_logits(model, audio)

    @settings(max_examples=25)
    @given(st.lists(st.integers(0, 700), max_size=8))
    def check(cuts):
        logits = [stream.push(piece) for piece in np.split(audio, np.minimum(np.cumsum(cuts), 3000).astype(int))]
        torch.testing.assert_close(torch.cat([*logits, stream.finish()]), expected, rtol=0, atol=1e-12)

    check()


def test_nothing_heard_is_nothing_written(model):
    stream = QRNNSpeechStream(model, EXTRACTOR)
    assert stream.finish().shape == (0, len(TOKENS))
    stream.push(np.zeros(0))
    assert stream.finish().shape == (0, len(TOKENS))


def test_logits_come_as_early_as_they_can(redraw):
    """A step needs its frames and no more."""
    stream = QRNNSpeechStream(make_model(redraw, stride=3), EXTRACTOR)
    assert len(stream.push(draw(200 + 2 * 80 - 1))) == 0
    assert len(stream.push(draw(1))) == 1


def test_what_is_kept_does_not_grow(model):
    stream, sizes = QRNNSpeechStream(model, EXTRACTOR), []
    for piece in np.split(draw(40_000), 100):
        stream.push(piece)
        state = stream.state_dict()
        sizes.append(sum(tensor.numel() for tensor in state.values()))
        assert len(state["samples"]) < 200 and len(state["frames"]) < model.config.subsampling_ratio
        # what is kept is no view of a larger array
        assert stream.samples.base is None and stream.frames.base is None
    assert max(sizes[50:]) <= max(sizes[:50])


def test_int16_is_as_float(model):
    audio = (30_000 * draw()).astype(np.int16)
    streams = [QRNNSpeechStream(model, EXTRACTOR) for _ in range(2)]
    assert torch.equal(streams[0].push(audio), streams[1].push(audio / 32768))


def test_refused_pieces_are_not_heard(model):
    audio, stream = draw(), QRNNSpeechStream(model, EXTRACTOR)
    logits = [stream.push(audio[:2000])]
    for wrong, rate, told in (
        (np.zeros((2, 5)), RATE, "(2, 5)"),
        (np.array([np.nan]), RATE, "finite"),
        (np.zeros(5), 16_000, "16000"),
    ):
        with pytest.raises(ValueError, match=re.escape(told)):
            stream.push(wrong, rate)
    logits += [stream.push(audio[2000:]), stream.finish()]
    torch.testing.assert_close(torch.cat(logits), whole_logits(model, audio), rtol=0, atol=1e-12)


def test_bidirectional_models_are_refused(redraw):
    with pytest.raises(ValueError, match="`model` must be unidirectional"):
        QRNNSpeechStream(make_model(redraw, bidirectional=True), EXTRACTOR)


@pytest.mark.parametrize("options", [{"feature_size": 9}, {"hop_length": 40}], ids=str)
def test_other_extractors_are_refused(redraw, options):
    extractor = QRNNFeatureExtractor(**{"feature_size": 8, "sampling_rate": RATE, **options})
    with pytest.raises(ValueError, match="8 features every 80 samples"):
        QRNNSpeechStream(make_model(redraw), extractor)


# --- text ---


@torch.no_grad()
@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
def test_text_is_that_of_the_whole(model, processor, cuts):
    audio, transcriber = draw(), processor.transcriber(model)
    texts = [transcriber.push(piece, RATE) for piece in pieces_of(audio, cuts)]
    expected = processor.decode(whole_logits(model, audio).argmax(dim=-1))
    assert len(set(expected)) > 3
    assert "".join([*texts, transcriber.finish()]) == expected


class Script:
    """In place of a stream of logits: each piece is a list of tokens."""

    def push(self, tokens, sampling_rate=None):
        return torch.eye(max(len(TOKENS), len(PUNCTUATION)))[torch.tensor(tokens, dtype=torch.long)]

    def finish(self):
        return self.push([])

    def reset(self):
        pass


@settings(max_examples=200)
@given(pieces=st.lists(st.lists(st.integers(0, len(TOKENS) - 1), max_size=6), max_size=8))
def test_text_of_any_tokens(pieces, tokenizer):
    transcriber = make_transcriber(tokenizer)
    text = "".join(transcriber.push(piece) for piece in pieces) + transcriber.finish()
    assert text == tokenizer.decode([token for piece in pieces for token in piece])


@settings(max_examples=100)
@given(tokens=st.lists(st.integers(0, len(PUNCTUATION) - 1), max_size=9))
def test_text_is_not_cleaned_up(tokens, tmp_path_factory):
    """For that would change what is written."""
    tokenizer = make_tokenizer(tmp_path_factory, PUNCTUATION, clean_up_tokenization_spaces=True)
    transcriber = make_transcriber(tokenizer)
    text = "".join(transcriber.push([token]) for token in tokens) + transcriber.finish()
    assert text == tokenizer.decode(tokens, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize(
    ("pieces", "texts"),
    [
        ([[3, 3], [3, 0], [3]], ["a", "", "a"]),  # a token that goes on, and one that comes again after a blank
        ([[1, 1, 3], [1], [1, 0, 1], [4]], ["a", "", "", "  b"]),  # spaces wait for what follows, or are never written
        ([[0, 0], [], [5, 1]], ["", "", "c"]),
    ],
    ids=str,
)
def test_text_is_written_as_soon_as_it_is_known(pieces, texts, tokenizer):
    transcriber = make_transcriber(tokenizer)
    assert [transcriber.push(piece) for piece in pieces] == texts


def test_a_pad_token_that_is_not_the_blank_is_refused(tmp_path_factory):
    """As in the vocabularies that have it last, of a config that was not told so."""
    with pytest.raises(ValueError, match=r"`processor.tokenizer` must have the blank .* 0 of its config, got 5"):
        make_transcriber(make_tokenizer(tmp_path_factory, [*TOKENS[1:], "<pad>"]))


def test_tail_does_not_grow(tokenizer):
    transcriber = make_transcriber(tokenizer)
    for _ in range(100):
        transcriber.push([3, 0, 4, 1, 0])
    assert len(transcriber.tail) == 2


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory, TOKENS)


def make_tokenizer(tmp_path_factory, tokens: list[str], **options) -> Wav2Vec2CTCTokenizer:
    vocabulary = tmp_path_factory.mktemp("tokenizer") / "vocab.json"
    vocabulary.write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    return Wav2Vec2CTCTokenizer(vocabulary, bos_token=None, eos_token=None, **options)


def make_transcriber(tokenizer) -> QRNNStreamingTranscriber:
    config = QRNNSpeechConfig(num_mel_bins=8, hop_length=80, hidden_size=2, vocab_size=len(TOKENS))
    processor = SimpleNamespace(feature_extractor=EXTRACTOR, tokenizer=tokenizer)
    transcriber = QRNNStreamingTranscriber(SimpleNamespace(config=config), processor)
    transcriber.stream = Script()
    return transcriber


# --- going on elsewhere ---


@torch.no_grad()
@pytest.mark.parametrize("cut", [0, 1, 130, 300, 2513, 5000])
def test_goes_on_from_a_file(model, processor, tmp_path, cut):
    audio, first, second = draw(), processor.transcriber(model), processor.transcriber(model)
    text = first.push(audio[:cut])
    save_file(first.state_dict(), tmp_path / "state.safetensors")
    second.push(draw(777))  # what it heard before is gone
    second.load_state_dict(load_file(tmp_path / "state.safetensors"))
    text += second.push(audio[cut:]) + second.finish()
    assert text == processor.decode(whole_logits(model, audio).argmax(dim=-1))


def test_state_is_a_copy(model):
    stream = QRNNSpeechStream(model, EXTRACTOR)
    stream.push(draw(3000))
    state = stream.state_dict()
    first = stream.push(draw(1000))
    stream.load_state_dict(state)
    assert torch.equal(stream.push(draw(1000)), first)
    stream.load_state_dict(state)
    assert torch.equal(stream.push(draw(1000)), first)


def test_state_of_something_else(model, processor):
    transcriber = processor.transcriber(model)
    transcriber.push(draw(3000))
    before = transcriber.state_dict()
    for state in (transcriber.stream.state_dict(), {}):
        with pytest.raises(ValueError, match=r"`state` must be .* but it has no last_token and no tail"):
            transcriber.load_state_dict(state)
    with pytest.raises(ValueError, match=r"`state` must be .* but it has no samples and no frames and no num_frames"):
        transcriber.stream.load_state_dict({})
    assert all(torch.equal(before[name], part) for name, part in transcriber.state_dict().items())


@pytest.mark.parametrize("length", [None, *range(3000, 3400, 80)])
def test_state_that_lost_a_part(length, model):
    """Also all that is the model's, with any number of frames that it has not read yet, and after its first step."""
    stream = QRNNSpeechStream(model, EXTRACTOR)
    first = EXTRACTOR.frame_length + (model.config.subsampling_ratio - 1) * EXTRACTOR.hop_length
    stream.push(draw(first if length is None else length))
    state = stream.state_dict()
    of_model = {name for name in state if name.startswith("layers.")}
    assert len(of_model) == 3 * model.config.num_hidden_layers
    for lost in [{name} for name in state] + [of_model]:
        with pytest.raises(ValueError, match=rf"it has no .*{re.escape(min(lost))}"):
            stream.load_state_dict({name: part for name, part in state.items() if name not in lost})
        now = stream.state_dict()
        assert now.keys() == state.keys() and all(torch.equal(now[name], part) for name, part in state.items())


def test_state_of_another_extractor(redraw, model):
    state = QRNNSpeechStream(model, EXTRACTOR).state_dict()
    wide = QRNNFeatureExtractor(feature_size=9, sampling_rate=RATE)
    stream = QRNNSpeechStream(QRNNForCTC(QRNNSpeechConfig(num_mel_bins=9, hop_length=80, hidden_size=6)), wide)
    with pytest.raises(ValueError, match="frames of 9 features, got 8"):
        stream.load_state_dict(state)


OTHERS = {
    "wider": {"hidden_size": 8},
    "deeper": {"num_hidden_layers": 3, "kernel_size": [3, 2, 2]},
    "shallower": {"num_hidden_layers": 1, "kernel_size": [3]},
}


@pytest.mark.parametrize("options", OTHERS.values(), ids=OTHERS)
def test_state_of_another_model(options, redraw):
    streams = [QRNNSpeechStream(make_model(redraw, **other), EXTRACTOR) for other in ({}, options)]
    for stream, other in (streams, streams[::-1]):
        stream.push(draw())
        with pytest.raises(ValueError, match="state of another model"):
            other.load_state_dict(stream.state_dict())
        other.reset()


def test_state_with_more_than_was_read(model):
    """What is the model's, where too few frames were made for a step of it, is not left out in silence."""
    first, second = QRNNSpeechStream(model, EXTRACTOR), QRNNSpeechStream(model, EXTRACTOR)
    first.push(draw())
    of_model = {name: part for name, part in first.state_dict().items() if name.startswith("layers.")}
    second.load_state_dict({**second.state_dict(), **of_model})
    assert second.state_dict().keys() >= of_model.keys()
