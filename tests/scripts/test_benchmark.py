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
"""scripts/benchmark.py: its settings, its refusals, its files, its mistakes."""

import json
import re
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
import transformers
from matplotlib.image import imread

import benchmark
from benchmark_models import build_models, generate, make_tokens
from benchmark_report import Report
from modeling_qrnn.pooling_qrnn import GATES


ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts/benchmark.py"
COMMANDS = ("pooling", "layer", "training", "generation", "memory")


@pytest.fixture(scope="module", autouse=True)
def _verbosity():
    """The program silences Transformers' warnings, which other tests look for."""
    verbosity = transformers.logging.get_verbosity()
    yield
    transformers.logging.set_verbosity(verbosity)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """What a quick run of a command printed, and its record; each runs once."""
    runs = {}
    folder = tmp_path_factory.mktemp("finished")

    def run(command):
        if command not in runs:
            torch.set_num_threads(1)
            with redirect_stdout(StringIO()) as stdout:
                benchmark.main([command, "--quick", "--output-dir", str(folder)])
            runs[command] = stdout.getvalue(), json.loads((folder / f"{command}.json").read_text())
        return *runs[command], folder

    return run


@pytest.fixture
def broken_backend(monkeypatch):
    """Let a backend compute something else: a function from its results to wrong ones."""
    pooling = benchmark.recurrent_pooling

    def install(spoil, name="torch"):
        def broken(*args, backend=None, **options):
            h, c_last = pooling(*args, backend=backend, **options)
            return spoil(h, c_last, args[0]) if backend == name else (h, c_last)

        monkeypatch.setattr(benchmark, "recurrent_pooling", broken)

    return install


# --- settings --------------------------------------------------------------------------------------------------------


def arguments(*options):
    return benchmark.parse_arguments([*options, "--quick"])


def test_precision_is_in_the_titles():
    args = arguments("layer", "--float32-matmul-precision", "medium")
    assert benchmark.setting(args, "float32", 1) == "float32 (medium precision of products), 1 thread"
    assert benchmark.setting(args, "bfloat16", 1) == "bfloat16, 1 thread"
    assert benchmark.setting(arguments("layer"), "float32", 1) == "float32, 1 thread"
    assert benchmark.setting(arguments("pooling"), "float32", 2) == "float32, 2 threads"


def test_gpu_has_sizes_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    args = benchmark.parse_arguments(["pooling", "--device", "cuda", "--threads", "1", "2"])
    assert args.dtype == ["bfloat16"]
    assert {batch_size * channels for batch_size, _, channels in args.shapes} == {
        4096 * 2**power for power in range(6)
    }
    assert len(args.threads) == 1  # threads of the CPU say nothing there
    given = benchmark.parse_arguments(["pooling", "--device", "cuda", "--dtype", "float16", "--shapes", "2x3x4"])
    assert (given.dtype, given.shapes) == (["float16"], [(2, 3, 4)])


def test_all_threads_and_one_are_one_on_a_single_thread():
    assert benchmark.parse_arguments(["layer"]).threads == [1]
    assert benchmark.parse_arguments(["layer", "--threads", "3", "all", "1"]).threads == [3, 1]


@pytest.mark.parametrize(
    "pooling, which, tensors", [("fo", "forward", 4), ("fo", "backward", 7), ("ifo", "forward", 5)]
)
def test_bytes_that_pooling_moves(pooling, which, tensors):
    output = torch.zeros(2, 3, 5)
    n_bytes = benchmark.pooling_bytes(which, len(GATES[pooling]), output)
    assert n_bytes == tensors * 2 * 3 * 5 * 4
    assert benchmark.copy_bytes(n_bytes, output)(None).nbytes == n_bytes // 2  # the other half is read


# --- refusals --------------------------------------------------------------------------------------------------------


def wrong_mask(h, c_last, gate_logits):
    """Right in a plain batch, wrong where a pad's output should be zero."""
    return torch.where(h == 0, torch.full_like(h, 0.5), h), c_last


SPOILED = {
    "h": lambda h, c_last, gate_logits: (h * (1 + 1e-4), c_last),
    "c_last": lambda h, c_last, gate_logits: (h, c_last + 1e-3),
    "the gradient of gate_logits": lambda h, c_last, gate_logits: (h + (x := gate_logits.mean()) - x.detach(), c_last),
    "the gradient of initial_state": lambda h, c_last, gate_logits: (h, 2 * c_last - c_last.detach()),
    "h is off by nan": lambda h, c_last, gate_logits: (h * float("nan"), c_last),
    "h ": wrong_mask,
}


@pytest.mark.parametrize("quantity", SPOILED)
def test_wrong_backend_is_refused(quantity, broken_backend, tmp_path, capsys):
    broken_backend(SPOILED[quantity])
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(["pooling", "--quick", "--backends", "torch", "--output-dir", str(tmp_path)])
    message = stopped.value.code
    assert "\n" not in message
    assert message.startswith("benchmark.py: error: backend 'torch'")
    assert quantity in message or "initial_state" in quantity  # which is seen first in the gradient of gate_logits
    assert re.search(r"off by (\d\.\de[-+]\d\d|nan)", message)
    assert "fastest" not in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_backend_that_is_wrong_only_at_size_is_refused(broken_backend):
    broken_backend(lambda h, c_last, logits: (h.index_fill(2, torch.tensor(h.shape[2] - 1), 9.0), c_last))
    args = arguments("pooling", "--shapes", "3x5x50")
    with pytest.raises(benchmark.WrongResult, match=r"backend 'torch' at 3x5x50 in torch\.float32 is wrong: h is off"):
        benchmark.verify_at_size("torch", *benchmark.make_pooling_inputs((3, 5, 50), args, "float32"), pooling="fo")


def test_wrong_layer_is_refused(broken_backend, tmp_path):
    broken_backend(lambda h, c_last, gate_logits: (h + (h.shape == (2, 16, 32)), c_last), name="reference")
    with pytest.raises(SystemExit, match=r"error: QRNNLayer at 2x16x32 in torch\.float32 is wrong: h is off by"):
        benchmark.main(["layer", "--quick", "--output-dir", str(tmp_path)])


@pytest.mark.parametrize("command", ["training", "generation"])
def test_language_models_are_refused_if_the_default_backend_is_wrong(command, broken_backend, tmp_path):
    broken_backend(lambda h, c_last, gate_logits: (h, c_last * 1.01), name=None)
    with pytest.raises(SystemExit, match=r"the default backend with f-pooling in torch\.float32 is wrong: c_last"):
        benchmark.main([command, "--quick", "--output-dir", str(tmp_path)])


def test_gpu_packages_that_are_not_there_are_left_out(finished):
    stdout, record, _ = finished("pooling")
    for name in ("fla chunk_hgrn", "fla fused_recurrent_hgrn", "accelerated-scan warp", "accelerated-scan scalar"):
        (line,) = (line for line in stdout.splitlines() if line.startswith(f"Left out: {name} ("))
        assert "Error: " in line
        assert line in record["notes"]


def test_peer_recurrences_are_verified(monkeypatch):
    """Stand-ins with the interfaces of the GPU packages: right ones are timed, a wrong one is not."""

    def hgrn(x, g, wrong=0.0):
        states, c = [], torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            c = g[:, t].exp() * c + x[:, t]
            states.append(c + wrong)
        return torch.stack(states, dim=1), c

    def scan(gates, tokens):
        return hgrn(tokens.transpose(1, 2), gates.transpose(1, 2).log())[0].transpose(1, 2)

    stand_ins = {
        "fla chunk_hgrn": hgrn,
        "fla fused_recurrent_hgrn": lambda x, g: hgrn(x, g, wrong=0.01),
        "accelerated-scan warp": scan,
    }
    modules = {name: type(sys)(f"stand_in_{index}") for index, name in enumerate(stand_ins)}
    for name, module in modules.items():
        module.run = stand_ins[name]
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(
        benchmark, "PEER_RECURRENCES", {name: (module.__name__, "run") for name, module in modules.items()}
    )
    args, report = arguments("pooling", "--passes", "backward", "--backends", "torch"), Report()
    benchmark.benchmark_pooling(args, report)
    timed = {row["contender"] for row in report.panels[0]["rows"]}
    right = {"fla chunk_hgrn", "accelerated-scan warp"}
    assert {f"{name}, {kind}" for name in right for kind in ("eager activations", "bare")} <= timed
    assert not any("fused" in name for name in timed)
    assert any("fla fused_recurrent_hgrn (WrongResult: " in note for note in report.notes)


# --- generation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["QRNN", "GPT-2", "Llama", "Mamba", "Mamba2"])
def test_generation_goes_on_from_the_cache(name):
    """The timed continuation says what generate() says from the whole text."""
    args = arguments("generation", "--models", name)
    model = build_models(args, torch.float32, Report())[name]
    torch.manual_seed(3)
    contender = benchmark.continuation("after 20", name, model, 20, args)
    first, again = (contender.run(contender.setup())[:, -args.new_tokens :] for _ in range(2))
    torch.manual_seed(3)
    whole = generate(model, args.new_tokens, make_tokens(1, 21, args))[:, -args.new_tokens :]
    assert torch.equal(first, whole)
    assert torch.equal(first, again)


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_record(command, finished):
    stdout, record, _ = finished(command)
    assert record["benchmark"] == command
    assert record["environment"]["command"].startswith(f"python scripts/benchmark.py {command} --quick")
    assert {"date", "CPU", "cores", "system", "Python", "torch", "transformers", "numba", "triton"} <= set(
        record["environment"]
    )
    assert record["environment"]["torch"] == torch.__version__
    assert record["settings"]["seed"] == 0
    for panel in record["panels"]:
        assert panel["title"] in stdout
        for row in panel["rows"]:
            if "fastest" in row:
                assert 0 < row["fastest"] <= row["median"]
                assert row["runs"] >= 2
                assert row["ratio"] > 0


@pytest.mark.parametrize("command", COMMANDS)
def test_markdown_is_what_was_printed(command, finished):
    stdout, record, folder = finished(command)
    text = (folder / f"{command}.md").read_text()
    for panel in record["panels"]:
        table = text.split(f"## {panel['title']}\n\n")[1].split("\n\n")[0]
        assert table in stdout
        lines = table.splitlines()
        assert len(lines) == 2 + len(panel["rows"])
        assert len({line.count("|") for line in lines}) == 1
    assert "## Environment" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_picture(command, finished):
    _, _, folder = finished(command)
    pixels = imread(folder / f"{command}.png")[..., :3]
    assert min(pixels.shape[:2]) > 400
    is_coloured = pixels.max(axis=-1) - pixels.min(axis=-1) > 0.3
    assert is_coloured.sum() > 1000  # bars or lines; axes and text are grey


CONTENDERS = {
    "pooling": {"copy", "torch", "plain loop"},
    "layer": {"matrix product", "QRNN layer", "nn.LSTM", "nn.GRU"},
    "training": {"QRNN", "GPT-2", "Llama", "Mamba", "Mamba2"},
    "generation": {"QRNN", "GPT-2", "Llama", "Mamba", "Mamba2"},
    "memory": {"torch", "plain loop", "QRNN", "GPT-2", "Llama", "Mamba", "Mamba2"},
}


@pytest.mark.parametrize("command", COMMANDS)
def test_contenders(command, finished):
    _, record, _ = finished(command)
    assert {row["contender"] for panel in record["panels"] for row in panel["rows"]} >= CONTENDERS[command]


def test_state_of_the_qrnn_does_not_grow_and_a_kv_cache_does(finished):
    _, record, _ = finished("memory")
    rows = record["panels"][-1]["rows"]
    sizes = {(row["contender"], row["x"]): row["state_bytes"] for row in rows}
    # Batch 2, a layer of 64 in float32: the recurrent state and the last input; and the count of tokens.
    assert sizes["QRNN", 8] == sizes["QRNN", 16] == 2 * (64 + 64) * 4 + 8
    assert sizes["Mamba", 8] == sizes["Mamba", 16] > 0
    assert sizes["Llama", 16] == 2 * sizes["Llama", 8] > 0


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_program_stops_with_one_line_on_stderr():
    run = subprocess.run([sys.executable, SCRIPT, "layer", "--shapes", "20x105"], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stdout == ""
    assert len(run.stderr.splitlines()) == 1
    assert "'20x105' is not batch x length x channels, like 20x105x640" in run.stderr


MISTAKES = {
    "no command": ([], "COMMAND"),
    "unknown command": (["speed"], "invalid choice: 'speed'"),
    "unknown option": (["layer", "--batch-sizes", "3"], "unrecognized arguments: --batch-sizes"),
    "unknown dtype": (["pooling", "--dtype", "float8"], "invalid choice: 'float8'"),
    "no threads": (["pooling", "--threads", "0"], "'0' is not a whole number above zero"),
    "no rounds": (["pooling", "--rounds", "none"], "'none' is not a whole number above zero"),
    "negative seconds": (["layer", "--seconds=-3"], "'-3' is not a number of seconds"),
    "seconds of no number": (["layer", "--seconds", "nan"], "'nan' is not a number of seconds"),
    "no GPU": (["layer", "--device", "cuda"], "torch finds no CUDA device"),
    "output is a file": (["layer", "--quick", "--output-dir", "file.txt"], "--output-dir"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    Path("file.txt").touch()
    options, message = MISTAKES[mistake]
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(options)
    line = stopped.value.code if isinstance(stopped.value.code, str) else capsys.readouterr().err.rstrip("\n")
    assert message in line
    assert "\n" not in line
    assert stopped.value.code != 0


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_the_defaults_are(command, capsys):
    with pytest.raises(SystemExit):
        benchmark.main([command, "--help"])
    text = capsys.readouterr().out
    assert "(default: float32" in " ".join(text.split())
    for option in vars(benchmark.parse_arguments([command])):
        assert option == "command" or f"--{option.replace('_', '-')}" in text
