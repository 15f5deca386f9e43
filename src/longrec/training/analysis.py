"""Analysis of finished runs beyond their metrics: simple references, segments of rows, and explained samples.

Each objective has its own (``click_analysis.py``, ``list_analysis.py``, ``next_item_analysis.py``). Reports combine
them (``run_report.py``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa

from longrec.data.log import Log
from longrec.metrics import Interval
from longrec.models.core.base import Model
from longrec.training.job import Job
from longrec.training.predict_run import ScoringRun
from longrec.training.settings import EvaluateConfig, FitConfig

SEGMENT_RESAMPLES = 50
"""Bootstrap draws per interval of a segment: enough for its width, at a sixth of the cost of the main metrics."""


class FinishedRun(ScoringRun, Protocol):
    """Finished run, as ``finished_run.py`` defines it. That module imports this one to write the report of a run."""

    @property
    def results(self) -> dict[str, Any]:
        """Contents of ``results.json``."""

    def predictions(self, split: str = "test") -> pa.Table:
        """Read the predictions of a split."""


@dataclass(frozen=True)
class Reference:
    """Predictions without a model, to compare runs with.

    Attributes:
        name: short name, such as ``item rate``.
        about: how it predicts, in one clause.
        table: predictions of the same rows and columns as those of a run.
    """

    name: str
    about: str
    table: pa.Table


class Analysis(ABC):
    """Analysis of the predictions of one objective.

    Attributes:
        segment_metrics: keys of the metrics of a segment.
    """

    segment_metrics: ClassVar[tuple[str, ...]]

    @abstractmethod
    def predict_references(
        self, log: Log, table: pa.Table, fit: FitConfig, evaluate: EvaluateConfig
    ) -> list[Reference]:
        """Return predictions of a constant (if the objective has one) and of counts, learned on the train split.

        Args:
            table: predictions of a run.
        """

    @abstractmethod
    def measure_segment(self, table: pa.Table, evaluate: EvaluateConfig) -> dict[str, Interval]:
        """Return the metrics of some predictions. Those that too few rows allow are absent."""

    @abstractmethod
    def explain_samples(self, log: Log, model: Model, table: pa.Table, job: Job) -> list[dict[str, Any]]:
        """Return a few predictions with what they were computed from, each with a ``title``.

        Args:
            model: the model of the run, on the CPU.
            table: predictions of the run.
        """


def count_positives(table: pa.Table) -> int | None:
    """Return the number of positive rows of predictions. None for an objective without labels."""
    if "label" not in table.column_names:
        return None
    return int((table["label"].to_numpy() > 0.5).sum())


def format_events(events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the events of a history, from ``explain``, in the form of a page."""
    return [
        {
            "name": "" if event["item"] is None else str(event["item"]),
            "side": {name: format_value(value) for name, value in event["side"].items()},
            "ago": event["ago"],
            "weight": event["weight"],
        }
        for event in events
    ]


def format_value(value: Any) -> str:
    """Return a decoded value, or a list of values, as text.

    >>> format_value([1.5, None]), format_value("a")
    ('1.5, -', 'a')
    """
    if isinstance(value, list):
        return ", ".join(map(format_value, value))
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def format_timestamp_of(log: Log, timestamp: int) -> str:
    """Return a timestamp of a log as text."""
    assert log.schema.time is not None
    if log.schema.time.unit == "step":
        return f"step {timestamp:,}"
    return np.datetime_as_string(np.datetime64(timestamp, "ms"), unit="s").replace("T", " ") + " UTC"
