from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from longrec.features.batch import Batch, Column, Jagged, Layout
from longrec.testing.batches import FIELDS, grouped, pick, ragged, repeated, shared, take

OWNER = [2, 0, 0, 3, 2, 1]


@pytest.mark.parametrize("weighted", [False, True])
def test_rows_of_lists_are_taken_in_any_order(weighted: bool) -> None:
    weights = torch.arange(6.0) if weighted else None
    lists = Jagged(torch.arange(10, 16), torch.tensor([0, 2, 2, 5, 6]), weights)
    selected, expected = lists.select_rows(torch.tensor([3, 0, 1, 0])), pick(lists, [3, 0, 1, 0])
    assert isinstance(expected, Jagged)
    assert selected.values.tolist() == expected.values.tolist() == [15, 10, 11, 10, 11]
    assert selected.offsets.tolist() == expected.offsets.tolist() == [0, 1, 3, 3, 5]
    assert weights is None or selected.weights.tolist() == [5, 0, 1, 0, 1]
    nothing = lists.select_rows(torch.tensor([], dtype=torch.int64))
    assert (nothing.values.tolist(), nothing.offsets.tolist()) == ([], [0])


def test_some_events_of_every_row_stay_with_their_rows() -> None:
    batch = ragged(9, seed=3)
    history = batch.histories["seen"]
    count = int(history.offsets[-1])
    positions = torch.arange(count)[torch.randperm(count, generator=torch.Generator().manual_seed(1))[: count // 2]]
    selected = history.select_events(positions.sort()[0])
    kept = set(positions.tolist())
    for row in range(9):
        own = [at for at in range(int(history.offsets[row]), int(history.offsets[row + 1])) if at in kept]
        one = take(Batch.single(9, {}, {"seen": selected}), [row]).histories["seen"]
        for name, column in history.columns.items():
            expected, actual = pick(column, own), one.columns[name]
            if isinstance(expected, Jagged):
                assert expected.values.tolist() == actual.values.tolist()
                assert expected.offsets.tolist() == actual.offsets.tolist()
            else:
                assert expected.tolist() == actual.tolist()
    assert history.select_events(torch.arange(count)).offsets.tolist() == history.offsets.tolist()
    assert history.select_events(torch.arange(0)).offsets.tolist() == [0] * 10


def equal(one: Column, other: Column) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    assert isinstance(other, Jagged)
    weights = [torch.zeros(0) if column.weights is None else column.weights for column in (one, other)]
    return all(map(torch.equal, (one.values, one.offsets, weights[0]), (other.values, other.offsets, weights[1])))


LAYOUTS = {
    "single": (Layout.single(4), [0, 1, 2, 3]),
    "shared": (Layout.shared(4), [0, 0, 0, 0]),
    "grouped": (Layout.grouped(3, np.array([1, 0, 0, 1])), [1, 0, 0, 1]),
}


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("weighted", [False, True])
def test_every_candidate_gets_the_value_of_its_request(kind: str, weighted: bool) -> None:
    layout, owner = LAYOUTS[kind]
    assert (layout.kind, layout.candidates) == (kind, 4)
    for x_R in (torch.randn(layout.requests), torch.randn(layout.requests, 2), torch.randn(layout.requests, 2, 3)):
        assert torch.equal(layout.repeat(x_R), x_R[owner])
        assert torch.equal(layout.repeat_column(x_R), x_R[owner])
    ends = torch.tensor([0, 2, 2, 5, 6])[: layout.requests + 1]
    count = int(ends[-1])
    lists = Jagged(torch.arange(10, 10 + count), ends, torch.arange(float(count)) if weighted else None)
    assert equal(layout.repeat_column(lists), pick(lists, owner))
    if kind == "single":
        assert layout.repeat_column(lists) is lists
    if kind == "shared":
        assert layout.repeat(torch.randn(1, 2)).stride(0) == 0, "not copied"


def test_features_are_read_with_one_entry_per_candidate() -> None:
    batch = grouped(OWNER)
    assert set(batch.features) == {field.name for field in FIELDS.features}
    for field in FIELDS.features:
        own = batch.per_candidate(field.name)
        if field.side == "item":
            assert own is batch.candidates[field.name]
        else:
            assert equal(own, pick(batch.requests[field.name], OWNER)), field.name
    vectors = torch.randn(6, 2)
    assert replace(batch, computed={"user": vectors}).per_candidate("user") is vectors
    single = ragged(3)
    assert single.requests == {}
    assert all(single.per_candidate(name) is column for name, column in single.features.items())
    with pytest.raises(KeyError, match="nothing"):
        batch.per_candidate("nothing")


def test_a_grouped_batch_is_copied_to_single_rows() -> None:
    batch = replace(grouped(OWNER), weight=torch.rand(6), loss_mask=torch.tensor([True, False] * 3))
    single = batch.ungroup()
    assert single.layout == Layout.single(6)
    for field in FIELDS.features:
        assert equal(single.features[field.name], batch.per_candidate(field.name)), field.name
    for name, history in batch.histories.items():
        copied = single.histories[name]
        lengths = history.offsets.diff()[OWNER]
        assert torch.equal(copied.offsets.diff(), lengths)
        starts = history.offsets[OWNER].tolist()
        index = [start + at for start, length in zip(starts, lengths.tolist()) for at in range(length)]
        for column, values in history.columns.items():
            assert equal(copied.columns[column], pick(values, index)), (name, column)
    for name in ("label", "users", "timestamps", "label_time", "weight", "loss_mask", "task_labels"):
        assert getattr(single, name) is getattr(batch, name)
    assert batch.loss_rows == single.loss_rows == 3
    assert single.size == batch.size == 6


def test_other_batches_are_not_copied() -> None:
    for batch in (ragged(3), shared(4, 2)):
        assert batch.ungroup() is batch
        assert batch.loss_rows == batch.size


def test_a_request_of_several_candidates_equals_single_rows() -> None:
    """The three layouts of one content."""
    one = shared(3, 4)
    several = replace(one, layout=Layout.grouped(1, np.zeros(3, np.int64)))
    copied, expected = several.ungroup(), repeated(one)
    assert all(equal(copied.features[name], column) for name, column in expected.features.items())
    for name, history in expected.histories.items():
        assert torch.equal(copied.histories[name].offsets, history.offsets)
        assert all(equal(copied.histories[name].columns[c], column) for c, column in history.columns.items())


def test_everything_moves_to_a_device_but_the_host_copies() -> None:
    batch = replace(
        grouped(OWNER),
        rows=torch.arange(6),
        available=torch.arange(6),
        loss_mask=torch.ones(6, dtype=torch.bool),
        weight=torch.ones(6),
        computed={"vectors": torch.ones(6, 2)},
    )
    moved = batch.to("meta")

    def tensors(value: object) -> list[Tensor]:
        if isinstance(value, Tensor):
            return [value]
        if isinstance(value, dict):
            return [tensor for each in value.values() for tensor in tensors(each)]
        if not hasattr(value, "__dict__"):
            return []
        return tensors({name: each for name, each in vars(value).items() if name != "source"})

    before, after = tensors(batch), tensors(moved)
    assert len(before) == len(after) > 30
    assert all(tensor.device.type == "meta" for tensor in after)
    assert [tensor.shape for tensor in after] == [tensor.shape for tensor in before]
    assert moved.layout.host_owner is not None
    assert moved.layout.host_owner.tolist() == OWNER
    assert moved.host_users is not None
    assert moved.host_users.tolist() == batch.users.tolist()
    for name, history in moved.histories.items():
        assert history.on_host is batch.histories[name]
        assert history.host_offsets.tolist() == batch.histories[name].offsets.tolist()
    single = ragged(2).to("cpu")
    assert single.layout == Layout.single(2)
    assert single.weight is None


def test_a_batch_is_shown_by_its_shapes() -> None:
    columns = {"user": torch.arange(2), "tags": Jagged(torch.arange(3), torch.tensor([0, 1, 3]))}
    batch = Batch.single(2, columns, ragged(2).histories, label=torch.zeros(2))
    lines = repr(batch).splitlines()
    assert lines[:3] == [
        "Batch of 2 candidates in 2 requests",
        "  requests    none",
        "  candidates  user int64 [2], tags 2 lists of int64 [3]",
    ]
    assert [line.split(":")[0] for line in lines[3:-1]] == [f"  history {name}" for name in batch.histories]
    assert lines[-1] == "  rows        label float32 [2]"
