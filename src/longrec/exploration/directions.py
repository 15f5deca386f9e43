"""Directions in which the embeddings of a candidate raise its logit the most.

    fgm     g = grad z(h) / |grad z(h)|
    pgd     d_0 = 0,  d_{t+1} = Proj_{|d| <= r}(d_t + a u(h + d_t)),  g = d_T / |d_T|,  u the unit gradient, a = 2 r / T

A gradient of zero gives the direction zero. The logit's gradient is parallel to the probability's, and does not vanish
where the probability is near 0 or 1.

Shapes: C candidates, D width of the perturbed embeddings.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

_LENGTH = 2.0
"""Length of all steps together, in radii: the iterate can cross the ball."""

Gradient = Callable[[Tensor], Tensor]


def find_fgm_direction(gradient: Gradient, h_CD: Float[Tensor, "C D"]) -> Float[Tensor, "C D"]:
    """Return the direction of the gradient of each candidate, of length 1 or 0."""
    return normalize(gradient(h_CD))


def find_pgd_direction(
    gradient: Gradient, h_CD: Float[Tensor, "C D"], radius_C: Float[Tensor, " C"], steps: int
) -> Float[Tensor, "C D"]:
    """Return the direction of each candidate after projected steps inside a ball, of length 1 or 0.

    Args:
        radius_C: radius of the ball around each candidate, at least 0.
    """
    r_C1 = radius_C.unsqueeze(1)
    d_CD = torch.zeros_like(h_CD)
    for number in range(steps):
        at_CD = h_CD + d_CD if number else h_CD  # so that a program has the first forward pass once
        d_CD = d_CD + (_LENGTH / steps) * r_C1 * normalize(gradient(at_CD))
        length_C1 = torch.linalg.vector_norm(d_CD, dim=1, keepdim=True)
        d_CD = torch.where(length_C1 > r_C1, normalize(d_CD) * r_C1, d_CD)
    return normalize(d_CD)


def normalize(x_CD: Float[Tensor, "C D"]) -> Float[Tensor, "C D"]:
    """Return each row at length 1. A row of zeros stays one."""
    # Divided by its largest entry first, so that the squares of tiny gradients do not vanish.
    largest_C1 = x_CD.abs().amax(1, keepdim=True)
    scaled_CD = x_CD / torch.where(largest_C1 > 0, largest_C1, torch.ones_like(largest_C1))
    length_C1 = torch.linalg.vector_norm(scaled_CD, dim=1, keepdim=True)
    return scaled_CD / torch.where(length_C1 > 0, length_C1, torch.ones_like(length_C1))
