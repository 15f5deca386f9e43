"""Lookup of model classes by name.

The folder is the registry: ``din`` is ``models/din.py``. A dotted path is a module outside the package. A module
defines exactly one concrete model with its own ``Config``. torch is imported with the model, not with this file.
"""

from __future__ import annotations

import importlib
from inspect import isabstract, isclass
from typing import TYPE_CHECKING

from longrec.errors import ConfigError, UnknownName
from longrec.models.core.catalog import names

if TYPE_CHECKING:
    from longrec.models.core.base import Model


def find(name: str) -> type[Model]:
    """Return the class of a model: ``din`` from this package, or ``my_team.models.din2`` from another one.

    Raises:
        UnknownName: if there is no such model.
        ConfigError: if the module does not define exactly one concrete model.
    """
    if "." not in name and name not in names():
        raise UnknownName("model", name, names())
    path = name if "." in name else f"longrec.models.{name}"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name and (path == error.name or path.startswith(error.name + ".")):
            raise UnknownName("model", name, names()) from None
        raise
    from longrec.models.core.base import Model  # imports torch, which the module has imported by now

    here = [
        value
        for value in vars(module).values()
        if isclass(value) and issubclass(value, Model) and value.__module__ == path and not isabstract(value)
    ]
    if len(here) != 1:
        class_names = ", ".join(value.__name__ for value in here) or "none"
        raise ConfigError(path, [f"must define exactly one concrete model, found {class_names}"])
    return here[0]
