r"""Off-policy estimates: the reward of a target policy, from the log of another policy that drew items at random.

Row i has the context x_i, the shown item a_i, its reward r_i, the propensity mu_i = mu(a_i | x_i) with which the
logging policy drew it, and the probability pi(a_i | x_i) of the target policy. With w_i = pi(a_i | x_i) / mu_i:

    IPS           mean of w r                                         unbiased                        [1]
    clipped IPS   mean of min(w, M) r                                 biased toward 0, less variance  [2]
    SNIPS         sum of w r / sum of w                               bias of order 1 / N             [3]
    DM            mean of sum_a pi(a | x) r^(x, a)                    as biased as the predictions r^
    DR            DM + mean of w (r - r^(x, a))                       unbiased if mu or r^ is right   [4]
    effective sample size = (sum w)^2 / sum w^2                                                       [5]

SNIPS follows a constant shift of all rewards exactly, and so does DR if the predictions are shifted too. M is the root
of the number of rows by default [2]. With pi = mu all weights are 1, and IPS and SNIPS are the mean reward. DR is then
the mean reward plus the mean of ``expected - predicted``, whose expectation is 0 for any predictions.

Intervals are over units, such as users: rows of one user are alike. They are those of ``skewed_interval``, since the
products w r are skewed. In simulations they cover 94 to 97 % with light weights and about 91 % with heavy-tailed ones,
more than normal and percentile bootstrap intervals, and need no draws. No interval knows of large weights that the log
happens not to have, and so estimates of a small effective sample size are refused.

Slates: each row is one position of a page. Weights of single positions assume that the reward of a row depends on its
own item and position alone (position-wise independence [6]), not on the rest of the page.

References: [1] Horvitz and Thompson, JASA 1952; Strehl et al., NIPS 2010. [2] Ionides, JCGS 2008. [3] Swaminathan and
Joachims, NIPS 2015. [4] Dudik, Langford and Li, ICML 2011. [5] Kish, Survey Sampling, 1965. [6] Li et al., KDD 2018.

Shapes: N rows, U units.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from longrec.errors import ConfigError, DataError
from longrec.metrics.columns import Floats, Ints, number_groups
from longrec.metrics.importance import as_finite, effective_sample_size, importance_weights
from longrec.metrics.interval import Interval
from longrec.metrics.policy_value import PolicyEstimate, PolicyValue
from longrec.metrics.ratios import UserSums
from longrec.metrics.skewed_interval import skewed_interval

MIN_EFFECTIVE = 100.0
"""Smallest effective sample size whose estimates are not refused."""
POSITION_WISE = (
    "position-wise independence: the reward of a row depends on its own item and position, not on the rest of the page"
)
ROWS_INDEPENDENT = "rows are independent; name the user or the request of each row otherwise"
_TOLERANCE = 1e-3
"""Distance of the mean weight from 1 that the rounding of probabilities explains."""


def estimate_policy_value(
    reward: ArrayLike,
    propensity: ArrayLike,
    target: ArrayLike,
    *,
    predicted: ArrayLike | None = None,
    expected: ArrayLike | None = None,
    position: ArrayLike | None = None,
    unit: ArrayLike | None = None,
    unit_name: str = "user",
    clip: float | None = None,
    min_effective: float = MIN_EFFECTIVE,
) -> PolicyValue:
    """Return the estimated mean reward per row of the target policy, with 95 % intervals over units.

    Args:
        reward: ``[N]`` reward of each row, such as 1 for a click.
        propensity: ``[N]`` probability with which the logging policy drew the item of each row.
        target: ``[N]`` probability of the target policy for the same item in the same context (and position).
        predicted: ``[N]`` reward that a model predicts for the item of each row, for DR.
        expected: ``[N]`` mean of the predictions of all items under the target policy, for DM and DR.
        position: ``[N]`` position of each row on its page. Results then have each position, and name the assumption of
            position-wise independence.
        unit: ``[N]`` user or request of each row. None: rows are independent.
        unit_name: name of the unit.
        clip: largest weight of clipped IPS. None: the root of the number of rows.
        min_effective: effective sample size below which estimates are refused, of rows and of units.

    Raises:
        DataError: a propensity that is 0, null, NaN or above 1, another column that cannot be used, rewards that are
            all equal, or an effective sample size below ``min_effective``.
        ConfigError: ``predicted`` without ``expected``, or a bound that is not positive.

    >>> value = estimate_policy_value([1, 0, 1, 0], [0.5] * 4, [0.9, 0.1, 0.9, 0.1], min_effective=2)
    >>> [round(one.value.value, 4) for one in value.estimates.values()]
    [0.9, 0.9, 0.9]
    """
    faults = [f"{name}: must be above 0, got {one}" for name, one in (("clip", clip), ("min_effective", min_effective))
              if one is not None and not one > 0]  # fmt: skip
    if predicted is not None and expected is None:
        faults.append("predicted: DR also needs expected, the mean prediction under the target policy")
    if faults:
        raise ConfigError("off-policy", faults)
    weight = importance_weights(propensity, target)
    rows = len(weight)
    columns = {"reward": as_finite(reward, "reward", rows)}
    columns |= {} if predicted is None else {"predicted": as_finite(predicted, "predicted", rows)}
    columns |= {} if expected is None else {"expected": as_finite(expected, "expected", rows)}
    owner, units = (None, rows) if unit is None else number_groups(unit, unit_name, rows)
    log = _Log(weight, columns, owner, units, "row" if unit is None else unit_name)
    log.check(min_effective)
    assumptions = (
        *((POSITION_WISE,) if position is not None else ()),
        *(() if unit is not None else (ROWS_INDEPENDENT,)),
    )
    bound = math.sqrt(rows) if clip is None else float(clip)
    positions, warnings = {}, log.list_warnings()
    if position is not None:
        distinct, number = np.unique(np.asarray(position), return_inverse=True)
        if len(number) != rows:
            raise DataError("column 'position'", f"{len(number):,} rows", f"{rows:,} rows, as the propensity has")
        for index, key in enumerate(distinct):
            own = log.select(number == index)
            small = own.find_fault(min_effective)
            if small is None:
                positions[str(key)] = own.summarize(bound)
            else:
                warnings.append(f"position {key} is left out: {small.problem}")
    return log.summarize(bound, positions, assumptions, tuple(warnings))


class _Fault(NamedTuple):
    """Reason why a log has no estimates: what is wrong, what was expected, and what to do."""

    problem: str
    expected: str
    do: str


class _Log:
    """Rows of a log with their weights.

    Args:
        weight: ``[N]``.
        columns: ``reward``, and ``predicted`` and ``expected`` if there are any, ``[N]``.
        owner: ``[N]`` number of the unit of each row. None: each row is one.
        units: number of units.
        unit: name of the unit.
    """

    def __init__(self, weight: Floats, columns: dict[str, Floats], owner: Ints | None, units: int, unit: str) -> None:
        self.weight, self.columns, self.owner, self.units, self.unit = weight, columns, owner, units, unit
        self.effective_rows = effective_sample_size(weight)
        self.effective_units = effective_sample_size(self._sum(weight))
        self.ones = np.ones(len(weight))

    def select(self, chosen: np.ndarray) -> _Log:
        """Return the log of some rows."""
        columns = {name: column[chosen] for name, column in self.columns.items()}
        owner, units = None, int(chosen.sum())
        if self.owner is not None:
            owner, units = number_groups(self.owner[chosen], self.unit, units)
        return _Log(self.weight[chosen], columns, owner, units, self.unit)

    def find_fault(self, min_effective: float) -> _Fault | None:
        """Return why there are no estimates, or None."""
        if self.units < 2:
            unit = "rows" if self.unit == "row" else f"{self.unit}s, over which intervals are"
            do = "collect more, or name another column" if self.unit != "row" else "collect more rows"
            return _Fault(f"a single {self.unit}", f"at least 2 {unit}", do)
        for name, effective in (("row", self.effective_rows), (self.unit, self.effective_units)):
            if effective < min_effective:
                largest = float(self.weight.max())
                problem = f"an effective sample size of {effective:,.1f} {name}s, the largest weight {largest:.4g}"
                do = "collect more rows, choose a target nearer to the logging policy, or lower min_effective"
                return _Fault(problem, f"at least {min_effective:g}", do)
        drawn = self.columns["reward"][self.weight > 0]
        if np.ptp(drawn) == 0:
            problem = f"rewards that are all {drawn[0]:g} where the target is above 0"
            return _Fault(problem, "rewards that differ", "check the join of rewards, such as clicks, with the log")
        return None

    def check(self, min_effective: float) -> None:
        """Raise a DataError if there are no estimates."""
        fault = self.find_fault(min_effective)
        if fault is not None:
            raise DataError("off-policy estimates", fault.problem, fault.expected, fault.do)

    def list_warnings(self) -> list[str]:
        """Return a warning if the mean weight is not 1."""
        mean, _ = self._estimate(self.weight, self.ones)
        if abs(mean.value - 1) <= _TOLERANCE or mean.low <= 1 <= mean.high:
            return []
        reasons = (
            "probabilities are wrong, the log lacks items that the target shows, or it has none of its rare large "
        )
        return [f"the mean weight is {mean}, not 1: {reasons}weights. IPS and DR are off in proportion"]

    def summarize(
        self,
        clip: float,
        positions: dict[str, PolicyValue] | None = None,
        assumptions: tuple[str, ...] = (),
        warnings: tuple[str, ...] = (),
    ) -> PolicyValue:
        """Return all estimates."""
        w, r = self.weight, self.columns["reward"]
        clipped = np.minimum(w, clip)
        ratios = {
            "ips": (w * r, self.ones, w),
            "clipped_ips": (clipped * r, self.ones, clipped),
            "snips": (w * r, w, w),
        }
        expected, predicted = self.columns.get("expected"), self.columns.get("predicted")
        if expected is not None:
            ratios["dm"] = (expected, self.ones, np.zeros(0))
            if predicted is not None:
                ratios["dr"] = (expected + w * (r - predicted), self.ones, w)
        logged, logged_error = self._estimate(r, self.ones)
        estimates = {}
        for name, (numerator, denominator, own) in ratios.items():
            value, error = self._estimate(numerator, denominator)
            gain = skewed_interval(value.value - logged.value, error - logged_error)
            sizes = (effective_sample_size(own), float(own.max())) if len(own) else (None, None)
            estimates[name] = PolicyEstimate(value, gain, *sizes)
        return PolicyValue(
            estimates=estimates,
            logged=logged,
            mean_weight=self._estimate(w, self.ones)[0],
            rows=len(w),
            units=self.units,
            unit=self.unit,
            effective_rows=self.effective_rows,
            effective_units=self.effective_units,
            clip=clip,
            clipped_rows=int((w > clip).sum()),
            positions=positions or {},
            assumptions=assumptions,
            warnings=warnings,
        )

    def _estimate(self, numerator: Floats, denominator: Floats) -> tuple[Interval, Floats]:
        """Return a ratio of sums with its interval, and the contribution ``[U]`` of each unit to its error."""
        sums = UserSums(np.arange(self.units), self._sum(numerator), self._sum(denominator))
        error_U = sums.influence
        return skewed_interval(sums.ratio, error_U), error_U

    def _sum(self, column: Floats) -> Floats:
        """Return the sums ``[U]`` of a column over the rows of each unit."""
        if self.owner is None:
            return column
        sums: Floats = np.bincount(self.owner, column, self.units).astype(np.float64)
        return sums
