"""Write docs/reference/easyrec.md from the tables of the reader. ``--check`` only checks that it is up to date.

python docs/make_easyrec.py [--check]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from longrec.interop.easyrec_fields import FIELDS, MESSAGES, EasyRecField
from longrec.interop.easyrec_models import MODELS, describe_refusal
from longrec.interop.fg_fields import FG_FIELDS, OTHERS

PAGE = Path(__file__).resolve().parent / "reference" / "easyrec.md"
HEAD = """# EasyRec fields

<!-- Written by `make docs`; do not edit. -->

Every model, field and key of EasyRec's configs, with its status in LongRec. [Coming from
EasyRec](../guide/from-easyrec.md) explains the import.

| carried | meaning |
| --- | --- |
| yes | converted. It has the same meaning in LongRec |
| differs | converted with a difference, which a note describes |
| no | not converted. A note gives the reason, and the import continues |
| refused | the import stops, because the model would be a different one without the field |
"""
LABELS = {"carried": "yes", "differs": "differs", "not carried": "no", "refused": "refused"}


def format_page() -> str:
    """Return the text of the page."""
    lines = [HEAD, "## Models", "", "| model_class | carried | in LongRec |", "| --- | --- | --- |"]
    for name, model in sorted(MODELS.items(), key=lambda pair: (isinstance(pair[1], str), pair[0])):
        if isinstance(model, str):
            lines.append(f"| {name} | refused | {_format_cell(describe_refusal(name, model))} |")
        else:
            lines.append(f"| {name} | yes | its settings are in `{model[0]} {{ }}` |")
    lines += ["", "## Every field", ""]
    for message, fields in MESSAGES.items():
        lines += [f"### {message}", "", *_list_parents(message), *_format_table(fields.values()), ""]
    lines += ["## Every key of fg.json", ""]
    for kind in dict.fromkeys(field.kind for field in FG_FIELDS):
        lines += [f"### fg: {kind}", "", "| key | carried | in LongRec |", "| --- | --- | --- |"]
        for key in FG_FIELDS:
            if key.kind == kind:
                lines.append(f"| {key.name} | {LABELS[key.status]} | {_format_cell(key.explanation)} |")
        lines.append("")
    lines += ["### fg: other types", "", "| feature_type | carried | in LongRec |", "| --- | --- | --- |"]
    lines += [f"| {kind} | no | {_format_cell(reason)} |" for kind, reason in OTHERS.items()]
    return "\n".join([*lines, ""])


def _list_parents(message: str) -> list[str]:
    """Return the line that names the fields of this message's type."""
    parents = [f"`{field.message}.{field.name}`" for field in FIELDS if field.type == message]
    return [f"In {', '.join(parents)}.", ""] if parents else []


def _format_table(fields: Iterable[EasyRecField]) -> list[str]:
    rows = [f"| {field.name} | {LABELS[field.status]} | {_format_cell(field.explanation)} |" for field in fields]
    return ["| field | carried | in LongRec |", "| --- | --- | --- |", *rows]


def _format_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


def main() -> None:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 when the page is not up to date")
    if not parser.parse_args().check:
        PAGE.write_text(format_page(), encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != format_page():
        sys.exit("docs/reference/easyrec.md is not up to date: run make docs")


if __name__ == "__main__":
    main()
