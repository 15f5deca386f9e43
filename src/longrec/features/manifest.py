"""Manifests: the JSON file that describes a folder, its format and its contents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from longrec.errors import LongRecError


def read_manifest(path: Path, form: str, what: str, do: str, error: type[LongRecError]) -> dict[str, Any]:
    """Read the contents of a manifest.

    Args:
        form: required value of its ``format`` key.
        what: expected kind of the folder, for messages.
        do: action that writes it again, for messages.
        error: class of the error.

    Raises:
        LongRecError: of the type ``error``, if there is no such file, it is not JSON, or it has another format.
    """
    folder = str(path.parent)
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, ValueError) as fault:
        raise error(folder, f"no readable {path.name} ({fault})", what, do) from None
    if content.get("format") != form:
        raise error(folder, f"format {content.get('format')!r}", form, f"{do} with this version")
    return content
