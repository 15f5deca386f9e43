from __future__ import annotations

import torch

from longrec.models.dcn import DCN
from longrec.testing.batches import ragged
from longrec.testing.case import Case


def test_equation_5() -> None:
    model, batch = Case("dcn").lively(), ragged(9)
    assert isinstance(model, DCN)
    x0 = torch.cat(list(model.embeddings(batch).features.values()), 1)
    x = x0
    for w, b in zip(model.cross.weight, model.cross.bias):
        x = torch.einsum("bi,bj,j->bi", x0, x, w) + b + x
    w_cross, w_deep = model.last.weight[0].split([x.shape[1], model.deep.outputs])
    expected = x @ w_cross + model.deep(x0) @ w_deep + model.last.bias
    torch.testing.assert_close(model(batch), expected, rtol=1e-4, atol=1e-4)
