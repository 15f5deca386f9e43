"""Trace of one request: which candidates every stage kept, with their scores, and which it dropped, with the reason.

A stage names the reasons that it knows with ``Trace.drop``. A candidate that is missing after a stage without one was
dropped because the stage keeps a limited number of items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.pipeline.candidates import Candidates

BUDGET, SEEN, FILTER, UNKNOWN = "budget", "seen", "filter", "unknown to the ranker"
QUOTA, CAP, DIVERSITY, DUPLICATE = "quota", "cap", "diversity", "duplicate"
SOURCE = "recall."
"""Prefix of the names of stages and scores of candidate sources."""
REASONS = (BUDGET, SEEN, FILTER, UNKNOWN, QUOTA, CAP, DIVERSITY, DUPLICATE)
"""Reasons why a stage drops an item. A duplicate is dropped from one source and stays as an item of another one."""


@dataclass(frozen=True)
class StageTrace:
    """What one stage did to the candidates of one request.

    Attributes:
        name: name of the stage.
        before: candidates before the stage.
        after: candidates after it, in their new order.
        dropped: keys that it dropped, by the reason.
        seconds: duration.
        late: True if the stage was left out because it was late.
        cpu_seconds: CPU time of the process during the stage, with all threads.
    """

    name: str
    before: Candidates
    after: Candidates
    dropped: Mapping[str, list[Any]]
    seconds: float
    late: bool = False
    cpu_seconds: float = 0.0

    @property
    def is_source(self) -> bool:
        """True for a candidate source, which adds items."""
        return self.name.startswith(SOURCE)

    @cached_property
    def own(self) -> Candidates:
        """Candidates after the stage, best first. Of a source only its own items."""
        if not self.is_source:
            return self.after
        scores = self.after.scores.get(self.name, np.full(len(self.after), np.nan, np.float32))
        items = np.flatnonzero(~np.isnan(scores))
        return self.after.take(items[np.argsort(-scores[items], kind="stable")])

    @cached_property
    def _ranks(self) -> Mapping[Any, int]:
        return {key: rank for rank, key in enumerate(self.own.keys.tolist(), 1)}

    def find_rank(self, key: Any) -> int | None:
        """Return the rank of an item after the stage, from 1. None if it is not there."""
        return self._ranks.get(key)

    def find_score(self, key: Any) -> float | None:
        """Return the score that this stage gave an item. None without one."""
        rank, scores = self.find_rank(key), self.own.scores.get(self.name)
        if rank is None or scores is None or np.isnan(scores[rank - 1]):
            return None
        return float(scores[rank - 1])

    def find_reason(self, key: Any) -> str | None:
        """Return why the stage dropped an item, None if it did not."""
        return next((reason for reason, keys in self.dropped.items() if key in keys), None)


class Trace:
    """Recorder of the stages of one request.

    Args:
        reasons: also record which items are dropped, and why. Stages may then compute more than they need.

    Attributes:
        stages: what every stage did, in order.
    """

    def __init__(self, reasons: bool = True) -> None:
        self.stages: list[StageTrace] = []
        self.reasons = reasons
        self._dropped: dict[str, list[Any]] = {}
        self._late, self._extra = False, 0.0

    def drop(self, keys: NDArray[Any], reason: str) -> None:
        """Note that the running stage drops items. The first reason of an item counts."""
        if not self.reasons:
            return
        noted = {key for own in self._dropped.values() for key in own}
        self._dropped.setdefault(reason, []).extend(key for key in keys.tolist() if key not in noted)

    def note_late(self) -> None:
        """Note that the running stage was left out because it was late."""
        self._late = True

    def note_extra(self, seconds: float) -> None:
        """Note time that the running stage spent for the trace alone. It is no time of the stage."""
        self._extra += seconds

    def record(
        self, name: str, before: Candidates, after: Candidates, seconds: float, cpu_seconds: float = 0.0
    ) -> None:
        """Record the running stage, which has ended."""
        if self.reasons:
            kept = set(after.keys.tolist())
            noted = {key for keys in self._dropped.values() for key in keys}
            rest = [key for key in before.keys.tolist() if key not in kept and key not in noted]
            if rest:
                self._dropped.setdefault(BUDGET, []).extend(rest)
        dropped = {reason: keys for reason, keys in self._dropped.items() if keys}
        self.stages.append(StageTrace(name, before, after, dropped, seconds - self._extra, self._late, cpu_seconds))
        self._dropped, self._late, self._extra = {}, False, 0.0
