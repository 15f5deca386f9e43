"""Columns that new rows need not have, because they become available only after an impression."""

from __future__ import annotations

from collections.abc import Sequence

from longrec.data.relation import Relation, name
from longrec.features.feature_encoders import CrossEncoder, HashEncoder, IdEncoder
from longrec.features.fitted_schema import FittedSchema
from longrec.features.schema import Condition, Schema


def list_required_columns(schema: Schema) -> dict[str, str]:
    """Return the raw columns that every impression has, each with the setting that uses it."""
    keys = {schema.user: "the user", schema.item: "the item"}
    needed = {column: use for column, use in keys.items() if column is not None}
    if schema.time is not None:
        needed[schema.time.column] = "the time"
        if schema.time.order is not None:
            needed[schema.time.order] = "time.order"
    if schema.request is not None:
        needed.setdefault(schema.request, "the request")
    for feature_name, feature in schema.features.items():
        if schema.in_row(feature_name) and feature.kind != "calendar" and not feature.feedback:
            for column in schema.columns(feature_name):
                needed.setdefault(column, f"feature {feature_name}")
    for history_name, history in schema.histories.items():
        for column in history.where:
            if not schema.is_feedback_column(column):
                needed.setdefault(column, f"history {history_name}")
        for of, column in (history.columns or {}).items():
            needed.setdefault(column, f"history {history_name}, {of}")
    return needed


def add_absent_columns(log: Relation, fitted: FittedSchema, weights: Sequence[str] = ()) -> dict[str, str]:
    """Add to a relation the columns that it lacks and need not have, with nulls.

    Args:
        weights: columns of sample weights, which are not added.

    Returns:
        The absent columns, each with the setting that uses it.
    """
    schema = fitted.schema
    optional = _list_optional_columns(schema)
    absent = {column: use for column, use in optional.items() if column not in log.types}
    kinds = {column: _null_type(column, log, fitted) for column in absent}
    if absent:
        nulls = "".join(f", NULL::{kind} AS {name(column)}" for column, kind in kinds.items())
        view = f"{log.view}_with_nulls"
        log.con.execute(f"CREATE OR REPLACE VIEW {view} AS SELECT *{nulls} FROM {log.view}")
        log.view, log.types = view, {**log.types, **kinds}
    return absent | {column: "a sample weight" for column in weights if column not in log.types}


def _list_optional_columns(schema: Schema) -> dict[str, str]:
    columns = {} if schema.label is None else {schema.label.column: "the label"}
    for feature_name, feature in schema.features.items():
        if feature.feedback:
            for column in schema.columns(feature_name):
                columns.setdefault(column, f"feature {feature_name}")
        if feature.available_at is not None:
            columns.setdefault(feature.available_at, f"available_at of {feature_name}")
    for history_name, history in schema.histories.items():
        for column in history.where:
            if schema.is_feedback_column(column):
                columns.setdefault(column, f"history {history_name}")
    if schema.time is not None and schema.time.available_at is not None:
        columns.setdefault(schema.time.available_at, "time.available_at")
    if schema.candidate is not None:
        columns.setdefault(schema.candidate, "the candidates")
    return columns


def _null_type(column: str, log: Relation, fitted: FittedSchema) -> str:
    """Return the SQL type of a column of nulls that all uses of the column accept."""
    schema = fitted.schema
    times = [feature.available_at for feature in schema.features.values()]
    if schema.time is not None and column in (schema.time.available_at, *times):
        return log.types[schema.time.column]
    readers = [n for n, f in schema.features.items() if f.feedback and column in schema.columns(n)]
    if any(schema.features[n].kind == "multi_id" for n in readers):
        return "BIGINT[]"
    encoders = [fitted.encoders[n] for n in readers]
    texts = [not e.keys.numeric for e in encoders if isinstance(e, IdEncoder) and len(e.keys)]
    texts += [e.numeric is False for e in encoders if isinstance(e, HashEncoder)]
    texts += [False in e.numeric for e in encoders if isinstance(e, CrossEncoder)]
    conditions = [history.where[column] for history in schema.histories.values() if column in history.where]
    texts += [isinstance(value, str) for one in conditions for value in _list_values(one)]
    if schema.label is not None and schema.label.column == column:
        texts.append(isinstance(schema.label.equals, str))
    return "VARCHAR" if any(texts) else "DOUBLE"


def _list_values(condition: Condition) -> list[int | str]:
    if condition.among is not None:
        return list(condition.among)
    return [] if condition.equals is None else [condition.equals]
