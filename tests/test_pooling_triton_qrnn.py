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
"""The Triton kernels against the textbook loop, interpreted or on a GPU, and what the compiler makes of them.

Run as a program, without the interpreter, the file compiles the kernels as they are launched and prints what it finds.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import triton
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_qrnn import pooling_triton_qrnn
from modeling_qrnn.pooling_qrnn import _reference_pooling, _torch_pooling, _torch_pooling_backward
from modeling_qrnn.pooling_triton_qrnn import _launch_plan, _LaunchPlan, triton_pooling, triton_pooling_backward


POOLINGS = ["f", "fo", "ifo"]
ACTIVATIONS = ["tanh", "identity", "relu"]
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}
N_GATES = {"f": 2, "fo": 3, "ifo": 4}

# The interpreter is slow, so everything is small. One row each: pads on the left, on the right, in the middle.
SHAPE = (3, 7, 3)
IS_REAL = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0], [1, 0, 1, 0, 0, 1, 1]]).bool()
IS_START = torch.tensor([[0, 0, 0, 0, 0, 0, 1], [0, 1, 0, 1, 1, 0, 0], [0, 0, 1, 0, 0, 1, 0]]).bool()
SEED = torch.tensor(2**62 + 20260131)
# is_real, is_start, zoneout_seed, zoneout
OPTIONS = {
    "plain": (None, None, None, 0.0),
    "mask": (IS_REAL, None, None, 0.0),
    "segments": (None, IS_START, None, 0.0),
    "zoneout": (None, None, SEED, 0.3),
    "expected zoneout": (None, None, None, 0.3),
    "everything": (IS_REAL, IS_START, SEED, 0.3),
}

is_interpreted = triton.knobs.runtime.interpret
needs_interpreter = pytest.mark.skipif(not is_interpreted, reason="TRITON_INTERPRET=1 is not set")
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]


@pytest.fixture(autouse=True)
def _poisoned_memory():
    """What `torch.empty` returns holds NaN, so that a number not written shows."""
    was = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.zeros(1).new_empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(was)


@pytest.fixture(params=[pytest.param("cpu", marks=needs_interpreter), pytest.param("cuda", marks=needs_gpu)])
def device(request):
    return request.param


def cut(monkeypatch, steps, replays_of_chunk=None, n_resident_programs=2):
    """Short replays, and a split into chunks of some of them; by default one walk over time."""

    def plan(batch_size, seq_len, hidden_size, *_):
        chunk_steps = steps * (replays_of_chunk or triton.cdiv(seq_len, steps))
        return _LaunchPlan(32, chunk_steps, triton.cdiv(seq_len, chunk_steps), n_resident_programs)

    monkeypatch.setattr(pooling_triton_qrnn, "CHECKPOINT_STEPS", steps)
    monkeypatch.setattr(pooling_triton_qrnn, "_launch_plan", plan)


@pytest.fixture(params=["walk", "split"])
def path(request, monkeypatch):
    """One walk over time, or a split; the value is the distance of the checkpoints."""
    steps, replays_of_chunk = (4, None) if request.param == "walk" else (2, 1)
    cut(monkeypatch, steps, replays_of_chunk)
    return steps


def draw(pooling="fo", shape=SHAPE, dtype=torch.float64, device="cpu"):
    """Random gate logits, an initial state, and gradients of both results."""
    batch_size, seq_len, hidden_size = shape
    state_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    logits = 2 * torch.randn(batch_size, seq_len, N_GATES[pooling] * hidden_size, dtype=torch.float64)
    grad_h = torch.randn(shape, dtype=torch.float64)
    state, grad_c_last = torch.randn(2, batch_size, hidden_size, dtype=torch.float64).to(state_dtype)
    tensors = logits.to(dtype), state, grad_h.to(dtype), grad_c_last
    return [x.to(device) for x in tensors]


def run(gate_logits, state, grad_h, grad_c_last, *marks_and_options):
    """`h`, the last state, and the gradients of the logits and of the initial state."""
    h, c_last, checkpoints = triton_pooling(gate_logits, state, *marks_and_options)
    grads = triton_pooling_backward(grad_h, grad_c_last, gate_logits, state, checkpoints, *marks_and_options)
    assert not checkpoints.isnan().any() or gate_logits.isnan().any()
    assert all(x.is_contiguous() for x in (h, c_last, checkpoints, *grads))
    return h, c_last, *grads


def run_reference(gate_logits, state, grad_h, grad_c_last, *marks_and_options):
    inputs = gate_logits.detach().requires_grad_(), state.detach().requires_grad_()
    h, c_last = _reference_pooling(*inputs, *marks_and_options)
    return h.detach(), c_last.detach(), *torch.autograd.grad((h, c_last), inputs, (grad_h, grad_c_last))


def run_torch(gate_logits, state, grad_h, grad_c_last, *marks_and_options):
    h, c_last, checkpoints = _torch_pooling(gate_logits, state, *marks_and_options)
    grads = _torch_pooling_backward(grad_h, grad_c_last, gate_logits, state, checkpoints, *marks_and_options)
    return h, c_last, *grads


def assert_agrees(actual, expected, tolerance):
    """Equal up to a tolerance relative to the largest value, and in their dtypes and shapes."""
    for a, e in zip(actual, expected, strict=True):
        assert (a.dtype, a.shape) == (e.dtype, e.shape)
        assert (a.double() - e.double()).abs().max() <= tolerance * e.double().abs().max()  # false for NaN too


def check(tensors, options, pooling="fo", activation="tanh"):
    """The kernels agree with the textbook loop, whatever pads hold and whatever comes back to them."""
    *marks, zoneout = options
    marks = [x if x is None else x.to(tensors[0].device) for x in marks]
    gate_logits, state, grad_h, grad_c_last = tensors
    expected = run_reference(*tensors, *marks, pooling, activation, zoneout)
    if marks[0] is not None:
        gate_logits, grad_h = (x.masked_fill(~marks[0][..., None], torch.nan) for x in (gate_logits, grad_h))
    actual = run(gate_logits, state, grad_h, grad_c_last, *marks, pooling, activation, zoneout)
    assert_agrees(actual, expected, TOLERANCES[gate_logits.dtype])
    if marks[0] is not None:
        assert not actual[0][~marks[0]].any() and not actual[2][~marks[0]].any()


# --- agreement -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_poolings_and_activations(device, path, pooling, activation):
    check(draw(pooling, device=device), OPTIONS["everything"], pooling, activation)


@pytest.mark.parametrize("options", ["plain", "mask", "segments", "zoneout", "expected zoneout"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_options(device, path, pooling, options):
    check(draw(pooling, device=device), OPTIONS[options], pooling)


@pytest.mark.parametrize("options", ["plain", "everything"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(device, path, dtype, options):
    pooling = "fo" if options == "plain" else "ifo"
    check(draw(pooling, dtype=dtype, device=device), OPTIONS[options], pooling)


@pytest.mark.parametrize("shape", [(1, 1, 33), (1, 2, 1), (1, 63, 1), (1, 64, 33), (1, 65, 3)], ids=str)
@pytest.mark.parametrize("replays_of_chunk", [None, 1])
def test_shapes(device, monkeypatch, replays_of_chunk, shape):
    cut(monkeypatch, pooling_triton_qrnn.CHECKPOINT_STEPS, replays_of_chunk)
    check(draw(shape=shape, device=device), OPTIONS["plain"])


def test_the_plan_as_it_is(device, monkeypatch):
    """Nothing forced but that this length is worth a split."""
    monkeypatch.setattr(pooling_triton_qrnn, "_LONGEST_WITHOUT_SPLIT", 100)
    check(draw(shape=(1, 130, 2), device=device), OPTIONS["plain"])


@pytest.mark.parametrize("zoneout", [0.0, 1 - 2**-40])
def test_extreme_zoneout(device, path, zoneout):
    """The threshold of the hash is 0, or 2^32: one more than 32 bits hold."""
    check(draw("ifo", device=device), (None, None, SEED, zoneout), "ifo")


@pytest.mark.parametrize("seed", [0, -1, 2**32 - 1, -(2**63)])
def test_seeds(device, path, seed):
    check(draw(shape=(2, 5, 3), device=device), (None, None, torch.tensor(seed), 0.5))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: torch.stack([x, x * 0 + 7], dim=-1)[..., 0],
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        lambda x: x.mT.contiguous().mT,
        lambda x: torch.nn.functional.pad(x, (5, 6, 2, 1), value=7.0)[:, 2:-1, 5:-6],
    ],
    ids=["channels apart", "time first", "channels first", "slice"],
)
def test_strides(device, path, view):
    gate_logits, state, grad_h, grad_c_last = draw(shape=(2, 5, 3), device=device)
    tensors = view(gate_logits), state.t().contiguous().t(), view(grad_h), grad_c_last.t().contiguous().t()
    check(tensors, (None, IS_START.t().contiguous().t()[1:, :5], None, 0.0))


def test_expanded(device, path):
    gate_logits, state, grad_h, grad_c_last = draw(shape=(2, 5, 3), device=device)
    one = torch.tensor(0.7, dtype=torch.float64, device=device)
    check([gate_logits, state[:1].expand(2, 3), one.expand(2, 5, 3), one.expand(2, 3)], OPTIONS["plain"])
    check([gate_logits[:1, :1].expand(2, 5, 9), state, grad_h[:, :1].expand(2, 5, 3), grad_c_last], OPTIONS["plain"])


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 3, 0)])
def test_nothing_to_do(device, shape):
    gate_logits, state, grad_h, grad_c_last = draw(shape=shape, device=device)
    h, c_last, grad_logits, grad_state = run(
        gate_logits, state, grad_h, grad_c_last, None, None, None, "fo", "tanh", 0.0
    )
    assert h.shape == grad_h.shape and c_last.shape == grad_state.shape == state.shape
    assert grad_logits.shape == gate_logits.shape


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_checkpoints(device, path, dtype):
    gate_logits, state, *_ = draw("ifo", dtype=dtype, device=device)
    marks = [x.to(device) for x in (IS_REAL, IS_START)]
    _, _, checkpoints = triton_pooling(gate_logits, state, *marks, None, "ifo", "tanh", 0.0)
    assert checkpoints.dtype == state.dtype and checkpoints.shape == (3, triton.cdiv(7, path), 3)
    assert torch.equal(checkpoints[:, 0], state)
    for i in range(1, triton.cdiv(7, path)):
        beginning = [x[:, : i * path] for x in (gate_logits, *marks)]
        _, c = _reference_pooling(beginning[0], state, *beginning[1:], None, "ifo", "tanh", 0.0)
        assert_agrees([checkpoints[:, i]], [c], TOLERANCES[state.dtype])


# --- the ends of the number line -------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", POOLINGS)
def test_saturated_gates(device, path, pooling):
    """Infinite logits, and logits whose exponential overflows, are ordinary gates of zero and one."""
    tensors = draw(pooling, (2, 5, 3), torch.float32, device)
    pick = torch.randint(8, tensors[0].shape, device=device)
    for i, value in enumerate([torch.inf, -torch.inf, 1000.0, -1000.0]):
        tensors[0][pick == i] = value
    check(tensors, OPTIONS["plain"], pooling)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_propagates(device, path, activation):
    """From each gate, as in the textbook loop, to its own channel and no other; never past a segment's start."""
    tensors = draw("ifo", (2, 7, 5), device=device)
    for gate in range(4):
        tensors[0][0, 1, 5 * gate + gate] = torch.nan
    options = None, IS_START[[2, 1]].to(device), None, "ifo", activation, 0.0
    actual, expected = run(*tensors, *options), run_reference(*tensors, *options)
    assert actual[0][0, 1].isnan().tolist() == [True] * 4 + [False]
    assert not actual[0][0, 2:].isnan().any() and not actual[1].isnan().any()
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, equal_nan=True, rtol=0, atol=1e-11)


def test_a_held_state_may_be_infinite(device, path):
    """A row of pads changes nothing."""
    gate_logits, state, *_ = draw(shape=(1, 5, 3), device=device)
    state[0, 0] = torch.inf
    is_real = torch.zeros(1, 5, dtype=torch.bool, device=device)
    h, c_last, _ = triton_pooling(gate_logits, state, is_real, None, None, "fo", "tanh", 0.0)
    assert torch.equal(c_last, state) and not h.any()


def test_activations_are_accurate(device):
    """One step from a state of zero shows `tanh(z)` and `1 - f` themselves."""
    x = torch.cat([torch.linspace(-100, 85, 400), torch.logspace(-6, 0, 100)])
    kept, forgotten = torch.full_like(x, torch.inf), torch.full_like(x, -torch.inf)
    state = torch.zeros(1, 500, device=device)

    def one_step(z, f, activation):
        logits = torch.cat([z, f]).view(1, 1, -1).to(device)
        return triton_pooling(logits, state, None, None, None, "f", activation, 0.0)[0].double().cpu().flatten()

    tanh = x.double().tanh()
    assert ((one_step(x, forgotten, "tanh") - tanh) / tanh).abs().max() <= 5e-6
    not_f = torch.sigmoid(-x.double())
    assert ((one_step(torch.ones_like(x), x, "identity") - not_f).abs() / not_f).max() <= 1e-5
    assert not one_step(torch.ones_like(x), kept, "identity").any()


@pytest.mark.slow
@pytest.mark.parametrize("replays_of_chunk", [None, 4])
def test_a_long_memory_keeps_its_digits(device, monkeypatch, replays_of_chunk):
    """At f = 0.999 a state lives for a thousand steps, and 16-bit gates would lose three quarters of it."""
    seq_len = 4096
    cut(monkeypatch, 64, replays_of_chunk)
    gate_logits = torch.cat([torch.randn(1, seq_len, 2), 6.9 + 0.1 * torch.randn(1, seq_len, 2)], dim=-1).to(device)
    state = torch.randn(1, 2, device=device)
    none = (None, None, None, "f", "tanh", 0.0)
    _, exact = _torch_pooling(gate_logits.double(), state.double(), *none)
    _, c_last, _ = triton_pooling(gate_logits, state, *none)
    assert_agrees([c_last.double()], [exact], 1e-4)
    _, c_last, _ = triton_pooling(gate_logits.bfloat16(), state, *none)
    assert_agrees([c_last.double()], [exact], 1e-2)


# --- a search for counterexamples ------------------------------------------------------------------------------------


@st.composite
def cases(draw_from):
    draw_from(st.random_module())
    shape = batch_size, seq_len, _ = tuple(draw_from(st.integers(1, largest)) for largest in (2, 7, 3))
    bits = st.lists(st.booleans(), min_size=batch_size * seq_len, max_size=batch_size * seq_len)
    is_real, is_start = (
        torch.tensor(draw_from(bits)).view(batch_size, seq_len) if draw_from(st.booleans()) else None for _ in range(2)
    )
    if is_start is not None and is_real is not None:
        is_start &= is_real
    zoneout = draw_from(st.sampled_from([0.0, 0.5]))
    seed = draw_from(st.none() | st.integers(-(2**63), 2**63 - 1))
    options = is_real, is_start, seed if seed is None else torch.tensor(seed), zoneout
    pooling, activation = draw_from(st.sampled_from(POOLINGS)), draw_from(st.sampled_from(ACTIVATIONS))
    cuts = [draw_from(st.sampled_from(sizes)) for sizes in ([1, 2, 4], [None, 1, 2, 3], [1, 2, 3])]
    return shape, options, pooling, activation, cuts


@needs_interpreter
@settings(max_examples=20)
@given(cases())
def test_any_case(case):
    shape, options, pooling, activation, cuts = case
    with pytest.MonkeyPatch.context() as monkeypatch:
        cut(monkeypatch, *cuts)
        check(draw(pooling, shape), options, pooling, activation)


@settings(max_examples=200)
@given(st.integers(1, 2**16), st.integers(1, 2**20), st.integers(1, 2**16), st.integers(1, 200), st.booleans())
def test_plans_are_sound(batch_size, seq_len, hidden_size, n_processors, is_heavy):
    plan = _launch_plan(batch_size, seq_len, hidden_size, n_processors, is_heavy)
    assert plan.chunk_steps % pooling_triton_qrnn.CHECKPOINT_STEPS == 0
    assert (plan.n_chunks - 1) * plan.chunk_steps < seq_len <= plan.n_chunks * plan.chunk_steps
    assert batch_size * triton.cdiv(hidden_size, plan.block) * plan.n_chunks < 2**31
    n_warps = batch_size * triton.cdiv(hidden_size, 128)
    if n_warps >= 8 * n_processors:
        assert plan.n_chunks == 1


# --- large ones ------------------------------------------------------------------------------------------------------


def needs_memory(gigabytes):
    free, _ = torch.cuda.mem_get_info()
    if free < gigabytes * 1e9:
        pytest.skip(f"needs {gigabytes} GB of GPU memory, {free / 1e9:.0f} are free")


def on_gpu_or_small(small, *large):
    """Shapes for a GPU, and one with which the interpreter proves that the test itself works."""
    on_gpu = [pytest.param("cuda", shape, marks=needs_gpu, id=str(shape)) for shape in large]
    return pytest.mark.parametrize(
        ("device", "shape"), [pytest.param("cpu", small, marks=needs_interpreter, id=str(small)), *on_gpu]
    )


@on_gpu_or_small((2, 65, 3), (1, 65_537, 96), (1, 1_000_000, 16), (70_000, 3, 8), (2, 300, 1550), (64, 512, 2048))
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_against_torch(device, shape, dtype):
    tensors = draw("ifo", shape, dtype, device)
    options = (None, None, None, "ifo", "tanh", 0.0)
    actual = [x.double() for x in run(*tensors, *options)]
    assert_agrees(actual, run_torch(*(x.double() for x in tensors), *options), TOLERANCES[dtype])


@on_gpu_or_small((2, 5, 16), (2, 65_537, 8192), (40_000, 5, 4096))
def test_more_elements_than_32_bits_count(device, shape):
    batch_size, seq_len, hidden_size = shape
    if device == "cuda":
        needs_memory(40)
        assert batch_size * seq_len * 4 * hidden_size > 2**31
    gate_logits = torch.randn(batch_size, seq_len, 4, hidden_size, device=device, dtype=torch.bfloat16)
    state, grad_c_last = torch.randn(2, batch_size, hidden_size, device=device)
    grad_h = torch.randn(shape, device=device, dtype=torch.bfloat16)
    options = (None, None, None, "ifo", "tanh", 0.0)
    h, c_last, grad_logits, grad_state = run(
        gate_logits.view(batch_size, seq_len, -1), state, grad_h, grad_c_last, *options
    )
    # The corner that lies furthest from the beginning of memory, alone.
    corner = gate_logits[-1:, :, :, -8:].flatten(2), state[-1:, -8:], grad_h[-1:, :, -8:], grad_c_last[-1:, -8:]
    grad_logits = grad_logits.view(gate_logits.shape)[-1:, :, :, -8:].flatten(2)
    actual = h[-1:, :, -8:], c_last[-1:, -8:], grad_logits, grad_state[-1:, -8:]
    expected = run_torch(*(x.double() for x in corner), *options)
    assert_agrees([x.double() for x in actual], expected, 2e-2)


# --- what the compiler makes of the kernels --------------------------------------------------------------------------

# By kernel: registers of a thread, of 255, beyond which too few programs fit a multiprocessor.
MOST_REGISTERS = {
    "pooling_summary_kernel": 80,
    "pooling_scan_kernel": 80,
    "pooling_fwd_kernel": 80,
    "pooling_bwd_kernel": 240,
}
COMPILED = {  # pooling, dtype, with marks and zoneout, hidden size
    "fo bf16": ("fo", torch.bfloat16, False, 512),
    "fo fp32": ("fo", torch.float32, False, 512),
    "ifo bf16 everything": ("ifo", torch.bfloat16, True, 512),
    "fo bf16 width 1550": ("fo", torch.bfloat16, False, 1550),
}


def launches_of(pooling, dtype, with_marks, hidden_size):
    """The kernels and arguments of a forward and a backward pass over a split sequence."""
    launches = []

    class Recorder:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            return lambda **arguments: launches.append((self.kernel, arguments))

    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in MOST_REGISTERS:
            monkeypatch.setattr(pooling_triton_qrnn, name, Recorder(getattr(pooling_triton_qrnn, name)))

        def empty(*shape, dtype):
            return torch.empty(shape, dtype=dtype, device="meta")

        shape = 8, 4096, N_GATES[pooling] * hidden_size
        state = empty(8, hidden_size, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        marks = (None, None, None, pooling, "tanh", 0.0)
        if with_marks:
            is_real, is_start = empty(2, *shape[:2], dtype=torch.bool)
            marks = is_real, is_start, empty(dtype=torch.int64), pooling, "tanh", 0.1
        h, c_last, checkpoints = triton_pooling(empty(*shape, dtype=dtype), state, *marks)
        triton_pooling_backward(h, c_last, empty(*shape, dtype=dtype), state, checkpoints, *marks)
    return launches


POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.uint8: "*u8",
    torch.int64: "*i64",
}


def compile_launch(kernel, capability, num_warps, enable_fp_fusion, **arguments):
    """Compile as Triton's launcher does: None and 1 are constants, pointers are aligned to 16 bytes."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        is_specialized = not parameter.is_constexpr and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (is_specialized and isinstance(value, int) and value == 1):
            signature[parameter.name], constants[(i,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name], attributes[(i,)] = POINTERS[value.dtype], [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "i32" if value < 2**31 else "i64"
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": num_warps, "enable_fp_fusion": enable_fp_fusion}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def read_binary(compiled):
    """Registers, spills and, for each innermost loop, the counts of its instructions."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage, listing = (
            subprocess.run([tools / tool, option, cubin], capture_output=True, text=True, check=True).stdout
            for tool, option in [("cuobjdump", "-res-usage"), ("nvdisasm", "-c")]
        )
    labels, instructions, loops = {}, [], []
    for line in listing.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            target = re.search(r"BRA.*`\((\.L_x_\d+)\)", instruction[1])
            if target and target[1] in labels:
                loops.append((labels[target[1]], len(instructions)))
            instructions.append(instruction[1])
    innermost = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    bodies = [instructions[start : end + 1] for start, end in innermost]
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
        "spills": sum("LDL" in line or "STL" in line for line in instructions),
        # An endless branch to itself, behind the exit, pads the code.
        "loops": [
            {"instructions": len(body), "copies": sum("LDGSTS" in line for line in body)}
            for body in bodies
            if len(body) > 1
        ],
    }


def test_compiles_to_pipelined_loops(tmp_path):
    """In a process of its own: where kernels are interpreted there is nothing to compile."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(Path(pooling_triton_qrnn.__file__).parent.parent),
    }
    program = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert program.returncode == 0, program.stderr
    binaries = [json.loads(line) for line in program.stdout.splitlines()]
    # Forward: summary, scan, walk. Backward: likewise.
    assert len(binaries) == len(COMPILED) * 6 * 2
    for binary in binaries:
        assert binary["spills"] == binary["stack"] == 0, binary
        assert binary["registers"] <= MOST_REGISTERS[binary["kernel"]], binary
        assert len(binary["loops"]) == (2 if binary["kernel"] == "pooling_bwd_kernel" else 1), binary
        assert all(loop["copies"] >= 2 for loop in binary["loops"]), binary


def print_binaries():
    for case, arguments in COMPILED.items():
        for kernel, constants in launches_of(*arguments):
            for capability in (80, 90):
                binary = read_binary(compile_launch(kernel, capability, **constants))
                per_thread = constants["BLOCK"] // 32  # elements of a row
                known = {"case": case, "kernel": kernel.__name__, "sm": capability, "per_thread": per_thread}
                print(json.dumps({**known, **binary}))


if __name__ == "__main__":
    print_binaries()
