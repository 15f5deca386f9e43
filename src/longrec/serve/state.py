"""What a service that takes events writes to: token stores, and the events since its bundle and since its source's.

Whatever is not named lies in one folder, by default ``BUNDLE.state`` beside the bundle::

    state.json        which bundle it belongs to
    tokens/           copies of the bundle's token stores, which go on from there
    history-2/        events since the bundle, where its program reads histories of events
    source-2/         the same for the source
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from longrec.errors import BundleError, StoreError
from longrec.export.bundle import Bundle
from longrec.export.snapshot import copy_tokens, is_remote, shown
from longrec.features.manifest import read_manifest
from longrec.serve.live import LiveEvents, reads_events
from longrec.serve.settings import Settings
from longrec.serve.source import Source
from longrec.serve.tokens import check
from longrec.store.token_store import TokenStore

FORMAT = "longrec-state-1"
NAME = "state.json"


class State:
    """Everything one service writes to, held for writing.

    Attributes:
        places: where each history of tokens is read that this source writes.
        stores: the token stores, by place.
        live: events since the bundle, None where no history of events is read.
        source: the source, with its own events since.

    Raises:
        BundleError: a source that wrote none of the tokens that the bundle reads.
        StoreError: the state of another bundle, or a store that another process writes to.
    """

    def __init__(self, bundle: Bundle, settings: Settings) -> None:
        assert settings.events is not None
        self.where = settings.state or f"{bundle.path}.state"
        self.places: dict[str, str] = {}
        self.stores: dict[str, TokenStore] = {}
        self.live: LiveEvents | None = None
        self._closing = ExitStack()
        try:
            self._open(bundle, Bundle.open(settings.events), settings)
        except BaseException:
            self.close()
            raise

    @property
    def embedded(self) -> list[str]:
        """Places that only one process may write to."""
        places = [*self.stores, *([self.where] if self._keeps_events else [])]
        return [place for place in places if not is_remote(place)]

    def _open(self, bundle: Bundle, source: Bundle, settings: Settings) -> None:
        _check_times(bundle, source)
        pristine = Source(source)
        self._closing.callback(pristine.close)
        pristine.check()
        for name, own in bundle.manifest.tokens.items():
            self._take(name, settings.tokens.get(name) or own, bundle, pristine)
        if not self.places:
            found = f"version {pristine.facts.version} of {source.manifest.source.get('run')!r}"
            names = ", ".join(bundle.manifest.tokens) or "none, the bundle reads no tokens"
            raise BundleError(
                f"{source.path}: events",
                f"{found} wrote none of the tokens that {bundle.path} reads",
                f"the source of one of its histories of tokens ({names})",
                "export the source from the same tokens: longrec export tokens/v1 source.bundle",
            )
        base, back = (one.store is not None and reads_events(one.fitted) for one in (bundle, source))
        self._keeps_events = base or back
        if self._keeps_events and not is_remote(self.where):
            _own(Path(self.where), bundle)
        if base:
            self.live = self._events("history", bundle)
        self.source = Source(source, self._events("source", source)) if back else pristine
        if back:
            self._closing.callback(self.source.close)

    def _take(self, name: str, place: str, bundle: Bundle, source: Source) -> None:
        """Hold the store of a history for writing, when its tokens are the source's."""
        inside = not is_remote(place) and place == bundle.manifest.tokens[name]
        opened = bundle.place(place) if inside else place
        with TokenStore.open(opened) as store:
            check(store, bundle, name)
            if not source.wrote(store.info):
                return
            if store.info.source.get("compress", {}).get("keep") == "positive":
                found, expected = (
                    "tokens of positive impressions only",
                    "tokens of all: an event comes before its label",
                )
                raise BundleError(shown(opened), found, expected, "compress with keep=all")
            if not source.codec_fits(store.info.codec):
                raise BundleError(opened, f"tokens as {store.info.codec}", "a source that makes codes")
            if inside:
                opened = self._copy(store, place, bundle)
        if opened not in self.stores:
            written = TokenStore.open(opened, writable=True)
            self._closing.callback(written.close)
            if not is_remote(opened):
                written.compact()
            self.stores[opened] = written
        self.places[name] = opened

    def _copy(self, store: TokenStore, place: str, bundle: Bundle) -> str:
        """The copy of a store that lies in the bundle, made when it is first asked for."""
        if is_remote(self.where):
            raise StoreError(
                shown(self.where),
                "a server, and the tokens lie in the bundle",
                "tokens on a server too",
                "give --tokens HISTORY=redis://..., or a folder for --state",
            )
        folder = Path(self.where)
        _own(folder, bundle)
        if not (folder / place).exists():
            half = folder / f"{place}.partial"
            half.parent.mkdir(parents=True, exist_ok=True)
            copy_tokens(store, half)
            half.rename(folder / place)
        return str(folder / place)

    def _events(self, what: str, bundle: Bundle) -> LiveEvents:
        place = str(Path(self.where, what))
        if is_remote(self.where):
            parts = urlsplit(self.where)
            place = urlunsplit(parts._replace(path=f"{parts.path}-{what}"))
        live = LiveEvents(place, bundle)
        self._closing.callback(live.close)
        if not is_remote(place):
            live.compact()
        return live

    def close(self) -> None:
        """Give up all stores."""
        self._closing.close()

    _keeps_events = False


def _own(folder: Path, bundle: Bundle) -> None:
    """Make a folder of state, or hold the one that is there to its bundle."""
    path = folder / NAME
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise StoreError(str(folder), "something else", "a folder of state, or a new one", "give another --state")
        half = folder / f".{NAME}"
        half.write_text(json.dumps({"format": FORMAT, "bundle": bundle.digest}))
        half.rename(path)
        return
    content = read_manifest(path, FORMAT, "a folder of state", "give another --state", StoreError)
    if content.get("bundle") != bundle.digest:
        raise StoreError(
            str(folder),
            "the events of another bundle",
            f"those of {bundle.path}",
            "give another --state, or take this one away: its events are part of the next log",
        )


def _check_times(bundle: Bundle, source: Bundle) -> None:
    units = [
        "none" if (time := one.fitted.schema.time) is None else "steps" if time.unit == "step" else "moments"
        for one in (bundle, source)
    ]
    keys = ["integers" if one.users.keys.numeric else "text" for one in (bundle, source)]
    items = ["integers" if one.items.keys.numeric else "text" for one in (bundle, source)]
    for what, (own, other) in {"times": units, "users": keys, "items": items}.items():
        if own != other:
            raise BundleError(str(source.path), f"{what} as {other}", f"{what} as {own}, as in {bundle.path}")
