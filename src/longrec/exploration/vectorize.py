"""``vmap`` in a captured program, with sizes that stay dynamic.

The rules of torch for a concatenation and a selection fix the number of rows, so that the program would accept no
other number.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


def vectorize(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the outputs of a function for all entries along the first dimension of ``x``."""

    def run(entry: Tensor) -> Tensor:
        with _DynamicSizes():
            return function(entry)

    outputs: Tensor = torch.vmap(run)(x)
    return outputs


class _DynamicSizes(TorchFunctionMode):
    """Concatenation by sums of padded tensors and selection by indexing, where one has the further dimension."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.cat and any(torch._C._functorch.is_batchedtensor(tensor) for tensor in args[0]):
            return _concatenate(*args, **(kwargs or {}))
        if func is Tensor.index_select and torch._C._functorch.is_batchedtensor(args[0]):
            x, dim, index = args
            return x[(*[slice(None)] * dim, index)]
        return func(*args, **(kwargs or {}))


def _concatenate(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Return ``torch.cat`` of tensors."""
    axis = dim % tensors[0].ndim
    before, after = 0, sum(tensor.shape[axis] for tensor in tensors)
    padded = []
    for tensor in tensors:
        size = tensor.shape[axis]
        after -= size
        padded.append(F.pad(tensor, (0, 0) * (tensor.ndim - 1 - axis) + (before, after)))
        before += size
    return functools.reduce(torch.add, padded)
