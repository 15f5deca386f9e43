"""Gradients of rankers with recurrences: equal in a capture, where a recurrence is a scan and so is its gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan_op

from longrec.exploration.explorer import Explorer, Scores
from longrec.exploration.settings import TaskSettings
from longrec.exporting.exploration_program import ExplorerProgram
from longrec.exporting.program import run_torch, trace_module
from longrec.exporting.runtime import Program
from longrec.exporting.weights import write_program
from longrec.features.batch import Batch
from longrec.models.core.kinds import Ranker
from longrec.nn import kernels
from longrec.nn.lstm import LSTM
from longrec.nn.recurrent import GRU, Update
from longrec.nn.segments import Segments
from longrec.testing.batches import FEW, FIELDS
from longrec.testing.case import Case

TOP: dict[str, Any] = {"mlp": [8], "embedding_dim": 4}
DIEN: dict[str, Any] = {**TOP, "hidden": 4, "aux": [4], "attention_units": [4]}
SURGE: dict[str, Any] = {**TOP, "hidden": 4, "attention": [4], "pool_length": 3}
SIM: dict[str, Any] = {**TOP, "hidden": 4, "heads": 2, "head_width": 4, "search_width": 4, "select": 3, "short": 4}
RECURRENT: dict[str, tuple[str, dict[str, Any]]] = {
    "dien": ("dien", DIEN),
    "dien-released": ("dien", {**DIEN, "gate": "released", "attention": "mlp"}),
    "dien-agru": ("dien", {**DIEN, "evolution": "agru"}),
    "dien-aigru": ("dien", {**DIEN, "evolution": "aigru"}),
    "dsin": ("dsin", {**TOP, "heads": 2, "lstm": 4}),
    "dupn": ("dupn", {**TOP, "hidden": 4, "attention": [4], "candidate": True}),
    "hpmn": ("hpmn", {**TOP, "hidden": 4, "attention": [4]}),
    "hup": ("hup", {**TOP, "hidden": 4}),
    "mimn": ("mimn", {**TOP, "hidden": 4, "width": 4, "memory_slots": 3, "attention": [4]}),
    "sim": ("sim", SIM),
    "surge": ("surge", SURGE),
    "surge-soft": ("surge", {**SURGE, "pooling": "soft"}),
}


class Slopes(Explorer):
    """The gradient of each candidate, as one number."""

    differentiates = True

    def explore(self, batch: Batch, noise: Mapping[str, Tensor]) -> Scores:
        clicks = self.read(batch, "all")
        g_CD = clicks.gradient(clicks.vectors)
        return Scores(torch.sigmoid(clicks.logit(clicks.vectors)), g_CD @ torch.linspace(1, 2, g_CD.shape[1]))


def build(name: str, fields: Any = FEW) -> Ranker:
    model = Case(*RECURRENT[name]).lively(fields)
    assert isinstance(model, Ranker)
    return model


def build_slopes(name: str, fields: Any = FEW) -> ExplorerProgram:
    return ExplorerProgram(Slopes(build(name, fields), TaskSettings())).eval()


def share(events: int) -> Segments:
    return Segments(torch.tensor([0, events]), 1, events, shared=True)


def compare(module: ExplorerProgram, run: Callable[[dict[str, Any]], Any], sizes: list[tuple[int, int]]) -> None:
    """Compare both outputs with torch at some sizes: candidates and events."""
    for seed, (candidates, events) in enumerate(sizes):
        tensors = module.make_random_tensors(candidates, events, seed)
        expected = run_torch(module, tensors)
        assert np.ptp(expected[1]) > 1e-4 or candidates == 1
        for own, other in zip(expected, run(tensors), strict=True):
            np.testing.assert_allclose(np.asarray(other), own, atol=2e-6, rtol=1e-5)


def run_captured(module: ExplorerProgram) -> Callable[[dict[str, Any]], Any]:
    """Return the program of a capture, run by torch operator by operator."""

    def run(tensors: dict[str, Any]) -> Any:
        with kernels.capture():
            return run_torch(module, tensors)

    return run


@pytest.mark.parametrize("name", RECURRENT)
def test_the_scans_of_a_capture_have_the_gradient_of_autograd(name: str) -> None:
    module = build_slopes(name)
    compare(module, run_captured(module), [(5, 9), (3, 1), (4, 0)])


@pytest.mark.parametrize("name", ["dien", "sim", "surge"])
def test_several_histories_of_different_lengths_have_it_too(name: str) -> None:
    module = build_slopes(name, FIELDS)
    tensors = module.make_random_tensors(5, [6, 0], 0)
    for own, other in zip(run_torch(module, tensors), run_captured(module)(tensors), strict=True):
        np.testing.assert_allclose(other, own, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("update", ["agru", "augru", "released"])
@pytest.mark.parametrize("seed", range(3))
def test_jagged_rows_have_the_gradient_of_a_scan_of_each(update: Update, seed: int) -> None:
    torch.manual_seed(seed)
    lengths = [0, *torch.randint(0, 6, (4,)).tolist(), 1]
    gru = GRU(3, 4, update)
    segments = Segments.of_offsets(np.concatenate([[0], np.cumsum(lengths)]), torch.device("cpu"))
    x, a = (torch.rand(sum(lengths), *size, requires_grad=True) for size in ((3,), ()))
    g = torch.randn(len(lengths), 4)
    expected = torch.autograd.grad((gru.last(x, segments, a) * g).sum(), (x, a))
    gru, each = gru.double(), []
    for own_x, own_a, own_g in zip(x.split(lengths), a.split(lengths), g, strict=True):
        inputs = [one.detach().double().requires_grad_() for one in (own_x, own_a)]
        with kernels.capture():
            last = gru.last(inputs[0], share(len(inputs[0])), inputs[1])
            each.append(torch.autograd.grad((last * own_g).sum(), inputs, allow_unused=True))
    for number, own in enumerate(expected):
        scanned = [torch.zeros(0) if one[number] is None else one[number].flatten() for one in each]
        torch.testing.assert_close(torch.cat(scanned).float(), own.flatten(), atol=1e-6, rtol=1e-5)


def test_a_state_of_several_tensors_has_the_gradient_of_autograd() -> None:
    torch.manual_seed(0)
    lstm, moves = LSTM(3, 4, reverse=True).double(), torch.tensor([True, False, True, True])
    x, gates, scale = (torch.randn(4, width, dtype=torch.float64, requires_grad=True) for width in (3, 12, 4))

    def differentiate() -> Any:
        h, last = lstm.states_and_last(x, share(4), gates, scale, moves)
        return torch.autograd.grad(h.sin().sum() + last.square().sum(), (x, gates, scale))

    expected = differentiate()
    with kernels.capture():
        torch.testing.assert_close(differentiate(), expected, atol=1e-12, rtol=0)


def test_the_program_has_one_scan_for_what_no_candidate_changes(tmp_path: Path) -> None:
    module = build_slopes("dien")
    example = module.make_random_tensors(5, 7, 1)
    with torch.no_grad():
        captured: Any = module.capture([torch.from_numpy(example[entry.name]) for entry in module.inputs])
    # Interests, their evolution, and its gradient.
    assert len(captured.captured.graph.find_nodes(op="call_function", target=scan_op)) == 3
    assert all(parameter.requires_grad for parameter in module.parameters())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "capture", lambda _: captured)
        write_program(trace_module(module), tmp_path / "slopes.onnx")
    program = Program(tmp_path / "slopes.onnx")
    compare(module, lambda tensors: program.run_outputs(tensors, module.outputs), [(20, 30), (7, 0), (1, 1)])


def test_masks_below_a_recurrence_are_refused() -> None:
    gru, x = GRU(3, 4), torch.randn(5, 3)
    with kernels.capture(), pytest.raises(NotImplementedError, match="step by step where a program runs once per mask"):
        torch.vmap(lambda mask: gru.last(x * mask, share(5)))(torch.ones(2, 3))
