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
"""QRNN layers in plain PyTorch: `QRNNLayer` (convolution -> pooling) and `QRNN`, the drop-in for `torch.nn.LSTM`."""

from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .pooling_qrnn import (
    GATES,
    CandidateActivation,
    Pooling,
    check_options,
    last_real_position,
    recurrent_pooling,
    recurrent_states,
    segment_starts,
    token_mask,
)


class QRNNState(NamedTuple):
    """What a `QRNN` carries from one chunk to the next, one entry per layer and direction.

    The order is that of `torch.nn.LSTM`: layer 0 forward, layer 0 backward, layer 1 forward, and so on.
    """

    c: tuple[torch.Tensor, ...]
    """Recurrent states `(batch, hidden)`, float32 (float64 for float64 input)."""
    conv: tuple[torch.Tensor, ...]
    """Last inputs of the convolutions `(batch, input, kernel_size - 1)`, oldest first."""


def real_first(inputs: torch.Tensor, is_real: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Move the real steps of each row to its front, in their order, with zeros behind them.

    Args:
        inputs: `(batch, seq_len, features)`.
        is_real: `(batch, seq_len)` bool, or `None` if all are.

    Returns:
        The inputs in their new order, and `(batch,)` int64, how many are real.

    Example:
        >>> inputs, lengths = real_first(torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([[False, True, True]]))
        >>> inputs.flatten().tolist(), lengths.tolist()
        ([2.0, 3.0, 0.0], [2])
    """
    if is_real is None:
        return inputs, inputs.new_full((inputs.shape[0],), inputs.shape[1], dtype=torch.long)
    # ONNX has no stable sort: each step is sent to its place, the real ones first.
    n_real = is_real.cumsum(dim=1)
    steps = torch.arange(is_real.shape[1], device=is_real.device).expand_as(n_real)
    place = torch.where(is_real, n_real - 1, n_real[:, -1:] + steps - n_real)
    order = torch.zeros_like(n_real).scatter(1, place, steps)
    inputs = inputs.masked_fill(~is_real[..., None], 0)
    return inputs.gather(1, order[..., None].expand_as(inputs)), n_real[:, -1]


class ConvolutionWindow:
    """The real tokens that a masked convolution sees, across pads, chunks and packed sequences.

    Pads are stepped over as if they were not there; before the first token of the chunk stand the carried inputs; what
    lies beyond the start of a segment is zero.

    Args:
        x: `(batch, seq_len, input)`.
        conv_state: `(batch, input, kernel_size - 1)`, the last real inputs before the chunk, oldest first.
        is_real: `(batch, seq_len)` bool, or `None` if all tokens are real.
        is_start: `(batch, seq_len)` bool, the starts of segments, or `None`.

    Example:
        >>> x = torch.tensor([[[1.0], [2.0], [3.0]]])
        >>> window = ConvolutionWindow(x, torch.zeros(1, 1, 1), torch.tensor([[True, False, True]]), None)
        >>> window.inputs().tolist()  # the 2 is a pad: at 3, the token before is 1
        [[[0.0, 1.0], [1.0, 0.0], [1.0, 3.0]]]
    """

    def __init__(
        self,
        x: torch.Tensor,
        conv_state: torch.Tensor,
        is_real: torch.Tensor | None,
        is_start: torch.Tensor | None,
    ):
        if is_real is not None:
            # A pad is never anyone's tap, but stands in its own window: zero there keeps what it holds, NaN included,
            # out of the gradient of the weights.
            x = x.masked_fill(~is_real[..., None], 0)
        self.x = x
        self.taps = conv_state.shape[2]  # how many tokens back the convolution reaches
        self.tokens = torch.cat([conv_state.transpose(1, 2).to(x.dtype), x], dim=1) if self.taps else x
        # The taps are the tokens just before: no pads or starts of segments to step over.
        self.has_plain_taps = self.taps == 0 or (is_real is None and is_start is None)
        if not self.has_plain_taps:
            self._locate(is_real, is_start)

    def _locate(self, is_real: torch.Tensor | None, is_start: torch.Tensor | None) -> None:
        """Where in `tokens` the taps of each position lie, and of the position after the chunk."""
        batch_size, seq_len, _ = self.x.shape
        if is_real is None:
            is_real = self.x.new_ones(batch_size, seq_len, dtype=torch.bool)
        # The carried inputs count as real, so a walk back from token to real token always arrives.
        last_real = last_real_position(F.pad(is_real, (self.taps, 0), value=True))
        position = torch.arange(self.taps, self.taps + seq_len + 1, device=self.x.device).expand(batch_size, -1)
        walk = []
        for _ in range(self.taps):
            position = last_real.gather(1, position - 1)
            walk.append(position)
        self.positions = torch.stack(walk[::-1], dim=2)  # (batch, seq_len + 1, taps)
        self.is_foreign = None
        if is_start is not None:
            segment = is_start.cumsum(dim=1)  # the carried inputs belong to the first segment, number 0
            own = torch.cat([segment, segment[:, -1:]], dim=1)
            of_taps = F.pad(segment, (self.taps, 0)).gather(1, self.positions.flatten(1)).view_as(self.positions)
            self.is_foreign = of_taps != own[..., None]

    def _preceding(self, first: int, last: int) -> list[torch.Tensor]:
        """The tokens before each of the positions `first` to `last - 1`, in pieces along the last dimension."""
        if self.has_plain_taps:
            return [self.tokens[:, tap + first : tap + last] for tap in range(self.taps)]
        # A lookup copies whole rows, where `gather` would read an index for each number.
        row_starts = torch.arange(self.tokens.shape[0], device=self.tokens.device) * self.tokens.shape[1]
        taken = F.embedding(self.positions[:, first:last] + row_starts[:, None, None], self.tokens.flatten(0, 1))
        if self.is_foreign is not None:
            taken = taken.masked_fill(self.is_foreign[:, first:last, :, None], 0)
        return [taken.flatten(2)]

    def inputs(self) -> torch.Tensor:
        """`(batch, seq_len, kernel_size * input)`, oldest tap first: what the gate projection multiplies."""
        if self.taps == 0:
            return self.x
        if self.has_plain_taps and self.x.shape[1] == 1:
            return self.tokens.flatten(1)[:, None]
        return torch.cat([*self._preceding(0, self.x.shape[1]), self.x], dim=-1)

    def states(self, first: int = 0) -> torch.Tensor:
        """The `conv_state` that each token from `first` on leaves behind, `(batch, seq_len - first, input, taps)`."""
        batch_size, seq_len, input_size = self.x.shape
        if self.taps == 0:
            return self.x.new_empty(batch_size, seq_len - first, input_size, 0)
        taken = torch.cat(self._preceding(first + 1, seq_len + 1), dim=-1)
        return taken.unflatten(2, (self.taps, input_size)).transpose(2, 3)

    def next_state(self) -> torch.Tensor:
        """The `conv_state` for the next chunk, `(batch, input, kernel_size - 1)`."""
        if self.has_plain_taps:
            # A copy, for a view would keep the whole chunk in memory, and in files.
            return self.tokens[:, self.tokens.shape[1] - self.taps :].transpose(1, 2).clone()
        return self.states(self.x.shape[1] - 1).squeeze(1)


def dropout(x: torch.Tensor, p: float) -> torch.Tensor:
    """Dropout as in training: zero with the probability `p`, else scaled by `1 / (1 - p)`.

    That is `F.dropout`, but on a CPU the mask is drawn from uniform numbers: its Bernoulli numbers take three times as
    long (PyTorch 2.13 on a Xeon, one thread and two).

    Args:
        x: of any shape.
        p: in [0, 1).

    Example:
        >>> sorted(set(dropout(torch.ones(1000), 0.75).tolist()))
        [0.0, 4.0]
    """
    if x.device.type != "cpu":
        return F.dropout(x, p)
    uniform = torch.rand_like(x, dtype=torch.float32)
    return x * uniform.ge_(p).to(x.dtype).div_(1 - p)


class QRNNDropout(nn.Dropout):
    """Dropout anew at each place or, locked, of `(batch, seq_len, channels)` with one mask for all steps."""

    def __init__(self, p: float, locked: bool = False):
        super().__init__(p)
        self.locked = locked

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not self.training or not self.p:
            return hidden_states
        if not self.locked:
            return dropout(hidden_states, self.p)
        return hidden_states * dropout(torch.ones_like(hidden_states[:, :1]), self.p)


class QRNNDroppedLinear(nn.Linear):
    """A linear layer that drops single weights, a new mask each forward (DropConnect, as in AWD-QRNN).

    The drop is part of `forward`, so there is one parameter, under its own name, which the optimiser sees.
    """

    def __init__(self, in_features, out_features, weight_dropout: float, bias=True, device=None, dtype=None):
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self.weight_dropout = QRNNDropout(weight_dropout)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(input, self.weight_dropout(self.weight), self.bias)


class QRNNLayer(nn.Module):
    """One QRNN layer: a masked convolution that makes all the gates, then recurrent pooling (equations 1 to 6).

    Args:
        input_size: channels that come in.
        hidden_size: channels that go out.
        kernel_size: width of the convolution, 1 or more.
        pooling: `"f"`, `"fo"` or `"ifo"`.
        bias: whether the gates have biases.
        zoneout: probability with which a unit keeps its state in training.
        candidate_activation: `"tanh"`, `"identity"` or `"relu"`.
        weight_dropout: probability with which a weight of the gate projection is dropped in training.
        causal: `False` centres the window on the token (for an even `kernel_size` the extra tap looks back), for
            encoders; such a layer has no state.
        reverse: run from right to left, as the backward direction of a bidirectional stack does.
        stride: keep each `stride`-th step of the convolution only.
        temporal_pooling: `"max"` or `"average"` over `temporal_pooling_size` steps between convolution and recurrence.
        temporal_pooling_size: how many steps become one.
        device, dtype: of the parameters.

    Raises:
        ValueError: for a size below one or an unknown option.

    Example:
        >>> layer = QRNNLayer(4, 8, kernel_size=3)
        >>> x = torch.randn(2, 10, 4)
        >>> whole, _ = layer(x)
        >>> first, state = layer(x[:, :6])
        >>> second, _ = layer(x[:, 6:], state)
        >>> torch.allclose(whole, torch.cat([first, second], dim=1), atol=1e-6)
        True
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        kernel_size: int = 2,
        pooling: Pooling = "fo",
        bias: bool = True,
        zoneout: float = 0.0,
        candidate_activation: CandidateActivation = "tanh",
        weight_dropout: float = 0.0,
        causal: bool = True,
        reverse: bool = False,
        stride: int = 1,
        temporal_pooling: Literal["max", "average"] | None = None,
        temporal_pooling_size: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        sizes = {
            "input_size": input_size,
            "hidden_size": hidden_size,
            "kernel_size": kernel_size,
            "stride": stride,
            "temporal_pooling_size": temporal_pooling_size,
        }
        for name, value in sizes.items():
            if isinstance(value, bool):  # `nn.LSTM` has `bias` where `QRNN` has `kernel_size`
                raise ValueError(f"`{name}` must be a number, got {value}")
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}")
        check_options(pooling, candidate_activation, zoneout)
        if not 0 <= weight_dropout < 1:
            raise ValueError(f"`weight_dropout` must be a probability in [0, 1), got {weight_dropout}")
        if temporal_pooling not in (None, "max", "average"):
            raise ValueError(f"`temporal_pooling` must be None, 'max' or 'average', got {temporal_pooling!r}")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.kernel_size = kernel_size
        self.pooling = pooling
        self.zoneout = zoneout
        self.candidate_activation = candidate_activation
        self.causal = causal
        self.reverse = reverse
        self.stride = stride
        self.temporal_pooling = temporal_pooling
        self.temporal_pooling_size = temporal_pooling_size
        width = len(GATES[pooling]) * hidden_size
        self.gate_proj: nn.Linear
        if weight_dropout:
            self.gate_proj = QRNNDroppedLinear(kernel_size * input_size, width, weight_dropout, bias, device, dtype)
        else:
            self.gate_proj = nn.Linear(kernel_size * input_size, width, bias=bias, device=device, dtype=dtype)
        # The rows of the forget gate, for initialisers: they see the projection alone, not this layer.
        self.gate_proj.forget_gate = slice(hidden_size, 2 * hidden_size)  # type: ignore[assignment]

    @property
    def is_subsampling(self) -> bool:
        """Whether the layer shortens the sequence."""
        return self.stride > 1 or self.temporal_pooling is not None

    def check_length(self, seq_len: int, name: str) -> None:
        """Refuse an input of that name that is too short for a single step of the output."""
        shortest = (self.temporal_pooling_size - 1) * self.stride + 1 if self.temporal_pooling is not None else 1
        if seq_len < shortest:
            raise ValueError(
                f"`{name}` has {seq_len} steps, but stride={self.stride} and "
                f"temporal_pooling_size={self.temporal_pooling_size} need at least {shortest}"
            )

    def forward(
        self,
        x: torch.Tensor,
        state: tuple[torch.Tensor, torch.Tensor] | None = None,
        *,
        attention_mask: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        gate_bias: torch.Tensor | None = None,
        return_history: bool = False,
        return_ungated: bool = False,
    ) -> tuple[Any, ...]:
        """Run the layer over a chunk.

        Args:
            x: `(batch, seq_len, input_size)`.
            state: what the last chunk returned; `None` starts from zero.
            attention_mask: `(batch, at least seq_len)`, non-zero at real tokens; its last `seq_len` columns count.
            segment_ids: `(batch, seq_len)` integers that change where a packed sequence begins.
            gate_bias: `(batch, n_gates * hidden_size)`, added to the gate logits of every step (equation 7).
            return_history: whether to return also the state after each token, at evaluation, for a roll-back.
            return_ungated: whether to return, in place of `h`, a pair: `c` at each step, zero at pads, and the output
                gate `o` (`None` in f-pooling), both of the shape of `h`, for attention to come between them
                (equation 8).

        Returns:
            `h` `(batch, seq_len, hidden_size)`, zero at pads, and the state for the next chunk: `c`
            `(batch, hidden_size)` and `conv_state` `(batch, input_size, kernel_size - 1)`; `None` if the layer is not
            causal. A subsampling layer returns the shorter `h`, its real steps first, and in place of a state their
            mask `(batch, shorter)`. With `return_history` a third item holds the states after each token, `c`
            `(batch, seq_len, hidden_size)` and `conv_state` `(batch, seq_len, input_size, kernel_size - 1)`.

        Raises:
            ValueError: if a shape does not fit or the sequence is empty; if `state` is given to a layer that is
                subsampling or not causal; if `return_history` is set in a layer that is subsampling, not causal or
                reversed, or while zoneout is random; if a subsampling layer gets `segment_ids` or `return_ungated`,
                or too few steps for one pool.
        """
        self._check_inputs(x, state, segment_ids, gate_bias)
        if return_ungated and self.is_subsampling:
            raise ValueError("`return_ungated` must be False in a subsampling layer, got True")
        if return_history:
            self._check_history()
        is_real = token_mask(attention_mask, x.shape[0], x.shape[1])
        if self.reverse:
            x = x.flip(1)
            is_real, segment_ids = (None if marks is None else marks.flip(1) for marks in (is_real, segment_ids))
        c, conv_state = (None, None) if state is None else state
        if self.causal:
            window = self._window(x, conv_state, is_real, segment_ids)
            inputs = window.inputs()
        else:
            inputs = self._centred_inputs(x, is_real, segment_ids)
        if self.is_subsampling:
            return self._forward_subsampled(inputs, is_real, gate_bias)
        gate_logits = self._project(inputs, gate_bias)
        options = self._options | {"attention_mask": is_real, "segment_ids": segment_ids}
        h, c_last = (self._ungated if return_ungated else self._gated)(gate_logits, c, options)
        if not self.causal:
            return h, None
        if return_history:
            return h, (c_last, window.next_state()), (recurrent_states(gate_logits, c, **options), window.states())
        return h, (c_last, window.next_state())

    def _project(self, inputs: torch.Tensor, gate_bias: torch.Tensor | None) -> torch.Tensor:
        gate_logits = self.gate_proj(inputs)
        return gate_logits if gate_bias is None else gate_logits + gate_bias[:, None]

    @property
    def _options(self) -> dict[str, Any]:
        """What the recurrence is told of the layer."""
        return {
            "pooling": self.pooling,
            "candidate_activation": self.candidate_activation,
            "zoneout": self.zoneout,
        }

    def _forward_subsampled(
        self, inputs: torch.Tensor, is_real: torch.Tensor | None, gate_bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The outputs of the steps that are kept, and which of them are real."""
        inputs, lengths = self._take_strides(inputs, is_real)
        gate_logits, is_kept = self._pool_steps(self._project(inputs, gate_bias), lengths)
        h, _ = recurrent_pooling(gate_logits, attention_mask=is_kept, training=self.training, **self._options)
        return (h.flip(1), is_kept.flip(1)) if self.reverse else (h, is_kept)

    def _gated(
        self, gate_logits: torch.Tensor, c: torch.Tensor | None, options: dict[str, Any]
    ) -> tuple[Any, torch.Tensor]:
        h, c_last = recurrent_pooling(gate_logits, c, training=self.training, **options)
        return h.flip(1) if self.reverse else h, c_last

    def _ungated(
        self, gate_logits: torch.Tensor, c: torch.Tensor | None, options: dict[str, Any]
    ) -> tuple[Any, torch.Tensor]:
        """The states and the output gates apart, and the last state: a pooling whose output is the state."""
        sizes = [2 * self.hidden_size, *(self.hidden_size for _ in GATES[self.pooling][2:])]
        forget, *others = gate_logits.split(sizes, dim=-1)
        o = torch.sigmoid(others[0]) if others else None
        if self.pooling == "ifo":
            # There is no pooling with an input gate and without an output gate: hold that half open, and double.
            gate_logits = torch.cat([forget, torch.zeros_like(others[0]), others[1]], dim=-1)
            half, c_last = recurrent_pooling(gate_logits, c, training=self.training, **options)
            states = 2 * half
        else:
            states, c_last = recurrent_pooling(forget, c, training=self.training, **options | {"pooling": "f"})
        if self.reverse:
            states, o = states.flip(1), None if o is None else o.flip(1)
        return (states, o), c_last

    def _window(
        self,
        x: torch.Tensor,
        conv_state: torch.Tensor | None,
        is_real: torch.Tensor | None,
        segment_ids: torch.Tensor | None,
    ) -> ConvolutionWindow:
        batch_size, seq_len, _ = x.shape
        if conv_state is None:
            conv_state = x.new_zeros(batch_size, self.input_size, self.kernel_size - 1)
        return ConvolutionWindow(x, conv_state, is_real, segment_starts(segment_ids, is_real, batch_size, seq_len))

    def _centred_inputs(
        self, x: torch.Tensor, is_real: torch.Tensor | None, segment_ids: torch.Tensor | None
    ) -> torch.Tensor:
        """The window around each token: `kernel_size // 2` real tokens before it, the rest after it."""
        batch_size, seq_len, input_size = x.shape

        def preceding(taps, x, is_real, segment_ids):
            is_start = segment_starts(segment_ids, is_real, batch_size, seq_len)
            window = ConvolutionWindow(x, x.new_zeros(batch_size, input_size, taps), is_real, is_start)
            return window.inputs().unflatten(2, (taps + 1, input_size))  # (batch, seq_len, taps and the token, input)

        sequence = (x, is_real, segment_ids)
        before = preceding(self.kernel_size // 2, *sequence)
        after = preceding((self.kernel_size - 1) // 2, *(None if part is None else part.flip(1) for part in sequence))
        return torch.cat([before, after[:, :, :-1].flip(1, 2)], dim=2).flatten(2)

    def _take_strides(self, inputs: torch.Tensor, is_real: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Each `stride`-th step from the first of the sequence on, real steps first, and how many of each row are."""
        if self.reverse:
            inputs, is_real = inputs.flip(1), None if is_real is None else is_real.flip(1)
        inputs, lengths = real_first(inputs, is_real)
        return inputs[:, :: self.stride], (lengths + self.stride - 1) // self.stride

    def _pool_steps(self, gate_logits: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Whole pools of the steps that `_take_strides` gave, turned around if the layer is, and which are real."""
        if self.temporal_pooling is not None:
            size = self.temporal_pooling_size
            pools = gate_logits[:, : gate_logits.shape[1] // size * size].unflatten(1, (-1, size))
            gate_logits = pools.amax(dim=2) if self.temporal_pooling == "max" else pools.mean(dim=2)
            lengths = lengths // size
        is_real = torch.arange(gate_logits.shape[1], device=gate_logits.device) < lengths[:, None]
        return (gate_logits.flip(1), is_real.flip(1)) if self.reverse else (gate_logits, is_real)

    def _check_inputs(self, x, state, segment_ids, gate_bias) -> None:
        if x.dim() != 3 or x.shape[1] == 0 or x.shape[2] != self.input_size:
            raise ValueError(
                f"`x` must have the shape (batch, at least one step, input_size={self.input_size}), "
                f"got {tuple(x.shape)}"
            )
        if state is not None:
            self._check_state(x.shape[0], state)
        if segment_ids is not None and self.is_subsampling:
            raise ValueError("`segment_ids` cannot be used in a subsampling layer: its steps may span two segments")
        width = len(GATES[self.pooling]) * self.hidden_size
        if gate_bias is not None and gate_bias.shape != (x.shape[0], width):
            raise ValueError(
                f"`gate_bias` must have the shape (batch, n_gates * hidden_size) = {(x.shape[0], width)}, "
                f"got {tuple(gate_bias.shape)}"
            )
        self.check_length(x.shape[1], "x")

    def _check_history(self) -> None:
        if self.is_subsampling or not self.causal or self.reverse:
            raise ValueError("`return_history` must be False in a layer that is reversed, subsampling or not causal")
        if self.training and self.zoneout:
            raise ValueError(
                "`return_history` must be False while zoneout is random: call `eval()` first (a cache that records "
                "its past asks for the history)"
            )

    def _check_state(self, batch_size: int, state: tuple[torch.Tensor, torch.Tensor]) -> None:
        if self.is_subsampling or not self.causal:
            kind = "a subsampling layer" if self.is_subsampling else "a layer with causal=False"
            raise ValueError(
                f"`state` was given, but {kind} cannot go on from a state: run it over the whole sequence, or buffer "
                "the inputs in front of it"
            )
        c, conv_state = state
        expected = (batch_size, self.hidden_size), (batch_size, self.input_size, self.kernel_size - 1)
        if (tuple(c.shape), tuple(conv_state.shape)) != expected:
            raise ValueError(
                f"`state` must hold c and conv_state of the shapes {expected[0]} and {expected[1]}, "
                f"got {tuple(c.shape)} and {tuple(conv_state.shape)}"
            )

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, kernel_size={self.kernel_size}, pooling={self.pooling!r}"


class QRNN(nn.Module):
    """A stack of QRNN layers that is called like `torch.nn.LSTM`.

    Args:
        input_size: channels that come in.
        hidden_size: channels of each direction; a bidirectional module puts out twice as many.
        num_layers: how many layers.
        kernel_size: width of the convolutions, one for all layers or one per layer.
        pooling: `"f"`, `"fo"` or `"ifo"`.
        bias: whether the gates have biases.
        dropout: probability of dropout on the output of each layer but the last.
        zoneout: probability with which a unit keeps its state in training.
        bidirectional: add a stack that runs from right to left, with weights of its own; upper layers see both.
        batch_first: whether tensors are `(batch, seq_len, channels)` rather than `(seq_len, batch, channels)`, as
            `torch.nn.LSTM` has them unless told otherwise.
        stride, temporal_pooling, temporal_pooling_size: shorten the sequence between the convolution and the
            recurrence of the first layer, see `QRNNLayer`.
        device, dtype: of the parameters.

    Raises:
        ValueError: for a size below one, an unknown option, or another number of kernel sizes than layers.

    Example:
        >>> rnn = QRNN(10, 20, num_layers=2)
        >>> output, state = rnn(torch.randn(5, 3, 10))
        >>> output.shape, state.c[0].shape, state.conv[0].shape
        (torch.Size([5, 3, 20]), torch.Size([5, 20]), torch.Size([5, 10, 1]))
        >>> shorter, mask = QRNN(10, 20, temporal_pooling="max")(torch.randn(5, 15, 10))
        >>> shorter.shape, mask.shape
        (torch.Size([5, 7, 20]), torch.Size([5, 7]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        kernel_size: int | list[int] = 2,
        pooling: Pooling = "fo",
        bias: bool = True,
        dropout: float = 0.0,
        zoneout: float = 0.0,
        bidirectional: bool = False,
        batch_first: bool = True,
        stride: int = 1,
        temporal_pooling: Literal["max", "average"] | None = None,
        temporal_pooling_size: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"`num_layers` must be at least 1, got {num_layers}")
        kernel_sizes = [kernel_size] * num_layers if isinstance(kernel_size, int) else list(kernel_size)
        if len(kernel_sizes) != num_layers:
            raise ValueError(f"`kernel_size` must be one number or one per layer ({num_layers}), got {kernel_size}")
        if not 0 <= dropout < 1:
            raise ValueError(f"`dropout` must be a probability in [0, 1), got {dropout}")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.dropout = dropout
        self.bidirectional = bidirectional
        self.batch_first = batch_first
        directions = (False, True) if bidirectional else (False,)
        self.is_subsampling = stride > 1 or temporal_pooling is not None
        self.layers = nn.ModuleList(
            QRNNLayer(
                input_size if index == 0 else len(directions) * hidden_size,
                hidden_size,
                kernel_sizes[index],
                pooling,
                bias=bias,
                zoneout=zoneout,
                reverse=reverse,
                stride=stride if index == 0 else 1,
                temporal_pooling=temporal_pooling if index == 0 else None,
                temporal_pooling_size=temporal_pooling_size,
                device=device,
                dtype=dtype,
            )
            for index in range(num_layers)
            for reverse in directions
        )

    def flatten_parameters(self) -> None:
        """Do nothing: code written for `torch.nn.LSTM` calls this, and there are no weights to lay side by side."""

    def forward(
        self,
        input: torch.Tensor | PackedSequence,
        state: QRNNState | None = None,
        *,
        attention_mask: torch.Tensor | None = None,
    ) -> tuple[Any, Any]:
        """Run the stack over a chunk.

        Args:
            input: `(batch, seq_len, input_size)`, with `batch_first=False` `(seq_len, batch, input_size)`, without a
                batch `(seq_len, input_size)`, or a `PackedSequence`.
            state: what the last chunk returned; `None` starts from zero.
            attention_mask: `(batch, at least seq_len)`, whatever `batch_first`, without a batch `(at least seq_len,)`:
                non-zero at real tokens, pads anywhere; its last `seq_len` columns count.

        Returns:
            The output in the form of the input, zero at pads, and the `QRNNState`. A subsampling module returns the
            shorter output, its real steps first, and in place of a state their mask `(batch, shorter)`.

        Raises:
            ValueError: if a shape does not fit, the sequence is empty, a mask comes with a `PackedSequence`, or a
                subsampling module is given a state, or left with no step at all.
        """
        if isinstance(input, PackedSequence):
            if attention_mask is not None:
                raise ValueError("`attention_mask` must be None for a `PackedSequence`, which has lengths of its own")
            return self._forward_packed(input, state)
        time = 1 if self.batch_first and input.dim() == 3 else 0
        if input.dim() not in (2, 3) or input.shape[-1] != self.input_size or input.shape[time] == 0:
            order = "(batch, seq_len, " if self.batch_first else "(seq_len, batch, "
            raise ValueError(
                f"`input` must have the shape {order}input_size={self.input_size}), or without the batch, and at "
                f"least one step, got {tuple(input.shape)}"
            )
        cast(QRNNLayer, self.layers[0]).check_length(input.shape[time], "input")
        if input.dim() == 2:
            return self._forward_unbatched(input, state, attention_mask)
        if self.batch_first:
            return self._forward(input, state, attention_mask)
        output, state = self._forward(input.transpose(0, 1), state, attention_mask)
        return output.transpose(0, 1), state

    def _forward(
        self, x: torch.Tensor, state: QRNNState | None, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, Any]:
        states = self._layer_states(state)
        directions = 2 if self.bidirectional else 1
        new_states = []
        for index in range(self.num_layers):
            group = slice(index * directions, (index + 1) * directions)
            results = [
                layer(x, layer_state, attention_mask=attention_mask)
                for layer, layer_state in zip(self.layers[group], states[group], strict=True)
            ]
            x = torch.cat([h for h, _ in results], dim=-1)
            if index == 0 and self.is_subsampling:
                attention_mask = results[0][1]
            if self.training and self.dropout and index < self.num_layers - 1:
                x = dropout(x, self.dropout)
            new_states += [layer_state for _, layer_state in results]
        if self.is_subsampling:
            return x, attention_mask
        return x, QRNNState(*zip(*new_states, strict=True))

    def _layer_states(self, state: QRNNState | None) -> list[tuple[torch.Tensor, torch.Tensor] | None]:
        if state is None:
            return [None] * len(self.layers)
        if self.is_subsampling:
            raise ValueError(
                "`state` was given, but a subsampling module cannot go on from a state: run it over the whole "
                "sequence, or buffer the inputs in front of it"
            )
        if len(state) != 2 or len(state[0]) != len(self.layers) or len(state[1]) != len(self.layers):
            raise ValueError(
                f"`state` must hold two tuples, c and conv, of {len(self.layers)} tensors (layers times directions), "
                f"got lengths {[len(part) for part in state]}"
            )
        return list(zip(*state, strict=True))

    def _forward_unbatched(self, input, state, attention_mask):
        def each(state: QRNNState, change) -> QRNNState:
            return QRNNState(*(tuple(change(tensor) for tensor in part) for part in state))

        state = None if state is None else each(state, lambda tensor: tensor.unsqueeze(0))
        mask = attention_mask[None] if attention_mask is not None and attention_mask.dim() == 1 else attention_mask
        output, second = self._forward(input.unsqueeze(0), state, mask)  # the state, or the mask of the shorter output
        second = second.squeeze(0) if self.is_subsampling else each(second, lambda tensor: tensor.squeeze(0))
        return output.squeeze(0), second

    def _forward_packed(self, input, state):
        if input.data.shape[1:] != (self.input_size,):
            raise ValueError(
                f"`input` must hold steps of input_size={self.input_size} numbers, got the shape "
                f"{tuple(input.data.shape)}"
            )
        cast(QRNNLayer, self.layers[0]).check_length(len(input.batch_sizes), "input")
        padded, lengths = pad_packed_sequence(input, batch_first=True)  # the lengths are always on the CPU
        is_ragged = bool((lengths != padded.shape[1]).any())
        steps = torch.arange(padded.shape[1], device=lengths.device)
        mask = (steps < lengths[:, None]).to(padded.device) if is_ragged else None
        output, second = self._forward(padded, state, mask)  # the state, or the mask of the shorter output
        if self.is_subsampling:
            lengths = second.sum(dim=1).cpu()
            if lengths.min() < 1:
                raise ValueError(
                    "`input` has a sequence that subsampling shortens to nothing, and a `PackedSequence` cannot hold "
                    "an empty one: pass a padded tensor with `attention_mask` instead"
                )
        # Subsampling keeps the order of lengths, so the input's own order of rows still serves.
        if input.sorted_indices is not None:
            output, lengths = output[input.sorted_indices], lengths[input.sorted_indices.cpu()]
        packed = pack_padded_sequence(output, lengths, batch_first=True)
        return PackedSequence(packed.data, packed.batch_sizes, input.sorted_indices, input.unsorted_indices), second

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, bidirectional={self.bidirectional}"
