"""Token histories of a request, read by the raw key of the user and the request's timestamp, as in training."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import BundleError, UnknownName
from longrec.exporting.bundle import Bundle
from longrec.exporting.store_copies import is_remote
from longrec.features.computed_columns import compute_time_gaps
from longrec.features.fields import TIME_GAP, TOKEN, VERSION
from longrec.features.token_columns import TokenSpec, build_token_columns
from longrec.store.disclosure import REMEDY, assess_disclosure
from longrec.store.remote_client import mask_password
from longrec.store.remote_store import RemoteStore
from longrec.store.token_store import TokenStore
from longrec.store.visibility import read_visible_tokens

_REFRESH_SECONDS = 1.0
"""Seconds between queries to a remote store for new source versions."""


@dataclass
class _OpenStore:
    """An opened store, which other processes may write to."""

    store: TokenStore
    changes: bool
    refreshed_at: float = 0.0
    refreshing: threading.Lock = field(default_factory=threading.Lock)

    def refresh(self) -> None:
        """Load what other processes have written since."""
        if not self.changes:
            return
        if not is_remote(self.store.location):
            self.store.refresh()
        elif self.refreshing.acquire(blocking=False):  # several threads read a remote store
            try:
                now = time.monotonic()
                if now - self.refreshed_at >= _REFRESH_SECONDS:  # it returns all tokens, only versions are cached
                    self.store.refresh()
                    self.refreshed_at = now
            finally:
                self.refreshing.release()


@dataclass(frozen=True)
class _History:
    """Parameters of reading one history, fixed when the service starts."""

    name: str
    features: tuple[str, ...]
    max_length: int
    spec: TokenSpec
    live: _OpenStore
    columns: tuple[str, ...]
    gaps: Any


class TokenHistories:
    """Reader of the token histories of a bundle's ONNX model.

    Args:
        bundle: the opened bundle.
        locations: stores used instead of the bundle's own copies, by history.
        written: stores that this process has open for writing, by location.

    Attributes:
        stores: stores that are read, by history.

    Raises:
        BundleError: if a store does not fit the bundle.
        UnknownName: if a location is passed for a history that the bundle does not have.
    """

    def __init__(
        self,
        bundle: Bundle,
        locations: Mapping[str, str] | None = None,
        written: Mapping[str, TokenStore] | None = None,
    ) -> None:
        locations, written = dict(locations or {}), dict(written or {})
        for name in locations:
            if name not in bundle.manifest.tokens:
                raise UnknownName("history of tokens", name, bundle.manifest.tokens)
        schema, opened = bundle.fitted.schema, dict[str, _OpenStore]()
        self._read: list[_History] = []
        for name, own in bundle.manifest.tokens.items():
            location = locations.get(name) or bundle.resolve_store(own)
            if location not in opened:
                changes = name in locations or is_remote(location)
                is_writable = location in written
                opened[location] = _OpenStore(
                    written[location] if is_writable else TokenStore.open(location), changes and not is_writable
                )
            store, history = opened[location].store, schema.histories[name]
            check_store(store, bundle, name)
            step = store.info.unit == "step"
            columns = ["visible", *_list_store_columns(history.features)]
            gaps = partial(compute_time_gaps, per_second=1 if step else 1_000)
            self._read.append(
                _History(
                    name,
                    history.features,
                    history.max_length,
                    bundle.fitted.tokens[name],
                    opened[location],
                    tuple(columns),
                    gaps,
                )
            )
        self.stores = {history.name: history.live.store for history in self._read}
        self._opened = list(opened.values())
        self._written = set(written)

    def read(self, user: int, timestamp: int) -> dict[str, dict[str, NDArray[Any]]]:
        """Return the columns of each history, by input name, as available strictly before the timestamp.

        Args:
            user: key number.
            timestamp: milliseconds UTC, or a step.
        """
        return {name: columns for name, (_, columns) in self.read_dated(user, timestamp).items()}

    def read_dated(self, user: int, timestamp: int) -> dict[str, tuple[NDArray[np.int64], dict[str, NDArray[Any]]]]:
        """Return the timestamps ``[N]`` of the events of each history, and its columns, as ``read``."""
        histories: dict[str, tuple[NDArray[np.int64], dict[str, NDArray[Any]]]] = {}
        now = np.array([timestamp], np.int64)
        for live in self._opened:
            live.refresh()
        for history in self._read:
            store = history.live.store
            tokens = read_visible_tokens(store, user, timestamp, history.max_length, history.columns)
            columns, _ = build_token_columns(history.spec, history.name, history.features, tokens, now, history.gaps)
            histories[history.name] = tokens.times, columns
        return histories

    @property
    def remote_stores(self) -> list[RemoteStore]:
        """Stores on servers."""
        return [backend for store in self.stores.values() if isinstance(backend := store.backend, RemoteStore)]

    def close(self) -> None:
        """Close the stores that were opened here."""
        for live in self._opened:
            if live.store.location not in self._written:
                live.store.close()


def _list_store_columns(of: tuple[str, ...]) -> list[str]:
    """List the columns of a store that the columns of a history need."""
    names = {TOKEN: "vectors", VERSION: "version"}
    return [names.get(column, column) for column in of if column != TIME_GAP]


def check_store(store: TokenStore, bundle: Bundle, name: str) -> None:
    """Check that a store fits a bundle.

    Raises:
        BundleError: if the tokens have another width, other side columns, other keys or another time unit, or disclose
            data that was not available yet.
    """
    info, spec, schema = store.info, bundle.fitted.tokens[name], bundle.fitted.schema
    where = f"histories.{name}: {mask_password(store.location)}"
    keys = "int64" if bundle.users.keys.numeric else "text"
    unit = "step" if schema.time is not None and schema.time.unit == "step" else "ms"
    expected = {
        "numbers per token": (info.width, spec.width),
        "slots": (info.slots, spec.slots),
        "side columns": (dict(info.sides), dict(spec.sides)),
        "type of user keys": (info.keys, keys),
        "unit of time": (info.unit, unit),
    }
    for what, (actual, wanted) in expected.items():
        if actual != wanted:
            raise BundleError(where, f"{what}: {actual}", f"{wanted}, as when the bundle was exported")
    disclosure = assess_disclosure(info, schema)
    if disclosure.leaks and not schema.histories[name].allow_leak:
        raise BundleError(
            where, f"it discloses data that was not available: {disclosure.summary}", "a store that does not", REMEDY
        )
