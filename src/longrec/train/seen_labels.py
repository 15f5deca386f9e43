"""Which labels a run's weights have seen, in time: no warm start may know what its own run is measured on."""

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
from longrec.train.finished_run import Run, open_run

KEY = "seen_labels"


@dataclass(frozen=True)
class SeenLabels:
    """The labels behind the weights of a run, and of the runs that it started from.

    Attributes:
        trained: weights were fitted to labels known before this moment; None where that cannot be told.
        validated: labels known before this moment chose the weights, or when to stop; never earlier than ``trained``.
        step: the moments are steps.
        log: where the log came from.
        splits: digests of the splits of the run and of those it started from, each once.
        delays: how late the columns of the label and of further targets were taken to be known, and under the time
            column the event itself, as ``features/compute_column_delays.py`` tells delays.
    """

    trained: int | None
    validated: int | None
    step: bool
    log: str
    splits: tuple[str, ...]
    delays: Mapping[str, Delay]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> SeenLabels:
        """Read :meth:`to_dict` back."""
        return cls(**{**content, "splits": tuple(content["splits"])})

    def with_delays(self, delays: Mapping[str, Delay]) -> SeenLabels:
        """The same labels under other delays: what is known later than this run took it to be was seen from later on.

        A column of moments cannot be compared with a span, or with another column: nothing is told then.

        Args:
            delays: of every raw column, by the schema of a later run.
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

    def after(self, before: SeenLabels) -> SeenLabels:
        """What a run has seen that started from weights which had seen ``before``."""
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
    """What a run on a log sees by itself.

    Args:
        targets: further labels that its model learns from.
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
    """What the weights of a finished run have seen.

    Raises:
        RunError: the run does not tell, and the log (or the run) it came from is gone.
    """
    about = json.loads((run.folder / "log.json").read_text(encoding="utf-8"))
    if KEY in about:
        return SeenLabels.from_dict(about[KEY])
    seen = _seen_without_window(run.log())
    if run.config.fit.init_from is not None:
        seen = seen.after(read_seen_labels(open_run(run.config.fit.init_from)))
    return seen


def _seen_without_window(log: Log) -> SeenLabels:
    """What a run of version 0.3 or before has seen: every label of train and valid, however late it was known."""
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
    """The delay of every raw column by a schema, as ``SeenLabels.delays``."""
    delays = compute_column_delays(schema)
    if schema.label_available_at is None:
        delays[schema.label.column] = schema.longest_label_delay
    return delays


def find_start_fault(before: SeenLabels, log: Log) -> str:
    """What is wrong with starting a run on a log from weights that have seen ``before``; empty where nothing is."""
    window, step = log.training_window, _uses_steps(log)
    seen = before.with_delays(collect_delays(log.schema))
    if before.splits == (log.manifest.get("split"),) and seen == before:
        return ""  # the same rows train, validate and test
    apart = before.step != step or (step and before.log != str(log.manifest["source"]["log"]))
    if seen.trained is None or seen.validated is None or log.schema.time is None or apart:
        return "which labels that run has seen cannot be told from its split or compared with this one"
    faults = []
    for timestamp, first, action, first_split in (
        (
            seen.trained,
            window.first_measured,
            "trained on",
            "valid and test begin" if _has_valid_rows(log) else "test begins",
        ),
        (seen.validated, window.first_test, "was validated on", "test begins"),
    ):
        if timestamp > first:
            faults.append(
                f"that run {action} labels known until {describe_timestamp(timestamp, step)}, and here {first_split} "
                f"at {describe_timestamp(first, step)}"
            )
    return "; ".join(faults)


def check_warm_start(before: SeenLabels, log: Log, where: str, allowed: bool) -> list[str]:
    """Refuse weights from the future of a run; where they are allowed by name, the sentences that results must carry.

    Raises:
        RunError: with both moments in the message.
    """
    fault = find_start_fault(before, log)
    if not fault:
        return []
    if allowed:
        return [
            f"{where}: {fault}. The weights may have seen the labels that this run is measured on "
            "(fit.allow_future_weights); start from an earlier run to measure this model."
        ]
    raise RunError(
        where,
        fault,
        "weights that have seen only labels known before this run is measured",
        "start from a run whose split ends earlier, or allow it by name (fit.allow_future_weights: true); results then "
        "carry a warning",
    )


def _collect_label_delays(schema: Schema, targets: tuple[str, ...]) -> dict[str, Delay]:
    """The delays behind the labels that a run learns from."""
    columns = [schema.label.column, *(schema.column(name) for name in targets)]
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
    """The first moment after all of these; None where one of them is never."""
    last = max((int(one.max()) for one in timestamps if len(one)), default=0)
    return None if last == NEVER else last + 1
