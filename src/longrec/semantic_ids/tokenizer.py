"""Interface of tokenizers: item vectors become codes, and codes become vectors again.

    z = latent(x);     codes = encode(z);     x^ = expand(decode(codes))

A tokenizer has codebooks in the space of its latent vectors. A method without an encoder has z = x.

Shapes: N items, L levels, K codes of a level, D width of a latent vector, X width of an item vector.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Self

import torch
from jaxtyping import Float, Int32
from pydantic import Field
from torch import Tensor

from longrec.config import Strict
from longrec.semantic_ids.capacity import Capacity
from longrec.semantic_ids.residual import FittedCodes, ResidualCodebooks

_AT_ONCE = 1 << 14
"""Vectors that an encoder or a decoder computes at once."""


class TokenizerSettings(Strict):
    """Settings that every method has."""

    levels: int = Field(3, ge=1, le=16, description="number L of codes of an item")
    size: int = Field(256, ge=2, le=65_536, description="number K of codes of each level")


class Tokenizer(ABC):
    """A tokenizer, before or after its fit.

    Args:
        settings: settings of the method.

    Attributes:
        name: name of the method.
        residual: the codebooks, after the fit.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[TokenizerSettings]] = TokenizerSettings
    reads_pairs: ClassVar[bool] = False
    """True if the method can learn from pairs of items."""

    residual: ResidualCodebooks

    def __init__(self, settings: TokenizerSettings) -> None:
        self.settings = settings

    @abstractmethod
    def fit(
        self,
        vectors: Float[Tensor, "N X"],
        *,
        seed: int = 0,
        weights: Float[Tensor, " N"] | None = None,
        capacity: Capacity | None = None,
        pairs: Tensor | None = None,
        advance: Callable[[], None] | None = None,
    ) -> FittedCodes:
        """Learn from item vectors, and return their codes.

        Args:
            vectors: float32, one row per item.
            weights: weight of each item in the loads that ``capacity`` bounds. Default: 1 each.
            capacity: bound on the load of each code.
            pairs: int64 ``[P, 2]``, rows of items that belong together. Methods that do not read pairs ignore them.
            advance: called after each of ``count_steps`` steps, at most.

        Raises:
            DataError: if there are fewer vectors than codes of a level.
        """

    @abstractmethod
    def count_steps(self, items: int) -> int:
        """Return the largest number of steps of a fit on a number of items."""

    def latent(self, vectors: Float[Tensor, "N X"]) -> Float[Tensor, "N D"]:
        """Return what the codebooks quantize. Default: the vectors themselves."""
        return vectors

    def expand(self, latent: Float[Tensor, "N D"]) -> Float[Tensor, "N X"]:
        """Return the item vectors of latent ones. Default: the latent vectors themselves."""
        return latent

    @property
    def codebooks(self) -> Float[Tensor, "L K D"]:
        """The codebooks of all levels."""
        return self.residual.codebooks

    @property
    def width(self) -> int:
        """Width X of the item vectors. Default: that of the codebooks."""
        return self.codebooks.shape[2]

    def codes(self, vectors: Float[Tensor, "N X"]) -> Int32[Tensor, "N L"]:
        """Return the nearest codes of item vectors, such as those of new items."""
        return torch.cat([self.residual.encode(self.latent(chunk)) for chunk in torch.split(vectors, _AT_ONCE)])

    def decode(self, codes: Int32[Tensor, "N l"]) -> Float[Tensor, "N X"]:
        """Return the item vectors of codes, or of the first levels of codes."""
        return torch.cat([self.expand(self.residual.decode(chunk)) for chunk in torch.split(codes, _AT_ONCE)])

    def reconstruct(self, vectors: Float[Tensor, "N X"]) -> Float[Tensor, "N X"]:
        """Return the item vectors after encoder and decoder, without quantization."""
        return torch.cat([self.expand(self.latent(chunk)) for chunk in torch.split(vectors, _AT_ONCE)])

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that a file has to store, by name."""
        return {"codebooks": self.codebooks}

    def load(self, tensors: Mapping[str, Tensor]) -> Self:
        """Take over what ``tensors`` of a fitted tokenizer returned, and return this tokenizer."""
        self.residual = ResidualCodebooks(tensors["codebooks"])
        return self
