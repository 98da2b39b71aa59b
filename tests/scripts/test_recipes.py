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
"""scripts/recipes.py: what the processes of a run keep of its settings, and what --help says."""

import pytest
import torch

from modeling_qrnn.trainer_qrnn import QRNNTrainingArguments
from recipes import ModelArguments, RecipeParser, keep_settings, read_recipe


def test_settings_are_whole_while_they_are_read(tmp_path):
    """The processes of a run each keep them, and each read what another is writing."""
    keep_settings({"seed": 1}, tmp_path)
    file = tmp_path / "recipe.yaml"
    with file.open() as being_read:
        keep_settings({"seed": 1, "logging_steps": 2}, tmp_path)
        assert being_read.read() == "seed: 1\n"
    before = file.stat()
    keep_settings({"seed": 1, "logging_steps": 2}, tmp_path)
    after = file.stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.yaml", "digests.yaml"}


def test_help_names_defaults(capsys):
    """Those that say something, and for what turns an option off, what it does."""
    with pytest.raises(SystemExit):
        RecipeParser((ModelArguments, QRNNTrainingArguments), "A line.\n\n    and an example").parse_args(["--help"])
    told = capsys.readouterr().out
    assert "\n\n    and an example\n" in told
    told = " ".join(told.split())
    assert "or a path. (default: qrnn-small)" in told
    assert "Without --bptt-jitter." in told
    assert "(default: None)" not in told and "(default: )" not in told


def test_precision_of_products_is_set_for_the_process(tmp_path, monkeypatch):
    """And is part of what a run must be continued with."""
    chosen = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", chosen.append)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("seed: 1\n", encoding="utf-8")
    arguments = ModelArguments, QRNNTrainingArguments
    _, settings = read_recipe([str(recipe)], arguments, "A line.")
    assert chosen == [] and "float32_matmul_precision" not in settings
    _, settings = read_recipe([str(recipe), "--float32-matmul-precision", "medium"], arguments, "A line.")
    assert chosen == ["medium"] and settings["float32_matmul_precision"] == "medium"
