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
"""modeling_qrnn/transfer_qrnn.py: learning rates by level, and unfreezing level by level."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from modeling_qrnn import (
    QRNNConfig,
    QRNNForCausalLM,
    QRNNForConditionalGeneration,
    QRNNForSequenceClassification,
    QRNNSeq2SeqConfig,
)
from modeling_qrnn.transfer_qrnn import GradualUnfreezing, discriminative_parameter_groups, parameter_levels


CONFIGS = {
    "plain": {},
    "dense": {"connection": "dense", "embedding_size": 6},
    "residual": {"connection": "residual", "embedding_size": 6, "intermediate_size": 16},
    "bidirectional": {"bidirectional": True, "norm": "layer_norm"},
    "tied": {"tie_word_embeddings": True, "embedding_size": 6},
}


def make_classifier(**options) -> QRNNForSequenceClassification:
    return QRNNForSequenceClassification(QRNNConfig(vocab_size=20, hidden_size=8, num_hidden_layers=3, **options))


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("model_class", [QRNNForSequenceClassification, QRNNForCausalLM])
def test_levels_hold_each_parameter_once(model_class, options):
    if model_class is QRNNForCausalLM and options.get("bidirectional"):
        pytest.skip("a bidirectional model is no causal language model")
    model = model_class(QRNNConfig(vocab_size=20, hidden_size=8, num_hidden_layers=3, **options))
    levels = parameter_levels(model)
    has_head = model_class is QRNNForSequenceClassification or not options.get("tie_word_embeddings")
    assert len(levels) == 4 + has_head and all(levels)
    in_levels = [id(parameter) for level in levels for parameter in level]
    assert sorted(in_levels) == sorted(id(parameter) for parameter in model.parameters())
    assert any(parameter is model.model.embed_tokens.weight for parameter in levels[0])
    for layer, level in zip(model.model.layers, levels[1:4], strict=True):
        assert {id(parameter) for parameter in level} == {id(parameter) for parameter in layer.parameters()}


def test_only_a_stack_that_reads_text_has_levels():
    config = QRNNSeq2SeqConfig(vocab_size=20, hidden_size=8)
    with pytest.raises(ValueError, match=r"`model` must be a QRNN of text .* got QRNNForConditionalGeneration"):
        parameter_levels(QRNNForConditionalGeneration(config))


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_rates_fall_by_the_factor_from_level_to_level(options):
    model = make_classifier(**options)
    groups = discriminative_parameter_groups(model, learning_rate=0.1, factor=2.6, weight_decay=0.01)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    for depth, level in enumerate(reversed(parameter_levels(model))):
        for parameter in level:
            assert rates[id(parameter)] == pytest.approx(0.1 / 2.6**depth)
            assert decays[id(parameter)] == (0.01 if parameter.dim() > 1 else 0.0)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


@pytest.mark.parametrize("factor", [0.5, 0.0, -1.0])
def test_a_factor_below_one_is_refused(factor):
    with pytest.raises(ValueError, match="`factor` must be at least 1"):
        discriminative_parameter_groups(make_classifier(), 0.1, factor)


class Recorder(TrainerCallback):
    """Which levels each step changes."""

    def __init__(self):
        self.changed = []

    def on_step_begin(self, args, state, control, model, **kwargs):
        self.before = [[parameter.detach().clone() for parameter in level] for level in parameter_levels(model)]

    def on_step_end(self, args, state, control, model, **kwargs):
        pairs = zip(parameter_levels(model), self.before, strict=True)
        self.changed.append([not all(map(torch.equal, level, before)) for level, before in pairs])


def fine_tune(model, folder, callbacks, epochs, **arguments):
    rows = [{"input_ids": [i, i + 1, 3], "labels": i % 2} for i in range(8)]
    arguments = {"per_device_train_batch_size": 4, "report_to": "none", "disable_tqdm": True, **arguments}
    args = TrainingArguments(str(folder), num_train_epochs=epochs, use_cpu=True, weight_decay=0.1, **arguments)
    optimizer = torch.optim.AdamW(discriminative_parameter_groups(model, 0.01, weight_decay=0.1))
    trainer = Trainer(
        model, args, train_dataset=Dataset.from_list(rows), optimizers=(optimizer, None), callbacks=callbacks
    )
    return trainer


def test_levels_join_one_after_another(tmp_path):
    """The head in the first epoch, a layer more in each later one; a resumed run goes on with the same levels."""
    recorder = Recorder()
    trainer = fine_tune(make_classifier(), tmp_path, [GradualUnfreezing(), recorder], epochs=6, save_steps=5)
    trainer.train()
    expected = [[False] * max(0, 4 - step // 2) + [True] * min(5, 1 + step // 2) for step in range(12)]
    assert recorder.changed == expected
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())

    resumed = Recorder()
    again = fine_tune(make_classifier(), tmp_path, [GradualUnfreezing(), resumed], epochs=6, save_steps=5)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert resumed.changed == expected[5:]
    for name, parameter in again.model.named_parameters():
        assert torch.equal(parameter, trainer.model.get_parameter(name)), name


def test_a_model_without_a_head_of_its_own_begins_with_its_last_layer():
    model = QRNNForCausalLM(QRNNConfig(vocab_size=20, hidden_size=8, num_hidden_layers=3, tie_word_embeddings=True))
    GradualUnfreezing().unfreeze(model, epoch=0)
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    assert trained == set(model.model.layers[-1].parameters())
    assert discriminative_parameter_groups(model, learning_rate=0.1)[-1]["lr"] == 0.1


def test_what_was_frozen_before_stays_so(tmp_path):
    model = make_classifier()
    model.model.embed_tokens.requires_grad_(False)
    recorder = Recorder()
    fine_tune(model, tmp_path, [GradualUnfreezing(0.5), recorder], epochs=4, save_strategy="no").train()
    assert [sum(levels) for levels in recorder.changed] == [1, 2, 3, 4, 4, 4, 4, 4]
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["model.embed_tokens.weight"]


def test_what_is_frozen_between_two_runs_stays_so(tmp_path):
    unfreezing, model = GradualUnfreezing(0.5), make_classifier()
    fine_tune(model, tmp_path, [unfreezing], epochs=4, save_strategy="no").train()
    embeddings = model.model.embed_tokens.requires_grad_(False).weight.clone()
    fine_tune(model, tmp_path, [unfreezing], epochs=4, save_strategy="no").train()
    assert not model.model.embed_tokens.weight.requires_grad
    assert torch.equal(model.model.embed_tokens.weight, embeddings)


class Interruption(TrainerCallback):
    """A keyboard interrupt after the first step."""

    def on_step_end(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


def test_an_interrupted_run_freezes_nothing_for_good(tmp_path):
    """Neither in the model that goes on, nor in another one with the same callback."""
    unfreezing, model = GradualUnfreezing(), make_classifier()
    with pytest.raises(KeyboardInterrupt):
        fine_tune(model, tmp_path, [unfreezing, Interruption()], epochs=1).train()
    for again in (model, make_classifier()):
        recorder = Recorder()
        fine_tune(again, tmp_path, [unfreezing, recorder], epochs=5, save_strategy="no").train()
        assert [sum(levels) for levels in recorder.changed] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
        assert all(parameter.requires_grad for parameter in again.parameters())


def test_several_processes_are_refused(tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    several = SimpleNamespace(world_size=2)
    with pytest.raises(ValueError, match="one process, got 2"):
        GradualUnfreezing().on_train_begin(several, None, None, model=make_classifier())
    GradualUnfreezing().on_train_begin(args, None, None, model=make_classifier())


@pytest.mark.parametrize("epochs_per_level", [0.3, 1 / 3, 0.7, 1, 2])
def test_levels_join_on_time(epochs_per_level):
    model = QRNNForSequenceClassification(QRNNConfig(vocab_size=5, hidden_size=2, num_hidden_layers=40))
    for level in range(40):
        GradualUnfreezing(epochs_per_level).unfreeze(model, level * epochs_per_level)
        assert sum(group[0].requires_grad for group in parameter_levels(model)) == level + 1


def test_slower_and_faster_unfreezing(tmp_path):
    recorder = Recorder()
    fine_tune(make_classifier(), tmp_path, [GradualUnfreezing(0.5), recorder], epochs=2, save_strategy="no").train()
    assert [sum(levels) for levels in recorder.changed] == [1, 2, 3, 4]


@pytest.mark.parametrize("epochs", [0, -1.0])
def test_no_epochs_per_level_is_refused(epochs):
    with pytest.raises(ValueError, match="`epochs_per_level` must be above zero"):
        GradualUnfreezing(epochs)
