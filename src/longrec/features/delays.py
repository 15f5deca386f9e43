"""Delays of feedback that contradict each other: one part of a schema would show what another says is not known yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from longrec.features.feature import Feature


def delay_faults(
    feedback: Mapping[str, tuple[str, Feature]], label: str, label_known_after: str, delay: Callable[[str], int]
) -> list[str]:
    """The faults of a schema's delays.

    A feature of the label's column may wait longer than the label, never shorter. Features of any other column agree.

    Args:
        feedback: raw column and feature by name, of all feedback features.
        label: the label's column.
        delay: a duration in the unit of the log.
    """
    faults, first = [], dict[str, str]()
    for name, (column, feature) in feedback.items():
        other = first.setdefault(column, name)
        before, what = feedback[other][1], f"features.{name}: reads {column!r}"
        if feature.known_at != before.known_at or (
            feature.known_at is None
            and column != label
            and delay(feature.known_after or label_known_after) != delay(before.known_after or label_known_after)
        ):
            faults.append(
                f"{what}, known {_words(feature)}, and features.{other} says that it is known {_words(before)}; "
                "expected one answer for one column; give both the same"
            )
        elif column != label:
            continue
        elif feature.known_at is not None and delay(label_known_after):
            faults.append(
                f"{what}, the label, known {_words(feature)}, and label_known_after says {label_known_after}; expected "
                "one of the two; leave label_known_after out, and give other feedback a known_after of its own"
            )
        elif feature.known_at is None and delay(feature.known_after or label_known_after) < delay(label_known_after):
            faults.append(
                f"{what}, the label, {_words(feature)}, which leaks the answer: label_known_after says "
                f"{label_known_after}; expected that or longer; leave known_after out"
            )
    return faults


def _words(feature: Feature) -> str:
    if feature.known_at is not None:
        return f"at the timestamp in {feature.known_at!r}"
    return f"after {feature.known_after or 'label_known_after'}"
