from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from longrec.errors import LongRecError
from longrec.serve.client import client
from longrec.serve.server import format_url, run_server, serve


def start_server(bundle: Path, workers: int = 1) -> tuple[subprocess.Popen[str], str, str]:
    arguments = [sys.executable, "-m", "longrec.serve.server", str(bundle), "0", str(workers)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = process.stdout.readline()
    return process, first.split("ready at ")[1].split()[0], process.stdout.readline()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_the_server_cleanly(steps: Any, number: signal.Signals, code: int) -> None:
    process, url, curl = start_server(steps.bundle)
    with client(url) as shop:
        assert shop.health()["model"] == "shop:PlainRanker"
    assert curl.startswith(f"curl -s {url}/rank ")
    if shutil.which("curl"):
        answer = subprocess.run(curl, shell=True, capture_output=True, text=True, check=True)
        assert '"items":[{"id":' in answer.stdout
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (code, "", "")


def test_workers_share_a_port_and_their_counts(steps: Any) -> None:
    request = {**steps.golden[0].request}
    with run_server(steps.bundle, workers=2) as url:
        for _ in range(12):
            with client(url) as shop:  # one connection each, so that both workers get requests
                shop.rank(**request)
        with client(url) as shop:
            text = shop._call("GET", "/metrics").decode()  # type: ignore[attr-defined]
        assert 'longrec_requests_total{route="/rank",status="200"} 12' in text


def find_descendants(process: int) -> set[int]:
    try:
        children = {int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()}
    except FileNotFoundError:
        return set()
    return children.union(*(find_descendants(child) for child in children))


def find_workers(server: int) -> set[int]:
    """Return the workers of a server, which have counters."""
    workers = set[int]()
    for process in find_descendants(server):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            workers |= {process} if ".counts" in Path(f"/proc/{process}/maps").read_text() else set()
    return workers


def test_workers_end_after_a_killed_supervisor(steps: Any) -> None:
    process, url, _ = start_server(steps.bundle, workers=2)
    with client(url) as shop:
        assert shop.health()["status"] == "ok"  # a worker serves
    descendants = find_descendants(process.pid)
    assert len(descendants) >= 4  # two workers, the process that they are forked from, the tracker of resources
    process.kill()
    process.communicate(timeout=20)
    end = time.monotonic() + 60  # the other worker may still be starting
    while any(Path(f"/proc/{one}").exists() for one in descendants):
        assert time.monotonic() < end, "a worker goes on without its supervisor"
        time.sleep(0.1)


def test_an_altered_bundle_is_not_served(steps: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGREC_COPIES", str(tmp_path / "copies"))  # another server may use an unaltered copy
    copy = Path(shutil.copytree(steps.bundle, tmp_path / "bundle"))
    content = bytearray((copy / "program.onnx").read_bytes())
    content[100] ^= 1
    (copy / "program.onnx").write_bytes(bytes(content))
    with pytest.raises(LongRecError, match=r"program\.onnx: its SHA-256"), run_server(copy):
        pass
    done = subprocess.run(
        [sys.executable, "-m", "longrec.serve.server", str(copy), "0", "1"], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_taken_address_is_reported(steps: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(LongRecError, match="cannot be bound"):
        serve(steps.bundle, port=taken.getsockname()[1])


def test_a_server_that_dies_is_reported(steps: Any) -> None:
    process, url, _ = start_server(steps.bundle)
    with client(url) as shop:
        shop.health()
        process.kill()
        process.communicate(timeout=20)
        with pytest.raises(LongRecError, match="no response"):
            shop.health()


def test_addresses() -> None:
    assert format_url("127.0.0.1", 80) == "http://127.0.0.1:80"
    assert format_url("0.0.0.0", 80) == "http://127.0.0.1:80"
    assert format_url("::", 80) == "http://[::1]:80"
