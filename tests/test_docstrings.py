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
