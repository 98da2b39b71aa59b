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
"""The Quasi-Recurrent Neural Network (Bradbury et al. 2017) as a Hugging Face Transformers model.

Importing the package registers its models with Transformers' Auto classes and its pipelines with `pipeline`, and
nothing else.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTimeSeriesPrediction,
    AutoModelForTokenClassification,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .cache_qrnn import QRNNCacheLayer, load_recurrent_state, save_recurrent_state
from .configuration_qrnn import QRNNConfig, QRNNTimeSeriesConfig
from .layers_qrnn import QRNN, QRNNLayer, QRNNState
from .modeling_qrnn import (
    QRNNForCausalLM,
    QRNNForMaskedLM,
    QRNNForSequenceClassification,
    QRNNForTokenClassification,
    QRNNModel,
    QRNNPreTrainedModel,
)
from .modeling_qrnn_time_series import (
    QRNNForTimeSeriesPrediction,
    QRNNTimeSeriesModel,
    QRNNTimeSeriesPreTrainedModel,
)
from .pipelines_qrnn import TimeSeriesForecastingPipeline, plot_forecast
from .pooling_qrnn import recurrent_pooling


_MODELS = {
    QRNNConfig: {
        AutoModel: QRNNModel,
        AutoModelForCausalLM: QRNNForCausalLM,
        AutoModelForMaskedLM: QRNNForMaskedLM,
        AutoModelForSequenceClassification: QRNNForSequenceClassification,
        AutoModelForTokenClassification: QRNNForTokenClassification,
    },
    QRNNTimeSeriesConfig: {
        AutoModel: QRNNTimeSeriesModel,
        AutoModelForTimeSeriesPrediction: QRNNForTimeSeriesPrediction,
    },
}

for _config_class, _models in _MODELS.items():
    AutoConfig.register(_config_class.model_type, _config_class, exist_ok=True)
    _config_class.register_for_auto_class()
    for _auto_class, _model_class in _models.items():
        _auto_class.register(_config_class, _model_class, exist_ok=True)
        _model_class.register_for_auto_class(_auto_class.__name__)

_PIPELINES = {
    "time-series-forecasting": (TimeSeriesForecastingPipeline, AutoModelForTimeSeriesPrediction),
}

for _task, (_pipeline_class, _auto_class) in _PIPELINES.items():
    PIPELINE_REGISTRY.register_pipeline(_task, _pipeline_class, pt_model=_auto_class, type="text")


__all__ = [
    "QRNN",
    "QRNNCacheLayer",
    "QRNNConfig",
    "QRNNForCausalLM",
    "QRNNForMaskedLM",
    "QRNNForSequenceClassification",
    "QRNNForTimeSeriesPrediction",
    "QRNNForTokenClassification",
    "QRNNLayer",
    "QRNNModel",
    "QRNNPreTrainedModel",
    "QRNNState",
    "QRNNTimeSeriesConfig",
    "QRNNTimeSeriesModel",
    "QRNNTimeSeriesPreTrainedModel",
    "TimeSeriesForecastingPipeline",
    "load_recurrent_state",
    "plot_forecast",
    "recurrent_pooling",
    "save_recurrent_state",
]
