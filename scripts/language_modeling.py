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
"""What the programs that train language models share: tokenizers, the curve, the sample."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
import torch
from matplotlib.figure import Figure
from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, pipeline, set_seed


BEGIN, END, PAD = "<s>", "</s>", "<pad>"
UNKNOWN, END_OF_LINE = "<unk>", "<eos>"  # as in the Penn Treebank's language modelling text


def byte_level_bpe(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE: any text can be written in it, and read back byte for byte."""
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[PAD, BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    # A prompt starts as every block in training does.
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, bpe.token_to_id(BEGIN))]
    )
    return fast_tokenizer(bpe, bos_token=BEGIN, eos_token=END, pad_token=PAD)


def words(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """One token for each word between white space, the most frequent ones."""
    return word_level(texts, vocab_size, pre_tokenizers.WhitespaceSplit())


def characters(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """One token for each character, the most frequent ones."""
    return word_level(texts, vocab_size, pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"), decoders.Fuse())


def word_level(
    texts: Iterable[str],
    vocab_size: int,
    pre_tokenizer: pre_tokenizers.PreTokenizer,
    decoder: decoders.Decoder | None = None,
) -> PreTrainedTokenizerFast:
    """Each piece that the pre-tokenizer leaves is a token. Padding needs none of its own: the mask tells the pads."""
    counts = Counter(piece for text in texts for piece, _ in pre_tokenizer.pre_tokenize_str(text))
    special = [UNKNOWN, END_OF_LINE]  # which the text may hold itself, as that of the Penn Treebank does
    pieces = sorted(counts.keys() - set(special), key=lambda piece: (-counts[piece], piece))
    vocabulary = {piece: index for index, piece in enumerate((special + pieces)[:vocab_size])}
    core = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizer
    if decoder is not None:
        core.decoder = decoder
    return fast_tokenizer(core, unk_token=UNKNOWN, eos_token=END_OF_LINE, pad_token=END_OF_LINE)


def fast_tokenizer(core: tokenizers.Tokenizer, **special_tokens: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **special_tokens,
    )


def bits(nats: float, n_parts: int) -> float:
    """What so many nats are in bits for each part: each byte, character or token."""
    return nats / math.log(2) / n_parts


def plot_loss(
    trained: Sequence[tuple[float, float]],
    measured: Sequence[tuple[float, float]],
    unit: str,
    path: Path,
    baselines: dict[str, float] | None = None,
) -> None:
    """Training and held-out loss over the steps, each a list of (step, loss), beside constant baselines."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*trained, strict=True), color="tab:blue", label="training (with dropout)")
    label = f"held out: {measured[-1][1]:.2f}"
    axes.plot(*zip(*measured, strict=True), color="tab:orange", marker="o", markersize=4, label=label)
    for (name, value), linestyle in zip((baselines or {}).items(), ("--", ":"), strict=False):
        axes.axhline(value, color="dimgray", linestyle=linestyle, label=f"held out, {name}: {value:.2f}")
    axes.set(xlabel="step", ylabel=unit, title="Loss of the QRNN language model")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(edgecolor="none", framealpha=0.9)
    figure.savefig(path, dpi=150)


def write_sample(folder: Path, prompt: str, seed: int, max_new_tokens: int = 120) -> str:
    """Load the saved model as anyone would, and let it continue the prompt."""
    generator = pipeline(
        "text-generation",
        model=AutoModelForCausalLM.from_pretrained(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder),
    )
    set_seed(seed)
    (output,) = generator(prompt, max_new_tokens=max_new_tokens, do_sample=True, temperature=0.8, top_p=0.95)
    return output["generated_text"]


def describe_device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    n_threads = torch.get_num_threads()
    return f"CPU, {n_threads} thread{'s' if n_threads > 1 else ''}"
