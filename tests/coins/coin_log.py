"""A log of coin flips: nothing that is known at a row's timestamp tells its label, and every forbidden path would.

Users meet one item of their own per period. The rows about it, a session, share one fair coin, their label. The whole
session happens before the first of its labels is known, so the coin stays unknown to all rows of the session. What
knows the session's item and has learned from one of its rows tells the others: a leak shows as an AUC near 1, and
everything honest stays at .5 within its standard error. One coin counts once, however many rows show it.

Besides the label there are: feedback that shows the coin late (``echo``), a column of an event that shows the coin of
the user's next session but is only told after that session (``hint``), and item and user tables whose version after
the session shows the coin.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Form = Literal["spread", "tied", "request"]
Side = Literal["user", "item"]
Clock = Literal["seconds", "text", "zoned"]

DAY = 86_400
START = 1_699_920_000 // DAY * DAY
"""Midnight UTC of the first day."""
PERIODS, ROWS, EVERY = 4, 4, 2 * DAY
"""Periods, rows of a session, and seconds from one period to the next."""
LINE = START + (PERIODS - 1) * EVERY + DAY // 2
"""Where test begins: in the middle of the last period."""
TAIL = START + (PERIODS + 1) * EVERY
"""The last rows of the log, of users of their own: late enough for a run whose line lies behind all sessions."""
FAR_LINE = TAIL - DAY // 2
TAIL_ROWS = 40


TIMES = ("at", "seen_at", "early_at", "echo_at", "told_at")


@dataclass(frozen=True)
class CoinLog:
    """Columns of a log, row by row.

    Args:
        form: ``spread``: a session takes most of a day, and the line cuts the last ones; its labels need a delay of a
            day. ``tied``: all its rows share one timestamp. ``request``: they are one request of ten seconds.
    """

    form: Form
    users: int = 400
    seed: int = 5

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """The columns, ordered by time; times are seconds since 1970."""
        random = np.random.default_rng([self.seed, ("spread", "tied", "request").index(self.form)])
        session = np.arange(self.users * PERIODS)  # of user s // PERIODS, in period s % PERIODS
        coin = random.permutation(session % 2)
        begin = START + session % PERIODS * EVERY
        last = session % PERIODS == PERIODS - 1  # those are all to be tested
        half = np.where(last, 1, random.integers(0, 2, len(session))) * (DAY // 2)
        if self.form == "spread":
            offsets = (np.arange(ROWS) + random.random((len(session), ROWS))) * (DAY // ROWS)
        else:
            # Rows of a session stay on one side of the line in its middle.
            first = half + random.integers(60, DAY // 2 - 60, len(session))
            offsets = first[:, None] + np.array([0, 0, 0, 0] if self.form == "tied" else [0, 3, 7, 9])
        at = (begin[:, None] + offsets).astype(np.int64)
        end = at[:, -1]
        own = np.repeat(session, ROWS)
        following = np.where(session % PERIODS < PERIODS - 1, session + 1, session)
        to_test = session % PERIODS == PERIODS - 2
        last_row = np.arange(len(own)) % ROWS == ROWS - 1
        columns = {
            "user_id": own // PERIODS,
            "item_id": own,
            "visit": own,
            "at": at.ravel(),
            "click": coin[own],
            "seen_at": end[own],
            "early_at": at.ravel() - 3_600,
            "echo": coin[own],
            "copied": coin[own],
            "echo_at": end[own],
            "hint": np.where(last_row & (following > session)[own], coin[following][own], 2),
            "open_hint": np.where(last_row & (following > session)[own] & ~to_test[own], coin[following][own], 2),
            "told_at": np.maximum(end[following], end)[own],
        }
        tail = np.arange(TAIL_ROWS)
        extra = dict.fromkeys(TIMES, np.full(TAIL_ROWS, TAIL)) | dict.fromkeys(("click", "echo", "copied"), tail % 2)
        extra |= dict.fromkeys(("item_id", "visit"), len(session) + tail) | {"user_id": self.users + tail}
        extra |= dict.fromkeys(("hint", "open_hint"), np.full(TAIL_ROWS, 2))
        columns = {name: np.concatenate([values, extra[name]]) for name, values in columns.items()}
        columns["place"] = random.integers(0, 8, len(columns["at"]))
        columns["weight"] = random.integers(1, 4, len(columns["at"])) / 2
        columns["press"] = random.integers(0, 2, len(columns["at"]))
        columns["noise"] = np.full(len(columns["at"]), 2)
        order = np.argsort(columns["at"], kind="stable")
        return {name: values[order] for name, values in columns.items()}

    @cached_property
    def coins(self) -> np.ndarray:
        """The coin of each session."""
        columns = self.columns
        coin_of_session = np.zeros(columns["item_id"].max() + 1, np.int64)
        coin_of_session[columns["item_id"]] = columns["click"]
        return coin_of_session

    def splits(self, valid: float = 0.1, test: float = 0.3) -> np.ndarray:
        """Train, valid or test of each row, drawn by session: many of the training rows are later than test rows."""
        share = np.random.default_rng([self.seed, 9]).random(len(self.coins))[self.columns["item_id"]]
        return np.where(share < test, "test", np.where(share < test + valid, "valid", "train"))

    def table(self, clock: Clock) -> pa.Table:
        """The log as a table, its times written one way."""
        columns: dict[str, Any] = {**self.columns, "part": self.splits()}
        for name in TIMES:
            columns[name] = format_times(columns[name], clock)
        return pa.table(columns)

    def versions(self, side: Side, clock: Clock) -> pa.Table:
        """A table of items or users: a version before everything, and one after each session that shows its coin."""
        columns = self.columns
        key = f"{side}_id"
        _, rows = np.unique(columns["item_id"], return_index=True)
        owner, end = columns[key][rows], columns["seen_at"][rows]
        if self.form == "request":  # told at the very timestamp of the request
            end = columns["at"][rows]
        everyone = np.unique(columns[key])
        noise = np.random.default_rng([self.seed, 4]).integers(0, 4, len(everyone))
        at = np.concatenate([np.full(len(everyone), START - DAY), end])
        shown = np.concatenate([noise, 10 + columns["click"][rows]])
        version_columns = {key: np.concatenate([everyone, owner]), "updated_at": at, f"{side}_kind": shown}
        order = np.random.default_rng(3).permutation(len(at))
        version_columns = {name: values[order] for name, values in version_columns.items()}
        return pa.table({**version_columns, "updated_at": format_times(version_columns["updated_at"], clock)})

    def newest_items(self) -> pa.Table:
        """The newest version of each item, as a table without times: it shows the item's coin."""
        return pa.table({"item_id": np.arange(len(self.coins)), "item_kind": 10 + self.coins})

    def entities(self, side: Side) -> pa.Table:
        """A table of items or users without times that shows nothing."""
        keys = np.unique(self.columns[f"{side}_id"])
        kind = np.random.default_rng([self.seed, 4]).integers(0, 4, len(keys))
        return pa.table({f"{side}_id": keys, f"{side}_kind": kind})


def format_times(at: np.ndarray, clock: Clock) -> pa.Array:
    """Seconds since 1970 as a file may hold them: numbers, ISO text with UTC offsets, or zoned timestamps."""
    if clock == "seconds":
        return pa.array(at)
    if clock == "zoned":
        return pa.array(at * 1_000_000, pa.timestamp("us", "Asia/Kolkata"))
    hours = np.arange(len(at)) * 7 % 23 - 11
    return pa.array(
        [
            datetime.fromtimestamp(second, timezone(timedelta(hours=hour))).isoformat()
            for second, hour in zip(at.tolist(), hours.tolist())
        ]
    )


def write(table: pa.Table, path: Path) -> str:
    """Write a Parquet file; its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return str(path)


def iso(second: int) -> str:
    """A timestamp as a split names it."""
    return datetime.fromtimestamp(second, UTC).isoformat()
