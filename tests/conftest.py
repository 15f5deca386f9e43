"""For every test: one thread that waits without spinning, shapes checked in layers and models; a Redis server."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read once, when torch is imported

# Test modules are not importable by name; what several rooms' tests share lies here, and the scripts of the docs there.
sys.path.insert(0, str(Path(__file__).parent / "models"))
sys.path.insert(1, str(Path(__file__).parent / "store"))
sys.path.insert(2, str(Path(__file__).parent.parent / "docs"))

import redis_server
import shape_checks
import torch

torch.set_num_threads(1)
shape_checks.install()


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
