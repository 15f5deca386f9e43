"""Tests of the memory estimate: all models and optimizers, without allocations and random numbers."""

from __future__ import annotations

import pytest
import torch

from longrec.features.schema import Schema
from longrec.models.core import registry as models
from longrec.models.core.catalog import names
from longrec.training import memory
from longrec.training.memory import estimate_memory, find_memory_fault
from longrec.training.memory_bound import estimate_fields
from longrec.training.settings import FitConfig

SCHEMA = Schema.model_validate(
    {
        "user": "u",
        "item": "i",
        "time": "t",
        "label": "y",
        "features": {
            "u": {"kind": "id"},
            "i": {"kind": "id", "hash": 1000},
            "city": {"kind": "id", "vocab": ["a", "b", "c"]},
            "town": {"kind": "id", "share": "city"},
            "p": {"kind": "numeric"},
            "tags": {"kind": "multi_id", "side": "item", "hash": 9},
            "code_1": {"kind": "id", "side": "item", "hash": 9},
            "done": {"kind": "id", "column": "y", "feedback": True},
            "hour": {"kind": "calendar"},
            "size": {"kind": "bucketized", "quantiles": 5},
        },
        "histories": {"seen": {"features": ["i", "time_gap", "done"]}},
    }
)


def test_row_counts_that_a_schema_fixes() -> None:
    rows = {field.name: field.rows for field in estimate_fields(SCHEMA).features}
    assert rows == {"u": 2, "i": 1002, "city": 5, "town": 5, "p": 0, "tags": 11, "code_1": 11, "hour": 2, "size": 7}
    assert [field.name for field in estimate_fields(SCHEMA).histories["seen"]] == ["i", "time_gap", "done"]


# keep_plug needs a vector feature, and models that count have no parameters.
@pytest.mark.parametrize(
    "model", [name for name in names() if name not in ("keep_plug", "covisit", "item_knn", "popularity")]
)
def test_every_model_is_counted_without_memory_and_without_chance(model: str) -> None:
    before = torch.get_rng_state()
    estimate = estimate_memory({"name": model}, estimate_fields(SCHEMA), FitConfig())
    assert torch.equal(torch.get_rng_state(), before)
    assert estimate is not None
    assert estimate.weights >= 1002 * 4
    with torch.device("meta"):
        weights = list(models.build({"name": model}, estimate_fields(SCHEMA)).parameters())
    assert estimate.weights == 4 * sum(parameter.numel() for parameter in weights)
    assert estimate.optimizer == 2 * 4 * sum(parameter.numel() for parameter in weights if parameter.requires_grad)


@pytest.mark.parametrize(
    ("fit", "kept"),
    [({}, 2), ({"embedding_optimizer": "adagrad"}, 1), ({"embedding_optimizer": "rowwise_adagrad"}, 0)],
)
def test_what_an_optimizer_keeps(fit: dict[str, str], kept: int) -> None:
    estimate = estimate_memory({"name": "lr"}, estimate_fields(SCHEMA), FitConfig.model_validate(fit))
    assert estimate is not None
    assert estimate.optimizer == pytest.approx(
        kept * estimate.weights, abs=100
    )  # but for the bias and the number's weight


def test_the_message_names_the_largest_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 100_000)
    error = find_memory_fault(estimate_memory({"name": "din"}, estimate_fields(SCHEMA), FitConfig()))
    assert error is not None
    assert "parameter top.layers.0.linear.weight: 200 x" in str(error)
    assert "at most the 100 kB of memory" in str(error)
    assert find_memory_fault(estimate_memory({"name": "lr"}, estimate_fields(SCHEMA), FitConfig())) is None
    assert find_memory_fault(None) is None
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    assert find_memory_fault(estimate_memory({"name": "din"}, estimate_fields(SCHEMA), FitConfig())) is None
