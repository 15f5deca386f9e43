"""Embeddings of all fields of a model: one table per field, shared by the impression and its histories.

A numeric field has one vector, scaled by its value. An embedding of W numbers has W vectors, scaled by its numbers.

Gradients of tables are sparse: the cost of a step depends on the ids of the batch, not on the height of the table.

Shapes: B rows, N positions of a history, T positions of a shared one, U either, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longrec.features.batch import Batch, Jagged
from longrec.features.fields import Field, Fields
from longrec.nn.linear import linear
from longrec.nn.segments import Segments

RESERVED = 2
"""Number of reserved rows: row 0 is the missing value and row 1 an unseen value. Both start at zero."""


@dataclass(frozen=True)
class EmbeddedBatch:
    """Vectors of one batch: ``features[name]`` is ``[B, D]``, ``histories[history][name]`` is ``[U, D]``."""

    features: Mapping[str, Tensor]
    histories: Mapping[str, Mapping[str, Tensor]]


class Embeddings(nn.Module):
    """Embedding tables: one per distinct field name, and one for all fields that share it.

    Args:
        dim: width of fields without a width of their own.
        width: width of all fields, overriding their own.
        histories: embed histories too.
        std: standard deviation of the normal distribution that initializes the tables.
    """

    def __init__(
        self, fields: Fields, dim: int = 16, *, width: int | None = None, histories: bool = False, std: float = 0.01
    ) -> None:
        super().__init__()
        self.fields = fields if histories else Fields(fields.features, {})
        self.widths = {field.name: width or field.dim or dim for field in self.fields.distinct_fields()}
        self._sharing: dict[str, list[Field]] = {}
        for field in self.fields.distinct_fields():
            self._sharing.setdefault(field.owner, []).append(field)
        for field in (fields[0] for fields in self._sharing.values()):
            table = torch.empty(max(field.rows, field.width, 1), self.widths[field.name]).normal_(std=std)
            if field.rows:
                table[:RESERVED] = 0
            self.register_parameter(parameter_name(field.owner), nn.Parameter(table))

    def table(self, name: str) -> nn.Parameter:
        """Return the table of a field: ``[rows, D]``, ``[1, D]`` (numeric) or ``[W, D]`` (embedding, numbers)."""
        owner = next(field.owner for field in self.fields.distinct_fields() if field.name == name)
        return self.get_parameter(parameter_name(owner))

    def embedding_parameters(self) -> list[nn.Parameter]:
        """Return all tables with sparse gradients."""
        return [self.table(fields[0].name) for fields in self._sharing.values() if fields[0].rows]

    def forward(self, batch: Batch) -> EmbeddedBatch:
        """Look up all fields, with one lookup per table."""
        features: dict[str, Tensor] = {}
        histories: dict[str, dict[str, Tensor]] = {name: {} for name in self.fields.histories}
        for sharing in self._sharing.values():
            uses: list[tuple[Field, dict[str, Tensor], Tensor | Jagged, bool]] = []
            for field in sharing:
                if field in self.fields.features:
                    repeat = batch.shared and field.side != "item"
                    uses.append((field, features, batch.features[field.name], repeat))
                for name, columns in self.fields.histories.items():
                    if any(column.name == field.name for column in columns):
                        uses.append((field, histories[name], batch.histories[name].columns[field.name], False))
            vectors = self._look_up(sharing[0], [values for _, _, values, _ in uses])
            for (field, target, values, repeat), e_ND in zip(uses, vectors):
                e_ND = _pool(field, values, e_ND) if isinstance(values, Jagged) else e_ND
                target[field.name] = e_ND.expand(batch.size, -1) if repeat else e_ND
        order = [field.name for field in self.fields.features]
        return EmbeddedBatch({name: features[name] for name in order}, histories)

    def _look_up(self, field: Field, uses: list[Tensor | Jagged]) -> list[Tensor]:
        """Return the vectors of the values of each use of a field."""
        table = self.table(field.name)
        flat = [use.values if isinstance(use, Jagged) else use for use in uses]
        if field.kind == "numeric":
            return [values.to(table.dtype).unsqueeze(1) * table for values in flat]
        if field.kind in ("embedding", "numbers"):
            return [linear(values.to(table.dtype), table.t().contiguous()) for values in flat]
        if torch.compiler.is_compiling():
            return [F.embedding(values, table) for values in flat]
        # One lookup for all uses, so that the optimizer groups the ids of the table once.
        ids = torch.cat(flat) if len(flat) > 1 else flat[0]
        e_ND = F.embedding(ids.long(), table, sparse=True)
        return list(torch.split(e_ND, [len(values) for values in flat]))


def parameter_name(name: str) -> str:
    """Return a parameter name for any field name (torch allows no dots, and some names are methods)."""
    return "table_" + name.replace("%", "%25").replace(".", "%2E")


def _pool(field: Field, values: Jagged, e_ND: Tensor) -> Tensor:
    """Pool the values of each entry to ``[U, D]``. 0 for an entry without values.

    With weights, ``mean`` is the weighted sum over the sum of the weights, and ``max`` is taken over the weighted
    vectors.
    """
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
