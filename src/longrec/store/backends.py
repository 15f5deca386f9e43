"""Persistent stores, chosen by location: a folder, or the address of a server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from longrec.store.history_store import HistoryStore
from longrec.store.lsm_store import LsmStore
from longrec.store.remote_client import SCHEMES
from longrec.store.remote_store import RemoteStore


class Backend(HistoryStore, Protocol):
    """A persistent store that also keeps attributes and small arrays."""

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the store (a copy)."""
        ...

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Replace the attributes atomically."""
        ...

    def put_array(self, name: str, array: NDArray[Any]) -> None:
        """Store a small array beside the events, atomically."""
        ...

    def take_array(self, name: str) -> NDArray[Any]:
        """Return an array stored beside the events."""
        ...

    def load(self, keys: NDArray[Any], times: NDArray[np.int64], values: Mapping[str, NDArray[Any]]) -> None:
        """Add many events at once."""
        ...

    def retype(self, columns: Mapping[str, Any]) -> None:
        """Replace the columns of a store without events."""
        ...

    def compact(self) -> None:
        """Merge appended events into the sorted form."""
        ...

    def refresh(self) -> None:
        """Read what a writer has changed since."""
        ...

    def close(self) -> None:
        """Release files, locks and connections."""
        ...


def create(
    location: str | Path, columns: Mapping[str, Any], identity: str | None, attributes: Mapping[str, Any]
) -> Backend:
    """Create a store with an open key space.

    Args:
        location: a folder, or ``redis://host:port/db/name``.

    Raises:
        StoreError: if the store exists already, or the server does not respond.
    """
    if _remote(location):
        return RemoteStore.create(str(location), columns, None, identity, attributes)
    return LsmStore.create(location, columns, None, identity, attributes)


def open_store(location: str | Path, writable: bool) -> Backend:
    """Open a store.

    Raises:
        StoreError: if there is no store, it is damaged or has another format version, or another writer holds its lock.
    """
    return RemoteStore.open(str(location), writable) if _remote(location) else LsmStore.open(location, writable)


def _remote(location: str | Path) -> bool:
    return isinstance(location, str) and location.partition("://")[0] in SCHEMES
