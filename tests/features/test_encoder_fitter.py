"""Encoders fitted on the training window, and on nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.errors import DataError
from longrec.features import encoder_fitter as fit_module
from longrec.features.encoder_fitter import EncoderFitter
from longrec.features.feature_encoders import (
    BucketizedEncoder,
    CalendarEncoder,
    HashEncoder,
    IdEncoder,
    LogSquareEncoder,
    NumericEncoder,
)
from longrec.features.schema import Feature

quick = settings(deadline=None, max_examples=25)


def fit(feature: dict[str, Any], *chunks: tuple[list[Any], list[int]], kind: pa.DataType | None = None) -> Any:
    fitter = EncoderFitter("x", Feature.model_validate(feature))
    for values, counts in chunks:
        fitter.add(pa.array(values, kind), np.array(counts, np.int64), "x")
    return fitter.finish()


@pytest.mark.parametrize("scale", ["minmax", "standard"])
def test_a_spread_beyond_numbers_is_refused(scale: str) -> None:
    values = [-1e308, 1e308, 1.0]
    with pytest.raises(DataError, match=r"feature 'x': numbers from -1e\+308 to 1e\+308, whose spread is beyond"):
        fit({"kind": "numeric", "scale": scale}, (values, [1, 1, 1]))


# ---- ids ---------------------------------------------------------------------------------------------------------


def test_a_learned_vocabulary_is_sorted_and_counts_training_events_only() -> None:
    encoder = fit({"kind": "id"}, ([7, 3, None, 3, 9], [1, 1, 1, 1, 0]), ([5, 9], [1, 0]))
    assert isinstance(encoder, IdEncoder)
    assert encoder.keys.values.to_pylist() == [3, 5, 7]


def test_a_minimum_count_counts_across_chunks_and_by_weight() -> None:
    encoder = fit({"kind": "id", "min_count": 3}, (["a", "b", "c"], [2, 3, 2]), (["a", "c", "c"], [1, 0, 0]))
    assert encoder.keys.values.to_pylist() == ["a", "b"]
    assert encoder.encode(pa.array(["a", "c", None, "z"]), "x").tolist() == [2, 1, 0, 1]


@quick
@given(st.lists(st.tuples(st.one_of(st.none(), st.integers(0, 6)), st.integers(0, 3)), max_size=60), st.integers(1, 4))
def test_a_vocabulary_of_many_chunks_equals_counting(events: list[tuple[int | None, int]], least: int) -> None:
    counts: dict[int, int] = {}
    for value, n in events:
        if value is not None and n:
            counts[value] = counts.get(value, 0) + n
    chunks = [([value], [n]) for value, n in events]  # one a chunk: merged several times on the way
    encoder = fit({"kind": "id", "min_count": least}, *chunks, kind=pa.int64())
    assert encoder.keys.values.to_pylist() == sorted(value for value, n in counts.items() if n >= least)


def test_nothing_seen_is_an_empty_vocabulary() -> None:
    for encoder in (fit({"kind": "id"}), fit({"kind": "id"}, (["a"], [0]), kind=pa.string())):
        assert encoder.rows == 2
        assert encoder.encode(pa.array([4, None]), "x").tolist() == [1, 0]


def test_hashing_counts_distinct_training_values() -> None:
    encoder = fit({"kind": "id", "hash": 50}, ([1, 2, 2, 3, None], [1, 1, 1, 0, 1]))
    assert encoder == HashEncoder(50, 2, numeric=True)


def test_hashing_keeps_whole_numbers_and_text_apart() -> None:
    numbers, texts = fit({"kind": "id", "hash": 50}, ([1, 2], [1, 1])), HashEncoder(50, 2, numeric=False)
    with pytest.raises(DataError, match=r"x: text, for example '1'; expected integers, as in the log"):
        numbers.encode(pa.array(["1"]), "x")
    with pytest.raises(DataError, match=r"x: integers, for example 1; expected text, as in the log"):
        texts.encode(pa.array([None, 1]), "x")
    assert texts.encode(pa.nulls(2), "x").tolist() == [0, 0]


# ---- configured vocabularies ----


def test_a_configured_vocabulary_keeps_its_order_and_reads_no_data() -> None:
    feature = Feature.model_validate({"kind": "id", "vocab": ["b", "a"]})
    assert not EncoderFitter("x", feature).needs_data()
    assert EncoderFitter("x", feature).finish().encode(pa.array(["a", "b", "c", None]), "x").tolist() == [3, 2, 1, 0]


def test_a_vocabulary_from_a_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [9, 4, None], "other": [1, 2, 3]}), tmp_path / "v.parquet")
    (tmp_path / "v.csv").write_text("id,other\n9,1\n4,2\n")
    (tmp_path / "v.txt").write_text("é\n\nb c\n", encoding="utf-8")
    for name, expected in (("v.parquet", [9, 4]), ("v.csv", [9, 4]), ("v.txt", ["é", "b c"])):
        encoder = fit({"kind": "id", "vocab": str(tmp_path / name)})
        assert encoder.keys.values.to_pylist() == expected


def test_a_vocabulary_that_cannot_be_used(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1.0, 2.5]}), tmp_path / "floats.parquet")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    for vocab, says in (
        (
            ["a", "b", "a"],
            r"^vocabulary of feature 'x': 1 values written twice, the first 'a'; expected distinct values",
        ),
        ([1, "a"], r"^vocabulary of feature 'x': values of the types int, str; expected one type"),
        ([2**70], r"^vocabulary of feature 'x': an integer of more than 64 bits"),
        (str(tmp_path / "gone.txt"), r"gone\.txt: no such file; expected a Parquet, CSV or text file"),
        (str(tmp_path / "floats.parquet"), r"^vocabulary of feature 'x'.*: ids stored as floats"),
        (str(tmp_path / "cut.parquet"), r"cut\.parquet: cannot be read: .*; expected a Parquet, CSV or text file"),
        (str(tmp_path / "empty.csv"), r"empty\.csv: cannot be read"),
        (str(tmp_path / "latin.txt"), r"latin\.txt: cannot be read"),
    ):
        with pytest.raises(DataError, match=says):
            fit({"kind": "id", "vocab": vocab})


# ---- numbers -----------------------------------------------------------------------------------------------------


def test_raw_and_log_learn_nothing() -> None:
    assert not EncoderFitter("x", Feature.model_validate({"kind": "numeric", "scale": "log"})).needs_data()
    assert fit({"kind": "numeric", "missing": 3}) == NumericEncoder("raw", 0.0, 1.0, 3.0)


def test_minmax() -> None:
    encoder = fit({"kind": "numeric", "scale": "minmax"}, ([3, None, 100], [2, 1, 0]), ([7, 5], [1, 9]))
    assert (encoder.shift, encoder.spread) == (3, 4)
    assert encoder.encode(pa.array([3, 5, 7, 11]), "x").tolist() == [0, 0.5, 1, 2]


def test_standard() -> None:
    encoder = fit({"kind": "numeric", "scale": "standard"}, ([2, 100, None], [2, 0, 1]), ([5], [1]))
    assert encoder.shift == pytest.approx(3)
    assert encoder.spread == pytest.approx(2**0.5)


@pytest.mark.parametrize("scale", ["minmax", "standard"])
def test_a_constant_is_not_divided_by_zero(scale: str) -> None:
    encoder = fit({"kind": "numeric", "scale": scale}, ([0.1] * 7, [1] * 7))
    assert encoder.encode(pa.array([0.1]), "x")[0] == pytest.approx(0, abs=1e-6)
    assert fit({"kind": "numeric", "scale": scale}, ([1.0], [0])) == NumericEncoder(scale, 0.0, 1.0, 0.0)  # type: ignore[arg-type]


@quick
@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.integers(0, 3)), min_size=1), st.sampled_from([0.0, 1.6e12]))
def test_standard_equals_numpy_however_far_from_zero(events: list[tuple[float, int]], far: float) -> None:
    repeated = np.repeat([far + value for value, _ in events], [n for _, n in events])
    encoder = fit({"kind": "numeric", "scale": "standard"}, *(([far + value], [n]) for value, n in events))
    near = repeated - far  # exact, and numpy's own sums are not at 1.6e12
    if len(near) and np.ptp(near) > 1e-3:
        assert encoder.shift == pytest.approx(far + near.mean(), rel=1e-12, abs=1e-9)
        assert encoder.spread == pytest.approx(near.std(), rel=1e-6)


def test_quantiles_by_hand() -> None:
    encoder = fit({"kind": "bucketized", "quantiles": 4}, (list(range(8)), [1] * 8), ([1000, None], [0, 1]))
    assert encoder == BucketizedEncoder((2.0, 4.0, 6.0))
    assert np.bincount(encoder.encode(pa.array(list(range(8))), "x"))[2:].tolist() == [2, 2, 2, 2]


def test_quantiles_weigh_events_and_merge_equal_edges() -> None:
    assert fit({"kind": "bucketized", "quantiles": 2}, ([1, 2, 3], [1, 1, 8])) == BucketizedEncoder((3.0,))
    assert fit({"kind": "bucketized", "quantiles": 5}, ([4, 4, 4], [1, 1, 1])) == BucketizedEncoder((4.0,))


def test_quantiles_of_more_values_than_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_module, "_SAMPLE", 1_000)
    values = np.random.default_rng(0).permutation(20_000)
    encoder = fit({"kind": "bucketized", "quantiles": 4}, (values.tolist(), [1] * 20_000))
    assert np.allclose(encoder.edges, [5_000, 10_000, 15_000], atol=1_000)


def test_log_square_spans_the_training_window() -> None:
    encoder = fit({"kind": "bucketized", "log_square": True}, ([0, 100, None], [1, 1, 1]), ([-5, 10**6], [0, 0]))
    assert encoder == LogSquareEncoder(-2, 21)


def test_log_square_is_for_counts() -> None:
    with pytest.raises(DataError, match=r"^feature 'x': values down to -1e\+09; expected counts.*\n  Use quantiles"):
        fit({"kind": "bucketized", "log_square": True}, ([-1e9, 5], [1, 1]))


@pytest.mark.parametrize(
    "feature", [{"kind": "bucketized", "quantiles": 3}, {"kind": "bucketized", "log_square": True}]
)
def test_buckets_need_a_number_to_learn_from(feature: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"^feature 'x': no value in the training window; expected at least one number"):
        fit(feature, ([None, 4.0], [1, 0]))


def test_a_calendar_component_needs_no_data() -> None:
    encoder = fit({"kind": "calendar", "component": "weekday", "utc_offset": 2})
    assert encoder == CalendarEncoder("weekday", 2.0)
