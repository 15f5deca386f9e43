"""A server whose clients are silent or slow, whose bundle is replaced, and whose store hangs.

    python bench/slow_clients.py [--requests 100000] [--folder FOLDER]

    connections    1,000 connections without a byte and 340 with half of a body of 1 MB: when they are closed, and the
                   memory of the server before, at its peak, and afterwards
    reload         requests of two clients while the bundle is replaced again and again: failures, and answers that come
                   from neither bundle
    million keys   a request with a million unknown keys: the time to its refusal, and the longest time of others

The server is the one of ``overload.py``. The two bundles of ``reload`` have different weights.
"""

from __future__ import annotations

import argparse
import socket
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import machine
import numpy as np
import orjson
import overload
import serving_latency

import longrec
from longrec.serve.client import client
from longrec.serve.limits import Limits
from longrec.serve.server import run_server

IDLE, HALF, MEGABYTE = 1_000, 340, 2**20
PATIENCE = Limits(head=5.0, body=5.0)


def read_memory(process: int) -> float:
    """Return the resident memory of a process in MB."""
    line = next(line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1_024


def measure_connections(bundle: Path) -> list[list[str]]:
    """Return rows of a table: what happens to connections that send nothing, or half."""
    rows = []
    half = b"POST /rank HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % MEGABYTE + b" " * (MEGABYTE // 2)
    with run_server(bundle, limits=PATIENCE) as url:
        address, process = urlsplit(url), overload.find_server(0)
        before = read_memory(process)
        for title, count, start in (("no byte", IDLE, b""), ("half of a body of 1 MB", HALF, half)):
            began, peak = time.perf_counter(), 0.0
            connections = [socket.create_connection((address.hostname, address.port)) for _ in range(count)]
            for connection in connections:
                connection.sendall(start)
            opened = time.perf_counter() - began
            closed = 0
            for connection in connections:
                connection.settimeout(30)
                while connection.recv(4_096):
                    peak = max(peak, read_memory(process))
                closed += 1
                connection.close()
            seconds = time.perf_counter() - began
            time.sleep(1)
            with client(url) as shop:
                assert shop.health()["status"] == "ok"
            row = [title, f"{count:,}", f"{opened:.1f}", f"{closed:,}", f"{seconds:.1f}"]
            rows.append([*row, f"{before:.0f}", f"{peak:.0f}", f"{read_memory(process):.0f}"])
            print(" ".join(rows[-1]), flush=True)
    return rows


def measure_reload(bundles: list[Path], requests: int) -> str:
    """Return a sentence: requests, failures and reloads."""
    link = bundles[0].with_name("current")
    body = {"user": 7, "candidates": list(range(3)), "context": {"device": 1}, "at": 1_800_000_000}
    wanted, answered, failures, others = set[float](), [0, 0], list[str](), list[float]()
    for bundle in bundles:
        with client(bundle) as shop:
            wanted.add(shop.rank(**body)[0].score)
    assert len(wanted) == 2, "two bundles with one score"
    reloads, end = 0, threading.Event()

    def send_all(number: int, url: str) -> None:
        with client(url) as shop:
            for _ in range(requests // 2):
                try:
                    score = shop.rank(**body)[0].score
                except longrec.errors.LongRecError as error:
                    failures.append(str(error))
                    continue
                answered[number] += 1
                if score not in wanted:
                    others.append(score)

    point(link, bundles[0])
    began = time.perf_counter()
    with run_server(link) as url:
        threads = [threading.Thread(target=send_all, args=(number, url)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        address = urlsplit(url)
        while any(thread.is_alive() for thread in threads):
            reloads += 1
            point(link, bundles[reloads % 2])
            with socket.create_connection((address.hostname, address.port)) as connection:
                connection.sendall(
                    b"POST /reload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                )
                connection.settimeout(60)
                response = b""
                while chunk := connection.recv(4_096):
                    response += chunk
            if b" 200 " not in response.split(b"\r\n", 1)[0]:
                failures.append(response.decode(errors="replace"))
            end.wait(0.5)
        for thread in threads:
            thread.join()
    seconds = time.perf_counter() - began
    text = f"{sum(answered):,} requests in {seconds:.0f} s, {reloads} reloads, {len(failures)} failures, "
    text += f"{len(others)} answers of neither bundle"
    print(text, *failures[:3], flush=True)
    return text


def point(link: Path, target: Path) -> None:
    """Let a symbolic link point to a bundle, in one step."""
    half = link.with_name("half")
    half.symlink_to(target)
    half.rename(link)


def measure_million_keys(bundle: Path) -> str:
    """Return a sentence: the time to a refusal, and the longest wait of others meanwhile."""
    context = {f"key number {number}": None for number in range(1_000_000)}
    body = orjson.dumps({"user": 7, "candidates": [1, 2, 3], "context": context})[: 16 * MEGABYTE]
    if not body.endswith(b"}}"):
        count = body.rfind(b",")
        body = body[:count] + b"}}"
    head = b"POST /rank HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    waits, end = list[float](), threading.Event()
    with run_server(bundle) as url:
        address = urlsplit(url)

        def send_all() -> None:
            with client(url) as shop:
                while not end.is_set():
                    began = time.perf_counter()
                    shop.health()
                    waits.append(time.perf_counter() - began)

        thread = threading.Thread(target=send_all)
        thread.start()
        with socket.create_connection((address.hostname, address.port)) as connection:
            time.sleep(0.5)
            began = time.perf_counter()
            connection.sendall(head + body)
            answer = connection.recv(65_536)
            seconds = time.perf_counter() - began
        end.set()
        thread.join()
    status = answer.split()[1].decode()
    text = f"{len(body) / MEGABYTE:.1f} MB of unknown keys: status {status} after {seconds:.2f} s, a response of "
    text += f"{len(answer):,} bytes; the longest wait of another request meanwhile was {1_000 * max(waits):.0f} ms"
    print(text, flush=True)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="folder of the bundles, which are used again")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="slow-clients-"))
    bundles = [folder / name for name in ("shop.bundle", "other.bundle")]
    folder.mkdir(parents=True, exist_ok=True)
    for seed, bundle in enumerate(bundles):
        if not bundle.exists():
            if not (folder / "events.parquet").exists():
                serving_latency.write_log(folder, np.random.default_rng(1))
            job = serving_latency.build_job(folder, overload.HISTORY)
            job["fit"]["seed"] = seed
            job["name"] = f"din-{seed}"
            longrec.export(longrec.train(job, quiet=True), bundle)
    rows = measure_connections(bundles[0])
    keys = measure_million_keys(bundles[0])
    reload = measure_reload(bundles, arguments.requests)
    columns = ["sent", "connections", "opened after s", "closed", "closed after s"]
    columns += ["MB before", "MB at the peak", "MB afterwards"]
    machine.write(
        "slow_clients",
        f"# Slow clients\n\nA head and a body have {PATIENCE.head:g} s.\n\n{machine.format_table(columns, rows)}\n\n"
        f"{keys}.\n\nReload: {reload}.",
    )


if __name__ == "__main__":
    main()
