"""Record of the hooks of a run, which is read without torch and without the functions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

HOOKS = "hooks.json"


def read_record(folder: Path) -> dict[str, Any]:
    """Return the names of the functions of a run, and the direction of its metrics. Empty without hooks."""
    path = folder / HOOKS
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return content


def read_monitors(folder: Path) -> dict[str, Literal["max", "min"]]:
    """Return the own metrics of a run that can select its best model, with their better direction."""
    metrics = read_record(folder).get("metrics", {})
    return {name: "min" if one["better"] == "lower" else "max" for name, one in metrics.items()}
