"""Synthetic logs without a fault: ties in random order, skewed popularity, repeated consumption, a weak signal."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

Maker = Callable[..., pd.DataFrame]
USERS, ITEMS = 400, 250
DAY = 86_400


def draw_events(seed: int, *, clock: int, repetition: float) -> pd.DataFrame:
    """Events in the order of the file: by time, and in random order at one time.

    Args:
        clock: resolution of the times in seconds.
        repetition: probability that an event has an earlier item of its user.
    """
    random = np.random.default_rng(seed)
    popularity = 1 / np.arange(1, ITEMS + 1) ** 0.9
    keys = random.permutation(ITEMS)  # the popular items are anywhere among the ids
    rows = []
    for user in range(USERS):
        count = 4 + random.geometric(0.08)
        group = random.integers(0, 4)
        weights = popularity * np.where(np.arange(ITEMS) % 4 == group, 3.0, 1.0)
        items = random.choice(ITEMS, count, p=weights / weights.sum(), replace=repetition > 0)
        for at in range(1, count):
            if random.random() < repetition:
                items[at] = items[random.integers(0, at)]
        # Bursts of events, so that a coarse clock has ties.
        starts = np.sort(random.integers(0, 60 * DAY, count))
        times = np.sort(starts[np.arange(count) // 3 * 3] + random.integers(0, 600, count))
        rows.append(np.stack([np.full(count, user), keys[items], times // clock * clock], 1))
    table = np.concatenate(rows)
    order = np.lexsort([random.random(len(table)), table[:, 2]])
    frame = pd.DataFrame(table[order], columns=["user_id", "item_id", "timestamp"])
    return frame.assign(timestamp=frame["timestamp"] + 1_600_000_000)


def add_impression_columns(frame: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Add a label, features, pre-joined histories of strictly earlier clicks, and a split by time."""
    random = np.random.default_rng(seed + 1_000)
    user, item = frame["user_id"].to_numpy(), frame["item_id"].to_numpy()
    logit = -0.7 + random.normal(0, 0.7, USERS)[user] + random.normal(0, 0.7, ITEMS)[item]
    clicks = (random.random(len(frame)) < 1 / (1 + np.exp(-logit))).astype(int)
    frame = frame.assign(
        click=clicks,
        price=np.round(random.lognormal(2, 1, ITEMS), 2)[item],
        category=np.array([f"c{n % 7}" for n in range(ITEMS)])[item],
        device=random.integers(0, 3, len(frame)),
    )
    earlier: dict[int, list[tuple[int, int]]] = {}
    histories = []
    for who, what, when, click in frame[["user_id", "item_id", "timestamp", "click"]].itertuples(index=False):
        events = earlier.setdefault(who, [])
        histories.append([one for one, then in events if then < when][-20:])
        if click:
            events.append((what, when))
    cuts = frame["timestamp"].quantile([0.8, 0.9]).to_numpy()
    split = np.array(["train", "valid", "test"])[np.searchsorted(cuts, frame["timestamp"].to_numpy(), side="right")]
    return frame.assign(hist_items=histories, split=split)


@pytest.fixture(scope="session")
def make_events() -> Maker:
    return draw_events


@pytest.fixture(scope="session")
def make_impressions() -> Maker:
    def make(seed: int, *, clock: int = 300, repetition: float = 0.1) -> pd.DataFrame:
        return add_impression_columns(draw_events(seed, clock=clock, repetition=repetition), seed)

    return make
