"""Stages: steps that map candidates to candidates, run in order and timed."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from longrec.pipeline.candidates import Candidates
from longrec.pipeline.explore import Exploration
from longrec.pipeline.recent_event import RecentEvent
from longrec.pipeline.trace import Trace

Encoded = TypeVar("Encoded", covariant=True)
ResultT = TypeVar("ResultT")


class QueryEncoder(Protocol[Encoded]):
    """Encoder of queries for one model."""

    def encode(self, query: Query) -> Encoded:
        """Return what the programs of the model read of a query."""
        ...


@dataclass
class UnknownKeys:
    """Keys of one request that a stage did not know and accepted.

    Attributes:
        user: True if a stage does not know the user.
        items: unknown items, in the order of the candidates.
    """

    user: bool = False
    items: list[Any] = field(default_factory=list)


@dataclass
class ExploredPage:
    """What stages note about the exploration of one page.

    Attributes:
        reserve: the page that a stage arranged, and behind it the candidates that exploration may take instead. None:
            those of the list.
        result: what exploration did. None without such a stage.
    """

    reserve: Candidates | None = None
    result: Exploration | None = None


@dataclass(frozen=True)
class Query:
    """One request with its raw values. Each stage encodes them for its own model.

    Attributes:
        user: key of the user. None for a log without users.
        timestamp: milliseconds UTC, or a step.
        context: raw values of the event columns, by column.
        history: raw histories of the request, ``{history: {feature: [values, oldest first]}}``.
        recent: events of the user that the request brings with it, read after the stored ones.
        user_context: raw values of columns of the user, in place of those of the user table.
        allow_unknown: accept a user, or items, that a model does not know.
        k: number of items that are retrieved.
        exclude_seen: do not retrieve items of earlier events of the user.
        further_context: columns of the context that only other stages read.
        unknown: what the stages did not know.
        memo: the query as encoded for each model, so that stages of one model encode it once.
        seen: earlier events of the user as read for each model.
        trace: what every stage kept and dropped. None in normal service, so that it costs nothing.
        began: when the request began, in seconds of ``time.perf_counter``.
        fallbacks: stages that were left out because they were late, see ``pipeline/deadline.py``.
        eligible: function of the keys of a catalog ``[I]``, which returns the mask of items that may be retrieved. None
            for all. An evaluation leaves out items that did not exist yet.
        seed: seed of the exploration, of a request that repeats an earlier one. None: the stage chooses one.
        explored: what stages note about the exploration of the page.
    """

    user: int | str | None
    timestamp: int
    context: Mapping[str, Any] = field(default_factory=dict)
    history: Mapping[str, Mapping[str, Sequence[Any]]] | None = None
    allow_unknown: bool = False
    k: int = 0
    exclude_seen: bool = False
    further_context: frozenset[str] = frozenset()
    recent: Sequence[RecentEvent] = ()
    user_context: Mapping[str, Any] = field(default_factory=dict)
    unknown: UnknownKeys = field(default_factory=UnknownKeys, compare=False)
    memo: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    seen: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    trace: Trace | None = field(default=None, repr=False, compare=False)
    began: float = field(default_factory=time.perf_counter, repr=False, compare=False)
    fallbacks: list[str] = field(default_factory=list, compare=False)
    eligible: Callable[[NDArray[Any]], NDArray[np.bool_]] | None = field(default=None, repr=False, compare=False)
    seed: int | None = None
    explored: ExploredPage = field(default_factory=ExploredPage, repr=False, compare=False)

    def encode(self, encoder: QueryEncoder[Encoded]) -> Encoded:
        """Return the query as encoded by an encoder, which encodes it once."""
        encoded: Encoded | None = self.memo.get(encoder)
        if encoded is None:
            encoded = self.memo[encoder] = encoder.encode(self)
        return encoded


class Stage(Protocol):
    """One step of a pipeline, without state between queries."""

    name: str

    def __call__(self, candidates: Candidates, query: Query) -> Candidates:
        """Return the remaining candidates in their new order."""
        ...


class SlicedStage(ABC):
    """Stage whose work has several slices, between which a server lets other requests through."""

    name: str

    def __call__(self, candidates: Candidates, query: Query) -> Candidates:
        """Return the remaining candidates in their new order."""
        return take_last(self.run_in_slices(candidates, query))

    @abstractmethod
    def run_in_slices(self, candidates: Candidates, query: Query) -> Iterator[Candidates | None]:
        """Yield None between two slices, and in the end the remaining candidates."""


def take_last(slices: Iterator[ResultT | None]) -> ResultT:
    """Return the result of an iterator that yields None before it."""
    return next(value for value in slices if value is not None)


@dataclass(frozen=True)
class PipelineResult:
    """Result of a pipeline.

    Attributes:
        candidates: remaining candidates, in their final order.
        stage_seconds: duration of each stage, by its name.
        fallbacks: stages that were left out because they were late.
        exploration: what exploration did. None without such a stage.
    """

    candidates: Candidates
    stage_seconds: Mapping[str, float]
    fallbacks: Sequence[str] = ()
    exploration: Exploration | None = None


class Stages:
    """Stages in order, with distinct names so that each timing belongs to one stage."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        names = [stage.name for stage in stages]
        if len(set(names)) != len(names):
            raise ValueError(f"stages need distinct names, got {', '.join(names)}")
        self.stages = tuple(stages)

    def __call__(self, candidates: Candidates, query: Query) -> PipelineResult:
        """Run all stages on the candidates."""
        return take_last(self.run_in_slices(candidates, query))

    def run_in_slices(self, candidates: Candidates, query: Query) -> Iterator[PipelineResult | None]:
        """Run all stages on the candidates. Yields None between slices of the work, and in the end the result."""
        seconds = {}
        for stage in self.stages:
            before, spent, began = candidates, 0.0, time.perf_counter()
            cpu = 0.0 if query.trace is None else time.process_time()
            if isinstance(stage, SlicedStage):
                for value in stage.run_in_slices(candidates, query):
                    if value is not None:
                        candidates = value
                        break
                    spent += time.perf_counter() - began
                    yield None
                    began = time.perf_counter()
            else:
                candidates = stage(candidates, query)
            seconds[stage.name] = spent + time.perf_counter() - began
            if query.trace is not None:
                query.trace.record(stage.name, before, candidates, seconds[stage.name], time.process_time() - cpu)
        yield PipelineResult(candidates, seconds, tuple(query.fallbacks), query.explored.result)
