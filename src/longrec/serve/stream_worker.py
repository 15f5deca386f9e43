"""Worker of a stream: records its events in the stores of a service, and folds the states of their users.

An entry is acknowledged once its event is stored, so that it has effect at least once. An event that is recorded again
with the same values changes nothing, so that it has effect once. Values that change, by a later entry of the same
event, are recorded after the earlier entry was acknowledged, so that the earlier ones never come back.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from longrec.errors import RequestError, ServerError
from longrec.progress import Progress
from longrec.serve.event_batches import record_batch, split_rounds
from longrec.serve.event_reader import Event
from longrec.serve.event_streams import FIELD, Entry, EventStream
from longrec.serve.fold_queue import FoldQueue
from longrec.serve.request_json import decode_event
from longrec.serve.request_time import read_clock
from longrec.serve.service import Service

_WAIT = 1_000
"""Milliseconds that a read waits for entries."""
_FIRST_PAUSE, _LAST_PAUSE = 0.5, 30.0
"""Seconds between two calls of a server that does not respond."""
_COUNT_SECONDS = 5.0
"""Seconds between two looks at the number of entries that are not read yet."""


@dataclass
class StreamCounts:
    """What a worker did.

    Attributes:
        events: entries whose event was recorded.
        unchanged: further entries, whose event was recorded before.
        refused: entries that are no valid events.
        trimmed: entries that the stream dropped before they were recorded.
    """

    events: int = 0
    unchanged: int = 0
    refused: int = 0
    trimmed: int = 0


class StreamWorker:
    """Worker of one stream.

    Args:
        service: service of the bundles, which records events.
        stream: the stream.
        batch: largest number of entries that are recorded at once.

    Attributes:
        counts: what it did.
        stopping: set to end after the batch.
    """

    def __init__(self, service: Service, stream: EventStream, batch: int) -> None:
        self._service, self._stream, self._batch = service, stream, batch
        self._recorder = service.recorder
        self._queues = {
            model.bundle.digest: FoldQueue(model.encoder.histories)
            for model in service.models
            if model.encoder.histories.states is not None and not self._recorder.reader.steps
        }
        self.counts = StreamCounts()
        self.stopping = threading.Event()
        self._waiting, self._counted_at = "", 0.0

    @property
    def folded(self) -> int:
        """Number of states that were folded."""
        return sum(queue.folded for queue in self._queues.values())

    def run(self, until_empty: bool = False) -> None:
        """Record the entries of the stream until ``stopping`` is set.

        A server that does not respond is called again after a pause. What was not finished by then is repeated.

        Args:
            until_empty: end when there are no more entries.

        Raises:
            StoreError: if a store in a folder cannot be written, or another worker has taken over.
        """
        pause, joined = _FIRST_PAUSE, False
        with Progress(None, "stream", "events") as progress:
            while not self.stopping.is_set():
                try:
                    joined = joined or self._join()
                    is_empty = joined and not self._read(progress)
                except ServerError as error:
                    print(f"longrec: {error}\n  Again in {pause:g} s; nothing is lost", file=sys.stderr, flush=True)
                    self.stopping.wait(pause)
                    pause, joined = min(2 * pause, _LAST_PAUSE), False
                    continue
                pause = _FIRST_PAUSE
                if is_empty and until_empty:
                    return

    def _join(self) -> bool:
        """Become the worker of the stream and record what is pending. False: another one reads it now."""
        if (other := self._stream.join()) is not None:
            if other != self._waiting:
                print(f"longrec: waits for the worker {other!r}, which reads the stream", file=sys.stderr, flush=True)
            self._waiting = other
            self.stopping.wait(_WAIT / 1_000)
            return False
        pending, trimmed = self._stream.claim()
        self.counts.trimmed += trimmed
        if trimmed:
            text = f"longrec: {trimmed:,} entries were trimmed from the stream before they were recorded"
            print(f"{text}\n  Add events with a larger MAXLEN", file=sys.stderr, flush=True)
        self._record(pending, again=True)
        return True

    def _read(self, progress: Progress) -> bool:
        """Record the next entries. Returns False if there are none."""
        self._stream.stay()
        entries = self._stream.read(self._batch, _WAIT)
        self._record(entries)
        now = read_clock()
        before = entries[-1].position[0] if entries else now
        for queue in self._queues.values():
            queue.fold(before, now, at_once=not entries)
        if entries:
            progress.advance(len(entries), self._describe_waiting())
        return bool(entries)

    def _describe_waiting(self) -> str:
        """Return how many entries wait, for the line of progress."""
        if time.monotonic() - self._counted_at < _COUNT_SECONDS:
            return ""
        self._counted_at = time.monotonic()
        waiting = self._stream.count_waiting()
        return "" if waiting is None else f"{waiting:,} waiting"

    def _record(self, entries: Sequence[Entry], again: bool = False) -> None:
        """Record the events of entries, and mark the entries as read.

        Args:
            again: another worker, or this one, may have recorded some of them before.
        """
        if not entries:
            return
        self._service.refresh_catalogs()
        events, refused = self._decode(entries)
        self._finish([entry for entry, _ in refused], refused)
        if again:  # a worker that ended while it wrote may have left states without its events
            for live, _ in self._recorder.live_stores:
                live.remove_states([event.user for _, event in events], [event.at for _, event in events])
        for one in split_rounds([((entry, event), event.instance) for entry, event in events]):
            results = record_batch(self._recorder, [event for _, event in one])
            refused, new = [], list[Event]()
            for (entry, event), result in zip(one, results):
                if isinstance(result, RequestError):
                    refused.append((entry, str(result)))
                elif result.changes:
                    self.counts.events += 1
                    new.append(event)
                else:
                    self.counts.unchanged += 1
            self._finish([entry for entry, _ in one], refused)
            self._count(new)

    def _finish(self, entries: Sequence[Entry], refused: Sequence[tuple[Entry, str]]) -> None:
        self._stream.finish(entries, refused)
        self.counts.refused += len(refused)

    def _decode(self, entries: Sequence[Entry]) -> tuple[list[tuple[Entry, Event]], list[tuple[Entry, str]]]:
        """Return the events of entries, and those that are refused with the reason."""
        events: list[tuple[Entry, Event]] = []
        refused: list[tuple[Entry, str]] = []
        for entry in entries:
            if entry.content is None:
                refused.append((entry, f"no field {FIELD!r}; expected the JSON of an event in it"))
                continue
            try:
                # An event without a timestamp has that of its entry, which is the same when it is read again.
                event = self._recorder.reader.read(decode_event(entry.content), entry.position[0])
            except RequestError as error:
                refused.append((entry, str(error)))
            else:
                events.append((entry, event))
        return events, refused

    def _count(self, events: Sequence[Event]) -> None:
        """Count new events for the states of their users."""
        for live, encoder in self._recorder.live_stores:
            if events and (queue := self._queues.get(live.bundle_digest)) is not None:
                rows = [encoder.look_up_user(event.request.user) for event in events]
                queue.add([(event.user, row, event.at) for event, row in zip(events, rows)])
