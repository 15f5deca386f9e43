"""Light nets from configs: distillation starts from the run of its teacher, and a bundle has the light net alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from longrec import commands
from longrec.errors import ConfigError
from longrec.training.finished_run import Run
from longrec.training.fit import train

LIGHT = "{name: din, embedding_dim: 4, attention: [4], mlp: [8]}"
HEAVY = "{name: din, embedding_dim: 4, attention: [8], mlp: [64, 16]}"


def trained(shop: Path, folder: Path, name: str, *overrides: str) -> Run:
    return train(shop, [f"name={name}", f"fit.runs={folder}", *overrides], quiet=True)


@pytest.fixture(scope="module")
def teacher(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(shop, tmp_path_factory.mktemp("teacher"), "teacher", f"model={HEAVY}")


def test_a_student_learns_from_the_run_of_its_teacher(shop: Path, teacher: Run, tmp_path: Path) -> None:
    model = f"model={{name: distillation, student: {LIGHT}, teacher: {HEAVY}}}"
    run = trained(shop, tmp_path, "student", model, f"fit.init_from={teacher.folder}")
    weights = run.model().state_dict()
    last = load_file(teacher.folder / "checkpoints" / "last" / "weights.safetensors")
    assert all(torch.equal(weights[f"teacher.{name}"], tensor) for name, tensor in last.items())
    with pytest.raises(ConfigError, match=r"fit.init_from: is required; distillation learns from a trained model"):
        trained(shop, tmp_path, "alone", model)
    assert not (tmp_path / "alone").exists()


def test_a_rocket_is_resumed_scored_and_exported_as_its_light_net(shop: Path, tmp_path: Path) -> None:
    rocket = trained(shop, tmp_path, "rocket", f"model={{name: rocket_launching, light: {LIGHT}, booster: {HEAVY}}}")
    light = trained(shop, tmp_path, "light", f"model={LIGHT}")
    sizes: dict[str, Any] = {}
    for name, run in (("rocket", rocket), ("light", light)):
        manifest = commands.export(run, tmp_path / "bundles" / name)  # compares online and offline scores
        assert manifest.model == "din"
        folder = tmp_path / "bundles" / name
        sizes[name] = {path.name: path.stat().st_size for path in folder.rglob("*.onnx*")}
    assert sizes["rocket"].keys() == sizes["light"].keys()
    for file, size in sizes["light"].items():
        assert abs(sizes["rocket"][file] - size) < 0.02 * size, file
    parameters = [sum(t.numel() for t in run.model().served().state_dict().values()) for run in (rocket, light)]
    assert parameters[0] == parameters[1]
    assert np.isfinite(rocket.results["metrics"]["auc"]["value"])
