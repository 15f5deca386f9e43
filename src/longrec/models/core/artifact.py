"""Saved models: a folder of three files without executable code.

model.json              format, name of the model, its settings
fields.json             the fields it was built for
weights.safetensors     parameters and running statistics
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from longrec.config import parse
from longrec.errors import RunError
from longrec.features.fields import Fields
from longrec.models.core.base import Model
from longrec.models.core.registry import find, name_of
from longrec.models.core.renames import rename_parameters, upgrade_field, upgrade_settings
from longrec.resources import require_memory, resource_error

FORMAT = 1


def save(model: Model, folder: str | Path) -> None:
    """Write a model into a folder, which is created if missing. Each file is replaced atomically."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    about = {"format": FORMAT, "name": name_of(model), "config": model.config.model_dump(mode="json")}
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    partial = folder / "weights.safetensors.partial"
    save_file(weights, partial)
    os.replace(partial, folder / "weights.safetensors")
    for name, content in (("fields.json", fields_to_json(model.fields)), ("model.json", about)):
        partial = folder / f"{name}.partial"
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, folder / name)


def load(folder: str | Path, model_class: type[Model] | None = None) -> Model:
    """Load the model of a folder, in training mode like a new one.

    Args:
        model_class: its class. Default: the one that its name imports.

    Raises:
        RunError: if a file is missing or unreadable, has another format, or the weights do not fit the model.
        ConfigError: if the model's code is missing, or no longer accepts these settings.
    """
    folder = Path(folder)
    about, content = _json(folder / "model.json"), _json(folder / "fields.json")
    if about.get("format") != FORMAT:
        version = f"format {about.get('format')!r}"
        raise RunError(
            str(folder / "model.json"), version, f"format {FORMAT}", "load it with the version that wrote it"
        )
    cls = model_class or find(str(about.get("name")))
    settings = upgrade_settings(cls, about.get("config") or {})
    config = parse(cls.Config, settings, str(folder / "model.json"), prefix="config")
    try:
        fields = fields_from_json(content)
    except (KeyError, TypeError) as error:
        raise RunError(str(folder / "fields.json"), f"not the fields of a model ({error})") from None
    path = folder / "weights.safetensors"
    require_memory([path], "weights")
    model = cls(config, fields)
    try:
        model.load_state_dict(rename_parameters(model, load_file(path)))
    except (OSError, SafetensorError, RuntimeError) as error:
        if not isinstance(error, OSError) and (ordinary := resource_error(error, str(path))) is not None:
            raise ordinary from None
        reason = " ".join(str(error).split())[:300]
        raise RunError(str(path), reason, f"the weights of {about['name']}", "train or copy the model again") from None
    return model


def fields_to_json(fields: Fields) -> dict[str, Any]:
    """Return fields as plain lists and mappings."""
    return asdict(fields)


def fields_from_json(content: dict[str, Any]) -> Fields:
    """Return the fields that ``fields_to_json`` wrote."""
    features = tuple(map(upgrade_field, content["features"]))
    return Fields(
        features, {name: tuple(map(upgrade_field, columns)) for name, columns in content["histories"].items()}
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RunError(str(path), reason, "a file of a saved model", "train or copy the model again") from None
    if not isinstance(content, dict):
        raise RunError(str(path), f"holds a {type(content).__name__}", "a mapping", "train or copy the model again")
    return content
