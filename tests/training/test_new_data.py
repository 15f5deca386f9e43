"""Scores of rows that came after training: from files and frames, beside those of a split and of a server."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

import longrec
from longrec import commands
from longrec.cli import main
from longrec.errors import ConfigError, DataError, RunError
from longrec.serve.client import client
from longrec.training.finished_run import Run
from longrec.training.fit import train
from longrec.training.new_data import predict_new

LAST = 1_702_000_000
_POOLING = {"name": "pooling", "embedding_dim": 4, "mlp": [8]}


@pytest.fixture(scope="module")
def run(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("new_data")
    overrides = [f"fit.runs={folder}", f"model={json.dumps(_POOLING)}", "fit.epochs=1", "fit.val_checks_per_epoch=1"]
    return train(shop, overrides, quiet=True)


def new_rows(n: int = 60, users: int = 70, items: int = 90, seed: int = 1) -> pa.Table:
    """Return rows of the days after the shop's log: also of users 160 and above and of items 1080 and above."""
    random = np.random.default_rng(seed)
    at = LAST + np.sort(random.integers(1, 200_000, n))
    columns = {"user_id": random.integers(0, users, n) + 100, "item_id": random.integers(0, items, n) + 1_000, "at": at}
    table = pa.table({**columns, "stars": random.integers(1, 6, n)})
    return table.take(pa.array(random.permutation(n)))  # a file has any order


def test_scores_of_rows_that_the_log_has_are_those_of_the_split(run: Run, shop: Path) -> None:
    log, events = run.log(), pq.read_table(shop.parent / "events.parquet")
    test = run.predictions()
    table = run.predict(events)
    assert table.column_names == ["row", "user", "item", "time", "label", "score"]
    assert table["row"].to_pylist() == list(range(len(events)))
    assert table["user"].equals(events["user_id"])
    assert table["item"].equals(events["item_id"])
    assert table["time"].cast(pa.int64()).to_pylist() == [1_000 * at for at in events["at"].to_pylist()]
    assert table["label"].to_pylist() == [float(stars >= 4) for stars in events["stars"].to_pylist()]
    scores: dict[Any, list[float]] = {}
    for user, item, at, score in zip(*(table[n].to_pylist() for n in ("user", "item", "time", "score"))):
        scores.setdefault((user, item, int(at.timestamp() * 1_000)), []).append(score)
    rows = test["row"].to_numpy()
    items = log.events.columns["item"].take(rows).astype(np.int64)
    own = zip(log.user(rows).tolist(), items.tolist(), test["time"].to_pylist(), test["score"].to_pylist())
    for user, item, at, score in own:
        near = scores[log.users.key(user), log.items.key(item), at]
        assert min(abs(one - score) for one in near) < 1e-6
    assert len(rows) == 300


def test_scores_of_new_rows_are_those_that_a_server_of_the_run_returns(run: Run, tmp_path: Path) -> None:
    commands.export(run, tmp_path / "shop.bundle")
    rows = new_rows()
    table = run.predict(rows, candidates=True)
    with client(tmp_path / "shop.bundle") as shop:
        for user, item, at, score in zip(*(table[name].to_pylist() for name in ("user", "item", "time", "score"))):
            served = shop.rank(user=user, candidates=[item], at=at.isoformat(), allow_unknown=True)
            assert served.items[0].score == pytest.approx(score, abs=1e-5)
    unseen = [score for user, score in zip(table["user"].to_pylist(), table["score"].to_pylist()) if user >= 160]
    assert len(unseen) > 3
    # New events are in the histories of later rows.
    events = run.predict(rows)["score"].to_numpy()
    assert (np.abs(events - table["score"].to_numpy()) > 1e-6).sum() > 10


def test_every_form_of_the_rows_gives_the_same_scores(run: Run, tmp_path: Path) -> None:
    rows = new_rows()
    expected = run.predict(rows)
    parquet, text = tmp_path / "new.parquet", tmp_path / "new.csv"
    pq.write_table(rows, parquet)
    pacsv.write_csv(rows, text)
    relation = duckdb.connect().from_arrow(rows)
    files, query = {"files": str(parquet)}, {"query": f"SELECT * FROM '{parquet}'"}
    forms = (str(parquet), text, rows.to_pandas(), relation, {"frame": rows}, files, query)
    for form in forms:
        assert run.predict(form).equals(expected)
    pq.write_table(rows.slice(0, 20), tmp_path / "a.parquet")
    pq.write_table(rows.slice(20), tmp_path / "b.parquet")
    several = run.predict([tmp_path / "a.parquet", tmp_path / "b.parquet"])
    assert several["row"].to_pylist() == [*range(20), *range(40)]
    names = [str(tmp_path / "a.parquet")] * 20 + [str(tmp_path / "b.parquet")] * 40
    assert several["file"].to_pylist() == names
    assert several["score"].equals(expected["score"])
    for odd, says in (
        (7, "log: must be a mapping, got 7"),
        (rows.to_reader(), "log: is a pyarrow.RecordBatchReader, which can be read once; expected a table"),
        (pd.Series([1]), "log: is a pandas.Series, which is one column"),
    ):
        with pytest.raises(ConfigError) as caught:
            run.predict(odd)
        assert says in str(caught.value)
    with pytest.raises(DataError, match="no such file"):
        run.predict(tmp_path / "gone.parquet")
    assert not list(Path(run.config.data.folder).glob(".scratch-*"))


def messy_rows(n: int = 300) -> pa.Table:
    """Return rows with a text that means a missing value, numbers as text, and packed cells."""
    random = np.random.default_rng(3)
    tags = [f"tag:{a};tag:{b}" for a, b in random.integers(0, 5, (n, 2))]
    color, price = random.choice(["red", "blue", "NULL"], n), random.integers(0, 99, n).astype(str)
    columns = {"color": color, "price": price, "cell": tags, "click": random.integers(0, 2, n)}
    return pa.table({**columns, "day": np.arange(n) // 10})


MESSY: dict[str, Any] = {
    "label": "click",
    "casts": {"price": "float"},
    "features": {
        "color": {"kind": "id"},
        "price": {"kind": "numeric"},
        "tags": {"kind": "multi_id"},
        "day": {"kind": "id"},
    },
}


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose log has null texts, casts and packed cells, and neither users, items nor timestamps."""
    folder = tmp_path_factory.mktemp("messy")
    rows = {"packed": {"cell": {"into": {"tag": "tags"}}}}
    source = longrec.Source(frame=messy_rows().to_pandas(), nulls=["NULL"], rows=rows)
    log = longrec.prepare(source, schema=MESSY, split={"by": "user"}, folder=folder / "prepared")
    settings = {"epochs": 1, "lr": 0.1, "runs": str(folder / "runs"), "tensorboard": "off", "mlflow": "off"}
    return longrec.fit("lr", log, evaluate={"n_resamples": 2, "resample": "row"}, quiet=True, **settings)


def test_new_rows_are_read_with_the_null_texts_casts_and_packed_cells_of_the_run(messy: Run, tmp_path: Path) -> None:
    rows = messy_rows(40)
    table = messy.predict({"frame": rows, "rows": messy.config.data.log.rows, "nulls": ["NULL"]})
    assert len(set(table["score"].to_pylist())) > 20
    raw = messy.predict({"frame": rows, "rows": messy.config.data.log.rows, "nulls": []})
    is_null = np.array(rows["color"].to_pylist()) == "NULL"
    changed = raw["score"].to_numpy() != table["score"].to_numpy()
    assert changed.any()
    assert not changed[~is_null].any()
    lines = tmp_path / "a.jsonl"
    lines.write_text("\n".join(map(json.dumps, rows.to_pylist())))
    pq.write_table(rows, tmp_path / "rows.parquet")
    categories = pl.from_arrow(rows).with_columns(pl.col("color").cast(pl.Categorical))
    for form in (lines, tmp_path / "rows.parquet", rows, categories, rows.to_pandas().convert_dtypes()):
        assert messy.predict(form)["score"].equals(table["score"]), type(form)


def test_rows_without_users_items_and_timestamps_have_no_such_columns(messy: Run) -> None:
    assert messy.predict(messy_rows(40)).column_names == ["row", "label", "score"]
    scores = predict_new(messy, messy_rows(40), quiet=True)
    assert scores.describe() == ["40 rows"]
    assert scores.to_dict() == {"rows": 40, "new_users": 0, "new_items": 0, "repeated": 0, "absent": {}}
    assert (
        str(commands.evaluate(messy, log=messy_rows(40)))
        .splitlines()[0]
        .endswith("on new: 40 rows, " + str(sum(messy_rows(40)["click"].to_pylist())) + " positive")
    )
    with pytest.raises(DataError, match="users: a table, and a schema without its key"):
        messy.predict(messy_rows(40), users=pa.table({"user": [1]}))


def test_rows_without_labels_are_scored_and_not_evaluated(run: Run) -> None:
    bare = new_rows().drop_columns(["stars"])
    table = run.predict(bare)
    assert "label" not in table.column_names
    assert np.isfinite(table["score"].to_numpy()).all()
    with pytest.raises(RunError, match="new rows without labels; expected the label column"):
        commands.evaluate(run, log=bare)
    some = new_rows()
    labels = pa.array([None if k % 3 else stars for k, stars in enumerate(some["stars"].to_pylist())])
    evaluation = commands.evaluate(run, log=some.set_column(3, "stars", labels))
    assert (evaluation.split, evaluation.rows) == ("new", 20)
    assert evaluation.metrics["auc"].value == pytest.approx(auc_of(run.predict(some.set_column(3, "stars", labels))))


def test_rows_that_the_model_may_have_learned_are_warned_of(run: Run, shop: Path) -> None:
    assert not any("training window" in warning for warning in commands.evaluate(run, log=new_rows()).warnings)
    train = run.log().rows_of("train")
    end = int(run.log().training_window.train[0])
    rows = pq.read_table(shop.parent / "events.parquet")
    warnings = commands.evaluate(run, log=rows).warnings
    early = int((1_000 * rows["at"].to_numpy() < end).sum())
    assert early == len(train)
    assert warnings[0].startswith(f"{early:,} of {len(rows):,} new rows are earlier than 20")
    other = replace(run, folder=run.folder.parent / ".." / run.folder.parent.name / run.name)
    compared = longrec.compare([run, other], log=rows)
    assert sum("the end of the training window" in warning for warning in compared.warnings) == 2


def test_metrics_of_ones_own_are_computed_on_new_rows(run: Run) -> None:
    def share_of_positives(label, score, user):
        return label.mean()

    evaluation = commands.evaluate(run, log=new_rows(), metrics=[share_of_positives])
    own = evaluation.metrics["share_of_positives"]
    assert own.value == pytest.approx(evaluation.positives / evaluation.rows)
    assert own.low <= own.value <= own.high


def auc_of(table: pa.Table) -> float:
    table = table.filter(table["label"].is_valid())
    label, score = (table[name].to_numpy() for name in ("label", "score"))
    wins = score[label == 1][:, None] - score[label == 0][None]
    return float(((wins > 0) + (wins == 0) / 2).mean())


def test_the_command_prints_what_is_new_and_writes_the_scores(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pa.concat_tables([new_rows(), pq.read_table(run.config.data.log.patterns()[0]).slice(0, 5)])
    pq.write_table(rows.drop_columns(["stars"]), tmp_path / "day.parquet")
    assert main(["predict", str(run.folder), "--log", str(tmp_path / "day.parquet"), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out.splitlines()
    users = {user for user in rows["user_id"].to_pylist() if user >= 160}
    items = {item for item in rows["item_id"].to_pylist() if item >= 1_080}
    assert printed == [
        f"65 rows, {len(users)} new users, {len(items)} new items",
        "5 rows are events of the run's log, and histories have each of them once",
        "no column 'stars' (the label): its values are missing",
        str(run.folder / "predictions" / "new" / "day.parquet"),
    ]
    assert len(pq.read_table(printed[-1])) == 65
    into, report = str(tmp_path / "scores.parquet"), str(tmp_path / "report.json")
    pq.write_table(rows, tmp_path / "day.parquet")
    log = ["--log", str(tmp_path / "day.parquet")]
    assert main(["predict", str(run.folder), *log, "--into", into, "--json", report]) == 0
    facts = json.loads(Path(report).read_text())
    assert (facts["rows"], facts["repeated"], facts["absent"]) == (65, 5, {})
    assert pq.read_table(into).column_names == ["row", "user", "item", "time", "label", "score"]
    capsys.readouterr()
    assert main(["evaluate", str(run.folder), *log]) == 0
    assert "on new: 65 rows" in capsys.readouterr().out
    assert main(["predict", str(run.folder), "--candidates"]) == 2
    assert "--candidates: is for new rows; name their files with --log" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="are for new rows"):
        commands.predict(run, candidates=True)


def test_a_table_of_new_items_changes_their_scores(run: Run) -> None:
    rows = new_rows()
    items = pa.table({"item_id": list(range(1_080, 1_090)), "genre": [f"g{k % 4}" for k in range(10)]})
    plain, listed = (run.predict(rows, items=table)["score"].to_numpy() for table in (None, items))
    differs = np.abs(plain - listed) > 1e-7
    new = np.array([item >= 1_080 for item in rows["item_id"].to_pylist()])
    assert differs[new].all()
    assert not differs[~new].all()


def test_models_that_score_no_rows_say_what_to_do(run: Run, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run.folder, tmp_path / "copy"))
    config = (copy / "config.yaml").read_text()
    for name, kind, do in (
        ("covisit", "a retriever (covisit), which ranks all items", "longrec export"),
        ("iat", "a source model (iat), whose vectors other models read", "longrec compress"),
    ):
        (copy / "config.yaml").write_text(f"{config[: config.index('model:')]}model: {name}\n")
        with pytest.raises(RunError) as caught:
            commands.predict(copy, log=new_rows())
        assert kind in str(caught.value)
        assert do in str(caught.value)


def test_an_error_names_the_frame_and_what_to_do(run: Run) -> None:
    with pytest.raises(DataError) as raised:
        run.predict(new_rows().drop_columns(["user_id", "at"]))
    message = str(raised.value)
    assert message.startswith("log (pyarrow.Table): no column 'user_id' (the user); no column 'at' (the time)")
    assert message.endswith("Add the columns, with nulls where the values are not known")
