"""Names of earlier versions, mapped to those of today when saved models and configs are read.

Config classes declare their former keys and values (``longrec.config.Strict``). For weights, a module declares
``renamed_parameters``, old name -> new name, relative to itself. A name is that of a parameter or buffer, or of a
submodule, in which case everything inside it is renamed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from longrec.config import upgrade
from longrec.features.feature import Feature
from longrec.features.fields import RENAMED_COLUMNS, Field
from longrec.models.core.base import Model
from longrec.models.core.catalog import is_model
from longrec.models.core.registry import find
from longrec.nn.embedding import parameter_name

_COMPUTED = re.compile(r"(?<=\.)table_iat%2E(.+)$")
"""Former name of the projection of what the reader of instance tokens computes from a history."""


def rename_parameters(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return saved weights under the parameter names that the modules of a model use today."""
    renamed = dict(weights)
    for path, module in model.named_modules():
        names: Mapping[str, str] = getattr(module, "renamed_parameters", {})
        prefix = f"{path}." if path else ""
        for old, new in names.items():
            renamed = {_rename(name, prefix + old, prefix + new): tensor for name, tensor in renamed.items()}
    tables = {parameter_name(old): parameter_name(new) for old, new in RENAMED_COLUMNS.items()}
    renamed = {_rename_last(name, tables): tensor for name, tensor in renamed.items()}
    return {_COMPUTED.sub(r"table_\1%2Eread", name): tensor for name, tensor in renamed.items()}


def upgrade_model_section(section: Any) -> Any:
    """Return a stored ``model`` section, and the sections of models inside it, under the names of today."""
    if not isinstance(section, Mapping):
        return section
    name, settings = section.get("name"), {key: value for key, value in section.items() if key != "name"}
    if not isinstance(name, str) or not is_model(name):
        return {key: upgrade_model_section(value) for key, value in section.items()}
    return {"name": name, **upgrade_settings(find(name), settings)}


def upgrade_settings(cls: type[Model], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored settings of a model under the names of today."""
    inner = {key: upgrade_model_section(value) for key, value in settings.items()}
    upgraded: dict[str, Any] = upgrade(cls.Config, inner)
    return upgraded


def upgrade_field(content: Mapping[str, Any]) -> Field:
    """Return a stored field of a model under the names of today."""
    own = {Feature.renamed_keys.get(key, key): value for key, value in content.items()}
    for key in ("kind", "side"):
        own[key] = Feature.renamed_values[key].get(own[key], own[key])
    for key in ("name", "share"):
        own[key] = RENAMED_COLUMNS.get(own.get(key, ""), own.get(key, ""))
    own.pop("computed_by", None)
    return Field(**own)


def _rename_last(name: str, names: Mapping[str, str]) -> str:
    path, dot, last = name.rpartition(".")
    return path + dot + names.get(last, last)


def _rename(name: str, old: str, new: str) -> str:
    return new + name[len(old) :] if name == old or name.startswith(f"{old}.") else name
