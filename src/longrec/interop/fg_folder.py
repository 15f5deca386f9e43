"""The schema of an fg.json as a folder: schema.yaml and NOTES.md."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from longrec.config import to_yaml
from longrec.errors import ConfigError
from longrec.interop.easyrec_folder import NOTES, SCHEMA, format_note, refuse_existing
from longrec.interop.fg import ImportedGenerator


def write(imported: ImportedGenerator, into: str | Path) -> list[Path]:
    """Write the folder. It may exist, but must contain none of the files.

    Returns:
        The files.

    Raises:
        ConfigError: if one of the files exists already, or the folder cannot be written.
    """
    folder = Path(into)
    files = [folder / SCHEMA, folder / NOTES]
    refuse_existing(files)
    head = f"# From {imported.source.name} by longrec import. What differs is in {NOTES}.\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files[0].write_text(head + to_yaml(_make_relative(folder, imported), inline=True), encoding="utf-8")
        files[1].write_text(format_notes(imported), encoding="utf-8")
    except OSError as error:
        for file in files:  # none of them existed before
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
        raise ConfigError(str(folder), [f"cannot be written: {error.strerror}; give another folder"]) from None
    return files


def _make_relative(folder: Path, imported: ImportedGenerator) -> dict[str, Any]:
    """Return the schema with paths relative to a folder."""

    def format_path(value: Any) -> Any:
        if isinstance(value, Path):
            return Path(os.path.relpath(value.absolute(), folder.absolute())).as_posix()
        return value

    features = {
        name: {key: format_path(value) for key, value in settings.items()}
        for name, settings in imported.features.items()
    }
    return {**imported.schema, "features": features}


def format_notes(imported: ImportedGenerator) -> str:
    """Return the text of NOTES.md: how columns were chosen, one line per key that is not converted exactly, and
    the settings that the rows need.
    """
    lines = [f"# What became of {imported.source.name}", "", *(f"- {choice}" for choice in imported.choices), ""]
    for status, title in (("not carried", "Not carried"), ("differs", "Carried with a difference")):
        notes = [format_note(imported.source.name, note) for note in imported.notes if note.status == status]
        lines += [f"## {title}", "", *(notes or ["Nothing."]), ""]
    if imported.rows:
        lines += ["## In the config", "", "The schema needs this of the rows:", "", "```yaml"]
        lines += [to_yaml({"data": {"log": {"rows": dict(imported.rows)}}}, inline=True).rstrip(), "```", ""]
    return "\n".join(lines)


def describe_notes(imported: ImportedGenerator) -> dict[str, Any]:
    """Return the notes as plain values, for JSON."""
    notes = [
        {
            "line": note.position.line,
            "column": note.position.column,
            "field": note.field,
            "fate": note.status,
            "words": note.explanation,
        }
        for note in imported.notes
    ]
    return {
        "source": str(imported.source),
        "choices": list(imported.choices),
        "rows": dict(imported.rows),
        "notes": notes,
    }
