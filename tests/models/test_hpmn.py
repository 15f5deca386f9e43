"""HPMN: the tests that its section of the notes lists, by their letters, its equations, and events of long ago."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from distant_events import measure_auc
from torch import Tensor

from longrec.features.batch import Layout
from longrec.models.core.losses import bce_loss
from longrec.models.hpmn import HPMN, MemoryState, PeriodicMemory, covariance
from longrec.nn.segments import Segments
from longrec.testing.batches import FEW, grouped, ragged, shared
from longrec.testing.case import Case

SMALL: dict[str, Any] = {"hidden": 6, "attention": [8], "mlp": [16]}
LENGTHS = (5, 0, 13, 1, 8, 3)


def hpmn(**settings: Any) -> HPMN:
    model = Case("hpmn", {**SMALL, **settings}).lively(FEW)
    assert isinstance(model, HPMN)
    return model


def memory_of(**settings: Any) -> PeriodicMemory:
    return hpmn(**settings).get_memory("seen")


def rows(*lengths: int) -> Segments:
    return Segments(torch.tensor([0, *torch.tensor(lengths).cumsum(0)]), len(lengths), sum(lengths))


def events(memory: PeriodicMemory, count: int) -> Tensor:
    torch.manual_seed(count)
    return torch.randn(count, memory.all_levels()[0].weight.shape[1])


def fold(memory: PeriodicMemory, state: MemoryState, e: Tensor) -> MemoryState:
    """Update the memory of one user with one event after the other."""
    for at in range(len(e)):
        state = memory.update(state, e[at : at + 1])
    return state


def walk(memory: PeriodicMemory, e: Tensor) -> Tensor:
    """The levels ``[L, H]`` of one user after the events, number by number."""
    units, starts = memory.all_levels(), [torch.zeros(6)]
    for unit, first in zip(units[1:], memory.first):
        starts.append(cell(unit, torch.zeros(6), first))
    levels, span = starts, [1]
    for period in memory.periods:
        span.append(span[-1] * period)
    for t in range(1, len(e) + 1):
        below = e[t - 1]
        for number, unit in enumerate(units):
            if t % span[number] == 0:
                levels[number] = cell(unit, levels[number], below)
            below = levels[number]
    return torch.stack(levels)


def cell(unit: Any, h: Tensor, x: Tensor) -> Tensor:
    (xu, xr, xn), (hu, hr, hn) = (unit.weight @ x + unit.bias).chunk(3), (unit.recurrent @ h).chunk(3)
    u, r = torch.sigmoid(xu + hu), torch.sigmoid(xr + hr)
    return (1 - u) * h + u * torch.tanh(xn + r * hn)


@pytest.mark.parametrize("periods", [[2, 2], [3], [2, 1, 3]], ids=str)
def test_the_update_number_by_number(periods: list[int]) -> None:
    memory, segments = memory_of(periods=periods), rows(*LENGTHS)
    e = events(memory, sum(LENGTHS))
    state = memory.states(e, segments)
    assert state.events.tolist() == list(LENGTHS)
    torch.testing.assert_close(state.levels, torch.stack([walk(memory, one) for one in e.split(LENGTHS)]))


def test_the_read_number_by_number() -> None:
    """Three hops, then the top network over the fields of the impression and the result."""
    model, batch = hpmn(), ragged(7, fields=FEW)
    memory, embedded = model.get_memory("seen"), model.embeddings(batch)
    q, e, segments = model.queries(batch, embedded, "seen")
    vectors = []
    for query, m in zip(q, memory.states(e, segments).levels):
        v = memory.query.weight @ query + memory.query.bias
        for _ in range(3):
            scores = [memory.attention.score(torch.cat([v, one, v - one, v * one]).unsqueeze(0)) for one in m]
            v = memory.hop.weight @ v + torch.cat(scores).squeeze(1).softmax(0) @ m
        vectors.append(v)
    inputs = torch.cat([*embedded.features.values(), torch.stack(vectors)], 1)
    torch.testing.assert_close(model(batch), model.top(inputs).squeeze(1), rtol=1e-4, atol=1e-5)


def test_a_periods_of_one_are_stacked_recurrences() -> None:
    memory, segments = memory_of(periods=[1, 1]), rows(*LENGTHS)
    e = events(memory, sum(LENGTHS))
    actual = memory.states(e, segments).levels
    for row, one in enumerate(e.split(LENGTHS)):
        h = list(memory.start_state(1).levels[0])
        for x in one:
            for number, unit in enumerate(memory.all_levels()):
                x = h[number] = cell(unit, h[number], x)
        torch.testing.assert_close(actual[row], torch.stack(h))


@pytest.mark.parametrize("periods", [[2, 2], [3, 2]], ids=str)
def test_b_updates_event_by_event_equal_the_pass_over_whole_histories(periods: list[int]) -> None:
    """Of one user, of users in one update, of a shared history, and in two pieces."""
    memory, segments = memory_of(periods=periods), rows(*LENGTHS)
    e = events(memory, sum(LENGTHS))
    expected = memory.states(e, segments)
    for row, one in enumerate(e.split(LENGTHS)):
        state = fold(memory, memory.start_state(1), one)
        alone = memory.states(one, Segments(torch.arange(2), 4, len(one), shared=True))
        for actual in (state, alone):
            torch.testing.assert_close(actual.levels[0], expected.levels[row], rtol=1e-5, atol=1e-5)
            assert actual.events.tolist() == [LENGTHS[row]]
    # Users whose counts differ update together.
    after = memory.update(expected, e[: len(LENGTHS)])
    longer = torch.cat([x for row, one in enumerate(e.split(LENGTHS)) for x in (one, e[row : row + 1])])
    whole = memory.states(longer, rows(*(length + 1 for length in LENGTHS)))
    torch.testing.assert_close(after.levels, whole.levels, rtol=1e-5, atol=1e-5)
    assert after.events.tolist() == whole.events.tolist()


def test_b_the_gradients_of_both_are_equal() -> None:
    memory = memory_of()
    e, gradients = events(memory, 9), []
    for levels in (memory.states(e, rows(9)).levels, fold(memory, memory.start_state(1), e).levels):
        loss = (levels * torch.linspace(-1, 1, levels.numel()).view_as(levels)).sum()
        used = [*memory.levels.parameters(), memory.first]
        gradients.append(torch.autograd.grad(loss, used))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_c_few_events_change_the_first_level_alone() -> None:
    memory = memory_of(periods=[4, 2])
    e, start = events(memory, 4), memory.start_state(1).levels[0]
    for length in (1, 2, 3):
        levels = memory.states(e[:length], rows(length)).levels[0]
        assert torch.equal(levels[1:], start[1:])
        assert (levels[0] - start[0]).abs().max() > 1e-3
    levels = memory.states(e, rows(4)).levels[0]
    assert (levels[1] - start[1]).abs().max() > 1e-3
    assert torch.equal(levels[2], start[2])


def test_d_the_penalty_is_zero_for_orthogonal_centered_levels() -> None:
    orthogonal = torch.tensor([[1.0, -1.0, 1.0, -1.0], [2.0, 2.0, -2.0, -2.0], [1.0, -1.0, -1.0, 1.0]])
    moved = orthogonal + torch.tensor([[3.0], [-1.0], [0.5]])  # a constant of a level is no covariance
    same = torch.tensor([[1.0, -1.0, 1.0, -1.0], [2.0, -2.0, 2.0, -2.0], [0.0, 0.0, 0.0, 0.0]])
    actual = covariance(torch.stack([orthogonal, moved, same]))
    # Of the last one, C_12 = C_21 = (1 * 2 * 4) / 4 = 2, and its variances on the diagonal do not count.
    torch.testing.assert_close(actual, torch.tensor([0.0, 0.0, 8.0**0.5]))


def test_the_penalty_is_a_mean_over_candidates() -> None:
    model = hpmn(covariance_weight=0.5)
    batch = grouped([2, 0, 0, 1, 3, 3, 3, 2], fields=FEW)
    embedded = model.embed(batch)
    logits = model.head(model.interact(batch, embedded)).squeeze(1)
    e, segments = model.queries.gather_keys(batch, embedded, "seen")
    each = covariance(model.get_memory("seen").states(e, segments).levels)
    assert len(each) == 4
    extra = 0.5 * each[[2, 0, 0, 1, 3, 3, 3, 2]].mean()
    torch.testing.assert_close(model.loss(batch), bce_loss(logits, batch) + extra)


def test_e_a_full_period_more_keeps_the_levels_aligned() -> None:
    """After 2 * 3 further events at the start, each level updates with the same events as without them."""
    memory = memory_of(periods=[2, 3])
    e, earlier = events(memory, 11), events(memory, 6)
    after = fold(memory, memory.start_state(1), earlier)
    restarted = MemoryState(after.levels, torch.zeros_like(after.events))
    shifted = memory.states(torch.cat([earlier, e]), rows(17)).levels
    torch.testing.assert_close(fold(memory, restarted, e).levels, shifted, rtol=1e-5, atol=1e-5)
    # After one event more than that, they do not.
    moved = memory.states(torch.cat([earlier, e[:1], e]), rows(18)).levels
    late = fold(memory, memory.start_state(1), torch.cat([earlier, e[:1]]))
    restarted = MemoryState(late.levels, torch.zeros_like(late.events))
    assert (fold(memory, restarted, e).levels - moved).abs().max() > 1e-3


def test_a_history_is_read_once_for_all_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = hpmn(), shared(30, 9, fields=FEW)
    read: list[int] = []
    original = PeriodicMemory.states

    def states(self: PeriodicMemory, e_UK: Tensor, segments: Segments, start: MemoryState | None = None) -> MemoryState:
        state = original(self, e_UK, segments, start)
        read.append(len(state.levels))
        return state

    monkeypatch.setattr(PeriodicMemory, "states", states)
    model(batch)
    assert read == [1]
    model(replace(batch, layout=Layout.shared(30)))
    model(grouped([2, 0, 0, 1, 3, 3, 3, 2], fields=FEW))
    assert read == [1, 1, 4]


def test_neither_an_update_nor_a_read_changes_a_state() -> None:
    memory = memory_of()
    state = memory.states(events(memory, sum(LENGTHS)), rows(*LENGTHS))
    before = [x.clone() for x in state]
    memory.read(state, torch.randn(len(LENGTHS), memory.query.weight.shape[1]))
    memory.update(state, events(memory, len(LENGTHS)))
    for x, y in zip(state, before, strict=True):
        assert torch.equal(x, y)


def test_events_of_long_ago_are_learned() -> None:
    few: dict[str, Any] = {"embedding_dim": 8, "init_std": 0.3, "mlp": [16], "attention": [16]}
    hierarchy = {"name": "hpmn", **few, "hidden": 16, "hops": 1, "periods": [5, 5]}
    assert measure_auc({"name": "din", **few}, newest=20) < 0.55
    assert measure_auc(hierarchy) > 0.7
