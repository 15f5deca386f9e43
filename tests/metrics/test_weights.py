"""Weighted metrics against scikit-learn, and against rows repeated by their weight."""

from __future__ import annotations

import numpy as np
import pytest

from longrec import metrics
from longrec.metrics import METRICS, bootstrap, compare, summary

RANDOM = np.random.default_rng(5)
N = 400
Y = RANDOM.integers(0, 2, N)
P = np.round(RANDOM.random(N), 2)
USER = RANDOM.integers(0, 30, N)
TIMES = RANDOM.integers(0, 4, N)


def test_weights_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import log_loss as sk_log_loss  # a second, which other tests need not wait for
    from sklearn.metrics import roc_auc_score

    w = RANDOM.random(N)
    measured = summary(Y, P, USER, n_resamples=5, weight=w)
    assert measured["auc"].value == pytest.approx(roc_auc_score(Y, P, sample_weight=w))
    clipped = np.clip(P, 1e-7, 1 - 1e-7)
    assert measured["log_loss"].value == pytest.approx(sk_log_loss(Y, clipped, sample_weight=w))
    for key in ("auc", "log_loss", "normalized_entropy", "pcoc"):
        assert measured[key].value == pytest.approx(getattr(metrics, key)(Y, P, w))
    assert measured["gauc"].value == pytest.approx(metrics.grouped_auc(Y, P, USER, w).value)
    assert measured["ece"].value == pytest.approx(metrics.ece(Y, P, weight=w))


def test_a_row_of_weight_two_is_two_rows() -> None:
    y, p, user = (np.repeat(column, TIMES) for column in (Y, P, USER))
    measured, wanted = summary(Y, P, USER, n_resamples=5, weight=TIMES), summary(y, p, user, n_resamples=5)
    for key in ("auc", "gauc", "log_loss", "normalized_entropy", "pcoc"):
        assert measured[key].value == pytest.approx(wanted[key].value), key
    one = bootstrap(Y, {"x": P}, USER, n_resamples=8, weight=TIMES)
    other = bootstrap(y, {"x": p}, user, n_resamples=8)
    np.testing.assert_allclose(one.draws["x"][:, :5], other.draws["x"][:, :5], rtol=1e-9)


@pytest.mark.parametrize("resample", ["user", "row"])
def test_a_common_factor_changes_nothing(resample: str) -> None:
    one = bootstrap(Y, {"x": P}, USER, n_resamples=6, resample=resample, weight=np.full(N, 3.0))
    other = bootstrap(Y, {"x": P}, USER, n_resamples=6, resample=resample)
    np.testing.assert_allclose(one.draws["x"], other.draws["x"], rtol=1e-9)
    np.testing.assert_allclose(one.values["x"], other.values["x"], rtol=1e-9)
    assert len(METRICS) == one.draws["x"].shape[1]


def test_comparisons_are_weighted_too_and_rows_of_no_weight_are_left_out() -> None:
    w = np.where(USER < 10, 0.0, 1.0)
    comparison = compare(Y, {"a": P, "b": 1 - P}, USER, n_resamples=5, weight=w)
    kept = w > 0
    wanted = compare(Y[kept], {"a": P[kept], "b": 1 - P[kept]}, USER[kept], n_resamples=5)
    assert comparison == wanted


def test_bad_weights_are_refused() -> None:
    from longrec.errors import DataError

    for bad in (np.zeros(N), np.full(N, -1.0), np.full(N, np.nan), np.ones(3)):
        with pytest.raises(DataError, match="weight"):
            summary(Y, P, USER, n_resamples=5, weight=bad)
    with pytest.raises(DataError, match="score"):
        summary(Y, P[:9], USER, n_resamples=5, weight=np.ones(N))
    with pytest.raises(DataError, match="all 1"):
        summary(Y, P, USER, n_resamples=5, weight=Y)
