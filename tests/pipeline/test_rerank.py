"""Tests of re-ranking: MMR, greedy MAP of a DPP, and spacing of categories."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from longrec.errors import ConfigError, DataError
from longrec.pipeline.dpp import dpp
from longrec.pipeline.mmr import mmr
from longrec.pipeline.rerank_inputs import normalize_relevance
from longrec.pipeline.spacing import space_categories

Floats = NDArray[np.float64]


def draw(seed: int, items: int = 8, width: int = 8) -> tuple[Floats, Floats]:
    random = np.random.default_rng(seed)
    return random.normal(3, 20, items), random.normal(0, 5, (items, width))


def similarities(vectors: Floats) -> Floats:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


def kernel_of(relevance: Floats, vectors: Floats, theta: float) -> Floats:
    q = np.exp(theta / (2 * (1 - theta)) * normalize_relevance(relevance))
    return q[:, None] * (1 + similarities(vectors)) / 2 * q


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("theta", [0.0, 0.3, 0.9])
def test_dpp_equals_the_argmax_of_log_det_in_every_step(seed: int, theta: float) -> None:
    relevance, vectors = draw(seed)
    kernel = kernel_of(relevance, vectors, theta)
    chosen: list[int] = []
    ranked = np.argsort(-relevance)  # of equal determinants the most relevant item
    for _ in range(8):
        rest = [i for i in ranked.tolist() if i not in chosen]
        chosen.append(
            max(rest, key=lambda i: round(np.linalg.slogdet(kernel[np.ix_([*chosen, i], [*chosen, i])])[1], 9))
        )
    order, filled = dpp(relevance, vectors, 8, theta)
    assert (order.tolist(), filled) == (chosen, 0)
    assert dpp(relevance, vectors, 3, theta)[0].tolist() == chosen[:3]


@pytest.mark.parametrize("window", [2, 3, 5])
def test_dpp_with_a_window_equals_the_argmax_of_log_det_of_the_window(window: int) -> None:
    relevance, vectors = draw(window, 30, 6)
    kernel = kernel_of(relevance, vectors, 0.5)
    chosen: list[int] = []
    for _ in range(30):
        rest = [i for i in np.argsort(-relevance).tolist() if i not in chosen]
        last = chosen[len(chosen) - min(window - 1, len(chosen)) :]
        chosen.append(max(rest, key=lambda i: np.linalg.slogdet(kernel[np.ix_([*last, i], [*last, i])])[1]))
    order, filled = dpp(relevance, vectors, 30, 0.5, window)
    assert (order.tolist(), filled) == (chosen, 0)
    assert dpp(relevance, vectors, 30, 0.5, window=1)[0].tolist() == np.argsort(-relevance).tolist()


def test_dpp_of_orthogonal_items_is_the_order_of_relevance() -> None:
    relevance = np.array([3.0, 9.0, 1.0, 7.0])
    order, filled = dpp(relevance, np.eye(4) * [[2.0], [1.0], [5.0], [0.0]], 4, 0.2)  # one of them has no vector
    assert (order.tolist(), filled) == ([1, 3, 0, 2], 0)


def test_dpp_fills_with_items_that_chosen_ones_explain() -> None:
    """A duplicate of a chosen item has d^2 = 0, whatever its relevance, and says so by the number of filled items."""
    vectors = np.array([[1.0, 0, 0], [3.0, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]])
    order, filled = dpp([9, 8, 1, 2, 3], vectors, 5, 0.999)
    assert (order.tolist(), filled) == ([0, 4, 3, 2, 1], 1)
    assert dpp([9, 8, 1, 2, 3], vectors, 3, 0.999)[1] == 0


def test_opposite_vectors_are_the_most_different_ones() -> None:
    order, _ = dpp([0.9, 0.8, 0.7, 0.6], [[1, 0], [1, 0.1], [0, 1], [-1, 0]], 2, 0.1)
    assert order.tolist() == [0, 3]


def test_dpp_with_a_window_repeats_categories_in_turn_when_vectors_are_one_hot() -> None:
    categories = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])
    order, filled = dpp(np.linspace(1, 0, 9), np.eye(3)[categories], 9, 0.5, window=4)
    assert categories[order].tolist() == [0, 1, 2] * 3
    assert filled == 0


def test_a_rotated_window_keeps_its_precision() -> None:
    relevance, vectors = draw(1, 300, 12)
    order, _ = dpp(relevance, vectors, 300, 0.6, window=8)
    kernel = kernel_of(relevance, vectors, 0.6)
    for step in (100, 200, 290):  # the incremental choice is still the best one after hundreds of rotations
        last, rest = order[step - 7 : step].tolist(), order[step:].tolist()
        dets = [np.linalg.slogdet(kernel[np.ix_([*last, i], [*last, i])])[1] for i in rest]
        assert int(np.argmax(dets)) == 0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("trade_off", [0.0, 0.4, 0.9])
def test_mmr_equals_brute_force(seed: int, trade_off: float) -> None:
    relevance, vectors = draw(seed)
    r, similarity = normalize_relevance(relevance), similarities(vectors)
    chosen: list[int] = []
    for _ in range(8):
        rest = [i for i in np.argsort(-relevance).tolist() if i not in chosen]
        nearest = {i: max((similarity[i, j] for j in chosen), default=0.0) for i in rest}
        chosen.append(max(rest, key=lambda i: trade_off * r[i] - (1 - trade_off) * nearest[i]))
    assert mmr(relevance, vectors, 8, trade_off).tolist() == chosen
    assert mmr(relevance, vectors, 3, trade_off).tolist() == chosen[:3]


def test_full_weight_of_relevance_gives_the_order_of_relevance() -> None:
    relevance, vectors = draw(0, 20)
    relevance = np.sort(relevance)[::-1]
    relevance[5:8] = relevance[5]
    assert mmr(relevance, vectors, 20, 1.0).tolist() == list(range(20))
    assert dpp(relevance, vectors, 20, 1.0)[0].tolist() == list(range(20))


def test_duplicates_come_after_everything_new() -> None:
    """With equal relevance, and for any trade-off below 1."""
    vectors = np.repeat(np.eye(4), 3, axis=0)
    for trade_off in (0.0, 0.5, 0.999):
        order = mmr(np.ones(12), vectors, 12, trade_off)
        assert sorted(order[:4] // 3) == [0, 1, 2, 3]
    order = mmr([1.0, 0.9, 0.8, 0.0], [[1, 0], [1, 0], [0, 1], [0, 1]], 4, 0.7)
    assert order.tolist() == [0, 2, 1, 3]


def test_the_unit_of_relevance_does_not_matter() -> None:
    relevance, vectors = draw(3)
    for scale, shift in ((1e-4, 0.0), (1e5, -3.0)):
        assert mmr(relevance * scale + shift, vectors, 8, 0.5).tolist() == mmr(relevance, vectors, 8, 0.5).tolist()
        assert (
            dpp(relevance * scale + shift, vectors, 8, 0.5)[0].tolist() == dpp(relevance, vectors, 8, 0.5)[0].tolist()
        )


def test_short_and_empty_lists() -> None:
    for k in (0, 1, 5):
        assert mmr([2.0], [[1.0, 1.0]], k, 0.5).tolist() == [0][:k]
        assert dpp([2.0], [[1.0, 1.0]], k, 0.5)[0].tolist() == [0][:k]
    assert mmr([], np.zeros((0, 3)), 4, 0.5).tolist() == []
    assert dpp([], np.zeros((0, 3)), 4, 0.5, window=2)[0].tolist() == []
    assert space_categories([], 1, 2)[0].tolist() == []


def test_wrong_inputs_are_errors() -> None:
    with pytest.raises(DataError, match="finite"):
        mmr([1.0, np.nan], np.eye(2), 2, 0.5)
    with pytest.raises(DataError, match=r"\[2, D\]"):
        dpp([1.0, 2.0], np.eye(3), 2, 0.5)
    for call in (
        lambda: mmr([1.0], np.eye(1), -1, 0.5),
        lambda: mmr([1.0], np.eye(1), 1, 1.5),
        lambda: dpp([1.0], np.eye(1), 1, -0.5),
        lambda: dpp([1.0], np.eye(1), 1, 0.5, window=0),
    ):
        with pytest.raises(ConfigError):
            call()
    with pytest.raises(ConfigError, match="2 faults"):
        space_categories(["a"], 0, 0)


category = st.one_of(st.none(), st.sampled_from("abcd"))


@settings(max_examples=150, deadline=None)
@given(categories=st.lists(category, max_size=25), at_most=st.integers(1, 3), within=st.integers(1, 5))
def test_spacing(categories: list[str | None], at_most: int, within: int) -> None:
    order, broken = space_categories(categories, at_most, within)
    assert sorted(order.tolist()) == list(range(len(categories)))  # no item is lost
    placed = [categories[i] for i in order]

    def exceeds(position: int, category: str | None) -> bool:
        before = placed[max(position - within + 1, 0) : position]
        return category is not None and before.count(category) >= at_most

    # every break is counted, and none was avoidable by another remaining item
    breaks = [t for t, category in enumerate(placed) if exceeds(t, category)]
    assert len(breaks) == broken
    for t in breaks:
        assert all(exceeds(t, category) for category in placed[t:])
    # each item is the first one that the rule allows
    for t in set(range(len(placed))) - set(breaks):
        assert all(exceeds(t, categories[i]) for i in order[t:].tolist() if i < order[t])
    for name in set(categories):
        same = [i for i in order.tolist() if categories[i] == name]
        assert same == sorted(same)
    if broken == 0:
        for start in range(len(placed)):
            window = placed[start : start + within]
            assert all(window.count(name) <= at_most for name in set(window) - {None})


def test_spacing_leaves_a_list_that_obeys_the_rule() -> None:
    assert space_categories(["a", "b", "a", None, None, "b"], 1, 2)[0].tolist() == list(range(6))
    assert space_categories(["a"] * 5, 1, 3)[1] == 4
