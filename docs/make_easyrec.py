"""Write the tables of docs/guide/from-easyrec.md from those of the reader. ``--check`` only checks that they are fresh.

    python docs/make_easyrec.py [--check]

Only the text below the mark is generated. The page above it is written by hand.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from longrec.interop.easyrec_fields import FIELDS, MESSAGES, EasyRecField
from longrec.interop.easyrec_models import MODELS
from longrec.interop.fg_fields import FG_FIELDS, OTHERS

PAGE = Path(__file__).resolve().parent / "guide" / "from-easyrec.md"
MARK = "<!-- Below this line: written by `make docs`; do not edit. -->\n"
LABELS = {"carried": "yes", "differs": "differs", "not carried": "no", "refused": "refused"}


def format_tables() -> str:
    """Return the text below the mark."""
    lines = ["", "## Models", "", "| model_class | carried | |", "| --- | --- | --- |"]
    for name, model in sorted(MODELS.items(), key=lambda pair: (isinstance(pair[1], str), pair[0])):
        if isinstance(model, str):
            lines.append(f"| {name} | refused | not in this version: {_format_cell(model)} |")
        else:
            lines.append(f"| {name} | yes | its settings are in `{model[0]} {{ }}` |")
    lines += ["", "## Every field", ""]
    for message, fields in MESSAGES.items():
        lines += [f"### {message}", "", *_list_parents(message), *_format_table(fields.values()), ""]
    lines += ["## Every key of fg.json", ""]
    for kind in dict.fromkeys(field.kind for field in FG_FIELDS):
        lines += [f"### fg: {kind}", "", "| key | carried | |", "| --- | --- | --- |"]
        for key in FG_FIELDS:
            if key.kind == kind:
                lines.append(f"| {key.name} | {LABELS[key.status]} | {_format_cell(key.explanation)} |")
        lines.append("")
    lines += ["### fg: other types", "", "| feature_type | carried | |", "| --- | --- | --- |"]
    lines += [f"| {kind} | no | {_format_cell(reason)} |" for kind, reason in OTHERS.items()]
    return "\n".join([*lines, ""])


def _list_parents(message: str) -> list[str]:
    """Return the line that names the fields of this message's type."""
    parents = [f"`{field.message}.{field.name}`" for field in FIELDS if field.type == message]
    return [f"In {', '.join(parents)}.", ""] if parents else []


def _format_table(fields: Iterable[EasyRecField]) -> list[str]:
    rows = [f"| {field.name} | {LABELS[field.status]} | {_format_cell(field.explanation)} |" for field in fields]
    return ["| field | carried | |", "| --- | --- | --- |", *rows]


def _format_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


def replace_tables(text: str) -> str:
    """Return the page with fresh tables."""
    return text.partition(MARK)[0] + MARK + format_tables()


def main() -> None:
    """Write or check the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 when the tables are not up to date")
    text = PAGE.read_text(encoding="utf-8")
    if not parser.parse_args().check:
        PAGE.write_text(replace_tables(text), encoding="utf-8")
    elif replace_tables(text) != text:
        sys.exit("docs/guide/from-easyrec.md is not up to date: run make docs")


if __name__ == "__main__":
    main()
