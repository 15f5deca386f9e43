"""Weighted metrics against scikit-learn, and against rows written out as often as they weigh."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import log_loss as sk_log_loss
from sklearn.metrics import roc_auc_score

from longrec import metrics
from longrec.metrics import METRICS, bootstrap, compare, summary

RANDOM = np.random.default_rng(5)
N = 400
Y = RANDOM.integers(0, 2, N)
P = np.round(RANDOM.random(N), 2)
USER = RANDOM.integers(0, 30, N)
TIMES = RANDOM.integers(0, 4, N)


def test_weights_are_those_of_scikit_learn() -> None:
    w = RANDOM.random(N)
    found = summary(Y, P, USER, replicates=5, weight=w)
    assert found["auc"].value == pytest.approx(roc_auc_score(Y, P, sample_weight=w))
    clipped = np.clip(P, 1e-7, 1 - 1e-7)
    assert found["log_loss"].value == pytest.approx(sk_log_loss(Y, clipped, sample_weight=w))
    for key in ("auc", "log_loss", "normalised_entropy", "pcoc"):
        assert found[key].value == pytest.approx(getattr(metrics, key)(Y, P, w))
    assert found["gauc"].value == pytest.approx(metrics.grouped_auc(Y, P, USER, w).value)
    assert found["ece"].value == pytest.approx(metrics.ece(Y, P, weight=w))


def test_a_row_of_weight_two_is_two_rows() -> None:
    y, p, user = (np.repeat(column, TIMES) for column in (Y, P, USER))
    found, wanted = summary(Y, P, USER, replicates=5, weight=TIMES), summary(y, p, user, replicates=5)
    for key in ("auc", "gauc", "log_loss", "normalised_entropy", "pcoc"):
        assert found[key].value == pytest.approx(wanted[key].value), key
    one = bootstrap(Y, {"x": P}, USER, replicates=8, weight=TIMES)
    other = bootstrap(y, {"x": p}, user, replicates=8)
    np.testing.assert_allclose(one.draws["x"][:, :5], other.draws["x"][:, :5], rtol=1e-9)


@pytest.mark.parametrize("unit", ["user", "row"])
def test_a_common_factor_changes_nothing(unit: str) -> None:
    one = bootstrap(Y, {"x": P}, USER, replicates=6, unit=unit, weight=np.full(N, 3.0))
    other = bootstrap(Y, {"x": P}, USER, replicates=6, unit=unit)
    np.testing.assert_allclose(one.draws["x"], other.draws["x"], rtol=1e-9)
    np.testing.assert_allclose(one.values["x"], other.values["x"], rtol=1e-9)
    assert len(METRICS) == one.draws["x"].shape[1]


def test_comparisons_are_weighted_too_and_rows_of_no_weight_are_left_out() -> None:
    w = np.where(USER < 10, 0.0, 1.0)
    found = compare(Y, {"a": P, "b": 1 - P}, USER, replicates=5, weight=w)
    kept = w > 0
    wanted = compare(Y[kept], {"a": P[kept], "b": 1 - P[kept]}, USER[kept], replicates=5)
    assert found == wanted


def test_bad_weights_are_refused() -> None:
    from longrec.errors import DataError

    for bad in (np.zeros(N), np.full(N, -1.0), np.full(N, np.nan), np.ones(3)):
        with pytest.raises(DataError, match="weight"):
            summary(Y, P, USER, replicates=5, weight=bad)
    with pytest.raises(DataError, match="score"):
        summary(Y, P[:9], USER, replicates=5, weight=np.ones(N))
    with pytest.raises(DataError, match="all 1"):
        summary(Y, P, USER, replicates=5, weight=Y)
