"""Candidates: items in a pipeline, with their scores and their candidate sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

_SOURCES = 63
"""Largest number of candidate sources: one bit each in a signed 64-bit number."""

RawColumn: TypeAlias = Sequence[Any] | None
"""One raw value per candidate, or None if all are missing."""


@dataclass(frozen=True)
class Candidates:
    """C items, in order. They hold keys and no rows of a table, because every stage has tables of its own.

    Attributes:
        keys: ``[C]`` item keys in the type of the log (int64, or text as objects).
        via: int64 ``[C]``, bit mask of the candidate sources: bit s is set if ``sources[s]`` returned the item.
        sources: names of candidate sources.
        scores: float32 ``[C]`` by the name of the stage, in the order of the stages. NaN for an item without a score.
        columns: raw columns of the candidates from the request.
        ranks: int32 ``[C]`` by the name of the source: rank in its list, from 1. 0 for an item of others.
    """

    keys: NDArray[Any]
    via: NDArray[np.int64]
    sources: tuple[str, ...]
    scores: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    columns: Mapping[str, RawColumn] = field(default_factory=dict)
    ranks: Mapping[str, NDArray[np.int32]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def of(
        cls,
        keys: Sequence[Any] | NDArray[Any],
        source: str,
        columns: Mapping[str, RawColumn] | None = None,
    ) -> Candidates:
        """Create unscored candidates from one candidate source."""
        array = keys if isinstance(keys, np.ndarray) else to_key_array(keys)
        return cls(array, np.ones(len(array), np.int64), (source,), {}, columns or {})

    @property
    def score(self) -> NDArray[np.float32]:
        """Scores of the last stage, float32 ``[C]``. NaN before scoring."""
        return list(self.scores.values())[-1] if self.scores else np.full(len(self), np.nan, np.float32)

    def take(self, order: NDArray[Any]) -> Candidates:
        """Return the candidates at the given indices, in that order."""
        return Candidates(
            self.keys[order],
            self.via[order],
            self.sources,
            {name: scores[order] for name, scores in self.scores.items()},
            self._take_columns(order) if self.columns else {},
            {name: ranks[order] for name, ranks in self.ranks.items()},
        )

    def _take_columns(self, order: NDArray[Any]) -> dict[str, RawColumn]:
        indices = order.tolist()
        return {
            name: None if values is None else [values[index] for index in indices]
            for name, values in self.columns.items()
        }

    def with_scores(self, name: str, scores: NDArray[Any], *, last: bool = True) -> Candidates:
        """Return the same candidates with the scores of a stage.

        Args:
            last: they become the last ones, which ``score`` returns. Else the first ones.
        """
        others = {stage: values for stage, values in self.scores.items() if stage != name}
        own = {name: np.asarray(scores, np.float32)}
        return replace(self, scores={**others, **own} if last else {**own, **others})

    def with_ranks(self, source: str) -> Candidates:
        """Return the same candidates, which are the list of a source, best first, with their ranks in it."""
        return replace(self, ranks={**self.ranks, source: np.arange(1, len(self) + 1, dtype=np.int32)})

    def list_origins(self) -> list[str]:
        """Return the names of the sources of each candidate, joined with ``+``."""
        names, numbers = self.number_origins()
        return [names[number] for number in numbers.tolist()]

    def number_origins(self) -> tuple[list[str], NDArray[np.int64]]:
        """Return the distinct texts of ``list_origins``, and the number of that of each candidate, int64 ``[C]``."""
        distinct, numbers = np.unique(self.via, return_inverse=True)
        names = [
            "+".join(name for bit, name in enumerate(self.sources) if bits >> bit & 1) for bits in distinct.tolist()
        ]
        return names, numbers


def to_key_array(keys: Sequence[Any]) -> NDArray[Any]:
    """Convert keys to an array: int64 if all are integers, else objects.

    >>> to_key_array([3, 4]).dtype, to_key_array(["a", 4]).tolist()
    (dtype('int64'), ['a', 4])
    """
    if set(map(type, keys)) == {int}:  # of integers and one long text, numpy would make an array of long texts
        array = np.array(keys)
        if array.dtype == np.int64:
            return array
    return np.array(keys, object)


def merge(candidate_sets: Sequence[Candidates]) -> Candidates:
    """Merge candidates of several sources without duplicates.

    An item keeps its first position, and the first score and rank of every name.

    Raises:
        ValueError: if there are more sources than bits, or candidates have different columns.
    """
    if len({frozenset(candidates.columns) for candidates in candidate_sets}) > 1:
        raise ValueError("candidates of several sources need the same columns")
    sources = tuple(dict.fromkeys(name for candidates in candidate_sets for name in candidates.sources))
    if len(sources) > _SOURCES:
        raise ValueError(f"{len(sources)} sources, at most {_SOURCES}")
    names = dict.fromkeys(name for candidates in candidate_sets for name in candidates.scores)
    columns = candidate_sets[0].columns if candidate_sets else ()
    listed = dict.fromkeys(name for candidates in candidate_sets for name in candidates.ranks)
    both = Candidates(
        np.concatenate([candidates.keys for candidates in candidate_sets]),
        np.concatenate([_remap_source_bits(candidates, sources) for candidates in candidate_sets]),
        sources,
        {name: np.concatenate([_read_scores(candidates, name) for candidates in candidate_sets]) for name in names},
        {name: _concatenate([(c.columns[name], len(c)) for c in candidate_sets]) for name in columns},
        {name: np.concatenate([_read_ranks(candidates, name) for candidates in candidate_sets]) for name in listed},
    )
    _, first, owner = np.unique(both.keys, return_index=True, return_inverse=True)
    via = np.zeros(len(first), np.int64)
    np.bitwise_or.at(via, owner, both.via)
    order = np.argsort(first)
    scores = {name: _choose_first_scores(values, owner, len(first))[order] for name, values in both.scores.items()}
    ranks = {name: _choose_first_ranks(values, owner, len(first))[order] for name, values in both.ranks.items()}
    return replace(both.take(first[order]), via=via[order], scores=scores, ranks=ranks)


def _read_scores(candidates: Candidates, name: str) -> NDArray[np.float32]:
    return candidates.scores[name] if name in candidates.scores else np.full(len(candidates), np.nan, np.float32)


def _choose_first_scores(scores: NDArray[np.float32], owner: NDArray[Any], count: int) -> NDArray[np.float32]:
    """Return the first score of each distinct item that is not NaN."""
    chosen = np.full(count, np.nan, np.float32)
    valid = np.flatnonzero(~np.isnan(scores))[::-1]
    chosen[owner[valid]] = scores[valid]  # of several scores of an item the last one written is the first one
    return chosen


def _read_ranks(candidates: Candidates, name: str) -> NDArray[np.int32]:
    return candidates.ranks[name] if name in candidates.ranks else np.zeros(len(candidates), np.int32)


def _choose_first_ranks(ranks: NDArray[np.int32], owner: NDArray[Any], count: int) -> NDArray[np.int32]:
    """Return the first rank of each distinct item that is not 0."""
    chosen = np.zeros(count, np.int32)
    valid = np.flatnonzero(ranks)[::-1]
    chosen[owner[valid]] = ranks[valid]
    return chosen


def _concatenate(columns: Sequence[tuple[RawColumn, int]]) -> RawColumn:
    if all(values is None for values, _ in columns):
        return None
    return [value for values, count in columns for value in ([None] * count if values is None else values)]


def _remap_source_bits(candidates: Candidates, sources: tuple[str, ...]) -> NDArray[np.int64]:
    """Return the source bits of candidates in the order of all sources."""
    bits = np.zeros(len(candidates), np.int64)
    for bit, name in enumerate(candidates.sources):
        bits |= (candidates.via >> bit & 1) << sources.index(name)
    return bits
