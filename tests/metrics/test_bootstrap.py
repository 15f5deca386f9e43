from __future__ import annotations

import json
import math
import time

import numpy as np
import pytest

from longrec import metrics
from longrec.errors import ConfigError, DataError, UnknownName
from longrec.metrics import METRICS, Interval, bootstrap, compare, summary
from longrec.metrics.bootstrap import _Column

PUBLIC = {
    "auc": lambda y, p, u: metrics.auc(y, p),
    "gauc": metrics.gauc,
    "log_loss": lambda y, p, u: metrics.log_loss(y, p),
    "normalized_entropy": lambda y, p, u: metrics.normalized_entropy(y, p),
    "pcoc": lambda y, p, u: metrics.pcoc(y, p),
    "ece": lambda y, p, u: metrics.ece(y, p),
}


def sample_rows(rows=3000, users=200, seed=0):
    """Draw labels from the score's own probability, with rounded scores, so that there are many ties."""
    rng = np.random.default_rng(seed)
    user = rng.integers(0, users, rows)
    score = np.round(rng.beta(2, 3, rows), 2)
    return (rng.random(rows) < score).astype(np.float32), score, user


@pytest.mark.parametrize("resample", ["user", "row"])
def test_values_are_those_of_the_plain_functions(resample):
    y, p, u = sample_rows()
    for key, one in summary(y, p, u, n_resamples=20, resample=resample).items():
        assert one.value == pytest.approx(PUBLIC[key](y, p, u), abs=1e-12)
        assert one.low <= one.value <= one.high


@pytest.mark.parametrize("resample", ["user", "row"])
def test_a_resample_equals_the_plain_functions_on_rows_written_out(resample):
    y, p, u = sample_rows(rows=400, users=30)
    u = np.unique(u, return_inverse=True)[1]
    units = u.max() + 1 if resample == "user" else len(y)
    of_row = u if resample == "user" else np.arange(len(y))
    column = _Column(y.astype(float), p, u, of_row, units, resample)
    rng = np.random.default_rng(5)
    for _ in range(5):
        counts = np.bincount(rng.integers(0, units, units), minlength=units)
        rows = np.repeat(np.arange(len(y)), counts[of_row])
        measured = dict(zip(METRICS, column.measure(counts.astype(float))))
        for key in METRICS[:5]:  # ECE keeps the bins of the full rows
            # A user drawn twice is one user for GAUC: all its pairs count twice, and its AUC is the same.
            assert measured[key] == pytest.approx(PUBLIC[key](y[rows], p[rows], u[rows]), abs=1e-12), key


def test_the_seed_decides():
    y, p, u = sample_rows()
    assert summary(y, p, u, n_resamples=30, seed=3) == summary(y, p, u, n_resamples=30, seed=3)
    assert summary(y, p, u, n_resamples=30, seed=3) != summary(y, p, u, n_resamples=30, seed=4)


def test_row_order_does_not_matter_when_users_are_drawn():
    y, p, u = sample_rows()
    order = np.random.default_rng(1).permutation(len(y))
    one, two = summary(y, p, u, n_resamples=30), summary(y[order], p[order], u[order], n_resamples=30)
    for key in METRICS:
        assert one[key].low == pytest.approx(two[key].low, abs=1e-12)
        assert one[key].high == pytest.approx(two[key].high, abs=1e-12)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """Users shift scores and labels alike in all their rows, so intervals over rows are too narrow."""
    spread, shift = 1.2, 1.0
    truth = 0.5 * (1 + math.erf(shift / math.sqrt(2 * (1 + spread**2)) / math.sqrt(2)))  # Phi(d / sqrt(2 (1 + t^2)))
    covered = {"user": 0, "row": 0}
    trials = 100
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        u = np.repeat(np.arange(60), 10)
        y = (rng.random(600) < rng.beta(0.5, 0.5, 60)[u]).astype(float)
        z = shift * y + spread * rng.normal(size=60)[u] + rng.normal(size=600)
        for resample in covered:
            one = summary(y, 1 / (1 + np.exp(-z)), u, n_resamples=80, seed=trial, resample=resample)["auc"]
            covered[resample] += one.low <= truth <= one.high
    assert covered["user"] >= 0.86 * trials
    assert covered["row"] <= 0.8 * trials


def test_equal_scores_differ_by_exactly_nothing():
    y, p, u = sample_rows()
    comparison = compare(y, {"a": p, "b": p.copy()}, u, n_resamples=50)
    for difference in comparison.differences["b"].values():
        assert difference.interval == Interval(0.0, 0.0, 0.0)
        assert (difference.real, difference.verdict) == (False, "unclear")


def test_a_real_difference_is_called_real_and_noise_is_not():
    rng = np.random.default_rng(0)
    y, p, u = sample_rows(rows=8000, users=300)
    noisy = np.clip(p + rng.normal(size=len(p)) * 0.15, 0, 1)
    again = np.clip(p + rng.normal(size=len(p)) * 1e-5, 0, 1)
    comparison = compare(y, {"good": p, "noisy": noisy, "again": again}, u, baseline="good", n_resamples=100)
    assert list(comparison.differences) == ["noisy", "again"]
    verdicts = {key: one.verdict for key, one in comparison.differences["noisy"].items()}
    assert [verdicts[key] for key in ("auc", "gauc", "log_loss", "normalized_entropy")] == ["worse"] * 4
    assert not comparison.differences["again"]["auc"].real
    turned = compare(y, {"good": p, "noisy": noisy}, u, baseline="noisy", n_resamples=100).differences["good"]
    assert turned["auc"].verdict == "better"
    assert turned["log_loss"].verdict == "better"
    one, other = comparison.differences["noisy"]["auc"].interval, turned["auc"].interval
    assert (other.value, other.low, other.high) == pytest.approx((-one.value, -one.high, -one.low), abs=1e-12)


def test_pairing_makes_differences_much_tighter_than_the_runs():
    y, p, u = sample_rows()
    other = np.clip(p + 0.02 * np.random.default_rng(1).normal(size=len(p)), 0, 1)
    comparison = compare(y, {"a": p, "b": other}, u, n_resamples=60)
    run, difference = comparison.runs["b"]["auc"], comparison.differences["b"]["auc"].interval
    assert difference.high - difference.low < (run.high - run.low) / 3


def test_pcoc_that_differs_is_neither_better_nor_worse():
    y, p, u = sample_rows()
    assert compare(y, {"a": p, "b": p * 0.9}, u, n_resamples=30).differences["b"]["pcoc"].verdict == "differs"


def test_a_comparison_is_plain_json_and_counts_what_gauc_left_out():
    y, p, u = sample_rows(rows=300, users=150)
    comparison = compare(y, {"a": p, "b": p * 0.5}, u, n_resamples=20)
    skipped = metrics.grouped_auc(y, p, u)
    content = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert content["baseline"] == "a"
    assert (content["rows"], content["users"], content["positives"]) == (300, len(set(u)), int(y.sum()))
    assert (content["gauc_users_skipped"], content["gauc_rows_skipped"]) == (
        skipped.users_skipped,
        skipped.rows_skipped,
    )
    assert Interval.from_dict(content["runs"]["b"]["auc"]) == comparison.runs["b"]["auc"]
    assert content["differences"]["b"]["pcoc"]["real"] is True


def test_one_row_a_user_has_no_gauc_and_that_is_said_not_averaged():
    y, p, u = sample_rows(rows=200)
    result = summary(y, p, np.arange(200), n_resamples=20)
    assert not result["gauc"].defined
    assert str(result["gauc"]) == "undefined"
    assert result["gauc"].to_dict() == {"value": None, "low": None, "high": None}
    assert not Interval.from_dict(result["gauc"].to_dict()).defined
    assert result["auc"].defined
    assert compare(y, {"a": p, "b": p}, np.arange(200), n_resamples=5).differences["b"]["gauc"].verdict == "unclear"


def test_resamples_that_lack_a_class_are_drawn_again():
    y, u = np.array([1.0, 0, 0, 0, 0, 0]), np.array([0, 0, 1, 2, 3, 4])
    drawn = bootstrap(y, {"s": np.linspace(0.9, 0.1, 6)}, u, n_resamples=50)
    assert np.isfinite(drawn.draws["s"]).all()


def test_faults_are_errors():
    y, p, u = sample_rows(rows=50)
    with pytest.raises(DataError, match="50 rows that are all 0"):
        summary(np.zeros(50), p, u)
    with pytest.raises(DataError, match=r"(?s)1 user; expected two users or more.*resample='row'"):
        summary(y, p, np.zeros(50, int))
    with pytest.raises(DataError, match="column 'b': the value 7"):
        compare(y, {"a": p, "b": p + 7}, u)
    with pytest.raises(UnknownName, match="did you mean 'user'"):
        summary(y, p, u, resample="users")
    with pytest.raises(UnknownName, match="no run named 'c'"):
        compare(y, {"a": p, "b": p}, u, baseline="c")
    with pytest.raises(ConfigError, match="at least 2"):
        summary(y, p, u, n_resamples=1)
    with pytest.raises(ConfigError, match="at least one score column"):
        compare(y, {}, u)


def test_the_bootstrap_is_fast():
    rng = np.random.default_rng(0)
    u, p = rng.integers(0, 6000, 100_000), rng.random(100_000).astype(np.float32)
    y = rng.random(100_000) < p
    start = time.process_time()
    compare(y, {"a": p, "b": 1 - p}, u, n_resamples=100)
    assert time.process_time() - start < 2  # 300 resamples under 6 s
