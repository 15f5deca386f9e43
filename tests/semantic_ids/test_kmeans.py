"""k-means against brute force and scikit-learn, with empty clusters, seeds and samples."""

from __future__ import annotations

import pytest
import torch
from sklearn.cluster import KMeans as Reference
from torch import Tensor

from longrec.errors import DataError
from longrec.semantic_ids import kmeans
from longrec.semantic_ids.kmeans import compute_inertia, compute_means, draw_centroids, fit_kmeans
from longrec.semantic_ids.nearest import find_nearest


def draw(rows: int, width: int = 8, centers: int = 30, seed: int = 1, offset: float = 0.0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    center_CD = 3 * torch.randn(centers, width, generator=random)
    own = torch.randint(centers, (rows,), generator=random)
    return center_CD[own] + torch.randn(rows, width, generator=random) + offset


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize(("rows", "size"), [(1, 1), (7, 3), (2_000, 300)])
def test_the_nearest_centroid_is_that_of_brute_force(rows: int, size: int, offset: float) -> None:
    """A common offset of all vectors, far larger than their distances, changes no code."""
    x_ND, c_KD = draw(rows, offset=offset), draw(size, seed=2, offset=offset)
    code_N = find_nearest(x_ND, c_KD)
    distance_NK = torch.cdist(x_ND.double(), c_KD.double())
    chosen_N = distance_NK.gather(1, code_N.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(chosen_N, distance_NK.amin(1), rtol=1e-3 if offset else 1e-5, atol=1e-5)


def test_of_equally_near_centroids_the_first_is_chosen() -> None:
    assert find_nearest(torch.tensor([[0.0], [5.0]]), torch.tensor([[1.0], [-1.0], [1.0]])).tolist() == [0, 0]


def test_the_means_are_those_of_brute_force() -> None:
    x_ND, start_KD = draw(500), draw(5, seed=3)
    code_N = torch.randint(4, (500,))
    mean_KD = compute_means(x_ND, code_N, start_KD)
    for code in range(4):
        torch.testing.assert_close(mean_KD[code], x_ND[code_N == code].mean(0))
    assert torch.equal(mean_KD[4], start_KD[4])


def test_the_inertia_falls_and_is_that_of_the_codes() -> None:
    x_ND = draw(3_000)
    fitted = fit_kmeans(x_ND, 40, tolerance=0, iterations=12)
    assert fitted.iterations == 12
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in zip(fitted.history, fitted.history[1:]))
    by_hand = (x_ND.double() - fitted.centroids[fitted.codes].double()).square().sum()
    assert fitted.inertia == pytest.approx(float(by_hand), rel=1e-5)
    assert torch.equal(fitted.codes, find_nearest(x_ND, fitted.centroids))


@pytest.mark.parametrize("size", [10, 60])
def test_the_inertia_is_that_of_scikit_learn(size: int) -> None:
    """One start each of a method with local optima: within 4 %, best of three within 2 %."""
    x_ND = draw(3_000, centers=40)
    ours = [fit_kmeans(x_ND, size, seed=seed, iterations=100).inertia for seed in range(3)]
    theirs = [Reference(size, n_init=1, random_state=seed).fit(x_ND.numpy()).inertia_ for seed in range(3)]
    assert sum(ours) < 1.04 * sum(theirs)
    assert min(ours) < 1.02 * min(theirs)


def test_drq_9_kmeans_leaves_no_cluster_empty_and_is_deterministic_with_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """DRQ 9. Started with equal centroids, all but one of which are empty, every cluster gets vectors."""
    x_ND = draw(400)
    first, second, other = (fit_kmeans(x_ND, 50, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.centroids, second.centroids)
    assert torch.equal(first.codes, second.codes)
    assert not torch.equal(first.codes, other.codes)
    monkeypatch.setattr(kmeans, "draw_centroids", lambda x, size, random: x[:1].repeat(size, 1))
    fitted = fit_kmeans(x_ND, 50)
    assert fitted.reseeded >= 49
    assert fitted.empty == 0
    assert int(torch.bincount(fitted.codes, minlength=50).min()) > 0


def test_fewer_different_vectors_than_centroids_leave_clusters_empty() -> None:
    x_ND = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).repeat(20, 1)
    fitted = fit_kmeans(x_ND, 5)
    assert fitted.empty == 3
    assert fitted.inertia == 0


def test_fewer_vectors_than_centroids_are_refused() -> None:
    with pytest.raises(DataError, match="3 vectors for 5 codes; expected at least as many"):
        fit_kmeans(draw(3), 5)


def test_a_sample_fits_the_centroids_and_all_vectors_are_assigned() -> None:
    x_ND = draw(4_000)
    sampled, whole = fit_kmeans(x_ND, 30, vectors_per_code=20), fit_kmeans(x_ND, 30)
    assert len(sampled.codes) == 4_000
    assert sampled.history[0] < 0.5 * whole.history[0]  # of 600 vectors
    assert sampled.inertia < 1.2 * whole.inertia
    assert torch.equal(fit_kmeans(x_ND, 30, vectors_per_code=1_000).codes, whole.codes)


def test_the_first_centroids_are_far_from_each_other() -> None:
    """k-means++ against random vectors of a cloud with few far groups, which random ones miss."""
    x_ND = torch.cat([draw(2_000, centers=1), draw(20, centers=20, seed=5) * 30])
    drawn = draw_centroids(x_ND, 20, torch.Generator().manual_seed(0), per_code=1_000)
    random = x_ND[torch.randperm(len(x_ND), generator=torch.Generator().manual_seed(0))[:20]]
    inertia = [compute_inertia(x_ND, one, find_nearest(x_ND, one)) for one in (drawn, random)]
    assert inertia[0] < 0.1 * inertia[1]
