"""One self-contained HTML page of a run or a comparison, without scripts, external fonts or images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from longrec.reporting.markup import format_code, format_facts
from longrec.reporting.results import (
    format_calibration,
    format_intervals,
    format_learning,
    format_metrics,
    format_result_sentences,
    format_warnings,
)
from longrec.reporting.run import RunView
from longrec.reporting.sample import format_sample
from longrec.reporting.style import CSS
from longrec.reporting.tables import format_counts, write_atomically


def write_page(
    out: str | Path,
    title: str,
    facts: Mapping[str, str],
    runs: Sequence[RunView],
    comparison: Mapping[str, Any] | None = None,
    explanation: Mapping[str, Any] | None = None,
    next_steps: Sequence[str] = (),
) -> Path:
    """Write the page and return its path.

    Args:
        out: the HTML file.
        title: heading of the page.
        facts: name -> value, shown under the title (data, split, dates, wall-clock time).
        runs: from :func:`longrec.reporting.run.read_run`. Their order sets colors and columns.
        comparison: ``Comparison.to_dict()`` of runs with the names of ``runs``. None: the page shows no differences.
        explanation: explanation of one sample's score. Keys: ``user``, ``when`` (timestamp as text), ``candidate``,
            ``score``, ``label`` (or None), ``note`` (may be empty), and ``events``, a list of mappings with ``name``,
            ``side`` (further columns of the event, column -> value), ``ago`` (age as text) and ``weight``.
        next_steps: sentences, or commands that start with ``longrec``. Text between backticks is shown as code.

    Raises:
        LongRecError: if the file cannot be written.
    """
    sections = [
        _format_header(title, facts, comparison),
        format_warnings(runs, comparison),
        format_metrics(runs, comparison),
        format_intervals(runs, comparison),
        format_learning(runs),
        format_calibration(runs),
        format_sample(explanation) if explanation else "",
        _format_settings(runs),
        _format_next_steps(next_steps),
        _format_footer(comparison),
    ]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; img-src data:\">"
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{CSS}</style></head>\n<body><main>\n'
        + "\n".join(section for section in sections if section)
        + "\n</main></body></html>\n"
    )
    path = Path(out)
    write_atomically(path, page)
    return path


def _format_header(title: str, facts: Mapping[str, str], comparison: Mapping[str, Any] | None) -> str:
    said = "".join(f"<p>{line}</p>" for line in format_result_sentences(comparison)) if comparison else ""
    return (
        f'<header><p class="kicker">LongRec report</p><h1>{escape(title)}</h1>{format_facts(facts)}'
        + (f'<div class="result">{said}</div>' if said else "")
        + "</header>"
    )


def _format_settings(runs: Sequence[RunView]) -> str:
    folded = "".join(
        f"<details><summary>{escape(run.name)}{_format_model(run)}</summary><pre>{escape(run.config)}</pre></details>"
        for run in runs
        if run.config
    )
    return (
        f'<section><h2>Settings</h2><p class="soft small">Resolved: every default is written out.</p>{folded}</section>'
        if folded
        else ""
    )


def _format_model(run: RunView) -> str:
    return "" if run.model == run.name else f' <span class="soft">({escape(run.model)})</span>'


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
