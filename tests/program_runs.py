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
"""What the tests of the programs share: rows to train on, what a run leaves behind, and a run that is killed."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import load_file


def write_rows(path: str | Path, rows: Iterable[dict]) -> None:
    """A file of JSON, a line each."""
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_in(path: str | Path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def run_card(folder: Path, **names) -> None:
    """The card's first example, with the package, run as it stands; `names` are what it speaks of."""
    example, _ = card_examples(folder)
    with contextlib.chdir(folder.parent):
        exec(compile(example, folder / "README.md", "exec"), names)


def run_card_without_package(folder: Path, setting: str = "", text: str = "A text") -> str:
    """What the second one prints of `text`, where the package cannot be imported; `setting` is code before it."""
    _, example = card_examples(folder)
    code = f"import sys\nsys.modules['modeling_qrnn'] = None\n{setting}\n{example.replace('A text', text)}"
    environment = {**os.environ, "HF_MODULES_CACHE": str(folder.resolve() / "modules"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=folder.parent, env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def card_examples(folder: Path) -> list[str]:
    return re.findall("```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)


def kill_at(step: int, program: ModuleType) -> None:
    """Run a program on `recipe.yaml` into the folder `killed`, and kill it as soon as it writes that checkpoint."""
    command = [sys.executable, program.__file__, "recipe.yaml", "--output-dir", "killed"]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # as in the tests' own process, for sums depend on it
    process = subprocess.Popen(command, env=one_thread, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not Path(f"killed/checkpoint-{step}").exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def assert_same_end(killed: Path, whole: Path) -> None:
    """The same weights to the bit, and the same scores."""
    torch.testing.assert_close(weights_in(killed), weights_in(whole), rtol=0, atol=0)
    assert (killed / "scores.json").read_text() == (whole / "scores.json").read_text()
