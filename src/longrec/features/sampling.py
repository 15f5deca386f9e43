"""Items that the loss of a retriever compares a target with, as a model declares and a loader draws them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Draw = Literal["uniform", "popularity"]


@dataclass(frozen=True)
class Sampling:
    """Items that the loss compares a target with: items of training, and one that stands for all others.

    Attributes:
        scope: ``shared``: all targets of a batch have the same negatives; ``own``: each target has its own; ``all``:
            all of these items.
        negatives: number of negatives, of each target with ``own``.
        draw: distribution of the negatives: uniform over these items, or by the number of training targets.
        unseen: draw no item of the user's own history in the training window. ``own`` only.
    """

    scope: Literal["shared", "own", "all"] = "shared"
    negatives: int = 512
    draw: Draw = "uniform"
    unseen: bool = False
