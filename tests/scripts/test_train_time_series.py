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
"""scripts/train_time_series.py: what it reads, trains, scores and writes, and how it goes on after a kill."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForTimeSeriesPrediction

import train_time_series
from forecasting_baselines import LinearForecaster, fill_forward, repeat_last_season, repeat_last_value
from lstm_baseline import equal_lstm
from modeling_qrnn import QRNNForTimeSeriesPrediction, QRNNTimeSeriesConfig
from program_runs import kill_at, run_card, run_card_without_package, weights_in


NAN = float("nan")
RECIPE = {
    "data_file": "table.csv",
    "timestamp_column": "stamp",
    "train_rows": 150,
    "validation_rows": 40,
    "test_rows": 50,
    "context_length": 24,
    "prediction_length": 6,
    "season_length": 12,
    "model_overrides": "{hidden_size: 8, num_hidden_layers: 1, patch_length: 4, loss: mae, scaling: last}",
    "per_device_train_batch_size": 16,
    "max_steps": 12,
    "learning_rate": 0.01,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "save_steps": 4,
    "save_total_limit": 2,
    "load_best_model_at_end": True,
    "logging_steps": 2,
    "use_cpu": True,
    "disable_tqdm": True,
    "report_to": "none",
}


def make_table(n_rows: int = 260) -> pd.DataFrame:
    """Two waves of a period of 12 around different places, and a covariate."""
    time, noise = np.arange(n_rows), np.random.default_rng(0).normal(size=(n_rows, 2))
    waves = {"low": np.sin(time / 12 * 2 * np.pi), "high": 100 + 20 * np.cos(time / 12 * 2 * np.pi)}
    table = pd.DataFrame(waves) + noise * [0.1, 2.0]
    stamps = pd.date_range("2026-01-01", periods=n_rows, freq="h")
    return table.assign(hour=stamps.hour / 23 - 0.5, stamp=stamps)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`run(*options, **recipe)`: the program in a folder with a table; its scores and its output folder."""
    monkeypatch.chdir(tmp_path)
    make_table()[["stamp", "low", "high"]].to_csv("table.csv", index=False)

    def run(*options: str, output: str = "output", **recipe):
        Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE | recipe))
        train_time_series.main(["recipe.yaml", "--output-dir", output, *options])
        return json.loads(Path(output, "scores.json").read_text()), Path(output)

    return run


# What it writes


def test_scores_are_those_of_the_saved_model(run):
    """Of every window of the test rows, with the rows before them as their past."""
    table = make_table()
    table.loc[[60, 61, 205], "low"] = NAN
    table[["stamp", "low", "high"]].drop(index=[100, 220]).to_csv("gaps.csv", index=False)
    scores, folder = run(data_file="gaps.csv")
    values = table[["low", "high"]].to_numpy(copy=True)
    values[[100, 220]] = NAN
    mean, std = np.nanmean(values[:150], axis=0), np.nanstd(values[:150], axis=0)
    model = AutoModelForTimeSeriesPrediction.from_pretrained(folder)
    np.testing.assert_allclose(model.config.value_loc, mean)
    np.testing.assert_allclose(model.config.value_scale, std)
    for split, begin, end in (("validation", 150, 190), ("test", 190, 240)):
        errors = []
        for start in range(begin, end - 6 + 1):
            past = torch.tensor(values[start - 24 : start], dtype=torch.float32)[None]
            with torch.no_grad():
                errors.append((model(past).prediction_outputs[0].numpy() - values[start : start + 6]) / std)
        errors = np.stack(errors)
        score = scores[split]
        assert (score["windows"], score["values"]) == (len(errors), np.isfinite(errors).sum())
        assert score["mse"] == pytest.approx(np.nanmean(errors**2), rel=1e-4)
        assert score["mae"] == pytest.approx(np.nanmean(np.abs(errors)), rel=1e-4)


def test_it_learns_more_than_the_baselines(run):
    scores, _ = run(max_steps=300, eval_steps=100, save_steps=100, linear_learning_rate=0.005)
    assert scores["test"]["mse"] < scores["baselines"]["last season"]["mse"] < scores["baselines"]["last value"]["mse"]
    assert scores["baselines"]["linear"]["mse"] < scores["baselines"]["last season"]["mse"]


def test_card_and_plots(run, capsys):
    scores, folder = run()
    card = ModelCard.load(folder / "README.md")
    figures = {(result.dataset_split, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert figures["test", "mae"] == pytest.approx(scores["test"]["mae"], abs=1e-4)
    assert card.data.pipeline_tag == "time-series-forecasting"
    assert "{{" not in card.text and "{%" not in card.text
    assert f"| test | {scores['test']['mse']:.4f} | {scores['test']['mae']:.4f} | 45 |" in card.text
    for name, score in scores["baselines"].items():
        assert f"| test, {name} | {score['mse']:.4f} |" in card.text
    assert "the last 20 not used" in card.text and "max_steps: 12" in card.text
    run_card(folder, frame=make_table().set_index("stamp")[["low", "high"]])
    for name in ("forecast.png", "loss_curve.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert f"test: mse {scores['test']['mse']:.4f}" in printed
    assert f"test, last season: mse {scores['baselines']['last season']['mse']:.4f}" in printed


def test_options_override_the_recipe(run):
    scores, folder = run("--prediction-length", "9", "--linear-learning-rate", "0", "--target-columns", "high")
    config = json.loads((folder / "config.json").read_text())
    assert (config["prediction_length"], config["num_input_channels"]) == (9, 1)
    assert scores["test"]["windows"] == 50 - 9 + 1
    assert "linear" not in scores["baselines"] and not (folder / "linear").exists()
    run_card(folder, frame=make_table().set_index("stamp"))


@pytest.mark.parametrize("loss", ["nll", "quantile"])
@pytest.mark.parametrize("horizon", ["direct", "autoregressive"])
def test_distributions_covariates_and_parquet(loss, horizon, run):
    make_table().to_parquet("table.parquet")
    overrides = f"{{hidden_size: 8, num_hidden_layers: 1, patch_length: 4, loss: {loss}, horizon: {horizon}}}"
    scores, folder = run(data_file="table.parquet", covariate_columns="hour", model_overrides=overrides)
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_time_features"], config["num_input_channels"]) == (1, 2)
    assert np.isfinite(scores["test"]["mse"])
    assert "upper" in (folder / "README.md").read_text()
    table = make_table().set_index("stamp").assign(unused=1.0)
    run_card(folder, frame=table[:200], future=table[200:206])


def test_card_of_a_model_with_covariates_without_the_package(run):
    make_table().to_parquet("table.parquet")
    _, folder = run(data_file="table.parquet", covariate_columns="hour", max_steps=4)
    setting = """
import pandas as pd
table = pd.read_parquet("table.parquet").set_index("stamp").assign(unused=1.0)
frame, future = table[:200], table[200:206]
"""
    printed = run_card_without_package(folder, setting)
    past, coming = (
        torch.tensor(make_table()[rows].to_numpy()[None, :, :3].astype("float32"))
        for rows in (slice(200), slice(200, 206))
    )
    model = QRNNForTimeSeriesPrediction.from_pretrained(folder)
    known = {"past_time_features": past[..., 2:], "future_time_features": coming[..., 2:]}
    assert printed.strip() == str(model.generate(past[..., :2], **known).sequences.mean(dim=1))


def test_shares(run):
    shares = {"train_rows": None, "validation_rows": None, "test_rows": None}
    scores, folder = run(**shares, validation_share=0.15, max_steps=4)
    assert (scores["validation"]["windows"], scores["test"]["windows"]) == (39 - 5, 52 - 5)
    assert "169 rows for train" in (folder / "README.md").read_text()


def test_a_column_without_a_name_that_nobody_asked_for(run):
    make_table().to_csv("unnamed.csv")
    _, folder = run(data_file="unnamed.csv", target_columns="low", max_steps=4)
    assert json.loads((folder / "config.json").read_text())["num_input_channels"] == 1


@pytest.mark.parametrize(("last_value", "has_sample"), [(204, True), (149, False)])
def test_a_column_that_ends(last_value, has_sample, run, capsys):
    """The sample is of the last window that the pipeline can forecast; without any the card says so."""
    table = make_table()[["stamp", "low", "high"]]
    table.loc[last_value + 1 :, "low"] = NAN
    table.to_csv("ends.csv", index=False)
    scores, folder = run(data_file="ends.csv", max_steps=4)
    assert np.isfinite(scores["test"]["mse"])
    assert (folder / "forecast.png").exists() == has_sample
    told = "no window of the test rows has a value of each column in its past"
    assert (told in capsys.readouterr().out) == (told in (folder / "README.md").read_text()) == (not has_sample)


def test_stamps_in_the_middle_of_months(run):
    table = make_table()[["stamp", "low"]]
    table["stamp"] = pd.date_range("1990-01-15", periods=len(table), freq=pd.DateOffset(months=1))
    table.to_csv("months.csv", index=False)
    _, folder = run(data_file="months.csv", max_steps=4)
    assert (folder / "forecast.png").exists()


def test_a_column_that_never_moves(run):
    """Also one whose deviation is no exact zero: the mean of so many tenths is none."""
    table = make_table()[["stamp", "low"]].assign(still=7.0, tenth=0.1)
    assert table["tenth"][:150].std(ddof=0) > 0
    table.to_csv("still.csv", index=False)
    scores, folder = run(data_file="still.csv")
    assert json.loads((folder / "config.json").read_text())["value_scale"][1:] == [1, 1]
    assert scores["baselines"]["last value"]["mae"] < 1


def test_small_changes_of_large_values(run):
    """A meter that is far on: what it counts in an hour is less than float32 tells apart there."""
    waves = make_table()[["stamp", "low"]]
    waves.to_csv("low.csv", index=False)
    waves.assign(low=waves["low"] + 2.0**25).to_csv("meter.csv", index=False)
    settings = {"model_overrides": RECIPE["model_overrides"].replace("scaling: last", "scaling: last_std")}
    expected, _ = run(data_file="low.csv", **settings)
    actual, _ = run(data_file="meter.csv", output="meter", **settings)
    for name, score in {"model": expected["test"], **expected["baselines"]}.items():
        beside = actual["test"] if name == "model" else actual["baselines"][name]
        assert beside["mse"] == pytest.approx(score["mse"], rel=1e-3)


# Going on


def test_killed_run_ends_like_an_uninterrupted_one(run):
    settings = {"max_steps": 40, "save_steps": 2, "eval_steps": 2}
    _, folder = run(output="whole", **settings)
    kill_at(6, train_time_series)
    run(output="killed", **settings)
    for part in (".", "linear"):
        torch.testing.assert_close(weights_in(Path("killed", part)), weights_in(folder / part), rtol=0, atol=0)
    assert Path("killed/scores.json").read_text() == (folder / "scores.json").read_text()


def test_the_linear_model_goes_on_with_its_own_data_only(run):
    _, folder = run()
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    make_table(270)[["stamp", "low", "high"]].to_csv("table.csv", index=False)
    with pytest.raises(SystemExit, match=r"linear holds a run with other data \(data_file\)"):
        run()
    assert not [*folder.glob("checkpoint-*")]  # it is told before the other model is trained


@pytest.mark.parametrize("keeps_best", [True, False])
def test_finished_run_is_not_trained_further(keeps_best, run):
    """Neither is the linear model beside it; both end within an epoch."""
    settings = {"load_best_model_at_end": keeps_best, "lr_scheduler_type": "constant"}
    scores, folder = run(**settings)
    weights = [weights_in(folder / part) for part in (".", "linear")]
    assert run(**settings)[0] == scores
    torch.testing.assert_close([weights_in(folder / part) for part in (".", "linear")], weights, rtol=0, atol=0)


def test_other_settings_need_another_folder(run):
    run()
    with pytest.raises(SystemExit, match=r"output holds a run with other settings \(prediction_length\)"):
        run("--prediction-length", "5")


# Mistakes

MISTAKES = {
    "no recipe": (["none.yaml"], "there is no file 'none.yaml'"),
    "no data": (["recipe.yaml"], "give a table with --data-file"),
    "no file": (["recipe.yaml", "--data-file", "none.csv"], "there is no file 'none.csv'"),
    "unknown kind of file": (["recipe.yaml", "--data-file", "table.doc"], "table.doc: the name must end in .csv"),
    "empty file": (["recipe.yaml", "--data-file", "empty.csv"], "empty.csv: No columns to parse from file"),
    "no rows": (["recipe.yaml", "--data-file", "head.csv"], "head.csv: The frame has no rows"),
    "twice": (["recipe.yaml", "--data-file", "twice.csv"], "twice.csv: columns that stand twice: 'low'"),
    "broken file": (["recipe.yaml", "--data-file", "broken.parquet"], "broken.parquet: "),
    "broken gzip": (["recipe.yaml", "--data-file", "broken.csv.gz"], "broken.csv.gz: "),
    "no stamps": (["table.yaml", "--timestamp-column", "when"], "table.csv: There is no column 'when'"),
    "doubled stamps": (["recipe.yaml", "--data-file", "doubled.csv"], "2026-01-01 05:00:00 stands in more than one"),
    "no target": (["table.yaml", "--target-columns", "low,up"], "table.csv: There is no column 'up'"),
    "words": (["recipe.yaml", "--data-file", "words.csv"], "words.csv: Column 'low' must hold numbers"),
    "no target is left": (
        ["table.yaml", "--covariate-columns", "low,high"],
        "table.csv: beside the time stamps and covariates there is no column to forecast",
    ),
    "infinite": (["recipe.yaml", "--data-file", "infinite.csv"], "infinite.csv: Column 'low' must be finite, got inf"),
    "unknown covariate": (
        ["recipe.yaml", "--data-file", "gaps.csv", "--covariate-columns", "high"],
        "Covariate 'high' must be known at each time stamp, but is missing at 2026-01-01 09:00:00",
    ),
    "nothing observed": (["recipe.yaml", "--data-file", "void.csv"], "column 'low' has no value in the training rows"),
    "nothing to test on": (["recipe.yaml", "--data-file", "unseen.csv"], "unseen.csv: the test split holds no value"),
    "some rows": (["table.yaml", "--train-rows", "99999"], "the splits have 100,089 rows together, but the table has"),
    "too few rows": (["table.yaml", "--test-rows", "5"], "the test split has 5 rows, too few for a single window"),
    "shares": (["bare.yaml", "--test-share", "1.5"], "--validation-share and --test-share must be above 0"),
    "rows and shares": (["bare.yaml", "--train-rows", "9"], "give all of --train-rows, --validation-rows and"),
    "truncated gzip": (["recipe.yaml", "--data-file", "half.csv.gz"], "half.csv.gz: "),
    "corrupt gzip": (["recipe.yaml", "--data-file", "corrupt.csv.gz"], "corrupt.csv.gz: "),
    "rate": (["table.yaml", "--linear-learning-rate", "-1"], "--linear-learning-rate must be at least 0, got -1.0"),
    "commas": (["recipe.yaml", "--data-file", "commas.csv"], "commas.csv: row 1 has 1 cell more than the header"),
    "length": (["table.yaml", "--context-length", "0"], "--context-length must be at least 1, got 0"),
    "season": (
        ["table.yaml", "--season-length", "25"],
        "--season-length 25: a forecast only knows --context-length 24",
    ),
    "rows beside a share": (
        ["table.yaml", "--test-share", "0.2"],
        "--validation-share and --test-share are in place of --train-rows",
    ),
    "a column without a name": (
        ["recipe.yaml", "--data-file", "unnamed.csv"],
        "unnamed.csv: column 1 has no name: name it or leave it out, or give --target-columns",
    ),
    "seed": (["table.yaml", "--seed", "-1"], "--seed must be at least 0 and below 4294967296, got -1"),
    "wrong model": (["table.yaml", "--model-overrides", "{patch_length: 0}"], "patch_length"),
    "unknown model field": (["table.yaml", "--model-overrides", "{patch: 2}"], "unknown fields: patch"),
    "field of the data": (
        ["table.yaml", "--model-overrides", "{prediction_length: 2}"],
        "fields that the data or other options decide: prediction_length",
    ),
    "fields that do not fit": (
        ["table.yaml", "--model-overrides", "{bidirectional: true}"],
        "`bidirectional` must be",
    ),
    "training": (["table.yaml", "--eval-strategy", "no"], "table.yaml: --load_best_model_at_end"),
    "output is a file": (["table.yaml", "--output-dir", "table.csv"], "--output-dir table.csv"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table = make_table()[["stamp", "low", "high"]]
    tables = {
        "table": table,
        "head": table[:0],
        "doubled": pd.concat([table, table[5:6]]),
        "words": table.assign(low="low"),
        "infinite": table.assign(low=np.inf),
        "gaps": table.drop(index=9),
        "unseen": table.assign(**dict.fromkeys(["low", "high"], table["low"].where(table.index < 190))),
        "void": table.assign(low=np.where(table.index < 150, NAN, 1.0)),
    }
    for name, frame in tables.items():
        frame.to_csv(f"{name}.csv", index=False)
    table.to_csv("unnamed.csv")
    Path("empty.csv").touch()
    Path("table.doc").touch()
    Path("twice.csv").write_text("stamp,low,low\n2026-01-01,1,5\n2026-01-02,2,5\n")
    Path("commas.csv").write_text("stamp,low\n2026-01-01,1,5\n2026-01-02,2,5\n")
    Path("broken.parquet").write_bytes(b"PAR1")
    whole = gzip.compress(Path("table.csv").read_bytes())
    Path("half.csv.gz").write_bytes(whole[: len(whole) // 2])
    Path("corrupt.csv.gz").write_bytes(whole[:40] + bytes(200) + whole[240:])
    Path("broken.csv.gz").write_bytes(b"\x1f\x8b\x08")
    of_rows = {"data_file": None, "train_rows": None, "validation_rows": None, "test_rows": None}
    recipes = {"table": {}, "recipe": {"data_file": None}, "bare": of_rows | {"data_file": "table.csv"}}
    for name, changes in recipes.items():
        Path(f"{name}.yaml").write_text(yaml.safe_dump(RECIPE | changes))
    options, message = MISTAKES[mistake]
    with pytest.raises(SystemExit) as stopped:
        train_time_series.main(options)
    line = stopped.value.code if isinstance(stopped.value.code, str) else capsys.readouterr().err.rstrip("\n")
    assert message in line
    assert "\n" not in line
    assert stopped.value.code != 0


# The baselines


def test_baselines_by_hand():
    past = torch.tensor([[[NAN, 1.0], [2.0, NAN], [3.0, 5.0], [NAN, 6.0]]])
    assert fill_forward(past).tolist() == [[[0.0, 1.0], [2.0, 1.0], [3.0, 5.0], [3.0, 6.0]]]
    assert repeat_last_value(past, 2).tolist() == [[[3.0, 6.0]] * 2]
    assert repeat_last_season(past, 5, 3)[0, :, 1].tolist() == [1.0, 5.0, 6.0, 1.0, 5.0]


def test_linear_forecaster_is_a_linear_map_of_what_came_after_the_last_value():
    config = QRNNTimeSeriesConfig(context_length=4, prediction_length=3, num_input_channels=2, value_scale=[1.0, 5.0])
    model, past, future = LinearForecaster(config), torch.randn(2, 4, 2), torch.randn(2, 3, 2)
    outputs = model(past, future_values=future)
    expected = past[:, -1:] + torch.einsum("bth,pt->bph", past - past[:, -1:], model.proj.weight)
    expected = expected + model.proj.bias[:, None] * torch.tensor([1.0, 5.0])
    torch.testing.assert_close(outputs.prediction_outputs, expected)
    errors = (expected - future) / torch.tensor([1.0, 5.0])
    torch.testing.assert_close(outputs.loss, errors.square().mean())
    future[0, 0] = NAN
    assert model(past, future_values=future).loss.isfinite()


def test_lstm_beside(run):
    scores, folder = run(architecture="lstm", linear_learning_rate=0.0)
    assert np.isfinite(scores["test"]["mse"])
    assert not (folder / "modeling_qrnn.py").exists()
    config = QRNNTimeSeriesConfig(hidden_size=64, patch_length=24, prediction_length=96, connection="residual")
    model = QRNNForTimeSeriesPrediction(config)
    lstm = equal_lstm(model).eval()
    assert 0.94 < lstm.num_parameters() / model.num_parameters() <= 1
    outputs = lstm(torch.randn(2, 48), future_values=torch.randn(2, 96))
    assert outputs.prediction_outputs.shape == (2, 96) and outputs.loss.isfinite()
