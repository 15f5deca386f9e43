"""Checks of the raw columns of a log against the features that use them, with the row number in each error."""

from __future__ import annotations

from collections.abc import Mapping

from longrec.data.relation import Relation, literal, name
from longrec.errors import DataError
from longrec.features.feature import Feature
from longrec.features.schema import Schema


def check_values(log: Relation, schema: Schema) -> None:
    """Raise an error for text in numeric columns, ids of types that hold none, and vectors of a wrong length.

    Raises:
        DataError: invalid values. The message gives the column and the first row.
    """
    if schema.label is not None and schema.label.equals is None:
        column = schema.label.column
        log.numeric(column, f"set label: {{column: {column}, equals: VALUE}} with the value of a positive")
    if schema.candidate is not None:
        _check_flags(log, schema.candidate)
    for feature_name, feature in schema.features.items():
        if not schema.in_row(feature_name):
            continue
        if feature.width is not None:
            check_width(log, schema.column(feature_name), feature)
        elif feature.kind in ("numeric", "bucketized"):
            log.numeric(schema.column(feature_name))
        elif feature.kind == "id" or feature.kind == "cross":
            for column in schema.columns(feature_name):
                log.check_id_type(column)


def _check_flags(log: Relation, column: str) -> None:
    """Raise an error if a column has other values than 0, 1, false, true and null."""
    log.numeric(column, "write 1 for a candidate, and 0 or null for an event")
    number = f"SELECT row_number() OVER () AS r, {name(column)}::DOUBLE AS v FROM {log.view}"
    bad_row = log.row(f"SELECT r, v FROM ({number}) WHERE v NOT IN (0, 1) ORDER BY r LIMIT 1")
    if bad_row:
        raise DataError(
            f"{log.where}: column {column!r}",
            f"{bad_row[1]:g} in row {bad_row[0]}, as the candidate of the schema",
            "1 for a candidate, 0 or null for an event",
            "name the column that tells them apart, or leave candidate out",
        )


def warn_of_early_feedback(available_at: Mapping[str, str], early: Mapping[str, int], rows: int) -> list[str]:
    """Return one warning per availability column with timestamps before their event, for example from a wrong clock.

    Args:
        available_at: feature -> availability column.
        early: feature -> number of timestamps before their event.
        rows: number of rows of the log.
    """
    return [
        f"features.{name}: {early[name]:,} of {rows:,} values of the column {column!r} (available_at) are before "
        "their own event. They count as available at the event; correct the column if its clock is wrong."
        for name, column in available_at.items()
        if early[name]
    ]


def check_width(source: Relation, column: str, feature: Feature) -> None:
    """Raise an error if a row does not have ``width`` numbers.

    Raises:
        DataError: a wrong count. The message gives the row number, from 1.
    """
    kind, quoted = source.types[column], name(column)
    text = kind == "VARCHAR"
    if text and feature.separator is not None:
        count = f"len(string_split(v, {literal(feature.separator)}))"
    elif kind.endswith("]"):
        count = "len(v)"
    else:
        return  # neither separated text nor a list: the encoder raises an error
    bad_row = source.row(
        f"SELECT r, {count}, v FROM (SELECT row_number() OVER () AS r, {quoted} AS v FROM {source.view}) "
        f"WHERE v IS NOT NULL AND {count} <> {feature.width}{' AND v <> ' + literal('') if text else ''} LIMIT 1"
    )
    if bad_row:
        raise DataError(
            f"{source.where}: column {column!r}",
            f"{bad_row[1]} numbers in row {bad_row[0]}: {str(bad_row[2])[:80]}",
            f"{feature.width} in every row, as set by width",
            "correct the row or width",
        )
