from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from longrec.errors import ConfigError
from longrec.features.batch import Batch, HistoryBatch, Layout
from longrec.features.fields import Field, Fields
from longrec.metrics import auc
from longrec.models.core.catalog import help_text
from longrec.models.core.registry import build
from longrec.models.multi_tower import MultiTower
from longrec.testing import Case, check_case
from longrec.testing.batches import FIELDS, GAP, ITEM, RATING, TOKENS, offsets, ragged, repeated, shared
from longrec.training.sparse_optimizers import LazyAdam

NAMED: dict[str, Any] = {
    "towers": {
        "user.side": {
            "features": ["user", "age", "hobbies", "taste", "hour"],
            "mlp": [16],
            "pooled": ["liked"],
            "pool": "sum",
        },
        "item": {
            "features": ["item", "price", "genres", "actors"],
            "mlp": [16, 8],
            "din": {"liked": {"mlp": [8], "key": False}},
        },
    },
    "din": {"seen": {"mlp": [16, 8], "activation": "dice", "softmax": False, "dropout": [0.1, 0.0]}},
    "final": {"mlp": [16]},
}
FAST = (
    "rows_do_not_see_each_other",
    "an_empty_history_is_scored",
    "every_parameter_gets_a_gradient",
    "every_input_is_read",
    "order_matters_as_declared",
    "saved_and_loaded",
    "shared_batch_scores_as_ragged",
    "grouped_batch_is_learned_as_single",
)
"""Checks that depend on the assignment of features. The variants run the rest."""


def tower(settings: dict[str, Any], fields: Fields = FIELDS) -> MultiTower:
    model = Case("multi_tower", settings).lively(fields)
    assert isinstance(model, MultiTower)
    return model


def test_named_groups_pass_the_conformance_suite() -> None:
    check_case(Case("multi_tower", NAMED), only=FAST)


def test_equations_row_by_row() -> None:
    """The whole model again as loops over rows and events, from its weights, without a layer of the attention."""
    batch = ragged(9)
    settings = {
        "towers": {"a": {"features": ["user", "price", "taste"], "mlp": [6]}, "b": {"features": ["item"], "mlp": []}}
    }
    model = tower({**settings, "din": {"seen": {"mlp": [5, 3], "batch_norm": True}}, "final": {"mlp": [7]}})
    embedded, logits = model.embeddings(batch), []
    attention = model.din["on_seen"]
    unit, names = attention.unit, attention.keys
    assert (attention.query, names) == (
        ["item", "genres", "actors"],
        ["item", "genres", "actors", "rating", "time_gap"],
    )
    for row in range(9):
        number = batch.features["price"][row : row + 1]
        x_a = torch.cat([embedded.features["user"][row], number, batch.features["taste"][row]])
        inputs = []
        for name, x in (("a", x_a), ("b", embedded.features["item"][row])):
            norm = model.towers[f"on_{name}"].norm
            x = (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
            inputs.append(model.towers[f"on_{name}"].mlp(x.unsqueeze(0)).squeeze(0))
        q = torch.cat([embedded.features[name][row] for name in attention.query])
        columns, keys, scores = embedded.histories["seen"], [], []
        for at in range(*batch.histories["seen"].offsets[row : row + 2].tolist()):
            k = torch.cat([columns[name][at] for name in names])
            first = unit.first
            h = first.weight_q @ q + first.weight_k @ k + first.weight_m @ (q * k[: len(q)])
            h = unit.norm(h.unsqueeze(0)).relu()
            scores.append(unit.rest(h).squeeze())
            keys.append(k)
        pooled = torch.stack(scores).softmax(0) @ torch.stack(keys) if keys else torch.zeros(sum_of(model, names))
        inputs += [pooled, q]
        logits.append(model.top(torch.cat(inputs).unsqueeze(0)).squeeze())
    torch.testing.assert_close(model(batch), torch.stack(logits), rtol=1e-4, atol=1e-4)


def sum_of(model: MultiTower, names: list[str]) -> int:
    return sum(model.embeddings.widths[name] for name in names)


def test_one_event_by_hand() -> None:
    """Weights chosen so that the score of an event is the product of query and key."""
    item, price = Field("item", "id", 5, dim=1, side="item"), Field("price", "numeric", 0, side="item")
    plain = {"batch_norm": False}
    model = build(
        {
            "name": "multi_tower",
            "input_norm": False,
            "towers": {"numbers": {"features": ["price"], "mlp": [1], **plain}},
            "din": {"seen": {"mlp": [1], **plain}},
            "final": {"mlp": [1], **plain},
        },
        Fields((item, price), {"seen": (item,)}),
    )
    assert isinstance(model, MultiTower)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embeddings.table("item").copy_(torch.tensor([[0.0], [0.0], [1.0], [2.0], [3.0]]))
        unit = model.din["on_seen"].unit
        unit.first.weight_m.fill_(1)
        unit.rest.last.weight.fill_(1)
        model.towers["on_numbers"].mlp.layers[0].linear.weight.fill_(10)
        model.top.layers[0].linear.weight.copy_(torch.tensor([[1.0, 1.0, 1.0]]))
        model.top.last.weight.fill_(1)
    ids = torch.tensor([2, 3], dtype=torch.int32)
    features = {"item": torch.tensor([2, 4], dtype=torch.int32), "price": torch.tensor([0.5, 0.0])}
    batch = Batch.single(2, features, {"seen": HistoryBatch({"item": ids}, offsets([2, 0]))})
    # row 0: 10 * 0.5, softmax(1 * 1, 1 * 2) over the events 1 and 2, the candidate 1; row 1: no events, the candidate 3
    w = torch.tensor([1.0, 2.0]).softmax(0)
    torch.testing.assert_close(model(batch), torch.stack([5 + w[0] + 2 * w[1] + 1, torch.tensor(3.0)]))
    torch.testing.assert_close(model.explain(batch)["seen"], w)


def test_a_candidate_that_was_seen_before_is_learned_by_attention_only() -> None:
    """A click is an item of the history. No tower of features can know it, and a mean of five events hardly does."""
    item = Field("item", "id", 22, side="item")
    fields = Fields((item,), {"seen": (item,)})

    def batch(rows: int, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        seen = torch.rand(rows, 20, generator=generator).argsort(1)[:, :5] + 2
        fresh, at = (
            torch.randint(2, 22, (rows,), generator=generator),
            torch.randint(0, 5, (rows,), generator=generator),
        )
        again = torch.rand(rows, generator=generator) < 0.4
        candidate = torch.where(again, seen[torch.arange(rows), at], fresh)
        history = HistoryBatch({"item": seen.flatten().int()}, offsets([5] * rows))
        label = (seen == candidate.unsqueeze(1)).any(1).float()
        return Batch.single(rows, {"item": candidate.int()}, {"seen": history}, label=label)

    aucs = {}
    batches, held = [batch(256, seed) for seed in range(50)], batch(1_000, 999)
    for din in ("attention", "nothing"):
        torch.manual_seed(0)
        model = build({"name": "multi_tower", "embedding_dim": 8, "din": {} if din == "nothing" else None}, fields)
        tables = {id(table) for table in model.embedding_parameters()}
        dense = torch.optim.Adam([p for p in model.parameters() if id(p) not in tables], lr=0.02)
        lazy = LazyAdam(model.embedding_parameters(), lr=0.1)
        for one in batches if din == "attention" else batches[:10]:
            model.loss(one).backward()
            for optimizer in (dense, lazy):
                optimizer.step()
                optimizer.zero_grad()
        with torch.no_grad():
            aucs[din] = float(auc(held.label.numpy(), model.eval()(held).numpy()))
    assert aucs["attention"] > 0.9, aucs
    assert aucs["nothing"] < 0.6, aucs


def test_towers_read_their_groups_and_leave_the_rest_out() -> None:
    model = tower({"towers": {"one": {"features": ["item", "hour"]}, "two": {"features": ["age", "hour"]}}, "din": {}})
    assert {field.name for field in model.embeddings.fields.features} == {"item", "hour"}
    assert model.embeddings.fields.histories == {}
    assert model.reads_history is False
    assert [tower.features for tower in model.towers.values()] == [("item", "hour"), ("age", "hour")]
    batch = ragged(8)
    few = Batch.single(8, {name: batch.features[name] for name in ("item", "hour", "age")})
    assert torch.equal(model(few), model(batch))


def test_a_query_that_no_tower_reads_is_looked_up_all_the_same() -> None:
    model = tower({"towers": {"one": {"features": ["hour"]}}, "din": {"liked": {}}})
    assert {field.name for field in model.embeddings.fields.features} == {"item", "hour"}


def test_features_that_share_a_table_do_so_whoever_reads_them() -> None:
    residence, work = Field("residence", "id", 20), Field("work", "id", 20, share="residence")
    fields = Fields((residence, work, ITEM), {})
    both = tower({"towers": {"one": {"features": ["residence"]}, "two": {"features": ["work", "item"]}}}, fields)
    assert both.embeddings.table("work") is both.embeddings.table("residence")
    alone = tower({"towers": {"two": {"features": ["work", "item"]}}}, fields)
    assert alone(ragged(5, fields=fields)).shape == (5,)


def test_several_numbers_enter_as_they_are() -> None:
    fields = Fields((Field("stats", "numbers", 0, side="user", width=3), ITEM), {})
    model = build({"name": "multi_tower", "towers": {"all": {"features": ["stats", "item"], "mlp": []}}}, fields)
    assert isinstance(model, MultiTower)
    assert model.top.layers[0].linear.in_features == 3 + 16
    stats, item = torch.randn(2, 3), torch.arange(4, dtype=torch.int32)
    owner = [1, 0, 0, 1]
    for layout, of_request in (
        (Layout.shared(4), [0, 0, 0, 0]),
        (Layout.grouped(2, np.array(owner)), owner),
    ):
        several = Batch(layout, {"stats": stats[: layout.requests]}, {"item": item})
        single = Batch.single(4, {"stats": stats[of_request], "item": item})
        torch.testing.assert_close(model.eval()(several), model(single))


def test_a_vector_that_another_model_computes_enters_as_it_is() -> None:
    seen = Field("seen", "computed", 0, side="item", width=2)
    fields = Fields((Field("age", "numeric", 0, side="user"), seen), {})
    model = build({"name": "multi_tower", "towers": {"all": {"mlp": []}}, "input_norm": False}, fields)
    assert isinstance(model, MultiTower)
    vectors, age = torch.randn(3, 2), torch.randn(1)
    batch = Batch(Layout.shared(3), {"age": age}, computed={"seen": vectors})
    embedded = model.embed(batch)
    actual = torch.cat(model.read(replace(batch, computed={}), embedded), 1)  # known when vectors are looked up
    assert torch.equal(actual, torch.cat([age.expand(3, 1), vectors], 1))


def test_without_settings_everything_is_read() -> None:
    model = tower({})
    assert [tower.features for tower in model.towers.values()] == [tuple(field.name for field in FIELDS.features)]
    assert list(model.din) == ["on_liked", "on_seen"]
    assert model.numbers == ["age", "taste", "price"]
    assert tower({}, Fields(FIELDS.features, {})).eval()(ragged(5)).shape == (5,)


def test_the_order_of_the_towers_in_a_file_does_not_matter() -> None:
    two = {"a": {"features": ["item"]}, "b": {"features": ["user", "hour"]}}
    one, other = (Case("multi_tower", {"towers": dict(order)}).build() for order in (two.items(), [*two.items()][::-1]))
    assert torch.equal(one.eval()(ragged(7)), other.eval()(ragged(7)))


def test_it_explains_a_score_by_its_attention() -> None:
    for settings in ({}, NAMED):
        model, batch, one = tower(settings), ragged(9), shared(4, 5)
        explanation = model.explain(batch)
        assert set(explanation) == set(FIELDS.histories)
        for name, weights in model.explain(one).items():
            assert explanation[name].shape == (int(batch.histories[name].offsets[-1]),)
            assert weights.shape == (4, 5)
            torch.testing.assert_close(weights.flatten(), model.explain(repeated(one))[name], rtol=1e-4, atol=1e-5)


def test_the_candidate_of_the_towers_queries_a_history_of_tokens() -> None:
    model = tower({"towers": {"item": {"features": ["item", "facts"]}}}, TOKENS)
    assert model.candidate == ["item", "facts"]
    assert model.din["on_tokens"].projection.in_features == 16 + 4
    with pytest.raises(ConfigError, match="no tower reads the candidate, the query of history tokens"):
        build({"name": "multi_tower", "towers": {"user": {"features": ["user"]}}}, TOKENS)


def test_all_faults_are_reported_at_once() -> None:
    towers = {"a": {}, "b": {}, "c": {"features": ["itm", "hour", "hour"], "pooled": ["sen"], "din": {"likedd": {}}}}
    with pytest.raises(ConfigError) as caught:
        build({"name": "multi_tower", "towers": towers, "din": {"x": {}}}, FIELDS)
    assert caught.value.faults == [
        "model.towers: a, b have no `features`; only one tower may take the rest",
        "model.towers.c.features: no feature named 'itm'; did you mean 'item'?",
        "model.towers.c.features: names hour twice",
        "model.towers.c.pooled: no history named 'sen'; did you mean 'seen'?",
        "model.towers.c.din: no history named 'likedd'; did you mean 'liked'?",
        "model.din: no history named 'x'; known: seen, liked",
    ]
    every = [field.name for field in FIELDS.features]
    with pytest.raises(ConfigError, match="towers.rest: no feature is left for it; give it `features`"):
        build({"name": "multi_tower", "towers": {"all": {"features": every}, "rest": {}}}, FIELDS)
    with pytest.raises(ConfigError, match="dropout has 3 shares for 2 layers; give one, or one per layer"):
        build({"name": "multi_tower", "final": {"mlp": [4, 4], "dropout": [0.1, 0.1, 0.1]}}, FIELDS)
    with pytest.raises(ConfigError, match=r"model\.towers\.a\.mpl: unknown key; did you mean 'mlp'\?"):
        build({"name": "multi_tower", "towers": {"a": {"mpl": [4]}}}, FIELDS)
    with pytest.raises(ConfigError, match="histories.past.features: multi_tower needs a column"):
        build({"name": "multi_tower"}, Fields((ITEM,), {"past": (RATING, GAP)}))


def test_help_lists_the_settings_of_a_tower() -> None:
    text = help_text("multi_tower")
    for key in (
        "towers.NAME.features: ",
        "towers.NAME.mlp: ",
        "din.NAME.softmax: ",
        "final.dropout: tuple[float, ...]",
    ):
        assert f"    {key}" in text
