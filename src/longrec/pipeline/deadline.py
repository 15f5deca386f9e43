"""Deadlines of stages, and what a late stage leaves.

A deadline is a time since the request began. A stage that has not begun by then is left out: a candidate source adds no
items, and any other stage leaves the order of the stage before it, cut to the number of items that it keeps. A stage
may look at the time itself between its steps and raise ``Late``. A program that is running is not interrupted, so that
a stage which began in time may end after its deadline. Its result then counts.
"""

from __future__ import annotations

import time

import numpy as np

from longrec.pipeline.candidates import Candidates
from longrec.pipeline.stage import Query, Stage


class Late(Exception):
    """A stage that has no time left."""


class Deadline:
    """Stage that is left out if it is late.

    Args:
        stage: the stage.
        seconds: deadline since the request began.
        keep: number of items that a late stage leaves, or k if that is more. None for all.
    """

    def __init__(self, stage: Stage, seconds: float, keep: int | None = None) -> None:
        self.stage, self.seconds, self.keep = stage, seconds, keep
        self.name = stage.name

    def __call__(self, candidates: Candidates, query: Query) -> Candidates:
        """Run the stage, or return what a late one leaves."""
        if is_late(query, self.seconds):
            return self._fall_back(candidates, query)
        try:
            return self.stage(candidates, query)
        except Late:
            return self._fall_back(candidates, query)

    def _fall_back(self, candidates: Candidates, query: Query) -> Candidates:
        query.fallbacks.append(self.name)
        if query.trace is not None:
            query.trace.note_late()
        return candidates if self.keep is None else cut(candidates, self.keep, query)


def is_late(query: Query, seconds: float | None) -> bool:
    """Return True if a deadline is over."""
    return seconds is not None and time.perf_counter() - query.began > seconds


def cut(candidates: Candidates, keep: int | None, query: Query) -> Candidates:
    """Return the first candidates: as many as a stage keeps, or as the query asks for if that is more."""
    limit = len(candidates) if keep is None else max(keep, query.k)
    return candidates if len(candidates) <= limit else candidates.take(np.arange(limit))
