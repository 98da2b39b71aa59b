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
"""Processor of QRNN speech models: a feature extractor and a CTC tokenizer, as one."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import BatchFeature, PreTrainedModel, Wav2Vec2Processor

from .streaming_qrnn import QRNNStreamingTranscriber


class QRNNProcessor(Wav2Vec2Processor):
    """Audio to features and text to labels, called like `Wav2Vec2Processor`.

    Args:
        feature_extractor: a `QRNNFeatureExtractor`.
        tokenizer: one that decodes the output of CTC, such as `transformers.Wav2Vec2CTCTokenizer`; its pad token is
            the blank.

    Example:
        >>> import json, tempfile
        >>> import numpy as np
        >>> from pathlib import Path
        >>> from transformers import Wav2Vec2CTCTokenizer
        >>> from modeling_qrnn import QRNNFeatureExtractor, QRNNForCTC, QRNNSpeechConfig
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tokens = ["<pad>", "|", *"abc"]
        ...     vocabulary = Path(folder, "vocab.json")
        ...     _ = vocabulary.write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
        ...     tokenizer = Wav2Vec2CTCTokenizer(vocabulary, bos_token=None, eos_token=None, unk_token=None)
        >>> processor = QRNNProcessor(QRNNFeatureExtractor(), tokenizer)
        >>> example = processor(audio=np.zeros(16_000), sampling_rate=16_000, text="ab c")
        >>> example["input_features"].shape, example["labels"]
        ((1, 99, 80), [2, 3, 1, 4])
        >>> processor.decode([2, 2, 0, 2, 1, 4, 4])
        'aa c'
        >>> model = QRNNForCTC(QRNNSpeechConfig(hidden_size=32, vocab_size=5)).eval()
        >>> transcriber = processor.transcriber(model)
        >>> audio = np.sin(np.arange(16_000) / 10)
        >>> text = "".join(transcriber.push(piece) for piece in np.split(audio, 100)) + transcriber.finish()
        >>> text == processor.decode(model(**processor(audio=audio, return_tensors="pt")).logits[0].argmax(dim=-1))
        True
    """

    def collate(self, examples: Sequence[Mapping[str, Any]]) -> BatchFeature:
        """Make a batch of examples, as `Trainer(data_collator=processor.collate)` asks for.

        Args:
            examples: of `input_features` `(num_frames, feature_size)`, or `(1, num_frames, feature_size)` as they
                come from a call, and `labels`, a list of tokens. What `attention_mask` says are pads is left out.

        Returns:
            `input_features` `(batch, num_frames, feature_size)` float32, `attention_mask` `(batch, num_frames)` and
            `labels` `(batch, num_tokens)` int64, with -100 at pads.

        Raises:
            ValueError: for an example of several recordings.
        """
        features = [{"input_features": real_frames(example)} for example in examples]
        batch = self.feature_extractor.pad(features, return_tensors="pt")
        texts = self.tokenizer.pad([{"input_ids": example["labels"]} for example in examples], return_tensors="pt")
        batch["labels"] = texts["input_ids"].masked_fill(texts["attention_mask"] == 0, -100)
        return batch

    def transcriber(self, model: PreTrainedModel) -> QRNNStreamingTranscriber:
        """Transcribe audio as it comes.

        Args:
            model: a unidirectional `QRNNForCTC`.

        Raises:
            ValueError: if the model is bidirectional, reads other frames than the feature extractor makes, or has
                another blank than the pad token.
        """
        return QRNNStreamingTranscriber(model, self)


def real_frames(example: Mapping[str, Any]) -> np.ndarray:
    """`(num_frames, feature_size)` of one recording, which a call puts into a batch of its own, without pads."""
    features = np.asarray(example["input_features"])
    if features.ndim == 3 and len(features) != 1:
        raise ValueError(f"`input_features` must be those of one recording in each example, got {len(features)}")
    features = features.reshape(-1, features.shape[-1])
    if example.get("attention_mask") is None:
        return features
    return features[np.asarray(example["attention_mask"]).reshape(-1) != 0]


__all__ = ["QRNNProcessor"]
