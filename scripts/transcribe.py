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
"""Transcribe speech as it arrives, with a model that was trained for CTC (`QRNNForCTC`, one direction).

    python scripts/transcribe.py MODEL recording.wav
    cat recording.wav | python scripts/transcribe.py MODEL
    arecord -t raw -f S16_LE -r 16000 -c 1 | python scripts/transcribe.py MODEL --sampling-rate 16000

The audio is mono, 16 bits a sample, at the rate that the model was trained for: a WAV file, WAV from standard input,
or raw little-endian samples from there. Text is printed as soon as it is known; the memory does not grow.
"""

import argparse
import os
import sys
import wave
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO


# Where other programs share the cores, OpenMP threads that spin while they wait slow each step many times over. The
# variable is read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
from safetensors import SafetensorError
from transformers import AutoConfig, AutoProcessor
from transformers.utils.logging import disable_progress_bar

from command_line import OneLineParser, existing_file, one_line_error, positive_int, stop
from modeling_qrnn import QRNNForCTC, QRNNStreamingTranscriber
from wav import open_wav


PIECES_PER_SECOND = 20
UNKNOWN_LENGTH = 0x7FFFFFF0  # bytes; what writes WAV to a pipe cannot know the length, and claims this or more


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="the folder of a trained model and its processor")
    parser.add_argument(
        "audio", nargs="?", type=existing_file, metavar="WAV", help="a WAV file (default: standard input)"
    )
    parser.add_argument(
        "--sampling-rate",
        type=positive_int,
        metavar="HZ",
        help="standard input is raw: signed 16-bit little-endian samples at this rate",
    )
    args = parser.parse_args(argv)
    if args.audio is not None and args.sampling_rate is not None:
        parser.error("--sampling-rate is for raw standard input; a WAV file says its own")
    return args


def load_transcriber(folder: Path) -> QRNNStreamingTranscriber:
    if not (folder / "config.json").is_file():
        stop(f"{folder}: there is no model in this folder (config.json)")
    with one_line_error(folder, OSError, ValueError, TypeError, SafetensorError):
        architectures = AutoConfig.from_pretrained(folder).architectures
        if architectures != [QRNNForCTC.__name__]:
            raise ValueError(f"holds {' '.join(architectures or ['nothing known'])}, and only QRNNForCTC transcribes")
        processor = AutoProcessor.from_pretrained(folder)
        return processor.transcriber(QRNNForCTC.from_pretrained(folder).eval())


def raw_pieces(stream: BinaryIO) -> Iterator[np.ndarray]:
    """What has arrived, again and again; a sample whose second byte has not waits for it."""
    rest = b""
    while data := stream.read1(1 << 16):  # type: ignore[attr-defined]
        data = rest + data
        whole = len(data) // 2 * 2
        data, rest = data[:whole], data[whole:]
        yield np.frombuffer(data, dtype="<i2").astype(np.int16)
    if rest:
        warn("the input ends within a sample: its last byte was left out")


def wav_pieces(wav: wave.Wave_read) -> Iterator[np.ndarray]:
    """The samples, a twentieth of a second at a time."""
    heard = 0
    while data := wav.readframes(max(1, wav.getframerate() // PIECES_PER_SECOND)):
        samples = np.frombuffer(data[: len(data) // 2 * 2], dtype="<i2").astype(np.int16)
        heard += len(samples)
        yield samples
    promised = wav.getnframes()
    if heard < promised < UNKNOWN_LENGTH // 2:
        warn(f"the WAV is cut off: it holds {heard:,} of the {promised:,} samples that its header names")


def transcribe(transcriber: QRNNStreamingTranscriber, pieces: Iterator[np.ndarray], sampling_rate: int) -> None:
    heard = 0
    with suppress(KeyboardInterrupt):  # the usual end of what is spoken live: what was heard is still written
        for piece in pieces:
            heard += len(piece)
            write(transcriber.push(piece, sampling_rate))
    if heard == 0:
        raise ValueError("holds no audio")
    write(transcriber.finish() + "\n")


def write(text: str) -> None:
    """At once; when nobody reads it any more, the program ends without a word."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes what is left once more
        sys.exit(1)


def warn(message: str) -> None:
    print(f"{Path(sys.argv[0]).name}: warning: {message}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    disable_progress_bar()  # of the loading: standard error is for what goes wrong
    transcriber = load_transcriber(args.model)
    name = "standard input" if args.audio is None else args.audio
    with one_line_error(name, OSError, ValueError):
        if args.sampling_rate is not None:
            transcribe(transcriber, raw_pieces(sys.stdin.buffer), args.sampling_rate)
            return
        with open(args.audio, "rb") if args.audio is not None else sys.stdin.buffer as stream:
            wav = open_wav(stream, otherwise=" (raw samples need --sampling-rate)")
            transcribe(transcriber, wav_pieces(wav), wav.getframerate())


if __name__ == "__main__":
    main()
