"""A store that leaks values before they were available is refused, or allowed explicitly with a warning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from longrec.config import parse
from longrec.data.log import Log
from longrec.errors import DataError
from longrec.features.column_delays import Delay, compute_column_delays, describe_early_columns
from longrec.features.schema import Schema
from longrec.store.disclosure import merge_column_delays
from longrec.store.knowledge_store import KnowledgeInfo, KnowledgeStore
from longrec.store.token_store import TokenInfo, TokenStore, Version

N = 40
TABLE = pa.table(
    {
        "user": np.arange(N) % 4,
        "item": np.arange(N) % 5,
        "t": 1_700_000_000_000 + 60_000 * np.arange(N),
        "seen_at": 1_700_000_000_000 + 60_000 * np.arange(N) + 90_000,
        "told_at": 1_700_000_000_000 + 60_000 * np.arange(N) + 90_000,
        "click": np.arange(N) % 2,
        "like": np.arange(N) % 3 % 2,
    }
)
SCHEMA: dict[str, Any] = {
    "user": "user",
    "item": "item",
    "time": {"column": "t", "unit": "ms"},
    "label": "click",
    "label_delay": "1m",
    "features": {"user": {"kind": "id"}, "item": {"kind": "id"}},
}
LIKE = {"kind": "id", "feedback": True}
AT_ONCE = {**LIKE, "available_after": 0}
PLAIN = {"like": {"kind": "id"}}


def schema(label_delay: str = "1m", features: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    own = {**SCHEMA["features"], **(features or {})}
    return {**SCHEMA, "label_delay": label_delay, "features": own, **changes}


def parsed(**changes: Any) -> Schema:
    return parse(Schema, schema(**changes), "schema")


def delays(**changes: Any) -> dict[str, Delay]:
    return compute_column_delays(parsed(**changes))


INFO = TokenInfo(2, sides={"label": 3}, versions=(Version(0),), column_delays=delays())


@pytest.fixture
def reading(prepared: Callable[..., Log], tmp_path: Path) -> Callable[..., Log]:
    """The log of a schema that reads a store of some information."""

    def read(info: TokenInfo, allow: bool | None = None, **changes: Any) -> Log:
        TokenStore.create(tmp_path / "tokens", info).close()
        tokens = {"from": str(tmp_path / "tokens"), "features": ["token", "label"], "max_length": 5}
        tokens |= {} if allow is None else {"allow_leak": allow}
        return prepared(TABLE, schema(**{**changes, "histories": {"tokens": tokens}}))

    return read


def test_a_store_of_the_same_delays_is_read_without_a_word(reading: Callable[..., Log]) -> None:
    assert reading(INFO).warnings == []


@pytest.mark.parametrize("allow", [None, False])
def test_a_store_that_leaks_is_refused(reading: Callable[..., Log], allow: bool | None) -> None:
    with pytest.raises(DataError) as raised:
        reading(replace(INFO, leak="it saw its labels"), allow)
    message = str(raised.value)
    assert (
        "tokens leaks values before they were available: it leaks (it saw its labels); expected a store without leaks"
        in message
    )
    assert "histories.tokens.allow_leak: true reads the store anyway and adds a warning to the results" in message


def test_allowed_by_name_it_is_read_and_reported(reading: Callable[..., Log]) -> None:
    (warning,) = reading(replace(INFO, leak="it saw its labels"), True).warnings
    assert "histories.tokens reads" in warning
    assert (
        "because allow_leak is set, although it leaks (it saw its labels): metrics measured with it are too" in warning
    )


EARLIER: list[tuple[dict[str, Any], int, dict[str, Any], str]] = [
    # written with, lag of the store, read with, what is said
    (
        {"label_delay": "59s"},
        0,
        {},
        "'click' as available 59s after the event, and here it is 1m after the event",
    ),
    ({}, 0, {"label_delay": "2h"}, "'click' as available 1m after the event, and here it is 2h after the event"),
    ({"label_delay": "0s"}, 90_000, {}, "'click' as available 0s after the event"),  # weights know no lag
    (
        {"features": PLAIN},
        0,
        {"features": {"like": LIKE}},
        "'like' as available with the event itself",
    ),
    ({"features": PLAIN}, 0, {"label": "like"}, "'like' as available with the event itself"),
    (
        {"features": {"both": {"kind": "cross", "features": ["like", "item"], "hash": 9}}},
        59_999,
        {"label": "like"},
        "'like' as available with the event itself, and here it is 1m after the event",
    ),
    (
        {"histories": {"h": {"features": ["item"], "where": {"like": 1}}}},
        0,
        {"features": {"like": LIKE}},
        "'like' as available with the event itself",
    ),
    (
        {"features": {"like": {**LIKE, "available_after": "1s"}}},
        0,
        {"features": {"like": {**LIKE, "available_at": "seen_at"}}},
        "'like' as available 1s after the event, and here it is from the timestamp in 'seen_at'",
    ),
    (
        {"features": {"like": {**LIKE, "available_at": "seen_at"}}},
        0,
        {"features": {"like": LIKE}},
        "'like' as available from the timestamp in 'seen_at', and here it is 1m after the event",
    ),
    (
        {},
        0,
        {"time": {"column": "t", "unit": "ms", "available_at": "told_at"}},
        "'t' as available with the event itself, and here it is from the timestamp in 'told_at'",
    ),
]


@pytest.mark.parametrize(("written", "visibility_delay", "read", "phrase"), EARLIER)
def test_a_store_written_with_shorter_delays(
    reading: Callable[..., Log], written: dict[str, Any], visibility_delay: int, read: dict[str, Any], phrase: str
) -> None:
    info = replace(INFO, visibility_delay=visibility_delay, column_delays=delays(**written))
    with pytest.raises(DataError) as raised:
        reading(info, **read)
    assert f"its source took {phrase}" in str(raised.value)
    assert "compress again with the delays of this schema" in str(raised.value).lower()


@pytest.mark.parametrize("case", [*EARLIER[:1], *EARLIER[3:4]])
def test_shorter_delays_allowed_by_name(
    reading: Callable[..., Log], case: tuple[dict[str, Any], int, dict[str, Any], str]
) -> None:
    written, visibility_delay, read, phrase = case
    (warning,) = reading(
        replace(INFO, visibility_delay=visibility_delay, column_delays=delays(**written)), True, **read
    ).warnings
    assert phrase in warning


@pytest.mark.parametrize(
    ("written", "visibility_delay", "read"),
    [
        ({"label_delay": "1h"}, 0, {}),
        ({"features": PLAIN}, 0, {"features": {"like": AT_ONCE}}),
        ({"features": PLAIN}, 60_000, {"features": {"like": LIKE}}),
        ({"features": {"like": LIKE}}, 0, {"features": PLAIN}),
        (
            {"features": {"like": {**LIKE, "available_at": "seen_at"}}},
            0,
            {"features": {"like": AT_ONCE}},
        ),
        ({"label": "like"}, 0, {}),
        ({"time": {"column": "t", "unit": "ms", "available_at": "told_at"}}, 0, {}),
    ],
)
def test_longer_delays_and_other_columns_are_fine(
    written: dict[str, Any], visibility_delay: int, read: dict[str, Any]
) -> None:
    assert describe_early_columns(delays(**written), visibility_delay, parsed(**read)) == []


def test_delays_in_steps(reading: Callable[..., Log]) -> None:
    steps = {"time": {"column": "t", "unit": "step"}}
    info = replace(INFO, unit="step", column_delays=delays(label_delay="2", **steps))
    with pytest.raises(DataError, match="'click' as available 2 steps after the event, and here it is 3 steps after"):
        reading(info, label_delay="3", **steps)


def test_a_store_that_does_not_say_is_reported(reading: Callable[..., Log]) -> None:
    (warning,) = reading(replace(INFO, column_delays=None)).warnings
    assert "tokens does not record the delays of labels and feedback with which it was written" in warning


def test_a_store_that_does_not_say_where_nothing_waits(reading: Callable[..., Log]) -> None:
    assert reading(replace(INFO, column_delays=None), label_delay="0s").warnings == []


def test_allow_leak_belongs_to_tokens_and_vectors() -> None:
    with pytest.raises(Exception, match="allow_leak belongs to a history of tokens"):
        parsed(histories={"h": {"features": ["item"], "allow_leak": True}})
    with pytest.raises(Exception, match="a feature of kind 'id' takes no allow_leak"):
        parsed(features={"like": {"kind": "id", "allow_leak": True}})


@pytest.mark.parametrize("allow", [False, True])
@pytest.mark.parametrize(
    "settings_of_store", [{"leak": "it saw its labels"}, {"column_delays": delays(label_delay="0s")}]
)
def test_knowledge_is_held_to_the_same(
    prepared: Callable[..., Log], tmp_path: Path, settings_of_store: dict[str, Any], allow: bool
) -> None:
    keys = {"user": "int64", "item": "int64"}
    KnowledgeStore.create(
        tmp_path / "k", KnowledgeInfo({"user": 2, "item": 3}, "ms", keys, **settings_of_store)
    ).close()
    with KnowledgeStore.open(tmp_path / "k") as store:
        assert (store.info.leak, store.info.column_delays) == (
            settings_of_store.get("leak", ""),
            settings_of_store.get("column_delays"),
        )
    who = {"kind": "embedding", "from": str(tmp_path / "k"), "side": "user", "allow_leak": allow}
    if allow:
        (warning,) = prepared(TABLE, schema(features={"who": who})).warnings
        assert "features.who reads" in warning
        return
    with pytest.raises(
        DataError, match=r"features.who: .*leaks values before they were available.*\n.*who.allow_leak: true"
    ):
        prepared(TABLE, schema(features={"who": who}))


def test_what_a_source_read_is_passed_on() -> None:
    """A source that reads tokens tells their columns too, none of them later than those tokens did."""
    plain = replace(INFO, column_delays={"like": None, "click": 0}, visibility_delay=5)
    late = replace(INFO, column_delays={"like": 30, "fix": "fixed_at"})
    assert merge_column_delays({"click": 60_000}, []) == {"click": 60_000}
    assert merge_column_delays({"click": 60_000}, [plain]) == {"like": 5, "click": 60_000}
    assert merge_column_delays({}, [late, plain]) == {"like": 5, "fix": "fixed_at", "click": 0}
    assert merge_column_delays({}, [late, replace(late, column_delays={"fix": 3})]) == {"like": 30, "fix": 0}
    assert merge_column_delays({}, [late, replace(INFO, column_delays=None)]) is None


def test_a_log_reports_what_its_stores_leak(reading: Callable[..., Log]) -> None:
    log = reading(replace(INFO, leak="it saw its labels", column_delays={"like": None}), True)
    assert log.leak == "written by a source model that reads a leaking store (tokens)"
    assert log.column_delays == {"t": None, "click": 60_000, "like": 0}
