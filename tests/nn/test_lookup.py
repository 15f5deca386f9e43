from __future__ import annotations

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longrec.nn.lookup import Use, allocate_columns, join, look_up, take, takes_sparse
from longrec.nn.row_sums import sort_ids, sum_by_row


def ids(count: int, rows: int, seed: int) -> Tensor:
    return torch.randint(0, rows, (count,), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)


OFFSETS = torch.tensor([0, 2, 2, 7, 8, 8, 11])
USES = {
    "one": [Use(ids(9, 5, 0))],
    "several": [Use(ids(9, 5, 0)), Use(ids(0, 5, 0)), Use(ids(4, 5, 1))],
    "sum": [Use(ids(11, 5, 2), OFFSETS)],
    "mean beside ids": [Use(ids(3, 5, 3)), Use(ids(11, 5, 2), OFFSETS, mean=True), Use(ids(11, 5, 4), OFFSETS)],
    "none": [Use(ids(0, 5, 0), torch.tensor([0]), mean=True)],
}


def read(weight: Tensor, use: Use) -> Tensor:
    e = F.embedding(use.ids, weight)
    if use.offsets is None:
        return e
    entries = [e[start:stop] for start, stop in zip(use.offsets.tolist(), use.offsets.tolist()[1:])]
    pooled = [one.sum(0) / (max(len(one), 1) if use.mean else 1) for one in entries]
    return torch.stack(pooled) if pooled else e[:0]


@pytest.mark.parametrize("name", USES)
def test_vectors_and_gradients_are_those_of_a_lookup_per_value(name: str) -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(5, 3, dtype=torch.float64))
    vectors, expected = look_up(weight, USES[name]), [read(weight, use) for use in USES[name]]
    assert len(vectors) == len(expected)
    for one, other in zip(vectors, expected):
        torch.testing.assert_close(one, other)
    upstream = [torch.randn_like(one) for one in vectors]
    sum((one * g).sum() for one, g in zip(expected, upstream)).backward()
    dense, weight.grad = weight.grad, None
    sum((one * g).sum() for one, g in zip(vectors, upstream)).backward()
    assert weight.grad.is_sparse
    rows = weight.grad._indices()[0]
    assert rows.tolist() == sorted({int(i) for use in USES[name] for i in use.ids})
    torch.testing.assert_close(weight.grad.to_dense(), dense)
    assert torch.equal(sum_by_row(weight.grad).sums, weight.grad._values())


def test_a_use_without_a_gradient_adds_nothing() -> None:
    weight = nn.Parameter(torch.randn(5, 3))
    one, _ = look_up(weight, [Use(ids(4, 2, 0)), Use(ids(4, 5, 1))])
    one.sum().backward()
    assert set(weight.grad._indices()[0].tolist()) <= {0, 1}


def test_gradients_of_two_lookups_of_one_table_are_summed() -> None:
    weight = nn.Parameter(torch.zeros(5, 1))
    for at in ([3, 1, 3], [1, 4]):
        look_up(weight, [Use(torch.tensor(at, dtype=torch.int32))])[0].sum().backward()
    rows, sums, _ = sum_by_row(weight.grad)
    assert rows.tolist() == [1, 3, 4]
    assert sums.squeeze(1).tolist() == [2.0, 2.0, 1.0]


OTHERS = {
    "alone": [],
    "few": [Use(ids(3, 5, 7))],
    "many": [Use(ids(30, 5, 8)), Use(ids(2, 5, 9))],
    "lists": [Use(ids(11, 5, 2), OFFSETS, mean=True)],
}


@pytest.mark.parametrize("others", OTHERS)
@pytest.mark.parametrize("reads", ["all", "some", "both", "columns"])
@pytest.mark.parametrize("widths", [(3, 3, 3), (3, 4, 3), (3, 3, 6), (3,)], ids=str)
@pytest.mark.parametrize("count", [0, 14])
def test_joined_columns_are_those_of_a_copy(others: str, reads: str, widths: tuple[int, ...], count: int) -> None:
    """The first and the third column are of one table, which has other uses too. All ids of a batch are looked up."""
    torch.manual_seed(0)
    tables = [nn.Parameter(torch.randn(5, width, dtype=torch.float64)) for width in widths]
    columns = [ids(count, 5, number) for number in range(len(widths))]
    uses = [[Use(column)] for column in columns]
    uses[0] = [*OTHERS[others][:1], uses[0][0], *OTHERS[others][1:]]
    at = torch.tensor([2, 9, 2, 13]) % max(count, 1) if count else torch.zeros(0, dtype=torch.int64)

    def compute(joined: bool) -> tuple[Tensor, Tensor]:
        into = allocate_columns(tables[0].detach(), count, widths) if joined else [None] * len(widths)
        vectors, rest = [], []
        for table, column, own, memory in zip(tables, columns, uses, into, strict=True):
            read = look_up(table, [Use(use.ids, into=memory) if use.ids is column else use for use in own])
            vectors.append(next(e for e, use in zip(read, own) if use.ids is column))
            rest += [e for e, use in zip(read, own) if use.ids is not column]
        e_NK = join(vectors) if joined else torch.cat(vectors, 1)
        assert takes_sparse(e_NK) == joined
        total = sum((e.pow(3).sum() for e in rest), torch.zeros((), dtype=torch.float64))
        if reads in ("all", "both"):
            total = total + e_NK.square().sum()
        if reads in ("some", "both"):
            total = total + take(e_NK, at).pow(3).sum()
        if reads == "columns":
            total = total + vectors[-1].pow(3).sum()
        return e_NK, total

    (own_NK, own), (plain_NK, plain) = compute(True), compute(False)
    assert torch.equal(own_NK, plain_NK)
    torch.testing.assert_close(own, plain)
    gradients, expected = (torch.autograd.grad(y, tables, allow_unused=True) for y in (own, plain))
    for one, other in zip(gradients, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert torch.equal(one._indices(), other._indices())
            torch.testing.assert_close(one.to_dense(), other.to_dense())


def test_joined_columns_are_not_copied() -> None:
    weight, count = nn.Parameter(torch.randn(5, 4)), 1_000
    into = allocate_columns(weight.detach(), count, [4, 4])
    vectors = look_up(weight, [Use(ids(count, 5, 0), into=into[0]), Use(ids(count, 5, 1), into=into[1])])
    e_NK = join(vectors)
    assert e_NK.data_ptr() == into[0].data_ptr()
    assert e_NK.shape == (count, 8)
    reference = weakref.ref(e_NK.grad_fn)
    del into, vectors, e_NK
    assert reference() is None, "the memory is kept until a collection of cycles"


@pytest.mark.parametrize("count", [0, 1, 1_000, 40_000])
@pytest.mark.parametrize("rows", [3, 65_536, 65_537, 3_000_000])
def test_sorted_ids_are_stable(rows: int, count: int) -> None:
    at = ids(count, rows, count)
    ordered, order = sort_ids(at)
    expected = torch.sort(at, stable=True)
    assert torch.equal(ordered, expected.values)
    assert torch.equal(order, expected.indices)
