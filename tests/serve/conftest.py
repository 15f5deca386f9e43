from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import live_shop  # noqa: E402
import row_shop  # noqa: E402
import shop  # noqa: E402

from longrec.serve.server import run_server  # noqa: E402
from longrec.serve.service import Service  # noqa: E402


@pytest.fixture(scope="session")
def full() -> shop.Shop:
    return shop.full()


@pytest.fixture(scope="session")
def steps() -> shop.Shop:
    return shop.steps()


@pytest.fixture(scope="session")
def prejoined() -> shop.Shop:
    return shop.prejoined()


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> row_shop.ExportedLog:
    return row_shop.export_log(tmp_path_factory.mktemp("row"), row_shop.SCHEMA)


@pytest.fixture(scope="session")
def service(full: shop.Shop) -> Service:
    return Service(full.bundle)


@pytest.fixture(scope="session")
def url(full: shop.Shop) -> Iterator[str]:
    with run_server(full.bundle) as address:
        yield address


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> live_shop.Trained:
    return live_shop.train_shop(tmp_path_factory.mktemp("live"))


@pytest.fixture(params=["folder", "redis"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Location of a new state."""
    if request.param == "folder":
        return str(tmp_path / "state")
    return f"{request.getfixturevalue('redis_url')}/live-{abs(hash(str(tmp_path))):x}"
