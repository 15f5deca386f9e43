"""Tests of Ctrl-C: exit code 130, one line and no trace, in imports, in libraries that swallow it, and in C code."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from longrec.errors import StoppedRun

IMPORT = """
class Finder:
    def find_spec(self, name, *_):
        if name == "longrec.cli":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""
SWALLOWED = """
class Swallowing:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
def work(args):
    Swallowing()
    time.sleep(20)
"""
TRANSLATED = """
def work(args):
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise RuntimeError("Query interrupted")
"""
EVALUATED = """
def work(args):
    eval("signal.raise_signal(signal.SIGINT)")
"""
# On a busy machine DuckDB waits for its own threads after the first signal, as long as the query takes.
QUERY = """
import duckdb
def work(args):
    with duckdb.connect() as con:
        for wait in (0.1, 1.0):
            timer = threading.Timer(wait, os.kill, (os.getpid(), signal.SIGINT))
            timer.daemon = True
            timer.start()
        con.execute("SELECT sum(a.range * b.range) FROM range(1000000) a, range(1000000) b").fetchall()
"""
TWICE = """
def work(args):
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.raise_signal(signal.SIGINT)
        time.sleep(20)
"""


def run_command(code: str) -> subprocess.CompletedProcess[str]:
    lines = [
        "import os, signal, sys, threading, time",
        code,
        "sys.argv = ['longrec', 'models']",
        "if 'work' in globals():",
        "    from longrec import command_output",
        "    command_output.models = work",
        "from longrec.entry import main",
        "sys.exit(main())",
    ]
    return subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "code", [IMPORT, SWALLOWED, TRANSLATED, EVALUATED, QUERY, TWICE],
    ids=["import", "swallowed", "translated", "evaluated", "query", "twice"],
)  # fmt: skip
def test_an_interrupt_ends_with_its_code_and_one_line(code: str) -> None:
    done = run_command(code)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "longrec: interrupted\n")


def test_without_an_interrupt_nothing_changes() -> None:
    done = run_command("")
    assert done.returncode == 0
    assert done.stdout.startswith("model ")
    assert done.stderr == ""


def test_an_ignored_error_that_is_no_interrupt_is_still_shown() -> None:
    done = run_command("class Broken:\n    def __del__(self):\n        1 / 0\ndef work(args):\n    Broken()\n")
    assert done.returncode == 0
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_training_has_the_code_of_its_signal(
    number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from longrec import command_output
    from longrec.cli import main

    def stop(args: object) -> None:
        raise StoppedRun("runs/a", 1200, number)

    monkeypatch.setattr(command_output, "train", stop)
    assert main(["train", "din.yaml"]) == code
    assert capsys.readouterr().err == (
        "longrec: StoppedRun: runs/a: stopped after step 1,200\n  Continue it with --resume\n"
    )
