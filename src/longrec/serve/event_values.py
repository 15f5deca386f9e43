"""Encoding of the raw values of one event as ids that histories read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from longrec.features.fitted_schema import FittedSchema
from longrec.features.raw_columns import build_raw_column
from longrec.features.schema import Schema


def encode_event_feature(fitted: FittedSchema, name: str, values: Mapping[str, Any]) -> int:
    """Encode a feature of one event from raw values by column."""

    def locate(column: str) -> str:
        return f"context.{column}"

    columns = {column: build_raw_column([values[column]], locate(column)) for column in fitted.schema.columns(name)}
    return int(fitted.encode_row(name, columns, locate)[0])  # type: ignore[index]  # a history has no lists of a row


def list_keys(schema: Schema, user: Any, item: Any) -> dict[str, Any]:
    """Return the keys of an event by their columns."""
    keys = {schema.user: user, schema.item: item}
    return {column: key for column, key in keys.items() if column is not None}
