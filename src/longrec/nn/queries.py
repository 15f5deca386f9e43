"""What target attention asks a history with, and what answers: names of columns.

The query of a history is made of the columns that the candidate has too; the keys are all columns of its events, those
of the query first. A history of instance tokens may share no column with the candidate.
"""

from __future__ import annotations

from collections.abc import Iterable

from longrec.errors import ConfigError
from longrec.features.fields import Fields


def attention_columns(
    fields: Fields, histories: Iterable[str], model: str
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """For each history the names of the query's columns, and of the keys' columns with the query's first.

    Args:
        model: name of the model that asks, for a message.

    Raises:
        ConfigError: a history without a column that the candidate has, and without tokens (all such histories).
    """
    queries, keys, faults = {}, {}, []
    candidate = any(field.table == "item" for field in fields.features)
    for history in histories:
        columns = fields.histories[history]
        queries[history] = [field.name for field in fields.pairs(history)]
        keys[history] = queries[history] + [field.name for field in columns if field.name not in queries[history]]
        if not queries[history] and not (candidate and any(field.kind == "vector" for field in columns)):
            told = ", ".join(field.name for field in columns)
            faults.append(
                f"histories.{history}.of: {model} needs a column that is a feature of the candidate too, got {told}; "
                "add the item (or another feature of the item table) to it"
            )
    if faults:
        raise ConfigError("schema", faults)
    return queries, keys
