from __future__ import annotations

import torch

from longrec.features.batch import Batch
from longrec.features.fields import Field, Fields
from longrec.models.core.registry import build
from longrec.models.lr import LR
from longrec.testing.batches import FIELDS, ragged


def test_the_logit_is_the_bias_and_one_weight_a_value() -> None:
    fields = Fields((Field("user", "id", 5), Field("price", "numeric", 0)), {})
    model = build({"name": "lr"}, fields)
    assert isinstance(model, LR)
    with torch.no_grad():
        model.bias.fill_(0.5)
        model.first_order.table("user").copy_(torch.arange(5.0).unsqueeze(1))
        model.first_order.table("price").fill_(-2.0)
    batch = Batch.single(2, {"user": torch.tensor([3, 1], dtype=torch.int32), "price": torch.tensor([0.25, 1.0])})
    assert model(batch).tolist() == [0.5 + 3 - 0.5, 0.5 + 1 - 2]


def test_it_starts_at_zero() -> None:
    assert build({"name": "lr"}, FIELDS)(ragged(3)).tolist() == [0.0, 0.0, 0.0]
