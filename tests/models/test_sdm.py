"""SDM: its output by hand, causality, sessions of both rules, the extremes of the gate, and tables of the output."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from table_reads import record_reads
from torch import Tensor

from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.features.fields import SESSION_RECENCY, SESSION_RECENCY_ROWS, Field, Fields
from longrec.models.core.registry import build
from longrec.models.sdm import SDM
from longrec.testing.batches import ragged, shared, with_history
from longrec.testing.target_batches import with_targets

ITEM, KIND = Field("item", "id", 60, side="item"), Field("kind", "id", 9, side="item")
AGE, SESSION = Field("age", "id", 9, side="user"), Field(SESSION_RECENCY, "id", SESSION_RECENCY_ROWS)
PLAIN = Fields((ITEM, KIND), {"seen": (ITEM, KIND)})
SESSIONS = Fields((ITEM, AGE), {"seen": (ITEM, SESSION)})


def make(fields: Fields = PLAIN, **settings: Any) -> SDM:
    torch.manual_seed(0)
    model = build({"name": "sdm", "embedding_dim": 6, "session_events": 3, **settings}, fields)
    assert isinstance(model, SDM)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def recur(layer: Any, x: Tensor) -> Tensor:
    """The states of an LSTM, event by event."""
    h, c, states = torch.zeros(6), torch.zeros(6), []
    for row in x:
        i, f, o, g = (layer.weight @ row + layer.bias + layer.recurrent @ h).chunk(4)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        states.append(h)
    return torch.stack(states)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (k @ q / math.sqrt(len(q))).softmax(0) @ v


def by_hand(model: Any, columns: list[Tensor], sessions: list[int], user: Tensor) -> Tensor:
    """o of a history whose last event is in the last session: embedded columns ``[n, D]``, a session per event."""
    first = sessions.index(sessions[-1])
    x = model.reduce(torch.cat([column[first:] for column in columns], 1))
    for layer in model.layers:
        x = recur(layer, x)
    q, k, v = model.inner(x).split(6, 1)
    half = 6 // model.config.heads
    heads = []
    for at in range(0, 6, half):
        own = slice(at, at + half)
        heads.append(torch.stack([attend(q[t, own], k[: t + 1, own], v[: t + 1, own]) for t in range(len(x))]))
    o = model.outer(torch.cat(heads, 1))
    x = o if model.norm is None else model.norm(x + o)
    short = attend(user, x, x)
    z = [attend(user, column[:first], column[:first]) if first else torch.zeros(6) for column in columns]
    long = torch.tanh(model.merge.weight @ torch.cat(z) + model.merge.bias)
    g = torch.sigmoid(model.gate.weight @ torch.cat([user, short, long]) + model.gate.bias)
    return (1 - g) * long + g * short


@pytest.mark.parametrize("settings", [{}, {"heads": 2, "norm": False}])
def test_the_equations_at_every_event(settings: dict[str, Any]) -> None:
    model, batch = make(**settings), ragged(4, fields=PLAIN, lengths=[3, 8, 1, 5])
    columns = batch.histories["seen"].columns
    tables = {name: model.embeddings.table(name)[column.long()] for name, column in columns.items()}  # type: ignore[union-attr]
    user = model.any_user
    assert user is not None
    with torch.no_grad():
        states, users = model.states(batch), model.users(batch)
        bounds = batch.histories["seen"].offsets.tolist()
        for row, (first, stop) in enumerate(zip(bounds, bounds[1:])):
            for end in range(first + 1, stop + 1):
                own = [table[first:end] for table in tables.values()]
                expected = by_hand(model, own, [at // 3 for at in range(end - first)], user)
                torch.testing.assert_close(states[end - 1], expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(users[row, 0], states[stop - 1], rtol=1e-4, atol=1e-5)


def test_sessions_are_those_of_the_column_and_users_have_features() -> None:
    model, batch = make(SESSIONS), ragged(3, fields=SESSIONS, lengths=[6, 2, 3])
    recency = torch.tensor([5, 5, 3, 3, 3, 3, 3, 2, 2, 2, 2], dtype=torch.int32)
    batch = with_history(batch, "seen", {SESSION_RECENCY: recency})
    items = model.embeddings.table("item")[batch.histories["seen"].columns["item"].long()]  # type: ignore[union-attr]
    assert [field.name for field in model.read_fields.histories["seen"]] == ["item"]
    assert model.user is not None
    with torch.no_grad():
        users, states = model.users(batch), model.states(batch)
        ages = torch.tanh(model.user(model.embeddings.table("age")[batch.features["age"].long()]))  # type: ignore[union-attr]
        first = 0
        for row, length in enumerate([6, 2, 3]):
            stop = first + length
            expected = by_hand(model, [items[first:stop]], recency[first:stop].tolist(), ages[row])
            torch.testing.assert_close(users[row, 0], expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(states[stop - 1], expected, rtol=1e-4, atol=1e-5)
            first = stop


def test_no_state_depends_on_a_later_event() -> None:
    model, batch = make(), ragged(1, fields=PLAIN, lengths=[8])
    items = batch.histories["seen"].columns["item"]
    with torch.no_grad():
        before = model.states(batch)
        for at in range(8):
            changed = items.clone()  # type: ignore[union-attr]
            changed[at] = (changed[at] + 7) % 60
            moved = (model.states(with_history(batch, "seen", {"item": changed})) - before).abs().amax(1) > 1e-7
            assert moved.tolist() == [other >= at for other in range(8)]


def test_the_gate_at_its_extremes_is_one_of_both() -> None:
    model, three = make(), torch.randn(3, 5, 6)
    user, short, long = three.unbind()
    with torch.no_grad():
        model.gate.weight.zero_()
        model.gate.bias.fill_(200)
        torch.testing.assert_close(model.fuse(user, short, long)[0], short)
        model.gate.bias.fill_(-200)
        torch.testing.assert_close(model.fuse(user, short, long)[0], long)
        batch = ragged(2, fields=PLAIN, lengths=[2, 3])  # one session each, so nothing is older
        expected = torch.tanh(model.merge.bias).expand(2, 6)
        torch.testing.assert_close(model.users(batch)[:, 0], expected)


def test_one_head_without_a_recurrence_is_plain_attention() -> None:
    fields = Fields((ITEM,), {"seen": (ITEM,)})
    model, batch = make(fields, layers=0, norm=False, session_events=50), ragged(2, fields=fields, lengths=[4, 7])
    e = model.embeddings.table("item")[batch.histories["seen"].columns["item"].long()]  # type: ignore[union-attr]
    assert model.any_user is not None
    with torch.no_grad():
        model.gate.weight.zero_()
        model.gate.bias.fill_(200)
        users = model.users(batch)
        for row, own in enumerate(e.split([4, 7])):
            q, k, v = (own @ model.inner.weight.t() + model.inner.bias).chunk(3, 1)
            later = torch.ones(len(own), len(own)).triu(1).bool()
            o = (q @ k.t() / math.sqrt(6)).masked_fill(later, -torch.inf).softmax(1) @ v
            x = o @ model.outer.weight.t() + model.outer.bias
            torch.testing.assert_close(users[row, 0], attend(model.any_user, x, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fields", [PLAIN, SESSIONS])
def test_the_last_state_is_that_of_a_request_in_every_layout(fields: Fields) -> None:
    model = make(fields)
    for events in (0, 1, 3, 4, 11):
        one = shared(1, events, fields=fields)
        if fields is SESSIONS:
            recency = torch.arange(events, dtype=torch.int32).flip(0) // 4 + 2
            one = with_history(one, "seen", {SESSION_RECENCY: recency})
        row = Batch.single(1, one.features, one.histories)
        with torch.no_grad():
            users = model.users(row)
            torch.testing.assert_close(model.users(one), users, rtol=1e-4, atol=1e-5)
            if events:
                torch.testing.assert_close(model.states(row)[-1], users[0, 0], rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(model.states(one)[-1], users[0, 0], rtol=1e-4, atol=1e-5)


def test_targets_of_one_position_share_the_features_of_the_earliest() -> None:
    fields = Fields((ITEM, AGE), {"seen": (ITEM,)})
    model = make(fields)
    batch = with_targets(model.sampling, 9, fields=fields)
    targets = batch.targets
    assert targets is not None
    assert targets.requests is not None
    repeated = torch.cat([targets.state, targets.state[-1:]])
    age = targets.requests["age"]
    assert isinstance(age, Tensor)
    losses = []
    for other in (1, 2):
        twice = replace(
            targets,
            state=repeated,
            item=torch.cat([targets.item, targets.item[:1]]),
            requests={"age": torch.cat([age, (age[-1:] + other) % 9])},
        )
        losses.append(model.loss(replace(batch, targets=twice)))
    assert losses[0] == losses[1]
    assert losses[0] != model.loss(batch)


def test_items_of_their_own_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    model, reads = make(output_table=True).train(), record_reads(monkeypatch)
    batch = with_targets(model.sampling, 9, fields=PLAIN)
    model.loss(batch).backward()  # type: ignore[no-untyped-call]
    assert batch.targets is not None
    assert model.output is not None
    events, items = model.embeddings.table("item"), model.output.table("item")
    assert events.grad is not None
    assert items.grad is not None
    events_read, items_read = int(batch.histories["seen"].offsets[-1]), len(batch.targets.rows)
    assert reads[id(events)] == [events_read], "a table reads what its batch uses, no more"
    assert reads[id(items)] == [items_read]
    assert events.grad._nnz() == len(torch.unique(batch.histories["seen"].columns["item"]))
    columns = {"item": torch.tensor([5, 7], dtype=torch.int32), "kind": torch.tensor([3, 4], dtype=torch.int32)}
    torch.testing.assert_close(model.items(columns), items[[5, 7]] + model.output.table("kind")[[3, 4]])
    with pytest.raises(ConfigError, match="no multiple of heads"):
        make(heads=4)
