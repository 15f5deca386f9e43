"""Train, valid and test rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.data import splits as splits
from longrec.data.log import Log
from longrec.data.settings import Split
from longrec.errors import DataError, UnknownName

quick = settings(deadline=None, max_examples=50)
DAY = 86_400_000


def codes(times: list[int], step: bool = True, **split: Any) -> list[int]:
    array = np.array(times, np.int64)
    return splits.split_by_time(array, splits.compute_time_cutoffs(Split(**split), array, step, "log")).tolist()


@pytest.mark.parametrize("kind", ["random", "ties", "rising", "one value", "sample that misleads"])
def test_a_rank_of_a_long_column_is_that_of_its_order(kind: str) -> None:
    random, n = np.random.default_rng(1), 450_000
    values = {
        "random": random.integers(0, 10**12, n),
        "ties": random.integers(0, 5, n),
        "rising": np.arange(n),
        "one value": np.zeros(n, np.int64),
        "sample that misleads": np.where(np.arange(n) % 4 == 0, 0, random.integers(0, 10**6, n)),
    }[kind]
    ordered = np.sort(values)
    for rank in (0, 1, n // 3, n // 2, round(0.9 * n), n - 1):
        assert splits.select_rank(values, rank) == ordered[rank]


# ---- by time -----------------------------------------------------------------------------------------------------


def test_shares_of_the_rows_along_the_time_line() -> None:
    assert codes([5, 1, 9, 3, 7, 0, 2, 4, 6, 8], valid=0.2, test=0.3) == [1, 0, 2, 0, 2, 0, 0, 0, 1, 2]
    assert codes(list(range(10)), valid=0.0, test=0.2) == [0] * 8 + [2] * 2
    assert codes(list(range(10)), valid=0.2, test=0.0) == [0] * 8 + [1] * 2


def test_rows_of_one_timestamp_stay_together_on_the_later_side() -> None:
    assert codes([0, 1, 2, 3, 4, 5, 6, 7, 7, 7], valid=0.1, test=0.1) == [0] * 7 + [2] * 3
    assert codes([0, 1, 2, 3, 5, 5, 5, 8, 9, 9], valid=0.4, test=0.2) == [0] * 4 + [1] * 4 + [2] * 2
    assert codes([4, 4, 4, 4], valid=0.25, test=0.25) == [2] * 4


@quick
@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(0, 4), st.integers(0, 4))
def test_shares_are_the_largest_that_keep_timestamps_whole(times: list[int], valid: int, test: int) -> None:
    split_codes = np.array(codes(times, valid=valid / 10, test=test / 10))
    n, array = len(times), np.array(times)
    for timestamp in set(times):
        assert len(set(split_codes[array == timestamp])) == 1
    by_timestamp = [split_codes[array == timestamp][0] for timestamp in sorted(set(times))]
    assert by_timestamp == sorted(by_timestamp)
    # at least the share (rounded), and no more moments than that takes
    for code, wanted in ((1, n - round(n * (1 - test / 10 - valid / 10))), (2, n - round(n * (1 - test / 10)))):
        later = split_codes >= code
        assert later.sum() >= wanted
        if later.any():
            first = array[later].min()
            assert (later & (array != first)).sum() < wanted


def test_days_count_back_from_the_end_of_the_last_day() -> None:
    times = [0, DAY - 1, DAY, 2 * DAY, 3 * DAY - 1, 3 * DAY + 5]
    assert codes(times, step=False, valid_days=1, test_days=1) == [0, 0, 0, 1, 1, 2]
    assert codes(times, step=False, test_days=2) == [0, 0, 0, 2, 2, 2]
    assert codes(times, step=False, valid_days=0.5, test_days=1.5) == [0, 0, 0, 1, 2, 2]
    with pytest.raises(
        DataError, match=r"^log: a split by days; expected shares or timestamps: this log counts in steps"
    ):
        codes(times, test_days=1)


def test_timestamps() -> None:
    times = [round(np.datetime64(text, "ms").astype(int)) for text in ("2026-01-01", "2026-01-02", "2026-01-03")]
    assert codes(times, step=False, valid_from="2026-01-02", test_from="2026-01-02T00:00:01") == [0, 1, 2]
    assert codes(times, step=False, test_from="2026-01-02") == [0, 2, 2]
    assert codes(times, step=False, test_from="2026-01-02T02:00:00+02:00") == [0, 2, 2]
    assert codes(times, step=False, test_from="2026-01-02T00:00:00.001Z") == [0, 0, 2]
    assert codes([-DAY, 0], step=False, test_from="1969-12-31") == [2, 2]
    assert codes([1, 2, 3, 4], valid_from="2", test_from="4") == [0, 1, 1, 2]


@pytest.mark.parametrize("text", ["soon", "", "NaT", "now", "today", "2026-13-01", "12"])
def test_what_is_no_timestamp(text: str) -> None:
    with pytest.raises(DataError, match=rf"^log: the timestamp '{text}'; expected an ISO date or time, in UTC"):
        codes([0, 1], step=False, test_from=text)


def test_a_step_is_a_whole_number() -> None:
    with pytest.raises(DataError, match=r"^log: the timestamp '2026-01-02'; expected a whole number"):
        codes([0, 1], test_from="2026-01-02")


def test_valid_must_come_before_test() -> None:
    with pytest.raises(DataError, match=r"^log: valid from '5', after test from '3'; expected valid before test"):
        codes([0, 9], valid_from="5", test_from="3")


# ---- by user -----------------------------------------------------------------------------------------------------


def test_whole_users_in_shares_that_another_seed_draws_anew() -> None:
    users = pa.array(np.arange(5_000))
    one = splits.split_by_user(Split(by="user", valid=0.1, test=0.2), users)
    assert np.bincount(one) / 5_000 == pytest.approx([0.7, 0.1, 0.2], abs=0.02)
    assert (one == splits.split_by_user(Split(by="user", valid=0.1, test=0.2), users)).all()
    other = splits.split_by_user(Split(by="user", valid=0.1, test=0.2, seed=1), users)
    assert np.mean(one == other) == pytest.approx(0.7**2 + 0.1**2 + 0.2**2, abs=0.03)


def test_a_user_keeps_its_split_whoever_else_is_there() -> None:
    rule = Split(by="user", valid=0.3, test=0.3)
    users = [f"u{n}" for n in range(200)]
    whole = splits.split_by_user(rule, pa.array(users))
    assert [int(splits.split_by_user(rule, pa.array([user]))[0]) for user in users] == whole.tolist()
    assert whole[:9].tolist() == [2, 0, 1, 1, 1, 0, 0, 2, 0]  # never changes: runs must stay comparable


# ---- leave one out -----------------------------------------------------------------------------------------------


def test_leave_one_out() -> None:
    #           user 1: 3 samples     user 2: 2    user 3: 4 of 6            user 4: none
    sample = np.array([1, 1, 1] + [1, 1] + [1, 0, 1, 1, 1, 0] + [0], bool)
    split_codes = splits.split_leave_one_out(np.array([0, 0, 3, 5, 11, 12]), sample)
    assert split_codes.tolist() == [0, 1, 2] + [0, 0] + [0, 0, 0, 1, 2, 0] + [0]


# ---- column ------------------------------------------------------------------------------------------------------


def test_a_column() -> None:
    split_codes = splits.split_by_column(pa.array(["test", "train", "valid"]).dictionary_encode(), "log: column 's'")
    assert split_codes.tolist() == [2, 0, 1]
    for array, odd in (
        (pa.array(["train", "tset"]), r"'tset' .did you mean 'test'\?."),
        (pa.array(["train", None]), "None"),
        (pa.array([1]), "1"),
    ):
        with pytest.raises(DataError, match=rf"^log: column 's': the split {odd}; expected train, valid or test"):
            splits.split_by_column(array, "log: column 's'")


# ---- through the log ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table() -> pa.Table:
    random = np.random.default_rng(3)
    user, t = random.integers(0, 25, 120), random.integers(0, 40, 120)
    split_column = np.where(t < 20, "train", np.where(t < 30, "valid", "test"))
    click = [None if n % 11 == 0 else int(n % 3 == 0) for n in range(120)]
    return pa.table({"user": user, "item": random.integers(0, 5, 120), "t": t, "click": click, "part": split_column})


SCHEMA: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": {"column": "t", "unit": "step"},
    "label": "click",
    "features": {"item": {"kind": "id"}, "t": {"kind": "numeric"}, "user": {"kind": "id"}},
}


@pytest.mark.parametrize(
    "split",
    [
        {"valid": 0.2, "test": 0.2},
        {"valid_from": 20, "test_from": 30},
        {"by": "column", "column": "part"},
        {"by": "user", "valid": 0.2, "test": 0.2},
        {"by": "leave_one_out"},
    ],
    ids=lambda split: split.get("by", "time") + str(len(split)),
)
def test_every_labeled_row_is_in_one_split_or_left_out(
    split: Any, table: pa.Table, prepared: Callable[..., Log]
) -> None:
    log = prepared(table, SCHEMA, split=split)
    rows = {split_name: log.rows_of(split_name) for split_name in ("train", "valid", "test")}
    together = np.sort(np.concatenate(list(rows.values())))
    out = np.concatenate([log.excluded_rows(split_name).rows for split_name in rows])
    assert len(out) == (3 if split.get("by") == "leave_one_out" else 0)  # at the moment of the user's next one
    assert np.sort(np.concatenate([together, out])).tolist() == np.flatnonzero(~np.isnan(log.labels)).tolist()
    assert all(len(own) for own in rows.values())
    assert {split_name: len(own) for split_name, own in rows.items()} == log.sample_count
    times = log.events.times
    if split.get("by", "time") in ("time", "column"):
        assert times[rows["train"]].max() < times[rows["valid"]].min() <= times[rows["valid"]].max()
        assert times[rows["valid"]].max() < times[rows["test"]].min()
    if split.get("by") == "user":
        owners = [set(log.user(own).tolist()) for own in rows.values()]
        assert sum(map(len, owners)) == len(set.union(*owners))


def test_an_unknown_split(table: pa.Table, prepared: Callable[..., Log]) -> None:
    with pytest.raises(UnknownName, match=r"no split named 'vaild'; did you mean 'valid'\?"):
        prepared(table, SCHEMA).rows_of("vaild")


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({"test_days": 1}, "set data.split.valid_days, for example to 1"),
        ({"test_from": "2020-09-14"}, "set data.split.valid_from"),
        ({"valid": 0.0, "test": 0.2}, "set data.split.valid"),
        ({"by": "user", "valid": 0.0, "test": 0.5}, "set data.split.valid"),
        ({"by": "column", "column": "s"}, "write 'valid' into column 's'"),
        ({"by": "files"}, "name files in log.splits.valid"),
        ({"by": "leave_one_out"}, "three labeled rows"),
    ],
)
def test_a_split_without_validation_is_reported_with_the_way_out(rule: dict[str, Any], says: str) -> None:
    (warning,) = splits.warn_of_missing_splits(Split.model_validate(rule), {"train": 9, "valid": 0, "test": 3})
    assert warning.startswith("the split has no validation rows, so training cannot stop early")
    assert warning.endswith(says) or says in warning


def test_a_split_without_test_is_reported_and_a_complete_one_is_not() -> None:
    (warning,) = splits.warn_of_missing_splits(Split(), {"train": 9, "valid": 1, "test": 0})
    assert warning.startswith("the split has no test rows, so metrics are those of the validation rows")
    assert splits.warn_of_missing_splits(Split(), {"train": 9, "valid": 1, "test": 1}) == []


def test_preparing_without_validation_rows_warns(prepared: Any) -> None:
    log = pa.table({"user": [1, 2] * 20, "item": [1, 2, 3, 4] * 10, "t": np.arange(40) * 40_000, "click": [0, 1] * 20})
    schema = {"user": "user", "item": "item", "time": "t", "label": "click", "features": {"item": {"kind": "id"}}}
    assert "no validation rows" in prepared(log, schema, split={"test_days": 2}).warnings[0]
    assert prepared(log, schema, split={"test_days": 2, "valid_days": 2}).warnings == []
