"""Digest of an Arrow table: of its values, not of how they are stored.

Chunks, offsets of slices, dictionaries, widths of offsets and the bytes under nulls do not change it, so that a frame
that is loaded again has the same digest.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_ROWS = 1 << 16
"""Rows that are hashed together. Only values of a slice that spans chunks, and those beside nulls, are copied."""


def compute_digest(table: pa.Table) -> str:
    """Return the SHA-256 digest of the names, types and values of a table, in the order of its columns and rows."""
    digest = hashlib.sha256(repr([(field.name, _describe_type(field.type)) for field in table.schema]).encode())
    digest.update(f"{len(table)} rows".encode())
    for at in range(0, len(table), _ROWS):
        for column in table.slice(at, _ROWS).columns:
            chunks = [chunk for chunk in column.chunks if len(chunk)]
            _update(digest, chunks[0] if len(chunks) == 1 else pa.concat_arrays([_decode(chunk) for chunk in chunks]))
    return digest.hexdigest()


def _decode(array: pa.Array) -> pa.Array:
    """Return an array without a dictionary, with text as bytes, since some functions have no views of text."""
    if pa.types.is_dictionary(array.type):
        values = _decode(array.dictionary)
        array = pa.DictionaryArray.from_arrays(array.indices, values).dictionary_decode()
    if not _is_text(array.type):
        return array
    return array.cast(pa.large_string() if pa.types.is_string_view(array.type) else array.type).cast(pa.large_binary())


def _update(digest: Any, array: pa.Array) -> None:
    """Add the values of an array to a digest: their count, which of them are null, then those that are not."""
    array = _decode(array)
    kind = array.type
    digest.update(len(array).to_bytes(8, "little"))
    if pa.types.is_null(kind):
        return
    if array.null_count:
        digest.update(np.packbits(array.is_valid().to_numpy(zero_copy_only=False)))
        array = array.drop_null()
    if _is_text(kind):
        offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
        digest.update(np.diff(offsets))
        if len(array) and array.buffers()[2] is not None:
            digest.update(memoryview(array.buffers()[2])[offsets[0] : offsets[-1]])
    elif _is_list(kind):
        digest.update(pc.list_value_length(array).cast(pa.int64()).to_numpy())
        _update(digest, array.flatten())
    elif pa.types.is_boolean(kind):
        digest.update(array.cast(pa.uint8()).to_numpy())
    elif pa.types.is_primitive(kind) or pa.types.is_decimal(kind):
        width = kind.bit_width // 8
        digest.update(memoryview(array.buffers()[1])[array.offset * width : (array.offset + len(array)) * width])
    else:
        digest.update(pa.record_batch([array], ["values"]).serialize())


def _is_text(kind: pa.DataType) -> bool:
    of = pa.types
    tests = (of.is_string, of.is_large_string, of.is_string_view, of.is_binary, of.is_large_binary, of.is_binary_view)
    return any(test(kind) for test in tests)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _describe_type(kind: pa.DataType) -> str:
    """Return a type without the width of its offsets: text of pandas and of polars is one type."""
    if pa.types.is_dictionary(kind):
        return _describe_type(kind.value_type)
    if _is_list(kind):
        return f"list<{_describe_type(kind.value_type)}>"
    return str(kind).removeprefix("large_").removesuffix("_view") if _is_text(kind) else str(kind)
