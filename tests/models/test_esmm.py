from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from synthetic_runs import solves
from torch import Tensor
from torch.nn.functional import binary_cross_entropy

from longrec.data.synthetic import generate_dataset
from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.features.fields import Field, Fields
from longrec.models.core.registry import build
from longrec.models.esmm import ESMM
from longrec.testing.batches import FEW, ragged
from longrec.testing.case import Case
from longrec.training.sparse_optimizers import LazyAdam


def esmm(**settings: object) -> ESMM:
    model = Case("esmm", {"mlp": [12], **settings}).lively(FEW)
    assert isinstance(model, ESMM)
    return model


def test_a_conversion_is_a_click_times_a_conversion_after_it() -> None:
    model, batch = esmm(click="bought"), ragged(40, fields=FEW)
    ctr, cvr = model.factors(batch).sigmoid().unbind(1)
    torch.testing.assert_close(model(batch).sigmoid(), ctr * cvr)
    torch.testing.assert_close(model.logits(batch).sigmoid(), torch.stack([ctr * cvr, ctr], 1))
    assert (model.logits(batch)[:, 0] < model.logits(batch)[:, 1]).all(), "no conversion is likelier than its click"


def test_equation_3_over_all_impressions() -> None:
    model, batch = esmm(click="bought", click_weight=0.5, label_weight=2.0), ragged(6, fields=FEW)
    click = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, float("nan")])
    batch = replace(batch, label=torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 0.0]), task_labels={"bought": click})
    ctr, cvr = model.factors(batch).sigmoid().unbind(1)
    assert batch.label is not None
    expected = 2 * binary_cross_entropy(ctr * cvr, batch.label) + 0.5 * binary_cross_entropy(ctr[:5], click[:5])
    torch.testing.assert_close(model.loss(batch), expected)


def test_a_conversion_without_a_click_is_none() -> None:
    model, batch = esmm(click="bought"), ragged(4, fields=FEW)
    click = torch.tensor([1.0, 0.0, float("nan"), 1.0])
    labeled = replace(batch, label=torch.tensor([1.0, 1.0, 1.0, 0.0]), task_labels={"bought": click})
    meant = replace(labeled, label=torch.tensor([1.0, 0.0, 1.0, 0.0]))
    torch.testing.assert_close(model.loss(labeled), model.loss(meant))
    assert labeled.label is not None
    assert labeled.label.tolist() == [1, 1, 1, 0]


def test_rare_conversions_lose_nothing() -> None:
    """The logit of the product where neither probability is a float32 any more beside 1."""
    model = esmm(click="bought")
    with torch.no_grad():
        model.towers.last.weight.zero_()
        model.towers.last.bias.copy_(torch.tensor([-50.0, -70.0]))
    logit = model.train()(ragged(5, fields=FEW))
    torch.testing.assert_close(logit, torch.full((5,), -120.0))
    logit.sum().backward()
    torch.testing.assert_close(model.towers.last.bias.grad, torch.full((2,), 5.0))
    with torch.no_grad():
        model.towers.last.bias.copy_(torch.tensor([60.0, 90.0]))
    torch.testing.assert_close(model(ragged(5, fields=FEW)), torch.full((5,), 60.0))


@pytest.mark.parametrize(("rank_by", "column"), [("ctr", 0), ("cvr", 1)])
def test_rows_may_be_ranked_by_either_factor(rank_by: str, column: int) -> None:
    model, batch = esmm(click="bought", rank_by=rank_by), ragged(40, fields=FEW)
    torch.testing.assert_close(model(batch), model.factors(batch)[:, column], rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match=rf"model.rank_by: without a click {rank_by} is not identified"):
        build({"name": "esmm", "rank_by": rank_by}, FEW)


def test_without_a_click_the_label_alone_teaches_the_product() -> None:
    model, batch = esmm(), ragged(9, fields=FEW)
    assert model.targets == ()
    assert model.logits(batch).shape == (9, 1)
    torch.testing.assert_close(model(batch).sigmoid(), model.factors(batch).sigmoid().prod(1))


def test_the_conversion_starts_at_its_rate_among_clicks() -> None:
    model = esmm(click="bought")
    model.start_at_rates([0.01, 0.1])
    torch.testing.assert_close(torch.stack(list(model.output_biases())).flatten().sigmoid(), torch.tensor([0.1, 0.1]))
    model.start_at_rates([0.2, 0.1])  # more conversions than clicks: all of them convert
    assert torch.stack(list(model.output_biases())).isfinite().all()
    alone = esmm()
    alone.start_at_rates([0.04])
    torch.testing.assert_close(torch.stack(list(alone.output_biases())).flatten().sigmoid(), torch.tensor([0.2, 0.2]))


def test_the_conversion_after_a_click_is_learned_though_no_row_is_left_out() -> None:
    """Four items that convert alike, for opposite reasons: a network of the label alone could not tell them apart."""
    ctr, cvr, each = torch.tensor([0.8, 0.4, 0.2, 0.1]), torch.tensor([0.1, 0.2, 0.4, 0.8]), 100
    rows = (torch.arange(each) + 0.5) / each
    click = (rows < ctr.unsqueeze(1)).float()
    order = (rows < (ctr * cvr).unsqueeze(1)).float()
    item = torch.arange(4, dtype=torch.int32).repeat_interleave(each) + 2
    batch = Batch.single(4 * each, {"item": item}, label=order.flatten(), task_labels={"click": click.flatten()})
    torch.manual_seed(0)
    fields = Fields((Field("item", "id", 6, side="item"),), {})
    model = build({"name": "esmm", "click": "click", "mlp": [16], "batch_norm": False, "init_std": 1.0}, fields)
    assert isinstance(model, ESMM)
    dense = [p for p in model.parameters() if not any(p is table for table in model.embedding_parameters())]
    optimizers = [LazyAdam(model.embedding_parameters(), lr=0.02), torch.optim.Adam(dense, lr=0.02)]
    for _ in range(150):
        model.loss(batch).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        actual: Tensor = model.eval().factors(batch).sigmoid().view(4, each, 2)[:, 0]
    torch.testing.assert_close(actual, torch.stack([ctr, cvr], 1), rtol=0, atol=0.03)


def test_clicks_teach_orders(tmp_path: Path) -> None:
    dataset, both = generate_dataset("rare_orders"), {"name": "esmm", "click": "click"}
    assert both in dataset.must
    assert solves(dataset, both, tmp_path)
