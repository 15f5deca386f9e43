"""States of HSTU: a cache of its band, the same as one pass over the whole life, however its events are cut."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_hstu import TIMED, ranker, stack, times_of
from torch import Tensor

from longrec.exporting.inputs import list_positions
from longrec.features.batch import HistoryBatch
from longrec.nn.band_cache import BandCache, LaterEvents, pack_times, unpack_times
from longrec.nn.event_times import EventTimes
from longrec.nn.hstu import HSTUStack
from longrec.nn.segments import Segments
from longrec.testing.batches import offsets, shared


def cut(x_TD: Tensor, times: EventTimes | None, first: int, stop: int) -> LaterEvents:
    """Events of one user from ``first`` on, as the events after a cache."""
    if times is None:
        return LaterEvents(x_TD[None, first:stop], stop - first)
    at, following = (one[None, first:stop] - times.at[first] for one in (times.at, times.following))
    return LaterEvents(x_TD[None, first:stop], stop - first, EventTimes(at, following), following[:, -1:])


def fold(layers: HSTUStack, x_TD: Tensor, times: EventTimes | None, cuts: list[int]) -> Tensor:
    """The cache of one user after one update per cut."""
    cache = BandCache(layers)
    state = cache.start(1)
    for first, stop in zip(cuts, cuts[1:]):
        state = cache.update(state, cut(x_TD, times, first, stop))
    return state


@pytest.mark.parametrize(("window", "timed"), [(30, True), (5, True), (5, False), (1, True)])
def test_a_cache_is_the_band_of_the_whole_life(window: int, timed: bool) -> None:
    """With updates at random cuts, event by event, and in one update over several blocks."""
    layers, length = stack(window=window, timed=timed, layers=3), 70
    x_TD, y_BD, times = torch.randn(length, 6), torch.randn(4, 6), times_of([length]) if timed else None
    random = np.random.default_rng(4)
    cuts = [[0, length], list(range(length + 1))]
    cuts += [[0, *sorted(random.integers(0, length, 5).tolist()), length] for _ in range(3)]
    with torch.no_grad():
        expected, _ = layers.read(y_BD, x_TD, Segments(offsets([length]), 4, length, shared=True), times)
        for one in cuts:
            actual, _ = BandCache(layers).read(fold(layers, x_TD, times, one)[0], y_BD)
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_a_cache_is_no_pass_over_the_last_events() -> None:
    layers, x_TD, y_BD = stack(window=5, layers=3), torch.randn(40, 6), torch.randn(2, 6)
    cache = BandCache(layers)
    with torch.no_grad():
        whole, _ = cache.read(fold(layers, x_TD, None, [0, 40])[0], y_BD)
        for newest in (4, 5):
            last, _ = cache.read(fold(layers, x_TD[-newest:], None, [0, newest])[0], y_BD)
            assert (last - whole).abs().max() > 1e-3
        # Each layer reaches W - 1 events further back.
        enough, _ = cache.read(fold(layers, x_TD[-12:], None, [0, 12])[0], y_BD)
        torch.testing.assert_close(enough, whole, atol=1e-5, rtol=1e-5)


def test_times_of_a_cache_are_exact() -> None:
    """Half seconds beyond the 24 bits of float32."""
    half_seconds = torch.tensor([0, 1, 2**23 - 1, 2**23, 2**24 + 1, 3 * 2**40 + 5, 2**46 - 1])
    assert torch.equal(unpack_times(pack_times(half_seconds[None]))[0], half_seconds)


def events_of(lengths: list[int], seed: int = 0) -> dict[str, Tensor]:
    """The columns of the events of users that follow each other."""
    random = torch.Generator().manual_seed(seed)
    rows = {field.name: min(field.rows, 24) for field in TIMED.histories["seen"]}
    return {name: torch.randint(0, most, (sum(lengths),), generator=random).int() for name, most in rows.items()}


def take(columns: dict[str, Tensor], first: int, stop: int) -> dict[str, Tensor]:
    return {name: column[first:stop] for name, column in columns.items()}


@pytest.mark.parametrize("settings", [{"window": 4, "layers": 3}, {"window": 4, "time_bias": False}], ids=str)
def test_users_of_unequal_length_in_one_update(settings: dict[str, Any]) -> None:
    """Every user has the state of updates of its own, and the scores of its whole history."""
    model, lengths = ranker(**settings), [9, 1, 40, 3]
    assert model.holds_newest("seen") == bool(settings.get("time_bias", True))
    newest = int(model.holds_newest("seen"))
    ends, columns = np.cumsum(lengths), events_of(lengths)
    start_W = model.start_state("seen")
    with torch.no_grad():
        positions = torch.from_numpy(list_positions(lengths))
        together = model.update_states(
            "seen", start_W.expand(4, -1), HistoryBatch(columns, offsets(lengths)), positions
        )
        for user, (length, end) in enumerate(zip(lengths, ends.tolist())):
            own, state = take(columns, end - length, end), start_W[None]
            for first, stop in ((0, length // 2), (length // 2, length - newest)):
                some = take(own, first, stop + newest)
                count = torch.arange(stop + newest - first)[None]
                if stop > first:
                    state = model.update_states("seen", state, HistoryBatch(some, offsets([stop - first])), count)
            torch.testing.assert_close(together[user], state[0], atol=1e-5, rtol=1e-5)
            batch = shared(5, length, fields=TIMED)
            whole = replace(batch, histories={"seen": HistoryBatch(own, offsets([length]))})
            # The tail of the request: the event that is not final, if there is one.
            tail = take(own, length - newest, length)
            after = replace(batch, histories={"seen": HistoryBatch(tail, offsets([newest]), start=state)})
            torch.testing.assert_close(model(after), model(whole), atol=1e-5, rtol=1e-5)
            if length > 2:
                alone = {"seen": HistoryBatch(tail, offsets([newest]))}
                assert (model(after) - model(replace(after, histories=alone))).abs().max() > 1e-4


def test_which_columns_of_time_enter_a_state() -> None:
    """A bias of time reads the times between events. As features they depend on the request."""
    assert ranker().list_folded_times("seen") == ("time_gap", "time_since_previous")
    assert ranker(time_bias=False).list_folded_times("seen") == ()
