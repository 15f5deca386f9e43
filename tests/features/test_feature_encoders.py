"""Every encoder, compared with results by hand."""

from __future__ import annotations

import math
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.errors import DataError
from longrec.features import feature_encoders
from longrec.features.feature_encoders import (
    BucketizedEncoder,
    CalendarEncoder,
    HashEncoder,
    IdEncoder,
    LogSquareEncoder,
    NumericEncoder,
    NumericListEncoder,
    cast_numbers,
    compute_log_square,
    dump_encoder,
    flatten,
    load_encoder,
)
from longrec.features.vocabulary import Keys, hash_keys

quick = settings(deadline=None, max_examples=25)


# ---- numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array",
    [
        pa.array([1, None, 3], pa.int8()),
        pa.array([1, None, 3], pa.uint64()),
        pa.array([1.0, None, 3.0], pa.float32()),
        pa.array([1.0, math.nan, 3.0]),
        pa.array([Decimal("1.0"), None, Decimal("3.0")]),
        pa.array([1, None, 3]).dictionary_encode(),
        pa.chunked_array([[1, None], [3]]),
    ],
)
def test_numbers_of_any_type(array: pa.Array) -> None:
    np.testing.assert_array_equal(cast_numbers(array, "x"), [1.0, np.nan, 3.0])


def test_booleans_and_nulls_are_numbers_too() -> None:
    np.testing.assert_array_equal(cast_numbers(pa.array([True, False, None]), "x"), [1.0, 0.0, np.nan])
    np.testing.assert_array_equal(cast_numbers(pa.nulls(2), "x"), [np.nan, np.nan])
    assert cast_numbers(pa.chunked_array([], pa.int64()), "x").tolist() == []


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (pa.array(["1", None, "2a"]), r"^x: text, for example '2a'; expected numbers\n  Clean the column"),
        (pa.array(["1", "2"]), r"^x: text, for example '1'; expected numbers"),
        (pa.array(["7"], pa.large_string()), r"text, for example '7'"),
        (pa.array(["7x"]).dictionary_encode(), r"text, for example '7x'"),
        (pa.array([1.0, math.inf]), r"^x: an infinite value at row 1; expected finite numbers or null"),
        (pa.array([-math.inf]), r"an infinite value at row 0"),
        (pa.array([[1]]), r"values of type list<item: int64>; expected numbers"),
        (pa.array([datetime(2026, 1, 1)]), r"values of type timestamp\[us\]; expected numbers"),
    ],
)
def test_what_is_no_number(array: pa.Array, says: str) -> None:
    with pytest.raises(DataError, match=says):
        cast_numbers(array, "x")


def test_a_number_beyond_float32_is_refused() -> None:
    message = r"^x: -4e\+38 at row 1, beyond the range of float32; expected numbers between -3.4e38"
    with pytest.raises(DataError, match=message):
        NumericEncoder("raw", 0.0, 1.0, 0.0).encode(pa.array([1.0, -4e38]), "x")
    with pytest.raises(DataError, match=r"1e\+39 at row 1, beyond"):
        NumericListEncoder("raw", 0.0, 2, None).encode(pa.array([[1.0, 2.0], [3.0, 1e39]]), "x")
    assert NumericEncoder("log", 0.0, 1.0, 0.0).encode(pa.array([1e300]), "x")[0] == pytest.approx(690.78, abs=0.01)


# ---- dense -------------------------------------------------------------------------------------------------------


def test_numeric() -> None:
    values = pa.array([-3.0, None, 0.0, math.e - 1])
    raw = NumericEncoder("raw", 0.0, 1.0, 5.0).encode(values, "x")
    assert raw.dtype == np.float32
    np.testing.assert_allclose(raw, [-3, 5, 0, math.e - 1], rtol=1e-7)
    log = NumericEncoder("log", 0.0, 1.0, 0.0).encode(values, "x")
    np.testing.assert_allclose(log, [-math.log(4), 0, 0, 1], rtol=1e-7)
    scaled = NumericEncoder("standard", 2.0, 4.0, -2.0).encode(values, "x")
    np.testing.assert_allclose(scaled, [-1.25, -1, -0.5, (math.e - 3) / 4], rtol=1e-6)


# ---- buckets -----------------------------------------------------------------------------------------------------


def test_buckets_own_their_lower_edge() -> None:
    encoder = BucketizedEncoder((0.0, 10.0, 20.5))
    ids = encoder.encode(pa.array([-1e300, -0.1, 0.0, 9.99, 10.0, 20.5, 1e300, None]), "x")
    assert ids.tolist() == [2, 2, 3, 3, 4, 5, 5, 0]
    assert ids.dtype == np.int32
    assert encoder.rows == 6


def test_log_square_by_hand() -> None:
    # floor(ln(v)^2) for v > 2, else v - 2 rounded down: ln(3)^2 = 1.2, ln(100)^2 = 21.2, ln(1e308)^2 = 502959
    values = np.array([2.0, 2.0001, 3, 8, 100, 1e308, 1, 0, -1, -1.5, 1.5])
    assert compute_log_square(values).tolist() == [0, 0, 1, 4, 21, 502959, -1, -2, -3, -4, -1]


@quick
@given(st.lists(st.floats(-1e15, 1e15), min_size=1, max_size=20))
def test_log_square_is_the_formula(values: list[float]) -> None:
    expected = [float(math.floor(math.log(v) ** 2)) if v > 2 else float(math.floor(v - 2)) for v in values]
    assert compute_log_square(np.array(values)).tolist() == expected


def test_log_square_ids_stay_inside_the_table() -> None:
    encoder = LogSquareEncoder(-3, 21)
    ids = encoder.encode(pa.array([-1e12, -1, 0, 2, 100, 1e300, None]), "x")
    assert ids.tolist() == [2, 2, 3, 5, 26, 26, 0]
    assert encoder.rows == 27


# ---- ids ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "convert", [lambda a: a, lambda a: a.dictionary_encode(), lambda a: pa.chunked_array([a[:2], a[2:]])]
)
def test_ids_of_missing_unseen_and_seen_values(convert: object) -> None:
    assert callable(convert)
    encoder = IdEncoder(Keys(pa.array(["b", "a"])))
    ids = encoder.encode(convert(pa.array(["a", "b", "c", None, ""])), "x")
    assert ids.tolist() == [3, 2, 1, 0, 1]
    assert ids.dtype == np.int32
    assert encoder.rows == 4
    numeric = IdEncoder(Keys(pa.array([2**53 + 1, 2**53])))
    assert numeric.encode(convert(pa.array([2**53, None, 2**53 + 1, 2**53 + 2, 0])), "x").tolist() == [3, 0, 2, 1, 1]


def test_a_null_inside_a_dictionary_is_missing() -> None:
    array = pa.DictionaryArray.from_arrays(pa.array([0, 1, None]), pa.array(["a", None]))
    assert IdEncoder(Keys(pa.array(["a"]))).encode(array, "x").tolist() == [2, 0, 0]
    assert HashEncoder(10, 1).encode(array, "x").tolist()[1:] == [0, 0]


# ---- hash --------------------------------------------------------------------------------------------------------

# splitmix64 of n is the first output of its reference implementation seeded with n; text is 8 bytes of BLAKE2b.
HASHES = {
    0: 0xE220A8397B1DCDAF,
    1: 0x910A2DEC89025CC1,
    1234567: 0x599ED017FB08FC85,
    -1: 0xE4D971771B652C20,
    "": 13020603013274838756,
    "a": 3405396810240292928,
    "é": 3394012004367669963,
}


def test_the_hash_never_changes() -> None:
    for value, expected in HASHES.items():
        assert int(hash_keys(pa.array([value]))[0]) == expected


def test_the_hash_is_the_same_in_another_process() -> None:
    code = (
        "import pyarrow as pa; from longrec.features.feature_encoders import HashEncoder; "
        "e = HashEncoder(1000, 3); print(e.encode(pa.array(['a', 'é', None]), 'x').tolist(), "
        "e.encode(pa.array([0, 1, None, -1]), 'x').tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[930, 965, 0] [537, 467, 0, 938]"


def test_hash_ids() -> None:
    encoder = HashEncoder(7, 3)
    ids = encoder.encode(pa.array([0, 1, None, 2**53, 2**53 + 1]), "x")
    assert ids[:2].tolist() == [HASHES[0] % 7 + 2, HASHES[1] % 7 + 2]
    assert ids[2] == 0
    assert encoder.rows == 9
    assert HashEncoder(7, 3).encode(pa.array([], pa.string()), "x").tolist() == []
    assert HashEncoder(7, 3).encode(pa.nulls(2), "x").tolist() == [0, 0]


def test_the_collision_estimate() -> None:
    assert HashEncoder(10, 0).collisions() == 0
    assert HashEncoder(10, 1).collisions() == 0
    assert HashEncoder(10, 2).collisions() == pytest.approx(0.1)
    encoder, values = HashEncoder(1_000, 500), pa.array(np.arange(500) * 7919)
    ids = encoder.encode(values, "x")
    shared = np.bincount(ids)[ids] > 1
    assert shared.mean() == pytest.approx(encoder.collisions(), abs=0.06)


# ---- time --------------------------------------------------------------------------------------------------------


@quick
@given(
    st.datetimes(datetime(1901, 1, 1), datetime(2199, 12, 31)),
    st.sampled_from([-14.0, -3.5, 0.0, 5.5, 5.75, 14.0]),
)
def test_components_of_a_timestamp_before_and_after_1970(timestamp: datetime, offset: float) -> None:
    timestamp = timestamp.replace(tzinfo=UTC, microsecond=timestamp.microsecond // 1000 * 1000)
    ms = np.array([round((timestamp - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(milliseconds=1))], np.int64)
    local = timestamp + timedelta(hours=offset)
    expected = {"hour": local.hour, "weekday": local.weekday(), "hour_of_week": local.weekday() * 24 + local.hour}
    for component, value in expected.items():
        encoder = CalendarEncoder(component, offset)  # type: ignore[arg-type]
        assert encoder.encode_times(ms).tolist() == [value + 2]
        assert value + 2 < encoder.rows


def test_times_by_hand() -> None:
    times = np.array([0, -1, 3_600_000], np.int64)  # Thursday midnight, the millisecond before, one hour later
    assert CalendarEncoder("hour", 0.0).encode_times(times).tolist() == [2, 25, 3]
    assert CalendarEncoder("weekday", 0.0).encode_times(times).tolist() == [5, 4, 5]
    assert CalendarEncoder("hour", -1.0).encode_times(times).tolist() == [25, 24, 2]
    assert CalendarEncoder("hour_of_week", 0.0).rows == 170


# ---- lists -------------------------------------------------------------------------------------------------------

LISTS = [[1, 2], None, [], [3, None], [4]]


@pytest.mark.parametrize(
    "array",
    [
        pa.array(LISTS),
        pa.array(LISTS, pa.large_list(pa.int32())),
        pa.array([[9], *LISTS])[1:],
        pa.array([*LISTS, [9]])[:-1],
    ],
)
def test_lists_lie_end_to_end(array: pa.Array) -> None:
    values, offsets = flatten(array, None, "x")
    assert values.to_pylist() == [1, 2, 3, None, 4]
    assert offsets.tolist() == [0, 2, 2, 2, 4, 5]
    assert offsets.dtype == np.int64


def test_lists_of_one_length() -> None:
    values, offsets = flatten(pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int64(), 2)), None, "x")
    assert (values.to_pylist(), offsets.tolist()) == ([1, 2, 3, 4], [0, 2, 2, 4])


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_separated_text(kind: pa.DataType) -> None:
    values, offsets = flatten(pa.array(["a||b", None, "", "|c|", "d"], kind), "|", "x")
    assert (values.to_pylist(), offsets.tolist()) == (["a", "b", "c", "d"], [0, 2, 2, 2, 3, 4])
    values, offsets = flatten(pa.array(["a, b", "c"]).dictionary_encode(), ", ", "x")
    assert (values.to_pylist(), offsets.tolist()) == (["a", "b", "c"], [0, 2, 3])


def test_a_column_of_nulls_is_empty_lists() -> None:
    values, offsets = flatten(pa.nulls(2), None, "x")
    assert (len(values), offsets.tolist()) == (0, [0, 0, 0])


def test_what_is_no_list() -> None:
    with pytest.raises(DataError, match=r"^x: text; expected a list column\n  Or name the separator"):
        flatten(pa.array(["a|b"]), None, "x")
    with pytest.raises(DataError, match=r"^x: values of type int64; expected a list column, or text with a separator"):
        flatten(pa.array([1]), "|", "x")


# ---- state -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "encoder",
    [
        NumericEncoder("standard", 1.5, 2.5, -1.0),
        BucketizedEncoder((1.0, 2.5)),
        LogSquareEncoder(-3, 9),
        CalendarEncoder("weekday", 5.5),
        HashEncoder(100, 42),
    ],
)
def test_an_encoder_survives_its_state(encoder: feature_encoders.Encoder) -> None:
    assert load_encoder(dump_encoder(encoder), None) == encoder


def test_an_encoder_is_stored_under_the_names_of_earlier_versions() -> None:
    state = {"kind": "time", "part": "weekday", "utc_offset": 5.5}
    assert dump_encoder(CalendarEncoder("weekday", 5.5)) == state
    assert load_encoder(state, None) == CalendarEncoder("weekday", 5.5)
    kinds = [NumericEncoder("raw", 0.0, 1.0, 0.0), BucketizedEncoder((1.0,)), HashEncoder(2, 1)]
    assert [dump_encoder(encoder)["kind"] for encoder in kinds] == ["dense", "bucket", "hash"]
