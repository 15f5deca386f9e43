"""Command ``longrec events``: the events that a server recorded, as rows of the next log."""

from __future__ import annotations

from pathlib import Path


def export_events(state: str | Path, output: str | Path) -> int:
    """Write the events that a server recorded as a Parquet file of the log's columns, for the next ``prepare``.

    ``time.available_at`` of the schema is the time from which the server read an event, and ``available_at`` of a
    feedback feature the time at which its value was recorded. Training then uses the values that the server used. The
    server may run meanwhile.

    Args:
        state: folder or ``redis://`` address, as in ``longrec serve --state``. Default there is ``BUNDLE.state``.
        output: the Parquet file, which is replaced.

    Returns:
        The number of events.

    Raises:
        StoreError: if nothing was recorded there.
    """
    import pyarrow.parquet as pq

    from longrec.errors import StoreError
    from longrec.serve.event_export import build_log_table
    from longrec.serve.recorded_events import RecordedEvents, locate_recorded
    from longrec.store.remote_client import mask_password

    recorded = RecordedEvents.open_for_reading(locate_recorded(str(state)))
    try:
        events = list(recorded.scan())
    finally:
        recorded.close()
    if not events:
        raise StoreError(mask_password(state), "no recorded events", "events of POST /events", "record some first")
    half = Path(output).with_name(f".{Path(output).name}.partial")
    half.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(build_log_table(events, recorded.schema), half)
    half.rename(output)
    return len(events)
