"""Input of new rows: paths, a mapping as in a config, or a frame, read in the format of the run's own input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from longrec.config import parse
from longrec.data.frames import describe_kind
from longrec.data.settings import Source
from longrec.errors import DataError


def open_source(data: Any, own: Source | None, role: str, scratch: Path) -> Source:
    """Return the input of new rows, with the settings of the run's input where it has none of its own.

    Args:
        data: path or paths, a mapping, or an object with ``__arrow_c_stream__`` (pandas, polars, Arrow, DuckDB).
        own: input of the run.
        role: log, users or items.
        scratch: folder for the rows of a frame.

    Raises:
        ConfigError: an invalid mapping.
        DataError: something that is none of these.
    """
    rows, as_of = (None, None) if own is None else (own.rows, own.as_of)
    if hasattr(data, "__arrow_c_stream__"):
        path = scratch / f"frame.{role}.parquet"
        _write_frame(data, path, role)
        # The cells of a frame have types, and text rows have none.
        row_format = None if rows is None or rows.columns is not None else rows
        return Source(files=(str(path),), rows=row_format, as_of=as_of).entitle(f"{role} ({describe_kind(data)})")
    if isinstance(data, Source):
        return data
    if isinstance(data, Mapping):
        return parse(Source, {**({} if as_of is None else {"as_of": as_of}), **data}, role)
    paths = [data] if isinstance(data, (str, Path)) else data
    if not isinstance(paths, Sequence) or not paths or not all(isinstance(path, (str, Path)) for path in paths):
        kind = f"{type(data).__module__.partition('.')[0]}.{type(data).__name__}"
        expected = "a path, a list of paths, a mapping with files or query, or a frame (pandas, polars, Arrow, DuckDB)"
        raise DataError(role, f"a {kind}", expected)
    files = tuple(str(Path(path).expanduser()) if "://" not in str(path) else str(path) for path in paths)
    return Source(files=files, rows=rows, as_of=as_of)


def _write_frame(frame: Any, path: Path, role: str) -> None:
    """Write a frame as a Parquet file, batch by batch."""
    reader = pa.RecordBatchReader.from_stream(frame)
    try:
        with pq.ParquetWriter(path, reader.schema) as writer:
            for batch in reader:
                writer.write_batch(batch)
    except pa.ArrowException as error:
        do = "cast the column, or drop it"
        raise DataError(role, f"a frame that cannot be stored ({error})", "columns of plain types", do) from None
