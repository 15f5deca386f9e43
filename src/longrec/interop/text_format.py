"""Parser of Protobuf's text format without generated classes: a tree of messages with positions.

    feature_configs : {            # a message: `name {`, `name: {` or `name <`
      input_names: 'brand'         # text in single or double quotes; adjacent pieces are one text
      boundaries: [5, 10, 1e2]     # a list, the same as the field written several times
      shuffle: true                # a word: booleans and enums
    }

The parser uses no schema. It distinguishes numbers, texts and words, and the caller checks the type of a field. Lines
and columns count from 1. Columns count characters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

from longrec.errors import ConfigError, shorten

DEEPEST = 100
"""Largest depth of nested messages, the limit of protobuf's own parsers."""
LONGEST = 8_000_000
"""Largest number of characters of a file."""


class Position(NamedTuple):
    """Line and column, from 1."""

    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.line}:{self.column}"


@dataclass(frozen=True)
class Text:
    """Quoted text."""

    value: str
    position: Position


@dataclass(frozen=True)
class Number:
    """A number. ``value`` is an int when it is written as one. ``inf`` and ``nan`` are parsed as words."""

    value: int | float
    position: Position


@dataclass(frozen=True)
class Word:
    """A bare word: ``true``, ``DEEP``, and ``-inf``."""

    value: str
    position: Position


@dataclass(frozen=True)
class Message:
    """Fields in the order of the file. A repeated field occurs several times."""

    fields: tuple[Field, ...]
    position: Position


@dataclass(frozen=True)
class Field:
    """One name with one value, and the position of the name."""

    name: str
    value: Text | Number | Word | Message
    position: Position


class _Token(NamedTuple):
    kind: str
    text: str
    position: Position


_TOKENS = re.compile(
    r"""(?P<line>\n) | (?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
      | (?P<number>(?:0[xX][0-9a-fA-F]+|(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?[fF]?)(?![\w.]))
      | (?P<word>[A-Za-z_]\w*) | (?P<mark>[-{}<>\[\]:,;./])""",
    re.VERBOSE | re.ASCII,
)
_BLANKS = re.compile(r"[ \t\r\f\v]*(?:\#[^\n]*)?")
_ESCAPE = re.compile(r"\\([0-7]{1,3}|[xX][0-9a-fA-F]{1,2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)
_ONE_LETTER = {"n": 10, "t": 9, "r": 13, "a": 7, "b": 8, "f": 12, "v": 11, "\\": 92, "'": 39, '"': 34, "?": 63}


def read(path: str | Path) -> Message:
    """Read a file of text format.

    Raises:
        ConfigError: if there is no such file, or it is not UTF-8 or not text format. The fault has file, line and
            column.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(LONGEST + 1)
    except FileNotFoundError:
        raise ConfigError(str(path), ["no such file; give the path of a configuration"]) from None
    except OSError as error:
        raise ConfigError(str(path), [f"cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(str(path), [f"{path}:{line}:1: a byte that is not UTF-8; save the file as UTF-8"]) from None
    return parse(text, str(path))


def parse(text: str, where: str = "config") -> Message:
    """Parse text format. ``where`` is the location of the file in faults.

    Raises:
        ConfigError: if the text has a fault. The first one is reported, with its line and column.
    """
    if len(text) > LONGEST:
        raise ConfigError(where, [f"{where}:1:1: is longer than {LONGEST:,} characters; expected settings, not rows"])
    return _Parser(text, where).parse_whole()


class _Parser:
    """Parser of one pass with one token of lookahead. It stops at the first fault."""

    def __init__(self, text: str, where: str) -> None:
        self.where = where
        self.tokens = self._tokens(text)
        self.current: _Token = next(self.tokens)

    def fail(self, position: Position, message: str, expected: str) -> NoReturn:
        raise ConfigError(self.where, [f"{self.where}:{position}: {shorten(message, 400)}; expected {expected}"])

    def _tokens(self, text: str) -> Iterator[_Token]:
        line, start, at = 1, 0, self._skip_blanks(text, 0)
        while at < len(text):
            match = _TOKENS.match(text, at)
            if match is None:
                self._refuse_character(text, at, Position(line, at - start + 1))
            kind, end = str(match.lastgroup), match.end()
            if kind == "line":
                line, start = line + 1, end
            else:
                yield _Token(kind, match.group(), Position(line, at - start + 1))
            at = self._skip_blanks(text, end)
        yield _Token("end", "", Position(line, at - start + 1))

    @staticmethod
    def _skip_blanks(text: str, at: int) -> int:
        """Return the index after blanks and a comment: the next token or the end of the line."""
        match = _BLANKS.match(text, at)
        return match.end() if match else at

    def _refuse_character(self, text: str, at: int, position: Position) -> NoReturn:
        if text[at] in "\"'":
            self.fail(position, "a text that does not end on its line", f"a closing {text[at]}")
        if text[at].isdigit():
            word = re.match(r"[\w.]+", text[at : at + 400])
            self.fail(position, f"{word.group() if word else text[at]!r}, which is no number", "a number")
        self.fail(position, f"the character {text[at]!r}", "a field name, a value or a bracket")

    def step(self) -> _Token:
        token, self.current = self.current, next(self.tokens, self.current)
        return token

    def eat(self, *marks: str) -> bool:
        """Consume the next token if it is one of these marks."""
        matches = self.current.kind == "mark" and self.current.text in marks
        if matches:
            self.step()
        return matches

    def parse_whole(self) -> Message:
        fields = self.parse_fields("", 0)
        if self.current.kind != "end":
            self.fail(self.current.position, f"{self.current.text!r} with nothing open", "a field name")
        return Message(fields, Position(1, 1))

    def parse_fields(self, closing: str, depth: int) -> tuple[Field, ...]:
        entries: list[Field] = []
        while self.current.kind != "end" and not (self.current.kind == "mark" and self.current.text in "}>]"):
            entries += self.parse_field(depth)
            self.eat(",", ";")
        if closing and not self.eat(closing):
            what = f"{self.current.text!r}" if self.current.kind != "end" else "the end of the file"
            self.fail(self.current.position, what, f"a field name or {closing!r}")
        return tuple(entries)

    def parse_field(self, depth: int) -> Iterator[Field]:
        token = self.step()
        if token.kind == "mark" and token.text == "[":
            self.fail(token.position, "an extension or Any in brackets", "a plain field name")
        if token.kind != "word":
            self.fail(token.position, f"{token.text!r}", "a field name")
        colon = self.eat(":")
        if not colon and not (self.current.kind == "mark" and self.current.text in "{<["):
            what = f"{self.current.text!r}" if self.current.kind != "end" else "the end of the file"
            self.fail(self.current.position, f"{what} after {token.text}", "':' and a value, or '{'")
        position = self.current.position
        if not self.eat("["):
            yield Field(token.text, self.parse_value(depth), token.position)
            return
        while not self.eat("]"):
            value = self.parse_value(depth)
            if not colon and not isinstance(value, Message):
                self.fail(position, f"a list of values right after {token.text}", "':' before it")
            yield Field(token.text, value, value.position)
            if not self.eat(",") and not (self.current.kind == "mark" and self.current.text == "]"):
                what = f"{self.current.text!r}" if self.current.kind != "end" else "the end of the file"
                self.fail(self.current.position, f"{what} in a list", "',' or ']'")

    def parse_value(self, depth: int) -> Text | Number | Word | Message:
        token = self.step()
        if token.kind == "mark" and token.text in "{<":
            if depth == DEEPEST:
                self.fail(token.position, f"more than {DEEPEST} messages inside each other", "fewer")
            return Message(self.parse_fields("}" if token.text == "{" else ">", depth + 1), token.position)
        if token.kind == "text":
            pieces = [self.unquote(token)]
            while self.current.kind == "text":
                pieces.append(self.unquote(self.step()))
            return Text(self.decode(b"".join(pieces), token.position), token.position)
        negative = token.kind == "mark" and token.text == "-"
        if negative:
            sign, token = token, self.step()
            if token.kind == "word" and token.text.lower() not in ("inf", "infinity", "nan"):
                self.fail(token.position, f"{token.text!r} after '-'", "a number")
        if token.kind == "word":
            return Word(f"-{token.text}" if negative else token.text, sign.position if negative else token.position)
        if token.kind == "number":
            value = self.parse_number(token)
            return Number(-value if negative else value, sign.position if negative else token.position)
        what = f"{token.text!r}" if token.kind != "end" else "the end of the file"
        return self.fail(token.position, what, "a value: a text in quotes, a number, a word or '{'")

    def parse_number(self, token: _Token) -> int | float:
        text = token.text
        if text[:2].lower() == "0x":
            return int(text, 16)
        if text.isdigit():
            if len(text) > 1 and text[0] == "0":
                if not set(text) <= set("01234567"):
                    self.fail(token.position, f"{text}, which is no number", "octal digits after a leading 0")
                return int(text, 8)
            if len(text) > 400:
                self.fail(token.position, f"a number of {len(text)} digits", "at most 400 digits")
            return int(text)
        return float(text.rstrip("fF"))

    def unquote(self, token: _Token) -> bytes:
        """Return the bytes of a quoted text. Escapes may encode single bytes of a character."""
        raw, at, body = bytearray(), 0, token.text[1:-1]
        for match in _ESCAPE.finditer(body):
            raw += self.encode_text(body[at : match.start()], token.position)
            word, at = match.group(1), match.end()
            if word[0] in "01234567":
                if int(word, 8) > 255:
                    self.fail(token.position, f"the escape \\{word}", "a byte, at most \\377")
                raw.append(int(word, 8))
            elif word[0] in "xX" and len(word) > 1:
                raw.append(int(word[1:], 16))
            elif word[0] in "uU" and len(word) > 1:
                code = int(word[1:], 16)
                if code > 0x10FFFF:
                    self.fail(token.position, f"the escape \\{word}", "a Unicode character, at most U+10FFFF")
                raw += self.encode_text(chr(code), token.position)
            elif word in _ONE_LETTER:
                raw.append(_ONE_LETTER[word])
            else:
                self.fail(
                    token.position, f"the escape \\{word}", r"\n, \t, \\, \', \", \001, \x01, \u0001 and the like"
                )
        return bytes(raw + self.encode_text(body[at:], token.position))

    def encode_text(self, text: str, position: Position) -> bytes:
        try:
            return text.encode()
        except UnicodeEncodeError:
            self.fail(position, "half of a surrogate pair in a text", "whole characters")

    def decode(self, raw: bytes, position: Position) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.fail(position, "a text whose escapes make no UTF-8", "escapes that write whole UTF-8 characters")


def as_float(value: Number | Word) -> float | None:
    """Return the number of a float field, from a number or a word such as ``inf``, ``-inf``, ``nan``, else None."""
    if isinstance(value, Number):
        try:
            return float(value.value)
        except OverflowError:
            return math.inf if value.value > 0 else -math.inf
    word = value.value.lower().replace("infinity", "inf")
    return float(word) if word.lstrip("-") in ("inf", "nan") else None
