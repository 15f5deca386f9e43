"""Metrics of the lists of a retriever on a log, against loops over its rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from longrec.cli import main
from longrec.data.log import Log
from longrec.metrics import RelevantRanks, rate_lists
from longrec.training.finished_run import Run
from longrec.training.fit import train
from longrec.training.full_ranking import Exclusions
from longrec.training.list_metrics import ListEvaluator, Lists, list_earlier_positives
from longrec.training.retriever_lists import count_ranked_items, draw_rows
from longrec.training.settings import EvaluateConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
sys.path.insert(0, str(Path(__file__).parent))
from test_next_item import write_config
from test_next_item_loader import positives, write_log


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    return write_log(tmp_path_factory.mktemp("log"), seed=5)


def list_before(log: Log, row: int, liked: bool) -> list[int]:
    """Items of the user's events strictly before the time of a row."""
    first = int(log.events.offsets[log.user(np.array([row]))[0]])
    return [
        int(log.events.columns["item"][other])
        for other in range(first, row)
        if log.events.times[other] < log.events.times[row] and (not liked or log.labels[other] > 0.5)
    ]


def test_earlier_positives_are_those_strictly_before(log: Log) -> None:
    rows = positives(log, "test")
    items, owner = list_earlier_positives(log, rows)
    for number, row in enumerate(rows.tolist()):
        assert items[owner == number].tolist() == list_before(log, row, liked=True)
    assert len(items) > len(rows)


@pytest.mark.parametrize("seen", ["mask", "mask_same_time", "keep"])
@pytest.mark.parametrize("catalog", ["existing", "all"])
def test_the_number_of_ranked_items_by_a_loop(log: Log, seen: str, catalog: str) -> None:
    rows, config = positives(log, "train")[:40], EvaluateConfig(seen=seen, catalog=catalog)  # type: ignore[arg-type]
    exclude = Exclusions(log, config)
    owner, item = exclude.find_seen(rows)
    for number, (row, count) in enumerate(zip(rows, count_ranked_items(log, rows, config))):
        target = int(log.events.columns["item"][row]) - 1
        left_out = set(item[owner == number].tolist())
        if exclude.first is not None:
            left_out |= set(np.flatnonzero(exclude.first >= log.timestamps[row]).tolist())
        assert count == len(log.items) - 1 - len(left_out - {target})


def test_metrics_of_lists_by_loops(log: Log) -> None:
    rows = positives(log, "test")
    random = np.random.default_rng(0)
    items = np.stack([random.permutation(len(log.items) - 1)[:4] + 1 for _ in rows]).astype(np.int32)
    items[3, 2:] = 0  # a shorter list
    requests = ListEvaluator(log, rows, EvaluateConfig(n_resamples=20, catalog="all"))
    vectors = random.normal(size=(len(log.items), 3)).astype(np.float32)
    lists = Lists.of_table(items)
    accuracy = rate_lists(requests.rank(lists), [4], ["hr", "recall"])
    values = requests.draw({**accuracy, **requests.rate_beyond(lists, 3, vectors)}, lists.cut(3), 3).values
    train = positives(log, "train")
    had = log.events.columns["item"][train]
    users = log.user(train)
    share = {one: max(len(set(users[had == one])), 1) / len(set(users)) for one in range(1, len(log.items))}
    count = {one: int((had == one).sum()) for one in range(1, len(log.items))}
    ordered = np.sort(list(count.values()))
    percentile = {one: np.mean([(other < own) + (other == own) / 2 for other in ordered]) for one, own in count.items()}
    novelty, bias, hits = [], [], []
    for number, row in enumerate(rows.tolist()):
        listed = [one for one in items[number, :3].tolist() if one]
        history = list_before(log, row, liked=True)
        novelty.append(np.mean([-np.log2(share[one]) for one in listed]))
        if history:
            bias.append(np.mean([percentile[one] for one in listed]) - np.mean([percentile[one] for one in history]))
        hits.append(int(log.events.columns["item"][row]) in items[number, :4].tolist())
    assert values["novelty@3"] == pytest.approx(np.mean(novelty))
    assert values["popularity_bias@3"] == pytest.approx(np.mean(bias))
    assert values["recall@4"] == values["hr@4"] == np.mean(hits)
    assert values["coverage@3"] == len(set(items[:, :3].ravel()) - {0}) / (len(log.items) - 1)
    assert 0.5 < values["diversity@3"] < 1.5
    assert {"gini@3", "entropy@3", "serendipity@3"} < set(values)


def test_slices_hold_all_targets_once(log: Log) -> None:
    rows = positives(log)
    requests = ListEvaluator(log, rows, EvaluateConfig(n_resamples=20))
    ranks = RelevantRanks.of_targets(np.zeros(len(rows)))
    slices = requests.slice(ranks, 5)
    assert list(slices["item popularity"]) == ["head", "mid", "tail"]
    assert len(slices["user activity"]) == 4
    assert all(one["hr@5"].value == 1 for own in slices.values() for one in own.values())
    few = ListEvaluator(log, rows[log.user(rows) < 5], EvaluateConfig(n_resamples=20))
    assert few.slice(RelevantRanks.of_targets(np.zeros(len(few.rows))), 5) == {
        "user activity": {},
        "item popularity": {},
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = write_config(tmp_path_factory.mktemp("follows"), follows=0.9, model="item_knn")
    return train(config, ["name=covisit", "evaluate.sampled_negatives=10"], quiet=True)


def test_evaluate_prints_lists_slices_and_sampled_metrics(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run.folder), "--json", str(tmp_path / "out.json")]) == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "out.json").read_text())
    metrics = result["metrics"]
    for name, shown in {"coverage@5": "Coverage@5", "sampled_hr@5": "sampled HR@5", "gini@5": "Gini@5"}.items():
        assert 0 < metrics[name]["low"] <= metrics[name]["value"] <= metrics[name]["high"] <= 1
        assert shown in printed
    assert metrics["sampled_hr@5"]["value"] > metrics["hr@5"]["value"]
    assert "can order two models the other way" in " ".join(result["warnings"][0].split())
    assert result["protocol"]["sampled"].startswith("10 negatives per target")
    assert list(result["slices"]) == ["user activity", "item popularity"]
    assert "\nuser activity" in printed
    # Training writes metrics of ranks alone, so that results of earlier versions hold the same keys.
    assert {"novelty@5", "sampled_hr@5"}.isdisjoint(run.results["metrics"])


def test_rows_of_lists_are_drawn_once() -> None:
    rows = np.arange(100) * 3
    some = draw_rows(rows, 20, seed=1)
    assert len(np.unique(some)) == 20
    assert (np.diff(some) > 0).all()
    assert some.tolist() == draw_rows(rows, 20, seed=1).tolist()
    assert draw_rows(rows, None, 0) is draw_rows(rows, 100, 0) is rows
    assert len(draw_rows(rows, 0, 0)) == 0
