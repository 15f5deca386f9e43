"""Evaluation of finished runs: predictions of a split, metrics with intervals, comparisons on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longrec.errors import ConfigError, RunError
from longrec.metrics import Comparison
from longrec.metrics.bootstrap import Resample
from longrec.metrics.own import MetricsLike, read_metrics
from longrec.training.device import choose_run_device, prepare_torch
from longrec.training.finished_run import Run, open_run
from longrec.training.hooks import add_differences, add_metrics
from longrec.training.objectives.objective import Evaluation

__all__ = ["Evaluation", "compare", "evaluate", "predict"]


def evaluate(
    run: Run | str | Path,
    split: str = "test",
    *,
    resample: Resample | None = None,
    n_resamples: int | None = None,
    seed: int | None = None,
    metrics: MetricsLike = (),
    device: str | None = None,
) -> Evaluation:
    """Compute the metrics of a run on a split with intervals. Missing predictions are computed first.

    Args:
        split: ``test``, ``valid`` or ``train``.
        resample, n_resamples, seed: settings of the bootstrap. Default: those of the run's config.
        metrics: metrics of one's own, functions of labels, scores and users, by name.
        device: device that scores, as in ``predict``.

    Raises:
        RunError: no finished run, or a split without rows.
        DataError: a split with labels of one class.
    """
    run = run if isinstance(run, Run) else open_run(run)
    table = _read_predictions(run, split, device)
    arguments = {"resample": resample, "n_resamples": n_resamples, "seed": seed}
    config = run.config.evaluate.model_copy(
        update={key: value for key, value in arguments.items() if value is not None}
    )
    own = read_metrics(metrics)
    evaluation = add_metrics(
        run.objective.measure(table, run.name, run.config.model["name"], split, config), table, own, config
    )
    return replace(evaluation, warnings=(*run.results.get("run_warnings", ()), *evaluation.warnings))


def predict(
    run: Run | str | Path,
    split: str = "test",
    out: str | Path | None = None,
    *,
    device: str | None = None,
    quiet: bool = False,
) -> Path:
    """Score a split of the run's prepared log with its best model, with precision and threads of training.

    Args:
        out: Parquet file to write. Default ``predictions/SPLIT.parquet`` in the run folder.
        device: ``auto``, ``cpu`` or ``cuda``. Default: that of the run, or the CPU where there is no GPU.

    Returns:
        The file. Of a ranker, one row per sample with row, user (row of the user in the log), time, label, score. For
        each further task of the model also label.TASK (null if not available) and score.TASK. Of a retriever, one row
        per target with row, user, time, item (row of the item in the log) and rank.

    Raises:
        RunError: no finished run, a split without rows, or a missing prepared log.
        ResourceError: ``cuda`` without a CUDA device.
    """
    run = run if isinstance(run, Run) else open_run(run)
    fit, target = run.config.fit, choose_run_device(run.config.fit.device, device)
    log, path = run.log(), Path(out) if out is not None else run.folder / "predictions" / f"{split}.parquet"
    with prepare_torch(fit.threads, fit.seed, target):
        run.objective.write_predictions(run.model().to(target), log, split, path, fit, run.config.evaluate, quiet=quiet)
    return path


def compare(
    runs: Sequence[Run | str | Path],
    split: str = "test",
    *,
    resample: Resample = "user",
    n_resamples: int = 300,
    seed: int = 0,
    baseline: str | None = None,
    metrics: MetricsLike = (),
) -> Comparison:
    """Compare runs on the same rows, with paired intervals of every difference.

    Runs can be compared if their splits hold the same samples: same users, times and labels in the same order. Their
    schemas and histories may differ. The log and the split may not.

    Args:
        baseline: name of the run to compare the others with. Default: the first.
        metrics: metrics of one's own, functions of labels, scores and users, by name.

    Raises:
        ConfigError: fewer than two runs.
        RunError: runs of different rows, or one that is not finished.
    """
    opened = [run if isinstance(run, Run) else open_run(run) for run in runs]
    if len(opened) < 2:
        raise ConfigError("compare", [f"needs two runs or more, got {len(opened)}"])
    names = [run.name for run in opened]
    if len(set(names)) < len(names):
        names = [str(run.folder) for run in opened]
    if len(set(names)) < len(names):
        raise ConfigError("compare", ["the same run is named twice"])
    kinds = {run.objective.name for run in opened}
    if len(kinds) > 1:
        faults = [f"needs runs of one objective, got {', '.join(sorted(kinds))}: their metrics do not compare"]
        raise ConfigError("compare", faults)
    objective, tables = opened[0].objective, [_read_predictions(run, split) for run in opened]
    for name, table in zip(names[1:], tables[1:]):
        _check_same_rows(objective.same_columns, split, names[0], tables[0], name, table)
    comparison = objective.compare(
        dict(zip(names, tables)),
        opened[0].config.evaluate,
        split,
        baseline=baseline,
        resample=resample,
        n_resamples=n_resamples,
        seed=seed,
    )
    return add_differences(comparison, dict(zip(names, tables)), read_metrics(metrics), seed)


def _read_predictions(run: Run, split: str, device: str | None = None) -> pa.Table:
    if not (run.folder / "predictions" / f"{split}.parquet").exists():
        predict(run, split, device=device)
    return run.predictions(split)


def _check_same_rows(
    columns: Sequence[str], split: str, first: str, one: pa.Table, second: str, other: pa.Table
) -> None:
    do = "compare runs of one log and one split"
    if len(one) != len(other):
        raise RunError(f"{split} rows of {first} and {second}", f"{len(one):,} and {len(other):,}", "the same rows", do)
    # The index of a user depends on the other users of the log. The last row of a user does not.
    if ("weight" in one.column_names) != ("weight" in other.column_names):
        description, expected = "one with sample weights and one without", "both with the same weights"
        raise RunError(
            f"{split} rows of {first} and {second}", description, expected, "set the same evaluate.sample_weight"
        )
    for name in (column for column in columns if column in one.column_names):
        a, b = one[name].to_numpy(), other[name].to_numpy()
        differ = _find_ends(a) != _find_ends(b) if name == "user" else a != b
        if differ.any():
            at = int(np.flatnonzero(differ)[0])
            raise RunError(
                f"{split} rows of {first} and {second}", f"another {name} in sample {at:,}", "the same rows", do
            )


def _find_ends(user: NDArray[Any]) -> NDArray[np.bool_]:
    return np.diff(user) != 0
