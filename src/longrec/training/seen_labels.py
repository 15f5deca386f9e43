"""Labels that a run was trained and validated on, so that no warm start uses labels of its own evaluation period."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from longrec.data.log import Log
from longrec.data.splits import TRAIN, VALID, describe_timestamp
from longrec.data.targets import compute_available_at
from longrec.errors import RunError
from longrec.features.column_delays import Delay, compute_column_delays
from longrec.features.history_columns import NEVER
from longrec.features.schema import Schema
from longrec.training.finished_run import Run, open_run

KEY = "seen_labels"


@dataclass(frozen=True)
class SeenLabels:
    """Labels that a run, and the runs that it started from, were trained and validated on.

    Attributes:
        trained: weights were trained on labels available before this timestamp. None if unknown.
        validated: labels available before this timestamp selected the weights, or the stop. Never before ``trained``.
        step: True if timestamps are steps.
        log: source of the log.
        splits: digests of the splits of the run and of those it started from, each once.
        delays: assumed delays of the columns of the label and of further targets, and under the time column that of the
            event itself, in the form of ``features/column_delays.py``.
    """

    trained: int | None
    validated: int | None
    step: bool
    log: str
    splits: tuple[str, ...]
    delays: Mapping[str, Delay]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> SeenLabels:
        """Read :meth:`to_dict` back."""
        return cls(**{**content, "splits": tuple(content["splits"])})

    def with_delays(self, delays: Mapping[str, Delay]) -> SeenLabels:
        """Return the same labels under other delays. A longer delay moves the timestamps to a later time.

        A column of timestamps cannot be compared with a span or another column. The timestamps are then None.

        Args:
            delays: delay of every raw column by the schema of a later run.
        """
        extra = 0
        for column, own in self.delays.items():
            later = delays.get(column, own)
            if later is None or later == own:
                continue
            if not isinstance(later, int) or not isinstance(own, int):
                return replace(self, trained=None, validated=None)
            extra = max(extra, later - own)
        if self.trained is None or self.validated is None:
            return self
        return replace(self, trained=self.trained + extra, validated=self.validated + extra)

    def merge(self, before: SeenLabels) -> SeenLabels:
        """Return the record merged with that of the run that training started from (warm start)."""
        splits = tuple(dict.fromkeys([*self.splits, *before.splits]))
        delays = {**before.delays, **self.delays}
        mine, theirs = (self.trained, self.validated), (before.trained, before.validated)
        if None in mine or None in theirs:
            return replace(self, trained=None, validated=None, splits=splits, delays=delays)
        trained, validated = (
            max(one, other) for one, other in zip(mine, theirs) if one is not None if other is not None
        )
        return replace(self, trained=trained, validated=validated, splits=splits, delays=delays)


def compute_seen_labels(log: Log, targets: tuple[str, ...]) -> SeenLabels:
    """Compute the labels that a run on a log is trained and validated on, without those of a warm start.

    Args:
        targets: further labels of its model.
    """
    window, timed = log.training_window, log.schema.time is not None
    trained = _single_end(window.train) if timed else None
    if timed and trained is None:
        rows = log.rows_of("train")
        trained = _first_after([log.label_time(rows), *(compute_available_at(log, name, rows) for name in targets)])
    validated = trained
    if trained is not None and len(rows := log.rows_of("valid")):
        validated = _single_end(window.valid) or _first_after([log.label_time(rows)])
        validated = None if validated is None else max(trained, validated)
    delays = _collect_label_delays(log.schema, targets)
    split = log.manifest.get("split", log.folder.name)
    if validated is None:
        trained = None
    return SeenLabels(trained, validated, _uses_steps(log), str(log.manifest["source"]["log"]), (split,), delays)


def read_seen_labels(run: Run) -> SeenLabels:
    """Read the labels that a finished run was trained and validated on.

    Raises:
        RunError: the run has no record, and its log (or the run it started from) is missing.
    """
    about = json.loads((run.folder / "log.json").read_text(encoding="utf-8"))
    if KEY in about:
        return SeenLabels.from_dict(about[KEY])
    seen = _seen_without_window(run.log())
    if run.config.fit.init_from is not None:
        seen = seen.merge(read_seen_labels(open_run(run.config.fit.init_from)))
    return seen


def _seen_without_window(log: Log) -> SeenLabels:
    """Compute the labels of a run of version 0.3 or earlier: all labels of train and valid, whatever their delay."""
    ends: list[int | None] = [None, None]
    if log.schema.time is not None:
        sample = ~np.isnan(log.labels)
        learned = [np.flatnonzero(sample & (log.splits == code)) for code in (TRAIN, VALID)]
        ends = [_first_after([log.label_time(rows) for rows in learned[:many]]) for many in (1, 2)]
        ends = [None, None] if None in ends else ends
    source = str(log.manifest["source"]["log"])
    return SeenLabels(
        ends[0], ends[1], _uses_steps(log), source, (log.folder.name,), _collect_label_delays(log.schema, ())
    )


def collect_delays(schema: Schema) -> dict[str, Delay]:
    """Return the delay of every raw column of a schema, as ``SeenLabels.delays``."""
    delays = compute_column_delays(schema)
    if schema.label is not None and schema.label_available_at is None:
        delays[schema.label.column] = schema.longest_label_delay
    return delays


def find_start_fault(before: SeenLabels, log: Log) -> str:
    """Return the fault of a warm start on a log from a run with the labels ``before``. Empty if there is none."""
    window, step = log.training_window, _uses_steps(log)
    seen = before.with_delays(collect_delays(log.schema))
    if before.splits == (log.manifest.get("split"),) and seen == before:
        return ""  # the same rows train, validate and test
    apart = before.step != step or (step and before.log != str(log.manifest["source"]["log"]))
    if seen.trained is None or seen.validated is None or log.schema.time is None or apart:
        return "the labels of that run are unknown or cannot be compared with this split"
    faults = []
    for timestamp, first, action, first_split in (
        (
            seen.trained,
            window.first_measured,
            "trained",
            "valid and test begin" if _has_valid_rows(log) else "test begins",
        ),
        (seen.validated, window.first_test, "validated", "test begins"),
    ):
        if timestamp > first:
            faults.append(
                f"that run was {action} on labels available until {describe_timestamp(timestamp, step)}, and here "
                f"{first_split} at {describe_timestamp(first, step)}"
            )
    return "; ".join(faults)


def check_warm_start(before: SeenLabels, log: Log, where: str, allowed: bool) -> list[str]:
    """Refuse a warm start from weights with later labels. If it is allowed, return the warnings of the results.

    Raises:
        RunError: with both timestamps in the message.
    """
    fault = find_start_fault(before, log)
    if not fault:
        return []
    if allowed:
        return [
            f"{where}: {fault}. The weights may be trained or validated on labels that this run is evaluated on "
            "(fit.allow_future_weights); start from an earlier run to evaluate this model."
        ]
    raise RunError(
        where,
        fault,
        "weights trained and validated only on labels available before the evaluation of this run",
        "start from a run whose split ends earlier, or allow it (fit.allow_future_weights: true); results then contain "
        "a warning",
    )


def _collect_label_delays(schema: Schema, targets: tuple[str, ...]) -> dict[str, Delay]:
    """Return the delays of the labels of a run."""
    columns = [] if schema.label is None else [schema.label.column]
    columns += [schema.column(name) for name in targets]
    columns += [] if schema.time is None else [schema.time.column]
    delays = collect_delays(schema)
    return {column: delays[column] for column in columns}


def _has_valid_rows(log: Log) -> bool:
    return bool(log.manifest["parts"]["valid"]["samples"])


def _uses_steps(log: Log) -> bool:
    return log.schema.time is not None and log.schema.time.unit == "step"


def _single_end(ends: np.ndarray[Any, np.dtype[np.int64]]) -> int | None:
    return int(ends[0]) if len(ends) == 1 and ends[0] != NEVER else None


def _first_after(timestamps: list[np.ndarray[Any, np.dtype[np.int64]]]) -> int | None:
    """Return the first timestamp after all of these. None if one of them is NEVER."""
    last = max((int(one.max()) for one in timestamps if len(one)), default=0)
    return None if last == NEVER else last + 1
