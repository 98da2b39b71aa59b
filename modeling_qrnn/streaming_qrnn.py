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
"""Audio that comes in pieces: the same logits and the same text as from the whole recording, in constant memory."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, DynamicCache

from .cache_qrnn import STATE_PARTS, cache_from_tensors, cache_tensors
from .feature_extraction_qrnn import QRNNFeatureExtractor


class QRNNSpeechStream:
    """The logits of a unidirectional `QRNNForCTC` over audio that comes in pieces of any size.

    Between pieces it keeps the model's recurrent state, the samples that do not fill a frame yet, and the frames that
    do not fill a step.

    Args:
        model: a `QRNNForCTC`, in evaluation mode.
        feature_extractor: the one it was trained with.

    Raises:
        ValueError: if the model is bidirectional, or the extractor makes other frames than the model reads.

    Example:
        >>> from modeling_qrnn import QRNNForCTC, QRNNSpeechConfig
        >>> model = QRNNForCTC(QRNNSpeechConfig(hidden_size=32, vocab_size=12)).eval()
        >>> stream = QRNNSpeechStream(model, QRNNFeatureExtractor())
        >>> audio = np.sin(np.arange(16_000) / 10)
        >>> [len(stream.push(piece)) for piece in (audio[:300], audio[300:9000], audio[9000:])], len(stream.finish())
        ([0, 27, 22], 1)
    """

    def __init__(self, model: PreTrainedModel, feature_extractor: QRNNFeatureExtractor):
        config = model.config
        if config.bidirectional:
            raise ValueError(
                "`model` must be unidirectional to hear audio as it comes, but this one is bidirectional: run it over "
                "the whole recording"
            )
        read = config.num_mel_bins, config.hop_length
        made = feature_extractor.feature_size, feature_extractor.hop_length
        if read != made:
            raise ValueError(
                f"`feature_extractor` must make what the model reads, {read[0]} features every {read[1]} samples "
                f"(`num_mel_bins` and `hop_length` of its config), but makes {made[0]} every {made[1]}"
            )
        self.model = model
        self.feature_extractor = feature_extractor
        self.reset()

    def reset(self) -> None:
        """Forget all that was heard."""
        self.cache: Cache = DynamicCache(config=self.model.config)
        self.samples = np.empty(0)
        self.frames = np.empty((0, self.feature_extractor.feature_size))
        self.num_frames = 0  # that were made, those that the model has read among them

    def push(self, audio: Any, sampling_rate: int | None = None) -> torch.Tensor:
        """Hear the next piece.

        Args:
            audio: `(samples,)`, any number of them, of the types that the feature extractor takes.
            sampling_rate: theirs, in Hz; `None` takes it to be right.

        Returns:
            `(steps, vocab_size)`, the logits of the steps that are complete now; there may be none.

        Raises:
            ValueError: for audio that the feature extractor refuses; that piece is not heard then.
        """
        new = self.feature_extractor.waveform(audio, sampling_rate, may_be_empty=True)
        self.samples = np.concatenate([self.samples, new])
        return self._advance(self.feature_extractor.frames(self.samples))

    def finish(self) -> torch.Tensor:
        """The logits of what is left, `(steps, vocab_size)`. After this a new recording may begin."""
        hop_length, frame_length = self.feature_extractor.hop_length, self.feature_extractor.frame_length
        in_a_frame = frame_length - hop_length if self.num_frames else 0  # of the samples that are left
        last = self.frames[:0]
        if len(self.samples) > in_a_frame:
            last = self.feature_extractor.padded_frames(self.samples)
        missing = -(len(self.frames) + len(last)) % self.model.config.subsampling_ratio
        logits = self._advance(np.pad(last, ((0, missing), (0, 0))))
        self.reset()
        return logits

    @torch.no_grad()
    def _advance(self, new_frames: np.ndarray) -> torch.Tensor:
        """Run the model over the steps that are complete now, and keep the rest. The copies let go of the piece."""
        self.samples = self.samples[len(new_frames) * self.feature_extractor.hop_length :].copy()
        self.num_frames += len(new_frames)
        frames = np.concatenate([self.frames, new_frames])
        complete = len(frames) - len(frames) % self.model.config.subsampling_ratio
        self.frames = frames[complete:].copy()
        if complete == 0:
            return torch.empty(0, self.model.config.vocab_size, dtype=self.model.dtype, device=self.model.device)
        features = torch.from_numpy(frames[None, :complete]).to(self.model.device, self.model.dtype)
        return self.model(input_features=features, cache=self.cache).logits[0]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All that is kept between pieces, for `safetensors.torch.save_file` or another process."""
        state = {
            "samples": torch.from_numpy(self.samples),
            "frames": torch.from_numpy(self.frames),
            "num_frames": torch.tensor(self.num_frames),
        }
        if self.cache.layers[0].has_previous_state[0]:
            state |= {name: tensor.clone() for name, tensor in cache_tensors(self.cache).items()}
        return state

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `state_dict` gave.

        Raises:
            ValueError: if a part is missing, its frames have another number of features, or it is that of another
                model.
        """
        check_parts(state, ("samples", "frames", "num_frames"))
        width = self.feature_extractor.feature_size
        if state["frames"].shape[1] != width:
            raise ValueError(f"`state` must hold frames of {width} features, got {state['frames'].shape[1]}")
        self.cache = self._load_cache(state)
        self.samples, self.frames = (state[name].cpu().numpy().copy() for name in ("samples", "frames"))
        self.num_frames = int(state["num_frames"])

    def _load_cache(self, state: Mapping[str, torch.Tensor]) -> Cache:
        """The model's part of a state, which is there once it has read a step."""
        config = self.model.config
        of_model = {name: part.to(self.model.device) for name, part in state.items() if name.startswith("layers.")}
        if not of_model and int(state["num_frames"]) < config.subsampling_ratio:
            return DynamicCache(config=config)
        num_layers = max((int(name.split(".")[1]) + 1 for name in of_model), default=config.num_hidden_layers)
        check_parts(state, [f"layers.{index}.{part}" for index in range(num_layers) for part in STATE_PARTS])
        return cache_from_tensors(of_model, config)


def check_parts(state: Mapping[str, torch.Tensor], names: Sequence[str]) -> None:
    """Refuse a state that lacks one of these."""
    missing = [name for name in names if name not in state]
    if missing:
        raise ValueError(f"`state` must be what `state_dict` gave, but it has no {' and no '.join(missing)}")


class QRNNStreamingTranscriber:
    """The text of audio that comes in pieces of any size: joined, what the whole recording gives.

    The most probable token of each step is written, unless it is the blank or that of the step before. A token must
    stand for whole characters, not for bytes of one. Spaces are not cleaned up, as a tokenizer with
    `clean_up_tokenization_spaces` does to a whole text: that would change what is written already.

    Args:
        model: a unidirectional `QRNNForCTC`, in evaluation mode.
        processor: the `QRNNProcessor` it was trained with.

    Raises:
        ValueError: as `QRNNSpeechStream`, and for a tokenizer whose pad token is not the model's blank.

    Example:
        See `QRNNProcessor`, whose `transcriber` makes one.
    """

    def __init__(self, model: PreTrainedModel, processor: Any):
        self.stream = QRNNSpeechStream(model, processor.feature_extractor)
        self.tokenizer: PreTrainedTokenizerBase = processor.tokenizer
        self.blank = model.config.pad_token_id
        if self.tokenizer.pad_token_id != self.blank:
            raise ValueError(
                "`processor.tokenizer` must have the blank of the model as its pad token, "
                f"`pad_token_id` {self.blank} of its config, got {self.tokenizer.pad_token_id}"
            )
        self.reset()

    def reset(self) -> None:
        """Forget all that was heard."""
        self.stream.reset()
        self.last_token = self.blank
        # From the last token that can be seen: spaces behind it are text only when another such token follows.
        self.tail: list[int] = []

    def push(self, audio: Any, sampling_rate: int | None = None) -> str:
        """Hear the next piece, as `QRNNSpeechStream.push` does, and return the text that it adds."""
        return self._write(self.stream.push(audio, sampling_rate))

    def finish(self) -> str:
        """The rest of the text. After this a new recording may begin."""
        text = self._write(self.stream.finish())
        self.reset()
        return text

    def _write(self, logits: torch.Tensor) -> str:
        tokens = logits.argmax(dim=-1).tolist()
        previous = [self.last_token, *tokens]
        self.last_token = previous[-1]
        written = [token for token, last in zip(tokens, previous, strict=False) if token not in (last, self.blank)]
        known = self._decode(self.tail)
        self.tail += written
        text = self._decode(self.tail)[len(known) :]
        while self.tail and any(self._decode([token]) for token in self.tail[1:]):
            self.tail.pop(0)
        return text

    def _decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, group_tokens=False, clean_up_tokenization_spaces=False)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All that is kept between pieces, for `safetensors.torch.save_file` or another process."""
        text = {"last_token": torch.tensor(self.last_token), "tail": torch.tensor(self.tail, dtype=torch.long)}
        return {**self.stream.state_dict(), **text}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `state_dict` gave.

        Raises:
            ValueError: as `QRNNSpeechStream.load_state_dict`.
        """
        check_parts(state, ("last_token", "tail"))
        self.stream.load_state_dict(state)
        self.last_token, self.tail = int(state["last_token"]), state["tail"].tolist()


__all__ = ["QRNNSpeechStream", "QRNNStreamingTranscriber"]
