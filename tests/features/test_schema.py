"""Schemas: valid settings, and the faults of invalid ones."""

from __future__ import annotations

from typing import Any

import pytest

from longrec.config import parse
from longrec.errors import ConfigError
from longrec.features.fields import Field, Fields
from longrec.features.schema import Schema, parse_duration

BASE: dict[str, Any] = {
    "user": "user_id",
    "item": "movie",
    "time": {"column": "timestamp", "unit": "s"},
    "label": {"column": "rating", "at_least": 4},
    "features": {
        "user_id": {"kind": "id"},
        "age": {"kind": "bucketized", "side": "user", "edges": [18, 30]},
        "movie": {"kind": "id"},
        "genres": {"kind": "multi_id", "side": "item"},
        "hour": {"kind": "calendar"},
        "page": {"kind": "id"},
        "rating": {"kind": "id", "feedback": True},
    },
    "histories": {"rated": {"features": ["movie", "genres", "rating", "page", "time_gap"], "max_length": 20}},
}


def build_content(**changes: Any) -> dict[str, Any]:
    """The base schema with features and histories added and other keys replaced (None removes one)."""
    content = {**BASE, **{k: v for k, v in changes.items() if k not in ("features", "histories")}}
    for key in ("features", "histories"):
        content[key] = {**BASE[key], **changes.get(key, {})}
        content[key] = {name: value for name, value in content[key].items() if value is not None}
    return {key: value for key, value in content.items() if value is not None}


def parse_schema(**changes: Any) -> Schema:
    return parse(Schema, build_content(**changes), "shop.yaml")


def get_fault(**changes: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        parse_schema(**changes)
    return "\n".join(raised.value.faults)


def test_who_owns_a_feature() -> None:
    parsed = parse_schema(features={"film": {"kind": "id", "column": "movie"}})
    owners = {name: parsed.side(name) for name in parsed.features}
    assert owners == {
        "user_id": "user",
        "age": "user",
        "movie": "item",
        "film": "item",
        "genres": "item",
        "hour": "context",
        "page": "context",
        "rating": "context",
    }
    assert parsed.column("hour") == "timestamp"
    assert parsed.column("film") == "movie"
    assert parsed.column("age") == "age"


def test_short_forms() -> None:
    parsed = parse_schema(
        time="t",
        label="click",
        histories={
            "rated": {"features": ["movie"], "where": {"page": "home", "kind": [1, 2], "price": {"at_least": 2.5}}}
        },
    )
    assert parsed.time is not None
    assert (parsed.time.column, parsed.time.unit, parsed.label.column) == ("t", "auto", "click")
    where = parsed.histories["rated"].where
    assert where["page"].equals == "home"
    assert where["kind"].among == (1, 2)
    assert where["price"].at_least == 2.5
    assert parsed.histories["rated"].max_length == 50
    assert parsed.prejoined is False


@pytest.mark.parametrize(
    ("text", "ms"),
    [("90s", 90_000), ("1h", 3_600_000), ("7d", 604_800_000), ("250ms", 250), ("1.5m", 90_000), (2, 2_000), ("0", 0)],
)
def test_durations(text: Any, ms: int) -> None:
    assert parse_duration(text) == ms


@pytest.mark.parametrize("text", ["-1s", "1 week", "", "s", True, None, "1e3s", [1], "1h 30m"])
def test_what_is_no_duration(text: Any) -> None:
    with pytest.raises(ValueError, match=r"must be a duration such as '90s', '1h' or '7d'"):
        parse_duration(text)
    if text is not None:
        assert "label_delay: must be a duration" in get_fault(label_delay=text)


def test_when_feedback_becomes_available() -> None:
    parsed = parse_schema(
        label_delay="1h",
        features={
            "dwell": {"kind": "bucketized", "edges": [1], "feedback": True, "available_after": "2s"},
            "stars": {"kind": "id", "column": "rating", "feedback": True, "available_after": "2h"},
        },
    )
    assert parsed.available_after("rating") == 3_600_000
    assert parsed.available_after("dwell") == 2_000
    assert parsed.available_after("stars") == 7_200_000
    assert parsed.is_feedback_column("rating")
    assert parsed.is_feedback_column("dwell")
    assert not parsed.is_feedback_column("page")
    steps = parse_schema(time={"column": "t", "unit": "step"}, label_delay="3", features={"hour": None})
    assert steps.available_after("rating") == 3


def test_delays_of_one_column_that_agree() -> None:
    again = {"kind": "bucketized", "column": "dwell", "edges": [1], "feedback": True}
    parse_schema(
        label_delay="1h",
        features={
            "rating": {"kind": "id", "feedback": True, "available_after": "60m"},
            "stars": {"kind": "id", "column": "rating", "feedback": True, "available_after": "2h"},
            "dwell": {**again, "available_after": "3600"},
            "long_dwell": again,
        },
    )
    own = {"kind": "id", "column": "rating", "feedback": True, "available_at": "rated_at"}
    parse_schema(features={"rating": own, "stars": own})


DELAY_FAULTS: list[tuple[dict[str, Any], str]] = [
    (
        {"rating": {"kind": "id", "feedback": True, "available_after": "59m"}},
        "features.rating: reads 'rating', the label, after 59m, which leaks the answer: label_delay says 1h; "
        "expected that or longer; leave available_after out",
    ),
    (
        {"stars": {"kind": "id", "column": "rating", "feedback": True, "available_after": 0}},
        "the label, after 0, which leaks",
    ),
    (
        {
            "dwell": {"kind": "bucketized", "edges": [1], "feedback": True},
            "short": {"kind": "bucketized", "column": "dwell", "edges": [1], "feedback": True, "available_after": "1s"},
        },
        "features.short: reads 'dwell', known after 1s, and features.dwell says that it is known after "
        "label_delay; expected one answer for one column; give both the same",
    ),
    (
        {
            "fix": {"kind": "id", "feedback": True, "available_at": "fixed_at"},
            "mend": {"kind": "id", "column": "fix", "feedback": True, "available_at": "mended_at"},
        },
        "features.mend: reads 'fix', known at the timestamp in 'mended_at', and features.fix says that it is",
    ),
    (
        {
            "fix": {"kind": "id", "feedback": True, "available_at": "fixed_at"},
            "mend": {"kind": "id", "column": "fix", "feedback": True, "available_after": "7d"},
        },
        "features.mend: reads 'fix', known after 7d, and features.fix says",
    ),
    (
        {"rating": {"kind": "id", "feedback": True, "available_at": "rated_at"}},
        "features.rating: reads 'rating', the label, known at the timestamp in 'rated_at', and label_delay says "
        "1h; expected one of the two; leave label_delay out",
    ),
]


@pytest.mark.parametrize(("features", "message"), DELAY_FAULTS)
def test_delays_that_contradict_each_other(features: dict[str, Any], message: str) -> None:
    assert message in get_fault(label_delay="1h", features=features)


# ---- faults ------------------------------------------------------------------------------------------------------

SCHEMA_FAULTS: list[tuple[dict[str, Any], str]] = [
    (
        {"features": {"stars": {"kind": "id", "column": "rating"}}},
        r"features\.stars: reads the label column 'rating', which leaks",
    ),
    (
        {"features": {"stars": {"kind": "numeric", "column": "rating", "side": "user"}}},
        r"features\.stars: reads the label column",
    ),
    (
        {
            "features": {
                "dwell": {"kind": "id", "feedback": True},
                "dwelt": {"kind": "numeric", "column": "dwell"},
            }
        },
        r"features\.dwelt: reads the feedback column 'dwell'",
    ),
    (
        {"features": {"tags": {"kind": "multi_id", "weights": "rating"}}},
        r"features\.tags: reads the label column 'rating' as weights",
    ),
    (
        {"histories": {"rated": {"features": ["movi"]}}},
        r"histories\.rated\.features: no feature named 'movi'; known: user_id, age, movie",
    ),
    ({"histories": {"rated": {"features": ["age"]}}}, r"'age' belongs to the user, it is the same in every event"),
    ({"histories": {"rated": {"features": ["user_id"]}}}, r"'user_id' belongs to the user"),
    ({"histories": {"rated": {"features": ["hour"]}}}, r"'hour' of kind calendar cannot be in a history"),
    (
        {"features": {"price": {"kind": "numeric"}}, "histories": {"rated": {"features": ["price"]}}},
        r"'price' of kind numeric cannot be in a history; use id or bucketized",
    ),
    (
        {"features": {"tags": {"kind": "multi_id"}}, "histories": {"rated": {"features": ["tags"]}}},
        r"'tags' has several values per event; only item features may",
    ),
    ({"features": {"time_gap": {"kind": "id"}}}, r"features\.time_gap: the name is taken"),
    ({"time": None}, r"time: is required, unless every history is pre-joined"),
    ({"user": None}, r"user: is required for histories\.rated, which reads earlier events of the user"),
    ({"item": None}, r"item: is required for histories\.rated, which reads earlier events with their items"),
    ({"item": None}, r"features\.\w+: side item needs the schema's item; set item, or side: candidate"),
    ({"user": None, "request": "page"}, r"request: groups the rows of a user; set user"),
    ({"casts": {"movie": "str"}}, r"casts\.movie: "),
    (
        {"time": None, "histories": {"rated": {"features": ["movie"], "columns": {"movie": "m"}}}},
        r"features\.hour: kind calendar needs the schema's time column",
    ),
    (
        {"time": {"column": "t", "unit": "step"}},
        r"features\.hour: kind calendar needs timestamps, and this log counts in steps",
    ),
    (
        {"histories": {"rated": {"features": ["movie", "time_gap"], "columns": {"movie": "m", "time_gap": "g"}}}},
        r"histories\.rated: pre-joined rows carry no times, so no time_gap",
    ),
    (
        {"histories": {"old": {"features": ["movie"], "columns": {"movie": "m"}}}},
        r"histories: either all histories are pre-joined \(columns\) or none is",
    ),
    (
        {"histories": {"rated": {"features": ["genres"], "columns": {"genres": "g"}}}},
        r"'genres' of kind multi_id cannot be in a history",
    ),
    (
        {"histories": {"rated": {"features": ["movie"], "columns": {"movie": "rating"}}}},
        r"histories\.rated\.columns\.movie: reads the label column 'rating'",
    ),
    (
        {
            "features": {"fix": {"kind": "id", "feedback": True, "available_at": "fixed_at"}},
            "histories": {"rated": {"features": ["movie"], "where": {"fix": 1}}},
        },
        r"histories\.rated\.where: 'fix' has its own timestamp \(available_at of fix\)",
    ),
    (
        {
            "time": None,
            "features": {"hour": None, "fix": {"kind": "id", "feedback": True, "available_at": "fixed_at"}},
            "histories": {"rated": {"features": ["movie"], "columns": {"movie": "m"}}},
        },
        r"features\.fix: available_at needs the schema's time column",
    ),
    ({"features": {"a/b": {"kind": "id"}}}, r"features\.a/b: a name is made of letters, digits, '_' and '-'"),
    ({"features": {"known.x": {"kind": "id"}}}, r"features\.known\.x: a name is made of letters"),
    ({"histories": {"a.b": {"features": ["movie"]}}}, r"histories\.a\.b: a name is made of letters"),
    ({"features": {"item": {"kind": "id", "column": "banner"}}}, r"features\.item: the name is taken by the log"),
    ({"features": {"times": {"kind": "id"}}}, r"features\.times: the name is taken by the log"),
    ({"features": {"offsets": {"kind": "id"}}}, r"features\.offsets: the name is taken by the log"),
    ({"item": "user_id"}, r"item: is the column of the user, 'user_id'"),
    ({"label": {"column": "rating", "at_least": 4, "equals": 5}}, r"label: takes at_least or equals, not both"),
    ({"label": {"at_least": 4}}, r"label\.column: is required"),
    ({"time": {"column": "t", "unit": "h"}}, r"time\.unit: must be one of 'auto', 's', 'ms', 'us', 'ns' or 'step'"),
    ({"histories": {"rated": {"features": ["movie", "movie"]}}}, r"histories\.rated: features names a column twice"),
    ({"histories": {"rated": {"features": []}}}, r"histories\.rated: features must name at least one column"),
    (
        {"histories": {"rated": {"features": ["movie"], "max_length": 0}}},
        r"histories\.rated\.max_length: .*greater than or equal to 1",
    ),
    (
        {"histories": {"rated": {"features": ["movie"], "columns": {"genre": "g"}}}},
        r"histories\.rated: columns must name a list column for each of features: movie",
    ),
    (
        {"histories": {"rated": {"features": ["movie"], "columns": {"movie": "m"}, "where": {"page": 1}}}},
        r"histories\.rated: where needs an event log",
    ),
    (
        {"histories": {"rated": {"features": ["movie"], "separator": "|"}}},
        r"histories\.rated: separator belongs to pre-joined rows",
    ),
    (
        {"histories": {"rated": {"features": ["movie"], "where": {"page": {"at_least": 1, "equals": 2}}}}},
        r"histories\.rated\.where\.page: needs exactly one of at_least, equals, among",
    ),
    (
        {"features": {"movie": None, "page": {"knid": "id"}}},
        r"features\.page\.knid: unknown key; did you mean 'kind'\?",
    ),
]


@pytest.mark.parametrize(("changes", "says"), SCHEMA_FAULTS, ids=[says[:50] for _, says in SCHEMA_FAULTS])
def test_a_schema_fault_is_named(changes: dict[str, Any], says: str) -> None:
    import re

    assert re.search(says, get_fault(**changes))


FEATURE_FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"kind": "id", "edges": [1]}, "a feature of kind 'id' takes no edges"),
    ({"kind": "numeric", "vocab": [1], "hash": 3}, "a feature of kind 'numeric' takes no hash, vocab"),
    ({"kind": "numeric", "feedback": True}, "'numeric' takes no feedback; feedback belongs to id or bucketized"),
    ({"kind": "id", "vocab": [1], "hash": 3}, "takes vocab or hash, not both"),
    ({"kind": "id", "hash": 3, "min_count": 2}, "min_count"),
    ({"kind": "id", "vocab": [1], "min_count": 2}, "min_count"),
    ({"kind": "bucketized"}, "a bucketized feature needs exactly one of edges, quantiles, log_square"),
    ({"kind": "bucketized", "edges": [1], "quantiles": 3}, "a bucketized feature needs exactly one of"),
    ({"kind": "bucketized", "edges": [2, 1]}, "edges must rise strictly, got [2.0, 1.0]"),
    ({"kind": "bucketized", "edges": [1, 1]}, "edges must rise strictly"),
    ({"kind": "bucketized", "edges": []}, "edges"),
    (
        {"kind": "id", "available_after": "1h"},
        "available_after and available_at belong to a feature with feedback: true",
    ),
    (
        {"kind": "id", "feedback": True, "available_after": 1, "available_at": "x"},
        "takes available_after or available_at, not both",
    ),
    ({"kind": "id", "feedback": True, "side": "item"}, "feedback is a column of the event itself"),
    ({"kind": "id", "hash": 0}, "features.x.hash: input should be greater than or equal to 1, got 0"),
    (
        {"kind": "ids"},
        "features.x.kind: must be one of 'id', 'multi_id', 'numeric', 'bucketized', 'calendar', 'embedding', 'cross' "
        "or 'lookup'",
    ),
    (
        {"kind": "calendar", "component": "minute"},
        "features.x.component: must be one of 'hour', 'weekday' or 'hour_of_week'",
    ),
    ({"kind": "multi_id", "separator": ""}, "features.x.separator: "),
]


@pytest.mark.parametrize(("feature", "says"), FEATURE_FAULTS, ids=[says[:50] for _, says in FEATURE_FAULTS])
def test_a_feature_fault_is_named(feature: dict[str, Any], says: str) -> None:
    assert says in get_fault(features={"x": feature})


def test_the_faults_of_a_schema_come_all_at_once() -> None:
    columns = get_fault(
        features={"stars": {"kind": "id", "column": "rating"}},
        histories={"rated": {"features": ["movi", "age"]}},
    )
    assert "features.stars: reads the label column" in columns
    assert "histories.rated.features: no feature named 'movi'" in columns
    assert "histories.rated.features: 'age' belongs to the user" in columns


# ---- fields ------------------------------------------------------------------------------------------------------


def test_fields_know_pairs_and_tables() -> None:
    user, movie, genres = (
        Field("user", "id", 9, side="user"),
        Field("movie", "id", 5, side="item"),
        Field("genres", "multi_id", 4, side="item"),
    )
    page, rating = Field("page", "id", 3), Field("rating", "id", 8, feedback=True)
    fields = Fields((user, movie, genres, page), {"a": (rating, genres, page, movie), "b": (movie,)})
    assert fields.target_columns("a") == (genres, movie)
    assert fields.target_columns("b") == (movie,)
    assert fields.distinct_fields() == (user, movie, genres, page, rating)


CANDIDATE: dict[str, Any] = {
    "brand": {"kind": "id", "side": "candidate"},
    "page_brand": {"kind": "cross", "features": ["page", "brand"], "hash": 9},
    "page_film": {"kind": "cross", "features": ["page", "movie"], "hash": 9},
    "who_where": {"kind": "cross", "features": ["page", "user_id"], "hash": 9},
    "paid": {"kind": "lookup", "map": "prices", "key": "brand", "as": "numeric"},
}


def test_a_cross_of_a_candidates_column_is_the_candidates() -> None:
    parsed = parse_schema(features=CANDIDATE)
    assert [parsed.side(name) for name in CANDIDATE] == ["candidate", "candidate", "candidate", "context", "candidate"]
    assert parsed.columns("page_brand") == ("page", "brand")
    assert parsed.columns("paid") == ("prices", "brand")
    assert parsed.columns("age") == ("age",)
    assert all(parsed.in_row(name) for name in (*CANDIDATE, "page"))
    assert not parsed.in_row("movie")


def test_a_history_may_name_a_candidates_column() -> None:
    parsed = parse_schema(features=CANDIDATE, histories={"rated": {"features": ["movie", "brand", "page_brand"]}})
    assert parsed.histories["rated"].features == ("movie", "brand", "page_brand")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"kind": "calendar", "side": "candidate"}, "the calendar is no column of a candidate"),
        ({"kind": "id", "side": "candidate", "feedback": True}, "feedback is no column of a candidate"),
        ({"kind": "id", "width": 2}, "a feature of kind 'id' takes no width"),
        ({"kind": "numeric", "separator": "|"}, "separator belongs to a numeric feature of several numbers"),
        (
            {"kind": "numeric", "width": 2, "scale": "minmax"},
            "a numeric feature of several numbers takes scale raw or log",
        ),
        ({"kind": "multi_id", "weight_separator": ":"}, "weight_separator belongs to text: it needs a separator"),
        ({"kind": "multi_id", "weight_separator": "|", "separator": "|"}, "it needs a separator, and another one"),
        (
            {"kind": "multi_id", "weight_separator": ":", "separator": "|", "weights": "w"},
            "takes weights or weight_separator, not both",
        ),
        (
            {"kind": "cross", "features": ["page", "y"]},
            "a cross needs features, the columns to combine, and hash",
        ),
        ({"kind": "cross", "features": ["page", "page"], "hash": 3}, "features names a column twice"),
        (
            {"kind": "cross", "features": ["page", "y"], "hash": 3, "side": "user"},
            "a cross reads raw columns of the row",
        ),
        ({"kind": "cross", "features": ["page", "rating"], "hash": 3}, "reads the label column 'rating', which leaks"),
        ({"kind": "cross", "features": ["page", "movie"], "hash": 3, "side": "context"}, "set side: candidate"),
        ({"kind": "cross", "features": ["page", "y"], "hash": 3, "share": "page"}, "of kind 'cross' takes no share"),
        ({"kind": "lookup", "map": "m"}, "a lookup needs map and key"),
        ({"kind": "lookup", "map": "m", "key": "page", "edges": [1]}, "of kind 'lookup' as 'id' takes no edges"),
        (
            {"kind": "lookup", "map": "m", "key": "page", "as": "bucketized"},
            "a bucketized feature needs exactly one of",
        ),
        ({"kind": "lookup", "map": "m", "key": "page", "separator": ":"}, "pair_separator and separator are both ':'"),
        ({"kind": "lookup", "map": "rating", "key": "page"}, "reads the label column 'rating', which leaks the answer"),
        ({"kind": "id", "share": "pge"}, "features.x.share: no other feature named 'pge'; known: user_id, movie"),
        ({"kind": "id", "share": "age"}, "features.x.share: 'age' must be of kind id or multi_id, and no feedback"),
        (
            {"kind": "id", "share": "rating"},
            "features.x.share: 'rating' must be of kind id or multi_id, and no feedback",
        ),
        ({"kind": "id", "share": "x"}, "features.x.share: no other feature named 'x'"),
        ({"kind": "id", "share": "page", "hash": 3}, "share takes the ids of the other feature"),
        (
            {"kind": "id", "share": "page", "dim": 3},
            "one table has one width, and dim is 3 here and not set for 'page'",
        ),
        ({"kind": "id", "share": "brand_now"}, "'brand_now' shares the ids of 'page' itself"),
        (
            {"kind": "id", "column": "page", "side": "candidate"},
            "'page' belongs to the candidate here and to the context",
        ),
    ],
)
def test_a_fault_of_a_feature_of_the_row(content: dict[str, Any], says: str) -> None:
    more = {"brand_now": {"kind": "id", "share": "page"}} if content.get("share") == "brand_now" else {}
    assert says in get_fault(features={"x": content, **more})


def test_composed_features_stand_in_no_pre_joined_history() -> None:
    x = {"kind": "cross", "features": ["page", "y"], "hash": 3}
    says = get_fault(features={"x": x}, histories={"rated": {"features": ["x"], "columns": {"x": "xs"}}})
    assert "histories.rated.features: 'x' of kind cross cannot be in a history" in says
