"""Floor of the time of a training step: what its operators must compute and move, at this machine's own rates.

A dispatch mode sees every operator of the step: forward, backward and optimizers. The floor is the sum over operators
of

    max(operations / rate of products, bytes / bandwidth)

A core overlaps the arithmetic of one operator with its memory traffic, but an operator waits for the one before it.
Bytes are those of an ideal implementation of the same operators:

- a matrix product reads its inputs and writes its output once;
- a lookup in a table reads the looked-up rows and writes them. Any other gather is fused with what reads it, so it
  costs its ids and the rows it reads, each row once;
- an element-wise operator is fused with the operator that makes its first input. It costs the other inputs;
- a reduction, a softmax, a normalization, a sort: their inputs and outputs once;
- an optimizer reads and writes the touched rows of tables and of their states, and all dense parameters and states;
- a copy, a concatenation, a fill, a view: nothing, because another layout would need none;
- the batch: each of its numbers is read and written once.

Not counted: interpreter, dispatch, allocation, page faults, and what numpy computes. So the floor is a lower bound for
the operators that the model chose, not for its formulas: a version that needs fewer products has a higher floor.

Shapes: N rows, I inputs, O outputs.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from longrec.nn import gemm

_FREE = (
    *("cat", "clone", "copy_", "_to_copy", "fill_", "zero_", "zeros", "zeros_like", "ones", "ones_like", "full"),
    *(
        "full_like",
        "new_zeros",
        "new_ones",
        "new_full",
        "arange",
        "constant_pad_nd",
        "slice_backward",
        "stack",
        "repeat",
    ),
    *(
        "select_backward",
        "_coalesced_",
        "_indices",
        "_values",
        "_sparse_coo_tensor_with_dims_and_tensors",
        "lift_fresh",
    ),
    *("resize_", "_local_scalar_dense", "contiguous", "scalar_tensor", "record_stream", "_unsafe_view", "as_strided"),
)
"""Copies, fills, and what only describes memory."""
_GATHERS = ("index_select", "gather", "index", "take", "repeat_interleave")
_SCATTERS = ("index_copy_", "index_copy", "index_put", "index_put_", "scatter", "scatter_")
_FUSED_ADAM = ("_fused_adamw_", "_fused_adam_")
_SIZES_MB = (1, 4, 16, 64, 256)


@dataclass(frozen=True)
class Rates:
    """What one thread of this machine reaches.

    Attributes:
        flops: floating point operations per CPU-second of matrix products.
        bandwidth: bytes read and written per CPU-second, by the bytes that are moved at a time.
    """

    flops: float
    bandwidth: dict[int, float]

    def seconds(self, flops: float, moved: float) -> float:
        """Return the least time of an operator."""
        if not moved:
            return flops / self.flops
        size = min(self.bandwidth, key=lambda one: abs(math.log(one / moved)))
        return max(flops / self.flops, moved / self.bandwidth[size])


def measure_rates() -> Rates:
    """Measure both rates, into memory that exists already. Rows fit in the second cache."""
    done = spent = 0.0
    for rows, inside, outside in [(4_096, 160, 80), (4_096, 128, 80), (4_096, 80, 40), (1_024, 256, 128)]:
        x, w, g = torch.randn(rows, inside), torch.randn(outside, inside), torch.randn(rows, outside)
        y_NO, g_NI, w_OI = torch.empty(rows, outside), torch.empty(rows, inside), torch.empty(outside, inside)
        ways: list[tuple[Callable[[], Any], ...]] = [
            (lambda: torch.mm(x, w.t(), out=y_NO), lambda: gemm.affine(x, w)),  # noqa: B023
            (lambda: torch.mm(g, w, out=g_NI), lambda: gemm.input_gradient(g, w)),  # noqa: B023
            (lambda: torch.mm(g.t(), x, out=w_OI), lambda: gemm.weight_gradient(g, x)),  # noqa: B023
        ]
        for one in ways:
            # Of the library of torch and of the package's own way, the faster one is what the machine can do.
            spent += min(_median_seconds(way, 30) for way in one)
            done += 2 * rows * inside * outside
    bandwidth = {}
    for size in _SIZES_MB:
        numbers = size * 2**20 // 8
        source, target = torch.rand(numbers), torch.rand(numbers)
        bandwidth[size * 2**20] = size * 2**20 / _median_seconds(lambda: target.copy_(source), 12)  # noqa: B023
    return Rates(done / spent, bandwidth)


def _median_seconds(work: Callable[[], Any], times: int) -> float:
    for _ in range(3):
        work()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    # Beside other work a wall time is too long now and then, and a clock of CPU time is too coarse for a product.
    return sorted(taken)[times // 4]


class FloorCounter(TorchDispatchMode):
    """Count of operations, bytes and least seconds of every operator that runs inside.

    Attributes:
        flops, moved, seconds: by the name of the operator.
    """

    def __init__(self, rates: Rates) -> None:
        super().__init__()
        self.rates = rates
        self.flops: Counter[str] = Counter()
        self.moved: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and count it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        flops, moved = count_flops(func, args, kwargs, out), count_bytes(func, args, kwargs, out)
        name = func._schema.name.partition("::")[2]
        self.flops[name] += flops
        self.moved[name] += moved
        self.seconds[name] += self.rates.seconds(flops, moved)
        return out

    def add_batch(self, tensors: Iterable[Tensor]) -> None:
        """Count the numbers of a batch, read and written once."""
        moved = 2 * sum(map(_bytes, tensors))
        self.moved["batch"] += moved
        self.seconds["batch"] += self.rates.seconds(0, moved)


def count_flops(func: Any, args: Any, kwargs: Any, out: Any) -> float:
    """Return the operations of a matrix product. 0 for other operators."""
    if func._schema.name == "mkldnn::_linear_pointwise":
        rows, outputs = out.shape
        return 2.0 * rows * outputs * args[0].shape[1]
    if func.overloadpacket in flop_registry:
        return float(flop_registry[func.overloadpacket](*args, **kwargs, out_val=out))
    if func._schema.name == "aten::addmm_":
        return 2.0 * args[1].shape[0] * args[1].shape[1] * args[2].shape[1]
    return 0.0


def count_bytes(func: Any, args: Any, kwargs: Any, out: Any) -> float:
    """Return the bytes that an operator must read and write, by the rules of this file."""
    name, packet = func._schema.name.partition("::")[2], func.overloadpacket
    if name in _FREE or name.startswith(("empty", "new_empty", "profiler")) or _is_view(func):
        return 0
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
    if name == "embedding":
        return _bytes(args[1]) + 2 * _bytes(outputs[0])
    if name in _GATHERS:
        return sum(map(_bytes, tensors[1:])) + min(_bytes(tensors[0]), sum(map(_bytes, outputs)))
    if name in _SCATTERS:
        return sum(map(_bytes, tensors[1:]))
    if name.startswith("_embedding_bag"):
        width = args[0].shape[1] * args[0].element_size()
        return _bytes(args[1]) + args[1].numel() * width + _bytes(outputs[0])
    if name in _FUSED_ADAM:
        return 7 * sum(map(_bytes, args[0]))  # parameter, gradient and two moments are read, all but one written
    if any(torch.Tag.pointwise in getattr(packet, one).tags for one in packet.overloads()):
        own = {id(one) for one in outputs}
        sizes = sorted(_bytes(one) for one in tensors if id(one) not in own or one is tensors[0])
        return sum(sizes[:-1])
    read = {id(one): _bytes(one) for one in tensors}
    return sum(read.values()) + sum(_bytes(one) for one in outputs if id(one) not in read)


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return bool(returns) and all(one.alias_info is not None and not one.alias_info.is_write for one in returns)


def _bytes(x: Tensor) -> int:
    if x.is_sparse:
        return 0  # its ids and values are counted where they are read
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())
