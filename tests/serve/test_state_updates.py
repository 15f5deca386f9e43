"""Calls of the programs that update states: every event of every user once, in order, whatever their numbers are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from longrec.exporting.bundle import StateFacts
from longrec.exporting.inputs import Input, ProgramFacts
from longrec.exporting.runtime import Program
from longrec.features.feature_encoders import Lists
from longrec.serve import state_updates
from longrec.serve.state_updates import StateUpdate

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
