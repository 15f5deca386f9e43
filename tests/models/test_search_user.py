"""Taobao-search-style user modeling: the equations per segment, the split into segments, and the number of queries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from synthetic_runs import aucs_of, run_in, solves
from torch import Tensor
from torch.nn import functional as F

from longrec.data.synthetic import generate_dataset
from longrec.errors import ConfigError
from longrec.features.batch import Batch, HistoryBatch
from longrec.features.fields import Field, Fields
from longrec.models.core.registry import build
from longrec.models.search_user import SearchUser, _Path
from longrec.nn.transformer import EncoderLayer
from longrec.testing.batches import (
    GAP,
    ITEM,
    RATING,
    TASTE,
    grouped,
    ragged,
    repeated,
    shared,
    take,
    with_feature,
    with_history,
)
from longrec.testing.case import Case

QUERY = Field("query", "id", 30)
FIELDS = Fields(
    (Field("user", "id", 40, side="user"), TASTE, QUERY, ITEM), {"seen": (RATING, ITEM, GAP), "bought": (ITEM, GAP)}
)
SETTINGS: list[dict[str, Any]] = [
    {"width": 8, "heads": 2, "mlp": [16]},
    {"width": 9, "heads": 3, "mlp": [16], "query": ["query", "user"]},
    {"width": 8, "heads": 1, "mlp": [16], "segment_by": "position", "segment_events": 2, "segments": 3, "blocks": 2},
]


def search_user(settings: dict[str, Any], fields: Fields = FIELDS) -> SearchUser:
    model = Case("search_user", settings).lively(fields)
    assert isinstance(model, SearchUser)
    return model


def path_of(model: SearchUser, history: str) -> _Path:
    return cast(_Path, model.paths[f"path_{history}"])


def layer_of(layer: EncoderLayer, x: Tensor) -> Tensor:
    """One layer over the events of one part, pair by pair."""
    w_q, w_k, w_v = layer.inner.weight.chunk(3)
    assert layer.scale is not None
    size, heads = len(w_q) // layer.heads, []
    for head in range(layer.heads):
        own = slice(head * size, (head + 1) * size)
        q, k = x @ w_q[own].t(), x @ w_k[own].t()
        s = layer.scale[head] * F.cosine_similarity(q.unsqueeze(1), k.unsqueeze(0), dim=2)
        heads.append(s.softmax(1) @ (x @ w_v[own].t()))
    first, second = cast(Any, layer.norms[0]), cast(Any, layer.norms[1])
    x = F.layer_norm(x + torch.cat(heads, 1) @ layer.outer.weight.t(), x.shape[1:], first.weight, first.bias)
    h = (x @ layer.first.weight.t() + layer.first.bias).relu()
    x = x + h @ layer.second.weight.t() + layer.second.bias
    return F.layer_norm(x, x.shape[1:], second.weight, second.bias)


def as_written(model: SearchUser, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the weight of every event."""
    config, embedded = model.config, model.embeddings(batch)
    logits, weights_by_history = (
        [],
        {name: torch.zeros(int(history_batch.offsets[-1])) for name, history_batch in batch.histories.items()},
    )
    for row in range(batch.size):
        inputs = [vectors[row] for vectors in embedded.features.values()]
        for history, history_batch in batch.histories.items():
            path, positions = path_of(model, history), range(*history_batch.offsets[row : row + 2].tolist())
            if config.segment_by == "position":
                numbers = [
                    min((positions.stop - 1 - at) // config.segment_events, config.segments - 1) for at in positions
                ]
            else:  # 2 + log2 of seconds: quarter by quarter from 2^23 seconds, 97 days, on
                gaps = [int(cast(Tensor, history_batch.columns["time_gap"])[at]) - 2 for at in positions]
                numbers = [min(max(gap - 22, 0), config.segments - 1) for gap in gaps]
            query_names = config.query or ["item"]
            query = torch.cat([embedded.features[name][row] for name in query_names])
            units = config.width**0.5
            read, scores, weights = [], [], []
            for number in sorted(set(numbers)):
                own = torch.tensor([at for at, segment in zip(positions, numbers, strict=True) if segment == number])
                events = torch.cat([vectors[own] for vectors in embedded.histories[history].values()], 1)
                z = path.events(events) + path.of_segment[number]
                for block in path.blocks:
                    z = layer_of(cast(EncoderLayer, block), z)
                w = (z @ path.query(query.unsqueeze(0)).squeeze() / units).softmax(0)
                read.append(w @ z)
                weights.append((own, w))
                assert path.over is not None
                scores.append(read[-1] @ path.over(query.unsqueeze(0)).squeeze() / units)
            u = torch.zeros(config.width)
            if read:
                over = torch.stack(scores).softmax(0)
                u = over @ torch.stack(read)
                for share, (own, w) in zip(over, weights, strict=True):
                    weights_by_history[history][own] = share * w
            inputs.append(u)
        logits.append(model.top(torch.cat(inputs).unsqueeze(0)).squeeze())
    return torch.stack(logits), weights_by_history


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_equations_segment_by_segment(settings: dict[str, Any]) -> None:
    model, batch = search_user(settings), ragged(30, fields=FIELDS, longest=9)
    expected, weights = as_written(model, batch)
    torch.testing.assert_close(model(batch), expected, rtol=1e-4, atol=1e-4)
    for name, w_N in model.explain(batch).items():
        torch.testing.assert_close(w_N, weights[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_longer_neighbor_changes_nothing(settings: dict[str, Any]) -> None:
    model, batch = search_user(settings), ragged(3, fields=FIELDS, lengths=[3, 4, 40])
    together = model(batch)
    torch.testing.assert_close(model(take(batch, [0])), together[:1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(take(batch, [1, 0])), together[[1, 0]], rtol=1e-4, atol=1e-5)


def test_the_norm_of_an_event_moves_no_score_among_events() -> None:
    model = search_user(SETTINGS[0])
    layer, x = cast(EncoderLayer, path_of(model, "seen").blocks[0]), torch.randn(5, 8)
    for one, other in zip(layer.project(x)[:2], layer.project(100 * x)[:2]):
        torch.testing.assert_close(one, other)


def test_quarters_do_not_see_each_other() -> None:
    """An event of one part moves the shares of the events of its own part, and of no other."""
    model, batch = search_user(SETTINGS[0]), ragged(1, fields=FIELDS, lengths=[6])
    gaps = torch.tensor([27, 27, 27, 2, 3, 4], dtype=torch.int32)
    batch = with_history(batch, "seen", {"time_gap": gaps, "item": torch.arange(6, dtype=torch.int32) + 2})
    changed = with_history(batch, "seen", {"item": torch.tensor([50, 3, 4, 5, 6, 7], dtype=torch.int32)})
    before, after = (model.explain(one)["seen"] for one in (batch, changed))
    for span, moved in ((slice(0, 3), True), (slice(3, 6), False)):
        shares = [w[span] / w[span].sum() for w in (before, after)]
        assert ((shares[0] - shares[1]).abs().max() > 1e-3) == moved


@pytest.mark.parametrize(
    ("days", "segment"), [(0, 0), (96, 0), (98, 1), (193, 1), (195, 2), (388, 2), (389, 3), (900, 3)]
)
def test_a_year_falls_into_quarters(days: int, segment: int) -> None:
    model, batch = search_user(SETTINGS[0]), ragged(1, fields=FIELDS, lengths=[1])
    _, inputs = model._inputs(batch, model.embeddings(batch))[0]
    gap = torch.tensor([2 + int(np.log2(1 + days * 86_400))])
    assert path_of(model, "seen").number(HistoryBatch({"time_gap": gap}, torch.arange(2)), inputs[3]).item() == segment


@pytest.mark.parametrize(("query", "times"), [(["query", "user"], 1), (["query", "item"], 6), ([], 6)])
def test_a_query_reads_a_request_once_and_a_candidate_as_often_as_there_are(query: list[str], times: int) -> None:
    model, rows = search_user({"width": 9, "heads": 3, "mlp": [16], "query": query}), []
    path_of(model, "seen").query.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    one = shared(6, 5, fields=FIELDS)
    actual = model(one)
    assert rows == [times]
    torch.testing.assert_close(actual, model(repeated(one, FIELDS)), rtol=1e-4, atol=1e-5)
    rows.clear()
    several = grouped([1, 0, 1, 1, 2, 2], fields=FIELDS)
    actual = model(several)
    assert rows == [{1: 3, 6: 6}[times]]
    torch.testing.assert_close(actual, model(several.ungroup()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_query_moves_the_weights(settings: dict[str, Any]) -> None:
    model, batch = search_user(settings), ragged(9, fields=FIELDS, lengths=[5] * 9)
    before = model.explain(batch)["seen"]
    for name in ("item", "query"):
        ids = cast(Tensor, batch.features[name])
        after = model.explain(with_feature(batch, name, (ids + 1) % 30))["seen"]
        in_query = name in (model.config.query or ["item"])
        assert ((after - before).abs().max() > 1e-4) == in_query


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_it_explains_a_request_as_its_rows(settings: dict[str, Any]) -> None:
    model, one = search_user(settings), shared(4, 5, fields=FIELDS)
    together = model.explain(repeated(one, FIELDS))
    for name, w_BT in model.explain(one).items():
        assert w_BT.shape == (4, 5)
        torch.testing.assert_close(w_BT.flatten(), together[name], rtol=1e-4, atol=1e-5)
    several = grouped([2, 0, 0, 1, 2], fields=FIELDS)
    for name, w_N in model.explain(several).items():
        torch.testing.assert_close(w_N, model.explain(several.ungroup())[name], rtol=1e-4, atol=1e-5)


def test_what_it_cannot_use_is_refused_with_what_to_do() -> None:
    user = Field("user", "id", 9, side="user")
    with pytest.raises(ConfigError, match="search_user reads a history, and the schema has none"):
        build({"name": "search_user"}, Fields((user, ITEM), {}))
    with pytest.raises(ConfigError) as caught:
        build({"name": "search_user", "query": ["qury", "user", "itm"]}, FIELDS)
    assert len(caught.value.faults) == 2
    assert "model.query: 'qury' is no feature of the impression; did you mean 'query'?" in caught.value.faults[0]
    with pytest.raises(ConfigError, match="search_user needs a column that is a feature of the candidate"):
        build({"name": "search_user"}, Fields((user, ITEM), {"a": (RATING,)}))
    model = build({"name": "search_user", "query": ["user"]}, Fields((user, ITEM), {"a": (RATING,)}))
    assert isinstance(model, SearchUser)


SMALL = {"name": "search_user", "width": 16, "heads": 2, "hidden": 16, "mlp": [32], "embedding_dim": 8, "init_std": 0.1}


def test_the_candidate_finds_an_interest_and_fields_alone_do_not(tmp_path: Path) -> None:
    dataset = generate_dataset("one_interest", users=500)
    assert solves(dataset, SMALL, tmp_path, "search_user", epochs=3, lr=1e-2)
    actual, _ = aucs_of(dataset, run_in(dataset, {"name": "lr"}, tmp_path, "lr", epochs=1))
    assert abs(actual - 0.5) < 0.08


def test_a_search_finds_an_interest_by_its_query(tmp_path: Path) -> None:
    """The words are the category of what is found, and the candidate itself says nothing of its kind."""
    dataset = generate_dataset("one_interest", users=500)
    assert dataset.items is not None
    queries = dataset.items["category"].take(dataset.log["item"])
    features = {name: feature for name, feature in dataset.schema["features"].items() if name != "category"}
    features |= {"query": {"kind": "id"}}
    clicks = {**dataset.schema["histories"]["clicks"], "features": ["query"]}
    schema = {**dataset.schema, "features": features, "histories": {"clicks": clicks}}
    searched = replace(dataset, log=dataset.log.append_column("query", queries), schema=schema)
    assert solves(searched, {**SMALL, "query": ["query"]}, tmp_path, epochs=4, lr=1e-2, embedding_lr=3e-2)
