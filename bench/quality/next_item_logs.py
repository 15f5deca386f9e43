"""Logs and protocols of next-item recommendation.

    N1  published order: time is the position in the file; leave one out; the whole catalog; seen items masked
    N2  strict: the same targets; a request holds events of strictly earlier timestamps only
    N3  shuffled: N1 with the order of equal timestamps drawn at random
    N4  one line through time: valid and test begin at one timestamp for all users; items that existed then
    held  N1 with 5 % of the items held out of training

    rows  published rows of train, valid and test, each with its own history; the whole catalog; no item masked

MovieLens-1M has N1 with ties in the order of the file, and N4. Office has rows, since it has no times.

Held-out items are drawn by a seed, all alike. Their events are dropped, in training, in validation and in all
histories, except where one is the last event of its user: the target of test. The last two events that are left of a
user are those of test and validation, and users with fewer than three are dropped. All items are in the catalog of
every model, which is what serving has when new items arrive. Validation ranks them too, and they are never its targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from longrec.data.public_datasets import fetch_movielens_1m
from longrec.interop import atomic

PUBLISHED = {"catalog": "all", "seen": "mask_same_time"}
FOLDERS = {"office": "amazon_office_text"}
"""Folders of the Amazon data sets that are not named as the others."""
ROWS = "rows"
"""Protocol of published rows, whose histories are list columns such as ``hist_item_id``."""
ROWS_EVENTS = 10
"""Events of such a history."""
HELD = "held"
"""Protocol with held-out items."""
HELD_SHARE, HELD_SEED = 0.05, 0


@dataclass(frozen=True)
class Task:
    """One log under one protocol.

    Attributes:
        data: the ``data`` section without ``folder``.
        evaluate: what ranks depend on.
        trained: name of the task whose runs are measured here too, with its own training. Empty: none.
    """

    data: dict[str, Any]
    evaluate: dict[str, Any] = field(default_factory=dict)
    trained: str = ""


def build_task(name: str, data: Path, work: Path) -> Task:
    """Return a task such as ``beauty_n1``, ``beauty_n3_0``, ``beauty_held``, ``toys_n1`` or ``movielens_n4``.

    Args:
        data: folder of the Amazon data sets.
        work: folder for the logs that are written.
    """
    log, protocol, *draw = name.split("_")
    if protocol == ROWS:
        return _build_rows_task(log, data)
    path = work / f"{name}.parquet"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        table = read_events(name, data)
        if protocol == "n3":
            table = _shuffle(table, int(draw[0]))
        pq.write_table(table, path)
    steps = protocol in ("n1", "n3", HELD) and log != "movielens"
    time: dict[str, Any] = {"column": "position", "unit": "step"} if steps else {"column": "timestamp", "unit": "s"}
    if log == "movielens" and protocol == "n1":
        time["order"] = "position"
    schema = {
        "user": "user_id",
        "item": "item_id",
        "time": time,
        "features": {"item_id": {"kind": "id"}},
        "histories": {"seen": {"features": ["item_id"], "max_length": 200 if log == "movielens" else 50}},
    }
    split = {"by": "time"} if protocol == "n4" else {"by": "leave_one_out"}
    evaluate = {} if protocol == "n4" else PUBLISHED
    own: dict[str, Any] = {"log": str(path), "schema": schema, "split": split}
    if protocol == HELD:  # most held-out items are no target of test, and so only in this table
        own["items"] = {"query": f"SELECT item_id FROM '{find_source(log, data) / 'items.parquet'}'"}
    return Task(own, evaluate, f"{log}_n1" if protocol == "n2" else "")


def find_source(log: str, data: Path) -> Path:
    """Return the folder of an Amazon data set."""
    return data / FOLDERS.get(log, f"amazon_{log}")


def _build_rows_task(log: str, data: Path) -> Task:
    """Return the task of published rows. The path of its log is that of the data set."""
    source = find_source(log, data)
    schema = {
        "user": "user_id",
        "item": "item_id",
        "features": {"item_id": {"kind": "id"}},
        "histories": {
            "seen": {"features": ["item_id"], "columns": {"item_id": "hist_item_id"}, "max_length": ROWS_EVENTS}
        },
    }
    own = {
        "log": str(source / "sequences.parquet"),
        "items": {"query": f"SELECT item_id FROM '{source / 'items.parquet'}'"},
        "schema": schema,
        "split": {"by": "column", "column": "split"},
    }
    return Task(own, {"catalog": "all", "seen": "keep"})


def join_histories(log: Path, items: Path, names: Sequence[str], out: Path) -> Path:
    """Write rows with one more list column per column of the item table, such as ``hist_code_1``, once."""
    if not out.exists():
        rows, table = pq.read_table(log), pq.read_table(items)
        lists = rows["hist_item_id"].combine_chunks()
        at = pc.index_in(lists.flatten(), value_set=table["item_id"].combine_chunks().cast(lists.type.value_type))
        for name in names:
            values = table[name].combine_chunks().take(at)
            own = pa.LargeListArray.from_arrays(lists.offsets, values)
            rows = rows.append_column(f"hist_{name}", own)
        pq.write_table(rows, out)
    return out


def list_held_out(name: str, data: Path) -> NDArray[np.int64]:
    """Return the ids of the held-out items of a task, ascending. None of most tasks."""
    log, _, protocol = name.partition("_")
    if protocol != HELD:
        return np.zeros(0, np.int64)
    items = pq.read_table(find_source(log, data) / "items.parquet", columns=["item_id"])["item_id"].to_numpy()
    count = round(HELD_SHARE * len(items))
    return np.sort(np.random.default_rng(HELD_SEED).choice(np.sort(items), count, replace=False)).astype(np.int64)


def read_events(name: str, data: Path) -> pa.Table:
    """Return the events of a task: user_id, item_id, position and, if there is one, timestamp."""
    table = _read(name.split("_")[0], data)
    held_out = list_held_out(name, data)
    if not len(held_out):
        return table
    table = table.sort_by([("user_id", "ascending"), ("position", "ascending")])
    user = table["user_id"].to_numpy()
    last = np.append(user[1:] != user[:-1], True)
    kept = last | ~np.isin(table["item_id"].to_numpy(), held_out)
    return table.filter(pa.array(kept & (np.bincount(user, kept)[user] >= 3)))


def _read(log: str, data: Path) -> pa.Table:
    """Return user_id, item_id, position and, if there is one, timestamp."""
    if log == "movielens":
        ratings = pq.read_table(fetch_movielens_1m(atomic.read) / "ratings.parquet")
        users = ratings["user_id"].to_numpy()
        order = np.lexsort((ratings["timestamp"].to_numpy(), users))
        start = np.searchsorted(users[order], users[order])
        columns = {
            "user_id": users[order],
            "item_id": ratings["movie"].combine_chunks().dictionary_encode().indices.take(pa.array(order)),
            "position": np.arange(len(order)) - start,
            "timestamp": ratings["timestamp"].to_numpy()[order],
        }
        return pa.table(columns)
    table = pq.read_table(find_source(log, data) / "interactions.parquet")
    wanted = ["user_id", "item_id", "position", "timestamp"]
    table = table.select([name for name in wanted if name in table.column_names])
    return _fill_timestamps(table) if "timestamp" in table.column_names else table


def _fill_timestamps(table: pa.Table) -> pa.Table:
    """Return the log with the timestamp of the event before, or after, for the few events without one.

    All events of a user without any have the first timestamp of the log, so that none is before another.
    """
    table = table.sort_by([("user_id", "ascending"), ("position", "ascending")])
    users, columns, first = table["user_id"].to_numpy(), [], pc.min(table["timestamp"]).as_py()
    for own in np.split(table["timestamp"].to_numpy(zero_copy_only=False), np.flatnonzero(np.diff(users)) + 1):
        there = np.flatnonzero(~np.isnan(own))
        if not len(there):
            columns.append(np.full(len(own), first))
            continue
        columns.append(own[there[np.maximum(np.searchsorted(there, np.arange(len(own)), side="right") - 1, 0)]])
    filled = pa.array(np.concatenate(columns).astype(np.int64))
    return table.set_column(table.column_names.index("timestamp"), "timestamp", filled)


def _shuffle(table: pa.Table, seed: int) -> pa.Table:
    """Return the log with positions in a random order within each user and timestamp."""
    random = np.random.default_rng(seed).random(len(table))
    user, day = table["user_id"].to_numpy(), table["timestamp"].to_numpy()
    order = np.lexsort((random, day, user))
    position = np.empty(len(table), np.int64)
    position[order] = np.arange(len(table)) - np.searchsorted(user[order], user[order])
    return table.set_column(table.column_names.index("position"), "position", pa.array(position))
