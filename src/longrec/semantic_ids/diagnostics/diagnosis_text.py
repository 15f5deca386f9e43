"""Diagnosis as text for the terminal."""

from __future__ import annotations

import textwrap

from longrec.auditing.finding import OK, SKIPPED
from longrec.semantic_ids.diagnostics.diagnosis import Diagnosis
from longrec.terminal_text import WIDTH, table


def format_diagnosis(diagnosis: Diagnosis) -> str:
    """Return the figures of the levels, and the findings with what to change."""
    columns = diagnosis.to_columns()
    shown = [name for name, values in columns.items() if any(value is not None for value in values)]
    rows = [[_format_value(columns[name][at]) for name in shown] for at in range(len(diagnosis.levels))]
    own = diagnosis.collisions
    lines = [
        f"{diagnosis.name}: {diagnosis.items:,} items, {own.distinct:,} different IDs, {100 * own.rate:.1f} % twins",
        "",
        table(shown, rows),
        "",
    ]
    for one in diagnosis.faults:
        head = f"{one.verdict}: {one.check}: {one.name} ({one.bound})"
        lines += [*_wrap(head, ""), *_wrap(one.do.replace("`", ""), "  ")]
    verdicts = [one.verdict for one in diagnosis.findings]
    lines.append(f"{verdicts.count(OK)} checks without a fault, {verdicts.count(SKIPPED)} not measured")
    return "\n".join(lines)


def _format_value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.1f}" if value >= 100 else f"{value:.3f}"
    return "-" if value is None else f"{value:,}"


def _wrap(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False)
