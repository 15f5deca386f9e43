"""Sections of the page about vectors and behavior: retention, matching, latent geometry and churn."""

from __future__ import annotations

from html import escape

from longrec.reporting.markup import format_card, format_grid
from longrec.reporting.plots import draw_swatch
from longrec.semantic_ids.diagnostics.charts import Bar, Steps, draw_bars, draw_steps
from longrec.semantic_ids.diagnostics.diagnosis import Diagnosis
from longrec.semantic_ids.diagnostics.matching import EXACT, POPULAR, UNIFORM, WEIGHTED


def format_retention(diagnosis: Diagnosis) -> str:
    """Return the section of the reconstruction: what codes keep of item-to-item retrieval."""
    own = diagnosis.retention
    if own is None:
        return ""
    labels = [str(cut) for cut in own.cuts]
    rates = [Steps("item vectors", 0, own.original)]
    rates += [Steps(label, at, values) for at, (label, values) in enumerate(own.hit_rates.items(), 1)]
    rates.append(Steps("chance", 5, own.chance))
    kept = [Steps(label, at, values) for at, (label, values) in enumerate(own.retention.items(), 1)]
    kept.insert(0, Steps("item vectors", 0, [1.0] * len(labels)))
    rows = ["item vectors", *(label for label in own.hit_rates), "chance"]
    cells = [[f"{value:.4f}" for value in own.original]]
    cells += [
        [f"{rate:.4f}<span class='hint'>keeps {100 * share:.1f} %</span>" for rate, share in zip(values, ratios)]
        for values, ratios in zip(own.hit_rates.values(), own.retention.values())
    ]
    cells.append([f"{value:.4f}" for value in own.chance])
    names = [f"HR@{cut}" for cut in own.cuts]
    table = format_grid("vectors", names, names, list(map(escape, rows)), cells, "dense even")
    cards = [
        format_card(
            "Hit rate",
            _format_legend(rates) + draw_steps(rates, labels, "K nearest items", "hit rate HR@K"),
            "Share of the pairs whose second item is among the K items nearest to the first.",
        ),
        format_card(
            "Retention",
            _format_legend(kept) + draw_steps(kept, labels, "K nearest items", "retention HR@K / HR@K of item vectors"),
            "1 keeps everything. Above 1, the reconstructed vectors find more than the item vectors.",
        ),
    ]
    cut, base = own.cuts[-1], own.original[-1]
    error = (base * (1 - base) / own.pairs) ** 0.5
    lead = (
        f"{own.pairs:,} pairs of an item and the next item of the same user in the training window. Items are "
        "retrieved by the cosine of their vectors. Quantized vectors are computed from codes alone. The autoencoder "
        "alone has no codes in between: it shows what is lost before quantization, and is no property of the codes. "
        f"The standard error of HR@{cut} is about {error:.4f}."
    )
    return (
        f"<section><h2>What the codes keep of the vectors</h2><p>{lead}</p>"
        f'<div class="scroll">{table}</div><div class="cards two">{"".join(cards)}</div></section>'
    )


def format_matching(diagnosis: Diagnosis) -> str:
    """Return the section of the behavior-matching AUCs."""
    own = diagnosis.matching
    if own is None:
        return ""
    scores = list(own.aucs[UNIFORM])
    names = {WEIGHTED: "codes: weighted match", EXACT: "codes: exact match"}
    shown = [names.get(score, f"{score}: cosine") for score in scores]
    bars = [
        Bar(name, 0 if score not in names else 1, own.aucs[UNIFORM][score], f"{own.aucs[UNIFORM][score]:.3f}")
        for score, name in zip(scores, shown)
    ]
    chart = draw_bars([("", bars)], "AUC against random items", low=0.4, high=1.0, reference=0.5)
    cells = [[f"{own.aucs[kind][score]:.4f}" for kind in (UNIFORM, POPULAR)] for score in scores]
    heads = [f"against {kind}" for kind in (UNIFORM, POPULAR)]
    table = format_grid("score of a pair", heads, heads, list(map(escape, shown)), cells, "dense even")
    rows = [f"first {at} code{'s' if at > 1 else ''}" for at in range(1, len(own.equal) + 1)]
    equal = [
        [
            f"{100 * pair:.2f} %",
            f"{100 * random:.3f} %",
            f"{pair / random:,.1f} x" if random > 0 else "-",
        ]
        for pair, random in own.equal
    ]
    columns = ["consecutive items", "random items", "ratio"]
    prefixes = format_grid("equal", columns, columns, rows, equal, "dense even")
    lead = (
        f"Do items that follow each other in histories look more alike than an item and a random one? {own.pairs:,} "
        "pairs of each. 0.5 is chance. Weighted match adds 1/2, 1/4, 1/8 for each further leading code that is equal. "
        "A tie counts half, so exact match stays near 0.5 where nearly no two items have equal IDs."
    )
    note = "The dashed line is chance. The table has random items of the same popularity too, which are harder to tell."
    return (
        f'<section><h2>Do the codes follow behavior?</h2><p>{lead}</p><div class="scroll">{table}</div>'
        f'<div class="cards two">{format_card("Consecutive or random items?", chart, note)}'
        f'<figure><h3>Pairs with equal leading codes</h3><div class="scroll">{prefixes}</div></figure></div></section>'
    )


def format_latent(diagnosis: Diagnosis) -> str:
    """Return the section of the geometry of vectors."""
    if not diagnosis.geometry:
        return ""
    names = ["dimensions", "participation ratio", "effective rank", "largest direction", "mean |cosine|"]
    hints = ["", "used directions, by energy", "used directions, by entropy", "share of the variance", "of two items"]
    cells = [
        [
            f"{own.dimensions:,}",
            f"{own.participation:,.1f}",
            f"{own.effective_rank:,.1f}",
            f"{100 * own.largest:.1f} %",
            f"{own.cosine:.3f}",
        ]
        for own in diagnosis.geometry.values()
    ]
    across = [f'{name}<span class="hint">{hint}</span>' for name, hint in zip(names, hints)]
    table = format_grid("vectors", names, across, list(map(escape, diagnosis.geometry)), cells, "dense")
    shown = min(20, min(own.dimensions for own in diagnosis.geometry.values()))
    series = [
        Steps(label, at, own.spectrum[:shown].tolist()) for at, (label, own) in enumerate(diagnosis.geometry.items())
    ]
    labels = [str(at) if at == 1 or at % 5 == 0 else "" for at in range(1, shown + 1)]
    chart = draw_steps(series, labels, "direction, largest first", "share of the variance")
    note = (
        "A steep start means that few directions hold the variance, so that codes mostly tell items apart along them."
    )
    lead = (
        "Vectors that use many directions leave room for codes. Item vectors are the input, the latent is what is "
        "quantized, and codewords are the vectors that the codes stand for."
    )
    return (
        f'<section><h2>Geometry of the vectors</h2><p>{lead}</p><div class="scroll">{table}</div>'
        f'<div class="cards two">{format_card("Variance per direction", _format_legend(series) + chart, note)}</div>'
        "</section>"
    )


def format_churn(diagnosis: Diagnosis) -> str:
    """Return the section of changes against another version."""
    own = diagnosis.churn
    if own is None:
        return ""
    labels = [f"first {at}" if at > 1 else "first code" for at in range(1, len(own.prefixes) + 1)]
    series = [Steps("after alignment", 0, own.prefixes), Steps("without alignment", 5, own.unaligned)]
    chart = draw_steps(series, labels, "codes that must all be equal", "share of the items that changed")
    note = (
        "The numbers of codes are arbitrary: two fits can name the same group of items differently. Alignment renames "
        "the codes of one version, level by level, so that most items agree. What is left is real change."
    )
    cells = [[f"{100 * aligned:.1f} %", f"{100 * plain:.1f} %"] for aligned, plain in zip(own.prefixes, own.unaligned)]
    names = ["after alignment", "without alignment"]
    table = format_grid("changed", names, names, labels, cells, "dense even")
    lead = f"{own.items:,} items are in both versions. A code that changes is a wrong input for a model trained before."
    return (
        f'<section><h2>Churn between versions</h2><p>{lead}</p><div class="cards two">'
        f"{format_card('Items with other codes', _format_legend(series) + chart, note)}"
        f'<figure><h3>Share of the items whose codes changed</h3><div class="scroll">{table}</div></figure></div>'
        "</section>"
    )


def _format_legend(series: list[Steps]) -> str:
    items = "".join(f"<li>{draw_swatch(one.slot)} {escape(one.name)}</li>" for one in series)
    return f'<ul class="legend">{items}</ul>'
