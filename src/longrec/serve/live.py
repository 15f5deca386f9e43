"""Events that came after a bundle was written: kept for good, and read as if they stood in its history.

They lie in a store of their own, by the users' own keys, so that a user whom the bundle does not know has a past too.
Ids are those of the bundle, so the store belongs to one bundle and is refused by another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import StoreError
from longrec.export.bundle import Bundle
from longrec.export.snapshot import shown
from longrec.features.fitted import FittedSchema
from longrec.features.view import event_columns
from longrec.store import backends
from longrec.store.amend import find
from longrec.store.disk import DiskStore
from longrec.store.store import Events

FORMAT = "longrec-live-1"
_ALL = 1 << 40


class LiveEvents:
    """The events since a bundle, and the past of its users as both tell it.

    Args:
        place: a folder or an address; made where nothing is.
        bundle: one whose histories are read from its own events.

    Raises:
        StoreError: it belongs to another bundle, or another process writes to it.
    """

    def __init__(self, place: str, bundle: Bundle) -> None:
        assert bundle.store is not None
        self._base: DiskStore = bundle.store
        self._fitted = bundle.fitted
        schema = bundle.fitted.schema
        self.values = event_columns(bundle.fitted)
        self.feedback = [name for name in self.values if schema.features[name].feedback]
        self.filters = {name: list(history.where) for name, history in schema.histories.items() if history.where}
        for name, columns in self.filters.items():
            if len(columns) > _BITS:
                raise StoreError(f"histories.{name}.where", f"{len(columns)} conditions", f"at most {_BITS}")
        attributes = {"format": FORMAT, "bundle": bundle.digest}
        self.backend = _opened(place, self._types(), attributes)

    def _types(self) -> dict[str, Any]:
        types: dict[str, Any] = {"instance": np.int64, "item": np.int32, "replaces": np.uint8}
        types |= dict.fromkeys(self.values, np.int32)
        types |= {f"known.{name}": np.int64 for name in self.feedback}
        for name in self.filters:
            types |= {f"where.{name}": np.uint8, f"met.{name}": np.int32}
        return types

    def find(self, user: int, time: int, instance: int) -> dict[str, NDArray[Any]] | None:
        """An event that was recorded before: its columns ``[1]``."""
        return find(self.backend, user, time, instance)

    def append(self, user: int, row: int, time: int, columns: Mapping[str, Any]) -> None:
        """Record an event, or record it again.

        Args:
            user: key number.
            row: of the user in the bundle, 0 for somebody new.
            columns: ``instance``, ``item`` (row), ids by event feature, ``known.*`` by feedback feature, and bits of
                the conditions that hold, ``met.*`` by filtered history.
        """
        made = dict(columns)
        for name, conditions in self.filters.items():
            made[f"where.{name}"] = int(made[f"met.{name}"] == (1 << len(conditions)) - 1)
        made["replaces"] = int(self._in_base(row, time, int(made["item"])))
        self.backend.append(
            np.array([user], np.int64), np.array([time], np.int64), {n: np.array([v]) for n, v in made.items()}
        )

    def last(self, user: int, row: int, before: int, n: int, where: str | None, columns: Sequence[str]) -> Events:
        """The last ``n`` events of a user, of the bundle and since.

        Args:
            user: key number.
            row: of the user in the bundle, 0 for somebody new.
            columns: those of the bundle's history; ``known.*`` come for every feedback feature.
        """
        known = [f"known.{name}" for name in self.feedback]
        asked = list(dict.fromkeys([*columns, *known, "replaces"]))
        new = self.backend.last(user, before, n, where, asked)
        gone = self.backend.last(user, before, _ALL, "replaces", ["item"])
        old = self._base.last(row, before, n + len(gone), where)
        kept = _without(old, gone) if len(gone) else slice(None)
        times = old.times[kept]
        both = np.concatenate([times, new.times])
        order = np.argsort(both, kind="stable")[-n:] if n else np.zeros(0, np.int64)
        merged = {}
        for name in asked[:-1]:
            if name in old.columns:
                own = old.columns[name][kept]
            else:  # a moment that follows from the schema
                own = times + self._fitted.schema.known_after(name.removeprefix("known."))
            merged[name] = np.concatenate([own, new.columns[name]])[order]
        return Events(np.array([0, len(order)]), both[order], merged)

    def _in_base(self, row: int, time: int, item: int) -> bool:
        count = 64
        while row:
            events = self._base.last(row, time + 1, count)
            if ((events.times == time) & (events.columns["item"] == item)).any():
                return True
            if len(events) < count or events.times[0] < time:
                break
            count *= 8
        return False

    def compact(self) -> None:
        """Bring what was recorded into its final form."""
        self.backend.compact()

    def close(self) -> None:
        """Let go of the store."""
        self.backend.close()


_BITS = 31


def reads_events(fitted: FittedSchema) -> bool:
    """Whether a schema has histories of events that a bundle keeps."""
    own = [history for history in fitted.schema.histories.values() if history.source is None]
    return bool(own) and not fitted.schema.prejoined


def _without(old: Events, gone: Events) -> NDArray[np.bool_]:
    """Which events of the bundle were not recorded again: each that was takes away the first like it."""
    kept = np.ones(len(old), bool)
    for time, item in zip(gone.times.tolist(), gone.columns["item"].tolist()):
        first = np.flatnonzero(kept & (old.times == time) & (old.columns["item"] == item))[:1]
        kept[first] = False
    return kept


def _opened(place: str, types: Mapping[str, Any], attributes: Mapping[str, Any]) -> backends.Backend:
    if not there(place):
        return backends.create(place, types, "instance", attributes)
    backend = backends.open_store(place, writable=True)
    if backend.attributes != dict(attributes):
        backend.close()
        do = "give another place with --state; the old events stay where they are"
        raise StoreError(shown(place), "events of another bundle", "those of the bundle that is served", do)
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
