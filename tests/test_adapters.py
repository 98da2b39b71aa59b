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
"""PEFT's adapters and frozen bodies: trained, merged, taken out again, saved and loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from modeling_qrnn import (
    QRNNConfig,
    QRNNForAudioClassification,
    QRNNForCausalLM,
    QRNNForSequenceClassification,
    QRNNForTimeSeriesPrediction,
    QRNNForTokenClassification,
    QRNNModel,
    QRNNSpeechConfig,
    QRNNTimeSeriesConfig,
)
from modeling_qrnn.trainer_qrnn import QRNNTrainer, QRNNTrainingArguments


VOCAB_SIZE = 30
STACKS = {
    "plain": {},
    "dropped": {"weight_dropout": 0.3, "zoneout": 0.1, "embedding_dropout": 0.1, "locked_dropout": True},
    "dense": {"connection": "dense", "pooling": "ifo"},
    "residual": {
        "connection": "residual",
        "intermediate_size": 24,
        "embedding_size": 12,
        "tie_word_embeddings": True,
        "hidden_dropout": 0.2,
    },
}
TARGETS = {"gates": ["gate_proj"], "all-linear": "all-linear"}
stacks = pytest.mark.parametrize("stack", STACKS)
targets = pytest.mark.parametrize("target", TARGETS)


def make_model(model_class=QRNNForCausalLM, **config):
    """Drawn so wide that an adapter has something to do."""
    torch.manual_seed(0)
    model = model_class(QRNNConfig(vocab_size=VOCAB_SIZE, hidden_size=16, kernel_size=3, **config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    return model


def adapt(model, target="gates", task="CAUSAL_LM", **lora):
    """With an adapter that already changes the model, its second matrix not being zero."""
    torch.manual_seed(1)
    config = LoraConfig(target_modules=TARGETS[target], r=2, task_type=task, init_lora_weights=False, **lora)
    return get_peft_model(model, config)


def weights_of(model) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def logits_of(model, batch) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch).logits


@pytest.fixture
def batch():
    ids, mask = torch.randint(VOCAB_SIZE, (3, 9)), torch.ones(3, 9, dtype=torch.int64)
    mask[1, :4] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture
def make_trainer(tmp_path):
    """`make_trainer(model, labels, ...)`: a quiet Trainer on 16 rows; keywords are training arguments."""

    def make_trainer(model, labels, **arguments):
        ids = torch.randint(VOCAB_SIZE, (16, 7), generator=torch.Generator().manual_seed(0)).tolist()
        rows = Dataset.from_dict({"input_ids": ids, "labels": [labels(row) for row in ids]})
        defaults = {"optim": "adamw_torch", "learning_rate": 2e-2, "max_steps": 30, "logging_steps": 1}
        quiet = {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "per_device_train_batch_size": 8}
        args = TrainingArguments(str(tmp_path / "trainer"), **{**defaults, **quiet, **arguments})
        return Trainer(model, args, train_dataset=rows)

    return make_trainer


def train(trainer: Trainer, **kwargs) -> list[float]:
    trainer.train(**kwargs)
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


# Merging


@targets
@stacks
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_merged_equals_the_adapter(dtype, tolerance, stack, target, batch):
    model = make_model(**STACKS[stack]).to(dtype)
    plain, weights = logits_of(model, batch), weights_of(model)
    adapted = adapt(model, target)
    expected = logits_of(adapted, batch)
    assert (expected - plain).abs().max() > 1e-2
    with adapted.disable_adapter():
        torch.testing.assert_close(logits_of(adapted, batch), plain, rtol=0, atol=0)

    options = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    generated = adapted.generate(**batch, **options)
    adapted.merge_adapter()
    torch.testing.assert_close(logits_of(adapted, batch), expected, rtol=tolerance, atol=tolerance)
    merged = adapted.generate(**batch, **options)
    assert torch.equal(merged.sequences, generated.sequences)
    torch.testing.assert_close(merged.logits, generated.logits, rtol=tolerance, atol=tolerance)
    adapted.unmerge_adapter()
    torch.testing.assert_close(logits_of(adapted, batch), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(weights_of(adapted.unload()), weights, rtol=tolerance, atol=tolerance)


def test_all_linear_leaves_out_the_heads():
    """Of the layers all; the tied or untied head is no place for an adapter, nor is a classifier, which is new."""
    adapted = adapt(make_model(**STACKS["residual"]), "all-linear")
    names = {name.split(".")[-2] for name, _ in adapted.named_modules() if name.endswith("lora_A")}
    assert names == {"embed_proj", "gate_proj", "out_proj", "gate_up_proj", "down_proj", "head_proj"}
    classifier = adapt(make_model(QRNNForSequenceClassification), "all-linear", "SEQ_CLS")
    assert not any("score.lora" in name for name, _ in classifier.named_parameters())


# Training


@targets
@stacks
def test_trained_by_trainer_the_adapter_learns_and_the_model_stays(stack, target, make_trainer, batch, tmp_path):
    model = make_model(**STACKS[stack])
    before = weights_of(model)
    adapted = adapt(model, target)
    losses = train(make_trainer(adapted, labels=lambda row: row))
    assert sum(losses[-3:]) < 0.97 * sum(losses[:3])
    merged_in = {
        key.replace(".base_layer", ""): value for key, value in weights_of(model).items() if "lora" not in key
    }
    torch.testing.assert_close(merged_in, before, rtol=0, atol=0)

    adapted.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(make_model(**STACKS[stack]), tmp_path / "adapter")
    torch.testing.assert_close(logits_of(loaded, batch), logits_of(adapted, batch), rtol=0, atol=0)


def test_gradient_accumulation_changes_nothing(make_trainer):
    """Of a model in a wrapper Trainer must still know how the loss is divided."""

    def run(**arguments):
        adapted = adapt(make_model())
        trainer = make_trainer(adapted, labels=lambda row: row, max_steps=2, optim="sgd", **arguments)
        return train(trainer), weights_of(adapted)

    accumulated = run(per_device_train_batch_size=2, gradient_accumulation_steps=4)
    torch.testing.assert_close(accumulated, run(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "non-reentrant"])
@stacks
def test_gradient_checkpointing_changes_nothing(stack, use_reentrant, make_trainer):
    def run(**arguments):
        adapted = adapt(make_model(**STACKS[stack]))
        return train(make_trainer(adapted, labels=lambda row: row, max_steps=3, **arguments)), weights_of(adapted)

    options = {"activation_checkpointing_kwargs": {"use_reentrant": use_reentrant}}
    torch.testing.assert_close(run(activation_checkpointing=True, **options), run(), rtol=0, atol=0)


INPUTS_OF_NUMBERS = {
    "speech": lambda: (
        QRNNForAudioClassification(QRNNSpeechConfig(num_mel_bins=4, hidden_size=8)),
        {"input_features": torch.randn(2, 12, 4), "labels": torch.tensor([0, 1])},
    ),
    "time series": lambda: (
        QRNNForTimeSeriesPrediction(QRNNTimeSeriesConfig(hidden_size=8, prediction_length=4, patch_length=4)),
        {"past_values": torch.randn(2, 12, 1), "future_values": torch.randn(2, 4, 1)},
    ),
}


@pytest.mark.parametrize("kind", INPUTS_OF_NUMBERS)
def test_gradient_checkpointing_of_what_reads_numbers(kind):
    """Reentrant checkpointing needs a layer that reads the inputs, whose output it makes require a gradient."""
    model, batch = INPUTS_OF_NUMBERS[kind]()
    model.activation_checkpointing_enable({"use_reentrant": True})
    adapted = get_peft_model(model, LoraConfig(target_modules=["gate_proj"], r=2)).train()
    adapted(**batch).loss.backward()
    gradients = [parameter.grad for parameter in adapted.parameters() if parameter.requires_grad]
    assert gradients and all(gradient is not None for gradient in gradients)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["gate_proj"], "trainable_token_indices": [1]},
        {"target_modules": ["gate_proj"], "modules_to_save": ["embed_tokens"]},
    ],
    ids=["lora", "tokens", "whole"],
)
def test_embeddings_may_be_adapted(options, dropout):
    model = make_model(embedding_dropout=dropout)
    adapted = get_peft_model(model, LoraConfig(r=2, **options)).train()
    ids = torch.tensor([[1, 2, 3]])
    adapted(ids, labels=ids).loss.backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in adapted.parameters())
    with pytest.raises(ValueError, match="`input_ids` must lie between 0 and vocab_size - 1 = 29"):
        adapted(torch.tensor([[VOCAB_SIZE]]))


def test_a_prompt_is_tuned():
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, num_attention_heads=1)
    adapted = get_peft_model(make_model(), config)
    ids = torch.tensor([[1, 2, 3]])
    adapted(ids, labels=ids).loss.backward()
    assert adapted.prompt_encoder["default"].embedding.weight.grad.abs().min() > 0
    tokens = adapted.eval().generate(input_ids=ids, max_new_tokens=4, do_sample=False, use_cache=False)
    for length in range(3, 7):
        with torch.no_grad():
            assert adapted(tokens[:, :length]).logits[0, -1].argmax() == tokens[0, length]


def test_what_tells_series_apart_may_be_adapted():
    config = QRNNTimeSeriesConfig(hidden_size=8, prediction_length=4, num_input_channels=2, channel_embedding=True)
    adapted = get_peft_model(
        QRNNForTimeSeriesPrediction(config),
        LoraConfig(target_modules=["channels"], r=2, init_lora_weights=False),
    ).eval()
    past = torch.randn(2, 12, 2)
    with torch.no_grad():
        actual = adapted(past_values=past).prediction_outputs
        with adapted.disable_adapter():
            assert (adapted(past_values=past).prediction_outputs - actual).abs().max() > 1e-4
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(merged(past_values=past).prediction_outputs, actual)


def test_text_in_streams_and_resumption(tmp_path):
    """`QRNNTrainer` carries the state through a model in a wrapper, and goes on from a checkpoint of the adapter."""
    text = torch.randint(VOCAB_SIZE, (300,), generator=torch.Generator().manual_seed(0))

    def run(**kwargs):
        adapted = adapt(make_model(**STACKS["dropped"]))
        arguments = {"bptt": 10, "max_steps": 8, "save_steps": 4, "learning_rate": 1e-2}
        quiet = {"use_cpu": True, "disable_tqdm": True, "per_device_train_batch_size": 3}
        trainer = QRNNTrainer(adapted, QRNNTrainingArguments(str(tmp_path), **arguments, **quiet), text, text)
        trainer.train(**kwargs)
        return weights_of(adapted), trainer.evaluate()["eval_loss"]

    expected = run()
    torch.testing.assert_close(run(resume_from_checkpoint=str(tmp_path / "checkpoint-4")), expected, rtol=0, atol=0)


# Heads beside adapters


HEADS = {
    "sequence": (QRNNForSequenceClassification, "SEQ_CLS", {"bidirectional": True, "classifier_pooling": "concat"}),
    "sequence-hidden": (QRNNForSequenceClassification, "SEQ_CLS", {"classifier_hidden_size": 8}),
    "token": (QRNNForTokenClassification, "TOKEN_CLS", {"bidirectional": True}),
}
TASKS = {"SEQ_CLS": lambda row: row[-1] % 3, "TOKEN_CLS": lambda row: [number % 3 for number in row]}


@pytest.mark.parametrize("head", HEADS)
def test_head_is_trained_and_saved_with_the_adapter(head, make_trainer, batch, tmp_path):
    model_class, task, config = HEADS[head]
    model = make_model(model_class, num_labels=3, **config)
    model.save_pretrained(tmp_path / "base")
    adapted = adapt(model, task=task)
    trained = {name.split(".")[2] for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained == {"model", "score"}
    losses = train(make_trainer(adapted, labels=TASKS[task], max_steps=60))
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    expected = logits_of(adapted, batch)

    adapted.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(model_class.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    torch.testing.assert_close(logits_of(loaded, batch), expected, rtol=0, atol=0)
    merged = loaded.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    again = model_class.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits_of(again, batch), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_head_on_a_frozen_body(head, make_trainer, batch, tmp_path):
    model_class, task, config = HEADS[head]
    model = make_model(model_class, num_labels=3, **config)
    model.model.requires_grad_(False)
    before = weights_of(model.model)
    losses = train(make_trainer(model, labels=TASKS[task], max_steps=60))
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    torch.testing.assert_close(weights_of(model.model), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in model.model.parameters())

    model.save_pretrained(tmp_path / "model")
    body = QRNNModel.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(weights_of(body), before, rtol=0, atol=0)


# Files


LOAD = """
import sys, torch, modeling_qrnn
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM

base, adapter, ids, expected = sys.argv[1], sys.argv[2], *torch.load(sys.argv[3])
whole = AutoPeftModelForCausalLM.from_pretrained(adapter)
onto = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
inside = AutoModelForCausalLM.from_pretrained(base)
inside.load_adapter(adapter)
for model in whole, onto, inside:
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(ids).logits, expected, rtol=1e-6, atol=1e-6)
"""


def test_adapter_loads_in_another_process(batch, tmp_path):
    base, adapter, values = (tmp_path / name for name in ("base", "adapter", "values.pt"))
    make_model(**STACKS["residual"]).save_pretrained(base)
    adapted = adapt(QRNNForCausalLM.from_pretrained(base), "all-linear")
    adapted.save_pretrained(adapter)
    assert {path.name for path in adapter.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    ids = batch["input_ids"]
    torch.save((ids, logits_of(adapted, {"input_ids": ids})), values)
    root = Path(__file__).resolve().parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", LOAD, base, adapter, values], env=environment, cwd=tmp_path, check=True)


def test_several_adapters_share_a_model(batch):
    adapted = adapt(make_model())
    first = logits_of(adapted, batch)
    adapted.add_adapter("second", LoraConfig(target_modules=["gate_proj"], r=3, init_lora_weights=False))
    adapted.set_adapter("second")
    assert (logits_of(adapted, batch) - first).abs().max() > 1e-3
    adapted.set_adapter("default")
    torch.testing.assert_close(logits_of(adapted, batch), first, rtol=0, atol=0)
