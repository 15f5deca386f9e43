from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longrec.nn.lookup import Use, look_up
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


@pytest.mark.parametrize("count", [0, 1, 1_000, 40_000])
@pytest.mark.parametrize("rows", [3, 65_536, 65_537, 3_000_000])
def test_sorted_ids_are_stable(rows: int, count: int) -> None:
    at = ids(count, rows, count)
    ordered, order = sort_ids(at)
    expected = torch.sort(at, stable=True)
    assert torch.equal(ordered, expected.values)
    assert torch.equal(order, expected.indices)
