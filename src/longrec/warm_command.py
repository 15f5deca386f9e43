"""The command that folds the states of users before a bundle is served."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longrec.exporting.bundle import Bundle
    from longrec.serve.log_recorder import EventLog


def warm(
    bundle: str | Path,
    state: str | Path | None = None,
    at: int | None = None,
    log: Any = None,
    allow_unknown: bool = False,
    refused: str | Path | None = None,
) -> dict[str, int]:
    """Fold the events of all users into their states, so that no request has to read a whole history.

    With ``log`` its events are recorded first, as if each had come to ``POST /events`` when it became available. Events
    that are recorded already do not change, so that a log can be recorded again.

    Args:
        bundle: a bundle that was exported with states.
        state: folder or ``redis://`` URL of the state, as ``serve --state`` has it. Default: next to the bundle.
        at: timestamp from which requests can use the states, in milliseconds UTC or steps. Default now, or after the
            last step.
        log: event log in the columns of the bundle's log: a path or glob of files, a mapping as ``data.log`` of a
            config, or a data frame. ``longrec.export_events`` writes one.
        allow_unknown: accept events with items that the bundle does not contain.
        refused: the Parquet file of the rows that are no valid events, which is replaced. Default:
            ``BUNDLE.refused.parquet``.

    Returns:
        The numbers of ``users`` and ``states``, how many were ``folded`` now, and the ``bytes_per_user``. With a log
        also the numbers of rows whose ``events`` were recorded now, that were ``unchanged`` because they had been, and
        that were ``refused``.

    Raises:
        BundleError: if the bundle has no states.
        DataError: if the log cannot be read, or lacks a column that every event must have.
        StoreError: if a store cannot be opened, or a server uses it.
    """
    from longrec.serve.settings import build_settings
    from longrec.serve.warm import warm_states

    def open_log(opened: Bundle) -> contextlib.AbstractContextManager[EventLog]:
        return _open_log(opened, log)

    own = Path(refused) if refused is not None else locate_refused(bundle)
    settings = build_settings(events=True, state=state)
    return warm_states(Path(bundle), settings, at, None if log is None else open_log, own, allow_unknown)


def locate_refused(bundle: str | Path) -> Path:
    """Return the file of the refused rows of a bundle."""
    path = Path(bundle)
    return path.with_name(f"{path.name}.refused.parquet")


@contextlib.contextmanager
def _open_log(bundle: Bundle, log: Any) -> Iterator[EventLog]:
    """Open the event log of a bundle."""
    from longrec.data.logged_events import open_logged_events
    from longrec.features.feature_encoders import IdEncoder
    from longrec.serve.event_export import VISIBLE

    fitted, schema = bundle.fitted, bundle.fitted.schema
    keys = {schema.user: bundle.users.keys, schema.item: bundle.items.keys}
    texts = [column for column, own in keys.items() if column is not None and not own.numeric]
    for name, encoder in fitted.encoders.items():
        if isinstance(encoder, IdEncoder) and len(encoder.keys) and not encoder.keys.numeric:
            texts += schema.columns(name)
    with open_logged_events(str(log) if isinstance(log, Path) else log, schema, texts, VISIBLE) as opened:
        yield opened
