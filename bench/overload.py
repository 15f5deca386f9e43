"""Load on a server: what it answers, sheds and how fast, at 50 to 300 % of its capacity, on kept and new connections.

    python bench/overload.py [--seconds 10] [--shares 50 80 100 200 300] [--connections kept new] [--queue 16]

The server runs DIN with 100 candidates and 50 past events (``serving_latency.py``), on the first core. The generator
runs on the last one. Capacity is what eight clients get who each wait for a response before the next request. Then
requests come at random times at a share of it, whatever the server does (an open loop), and latency counts from the
time at which a request should have been sent. With ``new`` every request opens its own connection. Percentiles are of
answered requests; a refusal has status 503.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import machine
import numpy as np
import orjson
import serving_latency
import uvloop

import longrec
from longrec.serve.limits import Limits
from longrec.serve.server import run_server

HISTORY, WAITERS, POOL, PATIENCE = 50, 8, 512, 5.0


@dataclass
class Outcome:
    """What the requests of one level got.

    Attributes:
        latencies: seconds of each answered request.
        refusals: seconds of each refused request.
        statuses: number of responses by status, 0 for none.
    """

    latencies: list[float] = field(default_factory=list)
    refusals: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    def add(self, status: int, seconds: float) -> None:
        """Count a response."""
        self.statuses[status] += 1
        if status in (200, 503):
            (self.latencies if status == 200 else self.refusals).append(seconds)


class Connection(asyncio.Protocol):
    """Connection with one request at a time."""

    def __init__(self, done: Callable[[Connection, int], None]) -> None:
        self.done, self.began, self.received, self.waits = done, 0.0, bytearray(), False
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def send(self, request: bytes, began: float) -> None:
        """Send a request."""
        assert self.transport is not None
        self.began, self.waits = began, True
        self.received.clear()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.received += data
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self.received[:end]).lower()
        start = head.index(b"content-length:") + len(b"content-length:")
        length = int(head[start:].split(b"\r\n", 1)[0])
        if len(self.received) >= end + 4 + length:
            self.finish(int(head[9:12]))

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self.finish(0)

    def finish(self, status: int) -> None:
        """Report the response once."""
        if self.waits:
            self.waits = False
            self.done(self, status)


def build_requests(host: str, count: int, close: bool) -> list[bytes]:
    """Return requests of random users and candidates."""
    rng, requests = np.random.default_rng(1), []
    for _ in range(count):
        candidates = rng.choice(serving_latency.ITEMS, serving_latency.CANDIDATES, replace=False).tolist()
        user = int(rng.integers(serving_latency.USERS))
        body = orjson.dumps({"user": user, "candidates": candidates, "context": {"device": 1}})
        head = (
            f"POST /rank HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        )
        requests.append(head.encode() + (b"Connection: close\r\n" if close else b"") + b"\r\n" + body)
    return requests


async def measure_capacity(host: str, port: int, seconds: float, close: bool) -> float:
    """Return answers per second of clients who wait for each response."""
    requests, answered = build_requests(host, 500, close), 0
    end = time.perf_counter() + seconds
    loop = asyncio.get_running_loop()

    async def wait(number: int) -> None:
        nonlocal answered
        connection = None
        while time.perf_counter() < end:
            number += WAITERS
            if connection is None or close or connection.transport is None:
                _, connection = await loop.create_connection(lambda: Connection(lambda one, status: None), host, port)
            future = loop.create_future()
            connection.done = lambda one, status, future=future: future.set_result(status)
            connection.send(requests[number % len(requests)], time.perf_counter())
            status = await future
            answered += status == 200
        if connection is not None and connection.transport is not None:
            connection.transport.close()

    began = time.perf_counter()
    await asyncio.gather(*(wait(number) for number in range(WAITERS)))
    return answered / (time.perf_counter() - began)


async def load(host: str, port: int, rate: float, seconds: float, close: bool) -> Outcome:
    """Send requests at random times at a rate, and return what they got."""
    requests, outcome, rng = build_requests(host, 500, close), Outcome(), np.random.default_rng(2)
    loop, free, open_tasks, sent = asyncio.get_running_loop(), [], set(), 0

    def finish(connection: Connection, status: int) -> None:
        outcome.add(status, time.perf_counter() - connection.began)
        if close:
            if connection.transport is not None:
                connection.transport.close()
        elif connection.transport is not None:
            free.append(connection)

    async def connect_and_send(request: bytes, due: float) -> None:
        try:
            _, connection = await loop.create_connection(lambda: Connection(finish), host, port)
        except OSError:
            outcome.add(0, 0.0)
            return
        connection.send(request, due)

    if not close:
        for _ in range(POOL):
            _, connection = await loop.create_connection(lambda: Connection(finish), host, port)
            free.append(connection)
    times = np.cumsum(rng.exponential(1 / rate, int(rate * seconds))) + time.perf_counter() + 0.1
    for due in times.tolist():
        while (left := due - time.perf_counter()) > 0:
            await asyncio.sleep(left if left > 0.001 else 0)
        sent += 1
        while free and free[-1].transport is None:
            free.pop()
        if not close and free:
            free.pop().send(requests[sent % len(requests)], due)
        else:  # the pool is used up, or every request has its own connection
            task = loop.create_task(connect_and_send(requests[sent % len(requests)], due))
            open_tasks.add(task)
            task.add_done_callback(open_tasks.discard)
    end = time.perf_counter() + PATIENCE
    while sum(outcome.statuses.values()) < sent and time.perf_counter() < end:
        await asyncio.sleep(0.01)
    outcome.statuses[0] += sent - sum(outcome.statuses.values())
    for connection in free:
        if connection.transport is not None:
            connection.transport.close()
    return outcome


def format_row(share: int, rate: float, seconds: float, outcome: Outcome, server_cpu: float) -> list[str]:
    """Return one row of the table."""
    latencies = 1_000 * np.array(outcome.latencies or [np.nan])
    p50, p99, p999 = np.percentile(latencies, (50, 99, 99.9))
    failed = sum(count for status, count in outcome.statuses.items() if status not in (200, 503))
    refused = 1_000 * float(np.median(outcome.refusals)) if outcome.refusals else float("nan")
    return [
        *(f"{share} %", f"{rate:.0f}", f"{len(outcome.latencies) / seconds:.0f}"),
        *(f"{len(outcome.refusals) / seconds:.0f}", f"{failed}", f"{p50:.2f}", f"{p99:.2f}", f"{p999:.2f}"),
        *(f"{refused:.2f}", f"{server_cpu:.2f}"),
    ]


def find_server(port: int) -> int:
    """Return the process that listens on a port: the youngest child of this one."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return int(children[-1])


def read_cpu(process: int) -> float:
    """Return the CPU seconds of a process."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def build_bundle(folder: Path) -> Path:
    """Return the bundle in a folder, and write it if there is none."""
    bundle = folder / "shop.bundle"
    if not bundle.exists():
        folder.mkdir(parents=True, exist_ok=True)
        serving_latency.write_log(folder, np.random.default_rng(1))
        longrec.export(longrec.train(serving_latency.build_job(folder, HISTORY), quiet=True), bundle)
    return bundle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--shares", nargs="*", type=int, default=[50, 80, 100, 200, 300])
    parser.add_argument("--connections", nargs="*", default=["kept", "new"], choices=["kept", "new"])
    parser.add_argument("--queue", type=int, default=Limits().queue)
    parser.add_argument("--folder", type=Path, help="folder of the bundle, which is used again")
    arguments = parser.parse_args()
    bundle = build_bundle(arguments.folder or Path(tempfile.mkdtemp(prefix="overload-")))
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[0]})  # of the server, which inherits it
    tables = []
    with run_server(bundle, limits=Limits(queue=arguments.queue)) as url:
        os.sched_setaffinity(0, {cores[-1]})
        address = urlsplit(url)
        host, port = str(address.hostname), int(address.port or 80)
        process = find_server(port)
        for kind in arguments.connections:
            close, rows = kind == "new", []
            uvloop.run(measure_capacity(host, port, 2.0, close))  # warm up
            capacity = uvloop.run(measure_capacity(host, port, arguments.seconds, close))
            print(f"{kind} connections: capacity {capacity:.0f}/s", flush=True)
            for share in arguments.shares:
                before, began, rate = read_cpu(process), time.perf_counter(), capacity * share / 100
                outcome = uvloop.run(load(host, port, rate, arguments.seconds, close))
                spent = (read_cpu(process) - before) / (time.perf_counter() - began)
                rows.append(format_row(share, rate, arguments.seconds, outcome, spent))
                print(" ".join(rows[-1]), flush=True)
            columns = ["load", "sent/s", "answered/s", "refused/s", "failed", "p50 ms", "p99 ms", "p99.9 ms"]
            columns += ["p50 of a refusal, ms", "server's CPU"]
            tables.append(f"## {kind} connections, capacity {capacity:.0f}/s\n\n{machine.format_table(columns, rows)}")
    machine.write(
        "overload",
        f"# Load on a server\n\nDIN, {serving_latency.CANDIDATES} candidates, {HISTORY} past events, a queue of "
        f"{arguments.queue}, {arguments.seconds:g} s per level, server and generator each on a core of its own.\n\n"
        + "\n\n".join(tables),
    )


if __name__ == "__main__":
    main()
