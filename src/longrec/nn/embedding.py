"""Embeddings of all fields of a model: one table per field, shared by the impression and its histories.

A numeric field has one vector, scaled by its value. An embedding of W numbers has W vectors, scaled by its numbers.

Gradients of tables are sparse: the cost of a step depends on the ids of the batch, not on the height of the table.

Shapes: R requests, C candidates, U stored positions of a history, N values of a lookup, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longrec.features.batch import Batch, Column, HistoryBatch, Jagged, Layout
from longrec.features.fields import Field, Fields
from longrec.nn import kernels, lookup
from longrec.nn.linear import linear
from longrec.nn.segments import Segments

RESERVED = 2
"""Number of reserved rows: row 0 is the missing value and row 1 an unseen value. Both start at zero."""


@dataclass(frozen=True)
class Embedded:
    """Vectors of one batch: those of requests, of candidates and of histories separately.

    Attributes:
        layout: which request each candidate belongs to.
        order: names of all features, in the order of the schema.
        request: ``[R, D]`` per user or context feature.
        candidate: ``[C, D]`` per feature of the item or candidate.
        histories: ``[U, D]`` per column, by history.
        joined: names of the columns of a history and their vectors as one tensor ``[U, K]``, of ``Embeddings`` that
            join them.
        further: vectors of the further tables of a model, such as first-order weights, by the module that holds them.
        states: what ``embed`` computed that ``interact`` reads, and ``interact`` that ``aux_loss`` reads.
    """

    layout: Layout
    order: tuple[str, ...]
    request: Mapping[str, Tensor]
    candidate: Mapping[str, Tensor]
    histories: Mapping[str, Mapping[str, Tensor]]
    joined: Mapping[str, tuple[tuple[str, ...], Tensor]] = dataclasses.field(default_factory=dict)
    further: Mapping[nn.Module, Embedded] = dataclasses.field(default_factory=dict)
    states: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def detach(self) -> Embedded:
        """Return the vectors without a gradient. Those of further tables keep theirs."""

        def detach(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: x.detach() for name, x in vectors.items()}

        histories = {name: detach(columns) for name, columns in self.histories.items()}
        joined = {name: (columns, e_UK.detach()) for name, (columns, e_UK) in self.joined.items()}
        return dataclasses.replace(
            self, request=detach(self.request), candidate=detach(self.candidate), histories=histories, joined=joined
        )

    def join(self, history: str, columns: Sequence[str]) -> Tensor:
        """Return the vectors of the columns of a history as one tensor, ``[U, K]``."""
        if history in self.joined and self.joined[history][0] == tuple(columns):
            return self.joined[history][1]
        return torch.cat([self.histories[history][name] for name in columns], 1)

    @cached_property
    def features(self) -> dict[str, Tensor]:
        """``[C, D]`` per feature: those of a request are repeated for each of its candidates."""
        return {
            name: self.candidate[name] if name in self.candidate else self.layout.repeat(self.request[name])
            for name in self.order
        }


class Table:
    """Lookup of the vectors of one embedding table.

    Every lookup of a model goes through a table, so that another kind of table (of residuals, or divided among
    machines) takes its place in ``Embeddings.tables``.

    Attributes:
        pools: the table is its parameter alone, so that lists of ids can be pooled as they are read.
    """

    pools: ClassVar[bool] = True

    def look_up(self, weight: nn.Parameter, uses: list[Tensor]) -> list[Tensor]:
        """Return the vectors ``[N, D]`` of the ids of each use, int32 ``[N]``, from a table ``[rows, D]``."""
        if kernels.is_traced():
            return [F.embedding(ids, weight) for ids in uses]
        if weight.device.type == "cpu":
            return lookup.look_up(weight, [lookup.Use(ids) for ids in uses])
        # One lookup for all uses, so that the optimizer groups the ids of the table once.
        ids = torch.cat(uses) if len(uses) > 1 else uses[0]
        e_ND = F.embedding(ids.long(), weight, sparse=True)
        return list(torch.split(e_ND, [len(values) for values in uses]))


class Embeddings(nn.Module):
    """Embedding tables: one per distinct field name, and one for all fields that share it.

    Args:
        dim: width of fields without a width of their own.
        width: width of all fields, overriding their own.
        histories: embed histories too.
        std: standard deviation of the normal distribution that initializes the tables.
        joined: write the columns of a history next to each other, those of the candidate first, for a model that reads
            them by ``Embedded.join``. It saves a copy of the history and of its gradient.

    Attributes:
        tables: the lookup of each table of ids, by the name of the field that owns it.
    """

    def __init__(
        self,
        fields: Fields,
        dim: int = 16,
        *,
        width: int | None = None,
        histories: bool = False,
        std: float = 0.01,
        joined: bool = False,
    ) -> None:
        super().__init__()
        self.joined = joined
        self.fields = fields if histories else Fields(fields.features, {})
        self.widths = {field.name: width or field.dim or dim for field in self.fields.distinct_fields()}
        self._sharing: dict[str, list[Field]] = {}
        for field in self.fields.distinct_fields():
            self._sharing.setdefault(field.owner, []).append(field)
        self.tables: dict[str, Table] = {}
        self._lenders: dict[str, tuple[Embeddings]] = {}
        for field in (fields[0] for fields in self._sharing.values()):
            table = torch.empty(max(field.rows, field.width, 1), self.widths[field.name]).normal_(std=std)
            if field.rows:
                table[:RESERVED] = 0
                self.tables[field.owner] = Table()
            self.register_parameter(parameter_name(field.owner), nn.Parameter(table))

    def table(self, name: str) -> nn.Parameter:
        """Return the table of a field: ``[rows, D]``, ``[1, D]`` (numeric) or ``[W, D]`` (embedding, numbers)."""
        parameter = parameter_name(next(f.owner for f in self.fields.distinct_fields() if f.name == name))
        lender = self._lenders[parameter][0] if parameter in self._lenders else self
        return lender.get_parameter(parameter)

    def borrow(self, other: Embeddings) -> None:
        """Look up in the tables of another module, which keeps them, wherever both have one of the same name.

        Raises:
            ValueError: if two such tables have different shapes. No table was changed.
        """
        common = {name: p.shape for name, p in other.named_parameters(recurse=False) if name in self._parameters}
        odd = [name for name, shape in common.items() if self.get_parameter(name).shape != shape]
        if odd:
            raise ValueError(", ".join(name.removeprefix("table_") for name in odd))
        for name in common:
            delattr(self, name)
            # In a tuple, so that it does not become a submodule.
            self._lenders[name] = (other,)
        for owner, table in other.tables.items():
            if parameter_name(owner) in common:
                self.tables[owner] = table

    def table_owners(self) -> dict[str, str]:
        """Return the field that owns the ids of each table of this module, by parameter name, without borrowed ones."""
        owners = {parameter_name(owner): owner for owner in self._sharing}
        return {parameter: owner for parameter, owner in owners.items() if parameter in self._parameters}

    def embedding_parameters(self) -> list[nn.Parameter]:
        """Return all tables with sparse gradients, without borrowed ones."""
        own = (fields[0] for fields in self._sharing.values() if fields[0].rows)
        return [self.table(field.name) for field in own if parameter_name(field.owner) in self._parameters]

    def forward(self, batch: Batch) -> Embedded:
        """Look up all fields, with one lookup per table."""
        request: dict[str, Tensor] = {}
        candidate: dict[str, Tensor] = {}
        histories: dict[str, dict[str, Tensor]] = {name: {} for name in self.fields.histories}
        memory = {name: self._allocate(batch, name) for name in histories} if self.joined else {}
        for sharing in self._sharing.values():
            uses: list[tuple[dict[str, Tensor], _Use]] = []
            for field in sharing:
                if field in self.fields.features:
                    uses.append((candidate if field.side == "item" else request, (field, _column(batch, field), None)))
                for name, columns in self.fields.histories.items():
                    if any(column.name == field.name for column in columns):
                        values, into = batch.histories[name].columns[field.name], memory.get(name, {}).get(field.name)
                        uses.append((histories[name], (field, values, into)))
            for (target, (field, _, _)), e_ND in zip(uses, self._look_up([use for _, use in uses])):
                target[field.name] = e_ND
        order = tuple(field.name for field in self.fields.features)
        joined = {
            name: (tuple(own), lookup.join([histories[name][column] for column in own]))
            for name, own in memory.items()
            if own
        }
        return Embedded(batch.layout, order, request, candidate, histories, joined)

    def _allocate(self, batch: Batch, history: str) -> dict[str, Tensor]:
        """Return memory for the vectors of each column of a history. Empty if they cannot be joined.

        That is where a program is traced, on a device, and where a column is no plain lookup of one id per event.
        """
        shared = [field.name for field in self.fields.target_columns(history)]
        fields = sorted(self.fields.histories[history], key=lambda field: field.name not in shared)
        tables = [self.table(field.name) for field in fields]
        if kernels.is_traced() or any(table.device.type != "cpu" for table in tables):
            return {}
        values = [batch.histories[history].columns[field.name] for field in fields]
        ids = [column for column in values if isinstance(column, Tensor)]
        plain = len(ids) == len(fields) and all(self._is_plain(field) for field in fields)
        if not plain or len({table.dtype for table in tables}) > 1:
            return {}
        columns = lookup.allocate_columns(
            tables[0].detach(), len(ids[0]), [self.widths[field.name] for field in fields]
        )
        return {field.name: column for field, column in zip(fields, columns)}

    def _is_plain(self, field: Field) -> bool:
        """Return True if every use of the table of a field reads one id per entry, or a list that is pooled as read."""
        sharing = self._sharing[field.owner]
        pools = field.owner in self.tables and self.tables[field.owner].pools
        return pools and all(not one.weighted and one.pool != "max" for one in sharing)

    def look_up_events(self, history: str, events: HistoryBatch) -> dict[str, Tensor]:
        """Look up the columns of events of one history alone, ``[N, D]`` each, by name."""
        vectors = {}
        for field in self.fields.histories[history]:
            (vectors[field.name],) = self._look_up([(field, events.columns[field.name], None)])
        return vectors

    def _look_up(self, uses: list[_Use]) -> list[Tensor]:
        """Return the vectors of the entries of each use of one table."""
        if not uses:
            return []
        flat = [values.values if isinstance(values, Jagged) else values for _, values, _ in uses]
        field, table = uses[0][0], self.table(uses[0][0].name)
        if field.owner in self.tables:
            own = self.tables[field.owner]
            direct = any(isinstance(values, Jagged) or into is not None for _, values, into in uses)
            if direct and own.pools and _pools_while_reading(table, uses):
                return lookup.look_up(table, [_make_use(*use) for use in uses])
            vectors = own.look_up(table, flat)
        elif field.kind == "numeric":
            vectors = [values.to(table.dtype).unsqueeze(1) * table for values in flat]
        else:
            vectors = [linear(values.to(table.dtype), table.t().contiguous()) for values in flat]
        return [_pool(field, values, e_ND) for (field, values, _), e_ND in zip(uses, vectors)]


_Use = tuple[Field, Column, Tensor | None]
"""Field and values of a lookup, and memory for its vectors."""


def _pools_while_reading(table: Tensor, uses: list[_Use]) -> bool:
    """Return True if all lists are pooled by a plain sum or mean, on the CPU, and no program is traced."""
    if kernels.is_traced() or table.device.type != "cpu":
        return False
    return all(
        not isinstance(values, Jagged) or (values.weights is None and field.pool != "max") for field, values, _ in uses
    )


def _make_use(field: Field, values: Column, into: Tensor | None) -> lookup.Use:
    if isinstance(values, Jagged):
        return lookup.Use(values.values, values.offsets, field.pool == "mean")
    return lookup.Use(values, into=into)


def _column(batch: Batch, field: Field) -> Column:
    if field.kind == "computed":
        return batch.computed[field.name]
    return batch.candidates[field.name] if field.name in batch.candidates else batch.requests[field.name]


def parameter_name(name: str) -> str:
    """Return a parameter name for any field name (torch allows no dots, and some names are methods)."""
    return "table_" + name.replace("%", "%25").replace(".", "%2E")


def _pool(field: Field, values: Column, e_ND: Tensor) -> Tensor:
    """Pool the values of each entry of a list column to ``[U, D]``. 0 for an entry without values.

    With weights, ``mean`` is the weighted sum over the sum of the weights, and ``max`` is taken over the weighted
    vectors.
    """
    if not isinstance(values, Jagged):
        return e_ND
    segments = Segments.of_values(values)
    if values.weights is None:
        return {"sum": segments.sum, "mean": segments.mean, "max": segments.max}[field.pool](e_ND)
    w_N = values.weights.to(e_ND.dtype)
    if field.pool == "max":
        return segments.max(e_ND * w_N.unsqueeze(1))
    total = segments.weighted_sum(w_N, e_ND)
    if field.pool == "sum":
        return total
    weight = segments.sum(w_N.unsqueeze(1))
    return total / torch.where(weight == 0, torch.ones_like(weight), weight)
