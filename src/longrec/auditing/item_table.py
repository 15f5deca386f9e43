"""Keys of items among those of a log, columns of a table of items, and files with one line of items per user."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from longrec.auditing.column_roles import USUAL, is_scalar, normalize_name
from longrec.auditing.events import Events, Values, encode_keys, read_values
from longrec.auditing.sequence_order import Sequences
from longrec.data.relation import Relation, name
from longrec.errors import DataError

_SEQUENCES = ("sequence_item_ids", "item_ids", "items", "sequence", "item_sequence", "movie_ids", "history")
"""Usual names of columns with all items of a user."""


def find_keys(values: pa.Array | pa.ChunkedArray, keys: NDArray[Any]) -> NDArray[np.int64]:
    """Return the number of each key among sorted keys, -1 for others, int64 ``[n]``."""
    codes, own = encode_keys(values)
    if not len(own) or not len(keys):
        return np.full(len(values), -1, np.int64)
    if (own.dtype.kind == "U") != (keys.dtype.kind == "U"):
        own, keys = own.astype(str), keys.astype(str)
        order = np.argsort(keys)
    else:
        order = np.arange(len(keys))
    at = np.minimum(np.searchsorted(keys, own, sorter=order), len(keys) - 1)
    table = np.where(keys[order[at]] == own, order[at], -1)
    return np.where(codes >= 0, table[codes], -1).astype(np.int64)


def read_items(items: Relation, key: str, keys: NDArray[Any]) -> dict[str, Values]:
    """Return the columns of a table of items in the order of ``keys``. Items without a row have missing values.

    Raises:
        DataError: no column with the key of the items.
    """
    usual = [name for group in USUAL["item"] for name in group]
    own = key if key in items.types else next((c for c in items.types if normalize_name(c) in usual), None)
    if own is None:
        raise DataError(items.where, f"no column {key!r}, the item of the log", f"one of {', '.join(items.types)}")
    columns = [column for column, kind in items.types.items() if column != own and is_scalar(kind)]
    selected = ", ".join(f"{name(column)} AS {name('f.' + column)}" for column in columns)
    table = items.table(f"SELECT {name(own)} AS _key{', ' if columns else ''}{selected} FROM {items.view}")
    rows = np.full(len(keys), -1, np.int64)
    row_at = find_keys(table["_key"], keys)
    rows[row_at[row_at >= 0]] = np.flatnonzero(row_at >= 0)
    described: dict[str, Values] = {}
    for column in columns:
        values = read_values(table[f"f.{column}"])
        missing: Any = -1 if values.is_text else np.nan
        described[column] = Values(np.where(rows >= 0, values.array[rows], missing), values.is_text)
    return described


def rank_otherwise(keys: NDArray[Any]) -> NDArray[np.int64] | None:
    """Return the rank of numbers as texts, or of texts of digits as numbers. None for other texts."""
    if keys.dtype.kind == "U":
        if not len(keys) or not all(key.isdecimal() for key in keys.tolist()):
            return None
        order = np.lexsort([keys, np.char.str_len(keys)])
    else:
        order = np.argsort(keys.astype(str), kind="stable")
    ranks = np.empty(len(keys), np.int64)
    ranks[order] = np.arange(len(keys))
    return ranks


def read_lines(path: Path) -> pa.Table:
    """Return the table of a text with one line per user: the user, then its items, oldest first.

    Raises:
        DataError: no such file, or a line without an item.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(str(path), f"cannot be read: {error.strerror}", "a text with one line per user") from None
    rows = [line.split() for line in lines if line.strip()]
    short = next((number for number, row in enumerate(rows, 1) if len(row) < 2), None)
    if short is not None or not rows:
        where = str(path) if short is None else f"{path}: line {short}"
        raise DataError(where, "a user without items" if rows else "no line", "a user, then its items, in every line")
    owner = np.repeat(np.arange(len(rows)), [len(row) - 1 for row in rows])
    users, items = pa.array([row[0] for row in rows]), pa.array([item for row in rows for item in row[1:]])
    table = pa.table({"user_id": users.take(pa.array(owner)), "item_id": items})
    return pa.table({column: _whole(table[column]) for column in table.column_names})


def _whole(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return texts as whole numbers, if all of them are."""
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid:
        return column


def read_published(events: Events, published: Relation, user: str, item: str) -> Sequences:
    """Return published sequences in the numbers of a log: one row per event, or per user with a list or joined text.

    Args:
        user, item: columns of the log, whose names the sequences may have too.

    Raises:
        DataError: no column of users or of items.
    """
    own_user = _find_column(published, (user, *USUAL["user"][0]), "the user")
    own_item = _find_column(published, (item, *USUAL["item"][0], *_SEQUENCES), "the item")
    kind, sql = published.types[own_item], name(own_item)
    joined = kind == "VARCHAR" and published.one(f"SELECT count(*) FROM {published.view} WHERE contains({sql}, ',')")
    sql = f"string_split({sql}, ',')" if joined else sql
    if joined or kind.endswith("[]"):
        sql = f"unnest({sql})"
    table = published.table(f"SELECT {name(own_user)} AS u, {sql} AS i FROM {published.view}")
    items = table["i"]
    if joined:
        items = _whole(pc.utf8_trim_whitespace(items))
    users = find_keys(table["u"], events.user_keys)
    order = np.argsort(users, kind="stable")
    return Sequences(users[order], find_keys(items, events.item_keys)[order])


def _find_column(published: Relation, names: Sequence[str], what: str) -> str:
    wanted = [normalize_name(one) for one in names]
    fitting = sorted(
        (c for c in published.types if normalize_name(c) in wanted), key=lambda c: wanted.index(normalize_name(c))
    )
    if not fitting:
        raise DataError(published.where, f"no column of {what}", f"one of {', '.join(dict.fromkeys(names))}")
    return fitting[0]
