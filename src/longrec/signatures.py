"""Signatures and docstrings from config classes, for functions and classes that take settings as keywords."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Container, Iterator
from typing import Any, TypeVar

from longrec.config import Strict

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def show_settings(config: type[Strict], skip: Container[str] = ()) -> Callable[[FunctionT], FunctionT]:
    """Return a decorator that shows the keys of a config class in place of the ``**settings`` of a function.

    Args:
        skip: keys that the function takes as parameters of its own.
    """

    def decorate(function: FunctionT) -> FunctionT:
        signature = inspect.signature(function)
        own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        parameters = [*own, *list_parameters(config, skip)]
        function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        text = inspect.cleandoc(function.__doc__ or "")
        function.__doc__ = "\n".join([text, "", "Settings:", *describe_settings(config, skip)])
        return function

    return decorate


def list_parameters(config: type[Strict], skip: Container[str] = ()) -> list[inspect.Parameter]:
    """Return the keys of a config class as keyword parameters, with types and defaults."""
    return [
        inspect.Parameter(
            key,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.is_required() else field.get_default(call_default_factory=True),
            annotation=_strip_checks(field.annotation),
        )
        for name, field in config.model_fields.items()
        if (key := field.alias or name).isidentifier() and key not in skip
    ]


def describe_settings(config: type[Strict], skip: Container[str] = ()) -> Iterator[str]:
    """Yield two lines per key of a config class: its type and default, and its meaning."""
    for parameter in list_parameters(config, skip):
        field = next(field for name, field in config.model_fields.items() if parameter.name in (name, field.alias))
        yield f"    {parameter}"
        if field.description:
            yield f"        {field.description}"


def _strip_checks(annotation: Any) -> Any:
    """Return a type without the checks of its values: ``tuple[int, ...]`` for a tuple of numbers of at least one."""

    class Holder:
        value: Any

    Holder.__annotations__ = {"value": annotation}
    return typing.get_type_hints(Holder)["value"]
