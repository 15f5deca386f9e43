"""Script that trains a job in processes that are killed (``kill -9``) at given stops, and resumes each.

    python kills.py CONFIG RUNS STOP...

A stop is a number (how much of the run is done, 0 to 1) or the name of a call in the code with the number of the visit,
``call:3``. Run k is called ``killed-k``. ``whole`` and ``again`` are not disturbed. The script imports once and then
forks. It prints one JSON line per stop.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch._dynamo  # noqa: F401  every optimizer imports it; here once for all children

from longrec.models import din
from longrec.models.core import artifact
from longrec.training import checkpoint, fit, tracking
from longrec.training.objectives import clicks


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_visit(number: int, real: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
    visits = 0

    def wrapper(*arguments: Any, **named: Any) -> Any:
        nonlocal visits
        visits += 1
        return (instead if visits == number else real)(*arguments, **named)

    return wrapper


def half_file(tensors: Any, path: Path) -> None:
    """Write only the first half of a file of tensors, and die."""
    saved(tensors, path)
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)
    die()


def then_die(real: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*arguments: Any, **named: Any) -> None:
        real(*arguments, **named)
        die()

    return wrapper


saved = checkpoint.save_file
CALLS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "half a weights file": (checkpoint, "save_file", half_file),
    "before a folder moves": (Path, "rename", die),
    "after a folder moved": (Path, "rename", then_die(Path.rename)),
    "inside a validation": (clicks, "score", then_die(clicks.score)),
    "before the best is saved": (artifact, "save", die),
    "after the best is saved": (artifact, "save", then_die(artifact.save)),
    "after a line of metrics": (tracking.MetricsFile, "write", then_die(tracking.MetricsFile.write)),
    "before predictions": (clicks.Clicks, "write_predictions", die),
    "before a file is replaced": (Path, "replace", die),
}


def start_child(stop: str, **arguments: Any) -> int:
    """Fork, and train in the child, which dies at a call. Return the process number."""
    process = os.fork()
    if process:
        return process
    call, _, visit = stop.partition(":")
    if call in CALLS:
        owner, name, instead = CALLS[call]
        setattr(owner, name, at_visit(int(visit), getattr(owner, name), instead))
    try:
        fit.train(quiet=True, **arguments)
        os._exit(0)
    finally:
        traceback.print_exc()
        os._exit(1)


def count_lines(folder: Path) -> int:
    """Return the number of lines of metrics.jsonl. -1 before the run folder exists."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else -1 + folder.exists()


def kill_at(stop: float, process: int, folder: Path, reference: Path, seconds: float) -> int:
    """Kill a process after the share ``stop`` of its metrics is written, up to one line."""
    wanted = stop * count_lines(reference)
    while count_lines(folder) < int(wanted):
        time.sleep(0.001)
        ended_process, exit_code = os.waitpid(process, os.WNOHANG)
        if ended_process:
            return os.waitstatus_to_exitcode(exit_code)
    time.sleep((wanted - int(wanted)) * seconds / count_lines(reference))
    os.kill(process, signal.SIGKILL)
    return wait_for_exit(process)


def wait_for_exit(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main(config: str, runs: str, *stops: str) -> None:
    assert din.DIN, "the model is imported once too"
    for name in ("whole", "again"):
        assert wait_for_exit(start_child("", source=config, overrides=[f"name={name}", f"fit.runs={runs}"])) == 0
    reference = Path(runs) / "again"
    seconds = json.loads((reference / "results.json").read_text())["seconds"]
    for number, stop in enumerate(stops):
        folder = Path(runs) / f"killed-{number}"
        new = {"source": config, "overrides": [f"name={folder.name}", f"fit.runs={runs}"]}
        process = start_child(stop, **new)
        exit_code = wait_for_exit(process) if ":" in stop else kill_at(float(stop), process, folder, reference, seconds)
        written = count_lines(folder)
        state = folder / "checkpoints" / "last" / "state.json"
        step = json.loads(state.read_text())["step"] if state.exists() else None
        resumed = wait_for_exit(start_child("", resume=folder) if folder.exists() else start_child("", **new))
        record = {
            "run": folder.name,
            "moment": stop,
            "exit": exit_code,
            "lines": written,
            "checkpoint": step,
            "resumed": resumed,
        }
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
