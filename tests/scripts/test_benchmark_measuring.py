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
"""scripts/benchmark_measuring.py: statistics, turns, settings that are given back, and bytes, all by hand."""

import pytest
import torch

import benchmark_measuring
from benchmark import parse_arguments
from benchmark_measuring import Contender, make_rows, measure, peak_bytes, saved_bytes, summarize
from benchmark_report import Report


def test_summary_by_hand():
    summary = summarize([3.0, 2.0, 9.0, 4.0, 5.0, 6.0, 7.0, 8.0, 2.5, 100.0])
    assert summary == {"fastest": 2.0, "median": 5.5, "spread": (9.0 - 2.0) / 2.0, "runs": 10}
    assert summarize([0.5]) == {"fastest": 0.5, "median": 0.5, "spread": 0.0, "runs": 1}


def test_ratios_are_of_the_fastest_runs():
    summaries = {name: summarize(times) for name, times in {"a": [4, 2, 9], "b": [3, 30]}.items()}
    rows = make_rows("case", summaries, baseline="a")
    assert [(row["contender"], row["ratio"]) for row in rows] == [("a", 1.0), ("b", 1.5)]
    # Without its baseline a row still has its times.
    assert "ratio" not in make_rows("case", {"b": summarize([3])}, baseline="a")[0]


def test_contenders_take_turns_in_both_directions():
    calls = []
    contenders = [
        Contender("a", lambda argument: calls.append(("a", argument)), lambda: "made for a"),
        Contender("b", lambda argument: calls.append(("b", argument)), lambda: "made for b"),
    ]
    benchmark_measuring.SHORTEST_SAMPLE, shortest = 1e-12, benchmark_measuring.SHORTEST_SAMPLE  # one run is a sample
    try:
        args = parse_arguments(["layer", "--rounds", "3", "--quick"])
        results = measure(contenders, "here", 1, args, Report())
    finally:
        benchmark_measuring.SHORTEST_SAMPLE = shortest
    assert [name for name, _ in calls[4:]] == ["a", "b", "b", "a", "a", "b"]
    assert {argument for _, argument in calls} == {"made for a", "made for b"}
    assert {name: summary["runs"] for name, summary in results.items()} == {"a": 3, "b": 3}


def test_what_is_too_fast_to_time_repeats_within_a_sample():
    calls = []
    contender = Contender("fast", calls.append, lambda: None)
    args = parse_arguments(["layer", "--rounds", "2", "--quick"])
    summary = measure([contender], "here", 1, args, Report())["fast"]
    assert len(calls) > 20
    assert summary["fastest"] < 1e-3


def settings_of_torch():
    return torch.get_num_threads(), torch.get_float32_matmul_precision()


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_threads_and_precision_are_set_and_given_back(precision):
    """What is verified before has the precision that PyTorch begins with."""
    seen = []
    contender = Contender("settings", lambda _: seen.append(settings_of_torch()))
    args = parse_arguments(["layer", "--float32-matmul-precision", precision, "--quick"])
    measure([contender], "here", 2, args, Report())
    assert set(seen) == {(2, precision)}
    assert settings_of_torch() == (1, "highest")


def test_saved_bytes_by_hand():
    x = torch.randn(10, requires_grad=True)
    assert saved_bytes(lambda: x * x) == 40  # the same tensor twice
    assert saved_bytes(lambda: x.exp() * x) == 80
    assert saved_bytes(lambda: x + 1) == 0


def test_peak_bytes_by_hand():
    def run():
        first = torch.zeros(1000)
        second = torch.zeros(2000)
        del first, second
        return torch.zeros(500)

    assert peak_bytes(run, "cpu") == 12_000
    left = []
    assert peak_bytes(lambda: left.append(torch.zeros(100_000)), "cpu") == 400_000
    assert peak_bytes(run, "cpu") == 12_000  # what is left of an earlier run does not count


def test_what_a_peer_raises_leaves_it_out_and_what_we_raise_does_not(capsys):
    def fail(_):
        raise RuntimeError("does not\nrun here")

    args, report = parse_arguments(["layer", "--quick"]), Report()
    contenders = [Contender("peer", fail), Contender("fine", lambda _: None)]
    assert list(measure(contenders, "2x3x4", 1, args, report)) == ["fine"]
    assert capsys.readouterr().out == "Left out: peer, 2x3x4 (RuntimeError: does not run here)\n"
    with pytest.raises(RuntimeError):
        measure([Contender("ours", fail, is_ours=True)], "2x3x4", 1, args, report)
