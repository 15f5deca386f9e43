"""A hundred ways to write one small log badly: each returns the input, and what is changed in the schema.

``ROWS`` is the truth. A maker writes it in some form, or something that no reader can take for it.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq

START = 1_700_000_000
NAMES = ("user", "item", "t", "click", "price", "page")
ROWS: list[tuple[Any, ...]] = [
    (3, 11, START, 1, 1.5, "home"),
    (3, 12, START + 60, 0, None, "späti, 24/7"),
    (1, 11, START + 3_600, 0, 2.25, 'the "best"'),
    (2, None, START + 7_200, 1, 0.0, None),
    (1, 13, START + 86_400, 1, -3.0, "home"),
    (2, 12, START + 90_000, 0, 1e3, "a\nb"),
]
SCHEMA: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": {"column": "t"},
    "label": "click",
    "features": {
        "user": {"kind": "id"},
        "item": {"kind": "id"},
        "price": {"kind": "numeric"},
        "page": {"kind": "id"},
    },
    "histories": {"seen": {"features": ["item"]}},
}
Case = tuple[Any, dict[str, Any]]
Maker = Callable[[Path], Case]


def columns(**changed: Any) -> dict[str, Any]:
    """The truth as columns, some of them written in another form."""
    own = {name: [row[index] for row in ROWS] for index, name in enumerate(NAMES)}
    return {name: values for name, values in (own | changed).items() if values is not None}


def when(index: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(ROWS[index][2], dt.UTC)


def times(form: str) -> list[str]:
    return [when(index).strftime(form) for index in range(len(ROWS))]


# ---- Parquet and Arrow


def parquet(schema: dict[str, Any] | None = None, **changed: Any) -> Maker:
    def write(folder: Path) -> Case:
        pq.write_table(pa.table(columns(**changed)), folder / "log.parquet")
        return str(folder / "log.parquet"), schema or {}

    return write


def typed(column: str, kind: pa.DataType, schema: dict[str, Any] | None = None) -> Maker:
    return parquet(schema, **{column: pa.array(columns()[column]).cast(kind, safe=False)})


def instants(unit: str, zone: str | None = None) -> Maker:
    values = pa.array([when(index) for index in range(len(ROWS))], pa.timestamp("s", "UTC"))
    kind = pa.timestamp(unit, zone)
    return parquet(t=values.cast(kind) if zone else values.cast(pa.timestamp("s")).cast(kind))


def arrow(table: Callable[[], pa.Table], compression: str = "uncompressed", name: str = "log.arrow") -> Maker:
    def write(folder: Path) -> Case:
        feather.write_feather(table(), str(folder / name), compression=compression)
        return str(folder / name), {}

    return write


def decimals(column: str, scale: int, schema: dict[str, Any] | None = None) -> Maker:
    values = [None if value is None else Decimal(str(value)) for value in columns()[column]]
    return parquet(schema, **{column: pa.array(values, pa.decimal128(20, scale))})


# ---- text


def cell(value: Any, separator: str = ",", quote: str = '"', escaped: str = '""') -> str:
    text = "" if value is None else str(value)
    if any(mark in text for mark in (separator, quote, "\n")):
        return quote + text.replace(quote, escaped) + quote
    return text


def lines(separator: str = ",", escaped: str = '""', null: str = "", **changed: Any) -> list[str]:
    own = columns(**changed)
    rows = [separator.join(own)]
    for values in zip(*own.values()):
        rows.append(separator.join(null if v is None else cell(v, separator, escaped=escaped) for v in values))
    return rows


def text(
    name: str = "log.csv",
    *,
    schema: dict[str, Any] | None = None,
    end: str = "\n",
    encoding: str = "utf-8",
    pack: Callable[[bytes], bytes] = bytes,
    source: dict[str, Any] | None = None,
    before: str = "",
    after: str = "",
    **form: Any,
) -> Maker:
    def write(folder: Path) -> Case:
        content = before + end.join(lines(**form)) + end + after
        (folder / name).write_bytes(pack(content.encode(encoding)))
        path = str(folder / name)
        return ({"files": path, **source} if source else path), schema or {}

    return write


def raw(content: bytes | str, name: str = "log.csv", schema: dict[str, Any] | None = None) -> Maker:
    def write(folder: Path) -> Case:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(folder / name), schema or {}

    return write


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


def declared(source: dict[str, Any] | None = None, **form: Any) -> Maker:
    """Text without a header, whose cells are declared."""
    kinds = {"user": "int", "item": "int", "t": "int", "click": "int", "price": "float", "page": "text"}

    def write(folder: Path) -> Case:
        (folder / "log.txt").write_text("\n".join(lines(**form)[1:]) + "\n", encoding="utf-8")
        rows = {"columns": kinds, "separator": form.get("separator", ",")}
        more = source or {}
        return {"files": str(folder / "log.txt"), **more, "rows": {**rows, **more.get("rows", {})}}, {}

    return write


# ---- JSON


def objects(**changed: Any) -> list[dict[str, Any]]:
    own = columns(**changed)
    return [dict(zip(own, values)) for values in zip(*own.values())]


def jsonl(
    name: str = "log.jsonl",
    *,
    schema: dict[str, Any] | None = None,
    drop_nulls: bool = False,
    pack: Callable[[bytes], bytes] = bytes,
    as_list: bool = False,
    source: dict[str, Any] | None = None,
    **changed: Any,
) -> Maker:
    def write(folder: Path) -> Case:
        rows = objects(**changed)
        if drop_nulls:
            rows = [{key: value for key, value in row.items() if value is not None} for row in rows]
        content = json.dumps(rows) if as_list else "".join(json.dumps(row) + "\n" for row in rows)
        (folder / name).write_bytes(pack(content.encode()))
        path = str(folder / name)
        return ({"files": path, **source} if source else path), schema or {}

    return write


# ---- several files


def several(*writers: Callable[[Path], object], pattern: str = "?.*", schema: dict[str, Any] | None = None) -> Maker:
    def write(folder: Path) -> Case:
        for one in writers:
            one(folder)
        return str(folder / pattern), schema or {}

    return write


def shard(name: str, start: int = 0, stop: int | None = None, order: int = 1, **changed: Any) -> Callable[[Path], None]:
    """Some of the rows as a file in the form of its name."""

    def write(folder: Path) -> None:
        own = {key: list(values)[start:stop] for key, values in list(columns(**changed).items())[::order]}
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            pq.write_table(pa.table(own), path)
        elif path.suffix == ".jsonl":
            path.write_text("".join(json.dumps(dict(zip(own, row))) + "\n" for row in zip(*own.values())))
        else:
            rows = [",".join(own), *(",".join(map(cell, row)) for row in zip(*own.values()))]
            path.write_text("\n".join(rows) + "\n", encoding="utf-8")

    return write


def blank(name: str, content: bytes = b"") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return write


NULLS = {"nulls": ["NA", "\\N", "-", "null"]}
ITEMS_AS_FLOATS = [None if row[1] is None else float(row[1]) for row in ROWS]
USERS_AS_TEXT = [f"{row[0]:03d}" for row in ROWS]
DAYS = [when(index).date() for index in range(len(ROWS))]
