"""Computation of splits: one code per row, 0 train, 1 valid or 2 test."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from longrec.data.settings import DataConfig, Split
from longrec.errors import DataError, nearest
from longrec.features.schema import TimeColumn
from longrec.features.timestamp_grammar import TimestampError, build_grammar, format_timestamp, read_iso, read_timestamp
from longrec.features.vocabulary import hash_keys

TRAIN, VALID, TEST = 0, 1, 2
SPLITS = {"train": TRAIN, "valid": VALID, "test": TEST}
_DAY = 86_400_000
_CHUNK = 200_000
"""Number of rows that are processed together."""
_SAMPLE = 100_000
"""Number of sampled values that narrow down the search for a rank."""


def compute_time_cutoffs(
    split: Split, times: NDArray[np.int64], step: bool, where: str, time: TimeColumn | None = None
) -> tuple[int, int]:
    """Return the cutoffs of a split by time: the first timestamps of valid and of test.

    A share is a fraction of all rows in time order. Rows with equal timestamps stay together, in the later split.

    Args:
        times: timestamp of each row.
        step: True if the timestamps are integer time indices (``unit: step``).
        where: name of the log in error messages.
        time: time column of the schema, to parse cutoffs that are given as timestamps.

    Raises:
        DataError: invalid timestamps, timestamps out of order, or days for a log with ``unit: step``.
    """
    last, time = int(times.max()), time or TimeColumn(column="", unit="step" if step else "auto")
    if split.test_from is not None:
        test = parse_cutoff(split.test_from, time, where)
        valid = test if split.valid_from is None else parse_cutoff(split.valid_from, time, where)
        if valid > test:
            raise DataError(
                where, f"valid from {split.valid_from!r}, after test from {split.test_from!r}", "valid before test"
            )
        return valid, test
    if split.test_days is not None:
        if step:
            raise DataError(where, "a split by days", "shares or timestamps: this log counts in steps")
        test = (last // _DAY + 1) * _DAY - round(split.test_days * _DAY)
        return test - round((split.valid_days or 0) * _DAY), test
    n = len(times)
    first_test, first_valid = round(n * (1 - split.test)), round(n * (1 - split.test - split.valid))
    test = select_rank(times, first_test) if first_test < n else last + 1
    if first_valid == first_test:
        return test, test
    return (select_rank(times, first_valid) if first_valid < n else last + 1), test


def select_rank(values: NDArray[np.int64], rank: int) -> int:
    """Return the value at ``rank`` in sorted order, in half the time of ``np.partition`` on long columns.

    A sample gives an interval that contains the value, and only the values in this interval are partitioned.
    """
    step = len(values) // _SAMPLE
    if step > 1:
        sample = np.sort(values[::step])
        near, margin = rank * len(sample) // len(values), len(sample) // 50
        low, high = sample[max(near - margin, 0)], sample[min(near + margin, len(sample) - 1)]
        below, inside = int(np.count_nonzero(values < low)), values[(values >= low) & (values <= high)]
        if below <= rank < below + len(inside):
            return int(np.partition(inside, rank - below)[rank - below])
    return int(np.partition(values, rank)[rank])


def parse_cutoff(text: str, time: TimeColumn, where: str) -> int:
    """Parse a cutoff in the format of the timestamps of the log, or as ISO 8601 text."""
    # Eight digits are an ISO 8601 date. As seconds they would be in 1970.
    day = re.fullmatch("([0-9]{4})([0-9]{2})([0-9]{2})", text) if time.unit != "step" else None
    try:
        timestamp = read_iso("-".join(day.groups()) if day else text) if time.unit != "step" else None
        if time.format is not None and (parsed := build_grammar(time.format).read(text)) is not None:
            timestamp = parsed
        return read_timestamp(text, time.unit) if timestamp is None else timestamp
    except TimestampError as bad:
        expected = bad.expected if time.unit == "step" else "an ISO date or time, in UTC unless it has an offset"
        raise DataError(where, f"the timestamp {text!r}", expected) from None


def describe_timestamp(timestamp: int, step: bool) -> str:
    """Return a timestamp as text for messages: ISO 8601 in UTC, or the step number.

    >>> describe_timestamp(1_700_000_000_000, step=False), describe_timestamp(12, step=True)
    ('2023-11-14T22:13:20Z', 'step 12')
    """
    if step:
        return f"step {timestamp}"
    return np.datetime_as_string(np.datetime64(timestamp, "ms"), unit="ms").removesuffix(".000") + "Z"


def split_by_time(times: NDArray[np.int64], cutoffs: tuple[int, int]) -> NDArray[np.int8]:
    """Return split codes of rows by timestamp. Rows of one request have the same timestamp, so they stay together."""
    return ((times >= cutoffs[0]).astype(np.int8) + (times >= cutoffs[1])).astype(np.int8)


def summarize_splits(
    labels: NDArray[np.float32], codes: NDArray[np.int8], times: NDArray[np.int64], step: bool
) -> tuple[dict[str, dict[str, int]], dict[str, tuple[int, int]] | dict[str, tuple[str, str]]]:
    """Return the number of samples and positives per split, and the first and last timestamp per non-empty split.

    Timestamps are ISO 8601 text, or steps.
    """
    counts = {split: {"samples": 0, "positives": 0} for split in SPLITS}
    ends: dict[str, list[int]] = {}
    for at in range(0, len(codes), _CHUNK):  # chunks that fit the CPU cache: three times as fast as whole columns
        chunk = slice(at, at + _CHUNK)
        label, own, when = labels[chunk], codes[chunk], times[chunk]
        labeled = ~np.isnan(label)
        for split, code in SPLITS.items():
            sample = labeled & (own == code)
            count = int(np.count_nonzero(sample))
            if count:
                counts[split]["samples"] += count
                counts[split]["positives"] += int(np.count_nonzero(sample & (label > 0.5)))
                those = when[sample]
                ends.setdefault(split, []).extend((int(those.min()), int(those.max())))
    spans = {split: (min(ends[split]), max(ends[split])) for split in SPLITS if split in ends}
    if step:
        return counts, spans
    return counts, {split: (format_timestamp(low), format_timestamp(high)) for split, (low, high) in spans.items()}


def split_by_user(split: Split, users: pa.Array) -> NDArray[np.int8]:
    """Return the split code of each user, by a stable hash of the key."""
    mixed = hash_keys(users) ^ np.uint64((split.seed * 0x9E3779B97F4A7C15) % 2**64)
    share = (hash_keys(pa.array(mixed.view(np.int64))) >> np.uint64(11)) / 2.0**53
    return ((share < split.valid + split.test).astype(np.int8) + (share < split.test)).astype(np.int8)


def split_leave_one_out(offsets: NDArray[np.int64], sample: NDArray[np.bool_]) -> NDArray[np.int8]:
    """Return split codes in which each user's last sample is test and the one before is valid.

    All samples of users with fewer than three samples are training samples.
    """
    codes = np.zeros(len(sample), np.int8)
    rows = np.flatnonzero(sample)
    first, stop = np.searchsorted(rows, offsets[:-1]), np.searchsorted(rows, offsets[1:])
    enough = stop - first >= 3
    codes[rows[stop[enough] - 1]] = TEST
    codes[rows[stop[enough] - 2]] = VALID
    return codes


def split_by_column(column: pa.Array, where: str) -> NDArray[np.int8]:
    """Return split codes from a text column.

    Raises:
        DataError: a value other than train, valid or test.
    """
    try:
        text = column.cast(pa.string())
    except pa.ArrowNotImplementedError:
        raise DataError(where, f"values of type {column.type}", "train, valid or test") from None
    codes: Any = pc.index_in(text, value_set=pa.array(list(SPLITS)))
    if codes.null_count:
        odd = column.filter(codes.is_null())[0].as_py()
        near = nearest(str(odd).lower(), SPLITS)
        hint = f" (did you mean {near!r}?)" if near and odd is not None else ""
        raise DataError(where, f"the split {odd!r}{hint}", "train, valid or test")
    return np.asarray(codes.to_numpy(zero_copy_only=False), np.int8)


def warn_of_missing_splits(split: Split, samples: Mapping[str, int]) -> list[str]:
    """Return a warning if valid or test has no samples.

    Args:
        samples: number of labeled rows per split.
    """
    if not samples["valid"]:
        what = "the split has no validation rows, so training cannot stop early or keep a best checkpoint: the weights "
        return [f"{what}after the last step are used; {_valid_setting(split)}"]
    if not samples["test"]:
        what = (
            "the split has no test rows, so metrics are those of the validation rows, which also chose the checkpoint"
        )
        return [f"{what} and look better than new rows will; keep later rows apart as test"]
    return []


def warn_of_missing_validation(config: DataConfig) -> list[str]:
    """Return the warning of :func:`warn_of_missing_splits` if the config implies that there are no validation rows."""
    rule, valid = config.split, True
    if rule.by == "files":
        valid = config.log.splits is not None and config.log.splits.valid is not None
    elif rule.by == "user" or (rule.by == "time" and rule.test_days is None and rule.test_from is None):
        valid = rule.valid > 0
    elif rule.by == "time":
        valid = rule.valid_days is not None or rule.valid_from is not None
    return [] if valid else warn_of_missing_splits(rule, {"valid": 0})


def _valid_setting(split: Split) -> str:
    """Return advice on how to get validation rows."""
    if split.by == "column":
        return f"write 'valid' into column {split.column!r} for some training rows"
    if split.by == "files":
        return "name files in log.splits.valid"
    if split.by == "leave_one_out":
        return "users need three labeled rows each"
    if split.test_days is not None:
        return "set data.split.valid_days, for example to 1"
    return f"set data.split.{'valid_from' if split.test_from is not None else 'valid'}"
