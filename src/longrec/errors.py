"""All errors that LongRec raises on purpose.

    LongRecError                an error a user can act on, which the command line prints and exits with 2
    |-- ConfigError             a config or schema with one fault or more (all are listed)
    |   `-- UnknownName         a name that is not in a list of names
    |-- DataError               a log, a table, a column or a value that cannot be used
    |-- StoreError              a history store that is damaged or was written by another version
    |   `-- ServerError         a Redis or Valkey server that does not respond, or refuses a command
    |-- RunError                a run folder that is missing, incomplete or does not fit
    |   `-- StoppedRun          a training that a signal has ended
    |-- BundleError             a bundle that is altered, incomplete or of another version
    |-- ResourceError           a resource that the machine lacks: disk, memory, permission, an open port
    `-- RequestError            a request that cannot be answered, with an HTTP status

A message has four fields: where, what was found, what was expected, what to do. Text from outside is repeated in a
message by :func:`quote`, and unknown names by :func:`describe_unknown_names`, so that no input makes a message long or
slow to build.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any

_QUOTED = 200
"""Characters of a value that a message repeats."""
_HINTED = 5
"""Number of unknown names with a hint. A hint compares a name with all valid ones."""
_LONGEST_NAME = 200
"""Characters of the longest name that is compared with the valid ones."""
_SHOWN_FAULTS = 200
"""Number of faults of a config that a message lists."""
_SHOWN_NAMES = 1_000
"""Characters of the valid names that a message lists."""
_REQUEST_FIELDS = {"where": 300, "found": 800, "expected": 500, "do": 300}
"""Characters of each field of the error of a request. Together they are at most about 2,000."""

_values = reprlib.Repr()
_values.maxlevel, _values.maxlist, _values.maxdict, _values.maxstring = 3, 5, 5, _QUOTED


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
    """A config that cannot be used. ``faults`` holds all faults, of which the message lists the first 200."""

    def __init__(self, where: str, faults: Sequence[str]) -> None:
        self.faults = list(faults)
        count = f"{len(self.faults)} fault{'s' if len(self.faults) != 1 else ''}"
        more = len(self.faults) - _SHOWN_FAULTS
        shown = [*self.faults[:_SHOWN_FAULTS], *([f"and {more:,} more"] if more > 0 else [])]
        super().__init__(where, count + "".join(f"\n  {fault}" for fault in shown))


class UnknownName(ConfigError):
    """A name that does not exist. The message contains the nearest valid name."""

    def __init__(self, kind: str, name: str, valid_names: Iterable[str]) -> None:
        self.name, valid_names = name, list(valid_names)
        near = nearest(name, valid_names)
        hint = (
            f"; did you mean {near!r}?" if near else f"; known: {shorten(', '.join(sorted(valid_names)), _SHOWN_NAMES)}"
        )
        super().__init__(kind, [f"no {kind} named {quote(name)}{hint}"])


class DataError(LongRecError):
    """A log, table, column or value that cannot be used as it is."""


class StoreError(LongRecError):
    """A history store that is damaged, or that another version wrote."""


class ServerError(StoreError):
    """A Redis or Valkey server that does not respond, or refuses a command. A later call may succeed."""


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
    """A request that cannot be answered. ``status`` is the HTTP status it maps to.

    Each field is cut, so that no request causes a long answer.
    """

    def __init__(self, where: str, found: str, expected: str = "", do: str = "", status: int = 400) -> None:
        self.status = status
        limits = _REQUEST_FIELDS
        super().__init__(
            shorten(where, limits["where"]),
            shorten(found, limits["found"]),
            shorten(expected, limits["expected"]),
            shorten(do, limits["do"]),
        )


def shorten(text: str, length: int) -> str:
    """Return a text, or its beginning and its number of characters, in at most ``length`` characters.

    >>> shorten("abc" * 30, 40)
    'abcabcabcabcabcabcabc... (90 characters)'
    """
    if len(text) <= length:
        return text
    end = f"... ({len(text):,} characters)"
    return text[: max(length - len(end), 0)] + end


def quote(value: Any) -> str:
    """Return a value of a request, a log or a config as a message repeats it: as Python writes it, cut if it is long.

    >>> quote("u7"), quote(7), quote([1] * 1_000)
    ("'u7'", '7', '[1, 1, 1, 1, 1, ...]')
    """
    if isinstance(value, str):
        text = repr(value[:_QUOTED])
        return shorten(text, _QUOTED) if len(value) <= _QUOTED else f"{text[:_QUOTED]}... ({len(value):,} characters)"
    if isinstance(value, int) and value.bit_length() > 256:  # Python refuses to write the longest ones
        return f"an integer of {value.bit_length():,} bits"
    return shorten(_values.repr(value), _QUOTED)


def nearest(name: str, valid_names: Iterable[str]) -> str | None:
    """Return the valid name most similar to ``name``, or None when none is near.

    A name is not compared if it is longer than 200 characters or far longer than a valid one.

    >>> nearest("dinn", ["din", "deepfm"])
    'din'
    """
    if len(name) > _LONGEST_NAME:
        return None
    comparable = [valid for valid in valid_names if len(valid) <= _LONGEST_NAME]
    close = difflib.get_close_matches(name, comparable, n=1, cutoff=0.6) if comparable else []
    return close[0] if close else None


def describe_unknown_names(
    unknown_names: Sequence[str], valid_names: Iterable[str], what: str = "the unknown key"
) -> list[str]:
    """Return faults of unknown names: the first five with their nearest valid name, and the number of the rest.

    >>> describe_unknown_names(["ag", *"bcdefg"], ["age"])[0], describe_unknown_names(["ag", *"bcdefg"], ["age"])[-1]
    ("the unknown key 'ag' (did you mean 'age'?)", 'and 2 more')
    """
    valid_names, faults = list(valid_names), []
    for name in sorted(unknown_names[:_HINTED]):
        near = nearest(name, valid_names)
        faults.append(f"{what} {quote(name)}" + (f" (did you mean {near!r}?)" if near else ""))
    more = len(unknown_names) - _HINTED
    return [*faults, f"and {more:,} more"] if more > 0 else faults
