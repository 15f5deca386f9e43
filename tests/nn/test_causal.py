from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longrec.nn.causal import CausalAttention, CausalTransformer
from longrec.nn.timeline import GAPS, NOT_YET, UNSEEN, Timeline


def lively(outer: int = 6, width: int = 8, layers: int = 2, heads: int = 2, labels: bool = False) -> CausalTransformer:
    torch.manual_seed(0)
    model = CausalTransformer(outer, width, layers, heads, labels).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def columns(rows: int, groups: int, times: int, seed: int = 0) -> dict[str, Tensor]:
    """Return rows of some groups in any order, with ties, and labels that become available later."""
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int) -> Tensor:
        return torch.randint(0, high, (rows,), generator=generator)

    timestamp = draw(times) * 1_000
    return {
        "groups": draw(groups) * 7,
        "timestamps": timestamp,
        "labels": draw(3),
        "label_time": timestamp + draw(3) * 1_500,
    }


def half_octaves(rank: int) -> int:
    """Return the bucket of 1, 2, 3, 4-5, 6-7, 8-11, 12-15: two steps per octave."""
    octave = int(math.log2(rank))
    return 2 * octave + (rank >= 1.5 * 2**octave)


def reference(model: CausalTransformer, x_NW: Tensor, inputs: dict[str, Tensor], entries_per_row: int = 1) -> Tensor:
    """Compute the formula row by row and head by head, in loops."""
    inputs = {name: column.repeat_interleave(entries_per_row) for name, column in inputs.items()}
    x_ND = x_NW if model.lift is None else model.lift(x_NW)
    group, timestamp = inputs["groups"].tolist(), inputs["timestamps"].tolist()
    own = [index // entries_per_row for index in range(len(group))]
    before = [
        len({own[j] for j in range(len(own)) if group[j] == group[i] and timestamp[j] < timestamp[i]})
        for i in range(len(own))
    ]
    for layer in model.layers:
        attention, (norm, norm2) = layer.attention, layer.norms
        q_ND, k_ND, v_ND = attention.inner(norm(x_ND)).chunk(3, 1)
        size = q_ND.shape[1] // attention.heads
        rows = []
        for i in range(len(group)):
            seen = [
                j
                for j in range(len(group))
                if group[j] == group[i] and (timestamp[j] < timestamp[i] or own[j] == own[i])
            ]
            heads = []
            for head in range(attention.heads):
                span = slice(head * size, (head + 1) * size)
                scores, values = [], []
                for j in seen:
                    gap, rank = timestamp[i] - timestamp[j], before[i] - before[j]
                    key, value = k_ND[j, span], v_ND[j, span]
                    if attention.labels is not None:
                        available = own[j] != own[i] and inputs["label_time"][j] < timestamp[i]
                        label = int(inputs["labels"][j]) if available else NOT_YET
                        key = key + attention.labels[0, head, label]
                        value = value + attention.labels[1, head, label]
                    bias = attention.gaps[head, 0 if gap == 0 else 1 + int(math.log2(gap))]
                    bias = bias + attention.rank_bias[head, 0 if rank == 0 else 1 + half_octaves(rank)]
                    scores.append(q_ND[i, span] @ key / math.sqrt(size) + bias)
                    values.append(value)
                heads.append(torch.stack(scores).softmax(0) @ torch.stack(values))
            rows.append(torch.cat(heads))
        x_ND = x_ND + attention.outer(torch.stack(rows))
        x_ND = x_ND + layer.network(norm2(x_ND))
    return x_ND if model.lower is None else x_NW + model.lower(x_ND)


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("entries_per_row", [1, 2])
@pytest.mark.parametrize("outer", [6, 8])
def test_it_is_the_formula_row_by_row(labels: bool, entries_per_row: int, outer: int) -> None:
    model, rows = lively(outer, labels=labels), columns(14, 3, 6)
    x_NW = torch.randn(14 * entries_per_row, outer, dtype=torch.float64)
    used = rows if labels else {name: rows[name] for name in rows if name not in ("labels", "label_time")}
    torch.testing.assert_close(
        model(x_NW, Timeline(**used, entries_per_row=entries_per_row)), reference(model, x_NW, rows, entries_per_row)
    )


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.booleans(), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_padding_and_the_order_of_rows_change_nothing(lengths: list[int], labels: bool, seed: int) -> None:
    """All groups at once, shuffled, against each group by itself."""
    rows = sum(lengths)
    inputs = columns(rows, 1, 9, seed) | {"groups": torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))}
    if not labels:
        del inputs["labels"], inputs["label_time"]
    model = lively(labels=labels)
    x_NW = torch.randn(rows, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    each = [
        model(x_NW[inputs["groups"] == group], Timeline(**{k: v[inputs["groups"] == group] for k, v in inputs.items()}))
        for group in range(len(lengths))
    ]
    mixed = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    together = model(x_NW[mixed], Timeline(**{name: column[mixed] for name, column in inputs.items()}))
    torch.testing.assert_close(together, torch.cat(each)[mixed])


@pytest.mark.parametrize("labels", [False, True])
def test_gradients_are_right(labels: bool) -> None:
    """Some buckets are padded."""
    lengths = torch.tensor([1, 3, 2, 3])
    inputs = columns(9, 1, 5) | {"groups": torch.arange(4).repeat_interleave(lengths)}
    if not labels:
        del inputs["labels"], inputs["label_time"]
    model, timeline = lively(4, 4, 1, 2, labels), Timeline(**inputs)
    assert any(bucket.from_flat is not None for bucket in timeline.buckets)
    names = [name for name, _ in model.named_parameters()]
    x_NW = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)

    def run(x_NW: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, weights, strict=True)), (x_NW, timeline))

    own = [parameter.detach().requires_grad_() for parameter in model.parameters()]
    assert torch.autograd.gradcheck(run, (x_NW, *own), fast_mode=True)


def test_nobody_sees_the_present_or_the_future() -> None:
    inputs, model = columns(30, 3, 8), lively(labels=True)
    x_NW = torch.randn(30, 6, dtype=torch.float64, requires_grad=True)
    z_NW = model(x_NW, Timeline(**inputs))
    timestamp, group = inputs["timestamps"], inputs["groups"]
    looked = 0
    for i in range(30):
        (grad,) = torch.autograd.grad(z_NW[i].square().sum(), x_NW, retain_graph=True)
        reached = grad.abs().sum(1) > 0
        allowed = (group == group[i]) & (timestamp < timestamp[i])
        allowed[i] = True
        assert torch.equal(reached, allowed)
        looked += int(allowed.sum()) - 1
    assert looked > 20


def test_a_label_counts_from_its_own_time_on_and_never_for_its_own_row() -> None:
    inputs, model = columns(30, 3, 8), lively(labels=True)
    x_NW = torch.randn(30, 6, dtype=torch.float64)
    before = model(x_NW, Timeline(**inputs))
    timestamp, group = inputs["timestamps"], inputs["groups"]
    moved_rows = 0
    for j in range(30):
        labels = inputs["labels"].clone()
        labels[j] = (labels[j] + 1) % 3
        moved = (model(x_NW, Timeline(**{**inputs, "labels": labels})) != before).any(1)
        # Two layers: rows that see the label, and rows that see one of those.
        sees_label = (group == group[j]) & (timestamp > inputs["label_time"][j]) & (timestamp > timestamp[j])
        assert not moved[~sees_label].any()
        assert torch.equal(moved, sees_label)
        moved_rows += int(moved.sum())
    assert moved_rows > 20


def test_alone_is_a_timeline_of_strangers() -> None:
    for labels in (False, True):
        model, x_NW = lively(labels=labels), torch.randn(7, 6, dtype=torch.float64)
        inputs = {"groups": torch.arange(7), "timestamps": torch.zeros(7, dtype=torch.int64)}
        if labels:
            inputs |= {"labels": torch.ones(7, dtype=torch.int64), "label_time": torch.zeros(7, dtype=torch.int64)}
        torch.testing.assert_close(model(x_NW, None), model(x_NW, Timeline(**inputs)))


def test_no_compute_grows_with_the_longest_group() -> None:
    """One group of 256 rows among 300 short ones: pairs stay near those of each group by itself."""
    random = torch.Generator().manual_seed(0)
    for lengths in (
        [256, *[3] * 300],
        torch.randint(50, 251, (20,), generator=random).tolist(),
        torch.empty(200).log_normal_(2.0, 1.0, generator=random).ceil().long().tolist(),
    ):
        groups = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        timeline = Timeline(groups, torch.arange(len(groups)))
        real = sum(length**2 for length in lengths)
        assert timeline.pairs <= 1.15 * real + 4_096 * len(timeline.buckets)  # the cost of one more bucket
        assert len(timeline.buckets) <= 10


@pytest.mark.parametrize("outer", [6, 8])
def test_wanted_rows_alone(outer: int) -> None:
    inputs, model = columns(20, 3, 8), lively(outer, labels=True)
    x_NW, wanted = torch.randn(20, outer, dtype=torch.float64), torch.tensor([7, 3, 19])
    for timeline in (Timeline(**inputs), None):
        torch.testing.assert_close(model(x_NW, timeline, wanted), model(x_NW, timeline)[wanted])


def test_an_empty_batch() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert lively()(torch.zeros(0, 6, dtype=torch.float64), Timeline(none, none)).shape == (0, 6)


def test_one_layer_by_hand() -> None:
    """Width 1, one head, query and key 0, value the row itself: the mean over the earlier rows and itself, then a bias
    of a gap that triples some of them, then a bias of the place that doubles the last."""
    attention = CausalAttention(1, 1)
    with torch.no_grad():
        attention.inner.weight.copy_(torch.tensor([[0.0], [0.0], [1.0]]))
        attention.inner.bias.zero_()
        attention.outer.weight.fill_(1.0)
        attention.rank_bias.zero_()
    x_ND = torch.tensor([[2.0], [4.0], [9.0]])
    timeline = Timeline(torch.zeros(3, dtype=torch.int64), torch.tensor([0, 4, 12]))
    assert timeline.order.tolist() == [0, 1, 2]
    torch.testing.assert_close(attention(x_ND, timeline), torch.tensor([[2.0], [3.0], [5.0]]))
    with torch.no_grad():
        attention.gaps[0, 1 + 3] = math.log(3)  # a gap of 8 to 15 steps: row 2 to row 1 and to row 0
    expected = torch.tensor([[2.0], [3.0], [(9 + 3 * 4 + 3 * 2) / 7]])
    torch.testing.assert_close(attention(x_ND, timeline), expected)
    with torch.no_grad():
        attention.rank_bias[0, 1] = math.log(2)  # the row right before
    expected = torch.tensor([[2.0], [(4 + 2 * 2) / 3], [(9 + 6 * 4 + 3 * 2) / 10]])
    torch.testing.assert_close(attention(x_ND, timeline), expected)


def test_distances_fall_into_buckets_of_their_log2() -> None:
    timestamps = torch.tensor([0, 1, 2, 3, 4, 7, 8, 2**40, 2**62])
    distance = Timeline(torch.zeros(9, dtype=torch.int64), timestamps).buckets[0].distance[0]
    assert (distance[:, 0] % GAPS).tolist() == [0, 1, 2, 2, 3, 3, 4, 41, 63]
    assert (distance[:, 0] // GAPS).tolist() == [0, 1, 3, 4, 5, 5, 6, 6, 7]
    assert distance[0].tolist() == [0, *[UNSEEN] * 8]


def test_rows_of_one_timestamp_have_one_rank() -> None:
    """Three candidates, then two: both of the two see the three as the last ones."""
    distance = Timeline(torch.zeros(5, dtype=torch.int64), torch.tensor([5, 5, 5, 9, 9])).buckets[0].distance[0] // GAPS
    three_back = 1 + half_octaves(3)
    assert distance[3].tolist() == [three_back, three_back, three_back, 0, UNSEEN // GAPS]
    assert distance[4].tolist() == [three_back, three_back, three_back, UNSEEN // GAPS, 0]


def test_heads_begin_by_looking_at_what_was_last_or_at_all_alike() -> None:
    ranks = CausalAttention(4, 2).rank_bias
    assert (ranks[0, 1:].diff() < 0).all()
    assert (ranks[1] == 0).all()


def test_a_row_that_was_not_available_yet_is_not_seen() -> None:
    groups, timestamps = torch.tensor([0, 0, 0, 0, 1]), torch.tensor([1, 2, 5, 6, 3])
    plain = Timeline(groups, timestamps)
    for entries in (1, 2):
        same = Timeline(groups, timestamps, entries_per_row=entries, available=timestamps)
        expected = Timeline(groups, timestamps, entries_per_row=entries)
        assert [b.distance.tolist() for b in same.buckets] == [b.distance.tolist() for b in expected.buckets]
    late = Timeline(groups, timestamps, available=torch.tensor([1, 5, 5, 6, 3]))  # the second row was available at 5
    own, others = late.buckets[0].distance[0], plain.buckets[0].distance[0]
    assert own[2].tolist() == [int(own[2, 0]), UNSEEN, 0, UNSEEN]
    assert own[3, 1] == others[3, 1] != UNSEEN
    assert own[3].tolist() == others[3].tolist()
    # the rows that the third row sees have the same distances as without the second
    alone = Timeline(groups[[0, 2, 3, 4]], timestamps[[0, 2, 3, 4]]).buckets[0].distance[0]
    assert own[2, 0] == alone[1, 0]
