"""DRQ: an autoencoder first, residual k-means on its frozen latent vectors second.

Reference: Wang et al., "Decoupled Residual Quantization for robust Semantic IDs" (arXiv 2606.01844).

Idea: geometry and codes are learned apart, so that no code starves because the encoder moves away from it.

    stage 1   loss = |x - D(E(x))|^2 + lambda L_con                                     mean over items and numbers
              L_con = -log [ exp(s(i, i+)) / sum_j exp(s(i, j)) ],   s = cosine(z_i, z_j+) / temperature
    stage 2   Z = E(X);   for l = 1 .. L:  C^l, k^l = k-means(R^l, K);   R^(l+1) = R^l - C^l[k^l]
              z^ = sum_l C^l[k^l],    x^ = D(z^),    Z = z^ + R^(L+1)

i+ is an item that belongs to item i, such as one that the same user took next (``item_events.py``). lambda = 0 is the
plain autoencoder, bit for bit.

Departures, or choices where the paper is silent:
    - vectors are centered and scaled first (``autoencoder.py``);
    - the negatives of a pair are the second items of the other pairs of the batch, without items equal to the pair's;
    - no KL term, though the method is called VAE: none is reported;
    - ``whiten`` rotates and scales Z to unit covariance before stage 2. It is off by default.

Shapes: N items, P pairs of a batch, L levels, K codes of a level, D width of a latent vector, X width of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Self

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from longrec.errors import DataError
from longrec.semantic_ids.autoencoder import Autoencoder, AutoencoderSettings, count_batches, fixed_seed, train
from longrec.semantic_ids.capacity import Capacity
from longrec.semantic_ids.kmeans import require_vectors
from longrec.semantic_ids.residual import FittedCodes, ResidualCodebooks, fit_residual_kmeans
from longrec.semantic_ids.rq_kmeans import RQKMeansSettings
from longrec.semantic_ids.tokenizer import Tokenizer


class DRQSettings(AutoencoderSettings, RQKMeansSettings):
    """Settings of ``drq``."""

    contrast: float = Field(
        0.0, ge=0, description="weight lambda of the contrastive term over pairs of items; 0.3 in the paper"
    )
    temperature: float = Field(0.07, gt=0, description="temperature of the contrastive term")
    pair_batch: int = Field(512, ge=2, description="pairs of a training step")
    whiten: bool = Field(False, description="scale latent vectors to unit covariance before the k-means")


class DRQ(Tokenizer):
    """Autoencoder, then residual k-means on its latent vectors."""

    name = "drq"
    Settings = DRQSettings
    reads_pairs = True
    settings: DRQSettings
    autoencoder: Autoencoder
    whitening: tuple[Tensor, Tensor, Tensor] | None = None
    """Mean ``[D]``, matrix ``[D, D]`` and its inverse."""

    def fit(
        self,
        vectors: Float[Tensor, "N X"],
        *,
        seed: int = 0,
        weights: Float[Tensor, " N"] | None = None,
        capacity: Capacity | None = None,
        pairs: Int[Tensor, "P 2"] | None = None,
        advance: Callable[[], None] | None = None,
    ) -> FittedCodes:
        """Train the autoencoder, then fit the codebooks.

        Raises:
            DataError: a contrastive term without pairs, or fewer vectors than codes.
        """
        settings = self.settings
        if settings.contrast and (pairs is None or not len(pairs)):
            raise DataError(
                "drq",
                f"contrast {settings.contrast:g} without pairs of items",
                "pairs of items that belong together, such as those of an event log",
                "set events, or contrast: 0",
            )
        require_vectors(len(vectors), settings.size, "drq")
        with fixed_seed(seed):
            self.autoencoder = autoencoder = Autoencoder(vectors.shape[1], settings)
        autoencoder.measure(vectors)
        random = torch.Generator().manual_seed(seed)

        def compute_loss(row_B: Int[Tensor, " B"]) -> Float[Tensor, ""]:
            x_BX = autoencoder.scaled(vectors[row_B])
            loss: Tensor = (x_BX - autoencoder.decoder(autoencoder.encoder(x_BX))).square().mean()
            if settings.contrast and pairs is not None:
                pair_P2 = pairs[torch.randint(len(pairs), (settings.pair_batch,), generator=random)]
                z_PD, positive_PD = (autoencoder.encoder(autoencoder.scaled(vectors[row])) for row in pair_P2.unbind(1))
                loss = loss + settings.contrast * compute_contrast(z_PD, positive_PD, pair_P2, settings.temperature)
            return loss

        train(autoencoder, len(vectors), settings, compute_loss, seed, advance)
        z_ND = autoencoder.encode(vectors)
        self.whitening = compute_whitening(z_ND) if settings.whiten else None
        self.residual, fitted = fit_residual_kmeans(
            self._whiten(z_ND),
            settings.levels,
            settings.size,
            iterations=settings.iterations,
            tolerance=settings.tolerance,
            vectors_per_code=settings.vectors_per_code,
            seed=seed,
            weights=weights,
            capacity=capacity,
            advance=advance,
        )
        return fitted

    def count_steps(self, items: int) -> int:
        """Return the number of training steps, and of iterations of k-means."""
        return count_batches(items, self.settings) + self.settings.levels * self.settings.iterations

    @property
    def width(self) -> int:
        """Width X of the item vectors."""
        return len(self.autoencoder.mean_X)

    def latent(self, vectors: Float[Tensor, "N X"]) -> Float[Tensor, "N D"]:
        """Return the output of the encoder, whitened if the settings say so."""
        return self._whiten(self.autoencoder.encode(vectors))

    def expand(self, latent: Float[Tensor, "N D"]) -> Float[Tensor, "N X"]:
        """Return the output of the decoder."""
        if self.whitening is not None:
            mean_D, _, inverse_DD = self.whitening
            latent = latent @ inverse_DD + mean_D
        return self.autoencoder.decode(latent)

    def _whiten(self, z_ND: Tensor) -> Tensor:
        if self.whitening is None:
            return z_ND
        mean_D, matrix_DD, _ = self.whitening
        return (z_ND - mean_D) @ matrix_DD

    def tensors(self) -> dict[str, Tensor]:
        """Return the codebooks, the autoencoder and the whitening."""
        whitening = {} if self.whitening is None else dict(zip(_WHITENING, self.whitening))
        return {**super().tensors(), **self.autoencoder.state_dict(), **whitening}

    def load(self, tensors: Mapping[str, Tensor]) -> Self:
        """Take over the codebooks, the autoencoder and the whitening."""
        own = dict(tensors)
        self.residual = ResidualCodebooks(own.pop("codebooks"))
        if self.settings.whiten:
            mean_D, matrix_DD, inverse_DD = (own.pop(name) for name in _WHITENING)
            self.whitening = mean_D, matrix_DD, inverse_DD
        self.autoencoder = Autoencoder(len(own["mean_X"]), self.settings).eval()
        self.autoencoder.load_state_dict(own)
        return self


_WHITENING = ("whitening.mean", "whitening.matrix", "whitening.inverse")


def compute_contrast(
    z_PD: Float[Tensor, "P D"], positive_PD: Float[Tensor, "P D"], pair_P2: Int[Tensor, "P 2"], temperature: float
) -> Float[Tensor, ""]:
    """Return the mean over pairs of the cross entropy of the second item among those of the batch (InfoNCE).

    Second items that are equal to the first or the second item of a pair are left out of its negatives.
    """
    score_PP = F.normalize(z_PD, dim=1) @ F.normalize(positive_PD, dim=1).t() / temperature
    first_P1, second_P1 = pair_P2[:, :1], pair_P2[:, 1:]
    equal_PP = (second_P1.t() == second_P1) | (second_P1.t() == first_P1)
    equal_PP.fill_diagonal_(False)
    score_PP = score_PP.masked_fill(equal_PP, -torch.inf)
    return F.cross_entropy(score_PP, torch.arange(len(score_PP)))


def compute_whitening(z_ND: Float[Tensor, "N D"]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean ``[D]``, the matrix ``[D, D]`` after which the covariance is the identity, and its inverse.

    Directions with less than a millionth of the largest variance are scaled as if they had that much.
    """
    exact_ND = z_ND.double()
    mean_D = exact_ND.mean(0)
    covariance_DD = torch.cov((exact_ND - mean_D).t(), correction=0)
    value_D, vector_DD = torch.linalg.eigh(covariance_DD.reshape(z_ND.shape[1], -1))
    root_D = value_D.clamp(min=1e-6 * float(value_D.max()) + 1e-30).sqrt()
    return mean_D.float(), (vector_DD / root_D).float(), (vector_DD * root_D).t().contiguous().float()
