"""The command offpolicy: columns of one log, a policy table that is joined, and the impression log of a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import longrec as lr
from longrec.cli import main
from longrec.errors import ConfigError, DataError
from longrec.metrics import estimate_policy_value
from longrec.serve.impressions import ImpressionWriter, build_arrow_schema

ITEMS = 4


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tables(requests: int = 300, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A log of one item per request, and the probabilities and predictions of all candidates."""
    random = np.random.default_rng(seed)
    mu, pi = (random.dirichlet(np.full(ITEMS, 5.0), requests) for _ in range(2))
    item = (random.random(requests)[:, None] > mu.cumsum(1)).sum(1)
    every = np.arange(requests)
    log = pd.DataFrame({"request": [f"r{n}" for n in every], "user": every // 2, "item": item})
    log["propensity"], log["click"] = mu[every, item], random.integers(0, 2, requests)
    policy = pd.DataFrame({"request": np.repeat(log["request"], ITEMS), "item": np.tile(np.arange(ITEMS), requests)})
    policy["target"], policy["score"] = pi.ravel(), random.random(requests * ITEMS)
    policy = policy.sample(frac=1, random_state=1)
    return log, policy


def join(log: pd.DataFrame, policy: pd.DataFrame) -> pd.DataFrame:
    """The log with the columns of the policy, and the mean prediction of each request."""
    means = (policy["target"] * policy["score"]).groupby(policy["request"]).sum().rename("mean_score")
    return log.merge(policy, on=["request", "item"], how="left").join(means, on="request")


def test_a_policy_table_gives_what_the_columns_of_one_log_give(capsys: pytest.CaptureFixture[str]) -> None:
    log, policy = tables()
    joined = join(log, policy)
    expected = estimate_policy_value(
        joined["click"],
        joined["propensity"],
        joined["target"],
        predicted=joined["score"],
        expected=joined["mean_score"],
        unit=joined["user"],
        clip=1.5,
    ).to_dict()
    log.to_parquet("log.parquet")
    policy.to_csv("policy.csv", index=False)
    joined.to_parquet("joined.parquet")
    common = ["--reward", "click", "--predicted", "score", "--user", "user", "--clip", "1.5", "--json", "-"]
    for arguments in (["joined.parquet", "--expected", "mean_score"], ["log.parquet", "--policy", "policy.csv"]):
        assert main(["offpolicy", *arguments, *common]) == 0
        content = json.loads(capsys.readouterr().out)
        assert content["estimates"]["dr"]["value"] == pytest.approx(expected["estimates"]["dr"]["value"], abs=1e-12)
        for key in ("value", "low", "high", "effective_rows", "largest_weight"):
            assert content["estimates"]["ips"][key] == pytest.approx(expected["estimates"]["ips"][key], abs=1e-9)
        assert (content["unit"], content["units"]) == ("user", 150)


def test_the_table_and_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    log, policy = tables()
    join(log, policy).to_parquet("log.parquet")
    options = ["--reward", "click", "--position", "place", "--request", "request", "--json", "value.json"]
    assert main(["offpolicy", "log.parquet", *options]) == 2
    assert "no column 'place' (position)" in capsys.readouterr().err
    options[options.index("place")] = "item"
    assert main(["offpolicy", "log.parquet", *options, "--min-effective", "20"]) == 0
    text = capsys.readouterr().out
    assert "300 rows, ESS" in text
    assert "300 requests, ESS" in text
    assert "assumed: position-wise independence" in text
    assert [line.split()[0] for line in text.splitlines() if "  SNIPS " in line] == ["all", "0", "1", "2", "3"]
    assert max(map(len, text.splitlines())) <= 140
    content = json.loads(Path("value.json").read_text())
    assert list(content["positions"]) == ["0", "1", "2", "3"]


def test_frames_and_rows_in_the_order_of_the_log() -> None:
    log, policy = tables()
    log.loc[[4, 17], "propensity"] = 0.0
    with pytest.raises(DataError, match="rows 4, 17, from 0"):
        lr.estimate_policy(log, policy, reward="click")


def drop_row(log: pd.DataFrame, policy: pd.DataFrame) -> None:
    shown = (policy["request"] == "r9") & (policy["item"] == log["item"][9])
    policy.loc[shown, "item"] = 99


def repeat_key(log: pd.DataFrame, policy: pd.DataFrame) -> None:
    policy.iloc[0, :2] = policy.iloc[1, :2]


def change_type(log: pd.DataFrame, policy: pd.DataFrame) -> None:
    policy["item"] = policy["item"].astype(str) + "x"


def double_probabilities(log: pd.DataFrame, policy: pd.DataFrame) -> None:
    policy.loc[policy["request"] == "r9", "target"] *= 2 / 3


def lose_user(log: pd.DataFrame, policy: pd.DataFrame) -> None:
    log["user"] = log["user"].astype("Int64")
    log.loc[3, "user"] = None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_row, r"no probability for the item of 1 rows of the log \(rows 9, from 0\)"),
        (repeat_key, r"2 rows of request r\d+, item \d; expected one row per request and item"),
        (change_type, "column 'item': keys of type VARCHAR; expected BIGINT, as in the log"),
        (double_probabilities, r"probabilities of request r9 with the sum 0\.6667; expected the sum 1"),
        (lose_user, "column 'user': 1 null value"),
    ],
    ids=lambda one: one.__name__ if callable(one) else "",
)
def test_tables_that_do_not_fit_are_refused(change: Any, message: str) -> None:
    log, policy = tables()
    change(log, policy)
    with pytest.raises(DataError, match=message):
        lr.estimate_policy(log, policy, reward="click", predicted="score", user="user")


def test_options_that_do_not_fit_are_refused() -> None:
    log, policy = tables()
    with pytest.raises(ConfigError, match="expected: is computed"):
        lr.estimate_policy(log, policy, reward="click", expected="mean_score")
    with pytest.raises(ConfigError, match="item: joins a policy table"):
        lr.estimate_policy(log, reward="click", item="item")
    with pytest.raises(DataError, match="no rows"):
        lr.estimate_policy(join(log, policy)[:0], reward="click")
    with pytest.raises(DataError, match="expected numbers"):
        lr.estimate_policy(join(log, policy), reward="request")


def test_a_repeated_row_is_refused(here: Path) -> None:
    """A second click on an item repeats its row in a careless join."""
    log, policy = tables()
    log["position"] = 1
    own = pd.concat([join(log, policy), join(log, policy).iloc[[7]]])
    with pytest.raises(DataError, match="2 rows of request r7, position 1; expected one row per request and position"):
        lr.estimate_policy(own, reward="click", request="request", position="position")
    with pytest.raises(
        DataError, match=r"2 rows of request r7, item \d; expected one row per request and item"
    ) as raised:
        lr.estimate_policy(pd.concat([log, log.iloc[[7]]]), policy, reward="click")
    assert "join one reward per shown item" in raised.value.do
    assert lr.estimate_policy(own, reward="click", position="position").rows == len(log) + 1


def test_faults_name_no_schema(here: Path) -> None:
    log, policy = tables()
    own = join(log, policy)
    with pytest.raises(
        DataError, match=r"no column 'pages' \(position\); expected these columns; the file has request"
    ):
        lr.estimate_policy(own, reward="click", position="pages")
    with pytest.raises(DataError, match="column 'propensity': numbers stored as text; expected numbers") as raised:
        lr.estimate_policy(own.astype({"propensity": str}), reward="click")
    assert raised.value.do == "write numbers"


def test_the_impression_log_of_a_server_needs_propensities() -> None:
    log, policy = tables()
    schema = build_arrow_schema(text_users=False, text_items=False, steps=False, score_columns=["click"])
    for folder, logged in (("deterministic", False), ("random", True)):
        writer = ImpressionWriter(Path(folder), schema)
        drawn = log["propensity"] if logged else [None] * len(log)
        keys = log[["request", "user", "item"]].to_dict("records")
        writer.write([{**one, "propensity": p, "click": c} for one, p, c in zip(keys, drawn, log["click"])])
        writer.close()
    with pytest.raises(DataError, match=r"column 'propensity': 300 bad values in 300 rows \(300 null or NaN") as raised:
        lr.estimate_policy("deterministic", policy, reward="click")
    assert "draws nothing at random" in raised.value.do
    own = lr.estimate_policy("random", policy, reward="click").estimates["snips"].value.value
    assert own == pytest.approx(
        lr.estimate_policy(log, policy, reward="click").estimates["snips"].value.value, rel=1e-6
    )
