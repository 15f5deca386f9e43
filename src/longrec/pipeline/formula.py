"""Formula over scores by name, such as ``click * buy ** 0.5``: parsed into a small tree, without ``eval``.

It has numbers, names, ``+ - * / **`` and parentheses.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longrec.errors import nearest

Values = NDArray[Any] | float
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_LONGEST, _DEEPEST, _LARGEST = 500, 50, 1e300


class Formula:
    """A formula over scores of C candidates.

    Args:
        text: the formula.

    Attributes:
        names: the names that it reads, in their order.

    Raises:
        ValueError: if the text is no such formula. The message says which symbol is not allowed.

    >>> Formula("click * buy ** 0.5").names
    ('click', 'buy')
    """

    def __init__(self, text: str) -> None:
        self.text = text
        if len(text) > _LONGEST:
            raise ValueError(f"a formula of {len(text)} characters; expected at most {_LONGEST}")
        try:
            tree = ast.parse(text.strip(), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ValueError(f"{text!r} is not a formula ({getattr(error, 'msg', error)})") from None
        names: dict[str, None] = {}
        self._tree = tree.body
        self._check(tree.body, names, 0)
        self.names = tuple(names)

    def _check(self, node: ast.expr, names: dict[str, None], depth: int) -> None:
        if depth > _DEEPEST:
            raise ValueError(f"{self.text!r} is nested more than {_DEEPEST} deep")
        if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            self._check(node.left, names, depth + 1)
            self._check(node.right, names, depth + 1)
        elif isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
            self._check(node.operand, names, depth + 1)
        elif isinstance(node, ast.Name):
            names[node.id] = None
        elif _read_number(node) is None:
            shown = ast.unparse(node)
            raise ValueError(f"{shown!r} is not allowed in a formula; write numbers, names, + - * / ** and parentheses")

    def check_names(self, valid_names: Mapping[str, Any] | tuple[str, ...]) -> list[str]:
        """Return a fault for every name that is not valid."""
        faults = []
        for name in self.names:
            if name not in valid_names:
                near = nearest(name, valid_names)
                hint = f"; did you mean {near!r}?" if near else f"; known: {', '.join(valid_names)}"
                faults.append(f"no score named {name!r}{hint}")
        return faults

    def __call__(self, values: Mapping[str, NDArray[Any]], count: int) -> NDArray[np.float32]:
        """Return the value of the formula for each candidate, float32 ``[C]``. It may not be finite.

        Args:
            values: ``[C]`` scores by name.
            count: C.
        """
        with np.errstate(all="ignore"):
            result = self._compute(self._tree, values)
        return np.array(np.broadcast_to(np.asarray(result, np.float32), count))

    def _compute(self, node: ast.expr, values: Mapping[str, NDArray[Any]]) -> Values:
        if isinstance(node, ast.BinOp):
            return _BINARY[type(node.op)](self._compute(node.left, values), self._compute(node.right, values))
        if isinstance(node, ast.UnaryOp):
            return _UNARY[type(node.op)](self._compute(node.operand, values))
        if isinstance(node, ast.Name):
            return values[node.id].astype(np.float64)
        number = _read_number(node)
        assert number is not None
        return np.float64(number)


def _read_number(node: ast.expr) -> float | None:
    """Return the finite number of a node, None for another node."""
    if not isinstance(node, ast.Constant) or isinstance(node.value, bool) or not isinstance(node.value, int | float):
        return None
    number = float(node.value) if abs(node.value) < _LARGEST else math.inf
    return number if math.isfinite(number) else None
