"""Recording of an event log, as if each of its events had come to ``POST /events`` when it became available.

Rows are decoded, planned and written by the code of ``/events``, many at once. An event that is recorded already does
not change, so that a log may be recorded again. What ``/events`` would refuse is written to a file with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from longrec.errors import DataError, RequestError
from longrec.features.logged_rows import LoggedRows
from longrec.features.raw_columns import format_request_time
from longrec.progress import Progress
from longrec.serve.event_batches import record_batch, split_rounds
from longrec.serve.event_reader import Event
from longrec.serve.request_json import EventRequest
from longrec.serve.service import Service

ROW, REASON = "refused_row", "refused_reason"
"""Columns of refused rows: their number in the log, from 1, and why they are refused."""
_TOGETHER = 4_096
"""Number of rows that are recorded at once."""


class EventLog(Protocol):
    """An event log that is open for reading."""

    @property
    def columns(self) -> Sequence[str]:
        """Columns of the log that are read."""
        ...

    @property
    def count(self) -> int:
        """Number of rows."""
        ...

    def read(self, size: int) -> Iterator[LoggedRows]:
        """Yield all rows, up to ``size`` at once."""
        ...


class LogClock:
    """Clock of a service that records a log: the time at which an event, or its feedback, became available."""

    now = 0

    def __call__(self) -> int:
        """Return the time of the row that is recorded."""
        return self.now


@dataclass
class LogCounts:
    """What was recorded of a log.

    Attributes:
        events: rows whose event was recorded.
        unchanged: further rows, whose event was recorded before.
        refused: rows that are no valid events.
    """

    events: int = 0
    unchanged: int = 0
    refused: int = 0


class RefusedRows:
    """Writer of a Parquet file of the rows that are refused. Without any, the file of an earlier log is removed.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._half = path, path.with_name(f".{path.name}.partial")
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> RefusedRows:
        return self

    def write(self, rows: LoggedRows, reasons: Mapping[int, str]) -> None:
        """Write rows by their position, each with its reason."""
        if not reasons:
            return
        positions = sorted(reasons)
        table = rows.table.take(pa.array(positions))
        table = table.append_column(ROW, pa.array([rows.numbers[at] for at in positions], pa.int64()))
        table = table.append_column(REASON, pa.array([reasons[at] for at in positions], pa.string()))
        if self._writer is None:
            self._half.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._half, table.schema)
        self._writer.write_table(table)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
            self._half.rename(self._path)
        elif kind is None:
            self._path.unlink(missing_ok=True)


class LogRecorder:
    """Recorder of an event log.

    Args:
        service: service that records events without a source model, whose clock is ``clock``.
        clock: its clock.
        allow_unknown: accept items that the bundle does not contain.
    """

    def __init__(self, service: Service, clock: LogClock, allow_unknown: bool = False) -> None:
        self._service, self._recorder, self._clock = service, service.recorder, clock
        self._fitted, self._allow_unknown = service.bundle.fitted, allow_unknown
        self.counts = LogCounts()

    def record(self, log: EventLog, refused: RefusedRows) -> None:
        """Record all rows of a log durably.

        Raises:
            DataError: if the log lacks a column that every event must have. Nothing is recorded then.
            StoreError: if a store does not respond. Recording the log again completes it.
        """
        missing = [column for column in self._recorder.reader.context.of_events if column not in log.columns]
        if missing:
            columns = ", ".join(map(repr, missing))
            do = "add them, with nulls where the values are not known"
            raise DataError("the event log", f"no column {columns}", "all columns that the histories read", do)
        with Progress(log.count, "record", "events") as progress:
            for rows in log.read(_TOGETHER):
                refused.write(rows, self._record(rows))
                progress.advance(len(rows))

    def _record(self, rows: LoggedRows) -> dict[int, str]:
        """Record rows, and return the positions of those that are refused with the reasons."""
        self._service.refresh_catalogs()
        events: list[tuple[tuple[int, Event], int]] = []
        reasons, changed = dict[int, str](), set[int]()
        for at in range(len(rows)):
            try:
                events += [((at, event), event.instance) for event in self._read(rows, at)]
            except RequestError as error:
                reasons[at] = str(error)
        if self._service.remote_stores:  # a process that ended while it wrote may have left states without its events
            for live, _ in self._recorder.live_stores:
                live.remove_states([event.user for (_, event), _ in events], [event.at for (_, event), _ in events])
        for one in split_rounds(events):
            for (at, _), result in zip(one, record_batch(self._recorder, [event for _, event in one])):
                if isinstance(result, RequestError):
                    reasons.setdefault(at, str(result))
                elif result.changes:
                    changed.add(at)
        self.counts.events += len(changed - reasons.keys())
        self.counts.refused += len(reasons)
        self.counts.unchanged += len(rows) - len(changed | reasons.keys())
        return reasons

    def _read(self, rows: LoggedRows, at: int) -> list[Event]:
        """Decode one row: the event with what is available by then, and the later feedback.

        Raises:
            RequestError: if a value is missing, or as ``/events`` does.
        """
        user, item, time, visible = rows.users[at], rows.items[at], rows.times[at], rows.available[at]
        for where, value in {"user": user, "item": item, "at": time}.items():
            if value is None:
                raise RequestError(where, "nothing", "a value in every row", status=422)
        assert time is not None
        assert visible is not None
        calls: dict[int, dict[str, Any]] = {visible: {}}
        for column, values in rows.feedback.items():
            since = rows.feedback_times[column][at] if column in rows.feedback_times else visible
            if since is not None:
                calls.setdefault(max(since, visible), {})[column] = values[at]
        began = None if rows.requests is None else rows.requests[at]
        page = None if began is None else format_request_time(self._fitted, began)
        events, context = [], {column: values[at] for column, values in rows.context.items()}
        for self._clock.now, feedback in sorted(calls.items()):
            own = context if self._clock.now == visible else None
            formatted = format_request_time(self._fitted, time)
            request = EventRequest(user, item, formatted, own, feedback, page, self._allow_unknown)
            events.append(self._recorder.reader.read(request))
        return events
