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

import pytest

from curves import plot_forecaster, plot_loss, plot_training, points


TRAINED = {"step": 1, "loss": 3.0}
MEASURED = {"step": 2, "eval_loss": 2.0, "eval_accuracy": 0.5}


def plot_text(history, path):
    plot_loss(points(history, "loss"), points(history, "eval_loss"), "nats per token", path)


def plot_labels(history, path):
    plot_training(history, "accuracy", path)


@pytest.mark.parametrize("plot", [plot_text, plot_labels, plot_forecaster])
@pytest.mark.parametrize("history", [[TRAINED], [MEASURED], [TRAINED, MEASURED]], ids=["trained", "measured", "both"])
def test_what_there_is_is_drawn(plot, history, tmp_path):
    """A run may be shorter than the steps between two lines of its log, or not be measured on the way."""
    plot(history, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("plot", [plot_text, plot_labels, plot_forecaster])
def test_nothing_is_drawn_of_nothing(plot, tmp_path):
    plot([{"step": 3, "train_runtime": 1.0}], tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()
