"""A store on a server that hangs: what requests that read it get, and how fast all others are meanwhile.

    python bench/hanging_store.py [--seconds 10] [--rounds 3]

A reader of instance tokens reads them from Redis, through a proxy that can hold all bytes back. Two clients send
``/rank``, which reads the store, and another one sends tensors to ``/v2/models/NAME/infer``, which does not. Phases in
which the store responds and hangs take turns. The model and the tokens are those of the tests.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import machine
import mutated_requests
import numpy as np

from longrec.exporting.bundle import Bundle
from longrec.serve.limits import Limits
from longrec.serve.server import run_server
from longrec.serve.settings import Settings

TESTS = Path(__file__).resolve().parent.parent / "tests"
sys.path[1:1] = [str(TESTS), str(TESTS / "serve"), str(TESTS / "store")]
READERS, PAUSE = 2, 0.01


class Sender:
    """Client that sends one request again and again, and notes statuses and seconds."""

    def __init__(self, url: str, path: str, body: dict) -> None:
        self.address, self.path, self.body = urlsplit(url), path, json.dumps(body)
        self.seconds, self.statuses, self.ends = list[float](), Counter[int](), False

    def run(self) -> None:
        """Send over one connection until the end."""
        connection = http.client.HTTPConnection(str(self.address.hostname), self.address.port, timeout=60)
        while not self.ends:
            began = time.perf_counter()
            connection.request("POST", self.path, self.body, {"content-type": "application/json"})
            response = connection.getresponse()
            response.read()
            self.seconds.append(time.perf_counter() - began)
            self.statuses[response.status] += 1
            time.sleep(PAUSE)
        connection.close()


def run_phase(senders: list[Sender], seconds: float) -> None:
    """Let all clients send for some time."""
    threads = [threading.Thread(target=one.run) for one in senders]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    for one in senders:
        one.ends = True
    for thread in threads:
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    import redis_server
    import token_shop
    from test_stores import REQUEST, Proxy

    shop, limits = token_shop.shop(), Limits()
    name, tensors = mutated_requests.build_tensors(Bundle.open(shop.bundle), 100, 50)
    phases: dict[str, list[list[Sender]]] = {"responds": [], "hangs": []}
    with redis_server.serving() as url:
        token_shop.copy_tokens(shop.tokens, f"{url}/hanging")
        address = urlsplit(url)
        proxy = Proxy(str(address.hostname), address.port or 6379)
        settings = Settings({"tokens": f"redis://127.0.0.1:{proxy.port}{address.path}/hanging"})
        with run_server(shop.bundle, settings=settings) as server:
            for number in range(2 * arguments.rounds + 1):
                state = "hangs" if number % 2 else "responds"
                if state == "responds":
                    proxy.flows.set()
                    time.sleep(2.0)  # until the next trial of the store
                else:
                    proxy.flows.clear()
                senders = [Sender(server, f"/v2/models/{name}/infer", tensors)]
                senders += [Sender(server, "/rank", REQUEST) for _ in range(READERS)]
                run_phase(senders, arguments.seconds)
                if number:  # the first one warms up
                    phases[state].append(senders)
            proxy.flows.set()
        proxy.close()
    rows = []
    for state, rounds in phases.items():
        for kind, chosen in (("/infer", slice(0, 1)), ("/rank", slice(1, None))):
            clients = [one for senders in rounds for one in senders[chosen]]
            milliseconds = 1_000 * np.concatenate([one.seconds for one in clients])
            statuses = sum((one.statuses for one in clients), Counter[int]())
            counts = ", ".join(f"{count:,} of {status}" for status, count in sorted(statuses.items()))
            figures = [*np.percentile(milliseconds, (50, 99, 99.9)), milliseconds.max()]
            rows.append([state, kind, counts, *(f"{one:.1f}" for one in figures)])
    table = machine.format_table(["the store", "requests", "statuses", "p50 ms", "p99 ms", "p99.9 ms", "longest"], rows)
    print(table)
    machine.write(
        "hanging_store",
        f"# A store that hangs\n\n{READERS} clients read the store, one does not, {1_000 * PAUSE:.0f} ms after each "
        f"response, {arguments.rounds} phases of {arguments.seconds:g} s each; {limits.store:g} s for a response of "
        f"the store, {limits.deadline:g} s for a request.\n\n{table}",
    )


if __name__ == "__main__":
    main()
