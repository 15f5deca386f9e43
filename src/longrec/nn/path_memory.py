"""Memory of a generator: what its steps read of each request.

Shapes: R requests, D width, A width of h_agg.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from longrec.nn.cross_attention import HistoryKeys

_UNCONDITIONED = "unconditioned."
"""Prefix of the tensors of a memory without a task."""


@dataclass(frozen=True)
class Memory:
    """What the steps read of each request.

    Attributes:
        keys: keys and values of the history.
        start: ``[R, D]``, the input of the first step.
        aggregate: ``[R, A]``, h_agg.
        unconditioned: the same without a task. None if no score needs it.
    """

    keys: HistoryKeys
    start: Tensor
    aggregate: Tensor
    unconditioned: Memory | None = None

    def pack(self) -> dict[str, Tensor]:
        """Return the tensors of one request by name, from which ``unpack`` builds the memory again."""
        own = {"keys": self.keys.pack(), "start": self.start, "aggregate": self.aggregate}
        other = {} if self.unconditioned is None else self.unconditioned.pack()
        return own | {f"{_UNCONDITIONED}{name}": x for name, x in other.items()}

    @classmethod
    def unpack(cls, tensors: Mapping[str, Tensor], layers: int, heads: int) -> Memory:
        """Return the memory of one request."""
        other = {n.removeprefix(_UNCONDITIONED): x for n, x in tensors.items() if n.startswith(_UNCONDITIONED)}
        keys = HistoryKeys.unpack(tensors["keys"], layers, heads)
        return cls(keys, tensors["start"], tensors["aggregate"], cls.unpack(other, layers, heads) if other else None)
