r"""ComiRec: Controllable Multi-Interest Framework for Recommendation.

Cen, Zhang, Zou, Zhou, Yang, Tang, KDD 2020. https://arxiv.org/abs/2005.09347

A user has several interests, and K vectors V: an item is retrieved by the nearest of them. They are extracted from the
events i by one of two methods:

``sa``, self-attention, with positions p:
    A = softmax_i(W_2 tanh(W_1 (e_i + p_i)))          v_k = sum_i A_ki e_i                           (eq. 7 to 9)

``dr``, dynamic routing (nn/capsules.py) with a matrix for each position and capsule:
    votes W_ik e_i,   b_ik = 0,   softmax over k,   v_k = squash(sum_i softmax_k(b_ik) W_ik e_i)     (eq. 1 to 6)

Only the interest that is nearest to the target learns from it: v = V[:, argmax_k <v_k, e_target>] (eq. 10), and only it
has a gradient. A request scores an item by max_k <v_k, e_i> (eq. 13). ``pipeline/controllable.py`` is the aggregation
that weighs diversity against these scores (eq. 15).

Departures from the paper
    - the paper draws one moment of a random user; here every event of a user is a target in one pass, and each target
      has the interests of the events before it, exactly;
    - the loss is sampled softmax with uniform negatives, and the correction for them. The authors' code draws by rank
      of popularity (``draw: popularity`` is the nearest), 10 negatives for each target of a batch;
    - positions count from the oldest event that a history holds, as in the authors' code, which pads on the right.
      Events from ``positions`` on share the last one, so that fewer positions than events hide which event is new. In
      training they count from the first event of the sequence;
    - the authors train ``dr`` with a learning rate of 5e-3, five times that of ``sa``. Set ``fit.lr``;
    - matrices W_ik begin as the identity plus noise, so that interests are in the space of the items from the first
      step. The authors' code begins with noise alone: ``identity: false``, ``matrix_std: 1``;
    - no layer has a bias: in A it would cancel;
    - an event is the sum of all its id columns, and an item that of all its id features; other columns, features of
      users and further histories are not read. A user without events has zero vectors, and all items tie.

Shapes: R requests, N stored positions of their histories, K interests, J votes, D width, H hidden units.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.item_history import ItemHistoryConfig, ItemHistoryRetriever
from longrec.models.core.top import Width
from longrec.nn.capsules import route, route_prefixes
from longrec.nn.dropout import Dropout
from longrec.nn.embedding import Embedded
from longrec.nn.linear import Linear
from longrec.nn.position_matrices import PositionMatrices
from longrec.nn.prefix_attention import attend_each, attend_each_prefix, count_older
from longrec.nn.segments import Segments


class ComiRecConfig(ItemHistoryConfig):
    """Settings of ComiRec."""

    extractor: Literal["sa", "dr"] = Field("sa", description="Self-attention, or dynamic routing.")
    interests: Width = Field(4, description="Vectors of a user.")
    positions: Width = Field(200, description="Distinct positions, counted from the oldest event.")
    hidden: Width = Field(4, description="Hidden units of `sa`, as a multiple of the width.")
    iterations: Width = Field(3, description="Iterations of `dr`.")
    matrix_std: float = Field(0.1, gt=0, description="Standard deviation of the initial matrices of `dr`.")
    identity: bool = Field(True, description="The initial matrices of `dr` are the identity plus noise.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout rate of the embeddings of events.")


class ComiRec(ItemHistoryRetriever):
    """ComiRec over the first history of the schema."""

    Config = ComiRecConfig
    order_matters = True
    reads_sequences = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"extractor": "dr", "positions": 4, "embedding_dim": 12, "identity": False, "matrix_std": 0.3},
        {"extractor": "dr", "interests": 1, "embedding_dim": 8, "loss": "gbce"},
        {"interests": 1, "positions": 3, "hidden": 1, "loss": "bce", "dropout": 0.1},
    )

    def __init__(self, config: ComiRecConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.interests, self.dropout = config.interests, Dropout(config.dropout)
        make = _SelfAttention if config.extractor == "sa" else _DynamicRouting
        self.extractor = make(self.width, config)

    def encode(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "N K D"]:
        """Return the interests after each stored event of the history."""
        v_NKD: Tensor = self.extractor(self.dropout(self.add_events(embedded)), self.segments(batch), prefixes=True)
        return v_NKD

    def encode_requests(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "R K D"]:
        """Return the interests of each request."""
        v_RKD: Tensor = self.extractor(self.dropout(self.add_events(embedded)), self.segments(batch), prefixes=False)
        return v_RKD


class _SelfAttention(nn.Module):
    """K weighted sums of events. Positions are in the weights alone."""

    def __init__(self, width: int, config: ComiRecConfig) -> None:
        super().__init__()
        self.position_embedding = nn.Parameter(torch.randn(config.positions, width) * config.init_std)
        self.first = Linear(width, config.hidden * width, bias=False)
        self.second = Linear(config.hidden * width, config.interests, bias=False)

    def forward(self, e_ND: Float[Tensor, "N D"], segments: Segments, prefixes: bool) -> Tensor:
        """Return the interests of each row, or of each prefix."""
        at_N = count_older(segments).clamp(max=len(self.position_embedding) - 1)
        h_NH = torch.tanh(self.first(e_ND + self.position_embedding.index_select(0, at_N)))
        return (attend_each_prefix if prefixes else attend_each)(self.second(h_NH), e_ND, segments)


class _DynamicRouting(nn.Module):
    """K capsules, for which events vote by a matrix of their position."""

    def __init__(self, width: int, config: ComiRecConfig) -> None:
        super().__init__()
        self.interests, self.iterations = config.interests, config.iterations
        self.matrices = PositionMatrices(
            config.positions, width, config.interests * width, config.matrix_std, config.identity
        )

    def forward(self, e_ND: Float[Tensor, "N D"], segments: Segments, prefixes: bool) -> Tensor:
        """Return the interests of each row, or of each prefix."""
        votes_NKD = self.matrices(e_ND, segments).unflatten(1, (self.interests, -1))
        logit_NK = torch.zeros_like(votes_NKD[:, :, 0])
        return (route_prefixes if prefixes else route)(votes_NKD, logit_NK, segments, self.iterations)
