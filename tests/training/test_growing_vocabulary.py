"""A run that starts from the run of an earlier log, whose users, items and values are some of those of the new log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file
from shop_job import JOB, SCHEMA

from longrec.data.log import Log
from longrec.data.prepare import prepare
from longrec.errors import ConfigError, DataError, RunError
from longrec.features.feature_encoders import (
    BucketizedEncoder,
    Encoder,
    HashEncoder,
    IdEncoder,
    LogSquareEncoder,
    NumericEncoder,
)
from longrec.features.vocabulary import Keys
from longrec.models.core import registry as models
from longrec.training import checkpoint
from longrec.training.finished_run import Run
from longrec.training.fit import train
from longrec.training.job import read_job
from longrec.training.optimizers import build_optimizers
from longrec.training.row_matches import CarryReport, RowMatch, find_encoding_fault, match_rows
from longrec.training.scoring import score
from longrec.training.warm_start import warm_start

FIRST, DAY = 1_700_000_000, 86_400
QUICK = ["fit.epochs=1", "fit.val_checks_per_epoch=1"]


def ids(*values: Any) -> IdEncoder:
    return IdEncoder(Keys(pa.array(values)))


def pairs(match: RowMatch | None) -> dict[int, int]:
    """Return the former row of each matched row."""
    assert match is not None
    return dict(zip(match.target.tolist(), match.source.tolist()))


def test_rows_are_matched_by_value_and_reserved_rows_by_meaning() -> None:
    match = match_rows(ids("b", "d", "e"), ids("a", "b", "c", "d"), 6, 7)
    assert pairs(match) == {0: 0, 1: 1, 3: 2, 5: 3, 6: 5}
    assert match is not None
    assert (match.new, match.dropped) == (2, 1)
    assert pairs(match_rows(ids(5, 7), ids(7, 5), 4, 4)) == {0: 0, 1: 1, 3: 2, 2: 3}
    assert match_rows(ids(5, 7), ids(5, 7), 4, 4) is None
    hashed = HashEncoder(100, 7, True), HashEncoder(100, 9, True)
    assert match_rows(*hashed, 102, 102) is None


def test_buckets_take_the_row_of_the_former_bucket_at_their_middle() -> None:
    before, now = BucketizedEncoder((1.0, 2.0, 3.0)), BucketizedEncoder((1.4, 2.2, 2.4))
    # below 1.4 | 1.8 | 2.3 | 2.4 and above, of the former buckets below 1 | 1.5 | 2.5 | 3 and above
    assert pairs(match_rows(before, now, 6, 6)) == {0: 0, 1: 1, 2: 3, 3: 3, 4: 4, 5: 4}
    assert match_rows(before, before, 6, 6) is None
    grown = match_rows(LogSquareEncoder(-2, 3), LogSquareEncoder(-2, 5), 8, 10)
    assert pairs(grown) == {**{row: row for row in range(8)}, 8: 7, 9: 7}


@pytest.mark.parametrize(
    ("before", "now", "says"),
    [
        (ids(1, 2), HashEncoder(10, 2, True), "was encoded as id and is hash here"),
        (ids(1, 2), ids(3, 4), "none of its 2 values is in the new log"),
        (ids(1, 2), ids("1", "2"), "the new log has another type of ids"),
        (HashEncoder(10, 2, True), HashEncoder(20, 2, True), "had hash: 10 and has 20"),
        (HashEncoder(10, 2, True), HashEncoder(10, 2, False), "other types, which hash to other buckets"),
        (NumericEncoder("log", 0, 1, 0), NumericEncoder("raw", 0, 1, 0), "had scale log and has raw"),
        (ids(1, 2), None, "was encoded as id and is no encoder here"),
    ],
)
def test_encodings_that_cannot_be_matched(before: Encoder, now: Encoder | None, says: str) -> None:
    assert says in find_encoding_fault("x", before, now)


def test_encodings_that_can() -> None:
    for before, now in (
        (ids(1, 2), ids(2, 3)),
        (ids(), ids(2, 3)),
        (HashEncoder(10, 2, None), HashEncoder(10, 2, False)),
        (NumericEncoder("standard", 0, 1, 0), NumericEncoder("standard", 1, 2, 0)),
        (None, None),
    ):
        assert find_encoding_fault("x", before, now) == ""


def write_log(folder: Path) -> Path:
    """Write the log of two weeks, whose second week has other users, items and genres too, and the config of a job."""
    random = np.random.default_rng(3)
    folder.mkdir(parents=True, exist_ok=True)
    n = 2_400
    day = np.sort(random.integers(0, 14, n))
    late = day >= 10
    # New users and items are among the old ones in the order of the keys, so that ids move.
    user = 2 * random.integers(0, 40, n) + (late & (random.random(n) < 0.3))
    item = 2 * random.integers(0, 30, n) + (late & (random.random(n) < 0.3))
    stars = np.clip(random.normal(np.where(user % 4 == item % 4, 4.2, 2.8), 1.0).round(), 1, 5).astype(np.int64)
    at = FIRST + day * DAY + random.integers(0, DAY, n)
    columns = {"user_id": user, "item_id": item, "at": at, "stars": stars, "price": random.normal(day, 1, n)}
    pq.write_table(pa.table(columns), folder / "events.parquet")
    genres = [f"{'ga'[number % 2]}{number // 12}" for number in range(60)]
    pq.write_table(pa.table({"item_id": np.arange(60), "genre": genres}), folder / "items.parquet")
    features = {
        **SCHEMA["features"],
        "price": {"kind": "numeric", "scale": "standard"},
        "cut": {"kind": "bucketized", "column": "price", "quantiles": 4},
        "hashed": {"kind": "id", "column": "item_id", "hash": 50, "side": "item"},
    }
    job = {
        **JOB,
        "data": {**JOB["data"], "schema": {**SCHEMA, "features": features}, "folder": str(folder / "prepared")},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    return folder / "job.yaml"


def until(day: int) -> list[str]:
    """Return overrides for a log whose training window ends with a day, and which is tested on the next day."""
    begin = (np.datetime64(FIRST, "s") + np.timedelta64(day, "D")).item()
    log = f"SELECT * FROM 'events.parquet' e WHERE e.at < {FIRST + (day + 1) * DAY}"
    return [
        f"data.log={{query: {json.dumps(log)}}}",
        f"data.split={{by: time, test_from: '{begin:%Y-%m-%dT%H:%M:%S}'}}",
    ]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log(tmp_path_factory.mktemp("growing"))


@pytest.fixture(scope="module")
def first(job: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    runs = f"fit.runs={tmp_path_factory.mktemp('first')}"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(job.parent)
        return train(job, ["name=first", runs, *until(9), *QUICK], quiet=True)


@pytest.fixture(autouse=True)
def beside_the_log(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(job.parent)


def built(job: Path, *overrides: str) -> tuple[Any, dict[str, torch.optim.Optimizer], Any, Log]:
    read = read_job(job, overrides)
    log = Log.open(prepare(read.data, read.schema), read.schema)
    torch.manual_seed(5)
    model = models.build(read.model, log.fields())
    return model, build_optimizers(model, read.fit), read.fit, log


def start(first: Run, job: Path, *overrides: str) -> tuple[Any, Any, Any, Log, CarryReport]:
    """Return a model after and before a warm start, its optimizers and the new log."""
    fresh, *_ = built(job, *overrides)
    model, optimizers, fit, log = built(job, *overrides)
    report = warm_start(first.folder, model, optimizers, fit, log.fitted)
    return model, fresh, optimizers, log, report


def test_rows_of_values_of_the_run_and_their_optimizer_state_are_carried(first: Run, job: Path) -> None:
    model, fresh, optimizers, log, report = start(first, job, *until(13))
    old = first.model()
    old_optimizers = build_optimizers(old, first.config.fit)
    checkpoint.load(first.folder / "checkpoints" / "last", old, old_optimizers)
    for name in ("user_id", "item_id", "genre"):
        before, now = first.fitted.encoders[name], log.fitted.encoders[name]
        assert isinstance(before, IdEncoder)
        assert isinstance(now, IdEncoder)
        tables = [one.embeddings.table(name) for one in (old, model, fresh)]
        averages = [
            one["tables"].state[table]["moment1"]
            for one, table in ((old_optimizers, tables[0]), (optimizers, tables[1]))
        ]
        matched, new = 0, 0
        for row, key in enumerate(now.keys.values.to_pylist(), 2):
            former = before.keys.find(key, name) + 2
            if former >= 2:
                assert torch.equal(tables[1][row], tables[0][former])
                assert torch.equal(averages[1][row], averages[0][former])
                matched += 1
            else:
                assert torch.equal(tables[1][row], tables[2][row])
                assert not averages[1][row].any()
                new += 1
        assert matched == len(before.keys)
        assert new == len(now.keys) - matched > 0
        assert torch.equal(tables[1][:2], tables[0][:2])
        (own,) = (table for table in report.tables if table.table == name)
        assert (own.matched, own.new, own.dropped) == (matched + 2, new, 0)
        steps = [
            int(one["tables"].state[t]["step"]) for one, t in ((old_optimizers, tables[0]), (optimizers, tables[1]))
        ]
        assert steps[0] == steps[1] > 0
    # Hashed ids, numbers, and all that is no table are copied.
    for name, tensor in old.state_dict().items():
        if name.removeprefix("embeddings.table_") not in {table.table for table in report.tables}:
            assert torch.equal(model.state_dict()[name], tensor), name
    assert "embeddings.table_hashed" in old.state_dict()
    assert {table.table for table in report.tables} == {"user_id", "item_id", "genre", "cut"}
    assert report.unchanged == len(old.state_dict()) - 4
    printed = report.describe()
    assert "rows matched" in printed
    assert "feature price: its scale was fitted anew" in printed
    assert "feature cut: its buckets have other edges" in printed


def test_a_started_model_scores_rows_that_both_logs_have_as_the_run_does(first: Run, job: Path) -> None:
    # Without features that a new window fits anew.
    overrides = [
        f"data.schema.features.{name}={{kind: numeric, scale: raw, column: price}}" for name in ("price", "cut")
    ]
    earlier = train(job, ["name=plain", f"fit.runs={first.folder.parent}", *until(9), *QUICK, *overrides], quiet=True)
    model, _, _, log, _ = start(earlier, job, *until(13), *overrides)
    last, _, _, before = built(job, *until(9), *overrides)
    last.load_state_dict(load_file(earlier.folder / "checkpoints" / "last" / "weights.safetensors"))
    rows = before.rows_of("train")
    keys = (before.users.keys.values.to_pylist(), before.items.keys.values.to_pylist())
    index = {}
    for row in range(len(log)):
        user, item = log.user(np.array([row]))[0], log.events.columns["item"][row]
        index.setdefault((log.users.key(user), log.items.key(int(item)), int(log.events.times[row])), row)
    same = []
    for row in rows.tolist():
        user, item = before.user(np.array([row]))[0], int(before.events.columns["item"][row])
        same.append(index[keys[0][user - 1], keys[1][item - 1], int(before.events.times[row])])
    one, other = score(last.eval(), before, rows, 512), score(model.eval(), log, np.array(same), 512)
    assert np.allclose(one, other, atol=1e-6)


def test_all_that_does_not_fit_is_in_one_error(first: Run, job: Path, tmp_path: Path) -> None:
    overrides = [
        *until(13),
        f"fit.runs={tmp_path / 'runs'}",
        f"fit.init_from={first.folder}",
        "data.schema.features.hashed.hash=60",
        "data.schema.features.genre={kind: id, side: item, hash: 9}",
        "model.mlp=[17]",
    ]
    with pytest.raises(RunError) as caught:
        train(job, overrides, quiet=True)
    for phrase in (
        "'hashed' had hash: 50 and has 60",
        "'genre' was encoded as id and is hash here",
        "is 16x",
        "not 17x",
    ):
        assert phrase in str(caught.value)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(RunError, match=r"embeddings.table_user_id is 42x4, not \d+x6"):
        train(job, [*overrides[:4], "model.embedding_dim=6"], quiet=True)


def test_the_optimizer_can_start_anew(first: Run, job: Path) -> None:
    reset = ["fit.reset_optimizer=true", f"fit.init_from={first.folder}", "fit.embedding_optimizer=rowwise_adagrad"]
    model, _, optimizers, _, report = start(first, job, *until(13), *reset)
    assert not any(optimizer.state for optimizer in optimizers.values())
    assert torch.equal(model.embeddings.table("hashed"), last_weights(first)["embeddings.table_hashed"])
    assert not report.optimizer
    assert "with a new optimizer state" in report.describe()
    with pytest.raises(ConfigError, match="reset_optimizer is given without init_from"):
        read_job(job, ["fit.reset_optimizer=true"])


def last_weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "checkpoints" / "last" / "weights.safetensors")


@pytest.mark.parametrize(
    ("optimizer", "initial"),
    [("adagrad", 0.25), ("rowwise_adagrad", 0.25), ("rowwise_adam", 0.0), ("sgd", 0.0)],
)
def test_rows_of_new_values_have_the_initial_state_of_every_optimizer(
    job: Path, tmp_path: Path, optimizer: str, initial: float
) -> None:
    settings = [f"fit.embedding_optimizer={optimizer}", f"fit.runs={tmp_path}"]
    settings += ["fit.initial_accumulator_value=0.25"] if "adagrad" in optimizer else []
    settings += ["fit.momentum=0.5"] if optimizer == "sgd" else []
    first = train(job, ["name=first", *until(9), "fit.max_steps=3", *settings], quiet=True)
    model, _, optimizers, log, report = start(first, job, *until(13), *settings)
    table = model.embeddings.table("user_id")
    (own,) = (one for one in report.tables if one.table == "user_id")
    encoder = log.fitted.encoders["user_id"]
    assert isinstance(encoder, IdEncoder)
    new = [row for row, key in enumerate(encoder.keys.values.to_pylist(), 2) if key % 2]
    assert len(new) == own.new > 0
    states = [value for key, value in optimizers["tables"].state[table].items() if key != "step"]
    assert states
    for value in states:
        assert (value[new] == initial).all()
        assert (value != initial).any()


def test_a_day_is_trained_on_alone_and_says_what_it_carried(
    first: Run, job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = (np.datetime64(FIRST, "s") + np.timedelta64(12, "D")).item()
    new_day = [f"fit.init_from={first.folder}", f"fit.train_from='{begin:%Y-%m-%dT%H:%M:%S}'"]
    run = train(job, ["name=next", f"fit.runs={tmp_path}", *until(13), *new_day, *QUICK], quiet=False)
    assert "warm start from" in capsys.readouterr().err
    log = run.log()
    rows = log.rows_of("train")
    assert log.timestamps.take(rows).min() >= (FIRST + 12 * DAY) * 1_000
    assert len(rows) == json.loads((run.folder / "log.json").read_text())["samples"]["train"] < 250
    carried = json.loads((run.folder / "warm_start.json").read_text())
    assert {table["table"] for table in carried["tables"]} == {"user_id", "item_id", "genre", "cut"}
    with pytest.raises(DataError, match="no training row at or after it"):
        train(job, [f"fit.runs={tmp_path}", *until(9), "fit.train_from=2030-01-01"], quiet=True)
    with pytest.raises(DataError, match="the timestamp 'yesterday'"):
        train(job, [f"fit.runs={tmp_path}", *until(9), "fit.train_from=yesterday"], quiet=True)


def test_statistics_of_the_training_window_are_computed_anew(job: Path, tmp_path: Path) -> None:
    """The neighbors of ``res_embedding`` have a row per item, and are those of the new log."""
    model = {"name": "res_embedding", "base": {"name": "pooling", "embedding_dim": 4, "mlp": [8], "batch_norm": False}}
    settings = [f"fit.runs={tmp_path}", "fit.max_steps=2", f"model={json.dumps(model)}"]
    first = train(job, ["name=first", *until(9), *settings], quiet=True)
    run = train(job, ["name=second", *until(13), *settings, f"fit.init_from={first.folder}", "fit.lr=1e-9"], quiet=True)
    alone = train(job, ["name=alone", *until(13), *settings], quiet=True)
    names = ("graph.slots", "graph.strength")
    states = [one.model().state_dict() for one in (first, run, alone)]
    for name in names:
        assert len(states[0][name]) < len(states[1][name])
        assert torch.equal(states[1][name], states[2][name])
    carried = json.loads((run.folder / "warm_start.json").read_text())
    tables = {table["table"]: table for table in carried["tables"]}
    assert tables["graph.centers.table_item_id"]["new"] == tables["base.embeddings.table_item_id"]["new"] > 0
