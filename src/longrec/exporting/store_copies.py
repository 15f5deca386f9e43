"""Copies of token stores and of knowledge stores for a bundle: current, compacted, without files of writers.

A store may be written to while it is copied. The copy is then the state of the store at some time during copying. If
the files do not fit together, copying is repeated.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from longrec.errors import BundleError, StoreError
from longrec.store import knowledge_store
from longrec.store.knowledge_store import SIDES, KnowledgeStore
from longrec.store.token_store import TokenStore

_TRIES = 5
_LEFT_OUT = shutil.ignore_patterns("source", "lock", ".*", "*.new", "*.new.npy", "*.damaged")
"""Files that are not copied: the model that wrote the store, and files of an active writer."""

Store = TypeVar("Store", TokenStore, KnowledgeStore)


def is_remote(location: str | Path) -> bool:
    """Return True for the address of a server, False for a folder.

    >>> is_remote("redis://localhost:6379/0/shop"), is_remote("tokens/v1")
    (True, False)
    """
    return "://" in str(location)


def copy_tokens(store: TokenStore, into: Path) -> None:
    """Copy a token store that is a folder. A copy of a store that changed meanwhile is repeated.

    Raises:
        BundleError: if the store kept changing during all attempts.
    """
    _retry(into, lambda: _copy(Path(store.location), into))


def copy_knowledge(store: KnowledgeStore, into: Path) -> None:
    """Copy a knowledge store. A copy of a store that changed meanwhile is repeated.

    Raises:
        BundleError: if the store kept changing during all attempts.
    """

    def copy() -> None:
        # The manifest is copied first: versions published meanwhile may be copied, but the manifest does not name them.
        into.mkdir(parents=True)
        shutil.copyfile(store.folder / knowledge_store.MANIFEST, into / knowledge_store.MANIFEST)
        for side in SIDES:
            _copy(store.folder / f"{side}s", into / f"{side}s")

    _retry(into, copy)


def copy_stores(
    stores: Mapping[str, Store], root: Path, folder: str, copy: Callable[[Store, Path], None]
) -> dict[str, str]:
    """Copy stores into a bundle: a shared store once, a remote store not at all.

    Args:
        stores: store of each history or feature.
        root: folder of the bundle.
        folder: folder inside it.

    Returns:
        The location of each store: its folder inside the bundle, or its address.
    """
    locations: dict[str, str] = {}
    seen: dict[str, str] = {}
    for name, store in stores.items():
        own = store.location if isinstance(store, TokenStore) else str(store.folder)
        if own not in seen:
            seen[own] = own
            if not is_remote(own):
                seen[own] = f"{folder}/{name}"
                copy(store, root / folder / name)
        locations[name] = seen[own]
    return locations


def _copy(location: Path, into: Path) -> None:
    shutil.copytree(location, into, ignore=_LEFT_OUT)
    with TokenStore.open(into, writable=True) as store:
        store.compact()
    (into / "lock").unlink(missing_ok=True)


def _retry(into: Path, copy: Callable[[], None]) -> None:
    for attempt in range(_TRIES):
        try:
            return copy()
        except (StoreError, OSError) as error:  # shutil.Error, for files that disappeared, is an OSError
            shutil.rmtree(into, ignore_errors=True)
            if attempt == _TRIES - 1:
                reason = " ".join(str(error).split())[:300]
                raise BundleError(str(into), f"no copy of the store ({reason})", "a store that can be read") from None
    return None
