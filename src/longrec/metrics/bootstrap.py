"""Bootstrap of all metrics at once over users (or rows).

A resample is never materialized. It is a vector of counts, one per user. Each score column is sorted once. After that
a resample costs a cumulative sum for AUC, sums over bins for ECE, and dot products for the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longrec.errors import ConfigError, DataError, UnknownName
from longrec.metrics.auc import Pairs
from longrec.metrics.calibration import BINS, assign_bins, entropy, row_log_loss
from longrec.metrics.columns import (
    Floats,
    Ints,
    as_labels,
    as_probabilities,
    as_weights,
    number_groups,
    require_both_classes,
)

METRICS = ("auc", "gauc", "log_loss", "normalized_entropy", "pcoc", "ece")
Resample = Literal["user", "row"]


@dataclass(frozen=True)
class Draws:
    """Metrics of every score column, on the full rows and on every resample.

    Attributes:
        values: run -> ``[6]`` in the order of ``METRICS``.
        draws: run -> ``[R, 6]``. Resample r is the same for every run.
        rows, users, positives: counts of the measured rows.
        gauc_users_skipped, gauc_rows_skipped: users of one class, which GAUC skips, and their rows.
    """

    values: dict[str, Floats]
    draws: dict[str, Floats]
    rows: int
    users: int
    positives: int
    gauc_users_skipped: int
    gauc_rows_skipped: int


def bootstrap(
    label: ArrayLike,
    scores: Mapping[str, ArrayLike],
    user: ArrayLike,
    *,
    n_resamples: int = 300,
    seed: int = 0,
    resample: Resample = "user",
    weight: ArrayLike | None = None,
) -> Draws:
    """Draw users (or rows) with replacement and compute the metrics of every score column on each resample.

    Rows of one user are alike, so drawing rows makes intervals too narrow for the metrics on other users.
    ``resample="user"`` draws whole users (the cluster bootstrap; Field and Welsh, JRSS B 2007). Each resample is used
    for every column, so that differences between columns are paired. A resample with an undefined AUC or GAUC is drawn
    again. ECE keeps the bins of the full rows.

    Args:
        label: ``[N]`` of 0 and 1.
        scores: run name -> ``[N]`` probabilities, on the same rows.
        user: ``[N]`` the user of each row.
        weight: ``[N]`` not negative, weight of each row in every metric. None: ones. It does not change the probability
            of a draw. Rows of weight 0 are skipped.

    Raises:
        DataError: if the label has one class only, there are fewer than two units to draw from, or a column cannot be
            used.
        ConfigError: if there are no scores, ``n_resamples`` is below 2, or ``resample`` is unknown.
    """
    if resample not in ("user", "row"):
        raise UnknownName("resample", str(resample), ("user", "row"))
    if n_resamples < 2:
        raise ConfigError("n_resamples", [f"must be at least 2, got {n_resamples}"])
    if not scores:
        raise ConfigError("scores", ["at least one score column is required"])
    y = as_labels(label)
    w = None if weight is None else as_weights(weight, len(y))
    if w is not None:
        some = w > 0
        # A score of another length is refused below, so only those that fit are masked.
        cut = {name: np.asarray(score) for name, score in scores.items()}
        scores = {name: score[some] if score.shape == some.shape else score for name, score in cut.items()}
        y, user, w = y[some], np.asarray(user)[some], w[some]
    require_both_classes(y)
    group, users = number_groups(user, "user", len(y))
    of_row, units = (group, users) if resample == "user" else (np.arange(len(y)), len(y))
    if units < 2:
        raise DataError(
            f"column '{resample}'", f"{units} {resample}", f"two {resample}s or more to draw from", "use resample='row'"
        )

    columns = {
        name: _Column(y, as_probabilities(score, len(y), name), group, of_row, units, resample, w)
        for name, score in scores.items()
    }
    ones = np.ones(units)
    values = {name: column.measure(ones) for name, column in columns.items()}
    draws = {name: np.empty((n_resamples, len(METRICS))) for name in columns}
    defined = np.isfinite(next(iter(values.values())))
    rng = np.random.default_rng(seed)
    for r in range(n_resamples):
        _draw(rng, units, columns, defined, {name: block[r] for name, block in draws.items()})

    skipped = np.ones(users, bool)
    skipped[next(iter(columns.values())).pairs_by_user.group] = False
    return Draws(
        values=values,
        draws=draws,
        rows=len(y),
        users=users,
        positives=int(y.sum()),
        gauc_users_skipped=int(skipped.sum()),
        gauc_rows_skipped=int(skipped[group].sum()),
    )


def _draw(
    rng: np.random.Generator,
    units: int,
    columns: Mapping[str, _Column],
    defined: NDArray[np.bool_],
    into: dict[str, Floats],
) -> None:
    """Fill one resample, and draw again while it lacks a class (the same for every column, as labels are shared)."""
    for _ in range(1000):
        counts = np.bincount(rng.integers(0, units, units), minlength=units).astype(np.float64)
        for name, column in columns.items():
            into[name][:] = column.measure(counts)
            if not np.isfinite(into[name][defined]).all():
                break
        else:
            return
    raise DataError(
        "column 'label'",
        "1,000 resamples in a row that lack one of the two classes",
        "enough users of each class to draw from",
        "measure a larger split, or use resample='row'",
    )


class _Column:
    """One score column, prepared for ``measure(counts of the units) -> [6]``."""

    def __init__(
        self, y: Floats, p: Floats, user: Ints, of_row: Ints, units: int, resample: Resample, w: Floats | None = None
    ) -> None:
        everyone = np.zeros(len(y), np.int64)
        self.pairs = Pairs.of(y, p, everyone, of_row, w)
        self.pairs_by_user = Pairs.of(y, p, user, of_row, w)
        self.fixed_users: tuple[Floats, Floats] | None = None
        if resample == "user":
            # All rows of a user are drawn together, so its AUC never changes, only its count.
            won, positive, negative = self.pairs_by_user.sum_won(np.ones(units))
            rows = np.zeros(units)
            rows[self.pairs_by_user.group] = positive + negative
            area = np.zeros(units)
            area[self.pairs_by_user.group] = won / (positive * negative)
            self.fixed_users = (rows, rows * area)

        columns = np.stack([np.ones(len(y)), y, p, row_log_loss(y, p)])
        if w is not None:
            columns *= w
        self.sums = np.stack([np.bincount(of_row, weights=column, minlength=units) for column in columns])
        which = assign_bins(p, BINS)
        by_bin = np.argsort(which, kind="stable")
        self.bin_unit, self.bin_gap = of_row[by_bin], (p - y if w is None else w * (p - y))[by_bin]
        self.bin_start = np.flatnonzero(np.diff(which[by_bin], prepend=-1))

    def measure(self, counts: Floats) -> Floats:
        """Return the six metrics ``[6]``. Metrics that need both classes are NaN where undefined."""
        rows, clicks, promised, loss = self.sums @ counts
        result = np.full(len(METRICS), np.nan)
        if clicks == 0 or clicks == rows:
            return result
        won, positive, negative = self.pairs.sum_won(counts)
        gaps = np.add.reduceat(counts[self.bin_unit] * self.bin_gap, self.bin_start)
        result[0] = won[0] / (positive[0] * negative[0])
        result[1] = self._compute_gauc(counts)
        result[2] = loss / rows
        result[3] = loss / rows / entropy(clicks / rows)
        result[4] = promised / clicks
        result[5] = np.abs(gaps).sum() / rows
        return result

    def _compute_gauc(self, counts: Floats) -> float:
        if self.fixed_users is not None:
            total, weighted = counts @ self.fixed_users[0], counts @ self.fixed_users[1]
            return float(weighted / total) if total else float("nan")
        won, positive, negative = self.pairs_by_user.sum_won(counts)
        kept = (positive > 0) & (negative > 0)
        rows = (positive + negative)[kept]
        if not len(rows):
            return float("nan")
        return float((rows * won[kept] / (positive[kept] * negative[kept])).sum() / rows.sum())
