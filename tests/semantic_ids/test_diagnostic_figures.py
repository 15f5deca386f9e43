"""Figures of semantic IDs against loops in float64, samples and closed forms."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest

from longrec.errors import DataError
from longrec.semantic_ids.diagnostics.codebooks import (
    compute_residual_means,
    iterate_residuals,
    measure_residuals,
    sum_codewords,
)
from longrec.semantic_ids.diagnostics.item_pairs import count_exposure, list_next_items, sample_pairs
from longrec.semantic_ids.diagnostics.latent import measure_geometry
from longrec.semantic_ids.diagnostics.matching import (
    EXACT,
    POPULAR,
    UNIFORM,
    WEIGHTED,
    draw_negatives,
    measure_matching,
)
from longrec.semantic_ids.diagnostics.overlap import compute_overlap, compute_overlaps, measure_sigma
from longrec.semantic_ids.diagnostics.prefixes import (
    count_top,
    is_suffix,
    measure_collisions,
    measure_prefixes,
    number_prefixes,
)
from longrec.semantic_ids.diagnostics.retention import measure_hit_rates, measure_retention
from longrec.semantic_ids.diagnostics.usage import compute_shares, measure_usage


def draw_level(size: int = 40, used: int = 31, dim: int = 5, seed: int = 0) -> tuple[Any, Any]:
    """Return shares with unused codes, and a codebook with a cluster of close codes."""
    random = np.random.default_rng(seed)
    shares = np.zeros(size)
    shares[random.permutation(size)[:used]] = random.exponential(1.0, used)
    codebook = random.normal(3.0, 1.0, (size, dim))
    codebook[:8] = codebook[0] + random.normal(0, 0.05, (8, dim))
    return shares / shares.sum(), codebook


def loop_overlap(shares: Any, codebook: Any, sigma: float) -> float:
    """Return the double sum, term by term."""
    total = 0.0
    for i, j in itertools.product(range(len(shares)), repeat=2):
        total += shares[i] * shares[j] * np.exp(-((codebook[i] - codebook[j]) ** 2).sum() / (4 * sigma**2))
    return total


# ---- overlap and effective capacity: tests 1 to 7 ----------------------------------------------------------------


def test_1_the_capacity_of_extreme_levels() -> None:
    even, far = np.full(16, 1 / 16), np.arange(16)[:, None] * 1e3
    whole = compute_overlap(even, far, 1.0)
    assert (whole.capacity, whole.distribution, whole.geometry) == pytest.approx((16, 1, 1), abs=1e-12)
    equal = compute_overlap(even, np.ones((16, 3)), 1.0)
    assert (equal.overlap, equal.capacity, equal.geometry) == pytest.approx((1, 1, 16), abs=1e-12)
    one = compute_overlap(np.eye(16)[3], far, 1.0)
    assert (one.overlap, one.capacity, one.distribution, one.geometry) == pytest.approx((1, 1, 16, 1), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_2_capacity_perplexity_and_active_codes_are_in_order(seed: int) -> None:
    shares, codebook = draw_level(seed=seed)
    own = compute_overlap(shares, codebook, 1.0)
    counts = np.round(shares * 10_000).astype(int)
    usage = measure_usage(np.repeat(np.arange(40), counts), 40)
    even = 1 / (usage.shares @ usage.shares)
    assert 1 <= own.capacity <= 1 / (shares @ shares) + 1e-12
    assert even < usage.perplexity < usage.active <= 31


def test_3_the_capacity_falls_from_even_use_to_one_code_as_sigma_grows() -> None:
    shares, codebook = draw_level()
    sigmas = np.logspace(-4, 4, 30)
    capacity = [own.capacity for own in compute_overlaps(shares, codebook, sigmas.tolist())]
    assert capacity[0] == pytest.approx(1 / (shares @ shares), rel=1e-12)
    assert capacity[-1] == pytest.approx(1.0, abs=1e-6)
    assert np.all(np.diff(capacity) <= 0)
    assert max(np.diff(capacity)) <= 0 < -min(np.diff(capacity))


def test_4_the_overlap_does_not_depend_on_names_origin_rotation_or_unit() -> None:
    shares, codebook = draw_level()
    random = np.random.default_rng(1)
    order, turn = random.permutation(40), np.linalg.qr(random.normal(size=(5, 5)))[0]
    reference = compute_overlap(shares, codebook, 0.7).overlap
    for own in (
        compute_overlap(shares[order], codebook[order], 0.7),
        compute_overlap(shares, codebook @ turn, 0.7),
        compute_overlap(shares, codebook + 1e6, 0.7),
        compute_overlap(shares, codebook * 1e-3, 0.7e-3),
    ):
        assert own.overlap == pytest.approx(reference, rel=1e-8)
    assert compute_overlap(shares, codebook[order], 0.7).overlap != pytest.approx(reference, rel=1e-3)


def test_5_samples_of_two_codes_overlap_as_expected() -> None:
    shares, codebook = draw_level(dim=2)
    random = np.random.default_rng(2)
    i, j = random.choice(40, (2, 200_000), p=shares)
    kernel = np.exp(-((codebook[i] - codebook[j]) ** 2).sum(1) / (4 * 0.8**2))
    error = kernel.std() / np.sqrt(len(kernel))
    assert abs(kernel.mean() - compute_overlap(shares, codebook, 0.8).overlap) < 4 * error < 0.01


def test_5_the_kernel_is_the_normalized_overlap_of_two_perturbed_codewords() -> None:
    """Two densities N(c, s^2) on a line, integrated on a grid, over the integral of one with itself."""
    grid, s = np.linspace(-30, 30, 60_001), 1.3

    def density(at: float) -> Any:
        return np.exp(-((grid - at) ** 2) / (2 * s**2))

    ratio = (density(0.0) * density(2.1)).sum() / (density(0.0) ** 2).sum()
    assert compute_overlap([0.5, 0.5], [[0.0], [2.1]], s).overlap == pytest.approx(0.5 + 0.5 * ratio, rel=1e-9)


@pytest.mark.parametrize("block", [1, 7, 31, 1_024])
def test_6_blocks_equal_the_double_sum(block: int) -> None:
    shares, codebook = draw_level()
    sigmas = [0.05, 0.6, 5.0]
    blocked = compute_overlaps(shares, codebook, sigmas, block=block)
    for own, sigma in zip(blocked, sigmas, strict=True):
        assert own.overlap == pytest.approx(loop_overlap(shares, codebook, sigma), rel=1e-12)
        assert own.distribution * own.geometry == pytest.approx(40 / own.capacity, rel=1e-12)


def test_7_shares_are_of_all_codes_of_the_level_and_sum_to_one() -> None:
    codes = np.array([0, 0, 3, 5])
    shares = compute_shares(codes, 8)
    assert shares.tolist() == [0.5, 0, 0, 0.25, 0, 0.25, 0, 0]
    assert compute_shares(codes, 8, [1, 2, 5, 0]).tolist() == [3 / 8, 0, 0, 5 / 8, 0, 0, 0, 0]
    with pytest.raises(DataError, match="codes from 0 to 4"):
        compute_shares(codes, 5)
    with pytest.raises(DataError, match="of the same level"):
        compute_overlap(shares, np.zeros((7, 2)), 1.0)
    with pytest.raises(DataError, match="sum to 1"):
        compute_overlap(shares / 2, np.zeros((8, 2)), 1.0)
    with pytest.raises(DataError, match="sigma: 0"):
        compute_overlap(shares, np.zeros((8, 2)), 0.0)
    with pytest.raises(DataError, match="one weight for each"):
        compute_shares(codes, 8, [1, 2])
    with pytest.raises(DataError, match="not all 0"):
        compute_shares(codes, 8, [0, 0, 0, 0])


def test_sigma_is_the_root_of_the_mean_variance_per_dimension() -> None:
    x = np.random.default_rng(0).normal(0, [1.0, 3.0], (5_000, 2))
    assert measure_sigma(x) ** 2 == pytest.approx((x[:, 0].var() + x[:, 1].var()) / 2, rel=1e-12)


# ---- usage and prefixes ------------------------------------------------------------------------------------------


def test_usage_against_loops() -> None:
    random = np.random.default_rng(0)
    codes, weights = random.integers(0, 9, 200) ** 2 % 11, random.random(200)
    usage = measure_usage(codes, 11, weights)
    shares = [weights[codes == code].sum() / weights.sum() for code in range(11)]
    assert usage.shares == pytest.approx(shares)
    assert usage.perplexity == pytest.approx(np.exp(-sum(p * np.log(p) for p in shares if p)))
    assert usage.gini == pytest.approx(np.abs(np.subtract.outer(shares, shares)).sum() / (2 * 11 * sum(shares)))
    assert usage.largest == pytest.approx(max(shares))
    assert usage.active == len(set(codes.tolist())) < 11


def test_prefixes_against_a_dictionary() -> None:
    random = np.random.default_rng(1)
    codes, weights = random.integers(0, [4, 6, 90], (300, 3)), random.integers(0, 20, 300)
    rows = [tuple(row) for row in codes.tolist()]
    for level, own in enumerate(measure_prefixes(codes, weights), 1):
        held: dict[tuple[int, ...], float] = defaultdict(float)
        after: dict[tuple[int, ...], set[int]] = defaultdict(set)
        for row, weight in zip(rows, weights.tolist()):
            held[row[:level]] += weight / weights.sum()
            after[row[: level - 1]].add(row[level - 1])
        ordered = sorted(held.values(), reverse=True)
        assert own.prefixes == len(held)
        assert own.exposure == pytest.approx(ordered)
        tops = [max(1, -(-len(held) * share // 100)) for share in (1, 5, 10)]
        assert own.top == pytest.approx([sum(ordered[:top]) for top in tops])
        sizes = [len(one) for one in after.values()]
        assert own.children == pytest.approx(np.mean(sizes))
        assert own.most_children == max(sizes)
        assert own.single == pytest.approx(np.mean([size == 1 for size in sizes]))
        entropy = sum(
            -p * np.log(p / sum(q for other, q in held.items() if other[: level - 1] == prefix[: level - 1]))
            for prefix, p in held.items()
            if p
        )
        assert own.choices == pytest.approx(np.exp(entropy))
    assert number_prefixes(codes)[:, -1].max() + 1 == len(set(rows))


def test_collisions_against_a_counter() -> None:
    codes = np.random.default_rng(2).integers(0, 5, (60, 2))
    counts = Counter(map(tuple, codes.tolist()))
    own = measure_collisions(codes)
    twins = sum(n for n in counts.values() if n > 1)
    assert (own.distinct, own.twins, own.rate, own.largest) == (len(counts), twins, twins / 60, max(counts.values()))
    assert own.group_sizes == Counter(counts.values())
    assert own.entropy == pytest.approx(-sum(n / 60 * np.log2(n / 60) for n in counts.values()))
    assert own.equal_vectors is None
    assert measure_collisions(codes, np.array([[0.0], [-0.0], *([[n + 1.0] for n in range(58)])])).equal_vectors == 2


def test_a_suffix_is_recognized_by_its_numbers() -> None:
    codes = np.array([[1, 1, 1], [1, 1, 0], [2, 1, 0], [1, 1, 2]])
    assert is_suffix(codes)
    assert not is_suffix(codes + [0, 0, 1])
    assert not is_suffix(codes[:, :1])
    assert not is_suffix([[1, 0], [1, 0]])


def test_the_top_share_of_few_prefixes_is_one_of_them() -> None:
    assert [count_top(n, 0.01) for n in (1, 99, 100, 101, 4_096)] == [1, 1, 1, 2, 41]
    assert count_top(20, 0.05) == 1


@pytest.mark.parametrize("codes", [[[0.5]], [[-1, 0]], [], [1, 2]], ids=["fraction", "negative", "none", "one column"])
def test_arrays_that_are_no_codes_are_refused(codes: Any) -> None:
    with pytest.raises(DataError, match="codes"):
        number_prefixes(codes)


# ---- retention: test 11 ------------------------------------------------------------------------------------------


def loop_hit_rate(vectors: Any, pairs: Any, cut: int) -> float:
    """Return HR@K by sorting, averaged over the orders of ties by counting positions."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    hits = []
    for first, second in pairs:
        scores = np.round(unit @ unit[first], 6)
        others = [n for n in range(len(vectors)) if n != first]
        before = sum(scores[n] > scores[second] for n in others)
        tied = sum(scores[n] == scores[second] for n in others)
        hits.append(np.mean([before + at < cut for at in range(tied)]))
    return float(np.mean(hits))


def draw_pairs(items: int, count: int, seed: int = 0) -> Any:
    random = np.random.default_rng(seed)
    first = random.integers(0, items, count)
    return np.stack([first, (first + random.integers(1, items, count)) % items], 1)


def test_11_hit_rates_against_loops_with_ties() -> None:
    random = np.random.default_rng(3)
    vectors = random.normal(size=(12, 4))[random.integers(0, 12, 40)]  # many twins
    pairs = draw_pairs(40, 60)
    assert (vectors[pairs[:, 0]] == vectors[pairs[:, 1]]).all(1).any()  # a pair of twins
    got = measure_hit_rates(vectors, pairs, [1, 5, 20])
    assert got == pytest.approx([loop_hit_rate(vectors, pairs, cut) for cut in (1, 5, 20)], abs=1e-9)


def test_11_the_item_vectors_themselves_keep_everything() -> None:
    x = np.random.default_rng(4).normal(size=(300, 8))
    own = measure_retention(x, {"itself": x, "scaled": 7 * x}, draw_pairs(300, 400))
    assert own.retention["itself"] == (1.0,) * 4
    assert own.retention["scaled"] == pytest.approx((1.0,) * 4, abs=0.01)
    assert own.cuts == (20, 50, 100, 200)


def test_11_random_vectors_are_near_chance_and_both_kinds_are_reported() -> None:
    random = np.random.default_rng(5)
    x = random.normal(size=(400, 16))
    nearest = np.argsort(-(x @ x.T) + np.diag(np.full(400, 1e9)), axis=1)[:, 0]
    pairs = np.stack([np.arange(400), nearest], 1)
    noise = {"quantized": random.normal(size=(400, 16)), "constant": np.ones((400, 16))}
    own = measure_retention(x, noise, pairs, [20, 50])
    assert own.original[1] > 0.9
    assert list(own.retention) == ["quantized", "constant"]
    assert own.hit_rates["quantized"] == pytest.approx(own.chance, abs=0.045)  # 3 standard errors
    assert own.hit_rates["constant"] == pytest.approx(own.chance, abs=1e-12)  # all tied: exactly chance


def test_retention_refuses_what_it_cannot_measure() -> None:
    x = np.eye(30)
    with pytest.raises(DataError, match="two different numbers"):
        measure_retention(x, {}, [[1, 1]])
    with pytest.raises(DataError, match="pairs of items"):
        measure_retention(x, {}, np.zeros((0, 2), int))
    with pytest.raises(DataError, match="more than 101 items"):
        measure_retention(x, {}, [[0, 1]], [100])
    with pytest.raises(DataError, match="one for each of 30 items"):
        measure_retention(x, {"short": x[:5]}, [[0, 1]])


# ---- matching, geometry, codebooks, pairs ------------------------------------------------------------------------


def loop_auc(positive: Any, negative: Any) -> float:
    return float(np.mean([(p > n) + 0.5 * (p == n) for p in positive for n in negative]))


def test_matching_against_loops() -> None:
    random = np.random.default_rng(6)
    codes, x = random.integers(0, 3, (50, 3)), random.normal(size=(50, 4))
    pairs = draw_pairs(50, 80)
    own = measure_matching(codes, pairs, {"x": x}, seed=3)
    for kind, others in draw_negatives(pairs, 50, 3).items():
        scores: dict[str, list[Any]] = {"x": [], WEIGHTED: [], EXACT: []}
        for both in (pairs, others):
            a, b = codes[both[:, 0]].tolist(), codes[both[:, 1]].tolist()
            weighted = [sum(2.0**-n for n in (1, 2, 3) if one[:n] == other[:n]) for one, other in zip(a, b)]
            scores[WEIGHTED].append(weighted)
            scores[EXACT].append([one == other for one, other in zip(a, b)])
            unit = x / np.linalg.norm(x, axis=1, keepdims=True)
            scores["x"].append(np.round((unit[both[:, 0]] * unit[both[:, 1]]).sum(1), 12))
        assert own.aucs[kind] == pytest.approx({name: loop_auc(*both) for name, both in scores.items()}, abs=1e-9)
    for depth, (pair, _) in enumerate(own.equal, 1):
        assert pair == np.mean([(codes[a, :depth] == codes[b, :depth]).all() for a, b in pairs])


def test_a_code_that_is_equal_in_the_middle_does_not_count() -> None:
    codes = [[0, 1, 1], [1, 1, 1], [2, 2, 2], [3, 3, 3], [4, 4, 4]]
    own = measure_matching(codes, [[0, 1]] * 4)
    assert own.aucs[UNIFORM] == {WEIGHTED: 0.5, EXACT: 0.5}
    assert own.equal == ((0.0, 0.0),) * 3


def test_negatives_keep_the_first_item_and_never_repeat_it() -> None:
    pairs = draw_pairs(20, 500)
    drawn = draw_negatives(pairs, 20, 0)
    for own in drawn.values():
        assert (own[:, 0] == pairs[:, 0]).all()
        assert (own[:, 0] != own[:, 1]).all()
    counts = np.bincount(drawn[UNIFORM][:, 1], minlength=20)
    assert 0 < counts.min() <= counts.max() < 60
    skewed = np.stack([np.arange(1, 20), np.zeros(19, int)], 1)
    assert (draw_negatives(skewed, 20, 0)[POPULAR][:, 1] == 0).all()


def test_geometry_of_chosen_spectra() -> None:
    random = np.random.default_rng(7)
    x = random.normal(size=(4_000, 6))
    x = (x - x.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T, ddof=0)).T)  # covariance is the identity
    even = measure_geometry(x)
    assert (even.participation, even.effective_rank, even.largest) == pytest.approx((6, 6, 1 / 6))
    scaled = measure_geometry(x * np.sqrt([8, 4, 2, 2, 0, 0]) + 50)
    shares = np.array([8, 4, 2, 2]) / 16
    assert scaled.participation == pytest.approx(1 / (shares**2).sum())
    assert scaled.effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert scaled.largest == pytest.approx(0.5)
    assert scaled.spectrum == pytest.approx([*shares, 0, 0], abs=1e-12)
    assert scaled.cosine > 0.99 > 0.5 > even.cosine
    circle = np.random.default_rng(0).normal(size=(20_000, 2))
    assert measure_geometry(circle).cosine == pytest.approx(2 / np.pi, abs=0.01)
    assert measure_geometry(x, seed=1).cosine != even.cosine == measure_geometry(x).cosine
    with pytest.raises(DataError, match="all equal"):
        measure_geometry(np.ones((5, 3)))
    with pytest.raises(DataError, match="two vectors"):
        measure_geometry(np.ones((1, 3)))


def test_residual_means_against_loops() -> None:
    random = np.random.default_rng(8)
    x, codes = random.normal(size=(80, 3)), random.integers(0, 4, (80, 2))
    codebooks, rest = compute_residual_means(x, codes, [6, 4]), x.copy()
    for level, size in enumerate((6, 4)):
        expected = [rest[codes[:, level] == k].mean(0) if (codes[:, level] == k).any() else 0 for k in range(size)]
        for own, mean in zip(codebooks[level], expected, strict=True):
            assert own == pytest.approx(mean)
        rest -= codebooks[level][codes[:, level]]
    assert sum_codewords(codes, codebooks) + rest == pytest.approx(x)
    residuals = [residual.copy() for residual in iterate_residuals(x, codes, codebooks)]
    assert residuals[0] == pytest.approx(x)
    assert residuals[-1] == pytest.approx(rest)
    sigmas, energy = measure_residuals(x, codes, codebooks)
    assert sigmas == pytest.approx([measure_sigma(residual) for residual in residuals])
    assert energy[0] == 1.0
    assert energy[2] == pytest.approx((rest**2).sum() / ((x - x.mean(0)) ** 2).sum())
    assert energy[0] > energy[1] > energy[2] > 0


def test_pairs_are_of_one_user_of_different_items_with_numbers() -> None:
    user = [1, 1, 1, 1, 2, 2, 3, 3, 3]
    item = [4, 4, 2, 7, 7, 4, 1, -1, 2]
    assert list_next_items(user, item).tolist() == [[4, 2], [2, 7], [7, 4]]
    assert list_next_items([1], [4]).shape == (0, 2)
    assert count_exposure(item, 9).tolist() == [0, 1, 2, 0, 3, 0, 0, 2, 0]
    pairs = np.arange(40).reshape(20, 2)
    drawn = sample_pairs(pairs, 5, 0)
    assert len(drawn) == 5 == len(set(map(tuple, drawn.tolist())) & set(map(tuple, pairs.tolist())))
    assert sample_pairs(pairs, 20, 0) is pairs
    with pytest.raises(DataError, match="one user and one item per event"):
        list_next_items([1, 2], [1])
