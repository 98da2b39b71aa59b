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
"""Saved models bring their code: they load, run and save again in a process that does not have the package.

The functions at the end run in such a process, as `python -I test_remote_code.py FUNCTION FOLDER`; so nothing outside
the tests and fixtures may import the package.
"""

import ast
import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
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
    DynamicCache,
    Wav2Vec2CTCTokenizer,
    pipeline,
)
from transformers.dynamic_module_utils import check_imports, get_class_from_dynamic_module, get_relative_imports


PACKAGE = Path(__file__).parent.parent / "modeling_qrnn"

AUTO_CLASSES = {
    "base": AutoModel,
    "causal": AutoModelForCausalLM,
    "masked": AutoModelForMaskedLM,
    "sequence": AutoModelForSequenceClassification,
    "token": AutoModelForTokenClassification,
}

SPEECH_AUTO_CLASSES = {
    "base": AutoModel,
    "ctc": AutoModelForCTC,
    "classification": AutoModelForAudioClassification,
}

GENERATION_MODES = {
    "greedy": {},
    "uncached": {"use_cache": False},
    "beam": {"num_beams": 3},
    "static": {"cache_implementation": "static"},
    "lookup": {"prompt_lookup_num_tokens": 2},
}


def make_batch() -> dict[str, torch.Tensor]:
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, :2] = mask[2, -3:] = 0
    return {"input_ids": torch.arange(1, 22).view(3, 7), "attention_mask": mask}


def generate(model, **options) -> torch.Tensor:
    tokens = torch.tensor([[3, 4, 5, 3, 4, 5, 3, 4]])
    return model.generate(tokens, do_sample=False, max_new_tokens=20, **options)


@torch.no_grad()
def seq2seq_outputs(model) -> list[torch.Tensor]:
    batch, modes = make_batch(), [{}, {"use_cache": False}, {"num_beams": 3}, {"cache_implementation": "static"}]
    generated = [model.generate(**batch, do_sample=False, max_new_tokens=9, **options) for options in modes]
    return [model(**batch, decoder_input_ids=batch["input_ids"]).logits, *generated]


def make_audio() -> np.ndarray:
    return np.random.default_rng(0).normal(scale=0.1, size=4000)


# --- what is written ---


@pytest.fixture
def models(redraw):
    """A model of each head, the causal one with the modern stack."""
    from modeling_qrnn import (
        QRNNConfig,
        QRNNForCausalLM,
        QRNNForMaskedLM,
        QRNNForSequenceClassification,
        QRNNForTokenClassification,
        QRNNModel,
    )

    def make(model_class: type, **options):
        sizes = {"vocab_size": 30, "hidden_size": 8, "kernel_size": 3, "num_labels": 3}
        return redraw(model_class(QRNNConfig(**sizes, **options)))

    modern = {"connection": "residual", "embedding_size": 6, "intermediate_size": 10, "tie_word_embeddings": True}
    return {
        "base": make(QRNNModel, pooling="f", connection="dense"),
        "causal": make(QRNNForCausalLM, pooling="ifo", **modern),
        "masked": make(QRNNForMaskedLM, bidirectional=True),
        "sequence": make(QRNNForSequenceClassification, bidirectional=True, classifier_pooling="concat"),
        "token": make(QRNNForTokenClassification, norm="layer_norm"),
    }


def test_each_head_is_saved_with_code_and_the_whole_auto_map(models, tmp_path):
    for name, model in models.items():
        folder = tmp_path / name
        model.save_pretrained(folder)
        auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
        assert set(auto_map) == {"AutoConfig"} | {auto_class.__name__ for auto_class in AUTO_CLASSES.values()}
        assert auto_map[AUTO_CLASSES[name].__name__].endswith(f".{type(model).__name__}")
        for reference in auto_map.values():
            module, class_name = reference.split(".")
            assert f"class {class_name}(" in (folder / f"{module}.py").read_text()
        for file in folder.glob("*.py"):
            assert file.read_text() == (PACKAGE / file.name).read_text()


@pytest.fixture
def seq2seq(redraw):
    """An encoder-decoder with all that the paper's has not."""
    from modeling_qrnn import QRNNForConditionalGeneration, QRNNSeq2SeqConfig

    sizes = {"vocab_size": 30, "hidden_size": 8, "encoder_layers": 2, "decoder_layers": 3, "kernel_size": 3}
    attention = {"num_attention_heads": 2, "attention_layers": "all", "encoder_bidirectional": True}
    modern = {"connection": "residual", "embedding_size": 6, "intermediate_size": 10, "tie_word_embeddings": True}
    tokens = {"pad_token_id": 0, "decoder_start_token_id": 1}
    return redraw(QRNNForConditionalGeneration(QRNNSeq2SeqConfig(**sizes, **attention, **modern, **tokens)))


def test_encoder_decoder_is_saved_with_code_and_the_whole_auto_map(seq2seq, tmp_path):
    seq2seq.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_qrnn.QRNNSeq2SeqConfig",
        "AutoModel": "modeling_qrnn_seq2seq.QRNNSeq2SeqModel",
        "AutoModelForSeq2SeqLM": "modeling_qrnn_seq2seq.QRNNForConditionalGeneration",
    }
    saved = {file.name: file.read_text() for file in tmp_path.glob("*.py")}
    assert {"modeling_qrnn_seq2seq.py", "modeling_qrnn.py", "configuration_qrnn.py"} <= set(saved)
    assert all(text == (PACKAGE / name).read_text() for name, text in saved.items())


def test_config_alone_is_saved_with_its_code(models, tmp_path):
    models["base"].config.save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.glob("*.py")] == ["configuration_qrnn.py"]


FILES = sorted({*PACKAGE.glob("*_qrnn.py"), *PACKAGE.glob("modeling_qrnn_*.py")})


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_file_follows_the_rules_of_remote_code(file):
    """One dot, one name, no file that is absent; and no prose that the loader's pattern takes for an import."""
    relative = [
        node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert all(node.level == 1 and node.module and "." not in node.module for node in relative)
    assert sorted(get_relative_imports(file)) == sorted({node.module for node in relative})
    assert {f"{node.module}.py" for node in relative} <= {path.name for path in FILES}
    check_imports(file)  # that no package is missing


@pytest.fixture
def saved_speech(redraw, tmp_path):
    """The folders of speech models and their processor, with what they compute."""
    from modeling_qrnn import (
        QRNNFeatureExtractor,
        QRNNForAudioClassification,
        QRNNForCTC,
        QRNNProcessor,
        QRNNSpeechConfig,
        QRNNSpeechModel,
    )

    vocabulary = tmp_path / "vocab.json"
    vocabulary.write_text(json.dumps({token: index for index, token in enumerate(["<pad>", "|", *"abcd"])}))
    tokenizer = Wav2Vec2CTCTokenizer(vocabulary, bos_token=None, eos_token=None, unk_token=None)
    processor = QRNNProcessor(QRNNFeatureExtractor(feature_size=8, sampling_rate=8000).fit([make_audio()]), tokenizer)
    sizes = {"num_mel_bins": 8, "hop_length": 80, "hidden_size": 8, "vocab_size": 6, "num_labels": 3}
    classes = {"base": QRNNSpeechModel, "ctc": QRNNForCTC, "classification": QRNNForAudioClassification}
    inputs, expected = processor(audio=make_audio(), sampling_rate=8000, return_tensors="pt"), {}
    for name, model_class in classes.items():
        model = redraw(model_class(QRNNSpeechConfig(**sizes, connection="residual", temporal_pooling="max")), std=1.0)
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
        with torch.no_grad():
            expected[name] = model(**inputs)[0]
    saved = pipeline("automatic-speech-recognition", str(tmp_path / "ctc"))
    saved.save_pretrained(tmp_path / "pipeline of the package")
    torch.save(expected, tmp_path / "expected.pt")
    return tmp_path


def test_speech_is_saved_with_code_and_the_whole_auto_map(saved_speech):
    for name in SPEECH_AUTO_CLASSES:
        auto_map = json.loads((saved_speech / name / "config.json").read_text())["auto_map"]
        assert set(auto_map) == {"AutoConfig"} | {each.__name__ for each in SPEECH_AUTO_CLASSES.values()}
        processor = json.loads((saved_speech / name / "processor_config.json").read_text())
        references = [*auto_map.values(), processor["auto_map"]["AutoProcessor"]]
        for module, class_name in (reference.split(".") for reference in references):
            assert f"class {class_name}(" in (saved_speech / name / f"{module}.py").read_text()


def make_frame() -> pd.DataFrame:
    walk = np.random.default_rng(0).normal(size=(30, 2)).cumsum(axis=0)
    return pd.DataFrame(walk, index=pd.date_range("2026-01-01", periods=30, freq="h"), columns=["x", "y"])


@torch.no_grad()
def forecasts(model) -> list[torch.Tensor]:
    past = torch.tensor(make_frame().to_numpy())[None]
    return [model(past).prediction_outputs, model.generate(past, num_parallel_samples=3, seed=0).sequences]


@pytest.fixture
def saved_time_series(redraw, tmp_path):
    """The folder of a pipeline and its model, with what they compute."""
    from modeling_qrnn import QRNNForTimeSeriesPrediction, QRNNTimeSeriesConfig

    options = {"horizon": "autoregressive", "scaling": "revin", "channel_mode": "mixed", "connection": "residual"}
    sizes = {"hidden_size": 8, "prediction_length": 5, "patch_length": 2, "num_input_channels": 2}
    model = redraw(QRNNForTimeSeriesPrediction(QRNNTimeSeriesConfig(**sizes, **options)))
    forecaster = pipeline("time-series-forecasting", model=model)
    forecaster.save_pretrained(tmp_path / "model")
    torch.save(forecasts(model), tmp_path / "expected.pt")
    forecaster(make_frame()).to_pickle(tmp_path / "expected.pkl")
    return tmp_path


def test_time_series_is_saved_with_code_and_the_whole_auto_map(saved_time_series):
    config = json.loads((saved_time_series / "model" / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_qrnn.QRNNTimeSeriesConfig",
        "AutoModel": "modeling_qrnn_time_series.QRNNTimeSeriesModel",
        "AutoModelForTimeSeriesPrediction": "modeling_qrnn_time_series.QRNNForTimeSeriesPrediction",
    }
    saved = {file.name: file.read_text() for file in (saved_time_series / "model").glob("*.py")}
    assert {"modeling_qrnn_time_series.py", "configuration_qrnn.py", "pipelines_qrnn.py"} <= set(saved)
    assert all(text == (PACKAGE / name).read_text() for name, text in saved.items())


# --- in processes of their own ---


def run(function, folder: Path, *python_options: str) -> None:
    """Run a function of this file in a fresh interpreter that is offline and has an empty cache of remote code."""
    environment = os.environ | {
        "HF_HOME": str(folder / "home"),
        "HF_MODULES_CACHE": str(folder / "modules"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, *python_options, __file__, function.__name__, str(folder)]
    process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


@pytest.fixture
def saved_models(models, seq2seq, tmp_path):
    """The folder of the models, with what they compute."""
    seq2seq.save_pretrained(tmp_path / "seq2seq")
    expected = {"seq2seq": seq2seq_outputs(seq2seq)}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        with torch.no_grad():
            expected[name] = model(**make_batch())[0]
    expected |= {mode: generate(models["causal"], **options) for mode, options in GENERATION_MODES.items()}
    torch.save(expected, tmp_path / "expected.pt")
    return tmp_path


def test_without_the_package(saved_models):
    run(without_the_package, saved_models, "-I")


def test_speech_without_the_package(saved_speech):
    run(speech_without_the_package, saved_speech, "-I")


def test_time_series_without_the_package(saved_time_series):
    run(time_series_without_the_package, saved_time_series, "-I")


def test_beside_the_package_loaded_first(saved_models):
    run(package_then_remote, saved_models)


def test_beside_the_package_loaded_last(saved_models):
    run(remote_then_package, saved_models)


# --- the functions that run there ---


def without_the_package(folder: Path) -> None:
    sys.modules["modeling_qrnn"] = None  # it may be installed where the tests run: importing it is now an error
    expected = torch.load(folder / "expected.pt")
    for name, auto_class in AUTO_CLASSES.items():
        model = load(auto_class, folder / name)
        assert type(model).__module__.startswith("transformers_modules.")
        assert type(AutoConfig.from_pretrained(folder / name, trust_remote_code=True)) is type(model.config)
        check_outputs(model, expected[name])
        model.save_pretrained(folder / "again" / name)
        assert sorted(os.listdir(folder / "again" / name)) == sorted(os.listdir(folder / name)), name
        check_outputs(load(auto_class, folder / "again" / name), expected[name])
        check_outputs(pickle.loads(pickle.dumps(model)), expected[name])
        check_padding(model, name)
        check_training(model, name)

    model = load(AutoModelForCausalLM, folder / "causal")
    for mode, options in GENERATION_MODES.items():
        assert torch.equal(generate(model, **options), expected[mode]), mode
    assert torch.equal(generate(model, assistant_model=copy.deepcopy(model)), expected["greedy"])
    check_chunks(model, lambda cache: cache)
    check_chunks(model, lambda cache: pickle.loads(pickle.dumps(cache)))

    check_encoder_decoder(folder, expected["seq2seq"])

    # The whole auto_map is there: a language model's folder serves the other heads too.
    for name in ("base", "sequence", "token"):
        other = load(AUTO_CLASSES[name], folder / "causal")
        body = other if name == "base" else other.model
        assert torch.equal(body.embed_tokens.weight, model.model.embed_tokens.weight)


def check_encoder_decoder(folder: Path, expected: list[torch.Tensor]) -> None:
    model = load(AutoModelForSeq2SeqLM, folder / "seq2seq")
    assert type(model).__module__.startswith("transformers_modules.")
    model.save_pretrained(folder / "again" / "seq2seq")
    assert sorted(os.listdir(folder / "again" / "seq2seq")) == sorted(os.listdir(folder / "seq2seq"))
    again = load(AutoModelForSeq2SeqLM, folder / "again" / "seq2seq")
    for copied in (model, again, pickle.loads(pickle.dumps(model))):
        outputs = seq2seq_outputs(copied)
        assert all(torch.equal(one, two) for one, two in zip(outputs, expected, strict=True))
    body, batch = load(AutoModel, folder / "seq2seq"), make_batch()
    ids = batch["input_ids"]
    assert torch.equal(
        body(**batch, decoder_input_ids=ids).last_hidden_state, model.model(**batch, decoder_input_ids=ids)[0]
    )
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-2)
    before = model(**batch, labels=ids).loss
    before.backward()
    optimizer.step()
    assert model(**batch, labels=ids).loss < before


def speech_without_the_package(folder: Path) -> None:
    sys.modules["modeling_qrnn"] = None
    audio, expected = make_audio(), torch.load(folder / "expected.pt")
    for name, auto_class in SPEECH_AUTO_CLASSES.items():
        model = load(auto_class, folder / name)
        assert type(model).__module__.startswith("transformers_modules.")
        processor = AutoProcessor.from_pretrained(folder / name, trust_remote_code=True)
        extractor = AutoFeatureExtractor.from_pretrained(folder / name, trust_remote_code=True)
        for inputs in (processor(audio=audio, return_tensors="pt"), extractor(audio, return_tensors="pt")):
            with torch.no_grad():
                assert torch.equal(model(**inputs)[0], expected[name]), name
        for part in (model, processor):
            part.save_pretrained(folder / "again" / name)
        assert sorted(os.listdir(folder / "again" / name)) == sorted(os.listdir(folder / name)), name
        with torch.no_grad():
            assert torch.equal(load(auto_class, folder / "again" / name)(**inputs)[0], expected[name]), name

    text = processor.decode(expected["ctc"][0].argmax(dim=-1))
    assert len(text) > 2
    transcriber = processor.transcriber(load(AutoModelForCTC, folder / "ctc"))
    assert "".join(map(transcriber.push, np.split(audio, 8))) + transcriber.finish() == text
    options = {"model": str(folder / "ctc"), "trust_remote_code": True}
    transcribe = pipeline("automatic-speech-recognition", **options)
    assert transcribe(audio) == {"text": text}
    transcribe.save_pretrained(folder / "pipeline")  # the parts of the processor, each by itself
    for saved in (folder / "pipeline", folder / "pipeline of the package"):
        assert pipeline("automatic-speech-recognition", str(saved), trust_remote_code=True)(audio) == {"text": text}
    processor = AutoProcessor.from_pretrained(folder / "pipeline of the package", trust_remote_code=True)
    assert processor.decode(expected["ctc"][0].argmax(dim=-1)) == text
    scores = expected["classification"][0].softmax(dim=-1)
    options = {"model": str(folder / "classification"), "trust_remote_code": True}
    best = pipeline("audio-classification", **options)(audio)[0]
    assert best["label"] == f"LABEL_{int(scores.argmax())}" and abs(best["score"] - float(scores.max())) < 1e-5


def time_series_without_the_package(folder: Path) -> None:
    sys.modules["modeling_qrnn"] = None
    expected = torch.load(folder / "expected.pt")
    model = load(AutoModelForTimeSeriesPrediction, folder / "model")
    assert type(model).__module__.startswith("transformers_modules.")
    model.save_pretrained(folder / "again" / "model")
    for copied in (
        model,
        load(AutoModelForTimeSeriesPrediction, folder / "again" / "model"),
        pickle.loads(pickle.dumps(model)),
    ):
        torch.testing.assert_close(forecasts(copied), expected, rtol=1e-5, atol=1e-5)
    past = torch.tensor(make_frame().to_numpy())[None]
    body = load(AutoModel, folder / "model")
    assert torch.equal(body(past).last_hidden_state, model.model(past).last_hidden_state)
    forecaster = pipeline("time-series-forecasting", model=str(folder / "model"), trust_remote_code=True)
    pd.testing.assert_frame_equal(forecaster(make_frame()), pd.read_pickle(folder / "expected.pkl"), rtol=1e-4)
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-3)
    batch = {"past_values": past[:, :25], "future_values": past[:, 25:]}
    before = model(**batch).loss
    before.backward()
    optimizer.step()
    assert model(**batch).loss < before


def package_then_remote(folder: Path) -> None:
    from_package = package_model(folder)
    check_side_by_side(from_package, remote_model(folder), folder)
    # Auto classes prefer what is installed, so that a user's package is not shadowed by an older copy.
    assert type(load(AutoModelForCausalLM, folder / "causal")) is type(from_package)


def remote_then_package(folder: Path) -> None:
    from_folder = load(AutoModelForCausalLM, folder / "causal")
    assert type(from_folder).__module__.startswith("transformers_modules.")
    check_side_by_side(package_model(folder), from_folder, folder)


def check_side_by_side(from_package, from_folder, folder: Path) -> None:
    """Both copies share Transformers' registries and torch's operators: neither may upset the other."""
    assert type(from_package) is not type(from_folder)
    expected = torch.load(folder / "expected.pt")
    models = [from_package, from_folder]
    for model in models * 2:
        check_outputs(model, expected["causal"])
        for mode, options in GENERATION_MODES.items():
            assert torch.equal(generate(model, **options), expected[mode]), mode
    assert torch.equal(generate(from_package, assistant_model=from_folder), expected["greedy"])
    assert torch.equal(generate(from_folder, assistant_model=from_package), expected["greedy"])
    # One's cache is continued by the other.
    tokens = make_batch()["input_ids"]
    whole = from_package(tokens).logits
    for first, second in (models, models[::-1]):
        cache = first(tokens[:, :3]).cache
        torch.testing.assert_close(second(tokens[:, 3:], cache=cache).logits, whole[:, 3:])
    gradients = [gradients_of(model) for model in models * 2]
    for other in gradients[1:]:
        assert all(torch.equal(one, two) for one, two in zip(gradients[0], other, strict=True))


def package_model(folder: Path):
    sys.path.insert(0, str(PACKAGE.parent))
    from modeling_qrnn import QRNNForCausalLM

    return QRNNForCausalLM.from_pretrained(folder / "causal").eval()


def remote_model(folder: Path):
    remote_class = get_class_from_dynamic_module("modeling_qrnn.QRNNForCausalLM", folder / "causal")
    return remote_class.from_pretrained(folder / "causal").eval()


def load(auto_class: type, folder: Path):
    return auto_class.from_pretrained(folder, trust_remote_code=True).eval()


@torch.no_grad()
def check_outputs(model, expected: torch.Tensor) -> None:
    assert torch.equal(model(**make_batch())[0], expected), type(model)


@torch.no_grad()
def check_padding(model, name: str) -> None:
    batch = make_batch()
    output = model(**batch)[0]
    for row, mask in enumerate(batch["attention_mask"] != 0):
        alone = model(batch["input_ids"][row][mask][None])[0][0]
        together = output[row] if name == "sequence" else output[row][mask]
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def check_chunks(model, change_cache) -> None:
    tokens = make_batch()["input_ids"]
    cache, outputs = DynamicCache(config=model.config), []
    for chunk in tokens.split([1, 4, 2], dim=1):
        output = model(chunk, cache=change_cache(cache))
        cache = output.cache
        outputs.append(output.logits)
    torch.testing.assert_close(torch.cat(outputs, dim=1), model(tokens).logits, atol=1e-5, rtol=1e-5)


def gradients_of(model) -> list[torch.Tensor]:
    model.zero_grad()
    batch = make_batch()
    model(**batch, labels=batch["input_ids"]).loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def check_training(model, name: str) -> None:
    if name == "base":
        return
    batch = make_batch()
    labels = torch.tensor([0, 1, 2]) if name == "sequence" else batch["input_ids"] % 3
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-2)
    before = model(**batch, labels=labels).loss
    before.backward()
    optimizer.step()
    assert model(**batch, labels=labels).loss < before


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
