"""Explanation of one score of a run: its history events in raw values, with the weight of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longrec.training.explained_rows import explain_rows
from longrec.training.finished_run import Run, open_run


def explain(run: Run | str | Path, row: int) -> dict[str, Any]:
    """Return one row of the prepared log, its score, and all events of its histories with their attention weights.

    Args:
        row: a row of the log, as in the ``row`` column of predictions.

    Returns:
        ``{"row", "user", "item", "time", "timestamp", "label", "score", "features", "histories"}``: keys as the raw log
        has them, times in milliseconds UTC (or steps), label None if the row has none. ``features`` holds the decoded
        values of ids and numbers (a bucket by its lower edge, hashed ids as None). ``histories`` maps each history to
        its events, oldest first: ``{"item", "time", "ago", "side", "weight"}``. ``side`` holds the other columns,
        decoded in the same way. ``weight`` is None for a model without ``explain``, ``time`` and ``ago`` are None in
        pre-joined rows. A token has no item, but a ``norm``, the length of its vector. Its side columns are decoded by
        the source beside the tokens. Without a source they are ids.

    Raises:
        RunError: no finished run, no such row, or a prepared log that is gone.
    """
    run = open_run(run)
    return explain_rows(run.log(), run.model(), [row], bf16=run.config.fit.bf16)[0]
