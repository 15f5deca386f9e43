"""Objective: which rows a kind of model learns from, and how its predictions are measured.

The training loop, the evaluation and the run format know an objective and nothing of labels, scores or ranks. The loss
belongs to the model.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from longrec.data.log import Log
from longrec.data.splits import SPLITS
from longrec.errors import RunError, UnknownName
from longrec.features.batch import Batch
from longrec.metrics import Comparison, Interval
from longrec.metrics.interval import list_intervals, show_intervals
from longrec.metrics.own import Metric
from longrec.models.core.base import Model
from longrec.progress import Progress
from longrec.tabular import Columns, Tabular, format_rows
from longrec.training.checkpoint import replace_file
from longrec.training.objective_settings import ObjectiveSettings
from longrec.training.settings import EvaluateConfig, FitConfig


class Loader(Protocol):
    """Batches of training rows, in an order that depends only on the seed and the epoch."""

    @property
    def loss_rows(self) -> NDArray[np.int64]:
        """Rows of the log whose loss counts, int64."""

    def __len__(self) -> int:
        """Number of batches of an epoch."""

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, from batch ``start`` on."""


@dataclass(frozen=True, repr=False)
class Evaluation(Tabular):
    """Metrics of one run on one split.

    Attributes:
        run, model, split: names.
        rows, users, positives: numbers of rows, users and positive rows.
        users_skipped: users whose rows have one class, which GAUC excludes.
        metrics: values with 95 % intervals. Of clicks: AUC, GAUC, log loss, normalized entropy, PCOC, ECE; of models of
            several tasks also AUC, log loss, normalized entropy and PCOC of each further task, as ``auc.TASK``. Of the
            next item: HR, NDCG, MRR and recall. Of lists: NDCG, HR and MRR, those of the initial order as
            ``ndcg@10.base``, and the gains over it as ``ndcg@10.gain``.
        warnings: one sentence per reason for caution with these metrics.
        sample_weight: column with the weights of the rows. None for equal weights.
        objective: name of the objective.
        protocol: what the metrics depend on besides the rows, by name, in words.
        slices: metrics of slices of the rows, by division, slice and name.
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
    objective: str = "clicks"
    protocol: Mapping[str, str] = field(default_factory=dict)
    slices: Mapping[str, Mapping[str, Mapping[str, Interval]]] = field(default_factory=dict)

    def to_columns(self) -> Columns:
        """Return one row per metric, with its interval."""
        return list_intervals(self.metrics)

    def shown(self) -> tuple[str, Columns]:
        """Return the rows with the warnings, and one line per metric."""
        rows = format_rows(self.rows, self.users)
        lines = [f"{self.run} ({self.model}) on {self.split}: {rows}, {self.positives:,} positive"]
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines), show_intervals(self.metrics)

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts and numbers for JSON."""
        metrics = {key: one.to_dict() for key, one in self.metrics.items()}
        slices = {
            title: {name: {key: one.to_dict() for key, one in row.items()} for name, row in rows.items()}
            for title, rows in self.slices.items()
        }
        content = {**vars(self), "metrics": metrics, "warnings": list(self.warnings), "protocol": dict(self.protocol)}
        return {**content, "slices": slices} if slices else {key: content[key] for key in content if key != "slices"}


class Objective(ABC):
    """What training and evaluation mean for a kind of model.

    Attributes:
        name: name in results.
        columns: columns of every file of predictions.
        expected_warnings: warnings of a log that do not concern this objective.
        settings: what a config of the objective may set.
        progress_text: title and unit of the progress of predictions.
        no_rows: what is reported of a split without rows, and what is expected.
    """

    name: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    progress_text: ClassVar[tuple[str, str]] = ("score", "rows")
    no_rows: ClassVar[tuple[str, str]] = ("no rows", "a split with samples")
    expected_warnings: ClassVar[tuple[str, ...]] = ()
    settings: ClassVar[ObjectiveSettings]

    @abstractmethod
    def check_log(self, log: Log, fit: FitConfig, evaluate: EvaluateConfig) -> None:
        """Refuse a log that cannot be trained on or evaluated, before the model is built.

        Raises:
            DataError: rows, labels or users are missing.
        """

    @abstractmethod
    def check_model(self, model: Model, log: Log, fit: FitConfig) -> None:
        """Refuse a model that cannot learn from the log.

        Raises:
            ConfigError, DataError: names the setting or the rows.
        """

    @abstractmethod
    def build_loader(self, model: Model, log: Log, fit: FitConfig) -> Loader:
        """Return the batches of the training rows."""

    @abstractmethod
    def start(self, model: Model, log: Log, loader: Loader) -> None:
        """Initialize a new model from its training rows, before its first step."""

    @abstractmethod
    def validate(
        self,
        model: Model,
        log: Log,
        rows: NDArray[np.int64],
        fit: FitConfig,
        evaluate: EvaluateConfig,
        own: Sequence[Metric] = (),
    ) -> dict[str, float]:
        """Return the metrics of a validation on some rows.

        Args:
            own: further metrics, of an objective with labels and scores.
        """

    def correct(self, model: Model, fit: FitConfig) -> AbstractContextManager[None]:
        """Return the context in which the weights are those that predict, also where training samples its rows."""
        return nullcontext()

    @abstractmethod
    def rows_of(self, log: Log, split: str) -> NDArray[np.int64]:
        """Return the rows of the log that a split trains on or measures, int64."""

    def write_predictions(
        self,
        model: Model,
        log: Log,
        split: str,
        path: Path,
        fit: FitConfig,
        evaluate: EvaluateConfig,
        *,
        quiet: bool = False,
    ) -> pa.Table:
        """Predict a split, write its Parquet file atomically, and return the table.

        Raises:
            RunError: no rows in the split, or predictions that are not finite.
        """
        if split not in SPLITS:
            raise UnknownName("split", split, SPLITS)
        rows, (title, unit) = self.rows_of(log, split), self.progress_text
        if not len(rows):
            raise RunError(split, *self.no_rows, "check data.split")
        with Progress(len(rows), f"{title} {split}", unit, stream=io.StringIO() if quiet else None) as progress:
            predicted = self.predict(model, log, rows, fit, evaluate, progress)
        own = {"row": rows, "user": log.user(rows).astype(np.int32), "time": log.events.times.take(rows)}
        table = pa.table({**own, **predicted})
        replace_file(path, lambda partial: pq.write_table(table, partial))
        return table

    @abstractmethod
    def predict(
        self,
        model: Model,
        log: Log,
        rows: NDArray[np.int64],
        fit: FitConfig,
        evaluate: EvaluateConfig,
        progress: Progress,
    ) -> dict[str, Any]:
        """Return the columns of the table of predictions that follow row, user and time, one entry per row.

        Args:
            progress: advanced by the number of predicted rows.

        Raises:
            RunError: predictions that are not finite.
        """

    @abstractmethod
    def measure(self, table: pa.Table, run: str, model: str, split: str, config: EvaluateConfig) -> Evaluation:
        """Compute the metrics of a table of predictions.

        Raises:
            DataError: rows that cannot be measured.
        """

    @abstractmethod
    def compare(
        self,
        tables: Mapping[str, pa.Table],
        config: EvaluateConfig,
        split: str,
        *,
        baseline: str | None,
        resample: Literal["user", "row"],
        n_resamples: int,
        seed: int,
    ) -> Comparison:
        """Compare runs that predicted the same rows, with paired intervals.

        Args:
            tables: predictions by name of the run.
            config: settings of the first run.
        """

    @abstractmethod
    def collect_warnings(self, model: Model, log: Log, fit: FitConfig) -> list[str]:
        """Return reasons for caution with a finished run, which its results hold."""

    @property
    @abstractmethod
    def same_columns(self) -> Sequence[str]:
        """Columns of predictions that must be equal for two runs to be compared."""
