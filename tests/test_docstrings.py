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

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator

import pytest
from transformers import PreTrainedConfig

import modeling_qrnn
import modeling_qrnn.trainer_qrnn
import modeling_qrnn.transfer_qrnn
from modeling_qrnn import QRNNConfig


# Holders of other public things, whose use those show.
WITHOUT_EXAMPLE = {"QRNNPreTrainedModel", "QRNNState", "QRNNCacheLayer"}


@pytest.mark.parametrize("name", sorted(set(modeling_qrnn.__all__) - WITHOUT_EXAMPLE))
def test_public_names_have_an_example(name):
    assert "Example:" in getattr(modeling_qrnn, name).__doc__  # its own: unlike `getdoc` this looks at no base


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


def described_functions(thing) -> Iterator[tuple[str, Callable, str]]:
    """What has arguments and a description of them: a function, or a class's constructor and its own methods."""
    if inspect.isfunction(thing):
        yield thing.__name__, thing, inspect.getdoc(thing)
        return
    parts = {name: getattr(part, "__func__", part) for name, part in vars(thing).items()}
    if dataclasses.is_dataclass(thing):  # its fields are described, of which the next tests tell
        parts.pop("__init__")
    for name, function in parts.items():
        documentation = inspect.cleandoc((thing if name == "__init__" else function).__doc__ or "")
        if inspect.isfunction(function) and (name == "forward" or "Args:" in documentation):
            yield f"{thing.__name__}.{name}", function, documentation


PUBLIC = [modeling_qrnn, modeling_qrnn.trainer_qrnn, modeling_qrnn.transfer_qrnn]
THINGS = [getattr(module, name) for module in PUBLIC for name in sorted(module.__all__)]
FUNCTIONS = [function for thing in THINGS for function in described_functions(thing)]


@pytest.mark.parametrize(("name", "function", "documentation"), FUNCTIONS, ids=[name for name, *_ in FUNCTIONS])
def test_public_arguments_are_described(name, function, documentation):
    of_base = {"kwargs"} if name.startswith("QRNNCacheLayer.update_") else set()
    assert described(documentation) == {*inspect.signature(function).parameters} - {"self"} - of_base


CONFIGS = [thing for thing in THINGS if inspect.isclass(thing) and issubclass(thing, PreTrainedConfig)]
FIXED = {"model_type", "is_encoder_decoder", "tie_word_embeddings"}  # of a config that has no choice


@pytest.mark.parametrize("config", CONFIGS)
def test_fields_of_configs_are_described(config):
    """Each of its own; those of the bases are `QRNNConfig`'s, which describes them all."""
    bases = [base for base in inspect.getmro(config) if base.__module__.startswith("modeling_qrnn")]
    documented = {*re.findall(r"^ {4}(\w+) \(`", inspect.cleandoc(vars(config)["__doc__"]), re.MULTILINE)}
    described = {config.attribute_map.get(name, name) for name in documented}
    owners = bases if config is QRNNConfig else [config]
    own = {name for owner in owners for name in vars(owner).get("__annotations__", {})}
    assert {name for name in own if not name.startswith("_")} - described <= (set() if config is QRNNConfig else FIXED)
    assert described <= {field.name for field in dataclasses.fields(config)}
