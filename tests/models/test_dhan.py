from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from synthetic_runs import aucs_of, run_in, solves
from torch import Tensor

from longrec.data import synthetic
from longrec.errors import ConfigError
from longrec.features.batch import Batch
from longrec.features.fields import Field, Fields
from longrec.models.core.registry import build
from longrec.models.dhan import DHAN, _Path
from longrec.nn.attention import TargetAttention
from longrec.nn.groups import Groups
from longrec.nn.segments import Segments
from longrec.testing.batches import (
    GENRES,
    ITEM,
    RATING,
    TOKENS,
    grouped,
    offsets,
    ragged,
    repeated,
    shared,
    with_history,
)
from longrec.testing.case import Case

KIND = Field("kind", "id", 6, side="item")
KINDS = Fields(
    (Field("user", "id", 40, side="user"), ITEM, KIND),
    {"seen": (RATING, ITEM, KIND), "liked": (ITEM,)},
)
SETTINGS: list[dict[str, Any]] = [{}, {"base": "dien", "hidden": 5}, {"activation": "dice"}]


def dhan(settings: dict[str, Any] | None = None, fields: Fields = KINDS) -> DHAN:
    model = Case("dhan", {"attention": [6], "group_attention": [5, 4], **(settings or {})}).lively(fields)
    assert isinstance(model, DHAN)
    return model


def path_of(model: DHAN, history: str = "seen") -> _Path:
    return cast(_Path, model.paths[f"path_{history}"])


def one(lengths: list[int]) -> Segments:
    return Segments(offsets(lengths), len(lengths), sum(lengths))


def attended(unit: TargetAttention, q: Tensor, k: Tensor) -> Tensor:
    """The weights of DIN's unit over the keys of one row."""
    return unit.weights(q.unsqueeze(0), k, one([len(k)]))


def hierarchy(path: _Path, q: Tensor, k: Tensor, ids: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Of one row: the categories' means, x, and what stands beside it."""
    w, means = attended(path.items, q, k), []
    for name in dict.fromkeys(at if at > 1 else (at, index) for index, at in enumerate(ids)):
        own = [index for index, at in enumerate(ids) if at == name or (at, index) == name]
        means.append((w[own].unsqueeze(1) * k[own]).sum(0) / (w[own].sum() + 1e-10))
    c = torch.stack(means)
    x = attended(path.categories, q, c) @ c
    if path.interest is None or path.evolution is None:
        return c, x, w @ k
    alone = one([len(k)])
    return c, x, path.evolution.last(path.interest.states(k, alone), alone, w)[0]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_equations_category_by_category(settings: dict[str, Any]) -> None:
    """The whole model again as loops over rows and categories: the sums by group equal the loop."""
    model, batch = dhan(settings), ragged(9, fields=KINDS, longest=12)
    assert model.columns == {"seen": "kind", "liked": "item"}
    embedded, logits = model.embeddings(batch), []
    for row in range(9):
        inputs = [vectors[row] for vectors in embedded.features.values()]
        for history, column in model.columns.items():
            path, events = path_of(model, history), batch.histories[history]
            start, stop = events.offsets[row : row + 2].tolist()
            columns = embedded.histories[history]
            k = torch.cat([columns[name][start:stop] for name in model.queries.key_columns[history]], 1)
            q = torch.cat([embedded.features[name][row] for name in model.queries.query_columns[history]])
            beside = torch.zeros(path.width)
            if stop > start:
                ids = cast(Tensor, events.columns[cast(str, column)])[start:stop].tolist()
                beside = torch.cat(hierarchy(path, q, k, ids)[1:])
            inputs.append(beside)
        logits.append(model.top(torch.cat(inputs).unsqueeze(0)).squeeze())
    torch.testing.assert_close(model(batch), torch.stack(logits), rtol=1e-4, atol=1e-4)


def drawn(path: _Path, count: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, path.items.first.query), torch.randn(count, path.items.first.key)


def test_one_category_makes_x_equal_to_the_items_together() -> None:
    path = path_of(dhan())
    q, k = drawn(path, 7)
    owns = one([3, 4])
    both = path(q, k, owns, Groups(torch.full((7,), 4), owns))
    x, i = both.chunk(2, 1)
    torch.testing.assert_close(x, i)


def test_a_group_of_one_equals_its_item() -> None:
    """Beside a larger group, whatever weight the item has."""
    path = path_of(dhan())
    q, k = drawn(path, 5)
    owns = one([3, 2])
    groups = Groups(torch.tensor([4, 4, 5, 6, 7]), owns)
    c_MK, over = groups.means(groups.shares(path.items.weights(q, k, owns)), k)
    assert over.offsets.tolist() == [0, 2, 4]
    torch.testing.assert_close(c_MK[1:], k[2:])


def test_a_category_an_item_leaves_the_second_attention_the_raw_items() -> None:
    path = path_of(dhan())
    q, k = drawn(path, 7)
    owns = one([3, 4])
    x = path(q, k, owns, Groups(torch.tensor([2, 3, 4, 2, 3, 4, 5]), owns))[:, : k.shape[1]]
    torch.testing.assert_close(x, path.categories(q, k, owns))


@pytest.mark.parametrize("reserved", [0, 1])
def test_items_without_a_category_make_none_together(reserved: int) -> None:
    """Two items whose category is missing (or unseen) are two groups; of two that share one, one."""
    path = path_of(dhan())
    q, k = drawn(path, 4)
    owns = one([4])
    seen = [path(q[:1], k, owns, Groups(torch.tensor(ids), owns)) for ids in ([reserved, reserved, 5, 5], [2, 3, 5, 5])]
    torch.testing.assert_close(seen[0], seen[1])
    together = path(q[:1], k, owns, Groups(torch.tensor([2, 2, 5, 5]), owns))
    assert (together - seen[0]).abs().max() > 1e-3


def test_longer_rows_beside_it_add_no_category() -> None:
    """Padding is what a longer row would bring, all of it of category 0."""
    path = path_of(dhan())
    q, k = drawn(path, 12)
    ids = torch.tensor([2, 2, 3, *[0] * 9])
    both = path(q, k, one([3, 9]), Groups(ids, one([3, 9])))
    torch.testing.assert_close(both[:1], path(q[:1], k[:3], one([3]), Groups(ids[:3], one([3]))))


def test_a_category_counts_once_however_many_its_items() -> None:
    path = path_of(dhan())
    q, k = drawn(path, 2)
    k = torch.cat([k[:1].expand(50, -1), k[1:]])
    actual = path(q[:1], k, one([51]), Groups(torch.tensor([2] * 50 + [3]), one([51])))[:, : k.shape[1]]
    torch.testing.assert_close(actual, path.categories(q[:1], k[-2:], one([2])))


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_it_explains_x_by_its_items(settings: dict[str, Any]) -> None:
    model, batch, request = dhan(settings), ragged(9, fields=KINDS), shared(4, 5, fields=KINDS)
    embedded = model.embeddings(batch)
    for history, w_N in model.explain(batch).items():
        q_BQ, k_UK, segments = model.queries(batch, embedded, history)
        groups = Groups(cast(Tensor, batch.histories[history].columns[cast(str, model.columns[history])]), segments)
        x_BK = path_of(model, history)(q_BQ, k_UK, segments, groups)[:, : k_UK.shape[1]]
        torch.testing.assert_close(segments.weighted_sum(w_N, k_UK), x_BK, rtol=1e-4, atol=1e-5)
        assert all(
            w_N[a:b].sum().item() == pytest.approx(1, rel=1e-4) for a, b in pairwise(segments.offsets.tolist()) if b > a
        )
    again = model.explain(repeated(request, KINDS))
    for history, w_BT in model.explain(request).items():
        torch.testing.assert_close(w_BT.flatten(), again[history], rtol=1e-4, atol=1e-5)
    several = grouped([2, 0, 0, 1, 2], fields=KINDS)
    for history, w_N in model.explain(several).items():
        torch.testing.assert_close(w_N, model.explain(several.ungroup())[history])


def test_what_groups() -> None:
    """The column that is named, of the events alone if need be; and tokens each for itself."""
    assert dhan({"group": "rating"}).columns == {"seen": "rating", "liked": "item"}
    model, batch = dhan({}, TOKENS), ragged(5, fields=TOKENS)
    assert model.columns == {"tokens": None}
    weights = model.explain(batch)["tokens"]
    assert weights.shape == (int(batch.histories["tokens"].offsets[-1]),)
    fields = Fields(KINDS.features, {"seen": (ITEM, GENRES)})
    with pytest.raises(ConfigError, match=r"model.group: must be an id column of a history \(item\), got 'genres'"):
        build({"name": "dhan", "group": "genres"}, fields)
    with pytest.raises(ConfigError, match="dhan reads a history, and the schema has none"):
        build({"name": "dhan"}, Fields((ITEM,), {}))


def test_the_category_of_an_event_counts_as_a_group_and_as_a_vector() -> None:
    """Two categories with the same vector: only who goes with whom changes."""
    model = dhan()
    with torch.no_grad():
        model.embeddings.table("kind").copy_(model.embeddings.table("kind")[2:3].expand(6, -1))
    batch: Batch = ragged(3, fields=KINDS, lengths=[4, 4, 4])
    split = [
        with_history(batch, "seen", {"kind": torch.tensor(ids * 3, dtype=torch.int32)})
        for ids in ([2, 2, 3, 3], [3, 3, 5, 5], [2, 3, 2, 3])
    ]
    first, renamed, other = (model(one) for one in split)
    torch.testing.assert_close(first, renamed)
    assert (first - other).abs().max() > 1e-4


SMALL = {"name": "dhan", "attention": [16], "group_attention": [16], "mlp": [32]}
SMALL_DIN: dict[str, Any] = {"name": "din", "attention": [16], "mlp": [32]}


def test_a_loud_category_does_not_drown_the_others(tmp_path: Path) -> None:
    assert {"name": "dhan"} in synthetic.generate_dataset("frequent_queries", 2).must
    assert solves(synthetic.generate_dataset("frequent_queries"), SMALL, tmp_path)


def test_a_loud_category_drowns_the_others_where_items_are_weighed_alone(tmp_path: Path) -> None:
    """The same attention on items, without the one on groups."""
    dataset = synthetic.generate_dataset("frequent_queries")
    assert {"name": "din", "softmax": True} in dataset.must_not
    actual, bayes_auc = aucs_of(dataset, run_in(dataset, {**SMALL_DIN, "softmax": True}, tmp_path))
    assert actual < (0.5 + bayes_auc) / 2


def test_clicks_reveal_an_interest(tmp_path: Path) -> None:
    assert solves(synthetic.generate_dataset("one_interest", users=800), SMALL, tmp_path, epochs=4)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"base": "dien"}], ids=str)
@pytest.mark.parametrize("dataset", ["frequent_queries", "one_interest"])
def test_both_bases_solve_both_datasets(settings: dict[str, Any], dataset: str, tmp_path: Path) -> None:
    assert solves(synthetic.generate_dataset(dataset), {"name": "dhan", **settings}, tmp_path)
