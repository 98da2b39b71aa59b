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
"""Models that read audio: the front end, the laws for frames, the losses of CTC and of classification, SpecAugment."""

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForCTC,
    DynamicCache,
    Trainer,
    TrainingArguments,
)

from modeling_qrnn import (
    QRNNForAudioClassification,
    QRNNForCTC,
    QRNNSpeechConfig,
    QRNNSpeechModel,
    load_recurrent_state,
    save_recurrent_state,
)
from modeling_qrnn.modeling_qrnn_speech import draw_spans


FRONT_ENDS = {
    "every frame": {"stride": 1},
    "stride 3": {"stride": 3},
    "max": {"stride": 2, "temporal_pooling": "max"},
    "average": {"stride": 1, "temporal_pooling": "average", "temporal_pooling_size": 3},
}
STACKS = {
    "plain": {},
    "dense": {"connection": "dense", "pooling": "ifo"},
    "residual": {"connection": "residual", "intermediate_size": 8, "pooling": "f"},
}
MODELS = {
    **FRONT_ENDS,
    **{f"{stack}, stride 2": {**options, "stride": 2} for stack, options in STACKS.items()},
    "dense behind max": {**STACKS["dense"], **FRONT_ENDS["max"]},
}
NUM_FRAMES = 24
MASK = torch.zeros(5, NUM_FRAMES, dtype=torch.long)
MASK[0, 7:] = MASK[1, :14] = MASK[2, ::2] = MASK[4] = 1  # left, right, in between, pads alone, none


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def draw(batch_size=5, num_frames=NUM_FRAMES):
    return torch.randn(batch_size, num_frames, 4, dtype=torch.float64)


def make(redraw, model_class=QRNNSpeechModel, **options):
    sizes = {"num_mel_bins": 4, "hidden_size": 6, "num_hidden_layers": 3, "kernel_size": [3, 1, 2], "vocab_size": 7}
    return redraw(model_class(QRNNSpeechConfig(**{**sizes, "forget_bias": 1.0, "zoneout": 0.2, **options})).double())


def hidden_states(model, *args, **kwargs):
    return model(*args, **kwargs).last_hidden_state


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def model(request, redraw):
    return make(redraw, **request.param)


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def both_ways(request, redraw):
    return make(redraw, **request.param, bidirectional=True)


# --- the front end ---


@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 5, 11, 12, 13])
def test_frames_become_steps(model, num_frames):
    ratio = model.config.subsampling_ratio
    output = hidden_states(model, draw(2, num_frames))
    assert output.shape == (2, -(-num_frames // ratio), 6)
    assert model._get_feat_extract_output_lengths(torch.tensor(num_frames)) == output.shape[1]


@pytest.mark.parametrize("front_end", FRONT_ENDS.values(), ids=FRONT_ENDS)
def test_front_end_is_a_strided_convolution_and_a_pool(redraw, front_end):
    model = make(redraw, **front_end)
    config, frames = model.config, draw()
    kernel = model.subsampling.conv.weight.view(6, config.stride, 4).transpose(1, 2)
    outputs = F.conv1d(frames.transpose(1, 2), kernel, model.subsampling.conv.bias, stride=config.stride).relu()
    if config.temporal_pooling is not None:
        pool = {"max": F.max_pool1d, "average": F.avg_pool1d}[config.temporal_pooling]
        outputs = pool(outputs, config.temporal_pooling_size)
    close(model.subsampling(frames), outputs.transpose(1, 2))


def test_missing_frames_are_zero(model):
    frames = draw(2, 13)
    filled = F.pad(frames, (0, 0, 0, -13 % model.config.subsampling_ratio))
    close(hidden_states(model, frames), hidden_states(model, filled), 0)


def test_front_end_starts_wide_enough():
    torch.manual_seed(0)
    model = QRNNSpeechModel(QRNNSpeechConfig(hidden_size=64))
    assert model.subsampling.conv.weight.std().item() == pytest.approx((3 * 160) ** -0.5, rel=0.05)
    assert 0.2 < model.subsampling(torch.randn(4, 100, 80)).std() < 1


# --- the laws ---


@torch.no_grad()
def test_the_future_is_never_seen(model):
    frames, ratio = draw(2), model.config.subsampling_ratio
    whole = hidden_states(model, frames)
    for step in range(1, NUM_FRAMES // ratio):
        changed = torch.cat([frames[:, : step * ratio], frames[:, step * ratio :] + 1], dim=1)
        close(hidden_states(model, changed)[:, :step], whole[:, :step], 0)
        assert (hidden_states(model, changed)[:, step:] != whole[:, step:]).any(dim=2).all()


@torch.no_grad()
@pytest.mark.parametrize("lengths", [(1,) * 6, (3, 1, 2)], ids=str)
def test_chunks_make_no_difference(model, lengths, tmp_path):
    """Chunks of whole steps, with the state written and read in between."""
    cuts = [length * model.config.subsampling_ratio for length in lengths]
    frames, outputs, cache = draw(2, sum(cuts)), [], DynamicCache(config=model.config)
    for chunk in frames.split(cuts, dim=1):
        output = model(chunk, cache=cache)
        outputs.append(output.last_hidden_state)
        save_recurrent_state(output.cache, tmp_path / "state.safetensors")
        cache = load_recurrent_state(tmp_path / "state.safetensors", model.config)
    close(torch.cat(outputs, dim=1), hidden_states(model, frames))


@torch.no_grad()
def test_ragged_chunks_make_no_difference(model):
    """Each row gets chunks of its own lengths, and its frames stand anywhere in them."""
    ratio, cache = model.config.subsampling_ratio, None
    whole, heard = [[], [], []], [[], [], []]
    for lengths in ([1, 0, 2], [0, 1, 1], [2, 2, 0]):  # steps of each row
        chunk, mask = draw(3, 2 * ratio), torch.zeros(3, 2 * ratio, dtype=torch.bool)
        for row, length in enumerate(lengths):
            mask[row, torch.randperm(2 * ratio)[: length * ratio]] = True
            whole[row].append(chunk[row, mask[row]])
        output = model(chunk, attention_mask=mask, cache=cache, use_cache=True)
        cache = output.cache
        for row, length in enumerate(lengths):
            heard[row].append(output.last_hidden_state[row, :length])
    for frames, states in zip(whole, heard, strict=True):
        close(torch.cat(states), hidden_states(model, torch.cat(frames)[None])[0])


def gradients(model, loss):
    return torch.autograd.grad(loss, list(model.parameters()))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_pads_make_no_difference(redraw, options, bidirectional):
    model, frames = make(redraw, **options, bidirectional=bidirectional), draw()
    together, weight = hidden_states(model, frames, attention_mask=MASK), torch.randn(6).double()
    is_real = model._get_feature_vector_attention_mask(together.shape[1], MASK)
    assert not together[~is_real].any()
    alone = [hidden_states(model, frames[row, mask][None])[0] for row, mask in enumerate(MASK.bool()) if mask.any()]
    close(together[is_real], torch.cat(alone))
    assert is_real.sum(dim=1).tolist() == [-(-n // model.config.subsampling_ratio) for n in MASK.sum(dim=1).tolist()]

    losses = (together.pow(2) @ weight).sum(), sum((output.pow(2) @ weight).sum() for output in alone)
    for one, other in zip(*(gradients(model, loss) for loss in losses), strict=True):
        close(one, other, 1e-11)


def test_pads_hold_anything(model):
    frames = draw()
    garbage = frames.masked_fill(MASK[..., None] == 0, torch.nan)
    outputs = [hidden_states(model, x, attention_mask=MASK) for x in (frames, garbage)]
    close(*outputs, 0)
    for one, other in zip(*(gradients(model, output.sum()) for output in outputs), strict=True):
        close(one, other, 0)


@torch.no_grad()
def test_batch_makes_no_difference(both_ways):
    frames, rows = draw(), [3, 3, 0, 1, 4]
    whole = hidden_states(both_ways, frames, attention_mask=MASK)
    close(hidden_states(both_ways, frames[rows], attention_mask=MASK[rows]), whole[rows])


def test_gradients_are_whole(redraw):
    model = make(redraw, stride=2, temporal_pooling="average", zoneout=0.0).train()
    assert torch.autograd.gradcheck(
        lambda x: hidden_states(model, x, attention_mask=MASK[:3]), draw(3).requires_grad_()
    )


def test_gradient_checkpointing_makes_no_difference(model):
    frames, losses = draw(), []
    for checkpointed in (False, True):
        if checkpointed:
            model.activation_checkpointing_enable()
        torch.manual_seed(1)
        losses.append(hidden_states(model.train(), frames, attention_mask=MASK).pow(2).sum())
    for one, other in zip(*(gradients(model, loss) for loss in losses), strict=True):
        close(one, other)


@torch.no_grad()
def test_compiled_whole(redraw):
    model = make(redraw, QRNNForCTC, stride=3, num_hidden_layers=1, kernel_size=2)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    frames = draw()
    close(compiled(frames, attention_mask=MASK).logits, model(frames, attention_mask=MASK).logits)
    caches = [DynamicCache(config=model.config) for _ in range(2)]
    for chunk in frames.split(6, dim=1):
        one, other = (f(chunk, cache=cache).logits for f, cache in zip((compiled, model), caches, strict=True))
        close(one, other)


# --- CTC ---


LABELS = torch.tensor([[3, 4, 4], [5, -100, -100], [1, 2, 6], [-100] * 3, [2, 2, 2]])


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_loss_of_a_batch_is_that_of_its_rows(redraw, bidirectional, reduction):
    options = {"bidirectional": bidirectional, "ctc_loss_reduction": reduction}
    model, frames = make(redraw, QRNNForCTC, **options), draw()
    rows = [0, 1, 2, 4]  # row 3 is pads alone
    together = model(frames[rows], attention_mask=MASK[rows], labels=LABELS[rows]).loss
    alone = [model(frames[row, MASK[row] != 0][None], labels=LABELS[row : row + 1]).loss for row in rows]
    alone = sum(alone) / (len(rows) if reduction == "mean" else 1)
    close(together, alone, 1e-5)  # Transformers computes the loss in float32
    for one, other in zip(*(gradients(model, loss) for loss in (together, alone)), strict=True):
        close(one, other, 1e-5)


def test_loss_is_that_of_all_alignments(redraw):
    """Against the definition: the sum over all the paths that collapse to the label."""
    model = make(redraw, QRNNForCTC, stride=2, vocab_size=3)
    frames, label = draw(1, 7), [1, 1]
    output = model(frames, labels=torch.tensor([label]))
    probabilities = output.logits[0].softmax(dim=-1)
    total = 0.0
    for path in torch.cartesian_prod(*[torch.arange(3)] * 4):
        collapsed = [token for token in path.unique_consecutive().tolist() if token != 0]
        if collapsed == label:
            total += probabilities[range(4), path].prod()
    close(output.loss, (-total.log() / 2).float(), 1e-5)  # "mean" is per token


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_come_in_the_dtype_of_the_extractor(redraw, dtype):
    """Which is float32, whatever that of the model is."""
    model, features = make(redraw, QRNNForCTC).to(dtype), draw()
    close(model(features).logits, model(features.to(dtype)).logits)


@torch.no_grad()
def test_a_model_quantised_by_torch_reads_features(redraw):
    model, features = make(redraw, QRNNForCTC).float(), draw()
    quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear})
    close(quantised(features).logits, model(features).logits, 0.1)


def test_a_batch_of_nothing(redraw):
    model, features = make(redraw, QRNNForCTC), draw(batch_size=0)
    logits = model(features, attention_mask=torch.ones(features.shape[:2])).logits
    assert logits.shape == model(features).logits.shape == (0, NUM_FRAMES // 2, 7)


def test_labels_may_be_padded_with_the_blank(redraw):
    model, frames = make(redraw, QRNNForCTC), draw()
    close(model(frames, labels=LABELS).loss, model(frames, labels=LABELS.masked_fill(LABELS == -100, 0)).loss, 0)


@torch.no_grad()
def test_blank_is_certain_at_pads(redraw):
    model = make(redraw, QRNNForCTC, pad_token_id=2)
    logits = model(draw(), attention_mask=MASK).logits
    is_real = model._get_feature_vector_attention_mask(logits.shape[1], MASK)
    assert (logits[~is_real].softmax(dim=-1)[:, 2] == 1).all()
    assert (logits[is_real].argmax(dim=-1) != 2).any()
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("labels", "parts"),
    [
        (torch.tensor([[1, 2, 3, 4, 5]]), ["`labels`", "row 0 needs 5 steps", "has 4"]),
        (torch.tensor([[1, 1, 1, -100, -100]]), ["`labels`", "row 0 needs 5 steps", "has 4", "ctc_zero_infinity"]),
        (torch.tensor([[1, -100, 1, 0, 1]]), ["`labels`", "row 0 needs 5 steps", "has 4"]),
        (torch.tensor([[7]]), ["`labels`", "vocab_size - 1 = 6", "got 7"]),
        (torch.tensor([[-1, -100]]), ["`labels`", "got -1"]),
        (torch.tensor([[-100, 9, 1]]), ["`labels`", "or be -100, got 9"]),
        (torch.tensor([1, 2]), ["`labels`", "(batch, num_tokens)", "got (2,)"]),
        (torch.tensor([[1], [2]]), ["`labels`", "batch of 1", "got (2, 1)"]),
    ],
    ids=str,
)
def test_wrong_labels(redraw, labels, parts):
    model = make(redraw, QRNNForCTC, stride=2)
    with pytest.raises(ValueError) as error:
        model(draw(1, 8), labels=labels)
    assert all(part in str(error.value) for part in parts)


def test_evaluation_does_not_gather_the_cache(redraw, tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", use_cache=True)
    rows = [{"input_features": frames, "labels": torch.tensor([1, 2])} for frames in draw(2)]
    predictions = Trainer(make(redraw, QRNNForCTC, stride=2), args).predict(rows).predictions
    assert predictions.shape == (2, NUM_FRAMES // 2, 7)


def test_labels_that_just_fit(redraw):
    model = make(redraw, QRNNForCTC, stride=2)
    assert model(draw(1, 8), labels=torch.tensor([[1, 2, 2]])).loss.isfinite()
    assert model(draw(1, 8), labels=torch.tensor([[-100, 1, -100, 2, 1, 2, -100]])).loss.isfinite()


def test_there_are_no_embeddings_of_tokens(redraw):
    with pytest.raises(NotImplementedError, match=r"load it with `from_pretrained\(\.\.\., vocab_size="):
        make(redraw, QRNNForCTC).resize_token_embeddings(9)


def test_too_long_labels_may_count_as_zero(redraw):
    model, frames = make(redraw, QRNNForCTC, stride=2, ctc_zero_infinity=True, ctc_loss_reduction="sum"), draw(2, 8)
    labels = torch.tensor([[1, 1, 1], [1, 2, 3]])
    loss = model(frames, labels=labels).loss
    close(loss, model(frames[1:], labels=labels[1:]).loss, 1e-5)
    assert all(gradient.isfinite().all() for gradient in gradients(model, loss))


# --- classification ---


@pytest.mark.parametrize("pooling", ["last", "max", "mean", "concat"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_recordings_are_classified_as_if_alone(redraw, pooling, bidirectional):
    options = {"classifier_pooling": pooling, "bidirectional": bidirectional, "num_labels": 4}
    model, frames, rows = make(redraw, QRNNForAudioClassification, **options), draw(), [0, 1, 2, 4]
    labels = torch.tensor([0, 1, 2, 3])
    together = model(frames[rows], attention_mask=MASK[rows], labels=labels)
    alone = [
        model(frames[row, MASK[row] != 0][None], labels=label[None]) for row, label in zip(rows, labels, strict=True)
    ]
    close(together.logits, torch.cat([output.logits for output in alone]))
    losses = together.loss, sum(output.loss for output in alone) / 4
    close(*losses)
    for one, other in zip(*(gradients(model, loss) for loss in losses), strict=True):
        close(one, other)


@torch.no_grad()
def test_exported_loss_takes_any_batch(redraw):
    model = make(redraw, QRNNForAudioClassification, num_labels=3, problem_type="single_label_classification")
    shapes = {"input_features": {0: torch.export.Dim("batch")}, "labels": {0: torch.export.Dim("batch")}}
    sample = {"input_features": draw(4), "labels": torch.tensor([0, 1, 2, 0])}
    program = torch.export.export(model, (), sample, dynamic_shapes=shapes).module()
    for batch_size in (2, 7):
        batch = {"input_features": draw(batch_size), "labels": torch.arange(batch_size) % 3}
        close(program(**batch).loss, model(**batch).loss)


def test_read_out_of_both_directions(redraw):
    model = make(redraw, QRNNForAudioClassification, bidirectional=True, classifier_pooling="last", stride=2)
    frames = draw()
    states = model.model(frames, attention_mask=MASK).last_hidden_state
    pooled = torch.cat([states[1, 6, :3], states[1, 0, 3:]])  # 14 frames are 7 steps
    close(model(frames, attention_mask=MASK).logits[1], model.score(pooled))


@torch.no_grad()
def test_classification_of_a_stream(redraw):
    model, frames = make(redraw, QRNNForAudioClassification, stride=2), draw()
    first = model(frames[:, :10], use_cache=True)
    second = model(frames[:, 10:], cache=first.cache)
    close(second.logits, model(frames).logits)


@pytest.mark.parametrize(
    ("options", "labels"),
    [({"num_labels": 1}, torch.randn(5).double()), ({"num_labels": 3}, torch.rand(5, 3).double().round())],
    ids=["regression", "several labels"],
)
def test_other_problems(redraw, options, labels):
    model = make(redraw, QRNNForAudioClassification, **options)
    output = model(draw(), labels=labels)
    loss = F.mse_loss if options["num_labels"] == 1 else F.binary_cross_entropy_with_logits
    close(output.loss, loss(output.logits.squeeze(-1), labels))


# --- SpecAugment ---


def test_spans_cover_what_they_should():
    spans = draw_spans(2000, 100, probability=0.3, length=8, device=torch.device("cpu"))
    beyond_the_start = spans[:, 8:].float().mean().item()
    assert beyond_the_start == pytest.approx(1 - (1 - 0.3 / 8) ** 8, abs=0.01)
    # Each run of hidden positions is a whole span at least, unless the end cuts it.
    for row in spans[:50]:
        values, lengths = row.unique_consecutive(return_counts=True)
        assert (lengths[values][: -1 if row[-1] else None] >= 8).all()


def test_spans_of_any_size():
    assert draw_spans(3, 5, probability=0.9, length=1, device=torch.device("cpu")).shape == (3, 5)
    assert draw_spans(3, 2, probability=0.9, length=10, device=torch.device("cpu")).shape == (3, 2)
    assert not draw_spans(3, 50, probability=0.0, length=10, device=torch.device("cpu")).any()


def test_spec_augment_acts_in_training_alone(redraw):
    hiding = {"mask_time_prob": 0.5, "mask_time_length": 3, "mask_feature_prob": 0.5, "mask_feature_length": 2}
    model, plain, frames = make(redraw, **hiding, zoneout=0.0), make(redraw, zoneout=0.0), draw()
    plain.load_state_dict(model.state_dict())
    close(hidden_states(model, frames), hidden_states(plain, frames), 0)
    model.train()
    torch.manual_seed(3)
    first, hidden = hidden_states(model, frames), model._hide_spans(frames)
    torch.manual_seed(3)
    second = hidden_states(model, frames)
    close(first, second, 0)
    assert (first != hidden_states(plain, frames)).any()
    # what is hidden is whole frames and whole bands
    hidden_frames, hidden_bands = (hidden == 0).all(dim=2), (hidden == 0).all(dim=1)
    assert hidden_frames.any() and hidden_bands.any()
    assert torch.equal(hidden == 0, hidden_frames[:, :, None] | hidden_bands[:, None])


# --- what is refused ---


@pytest.mark.parametrize(
    ("inputs", "parts"),
    [
        ({"input_features": torch.zeros(1, 5, 3)}, ["`input_features`", "num_mel_bins=4", "(1, 5, 3)"]),
        ({"input_features": torch.zeros(1, 0, 4)}, ["`input_features`", "at least one frame", "(1, 0, 4)"]),
        ({"input_features": torch.zeros(5, 4)}, ["`input_features`", "(5, 4)"]),
        (
            {"input_features": torch.zeros(1, 5, 4).double(), "attention_mask": torch.ones(1, 6)},
            ["`attention_mask`", "(1, 5)", "(1, 6)"],
        ),
        (
            {"input_features": torch.zeros(2, 5, 4).double(), "use_cache": True},
            ["`input_features`", "whole steps of 2 frames", "[5, 5]"],
        ),
        (
            {
                "input_features": torch.zeros(2, 6, 4).double(),
                "attention_mask": torch.tensor([[1] * 6, [0] + [1] * 5]),
                "use_cache": True,
            },
            ["whole steps of 2 frames", "[6, 5]"],
        ),
    ],
    ids=["width", "no frames", "no batch", "mask", "half a step", "half a step in one row"],
)
def test_wrong_inputs(redraw, inputs, parts):
    with pytest.raises(ValueError) as error:
        make(redraw)(**inputs)
    assert all(part in str(error.value) for part in parts)


def test_cache_of_another_model(redraw):
    cache = make(redraw, hidden_size=8)(draw(), use_cache=True).cache
    with pytest.raises(ValueError, match="`cache` does not fit"):
        make(redraw)(draw(), cache=cache)


@pytest.mark.parametrize("option", ["use_cache", "cache"])
def test_bidirectional_models_carry_no_state(redraw, option):
    model = make(redraw, bidirectional=True)
    value = True if option == "use_cache" else DynamicCache(config=model.config)
    with pytest.raises(ValueError, match=f"`{option}` was set, but a bidirectional model"):
        model(draw(), **{option: value})


# --- files ---


@torch.no_grad()
@pytest.mark.parametrize(
    ("auto_class", "model_class"),
    [
        (AutoModel, QRNNSpeechModel),
        (AutoModelForCTC, QRNNForCTC),
        (AutoModelForAudioClassification, QRNNForAudioClassification),
    ],
)
def test_saved_is_loaded(redraw, auto_class, model_class, tmp_path):
    model, frames = make(redraw, model_class, stride=3, temporal_pooling="max"), draw()
    model.save_pretrained(tmp_path)
    loaded = auto_class.from_pretrained(tmp_path)
    assert type(loaded) is model_class
    assert torch.equal(loaded(frames, attention_mask=MASK)[0], model(frames, attention_mask=MASK)[0])
    assert type(auto_class.from_config(model.config)) is model_class


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["last", "max", "mean", "concat"])
def test_only_the_last_step_can_be_read_chunk_by_chunk(pooling, redraw):
    model = make(redraw, QRNNForAudioClassification, stride=2, classifier_pooling=pooling)
    frames, mask = draw(2, 12), torch.ones(2, 12, dtype=torch.long)
    cache = model(frames[:, :6], use_cache=True).cache
    if pooling != "last":
        with pytest.raises(ValueError, match=f"`cache` must be empty with classifier_pooling='{pooling}'"):
            model(frames[:, 6:], cache=cache)
        return
    mask[1, 6:] = 0
    with pytest.raises(ValueError, match="`attention_mask` must show a real token or frame in each row"):
        model(frames[:, 6:], attention_mask=mask[:, 6:], cache=cache)
    torch.testing.assert_close(model(frames[:, 6:], cache=cache).logits, model(frames).logits)
