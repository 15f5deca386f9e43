"""What a server is told besides its bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec


class Settings(msgspec.Struct, frozen=True):
    """Where a service reads and writes what changes while it runs.

    Attributes:
        tokens: for histories of tokens a live store, a folder or a ``redis://`` address, in place of the copy that
            lies in the bundle.
        events: the bundle of the source that turns events into tokens; None: no events are taken.
        state: where events are kept that the bundle does not know, a folder or a ``redis://`` address; by default
            beside the bundle.
    """

    tokens: dict[str, str] = {}
    events: str | None = None
    state: str | None = None


def build_settings(
    tokens: Mapping[str, str | Path] | None = None, events: str | Path | None = None, state: str | Path | None = None
) -> Settings:
    """Settings from paths or text."""
    return Settings(
        {name: str(location) for name, location in (tokens or {}).items()},
        None if events is None else str(events),
        None if state is None else str(state),
    )
