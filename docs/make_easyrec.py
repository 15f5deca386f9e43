"""Write the tables of docs/guide/from-easyrec.md from the reader's own; ``--check`` only says whether they are fresh.

    python docs/make_easyrec.py [--check]

Only what stands below the mark is written; the page above it is written by hand.
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
FATES = {"carried": "yes", "differs": "differs", "not carried": "no", "refused": "refused"}


def page() -> str:
    """What stands below the mark."""
    lines = ["", "## Models", "", "| model_class | carried | |", "| --- | --- | --- |"]
    for name, known in sorted(MODELS.items(), key=lambda pair: (isinstance(pair[1], str), pair[0])):
        if isinstance(known, str):
            lines.append(f"| {name} | refused | not in this version: {_cell(known)} |")
        else:
            lines.append(f"| {name} | yes | its settings stand in `{known[0]} {{ }}` |")
    lines += ["", "## Every field", ""]
    for message, fields in MESSAGES.items():
        lines += [f"### {message}", "", *_within(message), *_table(fields.values()), ""]
    lines += ["## Every key of fg.json", ""]
    for kind in dict.fromkeys(field.kind for field in FG_FIELDS):
        lines += [f"### fg: {kind}", "", "| key | carried | |", "| --- | --- | --- |"]
        for key in FG_FIELDS:
            if key.kind == kind:
                lines.append(f"| {key.name} | {FATES[key.fate]} | {_cell(key.words)} |")
        lines.append("")
    lines += ["### fg: other types", "", "| feature_type | carried | |", "| --- | --- | --- |"]
    lines += [f"| {kind} | no | {_cell(words)} |" for kind, words in OTHERS.items()]
    return "\n".join([*lines, ""])


def _within(message: str) -> list[str]:
    """Where the message is written."""
    places = [f"`{field.message}.{field.name}`" for field in FIELDS if field.type == message]
    return [f"In {', '.join(places)}.", ""] if places else []


def _table(fields: Iterable[EasyRecField]) -> list[str]:
    rows = [f"| {field.name} | {FATES[field.fate]} | {_cell(field.words)} |" for field in fields]
    return ["| field | carried | |", "| --- | --- | --- |", *rows]


def _cell(words: str) -> str:
    return words.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


def whole(text: str) -> str:
    """The page with fresh tables."""
    return text.partition(MARK)[0] + MARK + page()


def main() -> None:
    """Write or check."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--check", action="store_true", help="exit with 1 when the tables are not up to date")
    text = PAGE.read_text(encoding="utf-8")
    if not ask.parse_args().check:
        PAGE.write_text(whole(text), encoding="utf-8")
    elif whole(text) != text:
        sys.exit("docs/guide/from-easyrec.md is not up to date: run make docs")


if __name__ == "__main__":
    main()
