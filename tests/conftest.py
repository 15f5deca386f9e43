"""For every test: one thread that waits without spinning, shapes checked, caches of the exporter; a Redis server.

Processes of ``-n`` take whole files, so that what the tests of a file share is made once.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, when torch is imported

# Test modules are not importable by name; what several rooms' tests share lies here, and the scripts of the docs there.
sys.path.insert(0, str(Path(__file__).parent / "models"))
sys.path.insert(1, str(Path(__file__).parent / "store"))
sys.path.insert(2, str(Path(__file__).parent.parent / "docs"))
sys.path.insert(3, str(Path(__file__).parent / "docs"))

import exporter_caches
import redis_server
import shape_checks
import torch

torch.set_num_threads(1)
shape_checks.install()
exporter_caches.install()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give a process a whole file at a time, and one model of the file that runs all of them."""
    from xdist.scheduler import LoadScopeScheduling

    class FileScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            return file if file != "tests/test_every_model.py" else f"{file}::{test.partition('-')[0]}"

    return FileScheduling(config, log) if config.getvalue("dist") == "load" else None


def pytest_collection_finish() -> None:
    """Leave what was imported out of every garbage collection. To walk it takes a fifth of the time of an export."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # for what is freed at the end of the process


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """``redis://host:port/0`` of a real server."""
    serving = redis_server.serving()
    try:
        url = serving.__enter__()
    except redis_server.NoServer as reason:
        pytest.skip(str(reason))
    yield url
    serving.__exit__(None, None, None)
