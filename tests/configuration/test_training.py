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
"""configuration/training: the smallest version of each recipe trains, from its file."""

import json
import random
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import train_language_model


RECIPES = sorted(set((Path(__file__).parents[2] / "configuration/training").glob("*.yaml")))
SMALL = {"embedding_size": 12, "hidden_size": 12, "num_hidden_layers": 2}
CHANGES = {
    "tiny-shakespeare": {**SMALL, "intermediate_size": 16},
    "ptb-paper": SMALL,
    "ptb-awd": {**SMALL, "kernel_size": [2, 1]},
}
WRITTEN = {"model.safetensors", "tokenizer.json", "README.md", "scores.json", "loss_curve.png"}


def make_text(seed: int, n_lines: int = 60) -> str:
    draw = random.Random(seed)
    words = [f"{consonant}{vowel}" for consonant in "bcdfg" for vowel in "aeiou"]
    return "\n".join(" ".join(draw.choices(words, k=draw.randint(3, 12))) for _ in range(n_lines))


def test_every_recipe_is_tried():
    assert {path.stem for path in RECIPES} == {*CHANGES, "quickstart"}


@pytest.mark.parametrize("name", CHANGES)
def test_recipe_trains(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, split in enumerate(("train", "validation", "test")):
        Path(f"{split}.txt").write_text(make_text(seed))
    splits = ("train",) if name == "tiny-shakespeare" else ("train", "validation", "test")
    files = [option for split in splits for option in (f"--{split}-file", f"{split}.txt")]
    smaller = ["--max-steps", "6", "--eval-strategy", "steps", "--eval-steps", "3", "--logging-steps", "2"]
    smaller += ["--per-device-train-batch-size", "4", "--bptt", "8", "--disable-tqdm", "true"]
    recipe = next(path for path in RECIPES if path.stem == name)
    train_language_model.main([str(recipe), *files, *smaller, "--model-overrides", json.dumps(CHANGES[name])])
    folder = Path(f"{name}-output")
    assert {path.name for path in folder.iterdir()} >= WRITTEN
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer)
    prompt = tokenizer("ba be", return_tensors="pt")
    assert model.generate(**prompt, min_new_tokens=3, max_new_tokens=3).shape[1] == prompt.input_ids.shape[1] + 3
