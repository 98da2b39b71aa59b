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
"""`QRNNLayer` and `QRNN`: causality, chunks, pads, packing, batches, gradients, and the calling conventions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence
from torch.utils.flop_counter import FlopCounterMode

from modeling_qrnn import QRNN, QRNNLayer, QRNNState, recurrent_pooling
from modeling_qrnn.layers_qrnn import dropout


POOLINGS = ["f", "fo", "ifo"]
KERNEL_SIZES = [1, 2, 3, 5]
N_GATES = {"f": 2, "fo": 3, "ifo": 4}
IN, HIDDEN = 3, 4

# One row each: pads on the left, on the right, in the middle (gaps longer than a kernel too), everywhere, nowhere.
MASK = torch.tensor(
    [
        [0, 0, 0, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 0, 1, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 1, 0, 0, 0],
    ]
).bool()


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def draw_state(layer, batch_size):
    return draw(batch_size, layer.hidden_size), draw(batch_size, layer.input_size, layer.kernel_size - 1)


def draw_states(rnn, batch_size):
    return QRNNState(*zip(*(draw_state(layer, batch_size) for layer in rnn.layers), strict=True))


def rows_of(state, rows):
    """The state of some rows of the batch, for a layer's pair and a module's pair of tuples alike."""
    if isinstance(state, torch.Tensor):
        return state[rows]
    parts = [rows_of(part, rows) for part in state]
    return QRNNState(*parts) if isinstance(state, QRNNState) else tuple(parts)


def run_chunks(module, x, state, mask, lengths):
    """Run over consecutive chunks, the mask growing as it does in `generate`."""
    outputs, end = [], 0
    for length in lengths:
        end += length
        grown = None if mask is None else mask[:, :end]
        output, state = module(x[:, end - length : end], state, attention_mask=grown)
        outputs.append(output)
    assert end == x.shape[1]
    return torch.cat(outputs, dim=1), state


def assert_rows_as_alone(module, x, state, mask, output, last_state):
    """Each row's real tokens and state are those of a run over that row alone, without its pads."""
    assert not output[~mask].any()
    for row, is_real in enumerate(mask):
        if not is_real.any():
            close(rows_of(last_state, [row]), rows_of(state, [row]), 0)
            continue
        alone, alone_state = module(x[row, is_real][None], rows_of(state, [row]))
        close(output[row, is_real][None], alone)
        close(rows_of(last_state, [row]), alone_state)


@pytest.fixture(params=POOLINGS)
def pooling(request):
    return request.param


@pytest.fixture(params=KERNEL_SIZES, ids="k={}".format)
def kernel_size(request):
    return request.param


@pytest.fixture
def layer(redraw, pooling, kernel_size):
    return redraw(QRNNLayer(IN, HIDDEN, kernel_size, pooling).double())


@pytest.fixture
def rnn(redraw, pooling, kernel_size):
    return redraw(QRNN(IN, HIDDEN, 2, kernel_size, pooling, batch_first=True).double())


@pytest.fixture
def both_ways(redraw, pooling, kernel_size):
    return redraw(QRNN(IN, HIDDEN, 2, kernel_size, pooling, bidirectional=True, batch_first=True).double())


# --- the equations ---------------------------------------------------------------------------------------------------


def paper_layer(x, weight, bias, pooling):
    """Equations 2 to 5 for one sequence `(seq_len, input)`: k = 2, written out."""
    n_gates, input_size = N_GATES[pooling], x.shape[1]
    w1, w2 = (w.reshape(n_gates, -1, input_size) for w in (weight[:, :input_size], weight[:, input_size:]))
    b = bias.reshape(n_gates, -1)
    sigmoid = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
    previous, c, outputs = np.zeros(input_size), np.zeros(b.shape[1]), []
    for now in x:
        gates = [w1[gate] @ previous + w2[gate] @ now + b[gate] for gate in range(n_gates)]
        z, f = np.tanh(gates[0]), sigmoid(gates[1])
        c = f * c + (sigmoid(gates[3]) if pooling == "ifo" else 1 - f) * z
        outputs.append(c if pooling == "f" else sigmoid(gates[2]) * c)
        previous = now
    return np.stack(outputs)


def test_a_stack_is_what_the_paper_says(redraw, pooling):
    rnn = redraw(QRNN(IN, HIDDEN, 2, 2, pooling, batch_first=True).double())
    x = draw(5, 9, IN)
    output, state = rnn(x)
    for row in range(5):
        expected = x[row].numpy()
        for layer in rnn.layers:
            weight, bias = (p.detach().numpy() for p in (layer.gate_proj.weight, layer.gate_proj.bias))
            last_inputs, expected = expected[-1], paper_layer(expected, weight, bias, pooling)
        close(output[row], torch.from_numpy(expected))
        close(state.conv[1][row, :, 0], torch.from_numpy(last_inputs))


def windows(x, before, after):
    """`(seq_len, (before + 1 + after) * input)`: the neighbours of each token, zeros beyond the ends."""
    seq_len = len(x)
    rows = []
    for t in range(seq_len):
        neighbours = [x[s] if 0 <= s < seq_len else torch.zeros_like(x[0]) for s in range(t - before, t + after + 1)]
        rows.append(torch.cat(neighbours))
    return torch.stack(rows)


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_a_convolution_then_pooling(redraw, pooling, kernel_size, bias):
    layer = redraw(QRNNLayer(IN, HIDDEN, kernel_size, pooling, bias, candidate_activation="relu").double())
    x = draw(2, 9, IN)
    h, (c, conv_state) = layer(x)
    logits = torch.stack([layer.gate_proj(windows(row, kernel_size - 1, 0)) for row in x])
    close((h, c), recurrent_pooling(logits, pooling=pooling, candidate_activation="relu"))
    close(conv_state, x[:, 10 - kernel_size :].transpose(1, 2))
    assert (layer.gate_proj.bias is not None) == bias


# --- law 1: causality ------------------------------------------------------------------------------------------------


class TestCausality:
    def test_the_future_is_never_seen(self, rnn):
        x = draw(2, 8, IN)
        output, _ = rnn(x)
        for t in range(7):
            blind = x.clone()
            blind[:, t + 1 :] = math.nan
            close(rnn(blind)[0][:, : t + 1], output[:, : t + 1], 0)

    def test_a_reversed_layer_never_sees_the_past(self, redraw, pooling, kernel_size):
        layer = redraw(QRNNLayer(IN, HIDDEN, kernel_size, pooling, reverse=True).double())
        x = draw(2, 8, IN)
        h, _ = layer(x)
        for t in range(1, 8):
            blind = x.clone()
            blind[:, :t] = math.nan
            close(layer(blind)[0][:, t:], h[:, t:], 0)

    def test_the_past_is_seen(self, layer, kernel_size):
        # what makes the other tests mean something: each token of the past counts, the window's more than once
        x = draw(1, 8, IN).requires_grad_()
        h, _ = layer(x)
        (gradient,) = torch.autograd.grad(h[:, -1].sum(), x)
        assert (gradient != 0).all()


# --- law 2: one function ---------------------------------------------------------------------------------------------

CUTS = [(1,) * 8, (4, 4), (1, 7), (7, 1), (2, 1, 5), (3, 3, 2)]


class TestChunks:
    @pytest.mark.parametrize("lengths", CUTS, ids=str)
    @pytest.mark.parametrize("mask", [None, MASK], ids=["plain", "pads"])
    def test_chunks(self, rnn, lengths, mask):
        x, state = draw(6, 8, IN), draw_states(rnn, 6)
        close(run_chunks(rnn, x, state, mask, lengths), rnn(x, state, attention_mask=mask))

    def test_from_nothing(self, rnn):
        x = draw(6, 8, IN)
        close(run_chunks(rnn, x, None, None, (1, 3, 4)), rnn(x))
        zeros = QRNNState(*(tuple(torch.zeros_like(t) for t in part) for part in draw_states(rnn, 6)))
        close(rnn(x, zeros), rnn(x), 0)

    def test_float32(self, rnn):
        rnn.float()
        x = torch.randn(6, 8, IN)
        close(run_chunks(rnn, x, None, MASK, (1,) * 8), rnn(x, attention_mask=MASK), 1e-5)

    def test_the_state_given_is_not_changed(self, rnn):
        x, state = draw(6, 8, IN), draw_states(rnn, 6)
        before = [part.clone() for part in (*state.c, *state.conv)]
        rnn(x, state, attention_mask=MASK)
        close([*state.c, *state.conv], before, 0)


# --- law 3: padding is invisible -------------------------------------------------------------------------------------


class TestPads:
    @pytest.mark.parametrize("lengths", [(8,), (4, 4), (1,) * 8, (3, 2, 3)], ids=str)
    @pytest.mark.parametrize("garbage", [7.0, math.nan])
    def test_rows_are_as_if_alone(self, rnn, lengths, garbage):
        x, state = draw(6, 8, IN), draw_states(rnn, 6)
        filled = x.masked_fill(~MASK[..., None], garbage)
        assert_rows_as_alone(rnn, x, state, MASK, *run_chunks(rnn, filled, state, MASK, lengths))

    def test_both_directions(self, both_ways):
        x, state = draw(6, 8, IN), draw_states(both_ways, 6)
        filled = x.masked_fill(~MASK[..., None], math.nan)
        assert_rows_as_alone(both_ways, x, state, MASK, *both_ways(filled, state, attention_mask=MASK))

    @pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float32])
    def test_masks_of_any_dtype_and_width(self, layer, dtype):
        x = draw(6, 8, IN)
        wide = torch.cat([~MASK, MASK], dim=1).to(dtype)
        close(layer(x, attention_mask=wide), layer(x, attention_mask=MASK), 0)

    @pytest.mark.parametrize("options", [{}, {"reverse": True}, {"causal": False}], ids=str)
    def test_garbage_at_pads_reaches_no_gradient(self, redraw, pooling, kernel_size, options):
        layer = redraw(QRNNLayer(IN, HIDDEN, kernel_size, pooling, **options).double())
        x, weights = draw(6, 8, IN), draw(6, 8, HIDDEN)

        def gradients(x):
            x = x.detach().requires_grad_()
            h, state = layer(x, attention_mask=MASK)
            loss = (h * weights).sum() + (0 if state is None else state[0].sum() + state[1].square().sum())
            return torch.autograd.grad(loss, [x, *layer.parameters()])

        expected, actual = gradients(x), gradients(x.masked_fill(~MASK[..., None], math.nan))
        assert not actual[0][~MASK].any()
        close(actual, expected)


# --- law 4: packing is invisible -------------------------------------------------------------------------------------

SEGMENTS = torch.tensor(
    [
        [9, 9, 0, 0, 0, 1, 1, 2],
        [0, 0, 1, 2, 2, 3, 3, 3],
        [0, 1, 0, 1, 1, 2, 0, 3],
        [0, 1, 2, 3, 4, 5, 6, 7],
        [0, 0, 0, 1, 1, 2, 3, 3],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ]
)


def runs(segments):
    """The stretches of equal numbers."""
    cuts = (segments.diff() != 0).nonzero().flatten().add(1).tolist()
    return [slice(start, end) for start, end in zip([0, *cuts], [*cuts, len(segments)], strict=True) if start < end]


@pytest.mark.parametrize("mask", [torch.ones_like(MASK), MASK], ids=["plain", "pads"])
class TestPacking:
    @pytest.mark.parametrize("options", [{}, {"reverse": True}, {"causal": False}], ids=str)
    def test_segments_are_as_if_alone(self, redraw, pooling, kernel_size, options, mask):
        layer = redraw(QRNNLayer(IN, HIDDEN, kernel_size, pooling, **options).double())
        x = draw(6, 8, IN)
        h, _ = layer(x, attention_mask=mask, segment_ids=SEGMENTS)
        for row, is_real in enumerate(mask):
            for run in runs(SEGMENTS[row, is_real]):
                close(h[row, is_real][run], layer(x[row, is_real][None, run])[0][0])

    def test_the_first_goes_on_from_the_state_and_the_last_leaves_its_own(self, layer, mask):
        x, state = draw(6, 8, IN), draw_state(layer, 6)
        h, last_state = layer(x, state, attention_mask=mask, segment_ids=SEGMENTS)
        for row, is_real in enumerate(mask):
            first, carried = True, rows_of(state, [row])
            for run in runs(SEGMENTS[row, is_real]):
                alone, carried = layer(x[row, is_real][None, run], carried if first else None)
                close(h[row, is_real][run], alone[0])
                first = False
            close(rows_of(last_state, [row]), carried)

    def test_one_segment_is_none(self, layer, mask):
        x, state = draw(6, 8, IN), draw_state(layer, 6)
        segments = torch.full_like(SEGMENTS, 3).masked_fill(~mask, 5)
        actual = layer(x, state, attention_mask=mask, segment_ids=segments)
        close(actual, layer(x, state, attention_mask=mask))


# --- law 5: the batch is invisible -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [[5, 4, 3, 2, 1, 0], [2], [3, 3, 0, 1, 1, 1, 4], []], ids=str)
def test_the_batch_is_invisible(both_ways, rows):
    x, state = draw(6, 8, IN), draw_states(both_ways, 6)
    output, last_state = both_ways(x, state, attention_mask=MASK)
    chosen = both_ways(x[rows], rows_of(state, rows), attention_mask=MASK[rows])
    close(chosen, (output[rows], rows_of(last_state, rows)))


# --- law 6: gradients are whole --------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_gradients(redraw, pooling, check):
    layer = redraw(QRNNLayer(2, 1, 3, pooling).double())
    names, parameters = zip(*layer.named_parameters(), strict=True)
    mask, segments = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 0]]), torch.tensor([[0, 0, 0, 1], [0, 0, 0, 0]])

    def run(x, c, conv_state, *parameters):
        inputs, options = (x, (c, conv_state)), {"attention_mask": mask, "segment_ids": segments}
        h, state = torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), inputs, options)
        return h, *state

    inputs = [draw(2, 4, 2), *draw_state(layer, 2), *(p.detach() for p in parameters)]
    check(run, [x.requires_grad_() for x in inputs])


@pytest.mark.parametrize("lengths", [(1,) * 8, (3, 5), (2, 1, 5)], ids=str)
@pytest.mark.parametrize("mask", [None, MASK], ids=["plain", "pads"])
def test_gradients_flow_through_the_state(rnn, lengths, mask):
    x, state = draw(6, 8, IN).requires_grad_(), draw_states(rnn, 6)
    inputs = [x, *(part.requires_grad_() for part in (*state.c, *state.conv) if part.numel()), *rnn.parameters()]
    weights = draw(6, 8, HIDDEN)

    def gradients(output, state):
        loss = (output * weights).sum() + sum(c.square().sum() for c in state.c)
        return torch.autograd.grad(loss, inputs)

    close(gradients(*run_chunks(rnn, x, state, mask, lengths)), gradients(*rnn(x, state, attention_mask=mask)), 1e-11)


# --- a reversed layer, and both directions ---------------------------------------------------------------------------


def test_a_reversed_layer_is_the_flipped_layer(redraw, pooling, kernel_size):
    forward, reverse = (QRNNLayer(IN, HIDDEN, kernel_size, pooling, reverse=r).double() for r in (False, True))
    redraw(forward)
    reverse.load_state_dict(forward.state_dict())
    x, state = draw(6, 8, IN), draw_state(forward, 6)
    h, last_state = reverse(x, state, attention_mask=MASK)
    for row, is_real in enumerate(MASK):
        if is_real.any():
            alone, alone_state = forward(x[row, is_real].flip(0)[None], rows_of(state, [row]))
            close(h[row, is_real], alone[0].flip(0))
            close(rows_of(last_state, [row]), alone_state)


def test_both_directions_have_weights_of_their_own_and_upper_layers_see_both(both_ways):
    first_forward, first_backward, second_forward, second_backward = both_ways.layers
    x = draw(6, 8, IN)
    output, state = both_ways(x)
    hidden = torch.cat([first_forward(x)[0], first_backward(x)[0]], dim=-1)
    (forward, forward_state), (backward, backward_state) = second_forward(hidden), second_backward(hidden)
    close(output, torch.cat([forward, backward], dim=-1), 0)
    close((state.c[2], state.conv[2], state.c[3], state.conv[3]), (*forward_state, *backward_state), 0)
    assert len({parameter.data_ptr() for parameter in both_ways.parameters()}) == 8


# --- a centred window ------------------------------------------------------------------------------------------------


class TestCentred:
    def test_by_hand(self, redraw, pooling, kernel_size):
        layer = redraw(QRNNLayer(IN, HIDDEN, kernel_size, pooling, causal=False).double())
        x = draw(6, 8, IN)
        h, state = layer(x, attention_mask=MASK)
        assert state is None
        assert not h[~MASK].any()
        for row, is_real in enumerate(MASK):
            if is_real.any():
                # for an even kernel the extra tap looks back
                near = windows(x[row, is_real], kernel_size // 2, (kernel_size - 1) // 2)
                close(h[row, is_real][None], recurrent_pooling(layer.gate_proj(near)[None], pooling=pooling)[0])

    def test_a_window_of_one_is_causal(self, redraw, pooling):
        centred, causal = (QRNNLayer(IN, HIDDEN, 1, pooling, causal=c).double() for c in (False, True))
        redraw(centred)
        causal.load_state_dict(centred.state_dict())
        x = draw(2, 8, IN)
        close(centred(x)[0], causal(x)[0])

    def test_refuses_a_state(self):
        layer = QRNNLayer(IN, HIDDEN, 2, causal=False).double()
        with pytest.raises(ValueError, match="`state` was given, but a layer with causal=False"):
            layer(draw(2, 8, IN), draw_state(layer, 2))


# --- gate_bias -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"reverse": True}, {"causal": False}], ids=str)
def test_gate_bias_acts_at_every_step(redraw, pooling, kernel_size, options):
    layer = redraw(QRNNLayer(IN, HIDDEN, kernel_size, pooling, **options).double())
    x, gate_bias = draw(2, 8, IN), draw(2, N_GATES[pooling] * HIDDEN)
    actual = layer(x, gate_bias=gate_bias)[0]
    for row in range(2):  # the same as the projection's own bias, but per row
        own = QRNNLayer(IN, HIDDEN, kernel_size, pooling, **options).double()
        own.load_state_dict(layer.state_dict())
        own.gate_proj.bias.data += gate_bias[row]
        close(actual[row], own(x[row, None])[0][0])


# --- return_ungated --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"reverse": True}, {"causal": False}, {"zoneout": 0.3}], ids=str)
def test_the_output_gate_and_what_it_lets_through(redraw, pooling, kernel_size, options):
    """Apart they multiply to the output, with its gradients; the state that is carried stays what it is."""
    layer = redraw(QRNNLayer(IN, HIDDEN, kernel_size, pooling, **options).double())
    x, weights = draw(len(MASK), 8, IN), draw(len(MASK), 8, HIDDEN)
    h, state = layer(x, attention_mask=MASK)
    (c, o), same_state = layer(x, attention_mask=MASK, return_ungated=True)
    close(c if o is None else o * c, h)
    assert (o is None) == (pooling == "f")
    assert not c[~MASK].any()
    for actual, expected in zip(same_state or (), state or (), strict=True):
        close(actual, expected)
    if layer.causal and not layer.reverse:
        for row in (1, 4):  # at the last real token the state is the carried one
            close(c[row, MASK[row]][-1], state[0][row])
    gradients = [
        torch.autograd.grad((output * weights).sum(), list(layer.parameters()))
        for output in (h, c if o is None else o * c)
    ]
    for actual, expected in zip(*gradients, strict=True):
        close(actual, expected)


def test_ungated_states_in_chunks_and_with_their_history(redraw, pooling):
    layer = redraw(QRNNLayer(IN, HIDDEN, 3, pooling).double())
    x = draw(2, 8, IN)
    (whole, _), _ = layer(x, return_ungated=True)
    (first, _), state = layer(x[:, :5], return_ungated=True)
    (second, _), _, (history, _) = layer(x[:, 5:], state, return_ungated=True, return_history=True)
    close(torch.cat([first, second], dim=1), whole)
    close(history, second)


# --- subsampling -----------------------------------------------------------------------------------------------------


def subsample_by_hand(layer, x):
    """What a subsampling layer does to one sequence `(seq_len, input)`; `None` if it shortens it to nothing."""
    after = 0 if layer.causal else (layer.kernel_size - 1) // 2
    before = layer.kernel_size - 1 - after
    near = windows(x.flip(0), before, after).flip(0) if layer.reverse else windows(x, before, after)
    logits = list(layer.gate_proj(near)[:: layer.stride])
    if layer.temporal_pooling is not None:
        size = layer.temporal_pooling_size
        pools = [torch.stack(logits[start : start + size]) for start in range(0, len(logits) - size + 1, size)]
        logits = [pool.max(dim=0).values if layer.temporal_pooling == "max" else pool.mean(dim=0) for pool in pools]
    if not logits:
        return None
    logits = torch.stack(logits[::-1] if layer.reverse else logits)
    h = recurrent_pooling(logits[None], pooling=layer.pooling)[0][0]
    return h.flip(0) if layer.reverse else h


SUBSAMPLING = {
    "stride 2": {"stride": 2},
    "stride 3": {"stride": 3},
    "max": {"temporal_pooling": "max"},
    "average of 3": {"temporal_pooling": "average", "temporal_pooling_size": 3},
    "stride 2 and max": {"stride": 2, "temporal_pooling": "max"},
    "stride 2 and average of 3": {"stride": 2, "temporal_pooling": "average", "temporal_pooling_size": 3},
    "pools of one": {"temporal_pooling": "max", "temporal_pooling_size": 1},
}


class TestSubsampling:
    @pytest.mark.parametrize("direction", [{}, {"reverse": True}, {"causal": False}], ids=str)
    @pytest.mark.parametrize("options", SUBSAMPLING.values(), ids=SUBSAMPLING)
    @pytest.mark.parametrize("mask", [torch.ones_like(MASK), MASK], ids=["plain", "pads"])
    def test_by_hand(self, redraw, kernel_size, options, direction, mask):
        layer = redraw(QRNNLayer(IN, HIDDEN, kernel_size, "ifo", **options, **direction).double())
        x = draw(6, 8, IN)
        h, shorter = layer(x.masked_fill(~mask[..., None], math.nan), attention_mask=mask)
        assert shorter.dtype == torch.bool and shorter.shape == h.shape[:2]
        assert not h[~shorter].any()
        for row, is_real in enumerate(mask):
            expected = subsample_by_hand(layer, x[row, is_real]) if is_real.any() else None
            length = 0 if expected is None else len(expected)
            assert shorter[row].tolist() == [t < length for t in range(h.shape[1])]  # real steps first
            if length:
                close(h[row, :length], expected)

    def test_without_a_mask(self, layer):
        layer.stride = 2
        h, shorter = layer(draw(2, 7, IN))
        assert h.shape == (2, 4, HIDDEN) and shorter.all()

    def test_steps_left_out_are_not_computed(self):
        flops = []
        for stride in (1, 4):
            with FlopCounterMode(display=False) as counter:
                QRNNLayer(IN, HIDDEN, stride=stride)(torch.randn(2, 16, IN))
            flops.append(counter.get_total_flops())
        assert flops[0] == 4 * flops[1]

    def test_shapes_of_the_design(self):
        output, mask = QRNN(10, 20, temporal_pooling="max")(torch.randn(5, 15, 10))
        assert output.shape == (5, 7, 20)
        assert mask.shape == (5, 7) and mask.all()

    @pytest.mark.parametrize("bidirectional", [False, True])
    def test_a_stack_shortens_once(self, redraw, bidirectional):
        options = {"stride": 2, "temporal_pooling": "max", "bidirectional": bidirectional, "batch_first": True}
        rnn = redraw(QRNN(IN, HIDDEN, 2, 3, **options).double())
        x = draw(6, 8, IN)
        output, shorter = rnn(x, attention_mask=MASK)
        assert output.shape == (6, 2, HIDDEN * (1 + bidirectional)) and shorter.shape == (6, 2)
        for row, is_real in enumerate(MASK):
            length = (int(is_real.sum()) + 1) // 2 // 2
            assert int(shorter[row].sum()) == length
            assert not output[row, length:].any()
            if length:
                alone, _ = rnn(x[row, is_real][None])
                close(output[row, :length], alone[0, :length])

    def test_a_packed_sequence(self, redraw):
        rnn = redraw(QRNN(IN, HIDDEN, 2, temporal_pooling="max", bidirectional=True).double())
        sequences = [draw(length, IN) for length in (4, 9, 6)]
        packed, mask = rnn(pack_sequence(sequences, enforce_sorted=False))
        output, lengths = pad_packed_sequence(packed)
        assert lengths.tolist() == mask.sum(dim=1).tolist() == [2, 4, 3]
        for row, sequence in enumerate(sequences):
            close(output[: lengths[row], row], rnn(sequence)[0])

    def test_gradients_are_whole(self, redraw):
        layer = redraw(QRNNLayer(2, 2, 2, stride=2, temporal_pooling="average").double())
        mask = torch.tensor([[1, 1, 0, 1, 1, 1], [0, 1, 1, 1, 0, 1]])
        inputs = draw(2, 6, 2).requires_grad_()
        torch.autograd.gradcheck(lambda x: layer(x, attention_mask=mask)[0], inputs)

    @pytest.mark.parametrize("options", [{"stride": 2}, {"temporal_pooling": "max"}], ids=str)
    def test_zoneout_is_random_in_training(self, options):
        layer, x = QRNNLayer(IN, HIDDEN, zoneout=0.5, **options), draw(2, 8, IN).float()
        assert not torch.equal(layer(x)[0], layer(x)[0])
        assert torch.equal(layer.eval()(x)[0], layer(x)[0])

    def test_an_empty_batch(self):
        h, mask = QRNNLayer(IN, HIDDEN, temporal_pooling="max")(torch.randn(0, 8, IN), attention_mask=MASK[:0])
        assert h.shape == (0, 4, HIDDEN) and mask.shape == (0, 4)


@pytest.mark.parametrize("pooling", ["f", "fo", "ifo"])
def test_zoneout_before_the_output_gate_is_random_in_training(pooling):
    layer, x = QRNNLayer(IN, HIDDEN, pooling=pooling, zoneout=0.5), draw(2, 8, IN).float()
    first, second = (layer(x, return_ungated=True)[0][0] for _ in range(2))
    assert not torch.equal(first, second)
    first, second = (layer.eval()(x, return_ungated=True)[0][0] for _ in range(2))
    assert torch.equal(first, second)


def test_rare_dropout_of_16_bits_is_as_rare():
    """Random numbers of 16 bits would be too coarse for it."""
    share = (dropout(torch.ones(1_000_000, dtype=torch.bfloat16), 0.01) == 0).double().mean().item()
    assert share == pytest.approx(0.01, abs=5 * math.sqrt(0.01 * 0.99 / 1e6))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_is_zero_as_often_as_it_says_and_its_gradient_with_it(p, dtype):
    x = draw(300, 400).to(dtype).abs().add(0.5).requires_grad_()
    dropped = dropout(x, p)
    dropped.backward(torch.ones_like(x))
    kept = dropped != 0
    assert abs(kept.double().mean() - (1 - p)) < 5 * math.sqrt(p * (1 - p) / x.numel())
    neighbours_agree = kept[:, 1:].eq(kept[:, :-1]).double().mean()
    assert abs(neighbours_agree - (1 - 2 * p * (1 - p))) < 0.01  # for they are independent
    scale = torch.tensor(1.0, dtype=dtype) / (1 - p)
    torch.testing.assert_close(dropped, torch.where(kept, x * scale, 0))
    torch.testing.assert_close(x.grad, torch.where(kept, scale, 0))
    assert not torch.equal(dropout(x, p) != 0, kept)


# --- weight drop -----------------------------------------------------------------------------------------------------


class TestWeightDrop:
    @pytest.fixture
    def dropped(self, redraw):
        return redraw(QRNNLayer(IN, HIDDEN, 2, weight_dropout=0.5).double())

    def test_there_is_one_weight_under_its_own_name(self, dropped):
        assert list(dropped.state_dict()) == ["gate_proj.weight", "gate_proj.bias"]
        assert [name for name, _ in dropped.named_parameters()] == list(dropped.state_dict())
        dropped.train()(draw(2, 5, IN))
        assert [name for name, _ in dropped.named_parameters()] == list(dropped.state_dict())

    def test_evaluation_is_that_of_the_plain_layer(self, dropped):
        plain = QRNNLayer(IN, HIDDEN, 2).double()
        plain.load_state_dict(dropped.state_dict())
        x = draw(2, 5, IN)
        close(dropped(x), plain(x), 0)

    def test_training_drops_weights_anew(self):
        layer = QRNNLayer(100, 50, 2, bias=False, weight_dropout=0.3).double()
        identity = torch.eye(200).double()
        weights = [layer.gate_proj(identity).T for _ in range(2)]
        for weight in weights:
            kept = weight != 0
            assert abs(kept.double().mean() - 0.7) < 5 * math.sqrt(0.3 * 0.7 / weight.numel())
            close(weight[kept], layer.gate_proj.weight[kept] / 0.7)
        assert not torch.equal(*weights)

    def test_the_optimiser_changes_the_weight_in_use(self, dropped):
        optimizer = torch.optim.SGD(dropped.parameters(), lr=1.0)
        x = draw(2, 5, IN)
        weight, before = dropped.gate_proj.weight.detach().clone(), dropped(x)[0]
        dropped.train()(x)[0].sum().backward()
        assert 0 < (dropped.gate_proj.weight.grad != 0).double().mean() < 1
        optimizer.step()
        assert not torch.equal(dropped.gate_proj.weight, weight)
        assert not torch.equal(dropped.eval()(x)[0], before)


# --- called like nn.LSTM ---------------------------------------------------------------------------------------------


def pair(redraw, **options):
    return redraw(QRNN(IN, HIDDEN, 2, 3, **options)), nn.LSTM(IN, HIDDEN, 2, **options)


@pytest.mark.parametrize("bidirectional", [False, True])
class TestLikeLSTM:
    @pytest.mark.parametrize("batch_first", [False, True])
    @pytest.mark.parametrize("shape", [(5, 7, IN), (7, IN)], ids=["batch", "no batch"])
    def test_shapes(self, redraw, bidirectional, batch_first, shape):
        rnn, lstm = pair(redraw, bidirectional=bidirectional, batch_first=batch_first)
        x = torch.randn(shape)
        (output, state), (expected, (h, _)) = rnn(x), lstm(x)
        assert output.shape == expected.shape
        assert len(state.c) == len(state.conv) == len(h)
        assert all(c.shape == of_lstm.shape for c, of_lstm in zip(state.c, h, strict=True))
        again, _ = rnn(x, state)
        assert again.shape == output.shape and not torch.equal(again, output)

    def test_the_same_whatever_comes_first(self, redraw, bidirectional):
        rnn, _ = pair(redraw, bidirectional=bidirectional, batch_first=False)
        x = torch.randn(7, 5, IN)
        mask = torch.ones(5, 7).index_fill(1, torch.tensor([2, 6]), 0)
        output, state = rnn(x, attention_mask=mask)
        rnn.batch_first = True
        output_too, state_too = rnn(x.transpose(0, 1), attention_mask=mask)
        close((output, *state), (output_too.transpose(0, 1), *state_too), 0)
        expected, expected_state = rnn(x[:, 3][None], rows_of(state, [3]), attention_mask=mask[3, None])
        for mask_alone in (mask[3], mask[3, None]):
            alone, alone_state = rnn(x[:, 3], rows_of(state, 3), attention_mask=mask_alone)
            close((alone, *alone_state), (expected[0], *rows_of(expected_state, 0)), 0)

    @pytest.mark.parametrize("lengths", [[7, 5, 5, 1], [2, 7, 1, 4]], ids=["sorted", "unsorted"])
    @pytest.mark.parametrize("batch_first", [False, True])
    def test_packed_sequences(self, redraw, bidirectional, lengths, batch_first):
        rnn, lstm = pair(redraw, bidirectional=bidirectional, batch_first=batch_first)
        sequences = [torch.randn(length, IN) for length in lengths]
        packed = pack_sequence(sequences, enforce_sorted=lengths == sorted(lengths, reverse=True))
        (output, state), (expected, _) = rnn(packed), lstm(packed)
        assert isinstance(output, PackedSequence)
        assert output.data.shape == expected.data.shape
        for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
            actual_part, expected_part = getattr(output, name), getattr(expected, name)
            assert actual_part is expected_part is None or torch.equal(actual_part, expected_part)
        padded, _ = pad_packed_sequence(output, batch_first=True)
        for row, sequence in enumerate(sequences):  # rows and states in the caller's order
            alone, alone_state = rnn(sequence)
            close(padded[row, : len(sequence)], alone, 1e-5)
            close(rows_of(state, row), alone_state, 1e-5)

    def test_a_packed_sequence_goes_on_from_a_state(self, redraw, bidirectional):
        rnn, _ = pair(redraw, bidirectional=bidirectional)
        state = QRNNState(*(tuple(part.float() for part in parts) for parts in draw_states(rnn, 3)))
        sequences = [torch.randn(length, IN) for length in (2, 6, 4)]
        output, last_state = rnn(pack_sequence(sequences, enforce_sorted=False), state)
        padded, _ = pad_packed_sequence(output)
        for row, sequence in enumerate(sequences):
            alone, alone_state = rnn(sequence, rows_of(state, row))
            close(padded[: len(sequence), row], alone, 1e-5)
            close(rows_of(last_state, row), alone_state, 1e-5)

    def test_a_packed_sequence_longer_than_its_rows(self, redraw, bidirectional):
        rnn, _ = pair(redraw, bidirectional=bidirectional, batch_first=True)
        x = torch.randn(2, 9, IN)  # two columns that are pads in both rows
        output, _ = rnn(pack_padded_sequence(x, torch.tensor([7, 3]), batch_first=True))
        padded, lengths = pad_packed_sequence(output, batch_first=True)
        assert lengths.tolist() == [7, 3]
        close(padded[1, :3], rnn(x[1, :3])[0], 1e-5)


def test_a_kernel_size_for_each_layer():
    rnn = QRNN(IN, HIDDEN, 3, [5, 1, 2], batch_first=True, bidirectional=True)
    _, state = rnn(torch.randn(2, 4, IN))
    assert [tuple(conv.shape[1:]) for conv in state.conv] == [(3, 4), (3, 4), (8, 0), (8, 0), (8, 1), (8, 1)]
    assert rnn.layers[0].gate_proj.in_features == 15


class TestDropout:
    def between_layers(self, rnn, x):
        """What the second layer is given, next to what the first one gave, and the output."""
        seen = {}
        rnn.layers[0].register_forward_hook(lambda module, inputs, outputs: seen.update(given=outputs[0]))
        rnn.layers[1].register_forward_pre_hook(lambda module, inputs: seen.update(taken=inputs[0]))
        seen["output"] = rnn(x)[0]
        return seen

    def test_acts_between_layers_in_training(self):
        seen = self.between_layers(QRNN(20, 30, 2, dropout=0.4, batch_first=True).double(), draw(10, 20, 20))
        kept = seen["taken"] != 0
        assert abs(kept.double().mean() - 0.6) < 5 * math.sqrt(0.4 * 0.6 / kept.numel())
        close(seen["taken"][kept], seen["given"][kept] / 0.6)
        assert (seen["output"] != 0).all()  # none after the last layer

    def test_not_at_evaluation(self):
        seen = self.between_layers(QRNN(20, 30, 2, dropout=0.4).double().eval(), draw(10, 20, 20))
        close(seen["taken"], seen["given"], 0)

    def test_zoneout_is_of_training(self):
        rnn = QRNN(IN, HIDDEN, 2, zoneout=0.5, batch_first=True).double()
        x = draw(2, 9, IN)
        assert not torch.equal(rnn(x)[0], rnn(x)[0])
        rnn.eval()
        close(rnn(x)[0], rnn(x)[0], 0)
        assert not torch.equal(rnn(x)[0], without_zoneout(rnn)(x)[0])  # the expectation acts


def without_zoneout(rnn):
    plain = QRNN(IN, HIDDEN, 2, batch_first=True).double()
    plain.load_state_dict(rnn.state_dict())
    return plain


# --- dtypes, devices, saving, compiling ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_layers_have_a_float32_state(redraw, pooling, dtype):
    rnn = redraw(QRNN(IN, HIDDEN, 2, 3, pooling, batch_first=True, dtype=dtype))
    assert {parameter.dtype for parameter in rnn.parameters()} == {dtype}
    x = torch.randn(6, 8, IN, dtype=dtype)
    output, state = rnn(x, attention_mask=MASK)
    assert output.dtype == dtype
    assert {c.dtype for c in state.c} == {torch.float32}
    assert {conv.dtype for conv in state.conv} == {dtype}
    chunks, _ = run_chunks(rnn, x, None, MASK, (3, 1, 4))
    close(chunks.float(), output.float(), 2e-2)


def test_device_and_dtype():
    for module in (QRNN(IN, HIDDEN, device="meta", dtype=torch.float64), QRNNLayer(IN, HIDDEN, device="meta")):
        assert {parameter.device.type for parameter in module.parameters()} == {"meta"}
    dropped = QRNNLayer(IN, HIDDEN, weight_dropout=0.1, device="meta", dtype=torch.bfloat16)
    assert (dropped.gate_proj.weight.device.type, dropped.gate_proj.weight.dtype) == ("meta", torch.bfloat16)


def test_autocast(redraw):
    rnn = redraw(QRNN(IN, HIDDEN, 2, batch_first=True))
    x = torch.randn(6, 8, IN)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, state = rnn(x, attention_mask=MASK)
        chunks, _ = run_chunks(rnn, x, None, MASK, (3, 5))
    assert {c.dtype for c in state.c} == {torch.float32}
    close(chunks.float(), output.float(), 2e-2)
    close(output.float(), rnn(x, attention_mask=MASK)[0], 1e-1)


def test_state_dict_round_trip(both_ways, pooling, kernel_size, tmp_path):
    torch.save(both_ways.state_dict(), tmp_path / "weights.pt")
    other = QRNN(IN, HIDDEN, 2, kernel_size, pooling, bidirectional=True, batch_first=True).double()
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    x = draw(2, 5, IN)
    close(other(x), both_ways(x), 0)


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"stride": 2, "temporal_pooling": "max"}], ids=str)
def test_compiles_whole(redraw, options):
    rnn = redraw(QRNN(IN, HIDDEN, 2, 3, batch_first=True, **options).double())
    compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager")
    x = draw(6, 8, IN).requires_grad_()
    (actual, *_), (expected, *_) = compiled(x, attention_mask=MASK), rnn(x, attention_mask=MASK)
    close(actual, expected)
    inputs = [x, *rnn.parameters()]
    close(*(torch.autograd.grad(output.square().sum(), inputs) for output in (actual, expected)))


def test_extra_repr():
    assert "3, 4, kernel_size=2, pooling='fo'" in repr(QRNN(IN, HIDDEN))
    assert "(weight_dropout): QRNNDropout(p=0.1" in repr(QRNNLayer(IN, HIDDEN, weight_dropout=0.1))


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_size": 0}, "`input_size` must be at least 1, got 0"),
        ({"hidden_size": 0}, "`hidden_size` must be at least 1, got 0"),
        ({"kernel_size": 0}, "`kernel_size` must be at least 1, got 0"),
        ({"kernel_size": True}, "`kernel_size` must be a number, got True"),
        ({"stride": 0}, "`stride` must be at least 1, got 0"),
        ({"temporal_pooling_size": 0}, "`temporal_pooling_size` must be at least 1, got 0"),
        ({"pooling": "of"}, r"`pooling` must be one of \['f', 'fo', 'ifo'\], got 'of'"),
        ({"zoneout": 1.0}, r"`zoneout` .*\[0, 1\), got 1.0"),
        ({"temporal_pooling": "mean"}, "`temporal_pooling` must be None, 'max' or 'average', got 'mean'"),
    ],
)
@pytest.mark.parametrize("cls", [QRNNLayer, QRNN])
def test_errors_of_construction(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(**{"input_size": IN, "hidden_size": HIDDEN, **options})


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (QRNNLayer, {"candidate_activation": "gelu"}, "`candidate_activation` .* got 'gelu'"),
        (QRNNLayer, {"weight_dropout": 1.0}, r"`weight_dropout` .*\[0, 1\), got 1.0"),
        (QRNN, {"num_layers": 0}, "`num_layers` must be at least 1, got 0"),
        (QRNN, {"dropout": 1.0}, r"`dropout` .*\[0, 1\), got 1.0"),
        (QRNN, {"num_layers": 2, "kernel_size": [2]}, r"`kernel_size` .*one per layer \(2\), got \[2\]"),
    ],
)
def test_errors_of_construction_of_one(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(IN, HIDDEN, **options)


X = torch.zeros(2, 5, IN)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.zeros(2, IN)}, r"`x` .*input_size=3\), got \(2, 3\)"),
        ({"x": torch.zeros(2, 5, 4)}, r"`x` .*input_size=3\), got \(2, 5, 4\)"),
        ({"x": torch.zeros(2, 0, IN)}, r"`x` .*at least one step.* got \(2, 0, 3\)"),
        ({"state": (torch.zeros(1, 4), torch.zeros(2, 3, 1))}, r"`state` .*\(2, 4\) and \(2, 3, 1\), got \(1, 4\)"),
        ({"state": (torch.zeros(2, 4), torch.zeros(2, 3, 2))}, r"`state` .*\(2, 3, 1\), got .*\(2, 3, 2\)"),
        ({"attention_mask": torch.ones(2, 4)}, r"`attention_mask` .*\(2, >= 5\), got \(2, 4\)"),
        ({"segment_ids": torch.ones(2, 4)}, r"`segment_ids` .*\(2, 5\), got \(2, 4\)"),
        ({"gate_bias": torch.ones(2, 4)}, r"`gate_bias` .*\(2, 12\), got \(2, 4\)"),
        ({"gate_bias": torch.ones(12)}, r"`gate_bias` .*\(2, 12\), got \(12,\)"),
    ],
)
def test_errors_of_a_layer(changed, message):
    with pytest.raises(ValueError, match=message):
        QRNNLayer(IN, HIDDEN)(**{"x": X, **changed})


@pytest.mark.parametrize(
    ("options", "changed", "message"),
    [
        ({"stride": 2}, {"state": (torch.zeros(2, 4), torch.zeros(2, 3, 1))}, "`state` was given, but a subsampling"),
        ({"stride": 2}, {"segment_ids": torch.ones(2, 5)}, "`segment_ids` cannot be used in a subsampling layer"),
        ({"stride": 2}, {"return_ungated": True}, "`return_ungated` must be False in a subsampling layer"),
        (
            {"stride": 2, "temporal_pooling": "max", "temporal_pooling_size": 4},
            {},
            "`x` has 5 steps, but stride=2 and temporal_pooling_size=4 need at least 7",
        ),
    ],
)
def test_errors_of_a_subsampling_layer(options, changed, message):
    with pytest.raises(ValueError, match=message):
        QRNNLayer(IN, HIDDEN, **options)(X, **changed)


def test_errors_of_a_module():
    rnn, shorter = QRNN(IN, HIDDEN, 2, batch_first=True), QRNN(IN, HIDDEN, temporal_pooling="max")
    packed = pack_sequence([torch.zeros(3, IN)])
    _, state = rnn(X)
    for call, message in [
        (lambda: rnn(packed, attention_mask=torch.ones(1, 3)), "`attention_mask` must be None for a `PackedSequence`"),
        (lambda: rnn(pack_sequence([X[0, :, :2]])), r"`input` must hold .*input_size=3 .* got the shape \(5, 2\)"),
        (lambda: shorter(X[:1, 0]), "`input` has 1 steps, but stride=1 and temporal_pooling_size=2 need at least 2"),
        (lambda: shorter(pack_sequence([X[0, :1]])), "`input` has 1 steps"),
        (lambda: rnn(X[None]), r"`input` .*\(batch, seq_len, input_size=3\).*got \(1, 2, 5, 3\)"),
        (lambda: rnn(X[:, :0]), r"`input` .*at least one step, got \(2, 0, 3\)"),
        (lambda: rnn(X[..., :2]), r"`input` .*input_size=3.*got \(2, 5, 2\)"),
        (
            lambda: QRNN(IN, HIDDEN, batch_first=False)(X[..., :2]),
            r"`input` .*\(seq_len, batch, input_size=3\).*got \(2, 5, 2\)",
        ),
        (lambda: rnn(X, QRNNState(state.c[:1], state.conv[:1])), r"`state` must hold two tuples.*2 tensors.*\[1, 1\]"),
        (lambda: rnn(X, (state.c,)), "`state` must hold two tuples"),
        (lambda: shorter(X, state), "`state` was given, but a subsampling module"),
        (
            lambda: shorter(pack_sequence([X[0], X[0, :1]])),
            "`input` has a sequence that subsampling shortens to nothing",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


# --- a search for counterexamples ------------------------------------------------------------------------------------

search = settings(max_examples=60)


@st.composite
def masks(draw_from, batch_size, seq_len):
    bits = st.lists(st.booleans(), min_size=seq_len, max_size=seq_len)
    return torch.tensor(draw_from(st.lists(bits, min_size=batch_size, max_size=batch_size)))


@st.composite
def cases(draw_from):
    """A module, inputs with pads anywhere, and the lengths of chunks."""
    draw_from(st.random_module())
    kernel_sizes = draw_from(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    pooling = draw_from(st.sampled_from(POOLINGS))
    batch_size, seq_len = draw_from(st.integers(1, 3)), draw_from(st.integers(1, 10))
    cuts = sorted(draw_from(st.sets(st.integers(1, seq_len - 1)))) if seq_len > 1 else []
    lengths = [end - start for start, end in zip([0, *cuts], [*cuts, seq_len], strict=True)]
    rnn = QRNN(IN, HIDDEN, len(kernel_sizes), kernel_sizes, pooling, batch_first=True).double()
    for parameter in rnn.parameters():
        nn.init.normal_(parameter, std=0.5)
    return rnn, draw(batch_size, seq_len, IN), draw_from(masks(batch_size, seq_len)), lengths


@search
@given(cases())
def test_search_chunks_and_pads(case):
    rnn, x, mask, lengths = case
    state = draw_states(rnn, len(x))
    filled = x.masked_fill(~mask[..., None], math.nan)
    assert_rows_as_alone(rnn, x, state, mask, *run_chunks(rnn, filled, state, mask, lengths))


@search
@given(cases(), st.data())
def test_search_segments(case, data):
    rnn, x, mask, _ = case
    numbers = st.lists(st.integers(0, 2), min_size=x.shape[1], max_size=x.shape[1])
    segments = torch.tensor(data.draw(st.lists(numbers, min_size=len(x), max_size=len(x))))
    layer = rnn.layers[0]
    h, _ = layer(x, attention_mask=mask, segment_ids=segments)
    for row, is_real in enumerate(mask):
        for run in runs(segments[row, is_real]):
            close(h[row, is_real][run], layer(x[row, is_real][None, run])[0][0])


@search
@given(st.data())
def test_search_subsampling(data):
    data.draw(st.random_module())
    options = {
        "kernel_size": data.draw(st.integers(1, 5)),
        "stride": data.draw(st.integers(1, 3)),
        "temporal_pooling": data.draw(st.sampled_from([None, "max", "average"])),
        "temporal_pooling_size": data.draw(st.integers(1, 3)),
        "reverse": data.draw(st.booleans()),
        "causal": data.draw(st.booleans()),
    }
    layer = QRNNLayer(IN, HIDDEN, **options).double()
    batch_size, seq_len = data.draw(st.integers(1, 3)), data.draw(st.integers(7, 12))
    x, mask = draw(batch_size, seq_len, IN), data.draw(masks(batch_size, seq_len))
    h, shorter = layer(x, attention_mask=mask)
    if not layer.is_subsampling:
        return
    for row, is_real in enumerate(mask):
        expected = subsample_by_hand(layer, x[row, is_real]) if is_real.any() else None
        length = 0 if expected is None else len(expected)
        assert int(shorter[row].sum()) == length
        if length:
            close(h[row, :length], expected)


def test_code_for_lstms_runs():
    rnn, lstm = QRNN(IN, HIDDEN, 2, dropout=0.25), torch.nn.LSTM(IN, HIDDEN, 2, dropout=0.25)
    rnn.flatten_parameters()
    for name in ("input_size", "hidden_size", "num_layers", "bias", "dropout", "bidirectional"):
        assert getattr(rnn, name) == getattr(lstm, name)


@pytest.mark.parametrize("options", [{}, {"candidate_activation": "relu"}, {"zoneout": 0.3}], ids=str)
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
def test_histories_are_the_states_of_the_shorter_chunks(redraw, pooling, kernel_size, options, mask):
    layer = redraw(QRNNLayer(IN, HIDDEN, kernel_size, pooling, **options).double())
    x, state = draw(len(MASK), 8, IN), draw_state(layer, len(MASK))
    _, _, (c_history, conv_history) = layer(x, state, attention_mask=mask, return_history=True)
    for t in range(1, 9):
        _, expected = layer(x[:, :t], state, attention_mask=None if mask is None else mask[:, :t])
        close((c_history[:, t - 1], conv_history[:, t - 1]), expected)


@pytest.mark.parametrize("options", [{"causal": False}, {"reverse": True}, {"stride": 2}], ids=str)
def test_no_history_of_a_layer_that_cannot_go_on(options):
    with pytest.raises(ValueError, match="`return_history` must be False in a layer that is reversed, subsampling"):
        QRNNLayer(IN, HIDDEN, **options)(X, return_history=True)


def test_a_state_keeps_no_more_than_itself_in_memory():
    _, (c, conv_state) = QRNNLayer(IN, HIDDEN, 3)(torch.randn(2, 500, IN))
    for part in (c, conv_state):
        assert part.untyped_storage().nbytes() == part.numel() * part.element_size()
