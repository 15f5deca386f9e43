"""Text of an audit for a terminal: the columns, a table of figures, then the alarms and notices with what to do."""

from __future__ import annotations

import textwrap

from longrec.auditing.finding import ALARM, NOTICE, OK, SKIPPED, Audit, Finding, list_worst
from longrec.terminal_text import WIDTH, table


def format_audit(audit: Audit) -> str:
    """Return the text of an audit, at most 100 columns wide."""
    roles = ", ".join(f"{role} {column}" for role, column in audit.columns.items())
    lines = [_wrap(audit.describe(), "", "  "), *([_wrap(roles, "  ")] if roles else [])]
    lines += [_wrap(note, "  ") for note in audit.notes]
    measured = [finding for finding in audit.findings if finding.verdict != SKIPPED]
    rows = [[_mark(one.verdict), one.name, one.figure, one.bound] for one in measured]
    lines += ["", table(["verdict", "measured", "figure", "bound"], rows)]
    skipped = [f"{one.name} ({one.figure})" for one in audit.findings if one.verdict == SKIPPED]
    if skipped:
        lines += ["", _wrap(f"not measured: {'; '.join(skipped)}", "")]
    for finding in list_worst(audit.findings):
        lines += ["", *_explain(finding)]
    counts = {verdict: len(audit.of_verdict(verdict)) for verdict in (ALARM, NOTICE, OK)}
    plural = [f"{count} {verdict}{'' if count == 1 or verdict == OK else 's'}" for verdict, count in counts.items()]
    return "\n".join([*lines, "", f"{', '.join(plural)}; {sum(audit.seconds.values()):.1f} s"])


def _mark(verdict: str) -> str:
    return verdict.upper() if verdict == ALARM else verdict


def _explain(finding: Finding) -> list[str]:
    head = f"{_mark(finding.verdict)}: {finding.name}: {finding.figure}"
    lines = [_wrap(head, "", "  ")]
    lines += [_wrap(finding.why, "  ")] if finding.why else []
    return [*lines, *([_wrap(f"do: {finding.do}", "  ")] if finding.do else [])]


def _wrap(text: str, indent: str, rest: str | None = None) -> str:
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent=indent if rest is None else rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
