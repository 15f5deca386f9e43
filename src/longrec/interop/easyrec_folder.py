"""Writer of an imported config as a folder: config.yaml, schema.yaml and NOTES.md."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from longrec.config import to_yaml
from longrec.errors import ConfigError
from longrec.interop.easyrec import ImportedConfig
from longrec.interop.easyrec_section import Note, sort_notes

CONFIG, SCHEMA, NOTES = "config.yaml", "schema.yaml", "NOTES.md"


def write(imported: ImportedConfig, into: str | Path) -> list[Path]:
    """Write the folder. It may exist, but must contain none of the three files.

    Returns:
        The files.

    Raises:
        ConfigError: if one of the files exists already, or the folder cannot be written.
    """
    folder = Path(into)
    files = [folder / name for name in (CONFIG, SCHEMA, NOTES)]
    refuse_existing(files)
    config, schema = imported.make_relative(folder)
    head = f"# From {imported.source.name} by longrec import. What differs is in {NOTES}.\n"
    texts = [head + to_yaml(config, inline=True), head + to_yaml(schema, inline=True), format_notes(imported)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in zip(files, texts):
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        for file in files:  # none of them existed before
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
        raise ConfigError(str(folder), [f"cannot be written: {error.strerror}; give another folder"]) from None
    return files


def refuse_existing(files: list[Path]) -> None:
    """Raise a ConfigError if one of the files exists: an import replaces nothing."""
    taken = [file.name for file in files if file.exists()]
    if taken:
        description = f"holds {', '.join(taken)} already; expected a new folder: give another one, or remove them"
        raise ConfigError(str(files[0].parent), [description])


def format_notes(imported: ImportedConfig) -> str:
    """Return the text of NOTES.md: how columns were chosen, and one line per field that is not converted exactly."""
    lines = [f"# What became of {imported.source.name}", "", *(f"- {choice}" for choice in imported.choices), ""]
    for status, title in (("not carried", "Not carried"), ("differs", "Carried with a difference")):
        notes = [note for note in sort_notes(imported.notes) if note.status == status]
        lines += [
            f"## {title}",
            "",
            *(format_note(imported.source.name, note) for note in notes),
            *([] if notes else ["Nothing."]),
            "",
        ]
    return "\n".join(lines)


def format_note(name: str, note: Note) -> str:
    """Return one line of NOTES.md."""
    return f"- `{name}:{note.position}` `{note.field}`: {note.explanation}"


def describe_notes(imported: ImportedConfig) -> dict[str, Any]:
    """Return the notes as plain values, for JSON."""
    return {
        "source": str(imported.source),
        "choices": list(imported.choices),
        "notes": [
            {
                "line": note.position.line,
                "column": note.position.column,
                "field": note.field,
                "fate": note.status,
                "words": note.explanation,
                "changes_results": note.changes_results,
            }
            for note in sort_notes(imported.notes)
        ],
    }
