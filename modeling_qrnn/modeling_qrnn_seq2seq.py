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
"""PyTorch QRNN encoder-decoder (Bradbury et al. 2017, section 2.1 and figure 2), for translation and summarization."""

from dataclasses import dataclass
from functools import wraps
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.generation import GenerationMixin, LogitsProcessor
from transformers.generation.configuration_utils import GenerationMode
from transformers.modeling_outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    ModelOutput,
    Seq2SeqLMOutput,
    Seq2SeqModelOutput,
)
from transformers.modeling_utils import slice_logits_to_keep
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_qrnn import QRNNSeq2SeqConfig
from .layers_qrnn import QRNNDropout, QRNNLayer
from .modeling_qrnn import (
    QRNNBlock,
    QRNNGenerationMixin,
    QRNNMixer,
    QRNNPreTrainedModel,
    check_all_kept,
    check_token_labels,
    chunk_mask,
    gathers_shards,
    init_by_fan_in,
    make_lm_head,
    make_norm,
    make_projection,
    read_out,
    zero_at_pads,
)
from .pooling_qrnn import state_dtype


def shift_tokens_right(labels: torch.Tensor, start_token_id: int, pad_token_id: int) -> torch.Tensor:
    """What the decoder reads to predict the labels: the start token, then each label but the last.

    Args:
        labels: `(batch, target_len)` int64; -100, which is not counted, is read as a pad. Where a row begins with such
            pads, they stay, and the start token comes before its first label.
        start_token_id: the token before the first label.
        pad_token_id: the token that fills up a batch.

    Returns:
        `(batch, target_len)` int64.

    Example:
        >>> shift_tokens_right(torch.tensor([[5, 6, -100], [-100, 7, 8]]), start_token_id=1, pad_token_id=0)
        tensor([[1, 5, 6],
                [0, 1, 7]])
    """
    shifted = torch.cat([labels.new_full((labels.shape[0], 1), start_token_id), labels[:, :-1]], dim=1)
    shifted = shifted.masked_fill(shifted == -100, pad_token_id)
    is_begun = labels_begun(labels)
    is_first = is_begun & ~F.pad(is_begun[:, :-1], (1, 0))
    return shifted.masked_fill(~is_begun, pad_token_id).masked_fill(is_first, start_token_id)


def labels_begun(labels: torch.Tensor) -> torch.Tensor:
    """`(batch, target_len)` bool: from the first label of each row on that is not -100."""
    return (labels != -100).cumsum(dim=1) > 0


class QRNNAttentionProjection(nn.Linear):
    """A linear layer of the attention, of a class of its own: its initial weights are wide in models with norms too.

    With small ones every query agrees with all keys alike, and learns next to nothing from that.
    """

    def __init__(self, width: int):
        super().__init__(width, width, bias=False)


class QRNNAttention(nn.Module):
    """Attention over the source, between the state of a decoder's layer and its output gate (equation 8).

    The query is the un-gated state `c`, keys and values are the encoder's output: as they are, compared by a plain dot
    product, or, with `num_attention_heads` set, through learned projections in as many heads. Then
    `h = o * (W_k k + W_c c)`, with `k` the mean of the values by the weights of the attention.
    """

    def __init__(self, config: QRNNSeq2SeqConfig):
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads or 1
        self.is_projected = config.num_attention_heads is not None
        self.scale = (width // self.num_heads) ** -0.5 if self.is_projected else 1.0
        if self.is_projected:
            self.q_proj = QRNNAttentionProjection(width)
            self.k_proj = QRNNAttentionProjection(width)
            self.v_proj = QRNNAttentionProjection(width)
        self.context_proj = QRNNAttentionProjection(width)  # W_k
        self.state_proj = QRNNAttentionProjection(width)  # W_c
        self.dropout = QRNNDropout(config.attention_dropout)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (batch, heads, length, width of a head)

    def keys_and_values(self, encoder_hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the whole source, each `(batch, heads, source_len, width / heads)`."""
        if not self.is_projected:
            keys = self._heads(encoder_hidden_states)
            return keys, keys
        return self._heads(self.k_proj(encoder_hidden_states)), self._heads(self.v_proj(encoder_hidden_states))

    def forward(
        self,
        c: torch.Tensor,
        o: torch.Tensor | None,
        keys: torch.Tensor,
        values: torch.Tensor,
        encoder_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`h` `(batch, target_len, hidden)` and the weights `(batch, heads, target_len, source_len)`."""
        queries = self._heads(self.q_proj(c) if self.is_projected else c)
        scores = queries @ keys.transpose(2, 3) * self.scale
        if encoder_mask is not None:
            # Not minus infinity: in a source of pads alone, whose values are all zero, nothing may become NaN.
            scores = scores.masked_fill(~encoder_mask[:, None, None], torch.finfo(scores.dtype).min)
        weights = scores.softmax(dim=-1, dtype=state_dtype(scores.dtype)).to(scores.dtype)
        context = (self.dropout(weights) @ values).transpose(1, 2).flatten(2)  # (batch, target_len, hidden)
        h = self.context_proj(context) + self.state_proj(c)
        return (h if o is None else o * h), weights


class QRNNDecoderMixer(QRNNMixer):
    """The QRNN of one layer of the decoder: the source enters all its gates, and its output through attention.

    What the source gives is worked out once for all steps of `generate`, and kept in the cache: in the cross-attention
    cache's layer of the same number what is added to the gates, and as many layers further on keys and values.
    """

    def __init__(self, config: QRNNSeq2SeqConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        gate_width = cast(QRNNLayer, self.directions[0]).gate_proj.out_features
        self.source_proj = nn.Linear(config.hidden_size, gate_width, bias=False)  # V of each gate, side by side
        has_attention = config.attention_layers == "all" or layer_idx == config.num_hidden_layers - 1
        self.attention = QRNNAttention(config) if has_attention else None
        self.attention_idx = config.num_hidden_layers + layer_idx

    def forward(  # type: ignore[override]
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_state: torch.Tensor,
        encoder_mask: torch.Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        gate_bias, keys_and_values = self._source(encoder_hidden_states, encoder_state, cache)
        own_cache = None if cache is None else cache.self_attention_cache
        options = {"gate_bias": gate_bias, "return_ungated": self.attention is not None}
        output = super().forward(hidden_states, own_cache, attention_mask, **options)
        if self.attention is None:
            return output
        return self.attention(*output, *keys_and_values, encoder_mask)[0]

    def _source(self, encoder_hidden_states, encoder_state, cache):
        """What the source adds to the logits of the gates (equation 7), and the keys and values of the attention."""
        if cache is not None and cache.is_updated.get(self.layer_idx):
            layers = cache.cross_attention_cache.layers
            gate_bias = layers[self.layer_idx].keys[:, 0, 0]
            if self.attention is None:
                return gate_bias, None
            return gate_bias, (layers[self.attention_idx].keys, layers[self.attention_idx].values)
        gate_bias = self.source_proj(encoder_state)
        keys_and_values = self.attention.keys_and_values(encoder_hidden_states) if self.attention is not None else None
        if cache is not None:
            self._store(cache, gate_bias, keys_and_values)
        return gate_bias, keys_and_values

    def _store(self, cache, gate_bias, keys_and_values) -> None:
        """Keep what the source gave, detached: training over chunks backpropagates within each, as for the state."""
        cross_cache = cache.cross_attention_cache
        gate_bias = gate_bias.detach()[:, None, None]  # as one key of one head
        cross_cache.update(gate_bias, gate_bias, self.layer_idx)
        if keys_and_values is not None:
            keys, values = keys_and_values
            cross_cache.update(keys.detach(), values.detach(), self.attention_idx)
        cache.is_updated[self.layer_idx] = True


class QRNNEncoderBlock(QRNNBlock):
    """One layer of the encoder, which also tells the last state of its QRNN."""

    def __init__(self, config: QRNNSeq2SeqConfig, layer_idx: int):
        reverse = bool(config.encoder_reverse)
        super().__init__(config, layer_idx, QRNNMixer(config, layer_idx, causal=False, reverse=reverse))
        self.reverse = reverse
        self.bidirectional = config.bidirectional

    def forward(  # type: ignore[override]
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        mixed = self.mixer(self.input_norm(hidden_states), attention_mask=attention_mask)
        return self.connect(hidden_states, mixed), self._last_state(mixed, attention_mask)

    def _last_state(self, mixed: torch.Tensor, is_real: torch.Tensor | None) -> torch.Tensor:
        """`(batch, hidden)`: each direction at the real token that it read last."""
        if self.reverse:
            mixed, is_real = mixed.flip(1), None if is_real is None else is_real.flip(1)
        return read_out(mixed, is_real, "last", self.bidirectional)


class QRNNDecoderBlock(QRNNBlock):
    """One layer of the decoder."""

    def __init__(self, config: QRNNSeq2SeqConfig, layer_idx: int):
        super().__init__(config, layer_idx, QRNNDecoderMixer(config, layer_idx))

    def forward(  # type: ignore[override]
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_state: torch.Tensor,
        encoder_mask: torch.Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        source = (encoder_hidden_states, encoder_state, encoder_mask)
        mixed = self.mixer(self.input_norm(hidden_states), *source, cache, attention_mask)
        return self.connect(hidden_states, mixed)


@dataclass
class QRNNEncoderOutput(ModelOutput):
    """What the encoder returns.

    Args:
        last_hidden_state: `(batch, source_len, hidden_size)`, in the order of the source, zero at pads.
        last_states: `(batch, encoder_layers, hidden_size)`, what each layer's QRNN put out at the real token that it
            read last.
        hidden_states: if asked for, the embeddings and the output of each layer.
        attentions: always `None`: the encoder has none.
    """

    last_hidden_state: torch.Tensor | None = None
    last_states: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class QRNNSeq2SeqPreTrainedModel(QRNNPreTrainedModel):
    """What the models of the encoder-decoder share, beside what all QRNN models do."""

    config: QRNNSeq2SeqConfig
    _no_split_modules = ["QRNNEncoderBlock", "QRNNDecoderBlock"]
    _can_record_outputs = {}
    _auto_map = {
        "AutoConfig": "configuration_qrnn.QRNNSeq2SeqConfig",
        "AutoModel": "modeling_qrnn_seq2seq.QRNNSeq2SeqModel",
        "AutoModelForSeq2SeqLM": "modeling_qrnn_seq2seq.QRNNForConditionalGeneration",
    }

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Module:
        """As in Transformers; the encoder, whose config is a copy, knows of it too."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        self.get_encoder().config.vocab_size = self.config.vocab_size
        return embeddings


class QRNNSeq2SeqEncoder(QRNNSeq2SeqPreTrainedModel):
    """The encoder: centred convolutions over the source, read from its end, its beginning, or both.

    Example:
        >>> config = QRNNSeq2SeqConfig(vocab_size=100, hidden_size=32, encoder_layers=2)
        >>> outputs = QRNNSeq2SeqEncoder(config)(torch.tensor([[5, 6, 7]]))
        >>> outputs.last_hidden_state.shape, outputs.last_states.shape
        (torch.Size([1, 3, 32]), torch.Size([1, 2, 32]))
    """

    _can_record_outputs = {"hidden_states": QRNNEncoderBlock}

    def __init__(self, config: QRNNSeq2SeqConfig):
        config = config.encoder_config()
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.input_size)
        self.embedding_dropout = QRNNDropout(config.embedding_dropout)
        self.embed_proj = make_projection(config.input_size, config.layer_sizes[0][0])
        self.dropout = QRNNDropout(config.input_dropout, config.locked_dropout)
        self.layers = nn.ModuleList(QRNNEncoderBlock(config, layer_idx) for layer_idx in range(config.encoder_layers))
        self.norm = make_norm(config, config.output_size)
        self.gradient_checkpointing = False

        # Initialize weights and apply final processing
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> QRNNEncoderOutput:
        """Read the source.

        Args:
            input_ids: `(batch, source_len)` int64, tokens. Either these or `inputs_embeds`.
            attention_mask: `(batch, source_len)`, non-zero at real tokens, pads anywhere, which are skipped as if they
                were not there.
            inputs_embeds: `(batch, source_len, embedding_size)`, in place of the tokens' embeddings.
            kwargs: among them `output_hidden_states` and `return_dict`.

        Returns:
            A `QRNNEncoderOutput`, which `encoder_outputs` of the other models takes.

        Raises:
            ValueError: for tokens outside the vocabulary (on a CPU; elsewhere the device says so), a shape that does
                not fit, an empty source, both or neither of `input_ids` and `inputs_embeds`.
        """
        inputs_embeds = self._embed(input_ids, inputs_embeds)
        is_real = source_mask(attention_mask, *inputs_embeds.shape[:2])
        if input_ids is None:
            inputs_embeds = zero_at_pads(inputs_embeds, is_real)
        hidden_states = self.dropout(self.embed_proj(inputs_embeds))
        last_states = []
        for index, block in enumerate(self.layers):
            output, last_state = block(hidden_states, attention_mask=is_real)
            hidden_states = self._next_input(hidden_states, output, index)
            last_states.append(last_state)
        hidden_states = self._finish(hidden_states, is_real)
        states = torch.stack([state.to(hidden_states.device) for state in last_states], dim=1)
        return QRNNEncoderOutput(last_hidden_state=hidden_states, last_states=states)


def source_mask(attention_mask: torch.Tensor | None, batch_size: int, source_len: int) -> torch.Tensor | None:
    """`chunk_mask` of a whole source, for which a wider mask is a mistake."""
    if attention_mask is not None and attention_mask.shape != (batch_size, source_len):
        raise ValueError(
            f"`attention_mask` must have the shape (batch, source_len) = {(batch_size, source_len)}, "
            f"got {tuple(attention_mask.shape)}"
        )
    return chunk_mask(attention_mask, batch_size, source_len)


class QRNNSeq2SeqDecoder(QRNNSeq2SeqPreTrainedModel):
    """The decoder: masked convolutions over the target so far; the source enters gates and attention.

    It has no embeddings of its own: source and target share those of the encoder.
    """

    _can_record_outputs = {
        "hidden_states": QRNNDecoderBlock,
        "cross_attentions": OutputRecorder(QRNNAttention, index=1),
    }

    def __init__(self, config: QRNNSeq2SeqConfig):
        super().__init__(config)
        self.embed_proj = make_projection(config.input_size, config.layer_sizes[0][0])
        self.dropout = QRNNDropout(config.input_dropout, config.locked_dropout)
        self.layers = nn.ModuleList(QRNNDecoderBlock(config, layer_idx) for layer_idx in range(config.decoder_layers))
        self.norm = make_norm(config, config.output_size)
        self.layer_types, self.state_widths = config.layer_types, config.state_widths
        self.gradient_checkpointing = False

        # Initialize weights and apply final processing
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        is_widely_drawn = self.config.norm is None or isinstance(module, QRNNAttentionProjection)
        if isinstance(module, nn.Linear) and not hasattr(module, "forget_gate") and is_widely_drawn:
            # Without norms small weights would starve what comes after, as in the case of the embeddings.
            init_by_fan_in(module.weight)
        else:
            super()._init_weights(module)

    @merge_with_config_defaults
    @capture_outputs
    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    def forward(
        self,
        inputs_embeds: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_last_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Read the target, or its next chunk.

        Args:
            inputs_embeds: `(batch, target_len, embedding_size)`, the embeddings of the target.
            encoder_hidden_states: `(batch, source_len, hidden_size)`, the encoder's `last_hidden_state`.
            encoder_last_states: `(batch, encoder_layers, hidden_size)`, the encoder's `last_states`.
            attention_mask: `(batch, at least target_len)`, of the target; its last `target_len` columns count.
            encoder_attention_mask: `(batch, source_len)`, of the source.
            cache: the cache that the last chunk of the same source returned; it is advanced in place.
            use_cache: whether to return a cache; `config.use_cache` by default.
            kwargs: among them `output_hidden_states`, `output_attentions` and `return_dict`.

        Returns:
            `last_hidden_state` `(batch, target_len, hidden_size)`, zero at pads; `cache`, an `EncoderDecoderCache`;
            and if asked for `hidden_states` and, of each layer that has one, the weights of the attention,
            `cross_attentions`, each `(batch, heads, target_len, source_len)`.

        Raises:
            ValueError: for a shape that does not fit, or a cache of another model, batch size or length of the source.
        """
        batch_size, target_len, _ = inputs_embeds.shape
        self._check_source(encoder_hidden_states, encoder_last_states, batch_size)
        cache = self._prepare_cache(cache, use_cache, *encoder_hidden_states.shape[:2])
        is_real = chunk_mask(attention_mask, batch_size, target_len)
        encoder_mask = source_mask(encoder_attention_mask, *encoder_hidden_states.shape[:2])

        # Whether these are embeddings of tokens, or anything, is not known here.
        hidden_states = self.dropout(self.embed_proj(zero_at_pads(inputs_embeds, is_real)))
        for index, block in enumerate(self.layers):
            # Layer by layer if there are as many in the encoder; otherwise the last ones face each other.
            encoder_layer = max(index + self.config.encoder_layers - len(self.layers), 0)
            output = block(
                hidden_states,
                encoder_hidden_states,  # not by name: reentrant checkpointing differentiates what is positional
                encoder_last_states[:, encoder_layer],
                encoder_mask=encoder_mask,
                cache=cache,
                attention_mask=is_real,
            )
            hidden_states = self._next_input(hidden_states, output, index)
        hidden_states = self._finish(hidden_states, is_real)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden_states, cache=cache)

    def _prepare_cache(
        self, cache: Cache | None, use_cache: bool | None, batch_size: int, source_len: int
    ) -> EncoderDecoderCache | None:
        if cache is None:
            return EncoderDecoderCache(DynamicCache(config=self.config), DynamicCache()) if use_cache else None
        if not isinstance(cache, EncoderDecoderCache):
            raise ValueError(
                "`cache` must be an `EncoderDecoderCache`, as `EncoderDecoderCache(DynamicCache(config=model.config), "
                f"DynamicCache())` makes it, got {type(cache).__name__}"
            )
        self._check_cache(cache.self_attention_cache, use_cache, batch_size)
        if not any(cache.is_updated.values()):
            # Whoever makes both caches from the config gets layers for recurrent states in both.
            cache.cross_attention_cache = DynamicCache()
            return cache
        keys = cache.cross_attention_cache.layers[-1].keys  # of the last layer's attention
        if keys.shape[0] != batch_size:
            raise ValueError(
                f"`cache` does not fit: it holds a batch of {keys.shape[0]} sources, this batch has {batch_size}"
            )
        if keys.shape[2] != source_len:
            raise ValueError(
                f"`cache` does not fit: it holds a source of {keys.shape[2]} tokens, this source has {source_len}"
            )
        return cache

    def _check_source(self, hidden_states: torch.Tensor, last_states: torch.Tensor, batch_size: int) -> None:
        width, layers = self.config.hidden_size, self.config.encoder_layers
        shape = tuple(hidden_states.shape)
        if len(shape) != 3 or shape[0] != batch_size or shape[2] != width:
            raise ValueError(
                f"`encoder_outputs` must hold a `last_hidden_state` of the shape (batch, source_len, hidden_size) = "
                f"({batch_size}, any, {width}), got {shape}"
            )
        if tuple(last_states.shape) != (batch_size, layers, width):
            raise ValueError(
                f"`encoder_outputs` must hold `last_states` of the shape (batch, encoder_layers, hidden_size) = "
                f"{(batch_size, layers, width)}, got {tuple(last_states.shape)}"
            )


class QRNNSeq2SeqModel(QRNNSeq2SeqPreTrainedModel):
    """The encoder-decoder without a head.

    Example:
        >>> model = QRNNSeq2SeqModel(QRNNSeq2SeqConfig(vocab_size=100, hidden_size=32)).eval()
        >>> source, target = torch.tensor([[5, 6, 7]]), torch.tensor([[1, 8, 9, 10]])
        >>> whole = model(source, decoder_input_ids=target)
        >>> whole.last_hidden_state.shape
        torch.Size([1, 4, 32])
        >>> first = model(source, decoder_input_ids=target[:, :1])
        >>> second = model(source, decoder_input_ids=target[:, 1:], cache=first.cache)
        >>> torch.allclose(whole.last_hidden_state[:, 1:], second.last_hidden_state, atol=1e-6)
        True
    """

    def __init__(self, config: QRNNSeq2SeqConfig):
        super().__init__(config)
        self.encoder = QRNNSeq2SeqEncoder(config)
        self.decoder = QRNNSeq2SeqDecoder(config)

        # Initialize weights and apply final processing
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.encoder.set_input_embeddings(value)

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: QRNNEncoderOutput | tuple[torch.Tensor, ...] | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqModelOutput:
        """Read the source, and then the target or its next chunk.

        Args:
            input_ids: `(batch, source_len)` int64, the source. These, `inputs_embeds` or `encoder_outputs`.
            attention_mask: `(batch, source_len)`, non-zero at the source's real tokens, pads anywhere.
            decoder_input_ids: `(batch, target_len)` int64, what the decoder reads: the start token and the target but
                for its last token. Either these or `decoder_inputs_embeds`.
            decoder_attention_mask: `(batch, at least target_len)`, non-zero at the target's real tokens, pads
                anywhere; its last `target_len` columns count.
            encoder_outputs: what `get_encoder()` returned, in place of the source; `attention_mask` is still needed.
            cache: the cache that the last chunk of the same source returned; it is advanced in place.
            inputs_embeds: `(batch, source_len, embedding_size)`, in place of the source's embeddings.
            decoder_inputs_embeds: `(batch, target_len, embedding_size)`, in place of the target's embeddings.
            use_cache: whether to return a cache; `config.use_cache` by default.
            kwargs: among them `output_hidden_states`, `output_attentions` and `return_dict`.

        Returns:
            `last_hidden_state` `(batch, target_len, hidden_size)`, zero at pads; `cache`;
            `encoder_last_hidden_state`; and if asked for the hidden states of both and `cross_attentions`.

        Raises:
            ValueError: for tokens outside the vocabulary (on a CPU; elsewhere the device says so), a shape that does
                not fit, an empty sequence, both or neither of tokens and embeddings, a cache of another model, batch
                size or length of the source, or `encoder_outputs` without the encoder's last states.
        """
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
            )
        hidden_states, last_states, encoder_hidden_states = self._unpack(encoder_outputs)
        embeds = self.encoder._embed(decoder_input_ids, decoder_inputs_embeds, prefix="decoder_")
        outputs: BaseModelOutputWithPastAndCrossAttentions = self.decoder(
            inputs_embeds=embeds,
            encoder_hidden_states=hidden_states,
            encoder_last_states=last_states,
            attention_mask=decoder_attention_mask,
            encoder_attention_mask=attention_mask,
            cache=cache,
            use_cache=use_cache,
            **kwargs,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            cache=outputs.cache,
            decoder_hidden_states=outputs.hidden_states,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=hidden_states,
            encoder_hidden_states=encoder_hidden_states,
        )

    @staticmethod
    def _unpack(encoder_outputs) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...] | None]:
        if isinstance(encoder_outputs, (tuple, list)):
            encoder_outputs = QRNNEncoderOutput(*encoder_outputs)
        last_states = getattr(encoder_outputs, "last_states", None)
        if last_states is None:
            raise ValueError(
                "`encoder_outputs` must be what `model.get_encoder()` returns: its `last_hidden_state` and, as the "
                "gates of the decoder need them, its `last_states`"
            )
        return encoder_outputs.last_hidden_state, last_states, encoder_outputs.hidden_states


class QRNNForConditionalGeneration(QRNNSeq2SeqPreTrainedModel, QRNNGenerationMixin):
    """The encoder-decoder with a head that predicts the next token of the target.

    Example:
        >>> config = QRNNSeq2SeqConfig(vocab_size=100, hidden_size=32, decoder_start_token_id=1, pad_token_id=0)
        >>> model = QRNNForConditionalGeneration(config).eval()
        >>> source = torch.tensor([[5, 6, 7], [8, 9, 0]])
        >>> mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
        >>> loss = model(source, attention_mask=mask, labels=torch.tensor([[3, 4, 5, 2], [6, 2, -100, -100]])).loss
        >>> model.generate(source, attention_mask=mask, max_new_tokens=4, num_beams=2).shape
        torch.Size([2, 5])
    """

    _tied_weights_keys = {"lm_head.weight": "model.encoder.embed_tokens.weight"}
    accepts_loss_kwargs = True

    def __init__(self, config: QRNNSeq2SeqConfig):
        super().__init__(config)
        self.model = QRNNSeq2SeqModel(config)
        self.vocab_size = config.vocab_size
        self.dropout = QRNNDropout(config.output_dropout, config.locked_dropout)
        self.head_proj, self.lm_head = make_lm_head(config)

        # Initialize weights and apply final processing
        self.post_init()

    @gathers_shards
    @wraps(GenerationMixin.generate)
    def generate(self, *args, **kwargs):
        return super().generate(*args, **kwargs)

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """What the decoder reads to predict the labels (teacher forcing).

        Args:
            labels: `(batch, target_len)` int64; -100 stands for pads, on the right: others are read as tokens, unless
                `forward` is told by a `decoder_attention_mask`.

        Returns:
            `(batch, target_len)` int64: the start token, then each label but the last.

        Raises:
            ValueError: if the config names no token to begin with, or none for pads.

        Example:
            >>> config = QRNNSeq2SeqConfig(vocab_size=100, hidden_size=32, decoder_start_token_id=1, pad_token_id=0)
            >>> model = QRNNForConditionalGeneration(config)
            >>> model.prepare_decoder_input_ids_from_labels(torch.tensor([[5, 6, 2, -100]]))
            tensor([[1, 5, 6, 2]])
        """
        start, pad = self.config.decoder_start_token_id, self.config.pad_token_id
        start = self.config.bos_token_id if start is None else start
        if start is None or pad is None:
            name = "decoder_start_token_id" if start is None else "pad_token_id"
            raise ValueError(f"`{name}` must be set in the config to make the decoder's inputs from labels")
        return shift_tokens_right(labels, start, pad)

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, generation_mode, *args, **kwargs):
        if generation_config.prefill_chunk_size is not None:
            raise ValueError(
                "`prefill_chunk_size` must be None in an encoder-decoder, got "
                f"{generation_config.prefill_chunk_size}: the mask of the source would be cut with the target"
            )
        is_assisted = generation_mode == GenerationMode.ASSISTED_GENERATION
        if is_assisted and generation_config.cache_implementation == "static":
            raise ValueError(
                "`cache_implementation` must not be 'static' for assisted decoding or prompt lookup in an "
                "encoder-decoder: an `EncoderDecoderCache` of static caches takes no tokens back. Leave it out"
            )
        return super()._prepare_cache_for_generation(generation_config, model_kwargs, generation_mode, *args, **kwargs)

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: QRNNEncoderOutput | tuple[torch.Tensor, ...] | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqLMOutput:
        """Predict the next token of the target at each position.

        Args:
            input_ids, attention_mask, decoder_input_ids, decoder_attention_mask, encoder_outputs, cache,
                inputs_embeds, decoder_inputs_embeds, use_cache: as in `QRNNSeq2SeqModel`. Without any of the decoder's
                inputs they are made from the labels, whose pads on the left are then masked too.
            labels: `(batch, target_len)` int64, the token to predict at each position, not shifted here; -100 is not
                counted.
            logits_to_keep: compute the logits of the last so many positions only, or of those in a tensor; 0 for all.
            kwargs: among them `num_items_in_batch`, by which the loss is divided under gradient accumulation.

        Returns:
            `loss` if there are labels, `logits` `(batch, positions, vocab_size)`, and the rest as `QRNNSeq2SeqModel`.

        Raises:
            ValueError: as `QRNNSeq2SeqModel`, and if labels are not one for each token of the target, int64, and (on
                a CPU) in the vocabulary.
        """
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            sources = input_ids, inputs_embeds, None if encoder_outputs is None else encoder_outputs[0]
            source = next((given for given in sources if given is not None), labels)
            shape = source.shape[0], labels.shape[-1]
            check_token_labels(labels, shape, self.config.vocab_size, **kwargs)  # before they are shifted
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
            if decoder_attention_mask is None:
                decoder_attention_mask = labels_begun(labels)
        outputs: Seq2SeqModelOutput = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            decoder_input_ids=decoder_input_ids,
            decoder_attention_mask=decoder_attention_mask,
            encoder_outputs=encoder_outputs,
            cache=cache,
            inputs_embeds=inputs_embeds,
            decoder_inputs_embeds=decoder_inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice_logits_to_keep(self.dropout(outputs.last_hidden_state), logits_to_keep)
        logits = self.lm_head(self.head_proj(kept))

        loss = None
        if labels is not None:
            check_token_labels(labels, outputs.last_hidden_state.shape[:2], self.config.vocab_size, **kwargs)
            check_all_kept(logits, labels)
            options = {"vocab_size": self.config.vocab_size, "shift_labels": labels.contiguous()} | kwargs
            loss = self.loss_function(logits=logits, labels=labels, **options)
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            cache=outputs.cache,
            decoder_hidden_states=outputs.decoder_hidden_states,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
        )


class TargetLengthLogitsProcessor(LogitsProcessor):
    """Ranks the candidates of a beam search by the paper's equation 9, which knows how long a target is to be.

    A candidate of T tokens (with the one that ends it) is worth its summed log-probability times the product of
    `(t + alpha) / t` for t from T to the target length, the length of the source plus a margin; a longer one its
    log-probability. At the token that ends a candidate the difference is added, so `generate` must be told not to
    divide by a length of its own: `length_penalty=0.0`.

    Args:
        source_lengths: `(batch,)`, the number of real tokens of each source.
        eos_token_id: the token that ends a target, or several.
        alpha: 0 ranks by log-probability, 1 in proportion to its mean; the paper's is 0.6.
        margin: what is added to the source's length; the paper's is 5, of characters.

    Raises:
        ValueError: for an alpha below 0, no token that ends a target, or a number of beams that the sources do not
            divide.

    Example:
        >>> config = QRNNSeq2SeqConfig(vocab_size=50, hidden_size=16, decoder_start_token_id=1, eos_token_id=2)
        >>> model = QRNNForConditionalGeneration(config).eval()
        >>> source = torch.tensor([[5, 6, 7]])
        >>> ranking = TargetLengthLogitsProcessor(torch.tensor([3]), eos_token_id=2)
        >>> options = {"num_beams": 4, "length_penalty": 0.0, "max_new_tokens": 12}
        >>> output = model.generate(source, logits_processor=[ranking], **options)
    """

    def __init__(
        self,
        source_lengths: torch.Tensor | list[int],
        eos_token_id: int | list[int],
        alpha: float = 0.6,
        margin: int = 5,
    ):
        if alpha < 0:
            raise ValueError(f"`alpha` must be at least 0, got {alpha}")
        if eos_token_id is None:
            raise ValueError("`eos_token_id` must be the token that ends a target, got None")
        # On the CPU, for not every device has float64, which a quotient of gamma functions needs.
        self.target_lengths = torch.as_tensor(source_lengths).cpu().double() + margin
        self.eos_token_ids = [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)
        self.alpha = alpha
        self.num_tokens = 0  # generated before this step
        self.previous_ids: torch.Tensor | None = None
        self.totals: torch.Tensor | None = None  # (batch, beams, vocab_size), the last step's log-probabilities

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.Tensor:
        batch_size = len(self.target_lengths)
        if input_ids.shape[0] % batch_size:
            raise ValueError(
                f"`source_lengths` must have one length for each source: {batch_size} do not divide "
                f"{input_ids.shape[0]} beams"
            )
        ids = input_ids.unflatten(0, (batch_size, -1))
        log_probs = scores.unflatten(0, (batch_size, -1))
        self.totals = self._running(ids)[..., None] + log_probs
        self.previous_ids, self.num_tokens = ids, self.num_tokens + 1
        ends = self.totals[..., self.eos_token_ids]
        added = (self._factor().to(ends)[:, None, None] - 1) * ends
        log_probs = log_probs.clone()
        log_probs[..., self.eos_token_ids] += added.masked_fill(~ends.isfinite(), 0)
        return log_probs.flatten(0, 1)

    def _running(self, ids: torch.Tensor) -> torch.Tensor:
        """`(batch, beams)`: the log-probability of each beam so far, from that of the beam it continues."""
        if self.previous_ids is None or self.totals is None or ids.shape[2] != self.previous_ids.shape[2] + 1:
            self.num_tokens = 0  # the first step
            return torch.zeros(ids.shape[:2], device=ids.device)
        is_parent = (ids[:, :, None, :-1] == self.previous_ids[:, None]).all(dim=-1)
        parent = is_parent.to(torch.int8).argmax(dim=-1)
        rows = torch.arange(ids.shape[0], device=ids.device)[:, None]
        return self.totals[rows, parent, ids[..., -1]]

    def _factor(self) -> torch.Tensor:
        """`(batch,)`: the product of equation 9 for a candidate that ends now, as a quotient of gamma functions."""
        start = torch.full_like(self.target_lengths, self.num_tokens)
        end = torch.maximum(self.target_lengths + 1, start)

        def log_product(t):  # of (s + alpha) / s for s below t, but for a constant
            return torch.lgamma(t + self.alpha) - torch.lgamma(t)

        return (log_product(end) - log_product(start)).exp()


__all__ = [
    "QRNNForConditionalGeneration",
    "QRNNSeq2SeqDecoder",
    "QRNNSeq2SeqEncoder",
    "QRNNSeq2SeqModel",
    "QRNNSeq2SeqPreTrainedModel",
    "TargetLengthLogitsProcessor",
]
