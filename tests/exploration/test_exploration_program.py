"""Programs of explorers: parity with torch, noise as an input, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longrec.errors import BundleError
from longrec.exploration.age import Age
from longrec.exploration.baselines import UCB, EpsilonGreedy, Thompson
from longrec.exploration.ensemble import Ensemble
from longrec.exploration.explorer import Explorer
from longrec.exploration.gate import Gate, read_item
from longrec.exploration.settings import (
    AgeSettings,
    EnsembleSettings,
    EpsilonGreedySettings,
    ThompsonSettings,
    UCBSettings,
)
from longrec.exporting.exploration_program import EXPLORATION_OUTPUT, PROBABILITY_OUTPUT, ExplorerProgram
from longrec.exporting.inputs import list_inputs
from longrec.exporting.parity import check_shapes
from longrec.exporting.program import SharedModel, trace_module
from longrec.exporting.runtime import Program
from longrec.exporting.weights import write_program
from longrec.models.core.kinds import Ranker
from longrec.testing.batches import FEW, shared

Build = Callable[[str], Ranker]


def age(model: Ranker, **settings: Any) -> Age:
    gate = Gate(read_item(model, shared(3, 3, fields=FEW)).shape[1], 4)
    return Age(model, AgeSettings(**{"dropout": 0.3, "strength": 0.3, "draws": 2, "steps": 2, **settings}), gate)


def export(explorer: Explorer, folder: Path) -> tuple[ExplorerProgram, Program]:
    module = ExplorerProgram(explorer).eval()
    write_program(trace_module(module), folder / "explore.onnx")
    return module, Program(folder / "explore.onnx")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("dcn_v2", {"uncertainty": "ucb"}),
        ("din", {"direction": "fgm"}),
        ("bst", {"direction": "fgm"}),
        ("mmoe", {"direction": "fgm", "uncertainty": "ucb", "scope": "all"}),
    ],
)
def test_the_program_of_age_equals_torch(ranker: Build, tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    module, program = export(age(ranker(name), **settings), tmp_path)
    assert max(check_shapes(module, program).values()) <= 1e-5
    tensors = module.make_random_tensors(50, 7, 3)
    probability, score = program.run_outputs(tensors, [PROBABILITY_OUTPUT, EXPLORATION_OUTPUT])
    assert (np.abs(score - probability) > 1e-4).any()  # noise and gradients are in the program


@pytest.mark.parametrize("name", ["dien", "dcn_v2"])
def test_masks_need_no_gradient_so_that_recurrences_are_exported(ranker: Build, tmp_path: Path, name: str) -> None:
    module, program = export(UCB(ranker(name), UCBSettings(dropout=0.3, draws=2)), tmp_path)
    assert max(check_shapes(module, program).values()) <= 1e-5
