"""A store of knowledge vectors: an extractor's vectors of users and items, by version.

    knowledge/v1/knowledge.json     widths, units, and the complete versions, written last
                 users/  items/     one token store each: one token per key and version, at the publication timestamp

A version exists once the manifest lists it, so that both its sides are complete. A request at t reads the newest
version published strictly before t, on both sides. A key without a vector in this version is missing, even if an older
version has one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from longrec.errors import StoreError
from longrec.features.column_delays import Delay
from longrec.features.manifest import read_manifest
from longrec.store.token_info import to_field_names, to_stored_names
from longrec.store.token_store import TokenInfo, TokenStore, Version

FORMAT = "longrec-knowledge-1"
MANIFEST = "knowledge.json"
Side = Literal["user", "item"]
SIDES: tuple[Side, ...] = ("user", "item")
_REMEDY = "extract the knowledge again: longrec encode RUN --into a new folder"


@dataclass(frozen=True)
class KnowledgeVersion:
    """One complete version: the vectors of one training state of the extractor.

    Attributes:
        number: number of the version, on both sides.
        trained_before: the extractor was trained only on labels available strictly before this timestamp.
        published: publication timestamp. Requests strictly later read the version.
        users, items: number of keys with a vector.
    """

    number: int
    trained_before: int
    published: int
    users: int
    items: int


@dataclass(frozen=True)
class KnowledgeInfo:
    """Description of a knowledge store.

    Attributes:
        widths: numbers per vector of a user and of an item.
        unit: unit of timestamps.
        keys: key type of users and items: int64 or text.
        codec: encoding of vectors (fp32, fp16, int8).
        source: JSON description of the extractor's run.
        visibility_delay: delay from the start of a block to the publication of its version, in the unit of time.
        leak: reason why the knowledge leaks. Empty if it does not.
        column_delays: availability of each raw column by the schema of the extractor. None if it was not recorded.
        versions: complete versions, by publication timestamp.
    """

    widths: Mapping[str, int]
    unit: Literal["ms", "step"]
    keys: Mapping[str, str]
    codec: str = "fp16"
    source: Mapping[str, Any] | None = None
    visibility_delay: int = 0
    leak: str = ""
    column_delays: Mapping[str, Delay] | None = None
    versions: tuple[KnowledgeVersion, ...] = ()


@dataclass(frozen=True)
class SideVectors:
    """Vectors of one side of a version: int64 keys ``[n]`` and float32 vectors ``[n, W]``.

    ``mean`` and ``std`` are the original mean and deviation of each number, before standardization.
    """

    keys: NDArray[np.int64]
    vectors: NDArray[np.float32]
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None


class KnowledgeStore:
    """An open store of knowledge vectors of users and items.

    Attributes:
        info: its description, with the versions as of opening or the last ``refresh``.
    """

    def __init__(self, folder: Path, info: KnowledgeInfo, stores: Mapping[Side, TokenStore]) -> None:
        self.folder, self.info, self._stores = folder, info, stores

    @classmethod
    def create(cls, folder: str | Path, info: KnowledgeInfo) -> KnowledgeStore:
        """Create a folder without versions, open for writing.

        Raises:
            StoreError: if the folder is not empty.
        """
        folder = Path(folder)
        if folder.exists() and any(folder.iterdir()):
            raise StoreError(str(folder), "the folder is not empty", "a new folder", "give another, such as v2")
        folder.mkdir(parents=True, exist_ok=True)
        stores = {side: TokenStore.create(folder / f"{side}s", _build_token_info(info, side)) for side in SIDES}
        store = cls(folder, replace(info, versions=()), stores)
        store._write_manifest()
        return store

    @classmethod
    def open(cls, folder: str | Path, writable: bool = False) -> KnowledgeStore:
        """Open a folder.

        Raises:
            StoreError: if there is no such folder, it is damaged, or it has another format version.
        """
        folder = Path(folder)
        info = _read_manifest(folder)
        stores = {side: TokenStore.open(folder / f"{side}s", writable=writable) for side in SIDES}
        return cls(folder, info, stores)

    def publish(self, trained_before: int, published: int, users: SideVectors, items: SideVectors) -> KnowledgeVersion:
        """Write a version. Readers read all of it, or nothing, once the manifest is written.

        Args:
            trained_before: timestamp strictly before which all labels of its training were available.
            published: publication timestamp, later than that of the version before.

        Raises:
            StoreError: if the version is not later than the last one, or it is before ``trained_before``.
        """
        versions = self.info.versions
        if published < trained_before or (versions and published <= versions[-1].published):
            last = f", after version {versions[-1].number} of {versions[-1].published}" if versions else ""
            raise StoreError(
                str(self.folder),
                f"a version published at {published}{last}",
                f"a timestamp from {trained_before} on, and later",
            )
        # A number is used once, so that the remains of a killed writer are never read as part of another version.
        number = max(len(store.info.versions) for store in self._stores.values())
        for side, side_vectors in zip(SIDES, (users, items)):
            self._append(side, number, trained_before, published, side_vectors)
        version = KnowledgeVersion(number, trained_before, published, len(users.keys), len(items.keys))
        self.info = replace(self.info, versions=(*versions, version))
        self._write_manifest()
        return version

    def _append(self, side: Side, number: int, trained_before: int, published: int, side_vectors: SideVectors) -> None:
        store, n = self._stores[side], len(side_vectors.keys)
        while len(store.info.versions) < number:
            store.add_version(Version(len(store.info.versions), None, None, 0, None, None))
        mean, std = (None if numbers is None else list(numbers) for numbers in (side_vectors.mean, side_vectors.std))
        store.add_version(Version(number, trained_before, published, n, mean, std))
        times = np.full(n, published, np.int64)
        numbers = np.full(n, number, np.int64)
        vectors = side_vectors.vectors
        store.append(
            side_vectors.keys,
            times,
            instance=numbers,
            visible=times,
            version=numbers,
            vectors=vectors,
            sides={},
            available_at={},
        )

    def find_versions(self, timestamps: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return int64 ``[B]``: the newest version published strictly before each timestamp, or -1 for none."""
        versions = self.info.versions
        index = np.searchsorted(np.array([one.published for one in versions], np.int64), timestamps, side="left")
        return np.array([-1, *(one.number for one in versions)], np.int64).take(index)

    def look_up(self, side: Side, keys: NDArray[np.int64], versions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Look up the vectors of users or of items in given versions.

        Args:
            keys: int64 ``[n]`` key numbers (``vocabulary.compute_key_numbers``).
            versions: int64 ``[n]``, or ``[1]`` for all keys. -1: no version.

        Returns:
            float32 ``[n, 1 + W]``: 1 and the vector, or zeros where the version does not have the key.
        """
        vectors = np.zeros((len(keys), 1 + self.info.widths[side]), np.float32)
        if not self.info.versions or not len(keys):
            return vectors
        versions = np.broadcast_to(versions, keys.shape)
        published = {one.number: one.published for one in self.info.versions}
        at = np.array([published.get(int(number), _MIN_TIMESTAMP) for number in np.unique(versions)], np.int64)
        at = at[np.searchsorted(np.unique(versions), versions)]
        tokens = self._stores[side].last(keys, at + 1, 1)
        # The last token may be of an older version, which has the key although this one does not.
        row = np.repeat(np.arange(len(keys)), np.diff(tokens.offsets))
        same = tokens.version == versions[row]
        vectors[row[same], 0], vectors[row[same], 1:] = 1, tokens.vectors[same]
        return vectors

    def compact(self) -> None:
        """Merge published vectors into the sorted form. Reads do not change."""
        for store in self._stores.values():
            store.compact()

    def refresh(self) -> None:
        """Read versions that were published since."""
        for store in self._stores.values():
            store.refresh()
        self.info = _read_manifest(self.folder)

    def close(self) -> None:
        """Close the files."""
        for store in self._stores.values():
            store.close()

    def __enter__(self) -> KnowledgeStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write_manifest(self) -> None:
        partial = self.folder / f".{MANIFEST}.partial"
        with partial.open("w", encoding="utf-8") as file:
            json.dump({"format": FORMAT, **to_stored_names(asdict(self.info))}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.folder / MANIFEST)


_MIN_TIMESTAMP = -(2**62)
"""A timestamp before all others."""


def _read_manifest(folder: Path) -> KnowledgeInfo:
    content = read_manifest(folder / MANIFEST, FORMAT, "knowledge", _REMEDY, StoreError)
    try:
        versions = tuple(KnowledgeVersion(**one) for one in content.pop("versions"))
        content.pop("format")
        return KnowledgeInfo(**to_field_names(content), versions=versions)
    except (KeyError, TypeError) as error:
        raise StoreError(str(folder / MANIFEST), f"not readable ({error})", "a readable manifest", _REMEDY) from None


def _build_token_info(info: KnowledgeInfo, side: Side) -> TokenInfo:
    return TokenInfo(
        width=info.widths[side],
        codec=info.codec,
        sides={},
        unit=info.unit,
        keys=info.keys[side],
        standardized=True,
        source=dict(info.source or {}),
        versions=(),
    )
