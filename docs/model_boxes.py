"""Boxes of a figure, their entries and the lines between them, and shapes written in letters."""

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
"""Letters for the numbers in a shape, for one request (False) and for rows in any order (True)."""


@dataclass
class Entry:
    """A line of text in a box: a module, its output shape, its rate, and how often it ran."""

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
        parameters: number of learned parameters, tables aside.
        entries: its inner modules in the order of their calls.
        shape: of its output.
        rates: operations by the rate at which they ran.
        times: number of times it ran.
        under: second line of an embeddings box, below its name.
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
        """Return True for a box without operations and without learned parameters."""
        holds_data = self.kind in ("input", "output", "embeddings")
        return not holds_data and not self.parameters and not any(self.rates.values())


@dataclass
class Figure:
    """Boxes in the order of their first call, and the lines between them.

    Attributes:
        ragged: traced on rows of several users, not on one request.
        learned: number of learned parameters of the model, its embeddings not counted.
    """

    name: str
    ragged: bool
    learned: int
    boxes: dict[int, Box]
    lines: set[tuple[int, int]]


def shape_of(tensor: Tensor, ragged: bool) -> str:
    """Return a shape such as ``[B, 16]``. The last number is a width and never written as a multiple."""
    letters, several = LETTERS[ragged], _letters(tensor, ragged)
    last = [letters.get(n, str(n)) for n in tensor.shape[-1:]] if tensor.ndim > 1 else several[-1:]
    return f"[{', '.join([*several[:-1], *last])}]"


def rate_of(tensor: Tensor, ragged: bool) -> str:
    """Return the rate of a tensor: ``pair``, ``candidate``, ``event`` or ``request``; ``event`` or ``row`` of ragged
    rows.
    """
    letters = "".join(_letters(tensor, ragged))
    if ragged:
        return "event" if "N" in letters else "row"
    rates = {(True, True): "pair", (True, False): "candidate", (False, True): "event", (False, False): "request"}
    return rates["B" in letters, "T" in letters]


def _letters(tensor: Tensor, ragged: bool) -> list[str]:
    """Return a shape in letters, where a number has one."""
    letters = LETTERS[ragged]
    several = {
        times * n: f"{times}·{letter}" for n, letter in letters.items() if len(letter) < 4 for times in range(2, 13)
    }
    return [(several | letters).get(n, str(n)) for n in tensor.shape]


def by_rate(fields: Iterable[Field], ragged: bool) -> list[Entry]:
    """Return the fields of the impression, one entry each for those of the request and those of the candidate."""
    fields = list(fields)
    if ragged:
        return [Entry(", ".join(field.name for field in fields), "", "", "row")]
    groups = {
        "request": [field.name for field in fields if field.side != "item"],
        "candidate": [field.name for field in fields if field.side == "item"],
    }
    return [Entry(", ".join(names), "", "", rate) for rate, names in groups.items() if names]


def events_of(history: str, columns: Iterable[Field]) -> Entry:
    """Return the columns of a history as one entry."""
    return Entry(", ".join(column.name.removeprefix(f"{history}.") for column in columns), "", "", "event")


# ---- a figure that is easy to read ---------------------------------------------------------------------------------


def tidy(figure: Figure) -> Figure:
    """Return a figure without unused inputs, and with equal boxes merged."""
    reached = {number for number, box in figure.boxes.items() if box.kind == "output"}
    while more := {a for a, b in figure.lines if b in reached} - reached:
        reached |= more
    figure.boxes = {number: box for number, box in figure.boxes.items() if number in reached}
    figure.lines = {(a, b) for a, b in figure.lines if a in reached and b in reached}
    while _merge_pair(figure):
        pass
    return figure


def _merge_pair(figure: Figure) -> bool:
    """Merge the first two equal boxes: same kind, size and shape, the same inputs and outputs."""
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
