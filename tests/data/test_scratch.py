"""The leftovers of a killed preparation are removed by the next one, folders in use are not."""

from __future__ import annotations

import fcntl
from pathlib import Path

from longrec.data.scratch import sweep


def test_only_abandoned_scratch_folders_are_swept(tmp_path: Path) -> None:
    for name in ("dead", "alive"):
        (tmp_path / f".scratch-{name}").mkdir()
        (tmp_path / f".scratch-{name}" / "lock").touch()
    (tmp_path / "log").mkdir()
    with (tmp_path / ".scratch-alive" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".scratch-alive", "log"]
