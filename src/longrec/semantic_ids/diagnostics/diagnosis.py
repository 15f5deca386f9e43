"""Material of a diagnosis of semantic IDs, and its result: all figures of one tokenizer, with findings.

Shapes: N items, L levels, K codes of a level (levels can differ), D dimensions of the latent, P pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from longrec.auditing.finding import ALARM, NOTICE, Finding
from longrec.metrics.columns import Floats, Ints
from longrec.semantic_ids.diagnostics.latent import LatentGeometry
from longrec.semantic_ids.diagnostics.matching import Matching
from longrec.semantic_ids.diagnostics.overlap import Overlap
from longrec.semantic_ids.diagnostics.prefixes import Collisions, PrefixLevel
from longrec.semantic_ids.diagnostics.retention import Retention
from longrec.semantic_ids.diagnostics.usage import LevelUsage
from longrec.tabular import Columns, Tabular

if TYPE_CHECKING:
    from longrec.semantic_ids.churn import Churn

QUANTIZED, UNQUANTIZED = "from codes (quantized)", "autoencoder alone (not quantized)"
"""Labels of the two reconstructions."""
ORIGINAL, LATENT, CODEWORDS = "item vectors", "latent", "codewords"
"""Labels of vectors: x as given, z that is quantized, and z^, the sums of codewords."""


@dataclass(frozen=True)
class Material:
    """What is known of a tokenizer. Figures whose arrays are None are not measured.

    Attributes:
        name: the folder or file.
        codes: int ``[N, L]``, without a code that tells twins apart.
        sizes: number of codes of each level.
        codebooks: ``[K, D]`` vectors of each level.
        codebook_origin: where the codebooks come from, if it is not the tokenizer: text for the page.
        vectors: ``[N, D_x]`` item vectors x.
        latents: ``[N, D]`` vectors z that are quantized.
        reconstructions: ``[N, D_x]`` reconstructed vectors by label.
        exposure: ``[N]`` number of events of each item.
        pairs: int ``[P, 2]`` items that follow each other.
        churn: changes against another version.
        facts: further facts as text, for the page.
        notes: choices and limits, one sentence each.
    """

    name: str
    codes: Ints
    sizes: Sequence[int]
    codebooks: Sequence[Floats] | None = None
    codebook_origin: str = ""
    vectors: Floats | None = None
    latents: Floats | None = None
    reconstructions: Mapping[str, Floats] = field(default_factory=dict)
    exposure: Floats | None = None
    pairs: Ints | None = None
    churn: Churn | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Level:
    """Figures of one level.

    Attributes:
        level: number of the level, from 1.
        usage: usage of the codes, weighted as the diagnosis is.
        overlap: overlap of the codewords at the sigma of the level. None without codebooks.
        curve: overlap at ``SIGMA_FACTORS`` times the variance per dimension.
        rest: share of the variance of the latent that is left after this level. None without codebooks.
    """

    level: int
    usage: LevelUsage
    overlap: Overlap | None = None
    curve: tuple[Overlap, ...] = ()
    rest: float | None = None


@dataclass(frozen=True, repr=False)
class Diagnosis(Tabular):
    """Figures and findings of one tokenizer.

    Attributes:
        name: the folder or file.
        items: number of items N.
        weights: what a code's share counts: ``items`` or ``exposure``.
        codebooks: where the codebooks come from, if it is not the tokenizer. Empty otherwise.
        levels: figures per level.
        prefixes: exposure and branching of the prefixes of each length.
        item_top: share of the exposure that the most exposed 1 %, 5 % and 10 % of the items hold. None without a log.
        item_exposure: float64 ``[N]`` share of each item, descending. None without a log.
        collisions: items with equal full IDs.
        retention: hit rates with original and reconstructed vectors. None without vectors, codebooks and a log.
        matching: behavior-matching AUCs. None without a log.
        geometry: geometry of the vectors by label.
        churn: changes against another version. None without one.
        facts, notes: as in ``Material``.
        findings: the findings, in the order of the checks.
    """

    name: str
    items: int
    weights: str
    codebooks: str
    levels: tuple[Level, ...]
    prefixes: tuple[PrefixLevel, ...]
    item_top: tuple[float, ...] | None
    item_exposure: Floats | None
    collisions: Collisions
    retention: Retention | None
    matching: Matching | None
    geometry: dict[str, LatentGeometry]
    churn: Churn | None
    facts: dict[str, str]
    notes: tuple[str, ...]
    findings: tuple[Finding, ...] = ()

    @property
    def faults(self) -> tuple[Finding, ...]:
        """Findings with something to change, alarms first."""
        order = {ALARM: 0, NOTICE: 1}
        return tuple(sorted((one for one in self.findings if one.verdict in order), key=lambda one: order[one.verdict]))

    def find(self, check: str) -> Finding:
        """Return the finding of a check.

        Raises:
            KeyError: no such check.
        """
        return {finding.check: finding for finding in self.findings}[check]

    def to_columns(self) -> Columns:
        """Return the figures of the levels as columns."""
        rows = [
            {
                "level": one.level,
                "codes": one.usage.size,
                "active": one.usage.active,
                "perplexity": one.usage.perplexity,
                "gini": one.usage.gini,
                "capacity": None if one.overlap is None else one.overlap.capacity,
                "distribution": None if one.overlap is None else one.overlap.distribution,
                "geometry": None if one.overlap is None else one.overlap.geometry,
                "rest": one.rest,
            }
            for one in self.levels
        ]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def shown(self) -> tuple[str, Columns]:
        """Return a caption, and the figures of the levels as text."""
        _, columns = super().shown()
        return f"{self.name}: {self.items:,} items, {len(self.levels)} levels", columns

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the shares of single codes, prefixes and items, for JSON."""
        large = {"shares", "exposure"}

        def drop(value: Any) -> Any:
            return {one.name: getattr(value, one.name) for one in fields(value) if one.name not in large}

        own = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "item_exposure"}
        levels = [{**drop(level), "usage": drop(level.usage)} for level in self.levels]
        return {**own, "levels": levels, "prefixes": [drop(one) for one in self.prefixes]}
