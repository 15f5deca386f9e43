"""Column types of events: their text form in manifests, and lossless conversion of values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import StoreError

Types = Mapping[str, np.dtype[Any]]
_TYPE_TEXT = re.compile(r"((?:u?int(?:8|16|32|64)|float(?:16|32|64)|bool))(?:\[(\d+)\])?")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\- ]*")
_NARROW = tuple(np.dtype(f"{sign}int{bits}") for bits in (8, 16, 32) for sign in ("u", ""))
_CHUNK = 1 << 22


def format_type(dtype: np.dtype[Any]) -> str:
    """Return the text form of a column type, as manifests store it.

    >>> format_type(np.dtype(np.int64)), format_type(np.dtype((np.float16, (32,))))
    ('int64', 'float16[32]')
    """
    return str(dtype.base) + (f"[{dtype.shape[0]}]" if dtype.shape else "")


def parse_type(text: str, where: str) -> np.dtype[Any]:
    """Return the column type of a text from a manifest.

    Raises:
        StoreError: if the text is not a type that a store supports.
    """
    match = _TYPE_TEXT.fullmatch(text)
    if match is None:
        raise StoreError(where, f"a column of type {text!r}", "a number, or numbers with a width like float16[32]")
    return np.dtype((match[1], (int(match[2]),))) if match[2] else np.dtype(match[1])


def validate_types(columns: Mapping[str, Any], identity: str | None, where: str) -> dict[str, np.dtype[Any]]:
    """Return the column types of a new store after validation.

    Raises:
        StoreError: if a name is not a plain file name, a type is not numeric, or the identity column is invalid.
    """
    types = {name: np.dtype(dtype) for name, dtype in columns.items()}
    for name, dtype in types.items():
        if not _NAME.fullmatch(name) or name in ("keys", "offsets", "times", "segment"):
            raise StoreError(where, f"a column named {name!r}", "letters, digits, dots and dashes", "rename it")
        if len(dtype.shape) > 1:
            raise StoreError(where, f"column {name!r} with {len(dtype.shape)} axes an event", "one at most")
        parse_type(format_type(dtype), where)
    if identity is not None and types.get(identity) != np.dtype(np.int64):
        actual = format_type(types[identity]) if identity in types else "no such column"
        raise StoreError(where, f"identity {identity!r}: {actual}", "the name of an int64 column")
    return types


def widen_types(columns: Types) -> dict[str, np.dtype[Any]]:
    """Return the types in which stored columns are read.

    Integers are read in a wider type than the stored one, so that appended values fit. Vectors keep their type.
    """
    widths = {name: np.dtype(np.int64 if dtype.itemsize > 2 else np.int32) for name, dtype in columns.items()}
    return {name: widths[name] if dtype.kind in "iub" and not dtype.shape else dtype for name, dtype in columns.items()}


def get_array_type(array: NDArray[Any]) -> np.dtype[Any]:
    """Return the column type of an array ``[n]`` or ``[n, W]``."""
    return np.dtype((array.dtype, array.shape[1:])) if array.ndim > 1 else array.dtype


def find_narrowest_type(low: int, high: int, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the smallest integer type that holds all of ``low..high``, at most ``dtype``.

    >>> find_narrowest_type(0, 255, np.dtype(np.int64)), find_narrowest_type(-1, 255, np.dtype(np.int64))
    (dtype('uint8'), dtype('int16'))
    """
    for narrow in _NARROW:
        if narrow.itemsize < dtype.itemsize and np.iinfo(narrow).min <= low and high <= np.iinfo(narrow).max:
            return narrow
    return dtype


def validate_events(
    types: Types,
    rows: int | None,
    keys: NDArray[Any],
    times: NDArray[Any],
    values: Mapping[str, NDArray[Any]],
) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[str, NDArray[Any]]]:
    """Return events to append, converted to the types of the store.

    Raises:
        StoreError: as ``HistoryStore.append``.
    """
    where, write = "events to append", "give every event a key, a time and all columns"
    keys, times = np.atleast_1d(np.asarray(keys)), np.atleast_1d(np.asarray(times))
    if set(values) != set(types):
        raise StoreError(where, f"the columns {', '.join(sorted(values)) or 'none'}", ", ".join(sorted(types)), write)
    arrays = {name: np.atleast_1d(np.asarray(values[name])) for name in types}
    lengths = {"keys": len(keys), "times": len(times), **{name: len(array) for name, array in arrays.items()}}
    if len(set(lengths.values())) > 1:
        raise StoreError(where, ", ".join(f"{n} {name}" for name, n in lengths.items()), "one length", write)
    if keys.ndim > 1 or times.ndim > 1:
        raise StoreError(where, f"keys of shape {keys.shape} and times of shape {times.shape}", "one axis", write)
    for name, array in arrays.items():
        if array.shape[1:] != types[name].shape and array.size:
            shape, width = f"{list(array.shape)}", ", ".join(map(str, types[name].shape))
            raise StoreError(f"{where}: column {name!r}", shape, f"[{len(keys)}{', ' if width else ''}{width}]", write)
    if not len(keys):
        empty = {name: np.zeros(0, dtype) for name, dtype in types.items()}
        return np.zeros(0, np.int64), np.zeros(0, np.int64), empty
    if keys.dtype.kind not in "iu" or times.dtype.kind not in "iu":
        raise StoreError(where, f"keys of type {keys.dtype} and times of type {times.dtype}", "integers")
    if rows is not None:
        wrong = (keys < 1) | (keys >= rows)
        if wrong.any():
            raise StoreError(where, f"the key row {keys[wrong][0]}", f"rows from 1 to {rows - 1}", "add the key first")
    cast = {name: _cast(array, types[name].base, f"{where}: column {name!r}") for name, array in arrays.items()}
    return _cast(keys, _INT64, f"{where}: keys"), _cast(times, _INT64, f"{where}: times"), cast


_INT64 = np.dtype(np.int64)


def _cast(array: NDArray[Any], dtype: np.dtype[Any], where: str) -> NDArray[Any]:
    """Return values in another type. Only digits of a double may be lost."""
    if array.dtype == dtype:
        return array
    if array.dtype.kind in "iubf":
        cast = np.empty(array.shape, dtype)
        for at in range(0, len(array), _CHUNK):  # in chunks, because a load may hold gigabytes
            chunk = array[at : at + _CHUNK]
            with np.errstate(over="ignore", invalid="ignore"):
                cast[at : at + _CHUNK] = chunk
            converted = cast[at : at + _CHUNK]
            same = (
                np.array_equal(np.isfinite(converted), np.isfinite(chunk))
                if dtype.kind == "f"
                else _have_equal_values(converted, chunk)
            )
            if not same:
                break
        else:
            return cast
    raise StoreError(where, f"values of type {array.dtype}", f"values that fit {dtype}", "encode them like the log")


def _have_equal_values(cast: NDArray[Any], array: NDArray[Any]) -> bool:
    # Signed and unsigned 64-bit numbers with the same bit pattern are different numbers.
    signs = bool(((cast < 0) == (array < 0)).all()) if cast.dtype.kind != "b" else True
    return signs and np.array_equal(cast, array)
