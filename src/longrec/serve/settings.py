"""Settings of a server besides its bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec


class Settings(msgspec.Struct, frozen=True):
    """Locations of the data that a service reads and writes while it runs.

    Attributes:
        tokens: live stores by token history, each a folder or a ``redis://`` address, used instead of the copies
            in the bundle.
        events: bundle of the source model that encodes events as tokens.
        state: store of recorded events, a folder or a ``redis://`` address, by default in a folder next to the bundle.
        recall: bundle of a retriever, whose items the ranker ranks for ``/recommend``.
        private: read private copies of all bundles, so that nothing that happens to their folders has an effect.
        pristine: leave out the changes of the catalog since the bundles, and search exactly, as golden requests do.
        record: record events for the bundles' own histories, also without a source. Else events are refused.
        lateness: seconds (or steps) by which events may be recorded late without removing the state of their user.
        state_days: days after its last use until the state of a user is removed.
        most_states: number of states above which the least recently used ones are removed.
    """

    tokens: dict[str, str] = {}
    events: str | None = None
    state: str | None = None
    recall: str | None = None
    private: bool = False
    pristine: bool = False
    record: bool = False
    lateness: int = 60
    state_days: int = 90
    most_states: int = 10_000_000

    @property
    def records_events(self) -> bool:
        """True if events are recorded."""
        return self.record or self.events is not None

    @property
    def are_default(self) -> bool:
        """True if only the bundle is read, from wherever and with or without its changes."""
        return msgspec.structs.replace(self, private=False, pristine=False) == Settings()


def build_settings(
    tokens: Mapping[str, str | Path] | None = None,
    events: str | Path | bool | None = None,
    state: str | Path | None = None,
    recall: str | Path | None = None,
) -> Settings:
    """Build settings from paths or text.

    Args:
        events: bundle of a source model, or true to record events without one.
    """
    return Settings(
        tokens={name: str(location) for name, location in (tokens or {}).items()},
        events=None if events is None or isinstance(events, bool) else str(events),
        record=events is True,
        state=None if state is None else str(state),
        recall=None if recall is None else str(recall),
    )
