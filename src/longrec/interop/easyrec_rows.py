"""Conversion of EasyRec's row files and columns to ``data.log``, and the columns of user, item and label."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longrec.errors import nearest
from longrec.interop.easyrec_section import Section
from longrec.interop.text_format import Position

_CSV = ("CSVInput", "CSVInputV2", "CSVInputEx")
_PARQUET = ("ParquetInput", "ParquetInputV2", "ParquetInputV3", "HiveParquetInput")
_TYPES = {"INT32": "int", "INT64": "int", "FLOAT": "float", "DOUBLE": "float", "STRING": "text", "BOOL": "text"}
_EXPANDED = re.compile(r"([^\[\]]+)\[([0-9]{1,9})-([0-9]{1,9})\]")
_MOST = 10_000
"""Largest number of columns in one ``name[1-3]``."""

USERS = (
    "user_id", "userid", "uid", "user", "member_id", "buyer_id", "visitor_id", "customer_id", "account_id", "device_id",
    "imei",
)  # fmt: skip
ITEMS = (
    "item_id", "itemid", "iid", "item", "adgroup_id", "ad_id", "goods_id", "sku_id", "spu_id", "product_id", "video_id",
    "article_id", "news_id", "doc_id", "photo_id", "movie_id", "note_id", "content_id", "creative_id",
)  # fmt: skip
LIKE_AN_ITEM = re.compile(r"(item|goods|sku|product)_?id$")


@dataclass
class Rows:
    """The columns of the rows, by name.

    Attributes:
        types: ``int``, ``float`` or ``text`` of every column, in order. A conversion may change them.
        declared: EasyRec's type of every column.
        positions: line and column of each declaration.
        defaults: value of an empty cell.
        parquet: the rows are Parquet, which has types and nulls of its own.
        number: name of the column with the row number. None when nothing needs it.
    """

    config: Section
    types: dict[str, str] = field(default_factory=dict)
    declared: dict[str, str] = field(default_factory=dict)
    positions: dict[str, Position] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    parquet: bool = False
    number: str | None = None

    def has(self, name: str) -> bool:
        """Return True if a column is declared. Parquet files may have more."""
        return name in self.types

    def add_row_number(self) -> str:
        """Add a column with the row number, and return its name."""
        if self.number is None:
            self.number = next(name for name in ("row", "row_number", "_row_number_") if name not in self.types)
        return self.number

    def require(self, name: str, section: Section, key: str) -> bool:
        """Return True if a column is declared. Add a fault otherwise."""
        if name in self.types:
            return True
        near = nearest(name, self.types)
        hint = f"did you mean {near!r}?" if near else "declare it under data_config.input_fields"
        section.fault(key, f"names the column {name!r}, which is not declared; {hint}")
        return False

    def convert_log(self, paths: dict[str, list[Path | str]]) -> dict[str, Any]:
        """Return the ``data.log`` section."""
        settings: dict[str, Any] = {"splits": paths}
        if self.parquet:
            return settings | ({"rows": {"number": self.number}} if self.number else {})
        rows: dict[str, Any] = {
            "header": self.config.get("with_header", False),
            "separator": self.config.get("separator", ","),
            "columns": dict(self.types),
        }
        if self.defaults:
            rows["defaults"] = {name: value for name, value in self.defaults.items() if name in self.types}
        if self.number:
            rows["number"] = self.number
        return settings | {"rows": rows}


def expand_range(name: str, section: Section, key: str, names: Collection[str] = ()) -> list[str]:
    """Expand ``name[1-3]`` to name1, name2, name3. Return any other name as it is.

    ``name[01-03]`` expands to the same names, as in EasyRec, except that name01 is used where it exists and name1 does
    not.

    Args:
        names: existing names. One of them is never expanded.
    """
    match = _EXPANDED.fullmatch(name)
    if match is None or name in names:
        return [name]
    first, last = int(match[2]), int(match[3])
    if last < first or last - first >= _MOST:
        section.fault(key, f"is {name!r}; expected a rising range of {_MOST:,} names at most")
        return []
    plain = [f"{match[1]}{number}" for number in range(first, last + 1)]
    padded = [f"{match[1]}{number:0{len(match[2])}}" for number in range(first, last + 1)]
    return [two if two in names and one not in names else one for one, two in zip(plain, padded)]


def read_rows(top: Section) -> Rows:
    """Return the declared columns."""
    config = top.section("data_config")
    rows = Rows(config)
    if not config.present:
        top.fault("data_config", "is missing; expected the columns of the rows")
        return rows
    kind = config.get("input_type")
    if kind is None:
        config.fault("input_type", "is missing; expected CSVInput or ParquetInput")
    elif kind in _PARQUET:
        rows.parquet = True
    elif kind not in _CSV:
        config.fault("input_type", f"is {kind}, which is not read; write the rows to CSV or Parquet files, say so here")
    rows.parquet = rows.parquet or top.has("parquet_train_input")
    for name in ("shuffle", "ignore_error", "drop_remainder"):  # fixed here, as their notes explain
        config.get(name)
    auto = config.get("auto_expand_input_fields", False)
    for one in config.all("input_fields"):
        name, declared = one.get("input_name", ""), one.get("input_type", "STRING")
        one.get("input_dim")
        if not name:
            one.fault("input_name", "is missing or empty; expected the name of a column")
            continue
        for column in expand_range(name, one, "input_name") if auto else [name]:
            if column in rows.types:
                one.fault("input_name", f"declares the column {column!r} again; expected distinct names")
                continue
            rows.types[column], rows.declared[column] = _TYPES[declared], declared
            rows.positions[column] = one.position
            _read_default(rows, one, column)
            one.reading.origins[f"data.log.rows.columns.{column}"] = one.position
            one.reading.origins[f"data.log.rows.defaults.{column}"] = one.position
    if not rows.types and not rows.parquet:
        config.fault("input_fields", "is missing; expected the columns of the rows, in their order")
    if rows.parquet:
        for name in ("separator", "with_header"):
            if config.has(name):
                config.note(name, "not carried", "Parquet files have no text to split")
                config.get(name)
    separator = config.get("separator", ",")
    if not separator:
        config.fault("separator", "is empty; expected the text between two cells")
    for name in ("data.log.rows", "data.log.rows.separator"):
        config.record_origin(name, "separator")
    return rows


def _read_default(rows: Rows, one: Section, column: str) -> None:
    """Read the value of an empty cell. Default: 0 for EasyRec's numbers, missing for its text."""
    text, kind = one.get("default_val", ""), rows.types[column]
    if rows.parquet:
        if text:
            one.note("default_val", "not carried", "a null of a Parquet file counts as missing")
        return
    if kind == "text":
        if text:
            rows.defaults[column] = text
        return
    try:
        rows.defaults[column] = (int if kind == "int" else float)(text or 0)
    except ValueError:
        one.fault("default_val", f"is {text!r}; expected a number, as the column is {rows.declared[column]}")


def find_paths(top: Section, split: str, folder: Path) -> list[Path | str]:
    """Return the files of ``train`` or ``eval``: paths relative to the configuration's folder, and URLs."""
    name = top.written_field(split)
    if name is None:
        top.reading.fault(top.position, f"{split}_input_path is missing; expected the files of the rows to {split} on")
        return []
    text = top.get(name)
    if not isinstance(text, str):  # a stream or a table of a cluster, which its table refuses
        return []
    top.record_origin("data.log" if split == "train" else "data.log.splits", name)
    for ours in ("train",) if split == "train" else ("valid", "test"):
        top.record_origin(f"data.log.splits.{ours}", name)
    files: list[Path | str] = []
    for piece in text.split(","):
        piece = piece.strip()
        if not piece or "\0" in piece:
            top.fault(name, f"holds {piece!r}; expected paths, parted by commas")
        elif piece.startswith("odps://"):
            top.fault(name, f"is a table of MaxCompute ({piece}); write the rows to CSV or Parquet files")
        else:
            files.append(piece if "://" in piece else folder / piece)
    return files


def find_label(top: Section, rows: Rows, tasks: Sequence[str] = ()) -> str:
    """Return the column of the label.

    Args:
        tasks: the label columns of a model of several tasks, the schema's label first.
    """
    config, model = rows.config, top.section("model_config")
    fields = config.all("label_fields")
    chosen = tasks[0] if tasks else model.get("label_name")
    if not tasks and chosen is not None and chosen not in fields:
        model.fault("label_name", f"is {chosen!r}; expected one of label_fields: {', '.join(fields) or 'none'}")
    if any(dim != 1 for dim in config.all("label_dim")):
        config.fault("label_dim", "has a label of several numbers; expected one number per label")
    if not fields:
        if config.present:
            config.fault("label_fields", "is missing; expected the column of the label")
        return ""
    column: str = chosen if chosen in fields else fields[0]
    for one in dict.fromkeys([column, *tasks]):
        _require_binary(one, rows)
    others = [name for name in fields if name != column and name not in tasks]
    if others:
        config.note("label_fields", "differs", f"{column} is the label; {', '.join(others)} is not read")
    config.record_origin("data.schema.label", "label_fields")
    return column


def _require_binary(column: str, rows: Rows) -> None:
    """Require that a column can hold a label: 0 and 1, as numbers."""
    config = rows.config
    if not rows.require(column, config, "label_fields"):
        return
    if rows.declared[column] == "BOOL":
        config.fault("label_fields", f"names {column!r}, which is BOOL; declare it as INT32 and write 0 and 1")
    if rows.types[column] == "text":
        rows.types[column] = "float"
        rows.defaults.setdefault(column, 0)


def find_keys(
    top: Section, rows: Rows, user: str | None, item: str | None, taken: Sequence[str], metrics: Sequence[Section] = ()
) -> tuple[str, str, str, str]:
    """Return the columns of user and item, and the reason for each.

    Args:
        user: column of the user. None: one is chosen.
        item: column of the item. None: one is chosen.
        taken: columns of labels, which are not chosen.
        metrics: metrics of the towers.
    """
    config, option_for = rows.config, rows.config.reading.option_for
    free = [name for name in rows.types if name not in taken]
    for key, chosen in (("user", user), ("item", item)):
        if chosen is not None and not rows.has(chosen) and not rows.parquet:
            near = nearest(chosen, rows.types)
            hint = f"did you mean {near!r}?" if near else f"known: {', '.join(rows.types)}"
            config.reading.fault(
                config.position_of("input_fields", 0), f"{option_for(key)}: no column named {chosen!r}; {hint}"
            )
    user_column, why_user = user, f"set by {option_for('user')}"
    if user_column is None:
        user_column, why_user = _find_uid_field([*top.section("eval_config").all("metrics_set"), *metrics], rows)
    if user_column is None:
        user_column = next((name for name in USERS if name in free), None)
        why_user = f"by its name; override with {option_for('user')}"
    if user_column is None:
        user_column, why_user = rows.add_row_number(), "no column names a user, so each row is a user of its own; "
        why_user += f"set one with {option_for('user', 'COLUMN')}"
    item_column, why_item = item, f"set by {option_for('item')}"
    if item_column is None:
        names = [*ITEMS, *sorted(name for name in free if LIKE_AN_ITEM.search(name))]
        item_column = next((name for name in names if name in free and name != user_column), None)
        why_item = f"by its name; override with {option_for('item')}"
    if item_column is None:
        if free:
            columns = ", ".join(free[:12]) + (", ..." if len(free) > 12 else "")
            config.reading.fault(
                config.position_of("input_fields", 0),
                "data_config.input_fields has no column that names the item by a usual name; "
                f"set it with {option_for('item', 'COLUMN')}: {columns}",
            )
        item_column = "item"
    for path, column in (("user", user_column), ("item", item_column)):
        config.reading.origins[f"data.schema.{path}"] = rows.positions.get(column, config.position)
    return user_column, item_column, why_user, why_item


def _find_uid_field(metrics: Sequence[Section], rows: Rows) -> tuple[str | None, str]:
    """Return GAUC's ``uid_field``, and the reason for choosing it."""
    named = [(one.section("gauc"), one.section("gauc").get("uid_field")) for one in metrics]
    for gauc, uid in named:
        if uid is not None and rows.require(uid, gauc, "uid_field"):
            return uid, f"by the gauc metric; override with {rows.config.reading.option_for('user')}"
    return None, ""
