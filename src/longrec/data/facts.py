"""Facts about a prepared log: rows and rates per split, ties, history lengths, and values per feature.

``prepare`` computes them on the prepared columns and stores them as ``facts.json`` in the folder of the prepared log.
"""

from __future__ import annotations

from pathlib import Path

from longrec.data.fact_counts import compute_facts
from longrec.data.log import Log
from longrec.data.log_facts import FILE, FORMAT, FeatureFacts, HistoryFacts, LogFacts, SplitFacts
from longrec.errors import DataError
from longrec.features.manifest import read_manifest

__all__ = ["FeatureFacts", "HistoryFacts", "LogFacts", "SplitFacts", "read_facts"]


def read_facts(folder: str | Path) -> LogFacts:
    """Read the facts of a prepared log. Those of a log that an earlier version prepared are computed.

    Args:
        folder: folder of the prepared log.

    Raises:
        DataError: no prepared log in the folder, or facts of another format.
    """
    path = Path(folder) / FILE
    if not path.exists():
        log = Log.open(folder, stores=False)
        return compute_facts(log, log.manifest.get("spans", {}))
    content = read_manifest(path, FORMAT, "facts of a prepared log", "delete the folder and prepare again", DataError)
    content.pop("format")
    content["splits"] = {name: SplitFacts(**one) for name, one in content["splits"].items()}
    content["histories"] = {name: HistoryFacts(**one) for name, one in content["histories"].items()}
    content["features"] = {name: FeatureFacts(**one) for name, one in content["features"].items()}
    return LogFacts(**{**content, "warnings": tuple(content["warnings"])})
