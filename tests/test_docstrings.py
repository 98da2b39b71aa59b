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

import pytest

import modeling_qrnn


# Holders of other public things, whose use those show.
WITHOUT_EXAMPLE = {"QRNNPreTrainedModel", "QRNNState", "QRNNCacheLayer"}


@pytest.mark.parametrize("name", sorted(set(modeling_qrnn.__all__) - WITHOUT_EXAMPLE))
def test_public_names_have_an_example(name):
    assert "Example:" in inspect.getdoc(getattr(modeling_qrnn, name))


@pytest.mark.parametrize("name", sorted(modeling_qrnn.__all__))
def test_public_arguments_are_described(name):
    thing = getattr(modeling_qrnn, name)
    function = thing if inspect.isfunction(thing) else vars(thing).get("forward")
    if function is not None:
        documentation, arguments = inspect.getdoc(function), inspect.signature(function).parameters
        assert [name for name in arguments if name not in documentation] in ([], ["self"])
