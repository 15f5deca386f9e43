"""Rows that runs of different logs or splits have in common, matched by user, item and timestamp."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longrec.data.log import Log
from longrec.errors import RunError


def select_common_rows(tables: Mapping[str, pa.Table], logs: Mapping[str, Log]) -> dict[str, pa.Table]:
    """Return the rows of predictions that all runs have, in the order of the first, with common numbers of users.

    Copies of a row are paired in their order.

    Args:
        tables: predictions by name of the run: row, user and time.
        logs: log of each run.

    Raises:
        RunError: no common rows, or keys or timestamps of different types.
    """
    names = list(tables)
    users = _encode_together(names, [_take(logs[n].users.keys.values, tables[n]["user"].to_numpy()) for n in names])
    items = _encode_together(names, [_take(logs[n].items.keys.values, _read_items(tables[n], logs[n])) for n in names])
    units = {"step" if (time := logs[n].schema.time) is not None and time.unit == "step" else "ms" for n in names}
    if len(units) > 1:
        raise RunError(" and ".join(names), "timestamps and steps", "one kind of time", "compare runs of one log")
    times = [tables[name]["time"].to_numpy() for name in names]
    codes = _number_rows(users, items, times)
    common = codes[0]
    for other in codes[1:]:
        common = np.intersect1d(common, other, assume_unique=True)
    if not len(common):
        raise RunError(
            f"rows of {' and '.join(names)}",
            "none in common, by user, item and timestamp",
            "runs tested on some of the same rows",
            "score them on one log: longrec compare RUN RUN --log FILE",
        )
    first = np.flatnonzero(np.isin(codes[0], common, assume_unique=True))
    selected = {}
    for index, name in enumerate(names):
        order = np.argsort(codes[index])
        at = order[np.searchsorted(codes[index], codes[0][first], sorter=order)]
        table = tables[name].take(pa.array(at))
        selected[name] = table.set_column(table.column_names.index("user"), "user", pa.array(users[index][at]))
    return selected


def _take(keys: pa.Array, rows: NDArray[np.int64]) -> pa.Array:
    """Return the keys of rows of an entity table, null for row 0."""
    rows = rows.astype(np.int64)
    return keys.take(pa.array(rows - 1, mask=rows == 0))


def _read_items(table: pa.Table, log: Log) -> NDArray[np.int64]:
    if "item" in table.column_names:
        return np.asarray(table["item"].to_numpy(), np.int64)
    return log.events.columns["item"].take(table["row"].to_numpy()).astype(np.int64)


def _encode_together(names: list[str], keys: list[pa.Array]) -> list[NDArray[np.int64]]:
    """Return the keys of all runs as numbers, equal for equal keys."""
    if len({key.type for key in keys}) > 1:
        kinds = ", ".join(f"{key.type} in {name}" for name, key in zip(names, keys))
        raise RunError(" and ".join(names), f"keys of the types {kinds}", "one type", "compare runs of one log")
    coded = pa.chunked_array(keys).dictionary_encode(null_encoding="encode").unify_dictionaries()
    return [chunk.indices.to_numpy().astype(np.int64) for chunk in coded.chunks] if coded.num_chunks else []


def _number_rows(
    users: list[NDArray[np.int64]], items: list[NDArray[np.int64]], times: list[NDArray[np.int64]]
) -> list[NDArray[np.int64]]:
    """Return a number per row, equal for equal rows of different runs. Copies in a run have different numbers."""
    columns = [np.concatenate(column) for column in (users, items, times)]
    run = np.repeat(np.arange(len(users)), [len(own) for own in users])
    order = np.lexsort((run, columns[2], columns[1], columns[0]))  # stable: copies keep their order
    starts = np.ones(len(order), bool)
    starts[1:] = np.logical_or.reduce([np.diff(column[order]) != 0 for column in columns])
    own_starts = starts.copy()
    own_starts[1:] |= np.diff(run[order]) != 0
    at = np.arange(len(order))
    copy = at - np.maximum.accumulate(np.where(own_starts, at, 0))
    numbers = np.empty(len(order), np.int64)
    numbers[order] = (np.cumsum(starts) - 1) * (int(copy.max(initial=0)) + 1) + copy
    cuts = np.cumsum([len(own) for own in users])[:-1]
    return np.split(numbers, cuts)
