from __future__ import annotations

import torch

from longrec.models.core.registry import build
from longrec.models.deepfm import DeepFM
from longrec.testing.batches import ragged
from longrec.testing.case import Case


def test_the_deep_network_adds_its_logit_to_that_of_fm() -> None:
    model, batch = Case("deepfm").lively(), ragged(9)
    assert isinstance(model, DeepFM)
    fm = build({"name": "fm"}, model.fields).eval()
    same = {name: value for name, value in model.state_dict().items() if not name.startswith("deep.")}
    fm.load_state_dict(same)  # the very names: both parts of DeepFM read one set of tables
    v = torch.cat(list(model.embeddings(batch).features.values()), 1)
    torch.testing.assert_close(model(batch), fm(batch) + model.deep(v).squeeze(1), rtol=1e-4, atol=1e-4)


def test_fm_and_network_move_the_same_vectors() -> None:
    model, batch = Case("deepfm").lively(), ragged(9)
    assert isinstance(model, DeepFM)
    model(batch).sum().backward()
    both = model.embeddings.table("item").grad.to_dense()
    model.zero_grad()
    with torch.no_grad():
        model.deep.last.weight.zero_()
    model(batch).sum().backward()
    assert not torch.allclose(both, model.embeddings.table("item").grad.to_dense())


def test_one_bias_in_all() -> None:
    model = Case("deepfm").build()
    assert isinstance(model, DeepFM)
    assert model.deep.last.bias is None


def test_the_gradient_of_a_first_order_weight_is_that_of_the_logit() -> None:
    model, batch = Case("deepfm").build(), ragged(6)
    assert isinstance(model, DeepFM)
    logit = model(batch)
    logit.retain_grad()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, batch.label)
    loss.backward()
    expected = torch.zeros(40).index_add(0, batch.features["user"].long(), logit.grad)
    actual = model.first_order.table("user").grad.to_dense().squeeze(1)
    torch.testing.assert_close(actual, expected)
