"""Several processes of a server: what they answer, what they cost, and how soon one that is killed is replaced.

    python bench/workers.py [--workers 1 2] [--seconds 8] [--kills 20]

The server runs DIN with 100 candidates and 50 past events (``serving_latency.py``). Clients wait for each response
before the next request, eight for each worker. They share the cores with the server: with two cores, two workers cannot
answer twice as much. Memory is the proportional share (PSS), so that what processes share counts once.

Then all workers are killed at once, again and again, while one client tries. It is measured from the kill, and from
the start of the first new process, until the first answer.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import machine
import numpy as np
import overload
import serving_latency
import uvloop

from longrec.errors import LongRecError
from longrec.serve.client import client
from longrec.serve.server import run_server


def find_processes(process: int) -> list[int]:
    """Return a process and its descendants."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [process, *(one for child in children for one in find_processes(int(child)))]


def find_workers(server: int) -> dict[int, float]:
    """Return the workers of a server, which have counters, with the seconds from the start of the machine to theirs."""
    workers = {}
    for process in find_processes(server)[1:]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            if ".counts" in Path(f"/proc/{process}/maps").read_text():
                workers[process] = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return workers


def read_memory(process: int) -> float:
    """Return the proportional set size of a process in MB."""
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1_000
    raise ValueError("no Pss")


def measure_load(port: int, workers: int, seconds: float) -> list[str]:
    """Return answers per second, CPU per answer, the share of the busiest worker, and memory."""
    server = overload.find_server(port)
    overload.WAITERS = 8 * workers
    uvloop.run(overload.measure_capacity("127.0.0.1", port, 2.0, False))
    processes = [server] if workers == 1 else sorted(find_workers(server))
    before = np.array([overload.read_cpu(process) for process in processes])
    rate = uvloop.run(overload.measure_capacity("127.0.0.1", port, seconds, False))
    spent = np.array([overload.read_cpu(process) for process in processes]) - before
    memory = sum(read_memory(process) for process in find_processes(server))
    milliseconds = f"{1_000 * spent.sum() / (rate * seconds):.2f}"
    return [f"{workers}", f"{rate:.0f}", milliseconds, f"{spent.max() / spent.sum():.2f}", f"{memory:.0f}"]


def measure_replacement(url: str, server: int) -> tuple[float, float]:
    """Kill all workers. Return the seconds until the first answer, from the kill and from the start of a process."""
    before = find_workers(server)
    began = time.perf_counter()
    for process in before:
        os.kill(process, signal.SIGKILL)
    while True:
        try:
            with client(url) as one:
                one.health()
            break
        except LongRecError:  # a connection that a killed worker had accepted
            time.sleep(0.001)
    seconds, now = time.perf_counter() - began, time.clock_gettime(time.CLOCK_BOOTTIME)
    started = [at for process, at in find_workers(server).items() if process not in before]
    return seconds, now - min(started)


def wait_for_workers(server: int, workers: int, url: str) -> None:
    """Wait until all workers are there, and have answered for a while."""
    while len(find_workers(server)) < workers:
        time.sleep(0.05)
    time.sleep(2.0)
    with client(url) as one:
        one.health()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--folder", type=Path, help="folder of the bundle, which is used again")
    arguments = parser.parse_args()
    bundle = overload.build_bundle(arguments.folder or Path(tempfile.mkdtemp(prefix="workers-")))
    rows, starts = [], []
    for workers in arguments.workers:
        with run_server(bundle, workers=workers) as url:
            server = overload.find_server(int(urlsplit(url).port or 80))
            wait_for_workers(server, 0 if workers == 1 else workers, url)
            rows.append(measure_load(int(urlsplit(url).port or 80), workers, arguments.seconds))
            print(" ".join(rows[-1]), flush=True)
            if workers == 1:
                continue
            for _ in range(arguments.kills):
                starts.append(measure_replacement(url, server))
                wait_for_workers(server, workers, url)
    columns = ["workers", "answered/s", "server's CPU ms per answer", "CPU of the busiest worker", "memory MB (PSS)"]
    text = machine.format_table(columns, rows)
    if starts:
        seconds = np.array(starts)
        lines = [
            [name, *(f"{value:.2f}" for value in (np.median(column), column.min(), column.max()))]
            for name, column in zip(("from the kill", "from the start of a process"), seconds.T)
        ]
        text += "\n\n" + machine.format_table(["seconds until the first answer", "median", "least", "most"], lines)
        print(machine.format_table(["seconds until the first answer", "median", "least", "most"], lines))
    machine.write(
        "workers",
        f"# Several processes\n\nDIN, {serving_latency.CANDIDATES} candidates, {overload.HISTORY} past events, "
        f"{arguments.seconds:g} s, eight waiting clients per worker, {len(starts)} kills of all workers.\n\n{text}",
    )


if __name__ == "__main__":
    main()
