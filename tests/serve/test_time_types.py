"""Online equals offline for every type of timestamps: a request has the value of the row of the log."""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

import longrec

USERS, EACH = 25, 40
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
random = np.random.default_rng(3)
# Microseconds since 1970, around 2023. Two events of a user are a few milliseconds, or less than one, apart.
MICROSECONDS = (
    1_700_000_000_000_000
    + random.integers(0, 86_400 * 10, (USERS, EACH // 2, 1)) * 1_000_000
    + np.array([0, 1_499])
    + random.integers(0, 999, (USERS, EACH // 2, 2))
).reshape(-1)


def to_datetime(us: int) -> dt.datetime:
    return EPOCH + dt.timedelta(microseconds=us)


def format_iso(hours: float) -> Callable[[int], str]:
    """Return a formatter of ISO 8601 text at an offset from UTC."""
    zone = dt.timezone(dt.timedelta(hours=hours))
    return lambda us: to_datetime(us).astimezone(zone).isoformat()


def format_with(pattern: str) -> Callable[[int], str]:
    return lambda us: to_datetime(us).strftime(pattern)


Form = tuple[Callable[[int], Any], pa.DataType, dict[str, Any], str]
"""Raw value of a timestamp, type of the column, keys of ``time``, and type of file."""
FORMS: dict[str, Form] = {
    "seconds": (lambda us: us // 10**6, pa.int64(), {}, "parquet"),
    "seconds, 32 bits": (lambda us: us // 10**6, pa.int32(), {"unit": "s"}, "parquet"),
    "seconds from zero": (lambda us: (us - 1_700_000_000_000_000) // 10**6, pa.int64(), {}, "parquet"),
    "steps": (lambda us: us // 10**6, pa.int64(), {"unit": "step"}, "parquet"),
    "milliseconds": (lambda us: us // 1000, pa.int64(), {}, "feather"),
    "microseconds before 1970": (lambda us: -us, pa.int64(), {}, "parquet"),
    "nanoseconds": (lambda us: us * 1000 + 999, pa.int64(), {"unit": "ns"}, "parquet"),
    "seconds in floats": (lambda us: us / 10**6, pa.float64(), {}, "csv"),
    "milliseconds in floats": (lambda us: us / 1000, pa.float64(), {"unit": "ms"}, "parquet"),
    "decimals": (lambda us: Decimal(us) / 10**6, pa.decimal128(20, 6), {}, "parquet"),
    "digits in text": (lambda us: str(us), pa.string(), {}, "parquet"),
    "naive text": (lambda us: format_iso(0)(us)[:26], pa.large_string(), {}, "parquet"),
    "text with offsets": (lambda us: format_iso(us % 27 - 13)(us), pa.string(), {}, "parquet"),
    "text with offsets in CSV": (lambda us: format_iso(us % 27 - 13)(us), pa.string(), {}, "csv"),
    "dictionary": (format_iso(5.5), pa.dictionary(pa.int32(), pa.string()), {}, "feather"),
    "timestamps": (lambda us: to_datetime(us).replace(tzinfo=None), pa.timestamp("us"), {}, "parquet"),
    "nanosecond timestamps": (lambda us: np.datetime64(us * 1000 + 7, "ns"), pa.timestamp("ns"), {}, "parquet"),
    "zoned timestamps": (lambda us: to_datetime(us), pa.timestamp("ns", "Asia/Tokyo"), {}, "feather"),
    "dates": (lambda us: to_datetime(us).date(), pa.date32(), {}, "parquet"),
    "hours in digits": (lambda us: int(format_with("%y%m%d%H")(us)), pa.int64(), {"format": "%y%m%d%H"}, "parquet"),
    "months first": (format_with("%m/%d/%Y %H:%M:%S.%f"), pa.string(), {"format": "%m/%d/%Y %H:%M:%S.%f"}, "csv"),
}


def measure_difference(folder: Path, form: str) -> tuple[int, float]:
    """Return the number of requests, and the largest difference of a request's score from the row's prediction."""
    raw, kind, time_keys, suffix = FORMS[form]
    user, item = np.repeat(np.arange(USERS), EACH), random.integers(0, 30, USERS * EACH)
    values = [raw(int(us)) for us in MICROSECONDS]
    base = kind.value_type if pa.types.is_dictionary(kind) else kind
    column = pa.array(values, base)
    columns = {"user": user, "item": item, "t": column.dictionary_encode() if base is not kind else column}
    table = pa.table({**columns, "row": np.arange(len(user)), "click": (item + user) % 2})
    path = folder / f"log.{suffix}"
    if suffix == "csv":
        pacsv.write_csv(table, path)
    else:
        (pq.write_table if suffix == "parquet" else feather.write_feather)(table, path)
    calendar = {} if time_keys.get("unit") == "step" else {"hour": {"kind": "calendar", "component": "hour"}}
    dense = {"kind": "numeric", "scale": "minmax"}
    schema = {
        "user": "user",
        "item": "item",
        "time": {"column": "t", **time_keys},
        "label": "click",
        "features": {"user": {"kind": "id"}, "item": {"kind": "id"}, "row": dense, **calendar},
        "histories": {"past": {"features": ["item", "time_gap", "time_since_previous"], "max_length": 30}},
    }
    data = {"schema": schema, "log": str(path), "split": {"by": "user", "valid": 0.2, "test": 0.5}, "threads": 1}
    config = {
        "name": "times",
        "data": {**data, "folder": str(folder / "prepared")},
        "model": {"name": "din", "mlp": [8], "attention": [4]},
        "fit": {"max_steps": 30, "batch_size": 64, "lr": 0.03},
    }
    with contextlib.chdir(folder):
        run = longrec.train(config, quiet=True)
    longrec.export(run, folder / "bundle")
    worst, total = 0.0, 0
    with longrec.client(folder / "bundle") as client:
        for split in ("train", "valid", "test"):
            scored = pq.read_table(longrec.predict(run, split, folder / f"{split}.parquet"))
            rows = np.round(read_raw_rows(run)[scored["row"].to_numpy()]).astype(int)
            for row, score in zip(rows, scored["score"].to_pylist()):
                context = {"row": int(row)}
                online = client.rank(int(user[row]), [int(item[row])], at=values[row], context=context).items[0].score
                worst, total = max(worst, abs(online - score)), total + 1
    return total, worst


def read_raw_rows(run: Any) -> np.ndarray:
    """Return the row of the file of each row of the prepared log."""
    low, high = 0, USERS * EACH - 1
    encoder = run.log().fitted.encoders["row"]
    values = run.log().events.columns["row"].astype(np.float64) * encoder.spread + encoder.shift
    assert (np.round(values).min(), np.round(values).max()) == (low, high)
    return values


@pytest.mark.parametrize("form", ["text with offsets in CSV"])
def test_requests_score_as_predictions_do(tmp_path: Path, form: str) -> None:
    n_requests, worst = measure_difference(tmp_path, form)
    assert n_requests == USERS * EACH
    assert worst < 1e-6


@pytest.mark.slow
def test_requests_score_as_predictions_do_over_all_types(tmp_path: Path) -> None:
    total = 0
    for number, form in enumerate(FORMS):
        (tmp_path / str(number)).mkdir()
        n_requests, worst = measure_difference(tmp_path / str(number), form)
        print(f"{form}: {n_requests} rows, largest difference {worst:.2g}")
        assert worst < 1e-6, form
        total += n_requests
    assert total >= 10_000
