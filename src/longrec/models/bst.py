r"""BST: Behavior Sequence Transformer for E-commerce Recommendation in Alibaba.

Chen, Zhao, Li, Huang, Ou, DLP-KDD 2019. https://arxiv.org/abs/1905.06874

The candidate is put at the end of the user's events, one transformer block lets all of them look at each other, and
what comes out meets the other features in a network:

    pos(v_i) = t(v_target) - t(v_i)                                                  (section 2.1)
    S = MH(E) = [head_1; ...; head_h] W^H,  head_i = Attention(E W^Q, E W^K, E W^V)  (eq. 1 and 2)
    S' = LN(E + Dropout(S))                                                          (eq. 4)
    F = LN(S' + Dropout(LeakyReLU(S' W^1 + b^1) W^2 + b^2))                          (eq. 5)
    logit = MLP([fields of the impression, pool(F)])                                 (section 2.3)

Every event sees the candidate and every other event; nothing is causal. With ``pooling: target`` the last block
computes one query a row, so that one block costs O(T) attention and a request shares keys and values among all
candidates; everything else costs O(T^2), and further blocks run once a candidate.

Departures from the paper
    - the paper does not say what of F meets the other features: ``pooling`` is the candidate's own row, the default
      for its speed, or the ``mean`` or ``sum`` over the candidate and its events;
    - pos is the column ``time_gap`` of the history, in buckets, embedded like every other column; a schema that lists
      none has no positions. ``position: concat`` puts an index beside the events too and ``position: add`` adds one
      to them, as ports do: counted back from the candidate, which is 0, so that no length changes it;
    - a column that events have and the candidate has not (the time passed, a past rating) is a learnt vector at the
      candidate; a history of instance tokens that shares no column is met by a projection of the candidate's fields;
    - a head is as wide as an h-th of an event, rounded up, so that any width goes with any number of heads;
    - each history has blocks of its own; a row without events is a candidate that sees itself.

Letters: B rows, N positions, U what a history brings (see nn/segment.py), R rows of a bucket, T events of its longest
row, C candidates of such a row (1, or all of a request), K width of an event, D the same with its index, X width of
all heads' queries, keys and values, H units of the last hidden layer.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.config import Strict
from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.base import Ranker
from longrec.nn.activation import Name, make
from longrec.nn.embedding import Embedded, Embeddings
from longrec.nn.linear import Linear
from longrec.nn.mlp import MLP
from longrec.nn.queries import attention_columns
from longrec.nn.segment import Segments
from longrec.nn.token_buckets import Buckets

Width = Annotated[int, Field(ge=1)]
_MOST = 4_096
"""Positions of a bucket."""


class BSTConfig(Strict):
    """Settings of BST."""

    embedding_dim: Width = Field(16, description="Width of fields that ask for none in the schema.")
    heads: Width = Field(8, description="Heads of the attention.")
    blocks: Width = Field(1, description="Transformer blocks; the paper found one to be best.")
    hidden: Width | None = Field(None, description="Units of the network in a block; as many as its inputs by default.")
    pooling: Literal["target", "mean", "sum"] = Field("target", description="What of the last block is kept.")
    position: Literal["time", "concat", "add"] = Field("time", description="An index of place beside the time passed.")
    places: Width = Field(128, description="Places counted back from the candidate that an index tells apart.")
    mlp: tuple[Width, ...] = Field((1024, 512, 256), min_length=1, description="Hidden units of the top MLP.")
    mlp_activation: Name = Field("leaky_relu", description="Activation of the top MLP.")
    dropout: float = Field(0.2, ge=0, lt=1, description="Share of units dropped in blocks and top MLP in training.")
    init_std: float = Field(0.01, gt=0, description="Standard deviation of the tables at the start.")


class BST(Ranker):
    """BST over every history of the schema."""

    Config = BSTConfig
    reads_history = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"pooling": "mean", "heads": 2, "mlp": [32], "dropout": 0.0},
        {"pooling": "sum", "position": "concat", "heads": 3, "mlp": [32], "hidden": 12},
        {"blocks": 2, "position": "add", "heads": 2, "mlp": [32]},
    )

    def __init__(self, config: BSTConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.order_matters = config.position != "time"
        self.embeddings = Embeddings(fields, config.embedding_dim, histories=True, std=config.init_std)
        if not fields.histories:
            raise ConfigError("schema", ["histories: bst reads a history, and the schema has none"])
        self.queries, self.keys = attention_columns(fields, fields.histories, "bst")
        self.candidate = [field.name for field in fields.features if field.table == "item"]
        width = self.embeddings.widths
        self.paths = nn.ModuleDict()
        top = sum(width[field.name] for field in fields.features)
        for history in fields.histories:
            q = sum(width[name] for name in self.queries[history])
            k = sum(width[name] for name in self.keys[history])
            path = _Path(q, k, sum(width[name] for name in self.candidate), config)
            self.paths[f"path_{history}"] = path
            top += path.width
        self.top = MLP(top, config.mlp, config.mlp_activation, config.dropout, outputs=1)
        self.interaction = self.top.width

    def interact(self, batch: Batch) -> Float[Tensor, "B H"]:
        """The last hidden layer of the top MLP."""
        embedded = self.embeddings(batch)
        parts = list(embedded.features.values())
        for history in self.fields.histories:
            q_BQ, e_UK, segments = self._read(batch, embedded, history)
            parts.append(self.paths[f"path_{history}"](q_BQ, e_UK, segments))
        return self.top.hidden(torch.cat(parts, 1))

    def head(self, h_BH: Float[Tensor, "B H"]) -> Float[Tensor, " B"]:
        """The final layer."""
        assert self.top.last is not None
        logit: Tensor = self.top.last(h_BH).squeeze(1)
        return logit

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """What the candidate attends to in the last block, mean over heads: ragged ``[N]``, shared ``[B, T]``.

        The weights of a row leave to one what the candidate pays itself.
        """
        embedded = self.embeddings(batch)
        paths = {history: cast(_Path, self.paths[f"path_{history}"]) for history in self.fields.histories}
        return {history: path.weights(*self._read(batch, embedded, history)) for history, path in paths.items()}

    def _read(self, batch: Batch, embedded: Embedded, history: str) -> tuple[Tensor, Tensor, Segments]:
        """The candidate as a history sees it, the events (columns shared with the candidate first), the segments."""
        q_BQ = torch.cat([embedded.features[name] for name in self.queries[history] or self.candidate], 1)
        e_UK = torch.cat([embedded.histories[history][name] for name in self.keys[history]], 1)
        return q_BQ, e_UK, Segments.of(batch.histories[history], batch.size)


class _Path(nn.Module):
    """The blocks of one history."""

    def __init__(self, query: int, key: int, candidate: int, config: BSTConfig) -> None:
        super().__init__()
        self.pooling, self.position = config.pooling, config.position
        index = config.embedding_dim if config.position == "concat" else 0
        self.width = key + index
        self.project = None if query else Linear(candidate, key)
        self.absent = nn.Parameter(torch.randn(key - query) * config.init_std) if 0 < query < key else None
        self.places = None
        if config.position != "time":
            self.places = nn.Parameter(torch.randn(config.places, index or key) * config.init_std)
        hidden = config.hidden or self.width
        self.blocks = nn.ModuleList(
            _Block(self.width, config.heads, hidden, config.dropout) for _ in range(config.blocks)
        )

    def forward(self, q_BQ: Tensor, e_UK: Tensor, segments: Segments) -> Tensor:
        """``[B, D]``: what is kept of the candidate and its events."""
        y_BD, x, layout, _ = self._run(q_BQ, e_UK, segments)
        if x is None:
            return y_BD
        if segments.shared:
            all_BTD = torch.cat([x, y_BD.unsqueeze(1)], 1)
            return all_BTD.mean(1) if self.pooling == "mean" else all_BTD.sum(1)
        total_BD = segments.sum(layout.positions_back(x)) + y_BD
        if self.pooling == "sum":
            return total_BD
        return total_BD / (1 + segments.offsets[1:] - segments.offsets[:-1]).unsqueeze(1)

    def weights(self, q_BQ: Tensor, e_UK: Tensor, segments: Segments) -> Tensor:
        """The candidate's attention in the last block: ragged ``[N]``, shared ``[B, T]``."""
        return self._run(q_BQ, e_UK, segments)[3]

    def _run(self, q_BQ: Tensor, e_UK: Tensor, segments: Segments) -> tuple[Tensor, Tensor | None, _Layout, Tensor]:
        """Candidates after the last block, events where they are kept (as the layout has them), layout, weights."""
        layout = _Layout(segments)
        y_BD, x_UD = self._inputs(q_BQ, e_UK, segments)
        x: Tensor | None = x_UD.unsqueeze(0) if segments.shared else layout.positions_in(x_UD)
        y_BD = layout.rows_in(y_BD)
        w = x_UD
        for number, block in enumerate(self.blocks, 1):
            y_BD, x, w = block(x, y_BD, layout, number < len(self.blocks) or self.pooling != "target")
        return layout.rows_back(y_BD), x, layout, w if segments.shared else layout.positions_back(w)

    def _inputs(self, q_BQ: Tensor, e_UK: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
        """The candidates and the events as the first block sees them, with their index."""
        y_BD = q_BQ if self.project is None else self.project(q_BQ)
        if self.absent is not None:
            y_BD = torch.cat([y_BD, self.absent.expand(y_BD.shape[0], -1)], 1)
        if self.places is None:
            return y_BD, e_UK
        count, device = segments.positions, segments.offsets.device
        stop = count if segments.shared else segments.expand_rows(segments.offsets[1:])
        back_U = (stop - torch.arange(count, device=device)).clamp(max=len(self.places) - 1)
        p_UD, own_BD = self.places.index_select(0, back_U), self.places[0].expand(y_BD.shape[0], -1)
        if self.position == "add":
            return y_BD + own_BD, e_UK + p_UD
        return torch.cat([y_BD, own_BD], 1), torch.cat([e_UK, p_UD], 1)


class _Layout:
    """Ragged rows and positions in the order of their buckets, rows without events last; shared ones as they are."""

    def __init__(self, segments: Segments) -> None:
        self.shared = segments.shared
        if not self.shared:
            self.buckets = Buckets(segments, _MOST)
            empty = (segments.offsets[1:] == segments.offsets[:-1]).nonzero().squeeze(1)
            self.rows = torch.cat([self.buckets.rows, empty])
            self.positions = self.buckets.positions() if self.buckets.all else self.rows[:0]

    def rows_in(self, x_BW: Tensor) -> Tensor:
        return x_BW if self.shared else x_BW.index_select(0, self.rows)

    def rows_back(self, x_BW: Tensor) -> Tensor:
        return x_BW if self.shared else x_BW.index_select(0, self.rows.argsort())

    def positions_in(self, x_NW: Tensor) -> Tensor:
        return x_NW.index_select(0, self.positions)

    def positions_back(self, x_NW: Tensor) -> Tensor:
        return x_NW.index_select(0, self.positions.argsort())


class _Block(nn.Module):
    """Equations 1 to 5 for candidates and, where they go on, their events."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads, inner = heads, heads * -(-width // heads)
        self.inner = Linear(width, 3 * inner, bias=False)
        self.outer = Linear(inner, width, bias=False)
        self.first, self.second = Linear(width, hidden), Linear(hidden, width)
        self.activation = make("leaky_relu", hidden)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, y_BD: Tensor, layout: _Layout, events: bool) -> tuple[Tensor, Tensor | None, Tensor]:
        """Candidates after the block, events after it if they go on, and the candidates' weights, mean over heads.

        Events are ``[N, D]`` in a ragged batch; in a shared one ``[1, T, D]`` as long as no candidate has changed
        them, then ``[B, T, D]``. Linear layers run on positions, attention alone on the rectangles of the buckets.
        """
        if layout.shared:
            rows, longest, width = x.shape
            x_RTX = self.inner(x.reshape(rows * longest, width)).view(rows, longest, self._three)
            y_RCX = self.inner(y_BD).view(rows, -1, self._three)
            o_RCX, e, w = _attend(x_RTX, y_RCX, self.heads, None, events)
            y_BD = self._rest(y_BD, o_RCX.flatten(0, 1))
            if e is None:
                return y_BD, None, w.flatten(0, 1)
            x = x.unsqueeze(1).expand(-1, o_RCX.shape[1], -1, -1).reshape(-1, width)
            return y_BD, self._rest(x, e.flatten(0, 2)).view(y_BD.shape[0], longest, width), w.flatten(0, 1)
        buckets = layout.buckets
        x_NX, y_BX = self.inner(x), self.inner(y_BD)
        found, seen, weights = [], [x_NX[:0, : self._three // 3]], [x_NX[:0, 0]]
        for bucket, part in zip(buckets.all, torch.split(x_NX, buckets.sizes) if buckets.all else ()):
            o, e, w = _attend(bucket.padded(part), y_BX[bucket.rows].unsqueeze(1), self.heads, bucket.real, events)
            found.append(o.squeeze(1))
            weights.append(_real(w.flatten(), bucket.places))
            if e is not None:
                seen.append(_real(e.flatten(0, 2), bucket.places))
        # A candidate without events sees itself.
        found.append(y_BX[len(buckets.rows) :, -self._three // 3 :])
        y_BD = self._rest(y_BD, torch.cat(found))
        return y_BD, self._rest(x, torch.cat(seen)) if events else None, torch.cat(weights)

    @property
    def _three(self) -> int:
        return self.inner.out_features

    def _rest(self, x_ND: Tensor, o_NX: Tensor) -> Tensor:
        s_ND = self.norms[0](x_ND + self.dropout(self.outer(o_NX)))
        f_ND: Tensor = self.norms[1](s_ND + self.dropout(self.second(self.activation(self.first(s_ND)))))
        return f_ND


def _real(x: Tensor, places: Tensor | None) -> Tensor:
    return x if places is None else x.index_select(0, places)


def _attend(
    x_RTX: Tensor, y_RCX: Tensor, heads: int, real_RT: Tensor | None, events: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """What C candidates a row gather, ``[R, C, X / 3]``; what events gather beside each candidate, ``[R, C, T, X / 3]``
    where asked for; and the weights of the candidates on the events, mean over heads, ``[R, C, T]``.
    """
    (q, k, v), (own_q, own_k, own_v) = _parts(x_RTX, heads), _parts(y_RCX, heads)
    s_RHCT = torch.matmul(own_q, k.transpose(2, 3))
    if real_RT is not None:
        s_RHCT = s_RHCT.masked_fill(~real_RT[:, None, None, :], -torch.inf)
    own_RHC1 = (own_q * own_k).sum(3, keepdim=True).to(s_RHCT.dtype)
    w = torch.cat([s_RHCT, own_RHC1], 3).softmax(3).to(v.dtype)
    o_RHCd = torch.matmul(w[..., :-1], v) + w[..., -1:] * own_v
    o_RCX, told_RCT = o_RHCd.transpose(1, 2).flatten(2), w[..., :-1].mean(1)
    if not events:
        return o_RCX, None, told_RCT
    # Scores among events are the same beside every candidate.
    s_RHTT = torch.matmul(q, k.transpose(2, 3))
    if real_RT is not None:
        s_RHTT = s_RHTT.masked_fill(~real_RT[:, None, None, :], -torch.inf)
    t_RHCT1 = torch.matmul(own_k, q.transpose(2, 3)).unsqueeze(4)
    s_RHCTT = s_RHTT.unsqueeze(2).expand(-1, -1, own_k.shape[2], -1, -1)
    w = torch.cat([s_RHCTT, t_RHCT1], 4).softmax(4).to(v.dtype)
    e_RHCTd = torch.matmul(w[..., :-1], v.unsqueeze(2)) + w[..., -1:] * own_v.unsqueeze(3)
    return o_RCX, e_RHCTd.permute(0, 2, 3, 1, 4).flatten(3), told_RCT


def _parts(x_RTX: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled queries, keys and values ``[R, H, T, d]``."""
    rows, entries, width = x_RTX.shape
    size = width // (3 * heads)
    q, k, v = x_RTX.view(rows, entries, 3, heads, size).permute(2, 0, 3, 1, 4).unbind()
    return q * size**-0.5, k, v
