"""Digests of a prepared log and of a split: one short name per content."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from longrec.data.settings import DataConfig, Split
from longrec.features.schema import Schema

FORMAT = "longrec-log-1"
_RULES = 3
"""Number of the rules by which a log is prepared. A log prepared by other rules is prepared again."""


def log_digest(config: DataConfig, schema: Schema, sources: str) -> str:
    """Return the digest of a prepared log: sources, split and schema without what is decided per batch."""
    schema_dict: dict[str, Any] = schema.model_dump(mode="json", exclude_unset=True)
    schema_dict.pop("label_delay", None)
    schema_dict["features"] = {
        name: feature for name, feature in schema_dict["features"].items() if feature["kind"] != "embedding"
    }
    for feature in schema_dict["features"].values():
        for later in ("dim", "pool", "available_after"):
            feature.pop(later, None)
        if isinstance(feature.get("vocab"), str) and Path(feature["vocab"]).is_file():
            feature["vocab"] = sha256(Path(feature["vocab"]).read_bytes()).hexdigest()
    # What other models left is read when a batch is made.
    histories = {name: history for name, history in schema_dict.pop("histories", {}).items() if not history.get("from")}
    for history in histories.values():
        history.pop("max_length", None)
    if histories:
        schema_dict["histories"] = histories
    content = [FORMAT, _RULES, sources, config.split.model_dump(mode="json"), schema_dict]
    if config.weights:  # a log without keeps the name it had
        content.append(list(config.weights))
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def split_digest(split: Split, sources: str) -> str:
    """Return the digest of one split of one log. Logs prepared for different features may share it."""
    return sha256(f"{sources} {split.model_dump_json()}".encode()).hexdigest()[:16]
