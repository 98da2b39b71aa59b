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
"""The pipelines of the package."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import pipeline

from modeling_qrnn import QRNNForTimeSeriesPrediction, QRNNTimeSeriesConfig, plot_forecast


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
    assert forecaster(loss="mse", scaling="last_std", value_mean=[0.0], value_std=[1e-9])(frame[["x"]])["x"][
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
    "unknown frequency": (make_frame(), {"frequency": "often"}, "`frequency` must be given, .* got 'often'"),
    "too few stamps": (make_frame(2), {}, "`frequency` must be given, .* 2 time stamps do not tell it"),
    "words": (changed(x="low"), {}, "Column 'x' must hold numbers"),
    "infinite": (changed(x=np.inf), {}, "Column 'x' must be finite, got inf"),
    "unobserved": (changed(y=np.nan), {}, "Column 'y' has no value in the last 40 rows"),
    "unknown target": (make_frame(), {"target": "z"}, "There is no column 'z'"),
    "doubled target": (make_frame(), {"target": ["x", "x"]}, "There is more than one use of 'x'"),
    "no target": (make_frame()[[]], {}, "There is no column to forecast"),
    "covariates": (make_frame(), {"covariates": ["y"]}, r"`covariates` must name the 0 columns .* got \['y'\]"),
    "length": (make_frame(), {"prediction_length": 5}, "`prediction_length` must be between 1 and .*=4, got 5"),
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


def test_plot(forecaster, tmp_path):
    frame = make_frame(60).reset_index(names="stamp")
    table = forecaster()(frame[:50], timestamp_column="stamp")
    figure = plot_forecast(frame[:50], table, "stamp", actual=frame[50:54], path=tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert [axes.get_ylabel() for axes in figure.axes] == ["x", "y"]
    history, actual, centre = figure.axes[1].lines
    np.testing.assert_array_equal(history.get_ydata(), frame["y"][34:50])
    np.testing.assert_array_equal(actual.get_ydata(), frame["y"][50:54])
    np.testing.assert_array_equal(centre.get_ydata(), table["y"]["median"])
    (band,) = figure.axes[1].collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(table["y"]["lower"].min())
    assert heights.max() == pytest.approx(table["y"]["upper"].max())
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
