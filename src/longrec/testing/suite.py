"""The conformance suite: which checks a model takes, and one report of all that failed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from longrec.errors import ConfigError, UnknownName
from longrec.features.fields import Fields
from longrec.models.core.base import Model
from longrec.models.core.generator import Generator
from longrec.models.core.kinds import Encoder, FittedRetriever, Ranker, Reranker, Retriever, VectorRetriever
from longrec.models.core.registry import find, name_of_class
from longrec.testing import (
    core,
    devices,
    encoders,
    generators,
    inputs,
    programs,
    rankers,
    rerankers,
    retriever_programs,
    retrievers,
    texts,
    training,
)
from longrec.testing.case import Case
from longrec.testing.expect import ConformanceError

Check = Callable[[Case], None]

SCORERS: tuple[Check, ...] = (
    *core.CHECKS,
    *inputs.CHECKS,
    *training.CHECKS,
    *devices.CHECKS,
    *programs.CHECKS,
    *texts.CHECKS,
)
"""Checks of every ranker and every encoder."""
RETRIEVERS: tuple[Check, ...] = (
    *retrievers.CHECKS,
    *retriever_programs.CHECKS,
    core.check_same_seed_same_weights,
    *texts.CHECKS,
)
"""Checks of every retriever."""
RERANKERS: tuple[Check, ...] = (*rerankers.CHECKS, core.check_same_seed_same_weights, *texts.CHECKS)
"""Checks of every re-ranker."""
BY_KIND: dict[type, tuple[Check, ...]] = {
    Ranker: (*SCORERS, *rankers.CHECKS),
    Encoder: (*SCORERS, *encoders.CHECKS),
    Reranker: RERANKERS,
    Retriever: RETRIEVERS,
    VectorRetriever: (*retrievers.OF_VECTORS, *retrievers.OF_TARGETS),
    Generator: (*retrievers.OF_TARGETS, *generators.CHECKS),
    FittedRetriever: retrievers.OF_COUNTS,
}
"""Checks of each kind of model, besides those of the kinds that it derives from."""
ALL: dict[str, Check] = {
    check.__name__.removeprefix("check_"): check for checks in BY_KIND.values() for check in checks
}
"""Every check by its name."""


def checks_of(case: Case) -> dict[str, Check]:
    """Return the checks of a case by name: those of its kinds.

    A variant leaves out the checks of texts, which read the class and no value of a setting.
    """
    kinds = [checks for kind, checks in BY_KIND.items() if issubclass(case.model_class, kind)]
    own = {check for checks in kinds for check in checks}
    if case.variant:
        own -= set(texts.CHECKS)
    return {name: check for name, check in ALL.items() if check in own}


def cases_of(name: str, fields: Fields | None = None) -> list[Case]:
    """Return the cases of a model: its defaults, then each of its ``variants``."""
    variants = [Case(name, settings, fields, variant=True) for settings in find(name).variants]
    return [Case(name, fields=fields), *variants]


def check_case(case: Case, only: Collection[str] | None = None) -> None:
    """Run the checks of one case.

    Args:
        case: a model with its settings.
        only: names of checks. None: all.

    Raises:
        ConformanceError: lists all checks that failed, each with its reason.
        UnknownName: if there is no check of a name in ``only``.
    """
    failures = _failures(case, only)
    if failures:
        raise _report(str(case), failures)


def check_model(
    model: str | type[Model],
    settings: Mapping[str, Any] | None = None,
    *,
    fields: Fields | None = None,
    only: Collection[str] | None = None,
) -> None:
    """Check that a model keeps the rules of all models: run the conformance suite.

    Some of the rules: rows do not see each other, an empty history is scored, every parameter gets a gradient, and a
    saved model, a batch of one user and an exported program return the same scores. ``longrec.testing.suite.ALL`` has
    all of them. The checks draw random batches, need no data, and take seconds per settings. They leave the state of
    torch's random generator as it was.

    Args:
        model: name of a model, such as ``din`` or ``my_team.models.din2``, or its class.
        settings: its settings. None: the defaults, and then every entry of ``variants`` of its class.
        fields: the inputs, for a model that needs features of its own. None: fields of every kind and two histories.
        only: names of the checks to run. None: all that apply to this kind of model.

    Raises:
        ConformanceError: lists all checks that failed, each with its reason.
        UnknownName: if there is no such model, or no check of a name in ``only``.
        ConfigError: if the class is not the one that LongRec finds by the name of its module.

    >>> check_model("lr", only=["one_finite_score_a_row", "docstring_cites"])
    >>> check_model("lr", only=["docstring"])
    Traceback (most recent call last):
    longrec.errors.UnknownName: check: 1 fault
      no check named 'docstring'; did you mean 'docstring_cites'?
    """
    name = model if isinstance(model, str) else _name_of_class(model)
    cases = cases_of(name, fields) if settings is None else [Case(name, settings, fields)]
    failures = {f"{case}: {check}": error for case in cases for check, error in _failures(case, only).items()}
    if failures:
        raise _report(name, failures)


def _failures(case: Case, only: Collection[str] | None) -> dict[str, Exception]:
    for name in only or ():
        if name not in ALL:
            raise UnknownName("check", name, ALL)
    failures: dict[str, Exception] = {}
    with torch.random.fork_rng(devices=[]):
        for name, check in checks_of(case).items():
            if only is None or name in only:
                try:
                    check(case)
                except Exception as error:  # noqa: BLE001  whatever a model raises, the other checks run too
                    failures[name] = error
    case.release()
    return failures


def _report(subject: str, failures: Mapping[str, Exception]) -> ConformanceError:
    lines = [f"{subject}: {len(failures)} check{'s' if len(failures) > 1 else ''} failed"]
    for name, error in failures.items():
        kind = "" if isinstance(error, ConformanceError) else f"{type(error).__name__}: "
        lines.append(f"  {name}: {kind}" + str(error).replace("\n", "\n    "))
    report = ConformanceError("\n".join(lines), list(failures))
    report.__cause__ = ExceptionGroup("failed checks", list(failures.values()))
    return report


def _name_of_class(cls: type[Model]) -> str:
    name = name_of_class(cls)
    if find(name) is not cls:
        do = "check the class that the module holds now"
        raise ConfigError(f"class {cls.__name__}", [f"is not the one that {name} names; {do}"])
    return name
