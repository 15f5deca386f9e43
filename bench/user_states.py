"""CPU time of a request by the length of the history, with states of users and without.

    python bench/user_states.py [--rounds 40] [--write FILE]

A log has users with 10, 100, 1,000 and 10,000 events. ``hpmn``, ``mimn`` and ``hstu`` (with a window of 64 events and a
bias of time) are trained for one step, exported with states, and warmed. Each round ranks 100 candidates for a user of
every length, in turns, with a state and, up to 100 events, without, and for the shortest twice, as an A/A row. Requests
run in this process. Scores with and without a state are compared, for the longest histories those of one candidate, and
for a user with 1,000 events those of a state that was folded event by event. Initial weights are large, so that scores
depend on histories: by how much is measured with a request before the first event.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

import longrec
from longrec.nn import hstu
from longrec.serve import state_updates
from longrec.serve.knowledge_features import key_number
from longrec.serve.service import Service
from longrec.serve.settings import build_settings

LENGTHS = (10, 100, 1_000, 10_000)
START, STEP, ITEMS, COPIES = 1_700_000_000_000, 1_000, 500, 4
SCHEMA: dict[str, Any] = {
    "user": "user_id",
    "item": "item_id",
    "time": {"column": "at", "unit": "ms"},
    "label": "click",
    "features": {"user_id": {"kind": "id"}, "item_id": {"kind": "id"}, "kind": {"kind": "id", "side": "item"}},
    "histories": {"seen": {"features": ["item_id", "kind"], "max_length": 10_000}},
}
MODELS: dict[str, dict[str, Any]] = {"hpmn": {}, "mimn": {}, "hstu": {"window": 64}, "sdim": {}}
TIMES = {"hstu": ["time_gap", "time_since_previous"]}
"""Further columns of the history, of a model that has a state with them."""


def write_log(folder: Path) -> dict[str, str]:
    """Write a log with a few users of every length, and the items."""
    draws, rows = np.random.default_rng(5), []
    for user in range(len(LENGTHS) * COPIES):
        length = LENGTHS[user // COPIES]
        rows.append({
            "user_id": np.full(length, user),
            "item_id": draws.integers(0, ITEMS, length),
            "at": START + STEP * (max(LENGTHS) - np.arange(length)[::-1]),
            "click": draws.integers(0, 2, length),
        })  # fmt: skip
    columns = {name: np.concatenate([one[name] for one in rows]) for name in rows[0]}
    pq.write_table(pa.table(columns), folder / "log.parquet")
    pq.write_table(
        pa.table({"item_id": range(ITEMS), "kind": [n % 20 for n in range(ITEMS)]}), folder / "items.parquet"
    )
    return {name: str(folder / f"{name}.parquet") for name in ("log", "items")}


def export(model: str, data: dict[str, str], folder: Path) -> Path:
    """Train one step, and export with states."""
    fit = {"max_steps": 1, "batch_size": 8, "runs": str(folder / "runs"), "tensorboard": "off"}
    split = {"by": "leave_one_out"}
    seen = SCHEMA["histories"]["seen"]
    hstu._INITIAL_STD = 1.0
    histories = {"seen": {**seen, "features": [*seen["features"], *TIMES.get(model, [])]}}
    prepared = str(folder / f"prepared-{model}")
    data_config = {**data, "schema": {**SCHEMA, "histories": histories}, "folder": prepared, "split": split}
    config = {
        "name": model,
        "data": data_config,
        "model": {"name": model, "init_std": 0.5, **MODELS[model]},
        "fit": fit,
    }
    run = longrec.train({**config, "evaluate": {"n_resamples": 2}}, quiet=True)
    longrec.export(run, folder / f"{model}.bundle", states=True)
    return folder / f"{model}.bundle"


def measure(bundle: Path, rounds: int) -> list[str]:
    """Return the rows of the table of one bundle."""
    now = START + STEP * (max(LENGTHS) + 100)
    began = time.process_time()
    done = longrec.warm(bundle, at=now)
    warmed = time.process_time() - began
    with contextlib.closing(Service(bundle, build_settings(events=True), lambda: now)) as service:
        histories = service.served.encoder.histories
        states, worst = histories.states, 0.0
        timings: dict[tuple[str, bool], list[float]] = {}
        for number in range(rounds + 1):
            kinds = [(str(length), at * COPIES + number % COPIES) for at, length in enumerate(LENGTHS)]
            for name, user in [*kinds, ("10 again", number % COPIES)]:
                scores = []
                for with_state in (True, False):
                    if not with_state and len(name) > 3 and number:
                        continue
                    histories.states = states if with_state else None
                    few = 1 if len(name) > 3 and not number else 100
                    request = {"user": user, "candidates": list(range(few)), "at": now + number, "context": {}}
                    body = orjson.dumps(request)
                    began = time.process_time()
                    answer = service.answer(body)
                    if number:
                        timings.setdefault((name, with_state), []).append(time.process_time() - began)
                    items = orjson.loads(answer)["items"]
                    scores.append({item["id"]: item["score"] for item in items})
                if len(scores) == 2:
                    worst = max(worst, compare(*scores))
        histories.states = states
        steps, moved = compare_steps(service, now + rounds + 1)
        worst = max(worst, steps)
    rows = [
        f"| {bundle.stem} | {name} | {'yes' if with_state else 'no'} | {1e3 * float(np.median(own)):.2f} |"
        for (name, with_state), own in timings.items()
    ]
    events = sum(LENGTHS) * COPIES
    size = done["bytes_per_user"]
    return [
        *rows,
        f"| {bundle.stem} | warm: {events / warmed:,.0f} events per CPU-second ({done['users']} users) | | |",
        f"| {bundle.stem} | {size:,} bytes per user; largest difference of two scores {worst:.1e}, "
        f"to those without the history {moved:.1e} | | |",
    ]


def compare(one: dict[int, float], other: dict[int, float]) -> float:
    """Return the largest difference of two scores of an item."""
    return max(abs(one[item] - other[item]) for item in one)


def compare_steps(service: Service, now: int) -> tuple[float, float]:
    """Return the largest difference to scores with a state folded event by event, and to scores without a history."""
    user, scores = LENGTHS.index(1_000) * COPIES, []
    states = service.served.encoder.histories.states
    assert states is not None
    request, size = {"user": user, "candidates": list(range(100)), "context": {}}, state_updates._CHUNK
    for at, state_updates._CHUNK in ((now, size), (now, 1), (START, size)):
        if at == now:
            states.remove(key_number(user), -1)  # the request folds it again
        answer = orjson.loads(service.answer(orjson.dumps({**request, "at": at})))
        scores.append({item["id"]: item["score"] for item in answer["items"]})
        assert states.store.get(key_number(user)) is not None
    return compare(scores[0], scores[1]), compare(scores[0], scores[2])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    lines = ["| model | events of the user | state | CPU ms per request, median |", "| --- | --- | --- | --- |"]
    with tempfile.TemporaryDirectory() as scratch:
        data = write_log(Path(scratch))
        for model in arguments.models:
            lines += measure(export(model, data, Path(scratch)), arguments.rounds)
            print("\n".join(lines), flush=True)
    if arguments.write:
        arguments.write.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
