"""Order of the targets of an epoch: windows at random, and of each user all targets or some."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longrec.data.availability import expand_ranges


@dataclass(frozen=True)
class TargetOrder:
    """Targets of one epoch.

    Attributes:
        windows: int64, the windows that have a target, in the order of the epoch.
        targets: int64, the targets of the epoch, ascending. None: all.
        bounds: int64 ``[W + 1]``, where the targets of each window begin in ``targets``, and end.
    """

    windows: NDArray[np.int64]
    targets: NDArray[np.int64] | None
    bounds: NDArray[np.int64]

    def counts(self, windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of targets of windows."""
        return self.bounds[windows + 1] - self.bounds[windows]

    def of(self, windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the targets of windows, in their order."""
        at, _ = expand_ranges(self.bounds[windows], self.counts(windows))
        return at if self.targets is None else self.targets[at]


class TargetChoice:
    """Targets of a log, of which an epoch has all, or at most some of each user.

    Args:
        users: user of each target, int64, ascending.
        windows: int64 ``[W + 1]``, where the targets of each window begin, and end.
        per_user: largest number of targets of a user in an epoch. None: all.

    Attributes:
        total: number of targets of an epoch.
        rates: float64, probability of each target to be in an epoch. None: 1.
    """

    def __init__(self, users: NDArray[np.int64], windows: NDArray[np.int64], per_user: int | None = None) -> None:
        self.windows, self.per_user, self.total = windows, per_user, len(users)
        self.rates: NDArray[np.float64] | None = None
        if per_user is not None:
            self._users = users
            starts = np.flatnonzero(np.diff(users, prepend=-1))
            counts = np.diff(np.append(starts, len(users)))
            self.total = int(np.minimum(counts, per_user).sum())
            self.rates = np.repeat(np.minimum(per_user / np.maximum(counts, 1), 1), counts)
            self._rank = np.arange(len(users)) - np.repeat(starts, counts)

    def draw(self, random: np.random.Generator) -> TargetOrder:
        """Return the targets of an epoch and their order."""
        windows = random.permutation(len(self.windows) - 1)
        if self.per_user is None:
            return TargetOrder(windows, None, self.windows)
        shuffled = np.lexsort((random.random(len(self._users)), self._users))
        targets = np.sort(shuffled[self._rank < self.per_user])
        bounds = np.searchsorted(targets, self.windows)
        return TargetOrder(windows[np.diff(bounds)[windows] > 0], targets, bounds)
