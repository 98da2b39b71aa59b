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
"""Train a model that transcribes speech, by CTC, from a recipe: a YAML file of data, model and training.

    python scripts/train_ctc.py configuration/training/fsdd-strings.yaml --train-file train.parquet --test-file ...
    python scripts/train_ctc.py RECIPE --learning-rate 0.001  # an option overrides the recipe

A row holds a recording, as a list of samples beside a sampling rate, as the path of a WAV file (mono, 16 bits) or as
audio of the Hub, and its transcript, a text or a label with a name. With --strings N each row is a word, and N
utterances to train on are made of one to --max-words of them with pauses in between; others to validate and to test
on, of the rows of those splits. A model of one direction transcribes each test recording in pieces, too, as if it came
live. Interrupted at any moment and started again with the same command, it goes on from its last complete checkpoint,
to the same end. The model, its card, the scores and the curves are in --output-dir.
"""

import functools
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


# Where other programs share the cores, OpenMP threads that spin while they wait slow each step many times over. The
# variable is read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import jiwer
import numpy as np
import torch
from datasets import Dataset
from transformers import EvalPrediction, Trainer, TrainingArguments, Wav2Vec2CTCTokenizer, pipeline, set_seed

from audio_data import AudioArguments, AudioReader, at_speeds, check_audio_arguments, make_rows, speeds_of
from classification import NOT_SCORED, make_trainer, predict
from command_line import end_process_group, stop
from labels import read_label
from modeling_qrnn import QRNNForCTC, QRNNProcessor
from recipes import keep_settings, read_recipe, write_changed
from results import describe_run, publish
from speech import SpeechArguments, as_examples, describe_sizes, extract, make_extractor, make_model
from text_data import SPLITS, describe_source, feature_of, held_out_splits, read_splits, read_text_with_words
from training import check_training, train_to_the_end, with_validation, write_results


# The blank; the space, as Transformers' CTC tokenizers write it; and what stands for a character that the training
# transcripts have not: one character, so that it counts as one that the model cannot write.
BLANK, SPACE, UNKNOWN = "<pad>", "|", "\ufffd"
ERROR_RATES = ("character_error_rate", "word_error_rate")
# Least and greatest amplitude of the noise in pauses: as at the edges of real recordings, which are never silent
FAINT = 5 / 32768, 200 / 32768


@dataclass
class DataArguments(AudioArguments):
    text_column: str = field(default="text", metadata={"help": "The column with the transcript, or a named label."})
    strings: int = field(
        default=0, metadata={"help": "Make so many utterances to train on, each of several rows with pauses between."}
    )
    strings_test: int = field(default=500, metadata={"help": "The same, to validate on and to test on."})
    max_words: int = field(default=8, metadata={"help": "Most rows of such an utterance; the least is one."})
    min_pause: float = field(default=0.1, metadata={"help": "The shortest pause between them, in seconds."})
    max_pause: float = field(default=0.5, metadata={"help": "The longest one."})
    word_separator: str = field(
        default=" ", metadata={"help": "What is between their transcripts, by default a space."}
    )


ARGUMENTS = (DataArguments, SpeechArguments, TrainingArguments)


def check_arguments(data: DataArguments, training: TrainingArguments) -> None:
    check_audio_arguments(data)
    check_training(training, {*ERROR_RATES}, smaller_is_better=True)
    if training.label_smoothing_factor:
        stop(f"--label-smoothing-factor must be 0, got {training.label_smoothing_factor}: CTC has no label for a step")
    for name in ("strings", "strings_test", "max_words"):
        least = 0 if name == "strings" else 1
        if getattr(data, name) < least:
            stop(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(data, name)}")
    if not 0 <= data.min_pause <= data.max_pause < math.inf:
        stop(f"--min-pause and --max-pause must rise from 0 on, got {data.min_pause} and {data.max_pause}")
    if SPACE in data.word_separator or UNKNOWN in data.word_separator:
        stop(f"--word-separator must be without {SPACE!r} and {UNKNOWN!r}, got {data.word_separator!r}")


# --- data ------------------------------------------------------------------------------------------------------------


def read_utterances(data: DataArguments) -> tuple[dict[str, Dataset], int]:
    """The rows of each split, `audio`, `text` and `origin`; and the sampling rate."""
    splits, reader = {}, AudioReader(data)
    for split, (name, rows) in read_splits(data).items():
        readers = {data.text_column: transcript_reader(feature_of(rows, data.text_column))}
        columns = reader.read_columns(name, rows, readers)
        texts = columns[data.text_column]
        origins = [f"{name}: row {number}" for number in range(1, len(texts) + 1)]
        splits[split] = make_rows(audio=columns[data.audio_column], text=texts, origin=origins)
    return splits, reader.sampling_rate


def transcript_reader(feature: Any) -> Callable[[Any], str]:
    """A reader of transcripts, with one space between their words."""

    def read(cell: Any) -> str:
        text = read_text_with_words(read_label(cell, feature) if isinstance(cell, int) else cell)
        if SPACE in text or UNKNOWN in text:
            raise ValueError(f"{text!r}, and {SPACE!r} and {UNKNOWN!r} stand for spaces and unknown characters")
        return " ".join(text.split())

    return read


def make_strings(split: str, rows: Dataset, n_strings: int, data: DataArguments, rate: int, seed: int) -> Dataset:
    """Utterances of random rows, with pauses between them, each of a faint noise of its own loudness."""
    draw = np.random.default_rng([seed, SPLITS.index(split)])
    words, texts = [row["audio"] for row in rows], rows["text"][:]
    audio, transcripts = [], []
    for _ in range(n_strings):
        chosen = draw.integers(len(rows), size=draw.integers(1, data.max_words, endpoint=True))
        parts = [words[chosen[0]]]
        for number in chosen[1:]:
            length = round(rate * draw.uniform(data.min_pause, data.max_pause))
            loudness = np.exp(draw.uniform(*np.log(FAINT)))
            parts += [draw.uniform(-loudness, loudness, length).astype(np.float32), words[number]]
        audio.append(np.concatenate(parts))
        transcripts.append(data.word_separator.join(texts[number] for number in chosen))
    origins = [f"{split}, string {number}" for number in range(1, n_strings + 1)]
    return make_rows(audio=audio, text=transcripts, origin=origins)


def make_tokenizer(texts: Sequence[str], folder: Path) -> Wav2Vec2CTCTokenizer:
    """One token for each character of the transcripts."""
    characters = sorted({*"".join(texts)} - {" "})
    vocabulary = {token: number for number, token in enumerate([BLANK, SPACE, UNKNOWN, *characters])}
    path = folder / "vocab.json"
    write_changed(path, json.dumps(vocabulary, ensure_ascii=False))
    names = {"bos_token": None, "eos_token": None, "unk_token": UNKNOWN, "pad_token": BLANK}
    return Wav2Vec2CTCTokenizer(path, **names, word_delimiter_token=SPACE)


def encode(rows: Dataset, processor: QRNNProcessor, ratio: int) -> list[dict[str, Any]]:
    """The frames and the tokens of each row, of which there must be enough: `ratio` frames make one step."""
    features = extract(rows, processor.feature_extractor)
    labels = [processor.tokenizer(text).input_ids for text in rows["text"]]
    for row, frames, tokens in zip(rows, features, labels, strict=True):
        n_steps = -(-len(frames) // ratio)
        n_needed = len(tokens) + sum(token == last for token, last in zip(tokens[1:], tokens, strict=False))
        if n_needed > n_steps:
            stop(
                f"{row['origin']}: the transcript '{row['text']}' needs {n_needed} steps, and its audio makes "
                f"{n_steps}: leave it out, or lower `stride` in --model-overrides"
            )
    return as_examples(features, labels)


# --- scores ----------------------------------------------------------------------------------------------------------


def texts_of(prediction: EvalPrediction, tokenizer: Wav2Vec2CTCTokenizer) -> tuple[list[str], list[str]]:
    """What was said, as far as the tokenizer can write it, and what the model writes."""
    padded = [
        np.where(part == NOT_SCORED, tokenizer.pad_token_id, part)
        for part in (prediction.label_ids, prediction.predictions)
    ]
    said = tokenizer.batch_decode(padded[0], group_tokens=False)
    return said, tokenizer.batch_decode(padded[1])


def measure_texts(said: Sequence[str], written: Sequence[str]) -> dict[str, float]:
    rates = {"character_error_rate": jiwer.cer([*said], [*written]), "word_error_rate": jiwer.wer([*said], [*written])}
    if "".join(said).replace(" ", "").isdecimal():
        digits = ([text.replace(" ", "") for text in texts] for texts in (said, written))
        rates["digit_error_rate"] = jiwer.cer(*digits)
    return {name: float(rate) for name, rate in rates.items()}


def measure(prediction: EvalPrediction, tokenizer: Wav2Vec2CTCTokenizer) -> dict[str, float]:
    return measure_texts(*texts_of(prediction, tokenizer))


def score(trainer: Trainer, split: str, rows: Sequence[dict]) -> dict[str, Any]:
    _, _, metrics = predict(trainer, split, rows)
    figures = {name: value for name, value in metrics.items() if name == "loss" or name.endswith("_error_rate")}
    return {**figures, "recordings": len(rows)}


@torch.no_grad()
def count_equal_streams(model: QRNNForCTC, processor: QRNNProcessor, rows: Dataset, seed: int) -> int:
    """Of how many recordings the text is the same whether they are heard whole or as they come, in random pieces."""
    rate = processor.feature_extractor.sampling_rate
    transcriber, draw = processor.transcriber(model), np.random.default_rng(seed)
    n_equal = 0
    for row in rows:
        features = processor(audio=row["audio"], sampling_rate=rate, return_tensors="pt").to(model.device)
        whole = processor.decode(model(**features).logits[0].argmax(dim=-1))
        pieces = [transcriber.push(piece, rate) for piece in cut(row["audio"], rate // 2, draw)]
        n_equal += "".join(pieces) + transcriber.finish() == whole
    return n_equal


def cut(audio: np.ndarray, longest: int, draw: np.random.Generator) -> Iterator[np.ndarray]:
    """Pieces of random lengths."""
    while len(audio):
        length = draw.integers(1, longest, endpoint=True)
        yield audio[:length]
        audio = audio[length:]


def write_sample(folder: Path, row: dict[str, Any], sampling_rate: int) -> str:
    """Load the saved model as anyone would, and transcribe a recording."""
    transcribe = pipeline("automatic-speech-recognition", model=str(folder))
    return f"{row['text']}\n-> {transcribe({'raw': row['audio'], 'sampling_rate': sampling_rate})['text']}"


# --- training --------------------------------------------------------------------------------------------------------


def train(
    splits: dict[str, Dataset],
    sampling_rate: int,
    data: DataArguments,
    model_args: SpeechArguments,
    training: TrainingArguments,
    settings: dict[str, Any],
) -> None:
    """Train the model, or go on with it, and score it; its folder holds all that comes of it."""
    folder = Path(training.output_dir)
    keep_settings(settings, folder)
    set_seed(training.seed)
    extractor = make_extractor(model_args, splits["train"], sampling_rate)
    processor = QRNNProcessor(extractor, make_tokenizer(splits["train"]["text"], folder))
    model = make_model(QRNNForCTC, model_args, extractor, vocab_size=len(processor.tokenizer))
    encoded = {split: encode(rows, processor, model.config.subsampling_ratio) for split, rows in splits.items()}
    print(", ".join(f"{split}: {describe_sizes(rows, sampling_rate)}" for split, rows in splits.items()))
    print(f"{len(processor.tokenizer)} different tokens; {model.num_parameters():,} parameters")

    by_texts = functools.partial(measure, tokenizer=processor.tokenizer)
    trainer = make_trainer(model, training, processor, encoded, processor.collate, by_texts)
    train_to_the_end(trainer)
    held_out = held_out_splits(encoded)
    scores = {split: score(trainer, split, encoded[split]) for split in held_out}
    last = held_out[-1]
    if not model.config.bidirectional:  # by each process, for each may have but a part of the weights
        scores[last]["equal_streams"] = count_equal_streams(model.eval(), processor, splits[last], training.seed)
    if trainer.is_world_process_zero():
        write_results(trainer, scores, ERROR_RATES[0], choose=min)
        if model_args.architecture == "qrnn":
            run = describe_run(
                __file__, "automatic-speech-recognition", describe(data, splits), trainer, settings, scores
            )
            run["figures"] = [name for name in scores[last] if name != "equal_streams"]
            run["scoring"], run["sampling_rate"] = describe_scoring(scores[last]), sampling_rate
            run["sample"] = write_sample(folder, splits[last][0], sampling_rate)
            publish(trainer, run, data.dataset, {"cer": "character_error_rate", "wer": "word_error_rate"})


def describe(data: DataArguments, splits: dict[str, Dataset]) -> str:
    if not data.strings:
        return describe_source(data)
    counts = ", ".join(f"{len(splits[split]):,} for {split}" for split in SPLITS if split in splits)
    return (
        f"utterances of 1 to {data.max_words} recordings with pauses of {data.min_pause:g} to {data.max_pause:g} "
        f"seconds ({counts}), made of {describe_source(data)}"
    )


def describe_scoring(scores: dict[str, Any]) -> str:
    text = (
        "Error rates, by jiwer, are edits over characters or words, of all recordings together. The loss is in nats "
        "per token. The most probable token of each step is written, without a language model."
    )
    if "digit_error_rate" in scores:
        text += " The digit error rate is that of characters without the spaces."
    if "equal_streams" in scores:
        text += (
            f" Heard in random pieces, as it comes, the audio gave the same text in {scores['equal_streams']:,} of "
            f"{scores['recordings']:,} recordings."
        )
    return text


def main(argv: Sequence[str] | None = None) -> None:
    (data, model_args, training), settings = read_recipe(argv, ARGUMENTS, __doc__)
    check_arguments(data, training)
    splits, sampling_rate = read_utterances(data)
    splits = with_validation(splits, data.validation_share, training.seed)
    splits = {**splits, "train": at_speeds(splits["train"], speeds_of(data))}
    if data.strings:
        counts = {split: data.strings if split == "train" else data.strings_test for split in splits}
        splits = {
            split: make_strings(split, rows, counts[split], data, sampling_rate, training.seed)
            for split, rows in splits.items()
        }
    train(splits, sampling_rate, data, model_args, training, settings)


if __name__ == "__main__":
    main()
    end_process_group()
