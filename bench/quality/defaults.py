"""Ranking and calibration of the default settings on four logs, and the validation that each stopping rule keeps.

    python bench/quality/defaults.py record --arm after [--logs movielens rare] [--data FOLDER]
    python bench/quality/defaults.py table --before before --after after

``record`` trains each model for ``EPOCHS`` epochs with all other settings at their defaults and stores, for every
validation, its measures and the scores of the test rows. ``table`` applies stopping rules (monitor, patience, epochs)
to these records, so that one run judges all rules on the same weights. Test is read by the rule's choice only.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import kuairand
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from longrec import metrics
from longrec.data.log import Log
from longrec.data.prepare import prepare
from longrec.data.public_datasets import fetch_movielens_1m
from longrec.interop import atomic
from longrec.models.core import artifact
from longrec.models.core import registry as models
from longrec.reporting.tables import table
from longrec.training.job import read_job
from longrec.training.loop import Loop
from longrec.training.objectives import objective_of
from longrec.training.scoring import score

MODELS = ("lr", "deepfm", "din")
EPOCHS = 4
SEEDS = {"movielens": 1, "kuairand": 2, "rare": 3, "small": 3}


class Rule(NamedTuple):
    """A stopping rule, which chooses a validation."""

    monitor: str
    patience: int
    epochs: int


def rare(work: Path) -> dict[str, Any]:
    """Return 100,000 impressions with 1 % clicks, where one item in ten has a rate of 3 %."""
    random, n = np.random.default_rng(0), 100_000
    user, item = random.integers(0, 2000, n), random.integers(0, 500, n)
    click = (random.random(n) < np.where(item < 50, 0.03, 0.008)).astype(int)
    log = pa.table({"u": user, "i": item, "t": 1_700_000_000 + np.arange(n) * 10, "y": click})
    pq.write_table(log, work / "rare.parquet")
    schema = {
        "user": "u",
        "item": "i",
        "time": "t",
        "label": "y",
        "features": {"u": {"kind": "id"}, "i": {"kind": "id"}},
        "histories": {"h": {"features": ["i"], "max_length": 10}},
    }
    return {"schema": schema, "log": str(work / "rare.parquet")}


def small(data: Path) -> dict[str, Any]:
    """Return MovieLens latest-small: 100,836 ratings of 610 users over 22 years, label "rated 4 or better"."""
    folder = data / "movielens_latest_small"
    schema = {
        "user": "user_id",
        "item": "item_id",
        "time": {"column": "timestamp", "unit": "s"},
        "label": {"column": "rating", "at_least": 4},
        "features": {
            "user_id": {"kind": "id"},
            "item_id": {"kind": "id"},
            "genres": {"kind": "multi_id", "side": "item"},
        },
        "histories": {"seen": {"features": ["item_id", "genres"], "max_length": 50}},
    }
    return {"schema": schema, "log": str(folder / "ratings.parquet"), "items": str(folder / "movies.parquet")}


def movielens() -> dict[str, Any]:
    """Return MovieLens-1M: label "rated 4 or better", ratings in the history."""
    folder = fetch_movielens_1m(atomic.read)
    features = {
        "user_id": {"kind": "id"},
        "gender": {"kind": "id", "side": "user"},
        "age": {"kind": "id", "side": "user"},
        "occupation": {"kind": "id", "side": "user"},
        "movie": {"kind": "id"},
        "genres": {"kind": "multi_id", "side": "item"},
        "rating": {"kind": "id", "feedback": True},
    }
    schema = {
        "user": "user_id",
        "item": "movie",
        "time": {"column": "timestamp", "unit": "s"},
        "label": {"column": "rating", "at_least": 4},
        "features": features,
        "histories": {"seen": {"features": ["movie", "genres", "rating"], "max_length": 20}},
    }
    files = {"log": "ratings", "users": "users", "items": "movies"}
    return {"schema": schema, **{key: str(folder / f"{name}.parquet") for key, name in files.items()}}


def build_data(log: str, data: Path, work: Path) -> dict[str, Any]:
    """Return the ``data`` section of a log."""
    if log == "kuairand":
        return kuairand.job(data.resolve() / "kuairand_pure_14d", work, {"name": "din"}, 0)["data"]
    return {"rare": lambda: rare(work), "small": lambda: small(data.resolve()), "movielens": movielens}[log]()


class Recorder:
    """A tracker that scores the test rows at every validation."""

    def __init__(self, model: models.Model, log: Log) -> None:
        self.model, self.log, self.rows = model, log, log.rows_of("test")
        self.measures: list[dict[str, float]] = []
        self.scores: list[np.ndarray] = []

    def train(self, step: int, loss: float) -> None:
        """Do nothing."""

    def valid(self, step: int, measures: Mapping[str, float]) -> None:
        """Record one validation."""
        self.measures.append({"step": step, **measures})
        self.scores.append(score(self.model, self.log, self.rows, 4096))

    def close(self, *, finished: bool) -> None:
        """Do nothing."""


def record(log_name: str, model_name: str, seed: int, arm: str, data: Path, work: Path) -> None:
    """Train once, and store every validation."""
    out = work / arm / f"{log_name}-{model_name}-{seed}.npz"
    if out.exists():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    section = {**build_data(log_name, data, work), "folder": str(work / arm / "prepared")}
    fit = {"epochs": EPOCHS, "patience": 0, "seed": seed, "tensorboard": "off", "mlflow": "off"}
    job = read_job({"name": out.stem, "data": section, "model": model_name, "fit": fit})
    log = Log.open(prepare(job.data, job.schema), job.schema)
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    began = time.process_time()
    model = models.build(job.model, log.fields())
    if arm != "before":
        from longrec.training.base_rate import start_at_base_rates

        start_at_base_rates(model, log, log.rows_of("train"))
    recorder = Recorder(model, log)
    folder = out.with_suffix(".run")
    folder.mkdir(exist_ok=True)
    objective, valid = objective_of(type(model)), log.rows_of("valid")
    loop = Loop(
        model,
        objective.build_loader(model, log, job.fit),
        job.fit,
        folder,
        lambda into: artifact.save(model, into),
        validate=lambda: objective.validate(model, log, valid, job.fit, job.evaluate),
        lower_is_better=job.fit.monitor == "log_loss",
        quiet=True,
    )
    loop.run([recorder])
    rows = recorder.rows
    np.savez_compressed(
        out,
        measures=json.dumps(recorder.measures),
        scores=np.stack(recorder.scores),
        label=log.labels.take(rows),
        user=log.user(rows),
        row=rows,
    )
    print(f"{arm} {out.stem}: {time.process_time() - began:.0f} CPU s, last {recorder.measures[-1]}", flush=True)


def choose_validation(measures: list[dict[str, float]], rule: Rule) -> int:
    """Return the index of the validation that a rule keeps."""
    lower = rule.monitor in ("log_loss", "normalized_entropy")
    best, value, stale = 0, None, 0
    for at, measured in enumerate(measures[: 3 * rule.epochs]):
        now = measured.get(rule.monitor, measured["auc"])
        if value is None or (now < value if lower else now > value):
            best, value, stale = at, now, 0
        else:
            stale += 1
            if rule.patience and stale >= rule.patience:
                break
    return best


def select_scores(path: Path, rule: Rule) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return label, user and score of the test rows under a rule."""
    recorded = np.load(path)
    at = choose_validation(json.loads(str(recorded["measures"])), rule)
    return recorded["label"], recorded["user"], recorded["scores"][at]


OLD = Rule("auc", 3, 2)
RULES = [Rule("auc", 3, 2), Rule("gauc", 3, 2), *(Rule("log_loss", p, e) for e, p in ((2, 1), (2, 3), (2, 5)))]


def interval(before: list[tuple[np.ndarray, ...]], after: list[tuple[np.ndarray, ...]], draws: int = 50) -> str:
    """Return the difference in AUC, mean over seeds, with a 95 % interval over users drawn for both arms alike."""
    label, user = before[0][0], before[0][1]
    starts = np.flatnonzero(np.diff(user, prepend=-1))
    stops, random = np.append(starts[1:], len(user)), np.random.default_rng(0)

    def change(rows: np.ndarray) -> float:
        areas = [[metrics.auc(label[rows], one[2][rows]) for one in arm] for arm in (before, after)]
        return float(np.mean(areas[1]) - np.mean(areas[0]))

    drawn = []
    for _ in range(draws):
        users = random.integers(0, len(starts), len(starts))
        drawn.append(change(np.concatenate([np.arange(starts[at], stops[at]) for at in users])))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return f"{change(np.arange(len(user))):+.4f} [{low:+.4f}, {high:+.4f}]"


def rows_of(work: Path, before: str, after: str) -> list[list[object]]:
    """Return one row per log, model and rule: means over seeds, and the difference in AUC with its interval."""
    rows: list[list[object]] = []
    for log, seeds in SEEDS.items():
        for model in MODELS:
            names = [f"{log}-{model}-{seed}.npz" for seed in range(seeds)]
            if not all((work / arm / name).exists() for arm in (before, after) for name in names):
                continue
            base = [select_scores(work / before / name, OLD) for name in names]
            for arm, rule in [(before, OLD), *((after, rule) for rule in RULES)]:
                scored = [select_scores(work / arm / name, rule) for name in names]
                auc = float(np.mean([metrics.auc(one[0], one[2]) for one in scored]))
                ne = float(np.mean([metrics.normalized_entropy(one[0], one[2]) for one in scored]))
                pcoc = [metrics.pcoc(one[0], one[2]) for one in scored]
                cells = ["before", ""] if arm == before else ["after", interval(base, scored)]
                rows.append([log, model, cells[0], *rule, auc, cells[1], ne, f"{min(pcoc):.2f} to {max(pcoc):.2f}"])
    return rows


def main() -> None:
    """Record, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["record", "table"])
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--work", type=Path, default=Path("build/quality/defaults"))
    parser.add_argument("--logs", nargs="*", default=list(SEEDS))
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--arm", default="after")
    parser.add_argument("--before", default="before")
    parser.add_argument("--after", default="after")
    args = parser.parse_args()
    if args.what == "record":
        args.work.mkdir(parents=True, exist_ok=True)
        for log in args.logs:
            for seed in range(SEEDS[log]):
                for model in args.models:
                    record(log, model, seed, args.arm, args.data, args.work)
        return
    heads = ["log", "model", "arm", "monitor", "patience", "epochs", "AUC", "minus before", "NE", "PCOC"]
    print(table(heads, rows_of(args.work, args.before, args.after)))


if __name__ == "__main__":
    main()
