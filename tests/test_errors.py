"""Messages of errors: where, found, expected, what to do."""

from __future__ import annotations

from typing import Any

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
    describe_unknown_names,
    nearest,
    quote,
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


def test_a_value_is_repeated_in_few_characters() -> None:
    assert (quote("u'7"), quote(7), quote(None), quote([1, "a"])) == ('"u\'7"', "7", "None", "[1, 'a']")
    values = ("x" * 10**7, "\0" * 10**5, 10**5_000, -(10**400), [["x"] * 999] * 999, {"k" * 9_999: 1}, 1e308, "\ud800")
    for value in values:
        assert len(quote(value)) <= 250
        quote(value).encode()
    assert quote("x" * 10**7).endswith("... (10,000,000 characters)")
    nested: list[Any] = []
    for _ in range(5_000):
        nested = [nested]
    assert quote(nested) == "[[[[...]]]]"


def test_the_error_of_a_request_is_bounded() -> None:
    error = RequestError("w" * 10**6, "f" * 10**6, "e" * 10**6, "d" * 10**6)
    assert len(str(error)) < 2_000
    assert error.found.startswith("fff")
    assert error.found.endswith("... (1,000,000 characters)")
    assert len(error.where) + len(error.found) + len(error.expected) + len(error.do) <= 1_900


def test_a_long_name_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    monkeypatch.setattr(errors.difflib, "get_close_matches", lambda name, *_, **__: compared.append(name) or [])
    assert nearest("x" * 10**7, ["x" * 200]) is None
    assert nearest("x", ["x" * 10**7]) is None
    assert compared == []


def test_of_many_unknown_names_few_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    monkeypatch.setattr(errors.difflib, "get_close_matches", lambda name, *_, **__: compared.append(name) or [])
    faults = describe_unknown_names([f"k{number}" for number in range(1_000_000)], ["age"])
    assert faults == [*(f"the unknown key 'k{number}'" for number in range(5)), "and 999,995 more"]
    assert len(compared) == 5
    assert describe_unknown_names(["b", "a"], []) == ["the unknown key 'a'", "the unknown key 'b'"]


def test_a_config_error_lists_its_first_faults() -> None:
    error = ConfigError("a.yaml", [f"k{number}: is required" for number in range(1_000)])
    assert len(error.faults) == 1_000
    assert str(error).splitlines()[-2:] == ["  k199: is required", "  and 800 more"]
    assert len(str(UnknownName("model", "x" * 10**6, [f"name{number}" for number in range(10**5)]))) < 2_000


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LongRecError)]
    assert len(kinds) == 11
    for kind in kinds:
        assert kind.__name__ in (errors.__doc__ or "")
