"""Encoding of queries and candidates for one bundle: key lookups, fitted encoders, and histories from the stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import DataError, RequestError, quote
from longrec.exporting.bundle import Bundle
from longrec.exporting.inputs import make_tensors
from longrec.features.entity_table import EntityTable
from longrec.features.feature_encoders import Lists
from longrec.features.raw_columns import (
    encode_calendar,
    encode_candidates,
    encode_context,
    list_candidate_columns,
    list_context_columns,
    list_row_features,
)
from longrec.pipeline.candidates import Candidates, to_key_array
from longrec.pipeline.stage import Query
from longrec.serve.encoded_query import EncodedCandidates, EncodedQuery
from longrec.serve.event_values import EventValues
from longrec.serve.histories import Columns, EventHistories, check_names, to_request_error
from longrec.serve.knowledge_features import KnowledgeFeatures, key_number
from longrec.serve.live_events import LiveEvents
from longrec.serve.lookup import Lookup
from longrec.serve.recent_events import RecentColumns
from longrec.serve.request_json import Key
from longrec.serve.token_histories import TokenHistories
from longrec.serve.user_states import UserStates
from longrec.store.remote_store import RemoteStore

_NUMBERS = ("numeric", "numbers")
_SHOWN = 5
"""Number of unknown keys that an error lists."""


class RequestEncoder:
    """Encoder of queries as inputs of the programs of a bundle, without state between queries.

    Args:
        bundle: the opened bundle.
        tokens: token histories, by default the copies in the bundle.
        live: events since the bundle, if events are recorded.

    Attributes:
        revision: number of changes of the items.
        event_values: encoder of the values of recorded events.
        user_columns: raw columns of the user, without the key.
    """

    def __init__(self, bundle: Bundle, tokens: TokenHistories | None = None, live: LiveEvents | None = None) -> None:
        self.bundle, self.fitted, self.revision = bundle, bundle.fitted, 0
        self.event_values = EventValues(bundle.fitted)
        self._fields = {field.name: field for field in self.fitted.fields().features}
        self.context, self.candidate_context = list_context_columns(self.fitted), list_candidate_columns(self.fitted)
        self._event_features = list_row_features(self.fitted, "context")
        self._candidate_features = list_row_features(self.fitted, "candidate")
        self._user_names, self._item_names = self.fitted.list_features("user"), self.fitted.list_features("item")
        self.user_columns = [
            column
            for name in self._user_names
            for column in self.fitted.schema.columns(name)
            if column != self.fitted.schema.user
        ]
        self._user_table, self._item_table = self._cast_table(bundle.users), self._cast_table(bundle.items)
        self._users, self._items = Lookup(bundle.users), Lookup(bundle.items)
        self._histories = EventHistories(bundle, live)
        self._tokens = TokenHistories(bundle) if tokens is None else tokens
        self._knowledge = KnowledgeFeatures(bundle)
        # Reading by the users' own keys costs a hash of text, so it is skipped if the bundle needs none.
        self._by_key = live is not None or bool(bundle.manifest.tokens or bundle.manifest.knowledge)
        facts = bundle.manifest.states
        self._start_states = {f"s.{name}": own.make_start()[None] for name, own in facts.items()}

    def use_items(self, items: EntityTable) -> None:
        """Read the features of items from another table from now on: the bundle's, with changes of the catalog."""
        self._item_table, self._items = self._cast_table(items), Lookup(items)
        self.revision += 1
        self._histories.items = items
        self._knowledge.use_items(items)

    def use_states(self, states: UserStates) -> None:
        """Read histories from the states of the users on from now on."""
        self._histories.states, self._by_key = states, True

    @property
    def histories(self) -> EventHistories:
        """The reader of histories of events."""
        return self._histories

    @property
    def tokens(self) -> TokenHistories:
        """The reader of histories of tokens."""
        return self._tokens

    def encode_candidates(self, candidates: Candidates, query: Query, where: str = "candidates") -> EncodedCandidates:
        """Encode candidates, and add the unknown ones to those of the query.

        Args:
            where: field of the request, for errors.

        Raises:
            RequestError: 404 if items are unknown, 422 if keys have the wrong type or columns of the candidates are
                invalid.
        """
        rows = self._look_up_items(candidates.keys, query, where)
        return EncodedCandidates(rows, candidates.keys, self._encode_candidate_columns(candidates, query))

    def _encode_candidate_columns(self, candidates: Candidates, query: Query) -> Mapping[str, NDArray[Any] | Lists]:
        """Encode the columns of candidates: C entries per feature."""
        raw_columns, count = candidates.columns, len(candidates)
        if raw_columns.keys() != self.candidate_context.keys():
            do = "send a value for every candidate, null for a missing one"
            check_names("candidate_context", raw_columns, self.candidate_context, do)
        if not self._candidate_features:
            return {}
        for column, values in raw_columns.items():
            if values is not None and len(values) != count:
                message, do = f"{len(values):,} values for {count:,} candidates", "write null for a missing value"
                raise RequestError(f"candidate_context.{column}", message, "one per candidate, in their order", do, 422)
        try:
            keys = candidates.keys.tolist()
            return encode_candidates(
                self.fitted, self._candidate_features, raw_columns, query.context, query.user, keys
            )
        except DataError as error:
            raise to_request_error(error) from None

    def find_items(self, keys: NDArray[Any], where: str = "candidates") -> NDArray[np.int64]:
        """Return the rows of items, 0 for unknown items.

        Raises:
            RequestError: 422 if keys have the wrong type.
        """
        return self._items.find_rows(keys, where)

    def look_up_item(self, key: Key, allow_unknown: bool = True) -> int:
        """Return the row of an item, 0 for an unknown item.

        Raises:
            RequestError: 404 if the item is unknown and not allowed, 422 if the key has the wrong type.
        """
        row = 0 if self.fitted.schema.item is None else self._items.find_row(key, "item")
        if not (row or allow_unknown):
            self._look_up_items(to_key_array([key]), Query(key, 0), "item")
        return row

    def _look_up_items(self, keys: NDArray[Any], query: Query, where: str) -> NDArray[np.int64]:
        if self.fitted.schema.item is None:
            return np.zeros(len(keys), np.int64)
        rows = self._items.find_rows(keys, where)
        if rows.all():
            return rows
        unknown = keys[rows == 0].tolist()
        if not query.allow_unknown:
            shown = ", ".join(map(quote, unknown[:_SHOWN])) + (", ..." if len(unknown) > _SHOWN else "")
            raise RequestError(
                where,
                f"{len(unknown):,} unknown item{'s' if len(unknown) > 1 else ''}: {shown}",
                "items of the log or its item table",
                "drop them, or send allow_unknown: true to rank them as new",
                404,
            )
        query.unknown.items += unknown
        return rows

    def look_up_user(self, key: Key) -> int:
        """Return the row of a user, 0 for an unknown user.

        Raises:
            RequestError: 422 if the key has the wrong type.
        """
        return self._users.find_row(key, "user")

    def find_user(self, query: Query) -> tuple[int, int]:
        """Return the row of the user of a query, 0 for an unknown one, and the key number, 0 if nothing is read by it.

        Raises:
            RequestError: 404 if the user is unknown and not allowed.
        """
        if query.user is None:
            return 0, 0
        row = self.look_up_user(query.user)
        if not row:
            if not query.allow_unknown:
                raise RequestError(
                    "user",
                    f"the unknown user {quote(query.user)}",
                    "a user of the log or its user table",
                    "send allow_unknown: true to rank for a new user",
                    404,
                )
            query.unknown.user = True
        return row, key_number(query.user) if self._by_key else 0

    def encode_recent(self, query: Query, row: int) -> RecentColumns | None:
        """Encode the recent events of a query that are not stored. None without one.

        Args:
            row: row of the user, 0 for an unknown one.

        Raises:
            RequestError: 422 if a value has the wrong type.
        """
        if not query.recent:
            return None
        items = self._items.find_rows(to_key_array([one.item for one in query.recent]), "recent")
        return self._histories.encode_recent(query.recent, items, query.user, row, query.timestamp)

    def encode(self, query: Query) -> EncodedQuery:
        """Encode the inputs shared by all candidates.

        Raises:
            RequestError: 404 if the user is unknown, 422 if the context or a history does not fit the schema.
        """
        (row, user), timestamp = self.find_user(query), query.timestamp
        inputs: dict[str, NDArray[Any]] = {}
        if self._user_names:
            self._read(self._user_table, self._user_names, np.array([row]), timestamp, inputs)
        for name, column in self._encode_user_context(query).items():
            inputs.update(self._make_feature_tensors(name, column))
        for name, column in self._encode_context(query).items():
            inputs.update(self._make_feature_tensors(name, column))
        for name, ids in encode_calendar(self.fitted, timestamp).items():
            inputs.update(self._make_feature_tensors(name, ids))
        inputs.update(self._knowledge.read_user(user, timestamp))
        positions, recent = 0, self.encode_recent(query, row)
        states, histories = self._read_histories(query, user, row, recent)
        inputs.update(states)
        for history, columns in histories.items():
            for name, column in columns.items():
                number = not isinstance(column, Lists) and column.dtype.kind == "f"
                inputs.update(make_tensors(f"h.{history}.{name}", column, number))
                # A token is adapted once per run and cheap per candidate, so small runs would repeat the former.
                positions = max(positions, len(column) // 4 if history in self._tokens.stores else len(column))
        return EncodedQuery(row, user, inputs, positions, recent)

    def _encode_user_context(self, query: Query) -> dict[str, NDArray[Any] | Lists]:
        """Encode the features of the user whose columns the request has."""
        sent, schema = query.user_context, self.fitted.schema
        if not sent:
            return {}
        names = [name for name in self._user_names if not sent.keys().isdisjoint(schema.columns(name))]
        for name in names:
            lacking = [column for column in schema.columns(name) if column not in sent and column != schema.user]
            if lacking:
                do = "send all columns of a feature, null for a missing value"
                raise RequestError("user_context", f"no {lacking[0]!r}", ", ".join(schema.columns(name)), do, 422)
        try:
            return encode_context(self.fitted, sent, names, query.user, "user_context")
        except DataError as error:
            raise to_request_error(error) from None

    def _read_histories(
        self, query: Query, user: int, row: int, recent: RecentColumns | None
    ) -> tuple[Mapping[str, NDArray[np.float32]], dict[str, Columns]]:
        """Return the states of the user by input, and the histories after them."""
        histories: dict[str, Columns] = {}
        states: Mapping[str, NDArray[np.float32]] = self._start_states
        if self.fitted.schema.prejoined:
            histories.update(self._histories.encode_request_histories(query.history))
        elif query.history is not None:
            raise RequestError(
                "history", "a history in the request", "none: this bundle stores histories itself", "leave it out", 422
            )
        elif self._histories.states is not None:
            states, own = self._histories.read_after_states(user, row, query.timestamp, recent)
            histories.update(own)
        else:
            histories.update(self._histories.read_stored(user, row, query.timestamp, recent))
        for name, columns in self._tokens.read(user, query.timestamp).items():
            histories[name] = {**columns}
        return states, histories

    def build_item_tensors(self, items: EncodedCandidates, timestamp: int) -> dict[str, NDArray[Any]]:
        """Build the inputs of the programs that differ between candidates, as of a timestamp."""
        inputs: dict[str, NDArray[Any]] = {}
        self._read(self._item_table, self._item_names, items.rows, timestamp, inputs)
        for name, column in items.columns.items():
            inputs.update(self._make_feature_tensors(name, column))
        inputs.update(self._knowledge.read_items(items.rows, items.keys, timestamp))
        return inputs

    def read_seen_events(self, query: Query) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return the rows of the items of all stored events of the user strictly before the query, and their times."""
        seen: tuple[NDArray[Any], NDArray[np.int64]] | None = query.seen.get(self)
        if seen is None:
            encoded = query.encode(self)
            seen = self._histories.read_seen_items(encoded.user, encoded.row, query.timestamp, encoded.recent)
            query.seen[self] = seen
        return seen

    @property
    def remote_stores(self) -> list[RemoteStore]:
        """Stores on servers that ``encode`` and ``read_seen_events`` read."""
        live = self._histories.live
        own = [live.backend] if live is not None and isinstance(live.backend, RemoteStore) else []
        return [*self._tokens.remote_stores, *own]

    def close(self) -> None:
        """Close the stores."""
        self._tokens.close()
        self._knowledge.close()

    def _cast_table(self, table: EntityTable) -> EntityTable:
        """Return a table with its columns in the types of the ONNX model."""

        def cast(columns: Mapping[str, NDArray[Any] | Lists]) -> dict[str, NDArray[Any] | Lists]:
            return {
                name: column
                if isinstance(column, Lists)
                else make_tensors(name, column, self._fields[name].kind in _NUMBERS)[name]
                for name, column in columns.items()
            }

        return EntityTable(table.keys, cast(table.columns), table.versions, cast(table.dated))

    def _read(
        self,
        table: EntityTable,
        names: Sequence[str],
        rows: NDArray[Any],
        timestamp: int,
        inputs: dict[str, NDArray[Any]],
    ) -> None:
        """Add columns of rows of a table, as valid strictly before the timestamp, to the inputs."""
        values = table.as_of(rows, timestamp)
        for name in names:
            column = values[name]
            if isinstance(column, Lists):
                inputs.update(self._make_feature_tensors(name, column))
            else:
                inputs[f"f.{name}"] = column

    def _make_feature_tensors(self, name: str, column: NDArray[Any] | Lists) -> dict[str, NDArray[Any]]:
        return make_tensors(f"f.{name}", column, number=self._fields[name].kind in _NUMBERS)

    def _encode_context(self, query: Query) -> dict[str, NDArray[Any] | Lists]:
        context = query.context
        if context.keys() != self.context.keys():
            further = query.further_context - self.context.keys()
            received = [column for column in context if column not in further]
            check_names("context", received, self.context, "write null for a missing value")
        if not self._event_features:
            return {}
        try:
            return encode_context(self.fitted, context, self._event_features, query.user)
        except DataError as error:
            raise to_request_error(error) from None
