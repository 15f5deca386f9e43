"""Analysis of ordered lists: the initial order beside that of the model."""

from __future__ import annotations

from typing import Any, ClassVar

import pyarrow as pa

from longrec.data.log import Log
from longrec.metrics import Interval
from longrec.models.core.base import Model
from longrec.training.analysis import Analysis, Reference
from longrec.training.job import Job
from longrec.training.settings import EvaluateConfig, FitConfig


class ListAnalysis(Analysis):
    """Analysis of the objective ``lists``."""

    segment_metrics: ClassVar[tuple[str, ...]] = ("ndcg",)

    def predict_references(
        self, log: Log, table: pa.Table, fit: FitConfig, evaluate: EvaluateConfig
    ) -> list[Reference]:
        """Return the initial order, that of the base."""
        at = table.column_names.index("score")
        about = "the order of the base, which scores items one by one"
        return [Reference("initial order", about, table.set_column(at, "score", table["base"]))]

    def measure_segment(self, table: pa.Table, evaluate: EvaluateConfig) -> dict[str, Interval]:
        """Return nothing: a segment of rows, such as those of popular items, cuts lists."""
        return {}

    def explain_samples(self, log: Log, model: Model, table: pa.Table, job: Job) -> list[dict[str, Any]]:
        """Return nothing: the parts that the items of a list have in the score of another one are not attributed."""
        return []
