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
"""Tokenizers that the programs train on the spot: words, characters, and a byte-level BPE."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from command_line import one_line_error
from text_data import TextArguments


BEGIN, END, PAD = "<s>", "</s>", "<pad>"
UNKNOWN, END_OF_LINE = "<unk>", "<eos>"  # as in the Penn Treebank's language modelling text


def byte_level_bpe(texts: Iterable[str], vocab_size: int, add_prefix_space: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE: any text can be written in it, and read back byte for byte, but for the marks themselves.

    With `add_prefix_space` a word is cut the same way whether it comes alone or in a text, after a space.
    """
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    bpe.decoder = decoders.ByteLevel()
    if add_prefix_space:  # and the decoder takes the first one away again
        bpe.decoder = decoders.Sequence([bpe.decoder, decoders.Strip(content=" ", left=1)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[PAD, BEGIN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    # A prompt starts as every block in training does.
    marks = processors.TemplateProcessing(
        single=f"{BEGIN} $A",
        pair=f"{BEGIN} $A {END} $B",
        special_tokens=[(token, bpe.token_to_id(token)) for token in (BEGIN, END)],
    )
    # The space before a word is part of its token, but not of the place in the text that is told for it.
    bpe.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), marks])
    return fast_tokenizer(bpe, bos_token=BEGIN, eos_token=END, pad_token=PAD)


def words(texts: Iterable[str], vocab_size: int, min_frequency: int = 1) -> PreTrainedTokenizerFast:
    """One token for each word between white space, the most frequent ones."""
    return word_level(texts, vocab_size, min_frequency, pre_tokenizers.WhitespaceSplit())


def characters(texts: Iterable[str], vocab_size: int, min_frequency: int = 1) -> PreTrainedTokenizerFast:
    """One token for each character, the most frequent ones."""
    cut = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return word_level(texts, vocab_size, min_frequency, cut, decoders.Fuse())


def word_level(
    texts: Iterable[str],
    vocab_size: int,
    min_frequency: int,
    pre_tokenizer: pre_tokenizers.PreTokenizer,
    decoder: decoders.Decoder | None = None,
) -> PreTrainedTokenizerFast:
    """Each piece that the pre-tokenizer leaves is a token. Padding needs none of its own: the mask tells the pads."""
    counts = Counter(piece for text in texts for piece, _ in pre_tokenizer.pre_tokenize_str(text))
    special = [UNKNOWN, END_OF_LINE]  # which the text may hold itself, as that of the Penn Treebank does
    frequent = {piece for piece, count in counts.items() if count >= min_frequency}
    pieces = sorted(frequent - set(special), key=lambda piece: (-counts[piece], piece))
    vocabulary = {piece: index for index, piece in enumerate((special + pieces)[:vocab_size])}
    core = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizer
    core.post_processor = processors.TemplateProcessing(
        single="$A", pair=f"$A {END_OF_LINE} $B", special_tokens=[(END_OF_LINE, vocabulary[END_OF_LINE])]
    )
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


TOKENIZERS = {"word": words, "character": characters, "bpe": byte_level_bpe}


def train_tokenizer(
    data: TextArguments, texts: Mapping[str, Iterable[str]], init_from: str | None = None, of_words: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a run: of a kind above, trained on the texts of its splits, or one that there is.

    Args:
        data: its kind, or its name on the Hub or its folder; and on which splits it is trained.
        texts: those of each split.
        init_from: the folder of the model whose tokenizer it is to be, in place of what `data` says.
        of_words: whether texts will come as lists of words, where no space is before a word.
    """
    name = data.tokenizer
    if init_from is not None or name not in TOKENIZERS:
        return load_tokenizer(data, init_from)
    splits = texts if data.vocabulary_from == "all" else ("train",)
    chosen = itertools.chain.from_iterable(texts[split] for split in splits)
    if name == "bpe":
        return byte_level_bpe(chosen, data.vocab_size, add_prefix_space=of_words)
    return TOKENIZERS[name](chosen, data.vocab_size, data.min_frequency)


def load_tokenizer(data: TextArguments, init_from: str | None) -> PreTrainedTokenizerBase:
    """One that there is, of a trained model or of what `data` names."""
    name = data.tokenizer if init_from is None else init_from
    with one_line_error(f"--tokenizer {name}" if init_from is None else f"--init-from {name}", OSError, ValueError):
        if Path(name).is_absolute() and not Path(name).is_dir():
            raise ValueError("there is no such folder")
        tokenizer = AutoTokenizer.from_pretrained(name)
        if tokenizer.pad_token is None and tokenizer.eos_token is None:
            raise ValueError("it has neither a pad token nor an end token to pad with")
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # what is a pad is told by the mask alone
        return tokenizer


def kind_for(data: TextArguments, init_from: str | None) -> str:
    """The kind of the tokenizer that a run will have, by which its texts are read."""
    if init_from is None and data.tokenizer in TOKENIZERS:
        return data.tokenizer
    return kind_of(load_tokenizer(data, init_from))


def kind_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """What its tokens are: `word`, and white space is lost; or they spell the text, a `character` each or as `bpe`."""
    if tokenizer("\n").input_ids == tokenizer("").input_ids:
        return "word"
    core = getattr(tokenizer, "backend_tokenizer", None)
    return "character" if core is not None and isinstance(core.model, models.WordLevel) else "bpe"


def report_unknown(splits: Mapping[str, Iterable[Iterable[int]]], tokenizer: PreTrainedTokenizerBase) -> None:
    """Tell how many tokens of each split, `(rows, tokens)`, the vocabulary does not have, if it lacks any."""
    if tokenizer.unk_token_id is None:
        return
    for split, rows in splits.items():
        counts = Counter(itertools.chain.from_iterable(rows))
        if counts[tokenizer.unk_token_id]:
            share = counts[tokenizer.unk_token_id] / counts.total()
            print(f"{split}: {share:.2%} of the tokens are {tokenizer.unk_token}, as the text has it or unknown")
