"""Memory estimate of a training, before any allocation.

The model is built on torch's meta device, which yields the shape of every parameter. The optimizer keeps up to two
additional numbers per parameter. Batches and other memory are not counted, so the estimate is a lower bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from longrec.errors import ResourceError
from longrec.features.fields import Fields
from longrec.models.core import registry as models
from longrec.models.core.base import Model
from longrec.resources import available_memory, format_bytes
from longrec.training.memory_bound import NUMBER_BYTES, STATE_NUMBERS
from longrec.training.settings import FitConfig


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
        kept = STATE_NUMBERS[kind] + (kind == "sgd" and fit.momentum > 0)
        weights += parameter.numel() * NUMBER_BYTES
        optimizer += parameter.numel() * NUMBER_BYTES * (kept if parameter.requires_grad else 0)
    if not named:
        return None
    largest = max(named, key=lambda name: named[name].numel())
    shape = tuple(named[largest].shape)
    return MemoryEstimate(
        weights, optimizer, _describe_parameter(largest), shape, named[largest].numel() * NUMBER_BYTES
    )


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
