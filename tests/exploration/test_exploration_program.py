"""Programs of explorers: parity with torch, noise as an input, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from longrec.errors import BundleError
from longrec.exploration.age import Age
from longrec.exploration.baselines import EpsilonGreedy
from longrec.exploration.explorer import Scores
from longrec.exploration.gate import Gate, read_item
from longrec.exploration.settings import AgeSettings, EpsilonGreedySettings
from longrec.exploration.vectorize import vectorize
from longrec.exporting.exploration_program import EXPLORATION_OUTPUT, PROBABILITY_OUTPUT, ExplorerProgram
from longrec.exporting.program import run_torch, trace_module
from longrec.exporting.runtime import Program
from longrec.exporting.weights import write_program
from longrec.features.batch import Batch
from longrec.models.core.kinds import Ranker
from longrec.nn import kernels
from longrec.nn.activation import BatchNorm
from longrec.testing.batches import FEW, shared

Build = Callable[[str], Ranker]


def age(model: Ranker, **settings: Any) -> Age:
    gate = Gate(read_item(model, shared(3, 3, fields=FEW)).shape[1], 4)
    with torch.no_grad():
        gate.network.output_bias.fill_(-1.0)  # open for most
    return Age(model, AgeSettings(**{"dropout": 0.3, "strength": 0.3, "draws": 2, "steps": 2, **settings}), gate)


def compare(module: ExplorerProgram, run: Callable[[dict[str, Any]], Any], sizes: list[tuple[int, int]]) -> None:
    """Compare both outputs with torch at some sizes: candidates and events."""
    moved = 0
    for seed, (candidates, events) in enumerate(sizes):
        tensors = module.make_random_tensors(candidates, events, seed)
        expected = run_torch(module, tensors)
        for own, other in zip(expected, run(tensors), strict=True):
            np.testing.assert_allclose(np.asarray(other), own, atol=1e-5, rtol=0)
        moved += int((np.abs(expected[0] - expected[1]) > 1e-4).sum())
    assert moved > 10  # noise and gradients are in the program


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("din", {"direction": "fgm", "uncertainty": "ucb"}),
        ("mmoe", {"direction": "fgm", "masks": "candidate"}),
        ("lr", {"steps": 2, "uncertainty": "ucb", "scope": "all"}),
        ("dupn", {"direction": "fgm", "uncertainty": "ucb"}),
    ],
)
def test_the_graph_of_age_equals_torch_at_other_sizes(ranker: Build, name: str, settings: dict[str, Any]) -> None:
    module = ExplorerProgram(age(ranker(name), **settings)).eval()
    example = module.make_random_tensors(5, 7, 1)
    with torch.no_grad():
        graph = module.capture([torch.from_numpy(example[entry.name]) for entry in module.inputs])
        names = [entry.name for entry in module.inputs]
        compare(module, lambda t: graph(*(torch.from_numpy(t[name]) for name in names)), [(50, 9), (3, 20)])


def test_the_program_of_age_equals_torch(ranker: Build, tmp_path: Path) -> None:
    module = ExplorerProgram(age(ranker("dcn_v2"), direction="fgm")).eval()
    write_program(trace_module(module), tmp_path / "explore.onnx")
    program = Program(tmp_path / "explore.onnx")
    assert program.names == {"f.user", "f.taste", "f.item", "f.price", "n.masks"}
    assert program.outputs == (PROBABILITY_OUTPUT, EXPLORATION_OUTPUT)
    sizes = [(100, 100), (7, 0), (1, 0)]
    compare(module, lambda tensors: program.run_outputs(tensors, program.outputs), sizes)
    tensors = module.make_random_tensors(4, 0, 3)
    again = {**tensors, "n.masks": np.ones_like(tensors["n.masks"])}
    probability, score = program.run_outputs(again, program.outputs)
    np.testing.assert_allclose(probability, score, atol=1e-7)  # masks that drop nothing explore nothing


def test_the_noise_of_a_request_and_of_candidates_are_inputs(ranker: Build) -> None:
    one, each = (ExplorerProgram(age(ranker("din"), masks=masks)) for masks in ("request", "candidate"))
    assert [(entry.name, entry.group, entry.shape) for entry in one.inputs[-1:]] == [("n.masks", "user", [1, 8])]
    assert [(entry.name, entry.group, entry.shape) for entry in each.inputs[-1:]] == [("n.masks", "item", [-1, 8])]
    explorer = EpsilonGreedy(ranker("din"), EpsilonGreedySettings())
    assert [entry.name for entry in ExplorerProgram(explorer).inputs[-2:]] == ["n.chance", "n.order"]


def test_sizes_stay_dynamic_where_masks_run_as_one_batch() -> None:
    norm, index = BatchNorm(3).eval(), torch.tensor([5, 0, 1])

    def run(x_NH: Tensor, masks: Tensor) -> Tensor:
        return vectorize(lambda mask: torch.cat([x_NH, norm(x_NH * mask)], 1).index_select(1, index).sum(1), masks)

    with kernels.capture(), torch.no_grad():
        graph = make_fx(run, tracing_mode="symbolic", _allow_non_fake_inputs=True)(torch.randn(5, 3), torch.randn(2, 3))
        x, masks = torch.randn(9, 3), torch.randn(2, 3)
        expected = [torch.cat([x, norm(x * mask)], 1)[:, index].sum(1) for mask in masks]
        torch.testing.assert_close(graph(x, masks), torch.stack(expected))


def test_a_size_that_an_operator_fixes_is_refused(ranker: Build) -> None:
    class Fixing(EpsilonGreedy):
        differentiates = True

        def explore(self, batch: Batch, noise: Mapping[str, Tensor]) -> Scores:
            scores = super().explore(batch, noise)
            return Scores(scores.probability.view(int(batch.size)), scores.score)

    with pytest.raises(BundleError, match=r"Fixing over model lr: .*an operator fixes the size of f\.item at 5"):
        trace_module(ExplorerProgram(Fixing(ranker("lr"), EpsilonGreedySettings())).eval())
