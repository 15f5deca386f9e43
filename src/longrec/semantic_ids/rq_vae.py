"""RQ-VAE: an autoencoder whose latent vector is quantized by residual codebooks, all learned together.

Reference: Zeghidour et al., "SoundStream" (arXiv 2107.03312); as a tokenizer of items: Rajput et al., "Recommender
Systems with Generative Retrieval" (TIGER, arXiv 2305.05065). With moving averages and revived codes it is the RQP-VAE
of "Decoupled Residual Quantization for robust Semantic IDs" (arXiv 2606.01844).

Idea: encoder, codebooks and decoder learn one loss, so that the latent space and its codes fit each other.

    z = E(x);   z^, k = residual quantization of z;   x^ = D(z + sg(z^ - z))            (straight-through)
    loss = |x - x^|^2 + sum_l ( |sg(r^l) - c^l|^2 + beta |r^l - sg(c^l)|^2 )            means over numbers

With ``ema`` the codebooks follow moving averages of their vectors, and the first term of the sum is left out. With
``revive`` a code that is hardly used restarts at a residual of the batch.

Departures:
    - vectors are centered and scaled first (``autoencoder.py``);
    - the codebooks begin with residual k-means on the latent vectors of a sample;
    - the residual of the next level does not pass a gradient to the codewords of this one.

Shapes: N items, L levels, K codes of a level, D width of a latent vector, X width of an item vector, B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from longrec.nn.quantize import ResidualQuantizer
from longrec.semantic_ids.autoencoder import Autoencoder, AutoencoderSettings, count_batches, fixed_seed, train
from longrec.semantic_ids.capacity import Capacity
from longrec.semantic_ids.kmeans import require_vectors
from longrec.semantic_ids.residual import FittedCodes, ResidualCodebooks, fit_residual_kmeans
from longrec.semantic_ids.tokenizer import Tokenizer

_SAMPLE = 32
"""Vectors per code of the k-means that the codebooks begin with."""
_ITERATIONS = 5


class RQVAESettings(AutoencoderSettings):
    """Settings of ``rq_vae``."""

    commitment: float = Field(0.25, ge=0, description="weight beta of the term that pulls residuals to their codewords")
    ema: bool = Field(False, description="move codebooks by moving averages, and not by a loss of their own")
    decay: float = Field(0.99, gt=0, lt=1, description="decay per step of the moving averages, and of the usage")
    revive: bool = Field(False, description="restart codes that are hardly used at residuals of the batch")


class RQVAE(Tokenizer):
    """Autoencoder with residual quantization."""

    name = "rq_vae"
    Settings = RQVAESettings
    settings: RQVAESettings
    autoencoder: Autoencoder

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
        """Train, then assign all items, within the capacity. Codebooks do not move after the training."""
        settings = self.settings
        require_vectors(len(vectors), settings.size, "rq_vae")
        with fixed_seed(seed):
            self.autoencoder = autoencoder = Autoencoder(vectors.shape[1], settings)
            autoencoder.measure(vectors)
            quantizer = ResidualQuantizer(
                1,
                settings.levels,
                settings.size,
                settings.width,
                decay=settings.decay,
                commitment=settings.commitment,
                learn="average" if settings.ema else "gradient",
                revive=settings.revive,
            )
            sample = torch.randperm(len(vectors))[: max(_SAMPLE * settings.size, settings.size)]
            start, _ = fit_residual_kmeans(
                autoencoder.encode(vectors[sample]), settings.levels, settings.size, iterations=_ITERATIONS, seed=seed
            )
            quantizer.start(start.codebooks.unsqueeze(0), min(settings.batch_size, len(vectors)))

            def compute_loss(row_B: Int[Tensor, " B"]) -> Float[Tensor, ""]:
                x_BX = autoencoder.scaled(vectors[row_B])
                z_B1D, own = quantizer(autoencoder.encoder(x_BX).unsqueeze(1))
                loss: Tensor = (x_BX - autoencoder.decoder(z_B1D.squeeze(1))).square().mean() + own
                return loss

            both = nn.ModuleList([autoencoder, quantizer])
            train(both, len(vectors), settings, compute_loss, seed, advance)
        self.residual = ResidualCodebooks(quantizer.codebooks.detach()[0].clone())
        return self.residual.assign(self.latent(vectors), weights, capacity)

    def count_steps(self, items: int) -> int:
        """Return the number of training steps."""
        return count_batches(items, self.settings)

    @property
    def width(self) -> int:
        """Width X of the item vectors."""
        return len(self.autoencoder.mean_X)

    def latent(self, vectors: Float[Tensor, "N X"]) -> Float[Tensor, "N D"]:
        """Return the output of the encoder."""
        return self.autoencoder.encode(vectors)

    def expand(self, latent: Float[Tensor, "N D"]) -> Float[Tensor, "N X"]:
        """Return the output of the decoder."""
        return self.autoencoder.decode(latent)

    def tensors(self) -> dict[str, Tensor]:
        """Return the codebooks and the autoencoder."""
        return {**super().tensors(), **self.autoencoder.state_dict()}

    def load(self, tensors: Mapping[str, Tensor]) -> Self:
        """Take over the codebooks and the autoencoder."""
        own = dict(tensors)
        self.residual = ResidualCodebooks(own.pop("codebooks"))
        self.autoencoder = Autoencoder(len(own["mean_X"]), self.settings).eval()
        self.autoencoder.load_state_dict(own)
        return self
