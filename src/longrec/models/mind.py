r"""MIND: Multi-Interest Network with Dynamic Routing for Recommendation at Tmall.

Li, Liu, Wu, Xu, Zhao, Huang, Kang, Chen, Li, Lee, CIKM 2019. https://arxiv.org/abs/1904.08030

Events are routed into capsules, one for each interest of a user, and the vector of an interest is a network of its
capsule and the profile of the user (nn/capsules.py):

    votes S e_i,   b_ij ~ N(0, sigma^2),   softmax over j,   u_j = squash(sum_i softmax_j(b_ij) S e_i)   (eq. 4 to 8)
    K' = max(1, min(K, log2 n)) capsules for n events                                                    (eq. 9)
    v_j = MLP([u_j, profile])                                                                            (4.4)
    v = sum_j softmax_j(pow(<v_j, e_target>, p)) v_j          p = 0: the mean, p large: the nearest      (eq. 10)

S is one matrix for all capsules, so that only the random logits b tell capsules apart at the start. The loss compares v
with items, and a request scores an item by max_j <v_j, e_i>.

Departures from the paper
    - b is drawn once for each position and capsule and saved with the model, so that a request always has the same
      interests. The paper draws it anew for each history, and so do the ports: their serving is not deterministic.
      Positions count from the oldest event that a history holds, and events from ``positions`` on share the last one;
    - gradients run through the last iteration alone, as in the ports; the paper leaves it open;
    - S begins as the identity, so that capsules are in the space of the items from the first step; the paper does not
      say how it begins. A random S learns the space of the items slowly;
    - log2 n is rounded down. A request of fewer interests repeats its first one, which changes no maximum;
    - pow(x, p) is sign(x) |x|^p, which is the power for odd p, keeps the order of scores and is never NaN. Without
      ``power`` it is the limit p to infinity, which the paper found best: the nearest interest, as in ComiRec;
    - the last layer of the MLP is linear, so that a vector may have any sign; ``mlp: []`` is that layer alone, and
      ``mlp: null`` takes the capsules as they are, without the profile;
    - the profile is every feature of the user in the schema, and no feature of the context;
    - the paper draws targets; here every event of a user is one, in one pass, and each has the interests of the events
      before it, exactly;
    - an event is the sum of all its id columns, and an item that of all its id features (the paper averages them).

Shapes: R requests, N stored positions of their histories, T targets, K interests, P width of the profile, D width.
"""

from __future__ import annotations

from typing import Any, ClassVar

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
from longrec.nn.mlp import MLP
from longrec.nn.prefix_attention import count_older

_LARGEST = 1e30
"""Bound of a power of a score, which keeps a softmax finite."""


class MINDConfig(ItemHistoryConfig):
    """Settings of MIND."""

    interests: int = Field(4, ge=1, le=16, description="Largest number of vectors of a user.")
    iterations: Width = Field(3, description="Iterations of the routing.")
    positions: Width = Field(200, description="Distinct positions of routing logits, counted from the oldest event.")
    logit_std: float = Field(1.0, gt=0, description="Standard deviation of the routing logits.")
    mlp: tuple[Width, ...] | None = Field((128,), description="Hidden units of the network; null drops it.")
    power: int | None = Field(None, ge=0, le=20, description="Power of the label-aware attention; null is the limit.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout rate of the embeddings of events.")


class MIND(ItemHistoryRetriever):
    """MIND over the first history of the schema."""

    Config = MINDConfig
    order_matters = True
    reads_sequences = True
    reads_requests = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"interests": 2, "positions": 3, "mlp": None, "embedding_dim": 12, "power": 3},
        {"interests": 3, "mlp": [], "power": 0, "loss": "gbce", "embedding_dim": 8},
        {"mlp": [16, 12], "power": 1, "iterations": 1, "loss": "bce", "dropout": 0.1},
    )

    def __init__(self, config: MINDConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.interests, self.dropout = config.interests, Dropout(config.dropout)
        self.bilinear = Linear(self.width, self.width, bias=False)
        nn.init.eye_(self.bilinear.weight)
        self.routing_logit: Tensor
        self.register_buffer("routing_logit", torch.randn(config.positions, config.interests) * config.logit_std)
        profile = sum(field.side != "item" for field in self.read_fields.features) * self.width
        self.mlp = None
        if config.mlp is not None:
            self.mlp = MLP(self.width + profile, config.mlp, outputs=self.width)

    def encode(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "N K D"]:
        """Return the interests after each stored event of the history."""
        profile = [self.segments(batch).expand(x_RD) for x_RD in embedded.request.values()]
        return self._join(self._route(batch, embedded), profile)

    def encode_requests(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "R K D"]:
        """Return the interests of each request."""
        return self._join(self._route(batch, embedded, prefixes=False), list(embedded.request.values()))

    def encode_targets(self, batch: Batch, embedded: Embedded) -> Float[Tensor, "T K D"]:
        """Return the interests that predict each target, of the profile at its time."""
        assert batch.targets is not None
        u_TKD = self._route(batch, embedded).index_select(0, batch.targets.state)
        return self._join(u_TKD, list(embedded.request.values()))

    def select_interest(self, u_TKD: Float[Tensor, "T K D"], target_TD: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        """Return the label-aware attention of each target to the interests."""
        if self.config.power is None:
            return super().select_interest(u_TKD, target_TD)
        score_TK = torch.bmm(u_TKD, target_TD.unsqueeze(2)).squeeze(2)
        power = self.config.power
        # Bounded before the power, so that neither the power nor its gradient is infinite.
        size_TK = score_TK.abs().clamp(max=_LARGEST ** (1 / max(power, 1))).pow(power)
        score_TK = score_TK.sign() * size_TK if power else 0 * score_TK
        # A repeated interest is none of its own.
        repeats_TK = (u_TKD == u_TKD[:, :1]).all(2) & (torch.arange(u_TKD.shape[1], device=u_TKD.device) > 0)
        w_TK = score_TK.masked_fill(repeats_TK, -torch.inf).softmax(1)
        return torch.bmm(w_TK.unsqueeze(1), u_TKD).squeeze(1)

    def _route(self, batch: Batch, embedded: Embedded, prefixes: bool = True) -> Tensor:
        """Return the capsules of each prefix, or of each request."""
        segments = self.segments(batch)
        votes_N1D = self.bilinear(self.dropout(self.add_events(embedded))).unsqueeze(1)
        at_N = count_older(segments).clamp(max=len(self.routing_logit) - 1)
        logit_NK = self.routing_logit.index_select(0, at_N)
        run = route_prefixes if prefixes else route
        return run(votes_N1D, logit_NK, segments, self.config.iterations, adaptive=True)

    def _join(self, u_XKD: Tensor, profile: list[Tensor]) -> Tensor:
        """Return the network of capsules ``[X, K, D]`` and of the features ``[X, D]`` of their user."""
        if self.mlp is None:
            return u_XKD
        repeated = [x_XD.unsqueeze(1).expand(-1, self.interests, -1) for x_XD in profile]
        interests: Tensor = self.mlp(torch.cat([u_XKD, *repeated], 2).flatten(0, 1))
        return interests.view(-1, self.interests, self.width)

    def _choose_fields(self, fields: Fields) -> tuple[str, Fields]:
        """Return the name of the first history, and the fields that the model reads: of the user for the network."""
        sides = ("item",) if self.config.mlp is None else ("item", "user")
        return super()._choose_fields(
            Fields(tuple(field for field in fields.features if field.side in sides), fields.histories)
        )
