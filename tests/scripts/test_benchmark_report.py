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
"""scripts/benchmark_report.py: what is drawn of what was measured."""

import pytest

from benchmark_report import draw


TIMED = {"case": "2x3", "baseline": "copy", "fastest": 1.0, "median": 1.0, "spread": 0.0}


@pytest.mark.parametrize(
    ("rows", "num_pictures"),
    [
        ([{**TIMED, "contender": "copy", "ratio": 1.0}, {**TIMED, "contender": "numba", "ratio": 0.5}], 2),
        ([{**TIMED, "contender": "copy", "ratio": 1.0}], 1),  # nothing beside the baseline: its time alone
        ([{**TIMED, "contender": "numba"}], 1),  # no baseline, so no ratio
    ],
    ids=["both", "baseline", "contender"],
)
def test_what_there_is_is_drawn(rows, num_pictures):
    figure = draw([{"title": "Forward", "plotted": ["ratio", "fastest"], "rows": rows}])
    assert len(figure.axes) == num_pictures


def test_nothing_is_drawn_of_nothing():
    assert draw([{"title": "Forward", "plotted": ["ratio"], "rows": [{**TIMED, "contender": "numba"}]}]) is None
