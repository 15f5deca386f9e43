"""Grammar of timestamps in logs, requests and split lines.

A timestamp is stored as whole milliseconds UTC, or as a step, the whole number of a counter (``unit: step``).

- Text is ISO 8601: ``2026-01-31``, ``2026-01-31T12:00:00.250+01:00``, ``20260131T120000Z``. A blank may
  replace the ``T``, a comma the decimal point, and blanks may surround the text. An offset is applied. Without one the
  text is UTC. Minutes, seconds and fractions are optional. ``24:00``, leap seconds, years of other than four
  digits, months and days of one digit, ``epoch`` and ``infinity`` are refused.
- A number counts ``s``, ``ms``, ``us`` or ``ns`` since 1970. With unit ``auto``, the unit follows from its size. Text
  of digits is a number.
- With a ``format``, text and whole numbers (written as digits) are read by that pattern only.
- Fractions of a millisecond are rounded down, before 1970 too.

``data/timestamp_sql.py`` builds SQL from the same patterns and constants. The tests compare the two.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache

UNITS = {"s": (1_000, 1), "ms": (1, 1), "us": (1, 1_000), "ns": (1, 1_000_000)}
"""Milliseconds = number * first // second."""
MAGNITUDES = (("s", 10**8, 10**11), ("ms", 10**11, 10**14), ("us", 10**14, 10**17), ("ns", 10**17, 2**63))
"""Lower and upper bounds of each unit. They do not overlap from 1973 on, so the size of a number gives its unit."""
FIRST, LAST = -62_135_596_800_000, 253_402_300_799_999
"""The years 1 to 9999 in milliseconds."""
LATEST = 4_102_444_800_000
"""2100 in milliseconds. With a guessed unit, a later timestamp is refused."""
STEPS = 2**62
"""Upper bound of steps, so that a delay can be added to one."""
EPSILON = 2.0**-52
"""Relative representation error of a product of two doubles."""
EXACT = 2**53
"""A double represents every whole number below this exactly."""

PLAIN = r" *[+-]?[0-9]{1,19}(?:\.[0-9]{0,9})? *"
"""Text of a decimal number that is read exactly."""
NUMBER = r" *[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)? *"
"""Text of any number."""

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH_NAMES = "january|february|march|april|may|june|july|august|september|october|november|december"
_ZONE = r"(?: ?UTC|[Zz]|([+-])((?:[01][0-9]|2[0-3])):?([0-5][0-9])?)"
_ZONE_NAMES = ("sign", "zone_hour", "zone_minute")
_CLOCK = "([01][0-9]|2[0-3])"
_SIXTY = "([0-5][0-9])"
_ISO_NAMES = ("year", "month", "day", "hour", "minute", "second", "fraction", *_ZONE_NAMES)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_DAY = date(1970, 1, 1).toordinal()


@dataclass(frozen=True)
class Grammar:
    """A pattern of text timestamps.

    Attributes:
        pattern: regular expression of a whole text, with the same meaning in Python and in RE2.
        names: field of each of its groups.
        width: digits of a number that the pattern reads with leading zeros. 0: it reads no such number.
    """

    pattern: str
    names: tuple[str, ...]
    width: int = 0

    def read(self, text: str) -> int | None:
        """Parse a text to milliseconds UTC. Return None if it has another form, or is no valid date."""
        if self.width and text.isascii() and text.isdigit():
            text = text.zfill(self.width)
        match = re.fullmatch(self.pattern, text)
        if match is None:
            return None
        fields = {name: value for name, value in zip(self.names, match.groups()) if value}
        year = int(fields["year"]) if "year" in fields else expand_year(int(fields["short_year"]))
        month = (
            MONTHS.index(fields["month_name"][:3].lower()) + 1
            if "month_name" in fields
            else int(fields.get("month", 1))
        )
        try:
            days = date(year, month, int(fields.get("day", 1))).toordinal() - _EPOCH_DAY
        except ValueError:
            return None
        hour = int(fields.get("hour", 0))
        if "half" in fields:
            hour = int(fields["half_hour"]) % 12 + (12 if fields["half"].lower() == "pm" else 0)
        offset = int(fields.get("zone_hour", 0)) * 60 + int(fields.get("zone_minute", 0))
        minutes = (
            (days * 24 + hour) * 60 + int(fields.get("minute", 0)) - (-offset if fields.get("sign") == "-" else offset)
        )
        below = int((fields.get("fraction", "") + "000")[:3])
        return (minutes * 60 + int(fields.get("second", 0))) * 1_000 + below


def expand_year(year: int) -> int:
    """Expand a year of two digits to 1969 to 2068, as in POSIX."""
    return year + (2_000 if year <= 68 else 1_900)


ISO = (
    Grammar(
        rf" *([0-9]{{4}})-([0-9]{{2}})-([0-9]{{2}})"
        rf"(?:[Tt ]{_CLOCK}(?::{_SIXTY}(?::{_SIXTY}(?:[.,]([0-9]+))?)?)?{_ZONE}?)? *",
        _ISO_NAMES,
    ),
    Grammar(
        rf" *([0-9]{{4}})([0-9]{{2}})([0-9]{{2}})[Tt]{_CLOCK}(?:{_SIXTY}(?:{_SIXTY}(?:[.,]([0-9]+))?)?)?{_ZONE}? *",
        _ISO_NAMES,
    ),
)
"""ISO 8601: extended, and basic with a time."""

_DIRECTIVES: dict[str, tuple[str, tuple[str, ...]]] = {
    "Y": ("([0-9]{4})", ("year",)),
    "y": ("([0-9]{2})", ("short_year",)),
    "m": ("(1[0-2]|0[1-9]|[1-9])", ("month",)),
    "b": (f"((?i:{'|'.join(MONTHS)}))", ("month_name",)),
    "B": (f"((?i:{_MONTH_NAMES}))", ("month_name",)),
    "d": ("(3[01]|[12][0-9]|0[1-9]|[1-9])", ("day",)),
    "H": ("(2[0-3]|[01][0-9]|[0-9])", ("hour",)),
    "I": ("(1[0-2]|0[1-9]|[1-9])", ("half_hour",)),
    "p": ("((?i:am|pm))", ("half",)),
    "M": ("([0-5][0-9]|[0-9])", ("minute",)),
    "S": ("([0-5][0-9]|[0-9])", ("second",)),
    "f": ("([0-9]{1,9})", ("fraction",)),
    "z": (_ZONE, _ZONE_NAMES),
}
_FIXED = {
    "Y": ("([0-9]{4})", 4),
    "y": ("([0-9]{2})", 2),
    "m": ("(0[1-9]|1[0-2])", 2),
    "d": ("(0[1-9]|[12][0-9]|3[01])", 2),
    "H": (_CLOCK, 2),
    "M": (_SIXTY, 2),
    "S": (_SIXTY, 2),
}


@lru_cache
def build_grammar(pattern: str) -> Grammar:
    """Build the grammar of a ``strptime`` pattern.

    Separated numbers may omit a leading zero. Adjacent numbers have their full width.

    Raises:
        ValueError: if a directive is unsupported, or the pattern has no date.
    """
    segments = re.findall(r"%(.)|( +)|([^% ]+)", pattern, re.DOTALL)
    if "".join("%" + d if d else blank or text for d, blank, text in segments) != pattern:
        raise ValueError(f"ends in a bare %, got {pattern!r}")
    expression, width, seen = "", 0, [d for d, _, _ in segments if d and d != "%"]
    names: list[str] = []
    for index, (directive, blank, text) in enumerate(segments):
        if directive == "%" or blank or text:
            expression += " +" if blank else re.escape("%" if directive else text)
            width = -1
            continue
        if directive not in _DIRECTIVES:
            valid_directives = ", ".join("%" + letter for letter in _DIRECTIVES)
            raise ValueError(f"holds %{directive}, which is not one of {valid_directives}, got {pattern!r}")
        near = [segments[other][0] for other in (index - 1, index + 1) if 0 <= other < len(segments)]
        run_together = any(other in _FIXED or other == "f" for other in near)
        group_pattern, groups = _DIRECTIVES[directive]
        if directive in _FIXED and run_together:
            group_pattern, digits = _FIXED[directive]
            width += digits if width >= 0 else 0
        else:
            width = -1
        expression, names = expression + group_pattern, [*names, *groups]
    _check_directives(pattern, seen)
    return Grammar(f" *{expression} *", tuple(names), width if seen[0] == "y" and width > 0 else 0)


def _check_directives(pattern: str, seen: list[str]) -> None:
    twice = next((letter for letter in seen if seen.count(letter) > 1), None)
    if twice is not None:
        raise ValueError(f"holds %{twice} twice, got {pattern!r}")
    for group, what in (("Yy", "the year (%Y or %y)"), ("mbB", "the month (%m, %b or %B)")):
        if len(set(group) & set(seen)) != 1:
            raise ValueError(f"must hold {what} once, got {pattern!r}")
    if "H" in seen and ("I" in seen or "p" in seen):
        raise ValueError(f"holds %H, which goes with neither %I nor %p, got {pattern!r}")
    if ("I" in seen) != ("p" in seen):
        raise ValueError(f"holds one of %I and %p without the other, got {pattern!r}")
    # A smaller unit needs all larger ones.
    ranks = [{"d"}, {"H", "I"}, {"M"}, {"S"}, {"f"}]
    present = [bool(rank & set(seen)) for rank in ranks]
    if present != sorted(present, reverse=True):
        raise ValueError(f"leaves out a unit between the ones it holds (%d, %H, %M, %S, %f), got {pattern!r}")


class TimestampError(Exception):
    """A value that is no timestamp, with the fields actual, expected and do of an error."""

    def __init__(self, actual: str, expected: str, do: str = "") -> None:
        self.actual, self.expected, self.do = actual, expected, do
        super().__init__(actual, expected, do)


def read_timestamp(value: int | float | str, unit: str, pattern: str | None = None) -> int:
    """Convert one raw value to milliseconds UTC, or to a step.

    Args:
        value: text or a number.
        unit: unit of numbers: ``auto``, ``s``, ``ms``, ``us``, ``ns`` or ``step``.
        pattern: ``time.format``.

    Raises:
        TimestampError: if the value is not a timestamp.
    """
    if unit == "step":
        return _read_step(value)
    if pattern is not None:
        timestamp = build_grammar(pattern).read(_to_digits(value))
    elif isinstance(value, str) and not re.fullmatch(NUMBER, value):
        timestamp = read_iso(value)
    else:
        timestamp = _read_number(value, unit)
    if timestamp is None:
        what = f"the text {value[:60]!r}" if isinstance(value, str) else f"the number {str(value)[:40]}"
        raise TimestampError(what, *describe_expected_text(str(value), pattern))
    if not FIRST <= timestamp <= LAST:
        raise TimestampError(repr(value)[:60], "a timestamp of the years 1 to 9999")
    return timestamp


def read_iso(text: str) -> int | None:
    """Parse ISO 8601 text to milliseconds UTC. Return None for any other text."""
    return next((timestamp for one in ISO if (timestamp := one.read(text)) is not None), None)


def describe_expected_text(text: str, pattern: str | None) -> tuple[str, str]:
    """Return the expected form of a text, and the action, for an error."""
    if pattern is not None:
        return f"text of the form {pattern!r}, as time.format says", "correct time.format, or the value"
    expected = "ISO 8601 such as 2026-01-31T12:00:00Z, or a number"
    if re.match(r" *[0-9]{1,2}[/.-][0-9]{1,2}[/.-][0-9]{2,4}", text):
        do = "set time.format, such as '%m/%d/%Y %H:%M:%S' where the month comes first, '%d/%m/%Y' where the day does"
        return expected + " (the order of day and month is ambiguous)", do
    return expected, "set time.format, a strptime pattern such as '%Y/%m/%d %H:%M:%S', for text of another form"


def guess_unit(value: int | float) -> str | None:
    """Guess the unit of a number from its size. Return None near 1970."""
    return next((unit for unit, low, high in MAGNITUDES if low <= abs(value) < high), None)


def to_milliseconds(value: int, unit: str) -> int:
    """Convert a whole number of a unit to milliseconds."""
    times, divide = UNITS[unit]
    return value * times // divide


def format_timestamp(timestamp: int) -> str:
    """Format milliseconds UTC as ISO 8601 text.

    >>> format_timestamp(1_000_000_000_250)
    '2001-09-09T01:46:40.250Z'
    """
    when = _EPOCH + timedelta(milliseconds=timestamp)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _to_digits(value: int | float | str) -> str:
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < EXACT else str(value)
    return str(value)


def _read_step(value: int | float | str) -> int:
    whole: int | None = None
    if isinstance(value, str):
        whole = int(value) if re.fullmatch(r" *[+-]?[0-9]{1,19} *", value) else None
    elif not isinstance(value, float) or (value.is_integer() and abs(value) < EXACT):
        whole = int(value)
    if whole is None or isinstance(value, bool) or not -STEPS < whole < STEPS:
        raise TimestampError(repr(value)[:60], "a whole number, as the log counts its steps")
    return whole


def _read_number(value: int | float | str, unit: str) -> int:
    """Convert a number, or its text, to milliseconds."""
    number: int | float | Decimal
    if isinstance(value, str):
        number = Decimal(value.strip(" ")) if re.fullmatch(PLAIN, value) else float(value)
    else:
        number = value
    size: int | float = number if isinstance(number, float) else int(number)
    if isinstance(number, float) and not math.isfinite(number):
        raise TimestampError(f"the number {number}", "a finite number")
    reads = guess_unit(size)
    expected = "an epoch number in s, ms, us or ns" if unit == "auto" else f"an epoch number in {unit}, as the log"
    way_out = "or write ISO 8601 text, which has no unit"
    if abs(size) >= 2**63 or (reads is None and unit == "auto") or (reads is not None and unit not in ("auto", reads)):
        reading = "near 1970" if reads is None and abs(size) < 2**63 else f"as {reads or 'ns'}"
        raise TimestampError(f"{str(value)[:40]}, which reads {reading}", expected, way_out)
    if isinstance(number, float) and abs(size) >= EXACT:
        raise TimestampError(f"{value}, a float above 2**53, which holds no exact {reads}", expected, way_out)
    number_unit = unit if unit != "auto" else reads or "s"
    times, divide = UNITS[number_unit]
    timestamp = _floor(number * times / divide) if isinstance(number, float) else math.floor(number * times) // divide
    if unit == "auto" and timestamp >= LATEST:
        raise TimestampError(f"{str(value)[:40]}, which reads as {reads} after 2100", expected, way_out)
    return timestamp


def _floor(value: float) -> int:
    """Round a double down, with a tolerance of its representation error."""
    return math.floor(value + abs(value) * EPSILON)
