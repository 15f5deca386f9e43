"""Scores of a split of a run's own log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from longrec.data.log import Log
from longrec.models.core.base import Model
from longrec.training.device import choose_run_device, prepare_torch
from longrec.training.job import Job
from longrec.training.objectives.objective import Objective


class ScoringRun(Protocol):
    """What scoring needs of a run: see ``training/finished_run.py``."""

    @property
    def folder(self) -> Path:
        """The run folder."""

    @property
    def name(self) -> str:
        """Name of the run folder."""

    @property
    def objective(self) -> Objective:
        """Objective of the run."""

    @property
    def config(self) -> Job:
        """Job of the run."""

    def model(self) -> Model:
        """Load the model."""

    def log(self) -> Log:
        """Open the prepared log."""


def predict_split(
    run: ScoringRun,
    split: str = "test",
    out: str | Path | None = None,
    *,
    device: str | None = None,
    quiet: bool = False,
) -> Path:
    """Score a split of the run's prepared log, as ``longrec.training.evaluate.predict`` does, and return the file."""
    log, path = run.log(), Path(out) if out is not None else run.folder / "predictions" / f"{split}.parquet"
    with load_scorer(run, device) as model:
        run.objective.write_predictions(model, log, split, path, run.config.fit, run.config.evaluate, quiet=quiet)
    return path


@contextmanager
def load_scorer(run: ScoringRun, device: str | None) -> Iterator[Model]:
    """Provide the best model of a run on a device, with precision and threads of training.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``. Default: that of the run, or the CPU where there is no GPU.
    """
    fit, target = run.config.fit, choose_run_device(run.config.fit.device, device)
    with prepare_torch(fit.threads, fit.seed, target):
        yield run.model().to(target)
