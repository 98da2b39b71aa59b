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

from tokenization import byte_level_bpe, characters, words


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


@pytest.mark.parametrize("make", [characters, byte_level_bpe])
def test_text_is_given_back(make):
    tokenizer = make(TEXTS, 1000)
    for text in TEXTS[1:]:
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
