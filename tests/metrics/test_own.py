"""Metrics of one's own: their intervals are those of the built-in metrics, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from longrec.errors import ConfigError, DataError
from longrec.metrics import auc, log_loss, summary
from longrec.metrics.own import Metric, bootstrap_metrics, read_metrics, subtract, summarize

RANDOM = np.random.default_rng(0)
USER = np.sort(RANDOM.integers(0, 60, 600)) * 7
LABEL = (RANDOM.random(600) < 0.4).astype(float)
SCORE = np.clip(0.3 * LABEL + 0.7 * RANDOM.random(600), 0.01, 0.99)


def own_auc(label: Any, score: Any, user: Any) -> float:
    return auc(label, score)


def own_log_loss(label: Any, score: Any, user: Any) -> float:
    return log_loss(label, score)


@pytest.mark.parametrize("resample", ["user", "row"])
def test_intervals_are_those_of_the_built_in_metrics(resample: Any) -> None:
    """Both draw the same units in the same order."""
    metrics = read_metrics([own_auc, Metric(own_log_loss, better="lower")])
    drawn = bootstrap_metrics(metrics, LABEL, {"a": SCORE}, USER, n_resamples=40, seed=3, resample=resample)
    built_in = summary(LABEL, SCORE, USER, n_resamples=40, seed=3, resample=resample)
    for name, reference in (("own_auc", "auc"), ("own_log_loss", "log_loss")):
        own = summarize(drawn["a"])[name]
        assert [own.value, own.low, own.high] == pytest.approx(
            [built_in[reference].value, built_in[reference].low, built_in[reference].high], abs=1e-12
        )


def test_a_user_drawn_twice_is_two_users() -> None:
    seen: list[tuple[int, int]] = []

    def count(label: Any, score: Any, user: Any) -> float:
        seen.append((len(label), len(np.unique(user))))
        return float(len(np.unique(user)))

    bootstrap_metrics(read_metrics([count]), LABEL, {"a": SCORE}, USER, n_resamples=5)
    users = len(np.unique(USER))
    assert seen[0] == (600, users)
    assert {distinct for _, distinct in seen} == {users}
    assert len({rows for rows, _ in seen}) > 1


def test_differences_are_paired_and_have_a_direction() -> None:
    metrics = read_metrics({"rank": own_auc, "loss": Metric(own_log_loss, better="lower")})
    worse = np.clip(SCORE[::-1], 0.01, 0.99)
    drawn = bootstrap_metrics(metrics, LABEL, {"a": worse, "b": SCORE, "c": worse}, USER, n_resamples=40)
    difference = subtract(metrics, drawn["b"], drawn["a"])
    assert (difference["rank"].verdict, difference["loss"].verdict) == ("better", "better")
    assert subtract(metrics, drawn["a"], drawn["b"])["loss"].verdict == "worse"
    same = subtract(metrics, drawn["c"], drawn["a"])["rank"]
    assert (same.interval.low, same.interval.high, same.verdict) == (0.0, 0.0, "unclear")


def test_an_undefined_metric_has_no_interval_and_stops_no_other() -> None:
    def never(label: Any, score: Any, user: Any) -> float:
        return math.nan

    drawn = bootstrap_metrics(read_metrics([never, own_auc]), LABEL, {"a": SCORE}, USER, n_resamples=5)
    intervals = summarize(drawn["a"])
    assert not intervals["never"].defined
    assert intervals["own_auc"].defined

    def once(label: Any, score: Any, user: Any) -> float:
        return 1.0 if len(label) == 600 and user[0] == 0 and user[-1] == len(np.unique(USER)) - 1 else math.nan

    with pytest.raises(DataError, match="once: undefined on 100 resamples in a row"):
        bootstrap_metrics(read_metrics({"once": once}), LABEL, {"a": SCORE}, USER, n_resamples=2)


def test_faults() -> None:
    with pytest.raises(ConfigError) as raised:
        read_metrics({"auc": own_auc, "top 10": own_auc, "three": 3, "two": lambda label, score: 1.0})  # type: ignore
    assert [fault.partition(";")[0] for fault in raised.value.faults] == [
        "metrics: there is a metric 'auc' already",
        "metrics: 'top 10' is no name",
        "metrics.three: must be a function of labels, scores and users, got 3",
        "metrics.two: must take three arguments: labels, scores and users",
    ]
    with pytest.raises(ConfigError, match="'<lambda>' is no name; give one, as in metrics="):
        read_metrics([lambda label, score, user: 1.0])
    with pytest.raises(ConfigError, match="a metric 'own_auc' already"):
        read_metrics([own_auc, own_auc])

    def fails(label: Any, score: Any, user: Any) -> float:
        raise ValueError("one class")

    with pytest.raises(DataError, match="metric fails: ValueError: one class; expected a number on 600 rows"):
        bootstrap_metrics(read_metrics([fails]), LABEL, {"a": SCORE}, USER)
