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
"""Where the benchmark runs: the machine, its free memory, and the versions of what it runs."""

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch


ROOT = Path(__file__).resolve().parent.parent


def first_match(pattern: str, path: str) -> str:
    """What a file of the Linux kernel says; nothing on other systems."""
    try:
        found = re.search(pattern, Path(path).read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return ""
    return found.group(1).strip() if found else ""


def free_bytes(device: str) -> int:
    if device == "cuda":
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + cached
    available = first_match(r"^MemAvailable:\s*(\d+) kB", "/proc/meminfo")
    return int(available) * 1024 if available else sys.maxsize


def version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def git_commit() -> str:
    """The commit of this tree, marked if the tree differs from it; nothing outside a clone."""
    try:
        run = partial(subprocess.run, cwd=ROOT, capture_output=True, text=True, check=True)
        commit = run(["git", "rev-parse", "HEAD"]).stdout.strip()
        changed = run(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{commit} with changes" if changed else commit


def describe_environment(argv: Sequence[str]) -> dict[str, Any]:
    flags = first_match(r"^flags\s*:(.*)$", "/proc/cpuinfo").split()
    caches = [f"/sys/devices/system/cpu/cpu0/cache/index{index}" for index in range(4)]
    environment: dict[str, Any] = {
        "command": shlex.join(["python", "scripts/benchmark.py", *argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "git commit": git_commit(),
        "CPU": first_match(r"^model name\s*:(.*)$", "/proc/cpuinfo") or platform.processor(),
        "cores": os.cpu_count(),
        "caches": ", ".join(
            f"L{first_match('(.*)', cache + '/level')} {first_match('(.*)', cache + '/size')}" for cache in caches
        ),
        "vector instructions": " ".join(flag for flag in flags if flag.startswith(("avx", "amx"))),
        "CPU capability of torch": torch.backends.cpu.get_cpu_capability(),
        "memory": first_match(r"^MemTotal:\s*(.*)$", "/proc/meminfo"),
        "system": platform.platform(),
        "Python": platform.python_version(),
        "torch": torch.__version__,  # which names the build, too
        **{package: version_of(package) for package in ("transformers", "numba", "triton")},
        "load average at the end": " ".join(f"{load:.1f}" for load in os.getloadavg())
        if hasattr(os, "getloadavg")
        else "",
        **{name: value for name, value in os.environ.items() if name.startswith(("OMP_", "MKL_", "TRITON_"))},
    }
    if torch.cuda.is_available():
        environment |= {"GPU": torch.cuda.get_device_name(), "CUDA": torch.version.cuda}
    return environment
