"""A GRU that also takes one step at a time, for states that are kept between requests.

Shapes: B rows, N positions, I inputs, H hidden units, G inputs of a step (3 H).
"""

from __future__ import annotations

from typing import no_type_check

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from longrec.nn.recurrent import GRU


class SteppedGRU(GRU):
    """An ordinary GRU (see nn/recurrent.py) with its step as a function of a state and an input.

    Args:
        inputs: I.
        hidden: H.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden)

    def project(self, x_NI: Float[Tensor, "N I"]) -> Float[Tensor, "N G"]:
        """Return the term of the input of every position, for ``advance``."""
        return self._inputs(x_NI)

    # Steps inside a traced scan must not be wrapped by a shape checker.
    @no_type_check
    def step(self, h_BH: Tensor, x_BI: Tensor) -> Tensor:
        """Return the next state ``[B, H]`` from a state ``[B, H]`` and an input ``[B, I]``."""
        return self.advance(h_BH, F.linear(x_BI, self.weight, self.bias))

    @no_type_check
    def advance(self, h_BH: Tensor, x_BG: Tensor) -> Tensor:
        """Return the next state ``[B, H]`` from a state ``[B, H]`` and the term of an input ``[B, G]``."""
        return self._step(h_BH, x_BG, x_BG[:, 0])  # the last argument is an attention, which this update does not read
