"""Tokens of recorded events: encoded by the source model, and written so that no earlier response changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.features.history_columns import NEVER
from longrec.pipeline.candidates import Candidates
from longrec.pipeline.stage import Query
from longrec.serve import feedback
from longrec.serve.event_reader import Event
from longrec.serve.online_source import OnlineSource
from longrec.store.amend import Token
from longrec.store.token_store import TokenStore


@dataclass(frozen=True)
class EncodedToken:
    """An event as a token of one store.

    Attributes:
        vectors: its new vector ``[1, W]``, or None if the call has no context.
        side_ids, available_at: id and availability time of each side column.
    """

    vectors: NDArray[Any] | None
    side_ids: Mapping[str, int]
    available_at: Mapping[str, int]


class EventTokens:
    """Encoder and writer of the tokens of events.

    Args:
        source: the source model.
        overwrites: replace the token of an event that is recorded again, because there is no clock.
    """

    def __init__(self, source: OnlineSource, overwrites: bool) -> None:
        self._source, self._overwrites = source, overwrites

    def encode_all(
        self, event: Event, stores: Sequence[TokenStore], tokens: Sequence[Token | None]
    ) -> list[EncodedToken]:
        """Encode an event for each token store, in which it may have a token already.

        Raises:
            DataError, RequestError: if a value has the wrong type.
        """
        sides = [self._encode_sides(event, store, token) for store, token in zip(stores, tokens)]
        hold = event.request.context is None
        vectors = [None if hold else self._encode(event, store) for store in stores]
        return [EncodedToken(vector, *own) for vector, own in zip(vectors, sides)]

    def plan_write(
        self,
        event: Event,
        store: TokenStore,
        token: Token | None,
        encoded: EncodedToken,
        now: int,
    ) -> tuple[int, list[Callable[[], None]]]:
        """Return the time from which this revision of a token is visible, and the functions that write it.

        Args:
            token: the recorded token, or None.
            encoded: result of ``encode_all``.
            now: time of recording.
        """
        vectors, side_ids, available_at = encoded.vectors, encoded.side_ids, encoded.available_at
        if token is None or (self._overwrites and vectors is not None):
            assert vectors is not None
            visible_at = now if token is None else token.visible
            return visible_at, [
                partial(self._append, event, store, vectors, visible_at, event.instance, side_ids, available_at)
            ]
        visible_at = max(now, token.visible)
        if vectors is not None and not token.holds(vectors):
            return visible_at, [
                partial(self._append, event, store, vectors, visible_at, token.instance + 1, side_ids, available_at)
            ]
        if not self._overwrites and any(
            token.available_at[name] != NEVER and token.sides[name] != side_ids[name] for name in side_ids
        ):
            return visible_at, [partial(token.amend, side_ids, available_at, visible_at)]
        changed = side_ids != token.sides or available_at != token.available_at
        return token.visible, [partial(token.amend, side_ids, available_at)] if changed else []

    def _encode(self, event: Event, store: TokenStore) -> NDArray[Any]:
        """Encode an event as a token of a store, ``[1, W]``."""
        request, source = event.request, self._source
        assert request.context is not None
        context = {column: request.context[column] for column in source.encoder.context}
        own: dict[str, list[Any] | None] = {
            column: [request.context[column]] for column in source.encoder.candidate_context
        }
        query = Query(request.user, event.start, context, allow_unknown=True)
        return source.encode(query, Candidates.of([request.item], "event", own), store.info.codec)

    def _encode_sides(
        self, event: Event, store: TokenStore, token: Token | None
    ) -> tuple[dict[str, int], dict[str, int]]:
        """Return ids and availability times of the side columns. Feedback that was available before stays."""
        side_ids, available_at = {}, {}
        for name, ids in store.info.sides.items():
            encoded = feedback.encode_side(self._source.encoder.fitted, name, event.feedback)
            old = (ids, NEVER) if token is None else (token.sides[name], token.available_at[name])
            unchanged = encoded is not None and encoded[0] == old[0] and old[1] != NEVER and not self._overwrites
            side_ids[name], available_at[name] = old if encoded is None or unchanged else encoded
        return side_ids, available_at

    def _append(
        self,
        event: Event,
        store: TokenStore,
        vectors: NDArray[Any],
        visible: int,
        instance: int,
        side_ids: Mapping[str, int],
        available_at: Mapping[str, int],
    ) -> None:
        store.append(
            np.array([event.user], np.int64),
            np.array([event.at], np.int64),
            instance=np.array([instance], np.int64),
            visible=np.array([visible], np.int64),
            version=np.array([self._source.facts.version], np.int64),
            vectors=vectors,
            sides={name: np.array([code], np.int64) for name, code in side_ids.items()},
            available_at={name: np.array([since], np.int64) for name, since in available_at.items()},
        )
