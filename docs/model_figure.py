"""SVG of a traced model: boxes in layers, the lines between them, and the rate of each operation in color.

The same figure gives the same bytes: the layout is deterministic, and coordinates are whole numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

from model_boxes import Box, Entry, Figure

COLORS = {
    "request": "#7a8290",
    "candidate": "#2f8f5b",
    "row": "#2f8f5b",
    "event": "#2f6fb8",
    "pair": "#d2691e",
}
LABELS = {
    "request": "once per request",
    "candidate": "once per candidate",
    "row": "once per row",
    "event": "once per history event",
    "pair": "once per candidate and event",
}
INK, FAINT, LINE, PAPER = "#1f2933", "#6b7480", "#9aa5b1", "#ffffff"
PLAIN, FIXED = "Helvetica, Arial, sans-serif", "Menlo, Consolas, monospace"
MOST = 9
"""Maximum number of listed entries of a box."""
GAP, DEEP, MARGIN = 26, 46, 18
"""Distance between two boxes of a layer, between two layers, and around the figure."""


@dataclass
class _Node:
    """A box with its position, or a bend of a line that passes a layer."""

    number: int
    layer: int
    width: int
    height: int
    texts: list[str] = field(default_factory=list)
    x: float = 0.0
    y: float = 0.0

    @property
    def bend(self) -> bool:
        return self.number < 0


def svg(figure: Figure) -> str:
    """Return the whole file."""
    nodes, chains = _assign_layers(figure)
    order = _order_layers(nodes, chains)
    _set_positions(order, chains)
    top = float(MARGIN)
    for row in order:
        tall = max(node.height for node in row)
        for node in row:
            node.y = top + (0 if node.bend else (tall - node.height) / 2)
            node.height = tall if node.bend else node.height
        top += tall + DEEP
    left = min(node.x - node.width / 2 for node in nodes.values())
    for node in nodes.values():
        node.x += MARGIN - left
    width = max(node.x + node.width / 2 for node in nodes.values()) + MARGIN
    rates = [rate for rate in COLORS if any(rate in _rates(box) for box in figure.boxes.values())]
    legend, across, deep = _legend(rates, figure.ragged, max(width, 680))
    width, height = max(width, across), top - DEEP + 20 + deep
    shift = (width - (max(node.x + node.width / 2 for node in nodes.values()) + MARGIN)) / 2
    for node in nodes.values():
        node.x += shift
    lines = [_line([nodes[at] for at in chain], nodes, chains) for chain in chains]
    boxes = [_box(figure.boxes[node.number], node) for node in nodes.values() if not node.bend]
    size = f'width="{round(width)}" height="{round(height)}" viewBox="0 0 {round(width)} {round(height)}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="{PLAIN}">',
            f"<title>{escape(figure.name)}: computation of a score</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            f'<path d="M0,0.6 L8,4 L0,7.4 Z" fill="{LINE}"/></marker></defs>',
            f'<rect width="100%" height="100%" rx="8" fill="{PAPER}"/>',
            *lines,
            *boxes,
            f'<g transform="translate(0,{round(top - DEEP + 20)})">',
            *legend,
            "</g>",
            "</svg>",
            "",
        ]
    )


# ---- layout --------------------------------------------------------------------------------------------------------


def _assign_layers(figure: Figure) -> tuple[dict[int, _Node], list[list[int]]]:
    """Return a layer for every box, below all its inputs, and the lines as chains of nodes with a bend per layer
    between.
    """
    layer = dict.fromkeys(figure.boxes, 0)
    for _ in figure.boxes:
        for a, b in figure.lines:
            layer[b] = max(layer[b], layer[a] + 1)
    last = max(layer.values())
    for number, box in figure.boxes.items():
        if box.kind == "output":
            layer[number] = last
    nodes = {}
    for number, box in figure.boxes.items():
        width, height = _size(box)
        nodes[number] = _Node(number, layer[number], width, height)
    chains = []
    for a, b in sorted(figure.lines):
        chain = [a]
        for between in range(layer[a] + 1, layer[b]):
            bend = -len(nodes) - 1
            nodes[bend] = _Node(bend, between, 10, 0)
            chain.append(bend)
        chains.append([*chain, b])
    return nodes, chains


def _order_layers(nodes: Mapping[int, _Node], chains: Sequence[Sequence[int]]) -> list[list[_Node]]:
    """Return the nodes of each layer from left to right, ordered for few crossing lines."""
    rows: list[list[_Node]] = [[] for _ in range(1 + max(node.layer for node in nodes.values()))]
    for node in nodes.values():
        rows[node.layer].append(node)
    pairs = [(a, b) for chain in chains for a, b in pairwise(chain)]
    best, fewest = [list(row) for row in rows], _count_crossings(rows, pairs)
    for sweep in range(12):
        down = sweep % 2 == 0
        for row in rows if down else reversed(rows):
            index = {node.number: at for other in rows for at, node in enumerate(other)}
            beside = {
                node.number: [index[a] if down else index[b] for a, b in pairs if node.number == (b if down else a)]
                for node in row
            }
            row.sort(
                key=lambda node, beside=beside, index=index: (  # type: ignore[misc]
                    sum(beside[node.number]) / len(beside[node.number]) if beside[node.number] else index[node.number]
                )
            )
        crossings = _count_crossings(rows, pairs)
        if crossings < fewest:
            best, fewest = [list(row) for row in rows], crossings
    return best


def _count_crossings(rows: Sequence[Sequence[_Node]], pairs: Sequence[tuple[int, int]]) -> int:
    index = {node.number: (node.layer, at) for row in rows for at, node in enumerate(row)}
    ends = [(index[a], index[b]) for a, b in pairs]
    return sum(
        (a[1] - c[1]) * (b[1] - d[1]) < 0 for at, (a, b) in enumerate(ends) for c, d in ends[:at] if a[0] == c[0]
    )


def _set_positions(rows: Sequence[Sequence[_Node]], chains: Sequence[Sequence[int]]) -> None:
    """Set the centers of all nodes, each near its neighbors, without overlap."""
    at = {node.number: node for row in rows for node in row}
    beside: dict[int, list[int]] = {number: [] for number in at}
    for chain in chains:
        for a, b in pairwise(chain):
            beside[a].append(b)
            beside[b].append(a)
    for row in rows:
        _spread(row, [0.0] * len(row))
    for sweep in range(40):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            wanted = []
            for node in row:
                # A straight run of bends counts more than a box centered among its neighbors.
                pulls = [(at[other].x, 4 if node.bend and at[other].bend else 1) for other in beside[node.number]]
                total = sum(weight for _, weight in pulls)
                wanted.append(sum(x * weight for x, weight in pulls) / total if total else node.x)
            _spread(row, wanted)


def _spread(row: Sequence[_Node], wanted: Sequence[float]) -> None:
    """Move the nodes of a row as near to the wanted centers as their widths allow (least squares, order kept)."""
    needed = [0.0]
    for left, right in pairwise(row):
        gap = GAP / 2 if left.bend or right.bend else GAP
        needed.append(needed[-1] + (left.width + right.width) / 2 + gap)
    blocks: list[tuple[float, int]] = []  # means of runs of adjacent nodes, minus the space they need
    for want, need in zip(wanted, needed):
        blocks.append((want - need, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, m), (b, n) = blocks[-2], blocks[-1]
            blocks[-2:] = [((a * m + b * n) / (m + n), m + n)]
    means = [mean for mean, count in blocks for _ in range(count)]
    for node, mean, need in zip(row, means, needed):
        node.x = mean + need


# ---- drawing -------------------------------------------------------------------------------------------------------


def _size(box: Box) -> tuple[int, int]:
    """Return width and height of a box."""
    wide = [_measure(box.name, 14, bold=True) + 24, _measure(_under(box), 11) + 24]
    for entry in _list_entries(box):
        wide.append(
            28 + _measure(entry.name, 12) + _measure(_kind(entry), 11) + 16 + _measure(entry.shape, 11, fixed=True) + 10
        )
    if box.shape and box.kind != "output":
        wide.append(24 + _measure(f"→ {box.shape}", 11, fixed=True))
    lines = len(_list_entries(box)) + bool(box.entries and len(box.entries) > MOST)
    tall = 30 + (16 if _under(box) else 0) + 17 * lines + (20 if _format_output(box) else 6) + (4 if lines else 0)
    return max(116, round(max(wide))), tall


def _box(box: Box, node: _Node) -> str:
    left, top = round(node.x - node.width / 2), round(node.y)
    fill = {"input": "#eef2f6", "output": "#eef2f6", "embeddings": "#f7f4ea"}.get(box.kind, "#fbfcfd")
    round_ = 14 if box.kind in ("input", "output") else 5
    out = [
        f'<g transform="translate({left},{top})">',
        f'<rect width="{node.width}" height="{node.height}" rx="{round_}" fill="{fill}" stroke="{LINE}"/>',
    ]
    if box.kind not in ("input", "output"):
        out += _bar(_rates(box), node.width)
    at = 22
    out.append(_text(12, at, box.name, 14, INK, bold=True))
    if _under(box):
        at += 16
        out.append(_text(12, at, _under(box), 11, FAINT))
    if box.entries:
        at += 4
    for entry in _list_entries(box):
        at += 17
        out.append(f'<circle cx="17" cy="{at - 4}" r="4" fill="{COLORS[entry.rate]}"/>')
        out.append(_text(28, at, entry.name, 12, INK))
        if _kind(entry):
            out.append(_text(round(28 + _measure(entry.name, 12) + 6), at, _kind(entry), 11, FAINT))
        if entry.shape:
            out.append(_text(node.width - 10, at, entry.shape, 11, INK, fixed=True, end=True))
    if len(box.entries) > MOST:
        at += 17
        out.append(_text(28, at, f"and {len(box.entries) - MOST} more", 11, FAINT))
    if _format_output(box):
        out.append(_text(12, node.height - 9, _format_output(box), 11, INK, fixed=True))
    return "\n".join([*out, "</g>"])


def _bar(rates: Mapping[str, int], width: int) -> list[str]:
    """Return a strip along the upper edge that shows the operations of a box by rate."""
    total, at, out = sum(rates.values()), 1.0, []
    for rate, count in rates.items():
        share = (width - 2) * count / total
        wide = max(1, round(at + share) - round(at))
        out.append(f'<rect x="{round(at)}" y="1" width="{wide}" height="4" fill="{COLORS[rate]}"/>')
        at += share
    return out


def _rates(box: Box) -> dict[str, int]:
    """Return operations by rate, in the order of the legend. A box that only looks up has one of each rate."""
    rates = box.rates if any(box.rates.values()) else {entry.rate: 1 for entry in box.entries}
    total = sum(rates.values())
    return {rate: rates[rate] for rate in COLORS if total and rates.get(rate, 0) / total >= 0.005}


def _line(chain: Sequence[_Node], nodes: Mapping[int, _Node], chains: Sequence[Sequence[int]]) -> str:
    first, last = chain[0], chain[-1]
    leaving = sorted((c for c in chains if c[0] == first.number), key=lambda c: nodes[c[1]].x)
    coming = sorted((c for c in chains if c[-1] == last.number), key=lambda c: nodes[c[-2]].x)
    numbers = [node.number for node in chain]
    points = [(_port(first, leaving.index(numbers), len(leaving)), first.y + first.height)]
    for node in chain[1:-1]:
        points += [(node.x, node.y), (node.x, node.y + node.height)]
    points.append((_port(last, coming.index(numbers), len(coming)), last.y - 1))
    path = f"M{round(points[0][0])},{round(points[0][1])}"
    for (x, y), (u, v) in pairwise(points):
        half = (v - y) * 0.5
        path += f" C{round(x)},{round(y + half)} {round(u)},{round(v - half)} {round(u)},{round(v)}"
    return f'<path d="{path}" fill="none" stroke="{LINE}" stroke-width="1.4" marker-end="url(#tip)"/>'


def _port(node: _Node, index: int, count: int) -> float:
    """Return the x coordinate at which the line of an index leaves or enters a box."""
    step = min(26.0, (node.width - 24) / max(count, 1))
    return node.x + (index - (count - 1) / 2) * step


def _legend(rates: Sequence[str], ragged: bool, width: float) -> tuple[list[str], float, int]:
    """Return the lines of the legend, their width, and their total height."""
    out, at, line, most = [], float(MARGIN), 0, 0.0
    for rate in rates:
        wide = 16 + _measure(LABELS[rate], 12) + 20
        if at + wide > width:
            at, line = float(MARGIN), line + 1
        y = 12 + 18 * line
        out.append(f'<circle cx="{round(at + 4)}" cy="{y - 4}" r="4" fill="{COLORS[rate]}"/>')
        out.append(_text(round(at + 14), y, LABELS[rate], 12, INK))
        at += wide
        most = max(most, at)
    letters = "R rows, N events of all their histories." if ragged else "B candidates, T history events."
    sentences = [f"{letters} The strip on a box shows its operations by rate."]
    for sentence in sentences:
        line += 1
        out.append(_text(MARGIN, 12 + 18 * line, sentence, 11, FAINT))
        most = max(most, MARGIN + _measure(sentence, 11))
    return out, most + MARGIN, 12 + 18 * line + 14


def _list_entries(box: Box) -> list[Entry]:
    return box.entries[:MOST]


def _under(box: Box) -> str:
    """Return the second line of a box: its class, its parameters, and how often it runs."""
    if box.kind in ("input", "output"):
        return {"impression": "fields of the impression", "logit": "", "vector": ""}.get(box.name, "a history")
    phrases = [box.under or box.kind.strip("_")]
    if box.kind == "parameter":
        phrases = [f"{box.parameters:,} learned parameters"]
    elif box.parameters:
        phrases.append(f"{box.parameters:,} parameters{' each' if '…' in box.name else ''}")
    if box.times > 1:
        phrases.append(f"{box.times} times")
    return ", ".join(phrases)


def _kind(entry: Entry) -> str:
    text = "" if entry.kind in ("", "function") else entry.kind.strip("_")
    return f"{text} × {entry.times}".strip() if entry.times > 1 else text


def _format_output(box: Box) -> str:
    return f"→ {box.shape}" if box.shape else ""


def _measure(text: str, size: int, *, bold: bool = False, fixed: bool = False) -> float:
    """Return the approximate width of a text, with narrow, wide and other letters of Helvetica."""
    if fixed:
        return len(text) * size * 0.61
    wide = sum(0.28 if c in "ijlt.,:'|() f" else 0.7 if c.isupper() or c in "mw×→" else 0.55 for c in text)
    return wide * size * (1.07 if bold else 1.0)


def _text(
    x: int, y: int, text: str, size: int, ink: str, *, bold: bool = False, fixed: bool = False, end: bool = False
) -> str:
    more = (' font-weight="bold"' if bold else "") + (f' font-family="{FIXED}"' if fixed else "")
    more += ' text-anchor="end"' if end else ""
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{ink}"{more}>{escape(text, quote=False)}</text>'
