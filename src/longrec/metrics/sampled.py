r"""Ranks among sampled negatives, as many papers report them, from ranks among the whole catalog.

    rank_m ~ Hypergeometric(rank, items - 1 - rank, m)

is the rank of a target among ``m`` other items, drawn without replacement and with equal probability: so many of the
``rank`` items above it are drawn. The scores are not needed again.

A metric of these ranks is another metric. It is high for everybody, hardly changes at the top of the catalog, and can
order two models the other way than the metric on the whole catalog (Krichene and Rendle, KDD 2020). Its name begins
with ``sampled_``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from longrec.errors import ConfigError, DataError
from longrec.metrics.columns import Floats

PREFIX = "sampled_"
WARNING = (
    "metrics that begin with sampled_ rank each target among {negatives:,} sampled items: they can order two models "
    "the other way than metrics on the whole catalog do (Krichene and Rendle, KDD 2020), and compare with published "
    "ones of the same number of negatives only"
)


def sample_ranks(rank: ArrayLike, items: ArrayLike, negatives: int, seed: int = 0) -> Floats:
    """Return the rank of each target among sampled other items, float64 ``[N]``.

    Args:
        rank: ``[N]`` rank among all items, 0 for the best. A mid rank of a half is rounded up or down with equal
            probability.
        items: number of ranked items with the target, or ``[N]`` one per target.
        negatives: number of sampled items. All others where there are not as many.
        seed: of the sample.

    Raises:
        ConfigError: if there are fewer than one negative.
        DataError: if a rank is negative, not finite, or not below the number of items.

    >>> sample_ranks([0, 500, 999], 1000, negatives=99).tolist()
    [0.0, 49.0, 99.0]
    """
    if negatives < 1:
        raise ConfigError("negatives", [f"must be at least 1, got {negatives}"])
    rank_N = np.asarray(rank, np.float64)
    others_N = np.broadcast_to(np.asarray(items, np.int64) - 1, rank_N.shape)
    if rank_N.ndim != 1 or not ((rank_N >= 0) & (rank_N <= others_N)).all():
        raise DataError("ranks", "a rank that is negative or above the number of items", "ranks from 0, the best")
    random = np.random.default_rng(seed)
    above_N = np.where(rank_N % 1 > 0, np.floor(rank_N) + (random.random(len(rank_N)) < 0.5), rank_N).astype(np.int64)
    above_N = np.minimum(above_N, others_N)
    return random.hypergeometric(above_N, others_N - above_N, np.minimum(negatives, others_N)).astype(np.float64)
