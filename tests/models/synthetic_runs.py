"""Runs of models on synthetic datasets, and their AUC."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longrec.data import synthetic
from longrec.data.synthetic import SyntheticDataset
from longrec.metrics import auc
from longrec.training.finished_run import Run
from longrec.training.fit import train


def run_in(dataset: SyntheticDataset, model: Mapping[str, Any], folder: Path, name: str = "x", **fit: Any) -> Run:
    """Train a model on a dataset, in a folder that several runs may share."""
    if not (folder / "log.parquet").exists():
        synthetic.write(dataset, folder)
    job = dataset.job(
        folder, model, runs=str(folder / "runs"), tensorboard="off", mlflow="off", **{"val_checks_per_epoch": 1, **fit}
    )
    job["data"] |= {"folder": str(folder / "prepared"), "threads": 1}
    return train({**job, "name": name, "evaluate": {"n_resamples": 2}}, quiet=True)


def aucs_of(dataset: SyntheticDataset, run: Run) -> tuple[float, float]:
    """Return the AUC of a run on the test rows, and that of the true probabilities."""
    table = run.predictions("test")
    label, score, row = (table[name].to_numpy() for name in ("label", "score", "row"))
    return auc(label, score), auc(label, dataset.true_probability[row])


def solves(dataset: SyntheticDataset, model: Mapping[str, Any], folder: Path, name: str = "x", **fit: Any) -> bool:
    """Return True if a model reaches the bar of the dataset."""
    model_auc, bayes_auc = aucs_of(dataset, run_in(dataset, model, folder, name, **fit))
    return model_auc >= dataset.required_auc(bayes_auc)
