"""From a request to a query and candidates: key look-ups, the fitted encoders, and the past from the stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import DataError, RequestError
from longrec.export.bundle import Bundle
from longrec.export.inputs import make_tensors
from longrec.export.raw_columns import (
    encode_calendar,
    encode_candidates,
    encode_context,
    list_candidate_columns,
    list_context_columns,
    list_row_features,
)
from longrec.features.encode import Lists
from longrec.features.table import EntityTable
from longrec.pipeline.candidates import Candidates
from longrec.pipeline.stage import Query
from longrec.serve.histories import Columns, EventHistories, check_names, to_request_error
from longrec.serve.knowledge_features import KnowledgeFeatures, key_number
from longrec.serve.live_events import LiveEvents
from longrec.serve.lookup import Lookup
from longrec.serve.request_json import Key, RankRequest
from longrec.serve.token_histories import TokenHistories

_NUMBERS = ("dense", "numbers")
_SHOWN = 5
"""So many unknown keys are named in a refusal."""


class RequestEncoder:
    """Turns requests into what the program reads. It keeps no state of a request.

    Args:
        tokens: where tokens are read; by default the copies in the bundle.
        live: events since the bundle, where such are recorded.
    """

    def __init__(self, bundle: Bundle, tokens: TokenHistories | None = None, live: LiveEvents | None = None) -> None:
        self.bundle, self.fitted = bundle, bundle.fitted
        self._fields = {field.name: field for field in self.fitted.fields().features}
        self.context, self.candidate_context = list_context_columns(self.fitted), list_candidate_columns(self.fitted)
        self._event_features = list_row_features(self.fitted, "event")
        self._candidate_features = list_row_features(self.fitted, "candidate")
        self._user_names, self._item_names = self.fitted.of_table("user"), self.fitted.of_table("item")
        self._user_table, self._item_table = self._cast_table(bundle.users), self._cast_table(bundle.items)
        self._users, self._items = Lookup(bundle.users), Lookup(bundle.items)
        self._histories = EventHistories(bundle, live)
        self._tokens = TokenHistories(bundle) if tokens is None else tokens
        self._knowledge = KnowledgeFeatures(bundle)
        # Reading by the users' own keys costs a hash of text; a bundle that needs none does without.
        self._by_key = live is not None or bool(bundle.manifest.tokens or bundle.manifest.knowledge)

    def build_candidates(self, request: RankRequest, where: str = "candidates") -> tuple[Candidates, list[Key]]:
        """The items to rank, and which of them are unknown.

        Args:
            where: what a message names.

        Raises:
            RequestError: 404 unknown items, 422 keys of the wrong type, or columns of the candidates that do not fit.
        """
        keys, rows, unknown = self.look_up_items(request.candidates, request.allow_unknown, where)
        return Candidates.of(rows, keys, "request", self._encode_candidate_columns(request)), unknown

    def _encode_candidate_columns(self, request: RankRequest) -> Mapping[str, NDArray[Any] | Lists]:
        """What a request tells of its candidates, encoded: C entries by feature."""
        raw_columns, count = request.candidate_context, len(request.candidates)
        if raw_columns.keys() != self.candidate_context.keys():
            do = "give a value for every candidate, null where one is missing"
            check_names("candidate_context", set(raw_columns), self.candidate_context, do)
        if not self._candidate_features:
            return {}
        for column, values in raw_columns.items():
            if values is not None and len(values) != count:
                message, do = f"{len(values):,} values for {count:,} candidates", "write null where a value is missing"
                raise RequestError(f"candidate_context.{column}", message, "one a candidate, in their order", do, 422)
        try:
            return encode_candidates(
                self.fitted, self._candidate_features, raw_columns, request.context, request.user, request.candidates
            )
        except DataError as error:
            raise to_request_error(error) from None

    def look_up_items(
        self, item_keys: Sequence[Key], allow_unknown: bool, where: str
    ) -> tuple[NDArray[Any], NDArray[Any], list[Key]]:
        """Keys of items as an array, their rows ``[C]``, and those that are in no table.

        Raises:
            RequestError: 404 unknown items, unless they are allowed; 422 keys of the wrong type.
        """
        keys, rows = self._items.find_rows(item_keys, where)
        if rows.all():
            return keys, rows, []
        unknown = [item_keys[index] for index in np.flatnonzero(rows == 0).tolist()]
        if not allow_unknown:
            shown = ", ".join(map(repr, unknown[:_SHOWN])) + (", ..." if len(unknown) > _SHOWN else "")
            raise RequestError(
                where,
                f"{len(unknown):,} unknown item{'s' if len(unknown) > 1 else ''}: {shown}",
                "items of the log or its item table",
                "drop them, or send allow_unknown: true to rank them as new",
                404,
            )
        return keys, rows, unknown

    def look_up_user(self, key: Key) -> int:
        """The row of a user, 0 for somebody who is in no table.

        Raises:
            RequestError: 422 a key of the wrong type.
        """
        return int(self._users.find_rows([key], "user")[1][0])

    def build_query(self, request: RankRequest, timestamp: int) -> tuple[Query, bool]:
        """Everything that is the same for all candidates, and whether the user is unknown.

        Raises:
            RequestError: 404 an unknown user, 422 a context or a history that does not fit the schema.
        """
        row = self.look_up_user(request.user)
        if not row and not request.allow_unknown:
            raise RequestError(
                "user",
                f"the unknown user {request.user!r}",
                "a user of the log or its user table",
                "send allow_unknown: true to rank for somebody new",
                404,
            )
        user = key_number(request.user) if self._by_key else 0
        inputs: dict[str, NDArray[Any]] = {}
        if self._user_names:
            self._read(self._user_table, self._user_names, np.array([row]), timestamp, inputs)
        for name, column in self._encode_context(request.context, request.user).items():
            inputs.update(self._feature(name, column))
        for name, ids in encode_calendar(self.fitted, timestamp).items():
            inputs.update(self._feature(name, ids))
        inputs.update(self._knowledge.read_user(user, timestamp))
        positions = 0
        for history, columns in self._read_histories(request, user, row, timestamp).items():
            for name, column in columns.items():
                number = not isinstance(column, Lists) and column.dtype.kind == "f"
                inputs.update(make_tensors(f"h.{history}.{name}", column, number))
                # A token is adapted once a run and weighed cheaply a candidate: few candidates a run repeat the former.
                positions = max(positions, len(column) // 4 if history in self._tokens.stores else len(column))
        return Query(row, timestamp, inputs, positions), not row

    def _read_histories(self, request: RankRequest, user: int, row: int, timestamp: int) -> dict[str, Columns]:
        histories: dict[str, Columns] = {}
        if self.fitted.schema.prejoined:
            histories.update(self._histories.encode_request_histories(request.history))
        elif request.history is not None:
            raise RequestError(
                "history", "a history in the request", "none: this bundle keeps histories itself", "leave it out", 422
            )
        else:
            histories.update(self._histories.read_stored(user, row, timestamp))
        for name, columns in self._tokens.read(user, timestamp).items():
            histories[name] = {**columns}
        return histories

    def build_item_tensors(
        self,
        rows: NDArray[Any],
        keys: NDArray[Any],
        timestamp: int,
        columns: Mapping[str, NDArray[Any] | Lists] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """The program's inputs that differ between candidates.

        Args:
            rows: ``[C]`` of the item table.
            keys: ``[C]`` as the log has them.
            told: the columns of ``candidates``, C entries each.
        """
        inputs: dict[str, NDArray[Any]] = {}
        self._read(self._item_table, self._item_names, rows, timestamp, inputs)
        for name, column in (columns or {}).items():
            inputs.update(self._feature(name, column))
        inputs.update(self._knowledge.read_items(rows, keys, timestamp))
        return inputs

    def close(self) -> None:
        """Let go of the stores that others write to."""
        self._tokens.close()
        self._knowledge.close()

    def _cast_table(self, table: EntityTable) -> EntityTable:
        """A table with its columns in the types of the program."""

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
        """Add the columns of some rows of a table, as they stood strictly before the moment."""
        values = table.as_of(rows, timestamp)
        for name in names:
            column = values[name]
            if isinstance(column, Lists):
                inputs.update(self._feature(name, column))
            else:
                inputs[f"f.{name}"] = column

    def _feature(self, name: str, column: NDArray[Any] | Lists) -> dict[str, NDArray[Any]]:
        return make_tensors(f"f.{name}", column, number=self._fields[name].kind in _NUMBERS)

    def _encode_context(self, context: Mapping[str, Any], user: Key) -> dict[str, NDArray[Any] | Lists]:
        if context.keys() != self.context.keys():
            check_names("context", set(context), self.context, "write null where a value is missing")
        if not self._event_features:
            return {}
        try:
            return encode_context(self.fitted, context, self._event_features, user)
        except DataError as error:
            raise to_request_error(error) from None
