"""Collisions, appended items, exact assignment and churn, against brute force."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from longrec.errors import DataError, RunError
from longrec.semantic_ids.assignment import assign_exactly
from longrec.semantic_ids.churn import compare_semantic_ids, measure_churn
from longrec.semantic_ids.collisions import count_collisions, index_twins
from longrec.semantic_ids.methods import build_tokenizer
from longrec.semantic_ids.stored import SemanticIds


def build(items: int = 200, seed: int = 0, fit_seed: int = 0) -> SemanticIds:
    """Semantic IDs of two numbers, so coarse that many items are twins."""
    x_NX = torch.randn(items, 2, generator=torch.Generator().manual_seed(seed))
    tokenizer = build_tokenizer({"name": "rq_kmeans", "levels": 2, "size": 8})
    codes = tokenizer.fit(x_NX, seed=fit_seed).codes.numpy()
    keys = pa.array([f"item {row}" for row in range(items)])
    return SemanticIds.build(keys, codes, tokenizer, {"items": items}, "item_id")


def test_twins_are_numbered_in_the_order_of_the_rows() -> None:
    codes = np.random.default_rng(0).integers(0, 3, (60, 3)).astype(np.int32)
    seen: Counter[tuple[int, ...]] = Counter()
    by_hand = []
    for row in map(tuple, codes.tolist()):
        by_hand.append(seen[row])
        seen[row] += 1
    assert index_twins(codes).tolist() == by_hand
    assert index_twins(codes[40:], codes[:40]).tolist() == by_hand[40:]
    facts = count_collisions(codes)
    assert (facts.items, facts.distinct, facts.largest) == (60, len(seen), max(seen.values()))
    assert facts.colliding == sum(count for count in seen.values() if count > 1)
    assert count_collisions(codes[:0]).rate == 0


def test_codes_with_the_suffix_are_unique() -> None:
    ids = build()
    assert count_collisions(ids.codes).colliding > 20
    every = np.concatenate([ids.codes, ids.suffix[:, None]], 1)
    assert len(np.unique(every, axis=0)) == len(every)


def test_appended_items_change_no_earlier_code() -> None:
    """New items get the nearest codes, the next suffix and a version of their own."""
    ids, new_MX = build(), torch.randn(50, 2, generator=torch.Generator().manual_seed(1))
    more = ids.append(pa.array([f"new {row}" for row in range(50)]), new_MX)
    last = more.append(pa.array(["one"]), new_MX[:1])
    assert (ids.version, more.version, last.version) == (1, 2, 3)
    for name in ("codes", "suffix", "versions"):
        assert getattr(more, name)[:200].tolist() == getattr(ids, name).tolist()
        assert getattr(last, name)[:250].tolist() == getattr(more, name).tolist()
    assert more.codes[200:].tolist() == ids.tokenizer.codes(new_MX).tolist()
    assert more.suffix.tolist() == index_twins(more.codes).tolist()
    assert last.codes[250].tolist() == more.codes[200].tolist()
    assert last.suffix[250] > more.suffix[200]
    assert last.items.to_pylist()[249:] == ["new 49", "one"]
    assert more.facts["items"] == 250


def test_items_that_have_codes_already_are_refused() -> None:
    ids = build()
    for keys in (["item 3"], ["new", "new"]):
        with pytest.raises(DataError, match="an item twice, or one that has codes already"):
            ids.append(pa.array(keys), torch.zeros(len(keys), 2))
    with pytest.raises(DataError, match="one vector of width 2 per item"):
        ids.append(pa.array(["new"]), torch.zeros(1, 3))
    assert ids.append(pa.array([], pa.string()), torch.zeros(0, 2)) is ids


def test_the_folder_holds_columns_that_join_an_item_table(tmp_path: Path) -> None:
    ids = build().append(pa.array(["new"]), torch.zeros(1, 2))
    table = pq.read_table(ids.write(tmp_path / "ids") / "items.parquet")
    assert table.column_names == ["item_id", "code_1", "code_2", "code_3", "version"]
    assert table.schema.types == [pa.string(), *[pa.int32()] * 4]
    assert table["version"].to_pylist() == [1] * 200 + [2]
    opened = SemanticIds.open(tmp_path / "ids")
    assert opened.items.equals(ids.items)
    assert (opened.codes.tolist(), opened.suffix.tolist()) == (ids.codes.tolist(), ids.suffix.tolist())
    assert (opened.version, opened.key, dict(opened.facts)) == (2, "item_id", dict(ids.facts))
    assert sorted(path.name for path in (tmp_path / "ids").iterdir()) == [
        "items.parquet", "semantic_ids.json", "tokenizer.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["items.parquet", "semantic_ids.json", "tokenizer.safetensors"])
def test_damaged_folders_are_refused(name: str, tmp_path: Path) -> None:
    folder = build().write(tmp_path / "ids")
    (folder / name).write_bytes(b"{}")
    with pytest.raises(RunError, match="ids"):
        SemanticIds.open(folder)
    (folder / name).unlink()
    with pytest.raises(RunError, match="ids"):
        SemanticIds.open(folder)


def test_codes_beyond_the_codebooks_are_refused(tmp_path: Path) -> None:
    folder = build().write(tmp_path / "ids")
    table = pq.read_table(folder / "items.parquet")
    bad = pa.array(np.full(len(table), 8, np.int32))
    pq.write_table(table.set_column(1, "code_1", bad), folder / "items.parquet")
    with pytest.raises(RunError, match="codes up to 8; expected codes from 0 to 7"):
        SemanticIds.open(folder)


@pytest.mark.parametrize("size", [1, 2, 7, 60])
@pytest.mark.parametrize("kind", ["real", "ties", "sparse"])
def test_the_assignment_is_as_good_as_that_of_scipy(size: int, kind: str) -> None:
    random = np.random.default_rng(size)
    for _ in range(5):
        gain = {
            "real": random.random((size, size)),
            "ties": random.integers(0, 4, (size, size)).astype(float),
            "sparse": random.poisson(0.05, (size, size)).astype(float),
        }[kind]
        column = assign_exactly(gain)
        assert sorted(column.tolist()) == list(range(size))
        best = gain[linear_sum_assignment(gain, maximize=True)].sum()
        assert gain[np.arange(size), column].sum() == pytest.approx(best)


def test_drq_12_churn_is_measured_after_codes_are_aligned() -> None:
    """DRQ 12: codes renamed at random have no churn, and changed items are counted by the length of their prefix."""
    random = np.random.default_rng(0)
    before = random.integers(0, 16, (1_000, 3)).astype(np.int32)
    names = np.stack([random.permutation(16) for _ in range(3)])
    after = np.stack([names[level][before[:, level]] for level in range(3)], 1).astype(np.int32)
    churn = measure_churn(before, after, 16)
    assert churn.prefixes == (0, 0, 0)
    assert min(churn.unaligned) > 0.8
    for level in range(3):
        assert (churn.permutations[level][names[level]] == np.arange(16)).all()
    after[:100, 1] = (after[:100, 1] + 1) % 16
    after[50:250, 2] = (after[50:250, 2] + 1) % 16
    assert measure_churn(before, after, 16).prefixes == (0, 0.1, 0.25)


def test_drq_12_churn_of_two_fits_counts_the_common_items() -> None:
    before, after = build(seed=0, fit_seed=0), build(seed=0, fit_seed=1)
    churn = compare_semantic_ids(before, after)
    assert churn.items == 200
    assert 0 < churn.prefixes[0] < churn.unaligned[0]
    assert churn.prefixes[0] <= churn.prefixes[1]
    more = after.append(pa.array(["new"]), torch.zeros(1, 2))
    assert compare_semantic_ids(before, more).prefixes == churn.prefixes
    assert compare_semantic_ids(before, before).prefixes == (0, 0)
    other = SemanticIds.build(pa.array(range(200)), after.codes, after.tokenizer, {}, "item_id")
    with pytest.raises(DataError, match="no item that both have"):
        compare_semantic_ids(before, other)
    with pytest.raises(DataError, match="the same items and levels"):
        measure_churn(before.codes, after.codes[:, :1], 8)
