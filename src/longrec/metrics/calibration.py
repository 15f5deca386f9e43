"""Metrics of probabilities: log loss, normalized entropy, PCOC, ECE, and the calibration curve of ECE."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from longrec.errors import ConfigError, DataError
from longrec.metrics.columns import (
    Floats,
    Ints,
    as_labels,
    as_numbers,
    as_probabilities,
    as_weights,
    require_both_classes,
)

# A float32 sigmoid reaches exactly 0 and 1. This bounds the loss of one row at 16.1 instead of infinity.
EPSILON = 1e-7
BINS = 15


def log_loss(label: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None, *, logits: bool = False) -> float:
    r"""Return the mean negative log likelihood (binary cross entropy), in nats.

        - sum_i w_i (y_i ln p_i + (1 - y_i) ln(1 - p_i)) / sum_i w_i

    Probabilities are clipped to [1e-7, 1 - 1e-7]. Logits are not clipped. Their loss is computed stably.

    Args:
        label: ``[N]`` of 0 and 1. One class is allowed.
        score: ``[N]`` probabilities, or any finite numbers with ``logits=True``.
        weight: ``[N]`` not negative. None: ones.

    Raises:
        DataError: if a column cannot be used, or a probability is outside [0, 1].

    >>> round(log_loss([1, 0], [0.8, 0.4]), 4)  # (-ln 0.8 - ln 0.6) / 2
    0.367
    >>> round(log_loss([1], [0.0], logits=True), 4)  # ln 2
    0.6931
    """
    y = as_labels(label)
    if logits:
        z = as_numbers(score, "score", len(y))
        loss: Floats = np.logaddexp(0, z) - y * z
    else:
        loss = row_log_loss(y, as_probabilities(score, len(y)))
    return float(np.average(loss, weights=as_weights(weight, len(y))))


def row_log_loss(label: Floats, score: Floats) -> Floats:
    """Return the loss of each row ``[N]``, in nats, with probabilities clipped as in :func:`log_loss`."""
    p = np.clip(score, EPSILON, 1 - EPSILON)
    loss: Floats = -np.log(np.where(label > 0, p, 1 - p))
    return loss


def entropy(rate: float) -> float:
    """Return the entropy of a Bernoulli variable with probability ``rate``, in nats.

    >>> round(entropy(0.5), 4)  # ln 2
    0.6931
    """
    return float(-rate * np.log(rate) - (1 - rate) * np.log1p(-rate))


def normalized_entropy(label: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> float:
    r"""Return log loss divided by the log loss of the base rate: below 1 is better than a constant score.

        NE = logloss(y, p) / H(q)        q = share of positives, H(q) = -q ln q - (1 - q) ln(1 - q)

    Comparable between data sets of different base rates, as log loss is not.
    He et al., ADKDD 2014, equation 3.

    Raises:
        DataError: if the label has one class only (H = 0), and as :func:`log_loss`.

    >>> normalized_entropy([1, 0, 0, 0], [0.25] * 4)
    1.0
    """
    y = as_labels(label)
    require_both_classes(y)
    rate = float(np.average(y, weights=as_weights(weight, len(y))))
    if rate in (0.0, 1.0):
        raise DataError("column 'weight'", "no weight on one of the two classes", "weight on both")
    return log_loss(y, score, weight) / entropy(rate)


def pcoc(label: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> float:
    r"""Return predicted clicks divided by clicks: 1 is right on average, above 1 predicts too many.

        PCOC = sum_i w_i p_i / sum_i w_i y_i

    Called *calibration* in He et al., ADKDD 2014, section 2. It measures only the mean, so errors may cancel.

    Raises:
        DataError: if there is no positive row, or a column cannot be used.

    >>> pcoc([1, 0, 1, 0], [0.75, 0.5, 0.75, 0.5])
    1.25
    """
    y = as_labels(label)
    w = as_weights(weight, len(y))
    p = as_probabilities(score, len(y))
    clicks = float(w @ y)
    if clicks == 0:
        raise DataError("column 'label'", f"no positive among {len(y):,} rows", "at least one positive row")
    return float(w @ p) / clicks


@dataclass(frozen=True)
class CalibrationCurve:
    """Bins of rows with similar scores, by rising score.

    Attributes:
        score: ``[B]`` mean score of each bin.
        rate: ``[B]`` share of positives in each bin.
        count: ``[B]`` rows in each bin.
    """

    score: tuple[float, ...]
    rate: tuple[float, ...]
    count: tuple[int, ...]


def calibration_curve(
    label: ArrayLike, score: ArrayLike, bins: int = BINS, weight: ArrayLike | None = None
) -> CalibrationCurve:
    """Return predicted and observed rates, in bins of equally many rows.

    Bin edges are quantiles of the score, and equal scores always share a bin, so the result does not depend on
    the order of the rows. Repeated scores may give fewer bins.

    Args:
        label: ``[N]`` of 0 and 1.
        score: ``[N]`` probabilities.
        bins: number of bins, 10 to 20 is usual.
        weight: ``[N]`` not negative, for the means in each bin. None: ones. Rows of weight 0 are skipped.

    Raises:
        DataError: if a column cannot be used, or a probability is outside [0, 1].

    >>> calibration_curve([0, 0, 1, 1], [0.1, 0.1, 0.4, 0.6], bins=2)
    CalibrationCurve(score=(0.1, 0.5), rate=(0.0, 1.0), count=(2, 2))
    """
    y = as_labels(label)
    p = as_probabilities(score, len(y))
    w = as_weights(weight, len(y))
    y, p, w = y[w > 0], p[w > 0], w[w > 0]
    which = assign_bins(p, bins)
    count, mass = np.bincount(which), np.bincount(which, weights=w)
    return CalibrationCurve(
        score=tuple((np.bincount(which, weights=w * p) / mass).tolist()),
        rate=tuple((np.bincount(which, weights=w * y) / mass).tolist()),
        count=tuple(count.tolist()),
    )


def ece(label: ArrayLike, score: ArrayLike, bins: int = BINS, weight: ArrayLike | None = None) -> float:
    r"""Return the expected calibration error over bins of equally many rows.

        ECE = sum_b (w_b / W) |mean score in b - share of positives in b|

    with w_b the weight of the rows of a bin (their number without weights) and W that of all.

    Noise alone makes it positive: a perfectly calibrated score on n rows per bin has about
    0.8 sqrt(q (1 - q) / n). Naeini et al., AAAI 2015; equal-mass bins as in Roelofs et al., AISTATS 2022.

    Args:
        label: ``[N]`` of 0 and 1.
        score: ``[N]`` probabilities.
        bins: number of bins, 10 to 20 is usual.
        weight: ``[N]`` not negative. None: ones.

    Raises:
        ConfigError: if ``bins`` is below 1.
        DataError: if a column cannot be used, or a probability is outside [0, 1].

    >>> round(ece([0, 0, 1, 1], [0.1, 0.1, 0.4, 0.6], bins=2), 3)  # (|0.1 - 0| + |0.5 - 1|) / 2
    0.3
    """
    y = as_labels(label)
    p = as_probabilities(score, len(y))
    w = as_weights(weight, len(y))
    y, p, w = y[w > 0], p[w > 0], w[w > 0]
    gaps = np.bincount(assign_bins(p, bins), weights=w * (p - y))
    return float(np.abs(gaps).sum() / w.sum())


def assign_bins(score: Floats, bins: int) -> Ints:
    """Return the bin of each row ``[N]``, 0, 1, ... by rising score, none empty. Equal scores share a bin."""
    if bins < 1:
        raise ConfigError("bins", [f"must be at least 1, got {bins}"])
    # Inner edges are scores that occur. A row equal to an edge belongs to the bin above it.
    edges = np.quantile(score, np.arange(1, bins) / bins, method="higher")
    which = np.searchsorted(edges, score, side="right")
    return np.unique(which, return_inverse=True)[1].astype(np.int64, copy=False)
