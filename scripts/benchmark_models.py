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
"""The language models that are compared: of as many parameters, what each of them does, and which of them fit."""

import argparse
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache

from benchmark_environment import free_bytes
from benchmark_measuring import peak_bytes
from benchmark_report import Report
from modeling_qrnn import QRNNConfig


MODELS = ("QRNN", "GPT-2", "Llama", "Mamba", "Mamba2")


def model_config(name: str, hidden_size: int, layers: int, args: argparse.Namespace) -> PreTrainedConfig:
    """The usual proportions of each architecture, with tied embeddings, without dropout, and without a last token."""
    shared: dict[str, Any] = {
        "vocab_size": args.vocab_size,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    positions = longest_text(args)
    if name == "GPT-2":
        dropout = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0)
        return GPT2Config(n_embd=hidden_size, n_layer=layers, n_head=8, n_positions=positions, **dropout, **shared)
    if name == "Llama":
        return LlamaConfig(
            hidden_size=hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=8,
            intermediate_size=8 * hidden_size // 3,
            max_position_embeddings=positions,
            **shared,
        )
    if name == "Mamba":
        return MambaConfig(hidden_size=hidden_size, num_hidden_layers=layers, **shared)
    if name == "Mamba2":
        heads = {"num_heads": 16, "head_dim": hidden_size // 8, "n_groups": 1}
        return Mamba2Config(hidden_size=hidden_size, num_hidden_layers=layers, **heads, **shared)
    return QRNNConfig(
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        connection="residual",
        intermediate_size=2 * hidden_size,
        **shared,
    )


def longest_text(args: argparse.Namespace) -> int:
    lengths = [*getattr(args, "lengths", []), *getattr(args, "contexts", []), *getattr(args, "depths", [])]
    return max(lengths) + getattr(args, "new_tokens", 0) + 1


def count_parameters(config: PreTrainedConfig) -> int:
    """All but GPT-2's table of positions, which grows with the text that it must hold and costs no time."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for name, parameter in model.named_parameters() if ".wpe." not in name)


def equal_config(name: str, n_parameters: int, args: argparse.Namespace) -> PreTrainedConfig:
    """The config of about so many parameters whose width is nearest to the QRNN's, with as many layers as it takes."""
    candidates = []
    first = max(16, round(args.hidden_size / 16) * 16)
    for hidden_size in sorted(range(max(16, first // 2), 2 * first, 16), key=lambda width: abs(width - first)):
        one, two = (count_parameters(model_config(name, hidden_size, layers, args)) for layers in (1, 2))
        layers = max(1, round((n_parameters - one) / (two - one)) + 1)
        error = abs(one + (layers - 1) * (two - one) - n_parameters) / n_parameters
        candidates.append((error, hidden_size, layers))
        if error < 0.02:
            break
    _, hidden_size, layers = min(candidates)
    return model_config(name, hidden_size, layers, args)


def build_models(args: argparse.Namespace, dtype: torch.dtype, report: Report) -> dict[str, PreTrainedModel]:
    """The QRNN, and the other models with as many parameters, all with random weights."""
    ours = model_config("QRNN", args.hidden_size, args.layers, args)
    n_parameters = count_parameters(ours)
    configs = {"QRNN": ours}
    configs |= {name: equal_config(name, n_parameters, args) for name in args.models if name != "QRNN"}
    models = {}
    for name, config in configs.items():
        models[name] = AutoModelForCausalLM.from_config(config).to(args.device, dtype).eval()
        if args.weights_by_input:
            lay_weights_out_by_input(models[name])
        count = count_parameters(config)
        size = f"{config.num_hidden_layers} layer{'s' if config.num_hidden_layers > 1 else ''} of {config.hidden_size}"
        report.note(f"{name}: {count:,} parameters ({count / n_parameters - 1:+.1%}), {size}")
        if name.startswith("Mamba") and args.device == "cpu":
            report.note(f"{name}: its kernels are for a GPU, so here Transformers runs its loop over time")
    return models


def lay_weights_out_by_input(model: PreTrainedModel) -> None:
    """The same weights, but what belongs to one input lies side by side in memory, as in GPT-2's Conv1D."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = module.weight.data.t().contiguous().t()


def make_tokens(batch_size: int, seq_len: int, args: argparse.Namespace) -> torch.Tensor:
    return torch.randint(args.vocab_size, (batch_size, seq_len), device=args.device)


def gradients(model: PreTrainedModel, tokens: torch.Tensor) -> None:
    model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()


def training_step(model: PreTrainedModel, optimizer: torch.optim.Optimizer, tokens: torch.Tensor) -> None:
    gradients(model, tokens)
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def prefill(model: PreTrainedModel, tokens: torch.Tensor) -> Cache:
    """The cache after the tokens."""
    return model(input_ids=tokens, use_cache=True, logits_to_keep=1).cache


def generate(model: PreTrainedModel, new_tokens: int, tokens: torch.Tensor, **options: Any) -> Any:
    """Greedy, and exactly so many tokens."""
    return model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        use_cache=True,
        **options,
    )


def models_that_fit(
    models: dict[str, PreTrainedModel],
    run: Callable[[PreTrainedModel, torch.Tensor], Any],
    batch_size: int,
    seq_len: int,
    args: argparse.Namespace,
    report: Report,
) -> dict[str, PreTrainedModel]:
    """The models whose memory for `run`, measured on one short text and scaled up, is there."""
    fitting = {}
    short = min(seq_len, 256)  # a chunk of Mamba2, which pads to whole ones
    for name, model in models.items():
        needed = peak_bytes(partial(run, model, make_tokens(1, short, args)), args.device)
        needed *= batch_size * math.ceil(seq_len / short)
        if needed < free_bytes(args.device):
            fitting[name] = model
        else:
            place = f"batch {batch_size} of {seq_len} tokens"
            report.leave_out(f"{name}, {place}", f"needs about {needed / 1e9:.0f} GB of memory")
    return fitting
