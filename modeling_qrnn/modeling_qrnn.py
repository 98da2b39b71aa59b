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
"""PyTorch QRNN model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin, StoppingCriteriaList
from transformers.generation.configuration_utils import GenerationMode
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    MaskedLMOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, logging
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.import_utils import is_tracing
from transformers.utils.output_capturing import capture_outputs

from .cache_qrnn import QRNNCacheLayer, widths_of
from .configuration_qrnn import QRNNClassifierConfig, QRNNConfig, QRNNStackConfig, QRNNTextConfig
from .layers_qrnn import QRNNDropout, QRNNLayer
from .pooling_qrnn import state_dtype, token_mask


logger = logging.get_logger(__name__)


def has_values(tensor: torch.Tensor) -> bool:
    """Whether it holds values that Python can ask for: not in a traced graph, in `torch.func`, or without data."""
    return not (is_tracing(tensor) or tensor.is_meta or torch._C._are_functorch_transforms_active())


def can_be_looked_at(tensor: torch.Tensor) -> bool:
    """Whether its values are at hand: on an accelerator a look would wait for the device at each step."""
    return tensor.device.type == "cpu" and has_values(tensor)


def chunk_mask(attention_mask: torch.Tensor | None, batch_size: int, seq_len: int) -> torch.Tensor | None:
    """`token_mask` without masks that hide nothing, for the unmasked path is faster.

    A traced graph keeps its mask, because whether it hides something is not known there. Nor is the mask of a
    one-token step dropped unseen: that token may be a pad.
    """
    is_real = token_mask(attention_mask, batch_size, seq_len)
    if is_real is None or (has_values(is_real) and bool(is_real.all())):
        return None
    return is_real.contiguous()


def zero_at_pads(hidden_states: torch.Tensor, is_real: torch.Tensor | None) -> torch.Tensor:
    """Zeros at pads, whatever they hold, NaN included."""
    if is_real is None:
        return hidden_states
    return hidden_states.masked_fill(~is_real[..., None].to(hidden_states.device), 0)


def packed_segments(
    position_ids: torch.Tensor | None,
    seq_idx: torch.Tensor | None,
    cu_seq_lens: torch.Tensor | None,
    batch_size: int,
    seq_len: int,
) -> torch.Tensor | None:
    """`segment_ids` of sequences laid end to end, from whichever marks a collator gave; `None` for one sequence a row.

    Args:
        position_ids: `(batch or 1, seq_len)`, zero where a sequence begins.
        seq_idx: `(batch or 1, seq_len)`, the number of the sequence.
        cu_seq_lens: `(sequences + 1,)`, where each sequence of a single row begins, and the end.
        batch_size: the batch size of the chunk.
        seq_len: its length.
    """
    marks = []
    if position_ids is not None:
        marks.append((position_ids == 0).cumsum(dim=1))
    if seq_idx is not None:
        marks.append(seq_idx)
    if cu_seq_lens is not None:
        steps = torch.arange(seq_len, device=cu_seq_lens.device)
        marks.append(torch.bucketize(steps, cu_seq_lens[1:-1], right=True)[None])
    if not marks:
        return None
    marks = [mark.expand(batch_size, -1) for mark in marks]
    if len(marks) == 1:
        return marks[0]
    starts = [F.pad(mark[:, 1:] != mark[:, :-1], (1, 0)) for mark in marks]
    return torch.stack(starts).any(dim=0).cumsum(dim=1)


class QRNNRMSNorm(nn.RMSNorm):
    """Root mean square normalisation in the dtype of its weight, which under autocast is wider than the input's."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states.to(self.weight.dtype)).to(hidden_states.dtype)


def make_norm(config: QRNNStackConfig, width: int) -> nn.Module:
    """The normalisation that the config names, over the last dimension."""
    if config.norm is None:
        return nn.Identity()
    return {"layer_norm": nn.LayerNorm, "rms_norm": QRNNRMSNorm}[config.norm](width, eps=config.norm_eps)


def make_projection(input_size: int, output_size: int) -> nn.Module:
    """A linear map where the widths differ."""
    return nn.Identity() if input_size == output_size else nn.Linear(input_size, output_size, bias=False)


class QRNNMLP(nn.Module):
    """Gated MLP: `W_down (silu(W_gate x) * W_up x)`."""

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.gate_up_proj = nn.Linear(hidden_size, 2 * intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up_proj(hidden_states).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class QRNNMixer(nn.Module):
    """The QRNN of one layer, in one direction or both, with its part of the cache.

    An encoder's may have centred convolutions (`causal=False`), and a single direction that runs from the end
    (`reverse=True`).
    """

    def __init__(self, config: QRNNStackConfig, layer_idx: int, causal: bool = True, reverse: bool = False):
        super().__init__()
        self.layer_idx = layer_idx
        input_size, output_size = config.layer_sizes[layer_idx]
        directions = (False, True) if config.bidirectional else (reverse,)
        self.directions = nn.ModuleList(
            QRNNLayer(
                input_size,
                output_size // len(directions),
                config.kernel_sizes[layer_idx],
                config.pooling,
                zoneout=config.zoneout,
                candidate_activation=config.candidate_activation,
                weight_dropout=config.weight_dropout,
                causal=causal,
                reverse=is_reversed,
            )
            for is_reversed in directions
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        cache: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        **layer_options,
    ) -> torch.Tensor:
        options = {"attention_mask": attention_mask, "segment_ids": segment_ids, **layer_options}
        if cache is not None:
            return self._forward_from_cache(hidden_states, cache, options)
        outputs = [direction(hidden_states, **options)[0] for direction in self.directions]
        return torch.cat(outputs, dim=-1) if len(outputs) > 1 else outputs[0]

    def _forward_from_cache(self, hidden_states, cache, options):
        layer = cast(QRNNLayer, self.directions[0])
        # 1. Read the state. The cache has a placeholder where a convolution of width one carries nothing.
        state = cache.layers[self.layer_idx].carried_state()
        if state is not None:
            state = (state[0], state[1][..., : layer.kernel_size - 1])

        # 2. Convolution and recurrence; while the cache records, with the state after each token
        is_recording = cache.is_recording_past(self.layer_idx)
        h, (c, conv_state), *history = layer(hidden_states, state, **options, return_history=is_recording)
        c_history, conv_history = history[0] if is_recording else (None, None)

        # 3. Write the state
        cache.update_recurrent_state(c, self.layer_idx, history=c_history)
        cache.update_conv_state(conv_state, self.layer_idx, num_tokens=hidden_states.shape[1], history=conv_history)
        return h


class QRNNBlock(GradientCheckpointingLayer):
    """One layer of the model: a QRNN alone in plain and dense stacks, a pre-norm residual block otherwise."""

    def __init__(self, config: QRNNStackConfig, layer_idx: int, mixer: QRNNMixer | None = None):
        super().__init__()
        self.is_residual = config.connection == "residual"
        self.input_norm = make_norm(config, config.layer_sizes[layer_idx][0])
        self.mixer = QRNNMixer(config, layer_idx) if mixer is None else mixer
        if self.is_residual:
            self.out_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.has_mlp = config.intermediate_size is not None
        if config.intermediate_size is not None:
            self.mlp_norm = make_norm(config, config.hidden_size)
            self.mlp = QRNNMLP(config.hidden_size, config.intermediate_size)
        # Between layers, so not after the last one of a stack; a residual block drops its branches in every layer.
        drops = self.is_residual or layer_idx < config.num_hidden_layers - 1
        self.dropout = QRNNDropout(config.hidden_dropout if drops else 0.0, config.locked_dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        cache: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        mixed = self.mixer(self.input_norm(hidden_states), cache, attention_mask, segment_ids)
        return self.connect(hidden_states, mixed)

    def connect(self, hidden_states: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        """What the layer passes on: its QRNN's output, or its input with that and an MLP's added to it."""
        if not self.is_residual:
            return self.dropout(mixed)
        hidden_states = hidden_states + self.dropout(self.out_proj(mixed))
        if self.has_mlp:
            hidden_states = hidden_states + self.dropout(self.mlp(self.mlp_norm(hidden_states)))
        return hidden_states


@contextmanager
def own_class(model: PreTrainedModel) -> Iterator[None]:
    """Give a model back its own class for a while: FSDP2 replaces it by one of torch's, whose code would be saved."""
    sharded = type(model)
    model.__class__ = next(cls for cls in sharded.__mro__ if not cls.__module__.startswith("torch."))
    try:
        yield
    finally:
        model.__class__ = sharded


def init_by_fan_in(weight: torch.Tensor) -> None:
    """Draw as torch's own linear layers do: uniformly from -1/sqrt(fan_in) to 1/sqrt(fan_in)."""
    bound = weight.shape[1] ** -0.5
    init.uniform_(weight, -bound, bound)


class QRNNPreTrainedModel(PreTrainedModel):
    """What all QRNN models share: initialisation, the flags that Transformers reads, and saving with code."""

    config: QRNNConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["QRNNBlock"]
    _can_compile_fullgraph = True
    # The cache rolls back, unlike that of other recurrent models, so assisted decoding may be used.
    _is_stateful = False
    _can_record_outputs: dict[str, Any] = {"hidden_states": QRNNBlock}
    _auto_map = {
        "AutoConfig": "configuration_qrnn.QRNNConfig",
        "AutoModel": "modeling_qrnn.QRNNModel",
        "AutoModelForCausalLM": "modeling_qrnn.QRNNForCausalLM",
        "AutoModelForMaskedLM": "modeling_qrnn.QRNNForMaskedLM",
        "AutoModelForSequenceClassification": "modeling_qrnn.QRNNForSequenceClassification",
        "AutoModelForTokenClassification": "modeling_qrnn.QRNNForTokenClassification",
    }

    def __init__(self, config: QRNNConfig, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        config.validate()  # fields set after construction, as `from_pretrained` does with overrides, are unchecked

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.embedding_initializer_range)
        elif isinstance(module, nn.Linear) and hasattr(module, "forget_gate"):  # a gate projection
            self._init_gates(module.weight)
            bias = torch.zeros_like(module.bias)
            bias[cast(slice, module.forget_gate)] = self.config.forget_bias
            init.copy_(module.bias, bias)
        else:
            super()._init_weights(module)

    def _init_gates(self, weight: torch.Tensor):
        if self.config.gate_initializer_range is None:
            init_by_fan_in(weight)
        else:
            init.normal_(weight, std=self.config.gate_initializer_range)

    def _run_layers(
        self,
        hidden_states: torch.Tensor,
        cache: Cache | None = None,
        is_real: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The stack, of a model that holds one: `layers`, connected as the config says, and `norm`; zero at pads."""
        for index, block in enumerate(self.layers):
            output = block(hidden_states, cache=cache, attention_mask=is_real, segment_ids=segment_ids)
            hidden_states = self._next_input(hidden_states, output, index)
        return self._finish(hidden_states, is_real)

    def _next_input(self, hidden_states: torch.Tensor, output: torch.Tensor, index: int) -> torch.Tensor:
        """What goes into the layer after the one that made `output` of `hidden_states`."""
        if self.config.connection == "dense" and index < len(self.layers) - 1:
            return torch.cat([hidden_states.to(output.device), output], dim=-1)
        return output

    def _finish(self, hidden_states: torch.Tensor, is_real: torch.Tensor | None) -> torch.Tensor:
        """The last norm, and zero at pads."""
        return zero_at_pads(self.norm(hidden_states), is_real)

    def _embed(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None, prefix: str = ""
    ) -> torch.Tensor:
        """`(batch, seq_len, embedding_size)`, with whole rows of the embedding matrix dropped in training.

        Of a model that holds `embed_tokens` and `embedding_dropout`; errors name the arguments with the prefix.
        """
        if input_ids is not None and inputs_embeds is None:
            self._check_input_ids(input_ids, prefix)
            inputs_embeds = self.embed_tokens(input_ids)
            if self.embedding_dropout.training and self.embedding_dropout.p:
                words = inputs_embeds.new_ones(self.embed_tokens.weight.shape[0], 1)
                inputs_embeds = inputs_embeds * self.embedding_dropout(words)[input_ids]
            return inputs_embeds
        if inputs_embeds is not None and input_ids is None:
            self._check_inputs_embeds(inputs_embeds, prefix)
            return inputs_embeds
        raise ValueError(
            f"You must specify exactly one of `{prefix}input_ids` and `{prefix}inputs_embeds`, got "
            f"{'neither' if input_ids is None else 'both'}"
        )

    def _check_inputs_embeds(self, inputs_embeds: torch.Tensor, prefix: str) -> None:
        width = self.config.input_size
        if inputs_embeds.dim() != 3 or inputs_embeds.shape[1] == 0 or inputs_embeds.shape[2] != width:
            raise ValueError(
                f"`{prefix}inputs_embeds` must have the shape (batch, at least one token, embedding_size={width}), "
                f"got {tuple(inputs_embeds.shape)}"
            )

    def _check_input_ids(self, input_ids: torch.Tensor, prefix: str) -> None:
        if input_ids.dim() != 2 or input_ids.shape[1] == 0:
            raise ValueError(
                f"`{prefix}input_ids` must have the shape (batch, at least one token), got {tuple(input_ids.shape)}"
            )
        if input_ids.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"`{prefix}input_ids` must be int64 or int32, got {input_ids.dtype}")
        # An accelerator's embedding kernel refuses the ids itself.
        if can_be_looked_at(input_ids) and input_ids.numel():
            low, high = (int(bound) for bound in torch.aminmax(input_ids))
            num_embeddings = self.embed_tokens.weight.shape[0]  # an adapter around them has no other number
            if low < 0 or high >= num_embeddings:
                raise ValueError(
                    f"`{prefix}input_ids` must lie between 0 and vocab_size - 1 = {num_embeddings - 1}, "
                    f"got values from {low} to {high}"
                )

    def _check_cache(self, cache: Cache | None, use_cache: bool | None, batch_size: int) -> None:
        if self.config.bidirectional and (cache is not None or use_cache):
            name = "use_cache" if cache is None else "cache"
            raise ValueError(
                f"`{name}` was set, but a bidirectional model has no state to carry on: its backward direction starts "
                "at the end of the sequence"
            )
        if cache is None:
            return
        if self.training and self.gradient_checkpointing and torch.is_grad_enabled():
            raise ValueError(
                "`cache` must be None in training with activation checkpointing: Transformers drops the state in a "
                "layer that it recomputes"
            )
        layers = getattr(cache, "layers", [])
        kinds = [getattr(layer, "_layer_type", type(layer).__name__) for layer in layers]
        if kinds != self.layer_types:
            raise ValueError(
                f"`cache` must have {len(self.layers)} layers of the kind {QRNNCacheLayer._layer_type!r}, as "
                f"`DynamicCache(config=model.config)` makes them, got {kinds}"
            )
        for index, (layer, expected) in enumerate(zip(layers, self.state_widths, strict=True)):
            if not layer.has_previous_state[0]:
                continue
            conv_state = layer.conv_states[0]
            widths = tuple(widths_of(conv_state, layer.recurrent_states[0]))
            if conv_state.shape[0] != batch_size or widths != expected:
                advice = ". Several sequences of each row, or beams, need `cache.batch_repeat_interleave(n)` first"
                is_multiple = widths == expected and len(conv_state) > 0 and batch_size % len(conv_state) == 0
                raise ValueError(
                    f"`cache` does not fit: layer {index} holds a batch of {conv_state.shape[0]} with the "
                    f"widths {widths}, this model and batch need {batch_size} and {expected}"
                    f"{advice if is_multiple else ''}"
                )

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Save as any Transformers model does, together with the code; the `auto_map` names every head.

        It leaves out a class that no Auto class knows, as a subclass of one of these, for its code is not saved. See
        `transformers.PreTrainedModel.save_pretrained` for the arguments.
        """
        saved = {
            name: place
            for name, place in self._auto_map.items()
            if (self.config if name == "AutoConfig" else self)._auto_class
        }
        others = (getattr(self.config, "auto_map", None) or {}).items()
        self.config.auto_map = {name: place for name, place in others if name not in self._auto_map} | saved
        # A pipeline leaves its code in the folder before it saves the model; elsewhere the reference leads nowhere.
        if getattr(self.config, "custom_pipelines", None) and not Path(save_directory, "pipelines_qrnn.py").is_file():
            del self.config.custom_pipelines
        with own_class(self):
            super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def maybe_distribute_model(cls, model, distributed_config, mesh_manager):
        """Spread a model that is being loaded over processes, as `distributed_config` says.

        Raises:
            ValueError: for pipeline parallelism of a model that Transformers would not cut right.
        """
        is_cut = mesh_manager is not None and distributed_config.pp_size > 1
        if is_cut and not (cls._pp_plan and model.config.base_model_pp_plan):
            raise ValueError(
                f"`pp_size` must be 1 for this model, got {distributed_config.pp_size}: only causal language models "
                "can be cut into stages, and only without dense connections and widths beside `hidden_size`"
            )
        return super().maybe_distribute_model(model, distributed_config, mesh_manager)


class QRNNModel(QRNNPreTrainedModel):
    """The QRNN without a head.

    Example:
        >>> model = QRNNModel(QRNNConfig(vocab_size=100, hidden_size=32)).eval()
        >>> first = model(torch.tensor([[5, 6, 7]]))
        >>> first.last_hidden_state.shape
        torch.Size([1, 3, 32])
        >>> second = model(torch.tensor([[8, 9]]), cache=first.cache)
        >>> whole = model(torch.tensor([[5, 6, 7, 8, 9]]))
        >>> torch.allclose(whole.last_hidden_state[:, 3:], second.last_hidden_state, atol=1e-6)
        True
    """

    def __init__(self, config: QRNNConfig):
        super().__init__(config)
        first_width = config.layer_sizes[0][0]
        # No `padding_idx`: pads are skipped whatever their embedding, and as a pad token may also end sentences, its
        # embedding must be trained.
        self.embed_tokens = nn.Embedding(config.vocab_size, config.input_size)
        self.embedding_dropout = QRNNDropout(config.embedding_dropout)
        self.embed_proj = make_projection(config.input_size, first_width)
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
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        seq_idx: torch.IntTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """Run the model over a batch of sequences, or over the next chunk of them.

        Args:
            input_ids: `(batch, seq_len)` int64, tokens. Either these or `inputs_embeds`.
            attention_mask: `(batch, at least seq_len)`, non-zero at real tokens, pads anywhere; its last `seq_len`
                columns count. Pads are skipped as if they were not there.
            position_ids: `(batch or 1, seq_len)`. A zero after the first column begins a new sequence of a packed row,
                if there is neither `attention_mask` nor `cache`; positions mean nothing else to a QRNN.
            cache: the cache that the last chunk returned; it is advanced in place.
            inputs_embeds: `(batch, seq_len, embedding_size)`, in place of the tokens' embeddings.
            use_cache: whether to return a cache; `config.use_cache` by default.
            seq_idx: `(batch or 1, seq_len)` integers that change where a new sequence of a packed row begins. A chunk
                that goes on from a cache goes on with its sequence, whatever the first integer.
            kwargs: among them `output_hidden_states`, `return_dict`, and `cu_seq_lens_q` as the boundaries of a single
                packed row.

        Returns:
            `last_hidden_state` `(batch, seq_len, config.output_size)`, zero at pads, and `cache`.

        Raises:
            ValueError: for tokens outside the vocabulary (on a CPU; elsewhere the device says so), a shape that does
                not fit, an empty sequence, both or neither of `input_ids` and `inputs_embeds`, a cache of another
                model or batch size, a cache in training with activation checkpointing, or a bidirectional model that
                is asked for a cache.
        """
        inputs_embeds = self._embed(input_ids, inputs_embeds)
        batch_size, seq_len, _ = inputs_embeds.shape
        cu_seq_lens = kwargs.get("cu_seq_lens_q")
        self._check_marks(position_ids, seq_idx, cu_seq_lens, batch_size, seq_len)
        self._check_cache(cache, use_cache, batch_size)

        is_unmarked = attention_mask is None and cache is None
        if not is_unmarked or (position_ids is not None and self._is_one_sequence(position_ids)):
            position_ids = None
        segment_ids = packed_segments(position_ids, seq_idx, cu_seq_lens, batch_size, seq_len)
        is_real = chunk_mask(attention_mask, batch_size, seq_len)
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)

        if input_ids is None:
            inputs_embeds = zero_at_pads(inputs_embeds, is_real)
        hidden_states = self.dropout(self.embed_proj(inputs_embeds))
        hidden_states = self._run_layers(hidden_states, cache, is_real, segment_ids)
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, cache=cache)

    @staticmethod
    def _is_one_sequence(position_ids: torch.Tensor) -> bool:
        """Whether the positions are known to hold no boundary; a traced graph must look for them."""
        return has_values(position_ids) and not bool((position_ids[:, 1:] == 0).any())

    @staticmethod
    def _check_marks(
        position_ids: torch.Tensor | None,
        seq_idx: torch.Tensor | None,
        cu_seq_lens: torch.Tensor | None,
        batch_size: int,
        seq_len: int,
    ) -> None:
        if cu_seq_lens is not None and (cu_seq_lens.dim() != 1 or batch_size != 1):
            raise ValueError(
                "`cu_seq_lens_q` must have the shape (sequences + 1,) and come with a batch of 1, "
                f"got {tuple(cu_seq_lens.shape)} and a batch of {batch_size}"
            )
        if cu_seq_lens is not None and can_be_looked_at(cu_seq_lens):
            first, last = int(cu_seq_lens[0]), int(cu_seq_lens[-1])
            if (first, last) != (0, seq_len):
                raise ValueError(f"`cu_seq_lens_q` must go from 0 to seq_len = {seq_len}, got {first} to {last}")
        for name, marks in (("position_ids", position_ids), ("seq_idx", seq_idx)):
            if marks is not None and marks.shape not in ((1, seq_len), (batch_size, seq_len)):
                raise ValueError(
                    f"`{name}` must have the shape (batch or 1, seq_len) = ({batch_size} or 1, {seq_len}), "
                    f"got {tuple(marks.shape)}"
                )


def make_lm_head(config: QRNNTextConfig) -> tuple[nn.Module, nn.Linear]:
    """What leads from hidden states to logits: a way back to the width of tied embeddings, then the head."""
    width = config.input_size if config.tie_word_embeddings else config.output_size
    return make_projection(config.output_size, width), nn.Linear(width, config.vocab_size, bias=config.lm_head_bias)


def check_token_labels(
    labels: torch.Tensor,
    shape: Sequence[int],
    num_labels: int,
    ignore_index: int = -100,
    shift_labels: torch.Tensor | None = None,
    **kwargs,
) -> None:
    """Refuse labels that are not one for each token, or that no logit stands for; `shift_labels` too, where given."""
    if tuple(labels.shape) != tuple(shape):
        raise ValueError(f"`labels` must have the shape (batch, seq_len) = {tuple(shape)}, got {tuple(labels.shape)}")
    check_classes(labels, num_labels, ignore_index)
    if shift_labels is not None:
        check_classes(shift_labels, num_labels, ignore_index, "shift_labels")


def check_classes(labels: torch.Tensor, num_labels: int, ignore_index: int = -100, name: str = "labels") -> None:
    """Refuse labels of another type, or that no logit stands for."""
    if labels.dtype != torch.int64:
        raise ValueError(f"`{name}` must be int64, got {labels.dtype}")
    if can_be_looked_at(labels):  # an accelerator's kernel of the loss refuses them itself
        wrong = labels[(labels != ignore_index) & ((labels < 0) | (labels >= num_labels))]
        if len(wrong):
            raise ValueError(
                f"`{name}` must lie between 0 and {num_labels - 1}, or be {ignore_index}, got {int(wrong[0])}"
            )


def in_dtype_of(linear: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Cast an input from outside of the model to the dtype of a layer's weights.

    Layers with quantised weights take it as it is, but those of `torch.ao`, whose `weight` is a method, take float32.
    """
    weight = getattr(linear, "weight", x)
    if not isinstance(weight, torch.Tensor):
        return x.float()
    return x.to(weight.dtype) if weight.is_floating_point() and weight.element_size() > 1 else x


def check_all_kept(logits: torch.Tensor, labels: torch.Tensor) -> None:
    """Refuse labels of positions whose logits `logits_to_keep` left out."""
    if logits.shape[1] != labels.shape[1]:
        raise ValueError(
            f"`labels` need the logits of all {labels.shape[1]} positions, got those of {logits.shape[1]}: leave out "
            "`logits_to_keep`"
        )


def check_sequence_labels(labels: torch.Tensor, batch_size: int, config: QRNNClassifierConfig) -> None:
    """Refuse labels of another shape, which a loss might stretch to fit, and classes that no logit stands for."""
    num_labels, problem = config.num_labels, config.problem_type
    is_integer = labels.dtype in (torch.int64, torch.int32)
    is_class = num_labels > 1 and (problem == "single_label_classification" or (problem is None and is_integer))
    is_single = is_class or (num_labels == 1 and problem != "multi_label_classification")
    shapes = [(batch_size,), (batch_size, 1)] if is_single else [(batch_size, num_labels)]
    if tuple(labels.shape) not in shapes:
        raise ValueError(f"`labels` must have the shape {shapes[0]}, got {tuple(labels.shape)}")
    if is_class:
        check_classes(labels, num_labels)
    elif problem == "multi_label_classification" and not labels.is_floating_point():
        raise ValueError(f"`labels` of several classes at once must be floating-point, got {labels.dtype}")


def drop_labels_after_pads(
    labels: torch.Tensor, attention_mask: torch.Tensor | None, ignore_index: int = -100, **kwargs
) -> torch.Tensor:
    """The labels of a causal model, ignored after a pad: what is predicted there means nothing.

    As without pads, nothing predicts the first token of a row.
    """
    is_real = token_mask(attention_mask, *labels.shape)
    return labels if is_real is None else labels.masked_fill(F.pad(~is_real[:, :-1], (1, 0)), ignore_index)


def warn_of_miscount(
    labels: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    num_items_in_batch: torch.Tensor | int | None = None,
    shift_labels: torch.Tensor | None = None,
    **kwargs,
) -> None:
    """Say once that the count by which the loss is divided may hold labels that the loss leaves out."""
    if labels is None or attention_mask is None or num_items_in_batch is None or shift_labels is not None:
        return
    if labels.shape != attention_mask.shape or not has_values(labels):  # refused later, or not known
        return
    if not torch.equal(labels, drop_labels_after_pads(labels, attention_mask, **kwargs)):
        logger.warning_once(
            "Labels of tokens that follow a pad are not counted in the loss, and `num_items_in_batch`, as "
            "`transformers.Trainer` counts, may hold them: the loss is too small then. Pad on the right, label the "
            "first token after left pads -100, or use `QRNNTrainer`"
        )


def gathers_shards(generate: Callable) -> Callable:
    """Decorate a `generate` that calls parts of the model: by itself FSDP2 gathers weights for calls of the whole.

    The model must be the root that was sharded; for a wrapper around it `register_fsdp_forward_method` is the way.
    """

    @wraps(generate)
    def gathered(self, *args, **kwargs):
        if not hasattr(self, "unshard") or "generate" in vars(self):
            return generate(self, *args, **kwargs)
        from torch.distributed.fsdp import register_fsdp_forward_method  # not in a torch without torch.distributed

        register_fsdp_forward_method(self, "generate")
        return self.generate(*args, **kwargs)

    return gathered


class EndedRows(StoppingCriteriaList):
    """Stopping criteria that remember where each row ended, for `generate` fills ended rows up with pads.

    Attention can be told afterwards to ignore them; a recurrent state must not have read them.
    """

    NEVER = torch.iinfo(torch.int64).max

    def __init__(self):
        super().__init__()
        self.lengths: torch.Tensor | None = None  # (batch,), with the token that ended the row
        self.are_hidden_in_a_graph = False

    def __call__(self, input_ids, scores, **kwargs):
        is_done = super().__call__(input_ids, scores, **kwargs)
        if len(is_done) > 1:  # a single row ends the whole
            if self.lengths is None or len(self.lengths) != len(is_done):
                self.lengths = torch.full_like(is_done, self.NEVER, dtype=torch.int64)
            self.lengths = self.lengths.masked_fill(is_done & (self.lengths == self.NEVER), input_ids.shape[1])
        return is_done

    def hide_pads(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        """The mask over all tokens up to now, zero at those pads; as it is while there are none."""
        if self.lengths is None or len(self.lengths) != len(input_ids) or bool((self.lengths == self.NEVER).all()):
            return attention_mask
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        num_pads = (input_ids.shape[1] - self.lengths)[:, None].to(attention_mask.device)
        from_the_end = torch.arange(attention_mask.shape[1], 0, -1, device=attention_mask.device)
        return attention_mask.masked_fill(from_the_end <= num_pads, 0)


class QRNNGenerationMixin(GenerationMixin):
    """`generate` for models whose cache holds recurrent states."""

    @staticmethod
    def create_masks_for_generate(
        config: QRNNConfig,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        cache: Cache | None = None,
        **kwargs,
    ) -> torch.Tensor | None:
        """The mask of the current chunk: its shape is fixed, so compiled decoding does not compile anew each step."""
        return chunk_mask(attention_mask, inputs_embeds.shape[0], inputs_embeds.shape[1])

    def _get_static_cache_init_shape(self) -> None:
        """There are no heads to size a static cache by; it takes its shape from the first chunk."""

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, generation_mode, *args, **kwargs):
        if generation_config.cache_implementation == "quantized":
            raise ValueError(
                "`cache_implementation` must not be 'quantized' for a QRNN: its state is one vector per layer, kept "
                "in float32 for accuracy, and does not grow. Leave it out, or use 'static' for compiled decoding"
            )
        if generation_config.assistant_early_exit is not None:
            raise ValueError(
                f"`assistant_early_exit` must be None for a QRNN, got {generation_config.assistant_early_exit}: the "
                "state of the layers above would be missing. Use `assistant_model` or `prompt_lookup_num_tokens`"
            )
        cache, length = model_kwargs.get("cache"), self._prompt_length(generation_config, model_kwargs)
        self._check_prompt(generation_config, model_kwargs, length)
        if isinstance(cache, Cache) and length is not None and cache.get_seq_length() >= length:
            raise ValueError(
                f"`cache` has seen {int(cache.get_seq_length())} tokens, and the prompt with its mask has {length}: "
                "give a text that goes on after those, or new tokens with an `attention_mask` over the old and the new"
            )
        super()._prepare_cache_for_generation(generation_config, model_kwargs, generation_mode, *args, **kwargs)
        # On the generation config, for `_get_stopping_criteria` is not given the arguments of the model.
        generation_config._ended_rows = None
        if generation_mode in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
            ended_rows = generation_config._ended_rows = model_kwargs["ended_rows"] = EndedRows()
            ended_rows.are_hidden_in_a_graph = self._valid_auto_compile_criteria(model_kwargs, generation_config)

    def _check_prompt(self, generation_config, model_kwargs: dict[str, Any], length: int | None) -> None:
        """Refuse a prompt that Transformers would not read whole, or from whose end no token can be told."""
        mask, embeds = model_kwargs.get(self._mask_name), model_kwargs.get("inputs_embeds")
        cache = model_kwargs.get("cache")
        if mask is not None and has_values(mask) and not bool(mask[:, -1].all()):
            raise ValueError(
                f"`{self._mask_name}` must not end in pads, for the next token is told by the last one: each "
                "prompt must hold a token, with pads on its left; leave out rows that have ended. (A mask that is not "
                "given is made from `pad_token_id`.)"
            )
        if embeds is None or self.config.is_encoder_decoder:
            return
        if generation_config.prefill_chunk_size is not None:
            raise ValueError("`prefill_chunk_size` must be None with `inputs_embeds`, which are read at once")
        if length is not None and cache is not None and cache.get_seq_length() and embeds.shape[1] != length:
            raise ValueError(
                f"`inputs_embeds` must be of the whole text where a `cache` goes on: there are {embeds.shape[1]}, and "
                f"the text with its mask has {length}"
            )

    def _get_stopping_criteria(self, generation_config, *args, **kwargs) -> StoppingCriteriaList:
        """As in Transformers; where an end token stops rows one by one, they also remember where each row ended."""
        criteria = super()._get_stopping_criteria(generation_config, *args, **kwargs)
        ended_rows = getattr(generation_config, "_ended_rows", None)
        if ended_rows is None or not any(hasattr(criterion, "eos_token_id") for criterion in criteria):
            return criteria
        ended_rows.extend(criteria)
        return ended_rows

    @property
    def _mask_name(self) -> str:
        return "decoder_attention_mask" if self.config.is_encoder_decoder else "attention_mask"

    def _prompt_length(self, generation_config, model_kwargs: dict[str, Any]) -> int | None:
        """The tokens of the prompt that a cache holds or that are to be read, by the mask; `None` if nobody said.

        Transformers keeps the length of a mask that hides nothing in place of the mask.
        """
        mask = model_kwargs.get(self._mask_name)
        return getattr(generation_config, "_mask_length", None) if mask is None else mask.shape[1]

    @wraps(GenerationMixin._assisted_decoding, assigned=())  # `generate` reads the signature
    def _assisted_decoding(self, input_ids, *args, **kwargs):
        """As in Transformers, but a cache that holds the beginning of the prompt does not read it again.

        The cache that is returned records no longer: it would grow with each token.
        """
        cache = kwargs.get("cache")
        reads_tokens = input_ids.shape[1] > 0 or kwargs.get("assistant_model") is not None
        if kwargs.get("inputs_embeds") is not None and reads_tokens and not self.config.is_encoder_decoder:
            raise ValueError(
                "`inputs_embeds` must be None in assisted decoding, which reads what it adds to `input_ids`; with "
                "`prompt_lookup_num_tokens` they may be given alone"
            )
        if cache is None:  # which Transformers refuses
            return super()._assisted_decoding(input_ids, *args, **kwargs)
        if kwargs["generation_config"].output_attentions:
            raise ValueError("`output_attentions` must be False in assisted decoding, got True")
        cache.tokens_to_skip = 0
        if self._prompt_length(kwargs["generation_config"], kwargs) == input_ids.shape[1]:
            cache.tokens_to_skip = int(cache.get_seq_length())
            if cache.tokens_to_skip and kwargs["generation_config"].output_hidden_states:
                raise ValueError(
                    "`output_hidden_states` must be False in assisted decoding that goes on from a `cache`: "
                    "Transformers would count those of the tokens that it has seen"
                )
        elif (mask := kwargs.get(self._mask_name)) is not None:
            # Only new tokens, and Transformers would cut their end off the mask.
            kwargs[self._mask_name] = mask[:, -input_ids.shape[1] :]
        try:
            return super()._assisted_decoding(input_ids, *args, **kwargs)
        finally:
            cache.tokens_to_skip = 0
            for layer in getattr(cache, "self_attention_cache", cache).layers:
                if hasattr(layer, "stop_recording"):  # a foreign cache is refused by the model
                    layer.stop_recording()

    @wraps(GenerationMixin.prepare_inputs_for_generation, assigned=())
    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    def prepare_inputs_for_generation(self, input_ids, next_sequence_length=None, cache=None, *args, **kwargs):
        """See `transformers.GenerationMixin`. The first step of assisted decoding skips what the cache has seen."""
        if (ended_rows := kwargs.pop("ended_rows", None)) is not None:
            kwargs[self._mask_name] = ended_rows.hide_pads(input_ids, kwargs.get(self._mask_name))
        if kwargs.get("is_first_iteration") and next_sequence_length is None:
            if num_seen := getattr(cache, "tokens_to_skip", 0):
                next_sequence_length = input_ids.shape[1] - num_seen
            elif self.config.is_encoder_decoder:
                self._check_new_target(cache)
        inputs = super().prepare_inputs_for_generation(input_ids, next_sequence_length, cache, *args, **kwargs)
        if ended_rows is not None and ended_rows.lengths is not None and ended_rows.are_hidden_in_a_graph:
            # A graph without a mask would have to be made anew when the first row ends.
            ids = inputs["decoder_input_ids" if self.config.is_encoder_decoder else "input_ids"]
            if inputs.get(self._mask_name) is None:
                inputs[self._mask_name] = torch.ones_like(ids, dtype=torch.bool)
        return inputs

    @staticmethod
    def _check_new_target(cache: Cache | None) -> None:
        """Refuse a target that would be read after what the cache holds of it.

        Transformers puts the start token before new tokens, and takes a target without a mask for new tokens.
        """
        if cache is not None and cache.get_seq_length() > 0:
            raise ValueError(
                "`decoder_input_ids` must be the whole target, with a `decoder_attention_mask` of the same length, "
                f"where a `cache` holds its beginning ({int(cache.get_seq_length())} tokens)"
            )

    def init_continuous_batching(self, *args, **kwargs):
        """Refuse continuous batching, which pages the keys and values of attention layers."""
        raise ValueError(
            "Continuous batching (`generate_batch`, `cache_implementation='paged'`) pages keys and values, and a QRNN "
            "has none. Use `generate` with a left-padded batch instead: pads change nothing, and the state of a "
            "sequence has a fixed size"
        )


class QRNNForCausalLM(QRNNPreTrainedModel, QRNNGenerationMixin):
    """The QRNN as a language model that predicts the next token.

    Raises:
        ValueError: if the config is bidirectional.

    Example:
        >>> model = QRNNForCausalLM(QRNNConfig(vocab_size=100, hidden_size=32)).eval()
        >>> model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False).shape
        torch.Size([1, 7])
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}
    accepts_loss_kwargs = True

    def __init__(self, config: QRNNConfig):
        super().__init__(config)
        if config.bidirectional:
            raise ValueError(
                "`bidirectional` must be False in QRNNForCausalLM, got True: a model that sees the next token cannot "
                "learn to predict it. Use QRNNForMaskedLM instead"
            )
        self.model = QRNNModel(config)
        self.vocab_size = config.vocab_size
        self.dropout = QRNNDropout(config.output_dropout, config.locked_dropout)
        self.head_proj, self.lm_head = make_lm_head(config)

        # Initialize weights and apply final processing
        self.post_init()

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        seq_idx: torch.IntTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """Predict the next token at each position.

        Args:
            input_ids, attention_mask, position_ids, cache, inputs_embeds, use_cache, seq_idx: as in `QRNNModel`.
            labels: `(batch, seq_len)` int64, the tokens themselves; they are shifted here. -100 is not counted, nor is
                a token that follows a pad. `transformers.Trainer` divides by a count with those tokens: with pads on
                the left, label the first token of each row -100, or use `QRNNTrainer`. With `shift_labels` among the
                `kwargs`, labels that are shifted already, those alone are counted, after pads too.
            logits_to_keep: compute the logits of the last so many positions only, or of those in a tensor; 0 for all.
            kwargs: among them `num_items_in_batch`, by which the loss is divided under gradient accumulation, and
                `ignore_index`, the label that is not counted if it is not -100.

        Returns:
            `loss` if there are labels, in training with the two regularisers of AWD-QRNN; `logits`
            `(batch, positions, vocab_size)`; `cache`.

        Raises:
            ValueError: as `QRNNModel`; for labels of another shape or type, or (on a CPU) outside of the vocabulary.
        """
        warn_of_miscount(labels, attention_mask, **kwargs)
        outputs: BaseModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            seq_idx=seq_idx,
            **kwargs,
        )
        dropped = self.dropout(outputs.last_hidden_state)
        logits = self.lm_head(self.head_proj(slice_logits_to_keep(dropped, logits_to_keep)))

        loss = None
        if labels is not None:
            check_token_labels(labels, outputs.last_hidden_state.shape[:2], self.config.vocab_size, **kwargs)
            check_all_kept(logits, labels)
            targets = drop_labels_after_pads(labels, attention_mask, **kwargs)
            loss = self.loss_function(logits=logits, labels=targets, vocab_size=self.config.vocab_size, **kwargs)
            if self.training:
                loss = loss + self._regularization(outputs.last_hidden_state, dropped, targets, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
        )

    def _regularization(
        self,
        hidden_states: torch.Tensor,
        dropped: torch.Tensor,
        labels: torch.Tensor,
        shift_labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        ignore_index: int = -100,
        **kwargs,
    ) -> torch.Tensor | float:
        """Activation regularisation and its temporal kind (Merity et al. 2017), over the positions the loss counts.

        They are divided by what the loss is divided by, so that gradient accumulation leaves their sum as it is.
        """
        alpha, beta = self.config.activation_regularization, self.config.temporal_activation_regularization
        if not alpha and not beta:
            return 0.0
        targets = F.pad(labels[:, 1:], (0, 1), value=ignore_index) if shift_labels is None else shift_labels
        counts = (targets != ignore_index).to(dropped.device)
        num_items = counts.sum() if num_items_in_batch is None else num_items_in_batch
        activity = dropped.float().pow(2).mean(dim=-1).masked_fill(~counts, 0)
        change = hidden_states.float().diff(dim=1).pow(2).mean(dim=-1).masked_fill(~counts[:, 1:] | ~counts[:, :-1], 0)
        return (alpha * activity.sum() + beta * change.sum()) / num_items


# Trainer looks the class name up here to shift the labels under label smoothing.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["qrnn"] = "QRNNForCausalLM"


class QRNNForMaskedLM(QRNNPreTrainedModel):
    """The bidirectional QRNN as a language model that fills in masked tokens.

    Raises:
        ValueError: if the config is not bidirectional.

    Example:
        >>> model = QRNNForMaskedLM(QRNNConfig(vocab_size=100, hidden_size=32, bidirectional=True)).eval()
        >>> model(torch.tensor([[5, 6, 7]])).logits.shape
        torch.Size([1, 3, 100])
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}
    accepts_loss_kwargs = True

    def __init__(self, config: QRNNConfig):
        super().__init__(config)
        if not config.bidirectional:
            raise ValueError(
                "`bidirectional` must be True in QRNNForMaskedLM, got False: a masked token is to be told from both "
                "sides. Use QRNNForCausalLM instead"
            )
        self.model = QRNNModel(config)
        self.vocab_size = config.vocab_size
        self.dropout = QRNNDropout(config.output_dropout, config.locked_dropout)
        self.head_proj, self.lm_head = make_lm_head(config)

        # Initialize weights and apply final processing
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        seq_idx: torch.IntTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedLMOutput:
        """Predict the token at each position.

        Args:
            input_ids, attention_mask, position_ids, inputs_embeds, seq_idx: as in `QRNNModel`.
            labels: `(batch, seq_len)` int64, the tokens to tell; -100 is not counted.
            kwargs: among them `num_items_in_batch`, by which the loss is divided under gradient accumulation.

        Returns:
            `loss` if there are labels, and `logits` `(batch, seq_len, vocab_size)`.

        Raises:
            ValueError: as `QRNNModel`; for labels of another shape or type, or (on a CPU) outside of the vocabulary.
        """
        outputs: BaseModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            seq_idx=seq_idx,
            **kwargs,
        )
        logits = self.lm_head(self.head_proj(self.dropout(outputs.last_hidden_state)))

        loss = None
        if labels is not None:
            check_token_labels(labels, outputs.last_hidden_state.shape[:2], self.config.vocab_size, **kwargs)
            options = {"vocab_size": self.config.vocab_size, **kwargs}
            loss = self.loss_function(logits=logits, labels=labels.contiguous(), **options)
        return MaskedLMOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


def read_out(
    hidden_states: torch.Tensor, is_real: torch.Tensor | None, pooling: str, bidirectional: bool
) -> torch.Tensor:
    """One vector for each sequence.

    Args:
        hidden_states: `(batch, seq_len, width)`, zero at pads.
        is_real: `(batch, seq_len)` bool, or `None` without pads.
        pooling: `"last"`, `"max"`, `"mean"` or `"concat"`, all three side by side.
        bidirectional: whether `"last"` reads the second half of the channels at the first real token.

    Returns:
        `(batch, width)`, for `"concat"` `(batch, 3 * width)`; zero for a row of pads alone.

    Example:
        >>> states = torch.tensor([[[1.0], [5.0], [0.0]]])
        >>> read_out(states, torch.tensor([[True, True, False]]), "concat", bidirectional=False)
        tensor([[5., 5., 3.]])
    """
    if pooling == "concat":
        parts = [read_out(hidden_states, is_real, part, bidirectional) for part in ("last", "max", "mean")]
        return torch.cat(parts, dim=-1)
    if is_real is None:
        is_real = hidden_states.new_ones(hidden_states.shape[:2], dtype=torch.bool)
    is_real = is_real.to(hidden_states.device)
    if pooling == "mean":
        sums = hidden_states.sum(dim=1, dtype=state_dtype(hidden_states.dtype))  # a sum may overflow 16 bits
        return (sums / is_real.sum(dim=1, keepdim=True).clamp(min=1)).to(hidden_states.dtype)
    if pooling == "max":
        maxima = hidden_states.masked_fill(~is_real[..., None], float("-inf")).amax(dim=1)
        return maxima.masked_fill(~is_real.any(dim=1, keepdim=True), 0)
    rows = torch.arange(hidden_states.shape[0], device=hidden_states.device)
    last = hidden_states.shape[1] - 1 - is_real.flip(1).to(torch.int8).argmax(dim=1)
    if not bidirectional:
        return hidden_states[rows, last]
    first = is_real.to(torch.int8).argmax(dim=1)
    forward, backward = hidden_states.chunk(2, dim=-1)
    return torch.cat([forward[rows, last], backward[rows, first]], dim=-1)


def check_chunk(
    config: QRNNClassifierConfig,
    cache: Cache | None,
    attention_mask: torch.Tensor | None,
    inputs: torch.Tensor | None,
) -> None:
    """Refuse a chunk that goes on from a cache if its outputs do not tell what those of the whole sequences would."""
    layers = getattr(cache, "layers", [])
    if not layers or not getattr(layers[0], "has_previous_state", [False])[0]:
        return
    if config.classifier_pooling != "last":
        raise ValueError(
            f"`cache` must be empty with classifier_pooling={config.classifier_pooling!r}: what is read out "
            "are the outputs of the whole sequence, and a state does not hold them"
        )
    if inputs is None or inputs.dim() < 2:  # which the model refuses
        return
    is_real = token_mask(attention_mask, *inputs.shape[:2])
    if is_real is not None and can_be_looked_at(is_real) and not bool(is_real.any(dim=1).all()):
        raise ValueError(
            "`attention_mask` must show a real token or frame in each row of a chunk that goes on from a `cache`: the "
            "last output of a row of pads lies before it, and a state does not hold it"
        )


def check_not_packed(
    position_ids: torch.Tensor | None, seq_idx: torch.Tensor | None = None, cu_seq_lens_q: torch.Tensor | None = None
) -> None:
    """Refuse rows of several sequences where each row has one label."""
    begins = {
        "position_ids": None if position_ids is None else position_ids[:, 1:] == 0,
        "seq_idx": None if seq_idx is None else seq_idx[:, 1:] != seq_idx[:, :-1],
        "cu_seq_lens_q": None if cu_seq_lens_q is None else torch.ones_like(cu_seq_lens_q[1:-1]),
    }
    for name, marks in begins.items():
        if marks is not None and has_values(marks) and bool(marks.any()):
            raise ValueError(f"`{name}` must not mark several sequences in a row: each row gets one label")


def make_classifier(config: QRNNClassifierConfig) -> tuple[nn.Module, nn.Module]:
    """Dropout and one linear layer; with `classifier_hidden_size` the head of MultiFiT (Eisenschlos et al. 2019)."""
    drop, hidden_size = nn.Dropout(classifier_dropout(config)), config.classifier_hidden_size
    width = config.output_size * (3 if config.classifier_pooling == "concat" else 1)
    if hidden_size is None:
        return drop, nn.Linear(width, config.num_labels)
    hidden = [nn.BatchNorm1d(width), drop, nn.Linear(width, hidden_size), nn.ReLU()]
    output = [nn.BatchNorm1d(hidden_size), drop, nn.Linear(hidden_size, config.num_labels)]
    return nn.Identity(), nn.Sequential(*hidden, *output)


def classifier_dropout(config: QRNNClassifierConfig) -> float:
    """The probability of dropout before a classification head."""
    return config.output_dropout if config.classifier_dropout is None else config.classifier_dropout


class QRNNForSequenceClassification(QRNNPreTrainedModel):
    """The QRNN with a head that classifies sequences: one label, several, or numbers (regression).

    Example:
        >>> model = QRNNForSequenceClassification(QRNNConfig(vocab_size=100, hidden_size=32, num_labels=3)).eval()
        >>> input_ids, attention_mask = torch.tensor([[5, 6, 7], [8, 9, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
        >>> model(input_ids, attention_mask).logits.shape
        torch.Size([2, 3])
    """

    # The losses are means over the batch: Trainer must divide them under gradient accumulation.
    accepts_loss_kwargs = False

    def __init__(self, config: QRNNConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = QRNNModel(config)
        self.dropout, self.score = make_classifier(config)

        # Initialize weights and apply final processing
        self.post_init()

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutputWithPast:
        """Classify each sequence.

        Args:
            input_ids, attention_mask, position_ids, cache, inputs_embeds, use_cache: as in `QRNNModel`.
            labels: `(batch,)` int64 for one label each; `(batch, num_labels)` float32 for several, or for regression
                (`(batch,)` if there is one number). `config.problem_type` says which, or else it is told from
                `num_labels` and the dtype.
            kwargs: as in `QRNNModel`.

        Returns:
            `loss` if there are labels, `logits` `(batch, num_labels)`, and `cache`.

        Raises:
            ValueError: as `QRNNModel`; for labels of another shape, or (on a CPU) outside of the classes; and for a
                chunk that goes on from a cache, if the read-out is of more than the last token, or (on a CPU) a row
                of the chunk has only pads; and for rows of several sequences, of which one label could not be told.
        """
        check_chunk(self.config, cache, attention_mask, input_ids if inputs_embeds is None else inputs_embeds)
        outputs: BaseModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        is_unmarked = attention_mask is None and cache is None  # otherwise positions mark no boundaries
        marks = {name: kwargs.get(name) for name in ("seq_idx", "cu_seq_lens_q")}
        check_not_packed(position_ids if is_unmarked else None, **marks)
        hidden_states = outputs.last_hidden_state
        is_real = token_mask(attention_mask, *hidden_states.shape[:2])
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


class QRNNForTokenClassification(QRNNPreTrainedModel):
    """The QRNN with a head that labels each token.

    Example:
        >>> model = QRNNForTokenClassification(QRNNConfig(vocab_size=100, hidden_size=32, num_labels=5)).eval()
        >>> model(torch.tensor([[5, 6, 7]])).logits.shape
        torch.Size([1, 3, 5])
    """

    accepts_loss_kwargs = True

    def __init__(self, config: QRNNConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = QRNNModel(config)
        self.dropout = QRNNDropout(classifier_dropout(config), config.locked_dropout)
        self.score = nn.Linear(config.output_size, config.num_labels)

        # Initialize weights and apply final processing
        self.post_init()

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = False,
        seq_idx: torch.IntTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        """Label each token.

        Args:
            input_ids, attention_mask, position_ids, inputs_embeds, seq_idx: as in `QRNNModel`.
            cache: the state to go on from. It is not part of the output, but advanced in place: to label a stream
                chunk by chunk, pass the same `DynamicCache(config=model.config)` again and again.
            labels: `(batch, seq_len)` int64; -100 is not counted.
            use_cache: as in `QRNNModel`, but off: a new cache could not be returned.
            kwargs: among them `num_items_in_batch`, by which the loss is divided under gradient accumulation.

        Returns:
            `loss` if there are labels, and `logits` `(batch, seq_len, num_labels)`.

        Raises:
            ValueError: as `QRNNModel`; for labels of another shape or type, or (on a CPU) outside of the classes.
        """
        outputs: BaseModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            seq_idx=seq_idx,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.score(self.dropout(outputs.last_hidden_state))

        loss = None
        if labels is not None:
            check_token_labels(labels, outputs.last_hidden_state.shape[:2], self.config.num_labels, **kwargs)
            loss = self.loss_function(logits=logits, labels=labels.contiguous(), config=self.config, **kwargs)
        return TokenClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


__all__ = [
    "QRNNForCausalLM",
    "QRNNForMaskedLM",
    "QRNNForSequenceClassification",
    "QRNNForTokenClassification",
    "QRNNModel",
    "QRNNPreTrainedModel",
]
