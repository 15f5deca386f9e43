"""Origins of tensors: sets of boxes, recorded per memory block and per view of it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

NONE: frozenset[int] = frozenset()


class Origins:
    """Boxes that each tensor of a run came from."""

    def __init__(self) -> None:
        self.kept: list[Any] = []
        self.of: dict[int, dict[Any, frozenset[int]]] = {}
        self.written: dict[int, frozenset[int]] = {}
        self.columns: dict[int, list[tuple[int, int, frozenset[int]]]] = {}

    def sources(self, tensor: Tensor) -> frozenset[int]:
        """Return the boxes that a tensor came from: its own, else those of all tensors in the same memory."""
        within = self.of.get(store_of(tensor), {})
        exact = within.get(view_of(tensor))
        if exact is None:
            exact = NONE.union(*within.values())
        return exact | self.written.get(store_of(tensor), NONE)

    def put(self, tensor: Tensor, sources: frozenset[int]) -> None:
        """Record the origin of a tensor and keep the tensor, so that no other one reuses its memory."""
        self.kept.append(tensor)
        self.of.setdefault(store_of(tensor), {})[view_of(tensor)] = sources

    def write(self, tensor: Tensor, sources: frozenset[int]) -> None:
        """Record a write into the memory of a tensor, which other tensors may share."""
        self.written[store_of(tensor)] = self.written.get(store_of(tensor), NONE) | sources

    def note_columns(self, args: Any, out: Tensor) -> None:
        """Record the origin of each column block of a wide matrix, for later slices of it."""
        if out.ndim == 2 and len(args) > 1 and args[1] in (1, -1):
            pieces, at = [], 0
            for one in args[0]:
                pieces.append((at, at + one.shape[1], self.sources(one)))
                at += one.shape[1]
            self.columns[store_of(out)] = pieces

    def find_columns(self, view: Tensor, default: frozenset[int]) -> frozenset[int]:
        """Return the origin of the columns of a view of such a matrix."""
        pieces = self.columns.get(store_of(view), [])
        wide = max((end for _, end, _ in pieces), default=0)
        if not wide or view.ndim != 2 or view.stride() != (wide, 1):
            return default
        first = view.storage_offset() % wide
        return NONE.union(*(came for at, end, came in pieces if at < first + view.shape[1] and end > first))


def store_of(tensor: Tensor) -> int:
    """Return the memory block of a tensor."""
    return int(tensor.untyped_storage()._cdata)


def view_of(tensor: Tensor) -> Any:
    """Return the view of its memory that a tensor is."""
    return tensor.storage_offset(), tuple(tensor.shape), tuple(tensor.stride())
