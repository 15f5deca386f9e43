"""The schema of an fg.json as a folder: schema.yaml and NOTES.md."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from longrec.config import to_yaml
from longrec.errors import ConfigError
from longrec.interop.easyrec_folder import NOTES, SCHEMA, note_line, refuse_existing
from longrec.interop.fg import Generator


def write(found: Generator, into: str | Path) -> list[Path]:
    """Write the folder, which may be there but must hold none of the files.

    Returns:
        The files.

    Raises:
        ConfigError: a file in the way, or a folder that cannot be written.
    """
    folder = Path(into)
    files = [folder / SCHEMA, folder / NOTES]
    refuse_existing(files)
    head = f"# From {found.source.name} by longrec import. What differs is in {NOTES}.\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files[0].write_text(head + to_yaml(_seen_from(folder, found), inline=True), encoding="utf-8")
        files[1].write_text(notes_text(found), encoding="utf-8")
    except OSError as error:
        for file in files:  # none of them was there before
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
        raise ConfigError(str(folder), [f"cannot be written: {error.strerror}; give another folder"]) from None
    return files


def _seen_from(folder: Path, found: Generator) -> dict[str, Any]:
    """The schema with paths as seen from a folder."""

    def seen(value: Any) -> Any:
        if isinstance(value, Path):
            return Path(os.path.relpath(value.absolute(), folder.absolute())).as_posix()
        return value

    features = {name: {key: seen(value) for key, value in words.items()} for name, words in found.features.items()}
    return {**found.schema, "features": features}


def notes_text(found: Generator) -> str:
    """What NOTES.md says: how columns were found, what the rows need, and a line a key that is not carried as it is."""
    lines = [f"# What became of {found.source.name}", "", *(f"- {choice}" for choice in found.choices), ""]
    for fate, title in (("not carried", "Not carried"), ("differs", "Carried with a difference")):
        notes = [note_line(found.source.name, note) for note in found.notes if note.fate == fate]
        lines += [f"## {title}", "", *(notes or ["Nothing."]), ""]
    if found.rows:
        lines += ["## In the config", "", "The schema needs this of the rows:", "", "```yaml"]
        lines += [to_yaml({"data": {"log": {"rows": dict(found.rows)}}}, inline=True).rstrip(), "```", ""]
    return "\n".join(lines)


def told(found: Generator) -> dict[str, Any]:
    """The notes as plain values, for JSON."""
    notes = [
        {
            "line": note.place.line,
            "column": note.place.column,
            "field": note.field,
            "fate": note.fate,
            "words": note.words,
        }
        for note in found.notes
    ]
    return {"source": str(found.source), "choices": list(found.choices), "rows": dict(found.rows), "notes": notes}
