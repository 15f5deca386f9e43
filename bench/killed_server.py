"""A server that is killed again and again while it records events: what was acknowledged is stored, once.

    python bench/killed_server.py [--kills 100] [--seconds 0.5]

Six clients post events, more than the server may have waiting, so that some are refused. After some time the server is
killed with ``kill -9``. The next server goes on with the same folder. In the end every acknowledged event has to be in
the store of tokens exactly once, and so has every other stored one. The bundle is the one of the tests of events.
"""

from __future__ import annotations

import argparse
import http.client
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import machine
import msgspec
import numpy as np

from longrec.serve.limits import Limits
from longrec.serve.settings import Settings
from longrec.store.token_store import TokenStore

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path[1:1] = [str(TESTS), str(TESTS / "serve"), str(TESTS / "store")]
CLIENTS, CONTEXT, USERS = 6, {"place": "side", "price": 2.25}, [f"u{number}" for number in range(1, 9)]


class Flood:
    """Clients of one server, who post events until it dies."""

    def __init__(self, first: int, start: int) -> None:
        self.first, self.start, self.sent, self.ends = first, start, 0, False
        self.acknowledged, self.statuses, self.seconds = list[tuple[str, int]](), Counter[int](), list[float]()
        self._lock = threading.Lock()

    def run(self, url: str) -> None:
        """Post events over one connection until the server dies, or the end."""
        address = urlsplit(url)
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=30)
        while not self.ends:
            with self._lock:
                number = self.first + self.sent
                self.sent += 1
            user, at = USERS[number % len(USERS)], self.start + number
            event = {"user": user, "item": 100 + number % 10, "at": at, "context": CONTEXT}
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
    arguments = parser.parse_args()
    import token_shop

    from longrec.serve.knowledge_features import key_number

    shop, rng = token_shop.shop(), np.random.default_rng(1)
    start = token_shop.START + 30 * token_shop.DAY
    acknowledged, statuses, number = list[tuple[str, int]](), Counter[int](), 0
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(events=str(shop.source), state=folder + "/state")
        encoded = [msgspec.json.encode(one).decode() for one in (settings, Limits(queue=3))]
        for kill in range(arguments.kills):
            command = [sys.executable, "-m", "longrec.serve.server", str(shop.bundle), "0", "1", *encoded]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            url = process.stdout.readline().split("ready at ")[1].split()[0]
            flood = Flood(number, start)
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
        stored = Counter[tuple[str, int]]()
        with TokenStore.open(Path(folder) / "state" / "tokens" / "tokens") as store:
            for user in USERS:
                tokens = store.last(key_number(user), 2**62, 10**6)
                stored.update((user, int(at)) for at in tokens.times.tolist() if at >= start)
    lost = [one for one in acknowledged if not stored[one]]
    doubled = [one for one, count in stored.items() if count > 1]
    text = (
        f"{arguments.kills} servers killed (`kill -9`) while {CLIENTS} clients posted events: {len(acknowledged):,} "
        f"acknowledged, {statuses[503]:,} refused with 503, {sum(stored.values()):,} stored, {len(lost)} acknowledged "
        f"ones lost, {len(doubled)} doubled."
    )
    machine.write("killed_server", f"# A killed server\n\n{text}")
    if lost or doubled or set(statuses) - {200, 503}:
        raise SystemExit(f"lost {lost[:3]}, doubled {doubled[:3]}, statuses {statuses}")


if __name__ == "__main__":
    main()
