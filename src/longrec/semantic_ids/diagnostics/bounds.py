"""Bounds of the findings: from which value a figure is a notice or an alarm. The page and the guide state them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from longrec.auditing.finding import ALARM, NOTICE, OK


@dataclass(frozen=True)
class Bound:
    """Bound of one figure.

    Attributes:
        figure: what is measured, in a few words.
        notice: value from which the figure is a notice.
        alarm: value from which it is an alarm. None: it never is.
        above: True if large values are faults.
        unit: ``share`` (shown in percent), ``factor`` or ``auc``.
    """

    figure: str
    notice: float
    alarm: float | None
    above: bool
    unit: str = "share"

    def judge(self, value: float) -> str:
        """Return ``ok``, ``notice`` or ``alarm``. An undefined value is a notice."""
        sign = 1 if self.above else -1
        if self.alarm is not None and sign * value > sign * self.alarm:
            return ALARM
        return OK if sign * value <= sign * self.notice else NOTICE

    def format(self, value: float) -> str:
        """Format a value in the unit of the figure.

        >>> BOUNDS["twins"].format(0.0812), BOUNDS["close codewords"].format(1.5), BOUNDS["weighted match"].format(0.61)
        ('8.1 %', '1.50', '0.610')
        """
        if self.unit == "share":
            digits = 0 if value in (0, 1) else 1 if abs(value) >= 0.001 else 3
            return f"{100 * value:.{digits}f} %"
        return f"{value:.2f}" if self.unit == "factor" else f"{value:.3f}"

    def describe(self) -> str:
        """Return the bounds as text.

        >>> BOUNDS["twins"].describe(), BOUNDS["close codewords"].describe()
        ('notice above 1 %, alarm above 5 %', 'notice above 2')
        """
        side = "above" if self.above else "below"
        values = [("notice", self.notice)] + ([] if self.alarm is None else [("alarm", self.alarm)])
        return ", ".join(f"{verdict} {side} {self._format_bound(value)}" for verdict, value in values)

    def _format_bound(self, value: float) -> str:
        return f"{100 * value:g} %" if self.unit == "share" else f"{value:g}"


BOUNDS: Mapping[str, Bound] = {
    "dead codes": Bound("used codes of a level / its codes (or its items, if they are fewer)", 0.9, 0.5, above=False),
    "uneven use": Bound("perplexity of a level / its used codes", 0.5, 0.25, above=False),
    "collapsed level": Bound("perplexity of the last level / the largest of a level before", 0.4, 0.25, above=False),
    "idle level": Bound("variance that a level removes / what is left before it", 0.02, 0.005, above=False),
    "close codewords": Bound("geometry factor of a level, at its sigma", 2.0, None, above=True, unit="factor"),
    "popular codes": Bound("exposure of the top 1 % of level-1 codes", 0.1, 0.3, above=True),
    "popular prefixes": Bound("exposure of the top 1 % of pairs, minus that of the top 1 % of items", 0.1, 0.25, True),
    "twins": Bound("items that share their full ID / items", 0.01, 0.05, above=True),
    "retention": Bound("retention at 50 with quantization", 0.7, 0.4, above=False),
    "autoencoder": Bound("retention at 50 of the autoencoder alone", 0.9, 0.7, above=False),
    "item vectors": Bound("hit rate at 50 of the item vectors / chance", 3.0, None, above=False, unit="factor"),
    "weighted match": Bound("weighted match AUC against random items", 0.55, 0.52, above=False, unit="auc"),
    "lost behavior": Bound("AUC of the item vectors minus that of the codewords", 0.03, 0.08, above=True, unit="auc"),
    "one direction": Bound("variance of the latent along its largest direction", 0.3, 0.6, above=True),
    "narrow cone": Bound("mean absolute cosine of two items in the latent", 0.4, 0.7, above=True, unit="auc"),
    "churn": Bound("items whose level-1 code differs from that of the other version", 0.1, 0.3, above=True),
}
"""Bound of each check. The checks of levels are about the worst level."""
