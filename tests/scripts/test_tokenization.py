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
"""scripts/tokenization.py: the tokenizers that are trained on the spot."""

import pytest

from text_data import TextArguments
from tokenization import byte_level_bpe, characters, train_tokenizer, words


TEXTS = ["the <unk> of N <unk> the", "the cat\n  sat", "Ünïcode \t 漢字 🙂\r\n"]


@pytest.mark.parametrize("make", [words, characters, byte_level_bpe])
def test_ids_are_the_first_numbers(make):
    """Also where the text holds a special token, as that of the Penn Treebank does; else an id has no embedding."""
    tokenizer = make(TEXTS, 300)
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))


def test_words():
    tokenizer = words(TEXTS, 5)
    assert tokenizer.convert_ids_to_tokens(range(3)) == ["<unk>", "<eos>", "the"]
    assert len(tokenizer) == 5
    assert tokenizer.convert_ids_to_tokens(tokenizer("the <unk>  dog\n").input_ids) == ["the", "<unk>", "<unk>"]


@pytest.mark.parametrize(("kind", "known"), [("word", {"the", "cat"}), ("character", set("thecat "))])
def test_what_is_rare_is_unknown(kind, known):
    texts = {"train": ["the cat", "the cats", "the cat"]}
    tokenizer = train_tokenizer(TextArguments(tokenizer=kind, min_frequency=2), texts)
    assert tokenizer.get_vocab().keys() == {"<unk>", "<eos>", *known}


@pytest.mark.parametrize("make", [characters, byte_level_bpe])
def test_text_is_given_back(make):
    tokenizer = make(TEXTS, 1000)
    for text in TEXTS[1:]:
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_words_of_a_list_are_cut_as_in_a_text(kind):
    texts = ["the cat isn't 12 years old .", "the cats aren't", "they are old ."]
    tokenizer = train_tokenizer(TextArguments(tokenizer=kind, vocab_size=280), {"train": texts}, of_words=True)
    for text in texts:
        encoded = tokenizer(text.split(), is_split_into_words=True)
        assert encoded.input_ids == tokenizer(text).input_ids
        assert [word for word in encoded.word_ids() if word is not None][-1] == len(text.split()) - 1
        if kind == "bpe":  # the space that was put before the first word is not given back
            assert tokenizer.decode(encoded.input_ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("kind", ["word", "character", "bpe"])
def test_pairs_are_told_apart(kind):
    tokenizer = train_tokenizer(TextArguments(tokenizer=kind), {"train": ["a b c"]})
    assert tokenizer("a b", "c").input_ids != tokenizer("a", "b c").input_ids
    assert len(tokenizer("a", "b").input_ids) == len(tokenizer("a").input_ids) + 2


def test_test_texts_are_in_the_vocabulary_only_if_that_is_asked_for():
    texts = {"train": ["a b"], "test": ["c"]}
    for splits, known in (("train", False), ("all", True)):
        tokenizer = train_tokenizer(TextArguments(vocabulary_from=splits), texts)
        assert ("c" in tokenizer.get_vocab()) is known


def test_given_tokenizers_pad(tmp_path, capsys):
    """With their end token, if they have no other; the name of what is missing is told in one line."""
    tokenizer = words(TEXTS, 10)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert train_tokenizer(TextArguments(tokenizer=str(tmp_path)), {}).pad_token == "<eos>"
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    for name in (str(tmp_path), str(tmp_path / "none")):
        with pytest.raises(SystemExit, match=f"--tokenizer {name}: "):
            train_tokenizer(TextArguments(tokenizer=name), {})
