"""Listings of models and synthetic datasets, and BibTeX, as plain functions behind the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from longrec.config import apply_overrides
from longrec.errors import DataError
from longrec.imports import Config, read_job_source

if TYPE_CHECKING:
    from longrec.models.core.catalog import Card
    from longrec.training.bibliography import Bibliography


def models() -> list[Card]:
    """Return name, kind, paper and use of histories of all models, without importing them."""
    from longrec.models.core.catalog import describe, names

    return [describe(name) for name in names()]


def cite(source: Config, overrides: Sequence[str] = ()) -> Bibliography:
    """Return the BibTeX of a model, or of all models used by a config, a run or a token store, and of LongRec."""
    from longrec.training.bibliography import collect_citations

    job_source = read_job_source(source, overrides)
    with job_source.error_context:
        return collect_citations(job_source.config, overrides).bibliography()


def synthetic_datasets() -> list[str]:
    """Return the names of the synthetic datasets."""
    from longrec.data.synthetic import list_names

    return list_names()


def explain_synthetic(name: str) -> dict[str, Any]:
    """Return the ``story`` of a synthetic dataset and its ``parameters``, each with its default and its meaning.

    Raises:
        UnknownName: if there is no synthetic dataset of that name.
    """
    from longrec.data.synthetic import find_recipe

    fields = find_recipe(name).settings.model_fields
    parameters = {key: {"default": field.default, "about": field.description} for key, field in fields.items()}
    return {"dataset": name, "story": find_recipe(name).story, "parameters": parameters}


def make_synthetic(name: str, into: str | Path, overrides: Sequence[str] = (), *, seed: int = 0) -> dict[str, Any]:
    """Write a synthetic dataset into a folder, with the jobs that read it.

    Args:
        overrides: parameters of the dataset, such as ``users=5000``.

    Returns:
        Files and sizes of the dataset, and ``bayes_auc``: the AUC on its test rows of each true probability. Of a
        dataset of next items instead ``best_hit_rate``: the largest HR@k to expect, by k.

    Raises:
        UnknownName: if there is no synthetic dataset of that name.
        ConfigError: if a parameter is unknown, or cannot have its value.
        DataError: if the folder contains another log.
    """

    from longrec.data import synthetic
    from longrec.data.splits import TEST
    from longrec.metrics import auc

    dataset, into = synthetic.generate_dataset(name, **{"seed": seed, **apply_overrides({}, overrides)}), Path(into)
    if (into / "log.parquet").exists() and not (into / f"{name}.schema.yaml").exists():
        expected = f"a new folder, or the synthetic dataset {name} to replace"
        raise DataError(str(into), "a log.parquet of something else", expected)
    synthetic.write(dataset, into)
    rows = np.flatnonzero((synthetic.compute_splits(dataset) == TEST) & ~np.isnan(dataset.true_probability))
    best: dict[str, Any]
    if dataset.hit_rates:
        best = {"best_hit_rate": {f"hr@{k}": rate for k, rate in dataset.hit_rates.items()}}
    else:
        label = dataset.log[dataset.schema["label"]].to_numpy(zero_copy_only=False)
        both = 0 < label[rows].sum() < len(rows)  # the rows of a few users may all have one class
        probabilities = dataset.true_probabilities()
        best = {"bayes_auc": {k: float(auc(label[rows], p[rows])) if both else None for k, p in probabilities.items()}}
    return {
        "dataset": name,
        "folder": str(into),
        "files": synthetic.list_files(dataset),
        "events": len(dataset.log),
        "users": len(np.unique(dataset.log[dataset.schema["user"]].to_numpy())),
        "test_rows": len(rows),
        **best,
    }
