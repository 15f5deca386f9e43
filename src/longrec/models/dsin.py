r"""DSIN: Deep Session Interest Network for Click-Through Rate Prediction.

Feng, Lv, Shen, Wang, Sun, Zhu, Yang, IJCAI 2019. https://arxiv.org/abs/1905.06482

Events within a session are alike, and sessions differ from each other. A transformer layer encodes each of the latest
sessions separately, a bidirectional LSTM reads their sequence, and the candidate attends to both:

    Q_k = e_k + BE,   BE_(k,t,c) = w^K_k + w^T_t + w^C_c                             (eq. 2 and 3)
    I_k = mean_t FFN(MH(Q_k, Q_k, Q_k))                                             (eq. 4 to 6)
    H_k = the state of a forward recurrence + that of a backward one over I_1..I_K    (eq. 7 and 8)
    U_I = sum_k softmax_k(I_k W_I v) I_k,   U_H = sum_k softmax_k(H_k W_H v) H_k    (eq. 9 and 10)
    logit = MLP([fields of the impression, U_I, U_H])

where k counts the sessions, t the events of one and c the units of e; v is the candidate. Weights are shared by all
sessions.

Departures from the paper
    - sessions are the runs of one value of the column ``session_recency`` of a history, which splits after a gap of
      more than 30 minutes (``session_gap`` in the schema) and is no other input; without that column a history is
      split into runs of ``session_events`` counted from its newest event;
    - k and t count back from the newest session and the newest event of a session, so that they do not depend on the
      length; the recurrences run from the oldest session to the newest, and back;
    - the column distinguishes 63 sessions; all earlier events count as one session, so no more are read;
    - the paper drops sessions of at most two events; ``shortest`` does so. By default all are kept, so that a first
      event counts. Sessions beyond the latest K, and events of a session beyond its latest T, are dropped as there;
    - scores are divided by the root of the width of one head, not of all heads;
    - the authors' code lets an event see only those before it, has no bias encoding by default (it met NaN), stacks two
      recurrences each way, and takes DIN's network for both attentions; here the equations are kept, with residual
      connections around both sublayers. As in the code there is no layer normalization: it scales events
      from deviation 0.01 to 1, and the top MLP then learns slowly from the fields of the impression (on Amazon Beauty
      AUC 0.60 instead of 0.73). ``norm: true`` enables it around both;
    - the two states of the recurrences are added, or concatenated with ``merge: concat``: the paper's notation leaves
      it open;
    - a mean is over the events that there are; each history has weights of its own.

Shapes: B rows, N positions, M stored events in sessions that are read, P the same session by session, G sessions of the
batch (see nn/sessions.py), K width of an event (and sessions that are read), Q width of the query, H units of the last
hidden layer.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.features.fields import SESSION_RECENCY, SESSION_RECENCY_ROWS, Fields
from longrec.features.fields import Field as Column
from longrec.models.core.top import TopConfig, TopRanker, Width
from longrec.nn.embedding import RESERVED, Embedded, Embeddings
from longrec.nn.linear import Linear
from longrec.nn.lstm import LSTM
from longrec.nn.queries import Queries
from longrec.nn.segments import Segments
from longrec.nn.sessions import Sessions, number_sessions
from longrec.nn.transformer import EncoderLayer

_MAX_SESSIONS = SESSION_RECENCY_ROWS - RESERVED - 1
"""Sessions that the column distinguishes. Its last id stands for all earlier ones."""


class DSINConfig(TopConfig):
    """Settings of DSIN."""

    sessions: Width = Field(5, description="Number of latest sessions that are read.")
    session_items: Width = Field(10, description="Number of latest events of a session that are read.")
    session_events: Width = Field(
        5, description="Events per session of a history without the column `session_recency`."
    )
    shortest: int = Field(0, ge=0, description="Sessions of at most this many events are dropped; 2 in the paper.")
    heads: Width = Field(8, description="Heads of the self attention.")
    hidden: Width | None = Field(None, description="Units of the network after it; by default as many as its inputs.")
    norm: bool = Field(False, description="Layer normalization in the layer of self attention.")
    lstm: Width | None = Field(None, description="Units of each recurrence; by default as many as its inputs.")
    merge: Literal["sum", "concat"] = Field("sum", description="How the states of both recurrences are merged.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout rate.")


class DSIN(TopRanker):
    """DSIN over every history of the schema."""

    Config = DSINConfig
    reads_history = True
    order_matters = True
    reads_groups = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"session_events": 2, "heads": 2, "lstm": 6, "merge": "concat", "mlp": [32]},
        {
            "sessions": 7, "session_items": 2, "session_events": 2, "heads": 3, "norm": True, "hidden": 8,
            "mlp": [32], "dropout": 0.1,
        },
    )  # fmt: skip

    def __init__(self, config: DSINConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        if any(not _has_column(columns) for columns in fields.histories.values()):
            _check(config)
        if config.sessions > _MAX_SESSIONS and any(_has_column(columns) for columns in fields.histories.values()):
            fault = f"the column {SESSION_RECENCY} distinguishes {_MAX_SESSIONS} sessions, got {config.sessions}"
            raise ConfigError("config", [f"model.sessions: {fault}"])
        read = {
            name: tuple(field for field in columns if field.name != SESSION_RECENCY)
            for name, columns in fields.histories.items()
        }
        embedded = Fields(fields.features, read)
        self.embeddings = Embeddings(embedded, config.embedding_dim, histories=True, std=config.init_std)
        width = self.embeddings.widths
        self.queries = Queries(embedded, width, "dsin")
        self.paths = nn.ModuleDict()
        top = sum(width[field.name] for field in fields.features)
        for history in fields.histories:
            path = _Path(self.queries.query_widths[history], self.queries.key_widths[history], config)
            self.paths[f"path_{history}"] = path
            top += path.width
        self.set_top(top, config)

    def embed(self, batch: Batch) -> Embedded:
        """Look up all vectors, those of events in the sessions that are read alone."""
        histories, sessions = dict(batch.histories), {}
        for history in self.fields.histories:
            events, segments = batch.histories[history], Segments.of(batch, history)
            session_id_U = cast(Tensor | None, events.on_host.columns.get(SESSION_RECENCY))
            host = segments.on_host
            if session_id_U is None:
                session_id_U = torch.div(host.count_newer(), self.config.session_events, rounding_mode="floor")
            number_U = number_sessions(session_id_U, host, self.config.session_items, self.config.shortest)
            sessions[history] = Sessions(number_U, self.config.sessions, segments)
            histories[history] = sessions[history].select(events)
        embedded: Embedded = self.embeddings(replace(batch, histories=histories))
        embedded.states["sessions"] = sessions
        return embedded

    def read(self, batch: Batch, embedded: Embedded) -> list[Tensor]:
        """Return all fields of the impression, and U_I and U_H of each history."""
        read = [self._read(batch, embedded, history)[0] for history in self.fields.histories]
        return [*embedded.features.values(), *read]

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """Return the attention on I of every session, divided among its events: ragged ``[N]``, shared ``[B, T]``."""
        embedded = self.embed(batch)
        sessions: dict[str, Sessions] = embedded.states["sessions"]
        return {name: own.weigh_events(self._read(batch, embedded, name)[1]) for name, own in sessions.items()}

    def _read(self, batch: Batch, embedded: Embedded, history: str) -> tuple[Tensor, Tensor]:
        """Return U_I and U_H of a history for the candidate, and the weights of its sessions in U_I."""
        q_BQ, e_MK, _ = self.queries(batch, embedded, history)
        return cast(_Path, self.paths[f"path_{history}"])(q_BQ, e_MK, embedded.states["sessions"][history])


def _check(config: DSINConfig) -> None:
    """Refuse settings with which runs of ``session_events`` lose some events, or all."""
    runs, faults = config.session_events, []
    if runs > config.session_items:
        message = f"must be at most session_items ({config.session_items}), or some events are never read"
        faults.append(f"model.session_events: {message}; got {runs}")
    if runs <= config.shortest:
        faults.append(
            f"model.shortest: must be less than session_events ({runs}), or no session is left; got {config.shortest}"
        )
    if faults:
        raise ConfigError("model", faults)


def _has_column(columns: tuple[Column, ...]) -> bool:
    return any(field.name == SESSION_RECENCY for field in columns)


class _Path(nn.Module):
    """Session interests and attention of one history.

    Attributes:
        width: of U_I and U_H together.
    """

    renamed_parameters: ClassVar[dict[str, str]] = {"asks_interest": "interest_query", "asks_state": "state_query"}

    def __init__(self, query: int, key: int, config: DSINConfig) -> None:
        super().__init__()
        self.of_session = nn.Parameter(torch.randn(config.sessions) * config.init_std)
        self.of_event = nn.Parameter(torch.randn(config.session_items) * config.init_std)
        self.of_unit = nn.Parameter(torch.randn(key) * config.init_std)
        self.layer = EncoderLayer(
            key, config.heads, config.hidden or key, norm=config.norm, dropout=config.dropout, activation="relu"
        )
        units = config.lstm or key
        self.forth, self.back, self.merge = LSTM(key, units), LSTM(key, units, reverse=True), config.merge
        state = 2 * units if config.merge == "concat" else units
        self.interest_query = Linear(query, key, bias=False)
        self.state_query = Linear(query, state, bias=False)
        self.width = key + state

    def interests(self, e_MK: Float[Tensor, "M K"], sessions: Sessions) -> Float[Tensor, "G K"]:
        """Return I of every session."""
        number_P = sessions.gather_numbers().clamp(max=len(self.of_session) - 1)
        back_P = sessions.count_newer().clamp(max=len(self.of_event) - 1)
        b_P = self.of_session.index_select(0, number_P) + self.of_event.index_select(0, back_P)
        x_PK = sessions.gather_selected(e_MK) + b_P.unsqueeze(1) + self.of_unit
        x_PK = self.layer(sessions.attention.gather_positions(x_PK), sessions.attention)
        return sessions.mean(sessions.attention.restore_positions(x_PK))

    def states(self, i_GK: Float[Tensor, "G K"], sessions: Sessions) -> Tensor:
        """Return H of every session, ``[G, W]``."""
        both = [lstm.states(i_GK, sessions.rows, moves_T=sessions.moves) for lstm in (self.forth, self.back)]
        return torch.cat(both, 1) if self.merge == "concat" else both[0] + both[1]

    def forward(self, q_BQ: Tensor, e_MK: Tensor, sessions: Sessions) -> tuple[Tensor, Tensor]:
        """Return U_I and U_H, concatenated, and the weights of the sessions in U_I."""
        i_GK = self.interests(e_MK, sessions)
        h_GW = self.states(i_GK, sessions)
        a = sessions.softmax(sessions.rows.dot(self.interest_query(q_BQ), i_GK))
        b = sessions.softmax(sessions.rows.dot(self.state_query(q_BQ), h_GW))
        return torch.cat([sessions.rows.weighted_sum(a, i_GK), sessions.rows.weighted_sum(b, h_GW)], 1), a
