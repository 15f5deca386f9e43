"""Lists of candidates: ranks and softmax by list, in every layout, beside brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longrec.features.batch import Layout
from longrec.nn.lists import Lists

CPU = torch.device("cpu")
LAYOUTS = {
    "single": Layout.single(6),
    "shared": Layout.shared(6),
    "grouped": Layout.grouped(3, np.array([0, 0, 1, 1, 1, 2])),
    "interleaved": Layout.grouped(4, np.array([3, 0, 1, 0, 3, 0])),  # request 2 has no candidate
    "none": Layout.grouped(2, np.zeros(0, np.int64)),
}


def owners(layout: Layout) -> np.ndarray:
    if layout.kind == "shared":
        return np.zeros(layout.candidates, np.int64)
    return np.arange(layout.candidates) if layout.host_owner is None else layout.host_owner


@pytest.mark.parametrize("name", LAYOUTS)
def test_ranks_and_softmax_by_brute_force(name: str) -> None:
    layout = LAYOUTS[name]
    owner, count = owners(layout), layout.candidates
    lists = Lists(layout, CPU)
    for scores in ([0.5, 0.25, 0.5, 2.0, -1.0, 0.5], [1.0] * 6, [3.0, 2.0, 1.0, 0.0, -1.0, -2.0]):
        s = np.array(scores[:count])
        better = (owner[:, None] == owner[None]) & (s[None] > s[:, None])
        assert lists.rank(torch.tensor(s)).tolist() == better.sum(1).tolist()
        total = np.array([np.exp(s[owner == own]).sum() for own in owner])
        expected = torch.tensor(np.exp(s) / total, dtype=torch.float32)
        torch.testing.assert_close(lists.softmax(torch.tensor(s).float()), expected)
        torch.testing.assert_close(lists.log_softmax(torch.tensor(s).float()), expected.log())


def test_the_logarithm_of_a_tiny_probability_is_finite_and_has_a_gradient() -> None:
    score = torch.tensor([0.0, 400.0, -400.0, 5.0], requires_grad=True)
    lists = Lists(Layout.grouped(2, np.array([0, 0, 0, 1])), CPU)
    log_p = lists.log_softmax(score)
    torch.testing.assert_close(log_p, torch.tensor([-400.0, 0.0, -800.0, 0.0]))
    log_p[0].backward()
    assert score.grad is not None
    torch.testing.assert_close(score.grad, torch.tensor([1.0, -1.0, 0.0, 0.0]))


def test_candidates_of_a_catalog_form_no_list() -> None:
    with pytest.raises(ValueError, match="no list"):
        Lists(Layout.catalog(2, 5), CPU)
