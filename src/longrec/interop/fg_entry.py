"""One entry of an fg.json: its keys as typed values, which remember whether anybody has read them."""

from __future__ import annotations

import math
from typing import Any

from longrec.errors import nearest
from longrec.interop.easyrec_fields import Fate
from longrec.interop.easyrec_section import Reading
from longrec.interop.fg_fields import KINDS
from longrec.interop.json_places import Placed
from longrec.interop.text_format import Place

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

    def __init__(self, reading: Reading, placed: Placed, kind: str, path: tuple[str | int, ...] = ()) -> None:
        self.reading, self.placed, self.kind, self.path = reading, placed, kind, path
        value: Any = placed.value
        for part in path:
            value = value[part]
        self.values: dict[str, Any] = value if isinstance(value, dict) else {}
        if not isinstance(value, dict):
            self._fault(self.place, self._dotted(), f"is {_told(value)}; expected an object")
        self._known, self._read = KINDS[kind], {"feature_type"}

    @property
    def place(self) -> Place:
        """Where it stands."""
        return self.placed.places.get(self.path, Place(1, 1))

    def at(self, name: str) -> Place:
        """Where a key stands; where the entry stands when it is not written."""
        return self.placed.places.get((*self.path, name), self.place)

    def _dotted(self, name: str = "") -> str:
        told = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.path)
        return f"{told}.{name}".strip(".") if name else told.strip(".") or "the file"

    def _fault(self, place: Place, name: str, words: str) -> None:
        self.reading.fault(place, f"{name} {words}")

    def fault(self, name: str, words: str) -> None:
        """A fault of a key."""
        self._fault(self.at(name), self._dotted(name), words)

    def note(self, name: str, fate: Fate, words: str) -> None:
        """Note something about a key that its table does not say."""
        self.reading.note(self.at(name), self._dotted(name), fate, words)

    def note_whole(self, fate: Fate, words: str) -> None:
        """Note what becomes of the entry as a whole."""
        self.reading.note(self.place, self._dotted(), fate, words)

    def has(self, *names: str) -> bool:
        """Whether one of the keys is written, and not null."""
        return any(self.values.get(name) is not None for name in names)

    def get(self, *names: str, default: Any = None) -> Any:
        """The value of the first of several spellings that is written, or the default; an odd type is a fault."""
        for name in names:
            assert name in self._known, f"{self.kind}: {name} is not in the table"
            self._read.add(name)
        told = next((name for name in names if self.has(name)), None)
        if told is None:
            return default
        made = _typed(self._known[told].type, self.values[told])
        if made is None:
            self.fault(told, f"is {_told(self.values[told])}; expected {_EXPECTED[self._known[told].type]}")
            return default
        return made

    def settle(self) -> None:
        """Note every key that is not carried as it is, after all were read that anybody reads."""
        for name, value in self.values.items():
            known = self._known.get(name)
            if known is None:
                near = nearest(name, self._known)
                words = "no documented key" + (f"; did you mean {near!r}?" if near else "")
                self.note(name, "not carried", words)
            elif known.fate != "carried" and value not in (None, ""):
                self.note(name, known.fate, known.words)
            elif name not in self._read and value is not None:
                self.note(name, "not carried", "nothing reads it here")


def _typed(kind: str, value: Any) -> Any:
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
    return _numbers(value)


def _numbers(value: Any) -> list[float] | None:
    """A list of numbers, or their text parted by commas."""
    try:
        pieces = value.split(",") if isinstance(value, str) else value
        if not isinstance(pieces, list) or any(isinstance(piece, bool) for piece in pieces):
            return None
        made = [float(piece) for piece in pieces]
    except (TypeError, ValueError, OverflowError):
        return None
    return made if all(map(math.isfinite, made)) else None


def _told(value: Any) -> str:
    told = "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else repr(value)
    return told if len(told) <= 60 else told[:57] + "..."
