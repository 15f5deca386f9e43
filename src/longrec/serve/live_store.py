"""Where the events since a bundle lie: opened, begun, or taken over from an earlier version of LongRec.

Version 1 did not keep when an event was told. Its events count as told when they happened, as they were read then.
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
from longrec.export.snapshot import is_remote, shown
from longrec.features.fields import AVAILABLE
from longrec.features.view import NEVER
from longrec.store import backends
from longrec.store.history_store import Events

FORMAT, BEFORE = "longrec-live-2", "longrec-live-1"
_USERS = 100_000
"""Users whose events are taken over at once."""
_HALF = f"{FORMAT}-half"
"""Format of a store that is being filled from an earlier one."""


def open_live(place: str, types: Mapping[str, Any], bundle: str) -> backends.Backend:
    """Open a store of live events for writing; begin it where none is.

    Args:
        place: a folder or an address.
        types: its columns.
        bundle: digest of the bundle that it belongs to.

    Raises:
        StoreError: it belongs to another bundle, or another process writes to it.
    """
    new, old = _places(place)
    attributes = {"format": FORMAT, "bundle": bundle}
    if not there(new) or _is_half(new):
        if not there(old):
            return backends.create(new, types, "instance", attributes)
        _take_over(old, new, types, attributes)
    backend = backends.open_store(new, writable=True)
    if backend.attributes != attributes:
        backend.close()
        raise _other(new)
    return backend


def there(place: str) -> bool:
    """Whether a store is at a place; a server that does not answer is told when the store is made."""
    if "://" not in place:
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        return Path(place, "store.json").exists()
    try:
        backends.open_store(place, writable=False).close()
    except StoreError:
        return False
    return True


def _places(place: str) -> tuple[str, str]:
    """Where events of this version lie, and where those of the version before do: beside each other."""
    if not is_remote(place):
        return f"{place}-2", place
    parts = urlsplit(place)
    return urlunsplit(parts._replace(path=f"{parts.path}-2")), place


def _is_half(place: str) -> bool:
    backend = backends.open_store(place, writable=False)
    try:
        return backend.attributes.get("format") == _HALF
    finally:
        backend.close()


def _take_over(old: str, new: str, types: Mapping[str, Any], attributes: Mapping[str, Any]) -> None:
    """Fill a store with the events of an earlier one, which stays as it is.

    Raises:
        StoreError: it belongs to another bundle.
    """
    source = backends.open_store(old, writable=not is_remote(old))  # so that no earlier server goes on writing
    try:
        if source.attributes != {**attributes, "format": BEFORE}:
            raise _other(old)
        if there(new) and is_remote(new):  # filled in part; events are named, so filling again adds none twice
            target = backends.open_store(new, writable=True)
        else:
            shutil.rmtree(new, ignore_errors=True)
            target = backends.create(new, types, "instance", {**attributes, "format": _HALF})
        try:
            for users, times, columns in _pieces(source):
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


def _pieces(store: backends.Backend) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], dict[str, NDArray[Any]]]]:
    """Users, times and columns of all events, many at once."""
    held: list[tuple[int, Events]] = []
    for user, events in store.scan():
        held.append((user, events))
        if len(held) == _USERS:
            yield _joined(held)
            held = []
    if held:
        yield _joined(held)


def _joined(held: list[tuple[int, Events]]) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[str, NDArray[Any]]]:
    users = np.repeat(np.array([user for user, _ in held], np.int64), [len(events) for _, events in held])
    columns = {name: np.concatenate([events.columns[name] for _, events in held]) for name in held[0][1].columns}
    return users, np.concatenate([events.times for _, events in held]), columns


def _other(place: str) -> StoreError:
    do = "give another place with --state; the old events stay where they are"
    return StoreError(shown(place), "events of another bundle", "those of the bundle that is served", do)
