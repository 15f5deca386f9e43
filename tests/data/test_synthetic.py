"""Synthetic datasets: models that must solve them do, models that must not do not, and a leaky join is caught."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from longrec.config import parse, read_yaml
from longrec.data import gather as gather_module
from longrec.data import synthetic
from longrec.data.synthetic import SyntheticDataset, generate_dataset
from longrec.errors import UnknownName
from longrec.features.history_columns import build_history_columns
from longrec.features.schema import Schema
from longrec.metrics import auc
from longrec.training.fit import train


def scores(
    dataset: SyntheticDataset, model: Mapping[str, Any], folder: Path
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Row, label and score of the test rows after training."""
    synthetic.write(dataset, folder)
    job = dataset.job(folder, model, runs=str(folder / "runs"), tensorboard="off", mlflow="off")
    job["data"] |= {"folder": str(folder / "prepared"), "threads": 1}
    run = train({**job, "name": "x", "evaluate": {"n_resamples": 2}}, quiet=True)
    table = pq.read_table(run.folder / "predictions" / "test.parquet")
    return tuple(table[name].to_numpy() for name in ("row", "label", "score"))  # type: ignore[return-value]


def chance(label: NDArray[Any]) -> float:
    """Four standard deviations of the AUC of scores that know nothing (Mann-Whitney)."""
    positive = int(label.sum())
    negative = len(label) - positive
    return float(4 * np.sqrt((positive + negative + 1) / (12 * positive * negative)))


@pytest.mark.parametrize("name", synthetic.list_names())
def test_the_same_arguments_make_the_same_dataset(name: str) -> None:
    one, two, other = generate_dataset(name, 30, 5), generate_dataset(name, 30, 5), generate_dataset(name, 30, 6)
    assert one.log.equals(two.log)
    assert not one.log.equals(other.log)
    assert (one.items is None) == (two.items is None)
    assert one.items is None or one.items.equals(two.items)
    np.testing.assert_array_equal(one.true_probability, two.true_probability)
    assert len(generate_dataset(name, 31).log) > len(one.log)


@pytest.mark.parametrize("name", synthetic.list_names())
def test_a_dataset_is_what_it_says(name: str) -> None:
    dataset = generate_dataset(name)
    schema = parse(Schema, dataset.schema, name)
    assert schema.time is not None
    assert dataset.name == name
    assert dataset.story
    assert dataset.must or dataset.must_not
    user, time = (dataset.log[column].to_numpy() for column in (schema.user, schema.time.column))
    assert np.lexsort((time, user)).tolist() == list(range(len(user)))  # by user and time
    if schema.label is None:  # a dataset of next items, in which every event is a positive
        assert dataset.hit_rates
        assert (dataset.true_probability == 1).all()
        assert len(dataset.true_probability) == len(dataset.log)
        return
    label = dataset.log[schema.label.column].to_numpy(zero_copy_only=False).astype(float)
    np.testing.assert_array_equal(np.isnan(label), np.isnan(dataset.true_probability))
    labeled = ~np.isnan(label)
    for chance_of in np.unique(dataset.true_probability[labeled]):  # the oracle is calibrated
        rows = dataset.true_probability == chance_of
        spread = np.sqrt(chance_of * (1 - chance_of) / rows.sum())
        assert label[rows].mean() == pytest.approx(chance_of, abs=4 * spread)
    if dataset.leak is not None:
        parse(Schema, dataset.leak, name)


@pytest.mark.parametrize("name", synthetic.list_names())
def test_a_dataset_is_written_as_files_of_a_job(name: str, tmp_path: Path) -> None:
    dataset = generate_dataset(name, 20)
    assert synthetic.write(dataset, tmp_path / "w") == tmp_path / "w"
    assert pq.read_table(tmp_path / "w" / "log.parquet").equals(dataset.log)
    path = tmp_path / "w" / f"{name}.schema.yaml"
    assert parse(Schema, read_yaml(path), name) == parse(Schema, dataset.schema, name)
    assert all(line.startswith("# ") or len(line) < 60 for line in path.read_text().splitlines())
    data = dataset.job(tmp_path / "w", {"name": "din"})["data"]
    assert all(Path(data[key]).is_file() for key in data if key != "split")


def test_an_unknown_dataset() -> None:
    with pytest.raises(UnknownName, match=r"no synthetic dataset named 'one_interst'; did you mean 'one_interest'\?"):
        generate_dataset("one_interst")


# ---- one interest ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", generate_dataset("one_interest", 2).must, ids=lambda model: model["name"])
def test_who_reads_histories_finds_the_interest(model: Mapping[str, Any], tmp_path: Path) -> None:
    dataset = generate_dataset("one_interest")
    row, label, score = scores(dataset, model, tmp_path)
    bayes_auc = auc(label, dataset.true_probability[row])
    assert bayes_auc == pytest.approx(0.85, abs=0.02)
    assert auc(label, score) >= dataset.required_auc(bayes_auc)


def test_who_does_not_read_histories_finds_nothing(tmp_path: Path) -> None:
    assert {"name": "deepfm"} in generate_dataset("one_interest", 2).must_not
    _, label, score = scores(generate_dataset("one_interest"), {"name": "deepfm"}, tmp_path)
    assert abs(auc(label, score) - 0.5) < chance(label)


# ---- late correction ---------------------------------------------------------------------------------------------


def test_a_report_read_as_available_at_the_time_reveals_nothing(tmp_path: Path) -> None:
    assert {"name": "din"} in generate_dataset("late_correction", 2).must_not
    _, label, score = scores(generate_dataset("late_correction"), {"name": "din"}, tmp_path)
    assert abs(auc(label, score) - 0.5) < chance(label)


def test_a_report_read_as_of_now_reveals_all(tmp_path: Path) -> None:
    dataset = generate_dataset("late_correction")
    assert dataset.leak is not None
    _, label, score = scores(replace(dataset, schema=dataset.leak), {"name": "pooling"}, tmp_path)
    assert auc(label, score) > 0.95


@pytest.mark.parametrize(("planted", "least"), [("known a tick early", 0.6), ("available_at forgotten", 0.95)])
def test_a_leaky_join_is_caught(planted: str, least: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leaky(fitted: Any, name: str, items: Any, events: Any, now: NDArray[np.int64]) -> Any:
        if planted == "known a tick early":  # at or before, where strictly before is the rule
            return build_history_columns(fitted, name, items, events, now + 1)
        return build_history_columns(fitted, name, items, replace(events, available_at={}), now)

    monkeypatch.setattr(gather_module, "build_history_columns", leaky)
    _, label, score = scores(generate_dataset("late_correction"), {"name": "pooling"}, tmp_path)
    assert auc(label, score) > least


def test_an_amendment_comes_with_or_after_the_next_event() -> None:
    log = generate_dataset("late_correction", 50).log
    user, time, corrected = (log[name].to_numpy() for name in ("user", "time", "corrected_at"))
    same = user[1:] == user[:-1]
    assert (corrected[:-1][same] >= time[1:][same]).all()
    assert 0.2 < np.mean(corrected[:-1][same] == time[1:][same]) < 0.5  # ties: known at that very moment is too late
    after_next = (user[2:] == user[:-2]).nonzero()[0]
    assert (corrected[after_next] < time[after_next + 2]).all()
    report, fraud = log["report"].to_numpy(), log["fraud"].to_numpy()
    assert (report[:-1][same] == fraud[1:][same]).all()


def test_types_are_those_a_reader_expects() -> None:
    for name in synthetic.list_names():
        kinds = set(generate_dataset(name, 3).log.schema.types)
        assert kinds <= {pa.int64(), pa.int16(), pa.string()}
