"""The figures of an audit by hand, by loops, and by scikit-learn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from longrec.auditing import floor, histories, label_features, repeats, sequence_order, ties, timeline
from longrec.auditing.checks import assign_split, run_checks
from longrec.auditing.events import Events, Values, encode_keys
from longrec.auditing.finding import ALARM, NOTICE, OK, SKIPPED
from longrec.auditing.item_table import find_keys, rank_otherwise
from longrec.data.settings import Split
from longrec.errors import DataError
from longrec.features.feature_encoders import Lists


def events_of(rows: list[tuple[int, int, int]], **more: Any) -> Events:
    """Events of (user, item, time), in their published order."""
    user, item, time = np.array(rows, np.int64).T
    keys = np.arange(item.max() + 1)
    settings = {"row": np.arange(len(rows)), "time": time, "item_keys": keys, "item_texts": rank_otherwise(keys)}
    return Events(user, item, **{**settings, **more})


def test_shares_of_ties() -> None:
    events = events_of([(0, 1, 5), (0, 2, 5), (0, 3, 5), (1, 1, 5), (1, 2, 6), (2, 9, 1), (2, 8, 7), (2, 7, 7)])
    tied, targets = ties.check_ties(events, events.last)
    assert tied.value == 3 / 5  # of events that follow another one of their user
    assert targets.value == 2 / 3
    # The last of three keeps its place with 1/3, a single one always, one of two with 1/2.
    assert targets.numbers["kept_by_unstable_sort"] == pytest.approx((1 / 3 + 1 + 1 / 2) / 3)


def test_times_that_were_filled_are_no_ties() -> None:
    filled = np.array([False, True, False])
    events = events_of([(0, 1, 5), (0, 2, 5), (0, 3, 5)], filled=filled)
    assert events.tied.tolist() == [False, True, True]
    assert events.recorded_ties.tolist() == [False, False, False]


def test_the_first_events_of_items_are_not_tested() -> None:
    """Ids that are numbered by first appearance are ascending wherever items are new, in any order of the file."""
    random = np.random.default_rng(0)
    rows, seen = [], dict[int, int]()
    for user in range(2_000):
        for item in random.choice(500, 2, replace=False).tolist():
            rows.append((user, seen.setdefault(item, len(seen)), 0))
    finding = ties.check_tie_order(events_of(rows, item_texts=None))[0]
    assert finding.verdict == OK
    assert finding.numbers["neighbors"] > finding.numbers["tested"]
    every = [(a, b) for (_, a, _), (_, b, _) in zip(rows[::2], rows[1::2])]
    assert finding.numbers["neighbors"] == len(every)
    up = sum(a < b for a, b in every) / len(every)
    assert finding.figure.startswith(f"{100 * max(up, 1 - up):.1f} %")


@pytest.mark.parametrize(("share", "verdict"), [(0.5, OK), (0.57, NOTICE), (0.9, ALARM)])
def test_the_verdict_about_an_order_follows_share_and_errors(share: float, verdict: str) -> None:
    random = np.random.default_rng(1)
    rows = []
    for user in range(4_000):
        low, high = sorted(random.choice(100, 2, replace=False).tolist())
        rows += [(user, low, 0), (user, high, 0)] if random.random() < share else [(user, high, 0), (user, low, 0)]
    finding = ties.check_tie_order(events_of(rows))[0]
    assert finding.verdict == verdict
    n, up = finding.numbers["tested"], finding.numbers["ascending"]
    assert finding.numbers["deviations"] == pytest.approx(abs(up - n / 2) / math.sqrt(n / 4))


def test_agreement_of_pairs() -> None:
    rows = [(0, 1, 0), (0, 2, 0), (1, 1, 0), (1, 2, 0), (2, 2, 0), (2, 1, 0), (3, 3, 0), (3, 1, 0)]
    finding = ties.check_tie_order(events_of(rows))[2]
    assert finding.numbers["repetitions"] == 2  # the pair of 1 and 2 again, and again
    assert finding.value == 1 / 2
    assert finding.verdict == OK


def test_columns_that_number_rows_do_not_describe_items() -> None:
    random = np.random.default_rng(0)
    rows = [(user, item, 0) for user in range(500) for item in random.choice(40, 4, replace=False).tolist()]
    number, price = np.arange(2_000.0), random.random(40)[[item for _, item, _ in rows]]
    features = {"row_number": Values(number), "price": Values(price)}
    finding = ties.check_tie_order(events_of(rows, features=features))[1]
    assert finding.numbers["column"] == "price"
    assert finding.verdict == OK


def test_repeated_items_are_matched_in_order() -> None:
    stable = events_of([(0, 4, 1), (0, 4, 2), (0, 5, 2), (1, 4, 1)])
    published = sequence_order.Sequences(np.array([0, 0, 0, 1, 1]), np.array([4, 5, 4, 4, 7]))
    findings = sequence_order.check_sequences(stable, published)
    assert [one.name for one in findings] == [
        "published events not in the log", "events that step back in time", "ties not in the order of the file",
        "last events moved by the sort",
    ]  # fmt: skip
    assert findings[0].value == pytest.approx(1 / 5)
    assert findings[1].value == 0
    assert findings[2].value == 1  # one tie, whose order is the reverse
    assert findings[3].value == 1 / 2


def test_repeated_rows_and_targets() -> None:
    events = events_of([(0, 1, 1), (0, 1, 1), (0, 2, 2), (0, 1, 3), (1, 1, 1), (1, 3, 2)])
    rows = repeats.check_repeated_rows(events)[0]
    assert (rows.numbers["rows"], rows.numbers["equal"], rows.value) == (1, 1, 1 / 6)
    assert rows.verdict == ALARM  # none of the neighbors at different times repeats its item
    assert repeats.check_targets(events, events.last)[0].value == 1 / 2
    other = events_of([(0, 1, 1), (0, 1, 1)], features={"page": Values(np.array([0.0, 1.0]))})
    assert repeats.check_repeated_rows(other)[0].numbers["equal"] == 0


def test_cold_targets_and_users() -> None:
    split = np.array([0, 2, 0, 2, 2], np.int8)
    events = events_of([(0, 1, 1), (0, 2, 2), (1, 2, 1), (1, 3, 2), (2, 1, 3)], split=split)
    items, users = repeats.check_targets(events, np.flatnonzero(split == 2))[1:]
    assert items.value == pytest.approx(1 / 3)
    assert users.value == pytest.approx(1 / 3)


def test_training_rows_after_test_rows() -> None:
    split = np.array([0, 0, 2, 0, 2, 0], np.int8)
    events = events_of([(0, 1, 1), (0, 2, 9), (0, 3, 5), (1, 1, 1), (1, 2, 7), (2, 1, 6)], split=split)
    own, first, median = timeline.check_timeline(events)
    assert own.value == 1 / 2  # the test row of user 0
    assert first.value == 2 / 4
    assert median.value == 1 / 4  # the median test time is 6
    assert not first.numbers["split_by_time"]


def test_histories_against_the_log() -> None:
    """Row 3 holds its own event; row 4 an event of later; row 2 an item that the user has had before."""
    rows = [(0, 1, 1), (0, 2, 2), (0, 1, 3), (0, 5, 4), (0, 6, 5), (0, 7, 6)]
    lists = [[], [1], [1, 2], [1, 2, 1, 5], [1, 2, 7], [1, 2, 1, 5, 6]]
    values = np.array([one for own in lists for one in own], np.int64)
    offsets = np.append(0, np.cumsum([len(own) for own in lists])).astype(np.int64)
    itself, later = histories.check_histories(events_of(rows, lists={"seen": Lists(values, offsets)}))
    assert itself.numbers["rows"] == 1
    assert itself.numbers["holds_item"] == 2 / 5
    assert itself.numbers["natural"] == 0  # no newest event repeats another one
    assert itself.numbers["ends_with_item"] == 1 / 5
    assert later.numbers["rows"] == 1
    times = Lists(np.array([1, 2, 3, 9], np.int64), np.array([0, 1, 1, 3, 3, 4, 4]))
    timed = histories.check_histories(events_of(rows, lists={"seen": Lists(values, offsets)}, list_times={"t": times}))[
        2
    ]
    assert timed.value == pytest.approx(1 / 3)


def test_histories_that_the_log_does_not_have() -> None:
    """Without the events of the histories, too many targets inside are an alarm, and natural repetition is none."""
    random = np.random.default_rng(0)
    items, offsets = random.integers(0, 1_000, (500, 6)), np.arange(0, 3_001, 6)
    rows = [(user, int(item), 1) for user, item in enumerate(random.integers(0, 1_000, 500))]
    clean = histories.check_histories(events_of(rows, lists={"h": Lists(items.reshape(-1), offsets)}))[0]
    assert clean.verdict == OK
    items[:250, 5] = [item for _, item, _ in rows[:250]]
    wrong = histories.check_histories(events_of(rows, lists={"h": Lists(items.reshape(-1), offsets)}))[0]
    assert wrong.verdict == ALARM
    assert wrong.numbers["ends_with_item"] == pytest.approx(0.5, abs=0.01)


def test_the_auc_of_a_feature_is_that_of_its_rates_in_training() -> None:
    random = np.random.default_rng(0)
    value, split = random.integers(0, 9, 3_000), np.repeat([0, 2], 1_500).astype(np.int8)
    label = (random.random(3_000) < 0.2 + 0.06 * value).astype(float)
    rows = [(0, 0, 0)] * 3_000
    events = events_of(rows, label=label, split=split, features={"v": Values(value.astype(float))})
    finding = label_features.check_features(events)[0]
    train = split == 0
    prior = label[train].mean()
    rate = [(label[train & (value == v)].sum() + 2 * prior) / ((train & (value == v)).sum() + 2) for v in range(9)]
    assert finding.value == pytest.approx(roc_auc_score(label[~train], np.array(rate)[value[~train]]))
    assert finding.verdict == OK


def rank_by_loops(
    train: list[list[int]], queries: list[list[int]], seen: list[list[int]], targets: list[int], items: int
) -> list[float]:
    """Ranks of the counting rule by its definition."""
    counts, popularity = np.zeros((items, items)), np.zeros(items)
    for row in train:
        for s, a in enumerate(row):
            popularity[a] += 1
            for t in range(s + 1, min(s + 11, len(row))):
                counts[a, row[t]] += 1 / (t - s)
    ranks = []
    for query, own, target in zip(queries, seen, targets):
        score = np.zeros(items)
        for k, item in enumerate(reversed(query[-50:])):
            score += 0.6**k * (counts[item] + 0.5 * counts[:, item])
        score = score / np.maximum(popularity, 1) ** 0.3
        score[[item for item in own if item != target]] = -1
        ranks.append((score > score[target] + 1e-6).sum() + ((abs(score - score[target]) <= 1e-6).sum() - 1) / 2)
    return ranks


def measure(ranks: list[float]) -> tuple[float, float]:
    gains = [1 / math.log2(rank + 2) if rank < 10 else 0.0 for rank in ranks]
    return sum(rank < 10 for rank in ranks) / len(ranks), sum(gains) / len(ranks)


def test_the_floor_is_the_definition_under_every_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "_LEAST", 5)
    random = np.random.default_rng(3)
    rows = [
        (user, int(item), int(time))
        for user in range(60)
        for item, time in zip(random.integers(0, 40, 9), np.sort(random.integers(0, 6, 9)))
    ][:-7]  # the last user has two events, too few for a target
    events = events_of(rows)
    named = {one.name.split()[4]: one for one in floor.check_floor(events) if one.verdict != SKIPPED}
    own = [[(item, time) for user, item, time in rows if user == one] for one in range(60)]
    enough = own[:-1]
    train = [[item for item, _ in one[:-2]] for one in enough] + [[item for item, _ in own[-1]]]
    before, targets = [[item for item, _ in one[:-1]] for one in enough], [one[-1][0] for one in enough]
    strict = [[item for item, time in one[:-1] if time < one[-1][1]] for one in enough]
    expected = {
        "N1": measure(rank_by_loops(train, before, before, targets, 40)),
        "N2": measure(rank_by_loops(train, strict, before, targets, 40)),
    }
    cut = sorted(time for _, _, time in rows)[round(0.9 * len(rows))]
    early = [[item for item, time in one if time < cut] for one in own]
    later = [[item for item, time in one if time >= cut] for one in own]
    some = [n for n in range(60) if early[n] and later[n]]
    queries = [early[n] for n in some]
    ranks = rank_by_loops(early, queries, queries, [later[n][0] for n in some], 40)
    expected["N4"] = measure(ranks)
    for name, numbers in expected.items():
        actual = named[name].numbers
        assert (actual["hr@10"], actual["ndcg@10"]) == pytest.approx(numbers, abs=1e-6), name
    assert 0 < named["N3"].numbers["hr@10"] < 1


def test_targets_are_sampled_by_the_size_of_the_catalog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "_LEAST", 5)
    monkeypatch.setattr(floor, "_FEWEST", 20)
    random = np.random.default_rng(0)
    rows = [(user, int(item), 0) for user in range(60) for item in random.integers(0, 40, 5)]
    events, targets = events_of(rows, time=None), {}
    for cells in (10, 1_200, 10_000):
        monkeypatch.setattr(floor, "_CELLS", cells)
        targets[cells] = floor.check_floor(events)[0].numbers["targets"]
    assert targets == {10: 20, 1_200: 30, 10_000: 60}


def test_splits_of_a_log_without_one() -> None:
    rows = [(0, n, n) for n in range(10)]
    _, text = assign_split(events_of(rows), None, "log")
    assert text == "split leave one out (chosen): 8 train, 1 valid, 1 test"
    labeled, text = assign_split(events_of(rows, label=np.ones(10)), None, "log")
    assert text == "split by time (chosen): 8 train, 1 valid, 1 test"
    assert labeled.split.tolist() == [0] * 8 + [1, 2]
    timeless = events_of(rows, time=None)
    with pytest.raises(DataError, match="without times"):
        assign_split(timeless, Split(by="time"), "log")
    with pytest.raises(DataError, match="no rows"):
        run_checks(events_of(rows).select(np.zeros(10, bool)), "log")


def test_keys_are_numbered_in_their_order() -> None:
    codes, keys = encode_keys(pa.array(["b", None, "a", "b"]))
    assert codes.tolist() == [1, -1, 0, 1]
    assert keys.tolist() == ["a", "b"]
    codes, keys = encode_keys(pa.array([30, None, 4]))
    assert (codes.tolist(), keys.tolist()) == ([1, -1, 0], [4, 30])
    assert rank_otherwise(keys).tolist() == [1, 0]  # "30" is before "4"
    assert rank_otherwise(np.array(["10", "9"])).tolist() == [1, 0]
    assert rank_otherwise(np.array(["a", "b"])) is None
    assert find_keys(pa.array([4, 5, 30]), keys).tolist() == [0, -1, 1]
    assert find_keys(pa.array(["4", "30", "x"]), keys).tolist() == [0, 1, -1]
