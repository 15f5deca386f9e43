"""Computed history columns: sessions and the time between events."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.features.computed_columns import compute_session_recency, compute_time_since_previous
from longrec.features.schema import Schema


@pytest.mark.parametrize(("gap", "is_split"), [(1_800_000, False), (1_800_001, True), (1_801_000, True)])
def test_a_gap_of_exactly_the_session_does_not_split(gap: int, is_split: bool) -> None:
    ids = compute_session_recency(np.array([0, gap]), np.array([0, 2]), 1_800_000)
    assert ids.tolist() == [3 if is_split else 2, 2]


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.lists(st.integers(0, 200), max_size=9), max_size=5),
    st.integers(0, 40),
)
def test_both_columns_equal_the_slow_way(rows: list[list[int]], gap: int) -> None:
    rows = [sorted(row) for row in rows]
    times = np.array([time for row in rows for time in row], np.int64)
    offsets = np.cumsum([0, *map(len, rows)])
    back, since = [], []
    for row in rows:
        for at, time in enumerate(row):
            back.append(2 + sum(later - earlier > gap for earlier, later in zip(row[at:], row[at + 1 :])))
            since.append(2 + (1 + time - row[at - 1]).bit_length() - 1 if at else 0)
    assert compute_session_recency(times, offsets, gap).tolist() == back
    assert compute_time_since_previous(times, offsets, 1).tolist() == since


def test_the_oldest_sessions_share_an_id() -> None:
    ids = compute_session_recency(np.arange(100) * 10, np.array([0, 100]), 5)
    assert ids.tolist() == [65] * 36 + list(range(65, 1, -1))
    assert ids.dtype == np.int32


def test_a_session_needs_its_column() -> None:
    schema: dict[str, Any] = {
        "user": "u",
        "item": "i",
        "time": "t",
        "label": "y",
        "features": {"i": {"kind": "id"}},
        "histories": {"h": {"features": ["i"], "session_gap": "1h"}},
    }
    with pytest.raises(ValueError, match="session_gap cuts sessions for session_recency, which features does not name"):
        Schema.model_validate(schema)
    schema["histories"] = {"h": {"features": ["i", "session_recency"], "session_gap": "1h"}}
    assert Schema.model_validate(schema).histories["h"].session_gap == "1h"
