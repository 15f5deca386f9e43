"""Raw columns of the item table of a log, one row per item, for conditions on items in serving."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from longrec.data.frames import FrameRecord
from longrec.data.relation import Relation, connect, name
from longrec.data.settings import DataConfig
from longrec.data.sort import list_column_types
from longrec.data.sorted_log import KEY, KEY_ROW
from longrec.data.timestamps import read_timestamps
from longrec.errors import DataError
from longrec.features.schema import Schema
from longrec.features.vocabulary import Keys


def read_item_columns(config: DataConfig, schema: Schema, keys: Keys) -> pa.Table | None:
    """Return all columns of the item table, one row per key in the order of the keys, the key first.

    Of a table with versions each key has its newest version. A key that the table lacks has nulls.

    Args:
        config: data section of a config.
        keys: keys of the items of the prepared log.

    Returns:
        None if there is no item table, or if it was a frame in the memory of another process.

    Raises:
        DataError: if the table cannot be read.
    """
    source, key = config.items, schema.item
    if source is None or key is None or isinstance(source.frame, FrameRecord):
        return None
    with tempfile.TemporaryDirectory() as scratch, contextlib.closing(connect(config, Path(scratch))) as con:
        own = Relation(con, "items", source, Path(scratch), list_column_types(schema))
        own.need({key: "key of the item table"})
        kind = own.key_type(key)
        if kind != ("BIGINT" if keys.numeric else "VARCHAR"):
            raise DataError(f"{own.where}: column {key!r}", f"{kind} keys", "keys as in the prepared log")
        con.register("_keys", pa.table({KEY: keys.values, KEY_ROW: np.arange(len(keys))}))
        rows = f"SELECT *, {name(key)}::{kind} AS _key FROM {own.view}"
        if source.as_of is not None and schema.time is not None:
            since = read_timestamps(own, source.as_of, schema.time).sql
            rows += f" QUALIFY row_number() OVER (PARTITION BY {name(key)} ORDER BY {since} DESC) = 1"
        columns = "".join(f", o.{name(column)}" for column in own.types if column != key)
        sql = f"SELECT k.{KEY} AS {name(key)}{columns} FROM _keys k LEFT JOIN ({rows}) o ON k.{KEY} = o._key"
        return own.table(f"{sql} ORDER BY k.{KEY_ROW}")
