"""An estimate with its confidence interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from longrec.metrics.columns import Floats

LEVEL = 0.95


_FORMER_NAMES = {"normalised_entropy": "normalized_entropy"}


def rename_metric(key: str) -> str:
    """Return the present name of a metric, with its task if it has one. Results of earlier versions have former names.

    >>> rename_metric("normalised_entropy.bought")
    'normalized_entropy.bought'
    """
    name, dot, task = key.partition(".")
    return _FORMER_NAMES.get(name, name) + dot + task


def list_intervals(metrics: Mapping[str, Interval]) -> dict[str, list[Any]]:
    """Return the columns metric, value, low and high, one row per metric."""
    return {
        "metric": list(metrics),
        "value": [one.value for one in metrics.values()],
        "low": [one.low for one in metrics.values()],
        "high": [one.high for one in metrics.values()],
    }


def show_intervals(metrics: Mapping[str, Interval]) -> dict[str, list[str]]:
    """Return the columns metric, value and 95 % interval as text, one row per metric."""
    intervals = [f"[{one.low:.4f}, {one.high:.4f}]" if one.defined else "undefined" for one in metrics.values()]
    values = [f"{one.value:.4f}" if one.defined else "" for one in metrics.values()]
    return {"metric": list(metrics), "value": values, "95 % interval": intervals}


@dataclass(frozen=True)
class Interval:
    """An estimate and the 95 % interval around it. All three are NaN when the metric is undefined on the rows.

    >>> print(Interval(0.6312, 0.629, 0.6335))
    0.6312 [0.6290, 0.6335]
    >>> f"{Interval(0.6312, 0.629, 0.6335):.2f}"
    '0.63'
    >>> Interval.from_dict(Interval(0.5, 0.25, 0.75).to_dict())
    Interval(value=0.5, low=0.25, high=0.75)
    """

    value: float
    low: float
    high: float

    @classmethod
    def undefined(cls) -> Interval:
        """Return the value of an undefined metric, such as GAUC when every user has one row."""
        return cls(math.nan, math.nan, math.nan)

    @classmethod
    def of(cls, value: float, draws: Floats) -> Interval:
        """Return the percentile interval of bootstrap ``draws``. Efron and Tibshirani 1993, chapter 13."""
        if not math.isfinite(value):
            return cls.undefined()
        low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return cls(float(value), float(low), float(high))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Interval:
        """Read the output of :meth:`to_dict`. Null is read as NaN."""
        value, low, high = (
            math.nan if content[key] is None else float(content[key]) for key in ("value", "low", "high")
        )
        return cls(value, low, high)

    @property
    def defined(self) -> bool:
        """True if the metric is defined on the rows."""
        return math.isfinite(self.value)

    @property
    def excludes_zero(self) -> bool:
        """True if the whole interval is on one side of zero."""
        return self.low > 0 or self.high < 0

    def to_dict(self) -> dict[str, float | None]:
        """Return ``{"value", "low", "high"}``, null where undefined (JSON has no NaN)."""
        values = {"value": self.value, "low": self.low, "high": self.high}
        return {key: number if math.isfinite(number) else None for key, number in values.items()}

    def __float__(self) -> float:
        return self.value

    def __format__(self, spec: str) -> str:
        return format(self.value, spec) if spec else str(self)

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]" if self.defined else "undefined"
