"""Contradictory delays of feedback: one feature would show a value that another one makes available later."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from longrec.features.feature import Feature


def find_delay_faults(
    feedback: Mapping[str, tuple[str, Feature]], label: str | None, label_delay: str, delay: Callable[[str], int]
) -> list[str]:
    """List the faults in the delays of a schema.

    A feature of the label's column may have a longer delay than the label, never a shorter one. Features of any other
    column must have one delay.

    Args:
        feedback: raw column and feature by name, of all feedback features.
        label: the label's column, if there is one.
        delay: converts a duration to the unit of the log.
    """
    faults, first = [], dict[str, str]()
    for name, (column, feature) in feedback.items():
        other = first.setdefault(column, name)
        before, what = feedback[other][1], f"features.{name}: reads {column!r}"
        if feature.available_at != before.available_at or (
            feature.available_at is None
            and column != label
            and delay(feature.available_after or label_delay) != delay(before.available_after or label_delay)
        ):
            faults.append(
                f"{what}, known {_describe_delay(feature)}, and features.{other} says that it is known "
                f"{_describe_delay(before)}; "
                "expected one answer for one column; give both the same"
            )
        elif column != label:
            continue
        elif feature.available_at is not None and delay(label_delay):
            faults.append(
                f"{what}, the label, known {_describe_delay(feature)}, and label_delay says {label_delay}; expected "
                "one of the two; leave label_delay out, and give other feedback a available_after of its own"
            )
        elif feature.available_at is None and delay(feature.available_after or label_delay) < delay(label_delay):
            faults.append(
                f"{what}, the label, {_describe_delay(feature)}, which leaks the answer: label_delay says "
                f"{label_delay}; expected that or longer; leave available_after out"
            )
    return faults


def _describe_delay(feature: Feature) -> str:
    if feature.available_at is not None:
        return f"at the timestamp in {feature.available_at!r}"
    return f"after {feature.available_after or 'label_delay'}"
