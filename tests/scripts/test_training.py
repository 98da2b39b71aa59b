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
"""What all programs refuse, and `ResumableTrainer`: the best model, the order of rows, and all rows scored."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from torch.nn.modules.module import _IncompatibleKeys
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.utils import logging

from modeling_qrnn import QRNNConfig, QRNNForCausalLM, QRNNForSequenceClassification
from modeling_qrnn.trainer_qrnn import QRNNTrainingArguments
from program_runs import weights_in
from training import (
    ResumableTrainer,
    SharedLengthGroups,
    check_predictions,
    check_training,
    train_to_the_end,
    with_validation,
)


def make_arguments(folder: Path | str = "output", **arguments) -> TrainingArguments:
    quiet = {"use_cpu": True, "disable_tqdm": True, "report_to": "none"}
    return TrainingArguments(str(folder), **{**quiet, **arguments})


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    columns = {"input_ids": [row["input_ids"][:3] for row in rows], "labels": [row["labels"] for row in rows]}
    return {name: torch.tensor(column) for name, column in columns.items()}


def make_trainer(folder: Path, n_rows: int = 10, scores: Sequence[float] = (), **arguments) -> ResumableTrainer:
    """Of rows of different lengths; `scores` is what the evaluations give, one after another."""
    rows = Dataset.from_list([{"input_ids": [1] * (3 + i % 2), "labels": i % 2} for i in range(n_rows)])
    torch.manual_seed(0)
    model, given = QRNNForSequenceClassification(QRNNConfig(vocab_size=5, hidden_size=4)), iter(scores)
    return ResumableTrainer(
        model,
        make_arguments(folder, **arguments),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=collate,
        compute_metrics=(lambda _: {"score": next(given)}) if scores else None,
    )


REFUSED = {
    "no steps": ({"max_steps": 0}, "--max-steps must be at least 1, or negative to go by --num-train-epochs, got 0"),
    "no epochs": ({"num_train_epochs": 0}, "--num-train-epochs must be a number above 0, got 0"),
    "checkpoints before an evaluation": (
        {"eval_strategy": "epoch", "save_strategy": "steps", "lr_scheduler_type": "reduce_lr_on_plateau"},
        "--save-strategy steps can save between the last step of an epoch and its evaluation",
    ),
    "checkpoints before an evaluation that sets the rate": (
        {"eval_strategy": "epoch", "save_strategy": "steps", "lr_scheduler_type": "greedy"},
        "--save-strategy steps can save between the last step of an epoch and its evaluation",
    ),
    "workers": ({"dataloader_num_workers": -1}, "--dataloader-num-workers must be at least 0, got -1"),
    "pieces of predictions": ({"eval_accumulation_steps": 0}, "--eval-accumulation-steps must be at least 1, got 0"),
    "labels by other names": ({"label_names": ["foo"]}, "--label-names is not an option here"),
    "kernels": ({"use_liger_kernel": True}, "--use-liger-kernel is not an option here"),
    "checkpoints within a step": ({"enable_jit_checkpoint": True}, "--enable-jit-checkpoint saves in the middle"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    arguments, message = REFUSED[name]
    check_training(make_arguments(), set())
    with pytest.raises(SystemExit, match=message):
        check_training(make_arguments(**arguments), set())


def test_steps_or_epochs(capsys):
    check_training(make_arguments(num_train_epochs=2), set())
    check_training(make_arguments(max_steps=3), set())
    assert capsys.readouterr().out == ""
    check_training(make_arguments(max_steps=3, num_train_epochs=2), set())
    assert capsys.readouterr().out == "--max-steps 3 decides, not --num-train-epochs 2\n"


def test_averages_begin_by_evaluations():
    """So a checkpoint may not come between an epoch and its own."""
    averaged = {"optim": "sgd", "eval_strategy": "epoch", "non_monotone": 5, "use_cpu": True}
    with pytest.raises(SystemExit, match="--save-strategy steps can save between the last step of an epoch"):
        check_training(QRNNTrainingArguments("output", save_strategy="steps", **averaged), set())
    check_training(QRNNTrainingArguments("output", save_strategy="epoch", **averaged), set())


def test_labels_that_cannot_be_shared_are_named():
    labels = [0, 0, 0, *range(1, 8), 8, 8]
    rows = Dataset.from_dict({"text": ["a"] * len(labels), "label": labels})
    message = r"7 of 9 labels stand in one row only, and cannot be shared: 'b', 'c', 'd', 'e', 'f', \.\.\.$"
    with pytest.raises(SystemExit, match=message):
        with_validation({"train": rows}, 0.5, seed=0, names=list("abcdefghi"))
    shared = with_validation({"train": rows}, 0.5, seed=0)
    assert len(shared["train"]) + len(shared["validation"]) == len(labels)


@pytest.mark.parametrize("arguments", [{"prediction_loss_only": True}, {"eval_do_concat_batches": False}], ids=str)
def test_predictions_are_needed(arguments):
    check_predictions(make_arguments())
    with pytest.raises(SystemExit, match="leave no predictions to score"):
        check_predictions(make_arguments(**arguments))


def test_the_best_model_is_found_where_the_folder_lies_now(tmp_path):
    """A finished run that is moved and started again must not end with its last model."""
    arguments = {
        "num_train_epochs": 3,
        "learning_rate": 0.1,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "metric_for_best_model": "score",
    }
    first = make_trainer(tmp_path / "first", scores=[1.0, 3.0, 2.0], **arguments)
    train_to_the_end(first)
    assert first.state.best_global_step == 4
    best = weights_in(tmp_path / "first")
    assert any(
        not torch.equal(best[name], value) for name, value in weights_in(tmp_path / "first/checkpoint-6").items()
    )

    moved = (tmp_path / "first").rename(tmp_path / "moved")
    again = make_trainer(moved, logging_steps=2, **arguments)
    train_to_the_end(again)
    torch.testing.assert_close(weights_in(moved), best, rtol=0, atol=0)
    assert again.state.best_model_checkpoint == str(moved / "checkpoint-4")
    assert again.state.logging_steps == 2


def test_all_rows_are_scored(tmp_path):
    """Also by a run that drops the last rows of an epoch."""
    sizes = {"per_device_train_batch_size": 8, "per_device_eval_batch_size": 8}
    trainer = make_trainer(tmp_path, dataloader_drop_last=True, **sizes)
    assert [len(batch["labels"]) for batch in trainer.get_train_dataloader()] == [8]
    assert len(trainer.predict(trainer.eval_dataset).label_ids) == 10
    assert [len(batch["labels"]) for batch in trainer.get_eval_dataloader()] == [8, 2]


def test_there_is_something_to_train_on(tmp_path):
    trainer = make_trainer(tmp_path, dataloader_drop_last=True, per_device_train_batch_size=16)
    with pytest.raises(SystemExit, match="--dataloader-drop-last leaves nothing to train on"):
        train_to_the_end(trainer)
    assert not (tmp_path / "model.safetensors").exists()


def test_only_weights_that_are_missing_are_told(tmp_path, caplog, monkeypatch):
    """A checkpoint holds tied weights once."""
    trainer = make_trainer(tmp_path)
    trainer.model = QRNNForCausalLM(QRNNConfig(vocab_size=5, hidden_size=4, tie_word_embeddings=True))
    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)
    trainer._issue_warnings_after_load(_IncompatibleKeys(["lm_head.weight"], []))
    assert caplog.text == ""
    trainer._issue_warnings_after_load(_IncompatibleKeys(["lm_head.weight", "lm_head.bias"], []))
    assert "missing keys in the checkpoint model loaded: ['lm_head.bias']" in caplog.text


def test_the_end_is_saved_and_not_pushed(tmp_path, monkeypatch):
    """What is pushed is pushed with its scores and its card."""
    calls = []
    monkeypatch.setattr(Trainer, "init_hf_repo", lambda self, **_: None)
    monkeypatch.setattr(Trainer, "_push_from_checkpoint", lambda self, folder: None)
    monkeypatch.setattr(Trainer, "push_to_hub", lambda self, **_: calls.append(self))
    train_to_the_end(make_trainer(tmp_path, max_steps=1, push_to_hub=True))
    assert (tmp_path / "model.safetensors").is_file() and calls == []


def test_a_run_that_diverged_is_told(tmp_path):
    trainer = make_trainer(tmp_path, learning_rate=1e38, max_grad_norm=0.0, max_steps=8)
    with pytest.raises(SystemExit, match="training diverged, the weights are no finite numbers"):
        train_to_the_end(trainer)
    assert not (tmp_path / "model.safetensors").exists()


def test_one_process_groups_rows_as_trainer_does(tmp_path):
    trainer = make_trainer(tmp_path, train_sampling_strategy="group_by_length")
    assert type(trainer._get_train_sampler()) is LengthGroupedSampler


def test_processes_share_the_groups_of_an_epoch(tmp_path, monkeypatch):
    """Each row is read once an epoch, whatever random numbers the processes draw in between, and later as at once."""
    monkeypatch.setattr(TrainingArguments, "world_size", 2)
    trainer = make_trainer(tmp_path, n_rows=48, train_sampling_strategy="group_by_length")
    orders = []
    for rank in range(2):
        sampler = trainer._get_train_sampler()
        assert isinstance(sampler, SharedLengthGroups)
        loader = DataLoader(range(48), batch_size=4, sampler=sampler)
        shard = prepare_data_loader(loader, num_processes=2, process_index=rank, put_on_device=False)
        orders.append([])
        for epoch in range(3):
            shard.set_epoch(epoch)
            orders[rank].append(torch.cat(list(shard)).tolist())
            torch.rand(rank + 1)
    for epoch in range(3):
        assert sorted(orders[0][epoch] + orders[1][epoch]) == list(range(48))
    assert orders[0][0] != orders[0][1]
    resumed = trainer._get_train_sampler()
    resumed.set_epoch(2)
    in_order = list(resumed)
    assert orders[0][2] == [row for start in range(0, 48, 8) for row in in_order[start : start + 4]]
