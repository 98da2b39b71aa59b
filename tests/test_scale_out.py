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
"""Several processes on a CPU: they train what one does, go on from each other's checkpoints, and share a model."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from filelock import FileLock
from transformers import AutoModelForCausalLM

import train_language_model
import train_seq2seq
import train_sequence_classifier
import train_time_series
import train_token_classifier
from process_runs import MODELS, PROGRAMS, recipe_of, write_data
from program_runs import weights_in


ROOT = Path(__file__).resolve().parent.parent
CONFIGURATIONS = ROOT / "configuration/accelerate"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> Path:
    return left_by("models", tmp_path_factory)


@pytest.fixture(scope="session")
def program_runs(tmp_path_factory) -> Path:
    return left_by("programs", tmp_path_factory)


def left_by(kind: str, tmp_path_factory) -> Path:
    """What process_runs.py leaves; of the workers of a test session one starts it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / kind
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            folder.mkdir(exist_ok=True)
            command = [sys.executable, ROOT / "tests/process_runs.py", kind, folder]
            environment = {name: value for name, value in ENVIRONMENT.items() if name != "ACCELERATE_USE_CPU"}
            environment["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "scripts")))
            output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            result = subprocess.run(command, env=environment, timeout=600, **output)
            assert result.returncode == 0, result.stdout
            (folder / "done").touch()
    return folder


def losses_in(history: list[dict]) -> dict[str, list[float]]:
    return {name: [entry[name] for entry in history if name in entry] for name in ("loss", "eval_loss", "grad_norm")}


def assert_same_run(actual: Path, expected: Path, **tolerance):
    """The same losses to the end, from wherever it began, and the same weights."""
    tolerance = {"rtol": 1e-5, "atol": 1e-5} | tolerance
    curves = [losses_in(json.loads((folder / "history.json").read_text())) for folder in (actual, expected)]
    assert len(curves[1]["loss"]) > 10
    torch.testing.assert_close(*curves, **tolerance)
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in (actual, expected)]
    torch.testing.assert_close(*(dict(model.state_dict()) for model in models), **tolerance)


def assert_same_model_and_scores(actual: Path, expected: Path) -> None:
    models = [weights_in(folder) for folder in (actual, expected)]
    models[0] = {name: models[0][name] for name in models[1]}  # FSDP also writes weights that are tied to others
    torch.testing.assert_close(*models, rtol=1e-4, atol=1e-5)
    scores = [json.loads((folder / "scores.json").read_text()) for folder in (actual, expected)]
    for each in scores:  # Trainer's loss is a mean of batches, and these are others
        each["test"].pop("loss", None)
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-5)


# Training


@pytest.mark.parametrize("name", ["two", "SHARDED_STATE_DICT", "FULL_STATE_DICT"])
def test_two_processes_train_as_one(name, runs):
    """Of equally many streams together; each with a copy of the weights, or with a part of them."""
    assert_same_run(runs / name, runs / "one")


RESUMED = {
    "two_then_one": "two",
    "one_then_two": "one",
    "SHARDED_STATE_DICT_then_one": "SHARDED_STATE_DICT",
    "FULL_STATE_DICT_then_one": "FULL_STATE_DICT",
}


@pytest.mark.parametrize("name", RESUMED)
def test_number_of_processes_may_change(name, runs):
    """Within an epoch, where each stream has a state."""
    assert_same_run(runs / name, runs / RESUMED[name])


def test_number_of_streams_may_not(runs):
    message = (runs / "refused/error.txt").read_text()
    assert "all 1 processes together read 4 streams" in message and message.endswith("got 2")
    assert "\n" not in message


def test_checkpoint_of_shards_is_one_of_shards(runs):
    sharded, full = (runs / name / "checkpoint-8" for name in ("SHARDED_STATE_DICT", "FULL_STATE_DICT"))
    assert {path.name for path in (sharded / "pytorch_model_fsdp_0").iterdir()} >= {"__0_0.distcp", "__1_0.distcp"}
    assert not (sharded / "model.safetensors").exists()
    assert (full / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["SHARDED_STATE_DICT", "FULL_STATE_DICT/checkpoint-8"])
def test_sharded_model_is_saved_with_its_own_code(name, runs):
    folder = runs / name
    references = json.loads((folder / "config.json").read_text())["auto_map"].values()
    assert "modeling_qrnn.QRNNForCausalLM" in references
    assert all((folder / f"{reference.split('.')[0]}.py").is_file() for reference in references)
    assert AutoModelForCausalLM.from_pretrained(folder).generate(torch.tensor([[1]]), max_new_tokens=2).shape == (1, 3)


def test_averages_of_shards(runs):
    """NT-ASGD: what FSDP gathered of the averages for an evaluation must not be trained on."""
    assert_same_run(runs / "two_averaging", runs / "one_averaging")


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_train_on_shards_as_on_the_whole(name, program_runs):
    assert_same_model_and_scores(program_runs / f"{name}-shards", program_runs / f"{name}-whole")
    optimizer = "optimizer_0" if name == "train_language_model" else "optimizer.bin"  # of FSDP, in parts and whole
    assert (program_runs / f"{name}-shards/checkpoint-4" / optimizer).exists()


# Transformers' own parallelism


@pytest.mark.parametrize("kind", ["tp", "pp", "fsdp"])
def test_distributed_model_equals_the_whole(kind, runs):
    results = json.loads((runs / f"{kind}.json").read_text())
    assert results.keys() == MODELS.keys()
    for name, result in results.items():
        if isinstance(result, str):
            assert kind == "pp" and name in ("residual-narrow", "dense", "masked", "token")
            assert "`pp_size` must be 1" in result
            continue
        compared = {"forward"} if kind == "pp" else {"forward", "backward", "saved", "share"}
        assert result.keys() == compared | ({"generate"} if MODELS[name][0].can_generate() else set()), name
        assert result["forward"] < 1e-5, name
        if "generate" in result:
            assert result["generate"] == 0, name
        if kind != "pp":
            assert result["backward"] < 1e-5, name
            assert result["saved"] == 0, name
            assert result["share"] < 0.6, name  # of the weights, in the first of two processes


@pytest.mark.parametrize("name", ["translator", "forecaster"])
def test_shards_generate_as_the_whole(name, runs):
    assert max(json.loads((runs / "generated.json").read_text())[name]) < 1e-5


# Launched


RECIPE = {
    "train_file": "text.txt",
    "tokenizer": "character",
    "validation_share": 0.2,
    "model_config": "qrnn-tiny",
    "model_overrides": {
        **dict.fromkeys(("input_dropout", "hidden_dropout", "output_dropout"), 0),
        **dict.fromkeys(("hidden_size", "intermediate_size"), 16),
        "num_hidden_layers": 2,
    },
    "bptt": 16,
    "max_steps": 30,
    "learning_rate": 0.01,
    "eval_strategy": "steps",
    "eval_steps": 10,
    "save_steps": 1,
    "save_total_limit": 2,
    "logging_steps": 1,  # a mean of several steps is cut short by a resumption
    "disable_tqdm": True,
}


# Python imports a file of this name where it starts. In a group, a process that ends may be aborted by gloo's threads.
SITECUSTOMIZE = """
import atexit, sys

@atexit.register
def tell():
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_initialized():
        print("ended in a process group")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    lines = [f"{first} likes {second} and {third} ." for first in "abcde" for second in "fghij" for third in "klmno"]
    Path("text.txt").write_text("\n".join(lines))
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    Path("sitecustomize.py").write_text(SITECUSTOMIZE)
    return tmp_path


def launch(configuration: str, *options: str | Path, **kwargs) -> subprocess.Popen:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += [CONFIGURATIONS / f"{configuration}.yaml", *options]
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{ROOT}{os.pathsep}.", **kwargs.pop("env", {})}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def train_in_one(output: str) -> dict[str, list[float]]:
    """The program as one process, with the batch of two; its losses."""
    options = ["--output-dir", output, "--per-device-train-batch-size", "4"]
    train_language_model.main(["recipe.yaml", *options])
    return losses_in(json.loads(Path(output, "checkpoint-30/trainer_state.json").read_text())["log_history"])


def test_killed_worker_ends_the_run_which_one_process_ends(folder):
    """All processes end soon, and say why; what they did until then is what one does, and it goes on from there."""
    program = [ROOT / "scripts/train_language_model.py", "recipe.yaml", "--output-dir", "killed"]
    launcher = launch("cpu_two_processes", *program, "--per-device-train-batch-size", "2")
    while not Path("killed/checkpoint-5/trainer_state.json").exists() and launcher.poll() is None:
        time.sleep(0.001)
    workers = psutil.Process(launcher.pid).children()
    assert len(workers) == 2
    workers[1].send_signal(signal.SIGKILL)
    said, _ = launcher.communicate(timeout=60)
    assert launcher.returncode not in (0, -signal.SIGKILL)
    assert f"Signal 9 (SIGKILL) received by PID {workers[1].pid}" in said
    assert not any(worker.is_running() for worker in workers)
    assert not Path("killed/scores.json").exists()

    torch.testing.assert_close(train_in_one("killed"), train_in_one("whole"), rtol=1e-5, atol=1e-5)
    for name, value in weights_in(Path("whole")).items():
        torch.testing.assert_close(weights_in(Path("killed"))[name], value, rtol=1e-4, atol=1e-5)


OTHER_PROGRAMS = train_sequence_classifier, train_token_classifier, train_seq2seq, train_time_series


@pytest.mark.parametrize("program", OTHER_PROGRAMS, ids=lambda program: program.__name__)
def test_other_programs_train_on_two_as_on_one(program, folder):
    write_data()
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe_of(program.__name__)))
    options = ["recipe.yaml", "--output-dir", "two", "--per-device-train-batch-size", "4"]
    launcher = launch("cpu_two_processes", program.__file__, *options)
    said, _ = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, said
    assert "ended in a process group" not in said
    program.main(["recipe.yaml", "--output-dir", "one", "--per-device-train-batch-size", "8"])
    assert_same_model_and_scores(Path("two"), Path("one"))
    assert len(re.findall("^test: ", said, flags=re.MULTILINE)) == 1  # one process reports


# Slower: the other configurations and programs, started as a user starts them


@pytest.mark.slow
def test_two_nodes(folder):
    """Two starters on one machine, each with one process on a CPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = ["--num_processes", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", port]
    program = [ROOT / "scripts/train_language_model.py", "recipe.yaml", "--output-dir", "nodes"]
    program += ["--per-device-train-batch-size", "2"]
    nodes = [launch("two_nodes", *options, "--machine_rank", rank, *program) for rank in "01"]
    for node in nodes:
        said, _ = node.communicate(timeout=300)
        assert node.returncode == 0, said
        assert "ended in a process group" not in said
    losses = losses_in(json.loads(Path("nodes/checkpoint-30/trainer_state.json").read_text())["log_history"])
    torch.testing.assert_close(losses, train_in_one("whole"), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_one_process(folder):
    program = [ROOT / "scripts/train_language_model.py", "recipe.yaml", "--output-dir", "launched"]
    launcher = launch("one_gpu", *program, "--per-device-train-batch-size", "4")
    said, _ = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, said
    train_in_one("whole")
    torch.testing.assert_close(weights_in(Path("launched")), weights_in(Path("whole")), rtol=0, atol=0)


@pytest.mark.slow
def test_quickstart(folder):
    """One process writes and reports."""
    options = ["--max-steps", "2", "--output-dir", "two"]
    launcher = launch("cpu_two_processes", ROOT / "scripts/quickstart.py", *options)
    said, _ = launcher.communicate(timeout=600)
    assert launcher.returncode == 0, said
    assert "ended in a process group" not in said
    assert said.count("Model card:") == 1
    assert AutoModelForCausalLM.from_pretrained("two").num_parameters() > 1e6
    assert Path("two/README.md").is_file() and Path("two/loss_curve.png").is_file()


@pytest.mark.slow
def test_processes_without_an_accelerator_are_refused(folder):
    program = [ROOT / "scripts/train_language_model.py", "recipe.yaml", "--output-dir", "alone"]
    launcher = launch("cpu_two_processes", *program, env={"ACCELERATE_USE_CPU": "false"})
    said, _ = launcher.communicate(timeout=300)
    assert launcher.returncode != 0
    assert "error: there is no accelerator for 2 processes: set ACCELERATE_USE_CPU=true" in said
    assert not Path("alone").exists()
