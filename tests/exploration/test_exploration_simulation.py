"""The simulation of ``bench/quality/exploration_simulation.py``: known regrets, and no label before it is shown."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench" / "quality"))

import exploration_environments
import exploration_policies as policies
import exploration_simulation as simulation
from exploration_environments import Environment, draw_drifting
from exploration_policies import POLICIES, Learner, replay, serve
from exploration_report import find_interval, judge, write_tables

SERVED, HELD, CANDIDATES, SEED = 150, 200, 5, 3
EXPLORING = [name for name in POLICIES if name != "random"]


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a round have 50 requests."""
    for module in (exploration_environments, policies, simulation):
        monkeypatch.setattr(module, "ROUND", 50)


@pytest.fixture
def environment() -> Environment:
    return draw_drifting(SEED, SERVED, HELD, CANDIDATES)


def build(environment: Environment, name: str) -> Learner:
    return Learner(environment, POLICIES[name], (*POLICIES[name].strengths, None)[0], SEED)


def test_random_has_the_regret_that_its_definition_gives(environment: Environment) -> None:
    """The mean over many draws is within five standard errors of the largest probability less the mean one."""
    learner = build(environment, "random")
    rows = slice(0, SERVED)
    regrets = []
    for seed in range(60):
        learner.seed = seed
        regrets.append(simulation.measure_regret(environment, learner.choose(rows)).mean())
    expected = (environment.best[rows].astype(np.float64) - environment.truth[rows].mean(1)).mean()
    error = np.std(regrets) / len(regrets) ** 0.5
    assert 0 < error < expected / 50
    assert np.mean(regrets) == pytest.approx(expected, abs=5 * error)


def test_a_policy_that_reads_the_truth_has_no_regret(environment: Environment) -> None:
    shown = serve(build(environment, "random"), lambda rows: environment.truth[rows].argmax(1))
    assert simulation.measure_regret(environment, shown).max() == 0


@pytest.mark.parametrize("name", POLICIES)
def test_coin_flips_leave_no_regret_and_an_auc_of_one_half(environment: Environment, name: str) -> None:
    figures, shown = simulation.run(environment.level(), name, (*POLICIES[name].strengths, None)[0], SEED)
    assert figures["regret"] == 0
    assert shown.shape == (SERVED,)
    # 1,000 candidates: the standard error of an AUC of one half is 0.018.
    assert figures["auc"] == pytest.approx(0.5, abs=0.09)


@pytest.mark.parametrize("name", EXPLORING)
def test_choices_depend_on_clicks_of_shown_items_in_earlier_rounds_alone(environment: Environment, name: str) -> None:
    """Other truths of what was not shown, and other clicks from a round on, leave all choices until then alone."""
    shown = serve(build(environment, name))
    truth = 1 - environment.truth
    rows = np.arange(SERVED)
    truth[rows, shown] = environment.truth[rows, shown]
    assert (serve(build(replace(environment, truth=truth), name)) == shown).all()
    later = environment.chance.copy()
    later[50:] = 1 - later[50:]
    changed = serve(build(replace(environment, chance=later), name))
    assert (changed[:100] == shown[:100]).all()
    assert (changed[100:] != shown[100:]).any()


@pytest.mark.parametrize("rare", [False, True])
def test_requests_candidates_and_clicks_are_those_of_the_seed(rare: bool) -> None:
    environment, again, other = (draw_drifting(seed, SERVED, HELD, CANDIDATES, rare) for seed in (SEED, SEED, SEED + 1))
    for key in ("candidates", "truth", "chance"):
        assert (getattr(again, key) == getattr(environment, key)).all()
        assert (getattr(other, key) != getattr(environment, key)).any()
    ordered = np.sort(environment.candidates, 1)
    assert (ordered[:, 1:] != ordered[:, :-1]).all()


def test_a_count_bonus_explores_what_was_shown_least(environment: Environment) -> None:
    learner = build(environment, "count bonus")
    learner.bonus, first = 1e6, environment.candidates[:, 0]
    learner.counts[np.setdiff1d(environment.candidates, first[0])] = 9
    assert learner.choose(slice(0, 1)).tolist() == [0]


def test_items_are_new_until_they_were_shown_often_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "NEW", 150)
    candidates = np.zeros((500, 1), np.int64)
    candidates[450:] = 1
    always: Any = replace(draw_drifting(0, 500, 100, 1), candidates=candidates)
    assert simulation.count_new(always, np.zeros(500, np.int64)) == (150 + 50) / 500


def test_a_net_that_learns_from_its_own_log_again_is_the_same(environment: Environment) -> None:
    """Net B of the fair buckets is net A where the policy shows what the greedy one does."""
    learner = build(environment, "greedy")
    shown = serve(learner)
    buckets = simulation.measure_buckets(environment, shown, shown, SEED)
    assert buckets == {f"bucket_{key}": value for key, value in simulation.evaluate_net(learner).items()}
    other = build(environment, "greedy")
    replay(other, shown)
    held = slice(SERVED, SERVED + HELD)
    assert (other.predict(held) == learner.predict(held)).all()


def test_intervals_are_those_of_student() -> None:
    """The mean of 1, 2, 3, 4 has the standard error 0.6455, and t of three degrees of freedom is 3.1824."""
    assert find_interval(np.arange(1.0, 5.0)) == pytest.approx((2.5, 2.5 - 2.0543, 2.5 + 2.0543), abs=1e-3)


def test_a_finished_run_is_not_repeated_and_makes_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "TUNING_SERVED", 100)
    monkeypatch.setattr(simulation, "HELD_OUT", 100)
    study = simulation.Study(None, 100, tmp_path)
    names = ["greedy", "thompson"]
    simulation.run_study(study, ["drifting"], names, 2)
    monkeypatch.setattr(simulation, "run", None)
    simulation.run_study(study, ["drifting"], names, 2)
    runs = {name: study.collect("drifting", name, 2) for name in names}
    assert [one["seed"] for one in runs["thompson"]] == [0, 1]
    assert all("bucket_greedy_value" in one for one in runs["thompson"])
    assert "| thompson |" in write_tables({"drifting": {**runs, "age-ts": []}})


def test_the_sentence_says_who_has_less_regret() -> None:
    runs = {
        name: [{"seed": seed, "regret": base + 0.001 * seed} for seed in range(4)]
        for name, base in (("a", 0.1), ("b", 0.2))
    }
    runs["c"] = [{"seed": seed, "regret": 0.1 + 0.01 * (-1) ** seed} for seed in range(4)]
    assert judge(runs, "a", "b").startswith("a has less regret than b: -10.00")
    assert judge(runs, "b", "a").startswith("b has more regret than a")
    assert "no regret that differs" in judge(runs, "a", "c")
