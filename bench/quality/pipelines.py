"""Pipelines end to end: recall, rank, re-rank and mix on MovieLens-1M and KuaiRand, each against its own stages.

    python bench/quality/pipelines.py movielens --data FOLDER [--requests 3000]
    python bench/quality/pipelines.py kuairand --data FOLDER
    python bench/quality/pipelines.py kuairand --table

It trains what is missing, exports the bundles, writes the pipelines, and runs ``longrec evaluate`` on each. On
MovieLens-1M the retrievers are the runs of ``next_item.py`` on ``movielens_n4``, which have to be finished. The ranker
is DIN. On MovieLens it learns to tell a rating from four items drawn at the same timestamp, two of them by popularity.
On KuaiRand it learns clicks on impressions.

Two further rankers are trained on the candidates of the pipeline itself (``longrec candidates``), for all requests of
valid: ``own_ranked`` reads scores, ranks and sources of the recall stages beside the features of DIN, and ``own_plain``
does not. The newest fifth of these requests chooses the weights.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import kuairand
import next_item
import next_item_logs
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import yaml
from numpy.typing import NDArray

import longrec
from longrec.data.public_datasets import fetch_movielens_1m
from longrec.interop import atomic
from longrec.training.finished_run import Run, open_run

WORK = next_item.machine.CACHE / "work" / "pipelines"
NEGATIVES = 4
"""Items drawn for each rating. Half of them are drawn by popularity."""
WINDOW = 350_000
"""Ratings before the end of training that the ranker of MovieLens learns from."""
DELAY = "5m"
"""Time until a click of KuaiRand is visible to its retrievers: longer than almost all videos play."""
SOURCES = {
    "movielens": ("softmax", "covisit", "item_knn", "popularity"),
    "kuairand": ("sasrec", "covisit", "item_knn", "popularity"),
}
COUNTS = {"softmax": 200, "sasrec": 200, "covisit": 200, "item_knn": 100, "popularity": 50}


EDGES = [2, 3, 4, 6, 9, 13, 19, 28, 41, 61, 91, 136]
"""Edges of the ranks in the list of a source."""
OWN_NEGATIVES = 30
"""Candidates without a hit of each request that the rankers of own candidates learn from."""


def write_movielens(data: Path) -> Path:
    """Write the log of the ranker, with drawn items, and the table of films. Return the folder."""
    folder = WORK / "movielens"
    if (folder / "log.parquet").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    next_item_logs.build_task("movielens_n4", data, next_item.WORK)
    table = pq.read_table(next_item.WORK / "movielens_n4.parquet")
    user, item, time = (table[name].to_numpy() for name in ("user_id", "item_id", "timestamp"))
    cuts = np.sort(time)[[int(len(time) * share) for share in (0.8, 0.9)]]
    training = np.flatnonzero(time < cuts[0])
    newest = training[np.argsort(time[training], kind="stable")[-WINDOW:]]
    rows = np.concatenate([newest, np.flatnonzero(time >= cuts[0])[::4]])
    drawn = draw_items(item, time, rows, cuts[0])
    fresh = ~is_seen(user, item, time, np.repeat(rows, NEGATIVES), drawn)
    at, split = np.repeat(rows, NEGATIVES)[fresh], name_splits(time, cuts)
    columns = {
        "user_id": np.concatenate([user, user[at]]),
        "item_id": np.concatenate([item, drawn[fresh]]),
        "timestamp": np.concatenate([time, time[at]]),
        "watched": np.concatenate([np.ones(len(user), np.int64), np.zeros(len(at), np.int64)]),
        "split": np.concatenate([split, split[at]]),
    }
    films = pq.read_table(fetch_movielens_1m(atomic.read) / "movies.parquet")
    ratings = pq.read_table(fetch_movielens_1m(atomic.read) / "ratings.parquet")
    codes = ratings["movie"].combine_chunks().dictionary_encode().dictionary
    ids = pc.index_in(films["movie"], value_set=codes)
    rated = ids.is_valid()
    pq.write_table(films.append_column("item_id", ids).filter(rated), folder / "items.parquet")
    pq.write_table(pa.table(columns), folder / "log.parquet")
    return folder


def name_splits(time: NDArray[np.int64], cuts: NDArray[np.int64]) -> NDArray[Any]:
    """Return the split of each rating, by the time line."""
    return np.array(["train", "valid", "test"], object)[np.searchsorted(cuts, time, side="right")]


def draw_items(
    item: NDArray[np.int64], time: NDArray[np.int64], rows: NDArray[np.int64], until: int
) -> NDArray[np.int64]:
    """Return items for each row, half of them by popularity before a timestamp, half uniform."""
    random, earlier = np.random.default_rng(0), item[time < until]
    drawn = np.empty((len(rows), NEGATIVES), np.int64)
    half = NEGATIVES // 2
    drawn[:, :half] = earlier[random.integers(0, len(earlier), (len(rows), half))]
    distinct = np.unique(earlier)
    drawn[:, half:] = distinct[random.integers(0, len(distinct), (len(rows), NEGATIVES - half))]
    return drawn.ravel()


def is_seen(
    user: NDArray[np.int64],
    item: NDArray[np.int64],
    time: NDArray[np.int64],
    rows: NDArray[np.int64],
    drawn: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Return True where the user of a row has rated the drawn item at the timestamp of the row, or before."""
    size = int(item.max()) + 1
    pair = user * size + item
    order = np.argsort(pair, kind="stable")
    wanted = user[rows] * size + drawn
    at = np.searchsorted(pair[order], wanted).clip(max=len(pair) - 1)
    same = pair[order][at] == wanted
    return same & (time[order][at] <= time[rows])


def build_movielens(data: Path) -> tuple[dict[str, Run], Run]:
    """Return the retrievers and the ranker of MovieLens-1M."""
    folder = write_movielens(data)
    schema = {
        "user": "user_id",
        "item": "item_id",
        "time": {"column": "timestamp", "unit": "s"},
        "label": "watched",
        "features": {
            "item_id": {"kind": "id"},
            "year": {"kind": "bucketized", "side": "item", "quantiles": 20},
            "genres": {"kind": "multi_id", "side": "item"},
            "watched": {"kind": "id", "feedback": True},
        },
        "histories": {"seen": {"features": ["item_id", "genres"], "where": {"watched": 1}, "max_length": 50}},
    }
    config = {
        "name": "movielens-din",
        "data": {
            "log": str(folder / "log.parquet"),
            "items": str(folder / "items.parquet"),
            "schema": schema,
            "split": {"by": "column", "column": "split"},
            "folder": str(WORK / "prepared"),
        },
        "model": {"name": "din", "embedding_dim": 32, "attention": [32], "mlp": [128, 64], "dropout": 0.2},
        "fit": {"epochs": 1, "batch_size": 1024, "runs": str(WORK / "runs"), "tensorboard": "off", "mlflow": "off"},
    }
    times = pq.read_table(folder / "log.parquet", columns=["timestamp", "watched"])
    stamps = times["timestamp"].to_numpy()[times["watched"].to_numpy() == 0]
    config["fit"]["train_from"] = int(stamps.min())  # type: ignore[index]
    retrievers = {arm: next_item.run("movielens_n4", arm, 0, data) for arm in SOURCES["movielens"]}
    return retrievers, _train(config)


def train_own(task: str, requests: Run, ranker: Run) -> dict[str, Run]:
    """Train rankers on the candidates of the merged pipeline, with and without the columns of its stages."""
    log = WORK / f"{task}_own.parquet"
    if not log.exists():
        merged = WORK / f"{task}_merged.yaml"
        report = longrec.write_candidates(merged, requests, log, negatives=OWN_NEGATIVES, with_events=True)
        print(report.format(), flush=True)
    config = yaml.safe_load(ranker.config.to_yaml())
    base = {key: config["data"][key] for key in ("users", "items", "folder") if config["data"].get(key) is not None}
    schema = config["data"]["schema"]
    features, histories = dict(schema["features"]), dict(schema["histories"])
    if task == "movielens":  # the events are ratings, without the drawn items of the other ranker
        features.pop("watched")
        histories = {name: {**one, "where": {}} for name, one in histories.items()}
    schema = {**schema, "label": "relevant", "candidate": "candidate", "histories": histories}
    runs = {}
    for name, columns in (("own_plain", {}), ("own_ranked", build_stage_features(SOURCES[task]))):
        data = {
            **base,
            "log": str(log),
            "schema": {**schema, "features": {**features, **columns}},
            "split": {"by": "column", "column": "split"},
        }
        fit = {"epochs": 3, "batch_size": 1024, "lr": 1e-3, "runs": str(WORK / "runs"), **_quiet()}
        runs[name] = _train({"name": f"{task}-{name}", "data": data, "model": config["model"], "fit": fit})
    return runs


def build_stage_features(sources: tuple[str, ...]) -> dict[str, Any]:
    """Return the features of a ranker that the recall stages fill."""
    scores = {
        f"score_{name}": {"kind": "bucketized", "side": "candidate", "quantiles": 20}
        for name in (*(f"recall_{source}" for source in sources), "merge")
    }
    ranks = {f"rank_{source}": {"kind": "bucketized", "side": "candidate", "edges": EDGES} for source in sources}
    return {"source": {"kind": "id", "side": "candidate"}, **scores, **ranks}


def build_kuairand(data: Path) -> tuple[dict[str, Run], Run]:
    """Return the retrievers and the ranker of KuaiRand."""
    job = kuairand.job(data / "kuairand_pure_14d", WORK / "kuairand", {"name": "din"}, 0)
    job["data"]["folder"] = str(WORK / "prepared")
    job |= {"name": "kuairand-din", "fit": {**job["fit"], "runs": str(WORK / "runs"), **_quiet()}}
    schema = {
        **{key: job["data"]["schema"][key] for key in ("user", "item", "time", "label")},
        "label_delay": DELAY,
        "features": {"video_id": {"kind": "id"}, "is_click": {"kind": "id", "feedback": True}},
        "histories": {"clicked": {"features": ["video_id"], "where": {"is_click": 1}, "max_length": 50}},
    }
    retrievers = {}
    for name in SOURCES["kuairand"]:
        fit: dict[str, Any] = {"runs": str(WORK / "runs"), **_quiet()}
        fit |= next_item.FIT if name == "sasrec" else {}
        own = {"data": {**job["data"], "schema": schema}, "model": {"name": name}, "fit": fit}
        retrievers[name] = _train({"name": f"kuairand-{name}", **own})
    return retrievers, _train(job)


def _quiet() -> dict[str, str]:
    return {"tensorboard": "off", "mlflow": "off"}


def _train(config: dict[str, Any]) -> Run:
    """Return the finished run of a config."""
    folder = WORK / "runs" / config["name"]
    if not (folder / "results.json").exists():
        longrec.train(config, quiet=True)
        run = open_run(folder)
        print(f"{folder.name}: { {key: round(one.value, 4) for key, one in run.metrics.items()} }", flush=True)
    return open_run(folder)


def export_bundle(run: Run, name: str) -> Path:
    """Return the bundle of a run."""
    bundle = WORK / "bundles" / name
    if not bundle.exists():
        bundle.parent.mkdir(parents=True, exist_ok=True)
        longrec.export(run, bundle)
    return bundle


def write_pipelines(
    task: str, retrievers: dict[str, Run], ranker: Run, attribute: str, own: dict[str, Run] | None = None
) -> list[Path]:
    """Write one pipeline per question, and return the files.

    Args:
        own: rankers of own candidates by the name of their pipeline.
    """
    recall = {
        name: {"bundle": str(export_bundle(run, f"{task}-{name}")), "count": COUNTS[name]}
        for name, run in retrievers.items()
    }
    rank = {"bundle": str(export_bundle(ranker, f"{task}-din")), "count": 100}
    first = next(iter(recall))
    base: dict[str, Any] = {"recall": recall, "merge": {"count": 200}, "rank": rank}
    mmr = {"method": "mmr", "lambda": 0.8, "vectors": first, "count": 50}
    dpp = {"method": "dpp", "theta": 0.8, "vectors": first, "count": 50}
    spacing = {"method": "spacing", "attribute": attribute, "at_most": 2, "within": 4}
    variants: dict[str, dict[str, Any]] = {
        "one_source": {"recall": {first: recall[first]}},
        "merged": {"recall": recall, "merge": {"count": 200}},
        "fused": {"recall": recall, "merge": {"count": 200, "order": "fusion"}},
        "ranked": base,
        "mmr": {**base, "rerank": [mmr]},
        "dpp": {**base, "rerank": [dpp]},
        "whole": {**base, "rerank": [dpp, spacing]},
    }
    for name, run in (own or {}).items():
        variants[name] = {**base, "rank": {"bundle": str(export_bundle(run, f"{task}-{name}")), "count": 100}}
    paths = []
    for name, content in variants.items():
        path = WORK / f"{task}_{name}.yaml"
        path.write_text(yaml.safe_dump({"name": f"{task}_{name}", **content}, sort_keys=False))
        paths.append(path)
    return paths


COLUMNS = ("hr@10", "ndcg@10", "recall@200", "coverage@10", "diversity@10", "novelty@10", "cpu_ms")
PIPELINES = ("one_source", "merged", "fused", "ranked", "own_plain", "own_ranked", "mmr", "dpp", "whole")


def write_table(task: str) -> str:
    """Return one table of the evaluated pipelines: sources and floors once, then the page of each pipeline."""
    results = {name: json.loads((WORK / f"{task}_{name}" / "results.json").read_text()) for name in PIPELINES}
    whole = results["whole"]
    size = f"{whole['requests']:,} of {whole['available']:,} requests, {whole['catalog']:,} items"
    lines = [f"## {task}: {size}", "", f"| list | items | {' | '.join(COLUMNS)} |", "| --- " * (len(COLUMNS) + 2) + "|"]
    own = {name: stage for name, stage in whole["stages"].items() if name.startswith(("recall.", "alone", "floor"))}
    stages = whole["stages"]
    lines += [_format_row(name, stages[name]) for name in own]
    lines += [_format_row(f"{name}, merge", results[name]["stages"]["merge"]) for name in ("merged", "fused")]
    lines += [_format_row(f"{name}, page", one["stages"][one["page"]]) for name, one in results.items()]
    lines += ["", "CPU ms by stage of `whole`: " + _list_costs(stages)]
    return "\n".join(lines)


def _format_row(name: str, stage: dict[str, Any]) -> str:
    cells = []
    for column in COLUMNS:
        one = stage.get(column)
        cells.append("" if one is None else f"{one['value']:.3f} ± {(one['high'] - one['low']) / 2:.3f}")
    return f"| {name} | {stage['candidates']['value']:.0f} | {' | '.join(cells)} |"


def _list_costs(stages: dict[str, Any]) -> str:
    costs = [f"{name} {one['cpu_ms']['value']:.2f}" for name, one in stages.items() if "cpu_ms" in one]
    return ", ".join(costs)


BUILD = {"movielens": (build_movielens, "genres"), "kuairand": (build_kuairand, "author_id")}


def main() -> None:
    """Build the pipelines of a task, and evaluate them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=BUILD)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--requests", type=int, default=3_000)
    parser.add_argument("--build", action="store_true", help="train, export and write the pipelines only")
    parser.add_argument("--table", action="store_true", help="print the table of what was evaluated")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.table:
        print(write_table(arguments.task))
        return
    build, attribute = BUILD[arguments.task]
    retrievers, ranker = build(arguments.data)
    # The rows of a ranker have its context. Those of MovieLens have none, and the log of the ranker has drawn items.
    run = ranker if arguments.task == "kuairand" else next(iter(retrievers.values()))
    write_pipelines(arguments.task, retrievers, ranker, attribute)
    own = train_own(arguments.task, run, ranker)
    paths = write_pipelines(arguments.task, retrievers, ranker, attribute, own)
    for path in [] if arguments.build else paths:
        command = [sys.executable, "-m", "longrec", "evaluate", str(path), "--requests", str(run.folder)]
        command += ["--rows", str(arguments.requests), "--into", str(path.with_suffix(""))]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
