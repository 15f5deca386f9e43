"""Synthetic datasets: small generated logs with a known Bayes-optimal AUC, to check what models learn.

A dataset is an event log with a description (story), the true probability of every label, the models that must solve
it and those that must not. A model solves a dataset if AUC - 0.5 on the test rows is at least 0.9 of Bayes-optimal
AUC - 0.5 (``SyntheticDataset.required_auc``). The Bayes-optimal AUC is that of the true probabilities. In a dataset of
next items every event is a positive, and a model solves it if its HR@k is at least 0.9 of the best one
(``SyntheticDataset.hit_rates``). Each dataset has a file here and an entry in ``RECIPES``.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

from longrec.config import parse
from longrec.data import splits
from longrec.data.settings import Split
from longrec.data.synthetic import (
    bought_or_passed,
    co_action,
    crowded_lists,
    drifting_interest,
    frequent_queries,
    hidden_catalog,
    late_correction,
    long_memory,
    micro_behaviors,
    negative_feedback,
    one_interest,
    periodic,
    rare_orders,
    rich_instances,
    session_outcomes,
    two_behaviors,
    two_interests,
)
from longrec.data.synthetic.dataset import SOLVED, START, Recipe, SyntheticDataset
from longrec.errors import ConfigError, UnknownName

__all__ = [
    "RECIPES",
    "SOLVED",
    "START",
    "Recipe",
    "SyntheticDataset",
    "compute_splits",
    "find_recipe",
    "generate_dataset",
    "list_files",
    "list_names",
    "write",
]

RECIPES: dict[str, Recipe] = {
    "bought_or_passed": bought_or_passed.RECIPE,
    "co_action": co_action.RECIPE,
    "crowded_lists": crowded_lists.RECIPE,
    "drifting_interest": drifting_interest.RECIPE,
    "frequent_queries": frequent_queries.RECIPE,
    "hidden_catalog": hidden_catalog.RECIPE,
    "late_correction": late_correction.RECIPE,
    "long_memory": long_memory.RECIPE,
    "micro_behaviors": micro_behaviors.RECIPE,
    "negative_feedback": negative_feedback.RECIPE,
    "one_interest": one_interest.RECIPE,
    "periodic": periodic.RECIPE,
    "rare_orders": rare_orders.RECIPE,
    "rich_instances": rich_instances.RECIPE,
    "sessions": session_outcomes.RECIPE,
    "two_behaviors": two_behaviors.RECIPE,
    "two_interests": two_interests.RECIPE,
}


def list_names() -> list[str]:
    """Return the names of the synthetic datasets."""
    return sorted(RECIPES)


def find_recipe(name: str) -> Recipe:
    """Return the story and the parameters of a synthetic dataset.

    Raises:
        UnknownName: no dataset of that name.
    """
    if name not in RECIPES:
        raise UnknownName("synthetic dataset", name, RECIPES)
    return RECIPES[name]


def generate_dataset(name: str, /, users: int | None = None, seed: int = 0, **parameters: Any) -> SyntheticDataset:
    """Generate a synthetic dataset. The same arguments give the same dataset.

    Args:
        users: number of users. Default: enough for the models to learn the dataset in a few seconds.
        parameters: parameters of that dataset, with the names in ``find_recipe(name).settings``.

    Raises:
        UnknownName: no dataset of that name.
        ConfigError: a parameter that the dataset does not have, or a value that it does not accept.
    """
    recipe = find_recipe(name)
    if not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"synthetic dataset {name}", [f"seed: must be a whole number, 0 or more, got {seed!r}"])
    settings = parse(
        recipe.settings, parameters if users is None else {**parameters, "users": users}, f"synthetic dataset {name}"
    )
    return recipe.make(settings, np.random.default_rng(seed))


def compute_splits(dataset: SyntheticDataset) -> NDArray[np.int8]:
    """Return the split code of each event, ``[events]``, as preparation splits it: codes of ``splits.SPLITS``."""
    rule = parse(Split, dataset.split, dataset.name)
    if rule.by == "user":
        return splits.split_by_user(rule, dataset.log[dataset.schema["user"]].combine_chunks())
    assert rule.by == "time", f"{dataset.name}: no dataset is split by {rule.by}"
    times = dataset.log[dataset.schema["time"]["column"]].to_numpy()
    return splits.split_by_time(times, splits.compute_time_cutoffs(rule, times, False, dataset.name))


def list_files(dataset: SyntheticDataset) -> list[str]:
    """Return the file names of a synthetic dataset: its tables, then its schemas and the jobs that use them."""
    tables = [name for name, table in _tables(dataset).items() if table is not None]
    schemas = [dataset.name] if dataset.wide is None else [dataset.name, f"{dataset.name}_wide"]
    return [
        *(f"{name}.parquet" for name in tables),
        *(f"{n}{end}" for n in schemas for end in (".schema.yaml", ".yaml")),
    ]


def write(dataset: SyntheticDataset, folder: str | Path) -> Path:
    """Write a synthetic dataset as files for a job.

    The tables are ``log.parquet``, ``items.parquet``, ``users.parquet`` and ``truth.parquet`` (the latent variables),
    those that the dataset has. The schemas are ``<name>.schema.yaml`` and ``<name>_wide.schema.yaml``, and their jobs
    ``<name>.yaml`` and ``<name>_wide.yaml``.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in _tables(dataset).items():
        if table is not None:
            pq.write_table(table, folder / f"{name}.parquet")
    story = textwrap.fill(dataset.story, 100, initial_indent="# ", subsequent_indent="# ")
    narrow = "sasrec" if dataset.hit_rates else "din" if dataset.schema.get("histories") else "deepfm"
    for name, schema, model in (
        (dataset.name, dataset.schema, narrow),
        (f"{dataset.name}_wide", dataset.wide, "deepfm"),
    ):
        if schema is not None:
            job = dataset.job("", {"name": model}, wide=schema is dataset.wide)
            for end, content in ((".schema.yaml", schema), (".yaml", job)):
                text = yaml.safe_dump(dict(content), sort_keys=False)
                (folder / f"{name}{end}").write_text(f"{story}\n{text}", encoding="utf-8")
    return folder


def _tables(dataset: SyntheticDataset) -> dict[str, pa.Table | None]:
    return {"log": dataset.log, "items": dataset.items, "users": dataset.users, "truth": dataset.truth}
