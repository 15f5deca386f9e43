from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.errors import ConfigError, DataError
from longrec.metrics import calibration_curve, ece, log_loss, normalized_entropy, pcoc


def test_log_loss_by_hand_and_from_logits():
    label, p = np.array([1, 0, 1]), np.array([0.9, 0.2, 0.5])
    by_hand = -(np.log(0.9) + np.log(0.8) + np.log(0.5)) / 3
    assert log_loss(label, p) == pytest.approx(by_hand)
    assert log_loss(label, np.log(p / (1 - p)), logits=True) == pytest.approx(by_hand)
    assert log_loss(label, p, [0, 1, 1]) == pytest.approx(-(np.log(0.8) + np.log(0.5)) / 2)


def test_a_sure_and_wrong_row_costs_much_but_not_infinity():
    assert log_loss([1, 0], [0.0, 1.0]) == pytest.approx(-np.log(1e-7), rel=1e-6)
    assert log_loss([1, 0], np.array([1, 0], np.float32)) == pytest.approx(1e-7, rel=1e-3)
    assert log_loss([1], [-800.0], logits=True) == 800.0


def test_scores_outside_zero_and_one_are_no_probabilities():
    with pytest.raises(DataError, match=r"(?s)the value 1.5 at row 1; expected probabilities between 0 and 1.*sigmoid"):
        log_loss([0, 1], [0.2, 1.5])


def test_normalized_entropy_of_the_base_rate_is_one():
    label = np.array([1, 0, 0, 0, 1, 0, 0, 0])
    assert normalized_entropy(label, np.full(8, 0.25)) == pytest.approx(1.0)
    assert normalized_entropy(label, np.where(label, 0.9, 0.1)) < 1
    with pytest.raises(DataError, match="all 1"):
        normalized_entropy([1, 1], [0.5, 0.5])


def test_pcoc_by_hand():
    assert pcoc([1, 0, 0, 1], [0.5, 0.25, 0.0, 0.25]) == 0.5
    assert pcoc([1, 0], [0.5, 0.25], [1, 2]) == 1.0
    with pytest.raises(DataError, match="no positive among 2 rows"):
        pcoc([0, 0], [0.5, 0.5])


def test_ece_by_hand():
    label = [0, 1, 0, 1, 1, 1]
    score = [0.1, 0.2, 0.4, 0.5, 0.8, 0.9]
    # pairs: |.15 - .5|, |.45 - .5|, |.85 - 1|
    assert ece(label, score, bins=3) == pytest.approx((0.35 + 0.05 + 0.15) / 3)
    assert ece([0, 1, 0, 1], [0.5] * 4) == 0.0


def test_equal_scores_share_a_bin_so_the_row_order_cannot_matter():
    rng = np.random.default_rng(0)
    label, score = rng.integers(0, 2, 400), rng.integers(0, 7, 400) / 7
    order = rng.permutation(400)
    assert ece(label, score) == pytest.approx(ece(label[order], score[order]), abs=1e-12)
    curve = calibration_curve(label, score)
    assert len(curve.count) <= 7
    assert curve.score == tuple(sorted(curve.score))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_the_curve_holds_every_row_once_and_ece_follows_from_it(rows, bins, seed):
    rng = np.random.default_rng(seed)
    label, score = rng.integers(0, 2, rows), np.round(rng.random(rows), rng.integers(1, 5))
    curve = calibration_curve(label, score, bins)
    count = np.array(curve.count)
    assert count.sum() == rows
    assert 1 <= len(count) <= bins
    assert (count > 0).all()
    gaps = np.abs(np.array(curve.score) - np.array(curve.rate))
    assert ece(label, score, bins) == pytest.approx(float((count * gaps).sum() / rows), abs=1e-12)


def test_bins_are_of_equal_mass_and_small_for_a_calibrated_score():
    rng = np.random.default_rng(0)
    score = rng.random(30_000)
    label = rng.random(30_000) < score
    curve = calibration_curve(label, score)
    assert set(curve.count) == {2000}
    assert ece(label, score) < 0.015
    assert ece(label, score**2) > 0.1
    with pytest.raises(ConfigError, match="at least 1"):
        ece(label, score, bins=0)
