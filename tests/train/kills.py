"""Trains a job again and again in processes that are killed (``kill -9``) at given moments, and resumes each.

    python kills.py CONFIG RUNS MOMENT...

A moment is a number (how much of the run is done, 0 to 1) or the name of a place in the
code with the number of the visit, ``place:3``. Run k is called ``killed-k``; ``whole`` and ``again`` are not disturbed.
Imports once, then forks. One JSON line a moment says what came of it.
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
from longrec.train import checkpoint, fit, loop, tracking


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_visit(number: int, real: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
    visits = 0

    def wrapped(*given: Any, **named: Any) -> Any:
        nonlocal visits
        visits += 1
        return (instead if visits == number else real)(*given, **named)

    return wrapped


def half_file(tensors: Any, path: Path) -> None:
    """A file of tensors, of which only the first half reached the disk."""
    saved(tensors, path)
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)
    die()


def then_die(real: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*given: Any, **named: Any) -> None:
        real(*given, **named)
        die()

    return wrapped


saved = checkpoint.save_file
PLACES: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "half a weights file": (checkpoint, "save_file", half_file),
    "before a folder moves": (Path, "rename", die),
    "after a folder moved": (Path, "rename", then_die(Path.rename)),
    "inside a validation": (loop, "score", then_die(loop.score)),
    "before the best is saved": (artifact, "save", die),
    "after the best is saved": (artifact, "save", then_die(artifact.save)),
    "after a line of metrics": (tracking.MetricsFile, "write", then_die(tracking.MetricsFile.write)),
    "before predictions": (fit, "write_predictions", die),
    "before a file is replaced": (Path, "replace", die),
}


def child(moment: str, **given: Any) -> int:
    """Fork; train in the child, armed to die at a place. The process number."""
    process = os.fork()
    if process:
        return process
    place, _, visit = moment.partition(":")
    if place in PLACES:
        owner, name, instead = PLACES[place]
        setattr(owner, name, at_visit(int(visit), getattr(owner, name), instead))
    try:
        fit.train(quiet=True, **given)
        os._exit(0)
    finally:
        traceback.print_exc()
        os._exit(1)


def lines(folder: Path) -> int:
    """Lines of metrics.jsonl; -1 before the run folder is there."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else -1 + folder.exists()


def kill_at(moment: float, process: int, folder: Path, like: Path, seconds: float) -> int:
    """Kill a process when ``moment`` of its metrics are written, give or take the way to the next line."""
    wanted = moment * lines(like)
    while lines(folder) < int(wanted):
        time.sleep(0.001)
        found, how = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(how)
    time.sleep((wanted - int(wanted)) * seconds / lines(like))
    os.kill(process, signal.SIGKILL)
    return ended(process)


def ended(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main(config: str, runs: str, *moments: str) -> None:
    assert din.DIN, "the model is imported once too"
    for name in ("whole", "again"):
        assert ended(child("", source=config, overrides=[f"name={name}", f"fit.runs={runs}"])) == 0
    like = Path(runs) / "again"
    seconds = json.loads((like / "results.json").read_text())["seconds"]
    for number, moment in enumerate(moments):
        folder = Path(runs) / f"killed-{number}"
        new = {"source": config, "overrides": [f"name={folder.name}", f"fit.runs={runs}"]}
        process = child(moment, **new)
        how = ended(process) if ":" in moment else kill_at(float(moment), process, folder, like, seconds)
        written = lines(folder)
        state = folder / "checkpoints" / "last" / "state.json"
        step = json.loads(state.read_text())["step"] if state.exists() else None
        again = ended(child("", resume=folder) if folder.exists() else child("", **new))
        said = {
            "run": folder.name,
            "moment": moment,
            "exit": how,
            "lines": written,
            "checkpoint": step,
            "resumed": again,
        }
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
