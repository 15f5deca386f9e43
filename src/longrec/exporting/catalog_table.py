"""The items of a bundle with all changes since: the encoded table, and the raw columns.

Items of the bundle keep their rows. Added ones follow in the order of their first change, so that rows in stored events
stay valid.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from longrec.errors import BundleError, DataError, quote, shorten
from longrec.exporting.bundle import Bundle
from longrec.exporting.catalog_changes import WITHDRAWN, CatalogChanges, ChangeReader, Key
from longrec.features.entity_table import EntityTable
from longrec.features.feature_encoders import Lists
from longrec.features.fitted_schema import FittedSchema, concat_lists, gather_lists
from longrec.features.vocabulary import Keys, build_array


@dataclass(frozen=True)
class CatalogTable:
    """Items of a catalog.

    Attributes:
        items: encoded table.
        columns: raw columns, one row per item without the unknown one, the key first. None if the bundle has none.
        withdrawn: bool ``[I]``, the withdrawn items. None: none.
        changed: ascending rows of the encoded table whose raw columns are not those of the bundle.
    """

    items: EntityTable
    columns: pa.Table | None
    withdrawn: NDArray[np.bool_] | None
    changed: NDArray[np.int64]


def build_change_reader(bundle: Bundle, columns: pa.Table | None) -> ChangeReader:
    """Return the checks of changes of a bundle.

    Raises:
        BundleError: if the items of the bundle cannot change.
    """
    schema, expected = bundle.fitted.schema, "a bundle whose items can change"
    where, do = str(bundle.path), "export the changed catalog as a new bundle"
    if schema.item is None:
        raise BundleError(where, "no items", expected, do)
    if bundle.items.versions is not None:
        raise BundleError(where, "an item table with versions (as_of)", expected, do)
    read = dict.fromkeys(column for name in bundle.fitted.list_features("item") for column in schema.columns(name))
    read.pop(schema.item, None)
    own = [] if columns is None else columns.column_names
    every = [column for column in dict.fromkeys([*own, *read]) if column != schema.item]
    if WITHDRAWN in every:
        raise BundleError(where, f"a raw column {WITHDRAWN!r}", "another name", "rename the column of the item table")
    return ChangeReader(schema.item, bundle.items.keys.numeric, every, list(read))


def build_catalog_table(bundle: Bundle, columns: pa.Table | None, changes: CatalogChanges) -> CatalogTable:
    """Return the items of a bundle with changes.

    Args:
        columns: raw columns of the bundle.

    Raises:
        DataError: if a raw value has the wrong type. The message names the item.
    """
    base, fitted = bundle.items, bundle.fitted
    if not changes.items:
        return CatalogTable(base, columns, None, np.zeros(0, np.int64))
    keys = list(changes.items)
    rows = base.rows(build_array(keys, "items"), "items").astype(np.int64)
    added = np.flatnonzero(rows == 0)
    rows[added] = len(base) + np.arange(len(added))
    total = len(base) + len(added)
    new_keys = pa.array([keys[at] for at in added.tolist()], base.keys.values.type)
    every_key = Keys(pa.concat_arrays([base.keys.values, new_keys]))
    raw = None if columns is None else _replace_columns(columns, every_key, rows - 1, changes)
    encoded = dict(base.columns)
    for name in fitted.list_features("item"):
        encoded[name] = _encode(fitted, name, base.columns[name], raw, changes, keys, rows, total)
    withdrawn = np.zeros(total - 1, bool)
    withdrawn[rows - 1] = [one.withdrawn for one in changes.items.values()]
    own = np.array([bool(one.columns) for one in changes.items.values()]) | (rows >= len(base))
    return CatalogTable(
        EntityTable(every_key, encoded), raw, withdrawn if withdrawn.any() else None, np.sort(rows[own])
    )


def _encode(
    fitted: FittedSchema,
    name: str,
    column: NDArray[Any] | Lists,
    raw: pa.Table | None,
    changes: CatalogChanges,
    keys: Sequence[Key],
    rows: NDArray[np.int64],
    total: int,
) -> NDArray[Any] | Lists:
    """Return the encoded column of a feature with the values of the changed items."""
    schema, every = fitted.schema, list(changes.items.values())
    read, size = schema.columns(name), len(column)
    some = [at for at, one in enumerate(every) if rows[at] >= size or not one.columns.keys().isdisjoint(read)]
    if not some:
        return column
    arrays: list[pa.Array] = []
    for index, of in enumerate(read):
        if of == schema.item:
            arrays.append(build_array([keys[at] for at in some], of))
        elif raw is not None and of in raw.column_names:
            arrays.append(raw[of].combine_chunks().take(pa.array(rows[some] - 1)))
        else:
            lacking = [keys[at] for at in some if of not in every[at].columns]
            if lacking:
                do = f"give {of} with {read[1 - index]}, because the bundle has no raw columns"
                raise DataError(f"item {quote(lacking[0])}", f"no {of}", "all columns of a feature", do)
            arrays.append(build_array([every[at].columns[of] for at in some], f"items: column {of!r}"))
    new = _encode_each(fitted, name, arrays, [keys[at] for at in some])
    order = np.arange(total)
    order[rows[some]] = size + np.arange(len(some))
    if isinstance(new, Lists):
        assert isinstance(column, Lists)
        return gather_lists(concat_lists([column, new]), order)
    assert not isinstance(column, Lists)
    return np.concatenate([column, new.astype(column.dtype, copy=False)]).take(order, axis=0)


def _encode_each(
    fitted: FittedSchema, name: str, arrays: Sequence[pa.Array], keys: Sequence[Key]
) -> NDArray[Any] | Lists:
    """Encode the values of some items. An error names the first item whose value is wrong."""
    weights = arrays[1] if len(arrays) > 1 else None
    where = f"column {fitted.schema.column(name)!r}"
    try:
        return fitted.encode(name, arrays[0], where, weights)
    except DataError:
        for at, key in enumerate(keys):
            own = None if weights is None else weights[at : at + 1]
            fitted.encode(name, arrays[0][at : at + 1], f"item {quote(key)}, {where}", own)
        raise


def _replace_columns(columns: pa.Table, keys: Keys, rows: NDArray[np.int64], changes: CatalogChanges) -> pa.Table:
    """Return the raw columns with the values of changed items.

    Args:
        rows: row of each changed item.
    """
    count = len(keys)
    arrays = {columns.column_names[0]: keys.values}
    for column in columns.column_names[1:]:
        kind, base = columns.schema.field(column).type, columns[column].combine_chunks()
        base = base if len(base) == count else pa.concat_arrays([base, pa.nulls(count - len(base), kind)])
        changed = [
            (row, key, one.columns[column])
            for row, (key, one) in zip(rows.tolist(), changes.items.items())
            if column in one.columns
        ]
        if changed:
            at = np.arange(count)
            at[[row for row, _, _ in changed]] = count + np.arange(len(changed))
            base = pa.concat_arrays([base, _cast_all(changed, kind, column)]).take(pa.array(at))
        arrays[column] = base
    return pa.table(arrays)


def _cast_all(changed: Sequence[tuple[int, Key, Any]], kind: pa.DataType, column: str) -> pa.Array:
    """Return raw values as an array in the type of their column.

    Args:
        changed: row, key and value of each changed item.

    Raises:
        DataError: if a value has another type. The message names the first such item.
    """
    values = [value for _, _, value in changed]
    kinds = {type(one) for value in values for one in (value if isinstance(value, list) else [value])} - {type(None)}
    if len(kinds) == 1 and len({isinstance(value, list) for value in values if value is not None}) == 1:
        with contextlib.suppress(DataError):  # one by one, to name the item
            return _cast(values, kind, column)
    return pa.concat_arrays(
        [_cast([value], kind, f"item {quote(key)}, column {column!r}") for _, key, value in changed]
    )


def _cast(values: list[Any], kind: pa.DataType, where: str) -> pa.Array:
    """Return raw values of one type as an array in the type of their column."""
    example = next((value for value in values if value is not None), None)
    try:
        if isinstance(example, bool) and not pa.types.is_boolean(kind):
            raise pa.ArrowInvalid("a truth value")
        is_text = isinstance(example, str)
        if is_text and (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise pa.ArrowInvalid("text")
        if pa.types.is_decimal(kind):
            return pa.array([None if value is None else Decimal(str(value)) for value in values], kind)
        array = pa.array(values).cast(kind)  # without the loss of a fraction that a conversion in one step accepts
        if pa.types.is_floating(kind) and not np.isfinite(array.drop_null().to_numpy(zero_copy_only=False)).all():
            raise pa.ArrowInvalid(f"beyond the range of {kind}")
    except (pa.ArrowException, ArithmeticError, ValueError, TypeError) as error:
        message = f"{quote(example)} ({shorten(str(error), 200)})"
        raise DataError(where, message, f"a value of type {kind}, or null", "correct the value") from None
    return array


def find_changed_rows(before: CatalogChanges, after: CatalogChanges, table: EntityTable) -> NDArray[np.int64]:
    """Return the rows of the items whose raw columns differ between two states of the changes, ascending."""
    none: Mapping[Key, Any] = {}
    keys = [
        key
        for key in dict.fromkeys([*before.items, *after.items])
        if (before.items[key].columns if key in before.items else none)
        != (after.items[key].columns if key in after.items else none)
        or (key in before.items) != (key in after.items)
    ]
    if not keys:
        return np.zeros(0, np.int64)
    return np.sort(table.rows(build_array(keys, "items"), "items").astype(np.int64))


def read_keys(items: EntityTable) -> NDArray[Any]:
    """Return the keys of all items without the unknown one: int64, or text as objects."""
    return items.keys.values.to_numpy(zero_copy_only=False)
