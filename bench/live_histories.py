"""Live histories: scores online beside offline, and the latency of requests with and without them, on both stores.

    python bench/live_histories.py [--requests 1000] [--warm 200]

DIN with 100 candidates and 50 past events (``serving_latency.py``). Every request to ``/rank`` is followed by an event
of its first candidate at the timestamp of the request, so that later requests of the user read it. In the end the
events are a log, ``longrec predict`` scores its rows with the trained model, and both scores are compared. Latency is
measured afterwards, beside a server of the same bundle without recorded events, in turns.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import machine
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import serving_latency

import longrec
from longrec.serve.client import client
from longrec.serve.server import run_server
from longrec.serve.settings import Settings
from longrec.training.finished_run import Run

sys.path[1:1] = [str(Path(__file__).resolve().parent.parent / "tests" / "store")]
HISTORY, ACTIVE, TURNS = 50, 150, 5


def build_run(folder: Path) -> Run:
    """Train DIN on a log in milliseconds, whose events have a time from which they are visible."""
    serving_latency.write_log(folder, np.random.default_rng(1))
    log = pq.read_table(folder / "events.parquet")
    times = pc.multiply(log["time"], 1_000)
    log = log.set_column(log.column_names.index("time"), "time", times).append_column("arrived", times)
    pq.write_table(log, folder / "events.parquet")
    config = serving_latency.build_job(folder, HISTORY)
    config["data"]["schema"]["time"] = {"column": "time", "unit": "ms", "available_at": "arrived"}
    return longrec.train(config, quiet=True)


def draw_requests(count: int, seed: int) -> list[dict[str, Any]]:
    """Return random requests of a few users, so that each reads events of the requests before."""
    rng = np.random.default_rng(seed)
    return [
        {
            "user": int(rng.integers(ACTIVE)),
            "candidates": rng.choice(serving_latency.ITEMS, serving_latency.CANDIDATES, replace=False).tolist(),
            "context": {"device": int(rng.integers(5))},
        }
        for _ in range(count)
    ]


def compare(url: str, run: Run, requests: list[dict[str, Any]], folder: Path) -> tuple[float, int]:
    """Return the largest difference between online and offline scores, and how many scores the events change."""
    rows, online, plain = [], [], []
    with client(url) as shop:
        for request in requests:
            ranking = shop.rank(**request)
            item = request["candidates"][0]
            online.append(next(one.score for one in ranking if one.id == item))
            event = shop.event(request["user"], item, ranking.at)  # histories read no column of the event
            row = {"user_id": request["user"], "item_id": item, "time": ranking.at, "arrived": event.visible}
            rows.append({**row, **request["context"], "click": 0})
    for name in ("time", "arrived"):
        for row in rows:
            row[name] = int(np.datetime64(str(row[name]).removesuffix("Z"), "ms").astype(np.int64))
    pq.write_table(pa.Table.from_pylist(rows), folder / "new.parquet")
    scores = pq.read_table(longrec.predict(run, log=str(folder / "new.parquet"), into=folder / "scores.parquet"))
    with client(str(folder / "shop.bundle")) as frozen:
        for request, row in zip(requests, rows):
            one = frozen.rank(request["user"], [row["item_id"]], row["time"], request["context"])
            plain.append(one[0].score)
    offline = scores["score"].to_numpy()
    return float(np.abs(offline - online).max()), int((np.abs(np.array(plain) - online) > 1e-6).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000)
    parser.add_argument("--warm", type=int, default=200)
    arguments = parser.parse_args()
    import redis_server

    folder = Path(tempfile.mkdtemp(prefix="live-"))
    run = build_run(folder)
    bundle = folder / "shop.bundle"
    longrec.export(run, bundle)
    requests, rows, facts = draw_requests(arguments.requests, 2), [], []
    with redis_server.serving() as redis:
        for name, state in (("folder", str(folder / "state")), ("Redis", f"{redis}/live")):
            with run_server(bundle, settings=Settings(record=True, state=state)) as url, run_server(bundle) as other:
                difference, changed = compare(url, run, requests, folder)
                facts.append(
                    f"{name}: scores of {len(requests):,} requests online and offline differ by {difference:.1e}; "
                    f"without the events {changed:,} of them are others."
                )
                print(facts[-1], flush=True)
                spent: dict[str, list[np.ndarray]] = {"with": [], "without": []}
                with client(url) as live, client(other) as frozen:
                    for turn in range(TURNS):
                        for kind, shop in (("with", live), ("without", frozen)):
                            drawn = np.random.default_rng(turn)
                            count = arguments.requests // TURNS
                            spent[kind].append(serving_latency.time_requests(shop, count, arguments.warm, drawn)[0])
                for kind, turns in spent.items():
                    figures = np.percentile(np.concatenate(turns), (50, 90, 99))
                    rows.append([f"{name}, {kind} live histories", *(f"{one:.2f}" for one in figures)])
    table = machine.format_table(["HTTP requests", "p50 ms", "p90 ms", "p99 ms"], rows)
    print(table)
    machine.write(
        "live_histories",
        f"# Live histories\n\nDIN, {serving_latency.CANDIDATES} candidates, {HISTORY} past events, {ACTIVE} users who "
        "post an event after every request.\n\n" + "\n".join(f"- {fact}" for fact in facts) + f"\n\n{table}",
    )


if __name__ == "__main__":
    main()
