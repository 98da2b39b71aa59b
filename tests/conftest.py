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
"""What all tests share: fixed seeds, one thread (tiny operations stall on barriers), and Triton's interpreter."""

import gc
import os

import hypothesis
import pytest
import torch
from torch import nn


if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton's kernels are defined: they then run on a CPU
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL's trainers report to the Hub that they were made


class TorchRandom:
    """Torch's generator for Hypothesis, which seeds it before each example."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


torch_random = TorchRandom()  # of which Hypothesis keeps a weak reference
hypothesis.register_random(torch_random)
hypothesis.settings.register_profile("reproducible", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("reproducible")


@pytest.fixture(scope="module", autouse=True)
def _frozen_garbage():
    """Trainer collects garbage at each start, and searching all that was imported takes longer than the training."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _reproducible():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    yield
    torch.set_flush_denormal(False)  # a program sets it for its whole process


@pytest.fixture
def redraw():
    """Redraw all parameters wide, in place: zero biases and tiny weights hide leaks at pads and between chunks."""

    def redraw(module: nn.Module, std: float = 0.5) -> nn.Module:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.normal_(std=std)
        return module.eval()

    return redraw


@pytest.fixture
def taken_back(monkeypatch):
    """How many tokens each call of `crop` took back: with none, a test of rolling back would prove nothing."""
    from modeling_qrnn import QRNNCacheLayer  # here, for the environment of the kernels must be set before

    crop, counts = QRNNCacheLayer.crop, []

    def counting_crop(self, tokens_to_remove):
        counts.append(-int(tokens_to_remove))
        crop(self, tokens_to_remove)

    monkeypatch.setattr(QRNNCacheLayer, "crop", counting_crop)
    return counts
