"""Overlap in time of splits that do not run along time: the share of training rows later than measured rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.data.settings import Split
from longrec.data.splits import SPLITS, describe_timestamp
from longrec.data.training_window import window_of_rows
from longrec.errors import DataError
from longrec.features.schema import Schema

_PAIRS = (("train", "test"), ("valid", "test"), ("train", "valid"))
_NAMES = {"train": "training", "valid": "validation", "test": "test"}


@dataclass(frozen=True)
class LaterShare:
    """Labeled rows of one split that lie at or after the first labeled row of another split in time.

    Attributes:
        split, than: the two splits.
        share: of the rows of the split that are not left out (``data/training_window.py``).
        first: the first timestamp of the other split.
    """

    split: str
    than: str
    share: float
    first: int

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by the names that a prepared log keeps."""
        return {"part": self.split, "than": self.than, "share": self.share, "first": self.first}


def find_later_shares(
    rule: Split,
    schema: Schema,
    where: str,
    codes: NDArray[np.int8],
    labels: NDArray[np.float32],
    times: NDArray[np.int64],
    timestamps: NDArray[np.int64],
    offsets: NDArray[np.int64],
) -> tuple[list[LaterShare], list[str]]:
    """Return the shares of a split, and one sentence per share.

    Args:
        codes: the split of each row, as in ``SPLITS``.
        times, timestamps: time of the event, and time as of which its features are taken.
        offsets: int64 ``[users + 1]``.

    Raises:
        DataError: files of train, valid and test that overlap in time.
    """
    if schema.time is None:
        return [], [UNTIMED.format(by=rule.by)]
    step = schema.time.unit == "step"
    if rule.by == "files" and not rule.allow_overlap:
        check_files(codes, times, step, where)
    shares = later_shares(codes, labels, times, timestamps, offsets)
    return shares, later_warnings(rule, shares, step)


def check_files(codes: NDArray[np.int8], times: NDArray[np.int64], step: bool, where: str) -> None:
    """Refuse files of train, valid and test that overlap in time. Equal times at a border overlap.

    Raises:
        DataError: with both spans in the message.
    """
    spans = {split: times[codes == code] for split, code in SPLITS.items()}
    for one, other in (("train", "valid"), ("train", "test"), ("valid", "test")):
        if len(spans[one]) and len(spans[other]) and spans[one].max() >= spans[other].min():
            last, first = (
                describe_timestamp(int(spans[one].max()), step),
                describe_timestamp(int(spans[other].min()), step),
            )
            raise DataError(
                where,
                f"the {one} files reach {last}, and the {other} files begin at {first}",
                f"every row of {one} earlier than the first of {other}",
                "cut the files along time, or allow it by name (data.split: {by: files, allow_overlap: true}); results "
                "then carry a warning",
            )


def later_shares(
    codes: NDArray[np.int8],
    labels: NDArray[np.float32],
    times: NDArray[np.int64],
    timestamps: NDArray[np.int64],
    offsets: NDArray[np.int64],
) -> list[LaterShare]:
    """Return the shares above zero, each split against the one whose rows must be later.

    Rows that are left out whatever the delay of the labels are not counted.
    """
    labeled = ~np.isnan(labels)
    window = window_of_rows(codes, labeled, times, timestamps, offsets)
    rows = {split: np.flatnonzero(labeled & (codes == code)) for split, code in SPLITS.items()}
    first = {split: int(timestamps.take(own).min()) for split, own in rows.items() if len(own)}
    shares: list[LaterShare] = []
    for split, than in _PAIRS:
        if than not in first or not len(rows[split]) or (than == "valid" and "test" in first):
            continue
        own = rows[split]
        users = np.searchsorted(offsets, own, side="right") - 1
        own_times = times.take(own)
        kept = own_times[own_times < window.end(split, users)]
        share = float(np.mean(kept >= first[than])) if len(kept) else 0.0
        if share:
            shares.append(LaterShare(split, than, share, first[than]))
    return shares


def later_warnings(rule: Split, shares: list[LaterShare], step: bool) -> list[str]:
    """Return one sentence per share, for readers of numbers measured on the split."""
    return [
        f"split by {rule.by}: {_percent(one.share)} of the {_NAMES[one.split]} rows lie at or after the first "
        f"{_NAMES[one.than]} row ({describe_timestamp(one.first, step)}). The model learns from what other users "
        "did later, so it scores better here than it will in use; split by time to measure that."
        for one in shares
    ]


UNTIMED = (
    "split by {by}: the schema names no time, so it cannot be checked that training rows lie before test rows. "
    "Name the time column in the schema, or read the numbers with that in mind."
)


def _percent(share: float) -> str:
    """Return a share above zero as text that never reads as zero."""
    return f"{share:.1%}" if share >= 0.001 else f"{100 * share:.1g}%"
