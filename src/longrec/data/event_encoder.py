"""Last pass over the sorted events: the columns of row features, filters and pre-joined histories, encoded."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from longrec.data.array_writer import narrow
from longrec.data.availability import list_event_types
from longrec.data.checks import warn_of_early_feedback
from longrec.data.column_writer import ColumnWriter, cast_separated_text, check_same_lengths
from longrec.data.occurrence import Filters
from longrec.data.sorted_log import SortedLog, chunk_rows
from longrec.features.entity_table import open_array
from longrec.features.feature_encoders import CalendarEncoder, Lists, flatten
from longrec.features.fitted_schema import FittedSchema
from longrec.features.history_columns import NEVER
from longrec.features.schema import Schema
from longrec.store.segment import write_manifest


class EventEncoder:
    """Encoder of the rows of a sorted log with fitted encoders, chunk by chunk.

    Args:
        build: folder of the prepared log, which has the columns of ``write_event_columns``.
        threads: number of threads.
    """

    def __init__(self, log: SortedLog, fitted: FittedSchema, build: Path, threads: int) -> None:
        self.log, self.fitted, self.build, self.threads = log, fitted, build, threads
        self.schema = fitted.schema

    def write(
        self,
        filters: Filters,
        labels: NDArray[np.float32],
        observe: Callable[[slice, pa.RecordBatch], None] | None = None,
    ) -> list[str]:
        """Write the columns of row features, of filters and of pre-joined histories, and the manifest of the events.

        Args:
            filters: filters of the histories of the schema.
            labels: label of each row, float32 ``[n]``. NaN for rows that are not training rows.
            observe: called with the rows and the raw columns of each chunk.

        Returns:
            Warnings about feedback that is available before its event.
        """
        fitted, schema = self.fitted, self.schema
        plain = [name for side in ("context", "candidate") for name in fitted.list_features(side)]
        plain = [name for name in plain if fitted.encoders[name].kind != "time"]
        available_at = {n: f.available_at for n, f in schema.features.items() if f.available_at}
        lists = [(h, n, c) for h, history in schema.histories.items() for n, c in (history.columns or {}).items()]
        wanted = sorted(
            {f"c.{column}" for n in plain for column in schema.columns(n)}
            | {f"c.{column}" for column in available_at.values()}
            | {f"c.{column}" for column in filters.columns()}
            | {f"c.{column}" for _, _, column in lists}
        )
        times, early = open_array(self.build / "events" / "times.npy"), dict.fromkeys(available_at, 0)
        files, pool = ColumnWriter(self.build), ThreadPoolExecutor(self.threads)
        try:
            for chunk_slice, chunk in self.log.read(wanted, chunk_rows(schema), "encode") if wanted else ():
                for name, values in zip(plain, pool.map(partial(self._encode_feature, chunk), plain)):
                    if isinstance(values, Lists):
                        files.lists(name, values, fitted.encoders[name].rows)
                    else:
                        dtype = np.float32 if values.dtype.kind == "f" else narrow(fitted.field(name).rows)
                        files.event(name, values, dtype)
                if observe is not None:
                    observe(chunk_slice, chunk)
                for name, column in available_at.items():
                    at = pc.fill_null(chunk[f"c.{column}"], NEVER).to_numpy()
                    early[name] += int((at < times[chunk_slice]).sum())
                    files.event(f"known.{name}", np.maximum(at, times[chunk_slice]), np.int64)
                for name in filters.histories:
                    files.event(f"where.{name}", filters.select_rows(name, chunk, labels[chunk_slice]), np.uint8)
                lengths: dict[str, tuple[str, NDArray[np.int64]]] = {}
                encoded = pool.map(partial(self._encode_list, chunk), lists)
                for (history, name, column), lists_column in zip(lists, encoded):
                    own = (column, lists_column.offsets)
                    check_same_lengths(lengths.setdefault(history, own), own, self.log.describe(column))
                    files.lists(f"{history}.{name}", lists_column, fitted.encoders[name].rows)
        finally:
            pool.shutdown(cancel_futures=True)
            files.close()
        write_manifest(self.build / "events", {**list_event_types(self.build / "events"), **files.event_types()})
        return warn_of_early_feedback(available_at, early, len(self.log))

    def _encode_feature(self, chunk: pa.RecordBatch, name: str) -> NDArray[Any] | Lists:
        """Return the encoded values of a feature in a chunk of rows."""
        raw = {column: chunk[f"c.{column}"] for column in self.schema.columns(name)}
        return self.fitted.encode_row(name, raw, self.log.describe)

    def _encode_list(self, chunk: pa.RecordBatch, column: tuple[str, str, str]) -> Lists:
        """Return an encoded column of a prejoined history in a chunk. ``column`` is (history, feature, raw column)."""
        history, name, raw = column
        flat, offsets = flatten_listed(self.log, self.schema, chunk[f"c.{raw}"], name, history, self.log.describe(raw))
        encoder = self.fitted.encoders[name]
        assert not isinstance(encoder, CalendarEncoder)
        return Lists(encoder.encode(flat, self.log.describe(raw)), offsets)


def flatten_listed(
    log: SortedLog, schema: Schema, values: pa.Array, name: str, history: str, where: str
) -> tuple[pa.Array, NDArray[np.int64]]:
    """Concatenate the values of a column of a pre-joined history, in the type of the feature's own column.

    Args:
        name: feature of the history.
        where: name of the column in messages.

    Returns:
        The values and their offsets, int64 ``[n + 1]``.
    """
    flat, offsets = flatten(values, schema.histories[history].separator, where)
    return cast_separated_text(flat, pa.type_for_alias(log.facts.list_types[name]), where), offsets
