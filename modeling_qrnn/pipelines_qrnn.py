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
"""Pipelines: `translation` and `summarization`, which Transformers 5 dropped, for any model that fits them; and
`time-series-forecasting` with a QRNN, from a pandas frame to a frame of forecasts, with a plot of them.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from pandas.tseries.frequencies import to_offset
from transformers import GenerationConfig, PreTrainedModel
from transformers.pipelines import Pipeline


class Seq2SeqPipeline(Pipeline):
    """What both pipelines share: a text in, `generate`, and a text out, under the key of the task.

    In a process without the package, a model that was saved by `pipe.save_pretrained(folder)` brings the pipeline:
    `pipeline("translation", model=folder, trust_remote_code=True)`. Such a folder says that it has a pipeline of its
    own, so with the package too either that option is needed or `pipeline_class=TranslationPipeline`, which runs no
    code of the folder.
    """

    return_name: str
    _pipeline_calls_generate = True
    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True
    _default_generation_config = GenerationConfig(max_new_tokens=256, num_beams=4)
    prefix: str | None
    _generate_kwargs: dict[str, Any]

    def __init__(self, model: PreTrainedModel, *args: Any, **kwargs: Any):
        if not (model.can_generate() and model.config.is_encoder_decoder):
            raise ValueError(
                "`model` must be one from text to text that generates, as `AutoModelForSeq2SeqLM` loads it, got "
                f"{type(model).__name__}"
            )
        super().__init__(model, *args, **kwargs)
        # What older models, such as T5, say of a task: the words that ask for it, and options of `generate`.
        of_task = dict((getattr(model.config, "task_specific_params", None) or {}).get(self.task) or {})
        self.prefix = of_task.pop("prefix", self.prefix)
        if "generation_config" not in self._generate_kwargs:
            self._generate_kwargs = {**of_task, **self._generate_kwargs}

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Turn texts into texts.

        Args:
            inputs: a text, a list of texts, or a generator or dataset of them.
            kwargs: `truncation`, as of the tokenizer; `prefix`, put before each text; `return_tensors=True` for token
                ids in place of texts; `clean_up_tokenization_spaces`, as of the tokenizer; `stop_sequence`, a text or
                a list of texts after which to stop; `batch_size`; and any parameter of `generate`, as
                `max_new_tokens` (256 if neither it nor the model's generation config says otherwise), `num_beams`
                (likewise 4) or `num_return_sequences`.

        Returns:
            For a text or a list a list of dicts, one for each text; with several sequences for each, for a list of
            texts a list of such lists; for anything else an iterator.

        Raises:
            ValueError: for something else than text, or a text without a token.
        """
        if isinstance(inputs, list) and not inputs:
            return []
        results = super().__call__(inputs, **kwargs)
        if isinstance(inputs, list) and all(len(result) == 1 for result in results):
            return [result[0] for result in results]
        return results

    def _sanitize_parameters(
        self,
        truncation=None,
        prefix=None,
        return_tensors=None,
        clean_up_tokenization_spaces=None,
        stop_sequence=None,
        **generate_kwargs,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess = {"truncation": truncation, "prefix": prefix}
        postprocess = {
            "return_tensors": return_tensors,
            "clean_up_tokenization_spaces": clean_up_tokenization_spaces,
        }
        if stop_sequence is not None:
            generate_kwargs["stop_strings"] = stop_sequence
        if self.assistant_model is not None:
            generate_kwargs["assistant_model"] = self.assistant_model
        if self.assistant_tokenizer is not None:
            generate_kwargs["assistant_tokenizer"] = self.assistant_tokenizer
        return given(preprocess), generate_kwargs, given(postprocess)

    def preprocess(self, inputs: str, truncation=False, prefix=None, **languages):
        if not isinstance(inputs, str):
            raise ValueError(f"The {self.task} pipeline takes texts, got {type(inputs).__name__}: {inputs!r:.80}")
        text = (prefix if prefix is not None else self.prefix or "") + inputs
        model_inputs = self._tokenize(text, truncation, **languages)
        if model_inputs["input_ids"].shape[1] == 0:
            raise ValueError(f"The {self.task} pipeline takes texts of at least one token, got {inputs!r}")
        model_inputs.pop("token_type_ids", None)
        return model_inputs

    def _tokenize(self, text: str, truncation):
        return self.tokenizer(text, truncation=truncation, return_tensors="pt")

    def _forward(self, model_inputs, **generate_kwargs):
        generate_kwargs = self._prepare_generate_kwargs(generate_kwargs)
        output = self.model.generate(**model_inputs, **{"tokenizer": self.tokenizer, **generate_kwargs})
        output_ids = getattr(output, "sequences", output)  # of `return_dict_in_generate`
        batch_size = model_inputs["input_ids"].shape[0]
        return {"output_ids": output_ids.unflatten(0, (batch_size, -1))}  # (batch, sequences for each text, length)

    def postprocess(self, model_outputs, return_tensors=False, clean_up_tokenization_spaces=False):
        output_ids = model_outputs["output_ids"][0]
        if return_tensors:
            return [{f"{self.return_name}_token_ids": tokens} for tokens in output_ids]
        texts = self.tokenizer.batch_decode(
            output_ids, skip_special_tokens=True, clean_up_tokenization_spaces=clean_up_tokenization_spaces
        )
        return [{f"{self.return_name}_text": text} for text in texts]


class SummarizationPipeline(Seq2SeqPipeline):
    """Summarize texts, as `pipeline("summarization", ...)`.

    Example:
        >>> from transformers import pipeline
        >>> summarize = pipeline("summarization", model="folder-of-a-model")  # doctest: +SKIP
        >>> summarize("A long text ...", max_new_tokens=20)  # doctest: +SKIP
        [{'summary_text': 'A short one'}]
    """

    return_name = "summary"


class TranslationPipeline(Seq2SeqPipeline):
    """Translate texts, as `pipeline("translation", ...)` or, say, `pipeline("translation_de_to_en", ...)`.

    A tokenizer of several languages takes them from the task's name, or from `src_lang` and `tgt_lang`.

    Example:
        >>> from transformers import pipeline
        >>> translate = pipeline("translation_de_to_en", model="folder-of-a-model")  # doctest: +SKIP
        >>> translate(["Guten Morgen", "Danke"], max_new_tokens=20, batch_size=2)  # doctest: +SKIP
        [{'translation_text': 'Good morning'}, {'translation_text': 'Thank you'}]
    """

    return_name = "translation"

    def _sanitize_parameters(self, src_lang=None, tgt_lang=None, **kwargs):  # type: ignore[override]
        is_multilingual = hasattr(self.tokenizer, "_build_translation_inputs")
        if (src_lang or tgt_lang) and not is_multilingual:
            raise ValueError(
                "`src_lang` and `tgt_lang` must be None with a tokenizer that knows no languages, "
                f"got {src_lang!r} and {tgt_lang!r}"
            )
        if is_multilingual and not (src_lang or tgt_lang) and (match := TRANSLATION_TASK.fullmatch(self.task)):
            src_lang, tgt_lang = match.groups()
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        return preprocess | given({"src_lang": src_lang, "tgt_lang": tgt_lang}), forward, postprocess

    def _tokenize(self, text: str, truncation, src_lang=None, tgt_lang=None):
        if not hasattr(self.tokenizer, "_build_translation_inputs"):
            return super()._tokenize(text, truncation)
        languages = {"src_lang": src_lang, "tgt_lang": tgt_lang}
        return self.tokenizer._build_translation_inputs(text, return_tensors="pt", truncation=truncation, **languages)


TRANSLATION_TASK = re.compile("translation_(.+)_to_(.+)")


class TaskAliases(dict):
    """Other names of tasks, as Transformers keeps them, and `translation_xx_to_yy` for any two languages.

    Example:
        >>> aliases = TaskAliases({"ner": "token-classification"})
        >>> aliases["ner"], aliases["translation_de_to_en"], "translation_de" in aliases
        ('token-classification', 'translation', False)
    """

    def __contains__(self, task: object) -> bool:
        return super().__contains__(task) or (isinstance(task, str) and bool(TRANSLATION_TASK.fullmatch(task)))

    def __missing__(self, task: str) -> str:
        if task in self:
            return "translation"
        raise KeyError(task)


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that are not `None`: of a call's parameters only these replace the constructor's."""
    return {name: value for name, value in options.items() if value is not None}


UNCHANGED = object()  # a seed may be None


class TimeSeriesForecastingPipeline(Pipeline):
    """Forecast the columns of a pandas frame, as `pipeline("time-series-forecasting", ...)`.

    In a process without the package, a model that was saved by `pipe.save_pretrained(folder)` brings the pipeline:
    `pipeline("time-series-forecasting", model=folder, trust_remote_code=True)`.

    Example:
        >>> import pandas as pd
        >>> from transformers import pipeline
        >>> from modeling_qrnn import QRNNForTimeSeriesPrediction, QRNNTimeSeriesConfig
        >>> model = QRNNForTimeSeriesPrediction(QRNNTimeSeriesConfig(hidden_size=16, prediction_length=3))
        >>> forecast = pipeline("time-series-forecasting", model=model)
        >>> stamps = pd.date_range("2026-01-01", periods=48, freq="h")
        >>> table = forecast(pd.DataFrame({"load": range(48)}, index=stamps))
        >>> table["load"].columns.tolist(), str(table.index[0])
        (['mean', 'median', 'lower', 'upper'], '2026-01-03 00:00:00')
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, model: PreTrainedModel, *args: Any, **kwargs: Any):
        if not hasattr(model.config, "has_own_channels"):
            raise ValueError(f"`model` must be a QRNNForTimeSeriesPrediction, got {type(model).__name__}")
        super().__init__(model, *args, **kwargs)

    def get_iterator(self, inputs, num_workers, batch_size, *args, **kwargs):
        """One by one whatever the batch size, for frames have stamps and lengths of their own."""
        return super().get_iterator(inputs, num_workers, 1, *args, **kwargs)

    def __call__(self, inputs: pd.DataFrame | list[pd.DataFrame], **kwargs: Any) -> Any:
        """Forecast what follows the last row.

        Args:
            inputs: a frame with a `DatetimeIndex`, or with a column of time stamps, or a list of such frames. Rows
                may come in any order; a stamp that is left out, and a value that is NaN, is a missing value.
            kwargs:
                `timestamp_column`: the column of the stamps, if they are not the index.
                `target`: the column to forecast, or a list of them; by default all but the stamps and covariates.
                `covariates`: the column of the model's covariate, or a list of them in its order; none may be missing.
                `future`: a frame with the stamps and covariates of at least the values to forecast.
                `frequency`: the distance of the stamps as pandas writes it (`"h"`, `"MS"`) or a `pandas.DateOffset`;
                by default that of the index, or found in the stamps.
                `prediction_length`: how many values to forecast; the model's own by default.
                `level`: the probability of the interval; not for a model of points. By default 0.8, or
                that of the widest central interval within the model's quantiles if that is less.
                `num_samples`: how many sample paths mean, median and interval are taken from, 1000 by default; not
                for a model of points.
                `seed`: of the samples, 0 by default, so that the same frame has the same forecast; `None` for torch's
                generator.

        Returns:
            A frame with the stamps of the future, and for each target the columns `mean`, `median`, `lower` and
            `upper`: `table["load"]["lower"]`. A model of quantiles gives no mean; a model of points gives its
            `median` if it learned by the absolute error, and else its `mean`, alone.

        Raises:
            ValueError: for a frame without rows; stamps that cannot be read, are missing, doubled or not evenly
                spaced; a target that is no number, is infinite, or has no value at all in what the model sees;
                unknown covariates, or those of a future that the model does not look at; a number of targets or
                values that the model cannot forecast; or an interval of a model of points, or beyond the model's
                quantiles.
        """
        if isinstance(inputs, list) and not inputs:
            return []
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(
        self,
        timestamp_column=None,
        target=None,
        covariates=None,
        future=None,
        frequency=None,
        prediction_length=None,
        level=None,
        num_samples=None,
        seed=UNCHANGED,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        read = {"timestamp_column": timestamp_column, "target": target, "covariates": covariates, "future": future}
        read |= {"frequency": frequency, "prediction_length": prediction_length}
        if self._is_point and (level is not None or num_samples is not None):
            raise ValueError(
                f"`level` and `num_samples` must be None for a model that learned by loss={self.model.config.loss!r}, "
                f"which tells one number and no interval, got {level} and {num_samples}"
            )
        if level is not None and not 0 < level < 1:
            raise ValueError(f"`level` must be a probability in (0, 1), got {level}")
        for name, number in {"num_samples": num_samples, "prediction_length": prediction_length}.items():
            if number is not None and not (isinstance(number, (int, np.integer)) and number >= 1):
                raise ValueError(f"`{name}` must be an integer of at least 1, got {number}")
        draw = {"num_parallel_samples": num_samples}
        seeded = {} if seed is UNCHANGED else {"seed": seed}
        return given(read), given(draw) | seeded, given({"level": level})

    @property
    def _is_point(self) -> bool:
        return self.model.config.loss not in ("nll", "quantile")

    def preprocess(
        self,
        inputs: pd.DataFrame,
        timestamp_column: str | None = None,
        target: str | Sequence[str] | None = None,
        covariates: str | Sequence[str] = (),
        future: pd.DataFrame | None = None,
        frequency: str | pd.DateOffset | None = None,
        prediction_length: int | None = None,
    ) -> dict[str, Any]:
        for frame in (inputs, inputs if future is None else future):
            if not isinstance(frame, pd.DataFrame):
                raise ValueError(f"The pipeline takes pandas frames, got {type(frame).__name__}")
        config, covariates = self.model.config, as_names(covariates)
        if len(covariates) != config.num_time_features:
            raise ValueError(
                f"`covariates` must name the {config.num_time_features} columns that the model was trained with, "
                f"got {covariates}"
            )
        if future is not None and not covariates:
            raise ValueError("`future` must be None for a model without covariates, got a frame")
        length = config.prediction_length if prediction_length is None else prediction_length
        targets = choose_targets(inputs, timestamp_column, target, covariates)
        if config.has_own_channels and len(targets) != config.num_input_channels:
            raise ValueError(f"`target` must name {config.num_input_channels} columns for this model, got {targets}")
        series, step = read_series(inputs, timestamp_column, [*targets, *covariates], frequency)
        stamps = following_stamps(series.index, step, length)
        if config.context_length is not None:
            series = series.iloc[-config.context_length :]
        for name in targets:
            if series[name].isna().all():
                raise ValueError(f"Column {name!r} has no value in the last {len(series)} rows, which the model sees")
        model_inputs = {"past_values": self._as_batch(series[targets]), "prediction_length": length}
        if covariates:
            model_inputs["past_time_features"] = self._as_batch(known(series[covariates]))
            coming = read_future(future, timestamp_column, covariates, stamps)
            model_inputs["future_time_features"] = self._as_batch(known(coming))
        return {"model_inputs": model_inputs, "stamps": stamps, "targets": targets}

    def _as_batch(self, frame: pd.DataFrame) -> torch.Tensor:
        """`(1, rows, columns)`, in float64, which Apple's GPUs do not have."""
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        return torch.tensor(frame.to_numpy(), dtype=dtype)[None]

    def _forward(self, model_inputs, **draw):
        """The sample paths, `(num_samples, prediction_length, targets)`; of a model of points there is one."""
        inputs = model_inputs.pop("model_inputs")
        draw = {"num_parallel_samples": 1 if self._is_point else 1000, "seed": 0, **draw}
        return {**model_inputs, "paths": self.model.generate(**inputs, **draw).sequences[0]}

    def postprocess(self, model_outputs, level: float | None = None) -> pd.DataFrame:
        statistics = self._statistics(model_outputs["paths"].double(), level)
        table = {
            (name, statistic): values[:, column].tolist()
            for column, name in enumerate(model_outputs["targets"])
            for statistic, values in statistics.items()
        }
        columns = pd.MultiIndex.from_tuples(table, names=["target", "statistic"])
        return pd.DataFrame(table, index=model_outputs["stamps"], columns=columns)

    def _statistics(self, paths: torch.Tensor, level: float | None) -> dict[str, torch.Tensor]:
        """What is told of the paths, each `(prediction_length, targets)`."""
        loss, quantiles = self.model.config.loss, self.model.config.quantiles
        if self._is_point:
            return {"median" if loss == "mae" else "mean": paths[0]}
        spanned = 1 - 2 * max(quantiles[0], 1 - quantiles[-1]) if loss == "quantile" else 1.0
        if level is None:
            level = max(0.0, min(0.8, spanned))
        elif level > spanned + 1e-9:
            raise ValueError(
                f"`level` must not reach beyond the model's quantiles, {quantiles[0]} to {quantiles[-1]}, got {level}"
            )
        outer = (1 - level) / 2
        found = torch.quantile(paths, paths.new_tensor([0.5, outer, 1 - outer]), dim=0)
        mean = {"mean": paths.mean(dim=0)} if loss == "nll" else {}
        return mean | dict(zip(("median", "lower", "upper"), found, strict=True))


def choose_targets(
    frame: pd.DataFrame, timestamp_column: str | None, target: str | Sequence[str] | None, covariates: Sequence[str]
) -> list[str]:
    """The columns to forecast: those that are named, or all but the stamps and covariates."""
    if target is not None:
        return as_names(target)
    others = {timestamp_column, *covariates}
    return [name for name in frame.columns if name not in others]


def as_names(names: Any) -> list:
    """The names of columns, of which one may stand for itself. They need not be strings."""
    return list(names) if pd.api.types.is_list_like(names) else [names]


def read_series(
    frame: pd.DataFrame,
    timestamp_column: str | None,
    columns: Sequence[str],
    frequency: str | pd.DateOffset | None = None,
) -> tuple[pd.DataFrame, pd.DateOffset]:
    """The columns as numbers at evenly spaced stamps in rising order, NaN where the frame has no row.

    Args:
        frame: what a user has.
        timestamp_column: the column of the stamps; `None` for the index.
        columns: which columns to read.
        frequency: the distance of the stamps, as pandas writes it; `None` for that of the index, or to find it.

    Returns:
        The columns, and the distance of their stamps.

    Raises:
        ValueError: see `TimeSeriesForecastingPipeline`.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"day": ["2026-01-04", "2026-01-01", "2026-01-02"], "x": [4.0, 1.0, 2.0]})
        >>> series, step = read_series(frame, "day", ["x"], "D")
        >>> series["x"].tolist(), step
        ([1.0, 2.0, nan, 4.0], <Day>)
    """
    stamps = read_stamps(frame, timestamp_column)
    numbers = frame[list(checked_columns(frame, columns))].apply(as_numbers).set_axis(stamps).sort_index()
    index = numbers.index
    if index.has_duplicates:
        raise ValueError(f"The time stamp {index[index.duplicated()][0]} stands in more than one row")
    grid, step = even_stamps(index, frequency)
    return numbers.reindex(grid), step


def checked_columns(frame: pd.DataFrame, columns: Sequence[str]) -> Sequence[str]:
    """The columns, if they are there, once."""
    if not columns:
        raise ValueError("There is no column to forecast")
    for name in columns:
        found = list(frame.columns).count(name)
        if found != 1 or list(columns).count(name) != 1:
            problem = "no column" if not found else "more than one column" if found > 1 else "more than one use of"
            raise ValueError(f"There is {problem} {name!r}; the columns are {', '.join(map(str, frame.columns))}")
    return columns


def read_stamps(frame: pd.DataFrame, timestamp_column: str | None) -> pd.DatetimeIndex:
    """The time stamps of the rows."""
    if len(frame) == 0:
        raise ValueError("The frame has no rows")
    if timestamp_column is None:
        stamps = frame.index
        if isinstance(stamps.dtype, pd.ArrowDtype) and stamps.dtype.kind == "M":
            stamps = pd.DatetimeIndex(stamps)
        if not isinstance(stamps, pd.DatetimeIndex):
            advice = " (see its `to_timestamp`)" if isinstance(stamps, pd.PeriodIndex) else ""
            raise ValueError(
                "The frame must have a DatetimeIndex, or `timestamp_column` must name its time stamps, got an index "
                f"of {stamps.dtype}{advice}"
            )
    else:
        (name,) = checked_columns(frame, [timestamp_column])
        if pd.api.types.is_numeric_dtype(frame[name]):
            raise ValueError(f"Column {name!r} must hold time stamps, got {frame[name].dtype}: see pandas.to_datetime")
        try:
            stamps = pd.DatetimeIndex(pd.to_datetime(frame[name]), name=name)
        except (ValueError, TypeError) as error:
            raise ValueError(f"Column {name!r} must hold time stamps: {error}") from error
    if stamps.hasnans:
        raise ValueError(f"Row {int(stamps.isna().argmax()) + 1} has no time stamp")
    return stamps


def as_numbers(column: pd.Series) -> pd.Series:
    """A column in float64, NaN where a value is missing."""
    # Of a date pandas would make its nanoseconds or months, and of a complex number its real part.
    if isinstance(column.dtype, pd.PeriodDtype) or column.dtype.kind in "mMc":
        raise ValueError(f"Column {column.name!r} must hold numbers, got {column.dtype}")
    try:
        numbers = pd.to_numeric(column).astype("float64")
    except (ValueError, TypeError) as error:
        raise ValueError(f"Column {column.name!r} must hold numbers: {error}") from error
    if (numbers.abs() == float("inf")).any():
        raise ValueError(
            f"Column {column.name!r} must be finite, got {numbers[numbers.abs() == float('inf')].iloc[0]}"
        )
    return numbers


SHORTEST_MONTH = 28  # days
PARTS_OF_A_DAY = 12, 8, 6, 4, 3, 2  # hours
MOST_STAMPS_PER_ROW = 100  # what has more is no series with gaps, and could fill the memory


def even_stamps(
    index: pd.DatetimeIndex, frequency: str | pd.DateOffset | None
) -> tuple[pd.DatetimeIndex, pd.DateOffset]:
    """All stamps from the first to the last one, at the frequency that is given, that of the index, or one found."""
    if frequency is None and is_forward(index.freq) and type(index.freq) is not pd.DateOffset:
        return index, index.freq
    advice = "Give `frequency`, or round the stamps"
    try:
        step = find_frequency(index) if frequency is None else to_offset(frequency)
    except (ValueError, TypeError) as error:
        raise ValueError(f"`frequency` must be given, as pandas knows it, got {frequency!r}: {error}") from error
    if frequency is None and isinstance(step, pd.offsets.Tick):
        length = 1 + int((index[-1] - index[0]) / pd.Timedelta(step))
        if length > MOST_STAMPS_PER_ROW * len(index):
            raise ValueError(
                f"The time stamps are not evenly spaced: one every {step.freqstr} from {index[0]} to {index[-1]} "
                f"would make {length}, and there are {len(index)} rows. {advice}"
            )
    if not is_forward(step):
        raise ValueError(f"`frequency` must be a distance above 0, got {frequency!r}")
    grid = stamps_between(index, step)
    off_grid = index[~index.isin(grid)]
    if len(off_grid):
        raise ValueError(
            f"The time stamps are not evenly spaced: {off_grid[0]} is not one of those every {step.freqstr} from "
            f"{index[0]}. {advice}"
        )
    return grid, step


def is_forward(step: pd.DateOffset | None) -> bool:
    """Whether there is a step, and it goes on from a stamp to a later one."""
    return step is not None and pd.Timestamp(0) + step > pd.Timestamp(0)


def as_counted(index: pd.DatetimeIndex, step: pd.DateOffset) -> pd.DatetimeIndex:
    """The stamps as a step goes from one to the next: days and more on the clock of the place, hours as they pass."""
    passes = isinstance(step, pd.offsets.Tick) and not isinstance(step, pd.offsets.Day)
    return index if passes else index.tz_localize(None)


def as_told(stamps: pd.DatetimeIndex, zone: Any) -> pd.DatetimeIndex:
    """Stamps of `as_counted` in their zone: later where the clock leaves them out, the first where it repeats them."""
    if zone is None or stamps.tz is not None:
        return stamps
    is_first = np.ones(len(stamps), dtype=bool)
    return stamps.tz_localize(zone, nonexistent="shift_forward", ambiguous=is_first).unique()


def counted_stamps(index: pd.DatetimeIndex, step: pd.DateOffset) -> pd.DatetimeIndex:
    """All stamps from the first to the last one, as they are counted."""
    first, last = as_counted(index[[0, -1]], step)
    counted = pd.date_range(first, last, freq=step, name=index.name)
    earlier = pd.DatetimeIndex([first - pd.Timedelta(hours=1)])
    was_moved = as_told(earlier, index.tz)[0] == index[0]
    if was_moved and not index.isin(as_told(counted, index.tz)).all():
        return pd.date_range(earlier[0], last, freq=step, name=index.name)
    return counted


def stamps_between(index: pd.DatetimeIndex, step: pd.DateOffset) -> pd.DatetimeIndex:
    """All stamps from the first to the last one.

    Example:
        >>> import pandas as pd
        >>> index = pd.DatetimeIndex(["2026-09-05", "2026-09-07"], tz="America/Santiago")  # without a midnight between
        >>> stamps_between(index, pd.offsets.Day()).hour.tolist()
        [0, 1, 0]
    """
    return as_told(counted_stamps(index, step), index.tz)


def find_frequency(index: pd.DatetimeIndex) -> pd.DateOffset:
    """The coarsest number of months at which all stamps stand, or else the smallest distance between two of them.

    Months are counted from the first stamp, by their ends, their starts or its day, so years and quarters may begin
    anywhere. Days are those of the calendar where the stamps have a time zone, and may be business days; so are their
    halves, thirds and so on, where the hours between stamps differ.

    Example:
        >>> import pandas as pd
        >>> find_frequency(pd.DatetimeIndex(["2026-01-01", "2026-02-01", "2026-05-01"]))
        <MonthBegin>
        >>> find_frequency(pd.DatetimeIndex(["2023-06-30", "2024-06-30", "2026-06-30"]))
        <12 * MonthEnds>
    """
    if len(index) < 3:
        raise ValueError(f"{len(index)} time stamps do not tell it")

    def fits(frequency: pd.DateOffset) -> bool:
        return bool(index.isin(stamps_between(index, frequency)).all())

    step, calendar_step = (stamps.to_series().diff().min() for stamps in (index, index.tz_localize(None)))
    days = round(calendar_step / pd.Timedelta(days=1))  # a change of clocks at midnight makes one shorter
    by_months = next(filter(fits, steps_of_months(index)), None) if days >= SHORTEST_MONTH else None
    if by_months is not None:
        return by_months
    business_day = pd.offsets.BDay()
    has_weekend = len(stamps_between(index, business_day)) < len(stamps_between(index, pd.offsets.Day()))
    if days == 1 and has_weekend and fits(business_day):
        return business_day
    if days >= 1 and fits(pd.offsets.Day(days)):
        return pd.offsets.Day(days)
    hours, rest = divmod(step, pd.Timedelta(hours=1))
    passing = to_offset(step) if rest else pd.offsets.Hour(hours)  # 24 hours are not always a day
    n_most = (index[-1] - index[0]) / step
    has_parts = index.tz is not None and step >= pd.Timedelta(hours=1) and n_most <= MOST_STAMPS_PER_ROW * len(index)
    if has_parts and not fits(passing):
        for hours in PARTS_OF_A_DAY:
            if fits(on_the_clock := pd.DateOffset(hours=hours)):
                return on_the_clock
    return passing


def steps_of_months(index: pd.DatetimeIndex) -> list[pd.DateOffset]:
    """Steps of as many months as divide all distances: by ends of months, by starts, and by the day of the first."""
    months = int(np.gcd.reduce(np.diff(12 * index.year + index.month)))
    kinds = [pd.offsets.MonthEnd, pd.offsets.MonthBegin, pd.offsets.BMonthEnd, pd.offsets.BMonthBegin]
    candidates = [kind(months) for kind in kinds]
    if index[0].day <= SHORTEST_MONTH:  # a later one would not come back after February
        candidates.append(pd.DateOffset(months=months))
    return candidates


def following_stamps(index: pd.DatetimeIndex, step: pd.DateOffset, length: int) -> pd.DatetimeIndex:
    """The next stamps at the same distance.

    Example:
        >>> import pandas as pd
        >>> following_stamps(pd.DatetimeIndex(["2026-01-29", "2026-01-30"]), pd.offsets.BDay(), 2).day.tolist()
        [2, 3]
    """
    last = counted_stamps(index, step)[-1]
    end = pd.date_range(last, periods=length + 1, freq=step)[-1] + pd.Timedelta(days=1)  # more than a clock leaves out
    coming = as_told(pd.date_range(last, end, freq=step, name=index.name), index.tz)
    return coming[coming > index[-1]][:length]


def read_future(
    future: pd.DataFrame | None, timestamp_column: str | None, covariates: Sequence[str], stamps: pd.DatetimeIndex
) -> pd.DataFrame:
    """The covariates of the future at its stamps."""
    if future is None:
        raise ValueError(f"`future` must hold the covariates {', '.join(covariates)} of the {len(stamps)} next stamps")
    index = read_stamps(future, timestamp_column)
    if index.has_duplicates:
        raise ValueError(f"The time stamp {index[index.duplicated()][0]} stands in more than one row of `future`")
    return future[list(checked_columns(future, covariates))].apply(as_numbers).set_axis(index).reindex(stamps)


def known(covariates: pd.DataFrame) -> pd.DataFrame:
    """Covariates without gaps."""
    is_missing = covariates.isna()
    if is_missing.any(axis=None):
        name = is_missing.any().idxmax()
        raise ValueError(
            f"Covariate {name!r} must be known at each time stamp, but is missing at {is_missing[name].idxmax()}"
        )
    return covariates


def plot_forecast(
    frame: pd.DataFrame,
    forecast: pd.DataFrame,
    timestamp_column: str | None = None,
    actual: pd.DataFrame | None = None,
    path: str | None = None,
) -> Any:
    """Draw the history, the forecast and its interval, one panel for each target.

    Args:
        frame: the frame that was forecast; what is drawn of it is four times as long as the forecast.
        forecast: what the pipeline made of it.
        timestamp_column: the column of the stamps, if they are not the index, of `frame` and `actual`.
        actual: what really came, if that is known; what comes after the forecast is left out.
        path: a file to write, `.png` for example.

    Returns:
        A matplotlib figure that belongs to no window.

    Raises:
        ImportError: without matplotlib.
        ValueError: for a frame that has none of the targets, or unreadable stamps.

    Example:
        >>> import pandas as pd
        >>> days = pd.date_range("2026-01-01", periods=5)
        >>> columns = pd.MultiIndex.from_product([["x"], ["mean", "lower", "upper"]])
        >>> forecast = pd.DataFrame([[5, 4, 6]], index=days[4:], columns=columns)
        >>> figure = plot_forecast(pd.DataFrame({"x": [1, 2, 3, 4]}, index=days[:4]), forecast)
        >>> len(figure.axes[0].lines)
        2
    """
    try:
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("`plot_forecast` needs matplotlib: pip install matplotlib") from error

    targets = list(forecast.columns.unique(0))
    parts = {"history": (frame, "tab:blue"), "what came": (actual, "black")}
    figure = Figure(figsize=(8, 1 + 2.2 * len(targets)), layout="constrained")
    panels = figure.subplots(len(targets), sharex=True, squeeze=False)[:, 0]
    for axes, target in zip(panels, targets, strict=True):
        table = forecast[target]
        for label, (part, color) in parts.items():
            if part is not None:
                (name,) = checked_columns(part, [target])
                series = as_numbers(part[name]).set_axis(read_stamps(part, timestamp_column)).sort_index()
                series = series.loc[: table.index[-1]].iloc[-4 * len(forecast) :]
                axes.plot(series, color=color, linewidth=1, label=label)
        centre = "median" if "median" in table else "mean"
        axes.plot(table[centre], color="tab:orange", label=f"forecast ({centre})")
        if "lower" in table:
            axes.fill_between(table.index, table["lower"], table["upper"], color="tab:orange", alpha=0.25, linewidth=0)
        axes.set_ylabel(target)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    locator = AutoDateLocator()
    panels[-1].xaxis.set(major_locator=locator, major_formatter=ConciseDateFormatter(locator))
    figure.legend(*panels[0].get_legend_handles_labels(), edgecolor="none", loc="outside upper center", ncols=3)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


__all__ = [
    "Seq2SeqPipeline",
    "SummarizationPipeline",
    "TaskAliases",
    "TimeSeriesForecastingPipeline",
    "TranslationPipeline",
    "plot_forecast",
]
