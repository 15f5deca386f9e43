"""Encoders of raw values to ids and numbers: fitted once on the training window, the same code offline and online.

Ids: 0 = missing, 1 = unseen (not in the vocabulary, or too rare), 2 and above = values of the vocabulary.
A feedback column has one more id, its last: "not yet available".
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from longrec.errors import DataError, quote
from longrec.features.float32 import to_float32
from longrec.features.vocabulary import Keys, cast_keys, hash_keys

MISSING, UNSEEN, FIRST = 0, 1, 2


def cast_numbers(array: pa.Array | pa.ChunkedArray, where: str) -> NDArray[np.float64]:
    """Cast a numeric column to float64, null to NaN.

    Raises:
        DataError: if values are text (the error has the first value that is not a number) or infinite.
    """
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks() if array.num_chunks != 1 else array.chunk(0)
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        raise DataError(
            where,
            f"text, for example {quote(_find_example(array))}",
            "numbers",
            "clean the column, or declare it kind id",
        )
    if not (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_null(kind)
    ):
        raise DataError(where, f"values of type {kind}", "numbers")
    values: NDArray[np.float64] = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    if np.isinf(values).any():
        raise DataError(
            where, f"an infinite value at row {int(np.flatnonzero(np.isinf(values))[0])}", "finite numbers or null"
        )
    return values


def _find_example(array: pa.Array) -> Any:
    for value in array.drop_null()[:10_000].to_pylist():
        try:
            float(value)
        except ValueError:
            return value
    return next(iter(array.drop_null()[:1].to_pylist()), "")


@dataclass(frozen=True)
class NumericEncoder:
    """Encoder of one number: ``(transform(v) - shift) / spread``. Null becomes ``missing`` before scaling.

    ``log`` is sign(v) * ln(1 + |v|).
    """

    kind: ClassVar[str] = "dense"
    scale: Literal["raw", "log", "minmax", "standard"]
    shift: float
    spread: float
    missing: float
    rows: int = 0

    def encode(self, array: pa.Array, where: str) -> NDArray[np.float32]:
        """Encode a column to float32 ``[n]``."""
        return to_float32(self.transform(np.nan_to_num(cast_numbers(array, where), nan=self.missing)), where)

    def transform(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return scaled numbers."""
        if self.scale == "log":
            values = np.sign(values) * np.log1p(np.abs(values))
        with np.errstate(over="ignore"):  # to_float32 refuses infinite numbers
            return (values - self.shift) / self.spread


@dataclass(frozen=True)
class NumericListEncoder:
    """Encoder of a fixed count of numbers per row: a list column, or text split at ``separator``.

    A null row is all ``missing``, and so is a null or empty position of a row.
    """

    kind: ClassVar[str] = "numbers"
    scale: Literal["raw", "log"]
    missing: float
    width: int
    separator: str | None
    rows: int = 0

    def encode(self, array: pa.Array, where: str) -> NDArray[np.float32]:
        """Encode a column to float32 ``[n, width]``.

        Raises:
            DataError: if a row has another count of numbers, or text is not a number.
        """
        if pa.types.is_dictionary(array.type):
            array = array.cast(array.type.value_type)
        flat, offsets = flatten(array, self.separator, where, empty=True)
        lengths = np.diff(offsets)
        none = _mask_nulls(array)
        if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
            none = pc.fill_null(pc.equal(array, ""), True).to_numpy(zero_copy_only=False)
        odd = np.flatnonzero((lengths != self.width) & ~none)
        if len(odd):
            row = int(odd[0])
            row_numbers = f"{lengths[row]} numbers in row {row}: {str(array[row].as_py())[:80]}"
            raise DataError(
                where, row_numbers, f"{self.width} in every row, as width says", "correct the row, or width"
            )
        values = np.full((len(array), self.width), self.missing)
        values[~none] = np.nan_to_num(parse_numbers(flat, where)[np.repeat(~none, lengths)], nan=self.missing).reshape(
            -1, self.width
        )
        return to_float32(NumericEncoder(self.scale, 0.0, 1.0, self.missing).transform(values), where)


def parse_numbers(array: pa.Array, where: str) -> NDArray[np.float64]:
    """Parse numbers, or text of numbers, as float64. Null and empty text become NaN.

    Raises:
        DataError: if text is not a number. The error has the first example.
    """
    if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
        return cast_numbers(array, where)
    text = pc.utf8_trim_whitespace(array)
    text = pc.if_else(pc.equal(text, ""), pa.scalar(None, text.type), text)
    try:
        return cast_numbers(text.cast(pa.float64()), where)
    except pa.ArrowInvalid:
        raise DataError(where, f"text, for example {quote(_find_example(text))}", "numbers") from None


@dataclass(frozen=True)
class BucketizedEncoder:
    """Encoder of a number to a bucket between ascending edges: bucket k is ``edges[k - 1] <= v < edges[k]``."""

    kind: ClassVar[str] = "bucket"
    edges: tuple[float, ...]

    @property
    def rows(self) -> int:
        """Number of rows of the embedding table."""
        return FIRST + len(self.edges) + 1

    def encode(self, array: pa.Array, where: str) -> NDArray[np.int32]:
        """Encode a column to int32 ids ``[n]``."""
        values = cast_numbers(array, where)
        ids = np.searchsorted(np.asarray(self.edges), values, side="right") + FIRST
        return np.where(np.isnan(values), MISSING, ids).astype(np.int32)


def compute_log_square(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the discretization of the Criteo contest: floor(ln(v)^2) for v > 2, else v - 2 (rounded down).

    >>> compute_log_square(np.array([100.0, 2.0, 0.0])).tolist()
    [21.0, 0.0, -2.0]
    """
    large = values > 2
    logs = np.log(np.where(large, values, 3.0))
    return np.where(large, np.floor(logs * logs), np.floor(values - 2))


@dataclass(frozen=True)
class LogSquareEncoder:
    """Encoder of a count to a bucket of ``compute_log_square``. Values outside the training range go to the ends."""

    kind: ClassVar[str] = "log_square"
    low: int
    high: int

    @property
    def rows(self) -> int:
        """Number of rows of the embedding table."""
        return FIRST + self.high - self.low + 1

    def encode(self, array: pa.Array, where: str) -> NDArray[np.int32]:
        """Encode a column to int32 ids ``[n]``."""
        values = cast_numbers(array, where)
        missing = np.isnan(values)
        cut = np.clip(compute_log_square(np.where(missing, 0.0, values)), self.low, self.high) - self.low + FIRST
        return np.where(missing, MISSING, cut).astype(np.int32)


@dataclass(frozen=True)
class CalendarEncoder:
    """Encoder of a calendar component of a timestamp in milliseconds UTC, at a fixed offset from UTC."""

    kind: ClassVar[str] = "time"
    component: Literal["hour", "weekday", "hour_of_week"]
    utc_offset: float

    @property
    def rows(self) -> int:
        """Number of rows of the embedding table."""
        return FIRST + {"hour": 24, "weekday": 7, "hour_of_week": 168}[self.component]

    def encode_times(self, times: NDArray[np.int64]) -> NDArray[np.int32]:
        """Encode timestamps to int32 ids ``[n]``. Weekday 0 is Monday."""
        hours = (times + round(self.utc_offset * 3_600_000)) // 3_600_000
        weekday = (hours // 24 + 3) % 7
        ids = {"hour": hours % 24, "weekday": weekday, "hour_of_week": weekday * 24 + hours % 24}[self.component]
        return (ids + FIRST).astype(np.int32)


class IdEncoder:
    """Encoder by a vocabulary: one id per value."""

    kind: ClassVar[str] = "id"

    def __init__(self, keys: Keys) -> None:
        self.keys = keys

    @property
    def rows(self) -> int:
        """Number of rows of the embedding table."""
        return FIRST + len(self.keys)

    def encode(self, array: pa.Array, where: str) -> NDArray[np.int32]:
        """Encode a column to int32 ids ``[n]``."""
        return np.where(_mask_nulls(array), MISSING, np.maximum(self.keys.index(array, where) + FIRST, UNSEEN)).astype(
            np.int32
        )


@dataclass(frozen=True)
class HashEncoder:
    """Encoder by hash buckets: no vocabulary, at the cost of collisions. The hash never changes.

    Integers: the splitmix64 finalizer. Strings: the first eight bytes of BLAKE2b.
    """

    kind: ClassVar[str] = "hash"
    buckets: int
    distinct: int
    numeric: bool | None = None  # True: the training window held integers. None: it held no value.

    @property
    def rows(self) -> int:
        """Number of rows of the embedding table."""
        return FIRST + self.buckets

    def collisions(self) -> float:
        """Return the expected share of distinct training values that share their bucket: 1 - (1 - 1/B)^(n - 1)."""
        return 1.0 - (1.0 - 1.0 / self.buckets) ** max(self.distinct - 1, 0)

    def encode(self, array: pa.Array, where: str) -> NDArray[np.int32]:
        """Encode a column to int32 ids ``[n]``."""
        keys = cast_keys(array, where)
        if self.numeric is not None and pa.types.is_integer(keys.type) != self.numeric and keys.null_count < len(keys):
            actual, expected = ("text", "integers") if self.numeric else ("integers", "text")
            example = keys.drop_null()[0].as_py()
            raise DataError(
                where, f"{actual}, for example {quote(example)}", f"{expected}, as in the log", "7 and '7' hash apart"
            )
        hashed = hash_keys(keys)
        ids = (hashed % np.uint64(self.buckets)).astype(np.int64) + FIRST
        return np.where(_mask_nulls(array), MISSING, ids).astype(np.int32)


@dataclass(frozen=True)
class CrossEncoder:
    """Encoder by hash buckets of several values, which ``compose.join_keys`` joins to one text.

    Attributes:
        numeric: for each column True if the training window held integers. None: it held no value.
    """

    kind: ClassVar[str] = "cross"
    buckets: int
    distinct: int
    numeric: tuple[bool | None, ...]

    @property
    def rows(self) -> int:
        """Number of rows of the embedding table."""
        return FIRST + self.buckets

    def collisions(self) -> float:
        """Return the expected share of collisions, as ``HashEncoder``."""
        return HashEncoder(self.buckets, self.distinct).collisions()

    def encode(self, array: pa.Array, where: str) -> NDArray[np.int32]:
        """Encode joined values to int32 ids ``[n]``."""
        return HashEncoder(self.buckets, self.distinct).encode(array, where)


def _mask_nulls(array: pa.Array) -> NDArray[np.bool_]:
    return array.is_null().to_numpy(zero_copy_only=False)


Encoder: TypeAlias = (
    NumericEncoder
    | NumericListEncoder
    | BucketizedEncoder
    | LogSquareEncoder
    | CalendarEncoder
    | IdEncoder
    | HashEncoder
    | CrossEncoder
)
_CLASSES: dict[str, Any] = {
    cls.kind: cls
    for cls in (
        NumericEncoder,
        NumericListEncoder,
        BucketizedEncoder,
        LogSquareEncoder,
        CalendarEncoder,
        HashEncoder,
        CrossEncoder,
    )
}


_STORED_NAMES = {"component": "part"}
"""Fields of encoders that have another name in ``features.json``."""


def dump_encoder(encoder: Encoder) -> dict[str, Any]:
    """Return the JSON state of an encoder. The keys of a vocabulary are stored beside it, as Parquet."""
    values = {} if isinstance(encoder, IdEncoder) else asdict(encoder)
    return {"kind": encoder.kind} | {_STORED_NAMES.get(name, name): value for name, value in values.items()}


def load_encoder(state: dict[str, Any], keys: Keys | None) -> Encoder:
    """Build the encoder of a state. A vocabulary needs its ``keys``."""
    if state["kind"] == "id":
        assert keys is not None
        return IdEncoder(keys)
    names = {stored: name for name, stored in _STORED_NAMES.items()}
    values = {names.get(key, key): tuple(v) if isinstance(v, list) else v for key, v in state.items() if key != "kind"}
    encoder: Encoder = _CLASSES[state["kind"]](**values)
    return encoder


@dataclass(frozen=True)
class Lists:
    """A column of several values per row: flat ids with offsets, and optionally one weight per value."""

    values: NDArray[Any]
    offsets: NDArray[np.int64]
    weights: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1


def flatten(
    array: pa.Array, separator: str | None, where: str, empty: bool = False
) -> tuple[pa.Array, NDArray[np.int64]]:
    """Concatenate the values of a list column (or of separated text), and return int64 offsets ``[n + 1]``.

    A null row is empty.

    Args:
        empty: keep the empty values of a text. Default: drop them.

    Raises:
        DataError: if the column is neither a list nor text with a separator.
    """
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        if separator is None:
            raise DataError(where, "text", "a list column", "or name the separator of the values")
        array = pc.split_pattern(pc.fill_null(array, ""), separator)
        values, offsets = _flatten_list(array)
        if empty:
            return values, offsets
        keep = pc.not_equal(values, "")
        kept = np.concatenate([[0], np.cumsum(keep.to_numpy(zero_copy_only=False))])
        return values.filter(keep), kept[offsets].astype(np.int64)
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
        return _flatten_list(array.cast(pa.large_list(array.type.value_type)))
    if pa.types.is_null(array.type):
        return pa.array([], pa.int64()), np.zeros(len(array) + 1, np.int64)
    raise DataError(where, f"values of type {array.type}", "a list column, or text with a separator")


def _flatten_list(array: pa.Array) -> tuple[pa.Array, NDArray[np.int64]]:
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    return array.flatten(), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
