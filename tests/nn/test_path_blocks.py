"""Building blocks of a generator's decoder: their formulas by hand, gradients, and histories of targets."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from longrec.features.sampling import Sampling
from longrec.nn.content_summary import ContentSummary, compute_rows
from longrec.nn.cross_attention import HistoryKeys
from longrec.nn.embedding import RESERVED
from longrec.nn.rank_head import RankHead
from longrec.nn.rms_norm import RMSNorm
from longrec.nn.segments import Segments
from longrec.nn.step_experts import StepExperts
from longrec.nn.target_histories import TargetHistories
from longrec.testing.batches import PATHS, offsets
from longrec.testing.target_batches import with_targets


def test_rms_norm_and_its_gradient() -> None:
    torch.manual_seed(0)
    norm = RMSNorm(5)
    torch.nn.init.uniform_(norm.weight, 0.5, 2)
    x = torch.randn(3, 4, 5, requires_grad=True)
    g = torch.randn(3, 4, 5)

    def formula(x: Tensor, w: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * w

    torch.testing.assert_close(norm(x), formula(x, norm.weight))
    actual = torch.autograd.grad(norm(x), [x, norm.weight], g)
    torch.testing.assert_close(actual, torch.autograd.grad(formula(x, norm.weight), [x, norm.weight], g))
    torch.testing.assert_close(norm(x.bfloat16()).float(), formula(x, norm.weight), rtol=0.02, atol=0.02)
    assert not norm(torch.zeros(2, 5)).any()


@pytest.mark.parametrize("lengths", [[3, 0, 1, 7, 7], [0, 0], [4]])
def test_queries_attend_to_their_own_history(lengths: list[int]) -> None:
    torch.manual_seed(0)
    layers, heads, width, columns = 2, 2, 6, 3
    total = sum(lengths)
    x, q = torch.randn(total, 2 * layers * width), torch.randn(len(lengths), columns, width)
    keys = HistoryKeys.build(x, Segments(offsets(lengths), len(lengths), total), layers, heads)
    shared = [
        HistoryKeys.build(own, Segments(offsets([len(own)]), 1, len(own), shared=True), layers, heads)
        for own in x.split(lengths)
    ]
    for layer in range(layers):
        actual = keys.attend(q, layer)
        for row, own in enumerate(x.split(lengths)):
            k, v = own[:, 2 * layer * width :][:, : 2 * width].chunk(2, 1)
            expected = torch.zeros(columns, width)
            for head in range(heads if len(own) else 0):
                of = slice(head * 3, head * 3 + 3)
                weights = (q[row, :, of] @ k[:, of].t() / math.sqrt(3)).softmax(1)
                expected[:, of] = weights @ v[:, of]
            torch.testing.assert_close(actual[row], expected)
            torch.testing.assert_close(shared[row].attend(q[row : row + 1], layer)[0], expected)


def test_experts_of_a_step() -> None:
    torch.manual_seed(0)
    network = StepExperts(4, 3, 2, 5)
    assert network.gate is not None
    x = torch.randn(6, 5, 4)
    one, other = network.inner.weight.view(2, 2, 3, 4)
    for step in range(5):
        gates = (x[:, step] @ network.gate[step]).softmax(1)
        expected = torch.zeros(6, 4)
        for e in range(2):
            h = F.silu(x[:, step] @ one[e].t()) * (x[:, step] @ other[e].t())
            expected += gates[:, e : e + 1] * (h @ network.outer.weight[:, e * 3 : e * 3 + 3].t())
        torch.testing.assert_close(network(x, None)[:, step], expected)
        torch.testing.assert_close(network(x[:, step : step + 1], step)[:, 0], expected)


def test_the_head() -> None:
    torch.manual_seed(0)
    head = RankHead([2, 3, 4], 5, 6, 7).eval()
    groups = [torch.randn(8, width) for width in (2, 3, 4)]
    z = torch.stack([x.mean(1) for x in groups], 1)
    s = 2 * head.excite(F.silu(head.squeeze(z))).sigmoid()
    x = torch.cat([groups[at] * s[:, at : at + 1] for at in range(3)], 1)
    mask = head.mask_out(head.mask_in(x).relu())
    h = head.hidden_norm(head.hidden(head.norm(x) * mask)).relu()
    torch.testing.assert_close(head(groups), head.last(h))


def test_the_rows_of_a_summary_follow_the_formula() -> None:
    assert compute_rows(4000, 4000) == 63_496  # the paper's example
    assert compute_rows(8, 8) == 16  # an exact power, which a rounded root would miss
    assert compute_rows(1, 1) == 1


def test_hashes_count_from_one_and_are_salted() -> None:
    summary = ContentSummary([(9, 9), (9, 9)], 4, rows=10_007, std=1.0)
    x, y = (values.flatten() for values in torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij"))
    rows = summary.hash(0, x, y)
    expected = torch.stack([x + y + 2, (x + 1) * (y + 1), 1_000_003 * (x + 1) + 8_191 * (y + 1)], 1) % 10_007
    assert torch.equal(rows, expected + RESERVED)
    assert len(rows.unique(dim=0)) == 81  # the triple tells all pairs apart, and no token makes H_2 constant
    assert (rows != summary.hash(1, x, y)).all()  # the same tokens of another pair
    assert int(rows.min()) >= RESERVED
    (c,) = summary([(1, x, y)])
    table = summary.embeddings.table("summary")
    torch.testing.assert_close(c, table[summary.hash(1, x, y)].flatten(1))


def test_tables_of_summaries_are_shared_or_not() -> None:
    sizes = [(8, 8), (27, 27)]
    shared, apart = (ContentSummary(sizes, 4, shared=flag, std=1.0) for flag in (True, False))
    assert [len(table) - RESERVED for table in shared.embeddings.embedding_parameters()] == [81]
    assert [len(table) - RESERVED for table in apart.embeddings.embedding_parameters()] == [16, 81]
    x = torch.arange(5)
    one, other = apart([(0, x, x), (1, x, x)])
    torch.testing.assert_close(one, apart.embeddings.table("summary_0")[apart.hash(0, x, x)].flatten(1))
    torch.testing.assert_close(other, apart.embeddings.table("summary_1")[apart.hash(1, x, x)].flatten(1))


@pytest.mark.parametrize("per_position", [True, False])
def test_histories_of_targets(per_position: bool) -> None:
    batch = with_targets(Sampling("none", 0), 9, fields=PATHS, per_position=per_position)
    assert batch.targets is not None
    if per_position:  # some targets, in another order
        batch = replace(batch, targets=replace(batch.targets, state=batch.targets.state[[7, 1, 0, 12, 5]]))
    plan, bounds = TargetHistories.of(batch, "seen"), batch.histories["seen"].offsets.tolist()
    assert batch.targets is not None
    state = batch.targets.state.tolist()
    assert plan.order[plan.back].tolist() == list(range(len(state)))
    own = plan.segments.offsets.tolist()
    lengths = [stop - first for first, stop in zip(own, own[1:])]
    assert lengths == sorted(lengths, reverse=True)
    for row, target in enumerate(plan.order.tolist()):
        if per_position:
            first = max(bound for bound in bounds if bound <= state[target])
            expected = list(range(first, state[target] + 1))
        else:
            expected = list(range(bounds[state[target]], bounds[state[target] + 1]))
        assert plan.stored[own[row] : own[row + 1]].tolist() == expected
