"""Metrics with confidence intervals for one run, and differences with confidence intervals between runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from longrec.errors import UnknownName
from longrec.metrics.bootstrap import METRICS, Draws, Resample, bootstrap
from longrec.metrics.bounds import metric_warnings
from longrec.metrics.columns import Floats
from longrec.metrics.interval import LEVEL, Interval
from longrec.tabular import Columns, Tabular, format_rows

# The better direction. PCOC is best at 1, so a difference in it is neither better nor worse.
BETTER: dict[str, Literal["higher", "lower", "one"]] = {
    "auc": "higher",
    "gauc": "higher",
    "log_loss": "lower",
    "normalized_entropy": "lower",
    "pcoc": "one",
    "ece": "lower",
}
Verdict = Literal["better", "worse", "differs", "unclear"]


@dataclass(frozen=True)
class Difference:
    """A run's metric minus the baseline's, on the same rows and the same resamples.

    Attributes:
        interval: the difference and its 95 % interval.
        real: the interval excludes zero.
        verdict: ``better`` or ``worse`` when real, ``differs`` for a real difference of PCOC, else ``unclear``.
    """

    interval: Interval
    real: bool
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """Return the interval's keys, ``real`` and ``verdict``."""
        return {**self.interval.to_dict(), "real": self.real, "verdict": self.verdict}


@dataclass(frozen=True, repr=False)
class Comparison(Tabular):
    """Metrics of runs on the same rows, and the differences to a baseline.

    Attributes:
        baseline: the run the others are compared with.
        runs: run -> metric -> interval.
        differences: run (all but the baseline) -> metric -> difference to the baseline.
        rows, users, positives: counts of the measured rows.
        gauc_users_skipped, gauc_rows_skipped: users of one class, which GAUC skips, and their rows.
        resample, n_resamples: the resampled unit, and the number of resamples.
        split: name of the rows, or empty.
        warnings: one sentence per reason to read the metrics of a run with caution.
        sample_weight: column of the row weights. None without weights.
        objective: what was predicted: ``clicks``, ``lists`` or ``next_item``.
    """

    baseline: str
    runs: dict[str, dict[str, Interval]]
    differences: dict[str, dict[str, Difference]]
    rows: int
    users: int
    positives: int
    gauc_users_skipped: int
    gauc_rows_skipped: int
    resample: Resample
    n_resamples: int
    split: str = ""
    warnings: tuple[str, ...] = ()
    sample_weight: str | None = None
    objective: str = "clicks"

    def to_columns(self) -> Columns:
        """Return one row per run and metric: the interval, and the difference to the baseline with its interval."""
        rows = [(run, key, one) for run, own in self.runs.items() for key, one in own.items()]
        differences = [self.differences.get(run, {}).get(key) for run, key, _ in rows]
        return {
            "run": [run for run, _, _ in rows],
            "metric": [key for _, key, _ in rows],
            "value": [one.value for _, _, one in rows],
            "low": [one.low for _, _, one in rows],
            "high": [one.high for _, _, one in rows],
            "difference": [None if one is None else one.interval.value for one in differences],
            "difference_low": [None if one is None else one.interval.low for one in differences],
            "difference_high": [None if one is None else one.interval.high for one in differences],
            "verdict": [None if one is None else one.verdict for one in differences],
        }

    def shown(self) -> tuple[str, Columns]:
        """Return one line per metric: the baseline, then each other run with its difference."""
        lines = [f"{self.split or 'rows'}: {format_rows(self.rows, self.users)}; baseline {self.baseline}"]
        lines += [f"warning: {warning}" for warning in self.warnings]
        keys = list(self.runs[self.baseline])
        columns = {"metric": keys, self.baseline: [str(self.runs[self.baseline][key]) for key in keys]}
        for run, own in self.differences.items():
            columns[run] = [str(self.runs[run][key]) for key in keys]
            columns[f"{run} - {self.baseline}"] = [f"{own[key].interval} {own[key].verdict}" for key in keys]
        return "\n".join(lines), columns

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts and numbers, ready for JSON."""
        return {
            "baseline": self.baseline,
            "objective": self.objective,
            "split": self.split,
            "sample_weight": self.sample_weight,
            "rows": self.rows,
            "users": self.users,
            "positives": self.positives,
            "gauc_users_skipped": self.gauc_users_skipped,
            "gauc_rows_skipped": self.gauc_rows_skipped,
            "unit": self.resample,
            "n_resamples": self.n_resamples,
            "level": LEVEL,
            "runs": {run: {key: one.to_dict() for key, one in row.items()} for run, row in self.runs.items()},
            "differences": {
                run: {key: one.to_dict() for key, one in row.items()} for run, row in self.differences.items()
            },
            "warnings": list(self.warnings),
        }


def summary(
    label: ArrayLike,
    score: ArrayLike,
    user: ArrayLike,
    *,
    n_resamples: int = 300,
    seed: int = 0,
    resample: Resample = "user",
    weight: ArrayLike | None = None,
) -> dict[str, Interval]:
    """Return AUC, GAUC, log loss, normalized entropy, PCOC and ECE, each with a 95 % bootstrap interval.

    GAUC is undefined (NaN) when no user has rows of both classes. ECE's draws are shifted so that their mean is its
    value, because the noise of resampling only ever raises ECE.

    Args:
        label: ``[N]`` of 0 and 1.
        score: ``[N]`` probabilities.
        user: ``[N]`` the user of each row.
        n_resamples: number of resamples. With 300, the ends of the interval vary by about a tenth of its width.
        seed: of the resampling. The same seed gives the same interval.
        resample: the resampled unit: whole users, or single rows (narrower, for independent rows).
        weight: ``[N]`` not negative, weight of each row in every metric. None: ones.

    Raises:
        DataError: if the label has one class only, there are fewer than two units, or a column cannot be used.

    >>> rows = summary([1, 0, 1, 0], [0.9, 0.2, 0.6, 0.4], [1, 1, 2, 2], n_resamples=50)
    >>> print(rows["auc"], "|", rows["log_loss"])
    1.0000 [1.0000, 1.0000] | 0.3375 [0.1643, 0.5108]
    """
    drawn = bootstrap(
        label, {"score": score}, user, n_resamples=n_resamples, seed=seed, resample=resample, weight=weight
    )
    return _compute_intervals(drawn, "score")


def compare(
    label: ArrayLike,
    scores: Mapping[str, ArrayLike],
    user: ArrayLike,
    *,
    baseline: str | None = None,
    n_resamples: int = 300,
    seed: int = 0,
    resample: Resample = "user",
    split: str = "",
    weight: ArrayLike | None = None,
) -> Comparison:
    """Compare runs on the same rows. All runs share each resample, so differences are paired.

    A difference is *real* when its 95 % interval excludes zero. One in twenty comparisons of equal runs looks real by
    chance, so consider the size of a difference too.

    Args:
        label: ``[N]`` of 0 and 1.
        scores: run name -> ``[N]`` probabilities, two runs or more.
        user: ``[N]`` the user of each row.
        baseline: name of the run to compare with. Default: the first.
        n_resamples, seed, resample, weight: as :func:`summary`.
        split: name of the rows, for tables and warnings.

    Raises:
        UnknownName: if ``baseline`` is not among ``scores``.
        DataError, ConfigError: as :func:`longrec.metrics.bootstrap.bootstrap`.

    >>> y, u = [1, 0, 1, 0, 1, 0], [1, 1, 2, 2, 3, 3]
    >>> good, bad = [0.9, 0.1, 0.8, 0.2, 0.7, 0.3], [0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    >>> difference = compare(y, {"bad": bad, "good": good}, u, n_resamples=50).differences["good"]["auc"]
    >>> print(difference.interval, difference.verdict)
    0.5000 [0.5000, 0.5000] better
    """
    if baseline is None and scores:
        baseline = next(iter(scores))
    if scores and baseline not in scores:
        raise UnknownName("run", str(baseline), scores)
    drawn = bootstrap(label, scores, user, n_resamples=n_resamples, seed=seed, resample=resample, weight=weight)
    assert baseline is not None  # bootstrap has refused empty scores
    runs = {run: _compute_intervals(drawn, run) for run in scores}
    return Comparison(
        baseline=baseline,
        runs=runs,
        differences={run: _compute_differences(drawn, run, baseline) for run in scores if run != baseline},
        rows=drawn.rows,
        users=drawn.users,
        positives=drawn.positives,
        gauc_users_skipped=drawn.gauc_users_skipped,
        gauc_rows_skipped=drawn.gauc_rows_skipped,
        resample=resample,
        n_resamples=n_resamples,
        split=split,
        warnings=tuple(said for run in runs for said in metric_warnings(runs[run], split or "these rows", run)),
    )


def _center_ece(drawn: Draws, run: str) -> Floats:
    """Return the draws ``[R, 6]`` with those of ECE shifted to its value (see :func:`summary`)."""
    draws = drawn.draws[run].copy()
    index = METRICS.index("ece")
    draws[:, index] += drawn.values[run][index] - np.mean(draws[:, index])
    return draws


def _compute_intervals(drawn: Draws, run: str) -> dict[str, Interval]:
    draws = _center_ece(drawn, run)
    # None of the six metrics is negative, but the shift of ECE can make a draw negative.
    return {
        key: Interval.of(float(drawn.values[run][index]), np.maximum(draws[:, index], 0.0))
        for index, key in enumerate(METRICS)
    }


def _compute_differences(drawn: Draws, run: str, baseline: str) -> dict[str, Difference]:
    values = drawn.values[run] - drawn.values[baseline]
    draws = _center_ece(drawn, run) - _center_ece(drawn, baseline)
    result = {}
    for index, key in enumerate(METRICS):
        interval = Interval.of(float(values[index]), draws[:, index])
        result[key] = Difference(interval, interval.excludes_zero, _choose_verdict(key, interval))
    return result


def _choose_verdict(key: str, difference: Interval) -> Verdict:
    if not difference.excludes_zero:
        return "unclear"
    if BETTER[key] == "one":
        return "differs"
    return "better" if (difference.low > 0) == (BETTER[key] == "higher") else "worse"
