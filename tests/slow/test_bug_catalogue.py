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
"""Proof that the tests catch the bugs of earlier QRNN implementations: each is put into a copy of the package.

The numbers are those of the catalogue of bugs: 1 causality, 2 one function, 3 pads, 4 the convolution's tail,
5 outputs at pads, 6 rows of pads, 7 the recurrence on c, 8 the state that is returned, 9 zoneout, 10 dropout between
layers, 11 weight drop, 12 two directions, 13 batch and beams, 14 gradients through the state, 15 the decoder of the
encoder-decoder, 16 short and small chunks, 17 number formats, 18 gradients, 19 imports, 20 saving and loading.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest


ROOT = Path(__file__).parent.parent.parent

POOLING, LAYERS, CACHE, MODEL = (f"{name}_qrnn.py" for name in ("pooling", "layers", "cache", "modeling"))
SEQ2SEQ = "modeling_qrnn_seq2seq.py"
NUMBA, TRITON = (f"pooling_{name}_qrnn.py" for name in ("numba", "triton"))


class Mutation(NamedTuple):
    entry: int
    bug: str
    file: str
    old: str
    new: str
    test: str


MUTATIONS = [
    Mutation(
        1,
        "the window reaches into the future",
        LAYERS,
        "inputs = window.inputs()",
        "inputs = self._centred_inputs(x, is_real, segment_ids)",
        "test_layers_qrnn.py::TestCausality::test_the_future_is_never_seen",
    ),
    Mutation(
        1,
        "a model's window reaches into the future",
        MODEL,
        "mixed = self.mixer(self.input_norm(hidden_states),",
        "mixed = self.mixer(self.input_norm(hidden_states.roll(-1, dims=1)),",
        "test_modeling_laws.py::test_the_future_is_never_seen",
    ),
    Mutation(
        2,
        "a chunk's convolution starts from zero",
        LAYERS,
        "window = self._window(x, conv_state, is_real, segment_ids)",
        "window = self._window(x, None, is_real, segment_ids)",
        "test_layers_qrnn.py::TestChunks::test_chunks",
    ),
    Mutation(
        2,
        "a model's convolution starts each chunk from zero",
        MODEL,
        "state = (state[0], state[1][..., : layer.kernel_size - 1])",
        "state = (state[0], torch.zeros_like(state[1][..., : layer.kernel_size - 1]))",
        "test_modeling_laws.py::test_chunks_make_no_difference",
    ),
    Mutation(
        2,
        "a roll-back takes one token too few",
        CACHE,
        "self.recurrent_history[:, -1 - num_tokens]",
        "self.recurrent_history[:, -num_tokens]",
        "test_cache_qrnn.py::TestCrop::test_as_if_the_tokens_had_never_been",
    ),
    Mutation(
        3,
        "the recurrence runs over pads",
        POOLING,
        "allow = allow * is_real[..., None].to(dtype)",
        "allow = allow * torch.ones_like(is_real)[..., None].to(dtype)",
        "test_pooling_qrnn.py::TestPads::test_pads_are_as_if_absent",
    ),
    Mutation(
        3,
        "the reference's recurrence runs over pads",
        POOLING,
        "new = torch.where(is_real[:, t, None], new, c)",
        "new = new * 1",
        "test_pooling_qrnn.py::TestPads::test_pads_are_as_if_absent",
    ),
    Mutation(
        3,
        "the convolution runs over pads",
        LAYERS,
        "        if is_real is None:\n            is_real = self.x.new_ones",
        "        if True:\n            is_real = self.x.new_ones",
        "test_layers_qrnn.py::TestPads::test_rows_are_as_if_alone",
    ),
    Mutation(
        3,
        "the CPU kernel runs over pads",
        NUMBA,
        "                    h_t[:] = 0\n                    continue\n",
        "                    h_t[:] = 0\n",
        "test_pooling_qrnn.py::TestPads::test_pads_are_as_if_absent",
    ),
    Mutation(
        3,
        "the GPU kernel runs over pads",
        TRITON,
        "return tl.where(b_real, b_new, b_c)",
        "return b_new",
        "test_pooling_qrnn.py::TestPads::test_pads_are_as_if_absent",
    ),
    Mutation(
        4,
        "the carried window is the last columns, pads or not",
        LAYERS,
        "return self.states(self.x.shape[1] - 1).squeeze(1)",
        "return self.tokens[:, self.tokens.shape[1] - self.taps :].transpose(1, 2)",
        "test_layers_qrnn.py::TestPads::test_rows_are_as_if_alone",
    ),
    Mutation(
        5,
        "the output at a pad is not zero",
        POOLING,
        "        h = h.masked_fill(~is_real[..., None], 0)\n    # The outputs",
        "        pass\n    # The outputs",
        "test_pooling_qrnn.py::TestPads::test_pads_are_as_if_absent",
    ),
    Mutation(
        5,
        "what a pad holds enters the gradient of the weights",
        LAYERS,
        "x = x.masked_fill(~is_real[..., None], 0)",
        "x = x * 1",
        "test_layers_qrnn.py::TestPads::test_garbage_at_pads_reaches_no_gradient",
    ),
    Mutation(
        6,
        "a row of pads alone changes its state",
        POOLING,
        "new = torch.where(is_real[:, t, None], new, c)",
        "new = torch.where(is_real[:, t, None] | ~is_real.any(dim=1, keepdim=True), new, c)",
        "test_pooling_qrnn.py::TestPads::test_pads_are_as_if_absent",
    ),
    Mutation(
        6,
        "a row of pads alone forgets its window",
        LAYERS,
        "F.pad(is_real, (self.taps, 0), value=True)",
        "F.pad(is_real, (self.taps, 0), value=False)",
        "test_layers_qrnn.py::TestPads::test_rows_are_as_if_alone",
    ),
    Mutation(
        7,
        "the recurrence runs on o * c",
        POOLING,
        "        c = new\n",
        "        c = o_t * new\n",
        "test_pooling_qrnn.py::TestEquations::test_plain",
    ),
    Mutation(
        7,
        "the fast recurrence runs on o * c",
        POOLING,
        "states = _scan(gates.keep, gates.update * gates.z, initial_state, is_start)\n    c = states",
        "keep = gates.keep if gates.o is None else gates.keep * gates.o\n"
        "    states = _scan(keep, gates.update * gates.z, initial_state, is_start)\n    c = states",
        "test_pooling_qrnn.py::TestEquations::test_plain",
    ),
    Mutation(
        7,
        "the CPU kernel's recurrence runs on o * c",
        NUMBA,
        "                    c[d] = new\n                    if has_output_gate:\n"
        "                        o, _ = _sigmoid(_load(os[d]))\n                        new = o * new\n",
        "                    if has_output_gate:\n"
        "                        o, _ = _sigmoid(_load(os[d]))\n                        new = o * new\n"
        "                    c[d] = new\n",
        "test_pooling_qrnn.py::TestEquations::test_plain",
    ),
    Mutation(
        8,
        "the state returned is that before the last step",
        POOLING,
        "states[:, -1].clone(",
        "states[:, -2].clone(",
        "test_pooling_qrnn.py::TestEquations::test_plain",
    ),
    Mutation(
        8,
        "a classifier reads one token too early",
        MODEL,
        "last = hidden_states.shape[1] - 1 - is_real",
        "last = hidden_states.shape[1] - 2 - is_real",
        "test_modeling_qrnn.py::test_classifier_reads_real_tokens",
    ),
    Mutation(
        9,
        "zoneout rescales what is left, and gates exceed one",
        POOLING,
        "hidden_size, zoneout)).to(dtype)",
        "hidden_size, zoneout)).to(dtype) / (1 - zoneout)",
        "test_pooling_qrnn.py::TestZoneout::test_no_gate_is_above_one",
    ),
    Mutation(
        9,
        "a zoned-out unit of ifo-pooling takes input",
        POOLING,
        "forget if i is None else i * allow)",
        "forget if i is None else i)",
        "test_pooling_qrnn.py::TestZoneout::test_a_zoned_out_unit_of_ifo_takes_no_input",
    ),
    Mutation(
        9,
        "zoneout has no expectation at evaluation",
        POOLING,
        "allow: torch.Tensor | float = 1.0 - zoneout",
        "allow: torch.Tensor | float = 1.0",
        "test_pooling_qrnn.py::TestZoneoutStatistics::test_evaluation_is_the_expectation_of_one_step",
    ),
    Mutation(
        9,
        "the probability of zoneout is that of keeping the update",
        POOLING,
        "round(zoneout * 2**32)",
        "round((1 - zoneout) * 2**32)",
        "test_pooling_qrnn.py::TestZoneoutStatistics::test_statistics",
    ),
    Mutation(
        9,
        "neighbouring units share their fate",
        POOLING,
        "^ torch.arange(hidden_size, device=seed.device))",
        "^ (torch.arange(hidden_size, device=seed.device) // 2))",
        "test_pooling_qrnn.py::TestZoneoutStatistics::test_neighbours_are_independent",
    ),
    Mutation(
        9,
        "a zoned-out unit of the CPU kernel takes input",
        NUMBA,
        "carried + allowed * update * z",
        "carried + update * z",
        "test_pooling_qrnn.py::TestBackendsAgree::test_options",
    ),
    Mutation(
        10,
        "the result of dropout between layers is thrown away",
        LAYERS,
        "                x = dropout(x, self.dropout)",
        "                dropout(x, self.dropout)",
        "test_layers_qrnn.py::TestDropout::test_acts_between_layers_in_training",
    ),
    Mutation(
        10,
        "a model has no dropout between layers",
        MODEL,
        "return self.dropout(mixed)",
        "return mixed",
        "test_modeling_qrnn.py::test_dropout_acts_in_training_alone",
    ),
    Mutation(
        11,
        "weight drop hides the weight from the optimiser",
        LAYERS,
        "self.weight_dropout(self.weight)",
        "self.weight_dropout(self.weight.detach())",
        "test_layers_qrnn.py::TestWeightDrop::test_the_optimiser_changes_the_weight_in_use",
    ),
    Mutation(
        11,
        "weight drop acts at evaluation",
        LAYERS,
        "self.weight_dropout(self.weight)",
        "dropout(self.weight, self.weight_dropout.p)",
        "test_layers_qrnn.py::TestWeightDrop::test_evaluation_is_that_of_the_plain_layer",
    ),
    Mutation(
        11,
        "weight drop keeps a second weight",
        LAYERS,
        "        self.weight_dropout = QRNNDropout(weight_dropout)\n\n",
        "        self.weight_dropout = QRNNDropout(weight_dropout)\n"
        "        self.weight_raw = nn.Parameter(self.weight.detach())\n\n",
        "test_layers_qrnn.py::TestWeightDrop::test_there_is_one_weight_under_its_own_name",
    ),
    Mutation(
        12,
        "the directions share their weights",
        LAYERS,
        "    def flatten_parameters(self) -> None:\n",
        "        for forward, backward in zip(self.layers[::2], self.layers[1::2]):\n"
        "            backward.gate_proj = forward.gate_proj if bidirectional else backward.gate_proj\n\n"
        "    def flatten_parameters(self) -> None:\n",
        "test_layers_qrnn.py::test_both_directions_have_weights_of_their_own_and_upper_layers_see_both",
    ),
    Mutation(
        12,
        "upper layers see one direction",
        LAYERS,
        "x = torch.cat([h for h, _ in results], dim=-1)",
        "x = torch.cat([results[0][0]] * directions, dim=-1)",
        "test_layers_qrnn.py::test_both_directions_have_weights_of_their_own_and_upper_layers_see_both",
    ),
    Mutation(
        12,
        "the reversal does not respect lengths",
        LAYERS,
        "None if marks is None else marks.flip(1)",
        "None if marks is None else marks",
        "test_layers_qrnn.py::test_a_reversed_layer_is_the_flipped_layer",
    ),
    Mutation(
        13,
        "beams move the recurrent state without the window",
        CACHE,
        "for states in (self.conv_states, self.recurrent_states):\n            if states[0] is not None:\n",
        "for states in (self.recurrent_states,):\n            if states[0] is not None:\n",
        "test_cache_qrnn.py::TestRows::test_all_of_the_state_moves_together",
    ),
    Mutation(
        13,
        "beams leave the recorded past where it is",
        CACHE,
        'for name in ("conv_history", "recurrent_history"):',
        'for name in ("conv_history",):',
        "test_cache_qrnn.py::TestRows::test_all_of_the_state_moves_together",
    ),
    Mutation(
        13,
        "a reset keeps the batch of the last use",
        CACHE,
        "LinearAttentionLayer.reset(self)",
        "self.has_previous_state[0] = self.has_previous_state[0]",
        "test_cache_qrnn.py::TestLayer::test_reset_is_fresh",
    ),
    Mutation(
        14,
        "no gradient flows through the window",
        LAYERS,
        "return self.tokens[:, self.tokens.shape[1] - self.taps :].transpose(1, 2)",
        "return self.tokens[:, self.tokens.shape[1] - self.taps :].transpose(1, 2).detach()",
        "test_layers_qrnn.py::test_gradients_flow_through_the_state",
    ),
    Mutation(
        14,
        "no gradient flows through the initial state",
        POOLING,
        "return initial_state.to(dtype)",
        "return initial_state.detach().to(dtype)",
        "test_layers_qrnn.py::test_gradients_flow_through_the_state",
    ),
    Mutation(
        14,
        "chunks write into what backward needs",
        CACHE,
        "tuple(tensor.clone() for tensor in state) if torch.is_grad_enabled() else state",
        "state",
        "test_cache_qrnn.py::TestGradients::test_flow_within_each_chunk",
    ),
    Mutation(
        14,
        "a chunk of the GPU kernel starts from zero",
        TRITON,
        "tl.where(b_keep < -0.5, b_gain, b_keep * b_c + b_gain)",
        "b_gain",
        "test_pooling_triton_qrnn.py::test_poolings_and_activations",
    ),
    Mutation(
        15,
        "the gates share what the source adds",
        SEQ2SEQ,
        "gate_bias = self.source_proj(encoder_state)",
        "gate_bias = self.source_proj(encoder_state)\n"
        "        width = self.directions[0].hidden_size\n"
        "        gate_bias = gate_bias[:, :width].repeat(1, gate_bias.shape[1] // width)",
        "test_modeling_qrnn_seq2seq.py::test_the_equations",
    ),
    Mutation(
        15,
        "the encoder's last state is that of the last column",
        SEQ2SEQ,
        'return read_out(mixed, is_real, "last", self.bidirectional)',
        'return read_out(mixed, None, "last", self.bidirectional)',
        "test_modeling_qrnn_seq2seq.py::test_the_equations",
    ),
    Mutation(
        15,
        "the attention sees the source's pads",
        SEQ2SEQ,
        "if encoder_mask is not None:",
        "if False:",
        "test_modeling_qrnn_seq2seq.py::test_the_equations",
    ),
    Mutation(
        15,
        "the query has gone through the output gate",
        SEQ2SEQ,
        "queries = self._heads(self.q_proj(c) if self.is_projected else c)",
        "c = c if o is None else o * c\n        queries = self._heads(self.q_proj(c) if self.is_projected else c)",
        "test_modeling_qrnn_seq2seq.py::test_the_equations",
    ),
    Mutation(
        15,
        "each step works out the source anew, from a cache that grows",
        SEQ2SEQ,
        "cache.is_updated[self.layer_idx] = True",
        "cache.is_updated[self.layer_idx] = None",
        "test_modeling_qrnn_seq2seq.py::test_the_source_is_read_once",
    ),
    Mutation(
        15,
        "the labels are shifted twice",
        SEQ2SEQ,
        '"shift_labels": labels.contiguous()}',
        '"shift_labels": None}',
        "test_modeling_qrnn_seq2seq.py::test_loss",
    ),
    Mutation(
        16,
        "a chunk shorter than the window forgets what was carried",
        LAYERS,
        "return self.tokens[:, self.tokens.shape[1] - self.taps :].transpose(1, 2)",
        "recent = self.x[:, max(self.x.shape[1] - self.taps, 0) :]\n"
        "            return F.pad(recent, (0, 0, self.taps - recent.shape[1], 0)).transpose(1, 2)",
        "test_layers_qrnn.py::TestChunks::test_from_nothing",
    ),
    Mutation(
        16,
        "the mask of a one-token step is dropped",
        MODEL,
        "if is_real is None or (",
        "if is_real is None or seq_len == 1 or (",
        "test_modeling_laws.py::test_chunks_make_no_difference",
    ),
    Mutation(
        16,
        "a batch of one loses its dimension",
        LAYERS,
        "return self.states(self.x.shape[1] - 1).squeeze(1)",
        "return self.states(self.x.shape[1] - 1).squeeze()",
        "test_layers_qrnn.py::TestPads::test_rows_are_as_if_alone",
    ),
    Mutation(
        17,
        "the state has 16 bits",
        POOLING,
        "return torch.float64 if dtype == torch.float64 else torch.float32",
        "return dtype",
        "test_pooling_qrnn.py::TestDtypes::test_dtypes",
    ),
    Mutation(
        17,
        "the forget gate is rounded to 16 bits",
        POOLING,
        '    f = torch.sigmoid(logits["f"])\n    i = torch.sigmoid(logits["i"]) if "i" in logits else None',
        '    f = torch.sigmoid(logits["f"]).bfloat16().to(dtype)\n'
        '    i = torch.sigmoid(logits["i"]) if "i" in logits else None',
        "test_pooling_qrnn.py::test_long_memory_in_bfloat16",
    ),
    Mutation(
        17,
        "the recurrence divides by a product of gates",
        POOLING,
        "    states[:, 0] = initial_state\n",
        "    products = keep.cumprod(dim=1)\n"
        "    states[:, 1:] = products * (initial_state[:, None] + (inputs / products).cumsum(dim=1))\n"
        "    states[:, 0] = initial_state\n"
        "    return states\n",
        "test_pooling_qrnn.py::TestDtypes::test_extreme_logits",
    ),
    Mutation(
        17,
        "the CPU kernel takes 1 - f as a difference",
        NUMBA,
        "return f, exponential * f",
        "return f, one - f",
        "test_pooling_qrnn.py::test_both_ends_of_the_forget_gate",
    ),
    Mutation(
        17,
        "the CPU kernel cuts bfloat16 off instead of rounding",
        NUMBA,
        "np.uint32(bits + np.uint32(0x7FFF) + is_odd)",
        "np.uint32(bits + np.uint32(0) * is_odd)",
        "test_pooling_numba_qrnn.py::test_rounds_to_bfloat16_as_torch_does",
    ),
    Mutation(
        18,
        "the derivative of tanh is wrong",
        POOLING,
        '"tanh": lambda grad, z: grad * (1 - z * z),',
        '"tanh": lambda grad, z: grad * (1 - z),',
        "test_pooling_qrnn.py::TestGradients::test_gradients",
    ),
    Mutation(
        18,
        "the gradient flows across the boundary of a segment",
        POOLING,
        "grad_keep = grad_keep.masked_fill(is_start[..., None], 0)",
        "grad_keep = grad_keep * 1",
        "test_pooling_qrnn.py::TestBackendsAgree::test_options",
    ),
    Mutation(
        18,
        "the second derivative is wrong",
        POOLING,
        "return *second, None",
        "return *(None if part is None else 2 * part for part in second), None",
        "test_pooling_qrnn.py::TestGradients::test_gradients",
    ),
    Mutation(
        18,
        "the gradient of the CPU kernel flows across the boundary of a segment",
        NUMBA,
        "grad_c[d] = zero if is_first else _flush((a * f + (one - a)) * grad, faintest, zero)",
        "grad_c[d] = _flush((a * f + (one - a)) * grad, faintest, zero)",
        "test_pooling_qrnn.py::TestBackendsAgree::test_options",
    ),
    Mutation(
        18,
        "the gradient of the GPU kernel flows across the boundary of a segment",
        TRITON,
        "b_grad = tl.where(b_start, 0.0, b_keep * b_grad)",
        "b_grad = b_keep * b_grad",
        "test_pooling_triton_qrnn.py::test_options",
    ),
    Mutation(
        19,
        "the import needs a compiler",
        POOLING,
        "import torch\nfrom torch.autograd",
        "import torch\nimport torch.utils.cpp_extension\nfrom torch.autograd",
        "test_pooling_qrnn.py::test_needs_no_compiler_and_no_optional_package",
    ),
    Mutation(
        20,
        "a part of the weights is not saved",
        MODEL,
        "super().save_pretrained(save_directory, *args, **kwargs)",
        "kwargs['state_dict'] = {name: x for name, x in self.state_dict().items() if not name.endswith('.bias')}\n"
        "        super().save_pretrained(save_directory, *args, **kwargs)",
        "test_modeling_qrnn.py::test_saved_is_loaded",
    ),
    Mutation(
        20,
        "a width that equals the default's is not saved",
        "configuration_qrnn.py",
        '    model_type = "qrnn"\n',
        '    model_type = "qrnn"\n\n'
        "    def to_diff_dict(self):\n"
        "        default = {**type(self)().to_dict(), 'model_type': None}\n"
        "        return {name: value for name, value in self.to_dict().items() if value != default.get(name)}\n",
        "test_configuration_qrnn.py::TestFiles::test_round_trip",
    ),
    Mutation(
        20,
        "the state in a file has no window",
        CACHE,
        "layer.update_conv_state(conv_state, num_tokens=int(length))",
        "layer.update_conv_state(conv_state * 0, num_tokens=int(length))",
        "test_cache_qrnn.py::TestFiles::test_round_trip",
    ),
]


@pytest.fixture
def copy(tmp_path):
    """A copy of the package and its tests, which refuse to run on any other package."""
    shutil.copytree(ROOT / "modeling_qrnn", tmp_path / "modeling_qrnn")
    (tmp_path / "tests").mkdir()
    for file in (ROOT / "tests").glob("*.py"):
        shutil.copy(file, tmp_path / "tests")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with open(tmp_path / "tests" / "conftest.py", "a") as conftest:
        conftest.write(
            "\n\nimport modeling_qrnn\n\n"
            f"assert modeling_qrnn.__file__ == {str(tmp_path / 'modeling_qrnn' / '__init__.py')!r}\n"
        )
    return tmp_path


def run(copy, *tests):
    """The exit code of pytest (0 passed, 1 failed, others: did not run), and what it printed."""
    options = ["-x", "-q", "-m", "not slow and not gpu", "-p", "no:cacheprovider", "--tb=line"]
    options += ["-o", "addopts=--import-mode=importlib"]
    command = [sys.executable, "-m", "pytest", *options, *(f"tests/{test}" for test in tests)]
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    # Variables of the pytest that runs this one must not reach it.
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    result = subprocess.run(
        command, cwd=copy, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return result.returncode, result.stdout


def test_each_bug_has_its_place():
    """This one is quick, and run with all others."""
    for mutation in MUTATIONS:
        assert (ROOT / "modeling_qrnn" / mutation.file).read_text().count(mutation.old) == 1, mutation.bug


@pytest.mark.slow
def test_the_tests_pass_without_a_bug(copy):
    code, printed = run(copy, *sorted({mutation.test for mutation in MUTATIONS}))
    assert code == 0, printed


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: f"{mutation.entry} {mutation.bug}")
def test_the_bug_is_caught(copy, mutation):
    path = copy / "modeling_qrnn" / mutation.file
    path.write_text(path.read_text().replace(mutation.old, mutation.new))
    code, printed = run(copy, mutation.test)
    assert code == 1, printed
