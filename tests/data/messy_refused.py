"""Messy files that are refused, each with its message and the way out."""

from __future__ import annotations

import bz2

import pyarrow as pa
from messy_files import (
    DAYS,
    ROWS,
    USERS_AS_TEXT,
    Maker,
    blank,
    columns,
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
)

REFUSED: dict[str, tuple[Maker, str]] = {
    # ---- files
    "bzip2": (text("log.csv.bz2", pack=bz2.compress), r"kind '\.bz2'.*\n  Unpack it, or compress it with gzip or zstd"),
    "gzip around Parquet": (raw(b"x", "log.parquet.gz"), r"kind '\.parquet\.gz'.*\n  Unpack it"),
    "a spreadsheet": (raw(b"PK", "log.xlsx"), r"kind '\.xlsx'.*\n  Save the sheet as CSV"),
    "text without a kind": (raw("x", "part-00000"), r"kind ''.*\n  .*declare the cells of a text file with rows"),
    "a .gz that is none": (raw("a,b\n1,2\n", "log.csv.gz"), r"log\.csv\.gz: cannot be read.*\n  Write it again"),
    "UTF-16": (text(encoding="utf-16"), r"UTF-16 text; expected UTF-8 text\n  .*iconv -f UTF-16 -t UTF-8"),
    "Latin-1": (text(encoding="latin-1"), r"log\.csv, line 3: .*not UTF-8 in .*\n  .*iconv -f ISO-8859-1"),
    "bytes of zero": (raw(b"user,item\n\0\0,1\n"), r"bytes of zero.*UTF-8 text"),
    "JSON that is none": (raw("user: 1\n", "log.jsonl"), r"log\.jsonl: cannot be read: .*\n  Write the file again"),
    "an empty file": (raw(""), r"an empty file; expected a first line with the column names"),
    # ---- lines and headers
    "a short line": (raw("user,item,t\n1,2,3\n1,2\n"), r"log\.csv, line 3: 2 of 3 cells in '1,2'.*the first line"),
    "a long line": (raw("user,item,t\n1,2,3\n1,2,3,4\n"), r"log\.csv, line 3: more than 3 cells.*\n  .*must be quoted"),
    "an open quote": (raw('user,item,t\n1,2,3\n1,"2,3\n'), r"log\.csv, line 3: .*\n  Correct the line"),
    "mixed line ends": (raw("user,item,t\r\n1,2,3\n1,2,4\r\n"), r"line ends or quotes .*one kind of line end per file"),
    "no header": (
        raw("\n".join(lines(page=["x"] * 6)[1:2] * 3)),
        r"no column 'user'.*\n  The first line seems to be a row.*rows\.columns",
    ),
    "a column twice": (
        raw("user,item,t,click,price,page,user\n1,2,3,0,1,x,9\n"),
        r"the column 'user' \(the user\) twice.*\n  Rename one",
    ),
    "names that differ in case": (parquet(USER=[1] * 6), r"columns 'user' and 'USER'; expected distinct names"),
    "a name in another case": (parquet(user=None, User=[1] * 6), r"no column 'user' \(the user\), did you mean 'User'"),
    # ---- values
    "NA among prices": (
        text(null="NA"),
        r"'price': text, first 'NA' in row 2.*\n  If 'NA' means missing, list it in nulls: data\.log",
    ),
    "decimal commas": (
        text(separator=";", price=["1,5"] * 6),
        r"'price': text, first '1,5' in row 1.*\n  Write decimal points.*replace\(price",
    ),
    "currencies": (text(price=["$1"] * 6), r"'price': text, first '\$1' in row 1"),
    "text prices in Parquet": (parquet(price=["1.5"] * 6), r"numbers stored as text.*\n  Set casts: \{price: float\}"),
    "fractions as users": (parquet(user=[1.5] * 6), r"'user': ids stored as floats \(DOUBLE\), such as 1\.5 in row 1"),
    "float32 users beyond 2**24": (
        parquet(user=pa.array([2.0**24 + 2] * 6, pa.float32())),
        r"ids stored as floats \(FLOAT\), the largest 16777218; .*2\*\*24",
    ),
    "binary pages": (typed("page", pa.binary()), r"'page': ids of type BLOB.*\n  Set casts: \{page: text\}"),
    "dates as pages": (parquet(page=DAYS), r"'page': ids of type DATE.*\n  Set casts: \{page: text\}"),
    "structs": (
        parquet(page=[{"id": 1}] * 6),
        r"'page': ids of type STRUCT.*\n  Select a field of it with a query.*page\.id",
    ),
    "lists": (parquet(page=[["a"]] * 6), r"'page': ids of type VARCHAR\[\].*\n  Declare the feature multi_id"),
    "maps": (
        parquet(page=pa.array([[("a", 1)]] * 6, pa.map_(pa.string(), pa.int64()))),
        r"'page': ids of type MAP.*\n  Select a field",
    ),
    "JSON of several types": (
        jsonl(page=[1, True, "x", None, 2, "y"]),
        r"'page': values of several types.*\n  .*casts: \{page: text\}",
    ),
    "JSON objects": (jsonl(page=[{"id": 1}] * 6), r"'page': ids of type STRUCT"),
    "unsigned ids beyond 63 bits": (
        parquet(user=pa.array([2**63 + 1] * 6, pa.uint64())),
        r"needs more than 64 bits.*\n  .*casts: \{user: text\}",
    ),
    "a cast that rounds": (
        typed("price", pa.float64(), {"casts": {"price": "int"}}),
        r"'price': 1\.5 in row 1, and casts to int",
    ),
    "a cast of words": (
        parquet({"casts": {"page": "float"}}),
        r"'page': 'home' in row 1, and casts to float; expected numbers",
    ),
    "a cast of fractions to text": (
        typed("price", pa.float64(), {"casts": {"price": "text"}}),
        r"1\.5 in row 1.*the text of a fraction",
    ),
    "a cast of a list": (
        parquet({"casts": {"page": "int"}}, page=[[1]] * 6),
        r"values of type BIGINT\[\]; expected values that can be cast to int",
    ),
    "prices in lists": (parquet(price=[[1.5]] * 6), r"'price': values of type DOUBLE\[\].*\n  Set width"),
    "dates as prices": (
        parquet(price=DAYS),
        r"'price': values of type DATE; .*\n  Convert it with a query.*epoch\(price\)",
    ),
    "words as labels": (
        text(click=["Yes", "No"] * 3),
        r"'click': text, first 'Yes'.*\n  Set label: \{column: click, equals",
    ),
    "a line of three megabytes": (
        raw("user,item\n1," + "x" * 3_000_000),
        r"line 2: a line of more than 2,000,000 bytes.*\n  .*Parquet",
    ),
    # ---- times
    "YYMMDDHH": (
        parquet(t=[int(one) for one in times("%y%m%d%H")]),
        r"encode a date as YYMMDDHH .*\n  Set time\.format",
    ),
    "US dates": (text(t=times("%m/%d/%Y")), r"the order of day and month is ambiguous\)\n  Set time\.format"),
    "month names": (text(t=times("%d %b %Y")), r"the text '14 Nov 2023'.*\n  Set time\.format"),
    "words among times": (text(t=[*times("%Y-%m-%d")[:5], "soon"]), r"'t': the text 'soon'; expected ISO 8601"),
    "float32 seconds": (typed("t", pa.float32()), r"times as 32-bit floats .*\n  Write the column again"),
    "times of day": (
        parquet(t=[one.time() for one in map(when, range(6))]),
        r"times of type TIME.*; expected whole numbers",
    ),
    "mixed units": (
        parquet(t=[row[2] * (1_000 if i == 3 else 1) for i, row in enumerate(ROWS)]),
        r"times in mixed units",
    ),
    "null times": (parquet(t=[None, *columns()["t"][1:]]), r"'t': 1 null value, first in row 1"),
    # ---- several files
    "a file twice": (
        lambda folder: (parquet()(folder)[0] and [str(folder / "log.parquet"), str(folder / "l*.parquet")], {}),
        r"listed twice, so each of its rows would count twice.*\n  Remove one of the names",
    ),
    "a part without a column": (
        several(shard("a.csv", 0, 3), shard("b.csv", 3, 6, click=None)),
        r"b\.csv has no column 'click' \(the label\).*\n  Write the file again with this column",
    ),
    "a JSON part without a key": (
        several(shard("a.jsonl", 0, 3), shard("b.jsonl", 3, 6, click=None)),
        r"b\.jsonl has no column 'click' \(the label\)",
    ),
    "parts of two types": (
        several(shard("a.parquet", 0, 3), shard("b.parquet", 3, 6, user=USERS_AS_TEXT)),
        r"'user' \(the user\) is integers in .*a\.parquet and text in .*b\.parquet",
    ),
    "parts of two kinds": (
        several(shard("a.csv", 0, 3), shard("b.parquet", 3, 6)),
        r"files of the kinds \.csv, \.parquet",
    ),
    "a folder in a folder": (
        several(shard("log/old/a.parquet"), pattern="log"),
        r"the folder 'old' in it.*\n  Use a pattern",
    ),
    "an empty folder": (several(blank("log/_SUCCESS"), pattern="log"), r"an empty folder.*\n  Use a pattern"),
}
