"""Coin flips on new rows, references of reports, warm starts with growing vocabularies, and parts of the log.

The log is that of ``coins/coin_log.py``: nothing that is available at the timestamp of a row tells its label.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parent / "coins"))  # for the log, the cases and the runs

from coin_cases import BASE, EARLIER, Case
from coin_log import EVERY, LINE, CoinLog, iso
from coin_runs import Config, Runs, Seen, item_keys

from longrec.data.log import Log
from longrec.metrics import auc
from longrec.training.finished_run import Run
from longrec.training.run_report import ANALYSES

LIMIT = 5.0


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs that share their logs and stores."""
    return Runs(tmp_path_factory.mktemp("coins"))


def case(**factors: str) -> Case:
    return {**BASE, **factors}


def judge(log: CoinLog, session: np.ndarray, scores: np.ndarray, run: Run) -> Seen:
    """How well scores tell the coins of sessions, as ``Runs.judge``."""
    sessions, owner = np.unique(session, return_inverse=True)
    coins, mean = log.coins[sessions], np.bincount(owner, scores) / np.bincount(owner)
    heads, tails = int(coins.sum()), int((1 - coins).sum())
    error = float(np.sqrt((heads + tails + 1) / (12 * heads * tails)))
    return Seen(float(auc(coins, mean)), error, len(coins), run)


# ---- references and segments of a report -------------------------------------------------------------------------


def judge_item_rate(run: Run, log: CoinLog, column: str) -> Seen:
    """Judge the item rate of a report on the test rows."""
    table, job = run.predictions(), run.config
    references = ANALYSES["clicks"].predict_references(run.log(), table, job.fit, job.evaluate)
    session = item_keys(run)[table["row"].to_numpy()]
    return judge(log, session, references[-1].table[column].to_numpy().astype(np.float64), run)


@pytest.mark.parametrize(
    "factors",
    [{}, {"label": "available_at"}, {"tasks": "shared_bottom", "echo": "delay"}, {"split": "leave_one_out"}],
    ids=lambda factors: "-".join(factors.values()) or "base",
)
def test_references_of_a_report_do_not_reveal_a_coin(
    runs: Runs, factors: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs.run(case(**factors)).run
    log = runs.log(case(**factors))
    columns = [name for name in run.predictions().column_names if name.startswith("score")]
    assert len(columns) == (2 if "tasks" in factors else 1)
    for column in columns:
        seen = judge_item_rate(run, log, column)
        assert abs(seen.deviation) < LIMIT, (column, seen)
    # The sessions that the line cuts have rows in train, whose labels were not available in time.
    monkeypatch.setattr(Log, "rows_of", lambda self, split: np.flatnonzero(np.asarray(self.splits) == 0))
    monkeypatch.setattr("longrec.data.targets.compute_available_at", lambda log, name, rows: np.zeros(len(rows)))
    for column in columns:
        planted = judge_item_rate(run, log, column)
        assert planted.deviation > LIMIT, (column, planted)


# ---- warm starts -------------------------------------------------------------------------------------------------


def test_a_growing_vocabulary_and_recent_rows_alone_do_not_reveal_a_coin(runs: Runs) -> None:
    later = runs.config(case())
    earlier = copy.deepcopy(later)
    earlier["data"]["split"] = EARLIER
    first = runs.train(earlier)
    for start in ({"init_from": str(first.folder)}, {}):
        config = copy.deepcopy(later)
        config["fit"] |= {**start, "train_from": iso(LINE - EVERY)}
        run = runs.train(config)
        log = run.log()
        assert log.timestamps.take(log.rows_of("train")).min() >= (LINE - EVERY) * 1_000
        seen = runs.judge(run, runs.log(case()))
        assert abs(seen.deviation) < LIMIT, seen
    assert len(first.fitted.encoders["item_id"].keys) < len(run.fitted.encoders["item_id"].keys)


# ---- new rows ----------------------------------------------------------------------------------------------------


def flip(table: pa.Table, sessions: np.ndarray) -> pa.Table:
    """Return the rows with the opposite coin of some sessions in every column that shows it."""
    chosen = np.isin(table["item_id"].to_numpy(), sessions)
    for name in ("click", "echo", "copied"):
        values = table[name].to_numpy()
        table = table.set_column(table.column_names.index(name), name, pa.array(np.where(chosen, 1 - values, values)))
    return table


def cut(runs: Runs, factors: Case, line: int) -> tuple[Config, pa.Table]:
    """Return a config whose log ends before a line, and the rows of all times."""
    config = runs.config(factors)
    whole = pq.read_table(config["data"]["log"])
    before = runs.folder / f"before-{next(runs.number)}.parquet"
    pq.write_table(whole.filter(pa.array(runs.log(factors).columns["at"] < line)), before)
    config["data"] |= {"log": str(before), "split": EARLIER}
    return config, whole


@pytest.mark.parametrize(
    "factors",
    [
        {},
        {"label": "available_at", "echo": "delay"},
        {"echo": "available_at", "tasks": "shared_bottom"},
        {"form": "tied", "label": "at_once"},
        {"form": "request", "label": "at_once", "late": "available_at"},
        {"form": "request", "tables": "as_of", "clock": "zoned"},
    ],
    ids=lambda factors: "-".join(factors.values()) or "base",
)
def test_labels_of_new_rows_reach_only_the_scores_of_rows_after_them(runs: Runs, factors: dict[str, str]) -> None:
    chosen = case(**factors)
    config, whole = cut(runs, chosen, LINE)
    run, log = runs.train(config), runs.log(chosen)
    columns = log.columns
    # New rows begin in a period that the log has too, and end with the sessions that the end of the log cuts.
    at = columns["at"]
    new = at >= LINE - EVERY
    rows, session = whole.filter(pa.array(new)), columns["item_id"][new]
    last = np.unique(columns["item_id"][(at >= LINE) & (columns["user_id"] < log.users)])
    scores = run.predict(rows)
    seen = judge(log, session[np.isin(session, last)], scores["score"].to_numpy()[np.isin(session, last)], run)
    assert abs(seen.deviation) < LIMIT, seen
    # Labels of the last sessions are available after them, and events of the log have the labels of the log.
    for sessions in (last, np.unique(session)):
        flipped = run.predict(flip(rows, sessions))
        assert not scores["label"].equals(flipped["label"])
        for name in (name for name in scores.column_names if name.startswith("score")):
            assert scores[name].equals(flipped[name]), name


def test_labels_of_new_rows_reach_the_scores_of_rows_after_they_are_available(runs: Runs) -> None:
    chosen = case()
    config, whole = cut(runs, chosen, LINE - EVERY)
    config["data"]["split"] = {"test_from": iso(LINE - 2 * EVERY)}
    run, log = runs.train(config), runs.log(chosen)
    new = log.columns["at"] >= LINE - EVERY
    rows, at, session = whole.filter(pa.array(new)), log.columns["at"][new], log.columns["item_id"][new]
    users = log.columns["user_id"][new]
    early = np.unique(session[(at < LINE) & (users < log.users) & (session % 4 == 2)])
    changed = run.predict(rows)["score"].to_numpy() != run.predict(flip(rows, early))["score"].to_numpy()
    assert changed.any()
    assert not changed[np.isin(session, early)].any()  # each session ends before its labels are available
