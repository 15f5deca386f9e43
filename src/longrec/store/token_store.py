"""A store of instance tokens: the source model's vectors of earlier impressions, by user and time, on any backend.

A token is written under its user and the timestamp of its impression and is identified by its instance. A token that is
written again replaces the stored one. So an append can be retried, and a label that matures late can be added. On disk
a token of 32 fp16 numbers takes about 82 bytes: 64 for the vector, 8 each for the timestamp and the instance, and one
or two for everything else, because other timestamps are stored as differences from that of the impression.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from longrec.errors import StoreError
from longrec.store import backends
from longrec.store.backends import Backend
from longrec.store.codec import Codec, Float16Codec, Float32Codec, Int8Codec, ResidualCodec
from longrec.store.history_store import Events
from longrec.store.token_info import TokenInfo, Tokens, Version

__all__ = ["TokenInfo", "TokenStore", "Tokens", "Version"]


class TokenStore:
    """A store of tokens by user and time. See the module. ``create`` and ``open`` return one.

    Attributes:
        backend: the underlying store.
        location: its folder or address.
        info: its description, as of the last read.
    """

    def __init__(self, backend: Backend, location: str) -> None:
        self.backend, self.location = backend, location
        self._codebooks: dict[int, NDArray[np.float32]] = {}
        self._loaded_attributes: dict[str, Any] | None = None
        self._load_info()

    @classmethod
    def create(cls, location: str | Path, info: TokenInfo) -> Self:
        """Create a store and open it for writing.

        Args:
            location: a folder without a store, or ``redis://host:port/db/name``.

        Raises:
            StoreError: if the store exists already, or versions lack codebooks (``add_version`` adds them).
        """
        if info.codec == "codes" and info.versions:
            raise StoreError(str(location), "versions without codebooks", "none yet", "add them with add_version")
        backend = backends.create(location, _token_columns(info, 0), "instance", info.json())
        return cls(backend, str(location))

    @classmethod
    def open(cls, location: str | Path, writable: bool = False) -> Self:
        """Open a store.

        Raises:
            StoreError: if there is no token store, it is damaged or has another format version, or another writer holds
                its lock.
        """
        backend = backends.open_store(location, writable)
        try:
            return cls(backend, str(location))
        except BaseException:
            backend.close()
            raise

    def _load_info(self) -> None:
        """Read the description from the attributes of the backend."""
        attributes = self.backend.attributes
        if attributes == self._loaded_attributes:
            return
        self.info = info = TokenInfo.parse(attributes, self.location)
        if info.codec == "codes":
            for version in info.versions[len(self._codebooks) :]:
                self._codebooks[version.number] = self.backend.take_array(_codebook_name(version))
        codes = self.backend.types.get("codes", np.dtype(np.uint8))
        levels = codes.shape[0] // info.slots if info.codec == "codes" and codes.shape else 0
        if dict(self.backend.types) != _token_columns(info, levels):
            actual, do = "other columns than those of its tokens", "restore it from a copy"
            raise StoreError(self.location, actual, ", ".join(_token_columns(info, levels)), do)
        self._codec, self._loaded_attributes = _build_codec(info, levels, self._codebooks), attributes

    def __len__(self) -> int:
        return len(self.backend)

    def append(
        self,
        users: NDArray[Any],
        times: NDArray[np.int64],
        *,
        instance: NDArray[np.int64],
        visible: NDArray[np.int64],
        version: NDArray[Any],
        vectors: NDArray[Any],
        sides: Mapping[str, NDArray[Any]] | None = None,
        available_at: Mapping[str, NDArray[np.int64]] | None = None,
    ) -> None:
        """Add tokens, or write them again: all of them, or none if one is invalid.

        Args:
            users: int64 ``[n]``, in the key space of ``info.keys``.
            times: int64 ``[n]``, timestamps of the impressions.
            instance: int64 ``[n]``, ids that distinguish the impressions of a user and timestamp.
            visible: int64 ``[n]``, timestamps from which the tokens can be read.
            version: ``[n]``, versions that were added before.
            vectors: float32 ``[n, width]``. With codec codes also uint8 codes ``[n, slots * levels]``.
            sides: ids ``[n]`` by side column, up to its number of ids (which means "not yet available").
            available_at: int64 ``[n]`` by side column, timestamps from which the ids are available.

        Raises:
            StoreError: if a side column is missing or unexpected, an id or a version is unknown, or a vector contains
                NaN or infinity.
        """
        self.backend.append(*self._pack(users, times, instance, visible, version, vectors, sides, available_at))

    def load(
        self,
        users: NDArray[Any],
        times: NDArray[np.int64],
        *,
        instance: NDArray[np.int64],
        visible: NDArray[np.int64],
        version: NDArray[Any],
        vectors: NDArray[Any],
        sides: Mapping[str, NDArray[Any]] | None = None,
        available_at: Mapping[str, NDArray[np.int64]] | None = None,
    ) -> None:
        """Add many tokens at once, as ``append``. This is fastest if they are sorted by user, time and instance."""
        self.backend.load(*self._pack(users, times, instance, visible, version, vectors, sides, available_at))

    def _pack(
        self,
        users: NDArray[Any],
        times: NDArray[Any],
        instance: NDArray[Any],
        visible: NDArray[Any],
        version: NDArray[Any],
        vectors: NDArray[Any],
        sides: Mapping[str, NDArray[Any]] | None,
        available_at: Mapping[str, NDArray[Any]] | None,
    ) -> tuple[NDArray[Any], NDArray[np.int64], dict[str, NDArray[Any]]]:
        sides, available_at, info = sides or {}, available_at or {}, self.info
        times, version = _check_integers(times, "times"), _check_integers(version, "version")
        for kind, values in (("sides", sides), ("available_at", available_at)):
            if set(values) != set(info.sides):
                actual = f"{kind} {', '.join(sorted(values)) or 'of no column'}"
                raise StoreError("tokens to append", actual, ", ".join(sorted(info.sides)) or "none")
        _check_range(version, len(info.versions) - 1, "version", "add it with add_version first")
        columns = {
            "instance": instance,
            "version": version,
            # The difference may wrap around. It wraps back on reading, so that none is too large.
            "visible": _subtract_times(visible, times, "visible"),
        }
        for name, ids in info.sides.items():
            columns[f"side.{name}"] = _check_range(
                _check_integers(sides[name], name), ids, f"side column {name!r}", "encode it"
            )
            columns[f"known.{name}"] = _subtract_times(available_at[name], times, f"available_at {name}")
        return users, times, {**columns, **self._codec.encode(vectors, version)}

    def last(
        self,
        users: int | NDArray[Any],
        before: int | NDArray[np.int64],
        n: int,
        columns: Sequence[str] | None = None,
    ) -> Tokens:
        """Return the last ``n`` tokens of each user, of impressions strictly before a timestamp.

        The caller compares ``visible`` and ``available_at`` with the timestamp of its request.

        Args:
            users: one user, or ``[k]`` of them. An unknown user has no tokens.
            before: one timestamp for all users, or ``[k]``.
            columns: columns to read besides times: ``vectors``, ``instance``, ``visible``, ``version``, and names of
                side columns. Default all. Other columns are returned empty.

        Raises:
            StoreError: if a column is unknown.
        """
        return self._unpack(self.backend.last(users, before, n, None, self._select_stored(columns)), columns)

    def scan(self) -> Iterator[tuple[int, Tokens]]:
        """Yield every user that has tokens, in ascending order, with all of them."""
        for user, events in self.backend.scan():
            yield user, self._unpack(events, None)

    def decode_vectors(self, columns: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Return the vectors of tokens, float32 ``[n, width]``, from their columns in the backend."""
        return self._codec.decode(columns, columns["version"])

    def _select_stored(self, columns: Sequence[str] | None) -> list[str] | None:
        """Return the stored columns to read."""
        if columns is None:
            return None
        stored: list[str] = []
        for name in columns:
            if name == "vectors":
                stored += self._codec.types
            elif name in self.info.sides:
                stored += [f"side.{name}", f"known.{name}"]
            elif name in _PLAIN_COLUMNS:
                stored.append(name)
            else:
                expected = ", ".join(["vectors", *_PLAIN_COLUMNS, *self.info.sides])
                raise StoreError(self.location, f"no column {name!r}", expected)
        if "codes" in stored and "version" not in stored:
            stored.append("version")
        return stored

    def _unpack(self, events: Events, columns: Sequence[str] | None) -> Tokens:
        stored, times, info = events.columns, events.times, self.info
        none = np.zeros(0, np.int64)
        version = stored.get("version", none)
        if columns is None or "vectors" in columns:
            if info.codec == "codes" and version.max(initial=0) >= len(self._codebooks):
                self.refresh()  # tokens of a version that was added since
            vectors = self._codec.decode(stored, version)
        else:
            vectors = np.zeros((0, info.width), np.float32)
        sides = [name for name in info.sides if columns is None or name in columns]
        return Tokens(
            events.offsets,
            times,
            stored.get("instance", none),
            stored["visible"] + times if "visible" in stored else none,
            version.astype(np.int32),
            vectors,
            {name: stored[f"side.{name}"] for name in sides},
            {name: stored[f"known.{name}"] + times for name in sides},
        )

    def add_version(self, version: Version, codebooks: NDArray[Any] | None = None) -> None:
        """Add the next source version, to which tokens may refer from now on.

        Args:
            codebooks: float32 ``[slots, levels, codewords, width / slots]``, with codec codes: its codewords, on the
                scale of the tokens.

        Raises:
            StoreError: if the number is not the next one, or codebooks are missing, unexpected, or have another shape.
        """
        info = self.info.with_version(version)
        if (codebooks is not None) != (info.codec == "codes"):
            actual = "no codebooks" if codebooks is None else "codebooks"
            raise StoreError(f"version {version.number}", actual, f"those that codec {info.codec} needs")
        if codebooks is not None:
            first = len(info.versions) == 1
            codes = 0 if first else self.backend.types["codes"].shape[0]
            books = _check_codebooks(np.asarray(codebooks, np.float32), info, codes)
            if first:
                self.backend.retype(_token_columns(info, books.shape[1]))
            self.backend.put_array(_codebook_name(version), books)
        self.backend.set_attributes(info.json())
        self._load_info()

    def compact(self) -> None:
        """Merge appended tokens into the sorted, memory-mapped form, which is read fastest."""
        self.backend.compact()

    def refresh(self) -> None:
        """Read what a writer has changed since this store was opened or refreshed."""
        self.backend.refresh()
        self._load_info()

    def close(self) -> None:
        """Release files, locks and connections."""
        self.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_PLAIN_COLUMNS = ("instance", "visible", "version")


def _build_codec(info: TokenInfo, levels: int, books: Mapping[int, NDArray[np.float32]]) -> Codec:
    if info.codec == "codes":
        return ResidualCodec(info.width, info.slots, levels, books)
    plain: dict[str, Callable[[int], Codec]] = {"fp32": Float32Codec, "fp16": Float16Codec, "int8": Int8Codec}
    return plain[info.codec](info.width)


def _token_columns(info: TokenInfo, levels: int) -> dict[str, np.dtype[Any]]:
    """Return the columns of a token in a store. Timestamps are differences from the impression, which store narrow."""
    long, types = np.dtype(np.int64), dict[str, np.dtype[Any]]()
    types |= {"instance": long, "version": np.dtype(np.uint16), "visible": long}
    for name in info.sides:
        types[f"side.{name}"], types[f"known.{name}"] = np.dtype(np.int32), long
    return {**types, **_build_codec(info, levels, {}).types}


def _codebook_name(version: Version) -> str:
    return f"codebooks-{version.number}"


def _check_codebooks(books: NDArray[np.float32], info: TokenInfo, codes: int) -> NDArray[np.float32]:
    slots, width = info.slots, info.width // info.slots
    levels = codes // slots or (books.shape[1] if books.ndim == 4 else 0)
    good = books.ndim == 4 and books.shape[:2] == (slots, levels) and books.shape[3] == width
    if not good or not 1 <= books.shape[2] <= 256 or not np.isfinite(books).all():
        expected = f"finite [{slots}, {levels or 'levels'}, at most 256, {width}]"
        raise StoreError("codebooks", f"float32 {list(books.shape)}", expected)
    return books


def _check_integers(values: NDArray[Any], name: str) -> NDArray[Any]:
    values = np.atleast_1d(np.asarray(values))
    if values.dtype.kind not in "iu" and len(values):
        raise StoreError("tokens to append", f"{name} of type {values.dtype}", "integers")
    return values.astype(np.int64) if not len(values) else values


def _check_range(values: NDArray[Any], top: int, what: str, do: str) -> NDArray[Any]:
    if len(values) and not 0 <= int(values.min()) <= int(values.max()) <= top:
        wrong = values[(values < 0) | (values > top)][0]
        raise StoreError("tokens to append", f"{what} {wrong}", f"0 to {top}" if top >= 0 else "none yet", do)
    return values


def _subtract_times(timestamps: NDArray[Any], times: NDArray[np.int64], name: str) -> NDArray[np.int64]:
    timestamps = _check_integers(timestamps, name)
    if len(timestamps) != len(times):
        raise StoreError("tokens to append", f"{len(times)} times, {len(timestamps)} {name}", "one length")
    return timestamps.astype(np.int64, copy=False) - times.astype(np.int64, copy=False)
