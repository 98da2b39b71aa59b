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
"""scripts/memory.py: what is freed is not fetched from the system again."""

import subprocess
import sys
from pathlib import Path

import pytest


SCRIPTS = Path(__file__).parents[2] / "scripts"
COUNT_FAULTS = """
import resource, sys
import torch
from memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def allocate():
    for _ in range(10):
        torch.ones(2**24)

allocate()
before = faults()
allocate()
print(faults() - before)
"""


def count_faults(what: str) -> int:
    command = [sys.executable, "-c", COUNT_FAULTS, what]
    return int(subprocess.run(command, cwd=SCRIPTS, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted as Linux does")
def test_freed_memory_is_kept():
    """A tensor of 64 MiB has 16,384 pages, or 32 large ones."""
    assert count_faults("keep") < 32 <= count_faults("give back") / 10
