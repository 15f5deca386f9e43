"""Results of ``longrec bench lengths``: one row per model and length, as a table and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from longrec.tabular import Columns, Tabular
from longrec.terminal_text import table

HEADERS = {
    "model": "model",
    "events": "events",
    "auc": "AUC",
    "log_loss": "log loss",
    "ece": "ECE",
    "train_seconds": "training CPU-s",
    "rows_per_second": "rows/CPU-s",
    "megabytes_per_row": "MB/row",
    "request_ms": "request CPU-ms",
}
"""Columns of the table: attribute and header."""


@dataclass(frozen=True)
class LengthRow:
    """One model with histories of at most ``events`` events.

    Attributes:
        auc, log_loss, ece, pcoc: metrics on the split. None for a length that is not trained: longer histories than the
            log has are equal to its longest ones.
        train_seconds: CPU seconds of the training with its evaluation. None for a length that is not trained.
        steps: training steps, if it is trained.
        step_rows: rows of a training step that is timed.
        rows_per_second: rows that training steps process per CPU-second.
        megabytes_per_row: growth of resident memory during such a step, in MB (10^6 bytes) per row. None where the
            system does not tell.
        request_ms: CPU milliseconds of a request.
        is_exported: True if the request runs in the exported program, False if in torch.
        run: folder of the run, if it is trained.
    """

    model: str
    events: int
    auc: float | None
    log_loss: float | None
    ece: float | None
    pcoc: float | None
    train_seconds: float | None
    steps: int | None
    step_rows: int
    rows_per_second: float
    megabytes_per_row: float | None
    request_ms: float
    is_exported: bool
    run: str | None


@dataclass(frozen=True, repr=False)
class MeasuredLengths(Tabular):
    """Quality and cost of models by the length of histories.

    Attributes:
        rows: one per model and length, in the order of the models, by rising length.
        split: split of the metrics.
        longest: number of events in the longest history of the log.
        candidates: candidates of a request.
        machine: processor, system and versions of the measurement.
    """

    rows: Sequence[LengthRow]
    split: str
    longest: int
    candidates: int
    machine: Mapping[str, Any]

    def to_columns(self) -> Columns:
        """Return the attributes of the rows as columns."""
        return {key: [getattr(row, key) for row in self.rows] for key in LengthRow.__dataclass_fields__}

    def to_dict(self) -> dict[str, Any]:
        """Return the rows and what they were measured on."""
        facts = {"split": self.split, "longest": self.longest, "candidates": self.candidates}
        return {**facts, "machine": dict(self.machine), "rows": [asdict(row) for row in self.rows]}

    def to_text(self) -> str:
        """Return the table for a terminal, with a line on each kind of column."""
        rows = [[_format(key, getattr(row, key)) for key in HEADERS] for row in self.rows]
        lines = [
            table(list(HEADERS.values()), rows),
            "",
            f"AUC, log loss and ECE on {self.split}. The longest history of the log has {self.longest:,} events.",
            "rows/CPU-s and MB/row of training steps, and CPU-ms of a request with "
            f"{self.candidates} candidates: full histories of random events.",
        ]
        if not all(row.is_exported for row in self.rows):
            eager = ", ".join(dict.fromkeys(row.model for row in self.rows if not row.is_exported))
            lines.append(f"Requests of {eager} run in torch: it has no exported program.")
        return "\n".join(lines)


def _format(key: str, value: Any) -> Any:
    """Return a cell: quality with four decimals, cost with three digits."""
    if value is None or key in ("model", "events", "auc", "log_loss", "ece"):
        return value
    digits = 2 - math.floor(math.log10(value)) if value else 0
    return f"{round(value, digits):,.{max(0, digits)}f}"
