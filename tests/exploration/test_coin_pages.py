"""Labels are coin flips: no explorer shows a coin before it is known, and the log of its pages estimates the true rate.

A session has two impressions of one coin, and the ranker learns to copy the label of the first one. In the last session
of a user this label is recorded an hour later, so that a score at the timestamp of the second impression knows nothing
of it. Where the label is recorded in time, or at a later timestamp, the same measurement finds every coin.
"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import longrec as lr
from longrec import exports
from longrec.config import to_yaml
from longrec.evaluation.pipeline_evaluation import evaluate_pipeline
from longrec.metrics import auc
from longrec.pipeline.candidates import Candidates
from longrec.pipeline.explore_config import ExploreConfig
from longrec.pipeline.stage import Query
from longrec.serve.explore_stage import ExploreStage
from longrec.training.loaders import build_loader

USERS, SESSIONS, ITEMS = 120, 6, 20
K, SLOT, SHARE, ROUNDS = 4, 2, 0.4, 2
LIMIT = 4.0
"""Largest deviation from chance, in standard errors."""
CHANCE = K / ITEMS
START, DAY, HOUR, AFTER = 1_700_000_000, 86_400, 3_600, 601
LINE = START + (SESSIONS - 1) * DAY - HOUR
"""Where test begins: before the last sessions."""
EXPLORERS: dict[str, dict[str, Any]] = {
    "age": {"strength": 0.05, "steps": 1},
    "thompson": {"dropout": 0.3},
    "ucb": {"dropout": 0.3, "draws": 3},
    "gradient": {},
    "ensemble": {"runs": ["runs/copier"]},
    "epsilon": {"epsilon": 0.5},
}
SCHEMA: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": {"column": "at", "unit": "s"},
    "label": "click",
    "features": {
        "item": {"kind": "id"},
        "clicked": {"kind": "id", "column": "click", "feedback": True, "available_at": "clicked_at"},
    },
    "histories": {"seen": {"features": ["item", "clicked", "time_gap"], "max_length": 1}},
}


class Coins(NamedTuple):
    """Bundles of a run, and the last session of each user: its coin, and time and item of its second impression."""

    folder: Path
    run: lr.Run
    coin: np.ndarray
    at: np.ndarray
    item: np.ndarray


def iso(second: int) -> str:
    """Return a timestamp as a split names it."""
    return datetime.fromtimestamp(second, UTC).isoformat()


@pytest.fixture(scope="module")
def coins(tmp_path_factory: pytest.TempPathFactory) -> Coins:
    folder, random = tmp_path_factory.mktemp("coins"), np.random.default_rng(0)
    session = np.arange(USERS * SESSIONS)
    user, number = session // SESSIONS, session % SESSIONS
    coin = random.permutation(session % 2)
    first = START + number * DAY + user * 60
    item = np.array([random.choice(ITEMS, 2 * SESSIONS, replace=False) for _ in range(USERS)]).reshape(-1, 2)
    late = np.where(number == SESSIONS - 1, HOUR, 1)
    columns = {
        "user": user, "item": item, "at": first[:, None] + [0, AFTER], "click": coin,
        "clicked_at": first[:, None] + late[:, None] + [0, AFTER],
    }  # fmt: skip
    shaped = {name: np.broadcast_to(own.reshape(len(session), -1), (len(session), 2)) for name, own in columns.items()}
    order = np.argsort(shaped["at"].ravel(), kind="stable")
    pq.write_table(pa.table({name: own.ravel()[order] for name, own in shaped.items()}), folder / "log.parquet")
    split = {"by": "time", "valid_from": iso(LINE - DAY), "test_from": iso(LINE)}
    data = {"log": str(folder / "log.parquet"), "schema": SCHEMA, "split": split}
    model = {"name": "pooling", "embedding_dim": 4, "mlp": [8]}
    with contextlib.chdir(folder):
        fit = {"max_steps": 100, "lr": 0.02, "batch_size": 256}
        run = lr.train({"name": "copier", "data": data, "model": model, "fit": fit}, quiet=True)
        lr.export(run, "copier.bundle", explore={"name": "thompson", **EXPLORERS["thompson"]})
        popular = lr.train({"name": "pop", "data": data, "model": {"name": "popularity"}}, quiet=True)
        lr.export(popular, "pop.bundle")
    last = slice(SESSIONS - 1, None, SESSIONS)
    return Coins(folder, run, coin[last], first[last] + AFTER, item[last, 1])


def measure(scores: np.ndarray, coin: np.ndarray) -> tuple[float, float]:
    """Return the AUC of scores for coins, and its deviation from chance in standard errors."""
    heads, tails = int(coin.sum()), int((1 - coin).sum())
    value = float(auc(coin, scores))
    return value, abs(value - 0.5) / float(np.sqrt((heads + tails + 1) / (12 * heads * tails)))


@pytest.mark.parametrize("name", EXPLORERS)
def test_no_explorer_knows_a_coin_too_early(coins: Coins, name: str) -> None:
    with contextlib.chdir(coins.folder):
        log, model = coins.run.log(), coins.run.model()
        explorer = exports._build_explorer(coins.run, log, model, {"name": name, **EXPLORERS[name]})

    def score(split: str) -> tuple[float, float]:
        rows = log.rows_of(split)
        second = rows[(log.timestamps.take(rows) // 1_000 - START) % DAY % 60 == 1]
        (batch,) = build_loader(model, log, second, len(second), shuffle=False).epoch(0)
        return measure(explorer.score(batch, 3).score.numpy(), log.labels.take(second))

    value, deviation = score("test")
    assert deviation < LIMIT, value
    value, deviation = score("train")  # here the label of the first impression was recorded in time
    assert deviation > LIMIT, value


def write(coins: Coins) -> Path:
    """Write a pipeline whose pages explore."""
    content = {
        "recall": {"pop": {"bundle": "pop.bundle", "count": ITEMS}},
        "filter": {"seen": False},
        "rank": {"bundle": "copier.bundle"},
        "explore": {"position": SLOT, "share": SHARE, "candidates": 6, "temperature": 1.0, "seed": 1},
        "log": {"folder": "shown", "flush_seconds": 60},
    }
    (coins.folder / "page.yaml").write_text(to_yaml(content))
    return coins.folder / "page.yaml"


def score_pages(pages: list[lr.Recommendation]) -> np.ndarray:
    """Return the mean exploration score of each page."""
    return np.array([np.mean([one.scores["explore"] for one in page if "explore" in one.scores]) for page in pages])


def test_explored_pages_are_at_chance(coins: Coins) -> None:
    users = range(USERS)
    with lr.open_pipeline(write(coins), keep_log=True) as pages:
        shown = [pages.recommend(user, K, at=int(coins.at[user])) for user in users]
        for number in range(ROUNDS):
            for user in users:
                pages.recommend(user, K, at=int(coins.at[user]) - 1 - number)
        later = [pages.recommend(user, K, at=int(coins.at[user]) + 2 * HOUR, seed=user) for user in users]
    value, deviation = measure(score_pages(shown), coins.coin)
    assert deviation < LIMIT, value
    value, deviation = measure(score_pages(later), coins.coin)
    assert deviation > LIMIT, value
    hits = np.mean([item in [one.id for one in page] for item, page in zip(coins.item, shown)])
    assert abs(hits - CHANCE) < LIMIT * np.sqrt(CHANCE * (1 - CHANCE) / USERS)

    rows = pd.read_parquet(coins.folder / "shown").dropna(subset="propensity")  # without those of own seeds
    assert len(rows) == K * USERS * (1 + ROUNDS)
    rows["click"] = np.random.default_rng(1).integers(0, 2, len(rows))
    check_estimates(rows[rows["position"] >= SLOT])


def test_an_evaluation_of_a_pipeline_that_explores_is_at_chance(coins: Coins) -> None:
    with contextlib.chdir(coins.folder):
        result = evaluate_pipeline(write(coins), coins.run.folder, "test", k=K, n_resamples=20, quiet=True)
    hits = result.metrics["top"][f"hr@{K}"].value
    assert abs(hits - CHANCE) < LIMIT * np.sqrt(CHANCE * (1 - CHANCE) / result.users)


def check_estimates(rows: pd.DataFrame) -> None:
    """Check that the log of coin flips estimates half for policies, and not with propensities that lack the budget."""
    stays = rows["propensity"] > 0.5  # an item of the plain page, since most pages do not explore
    policies = {"plain": stays * 1.0, "explores": (rows["propensity"] - (1 - SHARE) * stays) / SHARE}
    for policy, target in policies.items():
        value = lr.estimate_policy(rows.assign(target=target.clip(0, 1)), reward="click", request="request")
        for name in ("ips", "snips"):
            one = value.estimates[name].value
            assert one.low <= 0.5 <= one.high, (policy, name, one)
    wrong = rows.assign(target=stays * 1.0, propensity=np.where(rows["explored"], SHARE, 1.0))
    one = lr.estimate_policy(wrong, reward="click", request="request").estimates["ips"].value
    assert one.high < 0.5, one


class Scores:
    """Explorer whose score of an item is any function of the coins that it would earn."""

    def __init__(self, coin: np.ndarray, kind: str) -> None:
        self.coin, self.kind, self.random = coin, kind, np.random.default_rng(3)

    def contains(self, keys: np.ndarray) -> np.ndarray:
        return np.ones(len(keys), bool)

    def __call__(self, candidates: Candidates, query: Query, seed: int) -> np.ndarray:
        keys = candidates.keys
        coins = {"noise": self.random.random(len(keys)), "order": -1.0 * keys, "equal": np.zeros(len(keys))}
        scores = {**coins, "coins": self.coin[int(str(query.user)), keys] + 0.1 * coins["noise"]}[self.kind]
        return np.asarray(scores, np.float32)


@pytest.mark.parametrize("kind", ["noise", "order", "equal", "coins"])
def test_the_log_estimates_half_whatever_the_explorer_knows(kind: str) -> None:
    """Even an explorer that draws the heads: the logged pages earn more than half, and a plain page would not."""
    requests, random = 800, np.random.default_rng(2)
    coin = random.integers(0, 2, (requests, ITEMS))
    config = ExploreConfig(position=SLOT, share=SHARE, candidates=10, temperature=1.0, seed=2)
    stage, rows = ExploreStage(config, Scores(coin, kind)), list[dict[str, Any]]()
    for request in range(requests):
        query = Query(request, request, k=K)
        page = stage(Candidates.of(random.permutation(ITEMS), "all"), query).keys[:K].tolist()
        explored = query.explored.result
        assert explored is not None
        assert explored.propensities is not None
        rows += [
            {"request": request, "position": at + 1, "click": coin[request, item], "propensity": propensity,
             "explored": item == explored.item}
            for at, (item, propensity) in enumerate(zip(page, explored.propensities))
        ]  # fmt: skip
    frame = pd.DataFrame(rows)
    drawn = frame[frame["explored"]]["click"].mean()
    assert (drawn > 0.7) == (kind == "coins")
    stays = frame["propensity"] > 0.5
    value = lr.estimate_policy(frame.assign(target=stays * 1.0), reward="click", request="request")
    for name in ("ips", "snips"):
        one = value.estimates[name].value
        assert one.low <= 0.5 <= one.high, one
