"""Tests of a server whose clients are slow, silent, too many, or in a hurry."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest

from longrec.serve.limits import Limits
from longrec.serve.server import run_server

LIMITS = Limits(queue=2, connections=12, head=1.0, body=2.0, idle=2.0, head_bytes=4_096, open_bytes=300_000)


@pytest.fixture(scope="module")
def address(steps: Any) -> Iterator[tuple[str, int]]:
    with run_server(steps.bundle, limits=LIMITS) as url:
        parsed = urlsplit(url)
        yield str(parsed.hostname), int(parsed.port or 0)


def build_post(body: bytes, *headers: str, path: str = "/rank") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def read_response(connection: socket.socket) -> tuple[int, dict[str, str], Any]:
    """Return status, headers and content of one response."""
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = connection.recv(65_536)
        if not chunk:
            return 0, {}, None
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers["content-length"]):
        body += connection.recv(65_536)
    is_json = headers["content-type"] == "application/json"
    return int(first.split()[1]), headers, orjson.loads(body) if is_json else body.decode()


def exchange(address: tuple[str, int], request: bytes) -> tuple[int, dict[str, str], Any]:
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(request)
        return read_response(connection)


def read_metric(address: tuple[str, int], name: str) -> float:
    text = exchange(address, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")[2]
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


@pytest.mark.parametrize(
    "start",
    [b"", b"POST /ra", build_post(b"{}" * 50)[:-60]],
    ids=["silent", "half a head", "half a body"],
)
def test_a_connection_that_does_not_finish_its_request_is_closed(address: tuple[str, int], start: bytes) -> None:
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(start)
        status, headers, content = read_response(connection)
        assert (status, headers["connection"]) == (408, "close")
        assert "not complete after" in content["error"]["found"]
        assert connection.recv(1) == b""


def test_a_kept_connection_without_a_request_is_closed(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=10) as connection:
        for _ in range(2):
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert read_response(connection)[0] == 200
        assert connection.recv(1) == b""


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"a" * 5_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 2_000 + b"\r\n",
        b"GET / HTTP/1.1\r\nx: " + b"y" * 5_000,
    ],
    ids=["address", "many headers", "a header that does not end"],
)
def test_a_head_that_is_too_large_is_refused(address: tuple[str, int], head: bytes) -> None:
    status, headers, content = exchange(address, head)
    assert (status, headers["connection"]) == (431, "close")
    assert content["error"]["expected"] == "at most 4,096 bytes"


def test_what_is_no_http_is_refused(address: tuple[str, int]) -> None:
    assert exchange(address, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")[0] == 400


def test_connections_beyond_the_limit_are_refused_until_others_close(address: tuple[str, int], steps: Any) -> None:
    with ExitStack() as closing:
        for _ in range(LIMITS.connections):
            closing.enter_context(socket.create_connection(address, timeout=10))
        time.sleep(0.2)
        status, headers, content = exchange(address, b"")
        assert (status, headers["retry-after"]) == (503, "1")
        assert content["error"]["found"] == "too many connections are open"
    time.sleep(0.2)
    request = build_post(orjson.dumps(steps.golden[0].request))
    assert exchange(address, request)[0] == 200


def test_bodies_that_are_too_many_at_once_are_refused(address: tuple[str, int]) -> None:
    half = build_post(b" " * 120_000)[:-10]
    with ExitStack() as closing:
        statuses = []
        for _ in range(4):
            connection = closing.enter_context(socket.create_connection(address, timeout=10))
            connection.sendall(half)
            time.sleep(0.1)
        connection.settimeout(5)
        statuses.append(read_response(connection)[0])
        assert statuses == [503]
    time.sleep(0.2)
    assert exchange(address, build_post(b" " * 120_000))[0] == 400  # their bytes are free again


def test_requests_beyond_the_queue_are_refused_and_the_others_answered(address: tuple[str, int], steps: Any) -> None:
    request, count = build_post(orjson.dumps(steps.golden[0].request)), 10
    shed = read_metric(address, "longrec_shed_total")
    with ExitStack() as closing:
        connections = [closing.enter_context(socket.create_connection(address, timeout=10)) for _ in range(count)]
        time.sleep(0.1)
        statuses = []
        barrier = threading.Barrier(count)

        def send(connection: socket.socket) -> None:
            barrier.wait()
            for _ in range(20):
                connection.sendall(request)
                statuses.append(read_response(connection)[0])

        threads = [threading.Thread(target=send, args=(connection,)) for connection in connections]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(statuses) == 20 * count
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) > 20
    assert read_metric(address, "longrec_shed_total") - shed == statuses.count(503)


@pytest.mark.parametrize("text", ["0", "-5", "soon", "1e3", "9" * 400])
def test_a_deadline_that_is_no_number_is_refused(address: tuple[str, int], steps: Any, text: str) -> None:
    request = build_post(orjson.dumps(steps.golden[0].request), f"X-Request-Timeout-Ms: {text}")
    status, _, content = exchange(address, request)
    assert (status, content["error"]["where"]) == (400, "x-request-timeout-ms")
    assert len(content["error"]["found"]) < 200


def test_pipelined_requests_are_answered_in_order(address: tuple[str, int], steps: Any) -> None:
    request = build_post(orjson.dumps(steps.golden[0].request))
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(request + b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        received = b""
        while chunk := connection.recv(65_536):
            received += chunk
    assert received.count(b"HTTP/1.1 200 OK") == 2
    assert received.index(b'"items"') < received.index(b'"status":"ok"')
