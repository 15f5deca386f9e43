"""MIMN: the tests that its section of the notes lists, by their letters, its equations, and events of long ago."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from distant_events import measure_auc
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cosine_similarity, softplus

from longrec.errors import ConfigError
from longrec.models.core.losses import bce_loss
from longrec.models.mimn import MIMN, MemoryState, TuringMemory, imbalance, write
from longrec.nn.segments import Segments
from longrec.testing.batches import FEW, grouped, ragged, shared
from longrec.testing.case import Case

SMALL: dict[str, Any] = {"memory_slots": 3, "width": 5, "hidden": 6, "attention": [8], "mlp": [16]}
LENGTHS = (5, 0, 13, 1, 8, 5)


def mimn(**settings: Any) -> MIMN:
    model = Case("mimn", {**SMALL, **settings}).lively(FEW)
    assert isinstance(model, MIMN)
    return model


def memory_of(**settings: Any) -> TuringMemory:
    return mimn(**settings).get_memory("seen")


def rows(*lengths: int) -> Segments:
    return Segments(torch.tensor([0, *torch.tensor(lengths).cumsum(0)]), len(lengths), sum(lengths))


def events(memory: TuringMemory, count: int) -> Tensor:
    torch.manual_seed(count)
    return torch.randn(count, memory.controller.weight.shape[1])


def fold(memory: TuringMemory, state: MemoryState, e: Tensor) -> MemoryState:
    """Update the state of one user with one event after the other."""
    for at in range(len(e)):
        state = memory.update(state, e[at : at + 1])
    return state


def assert_equal_states(actual: MemoryState, expected: MemoryState, tolerance: float = 1e-6) -> None:
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def cell(unit: Any, h: Tensor, x_G: Tensor) -> Tensor:
    (xu, xr, xn), (hu, hr, hn) = x_G.chunk(3), (unit.recurrent @ h).chunk(3)
    u, r = torch.sigmoid(xu + hu), torch.sigmoid(xr + hr)
    return (1 - u) * h + u * torch.tanh(xn + r * hn)


def control(memory: TuringMemory, state: list[Tensor], x: Tensor) -> tuple[Tensor, list[Tensor]]:
    unit = memory.controller
    h = cell(unit, state[0], unit.weight @ x + unit.bias + memory.of_reading.weight @ state[1])
    width = memory.keys.shape[1]
    outputs = memory.heads.weight @ h + memory.heads.bias
    return h, list(outputs.split([width, width, 1, 1, width, width]))


def weights(memory: TuringMemory, key: Tensor, beta: Tensor, slots: Tensor) -> Tensor:
    scores = []
    for slot, own in zip(slots, memory.keys):
        near = cosine_similarity(torch.tanh(key), slot, 0) if slot.abs().sum() else torch.tensor(0.0)
        scores.append(2 * (softplus(beta) + 1) * (near + cosine_similarity(torch.tanh(key), own, 0)) / 2)
    return torch.cat(scores).softmax(0)


def walk(memory: TuringMemory, e: Tensor) -> list[Tensor]:
    """The state of one user after the events, number by number."""
    slots, width = memory.keys.shape
    h, r, m, total, s = (x[0] for x in memory.start_state(1))
    assert memory.unit is not None
    assert memory.of_slot is not None
    for t, x in enumerate(e):
        h, (read_key, write_key, read_beta, write_beta, erase, add) = control(memory, [h, r], x)
        w = weights(memory, read_key, read_beta, m)
        moved = weights(memory, write_key, write_beta, m)
        if memory.transfer is not None:
            g = total / max(t, 1)
            p = (memory.transfer.weight @ g + memory.transfer.bias).view(slots, slots).softmax(1)
            moved = moved @ p
        channels = s.clone()
        for i in w.argsort(descending=True)[: memory.induction]:
            x_G = memory.unit.weight @ x + memory.unit.bias + memory.of_slot.weight @ m[i]
            channels[i] = cell(memory.unit, s[i], x_G)
        r, s = w @ m, channels
        m = torch.stack([
            m[i] * (1 - moved[i] * torch.sigmoid(erase)) + moved[i] * torch.tanh(add) for i in range(slots)
        ])  # fmt: skip
        total = total + moved
    return [h, r, m, total, s]


@pytest.mark.parametrize("settings", [{}, {"induction": 2}, {"utilization_weight": 0.0}], ids=str)
def test_the_update_number_by_number(settings: dict[str, Any]) -> None:
    memory = memory_of(**settings)
    e = events(memory, sum(LENGTHS))
    state = memory.states(e, rows(*LENGTHS))
    for row, one in enumerate(e.split(LENGTHS)):
        for actual, expected in zip(state, walk(memory, one), strict=True):
            torch.testing.assert_close(actual[row], expected, rtol=1e-3, atol=1e-4)  # of cosines near zero vectors


def test_the_read_number_by_number() -> None:
    """One more step with the candidate as event, attention on the channels, then the top network."""
    model, batch = mimn(), ragged(7, fields=FEW)
    memory, embedded = model.get_memory("seen"), model.embeddings(batch)
    q, e, segments = model.queries(batch, embedded, "seen")
    state, vectors = memory.states(e, segments), []
    assert memory.query is not None
    assert memory.attention is not None
    assert memory.pad > 0
    for row, query in enumerate(q):
        own = [x[row] for x in state]
        _, (key, _, beta, *_) = control(memory, own, torch.cat([query, torch.zeros(memory.pad)]))
        v = memory.query.weight @ query + memory.query.bias
        scores = [memory.attention.score(torch.cat([v, s, v - s, v * s]).unsqueeze(0)) for s in own[4]]
        channel = torch.cat(scores).squeeze(1).softmax(0) @ own[4]
        vectors.append(torch.cat([weights(memory, key, beta, own[2]) @ own[2], channel]))
    inputs = torch.cat([*embedded.features.values(), torch.stack(vectors)], 1)
    torch.testing.assert_close(model(batch), model.top(inputs).squeeze(1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"induction": 0, "utilization_weight": 0.0}], ids=str)
def test_a_updates_event_by_event_equal_the_pass_over_whole_histories(settings: dict[str, Any]) -> None:
    memory = memory_of(**settings)
    e = events(memory, sum(LENGTHS))
    whole = memory.states(e, rows(*LENGTHS))
    for row, one in enumerate(e.split(LENGTHS)):
        expected = MemoryState(*(x[row : row + 1] for x in whole))
        assert_equal_states(fold(memory, memory.start_state(1), one), expected)
        assert_equal_states(memory.states(one, Segments(torch.arange(2), 4, len(one), shared=True)), expected)


def test_a_the_gradients_of_both_are_equal() -> None:
    memory = memory_of()
    e, gradients = events(memory, 7), []
    used = [p for name, p in memory.named_parameters() if not name.startswith(("query", "attention"))]
    for state in (memory.states(e, rows(7)), fold(memory, memory.start_state(1), e)):
        loss = sum((x * torch.linspace(-1, 1, x.numel()).view_as(x)).sum() for x in state)
        assert isinstance(loss, Tensor)
        gradients.append(torch.autograd.grad(loss, used))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_b_an_update_in_two_pieces_equals_one_pass() -> None:
    """The first five events of several users in one pass, the others in updates of all users at once."""
    memory = memory_of()
    e = events(memory, 24).view(3, 8, -1)
    state = memory.states(e[:, :5].reshape(15, -1), rows(5, 5, 5))
    for at in range(5, 8):
        state = memory.update(state, e[:, at])
    assert_equal_states(state, memory.states(e.reshape(24, -1), rows(8, 8, 8)))


def test_c_weights_sum_to_one_and_a_full_write_overwrites_its_slot() -> None:
    memory = memory_of()
    state = memory.states(events(memory, sum(LENGTHS)), rows(*LENGTHS))
    w = memory._address(torch.randn(6, 5), torch.randn(6, 1), state.slots).squeeze(1)
    moved = memory.move(w, state.utilization)
    for weight in (w, moved):
        torch.testing.assert_close(weight.sum(1), torch.ones(6))
    assert (moved - w).abs().max() > 1e-3
    torch.testing.assert_close(state.utilization.sum(1), torch.tensor(LENGTHS).float())
    add = torch.randn(6, 5)
    one_hot = torch.eye(3)[[0, 1, 2, 0, 1, 2]]
    after = write(state.slots, one_hot, torch.ones(6, 5), add)
    expected = state.slots.clone()
    expected[torch.arange(6), torch.tensor([0, 1, 2, 0, 1, 2])] = add
    torch.testing.assert_close(after, expected)


def test_d_a_write_of_weight_zero_changes_nothing() -> None:
    slots = torch.randn(4, 3, 5)
    assert torch.equal(write(slots, torch.zeros(4, 3), torch.rand(4, 5), torch.randn(4, 5)), slots)


def test_e_steps_of_a_longer_history_leave_a_shorter_one_unchanged() -> None:
    memory = memory_of()
    e = events(memory, 3 + 40)
    both = memory.states(e, rows(3, 40))
    alone = memory.states(e[:3], rows(3))
    assert_equal_states(MemoryState(*(x[:1] for x in both)), alone)


def test_f_scoring_changes_no_state_and_reads_a_history_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, memory = mimn(), memory_of()
    state = memory.states(events(memory, sum(LENGTHS)), rows(*LENGTHS))
    before = [x.clone() for x in state]
    memory.read(state, torch.randn(6, memory.controller.weight.shape[1] - memory.pad))
    memory.update(state, events(memory, 6))
    for x, y in zip(state, before, strict=True):
        assert torch.equal(x, y)
    read: list[int] = []
    original = TuringMemory.states

    def states(self: TuringMemory, e_UK: Tensor, segments: Segments, start: MemoryState | None = None) -> MemoryState:
        state = original(self, e_UK, segments, start)
        read.append(len(state.slots))
        return state

    monkeypatch.setattr(TuringMemory, "states", states)
    model(shared(30, 9, fields=FEW))
    model(grouped([2, 0, 0, 1, 3, 3, 3, 2], fields=FEW))
    assert read == [1, 4]


def test_g_a_state_is_saved_and_its_size_does_not_depend_on_the_history(tmp_path: Path) -> None:
    memory = memory_of()
    e, shapes = events(memory, 60), set()
    for length in (0, 1, 60):
        state = memory.states(e[:length], rows(length))
        shapes.add(tuple(tuple(x.shape) for x in state))
    assert shapes == {((1, 6), (1, 5), (1, 3, 5), (1, 3), (1, 3, 5))}
    save_file(state._asdict(), tmp_path / "state.safetensors")
    again = MemoryState(**load_file(tmp_path / "state.safetensors"))
    x = torch.randn(1, memory.controller.weight.shape[1])
    for one, other in zip(memory.update(again, x), memory.update(state, x), strict=True):
        assert torch.equal(one, other)


def test_the_penalty_is_that_of_unequal_use() -> None:
    """A mean over candidates of the squared differences of shares. No history: no penalty."""
    used = torch.tensor([[2.0, 2.0, 2.0], [6.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(imbalance(used), torch.tensor([0.0, 4 / 9 + 1 / 9 + 1 / 9, 0.0]))
    model, batch = mimn(utilization_weight=0.5), grouped([2, 0, 0, 1, 3, 3, 3, 2], fields=FEW)
    embedded = model.embed(batch)
    logits = model.head(model.interact(batch, embedded)).squeeze(1)
    e, segments = model.queries.gather_keys(batch, embedded, "seen")
    each = imbalance(model.get_memory("seen").states(e, segments).utilization)
    extra = 0.5 * each[[2, 0, 0, 1, 3, 3, 3, 2]].mean()
    torch.testing.assert_close(model.loss(batch), bce_loss(logits, batch) + extra)


def test_the_transfer_gets_no_gradient_through_earlier_writes() -> None:
    memory = memory_of()
    used = torch.rand(2, 3, requires_grad=True)
    w = torch.rand(2, 3, requires_grad=True)
    memory.move(w, used).square().sum().backward()  # type: ignore[no-untyped-call]
    assert w.grad is not None
    assert used.grad is None


def test_more_channels_than_slots_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.induction: must be at most model\.memory_slots \(3\), got 4"):
        mimn(induction=4)


def test_events_of_long_ago_are_learned() -> None:
    """Of 40 events: a step of a Turing machine takes about ten times as long as one of a recurrence."""
    few: dict[str, Any] = {"embedding_dim": 8, "init_std": 0.3, "mlp": [16], "attention": [16]}
    turing = {"name": "mimn", **few, "memory_slots": 3, "width": 8, "hidden": 8}
    assert measure_auc({"name": "din", **few}, 40, newest=10) < 0.55
    assert measure_auc(turing, 40, users=64) > 0.7
