"""Raw columns of the items of a bundle: what conditions on items and changes of the catalog refer to.

``item_columns.parquet`` holds all columns of the item table, one row per item in the order of the encoded table, the
key first. A bundle without it has no item table, or was written by an earlier version.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from longrec.errors import BundleError
from longrec.features.vocabulary import Keys

ITEM_COLUMNS = "item_columns.parquet"


def write_item_columns(folder: Path, table: pa.Table, keys: Keys) -> None:
    """Write the columns into a bundle.

    Args:
        table: the key first, one row per key in their order.

    Raises:
        BundleError: if the rows are not those of the keys.
    """
    own = table.column(0).combine_chunks()
    if not own.cast(keys.values.type).equals(keys.values):
        raise BundleError("item columns", f"{len(own):,} rows with other keys", f"the {len(keys):,} items of the log")
    pq.write_table(table, folder / ITEM_COLUMNS)


def read_item_columns(folder: Path) -> pa.Table | None:
    """Read the columns of a bundle, None if it has none."""
    path = folder / ITEM_COLUMNS
    return pq.ParquetFile(path).read(use_threads=False) if path.exists() else None
