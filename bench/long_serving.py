"""CPU time of a request to models that search long histories, in process and in the exported program alone.

    python bench/long_serving.py [--rounds 15] [--models sim_hard sdim] [--write]

A log has users with 100, 1,000 and 10,000 events over items of 20 categories (the log of ``user_states.py``). Each
model is trained for one step with its default widths and exported. Every round ranks 100 candidates for a user of every
length by every model, in turns, twice by the first model as an A/A row: once through the service, from JSON to JSON,
and once in a session of onnxruntime alone, with the tensors that the service sent to it. The last column is the request
with live events open. A model whose candidates a server splits for long histories, which is DIN, is measured in the
first rounds only. Its weights are normalized: a plain sum of 10,000 events is rounded beyond the tolerance of export.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import machine
import numpy as np
import onnxruntime
import orjson
from numpy.typing import NDArray
from user_states import COPIES, LENGTHS, SCHEMA, START, STEP, write_log

import longrec
from longrec.exporting.bundle import Bundle
from longrec.exporting.inputs import SCORE
from longrec.serve.service import Service
from longrec.serve.settings import build_settings

MODELS: dict[str, dict[str, Any]] = {
    "sim_hard": {"name": "sim", "search": "hard"},
    "sim_soft": {"name": "sim", "search": "soft"},
    "eta": {"name": "eta"},
    "sdim": {"name": "sdim"},
    "twin": {"name": "twin"},
    "longer": {"name": "longer"},
    "din": {"name": "din", "softmax": True},
}
MEASURED, CANDIDATES, SLOW_ROUNDS = (100, 1_000, 10_000), 100, 2
WAYS = ("service", "program", "live")
NOW = START + STEP * (max(LENGTHS) + 100)


def export(name: str, data: dict[str, str], folder: Path) -> Path:
    """Train a model for one step, and export it."""
    data_config = {**data, "schema": SCHEMA, "folder": str(folder / "prepared"), "split": {"by": "leave_one_out"}}
    fit = {"max_steps": 1, "batch_size": 4, "runs": str(folder / "runs"), "tensorboard": "off"}
    config = {"name": name, "data": data_config, "model": MODELS[name], "fit": fit, "evaluate": {"n_resamples": 2}}
    bundle = folder / f"{name}.bundle"
    longrec.export(longrec.train(config, quiet=True), bundle)
    return bundle


def open_session(bundle: Bundle) -> onnxruntime.InferenceSession:
    """Open the program of a bundle as one would without LongRec, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    path = bundle.path / bundle.manifest.programs[SCORE].file
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def record_tensors(service: Service, body: bytes) -> list[dict[str, NDArray[Any]]]:
    """Return the tensors that the service sends to its program for a request, once per run."""
    program, sent = service.served.programs[SCORE], []
    run_outputs = program.run_outputs

    def record(tensors: Any, outputs: Any) -> Any:
        sent.append({name: tensor for name, tensor in tensors.items() if name in program.names})
        return run_outputs(tensors, outputs)

    program.run_outputs = record  # type: ignore[method-assign]
    try:
        service.answer(body)
    finally:
        del program.run_outputs
    return sent


@dataclass
class Served:
    """One exported model, opened in three ways, and the times of its requests."""

    name: str
    service: Service
    live: Service
    session: onnxruntime.InferenceSession
    times: dict[tuple[int, str], list[float]] = field(default_factory=dict)

    def run(self, sent: list[dict[str, NDArray[Any]]]) -> None:
        """Run the program on recorded tensors."""
        for tensors in sent:
            self.session.run(None, tensors)

    def measure(self, length: int, number: int, keep: bool) -> None:
        """Measure one request of a user with a history of this length."""
        user = LENGTHS.index(length) * COPIES + number % COPIES
        drawn = np.random.default_rng(number).choice(500, CANDIDATES, replace=False).tolist()
        body = orjson.dumps({"user": user, "candidates": drawn, "at": NOW + number, "context": {}})
        sent = record_tensors(self.service, body)
        ways: list[Callable[[], Any]] = [
            lambda: self.service.answer(body), lambda: self.run(sent), lambda: self.live.answer(body)
        ]  # fmt: skip
        for way, work in zip(WAYS, ways, strict=True):
            began = time.process_time()
            work()
            if keep:
                self.times.setdefault((length, way), []).append(time.process_time() - began)


def measure(served: list[Served], rounds: int) -> None:
    """Measure all models in turns."""
    for number in range(rounds + 1):
        for one in served:
            grows = one.service.bundle.manifest.events_per_candidate
            for length in MEASURED:
                if not grows or length < max(MEASURED) or number <= SLOW_ROUNDS:
                    one.measure(length, number, keep=number > 0 or grows)


def main() -> None:
    """Measure, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--write", action="store_true", help="write the result into results/")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as opened:
        folder = Path(scratch)
        data, served = write_log(folder), []
        bundles = {name: export(name, data, folder) for name in arguments.models}
        for at, name in enumerate([*bundles, arguments.models[0]]):
            plain, live = (
                opened.enter_context(contextlib.closing(Service(bundles[name], settings, lambda: NOW)))
                for settings in (None, build_settings(state=str(folder / f"state-{at}"), events=True))
            )
            label = name if at < len(bundles) else f"{name} again"
            served.append(Served(label, plain, live, open_session(plain.bundle)))
        measure(served, arguments.rounds)
    rows = [
        [one.name, f"{length:,}", *(f"{1e3 * float(np.median(one.times[length, way])):.2f}" for way in WAYS)]
        for one in served
        for length in MEASURED
    ]
    head = ["model", "events of the user", "service, CPU ms", "program alone, CPU ms", "service with live events"]
    text = (
        f"# Requests of {CANDIDATES} candidates by the length of the history\n\n`bench/long_serving.py --rounds "
        f"{arguments.rounds}`. Median CPU milliseconds of a request on one thread, models after one step with their "
        "default widths, in turns; the last model is the first one in further sessions (A/A).\n\n"
    )
    print(machine.format_table(head, rows))
    if arguments.write:
        machine.write("long_serving", text + machine.format_table(head, rows))


if __name__ == "__main__":
    main()
