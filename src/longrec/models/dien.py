r"""DIEN: Deep Interest Evolution Network for Click-Through Rate Prediction.

Zhou, Mou, Fan, Pi, Bian, Zhou, Zhu, Gai, AAAI 2019. https://arxiv.org/abs/1809.03672

Interests change over time, and only their evolution towards the candidate matters. A first GRU extracts an interest per
step, supervised by the next event. A second GRU follows the interests that the candidate attends to, with its update
gate scaled by the attention:

    h_t = GRU(h_{t-1}, e_t)                                                          (eq. 1 to 4)
    L_aux = -mean_t [log s(h_t, e_{t+1}) + log(1 - s(h_t, ê_{t+1}))]                 (eq. 6)
    a_t = softmax_t(h_t W e_a)                                                       (eq. 9)
    h'_t = (1 - a_t u_t) h'_{t-1} + a_t u_t n_t                                      (eq. 14 to 16, AUGRU)
    logit = MLP([fields of the impression, sum_t e_t, e_a * sum_t e_t, h'_T])        (figure 1)
    L = L_target + alpha L_aux                                                       (eq. 7)

``evolution`` chooses the second recurrence: ``aigru`` scales its input by a, ``agru`` replaces the gate by a.

Departures from the paper
    - ``gate: released`` is what the authors' code computes: its cell writes h' = u h + (1 - u) n, so u keeps the
      state, and scaling that u by 1 - a makes a = 0 an ordinary step, while in the equations a = 0 keeps the state;
    - ``attention: mlp`` is the code's: DIN's activation unit over PReLU(W e_a) and h_t, normalized by a softmax; the
      default is the equation's;
    - s is a network of two sigmoid layers and one output over [h_t, e_{t+1}], as in the code, whose network also
      normalizes over the batch; the paper writes an inner product. ``aux_weight`` is alpha: the code adds 1 times L_aux
      to half the target loss (and its mean includes padding), so 2 here is equivalent without padding;
    - ê is the event of another user's row at a random position of the batch, so sampled by popularity; one that
      equals the positive is skipped. The mean is over steps that have a next one, without padding, and over the
      histories;
    - events may have columns that the candidate lacks. e_a * sum e reads the shared columns, and so does s: elapsed
      time or the action would distinguish the next event from another one without any interest;
    - W e_a has a bias in the bilinear attention too;
    - each history has recurrences of its own; batch normalization in the top MLP uses running statistics.

Shapes: B rows, N positions of the batch's histories, U stored positions (see nn/segments.py), K width of an
event, Q width of the columns that candidate and events share, H hidden units of the recurrences.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.top import TopConfig, TopRanker, Width
from longrec.nn.activation import ActivationName
from longrec.nn.attention import TargetAttention
from longrec.nn.embedding import Embedded, Embeddings
from longrec.nn.linear import Linear, linear
from longrec.nn.mlp import MLP, Layer
from longrec.nn.queries import Queries
from longrec.nn.recurrent import GRU, Update
from longrec.nn.segments import Segments
from longrec.nn.steps import find_followed

_PathStates = tuple[Tensor, Tensor, Segments]
"""Interests, events and segments of one history."""


class DIENConfig(TopConfig):
    """Settings of DIEN."""

    hidden: Width = Field(36, description="Units of both recurrences.")
    evolution: Literal["augru", "agru", "aigru"] = Field("augru", description="The second recurrence.")
    gate: Literal["paper", "released"] = Field("paper", description="Update gate of AUGRU: the paper's or the code's.")
    attention: Literal["bilinear", "mlp"] = Field("bilinear", description="Equation 9, or the released code's network.")
    attention_units: tuple[Width, ...] = Field((80, 40), min_length=1, description="Hidden units of attention: mlp.")
    aux_weight: float = Field(1.0, ge=0, description="Weight of the auxiliary loss; 0 disables it.")
    aux: tuple[Width, ...] = Field((100, 50), min_length=1, description="Hidden units of the auxiliary network.")
    mlp_activation: ActivationName = Field("dice", description="Activation of the top MLP.")


class DIEN(TopRanker):
    """DIEN over every history of the schema."""

    Config = DIENConfig
    reads_history = True
    order_matters = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"gate": "released", "attention": "mlp", "hidden": 12, "aux_weight": 0.0},
        {"evolution": "agru", "hidden": 12, "batch_norm": False, "mlp_activation": "relu"},
        {"evolution": "aigru", "hidden": 12, "dropout": 0.1},
    )

    def __init__(self, config: DIENConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.embeddings = Embeddings(fields, config.embedding_dim, histories=True, std=config.init_std)
        width = self.embeddings.widths
        self.queries = Queries(fields, width, "dien", project=False)
        self.paths = nn.ModuleDict()
        top = sum(width[field.name] for field in fields.features)
        for history in fields.histories:
            key = self.queries.key_widths[history]
            common = self.queries.common_widths[history]
            self.paths[f"path_{history}"] = _Path(self.queries.query_widths[history], key, common or key, config)
            top += key + common + config.hidden
        # The auxiliary loss draws another event for each step of each row.
        self.reads_groups = not config.aux_weight
        self.set_top(top, config)

    def read(self, batch: Batch, embedded: Embedded) -> list[Tensor]:
        """Return all fields of the impression, and of each history the sum of its events and the final interest."""
        inputs, walked = list(embedded.features.values()), {}
        for history in self.fields.histories:
            q_BQ, e_UK, segments = self.queries(batch, embedded, history)
            last_BH, h_UH = cast(_Path, self.paths[f"path_{history}"])(q_BQ, e_UK, segments)
            walked[history] = h_UH, e_UK, segments
            sum_BK = segments.pool(e_UK, "sum")
            inputs += [sum_BK, last_BH]
            if self.queries.common_widths[history]:
                inputs.append(q_BQ * sum_BK[:, : q_BQ.shape[1]])
        embedded.states["interests"] = walked
        return inputs

    def aux_loss(self, batch: Batch, embedded: Embedded) -> Float[Tensor, ""] | float:
        """Return the auxiliary loss of the next events."""
        if not self.config.aux_weight:
            return 0.0
        extra: Tensor | float = 0.0
        walked: dict[str, _PathStates] = embedded.states["interests"]
        for history, (h_NH, e_NK, segments) in walked.items():
            path = cast(_Path, self.paths[f"path_{history}"])
            extra = extra + path.auxiliary(h_NH, e_NK, segments, batch.users)
        return self.config.aux_weight * extra / len(walked)

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """Return the attention weight of every position of every history: ragged ``[N]``, shared ``[B, T]``."""
        embedded, weights = self.embed(batch), {}
        for history in self.fields.histories:
            q_BQ, e_UK, segments = self.queries(batch, embedded, history)
            path = cast(_Path, self.paths[f"path_{history}"])
            w_N = path.attend(q_BQ, path.interest.states(e_UK, segments), segments)
            weights[history] = segments.by_candidate(w_N)
        return weights


class _Path(nn.Module):
    """The two recurrences of one history, the attention between them and the auxiliary network.

    Args:
        query, key: width of the candidate and of an event.
        shared_width: width of the columns that events share with the candidate, the input of the auxiliary network.
    """

    def __init__(self, query: int, key: int, shared_width: int, config: DIENConfig) -> None:
        super().__init__()
        hidden, self.shared_width = config.hidden, shared_width
        self.interest = GRU(key, hidden)
        update: Update = "gru"
        if config.evolution == "agru":
            update = "agru"
        elif config.evolution == "augru":
            update = "augru" if config.gate == "paper" else "released"
        self.evolution, self.scaled = GRU(hidden, hidden, update), config.evolution == "aigru"
        self.query = Linear(query, hidden)
        self.slope = nn.PReLU() if config.attention == "mlp" else None
        self.unit = None
        if config.attention == "mlp":
            self.unit = TargetAttention(hidden, hidden, config.attention_units, "sigmoid", softmax=True)
        self.next = MLP(hidden + shared_width, config.aux, "sigmoid", outputs=1) if config.aux_weight else None

    def attend(self, q_BQ: Tensor, h_UH: Tensor, segments: Segments) -> Tensor:
        """Return the attention weight of each interest, ``[N]``. The weights of a row sum to one."""
        q_BH = self.query(q_BQ)
        if self.unit is not None and self.slope is not None:
            weights: Tensor = self.unit.weights(self.slope(q_BH), h_UH, segments)
            return weights
        return segments.softmax(segments.mul(q_BH, h_UH).sum(1))

    def forward(self, q_BQ: Tensor, e_UK: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
        """Return the final interest ``[B, H]`` and the interests of all steps ``[U, H]``."""
        h_UH = self.interest.states(e_UK, segments)
        a_N = self.attend(q_BQ, h_UH, segments)
        if not self.scaled:
            return self.evolution.last(h_UH, segments, a_N), h_UH
        i_NH = segments.keys(h_UH) * a_N.unsqueeze(1)
        return self.evolution.last_of_each(i_NH, segments), h_UH

    def auxiliary(self, h_NH: Tensor, e_NK: Tensor, segments: Segments, users_B: Tensor | None = None) -> Tensor:
        """Return the cross entropy of the next event against another user's, a mean over steps that have a next one.

        Args:
            users_B: user of each row. By default each row has its own user.
        """
        assert self.next is not None
        row_N, step_M = segments.row, find_followed(segments)
        if not len(step_M):
            return h_NH.sum() * 0 + sum(parameter.sum() for parameter in self.next.parameters()) * 0
        other_M = torch.randint(segments.positions, step_M.shape, device=step_M.device)
        # Steps are all positions but the last. Of those that end a row nothing is counted: they are too few to gather
        # all others, and no step is gathered or scattered.
        other_S = torch.zeros_like(row_N[:-1]).index_copy(0, step_M, other_M)
        follows_S = row_N[1:] == row_N[:-1]
        e_NK = e_NK[:, : self.shared_width]
        user_N = row_N if users_B is None else users_B.index_select(0, row_N)
        other_SK = e_NK.detach().index_select(0, other_S)
        valid_S = follows_S & (user_N.index_select(0, other_S) != user_N[:-1])
        valid_S &= (other_SK != e_NK.detach()[1:]).any(1)
        # The first layer is split: the term of an interest serves both events, and that of an event all of its uses.
        first = cast(Layer, self.next.layers[0])
        w_AH, w_AK = (w.contiguous() for w in torch.split(first.linear.weight, [h_NH.shape[1], e_NK.shape[1]], 1))
        h_SA = linear(h_NH, w_AH, first.linear.bias)[:-1]
        e_NA = linear(e_NK, w_AK)
        good_S, bad_S = (self._judge(h_SA + e_SA) for e_SA in (e_NA[1:], e_NA.index_select(0, other_S)))
        loss = (F.softplus(-good_S.float()) * follows_S).sum() + (F.softplus(bad_S.float()) * valid_S).sum()
        return loss / len(step_M)

    def _judge(self, x_SA: Tensor) -> Tensor:
        """Return the logit of the auxiliary network from the sums of its first layer, ``[S]``."""
        assert self.next is not None
        assert self.next.last is not None
        first, *rest = self.next.layers
        activation = cast(Layer, first).activation
        assert activation is not None
        x_SA = activation(x_SA)
        for layer in rest:
            x_SA = layer(x_SA)
        logit_S: Tensor = self.next.last(x_SA).squeeze(1)
        return logit_S
