r"""SIM: Search-based User Interest Modeling with Lifelong Sequential Behavior Data for Click-Through Rate Prediction.

Pi, Zhu, Zhou, Wang, Ren, Fan, Zhu, Gai, CIKM 2020. https://arxiv.org/abs/2006.05639

Of a history of thousands of events only a few concern the candidate. A general search unit (GSU) selects them, and an
exact search unit (ESU) attends to these alone:

    S    = the newest ``select`` events i with key(i) = key(a)                      (``search: hard``)
    S    = the ``select`` events of largest r_i                                     (``search: soft``)
    r_i  = <W_b e_i, W_a e_a>                                                       (GSU)
    U_r  = sum_i r_i e_i                                                            (GSU, over all events)
    w_h  = softmax_{j in S} <W_bh z_j, W_ah e_a>                                    (ESU, each head h)
    U_lt = [sum_j w_1j z_j, ..., sum_j w_Hj z_j]
    logit = MLP([fields of the impression, U_lt, U_short])
    L    = L_ESU + alpha L_GSU,    L_GSU = cross entropy of MLP([U_r, e_a])         (``hard``: without L_GSU)

z_j has all columns of an event. ``time_gap`` among them is the paper's time interval, from the event to the impression.
e_i has the columns that the candidate has too (in a history of instance tokens, all), so that the same event has the
same r whenever it is searched. The choice of S has no gradient: W_a and W_b of the search learn from L_GSU alone.

The hard search reads the id column ``key``, by default the first that events and candidate share other than the item
(such as the category), else the item. A candidate whose key is missing or unseen, or is not in the history, selects no
event, and U_lt is zero.

Departures from the paper
    - the search covers the whole history, the newest events included, so that a short history is searched too.
      ``search_recent: false`` leaves those of the short-term branch to it, as in the paper's experiments;
    - U_short is DIEN's two recurrences over the newest ``short`` events, without their auxiliary loss and without
      sums of the events. ``short: 0`` removes the branch;
    - the scores of the ESU are divided by the square root of the width of a head, a constant that W absorbs;
    - r is computed as <e_i, W_b^T W_a e_a>: equal, and no event is projected. Nor is one by the ESU in serving;
    - top-k is exact. The paper's server uses an approximate index (ALSH), and a tree from category to items (UBT);
    - U_r is a sum over all events of the history, never over a sample of them;
    - of equal scores the newest events are selected;
    - a history without the key column, such as one of instance tokens, has no hard search: its newest ``select``
      events are read;
    - each history has units of its own. L_GSU is the mean over the histories.

Shapes: B rows, R events that are searched, S selected events (see nn/selection.py), U stored positions, N positions
(see nn/segments.py), Q width of the query, K width of an event, E width of e, W width of all heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from longrec.errors import ConfigError
from longrec.features.batch import Batch, HistoryBatch
from longrec.features.fields import Fields
from longrec.models.core.losses import bce_loss
from longrec.models.core.top import TopConfig, TopRanker, Width
from longrec.nn import kernels
from longrec.nn.embedding import Embedded, Embeddings
from longrec.nn.groups import choose_group_columns
from longrec.nn.host_plans import fetch
from longrec.nn.linear import Linear
from longrec.nn.long_rows import dot, take_each, weigh_by_dot
from longrec.nn.mlp import MLP
from longrec.nn.queries import Queries
from longrec.nn.recurrent import GRU
from longrec.nn.segments import Segments
from longrec.nn.selection import (
    Selection,
    Slots,
    exceeds,
    search_top,
    select_all,
    select_key,
    select_newest,
    select_older,
)


class SIMConfig(TopConfig):
    """Settings of SIM."""

    search: Literal["soft", "hard"] = Field("soft", description="Search by inner product, or by equal keys.")
    key: str | None = Field(None, description="Id column of the hard search; see the docstring for the default.")
    select: Width = Field(50, description="Number of events that the search selects, k.")
    search_width: Width = Field(16, description="Width of the projections of the soft search.")
    aux_weight: float = Field(1.0, gt=0, description="Weight of the loss of the soft search, alpha.")
    aux: tuple[Width, ...] = Field((64,), min_length=1, description="Hidden units of the network of the soft search.")
    heads: Width = Field(4, description="Heads of the attention to the selected events.")
    head_width: Width = Field(16, description="Width of the projections of a head.")
    short: int = Field(10, ge=0, description="Newest events of the short-term branch; 0 removes it.")
    hidden: Width = Field(36, description="Units of both recurrences of the short-term branch.")
    search_recent: bool = Field(True, description="Search the events of the short-term branch too.")


class SIM(TopRanker):
    """SIM over every history of the schema."""

    Config = SIMConfig
    reads_history = True
    events_per_candidate = False
    reads_groups = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"search": "hard", "select": 2, "heads": 2, "head_width": 6, "hidden": 8, "mlp": [32]},
        {"select": 3, "search_recent": False, "short": 2, "heads": 1, "hidden": 8, "aux": [8, 4], "mlp": [32]},
        {"short": 0, "heads": 2, "search_width": 4, "batch_norm": False, "dropout": 0.1},
    )

    def __init__(self, config: SIMConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.order_matters = config.short > 0
        self.embeddings = Embeddings(fields, config.embedding_dim, histories=True, std=config.init_std, joined=True)
        width = self.embeddings.widths
        self.queries = Queries(fields, width, "sim")
        self.columns = _choose_keys(config, fields)
        self.paths = nn.ModuleDict()
        top = sum(width[field.name] for field in fields.features)
        for history in fields.histories:
            query, key = self.queries.query_widths[history], self.queries.key_widths[history]
            path = _Path(query, key, self.queries.common_widths[history] or key, config)
            self.paths[f"path_{history}"] = path
            top += path.width
        self.set_top(top, config)

    def read(self, batch: Batch, embedded: Embedded) -> list[Tensor]:
        """Return all fields of the impression, and U_lt and U_short of each history."""
        inputs = list(embedded.features.values())
        searched, relevance = {}, dict[str, Tensor]()
        keys = self._keys(batch)
        for history, path in zip(self.fields.histories, self.paths.values()):
            q_BQ, e_UK, segments = self.queries(batch, embedded, history)
            if self.training and self.config.search == "soft":
                # First, so that what the path reads adds its gradient to that of all events.
                relevance[history], e_UK = cast(_Path, path).relevance(q_BQ, e_UK, segments)
            searched[history] = q_BQ, e_UK, segments
            inputs.append(path(q_BQ, e_UK, segments, keys.get(history)))
        embedded.states.update(searched=searched, relevance=relevance)
        return inputs

    def aux_loss(self, batch: Batch, embedded: Embedded) -> Float[Tensor, ""] | float:
        """Return the loss of the soft search."""
        if self.config.search == "hard":
            return 0.0
        searched: dict[str, tuple[Tensor, Tensor, Segments]] = embedded.states["searched"]
        relevance: dict[str, Tensor] = embedded.states["relevance"]
        for history, arguments in searched.items():
            if history not in relevance:
                relevance[history], _ = cast(_Path, self.paths[f"path_{history}"]).relevance(*arguments)
        losses = [bce_loss(logit_B, batch) for logit_B in relevance.values()]
        return self.config.aux_weight * torch.stack(losses).mean()

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean weight of every position in U_lt, over the heads: ragged ``[N]``, shared ``[B, T]``.

        It is 0 for events that the search does not select.
        """
        embedded, weights, keys = self.embed(batch), {}, self._keys(batch)
        for history, path in zip(self.fields.histories, self.paths.values()):
            q_BQ, e_UK, segments = self.queries(batch, embedded, history)
            w_N = cast(_Path, path).weights(q_BQ, e_UK, segments, keys.get(history))
            weights[history] = segments.by_candidate(w_N)
        return weights

    def _keys(self, batch: Batch) -> dict[str, _Keys]:
        """Return the keys of candidates and events, of the histories that have a hard search.

        Those of ragged batches are on the host, and one copy for all histories brings the candidates' there.
        """
        names = sorted({name for name in self.columns.values() if name is not None})
        if not names:
            return {}
        wanted = [cast(Tensor, batch.candidates[name]) for name in names]
        shared = batch.layout.kind == "shared"
        each = dict(zip(names, wanted if shared else fetch(torch.stack(wanted))))
        keys: dict[str, _Keys] = {}
        for history, name in self.columns.items():
            if name is not None:
                events: HistoryBatch = batch.histories[history] if shared else batch.histories[history].on_host
                ids = cast(Tensor, events.columns[name])
                keys[history] = (each[name], ids if shared else fetch(ids))
        return keys


_Keys = tuple[Tensor | NDArray[Any], Tensor | NDArray[Any]]
"""Keys of the candidates ``[B]``, and of the events ``[U]``."""


def _choose_keys(config: SIMConfig, fields: Fields) -> Mapping[str, str | None]:
    """Return the key column of each history. None: it has no hard search.

    Raises:
        ConfigError: if the candidate, or every history, lacks the column ``key``.
    """
    if config.search == "soft":
        if config.key is not None:
            fault = f"model.key: is the column of search: hard, and the search is soft; got {config.key!r}"
            raise ConfigError("config", [f"{fault}; write search: hard, or remove the key"])
        return dict.fromkeys(fields.histories)
    if config.key is None:
        return choose_group_columns(fields, None, "model.key")
    shared = {
        history: [field.name for field in fields.target_columns(history) if field.kind == "id"]
        for history in fields.histories
    }
    choices = sorted({name for names in shared.values() for name in names})
    if config.key not in choices:
        candidate = {field.name for field in fields.features if field.side == "item" and field.kind == "id"}
        lacks = "no history has it" if config.key in candidate else "the candidate has no such id"
        fault = f"model.key: must be an id column of the candidate and of a history ({', '.join(choices) or 'none'})"
        raise ConfigError("config", [f"{fault}, got {config.key!r}: {lacks}"])
    return {history: config.key if config.key in names else None for history, names in shared.items()}


class _Path(nn.Module):
    """Both search units and the short-term branch of one history.

    Args:
        query, key: width of the candidate and of an event.
        searched: width of the columns that the soft search reads, the first ones of an event.

    Attributes:
        width: of U_lt and U_short together.
    """

    def __init__(self, query: int, key: int, searched: int, config: SIMConfig) -> None:
        super().__init__()
        self.select, self.searched = config.select, searched
        self.recent = 0 if config.search_recent else config.short
        self.heads, self.head_width = config.heads, config.head_width
        self.search_query = self.search_key = self.aux = None
        if config.search == "soft":
            self.search_query = Linear(query, config.search_width, bias=False)
            self.search_key = Linear(searched, config.search_width, bias=False)
            self.aux = MLP(searched + query, config.aux, outputs=1)
        # A softmax ignores what all events have in common, so a bias of either would get no gradient.
        self.query = Linear(query, config.heads * config.head_width)
        self.key = Linear(key, config.heads * config.head_width, bias=False)
        self.short = _ShortTerm(query, key, config) if config.short else None
        self.width = config.heads * key + (config.hidden if config.short else 0)

    def forward(self, q_BQ: Tensor, e_UK: Tensor, segments: Segments, keys: _Keys | None) -> Tensor:
        """Return ``[U_lt, U_short]`` of each row."""
        selections = [self.choose(q_BQ, e_UK, segments, keys)]
        if self.short is not None:
            selections.append(select_newest(segments, self.short.count))
        chosen, (z_SK, *newest) = selections[0], take_each(e_UK, selections)
        if isinstance(chosen.rows, Slots):
            outputs = [chosen.rows.attend(self.queries_of_events(q_BQ), z_SK).flatten(1)]
        else:
            scores = self.scores(q_BQ, e_UK, z_SK, chosen)
            outputs = [chosen.rows.weighted_sum(chosen.rows.softmax(s_S), z_SK) for s_S in scores]
        if self.short is not None:
            outputs.append(self.short(q_BQ, newest[0], selections[1].rows))
        return torch.cat(outputs, 1)

    def weights(self, q_BQ: Tensor, e_UK: Tensor, segments: Segments, keys: _Keys | None) -> Float[Tensor, " N"]:
        """Return the weight of every position in U_lt, the mean over the heads."""
        chosen = self.choose(q_BQ, e_UK, segments, keys)
        each = [chosen.rows.softmax(s_S) for s_S in self.scores(q_BQ, e_UK, chosen.take(e_UK), chosen)]
        return chosen.restore(torch.stack(each).mean(0))

    def scores(self, q_BQ: Tensor, e_UK: Tensor, z_SK: Tensor, chosen: Selection) -> list[Float[Tensor, " S"]]:
        """Return the scores of the selected events, of each head."""
        q_BW = self.query(q_BQ) * self.head_width**-0.5
        single = chosen.source.requests is chosen.source
        k_SW = self.key(z_SK) if single else chosen.project(self.key, e_UK)
        pairs = zip(torch.split(q_BW, self.head_width, 1), torch.split(k_SW, self.head_width, 1))
        return [chosen.rows.dot(q_BD, k_SD) for q_BD, k_SD in pairs]

    def queries_of_events(self, q_BQ: Tensor) -> Float[Tensor, "B H K"]:
        """Return W_bh^T W_ah e_a, whose product with an event is its score: no event is projected."""
        q_BHD = (self.query(q_BQ) * self.head_width**-0.5).view(q_BQ.shape[0], self.heads, self.head_width)
        w_HDK = self.key.weight.view(self.heads, self.head_width, -1)
        return torch.matmul(q_BHD.transpose(0, 1), w_HDK).transpose(0, 1)

    def choose(self, q_BQ: Tensor, e_UK: Tensor, segments: Segments, keys: _Keys | None) -> Selection:
        """Return the events that the search selects."""
        region = self.region(segments)
        if self.search_query is not None:
            if not exceeds(region.rows, self.select):
                return region
            with torch.no_grad(), kernels.disable_autocast():
                e_RE = region.take(e_UK).float()[:, : self.searched]
                score = partial(dot, self.search_vector(q_BQ.float()), segments=region.rows)
                return region.then(search_top(score, [e_RE], region.rows, self.select))
        if keys is None:
            return region.then(select_newest(region.rows, self.select))
        wanted_B, key_U = keys
        key_R = region.take(key_U) if isinstance(key_U, Tensor) else region.take_on_host(key_U)
        return region.then(select_key(wanted_B, key_R, region.rows, self.select))

    def region(self, segments: Segments) -> Selection:
        """Return the events that are searched."""
        return select_older(segments, self.recent) if self.recent else select_all(segments)

    def search_vector(self, q_BQ: Tensor) -> Float[Tensor, "B E"]:
        """Return W_b^T W_a e_a, whose inner products with events are r."""
        assert self.search_query is not None
        assert self.search_key is not None
        x_BE: Tensor = self.search_query(q_BQ) @ self.search_key.weight
        return x_BE

    def relevance(self, q_BQ: Tensor, e_UK: Tensor, segments: Segments) -> tuple[Float[Tensor, " B"], Tensor]:
        """Return the logit of the auxiliary task, from U_r and the candidate, and the events for further reading."""
        assert self.aux is not None
        region = self.region(segments)
        e_RK = region.take(e_UK)
        whole = e_RK is e_UK and self.searched == e_UK.shape[1]
        u_BE, read_RE = weigh_by_dot(self.search_vector(q_BQ), e_RK if whole else e_RK[:, : self.searched], region.rows)
        logit_B1: Tensor = self.aux(torch.cat([u_BE, q_BQ], 1))
        return logit_B1.squeeze(1), read_RE if whole else e_UK


class _ShortTerm(nn.Module):
    """DIEN over the newest events of a history."""

    def __init__(self, query: int, key: int, config: SIMConfig) -> None:
        super().__init__()
        self.count = config.short
        self.interest, self.evolution = GRU(key, config.hidden), GRU(config.hidden, config.hidden, "augru")
        self.query = Linear(query, config.hidden)

    def forward(self, q_BQ: Tensor, e_SK: Tensor, rows: Segments) -> Float[Tensor, "B H"]:
        """Return the final interest from the newest events. 0 for an empty history."""
        h_SH = self.interest.states(e_SK, rows)
        a_N = rows.softmax(rows.dot(self.query(q_BQ), h_SH))
        return self.evolution.last(h_SH, rows, a_N)
