"""Mutations of requests: JSON bodies that differ from valid ones in one to three values, in ways that broke servers.

A mutation is drawn with a seed, so that each is found again by its number.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from typing import Any

_HOLE = "\x01raw\x01"

NUMBERS = (
    *("0", "-0", "-0.0", "1e-400", "0.1", "1e39", "-1e39", "3.5e38", "1e308", "1e400", "-1e400", "1e5"),
    *("9007199254740993", "9223372036854775807", "-9223372036854775808", "9223372036854775808"),
    *("18446744073709551615", "1" + "0" * 400, "9" * 5_000, "0." + "1" * 5_000, "NaN", "Infinity", "01"),
    *("4611686018427387904", "253402300799999"),
)
"""Numbers at the ends of 24, 53 and 64 bits, of float32 and float64, and beyond them."""
TEXTS = (
    *('""', '" "', '"\\u0000"', '"\\ud800"', '"\\ud83d\\ude00"', '"a\\u0000b"', '"e\\u0301"', '"\\u202e"', '"\\"'),
    *('"NaN"', '"7"', '"1e39"', '"1e400"', '"-0"', '"b1:1e39"', '"b1:1e400,b2:x"', '":"', '"|:|:|"', '"a:1e39|b"'),
    *('"1;1e39;2"', '"\\u001f"', '"9999-12-31T23:59:59.999Z"', '"0001-01-01"', '"99999-01-01"', '"2026-02-30"'),
    *('"2026-01-31T12:00:00+23:59"', '"__proto__"', '"user"', '"../../etc"', '"\' OR 1=1; --"', '"{}"', '"%s%n"'),
)
"""Texts with letters that have been cut, escaped, compared or parsed wrongly."""
OTHERS = (
    *("null", "true", "false", "[]", "{}", "[null]", "[[]]", '{"a": 1}', '[1, "a"]', "[true, 1]", "[[1], 2]", "[1e39]"),
)
"""Values of other types."""


class Mutator:
    """Source of mutated bodies.

    Args:
        seed: seed of the generator.
        size: largest number of repetitions of a name, a value, a list or a bracket.
    """

    def __init__(self, seed: int, size: int) -> None:
        self._random, self._size = random.Random(seed), size
        self._changes: list[Callable[[Any], Any]] = [
            self._replace, self._replace, self._replace, self._drop, self._rename, self._add_names, self._repeat,
            self._swap, self._wrap,
        ]  # fmt: skip
        self._raw: list[str] = []

    def mutate(self, valid: Mapping[str, Any]) -> bytes:
        """Return a body with one to three mutations of a valid request."""
        self._raw = []
        content: Any = json.loads(json.dumps(valid))
        for _ in range(self._random.choice((1, 1, 1, 2, 3))):
            content = self._random.choice(self._changes)(content)
        text = json.dumps(content)
        for raw in self._raw:
            text = text.replace(json.dumps(_HOLE), raw, 1)
        return self._break(text.encode()) if self._random.random() < 0.08 else text.encode()

    def _draw(self) -> Any:
        """Return a value in place of another: a number, a text, a value of another type, or a long one."""
        size = self._random.randrange(1, self._size + 1)
        kind = self._random.randrange(6)
        if kind == 4:
            letter = self._random.choice(("x", "9", " ", ":", "|", ",", "é", "\\", '"', "a:1|", "b1:2,", "' "))
            return letter * (size // len(letter) + 1)
        if kind == 5:
            value = self._random.choice((0, 1.5, "a", None, [], "9" * 30))
            return [value] * size
        self._raw.append(self._random.choice((NUMBERS, TEXTS, OTHERS, (*NUMBERS, *TEXTS))[kind]))
        return _HOLE

    def _choose(self, content: Any) -> tuple[Any, Any]:
        """Return a collection inside the request, at any depth, and one of its keys or indices."""
        choices = []
        waiting = [content]
        while waiting:
            one = waiting.pop()
            if isinstance(one, (dict, list)) and one:
                keys = list(one) if isinstance(one, dict) else list(range(min(len(one), 5)))
                choices += [(one, key) for key in keys]
                waiting += [one[key] for key in keys]
        return self._random.choice(choices) if choices else ({"": None}, "")

    def _replace(self, content: Any) -> Any:
        owner, key = self._choose(content)
        owner[key] = self._draw()
        return content

    def _drop(self, content: Any) -> Any:
        owner, key = self._choose(content)
        del owner[key]
        return content

    def _rename(self, content: Any) -> Any:
        owner, key = self._choose(content)
        if isinstance(owner, dict):
            others = (key + "s", key[:-1], key.upper(), key * 1_000, "", "\0", key + "\u202e", " - at `$.user`", "at")
            owner[self._random.choice(others)] = owner.pop(key)
        return content

    def _add_names(self, content: Any) -> Any:
        owner, _ = self._choose(content)
        if isinstance(owner, dict):
            owner.update({f"k{number}": None for number in range(self._random.randrange(1, self._size + 1))})
        return content

    def _repeat(self, content: Any) -> Any:
        owner, key = self._choose(content)
        values = owner if isinstance(owner, list) else owner[key]
        if not isinstance(values, list) or not values:
            return content
        one = json.dumps(values[:10])
        count = self._random.choice((1, 2, self._size // len(one) + 1))
        if self._random.random() < 0.3 and all(isinstance(value, str) for value in values):
            values += [f"{value}{number}" for number in range(count) for value in values[:10]]
        else:
            values += [value for _ in range(count) for value in json.loads(one)]  # copies, which change one by one
        return content

    def _swap(self, content: Any) -> Any:
        (first, one), (second, two) = self._choose(content), self._choose(content)
        a, b = json.dumps(first[one]), json.dumps(second[two])
        first[one] = json.loads(b)
        second[two] = json.loads(a)
        return content

    def _wrap(self, content: Any) -> Any:
        owner, key = self._choose(content)
        depth = self._random.choice((1, 2, 50, 900, 50_000))
        if depth < 100:
            for _ in range(depth):
                owner[key] = [owner[key]] if self._random.random() < 0.7 else {"a": owner[key]}
        else:
            self._raw.append("[" * depth + "]" * depth)
            owner[key] = _HOLE
        return content

    def _break(self, body: bytes) -> bytes:
        """Return a body that is no JSON, most of the time."""
        at = self._random.randrange(len(body) + 1)
        head, tail = body[:at], body[at:]
        cases = (
            *(head, head + b"\xff" + tail, head + b"\x00" + tail, head + b'"' + tail, body + body, b""),
            *(b"\xef\xbb\xbf" + body, body.decode("utf-8", "replace").encode("utf-16"), b"[" * self._size),
        )
        return self._random.choice(cases)
