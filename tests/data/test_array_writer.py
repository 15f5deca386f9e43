"""Arrays written chunk by chunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longrec.data.array_writer import ArrayWriter, narrow
from longrec.features.entity_table import open_array


@pytest.mark.parametrize("sizes", [[], [0], [3], [1, 0, 4], [100_000, 1]])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
def test_chunks_become_one_file(sizes: list[int], dtype: Any, tmp_path: Path) -> None:
    chunks = [np.arange(size) % 200 for size in sizes]
    with ArrayWriter(tmp_path / "x.npy", dtype) as writer:
        for chunk in chunks:
            writer.append(chunk)
    assert writer.length == sum(sizes)
    for array in (np.load(tmp_path / "x.npy"), open_array(tmp_path / "x.npy")):
        assert array.dtype == dtype
        assert array.tolist() == np.concatenate([np.zeros(0, int), *chunks]).tolist()


@pytest.mark.parametrize(
    ("rows", "dtype"), [(0, "u1"), (1, "u1"), (256, "u1"), (257, "u2"), (65536, "u2"), (65537, "u4"), (2**32 + 1, "u8")]
)
def test_the_narrowest_type_that_holds_all_rows(rows: int, dtype: str) -> None:
    assert np.dtype(narrow(rows)) == np.dtype(dtype)
