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
"""Every head under Transformers' Trainer, and under Accelerate by hand."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import WordLevelTrainer
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from modeling_qrnn import (
    QRNNConfig,
    QRNNForCausalLM,
    QRNNForMaskedLM,
    QRNNForSequenceClassification,
    QRNNForTokenClassification,
)


N_WORDS = 12
VOCAB_SIZE = 60
# Everything random that the model has: what must survive recomputation and resumption
NOISE = {
    "zoneout": 0.2,
    "embedding_dropout": 0.1,
    "input_dropout": 0.1,
    "hidden_dropout": 0.2,
    "output_dropout": 0.2,
    "weight_dropout": 0.2,
}
REGULARIZED = {"activation_regularization": 2.0, "temporal_activation_regularization": 1.0}


@dataclass(frozen=True)
class Task:
    """A head, the config it needs, and the label of a sentence, which is a list of consecutive numbers."""

    model_class: type
    auto_class: type
    label: Callable[[list[int]], Any]
    config: dict = field(default_factory=dict)

    @property
    def labels_tokens(self) -> bool:
        return self.model_class is not QRNNForSequenceClassification

    def collator(self, tokenizer) -> Callable:
        """Pads, labels of tokens too; masks nothing at random."""
        return (DataCollatorForTokenClassification if self.labels_tokens else DataCollatorWithPadding)(tokenizer)

    def make_model(self, **overrides) -> nn.Module:
        torch.manual_seed(0)
        defaults = {"vocab_size": VOCAB_SIZE, "hidden_size": 16, "kernel_size": 3}
        return self.model_class(QRNNConfig(**{**defaults, **self.config, **overrides}))


def sequence_task(label, **config) -> Task:
    return Task(QRNNForSequenceClassification, AutoModelForSequenceClassification, label, config)


# In place of a label: the labels are the tokens themselves
TOKENS = None
TASKS = {
    "causal": Task(QRNNForCausalLM, AutoModelForCausalLM, TOKENS),
    "masked": Task(QRNNForMaskedLM, AutoModelForMaskedLM, TOKENS, {"bidirectional": True}),
    "single_label": sequence_task(lambda numbers: numbers[-1] % 3, num_labels=3),
    "multi_label": sequence_task(
        lambda numbers: [float(numbers[-1] % 2), float(numbers[-1] > 5)],
        num_labels=2,
        problem_type="multi_label_classification",
    ),
    "regression": sequence_task(lambda numbers: numbers[-1] / N_WORDS, num_labels=1, classifier_pooling="concat"),
    "token": Task(
        QRNNForTokenClassification,
        AutoModelForTokenClassification,
        lambda numbers: [number % 3 for number in numbers],
        {"num_labels": 3, "bidirectional": True},
    ),
}
all_tasks = pytest.mark.parametrize("name", TASKS)
token_tasks = pytest.mark.parametrize("name", ["causal", "masked", "token"])


def make_sentences(n_sentences: int) -> list[list[int]]:
    """Consecutive numbers from a random one on, of ragged length: easy to predict from one side or both."""
    rng = random.Random(0)
    starts = [rng.randrange(N_WORDS) for _ in range(n_sentences)]
    return [[(start + step) % N_WORDS for step in range(rng.randint(3, 9))] for start in starts]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(WordLevel(unk_token="[UNK]"))
    core.pre_tokenizer = Whitespace()
    corpus = [f"w{number}" for number in range(N_WORDS)]
    core.train_from_iterator(corpus, WordLevelTrainer(special_tokens=["[PAD]", "[UNK]", "[MASK]"]))
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]", padding_side="right"
    )


@pytest.fixture
def make_wide_model(redraw):
    """`make_wide_model(name, ...)`: drawn so wide that leaks between sequences and shifted labels show in the loss."""

    def make_wide_model(name: str, **overrides) -> nn.Module:
        return redraw(TASKS[name].make_model(**overrides)).train()

    return make_wide_model


@pytest.fixture
def make_dataset(tokenizer):
    """`make_dataset(name, n, ragged)`: the task's data, with random labels set to -100 if `ragged`."""

    def make_dataset(name: str, n_sentences: int = 16, ragged: bool = False) -> Dataset:
        task, rng = TASKS[name], random.Random(1)
        sentences = make_sentences(n_sentences)
        texts = [" ".join(f"w{number}" for number in numbers) for numbers in sentences]
        columns = tokenizer(texts, return_token_type_ids=False)
        if task.label is TOKENS:
            labels = columns["input_ids"]
        else:
            labels = [task.label(numbers) for numbers in sentences]
        if ragged and task.labels_tokens:
            # Of every third sentence nothing counts
            share = [0.0 if row % 3 == 2 else 0.7 for row in range(n_sentences)]
            labels = [
                [label if rng.random() < p else -100 for label in row] for row, p in zip(labels, share, strict=True)
            ]
        return Dataset.from_dict({**columns, "labels": labels})

    return make_dataset


@pytest.fixture
def make_trainer(tokenizer, make_dataset, tmp_path):
    """`make_trainer(name, model, ...)`: a quiet Trainer that logs each step; keywords are training arguments."""

    def make_trainer(name, model, dataset=None, collator=None, callbacks=None, compute_metrics=None, **arguments):
        defaults = {
            "output_dir": tmp_path,
            "use_cpu": True,
            "disable_tqdm": True,
            "logging_steps": 1,
            "save_strategy": "no",
            "max_steps": 4,
            "learning_rate": 0.1,
            "optim": "sgd",
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 4,
        }
        dataset = make_dataset(name) if dataset is None else dataset
        return Trainer(
            model,
            TrainingArguments(**{**defaults, **arguments}),
            train_dataset=dataset,
            eval_dataset=dataset,
            data_collator=TASKS[name].collator(tokenizer) if collator is None else collator,
            callbacks=callbacks,
            compute_metrics=compute_metrics,
        )

    return make_trainer


def train(trainer: Trainer, **kwargs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Train; the loss of each step, and the weights."""
    trainer.train(**kwargs)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return torch.tensor(losses), {key: value.detach().clone() for key, value in trainer.model.state_dict().items()}


def assert_drops(losses: torch.Tensor, factor: float = 0.5):
    """The loss of the last steps is well below that of the first."""
    assert losses[-5:].mean() < factor * losses[:5].mean(), losses


def assert_same_runs(run, expected, **tolerance):
    tolerance = tolerance or {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(run[0], expected[0], **tolerance)
    torch.testing.assert_close(run[1], expected[1], **tolerance)


class GradientRecorder(TrainerCallback):
    """Keeps the gradients of the last step, which Trainer clears."""

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.gradients = {
            key: None if parameter.grad is None else parameter.grad.clone()
            for key, parameter in model.named_parameters()
        }


FAST = {"max_steps": 60, "learning_rate": 3e-2, "optim": "adamw_torch", "lr_scheduler_type": "constant"}


# Learning


@all_tasks
def test_loss_drops(name, tokenizer, make_dataset, make_trainer):
    dataset, collator = make_dataset(name, 64), None
    if TASKS[name].label is TOKENS:
        collator = DataCollatorForLanguageModeling(tokenizer, mlm=name == "masked", mlm_probability=0.2)
        dataset = dataset.remove_columns("labels")
    losses, _ = train(make_trainer(name, TASKS[name].make_model(), dataset, collator, **FAST))
    # Of a few masked tokens a step teaches little
    assert_drops(losses, factor=0.75 if name == "masked" else 0.5)


def test_loss_drops_with_all_noise(make_dataset, make_trainer):
    model = TASKS["causal"].make_model(**NOISE, **REGULARIZED, hidden_size=32, tie_word_embeddings=True)
    losses, _ = train(make_trainer("causal", model, make_dataset("causal", 64), **FAST))
    assert_drops(losses, factor=0.75)


@all_tasks
def test_bf16_autocast(name, make_dataset, make_trainer):
    model, seen = TASKS[name].make_model(), set()
    projection = model.model.layers[0].mixer.directions[0].gate_proj
    projection.register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    losses, weights = train(make_trainer(name, model, make_dataset(name, 64), bf16=True, **FAST))
    assert seen == {torch.bfloat16}
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert_drops(losses)


# The optimiser


ARCHITECTURES = {
    "plain": {},
    "tied": {"tie_word_embeddings": True, "embedding_size": 8},
    "dense": {"connection": "dense", "norm": "layer_norm"},
    "residual": {"connection": "residual", "intermediate_size": 24, "embedding_size": 8},
    "ifo-noise": {"pooling": "ifo", **NOISE},
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", ["causal", "masked", "single_label", "token"])
def test_every_parameter_is_trained_once(name, architecture, make_trainer):
    model, recorder = TASKS[name].make_model(**ARCHITECTURES[architecture]), GradientRecorder()
    trainer = make_trainer(name, model, callbacks=[recorder], max_steps=1)
    trainer.train()
    optimized = [id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]]
    assert sorted(optimized) == sorted(id(parameter) for parameter in model.parameters())
    untrained = [key for key, gradient in recorder.gradients.items() if gradient is None or not gradient.any()]
    assert untrained == []


def test_hidden_layer_of_the_classifier_is_trained(make_trainer):
    recorder = GradientRecorder()
    model = TASKS["single_label"].make_model(classifier_hidden_size=8, classifier_pooling="concat")
    make_trainer("single_label", model, callbacks=[recorder], max_steps=1).train()
    assert all(gradient is not None and gradient.any() for gradient in recorder.gradients.values())


@pytest.mark.parametrize("weight_dropout", [0.0, 0.5])
def test_weights_decay_but_not_biases_and_norms(weight_dropout, make_trainer):
    model = TASKS["causal"].make_model(connection="residual", intermediate_size=24, weight_dropout=weight_dropout)
    trainer = make_trainer("causal", model, weight_decay=0.1)
    groups = trainer.create_optimizer().param_groups
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    for key, parameter in model.named_parameters():
        assert (decays[id(parameter)] == 0) == (key.endswith("bias") or "norm" in key), key


# Gradient accumulation


@pytest.mark.parametrize(
    "name, config", [*((name, {}) for name in TASKS), ("causal", REGULARIZED)], ids=[*TASKS, "causal-regularized"]
)
def test_gradient_accumulation_changes_nothing(name, config, make_dataset, make_trainer, make_wide_model):
    def run(batch_size, steps):
        # 14 = 8 + 6: the last step of an epoch accumulates three small batches, not four
        trainer = make_trainer(
            name,
            make_wide_model(name, **config),
            make_dataset(name, 14, ragged=True),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=steps,
            train_sampling_strategy="sequential",
        )
        return train(trainer)

    assert_same_runs(run(2, 4), run(8, 1))


def test_regularizers_are_part_of_the_logged_loss(make_trainer, make_wide_model):
    def first_loss(**config):
        return train(make_trainer("causal", make_wide_model("causal", **config), max_steps=1))[0].item()

    plain = first_loss()
    for key, value in REGULARIZED.items():
        assert first_loss(**{key: value}) > plain + 1e-2


# Evaluation


def accuracy(prediction) -> dict[str, float]:
    counts = prediction.label_ids != -100
    return {"accuracy": (prediction.predictions.argmax(-1) == prediction.label_ids)[counts].mean()}


@pytest.mark.parametrize("name", ["causal", "single_label", "token"])
def test_evaluation_does_not_gather_the_cache(name, make_trainer, make_wide_model):
    model = make_wide_model(name, bidirectional=False)
    # Trainer writes its own `use_cache` into the config
    trainer = make_trainer(name, model, use_cache=True, compute_metrics=accuracy)
    assert model.config.use_cache
    prediction = trainer.predict(trainer.eval_dataset)
    assert isinstance(prediction.predictions, np.ndarray)
    width = model.config.num_labels if name != "causal" else VOCAB_SIZE
    assert prediction.predictions.shape == (*prediction.label_ids.shape, width)
    assert trainer.evaluate()["eval_accuracy"] == pytest.approx(prediction.metrics["test_accuracy"])


@all_tasks
def test_evaluation_equals_the_model(name, make_trainer, make_wide_model):
    """In evaluation nothing random acts, and batches that are padded differently do not matter."""
    model = make_wide_model(name, **NOISE, **REGULARIZED, locked_dropout=True)
    trainer = make_trainer(name, model)
    predicted = trainer.predict(trainer.eval_dataset).predictions
    for row, example in zip(predicted, trainer.eval_dataset, strict=True):
        expected = model(torch.tensor([example["input_ids"]])).logits[0].detach().numpy()
        np.testing.assert_allclose(row[: len(expected)], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["causal", "single_label"])
def test_training_with_a_cache_changes_nothing(name, make_trainer, make_wide_model):
    def run(use_cache):
        return train(make_trainer(name, make_wide_model(name, **NOISE), use_cache=use_cache))

    assert_same_runs(run(True), run(False))


# Recomputation and compilation


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "non-reentrant"])
@pytest.mark.parametrize("name", ["causal", "single_label", "token"])
def test_gradient_checkpointing_changes_nothing(name, use_reentrant, make_trainer, make_wide_model):
    """The recomputed zoneout and dropouts are those of the forward pass."""

    def run(**arguments):
        model, calls = make_wide_model(name, **NOISE, connection="residual"), []
        model.model.layers[0].mixer.register_forward_hook(lambda *_: calls.append(None))
        return train(make_trainer(name, model, **arguments)), len(calls)

    expected, n_calls = run()
    checkpointed, n_checkpointed_calls = run(
        activation_checkpointing=True, activation_checkpointing_kwargs={"use_reentrant": use_reentrant}
    )
    assert n_checkpointed_calls == 2 * n_calls
    assert_same_runs(checkpointed, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["causal", "single_label", "masked"])
def test_compiled_training_changes_nothing(name, make_trainer, make_wide_model):
    def run(**arguments):
        model = make_wide_model(name, **NOISE, **REGULARIZED, num_hidden_layers=1)
        return train(make_trainer(name, model, **arguments))

    expected = run()
    torch.compiler.reset()
    assert_same_runs(run(torch_compile=True, torch_compile_backend="aot_eager"), expected)


# Label smoothing


@token_tasks
def test_label_smoothing(name, make_dataset, make_trainer, make_wide_model):
    """The labels of the causal head are shifted, those of the others are not."""
    model, smoothing = make_wide_model(name), 0.4
    trainer = make_trainer(
        name, model, make_dataset(name, 8, ragged=True), label_smoothing_factor=smoothing, max_steps=1
    )
    batch = trainer.data_collator([dict(row) for row in trainer.train_dataset])
    logits, labels = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits, batch["labels"]

    def by_hand(shift):
        kept = logits[:, : labels.shape[1] - shift].flatten(0, 1)
        return F.cross_entropy(kept, labels[:, shift:].flatten(), label_smoothing=smoothing).item()

    shift = int(name == "causal")
    assert abs(by_hand(shift) - by_hand(1 - shift)) > 1e-3
    assert train(trainer)[0].item() == pytest.approx(by_hand(shift), rel=1e-5)


# Saving and resuming


@all_tasks
def test_saved_model_loads_through_its_auto_class(name, make_trainer, tmp_path):
    task = TASKS[name]
    trainer = make_trainer(name, task.make_model(**NOISE), max_steps=1)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    model = task.auto_class.from_pretrained(tmp_path / "saved")
    assert type(model) is task.model_class
    torch.testing.assert_close(model.state_dict(), trainer.model.state_dict(), rtol=0, atol=0)


def test_checkpoint_has_the_code(make_trainer, make_wide_model, tmp_path):
    make_trainer("causal", make_wide_model("causal"), save_strategy="steps", save_steps=4).train()
    checkpoint = tmp_path / "checkpoint-4"
    auto_map = AutoConfig.from_pretrained(checkpoint).auto_map
    for task in TASKS.values():
        assert auto_map[task.auto_class.__name__] == f"modeling_qrnn.{task.model_class.__name__}"
    assert all((checkpoint / f"{reference.split('.')[0]}.py").is_file() for reference in auto_map.values())


@pytest.mark.parametrize("source", ["fresh", "auto"])
@pytest.mark.parametrize("step", [3, 4], ids=["within-an-epoch", "between-epochs"])
def test_resumed_run_equals_the_uninterrupted_one(source, step, make_trainer, make_wide_model, tmp_path):
    """The weights, the optimiser and all that is random go on where they were."""
    arguments = {"save_strategy": "steps", "save_steps": step, "max_steps": 7, "per_device_train_batch_size": 4}
    arguments |= {"optim": "adamw_torch", "learning_rate": 1e-2}
    expected = train(make_trainer("causal", make_wide_model("causal", **NOISE), **arguments))

    checkpoint = tmp_path / f"checkpoint-{step}"
    if source == "auto":
        model = AutoModelForCausalLM.from_pretrained(checkpoint)
    else:
        model = make_wide_model("causal", **NOISE)
    resumed = train(make_trainer("causal", model, **arguments), resume_from_checkpoint=checkpoint)
    assert_same_runs(resumed, expected, rtol=0, atol=0)


def test_load_best_model_at_end(make_trainer, make_wide_model, tmp_path):
    scores = iter([1.0, 3.0, 2.0])
    trainer = make_trainer(
        "causal",
        make_wide_model("causal"),
        compute_metrics=lambda prediction: {"score": next(scores)},
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        max_steps=3,
        load_best_model_at_end=True,
        metric_for_best_model="score",
    )
    _, weights = train(trainer)
    best, last = (AutoModelForCausalLM.from_pretrained(tmp_path / f"checkpoint-{step}") for step in (2, 3))
    torch.testing.assert_close(weights, dict(best.state_dict()), rtol=0, atol=0)
    assert not torch.equal(last.lm_head.weight, best.lm_head.weight)


# Packing and padding


PACKINGS = {
    "position_ids": {},
    "seq_idx": {"return_position_ids": False, "return_seq_idx": True},
    "cu_seq_lens": {"return_position_ids": False, "return_flash_attn_kwargs": True},
    "position_ids-seq_idx": {"return_seq_idx": True},
    "position_ids-cu_seq_lens": {"return_flash_attn_kwargs": True},
    "all": {"return_seq_idx": True, "return_flash_attn_kwargs": True},
}


def without_first_label(row: dict) -> dict:
    """The flattening collator never counts the first label of a sequence; neither may the padded batch, then."""
    return {**row, "labels": [-100, *row["labels"][1:]]}


def loss_and_gradients(model: nn.Module, batch: dict) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {key: parameter.grad.clone() for key, parameter in model.named_parameters()}


@token_tasks
@pytest.mark.parametrize("packing", PACKINGS)
def test_packed_batch_equals_the_padded_one(name, packing, tokenizer, make_dataset, make_wide_model):
    model = make_wide_model(name, **REGULARIZED)
    rows = [without_first_label(row) for row in make_dataset(name, 5, ragged=True)]
    batch = DataCollatorWithFlattening(**PACKINGS[packing])(rows)
    expected = loss_and_gradients(model, TASKS[name].collator(tokenizer)(rows))
    torch.testing.assert_close(loss_and_gradients(model, batch), expected, rtol=1e-4, atol=1e-5)

    blended, _ = loss_and_gradients(model, {key: batch[key] for key in ("input_ids", "labels")})
    assert abs(blended - expected[0]) > 1e-2


@all_tasks
def test_padding_side_changes_nothing(name, tokenizer, make_dataset, make_wide_model, monkeypatch):
    model, rows = make_wide_model(name, **REGULARIZED), list(make_dataset(name, 5, ragged=True))
    if name == "causal":
        # On the left a pad comes before the first token, and would be asked to predict it
        rows = [without_first_label(row) for row in rows]
    right = loss_and_gradients(model, TASKS[name].collator(tokenizer)(rows))
    monkeypatch.setattr(tokenizer, "padding_side", "left")
    left = loss_and_gradients(model, TASKS[name].collator(tokenizer)(rows))
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


@token_tasks
@pytest.mark.parametrize("packing", ["position_ids", "all"])
def test_packed_training_equals_padded_training(name, packing, make_dataset, make_trainer, make_wide_model):
    dataset = Dataset.from_list([without_first_label(row) for row in make_dataset(name, ragged=True)])

    def run(collator):
        model = make_wide_model(name, **REGULARIZED)
        arguments = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        return train(make_trainer(name, model, dataset, collator, **arguments))

    assert_same_runs(run(DataCollatorWithFlattening(**PACKINGS[packing])), run(None))


@pytest.mark.parametrize("name", ["causal", "masked", "token", "single_label"])
def test_columns_that_forward_takes_are_kept(name, make_dataset, make_trainer, make_wide_model):
    marks = {"text": "w1 w2", "position_ids": [0, 1], "seq_idx": [0, 0]}
    dataset = Dataset.from_list([{**row, **marks} for row in make_dataset(name, 4)])
    seen = set()

    def collate(rows):
        seen.update(rows[0])
        return {"input_ids": torch.zeros(len(rows), 2)}

    next(iter(make_trainer(name, make_wide_model(name), dataset, collate).get_train_dataloader()))
    # One label for a packed row of several sequences would mean nothing
    packs = {"seq_idx"} if TASKS[name].labels_tokens else set()
    assert seen == {"input_ids", "attention_mask", "labels", "position_ids"} | packs


# Accelerate by hand


@pytest.fixture
def accelerator():
    """A fresh one: its settings are process-wide, and those of the last Trainer may not fit."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield Accelerator(cpu=True, gradient_accumulation_steps=2)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_accelerate_loop(accelerator, tokenizer, make_dataset, make_wide_model, tmp_path):
    """Two accumulated batches and their counts give the step of the whole batch; the state survives a round trip."""
    rows, collate = list(make_dataset("causal", 8, ragged=True)), TASKS["causal"].collator(tokenizer)
    whole = collate(rows)
    expected = make_wide_model("causal", tie_word_embeddings=True)
    expected(**whole).loss.backward()
    torch.optim.SGD(expected.parameters(), lr=0.1).step()

    model = make_wide_model("causal", tie_word_embeddings=True)
    loader = torch.utils.data.DataLoader(rows, batch_size=4, collate_fn=collate)
    model, optimizer, loader = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), loader)
    n_items = (whole["labels"][:, 1:] != -100).sum()
    for batch in loader:
        with accelerator.accumulate(model):
            loss = model(**batch, num_items_in_batch=n_items).loss
            accelerator.backward(loss * accelerator.gradient_accumulation_steps)
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=1e-5, atol=1e-6)

    accelerator.save_state(tmp_path)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    accelerator.load_state(tmp_path)
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=1e-5, atol=1e-6)
    assert model.lm_head.weight is model.model.embed_tokens.weight
