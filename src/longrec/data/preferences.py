"""Preferences of users among the items of one request, and rewards of rows, as far as they are available in training.

Levels are names of feedback, the weakest first: with ``(click, like)`` a row has level 2 if it was liked, 1 if it was
clicked, else 0. Feedback that was not available when the window of the rows ended may still come. So each row has the
level that it has reached, and the one that it may reach: the largest of the rows of its item in the request. One row is
preferred to another if the level that it has reached is above the one that the other may reach: an item that is bought
later is not compared as one that was not.

Shapes: N rows of a split, B rows of a batch, P pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from longrec.data.availability import expand_ranges
from longrec.data.log import Log
from longrec.data.targets import check_targets, compute_target
from longrec.data.user_loader import number_requests
from longrec.errors import ConfigError, DataError

LABEL = "label"
"""Name of the label of the schema among feedback."""


class Preferences:
    """Levels and rewards of the rows of a split of a log, and pairs of rows of one request.

    Args:
        levels: names of feedback, the weakest first: feedback features with the values 0 and 1, or ``label``.
        rewards: weight of each feedback in the reward of a row. A name may also be a column of ``data.weights``, which
            counts as available with the label.
        losers: largest number of pairs of a preferred row in a batch.

        split: name of the split. Feedback must be available before the next one begins. That of test is the final one.

    Attributes:
        rows: int64 ``[N]``, the labeled rows of the split.
        reached, possible: int64 ``[N]``, level that each row has reached, and level that it may reach.
        reward: float32 ``[N]``, NaN if a feedback of it was not available. None without rewards.
    """

    def __init__(
        self, log: Log, levels: Sequence[str], rewards: Mapping[str, float], losers: int = 1, split: str = "train"
    ) -> None:
        self.log, self.losers, self.rows = log, losers, log.rows_of(split)
        end = None if split == "test" else log.training_window.end(split, log.user(self.rows))
        self.reached = self.possible = np.zeros(len(self.rows), np.int64)
        for level, name in enumerate(levels, 1):
            value = _read(log, name, self.rows, end)
            self.reached = np.where(value > 0, level, self.reached)
            self.possible = np.where((value > 0) | np.isnan(value), level, self.possible)
        self.reward: NDArray[np.float32] | None = None
        if rewards:
            total = sum(weight * _read(log, name, self.rows, end) for name, weight in rewards.items())
            self.reward = np.asarray(total, np.float32)
        request = number_requests(log, self.rows)
        items = log.events.columns["item"].take(self.rows).astype(np.int64)
        _, same = np.unique(request * (len(log.items) + 1) + items, return_inverse=True)
        self.reached, self.possible = (_spread_largest(level, same) for level in (self.reached, self.possible))
        starts = np.searchsorted(request, np.arange(request.max(initial=-1) + 2))
        self._first, self._stop = starts[request], starts[request + 1]
        least = np.minimum.reduceat(self.possible, starts[:-1]) if len(self.rows) else self.possible
        self._is_preferred = self.reached > least[request]

    @property
    def preferred(self) -> NDArray[np.int64]:
        """Rows of the log that are preferred to a row of their request."""
        return self.rows[self._is_preferred]

    def draw_pairs(
        self, rows: NDArray[np.int64], random: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return pairs for rows of the log: int64 ``[P]``, entries of ``rows``, and the rows that are preferred less.

        Each entry has all its pairs, or ``losers`` of them, drawn at random.
        """
        at = np.searchsorted(self.rows, rows)
        entry = np.flatnonzero(self._is_preferred[at])
        first, lengths = self._first[at[entry]], (self._stop - self._first)[at[entry]]
        other, _ = expand_ranges(first, lengths)
        entry = np.repeat(entry, lengths)
        is_pair = self.reached[at[entry]] > self.possible[other]
        entry, other = entry[is_pair], other[is_pair]
        order = np.lexsort((random.random(len(entry)), entry))
        entry, other = entry[order], other[order]
        kept = np.arange(len(entry)) - np.searchsorted(entry, entry) < self.losers
        return entry[kept], self.rows[other[kept]]

    def rewards_of(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the rewards of rows of the log, float32 ``[B]``."""
        assert self.reward is not None
        return self.reward[np.searchsorted(self.rows, rows)]


def check_feedback(log: Log, levels: Sequence[str], rewards: Sequence[str]) -> None:
    """Raise an error if a log does not have the feedback of levels and rewards.

    Raises:
        ConfigError: a name that is neither feedback nor ``label``, nor a column of ``data.weights`` among rewards; one
            value in all training rows; or levels in a log without time.
    """
    names = [*levels, *(name for name in rewards if not _is_weight(log, name))]
    features = [name for name in dict.fromkeys(names) if not _is_label(log, name)]
    faults: list[str] = []
    try:
        check_targets(log, features)
    except ConfigError as error:
        faults += [fault.replace("model: the target", "model: the feedback") for fault in error.faults]
    if levels and log.schema.time is None:
        faults.append("data.schema.time: is required; preferences are among the items of one user and timestamp")
    shown = log.labels.take(log.rows_of("train"))
    if any(_is_label(log, name) for name in levels) and shown.min(initial=1) > 0:
        faults.append(
            "model.levels: 'label' is 1 in every training row; give the log of impressions, with label 0 for items "
            "that were shown and not taken"
        )
    if faults:
        raise ConfigError("config", faults)


def check_pairs(preferences: Preferences, targets: NDArray[np.int64], split: str = "train") -> None:
    """Raise an error if no target is preferred to another row of its request.

    Args:
        targets: rows of the log, of the split of the preferences.
        split: its name.

    Raises:
        DataError: says how many rows the requests have.
    """
    if np.isin(targets, preferences.preferred).any():
        return
    rows, log = preferences.rows, preferences.log
    requests = int(number_requests(log, rows)[-1]) + 1
    do = "name the column of a request (request in the schema), give rows of one request one timestamp, or set"
    raise DataError(
        f"the {split} split",
        f"{requests:,} requests of {len(rows) / requests:.3g} rows on average, none with a target above another row",
        "requests in which a target was preferred to another item, for pairs",
        f"{do} model.dpo_weight: 0",
    )


def _read(log: Log, name: str, rows: NDArray[np.int64], end: NDArray[np.int64] | None) -> NDArray[np.float32]:
    """Return one feedback of labeled rows: NaN if it was not available before the end of their window."""
    if _is_weight(log, name):
        return log.weights[name].take(rows)
    if _is_label(log, name):
        return log.labels.take(rows)  # they are the rows whose label was available
    return compute_target(log, name, rows, end)


def _is_weight(log: Log, name: str) -> bool:
    return name in log.weights and name not in log.schema.features


def _is_label(log: Log, name: str) -> bool:
    return name == LABEL and name not in log.schema.features


def _spread_largest(values: NDArray[np.int64], group: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the largest value of the group of each entry."""
    largest = np.zeros(group.max(initial=-1) + 1, np.int64)
    np.maximum.at(largest, group, values)
    return largest[group]
