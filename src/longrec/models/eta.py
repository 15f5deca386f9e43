r"""ETA: End-to-End User Behavior Retrieval in Click-Through Rate Prediction Model.

Chen, Pei, Lv, Li, Ge, Ou, arXiv 2021. https://arxiv.org/abs/2108.04468

Attention over a whole life of events is too slow, and a search by another model reads vectors that are not those of the
ranking. ETA searches by the bits of its own present vectors, which are cheap to compare:

    h(x) = [x r_1 > 0, ..., x r_m > 0]                      with fixed random directions r             (SimHash)
    S    = the k events j with the smallest Hamming distance of h(e_j) and h(v), the newest first of equal ones
    u    = MultiHead(v, S, S),   u' = MultiHead'(v, the newest events)                                 (attention)
    logit = MLP([fields of the impression, u, u'])

for the candidate v. A history of at most k events is read as a whole, without hashes. The choice has no gradient. The
chosen events have that of the attention.

Departures from the paper
    - h reads the columns that candidate and events share, so that an event with the same values has distance 0, while
      the attention reads all columns of an event;
    - the search is over all events, those of the short-term branch too. ``recent: 0`` has no such branch;
    - by default 32 bits, as in the benchmark LongCTR, where the paper takes twice the width of a vector;
    - hashes are computed for each batch and not stored with the item;
    - of events at one distance the newest are chosen, which the paper leaves open;
    - each history has directions and attention of its own; for a history of instance tokens, which shares no column
      with the candidate, v is a learned projection of all fields of the candidate, as wide as the keys.

In training the bits are packed into words. The k-th smallest distance of each row is read from a count of its
distances, so nothing is sorted. For a shared history distances are one product of signs, as programs have no operator
that counts bits.

Shapes: B rows, N history positions of the batch, T positions of a history shared by all rows, U stored positions
(nn/segments.py), M chosen positions (nn/chosen.py), W words of 64 bits, Q width of the query, K width of an event, H
units of the last hidden layer.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from longrec.features.batch import Batch
from longrec.features.fields import Fields
from longrec.models.core.top import TopConfig, TopRanker, Width
from longrec.nn import kernels
from longrec.nn.chosen import Chosen, choose_newest, gather_each
from longrec.nn.embedding import Embedded, Embeddings
from longrec.nn.long_rows import map_blocks
from longrec.nn.queries import Queries
from longrec.nn.segments import Segments
from longrec.nn.selection import search_top
from longrec.nn.simhash import SimHash, count_different_bits, pack_bits, to_signs
from longrec.nn.target_heads import TargetHeads

_LONGEST_CHECKED = 7
"""Events of a history in the conformance suite. With settings above, order has no effect in so short a history."""


class ETAConfig(TopConfig):
    """Settings of ETA."""

    bits: int = Field(32, ge=1, le=256, description="Bits of a hash.")
    selected: Width = Field(48, description="Number of events that are nearest to the candidate and are attended to.")
    recent: int = Field(
        50, ge=0, description="Number of newest events that are attended to as well; 0: no such branch."
    )
    width: Width = Field(64, description="Width of an attention's result.")
    heads: Width = Field(4, description="Heads of an attention.")


class ETA(TopRanker):
    """ETA over every history of the schema."""

    Config = ETAConfig
    reads_history = True
    events_per_candidate = False
    reads_groups = True
    variants: ClassVar[tuple[dict[str, Any], ...]] = (
        {"selected": 5, "recent": 2, "bits": 70, "width": 10, "heads": 3, "mlp": [32]},
        {"selected": 4, "recent": 0, "bits": 6, "width": 12, "heads": 2, "batch_norm": False},
    )

    def __init__(self, config: ETAConfig, fields: Fields) -> None:
        super().__init__(config, fields)
        self.order_matters = min(config.selected, config.recent or config.selected) < _LONGEST_CHECKED
        self.embeddings = Embeddings(fields, config.embedding_dim, histories=True, std=config.init_std, joined=True)
        width = self.embeddings.widths
        self.queries = Queries(fields, width, "eta")
        self.paths = nn.ModuleDict()
        for history in fields.histories:
            q, k = self.queries.query_widths[history], self.queries.key_widths[history]
            self.paths[f"path_{history}"] = _Path(q, k, config)
        branches = 2 if config.recent else 1
        top = sum(width[field.name] for field in fields.features)
        self.set_top(top + branches * len(fields.histories) * config.width, config)

    def read(self, batch: Batch, embedded: Embedded) -> list[Tensor]:
        """Return all fields of the impression, and u and u' of each history."""
        inputs = list(embedded.features.values())
        for history in self.fields.histories:
            inputs += self._path(history)(*self.queries(batch, embedded, history))
        return inputs

    def explain(self, batch: Batch) -> dict[str, Tensor]:
        """Return the attention to the selected events, mean over heads, 0 to others: ``[N]``, shared ``[B, T]``."""
        embedded, weights = self.embed(batch), {}
        for history in self.fields.histories:
            q_BQ, k_UK, segments = self.queries(batch, embedded, history)
            path = self._path(history)
            nearest = path.search(q_BQ, k_UK, segments)
            w_M = path.long.weights(q_BQ, nearest.gather(k_UK), nearest).mean(1)
            positions = segments.rows * segments.positions if segments.shared else segments.positions
            weights[history] = segments.by_candidate(nearest.spread(w_M, positions))
        return weights

    def _path(self, history: str) -> _Path:
        return cast(_Path, self.paths[f"path_{history}"])


class _Path(nn.Module):
    """Search and attention of one history."""

    def __init__(self, query: int, key: int, config: ETAConfig) -> None:
        super().__init__()
        self.query, self.selected, self.recent = query, config.selected, config.recent
        self.hash = SimHash(query, config.bits)
        self.long = TargetHeads(query, key, config.width, config.heads)
        self.short = TargetHeads(query, key, config.width, config.heads) if config.recent else None

    def search(self, q_BQ: Tensor, k_UK: Tensor, segments: Segments) -> Chosen:
        """Return the events of each row that are nearest to the candidate."""
        traced = kernels.is_traced()
        if not traced and (segments.positions if segments.shared else _longest(segments)) <= self.selected:
            return Chosen(segments)
        bits_BM, x_UQ = self.hash(q_BQ), k_UK[:, : self.query]
        if segments.shared:
            return choose_nearest_shared(bits_BM, self.hash(x_UQ), segments, self.selected)
        word_UW = map_blocks(lambda x_XQ: pack_bits(self.hash(x_XQ)), x_UQ)
        return choose_nearest(bits_BM, word_UW, segments, self.selected)

    def forward(self, q_BQ: Tensor, k_UK: Tensor, segments: Segments) -> list[Tensor]:
        """Return u, and u' with a short-term branch: ``[B, D]`` each."""
        nearest = self.search(q_BQ, k_UK, segments)
        if self.short is None:
            return [self.long(q_BQ, nearest.gather(k_UK), nearest)]
        newest = choose_newest(segments, self.recent)
        long_MK, short_MK = gather_each(k_UK, [nearest, newest])
        return [self.long(q_BQ, long_MK, nearest), self.short(q_BQ, short_MK, newest)]


def choose_nearest(bits_BM: Tensor, word_UW: Tensor, segments: Segments, count: int) -> Chosen:
    """Return the nearest ``count`` positions of each row, in their order; the newest of those at equal distance.

    All sizes follow from the offsets on the host, so the device is not waited for.

    Args:
        bits_BM: bits of the candidates.
        word_UW: packed bits of the events.
    """
    bits, device = bits_BM.shape[1], bits_BM.device
    word_NW, flat = segments.flatten(word_UW)
    stored_N, _ = segments.flatten(torch.arange(segments.requests.positions, device=device))
    row_N, rows = flat.row, flat.rows
    distance_N = count_different_bits(word_NW, pack_bits(bits_BM).index_select(0, row_N))
    # nearer[b, d]: number of events of row b at a distance below d.
    at_BD = torch.zeros(rows * (bits + 2), dtype=torch.int64, device=device)
    at_BD.scatter_add_(0, row_N * (bits + 2) + distance_N + 1, torch.ones_like(distance_N))
    nearer_BD = at_BD.view(rows, bits + 2).cumsum(1)
    last_B = (nearer_BD[:, 1:] < count).sum(1)  # the greatest distance of a chosen event, bits + 1 if all are chosen
    left_B = count - nearer_BD.gather(1, last_B.unsqueeze(1)).squeeze(1)  # number of events chosen at this distance
    tie_N = distance_N == last_B.index_select(0, row_N)
    ties_N = torch.cat([tie_N.new_zeros(1, dtype=torch.int64), tie_N.cumsum(0)])
    oldest_B = ties_N.index_select(0, flat.offsets[1:]) - left_B  # ties up to this one are too old
    chosen_N = (distance_N < last_B.index_select(0, row_N)) | (tie_N & (ties_N[1:] > oldest_B.index_select(0, row_N)))
    bounds = np.append(0, np.minimum(np.diff(flat.host_offsets), count).cumsum())
    total = int(bounds[-1])
    slot_N = torch.where(chosen_N, chosen_N.cumsum(0) - 1, total)
    position_N = torch.arange(flat.positions, device=device)
    position_M = position_N.new_empty(total + 1).scatter_(0, slot_N, position_N)[:total]
    stored_M = stored_N.index_select(0, position_M)
    return Chosen(Segments.of_offsets(bounds, device), stored_M, position_M=position_M)


def choose_nearest_shared(bits_BM: Tensor, bits_TM: Tensor, segments: Segments, count: int) -> Chosen:
    """Return a list of the nearest positions of a shared history for each row, at most ``count``, from their bits.

    A product of signs is the greater the smaller the distance is.
    """
    sign_BM, length = to_signs(bits_BM), segments.positions
    with kernels.disable_autocast():
        if kernels.is_traced():
            nearest = search_top(
                lambda sign_TM: segments.dot(sign_BM, sign_TM).int(), [to_signs(bits_TM)], segments, count
            )
            return Chosen(segments, nearest.stored, nearest.rows.positions)
        product_BT = sign_BM @ to_signs(bits_TM).t()
    # One integer of nearness and age, below 2^31 for any history that fits into memory.
    key_BT = product_BT.to(torch.int32) * length + torch.arange(length, dtype=torch.int32, device=bits_BM.device)
    stored_BS = key_BT.topk(count, 1, sorted=False).indices
    row_B1 = torch.arange(segments.rows, device=bits_BM.device).unsqueeze(1)
    return Chosen(segments, stored_BS.flatten(), count, position_M=(row_B1 * length + stored_BS).flatten())


def _longest(segments: Segments) -> int:
    """Return the length of the longest history of a batch that is not shared."""
    return int(np.diff(segments.host_offsets).max(initial=0))
