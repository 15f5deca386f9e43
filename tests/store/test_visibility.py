"""Tests of reads of visible tokens against a linear search."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.store.token_store import TokenInfo, TokenStore, Version
from longrec.store.visibility import read_visible_tokens

INFO = TokenInfo(width=2, codec="fp32", sides={"label": 3}, visibility_delay=3, versions=(Version(0),))
TOKENS = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 40), st.integers(0, 30)), max_size=60)


@settings(deadline=None, max_examples=25)
@given(tokens=TOKENS, timestamps=st.lists(st.integers(0, 60), min_size=4, max_size=4), n=st.integers(1, 6))
def test_visible_tokens_equal_a_linear_search(
    tmp_path_factory: pytest.TempPathFactory, tokens: list[tuple[int, int, int]], timestamps: list[int], n: int
) -> None:
    user, time, late = (np.array([t[field] for t in tokens], np.int64) for field in range(3))
    # Consecutive names at one timestamp would be versions of one token.
    names = 2 * np.arange(len(tokens), dtype=np.int64)
    vectors = np.stack([names, -names], 1).astype(np.float32)
    with TokenStore.create(tmp_path_factory.mktemp("s") / "t", INFO) as store:
        store.append(user, time, instance=names, visible=time + late, version=0 * names, vectors=vectors,
                     sides={"label": names % 3}, available_at={"label": time + 2 * late})  # fmt: skip
        users = np.array([3, 1, 2, 9])
        read = read_visible_tokens(store, users, np.array(timestamps), n)
        order = np.lexsort((names, time))
        for index, (who, now) in enumerate(zip(users.tolist(), timestamps)):
            wanted = [
                k for k in order if user[k] == who and time[k] < now - INFO.visibility_delay and time[k] + late[k] < now
            ][-n:]
            own = slice(read.offsets[index], read.offsets[index + 1])
            one = read_visible_tokens(store, who, now, n, ["visible", "vectors", "label"])
            for got in (read.vectors[own], one.vectors):
                assert got.tolist() == vectors[wanted].tolist()
            assert read.times[own].tolist() == one.times.tolist() == time[wanted].tolist()
            assert read.instance[own].tolist() == names[wanted].tolist()
            assert read.sides["label"][own].tolist() == one.sides["label"].tolist() == (names[wanted] % 3).tolist()
            assert read.available_at["label"][own].tolist() == (time + 2 * late)[wanted].tolist()
            assert one.offsets.tolist() == [0, len(wanted)]
