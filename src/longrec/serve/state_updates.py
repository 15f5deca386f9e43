"""Updates of the states of many users: calls of the program of one history, with events of several users each.

A program reads one event per user, or chunks of events by their positions, see ``exporting/states.py``. Users with
about as many events share a call, so that little is computed on padding.

Shapes: B users, W width of a state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.exporting.bundle import StateFacts
from longrec.exporting.inputs import POSITIONS, START, STATE, ProgramFacts, list_positions, make_tensors
from longrec.exporting.runtime import Program
from longrec.features.feature_encoders import Lists
from longrec.features.fitted_schema import concat_lists, gather_lists

Columns = Mapping[str, "NDArray[Any] | Lists"]
_CHUNK = 256
"""Number of events of a user in one call."""
_TOGETHER = 4_096
"""Largest number of events of a call, which bounds its memory."""


class StateUpdate:
    """Update of the states of one history.

    Args:
        facts: description of the program.
        states: description of the states.
    """

    def __init__(self, history: str, program: Program, facts: ProgramFacts, states: StateFacts) -> None:
        self._history, self._program, self._following = history, program, int(states.holds_newest)
        self._chunks = any(entry.name == f"{POSITIONS}{history}" for entry in facts.inputs)
        self._numbers = {entry.field for entry in facts.inputs if entry.datatype == "FP32"}

    def run(
        self, starts: Sequence[NDArray[np.float32]], columns: Sequence[Columns], counts: Sequence[int]
    ) -> NDArray[np.float32]:
        """Return the states ``[B, W]`` of users after events of each.

        Args:
            starts: their states before, ``[W]`` each.
            columns: columns of the events of each user. If the newest event is not final, those of one more event.
            counts: number of events of each user.
        """
        states_BW, counts_B = np.stack(starts), np.array(counts, np.int64)
        first_B = np.concatenate([[0], np.cumsum([_count(own) for own in columns])])[:-1]
        every = {name: _concatenate([own[name] for own in columns]) for name in columns[0]}
        calls = _plan_chunks(counts_B) if self._chunks else _plan_steps(counts_B)
        for users_M, step_M, size_M in calls:
            following_M = size_M + self._following if self._chunks else size_M
            at_N = np.repeat(first_B[users_M] + step_M - np.cumsum(following_M) + following_M, following_M)
            at_N += np.arange(len(at_N))
            tensors: dict[str, NDArray[Any]] = {f"{START}{self._history}": states_BW[users_M]}
            if self._chunks:
                tensors[f"{POSITIONS}{self._history}"] = list_positions(following_M)
            for name, column in every.items():
                taken = gather_lists(column, at_N) if isinstance(column, Lists) else column[at_N]
                name = f"h.{self._history}.{name}"
                tensors |= make_tensors(name, taken, name in self._numbers)
            states_BW[users_M] = self._program.run(tensors, STATE)
        return states_BW


_Calls = Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]
"""Users of a call, the number of events of each that came before, and the number of its events in the call."""


def _plan_steps(counts_B: NDArray[np.int64]) -> _Calls:
    """Yield one call per event, of all users with another one."""
    order_B = np.argsort(-counts_B, kind="stable")
    for step in range(int(counts_B.max(initial=0))):
        users_M = order_B[: int((counts_B > step).sum())]
        yield users_M, np.full(len(users_M), step), np.ones(len(users_M), np.int64)


def _plan_chunks(counts_B: NDArray[np.int64]) -> _Calls:
    """Yield the calls of whole chunks, then those of the rest of each user, at most twice as long as the shortest."""
    for step in range(0, int(counts_B.max(initial=0)), _CHUNK):
        for users_M in _split(np.flatnonzero(counts_B >= step + _CHUNK), _CHUNK):
            yield users_M, np.full(len(users_M), step), np.full(len(users_M), _CHUNK)
    rest_B = counts_B % _CHUNK
    octave_B = np.frexp(rest_B)[1]
    for octave in np.unique(octave_B[rest_B > 0]).tolist():
        for users_M in _split(np.flatnonzero(octave_B == octave), 1 << octave):
            yield users_M, counts_B[users_M] - rest_B[users_M], rest_B[users_M]


def _split(users: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Yield users whose events fit into one call."""
    step = max(1, _TOGETHER // size)
    for first in range(0, len(users), step):
        yield users[first : first + step]


def _count(columns: Columns) -> int:
    return len(next(iter(columns.values())))


def _concatenate(columns: Sequence[NDArray[Any] | Lists]) -> NDArray[Any] | Lists:
    lists = [column for column in columns if isinstance(column, Lists)]
    return concat_lists(lists) if lists else np.concatenate([one for one in columns if not isinstance(one, Lists)])
