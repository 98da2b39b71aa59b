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
"""scripts/command_line.py: a mistake is answered with one line."""

import pytest

from command_line import check_processes


def test_processes_that_do_not_know_of_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_processes(2)
    with pytest.raises(SystemExit, match="no accelerator for 2 processes: set ACCELERATE_USE_CPU=true") as stopped:
        check_processes(1)
    assert "\n" not in stopped.value.code
    monkeypatch.delenv("WORLD_SIZE")
    check_processes(1)
