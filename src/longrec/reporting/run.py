"""Loading of run folders for reports."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from longrec.errors import RunError
from longrec.metrics import CalibrationCurve, Interval, calibration_curve, metric_warnings, rename_metric


@dataclass(frozen=True)
class RunView:
    """Content of one run for tables and pages.

    Attributes:
        name: name of the run, which is that of its folder.
        model: name of its model.
        split: name of the measured rows, usually ``test``.
        rows, users, positives: counts of the measured rows.
        metrics: key -> interval.
        seconds: training time in seconds. None if unknown.
        curves: (split, measure) -> points (epoch, value), as (``train``, ``loss``) or (``valid``, ``auc``).
        config: the resolved config, YAML text.
        calibration: predicted and observed rates of the predictions. None without predictions.
        warnings: one sentence per reason to read the metrics with caution.
        headline: metric of the learning curve, higher is better.
    """

    name: str
    model: str
    split: str
    rows: int
    users: int
    positives: int
    metrics: dict[str, Interval]
    seconds: float | None
    curves: dict[tuple[str, str], list[tuple[float, float]]]
    config: str
    calibration: CalibrationCurve | None
    warnings: tuple[str, ...] = ()
    headline: str = "auc"


@dataclass(frozen=True)
class Predictions:
    """Columns of ``predictions/SPLIT.parquet``: row in the log, user, time, label, score."""

    row: NDArray[np.int64]
    user: NDArray[np.int64]
    time: NDArray[np.int64]
    label: NDArray[np.float32]
    score: NDArray[np.float32]
    weight: NDArray[np.float32] | None = None


def read_run(folder: str | Path) -> RunView:
    """Read a finished run, with the predictions of the split in its results.

    ``results.json`` is required. Learning curves, predictions and config are optional.

    Raises:
        RunError: if there is no such folder, it has no results yet, or a file cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(
            str(folder), "no such folder", "the folder of a run", "give the folder that `longrec train` named"
        )
    path = folder / "results.json"
    if not path.exists():
        raise RunError(str(folder), "no results.json", "a run that was evaluated", "run `longrec evaluate` on it first")
    results = _parse_json(path.read_text(encoding="utf-8"), str(path))
    split = str(results.get("split", "test"))
    predicted = folder / "predictions" / f"{split}.parquet"
    config, is_ranker = folder / "config.yaml", results.get("objective", "clicks") == "clicks"
    try:
        metrics = {rename_metric(str(key)): Interval.from_dict(value) for key, value in results["metrics"].items()}
        seconds = results.get("seconds")
        view = RunView(
            name=folder.resolve().name,
            model=str(results["model"]),
            split=split,
            rows=int(results["rows"]),
            users=int(results["users"]),
            positives=int(results["positives"]),
            metrics=metrics,
            seconds=None if seconds is None else float(seconds),
            curves=read_curves(folder / "metrics.jsonl"),
            config=config.read_text(encoding="utf-8") if config.exists() else "",
            calibration=_read_calibration(folder, split) if is_ranker and predicted.exists() else None,
            # Results of older versions have none.
            warnings=tuple(map(str, results.get("warnings", metric_warnings(metrics, split) if is_ranker else ()))),
            headline="auc" if is_ranker else next(key for key in metrics if key.startswith("ndcg@")),
        )
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise RunError(
            str(path), f"{type(error).__name__}: {error}", "what `longrec evaluate` writes", "evaluate the run again"
        ) from None
    return view


def read_curves(path: Path) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Read learning curves from ``metrics.jsonl``: (split, measure) -> points (epoch, value). Empty without a file.

    A resumed run writes some steps twice. The later line counts. For lines without an epoch, x is the step.

    Raises:
        RunError: if a line is not a JSON object with ``step`` and ``split``.
    """
    if not path.exists():
        return {}
    points: dict[tuple[str, str], dict[int, tuple[float, float]]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        content = _parse_json(line, where)
        if "step" not in content or "split" not in content:
            raise RunError(where, f"keys {', '.join(content)}", "step and split among the keys")
        x = float(content.get("epoch", content["step"]))
        for key, value in content.items():
            if key in ("step", "epoch", "split", "seconds") or isinstance(value, bool):
                continue
            if isinstance(value, (int, float)) and np.isfinite(value):
                points.setdefault((content["split"], rename_metric(key)), {})[content["step"]] = (x, float(value))
    return {key: [by_step[step] for step in sorted(by_step)] for key, by_step in points.items()}


def read_predictions(folder: str | Path, split: str = "test") -> Predictions:
    """Read the predictions of a run.

    Raises:
        RunError: if there are no predictions, or the file cannot be read.
    """
    path = Path(folder) / "predictions" / f"{split}.parquet"
    if not path.exists():
        raise RunError(str(path), "no such file", f"predictions on {split}", "run `longrec predict` on the run first")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise RunError(str(path), " ".join(str(error).split()), "a Parquet file of predictions") from None
    missing = {"row", "user", "time", "label", "score"} - set(table.column_names)
    if missing:
        raise RunError(str(path), f"no column {', '.join(sorted(missing))}", "row, user, time, label and score")
    row, user, time, label, score = (
        table.column(name).to_numpy() for name in ("row", "user", "time", "label", "score")
    )
    weight = table["weight"].to_numpy() if "weight" in table.column_names else None
    return Predictions(row, user, time, label, score, weight)


def _read_calibration(folder: Path, split: str) -> CalibrationCurve:
    predictions = read_predictions(folder, split)
    return calibration_curve(predictions.label, predictions.score, weight=predictions.weight)


def _parse_json(text: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise RunError(where, f"not JSON ({error.msg})", "a JSON object", "the file was cut off or edited") from None
    if not isinstance(content, dict):
        raise RunError(where, f"a JSON {type(content).__name__}", "a JSON object")
    return content
