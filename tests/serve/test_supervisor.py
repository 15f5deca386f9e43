from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from test_reload import change_digest, send_reload
from test_server import find_workers, start_server

from longrec.serve.client import client
from longrec.serve.supervisor import Worker


@pytest.fixture
def bundle(steps: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(steps.bundle, tmp_path / "bundle"))


def wait_until(holds: Callable[[], bool], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.02)


class Output:
    """Lines that a server writes to stderr, which do not wait for one another."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        os.set_blocking(process.stderr.fileno(), False)
        self.file, self.text = process.stderr, ""

    def has(self, text: str) -> bool:
        """Return True if the text has been written."""
        self.text += os.read(self.file.fileno(), 100_000).decode() if self._is_ready() else ""
        return text in self.text

    def _is_ready(self) -> bool:
        import select

        return bool(select.select([self.file], [], [], 0)[0])


@pytest.fixture
def server(bundle: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process, url, _ = start_server(bundle, workers=2)
    try:
        wait_until(lambda: len(find_workers(process.pid)) == 2, "no workers")
        yield process, url
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def rank(url: str, steps: Any) -> list[float]:
    with client(url) as shop:
        return [item.score for item in shop.rank(**steps.golden[0].request)]


def test_killed_workers_are_replaced(server: tuple[subprocess.Popen[str], str], steps: Any) -> None:
    process, url = server
    before, workers = rank(url, steps), find_workers(process.pid)
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    wait_until(lambda: len(find_workers(process.pid) - workers) == 2, "they are not replaced")
    assert rank(url, steps) == before
    output = Output(process)
    wait_until(lambda: output.has("a worker ended with status -9 and is replaced"), "no message")


def test_a_worker_that_cannot_start_leaves_the_others_alone(
    server: tuple[subprocess.Popen[str], str], bundle: Path, steps: Any
) -> None:
    process, url = server
    before, workers, output = rank(url, steps), find_workers(process.pid), Output(process)
    (bundle / "program.onnx").rename(bundle / "away.onnx")
    time.sleep(1.2)  # the supervisor looks twice a second at who serves
    os.kill(min(workers), signal.SIGKILL)
    wait_until(lambda: output.has("program.onnx"), "the worker starts")
    assert process.poll() is None
    assert [rank(url, steps) for _ in range(5)] == [before] * 5
    # Another bundle at the same path is not served by one worker alone.
    (bundle / "away.onnx").rename(bundle / "program.onnx")
    change_digest(bundle)
    wait_until(lambda: output.has("another bundle than the server began with"), "it is served")
    send_reload(url)
    wait_until(lambda: len(find_workers(process.pid)) == 2, "no second worker after the reload")
    assert rank(url, steps) == before


def test_a_server_whose_workers_cannot_start_ends(bundle: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("0123456789abcdef0123456789abcdef\n")
    command = [sys.executable, "-c", _START, str(bundle), str(keys)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "no worker can start, and the server ends" in done.stderr
    assert "Traceback" not in done.stderr


_START = """
import sys
from pathlib import Path
from longrec.serve import server
from longrec.serve.access import AccessOptions
original = server._open_socket
def open_socket(*arguments):
    Path(sys.argv[2]).unlink()  # after the checks of the supervisor
    return original(*arguments)
server._open_socket = open_socket
server.serve(sys.argv[1], port=0, workers=2, access=AccessOptions(api_keys=sys.argv[2]))
"""


def test_a_worker_that_fails_first_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """One starts after its bundle was replaced, before the supervisor has seen that the other serves."""
    started = list[str]()

    def make(alive: bool, responds: bool) -> Any:
        return SimpleNamespace(
            process=SimpleNamespace(is_alive=lambda: alive),
            exitcode=None if alive else supervisor.STARTUP_FAILURE,
            responds=lambda seconds: alive,
            has_served=responds,
            kill=lambda: None,
            join=lambda: None,
        )

    from longrec.serve import supervisor

    own = supervisor.Supervisor.__new__(supervisor.Supervisor)
    own.config, own.should_exit = uvicorn.Config("none", timeout_worker_healthcheck=5), threading.Event()
    own._has_served, own._retry_at = False, 0.0
    monkeypatch.setattr(own, "_start_worker", lambda: started.append("again") or make(True, True))  # type: ignore[func-returns-value]
    own.processes = [make(False, False), make(True, False)]
    own.keep_subprocess_alive()
    assert (own.should_exit.is_set(), started) == (False, [])
    own.processes[1] = make(True, True)
    own.keep_subprocess_alive()
    own.keep_subprocess_alive()
    assert (own.should_exit.is_set(), started) == (False, ["again"])
    own.processes, own._has_served = [make(False, False), make(False, False)], False
    own.keep_subprocess_alive()
    assert own.should_exit.is_set()


def test_a_worker_that_hangs_delays_nothing() -> None:
    worker = Worker.__new__(Worker)
    worker.parent_conn, worker.child_conn = Pipe()
    worker.process = SimpleNamespace(is_alive=lambda: True)  # type: ignore[assignment]
    worker.has_served, worker._waits, worker._responded = False, False, time.monotonic() - 50
    began = time.monotonic()
    assert worker.responds(60)
    assert worker.responds(60)  # it sends no second question before the first is answered
    assert not worker.responds(40)
    assert time.monotonic() - began < 10
    assert worker.child_conn.recv() == b"ping"
    assert not worker.child_conn.poll()
    worker.child_conn.send(True)
    assert worker.responds(40)
    assert worker.has_served
    worker.child_conn.close()
    assert not worker.responds(40)
    worker.parent_conn.close()


def test_a_worker_ends_although_it_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    from longrec.serve import supervisor

    ended = list[str]()
    hanging = SimpleNamespace(
        process=SimpleNamespace(join=lambda seconds: ended.append("waited" if seconds < 1 else "too long")),
        kill=lambda: ended.append("killed"),
        join=lambda: ended.append("joined"),
    )
    monkeypatch.setattr(supervisor, "END_SECONDS", 0.1)
    own = supervisor.Supervisor.__new__(supervisor.Supervisor)
    own.config = uvicorn.Config("none", timeout_graceful_shutdown=0)
    own.processes = [hanging]  # type: ignore[list-item]
    own.join_all()
    assert ended == ["waited", "killed", "joined"]


def test_workers_are_forked_from_a_process_without_onnxruntime() -> None:
    code = "import sys, longrec.serve.supervisor as s; [__import__(n) for n in s._IMPORTED if n != 'pandas']; "
    code += "print([n for n in ('onnxruntime', 'torch', 'duckdb') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_onnxruntime_reports_nothing() -> None:
    from longrec.onnx_import import import_onnxruntime

    import_onnxruntime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
