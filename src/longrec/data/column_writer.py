"""Chunk-by-chunk writer of the column files of a prepared log: event columns and list columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longrec.data.array_writer import ArrayWriter, narrow
from longrec.errors import DataError
from longrec.features.feature_encoders import Lists
from longrec.store.column_types import format_type


class ColumnWriter:
    """Writer that appends chunks to ``events/NAME.npy`` and ``lists/NAME.*.npy``. Files open with the first chunk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writers: dict[str, ArrayWriter] = {}

    def event(self, name: str, values: NDArray[Any], dtype: Any) -> None:
        """Append one value per event, or one row of numbers (values ``[n, W]``)."""
        self._put(f"events/{name}", values, np.dtype((dtype, values.shape[1:])))

    def lists(self, name: str, column: Lists, rows: int) -> None:
        """Append one list per event.

        Args:
            rows: number of rows of the table that the ids index. It determines the integer type.
        """
        path = f"lists/{name}"
        so_far = self._writers[f"{path}.values"].length if f"{path}.values" in self._writers else None
        self._put(f"{path}.offsets", column.offsets if so_far is None else column.offsets[1:] + so_far, np.int64)
        self._put(f"{path}.values", column.values, narrow(rows))
        if column.weights is not None:
            self._put(f"{path}.weights", column.weights, np.float32)

    def close(self) -> None:
        """Write the final lengths and close all files."""
        for writer in self._writers.values():
            writer.close()

    def event_types(self) -> dict[str, str]:
        """Return the types of the written event columns by name."""
        paths = (
            (path.removeprefix("events/"), writer) for path, writer in self._writers.items() if path[:6] == "events"
        )
        return {name: format_type(writer.dtype) for name, writer in paths}

    def _put(self, path: str, values: NDArray[Any], dtype: Any) -> None:
        if path not in self._writers:
            self._writers[path] = ArrayWriter(self.folder / f"{path}.npy", dtype)
        self._writers[path].append(values)


def check_same_lengths(one: tuple[str, NDArray[np.int64]], two: tuple[str, NDArray[np.int64]], where: str) -> None:
    """Raise an error if two list columns of a history, each a name and offsets, have lists of different lengths."""
    odd = np.flatnonzero(np.diff(one[1]) != np.diff(two[1]))
    if len(odd):
        (first, mine), (second, other) = ((column, np.diff(offsets)[odd[0]]) for column, offsets in (one, two))
        raise DataError(
            where,
            f"a row with {other} values of {second!r} and {mine} of {first!r}",
            "lists of one length in every row of a history",
        )


def cast_separated_text(flat: pa.Array, kind: pa.DataType, where: str) -> pa.Array:
    """Return flat values cast to the type of the feature's own column if they are text and that type is numeric."""
    if pa.types.is_string(kind) or not (pa.types.is_string(flat.type) or pa.types.is_large_string(flat.type)):
        return flat
    try:
        return flat.cast(kind)
    except pa.ArrowInvalid as error:
        numbers = "whole numbers" if pa.types.is_integer(kind) else "numbers"
        raise DataError(where, f"text among numbers ({error})", f"{numbers}, as in the feature's own column") from None
