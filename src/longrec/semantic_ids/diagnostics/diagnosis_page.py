"""HTML page of a diagnosis: what to change first, then the figures with their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from longrec.auditing.finding import ALARM, NOTICE, OK, SKIPPED, Finding
from longrec.reporting.markup import format_code, format_facts, format_grid
from longrec.reporting.page import write_sections
from longrec.semantic_ids.diagnostics.behavior_sections import (
    format_churn,
    format_latent,
    format_matching,
    format_retention,
)
from longrec.semantic_ids.diagnostics.code_sections import format_exposure, format_ids, format_levels
from longrec.semantic_ids.diagnostics.diagnosis import Diagnosis
from longrec.semantic_ids.diagnostics.diagnosis_style import CSS

_NAMES = {ALARM: "alarm", NOTICE: "notice", OK: "no problem", SKIPPED: "not measured"}


def write_diagnosis(out: str | Path, diagnosis: Diagnosis) -> Path:
    """Write the page and return its path.

    Raises:
        LongRecError: if the file cannot be written.
    """
    sections = [
        _format_header(diagnosis),
        _format_faults(diagnosis),
        format_levels(diagnosis),
        format_exposure(diagnosis),
        format_ids(diagnosis),
        format_retention(diagnosis),
        format_matching(diagnosis),
        format_latent(diagnosis),
        format_churn(diagnosis),
        _format_checks(diagnosis),
        _format_notes(diagnosis),
        "<footer>A notice is worth a look, an alarm costs quality in most cases. The bounds are rules of thumb: a "
        "change is good if the model that reads the codes gets better. Written by LongRec.</footer>",
    ]
    return write_sections(out, f"Semantic IDs: {diagnosis.name}", sections, CSS)


def _format_header(diagnosis: Diagnosis) -> str:
    collisions, faults = diagnosis.collisions, diagnosis.faults
    alarms = sum(one.verdict == ALARM for one in faults)
    sizes = list(dict.fromkeys(f"{level.usage.size:,}" for level in diagnosis.levels))
    tiles = {
        "items": f"{diagnosis.items:,}",
        "levels x codes": f"{len(diagnosis.levels)} x {' / '.join(sizes)}",
        "different IDs": f"{collisions.distinct:,}",
        **({"codebooks": diagnosis.codebooks} if diagnosis.codebooks else {}),
        "to change": _count(alarms, "alarm") + ", " + _count(len(faults) - alarms, "notice"),
        **diagnosis.facts,
    }
    what = (
        "A semantic ID is a short tuple of codes per item, one code per level, and a generator emits it code by code. "
        "This page shows whether the codes use their space, whether they keep what the item vectors know, and whether "
        "they follow what users do."
    )
    return (
        f'<header><p class="kicker">LongRec diagnosis of semantic IDs</p><h1>{escape(diagnosis.name)}</h1>'
        f'<p class="lead">{what}</p>{format_facts(tiles)}</header>'
    )


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def _format_faults(diagnosis: Diagnosis) -> str:
    faults = diagnosis.faults
    if not faults:
        measured = sum(one.verdict == OK for one in diagnosis.findings)
        return (
            "<section><h2>What to change</h2>"
            f'<div class="result"><p>Nothing: {measured} checks, none beyond its bound.</p></div></section>'
        )
    return f"<section><h2>What to change</h2>{''.join(map(_format_fault, faults))}</section>"


def _format_fault(finding: Finding) -> str:
    return (
        f'<div class="finding {finding.verdict}"><span class="verdict {finding.verdict}">{finding.verdict}</span> '
        f'<span class="soft small">{escape(finding.check)}: {escape(finding.figure)} ({escape(finding.bound)})</span>'
        f"<h3>{escape(finding.name)}</h3><p>{format_code(finding.why)}</p>"
        f"<p><b>What to change.</b> {format_code(finding.do)}</p></div>"
    )


def _format_checks(diagnosis: Diagnosis) -> str:
    rows: Sequence[Finding] = diagnosis.findings
    cells = [
        [
            escape(one.name) if one.verdict != SKIPPED else f'{escape(one.name)} <span class="hint">'
            f"{format_code(one.figure)}</span>",
            "" if one.verdict == SKIPPED else f'<span class="figure">{escape(one.figure)}</span>',
            escape(one.bound),
            f'<span class="verdict {one.verdict}">{_NAMES[one.verdict]}</span>',
        ]
        for one in rows
    ]  # fmt: skip
    names = ["result", "figure", "bound", "verdict"]
    table = format_grid("check", names, names, [escape(one.check) for one in rows], cells, "dense")
    return f'<section><h2>All checks</h2><div class="scroll">{table}</div></section>'


def _format_notes(diagnosis: Diagnosis) -> str:
    if not diagnosis.notes:
        return ""
    listed = "".join(f"<li>{format_code(note)}</li>" for note in diagnosis.notes)
    return f'<section><h2>How it was measured</h2><ul class="small">{listed}</ul></section>'
