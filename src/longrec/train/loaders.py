"""Which batches a model gets: rows in any order, or runs of rows of users."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from longrec.data.loader import Loader
from longrec.data.log import Log
from longrec.data.user_order import UserLoader
from longrec.errors import ConfigError
from longrec.models.base import Model


def loader_of(
    model: Model,
    log: Log,
    rows: NDArray[np.int64],
    batch_size: int,
    *,
    seed: int = 0,
    shuffle: bool = True,
    by_length: bool = False,
) -> Loader | UserLoader:
    """The batches of some rows of a log as a model wants them.

    A model in user order that does not train (``shuffle`` off) meets the rows in the order of the log, each once, with
    as many earlier rows of the user before each run as a run may be long: they come from any part of the log.

    Raises:
        ConfigError: ``by_length`` for a model in user order.
    """
    order = model.user_order
    if order is None:
        return Loader(log, rows, batch_size, seed=seed, shuffle=shuffle, by_length=by_length)
    if by_length:
        raise ConfigError("config", ["fit.by_length: a model in user order has batches of its own; leave it out"])
    return UserLoader(
        log,
        rows,
        batch_size,
        seed=seed,
        shuffle=shuffle,
        rows_per_user=order.rows,
        context=order.context if shuffle else order.rows,
        mirrored=order.mirrored,
    )
