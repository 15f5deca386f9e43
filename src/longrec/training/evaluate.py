"""Evaluation of finished runs: predictions of a split, metrics with intervals, comparisons on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from longrec.data.splits import describe_timestamp
from longrec.errors import ConfigError
from longrec.metrics import Comparison
from longrec.metrics.bootstrap import Resample
from longrec.metrics.own import MetricsLike, read_metrics
from longrec.training.finished_run import Run, open_run
from longrec.training.hooks import add_differences, add_metrics
from longrec.training.new_data import read_new_labels
from longrec.training.objectives.objective import Evaluation
from longrec.training.predict_run import predict_split
from longrec.training.retriever_lists import add_list_metrics
from longrec.training.row_alignment import select_common_rows
from longrec.training.same_rows import check_same_rows
from longrec.training.seen_labels import read_seen_labels

__all__ = ["Evaluation", "compare", "evaluate", "evaluate_new", "predict"]


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
    run = open_run(run)
    table = _read_predictions(run, split, device)
    arguments = {"resample": resample, "n_resamples": n_resamples, "seed": seed}
    config = run.config.evaluate.model_copy(
        update={key: value for key, value in arguments.items() if value is not None}
    )
    own = read_metrics(metrics)
    evaluation = add_metrics(
        run.objective.measure(table, run.name, run.config.model["name"], split, config), table, own, config
    )
    if run.objective.name == "next_item":
        evaluation = add_list_metrics(evaluation, run, table, config, device)
    return replace(evaluation, warnings=(*run.results.get("run_warnings", ()), *evaluation.warnings))


def evaluate_new(
    run: Run, data: Any, *, metrics: MetricsLike = (), device: str | None = None, **tables: Any
) -> Evaluation:
    """Compute the metrics of a run on new rows that have labels, with intervals.

    Args:
        data, tables: as in ``predict_new``.
        metrics: metrics of one's own, functions of labels, scores and users, by name.

    Raises:
        RunError: rows without labels.
        DataError: labels of one class.
    """
    table = read_new_labels(run, data, device=device, **tables)
    config, own = run.config.evaluate, read_metrics(metrics)
    evaluation = run.objective.measure(table, run.name, run.config.model["name"], "new", config)
    evaluation = add_metrics(evaluation, table, own, config)
    return replace(evaluation, warnings=(*_warn_of_learned_rows(run, table), *evaluation.warnings))


def _warn_of_learned_rows(run: Run, table: pa.Table) -> list[str]:
    """Return a warning if new rows are so early that the run may have been trained on their labels."""
    seen = read_seen_labels(run)
    if "time" not in table.column_names or seen.trained is None:
        return []
    early = int((table["time"].cast(pa.int64()).to_numpy() < seen.trained).sum())
    if not early:
        return []
    end = describe_timestamp(seen.trained, seen.step)
    return [
        f"{early:,} of {len(table):,} new rows are earlier than {end}, the end of the training window, so the model "
        "may have learned their labels; only later rows measure what it does on new ones"
    ]


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
        per target with row, user, time, item (row of the item in the log) and rank. Of a generator also whether each
        token of the target is among the best three, as ``token_hr@3_code_1``.

    Raises:
        RunError: no finished run, a split without rows, or a missing prepared log.
        ResourceError: ``cuda`` without a CUDA device.
    """
    run = open_run(run)
    return predict_split(run, split, out, device=device, quiet=quiet)


def compare(
    runs: Sequence[Run | str | Path],
    split: str = "test",
    *,
    resample: Resample = "user",
    n_resamples: int = 300,
    seed: int = 0,
    baseline: str | None = None,
    metrics: MetricsLike = (),
    common: bool = False,
    log: Any = None,
    device: str | None = None,
    **entities: Any,
) -> Comparison:
    """Compare runs on the same rows, with paired intervals of every difference.

    Runs can be compared if their splits hold the same samples: same users, times and labels in the same order. Their
    schemas and histories may differ. The log and the split may not, unless the rows are ``common`` ones or those of a
    new ``log``.

    Args:
        baseline: name of the run to compare the others with. Default: the first.
        common: compare on the rows that the splits of all runs have, by user, item and timestamp.
        log: new rows with labels that all runs score, in place of a split.
        device, entities: as in ``predict_new``.
        metrics: metrics of one's own, functions of labels, scores and users, by name.

    Raises:
        ConfigError: fewer than two runs.
        RunError: runs of different rows, or one that is not finished.
    """
    opened = [open_run(run) for run in runs]
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
    objective, warnings = opened[0].objective, list[str]()
    if log is not None:
        tables, split = [read_new_labels(run, log, device=device, **entities) for run in opened], "new"
        pairs = zip(names, opened, tables)
        warnings += [f"{name}: {text}" for name, run, table in pairs for text in _warn_of_learned_rows(run, table)]
    else:
        tables = [_read_predictions(run, split) for run in opened]
    if common and log is None:
        counts = [len(table) for table in tables]
        logs = {name: run.log() for name, run in zip(names, opened)}
        tables = list(select_common_rows(dict(zip(names, tables)), logs).values())
        shares = ", ".join(f"{count:,} of {name}" for name, count in zip(names, counts))
        if counts != [len(tables[0])] * len(counts):
            warnings.append(f"compared on {len(tables[0]):,} common rows, of {split} rows: {shares}")
    for name, table in zip(names[1:], tables[1:]):
        check_same_rows(objective.same_columns, split, names[0], tables[0], name, table)
    comparison = objective.compare(
        dict(zip(names, tables)),
        opened[0].config.evaluate,
        split,
        baseline=baseline,
        resample=resample,
        n_resamples=n_resamples,
        seed=seed,
    )
    comparison = add_differences(comparison, dict(zip(names, tables)), read_metrics(metrics), seed)
    return replace(comparison, warnings=(*warnings, *comparison.warnings))


def _read_predictions(run: Run, split: str, device: str | None = None) -> pa.Table:
    if not (run.folder / "predictions" / f"{split}.parquet").exists():
        predict(run, split, device=device)
    return run.predictions(split)
