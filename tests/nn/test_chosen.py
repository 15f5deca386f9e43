"""Chosen events: the newest of every kind of history, against lists."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longrec.features.batch import Batch
from longrec.nn.chosen import Chosen, choose_newest, gather_each
from longrec.nn.segments import Segments
from longrec.testing.batches import FEW, grouped, ragged, repeated, shared


def rows_of(segments: Segments, stored_M: Tensor) -> list[list[int]]:
    """The stored positions that each row reads."""
    position_N, flat = segments.flatten(stored_M)
    bounds = flat.offsets.tolist()
    if segments.shared:
        return [stored_M.tolist()] * segments.rows
    return [position_N[start:stop].tolist() for start, stop in zip(bounds, bounds[1:])]


BATCHES = {
    "single": ragged(8, fields=FEW),
    "grouped": grouped([2, 0, 0, 1, 3, 3], fields=FEW),
    "shared": shared(3, 6, fields=FEW),
    "empty": ragged(2, lengths=[0, 0], fields=FEW),
}


@pytest.mark.parametrize("count", [1, 3, 6, 50])
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_the_newest_are_the_last_of_each_history(batch: Batch, count: int) -> None:
    segments = Segments.of(batch, "seen")
    every = torch.arange(segments.requests.positions)
    newest = choose_newest(segments, count)
    stored_M = every if newest.stored_M is None else newest.stored_M
    assert rows_of(newest.segments, stored_M) == [row[-count:] for row in rows_of(segments, every)]
    values = torch.randn(len(every), 3)
    assert torch.equal(newest.gather(values), values[stored_M])
    if max(map(len, rows_of(segments, every)), default=0) <= count:
        assert newest.gather(values) is values


class Newest(torch.nn.Module):
    """The sum of the newest three, and their number."""

    def forward(self, values_TD: Tensor) -> Tensor:
        """Return both, concatenated."""
        length = values_TD.shape[0]
        newest = choose_newest(Segments(torch.arange(2), 1, length, shared=True), 3)
        read_MD = newest.gather(values_TD)
        return torch.cat([read_MD.sum(0), torch.ones_like(read_MD[:, :1]).sum(0)])


def test_a_program_reads_the_newest_of_a_history_of_any_length() -> None:
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(Newest(), (torch.randn(7, 2),), dynamic_shapes=shapes, strict=False).module()
    for length in (2, 3, 4, 40):
        values = torch.randn(length, 2)
        expected = torch.cat([values[-3:].sum(0), torch.tensor([min(length, 3)])])
        torch.testing.assert_close(program(values), expected)


def test_several_choices_are_gathered_at_once_or_alone() -> None:
    values = torch.randn(9, 2, requires_grad=True)
    segments = Segments.of_offsets(torch.tensor([0, 9]).numpy(), torch.device("cpu"))
    one, all_of = Chosen(segments, torch.tensor([1, 4])), Chosen(segments)
    newest = choose_newest(segments, 3)
    for choices in ([one, newest], [newest, all_of], [one]):
        for actual, chosen in zip(gather_each(values, choices), choices, strict=True):
            assert torch.equal(actual, chosen.gather(values))
    sum(read.sum() for read in gather_each(values, [one, newest, one])).backward()
    assert values.grad is not None
    assert values.grad[:, 0].tolist() == [0, 2, 0, 0, 2, 0, 1, 1, 1]


def test_weights_are_spread_over_the_positions() -> None:
    segments = Segments.of(repeated(shared(2, 3, fields=FEW), FEW), "seen")
    chosen = Chosen(segments, position_M=torch.tensor([4, 1]))
    assert chosen.spread(torch.tensor([0.5, 2.0]), 6).tolist() == [0, 2.0, 0, 0, 0.5, 0]
    assert Chosen(segments).spread(torch.ones(6), 6).tolist() == [1] * 6
