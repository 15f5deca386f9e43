"""What an extractor knew of every user and every item, version by version, looked up together.

    knowledge/v1/knowledge.json     widths, units, and the versions that are complete; written last
                 users/  items/     a token store each: one token a key and version, at the moment of publication

A version exists once the manifest names it, so both sides of it are there. A request at t reads the newest version
published strictly before t on both sides; a key that this version has not is missing, whatever an older one said.
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
_REMEDY = "extract the knowledge again: longrec compress RUN --into a new folder"


@dataclass(frozen=True)
class KnowledgeVersion:
    """One complete version.

    Attributes:
        number: of the version, on both sides.
        trained_before: the extractor had seen only labels known strictly before this moment.
        published: from when on it may be read: by requests strictly later.
        users, items: how many it knows.
    """

    number: int
    trained_before: int
    published: int
    users: int
    items: int


@dataclass(frozen=True)
class KnowledgeInfo:
    """What a folder of knowledge holds.

    Attributes:
        widths: numbers of what is known of a user and of an item.
        unit: what moments count in.
        keys: how users and items are named: int64 or text.
        codec: how vectors are stored (fp32, fp16, int8).
        source: where it came from, as the extractor told.
        lag: from the start of a block to the publication of its version, in the unit of time.
        leak: why it knows more than it should; empty where it does not.
        column_delays: when the value of each raw column was available by the schema of the extractor; None where this
            was not recorded.
        versions: the complete ones, by moment of publication.
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
    """What is published of one side: int64 keys ``[n]``, float32 vectors ``[n, W]``, and the scale they were brought
    from: mean and deviation of each number.
    """

    keys: NDArray[np.int64]
    vectors: NDArray[np.float32]
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None


class KnowledgeStore:
    """Knowledge of users and items, opened.

    Attributes:
        info: what it holds; its versions as of opening or the last ``refresh``.
    """

    def __init__(self, folder: Path, info: KnowledgeInfo, stores: Mapping[Side, TokenStore]) -> None:
        self.folder, self.info, self._stores = folder, info, stores

    @classmethod
    def create(cls, folder: str | Path, info: KnowledgeInfo) -> KnowledgeStore:
        """A new folder without versions, open for writing.

        Raises:
            StoreError: something is there already.
        """
        folder = Path(folder)
        if folder.exists() and any(folder.iterdir()):
            raise StoreError(str(folder), "something is there already", "a new folder", "give another, such as v2")
        folder.mkdir(parents=True, exist_ok=True)
        stores = {side: TokenStore.create(folder / f"{side}s", _build_token_info(info, side)) for side in SIDES}
        store = cls(folder, replace(info, versions=()), stores)
        store._write_manifest()
        return store

    @classmethod
    def open(cls, folder: str | Path, writable: bool = False) -> KnowledgeStore:
        """Open a folder.

        Raises:
            StoreError: none, damaged, or of another version of the format.
        """
        folder = Path(folder)
        info = _read_manifest(folder)
        stores = {side: TokenStore.open(folder / f"{side}s", writable=writable) for side in SIDES}
        return cls(folder, info, stores)

    def publish(self, trained_before: int, published: int, users: SideVectors, items: SideVectors) -> KnowledgeVersion:
        """Write a version; readers see it, whole, once the manifest is written.

        Args:
            trained_before: all labels it learned from were known strictly before.
            published: moment of publication, later than that of the version before.

        Raises:
            StoreError: an earlier moment than the last version's, or one before ``trained_before``.
        """
        versions = self.info.versions
        if published < trained_before or (versions and published <= versions[-1].published):
            last = f", after version {versions[-1].number} of {versions[-1].published}" if versions else ""
            raise StoreError(
                str(self.folder),
                f"a version published at {published}{last}",
                f"a moment from {trained_before} on, and later",
            )
        # A number is used once: what a killed writer left of a version is never read as another's.
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
        """int64 ``[B]``: number of the newest version published strictly before each moment; -1 for none."""
        versions = self.info.versions
        index = np.searchsorted(np.array([one.published for one in versions], np.int64), timestamps, side="left")
        return np.array([-1, *(one.number for one in versions)], np.int64).take(index)

    def look_up(self, side: Side, keys: NDArray[np.int64], versions: NDArray[np.int64]) -> NDArray[np.float32]:
        """What versions know of users or of items.

        Args:
            keys: int64 ``[n]`` key numbers (``vocabulary.key_numbers``).
            versions: int64 ``[n]``, or ``[1]`` for all; -1 for none.

        Returns:
            float32 ``[n, 1 + W]``: 1 and the vector, or zeros where the version has not the key.
        """
        vectors = np.zeros((len(keys), 1 + self.info.widths[side]), np.float32)
        if not self.info.versions or not len(keys):
            return vectors
        versions = np.broadcast_to(versions, keys.shape)
        published = {one.number: one.published for one in self.info.versions}
        at = np.array([published.get(int(number), _MIN_TIMESTAMP) for number in np.unique(versions)], np.int64)
        at = at[np.searchsorted(np.unique(versions), versions)]
        tokens = self._stores[side].last(keys, at + 1, 1)
        # The last token may be of an older version, which knew the key when this one does not.
        row = np.repeat(np.arange(len(keys)), np.diff(tokens.offsets))
        same = tokens.version == versions[row]
        vectors[row[same], 0], vectors[row[same], 1:] = 1, tokens.vectors[same]
        return vectors

    def compact(self) -> None:
        """Bring what was published into its final form; readers notice nothing."""
        for store in self._stores.values():
            store.compact()

    def refresh(self) -> None:
        """See what was published since."""
        for store in self._stores.values():
            store.refresh()
        self.info = _read_manifest(self.folder)

    def close(self) -> None:
        """Let go of the files."""
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
"""A moment before all others."""


def _read_manifest(folder: Path) -> KnowledgeInfo:
    content = read_manifest(folder / MANIFEST, FORMAT, "knowledge", _REMEDY, StoreError)
    try:
        versions = tuple(KnowledgeVersion(**one) for one in content.pop("versions"))
        content.pop("format")
        return KnowledgeInfo(**to_field_names(content), versions=versions)
    except (KeyError, TypeError) as error:
        raise StoreError(str(folder / MANIFEST), f"not readable ({error})", "what it was written as", _REMEDY) from None


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
