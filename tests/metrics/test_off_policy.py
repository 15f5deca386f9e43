"""Off-policy estimates: identities, values of the Open Bandit Pipeline, errors, and coverage of the intervals.

``off_policy_values.json`` is a synthetic log of 40 rows with the values of obp 0.4.1, which
``bench/quality/off_policy.py --freeze`` wrote. obp is not installed for tests.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longrec.errors import ConfigError, DataError
from longrec.metrics import (
    PolicyValue,
    effective_sample_size,
    estimate_policy_value,
    importance_weights,
    skewed_interval,
)

ANY = 1e-12
"""A bound of the effective sample size that refuses nothing."""
Columns = dict[str, np.ndarray]


def draw(rows: int = 400, seed: int = 0, users: int | None = None) -> Columns:
    """Rows of 4 items in 3 contexts, drawn by one softmax policy, with the probabilities of another."""
    random = np.random.default_rng(seed)
    fixed = np.random.default_rng(5)
    logits = fixed.normal(size=(2, 3, 4))
    mu, pi = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    rate, predicted = fixed.uniform(0.05, 0.5, (2, 3, 4))
    context = random.integers(0, 3, rows)
    item = (random.random(rows)[:, None] > mu.cumsum(1)[context]).sum(1)
    columns = {
        "reward": (random.random(rows) < rate[context, item]).astype(np.float64),
        "propensity": mu[context, item],
        "target": pi[context, item],
        "predicted": predicted[context, item],
        "expected": (pi * predicted).sum(1)[context],
    }
    return columns if users is None else {**columns, "unit": random.integers(0, users, rows)}


def values(result: PolicyValue) -> dict[str, float]:
    return {name: one.value.value for name, one in result.estimates.items()}


# ---- identities --------------------------------------------------------------------------------------------------


def test_the_logging_policy_earns_the_mean_reward_with_any_predictions() -> None:
    """Every item of a context is logged as often as its propensity says, so that DR has no sampling error."""
    random = np.random.default_rng(1)
    shares = np.array([4, 3, 2, 1])  # of 10 rows of each of 20 contexts
    context, item = np.repeat(np.arange(20), 10), np.tile(np.repeat(np.arange(4), shares), 20)
    mu = shares / 10
    predicted = random.normal(size=(20, 4))
    reward = random.integers(0, 2, 200).astype(np.float64)
    result = estimate_policy_value(
        reward, mu[item], mu[item], predicted=predicted[context, item], expected=(predicted @ mu)[context]
    )
    for name in ("ips", "clipped_ips", "snips", "dr"):
        assert result.estimates[name].value.value == pytest.approx(reward.mean(), abs=1e-12)
        assert result.estimates[name].gain.value == pytest.approx(0, abs=1e-12)
    assert result.effective_rows == pytest.approx(200)
    assert result.mean_weight.value == 1
    assert result.warnings == ()


def test_weights_of_one_make_ips_and_snips_the_mean_of_any_log() -> None:
    log = draw()
    result = estimate_policy_value(log["reward"], log["propensity"], log["propensity"])
    assert values(result) == dict.fromkeys(("ips", "clipped_ips", "snips"), pytest.approx(log["reward"].mean()))
    assert result.logged == result.estimates["ips"].value


def test_dr_is_dm_for_perfect_predictions() -> None:
    log = draw()
    own = values(estimate_policy_value(**{**log, "reward": log["predicted"]}))
    assert own["dr"] == pytest.approx(own["dm"], abs=1e-12)
    assert own["ips"] != pytest.approx(own["dm"], abs=1e-6)


@pytest.mark.parametrize("shift", [-3.0, 0.25])
def test_a_shift_of_rewards_shifts_snips_exactly_and_not_ips(shift: float) -> None:
    log = draw()
    before = values(estimate_policy_value(**log))
    moved = {name: log[name] + shift for name in ("reward", "predicted", "expected")}
    after = values(estimate_policy_value(**{**log, **moved}))
    assert after["snips"] == pytest.approx(before["snips"] + shift, abs=1e-12)
    assert after["dr"] == pytest.approx(before["dr"] + shift, abs=1e-12)
    assert after["ips"] != pytest.approx(before["ips"] + shift, abs=1e-3)


def test_a_clip_above_all_weights_is_ips_and_a_lower_one_is_the_mean_of_bounded_weights() -> None:
    log = draw()
    w = importance_weights(log["propensity"], log["target"])
    high = estimate_policy_value(log["reward"], log["propensity"], log["target"], clip=w.max())
    assert values(high)["clipped_ips"] == values(high)["ips"]
    assert high.clipped_rows == 0
    low = estimate_policy_value(log["reward"], log["propensity"], log["target"], clip=1.0)
    assert values(low)["clipped_ips"] == pytest.approx((np.minimum(w, 1) * log["reward"]).mean())
    assert low.clipped_rows == (w > 1).sum()
    assert low.estimates["clipped_ips"].largest_weight == 1.0
    assert low.estimates["clipped_ips"].effective_rows > low.estimates["ips"].effective_rows
    default = estimate_policy_value(log["reward"], log["propensity"], log["target"])
    assert default.clip == math.sqrt(len(w))


def test_values_are_those_of_obp() -> None:
    content = json.loads((Path(__file__).parent / "off_policy_values.json").read_text())
    expected, clip = content.pop("values"), content.pop("clip")
    assert content.pop("obp") == "0.4.1"
    result = estimate_policy_value(**content, clip=clip, min_effective=ANY)
    assert values(result) == pytest.approx(expected, abs=1e-12)
    assert 0 < result.clipped_rows < result.rows


def test_the_effective_sample_size() -> None:
    assert effective_sample_size(np.full(7, 0.3)) == pytest.approx(7)
    assert effective_sample_size([1, 0, 0]) == 1
    assert effective_sample_size([0, 0]) == 0


# ---- units and positions -----------------------------------------------------------------------------------------


def test_rows_repeated_within_units_change_no_value_and_no_interval() -> None:
    log = draw()
    twice = {name: np.repeat(column, 2) for name, column in log.items()}
    one = estimate_policy_value(**log, clip=2.0)
    units = np.repeat(np.arange(400), 2)
    two = estimate_policy_value(**twice, unit=units, unit_name="request", clip=2.0)
    for name, own in one.estimates.items():
        for left, right in ((own.value, two.estimates[name].value), (own.gain, two.estimates[name].gain)):
            assert (left.value, left.low, left.high) == pytest.approx((right.value, right.low, right.high), abs=1e-12)
    assert (two.rows, two.units, two.unit) == (800, 400, "request")
    assert two.effective_units == pytest.approx(one.effective_rows)
    as_rows = estimate_policy_value(**twice, clip=2.0).estimates["ips"].value
    assert as_rows.high - as_rows.low < 0.8 * (one.estimates["ips"].value.high - one.estimates["ips"].value.low)


def test_positions_have_values_of_their_own_and_an_assumption() -> None:
    log = draw(900)
    position = np.arange(900) % 2 + 1
    position[:12] = 3
    result = estimate_policy_value(**log, position=position)
    assert list(result.positions) == ["1", "2"]
    own = {name: column[position == 2] for name, column in log.items()}
    alone = estimate_policy_value(**own, clip=30.0)
    assert result.positions["2"].estimates == alone.estimates
    assert any("position-wise independence" in one for one in result.assumptions)
    assert any(one.startswith("position 3 is left out: an effective sample size of") for one in result.warnings)
    assert result.estimates == estimate_policy_value(**log).estimates
    assert not any("position-wise" in one for one in estimate_policy_value(**log).assumptions)


# ---- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0.0, None, math.nan, 1.5, -0.1, math.inf])
def test_a_propensity_that_is_no_probability_names_its_rows(bad: float | None) -> None:
    log = draw()
    propensity: list[Any] = log["propensity"].tolist()
    propensity[7] = propensity[123] = bad
    with pytest.raises(DataError, match=r"2 bad values in 400 rows .*rows 7, 123, from 0") as raised:
        estimate_policy_value(log["reward"], propensity, log["target"])
    assert raised.value.where == "column 'propensity'"
    kind = "2 null or NaN" if bad is None or math.isnan(bad) else f"2 such as {bad:g}"
    assert kind in raised.value.found


@pytest.mark.parametrize("bad", [-0.1, 1.01, math.nan, None])
def test_a_target_that_is_no_probability_names_its_rows(bad: float | None) -> None:
    target: list[Any] = [0.0, 1.0, 0.5, bad]
    with pytest.raises(DataError, match=r"column 'target': 1 bad values in 4 rows .*rows 3, from 0"):
        importance_weights([0.5] * 4, target)


def test_masked_values_are_null() -> None:
    column = np.ma.MaskedArray([0.5, 0.5], mask=[False, True])
    with pytest.raises(DataError, match="1 null or NaN; rows 1, from 0"):
        importance_weights(column, [0.5, 0.5])


@pytest.mark.parametrize("name", ["reward", "predicted", "expected"])
def test_rewards_and_predictions_must_be_finite(name: str) -> None:
    log = draw()
    log[name][3] = math.nan
    with pytest.raises(DataError, match=rf"column '{name}': 1 bad values in 400 rows"):
        estimate_policy_value(**log)


def test_a_small_effective_sample_size_is_refused() -> None:
    log = draw()
    log["propensity"] = log["propensity"].copy()
    log["propensity"][5] = 1e-6  # one row with nearly all of the weight
    with pytest.raises(DataError, match=r"effective sample size of 1\.\d rows, the largest weight"):
        estimate_policy_value(**log)
    assert estimate_policy_value(**log, min_effective=1.0).effective_rows < 2


def test_few_units_are_refused_though_there_are_many_rows() -> None:
    log = draw(users=30)
    with pytest.raises(DataError, match=r"effective sample size of [\d.]+ users"):
        estimate_policy_value(**log)


def test_one_unit_is_no_small_sample() -> None:
    log = {**draw(), "unit": np.zeros(400, int)}
    with pytest.raises(DataError, match="a single user; expected at least 2 users, over which intervals are"):
        estimate_policy_value(**log)


def test_a_target_that_shows_nothing_of_the_log_is_refused() -> None:
    log = draw()
    with pytest.raises(DataError, match=r"effective sample size of 0\.0 rows"):
        estimate_policy_value(log["reward"], log["propensity"], np.zeros(400))


def test_rewards_without_variation_are_refused() -> None:
    log = draw()
    with pytest.raises(DataError, match="rewards that are all 0 .*; expected rewards that differ") as raised:
        estimate_policy_value(np.zeros(400), log["propensity"], log["target"])
    assert "min_effective" not in str(raised.value)
    only_elsewhere = np.where(np.arange(400) < 20, 1.0, 0.0)
    target = np.where(np.arange(400) < 20, 0.0, log["target"])
    with pytest.raises(DataError, match="rewards that are all 0 where the target is above 0"):
        estimate_policy_value(only_elsewhere, log["propensity"], target)


def test_predictions_without_their_expectation_are_refused() -> None:
    log = draw()
    del log["expected"]
    with pytest.raises(ConfigError, match="expected") as raised:
        estimate_policy_value(**log, clip=0.0, min_effective=-1.0)
    assert len(raised.value.faults) == 3


@pytest.mark.parametrize("name", ["reward", "target", "expected", "position", "unit"])
def test_columns_of_other_lengths_are_refused(name: str) -> None:
    columns = {**draw(), "position": np.ones(400), "unit": np.arange(400)}
    columns[name] = columns[name][:-1]
    with pytest.raises(DataError, match="399 rows"):
        estimate_policy_value(**columns)


def test_a_mean_weight_that_is_not_1_is_a_warning() -> None:
    log = draw()
    assert estimate_policy_value(**log).warnings == ()
    (warning,) = estimate_policy_value(**{**log, "target": log["target"] / 2}).warnings
    assert warning.startswith("the mean weight is 0.")


# ---- intervals ---------------------------------------------------------------------------------------------------


def test_an_interval_without_skewness_is_the_normal_one() -> None:
    x = np.array([-1.0, 1.0] * 50)
    own = skewed_interval(0.0, x / 100)
    half = 1.959963984540054 * math.sqrt(100 / 99 / 100)
    assert (own.low, own.high) == pytest.approx((-half, half), abs=1e-9)
    assert skewed_interval(0.5, np.zeros(10)).low == 0.5
    with pytest.raises(DataError, match="1 unit"):
        skewed_interval(0.5, np.zeros(1))


def test_an_interval_of_few_clicks_ends_close_to_the_exact_one_and_contains_the_normal_one() -> None:
    click = np.repeat([1.0, 0.0], [10, 9_990])
    own = skewed_interval(click.mean(), (click - click.mean()) / len(click))
    half = 1.959963984540054 * math.sqrt(1e-3 * (1 - 1e-3) / 9_999)
    assert 1e4 * own.high == pytest.approx(18.39, rel=0.05)  # Clopper and Pearson 1934
    assert own.low == pytest.approx(1e-3 - half, abs=1e-12)
    mirrored = skewed_interval(-click.mean(), -(click - click.mean()) / len(click))
    assert (mirrored.low, mirrored.high) == (-own.high, -own.low)


@pytest.mark.parametrize(
    ("sigma", "rate", "least"), [(0.5, 0.2, 0.93), (0.5, 0.02, 0.93), (1.2, 0.2, 0.90)], ids=["light", "rare", "heavy"]
)
def test_intervals_cover(sigma: float, rate: float, least: float) -> None:
    """500 logs of 1,000 rows with log-normal weights. A standard error of the coverage is 1 to 1.3 points."""
    random = np.random.default_rng(3)
    inside, normal = {"ips": 0, "snips": 0}, 0
    for _ in range(500):
        w = np.exp(sigma * random.normal(size=1_000) - sigma**2 / 2)
        reward = random.random(1_000) < rate
        result = estimate_policy_value(reward, np.full(1_000, 1e-4), 1e-4 * w, min_effective=ANY)
        for name in inside:
            one = result.estimates[name].value
            inside[name] += one.low <= rate <= one.high
        product = w * reward
        normal += abs(product.mean() - rate) <= 1.96 * product.std(ddof=1) / math.sqrt(1_000)
    for name, hits in inside.items():
        assert least <= hits / 500 <= 0.985, name
    assert inside["ips"] > normal


# ---- results -----------------------------------------------------------------------------------------------------


def test_results_are_tables_and_json() -> None:
    log = draw(900, users=400)
    result = estimate_policy_value(**log, position=np.arange(900) % 2)
    columns = result.to_columns()
    assert {len(column) for column in columns.values()} == {15}
    assert columns["estimate"][:5] == ["ips", "clipped_ips", "snips", "dm", "dr"]
    assert columns["position"][::5] == [None, "0", "1"]
    content = json.loads(json.dumps(result.to_dict()))
    assert content["estimates"]["dm"]["effective_rows"] is None
    assert content["estimates"]["ips"]["largest_weight"] == result.estimates["ips"].largest_weight
    assert content["positions"]["1"]["rows"] == 450
    assert result.to_arrow().num_rows == 15
    text = repr(result)
    assert "900 rows, ESS" in text
    assert "users, ESS" in text
    assert "assumed: position-wise independence" in text
