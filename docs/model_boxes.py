"""What a figure is made of: boxes, their parts, and the lines between them; and how shapes are told in letters."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from model_batches import CANDIDATES, EVENTS, POSITIONS, ROWS
from torch import Tensor

from longrec.features.fields import Field

LETTERS = {
    False: {
        CANDIDATES: "B",
        EVENTS: "T",
        CANDIDATES * EVENTS: "B·T",
        EVENTS + 1: "T+1",
        CANDIDATES * (EVENTS + 1): "B·(T+1)",
    },
    True: {ROWS: "R", POSITIONS: "N", POSITIONS + ROWS: "N+R"},
}
"""What a number in a shape counts, of one request and of rows in any order."""


@dataclass
class Entry:
    """A line inside a box: a module, what came out of it, at which rate, and how often it ran."""

    name: str
    kind: str
    shape: str
    rate: str
    times: int = 1


@dataclass
class Box:
    """One box of a figure.

    Attributes:
        name: attribute of the model, name of a function, or of an input.
        kind: class of the module; ``input``, ``embeddings``, ``function``, ``parameter``, ``output``.
        parameters: how many numbers are learnt in it, tables aside.
        parts: its inner modules in the order of their calls.
        shape: of what it gives.
        rates: operations by the rate at which they ran.
        times: how often it ran.
        under: what embeddings are called below their name.
    """

    name: str
    kind: str
    parameters: int = 0
    entries: list[Entry] = field(default_factory=list)
    shape: str = ""
    rates: dict[str, int] = field(default_factory=dict)
    times: int = 1
    under: str = ""

    def idle(self) -> bool:
        """Whether nothing is computed here, and nothing learnt."""
        holds_data = self.kind in ("input", "output", "embeddings")
        return not holds_data and not self.parameters and not any(self.rates.values())


@dataclass
class Figure:
    """Boxes in the order of their first call, and the lines between them.

    Attributes:
        ragged: watched on rows of several users, not on one request.
        learnt: how many numbers the model learns, its embeddings not counted.
    """

    name: str
    ragged: bool
    learned: int
    boxes: dict[int, Box]
    lines: set[tuple[int, int]]


def shape_of(tensor: Tensor, ragged: bool) -> str:
    """``[B, 16]``; what stands last is a width, and no multiple of anything."""
    letters, several = LETTERS[ragged], _letters(tensor, ragged)
    last = [letters.get(n, str(n)) for n in tensor.shape[-1:]] if tensor.ndim > 1 else several[-1:]
    return f"[{', '.join([*several[:-1], *last])}]"


def rate_of(tensor: Tensor, ragged: bool) -> str:
    """What there is one of for each entry: ``pair``, ``candidate``, ``event``, ``request``; of rows ``row``."""
    letters = "".join(_letters(tensor, ragged))
    if ragged:
        return "event" if "N" in letters else "row"
    rates = {(True, True): "pair", (True, False): "candidate", (False, True): "event", (False, False): "request"}
    return rates["B" in letters, "T" in letters]


def _letters(tensor: Tensor, ragged: bool) -> list[str]:
    """A shape in letters where they fit."""
    letters = LETTERS[ragged]
    several = {
        times * n: f"{times}·{letter}" for n, letter in letters.items() if len(letter) < 4 for times in range(2, 13)
    }
    return [(several | letters).get(n, str(n)) for n in tensor.shape]


def by_rate(fields: Iterable[Field], ragged: bool) -> list[Entry]:
    """Fields of the impression in a line each: those of the request, and those of the candidate."""
    fields = list(fields)
    if ragged:
        return [Entry(", ".join(field.name for field in fields), "", "", "row")]
    groups = {
        "request": [field.name for field in fields if field.side != "item"],
        "candidate": [field.name for field in fields if field.side == "item"],
    }
    return [Entry(", ".join(names), "", "", rate) for rate, names in groups.items() if names]


def events_of(history: str, columns: Iterable[Field]) -> Entry:
    """The columns of a history in one line."""
    return Entry(", ".join(column.name.removeprefix(f"{history}.") for column in columns), "", "", "event")


# ---- a figure that is easy to read ---------------------------------------------------------------------------------


def tidy(figure: Figure) -> Figure:
    """Without inputs that nobody reads, and with like boxes as one."""
    reached = {number for number, box in figure.boxes.items() if box.kind == "output"}
    while more := {a for a, b in figure.lines if b in reached} - reached:
        reached |= more
    figure.boxes = {number: box for number, box in figure.boxes.items() if number in reached}
    figure.lines = {(a, b) for a, b in figure.lines if a in reached and b in reached}
    while _merge_pair(figure):
        pass
    return figure


def _merge_pair(figure: Figure) -> bool:
    """Make one box of the first two that are alike: same kind, size and shape, fed by the same and read by the same."""
    alike: dict[Any, int] = {}
    for number, box in figure.boxes.items():
        before = frozenset(a for a, b in figure.lines if b == number)
        after = frozenset(b for a, b in figure.lines if a == number)
        stem = box.name if box.kind == "function" else box.name.rpartition(".")[0]
        if box.kind in ("input", "output", "embeddings") or not stem:
            continue
        key = (stem, box.kind, box.parameters, box.shape, before, after)
        if key in alike:
            first = figure.boxes[alike[key]]
            if box.kind != "function":
                first.name = f"{first.name.partition(' … ')[0]} … {box.name.rpartition('.')[2]}"
            first.times += box.times
            figure.lines = {line for line in figure.lines if number not in line}
            del figure.boxes[number]
            return True
        alike[key] = number
    return False
