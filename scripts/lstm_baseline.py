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
import math

import torch
from torch import nn

from modeling_qrnn import (
    QRNNConfig,
    QRNNForAudioClassification,
    QRNNForCausalLM,
    QRNNForConditionalGeneration,
    QRNNForCTC,
    QRNNForSequenceClassification,
    QRNNForTimeSeriesPrediction,
    QRNNForTokenClassification,
    QRNNSeq2SeqConfig,
    QRNNSpeechConfig,
    QRNNTimeSeriesConfig,
)
from modeling_qrnn.configuration_qrnn import QRNNStackConfig
from modeling_qrnn.layers_qrnn import dropout
from modeling_qrnn.modeling_qrnn import QRNNPreTrainedModel


class LSTMConfig(QRNNConfig):
    """A QRNN's configuration, for the cache of an LSTM: its last output is kept where a QRNN keeps its last input."""

    model_type = "qrnn_with_lstm"
    _auto_class = None

    @property
    def state_widths(self) -> list[tuple[int, int, int]]:
        return [(width, 1, width) for _, width in self.layer_sizes]


class LSTMSeq2SeqConfig(QRNNSeq2SeqConfig):
    """The same of an encoder-decoder."""

    model_type = "qrnn_seq2seq_with_lstm"
    _auto_class = None
    state_widths = LSTMConfig.state_widths


class LSTMTimeSeriesConfig(QRNNTimeSeriesConfig):
    """The same of a QRNN that forecasts."""

    model_type = "qrnn_time_series_with_lstm"
    _auto_class = None
    state_widths = LSTMConfig.state_widths


class LSTMSpeechConfig(QRNNSpeechConfig):
    """The same of a QRNN that reads audio."""

    model_type = "qrnn_speech_with_lstm"
    _auto_class = None
    state_widths = LSTMConfig.state_widths


class LSTMLayer(nn.Module):
    """An LSTM called like a `QRNNLayer`, with dropped recurrent weights (Merity et al. 2018)."""

    kernel_size = 2  # its state has a column for the last output, as that of a convolution has for the last input

    def __init__(self, input_size: int, hidden_size: int, weight_dropout: float = 0.0, reverse: bool = False):
        super().__init__()
        self.lstm = nn.LSTM(input_size, hidden_size)
        self.weight_dropout = weight_dropout
        self.reverse = reverse

    def forward(
        self,
        x,
        state=None,
        attention_mask=None,
        segment_ids=None,
        gate_bias=None,
        return_ungated=False,
        return_history=False,
    ):
        """Pads must be on the right, and the LSTM runs on over them, so the state after a chunk that ends in pads is
        set to NaN, but for a reversed layer, whose state is not read. A one-token chunk that is a pad leaves the state
        before it as it is.

        `gate_bias` `(batch, 2 * hidden)`, what enters the gates in a QRNN's decoder, is the initial state here.
        """
        if segment_ids is not None or return_history:
            raise ValueError("this LSTM reads one sequence a row, and its state does not roll back")
        if attention_mask is not None and not (attention_mask[:, 1:] <= attention_mask[:, :-1]).all():
            raise ValueError("`attention_mask` must have its pads on the right, which this LSTM needs")
        if self.reverse:
            turned = turn_around(x.shape[:2], attention_mask, x.device)[..., None]
            output, state = self._run(x.gather(1, turned.expand_as(x)), state)
            return output.gather(1, turned.expand_as(output)), state
        if state is None and gate_bias is not None:
            c, h = gate_bias.chunk(2, dim=-1)
            state = c, h.tanh()[..., None]
        output, (c, h) = self._run(x, state)
        if attention_mask is not None:
            ends_in_pad = ~attention_mask[:, -1:]
            is_skipped = x.shape[1] == 1 and state is not None
            held = state if is_skipped else (c.new_tensor(torch.nan), h.new_tensor(torch.nan))
            c, h = torch.where(ends_in_pad, held[0], c), torch.where(ends_in_pad[..., None], held[1], h)
        return (output, None) if return_ungated else output, (c, h)

    def _run(self, x, state):
        if state is None:
            zeros = x.new_zeros(1, x.shape[0], self.lstm.hidden_size)
            state = zeros, zeros
        else:
            state = state[1].permute(2, 0, 1), state[0][None]
        w_ih, w_hh, *biases = self.lstm.all_weights[0]
        if self.training and self.weight_dropout:
            w_hh = dropout(w_hh, self.weight_dropout)
        weights = [w_ih, w_hh, *biases]
        state = tuple(part.to(x.dtype).contiguous() for part in state)
        # Not `self.lstm(...)`, which would read its own recurrent weights, without the dropout on them. After the
        # weights come has_biases, num_layers, dropout, train, bidirectional and batch_first.
        output, h, c = torch.lstm(x, state, weights, True, 1, 0.0, self.training, False, True)
        return output, (c[0], h[0][..., None])


def turn_around(shape: torch.Size, is_real: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    """Where each step of each row comes from, `(batch, seq_len)`, if its real tokens are read from the last one on."""
    steps = torch.arange(shape[1], device=device).expand(shape)
    if is_real is None:
        return steps.flip(1)
    return torch.where(is_real, is_real.sum(dim=1, keepdim=True) - 1 - steps, steps)


def replace_by_lstms(blocks: nn.ModuleList, config: QRNNStackConfig, reverse: bool = False) -> None:
    """An LSTM in place of each QRNN of a stack, in both directions or one."""
    for block, (input_size, output_size) in zip(blocks, config.layer_sizes, strict=True):
        directions = (False, True) if config.bidirectional else (reverse,)
        block.mixer.directions = nn.ModuleList(
            LSTMLayer(input_size, output_size // len(directions), config.weight_dropout, is_reversed)
            for is_reversed in directions
        )


class LSTMInEachLayer(QRNNPreTrainedModel):
    """A model with an LSTM in place of each QRNN: embedding, blocks, dropouts, losses and head are shared."""

    config_class = LSTMConfig
    _auto_class = None
    _auto_map = {}

    def __init__(self, config: LSTMConfig):
        super().__init__(config)
        self.replace_layers()
        self.post_init()

    def replace_layers(self) -> None:
        replace_by_lstms(self.model.layers, self.config)


class LSTMForCausalLM(LSTMInEachLayer, QRNNForCausalLM):
    pass


class LSTMForConditionalGeneration(LSTMInEachLayer, QRNNForConditionalGeneration):
    """The source enters a layer of the decoder as its first state; the attention follows, without an output gate."""

    config_class = LSTMSeq2SeqConfig

    def replace_layers(self) -> None:
        encoder, decoder = self.model.encoder, self.model.decoder
        replace_by_lstms(encoder.layers, encoder.config, bool(encoder.config.encoder_reverse))
        replace_by_lstms(decoder.layers, self.config)
        for block in decoder.layers:
            block.mixer.source_proj = nn.Linear(self.config.hidden_size, 2 * self.config.hidden_size, bias=False)


class LSTMForSequenceClassification(LSTMInEachLayer, QRNNForSequenceClassification):
    pass


class LSTMForTokenClassification(LSTMInEachLayer, QRNNForTokenClassification):
    pass


class LSTMForTimeSeriesPrediction(LSTMInEachLayer, QRNNForTimeSeriesPrediction):
    """Of series that are observed from the beginning of the past on: others would have pads on the left."""

    config_class = LSTMTimeSeriesConfig


class LSTMForAudioClassification(LSTMInEachLayer, QRNNForAudioClassification):
    config_class = LSTMSpeechConfig


class LSTMForCTC(LSTMInEachLayer, QRNNForCTC):
    config_class = LSTMSpeechConfig


LSTM_CLASSES = {
    QRNNForAudioClassification: LSTMForAudioClassification,
    QRNNForCausalLM: LSTMForCausalLM,
    QRNNForConditionalGeneration: LSTMForConditionalGeneration,
    QRNNForCTC: LSTMForCTC,
    QRNNForSequenceClassification: LSTMForSequenceClassification,
    QRNNForTimeSeriesPrediction: LSTMForTimeSeriesPrediction,
    QRNNForTokenClassification: LSTMForTokenClassification,
}


def in_architecture(model: QRNNPreTrainedModel, architecture: str) -> QRNNPreTrainedModel:
    """The model itself, or the LSTM of equal size."""
    return model if architecture == "qrnn" else equal_lstm(model)


def equal_lstm(model: QRNNPreTrainedModel) -> LSTMInEachLayer:
    """The LSTM of the same depth and with the same head that has about as many parameters as the model."""
    config, n_parameters = model.config, model.num_parameters()

    def build(hidden_size: int) -> LSTMInEachLayer:
        changes = {"hidden_size": hidden_size}
        if getattr(config, "embedding_size", None) == config.hidden_size:
            changes["embedding_size"] = hidden_size
        if config.intermediate_size is not None:
            changes["intermediate_size"] = round(config.intermediate_size * hidden_size / config.hidden_size)
        lstm_class = LSTM_CLASSES[type(model)]
        return lstm_class(lstm_class.config_class(**{**config.to_dict(), **changes}))

    def excess(hidden_size: int) -> int:
        with torch.device("meta"):
            return build(hidden_size).num_parameters() - n_parameters

    # Each direction has half of the width, each head its part. In bfloat16 on a CPU with AMX, an LSTM of an odd width
    # takes more than twice the time.
    both = config.bidirectional or getattr(config, "encoder_bidirectional", False)
    step = math.lcm(4 if both else 2, getattr(config, "num_attention_heads", None) or 1)
    widths = range(step, 4 * config.hidden_size, step)
    return build(widths[max(1, bisect.bisect_right(widths, 0, key=excess)) - 1])
