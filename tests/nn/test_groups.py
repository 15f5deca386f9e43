from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longrec.errors import ConfigError
from longrec.features.batch import Layout
from longrec.features.fields import Field, Fields
from longrec.nn.embedding import RESERVED
from longrec.nn.groups import Groups, choose_group_columns
from longrec.nn.segments import GroupedSegments, Segments


def names(row: list[int]) -> list[object]:
    """Return a name for the group of each position of a row."""
    return [at if at >= RESERVED else ("alone", index) for index, at in enumerate(row)]


@given(st.lists(st.lists(st.integers(0, 5), max_size=6), min_size=1, max_size=6))
@settings(max_examples=25, deadline=None)
def test_groups_of_ragged_rows_equal_a_loop(rows: list[list[int]]) -> None:
    edges = torch.tensor([0, *(len(row) for row in rows)]).cumsum(0)
    flat = torch.tensor([at for row in rows for at in row], dtype=torch.int32)
    groups = Groups(flat, Segments(edges, len(rows), len(flat)))
    assert sorted(groups.order.tolist()) == list(range(len(flat)))
    assert groups.groups.rows == len(rows)
    members, own, sizes = groups.members.offsets.tolist(), groups.groups.offsets.tolist(), []
    for number, row in enumerate(rows):
        called, start = names(row), int(edges[number])
        group_names = []
        for group in range(own[number], own[number + 1]):
            positions = [at - start for at in groups.order[members[group] : members[group + 1]].tolist()]
            assert positions == sorted(positions)
            (name,) = {called[position] for position in positions}  # all of the row, and of one name
            assert called.count(name) == len(positions)
            group_names.append(name)
        assert len(group_names) == len(set(group_names)) == len(set(called))
        counts = Counter(called)
        sizes += [counts[name] for name in called]
    assert groups.sizes.tolist() == sizes


@pytest.mark.parametrize("row", [[], [3], [3, 0, 3, 1, 1, 0, 5, 3]])
def test_a_shared_history_has_the_groups_of_one_row(row: list[int]) -> None:
    ids = torch.tensor(row, dtype=torch.int32)
    one = Groups(ids, Segments(torch.tensor([0, len(row)]), 4, len(row), shared=True))
    called = names(row)
    assert one.same.tolist() == [[a == b for b in called] for a in called]
    alone = Groups(ids, Segments(torch.tensor([0, len(row)]), 1, len(row)))
    assert one.sizes.tolist() == alone.sizes.tolist()


ROW = [3, 0, 3, 1, 5, 1, 0, 5, 3]


def by_hand(w: Tensor, k: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for one row, the share of each position, the softmax of the groups' means by ``q``, and their weighted
    sum.
    """
    called = names(ROW)
    owns = {name: [at for at, other in enumerate(called) if other == name] for name in dict.fromkeys(called)}
    share, means = torch.zeros(len(ROW)), []
    for own in owns.values():
        share[own] = w[own] / w[own].sum()
        means.append(share[own] @ k[own])
    weights = (torch.stack(means) @ q).softmax(0)
    whole = torch.zeros(len(ROW))
    for own, of in zip(owns.values(), weights):
        whole[own] = of
    return share, whole, weights @ torch.stack(means)


def test_groups_are_weighed_and_averaged_as_by_hand() -> None:
    """Two rows of the same ids, ragged and as one history of two candidates."""
    torch.manual_seed(0)
    k, q, w = torch.randn(len(ROW), 3), torch.randn(2, 3), torch.rand(2, len(ROW)).softmax(1)
    ids = torch.tensor(ROW, dtype=torch.int32)
    expected = [by_hand(w[row], k, q[row]) for row in (0, 1)]
    for shared in (False, True):
        edges = torch.tensor([0, len(ROW)] if shared else [0, len(ROW), 2 * len(ROW)])
        segments = Segments(edges, 2, len(ROW) * (1 if shared else 2), shared)
        groups = Groups(ids if shared else ids.repeat(2), segments)
        share_N = groups.shares(w.flatten())
        c_MK, over = groups.means(share_N, k if shared else k.repeat(2, 1))
        torch.testing.assert_close(over.dot(q, c_MK), over.mul(q, c_MK).sum(1))
        torch.testing.assert_close(over.add(q, c_MK).sum(1), over.add(q, over.keys(c_MK)).sum(1))
        weights_M = over.softmax(over.dot(q, c_MK))
        torch.testing.assert_close(share_N, torch.cat([one[0] for one in expected]))
        torch.testing.assert_close(groups.whole(weights_M), torch.cat([one[1] for one in expected]))
        torch.testing.assert_close(over.weighted_sum(weights_M, c_MK), torch.stack([one[2] for one in expected]))


def test_grouped_rows_weigh_the_groups_of_their_request_apart() -> None:
    """Ids and keys of a grouped batch are flattened, and the requests alone have the sizes."""
    torch.manual_seed(0)
    ids, k, q = torch.tensor([*ROW, 4, 4], dtype=torch.int32), torch.randn(len(ROW) + 2, 3), torch.randn(2, 3)
    stored = Segments(torch.tensor([0, len(ROW), len(ROW) + 2]), 2, len(ROW) + 2)
    segments = GroupedSegments(stored, Layout.grouped(2, np.array([0, 0])))
    w = torch.rand(2, len(ROW)).softmax(1)
    groups, (k_NK, _) = Groups(*segments.flatten(ids)), segments.flatten(k)
    c_MK, over = groups.means(groups.shares(w.flatten()), k_NK)
    weights_M = over.softmax(over.dot(q, c_MK))
    expected = torch.stack([by_hand(w[row], k[: len(ROW)], q[row])[2] for row in (0, 1)])
    torch.testing.assert_close(over.weighted_sum(weights_M, c_MK), expected)
    counts = Counter(names(ROW))
    assert Groups(ids, segments.requests).sizes.tolist() == [*(counts[name] for name in names(ROW)), 2, 2]


@pytest.mark.parametrize("shared", [False, True])
def test_a_group_without_weight_has_a_mean(shared: bool) -> None:
    owns = Segments(torch.tensor([0, 4]), 1, 4, shared)
    groups, k = Groups(torch.tensor([2, 2, 3, 3]), owns), torch.tensor([[1.0], [3.0], [5.0], [7.0]])
    w_N = torch.tensor([1.0, 0.0, 0.0, 0.0], requires_grad=True)
    share_N = groups.shares(w_N)
    torch.testing.assert_close(share_N, torch.tensor([1.0, 0.0, 0.5, 0.5]))
    c_MK, _ = groups.means(share_N, k)
    assert sorted(set(c_MK.squeeze(1).tolist())) == [1.0, 6.0]
    c_MK.sum().backward()
    assert w_N.grad is not None
    assert w_N.grad.isfinite().all()


def test_members_of_groups_are_not_pooled() -> None:
    groups = Groups(torch.tensor([2, 2]), Segments(torch.tensor([0, 2]), 3, 2, shared=True))
    _, over = groups.means(torch.full((6,), 0.5), torch.ones(2, 1))
    with pytest.raises(NotImplementedError, match="summed by weights"):
        over.pool(torch.ones(6, 1), "sum")


ITEM, CATEGORY, SHOP = (Field(name, "id", rows, side="item") for name, rows in (("item", 60), ("cat", 9), ("shop", 7)))
GENRES, QUERY, RATING = Field("genres", "multi_id", 12, side="item"), Field("query", "id", 99), Field("rating", "id", 8)
FIELDS = Fields(
    (Field("user", "id", 9, side="user"), GENRES, ITEM, CATEGORY, SHOP, QUERY),
    {
        "all": (RATING, QUERY, GENRES, ITEM, CATEGORY, SHOP),
        "items": (RATING, ITEM),
        "genres": (GENRES, RATING),
        "kinds": (SHOP, CATEGORY),
    },
)


def test_the_column_that_groups() -> None:
    """The first shared id column that is not the item, by default."""
    assert choose_group_columns(FIELDS, None, "model.group") == {
        "all": "cat",
        "items": "item",
        "genres": None,
        "kinds": "shop",
    }
    assert choose_group_columns(FIELDS, "shop", "model.group") == {
        "all": "shop",
        "items": "item",
        "genres": None,
        "kinds": "shop",
    }
    assert choose_group_columns(FIELDS, "query", "model.query", in_impression=True)["all"] == "query"
    assert choose_group_columns(FIELDS, "rating", "model.group") == {
        **dict.fromkeys(FIELDS.histories, "rating"),
        "kinds": "shop",
    }


@pytest.mark.parametrize(
    ("named", "in_impression", "fitting"), [("genres", False, r"cat, item, query, rating, shop"), ("rating", True, "")]
)
def test_a_column_that_cannot_group_is_refused(named: str, in_impression: bool, fitting: str) -> None:
    too = " and the impression too" if in_impression else ""
    with pytest.raises(
        ConfigError, match=f"model.group: must be an id column of a history{too} .*{fitting}.*'{named}'"
    ):
        choose_group_columns(FIELDS, named, "model.group", in_impression)
