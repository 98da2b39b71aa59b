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
"""Train a model that forecasts time series from a recipe: a YAML file of data, model and training arguments.

    python scripts/train_time_series.py configuration/training/etth1.yaml --data-file ETTh1.csv
    python scripts/train_time_series.py RECIPE --prediction-length 720  # an option overrides what the recipe sets

The table has a column of time stamps and columns of numbers; a stamp that is left out, and an empty cell, is a missing
value. Its rows are cut into training, validation and test rows, in this order; windows to validate and to test on look
back into the rows before them. Beside the model the test rows are forecast by their last value, by their last season,
and by a linear model that is trained in the same way.

Interrupted at any moment and started again with the same command, it goes on from its last complete checkpoint, to
the same end. The model, its card, the scores, the loss curve and the plot of a forecast are in --output-dir.
"""

import copy
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path


# Where other programs share the cores, OpenMP threads that spin while they wait slow each step many times over. The
# variable is read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pandas as pd
import torch
from accelerate.state import AcceleratorState
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainingArguments, pipeline, set_seed

from command_line import end_process_group, one_line_error, one_line_trainer_error, stop
from curves import plot_forecaster
from forecasting_baselines import LinearForecaster, repeat_last_season, repeat_last_value
from lstm_baseline import in_architecture
from modeling_qrnn import QRNNForTimeSeriesPrediction, QRNNTimeSeriesConfig, plot_forecast
from modeling_qrnn.pipelines_qrnn import choose_targets, known, read_series
from recipes import MISTAKES, ArchitectureArguments, keep_settings, overrides_of, read_recipe
from results import describe_run, publish, report, write_scores
from text_data import SPLITS, UNREADABLE, check_header, held_out_splits, refuse_index
from training import ResumableTrainer, check_training, train_to_the_end


SHARES = {"validation_share": 0.1, "test_share": 0.2}  # of all rows, if neither these nor numbers of rows are given
LINEAR = "linear"  # the linear model: its folder, in that of the run, and its name in the scores


@dataclass
class DataArguments:
    _argument_group_name = "data"

    data_file: str | None = field(default=None, metadata={"help": "A table: .csv, .csv.gz or .parquet."})
    timestamp_column: str = field(default="date", metadata={"help": "The column with the time stamps."})
    frequency: str | None = field(
        default=None, metadata={"help": "The distance of the stamps as pandas writes it; found in them if not given."}
    )
    target_columns: str = field(
        default="", metadata={"help": "The columns to forecast, with commas in between; by default all others."}
    )
    covariate_columns: str = field(
        default="", metadata={"help": "The columns that are known beforehand, and read as they are; with commas, too."}
    )
    train_rows: int | None = field(default=None, metadata={"help": "How many of the first rows to train on."})
    validation_rows: int | None = field(default=None, metadata={"help": "How many of the next to validate on."})
    test_rows: int | None = field(default=None, metadata={"help": "How many of the next to test on."})
    validation_share: float | None = field(
        default=None, metadata={"help": "In place of numbers of rows: a share of all. (default: 0.1)"}
    )
    test_share: float | None = field(default=None, metadata={"help": "The same, for the test. (default: 0.2)"})
    context_length: int = field(default=336, metadata={"help": "How many past values a forecast is made from."})
    prediction_length: int = field(default=96, metadata={"help": "How many values to forecast."})
    season_length: int = field(default=24, metadata={"help": "The season that a baseline repeats, in values."})


@dataclass
class ForecasterArguments(ArchitectureArguments):
    model_overrides: str = field(
        default="{}", metadata={"help": "The fields of QRNNTimeSeriesConfig, as YAML: `{hidden_size: 64, loss: mae}`."}
    )
    linear_learning_rate: float = field(
        default=0.002, metadata={"help": "The learning rate of the linear model beside it; 0 leaves that out."}
    )


ARGUMENTS = (DataArguments, ForecasterArguments, TrainingArguments)


def check_arguments(data: DataArguments, model_args: ForecasterArguments, training: TrainingArguments) -> None:
    check_training(training, set())
    if not model_args.linear_learning_rate >= 0:
        stop(f"--linear-learning-rate must be at least 0, got {model_args.linear_learning_rate}")
    for name in ("context_length", "prediction_length", "season_length"):
        if getattr(data, name) < 1:
            stop(f"--{name.replace('_', '-')} must be at least 1, got {getattr(data, name)}")
    if data.season_length > data.context_length:
        stop(f"--season-length {data.season_length}: a forecast only knows --context-length {data.context_length}")


# --- data ------------------------------------------------------------------------------------------------------------


class Windows(Dataset):
    """Every window whose future lies within some rows, its past in the rows before.

    Args:
        values: `(rows, channels)`, NaN where missing.
        features: `(rows, num_time_features)`.
        begin: the first row of the future of the first window.
        end: the row after the future of the last one.
        context_length: rows of the past.
        prediction_length: rows of the future.
    """

    def __init__(
        self,
        values: torch.Tensor,
        features: torch.Tensor,
        begin: int,
        end: int,
        context_length: int,
        prediction_length: int,
    ):
        self.values, self.features = values, features
        self.starts = range(begin, end - prediction_length + 1)
        self.context_length, self.prediction_length = context_length, prediction_length

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        start = self.starts[index]
        rows = {
            "past": slice(start - self.context_length, start),
            "future": slice(start, start + self.prediction_length),
        }
        window = {f"{part}_values": self.values[span] for part, span in rows.items()}
        if self.features.shape[1]:
            window |= {f"{part}_time_features": self.features[span] for part, span in rows.items()}
        return window


def read_table(data: DataArguments) -> tuple[pd.DataFrame, pd.DateOffset]:
    """Targets and covariates at even stamps, and their distance."""
    if data.data_file is None:
        stop("give a table with --data-file")
    path = Path(data.data_file)
    if not path.is_file():
        stop(f"there is no file {data.data_file!r}")
    name = path.name.removesuffix(".gz")
    if not name.endswith((".csv", ".parquet")):
        stop(f"{path.name}: the name must end in .csv, .csv.gz or .parquet")
    with one_line_error(path.name, *UNREADABLE):
        if name.endswith(".csv"):
            check_header(path)
            frame = pd.read_csv(path)
            refuse_index(frame)
        else:
            frame = pd.read_parquet(path)
        covariates = names_in(data.covariate_columns)
        targets = choose_targets(frame, data.timestamp_column, names_in(data.target_columns) or None, covariates)
        if not data.target_columns:
            check_names(frame, targets)
        if not targets:
            raise ValueError("beside the time stamps and covariates there is no column to forecast")
        series, step = read_series(frame, data.timestamp_column, [*targets, *covariates], data.frequency)
        known(series[covariates])
    return series, step


def check_names(frame: pd.DataFrame, targets: Sequence[str]) -> None:
    """A column without a name, to which pandas gives one, holds the numbers of the rows: no series to forecast."""
    for name in targets:
        if re.fullmatch(r"Unnamed: \d+", str(name)):
            number = frame.columns.get_loc(name) + 1
            raise ValueError(f"column {number} has no name: name it or leave it out, or give --target-columns")


def names_in(columns: str) -> list[str]:
    """The names of columns that commas separate."""
    return [name.strip() for name in columns.split(",") if name.strip()]


def count_rows(data: DataArguments, n_rows: int) -> list[int]:
    """How many rows each split has, by their numbers or by shares of all."""
    counts = [data.train_rows, data.validation_rows, data.test_rows]
    shares = {name: value for name in SHARES if (value := getattr(data, name)) is not None}
    if None not in counts:
        if shares:
            stop("--validation-share and --test-share are in place of --train-rows, --validation-rows and --test-rows")
        return counts
    if any(count is not None for count in counts):
        stop("give all of --train-rows, --validation-rows and --test-rows, or none")
    held_out = tuple({**SHARES, **shares}.values())
    if min(held_out) <= 0 or sum(held_out) >= 1:
        stop(f"--validation-share and --test-share must be above 0, and below 1 together, got {held_out}")
    counts = [int(n_rows * share) for share in held_out]
    return [n_rows - sum(counts), *counts]


def cut_rows(data: DataArguments, n_rows: int) -> dict[str, range]:
    """The rows of each split."""
    counts = count_rows(data, n_rows)
    if sum(counts) > n_rows:
        stop(f"the splits have {sum(counts):,} rows together, but the table has {n_rows:,}")
    ends = [sum(counts[: number + 1]) for number in range(3)]
    needed = {"train": data.context_length + data.prediction_length}
    for split, count in zip(SPLITS, counts, strict=True):
        if count < needed.get(split, data.prediction_length):
            stop(f"the {split} split has {count} rows, too few for a single window")
    return {split: range(end - count, end) for split, end, count in zip(SPLITS, ends, counts, strict=True)}


def make_windows(
    data: DataArguments, series: pd.DataFrame, splits: dict[str, range], device: torch.device
) -> dict[str, Windows]:
    """All windows of each split; those to train on lie within it.

    In float64, which Apple's GPUs do not have: the readings of a meter are large, and what it counts in an hour small.
    """
    n_targets = series.shape[1] - len(names_in(data.covariate_columns))
    table = torch.tensor(series.to_numpy(), dtype=torch.float32 if device.type == "mps" else torch.float64)
    columns = table[:, :n_targets], table[:, n_targets:]
    lengths = data.context_length, data.prediction_length
    begins = {split: rows.start + (data.context_length if split == "train" else 0) for split, rows in splits.items()}
    return {split: Windows(*columns, begins[split], rows.stop, *lengths) for split, rows in splits.items()}


def check_values(data: DataArguments, windows: dict[str, Windows]) -> None:
    """A forecast is learned from values, and scored by them."""
    for split, part in windows.items():
        if part.values[part.starts.start : part.starts[-1] + part.prediction_length].isnan().all():
            stop(f"{Path(data.data_file or '').name}: the {split} split holds no value to forecast")


def describe_data(data: DataArguments, series: pd.DataFrame, splits: dict[str, range]) -> str:
    """One line for the card: the file, its span and its splits."""
    counts = ", ".join(f"{len(rows):,} rows for {split}" for split, rows in splits.items())
    unused = len(series) - splits["test"].stop
    rest = f", the last {unused:,} not used" if unused else ""
    return f"`{Path(data.data_file or '').name}`, {series.index[0]} to {series.index[-1]} ({counts}{rest})"


# --- model -----------------------------------------------------------------------------------------------------------


def make_model(
    model_args: ForecasterArguments, data: DataArguments, training_part: pd.DataFrame
) -> QRNNForTimeSeriesPrediction:
    """The model that the arguments describe, with the units of the training rows."""
    mean, is_flat = training_part.mean(), training_part.max() == training_part.min()
    for name in training_part.columns[mean.isna()]:
        stop(f"column {name!r} has no value in the training rows")
    of_data = {
        "num_input_channels": training_part.shape[1],
        "num_time_features": len(names_in(data.covariate_columns)),
        "value_loc": mean.tolist(),
        "value_scale": training_part.std(ddof=0).mask(is_flat, 1.0).tolist(),  # rounding hides its zero
        "context_length": data.context_length,
        "prediction_length": data.prediction_length,
    }
    with one_line_error(f"--model-overrides {model_args.model_overrides}", *MISTAKES):
        overrides = overrides_of(model_args, QRNNTimeSeriesConfig, of_data)
        if overrides.get("distribution_output") == "negative_binomial":
            del of_data["value_loc"]  # counts are measured from zero
        model = QRNNForTimeSeriesPrediction(QRNNTimeSeriesConfig(**of_data, **overrides))
    return in_architecture(model, model_args.architecture)


def train(model: torch.nn.Module, training: TrainingArguments, windows: dict[str, Windows]) -> Trainer:
    """Train a model, or go on with it."""
    with one_line_trainer_error():
        trainer = ResumableTrainer(model, training, train_dataset=windows["train"], eval_dataset=windows["validation"])
    train_to_the_end(trainer)
    return trainer


def train_linear(
    config: QRNNTimeSeriesConfig, learning_rate: float, training: TrainingArguments, windows: dict[str, Windows]
) -> LinearForecaster:
    """The linear model beside it, in a folder of its own."""
    plugin = getattr(AcceleratorState(), "fsdp_plugin", None)
    if plugin is not None:  # it knows the blocks of the model before, and this one has none
        plugin.transformer_cls_names_to_wrap = None
    training = copy.copy(training)
    training.output_dir = str(Path(training.output_dir) / LINEAR)
    training.learning_rate, training.push_to_hub = learning_rate, False
    set_seed(training.seed)
    model = LinearForecaster(config)
    train(model, training, windows)
    return model.eval()


# --- scores ----------------------------------------------------------------------------------------------------------


Forecast = Callable[[dict[str, torch.Tensor]], torch.Tensor]


def forecast_by(model: QRNNForTimeSeriesPrediction) -> Forecast:
    """The model's forecast of a batch of windows: what it says at once, or the mean of its sample paths."""
    if model.is_direct:
        return lambda past: model(**past).prediction_outputs
    return lambda past: model.generate(**past, seed=0).sequences.mean(dim=1)


@torch.inference_mode()
def score(forecast: Forecast, windows: Windows, std: Sequence[float], device: torch.device) -> dict[str, float | int]:
    """Mean squared and absolute error over all observed values of all windows, in units of the training rows."""
    squares = magnitudes = n_values = 0.0
    for batch in DataLoader(windows, batch_size=128):
        batch = {name: part.to(device) for name, part in batch.items()}
        future = batch.pop("future_values")
        error = (forecast(batch) - future).double() / torch.tensor(std, dtype=torch.float64, device=device)
        error = error[~future.isnan()]
        squares += error.square().sum().item()
        magnitudes += error.abs().sum().item()
        n_values += error.numel()
    return {"mse": squares / n_values, "mae": magnitudes / n_values, "windows": len(windows), "values": int(n_values)}


def score_baselines(
    data: DataArguments, windows: Windows, std: Sequence[float], device: torch.device
) -> dict[str, dict[str, float | int]]:
    """What the last value and the last season are worth on the test rows."""
    length, season = data.prediction_length, data.season_length
    baselines: dict[str, Forecast] = {
        "last value": lambda past: repeat_last_value(past["past_values"], length),
        "last season": lambda past: repeat_last_season(past["past_values"], length, season),
    }
    return {name: score(forecast, windows, std, device) for name, forecast in baselines.items()}


def write_sample(
    data: DataArguments, series: pd.DataFrame, step: pd.DateOffset, windows: Windows, folder: Path
) -> str | None:
    """Load the saved model as anyone would, and forecast the last window that it can, if any; a table, and a plot."""
    covariates = names_in(data.covariate_columns)
    targets = [name for name in series.columns if name not in covariates]
    start = last_start(series[targets], windows)
    if start is None:
        print("There is no sample: no window of the test rows has a value of each column in its past")
        return None
    end = start + data.prediction_length
    options = {"target": targets, "covariates": covariates, "frequency": step}
    if covariates:
        options["future"] = series[start:end]
    past = series[start - data.context_length : start]
    table = pipeline("time-series-forecasting", model=str(folder))(past, **options)
    plot_forecast(past, table, actual=series[start:end], path=folder / "forecast.png")
    return table[targets[-1]].head(6).to_string(float_format="%.3f")


def last_start(targets: pd.DataFrame, windows: Windows) -> int | None:
    """Where the future of the last window begins whose past has a value of each column, without which none is read."""
    length = windows.context_length
    starts = reversed(windows.starts)
    return next((start for start in starts if targets[start - length : start].notna().any().all()), None)


def main(argv: Sequence[str] | None = None) -> None:
    (data, model_args, training), settings = read_recipe(argv, ARGUMENTS, __doc__)
    check_arguments(data, model_args, training)
    folder = Path(training.output_dir)
    series, step = read_table(data)
    splits = cut_rows(data, len(series))
    windows = make_windows(data, series, splits, training.device)
    check_values(data, windows)
    keep_settings(settings, folder)
    if model_args.linear_learning_rate:
        keep_settings(settings, folder / LINEAR)
    set_seed(training.seed)
    training_part = series.iloc[: splits["train"].stop].drop(columns=names_in(data.covariate_columns))
    model = make_model(model_args, data, training_part)
    print(", ".join(f"{split}: {len(part):,} windows" for split, part in windows.items()))
    print(f"{model.config.num_input_channels} variables; {model.num_parameters():,} parameters")

    trainer = train(model, training, windows)
    std, device = model.config.value_scale, model.device
    forecast = forecast_by(model.eval())
    scores = {split: score(forecast, windows[split], std, device) for split in held_out_splits(windows)}
    baselines = score_baselines(data, windows["test"], std, device)
    if model_args.linear_learning_rate:
        linear = train_linear(model.config, model_args.linear_learning_rate, training, windows)
        baselines[LINEAR] = score(lambda past: linear(**past).prediction_outputs, windows["test"], std, device)
    if trainer.is_world_process_zero():
        write_scores({**scores, "baselines": baselines}, folder)
        plot_forecaster(trainer.state.log_history, folder / "loss_curve.png")
        report({**scores, **{f"test, {name}": result for name, result in baselines.items()}})
        if model_args.architecture == "qrnn":
            source = describe_data(data, series, splits)
            run = describe_run(__file__, "time-series-forecasting", source, trainer, settings, scores)
            run |= {"baselines": baselines, "lengths": (data.context_length, data.prediction_length)}
            run["covariates"] = names_in(data.covariate_columns)
            if data.target_columns or run["covariates"]:  # without these all columns are
                run["targets"] = training_part.columns.tolist()
            run["sample"] = write_sample(data, series, step, windows["test"], folder)
            publish(trainer, run, None, {"mse": "mse", "mae": "mae"})


if __name__ == "__main__":
    main()
    end_process_group()
