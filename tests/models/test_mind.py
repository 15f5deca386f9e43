"""MIND: its interests by hand, their number, fixed logits, the profile, and the label-aware attention."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from longrec.features.batch import HistoryBatch
from longrec.features.fields import Field, Fields
from longrec.models.core.registry import build
from longrec.models.mind import MIND
from longrec.testing.batches import ragged, take, with_feature
from longrec.testing.target_batches import catalog, with_targets

ITEM = Field("item", "id", 60, side="item")
AGE, HOUR = Field("age", "id", 9, side="user"), Field("hour", "id", 27)
PLAIN = Fields((ITEM,), {"seen": (ITEM,)})
PROFILE = Fields((ITEM, AGE, HOUR), {"seen": (ITEM,)})


def make(fields: Fields = PLAIN, **settings: Any) -> MIND:
    torch.manual_seed(0)
    small = {"embedding_dim": 6, "interests": 3, "positions": 12, "mlp": None}
    model = build({"name": "mind", **small, **settings}, fields)
    assert isinstance(model, MIND)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def squash(z: Tensor) -> Tensor:
    norm = z.norm(dim=-1, keepdim=True)
    return z * norm / (1 + norm**2)


def votes_of(model: MIND, batch: Any) -> list[Tensor]:
    """S e of the events of each history, ``[n, D]``."""
    e = model.embeddings.table("item")[batch.histories["seen"].columns["item"].long()]
    return list((e @ model.bilinear.weight.t()).split(batch.histories["seen"].offsets.diff().tolist()))


def test_the_equations_and_the_number_of_interests() -> None:
    model, batch = make(), ragged(8, fields=PLAIN, lengths=[3, 0, 1, 4, 7, 8, 14, 2])
    with torch.no_grad():
        users = model.users(batch)
        for row, votes in enumerate(votes_of(model, batch)):
            count = max(1, min(3, int(math.log2(max(len(votes), 1)))))
            b = model.routing_logit[[min(at, 11) for at in range(len(votes))], :count]
            for _ in range(3):
                u = squash(b.softmax(1).t() @ votes)
                b = b + votes @ u.t()
            expected = torch.cat([u, *[u[:1]] * (3 - count)])  # the others repeat the first
            torch.testing.assert_close(users[row], expected, rtol=1e-4, atol=1e-5)
    assert users[0].unique(dim=0).shape[0] == 1
    assert users[6].unique(dim=0).shape[0] == 3


def test_repeated_interests_change_no_score() -> None:
    model, batch = make(), ragged(2, fields=PLAIN, lengths=[3, 5])
    with torch.no_grad():
        users, items = model.users(batch), model.items(catalog(PLAIN))
        scores = model.score_catalog(batch, catalog(PLAIN))
    torch.testing.assert_close(scores[0], items @ users[0, 0])
    torch.testing.assert_close(scores[1], (items @ users[1, :2].t()).amax(1))


def test_one_interest_is_a_pooled_history() -> None:
    model, batch = make(interests=1), ragged(3, fields=PLAIN, lengths=[3, 9, 1])
    with torch.no_grad():
        expected = torch.stack([squash(votes.sum(0)) for votes in votes_of(model, batch)]).unsqueeze(1)
        torch.testing.assert_close(model.users(batch), expected)


def test_a_history_has_the_same_interests_among_longer_ones() -> None:
    """Nothing is padded: the interests of a history are those that it has alone, and those of the next call."""
    model, batch = make(), ragged(5, fields=PLAIN, lengths=[3, 30, 1, 0, 8])
    with torch.no_grad():
        together = model.users(batch)
        alone = torch.cat([model.users(take(batch, [row])) for row in range(5)])
        assert torch.equal(together, model.users(batch))
    torch.testing.assert_close(together, alone)
    assert together.isfinite().all()
    assert (together.norm(dim=2) < 1).all()


def test_events_permuted_together_with_their_logits_have_the_same_interests() -> None:
    model, batch = make(), ragged(1, fields=PLAIN, lengths=[9])
    order = torch.tensor([4, 2, 8, 0, 1, 7, 3, 6, 5])
    events = batch.histories["seen"]
    turned = HistoryBatch({"item": events.columns["item"][order]}, events.offsets)  # type: ignore[index]
    with torch.no_grad():
        before, alone = model.users(batch), model.users(replace(batch, histories={"seen": turned}))
        model.routing_logit[:9] = model.routing_logit[order]
        both = model.users(replace(batch, histories={"seen": turned}))
    torch.testing.assert_close(both, before)
    assert not torch.allclose(alone, before, atol=1e-3)


def test_the_routing_logits_are_saved_and_not_trained() -> None:
    model = make(positions=2000)
    assert "routing_logit" in model.state_dict()
    assert all(parameter is not model.routing_logit for parameter in model.parameters())
    assert float(model.routing_logit.std()) == pytest.approx(1, abs=0.05)


def test_the_label_aware_attention() -> None:
    u_TKD, target_TD = torch.randn(5, 3, 6), torch.randn(5, 6)
    u_TKD[4, 2] = u_TKD[4, 0]  # a repeated interest counts once
    with torch.no_grad():
        mean, cubic, sharp, hard = (make(power=p).select_interest(u_TKD, target_TD) for p in (0, 3, 20, None))
    torch.testing.assert_close(mean[:4], u_TKD[:4].mean(1))
    torch.testing.assert_close(mean[4], u_TKD[4, :2].mean(0))
    score = torch.einsum("tkd,td->tk", u_TKD, target_TD)
    torch.testing.assert_close(cubic[0], (score[0] ** 3).softmax(0) @ u_TKD[0])
    best = u_TKD[range(5), score.argmax(1)]
    torch.testing.assert_close(hard, best)
    clear = score.amax(1) > 1.2  # above 1 a large power is the maximum
    assert clear.any()
    torch.testing.assert_close(sharp[clear], best[clear], rtol=1e-2, atol=1e-2)
    far = make(power=20).select_interest(100 * u_TKD.requires_grad_(), target_TD)
    far.sum().backward()  # type: ignore[no-untyped-call]
    assert u_TKD.grad is not None
    assert u_TKD.grad.isfinite().all()


def test_the_profile_is_that_of_the_target() -> None:
    """The network reads features of the user and none of the context, of each target at its own time."""
    model = make(PROFILE, mlp=[8])
    assert [field.name for field in model.read_fields.features] == ["item", "age"]
    batch = ragged(4, fields=PROFILE, lengths=[3, 8, 0, 1])
    older = with_feature(batch, "age", (batch.features["age"] + 1) % 9)  # type: ignore[operator]
    with torch.no_grad():
        capsules = make(PROFILE).users(batch)
        ages = model.embeddings.table("age")[batch.features["age"].long()]  # type: ignore[union-attr]
        inputs = torch.cat([make(PLAIN).users(batch), ages.unsqueeze(1).expand(-1, 3, -1)], 2)
        assert not torch.allclose(model.users(older), model.users(batch), atol=1e-4)
        assert model.mlp is not None
        same = make(PROFILE, mlp=[8])
        own = torch.cat([_capsules(same, batch), ages.unsqueeze(1).expand(-1, 3, -1)], 2)
        torch.testing.assert_close(same.users(batch).flatten(0, 1), same.mlp(own.flatten(0, 1)))  # type: ignore[misc]
    assert capsules.shape == inputs[:, :, :6].shape
    targets = with_targets(model.sampling, 9, fields=PROFILE)
    assert targets.targets is not None
    assert targets.targets.requests is not None
    changed = {name: (column + 1) % 9 for name, column in targets.targets.requests.items()}  # type: ignore[operator]
    other = replace(targets, targets=replace(targets.targets, requests=changed))
    elsewhere = replace(targets, requests={name: (c + 1) % 9 for name, c in targets.requests.items()})  # type: ignore[operator]
    assert model.loss(other) != model.loss(targets)
    assert model.loss(elsewhere) == model.loss(targets)


def _capsules(model: MIND, batch: Any) -> Tensor:
    """The capsules that the network reads."""
    embedded = model.embed_requests(batch)
    return model._route(batch, embedded, prefixes=False)
