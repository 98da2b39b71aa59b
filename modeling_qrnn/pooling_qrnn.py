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
"""The recurrent pooling of the Quasi-Recurrent Neural Network (Bradbury et al. 2017, section 2).

The file reads top to bottom: what a mask and a segment mean, the zoneout hash, the textbook loop that defines every
result (`"reference"`), the same with in-place loops and a hand-written backward (`"torch"`), the same in blocks for
exported programs, the operators through which autograd and compilers see `"torch"` and the kernels of other files
(`"numba"`, `"triton"`), the choice among all these, and the public functions.
"""

import functools
import logging
import os
from collections.abc import Callable
from itertools import accumulate
from textwrap import shorten
from typing import Literal, NamedTuple

import torch
from torch.autograd import forward_ad
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn import functional as F


logger = logging.getLogger(__name__)

Pooling = Literal["f", "fo", "ifo"]
CandidateActivation = Literal["tanh", "identity", "relu"]

# The gates of each pooling, in the order in which they lie in the last dimension of `gate_logits`.
GATES: dict[str, str] = {"f": "zf", "fo": "zfo", "ifo": "zfoi"}

_CANDIDATE_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "tanh": torch.tanh,
    "identity": lambda logits: logits,
    "relu": torch.relu,
}
# The gradients of their logits, from those of the activated candidate `z`.
_CANDIDATE_GRADIENTS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "tanh": lambda grad, z: grad * (1 - z * z),
    "identity": lambda grad, z: grad,
    "relu": lambda grad, z: grad.masked_fill(z <= 0, 0),
}


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the recurrent state for activations of `dtype`: never 16 bits, for `1 - f` vanishes there.

    Example:
        >>> state_dtype(torch.bfloat16), state_dtype(torch.float64)
        (torch.float32, torch.float64)
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def token_mask(attention_mask: torch.Tensor | None, batch_size: int, seq_len: int) -> torch.Tensor | None:
    """Which tokens of the current chunk are real.

    Args:
        attention_mask: `(batch, at least seq_len)`, any dtype, non-zero at real tokens; its last `seq_len` columns
            count, so that the growing mask of `generate` can be passed as it is.
        batch_size: the batch size of the chunk.
        seq_len: the length of the chunk.

    Returns:
        `(batch, seq_len)` bool, or `None` if there is no mask.

    Raises:
        ValueError: if the mask has another batch size, is narrower than the chunk, or is not two-dimensional.

    Example:
        >>> token_mask(torch.tensor([[0, 1, 1, 0]]), batch_size=1, seq_len=2)
        tensor([[ True, False]])
    """
    if attention_mask is None:
        return None
    if attention_mask.dim() != 2 or attention_mask.shape[0] != batch_size or attention_mask.shape[1] < seq_len:
        raise ValueError(
            f"`attention_mask` must have the shape (batch, at least seq_len) = ({batch_size}, >= {seq_len}), "
            f"got {tuple(attention_mask.shape)}"
        )
    return attention_mask[:, attention_mask.shape[1] - seq_len :] != 0


def last_real_position(is_real: torch.Tensor) -> torch.Tensor:
    """For each position, that of the last real token up to and including it; 0 if there is none yet.

    Args:
        is_real: `(batch, seq_len)` bool.

    Returns:
        `(batch, seq_len)` int64.

    Example:
        >>> last_real_position(torch.tensor([[True, False, False, True]]))
        tensor([[0, 0, 0, 3]])
    """
    positions = torch.arange(is_real.shape[1], device=is_real.device)
    if torch.compiler.is_exporting():  # ONNX has no `cummax`
        n_real = is_real.cumsum(dim=1)
        # Where the n-th real token is; all pads write a 0 to the place of a token number 0.
        of_nth = F.pad(torch.zeros_like(n_real), (1, 0)).scatter(1, n_real * is_real, positions * is_real)
        return of_nth.gather(1, n_real)
    return torch.where(is_real, positions, 0).cummax(dim=1).values


def segment_starts(
    segment_ids: torch.Tensor | None, is_real: torch.Tensor | None, batch_size: int, seq_len: int
) -> torch.Tensor | None:
    """Where a new sequence begins inside the chunk: at a token whose segment differs from the last real token's.

    The first real token of a chunk is never a start: it goes on from the carried state.

    Args:
        segment_ids: `(batch, seq_len)` integers, constant within each of the sequences laid end to end.
        is_real: `(batch, seq_len)` bool or `None`; the segments of pads have no meaning.
        batch_size: the batch size of the chunk.
        seq_len: the length of the chunk.

    Returns:
        `(batch, seq_len)` bool, or `None` without segments.

    Raises:
        ValueError: if `segment_ids` has another shape.

    Example:
        >>> segment_starts(torch.tensor([[0, 0, 1, 1, 2]]), None, batch_size=1, seq_len=5)
        tensor([[False, False,  True, False,  True]])
    """
    if segment_ids is None:
        return None
    if segment_ids.shape != (batch_size, seq_len):
        raise ValueError(
            f"`segment_ids` must have the shape (batch, seq_len) = {(batch_size, seq_len)}, "
            f"got {tuple(segment_ids.shape)}"
        )
    if is_real is None:
        changes = segment_ids[:, 1:] != segment_ids[:, :-1]
        return F.pad(changes, (1, 0), value=False)
    # The segment of the last real token before each position; a first real token is compared with itself.
    first_real = is_real.to(torch.int8).argmax(dim=1, keepdim=True)
    previous = F.pad(last_real_position(is_real)[:, :-1], (1, 0))
    previous = torch.maximum(previous, first_real)
    return is_real & (segment_ids != segment_ids.gather(1, previous))


_UINT32 = 0xFFFFFFFF


def _mix(bits: torch.Tensor) -> torch.Tensor:
    """A bijection of 32-bit numbers (held in int64) that spreads each input bit over all output bits.

    The constants are those of Chris Wellons' search for low-bias integer hashes ("lowbias32").
    """
    bits = ((bits ^ (bits >> 16)) * 0x7FEB352D) & _UINT32
    bits = ((bits ^ (bits >> 15)) * 0x846CA68B) & _UINT32
    return bits ^ (bits >> 16)


def zoneout_mask(seed: torch.Tensor, batch_size: int, seq_len: int, hidden_size: int, zoneout: float) -> torch.Tensor:
    """Which units keep their state, by a counter-based hash of (seed, batch, time, channel).

    A hash needs no memory between forward and backward, and gives every backend the same mask in any order of work.

    Args:
        seed: 0-dim int64.
        batch_size, seq_len, hidden_size: the shape of the mask.
        zoneout: the probability with which a unit is zoned out.

    Returns:
        `(batch, seq_len, hidden)` bool, true where the unit is zoned out.

    Example:
        >>> zoneout_mask(torch.tensor(1), 4, 50, 50, zoneout=0.25).float().mean().round(decimals=2)
        tensor(0.2500)
    """
    key = _mix((seed & _UINT32) ^ _mix((seed >> 32) & _UINT32))
    key = _mix(key ^ torch.arange(batch_size, device=seed.device))  # (batch,)
    key = _mix(key[:, None] ^ torch.arange(seq_len, device=seed.device))  # (batch, seq_len)
    key = _mix(key[:, :, None] ^ torch.arange(hidden_size, device=seed.device))  # (batch, seq_len, hidden)
    return key < round(zoneout * 2**32)


# --- "reference": the law --------------------------------------------------------------------------------------------


def _gates(
    gate_logits: torch.Tensor,
    is_real: torch.Tensor | None,
    zoneout_seed: torch.Tensor | None,
    pooling: str,
    candidate_activation: str,
    zoneout: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The activated `z`, `f`, `o` and `i`, each `(batch, seq_len, hidden)`, after zoneout."""
    if is_real is not None:
        gate_logits = gate_logits.masked_fill(~is_real[..., None], 0)  # what a pad holds, NaN included, is never seen
    logits = dict(zip(GATES[pooling], gate_logits.chunk(len(GATES[pooling]), dim=-1), strict=True))
    z = _CANDIDATE_ACTIVATIONS[candidate_activation](logits["z"])
    f = torch.sigmoid(logits["f"])
    i = torch.sigmoid(logits["i"]) if "i" in logits else 1 - f
    o = torch.sigmoid(logits["o"]) if "o" in logits else torch.ones_like(f)
    if zoneout_seed is not None:  # equation 6, and a zoned-out unit takes no input either
        batch_size, seq_len, hidden_size = f.shape
        zoned_out = zoneout_mask(zoneout_seed, batch_size, seq_len, hidden_size, zoneout)
        f, i = f.masked_fill(zoned_out, 1), i.masked_fill(zoned_out, 0)
    elif zoneout:
        f, i = 1 - (1 - zoneout) * (1 - f), (1 - zoneout) * i
    return z, f, o, i


def _reference_pooling(
    gate_logits: torch.Tensor,
    initial_state: torch.Tensor,
    is_real: torch.Tensor | None,
    is_start: torch.Tensor | None,
    zoneout_seed: torch.Tensor | None,
    pooling: str,
    candidate_activation: str,
    zoneout: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Equations 3 to 5 of the paper, one step after the other, differentiated by autograd."""
    gates = _gates(gate_logits.to(initial_state.dtype), is_real, zoneout_seed, pooling, candidate_activation, zoneout)
    c, outputs = initial_state, []
    for t, (z_t, f_t, o_t, i_t) in enumerate(zip(*(gate.unbind(1) for gate in gates), strict=True)):
        carried = c if is_start is None else c.masked_fill(is_start[:, t, None], 0)
        new = f_t * carried + i_t * z_t
        h = o_t * new
        if is_real is not None:
            new = torch.where(is_real[:, t, None], new, c)
            h = h.masked_fill(~is_real[:, t, None], 0)
        c = new
        outputs.append(h)
    return torch.stack(outputs, dim=1).to(gate_logits.dtype), c


# --- one step: a token of generation ---------------------------------------------------------------------------------


def _step_pooling(
    gate_logits: torch.Tensor,
    initial_state: torch.Tensor,
    is_real: torch.Tensor | None,
    is_start: torch.Tensor | None,
    zoneout_seed: torch.Tensor | None,
    pooling: str,
    candidate_activation: str,
    zoneout: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`_reference_pooling` for a sequence of one step, without its loop; the first step is never a start."""
    z, f, o, i = _gates(
        gate_logits.to(initial_state.dtype), is_real, zoneout_seed, pooling, candidate_activation, zoneout
    )
    c = initial_state[:, None]
    new = f * c + i * z
    h = o * new
    if is_real is not None:
        new, h = torch.where(is_real[..., None], new, c), h.masked_fill(~is_real[..., None], 0)
    return h.to(gate_logits.dtype), new[:, 0]


# --- "torch": whole-tensor activations, in-place loops over time -----------------------------------------------------


# Gradients fainter than this become zero. Each step back in time multiplies a gradient by a forget gate below one: far
# from the last loss it, and before that its products with weights, become subnormal, and a matrix product of subnormal
# numbers is a hundred times as slow on some CPUs. The bound leaves room for weights and activations down to 2^-26.
_FAINTEST_GRADIENTS = {torch.float32: 2.0**-100, torch.float64: 2.0**-996}


class _Gates(NamedTuple):
    """Activated gates `(batch, seq_len, hidden)` in the dtype of the state, pads and zoneout applied."""

    z: torch.Tensor
    f: torch.Tensor  # the forget gate before zoneout and pads, for its derivative
    i: torch.Tensor | None  # likewise the input gate of ifo-pooling
    o: torch.Tensor | None
    allow: torch.Tensor | float  # what is left of an update: 0 at pads and zoned-out units, 1 - p at evaluation
    keep: torch.Tensor  # factor of c_{t-1}: one at pads and zoned-out units, zero at the start of a segment
    update: torch.Tensor  # factor of z_t: zero at pads and zoned-out units


def _activate(
    gate_logits: torch.Tensor,
    dtype: torch.dtype,
    is_real: torch.Tensor | None,
    is_start: torch.Tensor | None,
    zoneout_seed: torch.Tensor | None,
    pooling: str,
    candidate_activation: str,
    zoneout: float,
) -> _Gates:
    gate_logits = gate_logits.to(dtype)
    if is_real is not None:
        gate_logits = gate_logits.masked_fill(~is_real[..., None], 0)
    logits = dict(zip(GATES[pooling], gate_logits.chunk(len(GATES[pooling]), dim=-1), strict=True))

    z = _CANDIDATE_ACTIVATIONS[candidate_activation](logits["z"])
    f = torch.sigmoid(logits["f"])
    i = torch.sigmoid(logits["i"]) if "i" in logits else None
    o = torch.sigmoid(logits["o"]) if "o" in logits else None

    allow: torch.Tensor | float = 1.0 - zoneout
    if zoneout_seed is not None:
        batch_size, seq_len, hidden_size = f.shape
        allow = (~zoneout_mask(zoneout_seed, batch_size, seq_len, hidden_size, zoneout)).to(dtype)
    if is_real is not None:
        allow = allow * is_real[..., None].to(dtype)

    forget = (1 - f) * allow
    keep = 1 - forget
    if is_start is not None:
        keep = keep.masked_fill(is_start[..., None], 0)
    return _Gates(z, f, i, o, allow, keep, forget if i is None else i * allow)


def _scan(
    keep: torch.Tensor, inputs: torch.Tensor, initial_state: torch.Tensor, is_start: torch.Tensor | None
) -> torch.Tensor:
    """`c_t = keep_t * c_{t-1} + inputs_t` for all t: `(batch, seq_len + 1, hidden)`, the initial state first."""
    states = torch.empty(
        keep.shape[0], keep.shape[1] + 1, keep.shape[2], dtype=initial_state.dtype, device=initial_state.device
    )
    states[:, 0] = initial_state
    # `unbind` makes all the views at once: indexing inside the loop would cost more than the arithmetic.
    steps = [*zip(keep.unbind(1), inputs.unbind(1), states.unbind(1)[:-1], states.unbind(1)[1:], strict=True)]
    for begins, (keep_t, input_t, previous, current) in zip(_beginnings(is_start, len(steps)), steps, strict=True):
        torch.addcmul(input_t, keep_t, previous if begins is None else previous.masked_fill(begins, 0), out=current)
    return states


def _beginnings(is_start: torch.Tensor | None, seq_len: int) -> list[torch.Tensor | None]:
    """At each step the rows `(batch, 1)` that begin a segment there, or `None` if it is known that none does.

    What comes over such a border is selected, for zero times NaN would be NaN.
    """
    if is_start is None:
        return [None] * seq_len
    marks = is_start[..., None].unbind(1)
    if is_start.device.type != "cpu" or torch.compiler.is_compiling():
        return [*marks]
    return [mark if begins else None for mark, begins in zip(marks, is_start.any(dim=0).tolist(), strict=True)]


def _torch_pooling(
    gate_logits: torch.Tensor,
    initial_state: torch.Tensor,
    is_real: torch.Tensor | None,
    is_start: torch.Tensor | None,
    zoneout_seed: torch.Tensor | None,
    pooling: str,
    candidate_activation: str,
    zoneout: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    gates = _activate(
        gate_logits, initial_state.dtype, is_real, is_start, zoneout_seed, pooling, candidate_activation, zoneout
    )
    states = _scan(gates.keep, gates.update * gates.z, initial_state, is_start)
    c = states[:, 1:]
    h = c if gates.o is None else gates.o * c
    if is_real is not None:
        h = h.masked_fill(~is_real[..., None], 0)
    # The outputs of an operator own their memory: `h` and `c_last` must not keep all the states alive.
    c_last = states[:, -1].clone(memory_format=torch.contiguous_format)
    no_checkpoints = initial_state.new_empty(initial_state.shape[0], 0, initial_state.shape[1])
    return h.to(gate_logits.dtype, copy=h is c).contiguous(), c_last, no_checkpoints


def _torch_pooling_backward(
    grad_h: torch.Tensor,
    grad_c_last: torch.Tensor,
    gate_logits: torch.Tensor,
    initial_state: torch.Tensor,
    checkpoints: torch.Tensor,
    is_real: torch.Tensor | None,
    is_start: torch.Tensor | None,
    zoneout_seed: torch.Tensor | None,
    pooling: str,
    candidate_activation: str,
    zoneout: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of `gate_logits` and `initial_state`; everything but them is recomputed, not stored."""
    gates = _activate(
        gate_logits, initial_state.dtype, is_real, is_start, zoneout_seed, pooling, candidate_activation, zoneout
    )
    z, f, i, o, allow, keep, update = gates
    states = _scan(keep, update * z, initial_state, is_start)
    grad_h = grad_h.to(initial_state.dtype)
    if is_real is not None:
        grad_h = grad_h.masked_fill(~is_real[..., None], 0)  # like what a pad holds, what comes back to it is not seen
    grad_c = grad_h.clone() if o is None else grad_h * o
    grad_c[:, -1] += grad_c_last
    steps, keeps = grad_c.unbind(1), keep.unbind(1)
    begins = _beginnings(is_start, len(steps))
    for t in range(len(steps) - 1, 0, -1):
        mark, current = begins[t], steps[t]
        steps[t - 1].addcmul_(keeps[t], current if mark is None else current.masked_fill(mark, 0))

    grad_keep = grad_c * states[:, :-1]
    if is_start is not None:
        grad_keep = grad_keep.masked_fill(is_start[..., None], 0)
    grad_update = grad_c * z
    # keep = 1 - allow * (1 - f); in f- and fo-pooling update = allow * (1 - f), in ifo-pooling update = allow * i
    grad_f = allow * (grad_keep if i is not None else grad_keep - grad_update)
    gradients = {
        "z": _CANDIDATE_GRADIENTS[candidate_activation](grad_c * update, z),
        "f": grad_f * f * (1 - f),
    }
    if o is not None:
        gradients["o"] = grad_h * states[:, 1:] * o * (1 - o)
    if i is not None:
        gradients["i"] = allow * grad_update * i * (1 - i)
    grad_logits = torch.cat([gradients[gate].to(gate_logits.dtype) for gate in GATES[pooling]], dim=-1)
    if is_real is not None:
        grad_logits = grad_logits.masked_fill(~is_real[..., None], 0)
    grad_state = keep[:, 0] * grad_c[:, 0]
    faintest = _FAINTEST_GRADIENTS[initial_state.dtype]
    return F.hardshrink(grad_logits, faintest).contiguous(), F.hardshrink(grad_state, faintest).contiguous()


# --- an exported program: plain operations, as many for any length --------------------------------------------------


# The sequence falls into blocks, the blocks into blocks of blocks, and so on, until one block holds the most steps.
_FOLD = 8
_MOST_STEPS = _FOLD**7


def _carry(keep: torch.Tensor, state: torch.Tensor, is_cut: torch.Tensor | None) -> torch.Tensor:
    """`keep * state`, of which nothing comes over the start of a segment: zero times NaN would be NaN."""
    return keep * (state if is_cut is None else state.masked_fill(is_cut, 0))


def _states_before(
    keep: torch.Tensor,
    inputs: torch.Tensor,
    is_cut: torch.Tensor | None,
    state: torch.Tensor,
    num_steps: int,
    block_steps: int = _FOLD,
) -> torch.Tensor:
    """`c_{t-1}` for each step of `c_t = keep_t * c_{t-1} + inputs_t`: `(batch, seq_len, hidden)`.

    All blocks take their first step at once, then their second, and so on, as if each began from zero. What a block
    does as a whole is then a step of a shorter sequence, and the state before that step is the state before the block.
    A block stands for `block_steps` of the `num_steps` that there were at first.

    `torch.export` would make a program for a length of 1 alone if it met one, so there is always a last block that
    nobody needs; and it can tell that no length is excluded by `index_select`, but not by `view` or a slice.
    """
    seq_len = keep.shape[1]
    n_blocks = (num_steps + block_steps - 1) // block_steps + 1
    # In the order of the work the first steps of all blocks come first, then the second ones.
    time, block, step = (torch.arange(length, device=keep.device) for length in (seq_len, n_blocks, _FOLD))
    to_work = (step[:, None] + block * _FOLD).flatten().clamp(max=seq_len - 1)
    block_of_time = time.div(_FOLD, rounding_mode="trunc")
    to_time = (time - block_of_time * _FOLD) * n_blocks + block_of_time

    def steps_of_blocks(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.index_select(1, to_work).split([n_blocks] * _FOLD, dim=1)

    keeps, updates = steps_of_blocks(keep), steps_of_blocks(inputs)
    cuts: list[torch.Tensor | None] = [None] * _FOLD
    are_cut = cuts  # whether a block has been cut off from the state before it, after each of its steps
    if is_cut is not None:
        pieces = steps_of_blocks(is_cut)
        cuts, are_cut = [*pieces], [*accumulate(pieces, torch.logical_or)]
    kept, added = [keeps[0]], [updates[0]]  # what is left of that state, and what has come to it
    for keep_t, update_t, cut_t in zip(keeps[1:], updates[1:], cuts[1:], strict=True):
        kept.append(_carry(keep_t, kept[-1], cut_t))
        added.append(_carry(keep_t, added[-1], cut_t) + update_t)

    if block_steps == _MOST_STEPS or statically_known_true(n_blocks == 2):
        before = state[:, None].expand(-1, n_blocks, -1)
    else:
        before = _states_before(kept[-1], added[-1], are_cut[-1], state, num_steps, block_steps * _FOLD)
    ends = zip(kept[:-1], added[:-1], are_cut[:-1], strict=True)
    states = [before, *(_carry(kept_t, before, cut_t) + added_t for kept_t, added_t, cut_t in ends)]
    return torch.cat(states, dim=1).index_select(1, to_time)


def _exported_pooling(
    gate_logits: torch.Tensor,
    initial_state: torch.Tensor,
    is_real: torch.Tensor | None,
    is_start: torch.Tensor | None,
    zoneout_seed: torch.Tensor | None,
    pooling: str,
    candidate_activation: str,
    zoneout: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`_reference_pooling` without a loop over time and without operators for which a program needs this package."""
    seq_len = gate_logits.shape[1]
    torch._check(seq_len <= _MOST_STEPS, lambda: f"an exported program takes at most {_MOST_STEPS} steps")
    gates = _activate(
        gate_logits, initial_state.dtype, is_real, is_start, zoneout_seed, pooling, candidate_activation, zoneout
    )
    inputs, is_cut = gates.update * gates.z, None if is_start is None else is_start[..., None]
    before = _states_before(gates.keep, inputs, is_cut, initial_state, seq_len)
    c = _carry(gates.keep, before, is_cut) + inputs
    h = c if gates.o is None else gates.o * c
    if is_real is not None:
        h = h.masked_fill(~is_real[..., None], 0)
    return h.to(gate_logits.dtype), c[:, -1].clone()  # a view would keep all the states alive


# --- operators -------------------------------------------------------------------------------------------------------
#
# A fast backend is two functions. The forward one takes what `_reference_pooling` takes, and returns beside `h` and
# the last state the checkpoints from which its backward starts: `(batch, any number, hidden)` states. The backward one
# takes the gradients of `h` and the last state, and the same arguments, with the checkpoints after the initial state.


class _Operators(NamedTuple):
    forward: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    backward: Callable[..., tuple[torch.Tensor, torch.Tensor]]


def _differentiate_backward(ctx, grad_grad_logits, grad_grad_state):
    """The second derivative, through the textbook loop: rare, so it need not be fast."""
    *differentiable, is_real, is_start, zoneout_seed = ctx.saved_tensors
    marks = (is_real, is_start, zoneout_seed)
    is_differentiated_again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views stay part of the graph, for third derivatives.
        variables = [
            x.view_as(x) if is_differentiated_again and x.requires_grad else x.detach().requires_grad_()
            for x in differentiable
        ]
        outputs = _reference_pooling(variables[2], variables[3], *marks, *ctx.options)
        first = torch.autograd.grad(outputs, variables[2:], variables[:2], create_graph=True)
        second = torch.autograd.grad(
            first,
            variables,
            (grad_grad_logits, grad_grad_state),
            allow_unused=True,
            create_graph=is_differentiated_again,
        )
    return *second, None, None, None, None, None, None, None


def _setup_forward_context(ctx, inputs, output):
    gate_logits, initial_state, *marks, pooling, candidate_activation, zoneout = inputs
    ctx.save_for_backward(gate_logits, initial_state, output[2], *marks)
    ctx.options = (pooling, candidate_activation, zoneout)
    ctx.mark_non_differentiable(output[2])


def _setup_backward_context(ctx, inputs, output):
    grad_h, grad_c_last, gate_logits, initial_state, _, *marks, pooling, candidate_activation, zoneout = inputs
    ctx.save_for_backward(grad_h, grad_c_last, gate_logits, initial_state, *marks)
    ctx.options = (pooling, candidate_activation, zoneout)


def _fake_pooling_backward(grad_h, grad_c_last, gate_logits, initial_state, *_):
    # The implementations return contiguous memory whatever the strides of their inputs.
    return gate_logits.new_empty(gate_logits.shape), initial_state.new_empty(initial_state.shape)


_OPTIONS = "str pooling, str candidate_activation, float zoneout"
_MARKS = "Tensor? is_real, Tensor? is_start, Tensor? zoneout_seed"


def _pool_by_the_loop(marks, options, gate_logits, initial_state):
    return _reference_pooling(gate_logits, initial_state, *marks, *options)


def _define(
    name: str, version: int, forward: Callable, backward: Callable, checkpoint_steps: int | None
) -> _Operators:
    """Define a backend's custom operators, which `torch.compile` keeps whole.

    A process may load this file twice, as the installed package and as remote code of a model folder. To define a name
    again would break the first handle, so the second copy takes the operators that are there; the version at the end
    of their names changes with their meaning.
    """
    forward_name, backward_name = f"{name}_pooling_v{version}", f"{name}_pooling_backward_v{version}"

    def fake_pooling(gate_logits, initial_state, is_real, is_start, zoneout_seed, pooling, *_):
        batch_size, seq_len, width = gate_logits.shape
        hidden_size = width // len(GATES[pooling])
        n_checkpoints = 0 if checkpoint_steps is None else (seq_len + checkpoint_steps - 1) // checkpoint_steps
        return (
            gate_logits.new_empty(batch_size, seq_len, hidden_size),
            initial_state.new_empty(batch_size, hidden_size),
            initial_state.new_empty(batch_size, n_checkpoints, hidden_size),
        )

    def differentiate(ctx, grad_h, grad_c_last, _):
        if _is_transformed(grad_h, grad_c_last):  # what comes back may be, where the inputs were not
            gate_logits, initial_state, _, *marks = ctx.saved_tensors
            pool = functools.partial(_pool_by_the_loop, marks, ctx.options)
            grads = torch.func.vjp(pool, gate_logits, initial_state)[1]((grad_h, grad_c_last))
            return *grads, None, None, None, None, None, None
        backward_operator = getattr(torch.ops.modeling_qrnn, backward_name)
        grads = backward_operator(grad_h, grad_c_last, *ctx.saved_tensors, *ctx.options)
        return *grads, None, None, None, None, None, None

    if not hasattr(torch.ops.modeling_qrnn, forward_name):
        operator = torch.library.custom_op(
            f"modeling_qrnn::{forward_name}",
            forward,
            mutates_args=(),
            schema=f"(Tensor gate_logits, Tensor initial_state, {_MARKS}, {_OPTIONS}) -> (Tensor, Tensor, Tensor)",
        )
        operator.register_fake(fake_pooling)
        operator.register_autograd(differentiate, setup_context=_setup_forward_context)
        operator = torch.library.custom_op(
            f"modeling_qrnn::{backward_name}",
            backward,
            mutates_args=(),
            schema="(Tensor grad_h, Tensor grad_c_last, Tensor gate_logits, Tensor initial_state, Tensor checkpoints, "
            f"{_MARKS}, {_OPTIONS}) -> (Tensor, Tensor)",
        )
        operator.register_fake(_fake_pooling_backward)
        operator.register_autograd(_differentiate_backward, setup_context=_setup_backward_context)
    return _Operators(getattr(torch.ops.modeling_qrnn, forward_name), getattr(torch.ops.modeling_qrnn, backward_name))


# Optional kernels are imported when they are first needed: the import is slow, and may fail. Each has a function of
# its own with its import written out, for the Hub's loader finds a model's files by such lines.


def _numba_pooling(*arguments):
    from .pooling_numba_qrnn import numba_pooling

    return numba_pooling(*arguments)


def _numba_pooling_backward(*arguments):
    from .pooling_numba_qrnn import numba_pooling_backward

    return numba_pooling_backward(*arguments)


def _triton_pooling(*arguments):
    from .pooling_triton_qrnn import triton_pooling

    return triton_pooling(*arguments)


def _triton_pooling_backward(*arguments):
    from .pooling_triton_qrnn import triton_pooling_backward

    return triton_pooling_backward(*arguments)


_KERNEL_CHECKPOINT_STEPS = 64  # as `CHECKPOINT_STEPS` in the files of the kernels

_OPERATORS = {
    "torch": _define("torch", 3, _torch_pooling, _torch_pooling_backward, None),
    "numba": _define("numba", 2, _numba_pooling, _numba_pooling_backward, _KERNEL_CHECKPOINT_STEPS),
    "triton": _define("triton", 2, _triton_pooling, _triton_pooling_backward, _KERNEL_CHECKPOINT_STEPS),
}

# --- the choice of a backend -----------------------------------------------------------------------------------------

_BACKENDS = ("reference", *_OPERATORS)

_IMPLEMENTATIONS: dict[str, Callable[..., tuple[torch.Tensor, ...]]] = {
    "reference": _reference_pooling,
    "step": _step_pooling,
    "exported": _exported_pooling,
    **{backend: operators.forward for backend, operators in _OPERATORS.items()},
}


@torch.compiler.assume_constant_result
def _transforms_are_active() -> bool:
    """In a traced graph a constant: it is traced anew under other transforms."""
    return torch._C._are_functorch_transforms_active()


def _is_transformed(*tensors: torch.Tensor) -> bool:
    """Whether a transform of `torch.func` or forward-mode differentiation is under way.

    The former refuse the gradients of a custom operator, and it would answer the latter with zeros.
    """
    if _transforms_are_active():
        return True
    if torch.compiler.is_compiling():
        return False
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


@functools.cache
def _failure(
    backend: str, pooling: str, candidate_activation: str, dtype: torch.dtype, trains: bool
) -> Exception | None:
    """What is raised when the kernels of an optional package are made ready; `None` if they can be used."""
    try:
        if backend == "numba":
            from .pooling_numba_qrnn import compiled_kernel

            compiled_kernel("forward", pooling, candidate_activation, dtype)
            if trains:
                compiled_kernel("backward", pooling, candidate_activation, dtype)
        elif backend == "triton":
            from .pooling_triton_qrnn import check_driver

            check_driver()
    except Exception as error:  # a package that does not fit its neighbours can fail in any way
        return error
    return None


_logged_fallbacks: set[str] = set()


def _log_fallback(backend: str, failure: Exception) -> None:
    if backend not in _logged_fallbacks:
        _logged_fallbacks.add(backend)
        reason = shorten(f"{type(failure).__name__}: {failure}", width=300)  # in one line
        logger.warning("The recurrence runs in plain PyTorch, without the faster kernels of %r: %s", backend, reason)


@torch.compiler.assume_constant_result  # an import is nothing to trace
def _is_ready(
    backend: str,
    pooling: str,
    candidate_activation: str,
    dtype: torch.dtype,
    trains: bool,
    *,
    is_demanded: bool = False,
) -> bool:
    """Whether a backend can be used. If not, one log line says why, or an error if it was demanded by name."""
    failure = _failure(backend, pooling, candidate_activation, dtype, trains)
    if failure is None:
        return True
    if is_demanded:
        raise ImportError(f"`backend={backend!r}` is not available here: {failure}") from failure
    _log_fallback(backend, failure)
    return False


def _is_served(backend: str, gate_logits: torch.Tensor) -> bool:
    """Whether there are kernels for the dtype on the device."""
    if backend == "numba":
        return gate_logits.device.type == "cpu" and gate_logits.dtype != torch.float16
    if backend == "triton":
        return gate_logits.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
    return True


def _choose_backend(
    backend: str | None,
    gate_logits: torch.Tensor,
    initial_state: torch.Tensor,
    pooling: str,
    candidate_activation: str,
) -> str:
    trains = torch.is_grad_enabled() and (gate_logits.requires_grad or initial_state.requires_grad)
    options = (pooling, candidate_activation, gate_logits.dtype, trains)
    if backend is None:
        if gate_logits.shape[1] == 1:
            return "step"  # nothing is faster than its plain operations
        if _is_transformed(gate_logits, initial_state):
            return "reference"
        if torch.compiler.is_exporting():
            return "exported"  # the program may run where this package is missing
        kernels = "triton" if gate_logits.is_cuda else "numba"
        return kernels if _is_served(kernels, gate_logits) and _is_ready(kernels, *options) else "torch"
    if backend not in _BACKENDS:
        raise ValueError(f"`backend` must be None or one of {list(_BACKENDS)}, got {backend!r}")
    if backend != "reference" and _is_transformed(gate_logits, initial_state):
        raise ValueError(
            "`backend` must be None or 'reference' in transforms of `torch.func` and forward-mode differentiation, "
            f"got {backend!r}"
        )
    if not _is_served(backend, gate_logits):
        raise ValueError(
            f"`backend={backend!r}` has no kernels for {gate_logits.dtype} on {gate_logits.device}: those of 'numba' "
            "are for float32, float64 and bfloat16 on a CPU, those of 'triton' for a GPU"
        )
    _is_ready(backend, *options, is_demanded=True)
    return backend


# --- the public function ---------------------------------------------------------------------------------------------


def check_options(pooling: str, candidate_activation: str, zoneout: float) -> None:
    """Refuse options that `recurrent_pooling` does not know.

    Raises:
        ValueError: naming the option, what came and what is allowed.
    """
    if pooling not in GATES:
        raise ValueError(f"`pooling` must be one of {list(GATES)}, got {pooling!r}")
    if candidate_activation not in _CANDIDATE_ACTIVATIONS:
        raise ValueError(
            f"`candidate_activation` must be one of {list(_CANDIDATE_ACTIVATIONS)}, got {candidate_activation!r}"
        )
    if not 0 <= zoneout < 1:
        raise ValueError(f"`zoneout` must be a probability in [0, 1), got {zoneout}")


def _check_gate_logits(gate_logits: torch.Tensor, pooling: str) -> None:
    if gate_logits.dim() != 3 or gate_logits.shape[1] == 0 or gate_logits.shape[2] % len(GATES[pooling]):
        raise ValueError(
            f"`gate_logits` must have the shape (batch, at least one step, {len(GATES[pooling])} * hidden) for "
            f"pooling={pooling!r}, got {tuple(gate_logits.shape)}"
        )
    if gate_logits.dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise ValueError(f"`gate_logits` must be float32, float64, bfloat16 or float16, got {gate_logits.dtype}")


def _prepare_state(initial_state: torch.Tensor | None, gate_logits: torch.Tensor, pooling: str) -> torch.Tensor:
    shape = (gate_logits.shape[0], gate_logits.shape[2] // len(GATES[pooling]))
    dtype = state_dtype(gate_logits.dtype)
    if initial_state is None:
        return gate_logits.new_zeros(shape, dtype=dtype)
    if initial_state.shape != shape:
        raise ValueError(
            f"`initial_state` must have the shape (batch, hidden) = {shape}, got {tuple(initial_state.shape)}"
        )
    return initial_state.to(dtype)


def _prepare(
    gate_logits: torch.Tensor,
    initial_state: torch.Tensor | None,
    pooling: str,
    attention_mask: torch.Tensor | None,
    segment_ids: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The checked state, real tokens and starts of segments, as the backends take them."""
    _check_gate_logits(gate_logits, pooling)
    others = {"initial_state": initial_state, "attention_mask": attention_mask, "segment_ids": segment_ids}
    for name, tensor in others.items():
        if tensor is not None and tensor.device != gate_logits.device:
            raise ValueError(f"`{name}` must be on {gate_logits.device} like `gate_logits`, got {tensor.device}")
    batch_size, seq_len, _ = gate_logits.shape
    is_real = token_mask(attention_mask, batch_size, seq_len)
    is_start = segment_starts(segment_ids, is_real, batch_size, seq_len)
    return _prepare_state(initial_state, gate_logits, pooling), is_real, is_start


def recurrent_pooling(
    gate_logits: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    *,
    pooling: Pooling = "fo",
    candidate_activation: CandidateActivation = "tanh",
    attention_mask: torch.Tensor | None = None,
    segment_ids: torch.Tensor | None = None,
    zoneout: float = 0.0,
    zoneout_seed: torch.Tensor | None = None,
    training: bool = False,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the QRNN recurrence over pre-activation gates (Bradbury et al. 2017, equations 3 to 6).

    With `z` the activated candidate and `f`, `o`, `i` the sigmoids of the other gates,

    * `"f"`:   `c_t = f_t c_{t-1} + (1 - f_t) z_t`, `h_t = c_t`;
    * `"fo"`:  `c_t = f_t c_{t-1} + (1 - f_t) z_t`, `h_t = o_t c_t`;
    * `"ifo"`: `c_t = f_t c_{t-1} + i_t z_t`, `h_t = o_t c_t`.

    The activations happen in the dtype of the state, inside: gates rounded to 16 bits would lose `1 - f`.

    Args:
        gate_logits: `(batch, seq_len, n_gates * hidden)`, gates in the order z, f, o, i; float32, float64, bfloat16 or
            float16; any strides.
        initial_state: `(batch, hidden)`, the state `c` before the first step; zeros if `None`.
        pooling: `"f"`, `"fo"` or `"ifo"`: which gates there are.
        candidate_activation: `"tanh"` (the paper's), `"identity"` or `"relu"`.
        attention_mask: `(batch, at least seq_len)`, non-zero at real tokens; its last `seq_len` columns count. At a
            pad the state is held and `h` is zero.
        segment_ids: `(batch, seq_len)` integers; where they change, the carried state is dropped
            (`c_t = (1 - f_t) z_t`). The first real token always goes on from `initial_state`.
        zoneout: probability, in [0, 1), with which a unit keeps its state (equation 6): `f := 1`, and `i := 0`. At
            evaluation the expectation acts instead: `1 - f`, and `i`, times `1 - zoneout`.
        zoneout_seed: 0-dim int64 tensor that fixes the random mask; drawn from torch's generator if `None`.
        training: whether zoneout is random.
        backend: `"reference"` (the textbook loop), `"torch"` (everywhere), `"numba"` (compiled for a CPU), `"triton"`
            (compiled for a GPU), or `None` to choose.

    Returns:
        `h` `(batch, seq_len, hidden)` in the dtype of `gate_logits`, and the last state `(batch, hidden)` in float32
        (float64 for float64 input). Gradients flow through both, to `gate_logits` and `initial_state`. Those that
        `"torch"` and `"numba"` return are zero below 2^-100 (float64: 2^-996): subnormal numbers are slow on CPUs.

    Raises:
        ValueError: if a shape, dtype, option or probability is not one of the above, tensors are on different
            devices, or the named backend has no kernels for the dtype on the device, or is not `"reference"` in a
            transform of `torch.func` or forward-mode differentiation.
        ImportError: if the named backend needs a package that is missing or does not work.

    Example:
        >>> h, state = recurrent_pooling(torch.randn(2, 5, 3 * 8))
        >>> h.shape, state.shape
        (torch.Size([2, 5, 8]), torch.Size([2, 8]))
    """
    check_options(pooling, candidate_activation, zoneout)
    initial_state, is_real, is_start = _prepare(gate_logits, initial_state, pooling, attention_mask, segment_ids)
    backend = _choose_backend(backend, gate_logits, initial_state, pooling, candidate_activation)
    if not (training and zoneout):
        zoneout_seed = None
    elif zoneout_seed is None:
        zoneout_seed = torch.randint(2**63 - 1, (), device=gate_logits.device)
    elif not isinstance(zoneout_seed, torch.Tensor) or zoneout_seed.dim() or zoneout_seed.dtype != torch.int64:
        raise ValueError(f"`zoneout_seed` must be a 0-dim int64 tensor, got {zoneout_seed!r}")
    else:
        zoneout_seed = zoneout_seed.to(gate_logits.device)
    h, c_last, *_ = _IMPLEMENTATIONS[backend](
        gate_logits, initial_state, is_real, is_start, zoneout_seed, pooling, candidate_activation, float(zoneout)
    )
    return h, c_last


@torch.no_grad()
def recurrent_states(
    gate_logits: torch.Tensor,
    initial_state: torch.Tensor | None = None,
    *,
    pooling: Pooling = "fo",
    candidate_activation: CandidateActivation = "tanh",
    attention_mask: torch.Tensor | None = None,
    segment_ids: torch.Tensor | None = None,
    zoneout: float = 0.0,
) -> torch.Tensor:
    """The state `c` after every step, at evaluation and without gradients: what a roll-back needs.

    Args:
        gate_logits, initial_state, pooling, candidate_activation, attention_mask, segment_ids, zoneout: as in
            `recurrent_pooling`.

    Returns:
        `(batch, seq_len, hidden)` in float32 (float64 for float64 input); at a pad the state that is held.

    Raises:
        ValueError: as `recurrent_pooling`.

    Example:
        >>> gate_logits = torch.randn(2, 5, 3 * 8)
        >>> states = recurrent_states(gate_logits)
        >>> torch.equal(states[:, -1], recurrent_pooling(gate_logits, backend="torch")[1])
        True
    """
    check_options(pooling, candidate_activation, zoneout)
    initial_state, is_real, is_start = _prepare(gate_logits, initial_state, pooling, attention_mask, segment_ids)
    gates = _activate(
        gate_logits, initial_state.dtype, is_real, is_start, None, pooling, candidate_activation, zoneout
    )
    return _scan(gates.keep, gates.update * gates.z, initial_state, is_start)[:, 1:]
