"""Digests that identify a prepared log and a split by their content."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from longrec.data.settings import DataConfig, Split
from longrec.features.schema import Schema

FORMAT = "longrec-log-1"
_RULES = 4
"""Version of the preparation. A log prepared by another version is prepared again."""


def log_digest(config: DataConfig, schema: Schema, sources: str) -> str:
    """Return the digest of a prepared log: of inputs, split and schema, without settings that only affect batches."""
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
    # Token histories are read when a batch is built.
    histories = {name: history for name, history in schema_dict.pop("histories", {}).items() if not history.get("from")}
    for history in histories.values():
        history.pop("max_length", None)
    if histories:
        schema_dict["histories"] = histories
    content = [FORMAT, _RULES, sources, config.split.model_dump(mode="json"), schema_dict]
    if config.weights:  # without weights, the digest is that of earlier versions
        content.append(list(config.weights))
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def split_digest(split: Split, sources: str) -> str:
    """Return the digest of the split of an input. It is the same for logs prepared with different features."""
    return sha256(f"{sources} {split.model_dump_json()}".encode()).hexdigest()[:16]
