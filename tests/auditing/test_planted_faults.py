"""An audit raises no alarm on clean logs, and finds each fault that is planted into one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

import longrec as lr
from longrec.auditing.finding import ALARM, NOTICE, OK, Audit

Maker = Callable[..., pd.DataFrame]


def alarms(audit: Audit) -> set[str]:
    return {finding.check for finding in audit.alarms}


def describe(audit: Audit) -> str:
    return "\n".join(f"{one.name}: {one.figure}" for one in audit.alarms)


@pytest.mark.parametrize("seed", range(10))
def test_a_clean_log_of_impressions_raises_no_alarm(seed: int, make_impressions: Maker) -> None:
    audit = lr.audit(make_impressions(seed, repetition=0.03 * (seed % 5)))
    assert not audit.alarms, describe(audit)
    verdicts = {finding.name: finding.verdict for finding in audit.findings}
    assert verdicts["hist_items holds the event itself"] in (OK, NOTICE)
    assert verdicts["training rows after the first test row"] == OK
    assert {one.check for one in audit.findings} == {
        "ties", "tie order", "sort", "histories", "repeats", "cold", "features", "timeline", "floor",
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(10))
def test_a_clean_log_of_days_raises_no_alarm(seed: int, make_events: Maker) -> None:
    """Half of the events are tied, and ids are random, numbered by first appearance, or text."""
    frame = make_events(seed, clock=86_400, repetition=[0, 0.05, 0.3][seed % 3])
    if seed % 2:
        frame["item_id"] = pd.factorize(frame["item_id"])[0]
    if seed % 4 == 2:
        frame["item_id"] = "B" + frame["item_id"].astype(str)
    audit = lr.audit(frame)
    assert not audit.alarms, describe(audit)
    assert audit.find("ties").value > 0.3
    repeated = audit.find("repeats", "repeated test targets")
    assert repeated.verdict == (NOTICE if seed % 3 else OK)


@pytest.mark.parametrize("split", ["chosen", "column"])
def test_leave_one_out_of_users_who_stay_to_the_end_is_no_split_by_time(split: str) -> None:
    """Nearly all training rows are before the test rows, as in a split by time."""
    random = np.random.default_rng(0)
    user, when = random.integers(0, 400, 12_000), random.integers(0, 60, 12_000) * 86_400
    frame = pd.DataFrame({"user_id": user, "item_id": random.zipf(1.3, 12_000) % 300, "timestamp": when})
    frame = frame.sort_values("timestamp", kind="stable")
    if split == "column":
        left = frame.groupby("user_id").cumcount(ascending=False)
        frame["split"] = np.where(left == 0, "test", np.where(left == 1, "valid", "train"))
    audit = lr.audit(frame)
    assert not audit.alarms, describe(audit)
    assert audit.find("timeline", "training rows after the first test row").value > 0.1


def test_histories_that_began_before_the_log_are_no_fault(make_impressions: Maker) -> None:
    """The log begins in the middle: items of old events happen again later, and are no events from the future."""
    frame = make_impressions(4, repetition=0.6)
    late = frame[frame["timestamp"] >= frame["timestamp"].median()].drop(columns="split")
    audit = lr.audit(late)
    assert not audit.alarms, describe(audit)
    assert audit.find("histories").name == "hist_items holds the item of the row"
    once = late.assign(hist_items=late["hist_items"].map(lambda own: list(dict.fromkeys(own))))
    assert not lr.audit(once).alarms
    joined = [[*own, item] for own, item in zip(once["hist_items"], once["item_id"])]
    assert alarms(lr.audit(once.assign(hist_items=joined))) == {"histories"}


def duplicate(frame: pd.DataFrame) -> pd.DataFrame:
    copies = frame.sample(frac=0.03, random_state=0)
    return pd.concat([frame, copies]).sort_values("timestamp", kind="stable")


def copy_label(frame: pd.DataFrame) -> pd.DataFrame:
    noise = np.random.default_rng(0).exponential(5, len(frame))
    return frame.assign(seconds=np.where(frame["click"] == 1, 10 + noise, noise))


def leak_future(frame: pd.DataFrame) -> pd.DataFrame:
    later = frame.index[frame["split"] == "test"]
    chosen = np.random.default_rng(0).choice(later, len(frame) // 100, replace=False)
    frame = frame.copy()
    frame.loc[chosen, "split"] = "train"
    return frame


def sort_ties(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sort_values(["timestamp", "user_id", "item_id"], kind="stable")


def hold_target(frame: pd.DataFrame) -> pd.DataFrame:
    chosen = np.random.default_rng(0).random(len(frame)) < 0.05
    lists = [[*own, item] if one else own for own, item, one in zip(frame["hist_items"], frame["item_id"], chosen)]
    return frame.assign(hist_items=lists)


def hold_future(frame: pd.DataFrame) -> pd.DataFrame:
    clicks = frame[frame["click"] == 1]
    last = frame["user_id"].map(clicks.groupby("user_id")["item_id"].last())
    lists = [own if np.isnan(item) else [*own, int(item)] for own, item in zip(frame["hist_items"], last)]
    return frame.assign(hist_items=lists)


PLANTED = [
    (duplicate, "repeats", "repeated rows"),
    (copy_label, "features", "AUC of seconds alone"),
    (leak_future, "timeline", "training rows after the first test row"),
    (sort_ties, "tie order", "order in ties by item id"),
    (hold_target, "histories", "hist_items holds the event itself"),
    (hold_future, "histories", "hist_items holds later events"),
]


@pytest.mark.parametrize(("plant", "check", "name"), PLANTED, ids=[one[0].__name__ for one in PLANTED])
def test_a_planted_fault_is_an_alarm_and_nothing_else_is(
    plant: Callable[[pd.DataFrame], pd.DataFrame], check: str, name: str, make_impressions: Maker
) -> None:
    audit = lr.audit(plant(make_impressions(3)))
    assert audit.find(check, name).verdict == ALARM, audit.find(check, name)
    assert alarms(audit) == {check}, describe(audit)


def test_an_order_by_a_hidden_key_is_an_alarm(make_events: Maker) -> None:
    """The order of the ties follows a key that the log does not have, as titles or numbers of a catalog."""
    frame = make_events(0, clock=86_400, repetition=0)
    rank = np.random.default_rng(7).permutation(frame["item_id"].max() + 1)
    frame = frame.assign(key=rank[frame["item_id"]]).sort_values(["timestamp", "key"], kind="stable")
    hidden = lr.audit(frame.drop(columns="key"))
    assert hidden.find("tie order", "order in ties by item id").verdict != ALARM
    assert hidden.find("tie order", "repeated pairs in one order").value == 1.0
    table = pd.DataFrame({"item_id": np.arange(len(rank)), "asin": [f"A{n:05}" for n in rank]})
    audit = lr.audit(frame.drop(columns="key"), items=table)
    by_column = audit.find("tie order", "order in ties by a column")
    assert (by_column.verdict, by_column.numbers["column"], by_column.value) == (ALARM, "asin", 1.0)


def test_an_unstable_sort_is_an_alarm_and_a_stable_one_is_not(make_events: Maker) -> None:
    frame = make_events(1, clock=86_400, repetition=0.1)
    stable = frame.sort_values("timestamp", kind="stable")
    unstable = frame.sample(frac=1, random_state=0).sort_values("timestamp", kind="stable")
    moved = {}
    for name, published in (("stable", stable), ("unstable", unstable)):
        lists = published.groupby("user_id")["item_id"].apply(list).reset_index(name="items")
        audit = lr.audit(frame, sequences=lists)
        moved[name] = audit.find("sort", "last events moved by the sort")
        assert audit.find("sort", "events that step back in time").verdict == OK
    assert (moved["stable"].verdict, moved["stable"].value) == (OK, 0.0)
    assert moved["unstable"].verdict == ALARM
    kept = audit.find("ties", "tied test targets").numbers["kept_by_unstable_sort"]
    # A repeated item at the same time is matched in the order of the file, so that slightly fewer have moved.
    assert moved["unstable"].value == pytest.approx(1 - kept, abs=0.06)


def test_an_order_by_a_column_is_compared_with_the_file(make_events: Maker) -> None:
    frame = make_events(2, clock=86_400, repetition=0)
    numbered = frame.assign(position=frame.groupby("user_id").cumcount())
    assert lr.audit(numbered).find("sort", "ties not in the order of the file").value == 0
    shuffled = numbered.assign(position=numbered.sample(frac=1, random_state=0).groupby(["user_id"]).cumcount())
    order = shuffled.sort_values(["timestamp", "position"]).groupby("user_id").cumcount()
    audit = lr.audit(shuffled.assign(position=order))
    assert audit.find("sort", "ties not in the order of the file").verdict == ALARM
    by_item = numbered.sort_values(["timestamp", "item_id"]).groupby("user_id").cumcount()
    audit = lr.audit(numbered.assign(position=by_item))
    assert audit.find("sort", "ties not in the order of the file").verdict == NOTICE
    assert "by item id ascending" in audit.find("sort", "ties not in the order of the file").figure
