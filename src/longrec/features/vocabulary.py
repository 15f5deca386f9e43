"""Key sets: distinct 64-bit integers or strings, each with an index.

One class is used for vocabularies, users and items, offline for whole columns and online for one request.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from longrec.errors import DataError, quote

_FEW = 4_096
"""Up to this number of queries a search or a dictionary is faster. Above it a hash join over the column is."""


def cast_keys(array: pa.Array | pa.ChunkedArray, where: str) -> pa.Array:
    """Cast keys to int64 or string without loss. Nulls stay null.

    Floats that are all whole numbers are cast to integers, since some tools write a column of integers with nulls as
    floats, with NaN for null.

    Raises:
        DataError: if values are fractions, floats too large to be exact integers (above 2**53 for float64, 2**24 for
            float32), dates, or integers beyond 64 bits.
    """
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks() if array.num_chunks != 1 else array.chunk(0)
    kind = array.type
    if pa.types.is_dictionary(kind):
        return cast_keys(array.cast(kind.value_type), where)
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        try:
            return array.cast(pa.int64())
        except pa.ArrowInvalid:
            raise DataError(
                where, "integers above 2**63 - 1", "signed 64-bit integers or strings", "store these ids as strings"
            ) from None
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return array.cast(pa.string())
    if pa.types.is_null(kind):
        return array.cast(pa.int64())
    if pa.types.is_floating(kind):
        whole = _cast_whole_numbers(array)
        if whole is not None:
            return whole
        raise DataError(
            where,
            f"ids stored as floats ({kind}){_describe_largest(array)}",
            "64-bit integers or strings (floats merge whole numbers above 2**53)",
            "write the column as integers (nullable ones if it has nulls); use kind bucketized or numeric for amounts",
        )
    raise DataError(
        where, f"ids of type {kind}", "64-bit integers or strings", "convert the values to integers or text"
    )


def _cast_whole_numbers(array: pa.Array) -> pa.Array | None:
    """Cast floats to int64, NaN to null. Return None if one is a fraction, or too large to be exact."""
    values = array.to_numpy(zero_copy_only=False)
    bound = 2.0 ** (np.finfo(values.dtype).nmant + 1)
    missing = np.isnan(values)
    numbers = np.where(missing, 0, values)
    if not ((np.abs(numbers) < bound) & (np.floor(numbers) == numbers)).all():
        return None
    return pa.array(numbers.astype(np.int64), mask=missing)


def _describe_largest(array: pa.Array) -> str:
    top = pc.max(pc.abs(array)).as_py() if len(array) else None
    return f", the largest {top:.0f}" if top is not None and top > 2**53 else ""


class Keys:
    """Distinct keys in a fixed order. ``index`` returns the index of each key, or -1."""

    def __init__(self, values: pa.Array) -> None:
        self.values = values
        self.numeric = pa.types.is_integer(values.type)

    @classmethod
    def read(cls, path: Path, column: str) -> Keys:
        """Read the keys of one column of a Parquet file."""
        # read_table imports Arrow's dataset module, which imports pandas: 33 MB that a training does not use.
        with pq.ParquetFile(path) as file:
            return cls(file.read([column])[column].combine_chunks())

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def _sorted(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        numbers = self.values.to_numpy(zero_copy_only=False)
        order = np.argsort(numbers, kind="stable")
        return numbers[order], order

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {value: index for index, value in enumerate(self.values.to_pylist())}

    def index(self, array: pa.Array, where: str) -> NDArray[np.int32]:
        """Return the int32 index of every key, -1 if it is absent or null.

        Raises:
            DataError: if keys are text and the set has integers, or the reverse.
        """
        array = cast_keys(array, where)
        if len(array) == 0:
            return np.zeros(0, np.int32)
        if array.null_count == len(array) or not len(self):
            return np.full(len(array), -1, np.int32)
        if pa.types.is_integer(array.type) != self.numeric:
            actual, expected = ("integers", "text") if not self.numeric else ("text", "integers")
            raise DataError(
                where,
                f"{actual}, for example {quote(_get_first_value(array))}",
                f"{expected}, as in the log",
                "write the ids as in the log",
            )
        if len(array) > _FEW:
            indices = pc.index_in(array, value_set=self.values, skip_nulls=True)
            return pc.fill_null(indices, -1).to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
        if not self.numeric:
            indices = [self._indices.get(value, -1) for value in array.to_pylist()]
            return np.array(indices, np.int32)
        numbers, order = self._sorted
        wanted = array.fill_null(0).to_numpy(zero_copy_only=False)
        at = np.minimum(np.searchsorted(numbers, wanted), len(numbers) - 1)
        hit = (numbers[at] == wanted) & array.is_valid().to_numpy(zero_copy_only=False)
        return np.where(hit, order[at], -1).astype(np.int32)

    def find(self, key: Any, where: str) -> int:
        """Return the index of a single key, or -1."""
        return int(self.index(build_array([key], where), where)[0])


def _get_first_value(array: pa.Array) -> Any:
    return next(value for value in array.to_pylist() if value is not None)


def build_array(values: Sequence[Any], where: str) -> pa.Array:
    """Build an Arrow array from Python values of one type.

    Raises:
        DataError: if the values have no common type.
    """
    try:
        return pa.array(values)
    except OverflowError:
        raise DataError(where, "an integer of more than 64 bits", "signed 64-bit integers or text") from None
    except (pa.ArrowException, TypeError):
        kinds = sorted({type(value).__name__ for value in values})
        raise DataError(where, f"values of the types {', '.join(kinds)}", "one type: whole numbers or text") from None


def hash_keys(keys: pa.Array) -> NDArray[np.uint64]:
    """Compute a stable 64-bit hash of int64 or string keys. Null hashes as 0 or the empty string."""
    if pa.types.is_integer(keys.type):
        x = keys.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64).view(np.uint64).copy()
        with np.errstate(over="ignore"):
            x += np.uint64(0x9E3779B97F4A7C15)
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
    coded = keys.fill_null("").dictionary_encode()
    digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in coded.dictionary.to_pylist()]
    table = np.frombuffer(b"".join(digests), "<u8")
    return table[coded.indices.to_numpy(zero_copy_only=False)] if len(table) else np.zeros(len(keys), np.uint64)


def compute_key_numbers(keys: pa.Array) -> NDArray[np.int64]:
    """Compute the key numbers of a store with an open key space: an integer itself, text as 8 bytes of BLAKE2b.

    Args:
        keys: int64 or string, none null.
    """
    if pa.types.is_integer(keys.type):
        return keys.to_numpy(zero_copy_only=False).astype(np.int64)
    return np.array([compute_text_number(text) for text in keys.to_pylist()], np.int64)


def compute_text_number(text: str) -> int:
    """Compute the key number of a text: 8 bytes of BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)
