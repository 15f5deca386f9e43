"""Taobao-search-style user modelling: the equations part by part, what tells parts apart, and who asks how often."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from conformance import Case
from sample_batches import GAP, ITEM, RATING, TASTE, ragged, repeated, shared, take, with_feature, with_history
from torch import Tensor
from torch.nn import functional as F
from world_runs import aucs_of, run_in, solves

from longrec.data.worlds import world
from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.features.fields import Field, Fields
from longrec.models.core.base import build
from longrec.models.search_user import SearchUser, _Path
from longrec.nn.transformer import EncoderLayer

WORDS = Field("words", "id", 30)
FIELDS = Fields(
    (Field("user", "id", 40, table="user"), TASTE, WORDS, ITEM), {"seen": (RATING, ITEM, GAP), "bought": (ITEM, GAP)}
)
SETTINGS: list[dict[str, Any]] = [
    {"width": 8, "heads": 2, "mlp": [16]},
    {"width": 9, "heads": 3, "mlp": [16], "query": ["words", "user"]},
    {"width": 8, "heads": 1, "mlp": [16], "parts_by": "place", "part_events": 2, "parts": 3, "blocks": 2},
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
    logits, told = [], {name: torch.zeros(int(given.offsets[-1])) for name, given in batch.histories.items()}
    for row in range(batch.size):
        inputs = [vectors[row] for vectors in embedded.features.values()]
        for history, given in batch.histories.items():
            path, places = path_of(model, history), range(*given.offsets[row : row + 2].tolist())
            if config.parts_by == "place":
                numbers = [min((places.stop - 1 - at) // config.part_events, config.parts - 1) for at in places]
            else:  # 2 + log2 of seconds: quarter by quarter from 2^23 seconds, 97 days, on
                gaps = [int(cast(Tensor, given.columns["time_gap"])[at]) - 2 for at in places]
                numbers = [min(max(gap - 22, 0), config.parts - 1) for gap in gaps]
            asked = config.query or ["item"]
            query = torch.cat([embedded.features[name][row] for name in asked])
            units = config.width**0.5
            read, scores, weights = [], [], []
            for number in sorted(set(numbers)):
                own = torch.tensor([at for at, part in zip(places, numbers, strict=True) if part == number])
                events = torch.cat([vectors[own] for vectors in embedded.histories[history].values()], 1)
                z = path.events(events) + path.of_part[number]
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
                    told[history][own] = share * w
            inputs.append(u)
        logits.append(model.top(torch.cat(inputs).unsqueeze(0)).squeeze())
    return torch.stack(logits), told


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_equations_part_by_part(settings: dict[str, Any]) -> None:
    model, batch = search_user(settings), ragged(30, fields=FIELDS, longest=9)
    expected, told = as_written(model, batch)
    torch.testing.assert_close(model(batch), expected, rtol=1e-4, atol=1e-4)
    for name, w_N in model.explain(batch).items():
        torch.testing.assert_close(w_N, told[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_longer_neighbour_changes_nothing(settings: dict[str, Any]) -> None:
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
    before, after = (model.explain(given)["seen"] for given in (batch, changed))
    for part, moved in ((slice(0, 3), True), (slice(3, 6), False)):
        shares = [w[part] / w[part].sum() for w in (before, after)]
        assert ((shares[0] - shares[1]).abs().max() > 1e-3) == moved


@pytest.mark.parametrize(("days", "part"), [(0, 0), (96, 0), (98, 1), (193, 1), (195, 2), (388, 2), (389, 3), (900, 3)])
def test_a_year_falls_into_quarters(days: int, part: int) -> None:
    model, batch = search_user(SETTINGS[0]), ragged(1, fields=FIELDS, lengths=[1])
    _, inputs = model._inputs(batch, model.embeddings(batch))[0]
    gap = torch.tensor([2 + int(np.log2(1 + days * 86_400))])
    assert path_of(model, "seen").number(gap, inputs[3]).item() == part


@pytest.mark.parametrize(("query", "times"), [(["words", "user"], 1), (["words", "item"], 6), ([], 6)])
def test_a_query_reads_a_request_once_and_a_candidate_as_often_as_there_are(query: list[str], times: int) -> None:
    model, rows = search_user({"width": 9, "heads": 3, "mlp": [16], "query": query}), []
    path_of(model, "seen").query.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    one = shared(6, 5, fields=FIELDS)
    found = model(one)
    assert rows == [times]
    torch.testing.assert_close(found, model(repeated(one, FIELDS)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_who_asks_moves_the_weights(settings: dict[str, Any]) -> None:
    model, batch = search_user(settings), ragged(9, fields=FIELDS, lengths=[5] * 9)
    before = model.explain(batch)["seen"]
    for name in ("item", "words"):
        ids = cast(Tensor, batch.features[name])
        after = model.explain(with_feature(batch, name, (ids + 1) % 30))["seen"]
        asks = name in (model.config.query or ["item"])
        assert ((after - before).abs().max() > 1e-4) == asks


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_it_explains_a_request_as_its_rows(settings: dict[str, Any]) -> None:
    model, one = search_user(settings), shared(4, 5, fields=FIELDS)
    together = model.explain(repeated(one, FIELDS))
    for name, w_BT in model.explain(one).items():
        assert w_BT.shape == (4, 5)
        torch.testing.assert_close(w_BT.flatten(), together[name], rtol=1e-4, atol=1e-5)


def test_what_it_cannot_use_is_refused_with_what_to_do() -> None:
    user = Field("user", "id", 9, table="user")
    with pytest.raises(ConfigError, match="search_user reads a history, and the schema has none"):
        build({"name": "search_user"}, Fields((user, ITEM), {}))
    with pytest.raises(ConfigError) as caught:
        build({"name": "search_user", "query": ["wrds", "user", "itm"]}, FIELDS)
    assert len(caught.value.faults) == 2
    assert "model.query: 'wrds' is no feature of the impression; did you mean 'words'?" in caught.value.faults[0]
    with pytest.raises(ConfigError, match="search_user needs a column that is a feature of the candidate"):
        build({"name": "search_user"}, Fields((user, ITEM), {"a": (RATING,)}))
    asked = build({"name": "search_user", "query": ["user"]}, Fields((user, ITEM), {"a": (RATING,)}))
    assert isinstance(asked, SearchUser)


SMALL = {"name": "search_user", "width": 16, "heads": 2, "hidden": 16, "mlp": [32], "embedding_dim": 8, "init_std": 0.1}


def test_the_candidate_finds_an_interest_and_fields_alone_do_not(tmp_path: Path) -> None:
    made = world("one_interest", users=500)
    assert solves(made, SMALL, tmp_path, "search_user", epochs=3, lr=1e-2)
    found, _ = aucs_of(made, run_in(made, {"name": "lr"}, tmp_path, "lr", epochs=1))
    assert abs(found - 0.5) < 0.08


def test_a_search_finds_an_interest_by_its_query(tmp_path: Path) -> None:
    """The words are the category of what is found, and the candidate itself says nothing of its kind."""
    made = world("one_interest", users=500)
    assert made.items is not None
    words = made.items["category"].take(made.log["item"])
    features = {name: given for name, given in made.schema["features"].items() if name != "category"}
    features |= {"words": {"kind": "id"}}
    clicks = {**made.schema["histories"]["clicks"], "of": ["words"]}
    schema = {**made.schema, "features": features, "histories": {"clicks": clicks}}
    searched = replace(made, log=made.log.append_column("words", words), schema=schema)
    assert solves(searched, {**SMALL, "query": ["words"]}, tmp_path, epochs=4, lr=1e-2, tables_lr=3e-2)
