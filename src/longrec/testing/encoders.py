"""Checks of encoders: their vectors."""

from __future__ import annotations

from collections.abc import Callable

import torch

from longrec.models.core.kinds import Encoder
from longrec.testing.batches import ragged
from longrec.testing.case import Case
from longrec.testing.expect import expect, expect_close


def check_vectors_have_the_declared_width(case: Case) -> None:
    """``encode`` returns vectors of ``width`` numbers, in ``slots`` equal slots."""
    model = case.frozen()
    assert isinstance(model, Encoder)
    with torch.no_grad():
        vectors_BW = model.encode(ragged(9, fields=case.fields))
    expect(vectors_BW.shape[1] == model.width, f"vectors of {vectors_BW.shape[1]} numbers, width is {model.width}")
    expect(model.width % model.slots == 0, f"a width of {model.width} does not split into {model.slots} slots")


def check_codes_stand_for_the_vectors(case: Case) -> None:
    """The codewords that ``codes`` names, summed over the levels, are the vectors of ``encode``."""
    model, batch = case.frozen(), ragged(9, fields=case.fields)
    assert isinstance(model, Encoder)
    with torch.no_grad():
        codebooks_SMVD = model.codebooks()
        if codebooks_SMVD is None:
            return
        slots, levels = codebooks_SMVD.shape[:2]
        codes_BSM = model.codes(batch).long().reshape(-1, slots, levels)
        s_SM, m_SM = torch.meshgrid(torch.arange(slots), torch.arange(levels), indexing="ij")
        decoded_BW = codebooks_SMVD[s_SM, m_SM, codes_BSM].sum(2).flatten(1)
        expect_close(decoded_BW, model.encode(batch), "codebooks at codes are not the vectors of encode")


CHECKS: tuple[Callable[[Case], None], ...] = (
    check_vectors_have_the_declared_width,
    check_codes_stand_for_the_vectors,
)
"""Checks of encoders."""
