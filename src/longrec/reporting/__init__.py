"""Reports of metrics: text tables, JSON, and one HTML page per run or comparison. Computes no metrics itself."""

from __future__ import annotations

from longrec.reporting.page import write_page
from longrec.reporting.run import Predictions, RunView, read_predictions, read_run
from longrec.reporting.tables import comparison_table, metrics_table, results_table, table, write_json

__all__ = [
    "Predictions",
    "RunView",
    "comparison_table",
    "metrics_table",
    "read_predictions",
    "read_run",
    "results_table",
    "table",
    "write_json",
    "write_page",
]
