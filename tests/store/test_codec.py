"""Tests of codecs: round trips within the documented error, and refusal of unsupported vectors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from longrec.errors import StoreError
from longrec.store.codec import Codec, Float16Codec, Float32Codec, Int8Codec, ResidualCodec, widen_float16

few = settings(deadline=None, max_examples=25)


def vectors(largest: float) -> st.SearchStrategy[NDArray[np.float32]]:
    shapes = st.tuples(st.integers(0, 6), st.just(8))
    numbers = st.floats(-largest, largest, width=32, allow_subnormal=True)
    return arrays.arrays(np.float32, shapes, elements=numbers)


def round_trip(codec: Codec, values: NDArray[np.float32]) -> NDArray[np.float32]:
    versions = np.zeros(len(values), np.int64)
    columns = codec.encode(values, versions)
    assert {name: (column.dtype, column.shape[1:]) for name, column in columns.items()} == {
        name: (dtype.base, dtype.shape) for name, dtype in codec.types.items()
    }
    back = codec.decode(columns, versions)
    assert (back.dtype, back.shape) == (np.float32, values.shape)
    return back


@few
@given(values=vectors(2.0**100))
def test_fp32_keeps_every_bit(values: NDArray[np.float32]) -> None:
    assert round_trip(Float32Codec(8), values).tobytes() == values.tobytes()


@few
@given(values=vectors(65_504.0))
def test_fp16_keeps_eleven_bits(values: NDArray[np.float32]) -> None:
    bound = np.where(np.abs(values) < 2.0**-14, 2.0**-25, np.abs(values.astype(np.float64)) * 2.0**-11)
    assert (np.abs(round_trip(Float16Codec(8), values).astype(np.float64) - values) <= bound).all()


@few
@given(values=vectors(2.0**100))
def test_int8_keeps_half_a_step(values: NDArray[np.float32]) -> None:
    largest = np.abs(values.astype(np.float64)).max(1, initial=0, keepdims=True)
    bound = np.where(largest > 2.0**-100, largest * (0.5 / 127 + 2.0**-20), largest)
    assert (np.abs(round_trip(Int8Codec(8), values).astype(np.float64) - values) <= bound).all()


@pytest.mark.parametrize("codec", [Float32Codec(8), Float16Codec(8), Int8Codec(8)])
def test_float16_is_taken_as_it_is(codec: Codec) -> None:
    halves = np.random.default_rng(0).standard_normal((9, 8)).astype(np.float16)
    assert np.array_equal(round_trip(codec, halves), round_trip(codec, halves.astype(np.float32)))
    halves[2, 3] = np.inf
    with pytest.raises(StoreError, match="NaN or infinity in row 2"):
        codec.encode(halves, np.zeros(9, np.int64))


def test_float16_is_widened_bit_for_bit() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    for halves in (finite, finite.reshape(-1, 2)[::3], finite[:0]):
        assert widen_float16(halves).tobytes() == halves.astype(np.float32).tobytes()
    many = np.tile(finite, 3)  # more than one chunk
    assert widen_float16(many).tobytes() == many.astype(np.float32).tobytes()


@pytest.mark.parametrize("codec", [Float32Codec(8), Float16Codec(8), Int8Codec(8)])
def test_what_cannot_be_kept_is_refused(codec: Codec) -> None:
    none = np.zeros(2, np.int64)
    for bad in (np.nan, np.inf, -np.inf, 1e300):
        values = np.zeros((2, 8))
        values[1, 3] = bad
        with pytest.raises(StoreError, match="NaN or infinity in row 1"):
            codec.encode(values, none)
    for values in (np.zeros((2, 7), np.float32), np.zeros(8, np.float32), np.zeros((2, 8), np.int64)):
        with pytest.raises(StoreError, match=r"expected float32 \[n, 8\]"):
            codec.encode(values, none)


def test_fp16_refuses_what_it_would_make_infinite() -> None:
    fits = np.array([[65_504.0, 65_519.0]], np.float32)
    assert np.isfinite(round_trip(Float16Codec(2), fits)).all()
    with pytest.raises(StoreError, match="the number 65520; expected at most 65504 in fp16"):
        Float16Codec(2).encode(np.array([[1.0, 65_520.0]], np.float32), np.zeros(1, np.int64))


def test_int8_by_hand() -> None:
    codec = Int8Codec(3)
    columns = codec.encode(np.array([[1.0, -2.54, 0.03], [0, 0, 0]], np.float32), np.zeros(2, np.int64))
    assert columns["vector"].tolist() == [[50, -127, 2], [0, 0, 0]]  # 0.03 / 0.02 is 1.5, and rounds to even
    assert columns["scale"].tolist() == pytest.approx([0.02, 0])


def books(random: np.random.Generator, versions: int = 2) -> dict[int, NDArray[np.float32]]:
    """Return codebooks of 2 slots, 3 levels and 16 codewords of 4 numbers, with a smaller scale per level."""
    scale = np.array([1.0, 0.3, 0.1])[None, :, None, None]
    return {n: (random.standard_normal((2, 3, 16, 4)) * scale).astype(np.float32) for n in range(versions)}


def test_codes_decode_with_the_codebook_of_their_version() -> None:
    random = np.random.default_rng(0)
    codebooks = books(random)
    codec = ResidualCodec(8, 2, 3, codebooks)
    codes, versions = random.integers(0, 16, (50, 6)).astype(np.uint8), random.integers(0, 2, 50)
    columns = codec.encode(codes, versions)
    assert np.array_equal(columns["codes"], codes)
    back = codec.decode(columns, versions)
    for row in range(50):
        own, code = codebooks[int(versions[row])], codes[row].reshape(2, 3)
        slow = [sum(own[slot, level, code[slot, level]].astype(np.float64) for level in range(3)) for slot in range(2)]
        assert np.allclose(back[row], np.concatenate(slow), atol=1e-5)
    assert codec.decode(codec.encode(codes[:0], versions[:0]), versions[:0]).shape == (0, 8)


def test_codes_are_the_nearest_codewords_per_level() -> None:
    random = np.random.default_rng(1)
    codebooks = books(random)
    codec = ResidualCodec(8, 2, 3, codebooks)
    values, versions = random.standard_normal((40, 8)).astype(np.float32), random.integers(0, 2, 40)
    codes = codec.encode(values, versions)["codes"].reshape(40, 2, 3)
    for row in range(40):
        for slot in range(2):
            rest = values[row, 4 * slot : 4 * slot + 4].astype(np.float64)
            for level in range(3):
                codewords = codebooks[int(versions[row])][slot, level].astype(np.float64)
                distance = np.square(rest - codewords).sum(1)
                assert distance[codes[row, slot, level]] <= distance.min() + 1e-5
                rest = rest - codewords[codes[row, slot, level]]
    # Further levels only reduce the error of the first codeword.
    off = np.square(codec.decode({"codes": codes.reshape(40, 6)}, versions) - values).sum(1)
    first = np.stack([
        np.concatenate([codebooks[int(v)][s, 0, codes[row, s, 0]] for s in range(2)]) for row, v in enumerate(versions)
    ])  # fmt: skip
    assert off.mean() < np.square(first - values).sum(1).mean()


def test_invalid_codes_are_refused() -> None:
    codec = ResidualCodec(8, 2, 3, books(np.random.default_rng(2)))
    with pytest.raises(StoreError, match="code 16; expected codes below 16"):
        codec.encode(np.full((1, 6), 16, np.uint8), np.zeros(1, np.int64))
    with pytest.raises(StoreError, match=r"codes of shape \[1, 5\]; expected \[n, 6\]"):
        codec.encode(np.zeros((1, 5), np.uint8), np.zeros(1, np.int64))
    with pytest.raises(StoreError, match="NaN or infinity"):
        codec.encode(np.full((1, 8), np.nan, np.float32), np.zeros(1, np.int64))
