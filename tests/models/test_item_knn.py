"""ItemKNN against loops over users: similarities, neighbors, scores, alternatives. Its program: tests/serve."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from longrec.errors import ConfigError
from longrec.features.batch import Batch, HistoryBatch, Layout
from longrec.features.fields import Field, Fields
from longrec.models.core import artifact, neighbor_lists, pair_counts, user_counts
from longrec.models.core.registry import build
from longrec.models.item_knn import ItemKNN

V = 23
FIELDS = Fields((Field("item", "id", V, side="item"),), {"seen": (Field("item", "id", V, side="item"),)})
CATALOG = {"item": torch.arange(V, dtype=torch.int32)}


def sequences(users: int, seed: int, longest: int = 12) -> list[list[int]]:
    """Histories with reserved ids and items that occur again, of which some are empty."""
    random = np.random.default_rng(seed)
    return [random.integers(0, V, random.integers(0, longest)).tolist() for _ in range(users)]


def history_of(rows: Sequence[Sequence[int]]) -> dict[str, HistoryBatch]:
    offsets = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
    ids = torch.tensor([item for row in rows for item in row], dtype=torch.int32)
    return {"seen": HistoryBatch({"item": ids}, offsets)}


def batch_of(rows: Sequence[Sequence[int]]) -> Batch:
    return Batch(Layout.catalog(len(rows), 0), {}, {}, history_of(rows))


def by_loops(
    train: list[list[int]], queries: list[list[int]], neighbors: int, alpha: float, longest: int = 1_000
) -> NDArray[np.float64]:
    """The definition, with the smaller item first among neighbors that are equally similar."""
    users = []
    for row in train:
        newest = list(dict.fromkeys(item for item in reversed(row) if item > 1))[:longest]
        users.append(set(newest))
    n = [[sum(a in own and b in own for own in users) for b in range(V)] for a in range(V)]
    similar = np.zeros((V, V))
    for a in range(V):
        for b in range(V):
            if a != b and n[a][b]:
                similar[a, b] = n[a][b] / (n[a][a] ** (1 - alpha) * n[b][b] ** alpha)
    for a in range(V):
        similar[a, np.argsort(-similar[a], kind="stable")[neighbors:]] = 0
    return np.array([similar[list(set(query))].sum(0) for query in queries])


def fitted(train: list[list[int]], **settings: Any) -> ItemKNN:
    model = build({"name": "item_knn", **settings}, FIELDS)
    assert isinstance(model, ItemKNN)
    model.fit_statistics([history_of(train[:7]), history_of(train[7:])])
    return model


def test_two_users_by_hand() -> None:
    model = fitted([[2, 3], [2, 3, 4], [4, 2], [2]])
    score = model.score_catalog(batch_of([[2], [3, 3], []]), CATALOG).numpy()
    two_three, two_four, three_four = 2 / (4 * 2) ** 0.5, 2 / (4 * 2) ** 0.5, 1 / (2 * 2) ** 0.5
    np.testing.assert_allclose(score[0, 2:5], [0, two_three, two_four], rtol=1e-6)
    np.testing.assert_allclose(score[1, 2:5], [two_three, 0, three_four], rtol=1e-6)
    assert not score[2].any()
    assert not score[:, :2].any()


@pytest.mark.parametrize("cells", [10**6, 0, 4 * V], ids=["matrix", "lists", "long lists as a matrix"])
def test_every_alternative_is_the_definition(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (neighbor_lists, pair_counts):
        monkeypatch.setattr(module, "MAX_DENSE", cells)
    monkeypatch.setattr(user_counts, "_PAIRS", 40)
    train, queries = sequences(60, 0), [*sequences(20, 1), [], [0], [1, 5], [22] * 8]
    model = fitted(train, neighbors=[1, 4, 50], alpha=[0, 0.5, 0.8])
    every = list(model.alternatives())
    assert len(every) == 9
    assert model.selected == {"neighbors": 1, "alpha": 0}
    for settings in every:
        one = copy.deepcopy(model)
        one.select(settings)
        assert one.selected == pytest.approx(dict(settings))
        actual = one.score_catalog(batch_of(queries), CATALOG).numpy()
        np.testing.assert_allclose(actual, by_loops(train, queries, **settings), rtol=1e-4, atol=1e-6)
        with pytest.raises(ValueError, match="selected before"):
            one.select(settings)


def test_of_a_long_history_the_newest_items_count() -> None:
    train, queries = sequences(40, 3, 30), sequences(9, 4)
    actual = fitted(train, longest=3).score_catalog(batch_of(queries), CATALOG).numpy()
    np.testing.assert_allclose(actual, by_loops(train, queries, 200, 0.5, longest=3), rtol=1e-4, atol=1e-6)
    assert np.abs(actual - by_loops(train, queries, 200, 0.5)).max() > 0.1


def test_saved_and_loaded(tmp_path: Path) -> None:
    model, queries = fitted(sequences(40, 0), neighbors=3), batch_of(sequences(9, 1))
    artifact.save(model, tmp_path)
    again = artifact.load(tmp_path)
    assert isinstance(again, ItemKNN)
    assert again.selected == model.selected == {"neighbors": 3, "alpha": 0.5}
    assert torch.equal(again.score_catalog(queries, CATALOG), model.score_catalog(queries, CATALOG))


def test_without_counts_all_scores_are_zero() -> None:
    model = fitted([[0, 1], [4], []] * 5)
    assert not model.score_catalog(batch_of([[3, 4], []]), CATALOG).any()
    assert build({"name": "item_knn"}, FIELDS).selected == {}  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="item_knn reads a history"):
        build({"name": "item_knn"}, Fields(FIELDS.features, {}))
