from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from longrec.features.batch import Layout
from longrec.nn.joined import JoinedHistories
from longrec.nn.segments import GroupedSegments, Segments

HISTORIES = [[2, 0, 1], [0, 0, 3], [1, 2, 0]]
"""Events of three rows, per history."""


def segments(lengths: list[int]) -> Segments:
    return Segments(torch.tensor([0, *lengths]).cumsum(0), len(lengths), sum(lengths))


def grouped(lengths: list[int], owner: list[int]) -> GroupedSegments:
    return GroupedSegments(segments(lengths), Layout.grouped(len(lengths), np.array(owner, np.int64)))


def numbered(histories: list[list[int]]) -> list[Tensor]:
    """Return a value per event that tells its history and its position there."""
    return [100.0 * number + torch.arange(float(sum(own))).unsqueeze(1) for number, own in enumerate(histories)]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("owner", [None, [1, 2, 0, 2, 2], [0]], ids=str)
def test_events_of_a_row_are_next_to_each_other_and_their_weights_return(count: int, owner: list[int] | None) -> None:
    histories = HISTORIES[:count]
    every = [segments(own) if owner is None else grouped(own, owner) for own in histories]
    joined, values = JoinedHistories(every), numbered(histories)
    actual = joined.segments.keys(joined.join(values)).squeeze(1)
    each = [one.keys(x).squeeze(1) for one, x in zip(every, values, strict=True)]
    expected = []
    for row in range(len(owner or histories[0])):
        for one, x_N in zip(every, each, strict=True):
            expected += x_N[one.offsets[row] : one.offsets[row + 1]].tolist()
    assert actual.tolist() == expected
    values = joined.split(actual)
    assert len(values) == count
    for value, x_N in zip(values, each, strict=True):
        assert torch.equal(value, x_N)


def test_shared_histories_keep_their_order() -> None:
    joined = JoinedHistories([Segments(torch.tensor([0, events]), 4, events, shared=True) for events in (2, 0, 3)])
    values = numbered([[2], [0], [3]])
    assert torch.equal(joined.join(values), torch.cat(values))
    w_BT = torch.rand(4, 5)
    values = joined.split(w_BT)
    assert [value.shape for value in values] == [(4, 2), (4, 0), (4, 3)]
    assert torch.equal(torch.cat(values, 1), w_BT)
