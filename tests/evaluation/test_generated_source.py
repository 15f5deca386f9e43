"""A pipeline whose source is a generator, evaluated against its full ranking, and with items without codes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longrec import commands
from longrec.evaluation.pipeline_evaluation import evaluate_pipeline
from longrec.training.finished_run import Run
from longrec.training.fit import train

sys.path.insert(0, str(Path(__file__).parent))
from test_pipeline_evaluation import write_pipeline

USERS, EVENTS, ITEMS, WITHOUT = 40, 8, 54, 5
"""The last items have no codes. They are taken too."""
UNIREC: dict[str, Any] = {
    **{"name": "unirec", "embedding_dim": 8, "layers": 1, "hidden": 8, "experts": 1, "beam_width": 60},
    **{"head": "linear", "pairs": []},  # fewer operators to export
}


@dataclass(frozen=True)
class Shop:
    """A generator and a counting retriever over one log, with their bundles."""

    folder: Path
    runs: dict[str, Run]

    def write(self, **sources: int) -> Path:
        recall = {name: {"bundle": f"{name}.bundle", "count": count} for name, count in sources.items()}
        return write_pipeline(self.folder / "page.yaml", recall=recall, filter={"seen": False}, merge={"count": 12})


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder, random = tmp_path_factory.mktemp("generated"), np.random.default_rng(0)
    user, step = np.repeat(np.arange(USERS), EVENTS), np.tile(np.arange(EVENTS), USERS)
    item = np.where(step < 2, random.integers(0, ITEMS, len(user)), (7 * user + step) % ITEMS)
    log = {"user": user, "item": item, "time": 1_600_000_000 + 1_000 * step + user}
    pq.write_table(pa.table(log), folder / "log.parquet")
    items, names = np.arange(ITEMS), ("code_1", "code_2")
    codes = (pa.array(code, mask=items >= ITEMS - WITHOUT) for code in (items // 9, items % 9))
    pq.write_table(pa.table({"item": items, **dict(zip(names, codes))}), folder / "items.parquet")
    schema = {
        "user": "user",
        "item": "item",
        "time": {"column": "time", "unit": "s"},
        "features": {"item": {"kind": "id"}, **{name: {"kind": "id", "side": "item"} for name in names}},
        "histories": {"seen": {"features": ["item", *names], "max_length": 5}},
    }
    config: dict[str, Any] = {
        "data": {
            **{"log": str(folder / "log.parquet"), "items": str(folder / "items.parquet"), "schema": schema},
            **{"split": {"by": "leave_one_out"}, "folder": str(folder / "prepared")},
        },
        "fit": {"tensorboard": "off", "runs": str(folder / "runs")},
        "evaluate": {"seen": "keep", "k": [5], "n_resamples": 5},
    }
    runs = {
        "unirec": train({**config, "name": "unirec", "model": UNIREC}, quiet=True),
        "knn": train(
            {**config, "name": "knn", "model": {"name": "item_knn"}, "fit": {"runs": str(folder / "runs")}}, quiet=True
        ),
    }
    for name, run in runs.items():
        commands.export(run, folder / f"{name}.bundle")
    return Shop(folder, runs)


def test_a_generator_has_the_hits_of_its_full_ranking(shop: Shop) -> None:
    """Every item has a path of its own, and the beam is as wide as the catalog: what it lists is exact."""
    run = shop.runs["unirec"]
    result = evaluate_pipeline(shop.write(unirec=8, knn=8), run, n_resamples=5, quiet=True)
    table = run.predictions("test")
    assert table["row"].to_numpy().tolist() == result.row.tolist()
    has_codes = table["item"].to_numpy() <= ITEMS - WITHOUT
    assert 0 < has_codes.sum() < len(has_codes)
    rank = table["rank"].to_numpy()
    for stage, name, cut in (("recall.unirec", "hr@5", 5), ("alone.unirec", "recall@12", 12)):
        hits = result.stages[stage].values[name]
        np.testing.assert_array_equal(hits[has_codes], (rank < cut)[has_codes])
        assert 0 < hits.sum() < len(hits)
        assert not hits[~has_codes].any()  # an item without codes is never generated
    assert result.metrics["recall.unirec"]["candidates"].value == 8
    assert result.metrics["alone.unirec"]["cpu_ms"].value > 0
    merged = result.stages["merge"].values["recall@12"]
    assert (merged >= result.stages["recall.unirec"].values["hr@5"]).all()


def test_a_generator_lists_the_items_that_existed_and_no_others(shop: Shop) -> None:
    """A list as long as the catalog has all items with codes that occurred before, and the relevant one."""
    run = shop.runs["unirec"]
    result = evaluate_pipeline(shop.write(unirec=ITEMS), run, k=12, count=20, n_resamples=5, quiet=True)
    log = run.log()
    items, times = np.asarray(log.events.columns["item"][:]), log.timestamps.take(np.arange(len(log)))
    for row, size in zip(result.row.tolist(), result.stages["recall.unirec"].values["candidates"]):
        expected = {*items[times < times[row]].tolist(), int(items[row])}
        assert size == len({item for item in expected if item <= ITEMS - WITHOUT})
    assert result.protocol["diversity"] == "not measured: no source has vectors"
    assert "diversity@12" not in result.metrics["top"]
