"""The checker of types and shapes that tests/conftest.py applies to layers and models."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from beartype import beartype


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """``beartype``, silent while a program is traced: a traced length is no int, and a look at it would fix it."""
    strict = beartype(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (function if torch.compiler.is_compiling() else strict)(*args, **kwargs)

    return call
