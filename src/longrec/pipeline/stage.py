"""A pipeline: stages that each turn candidates into candidates, run in order and timed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import NDArray

from longrec.pipeline.candidates import Candidates


@dataclass(frozen=True)
class Query:
    """Who asks, when, and what is known of the moment.

    Attributes:
        user: row of the user table (0: unknown).
        moment: milliseconds UTC, or a step.
        inputs: encoded values that are the same for every candidate, by the program's input names.
        positions: how many past events stand in ``inputs``; tells a scorer how large its work is.
    """

    user: int
    timestamp: int
    inputs: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    positions: int = 0


class Stage(Protocol):
    """One step of a pipeline. It keeps no state of a query."""

    name: str

    def __call__(self, candidates: Candidates, query: Query) -> Candidates:
        """The candidates that go on, in their new order."""
        ...


@dataclass(frozen=True)
class Outcome:
    """What a pipeline answers.

    Attributes:
        seconds: what each stage took, by its name.
    """

    candidates: Candidates
    seconds: Mapping[str, float]


class Pipeline:
    """Stages in order. Their names are distinct, so that every timing has an owner."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        names = [stage.name for stage in stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stages need distinct names, got {', '.join(names)}")
        self.stages = tuple(stages)

    def __call__(self, candidates: Candidates, query: Query) -> Outcome:
        """Run all stages."""
        seconds = {}
        for stage in self.stages:
            began = time.perf_counter()
            candidates = stage(candidates, query)
            seconds[stage.name] = time.perf_counter() - began
        return Outcome(candidates, seconds)
