from __future__ import annotations

import itertools

import pytest
import torch

from longrec.errors import ConfigError
from longrec.features.fields import Field, Fields
from longrec.models.core.registry import build
from longrec.testing.batches import FIELDS, ragged
from longrec.testing.case import Case


@pytest.mark.parametrize("name", ["fm", "deepfm"])
def test_equation_1_by_brute_force(name: str) -> None:
    model, batch = Case(name).lively(), ragged(9)
    with torch.no_grad():
        if name == "deepfm":
            model.deep.last.weight.zero_()
        v = list(model.embeddings(batch).features.values())
        w = list(model.first_order(batch).features.values())
        expected = model.bias + sum(x.squeeze(1) for x in w)
        expected = expected + sum((a * b).sum(1) for a, b in itertools.combinations(v, 2))
        torch.testing.assert_close(model(batch), expected, rtol=1e-4, atol=1e-4)


def test_the_gradient_of_a_vector_is_the_sum_of_the_others_times_its_value() -> None:
    fields = Fields((Field("user", "id", 5), Field("item", "id", 5), Field("price", "numeric", 0)), {})
    torch.manual_seed(0)
    model = build({"name": "fm", "embedding_dim": 4, "init_std": 1.0}, fields)
    batch = ragged(1, fields=fields)
    model(batch).sum().backward()
    v = model.embeddings(batch).features
    x = batch.features["price"]
    grad = model.embeddings.table("price").grad
    torch.testing.assert_close(grad, x * (v["user"] + v["item"]))
    row = int(batch.features["user"])
    grad = model.embeddings.table("user").grad.to_dense()[row]
    torch.testing.assert_close(grad, (v["item"] + v["price"])[0])
    assert model.first_order.table("price").grad.item() == x.item()


@pytest.mark.parametrize("name", ["fm", "deepfm"])
def test_fields_of_different_widths_are_refused(name: str) -> None:
    fields = Fields((Field("user", "id", 5, dim=8), Field("item", "id", 5)), {})
    with pytest.raises(
        ConfigError, match=rf"{name} multiplies fields .* one dim for all features, got user 8, item 16"
    ):
        build({"name": name}, fields)
    assert build({"name": name, "embedding_dim": 8}, fields).embeddings.widths == {"user": 8, "item": 8}


def test_the_order_of_fields_does_not_matter() -> None:
    model = Case("fm").lively()
    turned = build({"name": "fm"}, Fields(FIELDS.features[::-1], FIELDS.histories)).eval()
    turned.load_state_dict(model.state_dict())
    torch.testing.assert_close(turned(ragged(9)), model(ragged(9)), rtol=1e-4, atol=1e-4)
