"""Store of the events since a bundle: opened, created, or migrated from an earlier version of LongRec.

Format 1 did not store when an event was recorded. Its events count as recorded when they happened, as that version read
them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np
from numpy.typing import NDArray

from longrec.errors import StoreError
from longrec.exporting.store_copies import is_remote
from longrec.features.fields import AVAILABLE
from longrec.features.history_columns import NEVER
from longrec.store import backends
from longrec.store.history_store import Events
from longrec.store.remote_client import mask_password

FORMAT, PREVIOUS_FORMAT = "longrec-live-2", "longrec-live-1"
_USERS = 100_000
"""Number of users whose events are migrated at once."""
_INCOMPLETE = f"{FORMAT}-half"
"""Format of a store during its migration from an earlier one."""


def open_live(location: str, types: Mapping[str, Any], bundle: str) -> backends.Backend:
    """Open a store of live events for writing, or create it.

    Args:
        location: a folder or an address.
        types: types of the store's columns.
        bundle: digest of the bundle that the store belongs to.

    Raises:
        StoreError: if the store belongs to another bundle, or another process writes to it.
    """
    new, old = _resolve_locations(location)
    attributes = {"format": FORMAT, "bundle": bundle}
    if not store_exists(new) or _is_incomplete(new):
        if not store_exists(old):
            return backends.create(new, types, "instance", attributes)
        _migrate(old, new, types, attributes)
    backend = backends.open_store(new, writable=True)
    if backend.attributes != attributes:
        backend.close()
        raise _build_other_bundle_error(new)
    return backend


def store_exists(location: str) -> bool:
    """Return True for an existing store. A server that does not respond is reported when the store is created."""
    if "://" not in location:
        Path(location).parent.mkdir(parents=True, exist_ok=True)
        return Path(location, "store.json").exists()
    try:
        backends.open_store(location, writable=False).close()
    except StoreError:
        return False
    return True


def _resolve_locations(location: str) -> tuple[str, str]:
    """Return the locations of the store in this format and in the previous format, which are siblings."""
    if not is_remote(location):
        return f"{location}-2", location
    url = urlsplit(location)
    return urlunsplit(url._replace(path=f"{url.path}-2")), location


def _is_incomplete(location: str) -> bool:
    backend = backends.open_store(location, writable=False)
    try:
        return backend.attributes.get("format") == _INCOMPLETE
    finally:
        backend.close()


def _migrate(old: str, new: str, types: Mapping[str, Any], attributes: Mapping[str, Any]) -> None:
    """Copy the events of an earlier store, which stays unchanged.

    Raises:
        StoreError: if the folder belongs to another bundle.
    """
    source = backends.open_store(old, writable=not is_remote(old))  # so that no earlier server continues writing
    try:
        if source.attributes != {**attributes, "format": PREVIOUS_FORMAT}:
            raise _build_other_bundle_error(old)
        if store_exists(new) and is_remote(
            new
        ):  # partly migrated: events have names, so a repeated copy adds none twice
            target = backends.open_store(new, writable=True)
        else:
            shutil.rmtree(new, ignore_errors=True)
            target = backends.create(new, types, "instance", {**attributes, "format": _INCOMPLETE})
        try:
            for users, times, columns in _iterate_chunks(source):
                columns[AVAILABLE] = times
                for name in [name for name in types if name.startswith("since.")]:
                    passes = columns[name.replace("since.", "where.", 1)] > 0
                    columns[name] = np.where(passes, times, NEVER)
                target.load(users, times, columns)
            target.set_attributes(attributes)
        finally:
            target.close()
    finally:
        source.close()


def _iterate_chunks(
    store: backends.Backend,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], dict[str, NDArray[Any]]]]:
    """Yield users, times and columns of all events in chunks."""
    chunk: list[tuple[int, Events]] = []
    for user, events in store.scan():
        chunk.append((user, events))
        if len(chunk) == _USERS:
            yield _concatenate(chunk)
            chunk = []
    if chunk:
        yield _concatenate(chunk)


def _concatenate(
    chunk: list[tuple[int, Events]],
) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[str, NDArray[Any]]]:
    users = np.repeat(np.array([user for user, _ in chunk], np.int64), [len(events) for _, events in chunk])
    columns = {name: np.concatenate([events.columns[name] for _, events in chunk]) for name in chunk[0][1].columns}
    return users, np.concatenate([events.times for _, events in chunk]), columns


def _build_other_bundle_error(location: str) -> StoreError:
    do = "give another location with --state. The old events stay unchanged"
    return StoreError(mask_password(location), "events of another bundle", "those of the bundle that is served", do)
