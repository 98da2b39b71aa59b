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
"""`generate` in all its modes: what the cache computes must be what the model computes without one.

All models have wide random parameters; all prompts avoid token 0, the pad, which `generate` would hide; and logits are
compared beside tokens, because the most likely token may survive an error.
"""

import copy
import io
import itertools
import pickle
import shutil

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import BPE
from torch._dynamo.utils import counters
from transformers import CompileConfig, DynamicCache, PreTrainedTokenizerFast, StaticCache, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from drafts import draft_of, guessing_five
from modeling_qrnn import QRNNConfig, QRNNForCausalLM
from offloading import needs_streams


VOCAB_SIZE = 41
PROMPT_LENGTH = 7
NEW_TOKENS = 8

# Each pooling, connection and kernel size at least once. Kernels of 5 and more exceed some prompts and all chunks.
ARCHITECTURES = {
    "plain-f-1": {"pooling": "f", "kernel_size": 1},
    "plain-fo-2": {"pooling": "fo", "kernel_size": 2, "zoneout": 0.3},
    "plain-ifo-1+3": {"pooling": "ifo", "kernel_size": [1, 3], "embedding_size": 6, "tie_word_embeddings": True},
    "dense-ifo-3": {"pooling": "ifo", "kernel_size": 3, "connection": "dense", "norm": "layer_norm"},
    "dense-f-9": {"pooling": "f", "kernel_size": 9, "connection": "dense", "embedding_size": 6},
    "residual-fo-5": {"kernel_size": 5, "connection": "residual", "intermediate_size": 10, "embedding_size": 6},
}


@pytest.fixture(params=ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def any_model(request, redraw):
    return redraw(QRNNForCausalLM(make_config(**request.param)).double())


@pytest.fixture
def model(redraw):
    return redraw(QRNNForCausalLM(make_config()).double())


def make_config(**options) -> QRNNConfig:
    options = {"pooling": "ifo", "kernel_size": 3} | options
    return QRNNConfig(
        **{"vocab_size": VOCAB_SIZE, "hidden_size": 8, "num_hidden_layers": 2, "pad_token_id": 0, **options}
    )


def padded_prompts(pads: tuple[int, ...] = (0, 2, 5), length: int = PROMPT_LENGTH) -> dict[str, torch.Tensor]:
    """One row for each number of pads, all on the left."""
    mask = torch.arange(length) >= torch.tensor(pads)[:, None]
    return {
        "input_ids": torch.randint(1, VOCAB_SIZE, (len(pads), length)).masked_fill(~mask, 0),
        "attention_mask": mask.long(),
    }


def single_prompt(length: int = PROMPT_LENGTH) -> dict[str, torch.Tensor]:
    return padded_prompts(pads=(0,), length=length)


def generate(model: QRNNForCausalLM, prompt: dict[str, torch.Tensor], **options):
    """Tokens and scores, the same random numbers each time."""
    torch.manual_seed(1)
    options = {"do_sample": False, "max_new_tokens": NEW_TOKENS} | options
    return model.generate(**prompt, **options, return_dict_in_generate=True, output_logits=True)


def assert_same(actual, expected, tolerance: float = 1e-6):
    """The logits are those of each step before sampling or beams choose, which `generate` rounds to float32."""
    assert torch.equal(actual.sequences, expected.sequences)
    torch.testing.assert_close(actual.logits, expected.logits, atol=tolerance, rtol=tolerance)


MODES = {
    "greedy": {},
    "sampling": {"do_sample": True},
    "beam": {"num_beams": 3},
    "beam-sampling": {"num_beams": 3, "do_sample": True},
    "sampling-several": {"do_sample": True, "num_return_sequences": 3},
    "beam-several": {"num_beams": 4, "num_return_sequences": 4},
}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
def test_cache_changes_nothing(any_model, mode):
    prompts = padded_prompts()
    assert_same(generate(any_model, prompts, **mode), generate(any_model, prompts, use_cache=False, **mode))


def test_cache_changes_nothing_in_float32(any_model):
    model, prompts = any_model.float(), padded_prompts()
    assert_same(generate(model, prompts), generate(model, prompts, use_cache=False), 1e-5)


CACHES = {
    "static": {"cache_implementation": "static"},
    "offloaded": pytest.param({"cache_implementation": "offloaded"}, marks=needs_streams),
    "offloaded-static": pytest.param({"cache_implementation": "offloaded_static"}, marks=needs_streams),
    "chunks-of-1": {"prefill_chunk_size": 1},
    "chunks-of-3": {"prefill_chunk_size": 3},
    "static-chunks-of-2": {"prefill_chunk_size": 2, "cache_implementation": "static"},
}


@pytest.mark.parametrize("mode", ["greedy", "beam"])
@pytest.mark.parametrize("cache", CACHES.values(), ids=CACHES.keys())
def test_kinds_of_cache_and_prefill(any_model, cache, mode):
    prompts = padded_prompts()
    expected = generate(any_model, prompts, use_cache=False, **MODES[mode])
    assert_same(generate(any_model, prompts, **cache, **MODES[mode]), expected)


@pytest.mark.parametrize("make_cache", [DynamicCache, lambda config: StaticCache(config=config, max_cache_len=99)])
def test_users_own_cache(any_model, make_cache):
    prompts = padded_prompts()
    cache = make_cache(config=any_model.config)
    actual = generate(any_model, prompts, cache=cache)
    assert_same(actual, generate(any_model, prompts, use_cache=False))
    assert actual.cache is cache


@pytest.mark.parametrize("mode", ["greedy", "beam", "sampling-several"])
def test_prompt_of_embeddings(any_model, mode):
    prompts = padded_prompts()
    expected = generate(any_model, prompts, use_cache=False, **MODES[mode])
    embeds = any_model.get_input_embeddings()(prompts["input_ids"])
    prompts = {"inputs_embeds": embeds, "attention_mask": prompts["attention_mask"]}
    actual = generate(any_model, prompts, **MODES[mode])
    assert torch.equal(actual.sequences, expected.sequences[:, PROMPT_LENGTH:])
    torch.testing.assert_close(actual.logits, expected.logits, atol=1e-4, rtol=1e-4)


def test_padded_row_equals_the_row_alone(any_model):
    pads = (0, 2, 5)
    prompts = padded_prompts(pads)
    together = generate(any_model, prompts)
    for row, first in enumerate(pads):
        alone = generate(any_model, {"input_ids": prompts["input_ids"][row : row + 1, first:]})
        assert torch.equal(together.sequences[row, first:], alone.sequences[0])
        for step in range(NEW_TOKENS):
            torch.testing.assert_close(together.logits[step][row], alone.logits[step][0], atol=1e-4, rtol=1e-4)


def continued(model: QRNNForCausalLM, prompts: dict[str, torch.Tensor], change_cache) -> None:
    """A conversation: answer, further question, answer; the second answer is made from the first one's cache."""
    first = generate(model, prompts)
    question = torch.randint(1, VOCAB_SIZE, (len(first.sequences), 3))
    ids = torch.cat([first.sequences, question], dim=1)
    mask = torch.nn.functional.pad(prompts["attention_mask"], (0, ids.shape[1] - PROMPT_LENGTH), value=1)
    whole = {"input_ids": ids, "attention_mask": mask}
    actual = generate(model, whole, cache=change_cache(first.cache))
    assert_same(actual, generate(model, whole, use_cache=False))


def through_pickle(cache: DynamicCache) -> DynamicCache:
    return pickle.loads(pickle.dumps(cache))


def through_torch_save(cache: DynamicCache) -> DynamicCache:
    file = io.BytesIO()
    torch.save(cache, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("change_cache", [lambda cache: cache, copy.deepcopy, through_pickle, through_torch_save])
def test_continuing_from_a_returned_cache(any_model, change_cache):
    continued(any_model, padded_prompts(), change_cache)


def ends_first_row(model: QRNNForCausalLM, prompts: dict[str, torch.Tensor]) -> dict:
    """Options with which `generate` comes to an end in the first row, and does not in the last."""
    first, *_, last = generate(model, prompts, do_sample=True).sequences[:, PROMPT_LENGTH:].tolist()
    return {"do_sample": True, "eos_token_id": next(token for token in first if token not in last)}


@pytest.mark.parametrize(
    "cache", [{}, {"cache_implementation": "static", "disable_compile": True}], ids=["dynamic", "static"]
)
@pytest.mark.parametrize("ends_by", ["end mark", "criterion"])
def test_continuing_rows_that_ended_at_different_places(any_model, cache, ends_by):
    """The pads that follow the end of a row in `generate` are pads to the state, too."""
    prompts = padded_prompts()
    options = ends_first_row(any_model, prompts) | cache
    end = options["eos_token_id"]

    def second_row_is_long(input_ids, scores, **kwargs):
        return torch.tensor([False, input_ids.shape[1] == PROMPT_LENGTH + 4, False])

    if ends_by == "criterion":
        options["stopping_criteria"] = StoppingCriteriaList([second_row_is_long])
    out = generate(any_model, prompts, **options)
    new = out.sequences[:, PROMPT_LENGTH:].tolist()
    ends = [row.index(end) + 1 if end in row else len(row) for row in new]
    if ends_by == "criterion":
        ends[1] = min(ends[1], 4)
    assert ends[0] < ends[2] == NEW_TOKENS

    turn = torch.cat([out.sequences, torch.randint(1, VOCAB_SIZE, (3, 2))], dim=1)
    mask = torch.ones_like(turn)
    mask[:, :PROMPT_LENGTH] = prompts["attention_mask"]
    for row, length in enumerate(ends):
        mask[row, PROMPT_LENGTH + length : out.sequences.shape[1]] = 0
    whole = any_model(turn, attention_mask=mask).logits[:, -2:]
    resumed = any_model(turn[:, -3:], attention_mask=mask, cache=out.cache).logits[:, -2:]
    torch.testing.assert_close(resumed, whole, atol=1e-6, rtol=1e-6)


def test_new_tokens_alone_continue_a_cache(model):
    """A chat front end may pass the new tokens only, under a mask of all tokens."""
    prompt = single_prompt(12)
    cache = model(prompt["input_ids"][:, :9]).cache
    new = {"input_ids": prompt["input_ids"][:, 9:], "attention_mask": prompt["attention_mask"]}
    actual = generate(model, new, cache=cache)
    expected = generate(model, prompt, use_cache=False)
    assert torch.equal(actual.sequences[:, 3:], expected.sequences[:, 12:])
    torch.testing.assert_close(actual.logits, expected.logits, atol=1e-4, rtol=1e-4)


class Collector(BaseStreamer):
    def __init__(self):
        self.tokens, self.ended = [], False

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.ended = True


@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"prompt_lookup_num_tokens": 2}])
def test_stream_is_the_output(model, options):
    streamer = Collector()
    output = generate(model, single_prompt(), streamer=streamer, **options)
    assert streamer.ended
    assert streamer.tokens == output.sequences[0].tolist()


# --- assisted decoding, which takes tokens back ----------------------------------------------------------------------


def test_assisted_by_a_draft(any_model, taken_back):
    # Of another shape too, as real drafts are
    other = guessing_five(QRNNForCausalLM(make_config(kernel_size=2)).eval())
    prompt = single_prompt()
    expected = generate(any_model, prompt, use_cache=False, max_new_tokens=20)
    for draft in (draft_of(any_model), other):
        actual = generate(any_model, prompt, assistant_model=draft, max_new_tokens=20)
        assert torch.equal(actual.sequences, expected.sequences)
    assert max(taken_back) >= 5


def tokenizer_of(merges: list[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """Of the letters a to h, and of some pairs of them."""
    tokens = ["<pad>", *"abcdefgh", *map("".join, merges)]
    core = Tokenizer(BPE({token: number for number, token in enumerate(tokens)}, merges))
    core.decoder = Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>")


@pytest.mark.parametrize("seed", range(3))
def test_assisted_by_a_draft_with_another_tokenizer(seed, redraw, taken_back):
    """It reads the last letters anew, for they may be other tokens by now: more than the last guess is taken back."""
    torch.manual_seed(seed)
    both_ways = [*itertools.product("abcd", "efgh"), *itertools.product("efgh", "abcd")]
    letters, pairs = tokenizer_of([]), tokenizer_of(both_ways)
    model, draft = (
        redraw(QRNNForCausalLM(make_config(vocab_size=len(tokenizer), lm_head_bias=True)))
        for tokenizer in (letters, pairs)
    )
    for each in (model, draft):
        each.lm_head.bias.data[0] = -1e4  # a pad is no letter
    prompt, options = {"input_ids": torch.randint(1, 9, (1, 12))}, {"max_new_tokens": 30, "do_sample": False}
    helper = {"assistant_model": guessing_five(draft), "tokenizer": letters, "assistant_tokenizer": pairs}
    expected = model.generate(**prompt, **options)
    assert torch.equal(model.generate(**prompt, **helper, **options), expected)
    assert max(taken_back) > 0


def test_assisted_by_itself_takes_nothing_back_wrongly(any_model):
    prompt = single_prompt()
    expected = generate(any_model, prompt, use_cache=False, max_new_tokens=20)
    actual = generate(any_model, prompt, assistant_model=copy.deepcopy(any_model), max_new_tokens=20)
    assert torch.equal(actual.sequences, expected.sequences)


@pytest.mark.parametrize("num_tokens", [1, 4])
@pytest.mark.parametrize("cache", [None, "static"])
def test_prompt_lookup(any_model, taken_back, cache, num_tokens):
    # The prompt repeats itself, so that there is something to look up, and wrong guesses to take back.
    ids = torch.randint(1, VOCAB_SIZE, (1, 5)).repeat(1, 3)
    prompt = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    options = {"max_new_tokens": 30}
    expected = generate(any_model, prompt, use_cache=False, **options)
    options |= {"prompt_lookup_num_tokens": num_tokens, "max_matching_ngram_size": 2, "cache_implementation": cache}
    actual = generate(any_model, prompt, **options)
    assert torch.equal(actual.sequences, expected.sequences)
    assert max(taken_back) > 0


@pytest.mark.parametrize("num_seen", [1, 4, PROMPT_LENGTH - 1])
@pytest.mark.parametrize("pads", [0, 2])
@pytest.mark.parametrize("new_tokens_alone", [False, True])
def test_assisted_from_a_carried_cache(any_model, num_seen, pads, new_tokens_alone):
    """The prompt that the cache has seen is not read again, whether it is given again or not."""
    prompt = padded_prompts(pads=(pads,))
    with torch.no_grad():
        cache = any_model(**{name: value[:, :num_seen] for name, value in prompt.items()}).cache
    expected = generate(any_model, prompt, use_cache=False)
    skipped = num_seen if new_tokens_alone else 0
    given = prompt | {"input_ids": prompt["input_ids"][:, skipped:]}
    for options in ({}, {"assistant_model": draft_of(any_model)}, {"prompt_lookup_num_tokens": 2}):
        actual = generate(any_model, given, cache=copy.deepcopy(cache), **options)
        assert torch.equal(actual.sequences, expected.sequences[:, skipped:])
        assert actual.cache.get_seq_length() == expected.sequences.shape[1] - 1


@pytest.mark.parametrize("num_new", [1, 4])
def test_new_tokens_without_the_mask_of_the_old_ones_are_refused(model, num_new):
    with torch.no_grad():
        cache = model(**single_prompt(4)).cache
    with pytest.raises(ValueError, match=f"`cache` has seen 4 tokens, and the prompt with its mask has {num_new}:"):
        model.generate(torch.ones(1, num_new, dtype=torch.long), cache=cache)
    assert cache.get_seq_length() == 4


def test_assisted_decoding_has_no_attentions(model):
    with pytest.raises(ValueError, match="`output_attentions` must be False in assisted decoding"):
        generate(model, single_prompt(), prompt_lookup_num_tokens=2, output_attentions=True)


def test_assisted_from_a_carried_cache_has_no_hidden_states(model):
    prompt = single_prompt()
    with torch.no_grad():
        cache = model(prompt["input_ids"][:, :4]).cache
    with pytest.raises(
        ValueError, match="`output_hidden_states` must be False in assisted decoding that goes on from"
    ):
        generate(model, prompt, cache=cache, prompt_lookup_num_tokens=2, output_hidden_states=True)


def test_the_former_name_of_the_cache_in_prepared_inputs(model):
    prompt = single_prompt()
    with torch.no_grad():
        cache = model(**prompt).cache
    inputs = model.prepare_inputs_for_generation(prompt["input_ids"], 1, past_key_values=cache)
    assert inputs["cache"] is cache and inputs["input_ids"].shape == (1, 1)


def test_assisted_without_a_cache_is_refused(model):
    with pytest.raises(RuntimeError, match="Assisted decoding requires a cache"):
        generate(model, single_prompt(), use_cache=False, prompt_lookup_num_tokens=2)


def test_early_exit_is_refused(model):
    with pytest.raises(ValueError, match="`assistant_early_exit` must be None for a QRNN, got 1"):
        generate(model, single_prompt(), assistant_early_exit=1)
    assert model.config.num_hidden_layers == 2


def test_assisted_prompt_may_be_padded(model):
    prompt = padded_prompts(pads=(3,))
    expected = generate(model, prompt, use_cache=False, max_new_tokens=20)
    for options in ({"assistant_model": draft_of(model)}, {"prompt_lookup_num_tokens": 2}):
        actual = generate(model, prompt, max_new_tokens=20, **options)
        assert torch.equal(actual.sequences, expected.sequences)


def test_assisted_sampling_is_reproducible(model):
    prompt, options = single_prompt(), {"do_sample": True, "max_new_tokens": 20}
    first, second = (generate(model, prompt, assistant_model=draft_of_seed(model), **options) for _ in range(2))
    assert first.sequences.shape == (1, PROMPT_LENGTH + 20)
    assert torch.equal(first.sequences, second.sequences)


def draft_of_seed(model: QRNNForCausalLM) -> QRNNForCausalLM:
    torch.manual_seed(2)
    return draft_of(model)


def test_cache_of_assisted_decoding_can_be_continued(model):
    """After the last roll-back the cache holds the state at the last token but one, as after plain decoding."""
    prompt = single_prompt()
    plain = generate(model, prompt)
    assisted = generate(model, prompt, assistant_model=draft_of(model))
    for layer, expected in zip(assisted.cache.layers, plain.cache.layers, strict=True):
        torch.testing.assert_close(layer.recurrent_states[0], expected.recurrent_states[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(layer.conv_states[0], expected.conv_states[0], atol=1e-4, rtol=1e-4)
        assert layer.get_seq_length() == expected.get_seq_length()


# --- compiled decoding -----------------------------------------------------------------------------------------------


@pytest.fixture
def count_compilations():
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


def compiled(**options) -> dict:
    config = CompileConfig(fullgraph=True, **options)
    config._compile_all_devices = True  # by itself, `generate` compiles for accelerators alone
    return {"cache_implementation": "static", "compile_config": config}


# A sample, for a compilation takes seconds
@pytest.mark.parametrize("name", ["plain-f-1", "residual-fo-5"])
def test_compiled_decoding_is_one_graph(name, redraw, count_compilations):
    model = redraw(QRNNForCausalLM(make_config(**ARCHITECTURES[name])))
    for prompts in (padded_prompts(), padded_prompts(pads=(0, 4, 1), length=11)):
        expected = generate(model, prompts, use_cache=False)
        assert_same(generate(model, prompts, **compiled(backend="aot_eager")), expected)
    assert count_compilations() == 1
    assert not counters["graph_break"]


def test_compiled_decoding_without_pads(model, count_compilations):
    for length in (PROMPT_LENGTH, 11):
        prompt = single_prompt(length)
        expected = generate(model, prompt, use_cache=False)
        assert_same(generate(model, prompt, **compiled(backend="aot_eager")), expected)
    assert count_compilations() == 1
    assert not counters["graph_break"]


def test_compiled_decoding_where_a_row_ends_is_one_graph(model, count_compilations):
    prompts = padded_prompts()
    options = ends_first_row(model, prompts)
    expected = generate(model, prompts, use_cache=False, **options)
    assert_same(generate(model, prompts, **options, **compiled(backend="aot_eager")), expected)
    assert count_compilations() == 1


@pytest.mark.slow
@pytest.mark.inductor
@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler")
def test_compiled_decoding_with_the_default_backend(model, count_compilations):
    prompts = padded_prompts()
    assert_same(generate(model, prompts, **compiled()), generate(model, prompts, use_cache=False))
    assert count_compilations() == 1


# --- export ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "names"), [("plain-fo-2", ["input_ids"]), ("dense-ifo-3", None), ("plain-f-1", None)]
)
def test_exported_model_takes_any_length(name, names, redraw):
    model = redraw(QRNNForCausalLM(make_config(**ARCHITECTURES[name])))

    def inputs(batch_size: int, length: int) -> dict[str, torch.Tensor]:
        prompts = padded_prompts(pads=tuple(range(batch_size)), length=length)
        return {name: prompts[name] for name in names or prompts}

    sample = inputs(2, 5)
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    shapes = dict.fromkeys(sample, sizes) | {"use_cache": None}
    program = torch.export.export(model, (), {**sample, "use_cache": False}, dynamic_shapes=shapes).module()
    for batch_size, length in ((2, 5), (3, 9), (4, 6)):
        batch = inputs(batch_size, length)
        actual = program(**batch, use_cache=False).logits
        torch.testing.assert_close(actual, model(**batch).logits, atol=1e-5, rtol=1e-5)


class DecodingStep(torch.nn.Module):
    """One token with the state as plain tensors, the form in which a server without Python keeps it."""

    def __init__(self, model: QRNNForCausalLM):
        super().__init__()
        self.model = model

    def forward(self, token, conv_states, recurrent_states):
        cache = DynamicCache(config=self.model.config)
        for layer, conv_state, recurrent_state in zip(cache.layers, conv_states, recurrent_states, strict=True):
            layer.update_conv_state(conv_state, num_tokens=1)
            layer.update_recurrent_state(recurrent_state)
        logits = self.model(token, cache=cache).logits[:, -1]
        states = (
            [layer.conv_states[0] for layer in cache.layers],
            [layer.recurrent_states[0] for layer in cache.layers],
        )
        return logits, *states


@pytest.mark.parametrize("name", ["plain-f-1", "residual-fo-5"])
def test_exported_decoding_step_generates(name, redraw):
    model = redraw(QRNNForCausalLM(make_config(**ARCHITECTURES[name])))
    prompt = single_prompt()
    expected = generate(model, prompt)
    with torch.no_grad():
        output = model(**prompt)
        layers = output.cache.layers
        states = [layer.conv_states[0] for layer in layers], [layer.recurrent_states[0] for layer in layers]
        token = output.logits[:, -1].argmax(-1, keepdim=True)
        step = torch.export.export(DecodingStep(model), (token, *states)).module()
        tokens = [token]
        while len(tokens) < NEW_TOKENS:
            logits, *states = step(tokens[-1], *states)
            tokens.append(logits.argmax(-1, keepdim=True))
    assert torch.equal(torch.cat(tokens, dim=1), expected.sequences[:, PROMPT_LENGTH:])


# --- memory and dtype ------------------------------------------------------------------------------------------------


def bytes_of(cache: DynamicCache) -> int:
    tensors = [value for layer in cache.layers for value in vars(layer).values()]
    tensors = [tensor for value in tensors for tensor in (value.values() if isinstance(value, dict) else [value])]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors if isinstance(tensor, torch.Tensor))


def test_memory_is_constant_in_the_number_of_tokens(any_model):
    few, many = (generate(any_model, single_prompt(), max_new_tokens=count).cache for count in (2, 200))
    assert many.get_seq_length() == PROMPT_LENGTH + 199
    assert bytes_of(few) == bytes_of(many) > 0


def test_16_bit_model_keeps_its_state_in_32(model):
    model = model.to(torch.bfloat16)
    prompts = padded_prompts()
    output = generate(model, prompts)
    assert output.sequences.shape == (3, PROMPT_LENGTH + NEW_TOKENS)
    assert {layer.recurrent_states[0].dtype for layer in output.cache.layers} == {torch.float32}
    assert {layer.conv_states[0].dtype for layer in output.cache.layers} == {torch.bfloat16}
    assert model(**prompts).logits.dtype == torch.bfloat16


# --- what is refused -------------------------------------------------------------------------------------------------


def test_quantized_cache_is_refused(model):
    with pytest.raises(ValueError, match=r"`cache_implementation` must not be 'quantized'.*use 'static'"):
        model.generate(**single_prompt(), cache_implementation="quantized")


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}], ids=str)
def test_prompts_that_end_in_pads_are_refused(model, options):
    """The next token would be told from a pad."""
    prompts = {name: part.flip(1) for name, part in padded_prompts().items()}
    with pytest.raises(
        ValueError, match=r"`attention_mask` must not end in pads, .* pads on its left; leave out rows that have"
    ):
        model.generate(**prompts, max_new_tokens=2, **options)
    with pytest.raises(ValueError, match=r"made from `pad_token_id`"):
        model.generate(prompts["input_ids"], max_new_tokens=2, **options)
    in_between = torch.cat([prompts["attention_mask"], torch.ones(3, 1)], dim=1)
    ids = torch.cat([prompts["input_ids"], torch.ones(3, 1, dtype=torch.long)], dim=1)
    if "prompt_lookup_num_tokens" not in options:  # of a single row
        assert model.generate(ids, attention_mask=in_between, max_new_tokens=2).shape == (3, PROMPT_LENGTH + 3)


def test_embeddings_go_on_from_a_cache_with_the_whole_text(model):
    """Of fewer Transformers would cut off as many as the cache has seen."""
    prompt = single_prompt()
    embeds, mask = model.get_input_embeddings()(prompt["input_ids"]).detach(), prompt["attention_mask"]
    expected = model.generate(**prompt, do_sample=False, max_new_tokens=NEW_TOKENS)[:, PROMPT_LENGTH:]

    def go_on(**options):
        cache = model(prompt["input_ids"][:, :4]).cache
        return model.generate(cache=cache, do_sample=False, max_new_tokens=NEW_TOKENS, **options)

    assert torch.equal(go_on(inputs_embeds=embeds, attention_mask=mask), expected)
    assert torch.equal(go_on(input_ids=prompt["input_ids"][:, 4:], attention_mask=mask)[:, 3:], expected)
    with pytest.raises(ValueError, match=r"`inputs_embeds` must be of the whole text .* there are 3, .* mask has 7"):
        go_on(inputs_embeds=embeds[:, 4:], attention_mask=mask)


def test_embeddings_are_not_read_in_pieces(model):
    embeds = model.get_input_embeddings()(single_prompt()["input_ids"])
    with pytest.raises(ValueError, match="`prefill_chunk_size` must be None with `inputs_embeds`"):
        model.generate(inputs_embeds=embeds, prefill_chunk_size=3, max_new_tokens=2)


def test_embeddings_beside_tokens_are_refused_in_assisted_decoding(model):
    """Which would not read the tokens that it adds."""
    prompt, assisted = single_prompt(), {"prompt_lookup_num_tokens": 3, "max_new_tokens": NEW_TOKENS}
    embeds = model.get_input_embeddings()(prompt["input_ids"]).detach()
    message = "`inputs_embeds` must be None in assisted decoding"
    with pytest.raises(ValueError, match=message):
        model.generate(**prompt, inputs_embeds=embeds, **assisted)
    with pytest.raises(ValueError, match=message):
        model.generate(inputs_embeds=embeds, assistant_model=QRNNForCausalLM(make_config()).double())
    alone = model.generate(inputs_embeds=embeds, attention_mask=prompt["attention_mask"], **assisted)
    assert torch.equal(alone, model.generate(**prompt, do_sample=False, max_new_tokens=NEW_TOKENS)[:, PROMPT_LENGTH:])


def test_continuous_batching_is_refused(model):
    message = "Use `generate` with a left-padded batch instead"
    with pytest.raises(ValueError, match=message):
        model.generate_batch([[1, 2, 3]])
    with pytest.raises(ValueError, match=message):
        model.generate(**single_prompt(), cache_implementation="paged")


def filled_cache(batch_size: int = 1, **options) -> DynamicCache:
    model = QRNNForCausalLM(make_config(**options))
    return model(torch.ones(batch_size, 2, dtype=torch.long)).cache


FOREIGN_CACHES = {
    "no-layers": lambda: DynamicCache(),
    "one-layer": lambda: DynamicCache(config=QRNNConfig(num_hidden_layers=1)),
    "other-kernel": lambda: filled_cache(kernel_size=5),
    "other-embedding": lambda: filled_cache(embedding_size=6),
    "other-batch": lambda: filled_cache(batch_size=2),
    "not-a-cache": lambda: [torch.zeros(1, 8)],
}


@pytest.mark.parametrize("make_cache", FOREIGN_CACHES.values(), ids=FOREIGN_CACHES.keys())
def test_foreign_cache_is_refused(model, make_cache):
    with pytest.raises(ValueError, match="`cache`"):
        model(torch.ones(1, 1, dtype=torch.long), cache=make_cache())


def test_recording_ends_with_assisted_decoding(model):
    prompt = torch.tensor([[3, 4, 5, 3, 4]])
    options = {"do_sample": False, "return_dict_in_generate": True, "pad_token_id": 0}
    assisted = model.generate(prompt, max_new_tokens=6, prompt_lookup_num_tokens=2, **options)
    cache = copy.deepcopy(assisted.cache)
    with torch.no_grad():
        model(prompt, cache=cache)
    assert all(layer.recurrent_history is None and layer.conv_history is None for layer in cache.layers)
    cache = assisted.cache
    plain = model.generate(assisted.sequences, cache=cache, max_new_tokens=20, **options)
    assert all(layer.recurrent_history is None and layer.conv_history is None for layer in cache.layers)
    expected = model.generate(prompt, max_new_tokens=26, use_cache=False, **options)
    assert torch.equal(plain.sequences, expected.sequences)
