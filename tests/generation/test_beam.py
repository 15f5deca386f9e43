"""Beam search and exact scores against all paths of a small trie, scored by plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from longrec.generation.beam import Beams, DeviceTrie, score_leaves, search_beams
from longrec.generation.trie import Trie

SIZES, REQUESTS = (4, 5, 6), 3
CPU = torch.device("cpu")


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


def score(table: Table, trie: Trie, request: int, path: list[int], renormalize: bool) -> float:
    """The score of a path, from the definition."""
    total = 0.0
    for step, token in enumerate(path):
        logs = table.logs[step][(request, *path[:step])]
        total += float(logs[token])
        if renormalize:
            children = {p[step] for p in trie.paths.tolist() if p[:step] == path[:step]}
            total -= math.log(sum(math.exp(float(logs[child])) for child in children))
    return total


@pytest.mark.parametrize("renormalize", [False, True])
def test_a_beam_wider_than_the_paths_equals_exhaustive_scoring(renormalize: bool) -> None:
    table, trie = Table(), make_trie()
    exact = score_leaves(table, trie, REQUESTS, CPU, renormalize=renormalize)
    beams = search_beams(table, DeviceTrie.of(trie, CPU), REQUESTS, 10_000, renormalize=renormalize)
    leaves = trie.leaf_paths().tolist()
    for request in range(REQUESTS):
        expected = [score(table, trie, request, path, renormalize) for path in leaves]
        torch.testing.assert_close(exact[request], torch.tensor(expected), rtol=1e-5, atol=1e-5)
        assert beams.leaf[request].sort().values.tolist() == list(range(trie.leaves))
        assert beams.paths[request].tolist() == [leaves[leaf] for leaf in beams.leaf[request].tolist()]
        assert bool((beams.score[request].diff() <= 0).all())
    torch.testing.assert_close(beams.score, exact.gather(1, beams.leaf), rtol=1e-5, atol=1e-5)
    total = exact.exp().sum(1)
    assert torch.allclose(total, torch.ones(REQUESTS), atol=1e-5) if renormalize else bool((total < 0.999).all())


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
