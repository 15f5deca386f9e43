r"""TiSSA: A Time Slice Self-Attention Approach for Modeling Sequential User Behaviors.

Lei, Ji, Li, WWW 2019. https://doi.org/10.1145/3308558.3313495

Events of a minute ago and of last week differ in relevance. A recurrence whose gates read elapsed time computes a state
per event. The states of one time slice, longer for older events, are pooled to one vector. Slices attend to earlier
slices, and the candidate attends to all slices:

    r_t, z_t = sigmoid(W_1 x_t + W_2 h_{t-1} + W_3 dt_t + b)      h_t as in a GRU          (Time-GRU)
    l_s = sum_{t in s} softmax_t(w sigmoid(W h_t + b)) h_t                                 (intra-slice)
    g_s = sum_{i < s} softmax_i(w sigmoid(W_c l_i + W_q l_s + b)) W_v l_i, by heads        (inter-slice)
    u_s = F_s l_s + (1 - F_s) g_s            F_s = sigmoid(W_g g_s + W_l l_s + b)          (fusion)
    v = sum_s softmax_s(w sigmoid(W_u u_s + W_e e_a + b)) u_s                              (target attention)
    logit = MLP([fields of the impression, v])

dt is the time since the event before and enters the gates only. The equations go by name here. (TiSASRec, "Time
Interval Aware Self-Attention", is another model.)

Departures from the paper
    - slices end at powers of two of seconds, the buckets of the column ``time_gap``, while the paper's end at powers of
      two of hours: with the default the newest one is the last 2^12 s = 1.14 h, the others
      reach back to 2.28 h, 4.55 h and so on; the oldest has no end. A log in steps needs a smaller ``newest``: its
      slices end at powers of two of steps;
    - a history without ``time_gap`` is split by position: the newest event, the 2 before, the 4 before those;
    - dt is a tenth of the log2 of the seconds, rounded down, from the column ``time_since_previous``, which is no other
      input; a missing value, as of the first event, adds nothing, and an ordinary GRU reads a history without that
      column. ``time_gap`` defines slices and is an input like other columns too;
    - slices are in the order of time, so that i < s means before. An empty slice is no key for any other or for the
      candidate; a slice without earlier ones has g = 0;
    - heads split W_c, W_q and W_v, where the paper has a product of two matrices instead of each of the first two, and
      leaves open what it sums; one more matrix joins the heads;
    - each history has weights of its own.

Shapes: B rows, R requests, N positions of the batch's histories, U stored positions (see nn/segments.py), S slices, D
units of the recurrence, A heads, X inputs of its gates or width of all heads, Q width of the candidate as a query, H
units of the last hidden layer.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from longrec.features.batch import Batch, HistoryBatch
from longrec.features.fields import TIME_GAP, TIME_SINCE_PREVIOUS, Fields
from longrec.models.core.top import TopConfig, TopRanker, Width
from longrec.nn.embedding import Embedded, Embeddings
from longrec.nn.linear import Linear, linear
from longrec.nn.mlp import MLP
from longrec.nn.queries import Queries
from longrec.nn.recurrent import GRU
from longrec.nn.segments import Segments
from longrec.nn.slices import Slices, masked_softmax

_FIRST = 2
"""Id of the first bucket of time. Smaller ids stand for no time."""


class TiSSAConfig(TopConfig):
    """Settings of TiSSA."""

    hidden: Width = Field(64, description="Units of the recurrence.")
    slices: int = Field(9, ge=2, le=40, description="Number of slices: of time, or of positions without `time_gap`.")
    newest: int = Field(12, ge=1, le=39, description="The newest slice reaches back 2 to this many seconds (or steps).")
    heads: Width = Field(8, description="Heads of the attention among slices.")
    mlp: tuple[Width, ...] = Field((128,), min_length=1, description="Hidden units of the top MLP.")


class TiSSA(TopRanker):
    """TiSSA over every history of the schema."""

    Config = TiSSAConfig
    reads_history = True
    order_matters = True
    reads_groups = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"slices": 3, "newest": 20, "hidden": 10, "heads": 3, "dropout": 0.1, "batch_norm": False},
    )

    def __init__(self, config: TiSSAConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        # The time between events is a number in the gates, and has no vector.
        read = {
            name: tuple(field for field in columns if field.name != TIME_SINCE_PREVIOUS)
            for name, columns in fields.histories.items()
        }
        embedded = Fields(fields.features, read)
        self.embeddings = Embeddings(embedded, config.embedding_dim, histories=True, std=config.init_std)
        width = self.embeddings.widths
        self.queries = Queries(embedded, width, "tissa", project=False)
        self.paths = nn.ModuleDict()
        for history, columns in fields.histories.items():
            timed = any(field.name == TIME_SINCE_PREVIOUS for field in columns)
            path = _Path(self.queries.query_widths[history], self.queries.key_widths[history], timed, config)
            self.paths[f"path_{history}"] = path
        self.set_top(sum(width[field.name] for field in fields.features) + config.hidden * len(self.paths), config)

    def read(self, batch: Batch, embedded: Embedded) -> list[Tensor]:
        """Return all fields of the impression, and the vector v of each history."""
        read = [self._read(batch, embedded, history)[0] for history in self.fields.histories]
        return [*embedded.features.values(), *read]

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weight of an event's slice times the weight of the event in it: ragged ``[N]``, shared ``[B, T]``.

        Contributions of earlier slices to a slice count as its own.
        """
        embedded, weights = self.embed(batch), {}
        for history in self.fields.histories:
            _, w_BS, share_U, slices = self._read(batch, embedded, history)
            weights[history] = slices.weigh_events(w_BS, share_U)
        return weights

    def _read(self, batch: Batch, embedded: Embedded, history: str) -> tuple[Tensor, Tensor, Tensor, Slices]:
        """Return the result of the path of one history."""
        path = cast(_Path, self.paths[f"path_{history}"])
        return path(*self.queries(batch, embedded, history), batch.histories[history])


class _Path(nn.Module):
    """Recurrence, slices and attentions of one history."""

    def __init__(self, query: int, key: int, timed: bool, config: TiSSAConfig) -> None:
        super().__init__()
        width, self.slices, self.newest = config.hidden, config.slices, config.newest
        self.recurrence = GRU(key, width)
        self.gates = Linear(1, 2 * width, bias=False) if timed else None
        # A softmax is invariant to a constant, so last biases would get no gradient.
        self.event = MLP(width, [width], "sigmoid", outputs=1, last_bias=False)
        self.among = _Among(width, config.heads)
        self.fusion = Linear(2 * width, width)
        self.of_slice, self.of_candidate = Linear(width, width), Linear(query, width, bias=False)
        self.target = Linear(width, 1, bias=False)

    def forward(
        self, q_BQ: Tensor, e_UK: Tensor, segments: Segments, events: HistoryBatch
    ) -> tuple[Tensor, Tensor, Tensor, Slices]:
        """Return v ``[B, D]``, the weights of slices ``[B, S]``, those of events in slices ``[U]``, and the slices."""
        h_UD = self.states(e_UK, segments, events)
        slices = Slices(self.slice_numbers(segments.on_host, events.on_host), self.slices, segments)
        l_RSD, share_U = slices.pool(self.event(h_UD).squeeze(1), h_UD)
        u_RSD = self.fuse(l_RSD, self.among(l_RSD, slices.filled_RS))
        of_slice_RSD = self.of_slice(u_RSD.flatten(0, 1)).view_as(u_RSD)
        hidden_BSD = (segments.broadcast(of_slice_RSD) + self.of_candidate(q_BQ).unsqueeze(1)).sigmoid()
        s_BS = self.target(hidden_BSD.flatten(0, 1)).view(hidden_BSD.shape[:2])
        w_BS = masked_softmax(s_BS, segments.broadcast(slices.filled_RS), 1)
        return slices.weighted_sum(w_BS, u_RSD), w_BS, share_U, slices

    def states(self, e_UK: Tensor, segments: Segments, events: HistoryBatch) -> Tensor:
        """Return h ``[U, D]``."""
        if self.gates is None:
            return self.recurrence.states(e_UK, segments)
        ids_U = events.columns[TIME_SINCE_PREVIOUS]
        assert isinstance(ids_U, Tensor)
        # Scaled to the size of other inputs.
        dt_U1 = 0.1 * (ids_U - _FIRST).clamp(min=0).to(e_UK.dtype).unsqueeze(1)
        return self.recurrence.states(e_UK, segments, self.gates(dt_U1))

    def slice_numbers(self, segments: Segments, events: HistoryBatch) -> Tensor:
        """Return the slice number of every event, int64 ``[U]``, 0 for the oldest slice."""
        if TIME_GAP in events.columns:
            ids_U = events.columns[TIME_GAP]
            assert isinstance(ids_U, Tensor)
            back_U = ids_U.long() - (_FIRST + self.newest - 1)
        else:
            rank_U = segments.count_newer() + 1  # 1 is the newest
            powers_S = 2 ** torch.arange(1, self.slices, device=rank_U.device)
            back_U = (rank_U.unsqueeze(1) >= powers_S).long().sum(1)
        return self.slices - 1 - back_U.clamp(0, self.slices - 1)

    def fuse(self, l_RSD: Tensor, g_RSD: Tensor) -> Tensor:
        """Return u ``[R, S, D]``."""
        both = torch.cat([g_RSD, l_RSD], 2)
        f_RSD = self.fusion(both.flatten(0, 1)).view_as(l_RSD).sigmoid()
        return f_RSD * l_RSD + (1 - f_RSD) * g_RSD


class _Among(nn.Module):
    """Inter-slice attention to earlier slices."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, inner = heads, heads * -(-width // heads)
        self.bias = nn.Parameter(torch.zeros(inner))
        self.inner, self.outer = Linear(width, 3 * inner, bias=False), Linear(inner, width, bias=False)
        self.score = nn.Parameter(torch.empty(heads, inner // heads).uniform_(-1, 1) * (heads / inner) ** 0.5)

    def forward(self, l_RSD: Tensor, real_RS: Tensor) -> Tensor:
        """Return g ``[R, S, D]``. 0 for a slice without earlier ones."""
        rows, slices, width = l_RSD.shape
        inner = self.inner(l_RSD.reshape(rows * slices, width)).view(rows, slices, 3, -1)
        c_RSX, q_RSX, v_RSX = inner.unbind(2)
        hidden_RSSX = ((q_RSX + self.bias).unsqueeze(2) + c_RSX.unsqueeze(1)).sigmoid()  # [R, to, from, X]
        # A head reads its slice of X: one product with zeros elsewhere, cheaper than one product per head.
        own_AA = torch.eye(self.heads, device=l_RSD.device)
        w_XA = (self.score.unsqueeze(2) * own_AA.unsqueeze(1)).flatten(0, 1)
        s_RSSA = linear(hidden_RSSX.flatten(0, 2), w_XA.t()).view(rows, slices, slices, self.heads)
        index_S = torch.arange(slices, device=real_RS.device)
        before_RSS1 = ((index_S < index_S.unsqueeze(1)) & real_RS.unsqueeze(1)).unsqueeze(3)
        w_RSSA = masked_softmax(s_RSSA, before_RSS1, 2)
        v_RASd = v_RSX.view(rows, slices, self.heads, -1).transpose(1, 2)
        g_RASd = torch.matmul(w_RSSA.permute(0, 3, 1, 2), v_RASd.to(w_RSSA.dtype))
        g_RSX = g_RASd.transpose(1, 2).flatten(2)
        g_RSD: Tensor = self.outer(g_RSX.flatten(0, 1)).view(rows, slices, width)
        return g_RSD
