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
"""PyTorch QRNN model of time series.

Inputs and outputs are called as in Transformers' other models of time series. A value that is not observed is NaN, or
False in the mask beside it; a series begins with its first observed value, so shorter ones are padded on the left with
such values, and nothing else says where they begin.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast, ModelOutput, SampleTSPredictionOutput
from transformers.processing_utils import Unpack
from transformers.time_series_utils import NegativeBinomialOutput, NormalOutput, StudentTOutput
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_qrnn import QRNNTimeSeriesConfig
from .layers_qrnn import QRNNDropout
from .modeling_qrnn import (
    QRNNBlock,
    QRNNPreTrainedModel,
    can_be_looked_at,
    chunk_mask,
    gathers_shards,
    in_dtype_of,
    init_by_fan_in,
    make_norm,
)
from .pooling_qrnn import state_dtype


@dataclass
class QRNNTimeSeriesModelOutput(BaseModelOutputWithPast):
    """What `QRNNTimeSeriesModel` returns."""

    loc: torch.Tensor | None = None
    """`(batch, channels)`, what each series was measured from."""
    scale: torch.Tensor | None = None
    """`(batch, channels)`, the unit in which it was measured."""


@dataclass
class QRNNTimeSeriesPredictionOutput(ModelOutput):
    """What `QRNNForTimeSeriesPrediction` returns: shapes without `channels` if the past values came without."""

    loss: torch.Tensor | None = None
    """0-dim, if there are future values."""
    prediction_outputs: torch.Tensor | None = None
    """`(batch, prediction_length, channels)`, the forecast: the mean; for `"mae"` and `"quantile"` the median, or the
    quantile nearest to it where all lie on one side; for `"huber"` what lies between mean and median."""
    params: tuple[torch.Tensor, ...] | None = None
    """What the head says in the scale of the model: of a distribution each parameter, `(batch, prediction_length,
    channels)`; the quantiles, with one more dimension; or the forecast."""
    hidden_states: tuple[torch.Tensor, ...] | None = None
    loc: torch.Tensor | None = None
    """`(batch, channels)`, as in `QRNNTimeSeriesModelOutput`."""
    scale: torch.Tensor | None = None
    """`(batch, channels)`."""


def split_missing(values: torch.Tensor, observed_mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The values with zeros in place of missing ones, and which are observed.

    Args:
        values: `(batch, length)` or `(batch, length, channels)`, NaN where missing.
        observed_mask: zero where missing, `(batch, length)` or as the values.

    Returns:
        Two tensors `(batch, length, channels)`: values, in a dtype that holds sums (float64 for integers of 32 and
        64 bits), and bool.

    Example:
        >>> values, is_observed = split_missing(torch.tensor([[1.0, float("nan"), 3.0]]), torch.tensor([[1, 1, 0]]))
        >>> values.flatten().tolist(), is_observed.flatten().tolist()
        ([1.0, 0.0, 0.0], [True, False, False])
    """
    if not values.is_floating_point():
        # float32 holds no integer above 2^24 exactly; but Apple's GPUs have no float64.
        is_wide = values.element_size() > 2 and values.device.type != "mps"
        values = values.to(torch.float64 if is_wide else torch.get_default_dtype())
    values = values.to(state_dtype(values.dtype))
    values = values[..., None] if values.dim() == 2 else values
    is_observed = ~values.isnan()
    if observed_mask is not None:
        observed_mask = observed_mask[..., None] if observed_mask.dim() == 2 else observed_mask
        is_observed = is_observed & (observed_mask != 0)
    return values.masked_fill(~is_observed, 0), is_observed


class QRNNTimeSeriesScaler(nn.Module):
    """What is taken away from each series before the model reads it, and put back into the forecast.

    Args:
        config: its `scaling` says what, its `value_loc` and `value_scale` what else.
    """

    def __init__(self, config: QRNNTimeSeriesConfig):
        super().__init__()
        self.scaling = config.scaling
        self.value_loc, self.value_scale = config.value_loc, config.value_scale
        if config.scaling == "revin":
            self.log_weight = nn.Parameter(torch.zeros(config.num_input_channels))
            self.bias = nn.Parameter(torch.zeros(config.num_input_channels))

    def unit(self, values: torch.Tensor) -> torch.Tensor:
        """`(channels,)`, the unit of values and errors where the past gives none."""
        return values.new_ones(values.shape[-1]) if self.value_scale is None else values.new_tensor(self.value_scale)

    def forward(self, values: torch.Tensor, is_observed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`loc` and `scale`, both `(batch, channels)`, of values `(batch, length, channels)`, zero where missing."""
        unit = self.unit(values).expand(values.shape[0], -1)
        origin = values.new_zeros(values.shape[-1]) if self.value_loc is None else values.new_tensor(self.value_loc)
        origin = origin.expand_as(unit)
        if self.scaling is None:
            return origin, unit
        count = is_observed.sum(dim=1)
        if self.scaling == "mean":
            magnitude = (values - origin[:, None]).abs().masked_fill(~is_observed, 0).sum(dim=1) / count.clamp(min=1)
            return origin, torch.where(magnitude > 0, magnitude, unit)

        # Measured from the last value, so that a constant series has a deviation of exactly zero.
        position = torch.arange(values.shape[1], device=values.device)[:, None] * is_observed
        last = values.gather(1, position.argmax(dim=1, keepdim=True))
        change = (values - last).masked_fill(~is_observed, 0)
        mean = change.sum(dim=1, keepdim=True) / count.clamp(min=1)[:, None]
        variance = (change - mean).masked_fill(~is_observed, 0).square().sum(dim=1) / count.clamp(min=1)
        is_constant = variance == 0
        std = torch.where(is_constant, unit, variance.masked_fill(is_constant, 1).sqrt())
        loc = last if self.scaling in ("last", "last_std") else last + mean
        loc = torch.where(count > 0, loc.squeeze(1), origin)
        if self.scaling == "last":
            return loc, unit
        if self.scaling == "revin":  # weight * (x - mean) / std + bias, as one shift and one scale
            std = std / self.log_weight.exp()
            loc = loc - self.bias * std
        return loc, std


class QRNNPatchEmbedding(nn.Module):
    """Scaled values become the steps of the QRNN: one linear map of each patch, its gaps and its covariates."""

    def __init__(self, config: QRNNTimeSeriesConfig):
        super().__init__()
        self.patch_length = config.patch_length
        self.is_mixed = config.channel_mode == "mixed"
        values = 2 * (config.num_input_channels if self.is_mixed else 1)
        self.proj = nn.Linear(config.patch_length * (values + config.num_time_features), config.hidden_size)
        self.channels = (
            nn.Embedding(config.num_input_channels, config.hidden_size) if config.channel_embedding else None
        )

    def rows_per_series(self, channels: int) -> int:
        """How many sequences the variables of a series are to the QRNN."""
        return 1 if self.is_mixed else channels

    def forward(
        self,
        values: torch.Tensor,
        is_observed: torch.Tensor,
        features: torch.Tensor | None,
        has_begun_before: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed the patches of each row: of each variable of an independent model, of each series of a mixed one.

        Args:
            values: `(batch, length, channels)`, scaled, zero where missing.
            is_observed: the same shape, bool.
            features: `(batch, length, num_time_features)`, or `None`.
            has_begun_before: `(rows,)` bool, which rows go on from values before these, so that nothing in them is a
                pad; `None` for none.

        Returns:
            `(rows, steps, hidden_size)`, and which steps do not lie before the beginning, `(rows, steps)` bool.
        """
        batch_size, length, channels = values.shape
        fill = -length % self.patch_length
        values, is_observed = (F.pad(part, (0, 0, fill, 0)) for part in (values, is_observed))
        if not self.is_mixed:
            values, is_observed = (
                part.transpose(1, 2).reshape(-1, part.shape[1], 1) for part in (values, is_observed)
            )
        has_begun = is_observed.any(dim=2).cumsum(dim=1) > 0
        if has_begun_before is not None:
            has_begun = has_begun | has_begun_before[:, None]
        parts = [values, (~is_observed).to(values.dtype)]
        if features is not None:
            features = F.pad(features.to(values.dtype), (0, 0, fill, 0))
            if not self.is_mixed:
                features = features.repeat_interleave(channels, dim=0)
            parts.append(features.masked_fill(~has_begun[..., None], 0))
        patches = torch.cat(parts, dim=2).unflatten(1, (-1, self.patch_length)).flatten(2)
        embedded = self.proj(in_dtype_of(self.proj, patches))
        if self.channels is not None:
            vectors = self.channels(torch.arange(channels, device=embedded.device))
            embedded = embedded + vectors.repeat(batch_size, 1)[:, None]
        return embedded, has_begun[:, self.patch_length - 1 :: self.patch_length]


class QRNNTimeSeriesPreTrainedModel(QRNNPreTrainedModel):
    """What the QRNN models of time series share."""

    config: QRNNTimeSeriesConfig
    main_input_name = "past_values"
    input_modalities = ("time",)
    _auto_map = {
        "AutoConfig": "configuration_qrnn.QRNNTimeSeriesConfig",
        "AutoModel": "modeling_qrnn_time_series.QRNNTimeSeriesModel",
        "AutoModelForTimeSeriesPrediction": "modeling_qrnn_time_series.QRNNForTimeSeriesPrediction",
    }

    def get_input_embeddings(self) -> nn.Module:
        return self.base_model.embedding.proj

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.Linear) and not hasattr(module, "forget_gate"):
            init_by_fan_in(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, QRNNTimeSeriesScaler):
            for parameter in module.parameters():
                init.zeros_(parameter)
        else:
            super()._init_weights(module)


class QRNNTimeSeriesModel(QRNNTimeSeriesPreTrainedModel):
    """The QRNN of time series without a head.

    Example:
        >>> model = QRNNTimeSeriesModel(QRNNTimeSeriesConfig(hidden_size=32, patch_length=4)).eval()
        >>> series = torch.randn(2, 20).cumsum(dim=1)
        >>> whole = model(series)
        >>> whole.last_hidden_state.shape
        torch.Size([2, 5, 32])
        >>> scaling = {"loc": whole.loc, "scale": whole.scale}
        >>> first = model(series[:, :12], **scaling)
        >>> second = model(series[:, 12:], cache=first.cache, **scaling)
        >>> torch.allclose(whole.last_hidden_state[:, 3:], second.last_hidden_state, atol=1e-6)
        True
    """

    def __init__(self, config: QRNNTimeSeriesConfig):
        super().__init__(config)
        self.scaler = QRNNTimeSeriesScaler(config)
        self.embedding = QRNNPatchEmbedding(config)
        self.dropout = QRNNDropout(config.input_dropout, config.locked_dropout)
        self.layers = nn.ModuleList(QRNNBlock(config, layer_idx) for layer_idx in range(config.num_hidden_layers))
        self.norm = make_norm(config, config.output_size)
        self.layer_types, self.state_widths = config.layer_types, config.state_widths
        self.gradient_checkpointing = False

        # Initialize weights and apply final processing
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    def forward(
        self,
        past_values: torch.Tensor,
        past_observed_mask: torch.Tensor | None = None,
        past_time_features: torch.Tensor | None = None,
        cache: Cache | None = None,
        loc: torch.Tensor | None = None,
        scale: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> QRNNTimeSeriesModelOutput:
        """Run the model over the past of a batch of series, or over the next chunk of it.

        Args:
            past_values: `(batch, length, channels)`, or `(batch, length)` of one variable; NaN where missing. What
                comes before the first observed value of a series is a pad, also where that value is in a later chunk.
                A chunk that goes on from a cache has whole patches.
            past_observed_mask: zero where a value is missing, `(batch, length)` or as the values.
            past_time_features: `(batch, length, num_time_features)`, the covariates, all of them known.
            cache: the cache that the last chunk returned; it is advanced in place.
            loc: `(batch, channels)`, what to measure the values from; by default the config's `scaling` finds it in
                them. A chunk that goes on takes that of the first one.
            scale: `(batch, channels)`, the unit; both or neither.
            use_cache: whether to return a cache; `config.use_cache` by default.
            kwargs: among them `output_hidden_states` and `return_dict`.

        Returns:
            `last_hidden_state` `(rows, steps, hidden_size)`, zero before the beginning, where each variable of an
            independent model has a row of its own (the variables of the first series come first) and each step is a
            patch; `cache`; `loc` and `scale`.

        Raises:
            ValueError: if a shape does not fit the others or the config, the series is empty, covariates are missing
                or not expected, values are infinite or covariates not finite (on a CPU), or a cache of another model
                or batch size is given.
        """
        self.check_past(past_values, past_observed_mask, past_time_features)
        values, is_observed = split_missing(past_values, past_observed_mask)
        if (loc is None) != (scale is None):
            raise ValueError("`loc` and `scale` must be given together, got one of them")
        if loc is None:
            loc, scale = self.scaler(values, is_observed)
        loc, scale = cast(torch.Tensor, loc), cast(torch.Tensor, scale)
        expected = values.shape[0], values.shape[2]
        if (tuple(loc.shape), tuple(scale.shape)) != (expected, expected):
            raise ValueError(
                f"`loc` and `scale` must have the shape (batch, channels) = {expected}, got {tuple(loc.shape)} and "
                f"{tuple(scale.shape)}"
            )
        rows = values.shape[0] * self.embedding.rows_per_series(values.shape[2])
        self._check_cache(cache, use_cache, rows)
        is_continued = cache is not None and cache.layers[0].has_previous_state[0]
        if is_continued and values.shape[1] % self.config.patch_length:
            raise ValueError(
                f"`past_values` must have whole patches of patch_length={self.config.patch_length} where they go on "
                f"from a cache, got {values.shape[1]} values"
            )
        scaled = ((values - loc[:, None]) / scale[:, None]).masked_fill(~is_observed, 0)
        has_begun_before = rows_begun(cast(Cache, cache)) if is_continued else None
        hidden_states, is_real = self.embedding(scaled, is_observed, past_time_features, has_begun_before)
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        is_real = chunk_mask(is_real, rows, hidden_states.shape[1])
        hidden_states = self._run_layers(self.dropout(hidden_states), cache, is_real)
        return QRNNTimeSeriesModelOutput(last_hidden_state=hidden_states, cache=cache, loc=loc, scale=scale)

    def check_past(
        self, values: torch.Tensor, observed_mask: torch.Tensor | None, features: torch.Tensor | None
    ) -> None:
        """Refuse what `forward` could not read."""
        channels = self.config.num_input_channels
        if values.dim() not in (2, 3) or 0 in values.shape[1:]:
            raise ValueError(
                f"`past_values` must have the shape (batch, at least one value, channels) or (batch, at least one "
                f"value), got {tuple(values.shape)}"
            )
        given = values.shape[2] if values.dim() == 3 else 1
        if given != channels and self.config.has_own_channels:
            raise ValueError(f"`past_values` must have num_input_channels={channels} channels, got {given}")
        if observed_mask is not None and observed_mask.shape not in (values.shape[:2], values.shape):
            raise ValueError(
                f"`past_observed_mask` must have the shape of `past_values`, {tuple(values.shape)}, or that without "
                f"the channels, got {tuple(observed_mask.shape)}"
            )
        check_not_infinite("past_values", values, observed_mask)
        check_time_features("past_time_features", features, (*values.shape[:2], self.config.num_time_features))


def rows_begun(cache: Cache) -> torch.Tensor:
    """`(rows,)` bool, which rows have read anything: after pads alone a state is still the zeros it began with.

    So it is after values that the first layer reads as nothing but zeros, as a model without training may do.
    """
    recurrent_state, conv_state = cache.layers[0].carried_state()
    return (recurrent_state != 0).any(dim=1) | (conv_state != 0).flatten(1).any(dim=1)


def check_not_infinite(name: str, values: torch.Tensor, observed_mask: torch.Tensor | None) -> None:
    """Refuse infinity that is observed, which would spread over the forecast."""
    if not can_be_looked_at(values):
        return
    observed, _ = split_missing(values, observed_mask)
    if bool(observed.isinf().any()):
        raise ValueError(f"`{name}` must be finite, or NaN where missing, got infinity")


def check_time_features(name: str, features: torch.Tensor | None, shape: tuple[int, ...]) -> None:
    """Refuse covariates of another shape, of a model that has none, or unknown ones."""
    if features is None and not shape[-1]:
        return
    if features is None or tuple(features.shape) != shape:
        expected = f"have the shape (batch, length, num_time_features) = {shape}" if shape[-1] else "be None"
        raise ValueError(f"`{name}` must {expected}, got {None if features is None else tuple(features.shape)}")
    if can_be_looked_at(features) and not bool(features.isfinite().all()):
        raise ValueError(f"`{name}` must be finite: covariates are to be known, in the past and in the future")


class QRNNPointHead:
    """A forecast of one number: of its mean (`"mse"`), its median (`"mae"`), or between the two (`"huber"`).

    All heads have these methods. `raw` `(..., num_params)` is what the network makes of each value, `params` what it
    means, each without the last dimension; `loc` and `scale` have dimensions that fit them.
    """

    num_params = 1

    def __init__(self, config: QRNNTimeSeriesConfig):
        self.loss, self.huber_delta = config.loss, config.huber_delta

    def params(self, raw: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (raw.squeeze(-1),)

    def point(self, params: tuple[torch.Tensor, ...], loc: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return params[0] * scale + loc

    def losses(self, params, loc, scale, values: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
        """The loss of each value, with errors in `unit`."""
        prediction, target = self.point(params, loc, scale) / unit, values / unit
        if self.loss == "mse":
            return F.mse_loss(prediction, target, reduction="none")
        if self.loss == "mae":
            return F.l1_loss(prediction, target, reduction="none")
        return F.huber_loss(prediction, target, reduction="none", delta=self.huber_delta)

    def sample(self, params, loc, scale) -> torch.Tensor:
        """One draw of each value: there is only one number to draw."""
        return self.point(params, loc, scale)


class QRNNQuantileHead:
    """Quantiles, learned by the pinball loss (Koenker and Bassett 1978).

    They are put in rising order, which never makes the loss larger (Chernozhukov et al. 2010). Between them the
    quantile function is linear, and beyond the outer ones constant.
    """

    def __init__(self, config: QRNNTimeSeriesConfig):
        self.quantiles = cast(list[float], config.quantiles)
        self.num_params = len(self.quantiles)

    def params(self, raw: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (raw.sort(dim=-1).values,)

    def point(self, params: tuple[torch.Tensor, ...], loc: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return self.values_at(params, loc, scale, torch.full_like(params[0][..., 0], 0.5))

    def values_at(self, params, loc, scale, probabilities: torch.Tensor) -> torch.Tensor:
        """The values that are not exceeded with these probabilities, `(...)`."""
        (quantiles,) = params
        levels = quantiles.new_tensor(self.quantiles)
        upper = torch.searchsorted(levels, probabilities.contiguous()).clamp(max=self.num_params - 1)
        lower = (upper - 1).clamp(min=0)
        gap = (levels[upper] - levels[lower]).clamp(min=torch.finfo(levels.dtype).tiny)
        weight = ((probabilities - levels[lower]) / gap).clamp(0, 1)
        low, high = (quantiles.gather(-1, index[..., None]).squeeze(-1) for index in (lower, upper))
        return (low + weight * (high - low)) * scale + loc

    def losses(self, params, loc, scale, values: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
        (quantiles,) = params
        levels = quantiles.new_tensor(self.quantiles)
        error = ((values - loc) / scale)[..., None] - quantiles
        return torch.maximum(levels * error, (levels - 1) * error).mean(dim=-1) * (scale / unit)

    def sample(self, params, loc, scale) -> torch.Tensor:
        return self.values_at(params, loc, scale, torch.rand_like(params[0][..., 0]))


class QRNNDistributionHead:
    """A distribution of `transformers.time_series_utils`, learned by its likelihood."""

    def __init__(self, config: QRNNTimeSeriesConfig):
        outputs = {"student_t": StudentTOutput, "normal": NormalOutput, "negative_binomial": NegativeBinomialOutput}
        self.output: Any = outputs[config.distribution_output]()
        self.num_params = len(self.output.args_dim)

    def params(self, raw: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.output.domain_map(*raw.split(1, dim=-1))

    def distribution(self, params, loc, scale) -> torch.distributions.Distribution:
        # Copies, for a scaled negative binomial changes its parameters in place.
        return self.output.distribution([param.clone() for param in params], loc=loc, scale=scale)

    def point(self, params: tuple[torch.Tensor, ...], loc: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        names = list(self.output.args_dim)
        # torch's mean of a Student's t looks at its numbers (undefined ones become NaN), which `torch.func` forbids.
        if "loc" in names:
            return params[names.index("loc")] * scale + loc
        return self.distribution(params, loc, scale).mean

    def losses(self, params, loc, scale, values: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
        return -self.distribution(params, loc, scale).log_prob(values)

    def sample(self, params, loc, scale) -> torch.Tensor:
        return self.distribution(params, loc, scale).sample()


Head = QRNNPointHead | QRNNQuantileHead | QRNNDistributionHead


def make_head(config: QRNNTimeSeriesConfig) -> Head:
    """What the loss of the config asks for."""
    heads: dict[str, type] = {"nll": QRNNDistributionHead, "quantile": QRNNQuantileHead}
    return heads.get(config.loss, QRNNPointHead)(config)


class QRNNCovariateHead(nn.Module):
    """What the known future adds to a direct forecast: `W_out silu(W_state s + W_features x_t)` for each value t."""

    def __init__(self, state_size: int, num_time_features: int, hidden_size: int, output_size: int):
        super().__init__()
        self.state_proj = nn.Linear(state_size, hidden_size)
        self.feature_proj = nn.Linear(num_time_features, hidden_size, bias=False)
        self.out_proj = nn.Linear(hidden_size, output_size, bias=False)

    def forward(self, state: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """`(rows, state_size)` and `(rows, length, num_time_features)` to `(rows, length, output_size)`."""
        return self.out_proj(F.silu(self.state_proj(state)[:, None] + self.feature_proj(features)))


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Draw from generators of this seed, and leave torch's own as they were; `None` for torch's own.

    Those of other devices stay as they are, which `torch.manual_seed` would seed too.
    """
    if seed is None:
        yield
        return
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type="cuda" if device.type == "cpu" else device.type):
        torch.default_generator.manual_seed(int(seed))
        if devices:
            with torch.accelerator.device_index(device.index):
                torch.get_device_module(device).manual_seed(int(seed))
        yield


class QRNNTimeSeriesGenerationMixin:
    """`generate` for models of time series, which draws sample paths.

    To remote code that has a `generate`, Transformers adds its own mixin, for tokens, unless a base class is called a
    `GenerationMixin`, as this one is.
    """

    # What the class that it is mixed into has
    config: QRNNTimeSeriesConfig
    model: QRNNTimeSeriesModel
    output: Head
    is_direct: bool
    _forecast: Callable[..., Any]
    _coming_features: Callable[..., Any]
    _patches: Callable[..., Any]
    _params: Callable[..., Any]

    @classmethod
    def can_generate(cls) -> bool:
        """False: Transformers asks about tokens, and this draws numbers."""
        return False

    @gathers_shards
    @torch.no_grad()
    def generate(
        self,
        past_values: torch.Tensor,
        past_observed_mask: torch.Tensor | None = None,
        past_time_features: torch.Tensor | None = None,
        future_time_features: torch.Tensor | None = None,
        prediction_length: int | None = None,
        num_parallel_samples: int | None = None,
        seed: int | None = None,
    ) -> SampleTSPredictionOutput:
        """Draw sample paths of the future.

        An autoregressive model goes on from each value that it has drawn, with its state in a cache, so its paths
        hang together; a direct one draws each value by itself. A model of points has nothing to draw: its paths are
        all its forecast.

        Args:
            past_values, past_observed_mask, past_time_features, future_time_features: as in `forward`.
            prediction_length: how many values, for as many `future_time_features`; `config.prediction_length` by
                default. A direct model makes no more than these, an autoregressive one any number.
            num_parallel_samples: how many paths of each series; `config.num_parallel_samples` by default.
            seed: draw from a generator of that seed, and leave torch's own alone; `None` for torch's own.

        Returns:
            `sequences` `(batch, num_parallel_samples, prediction_length, channels)`, without the channels if the past
            values came without.

        Raises:
            ValueError: as `forward`, and for a number of values or paths out of its range.
        """
        length = self.config.prediction_length if prediction_length is None else prediction_length
        n_paths = self.config.num_parallel_samples if num_parallel_samples is None else num_parallel_samples
        self.model.check_past(past_values, past_observed_mask, past_time_features)
        self._check_generation(length, n_paths, past_values, future_time_features)
        with seeded(seed, past_values.device):
            if self.is_direct:
                if future_time_features is not None:  # each acts on its own value alone
                    missing = self.config.prediction_length - length
                    future_time_features = F.pad(future_time_features, (0, 0, 0, missing))
                past = past_values, past_observed_mask, past_time_features
                outputs, params = self._forecast(*past, future_time_features)
                params = tuple(
                    param[:, None, :length].expand(-1, n_paths, *[-1] * (param.dim() - 1)) for param in params
                )
                paths = self.output.sample(params, outputs.loc[:, None, None], outputs.scale[:, None, None])
            else:
                past = *split_missing(past_values, past_observed_mask), past_time_features
                paths = self._sample_paths(*past, future_time_features, length, n_paths)
        return SampleTSPredictionOutput(sequences=paths.squeeze(3) if past_values.dim() == 2 else paths)

    def _sample_paths(self, values, is_observed, past_features, future_features, length: int, n_paths: int):
        batch_size, past_length, _ = values.shape
        patch_length = self.config.patch_length
        n_patches = -(-length // patch_length)
        features = self._coming_features(past_features, future_features, past_length + (n_patches - 1) * patch_length)
        read = None if features is None else features[:, :past_length]
        outputs = self.model(values, is_observed, read, use_cache=True)

        # The rows of each series side by side, path by path, as if each path were a series of the batch
        rows = torch.arange(outputs.last_hidden_state.shape[0], device=values.device)
        rows = rows.view(batch_size, 1, self.model.embedding.rows_per_series(values.shape[2]))
        rows = rows.expand(-1, n_paths, -1).flatten()
        cache, hidden_states = outputs.cache, outputs.last_hidden_state[rows, -1:]
        for layer in cache.layers:
            layer.batch_select_indices(rows)
        loc, scale = (part.repeat_interleave(n_paths, dim=0) for part in (outputs.loc, outputs.scale))
        if features is not None:
            features = features[:, past_length:].repeat_interleave(n_paths, dim=0)

        patches: list[torch.Tensor] = []
        for start in range(0, n_patches * patch_length, patch_length):
            if start:
                read = None if features is None else features[:, start - patch_length : start]
                step = {"cache": cache, "loc": loc, "scale": scale, "use_cache": True}
                hidden_states = self.model(patches[-1], None, read, **step).last_hidden_state
            params = self._params(self._patches(hidden_states), loc)
            patches.append(self.output.sample(params, loc[:, None], scale[:, None]))
        return torch.cat(patches, dim=1)[:, :length].unflatten(0, (batch_size, n_paths))

    def _check_generation(self, length: Any, n_paths: Any, past_values, features) -> None:
        if not isinstance(n_paths, Integral) or n_paths < 1:
            raise ValueError(f"`num_parallel_samples` must be an integer of at least 1, got {n_paths}")
        longest = self.config.prediction_length
        if not isinstance(length, Integral) or length < 1 or (self.is_direct and int(length) > longest):
            limit = f"between 1 and config.prediction_length={longest}" if self.is_direct else "of at least 1"
            raise ValueError(f"`prediction_length` must be an integer {limit}, got {length}")
        shape = past_values.shape[0], int(length), self.config.num_time_features
        check_time_features("future_time_features", features, shape)


class QRNNForTimeSeriesPrediction(QRNNTimeSeriesGenerationMixin, QRNNTimeSeriesPreTrainedModel):
    """The QRNN with a head that forecasts: numbers, quantiles or distributions, all at once or patch by patch.

    Example:
        >>> config = QRNNTimeSeriesConfig(hidden_size=32, prediction_length=6, num_input_channels=3, patch_length=4)
        >>> model = QRNNForTimeSeriesPrediction(config).eval()
        >>> past, future = torch.randn(2, 20, 3), torch.randn(2, 6, 3)
        >>> past[0, 5, 1] = float("nan")  # a missing value
        >>> outputs = model(past, future_values=future)
        >>> outputs.prediction_outputs.shape, outputs.loss.isfinite().item()
        (torch.Size([2, 6, 3]), True)
        >>> model.generate(past, num_parallel_samples=50, seed=0).sequences.shape
        torch.Size([2, 50, 6, 3])
    """

    # The loss is a mean over the batch: Trainer must divide it under gradient accumulation.
    accepts_loss_kwargs = False

    def __init__(self, config: QRNNTimeSeriesConfig):
        super().__init__(config)
        self.model = QRNNTimeSeriesModel(config)
        self.dropout = QRNNDropout(config.output_dropout, config.locked_dropout)
        self.output = make_head(config)
        self.is_direct = config.horizon == "direct"
        self.row_channels = config.num_input_channels if config.channel_mode == "mixed" else 1
        state_size = config.num_head_states * config.output_size
        width = self.row_channels * self.output.num_params  # of each value
        self.head = nn.Linear(
            state_size, width * (config.prediction_length if self.is_direct else config.patch_length)
        )
        self.covariate_head = None
        if self.is_direct and config.num_time_features:
            self.covariate_head = QRNNCovariateHead(state_size, config.num_time_features, config.hidden_size, width)

        # Initialize weights and apply final processing
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        past_values: torch.Tensor,
        past_observed_mask: torch.Tensor | None = None,
        past_time_features: torch.Tensor | None = None,
        future_values: torch.Tensor | None = None,
        future_observed_mask: torch.Tensor | None = None,
        future_time_features: torch.Tensor | None = None,
        return_loss: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> QRNNTimeSeriesPredictionOutput:
        """Forecast each series.

        Args:
            past_values, past_observed_mask, past_time_features: as in `QRNNTimeSeriesModel`.
            future_values: `(batch, prediction_length, channels)`, or without channels as the past ones; NaN where
                missing. An autoregressive model reads each of its patches before it forecasts the next one; without
                them it forecasts the first patch alone, and `generate` all.
            future_observed_mask: zero where a future value is missing and has no part in the loss, `(batch,
                prediction_length)` or as the values.
            future_time_features: `(batch, prediction_length, num_time_features)`, the covariates.
            return_loss: whether to compute the loss of the future values.
            kwargs: among them `output_hidden_states` and `return_dict`.

        Returns:
            `loss`, the mean over all future values that are observed; `prediction_outputs`; `params`; `loc` and
            `scale`.

        Raises:
            ValueError: as `QRNNTimeSeriesModel`, and if what is said of the future has another shape, or for a cache
                and what goes with it.
        """
        self._check_whole(kwargs)
        self.model.check_past(past_values, past_observed_mask, past_time_features)
        self._check_future(past_values, future_values, future_observed_mask, future_time_features)
        if self.is_direct:
            past = past_values, past_observed_mask, past_time_features
            outputs, params = self._forecast(*past, future_time_features, **kwargs)
        else:
            values, is_observed = split_missing(past_values, past_observed_mask)
            future = None if future_values is None else split_missing(future_values, future_observed_mask)
            features = past_time_features, future_time_features
            outputs, params = self._forecast_patches(values, is_observed, future, features, **kwargs)
        loc, scale = outputs.loc, outputs.scale
        prediction = self.output.point(params, loc[:, None], scale[:, None])

        loss = None
        if future_values is not None and return_loss:
            loss = self._loss(
                params, loc[:, None], scale[:, None], *split_missing(future_values, future_observed_mask)
            )
        if past_values.dim() == 2:
            prediction, params = prediction.squeeze(2), tuple(param.squeeze(2) for param in params)
            loc, scale = loc.squeeze(1), scale.squeeze(1)
        return QRNNTimeSeriesPredictionOutput(
            loss=loss,
            prediction_outputs=prediction,
            params=params,
            hidden_states=outputs.hidden_states,
            loc=loc,
            scale=scale,
        )

    def _loss(self, params, loc, scale, values: torch.Tensor, is_observed: torch.Tensor) -> torch.Tensor:
        losses = self.output.losses(params, loc, scale, values, self.model.scaler.unit(values))
        return losses.masked_fill(~is_observed, 0).sum() / is_observed.sum().clamp(min=1)

    def _forecast(self, past_values, past_observed_mask, past_time_features, future_time_features, **kwargs):
        """All values from the last states."""
        outputs = self.model(past_values, past_observed_mask, past_time_features, use_cache=False, **kwargs)
        n_states = self.config.num_head_states
        states = outputs.last_hidden_state[:, -n_states:]
        state = self.dropout(F.pad(states, (0, 0, n_states - states.shape[1], 0)).flatten(1)[:, None])
        raw = self.head(state).squeeze(1).unflatten(1, (self.config.prediction_length, -1))
        if self.covariate_head is not None:
            features = future_time_features.to(raw.dtype)
            n_rows = self.model.embedding.rows_per_series(outputs.loc.shape[1])
            features = features.repeat_interleave(n_rows, dim=0)
            raw = raw + self.covariate_head(state.squeeze(1), features).to(raw.device)
        return outputs, self._params(raw, outputs.loc)

    def _forecast_patches(self, values, is_observed, future, features: tuple, **kwargs):
        """Each patch from the state after the values before it, which are given (teacher forcing)."""
        patch_length, past_length = self.config.patch_length, values.shape[1]
        loc, scale = self.model.scaler(values, is_observed)
        length = patch_length if future is None else future[0].shape[1]
        n_read = (length - 1) // patch_length * patch_length  # all but the last patch
        if n_read:
            values, is_observed = (
                torch.cat([past, coming[:, :n_read]], dim=1)
                for past, coming in zip((values, is_observed), future, strict=True)
            )
        past_features, future_features = features
        read = self._coming_features(past_features, future_features, past_length + n_read)
        outputs = self.model(values, is_observed, read, loc=loc, scale=scale, use_cache=False, **kwargs)
        hidden_states = outputs.last_hidden_state[:, -1 - n_read // patch_length :]
        params = self._params(self._patches(hidden_states), loc)
        return outputs, tuple(param[:, :length] for param in params)

    def _coming_features(self, past, future, length: int) -> torch.Tensor | None:
        """At each value the covariates of the one that is a patch ahead: what is known of the patch to forecast."""
        if past is None:
            return None
        features = torch.cat([past, future], dim=1)[:, self.config.patch_length :]
        return F.pad(features, (0, 0, 0, max(0, length - features.shape[1])))[:, :length]

    def _patches(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(rows, steps, hidden_size)` to what the head says of the patches after each, `(rows, values, width)`."""
        raw = self.head(self.dropout(hidden_states))
        return raw.unflatten(2, (self.config.patch_length, -1)).flatten(1, 2)

    def _params(self, raw: torch.Tensor, loc: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`(rows, length, width)` to parameters `(batch, length, channels)`, in float32 or float64; where `loc` is."""
        raw = raw.to(loc.device, state_dtype(raw.dtype)).unflatten(2, (self.row_channels, -1))
        if self.config.channel_mode == "independent":
            raw = raw.squeeze(2).unflatten(0, loc.shape).transpose(1, 2)
        return self.output.params(raw)

    @staticmethod
    def _check_whole(options: dict[str, Any]) -> None:
        """Refuse, and take out where they say nothing, the options of a model that reads a past in chunks."""
        for name in ("cache", "use_cache", "loc", "scale"):
            value = options.pop(name, None)
            if value is not None and value is not False:
                raise ValueError(f"`{name}` must be None: a forecast is made of a whole past, not of chunks of it")

    def _check_future(self, past_values, values, observed_mask, features) -> None:
        batch_size, length = past_values.shape[0], self.config.prediction_length
        if not self.is_direct:  # any length, but that of the values is that of the covariates
            given = [
                part.shape[1] for part in (values, features) if part is not None and part.dim() > 1 and part.shape[1]
            ]
            length = given[0] if given else self.config.patch_length
        expected = (batch_size, length, *past_values.shape[2:])
        if values is not None and tuple(values.shape) != expected:
            raise ValueError(
                f"`future_values` must have the shape (batch, prediction_length, channels as `past_values`) = "
                f"{expected}, got {tuple(values.shape)}"
            )
        if observed_mask is not None and (
            values is None or tuple(observed_mask.shape) not in (expected[:2], expected)
        ):
            raise ValueError(
                f"`future_observed_mask` must come with `future_values` and have their shape {expected}, or that "
                f"without the channels, got {tuple(observed_mask.shape)}"
            )
        if values is not None:
            check_not_infinite("future_values", values, observed_mask)
        check_time_features("future_time_features", features, (batch_size, length, self.config.num_time_features))


__all__ = ["QRNNForTimeSeriesPrediction", "QRNNTimeSeriesModel", "QRNNTimeSeriesPreTrainedModel"]
