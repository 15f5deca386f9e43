"""The events that a score of a user reads, as a person reads them: with keys, titles and values in place of ids.

Events are read by the code that scores, at the timestamp of a score, so that both see the same: filters, delays,
feedback that is not yet available, recorded events, and the recent events of a request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.features.feature_encoders import FIRST, UNSEEN, Lists
from longrec.features.fields import COMPUTED, TOKEN, VERSION
from longrec.features.fitted_schema import gather_lists
from longrec.features.raw_columns import format_request_time
from longrec.features.readable_values import NOT_YET_TEXT, UNSEEN_TEXT, read_column
from longrec.pipeline.stage import Query
from longrec.serve.live_catalog import LiveCatalog
from longrec.serve.open_model import OpenModel
from longrec.serve.stores import Reading
from longrec.store.history_store import Events

_TITLES = ("title", "name")


@dataclass(frozen=True)
class _UserEvents:
    """What one model reads of a user.

    Attributes:
        events: events of each history, oldest first.
        folded: number of them that are in the state of the user, by history. None for a bundle without states.
        tokens: times and columns of each token history.
    """

    events: Mapping[str, Events]
    folded: Mapping[str, int] | None
    tokens: Mapping[str, tuple[NDArray[np.int64], Mapping[str, NDArray[Any]]]]


def view_in_steps(models: Sequence[OpenModel], query: Query, last: int) -> Iterator[Reading | list[dict[str, Any]]]:
    """Yield the reading of stores on servers, if there are any, and in the end the histories that the models read.

    Args:
        query: query with a user, a timestamp and recent events. Nothing else of it is read.
        last: largest number of events per history, the newest ones.

    Raises:
        RequestError: 404 if the user is unknown and not allowed, 422 if a recent event has a value of the wrong type.
    """
    views = [_HistoryView(model) for model in models]
    read: list[_UserEvents] = []

    def read_events() -> None:
        read.extend([view.read(query) for view in views])

    if any(model.encoder.remote_stores for model in models):
        yield Reading(read_events)
    else:
        read_events()
    yield [entry for view, own in zip(views, read) for entry in view.describe(own, query.timestamp, last)]


class _HistoryView:
    """Histories of one model."""

    def __init__(self, model: OpenModel) -> None:
        self._name, self._encoder, self._catalog = model.name, model.encoder, model.catalog

    def read(self, query: Query) -> _UserEvents:
        """Read the stores. It may run in another thread."""
        encoder, timestamp = self._encoder, query.timestamp
        row, user = encoder.find_user(query)
        recent, histories = encoder.encode_recent(query, row), encoder.histories
        tokens = encoder.tokens.read_dated(user, timestamp)
        if histories.states is None:
            return _UserEvents(histories.read_events(user, row, timestamp, recent), None, tokens)
        return _UserEvents(*histories.read_whole(user, row, timestamp, recent), tokens)

    def describe(self, own: _UserEvents, timestamp: int, last: int) -> Iterator[dict[str, Any]]:
        """Yield the histories as JSON, each with its newest events, newest first."""
        fitted, histories = self._encoder.fitted, self._encoder.histories
        for name, events in own.events.items():
            newest = _order_newest(len(events.times), last)
            encoded = histories.encode(name, events, timestamp)
            columns = {one: read_column(fitted, one, _take(values, newest)) for one, values in encoded.items()}
            folded = None if own.folded is None else own.folded[name]
            shown = self._describe_events(events.times[newest], events.columns["item"][newest], columns)
            yield {"model": self._name, "name": name, "events": len(events.times), "folded": folded, "newest": shown}
        for name, (times, tokens) in own.tokens.items():
            newest = _order_newest(len(times), last)
            columns = {
                own_name: self._read_token_column(name, own_name, values[newest])
                for full, values in tokens.items()
                if (own_name := full.removeprefix(f"{name}.")) != TOKEN
            }
            shown = self._describe_events(times[newest], np.zeros(len(newest), np.int64), columns)
            yield {"model": self._name, "name": name, "events": len(times), "folded": None, "newest": shown}

    def _describe_events(
        self, times: NDArray[np.int64], rows: NDArray[Any], columns: Mapping[str, list[Any]]
    ) -> list[dict[str, Any]]:
        """Return events as JSON.

        Args:
            rows: rows of their items, 0 for none. A row beyond the table is that of an item that was removed since.
        """
        fitted, items = self._encoder.fitted, self._catalog.table.items
        read_title = build_title_reader(self._catalog, fitted.schema.item)
        described = []
        for at, (time, row) in enumerate(zip(times.tolist(), rows.tolist())):
            item = row if row < len(items) else 0
            described.append({
                "at": format_request_time(fitted, time),
                "item": items.key(item),
                "title": read_title(item),
                "values": {name: values[at] for name, values in columns.items()},
            })  # fmt: skip
        return described

    def _read_token_column(self, history: str, name: str, column: NDArray[Any]) -> list[Any]:
        fitted = self._encoder.fitted
        if name in COMPUTED:
            return read_column(fitted, name, column)
        if name == VERSION:
            return [UNSEEN_TEXT if value == UNSEEN else value - FIRST for value in column.tolist()]
        not_yet = fitted.tokens[history].sides[name]
        return [NOT_YET_TEXT if value == not_yet else value for value in column.tolist()]


def _order_newest(count: int, last: int) -> NDArray[np.int64]:
    """Return the positions of the last of some events, newest first."""
    return np.arange(count - 1, max(count - last, 0) - 1, -1)


def _take(column: NDArray[Any] | Lists, at: NDArray[np.int64]) -> NDArray[Any] | Lists:
    return gather_lists(column, at) if isinstance(column, Lists) else column[at]


def build_title_reader(catalog: LiveCatalog, key: str | None) -> Callable[[int], str | None]:
    """Return a function of the row of an item that returns its title, None for an item without one.

    The title is the text in a raw column of the item table: ``title`` or ``name`` in any case, alone, after ``item_``,
    or after the word of the key (``movie_title`` for ``movie_id``). A title is preferred to a name.

    Args:
        key: column of the item's key.
    """
    stem = (key or "").lower().removesuffix("id").rstrip("_")
    own = {name.lower(): name for name in reversed(catalog.list_columns())}
    wanted = [f"{prefix}{one}" for one in _TITLES for prefix in ("", "item_", f"{stem}_")]
    column = next((own[name] for name in wanted if name in own), None)

    def read(row: int) -> str | None:
        if column is None or row == 0:
            return None
        value = catalog.read_columns(row, [column])[column]
        return value if isinstance(value, str) else None

    return read
