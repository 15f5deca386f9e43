"""Rows of a new input, read and encoded like those of a prepared log, with the encoders of that log."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from longrec.config import Strict, parse
from longrec.data import relation
from longrec.data.absent_columns import add_absent_columns, list_required_columns
from longrec.data.checks import check_values
from longrec.data.entities import Entities
from longrec.data.entity_merge import NewEntities, merge_all, merge_selected
from longrec.data.event_columns import write_event_columns
from longrec.data.event_encoder import EventEncoder
from longrec.data.frames import is_frame
from longrec.data.input_files import list_files
from longrec.data.log import Log
from longrec.data.occurrence import Filters
from longrec.data.relation import Relation, name
from longrec.data.sample_weights import write_weights
from longrec.data.settings import DataConfig, OptionalSourceT, Source, SourceT
from longrec.data.sort import event_columns, list_column_types, sort_events
from longrec.data.sorted_log import ROW, SHARD, Facts, SortedLog, chunk_rows
from longrec.data.sorted_tables import write_tables
from longrec.errors import DataError
from longrec.features.entity_table import EntityTable
from longrec.features.feature_encoders import IdEncoder
from longrec.features.fitted_schema import FittedSchema

Tables = Mapping[str, tuple[Relation | None, Source | None]]
"""Entity table of the new input, opened and as configured, by role."""


@dataclass(frozen=True)
class NewRows:
    """Encoded rows of a new input, in the order of user, time and input.

    Attributes:
        folder: columns of the rows, in the files of a prepared log.
        numbers: index of each row in the input, from 0, int64 ``[n]``.
        users: users of the new rows only.
        user_rows: row of each of these users in the prepared log, int64 ``[users + 1]``, 0 for a new one.
        items: items of the prepared log, followed by new ones.
        absent: columns that the new input does not have, each with its use, whose values are missing.
        has_label: True if the input has the label column, or the schema has no label.
        weights: weight columns of the run that the input has.
    """

    folder: Path
    numbers: NDArray[np.int64]
    users: EntityTable
    user_rows: NDArray[np.int64]
    items: EntityTable
    absent: Mapping[str, str]
    has_label: bool
    weights: tuple[str, ...]


class NewInputs(Strict):
    """Inputs of new rows, in the forms of the data section of a config.

    Attributes:
        log: the rows.
        users, items: tables that come with them.
    """

    log: SourceT
    users: OptionalSourceT = None
    items: OptionalSourceT = None


def read_new_inputs(config: DataConfig, log: Any, users: Any = None, items: Any = None) -> NewInputs:
    """Return the inputs of new rows, with the settings of the run's inputs where they have none of their own.

    ``nulls`` and ``as_of`` are always those of the run unless set. The row format is so for paths, and for frames if it
    does not name the cells of text rows. A mapping or ``Source`` has its own.

    Args:
        config: data section of the run.
        log, users, items: path or paths, a mapping, a ``Source``, or a frame.

    Raises:
        ConfigError: what is none of these, or an invalid mapping.
    """
    sections = {"log": log, "users": users, "items": items}
    sections = {
        role: list(data) if isinstance(data, tuple) else data for role, data in sections.items() if data is not None
    }
    inputs = parse(NewInputs, sections, "new rows")
    sources: dict[str, Source] = {}
    for role, data in sections.items():
        source, own = getattr(inputs, role), getattr(config, role)
        update: dict[str, Any] = {}
        if own is not None:
            keys = {"nulls", "as_of"} - source.model_fields_set
            if isinstance(data, (str, Path, list)) or (is_frame(data) and own.rows and own.rows.columns is None):
                keys.add("rows")
            update = {key: getattr(own, key) for key in keys}
        sources[role] = source.model_copy(update=update)
    return inputs.model_copy(update=sources)


def encode_new_rows(log: Log, config: DataConfig, inputs: NewInputs, scratch: Path) -> NewRows:
    """Read rows, check them as ``prepare`` does, and encode them with the encoders of a prepared log.

    Args:
        config: data section of the prepared log.
        inputs: the new rows, and tables that come with them.
        scratch: folder for all files.

    Raises:
        DataError: invalid rows, or a missing column that an impression needs.
    """
    for role, table, key in (("users", inputs.users, log.schema.user), ("items", inputs.items, log.schema.item)):
        if table is not None and key is None:
            raise DataError(role, "a table, and a schema without its key", "a key", "leave the table out")
    with contextlib.closing(relation.connect(config, scratch)) as con:
        sorted_folder = scratch / "sorted"
        opened, absent, fitted = _write_sorted(con, log, config, inputs, scratch, sorted_folder)
        listed = {role: _list_keys(*opened[role], role, log) for role in opened}
    rows, build = SortedLog(sorted_folder), scratch / "rows"
    (build / "events").mkdir(parents=True)
    (build / "lists").mkdir()
    merged = {role: _merge_entities(role, log, rows, fitted, listed[role]) for role in ("user", "item")}
    users, user_rows = merge_selected(log.users, merged["user"])
    items = merge_all(log.items, merged["item"])

    def chunks(what: str, columns: list[str]):  # type: ignore[no-untyped-def]
        return rows.read(columns, chunk_rows(log.schema), what)

    write_event_columns(build, log.schema, chunks, users.keys, items.keys, rows.source)
    labels = np.full(len(rows), np.nan, np.float32)
    EventEncoder(rows, log.fitted, build, config.threads).write(Filters(log.schema, rows.source), labels)
    weights = tuple(column for column in config.weights if column not in absent)
    write_weights(rows, weights, build, chunk_rows(log.schema))
    numbers = pq.read_table(sorted_folder / SHARD, columns=[ROW])[ROW].to_numpy().astype(np.int64) - 1
    has_label = log.schema.label is None or log.schema.label.column not in absent
    return NewRows(build, numbers, users, user_rows, items, absent, has_label, weights)


def _write_sorted(
    con: duckdb.DuckDBPyConnection,
    log: Log,
    config: DataConfig,
    inputs: NewInputs,
    scratch: Path,
    folder: Path,
) -> tuple[Tables, dict[str, str], FittedSchema]:
    """Write the new rows as a sorted log.

    Returns:
        The opened tables, the absent columns, and the schema with the user and item features that the input has.
    """
    schema = log.schema
    declared = list_column_types(schema)
    new = Relation(con, "log", inputs.log, scratch, declared)
    opened: dict[str, tuple[Relation | None, Source | None]] = {}
    for role, table in (("user", inputs.users), ("item", inputs.items)):
        opened[role] = (None if table is None else Relation(con, f"{role}s", table, scratch, declared), table)
    new.need(list_required_columns(schema), "add the columns, with nulls where the values are not known")
    absent = add_absent_columns(new, log.fitted, config.weights)
    check_values(new, schema)
    if not new.one(f"SELECT count(*) FROM {new.view}"):
        raise DataError(new.where, "no rows", "at least one row to score")
    fitted = _select_entity_features(log, config, new, opened)
    columns = event_columns(schema)
    for column in config.weights:
        if column not in absent:
            new.numeric(column)
            columns.setdefault(column, "a sample weight")
    (folder / SHARD).parent.mkdir(parents=True)
    sort_events(new, schema, list(columns), folder / SHARD, numbered=True)
    facts = write_tables(fitted.schema, new, dict(opened), folder)
    rows = pq.ParquetFile(folder / SHARD).metadata.num_rows
    Facts(new.where, rows, None, None, _find_list_types(log.fitted), {}, facts["user"], facts["item"]).save(folder)
    return opened, absent, fitted


def _find_list_types(fitted: FittedSchema) -> dict[str, str]:
    """Return the Arrow type of the values of each feature of a pre-joined history, as the encoder read them."""
    types = {}
    for history in fitted.schema.histories.values():
        for feature in history.columns or {}:
            encoder = fitted.encoders[feature]
            numeric = encoder.keys.numeric if isinstance(encoder, IdEncoder) else getattr(encoder, "numeric", None)
            bucketized = fitted.schema.features[feature].kind == "bucketized"
            types[feature] = str(pa.float64() if bucketized else pa.int64() if numeric else pa.string())
    return types


def _select_entity_features(log: Log, config: DataConfig, new: Relation, opened: Tables) -> FittedSchema:
    """Return the schema without the user and item features that the new input does not have.

    A feature that the prepared log reads from a table is read from a table only: a column of the rows with the same
    name may be something else.
    """
    schema, features = log.schema, {}
    for feature_name, feature in schema.features.items():
        role = schema.side(feature_name)
        if role not in ("user", "item") or feature.kind == "embedding":
            features[feature_name] = feature
            continue
        table, columns = opened[role][0], set(schema.columns(feature_name))
        key = {"user": schema.user, "item": schema.item}[role]
        available = {key} | (set() if table is None else set(table.types))
        if table is not None or getattr(config, f"{role}s") is None:
            available |= set(new.types)
        if columns <= available:
            features[feature_name] = feature
    return FittedSchema(schema.model_copy(update={"features": features}), log.fitted.encoders)


def _list_keys(table: Relation | None, source: Source | None, role: str, log: Log) -> pa.Array | None:
    """Return the keys of an entity table that came with the rows, None without one."""
    key = log.schema.user if role == "user" else log.schema.item
    if table is None or source is None or key is None:
        return None
    versioned = (log.users if role == "user" else log.items).versions is not None
    if versioned != (source.as_of is not None):
        actual, expected = ("no as_of", "as_of") if versioned else ("as_of", "no as_of")
        raise DataError(table.where, f"a table with {actual}", f"{expected}, as in the run's data.{role}s")
    kind = table.key_type(key)
    keys = table.table(f"SELECT DISTINCT {name(key)}::{kind} AS key FROM {table.view} WHERE {name(key)} IS NOT NULL")
    return keys["key"].combine_chunks()


def _merge_entities(role: str, log: Log, rows: SortedLog, fitted: FittedSchema, listed: pa.Array | None) -> NewEntities:
    """Return the users or the items of the new rows, with their encoded features."""
    sorted_table, schema = rows.users if role == "user" else rows.items, log.schema
    entities = Entities(role, fitted.schema, sorted_table)
    features = fitted.list_features(role)
    key = schema.user if role == "user" else schema.item
    mask = np.zeros(len(sorted_table.keys) + 1, bool)
    if listed is not None:
        mask[sorted_table.keys.index(listed, role) + 1] = True
        mask[0] = False
    return NewEntities(
        entities.encode(fitted),
        mask,
        frozenset(name for name in features if entities.reads_own_table(name)),
        frozenset(name for name in features if schema.column(name) == key),
    )


def count_file_rows(
    config: DataConfig, source: Source, rows: NewRows, scratch: Path
) -> tuple[list[Path], NDArray[np.int64]]:
    """Return the files of an input, and the number of rows before each, int64 ``[files]``.

    A query and a frame have no files.
    """
    if not source.patterns():
        return [], np.zeros(0, np.int64)
    files = list_files(source.patterns())
    if len(files) == 1:
        return files, np.zeros(1, np.int64)
    counts = []
    with contextlib.closing(relation.connect(config, scratch)) as con:
        for path in files:
            one = replace_files(source, path)
            counts.append(Relation(con, "one_file", one, scratch).one("SELECT count(*) FROM one_file"))
    if sum(counts) != len(rows.numbers):
        what = f"{len(rows.numbers):,} rows together, and {sum(counts):,} file by file"
        raise DataError(str(source), what, "the same rows", "predict each file by itself")
    return files, np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)


def replace_files(source: Source, path: Path) -> Source:
    """Return the input with one of its files."""
    return source.model_copy(update={"files": (str(path),), "splits": None})
