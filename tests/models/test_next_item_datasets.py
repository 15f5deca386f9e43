"""Synthetic datasets of next items: their best hit rates by brute force, and which retrievers reach them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from synthetic_runs import run_in

from longrec.data import synthetic
from longrec.data.splits import TEST, TRAIN
from longrec.data.synthetic import SyntheticDataset, generate_dataset


def hit_rate(dataset: SyntheticDataset, model: Mapping[str, Any], folder: Path, name: str, **fit: Any) -> float:
    """HR at the largest cut on the test rows after training."""
    run = run_in(dataset, model, folder, name, **fit)
    ranks: NDArray[Any] = run.predictions("test")["rank"].to_numpy()
    assert len(ranks) == len(np.unique(dataset.log["user"].to_numpy())), "the last event of every user is tested"
    return float((ranks < max(dataset.hit_rates)).mean())


def by_brute_force(
    dataset: SyntheticDataset, likely: list[list[int]], rows: NDArray[np.int64], k: int
) -> tuple[float, float]:
    """HR@k of the first k likely items of each test row, and four standard deviations of it."""
    item = dataset.log["item"].to_numpy()[rows].tolist()
    hits = [one in items[:k] for one, items in zip(item, likely, strict=True)]
    rate = dataset.hit_rates[k]
    return float(np.mean(hits)), 4 * np.sqrt(rate * (1 - rate) / len(hits)) + 1e-9


def test_the_best_list_of_two_interests_holds_both_clusters_of_the_history() -> None:
    dataset = generate_dataset("two_interests")
    rows = np.flatnonzero(synthetic.compute_splits(dataset) == TEST)
    assert dataset.truth is not None
    cluster, other = (dataset.truth[name].to_numpy() for name in ("cluster", "other"))
    item, user = dataset.log["item"].to_numpy(), dataset.log["user"].to_numpy()
    of_item = dict(zip(item.tolist(), cluster.tolist()))
    likely = []
    for row in rows.tolist():
        history = np.flatnonzero((user == user[row]) & (np.arange(len(user)) < row))
        read = {of_item[one] for one in item[history].tolist()}  # what a history reveals
        assert read == {cluster[row], other[row]}
        likely.append([one for one in of_item if of_item[one] in read])
    for k, rate in dataset.hit_rates.items():
        measured, margin = by_brute_force(dataset, likely, rows, k)
        assert measured == pytest.approx(rate, abs=margin)


def test_several_vectors_find_two_interests_and_one_vector_does_not(tmp_path: Path) -> None:
    dataset = generate_dataset("two_interests")
    best = max(dataset.hit_rates)
    for number, model in enumerate(dataset.must):
        assert hit_rate(dataset, model, tmp_path, f"must_{number}") >= dataset.required_hit_rate(best)
    # The same model with one vector. The recurrence of must_not is further below.
    model = dataset.must_not[-1]
    assert model == {**dataset.must[-1], "interests": 1}
    assert hit_rate(dataset, model, tmp_path, "one") < 0.6 * dataset.hit_rates[best]


def test_the_best_list_of_a_hidden_catalog_holds_new_items() -> None:
    dataset = generate_dataset("hidden_catalog")
    splits = synthetic.compute_splits(dataset)
    rows = np.flatnonzero(splits == TEST)
    assert dataset.truth is not None
    assert dataset.items is not None
    new = dataset.truth["new"].to_numpy() == 1
    item = dataset.log["item"].to_numpy()
    assert not np.intersect1d(item[splits == TRAIN], item[new]).size
    assert new[rows].mean() == pytest.approx(0.5, abs=0.1)
    group_of = dataset.items["group"].to_numpy()
    likely = [np.flatnonzero(group_of == group).tolist() for group in group_of[item[rows - 2]]]
    for k, rate in dataset.hit_rates.items():
        measured, margin = by_brute_force(dataset, likely, rows, k)
        assert measured == pytest.approx(rate, abs=margin)


def test_who_reads_attributes_finds_new_items_and_who_reads_ids_does_not(tmp_path: Path) -> None:
    dataset, ids = generate_dataset("hidden_catalog"), generate_dataset("hidden_catalog", attributes=False)
    best = max(dataset.hit_rates)
    (model,) = dataset.must
    assert hit_rate(dataset, model, tmp_path / "attributes", "x") >= dataset.required_hit_rate(best)
    assert model in ids.must_not
    assert hit_rate(ids, model, tmp_path / "ids", "x") < 0.6
    assert dataset.must_not == ({"name": "covisit"},)
    assert hit_rate(dataset, {"name": "covisit"}, tmp_path / "attributes", "counts") < 0.6
