"""Instance tokens as history columns: the fields of a model, and the values available at a timestamp.

A token is the vector that a source model computed from one earlier impression. A token store also contains side columns
(the label and other feedback of that impression, each with the timestamp at which it became available), the source
version, and the timestamp from which the token could be read. Training batches and requests use the same code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from longrec.errors import ConfigError, nearest
from longrec.features.feature_encoders import FIRST, UNSEEN
from longrec.features.fields import TIME_GAP, TIME_GAP_ROWS, TOKEN, VERSION, Field

_MASK = 2**64 - 1


@dataclass(frozen=True)
class TokenSpec:
    """Contents of a token store that a model reads.

    Attributes:
        width: width of a token.
        slots: number of equal blocks per token.
        sides: side columns with their number of ids. The id of that number means "not yet available".
        versions: number of source versions that wrote it, numbered from 0.
        mixed: True if several versions wrote vectors that are not standardized to one scale.
    """

    width: int
    slots: int = 1
    sides: Mapping[str, int] = field(default_factory=dict)
    versions: int = 1
    mixed: bool = False

    def columns(self, history: str, features: Sequence[str]) -> tuple[Field, ...]:
        """Return the fields of a history that reads these tokens.

        Raises:
            ConfigError: if the store does not have a column, or versions are mixed without the version column.
        """
        valid_names, faults = [TOKEN, VERSION, TIME_GAP, *self.sides], []
        for column in (column for column in features if column not in valid_names):
            near = nearest(column, valid_names)
            hint = f"did you mean {near!r}?" if near else f"it has {', '.join(valid_names)}"
            faults.append(f"histories.{history}.features: the token store has no column {column!r}; {hint}")
        if self.mixed and TOKEN in features and VERSION not in features:
            faults.append(
                f"histories.{history}.features: these tokens come from {self.versions} versions of their source, which "
                f"are not of one scale; add {VERSION} so that a model can separate them, or compress with standardize"
            )
        if faults:
            raise ConfigError("schema", faults)
        return tuple(self._field(history, column) for column in features)

    def _field(self, history: str, column: str) -> Field:
        if column == TIME_GAP:
            return Field(TIME_GAP, "id", TIME_GAP_ROWS)
        name = format_token_field(history, column)
        if column == TOKEN:
            return Field(name, "embedding", 0, width=self.width, slots=self.slots)
        if column == VERSION:
            return Field(name, "id", FIRST + self.versions)
        return Field(name, "id", self.sides[column] + 1, feedback=True)


def format_token_field(history: str, column: str) -> str:
    """Format the field name of a token column. Two stores never share an embedding table.

    >>> format_token_field("tokens", "label"), format_token_field("tokens", "time_gap")
    ('tokens.label', 'time_gap')
    """
    return column if column == TIME_GAP else f"{history}.{column}"


class TokenArrays(Protocol):
    """Tokens of several users, end to end, oldest first within a user. See ``store.token_info.Tokens``."""

    @property
    def offsets(self) -> NDArray[np.int64]:
        """int64 ``[users + 1]``."""

    @property
    def times(self) -> NDArray[np.int64]:
        """int64 ``[N]``: timestamps of the impressions."""

    @property
    def visible(self) -> NDArray[np.int64]:
        """int64 ``[N]``: timestamp from which each token could be read."""

    @property
    def version(self) -> NDArray[np.int32]:
        """int32 ``[N]``."""

    @property
    def vectors(self) -> NDArray[np.float32]:
        """float32 ``[N, width]``."""

    @property
    def sides(self) -> Mapping[str, NDArray[np.int32]]:
        """int32 ids ``[N]`` by side column."""

    @property
    def available_at(self) -> Mapping[str, NDArray[np.int64]]:
        """int64 ``[N]``: timestamp at which each side value became available, by side column."""


def build_token_columns(
    spec: TokenSpec,
    history: str,
    features: Sequence[str],
    tokens: TokenArrays,
    timestamps: NDArray[np.int64],
    gaps: Any,
) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
    """Build the columns of a token history as available strictly before a timestamp, and their offsets.

    A token that could not yet be read is dropped. A value of a side column that was not yet
    available is replaced by the id "not yet available".

    Args:
        tokens: tokens of impressions before the timestamps, one user per timestamp.
        timestamps: int64 ``[users]``.
        gaps: computes ids of the elapsed time from (now, then).

    Returns:
        Columns by field name (float32 ``[N, width]`` for the token, int32 ids ``[N]`` for the rest), and int64 offsets
        ``[users + 1]``.
    """
    lengths = np.diff(tokens.offsets)
    now = np.repeat(timestamps, lengths)
    seen = tokens.visible < now
    whole = bool(seen.all())
    offsets = tokens.offsets

    def select_visible(values: NDArray[Any]) -> NDArray[Any]:
        return values if whole else values[seen]

    if not whole:
        offsets = np.concatenate([[0], np.cumsum(seen)]).astype(np.int64)[tokens.offsets]
    columns: dict[str, NDArray[Any]] = {}
    for column in features:
        if column == TIME_GAP:
            values = gaps(select_visible(now), select_visible(tokens.times))
        elif column == TOKEN:
            values = select_visible(tokens.vectors)
        elif column == VERSION:
            version = select_visible(tokens.version)
            values = np.where(version < spec.versions, version + FIRST, UNSEEN).astype(np.int32)
        else:
            values = np.where(tokens.available_at[column] < now, tokens.sides[column], spec.sides[column]).astype(
                np.int32
            )
            values = select_visible(values)
        columns[format_token_field(history, column)] = values
    return columns, offsets


def compute_instance_ids(
    users: NDArray[np.int64], items: NDArray[np.int64], times: NDArray[np.int64], seen: bool = True
) -> NDArray[np.int64]:
    """Compute the id of each instance: 63 bits of a hash of user, item and time, the same offline and online.

    Args:
        users, items: key numbers ``[n]`` (``vocabulary.compute_key_numbers``).
        times: timestamps ``[n]``.
        seen: distinguish instances that agree in all three by counting them, in the order of the rows.
    """
    count = np.zeros(len(users), np.int64)
    if seen and len(users):
        order = np.lexsort((items, times, users))
        same = np.ones(len(users), bool)
        for values in (users, items, times):
            same[1:] &= values[order][1:] == values[order][:-1]
        same[0] = False
        index = np.arange(len(users))
        count[order] = index - np.maximum.accumulate(np.where(same, 0, index))
    mixed = np.zeros(len(users), np.uint64)
    with np.errstate(over="ignore"):
        for values in (users, items, times, count):
            mixed = _mix(mixed ^ values.astype(np.int64).view(np.uint64))
    return (mixed >> np.uint64(1)).astype(np.int64)


def compute_instance_id(user: int, item: int, time: int) -> int:
    """Compute the id of the only instance of a user, an item and a time, as ``compute_instance_ids`` does.

    >>> compute_instance_id(7, -3, 5) == int(compute_instance_ids(*(np.array([x]) for x in (7, -3, 5)))[0])
    True
    """
    mixed = 0
    for value in (user, item, time, 0):
        mixed = ((mixed ^ (value & _MASK)) + 0x9E3779B97F4A7C15) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        mixed ^= mixed >> 31
    return mixed >> 1


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply the splitmix64 finalizer."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
