"""Finished run: its metrics, its model, its config and its log.

config.yaml        the resolved job              schema/        the fitted schema
metrics.jsonl      losses and validations        log.json       which prepared log
environment.json   versions, processor, git      checkpoints/   best (a saved model), last (to resume from)
predictions/       valid.parquet, test.parquet   results.json   metrics with intervals; written last
report.html        metrics, segments and samples, for people
NOTES.md           differences from the configuration of another tool, for imported jobs
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from longrec.data.log import Log
from longrec.data.prepare import prepare
from longrec.data.source_checks import sources
from longrec.data.splits import parse_cutoff
from longrec.errors import DataError, RunError
from longrec.features.fitted_schema import FittedSchema
from longrec.metrics import Interval, rename_metric
from longrec.metrics.interval import list_intervals, show_intervals
from longrec.tabular import Columns, Tabular, format_path
from longrec.training.history import History, read_history
from longrec.training.hook_record import read_monitors
from longrec.training.job import Job, read_job

if TYPE_CHECKING:
    from longrec.models.core.base import Model
    from longrec.training.objectives.objective import Objective

OBJECTIVE_NAMES = ("clicks", "lists", "next_item")
"""Names of ``training/objectives``, which a run may have."""


@dataclass(frozen=True, repr=False)
class Run(Tabular):
    """Run that has ended.

    Attributes:
        folder: the run folder.
        results: contents of ``results.json``.
        model_class: class of its model, given by the caller. None for the one that the name of the model imports.
    """

    folder: Path
    results: dict[str, Any]
    model_class: type[Model] | None = None

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return self.folder.absolute().name

    @cached_property
    def metrics(self) -> dict[str, Interval]:
        """Metrics on test with their intervals (on valid if the split has no test rows)."""
        return {key: Interval.from_dict(value) for key, value in self.results["metrics"].items()}

    @cached_property
    def history(self) -> History:
        """Training losses and validations by step."""
        return read_history(self.folder)

    def to_columns(self) -> Columns:
        """Return one row per metric, with its interval."""
        return list_intervals(self.metrics)

    def shown(self) -> tuple[str, Columns]:
        """Return the folder with the warnings, and one line per metric."""
        facts = f"{self.results.get('model', 'model')}, best at step {self.results.get('best_step', 0):,}"
        lines = [f"Run {format_path(self.folder)}: {facts}, measured on {self.results.get('split', 'test')}"]
        lines += [f"warning: {warning}" for warning in self.results.get("warnings", ())]
        return "\n".join(lines), show_intervals(self.metrics)

    @cached_property
    def objective(self) -> Objective:
        """Objective of the run. Results of earlier versions are of clicks."""
        from longrec.training.objectives import OBJECTIVES  # imports torch

        return OBJECTIVES[self.results.get("objective", "clicks")]

    @cached_property
    def config(self) -> Job:
        """Job of the run with all defaults filled in."""
        return read_job(
            self.folder / "config.yaml", model_class=self.model_class, own_monitors=read_monitors(self.folder)
        )

    @cached_property
    def fitted(self) -> FittedSchema:
        """Schema with its fitted encoders."""
        return FittedSchema.load(self.folder / "schema")

    def model(self) -> Model:
        """Load the model of the best validation, in eval mode."""
        from longrec.models.core import artifact  # imports torch

        return artifact.load(self.folder / "checkpoints" / "best", self.model_class).eval()

    def log(self) -> Log:
        """Open the prepared log it was trained on.

        Raises:
            RunError: the log is missing.
        """
        return open_log(self.folder, self.config)

    def predict(
        self,
        data: Any = None,
        *,
        split: str = "test",
        users: Any = None,
        items: Any = None,
        candidates: bool = False,
        device: str | None = None,
    ) -> pa.Table:
        """Score new rows, or a split of the run's own log, and return the table of scores.

        Args:
            data: new rows: a path, several paths, a mapping as ``data.log`` of a config, or a frame (pandas, polars,
                Arrow, DuckDB). None scores the split.
            users, items, candidates, device: as in ``longrec.predict``.

        Returns:
            Of new rows, in their order: row, user, item, time, label (if they have it) and score, and for each further
            task of the model also label.TASK and score.TASK. Of a split: see ``predictions``.
        """
        from longrec.training.new_data import predict_new  # imports torch
        from longrec.training.predict_run import predict_split

        if data is not None:
            settings = {"users": users, "items": items, "candidates": candidates, "device": device}
            return predict_new(self, data, **settings).table
        predict_split(self, split, device=device)
        return self.predictions(split)

    def predictions(self, split: str = "test") -> pa.Table:
        """Read the predictions of one split: of clicks the columns row, user, time, label, score.

        Raises:
            RunError: no predictions of this split, or a damaged file.
        """
        path = self.folder / "predictions" / f"{split}.parquet"
        if not path.exists():
            raise RunError(str(path), "no such file", f"predictions of {split}", "run longrec predict for this split")
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise RunError(str(path), " ".join(str(error).split()), "a Parquet file", "predict again") from None
        columns = self.objective.columns
        missing = set(columns) - set(table.column_names)
        if missing:
            raise RunError(str(path), f"no column {', '.join(sorted(missing))}", ", ".join(columns), "predict again")
        return table

    def report(self, into: str | Path | None = None) -> Path:
        """Write the HTML report of the run, and return its path. Default: ``report.html`` in the run folder."""
        from longrec.training.run_report import write_report  # imports torch

        return write_report([self], into)


def open_run(path: str | Path | Run, model: type[Model] | None = None) -> Run:
    """Open the folder of a finished run.

    Args:
        path: the folder. An open run is returned as it is, so that functions take either.
        model: class of its model, for one that was defined in a notebook or script of another process.

    Raises:
        RunError: no such folder, no run, no finished run, or results that cannot be read.
    """
    if isinstance(path, Run):
        return path if model is None else replace(path, model_class=model)
    folder = Path(path)
    require_run(folder)
    file = folder / "results.json"
    if not file.exists():
        raise RunError(
            str(folder),
            "a run that has not ended",
            "a finished run",
            f"continue it: longrec train --resume {folder}",
        )
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        for split in (results, results.get("valid")):
            if split:
                split["metrics"] = {rename_metric(key): value for key, value in split["metrics"].items()}
        if not results["metrics"] or results.get("objective", "clicks") not in OBJECTIVE_NAMES:
            raise KeyError("metrics")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(str(file), f"not readable ({error})", "results of a training", "train again") from None
    return Run(folder, results, model)


def open_earlier_run(path: str | Path, model: Model) -> Run:
    """Open the run that the training of a model starts from. If it has a model of the same name, it has its class.

    Raises:
        RunError: as ``open_run``.
    """
    from longrec.models.core.registry import name_of  # imports torch

    run = open_run(path)
    return replace(run, model_class=type(model)) if run.results.get("model") == name_of(model) else run


def require_run(folder: Path) -> None:
    """Raise a RunError unless ``folder`` is a run folder, finished or not."""
    if not folder.is_dir():
        near = sorted(other.name for other in folder.parent.glob("*/config.yaml") for other in [other.parent])
        suggestion = f"; runs beside it: {', '.join(near[:8])}" if near else ""
        raise RunError(str(folder), f"no such folder{suggestion}", "the folder of a run")
    if not (folder / "config.yaml").exists():
        raise RunError(str(folder), "no config.yaml", "the folder of a run", "name the folder that training printed")


def read_log(job: Job, on_prepared: Callable[[Path], None] | None = None) -> Log:
    """Open the log of a job as training reads it, and prepare it if necessary (see ``prepare``)."""
    return _open_log(prepare(job.data, job.schema, on_prepared), job)


def _open_log(folder: str | Path, job: Job) -> Log:
    """Open a prepared log with the schema of a job and the settings of ``fit`` that choose and weight its rows.

    Raises:
        DataError: ``fit.train_from`` of a log without timestamps, or after all training rows.
    """
    log = Log.open(folder, job.schema, sample_weight=job.fit.sample_weight)
    first = job.fit.train_from
    if first is None:
        return log
    where = f"fit.train_from: {first}"
    if log.schema.time is None:
        raise DataError(where, "a schema without a time column", "timestamps to compare with", "remove the key")
    log.train_from = parse_cutoff(first, log.schema.time, "fit.train_from")
    if not len(log.rows_of("train")):
        do = "set an earlier timestamp, or check data.split"
        raise DataError(where, "no training row at or after it", "rows to train on", do)
    return log


def open_log(folder: Path, job: Job) -> Log:
    """Open the prepared log of a run folder with the schema of the run.

    Raises:
        RunError: the log is missing or cannot be read.
    """
    try:
        path = json.loads((folder / "log.json").read_text(encoding="utf-8"))["path"]
        return _open_log(path, job)
    except (OSError, ValueError, KeyError) as error:
        raise RunError(str(folder / "log.json"), f"not readable ({error})", "the path of a prepared log") from None
    except DataError as error:
        raise RunError(
            str(folder),
            f"its prepared log cannot be opened ({error.where}: {error.found})",
            "the log it was trained on",
            _advise_to_prepare(folder, job),
        ) from None


def _advise_to_prepare(folder: Path, job: Job) -> str:
    """Return how the log of a run is prepared again."""
    if any(source.frame is not None for _, source in sources(job.data)):
        return f"prepare it again in Python with the same frames: longrec.prepare(..., folder={job.data.folder!r})"
    return f"prepare it again: longrec prepare {folder / 'config.yaml'}"
