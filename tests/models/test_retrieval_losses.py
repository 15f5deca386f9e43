"""Losses of retrievers: each formula by hand, masks, weights, and the limits in which they are equal."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from longrec.errors import ConfigError
from longrec.features.batch import Targets
from longrec.models.core.retrieval import RetrievalConfig, Sampling, retrieval_loss
from longrec.nn import own_negatives

ITEMS, TARGETS = 12, 7


def loss_of(state: Tensor, item: Tensor, targets: Targets, **settings: Any) -> float:
    return float(retrieval_loss(state, item, targets, RetrievalConfig(**settings)))


def draw(negatives: list[int], target: list[int]) -> tuple[Tensor, Tensor, Targets]:
    """States, vectors of candidates, and targets of a catalog of ``ITEMS`` items."""
    generator = torch.Generator().manual_seed(0)
    state, every = torch.randn(len(target), 5, generator=generator), torch.randn(ITEMS, 5, generator=generator)
    distinct, item = torch.unique(torch.tensor(target), return_inverse=True)
    rows = torch.cat([distinct, torch.tensor(negatives, dtype=torch.int64)])
    own = Targets(torch.arange(len(target)), item, rows, len(negatives), ITEMS)
    return state, every[rows], own


def draw_own(negatives: list[list[int]], target: list[int]) -> tuple[Tensor, Tensor, Targets]:
    """The same with negatives of each target's own, each vector once."""
    listed = sorted({item for own in negatives for item in own})
    state, item, targets = draw(listed, target)
    first = len(targets.rows) - len(listed)
    own = torch.tensor([[first + listed.index(one) for one in items] for items in negatives])
    return state, item, replace(targets, own=own)


def sigmoid_log(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_softmax_by_hand() -> None:
    state, item, targets = draw([3, 5, 5, 8], [3, 4])
    log_q = torch.tensor([0.5, -1.0, 0.0, -2.0])
    z = (state @ item.t()).tolist()  # candidates 3 4 | 3 5 5 8
    one = math.exp(z[0][0]) + sum(math.exp(z[0][j] - log_q[j - 2]) for j in (3, 4, 5))  # its own item is masked
    two = math.exp(z[1][1]) + sum(math.exp(z[1][j] - log_q[j - 2]) for j in (2, 3, 4, 5))
    expected = (math.log(one) - z[0][0] + math.log(two) - z[1][1]) / 2
    with_q = Targets(**{**vars(targets), "log_q": log_q})
    assert loss_of(state, item, with_q) == pytest.approx(expected, rel=1e-5)
    assert loss_of(state, item, with_q, log_q=False) == pytest.approx(loss_of(state, item, targets), rel=1e-6)


def test_softmax_over_all_items_is_exact() -> None:
    """The own item is masked among the negatives, so that with every item once none counts twice."""
    state, item, targets = draw(list(range(ITEMS)), [3, 4, 4, 0, 11, 7, 2])
    once = Targets(**{**vars(targets), "log_q": torch.zeros(ITEMS)})
    every = item[-ITEMS:]
    exact = F.cross_entropy(state @ every.t(), torch.tensor([3, 4, 4, 0, 11, 7, 2]))
    assert loss_of(state, item, once) == pytest.approx(float(exact), rel=1e-5)
    catalog = Targets(targets.state, torch.tensor([3, 4, 4, 0, 11, 7, 2]), torch.arange(ITEMS), 0, ITEMS)
    assert loss_of(state, every, catalog, loss="cross_entropy") == pytest.approx(float(exact), rel=1e-5)


def test_log_q_estimates_the_loss_over_all_items() -> None:
    """Negatives drawn unequally, many times: with the correction their sum estimates that over the catalog."""
    generator = torch.Generator().manual_seed(1)
    share = torch.rand(ITEMS, generator=generator) + 0.1
    share = share / share.sum()
    drawn = torch.multinomial(share, 60_000, replacement=True, generator=generator)
    state, item, targets = draw(drawn.tolist(), [3, 4])
    log_q = (60_000 * share[drawn]).log()
    with_q = Targets(**{**vars(targets), "log_q": log_q})
    every = draw(list(range(ITEMS)), [3, 4])[1][-ITEMS:]
    exact = float(F.cross_entropy(state @ every.t(), torch.tensor([3, 4])))
    assert loss_of(state, item, with_q) == pytest.approx(exact, rel=0.02)
    assert loss_of(state, item, with_q, log_q=False) > exact + 1


def draw_from_batch(
    target: list[int], further: list[int], hits: list[tuple[int, int]]
) -> tuple[Tensor, Tensor, Targets]:
    """The same with all candidates as negatives, the targets as often as they occur."""
    state, item, targets = draw(further, target)
    times = torch.bincount(targets.item).float()
    draws, pairs = torch.cat([times, torch.ones(len(further))]), torch.tensor(hits).t() if hits else None
    return state, item, replace(targets, negatives=len(item), draws=draws, hits=pairs)


def test_in_batch_softmax_by_hand() -> None:
    """Targets 3 4 4 9 of the users a, a, b, c: candidates 3 4 9, and 0, which stands for all other items."""
    own = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1), (3, 2)]  # a target, and each target of its user
    state, item, targets = draw_from_batch([3, 4, 4, 9], [0], own)
    log_q = torch.tensor([-0.5, 0.3, -1.0, 0.0])
    z, q = (state @ item.t() / 0.5).tolist(), log_q.exp().tolist()

    def expect(weights: list[float], own_targets: bool) -> float:
        total = 0.0
        for row, (column, masked) in enumerate([(0, {0, 1}), (1, {0, 1}), (1, {1}), (2, {2})]):
            left_out = masked if own_targets else {column}
            others = sum(weights[j] * math.exp(z[row][j]) for j in range(4) if j not in left_out)
            total += math.log(math.exp(z[row][column]) + others) - z[row][column]
        return total / 4

    corrected = [times / chance for times, chance in zip([1, 2, 1, 1], q)]
    with_q = replace(targets, log_q=log_q)
    assert loss_of(state, item, with_q, temperature=0.5) == pytest.approx(expect(corrected, True), rel=1e-5)
    without_pairs = replace(with_q, hits=None)
    assert loss_of(state, item, without_pairs, temperature=0.5) == pytest.approx(expect(corrected, False), rel=1e-5)
    plain = loss_of(state, item, with_q, temperature=0.5, log_q=False)
    assert plain == pytest.approx(expect([1, 2, 1, 1], True), rel=1e-5)


def test_in_batch_softmax_over_the_whole_catalog_is_exact() -> None:
    """Every item is the target of one user, and each is expected once: log q is 0."""
    order = [3, 4, 0, 11, 7, 2, 1, 5, 6, 8, 9, 10]
    state, item, targets = draw_from_batch(order, [], [])
    exact = F.cross_entropy(state @ item.t(), torch.tensor(order))
    assert loss_of(state, item, replace(targets, log_q=torch.zeros(ITEMS))) == pytest.approx(float(exact), rel=1e-5)


def test_an_accidental_hit_gets_no_gradient() -> None:
    state, item, targets = draw_from_batch([3, 4, 9], [], [(0, 1), (1, 0)])
    state.requires_grad_()
    loss = retrieval_loss(state, item, targets, RetrievalConfig())
    loss.backward()
    assert state.grad is not None
    z = (state @ item.t()).detach()
    share = (z[0, 2] - torch.logsumexp(z[0, [0, 2]], 0)).exp()  # item 9 alone is compared with the first target
    torch.testing.assert_close(state.grad[0], share * (item[2] - item[0]) / 3, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", ["bce", "gbce", "cross_entropy"])
def test_in_batch_negatives_of_another_loss_are_refused(loss: str) -> None:
    with pytest.raises(ConfigError, match="draw: mixed needs loss: softmax or bpr_max"):
        RetrievalConfig(loss=loss, draw="mixed")


def test_bce_by_hand() -> None:
    state, item, targets = draw_own([[5], [8]], [3, 4])
    z = (state @ item.t()).tolist()  # candidates 3 4 | 5 8
    expected = -sigmoid_log(z[0][0]) - sigmoid_log(-z[0][2]) - sigmoid_log(z[1][1]) - sigmoid_log(-z[1][3])
    assert loss_of(state, item, targets, loss="bce") == pytest.approx(expected / 2, rel=1e-5)


def test_gbce_by_hand_and_its_limit() -> None:
    state, item, targets = draw_own([[5, 8, 3], [8, 8, 3]], [3, 4])
    z = (state @ item.t()).tolist()  # candidates 3 4 | 3 5 8
    share, t = 3 / (ITEMS - 1), 0.75
    beta = share * (t * (1 - 1 / share) + 1 / share)
    negative = [-sigmoid_log(-z[0][3]) - sigmoid_log(-z[0][4]), -sum(sigmoid_log(-z[1][j]) for j in (4, 4, 2))]
    positive = [-sigmoid_log(z[0][0]), -sigmoid_log(z[1][1])]
    actual = loss_of(state, item, targets, loss="gbce", gbce_t=t)
    assert actual == pytest.approx((beta * sum(positive) + sum(negative)) / 2, rel=1e-5)
    plain = loss_of(state, item, targets, loss="gbce", gbce_t=0.0)
    assert plain == pytest.approx((sum(positive) + sum(negative)) / 2, rel=1e-5)
    calibrated = loss_of(state, item, targets, loss="gbce", gbce_t=1.0)
    assert calibrated == pytest.approx((share * sum(positive) + sum(negative)) / 2, rel=1e-5)


@pytest.mark.parametrize("loss", ["softmax", "gbce", "bpr_max"])
def test_a_negative_that_is_the_target_gets_no_gradient(loss: str) -> None:
    state, item, targets = draw_own([[3, 5], [5, 3]], [3, 3]) if loss == "gbce" else draw([3, 5], [3, 3])
    item.requires_grad_()
    retrieval_loss(state, item, targets, RetrievalConfig(loss=loss)).backward()
    assert item.grad is not None
    assert not item.grad[1].any()  # item 3 as a negative
    assert item.grad[[0, 2]].abs().sum(1).min() > 0


def test_bpr_max_by_hand() -> None:
    """Targets 3 4 4 of the users a, b, c. Candidates 3 4 and 0, of which 4 counts twice; 3 is left out for c too."""
    state, item, targets = draw_from_batch([3, 4, 4], [0], [(0, 0), (1, 1), (2, 0), (2, 1)])
    z, times, total = (state @ item.t() / 0.5).tolist(), [1, 2, 1], 0.0
    for row, (own, others) in enumerate([(0, (1, 2)), (1, (0, 2)), (1, (2,))]):
        weights = {j: times[j] * math.exp(z[row][j]) for j in others}
        share = {j: weight / sum(weights.values()) for j, weight in weights.items()}
        total -= math.log(sum(share[j] / (1 + math.exp(z[row][j] - z[row][own])) for j in others))
        total += 0.3 * sum(share[j] * z[row][j] ** 2 for j in others)
    settings = {"loss": "bpr_max", "bpr_max_penalty": 0.3, "temperature": 0.5}
    assert loss_of(state, item, targets, **settings) == pytest.approx(total / 3, rel=1e-5)
    corrected = replace(targets, log_q=torch.tensor([1.0, 2.0, 3.0]))
    assert loss_of(state, item, corrected, **settings) == pytest.approx(total / 3, rel=1e-5)


def test_bpr_max_without_another_negative_is_zero() -> None:
    state, item, targets = draw([3, 3], [3])
    state.requires_grad_()
    loss = retrieval_loss(state, item, targets, RetrievalConfig(loss="bpr_max"))
    loss.backward()
    assert state.grad is not None
    assert not state.grad.any()
    assert not loss


def test_own_negatives_have_the_same_scores_on_either_path(monkeypatch: pytest.MonkeyPatch) -> None:
    state, item, targets = draw_own([[5, 8, 3], [8, 8, 3]], [3, 4])
    one = loss_of(state, item, targets, loss="gbce")
    monkeypatch.setattr(own_negatives, "_VECTORS_PER_NEGATIVE", 0)
    assert loss_of(state, item, targets, loss="gbce") == pytest.approx(one, rel=1e-6)


def test_the_temperature_divides_the_scores() -> None:
    state, item, targets = draw([3, 5], [3, 4])
    cold = loss_of(state, item, targets, temperature=0.5)
    assert cold == pytest.approx(loss_of(2 * state, item, targets), rel=1e-6)


@pytest.mark.parametrize("loss", ["softmax", "cross_entropy", "bce", "gbce", "bpr_max"])
def test_many_targets_have_the_loss_of_few(loss: str) -> None:
    """From some number of rows on, the loss runs on other operators."""
    target = [row % ITEMS for row in range(700)]
    if loss in ("bce", "gbce"):
        count = 1 if loss == "bce" else 3
        state, item, targets = draw_own([[(row + step + 1) % ITEMS for step in range(count)] for row in target], target)
    else:
        state, item, targets = draw([] if loss == "cross_entropy" else [3, 3, 5, 8], target)
    many = loss_of(state, item, targets, loss=loss)
    halves = []
    for rows in (slice(0, 350), slice(350, 700)):
        own = None if targets.own is None else targets.own[rows]
        half = replace(targets, state=targets.state[rows], item=targets.item[rows], own=own)
        halves.append(loss_of(state[rows], item, half, loss=loss))
    assert many == pytest.approx(sum(halves) / 2, rel=1e-5)


def test_what_the_losses_draw() -> None:
    assert RetrievalConfig().sampling() == Sampling("shared", 512, "uniform")
    assert RetrievalConfig(draw="mixed").sampling().in_batch
    assert RetrievalConfig(loss="bpr_max", draw="mixed").sampling() == RetrievalConfig(draw="mixed").sampling()
    assert not RetrievalConfig(draw="in_batch", mask_own_targets=False).sampling().mask_own
    assert RetrievalConfig(loss="bce", draw="popularity").sampling() == Sampling("own", 1, "popularity", unseen=True)
    assert RetrievalConfig(loss="cross_entropy").sampling() == Sampling("all", 0)
    assert RetrievalConfig(loss="gbce", negatives=7).sampling() == Sampling("own", 7)
