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
"""The model of time series: laws of DESIGN section 5, scaling, missing values, heads, horizons, sample paths."""

import itertools
import re

import numpy as np
import pytest
import torch
from torch.distributions import NegativeBinomial, Normal, StudentT
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTimeSeriesPrediction,
    DynamicCache,
    Trainer,
    TrainingArguments,
)

from modeling_qrnn import (
    QRNNForTimeSeriesPrediction,
    QRNNTimeSeriesConfig,
    QRNNTimeSeriesModel,
    load_recurrent_state,
    save_recurrent_state,
)


NAN = float("nan")
SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "kernel_size": 3, "prediction_length": 5, "num_input_channels": 3}
HORIZONS = ["direct", "autoregressive"]
MODES = ["independent", "mixed"]
LOSSES = ["mse", "mae", "huber", "nll", "quantile"]
SCALINGS = [None, "mean", "std", "last", "last_std", "revin"]
# Every horizon with every mode, with patches of one value and more, with covariates and without
MODELS = [
    {"horizon": horizon, "channel_mode": mode, "patch_length": patch_length, "num_time_features": features}
    for horizon, mode, (patch_length, features) in itertools.product(HORIZONS, MODES, [(1, 0), (4, 2)])
]
BLOCKS = {"connection": "residual", "intermediate_size": 12, "pooling": "ifo"}


@pytest.fixture
def make_model(redraw):
    """A wide random model in float64, the numbers that belong to single channels included."""

    def make(model_class=QRNNForTimeSeriesPrediction, **options):
        model = redraw(model_class(QRNNTimeSeriesConfig(**SIZES | options)), std=0.4)
        return model.to(torch.float64)

    return make


def make_batch(config: QRNNTimeSeriesConfig, length: int = 13, future: int = 5, batch_size: int = 3) -> dict:
    """Random walks with gaps, and covariates if the model has any."""
    shape = batch_size, length + future, config.num_input_channels
    series = torch.randn(shape, dtype=torch.float64).cumsum(dim=1) + 5
    series[torch.rand(shape) < 0.15] = NAN
    series[:, 0] = 1.0  # what comes before the first value is not there
    batch = {"past_values": series[:, :length], "future_values": series[:, length:]}
    if config.num_time_features:
        features = torch.randn(batch_size, length + future, config.num_time_features, dtype=torch.float64)
        batch |= {"past_time_features": features[:, :length], "future_time_features": features[:, length:]}
    return batch


MASKS = ("past_observed_mask", "future_observed_mask")


def rows(batch: dict, index) -> dict:
    return {name: value[index] for name, value in batch.items()}


def close(one, other, **tolerance):
    torch.testing.assert_close(one, other, **{"rtol": 1e-10, "atol": 1e-10} | tolerance)


def as_counts(batch: dict) -> dict:
    return {name: v.abs().round() if "values" in name else v for name, v in batch.items()}


# --- laws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", MODELS, ids=str)
@pytest.mark.parametrize("pad", [NAN, 1e6], ids=["nan", "masked"])
@torch.no_grad()
def test_a_shorter_series_in_a_batch_is_what_it_is_alone(options, pad, make_model):
    """Also where its first patch is not full."""
    model = make_model(**options, **BLOCKS)
    lengths = [13, 9, 4, 1]
    batch = make_batch(model.config, batch_size=len(lengths))
    begins = [13 - length for length in lengths]
    for row, begin in enumerate(begins):
        batch["past_values"][row, begin] = 2.0
    alone = [
        model(**{n: v[begin:][None] if "past" in n else v[None] for n, v in rows(batch, row).items()})
        for row, begin in enumerate(begins)
    ]
    batch["past_observed_mask"] = torch.ones(len(lengths), 13)
    for row, begin in enumerate(begins):
        batch["past_values"][row, :begin] = pad
        if options["num_time_features"]:
            batch["past_time_features"][row, :begin] = 7.0
        batch["past_observed_mask"][row, :begin] = 0
    together = model(**batch)
    for row, single in enumerate(alone):
        close(together.prediction_outputs[row], single.prediction_outputs[0])
        close(together.loc[row], single.loc[0])


@pytest.mark.parametrize("options", MODELS, ids=str)
@torch.no_grad()
def test_the_batch_is_invisible(options, make_model):
    model = make_model(**options)
    batch = make_batch(model.config, batch_size=4)
    whole = model(**batch).prediction_outputs
    for index in ([2], [3, 0], [1, 1, 2]):
        close(model(**rows(batch, index)).prediction_outputs, whole[index])


@pytest.mark.parametrize("options", MODELS, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_missing_changes_nothing(options, loss, make_model):
    """Whatever stands there, and however it is said; no gradient turns to NaN."""
    model = make_model(**options, loss=loss)
    marked = make_batch(model.config)
    expected = model(**marked)
    expected.loss.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    assert all(gradient.isfinite().all() for gradient in gradients)
    for fill in (0.0, -1e5, NAN):
        model.zero_grad()
        masked = dict(marked)
        for part in ("past", "future"):
            is_missing = marked[f"{part}_values"].isnan()
            assert is_missing.any()
            masked[f"{part}_values"] = marked[f"{part}_values"].masked_fill(is_missing, fill)
            masked[f"{part}_observed_mask"] = ~is_missing
        outputs = model(**masked)
        outputs.loss.backward()
        close(outputs.loss, expected.loss)
        close(outputs.prediction_outputs, expected.prediction_outputs)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            close(parameter.grad, gradient)


@torch.no_grad()
def test_a_gap_is_not_an_absence(make_model):
    """Time passes at a missing value, unlike at a pad."""
    model = make_model()
    past = torch.randn(1, 9, 3, dtype=torch.float64)
    gap = torch.cat([past[:, :5], torch.full_like(past[:, :1], NAN), past[:, 5:]], dim=1)
    assert (model(gap).prediction_outputs - model(past).prediction_outputs).abs().max() > 1e-3


@pytest.mark.parametrize("patch_length", [1, 4])
@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_whole_patch_by_patch_and_over_a_file(patch_length, mode, make_model, tmp_path):
    model = make_model(QRNNTimeSeriesModel, patch_length=patch_length, channel_mode=mode, num_time_features=2)
    batch = make_batch(model.config, length=4 * 5 + 3)
    past = {"past_values": batch["past_values"], "past_time_features": batch["past_time_features"]}
    whole = model(**past)
    cache, outputs, begin = None, [], 0
    for size in (4 * 2 + 3, 4, 8):  # the first patch of the series may be short
        chunk = {name: value[:, begin : begin + size] for name, value in past.items()}
        output = model(**chunk, cache=cache, loc=whole.loc, scale=whole.scale)
        save_recurrent_state(output.cache, tmp_path / "state.safetensors")
        cache = load_recurrent_state(tmp_path / "state.safetensors", model.config)
        outputs.append(output.last_hidden_state)
        begin += size
    close(torch.cat(outputs, dim=1), whole.last_hidden_state)


@pytest.mark.parametrize("kernel_size", [1, 2])
@pytest.mark.parametrize("patch_length", [1, 4])
@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_series_that_begin_in_a_later_chunk(mode, patch_length, kernel_size, make_model):
    """What is missing before them is a pad, which a gap of a series that has begun is not."""
    options = {"patch_length": patch_length, "channel_mode": mode, "kernel_size": kernel_size}
    model = make_model(QRNNTimeSeriesModel, **options)
    past = torch.randn(3, 16, 3, dtype=torch.float64)
    past[1, :10] = past[2, :4, 1] = past[0, 4:10] = NAN
    whole = model(past)
    cache, outputs = None, []
    for chunk in past.split(4, dim=1):
        output = model(chunk, cache=cache, loc=whole.loc, scale=whole.scale)
        cache = output.cache
        outputs.append(output.last_hidden_state)
    close(torch.cat(outputs, dim=1), whole.last_hidden_state)


@pytest.mark.parametrize("features", [0, 2])
@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_causality(mode, features, make_model):
    """A forecast depends on the patches before it, and on covariates up to its own patch."""
    model = make_model(horizon="autoregressive", channel_mode=mode, patch_length=2, num_time_features=features)
    batch = make_batch(model.config, future=9)
    before = model(**batch).prediction_outputs
    for step in range(9):
        changed = {name: value.clone() for name, value in batch.items()}
        changed["future_values"][:, step] = 9.0
        difference = (model(**changed).prediction_outputs - before).abs().amax(dim=(0, 2))
        next_patch = (step // 2 + 1) * 2
        assert not difference[:next_patch].any()
        assert (difference[next_patch:] > 0).all()
        if features:
            changed = {name: value.clone() for name, value in batch.items()}
            changed["future_time_features"][:, step] += 1
            difference = (model(**changed).prediction_outputs - before).abs().amax(dim=(0, 2))
            assert not difference[: next_patch - 2].any()
            assert (difference[next_patch - 2 :] > 0).all()


@torch.no_grad()
def test_a_covariate_of_a_direct_forecast_acts_on_its_own_value(make_model):
    model = make_model(num_time_features=2)
    batch = make_batch(model.config)
    before = model(**batch).prediction_outputs
    batch["future_time_features"][:, 3] += 1
    difference = (model(**batch).prediction_outputs - before).abs().amax(dim=(0, 2))
    assert difference[3] > 1e-3
    assert not difference[[0, 1, 2, 4]].any()


@torch.no_grad()
def test_independent_channels_are_series_of_their_own(make_model):
    """Of any number and in any order, where nothing belongs to single ones."""
    model = make_model(patch_length=2, scaling="last_std")
    past = make_batch(model.config)["past_values"]
    whole = model(past)
    for channels in ([0], [2, 1], [1, 1, 0, 2]):
        part = model(past[..., channels])
        close(part.prediction_outputs, whole.prediction_outputs[..., channels])
    close(model(past[..., 1]).prediction_outputs, whole.prediction_outputs[..., 1])


@torch.no_grad()
def test_channels_that_know_each_other_or_themselves(make_model):
    past = torch.randn(2, 9, 1, dtype=torch.float64).expand(-1, -1, 3).clone()
    for options in ({"channel_embedding": True}, {"channel_mode": "mixed"}):
        one, two, _ = make_model(**options)(past).prediction_outputs.unbind(2)
        assert (one - two).abs().max() > 1e-3
    model = make_model(channel_mode="mixed")
    before = model(past).prediction_outputs
    past[:, 3, 0] += 1
    assert (model(past).prediction_outputs - before)[..., 1:].abs().min() > 1e-6


# --- scaling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scaling", "factor", "shift"),
    [
        ("std", 3.0, -7.0),
        ("last_std", 3.0, -7.0),
        ("revin", 3.0, -7.0),
        ("last", 1.0, -7.0),
        ("mean", 3.0, 0.0),
        ("std", 1e-9, 1.0),
        ("std", 1e9, 0.0),
    ],
)
@pytest.mark.parametrize("loss", ["mse", "nll", "quantile"])
@pytest.mark.parametrize("horizon", HORIZONS)
@torch.no_grad()
def test_forecasts_follow_the_units(scaling, factor, shift, loss, horizon, make_model):
    model = make_model(scaling=scaling, loss=loss, horizon=horizon, patch_length=2)
    batch = make_batch(model.config)
    before = model(**batch)
    after = model(**{name: factor * values + shift for name, values in batch.items()})
    tolerance = {"rtol": 1e-10 if factor > 1e-6 else 1e-6, "atol": 1e-10}
    close(after.prediction_outputs, factor * before.prediction_outputs + shift, **tolerance)
    for one, other in zip(after.params, before.params, strict=True):
        close(one, other, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_what_scaling_takes_away(make_model):
    past = torch.tensor([[[4.0, 1.0], [NAN, 3.0], [8.0, NAN], [6.0, 2.0]]], dtype=torch.float64)
    values = [past[0, :, channel][~past[0, :, channel].isnan()] for channel in range(2)]
    std = torch.stack([v.std(correction=0) for v in values])
    expected = {
        None: (torch.zeros(2), torch.ones(2)),
        "mean": (torch.zeros(2), torch.stack([v.mean() for v in values])),
        "std": (torch.stack([v.mean() for v in values]), std),
        "last": (torch.tensor([6.0, 2.0]), torch.ones(2)),
        "last_std": (torch.tensor([6.0, 2.0]), std),
    }
    for scaling, (loc, scale) in expected.items():
        outputs = make_model(scaling=scaling, num_input_channels=2)(past)
        close(outputs.loc[0], loc.double())
        close(outputs.scale[0], scale.double())


@torch.no_grad()
def test_reversible_normalisation_has_a_scale_and_a_shift_of_each_channel(make_model):
    model = make_model(scaling="revin")
    scaler, past = model.model.scaler, make_batch(model.config)["past_values"].nan_to_num(1.0)
    outputs = model(past)
    normal = (past - past.mean(dim=1, keepdim=True)) / past.std(dim=1, keepdim=True, correction=0)
    expected = scaler.log_weight.exp() * normal + scaler.bias
    close((past - outputs.loc[:, None]) / outputs.scale[:, None], expected)


@pytest.mark.parametrize("scaling", SCALINGS)
@torch.no_grad()
def test_the_training_data_give_what_the_past_does_not(scaling, make_model):
    """A constant series has no unit of its own, an unobserved one nothing at all."""
    mean, std = [1.0, 2.0, 3.0], [0.5, 4.0, 10.0]
    model = make_model(scaling=scaling, value_loc=mean, value_scale=std)
    past = torch.full((1, 6, 3), 7.0, dtype=torch.float64)
    past[..., 2] = NAN
    outputs = model(past)
    assert outputs.prediction_outputs.isfinite().all()
    if scaling != "revin":
        own = {None: mean, "mean": mean}.get(scaling, [7.0, 7.0, 3.0])
        unit = [6.0, 5.0, 10.0] if scaling == "mean" else std
        close(outputs.loc[0], torch.tensor(own, dtype=torch.float64))
        close(outputs.scale[0], torch.tensor(unit, dtype=torch.float64))


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("value", [0.1, -1e7, 3.3e-7])
@torch.no_grad()
def test_a_constant_series_is_forecast_in_its_place(scaling, value):
    """In float32: a mean that is off by a rounding error must not become the unit."""
    model = QRNNForTimeSeriesPrediction(QRNNTimeSeriesConfig(**SIZES | {"scaling": scaling})).eval()
    outputs = model(torch.full((1, 333, 3), value))
    assert outputs.prediction_outputs.isfinite().all()
    if scaling in ("std", "last", "last_std"):
        assert (outputs.loc == value).all()
        assert (outputs.scale == 1).all()


@pytest.mark.parametrize("options", MODELS, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_window_without_any_value(options, loss, make_model):
    model = make_model(**options, loss=loss)
    batch = make_batch(model.config)
    batch["past_values"][1] = NAN
    batch["future_values"][1] = NAN
    outputs = model(**batch)
    others = model(**rows(batch, [0, 2]))
    assert outputs.prediction_outputs.isfinite().all()
    close(outputs.prediction_outputs[[0, 2]], others.prediction_outputs)
    close(outputs.loss, others.loss)
    paths = model.generate(**{n: v for n, v in batch.items() if n != "future_values"}, num_parallel_samples=3, seed=0)
    assert paths.sequences.isfinite().all()


def test_nothing_to_learn_from_a_future_without_values(make_model):
    model = make_model(loss="nll")
    batch = make_batch(model.config)
    batch["future_values"][:] = NAN
    loss = model(**batch).loss
    loss.backward()
    assert loss == 0
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


# --- losses and heads ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_losses_of_points(loss, make_model):
    """The mean over all observed values of the batch, in units of the training data."""
    std = [0.5, 4.0, 10.0]
    model = make_model(loss=loss, value_scale=std, huber_delta=0.3)
    batch = make_batch(model.config)
    outputs = model(**batch)
    error = (outputs.prediction_outputs - batch["future_values"]) / torch.tensor(std)
    error = error[~error.isnan()].abs()
    of_errors = {"mse": error**2, "mae": error, "huber": torch.where(error < 0.3, error**2 / 2, 0.3 * (error - 0.15))}
    close(outputs.loss, of_errors[loss].mean())


def test_loss_of_quantiles(make_model):
    model = make_model(loss="quantile", quantiles=[0.1, 0.5, 0.8], value_scale=[0.5, 4.0, 10.0])
    batch = make_batch(model.config)
    outputs = model(**batch)
    (quantiles,) = outputs.params
    assert (quantiles.diff(dim=-1) >= 0).all()
    quantiles = quantiles * outputs.scale[:, None, :, None] + outputs.loc[:, None, :, None]
    close(outputs.prediction_outputs, quantiles[..., 1])
    terms = []
    for index, level in enumerate([0.1, 0.5, 0.8]):
        error = (batch["future_values"] - quantiles[..., index]) / torch.tensor([0.5, 4.0, 10.0])
        terms.append(torch.where(error > 0, level * error, (level - 1) * error))
    terms = torch.stack(terms)
    close(outputs.loss, terms[~terms.isnan()].mean())


@pytest.mark.parametrize("distribution", ["student_t", "normal", "negative_binomial"])
def test_loss_of_distributions(distribution, make_model):
    is_count = distribution == "negative_binomial"
    model = make_model(distribution_output=distribution, scaling="mean" if is_count else "std")
    batch = make_batch(model.config)
    batch = as_counts(batch) if is_count else batch
    outputs = model(**batch)
    loc, scale = outputs.loc[:, None], outputs.scale[:, None]
    target = batch["future_values"].nan_to_num(0.0)
    if distribution == "student_t":
        df, centre, width = outputs.params
        expected = StudentT(df, centre * scale + loc, width * scale)
    elif distribution == "normal":
        centre, width = outputs.params
        expected = Normal(centre * scale + loc, width * scale)
    else:
        count, logits = outputs.params
        expected = NegativeBinomial(count, logits=logits + scale.log())
    close(outputs.prediction_outputs, expected.mean)
    close(outputs.loss, -expected.log_prob(target)[~batch["future_values"].isnan()].mean())


@pytest.mark.parametrize("gates", [None, 0.3])
def test_initial_scales(gates):
    """Weights of linear layers are uniform as torch's own, biases zero."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_input_channels": 9, "channel_embedding": True}
    config = QRNNTimeSeriesConfig(
        **sizes, connection="residual", scaling="revin", initializer_range=0.05, gate_initializer_range=gates
    )
    for name, parameter in QRNNForTimeSeriesPrediction(config).named_parameters():
        if "norm" in name:
            assert (parameter == 1).all()
        elif "channels" in name:
            assert parameter.std().item() == pytest.approx(0.05, rel=0.2)
        elif gates is not None and name.endswith("gate_proj.weight"):
            assert parameter.std().item() == pytest.approx(gates, rel=0.05)
        elif name.endswith("weight") and parameter.dim() == 2:
            bound = parameter.shape[1] ** -0.5
            assert 0.9 * bound < parameter.abs().max() <= bound, name
            assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.2)
        else:
            assert (parameter == 0).all(), name


@pytest.mark.parametrize("options", MODELS, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_reach_every_parameter(options, loss, make_model):
    model = make_model(**options, loss=loss, scaling="revin", **BLOCKS)
    model(**make_batch(model.config)).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("horizon", HORIZONS)
def test_gradients_are_those_of_the_loss(horizon, make_model):
    model = make_model(horizon=horizon, loss="nll", scaling="revin", hidden_size=4, patch_length=2)
    batch = make_batch(model.config, length=5)
    parameters = list(model.parameters())
    directions = [torch.randn_like(parameter) for parameter in parameters]
    model(**batch).loss.backward()
    slope = sum((p.grad * d).sum() for p, d in zip(parameters, directions, strict=True))

    def loss_at(step: float) -> torch.Tensor:
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter += step * direction
            loss = model(**batch).loss
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter -= step * direction
        return loss

    close((loss_at(1e-5) - loss_at(-1e-5)) / 2e-5, slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("options", MODELS, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_of_each_example(options, loss, make_model):
    model = make_model(**options, loss=loss)
    batch, parameters = make_batch(model.config), dict(model.named_parameters())

    def loss_of(parameters, example):
        inputs = {name: part[None] for name, part in example.items()}
        return torch.func.functional_call(model, parameters, kwargs=inputs).loss

    actual = torch.func.vmap(torch.func.grad(loss_of), (None, 0))(parameters, batch)
    for index in range(len(batch["past_values"])):
        expected = torch.autograd.grad(loss_of(parameters, rows(batch, index)), parameters.values())
        close([gradient[index] for gradient in actual.values()], list(expected))


@pytest.mark.parametrize("distribution", ["student_t", "normal", "negative_binomial"])
@torch.no_grad()
def test_samples_follow_their_distribution(distribution, make_model):
    is_count = distribution == "negative_binomial"
    model = make_model(distribution_output=distribution, scaling="mean" if is_count else "std")
    past = make_batch(model.config)["past_values"]
    past = past.abs().round() if is_count else past
    outputs = model(past)
    samples = model.generate(past, num_parallel_samples=20_000, seed=0).sequences
    assert samples.shape == (3, 20_000, 5, 3)
    distance = (samples.mean(dim=1) - outputs.prediction_outputs).abs()
    assert (distance < 5 * samples.std(dim=1) / 20_000**0.5).all()
    if is_count:
        assert (samples == samples.round()).all() and (samples >= 0).all()
    if distribution == "normal":
        _, width = outputs.params
        close(samples.std(dim=1), width * outputs.scale[:, None], rtol=0.03, atol=0)


@torch.no_grad()
def test_samples_follow_their_quantiles(make_model):
    levels = [0.2, 0.5, 0.7]
    model = make_model(loss="quantile", quantiles=levels)
    past = make_batch(model.config)["past_values"]
    outputs = model(past)
    quantiles = outputs.params[0] * outputs.scale[:, None, :, None] + outputs.loc[:, None, :, None]
    samples = model.generate(past, num_parallel_samples=5_000, seed=0).sequences
    for index, level in enumerate(levels[:-1]):
        share = (samples <= quantiles[:, None, ..., index] + 1e-9).double().mean(dim=1)
        assert (share - level).abs().max() < 0.04
    assert (samples <= quantiles[:, None, ..., -1] + 1e-9).all()
    assert (samples >= quantiles[:, None, ..., 0] - 1e-9).all()


@torch.no_grad()
def test_one_quantile_is_a_forecast(make_model):
    model = make_model(loss="quantile", quantiles=[0.9])
    outputs = model(make_batch(model.config)["past_values"])
    close(outputs.prediction_outputs, outputs.params[0][..., 0] * outputs.scale[:, None] + outputs.loc[:, None])


# --- horizons --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("past_length", [1, 3, 12, 13])
@pytest.mark.parametrize("features", [0, 2])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("patch_length", [1, 4, 16])
@torch.no_grad()
def test_teacher_forcing_is_what_generation_does(past_length, features, mode, patch_length, make_model):
    """A path of points, given back as the future, is forecast value for value: step by step equals at once."""
    options = {"horizon": "autoregressive", "loss": "mse", "channel_mode": mode, "num_time_features": features}
    model = make_model(patch_length=patch_length, **options, **BLOCKS)
    batch = make_batch(model.config, length=past_length, future=11)
    del batch["future_values"]
    (path,) = model.generate(**batch, prediction_length=11, num_parallel_samples=1).sequences.unbind(1)
    close(model(**batch, future_values=path).prediction_outputs, path)
    first = model(**batch).prediction_outputs  # without a future, the first patch
    assert first.shape[1] == patch_length
    close(first[:, :11], path[:, : first.shape[1]])


@torch.no_grad()
def test_sample_paths_hang_together(make_model):
    """The second value of a path follows the first one of the same path, in each series and channel."""
    model = make_model(horizon="autoregressive", loss="nll", distribution_output="normal", scaling=None)
    past = make_batch(model.config, batch_size=2)["past_values"]
    paths = model.generate(past, prediction_length=2, num_parallel_samples=400, seed=3).sequences
    for row, path in itertools.product(range(2), range(0, 400, 80)):
        outputs = model(past[[row]], future_values=paths[row, path][None])
        centre, width = outputs.params
        assert ((paths[row, path] - centre[0]) / width[0]).abs().max() < 5
    expected = model(past.repeat_interleave(400, dim=0), future_values=paths.flatten(0, 1))
    centre, width = (param.unflatten(0, (2, 400)) for param in expected.params)
    noise = (paths - centre) / width
    assert noise.mean(dim=1).abs().max() < 0.25 and (noise.std(dim=1) - 1).abs().max() < 0.2
    assert noise.flatten(0, 1).flatten(1).T.corrcoef().fill_diagonal_(0).abs().max() < 0.2


@pytest.mark.parametrize("options", MODELS, ids=str)
@torch.no_grad()
def test_seeds(options, make_model):
    model = make_model(**options)
    batch = make_batch(model.config)
    del batch["future_values"]
    before = torch.get_rng_state()
    seeds = (5, np.int64(5), 6)
    first, again, other = (model.generate(**batch, num_parallel_samples=4, seed=seed).sequences for seed in seeds)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(*(model.generate(**batch, num_parallel_samples=4).sequences for _ in range(2)))


def test_a_seed_leaves_other_devices_alone(make_model, monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeded"))
    make_model().generate(PAST, num_parallel_samples=2, seed=5)


@pytest.mark.parametrize("options", MODELS, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
@torch.no_grad()
def test_a_single_variable_needs_no_channels(options, loss, make_model):
    model = make_model(**options, loss=loss, num_input_channels=1)
    batch = make_batch(model.config)
    flat = {name: value.squeeze(2) if "values" in name else value for name, value in batch.items()}
    one, other = model(**batch), model(**flat)
    close(one.loss, other.loss)
    close(one.prediction_outputs.squeeze(2), other.prediction_outputs)
    close(one.loc.squeeze(1), other.loc)
    for param, other_param in zip(one.params, other.params, strict=True):
        close(param.squeeze(2), other_param)
    batch.pop("future_values"), flat.pop("future_values")
    paths = model.generate(**flat, num_parallel_samples=3, seed=1).sequences
    assert paths.shape == (3, 3, 5)
    close(paths, model.generate(**batch, num_parallel_samples=3, seed=1).sequences.squeeze(3))


@pytest.mark.parametrize("options", MODELS, ids=str)
def test_no_series_have_no_paths(options, make_model):
    model = make_model(**options)
    batch = make_batch(model.config, batch_size=0)
    del batch["future_values"]
    assert model.generate(**batch, num_parallel_samples=4).sequences.shape == (
        0,
        4,
        5,
        model.config.num_input_channels,
    )


@torch.no_grad()
def test_the_head_sees_so_many_states(make_model):
    """Those before the beginning are zero."""
    model = make_model(num_head_states=4, patch_length=2, loss="mse", scaling=None)
    past = torch.randn(1, 12, 3, dtype=torch.float64)
    states = model.model(past).last_hidden_state
    close(model(past).prediction_outputs[0], model.head(states[:, -4:].flatten(1)).T)
    short = model(past[:, -3:]).prediction_outputs
    padded = torch.cat([torch.full_like(past[:, :9], NAN), past[:, -3:]], dim=1)
    close(model(padded).prediction_outputs, short)


# --- numbers ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_precise_values_and_a_small_model(make_model):
    """Values of a float32 or bfloat16 model are scaled in their own precision, and so is the forecast."""
    past = 1e9 + torch.randn(2, 12, 3, dtype=torch.float64)
    exact = make_model().to(torch.float64)
    expected = exact(past).prediction_outputs
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.15)):
        outputs = exact.to(dtype)(past)
        assert outputs.prediction_outputs.dtype == torch.float64
        assert (outputs.prediction_outputs - expected).abs().max() < tolerance


class Quantised(torch.nn.Module):
    """In place of a linear layer: a weight of integers, as bitsandbytes has it, and outputs as floating as inputs."""

    def __init__(self, linear: torch.nn.Linear):
        super().__init__()
        self.scale, self.bias = linear.weight.abs().max() / 127, linear.bias
        self.register_buffer("weight", (linear.weight / self.scale).round().to(torch.int8))

    def forward(self, x):
        assert x.is_floating_point()
        return torch.nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


@torch.no_grad()
def test_a_weight_of_integers_does_not_round_what_it_reads(make_model):
    model = make_model(patch_length=4)
    batch = make_batch(model.config)
    expected = model(**batch).prediction_outputs
    model.model.embedding.proj = Quantised(model.model.embedding.proj)
    assert (model(**batch).prediction_outputs - expected).abs().max() < 0.05 * expected.abs().max()


@torch.no_grad()
def test_a_model_quantised_by_torch_forecasts(make_model):
    model = make_model(patch_length=4).float()
    batch = make_batch(model.config)
    expected = model(**batch).prediction_outputs
    quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear})
    assert (quantised(**batch).prediction_outputs - expected).abs().max() < 0.05 * expected.abs().max()


@torch.no_grad()
def test_counts_may_be_integers(make_model):
    model = make_model(distribution_output="negative_binomial", scaling="mean").float()
    past = torch.randint(0, 9, (2, 12, 3))
    close(model(past).prediction_outputs, model(past.double()).prediction_outputs)
    close(model(past.short()).prediction_outputs, model(past.float()).prediction_outputs)


def test_what_is_masked_may_be_infinite(make_model):
    model = make_model()
    batch = make_batch(model.config)
    mask = {name: torch.ones_like(batch[name.replace("observed_mask", "values")]) for name in MASKS}
    for name in MASKS:
        mask[name][:, 2] = 0
    expected = model(**batch, **mask)
    for name in MASKS:
        batch[name.replace("observed_mask", "values")][:, 2] = torch.inf
    outputs = model(**batch, **mask)
    close((outputs.loss, outputs.prediction_outputs), (expected.loss, expected.prediction_outputs))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_large_integers_keep_their_digits(dtype, make_model):
    past = 1_700_000_000 + torch.arange(12).view(1, 12, 1).expand(2, 12, 3) % 5
    close(make_model().float()(past.to(dtype)).scale, make_model()(past.double()).scale)


@pytest.mark.parametrize("options", MODELS, ids=str)
def test_gradient_checkpointing(options, make_model):
    model = make_model(**options, **BLOCKS).train()
    batch = make_batch(model.config)
    gradients = []
    for _ in range(2):
        model.zero_grad()
        model(**batch).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
        model.activation_checkpointing_enable()
    for one, other in zip(*gradients, strict=True):
        close(one, other)


# --- in Transformers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", MODELS, ids=str)
@torch.no_grad()
def test_saved_is_loaded(options, make_model, tmp_path):
    model = make_model(**options, value_loc=[1.0, 2.0, 3.0], scaling="revin", loss="quantile").float()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForTimeSeriesPrediction.from_pretrained(tmp_path).eval()
    assert type(loaded) is QRNNForTimeSeriesPrediction
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == loaded.config.to_dict()
    batch = make_batch(model.config)
    assert torch.equal(loaded(**batch).prediction_outputs, model(**batch).prediction_outputs)
    base = AutoModel.from_pretrained(tmp_path).eval()
    past = {name: value for name, value in batch.items() if "past" in name}
    assert torch.equal(base(**past).last_hidden_state, model.model(**past).last_hidden_state)


def make_waves(n_rows: int) -> list[dict[str, torch.Tensor]]:
    time = torch.arange(36) + 100 * torch.rand(n_rows, 1)
    series = 50 + 10 * torch.stack([(time / 2).sin(), (time / 2).cos()], dim=2)
    return [{"past_values": row[:24], "future_values": row[24:]} for row in series]


def test_trainer(tmp_path):
    """It trains, evaluates the loss and predicts the forecasts, without a special setting."""
    config = QRNNTimeSeriesConfig(
        hidden_size=16,
        patch_length=4,
        prediction_length=12,
        num_input_channels=2,
        loss="mse",
        value_scale=[10.0, 10.0],
    )
    options = {"max_steps": 60, "learning_rate": 0.02, "per_device_train_batch_size": 16, "use_cpu": True}
    options |= {"report_to": "none", "disable_tqdm": True, "logging_strategy": "no", "save_strategy": "no"}
    trainer = Trainer(
        QRNNForTimeSeriesPrediction(config),
        TrainingArguments(str(tmp_path), dataloader_pin_memory=False, **options),
        train_dataset=make_waves(64),
        eval_dataset=make_waves(8),
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.1 * before
    waves = make_waves(5)
    prediction = torch.tensor(trainer.predict(waves).predictions)
    assert prediction.shape == (5, 12, 2)
    future = torch.stack([wave["future_values"] for wave in waves])
    assert (prediction - future).square().mean() < 0.2 * future.var()


# --- mistakes --------------------------------------------------------------------------------------------------------

PAST = torch.zeros(2, 6, 3, dtype=torch.float64)
FUTURE = torch.zeros(2, 5, 3, dtype=torch.float64)
FEATURES = {"past_time_features": torch.zeros(2, 6, 2), "future_time_features": torch.zeros(2, 5, 2)}
MISTAKES = {
    "empty": ({}, {"past_values": PAST[:, :0]}, ["`past_values`", "at least one value", "(2, 0, 3)"]),
    "no batch": ({}, {"past_values": PAST[0, :, 0]}, ["`past_values`", "(6,)"]),
    "channels": ({"channel_mode": "mixed"}, {"past_values": PAST[..., :2]}, ["num_input_channels=3", "got 2"]),
    "own channels": ({"scaling": "revin"}, {"past_values": PAST[..., :2]}, ["num_input_channels=3", "got 2"]),
    "mask": ({}, {"past_values": PAST, "past_observed_mask": PAST[:, :5]}, ["`past_observed_mask`", "(2, 5, 3)"]),
    "infinity": ({}, {"past_values": PAST.masked_fill(PAST == 0, torch.inf)}, ["`past_values` must be finite"]),
    "infinity to come": (
        {},
        {"past_values": PAST, "future_values": FUTURE - torch.inf},
        ["`future_values` must be finite"],
    ),
    "no features": (
        {"num_time_features": 2},
        {"past_values": PAST},
        ["time_features`", "num_time_features", "got None"],
    ),
    "features that nobody expects": ({}, {"past_values": PAST, **FEATURES}, ["time_features` must be None", "2)"]),
    "no features of the future": (
        {"num_time_features": 2},
        {"past_values": PAST, "past_time_features": FEATURES["past_time_features"]},
        ["`future_time_features`", "(2, 5, 2)", "got None"],
    ),
    "unknown features": (
        {"num_time_features": 2},
        {"past_values": PAST, **FEATURES, "future_time_features": torch.full((2, 5, 2), NAN)},
        ["`future_time_features`", "finite"],
    ),
    "future": ({}, {"past_values": PAST, "future_values": FUTURE[:, :4]}, ["`future_values`", "(2, 5, 3)", "4, 3)"]),
    "future without channels": (
        {},
        {"past_values": PAST, "future_values": FUTURE[..., 0]},
        ["`future_values`", "(2, 5, 3)", "(2, 5)"],
    ),
    "future mask": (
        {},
        {"past_values": PAST, "future_values": FUTURE, "future_observed_mask": FUTURE[:, :2]},
        ["`future_observed_mask`", "(2, 2, 3)"],
    ),
    "future mask alone": ({}, {"past_values": PAST, "future_observed_mask": FUTURE}, ["`future_observed_mask`"]),
}


@pytest.mark.parametrize("horizon", HORIZONS)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake, horizon, make_model):
    if mistake == "future" and horizon == "autoregressive":
        pytest.skip("such a model forecasts any length")
    options, inputs, parts = MISTAKES[mistake]
    model = make_model(horizon=horizon, **options)
    with pytest.raises(ValueError) as error:
        model(**inputs)
    named = parts if horizon == "direct" else parts[:1]  # and the length that it names may be another
    assert all(part in str(error.value) for part in named), error.value
    if not any("future_v" in name or "future_o" in name for name in inputs):
        with pytest.raises(ValueError, match=re.escape(parts[0])):
            model.generate(**inputs)


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        (
            {},
            {"prediction_length": 6},
            "`prediction_length` must be an integer between 1 and config.prediction_length=5, got 6",
        ),
        (
            {"horizon": "autoregressive"},
            {"prediction_length": 0},
            "`prediction_length` must be an integer of at least 1, got 0",
        ),
        ({}, {"prediction_length": 2.0}, "`prediction_length` must be an integer between 1 and"),
        ({}, {"num_parallel_samples": 0}, "`num_parallel_samples` must be an integer of at least 1, got 0"),
        ({}, {"num_parallel_samples": 2.5}, "`num_parallel_samples` must be an integer of at least 1, got 2.5"),
    ],
)
def test_mistakes_of_generation(options, arguments, message, make_model):
    with pytest.raises(ValueError, match=message):
        make_model(**options).generate(PAST, **arguments)


@pytest.mark.parametrize("horizon", HORIZONS)
def test_a_forecast_is_of_the_whole_past(horizon, make_model):
    model = make_model(horizon=horizon)
    cache = model.model(PAST).cache
    for name, value in {"cache": cache, "use_cache": True, "loc": PAST[:, 0], "scale": PAST[:, 0]}.items():
        with pytest.raises(ValueError, match=f"`{name}` must be None"):
            model(PAST, **{name: value})
    torch.testing.assert_close(model(PAST, use_cache=False, cache=None).loc, model(PAST).loc)


def test_mistakes_of_chunks(make_model):
    model = make_model(QRNNTimeSeriesModel, patch_length=4)
    cache = model(PAST).cache
    with pytest.raises(ValueError, match=r"whole patches of patch_length=4 .* got 6 values"):
        model(PAST, cache=cache)
    with pytest.raises(ValueError, match="`cache` does not fit"):
        model(PAST[:1, :4], cache=cache)
    with pytest.raises(ValueError, match="`cache` must have 2 layers"):
        model(PAST, cache=DynamicCache())
    with pytest.raises(ValueError, match="`loc` and `scale` must be given together"):
        model(PAST, loc=PAST[:, 0])
    for wrong in (PAST[:, 0, 0], PAST[:1, 0], PAST[:, :1]):
        with pytest.raises(ValueError, match=r"`loc` and `scale` must have the shape \(batch, channels\)"):
            model(PAST, loc=wrong, scale=wrong)


@torch.no_grad()
def test_covariates_of_the_future_are_read_as_they_are(make_model):
    """Whatever the type of those of the past."""
    model = make_model(horizon="autoregressive", patch_length=2, num_time_features=1, num_input_channels=1)
    past, hours = torch.randn(1, 8, 1, dtype=torch.float64), torch.arange(8)[None, :, None]
    future = torch.tensor([[[0.9], [0.9]]], dtype=torch.float64)
    close(
        model(past, past_time_features=hours, future_time_features=future).prediction_outputs,
        model(past, past_time_features=hours.double(), future_time_features=future).prediction_outputs,
    )
