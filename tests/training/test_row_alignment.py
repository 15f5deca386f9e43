"""Comparison of runs of different logs and splits: on the rows that both have, and on new rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longrec import metrics
from longrec.cli import main
from longrec.errors import RunError
from longrec.training.evaluate import compare
from longrec.training.finished_run import Run
from longrec.training.fit import train
from longrec.training.row_alignment import _number_rows

MODEL = json.dumps({"name": "pooling", "embedding_dim": 4, "mlp": [8]})
QUICK = [f"model={MODEL}", "fit.epochs=1", "fit.val_checks_per_epoch=1"]


@pytest.fixture(scope="module")
def old(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(shop, ["name=old", f"fit.runs={tmp_path_factory.mktemp('common')}", *QUICK], quiet=True)


@pytest.fixture(scope="module")
def new(shop: Path, old: Run) -> Run:
    """Run of a log with one user and one item more, whose keys are before all others, and a shorter test split."""
    events = pq.read_table(shop.parent / "events.parquet")
    more = events.slice(0, 50)
    more = more.set_column(0, "user_id", pa.array([7] * 50)).set_column(1, "item_id", pa.array([9] * 50))
    path = shop.parent / "more.parquet"
    pq.write_table(pa.concat_tables([more, events]), path)
    overrides = ["name=new", f"fit.runs={old.folder.parent}", f"data.log={path}", "data.split.test=0.05", *QUICK]
    return train(shop, overrides, quiet=True)


def keys_of(run: Run) -> list[tuple[int, int, int]]:
    """Return user, item and time of each test row of a run."""
    log, table = run.log(), run.predictions()
    rows = table["row"].to_numpy()
    items = log.events.columns["item"].take(rows).astype(np.int64)
    return [
        (log.users.key(user), log.items.key(item), time)
        for user, item, time in zip(log.user(rows).tolist(), items.tolist(), table["time"].to_pylist())
    ]


def test_runs_of_different_logs_are_compared_on_the_rows_that_both_have(old: Run, new: Run) -> None:
    with pytest.raises(RunError, match=r"300 and 152; expected the same rows\n  .*--common"):
        compare([old, new])
    comparison = compare([old, new], common=True, n_resamples=10)
    ours, theirs = keys_of(old), keys_of(new)
    common = sorted(set(ours) & set(theirs))
    assert len(common) > 140
    for run, keys in ((old, ours), (new, theirs)):
        table = run.predictions()
        at = [keys.index(key) for key in common]
        label, score = (table[name].to_numpy()[at] for name in ("label", "score"))
        assert comparison.runs[run.name]["auc"].value == pytest.approx(metrics.auc(label, score))
    shares = f"compared on {len(common)} common rows, of test rows: 300 of old, {len(theirs)} of new"
    assert comparison.warnings[0] == shares
    same = compare([old, old.folder.parent / "old" / ".." / "new"], common=True, n_resamples=10)
    assert same.runs["new"]["auc"].value == comparison.runs["new"]["auc"].value


def test_copies_of_a_row_are_paired(old: Run) -> None:
    one, other = _number_rows(
        [np.array([1, 1, 2, 1]), np.array([1, 2, 1])],
        [np.array([5, 5, 6, 7]), np.array([5, 6, 5])],
        [np.array([9, 9, 9, 9]), np.array([9, 9, 9])],
    )
    assert len(set(one.tolist())) == 4
    assert one[[0, 2, 1]].tolist() == other.tolist()


def test_runs_are_compared_on_a_new_log(old: Run, new: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(4)
    columns = {"user_id": random.integers(100, 170, 80), "item_id": random.integers(1_000, 1_090, 80)}
    rows = pa.table({**columns, "at": 1_702_100_000 + np.arange(80), "stars": random.integers(1, 6, 80)})
    pq.write_table(rows, tmp_path / "day.parquet")
    names = [str(old.folder), str(new.folder)]
    assert main(["compare", *names, "--log", str(tmp_path / "day.parquet"), "--n-resamples", "10", "--json", "-"]) == 0
    result = json.loads(capsys.readouterr().out)
    for run in (old, new):
        table = run.predict(rows)
        expected = metrics.auc(table["label"].to_numpy(), table["score"].to_numpy())
        assert result["runs"][run.name]["auc"]["value"] == pytest.approx(expected)
    with pytest.raises(RunError, match="new rows without labels"):
        compare([old, new], log=rows.drop_columns(["stars"]))


def test_runs_without_common_rows_say_what_to_do(old: Run, shop: Path, tmp_path: Path) -> None:
    early = ["name=early", f"fit.runs={tmp_path}", "data.split={by: time, valid: 0.1, test: 0.1}", *QUICK]
    log = f"SELECT * REPLACE (user_id + 1000 AS user_id) FROM '{shop.parent / 'events.parquet'}'"
    other = train(shop, [*early, f"data.log={{query: {json.dumps(log)}}}"], quiet=True)
    with pytest.raises(
        RunError, match=r"none in common, by user, item and timestamp(.|\n)*longrec compare RUN RUN --log FILE"
    ):
        compare([old, other], common=True)
