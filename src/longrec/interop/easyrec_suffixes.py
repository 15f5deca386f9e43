"""File names of EasyRec configurations."""

from __future__ import annotations

from pathlib import Path

SUFFIXES = (".config", ".pbtxt", ".prototxt")


def is_easyrec(path: object) -> bool:
    """Return True if the suffix of a path is one of EasyRec's configurations."""
    return isinstance(path, str | Path) and Path(path).suffix.lower() in SUFFIXES
