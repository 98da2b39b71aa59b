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
"""The encoder-decoder: its equations against a plain loop over steps, the laws, `generate`, training and saving."""

import copy
import math
import re
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from huggingface_hub.errors import StrictDataclassClassValidationError
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch._dynamo.utils import counters
from transformers import (
    AutoModel,
    AutoModelForSeq2SeqLM,
    CompileConfig,
    DataCollatorForSeq2Seq,
    DynamicCache,
    EncoderDecoderCache,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

from drafts import draft_of
from modeling_qrnn import (
    QRNNForConditionalGeneration,
    QRNNSeq2SeqConfig,
    QRNNSeq2SeqModel,
    TargetLengthLogitsProcessor,
)
from modeling_qrnn.modeling_qrnn_seq2seq import QRNNSeq2SeqEncoder, shift_tokens_right
from offloading import needs_streams


VOCAB_SIZE = 23
PAD, START, END = 0, 1, 2

MODELS = {
    "paper": {"encoder_layers": 3, "decoder_layers": 3},
    "paper, forwards, f": {"pooling": "f", "encoder_reverse": False, "encoder_kernel_size": [3, 1], "kernel_size": 1},
    "paper, both ways, ifo": {"pooling": "ifo", "encoder_bidirectional": True, "kernel_size": [3, 1], "zoneout": 0.2},
    "dense, all layers attend, tied": {
        "connection": "dense",
        "attention_layers": "all",
        "num_attention_heads": 1,
        "embedding_size": 6,
        "tie_word_embeddings": True,
        "norm": "layer_norm",
    },
    "residual": {
        "connection": "residual",
        "intermediate_size": 10,
        "attention_layers": "all",
        "num_attention_heads": 2,
        "embedding_size": 6,
        "encoder_bidirectional": True,
        "encoder_kernel_size": 4,
        "kernel_size": 3,
    },
    "deep encoder": {"encoder_layers": 3, "connection": "residual", "pooling": "f", "tie_word_embeddings": True},
    "deep decoder": {"encoder_layers": 1, "decoder_layers": 3, "candidate_activation": "relu"},
}
every_model = pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)

SOURCE_MASK = torch.tensor(
    [[1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0], [1, 0, 1, 1, 0, 0, 1]]
)
TARGET_MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 0, 1, 0, 1]])


def make_config(**options) -> QRNNSeq2SeqConfig:
    sizes = {"vocab_size": VOCAB_SIZE, "hidden_size": 8, "encoder_layers": 2, "decoder_layers": 2}
    tokens = {"pad_token_id": PAD, "decoder_start_token_id": START, "eos_token_id": END}
    return QRNNSeq2SeqConfig(**(sizes | tokens | options))


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(3, VOCAB_SIZE, shape)


def make_batch() -> dict[str, torch.Tensor]:
    """Four rows with pads on any side of the source and of the target."""
    return {
        "input_ids": tokens(*SOURCE_MASK.shape),
        "attention_mask": SOURCE_MASK,
        "decoder_input_ids": tokens(*TARGET_MASK.shape),
        "decoder_attention_mask": TARGET_MASK,
    }


def rows_alone(batch: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Each row of a batch without its pads."""
    return [
        {
            "input_ids": batch["input_ids"][row][SOURCE_MASK[row] != 0][None],
            "decoder_input_ids": batch["decoder_input_ids"][row][TARGET_MASK[row] != 0][None],
        }
        for row in range(len(SOURCE_MASK))
    ]


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def model(request, redraw):
    return redraw(QRNNSeq2SeqModel(make_config(**request.param)).double())


# --- the law: equations 7 and 8, one step after the other ------------------------------------------------------------


def taps_of(window: list[torch.Tensor | None], like: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.zeros_like(like) if tap is None else tap for tap in window])


def step(layer, window: torch.Tensor, c: torch.Tensor, gate_bias=0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """The next state, and the output gate (one where there is none), by equations 3 to 5 with what 7 adds."""
    gates = (layer.gate_proj(window) + gate_bias).split(layer.hidden_size)
    z = {"tanh": torch.tanh, "relu": torch.relu}[layer.candidate_activation](gates[0])
    f = torch.sigmoid(gates[1])
    i = torch.sigmoid(gates[3]) if layer.pooling == "ifo" else 1 - f
    f, i = 1 - (1 - layer.zoneout) * (1 - f), (1 - layer.zoneout) * i
    o = torch.sigmoid(gates[2]) if layer.pooling != "f" else torch.ones_like(f)
    return f * c + i * z, o


def run_encoder_layer(layer, inputs: list[torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What one direction puts out at each token of the source, in the source's order, and what it put out last."""
    inputs = inputs[::-1] if layer.reverse else inputs
    before, after = layer.kernel_size // 2, (layer.kernel_size - 1) // 2
    c, outputs = inputs[0].new_zeros(layer.hidden_size), []
    for t in range(len(inputs)):
        window = [inputs[s] if 0 <= s < len(inputs) else None for s in range(t - before, t + after + 1)]
        c, o = step(layer, taps_of(window, inputs[0]), c)
        outputs.append(o * c)
    return (outputs[::-1] if layer.reverse else outputs), outputs[-1]


def connected(config, block, is_last: bool, x: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
    if config.connection == "dense" and not is_last:
        return torch.cat([x, mixed])
    if config.connection == "residual":
        x = x + block.out_proj(mixed)
        return x + block.mlp(block.mlp_norm(x)) if config.intermediate_size else x
    return mixed


def run_encoder(encoder, input_ids: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The output at each token of one source, and each layer's last state."""
    xs, last_states = [encoder.embed_proj(embed) for embed in encoder.embed_tokens(input_ids)], []
    for index, block in enumerate(encoder.layers):
        normed = [block.input_norm(x) for x in xs]
        ways = [run_encoder_layer(layer, normed) for layer in block.mixer.directions]
        mixed = [torch.cat(parts) for parts in zip(*(outputs for outputs, _ in ways), strict=True)]
        last_states.append(torch.cat([last for _, last in ways]))
        is_last = index == len(encoder.layers) - 1
        xs = [connected(encoder.config, block, is_last, x, h) for x, h in zip(xs, mixed, strict=True)]
    return [encoder.norm(x) for x in xs], last_states


def attend(attention, c: torch.Tensor, o: torch.Tensor, source: list[torch.Tensor]) -> torch.Tensor:
    """Equation 8 for one step."""
    width = len(c) // attention.num_heads
    query, keys, values = c, source, source
    if attention.is_projected:
        query = attention.q_proj(c)
        keys, values = ([proj(h) for h in source] for proj in (attention.k_proj, attention.v_proj))
    context = []
    for head in range(attention.num_heads):
        part = slice(head * width, (head + 1) * width)
        scores = [(query[part] * key[part]).sum() for key in keys]
        if attention.is_projected:
            scores = [score / math.sqrt(width) for score in scores]
        alpha = torch.stack(scores).softmax(0)
        context.append(sum(a * value[part] for a, value in zip(alpha, values, strict=True)))
    k = torch.cat(context)
    return o * (attention.context_proj(k) + attention.state_proj(c))


def run_by_steps(model: QRNNSeq2SeqModel, input_ids: torch.Tensor, decoder_input_ids: torch.Tensor) -> torch.Tensor:
    """The decoder's output for one source and one target without pads, `(target_len, hidden)`."""
    source, last_states = run_encoder(model.encoder, input_ids)
    decoder, config = model.decoder, model.config
    depth = len(decoder.layers)
    states = [source[0].new_zeros(config.hidden_size) for _ in range(depth)]
    seen: list[list[torch.Tensor]] = [[] for _ in range(depth)]
    outputs = []
    for embed in model.encoder.embed_tokens(decoder_input_ids):
        x = decoder.embed_proj(embed)
        for index, block in enumerate(decoder.layers):
            (layer,) = block.mixer.directions
            seen[index].append(block.input_norm(x))
            window = [None] * layer.kernel_size + seen[index]
            encoder_state = last_states[max(0, index + len(last_states) - depth)]
            gate_bias = block.mixer.source_proj(encoder_state)
            window = taps_of(window[-layer.kernel_size :], seen[index][0])
            c, o = step(layer, window, states[index], gate_bias)
            states[index] = c
            has_attention = config.attention_layers == "all" or index == depth - 1
            h = attend(block.mixer.attention, c, o, source) if has_attention else o * c
            x = connected(config, block, index == depth - 1, x, h)
        outputs.append(decoder.norm(x))
    return torch.stack(outputs)


def test_the_equations(model):
    """Values and gradients, of rows with pads anywhere against rows without."""
    batch = make_batch()
    output = model(**batch).last_hidden_state
    weights = torch.randn_like(output)
    (output * weights).sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    assert not output[TARGET_MASK == 0].any()
    for row, alone in enumerate(rows_alone(batch)):
        expected = run_by_steps(model, alone["input_ids"][0], alone["decoder_input_ids"][0])
        close(output[row, TARGET_MASK[row] != 0], expected)
        (expected * weights[row, TARGET_MASK[row] != 0]).sum().backward()
    for name, parameter in model.named_parameters():
        scale = parameter.grad.abs().max()
        assert scale > 0, name
        close(gradients[name] / scale, parameter.grad / scale, 1e-10)


@pytest.mark.parametrize("heads", [None, 4])
def test_attention_is_learned_soon(heads):
    """Word for word: queries and keys that begin with small weights would not get there for thousands of steps."""
    config = {"hidden_size": 64, "intermediate_size": 96, "connection": "residual", "encoder_bidirectional": True}
    config |= {"encoder_layers": 1, "decoder_layers": 1, "num_attention_heads": heads, "tie_word_embeddings": True}
    torch.manual_seed(0)
    model = QRNNForConditionalGeneration(make_config(vocab_size=50, decoder_start_token_id=1, **config))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(150):
        source = torch.randint(2, 26, (32, 8))
        loss = model(source, labels=source + 24).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1.5  # a decoder that does not look back ends at log(24) = 3.2


def test_each_gate_has_a_matrix_of_its_own_for_the_source():
    model = QRNNSeq2SeqModel(make_config(pooling="ifo"))
    for block in model.decoder.layers:
        parts = block.mixer.source_proj.weight.split(8)
        assert len(parts) == 4
        assert not any(torch.equal(one, two) for one, two in combinations(parts, 2))


def test_reversal_is_that_of_the_source_without_its_pads(redraw):
    backwards = redraw(QRNNSeq2SeqModel(make_config(encoder_kernel_size=4)).double())
    forwards = QRNNSeq2SeqModel(make_config(encoder_kernel_size=4, encoder_reverse=False)).double().eval()
    forwards.load_state_dict(backwards.state_dict())
    batch = make_batch()
    reversed_source = torch.full_like(batch["input_ids"], PAD)
    for row, is_real in enumerate(SOURCE_MASK != 0):
        reversed_source[row, is_real] = batch["input_ids"][row, is_real].flip(0)
    actual = backwards(**batch)
    expected = forwards(**(batch | {"input_ids": reversed_source}))
    close(actual.last_hidden_state, expected.last_hidden_state)
    for row, is_real in enumerate(SOURCE_MASK != 0):  # the encoder's outputs stay in the order of the source
        states = (output.encoder_last_hidden_state[row, is_real] for output in (actual, expected))
        close(next(states), next(states).flip(0))


# --- laws ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("lengths", [(1,) * 5, (2, 1, 2), (4, 1)], ids=str)
def test_chunks_of_the_target_make_no_difference(model, lengths):
    batch = make_batch()
    whole = model(**batch).last_hidden_state
    outputs, cache, end = [], None, 0
    for length in lengths:
        end += length
        chunk = {
            "decoder_input_ids": batch["decoder_input_ids"][:, end - length : end],
            "decoder_attention_mask": TARGET_MASK[:, :end],
        }
        output = model(**(batch | chunk), cache=cache)
        outputs.append(output.last_hidden_state)
        cache = output.cache
    close(torch.cat(outputs, dim=1), whole)


@torch.no_grad()
def test_the_future_of_the_target_is_never_seen(model):
    batch = make_batch()
    batch.pop("decoder_attention_mask")
    whole = model(**batch).last_hidden_state
    for t in range(4):
        ids = batch["decoder_input_ids"].clone()
        ids[:, t + 1 :] = (ids[:, t + 1 :] + 1) % VOCAB_SIZE
        changed = model(**(batch | {"decoder_input_ids": ids})).last_hidden_state
        close(changed[:, : t + 1], whole[:, : t + 1], 0)
        assert (changed[:, t + 1 :] != whole[:, t + 1 :]).any(dim=2).all()


@torch.no_grad()
def test_all_of_the_source_is_seen(model):
    batch = {name: tensor for name, tensor in make_batch().items() if "mask" not in name}
    first = model(**batch).last_hidden_state[:, 0]
    for s in range(SOURCE_MASK.shape[1]):
        ids = batch["input_ids"].clone()
        ids[:, s] = (ids[:, s] + 1) % VOCAB_SIZE
        assert (model(**(batch | {"input_ids": ids})).last_hidden_state[:, 0] != first).any(dim=1).all()


@torch.no_grad()
def test_pads_hold_anything(model):
    batch = make_batch()
    embed = model.get_input_embeddings()
    source, target = embed(batch.pop("input_ids")), embed(batch.pop("decoder_input_ids"))
    expected = model(**batch, inputs_embeds=source, decoder_inputs_embeds=target).last_hidden_state
    source = source.masked_fill(SOURCE_MASK[..., None] == 0, torch.nan)
    target = target.masked_fill(TARGET_MASK[..., None] == 0, torch.nan)
    close(model(**batch, inputs_embeds=source, decoder_inputs_embeds=target).last_hidden_state, expected, 0)


def test_a_source_of_pads_alone_is_no_source(model):
    """There is nothing to attend to: no state, no context, and nothing infinite, forward or backward."""
    batch = make_batch()
    batch["attention_mask"] = SOURCE_MASK.clone()
    batch["attention_mask"][1] = 0
    output = model(**batch)
    assert not output.encoder_last_hidden_state[1].any()
    other = model(**(batch | {"input_ids": tokens(*SOURCE_MASK.shape)})).last_hidden_state
    close(output.last_hidden_state[1], other[1], 0)
    output.last_hidden_state.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@torch.no_grad()
@pytest.mark.parametrize("rows", [[3, 2, 1, 0], [2], [3, 0, 0, 1]], ids=str)
def test_the_batch_makes_no_difference(model, rows):
    batch = make_batch()
    whole = model(**batch).last_hidden_state
    close(model(**{name: tensor[rows] for name, tensor in batch.items()}).last_hidden_state, whole[rows])


def test_training_over_chunks_stops_at_the_chunk(model):
    """The cache holds no graph: each chunk backpropagates through itself, the first one into the source too."""
    batch = make_batch()
    batch.pop("decoder_attention_mask")
    ids, cache = batch.pop("decoder_input_ids"), None
    for chunk in ids.split(2, dim=1):
        output = model(**batch, decoder_input_ids=chunk, cache=cache)
        output.last_hidden_state.square().sum().backward()
        cache = output.cache
    assert not any(layer.keys.requires_grad for layer in cache.cross_attention_cache.layers if layer.is_initialized)


# --- inputs and outputs ----------------------------------------------------------------------------------------------


def test_outputs():
    config = make_config(attention_layers="all", num_attention_heads=2, decoder_layers=3)
    model = QRNNForConditionalGeneration(config).eval()
    batch = make_batch()
    plain = model(**batch)
    assert set(plain) == {"logits", "cache", "encoder_last_hidden_state"}
    full = model(**batch, output_hidden_states=True, output_attentions=True)
    assert [states.shape for states in full.encoder_hidden_states] == [(4, 7, 8)] * 3
    assert [states.shape for states in full.decoder_hidden_states] == [(4, 5, 8)] * 4
    assert [weights.shape for weights in full.cross_attentions] == [(4, 2, 5, 7)] * 3
    assert torch.equal(full.encoder_hidden_states[-1], full.encoder_last_hidden_state)
    for weights in full.cross_attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(4, 2, 5))
        assert not weights.transpose(1, 3)[SOURCE_MASK == 0].any()
    unnamed = model(**batch, return_dict=False)
    assert isinstance(unnamed, tuple)
    assert torch.equal(unnamed[0], plain.logits)


def test_encoder_outputs_in_place_of_the_source(model):
    batch = make_batch()
    expected = model(**batch).last_hidden_state
    source = {name: batch.pop(name) for name in ("input_ids",)}
    encoded = model.get_encoder()(**source, attention_mask=SOURCE_MASK)
    for outputs in (encoded, encoded.to_tuple(), list(encoded.to_tuple()), copy.copy(encoded)):
        assert torch.equal(model(**batch, encoder_outputs=outputs).last_hidden_state, expected)


def test_logits_to_keep(redraw):
    model, batch = redraw(QRNNForConditionalGeneration(make_config())), make_batch()
    logits = model(**batch).logits
    torch.testing.assert_close(model(**batch, logits_to_keep=2).logits, logits[:, -2:])


def test_cache_is_returned_when_asked_for():
    model, batch = QRNNForConditionalGeneration(make_config()), make_batch()
    assert isinstance(model(**batch).cache, EncoderDecoderCache)
    assert model(**batch, use_cache=False).cache is None
    model.config.use_cache = False
    assert model(**batch).cache is None


def cache_of(batch_size: int = 4, **options) -> EncoderDecoderCache:
    model = QRNNSeq2SeqModel(make_config(**options))
    return model(tokens(batch_size, 3), decoder_input_ids=tokens(batch_size, 2)).cache


BAD_INPUTS = {
    "token": ({"input_ids": torch.full((4, 7), VOCAB_SIZE)}, "`input_ids` must lie between 0 and vocab_size - 1 = 22"),
    "target-token": (
        {"decoder_input_ids": torch.full((4, 5), -1)},
        "`decoder_input_ids` must lie between 0 and vocab_size - 1 = 22",
    ),
    "no-source": ({"input_ids": torch.ones(4, 0, dtype=torch.long)}, "`input_ids` .* at least one token"),
    "no-target": (
        {"decoder_input_ids": None},
        "exactly one of `decoder_input_ids` and `decoder_inputs_embeds`, got neither",
    ),
    "two-targets": (
        {"decoder_inputs_embeds": torch.zeros(4, 5, 8)},
        "exactly one of `decoder_input_ids` and `decoder_inputs_embeds`, got both",
    ),
    "target-embeds": (
        {"decoder_input_ids": None, "decoder_inputs_embeds": torch.zeros(4, 5, 7)},
        "`decoder_inputs_embeds` must have the shape .*embedding_size=8.* got (4, 5, 7)",
    ),
    "source-mask": (
        {"attention_mask": torch.ones(4, 9)},
        "`attention_mask` must have the shape (batch, source_len) = (4, 7), got (4, 9)",
    ),
    "target-mask": (
        {"decoder_attention_mask": torch.ones(4, 3)},
        "`attention_mask` must have the shape (batch, at least seq_len) = (4, >= 5), got (4, 3)",
    ),
    "batches": (
        {"decoder_input_ids": torch.ones(3, 5, dtype=torch.long), "decoder_attention_mask": None},
        "`encoder_outputs` must hold a `last_hidden_state` of the shape .* (3, any, 8), got (4, 7, 8)",
    ),
    "states-alone": ({"encoder_outputs": (torch.zeros(4, 7, 8),)}, "`encoder_outputs` must be what .*get_encoder()"),
    "states-of-deeper": (
        {"encoder_outputs": (torch.zeros(4, 7, 8), torch.zeros(4, 3, 8))},
        "`encoder_outputs` must hold `last_states` .* (4, 2, 8), got (4, 3, 8)",
    ),
    "cache-of-one": ({"cache": DynamicCache()}, "`cache` must be an `EncoderDecoderCache`, .* got DynamicCache"),
    "cache-of-deeper": ({"cache": cache_of(decoder_layers=3)}, "`cache` must have 2 layers of the kind 'qrnn_v1'"),
    "cache-of-wider": ({"cache": cache_of(hidden_size=10)}, "`cache` does not fit: layer 0"),
    "cache-of-other-batch": ({"cache": cache_of(2)}, "`cache` does not fit: layer 0 .* batch of 2"),
}


@pytest.mark.parametrize(("change", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS.keys())
def test_bad_input_is_refused(change, message):
    pattern = ".*".join(re.escape(part) for part in message.split(".*"))
    with pytest.raises(ValueError, match=pattern):
        QRNNForConditionalGeneration(make_config())(**(make_batch() | change))


def test_a_prompt_of_the_decoder_does_not_end_in_pads():
    batch = make_batch()
    assert not batch["decoder_attention_mask"][:, -1].all()
    with pytest.raises(ValueError, match="`decoder_attention_mask` must not end in pads"):
        QRNNForConditionalGeneration(make_config()).generate(**batch, max_new_tokens=2)


def test_a_cache_of_other_sources_is_refused():
    model, cache = QRNNSeq2SeqModel(make_config()), cache_of(2)
    cache.self_attention_cache = DynamicCache(config=model.config)
    with pytest.raises(ValueError, match=r"it holds a batch of 2 sources, this batch has 4"):
        model(**make_batch(), cache=cache)
    batch = make_batch()
    cache = model(**batch).cache
    batch["input_ids"], batch["attention_mask"] = batch["input_ids"][:, 1:], batch["attention_mask"][:, 1:]
    with pytest.raises(ValueError, match=r"`cache` does not fit: it holds a source of 7 tokens, this source has 6"):
        model(**batch, cache=cache)


# --- loss ------------------------------------------------------------------------------------------------------------


def test_what_the_decoder_reads():
    labels = torch.tensor([[5, 6, 7, END], [8, END, -100, -100], [-100, -100, 9, END], [-100, -100, -100, -100]])
    expected = [[START, 5, 6, 7], [START, 8, END, PAD], [PAD, PAD, START, 9], [PAD, PAD, PAD, PAD]]
    assert shift_tokens_right(labels, START, PAD).tolist() == expected
    model = QRNNForConditionalGeneration(make_config())
    assert model.prepare_decoder_input_ids_from_labels(labels).tolist() == expected
    assert (
        DataCollatorForSeq2Seq(make_tokenizer(), model=model)(
            [{"input_ids": [5], "labels": labels[0].tolist()}, {"input_ids": [5], "labels": [8, END]}]
        )["decoder_input_ids"].tolist()
        == expected[:2]
    )


def test_labels_may_be_a_slice():
    """As where a target gives the inputs of the decoder and, one step on, its labels."""
    model, source, target = QRNNForConditionalGeneration(make_config()), tokens(2, 5), tokens(2, 8)
    expected = model(source, decoder_input_ids=target[:, :-1], labels=target[:, 1:].contiguous()).loss
    torch.testing.assert_close(model(source, decoder_input_ids=target[:, :-1], labels=target[:, 1:]).loss, expected)
    with pytest.raises(
        ValueError, match="`labels` need the logits of all 8 positions, got those of 3: leave out `log"
    ):
        model(source, labels=target, logits_to_keep=3)


@pytest.mark.parametrize("missing", ["decoder_start_token_id", "pad_token_id"])
def test_labels_need_tokens_to_begin_and_to_fill_with(missing):
    model = QRNNForConditionalGeneration(make_config(**{missing: None}))
    with pytest.raises(ValueError, match=f"`{missing}` must be set in the config"):
        model(tokens(1, 3), labels=tokens(1, 2))


def test_a_target_may_begin_with_the_first_token_of_all():
    model = QRNNForConditionalGeneration(make_config(decoder_start_token_id=0, bos_token_id=5, pad_token_id=3))
    assert model.prepare_decoder_input_ids_from_labels(torch.tensor([[7, 8]])).tolist() == [[0, 7]]


def test_a_target_begins_with_bos_if_nothing_else_is_said():
    model = QRNNForConditionalGeneration(make_config(decoder_start_token_id=None, bos_token_id=5))
    assert model.prepare_decoder_input_ids_from_labels(torch.tensor([[7, 8]])).tolist() == [[5, 7]]
    assert model.generate(tokens(1, 3), max_new_tokens=1)[0, 0] == 5


@pytest.mark.parametrize("num_items", [None, 7, torch.tensor(7)])
@pytest.mark.parametrize("side", ["left", "right"])
def test_loss(side, num_items, redraw):
    """Each label counts once, unshifted; pads of source and labels, on either side, count for nothing."""
    model = redraw(QRNNForConditionalGeneration(make_config()))
    batch = make_batch()
    source = {name: batch[name] for name in ("input_ids", "attention_mask")}
    rows = [tokens(5), tokens(3), tokens(4), tokens(1)]
    fill = {"left": lambda row: (5 - len(row), 0), "right": lambda row: (0, 5 - len(row))}[side]
    labels = torch.stack([F.pad(row, fill(row), value=-100) for row in rows])
    total = 0.0
    for alone, row in zip(rows_alone(batch), rows, strict=True):
        read = torch.cat([torch.tensor([START]), row[:-1]])[None]
        logits = model(alone["input_ids"], decoder_input_ids=read).logits[0]
        total = total + F.cross_entropy(logits, row, reduction="sum")
    loss = model(**source, labels=labels, num_items_in_batch=num_items).loss
    torch.testing.assert_close(loss, total / (13 if num_items is None else 7), atol=1e-5, rtol=1e-5)
    given = model(**source, labels=labels, decoder_input_ids=shift_tokens_right(labels, START, PAD)).loss
    if side == "right":
        torch.testing.assert_close(given, total / 13, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.ones(4, 4, dtype=torch.long), r"must have the shape .* \(4, 5\), got \(4, 4\)"),
        (torch.ones(4, 5), "must be int64, got torch.float32"),
        (torch.full((4, 5), VOCAB_SIZE), f"must lie between 0 and {VOCAB_SIZE - 1}, or be -100, got {VOCAB_SIZE}"),
    ],
)
def test_wrong_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match="`labels` " + message):
        QRNNForConditionalGeneration(make_config())(**make_batch(), labels=labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.ones(3, 5, dtype=torch.long), r"must have the shape .* \(4, 5\), got \(3, 5\)"),
        (torch.ones(5, dtype=torch.long), r"must have the shape .* \(4, 5\), got \(5,\)"),
        (torch.ones(4, 5), "must be int64, got torch.float32"),
        (torch.full((4, 5), -1), f"must lie between 0 and {VOCAB_SIZE - 1}, or be -100, got -1"),
    ],
)
def test_wrong_labels_are_refused_before_inputs_are_made_of_them(labels, message):
    model, batch = QRNNForConditionalGeneration(make_config()), make_batch()
    with pytest.raises(ValueError, match="`labels` " + message):
        model(batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels)
    encoded = model.get_encoder()(batch["input_ids"], attention_mask=batch["attention_mask"])
    with pytest.raises(ValueError, match="`labels` " + message):
        model(encoder_outputs=encoded, attention_mask=batch["attention_mask"], labels=labels)


# --- generation ------------------------------------------------------------------------------------------------------

MODES = {
    "greedy": {},
    "sampling": {"do_sample": True},
    "beam": {"num_beams": 3},
    "beam, long": {"num_beams": 3, "length_penalty": 2.0},
    "beam-sampling": {"num_beams": 3, "do_sample": True},
    "sampling-several": {"do_sample": True, "num_return_sequences": 3},
    "beam-several": {"num_beams": 4, "num_return_sequences": 4},
}


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def generator(request, redraw):
    return redraw(QRNNForConditionalGeneration(make_config(**request.param)).double())


def make_source() -> dict[str, torch.Tensor]:
    return {"input_ids": tokens(*SOURCE_MASK.shape).masked_fill(SOURCE_MASK == 0, PAD), "attention_mask": SOURCE_MASK}


def generate(model, source: dict[str, torch.Tensor], **options):
    """Tokens and logits, the same random numbers each time."""
    torch.manual_seed(1)
    options = {"do_sample": False, "max_new_tokens": 8} | options
    return model.generate(**source, **options, return_dict_in_generate=True, output_logits=True)


def assert_same(actual, expected, tolerance: float = 1e-6):
    """The logits too, which `generate` rounds to float32."""
    assert torch.equal(actual.sequences, expected.sequences)
    torch.testing.assert_close(actual.logits, expected.logits, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
def test_cache_changes_nothing(generator, mode):
    source = make_source()
    assert_same(generate(generator, source, **mode), generate(generator, source, use_cache=False, **mode))


def test_cache_changes_nothing_in_float32(generator):
    model, source = generator.float(), make_source()
    assert_same(generate(model, source), generate(model, source, use_cache=False), 1e-5)


@pytest.mark.parametrize("mode", ["greedy", "beam"])
def test_ragged_batch_equals_the_rows_alone(generator, mode):
    source = make_source()
    together = generate(generator, source, **MODES[mode]).sequences
    for row, is_real in enumerate(SOURCE_MASK != 0):
        alone = generate(generator, {"input_ids": source["input_ids"][row, is_real][None]}, **MODES[mode]).sequences[0]
        assert torch.equal(together[row, : len(alone)], alone)
        assert torch.isin(together[row, len(alone) :], torch.tensor([PAD, END])).all()


def test_beams_take_their_whole_state_along(generator):
    """The score of a beam is that of its tokens, read at once."""
    source = make_source()
    output = generate(generator, source, num_beams=4, num_return_sequences=4, output_scores=True, length_penalty=0.0)
    repeated = {name: tensor.repeat_interleave(4, dim=0) for name, tensor in source.items()}
    sequences = output.sequences
    logits = generator(**repeated, decoder_input_ids=sequences[:, :-1]).logits
    scores = logits.log_softmax(-1).gather(2, sequences[:, 1:, None])[..., 0]
    after_end = (sequences[:, 1:-1] == END).cumsum(1).bool()
    scores[:, 1:] = scores[:, 1:].masked_fill(after_end, 0)
    torch.testing.assert_close(output.sequences_scores.double(), scores.sum(1), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "cache",
    [
        {"cache_implementation": "static"},
        pytest.param({"cache_implementation": "offloaded"}, marks=needs_streams),
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["greedy", "beam"])
def test_kinds_of_cache(generator, cache, mode):
    source = make_source() | {"decoder_input_ids": torch.cat([torch.full((4, 1), START), tokens(4, 3)], dim=1)}
    expected = generate(generator, source, use_cache=False, **MODES[mode])
    assert_same(generate(generator, source, **cache, **MODES[mode]), expected)


def test_users_own_cache(generator):
    source = make_source()
    expected = generate(generator, source, use_cache=False)
    for cross_cache in (DynamicCache(), DynamicCache(config=generator.config)):
        cache = EncoderDecoderCache(DynamicCache(config=generator.config), cross_cache)
        actual = generate(generator, source, cache=cache)
        assert_same(actual, expected)
        assert actual.cache is cache


def test_padded_prompt_of_the_target(generator):
    source = make_source()
    prompt = torch.tensor([[START, 5, 6], [PAD, START, 7], [PAD, PAD, START], [START, 8, 9]])
    whole = source | {"decoder_input_ids": prompt, "decoder_attention_mask": (prompt != PAD).long()}
    together = generate(generator, whole)
    for row, is_real in enumerate(SOURCE_MASK != 0):
        alone = {"input_ids": source["input_ids"][row, is_real][None]}
        alone["decoder_input_ids"] = prompt[row][prompt[row] != PAD][None]
        expected = generate(generator, alone)
        for step_, logits in enumerate(expected.logits):
            torch.testing.assert_close(together.logits[step_][row], logits[0], atol=1e-4, rtol=1e-4)


def test_continuing_from_a_returned_cache(generator):
    source = make_source()
    first = generate(generator, source, eos_token_id=None)
    ids = torch.cat([first.sequences, tokens(4, 2)], dim=1)
    whole = source | {"decoder_input_ids": ids, "decoder_attention_mask": torch.ones_like(ids)}
    actual = generate(generator, whole, cache=copy.deepcopy(first.cache), eos_token_id=None)
    assert_same(actual, generate(generator, whole, use_cache=False, eos_token_id=None))


def test_continuing_where_a_row_has_ended(generator):
    """The pads that follow its end in `generate` are pads to the decoder's state, too."""
    source = make_source()
    first, *_, last = generate(generator, source, do_sample=True, eos_token_id=None).sequences[:, 1:].tolist()
    end = next(token for token in first if token not in last)
    out = generate(generator, source, do_sample=True, eos_token_id=end)
    ids, mask = torch.cat([out.sequences, tokens(4, 2)], dim=1), torch.ones(4, 11, dtype=torch.long)
    for row, new in enumerate(out.sequences[:, 1:].tolist()):
        mask[row, 1 + (new.index(end) + 1 if end in new else 8) : 9] = 0
    assert mask[0].sum() < 11 and mask[-1].all()
    whole = source | {"decoder_input_ids": ids, "decoder_attention_mask": mask}
    actual = generate(generator, whole, cache=copy.deepcopy(out.cache), eos_token_id=None)
    assert_same(actual, generate(generator, whole, use_cache=False, eos_token_id=None))


def test_the_source_is_read_once(generator):
    calls = []
    reading = [generator.get_encoder()]
    for block in generator.get_decoder().layers:
        reading.append(block.mixer.source_proj)
        if block.mixer.attention is not None and block.mixer.attention.is_projected:
            reading += [block.mixer.attention.k_proj, block.mixer.attention.v_proj]
    for module in reading:
        module.register_forward_hook(lambda module, *_: calls.append(module))
    generate(generator, make_source(), num_beams=2, eos_token_id=None)
    assert calls == reading


def bytes_of(cache: EncoderDecoderCache) -> int:
    tensors = []
    for layer in (*cache.self_attention_cache.layers, *cache.cross_attention_cache.layers):
        for value in vars(layer).values():
            tensors += [t for t in (value.values() if isinstance(value, dict) else [value]) if torch.is_tensor(t)]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def test_memory_is_constant_in_the_length_of_the_target(generator):
    options = {"eos_token_id": None}
    few, many = (generate(generator, make_source(), max_new_tokens=n, **options).cache for n in (2, 60))
    assert many.get_seq_length() == 60
    assert bytes_of(few) == bytes_of(many) > 0


def test_assisted_decoding(generator, taken_back):
    source = {"input_ids": tokens(1, 6)}
    options = {"max_new_tokens": 20, "eos_token_id": None}
    expected = generate(generator, source, use_cache=False, **options)
    drafts = [{"assistant_model": draft_of(generator, noise)} for noise in (0.05, 0.5)]
    for helper in (*drafts, {"prompt_lookup_num_tokens": 2, "max_matching_ngram_size": 1}):
        actual = generate(generator, source, **helper, **options)
        assert torch.equal(actual.sequences, expected.sequences)
    assert max(taken_back) > 0


def test_recording_ends_with_assisted_decoding(redraw):
    model = redraw(QRNNForConditionalGeneration(make_config()))
    source = {"input_ids": tokens(1, 6)}
    first = generate(model, source, prompt_lookup_num_tokens=2, eos_token_id=None)
    assert all(layer.recurrent_history is None for layer in first.cache.self_attention_cache.layers)


@pytest.mark.parametrize("helper", [{}, {"prompt_lookup_num_tokens": 2, "max_matching_ngram_size": 1}], ids=str)
def test_a_target_goes_on_from_its_cache(helper, generator):
    source, options = {"input_ids": tokens(1, 6)}, {"eos_token_id": None, "num_beams": 1}
    expected = generate(generator, source, max_new_tokens=12, use_cache=False, **options).sequences
    first = generate(generator, source, max_new_tokens=4, **options)
    whole = {"decoder_input_ids": first.sequences, "decoder_attention_mask": torch.ones_like(first.sequences)}
    new = {"decoder_input_ids": first.sequences[:, -1:]}
    for target in (
        new,
        new | {"decoder_attention_mask": whole["decoder_attention_mask"]},
        whole | {"decoder_attention_mask": None},
    ):
        with pytest.raises(ValueError, match=r"`decoder_input_ids` must be the whole target, .* \(4 tokens\)"):
            generate(generator, source | target, cache=first.cache, max_new_tokens=8, **options)
    actual = generate(generator, source | whole, cache=first.cache, max_new_tokens=8, **options, **helper)
    assert torch.equal(actual.sequences, expected)
    assert actual.cache.get_seq_length() == 12


def test_quantized_cache_is_refused():
    with pytest.raises(ValueError, match=r"`cache_implementation` must not be 'quantized'"):
        QRNNForConditionalGeneration(make_config()).generate(tokens(1, 3), cache_implementation="quantized")


def test_prefill_in_chunks_is_refused():
    with pytest.raises(ValueError, match="`prefill_chunk_size` must be None in an encoder-decoder"):
        QRNNForConditionalGeneration(make_config()).generate(tokens(1, 3), prefill_chunk_size=2)


def test_a_static_cache_that_cannot_be_taken_back_is_refused():
    model = QRNNForConditionalGeneration(make_config())
    for helper in ({"prompt_lookup_num_tokens": 2}, {"assistant_model": model}):
        with pytest.raises(ValueError, match="`cache_implementation` must not be 'static' for assisted decoding"):
            model.generate(tokens(1, 3), cache_implementation="static", **helper)


def test_compiled_decoding_is_one_graph(redraw):
    model = redraw(QRNNForConditionalGeneration(make_config(num_attention_heads=2, attention_layers="all")))
    config = CompileConfig(fullgraph=True, backend="aot_eager")
    config._compile_all_devices = True  # by itself, `generate` compiles for accelerators alone
    torch._dynamo.reset()
    counters.clear()
    source = make_source()
    expected = generate(model, source, use_cache=False)
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert_same(generate(model, source, cache_implementation="static", compile_config=config), expected)
    assert counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()


def test_16_bit_model_keeps_its_state_in_32(redraw):
    model = redraw(QRNNForConditionalGeneration(make_config())).to(torch.bfloat16)
    cache = generate(model, make_source()).cache
    assert {layer.recurrent_states[0].dtype for layer in cache.self_attention_cache.layers} == {torch.float32}


# --- equation 9 ------------------------------------------------------------------------------------------------------


def equation_nine(log_prob: float, length: int, target_length: int, alpha: float) -> float:
    for t in range(length, target_length + 1):
        log_prob *= (t + alpha) / t
    return log_prob


@torch.no_grad()
@pytest.mark.parametrize("alpha", [0.0, 0.6, 3.0])
def test_equation_nine_ranks_the_beams(alpha, redraw):
    """With enough beams for all candidates, the best of them all is found; with few, its score is the equation's."""
    model = redraw(QRNNForConditionalGeneration(make_config(vocab_size=5, lm_head_bias=True)).double())
    model.lm_head.bias.data[END] += 4  # so that candidates end
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    source = {"input_ids": torch.tensor([[3, 4, 3, 3], [4, 3, 0, 0]]), "attention_mask": mask}
    lengths = source["attention_mask"].sum(1)
    longest = 4
    candidates = []  # all that end within four tokens
    for length in range(1, longest + 1):
        for number in range(4 ** (length - 1)):
            inner = [(0, 1, 3, 4)[number // 4**place % 4] for place in range(length - 1)]
            candidates.append([*inner, END])
    num_ended = 0
    for num_beams in (160, 3):
        processor = TargetLengthLogitsProcessor(lengths, END, alpha=alpha, margin=1)
        output = model.generate(
            **source,
            max_new_tokens=longest,
            num_beams=num_beams,
            length_penalty=0.0,
            logits_processor=[processor],
            return_dict_in_generate=True,
            output_scores=True,
        )
        for row in range(2):
            alone = {name: tensor[row : row + 1] for name, tensor in source.items()}

            def score(candidate, alone=alone, row=row):
                read = torch.tensor([[START, *candidate[:-1]]])
                log_probs = model(**alone, decoder_input_ids=read).logits[0].log_softmax(-1)
                log_prob = sum(log_probs[t, token].item() for t, token in enumerate(candidate))
                return equation_nine(log_prob, len(candidate), int(lengths[row]) + 1, alpha)

            found = output.sequences[row, 1:].tolist()
            if END not in found:
                continue  # no candidate ended
            num_ended += 1
            found = found[: found.index(END) + 1]
            assert output.sequences_scores[row].item() == pytest.approx(score(found), abs=1e-5)
            if num_beams == 160:
                assert found == max(candidates, key=score)
    assert num_ended >= 3


def test_ranking_needs_a_token_that_ends_a_target():
    with pytest.raises(ValueError, match="`eos_token_id` must be the token that ends a target, got None"):
        TargetLengthLogitsProcessor(torch.tensor([3]), None)


def test_each_end_of_several_is_ranked():
    """As the only one would be; the others' scores stay as they are."""
    ids, scores = torch.ones(2, 3, dtype=torch.long), -torch.rand(2, 6)
    several = TargetLengthLogitsProcessor([4, 4], [2, 5], alpha=0.6)(ids, scores)
    for end in (2, 5):
        alone = TargetLengthLogitsProcessor([4, 4], end, alpha=0.6)(ids, scores)
        assert torch.equal(several[:, end], alone[:, end]) and not torch.equal(alone[:, end], scores[:, end])
    others = [0, 1, 3, 4]
    assert torch.equal(several[:, others], scores[:, others])


def test_wrong_rankings():
    with pytest.raises(ValueError, match="`alpha` must be at least 0"):
        TargetLengthLogitsProcessor([3], END, alpha=-0.1)
    with pytest.raises(ValueError, match="3 do not divide 4 beams"):
        TargetLengthLogitsProcessor([3, 3, 3], END)(torch.ones(4, 2, dtype=torch.long), torch.zeros(4, 5))


def test_equation_nine_leaves_longer_candidates_as_they_are():
    processor = TargetLengthLogitsProcessor([1], END, alpha=0.6, margin=1)
    ids, changed = torch.tensor([[START]]), []
    for _ in range(5):
        scores = torch.randn(1, VOCAB_SIZE).log_softmax(-1)
        changed.append(not torch.equal(processor(ids, scores)[:, END], scores[:, END]))
        ids = F.pad(ids, (0, 1), value=3)
    assert changed == [True, True, False, False, False]  # the target is to have two tokens


def test_equation_nine_ends_no_candidate_that_may_not_end():
    scores = torch.zeros(1, VOCAB_SIZE)
    scores[0, END] = -torch.inf
    ids = torch.tensor([[START]])
    assert TargetLengthLogitsProcessor([3], END, alpha=0.0)(ids, scores)[0, END] == -torch.inf


def test_lengths_may_be_a_list():
    first, second = (TargetLengthLogitsProcessor(lengths, [END]) for lengths in (torch.tensor([3, 4]), [3, 4]))
    assert torch.equal(first.target_lengths, second.target_lengths)


# --- training --------------------------------------------------------------------------------------------------------


def make_tokenizer(padding_side: str = "right") -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": PAD, "<s>": START, "</s>": END} | {str(word): word for word in range(3, VOCAB_SIZE)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="3"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, padding_side=padding_side, **special)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_trainer_learns_to_reverse(label_smoothing, tmp_path):
    """Each token of the target needs another place of the source: without attention this is hard."""
    rows = [{"input_ids": row.tolist(), "labels": [*row.flip(0).tolist(), END]} for row in tokens(600, 4)]
    config = make_config(
        hidden_size=32, encoder_layers=1, decoder_layers=1, connection="residual", num_attention_heads=2
    )
    model = QRNNForConditionalGeneration(config)
    arguments = Seq2SeqTrainingArguments(
        tmp_path,
        max_steps=100,
        learning_rate=1e-2,
        per_device_train_batch_size=32,
        gradient_accumulation_steps=2,
        per_device_eval_batch_size=100,
        label_smoothing_factor=label_smoothing,
        predict_with_generate=True,
        generation_max_length=8,
        use_cpu=True,
        save_strategy="no",
        logging_steps=50,
        disable_tqdm=True,
    )

    def count_equal(prediction):
        ids = [row[: row.index(END)] if END in row else row for row in prediction.predictions[:, 1:].tolist()]
        expected = [[token for token in row if token > END] for row in prediction.label_ids.tolist()]
        return {"equal": sum(one == two for one, two in zip(ids, expected, strict=True)) / len(ids)}

    tokenizer = make_tokenizer()
    trainer = Seq2SeqTrainer(
        model=model,
        args=arguments,
        train_dataset=rows[:500],
        eval_dataset=rows[500:],
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        processing_class=tokenizer,
        compute_metrics=count_equal,
    )
    trainer.train()
    assert trainer.evaluate()["eval_equal"] > 0.9


DROPOUTS = ["embedding_dropout", "input_dropout", "hidden_dropout", "output_dropout", "weight_dropout", "zoneout"]


@pytest.mark.parametrize("name", [*DROPOUTS, "attention_dropout"])
@pytest.mark.parametrize("connection", ["plain", "residual"])
def test_each_dropout_acts_in_training_alone(name, connection, redraw):
    model = redraw(QRNNForConditionalGeneration(make_config(connection=connection, **{name: 0.5})))
    batch = make_batch()
    assert torch.equal(model(**batch).logits, model(**batch).logits)
    model.train()
    assert not torch.equal(model(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("use_reentrant", [False, True])
@every_model
def test_gradient_checkpointing_changes_no_gradient(options, use_reentrant, redraw):
    options = options | dict.fromkeys(DROPOUTS, 0.3) | {"attention_dropout": 0.3}
    model = redraw(QRNNForConditionalGeneration(make_config(**options))).train()
    batch = make_batch() | {"labels": tokens(*TARGET_MASK.shape)}

    def gradients():
        model.zero_grad()
        torch.manual_seed(0)
        model(**batch).loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    expected = gradients()
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    torch.testing.assert_close(gradients(), expected, atol=1e-6, rtol=1e-5)


@every_model
def test_every_parameter_has_a_gradient_from_the_start(options):
    model = QRNNForConditionalGeneration(make_config(**options)).train()
    model(**make_batch(), labels=tokens(*TARGET_MASK.shape)).loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


@pytest.mark.parametrize("options", [MODELS["paper"], MODELS["residual"]], ids=["paper", "residual"])
def test_16_bit_autocast(options, redraw):
    model = redraw(QRNNForConditionalGeneration(make_config(**options)), std=0.3)
    batch = make_batch() | {"labels": tokens(*TARGET_MASK.shape)}
    expected = model(**batch).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.train()(**batch).loss
    loss.backward()
    torch.testing.assert_close(loss.float(), expected, atol=2e-2, rtol=2e-2)
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def test_lora(redraw):
    model, batch = redraw(QRNNForConditionalGeneration(make_config())), make_batch()
    expected = model(**batch).logits
    adapted = get_peft_model(model, LoraConfig(target_modules=["gate_proj", "source_proj"], task_type="SEQ_2_SEQ_LM"))
    torch.testing.assert_close(adapted.eval()(**batch).logits, expected)
    adapted.train()(**batch, labels=tokens(*TARGET_MASK.shape)).loss.backward()
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)
    assert adapted.generate(**make_source(), max_new_tokens=3).shape == (4, 4)


# --- parameters and files --------------------------------------------------------------------------------------------


def test_initial_scales():
    """Without norms all that feeds the decoder's layers starts as the gates do; with norms the attention alone."""
    wide = 64**-0.5 / 3**0.5
    for options, expected in (({}, wide), ({"connection": "residual"}, 0.02)):
        model = QRNNForConditionalGeneration(make_config(hidden_size=64, num_attention_heads=1, **options))
        mixer = model.model.decoder.layers[-1].mixer
        attention = mixer.attention
        assert mixer.source_proj.weight.std().item() == pytest.approx(expected, rel=0.05)
        for part in (
            attention.q_proj,
            attention.k_proj,
            attention.v_proj,
            attention.context_proj,
            attention.state_proj,
        ):
            assert part.weight.std().item() == pytest.approx(wide, rel=0.05)
        assert model.lm_head.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_embeddings_are_one_parameter():
    model = QRNNForConditionalGeneration(make_config(tie_word_embeddings=True))
    names = [name for name, _ in model.named_parameters() if "embed_tokens" in name or "lm_head" in name]
    assert names == ["model.encoder.embed_tokens.weight"]
    assert model.lm_head.weight is model.get_input_embeddings().weight


@every_model
def test_saved_is_loaded(options, tmp_path, redraw):
    model, batch = redraw(QRNNForConditionalGeneration(make_config(**options))), make_batch()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    assert type(loaded) is QRNNForConditionalGeneration
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    assert torch.equal(loaded.generate(**make_source_like(batch)), model.generate(**make_source_like(batch)))
    body = AutoModel.from_pretrained(tmp_path).eval()
    assert type(body) is QRNNSeq2SeqModel
    assert torch.equal(body(**batch).last_hidden_state, model.model(**batch).last_hidden_state)


def make_source_like(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: batch[name] for name in ("input_ids", "attention_mask")} | {"max_new_tokens": 4}


def test_evaluation_does_not_gather_the_cache(tmp_path):
    model = QRNNForConditionalGeneration(make_config())
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", use_cache=True)
    rows = [{"input_ids": tokens(4), "labels": tokens(3)} for _ in range(2)]
    assert model.config.use_cache
    predictions = Trainer(model, args).predict(rows).predictions
    assert [part.shape for part in predictions] == [
        (2, 3, VOCAB_SIZE),
        (2, 4, 8),
    ]  # logits, and what the encoder gives


@pytest.mark.parametrize("tied", [False, True])
def test_vocabulary_can_be_resized(tied, tmp_path, redraw):
    model = redraw(
        QRNNForConditionalGeneration(make_config(tie_word_embeddings=tied, embedding_size=6, lm_head_bias=tied))
    )
    batch = make_batch()
    expected = model(**batch).logits
    model.resize_token_embeddings(VOCAB_SIZE + 4)
    model.save_pretrained(tmp_path)
    for resized in (model, AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()):
        torch.testing.assert_close(resized(**batch).logits[..., :VOCAB_SIZE], expected)
        assert resized(**(batch | {"input_ids": batch["input_ids"] + 4})).logits.shape[-1] == VOCAB_SIZE + 4
    model.get_encoder().save_pretrained(tmp_path / "encoder")
    encoder = QRNNSeq2SeqEncoder.from_pretrained(tmp_path / "encoder")
    assert encoder.get_input_embeddings().num_embeddings == encoder.config.vocab_size == VOCAB_SIZE + 4
    assert encoder.resize_token_embeddings(7).num_embeddings == encoder.config.vocab_size == 7


def test_overrides_at_loading_are_checked(tmp_path):
    make_config().save_pretrained(tmp_path)
    with pytest.raises(StrictDataclassClassValidationError, match="`encoder_kernel_size` must be a number from 1 up"):
        QRNNSeq2SeqModel(QRNNSeq2SeqConfig.from_pretrained(tmp_path, encoder_layers=5))


def test_layers_may_lie_on_several_devices():
    """`meta` stands in for a second device, to which Accelerate moves what a module is given."""
    model = QRNNForConditionalGeneration(make_config(attention_layers="all", use_cache=False)).eval()
    encoder, decoder = model.model.encoder, model.model.decoder
    for module in (*encoder.layers[1:], encoder.norm, *decoder.layers, decoder.norm, model.lm_head):
        module.to("meta")
        add_hook_to_module(module, AlignDevicesHook(execution_device="meta", skip_keys=["cache"]))
    assert model(**make_batch()).logits.device.type == "meta"
