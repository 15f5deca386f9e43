"""Command ``longrec catalog``: changes of the items of a bundle without a new export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def change_catalog(bundle: str | Path, changes: str | Path | Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Add, withdraw and change items of a bundle. A server loads the changes when it starts, or within a request.

    The changes are kept beside the bundle, in the folder ``BUNDLE.catalog``. The same changes may be repeated.

    Args:
        bundle: folder of a bundle of a ranker or a retriever.
        changes: file of JSON lines or Parquet, or mappings: the key of an item, and raw columns to replace.
            ``withdrawn: true`` hides the item. A new item needs every column that features of items read.

    Returns:
        The numbers of changes, of items of the catalog, and of withdrawn items.

    Raises:
        DataError: if a change does not fit the bundle. Then none is applied.
        BundleError: if the items of the bundle cannot change.
    """
    from longrec.exporting.catalog_changes import read_changes
    from longrec.serve.live_catalog import change_items, open_catalog

    is_file = isinstance(changes, (str, Path))
    rows = read_changes(changes) if isinstance(changes, (str, Path)) else changes
    return change_items([open_catalog(bundle)], rows, str(changes) if is_file else "changes")
