"""YoutubeDNN: its equations by hand, targets of sequences and of requests, the example age, and users' shares."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.features.fields import Field, Fields
from longrec.models.core.registry import build
from longrec.models.youtube_dnn import YoutubeDNN
from longrec.testing.batches import pick, ragged, take
from longrec.testing.target_batches import requests_of, with_targets

ITEM, KIND = Field("item", "id", 60, side="item"), Field("kind", "id", 9, side="item")
AGE, HOUR = Field("age", "numeric", 0, side="user"), Field("hour", "id", 27)
PLAIN = Fields((ITEM, KIND), {"seen": (ITEM, KIND)})
RICH = Fields((AGE, HOUR, ITEM, KIND), {"seen": (ITEM, KIND)})
SMALL: dict[str, Any] = {"name": "youtube_dnn", "embedding_dim": 6, "mlp": [5]}


def make(fields: Fields = PLAIN, **settings: Any) -> YoutubeDNN:
    torch.manual_seed(0)
    model = build({**SMALL, **settings}, fields)
    assert isinstance(model, YoutubeDNN)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def normalize(x: Tensor, norm: nn.Module) -> Tensor:
    return (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt() * norm.weight + norm.bias  # type: ignore[operator]


def by_hand(model: YoutubeDNN, ids: list[list[int]], further: Tensor) -> Tensor:
    """The vector of a user with events (item, kind), and further inputs of the tower."""
    items, kinds = model.embeddings.table("item"), model.embeddings.table("kind")
    mean = torch.stack([items[a] + kinds[b] for a, b in ids]).mean(0) if ids else torch.zeros(6)
    x = normalize(mean, model.input_norm)
    (layer,), last = model.tower.layers, model.tower.last
    assert last is not None
    h = F.relu(layer.linear.weight @ torch.cat([x, further]) + layer.linear.bias)  # type: ignore[operator,union-attr]
    return normalize(last.weight @ h + last.bias + x, model.output_norm)


def read_ids(batch: Batch, row: int) -> list[list[int]]:
    events = batch.histories["seen"]
    first, stop = events.offsets[row : row + 2].tolist()
    return [[int(events.columns[name][at]) for name in ("item", "kind")] for at in range(first, stop)]  # type: ignore[index]


@torch.no_grad()
def test_the_equations() -> None:
    model, batch = make(RICH), ragged(6, fields=RICH, lengths=[3, 0, 1, 7, 2, 5])
    users = model.users(batch)
    ages, hours = model.embeddings.table("age"), model.embeddings.table("hour")
    for row in range(6):
        further = torch.cat([batch.features["age"][row] * ages[0], hours[batch.features["hour"][row]]])  # type: ignore[index]
        expected = by_hand(model, read_ids(batch, row), further)
        torch.testing.assert_close(users[row, 0], expected, rtol=1e-4, atol=1e-5)
    columns = {"item": torch.tensor([5, 0, 1], dtype=torch.int32), "kind": torch.tensor([3, 3, 0], dtype=torch.int32)}
    items, kinds = model.embeddings.table("item"), model.embeddings.table("kind")
    torch.testing.assert_close(model.items(columns), items[[5, 0, 1]] + kinds[[3, 3, 0]])


@torch.no_grad()
def test_the_mean_of_one_event_is_that_event_and_of_none_is_zero() -> None:
    model = make(mlp=[], input_norm=False, output_norm=False)
    assert model.tower.last is not None
    model.tower.last.weight.zero_()
    model.tower.last.bias.zero_()
    one, none = ragged(1, fields=PLAIN, lengths=[1]), ragged(2, fields=PLAIN, lengths=[0, 0])
    torch.testing.assert_close(model.users(one)[:, 0], model.items(one.histories["seen"].columns))
    assert not model.users(none).any()


def each_target_as_a_request(batch: Batch) -> Batch:
    """The same targets, each with a request and a history of its own, up to the event of its state."""
    assert batch.targets is not None
    assert batch.targets.requests is not None
    events, state = batch.histories["seen"], batch.targets.state.tolist()
    row = torch.searchsorted(events.offsets, batch.targets.state, right=True) - 1
    first = events.offsets[row].tolist()
    at = [list(range(a, b + 1)) for a, b in zip(first, state)]
    offsets = torch.tensor([0, *map(len, at)]).cumsum(0)
    columns = {name: pick(column, sum(at, [])) for name, column in events.columns.items()}
    count = len(state)
    targets = replace(batch.targets, state=torch.arange(count), per_position=False, requests=None)
    layout = replace(batch.layout, requests=count)
    history = type(events)(columns, offsets)
    return replace(batch, layout=layout, requests=batch.targets.requests, histories={"seen": history}, targets=targets)


@pytest.mark.parametrize("settings", [{}, {"example_age": True}, {"draw": "in_batch", "cosine": True}])
def test_a_pass_over_sequences_has_the_loss_of_requests(settings: dict[str, Any]) -> None:
    """Exactly, also if the features of the requests differ between the targets of a user, and in every gradient."""
    model = make(RICH, dropout=0.0, **settings)
    batch = with_targets(model.sampling, 40, fields=RICH)
    assert batch.targets is not None
    count = len(batch.targets.state)
    own = {"age": torch.randn(count), "hour": torch.randint(0, 27, (count,), dtype=torch.int32)}
    batch = replace(batch, targets=replace(batch.targets, requests=own))
    results = []
    for one in (batch, each_target_as_a_request(batch)):
        model.zero_grad()
        loss = model.loss(one)
        loss.backward()  # type: ignore[no-untyped-call]
        results.append([loss.detach(), *(p.grad.to_dense() for p in model.parameters() if p.grad is not None)])
    assert len(results[0]) == 1 + len(list(model.parameters()))
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_the_age_of_an_example_is_read_in_training_alone() -> None:
    model = make(example_age=True)
    batch = with_targets(model.sampling, 4, fields=PLAIN)
    assert batch.targets is not None
    assert batch.targets.age is not None
    age = batch.targets.age.tolist()
    rows = torch.searchsorted(batch.histories["seen"].offsets, batch.targets.state, right=True) - 1
    states = model.encode_targets(batch, model.embeddings(batch))
    for at, (row, state) in enumerate(zip(rows.tolist(), batch.targets.state.tolist())):
        ids = read_ids(batch, row)[: state + 1 - int(batch.histories["seen"].offsets[row])]
        further = torch.tensor([age[at], age[at] ** 2, age[at] ** 0.5])
        torch.testing.assert_close(states[at], by_hand(model, ids, further), rtol=1e-4, atol=1e-5)
    served = model.users(requests_of(batch))
    for row in range(4):
        torch.testing.assert_close(
            served[row, 0], by_hand(model, read_ids(batch, row), torch.zeros(3)), rtol=1e-4, atol=1e-5
        )


def test_what_training_reads() -> None:
    assert make(examples_per_user=7).sampling.per_user == 7
    assert make(RICH).sampling.requests
    plain = make().sampling
    assert (plain.per_user, plain.requests, plain.age) == (None, False, False)
    with pytest.raises(ConfigError, match="youtube_dnn needs an id"):
        build(SMALL, Fields((ITEM,), {"seen": (Field("rating", "id", 8),)}))


@torch.no_grad()
def test_neither_temperature_nor_log_q_changes_what_is_served() -> None:
    batch, columns = ragged(9, fields=PLAIN), {"item": torch.arange(60).int(), "kind": torch.arange(60).int() % 9}
    plain = make().score_catalog(batch, columns)
    assert torch.equal(make(temperature=0.05, log_q=False, draw="in_batch").score_catalog(batch, columns), plain)
    cosine = make(cosine=True, temperature=0.05).score_catalog(batch, columns)
    assert float(cosine.abs().max()) <= 1 + 1e-6
    u, v = make().users(batch)[:, 0], make().items(columns)
    expected = F.cosine_similarity(u.unsqueeze(1), v.unsqueeze(0), dim=2)
    torch.testing.assert_close(cosine, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_rows_are_as_one_by_one_in_any_order_of_events() -> None:
    model, batch = make(RICH), ragged(20, longest=30, fields=RICH)
    alone = torch.cat([model.users(take(batch, [row])) for row in range(20)])
    torch.testing.assert_close(model.users(batch), alone, rtol=1e-4, atol=1e-5)
