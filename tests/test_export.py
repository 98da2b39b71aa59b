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
"""Exported programs consist of PyTorch's own operations, and ONNX Runtime computes what the model computes."""

import copy
from pathlib import Path

import pytest
import torch
from torch.distributions import Distribution
from torch.export import Dim
from transformers.exporters import ExportedModel, OnnxConfig, OnnxExporter

from modeling_qrnn import (
    QRNNConfig,
    QRNNForAudioClassification,
    QRNNForCausalLM,
    QRNNForConditionalGeneration,
    QRNNForCTC,
    QRNNForMaskedLM,
    QRNNForSequenceClassification,
    QRNNForTimeSeriesPrediction,
    QRNNForTokenClassification,
    QRNNSeq2SeqConfig,
    QRNNSpeechConfig,
    QRNNTimeSeriesConfig,
)
from modeling_qrnn.modeling_qrnn import QRNNPreTrainedModel


VOCAB_SIZE = 41
TEXT = {"vocab_size": VOCAB_SIZE, "hidden_size": 8, "num_hidden_layers": 2, "pad_token_id": 0, "num_labels": 3}
SPEECH = {"num_mel_bins": 4, "hidden_size": 6, "num_hidden_layers": 2, "vocab_size": 7, "num_labels": 3}
SERIES = {"hidden_size": 8, "num_hidden_layers": 2, "prediction_length": 5}


def draw_mask(batch_size: int, length: int) -> torch.Tensor:
    """A row with pads on either side, one with pads in between, and rows without; a single row has both."""
    mask = torch.ones(batch_size, length, dtype=torch.long)
    mask[0, : length // 3] = mask[0, length - 1 :] = mask[-1, 1 : length // 2] = 0
    return mask


def draw_text(batch_size: int, length: int) -> dict[str, torch.Tensor]:
    tokens = torch.randint(1, VOCAB_SIZE, (batch_size, length))
    return {"input_ids": tokens, "attention_mask": draw_mask(batch_size, length)}


def draw_packed(batch_size: int, length: int) -> dict[str, torch.Tensor]:
    """Each row holds texts of 4 tokens, laid end to end."""
    return {**draw_text(batch_size, length), "position_ids": torch.arange(length).remainder(4).repeat(batch_size, 1)}


def draw_pair(batch_size: int, length: int) -> dict[str, torch.Tensor]:
    return {**draw_text(batch_size, length), "decoder_input_ids": draw_text(batch_size, length)["input_ids"]}


def draw_speech(batch_size: int, length: int) -> dict[str, torch.Tensor]:
    return {"input_features": torch.randn(batch_size, length, 4), "attention_mask": draw_mask(batch_size, length)}


def draw_series(batch_size: int, length: int) -> dict[str, torch.Tensor]:
    return {"past_values": torch.randn(batch_size, length)}


MODELS = {
    "classifier": (QRNNForSequenceClassification, QRNNConfig(**TEXT, classifier_pooling="concat"), draw_text),
    "tagger": (
        QRNNForTokenClassification,
        QRNNConfig(**TEXT, bidirectional=True, connection="residual", norm="rms_norm", intermediate_size=12),
        draw_text,
    ),
    "packed": (QRNNForCausalLM, QRNNConfig(**TEXT, connection="dense", kernel_size=3), draw_packed),
    "transcriber": (QRNNForCTC, QRNNSpeechConfig(**SPEECH, pooling="ifo"), draw_speech),
    "hearer": (
        QRNNForAudioClassification,
        QRNNSpeechConfig(**SPEECH, bidirectional=True, stride=1, temporal_pooling="max"),
        draw_speech,
    ),
    "forecaster": (QRNNForTimeSeriesPrediction, QRNNTimeSeriesConfig(**SERIES, pooling="f", loss="nll"), draw_series),
}
TRANSLATOR = QRNNSeq2SeqConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=8,
    num_hidden_layers=2,
    pad_token_id=0,
    decoder_start_token_id=1,
    eos_token_id=2,
)
WITHOUT_ONNX = {
    "masked": (QRNNForMaskedLM, QRNNConfig(**TEXT, bidirectional=True), draw_text),
    "translator": (QRNNForConditionalGeneration, TRANSLATOR, draw_pair),
}


@pytest.fixture(autouse=True)
def distributions_do_not_ask():
    """What the numbers of a program are is not known when it is made."""
    Distribution.set_default_validate_args(False)
    yield
    Distribution.set_default_validate_args(True)


@pytest.mark.parametrize("name", [*MODELS, *WITHOUT_ONNX])
def test_programs_need_no_package(name, redraw):
    model_class, config, draw = (MODELS | WITHOUT_ONNX)[name]
    model, batch = redraw(model_class(copy.deepcopy(config))), draw(2, 30)
    model.config.use_cache = False  # Transformers' exporters know how to return a cache, `torch.export` does not
    program = torch.export.export(model, (), batch)
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert {target.namespace for target in targets if isinstance(target, torch._ops.OpOverload)} == {"aten"}
    torch.testing.assert_close(program.module()(**batch)[0], model(**batch)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_onnx_takes_any_batch_and_any_length(name, redraw, tmp_path):
    model_class, config, draw = MODELS[name]
    model, sample = redraw(model_class(config)), draw(2, 12)
    axes = {0: Dim.DYNAMIC, 1: Dim("length", min=9, max=100)}
    onnx = OnnxConfig(dynamic=True, dynamic_shapes=dict.fromkeys(sample, axes))
    OnnxExporter().export(model, sample, onnx).save_pretrained(tmp_path)
    exported = ExportedModel.from_pretrained(tmp_path)
    for batch_size, length in ((2, 12), (1, 9), (4, 100)):
        batch = draw(batch_size, length)
        actual, expected = exported(**batch), model(**batch)
        assert type(actual) is type(expected)
        torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=1e-5)


def export_dynamic(model: QRNNPreTrainedModel, prompt: dict[str, torch.Tensor], folder: Path) -> ExportedModel:
    """The graphs for a prompt and for a token after it, of any batch and any length, saved and loaded again."""
    OnnxExporter().export_for_generation(model, prompt, OnnxConfig(dynamic=True)).save_pretrained(folder)
    exported = ExportedModel.from_pretrained(folder)
    assert set(exported.runners) == {"prefill", "decode"}
    return exported


def draw_prompt(batch_size: int, length: int) -> dict[str, torch.Tensor]:
    """The first row has pads on the left, which make the mask an input of the graph."""
    mask = torch.ones(batch_size, length, dtype=torch.bool)
    mask[0, : length // 3] = False
    return {"input_ids": torch.randint(1, VOCAB_SIZE, (batch_size, length)), "attention_mask": mask}


def generated_logits(model: QRNNPreTrainedModel, prompt: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """What greedy `generate` chooses each of eight tokens by."""
    options = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    return list(model.generate(**prompt, min_new_tokens=8, max_new_tokens=8, **options).logits)


def test_onnx_generates_token_by_token(redraw, tmp_path):
    model = redraw(QRNNForCausalLM(QRNNConfig(**TEXT, connection="residual", kernel_size=3)))
    exported = export_dynamic(model, draw_prompt(2, 7), tmp_path)
    for batch_size, length in ((2, 7), (1, 5), (3, 40)):
        prompt = draw_prompt(batch_size, length)
        positions = prompt["attention_mask"].cumsum(1).sub(1).clamp(min=0)
        outputs = [exported.runners["prefill"](**prompt, position_ids=positions)]
        for step in range(1, 8):
            token, position = outputs[-1].logits[:, -1:].argmax(-1), positions[:, -1:] + step
            outputs.append(exported.runners["decode"](input_ids=token, position_ids=position, cache=outputs[-1].cache))
        actual = [output.logits[:, -1] for output in outputs]
        torch.testing.assert_close(actual, generated_logits(model, prompt), rtol=1e-5, atol=1e-5)


def test_onnx_translates_token_by_token(redraw, tmp_path):
    model = redraw(QRNNForConditionalGeneration(TRANSLATOR))
    exported = export_dynamic(model, draw_prompt(2, 7), tmp_path)
    encoder = OnnxExporter().export(model.get_encoder(), draw_prompt(2, 7), OnnxConfig(dynamic=True))
    for batch_size, length in ((2, 7), (1, 5), (3, 40)):
        source = draw_prompt(batch_size, length)
        read = {"encoder_outputs": encoder(**source), "attention_mask": source["attention_mask"]}
        start = torch.full((batch_size, 1), TRANSLATOR.decoder_start_token_id)
        outputs = [exported.runners["prefill"](**read, decoder_input_ids=start)]
        for _ in range(7):
            token = outputs[-1].logits[:, -1:].argmax(-1)
            outputs.append(exported.runners["decode"](**read, decoder_input_ids=token, cache=outputs[-1].cache))
        actual = [output.logits[:, -1] for output in outputs]
        torch.testing.assert_close(actual, generated_logits(model, source), rtol=1e-5, atol=1e-5)
