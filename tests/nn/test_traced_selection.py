"""Selections of events of a shared history in a program: the same as by definition, for many equal scores and keys."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from longrec.exporting.inputs import Input, make_random_tensors
from longrec.exporting.program import ProgramModule, trace_module
from longrec.exporting.runtime import Program
from longrec.nn.key_search import find_key
from longrec.nn.segments import Segments
from longrec.nn.selection import search_top, select_key

K = 4


INPUTS = (
    Input("f.query", "FP32", "item", "value", 0, 3),
    Input("f.wanted", "INT32", "item", "value", 6),
    Input("h.seen.event", "FP32", "h.seen", "value", 0, 3),
    Input("h.seen.key", "INT32", "h.seen", "value", 6),
)


class Searches(ProgramModule):
    """Positions of the events that both searches select, and which of the second are events."""

    outputs = ("top", "same", "weight")

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_BD, wanted_B, e_TD, key_T = tensors
        events = key_T.shape[0]
        segments = Segments(torch.arange(2) * events, q_BD.shape[0], events, shared=True)
        top = search_top(lambda e_TD: segments.dot(q_BD, e_TD), [e_TD], segments, K)
        same = select_key(wanted_B, key_T, segments, K)
        assert top.stored is not None
        assert same.stored is not None
        return top.stored, same.stored, same.rows.softmax(torch.zeros_like(same.stored, dtype=torch.float32))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    path = tmp_path_factory.mktemp("searches") / "program.onnx"
    trace_module(Searches(nn.Module(), INPUTS).eval()).save(str(path))
    return Program(path)


@pytest.mark.parametrize(("rows", "events"), [(3, 0), (1, 1), (4, 3), (6, 40), (2, 700)])
def test_a_program_selects_as_defined(program: Program, rows: int, events: int) -> None:
    rng = np.random.default_rng(events)
    tensors = make_random_tensors(INPUTS, rows, events, seed=events)
    for name in ("f.query", "h.seen.event"):  # products of small integers are exact, and often equal
        tensors[name] = rng.integers(-1, 2, tensors[name].shape).astype(np.float32)
    every = program.run_outputs(tensors, Searches.outputs)
    top, same, weight = (output.reshape(rows, min(K, events)) for output in every)
    scores = tensors["f.query"] @ tensors["h.seen.event"].T
    for row, wanted in enumerate(tensors["f.wanted"].tolist()):
        best = sorted(range(events), key=lambda at: (-scores[row, at], -at))[:K]
        assert top[row].tolist() == best
        newest = [at for at, key in enumerate(tensors["h.seen.key"].tolist()) if key == wanted >= 2][::-1][:K]
        assert same[row][weight[row] > 0].tolist() == newest


def test_the_search_of_keys_that_only_just_fit_into_32_bits() -> None:
    key_T = torch.tensor([2_000_000_000, 7, 2_000_000_000, 7], dtype=torch.int32)
    wanted_B = torch.tensor([7, 2_000_000_000, 8, 7], dtype=torch.int32)
    assert find_key(wanted_B, key_T, 3).tolist() == [[4, 2, 0], [3, 1, 0], [0, 0, 0], [4, 2, 0]]
