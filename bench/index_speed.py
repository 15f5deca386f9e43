"""Speed of the index of items: exact search and inverted lists, with filters, one query at a time on one thread.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python bench/index_speed.py [--items 200000] [--width 64] [--requests 100]

Vectors of items lie around 2,000 centers (clustered) or nowhere in particular. Queries are drawn like the items of
other seeds, and half of them tune ``nprobe``. Latencies are medians of CPU milliseconds for the 100 best items, which
other processes disturb less.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.index.build import IndexSettings, build_index
from longrec.index.item_index import ItemIndex

sys.path.insert(1, str(Path(__file__).resolve().parent))
import machine

K = 100


def draw(clustered: bool, rows: int, width: int, seed: int) -> NDArray[np.float32]:
    """Return vectors with norms that vary, as those of popular and rare items do."""
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((rows, width))
    if clustered:
        centers = np.random.default_rng(99).standard_normal((2_000, width))
        vectors = centers[random.integers(0, len(centers), rows)] + 0.3 * vectors
    return (vectors * random.lognormal(0, 0.2, (rows, 1))).astype(np.float32)


def measure(call: Callable[[NDArray[np.float32]], Any], requests: NDArray[np.float32]) -> float:
    """Return the median CPU milliseconds of a call per request."""
    seconds = []
    for request in requests:
        began = time.thread_time()
        call(request)
        seconds.append(time.thread_time() - began)
    return 1e3 * float(np.median(seconds))


def measure_flat(vectors: NDArray[np.float32], requests: NDArray[np.float32]) -> float:
    """Return the milliseconds of exact search by faiss, for comparison."""
    import faiss

    faiss.omp_set_num_threads(1)
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    return measure(partial(flat.search, k=K), requests)


def list_rows(items: int, width: int, count: int) -> Iterator[str]:
    """Yield the lines of the table."""
    random = np.random.default_rng(3)
    masks = {share: random.random(items) < share for share in (0.5, 0.01)}
    for clustered in (True, False):
        vectors = draw(clustered, items, width, 1)
        requests = np.stack([draw(clustered, 4, width, 1_000 + seed) for seed in range(count)])
        name = "clustered" if clustered else "unclustered"
        for interests in (1, 4):
            own = requests[:, :interests]
            yield f"| {name} | faiss Flat, for comparison | {interests} | {measure_flat(vectors, own):.2f} | | | | | |"
            for kind in ("exact", "ivf"):
                lists, facts = build_index(vectors, IndexSettings(kind, 0.98, K), own.copy)
                index, exact = ItemIndex(vectors, lists), ItemIndex(vectors)
                times = [measure(partial(index.search, k=K), own[1::2])]
                recalls = [facts.recall]
                for mask in masks.values():
                    times.append(measure(partial(index.search, k=K, allowed=mask), own[1::2]))
                    pairs = [(index.search(one, K, mask)[0], exact.search(one, K, mask)[0]) for one in own[1::2]]
                    recalls.append(float(np.mean([np.isin(best, rows).mean() for rows, best in pairs])))
                size = vectors.nbytes / 1e6 + (0 if lists is None else (vectors.nbytes + 8 * items) / 1e6)
                what = "exact" if lists is None else f"ivf, {facts.lists} lists, nprobe {facts.nprobe}"
                cells = [f"{one:.2f}" for one in times] + [f"{one:.3f}" for one in recalls]
                yield (
                    f"| {name} | {what} | {interests} | {' | '.join(cells[:3])} | {' / '.join(cells[3:])} | "
                    f"{facts.seconds:.1f} | {size:.0f} |"
                )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--requests", type=int, default=100)
    arguments = parser.parse_args()
    kept = "ms, 50 % kept | ms, 1 % kept"
    lines = [f"| vectors | index | interests | ms | {kept} | recall@{K}: all / 50 % / 1 % | build and tune, s | MB |"]
    lines.append("| --- " * 9 + "|")
    for line in list_rows(arguments.items, arguments.width, arguments.requests):
        print(line, flush=True)
        lines.append(line)
    title = f"# Index of items: {arguments.items:,} vectors of width {arguments.width}, one query at a time"
    print(machine.write("index_speed", "\n".join([title, "", *lines])))


if __name__ == "__main__":
    main()
