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
"""scripts/transcribe.py: text as the audio arrives, and one line for what a user can get wrong."""

import json
import os
import subprocess
import sys
import wave
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2CTCTokenizer
from transformers.utils.logging import enable_progress_bar

import transcribe
from modeling_qrnn import (
    QRNNFeatureExtractor,
    QRNNForAudioClassification,
    QRNNForCTC,
    QRNNProcessor,
    QRNNSpeechConfig,
)


SCRIPT = Path(__file__).parents[2] / "scripts/transcribe.py"
RATE = 8000
AUDIO = (3000 * np.random.default_rng(0).normal(size=7777)).astype(np.int16)


def save(folder: Path, model_class: type = QRNNForCTC, **options) -> tuple[QRNNForCTC, QRNNProcessor]:
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(["<pad>", *"abcd"])}))
    names = {"bos_token": None, "eos_token": None, "unk_token": None, "word_delimiter_token": None}
    tokenizer = Wav2Vec2CTCTokenizer(folder / "vocab.json", **names)
    extractor = QRNNFeatureExtractor(feature_size=8, sampling_rate=RATE).fit([AUDIO])
    torch.manual_seed(0)
    model = model_class(
        QRNNSpeechConfig(num_mel_bins=8, hop_length=80, hidden_size=8, vocab_size=5, stride=3, **options)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    processor = QRNNProcessor(extractor, tokenizer)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("transcribe") / "model"
    save(folder)
    return folder


@pytest.fixture(scope="module")
def expected(model_folder) -> str:
    text = text_of(model_folder, AUDIO)
    assert len(text) > 5
    return text


@torch.no_grad()
def text_of(folder: Path, audio: np.ndarray) -> str:
    model, processor = QRNNForCTC.from_pretrained(folder).eval(), QRNNProcessor.from_pretrained(folder)
    logits = model(**processor(audio=audio, sampling_rate=RATE, return_tensors="pt")).logits
    return processor.decode(logits[0].argmax(dim=-1))


def wav_bytes(audio: np.ndarray = AUDIO, rate: int = RATE, channels: int = 1, width: int = 2) -> bytes:
    file = BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setnchannels(channels)
        wav.setsampwidth(width)
        wav.setframerate(rate)
        wav.writeframes(audio.tobytes())
    return file.getvalue()


@pytest.fixture
def give(monkeypatch, capsys):
    """Run the program with these bytes as its standard input, which arrive in pieces, perhaps until Ctrl-C."""

    def give(*arguments, data: bytes = b"", piece: int | None = None, interrupt: bool = False):
        class Arriving(BytesIO):
            def read1(self, size=-1):
                if interrupt and self.tell() == len(data):
                    raise KeyboardInterrupt
                return super().read1(piece or size)

        monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": Arriving(data)}))
        monkeypatch.setattr(sys, "argv", [str(SCRIPT)])
        try:
            transcribe.main([str(argument) for argument in arguments])
        except SystemExit as exit:
            return capsys.readouterr().out, str(exit.code)
        return tuple(capsys.readouterr())

    yield give
    enable_progress_bar()


def test_file(model_folder, expected, tmp_path, give):
    (tmp_path / "audio.wav").write_bytes(wav_bytes())
    assert give(model_folder, tmp_path / "audio.wav") == (f"{expected}\n", "")


def test_wav_from_standard_input(model_folder, expected, give):
    assert give(model_folder, data=wav_bytes()) == (f"{expected}\n", "")


@pytest.mark.parametrize("piece", [1, 2, 333, None])
def test_raw_samples(model_folder, expected, give, piece):
    data = AUDIO.astype("<i2").tobytes()
    assert give(model_folder, "--sampling-rate", RATE, data=data, piece=piece) == (f"{expected}\n", "")


def test_interrupted_speech_is_written_to_its_end(model_folder, expected, give):
    data = AUDIO.astype("<i2").tobytes()
    assert give(model_folder, "--sampling-rate", RATE, data=data, piece=333, interrupt=True) == (f"{expected}\n", "")


def test_wav_of_unknown_length(model_folder, expected, give):
    """As programs write it to a pipe: the lengths in the header are as large as can be."""
    data = bytearray(wav_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"
    assert give(model_folder, data=bytes(data)) == (f"{expected}\n", "")


@pytest.mark.parametrize("lost", [1, 2, 5000, 5001])
def test_truncated_wav_is_transcribed_as_far_as_it_goes(model_folder, give, lost):
    kept = AUDIO[: (2 * len(AUDIO) - lost) // 2]
    output, error = give(model_folder, data=wav_bytes()[:-lost])
    assert output == f"{text_of(model_folder, kept)}\n"
    assert (
        error
        == f"transcribe.py: warning: the WAV is cut off: it holds {len(kept):,} of the 7,777 samples that "
        + ("its header names\n")
    )


def test_half_a_sample(model_folder, expected, give):
    data = AUDIO.astype("<i2").tobytes() + b"\x01"
    output, error = give(model_folder, "--sampling-rate", RATE, data=data)
    assert output == f"{expected}\n"
    assert error.count("\n") == 1 and "ends within a sample" in error


def test_shorter_than_a_frame(model_folder, give):
    assert give(model_folder, data=wav_bytes(AUDIO[:7])) == (f"{text_of(model_folder, AUDIO[:7])}\n", "")


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (b"", ["is empty, or ends within its header"]),
        (wav_bytes()[:20], ["is empty, or ends within its header"]),
        (b"This is a text, which is no audio at all, is it?", ["is no WAV of plain samples", "--sampling-rate"]),
        (wav_bytes(AUDIO[:0]), ["holds no audio"]),
        (wav_bytes(rate=16_000), ["must be 8000 Hz", "got 16000"]),
        (wav_bytes(AUDIO[:-1], channels=2), ["has 2 channels", "sox IN -c 1 OUT"]),
        (wav_bytes(width=1), ["has 8 bits a sample", "16 are needed"]),
        (wav_bytes(AUDIO[:-1], width=4), ["has 32 bits a sample", "16 are needed"]),
    ],
    ids=["empty", "half a header", "text", "no samples", "rate", "stereo", "8 bits", "32 bits"],
)
def test_faulty_wav(model_folder, give, tmp_path, data, parts):
    (tmp_path / "audio.wav").write_bytes(data)
    for options, name in (([], "standard input"), ([tmp_path / "audio.wav"], str(tmp_path / "audio.wav"))):
        output, error = give(model_folder, *options, data=data)
        assert output == "" and error.startswith(f"transcribe.py: error: {name}: ") and "\n" not in error
        assert all(part in error for part in parts)


def test_wrong_rate_of_raw_samples(model_folder, give):
    output, error = give(model_folder, "--sampling-rate", 16_000, data=AUDIO.tobytes())
    assert output == "" and "must be 8000 Hz" in error and "\n" not in error


def test_no_raw_samples(model_folder, give):
    assert give(model_folder, "--sampling-rate", RATE) == ("", "transcribe.py: error: standard input: holds no audio")


def test_faulty_models(model_folder, tmp_path, give):
    save(tmp_path / "both ways", bidirectional=True)
    save(tmp_path / "classifier", QRNNForAudioClassification)
    save(tmp_path / "damaged")
    (tmp_path / "damaged/model.safetensors").write_bytes(b"no weights")
    (tmp_path / "without a processor").mkdir()
    for name in ("config.json", "model.safetensors"):
        os.link(model_folder / name, tmp_path / "without a processor" / name)
    for name, part in {
        "nowhere": "there is no model in this folder",
        "both ways": "must be unidirectional",
        "classifier": "holds QRNNForAudioClassification, and only QRNNForCTC transcribes",
        "damaged": "damaged: ",
        "without a processor": "without a processor: ",
    }.items():
        output, error = give(tmp_path / name, data=wav_bytes())
        assert output == "" and "\n" not in error and part in error, name


def test_options_that_do_not_fit(model_folder, tmp_path, capsys):
    (tmp_path / "audio.wav").write_bytes(wav_bytes())
    for options, part in {
        (tmp_path / "audio.wav", "--sampling-rate", RATE): "--sampling-rate is for raw standard input",
        ("--sampling-rate", "fast"): "'fast' is not a whole number above zero",
        (tmp_path / "absent.wav",): "there is no file",
    }.items():
        with pytest.raises(SystemExit) as exit:
            transcribe.parse_arguments([str(model_folder), *map(str, options)])
        assert exit.value.code == 2
        error = capsys.readouterr().err
        assert part in error and error.count("\n") == 1


def test_text_is_printed_as_the_audio_arrives(model_folder, expected):
    """In a process of its own, whose input stays open."""
    command = [sys.executable, SCRIPT, model_folder, "--sampling-rate", str(RATE)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
    with subprocess.Popen(command, **pipes, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        process.stdin.write(AUDIO[:6000].tobytes())
        first = process.stdout.read(1)
        rest, _ = process.communicate(AUDIO[6000:].tobytes())
    assert process.returncode == 0
    assert (first + rest).decode() == f"{expected}\n"


def test_output_that_nobody_reads(model_folder):
    """The input is not to blame for it."""
    command = [sys.executable, SCRIPT, model_folder, "--sampling-rate", str(RATE)]
    reading, writing = os.pipe()
    os.close(reading)
    pipes = {"stdout": writing, "stderr": subprocess.PIPE}
    run = subprocess.run(command, input=AUDIO.tobytes(), **pipes, env=os.environ | {"OMP_NUM_THREADS": "1"})
    os.close(writing)
    assert run.returncode == 1 and b"error" not in run.stderr.lower()
