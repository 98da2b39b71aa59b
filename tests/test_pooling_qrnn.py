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
"""`recurrent_pooling` against the paper's equations, its backends against each other, and its properties."""

import math
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import modeling_qrnn
from modeling_qrnn import pooling_numba_qrnn, pooling_qrnn, pooling_triton_qrnn, recurrent_pooling


POOLINGS = ["f", "fo", "ifo"]
ACTIVATIONS = ["tanh", "identity", "relu"]
BACKENDS = ["reference", "torch", "numba", "triton"]
KERNELS = ["numba", "triton"]
FAST_BACKENDS = [backend for backend in BACKENDS if backend != "reference"]
# For tests of many steps, each of which takes a millisecond in Triton's interpreter.
BACKENDS_OVER_MANY_STEPS = [*BACKENDS[:-1], pytest.param("triton", marks=pytest.mark.slow)]
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}
N_GATES = {"f": 2, "fo": 3, "ifo": 4}


def with_dtypes(backends):
    """Each backend with each dtype for which it has kernels."""
    pairs = [(backend, dtype) for backend in backends for dtype in TOLERANCES]
    pairs.remove(("numba", torch.float16))
    return pytest.mark.parametrize(("backend", "dtype"), pairs, ids=lambda x: str(x).removeprefix("torch."))


# One row each: pads on the left, on the right, in the middle, everywhere, nowhere.
MASK = torch.tensor(
    [
        [0, 0, 0, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 0, 1, 0, 0, 1, 1],
        [0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 1],
    ]
)
# The middle row changes its segment at a pad, and back before the next real token: that is no change.
SEGMENTS = torch.tensor(
    [
        [5, 0, 0, 0, 0, 1, 1],
        [0, 0, 1, 2, 2, 2, 2],
        [3, 4, 3, 3, 3, 3, 4],
        [0, 1, 2, 3, 4, 5, 6],
        [0, 0, 0, 0, 1, 1, 1],
    ]
)
SEED = torch.tensor(20260131)


def draw(pooling="fo", shape=(5, 7, 3), dtype=torch.float64):
    """Random gate logits and an initial state."""
    batch_size, seq_len, hidden_size = shape
    gate_logits = 2 * torch.randn(batch_size, seq_len, N_GATES[pooling] * hidden_size, dtype=torch.float64)
    state = torch.randn(batch_size, hidden_size, dtype=torch.float64)
    return gate_logits.to(dtype), state.to(torch.float64 if dtype == torch.float64 else torch.float32)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def equations(gate_logits, state, pooling, activation, mask=None, segments=None, zoned_out=None, expected=0.0):
    """Equations 3 to 6 in plain Python, one number at a time; the gates lie in the order z, f, o, i.

    `zoned_out` is the mask of equation 6, and `expected` the zoneout probability that acts in expectation.
    """
    batch_size, seq_len, width = gate_logits.shape
    hidden_size = width // N_GATES[pooling]
    h = torch.zeros(batch_size, seq_len, hidden_size, dtype=torch.float64)
    c_last = torch.zeros(batch_size, hidden_size, dtype=torch.float64)
    activate = {"tanh": math.tanh, "identity": float, "relu": lambda x: max(x, 0.0)}[activation]
    for b in range(batch_size):
        for channel in range(hidden_size):
            c, last_segment = float(state[b, channel]), None
            for t in range(seq_len):
                if mask is not None and not mask[b, t]:
                    continue
                z, *gates = (
                    float(gate_logits[b, t, gate * hidden_size + channel]) for gate in range(N_GATES[pooling])
                )
                z, gates = activate(z), [sigmoid(gate) for gate in gates]
                f = gates[0]
                o = gates[1] if pooling != "f" else 1.0
                i = gates[2] if pooling == "ifo" else 1 - f
                if zoned_out is not None and zoned_out[b, t, channel]:
                    f, i = 1.0, 0.0
                f, i = 1 - (1 - expected) * (1 - f), (1 - expected) * i
                if segments is not None:
                    if last_segment is not None and last_segment != segments[b, t]:
                        c = 0.0
                    last_segment = segments[b, t]
                c = f * c + i * z
                h[b, t, channel] = o * c
            c_last[b, channel] = c
    return h, c_last


def assert_agrees(actual, expected, tolerance):
    """Equal up to a tolerance relative to the largest value."""
    assert actual.shape == expected.shape
    if expected.numel():
        difference = (actual.double() - expected.double()).abs().max()
        assert difference <= tolerance * expected.double().abs().max()  # false for NaN too


def run(gate_logits, state, wanted=("gate_logits", "initial_state"), of=("h", "c_last"), **options):
    """The outputs, and the gradients of a random linear function of some of them in some of the inputs."""
    inputs = {"gate_logits": gate_logits.detach(), "initial_state": state.detach()}
    for name in wanted:
        inputs[name].requires_grad_()
    outputs = dict(zip(("h", "c_last"), recurrent_pooling(**inputs, **options), strict=True))
    generator = torch.Generator().manual_seed(1)
    loss = 0.0
    for name in of:
        weights = torch.randn(outputs[name].shape, generator=generator, dtype=torch.float64)
        loss = loss + (outputs[name].double() * weights).sum()
    gradients = torch.autograd.grad(loss, [inputs[name] for name in wanted])
    return [*(output.detach() for output in outputs.values()), *gradients]


def assert_backends_agree(backend, gate_logits, state, **options):
    actual = run(gate_logits, state, backend=backend, **options)
    expected = run(gate_logits, state, backend="reference", **options)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        assert_agrees(a, e, TOLERANCES[gate_logits.dtype])


# --- the equations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pooling", POOLINGS)
class TestEquations:
    def test_plain(self, pooling, activation, backend):
        gate_logits, state = draw(pooling)
        actual = recurrent_pooling(
            gate_logits, state, pooling=pooling, candidate_activation=activation, backend=backend
        )
        torch.testing.assert_close(actual, equations(gate_logits, state, pooling, activation), rtol=0, atol=1e-12)

    def test_without_a_state(self, pooling, activation, backend):
        gate_logits, state = draw(pooling)
        actual = recurrent_pooling(gate_logits, pooling=pooling, candidate_activation=activation, backend=backend)
        expected = equations(gate_logits, torch.zeros_like(state), pooling, activation)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)

    def test_mask_segments_and_expected_zoneout(self, pooling, activation, backend):
        gate_logits, state = draw(pooling)
        options = {"pooling": pooling, "candidate_activation": activation, "backend": backend, "zoneout": 0.3}
        actual = recurrent_pooling(gate_logits, state, attention_mask=MASK, segment_ids=SEGMENTS, **options)
        expected = equations(gate_logits, state, pooling, activation, MASK, SEGMENTS, expected=0.3)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


# --- backends agree --------------------------------------------------------------------------------------------------

OPTIONS = {
    "plain": {},
    "mask": {"attention_mask": MASK},
    "boolean mask": {"attention_mask": MASK.bool()},
    "wide mask": {"attention_mask": torch.cat([1 - MASK, MASK], dim=1)},
    "segments": {"segment_ids": SEGMENTS},
    "mask and segments": {"attention_mask": MASK, "segment_ids": SEGMENTS},
    "zoneout": {"zoneout": 0.4, "zoneout_seed": SEED, "training": True},
    "expected zoneout": {"zoneout": 0.4},
    "everything": {
        "attention_mask": MASK,
        "segment_ids": SEGMENTS,
        "zoneout": 0.4,
        "zoneout_seed": SEED,
        "training": True,
    },
}
LAYOUTS = {
    "slice of a larger tensor": lambda x: torch.cat([x, x, x], dim=-1)[..., x.shape[-1] : 2 * x.shape[-1]],
    "every second step": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
    "time first": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "channel first": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "expanded over the batch": lambda x: x[:1].expand_as(x),
    "expanded over time": lambda x: x[:, :1].expand_as(x),
}


@with_dtypes(FAST_BACKENDS)
@pytest.mark.parametrize("pooling", POOLINGS)
class TestBackendsAgree:
    @pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
    def test_options(self, pooling, dtype, backend, options):
        assert_backends_agree(backend, *draw(pooling, dtype=dtype), pooling=pooling, **options)

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_activations(self, pooling, dtype, backend, activation):
        options = {"pooling": pooling, "candidate_activation": activation, **OPTIONS["everything"]}
        assert_backends_agree(backend, *draw(pooling, dtype=dtype), **options)

    def test_faint_candidates(self, pooling, dtype, backend):
        # As in the upper layers of a model that has not been trained: the tolerance is relative to the largest value.
        gate_logits, state = draw(pooling, dtype=dtype)
        scale = 1e-3 if dtype.itemsize == 2 else 1e-5  # the GPU's kernels promise no more of 16 bits
        gate_logits[..., : state.shape[-1]] *= scale
        assert_backends_agree(backend, gate_logits, state * scale, pooling=pooling)

    @pytest.mark.parametrize("of", [("h",), ("c_last",)], ids="".join)
    def test_loss_of_one_output(self, pooling, dtype, backend, of):
        assert_backends_agree(backend, *draw(pooling, dtype=dtype), pooling=pooling, of=of, attention_mask=MASK)

    @pytest.mark.parametrize("wanted", [("gate_logits",), ("initial_state",)], ids="".join)
    def test_gradient_of_one_input(self, pooling, dtype, backend, wanted):
        assert_backends_agree(backend, *draw(pooling, dtype=dtype), pooling=pooling, wanted=wanted)

    @pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
    def test_layouts(self, pooling, dtype, backend, layout):
        gate_logits, state = draw(pooling, dtype=dtype)
        assert_backends_agree(backend, layout(gate_logits), state.T.contiguous().T, pooling=pooling)
        # and the layout makes no difference
        actual = recurrent_pooling(layout(gate_logits), state, pooling=pooling, backend=backend)
        expected = recurrent_pooling(layout(gate_logits).contiguous(), state, pooling=pooling, backend=backend)
        for a, e in zip(actual, expected, strict=True):
            assert_agrees(a, e, TOLERANCES[dtype])

    @pytest.mark.parametrize(
        "shape", [(2, 1, 3), (2, 2, 3), (1, 63, 5), (0, 4, 3), (3, 8, 1)], ids=lambda shape: "x".join(map(str, shape))
    )
    def test_shapes(self, pooling, dtype, backend, shape):
        assert_backends_agree(backend, *draw(pooling, shape, dtype), pooling=pooling)

    def test_empty_batch_with_mask_and_segments(self, pooling, dtype, backend):
        none = torch.zeros(0, 4, dtype=torch.long)
        options = {"pooling": pooling, "attention_mask": none, "segment_ids": none, **OPTIONS["zoneout"]}
        assert_backends_agree(backend, *draw(pooling, (0, 4, 3), dtype), **options)


@pytest.mark.parametrize("pooling", POOLINGS)
class TestGradients:
    @pytest.mark.parametrize("backend", BACKENDS_OVER_MANY_STEPS)
    @pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["everything"]], ids=["plain", "everything"])
    @pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
    def test_gradients(self, pooling, backend, check, options):
        options = {name: x[:3, :5] if name in ("attention_mask", "segment_ids") else x for name, x in options.items()}
        inputs = [x.requires_grad_() for x in draw(pooling, (3, 5, 1))]
        check(lambda *x: recurrent_pooling(*x, pooling=pooling, backend=backend, **options), inputs)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_first_gradients_of_random_directions(self, pooling, backend):
        # The sum over a direction of the gradient is the slope along it, at a length where a loop over inputs is slow.
        gate_logits, state = draw(pooling, (2, 63, 4))
        h, c_last, *gradients = run(gate_logits, state, pooling=pooling, backend=backend)
        directions = torch.randn_like(gate_logits), torch.randn_like(state)
        slope = sum((gradient * direction).sum() for gradient, direction in zip(gradients, directions, strict=True))
        generator = torch.Generator().manual_seed(1)
        weights = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in (h, c_last)]

        def value(step):
            moved = [x + step * direction for x, direction in zip((gate_logits, state), directions, strict=True)]
            outputs = recurrent_pooling(*moved, pooling=pooling, backend=backend)
            return sum((x * w).sum() for x, w in zip(outputs, weights, strict=True))

        torch.testing.assert_close((value(1e-5) - value(-1e-5)) / 2e-5, slope, rtol=1e-6, atol=1e-6)


def test_forward_mode_derivatives():
    # A custom operator would answer with zeros, in silence.
    gate_logits, state = draw()
    direction = torch.randn_like(gate_logits)

    def slope(backend):
        return torch.func.jvp(lambda x: recurrent_pooling(x, state, backend=backend)[0], (gate_logits,), (direction,))[
            1
        ]

    ahead, behind = (recurrent_pooling(gate_logits + step * direction, state)[0] for step in (1e-5, -1e-5))
    torch.testing.assert_close(slope(None), (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-8)
    for backend in FAST_BACKENDS:
        with pytest.raises(ValueError, match=f"`backend` .*'reference' in .*forward-mode.*got '{backend}'"):
            slope(backend)


def tangents_of_gradients(wanted: torch.Tensor, outputs: torch.Tensor, seeds: torch.Tensor) -> list[torch.Tensor]:
    """Of what comes back for some seeds, along these: by forward mode, and by `torch.func`."""
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(seeds, seeds)
        (gradient,) = torch.autograd.grad(outputs, wanted, dual, retain_graph=True)
        first = torch.autograd.forward_ad.unpack_dual(gradient).tangent

    def back(seeds):
        return torch.autograd.grad(outputs, wanted, seeds, retain_graph=True)[0]

    return [first, torch.func.jvp(back, (seeds,), (seeds,))[1]]


@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_forward_mode_over_the_gradient(backend):
    """A gradient is linear in what comes back: its derivative along that is the gradient itself."""
    gate_logits = draw()[0].requires_grad_()
    h, _ = recurrent_pooling(gate_logits, backend=backend)
    seeds = torch.randn_like(h)
    expected = torch.autograd.grad(h, gate_logits, seeds, retain_graph=True)[0]
    for tangent in tangents_of_gradients(gate_logits, h, seeds):
        torch.testing.assert_close(tangent, expected)


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_compiled_derivatives(compiler):
    """Of a transform in a graph, and of a graph in a transform that was compiled without."""
    gate_logits, _ = draw()
    direction = torch.randn_like(gate_logits)

    def pool(x):
        return recurrent_pooling(x)[0]

    def along(pool, x, direction):
        return torch.func.jvp(pool, (x,), (direction,))[1]

    expected = along(pool, gate_logits, direction)
    assert expected.any()
    compiled = torch.compile(partial(along, pool), backend=compiler)
    torch.testing.assert_close(compiled(gate_logits, direction), expected)
    compiled = torch.compile(pool, backend=compiler)
    torch.testing.assert_close(compiled(gate_logits), pool(gate_logits))
    torch.testing.assert_close(along(compiled, gate_logits, direction), expected)


def test_gradients_of_each_sample():
    gate_logits, state = draw()

    def gradient(logits, c, backend=None):
        return torch.func.grad(lambda x: recurrent_pooling(x[None], c[None], backend=backend)[0].square().sum())(
            logits
        )

    per_sample = torch.func.vmap(gradient)(gate_logits, state)
    gate_logits.requires_grad_()
    recurrent_pooling(gate_logits, state)[0].square().sum().backward()
    torch.testing.assert_close(per_sample, gate_logits.grad, rtol=0, atol=1e-12)
    for backend in FAST_BACKENDS:
        with pytest.raises(ValueError, match=f"`backend` .*'reference' in transforms of .*got '{backend}'"):
            gradient(gate_logits[0], state[0], backend)


# --- pads, dtypes, extremes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_single_step_agrees(pooling, options, dtype):
    # The way of each generated token, on which no backend is asked for.
    options = {name: x[:, -1:] if name in ("attention_mask", "segment_ids") else x for name, x in options.items()}
    assert_backends_agree(None, *draw(pooling, (5, 1, 3), dtype), pooling=pooling, **options)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pooling", POOLINGS)
class TestPads:
    def test_pads_are_as_if_absent(self, pooling, backend):
        gate_logits, state = draw(pooling)
        h, c_last = recurrent_pooling(gate_logits, state, pooling=pooling, attention_mask=MASK, backend=backend)
        for row, mask in enumerate(MASK.bool()):
            assert not h[row, ~mask].any()
            if not mask.any():
                assert torch.equal(c_last[row], state[row])
                continue
            alone = recurrent_pooling(gate_logits[row, mask][None], state[row, None], pooling=pooling, backend=backend)
            torch.testing.assert_close((h[row, mask][None], c_last[row, None]), alone, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("options", [{}, OPTIONS["everything"]], ids=["mask", "everything"])
    def test_what_pads_hold_is_never_seen(self, pooling, backend, options, garbage):
        gate_logits, state = draw(pooling)
        options = {"pooling": pooling, "backend": backend, **options, "attention_mask": MASK}
        expected = run(gate_logits, state, **options)
        actual = run(gate_logits.masked_fill(MASK[..., None] == 0, garbage), state, **options)
        assert not actual[2][MASK == 0].any()
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)

    def test_gradients_that_reach_pads_are_never_seen(self, pooling, backend):
        # A loss that is not a number at pads, and masked afterwards, sends NaN back to them.
        gate_logits, state = (x.requires_grad_() for x in draw(pooling))
        h, _ = recurrent_pooling(gate_logits, state, pooling=pooling, attention_mask=MASK, backend=backend)
        seeds = torch.randn_like(h)
        expected = torch.autograd.grad(h, (gate_logits, state), seeds, retain_graph=True)
        actual = torch.autograd.grad(h, (gate_logits, state), seeds.masked_fill(MASK[..., None] == 0, math.nan))
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)

    def test_segments_are_as_if_alone(self, pooling, backend):
        gate_logits, state = draw(pooling, (1, 9, 3))
        segments = torch.tensor([[0, 0, 0, 0, 1, 1, 2, 0, 0]])
        h, c_last = recurrent_pooling(gate_logits, state, pooling=pooling, segment_ids=segments, backend=backend)
        for start, end in [(0, 4), (4, 6), (6, 7), (7, 9)]:
            alone = recurrent_pooling(
                gate_logits[:, start:end], state if start == 0 else None, pooling=pooling, backend=backend
            )
            torch.testing.assert_close(h[:, start:end], alone[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(c_last, alone[1], rtol=0, atol=1e-12)

    def test_what_is_no_number_stays_in_its_segment(self, pooling, backend):
        """In both directions, and zero times it is not what the next segment sees."""
        segments = torch.tensor([[0, 0, 0, 0, 1, 1, 1]])

        def pool(logits, seeds):
            logits = logits.clone().requires_grad_()
            h, c_last = recurrent_pooling(logits, pooling=pooling, segment_ids=segments, backend=backend)
            return h.detach(), c_last.detach(), torch.autograd.grad((h, c_last), logits, (seeds, c_last))[0]

        logits, _ = draw(pooling, (1, 7, 3))
        seeds = torch.randn(1, 7, 3, dtype=torch.float64)
        h, c_last, gradient = pool(logits, seeds)
        faulty = logits.clone()
        faulty[0, 1, 0] = math.nan
        actual = pool(faulty, seeds)
        torch.testing.assert_close(
            (actual[0][:, 4:], actual[1], actual[2][:, 4:]), (h[:, 4:], c_last, gradient[:, 4:])
        )
        actual = pool(logits, seeds.index_fill(1, torch.tensor([5]), math.nan))
        torch.testing.assert_close(actual[2][:, :4], gradient[:, :4])

    def test_an_infinite_state_does_not_show_at_pads(self, pooling, backend):
        gate_logits, state = (x.requires_grad_() for x in draw(pooling, (1, 5, 3)))
        is_real = torch.tensor([[1, 0, 0, 1, 1]])
        with torch.no_grad():
            state[0, 0] = math.inf
        h, _ = recurrent_pooling(gate_logits, state, pooling=pooling, attention_mask=is_real, backend=backend)
        assert not h[:, 1:3].any()
        (gradient,) = torch.autograd.grad(h, gate_logits, torch.ones_like(h))
        assert not gradient[:, 1:3].any()


@with_dtypes([None, *BACKENDS])
class TestDtypes:
    def test_dtypes(self, backend, dtype):
        for seq_len in (1, 4):
            gate_logits, state = draw(shape=(2, seq_len, 3), dtype=dtype)
            h, c_last = recurrent_pooling(gate_logits, state, backend=backend)
            assert h.dtype == dtype
            assert c_last.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    @pytest.mark.parametrize("pooling", POOLINGS)
    def test_extreme_logits(self, backend, pooling, activation, dtype):
        gate_logits, state = draw(pooling, dtype=dtype)
        gate_logits = 1e4 * gate_logits.sign()
        results = run(gate_logits, state, pooling=pooling, candidate_activation=activation, backend=backend)
        assert all(result.isfinite().all() for result in results)


@pytest.mark.parametrize("backend", [None, *BACKENDS])
class TestNumbers:
    def test_a_16_bit_state_comes_back_in_float32(self, backend):
        gate_logits, state = draw(dtype=torch.bfloat16)
        _, c_last = recurrent_pooling(gate_logits, state.bfloat16(), backend=backend)
        assert c_last.dtype == torch.float32

    def test_saturated_gates_are_exact(self, backend):
        gate_logits, state = draw("fo", (2, 6, 3))
        z, _, _ = gate_logits.chunk(3, dim=-1)
        huge = torch.full_like(z, 1e4)
        h, c_last = recurrent_pooling(torch.cat([z, huge, huge], dim=-1), state, backend=backend)
        assert torch.equal(c_last, state)  # f = 1 keeps the state for good
        h, c_last = recurrent_pooling(torch.cat([z, -huge, huge], dim=-1), state, backend=backend)
        torch.testing.assert_close(h, torch.tanh(z), rtol=0, atol=1e-15)  # f = 0 forgets everything


@pytest.mark.parametrize("backend", BACKENDS_OVER_MANY_STEPS)
@pytest.mark.parametrize("f_logit", [6.9067, -6.9067, 0.0], ids=["f=0.999", "f=0.001", "f=0.5"])
def test_long_memory_in_bfloat16(backend, f_logit):
    # 1 - f = 0.001 has no bits left in a bfloat16 f near one.
    gate_logits, _ = draw("f", (1, 4096, 4), torch.bfloat16)
    gate_logits[..., :4] = 1 + gate_logits[..., :4] / 16
    gate_logits[..., 4:] = f_logit
    _, expected = recurrent_pooling(gate_logits.double(), pooling="f", backend="reference")
    _, actual = recurrent_pooling(gate_logits, pooling="f", backend=backend)
    assert_agrees(actual, expected, 1e-2)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_closed_relu_stops_any_gradient(backend, pooling):
    gate_logits, state = draw(pooling, (1, 1, 3))
    gate_logits[..., :3] = torch.tensor([-1.0, 0.0, 1.0])
    options = {"pooling": pooling, "candidate_activation": "relu"}

    def gradient(backend):
        inputs = gate_logits.detach().requires_grad_()
        h, _ = recurrent_pooling(inputs, state, backend=backend, **options)
        return torch.autograd.grad(h, inputs, torch.full_like(h, math.inf))[0][..., :3]

    assert not gradient(backend)[..., :2].any()
    assert torch.equal(gradient(backend), gradient("reference"))


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("f_logit", [-12.0, -7.0, 7.0, 12.0])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_both_ends_of_the_forget_gate(backend, pooling, f_logit):
    # In kernels neither f near zero nor 1 - f near zero is a difference of numbers near one, as in the textbook form.
    gate_logits, state = draw(pooling, (2, 3, 4), torch.float32)
    gate_logits[..., 4:8] = f_logit
    actual = run(gate_logits, state, pooling=pooling, backend=backend)
    expected = run(gate_logits.double(), state.double(), pooling=pooling, backend="reference")
    for gate in (slice(0, 4), slice(4, 8)):
        assert_agrees(actual[2][..., gate], expected[2][..., gate], 1e-4)
    assert_agrees(actual[3], expected[3], 1e-4)


def gradients_of_the_last_output(backend, pooling, dtype):
    """Sizes of those of the logits of 1,600 steps, at the first of which they are too faint for any dtype."""
    torch.manual_seed(0)
    gate_logits = 2 * torch.randn(2, 1600, 8 * N_GATES[pooling])
    gate_logits, state = gate_logits.to(dtype), torch.randn(2, 8, dtype=pooling_qrnn.state_dtype(dtype))
    gate_logits.requires_grad_()
    h, _ = recurrent_pooling(gate_logits, state, pooling=pooling, backend=backend)
    return torch.autograd.grad(h[:, -1].sum(), gate_logits)[0].abs().double()


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradients_fade_to_zero(backend, pooling, dtype):
    # Fainter ones, subnormal in the end, would make the matrix products that follow slow on many CPUs.
    faintest = 2.0**-996 if dtype == torch.float64 else 2.0**-100
    expected = gradients_of_the_last_output("reference", pooling, dtype)
    actual = gradients_of_the_last_output(backend, pooling, dtype)
    fainter = expected < 0.9 * faintest
    assert expected[fainter].any() and not actual[fainter].any()
    assert actual[expected > 1.1 * faintest].all()


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("is_real", [False, True])
def test_gradients_of_a_state_fade_to_zero(backend, is_real):
    mask = torch.full((1, 3), is_real).long()
    state = torch.zeros(1, 4, requires_grad=True)
    _, c_last = recurrent_pooling(torch.zeros(1, 3, 12), state, attention_mask=mask, backend=backend)
    for grad, remains in ((2.0**-90, True), (2.0**-101, False)):
        (gradient,) = torch.autograd.grad(c_last, state, torch.full((1, 4), grad), retain_graph=True)
        assert torch.equal(gradient != 0, torch.full((1, 4), remains))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_that_are_no_numbers_stay(backend):
    gate_logits, state = draw()
    gate_logits.requires_grad_()
    h, _ = recurrent_pooling(gate_logits, state, backend=backend)
    (gradient,) = torch.autograd.grad(h, gate_logits, torch.full_like(h, torch.nan))
    assert gradient.isnan().all()


# --- zoneout ---------------------------------------------------------------------------------------------------------


def zoned_out_units(shape, zoneout, seed=SEED, backend=None):
    """Where a unit kept its state, seen from outside: an open output gate shows the state itself."""
    batch_size, seq_len, hidden_size = shape
    gate_logits = torch.zeros(batch_size, seq_len, 2 * hidden_size, dtype=torch.float64)
    gate_logits[..., :hidden_size] = (-1.0) ** torch.arange(seq_len)[None, :, None]  # so that each update changes c
    state = torch.full((batch_size, hidden_size), 0.3, dtype=torch.float64)
    h, _ = recurrent_pooling(
        gate_logits, state, pooling="f", zoneout=zoneout, zoneout_seed=seed, training=True, backend=backend
    )
    return h == torch.cat([state[:, None], h[:, :-1]], dim=1)


@pytest.mark.parametrize("backend", BACKENDS_OVER_MANY_STEPS)
class TestZoneoutStatistics:
    @pytest.mark.parametrize("zoneout", [0.01, 0.25, 0.9])
    def test_statistics(self, backend, zoneout):
        # Each count is binomial: five standard deviations, overall and along every axis.
        zoned_out = zoned_out_units((32, 40, 50), zoneout, backend=backend).double()
        for axes in [(0, 1, 2), (0, 1), (0, 2), (1, 2)]:
            count = math.prod(zoned_out.shape[axis] for axis in axes)
            deviation = 5 * math.sqrt(zoneout * (1 - zoneout) / count)
            assert (zoned_out.mean(dim=axes) - zoneout).abs().max() < deviation

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_neighbours_are_independent(self, backend, axis):
        zoned_out = zoned_out_units((32, 40, 50), 0.5, backend=backend).double()
        size = zoned_out.shape[axis]
        pairs = torch.stack(
            [zoned_out.narrow(axis, 0, size - 1).flatten(), zoned_out.narrow(axis, 1, size - 1).flatten()]
        )
        assert torch.corrcoef(pairs)[0, 1].abs() < 5 / math.sqrt(pairs.shape[1])

    @pytest.mark.parametrize("other", [0, 1, 20260132, 2**32 + 20260131, 2**63 - 1])
    def test_seeds_are_independent(self, backend, other):
        masks = [zoned_out_units((8, 40, 50), 0.5, torch.tensor(seed), backend) for seed in (int(SEED), other)]
        pairs = torch.stack([mask.double().flatten() for mask in masks])
        assert torch.corrcoef(pairs)[0, 1].abs() < 5 / math.sqrt(pairs.shape[1])

    def test_evaluation_is_the_expectation_of_one_step(self, backend):
        gate_logits, state = draw("ifo", (1, 1, 4))
        options = {"pooling": "ifo", "zoneout": 0.3, "backend": backend}
        many = [x.expand(20_000, *x.shape[1:]) for x in (gate_logits, state)]
        _, c_training = recurrent_pooling(*many, training=True, zoneout_seed=SEED, **options)
        _, c_evaluation = recurrent_pooling(gate_logits, state, **options)
        error = 5 * c_training.std(dim=0) / math.sqrt(len(c_training))
        assert ((c_training.mean(dim=0) - c_evaluation[0]).abs() < error).all()


@pytest.mark.parametrize("backend", BACKENDS)
class TestZoneout:
    def test_the_mask_of_a_unit_depends_on_its_place_alone(self, backend):
        large = zoned_out_units((4, 10, 6), 0.5, backend=backend)
        small = zoned_out_units((3, 7, 5), 0.5, backend=backend)
        assert torch.equal(large[:3, :7, :5], small)

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    @pytest.mark.parametrize("pooling", POOLINGS)
    def test_equations(self, backend, pooling, activation):
        # Equation 6 without rescaling: f is one where zoned out, and what it was elsewhere.
        gate_logits, state = draw(pooling)
        zoned_out = zoned_out_units((5, 7, 3), 0.4, backend=backend)
        assert zoned_out.any() and not zoned_out.all()
        options = {"pooling": pooling, "candidate_activation": activation, "backend": backend, **OPTIONS["everything"]}
        actual = recurrent_pooling(gate_logits, state, **options)
        expected = equations(gate_logits, state, pooling, activation, MASK, SEGMENTS, zoned_out)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)

    def test_a_zoned_out_unit_of_ifo_takes_no_input(self, backend):
        gate_logits, state = draw("ifo", (4, 6, 5))
        gate_logits[..., 10:15] = 1e4  # an open output gate: h is c
        options = {"pooling": "ifo", "backend": backend, **OPTIONS["zoneout"]}
        h, _ = recurrent_pooling(gate_logits, state, **options)
        zoned_out = zoned_out_units((4, 6, 5), 0.4, backend=backend)
        before = torch.cat([state[:, None], h[:, :-1]], dim=1)
        assert torch.equal(h == before, zoned_out)

    @pytest.mark.parametrize("training", [True, False])
    def test_no_gate_is_above_one(self, backend, training):
        # With z = 1 the state is a mean of ones and zeros as long as every gate is a probability.
        gate_logits, _ = draw("f", (8, 50, 16))
        gate_logits[..., :16] = 1
        options = {"zoneout": 0.3, "training": training, "backend": backend}
        h, _ = recurrent_pooling(gate_logits, pooling="f", candidate_activation="identity", **options)
        assert h.min() >= 0 and h.max() <= 1 + 1e-12
        assert (h.diff(dim=1) >= -1e-12).all()

    @pytest.mark.parametrize("pooling", POOLINGS)
    def test_backward_has_the_mask_of_forward(self, backend, pooling):
        gate_logits, state = draw(pooling)
        options = {"pooling": pooling, "candidate_activation": "identity", "backend": backend, **OPTIONS["zoneout"]}
        *_, grad_logits, _ = run(gate_logits, state, **options)
        grad_z, grad_f = grad_logits[..., :3], grad_logits[..., 3:6]
        zoned_out = zoned_out_units((5, 7, 3), 0.4, backend=backend)
        assert torch.equal(grad_z == 0, zoned_out)
        assert torch.equal(grad_f == 0, zoned_out)

    def test_reproducible_from_the_global_seed(self, backend):
        gate_logits, state = draw()
        options = {"zoneout": 0.5, "training": True, "backend": backend}

        def once(seed):
            torch.manual_seed(seed)
            return recurrent_pooling(gate_logits, state, **options)[0]

        assert torch.equal(once(1), once(1))
        assert not torch.equal(once(1), once(2))
        assert not torch.equal(recurrent_pooling(gate_logits, state, **options)[0], once(2))  # a new mask each call

    @pytest.mark.parametrize("options", [{"zoneout": 0.5}, {"training": True}], ids=["evaluation", "no zoneout"])
    def test_draws_no_seed_without_need(self, backend, options):
        before = torch.get_rng_state()
        recurrent_pooling(torch.zeros(2, 5, 6), backend=backend, **options)
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("training", [True, False])
    def test_off_is_off(self, backend, training):
        gate_logits, state = draw()
        actual = recurrent_pooling(gate_logits, state, training=training, zoneout_seed=SEED, backend=backend)
        expected = recurrent_pooling(gate_logits, state, backend=backend)
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def poisoned_memory():
    """New memory holds NaN, so that an output that is never written shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all() and torch.zeros(3).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_all_of_the_output_is_written(poisoned_memory, pooling, options, backend):
    results = run(*draw(pooling), pooling=pooling, backend=backend, **options)
    assert all(result.isfinite().all() for result in results)


@with_dtypes(FAST_BACKENDS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_saves_little_for_backward(pooling, dtype, backend):
    gate_logits, state = draw(pooling, (1, 256, 32), dtype)
    mask = torch.ones(1, 256, dtype=torch.long)
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        recurrent_pooling(
            gate_logits.requires_grad_(),
            state,
            pooling=pooling,
            attention_mask=mask,
            segment_ids=mask,
            backend=backend,
        )
    small = state.nbytes + 2 * mask.bool().nbytes
    assert gate_logits.nbytes <= sum(saved.values()) <= 1.02 * gate_logits.nbytes + small


def test_all_files_agree_on_their_constants():
    steps = {pooling_numba_qrnn.CHECKPOINT_STEPS, pooling_triton_qrnn.CHECKPOINT_STEPS}
    assert steps == {pooling_qrnn._KERNEL_CHECKPOINT_STEPS}
    faintest = [file._FAINTEST_GRADIENTS.values() for file in (pooling_numba_qrnn, pooling_qrnn)]
    assert list(faintest[0]) == list(faintest[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_outputs_own_their_memory(pooling, backend):
    # Or a carried state of a few numbers would keep all the states of its chunk alive.
    gate_logits, state = draw(pooling, (2, 50, 4), torch.float32)
    for output in recurrent_pooling(gate_logits, state, pooling=pooling, backend=backend):
        assert output.untyped_storage().nbytes() == output.nbytes
        assert output.data_ptr() not in (gate_logits.data_ptr(), state.data_ptr())


@pytest.mark.parametrize("backend", BACKENDS)
def test_leaves_its_inputs_alone(backend):
    gate_logits, state = draw()
    copies = [x.clone() for x in (gate_logits, state, MASK, SEGMENTS)]
    run(gate_logits, state, backend=backend, **OPTIONS["everything"])
    assert all(map(torch.equal, (gate_logits, state, MASK, SEGMENTS), copies))


# --- compilers -------------------------------------------------------------------------------------------------------


def operators(backend):
    version = {"torch": 3}.get(backend, 2)
    names = (f"{backend}_pooling_v{version}", f"{backend}_pooling_backward_v{version}")
    return [getattr(torch.ops.modeling_qrnn, name).default for name in names]


class Pooling(nn.Module):
    def forward(self, gate_logits, state):
        return recurrent_pooling(gate_logits, state)


@pytest.mark.parametrize(
    ("pooling", "rest"),
    [
        ("f", (None, None, None)),
        ("ifo", (torch.tensor([[True, True, False]]), torch.tensor([[False, True, False]]), SEED)),
    ],
    ids=["plain f", "everything ifo"],
)
@pytest.mark.parametrize("backend", FAST_BACKENDS)
class TestOperators:
    def test_forward(self, backend, pooling, rest):
        inputs = [x.requires_grad_() for x in draw(pooling, (1, 3, 2))]
        torch.library.opcheck(operators(backend)[0], (*inputs, *rest, pooling, "tanh", 0.25))

    def test_backward(self, backend, pooling, rest):
        forward, backward = operators(backend)
        options = (*rest, pooling, "tanh", 0.25)
        inputs = [x.requires_grad_() for x in draw(pooling, (1, 3, 2))]
        checkpoints = forward(*inputs, *options)[2].detach()
        grads = [torch.randn(1, 3, 2).double().requires_grad_(), torch.randn(1, 2).double().requires_grad_()]
        # Second derivatives are for eager mode, so they are not traced here.
        utils = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(backward, (*grads, *inputs, checkpoints, *options), test_utils=utils)


@pytest.mark.parametrize("backend", [None, *FAST_BACKENDS])
@pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["everything"]], ids=["plain", "everything"])
def test_compiles_whole(options, backend):
    options = {"backend": backend, **options}
    compiled = torch.compile(recurrent_pooling, fullgraph=True, backend="aot_eager")
    inputs = [x.requires_grad_() for x in draw()]
    for actual, expected in zip(compiled(*inputs, **options), recurrent_pooling(*inputs, **options), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
        gradients = [torch.autograd.grad(x.square().sum(), inputs, retain_graph=True) for x in (actual, expected)]
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_compiled_code_calls_the_kernels():
    graphs = []

    def record(graph, inputs):
        graphs.append(graph.code)
        return graph

    torch._dynamo.reset()  # it compiles a function a few times only, and other tests have compiled this one
    torch.compile(recurrent_pooling, fullgraph=True, backend=record)(*draw(dtype=torch.float32))
    assert "numba_pooling_v2" in graphs[0]


@pytest.fixture
def exporting(monkeypatch):
    """What `torch.export` would trace runs at once."""
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)


# The lengths at which a block, or a block of blocks, is just not full, full, and begun.
@pytest.mark.parametrize("seq_len", [2, 7, 8, 9, 64, 65, 600])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_exported_operations_are_the_recurrence(exporting, pooling, options, seq_len):
    marks = {
        "attention_mask": torch.rand(5, seq_len) > torch.linspace(0, 1, 5)[:, None],
        "segment_ids": (torch.rand(5, seq_len) > 0.8).cumsum(dim=1),
    }
    options = {name: marks.get(name, value) for name, value in options.items()}
    inputs = draw(pooling, (5, seq_len, 3))
    actual = run(*inputs, pooling=pooling, **options)
    expected = run(*inputs, pooling=pooling, backend="reference", **options)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("starts", [[33], [5, 9, 20, 24], [8, 16, 17, 150]])
@pytest.mark.parametrize("is_backward", [False, True], ids=["in the logits", "in the gradient"])
def test_what_is_no_number_stays_in_its_segment_when_exported(exporting, is_backward, starts):
    gate_logits, state = draw(shape=(1, 200, 3))
    options = {"segment_ids": torch.zeros(1, 200).index_fill(1, torch.tensor(starts), 1).cumsum(dim=1)}
    seeds = torch.randn(1, 200, 3, dtype=torch.float64)
    (seeds if is_backward else gate_logits)[0, starts[-1] - 3] = math.nan

    def pool(backend):
        logits = gate_logits.clone().requires_grad_()
        h, c_last = recurrent_pooling(logits, state, backend=backend, **options)
        return h.detach(), c_last.detach(), *torch.autograd.grad(h, logits, seeds)

    expected = pool("torch")
    assert any(x.isnan().any() for x in expected) and not any(x.isnan().all() for x in expected)
    torch.testing.assert_close(pool(None), expected, rtol=0, atol=1e-12, equal_nan=True)


def test_what_is_no_number_stays_none_when_exported(exporting):
    # For so long that the product of its forget gates is zero in float32, as it is at the start of a segment.
    gate_logits, state = draw(shape=(1, 3000, 3), dtype=torch.float32)
    gate_logits[0, 3] = math.nan
    h, c_last = recurrent_pooling(gate_logits, state, segment_ids=torch.zeros(1, 3000))
    assert h[:, :3].isfinite().all() and h[:, 3:].isnan().all() and c_last.isnan().all()


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_exported_operations_in_all_dtypes(exporting, dtype):
    gate_logits, state = draw(shape=(5, 70, 3), dtype=dtype)
    mask = torch.rand(5, 70) > 0.3
    expected = recurrent_pooling(gate_logits, state, attention_mask=mask, backend="torch")
    actual = recurrent_pooling(gate_logits.masked_fill(~mask[..., None], math.nan), state, attention_mask=mask)
    for x, y in zip(actual, expected, strict=True):
        assert x.dtype == y.dtype and x.untyped_storage().nbytes() == x.nbytes
        torch.testing.assert_close(x, y, rtol=TOLERANCES[dtype], atol=TOLERANCES[dtype])


def is_plain(program: torch.export.ExportedProgram) -> bool:
    """Whether a process without this package can run it."""
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    return {target.namespace for target in targets if isinstance(target, torch._ops.OpOverload)} == {"aten"}


def export(gate_logits, state, length):
    dynamic = {"gate_logits": {0: torch.export.Dim.DYNAMIC, 1: length}, "state": {0: torch.export.Dim.DYNAMIC}}
    return torch.export.export(Pooling(), (gate_logits, state), dynamic_shapes=dynamic)


@pytest.mark.parametrize("length", [torch.export.Dim.DYNAMIC, torch.export.Dim("length", max=600)], ids=["any", "few"])
@pytest.mark.parametrize("seq_len", [7, 100])  # of one block, and of several
def test_exports_with_dynamic_length_and_batch(seq_len, length):
    program = export(*draw(shape=(5, seq_len, 3)), length)
    assert is_plain(program)
    for shape in [(5, 7, 3), (1, 2, 3), (3, 50, 3), (2, 600, 3)]:
        inputs = draw(shape=shape)
        torch.testing.assert_close(program.module()(*inputs), recurrent_pooling(*inputs), rtol=0, atol=1e-12)


def test_shorter_sequences_need_smaller_programs():
    lengths = (torch.export.Dim.DYNAMIC, torch.export.Dim("length", max=600), torch.export.Dim("length", max=60))
    sizes = [len(export(*draw(), length).graph.nodes) for length in lengths]
    assert sizes[0] > 1.5 * sizes[1] and sizes[1] > 1.2 * sizes[2]


@pytest.mark.parametrize("seq_len", [1, 2, 8, 9])
def test_an_export_needs_no_package(seq_len):
    inputs = draw(shape=(2, seq_len, 3))
    program = torch.export.export(Pooling(), inputs)
    assert is_plain(program)
    torch.testing.assert_close(program.module()(*inputs), recurrent_pooling(*inputs), rtol=0, atol=1e-12)


def test_the_most_steps_of_an_export():
    program = export(*draw(shape=(2, 9, 1)), torch.export.Dim.DYNAMIC).module()
    gate_logits, state = draw(shape=(2, 8**7, 1))
    expected = recurrent_pooling(gate_logits, state)
    torch.testing.assert_close(program(gate_logits, state), expected, rtol=0, atol=1e-12)
    with pytest.raises(AssertionError, match="2097152"):
        program(torch.cat([gate_logits, gate_logits[:, :1]], dim=1), state)
    with pytest.raises(
        torch._dynamo.exc.UserError, match="max=2097152"
    ):  # a named length must say that it is no longer
        export(*draw(), torch.export.Dim("length"))


def test_needs_no_compiler_and_no_optional_package():
    program = """if True:
        import sys
        sys.modules.update(dict.fromkeys(["triton", "numba", "ninja", "torch.utils.cpp_extension"]))
        from modeling_qrnn import QRNN
        import torch
        QRNN(3, 4, 2, bidirectional=True)(torch.randn(5, 2, 3))[0].sum().backward()
    """
    environment = {
        "PATH": "",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(Path(modeling_qrnn.__file__).parent.parent),
    }
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pooling": "of"}, r"`pooling` .*\['f', 'fo', 'ifo'\], got 'of'"),
        ({"candidate_activation": "gelu"}, r"`candidate_activation` .*\['tanh', 'identity', 'relu'\], got 'gelu'"),
        ({"zoneout": 1.0}, r"`zoneout` .*\[0, 1\), got 1.0"),
        ({"zoneout": -0.1}, r"`zoneout` .*\[0, 1\), got -0.1"),
        ({"zoneout": math.nan}, r"`zoneout` .*\[0, 1\), got nan"),
        ({"backend": "cuda"}, r"`backend` .*'reference', 'torch', 'numba', 'triton'\], got 'cuda'"),
        ({"gate_logits": torch.zeros(2, 12)}, r"`gate_logits` .*3 \* hidden.*got \(2, 12\)"),
        ({"gate_logits": torch.zeros(2, 5, 13)}, r"`gate_logits` .*3 \* hidden.*got \(2, 5, 13\)"),
        ({"gate_logits": torch.zeros(2, 0, 12)}, r"`gate_logits` .*at least one step.*got \(2, 0, 12\)"),
        ({"gate_logits": torch.zeros(2, 5, 12, dtype=torch.long)}, r"`gate_logits` .*float16, got torch.int64"),
        ({"gate_logits": torch.zeros(2, 5, 12, dtype=torch.cfloat)}, r"`gate_logits` .*float16, got torch.complex64"),
        ({"initial_state": torch.zeros(2, 3)}, r"`initial_state` .*\(2, 4\), got \(2, 3\)"),
        ({"initial_state": torch.zeros(1, 4)}, r"`initial_state` .*\(2, 4\), got \(1, 4\)"),
        ({"attention_mask": torch.ones(2, 4)}, r"`attention_mask` .*\(2, >= 5\), got \(2, 4\)"),
        ({"attention_mask": torch.ones(1, 5)}, r"`attention_mask` .*\(2, >= 5\), got \(1, 5\)"),
        ({"attention_mask": torch.ones(2, 1, 5)}, r"`attention_mask` .*got \(2, 1, 5\)"),
        ({"segment_ids": torch.ones(2, 6)}, r"`segment_ids` .*\(2, 5\), got \(2, 6\)"),
        ({"zoneout": 0.1, "training": True, "zoneout_seed": 3}, r"`zoneout_seed` .*0-dim int64 tensor, got 3"),
        ({"zoneout": 0.1, "training": True, "zoneout_seed": torch.ones(1)}, r"`zoneout_seed` .*got tensor"),
        ({"segment_ids": torch.ones(1, 5)}, r"`segment_ids` .*\(2, 5\), got \(1, 5\)"),
        ({"initial_state": torch.zeros(2, 4, device="meta")}, r"`initial_state` must be on cpu .*got meta"),
        ({"attention_mask": torch.ones(2, 5, device="meta")}, r"`attention_mask` must be on cpu .*got meta"),
        ({"segment_ids": torch.ones(2, 5, device="meta")}, r"`segment_ids` must be on cpu .*got meta"),
    ],
)
def test_errors(changed, message):
    with pytest.raises(ValueError, match=message):
        recurrent_pooling(**{"gate_logits": torch.zeros(2, 5, 12), **changed})


# --- a search for counterexamples ------------------------------------------------------------------------------------

search = settings(max_examples=60)


@st.composite
def cases(draw_from):
    """A shape, options, a mask with pads anywhere, and where to cut the sequence."""
    draw_from(st.random_module())
    batch_size, seq_len, hidden_size = (draw_from(st.integers(1, largest)) for largest in (3, 12, 3))
    options = {
        "pooling": draw_from(st.sampled_from(POOLINGS)),
        "candidate_activation": draw_from(st.sampled_from(ACTIVATIONS)),
        "backend": draw_from(st.sampled_from([None, *BACKENDS])),
        "zoneout": draw_from(st.sampled_from([0.0, 0.5])),
    }
    bits = st.lists(st.booleans(), min_size=seq_len, max_size=seq_len)
    mask = torch.tensor(draw_from(st.lists(bits, min_size=batch_size, max_size=batch_size)))
    cuts = sorted(draw_from(st.sets(st.integers(1, seq_len - 1)))) if seq_len > 1 else []
    return *draw(options["pooling"], (batch_size, seq_len, hidden_size)), mask, cuts, options


@search
@given(cases())
def test_chunks_make_no_difference(case):
    gate_logits, state, mask, cuts, options = case
    whole, c_whole = recurrent_pooling(gate_logits, state, attention_mask=mask, **options)
    outputs, c = [], state
    for start, end in zip([0, *cuts], [*cuts, gate_logits.shape[1]], strict=True):
        # as `generate` has it: the mask grows, and its last columns count
        h, c = recurrent_pooling(gate_logits[:, start:end], c, attention_mask=mask[:, :end], **options)
        outputs.append(h)
    torch.testing.assert_close((torch.cat(outputs, dim=1), c), (whole, c_whole), rtol=0, atol=1e-12)


@search
@given(cases(), st.randoms(use_true_random=False))
def test_the_batch_makes_no_difference(case, random):
    gate_logits, state, mask, _, options = case
    rows = random.choices(range(len(state)), k=4)
    whole = recurrent_pooling(gate_logits, state, attention_mask=mask, **options)
    chosen = recurrent_pooling(gate_logits[rows], state[rows], attention_mask=mask[rows], **options)
    torch.testing.assert_close(chosen, tuple(x[rows] for x in whole), rtol=0, atol=0)


@search
@given(cases())
def test_pads_make_no_difference(case):
    gate_logits, state, mask, _, options = case
    h, c = recurrent_pooling(gate_logits, state, attention_mask=mask, **options)
    assert not h[~mask].any()
    for row, is_real in enumerate(mask):
        if not is_real.any():
            assert torch.equal(c[row], state[row])
            continue
        alone = recurrent_pooling(gate_logits[row, is_real][None], state[row, None], **options)
        torch.testing.assert_close((h[row, is_real][None], c[row, None]), alone, rtol=0, atol=1e-12)


@search
@given(cases())
def test_segments_make_no_difference(case):
    gate_logits, state, mask, cuts, options = case
    seq_len = gate_logits.shape[1]
    segments = sum((torch.arange(seq_len) >= cut).long() for cut in cuts) + torch.zeros_like(mask, dtype=torch.long)
    h, c = recurrent_pooling(gate_logits, state, attention_mask=mask, segment_ids=segments, **options)
    begun = torch.zeros(len(mask), dtype=torch.bool)
    c_alone = state
    for start, end in zip([0, *cuts], [*cuts, seq_len], strict=True):
        begins = begun & mask[:, start:end].any(dim=1)
        c_alone = c_alone.masked_fill(begins[:, None], 0)
        alone, c_alone = recurrent_pooling(
            gate_logits[:, start:end], c_alone, attention_mask=mask[:, start:end], **options
        )
        begun |= mask[:, start:end].any(dim=1)
        torch.testing.assert_close(h[:, start:end], alone, rtol=0, atol=1e-12)
    torch.testing.assert_close(c, c_alone, rtol=0, atol=1e-12)


# --- what operators promise to compilers -----------------------------------------------------------------------------


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_strides_of_the_inputs_do_not_show(backend):
    forward, backward = operators(backend)
    gate_logits = torch.randn(4, 9, 3).permute(2, 0, 1)  # (3, 4, 9), time first and the batch last in memory
    state = torch.randn(3, 3).t()
    rest = (None, None, None, "fo", "tanh", 0.0)
    torch.library.opcheck(forward, (gate_logits, state, *rest))
    grads = (torch.randn(3, 4, 3), torch.randn(3, 3))
    checkpoints = forward(gate_logits, state, *rest)[2]
    inputs = (*grads, gate_logits, state, checkpoints, *rest)
    torch.library.opcheck(backward, inputs, test_utils=["test_schema", "test_faketensor"])
    pooling = partial(recurrent_pooling, backend=backend)
    compiled = torch.compile(lambda *x: pooling(*x)[1].view(-1), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(gate_logits, state), pooling(gate_logits, state)[1].view(-1))


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_strides_of_the_marks_do_not_show(backend):
    gate_logits = torch.randn(3, 5, 9, requires_grad=True)
    marks = {"attention_mask": torch.rand(5, 3) > 0.3, "segment_ids": torch.randint(3, (5, 3)).cumsum(0)}

    def run(**options):
        h, c = recurrent_pooling(gate_logits, **options)
        return h, c, *torch.autograd.grad(h.square().sum() + c.sum(), gate_logits)

    expected = run(**{name: mark.t().contiguous() for name, mark in marks.items()}, backend="reference")
    torch.testing.assert_close(run(**{name: mark.t() for name, mark in marks.items()}, backend=backend), expected)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_third_derivatives(pooling):
    inputs = [x.requires_grad_() for x in draw(pooling, (2, 3, 1))]

    def third(backend):
        value = sum(x.pow(3).sum() for x in recurrent_pooling(*inputs, pooling=pooling, backend=backend))
        for _ in range(3):
            value = sum(x.pow(2).sum() for x in torch.autograd.grad(value, inputs, create_graph=True))
        return value

    for backend in FAST_BACKENDS:
        torch.testing.assert_close(third(backend), third("reference"), rtol=1e-12, atol=0)
