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
"""scripts/benchmark_models.py: models of equal size, of which those run that fit into memory."""

import re

import pytest
import torch

import benchmark_models
from benchmark import parse_arguments
from benchmark_models import (
    MODELS,
    build_models,
    count_parameters,
    equal_config,
    model_config,
    models_that_fit,
    prefill,
)
from benchmark_report import Report


def test_models_that_do_not_fit_into_memory_are_left_out(monkeypatch, capsys):
    args = parse_arguments(["training", "--models", "Llama", "--quick"])
    models = build_models(args, torch.float32, Report())
    monkeypatch.setattr(benchmark_models, "free_bytes", lambda device: 10**9)
    assert models_that_fit(models, prefill, 1, 16, args, Report()).keys() == models.keys()
    assert not models_that_fit(models, prefill, 100_000, 16, args, Report())
    assert re.search(
        r"Left out: Llama, batch 100000 of 16 tokens \(needs about \d+ GB of memory\)", capsys.readouterr().out
    )


@pytest.mark.parametrize("options", [["--quick"], [], ["--hidden-size", "640", "--vocab-size", "10000"]])
def test_peers_have_as_many_parameters(options):
    args = parse_arguments(["generation", *options])
    ours = model_config("QRNN", args.hidden_size, args.layers, args)
    wanted = count_parameters(ours)
    for name in MODELS[1:]:
        config = equal_config(name, wanted, args)
        assert count_parameters(config) == pytest.approx(wanted, rel=0.05)
        assert config.vocab_size == ours.vocab_size


def test_counted_parameters_are_those_of_the_model():
    args = parse_arguments(["training", "--quick"])
    for name, model in build_models(args, torch.float32, Report()).items():
        positions = model.transformer.wpe.weight.numel() if name == "GPT-2" else 0
        assert count_parameters(model.config) == model.num_parameters() - positions


def test_weights_by_input_are_the_same_weights():
    tokens = torch.arange(12).view(2, 6)
    logits = []
    for options in ([], ["--weights-by-input"]):
        torch.manual_seed(4)
        args = parse_arguments(["generation", "--models", "Llama", *options, "--quick"])
        models = build_models(args, torch.float32, Report())
        linears = [x for model in models.values() for x in model.modules() if isinstance(x, torch.nn.Linear)]
        assert all(linear.weight.stride(0 if options else 1) == 1 for linear in linears)
        logits.append([model(tokens).logits for model in models.values()])
    torch.testing.assert_close(*logits)
