"""Base class of explorers: from a batch and noise to the plain probability and the exploration score.

Shapes: R requests, C candidates, N masks, Q mask entries (1 or C), U masked units, W numbers of noise per entry.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from longrec.exploration.click_function import ClickFunction, Scope, find_column
from longrec.exploration.masks import Masks
from longrec.exploration.noise import Noise, draw_noise
from longrec.exploration.settings import MaskSettings, TaskSettings
from longrec.features.batch import Batch
from longrec.models.core.kinds import Ranker
from longrec.nn import kernels

MASKS = "masks"
"""Name of the noise of Monte Carlo dropout."""


@dataclass(frozen=True)
class Scores:
    """Scores of the candidates of a batch.

    Attributes:
        probability: float32 ``[C]``, of the model itself: for billing, calibration and records.
        score: float32 ``[C]``, to rank by. It may leave [0, 1].
    """

    probability: Tensor
    score: Tensor


class Explorer(nn.Module):
    """A scorer over a trained ranker, which it never changes.

    Attributes:
        model: the ranker, of which the served one is used.
        noise: what ``forward`` reads besides the batch.
        column: index of the explored task among the logits of the model.
        differentiates: it computes gradients, so that its program needs those of the model.
    """

    noise: tuple[Noise, ...] = ()
    differentiates: ClassVar[bool] = False

    def __init__(self, model: Ranker, settings: TaskSettings) -> None:
        super().__init__()
        served = model.served()
        assert isinstance(served, Ranker)
        self.model, self.settings = served, settings
        self.column, self.masks = find_column(served, settings.task), Masks(served)

    @abstractmethod
    def explore(self, batch: Batch, noise: Mapping[str, Tensor]) -> Scores:
        """Return the scores of a batch, in evaluation mode and without gradients.

        Args:
            noise: by name, ``[1, W]`` for all candidates or ``[C, W]``.
        """

    def forward(self, batch: Batch, noise: Mapping[str, Tensor]) -> Scores:
        """Return the scores of a batch. No weight, statistic, gradient or mode of the model changes.

        Args:
            noise: of every entry of ``noise`` by name, ``[R, W]`` or ``[C, W]``.
        """
        layout = batch.layout
        own = {
            one.name: layout.repeat(noise[one.name])
            if one.per == "request" and layout.kind != "shared"
            else noise[one.name]
            for one in self.noise
        }
        batch = batch if self.model.reads_groups else batch.ungroup()
        with evaluate(self), torch.no_grad(), kernels.disable_autocast():
            return self.explore(batch, own)

    def score(self, batch: Batch, seed: int) -> Scores:
        """Return the scores of a batch with the noise of a seed. It may be called in any mode of autograd."""
        drawn = draw_noise(self.noise, seed, batch.layout.candidates, batch.layout.requests)
        device = next(self.model.parameters()).device
        with torch.inference_mode(False):
            return self(
                batch, {name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in drawn.items()}
            )

    def read(self, batch: Batch, scope: Scope = "item") -> ClickFunction:
        """Return the logit of the explored task as a function of the candidates' embeddings and of masks."""
        return ClickFunction(self.model, batch, self.masks, self.column, scope)

    def set_mask_noise(self, settings: MaskSettings, draws: int) -> None:
        """Declare the noise of ``draws`` masks."""
        self.draws = draws
        self.noise = (Noise(MASKS, settings.masks, draws * self.masks.width, "mask", settings.dropout),)

    def list_masks(self, noise: Mapping[str, Tensor]) -> Float[Tensor, "N Q U"]:
        """Return the masks among the noise, draw by draw."""
        return noise[MASKS].reshape(-1, self.draws, self.masks.width).transpose(0, 1)


@contextmanager
def evaluate(module: nn.Module) -> Iterator[None]:
    """Return the context in which a module is in evaluation mode. Each submodule then returns to its own mode."""
    training: Sequence[nn.Module] = [one for one in module.modules() if one.training]
    for one in training:
        one.training = False
    try:
        yield
    finally:
        for one in training:
            one.training = True
