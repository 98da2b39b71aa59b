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
"""The recurrent state of a QRNN as a layer of Transformers' stock caches.

`DynamicCache(config=config)` and `StaticCache(config=config, ...)` build one `QRNNCacheLayer` for each entry of
`config.layer_types`. The state has a fixed size, so one class serves both.
"""

import json
import os
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedConfig
from transformers.cache_utils import (
    STATIC_LAYER_TYPE_MAPPING,
    Cache,
    CacheLayerMixin,
    DynamicCache,
    LinearAttentionLayer,
)


LOOK_BACK = 64  # tokens that may be taken back from before the last `crop`
STATE_PARTS = ("conv_state", "recurrent_state", "length")  # of a layer, by the names of `save_recurrent_state`


class QRNNCacheLayer(LinearAttentionLayer, CacheLayerMixin):
    """What one layer carries: the last inputs of its convolution, the recurrent state `c`, and the length so far.

    The first two live in `conv_states[0]` `(batch, input, max(kernel_size - 1, 1))` and `recurrent_states[0]`
    `(batch, hidden)`, the latter in float32 (float64 for a float64 model). They are written in place, so addresses
    stay fixed for compiled decoding, as long as the rows of the batch stay the same. With gradients enabled, what is
    written is detached and what is read is a copy: training over chunks backpropagates within each chunk (truncated
    backpropagation through time).

    After `activate_past_recording` the layer also keeps the state after every token since the last `crop`, and after
    the 64 before it, so that `crop(-n)` takes back the last `n` tokens exactly; assisted decoding and prompt lookup
    rest on this.
    """

    # The version of this class's interface. The installed package and the remote code of a model folder may share a
    # process, and with it Transformers' registry of cache layers: whichever was imported last serves both.
    _layer_type = "qrnn_v1"
    is_sliding = False
    is_croppable = True
    supports_early_init = False
    is_offloaded = False
    cumulative_length: torch.Tensor  # 0-dim int64, from the first update on

    def __init__(self, max_cache_len: int | None = None, **kwargs):
        # StaticCache passes `max_cache_len` to every layer, but a recurrent state has the same size at any length.
        LinearAttentionLayer.__init__(self, number_of_states=1)
        CacheLayerMixin.__init__(self)
        self.conv_history: torch.Tensor | None = None
        self.recurrent_history: torch.Tensor | None = None

    @property
    def batch_size(self) -> int:
        """The batch size of the state; an `AttributeError` before the first update, as in Transformers' layers."""
        if self.conv_states[0] is None:
            raise AttributeError("The cache layer is empty: it has no batch size yet")
        return self.conv_states[0].shape[0]

    def carried_state(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The recurrent state and the convolution's last inputs, or `None` before the first token."""
        if not self.has_previous_state[0]:
            return None
        self.prefetch()
        self._leave_inference_mode()
        state = self.recurrent_states[0], self.conv_states[0]
        return tuple(tensor.clone() for tensor in state) if torch.is_grad_enabled() else state

    def lazy_initialization(self, conv_states=None, recurrent_states=None, state_idx=0, conv_kernel_size=None) -> None:
        if recurrent_states is not None:
            # The buffer would take over the strides of a slice, and a compiled decoding step is bound to them.
            recurrent_states = recurrent_states.new_empty(recurrent_states.shape)
        super().lazy_initialization(conv_states, recurrent_states, state_idx, conv_kernel_size)
        if conv_states is not None:
            self.device = conv_states.device
            # A tensor, not an int: a number would be baked into an exported decoding step.
            self.cumulative_length = _fixed(torch.zeros((), dtype=torch.long, device=conv_states.device))

    def update_conv_state(
        self,
        conv_states: torch.Tensor,
        state_idx: int = 0,
        *,
        num_tokens: int,
        history: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """Store the convolution's last inputs and count the tokens that led to them.

        To be called after `update_recurrent_state`, for this marks the state as there.

        Args:
            conv_states: `(batch, input, kernel_size - 1)`; without columns a placeholder is stored, for only this
                state says that there is one at all.
            state_idx: always 0.
            num_tokens: length of the chunk, pads included.
            history: `(batch, num_tokens, input, kernel_size - 1)`, the state after each token, while recording.
        """
        if conv_states.shape[-1] == 0:
            conv_states = F.pad(conv_states, (1, 0))
            history = None if history is None else F.pad(history, (1, 0))
        if self._needs_buffer(self.conv_states[0], conv_states):
            self.lazy_initialization(conv_states=conv_states)
        if self.record_past:
            self.conv_history = _append(self.conv_history, self.conv_states[0], history)
        self._store(self.conv_states, conv_states)
        self.cumulative_length.add_(num_tokens)
        self.has_previous_state[0] = True
        return self.conv_states[0]

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, state_idx: int = 0, *, history: torch.Tensor | None = None, **kwargs
    ) -> torch.Tensor:
        """Store the recurrent state.

        Args:
            recurrent_states: `(batch, hidden)`.
            state_idx: always 0.
            history: `(batch, num_tokens, hidden)`, the state after each token, while recording.
        """
        if self._needs_buffer(self.recurrent_states[0], recurrent_states):
            self.lazy_initialization(recurrent_states=recurrent_states)
        if self.record_past:
            self.recurrent_history = _append(self.recurrent_history, self.recurrent_states[0], history)
        self._store(self.recurrent_states, recurrent_states)
        return self.recurrent_states[0]

    def offload(self) -> None:
        LinearAttentionLayer.offload(self)
        self.is_offloaded = True

    def prefetch(self) -> None:
        """Bring back what `offload` took away, and nothing else: a cache may have been loaded on another device."""
        if self.is_offloaded:
            LinearAttentionLayer.prefetch(self)
            self.is_offloaded = False

    def _leave_inference_mode(self) -> None:
        """What inference mode made cannot be written in place outside of it: go on with copies."""
        if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
            return
        for states in (self.conv_states, self.recurrent_states):
            if states[0] is not None and states[0].is_inference():
                states[0] = _fixed(states[0].clone())
        if self.is_conv_states_initialized[0] and self.cumulative_length.is_inference():
            self.cumulative_length = _fixed(self.cumulative_length.clone())

    def _needs_buffer(self, buffer: torch.Tensor | None, new: torch.Tensor) -> bool:
        """Whether this is the first state, or the first after a `reset` and of another batch size or device."""
        if buffer is None:
            return True
        return not self.has_previous_state[0] and (buffer.shape, buffer.device) != (new.shape, new.device)

    @staticmethod
    def _store(states: dict[int, torch.Tensor], new: torch.Tensor) -> None:
        """Write in place; only a state of higher precision than the first, as autocast ends, takes a new buffer."""
        dtype = torch.promote_types(states[0].dtype, new.dtype)
        if dtype != states[0].dtype:
            states[0] = states[0].to(dtype)
        if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
            states[0] = new.detach()  # `torch.func.vmap` cannot write into what was made without it
        else:
            states[0].copy_(new.detach())

    def activate_past_recording(self) -> None:
        """Record from now on; what was recorded before a pause does not lead to this state."""
        if not self.record_past:
            self.conv_history = self.recurrent_history = None
        super().activate_past_recording()

    def stop_recording(self) -> None:
        """Undo `activate_past_recording`, and forget what was recorded."""
        self.record_past = False
        self.conv_history = self.recurrent_history = None

    def update(self, key_states, value_states, *args, **kwargs):
        raise ValueError("A QRNN has no keys and values: its cache layers cannot be updated with them")

    def get_seq_length(self) -> torch.Tensor | int:
        # A copy, for the counter advances in place.
        return self.cumulative_length.clone() if self.is_conv_states_initialized[0] else 0

    def get_mask_sizes(self, query_length: int) -> tuple[torch.Tensor | int, int]:
        return self.get_seq_length() + query_length, 0

    def reset(self) -> None:
        self._leave_inference_mode()
        LinearAttentionLayer.reset(self)
        self.conv_history = self.recurrent_history = None
        if self.is_conv_states_initialized[0]:
            self.cumulative_length.zero_()

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row of the batch."""
        self.change_batch(lambda rows: rows.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows of the batch, in this order; a mask picks rows too."""
        self.change_batch(lambda rows: rows[indices.to(rows.device)])

    def change_batch(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Replace each part of the state by what `change` makes of it; all parts have a row for each sequence."""
        for states in (self.conv_states, self.recurrent_states):
            if states[0] is not None:
                states[0] = change(states[0])
        for name in ("conv_history", "recurrent_history"):
            if getattr(self, name) is not None:
                setattr(self, name, change(getattr(self, name)))

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens, and forget recorded states, but for those of the last `LOOK_BACK` tokens.

        Assisted decoding with another tokenizer takes back some tokens from before the last guess, too.

        Args:
            tokens_to_remove: minus the number of tokens, as Transformers counts; 0 takes none back.

        Raises:
            ValueError: for a positive number, or for more tokens than are recorded.
            RuntimeError: if nothing was recorded.
        """
        tokens_to_remove = int(tokens_to_remove)  # candidate generators count in tensors
        if tokens_to_remove > 0:
            raise ValueError(f"`tokens_to_remove` must be zero or negative, got {tokens_to_remove}")
        if tokens_to_remove < 0:
            self._roll_back(-tokens_to_remove)
        if self.recurrent_history is not None and self.conv_history is not None:
            end = self.recurrent_history.shape[1] + tokens_to_remove
            kept = slice(max(0, end - 1 - LOOK_BACK), end)
            self.recurrent_history = self.recurrent_history[:, kept].clone()
            self.conv_history = self.conv_history[:, kept].clone()

    def _roll_back(self, num_tokens: int) -> None:
        if self.recurrent_history is None or self.conv_history is None:
            raise RuntimeError(
                "`crop` needs the past states: call `activate_past_recording` before the tokens to remove"
            )
        recorded = self.recurrent_history.shape[1] - 1
        if num_tokens > recorded:
            raise ValueError(
                f"`tokens_to_remove` must be between {-recorded} and 0, for so many tokens are recorded, "
                f"got {-num_tokens}"
            )
        self._leave_inference_mode()
        self.conv_states[0].copy_(self.conv_history[:, -1 - num_tokens])
        self.recurrent_states[0].copy_(self.recurrent_history[:, -1 - num_tokens])
        self.cumulative_length.sub_(num_tokens)


# A class can register itself in one of the two maps only, see `CacheLayerMixin.__init_subclass__`.
STATIC_LAYER_TYPE_MAPPING[QRNNCacheLayer._layer_type] = QRNNCacheLayer


def _fixed(tensor: torch.Tensor) -> torch.Tensor:
    """Mark that the tensor's address stays: only then a CUDA graph is captured of a step that writes to it."""
    if not torch.compiler.is_compiling():
        torch._dynamo.mark_static_address(tensor)
    return tensor


def _append(history: torch.Tensor | None, state: torch.Tensor, new_states: torch.Tensor | None) -> torch.Tensor:
    """`(batch, tokens + 1, ...)`: the state before the recording, and the one after each token."""
    if new_states is None:
        raise ValueError("`history` must be given while the cache records its past")
    if history is None:
        history = state.clone()[:, None]
    return torch.cat([history, new_states.detach().to(history.dtype)], dim=1)


def cache_tensors(cache: Cache) -> dict[str, torch.Tensor]:
    """The state in a cache, by the names of `save_recurrent_state`, which says what it refuses."""
    layers = getattr(cache, "layers", [])
    if not layers:
        advice = " (a model returns its state with `use_cache=True`)" if cache is None else ""
        raise ValueError(f"`cache` must hold the state of a QRNN, got {cache!r}{advice}")
    tensors = {}
    for index, layer in enumerate(layers):
        if getattr(layer, "_layer_type", None) != QRNNCacheLayer._layer_type or not layer.has_previous_state[0]:
            raise ValueError(
                f"`cache` must hold the state of a QRNN that has seen a token, but layer {index} does not"
            )
        tensors[f"layers.{index}.conv_state"] = layer.conv_states[0].contiguous()
        tensors[f"layers.{index}.recurrent_state"] = layer.recurrent_states[0].contiguous()
        tensors[f"layers.{index}.length"] = layer.cumulative_length
    return tensors


def widths_of(conv_state: torch.Tensor, recurrent_state: torch.Tensor) -> list[int]:
    """The channels and columns of a layer's convolution state and the width of its recurrent state."""
    return [*conv_state.shape[1:], recurrent_state.shape[1]]


def cache_from_tensors(tensors: Mapping[str, torch.Tensor], config: PreTrainedConfig) -> DynamicCache:
    """A cache with the state that `cache_tensors` gave; a `ValueError` if `config` is that of another model."""
    num_layers = sum(name.endswith(".length") for name in tensors)
    layers = [[tensors[f"layers.{index}.{name}"] for name in STATE_PARTS] for index in range(num_layers)]
    check_widths([widths_of(conv_state, c) for conv_state, c, _ in layers], config, "state")
    cache = DynamicCache(config=config)
    for layer, (conv_state, recurrent_state, length) in zip(cache.layers, layers, strict=True):
        layer.update_recurrent_state(recurrent_state)
        layer.update_conv_state(conv_state, num_tokens=int(length))
    return cache


def check_widths(widths: list[list[int]], config: PreTrainedConfig, name: str) -> None:
    """Refuse the state of a model with other layers."""
    expected = [list(of_layer) for of_layer in config.state_widths]
    if widths != expected:
        raise ValueError(
            f"`{name}` holds the state of another model: per layer [convolution input, columns, hidden] it has "
            f"{widths}, and `config` describes {expected}"
        )


def save_recurrent_state(cache: Cache, path: str | os.PathLike) -> None:
    """Write the state in a cache to a safetensors file, to go on in another process or on another day.

    Args:
        cache: what a QRNN returned after at least one token.
        path: the file to write, with `layers.{i}.conv_state`, `layers.{i}.recurrent_state` and `layers.{i}.length`.

    Raises:
        ValueError: if the cache holds no state of a QRNN.

    Example:
        >>> import tempfile
        >>> from modeling_qrnn import QRNNConfig, QRNNForCausalLM
        >>> model = QRNNForCausalLM(QRNNConfig(vocab_size=50, hidden_size=16)).eval()
        >>> cache = model(torch.tensor([[1, 2, 3]])).cache
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_recurrent_state(cache, f"{folder}/state.safetensors")
        ...     loaded = load_recurrent_state(f"{folder}/state.safetensors", model.config)
        >>> int(loaded.get_seq_length())
        3
    """
    tensors = cache_tensors(cache)
    widths = [widths_of(layer.conv_states[0], layer.recurrent_states[0]) for layer in cache.layers]
    save_file(tensors, path, metadata={"format": QRNNCacheLayer._layer_type, "widths": json.dumps(widths)})


def load_recurrent_state(
    path: str | os.PathLike, config: PreTrainedConfig, device: torch.device | str = "cpu"
) -> DynamicCache:
    """Read a file that `save_recurrent_state` wrote.

    Args:
        path: the file.
        config: the config of the model that is to go on from the state.
        device: where the model is.

    Returns:
        A cache to go on from, for `forward` with the next tokens, and for `generate` with the whole text, or with the
        next tokens and an `attention_mask` over all of them.

    Raises:
        ValueError: if the file holds something else, or the state of a model with other layers.
        FileNotFoundError: if there is no file.

    Example:
        See `save_recurrent_state`.
    """
    device = torch.device(device)
    try:
        file = safe_open(path, framework="pt", device="cpu" if device.type == "cpu" else str(device))
    except SafetensorError as error:
        raise ValueError(f"`path` must be a safetensors file, but {path} is none: {error}") from error
    with file:
        metadata = file.metadata() or {}
        if metadata.get("format") != QRNNCacheLayer._layer_type:
            raise ValueError(
                f"`path` must be a file written by `save_recurrent_state` (format {QRNNCacheLayer._layer_type}), "
                f"but {path} has the format {metadata.get('format')}"
            )
        check_widths(json.loads(metadata["widths"]), config, "path")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, for it is no mapping
        return cache_from_tensors(tensors, config)
