"""Checks of the labels of a log: number, classes, and availability in the training window."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from longrec.data import splits
from longrec.data.log import Log
from longrec.errors import DataError
from longrec.features.history_columns import NEVER
from longrec.features.label_encoding import compute_labels
from longrec.features.schema import Schema

__all__ = [
    "check_classes",
    "check_labels",
    "check_window",
    "compute_labels",
    "describe_exclusions",
    "describe_label",
    "describe_label_delay",
    "window_warnings",
]


ONLY_POSITIVES = "every training label is 1: a retriever can train on this log, a ranker cannot"


def describe_label(schema: Schema, where: str) -> str:
    """Return the label column of a log for messages.

    Args:
        where: name of the log.
    """
    return f"{where}: every event a positive" if schema.label is None else f"{where}: column {schema.label.column!r}"


def check_labels(labels: NDArray[np.float32], codes: NDArray[np.int8], where: str) -> list[str]:
    """Raise an error if the training rows have no labels or no positive one, and return a warning if all are positive.

    Args:
        labels: label of each row, NaN for none.
        codes: split code of each row, as in ``SPLITS``.
        where: label column, for error messages.
    """
    train = labels[(codes == splits.TRAIN) & ~np.isnan(labels)]
    if not len(train):
        raise DataError(
            where, "no training row has a label", "labeled rows before the split cutoff", "check label and split"
        )
    if train.max() == 0:
        raise _one_class(where, 0)
    return [ONLY_POSITIVES] if train.min() == 1 else []


def check_classes(log: Log) -> None:
    """Raise an error if the training rows have labels of one class, from which a model of the label learns nothing.

    Raises:
        DataError: labels of one class.
    """
    counts = log.manifest["parts"]["train"]
    if not 0 < counts["positives"] < counts["samples"]:
        where = describe_label(log.schema, str(log.manifest["source"]["log"]))
        raise _one_class(where, int(counts["positives"] > 0), has_label=log.schema.label is not None)


def _one_class(where: str, label: int, has_label: bool = True) -> DataError:
    do = "check the condition of the label, and the split" if has_label else "set label in the schema"
    if label:
        do += "; a log of only clicks needs rows with label 0 for impressions without a click"
    return DataError(where, f"every training label is {label}", "both classes", do)


def describe_label_delay(log: Log) -> str:
    """Return the config key and value that delay the labels, for messages."""
    schema = log.schema
    if schema.label_available_at is not None:
        return f"available_at of features.{schema.label_available_at}"
    own = [
        name for name, f in schema.features.items() if f.available_after and schema.column(name) == schema.label_column
    ]
    if own and schema.longest_label_delay > schema.delay(schema.label_delay):
        return f"available_after of features.{', features.'.join(own)}"
    return f"label_delay: {schema.label_delay}"


def describe_exclusions(log: Log, split: str) -> str:
    """Return the reasons why rows of train or valid are excluded, with their counts."""
    excluded, what = log.excluded_rows(split), "valid or test" if split == "train" else "test"
    messages = []
    if excluded.late_labels:
        messages.append(
            f"of {excluded.late_labels:,} the label was not available before {what} begins "
            f"({describe_label_delay(log)})"
        )
    if excluded.late_rows:
        messages.append(f"{excluded.late_rows:,} are not earlier than rows of the same user in {what}")
    return ", ".join(messages)


def check_window(log: Log, both_classes: bool = True) -> None:
    """Raise an error if the labels available in the training window are not of both classes.

    Args:
        both_classes: False accepts labels that are all positive, as ``prepare`` does.

    Raises:
        DataError: no available training label, or labels of one class.
    """
    excluded = log.excluded_rows("train")
    if not len(excluded.rows):
        return  # the labels of all rows have been checked
    labels = log.labels.take(log.rows_of("train"))
    if len(labels) and (labels.min() < labels.max() or (not both_classes and labels.max() > 0.5)):
        return
    rest = f"every other label is {labels[0]:g}" if len(labels) else "no other training row has a label"
    raise DataError(
        "the training window",
        f"{len(excluded.rows):,} rows are left out: {describe_exclusions(log, 'train')}; {rest}",
        "labels of both classes that were available before the split",
        "move the split later, split by time, or shorten the delay if labels are available sooner",
    )


def window_warnings(log: Log) -> list[str]:
    """Return warnings about labels that became available too late for training or validation."""
    messages, window = [], log.training_window
    if "valid" in log.excluded_counts and not len(log.rows_of("valid")):
        messages.append(
            f"validation: every row is left out, {describe_exclusions(log, 'valid')}. So there is no early stopping "
            "and no best checkpoint: the weights after the last step are used; begin validation earlier."
        )
    if len(window.train) > 1 and log.has_delayed_labels and window.first_test < NEVER:
        rows = log.rows_of("train")
        late = (log.label_time(rows) >= window.first_test) & (log.events.times.take(rows) < window.first_test)
        if late.any():
            messages.append(
                f"training: a further {late.mean():.2%} of the training rows are before the first test row, with "
                f"labels that became available only at or after it ({describe_label_delay(log)}); "
                "split by time to leave them out."
            )
    return messages
