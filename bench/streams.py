"""A worker of a stream that is killed again and again: every event is stored once, and every state has all events.

    python bench/streams.py [--events 1000000] [--users 5000] [--kills 10] [--server] [--write]

A bundle of ``hpmn`` with states is exported. A stream gets events of users of the log and of new ones, in the order in
which they arrive, up to 20 seconds after they happened. Some are sent twice, and some are no valid events. ``longrec
stream`` reads them, and is killed with SIGKILL at random entries; the next worker goes on. In the end the stored events
of every user are compared with those that were sent, and the states with one pass over all events of the user: those
that the workers have left, and those of all events after ``longrec warm``. The state is a folder, or with ``--server``
at the same server as the stream. CPU time is that of all workers, their starts and restarts included.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import redis
from numpy.typing import NDArray

import longrec
from longrec.features.token_columns import compute_instance_ids
from longrec.serve.request_time import read_clock
from longrec.serve.service import Service
from longrec.serve.settings import build_settings
from longrec.serve.user_states import _Folding
from longrec.store.history_store import Events

sys.path[1:1] = [str(Path(__file__).resolve().parent.parent / "tests" / "store")]
ITEMS, PAGES, OLD, LATE, STEP = 500, ("home", "search", "cart", "sale", "mail"), 20, 20_000, 100
SCHEMA: dict[str, Any] = {
    "user": "user_id",
    "item": "item_id",
    "time": {"column": "at", "unit": "ms"},
    "label": "click",
    "features": {
        "user_id": {"kind": "id"},
        "item_id": {"kind": "id"},
        "page": {"kind": "id"},
        "kind": {"kind": "id", "side": "item"},
    },
    "histories": {"seen": {"features": ["item_id", "kind", "page"], "max_length": 100}},
}


class Sent:
    """Events by user, item, page and time: first those of the log, then those of the stream."""

    def __init__(self, users: int, events: int, rng: np.random.Generator) -> None:
        of_log = users * 4 // 5
        old, end = of_log * OLD, read_clock() - 600_000
        self.start = end - STEP * events
        arrived = self.start + STEP * np.arange(events)
        times = np.concatenate([self.start - 86_400_000 + rng.integers(0, 80_000_000, old), arrived])
        times[old:] -= rng.integers(0, LATE, events)
        owners = np.concatenate([np.repeat(np.arange(of_log), OLD), rng.integers(0, users, events)])
        items = rng.integers(0, ITEMS, old + events)
        self.old, self.arrived, self.users, self.items, self.times = old, arrived, owners, items, times
        self.pages = rng.integers(0, len(PAGES), old + events)
        self.clicks = rng.integers(0, 2, old + events)
        self.names = compute_instance_ids(owners, items, times)


def write_log(sent: Sent, folder: Path) -> dict[str, str]:
    """Write the log and the items."""
    some = slice(0, sent.old)
    columns = {"user_id": sent.users[some], "item_id": sent.items[some], "at": sent.times[some]}
    columns |= {"page": np.array(PAGES)[sent.pages[some]], "click": sent.clicks[some]}
    pq.write_table(pa.table(columns), folder / "log.parquet")
    pq.write_table(
        pa.table({"item_id": range(ITEMS), "kind": [n % 20 for n in range(ITEMS)]}), folder / "items.parquet"
    )
    return {name: str(folder / f"{name}.parquet") for name in ("log", "items")}


def export(data: dict[str, str], folder: Path) -> Path:
    """Train one step, and export with states."""
    fit = {"max_steps": 1, "batch_size": 8, "runs": str(folder / "runs"), "tensorboard": "off"}
    data_config = {**data, "schema": SCHEMA, "folder": str(folder / "prepared"), "split": {"by": "leave_one_out"}}
    config = {"name": "hpmn", "data": data_config, "model": {"name": "hpmn"}, "fit": fit}
    run = longrec.train({**config, "evaluate": {"n_resamples": 2}}, quiet=True)
    longrec.export(run, folder / "hpmn.bundle", states=True)
    return folder / "hpmn.bundle"


def fill(client: redis.Redis, sent: Sent, rng: np.random.Generator) -> tuple[int, int]:
    """Add the events to the stream, and return how many were sent again, and how many are no valid events."""
    repeated, invalid = 0, 0
    for first in range(sent.old, len(sent.users), 10_000):
        with client.pipeline(transaction=False) as batch:
            for at in range(first, min(first + 10_000, len(sent.users))):
                event = {"user": int(sent.users[at]), "item": int(sent.items[at]), "at": int(sent.times[at])}
                event |= {"context": {"page": PAGES[sent.pages[at]]}, "feedback": {"click": int(sent.clicks[at])}}
                content, name = orjson.dumps(event), int(sent.arrived[at - sent.old])
                batch.xadd("events", {"event": content}, id=f"{name}-0")
                if rng.random() < 0.01:
                    batch.xadd("events", {"event": content}, id=f"{name}-1")
                    repeated += 1
                if rng.random() < 0.001:
                    batch.xadd("events", {"event": orjson.dumps({**event, "item": "none"})}, id=f"{name}-2")
                    invalid += 1
            batch.execute()
    return repeated, invalid


def run_workers(
    command: list[str], client: redis.Redis, total: int, kills: int, rng: np.random.Generator
) -> tuple[float, float, list[int], dict[str, Any]]:
    """Run workers until the stream is empty. Returns CPU and wall seconds, entries read at kills, and the result."""
    points = np.sort(rng.integers(total // 100, total, kills)).tolist()
    cpu, began, killed = 0.0, time.perf_counter(), []
    while True:
        worker = subprocess.Popen(command, stdout=subprocess.PIPE)
        while points and worker.poll() is None:
            groups: Any = client.xinfo_groups("events") if client.exists("events") else []
            read = int(groups[0]["entries-read"] or 0) if groups else 0
            if read >= points[0]:
                time.sleep(float(rng.random()) * 0.3)  # so that it is killed at any step of its work
                worker.kill()
                killed.append(read)
                points.pop(0)
                break
            time.sleep(0.02)
        assert worker.stdout is not None
        output = worker.stdout.read()
        _, status, used = os.wait4(worker.pid, 0)
        worker.returncode = os.waitstatus_to_exitcode(status)
        cpu += used.ru_utime + used.ru_stime
        if worker.returncode == 0:
            return cpu, time.perf_counter() - began, killed, json.loads(output)
        if worker.returncode != -9:
            sys.exit(f"the worker ended with {worker.returncode}")


def compare_events(service: Service, sent: Sent) -> tuple[int, int, int]:
    """Return the number of stored events, of those that are lacking, and of those that are stored but were not sent."""
    expected = set(zip(*(column[sent.old :].tolist() for column in (sent.users, sent.times, sent.names))))
    live = service.recorder.live_stores[0][0]
    stored: list[tuple[int, int, int]] = []
    for user, events in live.backend.scan():
        stored += zip([user] * len(events), events.times.tolist(), events.columns["instance"].tolist())
    records = service.recorder.state.recorded
    assert records is not None
    raw = [(int(one.user), one.at) for one in records.scan()]
    assert sorted(raw) == sorted((user, at) for user, at, _ in expected), "raw values differ"
    return len(stored), len(expected - set(stored)), len(stored) - len(expected & set(stored))


def compute_states(service: Service, sent: Sent, ends: dict[int, int]) -> dict[int, NDArray[np.float32]]:
    """Return the state of each user after all events before a timestamp, in one pass."""
    histories, encoder = service.served.encoder.histories, service.served.encoder
    states = histories.states
    assert states is not None
    rows = np.array([encoder.look_up_item(item) for item in range(ITEMS)])
    pages = np.array([encoder.event_values.encode("page", {"page": page}) for page in PAGES])
    order = np.lexsort((sent.names, sent.times, sent.users))
    _, unique = np.unique(sent.names[order], return_index=True)
    order = order[np.sort(unique)]
    bounds = np.searchsorted(sent.users[order], np.arange(sent.users.max() + 2))
    results: dict[int, NDArray[np.float32]] = {}
    users = sorted(ends)
    for first in range(0, len(users), 256):
        some, foldings = users[first : first + 256], []
        for user in some:
            own = order[bounds[user] : bounds[user + 1]]
            own = own[sent.times[own] < ends[user]]
            columns = {"item": rows[sent.items[own]], "page": pages[sent.pages[own]]}
            events = Events(np.array([0, len(own)]), sent.times[own], columns)
            encoded = histories.encode("seen", events, read_clock())
            foldings.append(_Folding(states._split(None), {"seen": events}, {"seen": encoded}))
        results |= dict(zip(some, states._run("seen", foldings)))
    return results


def compare_states(service: Service, sent: Sent) -> tuple[int, float, int]:
    """Return the number of states, the largest difference from one pass, and the number of events in the states."""
    states = service.served.encoder.histories.states
    assert states is not None
    stored = {user: one for user in range(sent.users.max() + 1) if (one := states.store.get(user)) is not None}
    expected = compute_states(service, sent, {user: one.until for user, one in stored.items()})
    worst = max(
        (float(np.abs(np.frombuffer(one.content, np.float32) - expected[user]).max()) for user, one in stored.items()),
        default=0.0,
    )
    ends = np.array([stored[user].until if user in stored else 0 for user in range(sent.users.max() + 1)])
    return len(stored), worst, int((sent.times < ends[sent.users]).sum())


def main() -> None:
    """Print what was stored, and the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=5_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--batch", type=int, default=2_000)
    parser.add_argument("--server", action="store_true", help="keep the state at the server")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    import redis_server

    rng = np.random.default_rng(7)
    with tempfile.TemporaryDirectory() as scratch, redis_server.serving() as url:
        folder, client = Path(scratch), redis.Redis.from_url(url)
        sent = Sent(arguments.users, arguments.events, rng)
        bundle = export(write_log(sent, folder), folder)
        repeated, invalid = fill(client, sent, rng)
        server: Any = client.info("server")
        total = arguments.events + repeated + invalid
        print(f"{total:,} entries in the stream", flush=True)
        state = f"{url}/shop" if arguments.server else str(folder / "state")
        command = [sys.executable, "-m", "longrec", "stream", str(bundle), "--from", f"{url}/events", "--state", state]
        command += ["--batch", str(arguments.batch), "--until-empty", "--json", "-"]
        cpu, wall, killed, done = run_workers(command, client, total, arguments.kills, rng)
        start_cpu, *_ = run_workers(command, client, total, 0, rng)
        distinct = len(np.unique(sent.names[sent.old :]))
        with contextlib.closing(Service(bundle, build_settings(events=True, state=state))) as service:
            stored, lost, doubled = compare_events(service, sent)
            count, worst, in_states = compare_states(service, sent)
        warmed = longrec.warm(bundle, state=state)
        with contextlib.closing(Service(bundle, build_settings(events=True, state=state))) as service:
            every, worst_of_all, in_all = compare_states(service, sent)
        refused: Any = client.xlen("events:refused")
        pending: Any = client.xpending("events", "longrec")
    lines = [
        f"- {total:,} entries: {arguments.events:,} events of {arguments.users:,} users, {repeated:,} of them sent "
        f"twice, and {invalid:,} that are no valid events. Stream at {server.get('server_name', 'redis')} "
        f"{server['redis_version']}; state {'at the same server' if arguments.server else 'in a folder'}.",
        f"- Workers killed with SIGKILL: {len(killed)}, after {', '.join(f'{n:,}' for n in killed)} entries.",
        f"- Events stored: {stored:,} of {distinct:,}; lost {lost}, doubled or never sent {doubled}. Refused entries "
        f"{refused:,} of {invalid:,}; pending {pending['pending']}.",
        f"- States that the workers left: {count:,}, with {in_states:,} events; largest difference from one pass over "
        f"all events {worst:.1e}. After longrec warm ({warmed['folded']:,} folded): {every:,} states with {in_all:,} "
        f"of {len(sent.users):,} events, largest difference {worst_of_all:.1e}.",
        f"- All workers: {cpu:.1f} CPU-seconds, {wall:.1f} seconds: {total / cpu:,.0f} entries per CPU-second, "
        f"{total / wall:,.0f} per second. Of that {len(killed) + 1} starts; a start with all events stored takes "
        f"{start_cpu:.1f} CPU-seconds. The last worker folded {done['folded']:,} states.",
    ]
    text = "# Events of a stream, with a worker that is killed\n\n" + "\n".join(lines)
    if arguments.write:
        machine.write("streams", text)
    else:
        print(text)


if __name__ == "__main__":
    main()
