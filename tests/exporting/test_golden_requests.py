from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.errors import DataError
from longrec.exporting.golden import build_request
from longrec.exporting.offline import build_golden_request
from longrec.features.decode import decode_value, decode_values
from longrec.features.feature_encoders import (
    BucketizedEncoder,
    Encoder,
    HashEncoder,
    IdEncoder,
    LogSquareEncoder,
    NumericEncoder,
)
from longrec.features.raw_columns import (
    build_raw_column,
    encode_context,
    encode_list,
    format_request_time,
    list_context_columns,
    list_row_features,
)
from longrec.features.timestamp_grammar import format_timestamp
from longrec.features.vocabulary import Keys

ENCODERS: list[Encoder] = [
    IdEncoder(Keys(pa.array([5, -1, 9]))),
    IdEncoder(Keys(pa.array(["a", "unseen-0"]))),
    BucketizedEncoder((0.5,)),
    BucketizedEncoder((-3.0, 0.0, 1e9)),
    LogSquareEncoder(-4, 60),
    LogSquareEncoder(0, 3),
]


@pytest.mark.parametrize("encoder", ENCODERS, ids=lambda encoder: encoder.kind)
def test_a_raw_value_encodes_to_the_id_it_stands_for(encoder: Encoder) -> None:
    ids = [0, *range(1 if isinstance(encoder, IdEncoder) else 2, encoder.rows)]
    raw = decode_values(encoder, np.array(ids))
    assert encoder.encode(build_raw_column(raw, "x"), "x").tolist() == ids


@settings(deadline=None, max_examples=25)
@given(value=st.floats(-1e4, 1e4, width=32), scale=st.sampled_from(["raw", "log", "standard"]))
def test_a_number_comes_back_as_it_was(value: float, scale: Any) -> None:
    encoder = NumericEncoder(scale, 3.5, 2.0, 0.0)
    encoded = encoder.encode(pa.array([value]), "x")[0]
    again = encoder.encode(build_raw_column([decode_value(encoder, encoded)], "x"), "x")[0]
    assert again == pytest.approx(encoded, rel=1e-6)


def test_a_hash_cannot_be_turned_back() -> None:
    assert decode_values(HashEncoder(10, 3), np.array([0, 4, 11])) == [None, None, None]


def test_an_impression_becomes_a_request_that_any_client_may_send(full: Any) -> None:
    sample = full.sample(17, np.array([3, 1]))
    request = build_request(full.fitted, full.users, full.items, sample)
    assert request["user"] == full.users.key(sample.user)
    assert request["candidates"] == [full.items.key(3), full.items.key(1)]
    assert request["at"] == format_timestamp(int(full.segment.times[17]))
    assert list(request["context"]) == list(list_context_columns(full.fitted))
    assert "rating" not in request["context"]
    assert "at" not in request["context"]
    encoded = encode_context(full.fitted, request["context"], list_row_features(full.fitted, "context"))
    assert encoded["device"][0] == sample.events["device"]
    assert encoded["shown"][0] == pytest.approx(sample.events["shown"], rel=1e-6)
    assert encoded["campaign"][0] == 0
    assert encoded["tags"].values.tolist() == sample.events["tags"].values.tolist()


def test_offline_scores_do_not_depend_on_who_else_is_scored(full: Any) -> None:
    together = build_golden_request(full.model, full.fitted, full.users, full.items, full.sample(30, np.arange(1, 8)))
    alone = build_golden_request(full.model, full.fitted, full.users, full.items, full.sample(30, np.array([5])))
    assert together.scores[4] == pytest.approx(alone.scores[0], abs=1e-6)


def test_times_are_named_as_the_log_counts_them(full: Any, steps: Any, prejoined: Any) -> None:
    assert format_request_time(full.fitted, 1_600_000_000_001) == "2020-09-13T12:26:40.001Z"
    assert format_request_time(steps.fitted, 41) == 41
    assert format_request_time(prejoined.fitted, 0) is None
    assert format_timestamp(-1) == "1969-12-31T23:59:59.999Z"


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, None], pa.int64()),
        (["a"], pa.string()),
        ([1.5, None], pa.float64()),
        ([True], pa.bool_()),
        ([None], pa.null()),
        ([], pa.null()),
        ([["a"], None], pa.list_(pa.string())),
    ],
)
def test_raw_values_become_the_column_arrow_would_guess(values: list[Any], kind: pa.DataType) -> None:
    assert build_raw_column(values, "x").type == kind


def test_values_of_several_types_are_refused() -> None:
    with pytest.raises(DataError, match="x: values of the types"):
        build_raw_column([1, "a"], "x")
    with pytest.raises(DataError, match="x: an integer of more than 64 bits"):
        build_raw_column([2**70], "x")


def test_lists_of_a_request_are_encoded_as_the_column_is(prejoined: Any) -> None:
    keys = prejoined.fitted.encoders["item_id"].keys.values.to_pylist()
    assert encode_list(prejoined.fitted, "item_id", [keys[0], None, 10**6], "x").tolist() == [2, 0, 1]
    assert encode_list(prejoined.fitted, "color", [], "x").dtype == np.int32
