from __future__ import annotations

import pytest
import torch

from longrec.features.batch import Jagged
from longrec.testing.batches import pick, ragged, take


@pytest.mark.parametrize("weighted", [False, True])
def test_rows_of_lists_are_taken_in_any_order(weighted: bool) -> None:
    weights = torch.arange(6.0) if weighted else None
    lists = Jagged(torch.arange(10, 16), torch.tensor([0, 2, 2, 5, 6]), weights)
    selected, expected = lists.select_rows(torch.tensor([3, 0, 1, 0])), pick(lists, [3, 0, 1, 0])
    assert isinstance(expected, Jagged)
    assert selected.values.tolist() == expected.values.tolist() == [15, 10, 11, 10, 11]
    assert selected.offsets.tolist() == expected.offsets.tolist() == [0, 1, 3, 3, 5]
    assert weights is None or selected.weights.tolist() == [5, 0, 1, 0, 1]
    nothing = lists.select_rows(torch.tensor([], dtype=torch.int64))
    assert (nothing.values.tolist(), nothing.offsets.tolist()) == ([], [0])


def test_some_events_of_every_row_stay_with_their_rows() -> None:
    batch = ragged(9, seed=3)
    history = batch.histories["seen"]
    count = int(history.offsets[-1])
    positions = torch.arange(count)[torch.randperm(count, generator=torch.Generator().manual_seed(1))[: count // 2]]
    selected = history.select_events(positions.sort()[0])
    kept = set(positions.tolist())
    for row in range(9):
        own = [at for at in range(int(history.offsets[row]), int(history.offsets[row + 1])) if at in kept]
        one = take(type(batch)(9, {}, {"seen": selected}), [row]).histories["seen"]
        for name, column in history.columns.items():
            expected, actual = pick(column, own), one.columns[name]
            if isinstance(expected, Jagged):
                assert expected.values.tolist() == actual.values.tolist()
                assert expected.offsets.tolist() == actual.offsets.tolist()
            else:
                assert expected.tolist() == actual.tolist()
    assert history.select_events(torch.arange(count)).offsets.tolist() == history.offsets.tolist()
    assert history.select_events(torch.arange(0)).offsets.tolist() == [0] * 10
