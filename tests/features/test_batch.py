"""Jagged rows."""

from __future__ import annotations

import torch

from longrec.features.batch import Batch, Jagged


def test_jagged_lengths_and_rows() -> None:
    made = Jagged(torch.tensor([5, 6, 7]), torch.tensor([0, 0, 2, 2, 3, 3]))
    assert made.lengths().tolist() == [0, 2, 0, 1, 0]
    assert made.rows().tolist() == [1, 1, 3]
    empty = Jagged(torch.zeros(0, dtype=torch.int32), torch.tensor([0]))
    assert empty.lengths().tolist() == []
    assert empty.rows().tolist() == []


def test_a_batch_has_no_history_unless_given() -> None:
    batch = Batch(2, {"x": torch.tensor([1.0, 2.0])})
    assert (dict(batch.histories), batch.label, batch.rows, batch.shared) == ({}, None, None, False)
