"""Candidates: items in a pipeline, with their scores and their candidate sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.features.feature_encoders import Lists
from longrec.features.fitted_schema import concat_lists, gather_lists

_SOURCES = 63
"""Largest number of candidate sources: one bit each in a signed 64-bit number."""


@dataclass(frozen=True)
class Candidates:
    """C items, in order.

    Attributes:
        rows: integers ``[C]``, rows of the item table (0: unknown).
        keys: ``[C]`` item keys in the type of the log (int64, or text as objects).
        scores: float32 ``[C]``, NaN before scoring.
        via: int64 ``[C]``, bit mask of the candidate sources: bit s is set if ``sources[s]`` returned the item.
        sources: names of candidate sources.
        columns: encoded columns of the candidates from the request, C entries per feature.
    """

    rows: NDArray[Any]
    keys: NDArray[Any]
    scores: NDArray[np.float32]
    via: NDArray[np.int64]
    sources: tuple[str, ...]
    columns: Mapping[str, NDArray[Any] | Lists] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def of(
        cls,
        rows: NDArray[Any],
        keys: Sequence[Any] | NDArray[Any],
        source: str,
        columns: Mapping[str, NDArray[Any] | Lists] | None = None,
    ) -> Candidates:
        """Create unscored candidates from one candidate source."""
        column = keys if isinstance(keys, np.ndarray) else _to_key_array(keys)
        scores, via = np.full(len(rows), np.nan, np.float32), np.ones(len(rows), np.int64)
        return cls(rows, column, scores, via, (source,), columns or {})

    def take(self, order: NDArray[Any]) -> Candidates:
        """Return the candidates at the given indices, in that order."""
        return replace(
            self,
            rows=self.rows[order],
            keys=self.keys[order],
            scores=self.scores[order],
            via=self.via[order],
            columns=self.take_columns(order),
        )

    def take_columns(self, order: NDArray[Any]) -> dict[str, NDArray[Any] | Lists]:
        """Return the columns of the candidates at the given indices."""
        return {
            name: gather_lists(column, order) if isinstance(column, Lists) else column[order]
            for name, column in self.columns.items()
        }

    def with_scores(self, scores: NDArray[Any]) -> Candidates:
        """Return the same candidates with scores."""
        return replace(self, scores=np.asarray(scores, np.float32))

    def list_origins(self) -> list[str]:
        """Return the names of the sources of each candidate, joined with ``+``."""
        if len(self.sources) == 1:
            return list(self.sources) * len(self)
        names = {}
        for bits in np.unique(self.via).tolist():
            names[bits] = "+".join(name for bit, name in enumerate(self.sources) if bits >> bit & 1)
        return [names[bits] for bits in self.via.tolist()]


def _to_key_array(keys: Sequence[Any]) -> NDArray[Any]:
    return np.array(keys, np.int64 if keys and isinstance(keys[0], int) else object)


def merge(candidate_sets: Sequence[Candidates]) -> Candidates:
    """Merge candidates of several sources without duplicates. An item keeps its first position and its first score.

    Raises:
        ValueError: if there are more sources than bits, or candidates have different columns.
    """
    if len({frozenset(candidates.columns) for candidates in candidate_sets}) > 1:
        raise ValueError("candidates of several sources need the same columns")
    sources = tuple(dict.fromkeys(name for candidates in candidate_sets for name in candidates.sources))
    if len(sources) > _SOURCES:
        raise ValueError(f"{len(sources)} sources, at most {_SOURCES}")
    bits = [_remap_source_bits(candidates, sources) for candidates in candidate_sets]
    both = Candidates(
        np.concatenate([candidates.rows for candidates in candidate_sets]),
        np.concatenate([candidates.keys for candidates in candidate_sets]),
        np.concatenate([candidates.scores for candidates in candidate_sets]),
        np.concatenate(bits),
        sources,
        {
            name: _concatenate([candidates.columns[name] for candidates in candidate_sets])
            for name in (candidate_sets[0].columns if candidate_sets else ())
        },
    )
    _, first, owner = np.unique(both.keys, return_index=True, return_inverse=True)
    via = np.zeros(len(first), np.int64)
    np.bitwise_or.at(via, owner, both.via)
    order = np.argsort(first)
    return replace(both.take(first[order]), via=via[order])


def _concatenate(columns: Sequence[NDArray[Any] | Lists]) -> NDArray[Any] | Lists:
    lists = [column for column in columns if isinstance(column, Lists)]
    return (
        concat_lists(lists)
        if lists
        else np.concatenate([column for column in columns if not isinstance(column, Lists)])
    )


def _remap_source_bits(candidates: Candidates, sources: tuple[str, ...]) -> NDArray[np.int64]:
    """Return the source bits of candidates in the order of all sources."""
    bits = np.zeros(len(candidates), np.int64)
    for bit, name in enumerate(candidates.sources):
        bits |= (candidates.via >> bit & 1) << sources.index(name)
    return bits
