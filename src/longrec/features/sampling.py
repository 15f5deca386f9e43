"""What the loss of a retriever reads, as a model declares and a loader gathers it.

The distributions of shared negatives, with the expected number of draws q of item j in a batch of T targets:

    ``uniform``     n draws from the I items of training:                q = n / I
    ``popularity``  n draws by the number c_j of training targets:       q = n c_j / sum(c)
    ``in_batch``    the targets of the batch themselves (Yi et al.):     q = T c_j / sum(c)
    ``mixed``       those, and n uniform draws (Yang et al.):            q = T c_j / sum(c) + n / I

Popularity takes the place of the log-uniform draw of TensorFlow, which is a distribution over ids. That one is close to
popularity if ids are sorted by decreasing frequency, and arbitrary otherwise. Counts need no order of ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Draw = Literal["uniform", "popularity", "in_batch", "mixed"]


@dataclass(frozen=True)
class Sampling:
    """Items that the loss compares a target with, which targets there are, and what is gathered with them.

    Items are those of training, and one that stands for all others.

    Attributes:
        scope: ``shared``: all targets of a batch have the same negatives; ``own``: each target has its own; ``all``:
            all of these items; ``none``: there are no negatives, for a model that compares tokens.
        negatives: number of negatives, of each target with ``own``. Those in the batch do not count.
        draw: distribution of the negatives. In-batch and mixed ones are ``shared`` only.
        unseen: draw no item of the user's own history in the training window. ``own`` only.
        mask_own: the other targets of a user in a batch are no in-batch negatives of its targets.
        per_user: number of targets of a user in an epoch, drawn anew for each. None: all.
        requests: gather the features of users and contexts for each target of a batch of sequences.
        age: gather how long before the last target each target was.
        time: gather the time from the state to each target of a batch of sequences. The model takes times between
            events from ``time_since_previous`` and no other column of time, so that these columns allow sequences.
    """

    scope: Literal["shared", "own", "all", "none"] = "shared"
    negatives: int = 512
    draw: Draw = "uniform"
    unseen: bool = False
    mask_own: bool = True
    per_user: int | None = None
    requests: bool = False
    age: bool = False
    time: bool = False

    @property
    def in_batch(self) -> bool:
        """True if the targets of a batch are negatives of each other."""
        return self.draw in ("in_batch", "mixed")
