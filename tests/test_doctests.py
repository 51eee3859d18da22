"""The examples in the docstrings of the package run."""

import doctest
import importlib
import pkgutil

import pytest

import hatlib
from hatlib.registry import registries

MODULES = [
    module.name
    for module in pkgutil.walk_packages(hatlib.__path__, "hatlib.")
    if not module.name.startswith(("hatlib.recipes", "hatlib.__main__"))
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, monkeypatch):
    for registry in registries.values():  # what an example registers ends with it
        monkeypatch.setattr(registry, "_parts", dict(registry._parts))
    if name.startswith("hatlib.integrations"):
        pytest.importorskip("transformers")
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    examples = sum(len(test.examples) for test in finder.find(hatlib.blocks.HAB, "HAB"))
    assert examples > 0
