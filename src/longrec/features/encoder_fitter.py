"""Fitting of encoders: vocabularies, edges and scales, from the training window only, in one streaming pass."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from longrec.errors import DataError
from longrec.features import feature_encoders
from longrec.features.configured_vocabulary import read_vocabulary
from longrec.features.schema import Feature
from longrec.features.vocabulary import Keys, cast_keys

_SAMPLE = 1_000_000
"""Quantiles are exact up to this number of values. Above it they use every k-th value."""
_WIDEST = 100_000
"""Log-square has one bucket for each whole number below 2. It is meant for counts, not for amounts."""


class EncoderFitter:
    """Fits the encoder of one feature on the training window, chunk by chunk.

    ``add(values, counts)`` takes a column and the number of training events of each value. A value with count 0 is
    outside the window and is ignored.

    Attributes:
        integers: True if the column of a configured vocabulary holds integers, False for text, None if unknown.
    """

    def __init__(self, name: str, feature: Feature) -> None:
        self.name, self.feature = name, feature
        self.integers: bool | None = None
        self._counts: list[pa.Table] = []
        self._numbers: list[NDArray[np.float64]] = []
        self._weight: list[NDArray[np.int64]] = []
        self._power_sums = np.array([0.0, 0.0, 0.0])
        self._pivot = 0.0
        self._range = np.array([np.inf, -np.inf])
        self._numeric: tuple[bool | None, ...] = ()

    def needs_data(self) -> bool:
        """Return True if the encoder is learned from the log."""
        f = self.feature
        if f.form in ("id", "multi_id"):
            return f.vocab is None
        return f.quantiles is not None or f.log_square or (f.form == "numeric" and f.scale in ("minmax", "standard"))

    def add_column_types(self, numeric: tuple[bool | None, ...]) -> None:
        """Add the types of the columns of a cross in a chunk: True for integers, None for no value."""
        types = self._numeric or (None,) * len(numeric)
        self._numeric = tuple(new if old is None else old for old, new in zip(types, numeric))

    def add(self, array: pa.Array, counts: NDArray[np.int64], where: str) -> None:
        """Add one chunk."""
        keep = counts > 0
        if self.feature.form in ("id", "multi_id"):
            self._add_keys(cast_keys(array, where), counts, keep, where)
            return
        values = feature_encoders.cast_numbers(array, where)
        keep &= ~np.isnan(values)
        values, counts = values[keep], counts[keep]
        if not len(values):
            return
        if self.feature.form == "numeric":
            # Sums about a value of the column: squares of values far from zero would lose the spread.
            self._pivot = self._pivot if self._power_sums[0] else float(values[0])
            with np.errstate(over="ignore"):  # finish refuses infinite sums
                far = values - self._pivot
                self._power_sums += [counts.sum(), (counts * far).sum(), (counts * far * far).sum()]
        else:
            self._numbers.append(values)
            self._weight.append(counts)
        self._range = np.array([min(self._range[0], values.min()), max(self._range[1], values.max())])

    def _add_keys(self, keys: pa.Array, counts: NDArray[np.int64], keep: NDArray[np.bool_], where: str) -> None:
        seen = keep & keys.is_valid().to_numpy(zero_copy_only=False)
        if not seen.any():
            return
        if not seen.all():
            keys, counts = keys.filter(pa.array(seen)), counts[seen]
        table = pa.table({"value": keys, "n": counts})
        if self._counts and self._counts[0].schema.field("value").type != keys.type:
            actual, expected = ("text", "integers") if pa.types.is_string(keys.type) else ("integers", "text")
            raise DataError(where, f"{actual} among the {expected} of feature {self.name!r}", "ids of one type")
        self._counts.append(table.group_by("value").aggregate([("n", "sum")]))
        if len(self._counts) >= 16:
            self._counts = [self._merge_counts()]

    def _merge_counts(self) -> pa.Table:
        table = pa.concat_tables(self._counts).rename_columns(["value", "n"])
        return table.group_by("value").aggregate([("n", "sum")])

    def finish(self) -> feature_encoders.Encoder:
        """Return the fitted encoder."""
        f = self.feature
        if f.kind == "calendar":
            return feature_encoders.CalendarEncoder(f.component, f.utc_offset)
        if f.width is not None:
            assert f.scale in ("raw", "log")
            return feature_encoders.NumericListEncoder(f.scale, f.missing, f.width, f.separator)
        if f.form == "numeric":
            return self._fit_numeric()
        if f.form == "bucketized":
            return self._fit_buckets()
        if f.vocab is not None:
            return feature_encoders.IdEncoder(Keys(read_vocabulary(f.vocab, self.name, self.integers)))
        value_counts = (
            self._merge_counts()
            if self._counts
            else pa.table({"value": pa.array([], pa.int64()), "n_sum": pa.array([], pa.int64())})
        )
        if f.kind == "cross":
            assert f.hash is not None
            assert f.features is not None
            return feature_encoders.CrossEncoder(f.hash, len(value_counts), self._numeric or (None,) * len(f.features))
        if f.hash is not None:
            numeric = pa.types.is_integer(value_counts["value"].type) if len(value_counts) else None
            return feature_encoders.HashEncoder(f.hash, len(value_counts), numeric)
        kept = value_counts.filter(pc.field("n_sum") >= f.min_count)["value"].combine_chunks()
        return feature_encoders.IdEncoder(Keys(kept.take(pc.sort_indices(kept))))

    def _fit_numeric(self) -> feature_encoders.NumericEncoder:
        f, (n, total, squares) = self.feature, self._power_sums
        shift, spread = 0.0, 1.0
        with np.errstate(over="ignore", invalid="ignore"):
            if f.scale == "standard" and n:
                mean = total / n
                shift, spread = self._pivot + mean, float(np.sqrt(np.maximum(squares / n - mean * mean, 0.0))) or 1.0
            elif f.scale == "minmax" and n:
                shift, spread = float(self._range[0]), float(self._range[1] - self._range[0]) or 1.0
        if not np.isfinite([shift, spread]).all():
            raise DataError(
                f"feature {self.name!r}",
                f"numbers from {self._range[0]:.3g} to {self._range[1]:.3g}, whose spread is beyond that of a number",
                "numbers between -3.4e38 and 3.4e38",
                "correct the column, or set scale: log",
            )
        return feature_encoders.NumericEncoder(f.scale, float(shift), spread, f.missing)

    def _fit_buckets(self) -> feature_encoders.Encoder:
        f = self.feature
        if f.edges is not None:
            return feature_encoders.BucketizedEncoder(f.edges)
        if not self._numbers:
            raise DataError(
                f"feature {self.name!r}", "no value in the training window", "at least one number to fit buckets on"
            )
        if f.log_square:
            low, high = feature_encoders.compute_log_square(self._range)
            if low < -_WIDEST:
                raise DataError(
                    f"feature {self.name!r}",
                    f"values down to {self._range[0]:g}",
                    "counts, for log_square",
                    "use quantiles or edges",
                )
            return feature_encoders.LogSquareEncoder(int(low), int(high))
        assert f.quantiles is not None
        values, weight = np.concatenate(self._numbers), np.concatenate(self._weight)
        step = max(1, len(values) // _SAMPLE)
        values, weight = values[::step], weight[::step]
        order = np.argsort(values, kind="stable")
        share = np.cumsum(weight[order]) / weight.sum()
        cuts = values[order][
            np.searchsorted(share, np.arange(1, f.quantiles) / f.quantiles, side="right").clip(max=len(values) - 1)
        ]
        return feature_encoders.BucketizedEncoder(tuple(float(cut) for cut in np.unique(cuts)))
