"""Beam search for one request in numpy, and the items of its paths: what a server does without torch.

It is the algorithm of ``beam.py``, which searches for all requests of a batch together and pads them to the same number
of children. One request needs no padding: the children of its beams are adjacent runs.

Items that may not be returned are left out in one of two ways. A few of them, such as those that a user has seen, are
dropped from the result of a beam that is wider by their number. Many of them leave the trie before the search. Either
way there are fewer items than wanted only if no others are allowed: each beam ends in at least one item.

Shapes: W beams, S steps, V tokens of a step, M children of all beams.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longrec.generation.child_rule import PLAIN, ChildRule
from longrec.generation.trie import Trie
from longrec.index.top import select_top

_AT_ONCE = 2_048
"""Number of prefixes that are scored together."""

Tokens = Sequence[NDArray[np.int32]]
ScoreTokens = Callable[[Tokens], NDArray[np.float32]]
"""Function from the tokens of prefixes, int32 ``[W]`` per step, to what each next token adds to the score of each,
float32 ``[W, V]``. Before the first step there is one prefix.
"""


@dataclass(frozen=True)
class Search:
    """A search that finds a number of allowed items, see ``plan_search``.

    Attributes:
        trie: trie to search.
        width: beams.
        dropped: mask of all items that are dropped from the result. None: none.
    """

    trie: Trie
    width: int
    dropped: NDArray[np.bool_] | None = None

    def list_items(
        self, leaf: NDArray[np.int64], score: NDArray[np.float32], count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the first items of leaves, and their scores. Items with equal paths come together."""
        first, stop = self.trie.leaf_starts[leaf], self.trie.leaf_starts[leaf + 1]
        entry, owner = _expand(first, stop)
        item = self.trie.items[entry]
        if self.dropped is not None:
            allowed = ~self.dropped[item]
            item, owner = item[allowed], owner[allowed]
        return item[:count], score[owner[:count]]


def plan_search(trie: Trie, count: int, width: int | None, allowed: NDArray[np.bool_] | None = None) -> Search:
    """Return the search that finds ``count`` allowed items, or all of them.

    Args:
        width: smallest number of beams. None: as many as there are paths, so that the search is exact.
        allowed: mask of all items by their numbers in the trie. None: all are allowed.
    """
    dropped, beams = None, max(width or 1, count)
    if allowed is not None:
        blocked = len(trie.items) - int(np.count_nonzero(allowed[trie.items]))
        if blocked > beams:
            trie = trie.select(allowed)
        elif blocked:
            dropped, beams = ~allowed, max(width or 1, count + blocked)
    return Search(trie, max(trie.leaves, 1) if width is None else beams, dropped)


def search_paths(
    score_tokens: ScoreTokens,
    trie: Trie,
    width: int,
    rule: ChildRule = PLAIN,
    *,
    check: Callable[[], None] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the leaves of the best paths that a beam of a width reaches, and their scores, the best first.

    Args:
        rule: how the children of a beam are scored.
        check: function that is called before each step. What it raises ends the search.
    """
    node, score, prefix = np.zeros(1, np.int64), np.zeros(1, np.float32), list[NDArray[np.int32]]()
    for step, (token_m, start_n) in enumerate(zip(trie.tokens, trie.starts)):
        if check is not None:
            check()
        first, stop = start_n[node], start_n[node + 1]
        child, beam = _expand(first, stop)
        if not len(child):  # no item at all
            return node[:0], score[:0]
        token = token_m[child]
        log = _score_children(score_tokens, prefix, len(node), token, np.cumsum(stop - first), beam)
        if rule.renormalize:
            log = log - _add_children(log, np.cumsum(stop - first) - (stop - first), beam)
        if rule.smooths(step):
            log = rule.smooth(log, (stop - first)[beam].astype(np.float32), np)
        total = score[beam] + log
        best = select_top(total, width)
        beam, node, score = beam[best], child[best], total[best]
        prefix = [*(tokens[beam] for tokens in prefix), token[best]]
    return node, score


def _expand(first: NDArray[np.int64], stop: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return all integers of ranges one after the other, and the range that each is in."""
    count = stop - first
    owner = np.repeat(np.arange(len(first)), count)
    return np.arange(len(owner)) + (first - np.cumsum(count) + count)[owner], owner


def _score_children(
    score_tokens: ScoreTokens,
    prefix: Tokens,
    width: int,
    token_M: NDArray[np.int32],
    end_W: NDArray[np.int64],
    beam_M: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Return what each child adds to the score of its beam, float32 ``[M]``."""
    logs = []
    for start in range(0, width, _AT_ONCE):
        stop = min(start + _AT_ONCE, width)
        own = slice(int(end_W[start - 1]) if start else 0, int(end_W[stop - 1]))
        log_WV = score_tokens([tokens[start:stop] for tokens in prefix])
        logs.append(log_WV[beam_M[own] - start, token_M[own]])
    return logs[0] if len(logs) == 1 else np.concatenate(logs)


def _add_children(
    log_M: NDArray[np.float32], start_W: NDArray[np.int64], beam_M: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the logarithm of the sum of the probabilities of all children of the same beam, for each, ``[M]``.

    Every beam has at least one child.
    """
    top_W = np.maximum.reduceat(log_M, start_W)
    total_W: NDArray[np.float32] = top_W + np.log(np.add.reduceat(np.exp(log_M - top_W[beam_M]), start_W))
    return total_W[beam_M]
