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
"""What is public is documented: arguments, results, errors, and an example, which the doctests run."""

import inspect
import re

import pytest

import modeling_qrnn


# Holders of other public things, whose use those show.
WITHOUT_EXAMPLE = {"QRNNPreTrainedModel", "QRNNState", "QRNNCacheLayer"}


@pytest.mark.parametrize("name", sorted(set(modeling_qrnn.__all__) - WITHOUT_EXAMPLE))
def test_public_names_have_an_example(name):
    assert "Example:" in inspect.getdoc(getattr(modeling_qrnn, name))


def described(documentation: str) -> set[str]:
    """The names before the colons of `Args:`, `name: ...` or `name, name: ...`, perhaps over several lines."""
    arguments = re.search(r"^Args:\n((?: {4}.*\n?|\n)*)", documentation, re.MULTILINE)
    heads = re.findall(r"^ {4}(\w[\w,\s]*):", arguments[1], re.MULTILINE) if arguments else []
    return {name for head in heads for name in re.findall(r"\w+", head)}


def test_descriptions_are_found():
    """A name in a sentence, or within another name, describes nothing."""
    documentation = (
        "Of x.\n\nArgs:\n    state, h,\n        c: as x: none\n    xs: more\n        y: not\n\nReturns:\n    z: a"
    )
    assert described(documentation) == {"state", "h", "c", "xs"}


@pytest.mark.parametrize("name", sorted(modeling_qrnn.__all__))
def test_public_arguments_are_described(name):
    thing = getattr(modeling_qrnn, name)
    function = thing if inspect.isfunction(thing) else vars(thing).get("forward")
    if function is not None:
        arguments = {*inspect.signature(function).parameters} - {"self"}
        assert described(inspect.getdoc(function)) == arguments
