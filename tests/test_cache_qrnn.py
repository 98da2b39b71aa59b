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
"""The recurrent state as a layer of Transformers' caches: rows, lengths, roll-back, gradients, and files."""

import copy
import inspect
import io
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

import modeling_qrnn
from modeling_qrnn import (
    QRNNCacheLayer,
    QRNNConfig,
    QRNNForCausalLM,
    QRNNModel,
    load_recurrent_state,
    save_recurrent_state,
)


CACHES = {
    "dynamic": lambda config: DynamicCache(config=config),
    "static": lambda config: StaticCache(config=config, max_cache_len=16),
}
MASK = torch.tensor(
    [
        [0, 0, 0, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 0, 1, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ]
)


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def make_config(kernel_size=3, **options):
    """Three layers that are tied, so that their widths differ: a mix-up of two states shows."""
    sizes = {"vocab_size": 20, "hidden_size": 6, "embedding_size": 4, "num_hidden_layers": 3}
    return QRNNConfig(**{**sizes, "kernel_size": kernel_size, "tie_word_embeddings": True, **options})


@pytest.fixture(params=[1, 2, 3, 5, [4, 1, 2]], ids="k={}".format)
def kernel_size(request):
    return request.param


@pytest.fixture
def model(redraw, kernel_size):
    return redraw(QRNNModel(make_config(kernel_size)).double())


@pytest.fixture(params=CACHES.values(), ids=CACHES)
def cache(request, model):
    return request.param(model.config)


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def draw(batch_size=4, seq_len=8):
    return torch.randint(20, (batch_size, seq_len))


def states(cache):
    """All that the cache holds, as copies."""
    return [
        (layer.conv_states[0].clone(), layer.recurrent_states[0].clone(), int(layer.cumulative_length))
        for layer in cache.layers
    ]


def seen(model, tokens, mask=None, cache=None):
    """A cache that has seen the tokens."""
    return model(tokens, attention_mask=mask, cache=cache, use_cache=True).cache


class TestLayer:
    def test_the_stock_caches_build_it(self, cache):
        assert [type(layer) for layer in cache.layers] == [QRNNCacheLayer] * 3

    def test_is_empty_before_the_first_token(self, cache):
        layer = cache.layers[0]
        assert layer.carried_state() is None
        assert not cache.has_previous_state(0)
        assert cache.get_seq_length() == 0
        assert cache.get_mask_sizes(5, 0) == (5, 0)
        assert layer.conv_states[0] is layer.recurrent_states[0] is None
        with pytest.raises(AttributeError, match="empty"):
            _ = layer.batch_size

    def test_counts_tokens(self, model, cache):
        for total, length in [(3, 3), (4, 1), (8, 4)]:
            seen(model, draw(seq_len=length), cache=cache)
            assert int(cache.get_seq_length()) == total
            assert [int(size) for size in cache.get_mask_sizes(5, 0)] == [total + 5, 0]
        assert cache.has_previous_state(0)
        assert cache.layers[0].batch_size == 4
        assert cache.layers[0].get_max_length() == -1

    def test_the_length_given_is_a_copy(self, model, cache):
        length = seen(model, draw(), cache=cache).get_seq_length()
        seen(model, draw(), cache=cache)
        assert int(length) == 8

    def test_shapes(self, model, cache):
        seen(model, draw(), cache=cache)
        actual = [(*layer.conv_states[0].shape[1:], layer.recurrent_states[0].shape[1]) for layer in cache.layers]
        assert actual == model.config.state_widths

    def test_both_caches_give_what_the_whole_sequence_gives(self, model, cache):
        tokens = draw()
        whole = model(tokens, attention_mask=MASK, use_cache=False).last_hidden_state
        for start, end in [(0, 3), (3, 4), (4, 8)]:
            output = model(tokens[:, start:end], attention_mask=MASK[:, :end], cache=cache)
            close(output.last_hidden_state, whole[:, start:end])
            assert output.cache is cache

    def test_a_float32_state_beside_16_bit_inputs(self, redraw):
        model = redraw(QRNNModel(make_config())).bfloat16()
        layer = seen(model, draw()).layers[0]
        assert (layer.conv_states[0].dtype, layer.recurrent_states[0].dtype) == (torch.bfloat16, torch.float32)

    def test_addresses_stay_fixed(self, model, cache):
        # a captured graph goes on writing to the same memory
        def addresses():
            tensors = [(x.conv_states[0], x.recurrent_states[0], x.cumulative_length) for x in cache.layers]
            return [tensor.data_ptr() for layer in tensors for tensor in layer]

        seen(model, draw(), cache=cache)
        before = addresses()
        seen(model, draw(seq_len=1), cache=cache)
        cache.reset()
        seen(model, draw(seq_len=3), cache=cache)
        assert addresses() == before

    def test_memory_is_constant(self, model, cache):
        def held():
            parts = [vars(layer).values() for layer in cache.layers]
            values = [
                v for part in parts for value in part for v in (value.values() if isinstance(value, dict) else [value])
            ]
            return sum(v.untyped_storage().nbytes() for v in values if isinstance(v, torch.Tensor))

        seen(model, draw(seq_len=1), cache=cache)
        after_one = held()
        assert after_one > 0
        for length in (1, 1, 500):
            seen(model, draw(seq_len=length), cache=cache)
            assert held() == after_one

    def test_reset_is_fresh(self, model, cache):
        seen(model, draw(), MASK, cache)
        cache.reset()
        assert int(cache.get_seq_length()) == 0 and not cache.has_previous_state(0)
        tokens = draw()
        actual = model(tokens, cache=cache).last_hidden_state
        close(actual, model(tokens, use_cache=False).last_hidden_state, 0)
        close(states(cache), states(seen(model, tokens)), 0)

    def test_has_no_keys_and_values(self, cache):
        with pytest.raises(ValueError, match="no keys and values"):
            cache.update(torch.zeros(1), torch.zeros(1), 0)


class TestRows:
    @pytest.mark.parametrize("recording", [False, True], ids=["plain", "recording"])
    @pytest.mark.parametrize(
        ("change", "rows"),
        [
            (lambda cache: cache.reorder_cache(torch.tensor([2, 2, 0, 3])), [2, 2, 0, 3]),
            (lambda cache: cache.batch_select_indices(torch.tensor([3, 1])), [3, 1]),
            (lambda cache: cache.batch_select_indices(torch.tensor([False, True, True, False])), [1, 2]),
            (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2, 3, 3]),
        ],
        ids=["reorder", "select", "select by mask", "repeat"],
    )
    def test_all_of_the_state_moves_together(self, model, cache, change, rows, recording):
        if recording:
            cache.activate_past_recording()
        tokens, more = draw(), draw(len(rows), 3)
        seen(model, tokens, MASK, cache)
        change(cache)
        expected = seen(model, tokens[rows], MASK[rows])
        close(states(cache), states(expected))
        assert cache.layers[0].batch_size == len(rows)
        if recording:
            cache.crop(-2)
            expected = seen(model, tokens[rows, :6], MASK[rows, :6])
        close(model(more, cache=cache).last_hidden_state, model(more, cache=expected).last_hidden_state)

    def test_an_empty_cache_has_no_rows_to_change(self, cache):
        for layer in cache.layers:
            layer.reorder_cache(torch.tensor([1, 0]))
            layer.batch_select_indices(torch.tensor([1]))
            layer.batch_repeat_interleave(3)
            assert layer.carried_state() is None

    def test_another_batch_size_without_a_reset_needs_a_new_cache(self, model):
        cache = seen(model, draw(4))
        with pytest.raises(ValueError, match="`cache` does not fit: layer 0 holds a batch of 4"):
            model(draw(2), cache=cache)
        assert model(draw(2)).cache.layers[0].batch_size == 2


class TestOffload:
    def test_comes_back(self, model, cache):
        seen(model, draw(), MASK, cache)
        before = states(cache)
        for layer in cache.layers:
            layer.offload()
            layer.prefetch()
        close(states(cache), before, 0)

    def test_the_state_is_fetched_before_it_is_read(self, model):
        # The accelerator is played by the device `meta`, the only other one that is always there.
        layer = seen(model, draw()).layers[0]
        layer.offload()
        layer.device = torch.device("meta")
        assert {part.device.type for part in layer.carried_state()} == {"meta"}


# --- roll-back -------------------------------------------------------------------------------------------------------


class TestCrop:
    @pytest.mark.parametrize("mask", [torch.ones_like(MASK), MASK], ids=["plain", "pads"])
    @pytest.mark.parametrize("lengths", [(8,), (3, 5), (1,) * 8], ids=str)
    def test_as_if_the_tokens_had_never_been(self, model, cache, lengths, mask):
        prompt, tokens = draw(seq_len=4), draw()
        whole = torch.cat([torch.ones(4, 4, dtype=torch.long), mask], dim=1)
        seen(model, prompt, cache=cache)
        cache.activate_past_recording()
        end = 0
        for length in lengths:
            end += length
            seen(model, tokens[:, end - length : end], whole[:, : 4 + end], cache)
        for removed in range(9):
            cropped = copy.deepcopy(cache)
            cropped.crop(-removed)
            kept = 8 - removed
            expected = seen(model, prompt)
            if kept:
                expected = seen(model, tokens[:, :kept], whole[:, : 4 + kept], expected)
            close(states(cropped), states(expected))

    def test_everything(self, model, cache):
        cache.activate_past_recording()
        seen(model, draw(seq_len=3), cache=cache)
        seen(model, draw(seq_len=2), cache=cache)
        cache.crop(-5)
        assert int(cache.get_seq_length()) == 0
        tokens = draw()
        close(model(tokens, cache=cache).last_hidden_state, model(tokens).last_hidden_state)

    def test_recording_that_is_activated_twice_goes_on(self, model, cache):
        cache.activate_past_recording()
        tokens = draw(seq_len=3)
        seen(model, tokens, cache=cache)
        cache.activate_past_recording()
        cache.crop(-2)
        close(states(cache), states(seen(model, tokens[:, :1])))

    def test_again_and_again(self, model, cache):
        # as speculative decoding does: guess three tokens, take two back, go on with another one
        cache.activate_past_recording()
        tokens = draw(seq_len=9)
        seen(model, tokens[:, :3], cache=cache)
        for position in range(3, 9):
            cache.crop(0)
            seen(model, torch.cat([tokens[:, position, None], draw(seq_len=2)], dim=1), cache=cache)
            cache.crop(torch.tensor(-2))
        close(states(cache), states(seen(model, tokens)))

    def test_some_tokens_before_the_last_crop_are_taken_back(self, model, cache):
        # as assisted decoding with another tokenizer does, which reads the last tokens anew
        cache.activate_past_recording()
        tokens = draw(seq_len=100)
        seen(model, tokens[:, :90], cache=cache)
        cache.crop(0)
        close(states(cache), states(seen(model, tokens[:, :90])))
        seen(model, tokens[:, 90:], cache=cache)
        cache.crop(-15)
        close(states(cache), states(seen(model, tokens[:, :85])))
        assert cache.layers[0].recurrent_history.shape[1] == cache.layers[0].conv_history.shape[1] == 1 + 59
        cache.crop(-59)
        close(states(cache), states(seen(model, tokens[:, :26])))
        with pytest.raises(ValueError, match="`tokens_to_remove` must be between 0 and 0"):
            cache.crop(-1)

    def test_what_is_kept_has_a_bound(self, model, cache):
        cache.activate_past_recording()
        for _ in range(3):
            seen(model, draw(seq_len=50), cache=cache)
            cache.crop(0)
        assert cache.layers[0].recurrent_history.shape[1] == cache.layers[0].conv_history.shape[1] == 1 + 64

    def test_a_pause_forgets_what_was_recorded(self, model, cache):
        cache.activate_past_recording()
        seen(model, draw(seq_len=3), cache=cache)
        for layer in cache.layers:
            layer.record_past = False  # as a deferred check of stopping has it
        seen(model, draw(seq_len=2), cache=cache)
        cache.activate_past_recording()
        seen(model, draw(seq_len=2), cache=cache)
        with pytest.raises(ValueError, match="`tokens_to_remove` must be between -2 and 0"):
            cache.crop(-3)

    def test_recording_makes_no_difference(self, model, cache):
        cache.activate_past_recording()
        tokens = draw()
        actual = model(tokens, attention_mask=MASK, cache=cache).last_hidden_state
        close(actual, model(tokens, attention_mask=MASK, use_cache=False).last_hidden_state, 0)

    def test_reset_forgets_what_was_recorded(self, model, cache):
        cache.activate_past_recording()
        seen(model, draw(), cache=cache)
        cache.reset()
        tokens = draw()
        seen(model, tokens, cache=cache)
        cache.crop(-3)
        close(states(cache), states(seen(model, tokens[:, :5])))

    def test_errors(self, model, cache):
        seen(model, draw(), cache=cache)
        with pytest.raises(RuntimeError, match="call `activate_past_recording` before"):
            cache.crop(-1)
        cache.activate_past_recording()
        seen(model, draw(seq_len=2), cache=cache)
        with pytest.raises(ValueError, match=r"`tokens_to_remove` must be between -2 and 0.*got -3"):
            cache.crop(-3)
        with pytest.raises(ValueError, match="`tokens_to_remove` must be zero or negative, got 1"):
            cache.crop(1)

    def test_the_history_must_be_given(self):
        layer = QRNNCacheLayer()
        layer.activate_past_recording()
        with pytest.raises(ValueError, match="`history` must be given"):
            layer.update_conv_state(torch.zeros(2, 3, 1), num_tokens=1)


# --- truncated backpropagation ---------------------------------------------------------------------------------------


class TestGradients:
    CHUNKS = (3, 1, 4)

    def test_flow_within_each_chunk(self, model, cache):
        tokens, weights = draw().split(self.CHUNKS, dim=1), torch.randn(4, 8, 4).double().split(self.CHUNKS, dim=1)
        parameters = list(model.parameters())
        with torch.enable_grad():
            # one backward pass over all chunks: nothing that an earlier one saved may have been written to
            loss = sum(
                (model(x, cache=cache).last_hidden_state * w).sum() for x, w in zip(tokens, weights, strict=True)
            )
            actual = torch.autograd.grad(loss, parameters)
            expected = torch.autograd.grad(self.loss_by_hand(model, tokens, weights), parameters)
        close(actual, expected)

    @staticmethod
    def loss_by_hand(model, tokens, weights):
        """The same with states that are passed from layer to layer and detached by hand."""
        loss, carried = 0.0, [None] * 3
        for x, w in zip(tokens, weights, strict=True):
            hidden = model.embed_tokens(x)
            for index, block in enumerate(model.layers):
                (layer,) = block.mixer.directions
                hidden, state = layer(hidden, carried[index])
                carried[index] = tuple(part.detach() for part in state)
            loss = loss + (hidden * w).sum()
        return loss

    def test_the_state_is_detached(self, model, cache):
        with torch.enable_grad():
            seen(model, draw(), cache=cache)
        assert not any(x.requires_grad for layer in states(cache) for x in layer[:2])

    def test_what_is_read_is_not_written_to(self, model, cache):
        seen(model, draw(), cache=cache)
        with torch.enable_grad():
            read = cache.layers[0].carried_state()
        before = [part.clone() for part in read]
        seen(model, draw(), cache=cache)
        close(list(read), before, 0)


# --- copies and files ------------------------------------------------------------------------------------------------


class TestCopies:
    def through_a_file(self, cache, path):
        torch.save(cache, path)
        return torch.load(path, weights_only=False)

    @pytest.mark.parametrize("recording", [False, True], ids=["plain", "recording"])
    @pytest.mark.parametrize("way", ["deepcopy", "pickle", "file"])
    def test_go_on_as_the_original_does(self, model, cache, way, recording, tmp_path):
        if recording:
            cache.activate_past_recording()
        seen(model, draw(), MASK, cache)
        copied = {
            "deepcopy": copy.deepcopy,
            "pickle": lambda cache: pickle.loads(pickle.dumps(cache)),
            "file": lambda cache: self.through_a_file(cache, tmp_path / "cache.pt"),
        }[way](cache)
        tokens = draw(seq_len=3)
        before = states(copied)
        expected = model(tokens, cache=cache).last_hidden_state
        close(states(copied), before, 0)  # they share no memory
        close(model(tokens, cache=copied).last_hidden_state, expected, 0)
        if recording:
            copied.crop(-4)
            cache.crop(-4)
        close(states(copied), states(cache), 0)


class TestFiles:
    def test_round_trip(self, model, cache, tmp_path):
        seen(model, draw(), MASK, cache)
        save_recurrent_state(cache, tmp_path / "state.safetensors")
        loaded = load_recurrent_state(tmp_path / "state.safetensors", model.config)
        close(states(loaded), states(cache), 0)
        tokens = draw(seq_len=3)
        actual, expected = (model(tokens, cache=c).last_hidden_state for c in (loaded, cache))
        close(actual, expected, 0)

    def test_dtypes_are_kept(self, redraw, tmp_path):
        model = redraw(QRNNModel(make_config())).bfloat16()
        cache = seen(model, draw())
        save_recurrent_state(cache, str(tmp_path / "state.safetensors"))
        loaded = load_recurrent_state(str(tmp_path / "state.safetensors"), model.config)
        close(states(loaded), states(cache), 0)

    def test_device_with_a_number(self, model, cache, tmp_path):
        """As Accelerate names the CPU to each of several processes."""
        seen(model, draw(), cache=cache)
        save_recurrent_state(cache, tmp_path / "state.safetensors")
        loaded = load_recurrent_state(tmp_path / "state.safetensors", model.config, torch.device("cpu", 0))
        close(states(loaded), states(cache), 0)

    def test_rows_that_were_chosen(self, model, cache, tmp_path):
        seen(model, draw(), cache=cache)
        cache.batch_select_indices(torch.tensor([3, 0]))
        save_recurrent_state(cache, tmp_path / "state.safetensors")
        close(states(load_recurrent_state(tmp_path / "state.safetensors", model.config)), states(cache), 0)

    def test_another_process_goes_on(self, redraw, tmp_path):
        model = redraw(QRNNForCausalLM(make_config()))
        tokens = draw(2, 9)
        save_recurrent_state(seen(model, tokens[:, :5]), tmp_path / "state.safetensors")
        model.save_pretrained(tmp_path / "model")
        torch.save(tokens[:, 5:], tmp_path / "tokens.pt")
        program = """if True:
            import torch
            from modeling_qrnn import QRNNForCausalLM, load_recurrent_state
            model = QRNNForCausalLM.from_pretrained("model")
            cache = load_recurrent_state("state.safetensors", model.config)
            with torch.no_grad():
                output = model(torch.load("tokens.pt"), cache=cache)
            torch.save((output.logits, int(cache.get_seq_length())), "result.pt")
        """
        environment = {**os.environ, "PYTHONPATH": str(Path(modeling_qrnn.__file__).parent.parent)}
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True)
        logits, length = torch.load(tmp_path / "result.pt")
        assert length == 9
        close(logits, model(tokens).logits[:, 5:], 1e-5)

    @pytest.mark.parametrize(
        "other",
        [
            {"hidden_size": 8},
            {"embedding_size": 8},
            {"kernel_size": 2},
            {"num_hidden_layers": 2},
            {"connection": "dense"},
            {"tie_word_embeddings": False},
        ],
        ids=str,
    )
    def test_refuses_the_state_of_another_model(self, tmp_path, other):
        save_recurrent_state(seen(QRNNModel(make_config()), draw()), tmp_path / "state.safetensors")
        with pytest.raises(ValueError, match=r"`path` holds the state of another model.*`config` describes"):
            load_recurrent_state(tmp_path / "state.safetensors", make_config(**other))

    @pytest.mark.parametrize("metadata", [None, {"format": "pt"}], ids=["none", "weights"])
    def test_refuses_another_file(self, tmp_path, metadata):
        save_file({"layers.0.conv_state": torch.zeros(1)}, tmp_path / "weights.safetensors", metadata)
        with pytest.raises(ValueError, match="`path` must be a file written by `save_recurrent_state`"):
            load_recurrent_state(tmp_path / "weights.safetensors", make_config())

    def test_refuses_an_empty_cache(self, tmp_path):
        cache = DynamicCache(config=make_config())
        with pytest.raises(ValueError, match=r"`cache` must hold the state of a QRNN.* layer 0 does not"):
            save_recurrent_state(cache, tmp_path / "state.safetensors")

    def test_refuses_the_cache_of_another_kind(self, tmp_path):
        cache = DynamicCache()
        cache.update(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), 0)
        with pytest.raises(ValueError, match="`cache` must hold the state of a QRNN"):
            save_recurrent_state(cache, tmp_path / "state.safetensors")


# --- a search for counterexamples ------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.data())
def test_search_any_history_of_the_cache(data):
    """Chunks, pads, roll-backs, choices of rows and files in any order leave what a run over the rest alone leaves."""
    data.draw(st.random_module())
    kernel_sizes = data.draw(st.lists(st.integers(1, 4), min_size=3, max_size=3))
    model = QRNNModel(make_config(kernel_sizes)).double().eval()
    cache = data.draw(st.sampled_from(list(CACHES.values())))(model.config)
    cache.activate_past_recording()
    tokens, mask, removable = torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 0, dtype=torch.long), 0
    with torch.no_grad():
        for _ in range(data.draw(st.integers(1, 5))):
            length = data.draw(st.integers(1, 4))
            tokens = torch.cat([tokens, draw(len(tokens), length)], dim=1)
            bits = st.lists(st.integers(0, 1), min_size=length, max_size=length)
            new = torch.tensor([data.draw(bits) for _ in tokens])
            mask, removable = torch.cat([mask, new], dim=1), removable + length
            seen(model, tokens[:, -length:], mask, cache)
            if data.draw(st.booleans()):
                removed = data.draw(st.integers(0, removable))
                cache.crop(-removed)
                kept = tokens.shape[1] - removed
                tokens, mask, removable = tokens[:, :kept], mask[:, :kept], 0
            if data.draw(st.booleans()):
                rows = data.draw(st.lists(st.integers(0, len(tokens) - 1), min_size=1, max_size=3))
                cache.batch_select_indices(torch.tensor(rows))
                tokens, mask = tokens[rows], mask[rows]
            if tokens.shape[1] and data.draw(st.booleans()):
                with tempfile.TemporaryDirectory() as folder:
                    save_recurrent_state(cache, f"{folder}/state.safetensors")
                    cache = load_recurrent_state(f"{folder}/state.safetensors", model.config)
                cache.activate_past_recording()
                removable = 0
        if tokens.shape[1]:
            close(states(cache), states(seen(model, tokens, mask)))


def make_causal_model(redraw, **options):
    return redraw(QRNNModel(make_config(**options)).double())


def test_a_batch_of_another_size_may_follow_a_reset(redraw):
    model, ids = make_causal_model(redraw), torch.arange(1, 9).view(2, 4)
    for first, second in ((ids, ids[:1]), (ids[:1], ids)):
        cache = model(first).cache
        cache.reset()
        output = model(second, cache=cache).last_hidden_state
        close(output, model(second).last_hidden_state, 0)
        assert cache.batch_size == len(second)


@pytest.mark.parametrize("n_rows", [1, 2, 3])
def test_a_reset_cache_follows_the_model_to_another_device(redraw, n_rows):
    model, ids = make_causal_model(redraw), torch.arange(1, 9).view(2, 4)
    cache = model(ids).cache
    cache.reset()
    model.to("meta")
    for _ in range(2):
        output = model(torch.ones(n_rows, 3, dtype=torch.long, device="meta"), cache=cache)
        assert output.last_hidden_state.is_meta and cache.layers[0].recurrent_states[0].is_meta


def test_a_cache_may_be_loaded_on_another_device(redraw):
    model, file = make_causal_model(redraw), io.BytesIO()
    torch.save(model(torch.tensor([[1, 2, 3]])).cache, file)
    file.seek(0)
    cache = torch.load(file, map_location="meta", weights_only=False)
    assert model.to("meta")(torch.ones(1, 1, dtype=torch.long, device="meta"), cache=cache).last_hidden_state.is_meta


@pytest.mark.parametrize("enabled", [False, True], ids=["no_grad", "grad"])
def test_a_state_made_in_inference_mode_goes_on_outside(redraw, enabled):
    model, ids = make_causal_model(redraw), torch.tensor([[1, 2, 3, 4]])
    with torch.inference_mode():
        cache = model(ids).cache
    with torch.set_grad_enabled(enabled):
        output = model(ids, cache=cache).last_hidden_state
    close(output.detach(), model(torch.cat([ids, ids], dim=1)).last_hidden_state[:, 4:].detach())


@pytest.mark.parametrize("change", ["reset", "crop", "batch_repeat_interleave", "reorder_cache"])
def test_a_state_made_in_inference_mode_may_be_changed_outside(redraw, change):
    model, ids = make_causal_model(redraw), torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    with torch.inference_mode():
        cache = model(ids[:, :2]).cache
        cache.activate_past_recording()
        model(ids[:, 2:], cache=cache)
    if change == "reset":
        cache.reset()
        rows, expected = ids, ids
    elif change == "crop":
        cache.crop(-1)
        rows, expected = ids, torch.cat([ids[:, :3], ids], dim=1)
    elif change == "batch_repeat_interleave":
        cache.batch_repeat_interleave(2)
        rows = ids.repeat_interleave(2, dim=0)
        expected = torch.cat([rows, rows], dim=1)
    else:
        cache.reorder_cache(torch.tensor([1, 0]))
        rows, expected = ids, torch.cat([ids.flip(0), ids], dim=1)
    for layer in cache.layers:
        layer.stop_recording()
    output = model(rows, cache=cache).last_hidden_state
    close(output.detach(), model(expected).last_hidden_state[:, -4:].detach())
    assert int(cache.get_seq_length()) == expected.shape[1]


@pytest.mark.parametrize("in_inference_mode", [False, True])
def test_all_that_a_compiled_step_writes_has_a_fixed_address(redraw, in_inference_mode):
    # Otherwise no CUDA graph is captured of it.
    model, ids = make_causal_model(redraw), torch.tensor([[1, 2, 3, 4]])
    cache = StaticCache(config=model.config, max_cache_len=16)
    with torch.inference_mode(in_inference_mode):
        model(ids, cache=cache)
    model(ids, cache=cache)
    for layer in cache.layers:
        for tensor in (layer.conv_states[0], layer.recurrent_states[0], layer.cumulative_length):
            assert hasattr(tensor, "_dynamo_static_input_type")


def test_a_state_takes_the_precision_of_what_goes_on(redraw):
    # As when a prompt is read under autocast and the rest without: the narrow window must not round what follows.
    model, ids = redraw(QRNNModel(make_config()), std=0.3), torch.randint(20, (1, 12))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cache = model(ids[:, :4]).cache
    wide = copy.deepcopy(cache)
    for layer in wide.layers:
        layer.conv_states[0] = layer.conv_states[0].float()
    narrow_outputs, wide_outputs = [], []
    for t in range(4, 12):
        narrow_outputs.append(model(ids[:, t, None], cache=cache).last_hidden_state)
        wide_outputs.append(model(ids[:, t, None], cache=wide).last_hidden_state)
    close(torch.cat(narrow_outputs), torch.cat(wide_outputs), 0)


def test_files_without_a_state_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`cache` must hold the state of a QRNN, got DynamicCache"):
        save_recurrent_state(DynamicCache(), tmp_path / "state.safetensors")
    with pytest.raises(ValueError, match=r"got None \(a model returns its state with `use_cache=True`\)"):
        save_recurrent_state(None, tmp_path / "state.safetensors")
    (tmp_path / "text").write_text("no state")
    with pytest.raises(ValueError, match=r"`path` must be a safetensors file, but .*text is none"):
        load_recurrent_state(tmp_path / "text", make_config())
    with pytest.raises(FileNotFoundError):
        load_recurrent_state(tmp_path / "missing", make_config())


def test_random_zoneout_cannot_be_recorded(redraw):
    model = make_causal_model(redraw, zoneout=0.5).train()
    cache = DynamicCache(config=model.config)
    cache.activate_past_recording()
    with pytest.raises(ValueError, match=r"`return_history` must be False while zoneout is random.*eval\(\)"):
        model(torch.tensor([[1, 2, 3]]), cache=cache)


def takes_a_cache(name: str) -> bool:
    forward = getattr(getattr(modeling_qrnn, name), "forward", None)
    return forward is not None and "cache" in inspect.signature(forward).parameters


INPUTS = {
    "input_ids": lambda: torch.ones(2, 8, dtype=torch.long),
    "decoder_input_ids": lambda: torch.ones(2, 8, dtype=torch.long),
    "input_features": lambda: torch.ones(2, 8, 4),
    "past_values": lambda: torch.arange(16.0).view(2, 8, 1),
}
SIZES = {"vocab_size": 20, "hidden_size": 8, "num_mel_bins": 4}


@pytest.mark.parametrize("name", [name for name in modeling_qrnn.__all__ if takes_a_cache(name)])
def test_the_former_name_of_the_cache_is_taken_still(name):
    model_class = getattr(modeling_qrnn, name)
    config = model_class.config_class(**SIZES)
    model, cache = model_class(config).eval(), DynamicCache(config=config)
    if config.is_encoder_decoder:
        cache = EncoderDecoderCache(cache, DynamicCache())
    names = inspect.signature(model.forward).parameters
    with pytest.warns(FutureWarning, match="`past_key_values` is deprecated"):
        model(**{key: make() for key, make in INPUTS.items() if key in names}, past_key_values=cache)
    assert cache.get_seq_length() > 0
