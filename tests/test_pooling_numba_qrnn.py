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
"""The kernels for CPUs: their arithmetic, threads and processes, and what happens without Numba.

That they agree with the equations and with `"reference"` is shown in test_pooling_qrnn.py, as for every backend.
"""

import gc
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import pytest
import torch

import modeling_qrnn
from modeling_qrnn import pooling_numba_qrnn, recurrent_pooling
from modeling_qrnn.pooling_numba_qrnn import _load, _rounded, _sigmoid, _tanh


ROOT = Path(modeling_qrnn.__file__).parent.parent


def draw(shape=(5, 70, 300), dtype=torch.float32):
    batch_size, seq_len, hidden_size = shape
    return torch.randn(batch_size, seq_len, 3 * hidden_size).to(dtype), torch.randn(batch_size, hidden_size)


def everything(gate_logits, state, **options):
    """Outputs and gradients."""
    gate_logits, state = gate_logits.detach().requires_grad_(), state.detach().requires_grad_()
    h, c_last = recurrent_pooling(gate_logits, state, **{"backend": "numba", **options})
    (h.float().square().sum() + c_last.sum()).backward()
    return h.detach(), c_last.detach(), gate_logits.grad, state.grad


def assert_identical(actual, expected):
    assert all(map(torch.equal, actual, expected))


# --- arithmetic ------------------------------------------------------------------------------------------------------


@numba.njit
def sigmoids(x, f, not_f):
    for k in range(len(x)):
        f[k], not_f[k] = _sigmoid(x[k])


@numba.njit
def tangents(x, result):
    for k in range(len(x)):
        result[k] = _tanh(x[k])


@numba.njit
def round_trip(x, halves, result):
    for k in range(len(x)):
        halves[k] = _rounded(x[k], halves)
        result[k] = _load(halves[k])


@pytest.fixture(scope="module")
def floats():
    """Numbers over the whole range of float32, both signs, zeros, subnormal numbers and infinities."""
    with np.errstate(invalid="ignore"):
        numbers = np.arange(0, 2**32, 997, dtype=np.uint32).view(np.float32)
    special = np.array([0.0, -0.0, np.inf, -np.inf, 1e-45, 87.0, -87.0, 88.8, 10.0, 3.4e38], dtype=np.float32)
    return np.concatenate([numbers[~np.isnan(numbers)], np.linspace(-120, 120, 1_000_001, dtype=np.float32), special])


@pytest.mark.parametrize(("dtype", "tolerance", "smallest"), [("float32", 1e-6, 2e-38), ("float64", 1e-14, 1e-300)])
class TestActivations:
    def test_sigmoid(self, floats, dtype, tolerance, smallest):
        x = floats.astype(dtype)
        f, not_f = np.empty_like(x), np.empty_like(x)
        sigmoids(x, f, not_f)
        # The smallest values saturate there, instead of going on to the subnormal numbers.
        exact = torch.from_numpy(x).double()
        for actual, expected in ((f, exact.sigmoid()), (not_f, (-exact).sigmoid())):
            np.testing.assert_allclose(actual, expected.numpy(), rtol=tolerance, atol=smallest)

    def test_tanh(self, floats, dtype, tolerance, smallest):
        x = floats.astype(dtype)
        actual = np.empty_like(x)
        tangents(x, actual)
        np.testing.assert_allclose(actual, np.tanh(x.astype(np.float64)), rtol=tolerance, atol=0)

    def test_saturation_is_exact(self, dtype, tolerance, smallest):
        x = np.array([np.inf, 1e4, -1e4, -np.inf], dtype=dtype)
        f, not_f, result = np.empty_like(x), np.empty_like(x), np.empty_like(x)
        sigmoids(x, f, not_f)
        tangents(x, result)
        np.testing.assert_array_equal(f[:2], 1)
        np.testing.assert_array_equal(result, [1, 1, -1, -1])

    def test_nan_stays(self, dtype, tolerance, smallest):
        x = np.array([np.nan, -np.nan], dtype=dtype)
        f, not_f, result = np.empty_like(x), np.empty_like(x), np.empty_like(x)
        sigmoids(x, f, not_f)
        tangents(x, result)
        assert np.isnan(np.concatenate([f, not_f, result])).all()


def test_rounds_to_bfloat16_as_torch_does():
    bits = torch.arange(-(2**31), 2**31 - 1, 331, dtype=torch.int64).int()
    # Ties, largest numbers that round to infinity, and NaN of every payload
    bits = torch.cat([bits, torch.arange(0x3F80_0000, 0x3F90_0000, 0x8000).int(), torch.tensor([0x7F7F_FFFF, -1])])
    bits = torch.cat([bits, torch.arange(0x7F80_0001, 0x7FFF_FFFF, 9_999, dtype=torch.int64).int()])
    x = bits.view(torch.float32)
    halves, result = np.empty(len(x), np.uint16), np.empty(len(x), np.float32)
    round_trip(x.numpy(), halves, result)
    expected = x.bfloat16()
    is_nan = x.isnan()
    assert np.isnan(result[is_nan]).all()
    actual = torch.from_numpy(halves).view(torch.bfloat16)
    assert torch.equal(actual[~is_nan], expected[~is_nan])
    assert torch.equal(torch.from_numpy(result)[~is_nan], expected[~is_nan].float())


def test_nan_and_infinity_come_through():
    gate_logits, state = draw((1, 4, 3))
    gate_logits[0, 1, 0] = float("nan")  # z of the first channel
    gate_logits[0, 2, 4] = float("inf")  # f of the second
    h, c_last = recurrent_pooling(gate_logits, state, backend="numba")
    expected = recurrent_pooling(gate_logits, state, backend="reference")
    torch.testing.assert_close((h, c_last), expected, equal_nan=True)
    assert h[0, 1:, 0].isnan().all() and h[..., 1:].isfinite().all()


# --- shapes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seq_len", [1, 2, 63, 64, 65, 128, 65_537])
def test_lengths_of_a_single_chain(seq_len):
    gate_logits, state = draw((1, seq_len, 1))
    gate_logits[..., 1] += 3  # long memory
    actual = everything(gate_logits, state)
    expected = everything(gate_logits, state, backend="torch")
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5 * e.abs().max().item())


def test_a_million_steps():
    gate_logits, state = draw((1, 1_000_000, 1))
    gate_logits[..., 1] += 3
    h, c_last, grad_gate_logits, grad_state = everything(gate_logits, state)
    # From either end, the result is that of a shorter sequence.
    first = everything(gate_logits[:, :65_537], state)
    torch.testing.assert_close(h[:, :65_537], first[0])
    torch.testing.assert_close((grad_gate_logits[:, :65_000], grad_state), (first[2][:, :65_000], first[3]))
    last = everything(gate_logits[:, -65_537:], state)
    torch.testing.assert_close((h[:, -65_000:], c_last), (last[0][:, -65_000:], last[1]))
    torch.testing.assert_close(grad_gate_logits[:, -65_000:], last[2][:, -65_000:])


@pytest.mark.parametrize("hidden_size", [1, 15, 16, 17, 127, 128, 129, 300])
def test_widths_around_the_blocks(hidden_size):
    gate_logits, state = draw((2, 70, hidden_size))
    expected = everything(gate_logits, state, backend="torch")
    actual = everything(gate_logits, state)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5 * e.abs().max().item())


@pytest.mark.slow
def test_more_than_two_to_the_31_elements():
    batch_size, seq_len, hidden_size = 1, 2**31 // 96 + 70, 32  # the addresses of the last steps exceed 32 bits
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if available < 14 * 2**30:
        pytest.skip(f"needs 14 GiB of free memory, there are {available / 2**30:.0f}")
    gate_logits = torch.zeros(batch_size, seq_len, 3 * hidden_size, dtype=torch.bfloat16)
    assert gate_logits.numel() > 2**31
    tail = torch.randn(batch_size, 300, 3 * hidden_size).bfloat16()
    gate_logits[:, -300:] = tail
    gate_logits[:, -301, hidden_size : 2 * hidden_size] = -1e4  # forget what came before
    h, c_last = recurrent_pooling(gate_logits, backend="numba")
    expected = recurrent_pooling(tail, backend="numba")
    torch.testing.assert_close((h[:, -300:], c_last), expected)
    del gate_logits, h
    gc.collect()


# --- threads and processes -------------------------------------------------------------------------------------------


@pytest.fixture
def threads():
    yield torch.set_num_threads
    torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3, 400, 300), (1, 700, 333), (40, 70, 65)], ids=str)
def test_any_number_of_threads_gives_the_same_bits(threads, shape, dtype):
    inputs = draw(shape, dtype)
    options = {"zoneout": 0.3, "zoneout_seed": torch.tensor(7), "training": True}
    expected = everything(*inputs, **options)
    for count in (2, 3, 5, 16):
        threads(count)
        assert_identical(everything(*inputs, **options), expected)


@pytest.fixture
def fresh_pools():
    pooling_numba_qrnn._pool.cache_clear()
    yield pooling_numba_qrnn._pool
    pooling_numba_qrnn._pool.cache_clear()


def test_uses_the_threads_that_torch_uses(threads, fresh_pools, monkeypatch):
    started = []

    class Recorder(ThreadPoolExecutor):
        def submit(self, *arguments):
            started.append(self)
            return super().submit(*arguments)

    monkeypatch.setattr(pooling_numba_qrnn, "ThreadPoolExecutor", Recorder)
    for count, expected in ((1, 0), (3, 2)):  # the calling thread works too
        threads(count)
        started.clear()
        recurrent_pooling(*draw((4, 300, 256)), backend="numba")
        assert len(started) == expected
    started.clear()
    recurrent_pooling(*draw((4, 3, 256)), backend="numba")  # too little work to share
    assert not started


def test_all_lengths_share_one_pool(threads, fresh_pools):
    threads(5)
    for seq_len in (300, 600, 900):
        recurrent_pooling(*draw((4, seq_len, 256)), backend="numba")
    assert fresh_pools.cache_info().currsize == 1


def test_memory_outlives_an_interrupt(threads, fresh_pools):
    threads(2)
    main, events = threading.get_ident(), []

    def kernel(*_):
        if threading.get_ident() == main:
            while not events:
                time.sleep(0.001)
            raise KeyboardInterrupt
        events.append("begun")
        time.sleep(0.2)
        events.append("ended")

    with pytest.raises(KeyboardInterrupt):
        pooling_numba_qrnn._run(kernel, (4, 300, 256))
    assert events == ["begun", "ended"]  # one piece, and no other after it


def test_waits_for_the_threads_that_could_be_started(threads, fresh_pools, monkeypatch):
    threads(3)
    main, started, running = threading.get_ident(), [], []

    def start(thread, start=threading.Thread.start):
        started.append(thread)
        if len(started) > 1:
            raise RuntimeError("can't start new thread")
        start(thread)

    def kernel(*_):
        running.append(threading.get_ident())
        if threading.get_ident() != main:
            time.sleep(0.2)
        while threading.get_ident() == main and len(set(running)) == 1:
            time.sleep(0.001)  # until the helper has a piece too
        running.append("done")

    monkeypatch.setattr(threading.Thread, "start", start)
    pooling_numba_qrnn._run(kernel, (4, 300, 256))
    assert len(started) == 2
    assert running.count("done") == len(running) / 2


def test_helpers_that_never_begin_hold_no_tensors(threads, fresh_pools, monkeypatch):
    threads(2)

    def start(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    tensor = torch.zeros(3)
    alive = weakref.ref(tensor)
    pooling_numba_qrnn._run(lambda *_: None, (4, 300, 256), tensor)
    del tensor
    gc.collect()
    assert alive() is None


def test_runs_while_python_shuts_down():
    program = """if True:
        import threading, time, torch
        from modeling_qrnn import recurrent_pooling
        torch.set_num_threads(2)
        gate_logits = torch.randn(4, 300, 768)
        expected = recurrent_pooling(gate_logits)[1]

        def serve():
            threading.main_thread().join()
            print(torch.equal(recurrent_pooling(gate_logits)[1], expected))

        threading.Thread(target=serve).start()
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.stdout == "True\n", result.stderr


def test_several_python_threads_at_once(threads):
    threads(2)
    inputs = [draw((3, 300, 200)) for _ in range(8)]
    expected = [everything(*x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for actual, e in zip(pool.map(lambda x: everything(*x), inputs), expected, strict=True):
                assert_identical(actual, e)


def _in_a_child(inputs, queue):
    torch.set_num_threads(2)
    h, _ = recurrent_pooling(*inputs, backend="numba")
    queue.put(h.numpy().tobytes())  # no operation of torch, whose own threads do not survive a fork either


def test_a_forked_process_has_threads_of_its_own(threads):
    threads(2)
    inputs = draw((4, 300, 256))
    h, _ = recurrent_pooling(*inputs, backend="numba")  # the parent's pool runs
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_a_child, args=(inputs, queue))
    child.start()
    try:
        assert queue.get(timeout=60) == h.numpy().tobytes()  # or it waits for threads that it does not have
    finally:
        child.kill()


# --- compiling, and doing without ------------------------------------------------------------------------------------

PROGRAM = """if True:
    import logging, sys
    logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout)
    {setup}
    import torch
    from modeling_qrnn import QRNN
    rnn = QRNN(3, 4)
    for _ in range(3):
        rnn(torch.randn(2, 5, 3))[0].sum().backward()
    rnn.bfloat16()(torch.randn(2, 5, 3).bfloat16())
    print("numba" in sys.modules)
"""


def run(setup="", **environment):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-c", PROGRAM.format(setup=setup)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    *log, has_numba = result.stdout.splitlines()
    return log, has_numba == "True"


def test_compiles_once_and_says_so(tmp_path):
    # Whatever takes more than no time at all says so.
    setup = "import threading as t; timer = t.Timer; t.Timer = lambda _, *call: timer(0.0, *call)"
    log, _ = run(setup, NUMBA_CACHE_DIR=str(tmp_path))
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb*")}
    assert len(kept) == 6  # forward and backward, each an index and the code for two dtypes
    kernels = [re.fullmatch(r"WARNING Making the (\w+) kernel of fo-pooling .*", line)[1] for line in log]
    assert kernels == ["forward", "backward"] * 2
    run(NUMBA_CACHE_DIR=str(tmp_path))
    assert kept == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nb*")}


def test_compiles_where_nothing_can_be_kept(tmp_path):
    setup = (
        "import numba.core.caching as c; c.CacheImpl.__init__ = "
        "lambda *_: (_ for _ in ()).throw(RuntimeError('no locator'))"
    )
    log, has_numba = run(setup)
    assert has_numba
    assert not any("plain PyTorch" in line for line in log)


def test_where_processes_do_not_fork():
    setup = "import os, torch; del os.register_at_fork"  # as on Windows
    log, has_numba = run(setup)
    assert has_numba
    assert not any("plain PyTorch" in line for line in log)


@pytest.mark.parametrize(
    ("setup", "reason"),
    [
        ("sys.modules['numba'] = None", 'pip install "modeling-qrnn[cpu]"'),
        (
            "import types; sys.modules['numba'] = types.ModuleType('numba')",  # without anything in it
            "ImportError",
        ),
        ("import numba; del numba.carray", "carray"),  # imports, but does not compile
        ("import numba; numba.carray = object()", "TypingError"),  # which explains itself in many lines
    ],
    ids=["missing", "empty", "broken", "broken at length"],
)
def test_without_numba_torch_does_the_work(setup, reason, tmp_path):
    log, _ = run(setup, NUMBA_CACHE_DIR=str(tmp_path))
    (line,) = [line for line in log if not line.startswith("WARNING Making the ")]  # one, for all calls and dtypes
    assert line.startswith("WARNING The recurrence runs in plain PyTorch") and reason in line


def test_asking_for_what_is_not_there():
    program = "import sys; sys.modules['numba'] = None; import torch; from modeling_qrnn import recurrent_pooling\n"
    program += "try: recurrent_pooling(torch.zeros(1, 2, 3), backend='numba')\n"
    program += "except ImportError as error: print(error)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert "`backend='numba'`" in result.stdout and 'pip install "modeling-qrnn[cpu]"' in result.stdout


@pytest.mark.parametrize(("dtype", "device"), [(torch.float16, "cpu"), (torch.float32, "meta")])
def test_no_kernels_for_this(dtype, device):
    gate_logits = torch.zeros(2, 3, 6, dtype=dtype, device=device)
    with pytest.raises(ValueError, match=rf"`backend='numba'` has no kernels for {dtype} on {device}"):
        recurrent_pooling(gate_logits, backend="numba")
    assert recurrent_pooling(gate_logits)[0].dtype == dtype  # torch serves all


def test_importing_the_package_does_not_import_numba():
    program = "import sys, modeling_qrnn; print('numba' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.stdout.strip() == "False"
