"""Mutated requests against a live server: counts by status, the slowest, and whether the answers to others change.

    python bench/mutated_requests.py [--count 20000] [--size 100000] [--seed 0] [--bundle BUNDLE [--events SOURCE]]

The mutations are those of the tests (``tests/serve/mutations.py``), of the example of the bundle. An untouched request
is sent before, between and after them, and its scores are compared. Changes of items and events of the same user may
alter them, which is only reported. By default the bundle is that of the tests with columns of candidates.
"""

from __future__ import annotations

import argparse
import http.client
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "serve"))

import machine
import row_shop
from mutations import Mutator

from longrec.exporting.bundle import RETRIEVER, Bundle
from longrec.exporting.inputs import make_random_tensors
from longrec.serve.server import run_server
from longrec.serve.settings import Settings

DATATYPES = {"int32": "INT32", "int64": "INT64", "float32": "FP32"}
EVERY = 50
"""Number of mutations between two untouched requests."""


class Connection:
    """One persistent connection to a server."""

    def __init__(self, url: str) -> None:
        self._http = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)

    def send(self, route: str, body: bytes) -> tuple[int, bytes]:
        """Return status and content of the answer."""
        self._http.request("POST", route, body, {"content-type": "application/json"})
        response = self._http.getresponse()
        return response.status, response.read()

    def read(self, route: str) -> Any:
        """Return the content of a page."""
        self._http.request("GET", route)
        return json.loads(self._http.getresponse().read())

    def score(self, route: str, body: bytes) -> dict[Any, float]:
        """Return the scores of a request by item."""
        status, content = self.send(route, body)
        if status != 200:
            raise SystemExit(f"the untouched request is refused with {status}: {content[:500]!r}")
        return {item["id"]: item["score"] for item in json.loads(content)["items"]}


def list_requests(example: dict[str, Any], bundle: Bundle, route: str, events: bool) -> dict[str, dict[str, Any]]:
    """Return a valid request to each route."""
    requests = {route: example}
    if events:
        item = example["candidates"][0]
        event = {"user": example["user"], "item": item, "at": example.get("at"), "context": example["context"]}
        requests["/events"] = {**event, "allow_unknown": True}
    schema = bundle.fitted.schema
    if schema.item is not None and bundle.items.versions is None:
        keys = bundle.items.keys.values[:3].to_pylist()
        requests["/items"] = {"items": [{schema.item: key, "withdrawn": False} for key in keys]}
    name, tensors = build_tensors(bundle)
    requests[f"/v2/models/{name}/infer"] = tensors
    return requests


def build_tensors(bundle: Bundle, candidates: int = 3, events: int = 4) -> tuple[str, dict[str, Any]]:
    """Return the name of the model and a request of random tensors of the Open Inference Protocol."""
    inputs = [
        {"name": name, "shape": list(one.shape), "datatype": DATATYPES[str(one.dtype)], "data": one.ravel().tolist()}
        for name, one in make_random_tensors(bundle.manifest.inputs, candidates, events, 0).items()
    ]
    return bundle.manifest.model, {"inputs": inputs}


class Tally:
    """What came back from the mutations of one route."""

    def __init__(self, route: str) -> None:
        self.route, self._statuses = route, Counter[int]()
        self._seconds, self._slowest, self._longest = 0.0, "", 0

    def send(self, connection: Connection, body: bytes) -> None:
        """Send one mutation."""
        began = time.perf_counter()
        status, content = connection.send(self.route, body)
        seconds = time.perf_counter() - began
        self._statuses[status] += 1
        if status >= 500:
            print(f"{self.route}: {status} {content[:300]!r} to {body[:300]!r}")
        if status != 200:
            self._longest = max(self._longest, len(content))
        if seconds > self._seconds:
            self._seconds, self._slowest = seconds, f"{status} to {len(body):,} bytes, {body[:80]!r}"

    def __str__(self) -> str:
        counts = ", ".join(f"{count:,} of {status}" for status, count in sorted(self._statuses.items()))
        slowest = f"slowest {self._seconds:.3f} s ({self._slowest})"
        return f"{self.route}: {counts}; longest error {self._longest:,} bytes; {slowest}"


def compare(before: dict[Any, float], after: dict[Any, float]) -> str:
    """Return in words whether scores are the same."""
    return "unchanged" if before == after else f"changed: {before} and {after}"


def main() -> None:
    """Run the mutations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--events", type=Path)
    options = parser.parse_args()
    print(f"{machine.get_hardware_name()}, load {machine.read_load()}")
    folder = Path(tempfile.mkdtemp(prefix="mutations-"))
    try:
        own = options.bundle or row_shop.export_log(folder, row_shop.SCHEMA).bundle
        shutil.copytree(own, folder / "served.bundle")  # so that changes of items stay in this folder
        bundle = Bundle.open(folder / "served.bundle")
        route = "/recommend" if bundle.manifest.kind == RETRIEVER else "/rank"
        settings = Settings()
        if options.events is not None:
            settings = Settings(events=str(options.events), state=str(folder / "state"))
        with run_server(folder / "served.bundle", settings=settings) as url:
            connection = Connection(url)
            example = connection.read("/example")
            requests = list_requests(example, bundle, route, options.events is not None)
            untouched = json.dumps(example).encode()
            mutator, share = Mutator(options.seed, options.size), options.count // len(requests)
            before = connection.score(route, untouched)
            for path, valid in requests.items():
                tally = Tally(path)
                for number in range(share):
                    tally.send(connection, mutator.mutate(valid))
                    if number % EVERY != EVERY - 1 or path != route:
                        continue
                    if (compared := compare(before, connection.score(route, untouched))) != "unchanged":
                        raise SystemExit(f"{path}: after {number + 1} mutations the untouched scores {compared}")
                print(tally)
                print(f"  untouched request afterwards: {compare(before, connection.score(route, untouched))}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
