"""Dialect of a text file with a header: its column names, separator and quoting, from the first lines alone.

The whole file is then read with this dialect. A line that does not fit is an error, never a reason to try another one.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from longrec.errors import DataError

_SAMPLE = 1 << 18
"""Number of bytes that are examined."""
_SEPARATORS = (",", "\t", ";", "|")
_ROW_GROUP_BYTES = 64 << 20
_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


@dataclass(frozen=True)
class Dialect:
    """Dialect of a text file.

    Attributes:
        names: column names, in file order. Empty for a file without any text.
        separator: separator between cells.
        escape: character that precedes a quote inside a quoted cell: the quote itself, or a backslash.
        line_bytes: mean length of the first lines.
    """

    names: tuple[str, ...]
    separator: str = ","
    escape: str = '"'
    line_bytes: int = 1

    @property
    def rows_per_group(self) -> int:
        """Number of rows that take about 64 MB."""
        return max(2_048, min(100_000, _ROW_GROUP_BYTES // self.line_bytes))


def read_dialect(path: Path) -> Dialect:
    """Return the dialect of a text file, which may be compressed.

    Raises:
        DataError: a file that cannot be read, is no UTF-8 text, or has a header that is no line of names.
    """
    try:
        with pa.input_stream(str(path), compression="detect") as stream:
            content: bytes = stream.read(_SAMPLE)
    except (pa.ArrowException, OSError) as error:
        message = " ".join(str(error).split())[:300]
        raise DataError(str(path), f"cannot be read: {message}", "a complete text file", "write it again") from None
    text = _decode(content, path)
    if not text.strip():
        return Dialect(())
    chosen = {escape: _choose_separator(text, escape, len(content) < _SAMPLE) for escape in ('"', "\\")}
    escape = "\\" if '\\"' in text and chosen["\\"][1] < chosen['"'][1] else '"'
    separator = chosen[escape][0]
    try:
        doubled = escape == '"'
        header = next(
            csv.reader(
                io.StringIO(text, newline=""),
                delimiter=separator,
                doublequote=doubled,
                escapechar=None if doubled else escape,
            )
        )
    except csv.Error as error:
        raise DataError(f"{path}, line 1", f"no column names ({error})", "a line with the column names") from None
    lines = re.split("\r\n|\n|\r", text)
    return Dialect(_name_columns(header), separator, escape, max(1, len(content) // max(1, len(lines) - 1)))


def _decode(content: bytes, path: Path) -> str:
    mark = _MARKS.get(content[:2])
    if mark is not None:
        do = f"write it as UTF-8, for example with: iconv -f {mark} -t UTF-8"
        raise DataError(str(path), f"cannot be read: {mark} text", "UTF-8 text", do)
    if b"\0" in content:
        raise DataError(str(path), "cannot be read: bytes of zero, which no text has", "UTF-8 text", "write it again")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The sample may end within a character.
        if error.start >= len(content) - 4 and len(content) == _SAMPLE:
            return content[: error.start].decode("utf-8-sig")
        line = content.count(b"\n", 0, error.start) + 1
        odd = content[max(0, error.start - 20) : error.start + 20]
        raise DataError(
            f"{path}, line {line}",
            f"cannot be read: bytes that are not UTF-8 in {odd!r}",
            "UTF-8 text",
            "write it as UTF-8, for example with: iconv -f ISO-8859-1 -t UTF-8 (or the encoding that it has)",
        ) from None


def _choose_separator(text: str, escape: str, is_complete: bool) -> tuple[str, int]:
    """Return the separator whose number is the same in all lines, and the number of quotes that belong to no cell."""
    body = r"[^\"\\]|\\." if escape == "\\" else r'[^"]|""'
    best, count_in_header, is_regular, stray = ",", 0, False, text.count('"')
    for separator in _SEPARATORS:
        edge = re.escape(separator)
        bare = re.sub(rf'(^|[{edge}\r\n])[ ]*"(?:{body})*+"[ ]*(?=[{edge}\r\n]|$)', r"\1", text, flags=re.DOTALL)
        lines = re.split("\r\n|\n|\r", bare)
        counts = [line.count(separator) for line in (lines if is_complete or len(lines) < 3 else lines[:-1]) if line]
        if counts and counts[0]:
            regular = all(count == counts[0] for count in counts)
            # A separator inside the cells of one column is rarer in the header than the one between columns.
            if (regular, counts[0]) > (is_regular, count_in_header):
                best, is_regular, count_in_header, stray = separator, regular, counts[0], bare.count('"')
    return best, stray


def _name_columns(header: list[str]) -> tuple[str, ...]:
    """Return the names of a header without surrounding blanks. An empty one is named by its position."""
    return tuple(name.strip() or f"column{index}" for index, name in enumerate(header))


def list_repeated(names: tuple[str, ...]) -> dict[str, str]:
    """Return the names that occur again, in any case, each with the other spelling. SQL ignores the case of names."""
    seen: dict[str, str] = {}
    repeated: dict[str, str] = {}
    for name in names:
        if name.lower() in seen:
            repeated.setdefault(seen[name.lower()], name)
            repeated.setdefault(name, seen[name.lower()])
        seen.setdefault(name.lower(), name)
    return repeated


def distinguish(names: tuple[str, ...]) -> list[str]:
    """Return the names with a number after each that occurred before, as SQL needs them."""
    taken: set[str] = set()
    distinct = []
    for name in names:
        own, number = name, 0
        while own.lower() in taken:
            number += 1
            own = f"{name}_{number}"
        taken.add(own.lower())
        distinct.append(own)
    return distinct
