"""Labels that train and validate: by hand, split by split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longrec.config import parse
from longrec.data.gather import gather
from longrec.data.label_checks import check_window, window_warnings
from longrec.data.log import Log
from longrec.data.prepare import prepare
from longrec.data.settings import DataConfig
from longrec.data.training_histories import iterate_training_histories
from longrec.errors import ConfigError, DataError
from longrec.features.schema import Schema
from longrec.serve.feedback import Feedback, encode_feature

Prepared = Callable[..., Log]
STEP: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": {"column": "t", "unit": "step"},
    "label": "click",
    "features": {"item": {"kind": "id"}},
}
FEEDBACK: dict[str, Any] = {"kind": "id", "column": "click", "feedback": True}


def rows_at(log: Log, split_name: str) -> list[tuple[int, int]]:
    """(user, time) of the samples of a part."""
    rows = log.rows_of(split_name)
    return list(zip((log.user(rows) - 1).tolist(), log.events.times.take(rows).tolist()))


def column_log(prepared: Prepared, rows: list[tuple[int, int, str]], **schema: Any) -> Log:
    """A log of (user, time, part), its labels 0 and 1 in turn."""
    user, t, split_name = zip(*rows)
    table = pa.table(
        {
            "user": user,
            "item": [0] * len(rows),
            "t": t,
            "part": split_name,
            "click": np.arange(len(rows)) % 2,
            "buy": np.arange(len(rows)) % 2,
        }
    )
    return prepared(table, {**STEP, **schema}, split={"by": "column", "column": "part"})


# ---- splits along time -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("delay", "train", "valid"),
    [("0s", range(6), range(6, 8)), (1, range(5), range(6, 7)), (2, range(4), range(0)), (5, range(1), range(0))],
)
def test_labels_are_available_strictly_before_the_line(
    prepared: Prepared, delay: Any, train: range, valid: range
) -> None:
    table = pa.table({"user": [0] * 10, "item": [0] * 10, "t": range(10), "click": [0, 1] * 5})
    schema = {**STEP, "label_delay": delay}
    log = prepared(table, schema, split={"valid_from": 6, "test_from": 8})
    assert [t for _, t in rows_at(log, "train")] == list(train)
    assert [t for _, t in rows_at(log, "valid")] == list(valid)
    assert len(log.rows_of("test")) == 2
    out = {"train": 6 - len(train), "valid": 2 - len(valid)}
    counts = {split_name: {"label_not_known": n, "not_before_measured": 0} for split_name, n in out.items() if n}
    assert log.excluded_counts == counts
    assert log.sample_count == {"train": len(train), "valid": len(valid), "test": 2}


@pytest.mark.parametrize(
    ("split", "last"),
    [
        ({"test_from": 8}, 6),  # without valid rows, the test line ends training
        ({"valid_from": 6, "test_from": 99}, 4),  # and validation ends at no line where nothing is tested
        ({"valid": 0, "test": 0}, 9),
    ],
)
def test_an_empty_split_ends_nothing(prepared: Prepared, split: dict[str, Any], last: int) -> None:
    table = pa.table({"user": [0] * 10, "item": [0] * 10, "t": range(10), "click": [0, 1] * 5})
    log = prepared(table, {**STEP, "label_delay": 1}, split=split)
    assert rows_at(log, "train")[-1] == (0, last)
    assert "valid" not in log.excluded_counts


def test_a_column_says_when_each_label_is_available(prepared: Prepared) -> None:
    """The label's own ``available_at``: null is never, before the event is at the event, and both are counted."""
    available_at = [0, 9, None, -5, 4, 5, 6, 7]
    table = pa.table(
        {
            "user": [0] * 8,
            "item": [0] * 8,
            "t": range(8),
            "click": [0, 1] * 4,
            "known": pa.array(available_at, pa.int64()),
        }
    )
    features = {
        "item": {"kind": "id"},
        "told": {"kind": "id", "column": "click", "feedback": True, "available_at": "known"},
    }
    log = prepared(table, {**STEP, "features": features}, split={"valid_from": 6, "test_from": 7})
    assert [t for _, t in rows_at(log, "train")] == [0, 3, 4, 5]
    assert log.label_time(np.array([3])).tolist() == [3]
    assert log.excluded_counts["train"] == {"label_not_known": 2, "not_before_measured": 0}
    (warning,) = (sentence for sentence in log.warnings if "available_at" in sentence)
    at = encode_feature(log.fitted, "told", Feedback({"click": 1}, at=5, now=2))
    assert at[1] == 5, "and a server does the same with what it is told before its event"
    assert warning.startswith(
        "features.told: 1 of 8 values of the column 'known' (available_at) are before their own event"
    )


def test_the_longest_delay_of_the_label_counts(prepared: Prepared) -> None:
    """A feature of the label's column that is known later says when the label is."""
    table = pa.table({"user": [0] * 10, "item": [0] * 10, "t": range(10), "click": [0, 1] * 5})
    features = {**STEP["features"], "told": {**FEEDBACK, "available_after": 3}}
    log = prepared(table, {**STEP, "features": features}, split={"valid_from": 6, "test_from": 8})
    assert rows_at(log, "train")[-1] == (0, 2)


def test_a_request_is_not_parted_by_a_line(prepared: Prepared) -> None:
    """Rows of a request share its first moment; what of it happens after the line trains nothing."""
    table = pa.table(
        {"user": [0] * 8, "item": range(8), "t": range(8), "ask": [0, 1, 2, 3, 4, 4, 4, 5], "click": [0, 1] * 4}
    )
    log = prepared(table, {**STEP, "request": "ask"}, split={"valid_from": 5, "test_from": 6})
    assert [t for _, t in rows_at(log, "train")] == [0, 1, 2, 3, 4, 5], "row 6 of the request is known at the line"
    assert log.rows_of("valid").tolist() == []
    assert [t for _, t in rows_at(log, "test")] == [7]
    log = prepared(table, {**STEP, "request": "ask"}, split={"valid_from": 5, "test_from": 7})
    assert [t for _, t in rows_at(log, "train")] == [0, 1, 2, 3, 4, 5, 6], "no row of valid, and all known before 7"


# ---- splits that do not run along time ---------------------------------------------------------------------------


def test_rows_of_a_user_train_before_its_own_measured_rows(prepared: Prepared) -> None:
    rows = [(0, 1, "train"), (0, 4, "train"), (0, 5, "test"), (0, 5, "train"), (0, 8, "train"), (0, 3, "valid")]
    rows += [(1, 9, "train"), (1, 20, "valid"), (1, 30, "test"), (1, 31, "valid"), (2, 40, "train")]
    log = column_log(prepared, rows)
    assert rows_at(log, "train") == [(0, 1), (1, 9), (2, 40)]
    assert rows_at(log, "valid") == [(0, 3), (1, 20)]
    assert rows_at(log, "test") == [(0, 5), (1, 30)]
    late = column_log(prepared, rows, label_delay=11)
    assert rows_at(late, "train") == [(2, 40)], "of user 1 the label of 9 is known at 20, which is the moment of valid"
    assert rows_at(late, "valid") == []
    assert late.excluded_counts["train"] == {"label_not_known": 2, "not_before_measured": 3}
    first = [sentence.partition(". ")[0] for sentence in log.warnings]
    assert first == [
        "split by column: 66.7% of the training rows are not earlier than the first test row (step 5)",
        "split by column: 50.0% of the validation rows are not earlier than the first test row (step 5)",
    ]
    assert [(one["part"], one["than"], round(one["share"], 3)) for one in log.manifest["later"]] == [
        ("train", "test", 0.667),
        ("valid", "test", 0.5),
    ]


def test_splits_that_follow_each_other_end_at_a_line(prepared: Prepared) -> None:
    """A column that runs along time is a split by time: labels of other users must be known too."""
    rows = [(0, 1, "train"), (1, 2, "train"), (0, 4, "train"), (2, 5, "valid"), (3, 6, "valid"), (4, 8, "test")]
    assert rows_at(column_log(prepared, rows, label_delay=2), "train") == [(0, 1), (1, 2)]
    log = column_log(prepared, rows, label_delay=2)
    assert rows_at(log, "valid") == [(2, 5)]
    assert log.warnings == []


def test_leave_one_out_learns_nothing_tied_with_what_it_measures(prepared: Prepared) -> None:
    table = pa.table(
        {
            "user": [0] * 5 + [1] * 4 + [2] * 2,
            "item": [0] * 11,
            "t": [1, 2, 3, 4, 5] + [1, 7, 7, 7] + [9, 9],
            "click": [0, 1] * 5 + [0],
        }
    )
    log = prepared(table, STEP, split={"by": "leave_one_out"})
    assert rows_at(log, "train") == [(0, 1), (0, 2), (0, 3), (1, 1), (2, 9), (2, 9)]
    assert rows_at(log, "valid") == [(0, 4)]
    assert rows_at(log, "test") == [(0, 5), (1, 7)]
    assert log.excluded_counts["train"] == {"label_not_known": 0, "not_before_measured": 1}
    assert (
        "split by leave_one_out: 33.3% of the training rows are not earlier than the first test row (step 5)"
        in " ".join(log.warnings)
    )


def test_a_request_is_not_parted_by_a_split_of_rows(prepared: Prepared) -> None:
    table = pa.table({"user": [0] * 6, "item": range(6), "t": range(6), "ask": [0, 0, 1, 1, 2, 2], "click": [0, 1] * 3})
    log = prepared(table, {**STEP, "request": "ask"}, split={"by": "leave_one_out"})
    assert rows_at(log, "test") == [(0, 5)]
    assert rows_at(log, "valid") == []
    assert rows_at(log, "train") == [(0, 0), (0, 1), (0, 2), (0, 3)]


def test_training_histories_end_with_the_window(prepared: Prepared) -> None:
    rows = [(0, 1, "train"), (0, 3, "test"), (0, 4, "train"), (1, 2, "train"), (1, 9, "train")]
    features = {
        "item": {"kind": "id"},
        "t": {"kind": "numeric"},
        "told": {"kind": "id", "column": "click", "feedback": True},
    }
    histories = {"h": {"features": ["item", "told"]}}
    log = column_log(prepared, rows, features=features, histories=histories, label_delay=2)
    (piece,) = iterate_training_histories(log)
    assert piece["h"].offsets.tolist() == [0, 0, 1, 3]
    unknown = log.fitted.get_not_yet_id("told")
    assert [value == unknown for value in piece["h"].columns["told"].tolist()] == [True, False, True]


def test_further_labels_end_with_the_window_of_their_user(prepared: Prepared) -> None:
    rows = [(0, 1, "train"), (0, 2, "train"), (0, 4, "test"), (1, 2, "train"), (1, 9, "train")]
    features = {"item": {"kind": "id"}, "buy": {"kind": "id", "feedback": True, "available_after": 2}}
    log = column_log(prepared, rows, features=features)
    assert rows_at(log, "train") == [(0, 1), (0, 2), (1, 2), (1, 9)]
    message = gather(log, log.rows_of("train"), ["buy"]).task_labels["buy"].numpy()
    np.testing.assert_array_equal(message, [0, np.nan, 1, 0])


# ---- too little left ---------------------------------------------------------------------------------------------


def test_nothing_left_names_the_delay_and_the_ties(prepared: Prepared) -> None:
    table = pa.table({"user": [0] * 10, "item": [0] * 10, "t": range(10), "click": [0, 1] * 5})
    log = prepared(table, {**STEP, "label_delay": 9}, split={"valid_from": 6, "test_from": 8})
    with pytest.raises(
        DataError, match=r"of 6 the label was not available before valid or test begins \(label_delay: 9\)"
    ):
        check_window(log)
    tied = pa.table({"user": [0] * 4 + [1] * 4, "item": [0] * 8, "t": [5] * 8, "click": [0, 1] * 4})
    with pytest.raises(
        DataError, match="4 rows are left out: 4 are not earlier than rows of the same user in valid or test"
    ):
        check_window(prepared(tied, STEP, split={"by": "leave_one_out"}))
    alone = pa.table({"user": range(10), "item": [0] * 10, "t": range(10), "click": [0, 0, 0, 0, 1, 1, 0, 1, 0, 1]})
    log = prepared(alone, {**STEP, "label_delay": 2}, split={"valid_from": 6, "test_from": 8})
    with pytest.raises(DataError, match="2 rows are left out.*; every other label is 0"):
        check_window(log)


# ---- files by part -----------------------------------------------------------------------------------------------


def by_files(folder: Path, times: dict[str, list[int]], timed: bool = True, **split: Any) -> Log:
    folder.mkdir()
    for split_name, own in times.items():
        table = pa.table(
            {
                "user": range(len(own)),
                "item": own,
                "t": own,
                "click": [0, 1] * (len(own) // 2),
                "past": [[1]] * len(own),
            }
        )
        pq.write_table(table, folder / f"{split_name}.parquet")
    files_by_split = {split_name: str(folder / f"{split_name}.parquet") for split_name in times}
    data = {
        "folder": str(folder / "prepared"),
        "threads": 1,
        "log": {"splits": files_by_split},
        "split": {"by": "files", **split},
    }
    joined = {"h": {"features": ["item"], "columns": {"item": "past"}}}
    schema = (
        {**STEP, "histories": joined}
        if timed
        else {**{k: v for k, v in STEP.items() if k != "time"}, "histories": joined}
    )
    return Log.open(prepare(parse(DataConfig, data, "job"), Schema.model_validate(schema)))


def test_files_that_overlap_are_refused_or_allowed_by_name(tmp_path: Path) -> None:
    apart = by_files(tmp_path / "apart", {"train": [1, 2], "valid": [3, 4], "test": [5, 6]})
    assert apart.warnings == []
    for name, times, says in (
        ("tied", {"train": [1, 5], "test": [5, 6]}, "the train files reach step 5, and the test files begin at step 5"),
        (
            "valid",
            {"train": [1, 3], "valid": [3, 4], "test": [5, 6]},
            "the train files reach step 3, and the valid files",
        ),
        (
            "late",
            {"train": [1, 2], "valid": [3, 7], "test": [5, 6]},
            "the valid files reach step 7, and the test files",
        ),
        ("back", {"train": [8, 9], "test": [5, 6]}, "the train files reach step 9"),
    ):
        with pytest.raises(DataError, match=says) as caught:
            by_files(tmp_path / name, times)
        assert "allow_overlap: true" in str(caught.value)
    allowed = by_files(tmp_path / "allowed", {"train": [1, 5], "test": [5, 6]}, allow_overlap=True)
    assert (
        "split by files: 50.0% of the training rows are not earlier than the first test row (step 5)"
        in allowed.warnings[0]
    )


def test_rows_without_a_time_cannot_be_checked_and_say_so(tmp_path: Path) -> None:
    log = by_files(tmp_path / "untimed", {"train": [1, 5], "test": [5, 6]}, timed=False)
    assert log.warnings[0].startswith("split by files: the schema has no time column, so it cannot be checked")
    assert log.sample_count == {"train": 2, "valid": 0, "test": 2}


def test_overlap_is_allowed_of_files_alone() -> None:
    with pytest.raises(ConfigError, match="a split by user takes no allow_overlap"):
        parse(DataConfig, {"log": "a", "split": {"by": "user", "allow_overlap": True}}, "job")


def test_a_validation_without_rows_is_reported(prepared: Prepared) -> None:
    table = pa.table({"user": [0] * 10, "item": [0] * 10, "t": range(10), "click": [0, 1] * 5})
    log = prepared(table, {**STEP, "label_delay": 3}, split={"valid_from": 6, "test_from": 8})
    (message,) = window_warnings(log)
    assert message.startswith(
        "validation: every row is left out, of 2 the label was not available before test begins (label"
    )
    assert window_warnings(prepared(table, STEP, split={"valid_from": 6, "test_from": 8})) == []


def test_labels_that_came_after_the_first_test_row_are_reported_where_no_line_leaves_them_out(
    prepared: Prepared,
) -> None:
    rows = [(0, 1, "train"), (1, 4, "train"), (2, 5, "test"), (3, 9, "train"), (3, 9, "train")]
    log = column_log(prepared, rows, label_delay=3)
    (message,) = window_warnings(log)
    assert message.startswith(
        "training: a further 25.00% of the training rows are before the first test row, with labels"
    )
