from __future__ import annotations

import io
import time

import pytest

from longrec.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Clock whose time is set by the test."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def work(stream: io.StringIO, seconds: float, steps: int = 100, total: int | None = 100, unit: str = "rows") -> str:
    clock = Clock()
    with Progress(total, "prepare", unit, stream=stream, clock=clock) as progress:
        for _ in range(steps):
            clock.now += seconds / steps
            progress.advance()
    return stream.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_quick_work_says_nothing(stream):
    assert work(stream(), 1.9) == ""


def test_where_lines_cannot_be_redrawn_one_comes_every_ten_seconds():
    lines = work(io.StringIO(), 35).splitlines()
    assert lines[0] == "prepare    6%  6/100 rows  2.9/s  33 s left"
    assert len(lines) == 5  # at 2, 12, 22 and 32 seconds, and the closing one
    assert lines[-1] == "prepare: 100 rows in 35 s (2.9/s)"


def test_a_terminal_has_one_line_that_is_redrawn(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    text = work(Terminal(), 5)
    assert text.count("\n") == 1
    assert text.endswith("\n")
    states = text.strip("\n").split("\r")
    assert states[0] == ""
    assert len(states) > 20
    assert all(len(state) < 60 for state in states)
    assert "41%  41/100 rows  20/s  2.9 s left" in text
    shown = ""
    for state in states:  # the final content of a terminal: each state overwrites the one before
        shown = state + shown[len(state) :]
    assert shown.rstrip() == "prepare: 100 rows in 5.0 s (20/s)"


def test_a_line_wider_than_the_terminal_is_cut(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    assert max(map(len, work(Terminal(), 5).strip("\n").split("\r"))) == 19


def test_without_a_total_there_is_no_estimate():
    lines = work(io.StringIO(), 4, total=None).splitlines()
    assert lines == ["prepare  50 rows  25/s", "prepare: 100 rows in 4.0 s (25/s)"]


def test_work_that_breaks_off_says_so_and_the_error_goes_on():
    stream, clock = io.StringIO(), Clock()

    def interrupt():
        with Progress(10, "train din", stream=stream, clock=clock) as progress:
            clock.now += 3
            progress.at(4, note="loss 0.52")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert stream.getvalue().splitlines() == [
        "train din   40%  4/10  1.3/s  4.5 s left  loss 0.52",
        "train din: 4 stopped after 3.0 s (1.3/s)",
    ]


def test_nothing_goes_to_standard_output(capsys):
    clock = Clock()
    with Progress(1, "x", clock=clock) as progress:
        clock.now += 5
        progress.advance()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "x: 1 in 5.0 s" in captured.err


def test_an_update_costs_next_to_nothing():
    with Progress(200_000, "x", stream=io.StringIO()) as progress:
        start = time.process_time()
        for _ in range(100_000):
            progress.advance()
        assert time.process_time() - start < 0.5


def test_durations():
    assert [duration(s) for s in (0, 9.96, 59.4, 60, 3599, 3600, 90_000)] == [
        "0.0 s",
        "10.0 s",
        "59 s",
        "1 min 0 s",
        "59 min 59 s",
        "1 h 0 min",
        "25 h 0 min",
    ]
