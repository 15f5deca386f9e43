"""SURGE: the tests that its section of the notes lists, by their letters, its equations, and its regularizers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from synthetic_runs import solves
from torch import Tensor

from longrec.data import synthetic
from longrec.models.surge import SURGE, Nodes, _ClusterAttention, _Path, _QueryAttention, average_neighbors, regularize
from longrec.nn.interest_graph import InterestGraph, choose_edges, count_edges, measure_similarity, scale_rows
from longrec.nn.segments import Segments
from longrec.testing.batches import FEW, offsets, ragged, repeated, shared, take
from longrec.testing.case import Case, scores

SMALL: dict[str, Any] = {"attention": [6], "hidden": 5, "mlp": [12]}
SETTINGS: list[dict[str, Any]] = [{"pool_length": 3}, {"pooling": "soft", "pool_length": 4, "metric_heads": 2}]


def surge(**settings: Any) -> SURGE:
    model = Case("surge", {**SMALL, **settings}).lively(FEW)
    assert isinstance(model, SURGE)
    return model


def path_of(**settings: Any) -> _Path:
    return surge(**settings).path("seen")


def rows(*lengths: int) -> Segments:
    return Segments(offsets(lengths), len(lengths), sum(lengths))


def drawn(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def inputs(path: _Path, count: int) -> tuple[Tensor, Tensor]:
    """A candidate and some events."""
    return drawn(1, path.query.unit.first.query, 1), drawn(count, path.metric.shape[1])


def graph_of(x: Tensor, share: float = 0.5, scale: bool = True, segments: Segments | None = None) -> InterestGraph:
    return InterestGraph(x, torch.ones(1, x.shape[1]), segments or rows(len(x)), share, scale)


# ---- the tests of the notes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [*SETTINGS, {"scale_rows": False}], ids=str)
def test_a_the_length_of_the_padding_changes_nothing(settings: dict[str, Any]) -> None:
    """A row beside a longer one has padding, and the graph and the score that it has alone."""
    model, batch = surge(**settings), ragged(4, lengths=[3, 20, 2, 11], fields=FEW)
    x = drawn(36, 8)
    together = graph_of(x, segments=rows(3, 20, 2, 11))
    assert [tuple(edges.shape) for edges in together.edges] == [(4, 20, 20)], "one rectangle, with padding"
    v = drawn(36, 2)
    for row, (start, stop) in enumerate([(0, 3), (3, 23), (23, 25), (25, 36)]):
        alone = graph_of(x[start:stop])
        for name in ("add_neighbors", "average_two_hops"):
            both, own = getattr(together, name)(v, 1)[start:stop], getattr(alone, name)(v[start:stop], 1)
            torch.testing.assert_close(both, own)
        torch.testing.assert_close(scores(model, batch)[row : row + 1], scores(model, take(batch, [row])))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_b_only_the_recurrence_sees_the_order(settings: dict[str, Any]) -> None:
    path = path_of(**settings)
    q, x = inputs(path, 9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    one, other = (path.pool(q, path.fuse(q, events, rows(9))) for events in (x, x[order]))
    torch.testing.assert_close(one.readout, other.readout)
    moved = (one.last - other.last).abs().max()
    assert (moved > 1e-3) == (settings["pool_length"] == 3), "clusters are in the same order, whatever their events"


def test_c_all_pairs_make_a_complete_graph_and_plain_attention() -> None:
    x, s = drawn(7, 5), 3 * drawn(7, 1, 2).squeeze(1)
    graph = graph_of(x, share=1.0)
    assert torch.equal(graph.edges[0], torch.ones(1, 7, 7))
    plain = s.softmax(0) @ x
    torch.testing.assert_close(average_neighbors(graph, s, x, rows(7)), plain.expand(7, -1))
    torch.testing.assert_close(graph.average_two_hops(x, 1), x.mean(0).expand(7, -1))


def test_d_a_short_history_is_not_pooled() -> None:
    path = path_of(pool_length=6)
    q, x = inputs(path, 6)
    nodes = path.fuse(q, x, rows(6))
    pooled = path.pool(q, nodes)
    assert path.follow is not None
    a = path.follow(q, nodes.h_NK, rows(6)).softmax(0)
    torch.testing.assert_close(pooled.readout[0], nodes.weight_N @ nodes.h_NK)
    torch.testing.assert_close(pooled.last, path.evolution.last(nodes.h_NK, rows(6), a))
    path.length = 5
    assert (path.pool(q, nodes).last - pooled.last).abs().max() > 1e-4, "one event less"


@pytest.mark.parametrize("scale", [True, False])
def test_e_identical_events_form_a_clique(scale: bool) -> None:
    x = drawn(8, 5)
    x[[1, 4, 6]] = x[1] * torch.tensor([[1.0], [3.0], [0.5]])
    m = measure_similarity(x.unsqueeze(0), torch.rand(3, 5) + 0.5)
    same = m[0][[1, 4, 6]][:, [1, 4, 6]]
    torch.testing.assert_close(same, torch.ones(3, 3))
    edges = graph_of(x, scale=scale).edges[0][0]
    assert torch.equal(edges[[1, 4, 6]][:, [1, 4, 6]], torch.ones(3, 3))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.77])
@pytest.mark.parametrize("kinds", [1, 3, 100])
def test_f_edges_are_at_most_the_share_of_pairs_and_one_an_event(share: float, kinds: int) -> None:
    """Without ties (100 kinds of events) they are exactly the largest ones."""
    x = drawn(kinds, 4)[torch.arange(13) % kinds]
    most = math.ceil(share * 13 * 13)
    edges = graph_of(x, share, scale=False).edges[0][0]
    assert edges.sum() <= most + 13
    assert count_edges(13, share) == most
    assert torch.equal(edges.diagonal(), torch.ones(13))
    if kinds == 100:
        similarity = measure_similarity(x.unsqueeze(0), torch.ones(1, 4))[0]
        next_one = similarity.flatten().sort(descending=True)[0][most]
        assert torch.equal(edges.bool(), (similarity > next_one + 1e-6) | torch.eye(13).bool())
        assert edges.sum() >= most - 1, "only the last rank may divide the two entries of a pair"


# ---- the graph -----------------------------------------------------------------------------------------------------


def test_rows_are_scaled_from_their_lowest_real_entry_and_constant_ones_are_one() -> None:
    m = torch.tensor([[[1.0, 0.2, -0.6, -9], [0.2, 1, 0.6, -9], [-0.6, 0.6, 1, -9], [-9, -9, -9, -9]]])
    s = scale_rows(m, torch.tensor([[True, True, True, False]]))
    expected = torch.tensor([[1.0, 0.5, 0], [0, 1, 0.5], [0, 0.75, 1]])
    torch.testing.assert_close(s[0, :3, :3], expected)
    constant = scale_rows(torch.full((1, 3, 3), 1 - 1e-7), torch.ones(1, 3).bool())
    assert torch.equal(constant, torch.ones(1, 3, 3))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_graphs_of_hardly_any_events(count: int) -> None:
    x = drawn(count, 3)
    single, one = graph_of(x), graph_of(x, segments=Segments(offsets([count]), 4, count, shared=True))
    for graph in (single, one):
        assert graph.average_two_hops(x, 1).shape == (count, 3)
        assert all(edges.isfinite().all() for edges in graph.edges)
    torch.testing.assert_close(single.add_neighbors(x, 1), one.add_neighbors(x, 1))


def test_rounding_decides_on_no_edge() -> None:
    """Similarities that tie at the threshold are either all edges or none, if they differ by rounding or not."""
    s = torch.tensor([[[1.0, 0.5, 0.5], [0.5, 1, 0.5], [0.5, 0.5, 1]]])
    for noise in (0.0, 1e-7, 1e-6):
        noisy = s + noise * torch.tensor([[0.0, 1, -1], [2, 0, 0], [1, -2, 0]])
        assert torch.equal(choose_edges(noisy, torch.ones(1, 3).bool(), 0.5), torch.eye(3).unsqueeze(0))


def test_the_metric_alone_is_learned_through_the_threshold() -> None:
    x, w = drawn(6, 4).requires_grad_(), torch.ones(1, 4, requires_grad=True)
    graph = InterestGraph(x, w, rows(6), 0.5, True)
    with torch.no_grad():
        plain = graph_of(x)
    torch.testing.assert_close(graph.edges[0], plain.edges[0])
    graph.add_neighbors(drawn(6, 2), 1).square().sum().backward()
    assert w.grad is not None
    assert w.grad.abs().min() > 0
    assert x.grad is None


# ---- the equations -------------------------------------------------------------------------------------------------


def score_of(unit: _QueryAttention, q: Tensor, x: Tensor) -> Tensor:
    return unit.unit.rest(F.relu(first(unit, q, x))).reshape(())


def first(unit: _QueryAttention, q: Tensor, x: Tensor) -> Tensor:
    layer, k = unit.unit.first, unit.key.weight @ x
    assert layer.bias is not None
    return (layer.weight_q @ q + layer.weight_k @ k + layer.weight_m @ (q * k) + layer.bias).unsqueeze(0)


def cluster_score(unit: _ClusterAttention, c: Tensor, x: Tensor) -> Tensor:
    k = unit.key.weight @ x
    score: Tensor = unit.score(torch.cat([k, c, k - c, k * c]).unsqueeze(0))
    return score.reshape(())


def by_hand(path: _Path, q: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A, h, g and s of one row, event by event."""
    n = len(x)
    m = torch.zeros(n, n)
    for w in path.metric.detach():
        for i in range(n):
            for j in range(n):
                m[i, j] += F.cosine_similarity(w * x[i], w * x[j], dim=0) / len(path.metric)
    low = m.min(1, keepdim=True)[0]
    m = (m - low) / (1 - low)
    least = sorted(m.flatten().tolist(), reverse=True)[math.ceil(path.share * n * n)]
    a = ((m > least + 1e-6) | torch.eye(n).bool()).float()
    step = a / a.sum(1, keepdim=True).sqrt() / a.sum(1).sqrt()
    c = step @ step @ x
    s = torch.stack([cluster_score(path.cluster, c[j], x[j]) + score_of(path.query, q, x[j]) for j in range(n)])
    h = []
    for i in range(n):
        near = a[i].nonzero().squeeze(1)
        h.append(F.leaky_relu(path.mix.weight @ (s[near].softmax(0) @ x[near]) + x[i], 0.2))
    nodes = torch.stack(h)
    c = step @ step @ nodes
    s = torch.stack([cluster_score(path.cluster, c[j], nodes[j]) + score_of(path.query, q, nodes[j]) for j in range(n)])
    return a, nodes, s.softmax(0), s


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_equations_event_by_event(settings: dict[str, Any]) -> None:
    path = path_of(**settings)
    q, x = inputs(path, 6)
    a, h, g, _ = by_hand(path, q[0], x)
    nodes = path.fuse(q, x, rows(6))
    pooled = path.pool(q, nodes)
    torch.testing.assert_close(nodes.graph.edges[0][0], a)
    torch.testing.assert_close(nodes.h_NK, h, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(nodes.weight_N, g, rtol=1e-4, atol=1e-5)
    if path.follow is not None:
        best = g.topk(3)[1].sort()[0]
        readout, steps = g[best] @ h[best], h[best]
        weights = torch.stack([score_of(path.follow, q[0], one) for one in steps]).softmax(0)
    else:
        assert path.assign is not None
        clusters = (a @ h @ path.assign.weight.t()).softmax(1)
        readout, steps, weights = g @ h, clusters.t() @ h, g @ clusters
        assert pooled.assigned is not None
        torch.testing.assert_close(pooled.assigned, clusters, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pooled.readout[0], readout, rtol=1e-4, atol=1e-5)
    last = path.evolution.last(steps, rows(len(steps)), weights)
    torch.testing.assert_close(pooled.last, last, rtol=1e-4, atol=1e-5)


def test_scores_far_below_the_best_leave_their_neighborhood_finite() -> None:
    """Two clusters without an edge in between, one of which the candidate is not about at all."""
    x = torch.tensor([[1.0, 0], [2, 0], [0, 1], [0, 3]])
    actual = average_neighbors(graph_of(x), torch.tensor([500.0, 500, 0, 0]), x, rows(4))
    torch.testing.assert_close(actual, torch.tensor([[1.5, 0], [1.5, 0], [0, 2], [0, 2]]))


def test_of_copies_of_an_event_the_newest_is_pooled() -> None:
    """Also if rounding makes another one score higher."""
    path = path_of(pool_length=2)
    q, x = inputs(path, 4)
    nodes = path.fuse(q, x, rows(4))
    scored = [nodes._replace(score_N=torch.tensor([1.0, 0.5 + noise, 0.2, 0.5])) for noise in (0.0, 1e-7, 1e-3)]
    equal, rounded, older = (path.pool(q, one).last for one in scored)
    assert torch.equal(equal, rounded)
    assert (older - equal).abs().max() > 1e-4


def test_events_beyond_the_newest_are_not_read() -> None:
    model, batch = surge(max_events=4), ragged(3, lengths=[9, 4, 2], fields=FEW)
    order = [*range(5, 9), *range(9, 15)]
    history = batch.histories["seen"]
    columns = {name: column[order] for name, column in history.columns.items() if isinstance(column, Tensor)}
    assert len(columns) == len(history.columns)
    cut = ragged(3, lengths=[4, 4, 2], fields=FEW)
    cut = type(cut)(**{**vars(cut), "histories": {"seen": type(history)(columns, offsets([4, 4, 2]))}})
    cut = type(cut)(**{**vars(cut), "requests": batch.requests, "candidates": batch.candidates})
    torch.testing.assert_close(scores(model, batch), scores(model, cut))
    weights = model.explain(batch)["seen"].detach()
    assert torch.equal(weights > 0, torch.tensor([False] * 5 + [True] * 10))
    torch.testing.assert_close(model.explain(shared(3, 9, fields=FEW))["seen"].sum(1), torch.ones(3))
    one = shared(3, 9, fields=FEW)
    torch.testing.assert_close(model.explain(one)["seen"].flatten(), model.explain(repeated(one, FEW))["seen"])


# ---- the regularizers of soft pooling ------------------------------------------------------------------------------


def test_regularizers_row_by_row() -> None:
    lengths = (3, 0, 5)
    segments, x = rows(*lengths), drawn(8, 4)
    s = drawn(8, 2, 5).softmax(1)
    graph = graph_of(x, segments=segments)
    expected = torch.zeros(3)
    for start, stop in ((0, 3), (3, 8)):
        n, own, a = stop - start, s[start:stop], graph_of(x[start:stop]).edges[0][0]
        gap = sum((a[i, j] - own[i] @ own[j]) ** 2 for i in range(n) for j in range(n))
        assert isinstance(gap, Tensor)
        entropy = -sum(float(p * p.log()) for p in own.flatten())
        spread = torch.tensor([sum((i + 1) * own[i, m] for i in range(n)) - (m + 1) for m in range(2)])
        expected += torch.stack([gap.sqrt(), torch.tensor(entropy), spread.norm()]) / n / 3
    torch.testing.assert_close(torch.stack(regularize(graph, s, 3)), expected)


def test_what_the_regularizers_want() -> None:
    """Two cliques, one after the other, each a cluster: nothing is left of the first two."""
    x = torch.tensor([[1.0, 0], [2, 0], [0, 1], [0, 3]])
    graph = graph_of(x)
    mapping, affiliation, _ = regularize(graph, torch.eye(2).repeat_interleave(2, 0), 1)
    assert mapping == 0
    assert affiliation == pytest.approx(0, abs=1e-6)
    early = torch.tensor([[1.0, 0], [0, 1], [0, 0], [0, 0]])
    assert regularize(graph, early, 1)[2] < regularize(graph, early.flip(1), 1)[2]


def test_the_loss_has_each_regularizer_by_its_weight() -> None:
    batch = ragged(6, fields=FEW)
    keys = ("mapping_weight", "affiliation_weight", "position_weight")
    model = surge(pooling="soft", pool_length=3, **dict.fromkeys(keys, 0.0))
    embedded = model.embed(batch)
    model.read(batch, embedded)
    assert model.aux_loss(batch, embedded) == 0
    ((nodes, assigned),) = embedded.states["clusters"]
    assert isinstance(nodes, Nodes)
    for key, one in zip(keys, regularize(nodes.graph, assigned, 6), strict=True):
        model.config = model.config.model_copy(update={**dict.fromkeys(keys, 0.0), key: 2.0})
        extra = model.aux_loss(batch, embedded)
        assert isinstance(extra, Tensor)
        torch.testing.assert_close(extra, 2 * one)
    hard = surge()
    embedded = hard.embed(batch)
    hard.read(batch, embedded)
    assert hard.aux_loss(batch, embedded) == 0


def test_clicks_reveal_an_interest(tmp_path: Path) -> None:
    small = {"name": "surge", "attention": [16], "hidden": 16, "mlp": [32], "pool_length": 8}
    assert solves(synthetic.generate_dataset("one_interest", users=500), small, tmp_path, epochs=4)
