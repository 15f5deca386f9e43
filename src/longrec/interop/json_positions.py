"""Parser of JSON that keeps the line and column of every value, for messages."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longrec.errors import ConfigError
from longrec.interop.text_format import Position

KeyPath = tuple[str | int, ...]
_TOKEN = re.compile(r'\s*([{}\[\],:]|"(?:[^"\\]|\\.)*"|[^\s{}\[\],:"]+)')
_LARGEST = 8_000_000
"""Largest number of bytes of a file."""
_DEEPEST = 100
"""Largest number of lists and objects inside each other."""


@dataclass(frozen=True)
class JsonDocument:
    """A parsed file.

    Attributes:
        value: the content.
        positions: path of keys and indices -> position of the value, or of its key in an object.
        repeated: keys that occur twice in one object.
    """

    value: Any
    positions: dict[KeyPath, Position]
    repeated: tuple[KeyPath, ...]


def read(path: Path) -> JsonDocument:
    """Read a file.

    Raises:
        ConfigError: if the file cannot be read or is not JSON, with line and column.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise ConfigError(str(path), [f"{path}:1:1: is larger than {_LARGEST:,} bytes; expected rules, not rows"])
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(str(path), [f"cannot be read: {error.strerror}; give a JSON file"]) from None
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), [f"{path}:1:1: byte {error.start} is no UTF-8; expected JSON"]) from None
    return parse(text, str(path))


def parse(text: str, where: str) -> JsonDocument:
    """Parse JSON text. ``where`` is its location in faults."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        message = f"{where}:{error.lineno}:{error.colno}: is no JSON here: {error.msg}; fix the file"
        raise ConfigError(where, [message]) from None
    except RecursionError:
        raise ConfigError(where, [f"{where}:1:1: is nested too deeply; expected rules of features"]) from None
    except ValueError as error:
        raise ConfigError(where, [f"{where}:1:1: holds a number that is none: {error}; fix the file"]) from None
    return _locate_values(text, value, where)


def _refuse_constant(word: str) -> float:
    raise ValueError(word)


def _locate_values(text: str, value: Any, where: str) -> JsonDocument:
    """Walk the tokens of valid JSON. ``path`` holds the current key or index of each open bracket."""
    positions: dict[KeyPath, Position] = {(): Position(1, 1)}
    repeated: list[KeyPath] = []
    path: list[str | int | None] = []
    line, start, last = 1, 0, 0
    key_next = False
    for token in _TOKEN.finditer(text):
        begin, word = token.start(1), token[1]
        if lines := text.count("\n", last, begin):
            line, start = line + lines, text.rfind("\n", last, begin) + 1
        last = begin
        position = Position(line, begin - start + 1)
        if word in "}]":
            path.pop()
            key_next = False
        elif word == ",":
            at = path[-1]
            path[-1] = at + 1 if isinstance(at, int) else None
            key_next = not isinstance(at, int)
        elif word == ":":
            key_next = False
        elif key_next:
            path[-1] = json.loads(word)
            here = tuple(key for key in path if key is not None)
            if here in positions:
                repeated.append(here)
            positions[here] = position
        else:
            if path and isinstance(path[-1], int):
                positions[tuple(key for key in path if key is not None)] = position
            if word in "{[":
                if len(path) == _DEEPEST:
                    message = f"{where}:{position}: is nested deeper than {_DEEPEST}; expected rules of features"
                    raise ConfigError(where, [message])
                path.append(0 if word == "[" else None)
                key_next = word == "{"
    return JsonDocument(value, positions, tuple(repeated))
