"""A server that is killed again and again while it records events: what was acknowledged is stored, once.

    python bench/killed_server.py [--store histories] [--kills 100] [--seconds 0.5]

Six clients post events, more than the server may have waiting, so that some are refused. After some time the server is
killed with ``kill -9``. The next server goes on with the same folder. In the end every acknowledged event has to be in
its stores exactly once, and so has every other stored one: with ``--store tokens`` in the store of tokens, with
``--store histories`` in the histories of the bundle and among the raw values for the next log. The bundles are those of
the tests of events.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import machine
import msgspec
import numpy as np

from longrec.serve.knowledge_features import key_number
from longrec.serve.limits import Limits
from longrec.serve.service import Service
from longrec.serve.settings import build_settings
from longrec.store.token_store import TokenStore

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path[1:1] = [str(TESTS), str(TESTS / "serve"), str(TESTS / "store")]
CLIENTS, CONTEXT = 6, {"place": "side", "price": 2.25}
Stored = Counter[tuple[Any, int]]
"""Number of stored events by user and timestamp."""


@dataclass(frozen=True)
class Shop:
    """A bundle, and what its clients post.

    Attributes:
        events: source of tokens, True for histories.
        start: timestamp of the first event.
        count: function of the folder of the state that returns what each of its stores has.
    """

    bundle: Path
    events: str | bool
    users: Sequence[Any]
    items: Sequence[Any]
    start: int
    count: Callable[[Path], dict[str, Stored]]


def build_token_shop() -> Shop:
    """Return the shop whose events are tokens."""
    import token_shop

    own, start = token_shop.shop(), token_shop.START + 30 * token_shop.DAY
    users = [f"u{number}" for number in range(1, 9)]

    def count(state: Path) -> dict[str, Stored]:
        with TokenStore.open(state / "tokens" / "tokens") as store:
            times = {user: store.last(key_number(user), 2**62, 10**6).times.tolist() for user in users}
        return {"tokens": Counter((user, at) for user, every in times.items() for at in every if at >= start)}

    return Shop(own.bundle, str(own.source), users, range(100, 110), start, count)


def build_history_shop(folder: Path) -> Shop:
    """Return the shop whose events are in the histories of its bundle."""
    import live_shop

    bundle, users, start = live_shop.train_shop(folder).bundle, range(8), live_shop.START + 10**9

    def count(state: Path) -> dict[str, Stored]:
        settings = build_settings(events=True, state=state)
        with contextlib.closing(Service(bundle, settings, lambda: 2 * start)) as service:
            encoder, recorder = service.served.encoder, service.recorder
            live, records = encoder.histories.live, recorder.state.recorded
            assert live is not None
            assert records is not None
            own: Stored = Counter()
            for user in users:
                row = encoder.look_up_user(user)
                events = live.last(key_number(user), row, 2 * start, 10**6, None, ["item"], 2 * start)
                own.update((user, at) for at in events.times.tolist() if at >= start)
            raw = Counter((event.user, event.at) for event in records.scan() if event.at >= start)
        return {"histories": own, "raw values": raw}

    return Shop(bundle, True, users, [f"i{number}" for number in range(10)], start, count)


class Flood:
    """Clients of one server, who post events until it dies."""

    def __init__(self, first: int, shop: Shop) -> None:
        self.first, self.shop, self.sent, self.ends = first, shop, 0, False
        self.acknowledged, self.statuses, self.seconds = list[tuple[Any, int]](), Counter[int](), list[float]()
        self._lock = threading.Lock()

    def run(self, url: str) -> None:
        """Post events over one connection until the server dies, or the end."""
        address = urlsplit(url)
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=30)
        while not self.ends:
            with self._lock:
                number = self.first + self.sent
                self.sent += 1
            users, items, at = self.shop.users, self.shop.items, self.shop.start + number
            user = users[number % len(users)]
            event = {"user": user, "item": items[number % len(items)], "at": at, "context": CONTEXT}
            began = time.perf_counter()
            try:
                connection.request("POST", "/events", json.dumps(event), {"content-type": "application/json"})
                response = connection.getresponse()
                response.read()
            except (OSError, http.client.HTTPException):
                return
            with self._lock:
                self.seconds.append(time.perf_counter() - began)
                self.statuses[response.status] += 1
                if response.status == 200:
                    self.acknowledged.append((user, at))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=0.5, help="longest time until a kill")
    parser.add_argument("--store", choices=["tokens", "histories"], default="tokens")
    arguments = parser.parse_args()
    rng = np.random.default_rng(1)
    acknowledged, statuses, number = list[tuple[Any, int]](), Counter[int](), 0
    with tempfile.TemporaryDirectory() as folder:
        shop = build_token_shop() if arguments.store == "tokens" else build_history_shop(Path(folder))
        state = Path(folder, "state")
        settings = build_settings(events=shop.events, state=state)
        encoded = [msgspec.json.encode(one).decode() for one in (settings, Limits(queue=3))]
        for kill in range(arguments.kills):
            command = [sys.executable, "-m", "longrec.serve.server", str(shop.bundle), "0", "1", *encoded]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            url = process.stdout.readline().split("ready at ")[1].split()[0]
            flood = Flood(number, shop)
            threads = [threading.Thread(target=flood.run, args=(url,)) for _ in range(CLIENTS)]
            for thread in threads:
                thread.start()
            time.sleep(float(rng.uniform(0.05, arguments.seconds)))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            for thread in threads:
                thread.join()
            number += flood.sent
            acknowledged += flood.acknowledged
            statuses += flood.statuses
            if (kill + 1) % 10 == 0:
                print(f"{kill + 1} kills, {len(acknowledged):,} events acknowledged", flush=True)
        stored = shop.count(state)
    lost = {name: [one for one in acknowledged if not own[one]] for name, own in stored.items()}
    doubled = {name: [one for one, count in own.items() if count > 1] for name, own in stored.items()}
    each = "; ".join(
        f"in the {name} {sum(own.values()):,} stored, {len(lost[name])} acknowledged ones lost, {len(doubled[name])} "
        "doubled"
        for name, own in stored.items()
    )
    text = (
        f"{arguments.kills} servers killed (`kill -9`) while {CLIENTS} clients posted events: {len(acknowledged):,} "
        f"acknowledged, {statuses[503]:,} refused with 503; {each}."
    )
    suffix = "" if arguments.store == "tokens" else f"_{arguments.store}"
    machine.write(f"killed_server{suffix}", f"# A killed server\n\n{text}")
    if any(lost.values()) or any(doubled.values()) or set(statuses) - {200, 503}:
        raise SystemExit(f"lost {lost}, doubled {doubled}, statuses {statuses}")


if __name__ == "__main__":
    main()
