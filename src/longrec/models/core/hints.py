"""Distances of a student's logits from those of a teacher.

Shapes: C candidates.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Hint = Literal["logits", "probabilities", "distillation"]


def compute_hint(
    hint: Hint, student_C: Float[Tensor, " C"], teacher_C: Float[Tensor, " C"], temperature: float = 1.0
) -> Float[Tensor, " C"]:
    """Return the distance of each student logit from that of the teacher, in float32. 0 for equal logits.

    ``logits`` is the squared difference of the logits, ``probabilities`` that of their sigmoids. ``distillation`` is
    the Kullback-Leibler divergence from the teacher at a temperature T, times T^2, so that its gradient keeps its size.

    Args:
        temperature: T, above 0.

    >>> compute_hint("logits", torch.tensor([2.0]), torch.tensor([-1.0]))
    tensor([9.])
    """
    student_C, teacher_C = student_C.float(), teacher_C.float()
    if hint == "logits":
        return (student_C - teacher_C).square()
    if hint == "probabilities":
        return (student_C.sigmoid() - teacher_C.sigmoid()).square()
    s_C, t_C = student_C / temperature, teacher_C / temperature
    p_C = torch.sigmoid(t_C)
    divergence_C = p_C * (F.logsigmoid(t_C) - F.logsigmoid(s_C)) + (1 - p_C) * (F.logsigmoid(-t_C) - F.logsigmoid(-s_C))
    return divergence_C * temperature**2
