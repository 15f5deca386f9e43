"""Generators in training: one pass over a log, hits of tokens, items that training has not seen, and searches."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longrec.data.log import Log
from longrec.data.next_item_loader import NextItemLoader
from longrec.models.unirec import UniRec
from longrec.reporting.tables import metrics_table
from longrec.training import token_hits
from longrec.training.evaluate import compare, evaluate
from longrec.training.finished_run import Run, read_log
from longrec.training.fit import train
from longrec.training.full_ranking import list_top, rank_targets, recommend
from longrec.training.settings import EvaluateConfig
from longrec.training.token_hits import list_token_hits, measure_token_hits

USERS, EVENTS, ITEMS, NEW = 50, 8, 24, 4


def write_log(folder: Path) -> dict[str, Any]:
    """A log in which users go round through the items of a group, and items that nobody took."""
    user = np.repeat(np.arange(USERS), EVENTS)
    step = np.tile(np.arange(EVENTS), USERS)
    item = (user % 3) * 8 + (user + step) % 8
    pq.write_table(pa.table({"user": user, "item": item, "time": 1000 * step + user}), folder / "log.parquet")
    items = np.arange(ITEMS + NEW)
    codes = {"group": items // 8 % 3, "code_1": items // 2 % 4, "code_2": items % 2 + 2 * (items >= ITEMS)}
    codes["code_2"][ITEMS:] = [0, 1, 0, 1]  # codes that training knows, in combinations of other items' or its own
    pq.write_table(pa.table({"item": items, **codes}), folder / "items.parquet")
    ids = {name: {"kind": "id", "side": "item"} for name in codes}
    schema = {
        "user": "user",
        "item": "item",
        "time": {"column": "time", "unit": "s"},
        "features": {"item": {"kind": "id"}, **ids},
        "histories": {"seen": {"features": ["item", *codes], "max_length": 5}},
    }
    paths = {"log": str(folder / "log.parquet"), "items": str(folder / "items.parquet")}
    return {**paths, "schema": schema, "split": {"by": "leave_one_out"}, "folder": str(folder / "prepared")}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("generator")
    model = {"name": "unirec", "attributes": ["group"], "embedding_dim": 16, "layers": 1, "hidden": 16, "dropout": 0.0}
    fit = {"epochs": 24, "batch_size": 64, "lr": 0.02, "tensorboard": "off", "mlflow": "off", "val_checks_per_epoch": 1}
    config = {
        "name": "x",
        "data": write_log(folder),
        "model": model,
        "fit": {**fit, "check_val_every_n_epoch": 24, "runs": str(folder / "runs"), "checkpoint_seconds": None},
        "evaluate": {"k": [1, 3], "catalog": "all", "seen": "keep", "n_resamples": 2},
    }
    return train(config, quiet=True)


@pytest.fixture(scope="module")
def log(run: Run) -> Log:
    return read_log(run.config)


def load(run: Run, **settings: Any) -> UniRec:
    model = run.model()
    assert isinstance(model, UniRec)
    model.config = model.config.model_copy(update=settings)
    return model.eval()


EVALUATE = EvaluateConfig(catalog="all", seen="keep")


def test_the_next_item_of_a_cycle_is_generated(run: Run) -> None:
    ranks = run.predictions("test")["rank"].to_numpy()
    assert (ranks < 1).mean() > 0.9


def test_a_batch_of_sequences_trains_on_all_targets(run: Run, log: Log) -> None:
    model = load(run)
    rows = log.rows_of("train")
    loader = NextItemLoader(log, rows, 64, "seen", model.sampling)
    assert not loader.by_request
    batches = list(loader.epoch(0))
    targets = [len(batch.targets.state) for batch in batches if batch.targets is not None]
    assert sum(targets) == len(loader.loss_rows)
    for batch in batches:
        assert batch.targets is not None
        assert batch.targets.negatives == 0
        assert batch.layout.candidates == len(batch.targets.item.unique())  # the distinct targets, and no negatives


def test_hits_of_tokens_are_measured_per_step(run: Run, log: Log) -> None:
    model = load(run)
    hits = measure_token_hits(model, log, log.rows_of("test"), 1)
    assert list(hits) == ["token_hr@1_group", "token_hr@1_code_1", "token_hr@1_code_2"]
    assert all(share > 0.9 for share in hits.values())
    assert measure_token_hits(model, log, log.rows_of("test"), 99)["token_hr@99_code_2"] == 1
    assert "token_hr@3_code_1" in (run.folder / "metrics.jsonl").read_text()


def test_results_have_the_hits_of_tokens_with_intervals(run: Run, log: Log) -> None:
    """Those of valid are those of its validation, and `evaluate` and `compare` read what training has predicted."""
    names = [f"token_hr@3_{field.name}" for field in load(run).path]
    last = json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[-1])
    for split, stored in (("valid", run.results["valid"]), ("test", run.results)):
        own = measure_token_hits(load(run), log, log.rows_of(split))
        assert {name: stored["metrics"][name]["value"] for name in names} == pytest.approx(own)
        if split == "valid":
            assert {name: last[name] for name in names} == pytest.approx(own)
    evaluation = evaluate(run)
    assert all(evaluation.metrics[name].to_dict() == run.results["metrics"][name] for name in names)
    assert "Token HR@3 of code_2" in metrics_table({"x": evaluation.metrics})
    other = run.folder.parent / "y"
    shutil.copytree(run.folder, other)
    assert compare([run, other]).differences["y"][names[0]].interval.value == 0
    path = other / "predictions" / "test.parquet"  # as a run without tokens has it
    pq.write_table(pq.read_table(path).drop_columns(names), path)
    assert names[0] not in compare([run, other]).differences["y"]


def test_the_hits_of_each_target_are_its_own(run: Run, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of a few targets, in an order of their own, give what one batch gives."""
    rows = log.rows_of("test")
    expected = list_token_hits(load(run), log, rows, 1)
    one_by_one = [list_token_hits(load(run), log, rows[at : at + 1], 1) for at in range(8)]
    monkeypatch.setattr(token_hits, "_TARGETS", 7)
    for name, hits in list_token_hits(load(run), log, rows, 1).items():
        np.testing.assert_array_equal(hits, expected[name])
        assert hits[:8].tolist() == [bool(one[name][0]) for one in one_by_one]
    assert not all(hits.all() for hits in expected.values())


def test_an_item_that_nobody_took_is_generated_by_its_codes(run: Run, log: Log) -> None:
    """New items need codes and no training. They are twins of items of training here, and rank beside them."""
    model = load(run)
    rows = log.rows_of("test")
    listed = list_top(model, log, rows, EVALUATE, 6)
    new = set(range(ITEMS + 1, ITEMS + NEW + 1))
    assert new & set(listed.flatten().tolist())


def test_a_beam_and_exact_scoring_rank_targets_alike(run: Run, log: Log) -> None:
    rows = log.rows_of("test")
    config = EVALUATE.model_copy(update={"k": (1,), "recall_k": (2,)})
    exact, wide, narrow = (
        rank_targets(load(run, **settings), log, rows, config)
        for settings in ({"search": "exact"}, {"beam_width": 100}, {"beam_width": 2})
    )
    np.testing.assert_allclose(wide, exact, atol=1)
    top = exact < 1
    np.testing.assert_allclose(narrow[top], exact[top])
    assert narrow.max() <= ITEMS + NEW - 1


def test_a_beam_is_as_wide_as_the_largest_cut(run: Run, log: Log) -> None:
    """As in a server, which finds k items whatever the width. Otherwise recall@200 would be that of 64 paths."""
    rows, config = log.rows_of("test"), EVALUATE.model_copy(update={"k": (1,), "recall_k": (ITEMS + NEW,)})
    exact, beam = (list_top(load(run, **own), log, rows, config, 4) for own in ({"search": "exact"}, {"beam_width": 2}))
    # A new item has the codes of one of the first, and either may be taken.
    np.testing.assert_array_equal(np.sort((beam - 1) % ITEMS), np.sort((exact - 1) % ITEMS))


def test_a_list_has_items_that_are_not_seen(run: Run, log: Log) -> None:
    """The beam is wider by the seen items, as in a server."""
    row = int(log.rows_of("test")[0])
    config = EVALUATE.model_copy(update={"seen": "mask", "catalog": "all", "k": (2,), "recall_k": (2,)})
    exact, beam = (recommend(load(run, **own), log, row, config, 3) for own in ({"search": "exact"}, {"beam_width": 2}))
    assert [item for item, _ in beam] == [item for item, _ in exact]
