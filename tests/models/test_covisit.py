"""CoVisit against loops over sequences: counts, scores, alternatives, saved buffers, and its program."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from longrec.errors import ConfigError
from longrec.features.batch import Batch, HistoryBatch, Layout
from longrec.features.fields import Field, Fields
from longrec.models.core import artifact, neighbor_lists, pair_counts
from longrec.models.core.registry import build
from longrec.models.covisit import CoVisit
from longrec.testing.programs import silence_exporter

V = 23
FIELDS = Fields((Field("item", "id", V, side="item"),), {"seen": (Field("item", "id", V, side="item"),)})


def sequences(users: int, seed: int, longest: int = 12) -> list[list[int]]:
    """Histories with reserved ids, of which some are empty."""
    random = np.random.default_rng(seed)
    return [random.integers(0, V, random.integers(0, longest)).tolist() for _ in range(users)]


def history_of(rows: Sequence[Sequence[int]]) -> dict[str, HistoryBatch]:
    offsets = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
    ids = torch.tensor([item for row in rows for item in row], dtype=torch.int32)
    return {"seen": HistoryBatch({"item": ids}, offsets)}


def batch_of(rows: Sequence[Sequence[int]]) -> Batch:
    return Batch(Layout.catalog(len(rows), 0), {}, {}, history_of(rows))


CATALOG = {"item": torch.arange(V, dtype=torch.int32)}


def by_loops(
    train: list[list[int]], queries: list[list[int]], window: int, back: float, alpha: float, decay: float
) -> NDArray[np.float64]:
    """The definition: C by pairs, popularity by events, scores by the newest events."""
    counts, popularity = np.zeros((V, V)), np.zeros(V)
    for row in train:
        for s, a in enumerate(row):
            popularity[a] += a > 1
            for t in range(s + 1, min(s + 1 + window, len(row))):
                if a > 1 and row[t] > 1:
                    counts[a, row[t]] += 1 / (t - s)
    scores = np.zeros((len(queries), V))
    for r, query in enumerate(queries):
        for k, item in enumerate(reversed(query)):
            scores[r] += decay**k * (counts[item] + back * counts[:, item])
    return scores / np.maximum(popularity, 1) ** alpha


def fitted(train: list[list[int]], **settings: Any) -> CoVisit:
    model = build({"name": "covisit", **settings}, FIELDS)
    assert isinstance(model, CoVisit)
    model.fit_statistics([history_of(train[:7]), history_of(train[7:])])
    return model


@pytest.mark.parametrize("cells", [10**6, 0, 4 * V], ids=["matrix", "lists", "long lists as a matrix"])
def test_every_alternative_is_the_definition(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (neighbor_lists, pair_counts):
        monkeypatch.setattr(module, "MAX_DENSE", cells)
    monkeypatch.setattr(neighbor_lists, "_MAX_BLOCKS", 3)
    train, queries = sequences(40, 0), [*sequences(20, 1), [], [0], [1, 5], [22] * 8]
    model = fitted(train, window=[1, 3, 50], back=[0.0, 0.5], alpha=[0, 0.4], decay=[0.3, 1])
    every = list(model.alternatives())
    assert len(every) == 24
    for settings in every:
        one = copy.deepcopy(model)
        one.select(settings)
        assert one.selected == pytest.approx(dict(settings))
        actual = one.score_catalog(batch_of(queries), CATALOG)
        np.testing.assert_allclose(actual.numpy(), by_loops(train, queries, **settings), rtol=1e-4, atol=1e-5)


def test_the_first_alternative_is_used_until_one_is_selected() -> None:
    train, queries = sequences(40, 0), sequences(5, 1)
    model = fitted(train)
    assert model.selected == {"window": 5, "back": 0.5, "alpha": 0.3, "decay": 0.6}
    np.testing.assert_allclose(
        model.score_catalog(batch_of(queries), CATALOG).numpy(), by_loops(train, queries, 5, 0.5, 0.3, 0.6), rtol=1e-4
    )
    model.select({"window": 20, "back": 1.0, "alpha": 0.5, "decay": 0.8})
    with pytest.raises(ValueError, match="selected before"):
        model.select({"window": 5, "back": 1.0, "alpha": 0.5, "decay": 0.8})


@pytest.mark.parametrize("dense", [True, False])
def test_events_of_negligible_weight_are_skipped(dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbor_lists, "MAX_DENSE", 10**6 if dense else 0)
    train = sequences(40, 0)
    model, long = fitted(train, decay=0.5), [[5] + [3, 9] * 40]
    expected, scores = by_loops(train, long, 5, 0.5, 0.3, 0.5), model.score_catalog(batch_of(long), CATALOG)
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(scores, model.score_catalog(batch_of([long[0][1:]]), CATALOG))


def test_lists_have_whole_blocks_and_lists_without_blocks_are_loaded() -> None:
    model, queries = fitted(sequences(40, 0)), batch_of(sequences(9, 1))
    state = model.state_dict()
    assert not (state["offsets"] % neighbor_lists.BLOCK).any()
    real = state["weights"] > 0
    lengths = torch.stack([real[a:b].sum() for a, b in zip(state["offsets"][:-1], state["offsets"][1:])])
    state |= {
        "offsets": torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]),
        **{name: torch.cat([state[name][real], state[name].new_zeros(1)]) for name in ("items", "weights")},
    }
    again = build({"name": "covisit"}, FIELDS)
    again.load_state_dict(state)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert isinstance(again, CoVisit)
    assert torch.equal(again.score_catalog(queries, CATALOG), model.score_catalog(queries, CATALOG))


def test_without_counts_all_scores_are_zero() -> None:
    model = build({"name": "covisit"}, FIELDS)
    assert isinstance(model, CoVisit)
    assert model.selected == {}
    assert not model.score_catalog(batch_of([[3, 4], []]), CATALOG).any()
    model = fitted([[0, 1], [4], []] * 5)
    assert not model.score_catalog(batch_of([[3, 4], []]), CATALOG).any()
    with pytest.raises(NotImplementedError, match="no loss"):
        model.loss(batch_of([[3]]))


@pytest.mark.parametrize("dense", [True, False])
def test_saved_and_loaded(dense: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbor_lists, "MAX_DENSE", 10**6 if dense else 0)
    model, queries = fitted(sequences(40, 0)), batch_of(sequences(9, 1))
    model.select({"window": 20, "back": 1.0, "alpha": 0.5, "decay": 0.8})
    artifact.save(model, tmp_path)
    again = artifact.load(tmp_path)
    assert isinstance(again, CoVisit)
    assert again.selected == model.selected
    assert torch.equal(again.score_catalog(queries, CATALOG), model.score_catalog(queries, CATALOG))


def test_a_catalog_of_some_items() -> None:
    model, queries = fitted(sequences(40, 0)), batch_of(sequences(9, 1))
    some = {"item": torch.tensor([7, 1, 7, 0, 12], dtype=torch.int32)}
    expected = model.score_catalog(queries, CATALOG)[:, [7, 1, 7, 0, 12]]
    assert torch.equal(model.score_catalog(queries, some), expected)
    assert not expected[:, [1, 3]].any()


def test_a_value_is_a_list_of_one() -> None:
    config = CoVisit.Config(window=3, back=[0, 1])  # type: ignore[call-arg]
    assert (config.window, config.back) == ((3,), (0.0, 1.0))  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="window"):
        build({"name": "covisit", "window": 0}, FIELDS)
    with pytest.raises(ConfigError, match="covisit needs an id"):
        build({"name": "covisit"}, Fields(FIELDS.features, {"seen": (Field("rating", "id", 8),)}))
    with pytest.raises(ConfigError, match="reads a history"):
        build({"name": "covisit"}, Fields(FIELDS.features, {}))


class Program(nn.Module):
    """Scores of a catalog as a function of the events of one user."""

    def __init__(self, model: CoVisit) -> None:
        super().__init__()
        self.model = model

    def forward(self, item: Tensor, catalog: Tensor) -> Tensor:
        events = HistoryBatch({"item": item}, torch.arange(2) * item.shape[0])
        return self.model.score_catalog(Batch(Layout.shared(1), {}, {}, {"seen": events}), {"item": catalog})


def test_the_program_scores_as_the_model(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = fitted(sequences(40, 0)).eval()
    example = torch.randint(2, 9, (7,), dtype=torch.int32), torch.arange(5, dtype=torch.int32)
    shapes = {0: torch.export.Dim("T")}, {0: torch.export.Dim("I")}
    with silence_exporter(), torch.no_grad():
        program = torch.onnx.export(Program(model).eval(), example, dynamo=True, dynamic_shapes=shapes, verbose=False)
    assert program is not None
    program.save(str(tmp_path / "model.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    for events in (0, 1, 2, 7, 60):
        ids = torch.randint(0, V, (events,), dtype=torch.int32)
        names = [entry.name for entry in session.get_inputs()]
        (actual,) = session.run(None, dict(zip(names, [ids.numpy(), CATALOG["item"].numpy()])))
        expected = model.score_catalog(batch_of([ids.tolist()]), CATALOG)
        torch.testing.assert_close(torch.from_numpy(actual), expected, rtol=1e-4, atol=1e-6)
