"""Detection of integers that encode a date, such as YYYYMMDD, or YYMMDDHH: 14102100 is hour 0 of 2014-10-21.

Interpreted as seconds or milliseconds they would be dates near 1970 or far in the future, in nearly the right order and
without an error.
"""

from __future__ import annotations

from longrec.data.relation import Relation
from longrec.data.timestamp_sql import grammar_sql
from longrec.errors import DataError
from longrec.features.timestamp_grammar import build_grammar, format_timestamp, to_milliseconds

FORMS = {
    "YYYYMMDD": "%Y%m%d",
    "YYMMDDHH": "%y%m%d%H",
    "YYMMDD": "%y%m%d",
    "YYYYMM": "%Y%m",
    "YYYYMMDDHH": "%Y%m%d%H",
    "YYMMDDHHMM": "%y%m%d%H%M",
    "YYYYMMDDHHMM": "%Y%m%d%H%M",
    "YYMMDDHHMMSS": "%y%m%d%H%M%S",
    "YYYYMMDDHHMMSS": "%Y%m%d%H%M%S",
    "YYYYMMDDHHMMSSmmm": "%Y%m%d%H%M%S%f",
}
_PLAUSIBLE = (631_152_000_000, 2_240_524_800_000)
"""1990 and 2041 in milliseconds."""
_FEW = 10
"""Minimum number of distinct values before plausible seconds or milliseconds are taken for encoded dates."""


def refuse_calendar(
    log: Relation, where: str, value: str, fractions: bool, low: float, high: float, unit: str, declared: str
) -> None:
    """Raise an error if all values of a column encode dates in one form.

    Numbers that are plausible in their unit are an error only if the unit was guessed and there are at least ``_FEW``
    distinct values.

    Args:
        where: column, for error messages.
        value: SQL expression of the numbers.
        fractions: True if the numbers may have fractions.
        low, high: smallest and largest number.
        unit: unit in which the numbers would be interpreted.
        declared: the setting ``time.unit``.

    Raises:
        DataError: encoded dates. The message lists the possible forms.
    """
    if low < 0 or low != int(low) or high != int(high):
        return
    low, high = int(low), int(high)
    ends = [to_milliseconds(end, unit) for end in (low, high)]
    is_plausible = all(_is_plausible(end) for end in ends)
    if is_plausible and declared != "auto":
        return
    forms = {
        form: pattern for form, pattern in FORMS.items() if _fits(form, pattern, low) and _fits(form, pattern, high)
    }
    if not forms:
        return
    whole = f"{value}::BIGINT::VARCHAR"
    odd = f" OR {value} <> floor({value})" if fractions else ""
    distinct = f"SELECT DISTINCT {value} AS v, {whole} AS d FROM {log.view} WHERE {value} IS NOT NULL"
    for form, pattern in list(forms.items()):
        same_width = f"length(d) NOT BETWEEN {len(form) - (form[2] != 'Y')} AND {len(form)}"
        wrong = f"{grammar_sql('d', build_grammar(pattern))} IS NULL OR {same_width}{odd.replace(value, 'v')}"
        count, faults = log.row(f"SELECT count(*), count(*) FILTER (WHERE {wrong}) FROM ({distinct})") or (0, 1)
        if faults or count < (_FEW if is_plausible else 1 if len(form) >= 8 else 2):
            del forms[form]
    if forms:
        _refuse(where, forms, high, ends[1], unit)


def _refuse(where: str, forms: dict[str, str], value: int, timestamp: int, unit: str) -> None:
    dates = {
        form: format_timestamp(build_grammar(pattern).read(str(value)) or 0)[:19] for form, pattern in forms.items()
    }
    readings = " or ".join(f"{form} ({date})" for form, date in dates.items())
    patterns = " or ".join(f"'{pattern}'" for pattern in forms.values())
    raise DataError(
        where,
        f"numbers such as {value}, all of which encode a date as {readings}; in {unit} it would be "
        f"{format_timestamp(timestamp)[:19]}",
        f"unambiguous times, or time.format: {patterns}",
        "set time.format, which parses digits and text; set time.unit: step if they are an integer index",
    )


def _fits(form: str, pattern: str, value: int) -> bool:
    digits = str(value)
    # A number has lost the leading zero of the years 2000 to 2009.
    if len(digits) != len(form) and not (form[2] != "Y" and len(digits) == len(form) - 1):
        return False
    timestamp = build_grammar(pattern).read(digits)
    return timestamp is not None and _is_plausible(timestamp)


def _is_plausible(timestamp: int) -> bool:
    return _PLAUSIBLE[0] <= timestamp < _PLAUSIBLE[1]
