"""The checker of shapes refuses every wrong call, after right ones too, though it checks no form of a call twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import pytest
import torch
from beartype import beartype
from jaxtyping import Float, TypeCheckError
from shape_checks import jaxtyped
from torch import Tensor

RUNS: list[int] = []


@jaxtyped(typechecker=beartype)
def add(x_BD: Float[Tensor, "B D"], y_BD: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    RUNS.append(1)
    return (x_BD + y_BD).sum(1)


@jaxtyped(typechecker=beartype)
def wrong_from_three(x_B: Float[Tensor, " B"], rows: int) -> Float[Tensor, " B"]:
    RUNS.append(1)
    return x_B if rows < 3 else x_B[1:]


@jaxtyped(typechecker=beartype)
def reduce(columns: Mapping[str, Float[Tensor, "B D"]], how: Literal["sum", "mean"] = "sum") -> Tensor:
    return getattr(torch.stack(list(columns.values())), how)(0)


class Layer:
    @jaxtyped(typechecker=beartype)
    @staticmethod
    def double(x_B: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        return x_B * 2


X = torch.zeros(2, 3)
REFUSED: dict[str, tuple[Callable[..., Any], list[Any], list[Any]]] = {
    "another shape": (add, [X, X], [X, torch.zeros(2, 4)]),
    "another dtype": (add, [X, X], [X, X.long()]),
    "no tensor": (add, [X, X], [X, 1.0]),
    "another shape in a mapping": (reduce, [{"a": X}], [{"a": X[0]}]),
    "another word": (reduce, [{"a": X}, "mean"], [{"a": X}, "max"]),
    "another output": (wrong_from_three, [X[0], 2], [X[0], 3]),
    "a static method": (Layer.double, [X[0]], [X]),
}


@pytest.mark.parametrize(("function", "right", "wrong"), REFUSED.values(), ids=list(REFUSED))
def test_a_wrong_call_is_refused_after_a_right_one(
    function: Callable[..., Any], right: list[Any], wrong: list[Any]
) -> None:
    for _ in range(3):
        function(*right)
        for _ in range(2):
            with pytest.raises(TypeCheckError):
                function(*wrong)


def test_a_function_runs_once_per_call() -> None:
    """Also where its output has to be checked again."""
    before = len(RUNS)
    torch.testing.assert_close(add(X + 1, X), torch.full((2,), 3.0))
    torch.testing.assert_close(add(X + 2, X), torch.full((2,), 6.0))
    wrong_from_three(X[0], 1)
    with pytest.raises(TypeCheckError):
        wrong_from_three(X[0], 3)
    assert len(RUNS) == before + 4
