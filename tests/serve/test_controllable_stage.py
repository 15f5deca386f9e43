"""Controllable aggregation as a stage of a pipeline: against all lists of its size, and without diversity."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pipelines
import pytest
import shop

import longrec as lr
from longrec.pipeline.trace import DIVERSITY, StageTrace


def trace_stage(folder: Path, **settings: Any) -> StageTrace:
    """Return what the stage did to the 8 items of one source."""
    recall = {"mean": {"bundle": pipelines.bundles()["mean"], "count": 8}}
    rerank = [{"method": "controllable", "attribute": "genres", **settings}]
    path = pipelines.write(folder, recall=recall, merge=None, rank=None, rerank=rerank)
    with lr.open_pipeline(path) as films:
        return next(stage for stage in films.trace(**pipelines.request()).stages if stage.name == "rerank.controllable")


def read_first_genres() -> dict[str, Any]:
    """Return the first genre of every item. Of an item without one the item itself."""
    own = shop.full()
    column: Any = own.items.columns["genres"]
    return {
        own.items.key(row): column.values[column.offsets[row]]
        if column.offsets[row] < column.offsets[row + 1]
        else own.items.key(row)
        for row in range(1, len(own.items))
    }


@pytest.mark.parametrize("diversity", [0.05, 0.25, 2.0])
def test_the_list_is_the_best_of_all(tmp_path: Path, diversity: float) -> None:
    stage, genres = trace_stage(tmp_path, diversity=diversity, count=5), read_first_genres()
    keys, scores = stage.before.keys.tolist(), stage.before.score.astype(float)
    assert len(keys) == 8
    scaled = dict(zip(keys, (scores - scores.min()) / (scores.max() - scores.min())))

    def value(chosen: Any) -> float:
        pairs = sum(genres[a] != genres[b] for a, b in combinations(chosen, 2))
        return float(sum(scaled[key] for key in chosen) + diversity * pairs)

    chosen = stage.after.keys.tolist()
    assert value(chosen) == pytest.approx(max(map(value, combinations(keys, 5))))
    for size in range(5):  # each item is the best one to add
        rest = [key for key in keys if key not in chosen[:size]]
        assert value(chosen[: size + 1]) == pytest.approx(max(value([*chosen[:size], key]) for key in rest))
    dropped = {key for own in stage.dropped.values() for key in own}
    assert dropped == set(keys) - set(chosen)
    assert set(stage.dropped.get(DIVERSITY, [])) == set(keys[:5]) - set(chosen)
    if diversity == 2.0:
        assert chosen != keys[:5]
        assert DIVERSITY in stage.dropped


def test_without_diversity_the_list_is_its_start(tmp_path: Path) -> None:
    whole = trace_stage(tmp_path, diversity=0)
    assert whole.after.keys.tolist() == whole.before.keys.tolist()
    np.testing.assert_array_equal(whole.after.score, whole.before.score)
    cut = trace_stage(tmp_path, diversity=0, count=5)
    assert cut.after.keys.tolist() == whole.before.keys.tolist()[:5]
    assert DIVERSITY not in cut.dropped


def test_the_default_is_a_quarter_of_the_range_of_scores(tmp_path: Path) -> None:
    default, quarter = trace_stage(tmp_path), trace_stage(tmp_path, diversity=0.25)
    assert default.after.keys.tolist() == quarter.after.keys.tolist() != default.before.keys.tolist()
