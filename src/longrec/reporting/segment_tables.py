"""Section of a page with the metrics of segments: tables with segments as rows and runs as columns."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from longrec.metrics import Interval
from longrec.reporting.facts_table import format_share
from longrec.reporting.markup import format_grid
from longrec.reporting.run import RunView, SegmentView
from longrec.reporting.tables import describe_metric, format_metric_name

Shape = tuple[tuple[str, int], ...]
"""Name and number of rows of each segment of a division."""


def format_segments(runs: Sequence[RunView]) -> str:
    """Return one table per division of the rows. Runs that divide them alike share a table."""
    tables = []
    for title in dict.fromkeys(one.title for run in runs for one in run.segments):
        alike: dict[Shape, list[RunView]] = {}
        for run in runs:
            own = tuple((one.name, one.rows) for one in run.segments if one.title == title)
            if own:
                alike.setdefault(own, []).append(run)
        tables += [_format_table(title, some, len(some) < len(runs)) for some in alike.values()]
    if not tables:
        return ""
    keys = list(dict.fromkeys(key for run in runs for one in run.segments for key in one.metrics))
    meaning = "".join(f"{format_metric_name(key)}: {describe_metric(key)}. " for key in keys)
    split = next(run.split for run in runs if run.segments)
    return (
        f"<section><h2>Segments of {escape(split)}</h2>"
        f'<p class="soft small">{escape(meaning)}Segments with too few rows have no metrics.</p>{"".join(tables)}'
        "</section>"
    )


def _format_table(title: str, runs: Sequence[RunView], named: bool) -> str:
    """Return the table of runs with the same segments.

    Args:
        named: the heading has the names of the runs.
    """
    own = [[one for one in run.segments if one.title == title] for run in runs]
    keys = list(dict.fromkeys(key for segments in own for one in segments for key in one.metrics))
    total = sum(one.rows for one in own[0])
    names = ["Rows", *(["Positive"] if own[0][0].positives is not None else [])]
    names += [
        f"{format_metric_name(key)} {run.name}" if len(runs) > 1 else format_metric_name(key)
        for key in keys
        for run in runs
    ]
    cells = [
        [*_format_counts(row[0], total), *(_format_interval(one.metrics.get(key)) for key in keys for one in row)]
        for row in zip(*own)
    ]
    head = f"{title} ({', '.join(run.name for run in runs)})" if named else title
    heads, down = [escape(name) for name in names], [escape(one.name) for one in own[0]]
    grid = format_grid("", names, heads, down, cells, "dense even")
    return f'<h3 class="above">{escape(head)}</h3><div class="scroll">{grid}</div>'


def _format_counts(segment: SegmentView, total: int) -> list[str]:
    rows = f'{segment.rows:,} <span class="range">({format_share(segment.rows / total)})</span>'
    if segment.positives is None:
        return [rows]
    return [rows, format_share(segment.positives / segment.rows)]


def _format_interval(one: Interval | None) -> str:
    if one is None or not one.defined:
        return '<span class="soft">–</span>'
    return f'{one.value:.3f} <span class="range">[{one.low:.3f}, {one.high:.3f}]</span>'
