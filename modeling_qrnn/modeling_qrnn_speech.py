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
"""PyTorch QRNN models that read audio: transcription with CTC, and classification."""

from typing import NoReturn

import torch
import torch.nn.functional as F
from torch import nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_qrnn import QRNNSpeechConfig
from .layers_qrnn import QRNNDropout, real_first
from .modeling_qrnn import (
    QRNNBlock,
    QRNNPreTrainedModel,
    check_chunk,
    check_sequence_labels,
    chunk_mask,
    has_values,
    in_dtype_of,
    init_by_fan_in,
    make_classifier,
    make_norm,
    read_out,
)
from .pooling_qrnn import last_real_position, token_mask


def draw_spans(batch_size: int, size: int, probability: float, length: int, device: torch.device) -> torch.Tensor:
    """Draw the spans of an axis that SpecAugment hides: each position begins one with `probability / length`.

    Returns:
        `(batch, size)` bool, true where hidden. Spans overlap and may be cut by the end, so that a little less than
        `probability` of the axis is hidden on average: `1 - (1 - probability / length)^length` far from its start.

    Example:
        >>> spans = draw_spans(100, 1000, probability=0.1, length=10, device=torch.device("cpu"))
        >>> 0.08 < spans.float().mean() < 0.11
        tensor(True)
    """
    begins = torch.rand(batch_size, size, device=device) < probability / length
    counts = F.pad(begins.long().cumsum(dim=1), (length, 0))
    return counts[:, length:] > counts[:, :size]


class QRNNSubsampling(nn.Module):
    """The front end: a strided convolution over frames, a rectifier, and pooling over time.

    The convolution is as wide as its stride, so its windows do not overlap and it carries nothing from step to step;
    the layers of the stack are what looks back over its outputs. (A layer of width `k` over outputs of stride `s` sees
    `k * s` frames.) A linear layer over `stride` frames side by side computes it.
    """

    def __init__(self, config: QRNNSpeechConfig):
        super().__init__()
        self.stride = config.stride
        self.pooling = config.temporal_pooling
        self.pooling_size = config.temporal_pooling_size
        self.ratio = config.subsampling_ratio
        self.conv = nn.Linear(config.stride * config.num_mel_bins, config.hidden_size)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """`(batch, num_frames, features)` to `(batch, ceil(num_frames / ratio), hidden)`; missing frames are zero."""
        num_frames = frames.shape[1]
        filled = (num_frames + self.ratio - 1) // self.ratio * self.ratio  # torch.export sees that this is a multiple
        frames = F.pad(frames, (0, 0, 0, filled - num_frames)).unflatten(1, (-1, self.stride)).flatten(2)
        outputs = F.relu(self.conv(in_dtype_of(self.conv, frames)))
        if self.pooling is None:
            return outputs
        pools = outputs.unflatten(1, (-1, self.pooling_size))
        return pools.amax(dim=2) if self.pooling == "max" else pools.mean(dim=2)


class QRNNSpeechPreTrainedModel(QRNNPreTrainedModel):
    """What the QRNN models that read audio share."""

    config: QRNNSpeechConfig
    main_input_name = "input_features"
    input_modalities = ("audio",)
    _input_embed_layer = "subsampling"
    _no_split_modules = ["QRNNBlock", "QRNNSubsampling"]
    _auto_map = {
        "AutoConfig": "configuration_qrnn.QRNNSpeechConfig",
        "AutoModel": "modeling_qrnn_speech.QRNNSpeechModel",
        "AutoModelForAudioClassification": "modeling_qrnn_speech.QRNNForAudioClassification",
        "AutoModelForCTC": "modeling_qrnn_speech.QRNNForCTC",
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if module is self.base_model.subsampling.conv:  # as wide as the gate projections
            init_by_fan_in(module.weight)

    def _get_feat_extract_output_lengths(self, input_lengths: torch.Tensor) -> torch.Tensor:
        """How many steps so many frames make: `ceil(frames / subsampling_ratio)`."""
        ratio = self.config.subsampling_ratio
        return (input_lengths + ratio - 1) // ratio

    def _get_feature_vector_attention_mask(
        self, feature_vector_length: int, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """The mask of the steps, the real ones first, from that of the frames: `(batch, feature_vector_length)`."""
        lengths = self._get_feat_extract_output_lengths((attention_mask != 0).sum(dim=1))
        return torch.arange(feature_vector_length, device=lengths.device) < lengths[:, None]

    def _step_mask(self, attention_mask: torch.Tensor | None, states: torch.Tensor) -> torch.Tensor | None:
        """Which of the steps `(batch, steps, width)` are real, if the frames had a mask."""
        if attention_mask is None:
            return None
        return self._get_feature_vector_attention_mask(states.shape[1], attention_mask).to(states.device)


class QRNNSpeechModel(QRNNSpeechPreTrainedModel):
    """The QRNN over audio, without a head: a subsampling front end and a stack of layers.

    Example:
        >>> model = QRNNSpeechModel(QRNNSpeechConfig(num_mel_bins=40, hidden_size=32, stride=2)).eval()
        >>> frames = torch.randn(1, 9, 40)
        >>> model(frames).last_hidden_state.shape
        torch.Size([1, 5, 32])
        >>> first = model(frames[:, :6], use_cache=True)  # whole steps of 2 frames
        >>> second = model(frames[:, 6:8], cache=first.cache)
        >>> torch.allclose(model(frames[:, :8]).last_hidden_state[:, 3:], second.last_hidden_state, atol=1e-6)
        True
    """

    def __init__(self, config: QRNNSpeechConfig):
        super().__init__(config)
        self.subsampling = QRNNSubsampling(config)
        self.dropout = QRNNDropout(config.input_dropout, config.locked_dropout)
        self.layers = nn.ModuleList(QRNNBlock(config, layer_idx) for layer_idx in range(config.num_hidden_layers))
        self.norm = make_norm(config, config.output_size)
        self.layer_types, self.state_widths = config.layer_types, config.state_widths
        self.gradient_checkpointing = False

        # Initialize weights and apply final processing
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """Run the model over a batch of utterances, or over the next chunk of them.

        Args:
            input_features: `(batch, num_frames, num_mel_bins)`, as `QRNNFeatureExtractor` makes them.
            attention_mask: `(batch, num_frames)`, non-zero at real frames, pads anywhere. Pads are skipped as if they
                were not there.
            cache: the state to go on from, which is advanced in place: at first `DynamicCache(config=model.config)`,
                or what the last chunk returned.
            use_cache: whether to return a cache; `config.use_cache` by default, which is `False`.
            kwargs: among them `output_hidden_states` and `return_dict`.

        Returns:
            `last_hidden_state` `(batch, steps, config.output_size)`, the real steps first and then zeros, one for
            `config.subsampling_ratio` frames; the last one may lack frames, which are zeros. And `cache`.

        Raises:
            ValueError: for a shape that does not fit, no frames, a cache of another model or batch size, a chunk with
                a cache that ends within a step, or a bidirectional model that is asked for a cache.
        """
        self._check_features(input_features, attention_mask)
        batch_size, num_frames, _ = input_features.shape
        self._check_cache(cache, use_cache, batch_size)
        frames, lengths = real_first(input_features, token_mask(attention_mask, batch_size, num_frames))
        if use_cache or cache is not None:
            self._check_whole_steps(lengths)
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)

        hidden_states = self.dropout(self.subsampling(self._hide_spans(frames)))
        is_real = chunk_mask(self._step_mask(attention_mask, hidden_states), *hidden_states.shape[:2])
        hidden_states = self._run_layers(hidden_states, cache, is_real)
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, cache=cache)

    def _hide_spans(self, frames: torch.Tensor) -> torch.Tensor:
        """SpecAugment (Park et al. 2019) in training: spans of time and bands of frequency become zero, the mean."""
        batch_size, num_frames, num_features = frames.shape
        config, device = self.config, frames.device
        if self.training and config.mask_time_prob:
            hidden = draw_spans(batch_size, num_frames, config.mask_time_prob, config.mask_time_length, device)
            frames = frames.masked_fill(hidden[:, :, None], 0)
        if self.training and config.mask_feature_prob:
            hidden = draw_spans(batch_size, num_features, config.mask_feature_prob, config.mask_feature_length, device)
            frames = frames.masked_fill(hidden[:, None, :], 0)
        return frames

    def _check_features(self, input_features: torch.Tensor, attention_mask: torch.Tensor | None) -> None:
        width = self.config.num_mel_bins
        if input_features.dim() != 3 or input_features.shape[1] == 0 or input_features.shape[2] != width:
            raise ValueError(
                f"`input_features` must have the shape (batch, at least one frame, num_mel_bins={width}), "
                f"got {tuple(input_features.shape)}"
            )
        if attention_mask is not None and attention_mask.shape != input_features.shape[:2]:
            raise ValueError(
                f"`attention_mask` must have the shape (batch, num_frames) = {tuple(input_features.shape[:2])}, "
                f"got {tuple(attention_mask.shape)}"
            )

    def _check_whole_steps(self, lengths: torch.Tensor) -> None:
        ratio = self.config.subsampling_ratio
        if has_values(lengths) and bool((lengths % ratio != 0).any()):
            raise ValueError(
                f"`input_features` must come in whole steps of {ratio} frames with a cache, or the next chunk "
                f"could not go on from there, got {lengths.tolist()} frames: hold the rest back for the next chunk, "
                "and fill the last one up with zeros"
            )


class QRNNForCTC(QRNNSpeechPreTrainedModel):
    """The QRNN with a head that transcribes, trained with connectionist temporal classification (Graves et al. 2006).

    Example:
        >>> model = QRNNForCTC(QRNNSpeechConfig(num_mel_bins=40, hidden_size=32, vocab_size=12)).eval()
        >>> frames, labels = torch.randn(2, 50, 40), torch.tensor([[3, 4, 5], [6, 6, -100]])
        >>> output = model(frames, labels=labels)
        >>> output.logits.shape, bool(output.loss > 0)
        (torch.Size([2, 25, 12]), True)
    """

    # The loss is a mean over the batch: Trainer must divide it under gradient accumulation.
    accepts_loss_kwargs = False

    def __init__(self, config: QRNNSpeechConfig):
        super().__init__(config)
        self.model = QRNNSpeechModel(config)
        self.dropout = QRNNDropout(config.output_dropout, config.locked_dropout)
        self.ctc_head = nn.Linear(config.output_size, config.vocab_size)

        # Initialize weights and apply final processing
        self.post_init()

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    @can_return_tuple
    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """Score the tokens at each step, the blank among them.

        Args:
            input_features, attention_mask, cache, use_cache: as in `QRNNSpeechModel`.
            labels: `(batch, num_tokens)` int64, what is said; -100 or the blank behind it.
            kwargs: as in `QRNNSpeechModel`.

        Returns:
            `loss` if there are labels, reduced as `config.ctc_loss_reduction` says; `logits`
            `(batch, steps, vocab_size)`, where the blank is certain at pads; `cache`.

        Raises:
            ValueError: as `QRNNSpeechModel`; for labels outside the vocabulary, and for labels that their steps cannot
                hold, unless `config.ctc_zero_infinity` leaves such out.
        """
        outputs: BaseModelOutputWithPast = self.model(
            input_features=input_features,
            attention_mask=attention_mask,
            cache=cache,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.ctc_head(self.dropout(outputs.last_hidden_state))
        is_real = self._step_mask(attention_mask, logits)

        loss = None
        if labels is not None:
            batch_size, num_steps, _ = logits.shape
            all_steps = logits.new_full((batch_size,), num_steps, dtype=torch.long)
            lengths = all_steps if is_real is None else is_real.sum(dim=1)
            self._check_labels(labels, lengths)
            loss = self.loss_function(
                logits=logits,
                labels=labels,
                logit_lengths=lengths,
                blank_token_id=self.config.pad_token_id,
                reduction=self.config.ctc_loss_reduction,
                zero_infinity=self.config.ctc_zero_infinity,
            )
        if is_real is not None:
            logits = self._blank_pads(logits, is_real)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
        )

    def resize_token_embeddings(self, *args, **kwargs) -> NoReturn:
        """There are no embeddings of tokens: frames come in, and what goes out is the head's."""
        raise NotImplementedError(
            "A QRNNForCTC has no embeddings of tokens. For a head of another size load it with "
            "`from_pretrained(..., vocab_size=..., ignore_mismatched_sizes=True)`"
        )

    def _blank_pads(self, logits: torch.Tensor, is_real: torch.Tensor) -> torch.Tensor:
        """At a pad only the blank is possible, for some decode all the steps, as Transformers' pipeline does."""
        certain = logits.new_full((logits.shape[-1],), torch.finfo(logits.dtype).min)
        certain[self.config.pad_token_id] = 0
        return torch.where(is_real[..., None], logits, certain)

    def _check_labels(self, labels: torch.Tensor, lengths: torch.Tensor) -> None:
        if labels.dim() != 2 or labels.shape[0] != lengths.shape[0]:
            raise ValueError(
                f"`labels` must have the shape (batch, num_tokens) with a batch of {lengths.shape[0]}, "
                f"got {tuple(labels.shape)}"
            )
        labels = labels.to(lengths.device)
        is_token = (labels != -100) & (labels != self.config.pad_token_id)
        wrong = labels[is_token & ((labels < 0) | (labels >= self.config.vocab_size))]
        if len(wrong):
            raise ValueError(
                f"`labels` must lie between 0 and vocab_size - 1 = {self.config.vocab_size - 1}, or be -100, "
                f"got {int(wrong[0])}"
            )
        if self.config.ctc_zero_infinity:
            return
        # Between equal tokens stands a blank.
        last = F.pad(last_real_position(is_token), (1, 0))[:, :-1]  # that of the token before, if there is one
        is_later = is_token & (is_token.cumsum(dim=1) > 1)
        repeats = is_later & (labels == labels.gather(1, last))
        needed = is_token.sum(dim=1) + repeats.sum(dim=1)
        if bool((needed > lengths).any()):
            row = int((needed - lengths).argmax())
            raise ValueError(
                f"`labels` must fit into the steps: row {row} needs {int(needed[row])} steps (one for each token, and "
                f"one between equal ones), but its audio has {int(lengths[row])}. Lower `stride` or "
                "`temporal_pooling_size`, leave the recording out, or set `ctc_zero_infinity`"
            )


class QRNNForAudioClassification(QRNNSpeechPreTrainedModel):
    """The QRNN with a head that classifies recordings: one label, several, or numbers (regression).

    Example:
        >>> config = QRNNSpeechConfig(num_mel_bins=40, hidden_size=32, bidirectional=True, num_labels=3)
        >>> model = QRNNForAudioClassification(config).eval()
        >>> model(torch.randn(2, 50, 40)).logits.shape
        torch.Size([2, 3])
    """

    # The losses are means over the batch: Trainer must divide them under gradient accumulation.
    accepts_loss_kwargs = False

    def __init__(self, config: QRNNSpeechConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = QRNNSpeechModel(config)
        self.dropout, self.score = make_classifier(config)

        # Initialize weights and apply final processing
        self.post_init()

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    @can_return_tuple
    def forward(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutputWithPast:
        """Classify each recording.

        Args:
            input_features, attention_mask, cache, use_cache: as in `QRNNSpeechModel`.
            labels: `(batch,)` int64 for one label each; `(batch, num_labels)` float32 for several, or for regression
                (`(batch,)` if there is one number). `config.problem_type` says which, or else it is told from
                `num_labels` and the dtype.
            kwargs: as in `QRNNSpeechModel`.

        Returns:
            `loss` if there are labels, `logits` `(batch, num_labels)`, and `cache`.

        Raises:
            ValueError: as `QRNNSpeechModel`; for labels of another shape, or (on a CPU) outside of the classes; and
                for a chunk that goes on from a cache, if the read-out is of more than the last step, or (on a CPU) a
                row of the chunk has only pads.
        """
        check_chunk(self.config, cache, attention_mask, input_features)
        outputs: BaseModelOutputWithPast = self.model(
            input_features=input_features,
            attention_mask=attention_mask,
            cache=cache,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        is_real = self._step_mask(attention_mask, hidden_states)
        pooled = read_out(hidden_states, is_real, self.config.classifier_pooling, self.config.bidirectional)
        logits = self.score(self.dropout(pooled))

        loss = None
        if labels is not None:
            check_sequence_labels(labels, logits.shape[0], self.config)
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
        )


__all__ = [
    "QRNNForAudioClassification",
    "QRNNForCTC",
    "QRNNSpeechModel",
    "QRNNSpeechPreTrainedModel",
]
