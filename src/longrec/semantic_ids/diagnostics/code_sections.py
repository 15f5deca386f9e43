"""Sections of the page about codes: levels, exposure of prefixes, and full IDs."""

from __future__ import annotations

import numpy as np

from longrec.metrics.columns import Floats
from longrec.reporting.markup import format_card, format_grid
from longrec.reporting.plots import Series, draw_line_chart, draw_swatch
from longrec.semantic_ids.diagnostics.charts import Bar, Steps, draw_bars, draw_steps
from longrec.semantic_ids.diagnostics.diagnosis import Diagnosis, Level
from longrec.semantic_ids.diagnostics.overlap import SIGMA_FACTORS
from longrec.semantic_ids.diagnostics.prefixes import TOP_SHARES

_POINTS = 100
_PREFIX_NAMES = ("level-1 codes", "pairs", "triples")


def format_levels(diagnosis: Diagnosis) -> str:
    """Return the section of the levels: usage of the codes, effective capacity, and what each level removes."""
    levels = diagnosis.levels
    has_books = any(level.overlap is not None for level in levels)
    held = diagnosis.weights
    counted = "its items" if held == "items" else "the exposure of its items"
    groups = [(f"Level {one.level} of {one.usage.size:,} codes", _list_bars(one)) for one in levels]
    note = (
        "Used: codes with an item. Perplexity: number of codes that would give the same entropy if all were used "
        f"equally, where a code counts {counted}."
    )
    if has_books:
        note += (
            " Effective capacity: number of equally used codes, infinitely far apart, that would overlap as much when "
            "vectors are perturbed by sigma."
        )
    cards = [format_card("Codes that work", draw_bars(groups, "codes", high=max(o.usage.size for o in levels)), note)]
    usage = [Series(f"level {one.level}", one.level - 1, _accumulate(one.usage.shares)) for one in levels]
    even = Series("even use", 5, [(0.0, 0.0), (1.0, 1.0)])
    chart = draw_line_chart([*usage, even], "share of the codes, most used first", f"share of the {held} held")
    note = (
        "The closer to the straight line of even use, the better. A line that reaches 1 early has dead codes: the "
        "codes to its right hold nothing."
    )
    cards.append(format_card("How evenly codes are used", _format_legend([*usage, even]) + chart, note))
    if has_books:
        cards += [_format_sigma(levels), _format_rest(levels)]
    return (
        f"<section><h2>Levels: do the codes use their space?</h2>{_format_table(diagnosis)}"
        f'<div class="cards two">{"".join(cards)}</div></section>'
    )


def _list_bars(level: Level) -> list[Bar]:
    usage = level.usage
    bars = [
        Bar("used", 0, usage.active, f"{usage.active:,}"),
        Bar("perplexity", 2, usage.perplexity, f"{usage.perplexity:,.0f}"),
    ]
    if level.overlap is not None:
        bars.append(Bar("effective capacity", 1, level.overlap.capacity, f"{level.overlap.capacity:,.0f}"))
    return bars


def _format_table(diagnosis: Diagnosis) -> str:
    heads = [
        ("codes", ""),
        ("used", "with an item"),
        ("perplexity", "evenly used codes with the same entropy"),
        ("Gini", "0 even, 1 one code"),
    ]
    has_books = any(level.overlap is not None for level in diagnosis.levels)
    if has_books:
        heads += [
            ("effective capacity", "1 / expected overlap"),
            ("lost by uneven use", "factor, 1 is best"),
            ("lost by geometry", "factor, 1 is best"),
            ("sigma", "perturbation per dimension"),
            ("variance left", "after this level"),
        ]
    cells = []
    for one in diagnosis.levels:
        usage, own = one.usage, one.overlap
        row = [f"{usage.size:,}", f"{usage.active:,}", f"{usage.perplexity:,.1f}", f"{usage.gini:.3f}"]
        if has_books:
            row += (
                ["-"] * 4
                if own is None
                else [f"{own.capacity:,.1f}", f"{own.distribution:.2f}", f"{own.geometry:.2f}", f"{own.sigma:.4g}"]
            )
            row.append("-" if one.rest is None else f"{100 * one.rest:.1f} %")
        cells.append(row)
    names = [name for name, _ in heads]
    across = [f'{name}<span class="hint">{hint}</span>' for name, hint in heads]
    table = format_grid("", names, across, [f"level {one.level}" for one in diagnosis.levels], cells, "dense")
    return f'<div class="scroll">{table}</div>'


def _format_sigma(levels: tuple[Level, ...]) -> str:
    series = [
        Steps(f"level {one.level}", one.level - 1, [own.capacity for own in one.curve]) for one in levels if one.curve
    ]
    labels = [f"{factor:g}" for factor in SIGMA_FACTORS]
    chart = draw_steps(
        series, labels, "sigma squared / variance per dimension", "effective capacity (codes)", logarithmic=True
    )
    note = (
        "How much perturbation the codewords bear. Where a line is flat, the codewords are far enough apart. Where it "
        "falls, a vector that moves that far lands on another code. At 1, the perturbation is as large as the spread "
        "of the vectors in every dimension."
    )
    return format_card("Capacity under perturbation", _format_swatches(series) + chart, note)


def _format_rest(levels: tuple[Level, ...]) -> str:
    rests = [1.0, *(one.rest for one in levels if one.rest is not None)]
    labels = ["before", *(f"level {one.level}" for one in levels if one.rest is not None)]
    chart = draw_steps([Steps("variance left", 0, rests)], labels, "after this level", "share of the variance left")
    note = (
        "Each level describes what the levels before left over. A flat step is a level that adds nothing. What is left "
        "at the end is what the codes do not say."
    )
    return format_card("What each level explains", chart, note)


def format_exposure(diagnosis: Diagnosis) -> str:
    """Return the section of the exposure of prefixes, beside that of the items themselves."""
    what = "items" if diagnosis.item_top is None else "exposure"
    rows, cells, series = [], [], []
    for at, one in enumerate(diagnosis.prefixes[:3]):
        rows.append(f"{_PREFIX_NAMES[at]} ({one.prefixes:,})")
        cells.append([f"{100 * share:.1f} %" for share in one.top])
        series.append(Series(_PREFIX_NAMES[at], at, _accumulate(one.exposure)))
    if diagnosis.item_top is not None and diagnosis.item_exposure is not None:
        rows.append(f"items ({diagnosis.items:,})")
        cells.append([f"{100 * share:.1f} %" for share in diagnosis.item_top])
        series.append(Series("items", 4, _accumulate(diagnosis.item_exposure)))
    names = [f"top {share:.0%}".replace("%", " %") for share in TOP_SHARES]
    table = format_grid("in use", names, names, rows, cells, "dense even")
    chart = draw_line_chart(series, "share of the prefixes in use, most exposed first", f"share of the {what} held")
    note = (
        f"Share of the {what} that the most exposed prefixes hold. Lines of pairs and triples near that of the items "
        "are as good as it gets: popularity itself is uneven. A line above it means that popular items share a prefix."
        if diagnosis.item_top is not None
        else "Share of the items in the largest prefixes. With a log (--log), events are counted instead."
    )
    source = (
        "Exposure is the number of events of an item in the training window."
        if diagnosis.item_top is not None
        else "Without a log, every item counts once."
    )
    return (
        f"<section><h2>Where the {what} go{'es' if what == 'exposure' else ''}</h2><p>{source}</p>"
        f'<div class="cards two">{format_card("Concentration of prefixes", _format_legend(series) + chart, note)}'
        f'<figure><h3>Share of the {what} that the top prefixes hold</h3><div class="scroll">{table}</div></figure>'
        "</div></section>"
    )


def format_ids(diagnosis: Diagnosis) -> str:
    """Return the section of full IDs: twins, and the tree of prefixes that a generator walks down."""
    own = diagnosis.collisions
    sentence = (
        f"{own.distinct:,} different IDs of {own.items:,} items. "
        + (
            f"{own.twins:,} items ({100 * own.rate:.1f} %) share their ID with another item, at most {own.largest:,} "
            "items one ID."
            if own.twins
            else "No two items share an ID."
        )
        + f" The entropy of the IDs is {own.entropy:.2f} bits of {np.log2(own.items):.2f} possible."
    )
    groups = sorted(own.group_sizes.items())
    shown, rest = groups[:9], groups[9:]
    bars = [Bar(f"{size} item{'s' if size > 1 else ''}", 0, count, f"{count:,}") for size, count in shown]
    if rest:
        bars.append(Bar(f"{rest[0][0]} or more", 0, sum(n for _, n in rest), f"{sum(n for _, n in rest):,}"))
    twins = format_card("Items per ID", draw_bars([("", bars)], "number of IDs"), "1 item per ID is best.")
    names = ["prefixes", "next codes", "at most", "with one next code", "choices"]
    hints = ["different", "mean per prefix", "of one prefix", "the code says nothing", "even choices per step"]
    cells = [
        [
            f"{one.prefixes:,}",
            f"{one.children:,.1f}",
            f"{one.most_children:,}",
            f"{100 * one.single:.1f} %",
            f"{one.choices:,.1f}",
        ]
        for one in diagnosis.prefixes
    ]
    across = [f'{name}<span class="hint">{hint}</span>' for name, hint in zip(names, hints)]
    tree = format_grid("step", names, across, [f"code {one.length}" for one in diagnosis.prefixes], cells, "dense")
    steps = Steps("choices", 0, [one.choices for one in diagnosis.prefixes])
    labels = [f"code {one.length}" for one in diagnosis.prefixes]
    note = (
        "Choices that a generator has at each step after the codes before, weighted by exposure. Near 1, the step is "
        "decided by the codes before it."
    )
    chart = format_card("Choices per step", draw_steps([steps], labels, "step", "even choices"), note)
    return (
        f"<section><h2>Full IDs and their tree</h2><p>{sentence}</p>"
        f'<div class="scroll">{tree}</div><div class="cards two">{twins}{chart}</div></section>'
    )


def _accumulate(shares: Floats) -> list[tuple[float, float]]:
    """Return points of the share that the largest shares hold, denser where the line bends."""
    held = np.append(0.0, np.cumsum(np.sort(shares)[::-1]))
    at = np.unique(np.round(len(shares) * np.linspace(0, 1, _POINTS) ** 2).astype(int))
    return [(float(index) / len(shares), float(min(held[index], 1.0))) for index in at]


def _format_legend(series: list[Series]) -> str:
    items = "".join(f"<li>{draw_swatch(one.slot)} {one.name}</li>" for one in series)
    return f'<ul class="legend">{items}</ul>'


def _format_swatches(series: list[Steps]) -> str:
    items = "".join(f"<li>{draw_swatch(one.slot)} {one.name}</li>" for one in series)
    return f'<ul class="legend">{items}</ul>' if len(series) > 1 else ""
