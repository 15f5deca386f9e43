"""Explanation of one score: its history events in raw values, with the weight of each."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from longrec.data.gather import gather
from longrec.data.log import Log
from longrec.errors import RunError
from longrec.features.batch import Batch, Jagged
from longrec.features.decode import decode_value
from longrec.features.feature_encoders import FIRST, CalendarEncoder, NumericEncoder
from longrec.features.fields import COMPUTED, TOKEN, VERSION
from longrec.features.fitted_schema import FittedSchema
from longrec.features.label_encoding import LABEL, NEGATIVE, POSITIVE
from longrec.features.token_columns import TokenSpec, format_token_field
from longrec.training.device import CPU, precision
from longrec.training.finished_run import Run, open_run
from longrec.training.token_source import find_source

NOT_YET = "not yet known"


def explain(run: Run | str | Path, row: int) -> dict[str, Any]:
    """Return one row of the prepared log, its score, and all events of its histories with their attention weights.

    Args:
        row: a row of the log, as in the ``row`` column of predictions.

    Returns:
        ``{"row", "user", "item", "time", "timestamp", "label", "score", "histories"}``: keys as the raw log has them,
        times in milliseconds UTC (or steps), label None if the row has none. ``histories`` maps each history to
        its events, oldest first: ``{"item", "time", "ago", "side", "weight"}``. ``side`` holds the other columns,
        decoded (a bucket by its lower edge, hashed ids as None); ``weight`` is None for a model without
        ``explain``, ``time`` and ``ago`` are None in pre-joined rows. A token has no item, but a ``norm``, the length
        of its vector. Its side columns are decoded by the source beside the tokens; without a source they are ids.

    Raises:
        RunError: no finished run, no such row, or a prepared log that is gone.
    """
    run = run if isinstance(run, Run) else open_run(run)
    log, model = run.log(), run.model()
    if not 0 <= row < len(log):
        raise RunError(f"row {row}", "no such row", f"a row of the log, 0 to {len(log) - 1:,}")
    rows = np.array([row], np.int64)
    batch = gather(log, rows)
    with torch.inference_mode(), precision(run.config.fit.bf16, CPU):
        score = float(torch.sigmoid(model(batch).float())[0])
        weights = {
            name: w.float().reshape(-1).tolist() for name, w in getattr(model, "explain", _no_weights)(batch).items()
        }
    label = float(log.labels[row])
    return {
        "row": row,
        "user": log.users.key(int(log.user(rows)[0])),
        "item": log.items.key(int(log.events.columns["item"][row])),
        "time": int(log.events.times[row]),
        "moment": int(log.timestamps[row]),
        "label": None if np.isnan(label) else label,
        "score": score,
        "histories": {
            name: (_explain_tokens if name in log.tokens else _explain_events)(
                log, name, rows, batch, weights.get(name)
            )
            for name in log.schema.histories
        },
    }


def _no_weights(batch: Batch) -> dict[str, torch.Tensor]:
    return {}


def _explain_events(
    log: Log, name: str, rows: NDArray[np.int64], batch: Batch, weights: list[float] | None
) -> list[dict[str, Any]]:
    history, timestamp = batch.histories[name], int(log.timestamps[rows[0]])
    count = int(history.offsets[-1])
    columns = {
        column: _decode_column(log, column, history.columns[column]) for column in log.schema.histories[name].features
    }
    own = next((c for c in columns if c not in COMPUTED and log.schema.column(c) == log.schema.item), None)
    items: list[Any] = columns[own] if own is not None else [None] * count
    times: list[int | None] = [None] * count
    if not log.schema.prejoined:
        at, _ = log.select_history(name, rows)
        items = [log.items.key(int(item)) for item in log.events.columns["item"].take(at)]
        times = log.events.times.take(at).tolist()
    return [
        {
            "item": items[index],
            "time": times[index],
            "ago": None if (then := times[index]) is None else timestamp - then,
            "side": {c: values[index] for c, values in columns.items() if c not in (own, *COMPUTED)},
            "weight": None if weights is None else weights[index],
        }
        for index in range(count)
    ]


def _explain_tokens(
    log: Log, name: str, rows: NDArray[np.int64], batch: Batch, weights: list[float] | None
) -> list[dict[str, Any]]:
    history, timestamp, own = log.tokens[name], int(log.timestamps[rows[0]]), batch.histories[name].columns
    times = history.times(log.user(rows), log.timestamps.take(rows)).tolist()
    source_folder = find_source(history.store.location)
    fitted = None if source_folder is None else FittedSchema.load(source_folder / "schema")
    vectors = own.get(format_token_field(name, TOKEN))
    norms = [None] * len(times) if not isinstance(vectors, torch.Tensor) else torch.linalg.vector_norm(vectors, dim=1)
    side = {
        column: [_decode_side(fitted, history.spec, column, code) for code in values.tolist()]
        for column in history.features
        if column not in (TOKEN, *COMPUTED)
        and isinstance(values := own[format_token_field(name, column)], torch.Tensor)
    }
    return [
        {
            "item": None,
            "time": then,
            "ago": timestamp - then,
            "side": {column: values[at] for column, values in side.items()},
            "norm": None if (norm := norms[at]) is None else float(norm),
            "weight": None if weights is None else weights[at],
        }
        for at, then in enumerate(times)
    ]


def _decode_side(fitted: FittedSchema | None, spec: TokenSpec, column: str, code: int) -> Any:
    """Return the value of an id of a side column: 0, 1 or None for the label, the version number, or raw values."""
    if column == VERSION:
        return code - FIRST if code >= FIRST else None
    if code == spec.sides[column]:
        return NOT_YET
    if column == LABEL:
        return {NEGATIVE: 0, POSITIVE: 1}.get(code)
    if fitted is None or column not in fitted.encoders:
        return code
    encoder = fitted.encoders[column]
    return None if isinstance(encoder, CalendarEncoder) or code < FIRST else decode_value(encoder, code)


def _decode_column(log: Log, name: str, column: torch.Tensor | Jagged) -> list[Any]:
    if isinstance(column, Jagged):
        ends = column.offsets.tolist()
        values = [_decode_value(log, name, code) for code in column.values.tolist()]
        return [values[start:stop] for start, stop in pairwise(ends)]
    if name in COMPUTED:
        return column.tolist()
    feedback = log.schema.features[name].feedback
    not_yet = log.fitted.get_not_yet_id(name) if feedback else -1
    return [NOT_YET if code == not_yet else _decode_value(log, name, code) for code in column.tolist()]


def _decode_value(log: Log, name: str, code: float) -> Any:
    """Return the raw value of an id. None for a missing or unseen value, and for a hash."""
    encoder = log.fitted.encoders[name]
    if isinstance(encoder, CalendarEncoder) or (not isinstance(encoder, NumericEncoder) and code < FIRST):
        return None
    return decode_value(encoder, code)
