"""Base rate: the share of ones of each label in the training rows, at which predictions start."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from longrec.data.log import Log
from longrec.data.targets import compute_targets
from longrec.models.core.base import Model
from longrec.models.core.registry import name_of


def start_at_base_rates(model: Model, log: Log, rows: NDArray[np.int64], available_before: int | None = None) -> None:
    """Initialize the output biases of a new model at the base rates of its training rows.

    Args:
        rows: int64 rows of the log whose labels enter the loss.
        available_before: timestamp before which further labels must be available. Default: the end of training.
    """
    further = compute_targets(log, rows, model.targets, available_before)
    labels = [log.labels.take(rows), *(further[name].numpy() for name in model.targets)]
    weight = None if log.sample_weight is None else log.sample_weight.take(rows)
    model.start_at_rates([base_rate(label, weight) for label in labels])


def collect_bias_warnings(model: Model) -> list[str]:
    """Return the reason why predictions did not start at the base rate. Empty if they did."""
    if model.output_biases():
        return []
    description = f"model {name_of(model)} defines no output_biases, so it started at one half instead of the base rate"
    return [f"{description}: probabilities of rare labels may be wrong; return the bias that is added to its logit"]


def base_rate(label: NDArray[np.float32], weight: NDArray[np.float32] | None = None) -> float:
    """Return the share of ones among the available labels, weighted if there are weights.

    It differs from 0 and 1 by at least half a row. Without an available label it is one half.

    >>> base_rate(np.array([0, 0, 1, np.nan, 0], np.float32))
    0.25
    >>> base_rate(np.array([0, 0], np.float32))
    0.25
    """
    is_labeled = ~np.isnan(label) if weight is None else ~np.isnan(label) & (weight > 0)
    if not is_labeled.any():
        return 0.5
    least = 0.5 / int(is_labeled.sum())
    share = np.average(label[is_labeled].astype(np.float64), weights=None if weight is None else weight[is_labeled])
    return float(np.clip(share, least, 1 - least))
