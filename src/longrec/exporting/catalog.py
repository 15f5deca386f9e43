"""Catalog of a bundle: all items of its item table, as inputs of a retriever.

A table with versions has the newest version of every item in it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import BundleError
from longrec.exporting.inputs import make_tensors
from longrec.features.entity_table import AsOf, EntityTable
from longrec.features.fitted_schema import FittedSchema

NEWEST = np.iinfo(np.int64).max
"""Timestamp after all versions."""


def read_catalog(items: EntityTable, first: int = 1, stop: int | None = None) -> AsOf:
    """Return the newest version of the items of a range of rows, by default of all but the unknown item."""
    return items.as_of(np.arange(first, len(items) if stop is None else stop), NEWEST)


def build_catalog_tensors(
    fitted: FittedSchema, items: EntityTable, first: int = 1, stop: int | None = None
) -> dict[str, NDArray[Any]]:
    """Return the item inputs of a program for a range of rows of the item table."""
    return _build_tensors(fitted, read_catalog(items, first, stop))


def build_item_tensors(fitted: FittedSchema, items: EntityTable, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Return the item inputs of a program for some rows of the item table."""
    return _build_tensors(fitted, items.as_of(rows, NEWEST))


def _build_tensors(fitted: FittedSchema, catalog: AsOf) -> dict[str, NDArray[Any]]:
    tensors = dict[str, NDArray[Any]]()
    for field in fitted.fields().features:
        if field.side == "item":
            number = field.kind in ("numeric", "numbers")
            tensors.update(make_tensors(f"f.{field.name}", catalog[field.name], number))
    return tensors


def check_catalog(fitted: FittedSchema) -> None:
    """Check that the features of all items follow from the item table.

    Raises:
        BundleError: if a feature of the candidate, or a vector of the item, is read from elsewhere.
    """
    for name, feature in fitted.schema.features.items():
        side = fitted.schema.side(name)
        if side == "candidate" or (side == "item" and feature.kind == "embedding"):
            what = "a column of the candidate" if side == "candidate" else "a stored vector of the item"
            raise BundleError(
                f"schema: feature {name!r}",
                what,
                "features of the item table, because a retriever scores all items",
                "train the retriever on a schema without it",
            )
