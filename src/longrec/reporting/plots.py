"""Charts as inline SVG, without a library, a script or the network.

Colors come from the page's style sheet by class (``s0`` to ``s5``, a palette for color-blind readers), so a chart
follows the page into dark mode. Runs also differ by dash and by marker. Every element with a value has a ``title`` for
hovering.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from longrec.metrics import CalibrationCurve, Interval

SLOTS = 6
_DASHES = ("", "7 4", "2 3", "10 3 2 3", "5 2", "1 5")
_MOST_POINTS = 120


@dataclass(frozen=True)
class Series:
    """A line: its name, its color slot in every chart of a page, and its points (x, y) by rising x."""

    name: str
    slot: int
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class _Axis:
    """Map from data to pixels, over a range that ends on round numbers."""

    ticks: list[float]
    start: float
    stop: float

    def at(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        return self.start + (value - low) / (high - low) * (self.stop - self.start)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about ``count`` round numbers that cover ``low`` to ``high``, at steps of 1, 2, 2.5 or 5 times 10^k.

    >>> ticks(0.683, 0.717)
    [0.68, 0.69, 0.7, 0.71, 0.72]
    """
    if high - low <= max(1e-12, 1e-9 * max(abs(low), abs(high))):  # one value: a window around it
        middle, spread = low, abs(low) * 0.05 if abs(low) > 1e-6 else 0.5
        low, high = middle - spread, middle + spread
    rough = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, 2 - math.floor(math.log10(step)))
    return [round(index * step, digits) for index in range(first, last + 1)]


def number(value: float, step: float) -> str:
    """Format a tick with the decimals its step needs.

    >>> number(0.7, 0.05), number(20000.0, 5000.0), number(0.025, 0.025)
    ('0.70', '20,000', '0.025')
    """
    digits = next((d for d in range(16) if abs(round(step, d) - step) < step * 1e-6), 16)
    return f"{value:,.{digits}f}"


def draw_line_chart(series: Sequence[Series], x_label: str, y_label: str, best: str = "") -> str:
    """Return a chart of lines over a common x axis, such as learning curves.

    Args:
        series: drawn in order. Long ones are averaged down to 120 points.
        x_label, y_label: names of the axes.
        best: ``highest`` or ``lowest`` adds a ring to that point of every line.
    """
    drawn = [(one, _thin(one.points)) for one in series if one.points]
    if not drawn:
        return ""
    xs = [x for _, points in drawn for x, _ in points]
    ys = [y for _, points in drawn for _, y in points]
    width, height = 440, 270
    x_axis = _Axis(ticks(min(0.0, *xs) if min(xs) < 0.3 * max(xs) else min(xs), max(xs)), 58, width - 14)
    y_axis = _Axis(ticks(min(ys), max(ys)), height - 40, 30)
    elements = [*_draw_frame(x_axis, y_axis, width, height, x_label, y_label)]
    for one, points in drawn:
        slot = one.slot
        path = " ".join(f"{x_axis.at(x):.1f},{y_axis.at(y):.1f}" for x, y in points)
        elements.append(
            f'<polyline class="line s{slot % SLOTS}" stroke-dasharray="{choose_dash(slot)}" points="{path}"/>'
        )
        for x, y in points:
            hover = f"{one.name}: {y:.4f} at {x_label} {x:.4g}"
            elements.append(draw_marker(slot, x_axis.at(x), y_axis.at(y), 3.5 if len(points) <= 25 else 0, hover))
        if best:
            x, y = (max if best == "highest" else min)(points, key=lambda point: point[1])
            elements.append(
                f'<circle class="ring s{slot % SLOTS}" cx="{x_axis.at(x):.1f}" cy="{y_axis.at(y):.1f}" r="8">'
                f"{format_title(f'{one.name}: {best} {y_label}, {y:.4f} at {x_label} {x:.4g}')}</circle>"
            )
    return format_svg(width, height, f"{y_label} over {x_label}", elements)


def draw_interval_chart(
    rows: Sequence[tuple[str, int, Interval]], label: str, reference: float | None = None, signed: bool = False
) -> str:
    """Return a chart of dots with whiskers, one row per entry.

    Args:
        rows: name, color slot and interval per row. Undefined intervals are skipped.
        label: label of the axis.
        reference: a value to mark with a line, such as 1 for PCOC or 0 for a difference.
        signed: True if hover texts show a plus sign.
    """
    rows = [row for row in rows if row[2].defined]
    if not rows:
        return ""
    ends = [end for _, _, one in rows for end in (one.low, one.high, one.value)]
    if reference is not None:
        ends.append(reference)
    width, top, pitch = 340, 8, 34
    height = top + pitch * len(rows) + 24
    axis = _Axis(ticks(min(ends), max(ends), 4), 22, width - 22)
    bottom = top + pitch * len(rows)
    step = axis.ticks[1] - axis.ticks[0]
    elements = []
    for tick in axis.ticks:
        x = axis.at(tick)
        elements.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>')
        elements.append(
            f'<text class="tick" x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{number(tick, step)}</text>'
        )
    if reference is not None:
        x = axis.at(reference)
        elements.append(f'<line class="reference" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>')
    for index, (name, slot, one) in enumerate(rows):
        y = top + pitch * (index + 0.66)
        low, high, dot = axis.at(one.low), axis.at(one.high), axis.at(one.value)
        plus = "+" if signed else ""
        hover = f"{name}: {one.value:{plus}.4f} [{one.low:{plus}.4f}, {one.high:{plus}.4f}]"
        anchor = "start" if dot < width * 0.25 else "end" if dot > width * 0.75 else "middle"
        elements.append(
            f'<g class="s{slot % SLOTS}">{format_title(hover)}'
            f'<line class="whisker" x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<line class="whisker" x1="{low:.1f}" x2="{low:.1f}" y1="{y - 5:.1f}" y2="{y + 5:.1f}"/>'
            f'<line class="whisker" x1="{high:.1f}" x2="{high:.1f}" y1="{y - 5:.1f}" y2="{y + 5:.1f}"/>'
            f"{draw_marker(slot, dot, y, 5, hover)}"
            f'<text class="name" x="{dot:.1f}" y="{y - 9:.1f}" text-anchor="{anchor}">{escape(name)}</text></g>'
        )
    return format_svg(width, height, label, elements)


def draw_calibration_chart(curve: CalibrationCurve, name: str, slot: int) -> str:
    """Return a chart of the share of positives over the mean score, one point per bin, sized by its rows."""
    width = height = 340
    top = max(*curve.score, *curve.rate) if curve.score else 1.0
    marks = ticks(0.0, min(1.0, top))
    across, up = _Axis(marks, 52, width - 14), _Axis(marks, height - 42, 28)
    elements = [*_draw_frame(across, up, width, height, "mean score", "share of positives")]
    elements.append(
        f'<line class="reference" x1="{across.start}" y1="{up.start}" x2="{across.stop}" y2="{up.stop}">'
        f"{format_title('calibrated: the score equals the share of positives')}</line>"
    )
    path = " ".join(f"{across.at(p):.1f},{up.at(q):.1f}" for p, q in zip(curve.score, curve.rate))
    elements.append(f'<polyline class="line thin s{slot % SLOTS}" points="{path}"/>')
    most = max(curve.count, default=1)
    for p, q, n in zip(curve.score, curve.rate, curve.count):
        hover = f"{name}: {n:,} rows, mean score {p:.3f}, {q:.3f} positive"
        elements.append(draw_marker(slot, across.at(p), up.at(q), 2 + 3.5 * math.sqrt(n / most), hover))
    return format_svg(width, height, f"calibration of {name}", elements)


def bar(weight: float, low: float, high: float, hover: str = "") -> str:
    """Return one horizontal bar from zero, on a scale from ``low`` to ``high`` that all bars of a table share."""
    low, high = min(low, 0.0), max(high, 0.0)
    span = (high - low) or 1.0
    zero, end = -low / span * 100, (weight - low) / span * 100
    kind = "down" if weight < 0 else "up"
    return (
        f'<svg class="bar" width="100%" height="14" role="img" aria-label="{escape(hover)}">{format_title(hover)}'
        f'<rect class="track" x="0" y="2" width="100%" height="10" rx="3"/>'
        f'<rect class="{kind}" x="{min(zero, end):.2f}%" y="2" width="{abs(end - zero):.2f}%" height="10" rx="3"/>'
        "</svg>"
    )


def draw_swatch(slot: int) -> str:
    """Return the line and the marker of a run, for legends and table heads."""
    return (
        f'<svg class="swatch" width="34" height="14" aria-hidden="true"><line class="line s{slot % SLOTS}" '
        f'stroke-dasharray="{choose_dash(slot)}" x1="1" x2="33" y1="7" y2="7"/>'
        f"{draw_marker(slot, 17, 7, 4.5, '')}</svg>"
    )


def choose_dash(slot: int) -> str:
    """Return the dash pattern of a run."""
    # The seventh run has the first one's color, so it takes another dash (and, below, another marker).
    return _DASHES[(slot + slot // SLOTS) % len(_DASHES)]


def draw_marker(slot: int, x: float, y: float, r: float, hover: str) -> str:
    """Return a run's marker: circle, square, diamond or triangle. It is invisible, for hovering only, if ``r`` is 0."""
    title = format_title(hover)
    if not r:
        return f'<circle class="touch" cx="{x:.1f}" cy="{y:.1f}" r="6">{title}</circle>'
    shape = (slot + slot // SLOTS) % 4
    if shape == 0:
        return f'<circle class="dot s{slot % SLOTS}" cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}">{title}</circle>'
    if shape == 1:
        side = r * 1.8
        attributes = f'x="{x - side / 2:.1f}" y="{y - side / 2:.1f}" width="{side:.1f}" height="{side:.1f}"'
        return f'<rect class="dot s{slot % SLOTS}" {attributes}>{title}</rect>'
    a = r * 1.25
    corners = (
        [(x, y - a), (x + a, y), (x, y + a), (x - a, y)] if shape == 2 else [(x, y - a), (x + a, y + a), (x - a, y + a)]
    )
    points = " ".join(f"{px:.1f},{py:.1f}" for px, py in corners)
    return f'<polygon class="dot s{slot % SLOTS}" points="{points}">{title}</polygon>'


def _draw_frame(across: _Axis, up: _Axis, width: int, height: int, x_label: str, y_label: str) -> list[str]:
    """Return grid, tick labels and axis names."""
    elements = []
    step = up.ticks[1] - up.ticks[0]
    for tick in up.ticks:
        y = up.at(tick)
        elements.append(f'<line class="grid" x1="{across.start}" x2="{across.stop}" y1="{y:.1f}" y2="{y:.1f}"/>')
        elements.append(
            f'<text class="tick" x="{across.start - 7}" y="{y + 4:.1f}" text-anchor="end">{number(tick, step)}</text>'
        )
    step = across.ticks[1] - across.ticks[0]
    for tick in across.ticks:
        x = across.at(tick)
        elements.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{up.start}" y2="{up.start + 5}"/>')
        elements.append(
            f'<text class="tick" x="{x:.1f}" y="{up.start + 18}" text-anchor="middle">{number(tick, step)}</text>'
        )
    elements.append(f'<text class="axis" x="{across.stop}" y="{height - 5}" text-anchor="end">{escape(x_label)}</text>')
    elements.append(f'<text class="axis" x="4" y="14">{escape(y_label)}</text>')
    return elements


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most 120 points: means of equally many neighbors."""
    if len(points) <= _MOST_POINTS:
        return list(points)
    cuts = [round(i * len(points) / _MOST_POINTS) for i in range(_MOST_POINTS + 1)]
    blocks = [points[a:b] for a, b in itertools.pairwise(cuts)]
    return [(sum(x for x, _ in b) / len(b), sum(y for _, y in b) / len(b)) for b in blocks]


def format_title(text: str) -> str:
    """Return the text that an element shows for hovering."""
    return f"<title>{escape(text)}</title>" if text else ""


def format_svg(width: int, height: int, label: str, elements: Sequence[str]) -> str:
    """Return a chart of its elements."""
    return (
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'style="max-width:{width * 1.15:.0f}px" '
        f'aria-label="{escape(label)}">{"".join(elements)}</svg>'
    )
