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
"""The configurations: defaults, what they refuse, what survives a file, and the widths they work out."""

import json
import re

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import AutoConfig

from modeling_qrnn import (
    QRNNConfig,
    QRNNForCausalLM,
    QRNNForConditionalGeneration,
    QRNNModel,
    QRNNSeq2SeqConfig,
    QRNNSpeechConfig,
    QRNNTimeSeriesConfig,
)


def test_defaults_build():
    config = QRNNConfig()
    assert (config.embedding_size, config.norm, config.use_cache) == (640, None, True)
    assert (config.pooling, config.connection, config.kernel_sizes) == ("fo", "plain", [2, 2])
    assert config.layer_types == ["qrnn_v1", "qrnn_v1"]


@pytest.mark.parametrize(
    ("given", "derived"),
    [
        ({"hidden_size": 32}, {"embedding_size": 32}),
        ({"hidden_size": 32, "embedding_size": 16}, {"embedding_size": 16}),
        ({"hidden_size": 32, "embedding_size": 640}, {"embedding_size": 640}),
        ({"connection": "residual"}, {"norm": "rms_norm"}),
        ({"connection": "residual", "norm": "layer_norm"}, {"norm": "layer_norm"}),
        ({"connection": "dense"}, {"norm": None}),
        ({"bidirectional": True}, {"use_cache": False}),
        ({"use_cache": False}, {"use_cache": False}),
        ({"num_hidden_layers": 3, "kernel_size": 4}, {"kernel_sizes": [4, 4, 4]}),
        ({"num_hidden_layers": 3, "kernel_size": [4, 1, 2]}, {"kernel_sizes": [4, 1, 2]}),
    ],
    ids=str,
)
def test_what_follows_from_what(given, derived):
    config = QRNNConfig(**given)
    assert {name: getattr(config, name) for name in derived} == derived


# --- what it refuses -------------------------------------------------------------------------------------------------

PROBABILITIES = [
    "zoneout",
    "embedding_dropout",
    "input_dropout",
    "hidden_dropout",
    "output_dropout",
    "weight_dropout",
]
WRONG_FIELDS = [
    *((name, value, "1") for name in ("vocab_size", "hidden_size", "num_hidden_layers") for value in (0, -1)),
    *(
        (name, value, "int")
        for name in ("vocab_size", "hidden_size", "num_hidden_layers")
        for value in (1.5, "1", None)
    ),
    *((name, value, "1.0") for name in PROBABILITIES for value in (1.0, 1.5, -0.1)),
    *((name, "half", "float") for name in PROBABILITIES),
    ("norm_eps", -1.0, "0.0"),
    ("initializer_range", -1.0, "0.0"),
    ("activation_regularization", -1.0, "0.0"),
    ("temporal_activation_regularization", -1.0, "0.0"),
    ("pooling", "of", "'f', 'fo', 'ifo'"),
    ("candidate_activation", "gelu", "'tanh', 'identity', 'relu'"),
    ("connection", "skip", "'plain', 'dense', 'residual'"),
    ("norm", "batch_norm", "'layer_norm', 'rms_norm'"),
    ("classifier_pooling", "first", "'last', 'max', 'mean', 'concat'"),
    ("kernel_size", "2", "int"),
    ("kernel_size", [2.5, 1], "int"),
    ("embedding_size", "2", "int"),
    ("intermediate_size", 2.5, "int"),
    ("classifier_hidden_size", 2.5, "int"),
    ("classifier_dropout", "half", "float"),
    ("gate_initializer_range", "wide", "float"),
    *((name, -0.1, "at least 0 or None") for name in ("gate_initializer_range", "embedding_initializer_range")),
    *((name, 0, "at least 1 or None") for name in ("embedding_size", "intermediate_size", "classifier_hidden_size")),
    *(("classifier_dropout", value, "a probability in [0, 1) or None") for value in (1.0, -0.5)),
    ("forget_bias", "big", "float"),
    ("bidirectional", "yes", "bool"),
    ("locked_dropout", "yes", "bool"),
    ("tie_word_embeddings", "yes", "bool"),
    ("use_cache", "yes", "bool"),
    ("pad_token_id", "0", "int"),
    ("bos_token_id", "0", "int"),
    ("eos_token_id", "0", "int"),
]


@pytest.mark.parametrize(("name", "value", "allowed"), WRONG_FIELDS, ids=str)
def test_wrong_fields(name, value, allowed):
    with pytest.raises(StrictDataclassFieldValidationError) as error:
        QRNNConfig(**{name: value})
    message = str(error.value)
    assert name in message and str(value) in message and allowed in message


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"norm": "rms_norm", "norm_eps": 0}, ["`norm_eps`", "above 0", "'rms_norm'", "got 0"]),
        ({"intermediate_size": 8}, ["`intermediate_size`", "None unless connection='residual'", "got 8", "'plain'"]),
        ({"kernel_size": 0}, ["`kernel_size`", "from 1 up", "got 0"]),
        ({"kernel_size": [2, 0]}, ["`kernel_size`", "from 1 up", "got [2, 0]"]),
        ({"kernel_size": [2, 2, 2]}, ["`kernel_size`", "one per layer (2)", "got [2, 2, 2]"]),
        ({"kernel_size": []}, ["`kernel_size`", "one per layer (2)", "got []"]),
        ({"bidirectional": True, "hidden_size": 7}, ["`hidden_size`", "even", "got 7"]),
        (
            {"bidirectional": True, "embedding_size": 7, "tie_word_embeddings": True},
            ["`embedding_size`", "even", "got 7"],
        ),
        ({"bidirectional": True, "use_cache": True}, ["`use_cache`", "False or None", "got True"]),
    ],
    ids=str,
)
def test_fields_that_do_not_fit(options, parts):
    with pytest.raises(StrictDataclassClassValidationError) as error:
        QRNNConfig(**options)
    assert all(part in str(error.value) for part in parts)


def test_fields_are_checked_when_they_are_set():
    config = QRNNConfig()
    for name in ("embedding_size", "intermediate_size", "classifier_hidden_size", "hidden_size"):
        with pytest.raises(StrictDataclassFieldValidationError, match=name):
            setattr(config, name, 0)


def test_an_odd_embedding_is_fine_where_it_is_not_split():
    config = QRNNConfig(bidirectional=True, embedding_size=7, hidden_size=8)
    assert config.layer_sizes == [(7, 8), (8, 8)]


# --- files -----------------------------------------------------------------------------------------------------------

CONFIGS = [
    {},
    {"hidden_size": 32},
    # as large as the default's embeddings: it must not be taken for a default that follows from the hidden size
    {"hidden_size": 32, "embedding_size": 640},
    {"hidden_size": 32, "embedding_size": 16, "tie_word_embeddings": True},
    {"num_hidden_layers": 3, "kernel_size": [4, 1, 2]},
    {"num_hidden_layers": 1, "kernel_size": [2]},
    {"connection": "residual"},
    {"connection": "residual", "norm": "layer_norm", "intermediate_size": 64},
    {"norm": "rms_norm"},
    {"bidirectional": True},
    {"bidirectional": True, "use_cache": False, "hidden_size": 32},
    {"use_cache": False},
    {"zoneout": 0.1, "hidden_dropout": 0.5, "weight_dropout": 0.2, "locked_dropout": True, "forget_bias": 1},
    {"eos_token_id": [1, 2], "bos_token_id": 0, "pad_token_id": 3},
    {"classifier_pooling": "concat", "classifier_hidden_size": 50, "classifier_dropout": 0.1, "num_labels": 5},
    {"dtype": "bfloat16"},
]


@pytest.mark.parametrize("options", CONFIGS, ids=str)
class TestFiles:
    def test_round_trip(self, options, tmp_path):
        config = QRNNConfig(**options)
        config.save_pretrained(tmp_path)
        for loaded in (QRNNConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
            assert type(loaded) is QRNNConfig
            assert {**loaded.to_dict(), "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}
            assert loaded.layer_sizes == config.layer_sizes

    def test_round_trip_of_all_the_fields(self, options, tmp_path):
        config = QRNNConfig(**options)
        config.to_json_file(tmp_path / "config.json", use_diff=False)
        loaded = QRNNConfig.from_json_file(tmp_path / "config.json")
        assert loaded.to_dict() == config.to_dict()

    def test_dict_round_trip(self, options):
        config = QRNNConfig(**options)
        assert QRNNConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
        assert json.loads(config.to_json_string(use_diff=False))["model_type"] == "qrnn"


def test_unknown_keys_are_kept(tmp_path):
    config = QRNNConfig(some_note="kept", labels=3)
    assert (config.some_note, config.labels) == ("kept", 3)
    config.save_pretrained(tmp_path)
    assert QRNNConfig.from_pretrained(tmp_path).some_note == "kept"


def test_labels():
    config = QRNNConfig(num_labels=3)
    assert config.num_labels == 3 and len(config.id2label) == 3


# --- widths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "layer_sizes"),
    [
        ({}, [(4, 6), (6, 6), (6, 6)]),
        ({"tie_word_embeddings": True}, [(4, 6), (6, 6), (6, 4)]),
        ({"connection": "dense"}, [(4, 6), (10, 6), (16, 6)]),
        ({"connection": "dense", "tie_word_embeddings": True}, [(4, 6), (10, 6), (16, 4)]),
        ({"connection": "residual"}, [(6, 6), (6, 6), (6, 6)]),
        ({"connection": "residual", "tie_word_embeddings": True}, [(6, 6), (6, 6), (6, 6)]),
        ({"bidirectional": True}, [(4, 6), (6, 6), (6, 6)]),
        ({"bidirectional": True, "connection": "dense", "tie_word_embeddings": True}, [(4, 6), (10, 6), (16, 4)]),
    ],
    ids=str,
)
def test_widths(options, layer_sizes):
    config = QRNNConfig(
        vocab_size=10, embedding_size=4, hidden_size=6, num_hidden_layers=3, kernel_size=[3, 1, 2], **options
    )
    assert config.layer_sizes == layer_sizes
    columns = [2, 1, 1]  # a convolution of width one has a placeholder
    assert config.state_widths == [(i, c, o) for (i, o), c in zip(layer_sizes, columns, strict=True)]
    assert config.output_size == layer_sizes[-1][1]
    model = QRNNModel(config)
    built = [
        (block.mixer.directions[0].input_size, sum(layer.hidden_size for layer in block.mixer.directions))
        for block in model.layers
    ]
    assert built == layer_sizes
    assert model(torch.tensor([[1, 2, 3]])).last_hidden_state.shape == (1, 3, config.output_size)


def test_the_language_model_of_the_paper_has_its_size():
    config = QRNNConfig(vocab_size=10_000, hidden_size=640, num_hidden_layers=2, kernel_size=2, pooling="fo")
    with torch.device("meta"):
        model = QRNNForCausalLM(config)
    gates = 3 * 640 * (2 * 640 + 1)
    assert model.num_parameters() == 2 * 10_000 * 640 + 2 * gates == 17_719_040


PIPELINES = {
    "plain": ({}, True),
    "tied": ({"tie_word_embeddings": True}, True),
    "residual": ({"connection": "residual"}, True),
    "dense": ({"connection": "dense"}, False),
    "narrow": ({"embedding_size": 32}, False),
    "narrow residual": ({"embedding_size": 32, "connection": "residual"}, False),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_pipeline_plan_is_that_of_models_of_one_width(name):
    fields, has_plan = PIPELINES[name]
    assert (QRNNConfig(hidden_size=64, **fields).base_model_pp_plan is not None) == has_plan


@pytest.mark.parametrize("fields", [{}, {"bidirectional": True}, {"connection": "residual", "intermediate_size": 8}])
def test_tensor_parallel_plan_names_every_product_of_the_layers(fields):
    config = QRNNConfig(vocab_size=10, hidden_size=8, **fields)
    linear = {name for name, module in QRNNModel(config).named_modules() if isinstance(module, torch.nn.Linear)}
    assert {re.sub(r"\d+", "*", name) for name in linear} == set(config.base_model_tp_plan)
    assert "base_model_tp_plan" not in config.to_dict()


# --- the encoder-decoder ---------------------------------------------------------------------------------------------


class TestSeq2Seq:
    def test_defaults_are_the_papers(self):
        config = QRNNSeq2SeqConfig()
        assert (config.encoder_layers, config.decoder_layers, config.hidden_size) == (4, 4, 320)
        assert (config.encoder_kernel_size, config.kernel_sizes) == ([6, 2, 2, 2], [2, 2, 2, 2])
        assert (config.encoder_reverse, config.attention_layers, config.num_attention_heads) == (True, "last", None)
        assert config.is_encoder_decoder and config.use_cache

    @pytest.mark.parametrize(
        ("given", "derived"),
        [
            ({"encoder_bidirectional": True}, {"encoder_reverse": False, "use_cache": True}),
            ({"encoder_reverse": False}, {"encoder_reverse": False}),
            ({"encoder_layers": 1}, {"encoder_kernel_size": [6]}),
            ({"encoder_kernel_size": 3}, {"encoder_kernel_size": 3}),
            ({"decoder_layers": 3}, {"num_hidden_layers": 3, "layer_types": ["qrnn_v1"] * 3}),
            ({"num_hidden_layers": 3}, {"decoder_layers": 3}),
            ({"connection": "residual"}, {"norm": "rms_norm"}),
            # the head has a way back to the embeddings, so the last layer keeps its width
            ({"embedding_size": 8, "tie_word_embeddings": True, "decoder_layers": 1}, {"layer_sizes": [(8, 320)]}),
        ],
        ids=str,
    )
    def test_what_follows_from_what(self, given, derived):
        config = QRNNSeq2SeqConfig(**given)
        assert {name: getattr(config, name) for name in derived} == derived

    @pytest.mark.parametrize(
        ("name", "value", "allowed"),
        [
            *((name, value, "1") for name in ("encoder_layers", "vocab_size") for value in (0, -1)),
            ("encoder_layers", "2", "int"),
            ("encoder_kernel_size", "2", "int"),
            ("encoder_bidirectional", "yes", "bool"),
            ("encoder_reverse", "yes", "bool"),
            ("attention_layers", "first", "'last', 'all'"),
            ("num_attention_heads", 1.5, "int"),
            ("attention_dropout", 1.0, "1.0"),
            ("decoder_start_token_id", "0", "int"),
        ],
        ids=str,
    )
    def test_wrong_fields(self, name, value, allowed):
        with pytest.raises(StrictDataclassFieldValidationError) as error:
            QRNNSeq2SeqConfig(**{name: value})
        message = str(error.value)
        assert name in message and str(value) in message and allowed in message

    @pytest.mark.parametrize("value", [0, "3", [2]])
    def test_wrong_depths_of_the_decoder(self, value):
        with pytest.raises(StrictDataclassFieldValidationError, match="num_hidden_layers"):
            QRNNSeq2SeqConfig(decoder_layers=value)

    @pytest.mark.parametrize(
        ("options", "parts"),
        [
            ({"encoder_kernel_size": [2, 2]}, ["`encoder_kernel_size`", "one per layer of the encoder (4)", "[2, 2]"]),
            ({"encoder_kernel_size": 0}, ["`encoder_kernel_size`", "from 1 up", "got 0"]),
            ({"encoder_kernel_size": []}, ["`encoder_kernel_size`", "one per layer", "got []"]),
            ({"kernel_size": [2, 2]}, ["`kernel_size`", "one per layer (4)", "got [2, 2]"]),
            ({"bidirectional": True, "use_cache": False}, ["`bidirectional`", "False", "`encoder_bidirectional`"]),
            ({"encoder_bidirectional": True, "hidden_size": 7}, ["`hidden_size`", "even", "got 7"]),
            ({"encoder_bidirectional": True, "encoder_reverse": True}, ["`encoder_reverse`", "False or None", "True"]),
            ({"num_attention_heads": 3}, ["`num_attention_heads`", "divisor of hidden_size=320", "got 3"]),
            ({"num_attention_heads": 0}, ["`num_attention_heads`", "got 0"]),
            ({"intermediate_size": 8}, ["`intermediate_size`", "None unless connection='residual'", "got 8"]),
        ],
        ids=str,
    )
    def test_fields_that_do_not_fit(self, options, parts):
        with pytest.raises(StrictDataclassClassValidationError) as error:
            QRNNSeq2SeqConfig(**options)
        assert all(part in str(error.value) for part in parts)

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"encoder_layers": 2, "decoder_layers": 3, "kernel_size": [1, 2, 3], "encoder_kernel_size": 5},
            {"encoder_bidirectional": True, "num_attention_heads": 4, "attention_layers": "all"},
            {"encoder_reverse": False, "decoder_start_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 0},
            {"connection": "residual", "intermediate_size": 64, "tie_word_embeddings": True, "embedding_size": 16},
        ],
        ids=str,
    )
    def test_round_trips(self, options, tmp_path):
        config = QRNNSeq2SeqConfig(**options)
        config.save_pretrained(tmp_path)
        for loaded in (QRNNSeq2SeqConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
            assert type(loaded) is QRNNSeq2SeqConfig
            assert {**loaded.to_dict(), "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}
        assert QRNNSeq2SeqConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()

    def test_the_stacks(self):
        config = QRNNSeq2SeqConfig(
            vocab_size=10, embedding_size=4, hidden_size=6, encoder_layers=2, decoder_layers=3, connection="dense"
        )
        encoder = config.encoder_config()
        assert (encoder.layer_sizes, encoder.kernel_sizes) == ([(4, 6), (10, 6)], [6, 2])
        assert config.layer_sizes == [(4, 6), (10, 6), (16, 6)]
        # What Transformers takes for the decoder, of which it makes caches.
        assert config.get_text_config(decoder=True).layer_types == ["qrnn_v1"] * 3
        model = QRNNForConditionalGeneration(config).model
        for stack, described in ((model.encoder, encoder), (model.decoder, config)):
            sizes = [(block.mixer.directions[0].input_size, 6) for block in stack.layers]
            assert sizes == described.layer_sizes

    def test_the_translation_model_of_the_paper_has_its_size(self):
        with torch.device("meta"):
            model = QRNNForConditionalGeneration(QRNNSeq2SeqConfig(vocab_size=187))
        gates = 3 * 320
        encoder = gates * (6 * 320 + 1) + 3 * gates * (2 * 320 + 1)
        decoder = 4 * gates * (2 * 320 + 1 + 320) + 2 * 320 * 320
        assert model.num_parameters() == 2 * 187 * 320 + encoder + decoder == 7_704_960


# --- speech ----------------------------------------------------------------------------------------------------------


def test_speech_defaults_build():
    config = QRNNSpeechConfig()
    assert (config.num_mel_bins, config.stride, config.temporal_pooling, config.use_cache) == (80, 2, None, False)
    assert config.layer_sizes == [(640, 640), (640, 640)]


@pytest.mark.parametrize(
    ("options", "ratio"),
    [
        ({"stride": 1}, 1),
        ({"stride": 3}, 3),
        ({"stride": 3, "temporal_pooling_size": 4}, 3),  # without a pooling its size means nothing
        ({"stride": 1, "temporal_pooling": "max"}, 2),
        ({"stride": 3, "temporal_pooling": "average", "temporal_pooling_size": 4}, 12),
    ],
    ids=str,
)
def test_subsampling_ratio(options, ratio):
    config = QRNNSpeechConfig(hop_length=80, **options)
    assert (config.subsampling_ratio, config.inputs_to_logits_ratio) == (ratio, 80 * ratio)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        *((name, 0, "1") for name in ("num_mel_bins", "hop_length", "stride", "temporal_pooling_size", "vocab_size")),
        *((name, 0, "1") for name in ("mask_time_length", "mask_feature_length")),
        *((name, 1.0, "1.0") for name in ("mask_time_prob", "mask_feature_prob")),
        ("stride", [2, 2], "int"),
        ("temporal_pooling", "min", "'max', 'average'"),
        ("ctc_loss_reduction", "none", "'mean', 'sum'"),
        ("ctc_zero_infinity", "yes", "bool"),
        ("pad_token_id", None, "int"),
        ("classifier_pooling", "first", "'last', 'max', 'mean', 'concat'"),
        ("classifier_hidden_size", 0, "at least 1 or None"),
        ("classifier_dropout", 1.0, "[0, 1) or None"),
    ],
    ids=str,
)
def test_wrong_fields_of_speech(name, value, allowed):
    with pytest.raises(StrictDataclassFieldValidationError) as error:
        QRNNSpeechConfig(**{name: value})
    assert all(part in str(error.value) for part in (name, str(value), allowed))


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"pad_token_id": 32}, ["`pad_token_id`", "vocab_size - 1 = 31", "got 32"]),
        ({"pad_token_id": -1}, ["`pad_token_id`", "got -1"]),
        ({"bidirectional": True, "use_cache": True}, ["`use_cache`", "False or None", "got True"]),
        ({"kernel_size": [2]}, ["`kernel_size`", "one per layer (2)"]),
    ],
    ids=str,
)
def test_fields_of_speech_that_do_not_fit(options, parts):
    with pytest.raises(StrictDataclassClassValidationError) as error:
        QRNNSpeechConfig(**options)
    assert all(part in str(error.value) for part in parts)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bidirectional": True},
        {"stride": 4, "temporal_pooling": "max", "temporal_pooling_size": 3, "hop_length": 80, "num_mel_bins": 40},
        {"mask_time_prob": 0.1, "mask_feature_prob": 0.2, "ctc_zero_infinity": True, "use_cache": True},
    ],
    ids=str,
)
def test_speech_files(options, tmp_path):
    config = QRNNSpeechConfig(**options)
    config.save_pretrained(tmp_path)
    for loaded in (QRNNSpeechConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is QRNNSpeechConfig
        assert {**loaded.to_dict(), "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}


# --- time series -----------------------------------------------------------------------------------------------------

COUNTS = {"distribution_output": "negative_binomial"}


class TestTimeSeries:
    def test_defaults_build(self):
        config = QRNNTimeSeriesConfig()
        assert (config.model_type, config.hidden_size, config.prediction_length) == ("qrnn_time_series", 128, 24)
        assert config.quantiles == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
        assert config.layer_types == ["qrnn_v1"] * 2

    @pytest.mark.parametrize(
        ("options", "has_own_channels"),
        [
            ({}, False),
            ({"scaling": "last_std"}, False),
            ({"scaling": "revin"}, True),
            ({"channel_mode": "mixed"}, True),
            ({"channel_embedding": True}, True),
            ({"value_loc": [0.0]}, True),
            ({"value_scale": [1.0]}, True),
        ],
        ids=str,
    )
    def test_what_belongs_to_single_channels(self, options, has_own_channels):
        assert QRNNTimeSeriesConfig(**options).has_own_channels is has_own_channels

    @pytest.mark.parametrize(
        ("name", "value", "allowed"),
        [
            *((name, 0, "1") for name in ("prediction_length", "num_input_channels", "patch_length")),
            ("num_head_states", 0, "1"),
            ("num_parallel_samples", 0, "1"),
            ("num_time_features", -1, "0"),
            ("huber_delta", 0.0, "greater than 0"),
            ("channel_mode", "both", "'independent', 'mixed'"),
            ("scaling", "max", "'mean', 'std', 'last', 'last_std', 'revin'"),
            ("horizon", "recursive", "'direct', 'autoregressive'"),
            ("loss", "crps", "'mse', 'mae', 'huber', 'nll', 'quantile'"),
            ("distribution_output", "poisson", "'student_t', 'normal', 'negative_binomial'"),
            ("context_length", "long", "int"),
            ("context_length", 0, "at least 1 or None"),
            ("value_scale", ["wide"], "float"),
        ],
        ids=str,
    )
    def test_wrong_fields(self, name, value, allowed):
        with pytest.raises(StrictDataclassFieldValidationError) as error:
            QRNNTimeSeriesConfig(**{name: value})
        assert name in str(error.value) and allowed in str(error.value)

    @pytest.mark.parametrize(
        ("options", "parts"),
        [
            ({"bidirectional": True}, ["`bidirectional`", "False", "got True"]),
            ({"horizon": "autoregressive", "num_head_states": 2}, ["`num_head_states`", "must be 1", "got 2"]),
            ({"channel_mode": "mixed", "channel_embedding": True}, ["`channel_embedding`", "False", "got True"]),
            ({"value_loc": [1.0, 2.0]}, ["`value_loc`", "each of the 1 input channels", "got 2"]),
            ({"value_scale": [0.0]}, ["`value_scale`", "above zero", "[0.0]"]),
            ({"value_scale": [float("nan")]}, ["`value_scale`", "finite", "[nan]"]),
            ({"value_loc": [float("inf")]}, ["`value_loc`", "finite", "[inf]"]),
            ({"quantiles": [0.5, 0.1]}, ["`quantiles`", "rise within (0, 1)", "[0.5, 0.1]"]),
            ({"quantiles": [0.5, 0.5]}, ["`quantiles`", "[0.5, 0.5]"]),
            ({"quantiles": [0.0, 0.5]}, ["`quantiles`", "[0.0, 0.5]"]),
            ({"quantiles": []}, ["`quantiles`", "[]"]),
            (COUNTS, ["`scaling`", "'mean' or None", "got 'std'"]),
            ({**COUNTS, "scaling": "mean", "value_loc": [1.0]}, ["`value_loc` None", "[1.0]"]),
        ],
        ids=str,
    )
    def test_fields_that_do_not_fit(self, options, parts):
        with pytest.raises(StrictDataclassClassValidationError) as error:
            QRNNTimeSeriesConfig(**options)
        assert all(part in str(error.value) for part in parts)

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"scaling": None, "context_length": 96, "num_time_features": 3},
            {"value_loc": [1, 2.5], "value_scale": [0.5, 3.0], "num_input_channels": 2},
            {**COUNTS, "scaling": "mean"},
            {"loss": "quantile", "quantiles": [0.05, 0.5, 0.95], "horizon": "autoregressive"},
        ],
        ids=str,
    )
    def test_round_trip(self, options, tmp_path):
        config = QRNNTimeSeriesConfig(**options)
        config.save_pretrained(tmp_path)
        for loaded in (QRNNTimeSeriesConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
            assert type(loaded) is QRNNTimeSeriesConfig
            assert {**loaded.to_dict(), "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}
        assert QRNNTimeSeriesConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
