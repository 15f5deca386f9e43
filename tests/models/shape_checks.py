"""The checker of types and shapes that tests/conftest.py applies to layers and models."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Hashable, Mapping
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


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """``beartype``, silent while a program is traced: a traced length is no int, and a look at it would fix it."""
    strict = beartype(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (function if torch.compiler.is_compiling() else strict)(*args, **kwargs)

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
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        form = form_of(args), form_of(kwargs)
        if form not in passed:
            output = strict(function)(*args, **kwargs)
            passed[form] = {form_of(output)}
            return output
        output = function(*args, **kwargs)
        if form_of(output) not in passed[form]:
            outputs.append(output)
            strict(repeat)(*args, **kwargs)
            passed[form].add(form_of(output))
        return output

    return call


def form_of(value: Any) -> Hashable:
    """All that the checker looks at: types, words, dtypes and shapes, also of what is in a container."""
    kind = type(value)
    if kind is Tensor:
        return value.dtype, value.shape
    if kind is str:
        return value
    if not _is_container(kind):
        return (kind, value.dtype, value.shape) if isinstance(value, Tensor) else kind
    if isinstance(value, Mapping):
        return kind, tuple([(key, form_of(item)) for key, item in value.items()])
    return kind, tuple([form_of(item) for item in value])


@functools.cache
def _is_container(kind: type) -> bool:
    return issubclass(kind, list | tuple | Mapping) and not issubclass(kind, torch.Size)
