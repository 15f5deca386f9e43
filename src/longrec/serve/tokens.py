"""The tokens of a request: fetched by the user's own key and the request's moment, as training joins them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import BundleError, UnknownName
from longrec.export.bundle import Bundle
from longrec.export.snapshot import is_remote, shown
from longrec.features.fields import TIME_GAP, TOKEN, VERSION
from longrec.features.moments import time_gaps
from longrec.features.tokens import TokenSpec, token_columns
from longrec.store.disclosure import REMEDY, assess_disclosure
from longrec.store.token_store import TokenStore
from longrec.store.visibility import read_visible_tokens

_AGAIN = 1.0
"""Seconds after which a server is asked again whether there are new versions of the source."""


@dataclass
class _Live:
    """A store and who else writes to it."""

    store: TokenStore
    changes: bool
    asked: float = 0.0

    def renew(self) -> None:
        """See what another process has written since."""
        if not self.changes:
            return
        if is_remote(self.store.location):  # a server always answers with all tokens; only versions are remembered
            now = time.monotonic()
            if now - self.asked < _AGAIN:
                return
            self.asked = now
        self.store.refresh()


@dataclass(frozen=True)
class _History:
    """How one history is read: settled once, when the service starts."""

    name: str
    of: tuple[str, ...]
    last: int
    spec: TokenSpec
    live: _Live
    columns: tuple[str, ...]
    gaps: Any


class TokenHistories:
    """The histories of tokens that a bundle's program reads.

    Args:
        places: where tokens are read in place of the bundle's own copy, by history.
        written: stores that this process holds for writing, by place.

    Attributes:
        stores: what is read, by history.

    Raises:
        BundleError: a store that does not fit the bundle.
        UnknownName: a place for a history that the bundle has not.
    """

    def __init__(
        self, bundle: Bundle, places: Mapping[str, str] | None = None, written: Mapping[str, TokenStore] | None = None
    ) -> None:
        places, written = dict(places or {}), dict(written or {})
        for name in places:
            if name not in bundle.manifest.tokens:
                raise UnknownName("history of tokens", name, bundle.manifest.tokens)
        schema, opened = bundle.fitted.schema, dict[str, _Live]()
        self._read: list[_History] = []
        for name, own in bundle.manifest.tokens.items():
            place = places.get(name) or bundle.place(own)
            if place not in opened:
                changes = name in places or is_remote(place)
                ours = place in written
                opened[place] = _Live(written[place] if ours else TokenStore.open(place), changes and not ours)
            store, history = opened[place].store, schema.histories[name]
            check(store, bundle, name)
            step = store.info.unit == "step"
            columns = ["visible", *_stored(history.of)]
            gaps = partial(time_gaps, per_second=1 if step else 1_000)
            self._read.append(
                _History(
                    name,
                    history.of,
                    history.last,
                    bundle.fitted.tokens[name],
                    opened[place],
                    tuple(columns),
                    gaps,
                )
            )
        self.stores = {history.name: history.live.store for history in self._read}
        self._opened = list(opened.values())
        self._written = set(written)

    def columns(self, user: int, moment: int) -> dict[str, dict[str, NDArray[Any]]]:
        """Columns of each history, by the names of the program, as known strictly before the moment.

        Args:
            user: key number.
        """
        past: dict[str, dict[str, NDArray[Any]]] = {}
        now = np.array([moment], np.int64)
        for live in self._opened:
            live.renew()
        for history in self._read:
            store = history.live.store
            tokens = read_visible_tokens(store, user, moment, history.last, history.columns)
            past[history.name], _ = token_columns(history.spec, history.name, history.of, tokens, now, history.gaps)
        return past

    def close(self) -> None:
        """Let go of the stores that were opened here."""
        for live in self._opened:
            if live.store.location not in self._written:
                live.store.close()


def _stored(of: tuple[str, ...]) -> list[str]:
    """What is read of a store for columns of a history."""
    names = {TOKEN: "vectors", VERSION: "version"}
    return [names.get(column, column) for column in of if column != TIME_GAP]


def check(store: TokenStore, bundle: Bundle, name: str) -> None:
    """Hold a store to what a bundle was exported with.

    Raises:
        BundleError: tokens of another width or with other side columns, other keys, another unit of time, or tokens
            that disclose more than was known.
    """
    info, spec, schema = store.info, bundle.fitted.tokens[name], bundle.fitted.schema
    where = f"histories.{name}: {shown(store.location)}"
    keys = "int64" if bundle.users.keys.numeric else "text"
    unit = "step" if schema.time is not None and schema.time.unit == "step" else "ms"
    expected = {
        "numbers a token": (info.width, spec.width),
        "slots": (info.slots, spec.slots),
        "side columns": (dict(info.sides), dict(spec.sides)),
        "users named by": (info.keys, keys),
        "times in": (info.unit, unit),
    }
    for what, (found, wanted) in expected.items():
        if found != wanted:
            raise BundleError(where, f"{what}: {found}", f"{wanted}, as when the bundle was exported")
    told = assess_disclosure(info, schema)
    if told.leaks and not schema.histories[name].allow_leak:
        raise BundleError(where, f"tells more than was known: {told.summary}", "a store that does not", REMEDY)
