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
"""Feature extractor of QRNN speech models: log-mel frames that are the same whether audio comes whole or in pieces."""

import math
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.audio_utils import mel_filter_bank, optimal_fft_length, spectrogram, window_function
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import PaddingStrategy, TensorType, logging


logger = logging.get_logger(__name__)


class QRNNFeatureExtractor(SequenceFeatureExtractor):
    """Turns audio into frames of log-mel features, for models that may hear it as it comes.

    Nothing looks ahead: a frame begins at each `hop_length`-th sample, is not centred there, and the normalisation is
    fixed, not taken from the utterance. So the frames of a stream are those of the whole recording. The end is filled
    up with zeros until the last sample has its frame: `n` samples make `1 + ceil((n - frame_length) / hop_length)`
    frames, and at least one.

    Args:
        feature_size: mel bins of a frame.
        sampling_rate: in Hz, of all audio.
        frame_length: samples of a frame; 25 ms by default.
        hop_length: samples from one frame to the next; 10 ms by default.
        min_frequency: where the lowest mel bin begins, in Hz.
        max_frequency: where the highest one ends, in Hz; half of the sampling rate by default.
        mel_floor: the least power of a bin, before the logarithm.
        mean: what is subtracted from the natural logarithm of the power, one number or one per bin. The default is
            about right for speech of usual loudness; see `fit`.
        std: by what the rest is divided, one number or one per bin.
        padding_value: of the features of pads.
        kwargs: `padding_side` and `return_attention_mask`, as in all of Transformers' feature extractors.

    Raises:
        ValueError: for lengths, frequencies or statistics that do not fit.

    Example:
        >>> extractor = QRNNFeatureExtractor(feature_size=40, sampling_rate=8000)
        >>> second, half = np.zeros(8000, dtype=np.int16), np.zeros(4000, dtype=np.float32)
        >>> batch = extractor([second, half], sampling_rate=8000, return_tensors="pt")
        >>> batch["input_features"].shape, batch["attention_mask"].sum(dim=1)
        (torch.Size([2, 99, 40]), tensor([99, 49]))
    """

    model_input_names = ["input_features", "attention_mask"]

    def __init__(
        self,
        feature_size: int = 80,
        sampling_rate: int = 16_000,
        frame_length: int | None = None,
        hop_length: int | None = None,
        min_frequency: float = 20.0,
        max_frequency: float | None = None,
        mel_floor: float = 1e-10,
        mean: float | list[float] = -6.0,
        std: float | list[float] = 4.0,
        padding_value: float = 0.0,
        **kwargs,
    ):
        super().__init__(feature_size, sampling_rate, padding_value, **kwargs)
        self.frame_length = round(0.025 * sampling_rate) if frame_length is None else frame_length
        self.hop_length = round(0.01 * sampling_rate) if hop_length is None else hop_length
        self.min_frequency = min_frequency
        self.max_frequency = sampling_rate / 2 if max_frequency is None else max_frequency
        self.mel_floor = mel_floor
        self.mean = np.asarray(mean).tolist()  # as JSON holds it
        self.std = np.asarray(std).tolist()
        self._check_settings()
        # Transformers leaves arrays of these two names out of the file.
        self.window = window_function(self.frame_length, "hann")
        self.mel_filters = mel_filter_bank(
            num_frequency_bins=optimal_fft_length(self.frame_length) // 2 + 1,
            num_mel_filters=feature_size,
            min_frequency=min_frequency,
            max_frequency=self.max_frequency,
            sampling_rate=sampling_rate,
        )

    def _check_settings(self) -> None:
        if not 1 <= self.hop_length <= self.frame_length:
            raise ValueError(
                f"`hop_length` must lie between 1 and frame_length={self.frame_length}, or samples would be skipped, "
                f"got {self.hop_length}"
            )
        if not 0 <= self.min_frequency < self.max_frequency <= self.sampling_rate / 2:
            raise ValueError(
                "`min_frequency` and `max_frequency` must rise and lie between 0 and half of the sampling rate, "
                f"{self.sampling_rate / 2}, got {self.min_frequency} and {self.max_frequency}"
            )
        if self.mel_floor <= 0:
            raise ValueError(f"`mel_floor` must be above 0, got {self.mel_floor}")
        for name in ("mean", "std"):
            values = np.asarray(getattr(self, name), dtype=np.float64)
            if values.shape not in ((), (self.feature_size,)) or not np.isfinite(values).all():
                raise ValueError(
                    f"`{name}` must be one finite number or one for each of the {self.feature_size} features, "
                    f"got {getattr(self, name)}"
                )
        if np.min(self.std) <= 0:
            raise ValueError(f"`std` must be above 0, got {self.std}")

    def num_frames(self, num_samples: int) -> int:
        """How many frames a recording of so many samples has, the last one filled up with zeros."""
        return 1 + max(0, math.ceil((num_samples - self.frame_length) / self.hop_length))

    def waveform(self, audio: Any, sampling_rate: int | None = None, may_be_empty: bool = False) -> np.ndarray:
        """One recording, checked, as float64 between -1 and 1.

        Args:
            audio: `(samples,)`, an array, tensor or list; floating-point, or int16, whose range becomes that of
                floating-point audio.
            sampling_rate: that of the audio, in Hz; `None` takes it to be right.
            may_be_empty: whether no samples are fine, as in a stream.

        Raises:
            ValueError: for another sampling rate, several channels, another dtype, no samples, NaN or infinity.
        """
        if sampling_rate not in (None, self.sampling_rate):
            raise ValueError(
                f"`sampling_rate` must be {self.sampling_rate} Hz, that of the training audio, got {sampling_rate}: "
                f"resample first, for instance scipy.signal.resample_poly(audio, {self.sampling_rate}, "
                f"{sampling_rate})"
            )
        samples = np.asarray(audio)
        if samples.ndim == 0:
            raise ValueError(f"`audio` must be an array, a tensor or a list of samples, got {type(audio).__name__}")
        if samples.ndim != 1:
            raise ValueError(
                f"`audio` must be mono, of the shape (samples,), got {samples.shape}: mix the channels first, for "
                "instance audio.mean(axis=0) of (channels, samples), and pass several recordings as a list"
            )
        if samples.size == 0 and not may_be_empty:
            raise ValueError("`audio` must have at least one sample, got none")
        if samples.dtype == np.int16:
            return samples / 32768.0
        if samples.size and samples.dtype.kind != "f":
            raise ValueError(f"`audio` must be floating-point, between -1 and 1, or int16, got {samples.dtype}")
        if not np.isfinite(samples).all():
            raise ValueError(f"`audio` must be finite, got NaN or infinity in {(~np.isfinite(samples)).sum()} samples")
        return samples.astype(np.float64)

    def frames(self, waveform: np.ndarray) -> np.ndarray:
        """The frames that a waveform fills: `(samples,)` float64 to `(frames, feature_size)` float64."""
        if waveform.size < self.frame_length:
            return np.empty((0, self.feature_size))
        log_mel = self._log_mel(waveform)
        return (log_mel - np.asarray(self.mean)) / np.asarray(self.std)

    def padded_frames(self, waveform: np.ndarray) -> np.ndarray:
        """The same, after filling the end up with zeros until the last sample has its frame."""
        return self.frames(self._pad_end(waveform))

    def _pad_end(self, waveform: np.ndarray) -> np.ndarray:
        length = self.frame_length + (self.num_frames(waveform.size) - 1) * self.hop_length
        return np.pad(waveform, (0, length - waveform.size))

    def _log_mel(self, waveform: np.ndarray) -> np.ndarray:
        return spectrogram(
            waveform,
            self.window,
            frame_length=self.frame_length,
            hop_length=self.hop_length,
            fft_length=optimal_fft_length(self.frame_length),
            power=2.0,
            center=False,
            mel_filters=self.mel_filters,
            mel_floor=self.mel_floor,
            log_mel="log",
            dtype=np.float64,
        ).T

    def fit(self, recordings: Iterable[Any], sampling_rate: int | None = None) -> "QRNNFeatureExtractor":
        """Take `mean` and `std` of each feature from training audio.

        Args:
            recordings: of `(samples,)` each, as in `__call__`; a generator will do.
            sampling_rate: theirs, in Hz.

        Returns:
            The extractor itself. A feature that does not vary is only centred.

        Raises:
            ValueError: if there are no recordings, or for a recording that `__call__` would refuse.

        Example:
            >>> noise = np.random.default_rng(0).normal(scale=0.1, size=(5, 16_000))
            >>> extractor = QRNNFeatureExtractor().fit(noise, sampling_rate=16_000)
            >>> features = extractor(list(noise), sampling_rate=16_000)["input_features"]
            >>> bool(abs(features.mean()) < 1e-5), bool(abs(features.std() - 1) < 1e-5)
            (True, True)
        """
        count, sums, squares = 0, np.zeros(self.feature_size), np.zeros(self.feature_size)
        for audio in recordings:
            frames = self._log_mel(self._pad_end(self.waveform(audio, sampling_rate)))
            count += len(frames)
            sums += frames.sum(axis=0)
            squares += (frames**2).sum(axis=0)
        if count == 0:
            raise ValueError("`recordings` must hold at least one recording, got none")
        mean = sums / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 0))
        self.mean = mean.tolist()
        self.std = np.where(std > 1e-6 * np.abs(mean), std, 1.0).tolist()
        return self

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> list[str]:
        """Save as any feature extractor of Transformers, with its code.

        One that was part of a processor refers to that, so the processor's code goes with it, if it is beside this
        file: a pipeline saves the parts of a processor alone. See
        `transformers.FeatureExtractionMixin.save_pretrained` for the arguments.
        """
        processor = Path(__file__).with_name("processing_qrnn.py")
        if "AutoProcessor" in getattr(self, "auto_map", {}) and processor.is_file():
            os.makedirs(save_directory, exist_ok=True)
            for file in (processor, *get_relative_import_files(processor)):
                shutil.copy(file, save_directory)
        return super().save_pretrained(save_directory, *args, **kwargs)

    def __call__(
        self,
        audio: Any,
        sampling_rate: int | None = None,
        padding: bool | str | PaddingStrategy = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | TensorType | None = None,
    ) -> BatchFeature:
        """Extract the features of one recording, or of a batch.

        Args:
            audio: `(samples,)`, floating-point between -1 and 1 or int16, or a list of such.
            sampling_rate: that of the audio, in Hz; without it, a wrong one cannot be noticed.
            padding, max_length, truncation, pad_to_multiple_of, return_attention_mask, return_tensors: as in
                `transformers.SequenceFeatureExtractor.pad`, lengths in frames; all are padded to the longest.

        Returns:
            `input_features` `(batch, frames, feature_size)` float32, and `attention_mask` `(batch, frames)` int32;
            with `padding=False` lists of them, one for each recording, if these differ in length and `return_tensors`
            is `None`.

        Raises:
            ValueError: for another sampling rate, several channels, another dtype, no samples, NaN or infinity.
        """
        if sampling_rate is None:
            logger.warning_once(
                f"`sampling_rate` was not given to {type(self).__name__}: the audio is taken to have "
                f"{self.sampling_rate} Hz"
            )
        if isinstance(audio, (list, tuple)) and not audio:
            raise ValueError("`audio` must hold at least one recording, got an empty list")
        is_batch = isinstance(audio, (list, tuple)) and np.ndim(audio[0]) > 0
        recordings = audio if is_batch else [audio]
        features = [self.padded_frames(self.waveform(recording, sampling_rate)) for recording in recordings]
        batch = self.pad(
            BatchFeature({"input_features": [frames.astype(np.float32) for frames in features]}),
            padding=padding,
            max_length=max_length,
            truncation=truncation,
            pad_to_multiple_of=pad_to_multiple_of,
            return_attention_mask=return_attention_mask,
            return_tensors=return_tensors,
        )
        if return_tensors is None:  # `datasets` stores lists of several lengths, but no arrays of objects
            batch.update({name: list(rows) for name, rows in batch.items() if rows.dtype == object})
        return batch


__all__ = ["QRNNFeatureExtractor"]
