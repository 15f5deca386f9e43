"""Section of a page that explains one sample's score: the attention over its history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from longrec.reporting import plots
from longrec.reporting.markup import format_facts

_EVENTS_SHOWN = 10


def format_sample(explanation: Mapping[str, Any]) -> str:
    """Return the sample and its events by weight (see ``explanation`` of :func:`longrec.reporting.page.write_page`)."""
    label = explanation.get("label")
    happened = "not known" if label is None else f"label {label:g}, {'positive' if label > 0 else 'negative'}"
    facts = {
        "User": str(explanation["user"]),
        "At": str(explanation["when"]),
        "Candidate": str(explanation["candidate"]),
        "Score": f"{explanation['score']:.4f}",
        "What happened": happened,
    }
    events = sorted(explanation["events"], key=lambda event: -abs(event["weight"]))
    weights = [float(event["weight"]) for event in events]
    first, rest = events[:_EVENTS_SHOWN], events[_EVENTS_SHOWN:]
    said = "This user has no history: the score comes from the other features alone."
    if events:
        said = (
            "The model reads this user’s past through the candidate: each past event gets a weight, the heavier the "
            "more of it the model takes in (which may speak for the candidate or against it). Heaviest first."
        )
        total = sum(weights)
        if min(weights) >= 0 and total > 0 and len(events) > 1:
            top = min(3, len(events) - 1)
            most = "The heaviest carries" if top == 1 else f"The {top} heaviest carry"
            said += f" {most} {sum(weights[:top]) / total:.0%} of the whole weight; "
            said += f"equal shares would be {top / len(events):.0%}."
    scale = (min([0.0, *weights]), max([0.0, *weights]))
    folded = ""
    if rest:
        count = f"{len(rest)} more event{'s' if len(rest) > 1 else ''}"
        folded = f"<details><summary>{count}</summary><div>{_format_events(rest, scale)}</div></details>"
    note = explanation.get("note")
    return (
        f'<section><h2>Where a sample’s score comes from</h2><p class="soft small">{said}</p>'
        f"{format_facts(facts)}"
        + (_format_events(first, scale) if first else "")
        + folded
        + (f'<p class="soft small">{escape(str(note))}</p>' if note else "")
        + "</section>"
    )


def _format_events(events: Sequence[Mapping[str, Any]], scale: tuple[float, float]) -> str:
    rows = []
    for event in events:
        side = [f"{key} {value}" for key, value in event.get("side", {}).items()]
        below = " · ".join(text for text in (*side, f"{event['ago']} before" if event.get("ago") else "") if text)
        weight = float(event["weight"])
        mark = plots.bar(weight, *scale, hover=f"{event['name']}: weight {weight:.4f}")
        rows.append(
            f'<tr><td>{escape(str(event["name"]))}<span class="hint">{escape(below)}</span></td>'
            f'<td><div class="weight">{mark}<b>{weight:.3f}</b></div></td></tr>'
        )
    return f'<table class="events"><tbody>{"".join(rows)}</tbody></table>'
