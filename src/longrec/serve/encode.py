"""From a request to a query and candidates: key look-ups, the fitted encoders, and the past from the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import DataError, RequestError, nearest
from longrec.export.bundle import Bundle
from longrec.export.inputs import tensors
from longrec.export.request import context_columns, encoded_calendar, encoded_context, encoded_list
from longrec.features.encode import Lists
from longrec.features.fitted import gather_lists
from longrec.features.table import EntityTable
from longrec.features.view import Past, event_columns, filter_delay, history_columns
from longrec.pipeline.candidates import Candidates
from longrec.pipeline.stage import Query
from longrec.serve.lookup import Lookup
from longrec.serve.request import Key, RankRequest

_SHOWN = 5
"""So many unknown keys are named in a refusal."""


@dataclass(frozen=True)
class _History:
    """How one history is read: settled once, when the service starts."""

    name: str
    last: int
    where: str | None
    delay: int


class RequestEncoder:
    """Turns requests into what the program reads. It keeps no state of a request."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self.fitted = bundle, bundle.fitted
        schema = self.fitted.schema
        self._fields = {field.name: field for field in self.fitted.fields().features}
        self._context = context_columns(self.fitted)
        self._users = self._columns(bundle.users, "user")
        self._items = self._columns(bundle.items, "item")
        self._user_rows, self._item_rows = Lookup(bundle.users), Lookup(bundle.items)
        read = {entry.group for entry in bundle.manifest.inputs}
        self._histories = [
            _History(
                name,
                history.last,
                f"where.{name}" if history.where else None,
                0 if schema.prejoined else filter_delay(self.fitted, name),
            )
            for name, history in schema.histories.items()
            if f"h.{name}" in read
        ]
        names = event_columns(self.fitted)
        self._values = names
        self._known = {name: f"known.{name}" for name in names if schema.features[name].known_at is not None}

    def candidates(self, request: RankRequest) -> tuple[Candidates, list[Key]]:
        """The items to rank, and which of them are unknown.

        Raises:
            RequestError: 404 unknown items, 422 keys of the wrong type.
        """
        keys, rows = self._item_rows.rows(request.candidates, "candidates")
        if rows.all():
            return Candidates.of(rows, keys, "request"), []
        unknown = [request.candidates[place] for place in np.flatnonzero(rows == 0).tolist()]
        if not request.allow_unknown:
            shown = ", ".join(map(repr, unknown[:_SHOWN])) + (", ..." if len(unknown) > _SHOWN else "")
            raise RequestError(
                "candidates",
                f"{len(unknown):,} unknown item{'s' if len(unknown) > 1 else ''}: {shown}",
                "items of the log or its item table",
                "drop them, or send allow_unknown: true to rank them as new",
                404,
            )
        return Candidates.of(rows, keys, "request"), unknown

    def query(self, request: RankRequest, moment: int) -> tuple[Query, bool]:
        """Everything that is the same for all candidates, and whether the user is unknown.

        Raises:
            RequestError: 404 an unknown user, 422 a context or a history that does not fit the schema.
        """
        user = int(self._user_rows.rows([request.user], "user")[1][0])
        if not user and not request.allow_unknown:
            raise RequestError(
                "user",
                f"the unknown user {request.user!r}",
                "a user of the log or its user table",
                "send allow_unknown: true to rank for somebody new",
                404,
            )
        inputs: dict[str, NDArray[Any]] = {}
        for name, column in self._users.items():
            if isinstance(column, Lists):
                inputs.update(self._feature(name, gather_lists(column, np.array([user]))))
            else:
                inputs[f"f.{name}"] = column[user : user + 1]
        for name, column in self._of_context(request.context).items():
            inputs.update(self._feature(name, column))
        for name, ids in encoded_calendar(self.fitted, moment).items():
            inputs.update(self._feature(name, ids))
        past = self._given(request.history) if self.fitted.schema.prejoined else self._stored(user, moment)
        if request.history is not None and not self.fitted.schema.prejoined:
            raise RequestError(
                "history", "a history in the request", "none: this bundle keeps histories itself", "leave it out", 422
            )
        positions = 0
        for history, columns in past.items():
            for name, column in columns.items():
                inputs.update(tensors(f"h.{history}.{name}", column, number=False))
                positions = max(positions, len(column))
        return Query(user, moment, inputs, positions), not user

    def item_tensors(self, rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """The program's inputs that differ between candidates."""
        inputs: dict[str, NDArray[Any]] = {}
        for name, column in self._items.items():
            if isinstance(column, Lists):
                inputs.update(self._feature(name, gather_lists(column, rows)))
            else:
                inputs[f"f.{name}"] = column.take(rows)
        return inputs

    def _columns(self, table: EntityTable, owner: str) -> dict[str, NDArray[Any] | Lists]:
        """The columns of a table, in the types of the program."""
        columns: dict[str, NDArray[Any] | Lists] = {}
        for name in self.fitted.of_table(owner):
            column, number = table.columns[name], self._fields[name].kind == "dense"
            columns[name] = column if isinstance(column, Lists) else tensors(name, column, number)[name]
        return columns

    def _feature(self, name: str, column: NDArray[Any] | Lists) -> dict[str, NDArray[Any]]:
        return tensors(f"f.{name}", column, number=self._fields[name].kind == "dense")

    def _of_context(self, context: Mapping[str, Any]) -> dict[str, NDArray[Any] | Lists]:
        if context.keys() != self._context.keys():
            _names("context", set(context), self._context, "write null where a value is missing")
        if not context:
            return {}
        try:
            return encoded_context(self.fitted, context, self._context)
        except DataError as error:
            raise _refused(error) from None

    def _stored(self, user: int, moment: int) -> dict[str, dict[str, NDArray[Any] | Lists]]:
        """Histories from the store, as they were known strictly before the moment."""
        store, past = self.bundle.store, {}
        if store is None:
            return {}
        now = np.array([moment], np.int64)
        for history in self._histories:
            events = store.last(user, moment - history.delay, history.last, history.where)
            columns = events.columns
            seen = Past(
                events.times,
                columns["item"],
                {name: columns[name] for name in self._values},
                {name: columns[known] for name, known in self._known.items()},
            )
            past[history.name] = history_columns(self.fitted, history.name, self.bundle.items, seen, now)
        return past

    def _given(self, given: Mapping[str, Mapping[str, list[Any]]] | None) -> dict[str, dict[str, NDArray[Any] | Lists]]:
        """Histories that came with the request, cut to their last events."""
        if not self._histories and given is None:
            return {}
        schema = self.fitted.schema
        do = "give each history oldest first, {history: {feature: [values]}}, an empty list where nothing happened"
        _names("history", set(given or {}), dict.fromkeys(schema.histories), do)
        past: dict[str, dict[str, NDArray[Any] | Lists]] = {}
        for name, history in schema.histories.items():
            columns = (given or {})[name]
            _names(f"history.{name}", set(columns), dict.fromkeys(history.of), do)
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
                raise _refused(error) from None
        return {history.name: past[history.name] for history in self._histories}


def _refused(error: DataError) -> RequestError:
    """What the encoders refuse is the client's fault here."""
    return RequestError(error.where, error.found, error.expected, error.do, 422)


def _names(where: str, given: set[str], expected: Mapping[str, Any], do: str) -> None:
    """Refuse unknown and missing names, listing what there is."""
    faults = []
    for name in sorted(given - expected.keys()):
        near = nearest(name, expected.keys() - given)
        faults.append(f"the unknown key {name!r}" + (f" (did you mean {near!r}?)" if near else ""))
    faults += [f"no {name!r}" for name in expected if name not in given]
    if faults:
        raise RequestError(where, "; ".join(faults), ", ".join(expected) or "nothing", do, 422)
