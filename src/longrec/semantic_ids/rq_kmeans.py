"""Residual k-means on the item vectors themselves.

Reference: residual k-means as the plain tokenizer of OneRec (arXiv 2502.18965) and of "Decoupled Residual Quantization
for robust Semantic IDs" (arXiv 2606.01844, RQ-KMeans on raw x).

Idea: the codes of a level are the clusters of what the levels before left over. Nothing but the clusters is learned, so
that a fit takes minutes for a million items, and the result is the same for the same seed.

    R^1 = X;     for l = 1 .. L:   C^l, k^l = k-means(R^l, K);   R^(l+1) = R^l - C^l[k^l]

Departures:
    - all vectors take part in every iteration, unless ``vectors_per_code`` limits them;
    - an empty cluster moves to the vector farthest from its centroid.

Shapes: N items, L levels, K codes of a level, X width of an item vector.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from longrec.semantic_ids.capacity import Capacity
from longrec.semantic_ids.residual import FittedCodes, fit_residual_kmeans
from longrec.semantic_ids.tokenizer import Tokenizer, TokenizerSettings


class RQKMeansSettings(TokenizerSettings):
    """Settings of residual k-means: those of ``rq_kmeans``, and of the second stage of ``drq``."""

    iterations: int = Field(25, ge=1, description="largest number of iterations of k-means, of each level")
    tolerance: float = Field(1e-4, ge=0, description="k-means ends when its inertia falls by less than this share")
    vectors_per_code: int | None = Field(
        None, ge=1, description="fit k-means on a sample of this many vectors per code; default: all vectors"
    )


class RQKMeans(Tokenizer):
    """Residual k-means on item vectors."""

    name = "rq_kmeans"
    Settings = RQKMeansSettings
    settings: RQKMeansSettings

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
        """Fit one codebook after the other."""
        self.residual, fitted = fit_residual_kmeans(
            vectors, **self.settings.model_dump(), seed=seed, weights=weights, capacity=capacity, advance=advance
        )
        return fitted

    def count_steps(self, items: int) -> int:
        """Return the largest number of iterations of all levels."""
        return self.settings.levels * self.settings.iterations
