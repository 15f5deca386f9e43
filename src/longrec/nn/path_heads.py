"""Heads of the steps of a path, over the decoder, the tokens before, their content summaries and the request.

    u_t = [q_t; norm(sum_{s<t} e_{y_s}); norm(c_t); h_agg],      logits = g_t(u_t)

g_t is SENet and a MaskBlock (nn/rank_head.py). c_t are the summaries of all pairs whose tokens are both before t.

Shapes: N rows, S steps, D width, A width of h_agg, K width of a summary, V logits of a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from longrec.nn.content_summary import ContentSummary
from longrec.nn.rank_head import RankHead
from longrec.nn.rms_norm import RMSNorm


class PathHeads(nn.Module):
    """One head per step.

    Args:
        sizes: V of each step.
        width: D.
        aggregate: A.
        pairs: two steps each.
        summary: summaries of the pairs. None without pairs.
        mask, hidden: sizes of each head.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        width: int,
        aggregate: int,
        pairs: Sequence[tuple[int, int]],
        summary: ContentSummary | None,
        mask: int,
        hidden: int,
        rate: float,
    ) -> None:
        super().__init__()
        self.pairs, self.summary = pairs, summary
        self.prefix_norm = RMSNorm(width) if len(sizes) > 1 else None
        self.summary_norm = RMSNorm(summary.width) if summary is not None else None
        self.steps = nn.ModuleList()
        for step, size in enumerate(sizes):
            summaries = [summary.width for _ in self.list_pairs(step)] if summary is not None else []
            groups = [width, *[width] * (step > 0), *summaries, aggregate]
            self.steps.append(RankHead(groups, mask, hidden, size, rate))

    def list_pairs(self, step: int) -> list[int]:
        """Return the pairs whose tokens are both before a step."""
        return [pair for pair, ends in enumerate(self.pairs) if max(ends) < step]

    def summarize(self, tokens: Sequence[Tensor]) -> dict[int, Tensor]:
        """Return the normalized summaries ``[N, K]`` of all pairs of the first tokens, ``[N]`` per step. One lookup."""
        if self.summary is None or self.summary_norm is None:
            return {}
        ready = self.list_pairs(len(tokens))
        vectors = self.summary([(pair, *(tokens[end] for end in self.pairs[pair])) for pair in ready])
        return {pair: self.summary_norm(c_NK) for pair, c_NK in zip(ready, vectors)}

    def add(self, e: Sequence[Tensor]) -> Tensor:
        """Return the normalized sum of the embeddings of the tokens before a step, of any shape ``[..., D]``."""
        assert self.prefix_norm is not None
        total = e[0]
        for one in e[1:]:
            total = total + one
        out: Tensor = self.prefix_norm(total)
        return out

    def forward(
        self, step: int, q_ND: Tensor, total_ND: Tensor | None, summaries: Mapping[int, Tensor], aggregate_NA: Tensor
    ) -> Tensor:
        """Return the logits ``[N, V]`` of a step.

        Args:
            total_ND: result of ``add``. None at the first step.
            summaries: result of ``summarize`` for the tokens before, or more.
        """
        sums = [] if total_ND is None else [total_ND]
        own = [summaries[pair] for pair in self.list_pairs(step)] if self.summary is not None else []
        logits: Tensor = self.steps[step]([q_ND, *sums, *own, aggregate_NA])
        return logits
