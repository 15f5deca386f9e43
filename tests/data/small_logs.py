"""Small logs with something wrong: each builder writes files into a folder and returns the data section and schema."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.feather as feather
import pyarrow.parquet as pq

N, START = 40, 1_600_000_000
SCHEMA: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": {"column": "t"},
    "label": "click",
    "features": {
        "user": {"kind": "id"},
        "item": {"kind": "id"},
        "price": {"kind": "numeric"},
        "size": {"kind": "bucketized", "edges": [1, 2]},
        "page": {"kind": "id"},
        "click": {"kind": "id", "feedback": True},
    },
    "histories": {"all": {"features": ["item", "click"], "max_length": 5}},
}
Case = tuple[dict[str, Any], dict[str, Any]]
"""The data section and what is replaced in the schema."""


def log(**columns: Any) -> pa.Table:
    random = np.random.default_rng(0)
    base: dict[str, Any] = {
        "user": random.integers(0, 4, N),
        "item": random.integers(0, 6, N),
        "t": START + np.arange(N) * 60,
        "click": np.arange(N) % 2,
        "price": np.arange(N) / 2,
        "size": np.arange(N) % 3,
        "page": ["home"] * N,
    }
    return pa.table({name: values for name, values in (base | columns).items() if values is not None})


def with_one(values: Any, odd: Any, at: int = 17) -> list[Any]:
    values = list(values)
    values[at] = odd
    return values


def parquet_log(**columns: Any) -> Callable[[Path], Case]:
    """A Parquet log with these columns instead."""

    def write(folder: Path) -> Case:
        pq.write_table(log(**columns), folder / "log.parquet")
        return {"log": str(folder / "log.parquet")}, {}

    return write


def under(
    schema: dict[str, Any] | None = None, data: dict[str, Any] | None = None, **columns: Any
) -> Callable[[Path], Case]:
    """A Parquet log under another schema or data section."""

    def write(folder: Path) -> Case:
        data_section, _ = parquet_log(**columns)(folder)
        return data_section | (data or {}), schema or {}

    return write


def feature(definition: dict[str, Any], **columns: Any) -> Callable[[Path], Case]:
    """A Parquet log under a schema with one feature more, ``x``."""
    return under({"features": {**SCHEMA["features"], "x": definition}}, **columns)


def csv(text: str | None = None, name: str = "log.csv", **columns: Any) -> Callable[[Path], Case]:
    """A CSV log: the base with other columns, or this text."""

    def write(folder: Path) -> Case:
        path = folder / name
        if text is None:
            pacsv.write_csv(log(**columns), path)
        else:
            path.write_text(text, encoding="utf-8")
        return {"log": str(path)}, {}

    return write


def late_text(column: str) -> Callable[[Path], Case]:
    """A CSV log whose one bad value stands far beyond the rows that rule out types first."""

    def write(folder: Path) -> Case:
        header = "user,item,t,click,price,size,page\n"
        lines = [f"{n % 9},{n % 7},{START + n},{n % 2},{n % 5}.5,{n % 3},home\n" for n in range(6_000)]
        cells = dict(zip(header.strip().split(","), lines[-5].strip().split(","))) | {column: "oops"}
        lines[-5] = ",".join(cells.values()) + "\n"
        (folder / "log.csv").write_text(header + "".join(lines))
        return {"log": str(folder / "log.csv")}, {}

    return write


def raw(name: str, content: bytes) -> Callable[[Path], Case]:
    def write(folder: Path) -> Case:
        (folder / name).write_bytes(content)
        return {"log": str(folder / name)}, {}

    return write


def cut(name: str, keep: float, column: str | None = None) -> Callable[[Path], Case]:
    """A file that ends too early; or with bytes of garbage in the middle."""

    def write(folder: Path) -> Case:
        path = folder / name
        if path.suffix == ".parquet":
            pq.write_table(log(), path)
        else:
            feather.write_feather(log(), str(path), compression="uncompressed")
        whole = path.read_bytes()
        middle = whole[:60] + bytes(200) + whole[260:]
        path.write_bytes(whole[: int(len(whole) * keep)] if keep < 1 else middle)
        return {"log": str(path)}, {}

    return write


def named(source: Any) -> Callable[[Path], Case]:
    def write(folder: Path) -> Case:
        parquet_log()(folder)
        at = [str(folder / name) for name in source] if isinstance(source, list) else source
        return {"log": {"query": at["query"].format(folder=folder)} if isinstance(at, dict) else at}, {}

    return write


def table(
    role: str, columns: dict[str, Any], x: dict[str, Any] | None = None, as_of: str | None = None, unit: str = "auto"
) -> Callable[[Path], Case]:
    """The base log with a table of users or items, and a feature ``x`` of it."""

    def write(folder: Path) -> Case:
        data, _ = parquet_log()(folder)
        pq.write_table(pa.table(columns), folder / "table.parquet")
        extra = {"x": {"kind": "id", "side": role.removesuffix("s"), **(x or {})}}
        source = {"files": str(folder / "table.parquet"), **({} if as_of is None else {"as_of": as_of})}
        schema_changes = {"features": {**SCHEMA["features"], **extra}, "time": {"column": "t", "unit": unit}}
        return data | {role: source}, schema_changes

    return write
