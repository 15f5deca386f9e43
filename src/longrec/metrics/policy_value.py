"""Results of off-policy estimates, as tables and dicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from longrec.metrics.interval import LEVEL, Interval
from longrec.tabular import Columns, Tabular

LABELS = {"ips": "IPS", "clipped_ips": "clipped IPS", "snips": "SNIPS", "dm": "DM", "dr": "DR"}
"""Estimators, in the order of results."""


@dataclass(frozen=True)
class PolicyEstimate:
    """Estimate of the mean reward per row under the target policy.

    Attributes:
        value: the estimate and its 95 % interval.
        gain: the estimate minus the mean reward of the log, with its interval. Both are of the same units.
        effective_rows: effective sample size, (sum w)^2 / sum w^2. None for DM, which has no weights.
        largest_weight: the largest weight. None for DM.
    """

    value: Interval
    gain: Interval
    effective_rows: float | None
    largest_weight: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts and numbers, ready for JSON."""
        own = {"effective_rows": self.effective_rows, "largest_weight": self.largest_weight}
        return {**self.value.to_dict(), "gain": self.gain.to_dict(), **own}


@dataclass(frozen=True, repr=False)
class PolicyValue(Tabular):
    """Mean reward per row that a target policy would have earned, estimated from the log of another policy.

    Attributes:
        estimates: ``ips``, ``clipped_ips``, ``snips``, and ``dm`` and ``dr`` where rewards were predicted.
        logged: mean reward of the log, which is the value of the logging policy.
        mean_weight: mean of the weights. Its expectation is 1. An interval without 1 is a warning.
        rows: number of rows.
        units: number of units, over which intervals are.
        unit: name of the unit, such as ``user``.
        effective_rows: effective sample size of the weights.
        effective_units: the same of the sums of weights of the units.
        clip: weight at which those of ``clipped_ips`` end.
        clipped_rows: number of rows with a larger weight.
        positions: value of each position of a page that has enough rows.
        assumptions: one sentence per assumption that the columns imply.
        warnings: one sentence per reason to distrust the estimates.
    """

    estimates: dict[str, PolicyEstimate]
    logged: Interval
    mean_weight: Interval
    rows: int
    units: int
    unit: str
    effective_rows: float
    effective_units: float
    clip: float
    clipped_rows: int
    positions: Mapping[str, PolicyValue] = field(default_factory=dict)
    assumptions: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_columns(self) -> Columns:
        """Return one row per estimate, first of all positions together, then of each."""
        every: list[tuple[str | None, PolicyValue]] = [(None, self), *self.positions.items()]
        rows = [(at, own, name, one) for at, own in every for name, one in own.estimates.items()]
        return {
            "position": [at for at, _, _, _ in rows],
            "estimate": [name for _, _, name, _ in rows],
            "value": [one.value.value for _, _, _, one in rows],
            "low": [one.value.low for _, _, _, one in rows],
            "high": [one.value.high for _, _, _, one in rows],
            "gain": [one.gain.value for _, _, _, one in rows],
            "gain_low": [one.gain.low for _, _, _, one in rows],
            "gain_high": [one.gain.high for _, _, _, one in rows],
            "effective_rows": [one.effective_rows for _, _, _, one in rows],
            "largest_weight": [one.largest_weight for _, _, _, one in rows],
            "rows": [own.rows for _, own, _, _ in rows],
        }

    def shown(self) -> tuple[str, Columns]:
        """Return the counts with assumptions and warnings, and one line per estimate."""
        lines = [
            self._count_rows(),
            f"logging policy {format_interval(self.logged)}; mean weight {format_interval(self.mean_weight)}",
            f"weights of clipped IPS end at {self.clip:.4g}, {self.clipped_rows:,} are larger",
        ]
        lines += [f"assumed: {one}" for one in self.assumptions]
        lines += [f"warning: {one}" for one in self.warnings]
        columns: dict[str, list[str]] = {"position": []} if self.positions else {}
        columns |= {name: [] for name in ("estimate", "value", "gain over the log", "ESS", "max weight", "rows")}
        for at, own in (("all", self), *self.positions.items()):
            for name, one in own.estimates.items():
                cells = {
                    "position": at,
                    "estimate": LABELS[name],
                    "value": format_interval(one.value),
                    "gain over the log": format_interval(one.gain),
                    "ESS": "-" if one.effective_rows is None else f"{one.effective_rows:,.0f}",
                    "max weight": "-" if one.largest_weight is None else f"{one.largest_weight:.4g}",
                    "rows": f"{own.rows:,}",
                }
                for column, shown in columns.items():
                    shown.append(cells[column])
        return "\n".join(lines), columns

    def _count_rows(self) -> str:
        """Return the numbers of rows and units with their effective sample size (ESS)."""
        text = f"{self.rows:,} rows, ESS {self.effective_rows:,.0f}"
        return text if self.unit == "row" else f"{text}; {self.units:,} {self.unit}s, ESS {self.effective_units:,.0f}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts and numbers, ready for JSON."""
        return {
            "rows": self.rows,
            "units": self.units,
            "unit": self.unit,
            "level": LEVEL,
            "effective_rows": self.effective_rows,
            "effective_units": self.effective_units,
            "logged": self.logged.to_dict(),
            "mean_weight": self.mean_weight.to_dict(),
            "clip": self.clip,
            "clipped_rows": self.clipped_rows,
            "estimates": {name: one.to_dict() for name, one in self.estimates.items()},
            "positions": {at: one.to_dict() for at, one in self.positions.items()},
            "assumptions": list(self.assumptions),
            "warnings": list(self.warnings),
        }


def format_interval(one: Interval) -> str:
    """Return an estimate and its interval with decimals for the width of the interval, at least four.

    >>> format_interval(Interval(0.00512, 0.00471, 0.0056))
    '0.00512 [0.00471, 0.00560]'
    """
    digits, width = 4, one.high - one.low
    while digits < 8 and 0 < width < 20 * 10.0**-digits:
        digits += 1
    return f"{one.value:.{digits}f} [{one.low:.{digits}f}, {one.high:.{digits}f}]"
