"""Section of a page that explains samples: what a prediction was computed from.

A sample is a mapping: ``title``; ``facts`` (name -> text, such as user, candidate and score); ``features`` (name ->
text); ``recommended`` (pairs of item and score); ``histories`` (name -> events, oldest first); and ``step``, True if
ages count steps. ``features`` and ``recommended`` may be absent. An event has ``name``, ``side`` (further columns ->
text), ``ago`` (milliseconds, steps or None) and ``weight`` (a number or None).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from longrec.progress import duration
from longrec.reporting import plots
from longrec.reporting.markup import format_facts
from longrec.reporting.run import RunView

_EVENTS_SHOWN = 10
_DAY = 86_400_000


def format_samples(runs: Sequence[RunView]) -> str:
    """Return the samples of all runs, the first of each run unfolded."""
    shown = [run for run in runs if run.samples]
    if not shown:
        return ""
    blocks = []
    for run in shown:
        if len(runs) > 1:
            blocks.append(f"<h3>{escape(run.name)}</h3>")
        for index, sample in enumerate(run.samples):
            is_open = " open" if index == 0 else ""
            title = escape(str(sample["title"]))
            blocks.append(f"<details{is_open}><summary>{title}</summary><div>{_format_sample(sample)}</div></details>")
    return f"<section><h2>Where scores come from</h2>{''.join(blocks)}</section>"


def _format_sample(sample: Mapping[str, Any]) -> str:
    """Return one sample."""
    features = sample.get("features") or {}
    listed = " · ".join(f"{escape(name)} <b>{escape(value)}</b>" for name, value in features.items())
    return (
        format_facts(sample["facts"])
        + (f'<p class="small features"><span class="soft">Features:</span> {listed}</p>' if listed else "")
        + _format_recommended(sample.get("recommended") or ())
        + "".join(_format_history(name, events, sample) for name, events in sample["histories"].items())
    )


def _format_recommended(recommended: Sequence[tuple[str, float]]) -> str:
    if not recommended:
        return ""
    items = "".join(f"<li>{escape(name)} <span class='soft'>{score:.3g}</span></li>" for name, score in recommended)
    return f'<p class="small">Recommended, with scores:</p><ol class="next">{items}</ol>'


def _format_history(name: str, events: Sequence[Mapping[str, Any]], sample: Mapping[str, Any]) -> str:
    """Return the events of a history: by weight, or the newest first if the model gives no weights."""
    if not events:
        return f'<p class="small">History <b>{escape(name)}</b> is empty.</p>'
    weights = [event["weight"] for event in events]
    weighted = all(weight is not None for weight in weights)
    if weighted:
        ordered = sorted(events, key=lambda event: -abs(event["weight"]))
        said = f"{len(events)} events, those with the largest attention weights first. {_describe_weights(weights)}"
        scale = (min(0.0, *weights, 0.0), max(0.0, *weights, 0.0))
    else:
        ordered, scale = list(reversed(events)), (0.0, 0.0)
        said = f"{len(events)} events, the newest first. This model gives no weights of single events."
    first, rest = ordered[:_EVENTS_SHOWN], ordered[_EVENTS_SHOWN:]
    folded = ""
    if rest:
        count = f"{len(rest)} more event{'s' if len(rest) > 1 else ''}"
        table = _format_events(rest, scale, weighted, sample["step"])
        folded = f"<details><summary>{count}</summary><div>{table}</div></details>"
    return (
        f'<p class="small">History <b>{escape(name)}</b>: {said}</p>'
        f"{_format_events(first, scale, weighted, sample['step'])}{folded}"
    )


def _describe_weights(weights: Sequence[float]) -> str:
    """Return the share of the heaviest events, for weights that are shares."""
    total = sum(weights)
    if min(weights) < 0:
        return "Weights are not normalized: they may be negative, and need not add up to one."
    if total <= 0 or len(weights) < 2:
        return ""
    top = min(3, len(weights) - 1)
    most = "The heaviest has" if top == 1 else f"The {top} heaviest have"
    share = sum(sorted(weights)[-top:]) / total
    return f"{most} {share:.0%} of the whole weight; equal shares would be {top / len(weights):.0%}."


def _format_events(events: Sequence[Mapping[str, Any]], scale: tuple[float, float], weighted: bool, step: bool) -> str:
    rows = []
    for event in events:
        side = [f"{key} {value}" for key, value in event["side"].items()]
        age = "" if event["ago"] is None else f"{format_age(event['ago'], step)} before"
        below, name = [text for text in (*side, age) if text], event["name"]
        if not name and below:  # a token has no item
            name, *below = below
        cell = ""
        if weighted:
            weight = float(event["weight"])
            mark = plots.bar(weight, *scale, hover=f"{event['name']}: weight {weight:.4f}")
            cell = f'<td><div class="weight">{mark}<b>{weight:.3f}</b></div></td>'
        rows.append(f'<tr><td>{escape(name)}<span class="hint">{escape(" · ".join(below))}</span></td>{cell}</tr>')
    return f'<table class="events"><tbody>{"".join(rows)}</tbody></table>'


def format_age(ago: int, step: bool = False) -> str:
    """Format milliseconds, or steps, as text.

    >>> format_age(3 * 86_400_000), format_age(45_000), format_age(7, step=True)
    ('3 days', '45 s', '7 steps')
    """
    if step:
        return f"{ago:,} step{'' if ago == 1 else 's'}"
    return f"{ago / _DAY:,.0f} days" if ago >= 2 * _DAY else duration(ago / 1_000)
