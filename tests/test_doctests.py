"""The examples in the docstrings run and give what they show."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import longrec


def list_modules_with_examples() -> list[str]:
    """Return the name of each module of the package whose source has a doctest prompt."""
    names = []
    for module in pkgutil.walk_packages(longrec.__path__, f"{longrec.__name__}."):
        source = module.module_finder.find_spec(module.name).loader.get_source(module.name)
        if ">>> " in source:
            names.append(module.name)
    return sorted(names)


@pytest.mark.parametrize("name", list_modules_with_examples())
def test_doctests_pass(name):
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0, f"{name} has a prompt that doctest does not run"
    assert results.failed == 0
