r"""Res-embedding: Res-embedding for Deep Learning Based Click-Through Rate Prediction Modeling.

Zhou, Wu, Bian, Yang, Zhu, Gai, DLP-KDD 2019. https://arxiv.org/abs/1906.10304

The closer the vectors of items of one interest are, the better an embedding-based ranker generalizes. So an item's
vector is a center, averaged over co-occurring items, plus a small residual of its own.

    E = W C + R                                                                     (1)
    W_ij = Z_ij / sum_k Z_ik                                                        (2, ``average``)
    W_ij = Z_ij / sqrt(d_i d_j),  d_i = sum_k Z_ik                                  (3, ``gcn``)
    W_ij ~ Z_ij exp(<c_i, c_j> / sqrt(D))                                           (4, ``attention``)
    loss = loss of the base + lambda |R|^2                                          (5)

(the numbers are ours). Z_ij counts how often i and j occur within ``window`` events of each other in the history of
one user. Each item keeps its strongest ``neighbors``. The graph is built before the first step from the training window
alone, and is part of the saved model. The center of an item without neighbors is its own row.

Departures from the paper
    - the base is any ranker with an attribute ``embeddings``; its table of the item is R;
    - an item is its own neighbor too, with ``self_weight`` times its strongest edge; the paper's code is not public,
      and its score in (4) is taken as a scaled inner product;
    - all events of a history are edges of the graph: for a graph of clicks alone, give the model a history of clicks
      (``where``);
    - only the rows of R in a batch are penalized, each of them one time per batch;
    - in evaluation and in an exported program E is one table, computed when training stops, so that a look-up costs
      the same as in the base.

Shapes: B rows, n items, m distinct items of a batch, S slots (an item and its neighbors), N slots in use, D embedding
width, H as in the base.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from longrec.config import Strict
from longrec.errors import ConfigError
from longrec.features.batch import Batch, HistoryBatch, Jagged
from longrec.features.fields import Field as Column
from longrec.features.fields import Fields
from longrec.models.core.over import Over
from longrec.models.core.registry import BaseSection
from longrec.nn import kernels
from longrec.nn.embedding import RESERVED, Embedded, Embeddings, Table
from longrec.nn.segments import Segments

Weighting = Literal["average", "gcn", "attention"]
_BLOCK = 65_536
"""Number of items whose vectors are computed at once."""


class ResEmbeddingConfig(Strict):
    """Settings of Res-embedding."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"neighbours": "neighbors"}

    base: BaseSection = Field({"name": "din"}, description="The ranker whose item vectors are replaced.")
    item: str | None = Field(
        None, description="Id feature of the item; by default that with the most values that a history has too."
    )
    weighting: Weighting = Field("average", description="Weights of the neighbors in the center of an item.")
    window: int = Field(5, ge=1, description="Largest distance of two neighbors, in events.")
    neighbors: int = Field(10, ge=1, description="Number of strongest neighbors per item.")
    self_weight: float = Field(
        1.0, ge=0, description="Weight of an item in its own center, as a multiple of its strongest edge."
    )
    penalty: float = Field(1e-2, ge=0, description="Weight lambda of the squared residuals in the loss.")
    init_std: float = Field(0.01, gt=0, description="Standard deviation of the initial centers.")


class ResEmbedding(Over):
    """A ranker whose items share centers."""

    Config = ResEmbeddingConfig
    reads_history = True
    history_optional = True
    needs_training_window = True
    statistics = ("graph.slots", "graph.strength")
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"base": {"name": "deepfm"}, "weighting": "gcn", "penalty": 0.0},
        {"base": {"name": "pooling", "batch_norm": False}, "weighting": "attention", "neighbors": 3},
    )

    def __init__(self, config: ResEmbeddingConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.item = _item(config.item, fields)
        self.set_base(config.base, fields)
        embeddings = getattr(self.innermost, "embeddings", None)
        if not isinstance(embeddings, Embeddings) or self.item.name not in embeddings.widths:
            fault = f"model.base.name: {config.base['name']} holds no vectors of {self.item.name!r} in embeddings"
            raise ConfigError("config", [fault])
        self.graph = InterestGraph(self.item, embeddings.table(self.item.name).shape, config)
        self.centered = CenteredTable(embeddings.table(self.item.name), self.graph)
        embeddings.tables[self.item.owner] = self.centered

    def fit_statistics(self, chunks: Iterable[Mapping[str, HistoryBatch]]) -> None:
        """Build the graph from the histories of the training window."""
        owner = self.item.owner
        names = [
            (history, field.name)
            for history, columns in self.fields.histories.items()
            for field in columns
            if field.owner == owner and field.kind == "id"
        ]
        events = ((chunk[history], name) for chunk in chunks for history, name in names if history in chunk)
        walks = ((one.columns[name], one.offsets) for one, name in events)
        ids = ((ids.numpy(), offsets.numpy()) for ids, offsets in walks if isinstance(ids, Tensor))
        self.graph.draw(*edges(ids, self.item.rows, self.config.window))

    def aux_loss(self, batch: Batch, embedded: Embedded) -> Float[Tensor, ""] | float:
        """Return the auxiliary loss of the base plus the penalty on the residuals of the batch (equation 5)."""
        return self.base.aux_loss(batch, embedded) + self._penalty(batch)

    def _penalty(self, batch: Batch) -> Tensor | float:
        if not self.config.penalty:
            return 0.0
        ids = self._ids(batch)
        if kernels.choose(ids) == "cuda":
            # The number of distinct items is not known before the device is done, so others get the weight 0.
            ids, _ = ids.sort()
            first = F.pad(ids[1:] != ids[:-1], (1, 0), value=True)
            return self.config.penalty * (F.embedding(ids, self.residuals, sparse=True).square().sum(1) * first).sum()
        r_mD = F.embedding(torch.unique(ids), self.residuals, sparse=True)
        return self.config.penalty * r_mD.square().sum()

    def vectors(self) -> Float[Tensor, "n D"]:
        """Return E of equation 1, without a gradient."""
        return self.centered.build_table()

    @property
    def residuals(self) -> nn.Parameter:
        """R: the item table of the base."""
        return self.innermost.embeddings.table(self.item.name)

    def _ids(self, batch: Batch) -> Int[Tensor, " N"]:
        """Return the ids of all items in a batch, in features and histories."""
        read = self.innermost.embeddings.fields
        ids = [batch.features[f.name] for f in read.features if f.owner == self.item.owner]
        for history, columns in read.histories.items():
            ids += [batch.histories[history].columns[f.name] for f in columns if f.owner == self.item.owner]
        return torch.cat([one.values if isinstance(one, Jagged) else one for one in ids]).long()


class InterestGraph(nn.Module):
    """Centers C, and for every item the slots of its center.

    Attributes:
        slots: int32 ``[n, S]``, the item itself first.
        strength: float32 ``[n, S]``: W of (2) and (3), Z of (4). 0 if a slot is empty.
    """

    renamed_parameters: ClassVar[dict[str, str]] = {"centres": "centers"}
    slots: Tensor
    strength: Tensor

    def __init__(self, item: Column, shape: torch.Size, config: ResEmbeddingConfig) -> None:
        super().__init__()
        self.config, self.name = config, item.name
        self.centers = Embeddings(Fields((replace(item, share=""),), {}), width=shape[1], std=config.init_std)
        slots = torch.arange(shape[0], dtype=torch.int32).unsqueeze(1).repeat(1, 1 + config.neighbors)
        strength = torch.zeros(shape[0], 1 + config.neighbors)
        strength[:, 0] = 1
        self.register_buffer("slots", slots)
        self.register_buffer("strength", strength)

    def draw(self, one: NDArray[np.int64], other: NDArray[np.int64], count: NDArray[np.int64]) -> None:
        """Store the strongest neighbors of every item of a graph, each edge in both directions."""
        n, most = self.slots.shape[0], self.config.neighbors
        order = np.lexsort((other, -count, one))
        one, other, count = one[order], other[order], count[order]
        rank = np.arange(len(one)) - np.searchsorted(one, one)
        kept = rank < most
        one, other, count, rank = one[kept], other[kept], count[kept], rank[kept]
        slots = np.repeat(np.arange(n, dtype=np.int32)[:, None], 1 + most, 1)
        z = np.zeros((n, 1 + most), np.float64)
        slots[one, 1 + rank], z[one, 1 + rank] = other, count
        alone = z[:, 1] == 0
        z[:, 0] = np.where(alone, 1, self.config.self_weight * z[:, 1])
        degree = z.sum(1)
        if self.config.weighting == "average":
            z /= degree[:, None]
        elif self.config.weighting == "gcn":
            z /= np.sqrt(degree[:, None] * degree[slots])
        self.slots.copy_(torch.from_numpy(slots))
        self.strength.copy_(torch.from_numpy(z.astype(np.float32)))

    def forward(self, ids_m: Int[Tensor, " m"]) -> Float[Tensor, "m D"]:
        """Return the centers of some items, reading only slots in use."""
        table = self.centers.table(self.name)
        z_mS = self.strength.index_select(0, ids_m)
        if kernels.choose(z_mS) == "cuda":
            return self._read_all_slots(ids_m, z_mS, table)
        used = z_mS > 0
        lengths = used.sum(1)
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        ids_N, w_N = self.slots.index_select(0, ids_m)[used].long(), z_mS[used]
        c_ND = F.embedding(ids_N, table, sparse=True)
        segments = Segments(offsets, len(ids_m), len(ids_N))
        if self.config.weighting == "attention":
            own_mD = F.embedding(ids_m, table, sparse=True)
            w_N = segments.softmax(segments.mul(own_mD, c_ND).sum(1) * table.shape[1] ** -0.5 + w_N.log())
        return segments.weighted_sum(w_N, c_ND)

    def _read_all_slots(self, ids_m: Tensor, w_mS: Tensor, table: Tensor) -> Tensor:
        """Return the centers with empty slots at the weight 0, whose number is not known before the device is done."""
        slots_mS = self.slots.index_select(0, ids_m).long()
        # An empty slot repeats the next one, so that no other row of the table gets a gradient.
        c_mSD = F.embedding(torch.where(w_mS > 0, slots_mS, slots_mS[:, 1:2]), table, sparse=True)
        if self.config.weighting == "attention":
            own_mD = F.embedding(ids_m, table, sparse=True)
            w_mS = ((own_mD.unsqueeze(1) * c_mSD).sum(2) * table.shape[1] ** -0.5 + w_mS.log()).softmax(1)
        return (w_mS.unsqueeze(2) * c_mSD).sum(1)


class CenteredTable(nn.Module, Table):
    """Lookup of vectors that are a center plus a residual.

    In evaluation, and when a program is traced, the vectors come from one table. It is computed when training stops,
    and again after a change of its inputs.
    """

    pools = False
    table_of_all: Tensor

    def __init__(self, residuals: nn.Parameter, graph: InterestGraph) -> None:
        super().__init__()
        self._sources = residuals, graph  # in a tuple, because both belong to other modules
        self._versions: tuple[int, ...] = ()
        self.register_buffer("table_of_all", torch.zeros(0), persistent=False)

    def train(self, mode: bool = True) -> CenteredTable:
        """Switch between training and evaluation."""
        super().train(mode)
        if mode:
            self.table_of_all, self._versions = self.table_of_all.new_zeros(0), ()
        else:
            self.build_table()
        return self

    @torch.no_grad()
    def build_table(self) -> Float[Tensor, "n D"]:
        """Return E of equation 1 as one table."""
        residuals, graph = self._sources
        inputs = (graph.centers.table(graph.name), residuals, graph.slots, graph.strength)
        versions = tuple(tensor._version for tensor in inputs)
        if versions != self._versions:
            blocks = torch.arange(len(residuals), device=residuals.device).split(_BLOCK)  # type: ignore[no-untyped-call]
            self.table_of_all = residuals + torch.cat([graph(block) for block in blocks])
            self._versions = versions
        return self.table_of_all

    def look_up(self, weight: nn.Parameter, uses: list[Tensor]) -> list[Tensor]:
        """Return the vectors ``[N, D]`` of the ids of each use, int32 ``[N]``."""
        if kernels.is_traced():
            return [F.embedding(values, self.table_of_all) for values in uses]
        ids = torch.cat(uses).long()
        if not self.training and not torch.is_grad_enabled():
            e = F.embedding(ids, self.build_table())
        elif kernels.choose(ids) == "cuda":
            e = F.embedding(ids, weight, sparse=True) + self._sources[1](ids)
        else:
            ids_m, inverse = torch.unique(ids, return_inverse=True)
            residuals = F.embedding(ids_m, weight, sparse=True)
            e = (residuals + self._sources[1](ids_m)).index_select(0, inverse)
        return list(torch.split(e, [len(values) for values in uses]))


def edges(
    walks: Iterable[tuple[NDArray[Any], NDArray[np.int64]]], n: int, window: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the co-occurrence edges of items: two ends and a count per edge, each edge in both directions.

    Args:
        walks: ids ``[N]`` of events, oldest first, and offsets of their rows. Missing and unseen ids have no edges.
        n: number of rows of the table.
        window: largest distance of two events.
    """
    codes, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for events, offsets in walks:
        ids, row = events.astype(np.int64), np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        pairs = []
        for apart in range(1, window + 1):
            one, other = ids[:-apart], ids[apart:]
            near = (row[:-apart] == row[apart:]) & (one != other) & (one >= RESERVED) & (other >= RESERVED)
            pairs += [one[near] * n + other[near], other[near] * n + one[near]]
        fresh, times = np.unique(np.concatenate(pairs), return_counts=True)
        codes, inverse = np.unique(np.concatenate([codes, fresh]), return_inverse=True)
        counts = np.bincount(inverse, np.concatenate([counts, times]), len(codes)).astype(np.int64)
    return codes // n, codes % n, counts


def _item(name: str | None, fields: Fields) -> Column:
    """Return the field of the item.

    Raises:
        ConfigError: if there is no such field, or no field fits the default.
    """
    ids = [field for field in fields.distinct_fields() if field.kind == "id"]
    met = {field.owner for columns in fields.histories.values() for field in columns if field.kind == "id"}
    if name is not None:
        candidates = [field for field in ids if field.owner in met] if fields.histories else ids
        for field in candidates:
            if field.name == name:
                return field
        choices = ", ".join(field.name for field in candidates) or "none"
        where = "an id that a history holds" if fields.histories else "an id of the schema"
        raise ConfigError("schema", [f"model.item: {name!r} is not {where}; ids: {choices}"])
    paired = [field for history in fields.histories for field in fields.target_columns(history) if field.kind == "id"]
    items = paired or [field for field in fields.features if field.side == "item" and field.kind == "id"]
    if items:
        return max(items, key=lambda field: field.rows)
    raise ConfigError("schema", ["features: res_embedding needs an id of the item"])
