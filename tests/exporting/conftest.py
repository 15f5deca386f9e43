from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "serve"))

import shop  # noqa: E402


@pytest.fixture(scope="session")
def full() -> shop.Shop:
    return shop.full()


@pytest.fixture(scope="session")
def steps() -> shop.Shop:
    return shop.steps()


@pytest.fixture(scope="session")
def prejoined() -> shop.Shop:
    return shop.prejoined()
