"""Text for a terminal of 100 columns: tables, and docstrings. Needs no other package, so that it is printed at once."""

from __future__ import annotations

import math
import re
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

WIDTH = 100
"""Columns of a terminal that every table fits."""
_GAP = 2
_LEAST = 8
"""Least width of a column of text that is wrapped."""
_LABEL = 24
"""Least width of the first column, which names the rows. More columns rather go to another block."""
_HEADER = 32
"""Largest width of a header over numbers. A longer one is wrapped."""
_NUMBER = re.compile(r"[-+<>]?[\d,]*\.?\d+(e[-+]?\d+)?\s?(%|[a-zA-Z/]{1,4})?( \[.*\]| ±[\d.]+)?|-|undefined", re.ASCII)
_PIECES = re.compile(r"\s+|[^\s/_.,-]*[/_.,-]+|[^\s/_.,-]+")
"""Pieces of a cell between which a line may end: after blanks, and after marks inside names and paths."""


def table(headers: Sequence[str], rows: Sequence[Sequence[object]], width: int = WIDTH) -> str:
    """Format a text table: numbers right-aligned, text left-aligned, no trailing blanks.

    Whole numbers get thousands separators, fractions four decimals, None is ``-``. Wide (East Asian) and combining
    characters are counted by the cells they take up on a terminal. A table that is too wide has text wrapped within its
    column. If that does not suffice, its columns are printed in several blocks, each with the first column, which is
    wrapped last.

    Args:
        headers: name of each column.
        rows: the rows, with one cell per column.
        width: largest length of a line, in columns of the terminal.

    Raises:
        ValueError: if a row has more or fewer cells than there are headers.

    >>> print(table(["run", "rows", "AUC"], [["deepfm", 100021, 0.78], ["din", 100021, None]]))
    run        rows     AUC
    ------  -------  ------
    deepfm  100,021  0.7800
    din     100,021       -
    """
    cells = [[format_cell(cell) for cell in row] for row in rows]
    for row in cells:
        if len(row) != len(headers):
            raise ValueError(f"a row of {len(row)} cells under {len(headers)} headers: {row}")
    columns = list(zip(*cells)) if cells else [()] * len(headers)
    right = [bool(column) and all(_NUMBER.fullmatch(cell) or not cell for cell in column) for column in columns]
    natural = [
        max([min(measure_width(header), _HEADER if is_number else width), *map(measure_width, column)])
        for header, column, is_number in zip(headers, columns, right)
    ]
    # A column of numbers can only be wrapped in its header.
    least = [
        max([*map(measure_width, column), min(_LEAST, wide)]) if is_number else min(_LEAST, wide)
        for column, is_number, wide in zip(columns, right, natural)
    ]
    if least and not right[0]:
        least[0] = min(_LABEL, natural[0])
    blocks = [
        _format_block(
            headers, cells, block, right, _fit([natural[at] for at in block], [least[at] for at in block], width)
        )
        for block in _split_columns(least, width)
    ]
    return "\n\n".join(blocks)


def _split_columns(least: Sequence[int], width: int) -> list[list[int]]:
    """Return the columns of each block: all in one block if they fit, else each block with the first column."""
    blocks, used = [[0]] if least else [[]], least[0] if least else 0
    for at in range(1, len(least)):
        if used + _GAP + least[at] > width and len(blocks[-1]) > 1:
            blocks.append([0])
            used = least[0]
        blocks[-1].append(at)
        used += _GAP + least[at]
    return blocks


def _fit(natural: Sequence[int], least: Sequence[int], width: int) -> list[int]:
    """Return the widths of columns: the natural ones, or with the widest shrunk until the table fits."""
    widths, available = list(natural), width - _GAP * (len(natural) - 1)
    while sum(widths) > available:
        shrinkable = [at for at in range(len(widths)) if widths[at] > least[at]]
        if not shrinkable:
            break
        widths[max(shrinkable, key=lambda at: widths[at])] -= 1
    return widths


def _format_block(
    headers: Sequence[str],
    cells: Sequence[Sequence[str]],
    columns: Sequence[int],
    right: Sequence[bool],
    widths: Sequence[int],
) -> str:
    """Format some of the columns, in these widths."""

    def format_row(row: Sequence[str]) -> list[str]:
        wrapped = [wrap_text(row[at], width) for at, width in zip(columns, widths)]
        lines = [
            [own[number] if number < len(own) else "" for own in wrapped] for number in range(max(map(len, wrapped)))
        ]
        return [
            (" " * _GAP).join(_pad(cell, width, right[at]) for cell, width, at in zip(line, widths, columns)).rstrip()
            for line in lines
        ]

    ruler = (" " * _GAP).join("-" * width for width in widths)
    return "\n".join([*format_row(headers), ruler, *(line for row in cells for line in format_row(row))])


def wrap_text(text: str, width: int) -> list[str]:
    """Return the lines of a text of some width. Lines end at blanks, after marks in names and paths, or anywhere.

    >>> wrap_text("runs/shop-din-with-a-long-name", 12)
    ['runs/shop-', 'din-with-a-', 'long-name']
    """
    lines = [""]
    for piece in _PIECES.findall(text):
        if measure_width(lines[-1] + piece.rstrip()) <= width:
            lines[-1] += piece
            continue
        if lines[-1]:
            lines.append("")
        rest = piece.lstrip()
        while measure_width(rest) > width:
            cut = next(at for at in range(len(rest), 0, -1) if at == 1 or measure_width(rest[:at]) <= width)
            lines[-1:] = [rest[:cut], ""]
            rest = rest[cut:]
        lines[-1] = rest
    return [line.rstrip() for line in lines if line.strip()] or [""]


def format_cell(cell: object) -> str:
    """Return the text of a cell."""
    if cell is None:
        return "-"
    # numpy's scalars have the same methods as those of Python, and are no subclasses of them
    if isinstance(cell, bool) or type(cell).__name__ == "bool":
        return "yes" if cell else "no"
    if isinstance(cell, int) or hasattr(cell, "__index__"):
        return f"{int(cell):,}"
    if isinstance(cell, float) or hasattr(cell, "__float__"):
        return f"{float(cell):,.4f}" if math.isfinite(float(cell)) else "undefined"
    return " ".join(str(cell).split())


def measure_width(text: str) -> int:
    """Return the number of cells that a text takes up on a terminal."""
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def _pad(text: str, width: int, to_right: bool) -> str:
    blank = " " * (width - measure_width(text))
    return blank + text if to_right else text + blank


def warning_lines(warnings: Iterable[str]) -> list[str]:
    """Format warnings for the terminal, one line each.

    >>> warning_lines(["PCOC is 45"])
    ['warning: PCOC is 45']
    """
    return [f"warning: {sentence}" for sentence in warnings]


_ITEM = re.compile(r"\s*(?:-|\d+\.) ")
_ALIGNED = re.compile(r"\S {2,}\S")
"""A line with two blanks inside: a formula or a table."""


def wrap_docstring(text: str, indent: str = "") -> list[str]:
    """Return the lines of a clean docstring for a terminal. Paragraphs and list items are wrapped, formulas stay.

    >>> wrap_docstring("DIN: attention.\\n\\nThe pool:\\n    v = sum_j a_j e_j         (eq. 3)", "  ")
    ['  DIN: attention.', '', '  The pool:', '      v = sum_j a_j e_j         (eq. 3)']
    """
    lines: list[str] = []
    for block in re.split(r"\n\s*\n", text.strip()):
        lines += [""] if lines else []
        for paragraph in _split_paragraphs(block.splitlines()):
            lines += _wrap_paragraph(paragraph, indent)
    return lines


def _split_paragraphs(block: Sequence[str]) -> Iterator[list[str]]:
    """Yield the lines of each paragraph or list item of a block. A formula is a paragraph of its own."""
    paragraph: list[str] = []
    for line in block:
        first = paragraph[0] if paragraph else ""
        continues = _margin(line) == _margin(first) or (_ITEM.match(first) and _margin(line) > _margin(first))
        if paragraph and (not continues or _ITEM.match(line) or _ALIGNED.search(line) or _ALIGNED.search(first)):
            yield paragraph
            paragraph = []
        paragraph.append(line)
    if paragraph:
        yield paragraph


def _wrap_paragraph(paragraph: Sequence[str], indent: str) -> list[str]:
    if max(measure_width(indent + line) for line in paragraph) <= WIDTH:
        return [f"{indent}{line}".rstrip() for line in paragraph]
    if len(paragraph) == 1 and _ALIGNED.search(paragraph[0]):
        return _narrow(indent + paragraph[0])
    margin = indent + " " * _margin(paragraph[0])
    hang = margin + ("  " if _ITEM.match(paragraph[0]) else "")
    text = " ".join(line.strip() for line in paragraph)
    return textwrap.wrap(text, WIDTH, initial_indent=margin, subsequent_indent=hang, break_on_hyphens=False)


def _narrow(line: str) -> list[str]:
    """Return a formula or a row of a table with less blank space inside, or else in two lines or more."""
    gap = max(re.findall(r"(?<=\S) {2,}(?=\S)", line), key=len)
    shorter = line.replace(gap, " " * max(2, len(gap) - measure_width(line) + WIDTH))
    hang = " " * (_margin(line) + 4)
    return [shorter] if measure_width(shorter) <= WIDTH else textwrap.wrap(shorter, WIDTH, subsequent_indent=hang)


def _margin(line: str) -> int:
    return len(line) - len(line.lstrip())
