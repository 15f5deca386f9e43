"""Sections of a model page that need a run of the model: the figure, its caption, and the table of operations."""

from __future__ import annotations

import math

import torch
from model_batches import extra_settings
from model_boxes import Figure
from model_cost import EVENTS, WIDTH, Costs, costs
from model_figure import svg
from model_trace import trace

from longrec.config import to_yaml


def run(name: str) -> tuple[str, str, str]:
    """Return the figure, its caption, and the table of operations of a model."""
    torch.set_num_threads(1)
    figure = trace(name)
    return svg(figure), _describe(figure), _format_costs(costs(name))


def _describe(figure: Figure) -> str:
    """Return one paragraph: the batch of the run, and the number of learned parameters beside the tables."""
    batch = "rows of some users, each with a history of its own" if figure.ragged else "one request of B candidates"
    more = extra_settings(figure.name)
    with_ = f" with `{' '.join(to_yaml(more, inline=True).split())}`" if more else ""
    return (
        f"Traced on {batch}{with_} ([how](../models.md#how-the-pages-are-made)). "
        f"Beside its tables the model has {figure.learned:,} parameters."
    )


def _format_costs(counts: Costs) -> str:
    """Return a table of operations and their growth with length and width."""
    lines = [f"| events of a history | {' | '.join(f'{many:,}' for many in EVENTS)} |"]
    lines.append("| --- |" + " ---: |" * len(EVENTS))
    lines.append(f"| a row | {' | '.join(short(counts.row[many]) for many in EVENTS)} |")
    if counts.candidate:
        lines.append(f"| a candidate | {' | '.join(short(counts.candidate[many]) for many in EVENTS)} |")
    middle, most = EVENTS[1:]
    if not counts.row[middle]:
        return "\n".join([*lines, "", "A score is a look-up."])
    by_t = math.log(counts.row[most] / counts.row[middle]) / math.log(most / middle)
    by_d = math.log2(counts.wide / counts.row[middle])
    sentence = f"From {middle:,} to {most:,} events the cost of a row grows as T^{by_t:.1f}"
    sentence += f", and from a width of {WIDTH} to {2 * WIDTH}, at {middle} events, as d^{by_d:.1f}."
    return "\n".join([*lines, "", sentence.replace("^-0.0", "^0.0")])


def short(count: int) -> str:
    """Return a number of operations in about three digits.

    >>> [short(n) for n in (9, 43_136, 2_317_872, 211_457_912)]
    ['9', '43.1 k', '2.32 M', '211 M']
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            value = count / size
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    return str(count)
