"""Stores that keep what they are told, by where they are: a folder, or the address of a server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from longrec.store.history_store import HistoryStore
from longrec.store.lsm_store import LsmStore
from longrec.store.remote_store import SCHEMES, RemoteStore


class Backend(HistoryStore, Protocol):
    """A store that also keeps attributes and small arrays."""

    @property
    def attributes(self) -> dict[str, Any]:
        """What else is known of the store; a copy."""
        ...

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Replace the attributes, at once."""
        ...

    def put_array(self, name: str, array: NDArray[Any]) -> None:
        """Keep a small array beside the events, at once."""
        ...

    def take_array(self, name: str) -> NDArray[Any]:
        """An array kept beside the events."""
        ...

    def load(self, keys: NDArray[Any], times: NDArray[np.int64], values: Mapping[str, NDArray[Any]]) -> None:
        """Add many events at once."""
        ...

    def retype(self, columns: Mapping[str, Any]) -> None:
        """Give a store that holds no events other columns."""
        ...

    def compact(self) -> None:
        """Bring what was appended into its final form."""
        ...

    def refresh(self) -> None:
        """See what a writer has done since."""
        ...

    def close(self) -> None:
        """Give up files, locks and connections."""
        ...


def create(
    location: str | Path, columns: Mapping[str, Any], identity: str | None, attributes: Mapping[str, Any]
) -> Backend:
    """Begin a store with an open key space where none is.

    Args:
        place: a folder, or ``redis://host:port/db/name``.

    Raises:
        StoreError: a store is there already, or nothing answers.
    """
    if _remote(location):
        return RemoteStore.create(str(location), columns, None, identity, attributes)
    return LsmStore.create(location, columns, None, identity, attributes)


def open_store(location: str | Path, writable: bool) -> Backend:
    """Open a store.

    Raises:
        StoreError: there is none, it is damaged or of another version, or another writer holds it.
    """
    return RemoteStore.open(str(location), writable) if _remote(location) else LsmStore.open(location, writable)


def _remote(location: str | Path) -> bool:
    return isinstance(location, str) and location.partition("://")[0] in SCHEMES
