"""Capacity by greedy repair: bounds, loads, giants, and the plain assignment without a bound."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from longrec.errors import ConfigError
from longrec.semantic_ids.capacity import Capacity, clip_weights, repair
from longrec.semantic_ids.kmeans import compute_inertia, fit_kmeans
from longrec.semantic_ids.nearest import find_nearest
from longrec.semantic_ids.residual import fit_residual_kmeans


def draw(rows: int, width: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def draw_weights(rows: int, spread: float, seed: int = 0) -> Tensor:
    """Weights with a heavy tail, some of them 0."""
    random = torch.Generator().manual_seed(seed)
    weights = (spread * torch.randn(rows, generator=random, dtype=torch.float64)).exp() * 5
    return weights * (torch.rand(rows, generator=random) > 0.1)


def find_overloaded(weight_N: Tensor, code_N: Tensor, size: int, load: float, items: int) -> set[int]:
    """Codes above a bound, by hand."""
    over = set()
    for code in range(size):
        own = weight_N[code_N == code]
        if float(own.sum()) > load * (1 + 1e-9) or len(own) > items:
            over.add(code)
    return over


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 120), st.integers(1, 12), st.floats(0, 2), st.sampled_from([1.0, 1.05, 1.5]), st.integers(0, 10_000)
)
def test_unirec_1_loads_are_within_the_capacity_or_listed(
    rows: int, size: int, spread: float, tau: float, seed: int
) -> None:
    """UniRec 1: every load is within the bound, or its code is listed. Loads add up to the weights."""
    x_ND, centroid_KD, weights = draw(rows, seed=seed), draw(size, seed=seed + 1), draw_weights(rows, spread, seed)
    capacity = Capacity(tau=tau, items_factor=3.0)
    plain_N = find_nearest(x_ND, centroid_KD)
    code_N, report = repair(x_ND, centroid_KD, plain_N, weights, capacity)
    weight_N, limit, clipped_N, floored = clip_weights(weights, rows, size, capacity)
    assert limit == pytest.approx(tau * float(weights.clamp(min=1).sum()) / size)
    assert set(report.violations) == find_overloaded(weight_N, code_N, size, limit, report.item_limit)
    torch.testing.assert_close(report.loads.sum(), weight_N.sum())
    assert int(report.counts.sum()) == rows
    assert report.item_limit == max(math.ceil(3 * rows / size), 1)
    assert (set(report.clipped), report.floored) == (set(clipped_N.nonzero()[:, 0].tolist()), floored)
    # Repair never raises the number of overloaded codes (UniRec 2).
    before = find_overloaded(weight_N, plain_N, size, limit, report.item_limit)
    assert len(before) == report.overloaded_before >= len(report.violations)
    # Whoever stays in an overloaded code has room nowhere else.
    for code in report.violations:
        lightest = float(weight_N[code_N == code].min())
        for other in set(range(size)) - set(report.violations):
            is_full = float(report.loads[other]) + lightest > limit * (1 + 1e-9)
            assert is_full or int(report.counts[other]) == report.item_limit


def test_unirec_1_equal_weights_are_always_within_the_capacity() -> None:
    x_ND = draw(2_000, seed=3)
    for tau in (1.05, 1.5):
        fitted = fit_kmeans(x_ND, 16, capacity=Capacity(tau=tau))
        assert fitted.capacity is not None
        assert fitted.capacity.violations == ()
        assert int(torch.bincount(fitted.codes).max()) <= tau * 2_000 / 16
        assert fitted.inertia < 1.02 * fit_kmeans(x_ND, 16).inertia


def test_unirec_2_an_infinite_tau_is_the_plain_assignment() -> None:
    """UniRec 2: codes, codebooks and inertia are equal, bit for bit."""
    x_ND, weights = draw(1_500, seed=5), draw_weights(1_500, 2.0)
    plain, plain_codes = fit_residual_kmeans(x_ND, 3, 20)
    free, free_codes = fit_residual_kmeans(x_ND, 3, 20, weights=weights, capacity=Capacity(tau=math.inf))
    assert torch.equal(plain.codebooks, free.codebooks)
    assert torch.equal(plain_codes.codes, free_codes.codes)
    assert [one.inertia for one in plain_codes.levels] == [one.inertia for one in free_codes.levels]
    tight, _ = fit_residual_kmeans(x_ND, 3, 20, weights=weights, capacity=Capacity(tau=1.05))
    assert not torch.equal(plain.codebooks, tight.codebooks)


def test_unirec_3_one_giant_item_ends_and_is_reported() -> None:
    """UniRec 3: an item with more weight than a code may have fills a code alone."""
    x_ND, weights = draw(300, seed=6), torch.ones(300, dtype=torch.float64)
    weights[7] = 1e6
    fitted = fit_kmeans(x_ND, 10, weights=weights, capacity=Capacity())
    report = fitted.capacity
    assert report is not None
    assert report.clipped == (7,)
    assert report.violations == ()
    assert int((fitted.codes == fitted.codes[7]).sum()) == 1


def test_two_giants_with_one_nearest_code_get_codes_of_their_own() -> None:
    x_ND = torch.tensor([[0.0], [0.1], [0.2], [5.0], [9.0], [9.5]])
    centroid_KD = torch.tensor([[0.0], [5.0], [9.0]])
    weights = torch.tensor([1.0, 100.0, 100.0, 1.0, 1.0, 1.0])
    code_N, report = repair(x_ND, centroid_KD, find_nearest(x_ND, centroid_KD), weights, Capacity(items_factor=9))
    assert report.clipped == (1, 2)
    assert report.violations == ()
    assert code_N.tolist() == [2, 0, 1, 2, 2, 2]


def test_the_item_with_the_least_regret_per_weight_moves() -> None:
    """Code 0 has three items too many by one: the one that loses least per weight leaves, to the nearest with room."""
    centroid_KD = torch.tensor([[0.0], [10.0], [-100.0]])
    x_ND = torch.tensor([[0.0], [3.0], [4.0], [10.0]])
    code_N, report = repair(x_ND, centroid_KD, find_nearest(x_ND, centroid_KD), None, Capacity(tau=1.5))
    assert (report.load_limit, report.moved) == (2.0, 1)
    assert code_N.tolist() == [0, 0, 1, 1]  # regret of 4 is 6^2 - 4^2 = 20, of 3 it is 40
    weights = torch.tensor([10.0, 30.0, 10.0, 1.0])
    code_N, _ = repair(x_ND, centroid_KD, find_nearest(x_ND, centroid_KD), weights, Capacity(tau=2.4, items_factor=9))
    assert code_N.tolist() == [0, 1, 0, 1]  # 40 / 30 is less than 20 / 10


def test_items_without_weight_cannot_pile_up() -> None:
    x_ND = draw(200, seed=8) * 0.01
    centroid_KD = torch.cat([torch.zeros(1, 4), draw(9, seed=9) * 3])
    plain_N = find_nearest(x_ND, centroid_KD)
    assert int((plain_N == 0).sum()) == 200
    weights = torch.zeros(200, dtype=torch.float64)
    code_N, report = repair(x_ND, centroid_KD, plain_N, weights, Capacity(tau=1.0))
    assert report.floored == 200
    assert torch.bincount(code_N).tolist() == [20] * 10
    code_N, report = repair(x_ND, centroid_KD, plain_N, weights, Capacity(floor=0.0, items_factor=2.0))
    assert report.floored == 0
    assert int(torch.bincount(code_N).max()) <= 40


@pytest.mark.parametrize("seed", range(3))
def test_the_inertia_is_close_to_that_of_the_best_assignment(seed: int) -> None:
    """The greedy repair against the exact one: a linear assignment with as many columns as a code may have items."""
    x_ND = draw(240, seed=seed)
    centroid_KD = fit_kmeans(x_ND, 12).centroids
    plain_N = find_nearest(x_ND, centroid_KD)
    code_N, report = repair(x_ND, centroid_KD, plain_N, None, Capacity(tau=1.2))
    copies = int(report.load_limit)
    cost = torch.cdist(x_ND, centroid_KD).square().repeat_interleave(copies, 1).numpy()
    row, column = linear_sum_assignment(cost)
    best = compute_inertia(x_ND[row], centroid_KD, torch.from_numpy(column // copies))
    assert report.moved > 0
    assert compute_inertia(x_ND, centroid_KD, plain_N) < best
    assert best <= compute_inertia(x_ND, centroid_KD, code_N) * (1 + 1e-6)
    assert compute_inertia(x_ND, centroid_KD, code_N) < 1.01 * best


@pytest.mark.parametrize("bad", [{"tau": 0.9}, {"tau": float("nan")}, {"floor": -1.0}, {"floor": math.inf}])
def test_settings_that_bound_nothing_sensible_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Capacity(**bad)
