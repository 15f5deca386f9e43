"""Exploration of one position of a page: its buckets, its draw, and the propensity of every shown item.

A page of n items, and further candidates behind it, are one list. With probability s, an item e of the list at or
behind slot j is drawn with weight w_e and moves to j. Items between j and its former index move back by one, and the
page keeps its length. So the item of index r is shown at q with probability

    q < j      1 if r = q
    q = j      s w_r + (1 - s) [r = j]
    q > j      (1 - s) + s sum_{e < r} w_e  if r = q,    s sum_{e > r} w_e  if r = q - 1

These are exact, given candidates, scores and the noise of the explorer. The coin of s is part of the draw.

Shapes: C listed candidates, N items of the page. Indices start at 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Bucket = Literal["control", "explore"]
SEED_BITS = 53
"""Bits of the seed of a request, which every JSON reader can hold."""


@dataclass(frozen=True)
class Exploration:
    """What exploration did to one page.

    Attributes:
        bucket: bucket of the user.
        seed: seed of the request. None if nothing was drawn: in the control bucket, or late.
        item: the explored item, whether it moved or not. None without one.
        propensities: float64 ``[N]``, of every item of the page in its position. None if they were not computed, or if
            the request brought its seed.
    """

    bucket: Bucket
    seed: int | None = None
    item: Any = None
    propensities: NDArray[np.float64] | None = None


def assign_bucket(user: int | str, control: float, salt: str) -> Bucket:
    """Return the bucket of a user, permanently.

    Args:
        control: share of the users in the control bucket. A larger one contains a smaller one.
    """
    return "control" if _hash(salt, user) / 2**SEED_BITS < control else "explore"


def derive_seed(seed: int, user: int | str, timestamp: int) -> int:
    """Return the seed of a request of a user."""
    return _hash(seed, user, timestamp)


def _hash(*values: int | str) -> int:
    """Return a number of 53 bits."""
    text = "\0".join(map(str, values)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> (64 - SEED_BITS)


def compute_weights(scores_C: NDArray[Any], temperature: float) -> NDArray[np.float64]:
    """Return the probability of each candidate to be drawn: a softmax over standardized scores.

    Args:
        temperature: 0 for the highest score, the first of equal ones.

    >>> compute_weights(np.array([1.0, 3.0, 3.0]), 0.0).tolist()
    [0.0, 1.0, 0.0]
    """
    scores_C = np.asarray(scores_C, np.float64)
    if temperature == 0:
        return (np.arange(len(scores_C)) == scores_C.argmax()).astype(np.float64)
    deviation = scores_C.std()
    z_C = (scores_C - scores_C.max()) / (deviation if deviation > 0 else 1.0)
    with np.errstate(under="ignore", over="ignore"):
        weights_C: NDArray[np.float64] = np.exp(z_C / temperature)
    return weights_C / weights_C.sum()


def draw(weights_C: NDArray[np.float64], uniform: float) -> int:
    """Return the index of the candidate that a uniform number in [0, 1) draws. One of weight 0 is never drawn."""
    possible = np.flatnonzero(weights_C)
    at = np.searchsorted(weights_C[possible].cumsum(), uniform, side="right")
    return int(possible[min(int(at), len(possible) - 1)])


def build_page(size: int, slot: int, drawn: int | None) -> list[int]:
    """Return the indices of the items of a page of N items.

    Args:
        slot: index of the explored position.
        drawn: index of the item that moves there, at least that of the slot. None: nothing explores.

    >>> build_page(4, 1, 6), build_page(4, 1, 2), build_page(4, 1, None)
    ([0, 6, 1, 2], [0, 2, 1, 3], [0, 1, 2, 3])
    """
    if drawn is None:
        return list(range(size))
    rest = [index for index in range(slot, size) if index != drawn]
    return [*range(slot), drawn, *rest][:size]


def compute_propensities(
    page: Sequence[int], slot: int, weights_C: NDArray[np.float64], share: float
) -> NDArray[np.float64]:
    """Return the probability of every item of a page to be shown in its position, ``[N]``.

    Args:
        page: index of the item of each position, as ``build_page`` returns them.
        slot: index of the explored position.
        weights_C: probability of each listed candidate to be drawn, 0 before the slot.
        share: probability that the page explores.
    """
    index_N = np.asarray(page)
    position_N = np.arange(len(index_N))
    before_C = weights_C.cumsum() - weights_C
    behind_C = weights_C[::-1].cumsum()[::-1] - weights_C
    at_slot = share * weights_C[index_N] + (1 - share) * (index_N == slot)
    stayed = (index_N == position_N) * (1 - share + share * before_C[index_N])
    moved = (index_N == position_N - 1) * share * behind_C[index_N]
    later = np.where(position_N == slot, at_slot, stayed + moved)
    return np.where(position_N < slot, (index_N == position_N).astype(np.float64), np.clip(later, 0.0, 1.0))
