"""Beam search and exact scores against all paths of a small trie, scored by plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from longrec.generation.beam import Beams, DeviceTrie, score_leaves, search_beams
from longrec.generation.child_rule import ChildRule
from longrec.generation.trie import Trie

SIZES, REQUESTS = (4, 5, 6), 3
CPU = torch.device("cpu")
RULES = [ChildRule(), ChildRule(True), ChildRule(False, 0.3, 1), ChildRule(True, 0.2, 2), ChildRule(True, 0.4)]


class Table:
    """Log-probabilities that depend on the request and all tokens of a prefix."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        shapes = [(REQUESTS, *SIZES[: step + 1]) for step in range(3)]
        self.logs = [(torch.randn(shape, generator=generator) * 2).log_softmax(-1) for shape in shapes]
        self.parents: list[Tensor | None] = []

    def extend(self, prefix_RWt: Tensor, parent_RW: Tensor | None) -> Tensor:
        self.parents.append(parent_RW)
        rows = torch.arange(REQUESTS).unsqueeze(1).expand(prefix_RWt.shape[:2])
        return self.logs[prefix_RWt.shape[2]][(rows, *prefix_RWt.unbind(2))]

    def score_shared(self, prefix_Wt: Tensor) -> Tensor:
        return self.extend(prefix_Wt.expand(REQUESTS, -1, -1), None)


def make_trie(count: int = 50) -> Trie:
    return Trie.build(np.random.default_rng(0).integers(0, SIZES, (count, 3)), np.arange(count), SIZES)


def score(table: Table, trie: Trie, request: int, path: list[int], rule: ChildRule) -> float:
    """The score of a path, from the definition."""
    total = 0.0
    for step, token in enumerate(path):
        chances = table.logs[step][(request, *path[:step])].exp().tolist()
        children = {p[step] for p in trie.paths.tolist() if p[:step] == path[:step]}
        chance = chances[token] / (sum(chances[child] for child in children) if rule.renormalize else 1)
        share = rule.smoothing if step >= rule.first else 0.0
        total += math.log((1 - share) * chance + share / len(children))
    return total


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_beam_wider_than_the_paths_equals_exhaustive_scoring(rule: ChildRule) -> None:
    table, trie = Table(), make_trie()
    exact = score_leaves(table, trie, REQUESTS, CPU, rule)
    beams = search_beams(table, DeviceTrie.of(trie, CPU), REQUESTS, 10_000, rule)
    leaves = trie.leaf_paths().tolist()
    for request in range(REQUESTS):
        expected = [score(table, trie, request, path, rule) for path in leaves]
        torch.testing.assert_close(exact[request], torch.tensor(expected), rtol=1e-5, atol=1e-5)
        assert beams.leaf[request].sort().values.tolist() == list(range(trie.leaves))
        assert beams.paths[request].tolist() == [leaves[leaf] for leaf in beams.leaf[request].tolist()]
        assert bool((beams.score[request].diff() <= 0).all())
    torch.testing.assert_close(beams.score, exact.gather(1, beams.leaf), rtol=1e-5, atol=1e-5)
    total = exact.exp().sum(1)
    assert torch.allclose(total, torch.ones(REQUESTS), atol=1e-5) if rule.renormalize else bool((total < 0.999).all())


def by_hand(table: Table, trie: Trie, request: int, width: int) -> list[tuple[float, list[int]]]:
    """A beam search over lists."""
    beams: list[tuple[float, list[int]]] = [(0.0, [])]
    paths = trie.paths.tolist()
    for step in range(3):
        longer = [
            (total + float(table.logs[step][(request, *prefix, token)]), [*prefix, token])
            for total, prefix in beams
            for token in sorted({path[step] for path in paths if path[:step] == prefix})
        ]
        beams = sorted(longer, key=lambda beam: -beam[0])[:width]
    return beams


@pytest.mark.parametrize("width", [1, 2, 3, 7])
def test_a_narrow_beam_equals_one_over_lists(width: int) -> None:
    table, trie = Table(), make_trie(20)
    beams = search_beams(table, DeviceTrie.of(trie, CPU), REQUESTS, width)
    for request in range(REQUESTS):
        expected = by_hand(table, trie, request, width)
        real = beams.leaf[request] >= 0
        assert beams.paths[request][real].tolist() == [path for _, path in expected]
        assert beams.score[request][real].tolist() == pytest.approx([total for total, _ in expected], abs=1e-5)
        assert (beams.score[request][~real] == -torch.inf).all()


def test_parents_are_the_beams_that_were_extended() -> None:
    """Caches are reordered by them: the prefix of a beam is that of its parent and one token."""
    table, trie = Table(), make_trie()
    prefixes: list[Tensor] = []

    class Recording(Table):
        def extend(self, prefix_RWt: Tensor, parent_RW: Tensor | None) -> Tensor:
            prefixes.append(prefix_RWt)
            return super().extend(prefix_RWt, parent_RW)

    table = Recording()
    search_beams(table, DeviceTrie.of(trie, CPU), REQUESTS, 4)
    assert table.parents[0] is None
    for step in (1, 2):
        parent = table.parents[step]
        assert parent is not None
        index = parent.unsqueeze(2).expand(-1, -1, step - 1)
        assert torch.equal(prefixes[step][:, :, :-1], prefixes[step - 1].gather(1, index))


def test_an_empty_trie_has_no_path() -> None:
    trie = make_trie(0)
    beams: Beams = search_beams(Table(), DeviceTrie.of(trie, CPU), REQUESTS, 4)
    assert beams.leaf.shape == beams.score.shape == (REQUESTS, 0)
    assert beams.paths.shape == (REQUESTS, 0, 3)
    assert score_leaves(Table(), trie, REQUESTS, CPU).shape == (REQUESTS, 0)


def test_smoothing_finds_an_item_whose_last_token_has_no_probability() -> None:
    """A model that has never seen an item gives its last token no chance, however likely its prefix is."""

    class Learned(Table):
        def extend(self, prefix_RWt: Tensor, parent_RW: Tensor | None) -> Tensor:
            logs = torch.full((*prefix_RWt.shape[:2], SIZES[prefix_RWt.shape[2]]), -30.0)
            logs[..., 1] = 0.0
            return logs

    paths = np.array([[1, 1, 1], [1, 1, 2], *([0, token, token] for token in range(5))])
    trie = DeviceTrie.of(Trie.build(paths, np.arange(len(paths)), SIZES), CPU)
    for rule, expected in ((ChildRule(), -30.0), (ChildRule(smoothing=0.1, first=2), math.log(0.05))):
        beams = search_beams(Learned(), trie, 1, 10, rule)
        at = beams.paths[0].tolist().index([1, 1, 2])
        assert float(beams.score[0, at]) == pytest.approx(expected, abs=1e-5)
