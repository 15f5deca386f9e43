"""Functions that find a model by name and build it from a config.

``finder.py`` maps names to classes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator

from longrec.config import parse
from longrec.errors import ConfigError, nearest
from longrec.features.fields import Fields
from longrec.models.core.base import Model
from longrec.models.core.finder import find, name_of_class
from longrec.models.core.kinds import Ranker
from longrec.models.core.settings_schema import validate_base_section

__all__ = [
    "BaseSection",
    "build",
    "build_base",
    "find",
    "find_common_width",
    "find_unknown_names",
    "name_of",
    "name_of_class",
]


BaseSection = Annotated[dict[str, Any], AfterValidator(validate_base_section)]
"""Type of a setting that names another model, ``{name: deepfm, mlp: [64]}``: validated, with all defaults."""


def build_base(section: Mapping[str, Any], fields: Fields, where: str) -> Ranker:
    """Build the ranker that another model builds on, from the nested section that names it.

    Args:
        where: path of the section in the config, such as ``model.base``.

    Raises:
        ConfigError: as ``build``, and if the model is not a ranker with ``interact`` and ``head``, or is a multi-task
            model.
    """
    model, name = build(section, fields, prefix=where), section.get("name")
    if not isinstance(model, Ranker) or not model.interaction_width:
        raise ConfigError("config", [f"{where}.name: {name} cannot be a base; it takes a ranker that has interact"])
    if model.served() is not model:
        fault = f"{where}.name: {name} trains the model that it serves, and no model can be built on it"
        raise ConfigError("config", [f"{fault}; build it on the other one"])
    if model.targets:
        targets = ", ".join(model.targets)
        do = "build the model of several tasks on the other one"
        raise ConfigError(
            "config", [f"{where}: {name} learns {targets} beside the label, which no loss would read; {do}"]
        )
    return model


def name_of(model: Model) -> str:
    """Return the name under which ``find`` returns the class of ``model``."""
    return name_of_class(type(model))


def build(
    section: Mapping[str, Any],
    fields: Fields,
    where: str = "config",
    prefix: str = "model",
    model_class: type[Model] | None = None,
) -> Model:
    """Build a model from its section of a config: ``{name: din, attention: [80, 40]}``.

    Args:
        where: file named in messages.
        prefix: path of the section inside the file.
        model_class: class of the model. Default: that of its name.

    Raises:
        ConfigError: if the name or keys are unknown, settings are wrong (all are listed), or do not fit the fields.
    """
    settings = dict(section)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(where, [f"{prefix}.name: is required, the name of a model"])
    cls = model_class or find(name)
    return cls(parse(cls.Config, settings, where, prefix=prefix), fields)


def find_unknown_names(setting: str, names: Sequence[str], choices: Collection[str]) -> list[str]:
    """Return the faults of a setting that names features of the impression: unknown names and repeated names."""
    faults = []
    for name in names:
        if name not in choices:
            near = nearest(name, choices)
            hint = f"did you mean {near!r}?" if near else f"features: {', '.join(choices)}"
            faults.append(f"{setting}: {name!r} is no feature of the impression; {hint}")
    return faults + ([f"{setting}: names a feature twice"] if len(set(names)) < len(names) else [])


def find_common_width(fields: Fields, dim: int, model: str) -> int:
    """Return the one embedding width of all features, for models that multiply fields with each other.

    Raises:
        ConfigError: if the schema sets different widths.
    """
    widths = {field.name: field.dim or dim for field in fields.features}
    if len(set(widths.values())) > 1:
        listing = ", ".join(f"{name} {width}" for name, width in widths.items())
        fault = f"model: {model} multiplies fields with each other and needs one dim for all features, got {listing}"
        raise ConfigError("schema", [fault])
    return next(iter(widths.values()))
