from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from longrec.features.batch import Batch, HistoryBatch, Jagged, Layout
from longrec.features.fields import Field, Fields
from longrec.nn import lookup
from longrec.nn.embedding import Embeddings
from longrec.nn.segments import Segments
from longrec.testing.batches import FIELDS, grouped, ragged, repeated, shared


def lively(fields: Fields, **settings: int) -> Embeddings:
    embeddings = Embeddings(fields, histories=True, **settings)
    with torch.no_grad():
        for table in embeddings.parameters():
            table.normal_()
    return embeddings


def bags(column: Jagged) -> list[tuple[list[int], list[float]]]:
    edges, ids = column.offsets.tolist(), column.values.tolist()
    weights = [1.0] * len(ids) if column.weights is None else column.weights.tolist()
    return [(ids[a:b], weights[a:b]) for a, b in zip(edges, edges[1:])]


def by_hand(field: Field, column: Tensor | Jagged, table: Tensor) -> Tensor:
    if isinstance(column, Tensor):
        if field.kind == "embedding":
            return (column.unsqueeze(2) * table).sum(1)
        return column.unsqueeze(1) * table if field.kind == "numeric" else table[column.long()]
    rows = []
    for ids, weights in bags(column):
        if not ids:
            rows.append(torch.zeros(table.shape[1]))
            continue
        v = table[torch.tensor(ids)] * torch.tensor(weights).unsqueeze(1)
        pooled = {"sum": v.sum(0), "mean": v.sum(0) / sum(weights), "max": v.amax(0)}
        rows.append(pooled[field.pool])
    return torch.stack(rows)


def test_every_field_by_hand() -> None:
    embeddings, batch = lively(FIELDS, dim=5), ragged(9)
    embedded = embeddings(batch)
    assert list(embedded.features) == [field.name for field in FIELDS.features]
    for field in FIELDS.features:
        expected = by_hand(field, batch.features[field.name], embeddings.table(field.name))
        torch.testing.assert_close(embedded.features[field.name], expected)
    for history, columns in FIELDS.histories.items():
        assert set(embedded.histories[history]) == {field.name for field in columns}
        for field in columns:
            expected = by_hand(field, batch.histories[history].columns[field.name], embeddings.table(field.name))
            torch.testing.assert_close(embedded.histories[history][field.name], expected)


@pytest.mark.parametrize("pool", ["mean", "sum", "max"])
@pytest.mark.parametrize("weighted", [False, True])
def test_pools_with_and_without_weights(pool: str, weighted: bool) -> None:
    field = Field("tags", "multi_id", 9, pool=pool, weighted=weighted)
    weights = torch.tensor([0.5, 2.0, 1.0, -1.0, 1.0]) if weighted else None
    column = Jagged(torch.tensor([2, 3, 2, 5, 5], dtype=torch.int32), torch.tensor([0, 3, 3, 3]), weights)
    column = Jagged(column.values[:3], column.offsets, None if weights is None else weights[:3])
    embeddings = lively(Fields((field,), {}), dim=4)
    expected = by_hand(field, column, embeddings.table("tags"))
    torch.testing.assert_close(embeddings(Batch.single(3, {"tags": column})).features["tags"], expected)


def test_weights_that_cancel_make_no_nan() -> None:
    field = Field("tags", "multi_id", 9, pool="mean", weighted=True)
    column = Jagged(torch.tensor([2, 2], dtype=torch.int32), torch.tensor([0, 2]), torch.tensor([1.0, -1.0]))
    assert lively(Fields((field,), {}))(Batch.single(1, {"tags": column})).features["tags"].isfinite().all()


def test_one_table_a_name_shared_by_impression_and_history() -> None:
    embeddings = Embeddings(FIELDS, histories=True)
    names = {field.name for field in FIELDS.distinct_fields()}
    assert len(list(embeddings.parameters())) == len(names) == 13
    assert len(embeddings.embedding_parameters()) == 10  # all but the two numeric fields and the embedding


def test_only_the_impression_without_histories() -> None:
    embeddings = Embeddings(FIELDS)
    assert set(embeddings.widths) == {field.name for field in FIELDS.features}
    assert embeddings(ragged(3)).histories == {}


def test_widths() -> None:
    fields = Fields((Field("a", "id", 4, dim=3), Field("b", "id", 4)), {})
    assert Embeddings(fields, 8).widths == {"a": 3, "b": 8}
    assert Embeddings(fields, width=1).widths == {"a": 1, "b": 1}


def test_tables_start_small_and_reserved_rows_at_zero() -> None:
    torch.manual_seed(0)
    embeddings = Embeddings(
        Fields((Field("item", "id", 5000, side="item"), Field("price", "numeric", 0)), {}), std=0.02
    )
    table = embeddings.table("item")
    assert table[:2].abs().max() == 0
    assert table[2:].std().item() == pytest.approx(0.02, rel=0.02)
    assert embeddings.table("price").shape == (1, 16)
    assert embeddings.table("price").abs().max() > 0


def test_the_gradient_is_sparse_and_that_of_a_dense_table() -> None:
    embeddings, batch = lively(FIELDS, dim=3), ragged(9)
    embedded = embeddings(batch)
    flat = [*embedded.features.values(), *(v for columns in embedded.histories.values() for v in columns.values())]
    up = [torch.randn_like(v) for v in flat]
    sum((v * u).sum() for v, u in zip(flat, up)).backward()
    table = embeddings.table("item")
    assert table.grad is not None
    assert table.grad.is_sparse
    dense = table.detach().clone().requires_grad_()
    uses = [(batch.features["item"], embedded.features["item"])]
    uses += [(batch.histories[name].columns["item"], embedded.histories[name]["item"]) for name in FIELDS.histories]
    order = {id(v): u for v, u in zip(flat, up)}
    sum((dense[ids.long()] * order[id(v)]).sum() for ids, v in uses).backward()
    torch.testing.assert_close(table.grad.to_dense(), dense.grad)


def test_a_shared_batch_repeats_vectors_of_the_user_without_copying() -> None:
    embeddings, batch = lively(FIELDS, dim=3), shared(4, 6)
    embedded, expected = embeddings(batch), embeddings(repeated(batch))
    for name, vectors in embedded.features.items():
        torch.testing.assert_close(vectors, expected.features[name])
    assert embedded.features["user"].stride(0) == 0
    assert embedded.histories["seen"]["item"].shape == (6, 3)


@pytest.mark.parametrize("name", ["a.b", "values", "forward", "50%", "with space"])
def test_any_name_makes_a_table(name: str) -> None:
    fields = Fields((Field(name, "id", 4), Field("a%2Eb", "id", 4)), {})
    batch = Batch.single(1, {name: torch.tensor([2], dtype=torch.int32), "a%2Eb": torch.tensor([3], dtype=torch.int32)})
    embeddings = lively(fields)
    assert torch.equal(embeddings(batch).features[name][0], embeddings.table(name)[2])
    assert len(embeddings.state_dict()) == 2


def test_a_history_of_nothing() -> None:
    batch = ragged(3, lengths=[0, 0, 0])
    embedded = lively(FIELDS, dim=3)(batch)
    assert embedded.histories["seen"]["genres"].shape == (0, 3)
    empty = replace(
        batch,
        histories={
            **batch.histories,
            "liked": HistoryBatch(batch.histories["liked"].columns, torch.zeros(4, dtype=torch.int64)),
        },
    )
    assert lively(FIELDS, dim=3)(empty).histories["liked"]["item"].shape == (0, 3)


SHARING = Fields(
    (
        Field("brand", "id", 9, side="item"),
        Field("looked", "id", 9, share="brand"),
        Field("size", "numbers", 0, width=3),
    ),
    {"past": (Field("bought", "id", 9, share="brand"),)},
)


def test_fields_that_share_a_table() -> None:
    embeddings = lively(SHARING, dim=4)
    assert len(list(embeddings.parameters())) == 2
    assert embeddings.table("looked") is embeddings.table("bought") is embeddings.table("brand")
    assert [len(table) for table in embeddings.embedding_parameters()] == [9]
    ids = {"brand": torch.tensor([2, 3]), "looked": torch.tensor([3, 0]), "size": torch.randn(2, 3)}
    history = HistoryBatch({"bought": torch.tensor([2, 2, 8])}, torch.tensor([0, 3, 3]))
    embedded = embeddings(Batch.single(2, ids, {"past": history}))
    table = embeddings.table("brand")
    torch.testing.assert_close(embedded.features["brand"], table[[2, 3]])
    torch.testing.assert_close(embedded.features["looked"], table[[3, 0]])
    torch.testing.assert_close(embedded.histories["past"]["bought"], table[[2, 2, 8]])
    torch.testing.assert_close(embedded.features["size"], ids["size"] @ embeddings.table("size"))
    (embedded.features["looked"].sum() + 2 * embedded.histories["past"]["bought"].sum()).backward()  # type: ignore[no-untyped-call]
    assert table.grad is not None
    assert table.grad.coalesce().to_dense().sum(1).tolist() == [4, 0, 16, 4, 0, 0, 0, 0, 8]


def test_a_shared_table_of_a_field_that_is_not_there() -> None:
    embeddings = Embeddings(Fields(SHARING.features[1:], {}), dim=4)
    assert embeddings.table("looked").shape == (9, 4)
    assert not embeddings.table("looked")[:2].any()


def test_a_candidates_fields_differ_in_a_shared_batch() -> None:
    embeddings = lively(SHARING, dim=4)
    own, shown = {"looked": torch.tensor([3]), "size": torch.randn(1, 3)}, {"brand": torch.tensor([2, 3, 4])}
    history = HistoryBatch({"bought": torch.tensor([2])}, torch.tensor([0, 1]))
    embedded = embeddings(Batch(Layout.shared(3), own, shown, {"past": history}))
    assert [len(embedded.features[name]) for name in ("brand", "looked", "size")] == [3, 3, 3]
    assert [len(embedded.request[name]) for name in ("looked", "size")] == [1, 1]
    assert set(embedded.candidate) == {"brand"}


def test_a_grouped_batch_looks_up_a_request_once(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, owner = lively(FIELDS, dim=3), [2, 0, 0, 1, 2, 2]
    batch = grouped(owner)
    looked_up: list[int] = []
    look_up = embeddings.tables["user"].look_up
    monkeypatch.setattr(
        embeddings.tables["user"],
        "look_up",
        lambda table, uses: looked_up.extend(len(ids) for ids in uses) or look_up(table, uses),
    )
    embedded = embeddings(batch)
    assert looked_up == [3]
    assert set(embedded.request) == {field.name for field in FIELDS.features if field.side != "item"}
    assert all(len(e_RD) == 3 for e_RD in embedded.request.values())
    assert all(len(e_CD) == 6 for e_CD in embedded.candidate.values())
    expected = embeddings(batch.ungroup())
    assert list(embedded.features) == list(expected.features) == [field.name for field in FIELDS.features]
    for name, e_CD in embedded.features.items():
        assert torch.equal(e_CD, expected.features[name]), name
    for history, columns in embedded.histories.items():
        segments = Segments.of(batch, history)
        for name, e_UD in columns.items():
            assert torch.equal(segments.keys(e_UD), expected.histories[history][name]), name


@pytest.mark.parametrize("layout", [Layout.shared(2), Layout.grouped(1, np.array([0, 0])), Layout.single(2)], ids=str)
def test_a_vector_that_another_model_computes_is_projected(layout: Layout) -> None:
    seen = Field("seen", "computed", 0, side="item", width=3)
    embeddings = lively(Fields((Field("age", "numeric", 0, side="user"), seen), {}), dim=4)
    vectors = torch.randn(2, 3)
    batch = Batch(layout, {"age": torch.randn(layout.requests)}, computed={"seen": vectors})
    embedded = embeddings(batch)
    torch.testing.assert_close(embedded.features["seen"], vectors @ embeddings.table("seen"))
    assert embedded.features["age"].shape == (2, 4)


def test_further_vectors_and_states_belong_to_one_batch() -> None:
    embeddings, batch = lively(FIELDS, dim=3), ragged(2)
    one, other = embeddings(batch), embeddings(batch)
    one.states["left"] = 1
    assert other.states == {}
    assert replace(one, further={embeddings: other}).further[embeddings] is other
    assert one.further == {}


@pytest.mark.parametrize("layout", ["single", "grouped", "shared"])
def test_joined_columns_have_the_same_vectors_and_gradients(layout: str) -> None:
    batch = {"single": ragged(9), "grouped": grouped([2, 0, 0, 1, 2, 2]), "shared": shared(3, 6)}[layout]
    results = []
    for joined in (True, False):
        torch.manual_seed(2)
        embeddings = lively(FIELDS, dim=4, joined=joined)
        embedded = embeddings(batch)
        # One history has a column with weights, and cannot be joined.
        assert set(embedded.joined) == ({"liked"} if joined else set())
        own = {name: embedded.join(name, order) for name, order in ORDERS.items()}
        other_order = embedded.join("liked", ORDERS["liked"][::-1])
        taken = lookup.take(own["liked"], torch.arange(len(own["liked"]) // 2))
        total = sum(e.pow(2).sum() for e in (*own.values(), *embedded.features.values(), other_order)) + taken.sum()
        total.backward()  # type: ignore[union-attr]
        grads = {name: p.grad.to_dense() for name, p in embeddings.named_parameters() if p.grad is not None}
        detached = embedded.detach().join("liked", ORDERS["liked"])
        results.append({**own, **grads, "other": other_order, "detached": detached})
    for name, one in results[0].items():
        torch.testing.assert_close(one, results[1][name])


ORDERS = {"seen": ("item", "genres", "rating"), "liked": tuple(field.name for field in FIELDS.histories["liked"])}
