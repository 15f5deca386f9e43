"""Warnings of metrics that are worse than without a model."""

from __future__ import annotations

import numpy as np
import pytest

from longrec.metrics import Interval, compare, metric_warnings


def around(value: float, reach: float = 0.001) -> Interval:
    return Interval(value, value - reach, value + reach)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("auc", 0.499, "AUC on test is 0.4990 [0.4980, 0.5000], below 0.5"),
        ("normalized_entropy", 1.52, "Normalized entropy on test is 1.5200"),
        ("pcoc", 0.79, "PCOC on test is 0.7900 [0.7890, 0.7910], outside 0.8 to 1.25: the scores promise 0.79"),
        ("pcoc", 45.0, "the scores promise 45 positives for each that came"),
        ("auc.buy", 0.4, "AUC of buy on test is 0.4000"),
        ("normalized_entropy.buy", 1.2, "Normalized entropy of buy on test"),
        ("pcoc.buy", 1.3, "PCOC of buy on test"),
    ],
)
def test_each_bound_has_its_sentence(key: str, value: float, text: str) -> None:
    (sentence,) = metric_warnings({key: around(value)}, "test")
    assert text in sentence
    assert "; " in sentence, "what to do"


@pytest.mark.parametrize(
    ("key", "value"),
    [("auc", 0.5), ("normalized_entropy", 1.0), ("pcoc", 0.8), ("pcoc", 1.25), ("gauc", 0.3), ("log_loss", 9.0)],
)
def test_what_is_within_the_bounds_says_nothing(key: str, value: float) -> None:
    assert metric_warnings({key: around(value), "auc.x": Interval.undefined()}, "test") == ()


def test_the_value_decides_and_an_interval_across_the_bound_is_noted() -> None:
    near, far = (metric_warnings({"pcoc": around(1.3, reach)}, "valid")[0] for reach in (0.1, 0.01))
    assert "the interval reaches across 1.25" in near
    assert "reaches across" not in far


def test_a_joined_score_is_no_probability_but_has_an_order() -> None:
    measured = {"auc": around(0.4), "pcoc": around(3.0), "pcoc.label": around(1.5)}
    said = metric_warnings(measured, "test", not_probabilities=[""])
    assert [sentence.partition(" on ")[0] for sentence in said] == ["AUC", "PCOC of label"]


def test_a_comparison_names_its_rows_and_the_run_that_it_warns_of() -> None:
    y, u = np.tile([1, 0], 60), np.repeat(np.arange(30), 4)
    scores = {"good": np.where(y > 0, 0.6, 0.4), "loud": np.where(y > 0, 0.9, 0.7)}
    comparison = compare(y, scores, u, n_resamples=20, split="test")
    assert comparison.to_dict()["split"] == "test"
    assert len(comparison.warnings) == len([said for said in comparison.warnings if said.startswith("loud: ")]) >= 1
    assert comparison.to_dict()["warnings"] == list(comparison.warnings)
