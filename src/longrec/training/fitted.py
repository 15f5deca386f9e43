"""Training of a model that counts: its settings are chosen by validation, and there are no steps."""

from __future__ import annotations

import copy
import io
import time
from collections.abc import Callable
from pathlib import Path

from longrec.models.core import artifact
from longrec.models.core.kinds import FittedRetriever
from longrec.progress import Progress
from longrec.training import checkpoint
from longrec.training.tracking import MetricsFile


def fit_model(
    model: FittedRetriever,
    folder: Path,
    monitor: str,
    validate: Callable[[FittedRetriever], dict[str, float]] | None,
    lower_is_better: bool,
    quiet: bool,
) -> checkpoint.State:
    """Choose the settings of a fitted model and save it as the best one of a run folder.

    Every alternative is measured on the rows of validation, and is one line of ``metrics.jsonl``. Without such rows the
    first alternative is used.

    Args:
        model: after ``fit_statistics``.
        monitor: metric that chooses.
        validate: function that returns the metrics of a model.
    """
    began, state = time.perf_counter(), checkpoint.State(stopped="fitted")
    alternatives = list(model.alternatives())
    metrics, chosen = MetricsFile(folder / "metrics.jsonl", 0), model
    stream = io.StringIO() if quiet else None
    try:
        with Progress(
            max(len(alternatives), 1), f"fit {folder.absolute().name}", "settings", stream=stream
        ) as progress:
            for number, settings in enumerate(alternatives or [{}]):
                one = copy.deepcopy(model) if alternatives else model
                if alternatives:
                    one.select(settings)
                if validate is None:
                    chosen = one
                    break
                measures = validate(one)
                metrics.write("valid", number, float(number), time.perf_counter() - began, measures)
                value = measures[monitor]
                if state.best is None or (value < state.best if lower_is_better else value > state.best):
                    state.best, state.best_step, chosen = value, number, one
                progress.advance(note=f"valid {monitor} {value:.4f}")
    finally:
        metrics.close()
    state.seconds = time.perf_counter() - began
    checkpoint.replace_folder(folder / "checkpoints" / "best", lambda into: artifact.save(chosen, into))
    return state
