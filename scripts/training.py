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
"""What the programs that train have in common: what they refuse, how they go on, and what they leave behind."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sklearn.model_selection import train_test_split
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from command_line import check_seed, one_line_error, one_line_trainer_error, stop
from curves import plot_training
from recipes import last_complete_checkpoint
from results import report, write_scores


NO_VALIDATION = "no validation rows: give --validation-file, --validation-split of a --dataset or --validation-share"
HAS_VALIDATION = "--validation-share must be 0: the data have a validation split of their own"
LEAST = {  # of options that are numbers
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "eval_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "generation_num_beams": 1,  # this and the next for models that write
    "generation_max_length": 1,
}


def check_training(training: TrainingArguments, metrics: set[str], smaller_is_better: bool = False) -> None:
    """Refuse what would end in a traceback, or go on elsewhere than it stopped."""
    check_seed(training.seed)
    check_metric(training, metrics, smaller_is_better)
    check_numbers(training)
    check_supported(training)
    check_duration(training)
    check_resumable(training)


def check_metric(training: TrainingArguments, metrics: set[str], smaller_is_better: bool) -> None:
    """Of the metrics other than the loss Transformers takes the greatest for the best, unless told otherwise."""
    metric = (training.metric_for_best_model or "loss").removeprefix("eval_")
    if metric not in {*metrics, "loss"}:
        stop(f"--metric-for-best-model {metric}: the metrics are {', '.join(sorted({*metrics, 'loss'}))}")
    if smaller_is_better and metric in metrics:
        training.greater_is_better = False


def check_numbers(training: TrainingArguments) -> None:
    for name, least in LEAST.items():
        value = getattr(training, name, None)
        if value is not None and value < least:
            stop(f"--{name.replace('_', '-')} must be at least {least}, got {value}")


def check_supported(training: TrainingArguments) -> None:
    if training.label_names is not None:
        stop("--label-names is not an option here: the programs know what their models learn from")
    if training.fp16 and training.device.type == "cpu":
        stop("--fp16 is for GPUs, and would change nothing on a CPU: use --bf16 there")
    if training.use_liger_kernel:
        stop("--use-liger-kernel is not an option here: Liger has no kernels for these models")


def check_duration(training: TrainingArguments) -> None:
    if training.max_steps == 0:
        stop("--max-steps must be at least 1, or negative to go by --num-train-epochs, got 0")
    if training.max_steps < 0 and not 0 < training.num_train_epochs < math.inf:
        stop(f"--num-train-epochs must be a number above 0, got {training.num_train_epochs}")
    if training.max_steps > 0 and training.num_train_epochs != TrainingArguments.num_train_epochs:
        print(f"--max-steps {training.max_steps} decides, not --num-train-epochs {training.num_train_epochs:g}")


def check_resumable(training: TrainingArguments) -> None:
    """Refuse what would keep a run that stopped from going on to the same end."""
    if training.resume_from_checkpoint is not None:
        stop("--resume-from-checkpoint: a run goes on by itself, from the last complete checkpoint of --output-dir")
    if training.save_only_model:
        stop("--save-only-model leaves out the optimizer, without which a run cannot go on where it stopped")
    if training.enable_jit_checkpoint:
        stop("--enable-jit-checkpoint saves in the middle of a step, from where a run would not go on to the same end")
    if training.ignore_data_skip:
        stop("--ignore-data-skip reads rows again that were read before, so a run would not go on to the same end")
    if training.train_sampling_strategy == "group_by_length" and training.save_strategy not in ("epoch", "no"):
        stop(
            "--train-sampling-strategy group_by_length draws the order of an epoch when it begins, so a run can only "
            "go on from the end of one: --save-strategy must be epoch, or no"
        )
    of_scores = training.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
    by_scores = of_scores or getattr(training, "non_monotone", None)
    if by_scores and training.eval_strategy == "epoch" and training.save_strategy == "steps":
        stop(
            "--save-strategy steps can save between the last step of an epoch and its evaluation, without which a run "
            "would go on: with --eval-strategy epoch it must be epoch, or no, where training goes by what is measured"
        )
    if training.load_best_model_at_end and training.save_total_limit == 1:
        stop("--save-total-limit must be at least 2 with the best model kept: the best checkpoint, and the last one")


def check_predictions(training: TrainingArguments) -> None:
    """Refuse what would leave no predictions to score."""
    if training.prediction_loss_only or not training.eval_do_concat_batches:
        stop("--prediction-loss-only and --eval-do-concat-batches false leave no predictions to score")


def with_validation(
    splits: Mapping[str, Dataset], share: float, seed: int, names: Sequence[str] | None = None
) -> dict[str, Dataset]:
    """The splits, with a share of the training rows for validation: drawn at random, and evenly by `label` if the
    labels' names are given.
    """
    if share:
        if "validation" in splits:
            stop(HAS_VALIDATION)
        rows = splits["train"]
        labels = None if names is None else rows["label"][:]
        with one_line_error(f"--validation-share {share}", ValueError):
            if names is not None:
                check_label_counts(labels, names)
            parts = train_test_split(np.arange(len(rows)), test_size=share, random_state=seed, stratify=labels)
        return {**splits, "train": rows.select(parts[0]), "validation": rows.select(parts[1])}
    if "validation" not in splits:
        stop(NO_VALIDATION)
    return dict(splits)


def check_label_counts(labels: Iterable[int], names: Sequence[str]) -> None:
    """Each label must stand in the training and in the validation rows.

    Raises:
        ValueError: with the first of the labels that stand in one row only.
    """
    counts = Counter(map(int, labels))
    single = [name for number, name in enumerate(names) if counts[number] == 1]
    if single:
        listed = ", ".join(map(repr, single[:5])) + ", ..." * (len(single) > 5)
        raise ValueError(
            f"{len(single)} of {len(counts)} labels stand in one row only, and cannot be shared: {listed}"
        )


class SharedLengthGroups(LengthGroupedSampler):
    """Rows of like length together, in an order that the seed and the epoch decide, so that processes can share it."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed(self.seed + epoch)


class ResumableTrainer(Trainer):
    """`Trainer` for runs that are started again, here or elsewhere: one that has ended stays as it is.

    All rows of a split are scored. An optimizer or a schedule that cannot be made ends the program with one line.
    """

    def create_optimizer(self, *args, **kwargs):
        with one_line_trainer_error():
            return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, *args, **kwargs):
        with one_line_trainer_error():
            return super().create_scheduler(*args, **kwargs)

    def _init_training_state(self, *args, **kwargs) -> tuple[int, int]:
        """As in `Trainer`, which goes by the folder and the --logging-steps that the run began with."""
        position = super()._init_training_state(*args, **kwargs)
        self.state.compute_steps(self.args, self.state.max_steps)
        best = Path(self.args.output_dir) / f"checkpoint-{self.state.best_global_step}"
        if best.is_dir():
            self.state.best_model_checkpoint = str(best)
        return position

    def _issue_warnings_after_load(self, load_result) -> None:
        """As in `Trainer`, which also calls weights missing that a checkpoint holds under the name of their twins."""
        tied = getattr(self.model, "all_tied_weights_keys", {})
        missing = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    def get_train_dataloader(self) -> DataLoader:
        """As in `Trainer`, which would train on nothing if what is dropped of the last batch is all that there is."""
        batches = super().get_train_dataloader()
        if len(batches) == 0 and self.args.dataloader_drop_last:
            stop("--dataloader-drop-last leaves nothing to train on: the batches of all devices need more rows")
        return batches

    def _get_train_sampler(self, *args, **kwargs) -> Sampler | None:
        """As in `Trainer`, which groups rows by the random numbers of each process: others than those of its peers."""
        sampler = super()._get_train_sampler(*args, **kwargs)
        if self.args.world_size == 1 or not isinstance(sampler, LengthGroupedSampler):
            return sampler
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return SharedLengthGroups(sampler.batch_size, sampler.lengths, seed)

    def _get_dataloader(self, *args, is_training: bool = False, **kwargs) -> DataLoader:
        """As in `Trainer`, where --dataloader-drop-last drops the last rows of what is scored, too."""
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop_last and is_training
        try:
            return super()._get_dataloader(*args, is_training=is_training, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop_last

    def push_to_hub(self, *args, **kwargs) -> None:
        """Not whenever the model is saved: `results.push` does it at the end, with the scores and the card."""

    def _run_epoch(self, *args, **kwargs):
        """As in `Trainer`, which takes a step too many if a run that ended within an epoch is resumed from its end."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)


def train_to_the_end(trainer: Trainer) -> None:
    """Train from the last complete checkpoint of the folder, if there is one, and save the model."""
    checkpoint = last_complete_checkpoint(Path(trainer.args.output_dir))
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    check_weights(trainer)
    trainer.save_model()


def check_weights(trainer: Trainer) -> None:
    """A run that diverged has nothing to score; what is logged of its loss leaves out what is no number."""
    own = (weight.to_local() if isinstance(weight, DTensor) else weight for weight in trainer.model.parameters())
    is_finite = torch.stack([part.isfinite().all() for part in own]).all()
    if not trainer.accelerator.gather(is_finite[None]).all():
        stop("training diverged, the weights are no finite numbers: try a lower --learning-rate or --max-grad-norm")


def write_results(
    trainer: Trainer, scores: dict[str, dict[str, Any]], metric: str, choose: Callable = max, **more: Any
) -> None:
    """The scores, with what more belongs to them, and the curves; `choose` tells the best value of the metric."""
    folder = Path(trainer.args.output_dir)
    write_scores({**scores, **more}, folder)
    plot_training(trainer.state.log_history, metric, folder / "loss_curve.png", choose)
    report(scores)
