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
"""The pipelines of the package: `translation`, `summarization` and `time-series-forecasting`."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration, pipeline
from transformers.pipelines import PIPELINE_REGISTRY, REMOVED_TASKS
from transformers.pipelines.pt_utils import KeyDataset

from modeling_qrnn import (
    QRNNConfig,
    QRNNForCausalLM,
    QRNNForConditionalGeneration,
    QRNNForTimeSeriesPrediction,
    QRNNSeq2SeqConfig,
    QRNNSeq2SeqModel,
    QRNNTimeSeriesConfig,
    SummarizationPipeline,
    TranslationPipeline,
    plot_forecast,
)


TEXTS = ["ein Hund", "eine Katze sah einen Hund auf der Matte", "Katze", "der Hund und die Katze"]
TASKS = {"translation": TranslationPipeline, "summarization": SummarizationPipeline}
KEYS = {"translation": "translation", "translation_de_to_en": "translation", "summarization": "summary"}
tasks = pytest.mark.parametrize("task", KEYS)


@pytest.fixture(params=["left", "right"])
def padding_side(request):
    return request.param


@pytest.fixture
def folder(tmp_path, redraw):
    return save(tmp_path, redraw)


def save(folder, redraw, padding_side: str = "right"):
    """A wide random model and a tokenizer of whole words."""
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    words = [*special.values(), *sorted(set(" ".join(TEXTS).split()))]
    vocabulary = {word: index for index, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, padding_side=padding_side, **special).save_pretrained(folder)
    tokens = {"pad_token_id": 0, "decoder_start_token_id": 1, "eos_token_id": 2}
    config = QRNNSeq2SeqConfig(vocab_size=len(words), hidden_size=8, encoder_layers=2, decoder_layers=2, **tokens)
    redraw(QRNNForConditionalGeneration(config), std=1.5).save_pretrained(folder)
    return folder


def texts_of(folder, texts: list[str], **options) -> list[str]:
    """What the model itself makes of each text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = QRNNForConditionalGeneration.from_pretrained(folder).eval()
    ids = [model.generate(**encode(tokenizer, text), **options)[0] for text in texts]
    return tokenizer.batch_decode(ids, skip_special_tokens=True)


def encode(tokenizer, text: str) -> dict[str, torch.Tensor]:
    return {"input_ids": tokenizer(text, return_tensors="pt")["input_ids"]}


@tasks
@pytest.mark.parametrize("num_beams", [1, 3])
def test_results(task, num_beams, padding_side, tmp_path, redraw):
    """The format that users know, and in a batch what each text gives alone."""
    folder = save(tmp_path, redraw, padding_side)
    pipe, options = (
        pipeline(task, model=str(folder)),
        {"max_new_tokens": 7, "min_new_tokens": 2, "num_beams": num_beams},
    )
    assert isinstance(pipe, TASKS[task.partition("_")[0]])
    expected = [{f"{KEYS[task]}_text": text} for text in texts_of(folder, TEXTS, **options)]
    assert any(result[f"{KEYS[task]}_text"] for result in expected)
    assert pipe(TEXTS, **options) == expected
    assert pipe(TEXTS, batch_size=3, **options) == expected
    assert pipe(TEXTS[1], **options) == expected[1:2]
    assert pipe(TEXTS[:1], **options) == expected[:1]
    assert pipe([], **options) == []


def test_options_of_the_pipeline_and_of_the_call(folder):
    pipe = pipeline("translation", model=str(folder), max_new_tokens=3, batch_size=2)
    assert pipe(TEXTS) == pipe(TEXTS, max_new_tokens=3, num_beams=4)  # four beams unless told otherwise
    assert pipe(TEXTS, max_new_tokens=9) != pipe(TEXTS)
    assert pipe(TEXTS, num_beams=1) == pipe(TEXTS, num_beams=1, do_sample=False)


@pytest.mark.parametrize("option", ["stop_sequence", "stop_strings"])
def test_stops_after_a_text(option, folder):
    pipe = pipeline("translation", model=str(folder), max_new_tokens=9, min_new_tokens=6, num_beams=1)
    pipe.tokenizer.add_tokens(["abcdef"])  # which Transformers spells to find out how tokens are put together
    texts = [result["translation_text"].split() for result in pipe(TEXTS)]
    word = texts[0][1]
    shortened = [result["translation_text"].split() for result in pipe(TEXTS, **{option: word})]
    assert shortened == [words[: [*words, word].index(word) + 1] for words in texts]
    assert len(shortened[0]) == 2


def test_several_sequences(folder):
    pipe = pipeline("summarization", model=str(folder))
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 5}
    several = pipe(TEXTS, **options, batch_size=4)
    assert [len(results) for results in several] == [3] * len(TEXTS)
    assert pipe(TEXTS[0], **options) == several[0]
    assert several[0][0] == pipe(TEXTS[0], num_beams=3, max_new_tokens=5)[0]


def test_dictionaries_of_generate(folder):
    pipe = pipeline("translation", model=str(folder), max_new_tokens=4)
    assert pipe(TEXTS, return_dict_in_generate=True, output_scores=True) == pipe(TEXTS)


def test_token_ids(folder):
    pipe = pipeline("translation", model=str(folder))
    options = {"max_new_tokens": 5}
    results = pipe(TEXTS, return_tensors=True, **options)
    assert [set(result) for result in results] == [{"translation_token_ids"}] * len(TEXTS)
    texts = [pipe.tokenizer.decode(r["translation_token_ids"], skip_special_tokens=True) for r in results]
    assert texts == [result["translation_text"] for result in pipe(TEXTS, **options)]


def test_streams_of_texts(folder):
    pipe = pipeline("translation", model=str(folder), max_new_tokens=4)
    expected = pipe(TEXTS)
    stream = pipe(text for text in TEXTS)
    assert not isinstance(stream, list)
    assert [result for (result,) in stream] == expected
    dataset = KeyDataset(Dataset.from_dict({"de": TEXTS}), "de")
    assert [result for (result,) in pipe(dataset, batch_size=2)] == expected


def test_prefix(folder):
    pipe = pipeline("summarization", model=str(folder), max_new_tokens=4)
    assert pipe("Katze", prefix="die ") == pipe("die Katze")
    pipe.model.config.prefix = "eine "
    assert pipeline("summarization", model=pipe.model, tokenizer=pipe.tokenizer)("Katze", max_new_tokens=4) == pipe(
        "eine Katze"
    )


def test_what_an_older_model_says_of_its_tasks(folder, redraw):
    """As T5 does: the words that ask for a translation, and options of `generate`, which may be given otherwise."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sizes = {"vocab_size": len(tokenizer), "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    of_tasks = {"translation_a_to_b": {"prefix": f"{TEXTS[0]} ", "num_beams": 1, "max_length": 7}}
    model = redraw(T5ForConditionalGeneration(T5Config(**sizes, task_specific_params=of_tasks)), std=1.0)
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = 0
    pipe = pipeline("translation_a_to_b", model=model, tokenizer=tokenizer)
    text, options = TEXTS[1], {"return_tensors": True}
    (found,) = pipe(text, **options)
    ids = tokenizer(f"{TEXTS[0]} {text}", return_tensors="pt").input_ids
    assert found["translation_token_ids"].tolist() == model.generate(ids, num_beams=1, max_length=7)[0].tolist()
    (shorter,) = pipe(text, max_length=4, **options)
    assert len(shorter["translation_token_ids"]) <= 4 < len(found["translation_token_ids"])
    (shorter,) = pipeline("translation_a_to_b", model=model, tokenizer=tokenizer, max_length=4)(text, **options)
    assert len(shorter["translation_token_ids"]) <= 4
    assert pipeline("translation", model=model, tokenizer=tokenizer).prefix is None


def test_spaces_are_cleaned_up_if_that_is_asked_for(folder, monkeypatch):
    pipe = pipeline("translation", model=str(folder), max_new_tokens=4)
    batch_decode, asked = pipe.tokenizer.batch_decode, []

    def decode(*args, clean_up_tokenization_spaces=None, **kwargs):
        asked.append(clean_up_tokenization_spaces)
        return batch_decode(*args, clean_up_tokenization_spaces=clean_up_tokenization_spaces, **kwargs)

    monkeypatch.setattr(pipe.tokenizer, "batch_decode", decode)
    for is_wanted in (False, True):
        pipe(TEXTS[0], clean_up_tokenization_spaces=is_wanted)
    assert asked == [False, True]


def test_truncation(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder, model_max_length=2)
    pipe = pipeline("translation", model=str(folder), tokenizer=tokenizer, max_new_tokens=4)
    assert pipe("eine Katze sah", truncation=True) == pipe("eine Katze")
    assert pipe("eine Katze sah") == pipe("eine Katze sah", truncation=False)


def test_assistant(folder):
    options = {"model": str(folder), "max_new_tokens": 6, "min_new_tokens": 4, "num_beams": 1}
    plain = pipeline("translation", **options)
    draft = QRNNForConditionalGeneration.from_pretrained(folder)
    assisted = pipeline("translation", **options, assistant_model=draft)
    assert assisted(TEXTS) == plain(TEXTS)


class TwoLanguages(PreTrainedTokenizerFast):
    """A tokenizer that, as those of several languages do, has the languages in front."""

    def _build_translation_inputs(self, text, return_tensors, truncation, src_lang, tgt_lang):
        return self(f"{src_lang} {tgt_lang} {text}", return_tensors=return_tensors, truncation=truncation)


def test_languages(folder):
    tokenizer = TwoLanguages.from_pretrained(folder)
    model = QRNNForConditionalGeneration.from_pretrained(folder)
    plain = pipeline("translation", model=model, tokenizer=AutoTokenizer.from_pretrained(folder), max_new_tokens=4)
    by_name = pipeline("translation_der_to_die", model=model, tokenizer=tokenizer, max_new_tokens=4)
    by_option = pipeline("translation", model=model, tokenizer=tokenizer, max_new_tokens=4)
    expected = plain("der die Hund")
    assert by_name("Hund") == by_option("Hund", src_lang="der", tgt_lang="die") == expected
    with pytest.raises(ValueError, match="`src_lang` and `tgt_lang` must be None with a tokenizer that knows no lang"):
        plain("Hund", src_lang="der")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (7, "takes texts, got int: 7"),
        ([["a", "b"]], "takes texts, got list: "),
        ("", "takes texts of at least one token, got ''"),
        (["Hund", " "], "takes texts of at least one token, got ' '"),
    ],
)
@tasks
def test_bad_input_is_refused(task, text, message, folder):
    with pytest.raises(ValueError, match=f"The {task} pipeline {message}"):
        pipeline(task, model=str(folder))(text, max_new_tokens=2)


def test_names_of_tasks():
    assert {"summarization", "translation"} <= set(PIPELINE_REGISTRY.get_supported_tasks())
    assert not {"summarization", "translation"} & set(REMOVED_TASKS)
    for other in ("translation_de", "translation_to_en", "text2text-generation"):
        with pytest.raises(KeyError):
            pipeline(other, model="nowhere", config=QRNNSeq2SeqConfig())
    assert PIPELINE_REGISTRY.check_task("ner")[0] == "token-classification"
    with pytest.raises(KeyError):
        PIPELINE_REGISTRY.task_aliases["nothing"]


def test_other_models_are_refused(folder):
    for model in (QRNNForCausalLM(QRNNConfig(vocab_size=10, hidden_size=8)), QRNNSeq2SeqModel.from_pretrained(folder)):
        with pytest.raises(ValueError, match=f"`model` must be one from text to text .* got {type(model).__name__}"):
            pipeline("translation", model=model, tokenizer=AutoTokenizer.from_pretrained(folder))


# --- without the package ---------------------------------------------------------------------------------------------

WITHOUT_THE_PACKAGE = """
import json, sys
sys.modules["modeling_qrnn"] = None
from transformers import pipeline
folder, task, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
pipe = pipeline(task, model=folder, trust_remote_code=True)
assert type(pipe).__module__.startswith("transformers_modules."), type(pipe)
print(json.dumps(pipe(texts, max_new_tokens=6, batch_size=2)))
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
pipeline_class = get_class_from_dynamic_module("pipelines_qrnn." + type(pipe).__name__, folder)
model = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
pipe = pipeline_class(model=model, tokenizer=tokenizer, task=task)
print(json.dumps(pipe(texts, max_new_tokens=6, batch_size=2)))
"""


def test_saved_pipeline_brings_its_code(folder, tmp_path, monkeypatch):
    task = "translation"
    pipe = pipeline(task, model=str(folder))
    expected = pipe(TEXTS, max_new_tokens=6)
    saved = tmp_path / "saved"
    pipe.save_pretrained(saved)
    assert (saved / "pipelines_qrnn.py").exists()
    assert set(json.loads((saved / "config.json").read_text())["custom_pipelines"]) == {task}

    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    command = [sys.executable, "-I", "-c", WITHOUT_THE_PACKAGE, str(saved), task, json.dumps(TEXTS)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert [json.loads(line) for line in run.stdout.splitlines()] == [expected] * 2

    # With the package there is no need to trust the folder's code.
    assert pipeline(task, model=str(saved), pipeline_class=TranslationPipeline)(TEXTS, max_new_tokens=6) == expected
    with pytest.raises(ValueError, match="trust_remote_code"):
        pipeline(task, model=str(saved))

    # A model that comes from there, and is saved without the pipeline, does not refer to its code.
    pipe.model.save_pretrained(tmp_path / "again")
    pipe.tokenizer.save_pretrained(tmp_path / "again")
    assert "custom_pipelines" not in json.loads((tmp_path / "again/config.json").read_text())
    assert pipeline(task, model=str(tmp_path / "again"))(TEXTS, max_new_tokens=6) == expected


# --- time-series-forecasting -----------------------------------------------------------------------------------------

STATISTICS = ["mean", "median", "lower", "upper"]


@pytest.fixture
def forecaster(redraw):
    """`forecaster(**config)`: the pipeline of a wide random model."""

    def make(**options):
        config = QRNNTimeSeriesConfig(**{"hidden_size": 8, "prediction_length": 4, "patch_length": 3} | options)
        return pipeline("time-series-forecasting", model=redraw(QRNNForTimeSeriesPrediction(config), std=0.4))

    return make


def make_frame(n_rows: int = 40, frequency: str = "h", columns: str = "xy") -> pd.DataFrame:
    walk = np.random.default_rng(0).normal(size=(n_rows, len(columns))).cumsum(axis=0)
    return pd.DataFrame(walk, index=pd.date_range("2026-01-01", periods=n_rows, freq=frequency), columns=list(columns))


def test_forecast_of_a_frame(forecaster):
    forecast, frame = forecaster(), make_frame()
    table = forecast(frame)
    assert table.columns.tolist() == [(name, statistic) for name in "xy" for statistic in STATISTICS]
    assert table.index.equals(pd.date_range("2026-01-02 16:00", periods=4, freq="h"))
    assert table["x"].columns.tolist() == STATISTICS
    paths = (
        forecast.model.generate(torch.tensor(frame.to_numpy())[None], num_parallel_samples=1000, seed=0)
        .sequences[0]
        .numpy()
    )
    np.testing.assert_allclose(table["y"]["mean"], paths[..., 1].mean(axis=0))
    for name, level in (("median", 0.5), ("lower", 0.1), ("upper", 0.9)):
        np.testing.assert_allclose(table["y"][name], np.quantile(paths[..., 1], level, axis=0))
    pd.testing.assert_frame_equal(forecast(frame), table)
    assert not forecast(frame, seed=1).equals(table)
    assert not forecast(frame, seed=None).equals(forecast(frame, seed=None))
    of_options = pipeline("time-series-forecasting", model=forecast.model, seed=1, level=0.5, target="y")
    pd.testing.assert_frame_equal(of_options(frame), forecast(frame, seed=1, level=0.5, target="y"))
    wider = forecast(frame, level=0.95)
    assert (wider["x"]["lower"] < table["x"]["lower"]).all() and (wider["x"]["upper"] > table["x"]["upper"]).all()


@pytest.mark.parametrize(
    ("loss", "statistics"), [("mse", ["mean"]), ("huber", ["mean"]), ("mae", ["median"]), ("quantile", STATISTICS[1:])]
)
def test_what_a_model_can_tell(loss, statistics, forecaster):
    forecast, frame = forecaster(loss=loss), make_frame()
    table = forecast(frame)
    assert table["x"].columns.tolist() == statistics
    with torch.no_grad():
        prediction = forecast.model(torch.tensor(frame.to_numpy())[None]).prediction_outputs[0].numpy()
    centre = statistics[0]
    tolerance = 0.3 if loss == "quantile" else 1e-6  # the median of a thousand samples
    np.testing.assert_allclose(table.xs(centre, axis=1, level=1), prediction, atol=tolerance)


@pytest.mark.parametrize(
    ("quantiles", "spanned"), [([0.25, 0.5, 0.75], 0.5), ([0.2, 0.7], 0.4), ([0.9], None)], ids=str
)
def test_the_interval_of_narrow_quantiles(quantiles, spanned, forecaster):
    """Without a level it is what they span; a wider one is refused."""
    forecast, frame = forecaster(loss="quantile", quantiles=quantiles), make_frame()
    table = forecast(frame)
    if spanned is not None:
        pd.testing.assert_frame_equal(table, forecast(frame, level=spanned))
        assert (table["x"]["lower"] < table["x"]["upper"]).all()
    else:
        assert table["x"]["lower"].equals(table["x"]["upper"])
    with pytest.raises(ValueError, match=r"`level` must not reach beyond the model's quantiles"):
        forecast(frame, level=(spanned or 0) + 0.01)


@pytest.mark.parametrize("horizon", ["direct", "autoregressive"])
def test_targets_covariates_and_lengths(horizon, forecaster):
    forecast = forecaster(num_time_features=2, horizon=horizon, context_length=20)
    frame = make_frame(60, columns="xyab").reset_index(names="stamp")
    past, future = frame[:50], frame[50:][["b", "a", "stamp"]]
    options = {"timestamp_column": "stamp", "covariates": ["a", "b"], "future": future}
    both = forecast(past, **options, prediction_length=3)
    assert both.shape == (3, 8) and both.index.name == "stamp" and both.index[0] == frame["stamp"][50]
    assert forecast(past, target="y", **options).columns.unique(0).tolist() == ["y"]
    assert forecast(past, target=["y", "x"], **options).columns.unique(0).tolist() == ["y", "x"]
    pd.testing.assert_frame_equal(forecast(past[30:], **options), forecast(past, **options))  # the context alone
    shuffled = forecast(past.sample(frac=1, random_state=0), **options | {"future": future[::-1]}, prediction_length=3)
    pd.testing.assert_frame_equal(shuffled, both)
    other = future.assign(a=future["a"] + 1)
    assert (forecast(past, **options | {"future": other}, prediction_length=3) != both).to_numpy().any()
    if horizon == "autoregressive":
        assert len(forecast(past, **options, prediction_length=9)) == 9


def test_missing_stamps_and_values_are_the_same(forecaster):
    forecast, frame = forecaster(), make_frame()
    gaps = frame.copy()
    gaps.iloc[[7, 8, 20]] = np.nan
    expected = forecast(gaps)
    pd.testing.assert_frame_equal(forecast(frame.drop(frame.index[[7, 8, 20]])), expected)
    pd.testing.assert_frame_equal(forecast(gaps[::-1].astype(object).where(gaps[::-1].notna(), None)), expected)
    assert not forecast(frame).equals(expected)


def test_a_constant_column(forecaster):
    frame = make_frame()
    frame["x"] = 7.5
    table = forecaster()(frame)
    assert np.isfinite(table.to_numpy()).all()
    assert forecaster(loss="mse", scaling="last_std", value_loc=[0.0], value_scale=[1e-9])(frame[["x"]])["x"][
        "mean"
    ].to_numpy() == pytest.approx(7.5)


@pytest.mark.parametrize(
    ("stamps", "following"),
    [
        (["2026-01-01", "2026-02-01", "2026-04-01"], "2026-05-01"),
        (["2026-01-31", "2026-02-28", "2026-03-31"], "2026-04-30"),
        (["2024-01-01", "2024-04-01", "2024-10-01"], "2025-01-01"),
        (["2020-01-01", "2021-01-01", "2023-01-01"], "2024-01-01"),
        (["2026-01-01", "2026-01-02", "2026-01-06"], "2026-01-07"),  # Thursday, Friday, Tuesday
        (["2026-01-08", "2026-01-09", "2026-01-12"], "2026-01-13"),
        (["2026-01-02", "2026-01-03", "2026-01-05"], "2026-01-06"),
        (["2026-01-01 00:10", "2026-01-01 00:25", "2026-01-01 01:10"], "2026-01-01 01:25"),
        (["2026-01-05", "2026-01-12", "2026-02-02"], "2026-02-09"),
        (["2023-07-01", "2024-07-01", "2026-07-01"], "2027-07-01"),  # fiscal years
        (["2023-06-30", "2024-06-30", "2026-06-30"], "2027-06-30"),
        (["2025-10-31", "2026-01-31", "2026-04-30"], "2026-07-31"),  # fiscal quarters
        (["2025-11-01", "2026-02-01", "2026-08-01"], "2026-11-01"),
        (["2026-01-01", "2026-03-01", "2026-07-01"], "2026-09-01"),
        (["2026-01-15", "2026-02-15", "2026-04-15"], "2026-05-15"),
        (["2026-01-30", "2026-02-27", "2026-03-31"], "2026-04-30"),  # the last business days
        (["2026-01-05", "2026-02-02", "2026-03-02", "2026-03-30"], "2026-04-27"),  # each fourth Monday
    ],
    ids=lambda value: str(value[0]) if isinstance(value, list) else value,
)
def test_the_distance_of_stamps_is_found(stamps, following, forecaster):
    frame = pd.DataFrame({"x": np.arange(len(stamps), dtype=float), "day": stamps})
    assert str(forecaster()(frame, timestamp_column="day").index[0]) == str(pd.Timestamp(following))


def test_a_day_of_23_hours(forecaster):
    frame = make_frame(40, "D", "x").tz_localize("Europe/Berlin")
    frame = pd.concat([frame[:20], frame[22:]])
    frame.index = frame.index + pd.DateOffset(days=60)
    expected = pd.date_range(frame.index[-1], periods=5, freq="D")[1:]
    assert forecaster()(frame).index.equals(expected)


@pytest.mark.parametrize("frequency", ["h", "D", "B", "W", "14D", "MS", "QE-JAN", "YS-JUL"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
def test_any_calendar(frequency, zone, forecaster):
    """In a time zone days are those of the calendar, on both sides of the change of clocks and over it."""
    stamps = pd.date_range("2025-12-01", periods=30, freq=frequency, tz=zone)
    for n_rows in (8, 25):
        frame = pd.DataFrame({"x": np.arange(n_rows, dtype=float)}, index=stamps[:n_rows])
        assert forecaster()(frame).index.equals(stamps[n_rows : n_rows + 4])
        assert forecaster()(frame.drop(frame.index[4])).index.equals(stamps[n_rows : n_rows + 4])


KNOWN = {
    "two hours": ("h", 2),
    "two ends of months": ("ME", 2),
    "a week of business days": ("B", 5),
    "business hours": ("bh", 24),
    "halves of months": ("SMS", 12),
    "third Fridays": ("WOM-3FRI", 12),
}


@pytest.mark.parametrize("rising", [True, False])
@pytest.mark.parametrize(("frequency", "n_rows"), KNOWN.values(), ids=KNOWN)
def test_the_frequency_of_the_index_is_known(frequency, n_rows, rising, forecaster):
    stamps = pd.date_range("2026-03-16", periods=n_rows + 4, freq=frequency)
    frame = pd.DataFrame({"x": np.arange(n_rows, dtype=float)}, index=stamps[:n_rows])
    assert forecaster()(frame if rising else frame[::-1]).index.equals(stamps[n_rows:])


@pytest.mark.parametrize("zone", ["America/Santiago", "Africa/Cairo", "America/Havana"])
@pytest.mark.parametrize("frequency", ["D", "2D", "W", "MS"])
def test_midnights_that_the_clock_leaves_out_or_repeats(zone, frequency, forecaster):
    """Such a day begins at one, or with the first of two midnights."""
    days = pd.date_range("2025-01-05", periods=700 if frequency.endswith("D") else 70, freq=frequency)
    first = np.ones(len(days), dtype=bool)
    stamps = days.tz_localize(zone, nonexistent="shift_forward", ambiguous=first)
    moved = np.flatnonzero(stamps.hour != 0)
    assert frequency in ("W", "MS") or zone == "America/Santiago" or len(moved)
    for n_rows in {8, 25, *(moved + 1), *(moved - 2)} & {*range(5, len(days) - 4)}:
        frame = pd.DataFrame({"x": np.arange(n_rows, dtype=float)}, index=stamps[:n_rows])
        for seen in (frame, frame.drop(frame.index[4])):
            assert forecaster()(seen).index.equals(stamps[n_rows : n_rows + 4])
    for start in moved[moved < len(days) - 20]:
        frame = pd.DataFrame({"x": np.arange(9, dtype=float)}, index=stamps[start : start + 9])
        assert forecaster()(frame).index.equals(stamps[start + 9 : start + 13])


CHANGES = [("Europe/Berlin", "2026-03-29"), ("Europe/Berlin", "2026-10-25")]
CHANGES += [("America/Santiago", "2026-09-06"), ("America/Santiago", "2026-04-05"), ("America/Havana", "2026-03-08")]


@pytest.mark.parametrize("hours", [3, 6, 12])
@pytest.mark.parametrize(("zone", "day"), CHANGES)
def test_hours_of_the_clock(zone, day, hours, forecaster):
    """Where they pass quicker or slower as the clocks change, before it, over it and from it on."""
    stamps = pd.date_range(pd.Timestamp(day) - pd.Timedelta(days=6), periods=24 * 24 // hours, freq=f"{hours}h")
    first = np.ones(len(stamps), dtype=bool)
    stamps = stamps.tz_localize(zone, nonexistent="shift_forward", ambiguous=first)
    a_day = 24 // hours
    for begin, end in ((0, 5 * a_day), (0, 6 * a_day - 1), (0, 12 * a_day), (6 * a_day, 12 * a_day)):
        frame = pd.DataFrame({"x": np.arange(end - begin, dtype=float)}, index=stamps[begin:end])
        passing = pd.date_range(stamps[end - 1], periods=5, freq=f"{hours}h")[1:]
        # Before the change no row tells which of both is meant.
        assert forecaster()(frame).index.equals(stamps[end : end + 4] if end > 6 * a_day else passing)


@pytest.mark.parametrize("offset", [pd.DateOffset(hours=1), pd.DateOffset(minutes=5)], ids=str)
@pytest.mark.parametrize("day", ["2026-03-29", "2026-10-25"])
def test_offsets_of_an_index_that_pass(offset, day, forecaster):
    stamps = pd.date_range(f"{day} 00:30", periods=60, freq=pd.Timedelta(**offset.kwds), tz="Europe/Berlin")
    frame = pd.DataFrame({"x": np.arange(6, dtype=float)}, index=stamps[:6].tz_convert(None))
    frame.index = pd.DatetimeIndex(frame.index, freq=offset).tz_localize("UTC").tz_convert("Europe/Berlin")
    assert forecaster()(frame).index.equals(stamps[6:10])


def test_five_minutes_of_the_clock(forecaster):
    """A given offset of this kind is on the clock, which leaves out more of them than are forecast."""
    stamps = pd.date_range("2026-03-29 01:30", periods=6, freq="5min", tz="Europe/Berlin")
    table = forecaster()(pd.DataFrame({"x": np.arange(6.0)}, index=stamps), frequency=pd.DateOffset(minutes=5))
    assert table.index.equals(pd.date_range("2026-03-29 03:00", periods=4, freq="5min", tz="Europe/Berlin"))


def test_a_given_frequency_may_leave_most_values_out(forecaster):
    frame = make_frame(3).set_axis(pd.to_datetime(["2026-01-01", "2026-06-01", "2026-12-31"]))
    assert str(forecaster()(frame, frequency="h").index[0]) == "2026-12-31 01:00:00"


def test_a_logger_that_knows_no_daylight_saving(forecaster):
    stamps = pd.date_range("2026-03-20", periods=20, freq="24h", tz="UTC").tz_convert("Europe/Berlin")
    frame = pd.DataFrame({"x": np.arange(16, dtype=float)}, index=stamps[:16])
    assert forecaster()(frame).index.equals(stamps[16:])


def test_names_that_are_no_strings(forecaster):
    frame = make_frame().set_axis([0, 1], axis="columns")
    assert forecaster()(frame, target=1).columns.unique(0).tolist() == [1]
    forecast, future = forecaster(num_time_features=1), make_frame(44).set_axis([0, 1], axis="columns")[40:]
    assert forecast(frame, covariates=1, future=future).columns.unique(0).tolist() == [0]


def test_no_frames(forecaster):
    assert forecaster()([]) == []


@pytest.mark.parametrize("option", [{"level": 0.5}, {"num_samples": 7}])
def test_a_model_of_points_has_no_interval(option, forecaster):
    with pytest.raises(ValueError, match="must be None for a model that learned by loss='mae'"):
        forecaster(loss="mae")(make_frame(), **option)


def test_a_batch_size_changes_nothing(forecaster):
    frames = [make_frame(), make_frame(30), make_frame(columns="x")]
    forecast = forecaster()
    for actual, expected in zip(forecast(frames, batch_size=2), forecast(frames), strict=True):
        pd.testing.assert_frame_equal(actual, expected)


def test_stamps_of_arrow(forecaster):
    """As `pandas.read_parquet(..., dtype_backend="pyarrow")` reads them."""
    frame, forecast = make_frame(), forecaster()
    arrow = frame.set_axis(frame.index.astype("timestamp[us][pyarrow]"))
    assert not isinstance(arrow.index, pd.DatetimeIndex)
    pd.testing.assert_frame_equal(forecast(arrow), forecast(frame), check_index_type=False)


def test_a_list_of_frames(forecaster):
    forecast = forecaster()
    frames = [make_frame(), make_frame(17, "D", "z")]
    tables = forecast(frames)
    for frame, table in zip(frames, tables, strict=True):
        pd.testing.assert_frame_equal(forecast(frame), table)


def changed(**columns) -> pd.DataFrame:
    return make_frame().assign(**columns)


DOUBLED = pd.concat([make_frame(), make_frame()[3:4]])
STAMPED = make_frame().reset_index(names="stamp")
WRONG = {
    "no frame": (([1.0, 2.0],), {}, "takes pandas frames, got tuple"),
    "no rows": (make_frame()[:0], {}, "The frame has no rows"),
    "no stamps": (make_frame().reset_index(drop=True), {}, "must have a DatetimeIndex, or `timestamp_column`"),
    "periods": (make_frame().to_period(), {}, r"got an index of period\[h\] \(see its `to_timestamp`\)"),
    "no such column of stamps": (make_frame(), {"timestamp_column": "when"}, "There is no column 'when'; .* x, y"),
    "numbers for stamps": (make_frame(), {"timestamp_column": "x"}, "Column 'x' must hold time stamps, got float64"),
    "words for stamps": (changed(stamp="soon"), {"timestamp_column": "stamp"}, "Column 'stamp' must hold time stamps"),
    "missing stamp": (
        STAMPED.assign(stamp=STAMPED["stamp"].where(STAMPED.index != 4)),
        {"timestamp_column": "stamp"},
        "Row 5 has no time stamp",
    ),
    "doubled stamp": (DOUBLED, {}, "The time stamp 2026-01-01 03:00:00 stands in more than one row"),
    "uneven stamps": (
        make_frame().set_axis(make_frame().index[:-1].append(pd.DatetimeIndex(["2026-01-02 15:20"]))),
        {},
        "not evenly spaced: 2026-01-02 14:00|not evenly spaced: 2026-01-0",
    ),
    "another frequency": (make_frame(), {"frequency": "2h"}, "2026-01-01 01:00:00 is not one of those every 2h"),
    "days that some months lack": (
        make_frame(4).set_axis(pd.to_datetime(["2026-09-30", "2026-10-30", "2026-11-30", "2026-12-30"])),
        {},
        "not evenly spaced",
    ),
    "frequency of the past": (
        make_frame(),
        {"frequency": pd.DateOffset(months=-1)},
        "`frequency` must be a distance above 0, got <DateOffset: months=-1>",
    ),
    "days of the past": (make_frame(1), {"frequency": "-1D"}, "`frequency` must be a distance above 0, got '-1D'"),
    "frequency of nothing": (make_frame(), {"frequency": "0h"}, "`frequency` must be a distance above 0, got '0h'"),
    "events": (
        make_frame(4).set_axis(
            pd.to_datetime(["2026-01-01", "2026-01-01 00:00:00.001", "2026-01-05", "2026-01-20"], format="mixed")
        ),
        {},
        "not evenly spaced: one every ms from .* would make 1641600001, and there are 4 rows",
    ),
    "unknown frequency": (make_frame(), {"frequency": "often"}, "`frequency` must be given, .* got 'often'"),
    "one stamp, read backwards": (
        make_frame(1)[::-1],
        {},
        "`frequency` must be given, .* 1 time stamps do not tell it",
    ),
    "too few stamps": (
        make_frame(3).drop(make_frame(3).index[1]),
        {},
        "`frequency` must be given, .* 2 time stamps do not tell it",
    ),
    "words": (changed(x="low"), {}, "Column 'x' must hold numbers"),
    "dates": (changed(x=pd.date_range("2026", periods=40)), {}, "Column 'x' must hold numbers, got datetime64"),
    "months": (changed(x=pd.period_range("2026", periods=40, freq="M")), {}, "Column 'x' must hold numbers, got peri"),
    "times": (changed(x=pd.Timedelta("3h")), {}, "Column 'x' must hold numbers, got timedelta64"),
    "complex numbers": (changed(x=1 + 2j), {}, "Column 'x' must hold numbers, got complex128"),
    "infinite": (changed(x=np.inf), {}, "Column 'x' must be finite, got inf"),
    "unobserved": (changed(y=np.nan), {}, "Column 'y' has no value in the last 40 rows"),
    "unknown target": (make_frame(), {"target": "z"}, "There is no column 'z'"),
    "doubled target": (make_frame(), {"target": ["x", "x"]}, "There is more than one use of 'x'"),
    "no target": (make_frame()[[]], {}, "There is no column to forecast"),
    "covariates": (make_frame(), {"covariates": ["y"]}, r"`covariates` must name the 0 columns .* got \['y'\]"),
    "a future of nothing": (make_frame(), {"future": make_frame()}, "`future` must be None for a model without cov"),
    "samples": (make_frame(), {"num_samples": 0}, "`num_samples` must be an integer of at least 1, got 0"),
    "half a sample": (make_frame(), {"num_samples": 2.5}, "`num_samples` must be an integer of at least 1, got 2.5"),
    "no length": (make_frame(), {"prediction_length": -4}, "`prediction_length` must be an integer .* got -4"),
    "length": (
        make_frame(),
        {"prediction_length": 5},
        "`prediction_length` must be an integer between 1 and .*=4, got 5",
    ),
    "level": (make_frame(), {"level": 1.0}, r"`level` must be a probability in \(0, 1\), got 1.0"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_wrong_frames(mistake, forecaster):
    frame, options, message = WRONG[mistake]
    with pytest.raises(ValueError, match=message):
        forecaster()(frame, **options)


def test_wrong_frames_for_a_model(forecaster):
    frame = make_frame(columns="xya")
    with pytest.raises(ValueError, match=r"`target` must name 2 columns for this model, got \['x', 'y', 'a'\]"):
        forecaster(channel_mode="mixed", num_input_channels=2)(frame)
    with pytest.raises(ValueError, match=r"must not reach beyond the model's quantiles, 0.1 to 0.9, got 0.9"):
        forecaster(loss="quantile")(frame, level=0.9)
    forecast = forecaster(num_time_features=1)
    with pytest.raises(ValueError, match="`future` must hold the covariates a of the 4 next stamps"):
        forecast(frame, covariates=["a"])
    future = make_frame(44, columns="a")[40:]
    with pytest.raises(ValueError, match=r"Covariate 'a' must be known .* missing at 2026-01-02 19:00:00"):
        forecast(frame, covariates=["a"], future=future[:3])
    with pytest.raises(ValueError, match="2026-01-02 16:00:00 stands in more than one row of `future`"):
        forecast(frame, covariates=["a"], future=pd.concat([future, future]))
    with pytest.raises(ValueError, match=r"Covariate 'a' must be known .* missing at 2026-01-01 05:00:00"):
        forecast(frame.drop(frame.index[5]), covariates=["a"], future=future)


def test_other_forecasters_are_refused():
    other = QRNNForCausalLM(QRNNConfig(vocab_size=10, hidden_size=8))
    with pytest.raises(ValueError, match="`model` must be a QRNNForTimeSeriesPrediction, got QRNNForCausalLM"):
        pipeline("time-series-forecasting", model=other)


@pytest.mark.parametrize("dtype", [float, str])
def test_plot(dtype, forecaster, tmp_path):
    frame = make_frame(60).astype(dtype).reset_index(names="stamp")
    table = forecaster()(frame[:50], timestamp_column="stamp")
    figure = plot_forecast(frame[:50], table, "stamp", actual=frame[50:54], path=tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert [axes.get_ylabel() for axes in figure.axes] == ["x", "y"]
    history, actual, centre = figure.axes[1].lines
    np.testing.assert_allclose(history.get_ydata(), frame["y"][34:50].astype(float))
    np.testing.assert_allclose(actual.get_ydata(), frame["y"][50:54].astype(float))
    np.testing.assert_array_equal(centre.get_ydata(), table["y"]["median"])
    (band,) = figure.axes[1].collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(table["y"]["lower"].min())
    assert heights.max() == pytest.approx(table["y"]["upper"].max())
    (_, actual, _) = plot_forecast(frame[:50], table, "stamp", actual=frame[52:]).axes[1].lines
    np.testing.assert_allclose(actual.get_ydata(), frame["y"][52:54].astype(float))  # what came later has no forecast
    with pytest.raises(ValueError, match="There is no column 'x'"):
        plot_forecast(frame[["stamp", "y"]], table, "stamp")


def test_the_package_does_not_load_matplotlib():
    program = "import modeling_qrnn, sys; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_saved_pipeline(forecaster, tmp_path):
    forecast, frame = forecaster(), make_frame()
    forecast.save_pretrained(tmp_path)
    assert (tmp_path / "pipelines_qrnn.py").is_file()
    loaded = pipeline("time-series-forecasting", model=str(tmp_path), trust_remote_code=True)
    pd.testing.assert_frame_equal(loaded(frame), forecast(frame))
