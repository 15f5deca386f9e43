"""Additional labels of impressions for models with several tasks: feedback features with the values 0 and 1.

A target is read as of the end of the training window, and a value that became available later is missing. So a purchase
counts only inside its attribution window, and no target leaks from the test period. A batch has only the targets that
the model trains on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longrec.data.log import Log
from longrec.errors import ConfigError, nearest
from longrec.features.feature_encoders import FIRST, IdEncoder
from longrec.features.history_columns import NEVER

_VALUES = {0: 0.0, 1: 1.0, "0": 0.0, "1": 1.0}


def compute_targets(
    log: Log, rows: NDArray[np.int64], names: Sequence[str], available_before: int | None = None
) -> dict[str, Tensor]:
    """Return targets by feature name, each float32 ``[B]``. A value that was not available in time is NaN.

    Args:
        rows: row indices in the log, int64 ``[B]``.
        names: names of the target features.
        available_before: timestamp before which a value must be available. Default: end of the training window.

    Raises:
        ConfigError: a feature that cannot be a target.
    """
    if not names:
        return {}
    faults = [f"model: the target {name!r} {fault}" for name in names if (fault := _fault(log, name))]
    if faults:
        raise ConfigError("config", faults)
    before = log.training_window.end("train", log.user(rows)) if available_before is None else available_before
    return {name: torch.from_numpy(compute_target(log, name, rows, before)) for name in names}


def compute_target(
    log: Log, name: str, rows: NDArray[np.int64], before: int | NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """Return one target, float32 ``[B]``: 0 or 1, or NaN for a value that is null or was not available in time.

    Args:
        before: timestamp strictly before which the value must be available, or one per row. None returns the final
            value, which is used for the metrics of a trained model.
    """
    encoder = log.fitted.encoders[name]
    assert isinstance(encoder, IdEncoder)
    table = np.full(encoder.rows, np.nan, np.float32)
    table[FIRST:] = [_VALUES[value] for value in encoder.keys.values.to_pylist()]
    values = table.take(log.events.columns[name].take(rows))
    values[compute_available_at(log, name, rows) >= (NEVER if before is None else before)] = np.nan
    return values


def compute_available_at(log: Log, name: str, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the time from which a feedback feature was available per row, int64 ``[B]``, never before its event."""
    own, times = log.events.columns.get(f"known.{name}"), log.events.times.take(rows)
    since = np.maximum(own.take(rows), times) if own is not None else times + log.schema.available_after(name)
    return log.clamp_to_available(since, rows)


def check_targets(log: Log, names: Sequence[str]) -> None:
    """Raise an error if the log does not have usable targets of these names.

    Raises:
        ConfigError: no feedback feature of that name, values other than 0 and 1, or fewer than two values available in
            the training window.
    """
    faults = [f"model: the target {name!r} {fault}" for name in names if (fault := _fault(log, name))]
    if not faults:
        rows = log.rows_of("train")
        for name, target in compute_targets(log, rows, names).items():
            labels = target.numpy()
            values = np.unique(labels[~np.isnan(labels)])
            if not len(values):
                faults.append(
                    f"model: the target {name!r} has no training row where it was available before the split cutoff"
                )
            elif len(values) < 2:
                faults.append(
                    f"model: the target {name!r} is {values[0]:g} in every training row where it was available"
                )
    if faults:
        raise ConfigError("config", faults)


def _fault(log: Log, name: str) -> str:
    """Return the reason why a feature cannot be a target, or an empty string."""
    features = log.schema.features
    feedback = [name for name, feature in features.items() if feature.feedback and feature.kind == "id"]
    if name not in features:
        near = nearest(name, feedback)
        hint = f"did you mean {near!r}?" if near else f"feedback features of kind id: {', '.join(feedback) or 'none'}"
        return f"is no feature; {hint}"
    if not features[name].feedback:
        return "is no feedback; a target is a feature with feedback: true"
    encoder = log.fitted.encoders[name]
    if getattr(features[name], "min_count", 1) > 1:
        return f"has min_count: {features[name].min_count}; a target must keep all values"
    if not isinstance(encoder, IdEncoder):
        return f"is of kind {features[name].kind}; a target is an id with the values 0 and 1, without hash"
    odd = [value for value in encoder.keys.values.to_pylist()[:3] if value not in _VALUES]
    return f"has the value {odd[0]!r}; a target has 0 and 1" if odd else ""
