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
"""The recurrent pooling as Triton kernels.

The kernels are bound by memory traffic, and everything here follows from that. The logits are read where the gate
projection left them and activated in registers. A program owns a block of channels of one row of the batch and walks
over time with several steps of loads in flight. Where batch times channels are too few to fill the chip, time is cut
into chunks: one pass summarises what each chunk does to the state (`c -> keep * c + gain`), a small one runs through
the summaries, and the walk then starts in all chunks at once. The backward pass keeps no states but one in
`CHECKPOINT_STEPS`; it replays the steps between two checkpoints into a scratch small enough to stay in the L2 cache.

The file reads top to bottom: constants, device functions, forward kernels, backward kernel, launch rule, the two
public functions. `p_` is a pointer, `b_` a block of values (a scalar where all channels share it), `o_` offsets, `m_`
a mask, `i_` an index; gates are numbered as they lie in `gate_logits`: z, f, o, i. The kernels also run in Triton's
interpreter (`TRITON_INTERPRET=1`) on CPU tensors, so they keep to what it knows: no inline assembly, no libdevice.
"""

import math
from typing import NamedTuple

import torch


try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError('the kernels for GPUs need Triton: pip install "modeling-qrnn[gpu]"') from error


# The backward pass replays this many steps at a time. One float32 state in 64 steps is 1 % of 16-bit fo-logits.
CHECKPOINT_STEPS = 64

_N_GATES = {"f": 2, "fo": 3, "ifo": 4}

_LOG2_E = tl.constexpr(1.4426950408889634)


# --- device functions ------------------------------------------------------------------------------------------------


@triton.jit
def _logistic(b_x, SCALE: tl.constexpr):
    """`1 / (1 + e^(-SCALE x))`: exact at both infinities, NaN for NaN."""
    b_denominator = 1.0 + tl.exp2(b_x * (-SCALE * _LOG2_E))
    if b_x.dtype == tl.float64:
        b_y = 1.0 / b_denominator
    else:
        # One special-function instruction and a product, where a float32 division is eight; relative error 3e-7.
        b_root = tl.rsqrt(b_denominator)
        b_y = b_root * b_root
    return b_y


@triton.jit
def _tanh(b_x, IS_FINE: tl.constexpr):
    """Without `IS_FINE` exact to 1e-7 only, which near zero is no digit at all.

    Logits of 16 bits are left so, for speed: below 5e-5 that is coarser than bfloat16.
    """
    b_y = 1.0 - 2.0 * _logistic(b_x, SCALE=-2.0)
    if IS_FINE:  # the Taylor series up to x^11, at 0.1 exact to 4e-15
        b_s = b_x * b_x
        b_series = 62.0 / 2835.0 - b_s * (1382.0 / 155925.0)
        b_series = 1.0 - b_s * (1.0 / 3.0 - b_s * (2.0 / 15.0 - b_s * (17.0 / 315.0 - b_s * b_series)))
        b_y = tl.where(tl.abs(b_x) < 0.1, b_x * b_series, b_y)
    return b_y


@triton.jit
def _candidate(b_x, ACTIVATION: tl.constexpr, IS_FINE: tl.constexpr):
    if ACTIVATION == "tanh":
        b_z = _tanh(b_x, IS_FINE)
    elif ACTIVATION == "relu":
        b_z = tl.where(b_x < 0.0, 0.0, b_x)  # unlike a maximum, it lets NaN through
    else:
        b_z = b_x
    return b_z


@triton.jit
def _candidate_backward(b_grad_z, b_z, ACTIVATION: tl.constexpr):
    """The gradient of the candidate's logit, from the activated candidate; at NaN and infinity as autograd has it."""
    if ACTIVATION == "tanh":
        b_grad = b_grad_z * (1.0 - b_z * b_z)
    elif ACTIVATION == "relu":
        b_grad = tl.where(b_z <= 0.0, 0.0, b_grad_z)
    else:
        b_grad = b_grad_z
    return b_grad


@triton.jit
def _mix(b_bits):
    """The hash of `zoneout_mask`; unsigned 32-bit products wrap around by themselves."""
    b_bits = (b_bits ^ (b_bits >> 16)) * 0x7FEB352D
    b_bits = (b_bits ^ (b_bits >> 15)) * 0x846CA68B
    return b_bits ^ (b_bits >> 16)


@triton.jit
def _zoneout_key(p_seed, i_b):
    """The hash of seed and row, a scalar; the seed is read here, so that the host need not wait for it."""
    if p_seed is None:
        b_key = tl.full((), 0, tl.uint32)
    else:
        b_seed = tl.load(p_seed)
        b_key = _mix((b_seed & 0xFFFFFFFF).to(tl.uint32) ^ _mix(((b_seed >> 32) & 0xFFFFFFFF).to(tl.uint32)))
        b_key = _mix(b_key ^ i_b.to(tl.uint32))
    return b_key


@triton.jit
def _load_mark(p_marks, i_b, i_t, seq_len, DEFAULT: tl.constexpr):
    """One step's mark of a row. Without marks a constant, and the compiler drops whatever hangs on it."""
    if p_marks is None:
        b_mark = tl.full((), DEFAULT, tl.int1)
    else:
        b_mark = tl.load(p_marks + i_b * seq_len + i_t) != 0
    return b_mark


@triton.jit
def _load_marks(p_real, p_start, i_b, i_t, seq_len):
    """Whether a step is real, and whether it starts a segment."""
    b_real = _load_mark(p_real, i_b, i_t, seq_len, DEFAULT=True)
    return b_real, _load_mark(p_start, i_b, i_t, seq_len, DEFAULT=False) & b_real


@triton.jit
def _load_gate(p_row, GATE: tl.constexpr, o_d, m_d, hidden, stride_d, STATE: tl.constexpr):
    return tl.load(p_row + (GATE * hidden + o_d) * stride_d, mask=m_d, other=0.0).to(STATE)


@triton.jit
def _allow(b_x, p_seed, b_key, i_t, o_d, ZONEOUT: tl.constexpr):
    """What zoneout leaves of an update, or of its gradient: all or nothing in training, else its expectation."""
    if p_seed is not None:
        b_hash = _mix(_mix(b_key ^ i_t.to(tl.uint32)) ^ o_d.to(tl.uint32))
        # The threshold can be 2^32.
        b_x = tl.where(b_hash.to(tl.int64) < ZONEOUT, 0.0, b_x)
    elif ZONEOUT != 0:
        b_x = b_x * (1.0 - ZONEOUT)
    return b_x


@triton.jit
def _load_transition(
    p_row, o_d, m_d, hidden, stride_d, p_seed, b_key, i_t,
    POOLING: tl.constexpr, ACTIVATION: tl.constexpr, ZONEOUT: tl.constexpr, STATE: tl.constexpr,
):  # fmt: skip
    """All that takes one state to the next: the candidate, `f`, `1 - f`, the gate of the candidate, and what zoneout
    leaves of the last two. The compiler drops what a caller does not use, loads included.

    `1 - f` is a sigmoid of its own, of `-x`: as a difference it would lose its digits where f is near 1, which is
    where a long memory lives.
    """
    IS_FINE: tl.constexpr = p_row.dtype.element_ty.primitive_bitwidth > 16
    b_z = _candidate(_load_gate(p_row, 0, o_d, m_d, hidden, stride_d, STATE), ACTIVATION, IS_FINE)
    b_f_logit = _load_gate(p_row, 1, o_d, m_d, hidden, stride_d, STATE)
    b_f = _logistic(b_f_logit, SCALE=1.0)
    b_not_f = _logistic(b_f_logit, SCALE=-1.0)
    b_forget = _allow(b_not_f, p_seed, b_key, i_t, o_d, ZONEOUT)
    if POOLING == "ifo":
        b_i = _logistic(_load_gate(p_row, 3, o_d, m_d, hidden, stride_d, STATE), SCALE=1.0)
        b_update = _allow(b_i, p_seed, b_key, i_t, o_d, ZONEOUT)
    else:
        b_i = b_not_f
        b_update = b_forget
    return b_z, b_f, b_not_f, b_i, b_forget, b_update


@triton.jit
def _recur(b_c, b_z, b_forget, b_update, b_real, b_start, POOLING: tl.constexpr):
    """One step. Added to the old state rather than mixed with it, so that `1 - f` keeps its digits; a pad holds."""
    b_carried = tl.where(b_start, 0.0, b_c)
    if POOLING == "ifo":
        b_new = b_carried + (b_update * b_z - b_forget * b_carried)
    else:
        b_new = b_carried + b_forget * (b_z - b_carried)
    return tl.where(b_real, b_new, b_c)


@triton.jit
def _store_grad(p_row, GATE: tl.constexpr, b_grad, b_real, o_d, m_d, hidden):
    b_grad = tl.where(b_real, b_grad, 0.0).to(p_row.dtype.element_ty)
    tl.store(p_row + GATE * hidden + o_d, b_grad, mask=m_d)


@triton.jit
def _locate(i_item, hidden, n_chunks, BLOCK: tl.constexpr):
    """Row, chunk and channels of a piece of work; neighbours in memory are neighbours in time."""
    n_blocks = tl.cdiv(hidden, BLOCK)
    o_d = (i_item % n_blocks) * BLOCK + tl.arange(0, BLOCK)
    i_chunk = (i_item // n_blocks) % n_chunks
    i_b = i_item // n_blocks // n_chunks
    return i_b, i_chunk, o_d, o_d < hidden


# Triton would compile a kernel anew for a size that is 1, or where divisibility by 16 comes and goes with it. What the
# width of loads depends on is the largest power of two that divides all rows' beginnings: `_launch` finds it, passes
# `hidden` and the strides divided by it, and compiles it in as ALIGN.
_SIZES = ["seq_len", "hidden", "chunk_steps", "n_chunks", "n_summaries", "n_items"]
_SIZES += [f"stride_{tensor}_{dim}" for tensor in ("logits", "grad", "carry") for dim in "bt"]


@triton.jit
def _stride(stride, ALIGN: tl.constexpr):
    return tl.cast(stride, tl.int64) * ALIGN


# --- the split over time ---------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=_SIZES)
def pooling_summary_kernel(
    p_logits, p_grad_h, p_real, p_start, p_seed, p_summaries,
    stride_logits_b, stride_logits_t, stride_logits_d, stride_grad_b, stride_grad_t, stride_grad_d,
    seq_len, hidden, chunk_steps, n_summaries,
    POOLING: tl.constexpr, ACTIVATION: tl.constexpr, ZONEOUT: tl.constexpr, STATE: tl.constexpr,
    IS_BACKWARD: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """What a chunk does to the state that enters it: `c -> keep * c + gain`, in (batch, n_summaries, 2, hidden).

    The same holds for the gradient that enters a chunk at its end, and a walk forward gathers that too: what step t
    adds reaches the chunk's beginning through all the keeps up to t. The last chunk needs no summary forward, nor does
    the first one backward.
    """
    hidden *= ALIGN
    stride_logits_b, stride_logits_t = _stride(stride_logits_b, ALIGN), _stride(stride_logits_t, ALIGN)
    stride_grad_b, stride_grad_t = _stride(stride_grad_b, ALIGN), _stride(stride_grad_t, ALIGN)
    i_b, i_summary, o_d, m_d = _locate(tl.program_id(0).to(tl.int64), hidden, n_summaries, BLOCK)
    i_first = i_summary * chunk_steps
    if IS_BACKWARD:
        i_first += chunk_steps
    n_steps = tl.minimum(chunk_steps, seq_len - i_first).to(tl.int32)
    b_key = _zoneout_key(p_seed, i_b)

    p_row = p_logits + i_b * stride_logits_b + i_first * stride_logits_t
    p_grad_row = None
    if IS_BACKWARD:
        p_grad_row = p_grad_h + i_b * stride_grad_b + i_first * stride_grad_t

    b_keep = tl.full((BLOCK,), 1.0, STATE)
    b_gain = tl.zeros((BLOCK,), STATE)
    for i_step in tl.range(n_steps, num_stages=STAGES):
        i_t = i_first + i_step
        b_z, _, _, _, b_forget, b_update = _load_transition(
            p_row, o_d, m_d, hidden, stride_logits_d, p_seed, b_key, i_t, POOLING, ACTIVATION, ZONEOUT, STATE
        )
        b_real, b_start = _load_marks(p_real, p_start, i_b, i_t, seq_len)
        b_new_keep = b_keep - b_forget * b_keep
        if p_start is not None:
            # A keep of -1: a start has cut the chunk in two, and nothing comes through, not even the NaN of 0 * NaN.
            b_new_keep = tl.where(b_start | (b_keep < -0.5), -1.0, b_new_keep)
        b_keep = tl.where(b_real, b_new_keep, b_keep)
        if IS_BACKWARD:
            b_grad_c = _load_gate(p_grad_row, 0, o_d, m_d, hidden, stride_grad_d, STATE)
            p_grad_row += stride_grad_t
            if POOLING != "f":
                b_grad_c *= _logistic(_load_gate(p_row, 2, o_d, m_d, hidden, stride_logits_d, STATE), SCALE=1.0)
            b_reaches = b_real if p_start is None else b_real & ((b_keep < -0.5) == 0)  # a NaN does
            b_gain = tl.where(b_reaches, b_gain + b_keep * b_grad_c, b_gain)
        else:
            b_gain = _recur(b_gain, b_z, b_forget, b_update, b_real, b_start, POOLING)
        p_row += stride_logits_t

    p_summary = p_summaries + (i_b * n_summaries + i_summary) * 2 * hidden + o_d
    tl.store(p_summary, b_keep, mask=m_d)
    tl.store(p_summary + hidden, b_gain, mask=m_d)


@triton.jit(do_not_specialize=_SIZES)
def pooling_scan_kernel(
    p_first, p_summaries, p_carry,
    stride_carry_b, stride_carry_t, stride_carry_d,
    hidden, n_summaries,
    IS_BACKWARD: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """What enters each chunk, in `p_carry` (batch, n_summaries + 1, hidden), from what enters the first one.

    Backward the first one is the last, and what enters is a gradient.
    """
    hidden *= ALIGN
    stride_carry_b, stride_carry_t = _stride(stride_carry_b, ALIGN), _stride(stride_carry_t, ALIGN)
    i_b, _, o_d, m_d = _locate(tl.program_id(0).to(tl.int64), hidden, 1, BLOCK)
    p_carry += i_b * stride_carry_b
    i_first = n_summaries if IS_BACKWARD else 0
    b_c = tl.load(p_first + i_b * hidden + o_d, mask=m_d, other=0.0)
    tl.store(p_carry + i_first * stride_carry_t + o_d * stride_carry_d, b_c, mask=m_d)
    for i_step in tl.range(n_summaries, num_stages=STAGES):
        i_summary = n_summaries - 1 - i_step if IS_BACKWARD else i_step
        p_summary = p_summaries + (i_b * n_summaries + i_summary) * 2 * hidden + o_d
        b_keep = tl.load(p_summary, mask=m_d, other=0.0)
        b_gain = tl.load(p_summary + hidden, mask=m_d, other=0.0)
        b_c = tl.where(b_keep < -0.5, b_gain, b_keep * b_c + b_gain)
        i_next = i_summary if IS_BACKWARD else i_summary + 1
        tl.store(p_carry + i_next * stride_carry_t + o_d * stride_carry_d, b_c, mask=m_d)


# --- forward ---------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=_SIZES)
def pooling_fwd_kernel(
    p_logits, p_carry, p_real, p_start, p_seed, p_h, p_c_last, p_checkpoints,
    stride_logits_b, stride_logits_t, stride_logits_d, stride_carry_b, stride_carry_t, stride_carry_d,
    seq_len, hidden, chunk_steps, n_chunks,
    POOLING: tl.constexpr, ACTIVATION: tl.constexpr, ZONEOUT: tl.constexpr, STATE: tl.constexpr,
    CHECKPOINT: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Walk through one chunk from the state in `p_carry`; the only chunk, unless time is split."""
    hidden *= ALIGN
    stride_logits_b, stride_logits_t = _stride(stride_logits_b, ALIGN), _stride(stride_logits_t, ALIGN)
    stride_carry_b, stride_carry_t = _stride(stride_carry_b, ALIGN), _stride(stride_carry_t, ALIGN)
    i_b, i_chunk, o_d, m_d = _locate(tl.program_id(0).to(tl.int64), hidden, n_chunks, BLOCK)
    i_first = i_chunk * chunk_steps
    n_steps = tl.minimum(chunk_steps, seq_len - i_first).to(tl.int32)
    b_key = _zoneout_key(p_seed, i_b)
    p_row = p_logits + i_b * stride_logits_b + i_first * stride_logits_t
    p_h += (i_b * seq_len + i_first) * hidden
    p_checkpoints += (i_b * tl.cdiv(seq_len, CHECKPOINT) + i_first // CHECKPOINT) * hidden

    p_start_state = p_carry + i_b * stride_carry_b + i_chunk * stride_carry_t + o_d * stride_carry_d
    b_c = tl.load(p_start_state, mask=m_d, other=0.0)
    for i_step in tl.range(n_steps, num_stages=STAGES):
        # Not under an `if`, which would stand in the way of the loop's pipeline.
        n_stored = tl.where(i_step % CHECKPOINT == 0, hidden, 0)
        tl.store(p_checkpoints + i_step // CHECKPOINT * hidden + o_d, b_c, mask=o_d < n_stored)

        i_t = i_first + i_step
        b_z, _, _, _, b_forget, b_update = _load_transition(
            p_row, o_d, m_d, hidden, stride_logits_d, p_seed, b_key, i_t, POOLING, ACTIVATION, ZONEOUT, STATE
        )
        b_real, b_start = _load_marks(p_real, p_start, i_b, i_t, seq_len)
        b_c = _recur(b_c, b_z, b_forget, b_update, b_real, b_start, POOLING)
        b_h = b_c
        if POOLING != "f":
            b_h *= _logistic(_load_gate(p_row, 2, o_d, m_d, hidden, stride_logits_d, STATE), SCALE=1.0)
        tl.store(p_h + o_d, tl.where(b_real, b_h, 0.0).to(p_h.dtype.element_ty), mask=m_d)
        # Of the rows in flight, loads see the newest and stores the oldest: each has its own pointer, for a common
        # counter would be handed through all the stages of the pipeline.
        p_row += stride_logits_t
        p_h += hidden

    if i_chunk == n_chunks - 1:
        tl.store(p_c_last + i_b * hidden + o_d, b_c, mask=m_d)


# --- backward --------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=_SIZES)
def pooling_bwd_kernel(
    p_logits, p_grad_h, p_carry, p_checkpoints, p_real, p_start, p_seed, p_grad_logits, p_grad_state, p_scratch,
    stride_logits_b, stride_logits_t, stride_logits_d, stride_grad_b, stride_grad_t, stride_grad_d,
    stride_carry_b, stride_carry_t, stride_carry_d,
    seq_len, hidden, chunk_steps, n_chunks, n_items,
    N_GATES: tl.constexpr, POOLING: tl.constexpr, ACTIVATION: tl.constexpr, ZONEOUT: tl.constexpr,
    STATE: tl.constexpr, CHECKPOINT: tl.constexpr, ALIGN: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Walk through chunks backward, each from the gradient in `p_carry` that enters it at its end.

    The grid is no larger than the chip, and each program takes one piece of work after the other: its scratch and the
    logits that it is about to read again then stay in the L2 cache.
    """
    hidden *= ALIGN
    stride_logits_b, stride_logits_t = _stride(stride_logits_b, ALIGN), _stride(stride_logits_t, ALIGN)
    stride_grad_b, stride_grad_t = _stride(stride_grad_b, ALIGN), _stride(stride_grad_t, ALIGN)
    stride_carry_b, stride_carry_t = _stride(stride_carry_b, ALIGN), _stride(stride_carry_t, ALIGN)
    p_scratch += tl.program_id(0).to(tl.int64) * CHECKPOINT * BLOCK
    o_scratch = tl.arange(0, BLOCK)
    for i_item in tl.range(tl.program_id(0), n_items, tl.num_programs(0)):
        i_b, i_chunk, o_d, m_d = _locate(tl.cast(i_item, tl.int64), hidden, n_chunks, BLOCK)
        i_first = i_chunk * chunk_steps
        n_replays = tl.cdiv(tl.minimum(chunk_steps, seq_len - i_first), CHECKPOINT).to(tl.int32)
        b_key = _zoneout_key(p_seed, i_b)

        p_end_grad = p_carry + i_b * stride_carry_b + i_chunk * stride_carry_t + o_d * stride_carry_d
        b_grad_c = tl.load(p_end_grad, mask=m_d, other=0.0)
        for i_replay in tl.range(n_replays):
            i_from = i_first + (n_replays - 1 - i_replay) * CHECKPOINT
            n_rows = tl.minimum(CHECKPOINT, seq_len - i_from).to(tl.int32)

            # Forward from the checkpoint, leaving in the scratch the state before each step.
            p_row = p_logits + i_b * stride_logits_b + i_from * stride_logits_t
            i_checkpoint = i_b * tl.cdiv(seq_len, CHECKPOINT) + i_from // CHECKPOINT
            b_c = tl.load(p_checkpoints + i_checkpoint * hidden + o_d, mask=m_d, other=0.0)
            for i_row in tl.range(n_rows, num_stages=STAGES):
                tl.store(p_scratch + o_scratch, b_c)
                i_t = i_from + i_row
                b_z, _, _, _, b_forget, b_update = _load_transition(
                    p_row, o_d, m_d, hidden, stride_logits_d, p_seed, b_key, i_t, POOLING, ACTIVATION, ZONEOUT, STATE
                )
                b_real, b_start = _load_marks(p_real, p_start, i_b, i_t, seq_len)
                b_c = _recur(b_c, b_z, b_forget, b_update, b_real, b_start, POOLING)
                p_row += stride_logits_t
                p_scratch += BLOCK

            # And back. Another thread of the program may read what this one wrote, hence the barriers.
            tl.debug_barrier()
            i_end = i_from + n_rows
            p_grad_row = p_grad_h + i_b * stride_grad_b + i_end * stride_grad_t
            p_out = p_grad_logits + (i_b * seq_len + i_end) * N_GATES * hidden
            for i_row in tl.range(n_rows, num_stages=STAGES):
                p_row -= stride_logits_t
                p_grad_row -= stride_grad_t
                p_scratch -= BLOCK
                p_out -= N_GATES * hidden
                i_t = i_end - 1 - i_row
                b_z, b_f, b_not_f, b_i, b_forget, b_update = _load_transition(
                    p_row, o_d, m_d, hidden, stride_logits_d, p_seed, b_key, i_t, POOLING, ACTIVATION, ZONEOUT, STATE
                )
                b_real, b_start = _load_marks(p_real, p_start, i_b, i_t, seq_len)
                b_grad_h = _load_gate(p_grad_row, 0, o_d, m_d, hidden, stride_grad_d, STATE)
                b_previous = tl.load(p_scratch + o_scratch)
                b_carried = tl.where(b_start, 0.0, b_previous)

                if POOLING == "f":
                    b_grad = b_grad_c + b_grad_h
                else:
                    b_o = _logistic(_load_gate(p_row, 2, o_d, m_d, hidden, stride_logits_d, STATE), SCALE=1.0)
                    b_grad_h *= b_o
                    b_grad = b_grad_c + b_grad_h
                    _store_grad(p_out, 2, b_grad_h * b_c * (1.0 - b_o), b_real, o_d, m_d, hidden)
                b_grad_z = _candidate_backward(b_grad * b_update, b_z, ACTIVATION)
                _store_grad(p_out, 0, b_grad_z, b_real, o_d, m_d, hidden)
                if POOLING == "ifo":
                    b_grad_i = _allow(b_grad * b_z * b_i * (1.0 - b_i), p_seed, b_key, i_t, o_d, ZONEOUT)
                    _store_grad(p_out, 3, b_grad_i, b_real, o_d, m_d, hidden)
                    b_grad_f = b_grad * b_carried
                else:
                    b_grad_f = b_grad * (b_carried - b_z)
                b_grad_f = _allow(b_grad_f * b_f * b_not_f, p_seed, b_key, i_t, o_d, ZONEOUT)
                _store_grad(p_out, 1, b_grad_f, b_real, o_d, m_d, hidden)

                b_keep = b_f + (b_not_f - b_forget)  # f, unless zoneout acts
                b_grad = tl.where(b_start, 0.0, b_keep * b_grad)
                b_grad_c = tl.where(b_real, b_grad, b_grad_c)
                b_c = b_previous
            tl.debug_barrier()

        if i_chunk == 0:
            tl.store(p_grad_state + i_b * hidden + o_d, b_grad_c, mask=m_d)


# --- launch rule -----------------------------------------------------------------------------------------------------

# Elements; the widest loads are of 16 bytes.
_MOST_ALIGNED = 16

# Rows of loads in flight. The chip has to keep 3 MB in flight (4.3 TB/s at 0.7 us): fifteen rows of 16-bit fo-logits
# for 32 thousand channels.
_STAGES = 16
# The backward loops hold more tensors per row, so that fewer rows do; and shared memory is what bounds them.
_BACKWARD_STAGES = 8

# A warp handles 128 channels, four a thread: 8-byte loads of 16-bit logits and 16-byte loads of states, in one layout.
# Narrower warps need more instructions an element, but there are more of them.
_WIDE_BLOCK = 128
_NARROW_BLOCK = 64
# Warps that a multiprocessor needs to hide latency and to keep its four schedulers busy.
_WARPS_PER_PROCESSOR = 8
# The backward pass keeps 64 steps of scratch (float32) and two logits (16 bits) alive for each channel in work, 512
# bytes: with four programs of 128 channels a multiprocessor, 35 MB of the 50 MB of L2 cache.
_BACKWARD_PROGRAMS_PER_PROCESSOR = 4
# Two more launches cost about what a walk over this many steps costs.
_LONGEST_WITHOUT_SPLIT = 256
# Where the kernels are interpreted.
_PROCESSORS_WITHOUT_DEVICE = 132


class _LaunchPlan(NamedTuple):
    block: int  # channels of a program, which is one warp
    chunk_steps: int  # a multiple of CHECKPOINT_STEPS
    n_chunks: int
    n_resident_programs: int  # of the backward pass, each with its scratch


def _launch_plan(
    batch_size: int, seq_len: int, hidden_size: int, n_processors: int, is_heavy: bool = False
) -> _LaunchPlan:
    """How the work is cut. A walk over all of time is best where there are channels enough to fill the chip: it moves
    8 bytes an element (16-bit fo-pooling) where the split moves 12, in one launch and not in three. Short of that,
    time is split until the chip is full, or a chunk is down to one checkpoint.

    Args:
        batch_size, seq_len, hidden_size: the shape of the work.
        n_processors: multiprocessors of the device.
        is_heavy: whether a thread has registers for fewer channels.

    Returns:
        The plan; `n_chunks == 1` is the walk over all of time.

    Example:
        >>> _launch_plan(128, 2048, 1024, n_processors=132)
        _LaunchPlan(block=128, chunk_steps=2048, n_chunks=1, n_resident_programs=528)
        >>> _launch_plan(8, 4096, 512, n_processors=132)
        _LaunchPlan(block=128, chunk_steps=128, n_chunks=32, n_resident_programs=528)
    """
    n_checkpoints = triton.cdiv(seq_len, CHECKPOINT_STEPS)
    wanted = n_processors * _WARPS_PER_PROCESSOR
    n_wide = batch_size * triton.cdiv(hidden_size, _WIDE_BLOCK)
    n_chunks = 1
    if seq_len > _LONGEST_WITHOUT_SPLIT:
        n_chunks = min(n_checkpoints, max(wanted // n_wide, 1))
    is_narrow = is_heavy or hidden_size <= _NARROW_BLOCK or 2 * n_wide * n_chunks <= wanted
    chunk_steps = triton.cdiv(n_checkpoints, n_chunks) * CHECKPOINT_STEPS
    block = _NARROW_BLOCK if is_narrow else _WIDE_BLOCK
    n_resident_programs = n_processors * _BACKWARD_PROGRAMS_PER_PROCESSOR * _WIDE_BLOCK // block
    return _LaunchPlan(block, chunk_steps, triton.cdiv(seq_len, chunk_steps), n_resident_programs)


# --- the public functions --------------------------------------------------------------------------------------------


def check_driver() -> None:
    """Check that kernels can be launched: on a GPU Triton compiles a small helper in C when it is first used.

    Raises:
        RuntimeError: if there is no C compiler, or no GPU that Triton knows.
    """
    if not triton.knobs.runtime.interpret:
        triton.runtime.driver.active.get_current_target()


_STATE_DTYPES = {torch.float32: tl.float32, torch.float64: tl.float64}


class _Call(NamedTuple):
    """What all kernels of one call share."""

    plan: _LaunchPlan
    batch_size: int
    seq_len: int
    hidden_size: int
    logits: torch.Tensor
    marks: dict[str, torch.Tensor | None]
    constants: dict[str, object]

    @property
    def n_blocks(self) -> int:
        return self.batch_size * triton.cdiv(self.hidden_size, self.plan.block)


def _prepare(
    gate_logits: torch.Tensor,
    initial_state: torch.Tensor,
    is_real: torch.Tensor | None,
    is_start: torch.Tensor | None,
    zoneout_seed: torch.Tensor | None,
    pooling: str,
    candidate_activation: str,
    zoneout: float,
) -> _Call:
    batch_size, seq_len, width = gate_logits.shape
    hidden_size = width // _N_GATES[pooling]
    marks = {
        "p_real": None if is_real is None else is_real.contiguous().view(torch.uint8),
        "p_start": None if is_start is None else is_start.contiguous().view(torch.uint8),
        "p_seed": zoneout_seed,
    }
    constants = {
        "POOLING": pooling,
        "ACTIVATION": candidate_activation,
        # In training the threshold below which a hash zones out, at evaluation the probability itself.
        "ZONEOUT": zoneout if zoneout_seed is None else round(zoneout * 2**32),
        "STATE": _STATE_DTYPES[initial_state.dtype],
    }
    n_processors = _PROCESSORS_WITHOUT_DEVICE
    if gate_logits.is_cuda:
        n_processors = torch.cuda.get_device_properties(gate_logits.device).multi_processor_count
    # A float64 state takes two registers, and each address of its own, where channels lie apart, as many.
    is_heavy = initial_state.dtype == torch.float64 or gate_logits.stride(2) != 1
    plan = _launch_plan(batch_size, seq_len, hidden_size, n_processors, is_heavy)
    return _Call(plan, batch_size, seq_len, hidden_size, gate_logits, marks, constants)


def _launch(
    kernel, n_programs: int, block: int, hidden: int, strides_of: dict[str, torch.Tensor | None], **arguments
) -> None:
    strides = {
        f"stride_{name}_{dim}": 0 if tensor is None else tensor.stride(i)
        for name, tensor in strides_of.items()
        for i, dim in enumerate("btd")
    }
    align = math.gcd(_MOST_ALIGNED, hidden, *(stride for name, stride in strides.items() if not name.endswith("d")))
    strides = {name: stride if name.endswith("d") else stride // align for name, stride in strides.items()}
    kernel[(n_programs,)](
        hidden=hidden // align,
        ALIGN=align,
        BLOCK=block,
        num_warps=1,
        enable_fp_fusion=True,  # Triton 3.10 will no longer fuse products and sums unless it is told to
        **strides,
        **arguments,
    )


def _enter_chunks(call: _Call, first: torch.Tensor, carry: torch.Tensor, grad_h: torch.Tensor | None) -> None:
    """Fill `carry` (batch, n_chunks, hidden) with what enters each chunk, `first` being what enters the first one, or
    the last one where there is a `grad_h`."""
    plan, is_backward = call.plan, grad_h is not None
    n_summaries = plan.n_chunks - 1
    summaries = first.new_empty(call.batch_size, n_summaries, 2, call.hidden_size)
    _launch(
        pooling_summary_kernel,
        call.n_blocks * n_summaries,
        plan.block,
        call.hidden_size,
        {"logits": call.logits, "grad": grad_h},
        STAGES=_STAGES,
        p_logits=call.logits,
        p_grad_h=grad_h,
        p_summaries=summaries,
        seq_len=call.seq_len,
        chunk_steps=plan.chunk_steps,
        n_summaries=n_summaries,
        IS_BACKWARD=is_backward,
        **call.marks,
        **call.constants,
    )
    _launch(
        pooling_scan_kernel,
        call.n_blocks,
        plan.block,
        call.hidden_size,
        {"carry": carry},
        STAGES=_STAGES,
        p_first=first.contiguous(),
        p_summaries=summaries,
        p_carry=carry,
        n_summaries=n_summaries,
        IS_BACKWARD=is_backward,
    )


def triton_pooling(
    gate_logits: torch.Tensor,
    initial_state: torch.Tensor,
    is_real: torch.Tensor | None,
    is_start: torch.Tensor | None,
    zoneout_seed: torch.Tensor | None,
    pooling: str,
    candidate_activation: str,
    zoneout: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run the recurrence; the arguments are those of `recurrent_pooling` after its checks.

    Args:
        gate_logits: `(batch, seq_len, n_gates * hidden)`, at least one step, gates in the order z, f, o, i; float32,
            float64, bfloat16 or float16; any strides, on a GPU (or on the CPU in Triton's interpreter).
        initial_state: `(batch, hidden)` in float32 (float64 for float64 logits), any strides.
        is_real: `(batch, seq_len)` bool, false at pads, or `None`.
        is_start: `(batch, seq_len)` bool, true where the carried state is dropped, or `None`.
        zoneout_seed: 0-dim int64 on the device of the logits: zoneout is random. `None`: its expectation acts.
        pooling: `"f"`, `"fo"` or `"ifo"`.
        candidate_activation: `"tanh"`, `"identity"` or `"relu"`.
        zoneout: probability in [0, 1).

    Returns:
        `h` `(batch, seq_len, hidden)` in the dtype of `gate_logits`; the last state `(batch, hidden)`; and for
        `triton_pooling_backward` every `CHECKPOINT_STEPS`-th state, the initial one first,
        `(batch, ceil(seq_len / CHECKPOINT_STEPS), hidden)`, both in the dtype of `initial_state`.

    Raises:
        KeyError: if `pooling` or the dtype of `initial_state` is not one of the above.
    """
    call = _prepare(
        gate_logits, initial_state, is_real, is_start, zoneout_seed, pooling, candidate_activation, zoneout
    )
    batch_size, seq_len, hidden_size, plan = call.batch_size, call.seq_len, call.hidden_size, call.plan
    h = gate_logits.new_empty(batch_size, seq_len, hidden_size)
    c_last = initial_state.new_empty(batch_size, hidden_size)
    checkpoints = initial_state.new_empty(batch_size, triton.cdiv(seq_len, CHECKPOINT_STEPS), hidden_size)
    if not h.numel():
        return h, c_last, checkpoints

    with torch.cuda.device_of(gate_logits):
        carry = initial_state[:, None]
        if plan.n_chunks > 1:
            # What enters a chunk is one of the checkpoints.
            carry = checkpoints[:, :: plan.chunk_steps // CHECKPOINT_STEPS]
            _enter_chunks(call, initial_state, carry, grad_h=None)
        _launch(
            pooling_fwd_kernel,
            call.n_blocks * plan.n_chunks,
            plan.block,
            hidden_size,
            {"logits": gate_logits, "carry": carry},
            STAGES=_STAGES,
            p_logits=gate_logits,
            p_carry=carry,
            p_h=h,
            p_c_last=c_last,
            p_checkpoints=checkpoints,
            seq_len=seq_len,
            chunk_steps=plan.chunk_steps,
            n_chunks=plan.n_chunks,
            CHECKPOINT=CHECKPOINT_STEPS,
            **call.marks,
            **call.constants,
        )
    return h, c_last, checkpoints


def triton_pooling_backward(
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
    """The gradients of `gate_logits` and `initial_state`.

    Args:
        grad_h: `(batch, seq_len, hidden)`, the gradient of `h`; any dtype and strides.
        grad_c_last: `(batch, hidden)`, the gradient of the last state; the dtype of `initial_state`, any strides.
        checkpoints: what `triton_pooling` returned.
        gate_logits, initial_state, is_real, is_start, zoneout_seed, pooling, candidate_activation, zoneout: as it took
            them.

    Returns:
        `(batch, seq_len, n_gates * hidden)` in the dtype of `gate_logits`, and `(batch, hidden)` in that of
        `initial_state`, both contiguous.

    Raises:
        KeyError: as `triton_pooling`.
    """
    call = _prepare(
        gate_logits, initial_state, is_real, is_start, zoneout_seed, pooling, candidate_activation, zoneout
    )
    batch_size, seq_len, hidden_size, plan = call.batch_size, call.seq_len, call.hidden_size, call.plan
    grad_logits = gate_logits.new_empty(gate_logits.shape)
    grad_state = initial_state.new_empty(batch_size, hidden_size)
    if not grad_logits.numel():
        return grad_logits, grad_state

    with torch.cuda.device_of(gate_logits):
        carry = grad_c_last[:, None]
        if plan.n_chunks > 1:
            carry = initial_state.new_empty(batch_size, plan.n_chunks, hidden_size)
            _enter_chunks(call, grad_c_last, carry, grad_h)
        n_items = call.n_blocks * plan.n_chunks
        n_programs = min(n_items, plan.n_resident_programs)
        scratch = initial_state.new_empty(n_programs, CHECKPOINT_STEPS, plan.block)
        _launch(
            pooling_bwd_kernel,
            n_programs,
            plan.block,
            hidden_size,
            {"logits": gate_logits, "grad": grad_h, "carry": carry},
            STAGES=_BACKWARD_STAGES,
            p_logits=gate_logits,
            p_grad_h=grad_h,
            p_carry=carry,
            p_checkpoints=checkpoints,
            p_grad_logits=grad_logits,
            p_grad_state=grad_state,
            p_scratch=scratch,
            seq_len=seq_len,
            chunk_steps=plan.chunk_steps,
            n_chunks=plan.n_chunks,
            n_items=n_items,
            N_GATES=_N_GATES[pooling],
            CHECKPOINT=CHECKPOINT_STEPS,
            **call.marks,
            **call.constants,
        )
    return grad_logits, grad_state
