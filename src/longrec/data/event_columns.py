"""First pass over the sorted events: offsets of users, and the columns of events that are not features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from longrec.data.array_writer import ArrayWriter, narrow
from longrec.data.availability import AvailabilityFile
from longrec.data.event_order import OrderFile, order_warnings
from longrec.data.label_checks import compute_labels, describe_label
from longrec.data.sorted_log import ITEM, REQUEST_TIME, TIME, USER
from longrec.features.schema import Schema
from longrec.features.vocabulary import Keys

Chunks = Callable[[str, list[str]], Iterator[tuple[slice, pa.RecordBatch]]]
"""Function from a description and columns to the chunks of the sorted events."""


def write_event_columns(
    build: Path, schema: Schema, chunks: Chunks, users: Keys, items: Keys, where: str
) -> tuple[NDArray[np.int64], list[str]]:
    """Write the columns of events that are not features.

    Args:
        build: folder of the prepared log.
        where: name of the log in messages.

    Returns:
        The number of events per row of the user table, int64 ``[users + 1]``, and warnings.
    """
    counts, events = np.zeros(len(users) + 1, np.int64), build / "events"
    available, order = AvailabilityFile(events, schema, where), OrderFile(build, schema)
    wanted = [USER, ITEM, TIME, *([REQUEST_TIME] if schema.request else []), *available.columns, *order.columns]
    if schema.label is not None:
        wanted.append(f"c.{schema.label.column}")
    timestamps = ArrayWriter(build / "moment.npy", np.int64) if schema.request else None
    with (
        ArrayWriter(events / "times.npy", np.int64) as times,
        ArrayWriter(events / "item.npy", narrow(len(items) + 1)) as item_rows,
        ArrayWriter(build / "label.npy", np.float32) as labels,
    ):
        for at, chunk in chunks("layout", wanted):
            runs = pc.run_end_encode(chunk[USER])
            ends = runs.run_ends.to_numpy(zero_copy_only=False)
            if schema.user is None:
                counts[1 + at.start : 1 + at.stop] = 1  # the keys are the numbers of the rows
            else:
                counts[users.index(runs.values, "user") + 1] += np.diff(ends, prepend=0)
            item_rows.append(items.index(chunk[ITEM], "item") + 1)
            times.append(chunk[TIME].to_numpy(zero_copy_only=False))
            labels.append(_read_labels(schema, chunk, where))
            available.append(chunk)
            order.append(chunk, ends)
            if timestamps is not None:
                timestamps.append(chunk[REQUEST_TIME].to_numpy(zero_copy_only=False))
    order.close()
    if timestamps is not None:
        timestamps.close()
    np.save(events / "offsets.npy", np.concatenate([[0], np.cumsum(counts)]))
    return counts, [*available.close(), *order_warnings(schema)]


def _read_labels(schema: Schema, chunk: pa.RecordBatch, where: str) -> NDArray[np.float32]:
    """Return the labels of a chunk. Without a label, every event is a positive."""
    if schema.label is None:
        return np.ones(len(chunk), np.float32)
    return compute_labels(schema.label, chunk[f"c.{schema.label.column}"], describe_label(schema, where))
