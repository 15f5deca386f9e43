"""Records of the facts about a prepared log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FORMAT = "longrec-facts-1"
FILE = "facts.json"


@dataclass(frozen=True)
class SplitFacts:
    """One split of a log. All numbers are of its samples: its rows with a label.

    Attributes:
        rows, positives: number of samples, and of those with a positive label.
        users, items: number of distinct users and items.
        new_users, new_items: share of the samples whose user or item has no event in the train split. 0 for train.
        first, last: first and last timestamp as ISO 8601 text, or steps. None without timestamps or samples.
    """

    rows: int
    positives: int
    users: int
    items: int
    new_users: float
    new_items: float
    first: str | int | None = None
    last: str | int | None = None

    @property
    def rate(self) -> float:
        """Share of positives. NaN without samples."""
        return self.positives / self.rows if self.rows else float("nan")


@dataclass(frozen=True)
class HistoryFacts:
    """Lengths of one history over the samples, or over evenly spaced samples of each split of a large log.

    Attributes:
        max_length: maximum length in the schema, which the lengths are cut at.
        mean, p10, p50, p90: mean and quantiles of the lengths in train.
        full: share of train samples with a history of the maximum length.
        empty: share of samples with an empty history, by split. Splits without samples are absent.
    """

    max_length: int
    mean: float
    p10: int
    p50: int
    p90: int
    full: float
    empty: Mapping[str, float]


@dataclass(frozen=True)
class FeatureFacts:
    """Values of one feature over the samples.

    Attributes:
        kind, side: as in the schema. ``side`` of an item feature is ``item``.
        nulls: share of null (or empty) values by split. Empty if they cannot be counted.
        distinct: number of distinct values in train that have ids of their own. Of hashed ids the number of raw values.
            Of numbers in a sample of at most 30,000 rows.
        top: most frequent value in train. None for hashed values, and where all values are null.
        top_share: its share of the values in train.
        unseen: share of values without an id by split: values that are absent or too rare in train. Empty for
            features without a vocabulary.
        low, high: smallest and largest number in train, of the sample. None for ids.
    """

    kind: str
    side: str
    nulls: Mapping[str, float]
    distinct: int | None
    top: str | float | None
    top_share: float | None
    unseen: Mapping[str, float]
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class LogFacts:
    """Facts about a prepared log.

    Attributes:
        events, users, items: number of rows of the log, with and without a label, and of its users and items.
        first, last: first and last timestamp of the events. None without timestamps.
        tied: share of the events with the timestamp of another event of their user. None without users or timestamps.
        repeated: number of events with the user, item and timestamp of an earlier row. None without any of them.
        splits: by name of the split.
        histories: by name of the history. Token histories are absent.
        features: by name of the feature. Calendar features and embeddings are absent.
        warnings: one sentence per fact that is alarming.
    """

    events: int
    users: int
    items: int
    first: str | int | None
    last: str | int | None
    tied: float | None
    repeated: int | None
    splits: Mapping[str, SplitFacts]
    histories: Mapping[str, HistoryFacts]
    features: Mapping[str, FeatureFacts]
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and numbers for JSON."""
        return {**asdict(self), "warnings": list(self.warnings)}

    def save(self, folder: Path) -> None:
        """Write the facts into the folder of a prepared log."""
        (folder / FILE).write_text(json.dumps({"format": FORMAT, **self.to_dict()}, indent=1), encoding="utf-8")
