"""Queries and candidates as encoded for one bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.features.feature_encoders import Lists
from longrec.features.fitted_schema import gather_lists
from longrec.serve.recent_events import RecentColumns


@dataclass(frozen=True)
class EncodedQuery:
    """A query as encoded for one bundle.

    Attributes:
        row: row of the user table (0: unknown).
        user: key number of the user, 0 if the bundle reads nothing by key.
        inputs: encoded values shared by all candidates, by the input names of the programs.
        positions: number of history events in ``inputs``, a measure of the work per candidate.
        recent: the recent events of the request, None without one.
    """

    row: int
    user: int
    inputs: Mapping[str, NDArray[Any]]
    positions: int
    recent: RecentColumns | None = None


@dataclass(frozen=True)
class EncodedCandidates:
    """Candidates as encoded for one bundle.

    Attributes:
        rows: int64 ``[C]``, rows of the item table (0: unknown).
        keys: ``[C]`` keys in the type of the log.
        columns: encoded columns of the candidates, C entries per feature.
    """

    rows: NDArray[np.int64]
    keys: NDArray[Any]
    columns: Mapping[str, NDArray[Any] | Lists]

    def slice(self, some: slice) -> EncodedCandidates:
        """Return some consecutive candidates."""
        columns = self.columns
        if columns:
            order = np.arange(len(self.rows))[some]
            columns = {
                name: gather_lists(column, order) if isinstance(column, Lists) else column[order]
                for name, column in columns.items()
            }
        return EncodedCandidates(self.rows[some], self.keys[some], columns)
