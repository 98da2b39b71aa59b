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

Importing the package registers its models, its cache layers and its pipelines with Transformers, and its operators
with torch.
"""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForCausalLM,
    AutoModelForCTC,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTimeSeriesPrediction,
    AutoModelForTokenClassification,
    AutoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY, REMOVED_TASKS

from .cache_qrnn import QRNNCacheLayer, load_recurrent_state, save_recurrent_state
from .configuration_qrnn import QRNNConfig, QRNNSeq2SeqConfig, QRNNSpeechConfig, QRNNTimeSeriesConfig
from .feature_extraction_qrnn import QRNNFeatureExtractor
from .layers_qrnn import QRNN, QRNNLayer, QRNNState
from .modeling_qrnn import (
    QRNNForCausalLM,
    QRNNForMaskedLM,
    QRNNForSequenceClassification,
    QRNNForTokenClassification,
    QRNNModel,
    QRNNPreTrainedModel,
)
from .modeling_qrnn_seq2seq import QRNNForConditionalGeneration, QRNNSeq2SeqModel, TargetLengthLogitsProcessor
from .modeling_qrnn_speech import (
    QRNNForAudioClassification,
    QRNNForCTC,
    QRNNSpeechModel,
)
from .modeling_qrnn_time_series import QRNNForTimeSeriesPrediction, QRNNTimeSeriesModel
from .pipelines_qrnn import (
    SummarizationPipeline,
    TaskAliases,
    TimeSeriesForecastingPipeline,
    TranslationPipeline,
    plot_forecast,
)
from .pooling_qrnn import recurrent_pooling
from .processing_qrnn import QRNNProcessor
from .streaming_qrnn import QRNNSpeechStream, QRNNStreamingTranscriber


_MODELS = {
    QRNNConfig: {
        AutoModel: QRNNModel,
        AutoModelForCausalLM: QRNNForCausalLM,
        AutoModelForMaskedLM: QRNNForMaskedLM,
        AutoModelForSequenceClassification: QRNNForSequenceClassification,
        AutoModelForTokenClassification: QRNNForTokenClassification,
    },
    QRNNSeq2SeqConfig: {
        AutoModel: QRNNSeq2SeqModel,
        AutoModelForSeq2SeqLM: QRNNForConditionalGeneration,
    },
    QRNNSpeechConfig: {
        AutoModel: QRNNSpeechModel,
        AutoModelForAudioClassification: QRNNForAudioClassification,
        AutoModelForCTC: QRNNForCTC,
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

AutoFeatureExtractor.register(QRNNSpeechConfig, QRNNFeatureExtractor, exist_ok=True)
QRNNFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
AutoProcessor.register(QRNNSpeechConfig, QRNNProcessor, exist_ok=True)
QRNNProcessor.register_for_auto_class("AutoProcessor")

_PIPELINES = {
    "summarization": (SummarizationPipeline, AutoModelForSeq2SeqLM),
    "time-series-forecasting": (TimeSeriesForecastingPipeline, AutoModelForTimeSeriesPrediction),
    "translation": (TranslationPipeline, AutoModelForSeq2SeqLM),
}

# Transformers 5 refuses the names of some of these tasks (`REMOVED_TASKS`); from here on they are served again.
for _task, (_pipeline_class, _auto_class) in _PIPELINES.items():
    PIPELINE_REGISTRY.register_pipeline(_task, _pipeline_class, pt_model=_auto_class, type="text")
    REMOVED_TASKS.pop(_task, None)
PIPELINE_REGISTRY.task_aliases = TaskAliases(PIPELINE_REGISTRY.task_aliases)


__all__ = [
    "QRNN",
    "QRNNCacheLayer",
    "QRNNConfig",
    "QRNNFeatureExtractor",
    "QRNNForAudioClassification",
    "QRNNForCTC",
    "QRNNForCausalLM",
    "QRNNForConditionalGeneration",
    "QRNNForMaskedLM",
    "QRNNForSequenceClassification",
    "QRNNForTimeSeriesPrediction",
    "QRNNForTokenClassification",
    "QRNNLayer",
    "QRNNModel",
    "QRNNPreTrainedModel",
    "QRNNProcessor",
    "QRNNSeq2SeqConfig",
    "QRNNSeq2SeqModel",
    "QRNNSpeechConfig",
    "QRNNSpeechModel",
    "QRNNSpeechStream",
    "QRNNState",
    "QRNNStreamingTranscriber",
    "QRNNTimeSeriesConfig",
    "QRNNTimeSeriesModel",
    "SummarizationPipeline",
    "TargetLengthLogitsProcessor",
    "TimeSeriesForecastingPipeline",
    "TranslationPipeline",
    "load_recurrent_state",
    "plot_forecast",
    "recurrent_pooling",
    "save_recurrent_state",
]
