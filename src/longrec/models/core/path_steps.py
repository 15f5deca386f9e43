"""Steps of a beam search with caches per beam, and requests without some of their features.

Shapes: R requests, W beams, t tokens of a prefix, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from longrec.features.batch import Batch
from longrec.nn.path_decoder import Cache


class CachedSteps:
    """Steps whose keys and values of earlier tokens are cached per beam.

    Args:
        score: function that returns the scores of the next tokens after prefixes. With caches it computes the newest
            token alone and appends its keys and values to them.
        caches: number of caches: one per memory that ``score`` reads.
    """

    def __init__(self, score: Callable[[Tensor, Sequence[Cache] | None], Tensor], caches: int) -> None:
        self.score = score
        self.caches: list[Cache] = [[] for _ in range(caches)]

    def extend(self, prefix_RWt: Tensor, parent_RW: Tensor | None) -> Tensor:
        """Return the scores of the next tokens after each beam."""
        for cache in self.caches:
            cache[:] = [] if parent_RW is None else [tuple(reorder(x, parent_RW) for x in pair) for pair in cache]  # type: ignore[misc]
        return self.score(prefix_RWt, self.caches)

    def score_shared(self, prefix_Wt: Tensor) -> Tensor:
        """Return the scores of the next tokens after prefixes that all requests have."""
        return self.score(prefix_Wt, None)


def reorder(x_RWtD: Tensor, parent_RW: Tensor) -> Tensor:
    """Return the entry of its parent for each beam, ``[R, W, t, D]``."""
    return x_RWtD.gather(1, parent_RW[:, :, None, None].expand(-1, -1, *x_RWtD.shape[2:]))


def leave_out(batch: Batch, names: Sequence[str], dropout: nn.Module | None = None) -> Batch:
    """Return the batch with missing values as id features of requests.

    Args:
        names: the features.
        dropout: of which requests: those that a dropout layer sets to zero. None: all.
    """
    own = {name: batch.candidates[name] if name in batch.candidates else batch.requests[name] for name in names}
    ids = [column for column in own.values() if isinstance(column, Tensor)]
    if dropout is None:
        columns = [torch.zeros_like(column) for column in ids]
    else:
        kept = (dropout(torch.ones(len(ids[0]), device=ids[0].device)) > 0).to(ids[0].dtype)
        columns = [column * kept for column in ids]
    changed = dict(zip(own, columns, strict=True))
    return replace(
        batch,
        requests={name: changed.get(name, column) for name, column in batch.requests.items()},
        candidates={name: changed.get(name, column) for name, column in batch.candidates.items()},
    )
