"""Dynamic gate of AGE: it estimates the click probability of an item over all users, from its embeddings alone.

    f_dgu(h_item) = MLP(sg(h_item))                                                 (eq. 15)
    gate = 1 if f(h) > f_dgu(h_item) else 0                                         (eq. 15)
    L = CE(f_dgu(sg(h_item)), y)                                                    (eq. 17)

sg stops the gradient: the gate reads the embedding tables of the ranker and never changes them.

Shapes: C candidates, D width of the embeddings of an item.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from longrec.errors import DataError
from longrec.exploration.click_function import find_column
from longrec.features.batch import Batch
from longrec.models.core.kinds import Ranker
from longrec.models.core.losses import bce_loss
from longrec.models.core.multi_task import LABEL, masked_bce_loss
from longrec.nn.mlp import MLP


class Gate(nn.Module):
    """MLP of two layers over the embeddings of an item.

    Args:
        inputs: D.
        hidden: units of the first layer.
    """

    def __init__(self, inputs: int, hidden: int = 64) -> None:
        super().__init__()
        self.network = MLP(inputs, (hidden,), outputs=1)

    def forward(self, h_CD: Float[Tensor, "C D"]) -> Float[Tensor, " C"]:
        """Return the logit of the item of every candidate. No gradient reaches the embeddings."""
        logit_C1: Tensor = self.network(h_CD.detach())
        return logit_C1.squeeze(1)

    def loss(self, model: Ranker, batch: Batch, task: str = LABEL) -> Float[Tensor, ""]:
        """Return the mean binary cross entropy of a labeled batch."""
        logit_C = self(read_item(model, batch))
        return bce_loss(logit_C, batch) if task == LABEL else masked_bce_loss(logit_C, batch, task)


def read_item(model: Ranker, batch: Batch) -> Float[Tensor, "C D"]:
    """Return all embeddings of the item of every candidate, without a gradient."""
    with torch.no_grad():
        return torch.cat(list(model.embed(batch).candidate.values()), 1)


def fit_gate(
    model: Ranker, batches: Iterable[Batch], *, task: str = LABEL, hidden: int = 64, lr: float = 1e-3, seed: int = 0
) -> Gate:
    """Return a gate that is fitted to labeled batches of a trained ranker, by one pass of Adam.

    Args:
        task: the explored task.

    Raises:
        DataError: if there is no batch.
        ConfigError: if the model has no such task.
    """
    served = model.served()
    assert isinstance(served, Ranker)
    find_column(served, task)
    gate: Gate | None = None
    for batch in batches:
        if gate is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                gate = Gate(read_item(served, batch).shape[1], hidden)
            gate.to(next(served.parameters()).device)
            optimizer = torch.optim.Adam(gate.parameters(), lr)
        optimizer.zero_grad(set_to_none=True)
        gate.loss(served, batch, task).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    if gate is None:
        raise DataError("gate", "no batch to fit it to", "labeled batches of the training window")
    return gate.eval()
