"""Base class of retrievers that compare what a history holds with items.

It reads the first history of the schema. Events and items have an id in common, at least, and read the same tables. A
subclass defines one of two methods:

    encode(batch, embedded) -> [N, D]             the state after each stored event, of events up to it; [N, K, D] with
                                                  several interests
    encode_requests(batch, embedded) -> [R, K, D] the vectors of each request, one per interest

With the first, ``reads_sequences = True`` trains on all events of a history in one pass, and the vector of a request is
the state after its last event. It may define more:

    encode_targets(batch, embedded) -> [T, D]     the state of each target of a batch of sequences; [T, K, D] with
                                                  several interests
    encode_items(embedded) -> [C, D]              the vectors of items; by default the sum of the embeddings of an item
    select_interest(u, target) -> [T, D]          which of K vectors predicts a target; by default the nearest

``users``, ``items``, ``states`` and ``loss`` follow from these.

Shapes: R requests, N stored positions of their histories, C candidates, I items, T targets, K interests, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from longrec.errors import ConfigError
from longrec.features.batch import Batch, Column, HistoryBatch, Jagged, Layout
from longrec.features.fields import Field as FieldOf
from longrec.features.fields import Fields
from longrec.models.core.finder import name_of_class
from longrec.models.core.kinds import VectorRetriever
from longrec.models.core.retrieval import RetrievalConfig, retrieval_loss
from longrec.models.core.top import Width
from longrec.nn.embedding import Embedded, Embeddings
from longrec.nn.segments import Segments

_IDS = ("id", "multi_id")


class ItemHistoryConfig(RetrievalConfig):
    """Settings of a retriever over an item history."""

    embedding_dim: Width = Field(64, description="Width of all embeddings and states.")
    init_std: float = Field(0.02, gt=0, description="Standard deviation of the initial embeddings.")
    cosine: bool = Field(
        False, description="Vectors of length 1: scores are cosines, which training divides by the temperature."
    )


class ItemHistoryRetriever(VectorRetriever):
    """A vector retriever over the first history of the schema.

    Attributes:
        reads_requests: True if it reads the features of users and of the context: ``embedded.request``. They have an
            entry per request, and in ``encode_targets`` one per target.
        item_kinds: kinds of the features of items that it reads.
        event_kinds: kinds of the columns of events that it reads.
        history: name of the history.
        read_fields: the fields that it reads.
        embeddings: their tables, all of the width D.
    """

    Config: ClassVar[type[ItemHistoryConfig]] = ItemHistoryConfig
    reads_history = True
    reads_groups = True
    reads_requests: bool = False
    item_kinds: ClassVar[tuple[str, ...]] = _IDS
    event_kinds: ClassVar[tuple[str, ...]] = _IDS

    def __init__(self, config: ItemHistoryConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.width, self.sampling = config.embedding_dim, config.sampling()
        self.history, self.read_fields = self._choose_fields(fields)
        if any(field.side != "item" for field in self.read_fields.features):
            self.sampling = replace(self.sampling, requests=True)
        self.embeddings = Embeddings(self.read_fields, width=self.width, histories=True, std=config.init_std)

    def embed(self, batch: Batch) -> Embedded:
        """Look up all vectors: those of the attribute ``embeddings``."""
        embedded: Embedded = self.embeddings(batch)
        return embedded

    def encode(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "N *K D"]:
        """Return the state after each stored event, from this event and earlier ones: one, or one per interest."""
        raise NotImplementedError(f"{type(self).__name__} reads no sequences in one pass")

    def encode_requests(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "R K D"]:
        """Return the vectors of each request. By default the state after its last event, zero without events."""
        return self.take_last(batch, self.encode(batch, embedded)).unsqueeze(1)

    def encode_targets(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "T *K D"]:
        """Return the state that predicts each target of a batch of sequences. By default that of its position."""
        assert batch.targets is not None
        return self.encode(batch, embedded).index_select(0, batch.targets.state)

    def encode_items(self, embedded: Embedded) -> Float[Tensor, "C D"]:
        """Return the vector of each item: the sum of its embeddings."""
        return add_all(list(embedded.candidate.values()))

    def select_interest(self, u_TKD: Float[Tensor, "T K D"], target_TD: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        """Return the vector that predicts each target. By default the one with the largest inner product with it.

        Args:
            u_TKD: the vectors of the request of each target.
            target_TD: the vector of the target item.
        """
        if u_TKD.shape[1] == 1:
            return u_TKD[:, 0]
        best_T = (u_TKD.detach() @ target_TD.detach().unsqueeze(2)).argmax(1)
        return u_TKD.gather(1, best_T.unsqueeze(2).expand(-1, 1, self.width)).squeeze(1)

    def users(self, batch: Batch) -> Float[Tensor, "R K D"]:
        """Return the vectors of each request, one per interest."""
        return self._finish(self.encode_requests(batch, self.embed_requests(batch)))

    def items(self, columns: Mapping[str, Column]) -> Float[Tensor, "I D"]:
        """Return the vector of every item."""
        own, requests = _divide(self.read_fields)
        items = {field.name: columns[field.name] for field in own}
        events = make_empty(self.read_fields.histories[self.history], items)
        batch = Batch(
            Layout(0, 0),
            make_empty(requests, items),
            items,
            {self.history: HistoryBatch(events, _empty_offsets(items))},
        )
        return self._finish(self.encode_items(self.embed(batch)))

    def states(self, batch: Batch) -> Float[Tensor, "N *K D"]:
        """Return the state after each stored event of the history: one, or one per interest."""
        return self._finish(self.encode(batch, self.embed_requests(batch)))

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the loss of the next items.

        Raises:
            ValueError: if the batch has no targets.
        """
        if batch.targets is None:
            raise ValueError("a retriever needs a batch with targets")
        targets = batch.targets
        embedded = self.embed(batch if targets.requests is None else replace(batch, requests=targets.requests))
        item_CD = self._finish(self.encode_items(embedded))
        if targets.per_position:
            state_TD = self._finish(self.encode_targets(batch, embedded))
        else:
            state_TD = self._finish(self.encode_requests(batch, embedded)).index_select(0, targets.state)
        if state_TD.dim() == 3:
            state_TD = self.select_interest(state_TD, item_CD.index_select(0, targets.item))
        return retrieval_loss(state_TD, item_CD, targets, self.config)

    def embed_requests(self, batch: Batch) -> Embedded:
        """Look up the events, and the features of requests if it reads them, without candidates."""
        items = make_empty(_divide(self.read_fields)[0], batch.histories[self.history].columns)
        return self.embed(replace(batch, candidates={**batch.candidates, **items}))

    def add_events(self, embedded: Embedded) -> Float[Tensor, "N D"]:
        """Return the sum of the embeddings of the columns of each event."""
        return add_all(list(embedded.histories[self.history].values()))

    def segments(self, batch: Batch) -> Segments:
        """Return the requests over the stored positions of the history."""
        return Segments.of(batch, self.history).requests

    def take_last(self, batch: Batch, state_ND: Float[Tensor, "N D"]) -> Float[Tensor, "R D"]:
        """Return the last state of each request, zero without events."""
        segments = self.segments(batch)
        padded = torch.cat([state_ND.new_zeros(1, state_ND.shape[1]), state_ND])
        if segments.shared:
            return padded[-1:]
        stop_R = segments.offsets[1:]
        return padded.index_select(0, stop_R * (stop_R > segments.offsets[:-1]))

    def _finish(self, x_ND: Tensor) -> Tensor:
        """Return vectors as they are compared: of length 1 if scores are cosines. A zero stays zero."""
        return F.normalize(x_ND, dim=-1) if self.config.cosine else x_ND

    def _choose_fields(self, fields: Fields) -> tuple[str, Fields]:
        """Return the name of the first history, and the fields that the model reads.

        Raises:
            ConfigError: without a history, or if its events and the items have no id in common.
        """
        model = name_of_class(type(self))
        if not fields.histories:
            raise ConfigError("schema", [f"histories: {model} reads a history, and the schema has none"])
        name, columns = next(iter(fields.histories.items()))
        if not any(field.kind in _IDS for field in fields.target_columns(name)):
            names = ", ".join(field.name for field in columns)
            fault = f"histories.{name}.features: {model} needs an id that is a feature of the item too, got {names}"
            raise ConfigError("schema", [f"{fault}; add the item to it"])
        read = tuple(
            field
            for field in fields.features
            if (field.kind in self.item_kinds if field.side == "item" else self.reads_requests)
        )
        return name, Fields(read, {name: tuple(field for field in columns if field.kind in self.event_kinds)})


def make_empty(fields: Sequence[FieldOf], like: Mapping[str, Column]) -> dict[str, Column]:
    """Return columns without entries, on the device of others."""
    offsets = _empty_offsets(like)
    ids = offsets[:0].int()
    numbers = ids.float()
    columns: dict[str, Column] = {}
    for field in fields:
        if field.kind == "multi_id":
            columns[field.name] = Jagged(ids, offsets, numbers if field.weighted else None)
        elif field.width:
            columns[field.name] = numbers.unsqueeze(1).expand(-1, field.width)
        else:
            columns[field.name] = ids if field.kind == "id" else numbers
    return columns


def add_all(vectors: Sequence[Tensor]) -> Tensor:
    """Return the sum of tensors of one shape."""
    total = vectors[0]
    for vector in vectors[1:]:
        total = total + vector
    return total


def _divide(fields: Fields) -> tuple[list[FieldOf], list[FieldOf]]:
    """Return the features of items, and those of requests."""
    items = [field for field in fields.features if field.side == "item"]
    return items, [field for field in fields.features if field.side != "item"]


def _empty_offsets(like: Mapping[str, Column]) -> Tensor:
    column = next(iter(like.values()))
    device = column.device if isinstance(column, Tensor) else column.values.device
    return torch.zeros(1, dtype=torch.int64, device=device)
