"""SQL of the timestamp grammar (``features/timestamp_grammar.py``): the same patterns over whole columns."""

from __future__ import annotations

from longrec.data.sql import literal
from longrec.features.timestamp_grammar import (
    EPSILON,
    FIRST,
    ISO,
    LAST,
    MONTHS,
    PLAIN,
    UNITS,
    Grammar,
)

FAST = (
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[T ](?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?"
    r"(?:Z| UTC|[+-](?:[01][0-9]|2[0-3])(?::?[0-5][0-9])?)?)?"
)
"""Common form of ISO 8601, for which the cast of DuckDB equals the rule and is several times as fast."""

_DAY = 86_400_000


def matches(text: str, pattern: str) -> str:
    """Return SQL that is true if a pattern matches a whole text."""
    return f"regexp_full_match({text}, {literal(pattern)})"


def floor_divided(value: str, divide: int) -> str:
    """Return SQL of floor division of an integer. The operator ``//`` of DuckDB rounds toward zero."""
    if divide == 1:
        return value
    return f"CASE WHEN {value} >= 0 THEN {value} // {divide} ELSE -((-{value} + {divide - 1}) // {divide}) END"


def whole_sql(value: str, unit: str, low: int) -> str:
    """Return SQL of the milliseconds of integers that fit 64 bits.

    Args:
        low: smallest of the integers. The SQL is simpler if it is not negative.
    """
    times, divide = UNITS[unit]
    if times > 1:
        return f"({value}::BIGINT * {times})"
    return f"({value}::BIGINT // {divide})" if low >= 0 else f"({floor_divided(f'{value}::BIGINT', divide)})"


def double_sql(value: str, unit: str) -> str:
    """Return SQL of the milliseconds of doubles, null for numbers that are not finite."""
    times, divide = UNITS[unit]
    scaled = f"({value}::DOUBLE * {times}::DOUBLE / {divide}::DOUBLE)"
    return f"try_cast(floor({scaled} + abs({scaled}) * {EPSILON!r}::DOUBLE) AS BIGINT)"


def decimal_sql(value: str, unit: str) -> str:
    """Return SQL of the milliseconds of exact decimals of at most nine decimal places."""
    times, divide = UNITS[unit]
    whole = f"floor({value}::DECIMAL(38, 9) * {times})::BIGINT"
    return f"({floor_divided(whole, divide)})"


def number_text_sql(text: str, unit: str) -> str:
    """Return SQL of the milliseconds of numbers written as text."""
    return f"CASE WHEN {matches(text, PLAIN)} THEN {decimal_sql(text, unit)} ELSE {double_sql(text, unit)} END"


def instant_sql(value: str, kind: str) -> str:
    """Return SQL of the milliseconds of timestamps or dates, with or without a zone, null if infinite."""
    if kind.endswith("_NS"):
        return f"({floor_divided(f'epoch_ns({value})', 1_000_000)})"
    return f"({floor_divided(f'epoch_us({value})', 1_000)})"


def fast_sql(text: str) -> str:
    """Return SQL of the milliseconds of text that matches ``FAST``, null if the day does not exist."""
    return f"({floor_divided(f'epoch_us(try_cast({text} AS TIMESTAMPTZ))', 1_000)})"


def iso_sql(text: str) -> str:
    """Return SQL of the milliseconds of ISO 8601 text, null for any other."""
    return f"coalesce({', '.join(grammar_sql(text, one) for one in ISO)})"


def grammar_sql(text: str, grammar: Grammar) -> str:
    """Return SQL of the milliseconds of text by a grammar, null if it does not match or the day does not exist."""
    if grammar.width:
        digits = f"regexp_full_match({text}, '[0-9]+') AND length({text}) < {grammar.width}"
        text = f"CASE WHEN {digits} THEN lpad({text}, {grammar.width}, '0') ELSE {text} END"
    names = "[" + ", ".join(literal(name) for name in grammar.names) + "]"
    # Evaluated once per row, as the only element of a list, and bound to p.
    held = f"regexp_extract({text}, {literal(f'^(?:{grammar.pattern})$')}, {names})"
    return f"list_transform([{held}], lambda p: {_milliseconds(grammar)})[1]"


def in_range(timestamp: str) -> str:
    """Return SQL that is true for milliseconds in the years 1 to 9999, null for null."""
    return f"{timestamp} BETWEEN {FIRST} AND {LAST}"


def _milliseconds(grammar: Grammar) -> str:
    def number(name: str, default: str = "0") -> str:
        # A group that did not match is empty text.
        return f"coalesce(try_cast(p.{name} AS BIGINT), {default})" if name in grammar.names else default

    if "year" in grammar.names:
        year = "p.year"
    else:
        year = "(try_cast(p.short_year AS BIGINT) + CASE WHEN p.short_year <= '68' THEN 2000 ELSE 1900 END)"
    month = number("month", "1")
    if "month_name" in grammar.names:
        listed = "[" + ", ".join(literal(one) for one in MONTHS) + "]"
        month = f"list_position({listed}, lower(left(p.month_name, 3)))"
    days = f"epoch_ms(try_cast(({year} || '-' || {month} || '-' || {number('day', '1')}) AS DATE))"
    hour = number("hour")
    if "half" in grammar.names:
        hour = f"({number('half_hour')} % 12 + CASE WHEN lower(p.half) = 'pm' THEN 12 ELSE 0 END)"
    sum_of = [days, f"{hour} * 3600000", f"{number('minute')} * 60000", f"{number('second')} * 1000"]
    if "fraction" in grammar.names:
        sum_of.append("rpad(left(p.fraction, 3), 3, '0')::BIGINT")
    milliseconds = " + ".join(sum_of)
    if "sign" in grammar.names:
        offset = f"({number('zone_hour')} * 60 + {number('zone_minute')}) * 60000"
        milliseconds = f"{milliseconds} - CASE WHEN p.sign = '-' THEN -{offset} ELSE {offset} END"
    return f"({milliseconds})"
