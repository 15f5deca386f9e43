"""Checks of timestamp columns, and SQL that converts them to integer milliseconds UTC or integer time indices.

The rules are those of ``features/timestamp_grammar.py``. Some errors show only in a whole column: mixed units, floats
too imprecise to distinguish timestamps, and integers that encode a date, such as YYYYMMDD.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from longrec.data import timestamp_sql as sql
from longrec.data.calendar_digits import refuse_calendar
from longrec.data.relation import Relation, name
from longrec.errors import DataError
from longrec.features.schema import TimeColumn
from longrec.features.timestamp_grammar import (
    FIRST,
    LAST,
    LATEST,
    NUMBER,
    STEPS,
    UNITS,
    build_grammar,
    describe_expected_text,
    guess_unit,
    to_milliseconds,
)

_WHOLE = {
    *("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT"),
    *("UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT"),
}
_FLOATS = {"FLOAT": 24, "DOUBLE": 53}
"""Number of bits of the integers that each type represents exactly."""
_DIGITS = " *[+-]?[0-9]{1,19} *"


class Timestamps(NamedTuple):
    """SQL that reads a column of timestamps, and the unit of its numbers.

    Attributes:
        sql: SQL expression of the integer milliseconds UTC, or of the integer time indices (``unit: step``).
        unit: unit of the numbers in the column. None if the column has no numbers.
        near_1970: True if the numbers are so small that they would be dates near 1970.
    """

    sql: str
    unit: str | None = None
    near_1970: bool = False


def read_timestamps(log: Relation, column: str, time: TimeColumn) -> Timestamps:
    """Return the SQL that reads a column of timestamps, after a check of the column.

    Raises:
        DataError: an invalid type or value, a unit that does not fit the values, or ambiguous values.
    """
    return _Column(log, column, time).read()


class _Column:
    def __init__(self, log: Relation, column: str, time: TimeColumn) -> None:
        self.log, self.time, self.view = log, time, log.view
        self.kind, self.value = log.types[column], name(column)
        self.where = f"{log.where}: column {column!r}"

    def read(self) -> Timestamps:
        kind = self.kind
        if kind == '"NULL"':
            return Timestamps("NULL::BIGINT")
        if kind.startswith("TIMESTAMP") or kind == "DATE":
            return self._instants()
        if kind == "VARCHAR" or kind.startswith("ENUM"):
            return self._text(f"{self.value}::VARCHAR" if kind != "VARCHAR" else self.value)
        if kind in _WHOLE or kind in _FLOATS or kind.startswith("DECIMAL"):
            return self._numbers(self.value, kind)
        raise DataError(self.where, f"times of type {kind}", "whole numbers, timestamps or ISO text")

    def _instants(self) -> Timestamps:
        if self.time.unit == "step":
            raise DataError(self.where, f"times of type {self.kind}", "whole numbers for unit: step")
        return self._check_values(sql.instant_sql(self.value, self.kind), self.value)

    def _text(self, text: str) -> Timestamps:
        if self.time.format is not None:
            return self._check_values(sql.grammar_sql(text, build_grammar(self.time.format)), text)
        fast = f"SELECT count(*) FROM {self.view} WHERE NOT {sql.matches(text, sql.FAST)}"
        if self.time.unit != "step" and not self.log.one(fast):
            return self._check_values(sql.fast_sql(text), text)
        counts = (
            f"SELECT count({text}), count(*) FILTER (WHERE {sql.matches(text, NUMBER)}), "
            f"count(*) FILTER (WHERE {sql.matches(text, _DIGITS)}) FROM {self.view}"
        )
        every, numbers, whole = self.log.row(counts) or (0, 0, 0)
        if every == whole:
            return self._numbers(f"try_cast(trim({text}) AS HUGEINT)", "HUGEINT")
        if self.time.unit == "step":
            raise self._odd_text(text, f"NOT {sql.matches(text, _DIGITS)}")
        if every == numbers:
            return self._numbers(f"try_cast(trim({text}) AS DOUBLE)", "DOUBLE", text)
        if numbers:
            raise self._odd_text(text, f"NOT {sql.matches(text, NUMBER)}", " among numbers")
        return self._check_values(sql.iso_sql(text), text)

    def _odd_text(self, text: str, wrong: str, among: str = "") -> DataError:
        odd = self.log.one(f"SELECT {text} FROM {self.view} WHERE {wrong} LIMIT 1")
        expected, do = describe_expected_text(odd, self.time.format)
        if self.time.unit == "step":
            expected, do = "whole numbers for unit: step", ""
        return DataError(self.where, f"the text {odd[:60]!r}{among}", expected, do)

    def _check_values(self, milliseconds_sql: str, value: str) -> Timestamps:
        """Check in one pass that every value parses and is in the years 1 to 9999."""
        stats = f"SELECT count({value}), count({milliseconds_sql}), min({milliseconds_sql}), max({milliseconds_sql}) "
        stats += f"FROM {self.view}"
        every, read_count, low, high = self.log.row(stats) or (0, 0, None, None)
        if read_count < every:
            wrong = f"{value} IS NOT NULL AND {milliseconds_sql} IS NULL"
            if self.kind.startswith("TIMESTAMP") or self.kind == "DATE":
                raise DataError(
                    self.where, f"{every - read_count} infinite times", "finite ones", "drop or fill these rows"
                )
            raise self._odd_text(value, wrong)
        if low is not None and (low < FIRST or high > LAST):
            odd = self.log.one(
                f"SELECT {value}::VARCHAR FROM {self.view} WHERE NOT {sql.in_range(milliseconds_sql)} LIMIT 1"
            )
            raise DataError(self.where, f"the time {odd!r}", "a timestamp in the years 1 to 9999")
        return Timestamps(milliseconds_sql)

    def _numbers(self, value: str, kind: str, text: str | None = None) -> Timestamps:
        """Return the SQL that reads numbers. ``text`` is SQL of their text form, given if it is more precise."""
        # A number that is not finite counts as null, which is an error for event times but not for feedback.
        real = kind in _FLOATS
        finite = f"WHERE try_cast({value} AS HUGEINT) IS NOT NULL" if real else ""
        low, high = self.log.row(f"SELECT min({value}), max({value}) FROM {self.view} {finite}") or (None, None)
        if low is None:
            return Timestamps("NULL::BIGINT")
        pattern, unit = self.time.format, self.time.unit
        if real:
            self._check_precise(value, kind, max(abs(low), abs(high)))
        if pattern is not None or unit == "step":
            return self._whole(value, real or kind.startswith("DECIMAL"), math.floor(low), math.ceil(high))
        unit_name = self._unit(math.floor(low), math.floor(high))
        refuse_calendar(self.log, self.where, value, real or kind.startswith("DECIMAL"), low, high, unit_name, unit)
        self._check_plausible(math.floor(low), math.floor(high), unit_name)
        if text is not None:
            milliseconds_sql = sql.number_text_sql(text, unit_name)
        elif real:
            milliseconds_sql = sql.double_sql(value, unit_name)
        elif kind.startswith("DECIMAL"):
            scale = int(kind.rstrip(")").rpartition(",")[2])
            milliseconds_sql = sql.decimal_sql(value, unit_name) if scale <= 9 else sql.double_sql(value, unit_name)
        else:
            milliseconds_sql = sql.whole_sql(value, unit_name, low)
        return Timestamps(milliseconds_sql, unit_name, guess_unit(high) is None)

    def _whole(self, value: str, fractions: bool, low: int, high: int) -> Timestamps:
        """Return the SQL that reads integers: time indices, or dates by ``time.format``."""
        pattern = self.time.format
        if fractions:
            odd = self.log.one(f"SELECT {value}::VARCHAR FROM {self.view} WHERE {value} <> floor({value}) LIMIT 1")
            if odd is not None:
                what = "unit: step" if pattern is None else "time.format"
                raise DataError(self.where, f"the number {odd}", f"whole numbers for {what}")
        if pattern is not None:
            text = f"try_cast({value} AS HUGEINT)::VARCHAR"
            return self._check_values(sql.grammar_sql(text, build_grammar(pattern)), text)
        if max(abs(low), abs(high)) >= STEPS:
            raise DataError(self.where, f"steps from {low} to {high}", "steps below 2**62")
        return Timestamps(f"try_cast({value} AS BIGINT)", "step")

    def _check_precise(self, value: str, kind: str, largest: float) -> None:
        """Raise an error for floats too imprecise to distinguish milliseconds or to represent integers exactly."""
        bits = _FLOATS[kind]
        step = 2.0 ** (math.frexp(largest)[1] - bits)  # from one float to the next
        unit = self.time.unit
        if self.time.format is not None or unit == "step":
            lossy = largest >= 2**bits
        else:
            unit_name = unit if unit != "auto" else guess_unit(largest) or "s"
            times, divide = UNITS[unit_name]
            lossy = largest >= 2**bits or step * times / divide > 1
        if lossy and largest < 2**bits:
            lossy = bool(self.log.one(f"SELECT count(*) FROM {self.view} WHERE {value} <> floor({value})"))
        if lossy:
            distinct, count = self.log.row(f"SELECT count(DISTINCT {value}), count({value}) FROM {self.view}") or (0, 0)
            width = 32 if kind == "FLOAT" else 64
            raise DataError(
                self.where,
                f"times as {width}-bit floats up to {largest:.0f}, where adjacent floats differ by {step:g}: "
                f"{distinct:,} distinct values in {count:,} rows",
                f"exact times: {width}-bit floats represent integers of {bits} bits exactly",
                "write the column again from the original data, as 64-bit integers or timestamps",
            )

    def _unit(self, low: int, high: int) -> str:
        unit, where, ends = self.time.unit, self.where, (guess_unit(low), guess_unit(high))
        if max(abs(low), abs(high)) >= 2**63:
            raise DataError(where, f"times from {low} to {high}", "numbers of at most 64 bits")
        if ends[0] != ends[1]:
            raise DataError(
                where,
                f"times in mixed units: {low} reads as {ends[0] or 'near 1970'}, {high} as {ends[1] or 'near 1970'}",
                "one unit in the whole column",
                "convert them to one unit; set time.unit: step if they are an integer index",
            )
        if unit != "auto" and ends[1] is not None and ends[1] != unit:
            raise DataError(
                where,
                f"values up to {high}, which read as {ends[1]}",
                f"{unit}, as set in the schema",
                "correct time.unit",
            )
        return unit if unit != "auto" else ends[1] or "s"

    def _check_plausible(self, low: int, high: int, unit_name: str) -> None:
        unit, where = self.time.unit, self.where
        first, last = (to_milliseconds(value, unit_name) for value in (low, high))
        if unit == "auto" and last >= LATEST:
            raise DataError(
                where,
                f"values up to {high}, which as {unit_name} would be after 2100",
                "times before 2100 if the unit is derived from their size",
                "set time.unit if this is correct, time.format if the digits encode a date, or time.unit: step",
            )
        if first < FIRST or last > LAST:
            raise DataError(where, f"values from {low} to {high} {unit_name}", "timestamps in the years 1 to 9999")


def check_available_at(log: Relation, column: str, reader: Timestamps, event: Timestamps) -> None:
    """Raise an error if an availability column has delays instead of timestamps.

    Raises:
        DataError: small numbers, while the event times are not small.
    """
    if reader.near_1970 and not event.near_1970 and event.unit != "step":
        raise DataError(
            f"{log.where}: column {column!r}",
            "times near 1970, unlike the event times",
            "the timestamp from which the value is available",
            "a delay is not a timestamp: add it to the event time, or set available_after",
        )


def takes_format(log: Relation, column: str) -> bool:
    """Return whether ``time.format`` applies to the type of a column: text or numbers."""
    kind = log.types[column]
    return not (kind.startswith("TIMESTAMP") or kind in ("DATE", '"NULL"'))
