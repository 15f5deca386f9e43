from __future__ import annotations

import numpy as np
import pytest

from longrec.errors import ConfigError, DataError
from longrec.metrics import (
    Impressions,
    UserResamples,
    UserSums,
    compare_draws,
    compare_impressions,
    compare_lists,
    difference_of_ratios,
    draw_exposure,
    ratio_interval,
    summarize_exposure,
    summarize_impressions,
    summarize_lists,
)


def test_intervals_of_lists_are_over_users_and_skip_undefined_lists():
    random = np.random.default_rng(0)
    user = np.repeat(np.arange(200), 5)
    value = (random.random(200) < 0.4).astype(float)[user]  # all lists of a user are alike
    value[:5] = np.nan
    one = summarize_lists({"hr": value, "none": np.full(1000, np.nan)}, user, n_resamples=200)
    assert one["hr"].value == np.nanmean(value)
    spread = np.sqrt(one["hr"].value * (1 - one["hr"].value) / 199)
    assert (one["hr"].high - one["hr"].low) / (2 * 1.96) == pytest.approx(spread, rel=0.2)
    assert not one["none"].defined
    with pytest.raises(DataError, match=r"values of shape \(3,\); expected 1,000, one per list"):
        summarize_lists({"hr": value[:3]}, user)
    with pytest.raises(DataError, match="two users"):
        summarize_lists({"hr": value[:3]}, [4, 4, 4])
    with pytest.raises(ConfigError, match="at least 2"):
        UserResamples([1, 2], n_resamples=1)


def test_differences_are_paired_and_directions_are_named():
    random = np.random.default_rng(1)
    first = random.random(300)
    runs = {"a": {"hr": first}, "b": {"hr": first + 0.01 * random.random(300)}}
    result = compare_lists(runs, np.arange(300), n_resamples=100)
    gain = result.differences["b"]["hr"]
    assert gain.verdict == "better"
    assert gain.interval.high - gain.interval.low < 0.1 * (result.runs["a"]["hr"].high - result.runs["a"]["hr"].low)
    resamples = UserResamples(np.arange(300), 50)
    shown = {run: draw_exposure(items, np.arange(300), 50, resamples) for run, items in {
        "even": np.arange(300) % 50, "few": np.arange(300) % 5}.items()}  # fmt: skip
    verdicts = {name: one.verdict for name, one in compare_draws(shown, resamples).differences["few"].items()}
    assert verdicts == {"coverage": "worse", "gini": "differs", "entropy": "differs"}
    with pytest.raises(ConfigError, match="two runs"):
        compare_lists({"a": {"hr": first}}, np.arange(300))


def test_the_interval_of_coverage_holds_its_value():
    random = np.random.default_rng(2)
    item, group = random.integers(0, 400, 3000), np.repeat(np.arange(300), 10)
    for name, one in summarize_exposure(item, group, np.arange(300), 500, n_resamples=100).items():
        assert one.low < one.value < one.high, name
    assert one.value == pytest.approx(-sum(p * np.log2(p) for p in np.bincount(item) / 3000 if p))
    with pytest.raises(DataError, match="numbers of the catalog's 400 items"):
        summarize_exposure([400], [0], [1, 2], 400)
    with pytest.raises(DataError, match="one listed item or more"):
        summarize_exposure([], [], [1, 2], 400)


def test_both_intervals_of_a_ratio_agree():
    random = np.random.default_rng(3)
    user = random.integers(0, 500, 6000)
    rate = random.beta(2, 8, 500)[user]
    click = (random.random(6000) < rate).astype(float)
    sums = UserSums.of(user, click, np.ones(6000))
    linear, drawn = ratio_interval(sums), ratio_interval(sums, "bootstrap", n_resamples=500)
    assert linear.value == drawn.value == click.mean()
    assert linear.high - linear.low == pytest.approx(drawn.high - drawn.low, rel=0.15)
    independent_rows = 2 * 1.96 * np.sqrt(click.mean() * (1 - click.mean()) / 6000)
    assert linear.high - linear.low > 1.2 * independent_rows
    with pytest.raises(ConfigError, match="did you mean 'delta'"):
        ratio_interval(sums, "delt")


def test_the_interval_of_a_ratio_covers_the_true_one():
    random = np.random.default_rng(4)
    covered = 0
    for _ in range(200):
        shown = random.integers(1, 9, 80)
        clicks = random.binomial(shown, random.beta(2, 8, 80))
        one = ratio_interval(UserSums.of(np.arange(80), clicks, shown))
        covered += one.low < 0.2 < one.high
    assert 0.88 <= covered / 200 <= 0.99


def test_a_difference_is_paired_on_the_same_users_and_independent_on_others():
    random = np.random.default_rng(5)
    level = random.normal(10, 3, 400)
    first, second = (UserSums.of(np.arange(400), level + random.normal(0, 0.1, 400), np.ones(400)) for _ in range(2))
    paired = difference_of_ratios(first, second)
    others = UserSums(second.user + 400, second.numerator, second.denominator)
    apart = difference_of_ratios(first, others)
    assert paired.value == apart.value
    alone = [ratio_interval(one) for one in (first, second)]
    width = np.hypot(*(one.high - one.low for one in alone))
    assert apart.high - apart.low == pytest.approx(width, rel=0.01)
    assert paired.high - paired.low < 0.1 * width
    drawn = difference_of_ratios(first, others, "bootstrap", n_resamples=300)
    assert drawn.high - drawn.low == pytest.approx(width, rel=0.2)


def test_business_by_hand():
    shown = Impressions([1, 1, 2, 3], [1, 0, 1, 0], [1, 0, 0, 0], [30, 0, 0, 0], [2, 5, 4, 9])
    values = {name: one.value for name, one in summarize_impressions(shown).items()}
    assert values == {"ctr": 0.5, "cvr": 0.5, "gpm": 7500.0, "ecpm": 1500.0}
    assert all(one.value == 0 for one in compare_impressions(shown, shown).values())


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: summarize_impressions(Impressions([1, 2], [0, 0], [1, 0])), "one without a click at row 0"),
        (lambda: summarize_impressions(Impressions([1, 2], [0, 0], [0, 0])), "a sum of 0; expected a positive one"),
        (lambda: summarize_impressions(Impressions([1, 2], [0, 2])), "0 or 1 in every row"),
        (lambda: summarize_impressions(Impressions([1, 2], [0, 1], bid=[-1, 2])), "values of 0 or more"),
        (lambda: summarize_impressions(Impressions([1, 1], [0, 1])), "two users or more"),
        (lambda: summarize_impressions(Impressions([1], [0, 1])), "one value per row"),
    ],
)
def test_faults_of_impressions_are_errors(call, says):
    with pytest.raises(DataError, match=says):
        call()
    with pytest.raises(ConfigError, match="give both the same columns"):
        compare_impressions(Impressions([1, 2], [0, 1]), Impressions([1, 2], [0, 1], bid=[1, 1]))
