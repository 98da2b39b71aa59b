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
"""WAV files of the one kind that the programs for speech read: mono, 16 bits a sample, not compressed."""

import wave
from typing import BinaryIO


def open_wav(stream: BinaryIO, otherwise: str = "") -> wave.Wave_read:
    """A WAV that can be read.

    Args:
        stream: its bytes.
        otherwise: what is said of other bytes, behind the error.

    Raises:
        ValueError: for another format.
    """
    try:
        wav = wave.Wave_read(stream)
    except EOFError:
        raise ValueError("is empty, or ends within its header") from None
    except (wave.Error, RuntimeError) as error:  # the latter, without words, for lengths that go beyond each other
        raise ValueError(f"is no WAV of plain samples: {str(error) or 'a damaged header'}{otherwise}") from None
    if wav.getnchannels() != 1:
        raise ValueError(f"has {wav.getnchannels()} channels, and one is needed: mix them first (sox IN -c 1 OUT)")
    if wav.getsampwidth() != 2:
        raise ValueError(f"has {8 * wav.getsampwidth()} bits a sample, and 16 are needed (sox IN -b 16 OUT)")
    return wav
