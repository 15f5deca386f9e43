"""Tests of the memory bound of ``longrec check``, which needs no torch: it exceeds the exact number of every model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from longrec.features.schema import Schema
from longrec.models.core import registry as models
from longrec.models.core.catalog import names
from longrec.training import memory_bound
from longrec.training.memory_bound import bound_numbers, estimate_fields, may_exceed_memory
from longrec.training.settings import FitConfig


def make_schema(further: int, rows: int) -> Schema:
    features: dict[str, Any] = {
        "u": {"kind": "id"},
        "i": {"kind": "id", "hash": rows},
        "city": {"kind": "id", "vocab": ["a", "b", "c"], "dim": 20},
        "p": {"kind": "numeric"},
        "wide": {"kind": "numeric", "width": 40, "column": "w"},
        "tags": {"kind": "multi_id", "side": "item", "hash": rows},
        "done": {"kind": "id", "column": "y", "feedback": True},
        "size": {"kind": "bucketized", "quantiles": 5},
        **{name: {"kind": "id", "side": "item", "hash": rows} for name in ("category", "code_1", "code_2", "code_3")},
    }
    features |= {f"more{n}": {"kind": "id", "hash": rows} for n in range(further)}
    histories = {"seen": {"features": ["i", "time_gap", "done"]}, "other": {"features": ["i", "tags"]}}
    return Schema.model_validate(
        {"user": "u", "item": "i", "time": "t", "label": "y", "features": features, "histories": histories}
    )


SCHEMAS = [make_schema(0, 1000), make_schema(30, 50), make_schema(3, 100_000)]
SAME_DIM = Schema.model_validate(
    {**SCHEMAS[0].model_dump(exclude_unset=True), "features": {
        name: {key: value for key, value in feature.model_dump(exclude_unset=True).items() if key != "dim"}
        for name, feature in SCHEMAS[0].features.items()
    }}
)  # fmt: skip
LARGE: dict[str, list[dict[str, Any]]] = {
    "din": [{"attention": [3000, 2000], "mlp": [9000]}, {"embedding_dim": 500}],
    "wide_deep": [{"crosses": [["u", "i"], ["u", "city"]], "cross_buckets": 2_000_000}],
    "can": [{"micro": [60, 50, 40], "orders": 5, "independent_orders": True, "bias": True}],
    "rocket_launching": [{"share": False}],
    "unirec": [
        {"attributes": ["category"], "share_summaries": False, "embedding_dim": 96, "head_hidden": 700},
        {"attributes": ["category"], "head": "linear", "embedding_dim": 700, "heads": 2},
        {"summary_rows": 3_000_000, "share_summaries": False, "attributes": ["category", "i"]},
    ],
    "alignment": [{"base": {"name": "unirec", "attributes": ["category", "u"], "head_hidden": 300}}],
    "iat_reader": [{"base": {"name": "iat_reader", "base": {"name": "can"}}}],
}


# keep_plug needs an embedding feature, and models that count have no parameters.
@pytest.mark.parametrize(
    "model", [name for name in names() if name not in ("keep_plug", "covisit", "item_knn", "popularity")]
)
def test_the_bound_is_above_the_exact_number(model: str) -> None:
    cls, compared = models.find(model), 0
    for settings in [{}, *cls.variants, *LARGE.get(model, ())]:
        config = {"name": model, **cls.Config.model_validate(settings).model_dump(mode="json")}
        for schema in [*SCHEMAS, SAME_DIM]:
            try:
                with torch.random.fork_rng(devices=[]), torch.device("meta"):
                    built = models.build(config, estimate_fields(schema))
            except Exception:  # noqa: BLE001 - settings of the conformance suite that name other features
                continue
            bound = bound_numbers(config, schema)
            assert bound is not None
            assert bound > sum(parameter.numel() for parameter in built.parameters()), (settings, schema)
            compared += 1
    assert compared


def test_an_ordinary_config_needs_no_exact_number_and_a_large_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"name": "din", **models.find("din").Config().model_dump(mode="json")}
    monkeypatch.setattr(memory_bound, "available_memory", lambda: 4_000_000_000)
    assert not may_exceed_memory(config, SCHEMAS[1], FitConfig())
    assert not may_exceed_memory(config, make_schema(10, 100_000), FitConfig())
    assert may_exceed_memory(config, make_schema(10, 100_000_000), FitConfig())
    assert may_exceed_memory({**config, "mlp": [30_000, 30_000]}, SCHEMAS[0], FitConfig())
    monkeypatch.setattr(memory_bound, "available_memory", lambda: None)
    assert not may_exceed_memory(config, make_schema(10, 100_000_000), FitConfig())


def test_a_model_of_another_package_is_always_built() -> None:
    assert bound_numbers({"name": "mine.liking", "mlp": [8]}, SCHEMAS[0]) is None
    assert bound_numbers({"name": "iat", "base": {"name": "mine.liking"}}, SCHEMAS[0]) is None
