"""Autoencoder of item vectors, shared by the tokenizers that learn one.

    z = E((x - m) / s),     x^ = s D(z) + m

m is the mean of the fitted vectors and s the root of their mean variance, so that the learning rate does not depend on
the scale of the vectors.

Shapes: N items, X width of an item vector, D width of a latent vector, B items of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from longrec.nn.mlp import MLP
from longrec.semantic_ids.tokenizer import TokenizerSettings

_AT_ONCE = 1 << 14


class AutoencoderSettings(TokenizerSettings):
    """Settings of a tokenizer with an autoencoder."""

    width: int = Field(64, ge=1, description="width of a latent vector")
    hidden: tuple[int, ...] = Field(
        (256,), description="units of the hidden layers of the encoder; those of the decoder are the same in reverse"
    )
    activation: Literal["relu", "gelu", "swish", "tanh"] = Field("relu", description="activation of the hidden layers")
    epochs: int = Field(50, ge=1, description="passes over the items")
    batch_size: int = Field(1_024, ge=2, description="items of a training step")
    lr: float = Field(1e-3, gt=0, description="learning rate of AdamW")
    weight_decay: float = Field(1e-4, ge=0, description="weight decay of AdamW")


class Autoencoder(nn.Module):
    """Encoder and decoder of item vectors.

    Args:
        inputs: width of an item vector.
    """

    mean_X: Tensor
    scale: Tensor

    def __init__(self, inputs: int, settings: AutoencoderSettings) -> None:
        super().__init__()
        self.encoder = MLP(inputs, settings.hidden, settings.activation, outputs=settings.width)
        self.decoder = MLP(settings.width, settings.hidden[::-1], settings.activation, outputs=inputs)
        self.register_buffer("mean_X", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(()))

    def measure(self, vectors: Float[Tensor, "N X"]) -> None:
        """Set the mean and the scale of the vectors."""
        variance, mean = torch.var_mean(vectors, 0, correction=0)
        self.mean_X.copy_(mean)
        self.scale.copy_(variance.mean().sqrt().clamp(min=1e-12))

    def scaled(self, x_NX: Float[Tensor, "N X"]) -> Float[Tensor, "N X"]:
        """Return vectors with mean 0 and mean variance 1."""
        return (x_NX - self.mean_X) / self.scale

    @torch.no_grad()
    def encode(self, x_NX: Float[Tensor, "N X"]) -> Float[Tensor, "N D"]:
        """Return the latent vectors of item vectors."""
        return torch.cat([self.encoder(self.scaled(chunk)) for chunk in torch.split(x_NX, _AT_ONCE)])

    @torch.no_grad()
    def decode(self, z_ND: Float[Tensor, "N D"]) -> Float[Tensor, "N X"]:
        """Return the item vectors of latent vectors."""
        return torch.cat([self.decoder(chunk) * self.scale + self.mean_X for chunk in torch.split(z_ND, _AT_ONCE)])


@contextmanager
def fixed_seed(seed: int) -> Iterator[None]:
    """Let torch draw from a seed, and restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def count_batches(items: int, settings: AutoencoderSettings) -> int:
    """Return the number of training steps."""
    return settings.epochs * -(-items // settings.batch_size)


def train(
    module: nn.Module,
    items: int,
    settings: AutoencoderSettings,
    compute_loss: Callable[[Int[Tensor, " B"]], Float[Tensor, ""]],
    seed: int,
    advance: Callable[[], None] | None = None,
) -> None:
    """Train a module on batches of items, in a new random order in each epoch. It ends in evaluation mode.

    Args:
        compute_loss: function from the rows of a batch to its loss.
        seed: seed of the order.
        advance: called after each step.
    """
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(module.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    module.train()
    for _ in range(settings.epochs):
        for row_B in torch.split(torch.randperm(items, generator=random), settings.batch_size):
            optimizer.zero_grad(set_to_none=True)
            compute_loss(row_B).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if advance is not None:
                advance()
    module.eval()
