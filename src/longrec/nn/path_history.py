"""History of a generator: vectors of events, with the codes of their items beside them, as keys and values.

    h_j = W RMSNorm([e_item; e_category; ...])       from the columns of events that are no codes
    g_j = RMSNorm(W' [e_code_1; e_code_2; ...])      from their codes, as positions of their own
    k, v = W^KV (encoder([h; g] + positions))

Shapes: R requests, N events, M = N, or 2 N with codes as positions of their own, D width, L layers of a decoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longrec.nn.bucketed_attention import BucketedAttention
from longrec.nn.cross_attention import HistoryKeys
from longrec.nn.dropout import Dropout
from longrec.nn.linear import Linear
from longrec.nn.rms_norm import RMSNorm
from longrec.nn.segments import Segments
from longrec.nn.transformer import EncoderLayer


class PathHistory(nn.Module):
    """Encoder of a history.

    Args:
        columns: names of the columns of h, and of those of g. Either may be empty.
        width: D, of all embeddings too.
        layers: L.
        encoder_layers: transformer layers over the positions.
        positions: distinct positions, counted from the newest event. 0: none.
    """

    def __init__(
        self,
        columns: tuple[Sequence[str], Sequence[str]],
        width: int,
        layers: int,
        heads: int,
        *,
        encoder_layers: int,
        positions: int,
        dropout: float,
        std: float,
    ) -> None:
        super().__init__()
        self.columns, self.layers, self.heads, self.width = columns, layers, heads, width
        events, codes = (len(names) * width for names in columns)
        self.event_norm = RMSNorm(events) if events else None
        self.event_map = Linear(events, width) if events else None
        self.code_map = Linear(codes, width) if codes else None
        self.code_norm = RMSNorm(width) if codes else None
        self.positions = nn.Parameter(torch.randn(positions, width) * std) if positions else None
        self.encoder = nn.ModuleList(
            EncoderLayer(width, heads, 4 * width, dropout=dropout) for _ in range(encoder_layers)
        )
        self.keys, self.dropout = Linear(width, 2 * layers * width, bias=False), Dropout(dropout)

    def read(self, e: Mapping[str, Tensor]) -> list[Tensor]:
        """Return h and g ``[N, D]`` from the embeddings of the columns. They depend on the event alone."""
        vectors = []
        if self.event_norm is not None and self.event_map is not None:
            vectors.append(self.event_map(self.event_norm(torch.cat([e[name] for name in self.columns[0]], 1))))
        if self.code_norm is not None and self.code_map is not None:
            vectors.append(self.code_norm(self.code_map(torch.cat([e[name] for name in self.columns[1]], 1))))
        return vectors

    def forward(self, vectors: Sequence[Tensor], segments: Segments) -> tuple[HistoryKeys, Tensor]:
        """Return keys and values for every layer of a decoder, and the mean ``[R, D]`` of the vectors.

        Args:
            vectors: h and g at the positions of the segments.
            segments: R rows that share no positions, or one shared history.
        """
        every = segments.multiply(len(vectors))
        x_MD = vectors[0] if len(vectors) == 1 else torch.stack(list(vectors), 1).flatten(0, 1)
        mean_RD = every.mean(x_MD)
        if self.positions is not None:
            back_N = segments.count_newer().clamp(max=len(self.positions) - 1)
            p_ND = F.embedding(back_N, self.positions)
            x_MD = (x_MD.view(-1, len(vectors), self.width) + p_ND.unsqueeze(1)).flatten(0, 1)
        x_MD = self.dropout(x_MD)
        if len(self.encoder):
            attention = BucketedAttention(every)
            x_MD = attention.gather_positions(x_MD)
            for layer in self.encoder:
                x_MD = layer(x_MD, attention)
            x_MD = attention.restore_positions(x_MD)
        return HistoryKeys.build(self.keys(x_MD), every, self.layers, self.heads), mean_RD
