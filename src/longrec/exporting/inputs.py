"""Inputs of an ONNX model: flat, named tensors, the same for tracing, for the parity check and for serving.

Names are ``f.<feature>``, ``h.<history>.<column>``, ``s.<history>``, the state before a history, and ``p.<history>``,
the positions of the events of each user in a program that updates states. Of a generator they are also ``m.NAME``, what
its steps read of a request, and ``t.<feature>``, the tokens of prefixes. A multi-value field has three inputs, or two
without weights: ``.values``, ``.offsets``, ``.weights``. A field of several numbers has two dimensions. One user, C
candidates, T events per history.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from longrec.features.feature_encoders import Lists
from longrec.features.fields import RENAMED_COLUMNS, Field, Fields

SCORE, ENCODE, USERS_PROGRAM, ITEMS_PROGRAM = "score", "encode", "users", "items"
"""Names of programs, see ``exporting/programs.py``."""
EXPLORE = "explore"
"""Name of the program of an explorer, whose outputs are the plain probability and the exploration score."""
NOISE = "n."
"""Prefix of the inputs of an explorer with noise."""
START, POSITIONS = "s.", "p."
"""Prefixes of the names of inputs: the states before a history, and the positions of the events that update them."""
MEMORY, TOKEN, STEP = "m.", "t.", "step."
"""Prefixes of what the steps of a generator read of a request and of prefixes, and of the names of these programs."""
LOGS_OUTPUT = "log_probability"
"""Output of a step of a generator: float32 ``[W, V]``, what each next token adds to the score of each prefix."""
UPDATE, STATE = "update.", "state"
"""Prefix of the names of the programs that update states, see ``exporting/states.py``, and their output."""
OUTPUT = "score"
"""Output of a ranker: float32 probabilities ``[C]``. Of a re-ranker: float32 probabilities ``[C]`` over the list. Of a
retriever: float32 scores ``[I]`` of the catalog.
"""
TASK_OUTPUT = "task."
"""Prefix of further outputs of a ranker of several tasks: float32 probabilities ``[C]`` of each, ``label`` first."""
RANKS_OUTPUT = "initial_rank"
"""Second output of a re-ranker: int32 ranks ``[C]`` in the initial list, 0 for the first item."""
VECTORS_OUTPUT = "vectors"
"""Output of a vector retriever: float32 vectors ``[K, D]`` of a request, or ``[I, D]`` of items."""
TOKEN_OUTPUT, CODES_OUTPUT = "token", "codes"
"""Outputs of an encoder: float32 vectors ``[C, W]``, and int32 codes ``[C, S * M]`` if it has codebooks."""

_TYPES: dict[str, np.dtype[Any]] = {
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP32": np.dtype(np.float32),
}


class Input(msgspec.Struct, frozen=True):
    """One input tensor, of one dimension, or of two if each entry is a vector.

    Attributes:
        group: unit of the entries: ``user`` (one), ``item`` (C candidates), ``h.HISTORY`` (T events), ``s.HISTORY`` (B
            users whose states are updated), ``memory`` (positions of a generator's memory) or ``prefix`` (W prefixes).
        component: ``value`` for one plain value per entry, or the flat values, offsets (entries + 1) or weights of a
            multi-value field, or ``positions``: int64 ``[B, P]`` in the events of a history, -1 after the last one of
            a user. Stored as ``part``.
        rows: exclusive upper bound of the ids, or 0 for numbers and offsets.
        width: numbers per entry if each entry is a vector, else 0.
    """

    name: str
    datatype: Literal["INT32", "INT64", "FP32"]
    group: str
    component: Literal["value", "values", "offsets", "weights", "positions"] = msgspec.field(name="part")
    rows: int
    width: int = 0

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy type."""
        return _TYPES[self.datatype]

    @property
    def shape(self) -> list[int]:
        """The shape, with -1 for a length that differs between requests."""
        size = -1
        if self.component == "positions":
            return [size, size]
        if self.group == "user" and self.component in ("value", "offsets"):
            size = 1 if self.component == "value" else 2
        return [size, self.width] if self.width else [size]

    @property
    def field(self) -> str:
        """The name without its component: ``f.genres`` for ``f.genres.values``."""
        return self.name if self.component in ("value", "positions") else self.name.removesuffix(f".{self.component}")


class Output(msgspec.Struct, frozen=True):
    """One output tensor.

    Attributes:
        shape: the shape, with -1 for a length that differs between requests.
    """

    name: str
    datatype: Literal["INT32", "FP32"]
    shape: list[int]


class ProgramFacts(msgspec.Struct, frozen=True):
    """Description of one program of a bundle.

    Attributes:
        file: the ONNX file, relative to the bundle.
        inputs: inputs that the program reads.
        outputs: outputs, the first one is the result.
    """

    file: str
    inputs: list[Input]
    outputs: list[Output]


def rename_input(name: str) -> str:
    """Return the present name of an input. Bundles of earlier versions have former names of computed columns."""
    group, dot, column = name.rpartition(".")
    return group + dot + RENAMED_COLUMNS.get(column, column) if group.startswith("h.") else name


def list_inputs(fields: Fields, *, histories: bool) -> tuple[Input, ...]:
    """List all inputs, features first, in schema order.

    Args:
        histories: include the inputs of histories.
    """
    inputs: list[Input] = []
    for field in fields.features:
        inputs += _list_field_inputs(f"f.{field.name}", field, "item" if field.side == "item" else "user")
    if histories:
        for history in fields.histories:
            inputs += list_history_inputs(fields, history)
    return tuple(inputs)


def list_history_inputs(fields: Fields, history: str) -> list[Input]:
    """List the inputs of the events of one history."""
    group = f"h.{history}"
    return [
        entry
        for column in fields.histories[history]
        for entry in _list_field_inputs(f"{group}.{column.name}", column, group)
    ]


def _list_field_inputs(name: str, field: Field, group: str) -> list[Input]:
    if field.kind == "numeric":
        return [Input(name, "FP32", group, "value", 0)]
    if field.kind in ("embedding", "numbers"):
        return [Input(name, "FP32", group, "value", 0, field.width)]
    if field.kind == "id":
        return [Input(name, "INT32", group, "value", field.rows)]
    inputs = [
        Input(f"{name}.values", "INT32", group, "values", field.rows),
        Input(f"{name}.offsets", "INT64", group, "offsets", 0),
    ]
    return [*inputs, Input(f"{name}.weights", "FP32", group, "weights", 0)] if field.weighted else inputs


def make_tensors(name: str, column: NDArray[Any] | Lists, number: bool) -> dict[str, NDArray[Any]]:
    """Convert one encoded column to input tensors.

    Args:
        name: ``f.<feature>`` or ``h.<history>.<column>``.
        number: True for a field of numbers, False for ids.
    """
    if not isinstance(column, Lists):
        return {name: np.ascontiguousarray(column, np.float32 if number else np.int32)}
    tensors: dict[str, NDArray[Any]] = {
        f"{name}.values": np.ascontiguousarray(column.values, np.int32),
        f"{name}.offsets": np.ascontiguousarray(column.offsets, np.int64),
    }
    if column.weights is not None:
        tensors[f"{name}.weights"] = np.ascontiguousarray(column.weights, np.float32)
    return tensors


def list_positions(lengths: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the positions of users whose events follow each other, ``[B, P]``, -1 after the last one of a user."""
    lengths = np.asarray(lengths)
    number_P, first_B = np.arange(lengths.max()), np.cumsum(lengths) - lengths
    return np.where(number_P < lengths[:, None], first_B[:, None] + number_P, -1)


def make_random_tensors(
    inputs: Iterable[Input], candidates: int, events: int | Sequence[int], seed: int
) -> dict[str, NDArray[Any]]:
    """Make valid random tensors: ids over the whole table, lists of up to three values, often empty.

    Args:
        events: T of every history, or one T per history in order.
    """
    rng = np.random.default_rng(seed)
    inputs = list(inputs)
    histories = list(dict.fromkeys(i.group for i in inputs if i.group.startswith("h.")))
    lengths = [events] * len(histories) if isinstance(events, int) else list(events)
    sizes = {"user": 1, "item": candidates, "prefix": candidates, **dict(zip(histories, lengths))}
    sizes["memory"] = events if isinstance(events, int) else sum(events)
    offsets: dict[str, NDArray[np.int64]] = {}
    for entry in inputs:
        if entry.component != "value" and entry.field not in offsets:
            counts = rng.integers(0, 4, sizes[entry.group])
            offsets[entry.field] = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    tensors: dict[str, NDArray[Any]] = {}
    for entry in inputs:
        size = sizes[entry.group] if entry.component == "value" else int(offsets[entry.field][-1])
        if entry.component == "offsets":
            tensors[entry.name] = offsets[entry.field]
        elif entry.rows:
            tensors[entry.name] = rng.integers(0, entry.rows, size).astype(np.int32)
        else:
            shape = (size, entry.width) if entry.width else size
            tensors[entry.name] = rng.standard_normal(shape).astype(np.float32)
    return tensors
