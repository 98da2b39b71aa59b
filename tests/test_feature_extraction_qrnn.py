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
"""The feature extractor: its frames against their definition, whole and in pieces, files, and what it refuses."""

import json

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor
from transformers.audio_utils import mel_filter_bank

from modeling_qrnn import QRNNFeatureExtractor


RATE = 8000


@pytest.fixture
def extractor():
    return QRNNFeatureExtractor(feature_size=12, sampling_rate=RATE)


@pytest.fixture
def audio():
    """A third of a second of tones in noise."""
    time = np.arange(2713) / RATE
    return 0.3 * np.sin(2 * np.pi * 440 * time) + 0.1 * np.random.default_rng(0).normal(size=2713)


def test_frames_are_those_of_the_definition(extractor, audio):
    assert (extractor.frame_length, extractor.hop_length) == (200, 80)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(200) / 200)
    filters = mel_filter_bank(129, 12, 20.0, 4000.0, RATE)
    padded = np.pad(audio, (0, 200))
    expected = []
    for begin in range(0, extractor.num_frames(len(audio)) * 80, 80):
        power = abs(np.fft.rfft(padded[begin : begin + 200] * window, 256)) ** 2
        expected.append((np.log(np.maximum(power @ filters, 1e-10)) + 6) / 4)
    np.testing.assert_allclose(extractor.padded_frames(audio), expected, atol=1e-6)


@pytest.mark.parametrize("num_samples", [1, 79, 80, 81, 199, 200, 201, 279, 280, 281, 1000])
def test_each_sample_has_its_frame(extractor, num_samples):
    num_frames = len(extractor.padded_frames(np.ones(num_samples)))
    assert num_frames == extractor.num_frames(num_samples)
    covered = 200 + (num_frames - 1) * 80
    assert num_samples <= covered
    assert num_frames == 1 or num_samples > covered - 80
    impulse = np.zeros(num_samples)
    impulse[-1] = 1
    if num_samples not in (1, 201, 281):  # the window is zero at the very start of a frame
        assert extractor.padded_frames(impulse).max() > extractor.padded_frames(np.zeros(num_samples)).max()


def test_frames_do_not_depend_on_what_follows(extractor, audio):
    whole = extractor.frames(audio)
    for begin in (0, 3, 17):
        piece = extractor.frames(audio[begin * 80 : begin * 80 + 500])
        np.testing.assert_allclose(piece, whole[begin : begin + len(piece)], rtol=0, atol=1e-12)


def test_louder_by_a_factor_is_a_shift(extractor, audio):
    """The normalisation is fixed: no utterance is measured by itself."""
    difference = extractor.padded_frames(audio) - extractor.padded_frames(audio / 10)
    np.testing.assert_allclose(difference, np.log(100) / 4, atol=1e-5)


@pytest.mark.parametrize(
    "convert",
    [
        lambda audio: audio.astype(np.int16),
        lambda audio: (audio.astype(np.int16) / 32768).astype(np.float32),
        lambda audio: (audio.astype(np.int16) / 32768).tolist(),
        lambda audio: torch.tensor(audio.astype(np.int16)),
        lambda audio: torch.tensor(audio.astype(np.int16) / 32768),
        lambda audio: np.stack([audio.astype(np.int16)] * 2)[1, ::1],
    ],
    ids=["int16", "float32", "list", "int16 tensor", "float64 tensor", "view"],
)
def test_kinds_of_audio(extractor, audio, convert):
    samples = 20_000 * audio
    expected = extractor.padded_frames(samples.astype(np.int16) / 32768)
    actual = extractor(convert(samples), sampling_rate=RATE)["input_features"]
    np.testing.assert_allclose(actual[0], expected, atol=1e-5)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_batch_is_padded(audio, padding_side):
    extractor = QRNNFeatureExtractor(feature_size=12, sampling_rate=RATE, padding_side=padding_side)
    recordings = [audio, audio[:700], audio[:1]]
    batch = extractor(recordings, sampling_rate=RATE, return_tensors="pt")
    assert batch["input_features"].shape == (3, 33, 12) and batch["input_features"].dtype == torch.float32
    for features, mask, recording in zip(*batch.values(), recordings, strict=True):
        assert mask.sum() == extractor.num_frames(len(recording))
        real = features[mask.bool()]
        torch.testing.assert_close(real, torch.tensor(extractor.padded_frames(recording), dtype=torch.float32))
        assert not features[~mask.bool()].any()
        assert mask[-1 if padding_side == "left" else 0] == 1


def test_lengths_may_be_set(extractor, audio):
    batch = extractor([audio, audio[:700]], sampling_rate=RATE, padding="max_length", max_length=40)
    assert np.shape(batch["input_features"]) == (2, 40, 12)
    batch = extractor([audio, audio[:700]], sampling_rate=RATE, max_length=10, truncation=True)
    assert [mask.sum() for mask in batch["attention_mask"]] == [10, 8]
    batch = extractor([audio, audio[:700]], sampling_rate=RATE, padding=False)
    assert [len(features) for features in batch["input_features"]] == [33, 8]


# --- normalisation ---


def test_fitted_features_are_standard(extractor):
    generator = np.random.default_rng(1)
    recordings = [scale * generator.normal(size=length) for scale, length in ((0.1, 3000), (0.01, 1500), (0.5, 777))]
    assert extractor.fit(iter(recordings), RATE) is extractor
    features = np.concatenate([extractor.padded_frames(recording) for recording in recordings])
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-8)
    np.testing.assert_allclose(features.std(axis=0), 1, atol=1e-8)


def test_constant_features_are_centred(extractor):
    """Digital silence does not vary, and must not become infinite."""
    features = extractor.fit([np.zeros(1000)], RATE).padded_frames(np.zeros(500))
    np.testing.assert_allclose(features, 0, atol=1e-8)
    assert extractor.std == [1.0] * 12


def test_fit_needs_audio(extractor):
    with pytest.raises(ValueError, match="`recordings` must hold at least one"):
        extractor.fit([])


def test_fitted_is_saved(extractor, audio, tmp_path):
    extractor.fit([audio], RATE).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["mean"] == extractor.mean and "window" not in saved and "mel_filters" not in saved
    for loaded in (QRNNFeatureExtractor.from_pretrained(tmp_path), AutoFeatureExtractor.from_pretrained(tmp_path)):
        assert type(loaded) is QRNNFeatureExtractor
        assert loaded.to_dict() == extractor.to_dict()
        assert np.array_equal(loaded.padded_frames(audio), extractor.padded_frames(audio))


def test_datasets_store_what_is_not_padded(extractor):
    recordings = [np.random.default_rng(n).normal(size=n) for n in (700, 1500, 700)]

    def extract(rows):
        return extractor([recordings[index] for index in rows["index"]], RATE, padding=False)

    stored = datasets.Dataset.from_dict({"index": [0, 1, 2]}).map(extract, batched=True)
    for recording, features, mask in zip(recordings, stored["input_features"], stored["attention_mask"], strict=True):
        alone = extractor(recording, RATE)
        np.testing.assert_array_equal(features, alone["input_features"][0])
        assert mask == alone["attention_mask"][0].tolist()


@pytest.mark.parametrize("samples", [[], np.array([], dtype=int), torch.tensor([])], ids=repr)
def test_no_samples_may_be_of_any_type(extractor, samples):
    assert extractor.waveform(samples, may_be_empty=True).shape == (0,)


@pytest.mark.parametrize("number", [np.float32, np.array, torch.tensor])
def test_statistics_of_any_kind_are_saved(number, tmp_path):
    QRNNFeatureExtractor(mean=number(-5.5), std=number(3.0)).save_pretrained(tmp_path)
    loaded = QRNNFeatureExtractor.from_pretrained(tmp_path)
    assert (loaded.mean, loaded.std) == (-5.5, 3.0)


# --- what is refused ---


@pytest.mark.parametrize(
    ("audio", "rate", "parts"),
    [
        (np.zeros(100), 16_000, ["`sampling_rate` must be 8000 Hz", "got 16000", "resample_poly(audio, 8000, 16000)"]),
        (np.zeros((2, 100)), RATE, ["mono", "(2, 100)", "audio.mean(axis=0)", "list"]),
        (np.zeros((100, 2)), RATE, ["mono", "(100, 2)"]),
        ([np.zeros(100), np.zeros((2, 100))], RATE, ["mono", "(2, 100)"]),
        ({"array": np.zeros(100), "sampling_rate": RATE}, RATE, ["must be an array, a tensor or a list", "dict"]),
        (np.zeros(0), RATE, ["at least one sample"]),
        ([np.zeros(100), []], RATE, ["at least one sample"]),
        ([], RATE, ["at least one recording"]),
        (np.array([0.0, np.nan, np.inf]), RATE, ["finite", "2 samples"]),
        (np.zeros(100, dtype=np.uint8), RATE, ["floating-point", "int16", "got uint8"]),
        ([1, 2, 3], RATE, ["floating-point", "int16", "got int64"]),
        (np.zeros(100, dtype=np.int32), RATE, ["got int32"]),
        (np.zeros(100, dtype=np.complex64), RATE, ["got complex64"]),
    ],
    ids=str,
)
def test_wrong_audio(extractor, audio, rate, parts):
    with pytest.raises(ValueError) as error:
        extractor(audio, sampling_rate=rate)
    assert all(part in str(error.value) for part in parts)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"hop_length": 0}, ["`hop_length`", "got 0"]),
        ({"frame_length": 100, "hop_length": 101}, ["`hop_length`", "frame_length=100", "got 101"]),
        ({"min_frequency": 5000.0}, ["`min_frequency`", "4000.0", "got 5000.0"]),
        ({"max_frequency": 4001.0}, ["`max_frequency`", "4000.0", "4001.0"]),
        ({"mel_floor": 0.0}, ["`mel_floor`", "above 0"]),
        ({"mean": [1.0, 2.0]}, ["`mean`", "12 features", "[1.0, 2.0]"]),
        ({"std": float("nan")}, ["`std`", "finite", "nan"]),
        ({"std": 0.0}, ["`std`", "above 0", "got 0.0"]),
    ],
    ids=str,
)
def test_wrong_settings(options, parts):
    with pytest.raises(ValueError) as error:
        QRNNFeatureExtractor(feature_size=12, sampling_rate=RATE, **options)
    assert all(part in str(error.value) for part in parts)
