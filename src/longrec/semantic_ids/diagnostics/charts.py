"""Charts of a diagnosis as inline SVG, in the colors of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from longrec.reporting.plots import SLOTS, choose_dash, draw_marker, format_svg, format_title, number, ticks


@dataclass(frozen=True)
class Steps:
    """A line over labeled steps: its name, its color slot, and a value per step. None leaves a gap at the end."""

    name: str
    slot: int
    values: Sequence[float | None]


@dataclass(frozen=True)
class Bar:
    """A horizontal bar: its name, its color slot, its value, and the value as text."""

    name: str
    slot: int
    value: float
    text: str


def draw_steps(
    series: Sequence[Steps], labels: Sequence[str], x_label: str, y_label: str, *, logarithmic: bool = False
) -> str:
    """Return a chart of lines over steps at equal distances, such as values of K.

    Args:
        labels: label of each step.
        logarithmic: True for powers of two on the vertical axis.
    """
    values = [value for one in series for value in one.values if value is not None and math.isfinite(value)]
    if not values:
        return ""
    width, height, left, right, top, bottom = 440, 280, 58, 22, 30, 44
    marks = _choose_powers(min(values), max(values)) if logarithmic else ticks(min(0.0, *values), max(values))

    def across(at: int) -> float:
        return left + (width - left - right) * (at / (len(labels) - 1) if len(labels) > 1 else 0.5)

    def up(value: float) -> float:
        if logarithmic:
            share = math.log(value / marks[0]) / math.log(marks[-1] / marks[0])
        else:
            share = (value - marks[0]) / (marks[-1] - marks[0])
        return height - bottom - share * (height - top - bottom)

    elements = []
    for mark in marks:
        text = f"{mark:,.10g}" if logarithmic else number(mark, marks[1] - marks[0])
        elements.append(
            f'<line class="grid" x1="{left}" x2="{width - right}" y1="{up(mark):.1f}" y2="{up(mark):.1f}"/>'
        )
        elements.append(f'<text x="{left - 7}" y="{up(mark) + 4:.1f}" text-anchor="end">{text}</text>')
    for at, label in enumerate(labels):
        elements.append(
            f'<text x="{across(at):.1f}" y="{height - bottom + 18}" text-anchor="middle">{escape(label)}</text>'
        )
    elements.append(
        f'<text class="axis" x="{width - right}" y="{height - 6}" text-anchor="end">{escape(x_label)}</text>'
    )
    elements.append(f'<text class="axis" x="4" y="14">{escape(y_label)}</text>')
    for one in series:
        points = [(at, value) for at, value in enumerate(one.values) if value is not None and math.isfinite(value)]
        path = " ".join(f"{across(at):.1f},{up(value):.1f}" for at, value in points)
        dash = f'stroke-dasharray="{choose_dash(one.slot)}"'
        elements.append(f'<polyline class="line s{one.slot % SLOTS}" {dash} points="{path}"/>')
        for at, value in points:
            hover = f"{one.name}: {value:,.4g} at {x_label} {labels[at]}"
            elements.append(draw_marker(one.slot, across(at), up(value), 3.5, hover))
    return format_svg(width, height, f"{y_label} over {x_label}", elements)


def draw_bars(
    groups: Sequence[tuple[str, Sequence[Bar]]], x_label: str, *, low: float = 0.0, high: float | None = None,
    reference: float | None = None,
) -> str:  # fmt: skip
    """Return groups of horizontal bars, each with its name to the left and its value as text behind it.

    Args:
        groups: heading of a group, and its bars. An empty heading takes no line.
        low, high: ends of the axis. Default: 0, and the largest value.
        reference: value at which the bars start, marked with a line, such as chance. Default: the low end.
    """
    values = [bar.value for _, bars in groups for bar in bars]
    if not values:
        return ""
    marks = ticks(low, max(values) if high is None else high, 4)
    names = [bar.name for _, bars in groups for bar in bars]
    width, left, right, top, pitch = 440, 16 + 6.6 * max(map(len, names)), 58, 6, 22
    height = top + sum(pitch * len(bars) + (30 if head else 8) for head, bars in groups) + 44
    bottom = height - 40

    def across(value: float) -> float:
        return left + (value - marks[0]) / (marks[-1] - marks[0]) * (width - left - right)

    elements = []
    for mark in marks:
        x, text = across(mark), number(mark, marks[1] - marks[0])
        elements.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>')
        elements.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{text}</text>')
    y = float(top)
    for head, bars in groups:
        y += 22 if head else 4
        if head:
            elements.append(f'<text class="name" x="4" y="{y - 6:.1f}">{escape(head)}</text>')
        for bar in bars:
            end, line = across(bar.value), f"{y + 14:.1f}"
            start = across(marks[0] if reference is None else reference)
            low_x, span = min(start, end), max(abs(end - start), 1.0)
            elements.append(
                f'<g class="s{bar.slot % SLOTS}">{format_title(f"{bar.name}: {bar.text}")}'
                f'<rect class="fill" x="{low_x:.1f}" y="{y + 3:.1f}" width="{span:.1f}" height="14"/>'
                f'<text x="{left - 8:.1f}" y="{line}" text-anchor="end">{escape(bar.name)}</text>'
                f'<text class="name" x="{max(start, end) + 7:.1f}" y="{line}">{escape(bar.text)}</text></g>'
            )
            y += pitch
        y += 8 if head else 4
    if reference is not None:
        x = across(reference)
        elements.append(f'<line class="reference" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>')
    elements.append(
        f'<text class="axis" x="{width - right}" y="{height - 6}" text-anchor="end">{escape(x_label)}</text>'
    )
    return format_svg(width, height, x_label, elements)


def _choose_powers(low: float, high: float) -> list[float]:
    """Return powers of two, four or sixteen that cover a range, at most about six.

    >>> _choose_powers(3.0, 250.0)
    [1.0, 4.0, 16.0, 64.0, 256.0]
    """
    spread = math.log2(high / low)
    step = next(one for one in (1, 2, 4, 8) if spread / one <= 5 or one == 8)
    first, last = math.floor(math.log2(low) / step), math.ceil(math.log2(high) / step - 1e-9)
    return [2.0 ** (step * at) for at in range(first, max(last, first + 1) + 1)]
