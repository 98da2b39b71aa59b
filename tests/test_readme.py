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
"""The README's commands and examples, run as they stand."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def quickstart_folder(tmp_path_factory) -> Path:
    """Where the quickstart was run, but for its set-up and with two steps of training."""
    (command,) = (block for block in blocks("bash") if "quickstart" in block)
    *_, program = command.strip().split(" && ")
    python, script, *arguments = shlex.split(program)
    assert python == ".venv/bin/python"
    folder = tmp_path_factory.mktemp("readme")
    subprocess.run([sys.executable, ROOT / script, *arguments, "--max-steps", "2"], cwd=folder, check=True)
    return folder


def test_set_up_commands_are_one_line_each_and_differ_in_the_extra_alone():
    commands = [block.strip().split(" && ") for block in blocks("bash")]
    assert [len(command) for command in commands] == [3, 3]
    for venv, install, _ in commands:
        assert venv == "python3 -m venv .venv"
        assert re.fullmatch(r"\.venv/bin/pip install -c constraints\.txt -e \"\.\[(cpu,train|test)\]\"", install)


def test_examples_run(quickstart_folder, monkeypatch):
    monkeypatch.chdir(quickstart_folder)
    namespace: dict = {}
    assert len(blocks("python")) >= 8
    for example in blocks("python"):
        exec(compile(example, "README.md", "exec"), namespace)
    assert namespace["shorter"].shape == (5, 7, 20)


@pytest.mark.parametrize("page", ["README.md", "configuration/training/README.md"])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https://")]
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {heading.lower().replace(" ", "-") for heading in headings}, link


def test_page_of_the_recipes_names_each_of_them_and_no_other():
    recipes = ROOT / "configuration" / "training"
    named = set(re.findall(r"[a-z0-9-]+\.yaml", (recipes / "README.md").read_text(encoding="utf-8")))
    assert named == {recipe.name for recipe in recipes.glob("*.yaml") if recipe.name != "quickstart.yaml"}
