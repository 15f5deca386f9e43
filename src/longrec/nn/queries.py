"""Query (candidate features) and keys (history features) for target attention.

The query of a history consists of the columns that the candidate has too. The keys are all columns of its events, those
of the query first. A history of instance tokens may share no column with the candidate. Its query is then all fields of
the candidate, or a learned projection of them as wide as the keys.

Shapes: B rows, U entries of a history (see ``Segments``), Q width of the query, K width of an event.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.nn.embedding import Embedded
from longrec.nn.linear import Linear
from longrec.nn.segments import Segments


class Queries(nn.Module):
    """Query, keys and segments of every history.

    Args:
        widths: width of every field, as in ``Embeddings``.
        model: name of the model, for error messages.
        project: for a history that shares no column, use a projection of the candidate's fields, else the fields.

    Attributes:
        query_columns, key_columns: names of the columns of each history.
        query_widths, key_widths: Q and K of each history.
        common_widths: number of the Q columns that are the same in query and keys: all, or none.

    Raises:
        ConfigError: if there is no history, or a history has no query (see ``choose_attention_columns``).
    """

    def __init__(self, fields: Fields, widths: Mapping[str, int], model: str, project: bool = True) -> None:
        super().__init__()
        if not fields.histories:
            raise ConfigError("schema", [f"histories: {model} reads a history, and the schema has none"])
        self.query_columns, self.key_columns = choose_attention_columns(fields, fields.histories, model)
        self.common_widths = {
            name: sum(widths[column] for column in columns) for name, columns in self.query_columns.items()
        }
        self.key_widths = {
            name: sum(widths[column] for column in columns) for name, columns in self.key_columns.items()
        }
        self.query_widths, self.projections = dict(self.common_widths), nn.ModuleDict()
        candidate = [field.name for field in fields.features if field.side == "item"]
        for name, columns in self.query_columns.items():
            if columns:
                continue
            self.query_columns[name] = candidate
            self.query_widths[name] = sum(widths[column] for column in candidate)
            if project:
                self.projections[f"query_{name}"] = Linear(self.query_widths[name], self.key_widths[name])
                self.query_widths[name] = self.key_widths[name]

    def compute_query(self, embedded: Embedded, history: str) -> Tensor:
        """Return ``[B, Q]``, the query of the candidate for one history."""
        q_BQ = torch.cat([embedded.features[name] for name in self.query_columns[history]], 1)
        key = f"query_{history}"
        return self.projections[key](q_BQ) if key in self.projections else q_BQ

    def gather_keys(self, batch: Batch, embedded: Embedded, history: str) -> tuple[Tensor, Segments]:
        """Return keys ``[U, K]``, their columns in common with the query first, and segments of one history."""
        return embedded.join(history, self.key_columns[history]), Segments.of(batch, history)

    def join_keys(self, vectors: Mapping[str, Tensor], history: str) -> Tensor:
        """Return the keys ``[N, K]`` of events, from the vectors of their columns, ``[N, D]`` each."""
        return torch.cat([vectors[name] for name in self.key_columns[history]], 1)

    def forward(self, batch: Batch, embedded: Embedded, history: str) -> tuple[Tensor, Tensor, Segments]:
        """Return query ``[B, Q]``, keys ``[U, K]`` and segments of one history."""
        return self.compute_query(embedded, history), *self.gather_keys(batch, embedded, history)


def choose_attention_columns(
    fields: Fields, histories: Iterable[str], model: str
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the names of the query's columns of each history, and of the keys' columns with the query's first.

    Args:
        model: name of the model, for error messages.

    Raises:
        ConfigError: if histories have neither a column of the candidate nor tokens (all of them are listed).
    """
    queries, keys, faults = {}, {}, []
    candidate = any(field.side == "item" for field in fields.features)
    for history in histories:
        columns = fields.histories[history]
        queries[history] = [field.name for field in fields.target_columns(history)]
        keys[history] = queries[history] + [field.name for field in columns if field.name not in queries[history]]
        if not queries[history] and not (candidate and any(field.kind == "embedding" for field in columns)):
            names = ", ".join(field.name for field in columns)
            faults.append(
                f"histories.{history}.features: {model} needs a column that is a feature of the candidate too, got "
                f"{names}; add the item (or another feature of side item) to it"
            )
    if faults:
        raise ConfigError("schema", faults)
    return queries, keys
