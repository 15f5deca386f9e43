"""One self-contained HTML page of a run or a comparison, without scripts, external fonts or images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from longrec.reporting.data_section import format_data
from longrec.reporting.markup import format_code, format_facts
from longrec.reporting.origin import format_origin
from longrec.reporting.results import (
    format_calibration,
    format_intervals,
    format_learning,
    format_metrics,
    format_result_sentences,
    format_warnings,
)
from longrec.reporting.run import RunView
from longrec.reporting.sample import format_samples
from longrec.reporting.segment_tables import format_segments
from longrec.reporting.style import CSS
from longrec.reporting.tables import format_counts, write_atomically


@dataclass(frozen=True)
class Page:
    """Content of a page.

    Attributes:
        title: heading.
        tiles: name -> value, shown under the heading.
        runs: the runs. Their order sets colors and columns.
        references: predictions without a model, shown beside the runs.
        comparison: ``Comparison.to_dict()`` of runs and references by their names. None: the page shows no differences.
        facts: ``LogFacts.to_dict()`` of each prepared log, by the names of its runs.
        warnings: sentences beside the warnings of the runs and of the facts.
        next_steps: sentences, or commands that start with ``longrec``. Text between backticks is shown as code.
    """

    title: str
    tiles: Mapping[str, str]
    runs: Sequence[RunView]
    references: Sequence[RunView] = ()
    comparison: Mapping[str, Any] | None = None
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    next_steps: Sequence[str] = ()


def write_page(out: str | Path, page: Page) -> Path:
    """Write a page and return its path.

    Raises:
        LongRecError: if the file cannot be written.
    """
    shown, comparison = [*page.runs, *page.references], page.comparison
    alarming = [sentence for facts in page.facts.values() for sentence in facts["warnings"]]
    sections = [
        _format_header(page),
        format_warnings(page.runs, comparison, [*page.warnings, *alarming]),
        format_data(page.facts),
        format_metrics(shown, comparison),
        format_intervals(page.runs, comparison),
        format_segments(page.runs),
        format_learning(page.runs),
        format_calibration(page.runs),
        format_samples(page.runs),
        format_origin(page.runs),
        _format_next_steps(page.next_steps),
        _format_footer(comparison),
    ]
    return write_sections(out, page.title, sections)


def write_sections(out: str | Path, title: str, sections: Sequence[str], css: str = "") -> Path:
    """Write a page of sections (HTML) and return its path. Empty sections are left out.

    Args:
        title: title of the window.
        css: rules beside those of every page.

    Raises:
        LongRecError: if the file cannot be written.
    """
    html = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; img-src data:\">"
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{CSS}{css}</style></head>\n<body><main>\n'
        + "\n".join(section for section in sections if section)
        + "\n</main></body></html>\n"
    )
    path = Path(out)
    write_atomically(path, html)
    return path


def _format_header(page: Page) -> str:
    lines = format_result_sentences(page.comparison, page.runs) if page.comparison else []
    said = "".join(f"<p>{line}</p>" for line in lines)
    return (
        f'<header><p class="kicker">LongRec report</p><h1>{escape(page.title)}</h1>{format_facts(page.tiles)}'
        + (f'<div class="result">{said}</div>' if said else "")
        + "</header>"
    )


def _format_next_steps(steps: Sequence[str]) -> str:
    listed = "".join(f"<li>{format_code(step)}</li>" for step in steps)
    return f'<section><h2>How to go on</h2><ol class="next">{listed}</ol></section>' if listed else ""


def _format_footer(comparison: Mapping[str, Any] | None) -> str:
    how = "Intervals are 95 % bootstrap intervals."
    if comparison:
        on = f"{comparison['split']}: " if comparison.get("split") else ""
        drawn = "whole users" if comparison["unit"] == "user" else "single rows"
        how = (
            f"Measured on {on}{format_counts(comparison)}. "
            f"Intervals: 95 %, {comparison['n_resamples']:,} resamples of {drawn}. "
            f"{_format_skipped(comparison)}"
            "Of twenty comparisons of equal runs one is expected to look real by chance."
        )
    return f"<footer>{escape(how)} Written by LongRec.</footer>"


def _format_skipped(comparison: Mapping[str, Any]) -> str:
    """Return the sentence about users that GAUC leaves out. Empty for metrics of ranks."""
    if comparison.get("objective", "clicks") != "clicks":
        return ""
    users, rows = comparison["gauc_users_skipped"], comparison["gauc_rows_skipped"]
    return f"GAUC leaves out {users:,} users ({rows:,} rows) whose rows are all of one class. "
