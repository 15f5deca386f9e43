"""BST and DSIN in their usual form: histories padded to the longest of the batch (DSIN: to sessions of one size), with
every layer computed on the padding too. They share the weights of the ragged models and return the same scores.

Shapes: B rows, N events, L events of a padded row (E one more, the candidate), K width of an event, S sessions,
T events of a session, H heads, G inputs of a step of the recurrence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longrec.features.batch import Batch, HistoryBatch, Jagged
from longrec.features.fields import SESSION_RECENCY
from longrec.models import bst, dsin
from longrec.models.core.top import TopRanker
from longrec.nn.lstm import LSTM
from longrec.nn.segments import Segments
from longrec.nn.sessions import number_sessions
from longrec.nn.transformer import EncoderLayer


@dataclass(frozen=True)
class PaddedBatch:
    """A batch with one history, padded before the measurement.

    Attributes:
        flat: batch of the loader, one candidate per request, with padded events: offsets 0, L, 2 L, ...
        real_BL: mask of the events that are not padding.
    """

    flat: Batch
    real_BL: Tensor


def pad_events(batch: Batch, history: str) -> PaddedBatch:
    """Pad events to the longest history of the batch."""
    lengths_B = batch.histories[history].offsets.diff()
    slot_N = torch.arange(int(lengths_B.sum())) - torch.repeat_interleave(
        batch.histories[history].offsets[:-1], lengths_B
    )
    return _scatter_events(batch, history, slot_N, max(1, int(lengths_B.max())))


def pad_sessions(batch: Batch, history: str, count: int, longest: int) -> PaddedBatch:
    """Pad the latest sessions to the latest events of each, newest last. Other events are dropped."""
    events = batch.histories[history]
    segments = Segments.of(batch, history)
    recency_N = events.columns[SESSION_RECENCY]
    assert isinstance(recency_N, Tensor)
    number_N = number_sessions(recency_N, segments, longest, 0)
    run_N = torch.unique_consecutive(segments.row * 2**41 + number_N, return_inverse=True)[1]
    ends = torch.bincount(run_N).cumsum(0)
    newer_N = ends[run_N] - 1 - torch.arange(len(run_N))
    slot_N = torch.where(number_N < count, (count - 1 - number_N) * longest + longest - 1 - newer_N, -1)
    return _scatter_events(batch, history, slot_N, count * longest)


def _scatter_events(batch: Batch, history: str, slot_N: Tensor, length: int) -> PaddedBatch:
    """Scatter every event to its slot in its row, -1 for a dropped one. Padding has the id of missing values."""
    events, rows = batch.histories[history], batch.size
    row_N = torch.repeat_interleave(torch.arange(rows), events.offsets.diff())
    kept = (slot_N >= 0).nonzero().squeeze(1)
    to = (row_N * length + slot_N)[kept]
    kept, to = kept[to.argsort()], to.sort()[0]
    columns: dict[str, Tensor | Jagged] = {}
    for name, column in events.columns.items():
        if isinstance(column, Tensor):
            columns[name] = column.new_zeros(rows * length, *column.shape[1:]).index_copy(0, to, column[kept])
            continue
        own = column.select_rows(kept)
        counts = torch.zeros(rows * length, dtype=torch.int64).index_copy(0, to, own.lengths())
        columns[name] = Jagged(own.values, F.pad(counts.cumsum(0), (1, 0)), own.weights)
    full = HistoryBatch(columns, torch.arange(rows + 1) * length)
    real = torch.zeros(rows * length, dtype=torch.bool).index_fill(0, to, True)
    return PaddedBatch(replace(batch, histories={history: full}), real.view(rows, length))


class PaddedBST(nn.Module):
    """BST of one block over padded events. For each ``pooling`` only the outputs that the loss needs are computed."""

    def __init__(self, model: bst.BST) -> None:
        super().__init__()
        self.model = model
        (self.history,) = model.fields.histories
        self.path = cast(bst._Path, model.paths[f"path_{self.history}"])

    def forward(self, batch: PaddedBatch) -> Tensor:
        """Return the logits ``[B]``."""
        embedded, real_BL = self.model.embeddings(batch.flat), batch.real_BL
        rows, longest = real_BL.shape
        q_BQ, e_NK, _ = self.model.queries(batch.flat, embedded, self.history)
        y_BK = q_BQ if self.path.absent is None else torch.cat([q_BQ, self.path.absent.expand(rows, -1)], 1)
        x_BEK = torch.cat([e_NK.view(rows, longest, -1), y_BK.unsqueeze(1)], 1)
        seen_BE = F.pad(real_BL, (0, 1), value=True)
        block = cast(EncoderLayer, self.path.blocks[0])
        projections = block.project(x_BEK.flatten(0, 1))
        q, k, v = (projection.view(rows, longest + 1, block.heads, -1).transpose(1, 2) for projection in projections)
        wanted = slice(longest, None) if self.path.pooling == "target" else slice(None)
        q, x_BEK = q[:, :, wanted], x_BEK[:, wanted]
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=seen_BE[:, None, None, :], scale=1.0)
        z_BEK = block.rest(x_BEK.flatten(0, 1), o.transpose(1, 2).flatten(2).flatten(0, 1)).view(x_BEK.shape)
        if self.path.pooling == "target":
            u_BK = z_BEK[:, 0]
        else:
            u_BK = (z_BEK * seen_BE.unsqueeze(2)).sum(1)
            if self.path.pooling == "mean":
                u_BK = u_BK / seen_BE.sum(1, keepdim=True)
        return _compute_logits(self.model, [*embedded.features.values(), u_BK])


class PaddedDSIN(nn.Module):
    """DSIN over sessions of one size."""

    def __init__(self, model: dsin.DSIN) -> None:
        super().__init__()
        self.model = model
        (self.history,) = model.fields.histories
        self.path = cast(dsin._Path, model.paths[f"path_{self.history}"])

    def forward(self, batch: PaddedBatch) -> Tensor:
        """Return the logits ``[B]``."""
        embedded, path, config = self.model.embeddings(batch.flat), self.path, self.model.config
        rows, count, items = len(batch.real_BL), config.sessions, config.session_items
        real_BST = batch.real_BL.view(rows, count, items)
        q_BQ, e_NK, _ = self.model.queries(batch.flat, embedded, self.history)
        bias_ST1 = (path.of_session.flip(0).unsqueeze(1) + path.of_event.flip(0)).unsqueeze(2)
        x_NK = (e_NK.view(rows, count, items, -1) + bias_ST1 + path.of_unit).flatten(0, 2)
        layer, there_BS = path.layer, real_BST.any(2)
        heads = (
            projection.view(rows * count, items, layer.heads, -1).transpose(1, 2) for projection in layer.project(x_NK)
        )
        # A session of padding alone attends to itself, as its softmax would be undefined otherwise.
        seen = (real_BST | ~there_BS.unsqueeze(2)).view(-1, 1, 1, items)
        o = F.scaled_dot_product_attention(*heads, attn_mask=seen, scale=1.0)
        y_BSTK = layer.rest(x_NK, o.transpose(1, 2).flatten(2).flatten(0, 1)).view(rows, count, items, -1)
        i_BSK = (y_BSTK * real_BST.unsqueeze(3)).sum(2) / real_BST.sum(2, keepdim=True).clamp(min=1)
        both = [_compute_states(lstm, i_BSK, there_BS) for lstm in (path.forth, path.back)]
        h_BSW = torch.cat(both, 2) if path.merge == "concat" else both[0] + both[1]
        read = []
        for query_BW, of_BSW in ((path.interest_query(q_BQ), i_BSK), (path.state_query(q_BQ), h_BSW)):
            s_BS = torch.einsum("bw,bsw->bs", query_BW, of_BSW).masked_fill(~there_BS, -1e30)
            read.append(torch.einsum("bs,bsw->bw", s_BS.softmax(1) * there_BS, of_BSW))
        return _compute_logits(self.model, [*embedded.features.values(), *read])


def _compute_logits(model: TopRanker, inputs: list[Tensor]) -> Tensor:
    """Return the logits ``[B]`` from the inputs of the top MLP."""
    return model.head(model.top.hidden(torch.cat(inputs, 1))).squeeze(1)


def _compute_states(lstm: LSTM, x_BSK: Tensor, moves_BS: Tensor) -> Tensor:
    """Return the states of a recurrence that does not change at sessions of padding: ``[B, S, H]``."""
    x_BSG = F.linear(x_BSK, lstm.weight, lstm.bias)
    h_BH = c_BH = x_BSG.new_zeros(len(x_BSK), lstm.hidden)
    states: list[Tensor] = []
    for step in range(x_BSK.shape[1] - 1, -1, -1) if lstm.reverse else range(x_BSK.shape[1]):
        i, f, o, g = (x_BSG[:, step] + F.linear(h_BH, lstm.recurrent)).chunk(4, 1)
        new_BH = f.sigmoid() * c_BH + i.sigmoid() * g.tanh()
        moves_B1 = moves_BS[:, step].unsqueeze(1)
        h_BH = torch.where(moves_B1, o.sigmoid() * new_BH.tanh(), h_BH)
        c_BH = torch.where(moves_B1, new_BH, c_BH)
        states.append(h_BH)
    return torch.stack(states[::-1] if lstm.reverse else states, 1)
