"""Features of several raw columns of a row (crosses and lookups), and values that carry their weights as text.

Each becomes one plain column that an encoder of ``features/feature_encoders.py`` reads, offline and online.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from longrec.errors import DataError, quote
from longrec.features.feature import Feature
from longrec.features.feature_encoders import CrossEncoder, flatten, parse_numbers
from longrec.features.float32 import to_float32
from longrec.features.vocabulary import cast_keys

_UNIT_SEPARATOR = "\x1f"
"""Separator of the values of a cross: the ASCII unit separator, which no id contains by chance."""

ColumnLocator = Callable[[str], str]
"""Maps a raw column to its name in messages."""


def compose_column(feature: Feature, columns: Mapping[str, pa.Array], locate: ColumnLocator) -> pa.Array:
    """Return the plain column of a cross or a lookup.

    Args:
        columns: raw columns of ``n`` rows by name, including those the feature reads.
        locate: returns the name of a raw column in messages.

    Returns:
        For a cross text ``[n]``. For a lookup text ``[n]``, or float64 ``[n]`` if it becomes a number. Null if a value
        is null, or if the map does not contain the key.

    Raises:
        DataError: if values are not ids, text is not a map, or a looked-up text is not a number.
    """
    if feature.kind == "cross":
        assert feature.features is not None
        return join_keys([cast_keys(columns[name], locate(name)) for name in feature.features])
    assert feature.map is not None
    assert feature.key is not None
    keys = cast_keys(columns[feature.key], locate(feature.key)).cast(pa.string())
    where = locate(feature.map)
    maps, of_row, separator = columns[feature.map], None, feature.separator or ","
    if feature.outer_separator is not None:
        outer = None
        if feature.outer_key is not None:
            outer = cast_keys(columns[feature.outer_key], locate(feature.outer_key)).cast(pa.string())
        maps, of_row = select_inner_maps(maps, outer, feature.outer_separator, feature.outer_pair_separator, where)
    texts = look_up_values(maps, keys, separator, feature.pair_separator, where, of_row)
    return texts if feature.form == "id" else pa.array(parse_numbers(texts, where), from_pandas=True)


def join_keys(keys: Sequence[pa.Array]) -> pa.Array:
    """Join the keys of several columns to one text per row, null if one of them is null.

    Args:
        keys: int64 or string keys ``[n]``.

    >>> join_keys([pa.array([7, 8]), pa.array(["a", None])]).to_pylist()
    ['7\\x1fa', None]
    """
    texts = [key.cast(pa.string()) for key in keys]
    return pc.binary_join_element_wise(*texts, _UNIT_SEPARATOR, null_handling="emit_null")


def find_integer_columns(
    feature: Feature, columns: Mapping[str, pa.Array], locate: ColumnLocator
) -> tuple[bool | None, ...]:
    """Return for each column of a cross True if it holds integers, and None if all its values are null."""
    assert feature.features is not None
    keys = [cast_keys(columns[name], locate(name)) for name in feature.features]
    return tuple(pa.types.is_integer(key.type) if key.null_count < len(key) else None for key in keys)


def check_cross_types(
    encoder: CrossEncoder, feature: Feature, columns: Mapping[str, pa.Array], locate: ColumnLocator
) -> None:
    """Check that the columns of a cross have the types of the training window. Integers and text hash to different
    buckets, as for plain ids, since '07' is another id than 7.

    Raises:
        DataError: if a column has another type. The error has its location.
    """
    assert feature.features is not None
    numeric = find_integer_columns(feature, columns, locate)
    for name, fitted, own in zip(feature.features, encoder.numeric, numeric):
        if fitted is not None and own is not None and own != fitted:
            actual, expected = ("integers", "text") if own else ("text", "integers")
            example = columns[name].drop_null()[0].as_py()
            raise DataError(
                locate(name),
                f"{actual}, for example {quote(example)}",
                f"{expected}, as in the log",
                "7 and '07' hash apart",
            )


def select_inner_maps(
    maps: pa.Array, keys: pa.Array | None, separator: str, pair_separator: str, where: str
) -> tuple[pa.Array, NDArray[np.int64]]:
    """Select from maps of maps the inner maps of the row's key, and return the row of each.

    Args:
        maps: text ``[n]`` such as ``a^k1:v1,k2:v2|b^k1:v3`` (or lists of such pairs).
        keys: text ``[n]``. None selects all inner maps.

    Raises:
        DataError: if a key has no map.

    >>> inside, row = select_inner_maps(pa.array(["a^x:1|b^y:2", "a^x:3"]), pa.array(["b", "a"]), "|", "^", "x")
    >>> inside.to_pylist(), row.tolist()
    (['y:2', 'x:3'], [0, 1])
    """
    flat, offsets = flatten(maps, separator, where)
    row = np.repeat(np.arange(len(maps)), np.diff(offsets))
    if not len(flat):
        return pa.array([], pa.string()), row
    names, inside = _split_pairs(flat, pair_separator, where)
    if keys is None:
        return inside, row
    same = pc.fill_null(pc.equal(names, keys.take(pa.array(row))), False)
    return inside.filter(same), row[same.to_numpy(zero_copy_only=False)]


def look_up_values(
    maps: pa.Array,
    keys: pa.Array,
    separator: str,
    pair_separator: str,
    where: str,
    of_row: NDArray[np.int64] | None = None,
) -> pa.Array:
    """Look up the key of each row in its map, as text. If the map contains the key twice, the first value is returned.

    Args:
        maps: text ``[m]`` such as ``k1:v1,k2:v2`` (or lists of such pairs).
        keys: text ``[n]``.
        of_row: the row of each map, ascending. Default: map i belongs to row i.

    Raises:
        DataError: if a pair has no value.

    >>> look_up_values(pa.array(["a:1,b:2", "a:1", None]), pa.array(["b", "b", "a"]), ",", ":", "x").to_pylist()
    ['2', None, None]
    """
    flat, offsets = flatten(maps, separator, where)
    if not len(flat):
        return pa.nulls(len(keys), pa.string())
    names, values = _split_pairs(flat, pair_separator, where)
    row = np.repeat(np.arange(len(keys)) if of_row is None else of_row, np.diff(offsets))
    same = pc.fill_null(pc.equal(names, keys.take(pa.array(row))), False).to_numpy(zero_copy_only=False)
    at = np.flatnonzero(same)
    rows, first = np.unique(row[at], return_index=True)
    pair_index = np.full(len(keys), -1)
    pair_index[rows] = at[first]
    return values.take(pa.array(pair_index, mask=pair_index < 0))


def _split_pairs(flat: pa.Array, separator: str, where: str) -> tuple[pa.Array, pa.Array]:
    """Split texts at the first separator, into two."""
    if not pa.types.is_string(flat.type):
        if not (pa.types.is_large_string(flat.type) or pa.types.is_null(flat.type)):
            raise DataError(where, f"values of type {flat.type}", f"text such as key{separator}value")
        flat = flat.cast(pa.string())
    cut = pc.split_pattern(pc.fill_null(flat, separator), separator, max_splits=1)
    odd = pc.not_equal(pc.list_value_length(cut), 2).to_numpy(zero_copy_only=False)
    if odd.any():
        example = flat[int(np.flatnonzero(odd)[0])].as_py()
        raise DataError(where, f"the pair {example[:60]!r}", f"text such as key{separator}value", "correct the column")
    return pc.list_element(cut, 0), pc.list_element(cut, 1)


def split_multi_values(
    feature: Feature, array: pa.Array, where: str
) -> tuple[pa.Array, NDArray[np.int64], NDArray[np.float32] | None]:
    """Return the concatenated values of a multi_id feature, int64 offsets ``[n + 1]``, and the weights in their text.

    A value without a weight has weight 1. A weight without a value belongs to a missing value.

    Raises:
        DataError: if a weight is not a number.
    """
    flat, offsets = flatten(array, feature.separator, where)
    if feature.weight_separator is None:
        return flat, offsets, None
    if not (pa.types.is_string(flat.type) or pa.types.is_large_string(flat.type)):
        if len(flat):
            expected = f"text such as value{feature.weight_separator}0.5"
            raise DataError(where, f"values of type {flat.type}", expected, "or name a column of weights: weights")
        return pa.array([], pa.string()), offsets, np.zeros(0, np.float32)
    cut = pc.split_pattern(pc.fill_null(flat, ""), feature.weight_separator, max_splits=1, reverse=True)
    weighed = pc.equal(pc.list_value_length(cut), 2)
    values = pc.list_element(cut, 0)
    text, starts = _flatten_lists(cut)
    weights = np.ones(len(flat))
    at = np.flatnonzero(weighed.to_numpy(zero_copy_only=False))
    parsed = parse_numbers(text.take(pa.array(starts[at] + 1)), f"{where}: weights")
    if np.isnan(parsed).any():
        example = flat[int(at[np.isnan(parsed)][0])].as_py()
        raise DataError(
            f"{where}: weights", f"no number in {quote(example)}", "a weight after the separator, or no separator"
        )
    weights[at] = parsed
    values = pc.if_else(pc.equal(values, ""), pa.scalar(None, values.type), values)
    return values, offsets, to_float32(weights, f"{where}: weights")


def _flatten_lists(cut: pa.Array) -> tuple[pa.Array, NDArray[np.int64]]:
    """Concatenate lists, and return the first position of each."""
    lengths = pc.list_value_length(cut).to_numpy(zero_copy_only=False)
    return cut.flatten(), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)[:-1]
