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
"""Fine-tuning a pretrained model gently, as ULMFiT does (Howard and Ruder 2018) and MultiFiT after it.

Both parts work on the levels of a model: its embeddings, each of its layers, and its head. The lower a level, the more
general is what it has learned, and the less it should change.
"""

from typing import Any

from torch import nn
from transformers import TrainerCallback

from .modeling_qrnn import QRNNPreTrainedModel


ROUNDING = 1e-6  # of a number of epochs, which Trainer counts in fractions


def parameter_levels(model: QRNNPreTrainedModel) -> list[list[nn.Parameter]]:
    """The parameters of a model from its embeddings over each layer up to its head.

    Args:
        model: a QRNN of text with a head, or `QRNNModel`.

    Returns:
        One list for the embeddings, one for each layer, and one for the last norm and the head, unless these have no
        parameters of their own: a tied head counts as embeddings. Each parameter is in one list.

    Raises:
        ValueError: for an encoder-decoder, or a model of audio or time series.

    Example:
        >>> from modeling_qrnn import QRNNConfig, QRNNForSequenceClassification
        >>> model = QRNNForSequenceClassification(QRNNConfig(vocab_size=100, hidden_size=8, num_hidden_layers=3))
        >>> [len(level) for level in parameter_levels(model)]
        [1, 2, 2, 2, 2]
    """
    body = model.base_model
    if not hasattr(body, "embed_tokens"):
        raise ValueError(f"`model` must be a QRNN of text that is one stack of layers, got {type(model).__name__}")
    lower = [[*body.embed_tokens.parameters(), *body.embed_proj.parameters()]]
    lower += [list(layer.parameters()) for layer in body.layers]
    known = {parameter for level in lower for parameter in level}
    highest = [parameter for parameter in model.parameters() if parameter not in known]
    return [*lower, highest] if highest else lower


def discriminative_parameter_groups(
    model: QRNNPreTrainedModel, learning_rate: float, factor: float = 2.6, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser, with a learning rate that falls from each level to the one below it.

    Args:
        model: a QRNN of text with a head, or `QRNNModel`.
        learning_rate: of the highest level.
        factor: the rate of a level over that of the level below it; 2.6 in ULMFiT, 1 for one rate for all.
        weight_decay: of matrices; biases and norms have none.

    Raises:
        ValueError: for a factor below 1.

    Example:
        >>> import torch
        >>> from modeling_qrnn import QRNNConfig, QRNNForSequenceClassification
        >>> model = QRNNForSequenceClassification(QRNNConfig(vocab_size=100, hidden_size=8))
        >>> optimizer = torch.optim.AdamW(discriminative_parameter_groups(model, learning_rate=8e-3, factor=2))
        >>> [group["lr"] for group in optimizer.param_groups]
        [0.001, 0.002, 0.002, 0.004, 0.004, 0.008, 0.008]
        >>> # and then: Trainer(model, args, ..., optimizers=(optimizer, None))
    """
    if factor < 1:
        raise ValueError(f"`factor` must be at least 1, for lower levels are to change less, got {factor}")
    levels = parameter_levels(model)
    groups = []
    for depth, level in enumerate(reversed(levels)):
        rate = learning_rate / factor**depth
        matrices = [parameter for parameter in level if parameter.dim() > 1]
        vectors = [parameter for parameter in level if parameter.dim() <= 1]
        groups.append({"params": vectors, "lr": rate, "weight_decay": 0.0})
        groups.append({"params": matrices, "lr": rate, "weight_decay": weight_decay})
    return [group for group in reversed(groups) if group["params"]]


class GradualUnfreezing(TrainerCallback):
    """Train the highest level alone at first, the head, then unfreeze one level after another, from the top.

    What is frozen gets no gradient, so it costs no backward pass, and an optimiser leaves it as it is.

    Args:
        epochs_per_level: epochs before the next level joins; 1 in ULMFiT.

    Raises:
        ValueError: if `epochs_per_level` is not above zero; at the start of training in several processes, whose
            gradients are gathered for a fixed set of parameters.

    Example:
        >>> from modeling_qrnn import QRNNConfig, QRNNForSequenceClassification
        >>> model = QRNNForSequenceClassification(QRNNConfig(vocab_size=100, hidden_size=8))
        >>> GradualUnfreezing().unfreeze(model, epoch=1)  # the second epoch: the head and the last layer
        >>> [all(parameter.requires_grad for parameter in level) for level in parameter_levels(model)]
        [False, False, True, True]
    """

    def __init__(self, epochs_per_level: float = 1.0):
        if epochs_per_level <= 0:
            raise ValueError(f"`epochs_per_level` must be above zero, got {epochs_per_level}")
        self.epochs_per_level = epochs_per_level
        self.trainable: set[nn.Parameter] | None = None

    def unfreeze(self, model: QRNNPreTrainedModel, epoch: float) -> None:
        """Freeze what is not trained at that point of training (in epochs, from 0), and nothing else.

        Args:
            model: a QRNN of text with a head. What was frozen when training began stays so.
            epoch: epochs that are over.
        """
        levels = parameter_levels(model)
        n_trained = 1 + int(epoch / self.epochs_per_level + ROUNDING)
        for depth, level in enumerate(reversed(levels)):
            for parameter in level:
                if self.trainable is None or parameter in self.trainable:
                    parameter.requires_grad_(depth < n_trained)

    def on_train_begin(self, args, state, control, model, **kwargs):
        if args.world_size > 1:
            raise ValueError(
                f"Gradual unfreezing needs one process, got {args.world_size}: several processes gather the gradients "
                "of a fixed set of parameters"
            )
        interrupted = self.trainable or set()  # of a run that did not come to its end, and froze some of these
        parameters = model.parameters()
        self.trainable = {parameter for parameter in parameters if parameter.requires_grad or parameter in interrupted}

    def on_step_begin(self, args, state, control, model, **kwargs):
        self.unfreeze(model, state.epoch)

    def on_train_end(self, args, state, control, model, **kwargs):
        for parameter in self.trainable or ():
            parameter.requires_grad_(True)
        self.trainable = None


__all__ = ["GradualUnfreezing", "discriminative_parameter_groups", "parameter_levels"]
