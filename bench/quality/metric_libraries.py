"""Metrics of lists beside those of RecTools, ranx and scikit-learn, on random lists.

    pip install rectools ranx scikit-learn        # an environment of its own: numba is 200 MB
    PYTHONPATH=src python bench/quality/metric_libraries.py [--seeds 200] [--table FILE] [--freeze FILE]

Lists are shorter and longer than the cut, lack some of their relevant items, and some have no relevant item. Grades are
0 to 3. ``--freeze`` writes a few inputs with the values of the libraries, which tests compare with.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rectools.metrics import (
    MAP,
    MRR,
    NDCG,
    CatalogCoverage,
    HitRate,
    MeanInvUserFreq,
    Precision,
    Recall,
    Serendipity,
)
from scipy.stats import entropy
from sklearn.metrics import ndcg_score
from sklearn.metrics.pairwise import cosine_distances

from longrec import metrics

CUTS = (1, 3, 5, 20)
ITEMS, USERS, LISTS = 40, 30, 12
Values = dict[str, list[float]]


def draw(seed: int) -> dict[str, Any]:
    """Return random lists, relevant items with grades, earlier events and vectors of items."""
    random = np.random.default_rng(seed)
    lists = [random.permutation(ITEMS)[: random.integers(1, 15)].tolist() for _ in range(LISTS)]
    relevant = []
    for number, listed in enumerate(lists):
        others = random.permutation(ITEMS)[: random.integers(0, 4)].tolist()
        chosen = dict.fromkeys([*random.permutation(listed)[: random.integers(0, 5)].tolist(), *others])
        relevant.append({} if number == 0 else {int(item): int(random.integers(1, 4)) for item in chosen})
    earlier = np.unique(np.stack([random.integers(0, USERS, 150), random.integers(0, ITEMS - 4, 150)], 1), axis=0)
    return {
        "seed": seed,
        "lists": lists,
        "relevant": [list(map(list, one.items())) for one in relevant],
        "earlier": earlier.tolist(),
        "vectors": random.normal(size=(ITEMS, 3)).round(3).tolist(),
    }


def ours(case: dict[str, Any], k: int) -> Values:
    """Return the values of this project per list."""
    lists, relevant = case["lists"], case["relevant"]
    item = np.concatenate(lists)
    group = np.repeat(np.arange(len(lists)), [len(one) for one in lists])
    rank = np.concatenate([np.arange(len(one)) for one in lists])
    ranks = metrics.RelevantRanks.of_items(
        item,
        group,
        [one for own in relevant for one, _ in own],
        np.repeat(np.arange(len(lists)), [len(own) for own in relevant]),
        len(lists),
        [grade for own in relevant for _, grade in own],
    )
    linear = metrics.rate_lists(ranks, [k], gain="linear", divide_by="relevant")
    values = {name.partition("@")[0]: value.tolist() for name, value in linear.items()}
    values["ndcg linear"] = values.pop("ndcg")
    values["ndcg exponential"] = metrics.list_ndcg(ranks, k).tolist()
    binary = metrics.RelevantRanks(ranks.owner, ranks.rank, np.ones(len(ranks.owner)), ranks.lists)
    values["ndcg binary"] = metrics.list_ndcg(binary, k).tolist()
    earlier = np.array(case["earlier"])
    users_of_item = np.bincount(earlier[:, 1], minlength=ITEMS)
    share = metrics.item_shares(users_of_item, len(np.unique(earlier[:, 0])))
    top = rank < k
    values["novelty"] = metrics.list_novelty(share[item[top]], group[top], len(lists)).tolist()
    order = {count: number for number, count in enumerate(sorted(set(users_of_item) - {0}, reverse=True))}
    popularity_rank = np.array([order.get(count, np.inf) for count in users_of_item])
    hit = [dict(relevant[own]).get(one, 0) > 0 for own, one in zip(group.tolist(), item.tolist())]
    values["serendipity"] = metrics.list_serendipity(
        hit, rank, popularity_rank[item], group, len(lists), k, catalog=ITEMS
    ).tolist()
    vectors = np.array(case["vectors"])
    values["diversity"] = metrics.list_diversity(vectors[item[top]], group[top], len(lists)).tolist()
    exposure = np.bincount(item[top], minlength=ITEMS)
    values["coverage"] = [metrics.coverage(item[top], ITEMS)]
    values["entropy"] = [metrics.entropy_of_exposure(exposure)]
    return values


def of_rectools(case: dict[str, Any], k: int) -> Values:
    """Return the values of RecTools. It has no list without a relevant item, which is NaN here."""
    rows = [(u, i, r + 1) for u, own in enumerate(case["lists"]) for r, i in enumerate(own)]
    reco = pd.DataFrame(rows, columns=["user_id", "item_id", "rank"])
    truth = pd.DataFrame(
        [(u, i) for u, own in enumerate(case["relevant"]) for i, _ in own], columns=["user_id", "item_id"]
    )
    earlier = pd.DataFrame(case["earlier"], columns=["user_id", "item_id"])
    catalog = list(range(ITEMS))
    every = range(len(case["lists"]))
    by_list: dict[str, pd.Series] = {
        "hr": HitRate(k=k).calc_per_user(reco, truth),
        "recall": Recall(k=k).calc_per_user(reco, truth),
        "precision": Precision(k=k).calc_per_user(reco, truth),
        "mrr": MRR(k=k).calc_per_user(reco, truth),
        "map": MAP(k=k).calc_per_user(reco, truth),
        "ndcg binary": NDCG(k=k, divide_by_achievable=True).calc_per_user(reco, truth),
        "novelty": MeanInvUserFreq(k=k).calc_per_user(reco, earlier),
        "serendipity": Serendipity(k=k).calc_per_user(reco, truth, earlier, catalog),
    }
    values = {name: series.reindex(every).astype(float).tolist() for name, series in by_list.items()}
    return {**values, "coverage": [CatalogCoverage(k=k, normalize=True).calc(reco, catalog)]}


def of_ranx(case: dict[str, Any], k: int) -> Values:
    """Return the values of ranx. A list without a relevant item is not part of its judgments, and is NaN here."""
    from ranx import Qrels, Run, evaluate

    kept = [number for number, own in enumerate(case["relevant"]) if own]
    qrels = Qrels({str(n): {str(i): grade for i, grade in case["relevant"][n]} for n in kept})
    run = Run({str(n): {str(i): 100.0 - r for r, i in enumerate(case["lists"][n])} for n in kept})
    names = {
        "hr": "hit_rate",
        "recall": "recall",
        "precision": "precision",
        "mrr": "mrr",
        "map": "map",
        "ndcg linear": "ndcg",
        "ndcg exponential": "ndcg_burges",
    }
    evaluate(qrels, run, [f"{theirs}@{k}" for theirs in names.values()], return_mean=False)
    result = {}
    for name, theirs in names.items():
        scores = run.scores[f"{theirs}@{k}"]
        result[name] = [scores.get(str(n), float("nan")) for n in range(len(case["lists"]))]
    return result


def of_sklearn(case: dict[str, Any], k: int) -> Values:
    """Return the values of scikit-learn and scipy: NDCG of all items of the catalog, diversity and entropy."""
    linear, exponential, diversity = [], [], []
    exposure = np.zeros(ITEMS)
    for listed, own in zip(case["lists"], case["relevant"]):
        grade, score = np.zeros((1, ITEMS)), -np.arange(ITEMS, dtype=float)[None] - 1000
        for item, one in own:
            grade[0, item] = one
        score[0, listed] = -np.arange(len(listed))
        # Relevant items outside of the list come last, so that their ranks are below every cut that the list fills.
        if len(listed) < k:
            linear.append(np.nan)
            exponential.append(np.nan)
        else:
            linear.append(ndcg_score(grade, score, k=k) if own else np.nan)
            exponential.append(ndcg_score(2**grade - 1, score, k=k) if own else np.nan)
        top = listed[:k]
        exposure[top] += 1
        distance = cosine_distances(np.array(case["vectors"])[top])
        pairs = distance[np.triu_indices(len(top), 1)]
        diversity.append(float(pairs.mean()) if len(pairs) else np.nan)
    return {
        "ndcg linear": linear,
        "ndcg exponential": exponential,
        "diversity": diversity,
        "entropy": [float(entropy(exposure, base=2))],
    }


LIBRARIES: dict[str, Callable[[dict[str, Any], int], Values]] = {
    "rectools": of_rectools,
    "ranx": of_ranx,
    "scikit-learn": of_sklearn,
}


def list_choices() -> list[str]:
    """Return a table of the cases in which the defaults of libraries differ, with the value of each."""
    from ranx import Qrels, Run, evaluate

    def rectools(metric: Any, lists: dict[int, str], relevant: dict[int, str]) -> float:
        rows = [(u, i, r + 1) for u, own in lists.items() for r, i in enumerate(own)]
        truth = [(u, i) for u, own in relevant.items() for i in own]
        reco = pd.DataFrame(rows, columns=["user_id", "item_id", "rank"])
        return float(metric.calc(reco, pd.DataFrame(truth, columns=["user_id", "item_id"])))

    def ranx(metric: str, lists: dict[str, dict[str, float]], relevant: dict[str, dict[str, int]]) -> float:
        return float(evaluate(Qrels(relevant), Run(lists), metric))

    grade, tied, k3 = [1, 3], [0.5, 0.5], {"u": {"a": 3.0, "b": 2.0, "c": 1.0}}
    two = {"u": {"a": 2.0, "b": 1.0}, "v": {"a": 2.0, "b": 1.0}}
    rows = [
        [
            "gain of grades 1, 3 in this order, NDCG@2",
            "grades are not read",
            f"{ranx('ndcg@2', {'u': {'a': 2.0, 'b': 1.0}}, {'u': {'a': 1, 'b': 3}}):.4f} (`ndcg`), "
            f"{ranx('ndcg_burges@2', {'u': {'a': 2.0, 'b': 1.0}}, {'u': {'a': 1, 'b': 3}}):.4f} (`ndcg_burges`)",
            f"{ndcg_score([grade], [[2, 1]], k=2):.4f}",
            f"{metrics.ndcg_at_k(grade, [2, 1], [7, 7], 2):.4f} (`exponential`), "
            f"{metrics.ndcg_at_k(grade, [2, 1], [7, 7], 2, gain='linear'):.4f} (`linear`)",
        ],
        [
            "the only relevant item first of three, NDCG@3",
            f"{rectools(NDCG(k=3), {1: 'abc'}, {1: 'a'}):.4f}, "
            f"{rectools(NDCG(k=3, divide_by_achievable=True), {1: 'abc'}, {1: 'a'}):.4f} (`divide_by_achievable`)",
            f"{ranx('ndcg@3', k3, {'u': {'a': 1}}):.4f}",
            f"{ndcg_score([[1, 0, 0]], [[3, 2, 1]], k=3):.4f}",
            f"{metrics.ndcg_at_k([1, 0, 0], [3, 2, 1], [7, 7, 7], 3):.4f}",
        ],
        [
            "a relevant item first, two more relevant, MAP@1",
            f"{rectools(MAP(k=1), {1: 'abc'}, {1: 'abc'}):.4f}, "
            f"{rectools(MAP(k=1, divide_by_k=True), {1: 'abc'}, {1: 'abc'}):.4f} (`divide_by_k`)",
            f"{ranx('map@1', k3, {'u': {'a': 1, 'b': 1, 'c': 1}}):.4f}",
            "",
            f"{metrics.map_at_k([1, 1, 1], [3, 2, 1], [7, 7, 7], 1):.4f} (`reachable`), "
            f"{metrics.map_at_k([1, 1, 1], [3, 2, 1], [7, 7, 7], 1, divide_by='relevant'):.4f} (`relevant`)",
        ],
        [
            "a hit, and a list without a relevant item, NDCG@2",
            f"{rectools(NDCG(k=2, divide_by_achievable=True), {1: 'ab', 2: 'ab'}, {1: 'a'}):.4f}",
            f"{ranx('ndcg@2', two, {'u': {'a': 1}, 'v': {'a': 0}}):.4f}",
            f"{ndcg_score([[1, 0], [0, 0]], [[2, 1], [2, 1]], k=2):.4f}",
            f"{metrics.ndcg_at_k([1, 0, 0, 0], [2, 1, 2, 1], [7, 7, 8, 8], 2):.4f} (`skip`), "
            f"{metrics.ndcg_at_k([1, 0, 0, 0], [2, 1, 2, 1], [7, 7, 8, 8], 2, empty='zero'):.4f} (`zero`)",
        ],
        [
            "a relevant item and another of the same score, NDCG@2",
            "ranks have no ties",
            " or ".join(
                dict.fromkeys(
                    f"{ranx('ndcg@2', {'u': dict(zip(order, tied))}, {'u': {'a': 1}}):.4f}" for order in ("ab", "ba")
                )
            ),
            f"{ndcg_score([[1, 0]], [tied], k=2):.4f}",
            f"{metrics.ndcg_at_k([1, 0], tied, [7, 7], 2):.4f} (rows: least relevant first), "
            f"{metrics.list_ndcg(metrics.RelevantRanks.of_targets([0.5]), 2)[0]:.4f} (targets: mid rank)",
        ],
    ]
    head = ["case", "RecTools", "ranx", "scikit-learn", "here"]
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def compare(cases: list[dict[str, Any]]) -> dict[tuple[str, str], list[float]]:
    """Return the number of values compared and the largest difference by metric and library."""
    result: dict[tuple[str, str], list[float]] = {}
    for case in cases:
        for k in CUTS:
            own = ours(case, k)
            for library, measure in LIBRARIES.items():
                for name, theirs in measure(case, k).items():
                    a, b = np.array(own[name]), np.array(theirs)
                    both = np.isfinite(b)
                    assert np.isfinite(a[both]).all(), (library, name, k, case["seed"])
                    one = result.setdefault((name, library), [0, 0.0])
                    one[0] += int(both.sum())
                    one[1] = max(one[1], float(np.abs(a[both] - b[both]).max(initial=0)))
    return result


def main() -> None:
    """Compare, and write the table or the frozen values."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--freeze", type=Path)
    args = parser.parse_args()
    versions = {name: version(name) for name in (*LIBRARIES, "scipy")}
    compared = compare([draw(seed) for seed in range(args.seeds)])
    lines = [
        "# Metrics of lists beside those of other libraries",
        "",
        f"{args.seeds} seeds of {LISTS} random lists of 1 to 14 of {ITEMS} items, with 0 to 7 relevant ones, "
        f"of grades 1 to 3, cut at {', '.join(map(str, CUTS))}. "
        f"{', '.join(f'{name} {one}' for name, one in versions.items())}.",
        "`PYTHONPATH=src python bench/quality/metric_libraries.py --table FILE`",
        "",
        "| metric | library | values | largest difference |",
        "| --- | --- | --- | --- |",
    ]
    lines += [f"| {name} | {library} | {int(n):,} | {d:.1e} |" for (name, library), (n, d) in sorted(compared.items())]
    lines += ["", "Where the defaults differ:", "", *list_choices()]
    print("\n".join(lines))
    if args.table:
        args.table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if args.freeze:
        cases = []
        for seed in (1_000, 1_001, 1_002):
            case = draw(seed)
            values = {
                library: {f"{name}@{k}": one for k in (1, 5, 20) for name, one in measure(case, k).items()}
                for library, measure in LIBRARIES.items()
            }
            cases.append({**case, "values": values})
        content = json.dumps({"versions": versions, "items": ITEMS, "cases": cases})
        args.freeze.write_text(content.replace("NaN", "null") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
