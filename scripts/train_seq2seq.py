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
"""Train a translator or a summarizer from a recipe: a YAML file of data, model and training arguments.

    python scripts/train_seq2seq.py configuration/training/multi30k.yaml --train-file train.parquet ...
    python scripts/train_seq2seq.py RECIPE --learning-rate 0.001  # an option overrides what the recipe sets

A row holds a source, a text or the list of its sentences, and a target, a text or a list of references, each of which
is trained on. Translations are scored by sacreBLEU, summaries by ROUGE; where the sources are lists of sentences, the
first of each is scored as a summary, too. Interrupted at any moment and started again with the same command, it goes
on from its last complete checkpoint, to the same end. The model, its card, the scores, what it wrote and the curves
are in --output-dir.
"""

import copy
import functools
import os
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal


# Where other programs share the cores, OpenMP threads that spin while they wait slow each step many times over. The
# variable is read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import sacrebleu
from datasets import Dataset
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer as RougeTokenizer
from sacrebleu.metrics import BLEU, CHRF
from torch.utils.data import SequentialSampler
from transformers import (
    DataCollatorForSeq2Seq,
    EvalPrediction,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    pipeline,
    set_seed,
)

from command_line import end_process_group, one_line_trainer_error, stop
from modeling_qrnn import QRNNForConditionalGeneration, TargetLengthLogitsProcessor
from models import make_model
from recipes import ModelArguments, keep_settings, read_recipe
from results import describe_run, publish, report
from text_data import (
    TextArguments,
    check_text_arguments,
    describe_source,
    held_out_splits,
    read_columns,
    read_splits,
    read_text,
    read_text_with_words,
)
from tokenization import report_unknown, train_tokenizer
from training import (
    ResumableTrainer,
    check_predictions,
    check_training,
    train_to_the_end,
    with_validation,
    write_results,
)


METRICS = {"translation": ("bleu", "bleu_lowercased", "chrf"), "summarization": ("rouge1", "rouge2", "rougeL")}
RETURNED = {"translation": "translation_text", "summarization": "summary_text"}
SCORING = {
    "translation": "BLEU ({words}, in mixed and in lower case) and chrF2 are those of sacreBLEU "
    f"{sacrebleu.__version__}, on text as it is.",
    "summarization": "ROUGE F-measures are those of rouge-score, {words}: the mean over the texts, of each the best "
    "of its references.",
}


@dataclass
class DataArguments(TextArguments):
    task: Literal["translation", "summarization"] = field(
        default="translation", metadata={"help": "What the metrics, the pipeline and the card are to be for."}
    )
    text_column: str = field(default="source", metadata={"help": "The column with the source."})
    target_column: str = field(
        default="target", metadata={"help": "The column with the target: a text, or a list of references."}
    )
    tokenizer: str = field(
        default="bpe",
        metadata={"help": "`bpe`, `word` or `character`, trained here; or the name of one on the Hub, or its folder."},
    )
    metric_tokenizer: Literal["13a", "intl", "zh", "char"] | None = field(
        default=None,
        metadata={
            "help": "What the metrics take for words, by the tokenizers of sacreBLEU: `zh` for Chinese, `char` for "
            "other scripts without spaces, `intl` for those with spaces. (default: 13a for BLEU; for ROUGE its own, "
            "which knows the letters a to z alone, and stems)"
        },
    )
    max_source_length: int | None = field(
        default=None, metadata={"help": "Leave out training pairs with a source of more tokens."}
    )
    max_target_length: int | None = field(
        default=None, metadata={"help": "Leave out training pairs with a target of more tokens."}
    )


@dataclass
class WritingArguments:
    """How the trained model writes. All but `alpha` is saved in its `generation_config`, which has no such field."""

    _argument_group_name = "writing"

    num_beams: int = field(default=5, metadata={"help": "Beams of the search."})
    max_new_tokens: int = field(default=64, metadata={"help": "Most tokens of an output."})
    length_penalty: float = field(
        default=1.0, metadata={"help": "The power of the length by which a beam's log-probability is divided."}
    )
    alpha: float | None = field(
        default=None, metadata={"help": "Rank beams by the paper's equation 9 with this alpha, for characters 0.6."}
    )


@dataclass
class TranslatorArguments(ModelArguments):
    model_config: str = field(
        default="translator", metadata={"help": "A file of configuration/models, without .json; or a path."}
    )


ARGUMENTS = (DataArguments, TranslatorArguments, WritingArguments, Seq2SeqTrainingArguments)


def check_arguments(data: DataArguments, writing: WritingArguments, training: Seq2SeqTrainingArguments) -> None:
    check_text_arguments(data)
    check_training(training, {*METRICS[data.task]})
    check_predictions(training)
    limits = {name: getattr(data, name) for name in ("max_source_length", "max_target_length")}
    limits |= {name: getattr(writing, name) for name in ("num_beams", "max_new_tokens")}
    for name, limit in limits.items():
        if limit is not None and limit < 1:
            stop(f"--{name.replace('_', '-')} must be at least 1, got {limit}")
    if writing.alpha is not None and (writing.alpha < 0 or writing.length_penalty != 1):
        stop("--alpha must be at least 0, and does not go with --length-penalty: both rank the beams")
    if writing.num_beams == 1 and (writing.alpha is not None or writing.length_penalty != 1):
        stop("--alpha and --length-penalty rank beams, and --num-beams 1 leaves nothing to rank")
    metric = training.metric_for_best_model
    if metric is not None and metric.removeprefix("eval_") != "loss" and not training.predict_with_generate:
        stop(f"--metric-for-best-model {metric} needs --predict-with-generate")


# --- data ------------------------------------------------------------------------------------------------------------


def read_pairs(data: DataArguments) -> dict[str, Dataset]:
    """The rows of each split: `source`, what comes first in it if it came in sentences, `lead`, and `references`."""
    splits = {}
    for split, (name, rows) in read_splits(data).items():
        columns = read_columns(name, rows, {data.text_column: sentences_of, data.target_column: texts_of})
        sources, references = columns[data.text_column], columns[data.target_column]
        if data.task == "summarization" and data.metric_tokenizer is None:
            check_letters(name, references)
        splits[split] = Dataset.from_dict(
            {
                "source": [" ".join(sentences) for sentences in sources],
                "lead": [sentences[0] for sentences in sources],
                "references": references,
            }
        )
    return splits


def check_letters(name: str, references: Sequence[Sequence[str]]) -> None:
    """Stop where ROUGE's own words would leave out most of what is to be compared."""
    texts = [text.lower() for row in references for text in row]
    n_letters = sum(sum(map(str.isalpha, text)) for text in texts)
    n_counted = sum(len(re.findall("[a-z]", text)) for text in texts)
    if n_counted < n_letters / 2:
        stop(
            f"{name}: of the letters of its summaries ROUGE counts {n_counted / n_letters:.0%}, a to z: give "
            "--metric-tokenizer"
        )


def texts_of(cell: Any) -> list[str]:
    """A text, or several."""
    if not isinstance(cell, list):
        return [read_text_with_words(cell).strip()]
    if not cell:
        raise ValueError("[], which is no text")
    return [read_text_with_words(text).strip() for text in cell]


def sentences_of(cell: Any) -> list[str]:
    """A text, or its sentences; a sentence without words has nothing to read."""
    if not isinstance(cell, list):
        return texts_of(cell)
    sentences = [text for text in cell if read_text(text).strip()]
    if not sentences:
        raise ValueError(f"{cell!r}, which has no words")
    return texts_of(sentences)


def texts_to_learn_from(rows: Dataset) -> list[str]:
    """Both languages: source and target share a vocabulary."""
    return [*rows["source"], *(text for texts in rows["references"] for text in texts)]


def encode(split: str, rows: Dataset, data: DataArguments, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """The tokens of each pair: of a training row one pair for each reference, of others the first alone."""
    chosen = [(row["source"], text) for row in rows for text in row["references"][: None if split == "train" else 1]]
    sources, targets = zip(*chosen, strict=True)
    columns = {
        "input_ids": tokenizer(list(sources))["input_ids"],
        "labels": [
            [*ids, tokenizer.eos_token_id] for ids in tokenizer(list(targets), add_special_tokens=False)["input_ids"]
        ],
    }
    limits = {"input_ids": data.max_source_length, "labels": data.max_target_length}
    if split != "train" or not any(limits.values()):
        return Dataset.from_dict(columns)
    fits = np.ones(len(chosen), dtype=bool)
    for name, limit in limits.items():
        fits &= np.array([limit is None or len(ids) <= limit for ids in columns[name]])
    print(f"train: {(~fits).sum():,} of {len(fits):,} pairs left out, for they are longer than the limits")
    if not fits.any():
        options = {"--max-source-length": data.max_source_length, "--max-target-length": data.max_target_length}
        given = " or ".join(f"{option} {limit}" for option, limit in options.items() if limit is not None)
        stop(f"no training pair is left: {given} is too small")
    return Dataset.from_dict(columns).select(np.flatnonzero(fits))


# --- training --------------------------------------------------------------------------------------------------------


class EpochTimer(TrainerCallback):
    """How long each whole epoch of this process took, without the evaluation at its end, in seconds."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.begin, self.epoch_before = time.perf_counter(), state.epoch or 0.0

    def on_epoch_end(self, args, state, control, **kwargs):
        if state.epoch - self.epoch_before > 1 - 1e-6:  # not one that was resumed, or cut short
            self.seconds.append(time.perf_counter() - self.begin)


class TranslationTrainer(ResumableTrainer, Seq2SeqTrainer):
    """`Seq2SeqTrainer` that keeps the order of the rows, and with an `alpha` ranks beams by the paper's equation 9.

    What is written must stand beside its references, so evaluation is in order even if training goes by length, and
    several processes leave out the rows by which they fill up the last batch.
    """

    alpha: float | None = None

    def _get_eval_sampler(self, eval_dataset):
        return SequentialSampler(eval_dataset)

    def evaluation_loop(self, *args, **kwargs):
        self.gather_function = self.accelerator.gather_for_metrics
        return super().evaluation_loop(*args, **kwargs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None, **options):
        options = options or dict(self._gen_kwargs)
        if self.alpha is not None and options.get("num_beams", 1) > 1:
            lengths, end = inputs["attention_mask"].sum(dim=1), self.model.config.eos_token_id
            options["logits_processor"] = [TargetLengthLogitsProcessor(lengths, end, self.alpha)]
            options["length_penalty"] = 0.0
        chosen = copy.deepcopy(self.model.generation_config)
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys, **options)
        finally:  # it is saved with the model, and Seq2SeqTrainer fills in all that was not chosen
            self.model.generation_config = chosen


def make_trainer(
    model: QRNNForConditionalGeneration,
    training: Seq2SeqTrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    splits: Mapping[str, Dataset],
    measure: Callable[[EvalPrediction], dict[str, float]],
) -> TranslationTrainer:
    with one_line_trainer_error():
        return TranslationTrainer(
            model,
            training,
            train_dataset=splits["train"],
            eval_dataset=splits["validation"],
            processing_class=tokenizer,
            data_collator=DataCollatorForSeq2Seq(tokenizer, model),
            compute_metrics=measure if training.predict_with_generate else None,
        )


# --- scores ----------------------------------------------------------------------------------------------------------


class SacreBLEUWords(RougeTokenizer):
    """The words of ROUGE as a tokenizer of sacreBLEU cuts them, in lower case."""

    def __init__(self, name: str):
        self.cut = BLEU(tokenize=name).tokenizer

    def tokenize(self, text: str) -> list[str]:
        return self.cut(text.lower()).split()


def compare(
    task: str, texts: Sequence[str], references: Sequence[Sequence[str]], words: str | None = None
) -> dict[str, float]:
    """The metrics of a task, in per cent; of several references ROUGE takes the nearest.

    Args:
        task: translation or summarization.
        texts: what was written.
        references: of each text those that it is compared to.
        words: the tokenizer of sacreBLEU that cuts them; `None` for that of each metric.
    """
    if len(texts) != len(references):
        raise ValueError(f"there are {len(texts)} texts, but {len(references)} rows of references")
    if task == "summarization":
        scorer = RougeScorer(METRICS[task], use_stemmer=True, tokenizer=SacreBLEUWords(words) if words else None)
        rows = [scorer.score_multi(row, text) for text, row in zip(texts, references, strict=True)]
        return {name: 100 * statistics.fmean(row[name].fmeasure for row in rows) for name in METRICS[task]}
    by_number = list(zip_longest(*references))  # as sacreBLEU wants them: the first of each row, the second...
    metrics = {"bleu": BLEU(tokenize=words), "bleu_lowercased": BLEU(tokenize=words, lowercase=True), "chrf": CHRF()}
    return {name: metric.corpus_score(texts, by_number).score for name, metric in metrics.items()}


def decode(ids: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    texts = tokenizer.batch_decode(np.where(ids < 0, tokenizer.pad_token_id, ids), skip_special_tokens=True)
    return [text.strip() for text in texts]


def measure(
    prediction: EvalPrediction,
    data: DataArguments,
    tokenizer: PreTrainedTokenizerBase,
    references: Sequence[Sequence[str]],
) -> dict[str, float]:
    return compare(data.task, decode(prediction.predictions, tokenizer), references, data.metric_tokenizer)


def score(
    trainer: TranslationTrainer,
    split: str,
    rows: Dataset,
    encoded: Dataset,
    data: DataArguments,
    writing: WritingArguments,
) -> tuple[dict[str, Any], list[str]]:
    """The figures of a split, and what the model writes there."""
    trainer.args.predict_with_generate, trainer.compute_metrics, trainer.alpha = True, None, writing.alpha
    options = {"num_beams": writing.num_beams, "max_new_tokens": writing.max_new_tokens}
    options["length_penalty"] = writing.length_penalty
    output = trainer.predict(encoded, metric_key_prefix=split, **options)
    texts = decode(output.predictions, trainer.processing_class)
    figures = compare(data.task, texts, rows["references"][:], data.metric_tokenizer)
    return {**figures, "texts": len(rows)}, texts


def score_baseline(
    data: DataArguments, split: str, splits: dict[str, Dataset]
) -> dict[str, dict[str, dict[str, float]]]:
    """What the first sentence is worth as a summary, where sources come in sentences."""
    rows = splits[split]
    if data.task != "summarization" or rows["lead"][:] == rows["source"][:]:
        return {}
    figures = compare(data.task, rows["lead"][:], rows["references"][:], data.metric_tokenizer)
    return {"first sentence": {split: figures}}


def write_texts(texts: Mapping[str, Sequence[str]], folder: Path) -> None:
    """What the model writes for each row of a split, a line each."""
    for split, lines in texts.items():
        (folder / f"{split}.txt").write_text(
            "".join(" ".join(line.split()) + "\n" for line in lines), encoding="utf-8"
        )


def write_sample(folder: Path, task: str, source: str) -> str:
    """Load the saved model as anyone would, and let it write."""
    (answer,) = pipeline(task, model=str(folder))(source)
    return f"{source}\n-> {answer[RETURNED[task]]}"


# --- a run -----------------------------------------------------------------------------------------------------------


def train(
    splits: dict[str, Dataset],
    data: DataArguments,
    model_args: ModelArguments,
    writing: WritingArguments,
    training: Seq2SeqTrainingArguments,
    settings: dict[str, Any],
) -> None:
    """Train the model, or go on with it, and score it; its folder holds all that comes of it."""
    folder = Path(training.output_dir)
    keep_settings(settings, folder)
    set_seed(training.seed)
    texts = {split: texts_to_learn_from(rows) for split, rows in splits.items()}
    tokenizer = train_tokenizer(data, texts, model_args.init_from, of_words=True)
    tokenizer.padding_side = "right"  # before its first token a decoder reads nothing
    encoded = {split: encode(split, rows, data, tokenizer) for split, rows in splits.items()}
    model = make_translator(model_args, tokenizer, writing)
    print(", ".join(f"{split}: {len(rows):,} pairs" for split, rows in encoded.items()))
    for name, column in (("sources", "input_ids"), ("targets", "labels")):
        report_unknown({f"{split} {name}": rows[column] for split, rows in encoded.items()}, tokenizer)
    print(f"{len(tokenizer):,} different tokens; {model.num_parameters():,} parameters")

    references = splits["validation"]["references"][:]
    by_task = functools.partial(measure, data=data, tokenizer=tokenizer, references=references)
    trainer, timer = make_trainer(model, training, tokenizer, encoded, by_task), EpochTimer()
    trainer.add_callback(timer)
    train_to_the_end(trainer)
    scored = {
        split: score(trainer, split, splits[split], encoded[split], data, writing) for split in held_out_splits(splits)
    }
    if trainer.is_world_process_zero():
        scores = {split: result for split, (result, _) in scored.items()}
        baselines = score_baseline(data, list(scores)[-1], splits)
        write_results(trainer, scores, METRICS[data.task][0], baselines=baselines)
        report({f"{split}, {name}": result for name, part in baselines.items() for split, result in part.items()})
        write_texts({split: texts for split, (_, texts) in scored.items()}, folder)
        if timer.seconds:
            print(f"seconds per epoch: {statistics.median(timer.seconds):.1f}, the median of {len(timer.seconds)}")
        if model_args.architecture == "qrnn":
            run = describe_run(__file__, data.task, describe_source(data), trainer, settings, scores)
            run["init_from"], run["baselines"] = model_args.init_from, baselines
            publish_writer(trainer, run, splits, data, writing)


def make_translator(
    model_args: ModelArguments, tokenizer: PreTrainedTokenizerBase, writing: WritingArguments
) -> QRNNForConditionalGeneration:
    if tokenizer.eos_token_id is None:
        stop("--tokenizer: it must have an end token")
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    model = make_model(QRNNForConditionalGeneration, model_args, tokenizer, decoder_start_token_id=start)
    for name in ("num_beams", "max_new_tokens", "length_penalty"):
        setattr(model.generation_config, name, getattr(writing, name))
    return model


def publish_writer(
    trainer: TranslationTrainer,
    run: dict[str, Any],
    splits: dict[str, Dataset],
    data: DataArguments,
    writing: WritingArguments,
) -> None:
    """The card with a sample, and all of it on the Hub if that is wanted."""
    run["figures"], run["decimals"] = [*METRICS[data.task], "texts"], 2
    own = {"translation": "13a", "summarization": "with stemming"}[data.task]
    words = own if data.metric_tokenizer is None else f"{data.metric_tokenizer} of sacreBLEU"
    run["scoring"] = f"{SCORING[data.task].format(words=words)} {describe_search(writing)}"
    last = list(run["scores"])[-1]
    run["sample"] = write_sample(Path(trainer.args.output_dir), data.task, splits[last]["source"][0])
    metric = METRICS[data.task][0]
    publish(trainer, run, data.dataset, {metric: metric})


def describe_search(writing: WritingArguments) -> str:
    if writing.alpha is None:
        return f"Written with {writing.num_beams} beams and a length penalty of {writing.length_penalty:g}."
    return (
        f"Written with {writing.num_beams} beams, ranked by equation 9 of the paper with alpha = {writing.alpha:g}: "
        "`generate` needs a `TargetLengthLogitsProcessor` for that, without which the pipeline may write other texts."
    )


def main(argv: Sequence[str] | None = None) -> None:
    (data, model_args, writing, training), settings = read_recipe(argv, ARGUMENTS, __doc__)
    check_arguments(data, writing, training)
    splits = with_validation(read_pairs(data), data.validation_share, training.seed)
    train(splits, data, model_args, writing, training, settings)


if __name__ == "__main__":
    main()
    end_process_group()
