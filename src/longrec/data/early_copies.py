"""Warnings about copies of the label that histories read before the label itself is available."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.features.schema import Schema


def warn_of_early_copies(
    schema: Schema,
    names: Sequence[str],
    columns: Mapping[str, NDArray[Any]],
    rows: NDArray[np.int64],
    times: NDArray[np.int64],
    label_times: NDArray[np.int64],
    clamp: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.int64]],
) -> list[str]:
    """Return one warning per copy of the label that is available before the label in some row.

    Args:
        names: feedback features that copy the label (``data/label_copies.py``).
        columns: columns of the events.
        rows: labeled rows, int64 ``[n]``.
        times, label_times: timestamp of each of these rows, and of its label.
        clamp: function of timestamps and rows that returns no timestamp at which the event was not available.
    """
    messages, read = [], schema.histories.values()
    for name in names:
        if not any(name in history.features or schema.column(name) in history.where for history in read):
            continue
        own = columns.get(f"known.{name}")
        available_at = times + schema.available_after(name) if own is None else own.take(rows)
        if (clamp(available_at, rows) < label_times).any():
            messages.append(
                f"feature {name!r} predicts the label as well as the label itself and is available before it, so "
                "histories that read it reveal labels early; give it the delay of the label (available_after), or "
                "drop it"
            )
    return messages
