r"""SURGE: Sequential Recommendation with Graph Neural Networks.

Chang, Gao, Zheng, Hui, Niu, Song, Jin, Li, SIGIR 2021. https://arxiv.org/abs/2106.14226

A history mixes several interests with noise. SURGE connects its similar events, so that each interest becomes a dense
cluster of a graph. An attention over neighbors strengthens events of a core interest that the candidate is about. Then
the graph is pooled to a short sequence, which a recurrence with an attentional gate follows:

    M_ij  = mean_h cos(w_h * x_i, w_h * x_j)                                               (metric, H heads)
    A_ij  = 1 if M_ij is among the largest share of the n^2 pairs, or i = j                (graph)
    s_j   = att_c(x_j, c_j) + att_q(x_j, q)              c = Â Â x,  Â = D^-1/2 A D^-1/2   (cluster and query)
    h_i   = LeakyReLU(W_a sum_j E_ij x_j + x_i)          E_ij = softmax_{j in N(i)}(s_j)   (fusion)
    g_i   = softmax_i(att_c(h_i, (Â Â h)_i) + att_q(h_i, q))
    logit = MLP([fields of the impression, r, q * r, AUGRU(h*, a)])

``pooling: topk``, as in the authors' code, keeps the ``pool_length`` events of largest g as h*, in order of time. r is
their sum of g h, and a = softmax(att(h*, q)). A history of at most ``pool_length`` events is kept as a whole.
``pooling: soft``, as in the paper, makes ``pool_length`` clusters, with three regularizers, means over rows:

    S     = softmax_m(W_p sum_j A_ij h_j)        h* = S^T h,  a = S^T g,  r = sum_i g_i h_i
    L     = |A - S S^T|_F / n                                                              (same mapping)
          + sum_i H(S_i) / n                                                               (single affiliation)
          + |(1 ... n) S - (1 ... m)|_2 / n                                                (relative position)

att(x, q) is an MLP over [W x, q, W x - q, W x * q]. att_c and att_q of fusion and pooling are the same.

Departures from the paper
    - in the paper E_ij = softmax_j(att_c(i) + att_q(j)), where the first term cancels; in the code the terms are
      exchanged, so that the candidate's cancels. Here both are of j, and both count. The code also normalizes each by a
      softmax over the events first, which bounds s by 2 and leaves its LeakyReLU of s without effect: here s is what
      the networks return. Scores of more than 30 below the best of a history count as 30 below it;
    - ``scale_rows`` is the code's: similarities of each event as 0 to 1 before the threshold. The code's minimum
      includes padding, so that other rows change a graph; here it does not, and a constant row is 1;
    - edges are strictly above the similarity of the next rank, as in the code: pairs that tie there are no edges. Rank
      K is a share of all n^2 pairs, where the code excludes those that its scaling makes zero;
    - a threshold has no gradient, so that neither paper nor code learns w. Here A has the gradient of the similarity
      (straight through), for w alone;
    - of events with the same g, up to rounding, the newest are kept, where the code drops all of them;
    - L_M and L_P are divided by n, as L_A is, so that their weights do not depend on the length;
    - ``gate: released`` is the cell of the code, with DIEN's two readings (see dien.py);
    - only the newest ``max_events`` events are read, because the graph grows with their square. The code cuts to 50
      (Taobao) or 250 (Kuaishou). The pooled graph S^T A S is not computed: nothing reads it after the only layer;
    - batch normalization in the top MLP uses running statistics; each history has a graph and weights of its own.

Shapes: B rows, U stored positions, N positions of the rows (see nn/segments.py), K width of an event, Q width of the
candidate's columns, P pooled events or clusters, H hidden units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.top import TopConfig, TopRanker, Width
from longrec.nn import kernels
from longrec.nn.attention import TargetAttention
from longrec.nn.embedding import Embedded, Embeddings
from longrec.nn.interest_graph import InterestGraph
from longrec.nn.linear import Linear
from longrec.nn.mlp import MLP
from longrec.nn.queries import Queries
from longrec.nn.recurrent import GRU
from longrec.nn.segments import Segments
from longrec.nn.selection import Selection, Slots, exceeds, select_all, select_newest, select_top

_SLOPE = 0.2
"""Slope of the LeakyReLU below zero, the default of the authors' framework."""
_LOWEST = -30.0
"""Lowest score of an event against the best of its history. Its exponential does not vanish in float32."""

_STEPS = 2**13
"""Steps of a score that count as different where events are selected."""
_LONGEST_CHECKED = 7
"""Events of a history in the conformance suite. With settings above, no event of so short a history is cut."""


class SURGEConfig(TopConfig):
    """Settings of SURGE."""

    max_events: Width = Field(200, description="Number of newest events that are read. The cost is quadratic in it.")
    edge_share: float = Field(0.5, gt=0, le=1, description="Share of all pairs of events that are edges of the graph.")
    metric_heads: Width = Field(1, description="Heads of the metric.")
    scale_rows: bool = Field(True, description="Scale the similarities of each event to 0 to 1, as the released code.")
    attention: tuple[Width, ...] = Field((80, 40), min_length=1, description="Hidden units of each attention.")
    pooling: Literal["topk", "soft"] = Field("topk", description="Pooling of the released code, or of the paper.")
    pool_length: Width = Field(30, description="Number of events (topk) or clusters (soft) after pooling.")
    hidden: Width = Field(40, description="Units of the recurrence.")
    gate: Literal["paper", "released"] = Field("paper", description="Update gate of AUGRU: the paper's or the code's.")
    mapping_weight: float = Field(1e-3, ge=0, description="Weight of the same-mapping regularizer of soft pooling.")
    affiliation_weight: float = Field(1e-3, ge=0, description="Weight of the single-affiliation regularizer.")
    position_weight: float = Field(1e-3, ge=0, description="Weight of the relative-position regularizer.")


class SURGE(TopRanker):
    """SURGE over every history of the schema."""

    Config = SURGEConfig
    reads_history = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"pooling": "soft", "pool_length": 3, "attention": [8], "hidden": 6, "metric_heads": 2, "mlp": [16]},
        {"pool_length": 2, "max_events": 5, "attention": [8], "hidden": 6, "gate": "released", "batch_norm": False},
        {"edge_share": 0.3, "scale_rows": False, "attention": [8], "hidden": 6, "mlp": [16], "dropout": 0.1},
    )

    def __init__(self, config: SURGEConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        # Clusters have no order in time but by the regularizer.
        self.order_matters = config.pooling == "topk" or config.max_events < _LONGEST_CHECKED
        self.embeddings = Embeddings(fields, config.embedding_dim, histories=True, std=config.init_std)
        width = self.embeddings.widths
        self.queries = Queries(fields, width, "surge", project=False)
        self.paths = nn.ModuleDict()
        top = sum(width[field.name] for field in fields.features)
        for history in fields.histories:
            key = self.queries.key_widths[history]
            self.paths[f"path_{history}"] = _Path(self.queries.query_widths[history], key, config)
            top += key + config.hidden + self.queries.common_widths[history]
        self.set_top(top, config)

    def read(self, batch: Batch, embedded: Embedded) -> list[Tensor]:
        """Return all fields of the impression, and of each history the readout and the final state."""
        inputs, clusters = list(embedded.features.values()), []
        for history in self.fields.histories:
            q_BQ, x_UK, segments = self.queries(batch, embedded, history)
            newest = _read_newest(segments, self.config.max_events)
            nodes = self.path(history).fuse(q_BQ, newest.take(x_UK), newest.rows)
            pooled = self.path(history).pool(q_BQ, nodes)
            inputs += [pooled.readout, pooled.last]
            if self.queries.common_widths[history]:
                inputs.append(q_BQ * pooled.readout[:, : q_BQ.shape[1]])
            if pooled.assigned is not None:
                clusters.append((nodes, pooled.assigned))
        embedded.states["clusters"] = clusters
        return inputs

    def aux_loss(self, batch: Batch, embedded: Embedded) -> Float[Tensor, ""] | float:
        """Return the weighted regularizers of soft pooling, a mean over rows and histories."""
        config = self.config
        weights = config.mapping_weight, config.affiliation_weight, config.position_weight
        clusters: list[tuple[Nodes, Tensor]] = embedded.states["clusters"]
        extra: Tensor | float = 0.0
        for nodes, s_NP in clusters if any(weights) else ():
            each = regularize(nodes.graph, s_NP, nodes.rows.rows)
            extra = extra + sum(weight * one for weight, one in zip(weights, each, strict=True)) / len(clusters)
        return extra

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weight g of every position of every history: ragged ``[N]``, shared ``[B, T]``.

        It is 0 for events that are not read.
        """
        embedded, weights = self.embed(batch), {}
        for history in self.fields.histories:
            q_BQ, x_UK, segments = self.queries(batch, embedded, history)
            newest = _read_newest(segments, self.config.max_events)
            nodes = self.path(history).fuse(q_BQ, newest.take(x_UK), newest.rows)
            weights[history] = segments.by_candidate(newest.restore(nodes.weight_N))
        return weights

    def path(self, history: str) -> _Path:
        """Return the graph, attentions and recurrence of one history."""
        return cast(_Path, self.paths[f"path_{history}"])


class Nodes(NamedTuple):
    """Fused events of the candidates.

    Attributes:
        h_NK: h.
        score_N: the logarithm of g, but for a constant of each row.
        rows: the candidates over their own events.
        graph: the graphs of the histories.
    """

    h_NK: Tensor
    score_N: Tensor
    rows: Segments
    graph: InterestGraph

    @property
    def weight_N(self) -> Tensor:
        """g."""
        return self.rows.softmax(self.score_N)


class Pooled(NamedTuple):
    """What is read of pooled graphs: r ``[B, K]``, the final state ``[B, H]``, and S ``[N, P]`` of soft pooling."""

    readout: Tensor
    last: Tensor
    assigned: Tensor | None = None


class _Path(nn.Module):
    """Graph, fusion, pooling and recurrence of one history.

    Args:
        query, key: Q and K.
    """

    def __init__(self, query: int, key: int, config: SURGEConfig) -> None:
        super().__init__()
        self.share, self.scale, self.length = config.edge_share, config.scale_rows, config.pool_length
        self.metric = nn.Parameter(torch.empty(config.metric_heads, key).uniform_(0.5, 1.5))
        self.cluster = _ClusterAttention(key, config.attention)
        self.query = _QueryAttention(query, key, config.attention)
        self.mix = Linear(key, key, bias=False)
        self.assign = self.follow = None
        if config.pooling == "soft":
            self.assign = Linear(key, config.pool_length, bias=False)
        else:
            self.follow = _QueryAttention(query, key, config.attention)
        self.evolution = GRU(key, config.hidden, "augru" if config.gate == "paper" else "released")

    def fuse(self, q_BQ: Tensor, x_UK: Tensor, segments: Segments) -> Nodes:
        """Return the events after the attention over their neighbors."""
        graph = InterestGraph(x_UK, self.metric, segments, self.share, self.scale)
        cluster_U1 = self.cluster(x_UK, graph.average_two_hops(x_UK, 1)).unsqueeze(1)
        s_N = self.query(q_BQ, x_UK, segments) + segments.keys(cluster_U1).squeeze(1)
        # The graph belongs to the history, the fused events to the candidate.
        rows = Slots(segments, segments.positions) if segments.shared else segments
        h_NK = F.leaky_relu(_add(self.mix(average_neighbors(graph, s_N, x_UK, rows)), x_UK, rows), _SLOPE)
        hops_NK = graph.average_two_hops(h_NK, rows.rows)
        return Nodes(h_NK, self.cluster(h_NK, hops_NK) + self.query(q_BQ, h_NK, rows), rows, graph)

    def pool(self, q_BQ: Tensor, nodes: Nodes) -> Pooled:
        """Return the readout and the final state of the recurrence over pooled events, 0 for an empty history."""
        if self.assign is not None:
            return self._cluster(nodes, self.assign)
        assert self.follow is not None
        # Rounding must not decide between copies of an event, which have different places in time.
        kept = select_top((nodes.score_N.detach().float() * _STEPS).round(), nodes.rows, self.length)
        order_M = order_by_time(kept)
        h_MK, g_M = nodes.h_NK, nodes.weight_N
        if order_M is not None:
            h_MK, g_M = h_MK.index_select(0, order_M), g_M.index_select(0, order_M)
        a_M = kept.rows.softmax(self.follow(q_BQ, h_MK, kept.rows))
        return Pooled(kept.rows.weighted_sum(g_M, h_MK), self.evolution.last_of_each(h_MK, kept.rows, a_M))

    def _cluster(self, nodes: Nodes, assign: Linear) -> Pooled:
        h_NK, g_N, rows, graph = nodes.h_NK, nodes.weight_N, nodes.rows, nodes.graph
        s_NP = assign(graph.add_neighbors(h_NK, rows.rows)).softmax(1)
        pooled_BPK = torch.stack([rows.weighted_sum(s_N, h_NK) for s_N in s_NP.unbind(1)], 1)
        a_BP = rows.sum(s_NP * g_N.unsqueeze(1))
        if rows.shared:
            steps = Segments(rows.offsets, rows.rows, self.length, shared=True)
        else:
            steps = Segments.of_offsets(np.arange(rows.rows + 1) * self.length, h_NK.device)
        last_BH = self.evolution.last_of_each(pooled_BPK.flatten(0, 1), steps, a_BP.flatten())
        return Pooled(rows.weighted_sum(g_N, h_NK), last_BH, s_NP)


class _ClusterAttention(nn.Module):
    """att_c: score of each event against the mean of its neighborhood."""

    def __init__(self, key: int, units: Sequence[int]) -> None:
        super().__init__()
        self.key = Linear(key, key, bias=False)
        # A softmax ignores a constant added to all scores, so a last bias would get no gradient.
        self.score = MLP(4 * key, units, "relu", outputs=1, last_bias=False)

    def forward(self, x_NK: Float[Tensor, "N K"], c_NK: Float[Tensor, "N K"]) -> Float[Tensor, " N"]:
        """Return the score of every event."""
        k_NK = self.key(x_NK)
        s_N: Tensor = self.score(torch.cat([k_NK, c_NK, k_NK - c_NK, k_NK * c_NK], 1)).squeeze(1)
        return s_N


class _QueryAttention(nn.Module):
    """att_q: score of each event against the candidate."""

    def __init__(self, query: int, key: int, units: Sequence[int]) -> None:
        super().__init__()
        self.key = Linear(key, query, bias=False)
        self.unit = TargetAttention(query, query, units, softmax=True)

    def forward(self, q_BQ: Tensor, x_UK: Tensor, segments: Segments) -> Float[Tensor, " N"]:
        """Return the score of every event for the candidate of its row."""
        return self.unit.scores(q_BQ, self.key(x_UK), segments)


def average_neighbors(graph: InterestGraph, s_N: Tensor, x_UK: Tensor, rows: Segments) -> Float[Tensor, "N K"]:
    """Return ``sum_j E_ij x_j`` at every position of the candidates.

    A score belongs to a neighbor alone, so that E is not computed: two sums over neighbors are enough.
    """
    s_N1 = s_N.float().unsqueeze(1)
    top_N1 = rows.expand(rows.max(s_N1.detach()))
    w_N1 = (s_N1 - top_N1).clamp(min=_LOWEST).exp()
    weighted_NK = (_by_row(w_N1, rows) * x_UK).reshape(-1, x_UK.shape[1])
    sums_NX = graph.add_neighbors(torch.cat([weighted_NK, w_N1], 1), rows.rows)
    return sums_NX[:, :-1] / sums_NX[:, -1:]


def order_by_time(kept: Selection) -> Tensor | None:
    """Return int64 ``[M]``: the positions of selected events, oldest first in each row. None: all, in their order."""
    if kept.stored is None:
        return None
    if not kept.source.shared:
        return kept.stored.sort()[0]
    # Slots have the newest event first, and name positions of the history.
    at_BP = kept.stored.reshape(kept.rows.rows, kept.rows.positions).flip(1)
    first_B1 = torch.arange(kept.rows.rows, device=at_BP.device).unsqueeze(1) * kept.source.positions
    return (at_BP + first_B1).reshape(-1)


def regularize(graph: InterestGraph, s_NP: Float[Tensor, "N P"], rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return L_M, L_A and L_P of an assignment to clusters, means over B rows. An empty history has none."""
    number_P = torch.arange(1, s_NP.shape[1] + 1, device=s_NP.device, dtype=torch.float32)
    sums = [s_NP.sum() * 0] * 3
    with kernels.disable_autocast():
        for edges_RTT, real_RT, s_RTP in zip(graph.edges, graph.real, graph.fill(s_NP.float(), rows)):
            s_RTP = s_RTP * real_RT.unsqueeze(2)
            count_R = real_RT.sum(1).clamp(min=1)
            number_T = torch.arange(1, s_RTP.shape[1] + 1, device=s_NP.device, dtype=torch.float32)
            # A slot of padding has an edge to itself.
            gap_RTT = edges_RTT * real_RT.unsqueeze(2) - torch.bmm(s_RTP, s_RTP.transpose(1, 2))
            mapping_R = torch.linalg.vector_norm(gap_RTT.flatten(1), dim=1)
            entropy_R = -(s_RTP * s_RTP.clamp(min=1e-12).log()).sum((1, 2))
            position_R = torch.linalg.vector_norm(torch.matmul(number_T, s_RTP) - number_P, dim=1)
            each = mapping_R, entropy_R, position_R
            sums = [total + (one_R / count_R).sum() / rows for total, one_R in zip(sums, each)]
    return sums[0], sums[1], sums[2]


def _read_newest(segments: Segments, most: int) -> Selection:
    return select_newest(segments, most) if exceeds(segments, most) else select_all(segments)


def _by_row(v_ND: Tensor, rows: Segments) -> Tensor:
    """Return ``[B, T, D]`` when shared, to be combined with the history, which is not repeated."""
    return v_ND.reshape(rows.rows, rows.positions, v_ND.shape[1]) if rows.shared else v_ND


def _add(v_ND: Tensor, x_UD: Tensor, rows: Segments) -> Tensor:
    return (_by_row(v_ND, rows) + x_UD).reshape(-1, v_ND.shape[1])
