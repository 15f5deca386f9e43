"""Retrievers that learn do not find items that are drawn at random, and one that reads its target does.

A leak is judged at a probability of one in a million, of hits of a binomial variable (``coins/coin_retrievers.py``).
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "coins"))  # for the log and the runs

from coin_retrievers import GENERATORS, SETTINGS, Hits, count_hits, tail, write_log

from longrec.data.log import Log
from longrec.models.core.catalog import names
from longrec.models.core.generator import Generator
from longrec.models.core.item_history import ItemHistoryRetriever
from longrec.models.core.pooled_history import PooledHistoryRetriever
from longrec.models.core.registry import find

UNLIKELY = 1e-6
CASES = [
    *({"name": name, "draw": draw} for name in SETTINGS for draw in ("in_batch", "mixed") if name not in GENERATORS),
    *({"name": name} for name in GENERATORS),
]
READERS = [name for name in SETTINGS if issubclass(find(name), PooledHistoryRetriever)]
"""Models whose tower of users reads the context beside the history. Others learn to use it much later."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """The log, which all runs share."""
    return write_log(tmp_path_factory.mktemp("random items"))


def check_chance(seen: Hits) -> None:
    """Check that luck explains the hits."""
    assert seen.more > UNLIKELY, seen
    assert seen.fewer > UNLIKELY, seen


def test_all_retrievers_that_learn_are_tested() -> None:
    learned = {name for name in names() if issubclass(find(name), ItemHistoryRetriever)}
    trained = {name for name in names() if issubclass(find(name), Generator) and not find(name).needs_init_from}
    assert trained == set(GENERATORS)
    assert learned | trained == set(SETTINGS)


def test_the_tail_of_a_binomial_variable() -> None:
    assert tail(0, 9, 0.1) == pytest.approx(1)
    assert tail(3, 3, 0.5) == pytest.approx(0.125)
    assert tail(2, 3, 0.1) == pytest.approx(3 * 0.01 * 0.9 + 0.001)


@pytest.mark.parametrize("model", CASES, ids=lambda model: "-".join(model.values()))
def test_a_retriever_does_not_find_random_items(data: Mapping[str, Any], tmp_path: Path, model: dict[str, Any]) -> None:
    seen = count_hits(data, model, tmp_path)
    assert seen.targets > 1_000
    check_chance(seen)


# ---- planted leaks -----------------------------------------------------------------------------------------------


def plant_own_event(patch: pytest.MonkeyPatch) -> None:
    """Let a history hold the event of its own target."""
    find_range = Log._range

    def late(log: Log, name: str, users: Any, timestamps: Any, rows: Any = None) -> Any:
        first, stop = find_range(log, name, users, timestamps, rows)
        return first, stop if rows is None else np.minimum(stop + 1, log.events.offsets[users + 1])

    patch.setattr(Log, "_range", late)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_target_in_its_own_history_is_detected(
    data: Mapping[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    plant_own_event(monkeypatch)
    draw = {} if name in GENERATORS else {"draw": "in_batch"}
    seen = count_hits(data, {"name": name, **draw}, tmp_path)
    assert seen.more < UNLIKELY, seen


@pytest.mark.parametrize("name", READERS)
def test_a_context_that_copies_the_target_is_detected(data: Mapping[str, Any], tmp_path: Path, name: str) -> None:
    schema = copy.deepcopy(data["schema"])
    schema["features"]["copy"] = {"kind": "id"}
    seen = count_hits({**data, "schema": schema}, {"name": name, "draw": "mixed"}, tmp_path)
    assert seen.more < UNLIKELY, seen
