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
"""What the programs share at the command line: a mistake is answered with one line."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NoReturn

from accelerate import PartialState


class OneLineParser(argparse.ArgumentParser):
    """argparse whose errors are one line, without the usage text in front."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help lists the options)\n")


def positive_int(value: str) -> int:
    if not value.isdecimal() or int(value) == 0:
        raise argparse.ArgumentTypeError(f"{value!r} is not a whole number above zero")
    return int(value)


def existing_file(value: str) -> Path:
    if not Path(value).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {value!r}")
    return Path(value)


def stop(message: object) -> NoReturn:
    """End the program with one line."""
    sys.exit(f"{Path(sys.argv[0]).name}: error: {' '.join(str(message).split())}")


def check_processes(n_together: int) -> None:
    """Processes that were started together but do not know of each other would each write to the same folder."""
    n_started = int(os.environ.get("WORLD_SIZE", 1))
    if n_started > n_together:
        stop(f"there is no accelerator for {n_started} processes: set ACCELERATE_USE_CPU=true to train on CPUs")


def check_seed(seed: int) -> None:
    """NumPy takes no others."""
    if not 0 <= seed < 1 << 32:
        stop(f"--seed must be at least 0 and below {1 << 32}, got {seed}")


def end_process_group() -> None:
    """The last thing of a program that trains: its processes end together, and none of them within the group.

    The interpreter of one that ended at once could be gone before gloo's threads had let go of their last tensors, and
    such a process is aborted.
    """
    state = PartialState()
    state.wait_for_everyone()
    state.destroy_process_group()


def one_line_trainer_error() -> AbstractContextManager[None]:
    """End the program with one line if a trainer cannot be made.

    A setting is wrong, a package is missing or the Hub is out of reach, none of which is a fault of the program.
    """
    return one_line_error("training", Exception)


@contextmanager
def one_line_error(subject: object, *exceptions: type[Exception]) -> Iterator[None]:
    """What a user can get wrong ends the program with one line, not with a traceback."""
    try:
        yield
    except exceptions as error:
        stop(f"{subject}: {error}")
