"""Pipelines: stages that map candidates to candidates, run in order and timed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import NDArray

from longrec.pipeline.candidates import Candidates


@dataclass(frozen=True)
class RankQuery:
    """User, timestamp and shared inputs of one ranking request.

    Attributes:
        user: row of the user table (0: unknown).
        timestamp: milliseconds UTC, or a step.
        inputs: encoded values shared by all candidates, by the input names of the ONNX model.
        positions: number of history events in ``inputs``, a measure of the work per candidate.
    """

    user: int
    timestamp: int
    inputs: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    positions: int = 0


class Stage(Protocol):
    """One step of a pipeline, without state between queries."""

    name: str

    def __call__(self, candidates: Candidates, query: RankQuery) -> Candidates:
        """Return the remaining candidates in their new order."""
        ...


@dataclass(frozen=True)
class PipelineResult:
    """Result of a pipeline.

    Attributes:
        candidates: remaining candidates, in their final order.
        stage_seconds: duration of each stage, by its name.
    """

    candidates: Candidates
    stage_seconds: Mapping[str, float]


class Pipeline:
    """Stages in order, with distinct names so that each timing belongs to one stage."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        names = [stage.name for stage in stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stages need distinct names, got {', '.join(names)}")
        self.stages = tuple(stages)

    def __call__(self, candidates: Candidates, query: RankQuery) -> PipelineResult:
        """Run all stages on the candidates."""
        seconds = {}
        for stage in self.stages:
            began = time.perf_counter()
            candidates = stage(candidates, query)
            seconds[stage.name] = time.perf_counter() - began
        return PipelineResult(candidates, seconds)
