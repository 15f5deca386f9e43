"""Columns of an event in a store of live events: its item, and the encoded values that histories read."""

from __future__ import annotations

from longrec.features.history_columns import NEVER
from longrec.serve import feedback
from longrec.serve.event_reader import Event
from longrec.serve.event_values import list_keys
from longrec.serve.live_events import LiveEvents, StoredEvent
from longrec.serve.request_encoder import RequestEncoder


def encode_event_columns(
    event: Event, live: LiveEvents, encoder: RequestEncoder, old: StoredEvent | None, overwrites: bool
) -> dict[str, int]:
    """Return the columns of an event in a store of live events.

    Values that are missing now, or that are unchanged, stay as recorded before.
    """
    values_encoder, request = encoder.event_values, event.request
    schema, context = encoder.fitted.schema, request.context
    keys = list_keys(schema, request.user, request.item)
    columns = {"instance": event.instance, "item": encoder.look_up_item(request.item)}
    for name in live.values:
        if name in live.feedback:
            code, available_at = values_encoder.encode_feedback(name, event.feedback)
            if old is not None:
                previous = old[name], old[f"known.{name}"]
                unchanged = code == previous[0] and previous[1] != NEVER and not overwrites
                if unchanged or schema.column(name) not in event.feedback.values:
                    code, available_at = previous
            columns |= {name: code, f"known.{name}": available_at}
        elif context is not None:
            columns[name] = values_encoder.encode(name, {**keys, **context})
        else:
            assert old is not None
            columns[name] = old[name]
    values = {**keys, **(context or {}), **event.feedback.values}
    for name, conditions in live.filters.items():
        bits = 0 if old is None else old[f"met.{name}"]
        meets = values_encoder.meets_condition
        columns[f"met.{name}"] = feedback.evaluate_conditions(schema, name, conditions, values, bits, meets)
    return columns
