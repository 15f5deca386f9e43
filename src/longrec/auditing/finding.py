"""Findings of an audit: a figure, the bound it is compared with, a verdict, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.tabular import Columns, Tabular

OK, NOTICE, ALARM, SKIPPED = "ok", "notice", "alarm", "skipped"
"""Verdicts: nothing to do; to be reported beside results; results on this log are wrong; not measured."""


@dataclass(frozen=True)
class Finding:
    """One figure of an audit.

    Attributes:
        check: name of the check, such as ``ties``.
        name: what is measured.
        figure: the figure as text.
        bound: the bounds of ``notice`` and ``alarm`` as text.
        verdict: ``ok``, ``notice``, ``alarm`` or ``skipped``.
        value: the figure as a number. None if it is not one, or not measured.
        why: what the figure means, and the reason of the bound.
        do: what to do about it.
        numbers: further numbers behind the figure, by name.
    """

    check: str
    name: str
    figure: str
    bound: str
    verdict: str
    value: float | None = None
    why: str = ""
    do: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Audit(Tabular):
    """Findings about one log.

    Attributes:
        log: name of the log.
        rows: number of rows that were read.
        users: number of users.
        items: number of items.
        columns: the columns that were used, by role.
        notes: choices that the audit made, one sentence each.
        findings: the findings, in the order of the checks.
        seconds: duration by check.
    """

    log: str
    rows: int
    users: int
    items: int
    columns: dict[str, Any]
    notes: tuple[str, ...]
    findings: tuple[Finding, ...]
    seconds: dict[str, float]

    @property
    def alarms(self) -> tuple[Finding, ...]:
        """Findings with the verdict ``alarm``."""
        return self.of_verdict(ALARM)

    def of_verdict(self, verdict: str) -> tuple[Finding, ...]:
        """Return the findings of a verdict."""
        return tuple(finding for finding in self.findings if finding.verdict == verdict)

    def find(self, check: str, name: str | None = None) -> Finding:
        """Return the first finding of a check, or that of a name.

        Raises:
            KeyError: no such finding.
        """
        for finding in self.findings:
            if finding.check == check and name in (None, finding.name):
                return finding
        raise KeyError(check if name is None else f"{check}: {name}")

    def to_columns(self) -> Columns:
        """Return the findings as columns."""
        names = ("check", "name", "value", "figure", "bound", "verdict")
        return {name: [getattr(finding, name) for finding in self.findings] for name in names}

    def shown(self) -> tuple[str, Columns]:
        """Return a caption, and the findings as text."""
        columns = self.to_columns()
        return self.describe(), {name: columns[name] for name in columns if name != "value"}

    def describe(self) -> str:
        """Return the size of the log as one line.

        >>> Audit("a.csv", 10, 2, 5, {}, (), (), {}).describe()
        'a.csv: 10 rows of 2 users and 5 items'
        """
        return f"{self.log}: {self.rows:,} rows of {self.users:,} users and {self.items:,} items"


def judge(value: float, notice: float | None, alarm: float | None = None) -> str:
    """Return the verdict of a value by the bounds from which it is a notice or an alarm.

    >>> judge(0.02, 0.01, 0.1), judge(0.2, 0.01, 0.1), judge(0.0, 0.01)
    ('notice', 'alarm', 'ok')
    """
    if alarm is not None and value >= alarm:
        return ALARM
    return NOTICE if notice is not None and value >= notice else OK


def skip(check: str, name: str, reason: str) -> Finding:
    """Return a finding that was not measured, with the reason."""
    return Finding(check, name, reason, "", SKIPPED)


def percent(share: float) -> str:
    """Format a share, so that a small one is not rounded to zero.

    >>> percent(0.4331), percent(0.00042), percent(0.0), percent(1.0)
    ('43.3 %', '0.042 %', '0 %', '100 %')
    """
    if share in (0, 1):
        return f"{share:.0%}".replace("%", " %")
    return f"{100 * share:.2g} %" if share < 0.001 else f"{100 * share:.1f} %"


def bound(share: float) -> str:
    """Format the share of a bound.

    >>> bound(0.05), bound(0.001)
    ('5 %', '0.1 %')
    """
    return f"{100 * share:g} %"


def share_of(mask: NDArray[np.bool_]) -> float:
    """Return the share of True values, 0 of none."""
    return float(mask.mean()) if len(mask) else 0.0


def sign_deviation(successes: int, trials: int) -> float:
    """Return by how many standard errors a number of successes differs from that of fair coins.

    >>> sign_deviation(75, 100), sign_deviation(0, 0)
    (5.0, 0.0)
    """
    return (successes - trials / 2) / (trials / 4) ** 0.5 if trials else 0.0


def list_worst(findings: Sequence[Finding]) -> list[Finding]:
    """Return alarms, then notices, in the order of the checks."""
    return [finding for verdict in (ALARM, NOTICE) for finding in findings if finding.verdict == verdict]
