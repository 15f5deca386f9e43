"""PRM: the equations by hand, its loss, and what its scores depend on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from longrec.errors import ConfigError
from longrec.features.fields import Field, Fields
from longrec.models.core.registry import build
from longrec.models.prm import PRM
from longrec.testing.batches import FEW, grouped
from longrec.testing.rerankers import OWNER, take
from longrec.training.warm_start import inherit

BASE: dict[str, Any] = {"name": "din", "mlp": [8], "attention": [4]}


def prm(**settings: Any) -> PRM:
    torch.manual_seed(0)
    small = {"base": BASE, "width": 6, "heads": 2, "blocks": 1, "hidden": 5, "positions": 3}
    model = build({"name": "prm", **small, **settings}, FEW)
    assert isinstance(model, PRM)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def by_hand(model: PRM, x_ND: Tensor, rank_N: Tensor) -> Tensor:
    """Probabilities of one list, from [x; pv] of its items and their ranks."""
    e = model.input(x_ND)
    if model.positions is not None:
        e = e + model.positions[rank_N.clamp(max=2)]
    (block,) = model.blocks
    q, k, v = block.inner(e).split(6, 1)
    heads = []
    for head in (slice(0, 3), slice(3, 6)):
        w = (q[:, head] @ k[:, head].t() / 3**0.5).softmax(1)
        heads.append(w @ v[:, head])
    s = F.layer_norm(e + torch.cat(heads, 1) @ block.outer.weight.t(), (6,), *block.norms[0].parameters())
    ffn = F.relu(s @ block.first.weight.t() + block.first.bias) @ block.second.weight.t() + block.second.bias
    f = F.layer_norm(s + ffn, (6,), *block.norms[1].parameters())
    return (f @ model.output.weight[0]).softmax(0)


@pytest.mark.parametrize("settings", [{}, {"position_embedding": False}, {"personalized": False}])
@torch.no_grad()
def test_the_scores_by_hand(settings: dict[str, Any]) -> None:
    model, batch = prm(**settings), grouped(OWNER, fields=FEW)
    scores = model.score_lists(batch)
    initial, pv = model.base(batch), model.base.represent(batch)
    torch.testing.assert_close(scores.initial, initial)
    x = torch.cat([*model.embeddings(batch).candidate.values(), *([pv] if model.config.personalized else [])], 1)
    owner = torch.tensor(OWNER)
    for request in range(4):
        own = owner == request
        rank = (initial[own].unsqueeze(0) > initial[own].unsqueeze(1)).sum(1)
        assert scores.rank[own].tolist() == rank.tolist()
        torch.testing.assert_close(scores.probability[own], by_hand(model, x[own], rank))


def test_the_loss_is_the_mean_over_clicks() -> None:
    model, batch = prm(), grouped(OWNER, fields=FEW)
    p = model.score_lists(batch).probability
    assert batch.label is not None
    clicked = batch.label > 0
    assert 1 < clicked.sum() < len(OWNER)
    torch.testing.assert_close(model.loss(batch), -p[clicked].log().mean())


@torch.no_grad()
def test_items_and_their_initial_positions_are_permuted_together() -> None:
    model, batch = prm(), grouped([0] * 5, fields=FEW)
    scores = model.score_lists(batch)
    order = [3, 0, 4, 2, 1]
    permuted = model.score_lists(take(batch, order))
    torch.testing.assert_close(permuted.probability, scores.probability[order])
    assert permuted.rank.tolist() == scores.rank[order].tolist()
    # Other positions alone give other scores, unless there is no position embedding.
    other = scores.rank.roll(1)
    moved = (model.score_lists(batch, other).probability - scores.probability).abs().max()
    assert moved > 1e-3
    without = prm(position_embedding=False)
    torch.testing.assert_close(
        without.score_lists(batch, other).probability, without.score_lists(batch).probability, rtol=0, atol=0
    )


@torch.no_grad()
def test_pv_is_personal() -> None:
    """The same items have other scores for another request, and the same ones without pv and pe."""
    batch = grouped([0, 0, 0, 1, 1, 1], fields=FEW)
    items = {name: torch.cat([column[:3], column[:3]]) for name, column in batch.candidates.items()}  # type: ignore[index]
    batch.candidates.update(items)  # type: ignore[attr-defined]
    p = prm().score_lists(batch).probability
    assert (p[:3] - p[3:]).abs().max() > 1e-3
    p = prm(personalized=False, position_embedding=False).score_lists(batch).probability
    torch.testing.assert_close(p[:3], p[3:])


def test_the_base_has_the_weights_of_its_run_and_never_moves() -> None:
    model, base = prm().train(), build(BASE, FEW)
    inherit(model, base, "fit.init_from: runs/din")
    assert all(torch.equal(tensor, base.state_dict()[name]) for name, tensor in model.base.state_dict().items())
    model.loss(grouped(OWNER, fields=FEW)).backward()
    assert all(parameter.grad is None for parameter in model.base.parameters())
    assert not model.base.training
    assert model.warm_start_prefix(model) == ""


def test_bases_and_schemas_that_cannot_be_used() -> None:
    nothing = Fields((Field("user", "id", 9, side="user"),), {})
    with pytest.raises(ConfigError, match="no feature has side: item"):
        build({"name": "prm", "base": {"name": "lr"}}, nothing)
    with pytest.raises(ConfigError, match=r"model.base.name: sasrec cannot be a base"):
        build({"name": "prm", "base": {"name": "sasrec"}}, FEW)
    with pytest.raises(ConfigError, match="statistics of a training window"):
        build({"name": "prm", "base": {"name": "res_embedding"}}, FEW)
