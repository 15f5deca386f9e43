"""Training of all ranking models on one log, with the same budget for each.

    python bench/quality/rankers.py movielens [--data FOLDER] [--seeds 3] [--models din dien] [--modes past]

Logs: movielens, c12, kuairand, beauty (``ranking_logs.py``). Nothing is tuned: every model has its own defaults, except
for the width of embeddings (32), the top network (128-64) and dropout (0.2), and the log's epochs, batch and learning
rate, which were those of the simplest model. Where a log has the user's feedback on the events of a history, a model is
run with it (mode ``past``) and without (mode ``plain``). Models that need further columns of the history get these too:
see ``WANTS``. A finished run is not repeated. Test is read once per run. ``ranking_tables.py`` writes the tables.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ranking_logs import TASKS, Task

import longrec
from longrec.models.core.catalog import names
from longrec.models.core.kinds import Ranker
from longrec.models.core.registry import find

COMMON: dict[str, Any] = {"embedding_dim": 32, "mlp": [128, 64], "dropout": 0.2}
"""Settings of every model that has them."""

WANTS: dict[str, list[str]] = {
    "bst": ["time_gap"],
    "atrank": ["time_gap"],
    "search_user": ["time_gap"],
    "hup": ["time_since_previous"],
    "tissa": ["time_gap", "time_since_previous"],
    "dsin": ["session_recency"],
    "kfatt": ["session_recency"],
}
"""Further computed columns of some models."""

APART = ("dfn", "dmt")
"""Models with one history per behavior, where the log distinguishes behaviors. DIN is run in this form too (mode
``apart``), to measure the effect of the form alone.
"""

BUILT_ON = ("iat_reader", "keep_plug", "esmm", "rocket_launching", "distillation")
"""Models with studies of their own: they read the output of another model, train a light one, or learn two labels."""


def list_rankers() -> list[str]:
    """Return the models to compare."""
    return [name for name in names() if issubclass(find(name), Ranker) and name not in BUILT_ON]


def settings(model: str) -> dict[str, Any]:
    """Return the ``model`` section: the common settings that the model, or its base model, has."""
    fields = find(model).Config.model_fields
    own: dict[str, Any] = {"name": model} | {key: value for key, value in COMMON.items() if key in fields}
    if "base" in fields:
        base = find(model).Config().base
        if isinstance(base, dict) and "name" in base:
            own["base"] = settings(base["name"])
    return own


def list_modes(task: Task, model: str) -> list[str]:
    """Return the modes in which a model is run: one if it reads no history."""
    if not find(model).reads_history:
        return ["plain"] if "plain" in task.of else ["past"]
    return [*task.of, "apart"] if model == "din" and task.behaviors else list(task.of)


def job(task: Task, name: str, model: str, mode: str, seed: int, work: Path) -> dict[str, Any]:
    """Return the config of a run."""
    extra, apart = WANTS.get(model, []), mode == "apart" or (model in APART and mode == "past")
    mode = "past" if apart else mode
    data = task.section(mode, extra, apart)
    key = "-".join([mode, *extra, *(["apart"] if apart else [])])
    return {
        "name": name,
        "data": {**data, "folder": str(work / "prepared" / key)},
        "model": settings(model),
        "fit": {**task.fit, "seed": seed, "runs": str(work / "runs"), "tensorboard": "off", "mlflow": "off"},
        # The tables resample users again for all models together.
        "evaluate": {"n_resamples": 20},
    }


def run(task: Task, model: str, mode: str, seed: int, work: Path, twin: str = "") -> Any:
    """Return the finished run of a model.

    Args:
        twin: suffix of a repeated run.
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
    """Yield model, mode and seed of every run, seed by seed."""
    for seed in range(seeds):
        for mode in (*task.of, "apart"):
            for model in models:
                if mode in list_modes(task, model):
                    yield model, mode, seed


def main() -> None:
    """Train the missing runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", choices=TASKS)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of kuairand_pure_14d and amazon_beauty")
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
