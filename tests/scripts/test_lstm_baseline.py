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
"""scripts/lstm_baseline.py: an LSTM in each layer's place, in one direction or both, that does not see pads."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lstm_baseline import (
    LSTM_CLASSES,
    LSTMConfig,
    LSTMForCausalLM,
    LSTMForConditionalGeneration,
    LSTMForSequenceClassification,
    LSTMLayer,
    equal_lstm,
)
from modeling_qrnn import (
    QRNNConfig,
    QRNNForAudioClassification,
    QRNNForCausalLM,
    QRNNForConditionalGeneration,
    QRNNForCTC,
    QRNNForSequenceClassification,
    QRNNForTokenClassification,
    QRNNSeq2SeqConfig,
    QRNNSpeechConfig,
)


CONFIG = {"vocab_size": 30, "hidden_size": 160, "num_hidden_layers": 3}
STACKS = {
    "plain": {},
    "tied": {"embedding_size": 24, "tie_word_embeddings": True},
    "dense": {"connection": "dense"},
    "residual": {"connection": "residual", "intermediate_size": 320, "pooling": "ifo", "tie_word_embeddings": True},
}
LENGTHS = [7, 4, 1]
IS_REAL = torch.arange(7) < torch.tensor(LENGTHS)[:, None]


@pytest.mark.parametrize("options", STACKS.values(), ids=STACKS)
def test_lstm_is_of_equal_size_and_carries_its_state(options, redraw):
    qrnn = QRNNForCausalLM(QRNNConfig(**CONFIG, **options))
    model = equal_lstm(qrnn)
    assert 0.96 < model.num_parameters() / qrnn.num_parameters() <= 1
    redraw(model, std=0.2)
    ids = torch.randint(30, (2, 9))
    first = model(ids[:, :4], use_cache=True)
    second = model(ids[:, 4:], cache=first.cache)
    whole = model(ids).logits
    torch.testing.assert_close(torch.cat([first.logits, second.logits], dim=1), whole, rtol=1e-5, atol=1e-5)
    assert (model(ids[:, 4:]).logits - whole[:, 4:]).abs().max() > 1e-2


@pytest.mark.parametrize("options", STACKS.values(), ids=STACKS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("model_class", [QRNNForSequenceClassification, QRNNForTokenClassification])
def test_classifiers_are_of_equal_size_and_do_not_see_pads(model_class, bidirectional, options, redraw):
    config = QRNNConfig(**CONFIG, **options, bidirectional=bidirectional, classifier_pooling="concat", num_labels=3)
    qrnn = model_class(config)
    model = equal_lstm(qrnn)
    assert isinstance(model, model_class) and model.config.num_labels == 3
    assert 0.94 < model.num_parameters() / qrnn.num_parameters() <= 1
    redraw(model, std=0.2)
    ids = torch.randint(30, IS_REAL.shape)
    batch = model(ids, attention_mask=IS_REAL.long()).logits
    for row, length in enumerate(LENGTHS):
        alone = model(ids[row : row + 1, :length]).logits[0]
        in_batch = batch[row] if model_class is QRNNForSequenceClassification else batch[row, :length]
        torch.testing.assert_close(in_batch, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("model_class", [QRNNForAudioClassification, QRNNForCTC])
def test_models_of_speech_are_of_equal_size_and_do_not_see_pads(model_class, bidirectional, redraw):
    config = {"hidden_size": 160, "num_hidden_layers": 3, "connection": "residual", "bidirectional": bidirectional}
    qrnn = model_class(QRNNSpeechConfig(num_mel_bins=6, stride=1, **config))
    model = equal_lstm(qrnn)
    assert isinstance(model, model_class) and model.main_input_name == "input_features"
    assert 0.94 < model.num_parameters() / qrnn.num_parameters() <= 1
    redraw(model, std=0.2)
    frames = torch.randn(*IS_REAL.shape, 6)
    batch = model(frames, attention_mask=IS_REAL.long()).logits
    for row, length in enumerate(LENGTHS):
        alone = model(frames[row : row + 1, :length]).logits[0]
        in_batch = batch[row, :length] if model_class is QRNNForCTC else batch[row]
        torch.testing.assert_close(in_batch, alone, rtol=1e-5, atol=1e-5)
    if bidirectional:
        return
    whole = model.model(frames).last_hidden_state
    first = model.model(frames[:, :4], use_cache=True)
    second = model.model(frames[:, 4:], cache=first.cache).last_hidden_state
    torch.testing.assert_close(torch.cat([first.last_hidden_state, second], dim=1), whole, rtol=1e-5, atol=1e-5)


TRANSLATOR = {"vocab_size": 30, "hidden_size": 160, "encoder_layers": 2, "num_hidden_layers": 2}
TRANSLATOR |= {"pad_token_id": 0, "decoder_start_token_id": 1, "eos_token_id": 2}
TRANSLATORS = {
    "paper": {},
    "modern": {
        **STACKS["residual"],
        "encoder_bidirectional": True,
        "num_attention_heads": 4,
        "attention_layers": "all",
    },
}


@pytest.mark.parametrize("options", TRANSLATORS.values(), ids=TRANSLATORS)
def test_translator_is_of_equal_size_and_carries_its_state(options, redraw):
    config = QRNNSeq2SeqConfig(**TRANSLATOR, **options)
    qrnn = QRNNForConditionalGeneration(config)
    model = equal_lstm(qrnn)
    assert isinstance(model, LSTMForConditionalGeneration)
    assert 0.94 < model.num_parameters() / qrnn.num_parameters() <= 1
    redraw(model, std=0.2)
    source, target = torch.randint(30, IS_REAL.shape), torch.randint(30, (3, 6))
    batch = model(source, attention_mask=IS_REAL.long(), decoder_input_ids=target)
    for row, length in enumerate(LENGTHS):
        part = slice(row, row + 1)
        first = model(source[part, :length], decoder_input_ids=target[part, :2])
        second = model(source[part, :length], decoder_input_ids=target[part, 2:], cache=first.cache)
        chunks = torch.cat([first.logits, second.logits], dim=1)
        torch.testing.assert_close(batch.logits[part], chunks, rtol=1e-5, atol=1e-5)
        fresh = model(source[part, :length], decoder_input_ids=target[part, 2:]).logits
        assert (fresh - second.logits).abs().max() > 1e-2
    other = model(source.roll(1, 0), decoder_input_ids=target, attention_mask=IS_REAL.long()).logits
    assert (other[:, 0] - batch.logits[:, 0]).abs().max() > 1e-2
    assert model.generate(source, attention_mask=IS_REAL.long(), num_beams=2, max_new_tokens=3).shape[1] <= 4


def test_both_directions_are_those_of_torch(redraw):
    """Pads on the right are left out of `nn.LSTM` by packing."""
    layers = [redraw(LSTMLayer(3, 5, reverse=reverse)) for reverse in (False, True)]
    both = nn.LSTM(3, 5, batch_first=True, bidirectional=True)
    for layer, suffix in zip(layers, ("", "_reverse"), strict=True):
        for name, parameter in layer.lstm.named_parameters():
            getattr(both, f"{name}{suffix}").data.copy_(parameter)
    x = torch.randn(3, 7, 3)
    expected, _ = both(pack_padded_sequence(x, torch.tensor(LENGTHS), batch_first=True))
    expected, _ = pad_packed_sequence(expected, batch_first=True)
    output = torch.cat([layer(x, attention_mask=IS_REAL)[0] for layer in layers], dim=-1)
    torch.testing.assert_close(output[IS_REAL], expected[IS_REAL])
    assert (layers[1](x)[0] - output[..., 5:]).abs().max() > 1e-2


def test_the_state_after_pads_is_unusable(redraw):
    _, (c, h) = redraw(LSTMLayer(3, 5))(torch.randn(3, 7, 3), attention_mask=IS_REAL)
    assert c.isnan().any(dim=1).tolist() == h.isnan().any(dim=(1, 2)).tolist() == [False, True, True]


def test_a_single_pad_is_skipped(redraw):
    """As `generate` has them after the end of a row: beside NaN in its state some products (in bfloat16, with AMX)
    would spoil the other rows.
    """
    layer, x = redraw(LSTMLayer(3, 5)), torch.randn(2, 3, 3)
    _, state = layer(x[:, :1])
    _, (c, h) = layer(x[:, 1:2], state, attention_mask=torch.tensor([[True], [False]]))
    assert torch.equal(c[1], state[0][1]) and torch.equal(h[1], state[1][1])
    _, (other_c, other_h) = layer(x[:, 1:2], state)
    assert torch.equal(c[0], other_c[0]) and torch.equal(h[0], other_h[0])
    assert not torch.equal(c[1], other_c[1])


@pytest.mark.parametrize("is_real", [IS_REAL.flip(1), torch.tensor([[1, 0, 1, 0, 0, 0, 0]] * 3).bool()])
def test_pads_elsewhere_are_refused(is_real):
    with pytest.raises(ValueError, match="`attention_mask` must have its pads on the right"):
        LSTMLayer(3, 5, reverse=True)(torch.randn(3, 7, 3), attention_mask=is_real)
    with pytest.raises(ValueError, match="`attention_mask` must have its pads on the right"):
        LSTMLayer(3, 5)(torch.randn(3, 7, 3), attention_mask=is_real)


def test_packed_rows_are_refused():
    with pytest.raises(ValueError, match="one sequence a row"):
        LSTMLayer(3, 5)(torch.randn(1, 7, 3), segment_ids=torch.zeros(1, 7))


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one direction", "both"])
@pytest.mark.parametrize("hidden_size", [64, 66, 68, 70])
def test_no_lstm_has_an_odd_width(hidden_size, bidirectional):
    config = {**CONFIG, "hidden_size": hidden_size, "bidirectional": bidirectional}
    model = equal_lstm(QRNNForTokenClassification(QRNNConfig(**config)))
    widths = [layer.lstm.hidden_size for layer in model.modules() if isinstance(layer, LSTMLayer)]
    assert len(widths) == config["num_hidden_layers"] * (1 + bidirectional)
    assert not any(width % 2 for width in widths)


@pytest.mark.parametrize("reverse", [False, True])
def test_lstm_layer_is_an_lstm(reverse, redraw):
    layer = redraw(LSTMLayer(3, 5, weight_dropout=0.5, reverse=reverse))
    x = torch.randn(2, 7, 3)
    turned = x.flip(1) if reverse else x
    expected = layer.lstm(turned.transpose(0, 1))[0].transpose(0, 1)
    torch.testing.assert_close(layer(x)[0], expected.flip(1) if reverse else expected)
    assert not torch.equal(layer.train()(x)[0], layer(x)[0])
    layer(x)[0].sum().backward()
    assert all(parameter.grad.any() for parameter in layer.parameters())


def test_lstm_config_survives_a_file(tmp_path):
    config = LSTMConfig(**CONFIG)
    LSTMForCausalLM(config).save_pretrained(tmp_path)
    assert LSTMConfig.from_pretrained(tmp_path).state_widths == config.state_widths == [(160, 1, 160)] * 3


def test_body_moves_to_another_head(tmp_path, redraw):
    """As `--init-from` does: of a pretrained LSTM all but the head is read from its folder."""
    pretrained = redraw(LSTMForCausalLM(LSTMConfig(**CONFIG)))
    pretrained.save_pretrained(tmp_path)
    model, found = LSTMForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert {name.split(".")[0] for name in found["missing_keys"]} == {"score"}
    ids = torch.randint(30, (2, 5))
    torch.testing.assert_close(model.model(ids).last_hidden_state, pretrained.model(ids).last_hidden_state)


def test_every_class_saves_no_code(tmp_path):
    for lstm_class in LSTM_CLASSES.values():
        lstm_class(lstm_class.config_class(hidden_size=16)).save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
