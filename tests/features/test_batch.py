from __future__ import annotations

import pytest
import torch
from sample_batches import pick, ragged, take

from longrec.features.batch import Jagged


@pytest.mark.parametrize("weighted", [False, True])
def test_rows_of_lists_are_taken_in_any_order(weighted: bool) -> None:
    weights = torch.arange(6.0) if weighted else None
    lists = Jagged(torch.arange(10, 16), torch.tensor([0, 2, 2, 5, 6]), weights)
    found, expected = lists.at(torch.tensor([3, 0, 1, 0])), pick(lists, [3, 0, 1, 0])
    assert isinstance(expected, Jagged)
    assert found.values.tolist() == expected.values.tolist() == [15, 10, 11, 10, 11]
    assert found.offsets.tolist() == expected.offsets.tolist() == [0, 1, 3, 3, 5]
    assert weights is None or found.weights.tolist() == [5, 0, 1, 0, 1]
    nothing = lists.at(torch.tensor([], dtype=torch.int64))
    assert (nothing.values.tolist(), nothing.offsets.tolist()) == ([], [0])


def test_some_events_of_every_row_stay_with_their_rows() -> None:
    batch = ragged(9, seed=3)
    history = batch.histories["seen"]
    count = int(history.offsets[-1])
    places = torch.arange(count)[torch.randperm(count, generator=torch.Generator().manual_seed(1))[: count // 2]]
    found = history.at(places.sort()[0])
    kept = set(places.tolist())
    for row in range(9):
        own = [at for at in range(int(history.offsets[row]), int(history.offsets[row + 1])) if at in kept]
        one = take(type(batch)(9, {}, {"seen": found}), [row]).histories["seen"]
        for name, column in history.columns.items():
            expected, told = pick(column, own), one.columns[name]
            if isinstance(expected, Jagged):
                assert expected.values.tolist() == told.values.tolist()
                assert expected.offsets.tolist() == told.offsets.tolist()
            else:
                assert expected.tolist() == told.tolist()
    assert history.at(torch.arange(count)).offsets.tolist() == history.offsets.tolist()
    assert history.at(torch.arange(0)).offsets.tolist() == [0] * 10
