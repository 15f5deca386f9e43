"""All ranking models of the folder on one log, the same budget for each.

    python bench/quality/rankers.py movielens [--data FOLDER] [--seeds 3] [--models din dien] [--modes past]

Logs: movielens, c12, kuairand, beauty (``ranking_logs.py``). Nothing is tuned: every model has its own defaults, but
for the width of embeddings (32), the top network (128-64) and dropout (0.2), and the log's epochs, batch and learning
rate, which were those of the simplest model. Where a log tells what a user said of past events, a model is run with it
(``past``) and without (``plain``). Models whose idea needs more of the past than the others read get that too: see
``WANTS``. A finished run is found again; test is read once a run. ``ranking_tables.py`` writes the tables.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ranking_logs import TASKS, Task

import longrec
from longrec.models.core.base import Ranker, find, names

COMMON: dict[str, Any] = {"embedding_dim": 32, "mlp": [128, 64], "dropout": 0.2}
"""Settings that every model gets, those it has."""

WANTS: dict[str, list[str]] = {
    "bst": ["time_gap"],
    "atrank": ["time_gap"],
    "search_user": ["time_gap"],
    "hup": ["time_since_previous"],
    "tissa": ["time_gap", "time_since_previous"],
    "dsin": ["session_recency"],
    "kfatt": ["session_recency"],
}
"""Computed columns that some models read besides."""

APART = ("dfn", "dmt")
"""Models that want one history a behaviour, where the log tells behaviours apart. DIN is read so too (``apart``), to
tell what that alone does.
"""

BUILT_ON = ("iat_reader", "keep_plug", "esmm")
"""They read what another model wrote, and have studies of their own; or learn two labels that follow each other."""


def list_rankers() -> list[str]:
    """The models to compare."""
    return [name for name in names() if issubclass(find(name), Ranker) and name not in BUILT_ON]


def settings(model: str) -> dict[str, Any]:
    """The ``model`` section: the common settings where the model, or the model it builds on, has them."""
    fields = find(model).Config.model_fields
    own: dict[str, Any] = {"name": model} | {key: value for key, value in COMMON.items() if key in fields}
    if "base" in fields:
        base = find(model).Config().base
        if isinstance(base, dict) and "name" in base:
            own["base"] = settings(base["name"])
    return own


def list_modes(task: Task, model: str) -> list[str]:
    """The regimes in which a model is run: one if it reads no history."""
    if not find(model).reads_history:
        return ["plain"] if "plain" in task.of else ["past"]
    return [*task.of, "apart"] if model == "din" and task.behaviors else list(task.of)


def job(task: Task, name: str, model: str, mode: str, seed: int, work: Path) -> dict[str, Any]:
    """The config of a run."""
    extra, apart = WANTS.get(model, []), mode == "apart" or (model in APART and mode == "past")
    mode = "past" if apart else mode
    data = task.section(mode, extra, apart)
    key = "-".join([mode, *extra, *(["apart"] if apart else [])])
    return {
        "name": name,
        "data": {**data, "folder": str(work / "prepared" / key)},
        "model": settings(model),
        "fit": {**task.fit, "seed": seed, "runs": str(work / "runs"), "tensorboard": "off", "mlflow": "off"},
        # The tables draw users anew for all models together.
        "evaluate": {"n_resamples": 20},
    }


def run(task: Task, model: str, mode: str, seed: int, work: Path, twin: str = "") -> Any:
    """The finished run of a model.

    Args:
        twin: a suffix, for a run that is made once more.
    """
    name = f"{model}-{mode}-{seed}{twin}"
    folder = work / "runs" / name
    if not (folder / "results.json").exists():
        began = time.perf_counter()
        begun = (folder / "config.yaml").exists()
        trained = (
            longrec.train(resume=folder)
            if begun
            else longrec.train(job(task, name, model, mode, seed, work), quiet=True)
        )
        print(f"{name}: test AUC {trained.metrics['auc']} in {time.perf_counter() - began:.0f} s", flush=True)
    return longrec.open_run(folder)


def plan(task: Task, models: list[str], seeds: int) -> Iterator[tuple[str, str, int]]:
    """Model, regime and seed of every run, seed by seed."""
    for seed in range(seeds):
        for mode in (*task.of, "apart"):
            for model in models:
                if mode in list_modes(task, model):
                    yield model, mode, seed


def main() -> None:
    """Train what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", choices=TASKS)
    parser.add_argument("--data", type=Path, default=Path("data"), help="where kuairand_pure_14d and amazon_beauty lie")
    parser.add_argument("--work", type=Path, default=Path("build/quality/rankers"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--models", nargs="*", default=list_rankers())
    parser.add_argument("--modes", nargs="*", default=["past", "plain", "apart"])
    args = parser.parse_args()
    work = args.work / args.log
    work.mkdir(parents=True, exist_ok=True)
    task = TASKS[args.log](args.data, work)
    for model, mode, seed in plan(task, args.models, args.seeds):
        if mode in args.modes:
            run(task, model, mode, seed, work)


if __name__ == "__main__":
    main()
