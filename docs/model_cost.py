"""Operation counts of a model, recorded operator by operator while it scores a small batch.

A matrix product of ``[n, k]`` and ``[k, m]`` counts 2 n k m. Elementwise operations and reductions count one per entry.
Look-ups, copies, integers and comparisons count nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from model_batches import one_request, score, small, some_rows, with_one_item
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.base import Model
from longrec.models.core.kinds import Encoder, Retriever
from longrec.nn import gemm

WIDTH, CANDIDATES, EVENTS = 16, 100, (10, 100, 1_000)
"""Width of the embeddings, candidates of a request, and events of a history at which a model is counted."""
_ROWS = {10: 256, 100: 64, 1_000: 32}
"""Rows of a batch for each number of events: as many positions as in training, where layers use other formulas."""
BAGS = {"_embedding_bag", "_embedding_bag_forward_only", "embedding_bag"}
_REDUCTIONS = {
    "sum", "mean", "amax", "max", "min", "amin", "prod", "cumsum", "logsumexp", "_softmax", "_log_softmax", "norm",
    "var", "var_mean", "linalg_vector_norm", "native_layer_norm", "native_batch_norm", "cudnn_batch_norm",
    "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "_batch_norm_no_update", "index_add",
    "index_add_", "scatter_add", "scatter_add_", "scatter_reduce", "index_reduce", "segment_reduce",
}  # fmt: skip
_FREE = {
    "embedding", "index", "index_select", "gather", "cat", "stack", "sort", "topk", "clone", "copy_", "_to_copy",
    "copy", "resize_", "detach", "lift_fresh", "index_put", "index_put_", "index_copy", "index_copy_", "scatter",
    "scatter_", "constant_pad_nd", "where", "masked_fill", "masked_fill_", "fill", "fill_", "zero_", "repeat",
    "repeat_interleave", "flip", "roll", "tril", "triu", "diag_embed", "slice_scatter", "select_scatter",
    "native_dropout", "contiguous", "_unsafe_view", "_reshape_alias", "split_with_sizes", "split", "masked_select",
    "new_empty_strided", "kthvalue", "set_",
}  # fmt: skip
_ENTRIES = {"addcmul_", "addcdiv_", "celu_", "glu", "prelu", "_prelu_kernel"}
_CREATED = ("empty", "zeros", "ones", "full", "new_", "arange", "scalar_tensor", "rand", "eye", "linspace")


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield all tensors in arguments or results."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from tensors(one)
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))


def cost(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Return the operations of one call of an operator.

    Raises:
        ValueError: an operator of unknown cost.
    """
    packet, name = func._overloadpacket, func._overloadpacket.__name__
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **(kwargs or {}), out_val=out))
    inputs = [one for one in tensors([args, kwargs or {}]) if one.is_floating_point()]
    floats = [one for one in tensors(out) if one.is_floating_point()]
    if not floats or func.is_view or name in _FREE or name.startswith(_CREATED):
        return 0
    if name == "_linear_pointwise":
        return 2 * inputs[0].numel() * len(inputs[1])
    if name in ("addmm_", "baddbmm_"):
        return 2 * inputs[1].numel() * int(inputs[2].shape[-1])
    if name in ("mv", "dot", "vdot", "addmv"):
        return 2 * max(one.numel() for one in inputs)
    if name in BAGS:
        return (len(inputs) if len(inputs) > 1 else 1) * int(args[1].numel()) * int(args[0].shape[1])
    if name.startswith("_scaled_dot_product"):
        (*batch, queries, width), (*_, keys, _), (*_, value) = (one.shape for one in inputs[:3])
        return int(math.prod(batch) * queries * keys * (2 * width + 2 * value + 1))
    if name in _REDUCTIONS:
        return max((one.numel() for one in inputs), default=0)
    if torch.Tag.pointwise in func.tags or name in _ENTRIES:
        return sum(one.numel() for one in floats)
    raise ValueError(
        f"docs/model_cost.py: unknown cost of the operator {name}: add it as a reduction, one per entry, or free"
    )


@dataclass(frozen=True)
class Costs:
    """Operations of a model.

    Attributes:
        row: of one row with its own history, by the number of events.
        candidate: of one candidate among ``CANDIDATES`` of a request, by the number of events; empty for an encoder.
        wide: of one row at ``EVENTS[1]`` events, with embeddings of twice the width.
    """

    row: dict[int, int]
    candidate: dict[int, int]
    wide: int


def costs(name: str) -> Costs:
    """Count a model with its default settings."""
    model, fields = small(name, WIDTH)
    row = {many: _row(model, fields, many) for many in EVENTS}
    candidate = {}
    if not isinstance(model, Encoder):
        candidate = {
            many: count_operations(model, one_request(fields, CANDIDATES, many)) // CANDIDATES for many in EVENTS
        }
    model, fields = small(name, 2 * WIDTH)
    return Costs(row, candidate, _row(model, fields, EVENTS[1]))


def _row(model: Model, fields: Fields, events: int) -> int:
    batch = some_rows(fields, [events] * _ROWS[events])
    if isinstance(model, Retriever):
        batch = with_one_item(batch, fields)
    return count_operations(model, batch) // _ROWS[events]


def count_operations(model: Model, batch: Batch) -> int:
    """Return the operations of one pass, without oneDNN, which rounds rows up (nn/gemm.py)."""
    with torch.no_grad(), mock.patch.object(gemm, "_POINTWISE", None), OperationCounter() as counting:
        score(model, batch)
    return counting.total


class OperationCounter(TorchDispatchMode):
    """Context that counts all operations executed inside it.

    Attributes:
        total: operations so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count it."""
        out = func(*args, **(kwargs or {}))
        self.total += cost(func, args, kwargs, out)
        return out
