"""Picture of quality and cost by the length of histories: one SVG file with a panel per figure, without scripts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from longrec.lengths.measured_lengths import MeasuredLengths
from longrec.reporting.plots import number, ticks

_PANELS = (
    ("auc", "AUC", False),
    ("log_loss", "log loss", False),
    ("rows_per_second", "training rows per CPU-second", True),
    ("megabytes_per_row", "memory of a training step, MB per row", True),
    ("request_ms", "request, CPU-ms", True),
)
"""Attribute, title, and True for a logarithmic axis."""
_COLORS = ("#0072b2", "#d55e00", "#008f68", "#b8578f", "#a67400", "#545c66")
_DASHES = ("", "7 4", "2 3", "9 3 2 3")
_WIDTH, _HEIGHT = 400, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 28, 34, 50
_COLUMNS = 2
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#5b6675}.title{font-weight:600;fill:#1b2430}"
    ".grid{stroke:#e3e7ec}.line{fill:none;stroke-width:2}"
)

Point = tuple[float, float]


def draw_lengths(measured: MeasuredLengths) -> str:
    """Return the picture. Figures that were not measured have no panel. The axis of events is logarithmic."""
    models = list(dict.fromkeys(row.model for row in measured.rows))
    panels = []
    for key, title, is_log in _PANELS:
        series = [
            [
                (float(row.events), float(value))
                for row in measured.rows
                if row.model == model and (value := getattr(row, key)) is not None and (value > 0 or not is_log)
            ]
            for model in models
        ]
        if any(series):
            panels.append(_draw_panel(title, series, models, is_log))
    width = _COLUMNS * _WIDTH
    height = 30 + _HEIGHT * math.ceil(len(panels) / _COLUMNS)
    drawn = [
        f'<g transform="translate({at % _COLUMNS * _WIDTH} {30 + at // _COLUMNS * _HEIGHT})">{panel}</g>'
        for at, panel in enumerate(panels)
    ]
    label = f"Quality on {measured.split} and cost by the length of histories"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    background = f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
    body = "\n".join([f"<style>{_STYLE}</style>", background, _draw_legend(models), *drawn])
    return f'{head} role="img">\n<title>{escape(label)}</title>\n{body}\n</svg>\n'


def _draw_legend(models: Sequence[str]) -> str:
    elements, x = [], 14
    for slot, model in enumerate(models):
        elements.append(f'<line {_get_stroke(slot)} x1="{x}" x2="{x + 28}" y1="18" y2="18"/>')
        elements.append(f'<text class="title" x="{x + 34}" y="22">{escape(model)}</text>')
        x += 60 + 8 * len(model)
    return "".join(elements)


def _draw_panel(title: str, series: Sequence[Sequence[Point]], models: Sequence[str], is_log: bool) -> str:
    xs = sorted({x for points in series for x, _ in points})
    ys = [y for points in series for _, y in points]
    y_ticks = _choose_powers(min(ys), max(ys)) if is_log else ticks(min(ys), max(ys), 4)
    low, high = y_ticks[0], y_ticks[-1]
    first, last = math.log(xs[0]), math.log(xs[-1])

    def across(x: float) -> float:
        share = (math.log(x) - first) / (last - first) if last > first else 0.5
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def up(y: float) -> float:
        share = math.log(y / low) / math.log(high / low) if is_log else (y - low) / (high - low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    elements = [f'<text class="title" x="{_LEFT}" y="20">{escape(title)}</text>']
    for tick in y_ticks:
        text = f"{tick:,.10g}" if is_log else number(tick, y_ticks[1] - y_ticks[0])
        y = up(tick)
        elements.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        elements.append(f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for x in _space_out(xs, across):
        at = f'x="{across(x):.1f}" y="{_HEIGHT - _BOTTOM + 18}"'
        elements.append(f'<text {at} text-anchor="middle">{x:,.0f}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    elements.append(f'<text x="{middle}" y="{_HEIGHT - 14}" text-anchor="middle">events of a history</text>')
    for slot, (model, points) in enumerate(zip(models, series)):
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points)
        elements.append(f'<polyline class="line" {_get_stroke(slot)} points="{path}"/>')
        for x, y in points:
            hover = escape(f"{model}, {x:,.0f} events: {title} {y:,.4g}")
            dot = f'cx="{across(x):.1f}" cy="{up(y):.1f}" r="3.5" fill="{_COLORS[slot % len(_COLORS)]}"'
            elements.append(f"<circle {dot}><title>{hover}</title></circle>")
    return "".join(elements)


def _get_stroke(slot: int) -> str:
    """Return color and dashes of a model. The seventh has the first one's color and other dashes."""
    dash = _DASHES[(slot + slot // len(_COLORS)) % len(_DASHES)]
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'stroke="{_COLORS[slot % len(_COLORS)]}" stroke-width="2"{dashes}'


def _choose_powers(low: float, high: float) -> list[float]:
    """Return powers of ten that cover ``low`` to ``high``, at least two.

    >>> _choose_powers(3.0, 250.0)
    [1.0, 10.0, 100.0, 1000.0]
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [10.0**power for power in range(first, max(last, first + 1) + 1)]


def _space_out(xs: Sequence[float], across: Callable[[float], float]) -> list[float]:
    """Return the values whose labels do not overlap, always with the last one."""
    shown = [xs[-1]]
    for x in reversed(xs[:-1]):
        if across(shown[-1]) - across(x) > 40:
            shown.append(x)
    return shown[::-1]
