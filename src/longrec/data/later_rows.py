"""Overlap in time between splits: the share of training rows that are later than validation or test rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.data.event_order import EventOrder
from longrec.data.settings import Split
from longrec.data.splits import SPLITS, describe_timestamp
from longrec.data.training_window import window_from_rows
from longrec.errors import DataError
from longrec.features.schema import Schema

_PAIRS = (("train", "test"), ("valid", "test"), ("train", "valid"))
_NAMES = {"train": "training", "valid": "validation", "test": "test"}


@dataclass(frozen=True)
class LaterShare:
    """Share of one split's labeled rows that are not earlier than the first labeled row of another split.

    Attributes:
        split: name of the split with the later rows.
        than: name of the split that should be later.
        share: fraction of the rows of ``split``, counted without the rows that ``data/training_window.py`` excludes.
        first: first timestamp of ``than``.
    """

    split: str
    than: str
    share: float
    first: int

    def to_dict(self) -> dict[str, Any]:
        """Return a dict in the format of the manifest of a prepared log."""
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
    order: EventOrder | None = None,
) -> tuple[list[LaterShare], list[str]]:
    """Return the overlaps between the splits of a log, and one warning per overlap.

    Args:
        codes: split code of each row, as in ``SPLITS``.
        times: timestamp of each event.
        timestamps: timestamp as of which the features of each row are read.
        offsets: first row of each user, int64 ``[users + 1]``.
        order: declared order of events with equal timestamps.

    Raises:
        DataError: files of train, valid and test that overlap in time.
    """
    if schema.time is None:
        return [], [UNTIMED.format(by=rule.by)]
    step = schema.time.unit == "step"
    if rule.by == "files" and not rule.allow_overlap:
        check_files(codes, times, step, where)
    shares = later_shares(codes, labels, times, timestamps, offsets, order)
    return shares, later_warnings(rule, shares, step)


def check_files(codes: NDArray[np.int8], times: NDArray[np.int64], step: bool, where: str) -> None:
    """Raise an error if the files of train, valid and test overlap in time. Equal timestamps count as an overlap.

    Raises:
        DataError: overlapping files. The message gives the timestamps.
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
                f"every row of {one} earlier than the first row of {other}",
                "split the files by time, or allow the overlap with data.split: {by: files, allow_overlap: true}, "
                "which adds a warning to the results",
            )


def later_shares(
    codes: NDArray[np.int8],
    labels: NDArray[np.float32],
    times: NDArray[np.int64],
    timestamps: NDArray[np.int64],
    offsets: NDArray[np.int64],
    order: EventOrder | None = None,
) -> list[LaterShare]:
    """Return the overlaps with a share above zero, for each pair of splits.

    Rows that the training window excludes because of their own timestamp are not counted.
    """
    labeled = ~np.isnan(labels)
    window = window_from_rows(codes, labeled, times, timestamps, offsets)
    rows = {split: np.flatnonzero(labeled & (codes == code)) for split, code in SPLITS.items()}
    first = {split: int(timestamps.take(own).min()) for split, own in rows.items() if len(own)}
    shares: list[LaterShare] = []
    for split, than in _PAIRS:
        if than not in first or not len(rows[split]) or (than == "valid" and "test" in first):
            continue
        own = rows[split]
        users = np.searchsorted(offsets, own, side="right") - 1
        own_times = times.take(own)
        inside = own_times < window.end(split, users)
        if order is not None:
            later = labeled & (codes > SPLITS["train"] if split == "train" else codes == SPLITS["test"])
            inside |= own < order.find_cutoffs(later, offsets).take(users)
        kept = own_times[inside]
        share = float(np.mean(kept >= first[than])) if len(kept) else 0.0
        if share:
            shares.append(LaterShare(split, than, share, first[than]))
    return shares


def later_warnings(rule: Split, shares: list[LaterShare], step: bool) -> list[str]:
    """Return one warning per overlap, to be shown with metrics measured on the split."""
    return [
        f"split by {rule.by}: {_percent(one.share)} of the {_NAMES[one.split]} rows are not earlier than the first "
        f"{_NAMES[one.than]} row ({describe_timestamp(one.first, step)}). The model learns from what other users "
        "did later, so these metrics are better than those in production. Split by time for realistic metrics."
        for one in shares
    ]


UNTIMED = (
    "split by {by}: the schema has no time column, so it cannot be checked that training rows are earlier than test "
    "rows. Set time in the schema, or consider that metrics may be too high."
)


def _percent(share: float) -> str:
    """Return a share above zero as text that never reads as zero."""
    return f"{share:.1%}" if share >= 0.001 else f"{100 * share:.1g}%"
