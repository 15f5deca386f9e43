"""The logit of every candidate as a function of its embeddings and of masks: what explorers evaluate several times.

Shapes: C candidates, D width of the perturbed embeddings, N masks, Q mask entries (1 or C), U masked units, I inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from longrec.errors import ConfigError
from longrec.exploration.masks import Masks
from longrec.exploration.vectorize import vectorize
from longrec.features.batch import Batch
from longrec.models.core.kinds import Ranker
from longrec.models.core.multi_task import LABEL
from longrec.models.core.top import TopRanker
from longrec.nn import kernels
from longrec.nn.embedding import Embedded

Scope = Literal["item", "all"]


class ClickFunction:
    """The logit of one task for a batch, with everything looked up once.

    The perturbed embeddings are those of id features, whose rows a training step on the candidate would move: of the
    item, or with ``all`` of user and context too. Numbers have no row of their own. Histories, and further tables such
    as first-order weights, stay as they are.

    Args:
        masks: the masked layers of the model.
        column: index of the task among the logits.

    Attributes:
        vectors: ``[C, D]``, the embeddings that may be perturbed.
    """

    def __init__(self, model: Ranker, batch: Batch, masks: Masks, column: int, scope: Scope = "item") -> None:
        self.model, self.batch, self.masks, self.column = model, batch, masks, column
        self.embedded = model.embed(batch)
        ids = {field.name for field in model.fields.features if field.rows}
        perturbed = {name: x_CD for name, x_CD in self.embedded.candidate.items() if name in ids}
        if scope == "all":
            perturbed |= {n: batch.layout.repeat(x_RD) for n, x_RD in self.embedded.request.items() if n in ids}
        self._widths = {name: x_CD.shape[1] for name, x_CD in perturbed.items()}
        self.vectors = torch.cat(list(perturbed.values()), 1) if perturbed else torch.empty(batch.size, 0)

    def logit(self, vectors_CD: Float[Tensor, "C D"], mask_QU: Tensor | None = None) -> Float[Tensor, " C"]:
        """Return the logit of every candidate."""
        return self._run(lambda: self.model.interact(self.batch, self._replace(vectors_CD)), mask_QU)

    def masked(self, masks_NQU: Float[Tensor, "N Q U"]) -> Float[Tensor, "N C"]:
        """Return the probability of every candidate under every mask. What no mask changes runs once."""
        model = self.model
        if isinstance(model, TopRanker) and type(model).interact is TopRanker.interact:
            x_CI = torch.cat(model.read(self.batch, self._replace(self.vectors)), 1)
            represent = partial(model.top.hidden, x_CI)
        else:
            represent = partial(model.interact, self.batch, self._replace(self.vectors))

        def run(mask_QU: Tensor) -> Tensor:
            return torch.sigmoid(self._run(represent, mask_QU))

        if kernels.is_traced():
            return vectorize(run, masks_NQU)
        return torch.stack([run(mask_QU) for mask_QU in masks_NQU])

    def gradient(self, vectors_CD: Float[Tensor, "C D"]) -> Float[Tensor, "C D"]:
        """Return the gradient of the logit of each candidate with respect to its own embeddings.

        Candidates are independent of each other in evaluation, so that one pass over the sum of the logits gives all.
        """
        with torch.enable_grad():
            v_CD = vectors_CD.detach().requires_grad_()
            (g_CD,) = torch.autograd.grad(self.logit(v_CD).sum(), v_CD, allow_unused=True)
        return torch.zeros_like(vectors_CD) if g_CD is None else g_CD

    def _run(self, represent: Callable[[], Tensor], mask_QU: Tensor | None) -> Tensor:
        with self.masks.apply(mask_QU):
            h_CH = represent()
            if mask_QU is not None and self.masks.at_head:
                h_CH = h_CH * mask_QU
            return self.model.head(h_CH)[:, self.column]

    def _replace(self, vectors_CD: Tensor) -> Embedded:
        """Return the looked up vectors with other ones for the candidates."""
        split = torch.split(vectors_CD, list(self._widths.values()), 1) if self._widths else ()
        candidate = {**self.embedded.candidate, **dict(zip(self._widths, split))}
        return replace(self.embedded, candidate=candidate, states=dict(self.embedded.states))


def find_column(model: Ranker, task: str) -> int:
    """Return the index of a task among the logits of a ranker.

    Raises:
        ConfigError: if the model has no such task, or no ``interact`` and ``head``.
    """
    name, tasks = type(model).__name__, (LABEL, *model.targets)
    if not model.interaction_width:
        raise ConfigError("explore", [f"model: {name} defines no interact and head; take a ranker that does"])
    if task not in tasks:
        raise ConfigError("explore", [f"task: {name} learns no {task!r}; tasks: {', '.join(tasks)}"])
    return tasks.index(task)
