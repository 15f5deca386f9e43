from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.nn.length_buckets import Buckets, find_empty_rows, split_rows
from longrec.nn.segments import Segments

LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=60)


def segments(lengths: list[int]) -> Segments:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return Segments(offsets, len(lengths), int(offsets[-1]))


@given(LENGTHS, st.integers(1, 200))
@settings(max_examples=25, deadline=None)
def test_every_position_is_in_one_bucket_at_its_slot(lengths: list[int], most: int) -> None:
    owns = segments(lengths)
    buckets = Buckets(owns, most)
    assert sorted(buckets.rows.tolist()) == [row for row, length in enumerate(lengths) if length]
    x = torch.arange(owns.positions, dtype=torch.float32).unsqueeze(1) + 1
    seen = [0] * owns.positions
    chunks = torch.split(x[buckets.positions], buckets.sizes) if buckets.all else ()
    for bucket, chunk in zip(buckets.all, chunks, strict=True):
        wide = bucket.pad(chunk)
        rows = buckets.rows[bucket.rows].tolist()
        assert wide.shape == (len(rows), bucket.longest, 1)
        assert len(rows) == 1 or len(bucket) <= most
        for row, line in zip(rows, wide.squeeze(2).tolist(), strict=True):
            own = list(range(int(owns.offsets[row]), int(owns.offsets[row + 1])))
            assert line == [0.0] * (bucket.longest - len(own)) + [at + 1.0 for at in own]  # the newest at the right
            for at in own:
                seen[at] += 1
    assert seen == [1] * owns.positions


@given(LENGTHS)
@settings(max_examples=25, deadline=None)
def test_what_belongs_to_rows_comes_back_to_them(lengths: list[int]) -> None:
    buckets = Buckets(segments(lengths), 64)
    x = torch.randn(len(lengths), 3)
    filled = torch.tensor(lengths).unsqueeze(1) > 0
    assert torch.equal(buckets.restore(buckets.gather(x)), torch.where(filled, x, 0.0))


def test_little_is_padded_and_equal_rows_lie_as_they_are() -> None:
    lengths = torch.randint(1, 257, (600,), generator=torch.Generator().manual_seed(0)).tolist()
    padded = sum(len(bucket) for bucket in Buckets(segments(lengths), 4_096).all)
    assert padded < 1.15 * sum(lengths)
    equal = Buckets(segments([256] * 40), 4_096)
    assert equal.sorted
    assert [bucket.at for bucket in equal.all] == [None] * 3
    assert [bucket.start for bucket in equal.all] == [0, 16 * 256, 32 * 256]


@given(LENGTHS, st.integers(1, 200))
@settings(max_examples=25, deadline=None)
def test_chunks_are_whole_rows_in_order(lengths: list[int], most: int) -> None:
    owns = segments(lengths)
    rows, positions, chunks = split_rows(owns, most)
    assert sum(rows) == len(lengths)
    assert sum(positions) == owns.positions
    split_lengths = [length for chunk in chunks for length in chunk.offsets.diff().tolist()]
    assert split_lengths == lengths
    assert [(chunk.rows, chunk.positions) for chunk in chunks] == list(zip(rows, positions, strict=True))
    assert max(positions, default=0) < most + 2 * 40


def test_rows_without_positions() -> None:
    assert find_empty_rows(segments([2, 0, 1, 0])).squeeze(1).tolist() == [False, True, False, True]
    assert bool(find_empty_rows(Segments(torch.tensor([0, 0]), 3, 0, shared=True)))
    assert not bool(find_empty_rows(Segments(torch.tensor([0, 2]), 3, 2, shared=True)))
