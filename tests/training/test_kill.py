"""Tests of runs that are killed with ``kill -9`` and resumed: they end bit-identical to uninterrupted runs."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

CALLS = [
    "half a weights file:3", "before a folder moves:3", "after a folder moved:3", "after a folder moved:6",
    "inside a validation:2", "before the best is saved:2", "after the best is saved:1", "after a line of metrics:5",
    "before predictions:2", "before a file is replaced:3",
]  # fmt: skip


def kill_and_resume(
    shop: Path, folder: Path, stops: list[str], same: Callable[[Path, Path], None]
) -> list[dict[str, object]]:
    config = yaml.safe_load(shop.read_text())
    config["data"] |= {name: str(shop.parent / config["data"][name]) for name in ("log", "items", "schema")}
    config["fit"] |= {"checkpoint_steps": 3, "epochs": 1}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, str(Path(__file__).with_name("kills.py")), str(path), str(folder / "runs"), *stops]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(records) == len(stops)
    for run in records:
        assert run["resumed"] == 0, (run, done.stderr)
        same(folder / "runs" / "whole", folder / "runs" / run["run"])
    return records


def test_killed_anywhere_a_run_resumes_bit_by_bit(
    shop: Path, tmp_path: Path, same: Callable[[Path, Path], None]
) -> None:
    records = kill_and_resume(shop, tmp_path, [*CALLS, "0.3", "0.6"], same)
    assert all(run["exit"] == -signal.SIGKILL for run in records), records


@pytest.mark.slow
def test_killed_at_twenty_random_times(shop: Path, tmp_path: Path, same: Callable[[Path, Path], None]) -> None:
    draw = random.Random(0)
    records = kill_and_resume(shop, tmp_path, [f"{draw.random():.3f}" for _ in range(20)], same)
    for run in records:
        print(run)
    assert sum(run["exit"] == -signal.SIGKILL for run in records) >= 18, "most were killed before they ended"
    assert len({run["checkpoint"] for run in records}) >= 6, "at many different steps"
