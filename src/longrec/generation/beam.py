"""Beam search over a trie, for all requests of a batch together, and exact scores of all its paths.

The score of a path is the sum of the log-probabilities of its tokens. They are taken after the softmax over all tokens
of a step, and tokens that are no child in the trie are left out afterwards. So the scores of different beams are
comparable, and equal those of teacher forcing. A rule can renormalize or smooth them over the children of a beam
(``child_rule.py``).

Only the children of live beams are gathered. A path is one leaf of the trie, so no path occurs twice.

Shapes: R requests, W beams, S steps, t tokens of a prefix, V tokens of a step, M children of all beams of a request, L
leaves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from longrec.generation.child_rule import PLAIN, ChildRule
from longrec.generation.trie import Trie

_NUMBERS = 4_000_000
"""Number of log-probabilities that are in memory together in exact scoring."""


class Steps(Protocol):
    """Log-probabilities of the next token after prefixes, for the requests of one batch."""

    def extend(self, prefix_RWt: Tensor, parent_RW: Tensor | None) -> Tensor:
        """Return the log-probabilities ``[R, W, V]`` after each beam's prefix, float32.

        Args:
            prefix_RWt: int64 tokens.
            parent_RW: int64, the beam of the call before that each beam extends, by which caches are reordered. None
                in the first call.
        """

    def score_shared(self, prefix_Wt: Tensor) -> Tensor:
        """Return the log-probabilities ``[R, W, V]`` of every request after prefixes that all requests have."""


@dataclass(frozen=True)
class DeviceTrie:
    """Arrays of a trie as tensors on a device. See ``Trie``."""

    tokens: tuple[Tensor, ...]
    starts: tuple[Tensor, ...]

    @classmethod
    def of(cls, trie: Trie, device: torch.device) -> DeviceTrie:
        """Copy a trie to a device."""
        tokens = tuple(torch.from_numpy(level).long().to(device) for level in trie.tokens)
        return cls(tokens, tuple(torch.from_numpy(level).to(device) for level in trie.starts))


@dataclass(frozen=True)
class Beams:
    """Paths that a search returns, the best first.

    Attributes:
        leaf: int64 ``[R, W]``, the leaf of the trie. -1 where a request has fewer paths.
        score: float32 ``[R, W]``. Minus infinity where there is no path.
        paths: int64 ``[R, W, S]``.
    """

    leaf: Tensor
    score: Tensor
    paths: Tensor


def search_beams(steps: Steps, trie: DeviceTrie, requests: int, width: int, rule: ChildRule = PLAIN) -> Beams:
    """Return the best paths of each request that a beam of a width reaches.

    It returns the best paths of all if the width is at least the number of nodes of every depth.
    """
    device = trie.tokens[0].device
    node = torch.zeros(requests, 1, dtype=torch.int64, device=device)
    score = torch.zeros(requests, 1, device=device)
    prefix = torch.zeros(requests, 1, 0, dtype=torch.int64, device=device)
    parent: Tensor | None = None
    for step, (token_m, start_n) in enumerate(zip(trie.tokens, trie.starts)):
        if not len(token_m):  # no item at all
            empty = node[:, :0]
            return Beams(empty, score[:, :0], empty.unsqueeze(2).expand(-1, -1, len(trie.tokens)))
        log_RWV = steps.extend(prefix, parent)
        live, at = node >= 0, node.clamp(min=0)
        first, count = start_n[at], (start_n[at + 1] - start_n[at]) * live
        end = count.cumsum(1)
        most = int(end[:, -1].max())
        slot_M = torch.arange(most, device=device)
        beam = torch.searchsorted(end, slot_M.expand(requests, most).contiguous(), right=True)
        real = beam < node.shape[1]
        beam = beam.clamp(max=node.shape[1] - 1)
        child = torch.where(real, first.gather(1, beam) + slot_M - (end - count).gather(1, beam), 0)
        token = token_m[child]
        log = log_RWV.flatten(1).gather(1, beam * log_RWV.shape[2] + token)
        if rule.renormalize:
            log = log - _add_children(log.masked_fill(~real, -torch.inf), beam, node.shape[1]).gather(1, beam)
        if rule.smooths(step):
            log = rule.smooth(log, count.gather(1, beam).clamp(min=1), torch)
        total = (score.gather(1, beam) + log).masked_fill(~real, -torch.inf)
        best = total.topk(min(width, most), 1)
        chosen = best.indices
        score, parent, real = best.values, beam.gather(1, chosen), real.gather(1, chosen)
        node = torch.where(real, child.gather(1, chosen), -1)
        own = prefix.gather(1, parent.unsqueeze(2).expand(-1, -1, prefix.shape[2]))
        prefix = torch.cat([own, torch.where(real, token.gather(1, chosen), 0).unsqueeze(2)], 2)
    return Beams(node, score, prefix)


def _add_children(log_RM: Tensor, beam_RM: Tensor, width: int) -> Tensor:
    """Return the logarithm of the sum of the probabilities of each beam's children, ``[R, W]``."""
    none = log_RM.new_full((len(log_RM), width), -torch.inf)
    top = none.scatter_reduce(1, beam_RM, log_RM, "amax").clamp(min=torch.finfo(log_RM.dtype).min)
    share = torch.exp(log_RM - top.gather(1, beam_RM))
    return top + torch.zeros_like(top).scatter_add(1, beam_RM, share).log()


def score_leaves(steps: Steps, trie: Trie, requests: int, device: torch.device, rule: ChildRule = PLAIN) -> Tensor:
    """Return the exact score of every path of a trie for every request, float32 ``[R, L]``, in the order of leaves.

    Each node is computed once, in blocks of nodes.
    """
    on_device = DeviceTrie.of(trie, device)
    score_Rn = torch.zeros(requests, 1, device=device)
    for step, (token_m, start_n) in enumerate(zip(on_device.tokens, on_device.starts)):
        if not len(token_m):
            return score_Rn[:, :0]
        prefix_nt = torch.from_numpy(trie.node_paths(step)).long().to(device)
        starts = trie.starts[step]
        block = max(1, _NUMBERS // (requests * trie.sizes[step]))
        blocks = []
        for at in range(0, len(prefix_nt), block):
            own = slice(at, at + block)
            log_RnV = steps.score_shared(prefix_nt[own])
            first, stop = int(starts[at]), int(starts[min(at + block, len(starts) - 1)])
            node = torch.searchsorted(start_n, torch.arange(first, stop, device=device), right=True) - 1 - at
            log_Rm = log_RnV.flatten(1).index_select(1, node * log_RnV.shape[2] + token_m[first:stop])
            if rule.renormalize:
                beam_Rm = node.expand(requests, -1)
                log_Rm = log_Rm - _add_children(log_Rm, beam_Rm, log_RnV.shape[1]).index_select(1, node)
            if rule.smooths(step):
                log_Rm = rule.smooth(log_Rm, start_n.diff()[at + node], torch)
            blocks.append(score_Rn[:, own].index_select(1, node) + log_Rm)
        score_Rn = torch.cat(blocks, 1)
    return score_Rn
