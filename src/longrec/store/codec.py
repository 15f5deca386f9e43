"""Codecs of stored vectors: float32, float16, int8, and residual codes of codebooks.

| codec | bytes for W numbers | maximum error of a number |
| --- | --- | --- |
| fp32 | 4 W | none |
| fp16 | 2 W | 2**-11 of it (2**-25 where it is below 2**-14); largest number 65,504 |
| int8 | W + 4 | half a step, where a step is 1/127 of the vector's largest number |
| codes | one per slot and level | the residual of the codebooks |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from longrec.errors import StoreError
from longrec.store.column_types import Types

_WHERE = "vectors to store"
_CHUNK = 1 << 16
"""Numbers that are widened at once: as many as fit the cache of one core."""

Columns = Mapping[str, NDArray[Any]]


class Codec(Protocol):
    """Conversion between vectors and the columns that store them.

    Attributes:
        types: types of the columns.
    """

    types: Types

    def encode(self, vectors: NDArray[Any], versions: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return the columns of vectors.

        Args:
            vectors: float32 (or float16) ``[n, W]``.
            versions: ``[n]``, source version that computed each vector.

        Raises:
            StoreError: if the vectors have a wrong shape, or contain NaN, infinity, or numbers too large for the codec.
        """
        ...

    def decode(self, columns: Columns, versions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the float32 vectors ``[n, W]`` of columns."""
        ...


class Float32Codec:
    """Codec fp32: stores every bit."""

    def __init__(self, width: int) -> None:
        self.types: Types = {"vector": np.dtype((np.float32, (width,)))}

    def encode(self, vectors: NDArray[Any], versions: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return the columns of vectors. See ``Codec.encode``."""
        return {"vector": check_finite(vectors, self.types["vector"].shape[0]).astype(np.float32, copy=False)}

    def decode(self, columns: Columns, versions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of columns. See ``Codec.decode``."""
        return columns["vector"]


class Float16Codec:
    """Codec fp16: relative error at most 2**-11, absolute error at most 2**-25 for numbers below 2**-14."""

    def __init__(self, width: int) -> None:
        self.types: Types = {"vector": np.dtype((np.float16, (width,)))}

    def encode(self, vectors: NDArray[Any], versions: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return the columns of vectors. See ``Codec.encode``. Numbers that round beyond 65,504 are refused."""
        vectors = check_finite(vectors, self.types["vector"].shape[0])
        if vectors.dtype == np.float16:
            return {"vector": vectors}
        with np.errstate(over="ignore"):
            halves = vectors.astype(np.float16)
        if not np.isfinite(halves).all():
            raise StoreError(_WHERE, f"the number {np.abs(vectors).max():.6g}", "at most 65504 in fp16", "use fp32")
        return {"vector": halves}

    def decode(self, columns: Columns, versions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of columns. See ``Codec.decode``."""
        return widen_float16(columns["vector"])


class Int8Codec:
    """Codec int8: integer steps of 1/127 of a vector's largest number, with an error of half a step at most.

    Float32 rounding adds at most 2**-20 of the largest number.
    """

    def __init__(self, width: int) -> None:
        self.types: Types = {"vector": np.dtype((np.int8, (width,))), "scale": np.dtype(np.float32)}

    def encode(self, vectors: NDArray[Any], versions: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return the columns of vectors. See ``Codec.encode``."""
        vectors = check_finite(vectors, self.types["vector"].shape[0]).astype(np.float32, copy=False)
        largest = np.abs(vectors).max(1, initial=0) if len(vectors) else np.zeros(0, np.float32)
        scale = (largest / np.float32(127)).astype(np.float32)
        steps = np.rint(vectors / np.where(scale > 0, scale, np.float32(1))[:, None])
        return {"vector": np.clip(steps, -127, 127).astype(np.int8), "scale": scale}

    def decode(self, columns: Columns, versions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of columns. See ``Codec.decode``."""
        return columns["vector"] * columns["scale"][:, None]


class ResidualCodec:
    """Residual codes: a slot of a vector is the sum of one codeword per level, from the codebooks of its version.

    Args:
        width: W, all slots together.
        slots: S.
        codebooks: float32 ``[S, M, V, W / S]`` by version, with at most 256 codewords.
        levels: M.
    """

    def __init__(self, width: int, slots: int, levels: int, codebooks: Mapping[int, NDArray[np.float32]]) -> None:
        self.width, self.slots, self.levels, self.codebooks = width, slots, levels, codebooks
        self.types: Types = {"codes": np.dtype((np.uint8, (slots * levels,)))}

    def encode(self, vectors: NDArray[Any], versions: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return the codes of vectors: per level the codeword nearest to the residual.

        Codes (uint8 ``[n, S * M]``) pass unchanged.

        Raises:
            StoreError: as ``Codec.encode``, and if a code is beyond its codebook.
        """
        vectors = np.asarray(vectors)
        coded = vectors.dtype == np.uint8
        rest = vectors if coded else check_finite(vectors, self.width).astype(np.float32, copy=False)
        if coded and rest.shape[1:] != (self.slots * self.levels,):
            raise StoreError(_WHERE, f"codes of shape {list(rest.shape)}", f"[n, {self.slots * self.levels}]")
        codes = np.empty((len(rest), self.slots * self.levels), np.uint8)
        for version in np.unique(versions).tolist():
            books, own = self.codebooks[version], versions == version
            if not coded:
                codes[own] = _find_nearest_codes(rest[own], books)
                continue
            codes[own] = rest[own]
            if codes[own].max(initial=0) >= books.shape[2]:
                raise StoreError(_WHERE, f"code {codes[own].max()}", f"codes below {books.shape[2]}, of its codebook")
        return {"codes": codes}

    def decode(self, columns: Columns, versions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of columns. See ``Codec.decode``."""
        codes = columns["codes"]
        codes = codes.reshape(len(codes), self.slots, self.levels)
        vectors = np.empty((len(codes), self.slots, self.width // self.slots), np.float32)
        present = np.unique(versions).tolist()
        for version in present:
            books = self.codebooks[version]
            own: Any = slice(None) if len(present) == 1 else np.flatnonzero(versions == version)
            own_codes = codes[own]
            for slot in range(self.slots):
                total = books[slot, 0].take(own_codes[:, slot, 0], axis=0)
                for level in range(1, self.levels):
                    total += books[slot, level].take(own_codes[:, slot, level], axis=0)
                vectors[own, slot] = total
        return vectors.reshape(len(codes), self.width)


def check_finite(vectors: NDArray[Any], width: int) -> NDArray[Any]:
    """Return float32 vectors ``[n, width]`` after a check for NaN and infinity (float16 passes unchanged).

    Raises:
        StoreError: if the vectors have another shape or type, or contain NaN or infinity.
    """
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or vectors.shape[1] != width or vectors.dtype.kind != "f":
        raise StoreError(_WHERE, f"{vectors.dtype} {list(vectors.shape)}", f"float32 [n, {width}]")
    if vectors.dtype != np.float16:
        with np.errstate(over="ignore"):
            vectors = vectors.astype(np.float32, copy=False)
    good = np.isfinite(vectors)
    if not good.all():
        row = int(np.flatnonzero(~good.all(1))[0])
        raise StoreError(_WHERE, f"NaN or infinity in row {row}", "finite numbers", "check the model that wrote them")
    return vectors


def widen_float16(halves: NDArray[np.float16]) -> NDArray[np.float32]:
    """Return finite float16 numbers as float32, with the same bits as ``astype`` and several times faster.

    The bits are shifted to their float32 positions. The exponents then differ by a factor of 2**112. (``astype``
    converts the numbers one by one.)
    """
    flat = np.ascontiguousarray(halves).reshape(-1).view(np.int16)
    wide = np.empty(flat.size, np.int32)
    numbers = wide.view(np.float32)
    for at in range(0, flat.size, _CHUNK):
        chunk, number = wide[at : at + _CHUNK], numbers[at : at + _CHUNK]
        np.copyto(chunk, flat[at : at + _CHUNK])  # the sign fills the upper half
        np.left_shift(chunk, 13, out=chunk)
        np.bitwise_and(chunk, _SIGN_AND_REST, out=chunk)
        np.multiply(number, _EXPONENTS, out=number)
    return numbers.reshape(halves.shape)


_SIGN_AND_REST = np.int32(0x8FFFE000 - (1 << 32))
_EXPONENTS = np.float32(2.0**112)


def _find_nearest_codes(vectors: NDArray[np.float32], books: NDArray[np.float32]) -> NDArray[np.uint8]:
    slots, levels, _, width = books.shape
    rest = vectors.reshape(len(vectors), slots, width).copy()
    codes = np.empty((len(vectors), slots, levels), np.uint8)
    for slot in range(slots):
        for level in range(levels):
            codewords = books[slot, level]
            distance = np.square(codewords).sum(1) - 2 * rest[:, slot] @ codewords.T
            code = distance.argmin(1)
            codes[:, slot, level] = code
            rest[:, slot] -= codewords[code]
    return codes.reshape(len(vectors), slots * levels)
