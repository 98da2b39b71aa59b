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
"""Transformers' own common tests, run for every head."""

import unittest
from unittest import mock

import torch
from transformers_tests.generation.test_utils import GenerationTesterMixin
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import (
    ModelTesterMixin,
    floats_tensor,
    ids_tensor,
    random_attention_mask,
)
from transformers_tests.test_sequence_feature_extraction_common import SequenceFeatureExtractionTestMixin
from transformers_tests.test_training_mixin import TrainingTesterMixin

from modeling_qrnn import (
    QRNNConfig,
    QRNNFeatureExtractor,
    QRNNForAudioClassification,
    QRNNForCausalLM,
    QRNNForConditionalGeneration,
    QRNNForCTC,
    QRNNForMaskedLM,
    QRNNForSequenceClassification,
    QRNNForTimeSeriesPrediction,
    QRNNForTokenClassification,
    QRNNModel,
    QRNNSeq2SeqConfig,
    QRNNSeq2SeqModel,
    QRNNSpeechConfig,
    QRNNSpeechModel,
    QRNNTimeSeriesConfig,
    QRNNTimeSeriesModel,
)


class QRNNModelTester:
    """A tiny model and a batch for it, under the names by which the mixins ask for them."""

    batch_size = 3
    seq_length = 7
    is_training = True
    hidden_size = 32
    num_hidden_layers = 2
    vocab_size = 99
    num_labels = 3

    def __init__(self, causal_lm_class: type, **options):
        self.causal_lm_class = causal_lm_class  # the class that `TrainingTesterMixin` trains
        self.options = options

    def get_config(self) -> QRNNConfig:
        return QRNNConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_labels=self.num_labels,
            **self.options,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[QRNNConfig, dict[str, torch.Tensor]]:
        shape = (self.batch_size, self.seq_length)
        inputs = {"input_ids": ids_tensor(shape, self.vocab_size), "attention_mask": random_attention_mask(shape)}
        return self.get_config(), inputs


# With the default range of the head, the first gradients of a stack without norms are so small at this width that they
# cannot fall by the nine tenths that the training test asks for.
WIDE = 1.0


class CommonTests(TrainingTesterMixin, ModelTesterMixin):
    has_attentions = False

    def test_config(self):
        properties = ["hidden_size", "num_hidden_layers"]
        ConfigTester(self, QRNNConfig, common_properties=properties, **self.model_tester.options).run_common_tests()


class QRNNModelTest(CommonTests, GenerationTesterMixin, unittest.TestCase):
    """The defaults: the paper's stack."""

    all_model_classes = (QRNNModel, QRNNForCausalLM, QRNNForSequenceClassification, QRNNForTokenClassification)
    model_tester = QRNNModelTester(QRNNForCausalLM, initializer_range=WIDE)


class QRNNResidualModelTest(QRNNModelTest):
    """The modern stack."""

    model_tester = QRNNModelTester(
        QRNNForCausalLM, pooling="ifo", connection="residual", norm="rms_norm", intermediate_size=48
    )


class QRNNBidirectionalModelTest(CommonTests, unittest.TestCase):
    """Both directions, in a dense stack."""

    all_model_classes = (QRNNModel, QRNNForMaskedLM, QRNNForSequenceClassification, QRNNForTokenClassification)
    model_tester = QRNNModelTester(QRNNForMaskedLM, bidirectional=True, connection="dense", initializer_range=WIDE)

    @unittest.skip("a model of both directions carries no state")
    def test_bc_cache_name_forward(self):
        pass


class QRNNSeq2SeqModelTester(QRNNModelTester):
    """Likewise of the encoder-decoder."""

    encoder_seq_length = 9
    decoder_seq_length = QRNNModelTester.seq_length  # which labels have
    encoder_layers = decoder_layers = QRNNModelTester.num_hidden_layers

    def get_config(self) -> QRNNSeq2SeqConfig:
        return QRNNSeq2SeqConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            encoder_layers=self.encoder_layers,
            decoder_layers=self.decoder_layers,
            pad_token_id=0,
            decoder_start_token_id=1,
            **self.options,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[QRNNSeq2SeqConfig, dict[str, torch.Tensor]]:
        source, target = (self.batch_size, self.encoder_seq_length), (self.batch_size, self.decoder_seq_length)
        return self.get_config(), {
            "input_ids": ids_tensor(source, self.vocab_size),
            "attention_mask": random_attention_mask(source),
            "decoder_input_ids": ids_tensor(target, self.vocab_size),
            "decoder_attention_mask": random_attention_mask(target),
        }


class QRNNSeq2SeqModelTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    """The encoder-decoder of the paper."""

    has_attentions = False
    is_encoder_decoder = True
    all_model_classes = (QRNNSeq2SeqModel, QRNNForConditionalGeneration)
    model_tester = QRNNSeq2SeqModelTester(QRNNForConditionalGeneration)

    def test_config(self):
        properties = ["hidden_size", "num_hidden_layers", "decoder_layers"]
        ConfigTester(
            self, QRNNSeq2SeqConfig, common_properties=properties, **self.model_tester.options
        ).run_common_tests()


class QRNNSeq2SeqResidualModelTest(QRNNSeq2SeqModelTest):
    """The modern one."""

    model_tester = QRNNSeq2SeqModelTester(
        QRNNForConditionalGeneration,
        connection="residual",
        intermediate_size=48,
        encoder_bidirectional=True,
        num_attention_heads=4,
        attention_layers="all",
        tie_word_embeddings=True,
        embedding_size=24,
    )


# --- speech ---


class QRNNSpeechModelTester:
    """A tiny model that reads audio and a batch for it."""

    batch_size = 3
    num_frames = 14
    is_training = True
    hidden_size = 32
    num_hidden_layers = 2
    num_mel_bins = 12

    def __init__(self, **options):
        self.options = options
        self.seq_length = -(-self.num_frames // self.get_config().subsampling_ratio)  # of the hidden states

    def get_config(self) -> QRNNSpeechConfig:
        return QRNNSpeechConfig(
            num_mel_bins=self.num_mel_bins,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_labels=3,
            vocab_size=20,
            **self.options,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[QRNNSpeechConfig, dict[str, torch.Tensor]]:
        shape = (self.batch_size, self.num_frames)
        inputs = {
            "input_features": floats_tensor([*shape, self.num_mel_bins]),
            "attention_mask": random_attention_mask(shape),
        }
        return self.get_config(), inputs


class QRNNSpeechModelTest(ModelTesterMixin, unittest.TestCase):
    """One direction, the paper's stack."""

    all_model_classes = (QRNNSpeechModel, QRNNForCTC, QRNNForAudioClassification)
    model_tester = QRNNSpeechModelTester()
    has_attentions = False
    test_resize_embeddings = False

    @unittest.skip("a model that reads audio embeds no words")
    def test_model_get_set_embeddings(self):
        pass

    def test_bc_cache_name_forward(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        # A model with a cache takes whole steps, and random pads do not leave those.
        whole = config, {"input_features": inputs["input_features"]}
        with mock.patch.object(self.model_tester, "prepare_config_and_inputs_for_common", return_value=whole):
            super().test_bc_cache_name_forward()

    def test_config(self):
        properties = ["hidden_size", "num_hidden_layers"]
        ConfigTester(
            self, QRNNSpeechConfig, common_properties=properties, **self.model_tester.options
        ).run_common_tests()


class QRNNBidirectionalSpeechModelTest(QRNNSpeechModelTest):
    """Both directions, in residual blocks, behind a front end that pools."""

    model_tester = QRNNSpeechModelTester(
        bidirectional=True,
        connection="residual",
        intermediate_size=48,
        temporal_pooling="max",
        classifier_pooling="max",
    )

    @unittest.skip("a model of both directions carries no state")
    def test_bc_cache_name_forward(self):
        pass


class QRNNFeatureExtractorTester:
    batch_size = 7
    feature_size = 12
    min_seq_length = 40
    seq_length_diff = 23
    max_seq_length = 200

    def prepare_feat_extract_dict(self) -> dict:
        return {"feature_size": self.feature_size, "sampling_rate": 16_000, "mean": -5.0, "std": [2.0] * 12}

    def prepare_inputs_for_common(self, equal_length: bool = False, numpify: bool = False) -> list:
        lengths = list(range(self.min_seq_length, self.max_seq_length, self.seq_length_diff))
        if equal_length:
            lengths = [self.max_seq_length] * self.batch_size
        inputs = [floats_tensor([length, self.feature_size]).numpy() for length in lengths]
        return inputs if numpify else [frames.tolist() for frames in inputs]


class QRNNFeatureExtractionTest(SequenceFeatureExtractionTestMixin, unittest.TestCase):
    feature_extraction_class = QRNNFeatureExtractor
    feat_extract_tester = QRNNFeatureExtractorTester()


# --- time series ---


class QRNNTimeSeriesModelTester:
    """A tiny model that forecasts and a batch for it."""

    batch_size = 3
    seq_length = 7  # patches
    is_training = True
    hidden_size = 32
    num_hidden_layers = 2

    def __init__(self, **options):
        self.options = options

    def get_config(self) -> QRNNTimeSeriesConfig:
        return QRNNTimeSeriesConfig(
            prediction_length=5,
            patch_length=2,
            num_input_channels=2,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            **self.options,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[QRNNTimeSeriesConfig, dict[str, torch.Tensor]]:
        shape = [self.batch_size, 2 * self.seq_length, 2]
        inputs = {"past_values": floats_tensor(shape), "past_observed_mask": ids_tensor(shape, 2)}
        return self.get_config(), inputs


class QRNNTimeSeriesModelTest(ModelTesterMixin, unittest.TestCase):
    """Independent channels, all values at once, the paper's stack."""

    all_model_classes = (QRNNTimeSeriesModel, QRNNForTimeSeriesPrediction)
    model_tester = QRNNTimeSeriesModelTester()
    has_attentions = False
    test_resize_embeddings = False

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels and model_class is QRNNForTimeSeriesPrediction:
            inputs["future_values"] = torch.ones(self.model_tester.batch_size, 5, 2)
        return inputs

    @unittest.skip("a model that reads numbers embeds no words")
    def test_model_get_set_embeddings(self):
        pass

    def test_config(self):
        properties = ["hidden_size", "num_hidden_layers"]
        options = {"has_text_modality": False, **self.model_tester.options}
        ConfigTester(self, QRNNTimeSeriesConfig, common_properties=properties, **options).run_common_tests()


class QRNNMixedTimeSeriesModelTest(QRNNTimeSeriesModelTest):
    """Mixed channels, patch by patch, in residual blocks, with learned normalisation and quantiles."""

    model_tester = QRNNTimeSeriesModelTester(
        channel_mode="mixed",
        horizon="autoregressive",
        scaling="revin",
        loss="quantile",
        connection="residual",
        intermediate_size=48,
    )
