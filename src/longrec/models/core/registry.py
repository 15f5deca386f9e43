"""Functions that find a model by name and build it from a config.

The folder is the registry: ``din`` is ``models/din.py``. A dotted path is a module outside the package, which defines
exactly one concrete model with its own ``Config``. ``my_models:DIN2`` is a class of any module, and ``__main__:DIN2`` a
class of the running notebook or script.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Collection, Mapping, Sequence
from inspect import isabstract, isclass
from typing import Annotated, Any

from pydantic import AfterValidator

from longrec.config import parse
from longrec.errors import ConfigError, UnknownName, nearest
from longrec.features.fields import Fields
from longrec.models.core.base import Model
from longrec.models.core.catalog import names
from longrec.models.core.kinds import Ranker


def _base_section(section: dict[str, Any]) -> dict[str, Any]:
    settings = dict(section)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise ValueError("name: is required, the name of a ranker")
    try:
        config = parse(find(name).Config, settings, name)
    except ConfigError as error:
        raise ValueError("; ".join(error.faults)) from None
    return {"name": name, **config.model_dump(mode="json")}


BaseSection = Annotated[dict[str, Any], AfterValidator(_base_section)]
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


def find(name: str) -> type[Model]:
    """Return the class of a model: ``din`` from this package, ``my_team.models.din2`` or ``my_models:DIN2`` elsewhere.

    Raises:
        UnknownName: if there is no such model.
        ConfigError: if the module does not define exactly one concrete model, or not this one.
    """
    if ":" in name:
        return _find_class(name)
    if "." not in name and name not in names():
        raise UnknownName("model", name, names())
    path = name if "." in name else f"longrec.models.{name}"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name and (path == error.name or path.startswith(error.name + ".")):
            raise UnknownName("model", name, names()) from None
        raise
    here = _list_models(module)
    if len(here) != 1:
        class_names = ", ".join(value.__name__ for value in here) or "none"
        do = f"; to name one of several, write {path}:{here[0].__name__}" if here else ""
        raise ConfigError(path, [f"must define exactly one concrete model, found {class_names}{do}"])
    return here[0]


def _list_models(module: Any) -> list[type[Model]]:
    """Return the concrete models that a module defines."""
    return [
        value
        for value in vars(module).values()
        if isclass(value) and issubclass(value, Model) and value.__module__ == module.__name__ and not isabstract(value)
    ]


def _find_class(name: str) -> type[Model]:
    path, _, class_name = name.partition(":")
    try:
        value: Any = importlib.import_module(path)
        for component in class_name.split("."):
            value = getattr(value, component)
    except (ImportError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and not (error.name and f"{path}.".startswith(f"{error.name}.")):
            raise  # of a module that the module imports
        do = "give the class in Python: longrec.open_run(folder, model=DIN2), or longrec.load_model(folder, DIN2)"
        do = do.replace("DIN2", class_name.rpartition(".")[2])
        if path == "__main__" or "<locals>" in class_name:
            what = "is a class of a notebook, script or function, which this process does not define"
        else:
            what, do = f"no class {class_name!r} in a module {path!r}", f"put the module on the path, or {do}"
        raise ConfigError(name, [f"{what}; {do}"]) from None
    if not (isclass(value) and issubclass(value, Model) and not isabstract(value)):
        raise ConfigError(name, ["is no concrete model: derive it from longrec.models.Ranker, and define its methods"])
    return value


def name_of_class(cls: type[Model]) -> str:
    """Return the name under which ``find`` returns a class, in a process that can import it."""
    path = cls.__module__
    if path.startswith("longrec.models."):
        return path.removeprefix("longrec.models.")
    module = sys.modules.get(path)
    if "." in path and module is not None and _list_models(module) == [cls]:
        return path
    return f"{path}:{cls.__qualname__}"


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
