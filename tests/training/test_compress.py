"""Tests of tokens: written by weights that have not seen later labels. Numbers are those of the notes on the paper."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from longrec.data.gather import gather
from longrec.data.log import Log
from longrec.data.prepare import prepare
from longrec.errors import ConfigError, RunError, StoreError
from longrec.features.batch import HistoryBatch
from longrec.features.token_columns import compute_instance_ids
from longrec.store.token_store import Tokens, TokenStore
from longrec.training.compress import compress
from longrec.training.fit import train
from longrec.training.job import read_job

_spec = importlib.util.spec_from_file_location("pages", Path(__file__).with_name("pages.py"))
assert _spec is not None
assert _spec.loader is not None
pages = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pages)

OF = ["token", "label", "click", "time_gap"]
FEW = ["blocks=4", "first_slices=2"]


def opened(config: dict[str, Any]) -> Log:
    job = read_job(config)
    return Log.open(prepare(job.data, job.schema), job.schema)


def reading(config: dict[str, Any], store: Path, last: int = 6, of: list[str] = OF) -> Log:
    """Return the log of a config with a history of the tokens of a store."""
    schema = {
        **config["data"]["schema"],
        "histories": {"tokens": {"from": str(store), "features": of, "max_length": last}},
    }
    return opened({**config, "data": {**config["data"], "schema": schema}, "model": {"name": "pooling"}})


def lists(log: Log, rows: np.ndarray) -> HistoryBatch:
    return gather(log, rows).histories["tokens"]


def everything(store: Path) -> Tokens:
    """Return all tokens of a store in the order of their keys."""
    with TokenStore.open(store) as opened_store:
        chunks = [tokens for _, tokens in opened_store.scan()]
    columns = {
        name: np.concatenate([getattr(chunk, name) for chunk in chunks])
        for name in ("times", "instance", "visible", "version", "vectors")
    }
    return Tokens(np.array([0, len(columns["times"])]), sides={}, available_at={}, **columns)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Config of a log, and the tokens of a source in temporal order."""
    folder = tmp_path_factory.mktemp("pages")
    config = pages.job(
        pages.write(pages.make_pages(), folder / "log.parquet"), folder, {**pages.IAT, "order": "temporal"}
    )
    compress(config, folder / "tokens", [*FEW, "codec=fp32"], quiet=True)
    return config, folder / "tokens"


ORDERS = {"temporal": {"order": "temporal"}, "user": {"order": "user", "labels": True, "context": 8}}


@pytest.mark.parametrize(
    ("order", "mode", "filter"),
    [
        ("temporal", "blocks", "all"),
        ("temporal", "stream", "all"),
        ("user", "blocks", "all"),
        ("user", "stream", "all"),
        ("temporal", "blocks", "positive"),
        ("user", "stream", "positive"),
    ],
)
def test_1_future_invariance(tmp_path: Path, order: str, mode: str, filter: str) -> None:
    """Events at or after t do not change the tokens that a request at t reads."""
    columns = pages.make_pages()
    if filter == "positive":  # some labels wait for days, while the source learns those of rows after them
        columns["seen_at"] += np.where(np.arange(len(columns["at"])) % 3 == 0, 4 * pages.DAYS, 0)
    t = int(np.quantile(columns["at"], 0.6))
    later = columns["at"] >= t
    first = {page for page in columns["page"][later]}
    later |= np.isin(columns["page"], list(first))
    random = np.random.default_rng(1)
    changed = {name: values.copy() for name, values in columns.items()}
    for name in ("item_id", "place", "price"):
        changed[name][later] = random.permutation(changed[name][later])
    changed["click"][later] = 1 - changed["click"][later]
    # labels of earlier events that become available at t or later may change too
    unknown = ~later & (columns["seen_at"] >= t)
    assert unknown.any()
    changed["click"][unknown] = 1 - changed["click"][unknown]
    seen = []
    for name, log in (("one", columns), ("other", changed)):
        model = {**pages.IAT, **ORDERS[order]}
        config = pages.job(pages.write(log, tmp_path / name / "log.parquet"), tmp_path / name, model)
        settings = [*FEW, f"mode={mode}", f"filter={filter}", "codec=fp32", "scale_sample=50"]
        compress(config, tmp_path / name / "tokens", settings, quiet=True)
        prepared = reading(config, tmp_path / name / "tokens")
        rows = np.flatnonzero(prepared.timestamps == prepared.timestamps[prepared.timestamps >= t].min())
        seen.append(lists(prepared, rows))
    one, other = seen
    assert one.offsets[-1] > 0
    assert one.offsets.equal(other.offsets)
    assert all(one.columns[name].equal(other.columns[name]) for name in one.columns)


def test_2_self_exclusion(written: tuple[dict[str, Any], Path]) -> None:
    """No list holds its own instance, or another instance of its request."""
    config, store_path = written
    log = reading(config, store_path, last=1_000)
    rows = np.arange(len(log))
    users, timestamps = log.tokens["tokens"]._users.take(log.user(rows)), log.timestamps
    own = own_ids(log)
    store = log.tokens["tokens"].store
    tokens = store.last(users, timestamps, 1_000)
    request_of = {
        int(instance): (int(user), int(timestamp)) for instance, user, timestamp in zip(own, users, timestamps)
    }
    assert len(tokens.instance) > len(rows)
    for row in range(len(rows)):
        listed = tokens.instance[tokens.offsets[row] : tokens.offsets[row + 1]].tolist()
        assert own[row] not in listed
        assert (int(users[row]), int(timestamps[row])) not in {request_of[instance] for instance in listed}


def own_ids(log: Log) -> np.ndarray:
    items = np.concatenate([[0], log.items.keys.values.to_numpy()])
    users = np.concatenate([[0], log.users.keys.values.to_numpy()])
    rows = np.arange(len(log))
    return compute_instance_ids(
        users.take(log.user(rows)), items.take(log.events.columns["item"]), np.asarray(log.events.times)
    )


def test_4_label_delay(written: tuple[dict[str, Any], Path]) -> None:
    """A label that becomes available at or after the request is read as not yet known, never as 0."""
    config, store_path = written
    log = reading(config, store_path, last=1_000)
    rows = np.arange(len(log))
    batch = lists(log, rows)
    timestamps = np.repeat(log.timestamps, np.diff(batch.offsets.numpy()))
    tokens = log.tokens["tokens"].store.last(log.tokens["tokens"]._users.take(log.user(rows)), log.timestamps, 1_000)
    late = tokens.available_at["label"] >= timestamps
    assert late.any()
    assert not late.all()
    labels = batch.columns["tokens.label"].numpy()
    assert (labels[late] == 3).all()
    assert set(labels[~late]) == {1, 2}
    by_id = dict(zip(own_ids(log).tolist(), log.labels.tolist()))
    assert [by_id[one] + 1 for one in tokens.instance[~late].tolist()] == labels[~late].tolist()
    assert set(batch.columns["tokens.click"].numpy()[late]) == {log.fitted.encoders["click"].rows}


def test_8_stream_equals_batch(tmp_path: Path) -> None:
    """A temporal source without training writes the same tokens in blocks and in a stream."""
    log = pages.write(pages.make_pages(), tmp_path / "log.parquet")
    model = {**pages.IAT, "order": "temporal", "base": {**pages.IAT["base"], "batch_norm": False}}
    config = pages.job(log, tmp_path, model)
    config["fit"] |= {"lr": 1e-30, "l2": 0.0}
    stores = []
    for mode in ("blocks", "stream"):
        compress(config, tmp_path / mode, [*FEW, f"mode={mode}", "codec=fp32", "standardize=false"], quiet=True)
        stores.append(everything(tmp_path / mode))
    assert len(stores[0].times) > 300
    assert np.array_equal(stores[0].instance, stores[1].instance)
    np.testing.assert_allclose(stores[0].vectors, stores[1].vectors, rtol=0, atol=1e-6)
    assert np.ptp(stores[0].vectors) > 0.01


def test_11_join_cardinality(written: tuple[dict[str, Any], Path]) -> None:
    """Every instance has one token, and the join gives each sample one list, in its own row."""
    config, store_path = written
    tokens = everything(store_path)
    assert len(np.unique(tokens.instance)) == len(tokens.instance)
    log = reading(config, store_path)
    assert len(np.unique(own_ids(log))) == len(log)
    for rows in (np.array([5, 5, 3]), log.rows_of("test")):
        batch = gather(log, rows)
        assert batch.size == len(rows)
        assert len(batch.histories["tokens"].offsets) == len(rows) + 1


def test_13_cross_version(written: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    """Versions of different scales in one list are refused without a column of versions."""
    config, store_path = written
    with TokenStore.open(store_path) as store:
        assert len(store.info.versions) == 4
        assert store.info.standardized
    compress(config, tmp_path / "raw", [*FEW, "standardize=false"], quiet=True)
    with pytest.raises(ConfigError, match="add version so that a model can separate them"):
        reading(config, tmp_path / "raw").fields()
    log = reading(config, tmp_path / "raw", last=1_000, of=[*OF, "version"])
    versions = lists(log, np.arange(len(log))).columns["tokens.version"]
    assert set(versions.tolist()) == {2, 3, 4, 5}


def test_versions_are_standardized_by_earlier_rows_alone(written: tuple[dict[str, Any], Path]) -> None:
    _, store_path = written
    with TokenStore.open(store_path) as store:
        versions = store.info.versions
    tokens = everything(store_path)
    for version in versions:
        own = tokens.vectors[tokens.version == version.number]
        assert abs(own.mean()) < 0.6
        assert 0.4 < own.std() < 2.5
        assert version.mean is not None
        assert (tokens.times[tokens.version == version.number] >= version.trained_before).all()


def test_6_a_streaming_step_writes_the_current_rows_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored tokens do not change while the source trains on them and writes further ones."""
    log = pages.write(pages.make_pages(), tmp_path / "log.parquet")
    config = pages.job(log, tmp_path, {**pages.IAT, "order": "user"})
    times: list[tuple[int, int]] = []
    before: dict[int, bytes] = {}
    append = TokenStore.append

    def watched(store: TokenStore, users: Any, at: Any, *, instance: Any, **rest: Any) -> None:
        for _, tokens in store.scan():
            for one, vector in zip(tokens.instance.tolist(), tokens.vectors):
                assert before.setdefault(one, vector.tobytes()) == vector.tobytes()
        assert not set(before) & set(instance.tolist())
        times.append((int(at.min()), int(at.max())))
        append(store, users, at, instance=instance, **rest)

    monkeypatch.setattr(TokenStore, "append", watched)
    compress(config, tmp_path / "stream", [*FEW, "mode=stream", "codec=fp32", "context_length=5"], quiet=True)
    assert len(before) > 300
    assert len(times) > 6


def test_a_store_records_when_its_columns_were_available(written: tuple[dict[str, Any], Path]) -> None:
    with TokenStore.open(written[1]) as store:
        assert store.info.column_delays == {"place": None, "price": None, "at": None, "click": "seen_at"}
        assert store.info.leak == ""


def test_a_positive_token_is_visible_once_its_label_is_available(tmp_path: Path) -> None:
    columns = pages.make_pages()
    columns["seen_at"][::7] = columns["at"][::7]
    rows = np.arange(len(columns["at"]))
    never = (rows % 5 == 0) & (columns["click"] == 1)
    log = pa.table({**columns, "seen_at": pa.array(columns["seen_at"], mask=never)})
    (tmp_path / "log.parquet").parent.mkdir(exist_ok=True)
    pq.write_table(log.take(pc.sort_indices(log, [("at", "ascending")])), tmp_path / "log.parquet")
    config = pages.job(tmp_path / "log.parquet", tmp_path, {**pages.IAT, "order": "temporal"})
    compress(config, tmp_path / "tokens", [*FEW, "filter=positive", "visibility_delay=12h"], quiet=True)
    prepared = reading(config, tmp_path / "tokens", last=1_000)
    tokens = everything(tmp_path / "tokens")
    label_time = dict(zip(own_ids(prepared).tolist(), prepared.label_time(np.arange(len(prepared))).tolist()))
    expected = [
        max(time + 12 * 3_600_000, label_time[one]) for one, time in zip(tokens.instance.tolist(), tokens.times)
    ]
    assert tokens.visible.tolist() == expected
    assert len(tokens.visible) > 100
    assert (tokens.visible < np.iinfo(np.int64).max).all()
    assert (tokens.visible - tokens.times == 12 * 3_600_000).any()
    # Read strictly after it, in a list of every length.
    source, user = prepared.tokens["tokens"], tokens_of(tmp_path / "tokens")
    who, timestamp = next((one, int(own.visible[-1])) for one, own in user.items() if len(own))
    row = np.flatnonzero(source._users == who)[-1:]
    count = [len(source.times(row, np.array([timestamp + late]))) for late in (0, 1)]
    assert count[1] == count[0] + (user[who].visible == timestamp).sum()


def tokens_of(store: Path) -> dict[int, Tokens]:
    with TokenStore.open(store) as opened_store:
        return dict(opened_store.scan())


def test_a_checkpoint_over_its_own_window_is_refused(tmp_path: Path) -> None:
    log = pages.write(pages.make_pages(), tmp_path / "log.parquet")
    config = pages.job(log, tmp_path, {**pages.IAT, "order": "temporal"})
    with pytest.raises(RunError, match="a finished run: this mode writes with its weights"):
        compress(config, tmp_path / "t", ["mode=leaky_checkpoint"])
    config["data"]["split"] = {"by": "time", "valid": 0.1, "test": 0.0}
    run = train(config, quiet=True)
    with pytest.raises(RunError, match="have seen their labels.*\n.*leaky_checkpoint writes them nevertheless"):
        compress(run, tmp_path / "t", ["mode=checkpoint"], quiet=True)
    assert not (tmp_path / "t").exists()
    stores = compress(run, tmp_path / "t", ["mode=leaky_checkpoint"], quiet=True)
    assert "labels" in stores.leak
    with TokenStore.open(tmp_path / "t") as store:
        assert store.info.leak == stores.leak
        assert {(version.trained_before, version.published) for version in store.info.versions} == {(None, None)}
        assert len(store) == stores.tokens == len(opened(config))


def test_a_checkpoint_writes_what_comes_after_it(tmp_path: Path) -> None:
    log = pages.write(pages.make_pages(), tmp_path / "log.parquet")
    run = train(pages.job(log, tmp_path, {**pages.IAT, "order": "temporal"}), quiet=True)
    stores = compress(run, tmp_path / "t", ["mode=checkpoint"], quiet=True)
    assert 0 < stores.tokens == int((run.log().timestamps >= run.log().manifest["lines"][1]).sum())


def test_faults_are_reported(written: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    config, store_path = written
    with pytest.raises(StoreError, match="the store exists already"):
        compress(config, store_path, FEW, quiet=True)
    with pytest.raises(ConfigError, match="did you mean 'codec'"):
        compress(config, tmp_path / "x", ["codek=fp16"])
    with pytest.raises(RunError, match="an encoder, such as iat"):
        compress({**config, "model": {"name": "fm"}}, tmp_path / "x", FEW)
    with pytest.raises(RunError, match="init_from: .*runs/a, of a source trained from scratch"):
        compress({**config, "fit": {**config["fit"], "init_from": "runs/a"}}, tmp_path / "x", FEW)
    with pytest.raises(ConfigError, match="no column 'lable'; did you mean 'label'"):
        reading(config, store_path, of=["token", "lable"]).fields()
    with pytest.raises(StoreError, match="codes, of a source that computes none"):
        compress(config, tmp_path / "x", ["codec=codes"])
    assert not (tmp_path / "x").exists()


def test_codes_are_small_and_near(tmp_path: Path) -> None:
    log = pages.write(pages.make_pages(), tmp_path / "log.parquet")
    config = pages.job(log, tmp_path, {**pages.IAT, "order": "temporal", "slots": 2, "codes": {"size": 16}})
    # a few steps of running statistics are far from those of a batch
    config["model"]["base"] = {**pages.BASE, "batch_norm": False}
    compress(config, tmp_path / "codes", FEW, quiet=True)
    tokens = everything(tmp_path / "codes")
    assert tokens.vectors.shape[1] == 8
    assert 0.1 < tokens.vectors.std() < 10
    assert len(np.unique(tokens.vectors, axis=0)) < len(tokens.vectors)
