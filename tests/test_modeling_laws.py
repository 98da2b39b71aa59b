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
"""The laws for whole models, whatever connects their layers: causality, chunks, pads, packing, batches."""

import pytest
import torch

from modeling_qrnn import QRNNConfig, QRNNModel


MODELS = {
    "plain": {},
    "plain, tied, normed": {"tie_word_embeddings": True, "norm": "layer_norm"},
    "dense": {"connection": "dense", "pooling": "ifo"},
    "residual": {"connection": "residual", "pooling": "f"},
    "residual with an MLP": {"connection": "residual", "intermediate_size": 8, "tie_word_embeddings": True},
}
MASK = torch.tensor(
    [
        [0, 0, 0, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 0, 1, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 1],
    ]
)


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def draw(batch_size=5, seq_len=8):
    return torch.randint(20, (batch_size, seq_len))


def make_config(**options):
    sizes = {"vocab_size": 20, "hidden_size": 6, "embedding_size": 4, "num_hidden_layers": 3, "kernel_size": [3, 1, 2]}
    return QRNNConfig(**sizes, zoneout=0.2, forget_bias=1.0, **options)


def hidden_states(model, *args, **kwargs):
    return model(*args, **kwargs).last_hidden_state


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def model(request, redraw):
    return redraw(QRNNModel(make_config(**request.param)).double())


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def both_ways(request, redraw):
    return redraw(QRNNModel(make_config(**request.param, bidirectional=True)).double())


def test_the_future_is_never_seen(model):
    tokens = draw()
    whole = hidden_states(model, tokens)
    for t in range(7):
        changed = torch.cat([tokens[:, : t + 1], (tokens[:, t + 1 :] + 1) % 20], dim=1)
        close(hidden_states(model, changed)[:, : t + 1], whole[:, : t + 1], 0)
        assert (hidden_states(model, changed)[:, t + 1 :] != whole[:, t + 1 :]).any(dim=2).all()


@pytest.mark.parametrize("lengths", [(1,) * 8, (4, 4), (2, 1, 5)], ids=str)
def test_chunks_make_no_difference(model, lengths):
    tokens, outputs, cache, end = draw(), [], None, 0
    for length in lengths:
        end += length
        output = model(tokens[:, end - length : end], attention_mask=MASK[:, :end], cache=cache)
        outputs.append(output.last_hidden_state)
        cache = output.cache
    close(torch.cat(outputs, dim=1), hidden_states(model, tokens, attention_mask=MASK))


def assert_rows_as_alone(model, tokens, output):
    assert not output[MASK == 0].any()
    for row, is_real in enumerate(MASK.bool()):
        if is_real.any():
            close(output[row, is_real][None], hidden_states(model, tokens[row, is_real][None]))


def test_pads_make_no_difference(model):
    tokens = draw()
    assert_rows_as_alone(model, tokens, hidden_states(model, tokens, attention_mask=MASK))


def test_pads_make_no_difference_in_both_directions(both_ways):
    tokens = draw()
    assert_rows_as_alone(both_ways, tokens, hidden_states(both_ways, tokens, attention_mask=MASK))


def test_pads_hold_anything(model):
    """And no gradient comes of it."""
    embeddings = model.embed_tokens(draw()).detach()
    garbage = embeddings.masked_fill(MASK[..., None] == 0, torch.nan)
    learned = [parameter for name, parameter in model.named_parameters() if not name.startswith("embed_tokens")]
    with torch.enable_grad():
        outputs = [hidden_states(model, inputs_embeds=part, attention_mask=MASK) for part in (garbage, embeddings)]
        gradients = [torch.autograd.grad(output.square().sum(), learned) for output in outputs]
    close(*outputs, 0)
    close(*gradients, 0)


PACKINGS = {
    "position_ids": {"position_ids": torch.tensor([[0, 1, 2, 0, 0, 1, 2, 3]])},
    "seq_idx": {"seq_idx": torch.tensor([[0, 0, 0, 1, 2, 2, 2, 2]], dtype=torch.int32)},
    "cu_seq_lens": {"cu_seq_lens_q": torch.tensor([0, 3, 4, 8], dtype=torch.int32)},
    "seq_idx and an attention mask": {
        "seq_idx": torch.tensor([[0, 0, 0, 1, 2, 2, 2, 2]]),
        "attention_mask": torch.ones(1, 8, dtype=torch.long),
    },
    "all": {
        "position_ids": torch.tensor([[0, 1, 2, 0, 0, 1, 2, 3]]),
        "seq_idx": torch.tensor([[0, 0, 0, 1, 2, 2, 2, 2]]),
        "cu_seq_lens_q": torch.tensor([0, 3, 4, 8]),
    },
}


class TestPacking:
    @pytest.mark.parametrize("packing", PACKINGS.values(), ids=PACKINGS)
    @pytest.mark.parametrize("bidirectional", [False, True])
    @pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
    def test_sequences_are_as_if_alone(self, redraw, options, bidirectional, packing):
        model = redraw(QRNNModel(make_config(**options, bidirectional=bidirectional)).double())
        tokens = draw(1)
        output = hidden_states(model, tokens, **packing)
        close(output, torch.cat([hidden_states(model, part) for part in tokens.split([3, 1, 4], dim=1)], dim=1))

    @pytest.mark.parametrize("mark", ["position_ids", "seq_idx"])
    def test_each_row_has_its_own_boundaries(self, model, mark):
        lengths = [[8], [3, 1, 4], [1, 7], [5, 3], [2, 2, 2, 2]]
        positions = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in lengths])
        marks = positions if mark == "position_ids" else (positions == 0).cumsum(dim=1)
        tokens = draw()
        output = hidden_states(model, tokens, **{mark: marks})
        for row, parts in enumerate(lengths):
            alone = [hidden_states(model, part) for part in tokens[row, None].split(parts, dim=1)]
            close(output[row, None], torch.cat(alone, dim=1))

    def test_marks_that_differ_cut_together(self, model):
        tokens, numbers = draw(1), torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1]])
        output = hidden_states(model, tokens, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]]), seq_idx=numbers)
        close(output, torch.cat([hidden_states(model, part) for part in tokens.split([3, 2, 3], dim=1)], dim=1))

    def test_a_chunk_goes_on_with_its_first_sequence(self, model):
        tokens, numbers = draw(), torch.tensor([[4, 4, 5, 5]])
        output = model(tokens[:, 4:], cache=model(tokens[:, :4]).cache, seq_idx=numbers).last_hidden_state
        close(output[:, :2], hidden_states(model, tokens[:, :6])[:, 4:])
        close(output[:, 2:], hidden_states(model, tokens[:, 6:]))

    def test_pads_lie_anywhere_between_sequences(self, model):
        tokens, numbers = draw(), torch.tensor([[0, 0, 1, 1, 1, 2, 2, 2]]).expand(5, 8)
        output = hidden_states(model, tokens, attention_mask=MASK, seq_idx=numbers)
        assert not output[MASK == 0].any()
        for row, is_real in enumerate(MASK.bool()):
            for number in range(3):
                part = is_real & (numbers[row] == number)
                if part.any():
                    close(output[row, part][None], hidden_states(model, tokens[row, part][None]))

    def test_the_positions_of_padded_rows_are_no_boundaries(self, model):
        # as `generate` makes them: zeros also stand at pads
        tokens, positions = draw(), (MASK.cumsum(dim=1) - 1).clamp(min=0)
        actual = hidden_states(model, tokens, attention_mask=MASK, position_ids=positions)
        close(actual, hidden_states(model, tokens, attention_mask=MASK), 0)

    def test_the_positions_of_a_chunk_are_no_boundaries(self, model):
        tokens = draw()
        first = model(tokens[:, :4])
        positions = torch.zeros(1, 4, dtype=torch.long)
        second = model(tokens[:, 4:], position_ids=positions, cache=first.cache)
        close(second.last_hidden_state, hidden_states(model, tokens)[:, 4:])


@pytest.mark.parametrize("rows", [[4, 3, 2, 1, 0], [2], [3, 3, 0, 1, 1, 4]], ids=str)
def test_the_batch_makes_no_difference(both_ways, rows):
    tokens = draw()
    whole = hidden_states(both_ways, tokens, attention_mask=MASK)
    close(hidden_states(both_ways, tokens[rows], attention_mask=MASK[rows]), whole[rows])
