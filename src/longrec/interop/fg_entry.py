"""One entry of an fg.json: its keys as typed values, with a record of the keys that were read."""

from __future__ import annotations

import math
from typing import Any

from longrec.errors import nearest
from longrec.interop.easyrec_fields import Status
from longrec.interop.easyrec_section import Reading
from longrec.interop.fg_fields import KINDS
from longrec.interop.json_positions import JsonDocument
from longrec.interop.text_format import Position

_WHOLE = 2**63
_EXPECTED = {
    "text": "text",
    "int": "a whole number, 0 or more",
    "bool": "true or false",
    "texts": "a list of texts",
    "numbers": "a list of numbers",
    "map": "an object",
}


class Entry:
    """An object of a known kind.

    Args:
        kind: ``the file``, a type of feature, or ``sequence``.
        path: the keys and numbers that lead to it.
    """

    def __init__(self, reading: Reading, document: JsonDocument, kind: str, path: tuple[str | int, ...] = ()) -> None:
        self.reading, self.document, self.kind, self.path = reading, document, kind, path
        value: Any = document.value
        for key in path:
            value = value[key]
        self.values: dict[str, Any] = value if isinstance(value, dict) else {}
        if not isinstance(value, dict):
            self._fault(self.position, self._path_of(), f"is {_format_value(value)}; expected an object")
        self._specs, self._read = KINDS[kind], {"feature_type"}

    @property
    def position(self) -> Position:
        """Line and column of the entry."""
        return self.document.positions.get(self.path, Position(1, 1))

    def position_of(self, name: str) -> Position:
        """Return the position of a key, or of the entry where the key is absent."""
        return self.document.positions.get((*self.path, name), self.position)

    def _path_of(self, name: str = "") -> str:
        path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in self.path)
        return f"{path}.{name}".strip(".") if name else path.strip(".") or "the file"

    def _fault(self, position: Position, name: str, description: str) -> None:
        self.reading.fault(position, f"{name} {description}")

    def fault(self, name: str, description: str) -> None:
        """Add a fault of a key."""
        self._fault(self.position_of(name), self._path_of(name), description)

    def note(self, name: str, status: Status, explanation: str) -> None:
        """Add a note about a key, besides the one of the table."""
        self.reading.note(self.position_of(name), self._path_of(name), status, explanation)

    def note_whole(self, status: Status, explanation: str) -> None:
        """Add a note about the status of the whole entry."""
        self.reading.note(self.position, self._path_of(), status, explanation)

    def has(self, *names: str) -> bool:
        """Return True if one of the keys is written and not null."""
        return any(self.values.get(name) is not None for name in names)

    def get(self, *names: str, default: Any = None) -> Any:
        """Return the value of the first spelling that is written, or the default. Another type is a fault."""
        for name in names:
            assert name in self._specs, f"{self.kind}: {name} is not in the table"
            self._read.add(name)
        spelling = next((name for name in names if self.has(name)), None)
        if spelling is None:
            return default
        value = _parse_value(self._specs[spelling].type, self.values[spelling])
        if value is None:
            self.fault(
                spelling, f"is {_format_value(self.values[spelling])}; expected {_EXPECTED[self._specs[spelling].type]}"
            )
            return default
        return value

    def settle(self) -> None:
        """Note every key that is not converted exactly. To be called after all keys were read."""
        for number, (name, value) in enumerate(self.values.items()):
            spec = self._specs.get(name)
            if spec is None:
                near = nearest(name, self._specs) if number < _HINTED else None
                explanation = "no documented key" + (f"; did you mean {near!r}?" if near else "")
                self.note(name, "not carried", explanation)
            elif spec.status != "carried" and value not in (None, ""):
                self.note(name, spec.status, spec.explanation)
            elif name not in self._read and value is not None:
                self.note(name, "not carried", "nothing reads it here")


_HINTED = 200
"""Number of keys of an object with a hint. A hint compares a name with all documented ones."""


def _parse_value(kind: str, value: Any) -> Any:
    if kind == "any":
        return value
    if kind == "text":
        return value if isinstance(value, str) else None
    if kind == "bool":
        return value if isinstance(value, bool) else None
    if kind == "int":
        whole = isinstance(value, int) and not isinstance(value, bool)
        return value if whole and 0 <= value < _WHOLE else None
    if kind == "map":
        return value if isinstance(value, dict) else None
    if kind == "texts":
        texts = [value] if isinstance(value, str) else value
        whole = isinstance(texts, list) and all(isinstance(text, str | int) for text in texts)
        return [str(text) for text in texts] if whole else None
    return _parse_numbers(value)


def _parse_numbers(value: Any) -> list[float] | None:
    """Parse a list of numbers, or text of numbers separated by commas."""
    try:
        pieces = value.split(",") if isinstance(value, str) else value
        if not isinstance(pieces, list) or any(isinstance(piece, bool) for piece in pieces):
            return None
        numbers = [float(piece) for piece in pieces]
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def _format_value(value: Any) -> str:
    text = "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
