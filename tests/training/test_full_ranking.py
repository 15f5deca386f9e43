from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from longrec.config import Strict
from longrec.data.log import Log
from longrec.errors import RunError
from longrec.models.core.kinds import Retriever, VectorRetriever
from longrec.testing.pretend_device import PretendDevice, move_model
from longrec.training.full_ranking import list_top, rank_targets
from longrec.training.settings import EvaluateConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from test_next_item_loader import positives, write_log


class Popular(Retriever):
    """Scores of items by their id, with many ties, shifted by the length of the history."""

    Config = Strict

    def loss(self, batch: Any) -> Tensor:
        raise NotImplementedError

    def score_catalog(self, batch: Any, catalog: Any) -> Tensor:
        lengths = batch.histories["seen"].offsets.diff().float().unsqueeze(1)
        return (catalog["item"].float() % 5).unsqueeze(0) + lengths


class Mean(VectorRetriever):
    """Inner product of item vectors and the mean vector of a history."""

    Config = Strict
    width = 4

    def __init__(self, fields: Any) -> None:
        super().__init__(Strict(), fields)
        self.table = torch.nn.Parameter(torch.randn(100, 4))

    def loss(self, batch: Any) -> Tensor:
        raise NotImplementedError

    def users(self, batch: Any) -> Tensor:
        history = batch.histories["seen"]
        ids = history.columns["item"].long()
        sums = torch.zeros(len(history.offsets) - 1, 4, device=ids.device)
        owner = torch.repeat_interleave(torch.arange(len(sums), device=ids.device), history.offsets.diff())
        return sums.index_add(0, owner, self.table[ids]).unsqueeze(1)

    def items(self, columns: Any) -> Tensor:
        return self.table[columns["item"].long()]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    return write_log(tmp_path_factory.mktemp("log"), seed=3)


def rank_by_hand(model: Any, log: Log, rows: Any, seen: str, catalog: str) -> list[float]:
    """Ranks by the definition, one row and one item at a time."""
    ids = log.items.columns["item"]
    assert isinstance(ids, np.ndarray)
    item, times, ranks = log.events.columns["item"], log.events.times, []
    for row in rows.tolist():
        user = int(log.user(np.array([row]))[0])
        own = range(int(log.events.offsets[user]), row)
        before = [other for other in own if times[other] < times[row]]
        history = [int(ids[item[other]]) for other in before][-6:]
        masked = {int(item[other]) for other in {"keep": [], "mask": before, "mask_same_time": own}[seen]}
        scores = []
        for candidate in range(1, len(log.items)):
            if isinstance(model, Popular):
                score = float(ids[candidate] % 5 + len(history))
            else:
                table = model.table.detach()
                score = float((table[history].sum(0) * table[int(ids[candidate])]).sum())
            exists = catalog == "all" or times[item == candidate].min() < times[row]
            if candidate == item[row] or (candidate not in masked and exists):
                scores.append((score, candidate == item[row]))
        target = next(score for score, is_target in scores if is_target)
        above = sum(score > target + 1e-6 for score, _ in scores)
        ranks.append(above + (sum(abs(score - target) <= 1e-6 for score, _ in scores) - 1) / 2)
    return ranks


@pytest.mark.parametrize("catalog", ["existing", "all"])
@pytest.mark.parametrize("seen", ["mask", "mask_same_time", "keep"])
@pytest.mark.parametrize("kind", ["popular", "mean"])
def test_ranks_are_those_of_the_definition(log: Log, kind: str, seen: Any, catalog: Any) -> None:
    torch.manual_seed(0)
    model = Popular(Strict(), log.fields()) if kind == "popular" else Mean(log.fields())
    rows = positives(log, "train")[::9]  # from the start on, when few items exist
    ranks = rank_targets(model, log, rows, EvaluateConfig(seen=seen, catalog=catalog))
    np.testing.assert_allclose(ranks, rank_by_hand(model, log, rows, seen, catalog))


def test_blocks_change_no_rank(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = Mean(log.fields()), positives(log, "test")
    whole = rank_targets(model, log, rows, EvaluateConfig())
    monkeypatch.setattr("longrec.training.full_ranking._SCORES", 70)
    monkeypatch.setattr("longrec.training.full_ranking._REQUESTS", 11)
    np.testing.assert_array_equal(rank_targets(model, log, rows, EvaluateConfig()), whole)


def test_a_score_that_is_not_finite_is_refused(log: Log) -> None:
    model = Mean(log.fields())
    with torch.no_grad():
        model.table[5] = torch.nan
    with pytest.raises(RunError, match="not finite"):
        rank_targets(model, log, positives(log, "test"), EvaluateConfig())


def test_random_vectors_rank_targets_in_the_middle(log: Log) -> None:
    ranks = []
    for seed in range(40):
        torch.manual_seed(seed)
        ranks.append(
            rank_targets(Mean(log.fields()), log, positives(log, "test"), EvaluateConfig(catalog="all", seen="keep"))
        )
    middle = (len(log.items) - 2) / 2
    assert np.mean(ranks) == pytest.approx(middle, rel=0.1)


@pytest.mark.parametrize("kind", ["popular", "mean"])
def test_another_device_gives_the_same_ranks(log: Log, kind: str) -> None:
    torch.manual_seed(0)
    model: Any = Mean(log.fields())
    if kind == "popular":
        model = Popular(Strict(), log.fields())
        model.register_parameter("weight", torch.nn.Parameter(torch.zeros(1)))  # its device is that of the model
    rows = positives(log, "test")
    expected = rank_targets(model, log, rows, EvaluateConfig())
    lists = list_top(model, log, rows, EvaluateConfig(), 4)
    with PretendDevice():
        move_model(model)
        ranks = rank_targets(model, log, rows, EvaluateConfig())
        listed = list_top(model, log, rows, EvaluateConfig(), 4)
    np.testing.assert_array_equal(ranks, expected)
    assert listed.shape == (len(rows), 4)
    if kind == "mean":  # without ties
        np.testing.assert_array_equal(listed, lists)


@pytest.mark.parametrize("seen", ["mask", "mask_same_time", "keep"])
@pytest.mark.parametrize("catalog", ["existing", "all"])
@pytest.mark.parametrize("kind", ["popular", "mean"])
def test_lists_agree_with_ranks(log: Log, kind: str, seen: Any, catalog: Any) -> None:
    torch.manual_seed(0)
    model = Popular(Strict(), log.fields()) if kind == "popular" else Mean(log.fields())
    rows = positives(log, "test")
    config = EvaluateConfig(seen=seen, catalog=catalog)
    ranks, count = rank_targets(model, log, rows, config), len(log.items) + 3
    lists, few = list_top(model, log, rows, config, count), list_top(model, log, rows, config, 4)
    assert lists.shape == (len(rows), count)
    assert few.shape == (len(rows), 4)
    listed = 0
    for row, rank, items, first in zip(rows, ranks, lists, few):
        real = items[items > 0]
        assert len(np.unique(real)) == len(real) < count
        assert not items[len(real) :].any()
        if kind == "mean":
            np.testing.assert_array_equal(first, items[:4])
        target = log.events.columns["item"][row]
        if target in real:
            listed += 1
            assert kind == "popular" or list(real).index(target) == rank
        else:
            assert seen != "keep" or catalog == "existing"
    assert listed or seen != "keep"


def test_lists_refuse_scores_that_are_not_finite(log: Log) -> None:
    model = Mean(log.fields())
    with torch.no_grad():
        model.table[3] = torch.nan
    with pytest.raises(RunError, match="not finite"):
        list_top(model, log, positives(log, "test"), EvaluateConfig(), 3)
