"""SVG of a traced pipeline: a box per stage with its items, its milliseconds, and what it dropped.

The same trace gives the same bytes, apart from the milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from longrec.pipeline.trace import StageTrace
from longrec.pipeline.trace_report import PipelineTrace

INK, FAINT, LINE, PAPER = "#1f2933", "#6b7480", "#9aa5b1", "#ffffff"
SOURCE, SCORED, RULE, LATE = "#2f6fb8", "#2f8f5b", "#7a8290", "#d2691e"
PLAIN = "Helvetica, Arial, sans-serif"
WIDE, TALL, GAP, DEEP, MARGIN = 190, 70, 24, 42, 18
"""Width and height of a box, distances beside and below it, and the margin."""
MOST = 4
"""Maximum number of sources in one row."""


def draw(trace: PipelineTrace) -> str:
    """Return the whole file."""
    sources = [stage for stage in trace.stages if stage.is_source]
    rest = [stage for stage in trace.stages if not stage.is_source]
    rows: list[Sequence[StageTrace]] = [sources[at : at + MOST] for at in range(0, len(sources), MOST)]
    rows += [[stage] for stage in rest]
    width = 2 * MARGIN + max(len(row) for row in rows) * (WIDE + GAP) - GAP
    width = max(width, 2 * MARGIN + 2 * WIDE)
    top, shapes, lines = MARGIN + 30, list[str](), list[str]()
    entry = MARGIN + 30 + (len(rows) - len(rest)) * (TALL + DEEP)
    for row in rows:
        left = (width - len(row) * (WIDE + GAP) + GAP) // 2
        for number, stage in enumerate(row):
            x = left + number * (WIDE + GAP)
            shapes += _draw_box(stage, x, top)
            if stage.is_source and rest:
                lines.append(_draw_line(x + WIDE // 2, top + TALL, width // 2, entry))
            elif stage is not trace.stages[-1]:
                lines.append(_draw_line(width // 2, top + TALL, width // 2, top + TALL + DEEP))
        top += TALL + DEEP
    height = top - DEEP + MARGIN
    title = f"{trace.pipeline}: {len(trace.page)} items in {1e3 * trace.seconds:.1f} ms"
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="{PLAIN}">',
        f"<title>{escape(trace.pipeline)}: stages of a request</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0,0.6 L8,4 L0,7.4 Z" fill="{LINE}"/></marker></defs>',
        f'<rect width="100%" height="100%" rx="8" fill="{PAPER}"/>',
        _draw_text(width // 2, MARGIN + 10, title, INK, 14, "bold"),
        *lines,
        *shapes,
        "</svg>",
        "",
    ])  # fmt: skip


def _draw_box(stage: StageTrace, x: int, y: int) -> list[str]:
    color = LATE if stage.late else SOURCE if stage.is_source else SCORED if stage.name in stage.after.scores else RULE
    dropped = sum(map(len, stage.dropped.values()))
    notes = "late: left out" if stage.late else f"{dropped:,} dropped" if dropped else ""
    tip = ", ".join(f"{len(keys):,} {reason}" for reason, keys in stage.dropped.items()) or "nothing dropped"
    middle, figures = x + WIDE // 2, f"{len(stage.own):,} items, {1e3 * stage.seconds:.1f} ms"
    return [
        f'<g><title>{escape(tip)}</title><rect x="{x}" y="{y}" width="{WIDE}" height="{TALL}" rx="6" fill="{PAPER}" '
        f'stroke="{color}" stroke-width="1.5"/><rect x="{x}" y="{y}" width="6" height="{TALL}" rx="3" fill="{color}"/>',
        _draw_text(middle, y + 22, stage.name, INK, 13, "bold"),
        _draw_text(middle, y + 41, figures, INK, 12),
        _draw_text(middle, y + 58, notes, FAINT, 11),
        "</g>",
    ]


def _draw_line(x: int, y: int, to_x: int, to_y: int) -> str:
    middle = (y + to_y) // 2
    path = f"M{x},{y} C{x},{middle} {to_x},{middle} {to_x},{to_y - 2}"
    return f'<path d="{path}" fill="none" stroke="{LINE}" stroke-width="1.4" marker-end="url(#tip)"/>'


def _draw_text(x: int, y: int, text: str, color: str, size: int, weight: str = "normal") -> str:
    style = f'font-size="{size}" font-weight="{weight}" text-anchor="middle"'
    return f'<text x="{x}" y="{y}" fill="{color}" {style}>{escape(text)}</text>'
