"""State of a service that records events: token stores, and the events since its bundles and since its source model's.

Stores without a configured location are in one folder, by default ``BUNDLE.state`` next to the bundle::

    state.json            digests of its bundles
    tokens/               copies of the bundle's token stores, to which tokens are added
    history-2/            events since the bundle, if its ONNX model reads histories of events
    history-DIGEST-2/     events since a further bundle of a pipeline, likewise
    source-2/             events since the bundle of the source model, likewise
    recorded/             raw values of these events, for the next log
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from longrec.errors import BundleError, StoreError
from longrec.exporting.bundle import Bundle
from longrec.exporting.store_copies import copy_tokens, is_remote
from longrec.features.manifest import read_manifest
from longrec.serve.live_events import LiveEvents, keeps_events
from longrec.serve.online_source import OnlineSource
from longrec.serve.recorded_events import RecordedEvents, locate_recorded
from longrec.serve.settings import Settings
from longrec.serve.state_store import StateStore, open_states
from longrec.serve.token_histories import check_store
from longrec.store.remote_client import mask_password
from longrec.store.remote_store import RemoteStore
from longrec.store.token_store import TokenStore

FORMAT = "longrec-state-1"
NAME = "state.json"


class ServiceState:
    """All stores of one service, opened for writing.

    Args:
        bundles: bundles of the service. Tokens are those of the first one.
        settings: location of the stores, and of the bundle of a source model, if tokens are recorded.

    Attributes:
        token_locations: store of each token history that the source writes.
        stores: token stores, by location.
        live: events since each bundle whose histories of events are read, by its digest.
        source: the source model, with the events since its bundle. None without one.
        recorded: raw values of the events, for the next log. None if no histories of events are read.

    Raises:
        BundleError: if the source model wrote none of the tokens that the bundle reads, or nothing reads events.
        StoreError: if the state belongs to other bundles, or another process writes to a store.
    """

    def __init__(self, bundles: Sequence[Bundle], settings: Settings) -> None:
        self.location = settings.state or f"{bundles[0].path}.state"
        self.token_locations: dict[str, str] = {}
        self.stores: dict[str, TokenStore] = {}
        self.live: dict[str, LiveEvents] = {}
        self.source: OnlineSource | None = None
        self.recorded: RecordedEvents | None = None
        self._bundles = bundles
        self._closing = ExitStack()
        try:
            self._open(settings)
        except BaseException:
            self.close()
            raise

    @property
    def exclusive_folders(self) -> list[str]:
        """Folders that only one process may write to."""
        has_events = bool(self.live) or (self.source is not None and self.source.live is not None)
        locations = [*self.stores, *([self.location] if has_events else [])]
        return [location for location in locations if not is_remote(location)]

    @property
    def remote_stores(self) -> list[RemoteStore]:
        """Stores on servers that it writes to."""
        live = [*self.live.values(), *([] if self.source is None or self.source.live is None else [self.source.live])]
        backends = [*(store.backend for store in self.stores.values()), *(one.backend for one in live)]
        backends += [] if self.recorded is None else [self.recorded.backend]
        return [backend for backend in backends if isinstance(backend, RemoteStore)]

    def _open(self, settings: Settings) -> None:
        first, *others = self._bundles
        for other in others:
            check_same_units(first, other)
        kept = {one.digest: one for one in self._bundles if _keeps_events(one)}
        source = pristine = None
        if settings.events is not None:
            source = Bundle.open(settings.events, settings.private)
            self._closing.callback(source.close)
            pristine = self._open_source(source, settings)
        elif not kept:
            problem = "no history of events that a bundle stores"
            do = "give --events SOURCE.bundle for a history of tokens, or send histories in the requests"
            raise BundleError(f"{first.path}: events", problem, "a bundle that reads its own events", do)
        source_keeps = source is not None and _keeps_events(source)
        if (kept or source_keeps) and not is_remote(self.location):
            _claim_folder(Path(self.location), self._bundles)
        for digest, bundle in kept.items():
            name = "history" if bundle is first else f"history-{digest[:12]}"
            self.live[digest] = self._open_live_events(name, bundle)
        self.source = pristine
        if source is not None and source_keeps:
            self.source = OnlineSource(source, self._open_live_events("source", source))
            self._closing.callback(self.source.close)
        if kept or source_keeps:
            location = locate_recorded(str(self.location))
            self.recorded = RecordedEvents.open(location, first.digest, first.fitted.schema)
            self._closing.callback(self.recorded.close)
            if not is_remote(location):
                self.recorded.compact()

    def _open_source(self, source: Bundle, settings: Settings) -> OnlineSource:
        """Open a source model without later events, and the stores of its tokens for writing."""
        bundle = self._bundles[0]
        check_same_units(bundle, source)
        pristine = OnlineSource(source)
        self._closing.callback(pristine.close)
        pristine.check()
        for name, own in bundle.manifest.tokens.items():
            self._open_tokens(name, settings.tokens.get(name) or own, bundle, pristine)
        if not self.token_locations:
            message = f"version {pristine.facts.version} of {source.manifest.source.get('run')!r}"
            names = ", ".join(bundle.manifest.tokens) or "none, the bundle reads no tokens"
            raise BundleError(
                f"{source.path}: events",
                f"{message} wrote none of the tokens that {bundle.path} reads",
                f"the source of one of its histories of tokens ({names})",
                "export the source from the same tokens: longrec export tokens/v1 source.bundle",
            )
        return pristine

    def _open_tokens(self, name: str, location: str, bundle: Bundle, source: OnlineSource) -> None:
        """Open the store of a history for writing if its tokens are the source model's."""
        inside = not is_remote(location) and location == bundle.manifest.tokens[name]
        opened = bundle.resolve_store(location) if inside else location
        with TokenStore.open(opened) as store:
            check_store(store, bundle, name)
            if not source.matches(store.info):
                return
            if store.info.source.get("compress", {}).get("keep") == "positive":
                problem, expected = (
                    "tokens of positive impressions only",
                    "tokens of all impressions, since an event precedes its label",
                )
                raise BundleError(mask_password(opened), problem, expected, "compress with filter=all")
            if not source.supports_codec(store.info.codec):
                raise BundleError(opened, f"tokens as {store.info.codec}", "a source with codebooks")
            if inside:
                opened = self._copy_tokens(store, location, bundle)
        if opened not in self.stores:
            written = TokenStore.open(opened, writable=True)
            self._closing.callback(written.close)
            if not is_remote(opened):
                written.compact()
            self.stores[opened] = written
        self.token_locations[name] = opened

    def _copy_tokens(self, store: TokenStore, location: str, bundle: Bundle) -> str:
        """Return the copy of a store of the bundle, and create it at the first start."""
        if is_remote(self.location):
            raise StoreError(
                mask_password(self.location),
                "a server, but the tokens are in the bundle",
                "tokens on a server too",
                "give --tokens HISTORY=redis://..., or a folder for --state",
            )
        folder = Path(self.location)
        _claim_folder(folder, self._bundles)
        if not (folder / location).exists():
            half = folder / f"{location}.partial"
            half.parent.mkdir(parents=True, exist_ok=True)
            copy_tokens(store, half)
            half.rename(folder / location)
        return str(folder / location)

    def open_states(self, bundle: Bundle, settings: Settings) -> StateStore:
        """Open the store of the states of the users of a bundle. Events that are recorded remove states from it."""
        what = f"states-{bundle.digest[:12]}"
        location = self._locate(what if is_remote(self.location) else f"{what}.sqlite")
        store = open_states(location, settings.state_days * 86_400, settings.most_states)
        self._closing.callback(store.close)
        self.live[bundle.digest].removals.append(store.remove_all)
        return store

    def _locate(self, what: str) -> str:
        if not is_remote(self.location):
            return str(Path(self.location, what))
        url = urlsplit(self.location)
        return urlunsplit(url._replace(path=f"{url.path}-{what}"))

    def _open_live_events(self, what: str, bundle: Bundle) -> LiveEvents:
        location = self._locate(what)
        live = LiveEvents(location, bundle)
        self._closing.callback(live.close)
        if not is_remote(location):
            live.compact()
        return live

    def close(self) -> None:
        """Close all stores."""
        self._closing.close()


def _keeps_events(bundle: Bundle) -> bool:
    return bundle.store is not None and keeps_events(bundle.fitted)


def _claim_folder(folder: Path, bundles: Sequence[Bundle]) -> None:
    """Create a folder of state, or check that an existing one belongs to the bundles."""
    path = folder / NAME
    own: dict[str, Any] = {"format": FORMAT, "bundle": bundles[0].digest}
    further = sorted({bundle.digest for bundle in bundles[1:] if _keeps_events(bundle)})
    if further:
        own["further"] = further
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise StoreError(
                str(folder), "a folder with other files", "a folder of state, or a new one", "give another --state"
            )
        half = folder / f".{NAME}"
        half.write_text(json.dumps(own))
        half.rename(path)
        return
    content = read_manifest(path, FORMAT, "a folder of state", "give another --state", StoreError)
    if content.get("bundle") != own["bundle"] or content.get("further", further) != further:
        raise StoreError(
            str(folder),
            "the events of another bundle",
            f"those of {', '.join(str(bundle.path) for bundle in bundles)}",
            "give another --state, or remove this one: its events are part of the next log",
        )


def check_same_units(bundle: Bundle, source: Bundle) -> None:
    """Check that two bundles have keys of one type and times of one unit.

    Raises:
        BundleError: if they differ.
    """
    units = [
        "none" if (time := one.fitted.schema.time) is None else "steps" if time.unit == "step" else "timestamps"
        for one in (bundle, source)
    ]
    keys = ["integers" if one.users.keys.numeric else "text" for one in (bundle, source)]
    items = ["integers" if one.items.keys.numeric else "text" for one in (bundle, source)]
    for what, (own, other) in {"times": units, "users": keys, "items": items}.items():
        if own != other:
            raise BundleError(str(source.path), f"{what} as {other}", f"{what} as {own}, as in {bundle.path}")
