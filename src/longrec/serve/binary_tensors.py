"""Binary tensor data, an extension of the Open Inference Protocol: raw bytes behind the JSON of a request or response.

The header ``Inference-Header-Content-Length`` says where the JSON ends. The bytes of the tensors follow in the order of
the JSON, little-endian and row by row, without gaps. Each tensor has its size as the parameter ``binary_data_size``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import RequestError

EXTENSION = "binary_tensor_data"
"""Name of the extension in the metadata of the server."""
LENGTH_HEADER = "inference-header-content-length"
"""Header with the length of the JSON in bytes."""
SIZE = "binary_data_size"
"""Parameter of a tensor: the size of its binary data in bytes."""
BINARY_OUTPUT, ALL_BINARY = "binary_data", "binary_data_output"
"""Parameters of a requested output and of a request: return the output, or all outputs, as binary data."""


def split_body(body: bytes, length: str | None) -> tuple[bytes, memoryview | None]:
    """Split a body into its JSON and the binary data behind it, None without the header.

    Args:
        length: value of ``LENGTH_HEADER``.

    Raises:
        RequestError: 400 if the header does not fit the body.
    """
    if length is None:
        return body, None
    if not (length.isascii() and length.isdecimal() and len(length) < 16 and 0 < int(length) <= len(body)):
        do = "name and shape of each input are needed" if length == "0" else ""
        expected = f"the length of the JSON: 1 to {len(body):,} bytes"
        raise RequestError(LENGTH_HEADER, repr(length[:40]), expected, do)
    return body[: int(length)], memoryview(body)[int(length) :]


class BinaryData:
    """Bytes behind the JSON of a request, read tensor by tensor.

    Args:
        data: the bytes. None for a request without the header.
    """

    def __init__(self, data: memoryview | None) -> None:
        self._data, self._start = data, 0

    def read(self, size: Any, dtype: np.dtype[Any], where: str) -> NDArray[Any]:
        """Return the numbers of the next tensor, in one dimension.

        Args:
            size: the parameter ``SIZE``.
            dtype: type of the numbers.
            where: name of the tensor, for errors.

        Raises:
            RequestError: 422 if the size is no whole number of values, 400 if the bytes end before it.
        """
        if self._data is None:
            raise RequestError(where, f"{SIZE} without the header {LENGTH_HEADER}", "the length of the JSON in it")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0 or size % dtype.itemsize:
            expected = f"a multiple of {dtype.itemsize}, the bytes of a value"
            raise RequestError(f"{where}.parameters.{SIZE}", repr(size)[:40], expected, status=422)
        rest = len(self._data) - self._start
        if size > rest:
            raise RequestError(where, f"{rest:,} bytes of binary data", f"{size:,}, as {SIZE} says")
        piece = self._data[self._start : self._start + size]
        self._start += size
        return np.frombuffer(piece, dtype.newbyteorder("<")).astype(dtype)  # a copy is aligned

    def check_end(self) -> None:
        """Check that all bytes were read.

        Raises:
            RequestError: 400 if bytes are left.
        """
        if self._data is not None and (rest := len(self._data) - self._start):
            expected = f"{self._start:,}, the sum of {SIZE} of the inputs"
            raise RequestError("body", f"{len(self._data):,} bytes of binary data, {rest:,} too many", expected)


def wants_binary(output: Mapping[str, Any], request: Mapping[str, Any], where: str) -> bool:
    """True if an output is wanted as binary data.

    Args:
        output: parameters of the requested output.
        request: parameters of the request, which apply to outputs without a choice of their own.

    Raises:
        RequestError: 422 if a parameter is neither true nor false.
    """
    for parameters, name, prefix in ((output, BINARY_OUTPUT, f"{where}."), (request, ALL_BINARY, "")):
        if (value := parameters.get(name)) is not None:
            if not isinstance(value, bool):
                raise RequestError(f"{prefix}parameters.{name}", repr(value)[:40], "true or false", status=422)
            return value
    return False


def write_binary(tensors: Sequence[NDArray[Any]]) -> bytes:
    """Return the bytes of tensors, one behind the other."""
    return b"".join(np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<")).tobytes() for tensor in tensors)
