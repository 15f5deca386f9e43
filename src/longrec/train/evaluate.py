"""Evaluation of finished runs: predictions of a split, metrics with intervals, comparisons on the same rows."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from longrec import metrics
from longrec.data.label_checks import check_classes, check_window, describe_exclusions
from longrec.data.log import Log
from longrec.data.sample_weights import check_weights
from longrec.data.splits import SPLITS
from longrec.data.targets import compute_target
from longrec.errors import ConfigError, DataError, RunError, UnknownName
from longrec.metrics import Comparison, Interval
from longrec.metrics.bootstrap import Resample
from longrec.models.core.base import Model
from longrec.models.core.kinds import Retriever
from longrec.models.core.registry import find
from longrec.progress import Progress
from longrec.train.checkpoint import replace_file
from longrec.train.device import choose_run_device, prepare_torch
from longrec.train.finished_run import Run, open_run
from longrec.train.job import Job
from longrec.train.scoring import score_tasks
from longrec.train.settings import EvaluateConfig

_TASK_METRICS = ("auc", "log_loss", "normalized_entropy", "pcoc")


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one run on one split.

    Attributes:
        run, model, split: names.
        rows, users, positives: numbers of rows, users and positive rows.
        users_skipped: users whose rows have one class, which GAUC excludes.
        metrics: AUC, GAUC, log loss, normalized entropy, PCOC, ECE, with 95 % intervals; of a model of several tasks
            also AUC, log loss, normalized entropy and PCOC of each further task, as ``auc.TASK``.
        warnings: one sentence per reason for caution with these metrics.
        sample_weight: column with the weights of the rows. None for equal weights.
    """

    run: str
    model: str
    split: str
    rows: int
    users: int
    positives: int
    users_skipped: int
    metrics: dict[str, Interval]
    warnings: tuple[str, ...] = ()
    sample_weight: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts and numbers for JSON."""
        metrics = {key: one.to_dict() for key, one in self.metrics.items()}
        return {**vars(self), "metrics": metrics, "warnings": list(self.warnings)}


def evaluate(
    run: Run | str | Path,
    split: str = "test",
    *,
    resample: Resample | None = None,
    n_resamples: int | None = None,
    seed: int | None = None,
    device: str | None = None,
) -> Evaluation:
    """Compute the metrics of a run on a split with intervals. Missing predictions are computed first.

    Args:
        split: ``test``, ``valid`` or ``train``.
        resample, n_resamples, seed: settings of the bootstrap. Default: those of the run's config.
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
    evaluation = measure_table(table, run.name, run.config.model["name"], split, config)
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
        The file: one row per sample with row, user (row of the user in the log), time, label, score. For each further
        task of the model also label.TASK (null if not available) and score.TASK.

    Raises:
        RunError: no finished run, a split without rows, or a missing prepared log.
        ResourceError: ``cuda`` without a CUDA device.
    """
    run = run if isinstance(run, Run) else open_run(run)
    fit, target = run.config.fit, choose_run_device(run.config.fit.device, device)
    log, path = run.log(), Path(out) if out is not None else run.folder / "predictions" / f"{split}.parquet"
    with prepare_torch(fit.threads, fit.seed, target):
        write_predictions(run.model().to(target), log, run.config, split, path, quiet=quiet)
    return path


def compare(
    runs: Sequence[Run | str | Path],
    split: str = "test",
    *,
    resample: Resample = "user",
    n_resamples: int = 300,
    seed: int = 0,
    baseline: str | None = None,
) -> Comparison:
    """Compare runs on the same rows, with paired intervals of every difference.

    Runs can be compared if their splits hold the same samples: same users, times and labels in the same order. Their
    schemas and histories may differ. The log and the split may not.

    Args:
        baseline: name of the run to compare the others with. Default: the first.

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
    tables = [_read_predictions(run, split) for run in opened]
    for name, table in zip(names[1:], tables[1:]):
        _check_same_rows(split, names[0], tables[0], name, table)
    scores = {name: table["score"].to_numpy() for name, table in zip(names, tables)}
    label, user = tables[0]["label"].to_numpy(), tables[0]["user"].to_numpy()
    weight = tables[0]["weight"].to_numpy() if opened[0].config.evaluate.sample_weight is not None else None
    comparison = metrics.compare(
        label,
        scores,
        user,
        baseline=baseline,
        n_resamples=n_resamples,
        seed=seed,
        resample=resample,
        split=split,
        weight=weight,
    )
    warnings = [
        warning
        for name, table in zip(names, tables)
        for warning in metrics.metric_warnings(comparison.runs[name], split, name, _find_non_probabilities(table))
    ]
    return replace(comparison, warnings=tuple(warnings), sample_weight=opened[0].config.evaluate.sample_weight)


def write_predictions(model: Model, log: Log, job: Job, split: str, path: Path, *, quiet: bool = False) -> pa.Table:
    """Score a split, write its Parquet file atomically, and return the table."""
    if split not in SPLITS:
        raise UnknownName("split", split, SPLITS)
    rows = log.rows_of(split)
    if not len(rows):
        raise RunError(split, "no rows", "a split with samples", "check data.split")
    with Progress(len(rows), f"score {split}", "rows", stream=io.StringIO() if quiet else None) as progress:
        scores, tasks = score_tasks(model, log, rows, job.evaluate.batch_size, bf16=job.fit.bf16, progress=progress)
    columns = {
        "row": rows,
        "user": log.user(rows).astype(np.int32),
        "time": log.events.times.take(rows),
        "label": log.labels.take(rows),
        "score": scores,
    }
    if job.evaluate.sample_weight is not None:
        columns["weight"] = log.weight_of(job.evaluate.sample_weight).take(rows)
    for name, probability in tasks.items():
        if name in model.targets:
            columns[f"label.{name}"] = pa.array(compute_target(log, name, rows), from_pandas=True)
        columns[f"score.{name}"] = probability
    table = pa.table(columns)
    replace_file(path, lambda partial: pq.write_table(table, partial))
    return table


def measure_table(table: pa.Table, run: str, model: str, split: str, config: EvaluateConfig) -> Evaluation:
    """Compute the metrics of a table of predictions.

    Raises:
        DataError: labels of one class, or fewer than two users to resample.
    """
    label, scores, user = (table[name].to_numpy() for name in ("label", "score", "user"))
    weight = table["weight"].to_numpy() if config.sample_weight is not None else None
    metrics_by_name = _summarize(label, scores, user, weight, config)
    for column in table.column_names:
        name = column.removeprefix("score.")
        if name != column:
            metrics_by_name |= _measure_task(table, name, config)
    grouped = metrics.grouped_auc(label, scores, user, weight)
    return Evaluation(
        run=run,
        model=model,
        split=split,
        rows=len(label),
        users=grouped.users + grouped.users_skipped,
        positives=int(label.sum()),
        users_skipped=grouped.users_skipped,
        metrics=metrics_by_name,
        warnings=metrics.metric_warnings(metrics_by_name, split, not_probabilities=_find_non_probabilities(table)),
        sample_weight=config.sample_weight,
    )


def check_splits(log: Log, job: Job) -> None:
    """Refuse, before training, a training window without labels, and a valid or test split that cannot be evaluated.

    A retriever learns from positives, so its labels may be all 1.

    Raises:
        DataError: no samples in either split, labels of one class, one user if users are resampled, or no user that
            the monitor GAUC could count.
    """
    do = "change the split (data.split), or check the condition of the label"
    retrieves = issubclass(find(job.model["name"]), Retriever)
    if not retrieves:
        check_classes(log)
    check_window(log, both_classes=not retrieves)
    splits = {split: rows for split in ("valid", "test") if len(rows := log.rows_of(split))}
    if not splits:
        raise DataError("data.split", "no sample in valid and none in test", "samples in at least one split", do)
    for split, rows in splits.items():
        labels, users, where = log.labels.take(rows), log.user(rows), f"the {split} split"
        if len(log.excluded_rows(split).rows):
            where += f", without {len(log.excluded_rows(split).rows):,} rows ({describe_exclusions(log, split)})"
        if labels.max() == 0 or (not retrieves and labels.min() == 1):
            raise DataError(where, f"{len(rows):,} samples that are all {labels[0]:g}", "both classes", do)
        if job.evaluate.resample == "user" and users[0] == users[-1]:
            raise DataError(where, "samples of one user", "two users or more", f"{do}, or set evaluate.resample: row")
        if retrieves:
            continue
        if split == "valid" and job.fit.monitor == "gauc" and not metrics.grouped_auc(labels, labels, users).users:
            raise DataError(where, "no user with samples of both classes", "at least one", "set fit.monitor: auc")
    _check_weights(log, job, splits)


def _check_weights(log: Log, job: Job, splits: Mapping[str, NDArray[np.int64]]) -> None:
    """Refuse sample weights that leave a class without weight in training or evaluation rows."""
    weights = [(job.fit.sample_weight, "train", log.rows_of("train"), "fit.sample_weight")]
    weights += [(job.evaluate.sample_weight, split, rows, "evaluate.sample_weight") for split, rows in splits.items()]
    for column, split, rows, setting in weights:
        if column is not None:
            check_weights(log.weight_of(column).take(rows), log.labels.take(rows), split, setting)


def _summarize(
    label: NDArray[Any], scores: NDArray[Any], user: NDArray[Any], weight: NDArray[Any] | None, config: EvaluateConfig
) -> dict[str, Interval]:
    n_resamples, seed, resample = config.n_resamples, config.seed, config.resample
    return metrics.summary(label, scores, user, n_resamples=n_resamples, seed=seed, resample=resample, weight=weight)


def _find_non_probabilities(table: pa.Table) -> list[str]:
    """Return the unnamed score if it combines tasks. The probability of the label is then a column of its own."""
    return [""] if "score.label" in table.column_names else []


def _measure_task(table: pa.Table, name: str, config: EvaluateConfig) -> dict[str, Interval]:
    """Compute the metrics of a further task on the rows with its label. They are undefined for one class."""
    label = table["label" if name == "label" else f"label.{name}"].to_numpy()
    is_labeled = ~np.isnan(label)
    weight = None
    if config.sample_weight is not None:
        weight = table["weight"].to_numpy()
        is_labeled &= weight > 0
        weight = weight[is_labeled]
    label, scores, user = (
        label[is_labeled],
        table[f"score.{name}"].to_numpy()[is_labeled],
        table["user"].to_numpy()[is_labeled],
    )
    units = len(label) if config.resample == "row" else len(np.unique(user))
    metrics_by_name: dict[str, Interval] = {}
    if units > 1 and label.min() < label.max():
        metrics_by_name = _summarize(label, scores, user, weight, config)
    return {f"{key}.{name}": metrics_by_name.get(key, Interval.undefined()) for key in _TASK_METRICS}


def _read_predictions(run: Run, split: str, device: str | None = None) -> pa.Table:
    if not (run.folder / "predictions" / f"{split}.parquet").exists():
        predict(run, split, device=device)
    return run.predictions(split)


def _check_same_rows(split: str, first: str, one: pa.Table, second: str, other: pa.Table) -> None:
    do = "compare runs of one log and one split"
    if len(one) != len(other):
        raise RunError(f"{split} rows of {first} and {second}", f"{len(one):,} and {len(other):,}", "the same rows", do)
    # The index of a user depends on the other users of the log. The last row of a user does not.
    if ("weight" in one.column_names) != ("weight" in other.column_names):
        description, expected = "one with sample weights and one without", "both with the same weights"
        raise RunError(
            f"{split} rows of {first} and {second}", description, expected, "set the same evaluate.sample_weight"
        )
    for name in ("time", "label", "user", *(["weight"] if "weight" in one.column_names else [])):
        a, b = one[name].to_numpy(), other[name].to_numpy()
        differ = _find_ends(a) != _find_ends(b) if name == "user" else a != b
        if differ.any():
            at = int(np.flatnonzero(differ)[0])
            raise RunError(
                f"{split} rows of {first} and {second}", f"another {name} in sample {at:,}", "the same rows", do
            )


def _find_ends(user: NDArray[Any]) -> NDArray[np.bool_]:
    return np.diff(user) != 0
