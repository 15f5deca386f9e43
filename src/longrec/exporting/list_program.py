"""Program of a re-ranker: one request and its whole list -> probabilities over the list, and the initial ranks.

The initial order is part of the program, so that a served list has the positions of training. Torch and onnxruntime
round differently, and two items whose logits are equal up to rounding may change places. The check of the program
therefore takes the ranks that the program used, verifies that the logits of the base allow them, and compares the
probabilities for these ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longrec.errors import BundleError
from longrec.exporting.inputs import OUTPUT, RANKS_OUTPUT
from longrec.exporting.program import ProgramModule, build_shared_batch
from longrec.exporting.runtime import Program
from longrec.models.core.kinds import Reranker

_ROUNDING = 1e-5
"""Largest difference of logits, as a share of the largest one (or of 1), that rounding explains."""


class ListProgram(ProgramModule):
    """The probabilities of a list, ``[C]``, and the ranks of its items in the initial list, int32 ``[C]``."""

    model: Reranker
    outputs = (OUTPUT, RANKS_OUTPUT)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities and ranks."""
        scores = self.model.score_lists(build_shared_batch(self.inputs, tensors))
        return scores.probability, scores.rank.int()

    def compute_expected(self, tensors: Mapping[str, NDArray[Any]], program: Program, where: str) -> list[NDArray[Any]]:
        """Return the probabilities by torch for the ranks of the exported program.

        Raises:
            BundleError: if the logits of the base do not allow these ranks.
        """
        rank_C = np.asarray(program.run(tensors, RANKS_OUTPUT)).astype(np.int64)
        batch = build_shared_batch(self.inputs, [torch.from_numpy(tensors[entry.name]) for entry in self.inputs])
        with torch.no_grad():
            scores = self.model.score_lists(batch, torch.from_numpy(rank_C))
        if not is_order(rank_C, scores.initial.numpy()):
            raise BundleError(
                where,
                "the exported program orders the initial list otherwise than the base",
                "the order of its logits",
                "look for an operation that behaves differently in ONNX",
            )
        return [scores.probability.numpy()]


def is_order(rank_C: NDArray[np.int64], logit_C: NDArray[np.float32]) -> bool:
    """Return True if ranks are those of logits, highest first, up to rounding. Equal ones may share a rank.

    >>> is_order(np.array([1, 0, 1]), np.array([0.5, 0.7, 0.5])), is_order(np.array([0, 1]), np.array([0.5, 0.7]))
    (True, False)
    """
    order = np.lexsort((logit_C, rank_C))  # of one rank the lowest logit first, the least favorable order
    ranks, logits = rank_C[order], logit_C[order]
    if not np.array_equal(np.searchsorted(ranks, ranks), ranks):
        return False
    slack = _ROUNDING * max(1.0, float(np.abs(logits).max(initial=0.0)))
    return bool((np.minimum.accumulate(logits)[:-1] >= logits[1:] - slack).all())


def select_apart(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the indices of items, the first one among them, whose logits differ by more than rounding explains.

    >>> select_apart(np.array([0.5, 0.5, 0.7, 0.500001, 0.6], np.float32)).tolist()
    [0, 2, 4]
    """
    slack = 10 * _ROUNDING * max(1.0, float(np.abs(logits).max(initial=0.0)))
    kept: list[int] = []
    for index, logit in enumerate(logits.tolist()):
        if all(abs(logit - logits[other]) > slack for other in kept):
            kept.append(index)
    return np.array(kept, np.int64)
