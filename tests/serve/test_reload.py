"""Tests of the replacement of a bundle while requests are answered."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest
from in_process import InProcess

from longrec.serve.app import App
from longrec.serve.client import client
from longrec.serve.server import run_server
from longrec.serve.service import Service


def link(path: Path, target: Path) -> None:
    """Let a symbolic link point to another bundle, in one step."""
    half = path.with_name("half")
    half.symlink_to(target)
    half.rename(path)


@pytest.fixture
def served(steps: Any, tmp_path: Path) -> Path:
    """A link to a bundle, beside a copy with another digest."""
    for name in ("first.bundle", "second.bundle"):
        shutil.copytree(steps.bundle, tmp_path / name)
    change_digest(tmp_path / "second.bundle")
    path = tmp_path / "current"
    link(path, tmp_path / "first.bundle")
    return path


def change_digest(bundle: Path) -> None:
    """Change a fact of a bundle that no score depends on."""
    from longrec.exporting.bundle import DIGEST, MANIFEST, format_digest

    content = orjson.loads((bundle / MANIFEST).read_bytes())
    content["created"] = "2020-02-02T00:00:00Z"
    encoded = orjson.dumps(content)
    (bundle / MANIFEST).write_bytes(encoded)
    (bundle / DIGEST).write_bytes(format_digest(encoded))


@pytest.fixture
def http(served: Path) -> Iterator[InProcess]:
    app = App(Service(served))
    with InProcess(app) as http:
        yield http
    app.close()


def test_a_reload_serves_the_bundle_that_is_there_now(http: InProcess, served: Path) -> None:
    before = http.get("/health").json()["created"]
    assert http.post("/reload").json()["reloaded"] is False
    link(served, served.with_name("second.bundle"))
    assert http.get("/health").json()["created"] == before
    answer = http.post("/reload").json()
    assert answer["reloaded"] is True
    assert answer["before"] != answer["now"]
    assert http.get("/health").json()["created"] == "2020-02-02T00:00:00Z"
    assert http.get("/openapi.json").status == 200


def test_a_bundle_that_cannot_be_served_leaves_the_former_one(http: InProcess, served: Path, steps: Any) -> None:
    program = served.with_name("second.bundle") / "program.onnx"
    program.write_bytes(program.read_bytes()[:-1])
    link(served, served.with_name("second.bundle"))
    answer = http.post("/reload")
    assert answer.status == 422
    assert "program.onnx" in answer.json()["error"]["where"]
    assert http.post("/rank", steps.golden[0].request).status == 200


def test_the_former_service_is_closed_after_its_last_request(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = list[Service]()
    original = Service.close
    monkeypatch.setattr(Service, "close", lambda self: (closed.append(self), original(self)))
    app = App(Service(served))
    with InProcess(app) as http:
        old = app.current.acquire()
        link(served, served.with_name("second.bundle"))
        assert http.post("/reload").json()["reloaded"] is True
        assert old not in closed
        app.current.release(old)
        assert old in closed
    app.close()
    assert app.service in closed


@pytest.mark.parametrize("workers", [1, 2])
def test_no_request_is_dropped_by_reloads(served: Path, steps: Any, workers: int) -> None:
    request, failures, answers = dict(steps.golden[0].request), list[Exception](), list[Any]()
    end = threading.Event()

    def send_all(url: str) -> None:
        with client(url) as shop:
            while not end.is_set():
                try:
                    answers.append(shop.rank(**request)[0][:2])
                except Exception as error:  # noqa: BLE001  every failure is one of the test
                    failures.append(error)

    with run_server(served, workers=workers) as url:
        threads = [threading.Thread(target=send_all, args=(url,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for name in ("second.bundle", "first.bundle"):
                link(served, served.with_name(name))
                wanted = orjson.loads((served / "manifest.json").read_bytes())["created"]
                send_reload(url)
                wait_for(url, wanted, 4 * workers)
        finally:
            end.set()
            for thread in threads:
                thread.join()
    assert not failures
    assert len(answers) > 20
    assert len(set(answers)) == 1


def send_reload(url: str) -> None:
    import http.client

    connection = http.client.HTTPConnection(str(urlsplit(url).hostname), urlsplit(url).port, timeout=60)
    connection.request("POST", "/reload")
    response = connection.getresponse()
    assert response.status == 200, response.read()
    connection.close()


def wait_for(url: str, created: str, times: int) -> None:
    """Wait until a bundle was the served one several times in a row, by connections of their own."""
    row, end = 0, time.monotonic() + 60
    while row < times:
        assert time.monotonic() < end, "the bundle is not served by all"
        with client(url) as shop:
            row = row + 1 if shop.health()["created"] == created else 0


def test_a_signal_reloads(served: Path) -> None:
    from test_server import start_server

    process, url, _ = start_server(served)
    try:
        link(served, served.with_name("second.bundle"))
        os.kill(process.pid, signal.SIGHUP)
        wait_for(url, "2020-02-02T00:00:00Z", 1)
    finally:
        process.terminate()
        _, err = process.communicate(timeout=20)
    assert err.strip().endswith("the bundle is replaced")
