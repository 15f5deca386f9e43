"""The highest values of each row, of equal ones the first: an operator of its own in a traced graph.

``torch.topk`` leaves the order of equal values open, and a stable sort of whole rows costs much more than a search.
ONNX's TopK returns the first of equal values, so a program has it instead (``models/core/translations.py``).
"""

from __future__ import annotations

import torch
from torch import Tensor


def _sort(s_BT: Tensor, k: int) -> Tensor:
    return s_BT.sort(dim=1, descending=True, stable=True)[1][:, :k].contiguous()


def _shape(s_BT: Tensor, k: int) -> Tensor:
    return s_BT.new_empty((s_BT.shape[0], k), dtype=torch.int64)


find_first_top = torch.library.custom_op(
    "longrec::first_top", _sort, mutates_args=(), schema="(Tensor values, SymInt count) -> Tensor"
)
"""Function of values ``[B, T]`` and k that returns the positions ``[B, k]`` of the highest, in descending order."""
find_first_top.register_fake(_shape)
OPERATOR = torch.ops.longrec.first_top.default
"""The operator in a traced graph."""
