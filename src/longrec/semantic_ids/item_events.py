"""What a log says about items before a timestamp: the number of events of each, and pairs that a user took in turn.

Only events strictly before ``until`` are read, the end of the training window, so that neither weights nor pairs know
what an evaluation asks for.

Shapes: N items, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float, Int
from torch import Tensor

from longrec.data.relation import Relation, name
from longrec.data.splits import parse_cutoff
from longrec.data.timestamps import read_timestamps
from longrec.errors import DataError
from longrec.features.duration import parse_duration
from longrec.semantic_ids.settings import EventsConfig
from longrec.semantic_ids.vectors import open_relation


@dataclass(frozen=True)
class ItemEvents:
    """Facts of a training window.

    Attributes:
        counts: number of events of each item, float64 ``[N]``.
        pairs: rows of items that a user took one after the other, int64 ``[P, 2]``. Never an item with itself.
        events: number of events in the window.
        unknown: number of events of items without a vector.
    """

    counts: Float[Tensor, " N"]
    pairs: Int[Tensor, "P 2"]
    events: int
    unknown: int


def read_item_events(config: EventsConfig, items: pa.Array, *, with_pairs: bool) -> ItemEvents:
    """Read the events of the training window.

    Args:
        items: keys of the items with vectors.
        with_pairs: also read pairs, which need the columns of user and time in order.

    Raises:
        DataError: a column that is missing, keys of another type, an invalid timestamp, or no event of any item.
    """
    with open_relation(config.log, "log") as log:
        users = {config.user: "events.user"} if with_pairs else {}
        log.need({config.item: "events.item", config.time.column: "events.time", **users})
        kind = log.key_type(config.item)
        if pa.types.is_integer(items.type) != (kind == "BIGINT"):
            what = f"{'whole numbers' if kind == 'BIGINT' else 'text'} as keys"
            raise DataError(f"{log.where}: column {config.item!r}", what, f"keys as of the vectors: {items.type}")
        until = parse_cutoff(str(config.until), config.time, "events.until")
        time = read_timestamps(log, config.time.column, config.time).sql
        window = f"SELECT {name(config.item)}::{kind} AS item, {time} AS t"
        window += f", {name(config.user)} AS u" if with_pairs else ""
        window += f" FROM {log.view} WHERE {time} < {until} AND {name(config.item)} IS NOT NULL"
        rows = log.table(f"SELECT item, count(*) AS n FROM ({window}) GROUP BY item")
        pairs = _read_pairs(log, window, config, items) if with_pairs else torch.zeros(0, 2, dtype=torch.int64)
        where = log.where
    row = pc.index_in(rows["item"].combine_chunks().cast(items.type), items)
    count = rows["n"].to_numpy().astype(np.float64)
    is_item = pc.is_valid(row).to_numpy(zero_copy_only=False)
    events = int(count.sum())
    if not is_item.any():
        raise DataError(
            where,
            f"{events:,} events before {config.until}, none of an item with a vector",
            "events of the items",
            "check events.until and events.item",
        )
    at = pc.fill_null(row, 0).to_numpy()[is_item]
    counts = np.bincount(at, count[is_item], minlength=len(items))
    return ItemEvents(torch.from_numpy(counts), pairs, events, int(count[~is_item].sum()))


def _read_pairs(log: Relation, window: str, config: EventsConfig, items: pa.Array) -> Tensor:
    """Return pairs of successive events of a user, of different items with vectors."""
    gap = "" if config.max_gap is None else f" AND later - t <= {parse_duration(config.max_gap)}"
    turn = "OVER (PARTITION BY u ORDER BY t, item)"
    pairs = log.table(
        f"SELECT item, second FROM (SELECT item, t, lead(item) {turn} AS second, lead(t) {turn} AS later "
        f"FROM ({window})) WHERE second IS NOT NULL AND second <> item{gap} ORDER BY item, second"
    )
    columns = [pc.index_in(pairs[column].combine_chunks().cast(items.type), items) for column in ("item", "second")]
    both = pc.and_(pc.is_valid(columns[0]), pc.is_valid(columns[1]))
    rows = [column.filter(both).to_numpy(zero_copy_only=False).astype(np.int64) for column in columns]
    return torch.from_numpy(np.stack(rows, 1))
