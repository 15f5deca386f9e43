"""How much memory a training takes, counted before anything is allocated.

The model is built without memory (torch's meta device), which gives the shape of every parameter; the optimizer keeps
up to two numbers more of each. Batches and whatever else comes on top are not counted: what does not fit by this count
cannot fit at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch

from longrec.errors import ResourceError
from longrec.features.feature import Feature
from longrec.features.feature_encoders import FIRST, Encoder
from longrec.features.fields import Fields
from longrec.features.fitted_schema import FittedSchema
from longrec.features.schema import Schema
from longrec.models.core import base as models
from longrec.resources import available_memory, format_bytes
from longrec.train.settings import FitConfig

_NUMBER = 4  # bytes of a float32
_KEPT = {"adamw": 2, "adam": 2, "lazy_adam": 2, "rowwise_adam": 1, "adagrad": 1, "rowwise_adagrad": 0, "sgd": 0}
"""Numbers that each optimizer keeps of each number it moves; what it keeps of a whole row is not counted."""


@dataclass(frozen=True)
class MemoryEstimate:
    """What a training holds in memory at least.

    Attributes:
        weights, optimizer: bytes of the parameters, and of what the optimizer keeps of them.
        largest: the largest parameter: what it is, its shape and its bytes.
    """

    weights: int
    optimizer: int
    largest: str
    shape: tuple[int, ...]
    bytes: int


def estimate_fields(schema: Schema) -> Fields:
    """The fields of a schema as far as it tells their rows by itself: those of hashes, given lists and edges.

    A learned vocabulary counts as empty, and what other models left is not there.
    """
    rows = {name: cast(Encoder, _Rows(_estimate_rows(feature))) for name, feature in schema.features.items()}
    rows |= {name: rows[one.share] for name, one in schema.features.items() if one.share}
    fitted = FittedSchema(schema, rows)
    features = [n for n, one in schema.features.items() if not one.feedback and one.kind != "embedding"]
    own = {name: history.features for name, history in schema.histories.items() if history.source is None}
    histories = {name: tuple(fitted.field(column) for column in of) for name, of in own.items()}
    return Fields(tuple(map(fitted.field, features)), histories)


@dataclass(frozen=True)
class _Rows:
    """In the place of an encoder that is not fitted yet."""

    rows: int


def _estimate_rows(feature: Feature) -> int:
    if feature.form == "numeric":
        return 0
    if feature.hash is not None:
        return FIRST + feature.hash
    if isinstance(feature.vocab, tuple):
        return FIRST + len(feature.vocab)
    if feature.edges is not None:
        return FIRST + len(feature.edges) + 1
    return FIRST + (feature.quantiles or 0)


def estimate_memory(model_config: Mapping[str, Any], fields: Fields, fit: FitConfig) -> MemoryEstimate | None:
    """What training a model takes; None for a model that cannot be built without memory.

    Args:
        words: the ``model`` section of a job.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = models.build(model_config, fields)
    except Exception:  # noqa: BLE001 - whatever keeps a model from being built shows when it is built in earnest
        return None
    tables = {id(table) for table in model.tables()}
    weights = optimizer = 0
    named = dict(model.named_parameters())
    for parameter in named.values():
        kind = fit.embedding_optimizer if id(parameter) in tables else fit.optimizer
        kept = _KEPT[kind] + (kind == "sgd" and fit.momentum > 0)
        weights += parameter.numel() * _NUMBER
        optimizer += parameter.numel() * _NUMBER * (kept if parameter.requires_grad else 0)
    if not named:
        return None
    largest = max(named, key=lambda name: named[name].numel())
    shape = tuple(named[largest].shape)
    return MemoryEstimate(weights, optimizer, _describe_parameter(largest), shape, named[largest].numel() * _NUMBER)


def _describe_parameter(parameter: str) -> str:
    """A table by its feature, any other parameter by its name."""
    _, table, key = parameter.rpartition("table_")
    feature = key.replace("%2E", ".").replace("%25", "%")
    return f"feature {feature!r}" if table else f"parameter {parameter}"


def find_memory_fault(estimate: MemoryEstimate | None) -> ResourceError | None:
    """What to tell when a training cannot fit into the memory there is; None when it may."""
    free = available_memory()
    if estimate is None or free is None or estimate.weights + estimate.optimizer <= free:
        return None
    shape = " x ".join(f"{size:,}" for size in estimate.shape)
    rest = f"the whole training at least {format_bytes(estimate.weights + estimate.optimizer)} (weights and optimizer)"
    return ResourceError(
        estimate.largest,
        f"{shape} numbers take {format_bytes(estimate.bytes)}, {rest}",
        f"at most the {format_bytes(free)} of memory that are available",
        (
            "lower hash (of a learned vocabulary: raise min_count) or dim, or set "
            "fit.embedding_optimizer=rowwise_adagrad, which keeps one number per row"
            if estimate.largest.startswith("feature")
            else "make this layer of the model smaller"
        ),
    )


def check_memory(model_config: Mapping[str, Any], fields: Fields, fit: FitConfig) -> None:
    """Raise a ResourceError when a training cannot fit into the memory there is, before anything is allocated."""
    error = find_memory_fault(estimate_memory(model_config, fields, fit))
    if error is not None:
        raise error
