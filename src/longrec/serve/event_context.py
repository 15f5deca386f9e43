"""Context of an event: the columns that it must have, those that its item has in the catalog, and those not used.

An event must have what histories and a source model read. A column that it leaves out is that of its item in the
catalog, if the item table has one of that name: of a column that belongs to the candidate, or that only a filter reads.
Other columns of the log are accepted and not used, so that the context of a ranking can be sent as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from longrec.errors import RequestError, describe_unknown_names
from longrec.features.history_columns import list_event_columns
from longrec.features.schema import Schema
from longrec.serve.feedback import list_filter_columns
from longrec.serve.live_catalog import LiveCatalog
from longrec.serve.request_encoder import RequestEncoder
from longrec.serve.request_json import Key


class EventContext:
    """Columns of the events of one service.

    Args:
        source: encoder of the source model, if there is one. It reads all of its columns.
        encoders: encoders of all bundles, that of the source model included.
        readers: those whose histories read the events.
        catalogs: catalogs of the bundles, each with the encoder of its bundle.

    Attributes:
        required: columns that an event must have.
        of_events: those of them that no item has, so that every event must bring them.
    """

    def __init__(
        self,
        source: RequestEncoder | None,
        encoders: Iterable[RequestEncoder],
        readers: Iterable[RequestEncoder],
        catalogs: Sequence[tuple[RequestEncoder, LiveCatalog]],
    ) -> None:
        self._catalogs = catalogs
        own = [] if source is None else [*source.context, *source.candidate_context]
        self.required = dict.fromkeys(own)
        for reader in readers:
            self.required |= dict.fromkeys(_list_read_columns(reader))
        of_context = {column for encoder in encoders for column in encoder.context}
        self._of_items = self.required.keys() - of_context
        self.of_events = [column for column in self.required if column not in self._of_items]
        self._further = {column for encoder in encoders for column in _list_columns(encoder.fitted.schema)}

    def complete(self, context: Mapping[str, Any], item: Key) -> tuple[dict[str, Any], list[str]]:
        """Return the required columns, and the names of the columns that are not used.

        Raises:
            RequestError: 422 if a column is unknown, or missing both in the event and in the catalog.
        """
        if context.keys() == self.required.keys():
            return dict(context), []
        complete = {**self._read_item(item, context), **context}
        ignored = [name for name in context if name not in self.required and self._exists(name)]
        missing = [name for name in self.required if name not in complete]
        unknown = [name for name in context if name not in self.required and name not in ignored]
        faults = describe_unknown_names(unknown, [*missing, *self.required, *sorted(self._further)])
        faults += [f"no {name!r}" for name in missing]
        if faults:
            expected = ", ".join(self.required) or "nothing"
            raise RequestError("context", "; ".join(faults), expected, "write null for a missing value", 422)
        return {name: complete[name] for name in self.required}, ignored

    def complete_from_item(self, item: Key) -> dict[str, Any] | None:
        """Return all required columns as the catalog has them for an item, or None if some are missing there."""
        own = self._read_item(item, {})
        return own if own.keys() == self.required.keys() else None

    def _read_item(self, item: Key, context: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns of an item that a context lacks, from the first catalog that has them."""
        lacking = [name for name in self.required if name in self._of_items and name not in context]
        values: dict[str, Any] = {}
        for encoder, catalog in self._catalogs if lacking else ():
            row = encoder.look_up_item(item)
            values = {**catalog.read_columns(row, lacking), **values} if row else values
        return {name: values[name] for name in self.required if name in values}

    def _exists(self, name: str) -> bool:
        """Return True for a column of the log or of an item table."""
        return name in self._further or any(name in catalog.list_columns() for _, catalog in self._catalogs)


def _list_read_columns(reader: RequestEncoder) -> list[str]:
    """List the columns that the histories of a bundle read, without feedback.

    Keys of user and item are available to a cross, a lookup and a candidate feature anyway.
    """
    schema, columns = reader.fitted.schema, []
    for name in list_event_columns(reader.fitted):
        if not schema.features[name].feedback:
            keyed = schema.features[name].composed or schema.side(name) == "candidate"
            columns += [c for c in schema.columns(name) if not (keyed and c in (schema.user, schema.item))]
    return [*columns, *list_filter_columns(schema)]


def _list_columns(schema: Schema) -> set[str]:
    """List the columns that the features of a schema read, without keys and feedback."""
    names = [
        name for name, one in schema.features.items() if not one.feedback and one.kind not in ("calendar", "embedding")
    ]
    columns = {column for name in names for column in schema.columns(name)} | set(list_filter_columns(schema))
    return {column for column in columns if column not in (schema.user, schema.item)}
