r"""Interval of a mean or a ratio of means whose contributions are skewed.

Contributions of few clicks, or of few large weights, are skewed to the right. The normal interval then ends too low: it
misses high values more often than low ones. Hall's transformation removes the skewness of the t statistic:

    R = value    s^2 = U / (U - 1) sum_u e_u^2    r = sum_u e_u^3 / (sum_u e_u^2)^(3/2)
    g(T) = ((1 + r T / 3)^3 - 1) / r + r / 6      is close to normal for T = (R - truth) / s
    interval: R - s max(g^-1(1.96), 1.96)   to   R - s min(g^-1(-1.96), -1.96)

with the contribution e_u of unit u to the error of R. The transformation is monotone and needs one pass over the units
and no draws. With r = 0 the interval is the normal one. Source: Hall, "On the removal of skewness by transformation",
JRSS B 54, 1992.

Departure: an end is that of the normal interval where it is further out. The estimate of the skewness depends on the
few largest contributions. Where these have both signs, as those of a ratio, it moves the interval to the wrong side
often enough to cover less than the normal one. ``bench/quality/off_policy.py`` measures coverage.

Shapes: U units (users, requests or rows).
"""

from __future__ import annotations

import numpy as np

from longrec.errors import DataError
from longrec.metrics.columns import Floats
from longrec.metrics.interval import Interval

_WIDTH = 1.959963984540054
"""Quantile of the normal distribution for 95 %."""
_SYMMETRIC = 1e-6
"""Skewness below which the transformation is the identity in float64."""


def skewed_interval(value: float, error_U: Floats) -> Interval:
    """Return a mean, or a ratio of means, with its 95 % interval.

    Args:
        value: the estimate.
        error_U: ``[U]`` contribution of each unit to the error of the estimate, with the sum 0. Of a mean these are
            ``(x_u - mean) / U``. See ``UserSums.influence`` for a ratio.

    Raises:
        DataError: if there are fewer than two units.

    >>> import numpy as np
    >>> click = np.array([1.0] * 4 + [0.0] * 196)
    >>> print(skewed_interval(click.mean(), (click - click.mean()) / len(click)))
    0.0200 [0.0005, 0.0680]
    """
    units = len(error_U)
    if units < 2:
        raise DataError("rows", f"{units} unit", "two units or more", "measure more rows")
    square_U = error_U * error_U
    square = float(square_U.sum())
    if square == 0:
        return Interval(value, value, value)
    error = np.sqrt(units / (units - 1) * square)
    skewness = float(square_U @ error_U) / square**1.5
    low = value - error * max(_invert(_WIDTH, skewness), _WIDTH)
    high = value - error * min(_invert(-_WIDTH, skewness), -_WIDTH)
    return Interval(float(value), float(low), float(high))


def _invert(z: float, skewness: float) -> float:
    """Return the t statistic whose transformed value is ``z``."""
    if abs(skewness) < _SYMMETRIC:
        return z
    return float(3 / skewness * (np.cbrt(1 + skewness * (z - skewness / 6)) - 1))
