"""Runs of coin cases: what was scored, and whether it knows the coins."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from coin_cases import EARLIER, EXTRACTOR, FACTORS, FIT, SOURCE, Case, model, schema, split
from coin_log import DAY, LINE, TAIL, CoinLog, write

from longrec.commands import export
from longrec.features.raw_columns import list_context_columns
from longrec.metrics import auc
from longrec.serve.client import client
from longrec.training.compress import compress
from longrec.training.extract import extract
from longrec.training.finished_run import Run
from longrec.training.fit import train

Config = dict[str, Any]
Change = Callable[[Config], None]
"""Goes over a config."""


def unchanged(config: Config) -> None:
    """Leave a config as it is."""


SEEN_BY_SOURCES = ("form", "label", "echo", "late")
"""What a source of tokens or knowledge depends on."""
_LEFT_OUT = ("split", "tokens", "knowledge", "start", "tables", "tasks", "weights")
PLAIN = {name: FACTORS[name][0] for name in _LEFT_OUT}
"""What a source of tokens or knowledge leaves out."""


@dataclass(frozen=True)
class Seen:
    """How well a run tells coins.

    Attributes:
        auc: over coins, each with the mean score of its test rows.
        error: standard error of the AUC of scores that know nothing, over so many independent coins.
        coins: how many.
        run: the run itself.
    """

    auc: float
    error: float
    coins: int
    run: Run

    @property
    def deviation(self) -> float:
        """Distance from .5 in standard errors."""
        return (self.auc - 0.5) / self.error

    def __str__(self) -> str:
        return f"AUC {self.auc:.3f}, {self.deviation:+.1f} standard errors from .5 over {self.coins} coins"


@dataclass
class Runs:
    """Runs below one folder; logs, stores and earlier runs are made once.

    Args:
        folder: for everything that is written.
    """

    folder: Path
    cache: dict[Any, Any] = field(default_factory=dict)
    number: Any = field(default_factory=itertools.count)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What was made under a key before, or is made now."""
        if key not in self.cache:
            self.cache[key] = make()
        return self.cache[key]

    def log(self, case: Case) -> CoinLog:
        """The log of a case."""
        return self.once(("log", case["form"]), lambda: CoinLog(case["form"]))

    def config(self, case: Case, *, tokens: str | None = None, knowledge: str | None = None) -> Config:
        """The config of a case, its files written; everything in it may be changed."""
        log, clock = self.log(case), case["clock"]
        folder = self.folder / case["form"] / clock
        whole = self.once(("file", case["form"], clock), lambda: write(log.table(clock), folder / "log.parquet"))
        data: Config = {"log": whole, "split": copy.deepcopy(split(case)), "folder": str(self.folder / "prepared")}
        at = log.columns["at"]
        if case["split"] == "shares":
            data["split"]["test"] = float(np.mean(at >= LINE))
        elif case["split"] == "test_days":
            data["split"]["test_days"] = (TAIL // DAY * DAY + DAY - LINE) / DAY
        elif case["split"] == "files":
            data["log"] = {
                "splits": self.once(("files", case["form"], clock), lambda: self._write_splits(log, clock, folder))
            }
        for side in ("user", "item") if case["tables"] != "none" else ():
            data[f"{side}s"] = self.once(
                ("table", case["tables"], case["form"], clock, side), partial(self._table, case, side)
            )
        schema_dict = schema(case, tokens=tokens, knowledge=knowledge)
        data["schema"] = schema_dict
        fit = {**FIT, "runs": str(self.folder / "runs")}
        if case["weights"] == "sample_weight":
            fit["sample_weight"] = "weight"
        elif case["weights"] == "negative_rate":
            fit["negative_rate"] = 0.5
        return {"data": data, "model": model(case), "fit": fit, "evaluate": {"n_resamples": 2, "resample": "row"}}

    def _table(self, case: Case, side: str) -> Any:
        log, path = self.log(case), self.folder / case["form"] / case["clock"] / f"{side}s-{case['tables']}.parquet"
        if case["tables"] == "static":
            return write(log.entities(side), path)
        return {"files": write(log.versions(side, case["clock"]), path), "as_of": "updated_at"}

    def _write_splits(self, log: CoinLog, clock: str, folder: Path) -> dict[str, str]:
        table, split_names = log.table(clock), log.splits()
        return {
            split_name: write(table.filter(split_names == split_name), folder / f"{split_name}.parquet")
            for split_name in np.unique(split_names)
        }

    def tokens(self, case: Case, keep: str, *settings: str, change: Change = unchanged) -> str:
        """The token store of a case, made once for all cases that agree in what it depends on."""
        key = ("tokens", *(case[name] for name in SEEN_BY_SOURCES), keep, *settings, change)

        def make() -> str:
            config = self.config({**case, **PLAIN})
            config["model"] = SOURCE
            change(config)
            into = self.folder / "tokens" / str(next(self.number))
            compress(config, into, [f"filter={keep}", "blocks=4", "first_slices=2", *settings], quiet=True)
            return str(into)

        return self.once(key, make)

    def knowledge(self, case: Case, *settings: str, change: Change = unchanged) -> str:
        """What an extractor left, made once for all cases that agree in what it depends on."""
        key = ("knowledge", *(case[name] for name in SEEN_BY_SOURCES), *settings, change)

        def make() -> str:
            config = self.config({**case, **PLAIN})
            config["model"] = EXTRACTOR
            change(config)
            into = self.folder / "knowledge" / str(next(self.number))
            extract(config, into, ["blocks=4", *settings], quiet=True)
            return str(into)

        return self.once(key, make)

    def run(self, case: Case, change: Change = unchanged, scores: str = "score", **stores: str) -> Seen:
        """Train and judge a case, after ``change`` went over its config.

        Args:
            scores: the column of predictions that is judged.
        """
        if case["tokens"] != "none":
            stores.setdefault("tokens", self.tokens(case, {"blocks": "all"}.get(case["tokens"], case["tokens"])))
        if case["knowledge"] != "none":
            stores.setdefault("knowledge", self.knowledge(case))
        config = self.config(case, **stores)
        if case["start"] == "earlier_run":
            earlier = copy.deepcopy(config)
            earlier["data"]["split"] = EARLIER
            config["fit"]["init_from"] = str(self.train(earlier).folder)
        change(config)
        return self.judge(self.train(config), self.log(case), scores)

    def train(self, config: Config) -> Run:
        """A run of a config, under a name of its own."""
        return train({"name": str(next(self.number)), **config}, quiet=True)

    def judge(self, run: Run, log: CoinLog, scores: str = "score") -> Seen:
        """How well the scores of the test rows tell their coins."""
        predictions, keys = pq.read_table(run.folder / "predictions" / "test.parquet"), item_keys(run)
        session = keys[predictions["row"].to_numpy()]
        sessions, owner = np.unique(session, return_inverse=True)
        mean = np.bincount(owner, predictions[scores].to_numpy()) / np.bincount(owner)
        coins = log.coins[sessions]
        heads, tails = int(coins.sum()), int((1 - coins).sum())
        error = float(np.sqrt((heads + tails + 1) / (12 * heads * tails)))
        return Seen(float(auc(coins, mean)), error, len(coins), run)

    def served(self, seen: Seen, case: Case, most: int = 100) -> float:
        """The largest difference of a score between the run and its bundle, asked at the rows' own timestamps."""
        bundle = self.folder / "bundles" / seen.run.name
        export(seen.run, bundle)
        predictions, keys = pq.read_table(seen.run.folder / "predictions" / "test.parquet"), item_keys(seen.run)
        table, columns = self.log(case).table(case["clock"]), self.log(case).columns
        raw = {name: table[name].to_pylist() for name in table.column_names}
        order = np.lexsort([columns["at"], columns["user_id"]])  # stable: ties stay in the order of the file
        begin: dict[int, int] = {}
        for row, visit in enumerate(columns["visit"].tolist()):
            begin.setdefault(visit, row)
        worst = 0.0
        with client(bundle) as server:
            context = list_context_columns(seen.run.log().fitted)
            step = max(len(predictions) // most, 1)
            for row, time, score in zip(*(predictions[name].to_numpy()[::step] for name in ("row", "time", "score"))):
                own = int(order[row])
                assert (columns["item_id"][own], columns["at"][own]) == (keys[row], time // 1_000)
                start = begin[raw["visit"][own]] if case["form"] == "request" else own
                context_values = {name: raw[name][own] for name in context}
                answer = server.rank(
                    raw["user_id"][own], [raw["item_id"][own]], at=raw["at"][start], context=context_values
                )
                worst = max(worst, abs(answer[0].score - score))
        return worst


def item_keys(run: Run) -> np.ndarray:
    """The item key, which is the session, of each row of a run's prepared log."""
    log = run.log()
    return log.items.keys.values.to_numpy()[log.events.columns["item"] - 1]


def warnings_of(run: Run) -> list[str]:
    """What the results of a run say of themselves."""
    return list(json.loads((run.folder / "results.json").read_text())["warnings"])


def share_of_later_rows(run: Run) -> float:
    """Share of the training rows that lie at or after the first test row, computed row by row.

    Rows at or after the first validation or test row of their own user do not train, and are not counted.
    """
    log = run.log()
    codes, times, timestamps = np.asarray(log.splits), np.asarray(log.events.times), np.asarray(log.timestamps)
    users = log.user(np.arange(len(log)))
    first_of_user: dict[int, int] = {}
    for user, timestamp in zip(users[codes > 0].tolist(), timestamps[codes > 0].tolist()):
        first_of_user[user] = min(timestamp, first_of_user.get(user, timestamp))
    trained = [
        time
        for user, time in zip(users[codes == 0].tolist(), times[codes == 0].tolist())
        if time < first_of_user.get(user, time + 1)
    ]
    return float(np.mean(np.array(trained) >= timestamps[codes == 2].min()))
