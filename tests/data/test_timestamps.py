"""One rule for timestamps: a column of a log and a request read every value alike, whatever its type."""

from __future__ import annotations

import datetime as dt
import functools
import re
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longrec.config import parse
from longrec.data.relation import Relation, connect
from longrec.data.settings import DataConfig, Source
from longrec.data.timestamps import read_timestamps
from longrec.errors import ConfigError, DataError, RequestError
from longrec.features.schema import TimeColumn
from longrec.serve.interface import _format_time
from longrec.serve.request_time import parse_request_time

random = np.random.default_rng(0)
# Before and after 1970, on both sides of a whole millisecond.
NANOSECONDS = [
    *(int(n) for n in random.integers(-(10**18), 2 * 10**18, 40) if abs(n) > 4 * 10**17),
    *(1_700_000_000_123_000_000 + n for n in (-1, 0, 1, 999_999)),
    *(-1_700_000_000_123_000_000 + n for n in (-1, 0, 1, 999_999)),
]
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def offline(folder: Path, column: Any, suffix: str = "parquet", query: str = "", **time: Any) -> list[int | None]:
    """How preparation reads a column."""
    path = folder / f"log.{suffix}"
    table = pa.table({"t": column})
    if suffix == "parquet":
        pq.write_table(table, path)
    elif suffix == "csv":
        pacsv.write_csv(table, path)
    else:
        feather.write_feather(table, path, compression="uncompressed")
    source = {"query": query.format(path)} if query else {"files": [str(path)]}
    log = Relation(connection(), "log", Source.model_validate(source), folder)
    expression = read_timestamps(log, "t", TimeColumn(column="t", **time)).sql
    return [row[0] for row in log.con.execute(f"SELECT {expression} FROM log").fetchall()]


@functools.cache
def connection() -> Any:
    return connect(DataConfig.model_validate({"log": "unused", "threads": 1}), Path(tempfile.gettempdir()))


def online(value: Any, **time: Any) -> int | None:
    return None if value is None else parse_request_time(_format_time(value), TimeColumn(column="t", **time), 0)


def text(ns: int, zone: str = "") -> str:
    """A timestamp of nanoseconds as ISO 8601 text, in some zone."""
    seconds, below = divmod(ns, 10**9)
    hours = {"": 0, "Z": 0, "+05:30": 5.5, "-0330": -3.5, "+14": 14}[zone]
    when = EPOCH + dt.timedelta(seconds=seconds + hours * 3600)
    return f"{when:%Y-%m-%dT%H:%M:%S}.{below:09d}{zone}"


UNITS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
WHOLE = [("int64", unit) for unit in UNITS] + [("uint64", unit) for unit in UNITS] + [("int32", "s"), ("uint32", "s")]


@pytest.mark.parametrize("unit", ["auto", "declared"])
@pytest.mark.parametrize(("kind", "of"), WHOLE)
def test_whole_numbers(tmp_path: Path, kind: str, of: str, unit: str) -> None:
    values = [ns // UNITS[of] for ns in NANOSECONDS if kind[0] != "u" or ns > 0]
    bounds = np.iinfo(kind)
    values = [value for value in values if bounds.min <= value <= bounds.max]
    time = {"unit": of if unit == "declared" else "auto"}
    wanted = [value * UNITS[of] // 10**6 for value in values]
    assert offline(tmp_path, pa.array(values, kind), **time) == wanted
    assert [online(value, **time) for value in values] == wanted
    assert offline(tmp_path, pa.array(map(str, values)), **time) == wanted
    assert [online(str(value), **time) for value in values] == wanted


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16", "int32", "float", "double", "decimal"])
def test_seconds_counted_from_zero(tmp_path: Path, kind: str) -> None:
    values = [0, 5, 100, 127] if kind[:1] == "u" else [-3, 0, 5, 127]
    typed = pa.decimal128(20, 0) if kind.startswith("decimal") else kind
    assert offline(tmp_path, pa.array(values).cast(typed)) == [value * 1000 for value in values]
    assert [online(value, unit="s") for value in values] == [value * 1000 for value in values]
    assert offline(tmp_path, pa.array(values).cast(typed), unit="step") == values


@pytest.mark.parametrize("query", ["HUGEINT", "UHUGEINT", "DECIMAL(38, 0)"])
def test_wide_numbers(tmp_path: Path, query: str) -> None:
    values = [1_700_000_000, 1_800_000_000]
    sql = "SELECT t::" + query + " AS t FROM '{}'"
    assert offline(tmp_path, values, query=sql) == [value * 1000 for value in values]
    with pytest.raises(DataError, match="at most 64 bits"):
        offline(tmp_path, values, query="SELECT t::" + query + " * 100000000000 AS t FROM '{}'")


@pytest.mark.parametrize("of", ["s", "ms", "us"])
def test_doubles_and_decimals(tmp_path: Path, of: str) -> None:
    values = [Decimal(ns // 1000) * 1000 / UNITS[of] for ns in NANOSECONDS]  # microseconds: what a double holds
    wanted = [ns // 1000 // 1000 for ns in NANOSECONDS]
    doubles = [float(value) for value in values]
    assert offline(tmp_path, pa.array(doubles)) == wanted
    assert [online(value, unit=of) for value in doubles] == wanted
    exact = [value.quantize(Decimal("1.000000")) for value in values]
    assert offline(tmp_path, pa.array(exact, pa.decimal128(30, 6))) == wanted
    assert [online(value, unit=of) for value in exact] == wanted
    assert offline(tmp_path, pa.array(map(str, exact))) == wanted
    assert [online(str(value), unit=of) for value in exact] == wanted


ZONES = [None, "UTC", "America/New_York", "Asia/Kolkata", "+05:30"]


@pytest.mark.parametrize("suffix", ["parquet", "feather"])
@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("of", UNITS)
def test_timestamps(tmp_path: Path, of: str, zone: str | None, suffix: str) -> None:
    values = [ns // UNITS[of] for ns in NANOSECONDS]
    column = pa.array([*values, None], pa.int64()).cast(pa.timestamp(of, zone))
    wanted = [value * UNITS[of] // 10**6 for value in values]
    assert offline(tmp_path, column, suffix) == [*wanted, None]
    if of != "ns":  # what the client takes
        assert [online(value.as_py()) for value in column[:-1]] == wanted
    if zone is None:
        raw = np.array(values, f"datetime64[{of}]")
        assert [online(value) for value in raw] == wanted


def test_dates_and_dictionaries(tmp_path: Path) -> None:
    days = [dt.date(1960, 2, 29), dt.date(2024, 2, 29), dt.date(1, 1, 1), dt.date(9999, 12, 31)]
    wanted = [(day.toordinal() - EPOCH.toordinal()) * 86_400_000 for day in days]
    for suffix in ("parquet", "feather"):
        for kind in (pa.date32(), pa.date64()):
            assert offline(tmp_path, pa.array(days, kind), suffix) == wanted
    assert [online(day) for day in days] == wanted
    written = pa.array([day.isoformat() for day in days])
    for column in (written, written.cast(pa.large_string()), written.dictionary_encode()):
        for suffix in ("parquet", "feather"):
            assert offline(tmp_path, column, suffix) == wanted
    kind = "ENUM('0001-01-01', '1960-02-29', '2024-02-29', '9999-12-31')"
    assert offline(tmp_path, written, query=f"SELECT t::{kind} AS t FROM '{{}}'") == wanted


@pytest.mark.parametrize("zone", ["", "Z", "+05:30", "-0330", "+14"])
@pytest.mark.parametrize("suffix", ["parquet", "feather", "csv"])
def test_text_with_and_without_an_offset(tmp_path: Path, suffix: str, zone: str) -> None:
    values = [text(ns, zone) for ns in NANOSECONDS]
    wanted = [ns // 10**6 for ns in NANOSECONDS]
    assert offline(tmp_path, values, suffix) == wanted
    assert [online(value) for value in values] == wanted
    # One value of another form sends the column down the general path.
    assert offline(tmp_path, [*values, "20240229T12"], suffix) == [*wanted, 1_709_208_000_000]


def test_times_of_a_query(tmp_path: Path) -> None:
    values = [1_700_000_000, -1_700_000_000]
    for expression in ("to_timestamp(t)", "make_timestamp(t * 1000000)", "make_timestamp(t * 1000000)::TIMESTAMP_S"):
        assert offline(tmp_path, values, query=f"SELECT {expression} AS t FROM '{{}}'") == [
            value * 1000 for value in values
        ]


ODD = [
    *("2026-01-31", "20260131T120000", "20260131T1200Z", "2026-01-31T12", "2026-01-31 12:00", " 2026-01-31 "),
    *("2026-01-31 24:00:00", "2026-01-31T12:00:00+05", "2026-01-31T12:00:00+0530", "2026-01-31T12:00:00Z"),
    *("2026-01-31t12:00:00z", "2026-12-31T23:59:60Z", "10000-01-01", "+002026-01-31", "infinity", "epoch", "now"),
    *("2026-1-5", "2026-01-31T12:00:00,25", "2026-01-31T12:00:00.123456789", "2026-01-31T12:00:00.", "0000-01-01"),
    *("0001-01-01", "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59.999999999", "9999-12-31T23:59:59-01:00"),
    *("2025-02-29", "2026-01-31 12:00:00 UTC", "2026-01-31T12:00:00+24:00", "2026-W05-6", "2026-031", "2026-01-31\n"),
    *("11/01/2023", "01.11.2023 10:00", "2023/11/01", "Nov 1 2023", "", "1e9", "1700000000.5", "0x10", "1_700_000_000"),
    *("1700000000", "+1700000000", "nan", "２０２６-01-31", "1970-01-01T00:00:00.0009", "1969-12-31T23:59:59.9999"),
]


@pytest.mark.parametrize("odd", ODD)
def test_odd_text_is_taken_or_refused_by_both(tmp_path: Path, odd: str) -> None:
    try:
        wanted = online(odd)
    except RequestError:
        with pytest.raises(DataError):
            offline(tmp_path, [odd])
    else:
        assert offline(tmp_path, [odd]) == [wanted]


CLOCK = r"([T ][0-2][0-9]:[0-6][0-9](:[0-6][0-9]([.,][0-9]{1,9})?)?(Z|[+-][0-2][0-9]:?[0-6][0-9])?)?"
LIKE_ISO = st.from_regex(rf"\A[0-9]{{4}}-[01][0-9]-[0-3][0-9]{CLOCK}\Z")


@settings(max_examples=25, deadline=None)
@given(st.lists(LIKE_ISO, min_size=1, max_size=8))
def test_text_that_looks_like_iso(tmp_path_factory: pytest.TempPathFactory, values: list[str]) -> None:
    folder, read = tmp_path_factory.mktemp("iso"), {}
    for value in values:
        try:
            read[value] = online(value)
        except RequestError:
            with pytest.raises(DataError):
                offline(folder, [value])
    assert not read or offline(folder, list(read)) == list(read.values())


FORMATS = {
    "%y%m%d%H": ([14102100, 9102123, "14102100"], "2014-10-21T00 2009-10-21T23 2014-10-21T00"),
    "%Y%m%d": ([20141021, "20141021"], "2014-10-21 2014-10-21"),
    "%Y%m%d%H%M%S": ([20141021235959], "2014-10-21T23:59:59"),
    "%m/%d/%Y %H:%M:%S": (["11/01/2023 10:20:30", "1/2/1969 3:04:05"], "2023-11-01T10:20:30 1969-01-02T03:04:05"),
    "%d/%m/%Y": (["11/01/2023"], "2023-01-11"),
    "%d %b %y %I:%M %p": (["5 Jan 69 12:30 am", "5 jan 68 1:05 PM"], "1969-01-05T00:30 2068-01-05T13:05"),
    "%B %d %Y %H:%M:%S.%f": (["May 1 1960 10:00:00.0019999"], "1960-05-01T10:00:00.001"),
    "%Y-%m-%d %H:%M:%S %z": (["2023-11-01 10:00:00 -0330"], "2023-11-01T13:30"),
    "%Y年%m月%d日": (["2023年11月1日"], "2023-11-01"),
    "%Y%m": ([202311], "2023-11-01"),
    "100%% %Y.%m.%d": (["100% 2023.11.01"], "2023-11-01"),
}


@pytest.mark.parametrize("pattern", FORMATS)
def test_formats(tmp_path: Path, pattern: str) -> None:
    values, dates = FORMATS[pattern]
    wanted = [online(date) for date in dates.split()]
    assert [online(value, format=pattern) for value in values] == wanted
    assert offline(tmp_path, [str(value) for value in values], format=pattern) == wanted
    numbers = [value for value in values if isinstance(value, int)]
    for column in (pa.array(numbers), pa.array(numbers, pa.float64()), pa.array(map(str, numbers))) if numbers else ():
        for suffix in ("parquet", "csv"):
            assert offline(tmp_path, column, suffix, format=pattern) == wanted[: len(numbers)]
    for wrong in ("soon", "2023-13-45", "99999999"):
        with pytest.raises(DataError, match=re.escape(f"the text {wrong!r}; expected text of the form {pattern!r}")):
            offline(tmp_path, [wrong], format=pattern)
        with pytest.raises(RequestError, match="as time.format says"):
            online(wrong, format=pattern)


def test_a_request_beside_a_format_may_be_written_as_answers_are() -> None:
    assert online("2023-11-01T10:00:00.000Z", format="%d/%m/%Y") == online("2023-11-01T10:00:00Z")
    assert online(dt.datetime(2023, 11, 1), format="%y%m%d%H") == online("2023-11-01")
    with pytest.raises(RequestError):
        online("2023-11-01", format="%d/%m/%Y")


@pytest.mark.parametrize(
    ("time", "says"),
    [
        ({"format": "%Y-%m-%Q"}, "%Q, which is not one of"),
        ({"format": "%d/%m"}, r"must hold the year \(%Y or %y\) once"),
        ({"format": "%Y-%d"}, "must hold the month"),
        ({"format": "%Y-%m-%d %M"}, "leaves out a unit"),
        ({"format": "%Y-%m-%d %I"}, "one of %I and %p without the other"),
        ({"format": "%Y%Y%m%d"}, "holds %Y twice"),
        ({"format": "%Y-%m-%d%"}, "bare %"),
        ({"format": "%Y-%m-%d", "unit": "s"}, "set one"),
    ],
)
def test_a_wrong_format_is_reported_with_the_config(time: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse(TimeColumn, {"column": "t", **time}, "job.yaml")


HOURS = [dt.datetime(2014, 10, 21) + dt.timedelta(hours=hour * 7) for hour in range(12)]
DIGITS = {
    "YYMMDDHH": "%y%m%d%H",
    "YYYYMMDD": "%Y%m%d",
    "YYMMDD": "%y%m%d",
    "YYYYMMDDHH": "%Y%m%d%H",
    "YYMMDDHHMM": "%y%m%d%H%M",
    "YYYYMMDDHHMM": "%Y%m%d%H%M",
    "YYMMDDHHMMSS": "%y%m%d%H%M%S",
    "YYYYMMDDHHMMSS": "%Y%m%d%H%M%S",
}


@pytest.mark.parametrize("kind", ["int64", "double", "string"])
@pytest.mark.parametrize("form", DIGITS)
def test_digits_of_a_calendar_are_refused_with_the_way_out(tmp_path: Path, form: str, kind: str) -> None:
    values = [int(hour.strftime(DIGITS[form])) for hour in HOURS]
    column = pa.array(values).cast(kind)
    for unit in ("auto", "s", "ms") if form in ("YYMMDDHH", "YYYYMMDD", "YYMMDD") else ("auto",):
        with pytest.raises(DataError, match=rf"{form} \(2014-10-2.*time\.format: .*'{DIGITS[form]}'"):
            offline(tmp_path, column, unit=unit)
    assert offline(tmp_path, pa.array(values), unit="step") == values
    read = offline(tmp_path, column, format=DIGITS[form])
    assert read == [online(hour.strftime(DIGITS[form]), format=DIGITS[form]) for hour in HOURS]


def test_counters_and_seconds_are_no_calendar(tmp_path: Path) -> None:
    for values in (
        range(20_141_000, 20_142_000),
        [0, 20141021],
        [20141021, 20141399],
        range(1_410_210_000, 1_410_211_000),
    ):
        assert len(set(offline(tmp_path, list(values)))) == len(values)


def test_floats_that_cannot_separate_times_are_refused(tmp_path: Path) -> None:
    seconds = 1_700_000_000 + np.arange(200)
    with pytest.raises(DataError, match=r"32-bit floats up to 1700000256, where adjacent floats differ by 128: 3 dis"):
        offline(tmp_path, pa.array(seconds.astype(np.float32)))
    with pytest.raises(DataError, match="64-bit floats represent integers of 53 bits"):
        offline(tmp_path, pa.array(seconds * 1e9))
    with pytest.raises(DataError, match="32-bit floats"):  # .008 seconds from one to the next
        offline(tmp_path, pa.array(np.array([100_000.25], np.float32)))
    with pytest.raises(DataError, match="the number 1.5; expected whole numbers for unit: step"):
        offline(tmp_path, pa.array([1.5]), unit="step")
    with pytest.raises(RequestError, match=r"a float above 2\*\*53"):
        online(1.7e18, unit="ns")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_order_of_day_and_month_is_never_guessed(tmp_path: Path, suffix: str) -> None:
    values = ["11/01/2023 10:00:00", "12/01/2023 10:00:00"]
    with pytest.raises(DataError, match=r"(?s)the order of day and month is ambiguous.*%m/%d/%Y"):
        offline(tmp_path, values, suffix)
    assert offline(tmp_path, values, suffix, format="%m/%d/%Y %H:%M:%S") == [1_698_832_800_000, 1_701_424_800_000]


@pytest.mark.parametrize(
    ("column", "time", "says"),
    [
        (["2026-01-01", "1700000000"], {}, "the text '2026-01-01' among numbers"),
        (["2026-01-01"], {"unit": "step"}, "whole numbers for unit: step"),
        ([10**13 * 2], {}, "would be after 2100"),
        ([-(10**11) + 1], {}, "the years 1 to 9999"),
        ([2**62], {"unit": "step"}, r"below 2\*\*62"),
        ([True], {}, "times of type BOOLEAN"),
        (pa.array([2**62], pa.timestamp("us")), {}, "years 1 to 9999"),
    ],
)
def test_what_cannot_be_right_is_refused(tmp_path: Path, column: Any, time: dict[str, str], says: str) -> None:
    with pytest.raises(DataError, match=says):
        offline(tmp_path, column, **time)


def test_infinite_timestamps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 infinite times"):
        offline(tmp_path, ["infinity"], query="SELECT t::TIMESTAMP AS t FROM '{}'")


def test_zones_of_a_datetime_are_sent_along() -> None:
    naive = dt.datetime(2026, 7, 1, 12)
    assert online(naive) == online(naive.replace(tzinfo=dt.UTC))
    assert online(naive.replace(tzinfo=ZoneInfo("Europe/Berlin"))) == online(naive) - 7_200_000
