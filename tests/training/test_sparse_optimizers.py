from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longrec.nn.row_sums import sum_by_row
from longrec.testing.pretend_device import DEVICE, PretendDevice
from longrec.training.sparse_optimizers import (
    LazyAdagrad,
    LazyAdam,
    LazySGD,
    RowwiseAdagrad,
    SparseOptimizer,
)

KINDS: dict[str, Any] = {
    "sgd": lambda params: LazySGD(params, lr=0.1),
    "sgd momentum": lambda params: LazySGD(params, lr=0.1, momentum=0.9),
    "adagrad": lambda params: LazyAdagrad(params, lr=0.1, initial_accumulator_value=0.1),
    "adagrad rowwise": lambda params: RowwiseAdagrad(params, lr=0.1),
    "adam": lambda params: LazyAdam(params, lr=0.1),
    "adam rowwise": lambda params: LazyAdam(params, lr=0.1, rowwise=True, l2=0.01),
}


def table(rows: int = 50, width: int = 4, seed: int = 0) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)))


def step(optimizer: SparseOptimizer, p: nn.Parameter, seed: int, ids: list[int] | None = None) -> Tensor:
    """Run one step on random lookups and return the ids."""
    generator = torch.Generator().manual_seed(seed)
    at = torch.randint(0, len(p), (12,), generator=generator) if ids is None else torch.tensor(ids)
    optimizer.zero_grad()
    weight = torch.randn(len(at), p.shape[1], generator=generator)
    (F.embedding(at, p, sparse=True) * weight).sum().backward()
    optimizer.step()
    return at


@pytest.mark.parametrize("count", [1, 7, 5000, 40_000])
@pytest.mark.parametrize("rows", [3, 60_000, 3_000_000])
def test_grouping_equals_coalescing(rows: int, count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    ids = torch.randint(0, rows, (1, count), generator=generator)
    ids[0, : count // 2] = ids[0, count // 2 : 2 * (count // 2)]
    grad = torch.sparse_coo_tensor(ids, torch.randn(count, 3, generator=generator), (rows, 3), check_invariants=True)
    expected = grad.coalesce()
    distinct_rows, sums, distinct = sum_by_row(grad)
    assert torch.equal(distinct_rows, expected.indices()[0])
    torch.testing.assert_close(sums, expected.values(), rtol=1e-4, atol=1e-4)
    assert distinct is None
    with PretendDevice() as device:
        far_rows, far_sums, distinct = sum_by_row(grad.to(DEVICE, non_blocking=True))
        assert not device.waits, "the number of distinct rows is not known before the device is done"
    last = len(distinct_rows)
    assert far_rows.tolist() == [*distinct_rows.tolist(), *[int(distinct_rows[-1])] * (count - last)]
    assert torch.equal(far_sums.cpu()[:last], sums)
    assert torch.equal(far_sums.cpu()[last:], sums[-1:].expand(count - last, -1))
    assert distinct.tolist() == [True] * last + [False] * (count - last)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_on_another_device_is_that_of_the_cpu_to_the_bit(kind: str) -> None:
    here = table()
    with PretendDevice() as device:
        there = nn.Parameter(here.detach().clone().to(DEVICE))
        one, other = KINDS[kind]([here]), KINDS[kind]([there])
        device.waits.clear()
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            ids = torch.randint(0, len(here), (12,), generator=generator)
            weight = torch.randn(12, 4, generator=generator)
            for p, optimizer in ((here, one), (there, other)):
                where = p.device
                own = F.embedding(ids.to(where, non_blocking=True), p, sparse=True)
                (own * weight.to(where, non_blocking=True)).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
        assert not device.waits
    assert torch.equal(there.cpu(), here)


def test_adam_is_that_of_torch_for_sparse_gradients() -> None:
    ours, theirs = table(), table()
    a = LazyAdam([ours], lr=0.1)
    b = torch.optim.SparseAdam([theirs], lr=0.1)
    for seed in range(10):
        step(a, ours, seed)
        step(b, theirs, seed)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_adam_with_every_row_touched_is_adam() -> None:
    ours, theirs = table(), table()
    a, b = LazyAdam([ours], lr=0.1), torch.optim.Adam([theirs], lr=0.1)
    for seed in range(5):
        weight = torch.randn(50, 4, generator=torch.Generator().manual_seed(seed))
        for optimizer, p, sparse in ((a, ours, True), (b, theirs, False)):
            optimizer.zero_grad()
            (F.embedding(torch.arange(50), p, sparse=sparse) * weight).sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("start", [0.0, 0.1])
def test_adagrad_is_that_of_torch_whatever_rows_are_touched(start: float) -> None:
    ours, theirs = table(), table()
    a = LazyAdagrad([ours], lr=0.1, initial_accumulator_value=start)
    b = torch.optim.Adagrad([theirs], lr=0.1, initial_accumulator_value=start)
    for seed in range(6):
        at = step(a, ours, seed)
        assert ours.grad is not None
        b.zero_grad()
        theirs.grad = ours.grad.to_dense()
        b.step()
        assert len(at.unique()) < 50
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_that_of_torch_where_every_row_is_touched(momentum: float) -> None:
    ours, theirs = table(), table()
    a, b = LazySGD([ours], lr=0.1, momentum=momentum), torch.optim.SGD([theirs], lr=0.1, momentum=momentum)
    for seed in range(5):
        weight = torch.randn(50, 4, generator=torch.Generator().manual_seed(seed))
        for optimizer, p, sparse in ((a, ours, True), (b, theirs, False)):
            optimizer.zero_grad()
            (F.embedding(torch.arange(50), p, sparse=sparse) * weight).sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert ("momentum" in a.state[ours]) == bool(momentum)


def test_momentum_of_a_row_rests_while_the_row_is_not_touched() -> None:
    p = nn.Parameter(torch.zeros(3, 1))
    optimizer = LazySGD([p], lr=1.0, momentum=0.5)
    for ids in ([0], [1], [0]):
        optimizer.zero_grad()
        F.embedding(torch.tensor(ids), p, sparse=True).sum().backward()
        optimizer.step()
    assert p.flatten().tolist() == [-2.5, -1.0, 0.0]  # row 0: 1, then 0.5 * 1 + 1


def test_rowwise_adam_by_hand() -> None:
    p = table()
    expected, m, v = p.detach().clone(), torch.zeros(50, 4), torch.zeros(50)
    optimizer = LazyAdam([p], lr=0.1, rowwise=True)
    for seed in range(4):
        step(optimizer, p, seed)
        rows, g, _ = sum_by_row(p.grad)
        for row, grad in zip(rows.tolist(), g):
            m[row] = 0.9 * m[row] + 0.1 * grad
            v[row] = 0.999 * v[row] + 0.001 * (grad**2).mean()
            root = (v[row] / (1 - 0.999 ** (seed + 1))).sqrt() + 1e-8
            expected[row] -= 0.1 / (1 - 0.9 ** (seed + 1)) * m[row] / root
    torch.testing.assert_close(p.detach(), expected, rtol=1e-5, atol=1e-6)


def test_rowwise_adagrad_by_hand() -> None:
    p = table()
    expected, total = p.detach().clone(), torch.zeros(50)
    optimizer = RowwiseAdagrad([p], lr=0.1)
    for seed in range(4):
        step(optimizer, p, seed)
        rows, g, _ = sum_by_row(p.grad)
        for row, grad in zip(rows.tolist(), g):
            total[row] += (grad**2).mean()
            expected[row] -= 0.1 * grad / (total[row].sqrt() + 1e-10)
    torch.testing.assert_close(p.detach(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_other_rows_stay_to_the_bit_with_their_state(kind: str) -> None:
    p = table()
    optimizer = KINDS[kind]([p])
    step(optimizer, p, 0)
    before = copy.deepcopy((p.detach(), optimizer.state[p]))
    touched = step(optimizer, p, 1).unique()
    other = torch.ones(50, dtype=torch.bool).index_fill(0, touched, False)
    assert torch.equal(p.detach()[other], before[0][other])
    assert (p.detach()[touched] != before[0][touched]).any(1).all()
    for name, value in optimizer.state[p].items():
        if name != "step":
            assert torch.equal(value[other], before[1][name][other]), name


@pytest.mark.parametrize(
    "make", [lambda p: RowwiseAdagrad([p], lr=0.1, l2=0.5), lambda p: LazyAdam([p], lr=0.1, l2=0.5)]
)
def test_the_penalty_touches_the_rows_of_the_batch_only(make: Any) -> None:
    p = table()
    before = p.detach().clone()
    optimizer = make(p)
    (F.embedding(torch.tensor([3, 7]), p, sparse=True) * 0).sum().backward()
    optimizer.step()
    moved = (p.detach() != before).any(1).nonzero().squeeze(1)
    assert moved.tolist() == [3, 7]
    assert (p.detach()[moved].abs() < before[moved].abs()).all()  # toward zero


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_optimizer_goes_on_to_the_bit(kind: str) -> None:
    whole, cut = table(), table()
    a, b = KINDS[kind]([whole]), KINDS[kind]([cut])
    for seed in range(6):
        step(a, whole, seed)
    for seed in range(3):
        step(b, cut, seed)
    file = io.BytesIO()
    torch.save(b.state_dict(), file)
    file.seek(0)
    again = nn.Parameter(cut.detach().clone())
    c = KINDS[kind]([again])
    c.load_state_dict(torch.load(file, weights_only=True))
    for seed in range(3, 6):
        step(c, again, seed)
    assert torch.equal(again, whole)
    for name, value in a.state[whole].items():
        assert torch.equal(c.state[again][name], value), name


def test_groups_have_their_own_settings() -> None:
    one, two = table(seed=1), table(seed=1)
    optimizer = LazyAdam([{"params": [one], "lr": 0.0}, {"params": [two]}], lr=0.1)
    for p in (one, two):
        F.embedding(torch.tensor([5]), p, sparse=True).sum().backward()
    optimizer.step()
    assert torch.equal(one, table(seed=1))
    assert not torch.equal(two, table(seed=1))


def test_no_lookups_and_no_gradient_move_nothing() -> None:
    p, idle = table(), table()
    optimizer = LazyAdam([p, idle])
    F.embedding(torch.zeros(0, dtype=torch.int64), p, sparse=True).sum().backward()
    optimizer.step()
    assert torch.equal(p, table())
    assert idle not in optimizer.state


def test_a_dense_gradient_is_refused() -> None:
    p = table()
    p.sum().backward()
    with pytest.raises(TypeError, match="LazyAdam takes sparse gradients"):
        LazyAdam([p]).step()


def test_a_closure_is_evaluated_with_gradients() -> None:
    p = table()
    optimizer = RowwiseAdagrad([p])

    def closure() -> Tensor:
        loss = F.embedding(torch.tensor([1]), p, sparse=True).sum()
        loss.backward()
        return loss

    assert torch.equal(optimizer.step(closure), table()[1].sum())
    assert not torch.equal(p, table())
