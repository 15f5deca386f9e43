"""ComiRec: both extractors by hand, whose gradient a target gets, and the limits in which they are simple."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from longrec.features.batch import HistoryBatch
from longrec.features.fields import Field, Fields
from longrec.models.comirec import ComiRec
from longrec.models.core.kinds import score_vectors
from longrec.models.core.registry import build
from longrec.testing.batches import ragged
from longrec.testing.case import Case
from longrec.testing.retriever_programs import check_exported_scores_agree
from longrec.testing.target_batches import catalog, with_targets

ITEM, KIND = Field("item", "id", 60, side="item"), Field("kind", "id", 9, side="item")
PLAIN = Fields((ITEM, KIND), {"seen": (ITEM, KIND)})


def make(extractor: str, **settings: Any) -> ComiRec:
    torch.manual_seed(0)
    small = {"embedding_dim": 6, "positions": 4, "interests": 3, "matrix_std": 0.5}
    model = build({"name": "comirec", "extractor": extractor, **small, **settings}, PLAIN)
    assert isinstance(model, ComiRec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def events_of(model: ComiRec, batch: Any) -> list[Tensor]:
    """The embedded events of each history, ``[n, D]``."""
    columns = batch.histories["seen"].columns
    e = model.embeddings.table("item")[columns["item"].long()] + model.embeddings.table("kind")[columns["kind"].long()]
    return list(e.split(batch.histories["seen"].offsets.diff().tolist()))


def attend(model: Any, e: Tensor) -> Tensor:
    """V of one history, ``[K, D]``: values are events without positions."""
    own = model.extractor
    p = own.position_embedding[[min(at, 3) for at in range(len(e))]]
    a = own.second.weight @ torch.tanh(own.first.weight @ (e + p).t())
    return a.softmax(1) @ e


def route(model: Any, e: Tensor) -> Tensor:
    """V of one history by dynamic routing, ``[K, D]``."""
    w = model.extractor.matrices.weight.unflatten(2, (3, 6))
    votes = torch.stack([torch.einsum("d,dkx->kx", e[at], w[min(at, 3)]) for at in range(len(e))])
    b = torch.zeros(len(e), 3)
    for _ in range(3):
        z = torch.einsum("ik,ikx->kx", b.softmax(1), votes)
        u = z * z.norm(dim=1, keepdim=True) / (1 + z.norm(dim=1, keepdim=True) ** 2)
        b = b + torch.einsum("kx,ikx->ik", u, votes)
    return u


@pytest.mark.parametrize("extractor", ["sa", "dr"])
def test_the_equations(extractor: str) -> None:
    model, batch = make(extractor), ragged(6, fields=PLAIN, lengths=[3, 0, 1, 7, 2, 5])
    by_hand = attend if extractor == "sa" else route
    with torch.no_grad():
        users, states = model.users(batch), model.states(batch)
        at = 0
        for row, e in enumerate(events_of(model, batch)):
            for stop in range(1, len(e) + 1):
                torch.testing.assert_close(states[at], by_hand(model, e[:stop]), rtol=1e-4, atol=1e-5)
                at += 1
            expected = states[at - 1] if len(e) else torch.zeros(3, 6)
            torch.testing.assert_close(users[row], expected, rtol=1e-4, atol=1e-5)
        again = model.users(batch)
    assert torch.equal(users, again), "an extraction is deterministic"


def test_one_interest_without_scores_is_the_mean() -> None:
    model, batch = make("sa", interests=1), ragged(3, fields=PLAIN, lengths=[3, 5, 1])
    with torch.no_grad():
        model.extractor.second.weight.zero_()  # type: ignore[union-attr,operator]
        expected = torch.stack([e.mean(0) for e in events_of(model, batch)]).unsqueeze(1)
        torch.testing.assert_close(model.users(batch), expected)


def test_without_positions_the_order_of_events_does_not_matter() -> None:
    model, batch = make("sa"), ragged(1, fields=PLAIN, lengths=[7])
    events = batch.histories["seen"]
    turned = {name: column.flip(0) for name, column in events.columns.items()}  # type: ignore[union-attr]
    other = replace(batch, histories={"seen": HistoryBatch(turned, events.offsets)})
    with torch.no_grad():
        assert not torch.allclose(model.users(batch), model.users(other), atol=1e-3)
        model.extractor.position_embedding.zero_()  # type: ignore[union-attr,operator]
        torch.testing.assert_close(model.users(batch), model.users(other))


@pytest.mark.parametrize("extractor", ["sa", "dr"])
def test_only_the_selected_interest_gets_a_gradient(extractor: str) -> None:
    model = make(extractor)
    u_TKD, target_TD = torch.randn(8, 3, 6, requires_grad=True), torch.randn(8, 6)
    model.select_interest(u_TKD, target_TD).sum().backward()  # type: ignore[no-untyped-call]
    assert u_TKD.grad is not None
    best = torch.einsum("tkd,td->tk", u_TKD, target_TD).argmax(1)
    assert (u_TKD.grad.abs().sum(2) > 0).tolist() == [[k == chosen for k in range(3)] for chosen in best.tolist()]


def test_a_target_is_predicted_by_the_events_up_to_its_position() -> None:
    """The loss of a batch of sequences is that of requests with the same histories."""
    model = make("dr")
    batch = with_targets(model.sampling, 9, fields=PLAIN, per_position=False)
    assert batch.targets is not None
    filled = (batch.histories["seen"].offsets.diff() > 0).nonzero().squeeze(1)
    of_requests = replace(batch.targets, state=filled, item=batch.targets.item[filled])
    last = batch.histories["seen"].offsets[1:][filled] - 1
    losses = [
        model.loss(replace(batch, targets=targets))
        for targets in (of_requests, replace(of_requests, state=last, per_position=True))
    ]
    torch.testing.assert_close(*losses)


def test_the_best_items_by_brute_force() -> None:
    model, batch, items = make("sa"), ragged(4, fields=PLAIN, lengths=[2, 7, 3, 5]), catalog(PLAIN)
    with torch.no_grad():
        users, vectors = model.users(batch), model.items(items)
        scores = model.score_catalog(batch, items)
    torch.testing.assert_close(scores, score_vectors(users, vectors))
    for row in range(4):
        by_hand = [max(float(v @ e) for v in users[row]) for e in vectors]
        best = sorted(range(len(by_hand)), key=lambda item: -by_hand[item])[:10]
        assert scores[row].topk(10).indices.tolist() == best


def test_the_program_of_dynamic_routing() -> None:
    check_exported_scores_agree(Case("comirec", {"extractor": "dr", "positions": 9}, PLAIN))
