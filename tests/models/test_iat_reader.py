from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from longrec.errors import ConfigError
from longrec.features.batch import Batch, HistoryBatch
from longrec.features.fields import Field, Fields
from longrec.models.core.registry import build
from longrec.models.core.renames import rename_parameters
from longrec.models.iat_reader import IATReader
from longrec.models.keep_plug import KEEPPlug, without
from longrec.testing.batches import (
    GAP,
    ITEM,
    RATING,
    TOKENS,
    offsets,
    pick,
    ragged,
    shared,
    take,
    with_feature,
    with_history,
)
from longrec.testing.case import Case
from longrec.training.sparse_optimizers import LazyAdam

READS: list[dict[str, Any]] = [
    {"read": "attention"},
    {"read": "din"},
    {"read": "transformer", "width": 16, "heads": 2},
    {"read": "longer", "width": 16, "heads": 2, "merge": 2, "recent": 2},
]
BOTH = Fields(TOKENS.features, {**TOKENS.histories, "seen": (RATING, ITEM)})


def lively(settings: dict[str, Any], fields: Fields = TOKENS) -> IATReader:
    """A reader in evaluation whose every parameter has been moved from its start."""
    model = Case("iat_reader", settings).build(fields=fields)
    assert isinstance(model, IATReader)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def read(model: IATReader, batch: Batch, name: str = "tokens") -> Tensor:
    with torch.no_grad():
        return model.read_histories(batch)[name]


def test_attention_by_hand() -> None:
    """One head, two tokens of one number; the weights are chosen so that the score is request times token."""
    item = Field("item", "id", 4, side="item")
    fields = Fields((item,), {"tokens": (Field("tokens.token", "embedding", 0, width=1),)})
    small = {"width": 1, "heads": 1, "query": 1, "adapt": 1, "side_dim": 1, "embedding_dim": 1}
    model = build({"name": "iat_reader", "base": {"name": "lr"}, **small}, fields)
    assert isinstance(model, IATReader)
    model.request[0], model.norms[0] = nn.Identity(), nn.Identity()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embeddings.table("item").copy_(torch.tensor([[0.0], [0.0], [1.0], [2.0]]))
        reader = model.readers[0]
        for weight in (model.request[1], model.inputs[0].adapt, reader.query, reader.key, reader.value, reader.out):
            weight.weight.fill_(1)
        model.defaults[0].fill_(7)
    history = HistoryBatch({"tokens.token": torch.tensor([[1.0], [3.0], [-2.0], [1.0]])}, offsets([2, 2, 0]))
    batch = Batch.single(3, {"item": torch.tensor([2, 3, 3], dtype=torch.int32)}, {"tokens": history})
    # Row 0: request 1, tokens 1 and 3. Row 1: request 2, tokens relu(-2) = 0 and 1. Row 2: the default.
    e = torch.exp(torch.tensor([1.0, 3.0, 0.0, 2.0]))
    expected = [(e[0] + 3 * e[1]) / (e[0] + e[1]), e[3] / (e[2] + e[3]), 7.0]
    torch.testing.assert_close(read(model, batch).squeeze(1), torch.tensor(expected))
    weights = model.explain(batch)["tokens"]
    torch.testing.assert_close(weights, torch.tensor([e[0], e[1], e[2], e[3]]) / (e.view(2, 2).sum(1)[[0, 0, 1, 1]]))


@pytest.mark.parametrize("settings", READS, ids=str)
@pytest.mark.parametrize("rows", [9, 400])
def test_6_stop_gradient(settings: dict[str, Any], rows: int) -> None:
    """A downstream step leaves the tokens as they are and gives them no gradient, in few positions and in many."""
    model, batch = lively(settings).train(), ragged(rows, fields=TOKENS)
    tokens = batch.histories["tokens"].columns["tokens.token"]
    assert isinstance(tokens, Tensor)
    kept, before = tokens.clone(), model.inputs[0].adapt.weight.detach().clone()
    tables = model.embedding_parameters()
    in_tables = {id(table) for table in tables}
    optimizers = [LazyAdam(tables), torch.optim.AdamW([p for p in model.parameters() if id(p) not in in_tables])]
    model.loss(batch).backward()
    for optimizer in optimizers:
        optimizer.step()
    assert tokens.grad is None
    assert not tokens.requires_grad
    assert torch.equal(tokens, kept)
    assert not torch.equal(model.inputs[0].adapt.weight, before)


@pytest.mark.parametrize("settings", READS, ids=str)
def test_9_padding(settings: dict[str, Any]) -> None:
    """The output of a row does not depend on longer rows of its padded bucket."""
    model = lively(settings)
    lengths = [0, 3, 37, 40, 41, 1, *[38] * 20]
    batch = ragged(len(lengths), lengths=lengths, fields=TOKENS)
    together = read(model, batch)
    for row in range(8):
        torch.testing.assert_close(read(model, take(batch, [row]))[0], together[row], rtol=1e-4, atol=2e-5)
    # Users without history read a learned default.
    assert torch.equal(together[0], model.defaults[0].detach())
    with torch.no_grad():
        model.defaults[0] += 1
    assert torch.equal(read(model, batch)[0], model.defaults[0].detach())
    assert torch.equal(read(model, batch)[1:], together[1:])


@pytest.mark.parametrize("settings", READS, ids=str)
def test_10_query_dependence(settings: dict[str, Any]) -> None:
    """Changing only the candidate changes what is read, but for users without a history."""
    model, batch = lively(settings), ragged(9, fields=TOKENS)
    before = read(model, batch)
    item = batch.features["item"]
    assert isinstance(item, Tensor)
    after = read(model, with_feature(batch, "item", (item + 1) % 60))
    moved = (after - before).abs().amax(1) > 1e-5
    assert torch.equal(moved, batch.histories["tokens"].offsets.diff() > 0)
    one = read(model, shared(5, 4, fields=TOKENS))
    assert len(one.unique(dim=0)) == 5


def test_the_query_may_read_the_item_alone() -> None:
    batch = ragged(9, fields=TOKENS)
    user = batch.features["user"]
    assert isinstance(user, Tensor)
    other = with_feature(batch, "user", (user + 1) % 40)
    model = lively({"query_from": "item"})
    assert torch.equal(read(model, batch), read(model, other))
    assert not torch.equal(model(batch), model(other))  # the base still reads the user
    assert not torch.equal(read(lively({}), batch), read(lively({}), other))
    users = Fields((Field("user", "id", 40, side="user"),), TOKENS.histories)
    with pytest.raises(ConfigError, match="needs a feature of the item"):
        build({"name": "iat_reader", "query_from": "item"}, users)


def test_zeroed_tokens_leave_the_side_information() -> None:
    model, batch = lively({"tokens": "zeroed"}), ragged(9, fields=TOKENS)
    history = batch.histories["tokens"]

    def changed(name: str) -> Tensor:
        turned = list(reversed(range(int(history.offsets[-1]))))
        columns = {**history.columns, name: pick(history.columns[name], turned)}
        return read(model, replace(batch, histories={"tokens": replace(history, columns=columns)}))

    before = read(model, batch)
    assert torch.equal(changed("tokens.token"), before)
    assert not torch.equal(changed("tokens.label"), before)
    assert not torch.equal(changed("time_gap"), before)
    arms = [Case("iat_reader", {"tokens": how}).build(fields=TOKENS) for how in ("as_they_are", "zeroed")]
    shapes = [{name: parameter.shape for name, parameter in model.named_parameters()} for model in arms]
    assert shapes[0] == shapes[1]


def test_histories_that_the_branch_does_not_read_stay_with_the_ranker() -> None:
    model = lively({"base": {"name": "din", "mlp": [16], "attention": [8]}}, BOTH)
    assert list(model.read) == ["tokens"]
    assert list(model.base.fields.histories) == ["seen"]
    assert [field.name for field in model.base.fields.features][-1] == "tokens.read"
    assert set(model.explain(ragged(4, fields=BOTH))) == {"tokens", "seen"}
    both = lively({"histories": ["seen", "tokens"]}, BOTH)
    assert list(both.read) == ["seen", "tokens"]
    assert both.base.fields.histories == {}
    with pytest.raises(ConfigError, match="no history 'sen' in the schema; it has tokens, seen"):
        build({"name": "iat_reader", "histories": ["sen"]}, BOTH)
    with pytest.raises(ConfigError, match="must name each history once"):
        build({"name": "iat_reader", "histories": []}, BOTH)
    with pytest.raises(ConfigError, match="the schema has none"):
        build({"name": "iat_reader"}, Fields(TOKENS.features, {}))
    with pytest.raises(ConfigError, match="3 heads do not divide a width of 64"):
        build({"name": "iat_reader", "heads": 3}, TOKENS)


def test_a_history_of_columns_goes_the_way_of_the_tokens() -> None:
    """The hand-made arm: embedded ids in the place of tokens, the same side information, the same layers."""
    label = Field("label", "id", 4, feedback=True)
    columns_only = Fields(TOKENS.features, {"tokens": (ITEM, Field("kind", "id", 9), label, GAP)})
    model = lively({"embedding_dim": 3}, columns_only)
    columns = model.read["tokens"]
    assert [field.name for field in columns.embedded] == ["item", "kind"]
    assert [field.name for field in columns.sides] == ["label", "time_gap"]
    assert model.inputs[0].adapt.in_features == 6
    assert [len(table) for table in model.inputs[0].sides] == [4, GAP.rows]
    model.train().loss(ragged(200, fields=columns_only)).backward()
    assert model.embeddings.table("kind").grad is not None


def test_a_side_column_of_many_ids_is_content() -> None:
    fields = Fields(TOKENS.features, {"seen": (Field("watched", "id", 5_000, feedback=True), GAP)})
    columns = lively({}, fields).read["seen"]
    assert ([f.name for f in columns.embedded], [f.name for f in columns.sides]) == (["watched"], ["time_gap"])


@pytest.mark.parametrize("settings", READS[:2], ids=str)
def test_slots_count_as_so_many_tokens(settings: dict[str, Any]) -> None:
    """An instance of two slots reads as two instances of one, but for the vector that tells slots apart."""
    features, token = TOKENS.features, Field("t.token", "embedding", 0, width=6, slots=2)
    side = (Field("t.label", "id", 4, feedback=True), GAP)
    model = lively(settings, Fields(features, {"t": (token, *side)}))
    single = lively(settings, Fields(features, {"t": (replace(token, width=3, slots=1), *side)}))
    with torch.no_grad():
        model.inputs[0].sides[2].zero_()
        for reader in (model.readers[0].key, model.readers[0].value if settings["read"] == "attention" else None):
            if reader is not None:
                reader.weight[:, -model.config.side_dim :] = 0
    wide = {name: value for name, value in model.state_dict().items() if name in single.state_dict()}
    shapes = {name: value.shape for name, value in single.state_dict().items()}
    single.load_state_dict({name: value[tuple(slice(size) for size in shapes[name])] for name, value in wide.items()})
    batch = ragged(9, fields=model.fields)
    history = batch.histories["t"]
    twice = [at for at in range(int(history.offsets[-1])) for _ in (0, 1)]
    columns = {name: pick(column, twice) for name, column in history.columns.items()}
    tokens = history.columns["t.token"]
    assert isinstance(tokens, Tensor)
    columns["t.token"] = tokens.reshape(-1, 3)
    each = replace(batch, histories={"t": HistoryBatch(columns, history.offsets * 2)})
    torch.testing.assert_close(read(model, batch, "t"), read(single, each, "t"), rtol=1e-4, atol=1e-5)
    weights, both = model.explain(batch)["t"], single.explain(each)["t"]
    torch.testing.assert_close(weights, both.view(-1, 2).sum(1), rtol=1e-4, atol=1e-5)


def test_the_rankers_width_of_the_branch() -> None:
    assert lively({}).base.embeddings.widths["tokens.read"] == 16
    assert lively({"base": {"name": "pooling"}, "base_dim": 40}, BOTH).base.embeddings.widths["tokens.read"] == 40
    eight = Fields(tuple(replace(field, dim=8) for field in TOKENS.features), TOKENS.histories)
    assert lively({}, eight).base.embeddings.widths["tokens.read"] == 8


ITEMS = 8
PLANTED = Fields(
    (Field("user", "id", 40, side="user"), Field("item", "id", ITEMS + 2, side="item")),
    {"tokens": (Field("tokens.token", "embedding", 0, width=4), Field("tokens.label", "id", 4, feedback=True), GAP)},
)


def planted(rows: int, seed: int) -> Batch:
    """A click where the mean of a component of the tokens times the sign of the item is positive."""
    generator = torch.Generator().manual_seed(seed)
    batch = ragged(rows, seed=seed, longest=6, fields=PLANTED)
    item = torch.randint(2, ITEMS + 2, (rows,), generator=generator, dtype=torch.int32)
    history = batch.histories["tokens"]
    tokens = torch.randn(int(history.offsets[-1]), 4, generator=generator)
    history = replace(history, columns={**history.columns, "tokens.token": tokens})
    row = torch.arange(rows).repeat_interleave(history.offsets.diff())
    sums = torch.zeros(rows).index_add(0, row, tokens[:, 2])
    label = (sums * (item % 2 * 2 - 1) > 0).float()
    return replace(with_feature(batch, "item", item), histories={"tokens": history}, label=label)


def accuracy(settings: dict[str, Any]) -> float:
    """Share of right signs on new users after 50 steps of the usual optimizers."""
    model = Case("iat_reader", settings).build(fields=PLANTED)
    assert isinstance(model, IATReader)
    tables = model.embedding_parameters()
    in_tables = {id(table) for table in tables}
    dense = [parameter for parameter in model.parameters() if id(parameter) not in in_tables]
    optimizers = [LazyAdam(tables, lr=0.01), torch.optim.AdamW(dense, lr=0.01)]
    for step in range(50):
        model.loss(planted(128, step)).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    new = planted(2_000, 10_000)
    assert new.label is not None
    with torch.no_grad():
        score = model.eval()(new)
    filled = new.histories["tokens"].offsets.diff() > 0
    return float(((score > 0) == (new.label > 0.5))[filled].float().mean())


def test_it_solves_a_log_where_a_click_depends_on_a_token_and_the_candidate() -> None:
    assert accuracy({}) > 0.85
    assert accuracy({"tokens": "zeroed"}) < 0.6


KNOWLEDGE = tuple(field.name for field in BOTH.features if field.kind == "embedding")
SMALL: dict[str, Any] = {"width": 8, "heads": 2, "adapt": 8, "query": 8}


@pytest.mark.parametrize(
    "around",
    [
        lambda plug: plug,
        lambda plug: {"name": "res_embedding", "base": plug},
        lambda plug: {"name": "can", "base": plug},
        lambda plug: {"name": "iat_reader", "base": plug, **SMALL},
    ],
    ids=["itself", "res_embedding", "can", "iat_reader"],
)
def test_a_reader_over_plugged_knowledge_reads_both(around: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """The plug takes the knowledge of the schema alone, and its base what was read, however deep they are nested."""
    base = around({"name": "keep_plug", "base": {"name": "deepfm"}, "zero_init": False, "drop": 0.0})
    model = build({"name": "iat_reader", "base": base, **SMALL}, BOTH)
    plugs = [module for module in model.modules() if isinstance(module, KEEPPlug)]
    assert [plug.knowledge for plug in plugs] == [KNOWLEDGE]
    ranker = plugs[0].base.fields
    assert {field.name for field in ranker.features if field.kind == "computed"} >= {"tokens.read"}
    assert not any(field.kind == "embedding" for field in ranker.features)
    model.train()
    batch = ragged(40, fields=BOTH)
    model.loss(batch).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.to_dense().abs().sum() > 0, name
    model.eval()
    before = model(batch)
    nothing = reduce(lambda b, n: with_feature(b, n, cast(Tensor, b.features[n]) * 0), KNOWLEDGE, batch)
    assert not torch.allclose(model(nothing), before)
    tokens = batch.histories["tokens"].columns["tokens.token"]
    assert not torch.allclose(model(with_history(batch, "tokens", {"tokens.token": cast(Tensor, tokens) * 0})), before)


def test_a_reader_over_a_plug_needs_knowledge() -> None:
    """What the reader computes is no knowledge."""
    section = {"name": "iat_reader", "base": {"name": "keep_plug", "base": {"name": "deepfm"}}, **SMALL}
    with pytest.raises(ConfigError, match="keep_plug plugs in embedding features, and the schema has none"):
        build(section, without(BOTH, KNOWLEDGE))


def test_weights_of_a_reader_under_former_names_load() -> None:
    model = build({"name": "iat_reader", "base": {"name": "deepfm"}, **SMALL}, BOTH)
    former = {name.replace("table_tokens%2Eread", "table_iat%2Etokens"): w for name, w in model.state_dict().items()}
    assert "base.embeddings.table_iat%2Etokens" in former
    assert "base.first_order.table_iat%2Etokens" in former
    assert rename_parameters(model, former).keys() == model.state_dict().keys()


def test_knowledge_is_plugged_into_a_reader() -> None:
    """The other way round the plug sees the knowledge of the schema, and the reader's base what was read."""
    reader = {"name": "iat_reader", "base": {"name": "deepfm"}, **SMALL}
    section = {"name": "keep_plug", "zero_init": False, "base": reader}
    model = build(section, BOTH).eval()
    assert isinstance(model, KEEPPlug)
    assert model.knowledge == KNOWLEDGE
    assert isinstance(model.base, IATReader)
    batch = ragged(12, fields=BOTH)
    other = reduce(lambda b, n: with_feature(b, n, cast(Tensor, b.features[n]) * 0), KNOWLEDGE, batch)
    assert torch.equal(model.base(batch), model.base(other))
    assert not torch.allclose(model(batch), model(other))
    assert [field.name for field in model.base.base.fields.features if field.kind == "computed"] == ["tokens.read"]
