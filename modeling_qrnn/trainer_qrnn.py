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
"""Language modelling as the field does it: truncated backpropagation through time with a carried state.

A text given to `QRNNTrainer` as one tensor of tokens is read as contiguous streams, side by side, window after window;
the recurrent state goes on from each window to the next (Merity et al. 2018, "Regularizing and Optimizing LSTM
Language Models"). Any other data set is trained on as `transformers.Trainer` does. Evaluation counts every token once.
"""

import copy
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator
from transformers.cache_utils import Cache
from transformers.trainer_utils import EvalLoopOutput

from .cache_qrnn import load_recurrent_state, save_recurrent_state
from .modeling_qrnn import drop_labels_after_pads


# The law of the window lengths, from section 5.1 of Merity et al. 2018
FULL_WINDOWS = 0.95  # of all windows; the others are half as long
WINDOW_DEVIATION = 5
SHORTEST_WINDOW = 5

STATE_FILE = "recurrent_state.safetensors"  # of a checkpoint

# What does not go with a carried state, and why
STREAM_SETTINGS = {
    "gradient_accumulation_steps": (1, "the state goes on from step to step; raise the batch size instead"),
    "dataloader_num_workers": (0, "each worker would read the whole stream"),
    "auto_find_batch_size": (False, "the batch size is the number of streams"),
    "ignore_data_skip": (False, "a resumed run would go on with the state of another place of the text"),
    "enable_jit_checkpoint": (False, "it saves within a step, when the state has gone on and the weights have not"),
    "activation_checkpointing": (False, "Transformers drops the state in a layer that it recomputes"),
    "label_smoothing_factor": (0.0, "the last token of each window would not be learned"),
    "n_gpu": (1, "the state of a batch cannot be split; start one process per GPU with `accelerate launch`"),
}


@dataclass
class QRNNTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments`, and what truncated backpropagation through time adds.

    Args:
        bptt: tokens of a training window.
        bptt_jitter: draw the length of each window: about `bptt`, one in twenty about half of it. The learning rate of
            a step is scaled with the length of its window.
        eval_window: tokens that evaluation reads at once. The state is carried, so this decides speed and memory only.
        epoch_decay: what the learning rate is multiplied with after each epoch of a text, once `constant_epochs` are
            over (Zaremba et al. 2014); in place of `lr_scheduler_type` if it is not 1.
        constant_epochs: epochs before that.
        non_monotone: start to average the weights (NT-ASGD) at the first evaluation that is worse than the best of
            all but the last so many; 0 for the beginning, as in the finetuning of AWD-QRNN; `None` for never. Goes
            with `optim="sgd"`.

    Raises:
        ValueError: for a window that is too short, or arguments that do not go together.

    Example:
        >>> QRNNTrainingArguments(optim="sgd", learning_rate=30, eval_strategy="epoch", non_monotone=5).bptt
        70
    """

    bptt: int = field(default=70, metadata={"help": "Tokens of a training window."})
    bptt_jitter: bool = field(
        default=True, metadata={"help": "Draw the length of each window, and scale its learning rate with it."}
    )
    eval_window: int = field(
        default=1024,
        metadata={
            "help": "Tokens that evaluation reads at once; the state is carried, so any number scores the same."
        },
    )
    epoch_decay: float = field(
        default=1.0,
        metadata={"help": "Multiply the learning rate with this after each epoch beyond the constant ones."},
    )
    constant_epochs: int = field(default=1, metadata={"help": "Epochs before --epoch-decay begins."})
    non_monotone: int | None = field(
        default=None,
        metadata={
            "help": "Average the weights (NT-ASGD, with --optim sgd) from the first evaluation on that is worse than "
            "the best of all but the last so many; 0 averages from the beginning."
        },
    )
    # The model is to be saved as one that returns its state.
    use_cache: bool = field(default=True, metadata={"help": "Whether the model returns its state."})
    # `shift_labels` is in no signature, and would be removed.
    remove_unused_columns: bool = field(default=False, metadata={"help": "Whether to drop columns by their name."})
    # Every parameter has a gradient in every step.
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Whether several processes look for parameters without a gradient."}
    )

    def __post_init__(self):
        super().__post_init__()
        shortest = SHORTEST_WINDOW if self.bptt_jitter else 1
        for name, least in (("bptt", shortest), ("eval_window", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}")
        if self.non_monotone is None:
            return
        if self.non_monotone < 0 or self.optim != "sgd" or self.optim_args or self.load_best_model_at_end:
            raise ValueError(
                "`non_monotone` must be at least 0 and goes with optim='sgd', without `optim_args`, and without "
                f"`load_best_model_at_end`, as the average is the result; got {self.non_monotone}, {self.optim!s}, "
                f"{self.optim_args!r} and {self.load_best_model_at_end}"
            )
        if self.non_monotone and self.eval_strategy == "no":
            raise ValueError(
                f"`non_monotone` must be 0 or None with `eval_strategy` 'no', got {self.non_monotone}: averaging "
                "begins at an evaluation"
            )


class StreamWindows(IterableDataset):
    """A text as contiguous streams, side by side, cut into windows.

    Each window gives one row per stream, and the rows of a window follow one another. So in batches of `n_streams`
    rows, or of so many in all processes together, row `i` goes on where row `i` of the last batch ended. Each epoch is
    cut anew, but into the same number of windows, so that the number of steps alone tells the position.

    Args:
        tokens: `(n_tokens,)` int64. All but the first are targets, once each, except a rest shorter than `n_streams`.
        n_streams: number of streams.
        length: tokens of a window; without jitter only the last one of an epoch may be shorter.
        jitter: draw the lengths: 19 in 20 about `length`, the others about half of it.
        seed: with the epoch, what decides the draw.

    Raises:
        ValueError: if `tokens` is no tensor of that kind, or too short.

    Example:
        >>> windows = StreamWindows(torch.arange(9), n_streams=2, length=3)
        >>> [row["input_ids"].tolist() for row in windows]
        [[0, 1, 2], [4, 5, 6], [3], [7]]
        >>> [row["shift_labels"].tolist() for row in windows]
        [[1, 2, 3], [5, 6, 7], [4], [8]]
    """

    def __init__(
        self, tokens: torch.Tensor, n_streams: int = 1, length: int = 70, jitter: bool = False, seed: int = 0
    ):
        if tokens.dim() != 1 or tokens.dtype != torch.int64:
            raise ValueError(f"`tokens` must be (n_tokens,) int64, got {tuple(tokens.shape)} {tokens.dtype}")
        self.stream_length = (len(tokens) - 1) // n_streams
        if self.stream_length < 1:
            raise ValueError(f"`tokens` must hold more tokens than there are streams ({n_streams}), got {len(tokens)}")
        n_tokens = n_streams * self.stream_length
        self.inputs = tokens[:n_tokens].view(n_streams, -1)
        self.targets = tokens[1 : n_tokens + 1].view(n_streams, -1)
        self.length, self.jitter, self.seed, self.epoch = length, jitter, seed, 0

    @property
    def n_windows(self) -> int:
        """Windows of an epoch."""
        share = (1 + FULL_WINDOWS) / 2 if self.jitter else 1.0
        return math.ceil(self.stream_length / (share * self.length))

    def __len__(self) -> int:
        return self.n_windows * len(self.inputs)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose windows come next."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        ends = self._ends()
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            for inputs, targets in zip(self.inputs[:, start:end], self.targets[:, start:end], strict=True):
                yield {"input_ids": inputs, "labels": inputs, "shift_labels": targets}

    def _ends(self) -> list[int]:
        """Where each window of the epoch ends."""
        if not self.jitter:
            return [min(end * self.length, self.stream_length) for end in range(1, self.n_windows + 1)]
        draw = np.random.default_rng([self.seed, self.epoch])
        centers = np.where(draw.random(self.n_windows) < FULL_WINDOWS, self.length, self.length / 2)
        lengths = np.maximum(draw.normal(centers, WINDOW_DEVIATION), SHORTEST_WINDOW)
        # So many windows are drawn that they fill the stream on average, and they are stretched to fill it exactly: by
        # a per cent or so, or more where `length` is so short that many windows would be shorter than the shortest.
        return np.rint(lengths.cumsum() * (self.stream_length / lengths.sum())).astype(int).tolist()


class WindowLearningRate(TrainerCallback):
    """Scale the learning rate of each step with the length of its window, for the loss is a mean over its tokens."""

    def __init__(self, trainer: "QRNNTrainer"):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, optimizer, **kwargs):
        self.rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] *= self.trainer.window_length / args.bptt
            for parameter in group["params"]:
                if "eta" in optimizer.state.get(parameter, {}):  # ASGD would take the learning rate of the step before
                    optimizer.state[parameter]["eta"].fill_(group["lr"])

    def on_optimizer_step(self, args, state, control, optimizer, **kwargs):
        for group, rate in zip(optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate


class QRNNTrainer(Trainer):
    """`transformers.Trainer` for language models, with truncated backpropagation through time.

    Checkpoints hold the carried state too: a run that is resumed from any of them ends with the same weights as one
    that was never interrupted. The number of processes may change, if the number of streams over all of them does not.

    Args:
        model: a causal language model whose `cache` holds the state of a QRNN.
        args: `QRNNTrainingArguments`.
        train_dataset: a tensor `(n_tokens,)` int64 is one long text. `per_device_train_batch_size` streams of it (on
            each device) are read side by side, the state is carried from window to window, and an epoch begins with
            a zero state. Anything else is what it is to `Trainer`.
        eval_dataset: a tensor `(n_tokens,)` int64 is read from its beginning to its end with the state carried, and
            all tokens but the first count. Of anything else the rows are scored each from a zero state. Every process
            scores all of it. The metrics are `loss` in nats per token, `perplexity` and `tokens`.
        kwargs: as in `Trainer`; a `compute_loss_func` counts in training alone.

    Raises:
        TypeError: for `args` of another class.
        ValueError: for a model that is not causal, or arguments that do not go with a carried state, or with
            evaluation as above.

    Example:
        >>> import tempfile
        >>> from modeling_qrnn import QRNNConfig, QRNNForCausalLM
        >>> model, text = QRNNForCausalLM(QRNNConfig(vocab_size=10, hidden_size=8)), torch.arange(1000) % 10
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     args = QRNNTrainingArguments(folder, max_steps=2, use_cpu=True, disable_tqdm=True, save_strategy="no")
        ...     trainer = QRNNTrainer(model, args, train_dataset=text, eval_dataset=text)
        ...     trainer.train().global_step, trainer.evaluate()["eval_tokens"]  # doctest: +ELLIPSIS
        {'train_runtime': ...
        (2, 999)
    """

    def __init__(self, model, args: QRNNTrainingArguments, train_dataset=None, eval_dataset=None, **kwargs):
        if not isinstance(args, QRNNTrainingArguments):
            raise TypeError(f"`args` must be QRNNTrainingArguments, got {type(args).__name__}")
        config = getattr(model, "config", None)
        if getattr(config, "is_encoder_decoder", False) or getattr(config, "bidirectional", False):
            raise ValueError(f"`model` must be a causal language model, got {type(model).__name__}")
        if kwargs.get("compute_metrics") is not None:
            raise ValueError("`compute_metrics` must be None: logits are not kept, the metrics are those of the loss")
        for data in eval_dataset.values() if isinstance(eval_dataset, dict) else (eval_dataset,):
            check_no_windows(data)
        for name in ("bf16_full_eval", "fp16_full_eval"):
            if getattr(args, name):
                raise ValueError(f"`{name}` must be False: a model is evaluated as it is trained, with `{name[:4]}`")
        self.reads_streams = isinstance(train_dataset, torch.Tensor)
        if args.epoch_decay != 1 and train_dataset is not None and not self.reads_streams:
            raise ValueError(f"`epoch_decay` must be 1 unless `train_dataset` is a tensor, got {args.epoch_decay}")
        if self.reads_streams:
            check_stream_settings(args)
            if getattr(model, "is_activation_checkpointing", False):
                _, reason = STREAM_SETTINGS["activation_checkpointing"]
                raise ValueError(f"`model` must have no activation checkpointing when the state is carried: {reason}")
            n_streams = args.per_device_train_batch_size * args.world_size
            train_dataset = StreamWindows(train_dataset, n_streams, args.bptt, args.bptt_jitter, args.seed)
        if args.non_monotone is not None:
            if isinstance(eval_dataset, dict):
                raise ValueError("`eval_dataset` must be one data set with `non_monotone`, which goes by its loss")
            # Until step `t0` this is plain SGD, and the average is a copy of the weights.
            asgd = {"lr": args.learning_rate, "lambd": 0.0, "t0": math.inf if args.non_monotone else 0}
            kwargs["optimizer_cls_and_kwargs"] = (torch.optim.ASGD, asgd)
        super().__init__(model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        self.carried_state: Cache | None = None
        self.window_length = args.bptt
        self.add_callback(WindowLearningRate(self))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in `Trainer`; where FSDP cuts checkpoints into shards, what is saved by a call of this is whole."""
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is not None and _internal_call:
            # Each process looks for this folder to know of the best checkpoint; shards are only written after that.
            os.makedirs(output_dir or self.args.output_dir, exist_ok=True)
        if plugin is None or _internal_call:
            return super().save_model(output_dir, _internal_call)
        kind = plugin.state_dict_type
        plugin.set_state_dict_type("FULL_STATE_DICT")
        try:
            super().save_model(output_dir)
        finally:
            plugin.set_state_dict_type(kind)

    def train(self, *args, **kwargs):
        """Train as `Trainer` does; the weights at the end are the average, if there is one."""
        output = super().train(*args, **kwargs)
        self._write(self._averages())
        return output

    def _run_epoch(self, *args, **kwargs):
        """As in `Trainer`, which takes a step too many if a run that ended within an epoch is resumed from its end."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)

    def hyperparameter_search(self, *args, **kwargs):
        """Refuse a search where the arguments have been used up: a text is cut, and ASGD made, with the trainer."""
        if self.reads_streams or self.args.non_monotone is not None:
            raise ValueError(
                "`train_dataset` must be rows, and `non_monotone` None, in a search: otherwise make a trainer for "
                "each trial"
            )
        return super().hyperparameter_search(*args, **kwargs)

    def training_step(self, model, inputs: dict[str, Any], num_items_in_batch=None) -> torch.Tensor:
        if self.reads_streams:
            self.window_length = inputs["input_ids"].shape[1]
            if self.state.global_step % self.train_dataset.n_windows == 0:
                self.carried_state = None
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(self, model, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch=None):
        if not self.reads_streams:  # a loss that the model does not make, as with smoothed labels, has no mask
            inputs = without_labels_after_pads(inputs)
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = {**inputs, "cache": self.carried_state, "use_cache": True}
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        self.carried_state = outputs.cache
        return (loss, outputs) if return_outputs else loss

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """As in `Trainer`, or the schedule of `epoch_decay`."""
        if self.args.epoch_decay == 1:
            return super().create_scheduler(num_training_steps, optimizer)

        def decay(step: int) -> float:
            epochs = step // self.train_dataset.n_windows + 1
            return self.args.epoch_decay ** max(0, epochs - self.args.constant_epochs)

        self.lr_scheduler = LambdaLR(self.optimizer if optimizer is None else optimizer, decay)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | int | None:
        """As in `Trainer`, but of the labels that the model counts."""
        return super()._get_num_items_in_batch([without_labels_after_pads(batch) for batch in batch_samples], device)

    def get_train_dataloader(self) -> DataLoader:
        """As in `Trainer`; the windows of a text are batched as they come, whatever `data_collator` does to rows."""
        if not self.reads_streams:
            return super().get_train_dataloader()
        options = {"batch_size": self.args.train_batch_size, "pin_memory": self.args.dataloader_pin_memory}
        return self.accelerator.prepare(DataLoader(self.train_dataset, collate_fn=default_data_collator, **options))

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """The rows of a data set, or the windows of a text; neither is split over processes, nor draws from training's
        random numbers, so that evaluating more often changes nothing.
        """
        if eval_dataset is None or isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset if eval_dataset is None else self.eval_dataset[eval_dataset]
        if eval_dataset is None:
            raise ValueError("`eval_dataset` must be given to the trainer or to `evaluate`, got None")
        check_no_windows(eval_dataset)
        if isinstance(eval_dataset, torch.Tensor):
            eval_dataset = StreamWindows(eval_dataset, length=self.args.eval_window)
            options = {"batch_size": 1, "collate_fn": default_data_collator}
        else:
            collate = self._get_collator_with_removed_columns(self.data_collator, description="evaluation")
            options = {"batch_size": self.args.eval_batch_size, "collate_fn": collate}
        return DataLoader(eval_dataset, generator=torch.Generator(), **options)

    def get_test_dataloader(self, test_dataset) -> DataLoader:
        """As that of evaluation: what `predict` gives are its metrics."""
        return self.get_eval_dataloader(test_dataset)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Evaluate as `Trainer` does, with the averaged weights if there are any; see the class for the metrics.

        The samples that it counts are tokens.
        """
        metrics = super().evaluate(*args, **kwargs)
        is_of_the_log = self.is_in_train and "eval_loss" in metrics
        if is_of_the_log and self.args.non_monotone is not None and self._has_stopped_improving():
            self._start_averaging()
        return metrics

    @torch.no_grad()
    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        carries = isinstance(dataloader.dataset, StreamWindows)
        nats, n_tokens, state = 0.0, 0, None
        if self.is_fsdp_enabled and not self.accelerator._models:  # each process has all until `train` shards it
            self.model.to(self.args.device)
        self.model.eval()
        if callable(getattr(self.optimizer, "eval", None)):  # one that averages the weights itself
            self.optimizer.eval()
        self.callback_handler.eval_dataloader = dataloader
        with self._averaged_weights(), self.accelerator.autocast():
            for batch in dataloader:
                if "labels" not in batch:
                    columns = list(batch)
                    raise ValueError(f"`eval_dataset` must have labels, or `data_collator` make them, got {columns}")
                batch = without_labels_after_pads(batch)
                targets = batch["shift_labels"] if "shift_labels" in batch else batch["labels"][:, 1:]
                inputs = {**self._prepare_inputs(batch), "cache": state, "use_cache": carries}
                outputs = self.model(**inputs, num_items_in_batch=1)  # a sum, not a mean
                state = outputs.cache  # none, for rows
                nats, n_tokens = nats + outputs.loss.item(), n_tokens + int((targets != -100).sum())
                self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        if n_tokens == 0:
            raise ValueError("`eval_dataset` must hold a token to predict, got none")
        metrics = {
            "loss": nats / n_tokens,
            "perplexity": torch.tensor(nats / n_tokens, dtype=torch.float64).exp().item(),  # `math.exp` may overflow
            "tokens": n_tokens,
        }
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=n_tokens)

    def _has_stopped_improving(self) -> bool:
        """The rule of NT-ASGD, over the log: it is a part of each checkpoint."""
        losses = [entry["eval_loss"] for entry in self.state.log_history if "eval_loss" in entry]
        return losses[-1] > min(losses[: -self.args.non_monotone - 1], default=math.inf)

    def _start_averaging(self) -> None:
        for group in self.optimizer.param_groups:
            steps = [self.optimizer.state[p]["step"] for p in group["params"] if p in self.optimizer.state]
            if math.isinf(group["t0"]) and steps:  # a group may be empty, or frozen
                group["t0"] = int(max(steps))

    def _averages(self) -> list[tuple[torch.nn.Parameter, torch.Tensor]]:
        """Each parameter and its average, once averaging has begun."""
        groups = [] if self.optimizer is None else self.optimizer.param_groups
        averaged = [p for group in groups if math.isfinite(group.get("t0", math.inf)) for p in group["params"]]
        return [(p, self.optimizer.state[p]["ax"]) for p in averaged if p in self.optimizer.state]  # none at step 0

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """The averaged weights for a while, if there are any."""
        own = [(parameter, parameter.detach().clone()) for parameter, _ in self._averages()]
        self._write(self._averages())
        try:
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def _write(self, values: list[tuple[torch.nn.Parameter, torch.Tensor]]) -> None:
        """Give parameters new values."""
        for parameter, value in values:
            parameter.copy_(value)
        for module in self.model.modules():
            if hasattr(module, "reshard"):  # FSDP2 may still hold what it gathered of the old values
                module.reshard()

    # The carried state is saved and restored together with the random numbers: every process runs these two methods,
    # and only there do both belong to the next step. The file holds the streams of all processes.

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.carried_state is None:
            return
        state = copy.deepcopy(self.carried_state)
        for layer in state.layers:
            layer.change_batch(self.accelerator.gather)
        if self.args.should_save:
            save_recurrent_state(state, os.path.join(output_dir, STATE_FILE))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if not self.reads_streams or checkpoint is None:
            return
        config = self.accelerator.unwrap_model(self.model).config
        state = load_recurrent_state(os.path.join(checkpoint, STATE_FILE), config, self.args.device)
        n_saved, n_streams = state.layers[0].batch_size, len(self.train_dataset.inputs)
        if n_saved != n_streams:
            raise ValueError(
                f"`per_device_train_batch_size` must be such that all {self.args.world_size} processes together read "
                f"{n_saved} streams, as the run of {checkpoint} does, got {n_streams}"
            )
        share = torch.arange(n_streams, device=self.args.device).chunk(self.args.world_size)
        state.batch_select_indices(share[self.args.process_index])
        self.carried_state = state


def without_labels_after_pads(batch: dict[str, Any]) -> dict[str, Any]:
    """The same batch with the labels that count, see `QRNNForCausalLM`."""
    if "labels" not in batch:
        return batch
    return {**batch, "labels": drop_labels_after_pads(batch["labels"], batch.get("attention_mask"))}


def check_no_windows(eval_dataset: Any) -> None:
    """Refuse windows: their state would be carried from batch to batch, whatever rows of them a batch holds."""
    if isinstance(eval_dataset, StreamWindows):
        raise ValueError("`eval_dataset` must be rows or the tensor of a text, which is cut here, not its windows")


def check_stream_settings(args: QRNNTrainingArguments) -> None:
    """Refuse what does not go with a carried state.

    Args:
        args: the arguments of a trainer that reads a stream of tokens.

    Raises:
        ValueError: for the first argument that does not.

    Example:
        >>> check_stream_settings(QRNNTrainingArguments(use_cpu=True))
    """
    for name, (allowed, reason) in STREAM_SETTINGS.items():
        if getattr(args, name) not in (allowed, 0):
            raise ValueError(
                f"`{name}` must be {allowed} when the state is carried along a stream of tokens, "
                f"got {getattr(args, name)}: {reason}"
            )
    if args.accelerator_config.split_batches:
        raise ValueError(
            "`accelerator_config` must have `split_batches` False when the state is carried along a stream of tokens: "
            "rows would change from one process to another"
        )


__all__ = ["QRNNTrainer", "QRNNTrainingArguments", "StreamWindows"]
