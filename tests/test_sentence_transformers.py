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
"""sentence-transformers: a QRNN as the body of a sentence encoder."""

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from modeling_qrnn import QRNNConfig, QRNNModel


TEXTS = ["a b c d e f g", "b a", "c c d e a f a b c", "e"]


@pytest.fixture(params=[False, True], ids=["forward", "bidirectional"])
def folder(request, redraw, tmp_path):
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<unk>", *"abcdefg"])}
    core = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>").save_pretrained(tmp_path)
    config = QRNNConfig(vocab_size=len(vocabulary), hidden_size=16, kernel_size=3, bidirectional=request.param)
    redraw(QRNNModel(config)).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", ["mean", "max", "lasttoken"])
def test_a_sentence_in_a_batch_is_encoded_as_alone(pooling, side, folder):
    body = Transformer(str(folder), processor_kwargs={"padding_side": side})
    encoder = SentenceTransformer(modules=[body, Pooling(16, pooling_mode=pooling)], device="cpu")
    alone = np.stack([encoder.encode(text) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode(TEXTS), alone, atol=1e-6)
    hidden_states = QRNNModel.from_pretrained(folder)(**encoder.tokenizer(TEXTS[:1], return_tensors="pt"))[0]
    expected = {"mean": hidden_states.mean(1), "max": hidden_states.amax(1), "lasttoken": hidden_states[:, -1]}
    torch.testing.assert_close(torch.from_numpy(alone[:1]), expected[pooling].detach())


def test_an_encoder_is_saved_and_loaded(folder, tmp_path):
    encoder = SentenceTransformer(modules=[Transformer(str(folder)), Pooling(16)], device="cpu")
    encoder.save_pretrained(str(tmp_path / "encoder"))
    loaded = SentenceTransformer(str(tmp_path / "encoder"), device="cpu", trust_remote_code=True)
    np.testing.assert_array_equal(loaded.encode(TEXTS), encoder.encode(TEXTS))
