"""Chunk-by-chunk writer of an .npy file, which never has the whole array in memory."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray


class ArrayWriter:
    """Writer that appends chunks to an .npy file. ``close`` writes the final length into the header.

    Args:
        dtype: type of one entry. ``np.float32`` is for chunks ``[n]``, ``(np.float32, (3,))`` for chunks ``[n, 3]``.
    """

    def __init__(self, path: Path, dtype: Any) -> None:
        self.dtype, self.length = np.dtype(dtype), 0
        self._file = path.open("wb")
        self._header()

    def _header(self) -> None:
        # numpy pads the header for growth along the first axis, so its size does not change with the length.
        self._file.seek(0)
        shape = (self.length, *self.dtype.shape)
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype.base), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, chunk: NDArray[Any]) -> None:
        """Append values at the end."""
        self._file.write(np.ascontiguousarray(chunk, self.dtype.base).data)
        self.length += len(chunk)

    def close(self) -> None:
        """Write the final header."""
        self._header()
        self._file.close()

    def __enter__(self) -> ArrayWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def narrow(rows: int) -> Any:
    """Return the smallest unsigned integer type that can represent ids below ``rows``."""
    return np.min_scalar_type(max(rows - 1, 0))
