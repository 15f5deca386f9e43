"""Rule from the log-probabilities of tokens to those of the servable children of a beam.

    renormalize   p'(c) = p(c) / sum of p over the children
    smoothing     p'(c) = (1 - s) p(c) + s / number of children, from a step on

A model learns by heart which last codes follow a prefix. So an item that training has not seen is never generated, even
if its first codes are the most probable ones. Smoothing gives every servable child of a prefix a share: this is
interpolation with a uniform distribution, as in language models (Chen and Goodman, 1999).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ChildRule:
    """How the children of a beam are scored. By default by the log-probabilities of their tokens.

    Attributes:
        renormalize: the probabilities of the children of each beam add up to 1. It comes before smoothing.
        smoothing: s, at least 0 and below 1.
        first: number of tokens of the shortest prefix whose children are smoothed.
    """

    renormalize: bool = False
    smoothing: float = 0.0
    first: int = 0

    @classmethod
    def of(cls, renormalize: bool, smoothing: float, attributes: int) -> ChildRule:
        """Return the rule of a generator whose path begins with attributes. It smooths from the second code on."""
        return cls(renormalize, smoothing, attributes + 1)

    def smooths(self, step: int) -> bool:
        """Return True if the children of prefixes of ``step`` tokens are smoothed."""
        return self.smoothing > 0 and step >= self.first

    def smooth(self, log: Any, children: Any, library: Any) -> Any:
        """Return ``log((1 - s) exp(log) + s / children)``.

        Args:
            log: log-probabilities, an array or a tensor.
            children: number of children of the same prefix, broadcast with ``log``, at least 1.
            library: ``numpy`` or ``torch``.
        """
        uniform = math.log(self.smoothing) - library.log(children)
        return library.logaddexp(log + math.log1p(-self.smoothing), uniform)


PLAIN = ChildRule()
