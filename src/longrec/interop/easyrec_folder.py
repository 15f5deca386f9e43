"""An imported configuration as a folder: config.yaml, schema.yaml and NOTES.md."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from longrec.config import to_yaml
from longrec.errors import ConfigError
from longrec.interop.easyrec import Imported
from longrec.interop.easyrec_section import Note, by_weight

CONFIG, SCHEMA, NOTES = "config.yaml", "schema.yaml", "NOTES.md"


def write(found: Imported, into: str | Path) -> list[Path]:
    """Write the folder, which may be there but must hold none of the three files.

    Returns:
        The files.

    Raises:
        ConfigError: a file in the way, or a folder that cannot be written.
    """
    folder = Path(into)
    files = [folder / name for name in (CONFIG, SCHEMA, NOTES)]
    refuse_existing(files)
    config, schema = found.relative(folder)
    head = f"# From {found.source.name} by longrec import. What differs is in {NOTES}.\n"
    texts = [head + to_yaml(config, inline=True), head + to_yaml(schema, inline=True), notes_text(found)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in zip(files, texts):
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        for file in files:  # none of them was there before
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
        raise ConfigError(str(folder), [f"cannot be written: {error.strerror}; give another folder"]) from None
    return files


def refuse_existing(files: list[Path]) -> None:
    """Raise a ConfigError when one of the files is there already: an import replaces nothing."""
    taken = [file.name for file in files if file.exists()]
    if taken:
        words = f"holds {', '.join(taken)} already; expected a new folder: give another one, or remove them"
        raise ConfigError(str(files[0].parent), [words])


def notes_text(found: Imported) -> str:
    """What NOTES.md says: how columns were found, and a line a field that is not carried as it is."""
    lines = [f"# What became of {found.source.name}", "", *(f"- {choice}" for choice in found.choices), ""]
    for fate, title in (("not carried", "Not carried"), ("differs", "Carried with a difference")):
        notes = [note for note in by_weight(found.notes) if note.fate == fate]
        lines += [
            f"## {title}",
            "",
            *(note_line(found.source.name, note) for note in notes),
            *([] if notes else ["Nothing."]),
            "",
        ]
    return "\n".join(lines)


def note_line(name: str, note: Note) -> str:
    """One line of NOTES.md."""
    return f"- `{name}:{note.place}` `{note.field}`: {note.words}"


def told(found: Imported) -> dict[str, Any]:
    """The notes as plain values, for JSON."""
    return {
        "source": str(found.source),
        "choices": list(found.choices),
        "notes": [
            {
                "line": note.place.line,
                "column": note.place.column,
                "field": note.field,
                "fate": note.fate,
                "words": note.words,
                "changes_results": note.changes_results,
            }
            for note in by_weight(found.notes)
        ],
    }
