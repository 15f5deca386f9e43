"""Trace of one request: which candidates every stage kept, with their scores, and which it dropped, with the reason.

A stage names the reasons that it knows with ``Trace.drop``. A candidate that is missing after a stage without one was
dropped because the stage keeps a limited number of items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.pipeline.candidates import Candidates

BUDGET, SEEN, FILTER, UNKNOWN = "budget", "seen", "filter", "unknown to the ranker"
QUOTA, CAP, DIVERSITY, DUPLICATE = "quota", "cap", "diversity", "duplicate"
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
    """

    name: str
    before: Candidates
    after: Candidates
    dropped: Mapping[str, list[Any]]
    seconds: float
    late: bool = False

    @property
    def scores(self) -> NDArray[np.float32] | None:
        """Scores of this stage of the candidates after it, None for a stage that scores nothing."""
        return self.after.scores.get(self.name)

    def find_reason(self, key: Any) -> str | None:
        """Return why the stage dropped an item, None if it did not."""
        return next((reason for reason, keys in self.dropped.items() if key in keys), None)


class Trace:
    """Recorder of the stages of one request.

    Attributes:
        stages: what every stage did, in order.
    """

    def __init__(self) -> None:
        self.stages: list[StageTrace] = []
        self._dropped: dict[str, list[Any]] = {}
        self._late = False

    def drop(self, keys: NDArray[Any], reason: str) -> None:
        """Note that the running stage drops items. The first reason of an item counts."""
        noted = {key for own in self._dropped.values() for key in own}
        self._dropped.setdefault(reason, []).extend(key for key in keys.tolist() if key not in noted)

    def note_late(self) -> None:
        """Note that the running stage was left out because it was late."""
        self._late = True

    def record(self, name: str, before: Candidates, after: Candidates, seconds: float) -> None:
        """Record the running stage, which has ended."""
        kept = set(after.keys.tolist())
        noted = {key for keys in self._dropped.values() for key in keys}
        rest = [key for key in before.keys.tolist() if key not in kept and key not in noted]
        if rest:
            self._dropped.setdefault(BUDGET, []).extend(rest)
        dropped = {reason: keys for reason, keys in self._dropped.items() if keys}
        self.stages.append(StageTrace(name, before, after, dropped, seconds, self._late))
        self._dropped, self._late = {}, False
