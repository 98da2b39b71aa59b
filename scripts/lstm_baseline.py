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
"""The LSTM that is trained beside a QRNN: the same model with an LSTM in each layer's place, of equal size."""

import bisect

import torch
import torch.nn.functional as F
from torch import nn

from modeling_qrnn import QRNNConfig, QRNNForCausalLM


class LSTMConfig(QRNNConfig):
    """A QRNN's configuration, for the cache of an LSTM: its last output is kept where a QRNN keeps its last input."""

    model_type = "qrnn_with_lstm"
    _auto_class = None

    @property
    def state_widths(self) -> list[tuple[int, int, int]]:
        return [(width, 1, width) for _, width in self.layer_sizes]


class LSTMLayer(nn.Module):
    """An LSTM called like a `QRNNLayer`, with dropped recurrent weights (Merity et al. 2018)."""

    kernel_size = 2  # its state has a column for the last output, as that of a convolution has for the last input

    def __init__(self, input_size: int, hidden_size: int, weight_dropout: float):
        super().__init__()
        self.lstm = nn.LSTM(input_size, hidden_size)
        self.weight_dropout = weight_dropout

    def forward(self, x, state=None, **marks):
        """Pads on the right are the only ones that it can be given: what comes after them is not used."""
        if state is None:
            zeros = x.new_zeros(1, x.shape[0], self.lstm.hidden_size)
            state = zeros, zeros
        else:
            state = state[1].permute(2, 0, 1), state[0][None]
        w_ih, w_hh, *biases = self.lstm.all_weights[0]
        weights = [w_ih, F.dropout(w_hh, self.weight_dropout, self.training), *biases]
        state = tuple(part.to(x.dtype).contiguous() for part in state)
        output, h, c = torch.lstm(x, state, weights, True, 1, 0.0, self.training, False, True)
        return output, (c[0], h[0][..., None])


class LSTMForCausalLM(QRNNForCausalLM):
    """The same model with an LSTM in place of each QRNN: embedding, blocks, dropouts, losses and head are shared."""

    config_class = LSTMConfig
    _auto_class = None
    _auto_map = {}

    def __init__(self, config: LSTMConfig):
        super().__init__(config)
        for block, (input_size, output_size) in zip(self.model.layers, config.layer_sizes, strict=True):
            block.mixer.directions = nn.ModuleList([LSTMLayer(input_size, output_size, config.weight_dropout)])
        self.post_init()


def equal_lstm(config: QRNNConfig, n_parameters: int) -> LSTMForCausalLM:
    """The LSTM of the same depth that has about so many parameters."""

    def build(hidden_size: int) -> LSTMForCausalLM:
        changes = {"hidden_size": hidden_size}
        if config.embedding_size == config.hidden_size:
            changes["embedding_size"] = hidden_size
        if config.intermediate_size is not None:
            changes["intermediate_size"] = round(config.intermediate_size * hidden_size / config.hidden_size)
        return LSTMForCausalLM(LSTMConfig(**{**config.to_dict(), **changes}))

    def excess(hidden_size: int) -> int:
        with torch.device("meta"):
            return build(hidden_size).num_parameters() - n_parameters

    widths = range(1, 4 * config.hidden_size)
    return build(max(1, bisect.bisect_right(widths, 0, key=excess)))
