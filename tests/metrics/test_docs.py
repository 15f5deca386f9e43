from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

import longrec.metrics as package

MODULES = [f"{package.__name__}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]


@pytest.mark.parametrize("name", [*MODULES, "longrec.report.tables", "longrec.report.plots", "longrec.progress"])
def test_doctests_pass(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_every_metric_has_a_doctest():
    finder = doctest.DocTestFinder()
    for name in package.__all__:
        thing = getattr(package, name)
        if inspect.isfunction(thing) and name not in ("bootstrap",):
            assert any(test.examples for test in finder.find(thing, name)), f"{name} shows no example"
