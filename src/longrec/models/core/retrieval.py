"""Losses of retrievers: a target item against other items, for vectors of users and of items.

For a state s (the vector of a request, or of a position of its history), its target i, z_j = <s, v_j> and n
negatives j:

    ``softmax``        -z_i + log(exp(z_i) + sum_j exp(z_j - log q_j))       sampled softmax with the correction log q
    ``cross_entropy``  -z_i + log(sum_j exp(z_j)) over the whole catalog
    ``bce``            -log sigmoid(z_i) - log(1 - sigmoid(z_j)), one negative per target (SASRec)
    ``gbce``           -b log sigmoid(z_i) - sum_j log(1 - sigmoid(z_j)), with b < 1 (gSASRec)
    ``bpr_max``        -log sum_j w_j sigmoid(z_i - z_j) + penalty sum_j w_j z_j^2, with w = softmax(z) (GRU4Rec)

The targets of a batch share the negatives of ``softmax`` and of ``bpr_max``. In ``bce`` and ``gbce`` each target has
its own.

log q_j is the logarithm of the expected number of draws of item j (Bengio and Senecal, 2008; Yi et al., RecSys 2019).
Without it (``log_q: false``) an item that is drawn often is pushed down more often than others. The target is in its
own sum with certainty, so nothing is subtracted from its score (Khrylchenko et al., RecSys 2025). Where ``log_q`` and
``temperature`` enter, they enter the loss alone: a served score is the plain <s, v_j>.

Shared negatives are drawn uniformly, by popularity, from the batch (``in_batch``, Yi et al.), or from the batch
and uniformly (``mixed``, Yang et al., WWW 2020): see ``features/sampling.py``. An item that is the target of several is
one negative, counted as often as it occurs. In-batch negatives are targets, so none of them is an item that training
has not seen: one candidate that stands for those is always added to them.

gBCE (Petrov and Macdonald, RecSys 2023): with a = n / (I - 1), b = a (t (1 - 1 / a) + 1 / a). At t = 0 it is the sum of
BCEs, at t = 1 its scores are calibrated to probabilities.

A target among the negatives of another is an ordinary negative there. A negative that is the target itself is masked.
In a batch, the targets of one user come together. As in-batch negatives of each other they would be far more frequent
than log q says, so they are masked too (``mask_own_targets``).

Shapes: T targets, C candidates, n negatives of a batch, k of a target, I items of the catalog, D width.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from longrec.config import Strict
from longrec.features.batch import Targets
from longrec.features.sampling import Draw, Sampling
from longrec.models.core.rules import find_draw_faults
from longrec.nn.bpr_max import bpr_max
from longrec.nn.own_negatives import score_own
from longrec.nn.sampled_softmax import sampled_softmax

Loss = Literal["softmax", "cross_entropy", "bce", "gbce", "bpr_max"]


class RetrievalConfig(Strict):
    """Settings of the loss of a retriever."""

    rules = (find_draw_faults,)

    loss: Loss = Field("softmax", description="loss of the next item; see models/core/retrieval.py")
    negatives: int = Field(512, ge=1, description="negatives: of softmax and bpr_max per batch, of gbce per target")
    draw: Draw = Field(
        "uniform",
        description="distribution of the negatives: uniform, by popularity in training, the targets of the batch, or "
        "those and uniform ones",
    )
    mask_own_targets: bool = Field(True, description="a user's targets in a batch are no negatives of each other")
    log_q: bool = Field(True, description="correct softmax for how often a negative is drawn")
    gbce_t: float = Field(0.75, ge=0, le=1, description="calibration of gbce: 0 is the sum of bce")
    bpr_max_penalty: float = Field(1.0, ge=0, description="weight of the squared scores of negatives in bpr_max")
    temperature: float = Field(1.0, gt=0, description="divisor of the inner products")

    def sampling(self) -> Sampling:
        """Return the items that the loss reads."""
        if self.loss == "cross_entropy":
            return Sampling("all", 0)
        if self.loss == "bce":
            return Sampling("own", 1, self.draw, unseen=True)
        if self.loss == "gbce":
            return Sampling("own", self.negatives, self.draw)
        return Sampling("shared", self.negatives, self.draw, mask_own=self.mask_own_targets)


def retrieval_loss(
    state_TD: Float[Tensor, "T D"], item_CD: Float[Tensor, "C D"], targets: Targets, config: RetrievalConfig
) -> Float[Tensor, ""]:
    """Return the mean loss over the targets, by their weights if set, in float32.

    Args:
        state_TD: the state that predicts each target.
        item_CD: the vectors of the candidates of the batch, see ``Targets``.
    """
    state_TD, item_CD = state_TD.float() / config.temperature, item_CD.float()
    if config.loss == "cross_entropy":
        return _mean(F.cross_entropy(state_TD @ item_CD.t(), targets.item, reduction="none"), targets)
    positive_T = (state_TD * item_CD.index_select(0, targets.item)).sum(1)
    first = len(item_CD) - targets.negatives
    negative_nD, item_C = item_CD[first:], targets.rows.int()
    target_T = item_C.index_select(0, targets.item)
    if targets.own is not None:
        same_Tk = item_C.take(targets.own) == target_T.unsqueeze(1)
        negative_Tk = F.softplus(score_own(state_TD, negative_nD, targets.own - first)).masked_fill(same_Tk, 0)
        beta = _weigh_positive(targets, config) if config.loss == "gbce" else 1
        return _mean(beta * F.softplus(-positive_T) + negative_Tk.sum(1), targets)
    drawn_n = item_C[first:]
    if config.loss == "bpr_max":
        shared = (target_T, drawn_n, targets.draws, targets.hits)
        return _mean(bpr_max(state_TD, negative_nD, positive_T, *shared, penalty=config.bpr_max_penalty), targets)
    bias_n = None if targets.draws is None else targets.draws.log()
    if config.log_q and targets.log_q is not None:
        bias_n = -targets.log_q if bias_n is None else bias_n - targets.log_q
    loss_T = sampled_softmax(state_TD, negative_nD, positive_T, target_T, drawn_n, bias_n, targets.hits)
    return _mean(loss_T, targets)


def _weigh_positive(targets: Targets, config: RetrievalConfig) -> float:
    """Return b of gBCE."""
    assert targets.own is not None
    share = targets.own.shape[1] / max(targets.catalog - 1, 1)
    return share * (config.gbce_t * (1 - 1 / share) + 1 / share)


def _mean(loss_T: Tensor, targets: Targets) -> Tensor:
    if targets.weight is None:
        return loss_T.sum() / max(len(loss_T), 1)
    total = targets.weight.sum()
    return (loss_T * targets.weight).sum() / total.masked_fill(total == 0, 1)
