"""Benchmark of re-ranking by diversity: CPU time, and what diversity costs in NDCG.

    python bench/rerank_speed.py [--lists 200] [--run runs/din --vectors runs/sasrec]

- CPU milliseconds of MMR, of greedy DPP and of DPP with a window, for 50 of 1,000 candidates with vectors of width 64.
  The target is 5 ms on one core.
- The curve of NDCG@K against intra-list diversity over the trade-off of each method. Lists are generated: items of
  clusters, true relevance of a cluster and of an item, scores with noise. NDCG is that of the true relevance. A good
  method loses little NDCG for a given diversity, so the curves are also compared at equal diversity.
- With ``--run``, the curve of a finished run of a ranker: the lists are the requests of its test split, with the scores
  of the run, the labels as relevance, and the item vectors of ``--vectors``, a run of a vector retriever on the same
  log.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import numpy as np
from numpy.typing import NDArray

from longrec.metrics import intra_list_diversity, ndcg_at_k
from longrec.pipeline.dpp import dpp
from longrec.pipeline.mmr import mmr

CANDIDATES, KEPT, WIDTH, LIMIT_MS = 1_000, 50, 64, 5.0
SHOWN = 10
TRADE_OFFS = (1.0, 0.99, 0.98, 0.97, 0.96, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)

Order = Callable[[NDArray[Any], NDArray[Any], int, float], NDArray[np.int64]]
METHODS: dict[str, Order] = {"mmr": mmr, "dpp": lambda *arguments: dpp(*arguments)[0]}


@dataclass(frozen=True)
class List:
    """One list: scores to order by, true relevance, and vectors."""

    score: NDArray[np.float64]
    relevance: NDArray[np.float64]
    vectors: NDArray[np.float64]


def measure_speed(repeats: int = 30) -> dict[str, float]:
    """Return the median CPU milliseconds of each method."""
    random = np.random.default_rng(0)
    score, vectors = random.normal(size=CANDIDATES), random.normal(size=(CANDIDATES, WIDTH)).astype(np.float32)
    calls: dict[str, Callable[[], Any]] = {
        "mmr": lambda: mmr(score, vectors, KEPT, 0.7),
        "dpp": lambda: dpp(score, vectors, KEPT, 0.7),
        "dpp, window of 10": lambda: dpp(score, vectors, KEPT, 0.7, window=10),
    }
    result = {}
    for name, call in calls.items():
        call()
        durations = []
        for _ in range(repeats):
            began = time.process_time()
            call()
            durations.append(time.process_time() - began)
        result[name] = 1000 * float(np.median(durations))
    return result


def generate_lists(count: int, items: int = 100, clusters: int = 10, width: int = 16) -> Iterator[List]:
    """Yield lists of items in clusters, whose relevance is that of the cluster and of the item, scored with noise."""
    random = np.random.default_rng(1)
    for _ in range(count):
        cluster = random.integers(0, clusters, items)
        vectors = random.normal(size=(clusters, width))[cluster] + 0.5 * random.normal(size=(items, width))
        relevance = random.normal(size=clusters)[cluster] + 0.7 * random.normal(size=items)
        yield List(relevance + 0.7 * random.normal(size=items), relevance, vectors)


def read_lists(run: str, retriever: str, count: int) -> Iterator[List]:
    """Yield the requests of the test split of a run with several items and a positive label."""
    import torch

    from longrec.data.gather import to_tensor
    from longrec.exporting.catalog import read_catalog
    from longrec.models.core.kinds import VectorRetriever
    from longrec.training.finished_run import open_run

    table, log, model = open_run(run).predictions(), open_run(run).log(), open_run(retriever).model()
    source = open_run(retriever).log()
    if not isinstance(model, VectorRetriever):
        raise SystemExit(f"{retriever} has no vectors of items")
    if source.items.keys.values != log.items.keys.values:
        raise SystemExit("the two runs are of logs with different items")
    rows = read_catalog(source.items)
    with torch.no_grad():
        own = {f.name: to_tensor(rows[f.name]) for f in source.fields().features if f.side == "item"}
        vectors = model.items(own).numpy()
    row, label, score = (table[name].to_numpy() for name in ("row", "label", "score"))
    item = log.events.columns["item"].take(row) - 1
    starts = (np.diff(log.user(row), prepend=-1) != 0) | (np.diff(log.timestamps.take(row), prepend=-1) != 0)
    spans = np.split(np.arange(len(row)), np.flatnonzero(starts)[1:])
    usable = [span for span in spans if len(span) > SHOWN and label[span].any()]
    for span in usable[:count]:
        yield List(score[span].astype(np.float64), label[span].astype(np.float64), vectors[item[span]])


def rate(lists: list[List], order: Order, trade_off: float) -> tuple[float, float]:
    """Return NDCG@10 of true relevance, and the intra-list diversity of the first 10 items, means over lists."""
    relevance, score, group, shown = [], [], [], []
    for number, one in enumerate(lists):
        chosen = order(one.score, one.vectors, SHOWN, trade_off)
        position = np.full(len(one.score), -np.inf)
        position[chosen] = -np.arange(len(chosen))
        grades = one.relevance - one.relevance.min()
        relevance.append(4 * grades / grades.max())
        score.append(np.where(np.isfinite(position), position, -1e6))
        group.append(np.full(len(one.score), number))
        shown.append(one.vectors[chosen])
    owners = np.repeat(np.arange(len(lists)), [len(one) for one in shown])
    ndcg = ndcg_at_k(np.concatenate(relevance), np.concatenate(score), np.concatenate(group), SHOWN)
    return ndcg, intra_list_diversity(np.concatenate(shown), owners)


def trace_curves(lists: list[List]) -> dict[str, NDArray[np.float64]]:
    """Return NDCG and diversity of each method, ``[trade-offs, 2]``."""
    return {name: np.array([rate(lists, order, one) for one in TRADE_OFFS]) for name, order in METHODS.items()}


def interpolate(curve: NDArray[np.float64], diversity: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the best NDCG that a curve reaches with at least a diversity, linear between its points."""
    order = np.argsort(curve[:, 1])
    best = np.maximum.accumulate(curve[order, 0][::-1])[::-1]
    return np.interp(diversity, curve[order, 1], best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", type=int, default=200)
    parser.add_argument("--run")
    parser.add_argument("--vectors")
    args = parser.parse_args()
    if bool(args.run) != bool(args.vectors):
        parser.error("--run needs --vectors, and the reverse")
    print(f"{KEPT} of {CANDIDATES:,} candidates, width {WIDTH}, on {machine.get_processor_name()}")
    for name, milliseconds in measure_speed().items():
        print(f"  {name:<20}{milliseconds:6.2f} ms of CPU, {'within' if milliseconds <= LIMIT_MS else 'ABOVE'} 5 ms")
    lists = list(read_lists(args.run, args.vectors, args.lists) if args.run else generate_lists(args.lists))
    curves = trace_curves(lists)
    source = f"lists of {Path(args.run)}" if args.run else "generated lists"
    print(f"\nNDCG@{SHOWN} and intra-list diversity of {len(lists):,} {source}")
    print("  trade-off    " + "".join(f"{name + ' ndcg':>12}{'diversity':>11}" for name in curves))
    for index, trade_off in enumerate(TRADE_OFFS):
        print(f"  {trade_off:9.2f}    " + "".join(f"{c[index, 0]:12.4f}{c[index, 1]:11.4f}" for c in curves.values()))
    low = max(curve[:, 1].min() for curve in curves.values())
    high = min(curve[:, 1].max() for curve in curves.values())
    at = np.linspace(low, high, 9)[:-1]
    own = {name: interpolate(curve, at) for name, curve in curves.items()}
    print("\nNDCG at equal diversity\n  diversity" + "".join(f"{name:>10}" for name in own) + "   dpp - mmr")
    for index, diversity in enumerate(at):
        print(f"  {diversity:9.4f}" + "".join(f"{one[index]:10.4f}" for one in own.values())
              + f"{own['dpp'][index] - own['mmr'][index]:+12.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
