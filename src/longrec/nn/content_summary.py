"""Content summaries: hashes of pairs of tokens, looked up in a small table.

For the tokens of a pair, with x and y counted from 1, and a salt per pair:

    H_1 = x + y,   H_2 = x y,   H_3 = p_1 x + p_2 y
    c = [E[(H_1 + salt) mod S]; E[(H_2 + salt) mod S]; E[(H_3 + salt) mod S]]
    S = floor((V_x V_y)^(2/3))                                                       by default

With tokens counted from 0, a token 0 would make H_2 zero for every partner. Without the salt all pairs of columns would
share rows. The three hashes together tell pairs apart that one of them confuses.

Shapes: N rows, P pairs, M = 3 hashes, S rows of a table, K width of a hash.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longrec.features.fields import Field, Fields
from longrec.nn.embedding import RESERVED, Embeddings

HASHES = 3
_PRIMES = (1_000_003, 8_191)
_SALT = 2_654_435_761
"""A prime beyond all table sizes, so that the salts of pairs differ in any table."""


def compute_rows(first: int, second: int) -> int:
    """Return S of a pair of vocabularies.

    >>> compute_rows(4000, 4000)
    63496
    """
    rows = round((first * second) ** (2 / 3))
    square = (first * second) ** 2
    while rows**3 > square:
        rows -= 1
    while (rows + 1) ** 3 <= square:
        rows += 1
    return max(rows, 1)


class ContentSummary(nn.Module):
    """Summaries of pairs of tokens.

    Args:
        sizes: numbers of tokens of both tokens of each pair.
        width: K.
        shared: one table for all pairs, of the largest S. Otherwise one table per pair.
        rows: S of every table. None: the formula.

    Attributes:
        width: 3 K, of the summary of one pair.
    """

    def __init__(
        self, sizes: Sequence[tuple[int, int]], width: int, *, shared: bool = True, rows: int | None = None, std: float
    ) -> None:
        super().__init__()
        counts = [rows or compute_rows(*pair) for pair in sizes]
        self.rows = [max(counts)] * len(counts) if shared else counts
        self.width, self.shared = HASHES * width, shared
        names = ["summary"] if shared else [f"summary_{pair}" for pair in range(len(sizes))]
        self._names = names * len(sizes) if shared else names
        fields = [Field(name, "id", RESERVED + rows, side="item") for name, rows in zip(names, self.rows)]
        self.embeddings = Embeddings(Fields(tuple(fields), {}), width=width, std=std)

    def hash(self, pair: int, x: Tensor, y: Tensor) -> Tensor:
        """Return the rows of the table, int64 ``[N, M]``.

        Args:
            x, y: integers ``[N]``, the tokens of the pair, from 0.
        """
        x, y = x.long() + 1, y.long() + 1
        hashes = torch.stack([x + y, x * y, _PRIMES[0] * x + _PRIMES[1] * y], 1)
        return (hashes + _SALT % self.rows[pair] * pair) % self.rows[pair] + RESERVED

    def forward(self, pairs: Sequence[tuple[int, Tensor, Tensor]]) -> list[Tensor]:
        """Return the summary ``[N, M K]`` of each (pair, x, y). Each table is read once."""
        if not pairs:
            return []
        ids = [self.hash(*pair).flatten() for pair in pairs]
        vectors: dict[int, Tensor] = {}
        for name in dict.fromkeys(self._names[pair] for pair, _, _ in pairs):
            own = [at for at, (pair, _, _) in enumerate(pairs) if self._names[pair] == name]
            table = self.embeddings.table(name)
            if torch.is_grad_enabled():
                rows_read = self.embeddings.tables[name].look_up(table, [ids[at].int() for at in own])
            else:
                rows_read = [F.embedding(ids[at], table) for at in own]
            vectors |= dict(zip(own, rows_read))
        return [vectors[at].view(-1, self.width) for at in range(len(pairs))]
