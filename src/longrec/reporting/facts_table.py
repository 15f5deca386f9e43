"""Facts about a prepared log as text tables of at most 100 columns, and as the rows of an HTML page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from longrec.reporting.tables import table, warning_lines

_WIDTH = 100
_LONGEST = (32, 24, 18, 9)
"""Most characters of a name and of a value. The shorter ones are for tables that would be too wide."""
_SPLITS = ("train", "valid", "test")
Grid = tuple[list[str], list[list[str]]]
"""Headers and rows."""


def facts_text(facts: Mapping[str, Any]) -> str:
    """Format ``LogFacts.to_dict()`` for the terminal."""
    blocks = [_fit(partial(build, facts)) for build in (build_splits, build_histories, build_features)]
    return "\n".join(
        [*describe_log(facts), *(f"\n{block}" for block in blocks if block), *warning_lines(facts["warnings"])]
    )


def _fit(build: Callable[[int], Grid]) -> str:
    """Return a table that fits into 100 columns, cut more and more where it does not. Empty without rows."""
    text = ""
    for most in _LONGEST:
        headers, rows = build(most)
        text = table(headers, [[_cut(row[0], most), *row[1:]] for row in rows]) if rows else ""
        if max(map(len, text.splitlines()), default=0) <= _WIDTH:
            break
    return text


def describe_log(facts: Mapping[str, Any]) -> list[str]:
    """Return the size of the log, and its ties and repeated rows, in one line each."""
    span = f", {_format_time(facts['first'], True)} to {_format_time(facts['last'], True)}"
    counts = [f"{facts['events']:,} events", *(f"{facts[key]:,} {key}" for key in _list_owners(facts))]
    lines = [", ".join(counts) + (span if facts["first"] is not None else "")]
    if facts["tied"] is not None:
        lines.append(f"{format_share(facts['tied'])} of the events have the timestamp of another event of their user")
    if facts["repeated"] is not None:
        lines.append(f"{facts['repeated']:,} events repeat the user, item and timestamp of an earlier row")
    return lines


def build_splits(facts: Mapping[str, Any], most: int = _LONGEST[0]) -> Grid:
    """Return one row per split with samples. Timestamps are cut to days where ``most`` is small."""
    timed, minutes = facts["first"] is not None, most == _LONGEST[0]
    owners = _list_owners(facts)
    head = ["split", "samples", "positive", *owners, *(f"new {owner}" for owner in owners)]
    rows = [
        [
            name,
            f"{one['rows']:,}",
            format_share(one["positives"] / one["rows"]),
            *(f"{one[owner]:,}" for owner in owners),
            *("" if name == "train" else format_share(one[f"new_{owner}"]) for owner in owners),
            *((_format_time(one["first"], minutes), _format_time(one["last"], minutes)) * timed),
        ]
        for name, one in facts["splits"].items()
        if one["rows"]
    ]
    return head + ["from", "to"] * timed, rows


def build_histories(facts: Mapping[str, Any], most: int = _LONGEST[0]) -> Grid:
    """Return one row per history: quantiles of the lengths in train, and the share of empty ones by split."""
    splits = _list_splits(facts)
    head = ["history", "mean", "10%", "50%", "90%", "at maximum", *(f"empty in {split}" for split in splits)]
    rows = [
        [
            name,
            f"{one['mean']:.1f}",
            *(f"{one[key]:,}" for key in ("p10", "p50", "p90")),
            f"{format_share(one['full'])} ({one['max_length']:,})",
            *(format_share(one["empty"][split]) for split in splits),
        ]
        for name, one in facts["histories"].items()
    ]
    return head, rows


def build_features(facts: Mapping[str, Any], most: int = _LONGEST[0]) -> Grid:
    """Return one row per feature, with at most ``most`` characters of its most frequent value."""
    splits = [split for split in _list_splits(facts) if split != "train"]
    head = ["feature", "kind", "side", "null", "distinct", *(f"new in {one}" for one in splits), "most frequent"]
    rows = [
        [
            name,
            one["kind"],
            one["side"],
            format_share(one["nulls"]["train"]) if one["nulls"] else "-",
            "-" if one["distinct"] is None else f"{one['distinct']:,}",
            *(format_share(one["unseen"][split]) if one["unseen"] else "-" for split in splits),
            _format_top(one, most),
        ]
        for name, one in facts["features"].items()
    ]
    return head, rows


def format_share(share: float) -> str:
    """Format a share in percent.

    >>> format_share(0.1234), format_share(0.00012), format_share(0.0)
    ('12.3%', '<0.1%', '0%')
    """
    if share in (0, 1):
        return f"{share:.0%}"
    return "<0.1%" if share < 0.0005 else ">99.9%" if share > 0.9995 else f"{share:.1%}"


def _list_owners(facts: Mapping[str, Any]) -> list[str]:
    """Return ``users`` and ``items``, without users of one row each and without items where rows have none."""
    each_row = facts["users"] == facts["events"]
    return ([] if each_row else ["users"]) + (["items"] if facts["items"] else [])


def _list_splits(facts: Mapping[str, Any]) -> list[str]:
    return [split for split in _SPLITS if facts["splits"][split]["rows"]]


def _format_top(feature: Mapping[str, Any], most: int) -> str:
    """Return the most frequent value with its share, or the range of numbers that are almost all different."""
    if feature["top"] is None:
        return "-" if feature["top_share"] is None else f"hashed ({format_share(feature['top_share'])})"
    if feature["low"] is not None and feature["top_share"] < 0.01:
        return f"{feature['low']:g} to {feature['high']:g}"
    value = f"{feature['top']:g}" if isinstance(feature["top"], float) else str(feature["top"])
    return f"{_cut(value, most)} ({format_share(feature['top_share'])})"


def _format_time(timestamp: str | int | None, minutes: bool) -> str:
    """Format ISO 8601 text to the day or the minute, and steps as they are."""
    if timestamp is None or isinstance(timestamp, int):
        return "" if timestamp is None else f"{timestamp:,}"
    return timestamp[:16].replace("T", " ") if minutes else timestamp[:10]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
