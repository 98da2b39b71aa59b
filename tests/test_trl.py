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
"""TRL's trainers: what they compute of a QRNN themselves, past its head, is what the model says of each text alone."""

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from modeling_qrnn import QRNNConfig, QRNNForCausalLM


TEXTS = ["a b c d e f g", "b a", "c c d e a f", "g f e d", "e", "a g c e b d f a g", "d d d b"]
SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.fixture
def tokenizer():
    vocabulary = {word: index for index, word in enumerate([*SPECIAL.values(), *"abcdefg"])}
    core = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, **SPECIAL)


@pytest.fixture
def model(redraw):
    config = QRNNConfig(vocab_size=10, hidden_size=16, kernel_size=3, connection="residual", intermediate_size=24)
    return redraw(QRNNForCausalLM(config), std=0.3)


@pytest.fixture
def options(tmp_path):
    """Of a single step that changes nothing."""
    return {
        "output_dir": str(tmp_path),
        "max_steps": 1,
        "learning_rate": 0.0,
        "per_device_train_batch_size": 16,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
    }


def log_probabilities(model, ids: list[int]) -> torch.Tensor:
    """Of each token but the first, the text alone."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1]
    return -F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")


def answer_log_probability(model, prompt: list[int], answer: list[int]) -> float:
    return log_probabilities(model, prompt + answer)[-len(answer) :].sum().item()


@pytest.mark.parametrize(
    "batching",
    [
        {},
        {"packing": True, "packing_strategy": "bfd", "max_length": 12},
        {"padding_free": True, "max_length": None},
    ],
    ids=["padded", "packed", "flattened"],
)
def test_fine_tuning_reads_each_text_alone(batching, model, tokenizer, options):
    texts = Dataset.from_dict({"text": TEXTS})
    trainer = SFTTrainer(model, SFTConfig(**options, **batching), train_dataset=texts, processing_class=tokenizer)
    trainer.train()
    documents = [tokenizer(text + " </s>")["input_ids"] for text in TEXTS]
    expected = -torch.cat([log_probabilities(model.eval(), ids) for ids in documents]).mean()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), abs=1e-4)


def test_preferences_are_compared_without_dropout(model, tokenizer, options):
    """A policy that is the reference has the loss log 2, which dropout in one of them alone would change."""
    config = QRNNConfig.from_dict(model.config.to_dict() | {"embedding_dropout": 0.5, "weight_dropout": 0.5})
    dropping = QRNNForCausalLM(config)
    dropping.load_state_dict(model.state_dict())
    pairs = {"prompt": TEXTS[:3], "chosen": [" a b", " c", " d e f"], "rejected": [" g", " b b b", " a"]}
    trainer = DPOTrainer(
        dropping, model, DPOConfig(**options), train_dataset=Dataset.from_dict(pairs), processing_class=tokenizer
    )
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["loss"] == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-4)
    answers = [(row["prompt_ids"], row["chosen_ids"]) for row in trainer.train_dataset]
    expected = [answer_log_probability(model.eval(), *answer) for answer in answers]
    assert log["logps/chosen"] == pytest.approx(sum(expected) / len(expected), abs=1e-3)
