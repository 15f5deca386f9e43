"""A fitted schema and entity tables: equal after saving and loading, and lists gathered without a loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.errors import DataError
from longrec.features import feature_encoders
from longrec.features.computed_columns import compute_time_gaps
from longrec.features.entity_table import EntityTable
from longrec.features.feature_encoders import Lists
from longrec.features.fields import Field
from longrec.features.fitted_schema import FittedSchema, concat_lists, gather_lists
from longrec.features.schema import Schema
from longrec.features.vocabulary import Keys

quick = settings(deadline=None, max_examples=25)

SCHEMA = Schema.model_validate(
    {
        "user": "user",
        "item": "movie",
        "time": {"column": "t", "unit": "s"},
        "label": {"column": "stars", "at_least": 4},
        "features": {
            "user": {"kind": "id", "hash": 20, "dim": 8},
            "movie": {"kind": "id"},
            "name": {"kind": "id", "side": "item"},
            "price": {"kind": "numeric", "scale": "minmax", "missing": 2.0},
            "age": {"kind": "bucketized", "side": "user", "edges": [18, 65]},
            "shown": {"kind": "bucketized", "log_square": True},
            "hour": {"kind": "calendar", "utc_offset": 1.5},
            "genres": {"kind": "multi_id", "side": "item", "separator": "|", "pool": "sum"},
            "tags": {"kind": "multi_id", "weights": "tag_weights"},
            "stars": {"kind": "id", "feedback": True},
        },
        "histories": {
            "rated": {"features": ["movie", "genres", "stars", "time_gap"], "where": {"price": {"at_least": 1}}}
        },
    }
)
ENCODERS: dict[str, feature_encoders.Encoder] = {
    "user": feature_encoders.HashEncoder(20, 9),
    "movie": feature_encoders.IdEncoder(Keys(pa.array([10, 2**53, 2**53 + 1]))),
    "name": feature_encoders.IdEncoder(Keys(pa.array(["é", "b"]))),
    "price": feature_encoders.NumericEncoder("minmax", 1.0, 4.0, 2.0),
    "age": feature_encoders.BucketizedEncoder((18.0, 65.0)),
    "shown": feature_encoders.LogSquareEncoder(-2, 5),
    "hour": feature_encoders.CalendarEncoder("hour", 1.5),
    "genres": feature_encoders.IdEncoder(Keys(pa.array(["war", "love"]))),
    "tags": feature_encoders.HashEncoder(5, 3),
    "stars": feature_encoders.IdEncoder(Keys(pa.array([1, 2, 3, 4, 5]))),
}
RAW: dict[str, Any] = {
    "user": [5, None, 7],
    "movie": [2**53 + 1, 10, 11],
    "name": ["b", None, "zz"],
    "price": [5, None, 1],
    "age": [17, 65, None],
    "shown": [0, 100, None],
    "genres": ["war|love", None, "zz|war"],
    "tags": [[1, 2], [], [3]],
    "stars": [5, None, 6],
}
WEIGHTS = pa.array([[0.5, 2], [], [1]])


def build_fitted() -> FittedSchema:
    return FittedSchema(SCHEMA, ENCODERS)


def encode_rows(fitted_schema: FittedSchema, start: int, stop: int) -> dict[str, Any]:
    """Every column of some rows, lists as (values, lengths, weights)."""
    columns: dict[str, Any] = {}
    for name, values in RAW.items():
        weights = WEIGHTS[start:stop] if name == "tags" else None
        column = fitted_schema.encode(name, pa.array(values)[start:stop], name, weights)
        if isinstance(column, Lists):
            own = None if column.weights is None else column.weights.tolist()
            columns[name] = (column.values.tolist(), np.diff(column.offsets).tolist(), own)
        else:
            columns[name] = column.tolist()
    return columns


def test_every_kind_of_column() -> None:
    values = encode_rows(build_fitted(), 0, 3)
    assert values["movie"] == [4, 2, 1]
    assert values["name"] == [3, 0, 1]
    assert values["price"] == [1.0, 0.25, 0.0]
    assert values["age"] == [2, 4, 0]
    assert values["shown"] == [2, 9, 0]
    assert values["genres"] == ([2, 3, 1, 2], [2, 0, 2], None)
    assert values["tags"][1:] == ([2, 0, 1], [0.5, 2.0, 1.0])
    assert values["stars"] == [6, 0, 1]


def test_one_row_online_equals_the_column_offline() -> None:
    whole = encode_rows(build_fitted(), 0, 3)
    for row in range(3):
        for name, value in encode_rows(build_fitted(), row, row + 1).items():
            if isinstance(value, tuple):
                starts = np.cumsum([0, *whole[name][1]])
                own = slice(starts[row], starts[row + 1])
                assert value[0] == whole[name][0][own]
                assert value[1] == [whole[name][1][row]]
                assert value[2] is None or value[2] == whole[name][2][own]
            else:
                assert value == [whole[name][row]]


def test_the_same_schema_after_saving_and_loading(tmp_path: Path) -> None:
    build_fitted().save(tmp_path / "schema")
    loaded = FittedSchema.load(tmp_path / "schema")
    assert loaded.schema == SCHEMA
    assert loaded.fields() == build_fitted().fields()
    assert encode_rows(loaded, 0, 3) == encode_rows(build_fitted(), 0, 3)
    assert all(path.suffix in (".json", ".parquet") for path in (tmp_path / "schema").iterdir())


def test_a_folder_that_holds_no_schema(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no readable features\.json .*; expected a fitted schema\n  Run prepare again"
    ):
        FittedSchema.load(tmp_path)
    (tmp_path / "features.json").write_text('{"format": "longrec-features-0"}')
    with pytest.raises(DataError, match=r"format 'longrec-features-0'; expected longrec-features-1"):
        FittedSchema.load(tmp_path)
    (tmp_path / "features.json").write_text('{"format": ')
    with pytest.raises(DataError, match=r"no readable features\.json"):
        FittedSchema.load(tmp_path)


def test_fields_describe_the_inputs_of_a_model() -> None:
    fields = build_fitted().fields()
    assert [field.name for field in fields.features] == [name for name in SCHEMA.features if name != "stars"]
    by_name = {field.name: field for field in fields.features}
    assert by_name["user"] == Field("user", "id", 22, dim=8, side="user")
    assert by_name["price"] == Field("price", "numeric", 0)
    assert by_name["age"] == Field("age", "id", 5, side="user")
    assert by_name["shown"] == Field("shown", "id", 10)
    assert by_name["hour"] == Field("hour", "id", 26)
    assert by_name["genres"] == Field("genres", "multi_id", 4, pool="sum", side="item")
    assert by_name["tags"] == Field("tags", "multi_id", 7, weighted=True)
    movie, genres, stars, gap = fields.histories["rated"]
    assert (movie, genres) == (by_name["movie"], by_name["genres"])
    assert stars == Field("stars", "id", 8, feedback=True)
    assert gap == Field("time_gap", "id", 42)
    assert build_fitted().get_not_yet_id("stars") == 7
    assert fields.target_columns("rated") == (movie, genres)


def test_the_entry_of_somebody_unknown() -> None:
    fitted_schema = build_fitted()
    assert np.asarray(fitted_schema.encode_unknown("user")).tolist() == [1]
    assert np.asarray(fitted_schema.encode_unknown("movie")).tolist() == [1]
    assert np.asarray(fitted_schema.encode_unknown("name")).tolist() == [0]
    assert np.asarray(fitted_schema.encode_unknown("age")).tolist() == [0]
    assert np.asarray(fitted_schema.encode_unknown("price")).tolist() == [0.25]
    genres = fitted_schema.encode_unknown("genres")
    assert isinstance(genres, Lists)
    assert (genres.values.tolist(), genres.offsets.tolist()) == ([], [0, 0])


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (pa.array([[1.0], [], [1.0]]), r"^tags: weights: lists of other lengths than the values; expected one weight"),
        (pa.array([[1.0, None], [], [1.0]]), r"^tags: weights: 1 null.*; expected a number for every value"),
        (pa.array(["1|2", "", "3"]), r"^tags: weights: text; expected a list column"),
        (pa.array([["a", "b"], [], ["c"]]), r"^tags: weights: text, for example 'a'; expected numbers"),
    ],
)
def test_weights_that_do_not_fit(weights: pa.Array, says: str) -> None:
    with pytest.raises(DataError, match=says):
        build_fitted().encode("tags", pa.array(RAW["tags"]), "tags", weights)


def test_weights_may_be_text_as_their_values_are() -> None:
    tags = SCHEMA.features["tags"].model_copy(update={"separator": ";"})
    schema = SCHEMA.model_copy(update={"features": {**SCHEMA.features, "tags": tags}})
    fitted_schema = FittedSchema(schema, ENCODERS)
    values, weights = pa.array(["1;2", None, "3"]), pa.array(["0.5;2", "", "1"])
    column = fitted_schema.encode("tags", values, "tags", weights)
    assert isinstance(column, Lists)
    assert column.weights is not None
    assert (column.weights.tolist(), column.offsets.tolist()) == ([0.5, 2.0, 1.0], [0, 2, 2, 3])
    for bad, says in (("x", "text.*example .x."), (" ", "a weight that is no number"), ("1;2", "of other lengths")):
        with pytest.raises(DataError, match=f"^tags: weights: .*{says}"):
            fitted_schema.encode("tags", pa.array(["1"]), "tags", pa.array([bad]))


# ---- entity tables -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [[2**53 + 1, 5, 2**53], ["b", "é", ""]])
def test_an_entity_table_survives_saving(keys: list[Any], tmp_path: Path) -> None:
    lists = Lists(np.array([2, 3], np.int32), np.array([0, 0, 2, 2, 2]), np.array([0.5, 1], np.float32))
    columns = {"age": np.array([0, 2, 3, 4], np.int32), "tags": lists, "plain": Lists(lists.values, lists.offsets)}
    EntityTable(Keys(pa.array(keys)), columns).save(tmp_path / "items")
    loaded = EntityTable.load(tmp_path / "items")
    assert len(loaded) == 4
    assert [loaded.key(row) for row in range(4)] == [None, *keys]
    assert loaded.rows(pa.array([keys[2], None, keys[0]]), "x").tolist() == [3, 0, 1]
    np.testing.assert_array_equal(loaded.columns["age"], columns["age"])
    tags, plain = loaded.columns["tags"], loaded.columns["plain"]
    assert isinstance(tags, Lists)
    assert isinstance(plain, Lists)
    assert (tags.values.tolist(), tags.offsets.tolist()) == ([2, 3], [0, 0, 2, 2, 2])
    assert tags.weights is not None
    assert tags.weights.tolist() == [0.5, 1]
    assert plain.weights is None


def test_an_empty_entity_table_survives_saving(tmp_path: Path) -> None:
    empty = Lists(np.zeros(0, np.int32), np.zeros(2, np.int64))
    EntityTable(Keys(pa.array([], pa.int64())), {"tags": empty}).save(tmp_path)
    loaded = EntityTable.load(tmp_path)
    assert len(loaded) == 1
    assert loaded.rows(pa.array([4]), "x").tolist() == [0]


# ---- lists and gaps ----------------------------------------------------------------------------------------------


@quick
@given(st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=1, max_size=8), st.data())
def test_gathered_lists_are_the_lists(lists: list[list[int]], data: st.DataObject) -> None:
    offsets = np.cumsum([0, *map(len, lists)])
    flat = np.array(sum(lists, []), np.uint8)
    column = Lists(flat, offsets, flat / np.float32(2))
    rows = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=8))
    gathered = gather_lists(column, np.array(rows, np.uint8))
    assert np.diff(gathered.offsets).tolist() == [len(lists[row]) for row in rows]
    assert gathered.values.tolist() == sum((lists[row] for row in rows), [])
    assert gathered.weights is not None
    assert gathered.weights.tolist() == [value / 2 for value in gathered.values]


def test_gathering_the_last_row_a_narrow_type_can_name() -> None:
    column = Lists(np.arange(256), np.arange(257))
    assert gather_lists(column, np.array([255, 0], np.uint8)).values.tolist() == [255, 0]


def test_lists_one_after_the_other() -> None:
    one = Lists(np.array([1, 2]), np.array([0, 2]))
    two = Lists(np.array([3]), np.array([0, 0, 1]))
    joined = concat_lists(column for column in (one, two))
    assert (joined.values.tolist(), joined.offsets.tolist(), joined.weights) == ([1, 2, 3], [0, 2, 2, 3], None)
    assert len(joined) == 3


@quick
@given(st.integers(0, 2**45), st.integers(0, 2**45))
def test_time_gaps_are_log_buckets(first: int, second: int) -> None:
    seconds = max(second - first, 0) // 1000
    expected = 2 + min((1 + seconds).bit_length() - 1, 39)
    assert compute_time_gaps(np.array([second]), np.array([first])).tolist() == [expected]


def test_time_gaps_by_hand() -> None:
    gaps = compute_time_gaps(np.array([0, 999, 1000, 2999, 3000, 7000, 2**60]), np.zeros(7, np.int64))
    assert gaps.tolist() == [2, 2, 3, 3, 4, 5, 41]
    assert gaps.dtype == np.int32
    assert compute_time_gaps(np.array([3]), np.array([0]), per_second=1).tolist() == [4]
