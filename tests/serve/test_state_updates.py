"""Updates of states by a program that counts: every event of every user once, in order, whatever their numbers are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from longrec.exporting.bundle import Bundle, StateFacts
from longrec.exporting.inputs import Input, ProgramFacts
from longrec.exporting.runtime import Program
from longrec.features.feature_encoders import Lists
from longrec.serve import state_updates
from longrec.serve.state_store import FileStates
from longrec.serve.state_updates import Columns, StateUpdate
from longrec.serve.user_states import UserHistory, UserStates
from longrec.store.history_store import Events

COUNTS = [0, 1, 9, 16, 3, 37, 8, 7, 5]
ITEM = Input("h.seen.item", "INT32", "h.seen", "value", 99)
TAGS = Input("h.seen.tags.values", "INT32", "h.seen", "values", 99)


class Digits:
    """A program whose state is the number of events, and a polynomial of the ids, of their tags and of the next id."""

    def __init__(self, following: int) -> None:
        self.following, self.sizes = following, list[tuple[int, int, int]]()

    def run(self, tensors: Mapping[str, NDArray[Any]], output: str) -> NDArray[np.float32]:
        assert output == "state"
        states, items = tensors["s.seen"].copy(), tensors["h.seen.item"]
        tags, offsets = tensors["h.seen.tags.values"], tensors["h.seen.tags.offsets"]
        positions = tensors.get("p.seen", np.arange(len(items))[:, None])
        self.sizes.append((*positions.shape, len(items)))
        for state, row in zip(states, positions):
            own = row[row >= 0].tolist()
            for at, following in zip(own, own[1:] if self.following else own):
                tag = tags[offsets[at] : offsets[at + 1]].sum()
                state[:] = state[0] + 1, (state[1] * 3 + items[at] + 5 * tag + 7 * items[following]) % 8191
        return states


@pytest.mark.parametrize(("chunks", "following"), [(True, 0), (True, 1), (False, 0)])
def test_every_event_is_folded_once_and_in_order(chunks: bool, following: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_updates, "_CHUNK", 8)
    monkeypatch.setattr(state_updates, "_TOGETHER", 24)
    random, program = np.random.default_rng(1), Digits(following)
    columns: list[dict[str, Any]] = []
    for count in COUNTS:
        offsets = np.concatenate([[0], np.cumsum(random.integers(0, 3, count + following))])
        tags = Lists(random.integers(0, 99, offsets[-1]).astype(np.int32), offsets)
        columns.append({"item": random.integers(0, 99, count + following).astype(np.int32), "tags": tags})
    inputs = [ITEM, TAGS, Input("s.seen", "FP32", "s.seen", "value", 0, 2)]
    inputs += [Input("p.seen", "INT64", "s.seen", "positions", 0)] if chunks else []
    facts = ProgramFacts("update.onnx", inputs, [])
    update = StateUpdate("seen", cast(Program, program), facts, StateFacts([], 0, 2, bool(following)))
    starts = [np.array([0, user], np.float32) for user in range(len(COUNTS))]
    states = update.run(starts, columns, COUNTS)
    for user, (own, count) in enumerate(zip(columns, COUNTS)):
        state = [0, user]
        for at in range(count):
            tag = own["tags"].values[own["tags"].offsets[at] : own["tags"].offsets[at + 1]].sum()
            value = state[1] * 3 + own["item"][at] + 5 * tag + 7 * own["item"][at + following]
            state = [state[0] + 1, value % 8191]
        assert states[user].tolist() == state
    assert [start.tolist() for start in starts] == [[0, user] for user in range(len(COUNTS))]
    for users, longest, events in program.sizes:
        assert users * (longest - following) <= 24
        assert events - users * following > users * (longest - following) / 2  # more events than padding


class Reader:
    """Stored events of one user, by history."""

    def __init__(self, times: Mapping[str, list[int]]) -> None:
        self.times = {name: np.array(own, np.int64) for name, own in times.items()}

    def read_last(self, user: int, row: int, before: int, now: int, history: str, n: int) -> Events:
        times = self.times[history]
        times = times[times < min(before, now)][-n:]
        return Events(np.array([0, len(times)]), times, {"item": times})

    def encode(self, history: str, events: Events, now: int) -> Columns:
        return {"item": events.columns["item"]}


class Counting:
    """A program whose state is the number of events and the time of the last one. The events follow it in order."""

    def __init__(self, history: str) -> None:
        self.history = history

    def run(self, tensors: Mapping[str, NDArray[Any]], output: str) -> NDArray[np.float32]:
        states, items = tensors[f"s.{self.history}"].copy(), tensors[f"h.{self.history}.item"]
        for state, row in zip(states, tensors[f"p.{self.history}"]):
            own = items[row[row >= 0]].tolist()
            assert own[0] >= state[1]
            assert own == sorted(own)
            state[:] = state[0] + len(own) - 1, own[-2]
        return states


def test_the_newest_event_of_every_history_stays_outside(tmp_path: Path) -> None:
    """A rare history does not end the state of a frequent one, and events of one timestamp stay together."""
    facts, programs, own = dict[str, StateFacts](), dict[str, Any](), dict[str, Any]()
    for name in ("often", "rare", "never"):
        inputs = [
            Input(f"h.{name}.item", "INT32", f"h.{name}", "value", 999),
            Input(f"p.{name}", "INT64", f"s.{name}", "positions", 0),
        ]
        facts[name], own[f"update.{name}"] = StateFacts([], 10, 2, True), ProgramFacts("", inputs, [])
        programs[f"update.{name}"] = Counting(name)
    bundle = cast(Bundle, SimpleNamespace(manifest=SimpleNamespace(states=facts, programs=own)))
    store = FileStates(tmp_path / "states.sqlite", 10_000, 10)
    states, user = UserStates(bundle, programs, store, fold_at=3), UserHistory(1, 1)
    often = sorted([*range(0, 60, 2), 30, 40, 40])
    reader = Reader({"often": often, "rare": [3, 5, 5], "never": []})
    folded = []
    for now in (12, 31, 33, 41, 50, 51, 60, 70, 90):
        start, later = states.read(reader, user, now)
        for name, times in reader.times.items():
            count, last = start[f"s.{name}"][0].tolist()
            assert count + len(later[name]) == (times < now).sum()
            assert not count or later[name].times[0] > last
            assert not count or later[name].times[0] < now - states.delay  # it ends the time of the last one
        folded.append(int(start["s.often"][0, 0]))
    assert folded[0] == 0
    assert folded == sorted(folded)
    # The state follows the newest event up to the watermark, with less than three final ones behind it.
    assert folded[-1] > len(often) - 4
    assert start["s.rare"][0].tolist() == [1, 3]
    assert states.bytes_per_user == 3 * (8 + 8)
    store.close()
