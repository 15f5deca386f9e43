"""Area under the ROC curve: over all rows (AUC), and within each user (GAUC)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from longrec.errors import DataError
from longrec.metrics.columns import Floats, Ints, as_labels, as_numbers, as_weights, number_groups, require_both_classes


def auc(label: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> float:
    r"""Return the probability that a positive row has a higher score than a negative one. A tie counts half.

        AUC = sum_{i: y=1} sum_{j: y=0} w_i w_j ([s_i > s_j] + [s_i = s_j] / 2) / (W_1 W_0)

    with W_1, W_0 the weight of the positives and of the negatives. Only the order of the scores matters.
    One sort, O(N log N). Hanley and McNeil, Radiology 1982 (the Mann-Whitney form).

    Args:
        label: ``[N]`` of 0 and 1.
        score: ``[N]`` finite numbers, probabilities or logits.
        weight: ``[N]`` not negative. None: ones.

    Raises:
        DataError: if the label has one class only (there is no pair to compare), or a column cannot be used.

    >>> auc([1, 0, 1, 0], [0.9, 0.8, 0.8, 0.1])  # 4 pairs: won, won, tied, won
    0.875
    """
    y = as_labels(label)
    require_both_classes(y)
    s = as_numbers(score, "score", len(y))
    w = as_weights(weight, len(y))
    won, positive, negative = Pairs.of(y, s, np.zeros(len(y), np.int64), np.arange(len(y))).sum_won(w)
    if positive[0] == 0 or negative[0] == 0:
        raise DataError("column 'weight'", "no weight on one of the two classes", "weight on both")
    return float(won[0] / (positive[0] * negative[0]))


@dataclass(frozen=True)
class GroupedAUC:
    """GAUC, with the counts of users and rows it averages over.

    Attributes:
        value: row-weighted mean of AUC over the users with both classes. NaN without any.
        users: users counted.
        rows: rows of the users counted.
        users_skipped: users without an AUC, because all their rows are of one class.
        rows_skipped: rows of the users skipped.
    """

    value: float
    users: int
    rows: int
    users_skipped: int
    rows_skipped: int


def grouped_auc(label: ArrayLike, score: ArrayLike, user: ArrayLike, weight: ArrayLike | None = None) -> GroupedAUC:
    r"""Return the row-weighted mean of AUC within each user, with the counts of skipped users and rows.

        GAUC = sum_u n_u AUC_u / sum_u n_u      over the users u with both classes, n_u = rows of u

    It ignores the order between users, as a ranker orders the candidates of one user.
    Zhou et al., KDD 2018 (DIN), section 6.3; first in Zhu et al., KDD 2017.

    Args:
        label: ``[N]`` of 0 and 1.
        score: ``[N]`` finite numbers.
        user: ``[N]`` the user of each row, integers or strings, in any order.
        weight: ``[N]`` not negative. None: ones. A user then counts by the weight of its rows, and rows of weight 0
            are skipped.

    Raises:
        DataError: if a column cannot be used. If no user has rows of both classes, nothing is raised: the value is NaN
            and ``users`` is 0.

    >>> grouped_auc([1, 0, 1, 0, 1, 1], [0.9, 0.1, 0.2, 0.3, 0.5, 0.6], ["a", "a", "b", "b", "c", "c"])
    GroupedAUC(value=0.5, users=2, rows=4, users_skipped=1, rows_skipped=2)
    """
    y = as_labels(label)
    s = as_numbers(score, "score", len(y))
    group, count = number_groups(user, "user", len(y))
    if weight is not None:
        w = as_weights(weight, len(y))
        y, s, group, w = y[w > 0], s[w > 0], group[w > 0], w[w > 0]
    else:
        w = np.ones(len(y))
    pairs = Pairs.of(y, s, group, np.arange(len(y)))
    won, positive, negative = pairs.sum_won(w)
    share = positive + negative
    counted = len(pairs.positive) + len(pairs.negative)
    value = float((share * won / (positive * negative)).sum() / share.sum()) if counted else float("nan")
    return GroupedAUC(value, len(won), counted, count - len(won), len(y) - counted)


def gauc(label: ArrayLike, score: ArrayLike, user: ArrayLike) -> float:
    """Return the value of :func:`grouped_auc`, which also counts the skipped users and rows.

    Raises:
        DataError: if no user has rows of both classes, or a column cannot be used.

    >>> gauc([1, 0, 1, 0], [0.9, 0.1, 0.2, 0.3], [7, 7, 8, 8])  # user 7 is ranked right, user 8 wrong
    0.5
    """
    result = grouped_auc(label, score, user)
    if result.users == 0:
        raise DataError(
            "column 'label'",
            f"none of {result.users_skipped:,} users has rows of both classes",
            "at least one user with a 0 and a 1",
            "use auc, or a split that keeps several rows per user",
        )
    return result.value


@dataclass(frozen=True)
class Pairs:
    """The (positive, negative) pairs of every group, sorted once so that new row weights cost O(N).

    Only groups with both classes are kept. AUC is the case of one group.

    Attributes:
        positive: ``[P]`` index of the weight of each positive row, by group, then by rising score.
        negative: ``[M]`` the same of the negative rows.
        below: ``[P]`` number of entries of ``negative`` before the positive's own ties.
        upto: ``[P]`` the same with its ties, which count half.
        first_positive: ``[G]`` start of each group in ``positive``.
        first_negative: ``[G]`` start of each group in ``negative``.
        group: ``[G]`` the number of each group kept.
        positive_weight: ``[P]`` additional weight of each positive row. None for ones.
        negative_weight: ``[M]`` the same of the negative rows.
    """

    positive: Ints
    negative: Ints
    below: Ints
    upto: Ints
    first_positive: Ints
    first_negative: Ints
    group: Ints
    positive_weight: Floats | None = None
    negative_weight: Floats | None = None

    @classmethod
    def of(cls, label: Floats, score: Floats, group: Ints, unit: Ints, weight: Floats | None = None) -> Pairs:
        """Sort the rows.

        Args:
            label: ``[N]`` of 0 and 1.
            score: ``[N]`` finite numbers.
            group: ``[N]`` group of each row, 0, 1, ...
            unit: ``[N]`` index of the weight of each row in the argument of :meth:`sum_won`.
            weight: ``[N]`` factor of that weight per row. None: ones.
        """
        order = np.lexsort((score, group))
        ones = np.bincount(group, weights=label)
        mixed = (ones > 0) & (ones < np.bincount(group))
        order = order[mixed[group[order]]]
        y, s, g, u = label[order] > 0, score[order], group[order], unit[order]

        new_group = np.diff(g, prepend=-1) != 0
        new_tie = new_group | (np.diff(s, prepend=np.inf) != 0)
        # Negatives before each row, read at the start of a run of equal scores and at the start of the next.
        before = np.concatenate(([0], np.cumsum(~y)))
        bounds = np.append(np.flatnonzero(new_tie), len(order))
        tie = np.cumsum(new_tie)[y] - 1
        starts = np.flatnonzero(new_group)
        return cls(
            positive=u[y],
            negative=u[~y],
            below=before[bounds[tie]],
            upto=before[bounds[tie + 1]],
            first_positive=starts - before[starts],
            first_negative=before[starts],
            group=g[starts],
            positive_weight=None if weight is None else weight[order][y],
            negative_weight=None if weight is None else weight[order][~y],
        )

    def sum_won(self, weight: Floats) -> tuple[Floats, Floats, Floats]:
        """Return the weight of the pairs won, of the positives and of the negatives, each ``[G]``."""
        if len(self.group) == 0:
            return np.zeros(0), np.zeros(0), np.zeros(0)
        positives, negatives = weight[self.positive], weight[self.negative]
        if self.positive_weight is not None and self.negative_weight is not None:
            positives, negatives = positives * self.positive_weight, negatives * self.negative_weight
        before = np.concatenate(([0.0], np.cumsum(negatives)))
        wins = positives * (before[self.below] + before[self.upto]) * 0.5
        positive = np.add.reduceat(positives, self.first_positive)
        negative = np.add.reduceat(negatives, self.first_negative)
        # `before` accumulates over all groups, so the sum of earlier groups is subtracted.
        won = np.add.reduceat(wins, self.first_positive) - before[self.first_negative] * positive
        return won, positive, negative
