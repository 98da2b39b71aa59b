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
"""Where dropout falls in each model, how much of it, and by which masks."""

from collections import Counter

import pytest
import torch
from torch import nn

from modeling_qrnn import (
    QRNNConfig,
    QRNNForAudioClassification,
    QRNNForCausalLM,
    QRNNForConditionalGeneration,
    QRNNForCTC,
    QRNNForMaskedLM,
    QRNNForSequenceClassification,
    QRNNForTimeSeriesPrediction,
    QRNNForTokenClassification,
    QRNNSeq2SeqConfig,
    QRNNSpeechConfig,
    QRNNTimeSeriesConfig,
)


BATCH_SIZE, LENGTH = 4, 24
TOKENS = {"input_ids": torch.arange(BATCH_SIZE * LENGTH).view(BATCH_SIZE, LENGTH)}
FRAMES = {"input_features": torch.linspace(-1, 1, BATCH_SIZE * LENGTH * 8).view(BATCH_SIZE, LENGTH, 8)}
VALUES = {"past_values": torch.linspace(-1, 1, BATCH_SIZE * LENGTH).view(BATCH_SIZE, LENGTH).sin()}
TEXT = {"vocab_size": BATCH_SIZE * LENGTH}
SPEECH = {"num_mel_bins": 8, "stride": 1}
SERIES = {"context_length": LENGTH, "prediction_length": 4}
BOTH = {"bidirectional": True}

PLAIN = {"model.dropout": 1, "model.layers.0.dropout": 1}  # nothing is dropped behind the last layer
RESIDUAL = {"model.dropout": 1, "model.layers.0.dropout": 2, "model.layers.1.dropout": 2}  # its product and its MLP
SEQ2SEQ = {
    "model.encoder.dropout": 1,
    "model.encoder.layers.0.dropout": 2,
    "model.encoder.layers.1.dropout": 2,
    "model.decoder.dropout": 1,
    "model.decoder.layers.0.dropout": 2,
    "model.decoder.layers.1.dropout": 2,
    "model.decoder.layers.0.mixer.attention.dropout": 1,
    "model.decoder.layers.1.mixer.attention.dropout": 1,
}
BLOCKS = {"connection": "residual", "intermediate_size": 16}
HEADS = {"num_attention_heads": 2, "attention_layers": "all"}
MODELS = {
    "causal": (QRNNForCausalLM, QRNNConfig, TEXT, TOKENS, "dropout"),
    "masked": (QRNNForMaskedLM, QRNNConfig, TEXT | BOTH, TOKENS, "dropout"),
    "sequence": (QRNNForSequenceClassification, QRNNConfig, TEXT, TOKENS, "dropout"),
    "token": (QRNNForTokenClassification, QRNNConfig, TEXT, TOKENS, "dropout"),
    "ctc": (QRNNForCTC, QRNNSpeechConfig, SPEECH, FRAMES, "dropout"),
    "audio": (QRNNForAudioClassification, QRNNSpeechConfig, SPEECH, FRAMES, "dropout"),
    "direct": (QRNNForTimeSeriesPrediction, QRNNTimeSeriesConfig, SERIES, VALUES, "dropout"),
    "autoregressive": (
        QRNNForTimeSeriesPrediction,
        QRNNTimeSeriesConfig,
        SERIES | {"horizon": "autoregressive"},
        VALUES,
        "dropout",
    ),
}
STACKS = {"plain": ({}, PLAIN), "residual": (BLOCKS, RESIDUAL)}


def places_of(model: nn.Module, batch: dict[str, torch.Tensor]) -> Counter[str]:
    """How often each place drops in a forward of training, each time about half, locked or not as the config says."""
    places: Counter[str] = Counter()

    def watch(name: str):
        def hook(module: nn.Dropout, args: tuple[torch.Tensor], output: torch.Tensor) -> None:
            if module.p == 0:
                return
            places[name] += 1
            masks = (output / args[0]).round(decimals=3)[args[0] != 0]
            assert set(masks.unique().tolist()) == {0.0, 2.0}
            assert 0.3 < (masks == 0).float().mean() < 0.7
            if output.dim() == 3 and output.shape[1] > 1:
                is_dropped = ((output == 0) & (args[0] != 0)).any(dim=1)
                is_locked = not (is_dropped & (output != 0).any(dim=1)).any()
                assert is_locked == model.config.locked_dropout

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(watch(name))
    model.train()(**batch)
    return places


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("name", MODELS)
def test_where_it_falls(name, stack, locked, redraw):
    model_class, config_class, options, batch, head = MODELS[name]
    own_options, places = STACKS[stack]
    dropouts = dict.fromkeys(("input_dropout", "hidden_dropout", "output_dropout"), 0.5)
    config = config_class(
        hidden_size=16, num_hidden_layers=2, locked_dropout=locked, **options, **own_options, **dropouts
    )
    assert places_of(redraw(model_class(config)), batch) == places | {head: 1}


@pytest.mark.parametrize("locked", [False, True])
def test_where_it_falls_in_an_encoder_decoder(locked, redraw):
    dropouts = dict.fromkeys(("input_dropout", "hidden_dropout", "output_dropout", "attention_dropout"), 0.5)
    config = QRNNSeq2SeqConfig(
        hidden_size=16,
        encoder_layers=2,
        decoder_layers=2,
        locked_dropout=locked,
        **TEXT,
        **BLOCKS,
        **HEADS,
        **dropouts,
    )
    model = redraw(QRNNForConditionalGeneration(config))
    assert places_of(model, TOKENS | {"decoder_input_ids": TOKENS["input_ids"]}) == SEQ2SEQ | {"dropout": 1}
