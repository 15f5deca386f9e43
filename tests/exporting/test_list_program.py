"""The check of the program of a re-ranker: its own initial order is taken if the logits of the base allow it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from longrec.errors import BundleError
from longrec.exporting.inputs import RANKS_OUTPUT, SCORE, list_inputs, make_random_tensors
from longrec.exporting.list_program import ListProgram
from longrec.exporting.programs import build_programs
from longrec.models.core.registry import build
from longrec.testing.batches import FEW


class Ranks:
    """A program with given ranks."""

    def __init__(self, ranks: NDArray[np.int32]) -> None:
        self.ranks = ranks

    def run(self, tensors: Mapping[str, NDArray[Any]], output: str | None = None) -> NDArray[Any]:
        assert output == RANKS_OUTPUT
        return self.ranks


def test_the_order_of_a_program_may_differ_by_rounding_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = build({"name": "prm", "base": {"name": "lr"}}, FEW).eval()
    module = build_programs(model, list_inputs(FEW, histories=model.reads_history))[SCORE]
    assert isinstance(module, ListProgram)
    tensors = make_random_tensors(module.inputs, 4, 0, seed=0)
    read = model.read_base
    logits = torch.tensor([0.5, 0.9, 0.5000001, 0.1])
    monkeypatch.setattr(model, "read_base", lambda batch: (logits, read(batch)[1]))

    def expected(*ranks: int) -> NDArray[Any]:
        program: Any = Ranks(np.array(ranks, np.int32))
        return module.compute_expected(tensors, program, "shape 4x0")[0]

    probability, ranks = (
        one.detach().numpy() for one in module(*(torch.from_numpy(tensors[i.name]) for i in module.inputs))
    )
    assert ranks.tolist() == [2, 0, 1, 3]
    np.testing.assert_array_equal(expected(2, 0, 1, 3), probability)
    swapped = expected(1, 0, 2, 3)
    assert np.abs(swapped - probability).max() > 1e-3
    assert np.isfinite(expected(1, 0, 1, 3)).all()  # a tie in the program
    for wrong in ((0, 1, 2, 3), (2, 0, 1, 2), (3, 1, 2, 4), (0, 0, 0, 0)):
        with pytest.raises(BundleError, match="orders the initial list otherwise than the base"):
            expected(*wrong)
