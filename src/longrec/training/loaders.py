"""Batches for a model: rows in any order, or runs of rows per user."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from longrec.data.loader import Loader
from longrec.data.log import Log
from longrec.data.negative_sampling import sample_negatives
from longrec.data.user_loader import UserLoader
from longrec.errors import ConfigError
from longrec.models.core.base import Model
from longrec.models.core.registry import name_of


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
    group_requests: bool = False,
) -> Loader | UserLoader:
    """Return the loader of rows of a log that fits a model.

    A model in user order that does not train (``shuffle`` off) reads rows in the order of the log, each once. Before
    each run come as many earlier rows of the user as a run may be long, from any split of the log.

    Args:
        available_before: timestamp before which the model's further labels must be available. Default: the end of the
            training window. Rows that are only scored have none.
        group_requests: rows of one request are in one batch and share its features and histories, if the model reads
            such batches.
        negative_rate: share of the negatives to keep. In user order the others stay in the context and have no loss.

    Raises:
        ConfigError: ``bucket_by_length`` for a model in user order.
    """
    user_order, targets = model.user_order, model.targets if shuffle else ()
    kept = sample_negatives(rows, log.labels.take(rows), negative_rate, seed) if negative_rate < 1 else rows
    if user_order is None and group_requests and shuffle:
        return UserLoader(
            log,
            kept,
            batch_size,
            seed=seed,
            by_request=model.reads_groups,
            targets=targets,
            available_before=available_before,
        )
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
            group=group_requests and model.reads_groups,
        )
    if bucket_by_length:
        raise ConfigError(
            "config", ["fit.bucket_by_length: a model in user order builds its own batches; remove this key"]
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


def collect_grouping_warnings(model: Model, log: Log, group_requests: bool) -> list[str]:
    """Return the reason why ``fit.group_requests`` saves no work. Empty if it does, or is off."""
    if not group_requests or (model.reads_groups and not log.schema.prejoined):
        return []
    reason = f"model {name_of(model)} reads a history for each candidate"
    if log.schema.prejoined:
        reason = "each row of a prejoined log has a history of its own"
    return [f"fit.group_requests saves no work: {reason}; remove the key"]
