"""Semantic IDs: speed of residual k-means beside faiss, and inertia within a capacity beside k-means-constrained.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python bench/semantic_ids.py speed [--items 1000000] [--write]
    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python bench/semantic_ids.py capacity [--constrained FOLDER] [--write]

``speed``: both libraries fit 3 levels of 1,024 codes to the same vectors, level by level in turns, in one process on
one thread: the same number of iterations over all vectors, each with its own first centroids. CPU seconds include
these, the last assignment and the residuals.

``capacity``: k-means with at most tau N / K vectors per code, for k-means-constrained by minimum-cost flow in every
iteration, here by greedy repair. It is no dependency of LongRec: ``pip install --target FOLDER k-means-constrained``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from longrec.semantic_ids.capacity import Capacity
from longrec.semantic_ids.kmeans import fit_kmeans

sys.path.insert(1, str(Path(__file__).resolve().parent))
import machine

Vectors = NDArray[np.float32]


def draw(items: int, width: int, seed: int) -> Vectors:
    """Return vectors around 3,000 centers of unequal popularity, as those of items are."""
    random = np.random.default_rng(seed)
    centers = random.normal(size=(3_000, width)).astype(np.float32)
    share = random.dirichlet(np.full(len(centers), 0.5))
    vectors = centers[random.choice(len(centers), items, p=share)]
    return vectors + 0.7 * random.normal(size=(items, width)).astype(np.float32)


def fit_ours(rest: Vectors, size: int, iterations: int, seed: int) -> tuple[Vectors, float]:
    """Fit one level. Return its residuals and inertia."""
    fitted = fit_kmeans(torch.from_numpy(rest), size, iterations=iterations, tolerance=0, seed=seed)
    return rest - fitted.centroids.numpy()[fitted.codes.numpy()], fitted.inertia


def fit_faiss(rest: Vectors, size: int, iterations: int, seed: int) -> tuple[Vectors, float]:
    """Fit one level with faiss. Return its residuals and inertia."""
    import faiss

    faiss.omp_set_num_threads(1)
    kmeans = faiss.Kmeans(
        rest.shape[1], size, niter=iterations, max_points_per_centroid=len(rest), min_points_per_centroid=1, seed=seed
    )
    kmeans.train(rest)
    distances, codes = kmeans.index.search(rest, 1)
    return rest - kmeans.centroids[codes[:, 0]], float(distances.sum(dtype=np.float64))


def compare_speed(items: int, width: int, levels: int, size: int, iterations: int) -> str:
    """Return the table of CPU seconds and inertia, level by level."""
    fits: dict[str, Callable[[Vectors, int, int, int], tuple[Vectors, float]]] = {
        "longrec": fit_ours,
        "faiss": fit_faiss,
    }
    vectors = draw(items, width, 1)
    rest, seconds = dict.fromkeys(fits, vectors), dict.fromkeys(fits, 0.0)
    rows = []
    for level in range(levels):
        for name in list(fits) if level % 2 == 0 else list(fits)[::-1]:
            began = time.process_time()
            rest[name], inertia = fits[name](rest[name], size, iterations, level)
            used = time.process_time() - began
            seconds[name] += used
            rows.append([str(level + 1), name, f"{used:.1f}", f"{inertia:.4g}", machine.read_load()])
            print(*rows[-1], flush=True)
    ratio = seconds["longrec"] / seconds["faiss"]
    head = (
        f"# Residual k-means: {items:,} x {width}, {levels} levels of {size:,} codes, {iterations} iterations, one "
        f"thread\n\nCPU seconds in all: longrec {seconds['longrec']:.1f}, faiss {seconds['faiss']:.1f}, ratio "
        f"{ratio:.2f} (bound: 1.5).\n\n"
    )
    return head + machine.format_table(["level", "library", "CPU s", "inertia", "load"], rows)


def compare_capacity(seeds: int) -> str:
    """Return the table of inertia within a capacity."""
    from k_means_constrained import KMeansConstrained

    rows, worst = [], 0.0
    for items, size in ((2_000, 16), (5_000, 64)):
        for tau in (1.05, 1.5):
            ours, theirs, times = [], [], np.zeros(2)
            for seed in range(seeds):
                vectors = draw(items, 16, 10 + seed)
                limit = int(np.ceil(tau * items / size))
                began = time.process_time()
                # a weight of 1 each: the load bound is the number of items
                capacity = Capacity(tau=limit * size / items, items_factor=float("inf"))
                fitted = fit_kmeans(torch.from_numpy(vectors), size, seed=seed, capacity=capacity, iterations=100)
                times[0] += time.process_time() - began
                assert int(torch.bincount(fitted.codes).max()) <= limit
                ours.append(fitted.inertia)
                began = time.process_time()
                model = KMeansConstrained(size, size_max=limit, random_state=seed, n_init=1, max_iter=100, n_jobs=1)
                theirs.append(float(model.fit(vectors).inertia_))
                times[1] += time.process_time() - began
            ratio = float(np.mean(ours) / np.mean(theirs))
            worst = max(worst, ratio)
            cells = [f"{items:,}", str(size), f"{tau:g}", f"{np.mean(ours):.5g}", f"{np.mean(theirs):.5g}"]
            rows.append([*cells, f"{100 * (ratio - 1):+.2f} %", *(f"{one / seeds:.2f}" for one in times)])
            print(*rows[-1], flush=True)
    columns = ["items", "codes", "tau", "longrec", "k-means-constrained", "inertia", "CPU s", "CPU s of the other"]
    head = (
        f"# k-means within a capacity, mean of {seeds} seeds, one start each\n\nLargest inertia relative to "
        f"k-means-constrained: {100 * (worst - 1):+.2f} % (bound: +3 %).\n\n"
    )
    return head + machine.format_table(columns, rows)


def main() -> None:
    """Measure, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "capacity"])
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--levels", type=int, default=3)
    parser.add_argument("--size", type=int, default=1_024)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--constrained", help="folder that k-means-constrained is installed in")
    parser.add_argument("--write", action="store_true", help="write the result to bench/results")
    own = parser.parse_args()
    torch.set_num_threads(1)
    if own.constrained:
        sys.path.append(own.constrained)
    is_speed = own.what == "speed"
    text = (
        compare_speed(own.items, own.width, own.levels, own.size, own.iterations)
        if is_speed
        else compare_capacity(own.seeds)
    )
    if own.write:
        machine.write("residual_kmeans" if is_speed else "capacity_kmeans", text)
    else:
        print(text)


if __name__ == "__main__":
    main()
