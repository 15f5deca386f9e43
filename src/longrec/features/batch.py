"""Input of a model: one batch of candidates and their requests, with jagged histories and no padding.

A candidate is scored for a request: one user at one timestamp, with histories and context. Four layouts exist:

- **single**: each request has one candidate, as in training on logged impressions;
- **shared**: all candidates belong to one request, as in serving;
- **grouped**: each candidate names its request, as in training on several impressions of one request;
- **catalog**: candidates belong to no request, as the items that a retriever compares requests with.

Shapes: R requests, C candidates, N flat positions of one history over all requests, M some of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Copy = Callable[[Tensor], Tensor]
"""A function that copies a tensor, to another device or into other memory."""


@dataclass(frozen=True)
class Jagged:
    """Rows of different lengths, concatenated.

    Attributes:
        values: the values of all rows, row after row.
        offsets: int64 ``[rows + 1]``. Row r has ``values[offsets[r]:offsets[r + 1]]``, which may be empty.
        weights: float32, one weight per value, or None.
    """

    values: Tensor
    offsets: Tensor
    weights: Tensor | None = None

    def lengths(self) -> Tensor:
        """Return the number of values of each row: int64 ``[rows]``."""
        return self.offsets[1:] - self.offsets[:-1]

    def rows(self) -> Tensor:
        """Return the row of each value: int64 ``[values]``."""
        lengths = self.lengths()
        rows = torch.arange(lengths.shape[0], device=lengths.device)
        return torch.repeat_interleave(rows, lengths, output_size=self.values.shape[0])

    def select_rows(self, rows_M: Tensor) -> Jagged:
        """Select rows, in the order of ``rows_M``."""
        lengths_M = self.lengths().index_select(0, rows_M)
        offsets = torch.cat([lengths_M.new_zeros(1), lengths_M.cumsum(0)])
        start_M = self.offsets.index_select(0, rows_M) - offsets[:-1]
        total = int(offsets[-1])
        positions = torch.arange(total, device=start_M.device) + start_M.repeat_interleave(lengths_M, output_size=total)
        weights = None if self.weights is None else self.weights.index_select(0, positions)
        return Jagged(self.values.index_select(0, positions), offsets, weights)

    def copy(self, tensor: Copy) -> Jagged:
        """Return a copy made of copies of the tensors."""
        return Jagged(tensor(self.values), tensor(self.offsets), None if self.weights is None else tensor(self.weights))


Column = Tensor | Jagged
"""Values of a feature: int32 ids or float32 numbers, one entry per row, or several per row."""


@dataclass(frozen=True)
class Layout:
    """Which request each candidate of a batch belongs to.

    The layout is static: it never depends on values, so that a traced program has one.

    Attributes:
        requests: R.
        candidates: C.
        kind: ``single`` (R = C, candidate i belongs to request i), ``shared`` (R = 1), ``grouped`` or ``catalog``.
        owner: int64 ``[C]``, the request of each candidate. Grouped only.
        host_owner: the same on the host.
    """

    requests: int
    candidates: int
    kind: Literal["single", "shared", "grouped", "catalog"] = "single"
    owner: Tensor | None = None
    host_owner: NDArray[np.int64] | None = None

    @classmethod
    def single(cls, rows: int) -> Layout:
        """Return the layout of requests with one candidate each."""
        return cls(rows, rows)

    @classmethod
    def shared(cls, candidates: int) -> Layout:
        """Return the layout of one request with several candidates."""
        return cls(1, candidates, "shared")

    @classmethod
    def grouped(cls, requests: int, owner: NDArray[np.int64]) -> Layout:
        """Return the layout of candidates that name their request, int64 ``[C]``."""
        return cls(requests, len(owner), "grouped", torch.from_numpy(owner), owner)

    @classmethod
    def catalog(cls, requests: int, candidates: int) -> Layout:
        """Return the layout of requests, and of candidates that belong to none of them."""
        return cls(requests, candidates, "catalog")

    def repeat(self, x_R: Tensor) -> Tensor:
        """Return the value of its request for every candidate: ``[C, ...]`` from ``[R, ...]``."""
        if self.kind == "single":
            return x_R
        if self.kind == "shared":
            return x_R.expand(self.candidates, *x_R.shape[1:])
        assert self.owner is not None
        return x_R.index_select(0, self.owner)

    def repeat_column(self, column_R: Column) -> Column:
        """Return the entry of its request for every candidate, of a column with one or several values per entry."""
        if isinstance(column_R, Tensor):
            return self.repeat(column_R)
        if self.kind == "single":
            return column_R
        owner = self.owner
        if owner is None:
            owner = torch.zeros(self.candidates, dtype=torch.int64, device=column_R.offsets.device)
        return column_R.select_rows(owner)

    def copy(self, tensor: Copy) -> Layout:
        """Return a copy made of copies of the tensors."""
        return self if self.owner is None else replace(self, owner=tensor(self.owner))


@dataclass(frozen=True)
class HistoryBatch:
    """One history of every request of a batch, oldest event first.

    Attributes:
        columns: values of all positions ``[N]`` (or jagged over them), by column.
        offsets: int64 ``[R + 1]``. Request r has positions ``offsets[r]:offsets[r + 1]``.
        host: the offsets on the host, from which plans such as buckets of similar length are made. None: copied when
            first needed.
        source: the history on the host that this one is a copy of. None: this one, or copied when first needed.
        memo: what was derived from the offsets, so that it is derived once per batch.
        seconds: float64 ``[N]`` timestamps on the host, in seconds or steps, in histories of the training window alone.
        start: packed states ``[R, W]`` of a model after the events before these, see ``models/core/memory.py``.
    """

    columns: Mapping[str, Column]
    offsets: Tensor
    host: NDArray[np.int64] | None = None
    source: HistoryBatch | None = field(default=None, repr=False, compare=False)
    memo: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    seconds: NDArray[np.float64] | None = field(default=None, repr=False, compare=False)
    start: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def host_offsets(self) -> NDArray[np.int64]:
        """The offsets on the host, int64 ``[R + 1]``."""
        if self.host is not None:
            return self.host
        if "host" not in self.memo:
            self.memo["host"] = self.offsets.detach().cpu().numpy()
        return self.memo["host"]

    @property
    def on_host(self) -> HistoryBatch:
        """The same history on the host, from whose values plans are made."""
        if self.source is not None:
            return self.source
        if self.offsets.device.type == "cpu":
            return self
        if "source" not in self.memo:
            columns = {name: _copy_column(column, Tensor.cpu) for name, column in self.columns.items()}
            self.memo["source"] = HistoryBatch(columns, self.offsets.cpu())
        source: HistoryBatch = self.memo["source"]
        return source

    def select_events(self, positions_M: Tensor) -> HistoryBatch:
        """Select the events at some positions, int64 and ascending. The number of requests stays the same."""
        return HistoryBatch(self._select(positions_M), torch.searchsorted(positions_M, self.offsets))

    def select_requests(self, rows_M: Tensor) -> HistoryBatch:
        """Select the histories of some requests, in the order of ``rows_M``."""
        positions = Jagged(torch.arange(int(self.host_offsets[-1]), device=self.offsets.device), self.offsets)
        chosen = positions.select_rows(rows_M)
        return HistoryBatch(self._select(chosen.values), chosen.offsets)

    def _select(self, positions_M: Tensor) -> dict[str, Column]:
        return {
            name: column.select_rows(positions_M) if isinstance(column, Jagged) else column.index_select(0, positions_M)
            for name, column in self.columns.items()
        }

    def to(self, device: torch.device | str, non_blocking: bool = False) -> HistoryBatch:
        """Return a copy on a device. It keeps the history on the host."""
        return self.copy(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> HistoryBatch:
        """Return a copy in pinned memory."""
        return self.copy(Tensor.pin_memory)

    def copy(self, tensor: Copy) -> HistoryBatch:
        """Return a copy made of copies of the tensors. It keeps the history on the host."""
        columns = {name: _copy_column(column, tensor) for name, column in self.columns.items()}
        start = None if self.start is None else tensor(self.start)
        return HistoryBatch(columns, tensor(self.offsets), self.host_offsets, self.on_host, start=start)


@dataclass(frozen=True)
class Targets:
    """Next items that the requests of a batch lead to: T targets, and the negatives they are compared with.

    The candidates of the batch are the distinct target items, then the items that were drawn: the negatives. With
    in-batch negatives they are all candidates. Of the whole catalog, candidates are all items, ``negatives`` is 0.

    Attributes:
        state: int64 ``[T]``, what predicts each target: stored position of the last event that it reads, or a request.
        item: int64 ``[T]``, the candidate that each target is.
        rows: int64 ``[C]``, row of each candidate in the item table.
        negatives: number of candidates at the end that are negatives.
        catalog: number of items of the catalog, from which negatives are drawn.
        log_q: float32 ``[negatives]``, logarithm of the expected number of draws of each negative. None for equal ones.
        draws: float32 ``[negatives]``, how often each negative was drawn. None: once.
        hits: int64 ``[2, P]``, targets and negatives that are not compared, as a target and itself never are. None: no.
        own: int64 ``[T, k]``, the candidates that are the negatives of each target. None: all targets share all.
        weight: float32 ``[T]`` weight of each target in a loss, at least 0. None: equal weights.
        requests: features of user and context, T entries each, as of the timestamp of each target. None: not gathered.
        age: float32 ``[T]``, time from each target to the last, as a share of that from the first to the last, or None.
        gap: int32 ``[T]`` ids, as of ``time_gap``, of the time from a state's last event to its target, or None.
        reward: float32 ``[T]``, NaN if it is not available. None: no rewards.
        pairs: int64 ``[2, P]``, a target and one of its request that the user preferred less. None: no pairs.
        per_position: True if ``state`` counts positions, False if it counts requests.
        host: ``state`` on the host, of targets on another device. None: copied when first needed.
    """

    state: Tensor
    item: Tensor
    rows: Tensor
    negatives: int
    catalog: int
    log_q: Tensor | None = None
    own: Tensor | None = None
    weight: Tensor | None = None
    per_position: bool = True
    draws: Tensor | None = None
    hits: Tensor | None = None
    requests: Mapping[str, Column] | None = None
    age: Tensor | None = None
    gap: Tensor | None = None
    reward: Tensor | None = None
    pairs: Tensor | None = None
    host: NDArray[np.int64] | None = field(default=None, repr=False, compare=False)

    @property
    def host_state(self) -> NDArray[np.int64]:
        """``state`` on the host, int64 ``[T]``."""
        return self.state.detach().cpu().numpy() if self.host is None else self.host

    def copy(self, tensor: Copy) -> Targets:
        """Return a copy made of copies of the tensors."""
        moved: dict[str, Any] = {name: tensor(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        requests = self.requests and {name: _copy_column(column, tensor) for name, column in self.requests.items()}
        return replace(self, **moved, requests=requests, host=self.host_state)


def _describe_columns(columns: Mapping[str, Column]) -> str:
    """Return the name, type and shape of each column. A column of lists has its number of rows and of values."""
    texts = []
    for name, column in columns.items():
        values = column.values if isinstance(column, Jagged) else column
        lists = f"{len(column.offsets) - 1} lists of " if isinstance(column, Jagged) else ""
        texts.append(f"{name} {lists}{str(values.dtype).removeprefix('torch.')} {list(values.shape)}")
    return ", ".join(texts) or "none"


@dataclass(frozen=True, repr=False)
class Batch:
    """One batch of candidates and their requests.

    Attributes:
        layout: which request each candidate belongs to.
        requests: user and context features, R entries each.
        candidates: features of the item and of the candidate, C entries each.
        histories: histories of the requests.
        label: float32 ``[C]``, if available.
        rows: int64 ``[C]`` rows of the log that the candidates come from, if they come from a log.
        users: int64 ``[C]`` user row of each candidate, if they come from a log.
        timestamps: int64 ``[C]`` timestamp of each candidate.
        label_time: int64 ``[C]`` timestamp at which the label of each candidate became available.
        available: int64 ``[C]`` timestamp from which later impressions may read each one. None: its own timestamp.
        loss_mask: bool ``[C]``, True for candidates that contribute to the loss. None: all. Others are context only.
        task_labels: further labels by feedback feature, float32 ``[C]``: 0, 1, or NaN if it is missing or was not
            available when the training window ended. Only the loss of the model in training reads them.
        weight: float32 ``[C]`` weight of each candidate in a loss, at least 0. None: equal weights.
        host_users: ``users`` on the host, of a batch on another device.
        computed: vectors float32 ``[C, W]`` that one model computes for another one that it is built on.
        targets: next items and negatives, of a batch for a retriever. Its candidates then belong to no request.
    """

    layout: Layout
    requests: Mapping[str, Column] = field(default_factory=dict)
    candidates: Mapping[str, Column] = field(default_factory=dict)
    histories: Mapping[str, HistoryBatch] = field(default_factory=dict)
    label: Tensor | None = None
    rows: Tensor | None = None
    users: Tensor | None = None
    timestamps: Tensor | None = None
    label_time: Tensor | None = None
    available: Tensor | None = None
    loss_mask: Tensor | None = None
    task_labels: Mapping[str, Tensor] = field(default_factory=dict)
    weight: Tensor | None = None
    host_users: NDArray[np.int64] | None = None
    computed: Mapping[str, Tensor] = field(default_factory=dict)
    targets: Targets | None = None

    def __repr__(self) -> str:
        """Return names, types and shapes, without values."""
        lines = [f"Batch of {self.layout.candidates:,} candidates in {self.layout.requests:,} requests"]
        lines += [
            f"  requests    {_describe_columns(self.requests)}",
            f"  candidates  {_describe_columns(self.candidates)}",
        ]
        lines += [f"  history {name}: {_describe_columns(events.columns)}" for name, events in self.histories.items()]
        own = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return "\n".join([*lines, f"  rows        {_describe_columns(own)}"])

    @classmethod
    def single(
        cls, rows: int, features: Mapping[str, Column], histories: Mapping[str, HistoryBatch] | None = None, **own: Any
    ) -> Batch:
        """Return a batch of requests with one candidate each.

        Args:
            features, own: all features, ``rows`` entries each, and further attributes, such as ``label``.
        """
        return cls(Layout.single(rows), {}, features, histories or {}, **own)

    @property
    def size(self) -> int:
        """C."""
        return self.layout.candidates

    @property
    def features(self) -> dict[str, Column]:
        """All features, those of requests with R entries and those of candidates with C."""
        return {**self.requests, **self.candidates}

    def per_candidate(self, name: str) -> Column:
        """Return a feature, or a computed vector, with one entry per candidate."""
        if name in self.computed:
            return self.computed[name]
        return self.candidates[name] if name in self.candidates else self.layout.repeat_column(self.requests[name])

    @property
    def loss_rows(self) -> int:
        """Number of candidates, or of targets, that contribute to the loss."""
        if self.targets is not None:
            return len(self.targets.state)
        return self.size if self.loss_mask is None else int(self.loss_mask.sum())

    def ungroup(self) -> Batch:
        """Return a grouped batch as a single one, with features and histories of a request copied per candidate."""
        owner = self.layout.owner
        if owner is None:
            return self
        return replace(
            self,
            layout=Layout.single(self.size),
            requests={name: self.layout.repeat_column(column) for name, column in self.requests.items()},
            histories={name: history.select_requests(owner) for name, history in self.histories.items()},
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return a copy on a device, which keeps what plans are made from on the host."""
        return self._copy(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return a copy in pinned memory, from which the host can copy to a GPU without waiting."""
        return self._copy(Tensor.pin_memory)

    def _copy(self, tensor: Copy) -> Batch:
        def copy(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: copy(each) for name, each in value.items()}
            if isinstance(value, Tensor):
                return tensor(value)
            return value.copy(tensor) if isinstance(value, Jagged | Layout | HistoryBatch | Targets) else value

        users = self.host_users
        if users is None and self.users is not None:
            users = self.users.cpu().numpy()
        return Batch(**{**{name: copy(value) for name, value in vars(self).items()}, "host_users": users})


def _copy_column(column: Column, tensor: Copy) -> Column:
    return tensor(column) if isinstance(column, Tensor) else column.copy(tensor)
