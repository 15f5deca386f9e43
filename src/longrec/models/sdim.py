r"""SDIM: Sampling Is All You Need on Modeling Long-Term User Behaviors for CTR Prediction.

Cao, Zhou, Feng, Huang, Xiao, Chen, Chen, CIKM 2022. https://arxiv.org/abs/2205.10249

Attention by collisions of hashes: events in the candidate's buckets are added up, and nothing is scored. Buckets do not
depend on the candidate, so they are computed once per user, and a candidate only reads those that it falls into:

    h(x)   = [x r_1 > 0, ..., x r_m > 0]                    with fixed random directions r             (SimHash)
    sig_g  = the g-th group of tau bits of h                                                          (m / tau groups)
    o_g    = l2( sum of the e_j with sig_g(e_j) = sig_g(v) )                       l2(x) = x / |x|, l2(0) = 0
    u      = (tau / m) sum_g o_g
    u'     = MultiHead(v, the newest events)                                                          (target attention)
    logit  = MLP([fields of the impression, u, u'])

for the candidate v. An event at an angle a to v is in the bucket of v with probability (1 - a / pi)^tau, which is a
smooth attention. Hashes have no gradient, events have that of the sums.

Departures from the paper
    - sig reads the columns that candidate and events share, so that an event with the same values is always in the
      bucket, while the sums are over all columns of an event;
    - m is given as ``groups`` times ``bits``, tau;
    - directions are dense, not those of a fast Hadamard transform: with a few columns the product is as fast;
    - the long-term branch reads all events, the newest ones too;
    - buckets are stored with the user by a server that keeps states (``export --states``), else computed with each
      request. A state also has the newest events. What a request reads of it is normalized then;
    - each history has directions and attention of its own; for a history of instance tokens, which shares no column
      with the candidate, v is a learned projection of all fields of the candidate, as wide as the keys. It learns by
      the short-term branch alone, so that branch cannot be left out.

Shapes: B rows, N history positions of the batch, T positions of a history shared by all rows, U stored positions
(nn/segments.py), G groups, C buckets of a group, X = C G, P pairs of a position and a group whose bucket is the
candidate's, or positions of the events of a user, W width of a state, R newest events of it, E = K + 1, Q
width of the query, K width of an event, H units of the last hidden layer.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from longrec.features.batch import Batch, HistoryBatch
from longrec.features.fields import Fields
from longrec.models.core.stateful import StatefulRanker
from longrec.models.core.top import TopConfig, Width
from longrec.nn import kernels, lookup
from longrec.nn.chosen import Chosen, choose_newest, gather_each
from longrec.nn.embedding import Embedded, Embeddings
from longrec.nn.long_rows import map_blocks
from longrec.nn.queries import Queries
from longrec.nn.segments import Segments
from longrec.nn.simhash import SimHash, compute_codes, find_members
from longrec.nn.target_heads import TargetHeads

_LONGEST_CHECKED = 7
"""Events of a history in the conformance suite. With settings above, order has no effect in so short a history."""
_SHORTEST = 1e-6
"""Length below which a sum has no direction. Its normalization is 0."""


class SDIMConfig(TopConfig):
    """Settings of SDIM."""

    groups: Width = Field(16, description="Number of groups of bits, each with buckets of its own.")
    bits: int = Field(3, ge=1, le=8, description="Bits of a group, which number its buckets.")
    recent: Width = Field(50, description="Number of newest events of the short-term branch.")
    width: Width = Field(64, description="Width of the short-term branch's result.")
    heads: Width = Field(4, description="Heads of the short-term branch.")


class SDIM(StatefulRanker):
    """SDIM over every history of the schema."""

    Config = SDIMConfig
    events_per_candidate = False
    updates_chunks = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"groups": 5, "bits": 2, "recent": 2, "width": 10, "heads": 3, "mlp": [32]},
        {"groups": 2, "bits": 1, "recent": 3, "width": 8, "heads": 1, "batch_norm": False},
    )

    def __init__(self, config: SDIMConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.order_matters = config.recent < _LONGEST_CHECKED
        self.embeddings = Embeddings(fields, config.embedding_dim, histories=True, std=config.init_std, joined=True)
        width = self.embeddings.widths
        self.queries = Queries(fields, width, "sdim")
        self.paths = nn.ModuleDict()
        top = sum(width[field.name] for field in fields.features)
        for history in fields.histories:
            q, k = self.queries.query_widths[history], self.queries.key_widths[history]
            self.paths[f"path_{history}"] = _Path(q, k, config)
            top += k + config.width
        self.set_top(top, config)

    def read(self, batch: Batch, embedded: Embedded) -> list[Tensor]:
        """Return all fields of the impression, and u and u' of each history."""
        inputs = list(embedded.features.values())
        for history in self.fields.histories:
            q_BQ, k_UK, segments = self.queries(batch, embedded, history)
            path, start_1W = self._path(history), batch.histories[history].start
            inputs += path(q_BQ, k_UK, segments) if start_1W is None else path.go_on(q_BQ, k_UK, segments, start_1W)
        return inputs

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """Return the share of groups in which an event is in the candidate's bucket: ragged ``[N]``, shared ``[B, T]``.

        It estimates the attention ``(1 - angle / pi)^tau``.
        """
        embedded, weights = self.embed(batch), {}
        for history in self.fields.histories:
            q_BQ, k_UK, segments = self.queries(batch, embedded, history)
            weights[history] = segments.by_candidate(self._path(history).long.match(q_BQ, k_UK, segments))
        return weights

    def start_state(self, history: str) -> Float[Tensor, " W"]:
        """Return the packed state of a user without events."""
        return torch.zeros(self._path(history).state_width)

    def update_states(
        self,
        history: str,
        start_BW: Float[Tensor, "B W"],
        events: HistoryBatch,
        positions_BP: Int64[Tensor, "B P"] | None = None,
    ) -> Float[Tensor, "B W"]:
        """Return the packed states of B users after events of each, see ``StatefulRanker``."""
        assert positions_BP is not None
        vectors = self.embeddings.look_up_events(history, events)
        k_NK = self.queries.join_keys(vectors, history)
        return self._path(history).update(start_BW, k_NK, positions_BP)

    def _path(self, history: str) -> _Path:
        return cast(_Path, self.paths[f"path_{history}"])


class _Path(nn.Module):
    """Both branches of one history.

    Its state is the sums of all buckets ``[X, K]``, and the newest events ``[R, E]``, the newest one last, each with a
    mark that there is one.

    Attributes:
        state_width: W.
    """

    def __init__(self, query: int, key: int, config: SDIMConfig) -> None:
        super().__init__()
        self.recent, self.key = config.recent, key
        self.sums = config.groups * 2**config.bits * key
        self.state_width = self.sums + config.recent * (key + 1)
        self.long = Buckets(query, config.groups, config.bits)
        self.short = TargetHeads(query, key, config.width, config.heads)

    def forward(self, q_BQ: Tensor, k_UK: Tensor, segments: Segments) -> list[Tensor]:
        """Return u and u'."""
        newest = choose_newest(segments, self.recent)
        (newest_MK,) = gather_each(k_UK, [newest])
        return [self.long(q_BQ, k_UK, segments), self.short(q_BQ, newest_MK, newest)]

    def go_on(self, q_BQ: Tensor, k_TK: Tensor, segments: Segments, start_1W: Float[Tensor, "1 W"]) -> list[Tensor]:
        """Return the same for a shared history that follows a state."""
        assert segments.shared, "a state is read by the candidates of one request"
        with kernels.disable_autocast():
            (sum_XK,), (newest_RE,) = self._unpack(start_1W)
            u_BK = self.long.read_table(q_BQ, sum_XK + self.long.sum_buckets(k_TK))
        every_AE = torch.cat([newest_RE, mark(k_TK)])
        newest_R = torch.arange(self.recent, device=k_TK.device) + k_TK.shape[0]
        newest_RE = every_AE.index_select(0, newest_R)
        rows = Segments(segments.offsets, segments.rows, self.recent, shared=True)
        chosen = Chosen(rows, newest_R, real_M=newest_RE[:, self.key] > 0)
        return [u_BK, self.short(q_BQ, newest_RE[:, : self.key], chosen)]

    def update(self, start_BW: Tensor, k_NK: Tensor, positions_BP: Tensor) -> Float[Tensor, "B W"]:
        """Return the states after the events at the positions of each user, -1 after the last."""
        users, there_BP = positions_BP.shape[0], (positions_BP >= 0)
        at_O = positions_BP.clamp(min=0).flatten()
        k_BPE = (mark(k_NK).index_select(0, at_O) * there_BP.flatten().unsqueeze(1)).view(*positions_BP.shape, -1)
        member_XBP = self.long.find_members(k_NK).float().index_select(1, at_O).view(-1, *positions_BP.shape)
        sum_BXK, newest_BRE = self._unpack(start_BW)
        sum_BXK = sum_BXK + torch.matmul(member_XBP.transpose(0, 1), k_BPE[:, :, : self.key])
        every_BAE = torch.cat([newest_BRE, k_BPE], 1)
        first_B1 = torch.arange(users, device=at_O.device).unsqueeze(1) * every_BAE.shape[1]
        newest_BR = first_B1 + there_BP.sum(1, keepdim=True) + torch.arange(self.recent, device=at_O.device)
        newest_BRE = every_BAE.flatten(0, 1).index_select(0, newest_BR.flatten()).view(users, self.recent, -1)
        return torch.cat([sum_BXK.flatten(1), newest_BRE.flatten(1)], 1)

    def _unpack(self, state_BW: Tensor) -> tuple[Float[Tensor, "B X K"], Float[Tensor, "B R E"]]:
        users = state_BW.shape[0]
        sum_BXK = state_BW[:, : self.sums].reshape(users, -1, self.key)
        return sum_BXK, state_BW[:, self.sums :].reshape(users, self.recent, self.key + 1)


def mark(k_NK: Float[Tensor, "N K"]) -> Float[Tensor, "N E"]:
    """Return events with a mark that tells them from the empty entries of a state."""
    return torch.cat([k_NK, torch.ones_like(k_NK[:, :1])], 1)


class Buckets(nn.Module):
    """Events in the candidate's buckets, added up and normalized in each group, and averaged over groups.

    Args:
        query: Q. The first Q columns of an event are hashed.
        groups: G.
        bits: tau. With 0 every event is in the only bucket of each group.
    """

    def __init__(self, query: int, groups: int, bits: int) -> None:
        super().__init__()
        self.query, self.groups, self.bits = query, groups, bits
        self.hash = SimHash(query, groups * bits)

    def codes(self, x_NQ: Tensor) -> Tensor:
        """Return the bucket of each vector in each group, int32 ``[N, G]``."""
        return map_blocks(lambda x_XQ: compute_codes(self.hash(x_XQ), self.groups), x_NQ)

    def match(self, q_BQ: Tensor, k_UK: Tensor, segments: Segments) -> Tensor:
        """Return the share of groups in which a position is in the candidate's bucket, ``[N]``."""
        code_BG, code_UG = self.codes(q_BQ), self.codes(k_UK[:, : self.query])
        if segments.shared:
            return (code_BG.unsqueeze(1) == code_UG.unsqueeze(0)).float().mean(2).flatten()
        code_NG, flat = segments.flatten(code_UG)
        return (code_NG == code_BG.index_select(0, flat.row)).float().mean(1)

    def forward(self, q_BQ: Tensor, k_UK: Tensor, segments: Segments) -> Tensor:
        """Return u, ``[B, K]``."""
        with kernels.disable_autocast():
            if segments.shared:
                return self.read_table(q_BQ, self.sum_buckets(k_UK))
            code_BG, code_UG = self.codes(q_BQ), self.codes(k_UK[:, : self.query])
            code_NG, _ = segments.flatten(code_UG)
            k_NK, flat = segments.flatten(k_UK)
            match_GN = code_NG.t() == code_BG.index_select(0, flat.row).t()
            return normalize(_sum_matches(match_GN, k_NK, flat)).mean(0)

    def sum_buckets(self, k_TK: Tensor) -> Tensor:
        """Return the sum of each bucket of one history, ``[C G, K]``.

        The sums are a product with the indicators of all buckets, which every runtime computes fast.
        """
        return self.find_members(k_TK).to(k_TK.dtype) @ k_TK

    def find_members(self, k_NK: Tensor) -> Bool[Tensor, "X N"]:
        """Return which events are in each bucket, the number of the group last."""
        return find_members(self.hash.of_columns(k_NK[:, : self.query]), self.groups)

    def read_table(self, q_BQ: Tensor, sum_XK: Tensor) -> Float[Tensor, "B K"]:
        """Return u from the sums of all buckets. Each is normalized once, and a candidate averages some of them."""
        code_BG = compute_codes(self.hash.of_columns(q_BQ).t(), self.groups)
        bucket_BG = code_BG * self.groups + torch.arange(self.groups, device=code_BG.device)
        return F.embedding(bucket_BG, normalize(sum_XK)).mean(1)


def normalize(x: Tensor) -> Tensor:
    """Return vectors of length 1 in the direction of those along the last dimension, and 0 for those without one."""
    square = x.square().sum(-1, keepdim=True)
    there = square > _SHORTEST**2
    return x * torch.where(there, square, 1).rsqrt() * there


def _sum_matches(match_GN: Tensor, k_NK: Tensor, segments: Segments) -> Tensor:
    """Return the sum of the positions of each row that match in each group, ``[G, B, K]``."""
    if kernels.choose(k_NK, casts=False) == "cpu":
        sparse = lookup.takes_sparse(k_NK)
        out: Tensor = _SumMatches.apply(match_GN, k_NK, segments, sparse)  # type: ignore[no-untyped-call]
        return out
    return torch.stack([segments.weighted_sum(match_N.to(k_NK.dtype), k_NK) for match_N in match_GN.unbind()])


class _SumMatches(torch.autograd.Function):
    """Sums over matching positions alone, which are few: on average one of ``2 ** tau`` for unrelated vectors.

    Their number depends on values, so this is for the CPU. On a device the sums run over all positions.
    """

    @staticmethod
    def forward(ctx: Any, match_GN: Tensor, k_NK: Tensor, segments: Segments, sparse: bool) -> Tensor:
        (groups, positions), rows = match_GN.shape, segments.rows
        group_P, position_P = match_GN.nonzero().unbind(1)
        bag_P = group_P * rows + segments.row.index_select(0, position_P)
        ctx.segments, ctx.positions, ctx.sparse = segments, positions, sparse
        ctx.save_for_backward(match_GN)
        return _sum_bags(k_NK, position_P, bag_P, groups * rows).view(groups, rows, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_GBK: Tensor) -> tuple[None, Tensor, None, None]:
        (match_GN,) = ctx.saved_tensors
        position_P, group_P = match_GN.t().contiguous().nonzero().unbind(1)
        bag_P = group_P * ctx.segments.rows + ctx.segments.row.index_select(0, position_P)
        g_XK = g_GBK.flatten(0, 1).contiguous()
        if not ctx.sparse:
            return None, _sum_bags(g_XK, bag_P, position_P, ctx.positions), None, None
        shape, g_PK = (ctx.positions, g_XK.shape[1]), g_XK.index_select(0, bag_P)
        return None, torch.sparse_coo_tensor(position_P.unsqueeze(0), g_PK, shape, check_invariants=False), None, None


def _sum_bags(x_XK: Tensor, index_P: Tensor, bag_P: Tensor, bags: int) -> Tensor:
    """Return the sum of the vectors at ``index`` in each bag, whose numbers ascend."""
    if not len(index_P):
        return x_XK.new_zeros(bags, x_XK.shape[1])
    offsets = F.pad(torch.bincount(bag_P, minlength=bags).cumsum(0), (1, 0))
    return F.embedding_bag(index_P, x_XK, offsets, mode="sum", include_last_offset=True)
