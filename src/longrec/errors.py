"""All errors that LongRec raises on purpose.

    LongRecError                an error a user can act on, which the command line prints and exits with 2
    |-- ConfigError             a config or schema with one fault or more (all are listed)
    |   `-- UnknownName         a name that is not in a list of names
    |-- DataError               a log, a table, a column or a value that cannot be used
    |-- StoreError              a history store that is damaged or was written by another version
    |-- RunError                a run folder that is missing, incomplete or does not fit
    |   `-- StoppedRun          a training that a signal has ended
    |-- BundleError             a bundle that is altered, incomplete or of another version
    |-- ResourceError           a resource that the machine lacks: disk, memory, permission, an open port
    `-- RequestError            a request that cannot be answered, with an HTTP status

A message has four fields: where, what was found, what was expected, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class LongRecError(Exception):
    """Base class of all errors: ``where: found; expected ...`` and, on a second line, what to do.

    Args:
        where: the file, column, key or request field at fault.
        found: the actual content.
        expected: the expected content.
        do: the next step for the reader.
    """

    def __init__(self, where: str, found: str, expected: str = "", do: str = "") -> None:
        self.where, self.found, self.expected, self.do = where, found, expected, do
        text = f"{where}: {found}" if where else found
        if expected:
            text += f"; expected {expected}"
        if do:
            text += f"\n  {do[0].upper()}{do[1:]}"
        super().__init__(text)


class ConfigError(LongRecError):
    """A config that cannot be used. ``faults`` holds all faults, one line per fault."""

    def __init__(self, where: str, faults: Sequence[str]) -> None:
        self.faults = list(faults)
        count = f"{len(self.faults)} fault{'s' if len(self.faults) != 1 else ''}"
        super().__init__(where, count + "".join(f"\n  {fault}" for fault in self.faults))


class UnknownName(ConfigError):
    """A name that does not exist. The message contains the nearest valid name."""

    def __init__(self, kind: str, name: str, valid_names: Iterable[str]) -> None:
        self.name, valid_names = name, list(valid_names)
        near = nearest(name, valid_names)
        hint = f"; did you mean {near!r}?" if near else f"; known: {', '.join(sorted(valid_names))}"
        super().__init__(kind, [f"no {kind} named {name!r}{hint}"])


class DataError(LongRecError):
    """A log, table, column or value that cannot be used as it is."""


class StoreError(LongRecError):
    """A history store that is damaged, or that another version wrote."""


class RunError(LongRecError):
    """A run folder that is missing, incomplete, or does not fit the request."""


class StoppedRun(RunError):
    """A training that a signal has ended, and that can be resumed. ``number`` is the number of the signal."""

    def __init__(self, folder: str, step: int, number: int) -> None:
        self.number = number
        super().__init__(folder, f"stopped after step {step:,}", do="continue it with --resume")


class BundleError(LongRecError):
    """A bundle that was altered, is incomplete, or is of another version."""


class ResourceError(LongRecError):
    """Something the machine lacks or forbids: disk space, memory, permission, open files, a network."""


class RequestError(LongRecError):
    """A request that cannot be answered. ``status`` is the HTTP status it maps to."""

    def __init__(self, where: str, found: str, expected: str = "", do: str = "", status: int = 400) -> None:
        self.status = status
        super().__init__(where, found, expected, do)


def nearest(name: str, valid_names: Iterable[str]) -> str | None:
    """Return the valid name most similar to ``name``, or None when none is near.

    >>> nearest("dinn", ["din", "deepfm"])
    'din'
    """
    close = difflib.get_close_matches(name, list(valid_names), n=1, cutoff=0.6)
    return close[0] if close else None
