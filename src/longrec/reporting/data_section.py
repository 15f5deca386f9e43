"""Section of a page with the facts about the data."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from longrec.reporting.facts_table import Grid, build_features, build_histories, build_splits, describe_log
from longrec.reporting.markup import format_grid

_FOLDED = 12
"""Number of features above which their table is folded."""


def format_data(facts: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the facts of each log. ``facts`` are ``LogFacts.to_dict()`` by the names of the runs that read the log."""
    logs = [_format_log(one, f"Data of {escape(names)}" if len(facts) > 1 else "Data") for names, one in facts.items()]
    return "".join(logs)


def _format_log(facts: Mapping[str, Any], head: str) -> str:
    said = "".join(f'<p class="soft small">{escape(line)}.</p>' for line in describe_log(facts))
    features = build_features(facts, 40)
    folded = _format_grid(features)
    if len(features[1]) > _FOLDED:
        folded = f"<details><summary>{len(features[1])} features</summary><div>{folded}</div></details>"
    return (
        f"<section><h2>{head}</h2>{said}{_format_grid(build_splits(facts))}"
        f"{_format_grid(build_histories(facts))}{folded}</section>"
    )


def _format_grid(grid: Grid) -> str:
    headers, rows = grid
    if not rows:
        return ""
    first, *names = headers
    cells = [[escape(cell) for cell in row[1:]] for row in rows]
    across, down = [escape(name) for name in names], [escape(row[0]) for row in rows]
    return f'<div class="scroll">{format_grid(escape(first.capitalize()), names, across, down, cells, "dense")}</div>'
