"""The past of a request: events of the bundle (and those since), or the lists that came with the request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import DataError, RequestError, nearest
from longrec.export.bundle import Bundle
from longrec.export.request import encoded_list
from longrec.features.encode import Lists
from longrec.features.view import Past, event_columns, filter_delay, history_columns
from longrec.serve.live import LiveEvents, base_last
from longrec.store.history_store import Events

Columns = dict[str, NDArray[Any] | Lists]


@dataclass(frozen=True)
class _History:
    """How one history is read: settled once, when the service starts."""

    name: str
    last: int
    where: str | None
    delay: int


class Histories:
    """The histories of events that a bundle's program reads. It keeps no state of a request.

    Attributes:
        live: events since the bundle, where such are recorded.
    """

    def __init__(self, bundle: Bundle, live: LiveEvents | None = None) -> None:
        self.bundle, self.fitted, self.live = bundle, bundle.fitted, live
        schema = self.fitted.schema
        read = {entry.group for entry in bundle.manifest.inputs}
        self._own = {name: history for name, history in schema.histories.items() if history.source is None}
        self._read = [
            _History(
                name,
                history.last,
                f"where.{name}" if history.where else None,
                0 if schema.prejoined else filter_delay(self.fitted, name),
            )
            for name, history in self._own.items()
            if f"h.{name}" in read
        ]
        self._values = event_columns(self.fitted)
        known = [name for name in self._values if schema.features[name].known_at is not None]
        if live is not None:  # what came late is known later than the schema says
            known = live.feedback
        self._known = {name: f"known.{name}" for name in known}
        self._columns = ["item", *self._values, *self._known.values()]

    def stored(self, user: int, row: int, moment: int) -> dict[str, Columns]:
        """Histories as they were known strictly before the moment.

        Args:
            user: key number.
            row: of the user in the bundle, 0 for somebody new.
        """
        past: dict[str, Columns] = {}
        if self.bundle.store is None:
            return past
        now = np.array([moment], np.int64)
        for history in self._read:
            events = self._last(user, row, moment, history)
            columns = events.columns
            seen = Past(
                events.times,
                columns["item"],
                {name: columns[name] for name in self._values},
                {name: columns[known] for name, known in self._known.items()},
            )
            past[history.name] = history_columns(self.fitted, history.name, self.bundle.items, seen, now)
        return past

    def _last(self, user: int, row: int, moment: int, history: _History) -> Events:
        before = moment - history.delay
        if self.live is not None:
            return self.live.last(user, row, before, history.last, history.where, self._columns, moment)
        assert self.bundle.store is not None
        return base_last(self.bundle.store, row, before, moment, history.last, history.where)

    def given(self, given: Mapping[str, Mapping[str, list[Any]]] | None) -> dict[str, Columns]:
        """Histories that came with the request, cut to their last events.

        Raises:
            RequestError: 422 other names, lists of several lengths, or values of the wrong type.
        """
        if not self._read and given is None:
            return {}
        do = "give each history oldest first, {history: {feature: [values]}}, an empty list where nothing happened"
        names("history", set(given or {}), dict.fromkeys(self._own), do)
        past: dict[str, Columns] = {}
        for name, history in self._own.items():
            columns = (given or {})[name]
            names(f"history.{name}", set(columns), dict.fromkeys(history.of), do)
            lengths = {column: len(values) for column, values in columns.items()}
            if len(set(lengths.values())) > 1:
                found = ", ".join(f"{count} of {column}" for column, count in lengths.items())
                raise RequestError(f"history.{name}", found, "lists of one length", "give every event all columns", 422)
            try:
                past[name] = {
                    column: encoded_list(self.fitted, column, values[-history.last :], f"history.{name}.{column}")
                    for column, values in columns.items()
                }
            except DataError as error:
                raise refused(error) from None
        return {history.name: past[history.name] for history in self._read}


def refused(error: DataError) -> RequestError:
    """What the encoders refuse is the client's fault here."""
    return RequestError(error.where, error.found, error.expected, error.do, 422)


def names(where: str, given: set[str], expected: Mapping[str, Any], do: str) -> None:
    """Refuse unknown and missing names, listing what there is.

    Raises:
        RequestError: 422.
    """
    faults = []
    for name in sorted(given - expected.keys()):
        near = nearest(name, expected.keys() - given)
        faults.append(f"the unknown key {name!r}" + (f" (did you mean {near!r}?)" if near else ""))
    faults += [f"no {name!r}" for name in expected if name not in given]
    if faults:
        raise RequestError(where, "; ".join(faults), ", ".join(expected) or "nothing", do, 422)
