"""Every model of the folder passes the conformance suite in every variant. New files in models/ are discovered.

One test runs all checks of a case, which share its model. Its failure names every failed check.
"""

from __future__ import annotations

import pytest

from longrec.models.core.catalog import names
from longrec.models.core.kinds import Encoder, Ranker
from longrec.testing.case import Case
from longrec.testing.programs import program_agrees
from longrec.testing.suite import cases_of, check_case

CASES = [case for name in names() for case in cases_of(name)]
SCORERS = [case for case in CASES if issubclass(case.model_class, Ranker | Encoder)]
"""Cases of models whose program scores rows."""


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_model(case: Case) -> None:
    check_case(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", SCORERS, ids=str)
def test_the_program_of_every_model_agrees(case: Case) -> None:
    """The defaults run with columns of every kind and two histories, which costs most of the time."""
    program_agrees(case, case.few if case.variant else case.fields)
    case.release()
