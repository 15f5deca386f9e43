r"""DSTN: Deep Spatio-Temporal Neural Networks for Click-Through Rate Prediction.

Ouyang, Zhang, Li, Zou, Xing, Liu, Du, KDD 2019. https://arxiv.org/abs/1906.03776

The click on an ad also depends on the ads above it on the page, on clicked ads and on unclicked ads. Each such set c
becomes one vector, in one of three ways (``fusion``), and an MLP reads the target and these vectors:

    pooling       u_c = sum_i x_ci
    self          u_c = sum_i a_ci x_ci,    a_ci = softmax_i(h^T relu(W x_ci + b))
    interactive   u_c = sum_i a_ci x_ci,    a_ci = exp(h^T relu(W [x_t; x_ci] + b_1) + b_2)
    logit = MLP([x_t; u_1; u_2; ...])

where x_t are all fields of the impression. The interactive weights are not normalized: a set of irrelevant ads
adds almost nothing, and more relevant ads add more. Each set has weights of its own.

Departures from the paper
    - the sets are the histories of the schema, any number of them and of any length, not three of at most five;
    - ads of the same timestamp or request are in no history, so those above the candidate are no set here; rows with
      their own history columns may hold them, and a server uses the same ones for all candidates;
    - an empty or shorter set holds no padded ads: they would receive softmax weight;
    - W [x_t; x_ci] is split, W_t x_t once per row and W_c x_ci once per event of a shared history;
    - the exponent is clamped at 10, in float32: above it one event would dominate, and narrow floats overflow;
    - the MLP is 200-80 with batch normalization by default (the paper: 512-256 without);
    - its final layer starts with a tenth of the usual weights, so that training starts at the base rate of the labels.

Shapes: B rows, N positions of the batch's histories, T positions of one user's, U stored positions, X width of
the target, K width of an event, H hidden units.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.top import EmbeddingConfig, TopRanker, Width
from longrec.nn.activation import ActivationName
from longrec.nn.embedding import Embedded, Embeddings
from longrec.nn.linear import Linear
from longrec.nn.mlp import MLP
from longrec.nn.segments import Segments

Fusion = Literal["interactive", "self", "pooling"]

_LAST_GAIN = 0.1
"""Factor of the initial weights of the final layer. With 1 % of clicks, 1.0 left NE above 1.02 on unseen rows."""

LARGEST = 10.0
"""Largest exponent of an interactive weight."""


class DSTNConfig(EmbeddingConfig):
    """Settings of DSTN."""

    fusion: Fusion = Field("interactive", description="Pooling of the events of a history.")
    attention: Width = Field(128, description="Hidden units of the attention; not used by pooling.")
    mlp: tuple[Width, ...] = Field((200, 80), min_length=1, description="Hidden units of the MLP.")
    activation: ActivationName = Field("relu", description="Activation of the MLP.")
    batch_norm: bool = Field(True, description="Batch normalization in the MLP.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout rate of the MLP.")


class SetFusion(nn.Module):
    """Attention pooling of a set of events.

    Args:
        target: width of the target if it enters the weights (interactive), else 0 (self).
    """

    def __init__(self, target: int, key: int, hidden: int) -> None:
        super().__init__()
        self.of_target = Linear(target, hidden, bias=False) if target else None
        self.of_event = Linear(key, hidden)
        # A softmax is invariant to a constant, so that bias would get no gradient.
        self.score = Linear(hidden, 1, bias=bool(target))

    def weights(self, x_BX: Float[Tensor, "B X"], k_UK: Float[Tensor, "U K"], segments: Segments) -> Tensor:
        """Return the weight of every position ``[N]``. In self attention that of every stored position ``[U]``."""
        if self.of_target is None:
            return segments.requests.softmax(self.score(self.of_event(k_UK, relu=True)).squeeze(1))
        h_NH = segments.add(self.of_target(x_BX), self.of_event(k_UK)).relu()
        return self.score(h_NH).squeeze(1).float().clamp(max=LARGEST).exp()

    def forward(
        self, x_BX: Float[Tensor, "B X"], k_UK: Float[Tensor, "U K"], segments: Segments
    ) -> Float[Tensor, "B K"]:
        """Return ``sum_i a_i x_i`` of each row. 0 for an empty set."""
        w = self.weights(x_BX, k_UK, segments)
        if self.of_target is None:
            return segments.repeat(segments.requests.weighted_sum(w, k_UK))
        return segments.weighted_sum(w, k_UK)

    def explain(self, x_BX: Float[Tensor, "B X"], k_UK: Float[Tensor, "U K"], segments: Segments) -> Tensor:
        """Return the weight of every position: ragged ``[N]``, shared ``[B, T]``."""
        w = self.weights(x_BX, k_UK, segments)
        return segments.repeat_weights(w) if self.of_target is None else segments.by_candidate(w)


class DSTN(TopRanker):
    """DSTN over every history of the schema."""

    Config = DSTNConfig
    reads_history = True
    reads_groups = True
    renamed_parameters: ClassVar[dict[str, str]] = {"mlp": "top"}
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"fusion": "self", "attention": 24, "dropout": 0.1},
        {"fusion": "pooling", "batch_norm": False, "activation": "dice"},
        {"fusion": "interactive", "attention": 8, "batch_norm": False},
    )

    def __init__(self, config: DSTNConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        if not fields.histories:
            raise ConfigError("schema", ["histories: dstn reads a history, and the schema has none"])
        self.embeddings = Embeddings(fields, config.embedding_dim, histories=True, std=config.init_std)
        width = self.embeddings.widths
        target = sum(width[field.name] for field in fields.features)
        keys = [sum(width[field.name] for field in columns) for columns in fields.histories.values()]
        query_width = target if config.fusion == "interactive" else 0
        self.fusions = nn.ModuleList(
            SetFusion(query_width, key, config.attention) for key in keys if config.fusion != "pooling"
        )
        inputs = target + sum(keys)
        self.top = MLP(
            inputs, config.mlp, config.activation, config.dropout, config.batch_norm, outputs=1, last_gain=_LAST_GAIN
        )
        self.interaction_width = self.top.width

    def read(self, batch: Batch, embedded: Embedded) -> list[Tensor]:
        """Return the target and the vector of every set."""
        x_BX, sets = self._gather(batch, embedded)
        if self.config.fusion == "pooling":
            return [x_BX, *(segments.pool(k_UK, "sum") for k_UK, segments in sets)]
        return [x_BX, *(fusion(x_BX, k_UK, segments) for fusion, (k_UK, segments) in zip(self.fusions, sets))]

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weight of every position: ragged ``[N]``, shared ``[B, T]``. Empty for pooling."""
        x_BX, sets = self._gather(batch, self.embed(batch))
        return {
            history: cast(SetFusion, fusion).explain(x_BX, k_UK, segments)
            for history, fusion, (k_UK, segments) in zip(self.fields.histories, self.fusions, sets)
        }

    def _gather(self, batch: Batch, embedded: Embedded) -> tuple[Tensor, list[tuple[Tensor, Segments]]]:
        """Return the target, and the events and segments of each history."""
        sets = [
            (torch.cat(list(columns.values()), 1), Segments.of(batch, history))
            for history, columns in embedded.histories.items()
        ]
        return torch.cat(list(embedded.features.values()), 1), sets
