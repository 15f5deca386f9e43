"""Metrics of one's own: a function of labels, scores and users, with the bootstrap interval of the built-in ones."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longrec.errors import ConfigError, DataError
from longrec.metrics.bootstrap import METRICS, Resample
from longrec.metrics.columns import Floats, Ints, as_labels, as_probabilities, number_groups
from longrec.metrics.compare import Difference, Verdict
from longrec.metrics.interval import Interval

MetricFunction = Callable[[Floats, Floats, Ints], float]
"""Function of the labels ``[N]`` (0 and 1), the probabilities ``[N]`` and the users ``[N]``, numbered from 0."""
MetricsLike = Mapping[str, "MetricFunction | Metric"] | Sequence["MetricFunction | Metric"]
"""Metrics by name, or functions, each with its own name."""
_TRIES = 100


@dataclass(frozen=True)
class Metric:
    """A metric of one's own.

    Attributes:
        function: returns the value on some rows. It must not depend on their order. NaN where it is undefined.
        name: name in results.
        better: the better direction.
    """

    function: MetricFunction
    name: str = ""
    better: Literal["higher", "lower"] = "higher"

    def __call__(self, label: Floats, score: Floats, user: Ints) -> float:
        """Return the value on some rows.

        Raises:
            DataError: the function fails, or returns no number.
        """
        try:
            return float(self.function(label, score, user))
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            do = "return float('nan') where it is undefined"
            raise DataError(f"metric {self.name}", what, f"a number on {len(label):,} rows", do) from error


def read_metrics(metrics: MetricsLike) -> tuple[Metric, ...]:
    """Return metrics with their names.

    Raises:
        ConfigError: names that are taken, or values that are no functions of three arguments. All are listed.
    """
    pairs: Iterable[tuple[str, Any]] = (
        metrics.items() if isinstance(metrics, Mapping) else [(_name(one), one) for one in metrics]
    )
    result, faults = list[Metric](), list[str]()
    for name, one in pairs:
        taken = name in METRICS or name in [metric.name for metric in result]
        if not name.isidentifier():
            faults.append(f"metrics: {name!r} is no name; give one, as in metrics={{'name': function}}")
        elif taken:
            faults.append(f"metrics: there is a metric {name!r} already; give another name")
        elif not callable(one):
            faults.append(f"metrics.{name}: must be a function of labels, scores and users, got {one!r}")
        elif not _takes_three(one.function if isinstance(one, Metric) else one):
            faults.append(f"metrics.{name}: must take three arguments: labels, scores and users")
        else:
            result.append(Metric(one.function, name, one.better) if isinstance(one, Metric) else Metric(one, name))
    if faults:
        raise ConfigError("metrics", faults)
    return tuple(result)


def _takes_three(function: Any) -> bool:
    """Return False for a function that cannot be called with three arguments."""
    try:
        inspect.signature(function).bind(None, None, None)
    except TypeError:
        return False
    except ValueError:  # a function of compiled code without a signature
        return True
    return True


def _name(metric: Any) -> str:
    return metric.name or _name(metric.function) if isinstance(metric, Metric) else getattr(metric, "__name__", "")


def bootstrap_metrics(
    metrics: Sequence[Metric],
    label: ArrayLike,
    scores: Mapping[str, ArrayLike],
    user: ArrayLike,
    *,
    n_resamples: int = 300,
    seed: int = 0,
    resample: Resample = "user",
) -> dict[str, dict[str, tuple[float, Floats]]]:
    """Return the value of each metric on all rows and on every resample: run -> metric -> (value, draws ``[R]``).

    Whole users are drawn, or rows. A user that is drawn twice counts as two users. Each resample is the same for every
    run. One on which a metric is undefined is drawn again.

    Raises:
        DataError: a metric that fails, or that is undefined on nearly every resample.
    """
    y = as_labels(label)
    group, users = number_groups(user, "user", len(y))
    columns = {run: as_probabilities(score, len(y), run) for run, score in scores.items()}
    values = {run: {one.name: one(y, p, group) for one in metrics} for run, p in columns.items()}
    defined = [one for one in metrics if all(math.isfinite(values[run][one.name]) for run in columns)]
    draws = {run: {one.name: np.full(n_resamples, np.nan) for one in metrics} for run in columns}
    random = np.random.default_rng(seed)
    of_row, units = (group, users) if resample == "user" else (np.arange(len(y)), len(y))
    for number in range(n_resamples if defined else 0):
        for _ in range(_TRIES):
            rows, copies = _draw(random, of_row, units)
            drawn = group[rows] if resample == "row" else group[rows] + users * copies
            of_draw = {run: {one.name: one(y[rows], p[rows], drawn) for one in defined} for run, p in columns.items()}
            if all(math.isfinite(value) for own in of_draw.values() for value in own.values()):
                break
        else:
            names = ", ".join(one.name for one in defined)
            expected = "metrics that are defined on most resamples"
            raise DataError(f"metrics {names}", f"undefined on {_TRIES} resamples in a row", expected)
        for run, own in of_draw.items():
            for name, value in own.items():
                draws[run][name][number] = value
    return {run: {one.name: (values[run][one.name], draws[run][one.name]) for one in metrics} for run in columns}


def _draw(random: np.random.Generator, of_row: NDArray[Any], units: int) -> tuple[Ints, Ints]:
    """Return the rows of a resample of units, and the number of each row's copy of its unit."""
    counts = np.bincount(random.integers(0, units, units), minlength=units)[of_row]
    rows = np.repeat(np.arange(len(of_row)), counts)
    return rows, np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)


def summarize(drawn: Mapping[str, tuple[float, Floats]]) -> dict[str, Interval]:
    """Return the interval of each metric of a run."""
    return {name: Interval.of(value, draws) for name, (value, draws) in drawn.items()}


def subtract(
    metrics: Sequence[Metric], drawn: Mapping[str, tuple[float, Floats]], baseline: Mapping[str, tuple[float, Floats]]
) -> dict[str, Difference]:
    """Return the difference of each metric of a run to the baseline, with paired intervals."""
    result = {}
    for metric in metrics:
        (value, draws), (other, others) = drawn[metric.name], baseline[metric.name]
        interval = Interval.of(value - other, draws - others)
        verdict: Verdict = "unclear"
        if interval.excludes_zero:
            verdict = "better" if (interval.low > 0) == (metric.better == "higher") else "worse"
        result[metric.name] = Difference(interval, interval.excludes_zero, verdict)
    return result
