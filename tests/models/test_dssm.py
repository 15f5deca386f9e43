"""DSSM: its towers by hand, vectors of items alone and in a batch, and the in-batch softmax."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from longrec.features.batch import Column
from longrec.features.fields import Field, Fields
from longrec.models.core.registry import build
from longrec.models.dssm import DSSM
from longrec.testing.batches import FIELDS, ITEM, pick
from longrec.testing.target_batches import catalog, with_targets

PRICE, FACTS = Field("price", "numeric", 0, side="item"), Field("facts", "embedding", 0, side="item", width=4)
SMALL = Fields((Field("user", "id", 40, side="user"), ITEM, PRICE, FACTS), {"seen": (ITEM,)})


def make(fields: Fields = SMALL, **settings: Any) -> DSSM:
    torch.manual_seed(0)
    model = build({"name": "dssm", "embedding_dim": 6, "mlp": [5], "item_mlp": [7], **settings}, fields)
    assert isinstance(model, DSSM)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def item_by_hand(model: DSSM, columns: dict[str, Column], at: int) -> Tensor:
    table = model.embeddings.table
    own = table("item")[columns["item"][at]]  # type: ignore[index]
    every = [own, columns["price"][at] * table("price")[0], columns["facts"][at] @ table("facts")]  # type: ignore[index]
    (layer,), last = model.item_tower.layers, model.item_tower.last
    assert last is not None
    h = F.relu(layer.linear.weight @ torch.cat(every) + layer.linear.bias)  # type: ignore[operator,union-attr]
    v = last.weight @ h + last.bias + own
    return v / v.norm()


@torch.no_grad()
def test_the_tower_of_items_by_hand() -> None:
    model, columns = make(), catalog(SMALL)
    vectors = model.items(columns)
    for at in (0, 1, 2, 17, 59):
        torch.testing.assert_close(vectors[at], item_by_hand(model, columns, at), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(60))


def test_the_loss_by_hand() -> None:
    """-log softmax of cosines over tau, each less log q, without the other targets of the user."""
    model = make(dropout=0.0, temperature=0.2)
    batch = with_targets(model.sampling, 12, fields=SMALL, per_position=False)
    targets = batch.targets
    assert targets is not None
    assert targets.log_q is not None
    assert targets.draws is not None
    assert targets.hits is not None
    with torch.no_grad():
        u, v = model.users(batch)[:, 0], model.items(dict(batch.candidates))
        assert targets.negatives == len(v) == len(targets.rows)
        z = (u @ v.t() / 0.2).tolist()
        left_out = {tuple(pair) for pair in targets.hits.t().tolist()}
        total = 0.0
        for row, own in enumerate(targets.item.tolist()):
            same = targets.rows == targets.rows[own]
            others = sum(
                float(targets.draws[j]) * math.exp(z[row][j] - float(targets.log_q[j]))
                for j in range(len(v))
                if not same[j] and (row, j) not in left_out
            )
            total += math.log(math.exp(z[row][own]) + others) - z[row][own]
        assert float(model.loss(batch)) == pytest.approx(total / 12, rel=1e-4)
        untouched = replace(targets, hits=None)
        assert float(model.loss(replace(batch, targets=untouched))) > total / 12


def test_an_item_alone_has_its_vector_in_the_batch() -> None:
    """The tower of items reads no other item, also in training."""
    model, columns = make(FIELDS).train(), catalog(FIELDS)
    together = model.items(columns)
    for at in (2, 9, 33):
        alone = model.items({name: pick(column, [at]) for name, column in columns.items()})
        torch.testing.assert_close(alone[0], together[at], rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_every_feature_of_an_item_and_of_a_user_is_read() -> None:
    model, columns = make(FIELDS), catalog(FIELDS)
    before = model.items(columns)
    order = list(range(59, -1, -1))
    assert set(columns) == {field.name for field in FIELDS.features if field.side == "item"}
    for name, column in columns.items():
        assert not torch.allclose(model.items({**columns, name: pick(column, order)}), before, atol=1e-4), name
    batch = with_targets(model.sampling, 8, fields=FIELDS)
    users = model.users(batch)
    for name, column in batch.requests.items():
        other = {**batch.requests, name: pick(column, [7, 6, 5, 4, 3, 2, 1, 0])}
        assert not torch.allclose(model.users(replace(batch, requests=other)), users, atol=1e-4), name


def test_events_and_items_read_the_same_tables() -> None:
    tables = make().embedding_parameters()
    assert sum(table.numel() for table in tables) == (60 + 40) * 6
