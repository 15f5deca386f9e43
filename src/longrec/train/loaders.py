"""Which batches a model gets: rows in any order, or runs of rows of users."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from longrec.data.loader import Loader
from longrec.data.log import Log
from longrec.data.negative_sampling import sample_negatives
from longrec.data.user_loader import UserLoader
from longrec.errors import ConfigError
from longrec.models.core.base import Model


def build_loader(
    model: Model,
    log: Log,
    rows: NDArray[np.int64],
    batch_size: int,
    *,
    seed: int = 0,
    shuffle: bool = True,
    bucket_by_length: bool = False,
    available_before: int | None = None,
    negative_rate: float = 1.0,
) -> Loader | UserLoader:
    """The batches of some rows of a log as a model wants them.

    A model in user order that does not train (``shuffle`` off) meets the rows in the order of the log, each once, with
    as many earlier rows of the user before each run as a run may be long: they come from any part of the log.

    Args:
        known_before: the moment before which the model's further labels must be known; default the end of the
            training window. What is only scored has none.
        negative_rate: share of the negatives that are kept. In user order the others stay to be looked back at, and
            have no loss.

    Raises:
        ConfigError: ``bucket_by_length`` for a model in user order.
    """
    user_order, targets = model.user_order, model.targets if shuffle else ()
    kept = sample_negatives(rows, log.labels.take(rows), negative_rate, seed) if negative_rate < 1 else rows
    if user_order is None:
        return Loader(
            log,
            kept,
            batch_size,
            seed=seed,
            shuffle=shuffle,
            bucket_by_length=bucket_by_length,
            targets=targets,
            available_before=available_before,
        )
    if bucket_by_length:
        raise ConfigError(
            "config", ["fit.bucket_by_length: a model in user order has batches of its own; leave it out"]
        )
    return UserLoader(
        log,
        rows,
        batch_size,
        seed=seed,
        shuffle=shuffle,
        rows_per_user=user_order.rows,
        context=user_order.context if shuffle else user_order.rows,
        mirrored=user_order.mirrored,
        loss_rows=kept,
        targets=targets,
        available_before=available_before,
    )
