"""Buckets, draws and propensities of exploration, against every outcome of the draw."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from longrec.pipeline.explore import (
    assign_bucket,
    build_page,
    compute_propensities,
    compute_weights,
    derive_seed,
    draw,
)


def enumerate_pages(size: int, slot: int, weights: NDArray[np.float64], share: float) -> dict[tuple[int, int], float]:
    """Return the probability of every item in every position, by all outcomes of coin and draw."""
    total = dict[tuple[int, int], float]()
    outcomes: list[tuple[float, int | None]] = [(1 - share, None)]
    outcomes += [(share * weight, index) for index, weight in enumerate(weights.tolist()) if weight > 0]
    for probability, drawn in outcomes:
        listed = list(range(len(weights)))
        if drawn is not None:
            listed.insert(slot, listed.pop(drawn))
        for position, index in enumerate(listed[:size]):
            total[position, index] = total.get((position, index), 0.0) + probability
    return total


@pytest.mark.parametrize(("size", "candidates", "slot"), [(4, 7, 1), (5, 5, 0), (3, 6, 2), (1, 3, 0), (6, 6, 5)])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_propensities_are_those_of_every_outcome(size: int, candidates: int, slot: int, share: float) -> None:
    random = np.random.default_rng(size * 100 + slot)
    weights = np.zeros(candidates)
    weights[slot:] = random.dirichlet(np.ones(candidates - slot))
    if candidates - slot > 2:
        weights[slot + 1] = 0.0
        weights /= weights.sum()
    exact = enumerate_pages(size, slot, weights, share)
    pages = [build_page(size, slot, drawn) for drawn in [None, *np.flatnonzero(weights).tolist()]]
    seen = set[tuple[int, int]]()
    for page in pages:
        listed = compute_propensities(page, slot, weights, share).tolist()
        for position, (index, propensity) in enumerate(zip(page, listed, strict=True)):
            assert propensity == pytest.approx(exact.get((position, index), 0.0), abs=1e-12)
            seen.add((position, index))
    assert {key for key, value in exact.items() if value > 0} <= seen
    for position in range(size):  # some item is shown in every position
        assert sum(value for (at, _), value in exact.items() if at == position) == pytest.approx(1)


def test_a_softmax_of_standardized_scores() -> None:
    scores = np.array([0.1, 0.2, 0.4])
    ratio = np.exp((0.4 - 0.2) / scores.std() / 0.5)
    weights = compute_weights(scores, 0.5)
    assert weights.sum() == pytest.approx(1)
    assert weights[2] / weights[1] == pytest.approx(ratio)
    np.testing.assert_allclose(compute_weights(100 * scores + 3, 0.5), weights)
    assert compute_weights(np.ones(3), 0.1).tolist() == pytest.approx([1 / 3] * 3)
    np.testing.assert_allclose(compute_weights(scores, 1e6), np.full(3, 1 / 3), atol=1e-5)
    assert compute_weights(scores, 1e-4).tolist() == [0, 0, 1]


def test_a_draw_has_its_weights() -> None:
    weights = np.array([0.0, 0.25, 0.0, 0.75, 0.0])
    drawn = [draw(weights, uniform) for uniform in np.linspace(0, 1, 400, endpoint=False)]
    assert np.bincount(drawn, minlength=5).tolist() == [0, 100, 0, 300, 0]
    assert draw(np.array([0.5, 0.5 - 1e-12, 0.0]), 1 - 2**-53) == 1


def test_a_user_stays_in_a_bucket_and_a_larger_one_contains_a_smaller_one() -> None:
    users = [*range(3000), *(f"u{n}" for n in range(3000))]
    small, large = ({u for u in users if assign_bucket(u, share, "s") == "control"} for share in (0.1, 0.3))
    assert small < large
    assert len(small) / len(users) == pytest.approx(0.1, abs=0.02)
    other = {user for user in users if assign_bucket(user, 0.3, "t") == "control"}
    assert len(large & other) / len(large) == pytest.approx(0.3, abs=0.04)
    assert assign_bucket("nobody", 0.0, "s") == "explore"
    assert assign_bucket("nobody", 1.0, "s") == "control"
    assert assign_bucket("u1", 0.5, "explore") == "control"  # a hash that no version may change
    assert assign_bucket("u2", 0.5, "explore") == "explore"
    assert derive_seed(3, "u1", 17) == 8148716712764842


def test_seeds_differ_between_requests() -> None:
    seeds = {derive_seed(*key) for key in itertools.product((0, 1), ("a", 7), range(50))}
    assert len(seeds) == 200
    assert max(seeds) < 2**53
