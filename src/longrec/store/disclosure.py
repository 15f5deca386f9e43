"""Detection of leaks in stores: values that can be read earlier than the schema of the reader allows.

Reading such a store is an error unless ``allow_leak`` is set, which adds a warning to the results.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from longrec.features.column_delays import Delay, describe_early_columns, has_delays
from longrec.features.schema import Schema

REMEDY = "compress again with the delays of this schema"


class Provenance(Protocol):
    """Record of how a store was written."""

    @property
    def leak(self) -> str:
        """Reason why the store leaks, or an empty string."""

    @property
    def visibility_delay(self) -> int:
        """Delay between an impression and the timestamp from which its token can be read."""

    @property
    def column_delays(self) -> Mapping[str, Delay] | None:
        """Availability of each raw column when the store was written. None if it was not recorded."""


@dataclass(frozen=True)
class Disclosure:
    """Leaks of a store under the schema of one reader.

    Attributes:
        leaks: one phrase per reason why the store leaks.
        unknown: True if leaks cannot be excluded because the store does not record its column delays.
    """

    leaks: tuple[str, ...] = ()
    unknown: bool = False

    def list_warnings(self, where: str, location: str) -> list[str]:
        """Return the warnings for a history or feature ``where`` that reads the store at ``location``."""
        warnings = []
        if self.leaks:
            warnings.append(
                f"{where} reads {location} because allow_leak is set, although {self.summary}: "
                "metrics measured with it are too high"
            )
        if self.unknown:
            warnings.append(
                f"{where}: {location} does not record the delays of labels and feedback with which it was written, "
                f"so it cannot be checked against the delays of this schema; {REMEDY}"
            )
        return warnings

    @property
    def summary(self) -> str:
        """All leaks in one phrase."""
        return "; ".join(self.leaks)


def assess_disclosure(info: Provenance, schema: Schema) -> Disclosure:
    """Return the leaks of a store, from its record and the schema of its reader."""
    leaks = [f"it leaks ({info.leak})"] if info.leak else []
    if info.column_delays is None:
        return Disclosure(tuple(leaks), unknown=not info.leak and has_delays(schema))
    leaks += [
        f"its source took {phrase}"
        for phrase in describe_early_columns(info.column_delays, info.visibility_delay, schema)
    ]
    return Disclosure(tuple(leaks))


def merge_column_delays(own: Mapping[str, Delay], read: Iterable[Provenance]) -> Mapping[str, Delay] | None:
    """Return the column delays of a store whose source model reads other stores.

    They include the columns that only the other stores were computed from. The result is None if one of those stores
    does not record its column delays.

    Args:
        own: availability of each raw column under the schema of the source model.
        read: records of the stores that the source model reads.
    """
    delays: dict[str, Delay] = {}
    for info in read:
        if info.column_delays is None:
            return None
        for column, at in info.column_delays.items():
            at = info.visibility_delay if at is None else at
            delays[column] = _choose_earlier(delays.get(column, at), at)
    return {**delays, **own}


def _choose_earlier(one: Delay, other: Delay) -> Delay:
    if one == other:
        return one
    return min(one, other) if isinstance(one, int) and isinstance(other, int) else 0
