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
"""The models and their heads: what they compute, refuse, train, save and load."""

import json
import re
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DataCollatorWithFlattening,
    DynamicCache,
)

from modeling_qrnn import (
    QRNNConfig,
    QRNNForCausalLM,
    QRNNForMaskedLM,
    QRNNForSequenceClassification,
    QRNNForTokenClassification,
    QRNNLayer,
    QRNNModel,
)
from modeling_qrnn import modeling_qrnn as modeling
from modeling_qrnn.modeling_qrnn import QRNNPreTrainedModel, in_dtype_of, read_out


VOCAB_SIZE = 31
NUM_LABELS = 3

HEADS = {
    "base": (QRNNModel, AutoModel, {}),
    "causal": (QRNNForCausalLM, AutoModelForCausalLM, {}),
    "masked": (QRNNForMaskedLM, AutoModelForMaskedLM, {"bidirectional": True}),
    "sequence": (QRNNForSequenceClassification, AutoModelForSequenceClassification, {}),
    "sequence-concat": (
        QRNNForSequenceClassification,
        AutoModelForSequenceClassification,
        {"bidirectional": True, "classifier_pooling": "concat", "classifier_hidden_size": 5},
    ),
    "token": (QRNNForTokenClassification, AutoModelForTokenClassification, {}),
    "token-bidirectional": (QRNNForTokenClassification, AutoModelForTokenClassification, {"bidirectional": True}),
}

STACKS = {
    "plain": {"kernel_size": 4},
    "plain-tied": {
        "embedding_size": 6,
        "tie_word_embeddings": True,
        "lm_head_bias": True,
        "pooling": "f",
        "kernel_size": [1, 3],
    },
    "dense": {"connection": "dense", "embedding_size": 6, "norm": "layer_norm", "pooling": "ifo"},
    "residual-tied": {
        "connection": "residual",
        "embedding_size": 6,
        "intermediate_size": 10,
        "tie_word_embeddings": True,
        "kernel_size": 3,
    },
}

heads = pytest.mark.parametrize("head", HEADS)
stacks = pytest.mark.parametrize("stack", STACKS)


def make_config(**options) -> QRNNConfig:
    options = {"hidden_size": 8, "num_hidden_layers": 2, "num_labels": NUM_LABELS} | options
    return QRNNConfig(vocab_size=VOCAB_SIZE, **options)


def make_model(head: str, stack: str = "plain", **options) -> nn.Module:
    model_class, _, own_options = HEADS[head]
    return model_class(make_config(**STACKS[stack], **own_options, **options)).eval()


def make_batch(head: str = "base", length: int = 6, with_labels: bool = False) -> dict[str, torch.Tensor]:
    """Three rows: whole, with pads on the left, and with pads on the right."""
    mask = torch.ones(3, length, dtype=torch.long)
    mask[1, :2] = mask[2, -3:] = 0
    batch = {"input_ids": torch.randint(VOCAB_SIZE, (3, length)), "attention_mask": mask}
    if with_labels:
        if head.startswith("sequence"):
            batch["labels"] = torch.tensor([0, 2, 1])
        else:
            kinds = NUM_LABELS if head.startswith("token") else VOCAB_SIZE
            batch["labels"] = torch.randint(kinds, (3, length)).masked_fill(mask == 0, -100)
    return batch


def unpadded(batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The rows of a batch, each alone, `(1, length)`."""
    pairs = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    return [ids[mask != 0][None] for ids, mask in pairs]


# --- inputs ----------------------------------------------------------------------------------------------------------


def ids(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.long)


def filled_cache(batch_size: int, **options) -> DynamicCache:
    return make_model("base", **options)(ids(batch_size, 2)).cache


def without_rows(cache: DynamicCache) -> DynamicCache:
    cache.batch_select_indices(torch.empty(0, dtype=torch.long))
    return cache


BAD_INPUTS = {
    "token-above": (
        lambda: {"input_ids": torch.tensor([[3, VOCAB_SIZE]])},
        "`input_ids` must lie between 0 and vocab_size - 1 = 30, got values from 3 to 31",
    ),
    "token-below": (
        lambda: {"input_ids": torch.tensor([[3, -1]])},
        "`input_ids` must lie between 0 and vocab_size - 1 = 30, got values from -1 to 3",
    ),
    "one-dimension": (lambda: {"input_ids": ids(4)}, "`input_ids` must have the shape .* got (4,)"),
    "no-tokens": (lambda: {"input_ids": ids(2, 0)}, "`input_ids` .* at least one token.* got (2, 0)"),
    "neither": (dict, "exactly one of `input_ids` and `inputs_embeds`, got neither"),
    "both": (
        lambda: {"input_ids": ids(1, 2), "inputs_embeds": torch.zeros(1, 2, 8)},
        "exactly one of `input_ids` and `inputs_embeds`, got both",
    ),
    "embeds-width": (
        lambda: {"inputs_embeds": torch.zeros(1, 2, 7)},
        "`inputs_embeds` must have the shape (batch, at least one token, embedding_size=8), got (1, 2, 7)",
    ),
    "no-embeds": (lambda: {"inputs_embeds": torch.zeros(1, 0, 8)}, "`inputs_embeds` .* got (1, 0, 8)"),
    "mask-batch": (
        lambda: {"input_ids": ids(2, 3), "attention_mask": ids(1, 3)},
        "`attention_mask` must have the shape (batch, at least seq_len) = (2, >= 3), got (1, 3)",
    ),
    "mask-narrow": (
        lambda: {"input_ids": ids(2, 3), "attention_mask": ids(2, 2)},
        "`attention_mask` must have the shape (batch, at least seq_len) = (2, >= 3), got (2, 2)",
    ),
    "mask-dimensions": (
        lambda: {"input_ids": ids(2, 3), "attention_mask": ids(2, 1, 3, 3)},
        "`attention_mask` .* got (2, 1, 3, 3)",
    ),
    "positions-length": (
        lambda: {"input_ids": ids(1, 4), "position_ids": torch.tensor([[0, 1, 0]])},
        "`position_ids` .* got (1, 3)",
    ),
    "positions-batch": (
        lambda: {"input_ids": ids(3, 4), "position_ids": torch.tensor([[0, 1, 0, 1]] * 2)},
        "`position_ids` .* got (2, 4)",
    ),
    "seq_idx-length": (
        lambda: {"input_ids": ids(1, 4), "seq_idx": torch.tensor([[0, 0, 1]])},
        "`seq_idx` .* got (1, 3)",
    ),
    "seq_idx-batch": (
        lambda: {"input_ids": ids(3, 4), "seq_idx": torch.tensor([[0, 0, 1, 1]] * 2)},
        "`seq_idx` .* got (2, 4)",
    ),
    "cache-without-layers": (
        lambda: {"input_ids": ids(1, 1), "cache": DynamicCache()},
        "`cache` must have 2 layers of the kind 'qrnn_v1', .*DynamicCache(config=model.config).* got []",
    ),
    "cache-of-deeper-model": (
        lambda: {"input_ids": ids(1, 1), "cache": filled_cache(1, num_hidden_layers=3)},
        "`cache` must have 2 layers",
    ),
    "cache-of-wider-model": (
        lambda: {"input_ids": ids(1, 1), "cache": filled_cache(1, hidden_size=10)},
        "`cache` does not fit: layer 0 .* (10, 3, 10)",
    ),
    "cache-of-other-batch": (
        lambda: {"input_ids": ids(1, 1), "cache": filled_cache(2)},
        "`cache` does not fit: layer 0 holds a batch of 2 .* need 1",
    ),
    "cache-of-fewer-rows": (
        lambda: {"input_ids": ids(4, 1), "cache": filled_cache(2)},
        "`cache` does not fit: layer 0 holds a batch of 2 .* need 4 .* need `cache.batch_repeat_interleave(n)` first",
    ),
    "cache-of-no-row": (
        lambda: {"input_ids": ids(1, 1), "cache": without_rows(filled_cache(2))},
        "`cache` does not fit: layer 0 holds a batch of 0 .* need 1",
    ),
}


def readable(message: str) -> str:
    """A pattern in which only `.*` is special."""
    return ".*".join(re.escape(part) for part in message.split(".*"))


@pytest.mark.parametrize("head", ["base", "sequence"])
@pytest.mark.parametrize(("make_inputs", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS.keys())
def test_bad_input_is_refused(head, make_inputs, message):
    with pytest.raises(ValueError, match=readable(message)):
        make_model(head)(**make_inputs())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_cache": True}, "`use_cache` was set, but a bidirectional model"),
        ({"cache": DynamicCache()}, "`cache` was set, but a bidirectional model"),
    ],
)
@pytest.mark.parametrize("head", ["base", "sequence", "token"])
def test_bidirectional_model_has_no_cache(head, options, message):
    model = HEADS[head][0](make_config(bidirectional=True))
    assert model(ids(1, 2)).get("cache") is None
    with pytest.raises(ValueError, match=message):
        model(ids(1, 2), **options)


def test_head_that_does_not_fit_the_direction_is_refused():
    with pytest.raises(ValueError, match=r"`bidirectional` must be False in QRNNForCausalLM.*QRNNForMaskedLM"):
        QRNNForCausalLM(make_config(bidirectional=True))
    with pytest.raises(ValueError, match=r"`bidirectional` must be True in QRNNForMaskedLM.*QRNNForCausalLM"):
        QRNNForMaskedLM(make_config())


@heads
def test_mask_of_any_dtype_and_width(head, redraw):
    """Of a wider mask the last columns count: `generate` and chunked callers pass the mask of all tokens so far."""
    model, batch = redraw(make_model(head)), make_batch(head)
    mask = batch.pop("attention_mask")
    expected = model(**batch, attention_mask=mask)[0]
    wide = torch.cat([torch.randint(2, (3, 4)), mask], dim=1)
    for same in (mask.bool(), mask.float(), mask.int(), 7 * mask, wide):
        assert torch.equal(model(**batch, attention_mask=same)[0], expected)


@heads
@stacks
def test_pads_do_not_show(head, stack, redraw):
    model, batch = redraw(make_model(head, stack)), make_batch(head)
    output = model(**batch)[0]
    for row, tokens in enumerate(unpadded(batch)):
        actual = output[row] if head.startswith("sequence") else output[row][batch["attention_mask"][row] != 0]
        torch.testing.assert_close(actual, model(tokens)[0][0], atol=1e-5, rtol=1e-5)


@stacks
@pytest.mark.parametrize("bidirectional", [False, True])
def test_hidden_state_at_pads_is_zero(stack, bidirectional, redraw):
    model = redraw(make_model("base", stack, bidirectional=bidirectional))
    batch = make_batch()
    hidden_states = model(**batch).last_hidden_state
    is_pad = batch["attention_mask"] == 0
    assert (hidden_states[is_pad] == 0).all()
    assert (hidden_states[~is_pad] != 0).any(dim=-1).all()


# --- outputs ---------------------------------------------------------------------------------------------------------


@stacks
def test_hidden_states_are_the_embeddings_and_each_block(stack):
    model = make_model("base", stack)
    output = model(make_batch()["input_ids"], output_hidden_states=True)
    assert len(output.hidden_states) == 3
    assert all(states.shape[:2] == (3, 6) for states in output.hidden_states)
    assert output.hidden_states[0].shape[2] == model.config.layer_sizes[0][0]
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert model(ids(1, 2)).hidden_states is None


@heads
def test_hidden_states_pass_through_the_head(head):
    output = make_model(head)(**make_batch(head), output_hidden_states=True)
    assert len(output.hidden_states) == 3


@heads
def test_tuple_is_the_output_without_names(head):
    model, batch = make_model(head), make_batch(head, with_labels=head != "base")
    named, unnamed = model(**batch), model(**batch, return_dict=False)
    assert isinstance(unnamed, tuple)
    assert len(unnamed) == len(named)
    for name, value in zip(named.keys(), unnamed, strict=True):
        if name != "cache":
            assert torch.equal(named[name], value)


def test_cache_is_returned_when_asked_for():
    model = make_model("causal")
    assert model(ids(1, 2)).cache is not None
    assert model(ids(1, 2), use_cache=False).cache is None
    model.config.use_cache = False
    assert model(ids(1, 2)).cache is None
    assert model(ids(1, 2), use_cache=True).cache is not None


def test_logits_to_keep(redraw):
    model, tokens = redraw(make_model("causal")), make_batch()["input_ids"]
    logits = model(tokens).logits
    torch.testing.assert_close(model(tokens, logits_to_keep=2).logits, logits[:, -2:])
    chosen = torch.tensor([0, 3])
    torch.testing.assert_close(model(tokens, logits_to_keep=chosen).logits, logits[:, chosen])


@pytest.mark.parametrize("head", ["base", "causal", "masked", "sequence", "token"])
def test_embeddings_in_place_of_tokens(head, redraw):
    model, batch = redraw(make_model(head)), make_batch(head)
    expected = model(**batch)[0]
    embeds = model.get_input_embeddings()(batch.pop("input_ids"))
    assert torch.equal(model(inputs_embeds=embeds, **batch)[0], expected)


# --- sequence classification -----------------------------------------------------------------------------------------


def read_by_hand(states: torch.Tensor, pooling: str, bidirectional: bool) -> torch.Tensor:
    """The read-out of one row without pads, `(length, width)`."""
    if pooling == "concat":
        return torch.cat([read_by_hand(states, part, bidirectional) for part in ("last", "max", "mean")])
    if pooling == "max":
        return states.max(dim=0).values
    if pooling == "mean":
        return states.mean(dim=0)
    width = states.shape[1]
    return torch.cat([states[-1, : width // 2], states[0, width // 2 :]]) if bidirectional else states[-1]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("pooling", ["last", "max", "mean", "concat"])
def test_classifier_reads_real_tokens(pooling, bidirectional, redraw):
    config = make_config(classifier_pooling=pooling, bidirectional=bidirectional)
    model = redraw(QRNNForSequenceClassification(config))
    batch = make_batch()
    batch["attention_mask"][0, 3] = 0  # a pad between real tokens
    logits = model(**batch).logits
    for row, tokens in enumerate(unpadded(batch)):
        expected = model.score(read_by_hand(model.model(tokens).last_hidden_state[0], pooling, bidirectional))
        torch.testing.assert_close(logits[row], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["last", "max", "mean", "concat"])
def test_row_of_pads_is_the_bias_alone(pooling, redraw):
    """It has no token to read: nothing may become infinite, neither forward nor backward."""
    model = redraw(QRNNForSequenceClassification(make_config(classifier_pooling=pooling)))
    batch = make_batch()
    batch["attention_mask"][1] = 0
    output = model(**batch, labels=torch.tensor([0, 1, 2]))
    torch.testing.assert_close(output.logits[1], model.score.bias)
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("pooling", ["last", "max", "mean", "concat"])
def test_only_the_last_output_can_be_read_chunk_by_chunk(pooling, redraw):
    model = redraw(QRNNForSequenceClassification(make_config(classifier_pooling=pooling)))
    batch = make_batch()
    first, second = ({name: value[:, part] for name, value in batch.items()} for part in (slice(3), slice(3, None)))
    cache = model(**first).cache
    if pooling != "last":
        with pytest.raises(ValueError, match=f"`cache` must be empty with classifier_pooling='{pooling}'"):
            model(**second, cache=cache)
        return
    batch["attention_mask"][:, 3] = 1
    hidden = second["attention_mask"].clone()
    hidden[1] = 0
    with pytest.raises(ValueError, match="`attention_mask` must show a real token or frame in each row"):
        model(second["input_ids"], attention_mask=hidden, cache=cache)
    with pytest.raises(ValueError, match="`input_ids` must have the shape"):
        model(second["input_ids"][0], cache=cache)
    assert cache.get_seq_length() == 3
    torch.testing.assert_close(model(**second, cache=cache).logits, model(**batch).logits)


@pytest.mark.parametrize("mask", [[[1] * 5] * 3, [[0, 1, 1, 1, 1], [1] * 5, [1, 1, 1, 0, 0]]], ids=["whole", "padded"])
@pytest.mark.parametrize("head", ["causal", "sequence", "token"])
@pytest.mark.parametrize("use_cache", [False, True])
def test_gradients_of_each_example(use_cache, head, mask, redraw):
    model_class, _, options = HEADS[head]
    penalties = {"activation_regularization": 0.3, "temporal_activation_regularization": 0.2}
    model = redraw(model_class(make_config(**options, **penalties)).double()).train()
    rows = torch.randint(VOCAB_SIZE, (3, 5))
    labels = torch.tensor([0, 2, 1]) if head == "sequence" else rows % 3
    parameters = dict(model.named_parameters())

    def loss(parameters, row, label, is_real):
        inputs = {"input_ids": row, "labels": label, "attention_mask": is_real, "position_ids": torch.arange(5)}
        inputs = {name: part[None] for name, part in inputs.items()}
        return torch.func.functional_call(model, parameters, kwargs={**inputs, "use_cache": use_cache}).loss

    examples = rows, labels, torch.tensor(mask)
    actual = torch.func.vmap(torch.func.grad(loss), (None, 0, 0, 0))(parameters, *examples)
    for index, example in enumerate(zip(*examples, strict=True)):
        expected = torch.autograd.grad(loss(parameters, *example), parameters.values())
        torch.testing.assert_close([gradient[index] for gradient in actual.values()], list(expected))


LOSSES = {
    "single": ({}, torch.tensor([0, 2, 1]), F.cross_entropy),
    "several": ({}, torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0]]), F.binary_cross_entropy_with_logits),
    "number": ({"num_labels": 1}, torch.tensor([0.5, -2.0, 1.0]), lambda x, y: F.mse_loss(x[:, 0], y)),
    "numbers": ({"problem_type": "regression"}, torch.tensor([[0.5, -2.0, 1.0]] * 3), F.mse_loss),
}


@pytest.mark.parametrize("shape", [(1,), (2, 3), (3, 3)], ids=str)
@pytest.mark.parametrize("problem_type", [None, "regression"])
def test_labels_of_numbers_have_one_shape(problem_type, shape, redraw):
    """A loss would stretch others over the batch."""
    model = redraw(make_model("sequence", num_labels=1, problem_type=problem_type))
    with pytest.raises(ValueError, match=r"`labels` must have the shape \(3,\), got "):
        model(**make_batch(), labels=torch.zeros(shape))
    losses = [model(**make_batch(), labels=torch.ones(shape)).loss for shape in ((3,), (3, 1))]
    assert losses[0].isfinite() and losses[1].isfinite()


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_several_classes_at_once_are_no_integers(dtype, redraw):
    model = redraw(make_model("sequence", problem_type="multi_label_classification"))
    with pytest.raises(ValueError, match=rf"`labels` of several classes at once must be floating-point, got {dtype}"):
        model(**make_batch(), labels=torch.ones(3, NUM_LABELS, dtype=dtype))


@pytest.mark.parametrize(("options", "labels", "loss"), LOSSES.values(), ids=LOSSES.keys())
def test_classification_losses(options, labels, loss, redraw):
    model = redraw(make_model("sequence", **options))
    output = model(**make_batch(), labels=labels)
    torch.testing.assert_close(output.loss, loss(output.logits, labels))


def test_exported_loss_takes_any_batch(redraw):
    model = redraw(make_model("sequence", problem_type="single_label_classification"))
    sample = {"input_ids": torch.randint(VOCAB_SIZE, (4, 5)), "labels": torch.tensor([0, 1, 2, 0])}
    shapes = {name: {0: torch.export.Dim("batch")} for name in sample} | {"use_cache": None}
    program = torch.export.export(model, (), {**sample, "use_cache": False}, dynamic_shapes=shapes).module()
    for batch_size in (2, 4, 7):
        batch = {"input_ids": torch.randint(VOCAB_SIZE, (batch_size, 5)), "labels": torch.arange(batch_size) % 3}
        torch.testing.assert_close(program(**batch, use_cache=False).loss, model(**batch).loss)


def test_hidden_layer_of_the_classifier_learns():
    """The label is the first token's, at the far end of what the read-out sees."""
    model = make_model("sequence", classifier_hidden_size=16, classifier_pooling="concat", classifier_dropout=0.1)
    block = [nn.BatchNorm1d, nn.Dropout, nn.Linear]
    assert [type(part) for part in model.score] == [*block, nn.ReLU, *block]
    tokens = torch.randint(VOCAB_SIZE, (64, 5))
    labels = tokens[:, 0] % NUM_LABELS
    optimizer = torch.optim.Adam(model.train().parameters(), lr=2e-2)
    for _ in range(60):
        loss = model(tokens, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model.eval()(tokens).logits.argmax(-1) == labels).float().mean() > 0.95


@pytest.mark.parametrize("head", ["sequence", "token"])
@pytest.mark.parametrize(("given", "expected"), [(None, 0.2), (0.0, 0.0), (0.4, 0.4)])
def test_classifier_dropout_stands_in_for_output_dropout(head, given, expected):
    model = make_model(head, output_dropout=0.2, classifier_dropout=given)
    assert model.dropout.p == expected


# --- losses of the other heads ---------------------------------------------------------------------------------------


def test_what_a_layer_takes_is_in_the_dtype_of_its_weights():
    x = torch.randn(2, 3, dtype=torch.float64)
    assert in_dtype_of(nn.Linear(3, 1).bfloat16(), x).dtype == torch.bfloat16
    quantised = [nn.Linear(3, 1).requires_grad_(False) for _ in range(2)]
    for linear, dtype in zip(quantised, (torch.int8, torch.float8_e4m3fn), strict=True):
        linear.weight.data = linear.weight.data.to(dtype)
    del (unknown := nn.Linear(3, 1)).weight
    assert [in_dtype_of(linear, x).dtype for linear in (*quantised, unknown)] == [torch.float64] * 3


@pytest.mark.parametrize("head", ["causal", "masked", "token"])
def test_labels_may_be_a_slice(head, redraw):
    model, batch = redraw(make_model(head)), make_batch(head, with_labels=True)
    wide = torch.cat([batch["labels"], batch["labels"]], dim=1)[:, : batch["labels"].shape[1]]
    assert not wide.is_contiguous()
    torch.testing.assert_close(model(**{**batch, "labels": wide}).loss, model(**batch).loss)


def test_labels_need_all_logits(redraw):
    model, batch = redraw(make_model("causal")), make_batch("causal", with_labels=True)
    length = batch["labels"].shape[1]
    with pytest.raises(
        ValueError, match=rf"`labels` need the logits of all {length} positions, got those of 2: leave"
    ):
        model(**batch, logits_to_keep=2)


@pytest.mark.parametrize("head", ["causal", "masked", "token"])
@pytest.mark.parametrize("num_items", [None, 7])
def test_token_losses(head, num_items, redraw):
    """They count each label of the rows alone; among these is no first token, which nothing predicts."""
    model, batch = redraw(make_model(head)), make_batch(head, with_labels=True)
    batch["labels"][0, 3] = -100
    logits, labels = [], []
    for row, tokens in enumerate(unpadded(batch)):
        first = 1 if head == "causal" else 0
        logits.append(model(tokens).logits[0, : tokens.shape[1] - first])
        labels.append(batch["labels"][row][batch["attention_mask"][row] != 0][first:])
    logits, labels = torch.cat(logits), torch.cat(labels)
    total = F.cross_entropy(logits, labels, reduction="sum")
    loss = model(**batch, num_items_in_batch=num_items).loss
    torch.testing.assert_close(loss, total / (num_items or (labels != -100).sum()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side, is_told", [("left", True), ("right", False)])
def test_count_that_holds_more_labels_than_the_loss_is_told_of(side, is_told, redraw):
    """`transformers.Trainer` counts the first label after left pads, which nothing predicts."""
    model, row = redraw(make_model("causal")), {"left": 1, "right": 2}[side]
    batch = {name: value[row : row + 1] for name, value in make_batch("causal", with_labels=True).items()}
    with patch.object(modeling.logger, "warning_once") as warning:
        model(**batch)
        assert not warning.called
        model(**batch, num_items_in_batch=7, shift_labels=batch["labels"])
        assert not warning.called
        model(**batch, num_items_in_batch=7)
    assert warning.called == is_told


def test_masked_model_sees_both_sides(redraw):
    model, tokens = redraw(make_model("masked")), make_batch()["input_ids"][:1]
    for position in (0, 5):
        changed = tokens.clone()
        changed[0, position] = (changed[0, position] + 1) % VOCAB_SIZE
        assert (model(changed).logits[0, 3] != model(tokens).logits[0, 3]).any()


def regularized_losses(model: nn.Module, batch: dict[str, torch.Tensor], **options):
    """The loss in training, and what the two regularisers see: the output before and after dropout."""
    seen = {}
    hooks = [
        model.model.register_forward_hook(lambda *args: seen.update(before=args[-1].last_hidden_state)),
        model.dropout.register_forward_hook(lambda *args: seen.update(after=args[-1])),
    ]
    loss = model(**batch, **options).loss
    for hook in hooks:
        hook.remove()
    return loss, seen["before"], seen["after"]


def counted_positions(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The real tokens that have a token to predict."""
    return (batch["labels"][:, 1:] != -100) & (batch["attention_mask"][:, :-1] != 0)


@pytest.mark.parametrize(("alpha", "beta"), [(2.0, 0.0), (0.0, 3.0), (2.0, 3.0)])
def test_activation_regularization(alpha, beta, redraw):
    options = {"activation_regularization": alpha, "temporal_activation_regularization": beta}
    model = redraw(make_model("causal", output_dropout=0.4, **options)).train()
    batch = make_batch("causal", with_labels=True)
    batch["labels"][0, 3] = -100
    loss, before, after = regularized_losses(model, batch)
    is_counted = counted_positions(batch)
    expected = F.cross_entropy(model.lm_head(after)[:, :-1][is_counted], batch["labels"][:, 1:][is_counted])
    counted = [tuple(position) for position in is_counted.nonzero().tolist()]
    for row, step in counted:
        expected = expected + alpha * after[row, step].square().mean() / len(counted)
        if (row, step - 1) in counted:
            change = before[row, step] - before[row, step - 1]
            expected = expected + beta * change.square().mean() / len(counted)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_label_that_is_not_counted_may_be_another(side, redraw):
    options = {"activation_regularization": 2.0, "temporal_activation_regularization": 3.0}
    model, batch = redraw(make_model("causal", **options)).train(), make_batch("causal", with_labels=True)
    batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    batch["attention_mask"][0, 0 if side == "left" else -1] = 0
    batch["labels"][1, 2] = -100
    other = {**batch, "labels": batch["labels"].masked_fill(batch["labels"] == -100, -1)}
    torch.testing.assert_close(model(**other, ignore_index=-1).loss, model(**batch).loss)


def test_activation_regularization_is_for_training_alone(redraw):
    options = {"activation_regularization": 2.0, "temporal_activation_regularization": 3.0}
    model, batch = redraw(make_model("causal", **options)), make_batch("causal", with_labels=True)
    plain = make_model("causal")
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(**batch).loss, plain(**batch).loss)
    assert model.train()(**batch).loss > plain(**batch).loss + 0.05


def test_gradient_accumulation_leaves_the_regularized_loss_as_it_is(redraw):
    options = {"activation_regularization": 2.0, "temporal_activation_regularization": 3.0}
    model = redraw(make_model("causal", **options)).train()
    batch = make_batch("causal", with_labels=True)
    num_items = counted_positions(batch).sum()
    rows = [{name: value[row : row + 1] for name, value in batch.items()} for row in range(3)]
    parts = sum(model(**row, num_items_in_batch=num_items).loss for row in rows)
    torch.testing.assert_close(parts, model(**batch).loss)


# --- dropout ---------------------------------------------------------------------------------------------------------

DROPOUTS = ["zoneout", "embedding_dropout", "input_dropout", "hidden_dropout", "output_dropout", "weight_dropout"]


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("field", DROPOUTS)
@stacks
def test_dropout_acts_in_training_alone(stack, field, locked, redraw):
    model = redraw(make_model("causal", stack, **{field: 0.5}, locked_dropout=locked))
    tokens = make_batch()["input_ids"]
    at_evaluation = model(tokens).logits
    assert torch.equal(model(tokens).logits, at_evaluation)
    model.train()
    first, second = model(tokens).logits, model(tokens).logits
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    again = model(tokens).logits
    torch.manual_seed(0)
    assert torch.equal(model(tokens).logits, again)
    if field != "zoneout":  # whose expectation acts at evaluation
        without = make_model("causal", stack)
        without.load_state_dict(model.state_dict())
        assert torch.equal(without(tokens).logits, at_evaluation)


@pytest.mark.parametrize("field", [field for field in DROPOUTS if field != "zoneout"])
def test_dropout_is_turned_off_where_others_look_for_it(field, redraw):
    """As libraries do that compare two models' probabilities in training."""
    model = redraw(make_model("causal", **{field: 0.5}))
    tokens = make_batch()["input_ids"]
    at_evaluation = model(tokens).logits
    for module in model.train().modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    assert torch.equal(model(tokens).logits, at_evaluation)


def test_word_is_dropped_everywhere_in_the_batch(redraw):
    model = redraw(make_model("base", embedding_dropout=0.5)).train()
    tokens, seen = torch.randint(VOCAB_SIZE, (8, 20)), []
    model.dropout.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(tokens)
    fates = [
        (occurrences == 0).all().item()
        for word in tokens.unique()
        for occurrences in [seen[0][tokens == word]]
        if (occurrences == 0).all() or torch.allclose(occurrences, 2 * model.embed_tokens.weight[word])
    ]
    assert len(fates) == len(tokens.unique())
    assert 0 < sum(fates) < len(fates)


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("field", ["input_dropout", "hidden_dropout", "output_dropout"])
def test_locked_dropout_has_one_mask_for_all_steps(field, locked, redraw):
    model = redraw(make_model("causal", **{field: 0.5}, locked_dropout=locked)).train()
    module = {
        "input_dropout": model.model.dropout,
        "hidden_dropout": model.model.layers[0].dropout,
        "output_dropout": model.dropout,
    }[field]
    masks = []
    module.register_forward_hook(lambda module, args, output: masks.append(output / args[0]))
    model(make_batch(length=12)["input_ids"])
    (mask,) = masks
    assert set(mask.round(decimals=3).unique().tolist()) == {0.0, 2.0}
    assert (mask == mask[:, :1]).all() == locked
    assert not (mask == mask[:1]).all()  # rows differ, and channels do
    assert not (mask == mask[..., :1]).all()


def test_nothing_is_dropped_after_the_last_layer():
    dropout = [layer.dropout.p for layer in make_model("base", num_hidden_layers=3, hidden_dropout=0.5).layers]
    assert dropout == [0.5, 0.5, 0.0]


# --- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["causal", "masked"])
def test_forget_bias_fills_the_forget_gate_alone(head, tmp_path):
    model = make_model(head, forget_bias=1.5)
    layers = [module for module in model.modules() if isinstance(module, QRNNLayer)]
    assert len(layers) == (4 if head == "masked" else 2)
    for layer in layers:
        biases = layer.gate_proj.bias.view(3, layer.hidden_size)  # z, f, o
        assert (biases[1] == 1.5).all()
        assert (biases[[0, 2]] == 0).all()
        layer.gate_proj.bias.data.fill_(0.25)
    model.save_pretrained(tmp_path)
    for name, value in HEADS[head][0].from_pretrained(tmp_path).state_dict().items():
        assert not name.endswith("gate_proj.bias") or (value == 0.25).all()


def test_initial_scales():
    config = make_config(hidden_size=64, connection="residual", intermediate_size=64, initializer_range=0.05)
    model = QRNNForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("gate_proj.weight"):
            bound = parameter.shape[1] ** -0.5
            assert 0.99 * bound < parameter.abs().max() <= bound
            assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        elif "norm" in name:
            assert (parameter == 1).all()
        elif name.endswith("bias"):
            assert (parameter == 0).all()
        else:
            assert parameter.std().item() == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 1.0),
        ({"tie_word_embeddings": True}, 0.3),
        ({"norm": "layer_norm", "initializer_range": 0.05}, 0.05),
        ({"connection": "residual", "tie_word_embeddings": True, "initializer_range": 0.05}, 0.05),
        ({"embedding_initializer_range": 0.7, "tie_word_embeddings": True}, 0.7),
    ],
    ids=str,
)
def test_initial_scale_of_the_embeddings(options, expected):
    model = QRNNForCausalLM(make_config(hidden_size=128, **options))
    assert model.model.embed_tokens.weight.std().item() == pytest.approx(expected, rel=0.05)


def test_initial_scale_of_the_gates():
    model = QRNNForCausalLM(make_config(hidden_size=64, gate_initializer_range=0.3, forget_bias=1.0))
    for name, parameter in model.named_parameters():
        if name.endswith("gate_proj.weight"):
            assert parameter.std().item() == pytest.approx(0.3, rel=0.05)
            assert parameter.abs().max() > 0.8  # a normal distribution: a uniform one would end at 0.52
        elif name.endswith("gate_proj.bias"):
            assert set(parameter.tolist()) == {0.0, 1.0}


@heads
@stacks
def test_every_parameter_has_a_gradient(head, stack):
    model = make_model(head, stack).train()
    output = model(**make_batch(head, with_labels=head != "base"))
    (output.last_hidden_state.square().sum() if head == "base" else output.loss).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without


def test_weight_dropout_leaves_the_names_as_they_are():
    """A weight that is dropped out is still one parameter under its own name, which an optimiser steps."""
    model, plain = make_model("causal", weight_dropout=0.5), make_model("causal")
    names = [name for name, _ in model.named_parameters()]
    assert names == [name for name, _ in plain.named_parameters()]
    assert list(model.state_dict()) == list(plain.state_dict())
    assert sum(name.endswith("gate_proj.weight") for name in names) == 2
    weight = model.model.layers[0].mixer.directions[0].gate_proj.weight
    before = weight.clone()
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1.0)
    model(**make_batch("causal", with_labels=True)).loss.backward()
    optimizer.step()
    assert not torch.equal(weight, before)


def test_plain_stack_ends_in_the_width_of_tied_embeddings():
    model = make_model("causal", embedding_size=6, hidden_size=10, tie_word_embeddings=True)
    assert model(ids(1, 3), output_hidden_states=True).hidden_states[-1].shape[-1] == 6
    assert isinstance(model.model.embed_proj, nn.Identity)
    assert isinstance(model.head_proj, nn.Identity)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_residual_stack_projects_to_and_from_the_width_of_tied_embeddings():
    model = make_model("causal", embedding_size=6, hidden_size=10, tie_word_embeddings=True, connection="residual")
    assert model.model.embed_proj.weight.shape == (10, 6)
    assert model.head_proj.weight.shape == (6, 10)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("head", ["causal", "masked"])
def test_bias_of_the_head_is_added_to_the_logits(head):
    model = make_model(head, lm_head_bias=True, tie_word_embeddings=True)
    batch = make_batch(head)
    assert not model.lm_head.bias.any()
    expected = model(**batch).logits
    bias = torch.randn(VOCAB_SIZE)
    model.lm_head.bias.data.copy_(bias)
    torch.testing.assert_close(model(**batch).logits, expected + bias)


@pytest.mark.parametrize("stack", ["plain", "plain-tied", "residual-tied"])
@pytest.mark.parametrize("vocab_size", [VOCAB_SIZE + 5, VOCAB_SIZE - 5])
def test_vocabulary_can_be_resized(stack, vocab_size, tmp_path, redraw):
    model = redraw(make_model("causal", stack))
    tokens = torch.randint(VOCAB_SIZE - 5, (2, 6))
    expected = model(tokens).logits
    model.resize_token_embeddings(vocab_size)
    common = min(VOCAB_SIZE, vocab_size)
    for resized in (model, saved_and_loaded(model, AutoModelForCausalLM, tmp_path)):
        assert resized(tokens, labels=tokens).logits.shape[-1] == vocab_size
        torch.testing.assert_close(resized(tokens).logits[..., :common], expected[..., :common])
        with pytest.raises(ValueError, match=f"vocab_size - 1 = {vocab_size - 1}"):
            resized(torch.tensor([[vocab_size]]))


# --- training aids ---------------------------------------------------------------------------------------------------

ALL_DROPOUTS = dict.fromkeys(DROPOUTS, 0.3)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("head", ["causal", "masked", "sequence", "token"])
@pytest.mark.parametrize("stack", ["plain", "dense", "residual-tied"])
def test_gradient_checkpointing_changes_no_gradient(stack, head, use_reentrant, redraw):
    """Not even of what is random: the second forward, in backward, must draw what the first one drew."""
    model = redraw(make_model(head, stack, **ALL_DROPOUTS)).train()
    batch = make_batch(head, with_labels=True)

    def gradients():
        model.zero_grad()
        torch.manual_seed(0)
        model(**batch).loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    expected = gradients()
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    torch.testing.assert_close(gradients(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("head", ["causal", "masked", "sequence", "token"])
@stacks
def test_16_bit_autocast(head, stack, redraw):
    model, batch = redraw(make_model(head, stack)), make_batch(head, with_labels=True)
    expected = model(**batch).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.train()(**batch).loss
    loss.backward()
    torch.testing.assert_close(loss.float(), expected, atol=2e-2, rtol=2e-2)
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


# --- packed sequences ------------------------------------------------------------------------------------------------

MARKS = ["position_ids", "seq_idx", "cu_seq_lens_q"]


def packed_batch(sequences: list[dict[str, list[int]]], marks: list[str]) -> dict[str, torch.Tensor]:
    """What Transformers' collator makes of the sequences, with some of its three marks of where they begin."""
    collator = DataCollatorWithFlattening(return_seq_idx=True, return_flash_attn_kwargs=True)
    batch = collator(sequences)
    return {name: batch[name] for name in ("input_ids", "labels", *marks)}


@pytest.mark.parametrize("mark", MARKS)
def test_a_packed_row_has_no_single_label(mark, redraw):
    model = redraw(make_model("sequence"))
    packed = packed_batch([{"input_ids": [1, 2, 3], "labels": [0, 0, 0]}] * 2, [mark])
    del packed["labels"]
    with pytest.raises(ValueError, match=f"`{mark}` must not mark several sequences in a row"):
        model(**packed)
    alone = torch.tensor([[1, 2, 3]])
    positions = torch.arange(3)[None]
    own_marks = {"position_ids": positions, "seq_idx": torch.ones_like(alone), "cu_seq_lens_q": torch.tensor([0, 3])}
    assert torch.equal(model(alone, **{mark: own_marks[mark]}).logits, model(alone).logits)
    padded = model(F.pad(alone, (2, 0)), torch.tensor([[0, 0, 1, 1, 1]]), F.pad(positions, (2, 0)))
    torch.testing.assert_close(padded.logits, model(alone).logits)


@pytest.mark.parametrize("marks", [*([mark] for mark in MARKS), MARKS], ids=[*MARKS, "all"])
@pytest.mark.parametrize("head", ["causal", "masked", "token", "token-bidirectional"])
@pytest.mark.parametrize("stack", ["plain", "dense", "residual-tied"])
def test_packed_sequences_are_as_if_alone(stack, head, marks, redraw):
    model = redraw(make_model(head, stack))
    kinds = NUM_LABELS if head.startswith("token") else VOCAB_SIZE
    sequences = [
        {"input_ids": torch.randint(VOCAB_SIZE, (n,)).tolist(), "labels": torch.randint(kinds, (n,)).tolist()}
        for n in (3, 1, 6, 2)
    ]
    packed = model(**packed_batch(sequences, marks))
    total, count, start = 0.0, 0, 0
    for sequence in sequences:
        row = {name: torch.tensor([values]) for name, values in sequence.items()}
        row["labels"][0, 0] = -100  # as the collator has it, for no token is told the first one of the next sequence
        alone, length = model(**row), row["input_ids"].shape[1]
        torch.testing.assert_close(packed.logits[:, start : start + length], alone.logits, atol=1e-5, rtol=1e-5)
        start += length
        if length > 1:
            total = total + alone.loss * (length - 1)
            count += length - 1
    torch.testing.assert_close(packed.loss, total / count, atol=1e-5, rtol=1e-5)


# --- saved is loaded -------------------------------------------------------------------------------------------------


def saved_and_loaded(model: nn.Module, auto_class: type, folder) -> nn.Module:
    model.save_pretrained(folder)
    return auto_class.from_pretrained(folder).eval()


@heads
@stacks
def test_saved_is_loaded(head, stack, tmp_path, redraw):
    model, batch = redraw(make_model(head, stack)), make_batch(head)
    loaded = saved_and_loaded(model, HEADS[head][1], tmp_path)
    assert type(loaded) is type(model)
    assert torch.equal(loaded(**batch)[0], model(**batch)[0])


@pytest.mark.parametrize("head", ["base", "sequence", "token"])
@pytest.mark.parametrize("stack", ["plain", "residual-tied"])
def test_language_model_lends_its_body_to_other_heads(head, stack, tmp_path, redraw):
    """Pretraining and fine-tuning: all of the body is loaded, the new head is fresh."""
    pretrained = redraw(make_model("causal", stack))
    pretrained.save_pretrained(tmp_path)
    model, info = HEADS[head][1].from_pretrained(tmp_path, num_labels=NUM_LABELS, output_loading_info=True)
    body = model if head == "base" else model.model
    for name, parameter in pretrained.model.named_parameters():
        assert torch.equal(body.get_parameter(name), parameter)
    assert all(name.startswith("score.") for name in info["missing_keys"])


def test_body_becomes_a_language_model(tmp_path, redraw):
    body = redraw(make_model("base", "plain-tied"))
    body.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(model.lm_head.weight, body.embed_tokens.weight)


# --- several devices, overrides, numbers -----------------------------------------------------------------------------


def put_on_another_device(module: nn.Module) -> None:
    """`meta` stands in for a second device, to which Accelerate moves what a module is given, and its output stays."""
    module.to("meta")
    add_hook_to_module(module, AlignDevicesHook(execution_device="meta", skip_keys=["cache"]))


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("connection", ["plain", "dense", "residual"])
@pytest.mark.parametrize("head", [QRNNForCausalLM, QRNNForSequenceClassification])
def test_layers_may_lie_on_several_devices(connection, padded, head):
    model = head(make_config(connection=connection, num_hidden_layers=3, use_cache=False)).eval()
    for module in (*model.model.layers[1:], model.model.norm, *list(model.children())[1:]):
        put_on_another_device(module)
    ids = torch.ones(2, 5, dtype=torch.long)
    mask = torch.ones(2, 5).index_fill(1, torch.tensor([4]), 0) if padded else None
    assert model(ids, attention_mask=mask).logits.device.type == "meta"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"connection": "residual"}, "`norm` must be 'layer_norm' or 'rms_norm' with connection='residual', got None"),
        ({"bidirectional": True}, "`use_cache` must be False or None in a bidirectional model, got True"),
        ({"num_hidden_layers": 3}, r"`kernel_size` must be a number from 1 up, or one per layer \(3\)"),
    ],
    ids=["residual", "bidirectional", "layers"],
)
def test_overrides_at_loading_are_checked(tmp_path, overrides, message):
    make_config(kernel_size=[2, 2]).save_pretrained(tmp_path)
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        QRNNModel(QRNNConfig.from_pretrained(tmp_path, **overrides))


def test_auto_map_of_a_class_whose_code_is_not_saved_leads_nowhere_wrong(tmp_path):
    class Unregistered(QRNNPreTrainedModel):
        def __init__(self, config):
            super().__init__(config)
            self.model = QRNNModel(config)
            self.post_init()

    config = make_config(auto_map={"AutoTokenizer": "tokenization.Mine", "AutoModel": "modeling_qrnn.QRNNModel"})
    Unregistered(config).save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map == {"AutoTokenizer": "tokenization.Mine", "AutoConfig": "configuration_qrnn.QRNNConfig"}
    assert not (tmp_path / "modeling_qrnn.py").exists() and (tmp_path / "configuration_qrnn.py").exists()


def test_saving_keeps_other_entries_of_the_auto_map(tmp_path):
    model = QRNNModel(make_config(auto_map={"AutoTokenizer": "tokenization.Mine"}))
    model.save_pretrained(tmp_path)
    auto_map = QRNNConfig.from_pretrained(tmp_path).auto_map
    assert auto_map["AutoTokenizer"] == "tokenization.Mine"
    assert auto_map["AutoModelForTokenClassification"] == "modeling_qrnn.QRNNForTokenClassification"


def test_a_mean_of_many_does_not_overflow():
    states = torch.full((1, 4096, 2), 20.0, dtype=torch.float16)
    assert torch.equal(read_out(states, None, "mean", bidirectional=False), states[:, 0])


def test_the_vocabulary_is_that_of_the_embeddings():
    model = QRNNModel(make_config())
    model.set_input_embeddings(nn.Embedding(VOCAB_SIZE + 5, model.config.input_size))
    assert model(torch.tensor([[VOCAB_SIZE + 4]])).last_hidden_state.shape == (1, 1, 8)


def test_a_cache_that_checkpointing_would_drop_is_refused():
    model = make_model("base").train()
    tokens = torch.ones(1, 4, dtype=torch.long)
    cache = model(tokens).cache
    model.activation_checkpointing_enable()
    with pytest.raises(ValueError, match="`cache` must be None in training with activation checkpointing"):
        model(tokens, cache=cache)
    with torch.no_grad():
        assert model(tokens, cache=cache).cache.get_seq_length() == 8
    assert model.eval()(tokens, cache=cache).cache.get_seq_length() == 12


def test_a_cache_of_fewer_rows_tells_how_to_repeat_it():
    model, tokens = make_model("causal"), torch.ones(3, 4, dtype=torch.long)
    cache = model(tokens[:1]).cache
    with pytest.raises(ValueError, match=r"a batch of 1 .* `cache.batch_repeat_interleave\(n\)` first"):
        model(tokens, cache=cache)
    cache.batch_repeat_interleave(3)
    assert model(tokens, cache=cache).logits.shape == (3, 4, VOCAB_SIZE)


def test_shapes_on_the_meta_device():
    model = make_model("causal").to("meta")
    tokens = torch.ones(2, 4, dtype=torch.long, device="meta")
    assert model(tokens, attention_mask=tokens).logits.shape == (2, 4, VOCAB_SIZE)
    assert model(tokens, position_ids=tokens).logits.shape == (2, 4, VOCAB_SIZE)


@pytest.mark.parametrize(
    ("head", "arguments", "message"),
    [
        ("base", {"input_ids": torch.ones(1, 4)}, "`input_ids` must be int64 or int32, got torch.float32"),
        (
            "base",
            {"cu_seq_lens_q": torch.tensor([0, 3, 9])},
            "`cu_seq_lens_q` must go from 0 to seq_len = 4, got 0 to 9",
        ),
        (
            "base",
            {"input_ids": torch.ones(2, 2, dtype=torch.long), "cu_seq_lens_q": torch.tensor([0, 2, 4])},
            r"`cu_seq_lens_q` must have .* a batch of 1, got \(3,\) and a batch of 2",
        ),
        *(
            (head, {"labels": torch.ones(4, dtype=torch.long)}, r"`labels` must have .* \(1, 4\), got \(4,\)")
            for head in ("causal", "masked", "token")
        ),
        ("causal", {"labels": torch.ones(1, 4)}, "`labels` must be int64, got torch.float32"),
        ("token", {"labels": torch.ones(1, 4, dtype=torch.int32)}, "`labels` must be int64, got torch.int32"),
        *(
            (head, {"labels": torch.tensor([[-100, 1, 2, wrong]])}, rf"`labels` must lie between 0 .* got {wrong}")
            for head in ("causal", "masked", "token")
            for wrong in (-1, 10_000)
        ),
        *(
            ("sequence", {"labels": torch.tensor([wrong])}, rf"`labels` must lie between 0 .* got {wrong}")
            for wrong in (-1, 10_000)
        ),
        *(
            (
                "sequence",
                {"labels": torch.ones(*shape, dtype=dtype)},
                rf"`labels` must have the shape {re.escape(str(expected))}, got {re.escape(str(shape))}",
            )
            for shape, dtype, expected in (
                ((3,), torch.long, (1,)),
                ((1, NUM_LABELS), torch.long, (1,)),
                ((NUM_LABELS,), torch.float, (1, NUM_LABELS)),
                ((1,), torch.float, (1, NUM_LABELS)),
            )
        ),
        (
            "causal",
            {"labels": torch.ones(1, 4, dtype=torch.long), "shift_labels": torch.tensor([[1, 2, 10_000, 3]])},
            "`shift_labels` must lie between 0 .* got 10000",
        ),
    ],
)
def test_more_bad_input_is_refused(head, arguments, message):
    model_class, _, options = HEADS[head]
    model = model_class(make_config(**options))
    with pytest.raises(ValueError, match=message):
        model(**{"input_ids": torch.ones(1, 4, dtype=torch.long), **arguments})
