"""The synthetic dataset ``long_memory``: its optimum by brute force, empty newest events, and models that solve it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from longrec.data import synthetic
from longrec.data.synthetic import SyntheticDataset, generate_dataset
from longrec.data.synthetic.long_memory import RECENT, cut_history
from longrec.metrics import auc
from longrec.training.fit import train

SIZES = {500: 400, 2_000: 150, 10_000: 30}
"""Users by length of the history. Each has eight impressions."""


def impressions(dataset: SyntheticDataset) -> Iterator[tuple[int, list[dict[str, Any]], dict[str, Any]]]:
    """Return row, history and event of every impression, from the raw log alone: the strictly earlier events."""
    assert dataset.items is not None
    category = dict(zip(dataset.items["item"].to_pylist(), dataset.items["category"].to_pylist()))
    users: dict[int, list[dict[str, Any]]] = {}
    for row, event in enumerate(dataset.log.to_pylist()):
        event["category"] = category[event["item"]]
        users.setdefault(event["user"], []).append(event)
        if event["liked"] is not None:
            yield row, [other for other in users[event["user"]] if other["time"] < event["time"]], event


def spread(label: NDArray[Any]) -> float:
    """Four standard deviations of the AUC of scores that know nothing (Mann-Whitney)."""
    positive = int(label.sum())
    negative = len(label) - positive
    return float(4 * np.sqrt((positive + negative + 1) / (12 * positive * negative)))


@pytest.mark.parametrize("length", SIZES)
def test_purchases_of_long_ago_give_the_optimum_and_the_newest_events_give_nothing(length: int) -> None:
    dataset = generate_dataset("long_memory", SIZES[length], 3, length=length)
    rows, labels, best, newest, views = [], [], [], [], []
    recent = max(RECENT, length // 10)
    for row, history, event in impressions(dataset):
        assert len(history) == length
        bought = {other["category"] for other in history if other["action"] == "buy"}
        assert len(bought) == 1
        assert all(other["action"] == "view" for other in history[-recent:])
        rows.append(row)
        labels.append(event["liked"])
        best.append(0.9 if event["category"] in bought else 0.1)
        same = [other["action"] for other in history if other["category"] == event["category"]]
        views.append(same.count("view"))
        newest.append(sum(other["category"] == event["category"] for other in history[-RECENT:]))
    label = np.array(labels)
    np.testing.assert_array_equal(dataset.true_probability[rows], best)
    assert auc(label, best) == pytest.approx(0.9, abs=spread(label) / 2)
    assert np.std(newest) > 0
    for empty in (newest, views):
        assert abs(auc(label, np.array(empty, float)) - 0.5) < spread(label)


def test_the_number_of_purchases_is_the_share_of_the_older_events() -> None:
    for share, expected in ((0.3, 135), (1e-6, 1), (1.0, 450)):
        log = generate_dataset("long_memory", 5, share=share).log
        assert log["action"].to_pylist().count("buy") == 5 * expected


def run(dataset: SyntheticDataset, model: dict[str, Any], folder: Path, **fit: Any) -> tuple[NDArray[Any], ...]:
    """Return row, label and score of the test rows after training."""
    synthetic.write(dataset, folder)
    fit |= {"runs": str(folder / "runs"), "tensorboard": "off", "mlflow": "off", "val_checks_per_epoch": 1}
    job = dataset.job(folder, model, **fit)
    job["data"] |= {"folder": str(folder / "prepared"), "threads": 1}
    table = train({**job, "name": "x", "evaluate": {"n_resamples": 2}}, quiet=True).predictions("test")
    return tuple(table[name].to_numpy() for name in ("row", "label", "score"))


def test_a_search_by_category_solves_it(tmp_path: Path) -> None:
    dataset = generate_dataset("long_memory", 400)
    row, label, score = run(dataset, dict(dataset.must[0]), tmp_path, epochs=3)
    assert auc(label, score) >= dataset.required_auc(auc(label, dataset.true_probability[row]))


def test_the_newest_events_alone_teach_nothing(tmp_path: Path) -> None:
    dataset = cut_history(generate_dataset("long_memory", 400), RECENT)
    _, label, score = run(dataset, {"name": "din", "embedding_dim": 8, "mlp": [32]}, tmp_path, epochs=2)
    assert abs(auc(label, score) - 0.5) < spread(label)
