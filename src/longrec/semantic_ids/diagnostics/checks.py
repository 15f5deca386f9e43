"""Checks of a diagnosis: each compares one figure with its bound, and says what it means and what to change."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from longrec.auditing.finding import OK, SKIPPED, Finding
from longrec.semantic_ids.diagnostics.bounds import BOUNDS
from longrec.semantic_ids.diagnostics.diagnosis import (
    CODEWORDS,
    LATENT,
    ORIGINAL,
    QUANTIZED,
    UNQUANTIZED,
    Diagnosis,
    Level,
)
from longrec.semantic_ids.diagnostics.matching import UNIFORM, WEIGHTED
from longrec.semantic_ids.diagnostics.prefixes import count_top

_NEED_LOG = "needs a log (`--log`)"
_NEED_VECTORS = "needs item vectors (`--vectors`)"
_NEED_BOTH = "needs item vectors (`--vectors`) and a log (`--log`)"
_FAIR = 4.0
"""A few codes of a small level hold much even if all are equal: the bound is at least this many times their share."""


def list_findings(measured: Diagnosis) -> Iterator[Finding]:
    """Yield one finding per check, in the order of ``BOUNDS``."""
    yield from _check_levels(measured)
    yield _check_popular_codes(measured)
    yield _check_popular_prefixes(measured)
    yield _check_twins(measured)
    yield from _check_reconstruction(measured)
    yield from _check_behavior(measured)
    yield from _check_latent(measured)
    yield _check_churn(measured)


def _build(check: str, value: float, name: str, why: str, do: str, *, verdict: str | None = None) -> Finding:
    bound = BOUNDS[check]
    own = bound.judge(value) if verdict is None else verdict
    return Finding(check, name, bound.format(value), bound.describe(), own, value, why, do)


def _skip(check: str, reason: str) -> Finding:
    return Finding(check, BOUNDS[check].figure, reason, BOUNDS[check].describe(), SKIPPED)


def _check_levels(measured: Diagnosis) -> Iterator[Finding]:
    levels = measured.levels

    def get_active(one: Level) -> float:
        return one.usage.active / min(one.usage.size, measured.items)

    worst = min(levels, key=get_active)
    yield _build(
        "dead codes",
        get_active(worst),
        f"Level {worst.level} uses {worst.usage.active:,} of {worst.usage.size:,} codes",
        "A code without items is capacity that is paid for and not used: the items crowd on the other codes.",
        "Use `rq_vae` with EMA updates and revival of dead codes, or `rq_kmeans`, which re-seeds empty clusters. If "
        "the catalog is small, use fewer codes.",
    )
    uneven = min(levels, key=lambda one: one.usage.perplexity / one.usage.active)
    yield _build(
        "uneven use",
        uneven.usage.perplexity / uneven.usage.active,
        f"Level {uneven.level} has {uneven.usage.active:,} used codes and works like {uneven.usage.perplexity:,.0f} "
        f"({_describe_weights(measured)})",
        "Some codes have far more items than others, so that most items are told apart by few codes.",
        "Set a capacity per code. With `rq_vae`, use EMA updates and revival. Check for items with equal vectors.",
    )
    if len(levels) < 2:
        yield _skip("collapsed level", "needs two levels")
    else:
        best = max(levels[:-1], key=lambda one: one.usage.perplexity)
        yield _build(
            "collapsed level",
            levels[-1].usage.perplexity / best.usage.perplexity,
            f"The last level works like {levels[-1].usage.perplexity:,.0f} codes, level {best.level} like "
            f"{best.usage.perplexity:,.0f}",
            "Little that differs between items is left for the last level. This is usual after contrastive training, "
            "which pulls items of one group together.",
            "Lower the weight of the contrastive term, drop the last level, or give it fewer codes.",
        )
    yield from _check_codewords(measured)


def _check_codewords(measured: Diagnosis) -> Iterator[Finding]:
    rests = [1.0, *(one.rest for one in measured.levels if one.rest is not None)]
    if len(rests) <= len(measured.levels):
        yield _skip("idle level", _NEED_VECTORS)
        yield _skip("close codewords", _NEED_VECTORS)
        return
    removed = [1.0 - after / before if before > 1e-12 else 0.0 for before, after in itertools.pairwise(rests)]
    idle = min(range(len(removed)), key=removed.__getitem__)
    yield _build(
        "idle level",
        removed[idle],
        f"Level {idle + 1} removes {BOUNDS['idle level'].format(removed[idle])} of the variance that is left before it",
        "A level that removes nothing costs a step of every generated item and describes noise.",
        "Drop the level, or give it more codes.",
    )
    overlaps = [one for one in measured.levels if one.overlap is not None]
    if not overlaps:
        yield _skip("close codewords", "the latent does not vary")
        return
    close = max(overlaps, key=lambda one: one.overlap.geometry if one.overlap else 0.0)
    assert close.overlap is not None
    geometry, capacity = close.overlap.geometry, close.overlap.capacity
    origin = f" (codebooks: {measured.codebooks})" if measured.codebooks else ""
    is_fine = BOUNDS["close codewords"].judge(geometry) == OK
    why = "geometry is no problem at this sigma" if is_fine else "codewords are too close to each other"
    yield _build(
        "close codewords",
        geometry,
        f"Level {close.level} keeps {capacity:,.1f} effective codes of the {capacity * geometry:,.1f} that its usage "
        f"allows: {why}{origin}",
        "Codewords are close to each other compared with the perturbation sigma: a small change of an item's vector "
        "can change its code. Below the bound, geometry is no problem, and the capacity is lost by uneven use alone.",
        "Use fewer codes in this level or more dimensions in the latent. First choose a sigma that fits: measure how "
        "far the vector of one item moves between two versions of the encoder (`--sigma`).",
    )


def _describe_weights(measured: Diagnosis) -> str:
    return "by items" if measured.weights == "items" else "by exposure"


def _check_popular_codes(measured: Diagnosis) -> Finding:
    first = measured.prefixes[0]
    count = count_top(first.prefixes, 0.01)
    share, what = first.top[0], "exposure" if measured.item_top is not None else "items"
    bound = BOUNDS["popular codes"]
    is_fair = share <= _FAIR * count / first.prefixes  # few codes: each has much without being popular
    codes = f"codes hold{'s' if count == 1 else ''}"
    return _build(
        "popular codes",
        share,
        f"The top {count} of {first.prefixes:,} level-1 {codes} {bound.format(share)} of the {what}",
        "A generator learns few codes from most of the events, and the items below them compete for one prefix.",
        "Set a capacity per code, weighted by exposure. If one item alone holds this much, no tokenizer changes it.",
        verdict=OK if is_fair else None,
    )


def _check_popular_prefixes(measured: Diagnosis) -> Finding:
    if measured.item_top is None:
        return _skip("popular prefixes", _NEED_LOG)
    if len(measured.prefixes) < 2:
        return _skip("popular prefixes", "needs two levels")
    pair = measured.prefixes[1]
    excess, bound = pair.top[0] - measured.item_top[0], BOUNDS["popular prefixes"]
    return _build(
        "popular prefixes",
        excess,
        f"The top 1 % of pairs of codes hold {bound.format(pair.top[0])} of the exposure, the top 1 % of items "
        f"{bound.format(measured.item_top[0])}",
        "Popular items share their first two codes: the codes concentrate exposure beyond the items themselves.",
        "Set a capacity per code, weighted by exposure, on the first two levels.",
    )


def _check_twins(measured: Diagnosis) -> Finding:
    own = measured.collisions
    return _build(
        "twins",
        own.rate,
        f"{own.twins:,} of {own.items:,} items share their full ID, at most {own.largest:,} items one ID",
        "Only a suffix code, if there is one, tells items with one ID apart, and it says nothing about the item.",
        "Add a level, or use more codes. Items whose vectors are equal only a suffix can tell apart"
        + (f": {own.equal_vectors:,} items here." if own.equal_vectors is not None else "."),
    )


def _check_reconstruction(measured: Diagnosis) -> Iterator[Finding]:
    own = measured.retention
    if own is None:
        for check in ("retention", "autoencoder", "item vectors"):
            yield _skip(check, _NEED_BOTH)
        return
    at = own.cuts.index(50) if 50 in own.cuts else len(own.cuts) - 1
    cut, base, chance = own.cuts[at], own.original[at], own.chance[at]
    is_weak = base < BOUNDS["item vectors"].notice * chance
    if is_weak or QUANTIZED not in own.retention:
        yield _skip("retention", "the item vectors themselves find too little" if is_weak else "needs codebooks")
    else:
        kept = own.retention[QUANTIZED][at]
        yield _build(
            "retention",
            kept,
            f"Vectors from codes find {BOUNDS['retention'].format(kept)} of what item vectors find among {cut} items",
            "The codes do not keep what makes items similar.",
            "Use more levels or more codes. If the autoencoder alone keeps little too, change that first.",
        )
    if is_weak or UNQUANTIZED not in own.retention:
        yield _skip("autoencoder", "the tokenizer has none" if not is_weak else "the item vectors find too little")
    else:
        kept = own.retention[UNQUANTIZED][at]
        yield _build(
            "autoencoder",
            kept,
            f"The autoencoder alone, without codes, keeps {BOUNDS['autoencoder'].format(kept)} among {cut} items",
            "What the encoder loses, no codes can bring back.",
            "Use a wider latent, or train the autoencoder longer.",
        )
    yield _build(
        "item vectors",
        base / chance,
        f"Item vectors find the next item {base / chance:.1f} times as often as chance ({base:.4f} among {cut} items)",
        "The vectors say little about which items follow each other, so that no codes of them can.",
        "Use other item vectors, such as those of an encoder that was trained on behavior.",
    )


def _check_behavior(measured: Diagnosis) -> Iterator[Finding]:
    if measured.matching is None:
        yield _skip("weighted match", _NEED_LOG)
        yield _skip("lost behavior", _NEED_BOTH)
        return
    aucs = measured.matching.aucs[UNIFORM]
    yield _build(
        "weighted match",
        aucs[WEIGHTED],
        f"Shared leading codes tell consecutive items from random ones with AUC {aucs[WEIGHTED]:.3f}",
        "A generator profits from codes if items that users combine share prefixes. At 0.5 they do not.",
        "Use item vectors that know behavior, or `drq` with its contrastive term. Very many level-1 codes lower this "
        "figure too: fewer codes in level 1 are shared more often.",
    )
    if CODEWORDS not in aucs or ORIGINAL not in aucs:
        yield _skip("lost behavior", _NEED_VECTORS)
        return
    yield _build(
        "lost behavior",
        aucs[ORIGINAL] - aucs[CODEWORDS],
        f"Item vectors tell consecutive items from random ones with AUC {aucs[ORIGINAL]:.3f}, codewords with "
        f"{aucs[CODEWORDS]:.3f}",
        "Quantization loses what the vectors know about behavior.",
        "Use more levels or codes, or `drq` with its contrastive term.",
    )


def _check_latent(measured: Diagnosis) -> Iterator[Finding]:
    label = LATENT if LATENT in measured.geometry else ORIGINAL
    if label not in measured.geometry:
        yield _skip("one direction", _NEED_VECTORS)
        yield _skip("narrow cone", _NEED_VECTORS)
        return
    own = measured.geometry[label]
    yield _build(
        "one direction",
        own.largest,
        f"{BOUNDS['one direction'].format(own.largest)} of the variance is along one of {own.dimensions} directions "
        f"({label})",
        "Level 1 then mostly cuts one line into pieces.",
        "Center and whiten the vectors (`whiten: true` of `drq`), or train the encoder with a contrastive term.",
    )
    yield _build(
        "narrow cone",
        own.cosine,
        f"Two random items have an absolute cosine of {own.cosine:.3f} on average ({label})",
        "All items point into similar directions, so that cosines say little.",
        "Center the vectors before they are quantized (`whiten: true` of `drq`). Contrastive training raises this "
        "figure: lower its weight.",
    )


def _check_churn(measured: Diagnosis) -> Finding:
    if measured.churn is None:
        return _skip("churn", "needs another version (`--against`)")
    share = measured.churn.prefixes[0]
    return _build(
        "churn",
        share,
        f"{BOUNDS['churn'].format(share)} of the common items have another level-1 code than in the other version",
        "A model that was trained on the other version reads wrong codes. The codes were aligned before counting.",
        "Keep the tokenizer frozen and append new items, or train the models again with each version.",
    )
