r"""TWIN: TWo-stage Interest Network for Lifelong User Behavior Modeling in CTR Prediction at Kuaishou (one attention).

Chang, Zhang, Fu, Zang, Guan, Lu, Hui, Leng, Niu, Song, Gai, KDD 2023. https://arxiv.org/abs/2302.02352

A search by another measure than that of the attention after it misses events that the attention would weigh most. TWIN
searches by the very scores of its target attention, which are cheap because columns of an event are of two kinds. The
inherent ones K_h (item, author) are projected once per event. The cross ones K_c, of user and item together (when it
was watched, for how long), become one number each and enter as a bias:

    s_j   = (K_hj W^h) (q W^q)^T / sqrt(d) + sum_c (K_cj W^c) beta_c                      (eq. 5)
    S     = the ``select`` events of largest s_j                                          (general search unit)
    head  = sum_{j in S} softmax_{j in S}(s_j) (K_j W^v)                                  (exact search unit, eq. 6)
    u     = [head_1, ..., head_H] W^o                                                     (eq. 7)
    logit = MLP([fields of the impression, u of each history])

Each head selects the ``select`` events that it weighs most. A history of at most ``select`` events is attended to as a
whole. Of equal scores the newest events are selected.

Departures from the paper
    - the paper does not say how its heads share a search; here each head searches by its own scores;
    - cross columns are those of an event that the candidate lacks (``time_gap``, a rating), inherent ones the others.
      In a history that shares no column with the candidate, the instance tokens are inherent;
    - an event of several ids per column is pooled first, and a cross column is as wide as its embedding (the paper: 8);
    - both units run on one set of weights, so that the search is never stale. The paper's server refreshes K_h W^h
      every 15 minutes;
    - the values are projected once per event too, if several candidates read it;
    - the search has no gradient, as in the paper: events that are not selected are not learned from;
    - the paper's other inputs (short-term attention, crossed fields) are not modeled;
    - each history has weights of its own.

Shapes: B rows, U stored positions, N positions (see nn/segments.py), S selected events (see nn/selection.py), X any of
them, Q width of the query, K width of an event, A width of its inherent columns, C of its cross columns, J cross
columns, H heads, D width of a head, W = H D.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.top import TopConfig, TopRanker, Width
from longrec.nn import kernels
from longrec.nn.embedding import Embedded, Embeddings
from longrec.nn.linear import Linear, linear
from longrec.nn.long_rows import dot, take_each
from longrec.nn.queries import Queries
from longrec.nn.segments import Segments
from longrec.nn.selection import Selection, exceeds, search_top, select_all


class TWINConfig(TopConfig):
    """Settings of TWIN."""

    select: Width = Field(100, description="Number of events that each head selects, k.")
    heads: Width = Field(4, description="Heads of the attention.")
    head_width: Width = Field(16, description="Width of a head.")
    output: Width = Field(64, description="Width of the interest, the output of all heads.")


class TWIN(TopRanker):
    """TWIN over every history of the schema."""

    Config = TWINConfig
    reads_history = True
    events_per_candidate = False
    reads_groups = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"select": 3, "heads": 2, "head_width": 6, "output": 8, "mlp": [32]},
        {"select": 4, "heads": 1, "head_width": 8, "output": 8, "batch_norm": False, "dropout": 0.1},
    )

    def __init__(self, config: TWINConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.embeddings = Embeddings(fields, config.embedding_dim, histories=True, std=config.init_std, joined=True)
        width = self.embeddings.widths
        self.queries = Queries(fields, width, "twin")
        self.inherent, self.cross = _divide_columns(fields)
        self.paths = nn.ModuleDict()
        top = sum(width[field.name] for field in fields.features)
        for history in fields.histories:
            inherent = sum(width[name] for name in self.inherent[history])
            cross = [width[name] for name in self.cross[history]]
            self.paths[f"path_{history}"] = _Path(self.queries.query_widths[history], inherent, cross, config)
            top += config.output
        self.set_top(top, config)

    def read(self, batch: Batch, embedded: Embedded) -> list[Tensor]:
        """Return all fields of the impression, and u of each history."""
        inputs = list(embedded.features.values())
        for history, path in zip(self.fields.histories, self.paths.values()):
            inputs.append(path(*self._gather(batch, embedded, history)))
        return inputs

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean weight of every position over the heads: ragged ``[N]``, shared ``[B, T]``.

        It is 0 for events that no head selects.
        """
        embedded, weights = self.embed(batch), {}
        for history, path in zip(self.fields.histories, self.paths.values()):
            q_BQ, e_UK, segments = self._gather(batch, embedded, history)
            each = [chosen.restore(w_S) for chosen, w_S, _ in cast(_Path, path).attend(q_BQ, e_UK, segments)]
            weights[history] = segments.by_candidate(torch.stack(each).mean(0))
        return weights

    def _gather(self, batch: Batch, embedded: Embedded, history: str) -> tuple[Tensor, Tensor, Segments]:
        """Return query, events with their inherent columns first, and segments of one history."""
        e_UK = embedded.join(history, (*self.inherent[history], *self.cross[history]))
        return self.queries.compute_query(embedded, history), e_UK, Segments.of(batch, history)


def _divide_columns(fields: Fields) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the names of the inherent columns of each history, and of its cross columns."""
    inherent: dict[str, list[str]] = {}
    cross: dict[str, list[str]] = {}
    for history, columns in fields.histories.items():
        shared = [field.name for field in fields.target_columns(history)]
        inherent[history] = shared or [field.name for field in columns if field.kind == "embedding"]
        cross[history] = [field.name for field in columns if field.name not in inherent[history]]
    return inherent, cross


class _Path(nn.Module):
    """The target attention of one history, which searches too.

    Args:
        query, inherent: Q and A.
        cross: width of each cross column.
    """

    def __init__(self, query: int, inherent: int, cross: list[int], config: TWINConfig) -> None:
        super().__init__()
        self.select, self.heads, self.head_width = config.select, config.heads, config.head_width
        self.inherent, self.cross_widths, width = inherent, cross, config.heads * config.head_width
        # A softmax ignores what all events have in common, so a bias of the keys would get no gradient.
        self.query = Linear(query, width)
        self.key = Linear(inherent, width, bias=False)
        self.value = Linear(inherent + sum(cross), width, bias=False)
        self.cross = self.beta = None
        if cross:
            bound = max(cross) ** -0.5
            self.cross = nn.Parameter(torch.empty(config.heads, sum(cross)).uniform_(-bound, bound))
            self.beta = nn.Parameter(torch.ones(config.heads, len(cross)))
        self.output = Linear(width, config.output, bias=False)

    def forward(self, q_BQ: Tensor, e_UK: Tensor, segments: Segments) -> Tensor:
        """Return u of each row. 0 for an empty history."""
        attended = self.attend(q_BQ, e_UK, segments)
        heads = [chosen.rows.weighted_sum(w_N, v_SD) for chosen, w_N, v_SD in attended]
        u_BO: Tensor = self.output(torch.cat(heads, 1))
        return u_BO

    def attend(self, q_BQ: Tensor, e_UK: Tensor, segments: Segments) -> list[tuple[Selection, Tensor, Tensor]]:
        """Return of each head its selection, and weights ``[n]`` and values ``[S, D]`` of the selected events."""
        queries = torch.split(self.query(q_BQ) * self.head_width**-0.5, self.head_width, 1)
        # What several rows read, and what is selected as a whole, is projected once, by all heads together.
        searches = exceeds(segments, self.select)
        once = segments.requests is not segments or not searches
        stored = self.project(e_UK) if once else None
        attended = []
        selections = self.search(queries, e_UK, segments, stored)
        own = take_each(e_UK, selections) if stored is None else []
        for head, (selection, q_BD) in enumerate(zip(selections, queries)):
            if stored is None:
                k_SD, b_S1, v_SD = self.project(own[head], head)
            else:
                k_SD, b_S1, v_SD = (selection.take(x_UW) for x_UW in self.divide(stored, head))
            w_N = selection.rows.softmax(score(q_BD, k_SD, b_S1, selection.rows))
            attended.append((selection, w_N, v_SD))
        return attended

    def search(
        self, queries: Sequence[Tensor], e_UK: Tensor, segments: Segments, stored: _Projected | None
    ) -> list[Selection]:
        """Return the events that each head selects: those of its highest scores, without a gradient.

        Args:
            queries: ``[B, D]`` of each head.
            stored: the projections of all events. None: no event is projected. An equal score is the inner product of
                the event with the query that W^h takes back to its columns.
        """
        if not exceeds(segments, self.select):
            return [select_all(segments)] * self.heads
        with torch.no_grad(), kernels.disable_autocast():
            wide_UK = e_UK.float()
            selections = []
            for head, q_BD in enumerate(queries):
                if stored is None:
                    q_BD = q_BD.float() @ self.key.weight[self.columns(head)]
                    k_UD, b_U1 = wide_UK[:, : self.inherent], self.biases(wide_UK, head)
                else:
                    k_UD, b_U1, _ = self.divide(stored, head)
                own = partial(score, q_BD.float(), segments=segments)
                selections.append(search_top(own, [k_UD.float(), b_U1.float()], segments, self.select))
        return selections

    def project(self, e_XK: Float[Tensor, "X K"], head: int | None = None) -> _Projected:
        """Return keys, biases and values of events, for one head or for all."""
        own = slice(None) if head is None else self.columns(head)
        k_XD = linear(e_XK[:, : self.inherent], self.key.weight[own])
        return k_XD, self.biases(e_XK, head), linear(e_XK, self.value.weight[own])

    def biases(self, e_XK: Float[Tensor, "X K"], head: int | None = None) -> Tensor:
        """Return the bias of the cross columns of events, ``[X, 1]`` for one head or ``[X, H]`` for all."""
        own = slice(None) if head is None else slice(head, head + 1)
        if self.cross is None or self.beta is None:
            return e_XK.new_zeros(e_XK.shape[0], self.heads)[:, own]
        columns = zip(torch.split(self.cross[own], self.cross_widths, 1), torch.split(self.beta[own], 1, 1))
        return linear(e_XK[:, self.inherent :], torch.cat([w_HC * beta_H1 for w_HC, beta_H1 in columns], 1))

    def columns(self, head: int) -> slice:
        """Return the columns of a head among those of all heads."""
        return slice(head * self.head_width, (head + 1) * self.head_width)

    def divide(self, stored: _Projected, head: int) -> _Projected:
        """Return the projections of one head, of those of all heads."""
        (k_UW, b_UH, v_UW), own = stored, self.columns(head)
        return k_UW[:, own], b_UH[:, head : head + 1], v_UW[:, own]


_Projected = tuple[Tensor, Tensor, Tensor]
"""Keys, biases and values of events."""


def score(q_BD: Tensor, k_XD: Tensor, b_X1: Tensor, segments: Segments) -> Float[Tensor, " N"]:
    """Return the scores of events for one head, of the search as of the attention (eq. 5)."""
    return dot(q_BD, k_XD, segments) + segments.keys(b_X1).squeeze(1)
