"""Coin flips: whatever factors meet, nothing that a run may know tells a coin, and every leak that is planted shows.

The logs are those of ``coins/coin_log.py``. An AUC is judged at five standard errors of what knows nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "coins"))  # for the log, the cases and the runs

import coin_cases as cases
import coin_plants as plants
from coin_runs import Runs, Seen, share_of_later_rows, warnings_of

from longrec.errors import LongRecError

LIMIT = 5.0
ARRAY = cases.covering()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs that share their logs and stores."""
    return Runs(tmp_path_factory.mktemp("coins"))


def check_nothing_leaks(runs: Runs, case: cases.Case) -> None:
    """Run a case, and judge its scores and what its results say."""
    seen = runs.run(case)
    assert abs(seen.deviation) < LIMIT, seen
    warnings = "\n".join(warnings_of(seen.run))
    later = share_of_later_rows(seen.run)
    if case["split"] in cases.TIME_SPLITS:
        assert later == 0
        assert "of the training rows are not earlier than" not in warnings
    else:
        assert later > 0
        assert (
            f"split by {case['split']}: {later:.1%} of the training rows are not earlier than the first test row"
            in warnings
        )
    assert ("has no as_of" in warnings) is (case["tables"] == "static")
    assert "of its own row" not in warnings
    if case["scores"] == "served":
        assert runs.served(seen, case) < 1e-5


def test_the_array_shows_every_pair_of_values() -> None:
    shown = {pair for case in ARRAY for pair in cases.pairs(case)}
    assert shown == cases.possible_pairs()
    assert len(ARRAY) <= 40
    assert all(cases.valid(case) for case in ARRAY)


@pytest.mark.parametrize("case", ARRAY, ids=cases.name)
def test_nothing_reveals_a_coin(runs: Runs, case: cases.Case) -> None:
    check_nothing_leaks(runs, case)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_nothing_reveals_a_coin_in_the_product_of_all_factors(tmp_path: Path, seed: int) -> None:
    random, runs = np.random.default_rng([7, seed]), Runs(tmp_path)
    for _ in range(15):
        case = cases.complete_case({}, random)
        assert case is not None
        check_nothing_leaks(runs, case)


# ---- planted leaks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", plants.PLANTS)
def test_a_planted_leak_is_detected(runs: Runs, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant = plants.PLANTS[name]
    honest = plant.honest(runs)
    assert abs(honest.deviation) < LIMIT, honest
    planted = plant.planted(runs, monkeypatch)
    assert planted.deviation > LIMIT, planted


@pytest.mark.parametrize(
    ("leak", "refused", "warning"),
    [
        (
            plants.future_weights,
            r"trained on labels available until 20\d\d.*begins at 20",
            "may be trained or validated on labels",
        ),
        (plants.weights_of_early_labels, "the labels of that run are unknown", "may be trained or validated on labels"),
        (
            plants.leaky_tokens,
            "leaks values before they were available: it leaks",
            "because allow_leak is set, although it leaks",
        ),
        (plants.tokens_of_other_delay, "took 'click' as available 0s after the event, and here", "allow_leak is set"),
    ],
)
def test_what_leaks_is_refused_or_reported(
    runs: Runs, leak: Callable[[Runs, bool], Seen], refused: str, warning: str
) -> None:
    with pytest.raises(LongRecError, match=refused):
        leak(runs, False)
    seen = leak(runs, True)
    assert seen.deviation > LIMIT, seen
    assert warning in "\n".join(warnings_of(seen.run))


def test_knowledge_of_unavailable_labels_is_detected(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = plants.knowledge_of_targets(runs)
    assert abs(honest.deviation) < LIMIT, honest
    plants.targets_at_last(monkeypatch)
    planted = plants.knowledge_of_targets(Runs(runs.folder / "late targets", number=runs.number))
    assert planted.deviation > LIMIT, planted


def test_a_table_without_times_is_reported(runs: Runs) -> None:
    seen = plants.newest_versions(runs)
    assert seen.deviation > LIMIT, seen
    assert "newest.parquet has no as_of: feature item_kind" in "\n".join(warnings_of(seen.run))


@pytest.mark.parametrize("warning", plants.COPIES)
def test_the_label_under_another_name_is_reported(runs: Runs, warning: str) -> None:
    seen = runs.run(*plants.COPIES[warning])
    assert seen.deviation > LIMIT, seen
    assert f"{warning} of its own row" in "\n".join(warnings_of(seen.run))


def test_a_log_that_was_replaced_is_prepared_anew(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plants.replaced_log(runs) == 1
    plants.old_cache(monkeypatch)
    assert plants.replaced_log(Runs(runs.folder / "stale", number=runs.number)) < 0.6


def test_a_live_event_that_is_reported_late_changes_no_earlier_answer(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, error = plants.late_live_events(runs, "told late")
    assert abs(honest - 0.5) < LIMIT * error
    plants.live_at_once(monkeypatch)
    planted, error = plants.late_live_events(runs, "told at once")
    assert planted - 0.5 > LIMIT * error
