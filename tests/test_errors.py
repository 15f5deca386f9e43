"""Messages of errors: where, found, expected, what to do."""

from __future__ import annotations

import pytest

from longrec import errors
from longrec.errors import (
    BundleError,
    ConfigError,
    DataError,
    LongRecError,
    RequestError,
    RunError,
    StoreError,
    UnknownName,
    nearest,
)


@pytest.mark.parametrize("kind", [DataError, StoreError, RunError, BundleError, RequestError])
def test_a_message_has_four_fields(kind: type[LongRecError]) -> None:
    error = kind("events.parquet: column 'user_id'", "3 null values", "a user in every row", "drop these rows")
    assert str(error) == (
        "events.parquet: column 'user_id': 3 null values; expected a user in every row\n  Drop these rows"
    )
    assert (error.where, error.found) == ("events.parquet: column 'user_id'", "3 null values")
    assert (error.expected, error.do) == ("a user in every row", "drop these rows")


def test_empty_fields_leave_no_trace() -> None:
    assert str(LongRecError("", "nothing to read")) == "nothing to read"
    assert str(LongRecError("a.csv", "no rows")) == "a.csv: no rows"
    assert str(LongRecError("a.csv", "no rows", do="write some")) == "a.csv: no rows\n  Write some"


def test_a_request_error_carries_its_status() -> None:
    assert RequestError("candidates", "an empty list").status == 400
    assert RequestError("user", "unknown", status=404).status == 404


def test_a_config_error_lists_all_its_faults() -> None:
    one, two = ConfigError("a.yaml", ["seed: is required"]), ConfigError("a.yaml", ["a: is required", "b: is none"])
    assert str(one) == "a.yaml: 1 fault\n  seed: is required"
    assert str(two) == "a.yaml: 2 faults\n  a: is required\n  b: is none"
    assert two.faults == ["a: is required", "b: is none"]


def test_an_unknown_name_names_its_nearest_or_all() -> None:
    assert UnknownName("model", "dinn", ["din", "deepfm"]).faults == ["no model named 'dinn'; did you mean 'din'?"]
    assert UnknownName("model", "x", ["din", "deepfm"]).faults == ["no model named 'x'; known: deepfm, din"]


def test_an_unknown_name_takes_an_iterator() -> None:
    assert UnknownName("model", "x", iter(["din", "deepfm"])).faults == ["no model named 'x'; known: deepfm, din"]


def test_nearest() -> None:
    assert nearest("user_di", ["user_id", "item_id"]) == "user_id"
    assert nearest("zzz", ["user_id", "item_id"]) is None
    assert nearest("a", []) is None


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LongRecError)]
    assert len(kinds) == 10
    for kind in kinds:
        assert kind.__name__ in (errors.__doc__ or "")
