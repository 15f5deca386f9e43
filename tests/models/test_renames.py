"""Weights saved under the parameter names of an earlier version load under those of today."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from longrec.models.core import artifact
from longrec.models.core.renames import rename_parameters
from longrec.testing.batches import ragged
from longrec.testing.case import Case
from longrec.training import checkpoint

OLD: list[tuple[str, dict[str, Any], str, str]] = [
    ("bst", {"position": "add"}, ".position_embedding", ".places"),
    ("dfn", {}, ".position_embedding", ".places"),
    ("dmt", {}, ".position_embedding", ".places"),
    ("kfatt", {"sessions": True}, ".position_embedding", ".places"),
    ("dsin", {}, ".interest_query.", ".asks_interest."),
    ("dsin", {}, ".state_query.", ".asks_state."),
    ("iat", {}, ".rank_bias", ".places"),
    (
        "iat_reader",
        {"read": "transformer", "width": 16, "heads": 2, "adapt": 16, "query": 16},
        ".position_embedding",
        ".places",
    ),
    ("search_user", {}, ".of_segment", ".of_part"),
    ("res_embedding", {"base": {"name": "din"}}, "graph.centers.", "graph.centres."),
    ("fnn", {}, "top.", "deep."),
    ("pnn", {}, "top.", "deep."),
    ("pooling", {}, "top.", "mlp."),
    ("dstn", {}, "top.", "mlp."),
    ("multi_tower", {}, "top.", "final."),
    ("shared_bottom", {}, "common.", "shared."),
    ("mmoe", {}, "common.", "shared."),
    ("ple", {}, "common.", "shared."),
    ("esmm", {}, "common.", "shared."),
    ("esmm", {"base": {"name": "pooling"}}, "bottom.base.top.", "bottom.base.mlp."),
    ("can", {"base": {"name": "bst", "position": "concat"}}, ".position_embedding", ".places"),
]


def write_old(path: Path, new: str, old: str) -> None:
    """Give the weights of a file the names that an earlier version wrote."""
    weights = load_file(path)
    assert any(new in name for name in weights)
    save_file({name.replace(new, old): tensor.clone() for name, tensor in weights.items()}, path)


@pytest.mark.parametrize(("name", "settings", "new", "old"), OLD)
def test_old_names_load_from_a_saved_model_and_a_checkpoint(
    name: str, settings: dict[str, Any], new: str, old: str, tmp_path: Path
) -> None:
    case = Case(name, settings)
    model, batch = case.lively(), ragged(5)
    artifact.save(model, tmp_path / "model")
    write_old(tmp_path / "model" / "weights.safetensors", new, old)
    assert torch.equal(artifact.load(tmp_path / "model").eval()(batch), model(batch))
    checkpoint.save(tmp_path / "last", model, {}, checkpoint.State())
    write_old(tmp_path / "last" / "weights.safetensors", new, old)
    other = case.build(seed=5).eval()
    checkpoint.load(tmp_path / "last", other, {})
    assert torch.equal(other(batch), model(batch))


def test_a_name_is_renamed_as_a_whole() -> None:
    class Inner(nn.Module):
        renamed_parameters = {"part": "segment"}

    model = nn.ModuleDict({"part": Inner(), "other": nn.Module()})
    one = torch.zeros(1)
    weights = {name: one for name in ("part.part", "part.part.weight", "part.parts", "other.part")}
    assert list(rename_parameters(model, weights)) == [
        "part.segment",
        "part.segment.weight",
        "part.parts",
        "other.part",
    ]
