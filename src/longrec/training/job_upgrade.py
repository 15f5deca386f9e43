"""Configs that earlier versions wrote into run folders, under the present names of their keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longrec.config import Strict, upgrade
from longrec.data.settings import DataConfig
from longrec.features.schema import Schema
from longrec.training.settings import EvaluateConfig, FitConfig

CONFIG = "config.yaml"


def is_of_run(path: Path) -> bool:
    """Return True for the config that a run folder holds, which may have been written by an earlier version."""
    return path.name == CONFIG and all((path.parent / name).exists() for name in ("log.json", "environment.json"))


def upgrade_job(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a run folder under the present names of its keys and values."""
    from longrec.models.core.renames import upgrade_model_section

    classes: dict[str, type[Strict]] = {"data": DataConfig, "fit": FitConfig, "evaluate": EvaluateConfig}
    upgraded = {key: upgrade(classes[key], value) if key in classes else value for key, value in content.items()}
    data = upgraded.get("data")
    if isinstance(data, dict):
        data["schema"] = upgrade(Schema, data.get("schema"))
    return {**upgraded, "model": upgrade_model_section(upgraded.get("model"))}
