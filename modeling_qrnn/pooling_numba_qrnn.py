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
"""The recurrent pooling on a CPU, compiled by Numba: activations, recurrence and output gate in one pass over memory.

Chains (batch row, channel) are independent, so the work is cut along them and never along time: time is the outer
loop, channels are the inner one, which the compiler turns into vector instructions. The backward pass starts again
from states that the forward pass saved every `CHECKPOINT_STEPS` steps.

The kernels take addresses and strides rather than arrays: the gates are read in place, wherever they lie, in 16 bits
too, and a compiled kernel fits tensors of any layout.
"""

import functools
import inspect
import logging
import math
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch


try:
    import numba
    from numba import types
    from numba.extending import intrinsic, overload, register_jitable
except ImportError as error:
    raise ImportError('the kernels for CPUs need Numba: pip install "modeling-qrnn[cpu]"') from error


logger = logging.getLogger(__name__)

# Steps between the saved states: of long sequences they take less than 2 % of the memory of the gates.
CHECKPOINT_STEPS = 64

# Threads take whole blocks of channels. The grid of blocks does not depend on the number of threads, so neither does
# where the vector instructions of a row begin and end, nor any bit of the result.
_BLOCK = 128
# The fewest chain steps that are worth waking another thread for: about 0.1 ms of work.
_MIN_STEPS_PER_THREAD = 1 << 16
# Pieces of work that a thread finds on average. They are taken as threads come, for a core may be shared: after a
# matrix product torch's own threads keep theirs busy for some milliseconds, waiting for the next one.
_PIECES_PER_THREAD = 4

_STATE_TYPES = {torch.float32: np.float32, torch.float64: np.float64, torch.bfloat16: np.float32}
# What the memory of a tensor is read as: Numba knows no bfloat16, but it is the upper half of a float32.
_STORAGE_TYPES = {torch.float32: np.float32, torch.float64: np.float64, torch.bfloat16: np.uint16}
# As in pooling_qrnn.py.
_FAINTEST_GRADIENTS: dict[type, float] = {np.float32: 2.0**-100, np.float64: 2.0**-996}

# --- arithmetic ------------------------------------------------------------------------------------------------------
#
# Numba computes int32 + int32 in int64 and float32 * 1 in float64, at half the vector width; hence the constants of an
# exact type, and the conversions after operations on integers.

# A call that stays in the loop over channels would keep it from becoming vector instructions.
_INLINED = {"forceinline": True}


@intrinsic
def _bitcast(typing_context, value, to):
    """The bits of `value` read as another type of the same width."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(to.dtype))

    return to.dtype(value, to), generate


@intrinsic
def _pointer(typing_context, address):
    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.intp), generate


# A function without a body is a name for Numba: in kernels the `@overload` that follows it stands in its place.


def _load(number):
    """A stored number in the arithmetic's type."""


@overload(_load, jit_options=_INLINED)
def _overload_load(number):
    if number == types.uint16:
        return lambda number: _bitcast(np.uint32(np.uint32(number) << np.uint32(16)), np.float32)
    return lambda number: number


def _rounded(number, stored):
    """`number` as it is stored in an array of `stored`: bfloat16 rounds to nearest, ties to even."""


@overload(_rounded, jit_options=_INLINED)
def _overload_rounded(number, stored):
    if stored.dtype == types.uint16:

        def round_to_bfloat16(number, stored):
            bits = _bitcast(number, np.uint32)
            is_odd = np.uint32((bits >> np.uint32(16)) & np.uint32(1))
            rounded = np.uint16(np.uint32(bits + np.uint32(0x7FFF) + is_odd) >> np.uint32(16))
            return np.uint16(0x7FC0) if number != number else rounded  # the carry could turn a NaN into a number

        return round_to_bfloat16
    return lambda number, stored: number


def _exponential(x):
    """`(q, s)` with `e^x = s q + s` and `e^x - 1 = s q + (s - 1)`, the latter exact near zero; `e^x` must be normal.

    `x = n ln 2 + r` with an integer `n` and `|r| <= ln(2) / 2`; `s = 2^n`, and `q = e^r - 1` by its Taylor polynomial.
    A library's exponential is a call per number, which does not vectorise.
    """


@overload(_exponential, jit_options=_INLINED)
def _overload_exponential(x):
    formats: dict[types.Float, Any] = {
        types.float32: (np.float32, np.int32, 23, 127, 7, 15),
        types.float64: (np.float64, np.int64, 52, 1023, 13, 40),
    }
    real, integer, mantissa_bits, bias, degree, ln2_bits = formats[x]
    log2_e = real(math.log2(math.e))
    # ln 2 in two parts, the first with so few bits that its product with n is exact.
    ln2 = Fraction("0.693147180559945309417232121458176568")
    rounded_ln2 = Fraction(round(ln2 * 2**ln2_bits), 2**ln2_bits)
    ln2_high, ln2_low = real(rounded_ln2), real(ln2 - rounded_ln2)
    coefficients = tuple(real(1 / math.factorial(power)) for power in range(degree, 1, -1))
    # Adding 1.5 * 2^mantissa_bits rounds to an integer, and leaves it in the lowest bits of the sum.
    rounder = real(1.5 * 2**mantissa_bits)
    shift, exponent_of_one = integer(mantissa_bits), integer(bias << mantissa_bits)

    def exponential(x):
        shifted = x * log2_e + rounder
        n = shifted - rounder
        r = x - n * ln2_high - n * ln2_low
        polynomial = coefficients[0]
        for coefficient in coefficients[1:]:
            polynomial = polynomial * r + coefficient
        s = _bitcast(integer(integer(_bitcast(shifted, integer) << shift) + exponent_of_one), real)
        return polynomial * r * r + r, s

    return exponential


def _sigmoid(x):
    """`(f, 1 - f)` of the logistic function `f`, each with its full relative precision; NaN stays NaN."""


@overload(_sigmoid, jit_options=_INLINED)
def _overload_sigmoid(x):
    real, limit = (np.float32, np.float32(87)) if x == types.float32 else (np.float64, np.float64(700))
    one = real(1)

    def sigmoid(x):
        # A comparison with NaN is false, so these keep it, as `min` and `max` would not.
        x = limit if x > limit else x
        x = -limit if x < -limit else x
        q, s = _exponential(-x)
        exponential = s * q + s
        f = one / (one + exponential)
        return f, exponential * f

    return sigmoid


def _tanh(x):
    """The hyperbolic tangent, with its full relative precision near zero; NaN stays NaN."""


@overload(_tanh, jit_options=_INLINED)
def _overload_tanh(x):
    # Beyond the limit tanh rounds to one.
    real, limit = (np.float32, np.float32(10)) if x == types.float32 else (np.float64, np.float64(20))
    one, two = real(1), real(2)

    def tanh(x):
        x = limit if x > limit else x
        x = -limit if x < -limit else x
        q, s = _exponential(x + x)
        exponential_minus_one = s * q + (s - one)
        return exponential_minus_one / (exponential_minus_one + two)

    return tanh


@register_jitable(**_INLINED)
def _mix(bits):
    """As `_mix` in pooling_qrnn.py, in 32 bits."""
    bits = np.uint32(np.uint32(bits ^ (bits >> np.uint32(16))) * np.uint32(0x7FEB352D))
    bits = np.uint32(np.uint32(bits ^ (bits >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(bits ^ (bits >> np.uint32(16)))


# --- kernels ---------------------------------------------------------------------------------------------------------
#
# A kernel is compiled for each dtype, pooling and activation, which it sees as constants: the branches on them vanish.
# Marks of whole steps (pads, starts of segments) are branches outside the loop over channels.
#
# Rows of channels are arrays of their own, indexed by the loop variable alone: of any other index the compiler cannot
# tell that it is not negative, and gathers numbers one by one.


@register_jitable(**_INLINED)
def _array(address, shape, dtype):
    return numba.carray(_pointer(address), shape, dtype)


@register_jitable(**_INLINED)
def _gate_rows(address, gate_size, n, dtype, has_output_gate, has_input_gate):
    """`n` logits of each gate, the first at `address`, `gate_size` bytes from gate to gate; z for a missing gate."""
    return (
        _array(address, n, dtype),
        _array(address + gate_size, n, dtype),
        _array(address + (2 * gate_size if has_output_gate else 0), n, dtype),
        _array(address + (3 * gate_size if has_input_gate else 0), n, dtype),
    )


@register_jitable(**_INLINED)
def _channels(first_block, last_block, row, hidden_size):
    """The channels of a batch row in the blocks from `first_block` up to `last_block`, which count over all rows."""
    blocks_per_row = (hidden_size + _BLOCK - 1) // _BLOCK
    first = max(first_block - row * blocks_per_row, 0) * _BLOCK
    last = min((last_block - row * blocks_per_row) * _BLOCK, hidden_size)
    return first, last


@register_jitable(**_INLINED)
def _draw_allowance(allowance, first_channel, row, step, seed, threshold):
    """Zero at the units of one step that are zoned out, one at the others: the hash of `zoneout_mask`."""
    key = _mix(np.uint32(np.uint32(seed) ^ _mix(np.uint32(seed >> 32))))
    key = _mix(np.uint32(key ^ np.uint32(row)))
    key = _mix(np.uint32(key ^ np.uint32(step)))
    for d in range(len(allowance)):
        is_zoned_out = np.int64(_mix(np.uint32(key ^ np.uint32(first_channel + d)))) < threshold
        allowance[d] = 0 if is_zoned_out else 1


@register_jitable(**_INLINED)
def _candidate(logit, is_tanh, is_relu, zero):
    if is_tanh:
        return _tanh(logit)
    if is_relu:
        return zero if logit < zero else logit
    return logit


@register_jitable(**_INLINED)
def _next_state(carried, z, f_logit, i_logit, allowed, has_input_gate, one):
    """Equations 3 to 6; `allowed` is the part of an update that zoneout lets through."""
    f, update = _sigmoid(f_logit)
    if has_input_gate:
        update, _ = _sigmoid(i_logit)
    return (allowed * f + (one - allowed)) * carried + allowed * update * z


@register_jitable(**_INLINED)
def _flush(grad, faintest, zero):
    return zero if abs(grad) < faintest else grad  # NaN stays NaN


def _forward_kernel(pooling: str, candidate_activation: str, real: type, stored: type) -> Callable:
    has_output_gate, has_input_gate = "o" in pooling, "i" in pooling
    is_tanh, is_relu = candidate_activation == "tanh", candidate_activation == "relu"
    item_size = np.dtype(stored).itemsize
    zero, one = real(0), real(1)

    def forward(
        first_block, last_block, batch_size, seq_len, hidden_size, gate_logits, row_stride, step_stride, is_real,
        is_start, allowed, seed, threshold, initial_state, h, c_last, checkpoints,
    ):  # fmt: skip
        real_tokens = _array(is_real, (batch_size, seq_len), np.bool_)
        starts = _array(is_start, (batch_size, seq_len), np.bool_)
        initial_states = _array(initial_state, (batch_size, hidden_size), real)
        outputs = _array(h, (batch_size, seq_len, hidden_size), stored)
        last_states = _array(c_last, (batch_size, hidden_size), real)
        n_checkpoints = (seq_len + CHECKPOINT_STEPS - 1) // CHECKPOINT_STEPS
        saved = _array(checkpoints, (batch_size, n_checkpoints, hidden_size), real)

        gate_size = hidden_size * item_size
        blocks_per_row = (hidden_size + _BLOCK - 1) // _BLOCK
        for row in range(first_block // blocks_per_row, (last_block - 1) // blocks_per_row + 1):
            first, last = _channels(first_block, last_block, row, hidden_size)
            c = initial_states[row, first:last].copy()
            allowance = np.full(last - first, real(allowed))
            for t in range(seq_len):
                if t % CHECKPOINT_STEPS == 0:
                    saved[row, t // CHECKPOINT_STEPS, first:last] = c
                h_t = outputs[row, t, first:last]
                if is_real and not real_tokens[row, t]:
                    h_t[:] = 0
                    continue
                if threshold:
                    _draw_allowance(allowance, first, row, t, seed, threshold)
                is_first = is_start and starts[row, t]
                address = gate_logits + (row * row_stride + t * step_stride + first) * item_size
                zs, fs, os, ins = _gate_rows(address, gate_size, last - first, stored, has_output_gate, has_input_gate)
                for d in range(last - first):
                    z = _candidate(_load(zs[d]), is_tanh, is_relu, zero)
                    carried = zero if is_first else c[d]
                    new = _next_state(carried, z, _load(fs[d]), _load(ins[d]), allowance[d], has_input_gate, one)
                    c[d] = new
                    if has_output_gate:
                        o, _ = _sigmoid(_load(os[d]))
                        new = o * new
                    h_t[d] = _rounded(new, h_t)
            last_states[row, first:last] = c

    return forward


def _backward_kernel(pooling: str, candidate_activation: str, real: type, stored: type) -> Callable:
    has_output_gate, has_input_gate = "o" in pooling, "i" in pooling
    is_tanh, is_relu = candidate_activation == "tanh", candidate_activation == "relu"
    n_gates = 2 + has_output_gate + has_input_gate
    item_size = np.dtype(stored).itemsize
    zero, one, faintest = real(0), real(1), real(_FAINTEST_GRADIENTS[real])

    def backward(
        first_block, last_block, batch_size, seq_len, hidden_size, gate_logits, row_stride, step_stride, is_real,
        is_start, allowed, seed, threshold, checkpoints, grad_h, grad_h_row_stride, grad_h_step_stride, grad_c_last,
        grad_gate_logits, grad_initial_state,
    ):  # fmt: skip
        real_tokens = _array(is_real, (batch_size, seq_len), np.bool_)
        starts = _array(is_start, (batch_size, seq_len), np.bool_)
        n_checkpoints = (seq_len + CHECKPOINT_STEPS - 1) // CHECKPOINT_STEPS
        saved = _array(checkpoints, (batch_size, n_checkpoints, hidden_size), real)
        grad_last_states = _array(grad_c_last, (batch_size, hidden_size), real)
        grad_initial_states = _array(grad_initial_state, (batch_size, hidden_size), real)

        gate_size = hidden_size * item_size
        blocks_per_row = (hidden_size + _BLOCK - 1) // _BLOCK
        states: np.ndarray = np.empty((CHECKPOINT_STEPS + 1, _BLOCK), real)
        for block in range(first_block, last_block):
            row = block // blocks_per_row
            first, last = _channels(block, block + 1, row, hidden_size)
            n = last - first
            grad_c = grad_last_states[row, first:last].copy()
            allowance = np.full(n, real(allowed))
            for chunk in range(n_checkpoints - 1, -1, -1):
                # Replay the states of the chunk, the state before its first step in front ...
                chunk_start = chunk * CHECKPOINT_STEPS
                chunk_len = min(CHECKPOINT_STEPS, seq_len - chunk_start)
                states[0, :n] = saved[row, chunk, first:last]
                for step in range(chunk_len):
                    t = chunk_start + step
                    c, new_c = states[step, :n], states[step + 1, :n]
                    if is_real and not real_tokens[row, t]:
                        new_c[:] = c
                        continue
                    if threshold:
                        _draw_allowance(allowance, first, row, t, seed, threshold)
                    is_first = is_start and starts[row, t]
                    address = gate_logits + (row * row_stride + t * step_stride + first) * item_size
                    zs, fs, os, ins = _gate_rows(address, gate_size, n, stored, has_output_gate, has_input_gate)
                    for d in range(n):
                        z = _candidate(_load(zs[d]), is_tanh, is_relu, zero)
                        carried = zero if is_first else c[d]
                        new_c[d] = _next_state(
                            carried, z, _load(fs[d]), _load(ins[d]), allowance[d], has_input_gate, one
                        )
                # ... and walk back over it.
                for step in range(chunk_len - 1, -1, -1):
                    t = chunk_start + step
                    c, new_c = states[step, :n], states[step + 1, :n]
                    address = grad_gate_logits + ((row * seq_len + t) * n_gates * hidden_size + first) * item_size
                    grad_zs, grad_fs, grad_os, grad_is = _gate_rows(
                        address, gate_size, n, stored, has_output_gate, has_input_gate
                    )
                    if is_real and not real_tokens[row, t]:
                        grad_zs[:] = 0
                        grad_fs[:] = 0
                        grad_os[:] = 0
                        grad_is[:] = 0
                        continue
                    if threshold:
                        _draw_allowance(allowance, first, row, t, seed, threshold)
                    is_first = is_start and starts[row, t]
                    address = gate_logits + (row * row_stride + t * step_stride + first) * item_size
                    zs, fs, os, ins = _gate_rows(address, gate_size, n, stored, has_output_gate, has_input_gate)
                    address = grad_h + (row * grad_h_row_stride + t * grad_h_step_stride + first) * item_size
                    grad_h_t = _array(address, n, stored)
                    for d in range(n):
                        z = _candidate(_load(zs[d]), is_tanh, is_relu, zero)
                        f, not_f = _sigmoid(_load(fs[d]))
                        grad = _load(grad_h_t[d])
                        if has_output_gate:
                            o, not_o = _sigmoid(_load(os[d]))
                            grad_os[d] = _rounded(_flush(grad * new_c[d] * o * not_o, faintest, zero), grad_os)
                            grad = grad * o
                        grad = grad + grad_c[d]
                        carried = zero if is_first else c[d]
                        # c = (a f + 1 - a) carried + update z, with update = a i in ifo-pooling, a (1 - f) otherwise.
                        a = allowance[d]
                        if has_input_gate:
                            i, not_i = _sigmoid(_load(ins[d]))
                            grad_is[d] = _rounded(_flush(a * grad * z * i * not_i, faintest, zero), grad_is)
                            grad_f = a * grad * carried * f * not_f
                            update = a * i
                        else:
                            grad_f = a * grad * (carried - z) * f * not_f
                            update = a * not_f
                        grad_fs[d] = _rounded(_flush(grad_f, faintest, zero), grad_fs)
                        grad_z = grad * update
                        if is_tanh:
                            grad_z = grad_z * (one - z * z)
                        if is_relu:
                            grad_z = zero if z <= zero else grad_z  # not a product: 0 * inf is no number
                        grad_zs[d] = _rounded(_flush(grad_z, faintest, zero), grad_zs)
                        # Here too: arithmetic on subnormal numbers is slow.
                        grad_c[d] = zero if is_first else _flush((a * f + (one - a)) * grad, faintest, zero)
            for d in range(n):
                grad_initial_states[row, first + d] = _flush(grad_c[d], faintest, zero)

    return backward


_KERNELS = {"forward": _forward_kernel, "backward": _backward_kernel}


@functools.cache
def compiled_kernel(
    name: Literal["forward", "backward"], pooling: str, candidate_activation: str, dtype: torch.dtype
) -> Callable[..., None]:
    """The kernel for these options, compiled, or loaded from the disk where an earlier process left it."""
    function = _KERNELS[name](pooling, candidate_activation, _STATE_TYPES[dtype], _STORAGE_TYPES[dtype])
    parameters = inspect.signature(function).parameters
    signature = types.void(*(types.float64 if parameter == "allowed" else types.intp for parameter in parameters))
    message = "Making the %s kernel of %s-pooling for %s ready for this CPU: some seconds, the first time"
    announcement = threading.Timer(1.0, logger.warning, (message, name, pooling, dtype))
    announcement.daemon = True
    announcement.start()
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
    try:
        return numba.njit(signature, cache=True, **options)(function)
    except (RuntimeError, OSError):  # no folder to keep it in, or no room there
        return numba.njit(signature, **options)(function)
    finally:
        announcement.cancel()


# --- threads ---------------------------------------------------------------------------------------------------------


@functools.cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, thread_name_prefix="qrnn-pooling")


# A forked process (of a DataLoader, say) inherits the pool's record of its threads, but not the threads.
if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _run(kernel: Callable[..., None], sizes: tuple[int, int, int], *arguments: torch.Tensor | float | None) -> None:
    """Run a kernel over all chains, on as many threads as torch uses, the calling one among them.

    Args:
        kernel: takes the blocks to work on, `sizes` and the arguments, of tensors the addresses.
        sizes: batch size, sequence length and hidden size.
        arguments: tensors, numbers, and `None` for a tensor that is not there.
    """
    batch_size, seq_len, hidden_size = sizes
    n_blocks = batch_size * -(-hidden_size // _BLOCK)
    n_threads = min(torch.get_num_threads(), n_blocks, 1 + batch_size * seq_len * hidden_size // _MIN_STEPS_PER_THREAD)
    if n_threads == 1:
        kernel(0, n_blocks, *sizes, *_addresses(arguments))
        return
    n_pieces = min(n_blocks, n_threads * _PIECES_PER_THREAD)
    pieces = deque(pairwise(n_blocks * piece // n_pieces for piece in range(n_pieces + 1)))

    # Emptied at the end: a helper that was not needed may lie in the queue for long, and must not hold the tensors.
    held = [arguments]

    def work() -> None:
        tensors = held[0]  # which live while somebody works on them, whatever interrupts the others
        numbers = _addresses(tensors)
        while True:
            try:
                piece = pieces.popleft()
            except IndexError:  # nothing is left
                return
            kernel(*piece, *sizes, *numbers)

    helpers: list[Future[None]] = [Future() for _ in range(n_threads - 1)]
    try:
        with suppress(RuntimeError):  # no more threads, as while Python shuts down: the others do the work
            for helper in helpers:
                _pool(torch.get_num_threads() - 1).submit(_help, helper, work)
        work()
    finally:
        pieces.clear()
        for helper in helpers:
            if not helper.cancel():  # one that has not begun has nothing to do
                helper.result()
        held.clear()


def _addresses(arguments: tuple[torch.Tensor | float | None, ...]) -> list[float]:
    """What a kernel takes: numbers, and of tensors where they lie."""
    return [argument.data_ptr() if isinstance(argument, torch.Tensor) else argument or 0 for argument in arguments]


def _help(helper: Future[None], work: Callable[[], None]) -> None:
    """Do the work unless the helper was cancelled. (The future that `submit` returns is lost if a thread fails.)"""
    if not helper.set_running_or_notify_cancel():
        return
    try:
        work()
    except BaseException as error:
        helper.set_exception(error)
    else:
        helper.set_result(None)


# --- the two operations ----------------------------------------------------------------------------------------------


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, copied only if its channels do not lie side by side."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _gate_arguments(
    gate_logits: torch.Tensor,
    is_real: torch.Tensor | None,
    is_start: torch.Tensor | None,
    zoneout_seed: torch.Tensor | None,
    zoneout: float,
) -> tuple[torch.Tensor | float | None, ...]:
    """What both kernels take of the gates: where they lie, the marks, and how zoneout acts."""
    gate_logits = _rows(gate_logits)
    marks = (None if mark is None else mark.contiguous() for mark in (is_real, is_start))
    allowed, seed, threshold = 1.0 - zoneout, 0, 0
    if zoneout_seed is not None:
        allowed, seed, threshold = 1.0, int(zoneout_seed), round(zoneout * 2**32)
    return gate_logits, gate_logits.stride(0), gate_logits.stride(1), *marks, allowed, seed, threshold


def numba_pooling(
    gate_logits: torch.Tensor,
    initial_state: torch.Tensor,
    is_real: torch.Tensor | None,
    is_start: torch.Tensor | None,
    zoneout_seed: torch.Tensor | None,
    pooling: str,
    candidate_activation: str,
    zoneout: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The recurrence over pre-activation gates on a CPU (Bradbury et al. 2017, equations 3 to 6).

    Args:
        gate_logits: `(batch, seq_len, n_gates * hidden)` in float32, float64 or bfloat16, gates in the order z,
            f, o, i; read in place if its last dimension is contiguous.
        initial_state: `(batch, hidden)` in float32, or float64 for float64 logits.
        is_real: `(batch, seq_len)` bool or `None`, false at pads.
        is_start: `(batch, seq_len)` bool or `None`, true where a packed sequence begins.
        zoneout_seed: 0-dim int64 of random zoneout; `None` for its expectation.
        pooling: `"f"`, `"fo"` or `"ifo"`.
        candidate_activation: `"tanh"`, `"identity"` or `"relu"`.
        zoneout: probability in [0, 1).

    Returns:
        `h` `(batch, seq_len, hidden)` in the dtype of the logits, the last state `(batch, hidden)`, and the states
        before steps 0, 64, 128... `(batch, ceil(seq_len / 64), hidden)`, from which the backward pass starts.

    Example:
        >>> arguments = (None, None, None, "fo", "tanh", 0.0)
        >>> h, c_last, checkpoints = numba_pooling(torch.randn(2, 100, 3 * 8), torch.zeros(2, 8), *arguments)
        >>> h.shape, c_last.shape, checkpoints.shape
        (torch.Size([2, 100, 8]), torch.Size([2, 8]), torch.Size([2, 2, 8]))
    """
    batch_size, seq_len, _ = gate_logits.shape
    hidden_size = initial_state.shape[1]
    h = gate_logits.new_empty(batch_size, seq_len, hidden_size)
    c_last = initial_state.new_empty(batch_size, hidden_size)
    checkpoints = initial_state.new_empty(batch_size, -(-seq_len // CHECKPOINT_STEPS), hidden_size)
    if h.numel():
        _run(
            compiled_kernel("forward", pooling, candidate_activation, gate_logits.dtype),
            (batch_size, seq_len, hidden_size),
            *_gate_arguments(gate_logits, is_real, is_start, zoneout_seed, zoneout),
            initial_state.contiguous(),
            h,
            c_last,
            checkpoints,
        )
    return h, c_last, checkpoints


def numba_pooling_backward(
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
    """The gradients of `gate_logits` and `initial_state` for those of `h` and the last state.

    Args:
        grad_h, grad_c_last: like `h` and the last state.
        checkpoints: as `numba_pooling` returned them.
        gate_logits, initial_state, is_real, is_start, zoneout_seed, pooling, candidate_activation, zoneout: as
            `numba_pooling` took them.

    Returns:
        `(batch, seq_len, n_gates * hidden)` in the dtype of the logits, and `(batch, hidden)` in that of
        `initial_state`, both contiguous.

    Example:
        >>> inputs, options = (torch.randn(2, 5, 3 * 8), torch.zeros(2, 8)), (None, None, None, "fo", "tanh", 0.0)
        >>> h, c_last, checkpoints = numba_pooling(*inputs, *options)
        >>> gradients = numba_pooling_backward(torch.ones_like(h), c_last, *inputs, checkpoints, *options)
        >>> [gradient.shape for gradient in gradients]
        [torch.Size([2, 5, 24]), torch.Size([2, 8])]
    """
    batch_size, seq_len, _ = gate_logits.shape
    hidden_size = initial_state.shape[1]
    grad_gate_logits = gate_logits.new_empty(gate_logits.shape)
    grad_initial_state = initial_state.new_empty(batch_size, hidden_size)
    if grad_gate_logits.numel():
        grad_h = _rows(grad_h)
        _run(
            compiled_kernel("backward", pooling, candidate_activation, gate_logits.dtype),
            (batch_size, seq_len, hidden_size),
            *_gate_arguments(gate_logits, is_real, is_start, zoneout_seed, zoneout),
            checkpoints.contiguous(),
            grad_h,
            grad_h.stride(0),
            grad_h.stride(1),
            grad_c_last.contiguous(),
            grad_gate_logits,
            grad_initial_state,
        )
    return grad_gate_logits, grad_initial_state
