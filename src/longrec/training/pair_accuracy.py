"""Accuracy of a generator on pairs: how often the preferred one of two items of a request has the higher probability.

The items of a pair were both shown, and the probability is that of the whole path under teacher forcing. Items with
equal paths count as one half.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from longrec.data.alignment_loader import AlignmentLoader
from longrec.data.log import Log
from longrec.data.preferences import Preferences
from longrec.models.alignment import Alignment
from longrec.training.device import find_device, precision

_TARGETS = 2_048
"""Number of preferred items that are encoded together."""


def measure_pairs(
    model: Alignment, log: Log, targets: NDArray[np.int64], split: str, *, bf16: bool = False
) -> dict[str, float]:
    """Return ``pair_accuracy`` on a split, and ``pair_accuracy_reference``, that of the run that training started from.

    Each preferred target has ``losers`` pairs. Without pairs there is no accuracy.

    Args:
        targets: rows of the log, of the split.
    """
    preferences = Preferences(log, model.levels, {}, model.config.losers, split)
    rows, history = targets[np.isin(targets, preferences.preferred)], next(iter(log.schema.histories))
    if not len(rows):
        return {}
    device, was_training = find_device(model), model.training
    loader = AlignmentLoader(log, rows, _TARGETS, history, model.sampling, preferences=preferences, sequences=False)
    rates: list[list[torch.Tensor]] = [[], []]
    model.eval()
    try:
        with torch.inference_mode(), precision(bf16, device):
            for batch in loader.epoch(0):
                moved = batch.to(device)
                assert moved.targets is not None
                assert moved.targets.pairs is not None
                for own, generator in zip(rates, (model.base, model.reference)):
                    log_T = generator.log_probabilities(moved).sum(1)
                    first_P, second_P = log_T[moved.targets.pairs]
                    own.append((first_P > second_P).float() + 0.5 * (first_P == second_P))
    finally:
        model.train(was_training)
    values = [float(np.mean(torch.cat(own).cpu().numpy())) if sum(map(len, own)) else np.nan for own in rates]
    if np.isnan(values).any():
        return {}
    return dict(zip(("pair_accuracy", "pair_accuracy_reference"), values))
