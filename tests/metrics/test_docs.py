from __future__ import annotations

import doctest
import inspect

import longrec.metrics as package


def test_every_metric_has_a_doctest():
    finder = doctest.DocTestFinder()
    for name in package.__all__:
        thing = getattr(package, name)
        if inspect.isfunction(thing) and name not in ("bootstrap",):
            assert any(test.examples for test in finder.find(thing, name)), f"{name} shows no example"
