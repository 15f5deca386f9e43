"""The command that records the events of a stream."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from longrec.serve.stream_worker import StreamWorker


def stream(
    bundle: str | Path,
    source: str,
    state: str | Path | None = None,
    group: str = "longrec",
    consumer: str = "worker",
    batch: int = 2_000,
    until_empty: bool = False,
) -> dict[str, float]:
    """Record the events of a Redis or Valkey stream, and fold the states of their users, until a signal ends it.

    Every event has effect exactly once, whenever the worker or a server ends.

    Args:
        bundle: folder that ``export`` has written, or YAML file of a pipeline.
        source: address of the stream, ``redis://host:port/db/name``. The field ``event`` of an entry has the JSON that
            ``POST /events`` takes. Entries that are no valid events go to the stream ``name:refused``.
        state: folder or ``redis://`` URL of the state, as ``serve --state`` has it. Default: next to the bundle.
        group: the consumer group. A new one reads the stream from its first entry.
        consumer: name of the worker. A restarted one goes on at once; one of another name waits until it has ended.
        batch: largest number of entries that are recorded at once.
        until_empty: end when there are no more entries.

    Returns:
        The numbers of ``events`` that were recorded, of entries that were ``unchanged`` because their event had been
        recorded before, of ``refused`` ones, and of those that were ``trimmed`` before they were recorded; the number
        of states that were ``folded``; and the ``cpu_seconds`` of this process.

    Raises:
        StoreError: if a store cannot be opened, or another worker takes over.
        BundleError: if the bundle reads no histories of events.
    """
    import time

    from longrec.serve.event_streams import EventStream
    from longrec.serve.service import Service
    from longrec.serve.settings import build_settings
    from longrec.serve.stream_worker import StreamWorker

    entries = EventStream(source, group, consumer)
    with contextlib.closing(Service(bundle, build_settings(events=True, state=state), keep_log=False)) as service:
        worker = StreamWorker(service, entries, batch)
        with _stop_at_signals(worker):
            worker.run(until_empty)
        entries.leave()
        return {**vars(worker.counts), "folded": worker.folded, "cpu_seconds": time.process_time()}


@contextlib.contextmanager
def _stop_at_signals(worker: StreamWorker) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C end a worker after its batch. In other threads signals are not handled."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, lambda *_: worker.stopping.set()) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
