"""The checker of types and shapes that tests/conftest.py applies to layers and models."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import jaxtyping
import torch
from beartype import beartype
from torch import Tensor

_jaxtyped = jaxtyping.jaxtyped


def install() -> None:
    """Check the layers and models that are imported from now on."""
    jaxtyping.jaxtyped = jaxtyped
    jaxtyping.install_import_hook(["longrec.nn", "longrec.models"], "shape_checks.checked")


def is_traced() -> bool:
    """Return True while a program is traced."""
    from longrec.nn import kernels  # after the hook

    return kernels.is_traced()


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """``beartype``, silent while a program is traced: a traced length is no int, and a look at it would fix it."""
    strict = beartype(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (function if is_traced() else strict)(*args, **kwargs)

    return call


def jaxtyped(function: Any = None, *, typechecker: Any) -> Any:
    """jaxtyping's decorator, which checks no call whose arguments and output have the form of a call that passed.

    The checker looks at nothing but this form, and takes longer than the small layers of the tests.
    """
    if function is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if isinstance(function, classmethod | staticmethod):
        return type(function)(jaxtyped(function.__func__, typechecker=typechecker))
    if not isinstance(function, types.FunctionType):
        return _jaxtyped(function, typechecker=typechecker)
    if not any(_names_a_shape(annotation) for annotation in function.__annotations__.values()):
        return function
    passed: dict[Hashable, set[Hashable]] = {}
    outputs: list[Any] = []

    def repeat(*args: Any, **kwargs: Any) -> Any:
        return outputs.pop()

    # What the annotations name is found in the globals of the function that has them.
    repeat = types.FunctionType(repeat.__code__, function.__globals__, function.__name__, None, repeat.__closure__)
    functools.update_wrapper(repeat, function)

    @functools.cache
    def strict(check: Callable[..., Any]) -> Callable[..., Any]:
        """Decorate at the first call: that takes a millisecond, and most functions are never called in a test run."""
        return _jaxtyped(check, typechecker=typechecker)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if is_traced():
            return function(*args, **kwargs)
        form = (form_of(args), *kwargs, form_of(kwargs.values())) if kwargs else form_of(args)
        seen = passed.get(form)
        if seen is None:
            output = strict(function)(*args, **kwargs)
            passed[form] = {form_of((output,))}
            return output
        output = function(*args, **kwargs)
        if form_of((output,)) not in seen:
            outputs.append(output)
            strict(repeat)(*args, **kwargs)
            seen.add(form_of((output,)))
        return output

    return call


def _names_a_shape(annotation: Any) -> bool:
    """A type without a shape is left to mypy."""
    return "[Tensor," in (annotation if isinstance(annotation, str) else repr(annotation))


def form_of(values: Iterable[Any]) -> tuple[Hashable, ...]:
    """All that the checker looks at: types, words, dtypes and shapes, also of what is in a container."""
    return tuple(
        [
            (value.dtype, value.shape)
            if (kind := type(value)) is Tensor
            else value
            if kind is str
            else kind
            if kind in _PLAIN
            else _form_of_other(value)
            for value in values
        ]
    )


_PLAIN: set[type] = set()
"""Types of which the checker looks at nothing else."""


def _form_of_other(value: Any) -> Hashable:
    kind = type(value)
    if isinstance(value, Tensor):
        return kind, value.dtype, value.shape
    if isinstance(value, Mapping):
        return kind, tuple(value), form_of(value.values())
    if isinstance(value, list | tuple) and kind is not torch.Size:
        return kind, form_of(value)
    _PLAIN.add(kind)
    return kind
