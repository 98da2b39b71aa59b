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

from pathlib import Path

import pytest
import torch
import yaml
from transformers import Seq2SeqTrainingArguments

from modeling_qrnn.trainer_qrnn import QRNNTrainingArguments
from recipes import ModelArguments, RecipeParser, check_holds_no_run, digest, keep_settings, read_recipe


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


@pytest.fixture
def precisions(monkeypatch):
    """What the process is set to."""
    chosen = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", chosen.append)
    return chosen


def read(folder, *options, arguments=(ModelArguments, QRNNTrainingArguments)):
    recipe = folder / "given.yaml"
    recipe.write_text("seed: 1\n", encoding="utf-8")
    return read_recipe([str(recipe), *options], arguments, "A line.")[1]


def test_programs_take_subnormal_numbers_for_zero(tmp_path):
    fading = torch.full((16,), torch.finfo(torch.float32).tiny)
    assert (0.9 * fading).all()
    read(tmp_path)
    assert not (0.9 * fading).any()


def test_precision_of_products_is_set_for_the_process(tmp_path, precisions):
    read(tmp_path)
    assert precisions == []
    read(tmp_path, "--float32-matmul-precision", "medium")
    assert precisions == ["medium"]


def test_run_does_not_go_on_with_another_precision(tmp_path, precisions):
    keep_settings(read(tmp_path), tmp_path)
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text("{}", encoding="utf-8")
    keep_settings(read(tmp_path), tmp_path)
    with pytest.raises(SystemExit, match=r"other settings \(float32_matmul_precision\)"):
        keep_settings(read(tmp_path, "--float32-matmul-precision", "medium"), tmp_path)


def test_precision_is_told_once(tmp_path, precisions, monkeypatch):
    monkeypatch.setattr("transformers.training_args.is_torch_tf32_available", lambda: True)
    monkeypatch.setattr("transformers.training_args.enable_tf32", lambda enable: None)
    with pytest.raises(SystemExit, match="--float32-matmul-precision medium and --tf32 both tell"):
        read(tmp_path, "--float32-matmul-precision", "medium", "--tf32", "true")
    assert precisions == []


def test_what_a_run_writes_is_none_of_its_data(tmp_path):
    """Its folder may lie within that of the model that it begins with."""
    source, output = tmp_path / "model", tmp_path / "model/tuned"
    output.mkdir(parents=True)
    (source / "config.json").write_text("{}")
    before = digest(source, output)
    (output / "model.safetensors").write_text("weights")
    assert digest(source, output) == before
    (source / "config.json").write_text("{ }")
    assert digest(source, output) != before


@pytest.mark.parametrize("path", ["data", "data/text.txt"])
def test_data_may_lie_in_the_folder_of_the_run(tmp_path, path):
    folder = tmp_path / "data"
    folder.mkdir()
    digests = set()
    for text in ("a", "b"):
        (folder / "text.txt").write_text(text)
        digests.add(digest(tmp_path / path, folder))
    assert len(digests) == 2


def test_a_model_is_not_trained_in_its_own_place(tmp_path, monkeypatch):
    """It would be lost, and the run could not go on, whose data it is."""
    monkeypatch.chdir(tmp_path)
    for output in ("model", tmp_path / "model"):
        with pytest.raises(SystemExit, match="--init-from model: it is --output-dir, where the new model would take"):
            keep_settings({"init_from": "model"}, Path(output))
    assert not Path("model").exists()
    keep_settings({"init_from": "model"}, Path("model/tuned"))


def test_a_file_of_the_model_may_not_change(tmp_path):
    """Nor the one that a program has for its default."""
    assert read(tmp_path)["model_config"] == "qrnn-small"


def test_one_run_does_not_replace_the_scores_of_several(tmp_path):
    (tmp_path / "scores.json").write_text("{}")
    with pytest.raises(SystemExit, match="holds the scores of several runs, which would be lost: choose another"):
        keep_settings({"seed": 1}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["scores.json"]


def test_several_runs_do_not_replace_the_scores_of_one(tmp_path):
    check_holds_no_run(tmp_path)
    keep_settings({"seed": 1}, tmp_path / "fold-1")
    check_holds_no_run(tmp_path)
    keep_settings({"seed": 1}, tmp_path)
    with pytest.raises(SystemExit, match="holds a run of its own, whose scores would be lost: choose another"):
        check_holds_no_run(tmp_path)


def test_paths_and_choices_are_kept_as_they_read(tmp_path):
    arguments = ModelArguments, Seq2SeqTrainingArguments
    options = ["--debug", "underflow_overflow", "--generation-config", str(tmp_path)]
    settings = read(tmp_path, *options, arguments=arguments)
    keep_settings(settings, tmp_path / "output")
    kept = yaml.safe_load((tmp_path / "output/recipe.yaml").read_text())
    assert kept == settings
    assert kept["generation_config"] == str(tmp_path)


def test_what_is_there_to_compare_with_is_not_pushed(tmp_path):
    with pytest.raises(SystemExit, match="--push-to-hub: the LSTM is there to compare with"):
        read(tmp_path, "--push-to-hub", "--architecture", "lstm")


def test_the_batch_is_that_of_all_devices(tmp_path, monkeypatch):
    """`Trainer` spreads a batch over the devices that one process sees."""
    monkeypatch.setattr(QRNNTrainingArguments, "n_gpu", 1)
    assert read(tmp_path, "--per-device-train-batch-size", "3")["per_device_train_batch_size"] == 3
    monkeypatch.setattr(QRNNTrainingArguments, "n_gpu", 2)
    assert read(tmp_path, "--per-device-train-batch-size", "3")["per_device_train_batch_size"] == 6
