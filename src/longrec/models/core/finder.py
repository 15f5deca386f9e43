"""Lookup of model classes by name.

The folder is the registry: ``din`` is ``models/din.py``. A dotted path is a module outside the package, which defines
exactly one concrete model with its own ``Config``. ``my_models:DIN2`` is a class of any module, and ``__main__:DIN2`` a
class of the running notebook or script. torch is imported with the model, not with this file.
"""

from __future__ import annotations

import importlib
import sys
from inspect import isabstract, isclass
from typing import TYPE_CHECKING, Any

from longrec.errors import ConfigError, UnknownName
from longrec.models.core.catalog import names

if TYPE_CHECKING:
    from longrec.models.core.base import Model


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
    from longrec.models.core.base import Model  # imports torch, which the module has imported by now

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
    from longrec.models.core.base import Model  # imports torch

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
