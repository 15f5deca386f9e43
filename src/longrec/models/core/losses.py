"""Losses of binary labels over the rows of a batch, or over its lists.

Shapes: B rows.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from longrec.features.batch import Batch
from longrec.nn import kernels


def bce_loss(logit_B: Float[Tensor, " B"], batch: Batch) -> Float[Tensor, ""]:
    """Return the mean binary cross entropy of the rows in the loss mask, by ``batch.weight`` if set, in float32.

    Raises:
        ValueError: if the batch has no labels.
    """
    if batch.label is None:
        raise ValueError("the batch carries no label")
    label_B, weight_B = batch.label, batch.weight
    if batch.loss_mask is not None and kernels.choose(logit_B) == "cuda":
        # The number of rows in the mask is not known before the device is done, so others get the weight 0.
        label_B = label_B.masked_fill(~batch.loss_mask, 0.0)
        weight_B = batch.loss_mask.to(label_B.dtype) if weight_B is None else weight_B * batch.loss_mask
    elif batch.loss_mask is not None:
        logit_B, label_B = logit_B[batch.loss_mask], label_B[batch.loss_mask]
        weight_B = None if weight_B is None else weight_B[batch.loss_mask]
    if weight_B is None and len(label_B):
        return F.binary_cross_entropy_with_logits(logit_B.float(), label_B)
    return _mean(F.binary_cross_entropy_with_logits(logit_B.float(), label_B, reduction="none"), weight_B)


def compute_mean_loss(loss_B: Float[Tensor, " B"], batch: Batch, labeled_B: Bool[Tensor, " B"]) -> Float[Tensor, ""]:
    """Return the mean loss of the labeled rows in the loss mask, by ``batch.weight`` if set. 0 if there are none.

    Args:
        loss_B: the loss of each row, finite for unlabeled rows too.
    """
    if batch.loss_mask is not None:
        labeled_B = labeled_B & batch.loss_mask
    return _mean(loss_B, labeled_B if batch.weight is None else batch.weight.masked_fill(~labeled_B, 0.0))


def compute_list_loss(log_p_B: Float[Tensor, " B"], batch: Batch) -> Float[Tensor, ""]:
    """Return the mean of - log P over the positive rows in the loss mask, by ``batch.weight`` if set. 0 if none is.

    Args:
        log_p_B: logarithm of the probability of each row within its list.

    Raises:
        ValueError: if the batch has no labels.
    """
    if batch.label is None:
        raise ValueError("the batch carries no label")
    weight_B = batch.label if batch.weight is None else batch.label * batch.weight
    return _mean(-log_p_B, weight_B if batch.loss_mask is None else weight_B * batch.loss_mask)


def _mean(loss_B: Tensor, weight_B: Tensor | None) -> Tensor:
    """Return the weighted mean. It is 0, with its gradients, if all weights are."""
    if weight_B is None:
        return loss_B.sum() / max(len(loss_B), 1)
    total = weight_B.sum()
    return (loss_B * weight_B).sum() / total.masked_fill(total == 0, 1)
