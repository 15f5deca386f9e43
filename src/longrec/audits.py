"""The audit of a log: ``longrec.audit``, and the command ``longrec audit``."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longrec.errors import ConfigError, DataError

if TYPE_CHECKING:
    import duckdb

    from longrec.auditing.column_roles import ColumnRoles
    from longrec.auditing.events import Events
    from longrec.auditing.finding import Audit
    from longrec.auditing.sequence_order import Sequences
    from longrec.data.relation import Relation
    from longrec.data.settings import DataConfig, Source, Split
    from longrec.features.schema import Schema

_CONFIG_ENDINGS = (".yaml", ".yml", ".config")
_RULES = ("leave_one_out", "time", "user")
"""Splits that need no column."""
_MEMORY = "4GB"


def audit(
    source: Any,
    overrides: Sequence[str] = (),
    *,
    user: str | None = None,
    item: str | None = None,
    time: str | None = None,
    label: str | None = None,
    order: str | None = None,
    split: str | None = None,
    features: Sequence[str] | None = None,
    histories: Sequence[str] | None = None,
    valid: Any = None,
    test: Any = None,
    items: Any = None,
    sequences: Any = None,
    seed: int = 0,
) -> Audit:
    """Audit an interaction log for the faults that make published numbers of recommendation wrong.

    Args:
        source: a file, a folder of files or a pattern (CSV, Parquet, JSON lines, Arrow; ``.txt`` with one line per
            user: the user, then its items), a frame (pandas, polars, Arrow, DuckDB), the folder of a prepared log, or
            the config of a job, whose schema names the columns.
        overrides: settings of a config, such as ``data.log=other.parquet``.
        user, item, time, label, order, split: columns of the log. Those that are not named are guessed from usual
            names. ``order`` numbers the events of each user in the published order; without it, the order is that of
            time, then of the rows. ``split`` is a column with train, valid and test, or a rule: leave_one_out, time, or
            user.
        features: columns to examine as features. Default: all columns of numbers, texts and times.
        histories: list columns of pre-joined histories. Default: the list columns that have items of the log.
        valid, test: files of these splits. ``source`` then is that of train.
        items: table of the items, whose columns are examined too.
        sequences: published sequences that were built from this log, to compare their order with.
        seed: of the random order of ties, and of the sample of users.

    Raises:
        ConfigError: options that do not fit the source.
        DataError: a log or a column that cannot be read, or a role that several columns may have.
    """
    named = {"user": user, "item": item, "time": time, "label": label, "order": order, "split": split}
    options = {**named, "features": features, "histories": histories, "valid": valid, "test": test}
    if isinstance(source, Mapping) or (_is_path(source) and str(source).endswith(_CONFIG_ENDINGS)):
        _refuse(options, "the config names the columns, the files and the split")
        return _audit_job(source, overrides, items, sequences, seed)
    if overrides:
        fault = f"{overrides[0]!r}: one log at a time; several files are a folder or a pattern in quotes"
        if "=" in overrides[0]:
            fault = f"{overrides[0]!r}: is a setting of a config; name columns with options"
        raise ConfigError("audit", [fault])
    if _is_path(source) and (Path(source) / "log.json").exists():
        _refuse({**options, "items": items, "sequences": sequences}, "a prepared log has its columns and its split")
        return _audit_prepared(Path(source), seed)
    from longrec.auditing.column_roles import choose_columns
    from longrec.data.settings import Split

    rule = Split.model_validate({"by": split}) if split in _RULES else None
    named |= {"split": None} if rule is not None else {}
    with _connect() as (con, scratch):
        log = _open(con, "log", _build_source(source, valid, test), scratch)
        roles = choose_columns(log, named, features, histories)
        name = str(source) if _is_path(source) else log.where
        return _run(name, log, roles, rule, _open_more(con, scratch, items, sequences), seed)


def _is_path(source: Any) -> bool:
    return isinstance(source, (str, Path))


def _refuse(options: Mapping[str, Any], reason: str) -> None:
    """Raise one error for all options that are set."""
    faults = [f"{name}: {reason}" for name, value in options.items() if value is not None]
    if faults:
        raise ConfigError("audit", faults)


def _audit_prepared(folder: Path, seed: int) -> Audit:
    from longrec.auditing.checks import run_checks
    from longrec.auditing.prepared_events import list_warnings, read_prepared
    from longrec.data.log import Log

    log = Log.open(folder, stores=False)
    schema = log.schema
    columns = {"user": schema.user, "item": schema.item}
    columns |= {} if schema.time is None else {"time": schema.time.column}
    columns |= {} if schema.label is None else {"label": schema.label.column}
    return run_checks(read_prepared(log), str(folder), columns=columns, further=list_warnings(log), seed=seed)


def _audit_job(source: Any, overrides: Sequence[str], items: Any, sequences: Any, seed: int) -> Audit:
    """Audit the log of a job, as its files have it."""
    from longrec.auditing.column_roles import read_roles
    from longrec.data.sort import list_column_types
    from longrec.imports import read_job_source
    from longrec.training.job import read_job

    job_source = read_job_source(source, overrides)
    with job_source.error_context:
        job = read_job(job_source.config, overrides)
    data, schema = job.data, job.schema
    with _connect(data) as (con, scratch):
        log = _open(con, "log", data.log, scratch, list_column_types(schema))
        roles = read_roles(log, schema, data)
        more = _open_more(con, scratch, data.items if items is None else items, sequences)
        rule = data.split if data.split.by in _RULES else None
        name = str(source) if _is_path(source) else str(data.log)
        return _run(name, log, roles, rule, more, seed, schema)


def _run(
    name: str,
    log: Relation,
    roles: ColumnRoles,
    rule: Split | None,
    more: tuple[Relation | None, Relation | None],
    seed: int,
    schema: Schema | None = None,
) -> Audit:
    from longrec.auditing.checks import run_checks
    from longrec.auditing.reading import read_events

    items, published = more
    events, notes = read_events(log, roles, time=None if schema is None else schema.time, items=items)
    sequences = None if published is None else _read_sequences(events, published, roles)
    return run_checks(events, name, split=rule, columns=roles.describe(), notes=notes, sequences=sequences, seed=seed)


def _read_sequences(events: Events, published: Relation, roles: ColumnRoles) -> Sequences:
    from longrec.auditing.item_table import read_published

    return read_published(events, published, roles.user, roles.item)


@contextlib.contextmanager
def _connect(data: DataConfig | None = None) -> Iterator[tuple[duckdb.DuckDBPyConnection, Path]]:
    """Yield a connection, and a folder for what it writes."""
    import duckdb

    from longrec.data.relation import connect
    from longrec.data.sql import hide_progress, literal

    with tempfile.TemporaryDirectory(prefix="longrec-audit-") as folder:
        scratch = Path(folder)
        con = duckdb.connect() if data is None else connect(data, scratch)
        try:
            if data is None:
                hide_progress(con)
                con.execute(f"SET memory_limit={literal(_MEMORY)}; SET temp_directory={literal(folder)}")
                con.execute("SET TimeZone='UTC'")
            yield con, scratch
        finally:
            con.close()


def _open(con: duckdb.DuckDBPyConnection, view: str, source: Source, scratch: Path, declared: Any = None) -> Relation:
    from longrec.data.relation import Relation

    return Relation(con, view, source, scratch, declared)


def _open_more(
    con: duckdb.DuckDBPyConnection, scratch: Path, items: Any, sequences: Any
) -> tuple[Relation | None, Relation | None]:
    """Return the table of items, and the published sequences."""
    opened = [
        None if source is None else _open(con, view, _build_source(source), scratch)
        for view, source in (("items", items), ("sequences", sequences))
    ]
    return opened[0], opened[1]


def _build_source(source: Any, valid: Any = None, test: Any = None) -> Source:
    """Return an input: a file, files of splits, or a frame. Text with one line per user is read as a frame."""
    from longrec.auditing.item_table import read_lines
    from longrec.data.settings import Source

    if isinstance(source, Source):
        return source
    if valid is not None or test is not None:
        named = {"train": source, "valid": valid, "test": test}
        odd = [name for name, one in named.items() if one is not None and not _is_path(one)]
        if odd:
            raise ConfigError("audit", [f"{name}: must be a file where splits are files" for name in odd])
        return Source.model_validate({"splits": {name: str(one) for name, one in named.items() if one is not None}})
    if not _is_path(source):
        return Source.model_validate({"frame": source})
    if str(source).endswith(".txt"):
        return Source.model_validate({"frame": read_lines(Path(source))})
    return Source.model_validate({"files": [str(source)]})


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "log", help="a file, a folder or a pattern in quotes; the folder of a prepared log; or the config of a job"
    )
    parser.add_argument("overrides", nargs="*", metavar="key.key=value", help="override values of the config")
    for role in ("user", "item", "time", "label"):
        parser.add_argument(f"--{role}", metavar="COLUMN", help=f"column of the {role}; default: by its name")
    order = "column that numbers the events of each user; default: time, then the rows of the file"
    parser.add_argument("--order", metavar="COLUMN", help=order)
    split = f"column with train, valid and test, or {', '.join(_RULES)}; default: by its name, else a rule"
    parser.add_argument("--split", metavar="COLUMN", help=split)
    parser.add_argument("--features", nargs="+", metavar="COLUMN", help="features to examine; default: all columns")
    lists = "list columns of pre-joined histories; default: lists of items of the log"
    parser.add_argument("--history", nargs="+", metavar="COLUMN", help=lists)
    parser.add_argument("--valid", metavar="FILE", help="file of the split valid; LOG then is that of train")
    parser.add_argument("--test", metavar="FILE", help="file of the split test; LOG then is that of train")
    parser.add_argument("--items", metavar="FILE", help="table of the items, whose columns are examined too")
    built = "published sequences that were built from LOG, to compare their order with"
    parser.add_argument("--sequences", metavar="FILE", help=built)
    parser.add_argument("--seed", type=int, default=0, help="seed of the random order of ties")
    parser.add_argument("--strict", action="store_true", help="end with exit code 2 if there is an alarm")


def run_audit(args: argparse.Namespace) -> None:
    """Print the findings of an audit.

    Raises:
        DataError: an alarm, with ``--strict``.
    """
    from longrec.auditing.report_text import format_audit
    from longrec.reporting.tables import write_json

    names = ("user", "item", "time", "label", "order", "split", "features", "valid", "test", "items", "sequences")
    options = {name: getattr(args, name) for name in (*names, "seed")}
    result = audit(args.log, args.overrides, histories=args.history, **options)
    if args.json != "-":
        print(format_audit(result))
    if args.json:
        write_json(result, args.json)
    if args.strict and result.alarms:
        count = f"{len(result.alarms)} alarm{'s' if len(result.alarms) > 1 else ''}"
        raise DataError(args.log, f"{count}: {', '.join(one.name for one in result.alarms)}", "none with --strict")
