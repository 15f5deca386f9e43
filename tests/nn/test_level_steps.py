from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.nn.level_steps import LevelSteps
from longrec.nn.segments import Segments

EVENT = st.tuples(st.integers(0, 4), st.integers(0, 3))
"""Ids of an event at two levels. 0 and 1 are missing and unseen."""


def ragged(lengths: list[int]) -> Segments:
    return Segments(torch.tensor([0, *lengths]).cumsum(0), len(lengths), sum(lengths))


def ends(ids: list[int], among: list[int]) -> list[int]:
    """Return the positions of one history, of those of the level below, that are followed by another id."""
    return [at for at in among if at + 1 == len(ids) or ids[at] < 2 or ids[at + 1] != ids[at]]


@given(st.lists(st.lists(EVENT, max_size=6), min_size=1, max_size=5))
@settings(max_examples=25, deadline=None)
def test_levels_of_ragged_histories_step_where_ids_change(rows: list[list[tuple[int, int]]]) -> None:
    events, lengths = [event for row in rows for event in row], [len(row) for row in rows]
    steps = [LevelSteps(ragged(lengths))]
    expected = [[list(range(length)) for length in lengths]]
    for level in (0, 1):
        steps.append(steps[-1].ends(torch.tensor([event[level] for event in events], dtype=torch.int32)))
        expected.append([ends([event[level] for event in row], own) for row, own in zip(rows, expected[-1])])
    starts = torch.tensor([0, *lengths]).cumsum(0).tolist()
    index = torch.arange(float(len(events))).unsqueeze(1)
    below = index
    for number, (own, at) in enumerate(zip(steps, expected, strict=True)):
        flat = [starts[row] + position for row, positions in enumerate(at) for position in positions]
        assert own.moves is None
        assert own.of_all(index).squeeze(1).tolist() == flat
        assert own.segments.offsets.diff().tolist() == [len(positions) for positions in at]
        below = own.of_those(below, steps[max(number - 1, 0)])
        assert below.squeeze(1).tolist() == flat
        marks = torch.zeros(len(events))
        marks[flat] = 1
        assert torch.equal(own.to_all(torch.ones(len(flat))), marks)
        weights = own.softmax(torch.randn(len(flat))).split([len(positions) for positions in at])
        assert all(sum(w.tolist()) == pytest.approx(float(len(w) > 0)) for w in weights)


@pytest.mark.parametrize("ids", [[3, 3, 4, 0, 0, 4], [2], []])
def test_steps_of_a_shared_history_are_masked(ids: list[int]) -> None:
    column, events = torch.tensor(ids, dtype=torch.int32), len(ids)
    one = LevelSteps(Segments(torch.tensor([0, events]), 1, events, shared=True))
    assert one.moves is None
    level, alone = one.ends(column), LevelSteps(ragged([events])).ends(column)
    assert level.moves is not None
    assert level.moves.nonzero().squeeze(1).tolist() == ends(ids, list(range(events)))
    x, s = torch.randn(events, 2), torch.randn(events)
    assert level.of_those(x, one) is x
    w = level.softmax(s)
    torch.testing.assert_close(level.to_all(w), alone.to_all(alone.softmax(s[level.moves])))
