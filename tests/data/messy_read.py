"""Messy files that are read as the truth, each with what is written otherwise than in ``ROWS``."""

from __future__ import annotations

import gzip
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
from messy_files import (
    DAYS,
    ITEMS_AS_FLOATS,
    NAMES,
    NULLS,
    ROWS,
    USERS_AS_TEXT,
    Maker,
    arrow,
    blank,
    columns,
    decimals,
    declared,
    instants,
    jsonl,
    lines,
    parquet,
    raw,
    several,
    shard,
    text,
    times,
    typed,
    when,
    zstd,
)

BERLIN = ZoneInfo("Europe/Berlin")
TEXT_USERS = {"user": {1: "001", 2: "002", 3: "003"}}
DIGITS = {"user": {1: "1", 2: "2", 3: "3"}}
TO_TEXT: dict[str, Any] = {"casts": {"user": "text"}}
QUOTED = [",".join('"' + str("" if v is None else v).replace('"', '""') + '"' for v in row) for row in (NAMES, *ROWS)]
VERSIONS = ["1.50", "1.5", "2.0", "2", None, "3"]
LETTERS = ["T", "F", "T", None, "F", "T"]


def _fmt(pattern: str) -> dict[str, Any]:
    return {"time": {"column": "t", "format": pattern}}


READ: dict[str, tuple[Maker, dict[str, Any]]] = {
    # ---- Parquet: types of numbers
    "int64": (parquet(), {}),
    "int8 users": (typed("user", pa.int8()), {}),
    "uint16 users": (typed("user", pa.uint16()), {}),
    "uint64 users": (typed("user", pa.uint64()), {}),
    "float items with nulls": (parquet(item=ITEMS_AS_FLOATS), {}),
    "float items with NaN": (parquet(item=[float("nan") if v is None else v for v in ITEMS_AS_FLOATS]), {}),
    "float32 users": (typed("user", pa.float32()), {}),
    "decimal users": (decimals("user", 0), {}),
    "decimal items with places": (decimals("item", 2), {}),
    "decimal prices": (decimals("price", 4), {}),
    "decimal seconds": (decimals("t", 3), {}),
    "float16 prices": (typed("price", pa.float16()), {}),
    "float32 prices": (typed("price", pa.float32()), {}),
    "boolean labels": (typed("click", pa.bool_()), {}),
    "float labels": (typed("click", pa.float64()), {}),
    "decimal labels": (decimals("click", 1), {}),
    # ---- Parquet and Arrow: types of text
    "large strings": (typed("page", pa.large_string()), {}),
    "string views": (arrow(lambda: pa.table(columns(page=pa.array(columns()["page"], pa.string_view())))), {}),
    "dictionaries": (parquet(page=pa.array(columns()["page"]).dictionary_encode()), {}),
    "dictionaries of integers": (parquet(user=pa.array(columns()["user"]).dictionary_encode()), {}),
    "binary pages with a cast": (typed("page", pa.binary(), {"casts": {"page": "text"}}), {}),
    "text users with zeros": (parquet(user=USERS_AS_TEXT), TEXT_USERS),
    "text users cast to int": (parquet({"casts": {"user": "int"}}, user=USERS_AS_TEXT), {}),
    "text prices cast to float": (
        parquet({"casts": {"price": "float"}}, price=["1.5", None, "2.25", "0", "-3", "1e3"]),
        {},
    ),
    "integer users cast to text": (parquet(TO_TEXT), DIGITS),
    "float users cast to text": (typed("user", pa.float64(), TO_TEXT), DIGITS),
    # ---- Parquet: timestamps
    "timestamp s": (instants("s"), {}),
    "timestamp ms": (instants("ms"), {}),
    "timestamp us": (instants("us"), {}),
    "timestamp ns": (instants("ns"), {}),
    "timestamp ns UTC": (instants("ns", "UTC"), {}),
    "timestamp us Berlin": (instants("us", "Europe/Berlin"), {}),
    "timestamp ns offset": (instants("ns", "+05:30"), {}),
    "milliseconds": (parquet(t=[row[2] * 1_000 for row in ROWS]), {}),
    "nanoseconds": (parquet(t=[row[2] * 10**9 for row in ROWS]), {}),
    "float seconds": (typed("t", pa.float64()), {}),
    "int96 timestamps": (
        lambda folder: (
            pq.write_table(
                pa.table(columns(t=pa.array([when(i) for i in range(len(ROWS))], pa.timestamp("ns")))),
                folder / "log.parquet",
                use_deprecated_int96_timestamps=True,
            )
            or str(folder / "log.parquet"),
            {},
        ),
        {},
    ),
    "dates": (parquet(t=DAYS), {"t": lambda t: t - t % 86_400}),
    "date64": (parquet(t=pa.array(DAYS, pa.date64())), {"t": lambda t: t - t % 86_400}),
    "YYMMDDHH with a format": (
        parquet(_fmt("%y%m%d%H"), t=[int(text) for text in times("%y%m%d%H")]),
        {"t": lambda t: t - t % 3_600},
    ),
    "YYYYMMDD text with a format": (parquet(_fmt("%Y%m%d"), t=times("%Y%m%d")), {"t": lambda t: t - t % 86_400}),
    # ---- text: separators, quotes, line ends
    "CSV": (text(), {}),
    "TSV": (text("log.tsv", separator="\t"), {}),
    "semicolons": (text(separator=";"), {}),
    "pipes": (text(separator="|"), {}),
    "tabs in a .csv": (text(separator="\t"), {}),
    "backslash before quotes": (text(escaped='\\"'), {}),
    "Windows line ends": (
        text(end="\r\n", page=[row[5] and row[5].replace("\n", " ") for row in ROWS]),
        {"page": {"a\nb": "a b"}},
    ),
    "old Mac line ends": (
        text(end="\r", page=[row[5] and row[5].replace("\n", " ") for row in ROWS]),
        {"page": {"a\nb": "a b"}},
    ),
    "a byte order mark": (text(encoding="utf-8-sig"), {}),
    "no line end at the end": (raw("\n".join(lines())), {}),
    "empty lines": (text(after="\n\n\n"), {}),
    "blanks in the header": (raw("user, item, t, click, price, page\n" + "\n".join(lines()[1:]) + "\n"), {}),
    "an index of pandas": (
        raw("\n".join(f"{'' if i == 0 else i - 1},{one}" for i, one in enumerate(lines(page=["x"] * 6))) + "\n"),
        {"page": lambda page: "x"},
    ),
    "every cell quoted": (
        raw("\n".join(QUOTED)),
        {},
    ),
    "a repeated column that nothing reads": (text(more=[1] * 6, MORE=[2] * 6), {}),
    # ---- text: values
    "gzip": (text("log.csv.gz", pack=gzip.compress), {}),
    "zstd": (text("log.csv.zst", pack=zstd), {}),
    "gzip without a kind": (text("clicks.2024.gz", pack=gzip.compress), {}),
    "TSV in zstd": (text("log.tsv.zst", pack=zstd, separator="\t"), {}),
    "null texts": (text(null="NA", source=NULLS), {}),
    "null texts of Hive": (text(null="\\N", source=NULLS), {}),
    "null texts in Parquet": (
        lambda folder: (
            {"files": parquet(page=[row[5] or "null" for row in ROWS])(folder)[0], **NULLS},
            {},
        ),
        {},
    ),
    "integers with .0": (text(item=ITEMS_AS_FLOATS), {}),
    "true and false": (text(click=[("false", "true")[row[3]] for row in ROWS]), {}),
    "True and False": (text(click=[bool(row[3]) for row in ROWS]), {}),
    "NaN prices": (text(price=["NaN" if row[4] is None else row[4] for row in ROWS]), {}),
    "exponents": (text(price=[None if row[4] is None else f"{row[4]:e}" for row in ROWS]), {}),
    "zeros in front of ids": (text(user=USERS_AS_TEXT), TEXT_USERS),
    "zeros in front cast to int": (text(user=USERS_AS_TEXT, schema={"casts": {"user": "int"}}), {}),
    "digits cast to text": (text(schema=TO_TEXT), DIGITS),
    "ids that look like dates": (
        text(page=["2024-01-02", None, "2024-01-03", None, "x", "y"]),
        {"page": ["2024-01-02", None, "2024-01-03", None, "x", "y"]},
    ),
    "ids beyond 64 bits": (
        text(user=[10**20 + row[0] for row in ROWS]),
        {"user": {n: str(10**20 + n) for n in (1, 2, 3)}},
    ),
    "ids such as 1.50": (text(page=VERSIONS), {"page": VERSIONS}),
    "T and F": (text(page=LETTERS), {"page": LETTERS}),
    "ISO text": (text(t=times("%Y-%m-%dT%H:%M:%SZ")), {}),
    "ISO text with an offset": (text(t=[when(i).astimezone(BERLIN).isoformat() for i in range(6)]), {}),
    "US dates with a format": (text(t=times("%m/%d/%Y %H:%M:%S"), schema=_fmt("%m/%d/%Y %H:%M:%S")), {}),
    "month names with a format": (text(t=times("%d %b %Y %I:%M:%S %p"), schema=_fmt("%d %b %Y %I:%M:%S %p")), {}),
    "long cells": (
        text(page=["x" * 100_000] * 6),
        {"page": lambda page: "x" * 100_000},
    ),
    # ---- declared rows
    "rows without a header": (declared(), {}),
    "rows with null texts": (declared(source=NULLS, null="\\N"), {}),
    "rows with an escape": (declared(source={"rows": {"escape": "\\"}}, escaped='\\"'), {}),
    "rows between semicolons": (declared(separator=";"), {}),
    # ---- JSON
    "JSON lines": (jsonl(), {}),
    "JSON without null keys": (jsonl(drop_nulls=True), {}),
    "JSON in gzip": (jsonl("log.jsonl.gz", pack=gzip.compress), {}),
    "JSON in zstd": (jsonl("log.ndjson.zst", pack=zstd), {}),
    "a JSON list": (jsonl("log.json", as_list=True), {}),
    "JSON with ISO times": (jsonl(t=times("%Y-%m-%dT%H:%M:%S")), {}),
    "JSON with null texts": (jsonl(page=[row[5] or "NA" for row in ROWS], source=NULLS), {}),
    "JSON ids that look like dates": (
        jsonl(page=["2024-01-02"] * 6),
        {"page": lambda page: "2024-01-02"},
    ),
    "JSON of several types with a cast": (
        jsonl(page=[1, True, "x", None, 2.5, "y"], schema={"casts": {"page": "text"}}),
        {"page": ["1", "true", "x", None, "2.5", "y"]},
    ),
    "JSON with an object that nothing reads": (jsonl(more=[{"a": 1}] * 6), {}),
    # ---- several files
    "columns in another order": (several(shard("a.csv", 0, 3), shard("b.csv", 3, 6, order=-1)), {}),
    "parts of Spark": (
        several(
            shard("log/part-0.parquet", 0, 3),
            shard("log/part-1.parquet", 3, 6),
            blank("log/_SUCCESS"),
            blank("log/_metadata", b"x"),
            blank("log/.part-0.parquet.crc", b"x"),
            pattern="log",
        ),
        {},
    ),
    "an empty part among others": (several(shard("a.csv", 0, 6), blank("b.csv"), shard("c.csv", 6, 6)), {}),
    "partitions of Spark": (
        several(
            shard("log/page=home/a.parquet", 0, 3, page=None),
            shard("log/page=x%20y/a.parquet", 3, 6, page=None),
            blank("log/_SUCCESS"),
            pattern="log",
        ),
        {"page": ["home"] * 3 + ["x y"] * 3},
    ),
    "partitions of integers and nulls": (
        several(
            shard("log/item=7/a.parquet", 0, 3, item=None),
            shard("log/item=__HIVE_DEFAULT_PARTITION__/a.parquet", 3, 6, item=None),
            pattern="log",
        ),
        {"item": [7, 7, 7, None, None, None]},
    ),
    "JSON files with other keys": (several(shard("a.jsonl", 0, 3, more=[1] * 6), shard("b.jsonl", 3, 6)), {}),
}
