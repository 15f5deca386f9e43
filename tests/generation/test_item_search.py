"""The search for one request in numpy against the search for batches, and items that may not be returned."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from longrec.generation import item_search
from longrec.generation.beam import DeviceTrie, search_beams
from longrec.generation.child_rule import ChildRule
from longrec.generation.item_search import Tokens, plan_search, search_paths
from longrec.generation.trie import Trie

SIZES, REQUESTS, ITEMS = (4, 5, 6), 3, 90


class Table:
    """Log-probabilities that depend on the request and all tokens of a prefix."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        shapes = [(REQUESTS, *SIZES[: step + 1]) for step in range(3)]
        self.logs = [(torch.randn(shape, generator=generator) * 2).log_softmax(-1) for shape in shapes]

    def extend(self, prefix_RWt: Tensor, parent_RW: Tensor | None) -> Tensor:
        rows = torch.arange(REQUESTS).unsqueeze(1).expand(prefix_RWt.shape[:2])
        return self.logs[prefix_RWt.shape[2]][(rows, *prefix_RWt.unbind(2))]

    def score_shared(self, prefix_Wt: Tensor) -> Tensor:
        return self.extend(prefix_Wt.expand(REQUESTS, -1, -1), None)

    def score_tokens(self, request: int, prefix: Tokens) -> NDArray[np.float32]:
        logs: NDArray[np.float32] = self.logs[len(prefix)][request].numpy()
        return logs[tuple(prefix)] if prefix else logs[None]


def make_trie(count: int = ITEMS) -> Trie:
    return Trie.build(np.random.default_rng(0).integers(0, SIZES, (count, 3)), np.arange(count), SIZES)


@pytest.mark.parametrize(
    "rule", [ChildRule(), ChildRule(True), ChildRule(False, 0.3, 1), ChildRule(True, 0.2)], ids=str
)
@pytest.mark.parametrize("width", [1, 3, 7, 1_000])
def test_it_is_the_search_for_batches(width: int, rule: ChildRule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_search, "_AT_ONCE", 5)  # beams in several blocks
    table, trie = Table(), make_trie()
    beams = search_beams(table, DeviceTrie.of(trie, torch.device("cpu")), REQUESTS, width, rule)
    for request in range(REQUESTS):
        leaf, score = search_paths(partial(table.score_tokens, request), trie, width, rule)
        real = beams.leaf[request] >= 0
        assert leaf.tolist() == beams.leaf[request][real].tolist()
        np.testing.assert_allclose(score, beams.score[request][real].numpy(), atol=1e-6)


@pytest.mark.parametrize("width", [4, None])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.97, 1.0])
def test_as_many_allowed_items_are_returned_as_there_are(share: float, width: int | None) -> None:
    table, trie = Table(), make_trie()
    allowed = np.random.default_rng(1).random(ITEMS) >= share
    for count in (1, 6, ITEMS + 5):
        search = plan_search(trie, count, width, allowed)
        leaf, score = search_paths(partial(table.score_tokens, 0), search.trie, search.width)
        item, own = search.list_items(leaf, score, count)
        assert len(item) == len(own) == len(set(item.tolist())) == min(count, int(allowed.sum()))
        assert allowed[item].all()
        assert (np.diff(own) <= 0).all()
        tokens = trie.paths[np.argsort(trie.items)][item]
        logs = [table.logs[step][(0, *tokens[:, : step + 1].T)].numpy() for step in range(3)]
        np.testing.assert_allclose(own, np.sum(logs, 0), atol=1e-5)
        if width is None:  # the best of all allowed items
            every = sum(table.logs[step][(0, *trie.paths[:, : step + 1].T)].numpy() for step in range(3))
            best = np.sort(every[allowed[trie.items]])[::-1][:count]
            np.testing.assert_allclose(own, best, atol=1e-5)


def test_few_items_are_dropped_and_many_leave_the_trie() -> None:
    trie, allowed = make_trie(), np.ones(ITEMS, np.bool_)
    assert plan_search(trie, 5, 8).width == 8
    assert plan_search(trie, 20, 8, allowed).width == 20
    allowed[:7] = False
    search = plan_search(trie, 5, 8, allowed)
    assert search.trie is trie
    assert search.width == 12
    allowed[:60] = False
    search = plan_search(trie, 5, 8, allowed)
    assert (len(search.trie.items), search.width, search.dropped) == (30, 8, None)
    assert plan_search(trie, 5, None, allowed).width == search.trie.leaves


def test_a_check_ends_a_search_before_a_step() -> None:
    table, left = Table(), [2]

    def check() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        search_paths(partial(table.score_tokens, 0), make_trie(), 4, check=check)
    assert left == [-1]


def test_an_empty_trie_has_no_path() -> None:
    leaf, score = search_paths(partial(Table().score_tokens, 0), make_trie(0), 4)
    assert leaf.shape == score.shape == (0,)
    assert plan_search(make_trie(3), 2, 4, np.zeros(3, np.bool_)).list_items(leaf, score, 2)[0].shape == (0,)
