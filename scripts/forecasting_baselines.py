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
"""The linear model that is trained beside a QRNN that forecasts: NLinear (Zeng et al. 2023)."""

import torch
from torch import nn
from transformers.modeling_outputs import ModelOutput

from modeling_qrnn import QRNNTimeSeriesConfig
from modeling_qrnn.modeling_qrnn_time_series import QRNNPointHead, QRNNTimeSeriesScaler, split_missing


class LinearForecaster(nn.Module):
    """One linear map from the past of a variable, measured from its last value, to its future; the same for all.

    A missing value counts as the last one. Of the config it takes the lengths, the units, and the loss if that is one
    of points; covariates are not read.
    """

    def __init__(self, config: QRNNTimeSeriesConfig):
        super().__init__()
        loss = config.loss if config.loss in ("mse", "mae", "huber") else "mse"
        values = {"value_loc": config.value_loc, "value_scale": config.value_scale}
        self.config = QRNNTimeSeriesConfig(
            scaling="last", loss=loss, num_input_channels=config.num_input_channels, **values
        )
        self.scaler, self.output = QRNNTimeSeriesScaler(self.config), QRNNPointHead(self.config)
        self.proj = nn.Linear(config.context_length, config.prediction_length)

    def forward(self, past_values, future_values=None, return_loss: bool = True, **features) -> ModelOutput:
        values, is_observed = split_missing(past_values, None)
        loc, scale = (part[:, None] for part in self.scaler(values, is_observed))
        scaled = ((values - loc) / scale).masked_fill(~is_observed, 0).to(self.proj.weight.dtype)
        params = (self.proj(scaled.transpose(1, 2)).transpose(1, 2),)
        loss = None
        if future_values is not None and return_loss:
            target, is_observed = split_missing(future_values, None)
            losses = self.output.losses(params, loc, scale, target, self.scaler.unit(target))
            loss = losses.masked_fill(~is_observed, 0).sum() / is_observed.sum().clamp(min=1)
        return ModelOutput(loss=loss, prediction_outputs=self.output.point(params, loc, scale))


def repeat_last_value(past_values: torch.Tensor, prediction_length: int) -> torch.Tensor:
    """`(batch, prediction_length, channels)`, the last observed value of each series over and over."""
    return fill_forward(past_values)[:, -1:].expand(-1, prediction_length, -1)


def repeat_last_season(past_values: torch.Tensor, prediction_length: int, season_length: int) -> torch.Tensor:
    """The last season over and over, all of which is in the past; a gap in it holds the value before.

    Example:
        >>> repeat_last_season(torch.tensor([[[1.0], [2.0], [3.0]]]), 5, season_length=2).flatten().tolist()
        [2.0, 3.0, 2.0, 3.0, 2.0]
    """
    season = fill_forward(past_values)[:, -season_length:]
    return season[:, torch.arange(prediction_length, device=past_values.device) % season_length]


def fill_forward(values: torch.Tensor) -> torch.Tensor:
    """Each missing value becomes the last observed one before it, or zero."""
    steps = torch.arange(values.shape[1], device=values.device)[:, None]
    last = torch.where(values.isnan(), 0, steps).cummax(dim=1).values
    return values.gather(1, last).nan_to_num(nan=0.0)
