"""Every model of the folder passes the conformance suite in every variant. New files in models/ are discovered."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conformance import CHECKS, Case, program_agrees
from sample_batches import FEW, FIELDS

from longrec.models.core.base import find, names

CASES = [Case(name, settings) for name in names() for settings in ({}, *find(name).variants)]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_model(case: Case, check: Callable[[Case], None]) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_program_of_every_model_agrees(case: Case) -> None:
    """The defaults run with columns of every kind and two histories, which costs most of the time."""
    program_agrees(case, FEW if case.settings else FIELDS)
