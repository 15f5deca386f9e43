"""Memory estimate of a training, before any allocation.

The model is built on torch's meta device, which yields the shape of every parameter. The optimizer keeps up to two
additional numbers per parameter. Batches and other memory are not counted, so the estimate is a lower bound.
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
from longrec.models.core import registry as models
from longrec.models.core.base import Model
from longrec.resources import available_memory, format_bytes
from longrec.training.settings import FitConfig

_NUMBER = 4  # bytes of a float32
_KEPT = {"adamw": 2, "adam": 2, "lazy_adam": 2, "rowwise_adam": 1, "adagrad": 1, "rowwise_adagrad": 0, "sgd": 0}
"""State numbers that each optimizer keeps per parameter number. State per row is not counted."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Lower bound of the memory of a training.

    Attributes:
        weights, optimizer: bytes of the parameters, and of the optimizer state.
        largest, shape, bytes: name, shape and bytes of the largest parameter.
    """

    weights: int
    optimizer: int
    largest: str
    shape: tuple[int, ...]
    bytes: int


def estimate_fields(schema: Schema) -> Fields:
    """Return the fields of a schema with the table sizes that it fixes: hashes, listed vocabularies and edges.

    A learned vocabulary counts as empty, and stores of other models are excluded.
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
    """Replacement of an encoder that is not fitted yet."""

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


def estimate_memory(
    model_config: Mapping[str, Any], fields: Fields, fit: FitConfig, model_class: type[Model] | None = None
) -> MemoryEstimate | None:
    """Estimate the memory of training a model. None for a model that cannot be built on the meta device.

    Args:
        model_config: the ``model`` section of a job.
        model_class: class of the model. Default: that of its name.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = models.build(model_config, fields, model_class=model_class)
    except Exception:  # noqa: BLE001 - an error in building a model is reported when it is really built
        return None
    tables = {id(table) for table in model.embedding_parameters()}
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
    """Describe a table by its feature, and any other parameter by its name."""
    _, table, key = parameter.rpartition("table_")
    feature = key.replace("%2E", ".").replace("%25", "%")
    return f"feature {feature!r}" if table else f"parameter {parameter}"


def find_memory_fault(estimate: MemoryEstimate | None) -> ResourceError | None:
    """Return the error for a training that cannot fit into the available memory. None if it may fit."""
    free = available_memory()
    if estimate is None or free is None or estimate.weights + estimate.optimizer <= free:
        return None
    shape = " x ".join(f"{size:,}" for size in estimate.shape)
    total = format_bytes(estimate.weights + estimate.optimizer)
    rest = f"the whole training takes at least {total} (weights and optimizer)"
    return ResourceError(
        estimate.largest,
        f"{shape} numbers take {format_bytes(estimate.bytes)}, {rest}",
        f"at most the {format_bytes(free)} of memory that are available",
        (
            "lower hash (of a learned vocabulary: raise min_count) or dim, or set "
            "fit.embedding_optimizer=rowwise_adagrad, which keeps one number per row"
            if estimate.largest.startswith("feature")
            else "use a smaller layer in this model"
        ),
    )


def check_memory(
    model_config: Mapping[str, Any], fields: Fields, fit: FitConfig, model_class: type[Model] | None = None
) -> None:
    """Raise a ResourceError if a training cannot fit into the available memory, before any allocation."""
    error = find_memory_fault(estimate_memory(model_config, fields, fit, model_class))
    if error is not None:
        raise error
