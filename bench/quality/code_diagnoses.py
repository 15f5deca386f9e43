"""Diagnoses of the codes of ``item_codes.py`` by ``longrec.diagnose``, each computed once, and their table.

Every tokenizer is diagnosed with the vectors that it has read, and published codes with the vectors of the text, since
theirs are not published. Pairs of items are those that follow each other in training. Codebooks of published codes are
computed as means of residuals. Twins are items with equal codes, without the code that tells them apart.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import item_codes
import next_item_logs
import pyarrow as pa
import pyarrow.parquet as pq

import longrec
from longrec.semantic_ids.diagnostics.diagnosis import ORIGINAL, QUANTIZED, UNQUANTIZED
from longrec.semantic_ids.diagnostics.matching import POPULAR, UNIFORM, WEIGHTED
from longrec.semantic_ids.settings import VectorsConfig
from longrec.semantic_ids.vectors import read_vectors

PUBLISHED_LEVELS = {"published_rq_vae": 3, "published_rq_kmeans": 4, "published": 3}
"""Levels of published codes, without the code that tells twins apart."""
CUT = 50
"""K of the retention."""
HEAD = (
    *("codes", "vectors", "levels", "twins", "active codes", "perplexity", "Gini", "expected overlap"),
    *("effective capacity", "AUC", "AUC, same popularity", "AUC of the vectors, same popularity"),
    *(f"retention@{CUT}, quantized", f"retention@{CUT}, not quantized"),
)


def diagnose_codes(codes: str, name: str, data: Path, work: Path) -> dict[str, Any]:
    """Return the figures of the codes of a task's items."""
    log = name.split("_")[0]
    out = work / "diagnoses" / f"{log}-{codes}.json"
    if not out.exists():
        table, _ = item_codes.write_items(codes, log, data, work)
        folder, levels = item_codes.find_folder(codes, log, work), PUBLISHED_LEVELS.get(codes)
        options: dict[str, Any] = {} if levels is None else {"levels": levels, "size": item_codes.SIZES["size"]}
        diagnosis = longrec.diagnose(
            str(folder if levels is None else table),
            vectors=str(_write_vectors(codes, log, data, work)),
            log=str(item_codes.write_training(log, data, work)),
            item="item_id",
            user="user_id",
            time="position",
            **options,
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(_take_figures(diagnosis)))
    figures: dict[str, Any] = json.loads(out.read_text())
    return figures


def _take_figures(diagnosis: Any) -> dict[str, Any]:
    overlaps = [one.overlap for one in diagnosis.levels]
    retention, matching = diagnosis.retention, diagnosis.matching
    at = retention.cuts.index(CUT)
    return {
        "twins": diagnosis.collisions.rate,
        "active": [one.usage.active for one in diagnosis.levels],
        "sizes": [one.usage.size for one in diagnosis.levels],
        "perplexity": [one.usage.perplexity for one in diagnosis.levels],
        "gini": [one.usage.gini for one in diagnosis.levels],
        "overlap": [None if one is None else one.overlap for one in overlaps],
        "capacity": [None if one is None else one.capacity for one in overlaps],
        "auc": matching.aucs[UNIFORM][WEIGHTED],
        "auc_popular": matching.aucs[POPULAR][WEIGHTED],
        "auc_vectors": matching.aucs[POPULAR].get(ORIGINAL),
        "quantized": retention.retention[QUANTIZED][at],
        "unquantized": retention.retention[UNQUANTIZED][at] if UNQUANTIZED in retention.retention else None,
    }


def _write_vectors(codes: str, log: str, data: Path, work: Path) -> Path:
    """Return the table of the vectors that a tokenizer has read."""
    if codes not in item_codes.BEHAVIOR:
        return next_item_logs.find_source(log, data) / "item_embedding.parquet"
    vectors = item_codes.describe(codes, log, data, work)["vectors"]
    if "items" in vectors:
        return Path(vectors["items"])
    path = work / f"vectors-{log}-behavior.parquet"
    own = read_vectors(VectorsConfig(**vectors))
    pq.write_table(pa.table({"item_id": own.items, "embedding": list(own.vectors.numpy())}), path)
    return path


def write_rows(names: Sequence[str], task: str, data: Path, work: Path) -> list[list[str]]:
    """Return one row of cells per name of codes, under ``HEAD``."""
    rows = []
    for codes in names:
        one = diagnose_codes(codes, task, data, work)
        sources = {"rq_kmeans_behavior": "behavior", "rq_kmeans_both": "text and behavior"}
        sizes = f"{len(one['sizes'])} x {max(one['sizes'])}"
        rows.append(
            [
                *(codes, sources.get(codes, "text"), sizes, f"{100 * one['twins']:.1f} %"),
                *(_join(one["active"], 0), _join(one["perplexity"], 0), _join(one["gini"], 2)),
                *(_join(one["overlap"], 4), _join(one["capacity"], 0)),
                *(_format(one[key], 3) for key in ("auc", "auc_popular", "auc_vectors", "quantized", "unquantized")),
            ]
        )
    return rows


def _join(values: Sequence[float | None], digits: int) -> str:
    return " / ".join(_format(one, digits) for one in values)


def _format(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
