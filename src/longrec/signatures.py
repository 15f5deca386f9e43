"""Signatures and docstrings from config classes, for functions and classes that take settings as keywords."""

from __future__ import annotations

import inspect
import keyword
import typing
from collections.abc import Callable, Container, Iterator
from typing import Any, TypeVar

from longrec.config import Strict

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
StrictT = TypeVar("StrictT", bound=Strict)
_KEYS = "\n\nSettings:\n"


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
        function.__doc__ = "\n".join([text, "", "Settings:", *list_setting_lines(config, skip)])
        return function

    return decorate


def show_keys(cls: type[StrictT]) -> type[StrictT]:
    """Show the keys of a config class in its signature and docstring, for ``help`` in a notebook."""
    cls.__signature__ = inspect.Signature(list_parameters(cls))
    text = inspect.cleandoc(cls.__doc__ or "")
    cls.__doc__ = f"{text}{_KEYS}" + "\n".join(list_setting_lines(cls))
    return cls


def get_text(cls: type[Strict]) -> str:
    """Return the docstring of a config class without its keys.

    >>> @show_keys
    ... class Net(Strict):
    ...     "Settings of a net."
    ...     rate: float = 0.5
    >>> get_text(Net), str(inspect.signature(Net))
    ('Settings of a net.', '(*, rate: float = 0.5)')
    """
    return inspect.cleandoc(cls.__doc__ or "").partition(_KEYS)[0]


def list_parameters(config: type[Strict], skip: Container[str] = ()) -> list[inspect.Parameter]:
    """Return the keys of a config class as keyword parameters, with types and defaults.

    Keys that are keywords of Python, such as ``from``, are given as ``**{"from": ...}`` and are left out.
    """
    return [
        inspect.Parameter(
            key,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.is_required() else field.get_default(call_default_factory=True),
            annotation=_strip_checks(field.annotation),
        )
        for name, field in config.model_fields.items()
        if (key := field.alias or name).isidentifier() and not keyword.iskeyword(key) and key not in skip
    ]


def list_setting_lines(config: type[Strict], skip: Container[str] = ()) -> Iterator[str]:
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
