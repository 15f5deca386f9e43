"""A Redis server for the whole session."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import redis_server


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
