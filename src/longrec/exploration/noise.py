"""Noise of explorers: arrays that a caller draws from a logged seed and passes to a scorer or to its program.

Nothing random happens inside a scorer, so that a request with its seed gives the same scores again. Numbers come from
the raw bits of PCG64, whose stream no version of numpy may change. No torch is needed to draw them.

Shapes: R requests, C candidates, W numbers per entry.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Noise:
    """One array of noise.

    Attributes:
        name: its name among the inputs of an explorer.
        per: one entry per request, or per candidate.
        width: W.
        kind: ``uniform`` in [0, 1), ``normal``, or ``mask``: 0 with probability ``rate``, else 1 / (1 - rate).
    """

    name: str
    per: Literal["request", "candidate"]
    width: int
    kind: Literal["uniform", "normal", "mask"]
    rate: float = 0.0


def draw_noise(noise: Iterable[Noise], seed: int, candidates: int, requests: int = 1) -> dict[str, NDArray[np.float32]]:
    """Draw noise, float32 ``[R, W]`` or ``[C, W]`` each, by name. The same seed and sizes give the same arrays.

    Args:
        seed: an integer of at least 0, which belongs in the log of the request.

    >>> draw_noise([Noise("chance", "request", 1, "uniform")], seed=7, candidates=3)["chance"].shape
    (1, 1)
    """
    return {one.name: _draw(one, seed, requests if one.per == "request" else candidates) for one in noise}


def _draw(noise: Noise, seed: int, entries: int) -> NDArray[np.float32]:
    shape = entries, noise.width
    sequence = np.random.SeedSequence([seed, zlib.crc32(noise.name.encode())])
    bits = np.random.PCG64(sequence)
    if noise.kind == "normal":
        radius, angle = _draw_uniform(bits, shape), _draw_uniform(bits, shape)
        return (np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle)).astype(np.float32)
    uniform = _draw_uniform(bits, shape)
    if noise.kind == "uniform":
        return np.minimum(uniform, 1 - 2**-24).astype(np.float32)  # float32 would round the largest ones to 1
    return np.where(uniform < noise.rate, 0, 1 / (1 - noise.rate)).astype(np.float32)


def _draw_uniform(bits: np.random.PCG64, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return 53 random bits as a number in [0, 1) per entry."""
    raw = np.asarray(bits.random_raw(shape[0] * shape[1]), np.uint64)
    return ((raw >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(shape)
