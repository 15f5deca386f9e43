"""Warnings for metrics whose values show that a model is worse than a constant prediction."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from longrec.metrics.interval import Interval

__all__ = ["PCOC_BOUNDS", "metric_warnings"]

PCOC_BOUNDS = (0.8, 1.25)
"""Bounds of PCOC for a calibrated model: 25 % too many predicted positives, and the inverse ratio."""


def metric_warnings(
    metrics: Mapping[str, Interval], split: str, run: str = "", not_probabilities: Collection[str] = ()
) -> tuple[str, ...]:
    """Return one sentence per metric that is worse than a constant prediction, with its value, meaning and advice.

    The value decides. The sentence notes an interval that reaches across the bound.

    Args:
        metrics: key -> interval. Keys of a further task are written ``auc.TASK``.
        split: name of the measured rows.
        run: prefix of each sentence.
        not_probabilities: tasks whose scores are no probabilities of their label, so that only their order counts. The
            empty name is the score that ranks the rows.

    >>> metric_warnings({"auc": Interval(0.7, 0.6, 0.8), "pcoc": Interval(1.1, 0.9, 1.4)}, "test")
    ()
    >>> metric_warnings({"auc": Interval(0.48, 0.44, 0.52)}, "valid")[0].partition(":")[0]
    'AUC on valid is 0.4800 [0.4400, 0.5200], below 0.5'
    """
    sentences = []
    for key, one in metrics.items():
        name, _, task = key.partition(".")
        if not one.defined or (task in not_probabilities and name != "auc"):
            continue
        of = f" of {task}" if task else ""
        if name == "auc" and one.value < 0.5:
            sentences.append(
                f"AUC{of} on {split} is {one}, below 0.5: the scores order rows worse than chance"
                f"{_note_crossing(one, 0.5)}; check that the label means the same in train and {split}, and look in "
                "metrics.jsonl for a model that had learned its training rows by heart"
            )
        elif name == "normalized_entropy" and one.value > 1:
            sentences.append(
                f"Normalized entropy{of} on {split} is {one}, above 1: the base rate of {split} as the score of every "
                f"row has a lower log loss{_note_crossing(one, 1.0)}; do not read these scores as probabilities, "
                "and train with fit.monitor=log_loss, fewer epochs, a lower fit.lr or more data"
            )
        elif name == "pcoc" and not PCOC_BOUNDS[0] <= one.value <= PCOC_BOUNDS[1]:
            low, high = PCOC_BOUNDS
            sentences.append(
                f"PCOC{of} on {split} is {one}, outside {low:g} to {high:g}: the scores promise {one.value:.3g} "
                f"positives for each that came{_note_crossing(one, low if one.value < low else high)}; compare the "
                f"positive rates of train and {split}, train with fit.monitor=log_loss, or calibrate the scores before "
                "use"
            )
    return tuple(f"{run}: {sentence}" if run else sentence for sentence in sentences)


def _note_crossing(one: Interval, bound: float) -> str:
    across = one.low <= bound <= one.high
    return f" (the interval reaches across {bound:g}: more rows may say otherwise)" if across else ""
