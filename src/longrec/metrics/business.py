r"""Value of lists: of the top of a list by a score, and of impressions that users saw.

    CTR = clicks / impressions                    CVR = conversions / clicks
    GPM = 1000 revenue / impressions              eCPM = 1000 sum of bid x click / impressions

GPM is the revenue (gross merchandise value) per thousand impressions; eCPM is what advertisers who pay their bid per
click owe for a thousand. All four are ratios of sums over users, see :mod:`longrec.metrics.ratios`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from longrec.errors import ConfigError, DataError
from longrec.metrics.accuracy import check_k
from longrec.metrics.columns import as_labels, as_numbers
from longrec.metrics.interval import Interval
from longrec.metrics.ranking import compute_ranks
from longrec.metrics.ratios import Method, UserSums, difference_of_ratios, summarize_ratios


def ctr_at_k(label: ArrayLike, score: ArrayLike, group: ArrayLike, k: int) -> float:
    """Return the click rate of the rows that the score ranks among the first ``k`` of their list.

    On logged data this is no forecast of an online rate, because only shown items could be clicked. Ties are ranked
    with the unclicked first.

    Args:
        label: ``[N]`` of 0 and 1.
        score: ``[N]`` finite numbers.
        group: ``[N]`` the list of each row. All rows of a list shorter than ``k`` count.

    Raises:
        DataError: if a column cannot be used.
        ConfigError: if ``k`` is below 1.

    >>> ctr_at_k([1, 0, 0, 1], [0.9, 0.1, 0.8, 0.2], [1, 1, 2, 2], k=1)
    0.5
    """
    y = as_labels(label)
    return float(y[compute_ranks(as_numbers(score, "score", len(y)), y, group) <= check_k(k)].mean())


def value_share_at_k(value: ArrayLike, score: ArrayLike, group: ArrayLike, k: int) -> float:
    """Return the share of all value (revenue, watch time, clicks times price) in the first ``k`` rows of each list.

    Args:
        value: ``[N]`` value of each row, not negative.
        score, group, k: as :func:`ctr_at_k`.

    Raises:
        DataError: if a value is negative, all values are 0, or a column cannot be used.
        ConfigError: if ``k`` is below 1.

    >>> value_share_at_k([30, 0, 0, 10], [0.9, 0.1, 0.8, 0.2], [1, 1, 2, 2], k=1)
    0.75
    """
    v = as_numbers(value, "value")
    if (v < 0).any() or not v.any():
        raise DataError("column 'value'", f"values from {v.min():g} to {v.max():g}", "none negative, one positive")
    return float(v[compute_ranks(as_numbers(score, "score", len(v)), v, group) <= check_k(k)].sum() / v.sum())


@dataclass(frozen=True)
class Impressions:
    """Impressions of users, with what followed. Columns that a log does not have are None.

    Attributes:
        user: ``[N]`` the user of each impression.
        click: ``[N]`` of 0 and 1.
        conversion: ``[N]`` number of conversions after a click, 0 without one.
        revenue: ``[N]`` value, not negative.
        bid: ``[N]`` price that the advertiser pays for a click, not negative.
    """

    user: ArrayLike
    click: ArrayLike
    conversion: ArrayLike | None = None
    revenue: ArrayLike | None = None
    bid: ArrayLike | None = None

    def sums(self) -> dict[str, UserSums]:
        """Return numerator and denominator by user of each metric whose columns are there.

        Raises:
            DataError: if a column cannot be used, a value is negative, a conversion has no click, or there is no click
                for CVR.

        >>> {name: one.ratio for name, one in Impressions([1, 1, 2], [1, 0, 1], bid=[3, 9, 6]).sums().items()}
        {'ctr': 0.6666666666666666, 'ecpm': 3000.0}
        """
        click = as_labels(self.click, "click")
        ones = np.ones(len(click))
        result = {"ctr": UserSums.of(self.user, click, ones)}
        if self.conversion is not None:
            conversion = _as_amounts(self.conversion, "conversion", len(click))
            if (conversion > 0)[click == 0].any():
                row = int(((conversion > 0) & (click == 0)).argmax())
                do = "attribute each conversion to the impression that was clicked"
                raise DataError("column 'conversion'", f"one without a click at row {row}", "conversions of clicks", do)
            result["cvr"] = UserSums.of(self.user, conversion, click)
        if self.revenue is not None:
            result["gpm"] = UserSums.of(self.user, 1000 * _as_amounts(self.revenue, "revenue", len(click)), ones)
        if self.bid is not None:
            result["ecpm"] = UserSums.of(self.user, 1000 * click * _as_amounts(self.bid, "bid", len(click)), ones)
        return result


def summarize_impressions(
    impressions: Impressions, method: Method = "delta", *, n_resamples: int = 300, seed: int = 0
) -> dict[str, Interval]:
    """Return CTR, CVR, GPM and eCPM, each with a 95 % interval over users.

    Args:
        method: ``delta``, or ``bootstrap`` with ``n_resamples`` draws of users.

    Raises:
        DataError: as ``Impressions.sums``, and if there are fewer than two users.

    >>> shown = Impressions(user=[1, 1, 2, 3], click=[1, 0, 0, 1], revenue=[5, 0, 0, 3])
    >>> {name: one.value for name, one in summarize_impressions(shown).items()}
    {'ctr': 0.5, 'gpm': 2000.0}
    """
    return summarize_ratios(impressions.sums(), method, n_resamples=n_resamples, seed=seed)


def compare_impressions(
    impressions: Impressions, baseline: Impressions, method: Method = "delta", *, n_resamples: int = 300, seed: int = 0
) -> dict[str, Interval]:
    """Return the differences of CTR, CVR, GPM and eCPM to a baseline, each with a 95 % interval over users.

    Users who are in both are paired. For the two groups of an A/B test the interval is that of independent samples.

    Raises:
        ConfigError: if one of the two has columns that the other lacks.
        DataError: as ``Impressions.sums``.

    >>> shown = Impressions(user=[1, 1, 2, 3], click=[1, 0, 0, 1])
    >>> print(compare_impressions(shown, Impressions(user=[1, 2, 3], click=[1, 0, 1]))["ctr"])
    -0.1667 [-0.5226, 0.1893]
    """
    first, second = impressions.sums(), baseline.sums()
    if list(first) != list(second):
        faults = [f"metrics {', '.join(first)} and {', '.join(second)}: give both the same columns"]
        raise ConfigError("compare_impressions", faults)
    return {
        name: difference_of_ratios(one, second[name], method, n_resamples=n_resamples, seed=seed)
        for name, one in first.items()
    }


def _as_amounts(values: ArrayLike, name: str, rows: int) -> np.ndarray:
    column = as_numbers(values, name, rows)
    if (column < 0).any():
        raise DataError(f"column '{name}'", f"the value {column.min():g}", "values of 0 or more")
    return column
