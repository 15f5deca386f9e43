"""What a schema may say, and what it must not."""

from __future__ import annotations

from typing import Any

import pytest

from longrec.config import parse
from longrec.errors import ConfigError
from longrec.features.fields import Field, Fields
from longrec.features.schema import Schema, duration

BASE: dict[str, Any] = {
    "user": "user_id",
    "item": "movie",
    "time": {"column": "timestamp", "unit": "s"},
    "label": {"column": "rating", "at_least": 4},
    "features": {
        "user_id": {"kind": "id"},
        "age": {"kind": "bucket", "table": "user", "edges": [18, 30]},
        "movie": {"kind": "id"},
        "genres": {"kind": "multi", "table": "item"},
        "hour": {"kind": "time"},
        "page": {"kind": "id"},
        "rating": {"kind": "id", "feedback": True},
    },
    "histories": {"rated": {"of": ["movie", "genres", "rating", "page", "time_gap"], "last": 20}},
}


def with_(**parts: Any) -> dict[str, Any]:
    """The base schema with features and histories added and other keys replaced (None takes one away)."""
    content = {**BASE, **{k: v for k, v in parts.items() if k not in ("features", "histories")}}
    for key in ("features", "histories"):
        content[key] = {**BASE[key], **parts.get(key, {})}
        content[key] = {name: value for name, value in content[key].items() if value is not None}
    return {key: value for key, value in content.items() if value is not None}


def schema(**parts: Any) -> Schema:
    return parse(Schema, with_(**parts), "shop.yaml")


def fault(**parts: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        schema(**parts)
    return "\n".join(raised.value.faults)


def test_who_owns_a_feature() -> None:
    made = schema(features={"film": {"kind": "id", "column": "movie"}})
    owners = {name: made.table(name) for name in made.features}
    assert owners == {
        "user_id": "user",
        "age": "user",
        "movie": "item",
        "film": "item",
        "genres": "item",
        "hour": "event",
        "page": "event",
        "rating": "event",
    }
    assert made.column("hour") == "timestamp"
    assert made.column("film") == "movie"
    assert made.column("age") == "age"


def test_short_forms() -> None:
    made = schema(
        time="t",
        label="click",
        histories={"rated": {"of": ["movie"], "where": {"page": "home", "kind": [1, 2], "price": {"at_least": 2.5}}}},
    )
    assert made.time is not None
    assert (made.time.column, made.time.unit, made.label.column) == ("t", "auto", "click")
    where = made.histories["rated"].where
    assert where["page"].equals == "home"
    assert where["kind"].among == (1, 2)
    assert where["price"].at_least == 2.5
    assert made.histories["rated"].last == 50
    assert made.prejoined is False


@pytest.mark.parametrize(
    ("text", "ms"),
    [("90s", 90_000), ("1h", 3_600_000), ("7d", 604_800_000), ("250ms", 250), ("1.5m", 90_000), (2, 2_000), ("0", 0)],
)
def test_durations(text: Any, ms: int) -> None:
    assert duration(text) == ms


@pytest.mark.parametrize("text", ["-1s", "1 week", "", "s", True, None, "1e3s", [1], "1h 30m"])
def test_what_is_no_duration(text: Any) -> None:
    with pytest.raises(ValueError, match=r"must be a duration such as '90s', '1h' or '7d'"):
        duration(text)
    if text is not None:
        assert "label_known_after: must be a duration" in fault(label_known_after=text)


def test_when_feedback_is_known() -> None:
    made = schema(
        label_known_after="1h",
        features={
            "dwell": {"kind": "bucket", "edges": [1], "feedback": True, "known_after": "2s"},
            "stars": {"kind": "id", "column": "rating", "feedback": True, "known_after": "2h"},
        },
    )
    assert made.known_after("rating") == 3_600_000
    assert made.known_after("dwell") == 2_000
    assert made.known_after("stars") == 7_200_000
    assert made.is_feedback_column("rating")
    assert made.is_feedback_column("dwell")
    assert not made.is_feedback_column("page")
    steps = schema(time={"column": "t", "unit": "step"}, label_known_after="3", features={"hour": None})
    assert steps.known_after("rating") == 3


def test_delays_of_one_column_that_agree() -> None:
    again = {"kind": "bucket", "column": "dwell", "edges": [1], "feedback": True}
    schema(
        label_known_after="1h",
        features={
            "rating": {"kind": "id", "feedback": True, "known_after": "60m"},
            "stars": {"kind": "id", "column": "rating", "feedback": True, "known_after": "2h"},
            "dwell": {**again, "known_after": "3600"},
            "long_dwell": again,
        },
    )
    own = {"kind": "id", "column": "rating", "feedback": True, "known_at": "rated_at"}
    schema(features={"rating": own, "stars": own})


DELAY_FAULTS: list[tuple[dict[str, Any], str]] = [
    (
        {"rating": {"kind": "id", "feedback": True, "known_after": "59m"}},
        "features.rating: reads 'rating', the label, after 59m, which leaks the answer: label_known_after says 1h; "
        "expected that or longer; leave known_after out",
    ),
    (
        {"stars": {"kind": "id", "column": "rating", "feedback": True, "known_after": 0}},
        "the label, after 0, which leaks",
    ),
    (
        {
            "dwell": {"kind": "bucket", "edges": [1], "feedback": True},
            "short": {"kind": "bucket", "column": "dwell", "edges": [1], "feedback": True, "known_after": "1s"},
        },
        "features.short: reads 'dwell', known after 1s, and features.dwell says that it is known after "
        "label_known_after; expected one answer for one column; give both the same",
    ),
    (
        {
            "fix": {"kind": "id", "feedback": True, "known_at": "fixed_at"},
            "mend": {"kind": "id", "column": "fix", "feedback": True, "known_at": "mended_at"},
        },
        "features.mend: reads 'fix', known at the timestamp in 'mended_at', and features.fix says that it is",
    ),
    (
        {
            "fix": {"kind": "id", "feedback": True, "known_at": "fixed_at"},
            "mend": {"kind": "id", "column": "fix", "feedback": True, "known_after": "7d"},
        },
        "features.mend: reads 'fix', known after 7d, and features.fix says",
    ),
    (
        {"rating": {"kind": "id", "feedback": True, "known_at": "rated_at"}},
        "features.rating: reads 'rating', the label, known at the timestamp in 'rated_at', and label_known_after says "
        "1h; expected one of the two; leave label_known_after out",
    ),
]


@pytest.mark.parametrize(("features", "message"), DELAY_FAULTS)
def test_delays_that_contradict_each_other(features: dict[str, Any], message: str) -> None:
    assert message in fault(label_known_after="1h", features=features)


# ---- faults ------------------------------------------------------------------------------------------------------

SCHEMA_FAULTS: list[tuple[dict[str, Any], str]] = [
    (
        {"features": {"stars": {"kind": "id", "column": "rating"}}},
        r"features\.stars: reads the label column 'rating', which leaks",
    ),
    (
        {"features": {"stars": {"kind": "dense", "column": "rating", "table": "user"}}},
        r"features\.stars: reads the label column",
    ),
    (
        {
            "features": {
                "dwell": {"kind": "id", "feedback": True},
                "dwelt": {"kind": "dense", "column": "dwell"},
            }
        },
        r"features\.dwelt: reads the feedback column 'dwell'",
    ),
    (
        {"features": {"tags": {"kind": "multi", "weights": "rating"}}},
        r"features\.tags: reads the label column 'rating' as weights",
    ),
    (
        {"histories": {"rated": {"of": ["movi"]}}},
        r"histories\.rated\.of: no feature named 'movi'; known: user_id, age, movie",
    ),
    ({"histories": {"rated": {"of": ["age"]}}}, r"'age' belongs to the user, it is the same in every event"),
    ({"histories": {"rated": {"of": ["user_id"]}}}, r"'user_id' belongs to the user"),
    ({"histories": {"rated": {"of": ["hour"]}}}, r"'hour' of kind time cannot stand in a history"),
    (
        {"features": {"price": {"kind": "dense"}}, "histories": {"rated": {"of": ["price"]}}},
        r"'price' of kind dense cannot stand in a history; use id or bucket",
    ),
    (
        {"features": {"tags": {"kind": "multi"}}, "histories": {"rated": {"of": ["tags"]}}},
        r"'tags' has several values an event; only item features may",
    ),
    ({"features": {"time_gap": {"kind": "id"}}}, r"features\.time_gap: the name is taken"),
    ({"time": None}, r"time: is required, unless every history is pre-joined"),
    (
        {"time": None, "histories": {"rated": {"of": ["movie"], "columns": {"movie": "m"}}}},
        r"features\.hour: kind time needs the schema's time column",
    ),
    (
        {"time": {"column": "t", "unit": "step"}},
        r"features\.hour: kind time needs moments, and this log counts in steps",
    ),
    (
        {"histories": {"rated": {"of": ["movie", "time_gap"], "columns": {"movie": "m", "time_gap": "g"}}}},
        r"histories\.rated: pre-joined rows carry no times, so no time_gap",
    ),
    (
        {"histories": {"old": {"of": ["movie"], "columns": {"movie": "m"}}}},
        r"histories: either all histories are pre-joined \(columns\) or none is",
    ),
    (
        {"histories": {"rated": {"of": ["genres"], "columns": {"genres": "g"}}}},
        r"'genres' of kind multi cannot stand in a history",
    ),
    (
        {"histories": {"rated": {"of": ["movie"], "columns": {"movie": "rating"}}}},
        r"histories\.rated\.columns\.movie: reads the label column 'rating'",
    ),
    (
        {
            "features": {"fix": {"kind": "id", "feedback": True, "known_at": "fixed_at"}},
            "histories": {"rated": {"of": ["movie"], "where": {"fix": 1}}},
        },
        r"histories\.rated\.where: 'fix' is known at a moment of its own \(known_at of fix\)",
    ),
    (
        {
            "time": None,
            "features": {"hour": None, "fix": {"kind": "id", "feedback": True, "known_at": "fixed_at"}},
            "histories": {"rated": {"of": ["movie"], "columns": {"movie": "m"}}},
        },
        r"features\.fix: known_at needs the schema's time column",
    ),
    ({"features": {"a/b": {"kind": "id"}}}, r"features\.a/b: a name is made of letters, digits, '_' and '-'"),
    ({"features": {"known.x": {"kind": "id"}}}, r"features\.known\.x: a name is made of letters"),
    ({"histories": {"a.b": {"of": ["movie"]}}}, r"histories\.a\.b: a name is made of letters"),
    ({"features": {"item": {"kind": "id", "column": "banner"}}}, r"features\.item: the name is taken by the log"),
    ({"features": {"times": {"kind": "id"}}}, r"features\.times: the name is taken by the log"),
    ({"features": {"offsets": {"kind": "id"}}}, r"features\.offsets: the name is taken by the log"),
    ({"item": "user_id"}, r"item: is the column of the user, 'user_id'"),
    ({"label": {"column": "rating", "at_least": 4, "equals": 5}}, r"label: takes at_least or equals, not both"),
    ({"label": {"at_least": 4}}, r"label\.column: is required"),
    ({"time": {"column": "t", "unit": "h"}}, r"time\.unit: must be one of 'auto', 's', 'ms', 'us', 'ns' or 'step'"),
    ({"histories": {"rated": {"of": ["movie", "movie"]}}}, r"histories\.rated: of names a column twice"),
    ({"histories": {"rated": {"of": []}}}, r"histories\.rated: of must name one column at least"),
    ({"histories": {"rated": {"of": ["movie"], "last": 0}}}, r"histories\.rated\.last: .*greater than or equal to 1"),
    (
        {"histories": {"rated": {"of": ["movie"], "columns": {"genre": "g"}}}},
        r"histories\.rated: columns must name a list column for each of: movie",
    ),
    (
        {"histories": {"rated": {"of": ["movie"], "columns": {"movie": "m"}, "where": {"page": 1}}}},
        r"histories\.rated: where needs an event log",
    ),
    (
        {"histories": {"rated": {"of": ["movie"], "separator": "|"}}},
        r"histories\.rated: separator belongs to pre-joined rows",
    ),
    (
        {"histories": {"rated": {"of": ["movie"], "where": {"page": {"at_least": 1, "equals": 2}}}}},
        r"histories\.rated\.where\.page: needs exactly one of at_least, equals, among",
    ),
    (
        {"features": {"movie": None, "page": {"knid": "id"}}},
        r"features\.page\.knid: unknown key; did you mean 'kind'\?",
    ),
]


@pytest.mark.parametrize(("parts", "says"), SCHEMA_FAULTS, ids=[says[:50] for _, says in SCHEMA_FAULTS])
def test_a_schema_fault_is_named(parts: dict[str, Any], says: str) -> None:
    import re

    assert re.search(says, fault(**parts))


FEATURE_FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"kind": "id", "edges": [1]}, "a feature of kind 'id' takes no edges"),
    ({"kind": "dense", "vocab": [1], "hash": 3}, "a feature of kind 'dense' takes no hash, vocab"),
    ({"kind": "dense", "feedback": True}, "a feature of kind 'dense' takes no feedback"),
    ({"kind": "id", "vocab": [1], "hash": 3}, "takes vocab or hash, not both"),
    ({"kind": "id", "hash": 3, "min_count": 2}, "min_count"),
    ({"kind": "id", "vocab": [1], "min_count": 2}, "min_count"),
    ({"kind": "bucket"}, "a bucket needs exactly one of edges, quantiles, log_square"),
    ({"kind": "bucket", "edges": [1], "quantiles": 3}, "a bucket needs exactly one of"),
    ({"kind": "bucket", "edges": [2, 1]}, "edges must rise strictly, got [2.0, 1.0]"),
    ({"kind": "bucket", "edges": [1, 1]}, "edges must rise strictly"),
    ({"kind": "bucket", "edges": []}, "edges"),
    ({"kind": "id", "known_after": "1h"}, "known_after and known_at belong to a feature with feedback: true"),
    ({"kind": "id", "feedback": True, "known_after": 1, "known_at": "x"}, "takes known_after or known_at, not both"),
    ({"kind": "id", "feedback": True, "table": "item"}, "feedback is a column of the event itself"),
    ({"kind": "id", "hash": 0}, "features.x.hash: input should be greater than or equal to 1, got 0"),
    (
        {"kind": "ids"},
        "features.x.kind: must be one of 'id', 'multi', 'dense', 'bucket', 'time', 'vector', 'cross' or 'lookup'",
    ),
    ({"kind": "time", "part": "minute"}, "features.x.part: must be one of 'hour', 'weekday' or 'hour_of_week'"),
    ({"kind": "multi", "separator": ""}, "features.x.separator: "),
]


@pytest.mark.parametrize(("feature", "says"), FEATURE_FAULTS, ids=[says[:50] for _, says in FEATURE_FAULTS])
def test_a_feature_fault_is_named(feature: dict[str, Any], says: str) -> None:
    assert says in fault(features={"x": feature})


def test_the_faults_of_a_schema_come_all_at_once() -> None:
    found = fault(
        features={"stars": {"kind": "id", "column": "rating"}},
        histories={"rated": {"of": ["movi", "age"]}},
    )
    assert "features.stars: reads the label column" in found
    assert "histories.rated.of: no feature named 'movi'" in found
    assert "histories.rated.of: 'age' belongs to the user" in found


# ---- fields ------------------------------------------------------------------------------------------------------


def test_fields_know_pairs_and_tables() -> None:
    user, movie, genres = (
        Field("user", "id", 9, table="user"),
        Field("movie", "id", 5, table="item"),
        Field("genres", "multi", 4, table="item"),
    )
    page, rating = Field("page", "id", 3), Field("rating", "id", 8, feedback=True)
    fields = Fields((user, movie, genres, page), {"a": (rating, genres, page, movie), "b": (movie,)})
    assert fields.pairs("a") == (genres, movie)
    assert fields.pairs("b") == (movie,)
    assert fields.tables() == (user, movie, genres, page, rating)


CANDIDATE: dict[str, Any] = {
    "brand": {"kind": "id", "table": "candidate"},
    "page_brand": {"kind": "cross", "of": ["page", "brand"], "hash": 9},
    "page_film": {"kind": "cross", "of": ["page", "movie"], "hash": 9},
    "who_where": {"kind": "cross", "of": ["page", "user_id"], "hash": 9},
    "paid": {"kind": "lookup", "map": "prices", "key": "brand", "as": "dense"},
}


def test_a_cross_of_a_candidates_column_is_the_candidates() -> None:
    made = schema(features=CANDIDATE)
    assert [made.table(name) for name in CANDIDATE] == ["candidate", "candidate", "candidate", "event", "candidate"]
    assert made.columns("page_brand") == ("page", "brand")
    assert made.columns("paid") == ("prices", "brand")
    assert made.columns("age") == ("age",)
    assert all(made.in_row(name) for name in (*CANDIDATE, "page"))
    assert not made.in_row("movie")


def test_a_history_may_name_a_candidates_column() -> None:
    made = schema(features=CANDIDATE, histories={"rated": {"of": ["movie", "brand", "page_brand"]}})
    assert made.histories["rated"].of == ("movie", "brand", "page_brand")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"kind": "time", "table": "candidate"}, "the calendar is no column that a candidate brings"),
        ({"kind": "id", "table": "candidate", "feedback": True}, "feedback is no column that a candidate brings"),
        ({"kind": "id", "width": 2}, "a feature of kind 'id' takes no width"),
        ({"kind": "dense", "separator": "|"}, "separator belongs to a dense feature of several numbers"),
        ({"kind": "dense", "width": 2, "scale": "minmax"}, "a dense feature of several numbers takes scale raw or log"),
        ({"kind": "multi", "weight_separator": ":"}, "weight_separator belongs to text: it needs a separator"),
        ({"kind": "multi", "weight_separator": "|", "separator": "|"}, "it needs a separator, and another one"),
        (
            {"kind": "multi", "weight_separator": ":", "separator": "|", "weights": "w"},
            "takes weights or weight_separator, not both",
        ),
        ({"kind": "cross", "of": ["page", "y"]}, "a cross needs of, the columns to take together, and hash"),
        ({"kind": "cross", "of": ["page", "page"], "hash": 3}, "of names a column twice"),
        ({"kind": "cross", "of": ["page", "y"], "hash": 3, "table": "user"}, "a cross reads raw columns of the row"),
        ({"kind": "cross", "of": ["page", "rating"], "hash": 3}, "reads the label column 'rating', which leaks"),
        ({"kind": "cross", "of": ["page", "movie"], "hash": 3, "table": "event"}, "set table: candidate"),
        ({"kind": "cross", "of": ["page", "y"], "hash": 3, "share": "page"}, "of kind 'cross' takes no share"),
        ({"kind": "lookup", "map": "m"}, "a lookup needs map and key"),
        ({"kind": "lookup", "map": "m", "key": "page", "edges": [1]}, "of kind 'lookup' as 'id' takes no edges"),
        ({"kind": "lookup", "map": "m", "key": "page", "as": "bucket"}, "a bucket needs exactly one of"),
        ({"kind": "lookup", "map": "m", "key": "page", "separator": ":"}, "pair_separator and separator are both ':'"),
        ({"kind": "lookup", "map": "rating", "key": "page"}, "reads the label column 'rating', which leaks the answer"),
        ({"kind": "id", "share": "pge"}, "features.x.share: no other feature named 'pge'; known: user_id, movie"),
        ({"kind": "id", "share": "age"}, "features.x.share: 'age' must be of kind id or multi, and no feedback"),
        ({"kind": "id", "share": "rating"}, "features.x.share: 'rating' must be of kind id or multi, and no feedback"),
        ({"kind": "id", "share": "x"}, "features.x.share: no other feature named 'x'"),
        ({"kind": "id", "share": "page", "hash": 3}, "share takes the ids of the other feature"),
        (
            {"kind": "id", "share": "page", "dim": 3},
            "one table has one width, and dim is 3 here and not said of 'page'",
        ),
        ({"kind": "id", "share": "brand_now"}, "'brand_now' shares the ids of 'page' itself"),
        (
            {"kind": "id", "column": "page", "table": "candidate"},
            "'page' belongs to the candidate here and to the event",
        ),
    ],
)
def test_a_fault_of_a_feature_of_the_row(content: dict[str, Any], says: str) -> None:
    more = {"brand_now": {"kind": "id", "share": "page"}} if content.get("share") == "brand_now" else {}
    assert says in fault(features={"x": content, **more})


def test_composed_features_stand_in_no_pre_joined_history() -> None:
    x = {"kind": "cross", "of": ["page", "y"], "hash": 3}
    says = fault(features={"x": x}, histories={"rated": {"of": ["x"], "columns": {"x": "xs"}}})
    assert "histories.rated.of: 'x' of kind cross cannot stand in a history" in says
