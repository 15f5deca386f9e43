"""The dataset rich_instances: it is drawn as described, and its signal is in the wide fields and nowhere else."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from longrec.config import parse, read_yaml
from longrec.data import synthetic
from longrec.data.splits import TEST
from longrec.data.synthetic import SyntheticDataset, generate_dataset
from longrec.errors import ConfigError
from longrec.features.schema import Schema
from longrec.metrics import auc
from longrec.training.fit import train

SIGNALS: list[dict[str, Any]] = [
    {"signal": "last", "ties": 0.3},
    {"signal": "last", "ties": 0.3, "back": 3},
    {"signal": "together", "impressions": 40, "page": 7, "keys": 2},
    {"signal": "together", "page": 6, "back": 2},
]


def columns(dataset: SyntheticDataset) -> dict[str, NDArray[Any]]:
    """Everything there is of a world, the hidden part too."""
    assert dataset.items is not None
    assert dataset.truth is not None
    table = {
        **dict(zip(dataset.log.column_names, dataset.log.columns)),
        **dict(zip(dataset.truth.column_names, dataset.truth)),
    }
    category = dict(zip(dataset.items["item"].to_pylist(), dataset.items["category"].to_pylist()))
    arrays = {name: column.to_numpy() for name, column in table.items()}
    return {**arrays, "c": np.array([2 * category[item] - 1 for item in arrays["item"]])}


def rows_back(all_: Mapping[str, NDArray[Any]], row: int, back: int) -> list[int]:
    """The rows of the user's moment ``back`` moments before that of a row, found the slow way."""
    mine = np.flatnonzero(all_["user"] == all_["user"][row])
    earlier = sorted({int(all_["time"][other]) for other in mine if all_["time"][other] < all_["time"][row]})
    return [int(n) for n in mine if len(earlier) >= back and all_["time"][n] == earlier[-back]]


@pytest.mark.parametrize("parameters", SIGNALS, ids=lambda parameters: "-".join(map(str, parameters.values())))
def test_the_history_is_that_of_the_stated_timestamp(parameters: dict[str, Any]) -> None:
    dataset = generate_dataset("rich_instances", 6, fields=9, **parameters)
    all_ = columns(dataset)
    read_by: dict[int, int] = {}
    for row in range(len(dataset.log)):
        then = rows_back(all_, row, parameters.get("back", 1))
        for other in then:  # strictly earlier, and read by no other moment
            assert all_["time"][other] < all_["time"][row]
            assert read_by.setdefault(other, all_["time"][row]) == all_["time"][row]
        if parameters["signal"] == "together":
            then = [other for other in then if all_["key"][other] == all_["wanted"][row]]
        assert all_["past"][row] == np.sign(sum(all_["x"][other] for other in then))
    assert (all_["past"] == 0).any()
    assert (np.diff(all_["time"])[np.diff(all_["user"]) == 0] == 0).any()  # ties, so that strictness matters


@pytest.mark.parametrize("signal", ["last", "together"])
def test_labels_are_drawn_as_said(signal: str) -> None:
    dataset = generate_dataset(
        "rich_instances", 2_000, fields=9, signal=signal, own=1.0, strength=1.5, noise=0.1, seed=3
    )
    all_ = columns(dataset)
    chance = 0.9 / (1 + np.exp(-(all_["x"] * all_["z"] + 1.5 * all_["c"] * all_["past"]))) + 0.05
    np.testing.assert_allclose(all_["p_wide"], chance)
    for name in ("p_narrow", "p_own", "p_wide"):
        for p in np.unique(all_[name]):
            rows = all_[name] == p
            spread = np.sqrt(p * (1 - p) / rows.sum())
            assert all_["liked"][rows].mean() == pytest.approx(p, abs=4 * spread), name
    np.testing.assert_array_equal(dataset.true_probability, all_["p_narrow"])


@pytest.mark.parametrize("parameters", [{}, {"coin_fields": 3, "values": 6}])
def test_the_coins_are_fair_and_functions_of_few_fields(parameters: dict[str, Any]) -> None:
    dataset = generate_dataset("rich_instances", 1_000, fields=8, **parameters)
    all_ = columns(dataset)
    sure = 4 / np.sqrt(len(dataset.log))
    signed = 2 * all_["liked"] - 1
    for pair in (all_["x"], all_["z"], all_["x"] * all_["z"], all_["x"] * signed, all_["z"] * signed):
        assert abs(pair.mean()) < sure  # fair, independent, and the label tells nothing of either
    assert (all_["x"] * all_["z"] * signed).mean() > 0.2
    fields = np.stack([all_[f"f{n}"] for n in range(8)], 1)
    informative = {name: [n for n in range(8) if informs(fields[:, n], all_[name])] for name in ("x", "z", "key")}
    coin_fields = parameters.get("coin_fields", 1)
    assert [len(own) for own in informative.values()] == [coin_fields, coin_fields, 1]
    assert len({n for own in informative.values() for n in own}) == 2 * coin_fields + 1


def informs(field: NDArray[Any], hidden: NDArray[Any]) -> bool:
    """Whether the mean of a hidden value depends on a field, beyond chance."""
    means = [(hidden[field == value].mean(), (field == value).sum()) for value in np.unique(field)]
    return any(abs(mean - hidden.mean()) > 5 * hidden.std() / np.sqrt(rows) for mean, rows in means)


def test_another_seed_hides_other_fields_and_parameters_change_the_log() -> None:
    one, two = (generate_dataset("rich_instances", 300, seed=seed, fields=12) for seed in (0, 1))
    hidden = [[n for n in range(12) if informs(all_[f"f{n:02d}"], all_["x"])] for all_ in map(columns, (one, two))]
    assert hidden[0] != hidden[1]
    assert one.log.num_columns == 5 + 12
    small = generate_dataset("rich_instances", users=5, impressions=10, values=6, keys=5)
    assert len(small.log) == 50
    all_ = columns(small)
    assert max(all_[f"f{n:02d}"].max() for n in range(60)) == 5
    assert set(all_["wanted"]) <= set(range(5))


def test_bayes_aucs_are_apart() -> None:
    for signal, least in (("last", 0.79), ("together", 0.77)):
        dataset = generate_dataset("rich_instances", 3_000, signal=signal, fields=9)
        rows, label = synthetic.compute_splits(dataset) == TEST, dataset.log["liked"].to_numpy()
        narrow, own, wide = (
            auc(label[rows], dataset.true_probabilities()[f"p_{name}"][rows]) for name in ("narrow", "own", "wide")
        )
        assert least < narrow < 0.85
        assert 0.65 < own < 0.75
        assert wide > narrow + 0.07
    assert (
        auc(
            label, generate_dataset("rich_instances", 3_000, signal="together", fields=9, strength=0.0).true_probability
        )
        == 0.5
    )


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"filds": 3}, "filds: unknown key; did you mean 'fields'?"),
        ({"name": "x"}, "name: unknown key"),
        ({"users": 0}, "users: input should be greater than or equal to 1, got 0"),
        ({"seed": -1}, "seed: must be a whole number, 0 or more, got -1"),
        ({"seed": "one"}, "seed: must be a whole number, 0 or more, got 'one'"),
        ({"values": 5}, "values: must be even, got 5"),
        ({"coin_fields": 2}, "coin_fields: must be odd, got 2"),
        ({"fields": 6, "coin_fields": 3}, "fields: 7 are hidden"),
        ({"keys": 9, "values": 8}, "keys: one field of 8 values gives the key, got 9 keys"),
        ({"signal": "never"}, "signal: must be one of 'last' or 'together'; got 'never'"),
        ({"signal": "together", "page": 48}, "impressions: 48 per user leave none with a history"),
        ({"signal": "last", "back": 48}, "impressions: 48 per user leave none with a history"),
        ({"noise": 1.5}, "noise: input should be less than or equal to 1"),
    ],
)
def test_a_bad_parameter_is_reported(parameters: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match="synthetic dataset rich_instances: 1 fault") as caught:
        generate_dataset("rich_instances", **parameters)
    assert says in str(caught.value)


def test_both_schemas_read_one_log(tmp_path: Path) -> None:
    dataset = generate_dataset("rich_instances", 20, signal="together")
    assert dataset.truth is not None
    folder = synthetic.write(dataset, tmp_path)
    assert sorted(synthetic.list_files(dataset)) == sorted(path.name for path in folder.iterdir())
    narrow, wide = (parse(Schema, read_yaml(folder / f"rich_instances{end}.schema.yaml"), end) for end in ("", "_wide"))
    assert set(wide.features) - set(narrow.features) == {f"f{n:02d}" for n in range(60)}
    assert set(narrow.features) == {"user", "item", "category", "wanted", "outcome"}
    assert narrow.histories == wide.histories
    assert narrow.histories["past"].max_length == 8  # the page before, and no more
    assert "wanted" not in narrow.histories["past"].features
    assert pq.read_table(folder / "truth.parquet").equals(dataset.truth)


# ---- who learns what ---------------------------------------------------------------------------------------------


def scores(
    dataset: SyntheticDataset, model: Mapping[str, Any], folder: Path, wide: bool = False
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Row, label and score of the test rows after training by the job that was written with the world."""
    synthetic.write(dataset, folder)
    job = read_yaml(folder / f"{dataset.name}{'_wide' if wide else ''}.yaml")
    data = {name: str(folder / path) if isinstance(path, str) else path for name, path in job["data"].items()}
    fit = {**job["fit"], "runs": str(folder / "runs"), "tensorboard": "off", "mlflow": "off", "patience": 0}
    data |= {"folder": str(folder / "prepared"), "threads": 1}
    run = train({"name": "x", "data": data, "model": model, "fit": fit, "evaluate": {"n_resamples": 2}}, quiet=True)
    table = pq.read_table(run.folder / "predictions" / "test.parquet")
    return tuple(table[name].to_numpy() for name in ("row", "label", "score"))  # type: ignore[return-value]


def chance(label: NDArray[Any]) -> float:
    """Four standard deviations of the AUC of scores that know nothing (Mann-Whitney)."""
    positive = int(label.sum())
    negative = len(label) - positive
    return float(4 * np.sqrt((positive + negative + 1) / (12 * positive * negative)))


@pytest.mark.parametrize(("signal", "model"), [("last", "din"), ("together", "din"), ("together", "deepfm")])
def test_the_narrow_schema_reveals_nothing(signal: str, model: str, tmp_path: Path) -> None:
    dataset = generate_dataset("rich_instances", fields=7, signal=signal)
    assert {"name": model} in dataset.must_not
    row, label, score = scores(dataset, {"name": model}, tmp_path)
    np.testing.assert_array_equal(row, np.flatnonzero(synthetic.compute_splits(dataset) == TEST))
    assert abs(auc(label, score) - 0.5) < chance(label)


def test_the_wide_schema_reveals_the_own_term(tmp_path: Path) -> None:
    dataset = generate_dataset("rich_instances", 1_000, fields=16)
    row, label, score = scores(dataset, {"name": "deepfm"}, tmp_path, wide=True)
    assert auc(label, score) >= dataset.required_auc(auc(label, dataset.true_probabilities()["p_own"][row]))
    assert auc(label, score) < auc(label, dataset.true_probability[row]) - 0.05


def test_with_the_history_as_a_feature_the_narrow_schema_is_solved(tmp_path: Path) -> None:
    dataset = generate_dataset("rich_instances", 1_000, fields=7, signal="together")
    assert dataset.truth is not None
    log = dataset.log.append_column("told", dataset.truth["past"])
    schema = {**dataset.schema, "features": {**dataset.schema["features"], "told": {"kind": "id"}}}
    row, label, score = scores(replace(dataset, log=log, schema=schema), {"name": "deepfm"}, tmp_path)
    assert auc(label, score) >= dataset.required_auc(auc(label, dataset.true_probability[row]))


@pytest.mark.slow
def test_a_million_rows_in_seconds() -> None:
    began = time.process_time()
    assert generate_dataset("rich_instances", 20_834).log.shape == (1_000_032, 65)
    assert time.process_time() - began < 10
