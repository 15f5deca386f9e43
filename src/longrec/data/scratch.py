"""Scratch folders of ``prepare``, protected by a lock while in use and removed if their process was killed."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCRATCH = ".scratch-"
"""Prefix of the names of scratch folders."""


@contextmanager
def in_use(scratch: Path) -> Iterator[None]:
    """Hold the lock of a scratch folder. The operating system releases it even if the process is killed."""
    with (scratch / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def sweep(root: Path) -> None:
    """Remove scratch folders that are not locked, whose processes were killed."""
    for lock in root.glob(f"{SCRATCH}*/lock"):
        with lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(lock.parent)
