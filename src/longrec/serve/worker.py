"""Worker process of a server: its application, from the environment that the supervisor sets."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import AsyncIterator
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path

import msgspec
from starlette.applications import Starlette
from uvicorn.config import STARTUP_FAILURE

from longrec.errors import BundleError, LongRecError
from longrec.serve.access import Access, AccessOptions
from longrec.serve.app import App
from longrec.serve.limits import Limits, fit_to_open_files
from longrec.serve.service import Service
from longrec.serve.settings import Settings

BUNDLE, SETTINGS, LIMITS, COUNTS = "LONGREC_BUNDLE", "LONGREC_SETTINGS", "LONGREC_LIMITS", "LONGREC_COUNTS"
"""Environment variables of a worker process: the bundle, its settings and limits as JSON, the folder of counters."""
ACCESS = "LONGREC_ACCESS"
"""Environment variable with the options of the access as JSON. They have the file of the keys, not the keys."""
DIGESTS = "LONGREC_DIGESTS"
"""Environment variable: what the other workers serve, as JSON. Absent after a reload, which opens what is there."""


def _end_after(supervisor: BaseProcess) -> None:
    """End this process after its supervisor, which a ``kill -9`` keeps from ending its workers."""

    def end() -> None:
        loop.remove_reader(supervisor.sentinel)
        signal.raise_signal(signal.SIGTERM)

    loop = asyncio.get_running_loop()
    loop.add_reader(supervisor.sentinel, end)


def _check_digests(service: Service) -> None:
    """Refuse a bundle that was replaced without a reload: answers would depend on the worker.

    Raises:
        BundleError: if the service is not of the bundles that the other workers serve.
    """
    expected = os.environ.get(DIGESTS)
    if expected is not None and msgspec.json.decode(expected) != service.list_digests():
        do = "POST /reload, or send SIGHUP to the server, to serve it"
        raise BundleError(str(service.path), "another bundle than the server began with", "the same bundle", do)


def create_worker_app() -> Starlette:
    """Create the application of a worker process from its environment."""
    try:
        settings = msgspec.json.decode(os.environ.get(SETTINGS, "{}"), type=Settings)
        limits = fit_to_open_files(msgspec.json.decode(os.environ.get(LIMITS, "{}"), type=Limits))
        service = Service(os.environ[BUNDLE], settings)
        service.check()
        _check_digests(service)
        access = Access(msgspec.json.decode(os.environ.get(ACCESS, "{}"), type=AccessOptions))
    except LongRecError as error:
        print(f"longrec: {error}", file=sys.stderr)
        sys.exit(STARTUP_FAILURE)

    supervisor = parent_process()
    assert supervisor is not None, "a worker is started by its supervisor"
    app = App(service, Path(os.environ[COUNTS]), limits, access, supervisor.pid)

    @contextlib.asynccontextmanager
    async def close_at_end(_: Starlette) -> AsyncIterator[None]:
        app.reload_at_signal()
        _end_after(supervisor)
        gc.collect()
        gc.freeze()  # the collector does not scan long-lived objects again, which shortens its pauses
        yield
        app.close()  # writes the last rows of its log; the signal that ends a worker runs no other handler

    return app.starlette(close_at_end)
