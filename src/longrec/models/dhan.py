r"""DHAN: Deep Interest with Hierarchical Attention Network for Click-Through Rate Prediction.

Xu, He, Tan, Li, Lang, Guo, SIGIR 2020. https://arxiv.org/abs/2005.12981

Interests form a hierarchy: many items, fewer categories. A first attention weighs the items. Each category is the mean
of its items by these weights, and a second attention weighs the categories:

    w_t = softmax_t(a(e_t, e_a))                                            (items; a is DIN's activation unit)
    c_l = sum_{t in l} w_t e_t / sum_{t in l} w_t                           (each category l)
    x   = sum_l softmax_l(a'(c_l, e_a)) c_l                                 (categories)
    i   = sum_t w_t e_t                                                     (``base: din``)
    i   = AUGRU(GRU(e_1 ... e_T), w)                                        (``base: dien``)
    logit = MLP([fields of the impression, x, i])

A category counts once, however many items it has.

Departures from the paper
    - only the categories of a history are computed, so that an absent one has no weight, and the denominator needs
      no epsilon;
    - an item whose category is missing or unseen is a category of its own;
    - the attribute that makes the hierarchy is the column ``group``; by default the first id column that events and
      candidate share other than the item, else the item. In a history without one (instance tokens) each event is
      a group;
    - ``base: dien`` uses the weights of the items as its attention, without auxiliary loss;
    - the official code normalizes layers over the whole batch, with statistics that exclude its negatives; here the
      top MLP has batch normalization with running statistics, and the attention none;
    - columns of events that the candidate lacks enter the keys and the pooled vector, as in din.

Shapes: B rows, N positions of the batch's histories, U stored positions (see nn/segments.py), Q width of the
query, K width of an event, M categories of all rows (see nn/groups.py), H units of the last hidden
layer.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.top import TopConfig, TopRanker, Width
from longrec.nn.activation import ActivationName
from longrec.nn.attention import TargetAttention
from longrec.nn.embedding import Embedded, Embeddings
from longrec.nn.groups import Groups, choose_group_columns
from longrec.nn.queries import Queries
from longrec.nn.recurrent import GRU
from longrec.nn.segments import Segments


class DHANConfig(TopConfig):
    """Settings of DHAN."""

    group: str | None = Field(None, description="Id column of the groups; see the docstring for the default.")
    base: Literal["din", "dien"] = Field("din", description="Second representation of the history.")
    hidden: Width = Field(36, description="Units of both recurrences of base: dien.")
    attention: tuple[Width, ...] = Field((80, 40), min_length=1, description="Hidden units of the attention on items.")
    group_attention: tuple[Width, ...] = Field(
        (80, 40), min_length=1, description="Hidden units of the attention on groups."
    )
    activation: ActivationName = Field("relu", description="Activation inside both attentions.")


class DHAN(TopRanker):
    """DHAN over every history of the schema."""

    Config = DHANConfig
    reads_history = True
    reads_groups = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"base": "dien", "hidden": 8, "attention": [8], "group_attention": [8, 4], "mlp": [32]},
        {"activation": "dice", "attention": [8, 4], "group_attention": [8], "mlp_activation": "dice", "dropout": 0.1},
    )

    def __init__(self, config: DHANConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.order_matters = config.base == "dien"
        self.embeddings = Embeddings(fields, config.embedding_dim, histories=True, std=config.init_std)
        width = self.embeddings.widths
        self.queries = Queries(fields, width, "dhan")
        self.columns = choose_group_columns(fields, config.group, "model.group")
        self.paths = nn.ModuleDict()
        top = sum(width[field.name] for field in fields.features)
        for history in fields.histories:
            path = _Path(self.queries.query_widths[history], self.queries.key_widths[history], config)
            self.paths[f"path_{history}"] = path
            top += path.width
        self.set_top(top, config)

    def read(self, batch: Batch, embedded: Embedded) -> list[Tensor]:
        """Return all fields of the impression, and x and i of each history."""
        inputs = list(embedded.features.values())
        for history, path in zip(self.fields.histories, self.paths.values()):
            q_BQ, k_UK, segments = self.queries(batch, embedded, history)
            inputs.append(path(q_BQ, k_UK, segments, self._groups(batch, history, segments)))
        return inputs

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weight of every position in x: ragged ``[N]``, shared ``[B, T]``. Those of a row sum to one."""
        embedded, weights = self.embed(batch), {}
        for history in self.fields.histories:
            q_BQ, k_UK, segments = self.queries(batch, embedded, history)
            path = cast(_Path, self.paths[f"path_{history}"])
            w_N = path.weights(q_BQ, k_UK, segments, self._groups(batch, history, segments))
            weights[history] = segments.by_candidate(w_N)
        return weights

    def _groups(self, batch: Batch, history: str, segments: Segments) -> Groups | None:
        column = self.columns[history]
        if column is None:
            return None
        # The weights of items differ per candidate, and so do the means of their groups.
        ids_N, _ = segments.on_host.flatten(cast(Tensor, batch.histories[history].on_host.columns[column]))
        return Groups(ids_N, segments.flat)


class _Path(nn.Module):
    """The hierarchy of one history.

    Attributes:
        width: of x and i together.
    """

    def __init__(self, query: int, key: int, config: DHANConfig) -> None:
        super().__init__()
        self.items = TargetAttention(query, key, config.attention, config.activation, softmax=True)
        self.categories = TargetAttention(query, key, config.group_attention, config.activation, softmax=True)
        self.interest = self.evolution = None
        self.width = 2 * key
        if config.base == "dien":
            self.interest, self.evolution = GRU(key, config.hidden), GRU(config.hidden, config.hidden, "augru")
            self.width = key + config.hidden

    def forward(
        self, q_BQ: Float[Tensor, "B Q"], k_UK: Float[Tensor, "U K"], segments: Segments, groups: Groups | None
    ) -> Float[Tensor, "B X"]:
        """Return ``[x, i]`` of each row. 0 for an empty history."""
        k_NK, flat = segments.flatten(k_UK)
        w_N = self.items.weights(q_BQ, k_NK, flat)
        c_MK, over = (k_NK, flat) if groups is None else groups.means(groups.shares(w_N), k_NK)
        x_BK = self.categories(q_BQ, c_MK, over)
        if self.interest is None or self.evolution is None:
            return torch.cat([x_BK, flat.weighted_sum(w_N, k_NK)], 1)
        return torch.cat([x_BK, self.evolution.last(self.interest.states(k_UK, segments), segments, w_N)], 1)

    def weights(self, q_BQ: Tensor, k_UK: Tensor, segments: Segments, groups: Groups | None) -> Tensor:
        """Return the weight of every position in x, ``[N]``."""
        k_NK, flat = segments.flatten(k_UK)
        if groups is None:
            return self.categories.weights(q_BQ, k_NK, flat)
        share_N = groups.shares(self.items.weights(q_BQ, k_NK, flat))
        share_M = self.categories.weights(q_BQ, *groups.means(share_N, k_NK))
        return share_N * groups.whole(share_M)
