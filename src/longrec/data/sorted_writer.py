"""Writer of a sorted log with DuckDB: checks of the raw inputs, the sort, and the facts for preparation."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from longrec.data.checks import check_values
from longrec.data.relation import SPLIT_COLUMN, Relation, name
from longrec.data.settings import DataConfig, Source
from longrec.data.sort import event_columns, list_column_types, sort_events
from longrec.data.sorted_log import SHARD, Facts, chunk_rows
from longrec.data.sorted_tables import write_tables
from longrec.errors import DataError
from longrec.features.schema import Schema


def write_sorted_log(
    con: duckdb.DuckDBPyConnection, config: DataConfig, schema: Schema, scratch: Path, folder: Path
) -> None:
    """Check the inputs of a config, and write them as a sorted log into a folder.

    Args:
        scratch: folder for temporary files.

    Raises:
        DataError: inputs that cannot be prepared.
    """
    declared = list_column_types(schema)
    log = Relation(con, "log", config.log, scratch, declared)
    inputs: dict[str, tuple[Relation | None, Source | None]] = {}
    for role, source in (("user", config.users), ("item", config.items)):
        table = None if source is None else Relation(con, f"{role}s", source, scratch, declared)
        inputs[role] = (table, source)
    split_column = SPLIT_COLUMN if config.split.by == "files" else config.split.column
    columns = event_columns(schema)
    if split_column is not None:
        columns.setdefault(split_column, "the split")
    for column in config.weights:
        columns.setdefault(column, "a sample weight")
    _check_events(log, schema, columns)
    for column in config.weights:
        log.numeric(column)
    (folder / SHARD).parent.mkdir(parents=True)
    fitted = sort_events(log, schema, list(columns), folder / SHARD)
    for column in config.weights:
        _check_weights(log, column, folder / SHARD, chunk_rows(schema))
    tables = write_tables(fitted, log, inputs, folder)
    unit = fitted.time.unit if fitted.time is not None and fitted is not schema else None
    users, items = tables["user"], tables["item"]
    own = {role: table for role, (table, _) in inputs.items() if table is not None}
    types = (_find_list_types(fitted, log, own), _find_integers(fitted, log, own))
    rows = pq.ParquetFile(folder / SHARD).metadata.num_rows
    Facts(log.where, rows, unit, split_column, *types, users, items).save(folder)


def _check_events(log: Relation, schema: Schema, columns: dict[str, str]) -> None:
    """Raise an error for missing columns, a log without rows, and raw values that do not fit their features."""
    named = {"the user": schema.user, "the item": schema.item}
    keys = {column: role for role, column in named.items() if column is not None}
    if schema.time is not None:
        keys[schema.time.column] = "the time"
        if schema.time.available_at is not None:
            keys[schema.time.available_at] = "time.available_at"
        if schema.time.order is not None:
            keys[schema.time.order] = "time.order"
    log.need({**keys, **columns, **keys})
    if not log.one(f"SELECT count(*) FROM {log.view}"):
        raise DataError(log.where, "no rows", "at least one event")
    check_values(log, schema)


def _check_weights(log: Relation, column: str, events: Path, rows: int) -> None:
    """Raise an error for a weight that is null, negative or not finite as float32. The message gives its row."""
    for chunk in pq.ParquetFile(events).iter_batches(rows, columns=[f"c.{column}"]):
        weight = chunk[f"c.{column}"].cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float32)
        if not (np.isfinite(weight).all() and (weight >= 0).all()):
            break
    else:
        return
    number = f"SELECT row_number() OVER () AS r, {name(column)}::DOUBLE AS v FROM {log.view}"
    bad_row = log.row(f"SELECT r, v FROM ({number}) WHERE v IS NULL OR NOT isfinite(v) OR v < 0 ORDER BY r LIMIT 1")
    what = (
        f"{'null' if bad_row[1] is None else format(bad_row[1], 'g')} in row {bad_row[0]}"
        if bad_row
        else "a number too large"
    )
    raise DataError(
        f"{log.where}: column {column!r}",
        f"{what}, as the weight of a sample",
        "a finite number of 0 or more in every row",
        "correct the column, or set another one in fit.sample_weight and evaluate.sample_weight",
    )


def _get_source(schema: Schema, feature: str, log: Relation, own: dict[str, Relation]) -> Relation:
    """Return the relation that has the column of a feature: the key is that of the log."""
    column, side = schema.column(feature), schema.side(feature)
    table = own.get(side)
    is_key = column == {"user": schema.user, "item": schema.item}.get(side)
    return table if table is not None and not is_key and column in table.types else log


def _find_list_types(schema: Schema, log: Relation, own: dict[str, Relation]) -> dict[str, str]:
    """Return the Arrow type of the values in separated text of a history: the type of the feature's own column."""
    types = {}
    for feature in {feature for history in schema.histories.values() for feature in history.columns or {}}:
        if schema.features[feature].kind == "bucketized":
            types[feature] = str(pa.float64())
        else:
            kind = _get_source(schema, feature, log, own).key_type(schema.column(feature))
            types[feature] = str(pa.int64() if kind == "BIGINT" else pa.string())
    return types


def _find_integers(schema: Schema, log: Relation, own: dict[str, Relation]) -> dict[str, bool | None]:
    """Return whether the column of each feature with a configured vocabulary has integers, None if unknown."""
    integers: dict[str, bool | None] = {}
    for feature, definition in schema.features.items():
        if definition.vocab is None or definition.share or definition.source:
            continue
        if definition.composed:
            integers[feature] = False
            continue
        source, column = _get_source(schema, feature, log, own), schema.column(feature)
        source.need({column: f"feature {feature}"})
        kind = source.element_type(column)
        integers[feature] = None if kind is None else kind == "BIGINT"
    return integers
