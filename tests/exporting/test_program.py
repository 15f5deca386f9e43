from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import longrec.exporting.weights as weights_file
from longrec.errors import BundleError
from longrec.exporting.bundle import Bundle
from longrec.exporting.inputs import list_inputs, make_random_tensors
from longrec.exporting.parity import check_difference, check_golden, check_shapes
from longrec.exporting.program import SharedModel, build_shared_batch, run_torch, trace
from longrec.exporting.runtime import Program
from longrec.features.batch import Batch, Jagged
from longrec.features.fields import Field, Fields

ITEM = Field("item", "id", 9, side="item")


class Sum(nn.Module):
    """Model that is easily checked by hand: the sum of ids."""

    def forward(self, batch: Batch) -> Tensor:
        item = batch.features["item"]
        assert isinstance(item, Tensor)
        return item.float()


@pytest.mark.parametrize(("candidates", "events"), [(1, 0), (1, 1), (2, 1), (3, 0), (13, 29), (64, 7)])
@pytest.mark.parametrize("kind", ["full", "prejoined", "steps"])
def test_the_program_equals_torch_at_any_shape(
    request: pytest.FixtureRequest, kind: str, candidates: int, events: int
) -> None:
    shop = request.getfixturevalue(kind)
    program = Program(shop.bundle / "program.onnx")
    inputs = list_inputs(shop.fitted.fields(), histories=shop.model.reads_history)
    for seed in range(3):
        tensors = make_random_tensors(inputs, candidates, events, seed)
        torch_scores = run_torch(SharedModel(shop.model, inputs).eval(), tensors)
        assert np.abs(program.run(tensors) - torch_scores).max() < 1e-6


def test_histories_may_differ_in_length(full: Any) -> None:
    program = Program(full.bundle / "program.onnx")
    inputs = list_inputs(full.fitted.fields(), histories=True)
    for lengths in ([0, 5], [12, 0], [3, 1]):
        tensors = make_random_tensors(inputs, 4, lengths, 0)
        assert np.abs(program.run(tensors) - run_torch(SharedModel(full.model, inputs).eval(), tensors)).max() < 1e-6


def test_the_shared_batch_is_the_contract(full: Any) -> None:
    inputs = list_inputs(full.fitted.fields(), histories=True)
    tensors = make_random_tensors(inputs, 4, [6, 2], 0)
    batch = build_shared_batch(inputs, [torch.from_numpy(tensors[entry.name]) for entry in inputs])
    assert (batch.size, batch.layout.kind) == (4, "shared")
    fields = full.fitted.fields().features
    assert list(batch.requests) == [field.name for field in fields if field.side != "item"]
    assert list(batch.candidates) == [field.name for field in fields if field.side == "item"]
    assert batch.features["user_id"].shape == (1,)
    assert batch.features["item_id"].shape == (4,)
    genres, actors = batch.features["genres"], batch.histories["seen"].columns["actors"]
    assert isinstance(genres, Jagged)
    assert isinstance(actors, Jagged)
    assert len(genres.offsets) == 5
    assert len(actors.offsets) == 7
    assert actors.weights is not None
    assert batch.histories["liked"].offsets.tolist() == [0, 2]


def test_slow_operators_are_not_in_the_program(full: Any) -> None:
    kinds = {node.op_type for node in onnx.load(full.bundle / "program.onnx").graph.node}
    assert "PRelu" not in kinds
    assert not kinds & {"Loop", "If", "Scan"}


def test_a_program_keeps_only_what_the_model_reads(tmp_path: Any) -> None:
    inputs = list_inputs(Fields((ITEM, Field("user", "id", 5, side="user")), {}), histories=False)
    trace(Sum(), inputs, tmp_path / "p.onnx")
    program = Program(tmp_path / "p.onnx")
    scores = program.run({"f.item": np.array([0, 2], np.int32), "f.user": np.array([1], np.int32)})
    assert np.allclose(scores, 1 / (1 + np.exp([0.0, -2.0])))
    assert check_shapes(SharedModel(Sum(), inputs), program)["1x0"] < 1e-7


def test_weights_too_large_for_one_file_lie_beside_it(steps: Any, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(weights_file, "_INLINE", 0)
    inputs = list_inputs(steps.fitted.fields(), histories=False)
    trace(steps.model, inputs, tmp_path / "program.onnx")
    assert {path.name for path in tmp_path.iterdir()} == {"program.onnx", "program.onnx.data"}
    assert check_shapes(SharedModel(steps.model, inputs), Program(tmp_path / "program.onnx"))["7x100"] < 1e-6


def test_a_model_that_cannot_be_traced_is_refused_with_the_reason(tmp_path: Any) -> None:
    class Branches(Sum):
        def forward(self, batch: Batch) -> Tensor:
            score = super().forward(batch)
            return score if score.sum() > 0 else -score

    with pytest.raises(BundleError, match="model Branches: it cannot be traced: .*data-dependent"):
        trace(Branches(), list_inputs(Fields((ITEM,), {}), histories=False), tmp_path / "p.onnx")
    with pytest.raises(BundleError, match="no feature of the item"):
        trace(Sum(), list_inputs(Fields((Field("user", "id", 5, side="user"),), {}), histories=False), tmp_path / "p")


def test_what_is_no_program_is_refused(tmp_path: Any) -> None:
    (tmp_path / "p.onnx").write_bytes(b"not a program")
    with pytest.raises(BundleError, match="onnxruntime cannot load it"):
        Program(tmp_path / "p.onnx")


def test_a_program_of_other_weights_fails_the_parity_check(steps: Any) -> None:
    inputs = list_inputs(steps.fitted.fields(), histories=False)
    other = type(steps.model)(steps.model.config, steps.fitted.fields()).eval()
    with pytest.raises(BundleError, match="shape 100x100: the exported program differs from the model by"):
        check_shapes(SharedModel(other, inputs), Program(steps.bundle / "program.onnx"))


def test_differences_are_measured_and_bounded(steps: Any) -> None:
    assert check_difference(np.array([0.5, 0.25]), np.array([0.5, 0.250005]), "x") == pytest.approx(5e-6)
    for online in (np.array([0.5, 0.3]), np.array([0.5, np.nan]), np.array([0.5])):
        with pytest.raises(BundleError):
            check_difference(np.array([0.5, 0.25]), online, "x")
    with pytest.raises(BundleError, match="golden requests: none"):
        check_golden(steps.bundle, [], lambda folder, golden: [])
    assert Bundle.open(steps.bundle).manifest.parity["tolerance"] == 1e-5
