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
"""`QRNNTrainer`: windows, the carried state, exact evaluation, averaging, and resumption at any step."""

import functools
import math

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainerCallback, TrainingArguments, default_data_collator

from modeling_qrnn import (
    QRNNConfig,
    QRNNForCausalLM,
    QRNNForConditionalGeneration,
    QRNNForMaskedLM,
    QRNNSeq2SeqConfig,
)
from modeling_qrnn.trainer_qrnn import STREAM_SETTINGS, QRNNTrainer, QRNNTrainingArguments, StreamWindows


VOCAB_SIZE = 20
NOISE = {
    "zoneout": 0.2,
    "embedding_dropout": 0.1,
    "input_dropout": 0.1,
    "hidden_dropout": 0.2,
    "output_dropout": 0.2,
    "weight_dropout": 0.2,
    "locked_dropout": True,
    "activation_regularization": 2.0,
    "temporal_activation_regularization": 1.0,
}


def make_text(n_tokens: int = 400) -> torch.Tensor:
    return torch.randint(VOCAB_SIZE, (n_tokens,), generator=torch.Generator().manual_seed(0))


def make_model(**config) -> QRNNForCausalLM:
    torch.manual_seed(0)
    return QRNNForCausalLM(QRNNConfig(vocab_size=VOCAB_SIZE, hidden_size=8, kernel_size=3, **config))


@pytest.fixture
def make_trainer(tmp_path):
    """`make_trainer(model, ...)`: a quiet trainer of three streams; keywords are training arguments."""

    def make_trainer(model, text=None, eval_dataset=None, callbacks=None, collator=None, **arguments):
        defaults = {
            "output_dir": tmp_path,
            "use_cpu": True,
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_steps": 1,
            "optim": "sgd",
            "learning_rate": 0.5,
            "num_train_epochs": 2,
            "per_device_train_batch_size": 3,
            "bptt": 12,
        }
        text = make_text() if text is None else text
        return QRNNTrainer(
            model,
            QRNNTrainingArguments(**{**defaults, **arguments}),
            train_dataset=text,
            eval_dataset=text if eval_dataset is None else eval_dataset,
            callbacks=callbacks,
            data_collator=collator,
        )

    return make_trainer


def weights_of(model) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def assert_equal(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


# Windows


@given(
    n_tokens=st.integers(2, 500),
    n_streams=st.integers(1, 6),
    length=st.integers(5, 80),
    jitter=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_windows_cover_the_streams(n_tokens, n_streams, length, jitter, epoch):
    text = torch.arange(n_tokens)
    if n_tokens <= n_streams:
        with pytest.raises(ValueError, match="more tokens than there are streams"):
            StreamWindows(text, n_streams)
        return
    windows = StreamWindows(text, n_streams, length, jitter)
    windows.set_epoch(epoch)
    rows = list(windows)
    assert len(rows) == len(windows) == windows.n_windows * n_streams
    streams = [torch.cat([row["input_ids"] for row in rows[stream::n_streams]]) for stream in range(n_streams)]
    n_inputs = (n_tokens - 1) // n_streams * n_streams
    assert_equal(torch.cat(streams), text[:n_inputs])
    assert all(torch.equal(row["shift_labels"], row["input_ids"] + 1) for row in rows)
    for window in range(windows.n_windows):
        lengths = {len(row["input_ids"]) for row in rows[window * n_streams : (window + 1) * n_streams]}
        assert len(lengths) == 1 and min(lengths) > 0
        assert jitter or max(lengths) <= length


def test_lengths_follow_their_law():
    lengths = torch.tensor([len(row["input_ids"]) for row in StreamWindows(torch.arange(200_000), 1, 70, jitter=True)])
    full = lengths > 52
    assert abs(full.float().mean() - 0.95) < 0.01
    assert abs(lengths[full].float().mean() - 70) < 1 and abs(lengths[~full].float().mean() - 35) < 2
    assert 4.5 < lengths[full].float().std() < 5.5


def test_each_epoch_is_cut_anew_but_the_same_in_every_run():
    def lengths(seed, epoch):
        windows = StreamWindows(make_text(), 2, 12, jitter=True, seed=seed)
        windows.set_epoch(epoch)
        return [len(row["input_ids"]) for row in windows]

    assert lengths(0, 1) == lengths(0, 1)
    assert len({tuple(lengths(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


@pytest.mark.parametrize("tokens", [torch.zeros(3, 3, dtype=torch.int64), torch.zeros(9), torch.zeros(1).long()])
def test_what_is_no_text_is_refused(tokens):
    with pytest.raises(ValueError, match="`tokens` must"):
        StreamWindows(tokens)


# Training


def train_by_hand(model, text, args):
    """Truncated backpropagation through time with the state as plain tensors: detached, and zero in each epoch."""
    windows = StreamWindows(text, 3, args.bptt, args.bptt_jitter, args.seed)
    model.train()
    for epoch in range(int(args.num_train_epochs)):
        windows.set_epoch(epoch)
        rows, state = list(windows), None
        for start in range(0, len(rows), 3):
            inputs, targets = (
                torch.stack([row[name] for row in rows[start : start + 3]]) for name in ("input_ids", "shift_labels")
            )
            outputs = model(inputs, cache=state, use_cache=True)
            state = outputs.cache
            loss = torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), targets.flatten())
            model.zero_grad()
            loss.backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= args.learning_rate * inputs.shape[1] / args.bptt * parameter.grad


@pytest.mark.parametrize("jitter", [True, False])
def test_equals_the_textbook_loop(jitter, make_trainer):
    arguments = {"bptt_jitter": jitter, "lr_scheduler_type": "constant", "max_grad_norm": 0}
    trainer = make_trainer(make_model(), **arguments)
    trainer.train()
    expected = make_model()
    train_by_hand(expected, make_text(), trainer.args)
    torch.testing.assert_close(weights_of(trainer.model), weights_of(expected), rtol=1e-5, atol=1e-6)


def test_learning_rate_is_scaled_for_the_step_alone(make_trainer):
    """A schedule that goes by the rates it finds would carry the scale from step to step."""
    plateau = {"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "loss", "eval_strategy": "epoch"}
    trainer = make_trainer(make_model(), **plateau)
    trainer.train()
    assert {entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry} == {0.5}
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [0.5, 0.5]


def test_learning_rate_decays_from_epoch_to_epoch(make_trainer):
    trainer = make_trainer(make_model(), num_train_epochs=4, epoch_decay=0.5, constant_epochs=2)
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    n_windows = trainer.train_dataset.n_windows
    assert rates == [rate for rate in (0.5, 0.5, 0.25, 0.125) for _ in range(n_windows)]


def test_the_state_lets_it_learn_what_a_window_cannot_hold(make_trainer):
    """Two texts, each one token for ever, told apart only by their first token."""
    text = torch.cat([torch.tensor([1]), torch.full((300,), 0), torch.tensor([2]), torch.full((300,), 3)])
    trainer = make_trainer(make_model(), text, num_train_epochs=30, learning_rate=0.02, optim="adamw_torch")
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.1


SETTINGS = {
    "adamw": {"optim": "adamw_torch", "learning_rate": 1e-2},
    "bf16": {"bf16": True},
    "averaging": {"non_monotone": 1, "learning_rate": 5.0, "eval_strategy": "steps", "eval_steps": 2},
    "averaging from the beginning": {"non_monotone": 0, "learning_rate": 5.0},
    "no-jitter": {"bptt_jitter": False, "epoch_decay": 0.5},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_resumed_run_equals_the_uninterrupted_one(name, make_trainer, tmp_path):
    """From a checkpoint of any step: the first, one within and at the end of an epoch, the last."""
    arguments = {**SETTINGS[name], "save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer(make_model(**NOISE), **arguments)
    trainer.train()
    expected, n_windows = weights_of(trainer.model), trainer.train_dataset.n_windows
    if name == "averaging":
        assert math.isfinite(trainer.optimizer.param_groups[0]["t0"])
    for step in (1, n_windows - 1, n_windows, n_windows + 2, 2 * n_windows):
        model = make_model(**NOISE)
        make_trainer(model, **arguments).train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert_equal(weights_of(model), expected)


def test_run_that_ended_within_an_epoch_is_over(make_trainer, tmp_path):
    arguments = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1}
    trainer = make_trainer(make_model(), **arguments)
    trainer.train()
    assert trainer.train_dataset.n_windows > 3
    again = make_trainer(make_model(), **arguments)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert again.state.global_step == 3
    assert_equal(weights_of(again.model), weights_of(trainer.model))


REFUSED = {
    "accumulation": ({"gradient_accumulation_steps": 2}, "`gradient_accumulation_steps` must be 1"),
    "workers": ({"dataloader_num_workers": 1}, "`dataloader_num_workers` must be 0"),
    "batches to be found": ({"auto_find_batch_size": True}, "`auto_find_batch_size` must be False"),
    "checkpointing": ({"activation_checkpointing": True}, "`activation_checkpointing` must be False"),
    "smoothing": ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor` must be 0"),
    "short windows": ({"bptt": 4}, "`bptt` must be at least 5"),
    "no window": ({"bptt": 0, "bptt_jitter": False}, "`bptt` must be at least 1"),
    "no evaluation window": ({"eval_window": 0}, "`eval_window` must be at least 1"),
    "averaging before it begins": ({"non_monotone": -1, "optim": "sgd"}, "`non_monotone` must be at least 0"),
    "averaging of AdamW": ({"non_monotone": 3, "optim": "adamw_torch"}, "`non_monotone` must be"),
    "averaging with momentum": ({"non_monotone": 0, "optim_args": "momentum=0.9"}, "without `optim_args`.*momentum"),
    "averaging and the best": (
        {"non_monotone": 2, "eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True},
        "`non_monotone` must be .* without `load_best_model_at_end`",
    ),
    "averaging that cannot begin": ({"non_monotone": 3}, "`non_monotone` must be 0 or None with `eval_strategy` 'no'"),
    "another place": ({"ignore_data_skip": True}, "`ignore_data_skip` must be False"),
    "checkpoints within a step": ({"enable_jit_checkpoint": True}, "`enable_jit_checkpoint` must be False"),
    "rows that wander": (
        {"accelerator_config": {"split_batches": True}},
        "`accelerator_config` must have `split_batches` False",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name, make_trainer):
    arguments, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as error:
        make_trainer(make_model(), **arguments)
    assert "\n" not in str(error.value)


def test_several_gpus_in_one_process_are_refused(make_trainer, monkeypatch):
    monkeypatch.setattr(QRNNTrainingArguments, "n_gpu", 2)
    with pytest.raises(ValueError, match=r"`n_gpu` must be 1 when .* got 2: .*accelerate launch"):
        make_trainer(make_model())


def test_all_that_does_not_go_with_a_carried_state_is_tried():
    assert STREAM_SETTINGS.keys() - {"n_gpu"} <= {name for arguments, _ in REFUSED.values() for name in arguments}


def test_a_model_that_drops_the_state_is_refused(make_trainer):
    model = make_model()
    model.activation_checkpointing_enable()
    with pytest.raises(ValueError, match="`model` must have no activation checkpointing when the state is carried"):
        make_trainer(model)


@pytest.mark.parametrize(
    "model",
    [
        QRNNForConditionalGeneration(QRNNSeq2SeqConfig(vocab_size=9, hidden_size=8, decoder_start_token_id=1)),
        QRNNForMaskedLM(QRNNConfig(vocab_size=9, hidden_size=8, bidirectional=True)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_model_that_is_not_causal_is_refused(model, make_trainer):
    with pytest.raises(ValueError, match=f"`model` must be a causal language model, got {type(model).__name__}"):
        make_trainer(model)


def test_metrics_of_logits_are_refused(make_trainer):
    arguments = QRNNTrainingArguments(use_cpu=True)
    with pytest.raises(ValueError, match="`compute_metrics` must be None"):
        QRNNTrainer(make_model(), arguments, train_dataset=make_text(), compute_metrics=dict)


def test_other_arguments_are_refused(tmp_path):
    with pytest.raises(TypeError, match="`args` must be QRNNTrainingArguments, got TrainingArguments"):
        QRNNTrainer(make_model(), TrainingArguments(str(tmp_path), use_cpu=True), train_dataset=make_text())


@pytest.mark.parametrize("name", ["bf16_full_eval", "fp16_full_eval"])
def test_evaluation_in_another_precision_is_refused(name, make_trainer):
    with pytest.raises(ValueError, match=f"`{name}` must be False"):
        make_trainer(make_model(), **{name: True})


def test_evaluation_needs_a_data_set(tmp_path):
    trainer = QRNNTrainer(make_model(), QRNNTrainingArguments(str(tmp_path), use_cpu=True), train_dataset=make_text())
    with pytest.raises(ValueError, match="`eval_dataset` must be given"):
        trainer.evaluate()


def test_rows_have_no_decay_from_epoch_to_epoch(make_trainer):
    with pytest.raises(ValueError, match=r"`epoch_decay` must be 1 unless .* is a tensor, got 0\.5"):
        make_trainer(make_model(), Dataset.from_dict({"input_ids": [[1, 2]]}), epoch_decay=0.5)


@pytest.mark.parametrize("arguments", [{}, {"non_monotone": 0}])
def test_no_search_over_what_is_used_up(arguments, make_trainer):
    with pytest.raises(ValueError, match="`train_dataset` must be rows, and `non_monotone` None, in a search"):
        make_trainer(make_model(), **arguments).hyperparameter_search()


def test_averaging_goes_by_one_loss(make_trainer):
    with pytest.raises(ValueError, match="`eval_dataset` must be one data set"):
        make_trainer(make_model(), eval_dataset={"first": make_text()}, non_monotone=3, eval_strategy="epoch")


def test_anything_but_a_text_is_trained_on_as_by_trainer(make_trainer):
    rows = Dataset.from_dict({"input_ids": make_text(384).view(32, 12).tolist()})

    def collate(rows):
        ids = torch.tensor([row["input_ids"] for row in rows])
        return {"input_ids": ids, "labels": ids}

    trainer = make_trainer(
        make_model(), rows, collator=collate, gradient_accumulation_steps=2, per_device_train_batch_size=4
    )
    assert trainer.train().global_step == 8
    assert trainer.carried_state is None


# Evaluation


def nats_of(model, ids: torch.Tensor) -> float:
    with torch.no_grad():
        log_probs = model.eval()(ids[None]).logits[0, :-1].double().log_softmax(-1)
    return -log_probs.gather(1, ids[1:, None]).sum().item()


@pytest.mark.parametrize("eval_window", [1, 7, 399, 1000])
def test_evaluation_is_that_of_the_whole_text(eval_window, make_trainer, redraw):
    """In whatever windows it is read; every token but the first counts, and nothing is random."""
    model, text = redraw(make_model(**NOISE)), make_text()
    metrics = make_trainer(model, eval_window=eval_window).evaluate()
    assert metrics["eval_tokens"] == 399
    assert metrics["eval_loss"] == pytest.approx(nats_of(model, text) / 399, rel=1e-5)
    assert metrics["eval_perplexity"] == pytest.approx(math.exp(metrics["eval_loss"]))


def test_evaluation_of_rows_starts_each_from_zero(make_trainer, redraw):
    model, text = redraw(make_model()), make_text(60)
    documents = [text[:9], text[9:41], text[41:]]

    def collate(rows):
        ids = [torch.tensor(row["input_ids"]) for row in rows]
        pad = torch.nn.utils.rnn.pad_sequence
        return {"input_ids": pad(ids, batch_first=True), "labels": pad(ids, batch_first=True, padding_value=-100)}

    rows = Dataset.from_dict({"input_ids": [document.tolist() for document in documents]})
    trainer = make_trainer(model, rows, collator=collate, per_device_eval_batch_size=2)
    metrics = trainer.evaluate()
    assert metrics["eval_tokens"] == 57
    assert metrics["eval_loss"] * 57 == pytest.approx(sum(nats_of(model, ids) for ids in documents), rel=1e-5)


def test_evaluation_of_rows_goes_by_their_own_targets(make_trainer, redraw):
    model, text = redraw(make_model()), make_text(41)
    rows = list(StreamWindows(text, n_streams=4, length=5))
    metrics = make_trainer(model, eval_dataset=rows, collator=default_data_collator).evaluate()
    pieces = [torch.cat([row["input_ids"], row["shift_labels"][-1:]]) for row in rows]
    assert metrics["eval_tokens"] == 40
    assert metrics["eval_loss"] * 40 == pytest.approx(sum(nats_of(model, ids) for ids in pieces), rel=1e-5)


def test_windows_are_not_evaluated(make_trainer):
    """Their state would be carried from batch to batch, whatever rows of them a batch holds."""
    windows, trainer = StreamWindows(make_text()), make_trainer(make_model())
    for evaluate in (
        lambda: make_trainer(make_model(), eval_dataset=windows),
        lambda: make_trainer(make_model(), eval_dataset={"first": make_text(), "second": windows}),
        lambda: trainer.evaluate(windows),
    ):
        with pytest.raises(ValueError, match="`eval_dataset` must be rows or the tensor"):
            evaluate()


@pytest.mark.parametrize("side", ["left", "right"])
def test_pads_of_rows_do_not_count_on_either_side(side, make_trainer, redraw):
    """Nor does, behind a pad on the left, the first token, which nothing predicts: neither in the loss nor in its
    divisor.
    """
    model, text = redraw(make_model()), make_text(30)
    documents = [text[:4], text[4:21], text[21:]]
    rows = Dataset.from_dict({"input_ids": [document.tolist() for document in documents]})

    def collate(rows):
        ids = [torch.tensor(row["input_ids"]) for row in rows]
        pad = functools.partial(torch.nn.utils.rnn.pad_sequence, batch_first=True, padding_side=side)
        mask = pad([torch.ones_like(row) for row in ids])
        return {"input_ids": pad(ids), "labels": pad(ids, padding_value=-100), "attention_mask": mask}

    trainer = make_trainer(model, rows, collator=collate, per_device_eval_batch_size=3)
    expected = sum(nats_of(model, ids) for ids in documents) / 27
    for metrics in (trainer.evaluate(), trainer.predict(rows).metrics):
        (tokens,) = (value for name, value in metrics.items() if name.endswith("_tokens"))
        (loss,) = (value for name, value in metrics.items() if name.endswith("_loss"))
        assert tokens == 27
        assert loss == pytest.approx(expected, rel=1e-5)
    batch = collate(rows)
    num_items = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    assert trainer.compute_loss(model, batch, num_items_in_batch=num_items).item() == pytest.approx(expected, rel=1e-5)


def test_prediction_of_a_text_tells_its_metrics(make_trainer):
    trainer = make_trainer(make_model())
    metrics = trainer.predict(make_text()).metrics
    assert metrics["test_loss"] == trainer.evaluate()["eval_loss"]


def test_columns_that_the_model_does_not_read_are_removed(make_trainer):
    rows = {"input_ids": make_text(40).view(4, 10).tolist(), "labels": make_text(40).view(4, 10).tolist()}
    extra = Dataset.from_dict({**rows, "text": ["a", "b", "c", "d"]})
    collator = default_data_collator  # which makes tensors of all columns
    metrics = make_trainer(make_model(), Dataset.from_dict(rows), collator=collator).evaluate()
    trainer = make_trainer(make_model(), extra, extra, collator=collator, remove_unused_columns=True)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(metrics["eval_loss"])


def test_rows_without_labels_are_refused(make_trainer):
    rows = Dataset.from_dict({"input_ids": make_text(40).view(4, 10).tolist()})
    with pytest.raises(ValueError, match=r"`eval_dataset` must have labels, .* got \['input_ids'\]"):
        make_trainer(make_model(), rows, collator=default_data_collator).evaluate()


def test_rows_without_a_target_are_refused(make_trainer):
    rows = Dataset.from_dict({"input_ids": [[1], [2]]})

    def collate(rows):
        ids = torch.tensor([row["input_ids"] for row in rows])
        return {"input_ids": ids, "labels": ids}

    with pytest.raises(ValueError, match="`eval_dataset` must hold a token to predict"):
        make_trainer(make_model(), rows, collator=collate).evaluate()


def test_several_texts_are_evaluated_by_name(make_trainer):
    text = make_text()
    metrics = make_trainer(make_model(), eval_dataset={"first": text[:50], "rest": text[50:]}).evaluate()
    assert (metrics["eval_first_tokens"], metrics["eval_rest_tokens"]) == (49, 349)


def test_evaluation_leaves_training_alone(make_trainer):
    runs = []
    for arguments in ({}, {"eval_strategy": "steps", "eval_steps": 3}):
        trainer = make_trainer(make_model(**NOISE), **arguments)
        trainer.train()
        runs.append(weights_of(trainer.model))
    assert_equal(*runs)


def test_diverged_model_is_measured_all_the_same(make_trainer):
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e6)
    assert make_trainer(model).evaluate()["eval_perplexity"] == math.inf


# Averaging


@pytest.mark.parametrize(
    ("losses", "stopped"),
    [
        ([3, 2, 1], False),
        ([1, 2], False),
        ([1, 2, 2], False),
        ([1, 2, 2, 2], True),
        ([3, 1, 2, 2, 2], True),
        ([3, 2, 2, 2, 2], False),
    ],
)
def test_rule_of_averaging(losses, stopped, make_trainer):
    """Worse than the best of all evaluations but the last two before it."""
    trainer = make_trainer(make_model(), non_monotone=2, eval_strategy="epoch")
    trainer.state.log_history = [{"eval_loss": loss} for loss in losses]
    assert trainer._has_stopped_improving() == stopped


def test_average_is_that_of_the_weights_since(make_trainer, monkeypatch):
    class Recorder(TrainerCallback):
        seen: list[dict] = []

        def on_optimizer_step(self, args, state, control, model, **kwargs):
            self.seen.append(weights_of(model))

    monkeypatch.setattr(QRNNTrainer, "_has_stopped_improving", lambda self: self.state.global_step >= 6)
    arguments = {"non_monotone": 1, "eval_strategy": "steps", "eval_steps": 3, "max_steps": 12}
    trainer = make_trainer(make_model(), callbacks=[Recorder()], **arguments)
    trainer.train()
    # As in the first step of a new optimiser, what the seventh step made is not yet part of the average.
    average = {key: torch.stack([weights[key] for weights in Recorder.seen[7:]]).mean(0) for key in Recorder.seen[0]}
    torch.testing.assert_close(weights_of(trainer.model), average)
    logged = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.evaluate()["eval_loss"] == logged[-1]

    plain = make_trainer(make_model(), **{**arguments, "non_monotone": None})
    plain.train()
    assert_equal(weights_of(plain.model), Recorder.seen[-1])

    from_the_start = make_trainer(make_model(), **{**arguments, "non_monotone": 0, "eval_on_start": True})
    from_the_start.train()
    average = {key: torch.stack([weights[key] for weights in Recorder.seen[1:]]).mean(0) for key in Recorder.seen[0]}
    torch.testing.assert_close(weights_of(from_the_start.model), average)


@pytest.mark.parametrize("frozen", ["bias", "embed_tokens"])
def test_averaging_of_some_of_the_weights(frozen, make_trainer, monkeypatch):
    """What is frozen has no state, and a group of parameters may be empty."""
    monkeypatch.setattr(QRNNTrainer, "_has_stopped_improving", lambda self: True)
    model = make_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(frozen not in name)
    trainer = make_trainer(model, non_monotone=1, eval_strategy="steps", eval_steps=2, max_steps=6)
    trainer.train()
    begun = [group["t0"] for group in trainer.optimizer.param_groups if group["params"]]
    assert begun and set(begun) == {2}


def test_averaging_goes_by_the_evaluations_of_the_log(make_trainer):
    """A test split that a callback scores is not among them."""

    class Tester(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            self.trainer.evaluate(metric_key_prefix="test")

    tester = Tester()
    trainer = make_trainer(make_model(), callbacks=[tester], non_monotone=1, eval_strategy="epoch", max_steps=2)
    tester.trainer = trainer
    trainer.train()
    assert {group["t0"] for group in trainer.optimizer.param_groups} == {math.inf}


def test_an_optimizer_that_averages_is_told_of_an_evaluation(make_trainer):
    """Schedule-free ones keep the weights to evaluate apart from those to train."""
    trainer, told = make_trainer(make_model(), max_steps=1), []
    trainer.train()
    trainer.optimizer.eval = lambda: told.append(True)
    trainer.evaluate()
    assert told == [True]


def test_smoothed_labels_do_not_count_after_pads(make_trainer):
    """Pads on the left change nothing."""
    losses = []
    for n_pads in (0, 2):
        row = {
            "input_ids": torch.tensor([[0] * n_pads + [3, 4, 5, 6]]),
            "attention_mask": torch.tensor([[0] * n_pads + [1] * 4]),
            "labels": torch.tensor([[-100] * n_pads + [3, 4, 5, 6]]),
        }
        rows = Dataset.from_dict({name: value.tolist() for name, value in row.items()})
        trainer = make_trainer(make_model().eval(), rows, label_smoothing_factor=0.1)
        losses.append(trainer.compute_loss(trainer.model, row, num_items_in_batch=3))
    torch.testing.assert_close(*losses)
